/* test_roll.c - the window of loads, the judgement over it, and its report. */
#include "moe/moe.h"

#include <math.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, E = 5 };

static void take(mu_roll *r, int64_t times, const int64_t counts[LAYERS * E]) {
    for (int64_t i = 0; i < times; i++) mu_roll_take(r, counts);
}

static const int64_t even[LAYERS * E] = { 10, 10, 10, 10, 10, 10, 10, 10, 10, 10 };
/* layer 0: expert 2 dead; layer 1: 0 and 3 dead, 4 starved (8 < 10 % of 100), 1 just not (10 = 10 %) */
static const int64_t uneven[LAYERS * E] = { 25, 25, 0, 25, 25, 0, 10, 482, 0, 8 };

static void nobody_is_judged_before_twenty_steps(void **state) {
    (void)state;
    mu_roll r;
    mu_roll_init(&r, LAYERS, E);
    take(&r, MU_ROLL_LEAST - 1, uneven);
    for (int i = 0; i < LAYERS * E; i++) assert_int_equal(mu_roll_state(&r, i / E, i % E), MU_EXPERT_ALIVE);
    char *text = mu_roll_report(&r, (int[]){ 0, 1 });
    assert_string_equal(text, "");
    free(text);
    take(&r, 1, uneven);
    assert_int_equal(mu_roll_window(&r), 20);
    assert_int_equal(mu_roll_state(&r, 0, 2), MU_EXPERT_DEAD);
    mu_roll_free(&r);
}

static void dead_starved_alive(void **state) {
    (void)state;
    static const mu_expert_state wanted[LAYERS * E] = {
        MU_EXPERT_ALIVE, MU_EXPERT_ALIVE, MU_EXPERT_DEAD, MU_EXPERT_ALIVE, MU_EXPERT_ALIVE,
        MU_EXPERT_DEAD, MU_EXPERT_ALIVE, MU_EXPERT_ALIVE, MU_EXPERT_DEAD, MU_EXPERT_STARVED,
    };
    mu_roll r;
    mu_roll_init(&r, LAYERS, E);
    take(&r, 30, uneven);
    for (int i = 0; i < LAYERS * E; i++) assert_int_equal(mu_roll_state(&r, i / E, i % E), wanted[i]);
    char *text = mu_roll_report(&r, (int[]){ 1, 3 });
    assert_string_equal(text, "layer 1: expert 2 took no token for 30 steps\n"
                              "layer 3: experts 0, 3 took no token for 30 steps\n"
                              "layer 3: expert 4 took under 10 % of a fair share for 30 steps");
    free(text);
    mu_roll_free(&r);
}

/* A step leaves the window when 200 newer ones are in it: not one earlier, not one later. */
static void the_window_slides(void **state) {
    (void)state;
    mu_roll r;
    mu_roll_init(&r, LAYERS, E);
    take(&r, 7, even);
    take(&r, MU_ROLL_WINDOW - 1, uneven);
    assert_int_equal(mu_roll_window(&r), MU_ROLL_WINDOW);
    assert_int_equal(r.total[2], 10);               /* one even step is left */
    assert_int_equal(mu_roll_state(&r, 0, 2), MU_EXPERT_STARVED);
    take(&r, 1, uneven);
    assert_int_equal(r.total[2], 0);
    assert_int_equal(mu_roll_state(&r, 0, 2), MU_EXPERT_DEAD);
    for (int i = 0; i < LAYERS * E; i++) assert_int_equal(r.total[i], MU_ROLL_WINDOW * uneven[i]);
    take(&r, 1, even);                              /* one token wakes the dead */
    assert_int_equal(mu_roll_state(&r, 0, 2), MU_EXPERT_STARVED);
    for (int i = 0; i < LAYERS * E; i++) assert_int_equal(r.previous[i], even[i]);
    take(&r, 3 * MU_ROLL_WINDOW, even);
    char *text = mu_roll_report(&r, (int[]){ 0, 1 });
    assert_string_equal(text, "");
    free(text);
    mu_roll_free(&r);
}

static void assert_refused(const mu_roll *r, const char *why) {
    mu_error e = { 0 };
    if (mu_roll_check(r, 10, &e) != MU_STATUS_DATA || !strstr(e.text, why)) fail_msg("no \"%s\": %s", why, e.text);
}

