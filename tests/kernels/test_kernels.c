/* test_kernels.c - every kernel of the cpu and the guarded device against the reference, and the same bits
 * for any number of threads. The cases are in cases.h. And attention: the same bits in one piece and in many. */
#include "cases.h"
#include "pieces.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* Opens the device, or NULL after printing why the test is skipped. */
static mu_device *open_or_skip(const char *kind) {
    mu_device *dev = mu_device_open(kind);
    if (!dev) printf("skipped: this machine cannot run %s\n", kind);
    return dev;
}

static void test_agrees(void **state) {
    mu_device *dev = open_or_skip(*state), *ref = mu_device_open("ref");
    int wrong = 0;
    for (int i = 0; i < N_KERNEL_CASES && dev; i++) {
        wrong += !case_agrees(ref, dev, &kernel_cases[i], 0, false, NULL);
        wrong += !case_agrees(ref, dev, &kernel_cases[i], 3, false, NULL);   /* gaps between rows */
    }
    mu_device_close(ref);
    mu_device_close(dev);
    assert_int_equal(wrong, 0);
}

/* A bf16 product of operands that bf16 holds exactly is as good as an fp32 one. */
static void test_bf16_rounds_nothing_else(void **state) {
    mu_device *dev = open_or_skip(*state), *ref = mu_device_open("ref");
    int wrong = 0;
    for (int i = 0; i < N_KERNEL_CASES && dev; i++)
        if (!strcmp(kernel_cases[i].kernel, "gemm"))
            wrong += !case_agrees(ref, dev, &kernel_cases[i], 3, true, NULL);
    mu_device_close(ref);
    mu_device_close(dev);
    assert_int_equal(wrong, 0);
}

static void test_ignores_threads(void **state) {
    mu_device *dev = open_or_skip(*state);
    int wrong = 0;
    for (int i = 0; i < N_KERNEL_CASES && dev; i++)
        wrong += !case_ignores_threads(dev, &kernel_cases[i]);
    mu_device_close(dev);
    assert_int_equal(wrong, 0);
}

static void test_attention_in_pieces(void **state) {
    static const int64_t shapes[][4] = { { 600, 2, 2, 64 }, { 530, 6, 2, 16 }, { 300, 4, 1, 10 },
                                         { 70, 3, 3, 300 }, { 90, 40, 1, 2 },  { 290, 2, 1, 80 } };
    static const int64_t pieces[] = { 5, 1, 1, 3, 33, 1, 64, 2, 100 }, one = 1;
    mu_device *dev = open_or_skip(*state);
    int wrong = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && dev; i++) {
        const int64_t *p = shapes[i];
        wrong += attention_in_pieces(dev, p, 0, pieces, 9);
        wrong += attention_in_pieces(dev, p, 0, &one, 1);
    }
    mu_device_close(dev);
    assert_int_equal(wrong, 0);
}

/* Is any kernel of the list without a case? */
static void test_every_kernel_has_a_case(void **state) {
    (void)state;
#define K(name, params, args) #name,
    static const char *const names[] = { MU_KERNELS(K) };
#undef K
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        int found = 0;
        for (int i = 0; i < N_KERNEL_CASES; i++) found += !strcmp(kernel_cases[i].kernel, names[n]);
        if (!found) printf("no case for %s\n", names[n]);
        assert_true(found);
    }
}

#define ON(test, kind) { #test " " kind, test, NULL, NULL, (void *)(uintptr_t)kind }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kernel_has_a_case),
        ON(test_agrees, "cpu-base"),
        ON(test_agrees, "cpu-avx2"),
        ON(test_agrees, "cpu-avx512"),
        ON(test_agrees, "cpu-bf16"),
        ON(test_bf16_rounds_nothing_else, "cpu-bf16"),
        ON(test_agrees, "guarded"),
        ON(test_ignores_threads, "cpu-base"),
        ON(test_ignores_threads, "cpu-avx2"),
        ON(test_ignores_threads, "cpu-avx512"),
        ON(test_ignores_threads, "cpu-bf16"),
        ON(test_attention_in_pieces, "cpu-base"),
        ON(test_attention_in_pieces, "cpu-avx2"),
        ON(test_attention_in_pieces, "cpu-avx512"),
        ON(test_attention_in_pieces, "cpu-bf16"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
