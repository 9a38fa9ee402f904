/* test_intervene.c - which expert may be replaced, which may be split, and whose bias may be raised: never one that carries a domain, whatever else is
 * wrong with it. */
#include "moe/moe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

enum { LAYERS = 2, E = 5, N = LAYERS * E };
static mu_expert_health h;
static mu_protection p;
static int64_t loads[N];

static int start(void **state) {
    (void)state;
    mu_expert_health_init(&h, LAYERS, E);
    mu_protection_init(&p, LAYERS, E);
    for (int i = 0; i < N; i++) loads[i] = 10 * i;
    return 0;
}

static int end(void **state) {
    (void)state;
    mu_expert_health_free(&h);
    mu_protection_free(&p);
    return 0;
}

static void only_dead_experts_are_replaced(void **state) {
    (void)state;
    for (int s = 0; s < MU_EXPERT_STATES; s++) {
        h.state[E + 2] = s;
        assert_int_equal(mu_reseed_find(&h, &p, 1), s == MU_EXPERT_DEAD ? 2 : -1);
        assert_int_equal(mu_reseed_find(&h, &p, 0), -1);
    }
    h.state[E + 2] = MU_EXPERT_DEAD;
    p.domain_of[E + 2] = 0;                 /* protect.carriers */
    assert_int_equal(mu_reseed_find(&h, &p, 1), -1);
    p.domain_of[E + 2] = -1, h.frozen[E + 2] = MU_FROZEN_NOW;
    assert_int_equal(mu_reseed_find(&h, &p, 1), -1);
    h.frozen[E + 2] = MU_FROZEN_PAST;
    assert_int_equal(mu_reseed_find(&h, &p, 1), 2);
}

static void the_one_that_is_dead_longest_comes_first(void **state) {
    (void)state;
    const int64_t since[E] = { 30, 20, 40, 20, 10 };
    for (int i = 0; i < E; i++) h.since[i] = since[i], h.state[i] = i < 4 ? MU_EXPERT_DEAD : MU_EXPERT_STARVED;
    assert_int_equal(mu_reseed_find(&h, &p, 0), 1);
}

static void carriers_are_never_split(void **state) {
    (void)state;
    assert_int_equal(mu_reseed_donor(&h, &p, loads, 1, -1), 4);
    assert_int_equal(mu_reseed_donor(&h, &p, loads, 1, 4), 3);
    static const mu_expert_state kept[] = { MU_EXPERT_CARRIER, MU_EXPERT_DORMANT, MU_EXPERT_OVERWRITTEN };
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        h.state[E + 4] = kept[i];
        assert_int_equal(mu_reseed_donor(&h, &p, loads, 1, 0), 3);
    }
    p.domain_of[E + 3] = 1, h.frozen[E + 2] = MU_FROZEN_NOW;
    assert_int_equal(mu_reseed_donor(&h, &p, loads, 1, 0), 1);
    assert_int_equal(mu_reseed_donor(&h, &p, loads, 1, 1), 0);
    h.state[E] = MU_EXPERT_CARRIER;
    assert_int_equal(mu_reseed_donor(&h, &p, loads, 1, 1), -1);
}

/* For less than three intervals of 100 steps, while its rule holds. */
static void only_starved_experts_are_boosted(void **state) {
    (void)state;
    enum { ME = E + 2 };
    for (int s = 0; s < MU_EXPERT_STATES; s++) {
        h.state[ME] = s, h.since[ME] = 300;
        for (int64_t step = 300; step <= 700; step += 100)
            assert_int_equal(mu_boost_find(&h, &p, loads, 1, step, 100), s == MU_EXPERT_STARVED && step < 600 ? 2 : -1);
        assert_int_equal(mu_boost_find(&h, &p, loads, 0, 300, 100), -1);
    }
    h.state[ME] = MU_EXPERT_STARVED, h.leaving[ME] = 1;
    assert_int_equal(mu_boost_find(&h, &p, loads, 1, 400, 100), -1);
    h.leaving[ME] = 0, p.domain_of[ME] = 1;
    assert_int_equal(mu_boost_find(&h, &p, loads, 1, 400, 100), -1);
    p.domain_of[ME] = -1, h.frozen[ME] = MU_FROZEN_NOW;
    assert_int_equal(mu_boost_find(&h, &p, loads, 1, 400, 100), -1);
    h.frozen[ME] = MU_FROZEN_PAST;
    assert_int_equal(mu_boost_find(&h, &p, loads, 1, 400, 100), 2);
    h.state[E + 1] = MU_EXPERT_STARVED, h.since[E + 1] = 400;       /* with less load */
    assert_int_equal(mu_boost_find(&h, &p, loads, 1, 400, 100), 1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, end)
int main(void) {
    const struct CMUnitTest tests[] = { TEST(only_dead_experts_are_replaced), TEST(the_one_that_is_dead_longest_comes_first), TEST(carriers_are_never_split),
                                        TEST(only_starved_experts_are_boosted) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