/* Ten assignments a layer in each step: what is read must be what mu_roll_take makes of them. */
static void what_is_read_is_what_was_taken(void **state) {
    (void)state;
    mu_roll r;
    mu_error e;
    mu_roll_init(&r, LAYERS, E);
    assert_int_equal(mu_roll_check(&r, 10, &e), MU_STATUS_OK);
    for (int64_t step = 0; step < 2 * MU_ROLL_WINDOW + 3; step++) {
        int64_t counts[LAYERS * E] = { 0 }, first = step % 7;
        counts[step % E] += first, counts[(step + 1) % E] += 10 - first;
        counts[E] = 3, counts[E + 1 + step % 3] = 7;
        mu_roll_take(&r, counts);
        assert_int_equal(mu_roll_check(&r, 10, &e), MU_STATUS_OK);
        if (step == 2 * MU_ROLL_LEAST) {
            r.ring[MU_ROLL_WINDOW * LAYERS * E - 1] = 1, r.total[LAYERS * E - 1]++;     /* a slot of no step yet */
            assert_refused(&r, "MoE layer 1: the experts of slot 199 do not add up to 0");
            r.ring[MU_ROLL_WINDOW * LAYERS * E - 1] = 0, r.total[LAYERS * E - 1]--;
        }
    }
    assert_int_equal(mu_roll_active(&r, 1, 0), MU_ROLL_WINDOW);
    assert_int_equal(mu_roll_active(&r, 1, 4), 0);
    int64_t *last = r.ring + (r.steps - 1) % MU_ROLL_WINDOW * LAYERS * E;
    last[0]++;
    assert_refused(&r, "MoE layer 0: the experts of slot 2 do not add up to 10");
    last[0]--;
    int64_t total[LAYERS * E], previous[LAYERS * E];
    memcpy(total, r.total, sizeof total), memcpy(previous, r.previous, sizeof previous);
    memset(r.total, 7, sizeof total), memset(r.previous, 7, sizeof previous);
    mu_roll_derive(&r);                         /* what is not read follows from the ring */
    assert_memory_equal(r.total, total, sizeof total);
    assert_memory_equal(r.previous, previous, sizeof previous);
    last[5] = -last[5];
    assert_refused(&r, "MoE layer 1: the experts of slot 2 do not add up to 10");
    last[5] = INT64_MAX;
    assert_refused(&r, "MoE layer 1: the experts of slot 2 do not add up to 10");
    last[5] = 3;
    assert_int_equal(mu_roll_check(&r, 10, &e), MU_STATUS_OK);
    r.steps = -1;
    assert_refused(&r, "over -1 steps");
    mu_roll_free(&r);
    mu_roll_init(&r, 0, 0);                     /* a dense model */
    for (int i = 0; i < 3; i++) mu_roll_take(&r, NULL);
    assert_int_equal(mu_roll_check(&r, 10, &e), MU_STATUS_OK);
    mu_roll_free(&r);
}

static bool near(double x, double y) { return fabs(x - y) < 1e-12; }

static void loads(void **state) {
    (void)state;
    mu_load l = mu_load_of((int64_t[]){ 3, 3, 3, 3 }, 4);
    assert_true(near(l.max_vio, 0) && near(l.load_imbalance, 1) && near(l.load_cv, 0) &&
                near(l.diversity, 1));
    l = mu_load_of((int64_t[]){ 0, 8, 0, 0 }, 4);
    assert_true(near(l.max_vio, 3) && near(l.load_imbalance, 4) && near(l.load_cv, sqrt(3)) &&
                near(l.diversity, 0.25));
    l = mu_load_of((int64_t[]){ 1, 3 }, 2);
    assert_true(near(l.max_vio, 0.5) && near(l.load_cv, 0.5) &&
                near(l.diversity, exp(-0.25 * log(0.25) - 0.75 * log(0.75)) / 2));
    l = mu_load_of((int64_t[]){ 0, 0, 0 }, 3);
    assert_true(l.max_vio == 0 && l.load_imbalance == 0 && l.load_cv == 0 && l.diversity == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_is_judged_before_twenty_steps), cmocka_unit_test(dead_starved_alive),
        cmocka_unit_test(the_window_slides), cmocka_unit_test(loads), cmocka_unit_test(what_is_read_is_what_was_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
