/* test_expert_states.c - every transition between states of experts, driven by made-up histories; thresholds and their
 * boundaries; hysteresis; the limit of carriers. */
#include "moe/moe.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { E = 8, D = 3, COMMON = 0, RARE = 1, DECOY = 2, INTERVAL = 100, ME = 3 };
static const double MEAN = 1000;

/* A layer of 8 experts on one common and two rare domains, of which the model knows RARE (2 of 5 nats learned) and learns nothing of
 * DECOY. Tests change what they are about and call `window`. */
static mu_expert_health h;
static mu_stats_config t;
static int64_t load[E], twin_of[E], reseeded[E], step;
static int32_t by_domain[E][D];
static double silence[E], share[D], present_share[D], ce[D], ce_best[D], ce_ref[D], twin[E];
static float K[E][D], peak[E][D];
static mu_expert_evidence v;
static mu_expert_change changes[E];
static int n_changes;

static int start(void **state) {
    (void)state;
    mu_expert_health_init(&h, 1, E);
    t = mu_stats_config_default();
    step = 0;
    for (int i = 0; i < E; i++) {
        load[i] = (int64_t)MEAN, silence[i] = 0, twin[i] = 0.1, twin_of[i] = (i + 1) % E, reseeded[i] = 0;
        for (int d = 0; d < D; d++) K[i][d] = peak[i][d] = 0, by_domain[i][d] = d == COMMON ? 980 : 10;
    }
    memcpy(share, (double[D]){ 0.98, 0.01, 0.01 }, sizeof share);
    memcpy(present_share, share, sizeof share);
    memcpy(ce, (double[D]){ 2, 3, 5 }, sizeof ce);
    memcpy(ce_best, ce, sizeof ce);
    memcpy(ce_ref, (double[D]){ 5, 5, 5 }, sizeof ce_ref);
    v = (mu_expert_evidence){ .domains = D, .interval = INTERVAL, .load = load, .silence = silence, .by_domain = &by_domain[0][0],
                              .share = share, .present_share = present_share, .K = &K[0][0], .peak = &peak[0][0], .ce = ce,
                              .ce_best = ce_best, .ce_ref = ce_ref, .twin = twin, .twin_of = twin_of, .reseeded = reseeded };
    return 0;
}

static int end(void **state) {
    (void)state;
    mu_expert_health_free(&h);
    return 0;
}

/* Evaluates n windows; peaks follow. */
static void window(int n) {
    for (; n > 0; n--) {
        v.step = step += INTERVAL;
        for (int i = 0; i < E; i++)
            for (int d = 0; d < D; d++) peak[i][d] = fmaxf(peak[i][d], K[i][d]);
        n_changes = mu_expert_health_update(&h, &v, &t, changes);
    }
}

static mu_expert_state state_of(int expert) { return (mu_expert_state)h.state[expert]; }

static void assert_state(mu_expert_state wanted) {
    if (state_of(ME) != wanted) fail_msg("step %lld: %s, not %s", (long long)step, mu_expert_state_name(state_of(ME)), mu_expert_state_name(wanted));
}

/* So many windows leave the state as it is, the next one changes it. */
static void changes_after(int windows, mu_expert_state wanted) {
    mu_expert_state was = state_of(ME);
    window(windows);
    assert_state(was);
    window(1);
    assert_state(wanted);
    assert_int_equal(h.since[ME], step);
    assert_int_equal(n_changes, 1);
    assert_true(changes[0].expert == ME && changes[0].from == was && changes[0].to == wanted);
}

static void silent(double z) { load[ME] = 0, silence[ME] = z; }
static void well(void) { load[ME] = (int64_t)MEAN, silence[ME] = 0; }
static void carries_rare(double criticality) { K[ME][RARE] = criticality; }
static void serves(int domain) { memset(by_domain[ME], 0, sizeof by_domain[ME]), by_domain[ME][domain] = 1000; }

/* ------------------------------------------------------------------ load and silence */

static void load_alone_starves_and_kills(void **state) {
    (void)state;
    window(3);
    assert_state(MU_EXPERT_HEALTHY);
    silent(2);
    changes_after(1, MU_EXPERT_STARVED);        /* little load in two windows */
    silent(8);
    changes_after(3, MU_EXPERT_DEAD);           /* none in five: the rule of `starved` has failed once, then twice */
    assert_true(changes[0].load == 0 && changes[0].silence == 8 && changes[0].since == step - 400 && changes[0].domain == -1);
    well();
    changes_after(1, MU_EXPERT_HEALTHY);        /* two windows well */
    silent(8);
    changes_after(0, MU_EXPERT_STARVED);        /* silence needs no second window */
    well();
    changes_after(1, MU_EXPERT_HEALTHY);
}

