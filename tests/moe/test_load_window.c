/* test_load_window.c - the load window, the expert states derived from it, and its report. */
#include "moe/moe.h"

#include <math.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, E = 5, WINDOW = 200 };

static void take(mu_load_window *w, int64_t times, const int64_t counts[LAYERS * E]) {
    for (int64_t i = 0; i < times; i++) mu_load_window_add(w, counts);
}

static mu_expert_state state_of(const mu_load_window *w, int layer, int expert) {
    mu_expert_state states[64];
    mu_load_window_states(w, layer, states);
    return states[expert];
}

static const int64_t even[LAYERS * E] = { 10, 10, 10, 10, 10, 10, 10, 10, 10, 10 };
/* layer 0: expert 2 dead; layer 1: 0 and 3 dead, 4 starved (8 < 10 % of 100), 1 just not (10 = 10 %) */
static const int64_t uneven[LAYERS * E] = { 25, 25, 0, 25, 25, 0, 10, 482, 0, 8 };

static void nobody_is_judged_before_twenty_steps(void **state) {
    (void)state;
    mu_load_window w;
    mu_load_window_init(&w, LAYERS, E, WINDOW);
    take(&w, MU_LOAD_WINDOW_MIN - 1, uneven);
    for (int i = 0; i < LAYERS * E; i++) assert_int_equal(state_of(&w, i / E, i % E), MU_EXPERT_HEALTHY);
    char *text = mu_load_window_report(&w, (int[]){ 0, 1 });
    assert_string_equal(text, "");
    free(text);
    take(&w, 1, uneven);
    assert_int_equal(w.held, 20);
    assert_int_equal(state_of(&w, 0, 2), MU_EXPERT_DEAD);
    mu_load_window_free(&w);
}

static void dead_starved_healthy(void **state) {
    (void)state;
    static const mu_expert_state wanted[LAYERS * E] = {
        MU_EXPERT_HEALTHY, MU_EXPERT_HEALTHY, MU_EXPERT_DEAD, MU_EXPERT_HEALTHY, MU_EXPERT_HEALTHY,
        MU_EXPERT_DEAD, MU_EXPERT_HEALTHY, MU_EXPERT_HEALTHY, MU_EXPERT_DEAD, MU_EXPERT_STARVED,
    };
    mu_load_window w;
    mu_load_window_init(&w, LAYERS, E, WINDOW);
    take(&w, 30, uneven);
    for (int i = 0; i < LAYERS * E; i++) assert_int_equal(state_of(&w, i / E, i % E), wanted[i]);
    char *text = mu_load_window_report(&w, (int[]){ 1, 3 });
    assert_string_equal(text, "layer 1: 1 of 5 experts dead (no tokens for 30 steps): 2\n"
                              "layer 3: 2 of 5 experts dead (no tokens for 30 steps): 0, 3\n"
                              "layer 3: 1 of 5 experts below 10 % of the mean load over 30 steps: 4");
    mu_unhealthy found = mu_load_window_count_unhealthy(&w);
    assert_int_equal(found.dead, 3);
    assert_int_equal(found.starved, 1);
    free(text);
    mu_load_window_free(&w);
}

/* Runs of three and more are ranges, and after a dozen entries the rest is a number. */
static void long_lists_are_short(void **state) {
    (void)state;
    enum { MANY = 64 };
    static const struct { const char *dead, *text; } cases[] = {
        { "11100110", "5 of 64 experts dead (no tokens for 20 steps): 0-2, 5, 6" },
        { "0101010101010101010101010101", "14 of 64 experts dead (no tokens for 20 steps): 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23 and 2 more" },
        { "0000000000000000000000000000000000000000000000000000000000001111", "4 of 64 experts dead (no tokens for 20 steps): 60-63" },
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int64_t counts[MANY];
        mu_load_window w;
        mu_load_window_init(&w, 1, MANY, WINDOW);
        for (size_t i = 0; i < MANY; i++) counts[i] = i < strlen(cases[c].dead) && cases[c].dead[i] == '1' ? 0 : 5;
        for (int step = 0; step < MU_LOAD_WINDOW_MIN; step++) mu_load_window_add(&w, counts);
        char *text = mu_load_window_report(&w, (int[]){ 7 });
        assert_int_equal(strncmp(text, "layer 7: ", 9), 0);
        assert_string_equal(text + 9, cases[c].text);
        free(text);
        mu_load_window_free(&w);
    }
}

