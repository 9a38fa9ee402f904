/* test_exact.c - the basis of reproducible training, on every instruction set: exact sums are the same words for
 * any order and grouping, what cannot be summed is marked, and a row of a product, of a norm or of the experts has
 * the same bits whatever the other rows are. */
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

enum { UNITS = 60, N = 131 };

/* Memory of the device, as host memory: every device here but `guarded` is the host. */
typedef struct {
    mu_device *dev;
    mu_memory *memory;
    size_t used;
} bench;

static bench bench_open(const char *kind) {
    bench b = { .dev = mu_device_open(kind) };
    if (!b.dev) {
        printf("skipped: this machine cannot run %s\n", kind);
        skip();
    }
    b.memory = mu_memory_new(b.dev, (size_t)1 << 28);
    mu_memory_commit(b.memory, (size_t)1 << 26);
    return b;
}

static void bench_close(bench *b) {
    mu_memory_free(b->memory);
    mu_device_close(b->dev);
}

static void *take(bench *b, size_t bytes) {
    void *data = b->memory->region.base + b->used;
    b->used += (bytes + 63) / 64 * 64;
    assert_true(b->used <= (size_t)1 << 26);
    return memset(data, 0, bytes);
}

static float *random_floats(bench *b, uint64_t seed, int64_t n, int spread) {
    float *x = take(b, sizeof *x * (size_t)n);
    mu_rng rng = { .seed = seed, .purpose = MU_RNG_TEST };
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = 2 * (uint64_t)i;
        x[i] = (float)ldexp(2 * mu_rng_uniform(&rng, at) - 1, -(int)(mu_rng_uniform(&rng, at + 1) * spread));
    }
    return x;
}

static mu_mat floats(const float *x, int64_t ld) {
    return (mu_mat){ (void *)(uintptr_t)x, MU_DTYPE_F32, ld };
}
static mu_mat words(int64_t *x) { return (mu_mat){ x, MU_DTYPE_I64, 1 }; }

static int64_t *new_sums(bench *b) { return take(b, sizeof(int64_t) * (size_t)mu_exact_sums_words(N)); }

static void test_order_and_grouping(void **state) {
    bench b = bench_open(*state);
    const float *x = random_floats(&b, 1, UNITS * N, 60);
    int64_t *forwards = new_sums(&b), *backwards = new_sums(&b), *parts[3], n_words = mu_exact_sums_words(N);
    for (int unit = 0; unit < UNITS; unit++) {
        b.dev->k->exact_add(b.dev, N, floats(x + unit * N, 1), words(forwards));
        b.dev->k->exact_add(b.dev, N, floats(x + (UNITS - 1 - unit) * N, 1), words(backwards));
    }
    assert_memory_equal(forwards, backwards, sizeof *forwards * (size_t)n_words);
    for (int rank = 0; rank < 3; rank++) { /* unequal shares, dealt out, then added word by word */
        parts[rank] = new_sums(&b);
        for (int unit = 0; unit < UNITS; unit++)
            if ((unit * 7 + unit / 5) % 4 % 3 == rank)
                b.dev->k->exact_add(b.dev, N, floats(x + unit * N, 1), words(parts[rank]));
    }
    for (int64_t i = 0; i < n_words; i++) parts[0][i] += parts[1][i] + parts[2][i];
    float *whole = take(&b, sizeof(float) * N), *shared = take(&b, sizeof(float) * N);
    b.dev->k->exact_round(b.dev, N, words(forwards), floats(whole, 1));
    b.dev->k->exact_round(b.dev, N, words(parts[0]), floats(shared, 1));
    assert_memory_equal(whole, shared, sizeof(float) * N);
    for (int i = 0; i < N; i++) { /* each summand is a multiple of 2^-69 once it is rounded to one */
        mu_exact sum = { 0 };
        for (int unit = 0; unit < UNITS; unit++)
            mu_exact_add(&sum, nearbyint(ldexp((double)x[unit * N + i], 69)) * 0x1p-69);
        assert_true(whole[i] == (float)mu_exact_value(&sum));
    }
    bench_close(&b);
}

