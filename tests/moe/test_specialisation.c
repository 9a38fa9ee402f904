/* test_specialisation.c - mutual information, lift and shares of domains: known values. */
#include "moe/moe.h"

#include <math.h>
#include <setjmp.h>
#include <cmocka.h>

static void assert_near(double got, double wanted) {
    if (!(fabs(got - wanted) < 1e-12)) fail_msg("%.17g, expected %.17g", got, wanted);
}

static void assert_information(const int64_t *n, int E, int D, double nats, double normalised) {
    mu_mutual_information m = mu_mutual_information_of(n, E, D);
    assert_near(m.nats, nats);
    assert_near(m.normalised, normalised);
}

/* Independent: 0 less the bias. One expert per domain: ln 2 less the bias, of ln 2. Rows and columns without counts are not counted. */
static void information(void **state) {
    (void)state;
    assert_information((int64_t[]){ 30, 10, 15, 5 }, 2, 2, -1 / 120.0, -1 / 120.0 / -(0.75 * log(0.75) + 0.25 * log(0.25)));
    assert_information((int64_t[]){ 50, 0, 0, 50 }, 2, 2, log(2) - 1 / 200.0, 1 - 1 / 200.0 / log(2));
    assert_information((int64_t[]){ 50, 0, 0, 0, 0, 0, 0, 50, 0 }, 3, 3, log(2) - 1 / 200.0, 1 - 1 / 200.0 / log(2));
    assert_information((int64_t[]){ 7, 5 }, 2, 1, 0, 0);
    assert_information((int64_t[]){ 7, 5 }, 1, 2, 0, 0);
    assert_information((int64_t[]){ 0, 0, 0, 0 }, 2, 2, 0, 0);
}

/* Expert 0: 30 of 40 tokens of domain 0 and 10 of 40 of domain 1, half of all. Expert 1: the other way round; expert 2: none. */
static void lifts_and_shares(void **state) {
    (void)state;
    static const int64_t n[] = { 30, 10, 0, 10, 30, 0, 0, 0, 0 };
    double lift[9], share[9];
    mu_domain_lift(n, 3, 3, lift);
    assert_near(lift[0], log2(1.5));
    assert_near(lift[1], -1);
    assert_near(lift[3], -1);
    for (int d = 0; d < 3; d++) assert_near(lift[6 + d], MU_NO_LIFT), assert_near(lift[3 * d + 2], MU_NO_LIFT);
    mu_domain_shares(n, 3, 3, 2, share);        /* 20 tokens of each domain, two experts each */
    assert_near(share[0], 1.5);
    assert_near(share[4], 1.5);
    assert_near(share[1], 0.5);
    assert_near(share[2], 0);
    assert_near(share[8], 0);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(information), cmocka_unit_test(lifts_and_shares) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