/* A step leaves the window once exactly a window's length of newer steps is in it. */
static void slides(int64_t length) {
    mu_load_window w;
    mu_load_window_init(&w, LAYERS, E, length);
    take(&w, 7, even);
    assert_int_equal(w.held, 7);
    take(&w, length - 1, uneven);
    assert_int_equal(w.held, length);
    assert_int_equal(w.total[2], 10);               /* one even step is left, but the last silence is too long */
    assert_int_equal(state_of(&w, 0, 2), length - 1 > MU_SILENT_STEPS ? MU_EXPERT_DEAD : MU_EXPERT_STARVED);
    take(&w, 1, uneven);
    assert_int_equal(w.total[2], 0);
    assert_int_equal(state_of(&w, 0, 2), length > MU_SILENT_STEPS ? MU_EXPERT_DEAD : MU_EXPERT_STARVED);
    for (int i = 0; i < LAYERS * E; i++) assert_int_equal(w.total[i], length * uneven[i]);
    take(&w, 1, even);                              /* one token: no longer dead */
    assert_int_equal(state_of(&w, 0, 2), MU_EXPERT_STARVED);
    for (int i = 0; i < LAYERS * E; i++) assert_int_equal(w.previous[i], even[i]);
    take(&w, 3 * length, even);
    char *text = mu_load_window_report(&w, (int[]){ 0, 1 });
    assert_string_equal(text, "");
    free(text);
    mu_load_window_free(&w);
}

static void the_window_slides(void **state) {
    (void)state;
    slides(WINDOW);
    slides(MU_LOAD_WINDOW_MIN);
    slides(MU_LOAD_WINDOW_MIN + 1);
}

/* Layer 0: expert 0 has tokens in every step, expert 1 in every step until `until`, expert 2 in every `gap`-th, expert 3 in none. */
static void take_with_gaps(mu_load_window *w, int64_t steps, int64_t until, int64_t gap) {
    for (int64_t i = 0; i < steps; i++) {
        int64_t step = w->steps + 1, counts[LAYERS * E] = { 100, step <= until, step % gap == 0, 0, 50, 5, 5, 5, 5, 5 };
        mu_load_window_add(w, counts);
    }
}

/* An expert is silent when its own past does not explain it: after 21 steps for a busy one, after nine mean gaps for a rare
 * one, whose domain may just be rare. */
static void silence_is_judged_by_the_past(void **state) {
    (void)state;
    mu_load_window w;
    mu_load_window_init(&w, LAYERS, E, MU_LOAD_WINDOW_MIN);
    take_with_gaps(&w, 1000, 1000 - MU_SILENT_STEPS, 50);
    assert_int_equal(w.last_step[1], 980);
    assert_int_equal(w.last_step[2], 1000);
    assert_true(w.mean_gap[0] == 1 && w.mean_gap[1] == 1 && w.mean_gap[2] == 50 && w.mean_gap[3] == 0);
    assert_int_equal(w.last_step[3], 0);
    assert_int_equal(state_of(&w, 0, 1), MU_EXPERT_STARVED);            /* 20 steps */
    assert_int_equal(state_of(&w, 0, 3), MU_EXPERT_DEAD);               /* never had a token */
    take_with_gaps(&w, 1, 0, 50);
    assert_int_equal(state_of(&w, 0, 1), MU_EXPERT_DEAD);               /* 21 */
    assert_float_equal(mu_load_window_silence(&w, 0, 1), 16 * log(1 + 21 / 16.0), 1e-12);
    assert_true(mu_load_window_silence(&w, 0, 3) == 0);
    char *text = mu_load_window_report(&w, (int[]){ 0, 1 });
    assert_string_equal(text, "layer 0: 2 of 5 experts dead (no tokens for 20 steps): 1, 3\n"
                              "layer 0: 1 of 5 experts below 10 % of the mean load over 20 steps: 2");
    free(text);
    take_with_gaps(&w, 438, 0, 1000000);
    assert_float_equal(mu_load_window_silence(&w, 0, 2), 16 * log(1 + 439 / 800.0), 1e-12);   /* 6.999 */
    assert_int_equal(w.total[2], 0);
    assert_int_equal(state_of(&w, 0, 2), MU_EXPERT_STARVED);            /* no token in the window: its past explains it */
    take_with_gaps(&w, 1, 0, 1000000);
    assert_int_equal(state_of(&w, 0, 2), MU_EXPERT_DEAD);
    take_with_gaps(&w, 1, 1441, 1441);                                  /* both are back */
    assert_int_equal(state_of(&w, 0, 1), MU_EXPERT_STARVED);
    assert_int_equal(state_of(&w, 0, 2), MU_EXPERT_STARVED);
    assert_true(w.mean_gap[1] == 1 + 460 / 16.0 && w.mean_gap[2] == 50 + 391 / 16.0);
    mu_load_window_free(&w);
}