static void dead_needs_all_three(void **state) {
    (void)state;
    silent(7);                                  /* not more than 7: an expert that rests as its past explains */
    window(20);
    assert_state(MU_EXPERT_STARVED);
    silence[ME] = 7.01;
    changes_after(1, MU_EXPERT_DEAD);
    K[ME][COMMON] = 0.0101f;                     /* a domain would lose something */
    changes_after(1, MU_EXPERT_STARVED);
    K[ME][COMMON] = 0.0099;
    changes_after(1, MU_EXPERT_DEAD);
    load[ME] = 10, load[0] = 1990;              /* 1 % of the mean is not below 1 % */
    changes_after(1, MU_EXPERT_STARVED);
}

/* The thresholds themselves are not below, and not above. */
static void boundaries(void **state) {
    (void)state;
    for (int i = 0; i < E; i++) load[i] = i == ME ? 250 : 1000 + (i < 6) * 125 + (i == 6) * 125;      /* sums to 8000 */
    load[7] = 8000 - 250 - 6 * 1125;
    window(5);
    assert_state(MU_EXPERT_HEALTHY);
    load[ME]--, load[7]++;
    changes_after(1, MU_EXPERT_STARVED);
    load[ME]++, load[7]--;
    silence[ME] = 3;
    changes_after(1, MU_EXPERT_HEALTHY);
    silence[ME] = 3.01;
    changes_after(0, MU_EXPERT_STARVED);
}

static void one_good_window_is_not_enough(void **state) {
    (void)state;
    silent(2);
    window(2);
    for (int i = 0; i < 6; i++) {
        well(), window(1);
        silent(2), window(2);
        assert_state(MU_EXPERT_STARVED);
    }
    well(), window(1), silent(2), window(1);    /* two windows in which the rule fails: little load in one only */
    assert_state(MU_EXPERT_HEALTHY);
}

/* A run with one domain and without a probe. */
static void without_domains_and_probe(void **state) {
    (void)state;
    v = (mu_expert_evidence){ .domains = 1, .interval = INTERVAL, .load = load, .silence = silence };
    silent(8);
    changes_after(0, MU_EXPERT_STARVED);
    changes_after(4, MU_EXPERT_DEAD);
    well();
    changes_after(1, MU_EXPERT_HEALTHY);
}

/* ------------------------------------------------------------------ carriers */

static void carrier_whatever_its_load(void **state) {
    (void)state;
    carries_rare(0.199);                        /* a tenth of the 2 nats that are learned is more than 0.05 */
    window(3);
    assert_state(MU_EXPERT_HEALTHY);
    carries_rare(0.2);
    changes_after(0, MU_EXPERT_CARRIER);
    assert_true(changes[0].domain == RARE && changes[0].criticality == (double)0.2f && changes[0].peak == (double)0.2f && changes[0].retention == 1);
    load[ME] = 5, silence[ME] = 7;
    window(10);
    assert_state(MU_EXPERT_CARRIER);
    for (int i = 0; i < 4; i++) {               /* its rule fails every other time */
        carries_rare(0.15), window(1);
        carries_rare(0.2), window(1);
        assert_state(MU_EXPERT_CARRIER);
    }
    silent(8);
    changes_after(1, MU_EXPERT_DORMANT);
    window(100);                                /* however long the domain is absent */
    assert_state(MU_EXPERT_DORMANT);
    well();
    changes_after(1, MU_EXPERT_CARRIER);
    carries_rare(0.15);                         /* less, but more than half of the peak: not overwritten */
    changes_after(1, MU_EXPERT_HEALTHY);
}

static void a_starved_or_dead_expert_may_become_a_carrier(void **state) {
    (void)state;
    silent(8);
    window(1);
    assert_state(MU_EXPERT_STARVED);
    carries_rare(0.3);
    changes_after(1, MU_EXPERT_DORMANT);
    carries_rare(0);
    peak[ME][RARE] = 0;
    changes_after(1, MU_EXPERT_DEAD);           /* the fifth window without load */
    load[ME] = 20, silence[ME] = 0;
    carries_rare(0.3);
    changes_after(1, MU_EXPERT_CARRIER);
    carries_rare(0.16);
    load[ME] = 20;
    changes_after(1, MU_EXPERT_STARVED);
}