/* Cancellation costs nothing: large summands come and go, the small one stays to its last digit. */
static void test_cancellation(void **state) {
    bench b = bench_open(*state);
    float *x = take(&b, sizeof *x * N), *y = take(&b, sizeof *y * N);
    int64_t *sums = new_sums(&b);
    const float summands[] = { 0x1.8p25f, -0x1p24f, 0x1.23456p-30f, -0x1p24f, -0x1p24f };
    for (int unit = 0; unit < 5; unit++) {
        for (int i = 0; i < N; i++) x[i] = summands[unit];
        b.dev->k->exact_add(b.dev, N, floats(x, 1), words(sums));
    }
    b.dev->k->exact_round(b.dev, N, words(sums), floats(y, 1));
    for (int i = 0; i < N; i++) assert_true(y[i] == 0x1.23456p-30f);
    bench_close(&b);
}

/* A NaN, an infinity, 2^26, and a sum that leaves the range make the whole tensor NaN; just below they do not. */
static void test_marks(void **state) {
    bench b = bench_open(*state);
    const struct {
        float x;
        int times;
        bool marked;
    } cases[] = {
        { NAN, 1, true },
        { INFINITY, 1, true },
        { -INFINITY, 1, true },
        { 0x1p26f, 1, true },
        { -0x1p26f, 1, true },
        { 0x1p100f, 1, true },
        { 0x1.fffffep25f, 1, false },
        { -0x1.fffffep25f, 1, false },
        { 0x1p25f, 3, true },
        { -0x1p25f, 3, true },
        { 0x1p20f, 63, false },
        { 0x1p-140f, 100, false },
        { 0x1p20f, 100, true },
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int at = 0; at < N; at += 43) {
            float *x = take(&b, sizeof *x * N), *y = take(&b, sizeof *y * N);
            int64_t *sums = new_sums(&b);
            x[at] = cases[c].x;
            for (int i = 0; i < cases[c].times; i++) b.dev->k->exact_add(b.dev, N, floats(x, 1), words(sums));
            b.dev->k->exact_round(b.dev, N, words(sums), floats(y, 1));
            for (int i = 0; i < N; i++) assert_true(!isnan(y[i]) == !cases[c].marked);
        }
    bench_close(&b);
}

/* exact_product over several reduction units is exact_add of each one's product. */
static void test_product(void **state) {
    enum { ROWS = 700, M = 70, K = 33 };
    bench b = bench_open(*state);
    const float *a = random_floats(&b, 2, ROWS * M, 4), *c = random_floats(&b, 3, ROWS * K, 4);
    const int64_t bounds[] = { 0, 1, 1, 300, 420, 700 };
    int64_t *at = memcpy(take(&b, sizeof bounds), bounds, sizeof bounds), n_words = mu_exact_sums_words(M * K);
    int64_t *whole = take(&b, sizeof *whole * (size_t)n_words),
            *leaf_by_leaf = take(&b, sizeof *whole * (size_t)n_words);
    float *one = take(&b, sizeof *one * M * K);
    b.dev->k->exact_product(b.dev, false, 1, 5, M, K, words(at), floats(a, M), floats(c, K), words(whole));
    for (int i = 4; i >= 0; i--) {
        b.dev->k->gemm(b.dev, true, false, M, K, bounds[i + 1] - bounds[i], floats(a + bounds[i] * M, M),
                       floats(c + bounds[i] * K, K), 0, floats(one, K));
        b.dev->k->exact_add(b.dev, M * K, floats(one, 1), words(leaf_by_leaf));
    }
    assert_memory_equal(whole, leaf_by_leaf, sizeof *whole * (size_t)n_words);
    bench_close(&b);
}