/* Tokens in one of 53 steps, at random: however few gaps are known, a silence above 7 comes once in a thousand gaps. */
static void rare_tokens_seldom_look_like_death(void **state) {
    (void)state;
    int64_t gaps = 0, alarms = 0;
    uint64_t x = 88172645463325252u;
    for (int run = 0; run < 300; run++) {
        mu_load_window w;
        bool alarmed = false;
        mu_load_window_init(&w, 1, 2, MU_LOAD_WINDOW_MIN);
        for (int step = 0; step < 1500; step++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            bool hit = x % 53 == 0;
            mu_load_window_add(&w, (int64_t[]){ 100, hit });
            gaps += hit;
            if (hit) alarmed = false;
            else if (mu_load_window_silence(&w, 0, 1) > MU_SILENCE_MAX) alarms += !alarmed, alarmed = true;
        }
        mu_load_window_free(&w);
    }
    if (gaps < 8000 || alarms * 1000 > gaps) fail_msg("%lld alarms in %lld gaps", (long long)alarms, (long long)gaps);
}

/* The loads of step s: expert s % E of each layer takes 10. */
static void take_steps(mu_load_window *w, int64_t until) {
    while (w->steps < until) {
        int64_t counts[LAYERS * E] = { 0 };
        counts[w->steps % E] = counts[E + w->steps % E] = 10;
        mu_load_window_add(w, counts);
    }
}

static void assert_same_window(const mu_load_window *a, const mu_load_window *b) {
    assert_int_equal(a->steps, b->steps);
    assert_int_equal(a->held, b->held);
    assert_memory_equal(a->ring, b->ring, sizeof *a->ring * (size_t)(a->length * LAYERS * E));
    assert_memory_equal(a->total, b->total, sizeof *a->total * LAYERS * E);
    assert_memory_equal(a->previous, b->previous, sizeof *a->previous * LAYERS * E);
}

/* After a change of its length a window holds the newest steps that both had room for, and is soon the same as if it had always
 * been as long. */