/* A change to starved names the domain that loses most, however common. */
static void a_starved_expert_on_which_a_domain_depends(void **state) {
    (void)state;
    K[ME][COMMON] = 0.0499f;
    silent(4);
    changes_after(0, MU_EXPERT_STARVED);
    assert_int_equal(changes[0].domain, -1);
    well();
    changes_after(1, MU_EXPERT_HEALTHY);
    K[ME][COMMON] = 0.0501f, K[ME][DECOY] = 0.6f;
    silent(4);
    changes_after(0, MU_EXPERT_STARVED);
    assert_true(changes[0].domain == DECOY && changes[0].criticality == (double)0.6f && changes[0].share == share[DECOY]);
    well();
    changes_after(1, MU_EXPERT_HEALTHY);
    assert_int_equal(changes[0].domain, -1);
}

/* Rarity is no merit: without gain and criticality no carrier. Nor is criticality for a common domain. */
static void only_rare_domains_have_carriers(void **state) {
    (void)state;
    K[ME][COMMON] = 3;
    window(5);
    assert_state(MU_EXPERT_HEALTHY);
    K[ME][COMMON] = 0;
    K[ME][DECOY] = 1;                           /* nothing is learned of the decoy: no gain */
    window(5);
    assert_state(MU_EXPERT_HEALTHY);
    share[DECOY] = present_share[DECOY] = 0.0201, K[ME][DECOY] = 1;
    window(5);
    assert_state(MU_EXPERT_HEALTHY);
    ce[DECOY] = ce_best[DECOY] = 4, present_share[DECOY] = 0;    /* absent now: as rare as can be */
    changes_after(0, MU_EXPERT_CARRIER);
    assert_int_equal(changes[0].domain, DECOY);
}

/* A domain that resembles a common one uses its experts: they are no carriers. */
static void experts_of_common_domains_are_no_carriers(void **state) {
    (void)state;
    for (int i = 0; i < E; i++) K[i][COMMON] = 1, K[i][RARE] = 1.25f;
    window(5);
    for (int i = 0; i < E; i++) assert_int_equal(state_of(i), MU_EXPERT_HEALTHY);
    carries_rare(1.99);
    window(3);
    assert_state(MU_EXPERT_HEALTHY);
    carries_rare(2);                            /* twice as critical as for any common domain */
    changes_after(0, MU_EXPERT_CARRIER);
    K[ME][COMMON] = 2;                          /* others begin to use it, and the domain still needs it as much */
    window(5);
    assert_state(MU_EXPERT_CARRIER);
    K[ME][COMMON] = 2.01f;
    changes_after(1, MU_EXPERT_HEALTHY);
    K[ME][COMMON] = 2;                          /* no longer one: the first threshold holds again */
    window(3);
    assert_state(MU_EXPERT_HEALTHY);
    K[ME][COMMON] = -0.5f, K[ME][DECOY] = 3;    /* only common domains count */
    changes_after(0, MU_EXPERT_CARRIER);
    assert_int_equal(changes[0].domain, RARE);
}

/* While it is not known whether a common domain depends on an expert it does not become a carrier; nor does it cease to be one. */
static void unmeasured_common_domains(void **state) {
    (void)state;
    int32_t measured[E][D] = { 0 };
    v.at = &measured[0][0];
    carries_rare(1);
    window(3);
    assert_state(MU_EXPERT_HEALTHY);
    measured[ME][COMMON] = (int32_t)step;
    changes_after(0, MU_EXPERT_CARRIER);
    measured[ME][COMMON] = 0;
    window(3);
    assert_state(MU_EXPERT_CARRIER);
    end(NULL), start(NULL);
    v.at = &measured[0][0], ce[COMMON] = 0;     /* there is no probe of it */
    carries_rare(1);
    changes_after(0, MU_EXPERT_CARRIER);
}

/* Filled with other tokens it is first no carrier, then overwritten. */
static void a_carrier_taken_by_a_common_domain(void **state) {
    (void)state;
    serves(RARE);
    carries_rare(1);
    window(1);
    serves(COMMON);
    carries_rare(0.6), K[ME][COMMON] = 0.7f;
    changes_after(1, MU_EXPERT_HEALTHY);
    carries_rare(0.4);
    changes_after(0, MU_EXPERT_OVERWRITTEN);
    assert_int_equal(changes[0].domain, RARE);
}