/* ---------------------------------------------------------------- rows and their neighbours */
enum { ROWS = 150, D = 37, F = 21 };

static void row_products(bench *b, int64_t first, int64_t n, const float *x, const float *w, float *y) {
    b->dev->k->gemm(b->dev, false, true, n, F, D, floats(x + first * D, D), floats(w, D), 0,
                    floats(y + first * F, F));
}

static void row_norms(bench *b, int64_t first, int64_t n, const float *x, const float *w, float *y) {
    b->dev->k->rmsnorm_fwd(b->dev, n, D, 1e-6, floats(x + first * D, D), floats(w, D),
                           floats(y + first * D, D), floats(y + ROWS * D + first, 1));
}

/* One expert takes all rows; forward, then backward for dx and the rows' weights. */
static void row_experts(bench *b, int64_t first, int64_t n, const float *x, const float *w, float *y) {
    mu_experts_shape s = { n, 1, D, F, .batch_invariant = true };
    size_t used = b->used;
    mu_mat none = { 0 }, in = floats(x + first * D, D), out = floats(y + first * D, D);
    mu_mat weights = floats(x + first, 1), dweights = floats(y + 2 * ROWS * D + first, 1);
    mu_mat dx = floats(y + (ROWS + first) * D, D), offsets = words(take(b, 2 * sizeof(int64_t)));
    ((int64_t *)offsets.data)[1] = n;
    mu_mat gate = floats(w, D), up = floats(w + D * F, D), down = floats(w + 2 * D * F, F);
    mu_mat hg = floats(take(b, sizeof(float) * (size_t)(n * F)), F),
           hu = floats(take(b, sizeof(float) * (size_t)(n * F)), F);
    mu_mat act = floats(take(b, sizeof(float) * (size_t)(n * F)), F);
    b->dev->k->experts_fwd(b->dev, &s, in, none, offsets, gate, up, down, hg, hu, none, weights, out);
    b->dev->k->experts_bwd(b->dev, &s, in, none, offsets, gate, up, down, hg, hu, none, weights, out, act,
                           none, none, dx, dweights, none, none, none);
    b->used = used;
}

static void test_rows_alone(void **state) {
    static const struct {
        const char *name;
        void (*run)(bench *b, int64_t first, int64_t n, const float *x, const float *w, float *y);
    } kernels[] = { { "gemm", row_products }, { "rmsnorm", row_norms }, { "experts", row_experts } };
    bench b = bench_open(*state);
    const float *x = random_floats(&b, 4, ROWS * D, 2), *w = random_floats(&b, 5, 3 * D * F, 2);
    size_t bytes = sizeof(float) * (2 * D + 1) * ROWS;
    for (int i = 0; i < 3; i++)
        for (int64_t each = 1; each < ROWS; each = each * 2 + 1) {
            float *whole = take(&b, bytes), *parts = take(&b, bytes);
            kernels[i].run(&b, 0, ROWS, x, w, whole);
            for (int64_t first = 0; first < ROWS; first += each)
                kernels[i].run(&b, first, first + each < ROWS ? each : ROWS - first, x, w, parts);
            if (memcmp(whole, parts, bytes))
                print_error("%s: rows differ between %d and %lld at a time\n", kernels[i].name, ROWS,
                            (long long)each);
            assert_memory_equal(whole, parts, bytes);
        }
    bench_close(&b);
}

#define ON(test, kind) \
    { #test " " kind, test, NULL, NULL, (void *)(uintptr_t)kind }
#define EVERYWHERE(test) ON(test, "cpu-base"), ON(test, "cpu-avx2"), ON(test, "cpu-avx512"), ON(test, "cpu-bf16")

int main(void) {
    const struct CMUnitTest tests[] = {
        EVERYWHERE(test_order_and_grouping),
        EVERYWHERE(test_cancellation),
        EVERYWHERE(test_marks),
        EVERYWHERE(test_product),
        EVERYWHERE(test_rows_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