static void the_length_changes(void **state) {
    (void)state;
    static const struct { int64_t from, to, steps, held; } cases[] = {
        { 20, 50, 7, 7 }, { 20, 50, 33, 20 }, { 20, 50, 400, 20 }, { 50, 20, 7, 7 }, { 50, 20, 33, 20 }, { 50, 21, 399, 21 }, { 30, 30, 77, 30 },
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        mu_load_window from, to, always;
        mu_error e;
        mu_load_window_init(&from, LAYERS, E, cases[c].from);
        mu_load_window_init(&to, LAYERS, E, cases[c].to);
        mu_load_window_init(&always, LAYERS, E, cases[c].to);
        take_steps(&to, 11);                    /* is overwritten */
        take_steps(&from, cases[c].steps);
        mu_load_window_copy(&to, &from);
        assert_int_equal(to.steps, cases[c].steps);
        assert_int_equal(to.held, cases[c].held);
        assert_int_equal(mu_load_window_check(&to, 10, &e), MU_STATUS_OK);
        int64_t sum = 0, held = to.held;
        for (int i = 0; i < E; i++) sum += to.total[i];
        assert_int_equal(sum, 10 * to.held);
        mu_load_window_derive(&to);             /* as after a checkpoint of it */
        assert_int_equal(to.held, held);
        take_steps(&to, cases[c].steps + cases[c].to - held), take_steps(&always, cases[c].steps + cases[c].to - held);
        assert_same_window(&to, &always);
        mu_load_window_free(&from), mu_load_window_free(&to), mu_load_window_free(&always);
    }
}

/* The report of a longer window states how many steps it covers: those that it holds. */
static void a_longer_window_says_what_it_holds(void **state) {
    (void)state;
    mu_load_window from, to;
    mu_load_window_init(&from, LAYERS, E, MU_LOAD_WINDOW_MIN);
    mu_load_window_init(&to, LAYERS, E, WINDOW);
    take(&from, 300, uneven);
    mu_load_window_copy(&to, &from);
    take(&to, 5, uneven);
    char *text = mu_load_window_report(&to, (int[]){ 0, 1 });
    assert_non_null(strstr(text, "layer 0: 1 of 5 experts dead (no tokens for 25 steps): 2\n"));
    free(text);
    mu_load_window_free(&from), mu_load_window_free(&to);
}

static void assert_refused(const mu_load_window *w, const char *why) {
    mu_error e = { 0 };
    if (mu_load_window_check(w, 10, &e) != MU_STATUS_DATA || !strstr(e.text, why)) fail_msg("no \"%s\": %s", why, e.text);
}

/* Ten assignments a layer in each step: what is read must be what mu_load_window_add makes of them. */
static void what_is_read_is_what_was_taken(void **state) {
    (void)state;
    mu_load_window w;
    mu_error e;
    mu_load_window_init(&w, LAYERS, E, WINDOW);
    assert_int_equal(mu_load_window_check(&w, 10, &e), MU_STATUS_OK);
    for (int64_t step = 0; step < 2 * WINDOW + 3; step++) {
        int64_t counts[LAYERS * E] = { 0 }, first = step % 7;
        counts[step % E] += first, counts[(step + 1) % E] += 10 - first;
        counts[E] = 3, counts[E + 1 + step % 3] = 7;
        mu_load_window_add(&w, counts);
        assert_int_equal(mu_load_window_check(&w, 10, &e), MU_STATUS_OK);
        if (step == 2 * MU_LOAD_WINDOW_MIN) {
            w.ring[WINDOW * LAYERS * E - 1] = 1, w.total[LAYERS * E - 1]++;     /* a slot of no step yet */
            assert_refused(&w, "MoE layer 1, slot 199: the counts of the experts do not add up to 0");
            w.ring[WINDOW * LAYERS * E - 1] = 0, w.total[LAYERS * E - 1]--;
        }
    }
    assert_int_equal(mu_load_window_active_steps(&w, 1, 0), WINDOW);
    assert_int_equal(mu_load_window_active_steps(&w, 1, 4), 0);
    int32_t *last = w.ring + (w.steps - 1) % WINDOW * LAYERS * E;
    last[0]++;
    assert_refused(&w, "MoE layer 0, slot 2: the counts of the experts do not add up to 10");
    last[0]--;
    int64_t total[LAYERS * E], previous[LAYERS * E];
    memcpy(total, w.total, sizeof total), memcpy(previous, w.previous, sizeof previous);
    memset(w.total, 7, sizeof total), memset(w.previous, 7, sizeof previous);
    mu_load_window_derive(&w);                         /* what is not read follows from the ring */
    assert_memory_equal(w.total, total, sizeof total);
    assert_memory_equal(w.previous, previous, sizeof previous);
    assert_int_equal(mu_load_window_check_silence(&w, &e), MU_STATUS_OK);
    w.last_step[E + 1]--;
    assert_int_equal(mu_load_window_check_silence(&w, &e), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "MoE layer 1, expert 1: last token in step"));
    w.last_step[E + 1]++, w.mean_gap[E] = 0.5;
    assert_int_equal(mu_load_window_check_silence(&w, &e), MU_STATUS_DATA);
    w.mean_gap[E] = 1, w.last_step[E + 4] = w.steps;        /* never had a token */
    assert_int_equal(mu_load_window_check_silence(&w, &e), MU_STATUS_DATA);
    w.last_step[E + 4] = 0;
    assert_int_equal(mu_load_window_check_silence(&w, &e), MU_STATUS_OK);
    last[5] = -last[5];
    assert_refused(&w, "MoE layer 1, slot 2: the counts of the experts do not add up to 10");
    last[5] = INT32_MAX;
    assert_refused(&w, "MoE layer 1, slot 2: the counts of the experts do not add up to 10");
    last[5] = 3;
    assert_int_equal(mu_load_window_check(&w, 10, &e), MU_STATUS_OK);
    mu_load_window_free(&w);
    mu_load_window_init(&w, 0, 0, WINDOW);                     /* a dense model */
    for (int i = 0; i < 3; i++) mu_load_window_add(&w, NULL);
    assert_int_equal(mu_load_window_check(&w, 10, &e), MU_STATUS_OK);
    mu_load_window_free(&w);
}