/* ceil(8 / 4) = 2, by K ln(1 / share). */
static void carriers_are_limited(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) K[i][RARE] = 0.3 + 0.1 * i;
    ce[DECOY] = ce_best[DECOY] = 4;
    K[4][DECOY] = 0.45, share[DECOY] = 1e-4;    /* 0.45 ln 10000 = 4.1 is more than 0.6 ln 100 = 2.8 */
    window(1);
    assert_int_equal(n_changes, 2);
    assert_true(state_of(3) == MU_EXPERT_CARRIER && state_of(4) == MU_EXPERT_CARRIER);
    K[0][RARE] = 2;                             /* pushes out 3, which has to leave first */
    window(1);
    assert_int_equal(n_changes, 0);
    window(1);
    assert_int_equal(n_changes, 2);
    assert_true(state_of(3) == MU_EXPERT_HEALTHY && state_of(0) == MU_EXPERT_CARRIER && state_of(4) == MU_EXPERT_CARRIER);
    t.carrier_share = 0.26;                     /* ceil(2.08) = 3 */
    window(1);
    assert_true(state_of(3) == MU_EXPERT_CARRIER && state_of(2) == MU_EXPERT_HEALTHY);
    t.carrier_share = 0.5;
    window(1);
    assert_true(state_of(2) == MU_EXPERT_CARRIER && state_of(3) == MU_EXPERT_CARRIER && state_of(1) == MU_EXPERT_HEALTHY);
}

/* 0.9 ln 100 = 4.1 and 0.8 ln 100 = 3.7 are more than 0.35 ln 10000 = 3.2. */
static void rarity_counts_by_its_logarithm(void **state) {
    (void)state;
    ce[DECOY] = ce_best[DECOY] = 4, share[DECOY] = 1e-4;
    K[0][RARE] = 0.9, K[1][DECOY] = 0.35, K[2][RARE] = 0.8;
    window(1);
    assert_true(state_of(0) == MU_EXPERT_CARRIER && state_of(1) == MU_EXPERT_HEALTHY && state_of(2) == MU_EXPERT_CARRIER);
}

/* It stays the carrier of its domain, whatever another one gains from it. */
static void the_first_domain_stays(void **state) {
    (void)state;
    carries_rare(0.3);
    window(1);
    ce[DECOY] = ce_best[DECOY] = 4, K[ME][DECOY] = 3;
    window(3);
    assert_int_equal(h.carried[ME], 1 + RARE);
    carries_rare(0.16);                         /* no longer enough, and not overwritten */
    window(1);
    assert_int_equal(h.carried[ME], 1 + DECOY);
    assert_state(MU_EXPERT_CARRIER);
}

/* ------------------------------------------------------------------ overwritten */

static void a_carrier_of(mu_expert_state now) {
    serves(RARE);
    carries_rare(0.4);
    window(1);
    assert_state(MU_EXPERT_CARRIER);
    if (now == MU_EXPERT_CARRIER) return;
    silent(8);
    window(2);
    assert_state(MU_EXPERT_DORMANT);
}

/* The story of expert 4096: its domain goes, a load balancer fills it with other tokens, and then it knows nothing of it. */
static void overwritten_by_common_tokens(void **state) {
    (void)state;
    a_carrier_of(MU_EXPERT_DORMANT);
    well();
    serves(COMMON);
    present_share[RARE] = 0;
    changes_after(1, MU_EXPERT_CARRIER);
    carries_rare(0.2);                          /* half: still a carrier, the gain is 2 nats */
    window(4);
    assert_state(MU_EXPERT_CARRIER);
    carries_rare(0.199);
    changes_after(1, MU_EXPERT_OVERWRITTEN);
    assert_true(changes[0].domain == RARE && changes[0].criticality == (double)0.199f && changes[0].peak == (double)0.4f);
    carries_rare(0.3);                          /* restored */
    changes_after(1, MU_EXPERT_CARRIER);
}

static void overwritten_when_the_domain_is_forgotten(void **state) {
    (void)state;
    a_carrier_of(MU_EXPERT_CARRIER);
    serves(COMMON);
    ce[RARE] = 3.6;                             /* (5 - 3.6) / (5 - 3) = 0.7 */
    window(3);
    assert_state(MU_EXPERT_CARRIER);
    ce[RARE] = 3.61;
    changes_after(1, MU_EXPERT_OVERWRITTEN);
    window(5);                                  /* whatever its load */
    silent(9);
    window(9);
    assert_state(MU_EXPERT_OVERWRITTEN);
    serves(RARE);                               /* its own domain again */
    ce[RARE] = 3.1;
    well();
    changes_after(1, MU_EXPERT_CARRIER);
}

