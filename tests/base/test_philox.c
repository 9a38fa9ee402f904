/* test_philox.c - Philox 4x32-10 against the known answers of its authors (Random123, kat_vectors), and
 * its streams against their definition. */
#include "base/base.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

static void test_known_answers(void **state) {
    (void)state;
    static const struct { uint64_t key; uint32_t counter[4], out[4]; } known[] = {
        { 0, { 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { UINT64_MAX, { UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX },
          { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { 0x299f31d0a4093822, { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t out[4];
        mu_philox4x32(known[i].key, known[i].counter, out);
        assert_memory_equal(out, known[i].out, sizeof out);
    }
}

/* Number i of a stream: word i % 4 of the block with counter (i / 4, step, sample, purpose << 16 | layer). */
static void test_counter_layout(void **state) {
    (void)state;
    mu_rng r = { .seed = 0x123456789abcdef0, .step = 7, .sample = 99, .purpose = MU_RNG_TEST, .layer = 5 };
    uint32_t counter[4] = { 3, 7, 99, MU_RNG_TEST << 16 | 5 }, out[4];
    mu_philox4x32(r.seed, counter, out);
    for (uint64_t i = 0; i < 4; i++) assert_int_equal(mu_rng_u32(&r, 12 + i), out[i]);
}

static void test_streams_differ(void **state) {
    (void)state;
    const mu_rng streams[] = { { 1, 0, 0, 1, 0 }, { 2, 0, 0, 1, 0 }, { 1, 1, 0, 1, 0 }, { 1, 0, 1, 1, 0 },
                               { 1, 0, 0, 2, 0 }, { 1, 0, 0, 1, 1 }, { 1ull << 32, 0, 0, 1, 0 } };
    enum { N = sizeof streams / sizeof *streams };
    for (int i = 0; i < N; i++)
        for (int j = 0; j < i; j++) {
            int equal = 0;
            for (uint64_t n = 0; n < 64; n++)
                equal += mu_rng_u32(&streams[i], n) == mu_rng_u32(&streams[j], n);
            assert_int_equal(equal, 0);
        }
}

enum { N = 200000 };

static void test_uniform(void **state) {
    (void)state;
    mu_rng r = { .seed = 42, .purpose = MU_RNG_TEST };
    double sum = 0, squares = 0;
    int bins[10] = { 0 };
    for (uint64_t i = 0; i < N; i++) {
        double u = mu_rng_uniform(&r, i);
        assert_true(u >= 0 && u < 1);
        sum += u, squares += u * u;
        bins[(int)(10 * u)]++;
    }
    assert_true(fabs(sum / N - 0.5) < 5 * sqrt(1 / (12.0 * N)));           /* five standard errors */
    assert_true(fabs(squares / N - 1 / 3.0) < 0.004);
    for (int i = 0; i < 10; i++) assert_in_range(bins[i], N / 10 - 700, N / 10 + 700);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Moments, and the largest distance from the normal distribution (Kolmogorov and Smirnov): in 99 of 100
 * samples below 1.63 / sqrt(N); the sample here is always the same one. */
static void test_normal(void **state) {
    (void)state;
    mu_rng r = { .seed = 42, .purpose = MU_RNG_TEST, .layer = 3 };
    double *x = mu_alloc(N, sizeof *x), moment[5] = { 0 }, distance = 0, pairs = 0;
    for (uint64_t i = 0; i < N; i++) {
        x[i] = mu_rng_normal(&r, i);
        assert_true(isfinite(x[i]));
        for (int k = 1; k <= 4; k++) moment[k] += pow(x[i], k) / N;
        if (i % 2) pairs += x[i] * x[i - 1] / (N / 2);
    }
    qsort(x, N, sizeof *x, compare);
    for (int i = 0; i < N; i++)
        distance = fmax(distance, fabs(0.5 * erfc(-x[i] * M_SQRT1_2) - (i + 0.5) / N));
    free(x);
    assert_true(fabs(moment[1]) < 5 / sqrt(N));
    assert_true(fabs(moment[2] - 1) < 5 * sqrt(2.0 / N));
    assert_true(fabs(moment[3]) < 5 * sqrt(15.0 / N));
    assert_true(fabs(moment[4] - 3) < 5 * sqrt(96.0 / N));
    assert_true(fabs(pairs) < 5 / sqrt(N / 2.0));               /* the two deviates of one Box-Muller pair */
    assert_true(distance < 1.63 / sqrt(N));
}

/* All at once, and in parts, as one by one. */
static void test_many_normals(void **state) {
    (void)state;
    enum { MANY = 1001, FIRST = 400 };
    mu_rng r = { .seed = 42, .purpose = MU_RNG_TEST, .sample = 3 };
    double whole[MANY], parts[MANY];
    mu_rng_normals(&r, MANY, 1.0, whole);
    mu_rng_normals_from(&r, 0, FIRST, 1.0, parts);
    mu_rng_normals_from(&r, FIRST, MANY - FIRST, 1.0, parts + FIRST);
    assert_memory_equal(whole, parts, sizeof whole);
    for (uint64_t i = 0; i < MANY; i++) assert_true(fabs(whole[i] - mu_rng_normal(&r, i)) < 1e-12);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers), cmocka_unit_test(test_counter_layout),
        cmocka_unit_test(test_streams_differ), cmocka_unit_test(test_uniform), cmocka_unit_test(test_normal), cmocka_unit_test(test_many_normals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
