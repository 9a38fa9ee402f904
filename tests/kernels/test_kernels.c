/* test_kernels.c - every kernel of the cpu and the guarded device against the reference, and the same bits
 * for any number of threads. The cases are in cases.h. */
#include "cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* Opens the device, or NULL after saying why the test is left out. */
static mu_device *open_or_skip(const char *kind) {
    mu_device *dev = mu_device_open(kind);
    if (!dev) printf("skipped: this machine cannot run %s\n", kind);
    return dev;
}

static void test_agrees(void **state) {
    mu_device *dev = open_or_skip(*state), *ref = mu_device_open("ref");
    int wrong = 0;
    for (int i = 0; i < N_KERNEL_CASES && dev; i++) {
        wrong += !case_agrees(ref, dev, &kernel_cases[i], (uint64_t)i, 0, false);
        wrong += !case_agrees(ref, dev, &kernel_cases[i], (uint64_t)i, 3, false);   /* gaps between rows */
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
            wrong += !case_agrees(ref, dev, &kernel_cases[i], (uint64_t)i, 3, true);
    mu_device_close(ref);
    mu_device_close(dev);
    assert_int_equal(wrong, 0);
}

static void test_ignores_threads(void **state) {
    mu_device *dev = open_or_skip(*state);
    int wrong = 0;
    for (int i = 0; i < N_KERNEL_CASES && dev; i++)
        wrong += !case_ignores_threads(dev, &kernel_cases[i], (uint64_t)i);
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
