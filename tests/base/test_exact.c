/* test_exact.c - exact sums: the same words for any order and grouping, rounded once, and correctly. */
#include "base/base.h"

#include <math.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

enum { N = 3000 };

/* Values of all magnitudes, from subnormal to 2^1020, half of them small enough to cancel. */
static void wild_values(uint64_t seed, int spread, double *x) {
    mu_rng rng = { .seed = seed, .purpose = MU_RNG_TEST };
    for (uint64_t i = 0; i < N; i++)
        x[i] = ldexp(2 * mu_rng_uniform(&rng, 2 * i) - 1,
                     (int)((mu_rng_uniform(&rng, 2 * i + 1) - 0.5) * spread));
}

static mu_exact sum_of(const double *x, int first, int end, int step) {
    mu_exact sum = { 0 };
    for (int i = first; i != end; i += step) mu_exact_add(&sum, x[i]);
    return sum;
}

static void test_order_and_grouping(void **state) {
    (void)state;
    static double x[N];
    for (int spread = 2; spread < 2080; spread = spread * 3 / 2 + 1) {
        wild_values((uint64_t)spread, spread, x);
        mu_exact forwards = sum_of(x, 0, N, 1), backwards = sum_of(x, N - 1, -1, -1), parts = { 0 };
        assert_memory_equal(&forwards, &backwards, sizeof forwards);
        for (int at = 0; at < N; at += 250) {
            mu_exact part = sum_of(x, at, at + 250, 1);
            for (int i = 0; i < MU_EXACT_DIGITS; i++) parts.digit[i] += part.digit[i];
        }
        assert_memory_equal(&forwards, &parts, sizeof forwards);
        for (int i = 0; i < N; i++) mu_exact_add(&parts, -x[i]);
        assert_true(mu_exact_value(&parts) == 0);
        mu_exact_add(&parts, x[7]);
        assert_true(mu_exact_value(&parts) == x[7]);
    }
}

/* Rounding: to nearest, ties to even, what lies far below decides. */
static void test_rounding(void **state) {
    (void)state;
    const struct {
        double x[4], sum;
    } cases[] = {
        { { 0 }, 0 },
        { { 1, 2, 3, 4 }, 10 },
        { { 0x1p53, 1 }, 0x1p53 },
        { { 0x1p53, 2, 1 }, 0x1p53 + 4 },
        { { 0x1p53, 1, 0x1p-1000 }, 0x1p53 + 2 },
        { { 0x1p53, 1, -0x1p-1000 }, 0x1p53 },
        { { -0x1p53, -1, -0x1p-1070 }, -0x1p53 - 2 },
        { { 1e308, 1, -1e308, 0x1p-1074 }, 1 },
        { { 1e308, 0x1p-1074, -1e308 }, 0x1p-1074 },
        { { -0x1p-1074, -0x1p-1074, 0x1p-1074 }, -0x1p-1074 },
        { { 0x1.fffffffffffffp1023, 0x1.fffffffffffffp1023, -0x1.fffffffffffffp1023 },
          0x1.fffffffffffffp1023 },
        { { 0.1, 0.2 }, 0.1 + 0.2 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mu_exact sum = sum_of(cases[i].x, 0, 4, 1);
        if (mu_exact_value(&sum) != cases[i].sum)
            print_error("case %zu: %a, expected %a\n", i, mu_exact_value(&sum), cases[i].sum);
        assert_true(mu_exact_value(&sum) == cases[i].sum);
    }
}

/* The sum of two summands is the correctly rounded double addition. */
static void test_against_addition(void **state) {
    (void)state;
    static double x[N];
    wild_values(5, 120, x);
    for (int i = 0; i + 1 < N; i += 2) {
        mu_exact sum = sum_of(x + i, 0, 2, 1);
        assert_true(mu_exact_value(&sum) == x[i] + x[i + 1]);
    }
}

static void test_not_finite(void **state) {
    (void)state;
    const double wrong[] = { NAN, INFINITY, -INFINITY };
    for (int i = 0; i < 3; i++) {
        mu_exact sum = { 0 };
        mu_exact_add(&sum, 1);
        mu_exact_add(&sum, wrong[i]);
        assert_true(isnan(mu_exact_value(&sum)));
        mu_exact_add(&sum, -wrong[i]);
        assert_true(isnan(mu_exact_value(&sum)));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_grouping),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_against_addition),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
