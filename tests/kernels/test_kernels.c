/* test_kernels.c - every kernel of the cpu and the guarded device against the reference, and the same bits
 * for any number of threads. The cases are in cases.h. And attention: the same bits in one piece and in many. */
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
        wrong += !case_agrees(ref, dev, &kernel_cases[i], 0, false);
        wrong += !case_agrees(ref, dev, &kernel_cases[i], 3, false);   /* gaps between rows */
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
            wrong += !case_agrees(ref, dev, &kernel_cases[i], 3, true);
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

/* Attention over one sequence of S tokens whose queries come in pieces of these lengths, over and over. */
static int attention_in_pieces(mu_device *dev, int64_t S, int64_t H, int64_t G, int64_t d,
                               const int64_t *pieces, int n_pieces) {
    trial t = { .dev = dev, .seed = (uint64_t)d, .memory = mu_memory_new(dev, (size_t)1 << 30) };
    mu_attention_shape s = { 1, S, H, G, d, 1 / sqrt((double)d), 0 };
    mu_mat q = matrix(&t, "q", S, H * d), k = matrix(&t, "k", S, G * d), v = matrix(&t, "v", S, G * d);
    mu_mat y = new_matrix(&t, "y", S, H * d), lse = new_matrix(&t, "lse", S, H);
    mu_mat parts = new_matrix(&t, "parts", S, H * d), part_lse = new_matrix(&t, "part_lse", S, H);
    dev->k->attention_fwd(dev, &s, q, k, v, y, lse);
    for (int i = 0; s.past < S; s.past += s.S, i++) {
        mu_mat of[] = { q, parts, part_lse };
        for (int j = 0; j < 3; j++) of[j].data = (float *)of[j].data + s.past * of[j].ld;
        s.S = pieces[i % n_pieces] < S - s.past ? pieces[i % n_pieces] : S - s.past;
        dev->k->attention_fwd(dev, &s, of[0], k, v, of[1], of[2]);
    }
    int wrong = memcmp(y.data, parts.data, sizeof(float) * (size_t)(S * y.ld)) ||
                memcmp(lse.data, part_lse.data, sizeof(float) * (size_t)(S * lse.ld));
    if (wrong)
        printf("%s: attention of %lld tokens, %lld heads over %lld of %lld differs in pieces\n", dev->name,
               (long long)S, (long long)H, (long long)G, (long long)d);
    mu_memory_free(t.memory);
    return wrong;
}

static void test_attention_in_pieces(void **state) {
    static const int64_t shapes[][4] = { { 600, 2, 2, 64 }, { 530, 6, 2, 16 }, { 300, 4, 1, 10 },
                                         { 70, 3, 3, 300 }, { 90, 40, 1, 2 },  { 290, 2, 1, 80 } };
    static const int64_t pieces[] = { 5, 1, 1, 3, 33, 1, 64, 2, 100 }, one = 1;
    mu_device *dev = open_or_skip(*state);
    int wrong = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && dev; i++) {
        const int64_t *p = shapes[i];
        wrong += attention_in_pieces(dev, p[0], p[1], p[2], p[3], pieces, 9);
        wrong += attention_in_pieces(dev, p[0], p[1], p[2], p[3], &one, 1);
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