static bool near(double x, double y) { return fabs(x - y) < 1e-12; }

static void assert_load(const int64_t *counts, int n, mu_load wanted) {
    mu_load l = mu_load_of(counts, n);
    assert_true(near(l.max_vio, wanted.max_vio) && near(l.min_vio, wanted.min_vio) && near(l.load_imbalance, wanted.load_imbalance));
    assert_true(near(l.load_cv, wanted.load_cv) && near(l.gini, wanted.gini) && near(l.diversity, wanted.diversity));
}

static void loads(void **state) {
    (void)state;
    assert_load((int64_t[]){ 3, 3, 3, 3 }, 4, (mu_load){ .load_imbalance = 1, .diversity = 1 });
    assert_load((int64_t[]){ 0, 8, 0, 0 }, 4, (mu_load){ .max_vio = 3, .min_vio = 1, .load_imbalance = 4, .load_cv = sqrt(3), .gini = 0.75,
                                                         .diversity = 0.25 });
    assert_load((int64_t[]){ 1, 3 }, 2, (mu_load){ .max_vio = 0.5, .min_vio = 0.5, .load_imbalance = 1.5, .load_cv = 0.5, .gini = 0.25,
                                                   .diversity = exp(-0.25 * log(0.25) - 0.75 * log(0.75)) / 2 });
    /* (2i - n - 1) c_(i) = -2 * 1 + 0 * 2 + 2 * 6, of n sum c = 27 */
    assert_load((int64_t[]){ 6, 1, 2 }, 3, (mu_load){ .max_vio = 1, .min_vio = 2 / 3.0, .load_imbalance = 2, .load_cv = sqrt(14 / 27.0), .gini = 10 / 27.0,
                                                      .diversity = exp(log(9) - (6 * log(6) + 2 * log(2)) / 9) / 3 });
    assert_load((int64_t[]){ 5 }, 1, (mu_load){ .load_imbalance = 1, .diversity = 1 });
    assert_load((int64_t[]){ 0, 0, 0 }, 3, (mu_load){ 0 });
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_is_judged_before_twenty_steps), cmocka_unit_test(dead_starved_healthy),
        cmocka_unit_test(long_lists_are_short), cmocka_unit_test(the_window_slides), cmocka_unit_test(silence_is_judged_by_the_past), cmocka_unit_test(rare_tokens_seldom_look_like_death),
        cmocka_unit_test(the_length_changes), cmocka_unit_test(a_longer_window_says_what_it_holds), cmocka_unit_test(loads), cmocka_unit_test(what_is_read_is_what_was_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