/* Without other tokens it is forgetting, not overwriting, unless it copies a busy expert. */
static void overwritten_as_a_copy(void **state) {
    (void)state;
    a_carrier_of(MU_EXPERT_CARRIER);
    carries_rare(0.1);
    changes_after(1, MU_EXPERT_HEALTHY);
    twin[ME] = 0.9, load[twin_of[ME]] = 900;    /* the other is not busy */
    window(3);
    assert_state(MU_EXPERT_HEALTHY);
    load[twin_of[ME]] = 2000, load[ME] = 1000;
    changes_after(0, MU_EXPERT_OVERWRITTEN);
    assert_true(changes[0].twin == twin_of[ME] && changes[0].cosine == 0.9);
    twin[ME] = 0.899;
    changes_after(1, MU_EXPERT_HEALTHY);
}

/* ------------------------------------------------------------------ duplicates */

static void one_that_was_reseeded_has_time(void **state) {
    (void)state;
    silent(8);
    window(8);
    assert_state(MU_EXPERT_DEAD);
    h.state[ME] = MU_EXPERT_HEALTHY, h.below_dead[ME] = 0, reseeded[ME] = step;
    window(9);                                  /* duplicate_windows: 10 */
    assert_state(MU_EXPERT_STARVED);
    window(2);
    assert_state(MU_EXPERT_DEAD);
}

static void a_copy_after_reseeding_is_a_duplicate(void **state) {
    (void)state;
    twin[ME] = 0.95;
    window(12);
    assert_state(MU_EXPERT_HEALTHY);            /* it was never re-seeded */
    reseeded[ME] = step;
    changes_after(9, MU_EXPERT_DUPLICATE);
    assert_true(changes[0].twin == twin_of[ME] && changes[0].cosine == 0.95 && changes[0].domain == -1);
    silent(8);
    window(9);                                  /* first match: before dead and starved */
    assert_state(MU_EXPERT_DUPLICATE);
    twin[ME] = 0.89;
    changes_after(1, MU_EXPERT_DEAD);
    twin[ME] = 0.95;
    changes_after(1, MU_EXPERT_DUPLICATE);
    carries_rare(1);
    changes_after(1, MU_EXPERT_DORMANT);
    carries_rare(0.6), well();
    changes_after(1, MU_EXPERT_CARRIER);
    carries_rare(0), reseeded[ME] = 0, twin[ME] = 0;
    changes_after(1, MU_EXPERT_HEALTHY);
}

/* ------------------------------------------------------------------ layers, counts, checkpoints, options */

static void layers_are_apart(void **state) {
    (void)state;
    mu_expert_health two;
    int64_t loads[2 * E], counts[MU_EXPERT_STATES];
    double z[2 * E] = { 0 };
    mu_expert_change found[2 * E];
    mu_expert_health_init(&two, 2, E);
    for (int i = 0; i < 2 * E; i++) loads[i] = i < E ? 5 : 5000000;
    loads[E + 6] = 0;
    for (int i = 0; i < 2; i++) {
        int n = mu_expert_health_update(&two, &(mu_expert_evidence){ .step = i + 1, .interval = 1, .load = loads, .silence = z }, &t, found);
        assert_int_equal(n, i);
    }
    assert_true(found[0].layer == 1 && found[0].expert == 6 && found[0].to == MU_EXPERT_STARVED);
    mu_expert_health_count(&two, 0, counts);
    assert_int_equal(counts[MU_EXPERT_HEALTHY], E);
    mu_expert_health_count(&two, -1, counts);
    assert_true(counts[MU_EXPERT_HEALTHY] == 2 * E - 1 && counts[MU_EXPERT_STARVED] == 1 && counts[MU_EXPERT_DEAD] == 0);
    mu_expert_health_free(&two);
}

typedef struct { mu_state_visitor v; mu_expert_health *to; int n; } copier;

static void copy(mu_state_visitor *visitor, const mu_state *s) {
    copier *c = (copier *)visitor;
    void *to[] = { c->to->state, c->to->since, c->to->below_dead, c->to->below_starved, c->to->leaving, c->to->carried, c->to->top,
                      c->to->frozen, c->to->reseeded, c->to->top_criticality };
    mu_error e;
    assert_int_equal(mu_state_check(s, s->data, "memory", &e), MU_STATUS_OK);
    memcpy(to[c->n], s->data, E * sizeof(int64_t));
    mu_state loaded = *s;
    loaded.data = to[c->n++];
    if (s->set) assert_int_equal(s->set(&loaded, loaded.data, &e), MU_STATUS_OK);
}

static mu_option_domain list[D] = { { .domain = "common" }, { .domain = "rare" }, { .domain = "decoy" } };
static const mu_option_domains domains = { D, list };
static char names[D][64] = { "common", "rare", "decoy" };

/* From any step on, a copy of the state behaves as the original. */
static void the_state_is_all_there_is(void **state) {
    (void)state;
    mu_expert_health other;
    mu_expert_change found[E];
    uint64_t x = 88172645463325252u;
    mu_expert_health_init(&other, 1, E);
    for (int i = 0; i < 400; i++) {
        copier c = { { copy }, &other, 0 };
        if (i % 7 == 0) mu_expert_health_state(&h, &domains, D, names, step, &c.v);
        for (int j = 0; j < E; j++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            load[j] = x % 3 ? 1000 : 0, silence[j] = (double)(x >> 8 & 15), K[j][RARE] = (double)(x >> 16 & 7) / 10, K[j][COMMON] = (double)(x >> 40 & 3) / 5;
            if (i % 50 == 0) serves(x >> 24 & 1 ? RARE : COMMON);
            ce[RARE] = 3 + (double)(x >> 32 & 1);
        }
        window(1);
        if (i < 7) continue;
        assert_int_equal(mu_expert_health_update(&other, &v, &t, found), n_changes);
        for (int j = 0; j < n_changes; j++) assert_true(found[j].expert == changes[j].expert && found[j].to == changes[j].to);
        assert_memory_equal(other.state, h.state, sizeof *h.state * E);
        int carriers = 0;
        for (int j = 0; j < E; j++) carriers += state_of(j) == MU_EXPERT_CARRIER || state_of(j) == MU_EXPERT_DORMANT;
        assert_true(carriers <= 2);
    }
    mu_expert_health_free(&other);
}

/* A fork may have other domains: those with the same names are found, others are forgotten. */
static void domains_are_matched_by_name(void **state) {
    (void)state;
    mu_expert_health other;
    char now[2][64] = { "new", "rare" };
    mu_expert_health_init(&other, 1, E);
    copier c = { { copy }, &other, 0 };
    h.carried[0] = 1 + RARE, h.carried[1] = 1 + DECOY, h.top[1] = 1 + RARE, h.top[2] = 1 + COMMON;
    mu_expert_health_state(&h, &domains, 2, now, step, &c.v);
    assert_true(other.carried[0] == 2 && other.carried[1] == 0 && other.carried[2] == 0 && other.top[1] == 2 && other.top[2] == 0);
    assert_int_equal(h.carried[1], 1 + DECOY);
    mu_expert_health_free(&other);
}

static void thresholds_fit_together(void **state) {
    (void)state;
    mu_error e = { 0 };
    mu_complaints c = { .e = &e };
    mu_stats_config_check(&t, &c);
    assert_int_equal(c.status, MU_STATUS_OK);
    t.dead_load = 0.5, t.starved_silence = 8;
    mu_stats_config_check(&t, &c);
    assert_int_equal(c.status, MU_STATUS_CONFIG);
    assert_non_null(strstr(e.text, "stats.dead_load: 0.5 is more than starved_load 0.25"));
    assert_non_null(strstr(e.text, "stats.dead_silence: 7 is less than starved_silence 8"));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, end)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(load_alone_starves_and_kills), TEST(dead_needs_all_three), TEST(boundaries), TEST(one_good_window_is_not_enough),
        TEST(without_domains_and_probe), TEST(carrier_whatever_its_load), TEST(a_starved_or_dead_expert_may_become_a_carrier),
        TEST(a_starved_expert_on_which_a_domain_depends),
        TEST(only_rare_domains_have_carriers), TEST(experts_of_common_domains_are_no_carriers), TEST(unmeasured_common_domains), TEST(a_carrier_taken_by_a_common_domain), TEST(carriers_are_limited), TEST(rarity_counts_by_its_logarithm), TEST(the_first_domain_stays), TEST(overwritten_by_common_tokens),
        TEST(overwritten_when_the_domain_is_forgotten), TEST(overwritten_as_a_copy), TEST(one_that_was_reseeded_has_time), TEST(a_copy_after_reseeding_is_a_duplicate),
        TEST(layers_are_apart), TEST(the_state_is_all_there_is), TEST(domains_are_matched_by_name), TEST(thresholds_fit_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
