/* test_reference.c - the reference kernels against numbers computed by hand or with another formula. */
#include "harness.h"

#include <complex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static trial t;                         /* operands of the test that runs */

static int setup(void **state) {
    (void)state;
    mu_device *dev = mu_device_open("ref");
    t = (trial){ .dev = dev, .seed = 3, .tolerance = TOLERANCE, .memory = mu_memory_new(dev, (size_t)1 << 26) };
    return 0;
}

static int teardown(void **state) {
    (void)state;
    mu_memory_free(t.memory);
    mu_device_close(t.dev);
    return 0;
}

/* Operands from literals. */
static mu_mat given_reals(int64_t rows, int64_t cols, const double *values) {
    double *copy = mu_alloc((size_t)(rows * cols), sizeof *copy);
    memcpy(copy, values, (size_t)(rows * cols) * sizeof *copy);
    return reals_of(&t, "given", rows, cols, copy);
}

#define REALS(rows, cols, ...) given_reals(rows, cols, (const double[]){ __VA_ARGS__ })
#define INTS(rows, cols, ...)  ints_of(&t, "ints", rows, cols, (const int64_t[]){ __VA_ARGS__ })
#define LONGS(rows, cols, ...) longs_of(&t, "longs", rows, cols, (const int64_t[]){ __VA_ARGS__ })

static const double *values(mu_mat m) { return m.data; }

static void assert_near(double got, double wanted) {
    if (fabs(got - wanted) <= 1e-12 * fmax(1, fabs(wanted))) return;
    fail_msg("%.17g, expected %.17g", got, wanted);
}

static void assert_reals(mu_mat m, int64_t n, const double *wanted) {
    for (int64_t i = 0; i < n; i++) assert_near(values(m)[i], wanted[i]);
}

static void assert_whole(mu_mat m, int64_t n, const int64_t *wanted) {
    for (int64_t i = 0; i < n; i++) assert_int_equal((int64_t)decode(m.data, m.dtype, i), wanted[i]);
}

#define ASSERT_REALS(m, n, ...) assert_reals(m, n, (const double[]){ __VA_ARGS__ })
#define ASSERT_WHOLE(m, n, ...) assert_whole(m, n, (const int64_t[]){ __VA_ARGS__ })

static void test_rmsnorm(void **state) {
    (void)state;
    mu_mat x = REALS(2, 2, 3, 4, 0, 0), w = REALS(1, 2, 1, -2), y = new_matrix(&t, "y", 2, 2);
    mu_mat rstd = new_vector(&t, "rstd", 2);
    t.dev->k->rmsnorm_fwd(t.dev, 2, 2, 0.25, x, w, y, rstd);
    double r = 1 / sqrt(12.5 + 0.25);                       /* mean of 9 and 16 */
    ASSERT_REALS(rstd, 2, r, 2);
    ASSERT_REALS(y, 4, 3 * r, -8 * r, 0, 0);
}

/* The pair (x[i], x[i + d/2]) times e^(i angle), as complex numbers; the sign -1 undoes it. */
static void test_rope(void **state) {
    (void)state;
    enum { S = 5, T = 10, H = 3, D = 6, HALF = 3 };
    double c[S * HALF], s[S * HALF];
    for (int i = 0; i < S * HALF; i++) c[i] = cos(i / HALF * pow(100, -2.0 * (i % HALF) / D)),
                                       s[i] = sin(i / HALF * pow(100, -2.0 * (i % HALF) / D));
    mu_mat cosines = given_reals(S, HALF, c), sines = given_reals(S, HALF, s);
    mu_mat x = matrix(&t, "x", T, H * D), y = new_matrix(&t, "y", T, H * D),
           back = matrix(&t, "back", T, H * D);
    t.dev->k->rope(t.dev, T, S, H, D, 1, cosines, sines, x, false, y);
    for (int row = 0; row < T * H; row++)
        for (int i = 0; i < HALF; i++) {
            const double *in = values(x) + row * D, *out = values(y) + row * D;
            double angle = row / H % S * pow(100, -2.0 * i / D);
            double complex z = (in[i] + I * in[i + HALF]) * cexp(I * angle);
            assert_near(out[i], creal(z));
            assert_near(out[i + HALF], cimag(z));
        }
    t.dev->k->rope(t.dev, T, S, H, D, -1, cosines, sines, y, false, back);
    assert_reals(back, T * H * D, values(x));
}

/* softmax(Q K' scale + mask) V with the whole S x N matrix, one head of one sequence at a time; the S queries
 * are the last of N positions */
static void attention_by_hand(int S) {
    enum { B = 2, N = 7, H = 4, G = 2, D = 6 };
    mu_attention_shape shape = { B, S, H, G, D, 0.7, N - S };
    mu_mat q = matrix(&t, "q", B * S, H * D), k = matrix(&t, "k", B * N, G * D),
           v = matrix(&t, "v", B * N, G * D);
    mu_mat y = new_matrix(&t, "y", B * S, H * D), lse = new_matrix(&t, "lse", H, B * S);
    t.dev->k->attention_fwd(t.dev, &shape, q, k, v, y, lse);
    for (int head = 0; head < B * H; head++) {
        int b = head / H, h = head % H, g = h / 2;
        double p[N][N] = { { 0 } }, sum[N] = { 0 };
        for (int i = 0; i < S; i++)
            for (int j = 0; j <= N - S + i; j++) {
                double score = 0;
                for (int a = 0; a < D; a++)
                    score += values(q)[(b * S + i) * H * D + h * D + a] *
                             values(k)[(b * N + j) * G * D + g * D + a];
                p[i][j] = exp(0.7 * score);
                sum[i] += p[i][j];
            }
        for (int i = 0; i < S; i++) {
            assert_near(values(lse)[(h * B + b) * S + i], log(sum[i]));
            for (int a = 0; a < D; a++) {
                double wanted = 0;
                for (int j = 0; j < N; j++)
                    wanted += p[i][j] / sum[i] * values(v)[(b * N + j) * G * D + g * D + a];
                assert_near(values(y)[(b * S + i) * H * D + h * D + a], wanted);
            }
        }
    }
}

static void test_attention(void **state) {
    (void)state;
    attention_by_hand(7);
    attention_by_hand(3);
    attention_by_hand(1);
}

static void test_experts(void **state) {
    (void)state;
    mu_experts_shape s = { 2, 2, 1, 2, .batch_invariant = true };                   /* R, experts, D, F */
    mu_mat x = REALS(3, 1, 9, 2, -1), in = INTS(1, 2, 2, 1), out = INTS(1, 2, 1, 0);
    mu_mat offsets = LONGS(1, 3, 0, 0, 2);                  /* expert 0 has no rows */
    mu_mat gate = REALS(1, 4, 7, 7, 1, 2), up = REALS(1, 4, 7, 7, 3, -1), down = REALS(1, 4, 7, 7, 0.5, 4);
    mu_mat hg = new_matrix(&t, "hg", 2, 2), hu = new_matrix(&t, "hu", 2, 2), y = new_matrix(&t, "y", 2, 1);
    t.dev->k->experts_fwd(t.dev, &s, x, in, offsets, gate, up, down, hg, hu, out, REALS(1, 2, 10, 1), y);
    ASSERT_REALS(hg, 4, -1, -2, 2, 4);
    ASSERT_REALS(hu, 4, -3, 1, 6, -2);
    double first = 0.5 * (-1 / (1 + exp(1))) * -3 + 4 * (-2 / (1 + exp(2))) * 1;
    double second = 0.5 * (2 / (1 + exp(-2))) * 6 + 4 * (4 / (1 + exp(-4))) * -2;
    ASSERT_REALS(y, 2, second, 10 * first);
}

static void test_xent(void **state) {
    (void)state;
    mu_mat logits = REALS(2, 3, 0, log(2), log(3), 5, 6, 7), targets = INTS(1, 2, 2, -1),
           dout = double_of(&t, "dout", 2);
    mu_mat lse = new_vector(&t, "lse", 2), nll = new_vector(&t, "nll", 2);
    t.dev->k->xent_fwd(t.dev, 2, 3, logits, targets, lse, nll);
    ASSERT_REALS(lse, 1, log(6));
    ASSERT_REALS(nll, 2, log(2), 0);                        /* p = 1/6, 2/6, 3/6 */
    t.dev->k->xent_bwd(t.dev, 2, 3, 0.25, dout, targets, lse, logits);
    ASSERT_REALS(logits, 6, 0.5 / 6, 1.0 / 6, -0.25, 0, 0, 0);
}

static mu_mat doubles(int64_t n, const double *values) {
    double *copy = mu_alloc((size_t)n, sizeof *copy);
    for (int64_t i = 0; i < n; i++) copy[i] = values[i];
    return doubles_of(&t, "doubles", n, copy)->mat;
}
#define DOUBLES(n, ...) doubles(n, (const double[]){ __VA_ARGS__ })

/* Moments as the weighted sums that their recursions stand for. */
static void test_slab_adamw(void **state) {
    (void)state;
    const double g[3] = { 0.5, -2, 0.125 }, lr = 0.1, b1 = 0.8, b2 = 0.9, eps = 1e-3, decay = 0.2;
    mu_mat w = REALS(1, 1, 3), grad = REALS(1, 1, 0), m = REALS(1, 1, 0), v = REALS(1, 1, 0);
    mu_mat unit = LONGS(1, 6, 0, 1, 0, 0, -1, 1), steps = LONGS(1, 1, 0), scale = DOUBLES(1, 0.25);
    double wanted = 3;
    for (int step = 1; step <= 3; step++) {
        double first = 0, second = 0, weight1 = 0, weight2 = 0;
        for (int i = 0; i < step; i++) {
            first += pow(b1, step - 1 - i) * g[i], weight1 += pow(b1, step - 1 - i);
            second += pow(b2, step - 1 - i) * g[i] * g[i], weight2 += pow(b2, step - 1 - i);
        }
        wanted = wanted * (1 - lr * decay) - lr * (first / weight1) / (sqrt(second / weight2) + eps);
        mu_adamw_spec spec = { lr, b1, b2, eps, decay };
        *(double *)grad.data = 4 * g[step - 1];
        t.dev->k->slab_adamw(t.dev, 1, 1, &spec, unit, (mu_mat){ 0 }, scale, steps, w, grad, m, v, (mu_mat){ 0 });
        assert_near(*values(w), wanted);
        ASSERT_WHOLE(steps, 1, step);
    }
}

/* Skipped units: unit 0 because of its load; of unit 2 only the step is counted; all with a scale of NaN. Without gradient,
 * decay alone changes values, by a tenth. */
static void test_slab_rests(void **state) {
    (void)state;
    mu_mat units = LONGS(4, 6, 0, 1, 0, 3, 1, 1, 1, 2, 1, 2, 0, 1, 3, 0, 2, 1, -1, 1, 3, 1, 2, 0, -1, 0);
    mu_mat loads = LONGS(1, 2, 5, 0), steps = LONGS(1, 4, 0, 0, 0, 0), scale = DOUBLES(1, NAN);
    mu_mat w = REALS(1, 4, 10, 20, 30, 40), g = REALS(1, 4, 0, 0, 0, 0), m = REALS(1, 4, 0, 0, 0, 0),
           v = REALS(1, 4, 0, 0, 0, 0), compute = REALS(1, 4, 1, 2, 3, 4);
    mu_adamw_spec spec = { 0.5, 0.9, 0.9, 1, 0.2 };
    t.dev->k->slab_adamw(t.dev, 4, 3, &spec, units, loads, scale, steps, w, g, m, v, compute);
    ASSERT_REALS(w, 4, 10, 20, 30, 40);
    ASSERT_WHOLE(steps, 4, 0, 0, 0, 0);
    *(double *)scale.data = 1;
    t.dev->k->slab_adamw(t.dev, 4, 3, &spec, units, loads, scale, steps, w, g, m, v, compute);
    ASSERT_REALS(w, 4, 10, 18, 27, 40);
    ASSERT_REALS(compute, 4, 1, 18, 27, 40);
    ASSERT_WHOLE(steps, 4, 1, 1, 1, 0);
}

/* Unit 0 is skipped because of its load; unit 2 belongs to another rank. */
static void test_slab_pull(void **state) {
    (void)state;
    mu_mat units = LONGS(3, 6, 0, 1, 0, 2, 1, 1, 1, 2, 1, 0, 0, 1, 0, 0, 3, 1, -1, 1), loads = LONGS(1, 2, 5, 0);
    mu_mat f = REALS(1, 3, 9, 2, 0.5), w = REALS(1, 3, 1, 4, -1), at = REALS(1, 3, 0, 1, 3), g = REALS(1, 3, 7, 10, 20);
    mu_mat squares = DOUBLES(3, 1, 1, 1), limit = DOUBLES(1, 0.5), scale = DOUBLES(1, 0.25);
    t.dev->k->slab_pull_sumsq(t.dev, 3, 3, units, loads, f, w, at, squares);
    ASSERT_REALS(squares, 3, 36 + 4, 0, 0);
    t.dev->k->slab_pull_sumsq(t.dev, 3, 3, units, (mu_mat){ 0 }, f, w, at, squares);
    ASSERT_REALS(squares, 3, 36 + 4, 0, 81);
    t.dev->k->slab_pull(t.dev, 3, 3, 3, units, loads, limit, scale, f, w, at, g);
    ASSERT_REALS(g, 3, 7, 10 + 6 * 6, 20 + 6 * -2);
    *(double *)limit.data = NAN;
    t.dev->k->slab_pull(t.dev, 3, 3, 3, units, loads, limit, scale, f, w, at, g);
    ASSERT_REALS(g, 3, 7, 46, 8);
    mu_mat y = REALS(1, 3, 1, 1, 1);
    t.dev->k->add_squares(t.dev, 3, 0.5, w, y);
    ASSERT_REALS(y, 3, 1.5, 9, 1.5);
}

static void test_clip(void **state) {
    (void)state;
    mu_mat g = REALS(1, 5, 1, 2, 100, 4, 2), units = LONGS(2, 6, 0, 2, 0, 1, -1, 1, 3, 2, 1, 0, -1, 1);
    mu_mat squares = DOUBLES(2, 0, 0), norm = DOUBLES(1, 0), scale = DOUBLES(1, 0), loss = DOUBLES(1, 3);
    t.dev->k->slab_sumsq(t.dev, 2, 2, units, g, squares);
    ASSERT_REALS(squares, 2, 20, 5);
    t.dev->k->clip(t.dev, 2, squares, 1, loss, 1, norm, scale);
    assert_near(*values(norm), 5);
    assert_near(*values(scale), 0.2);
    t.dev->k->clip(t.dev, 2, squares, 1, loss, 0, norm, scale);
    assert_near(*values(scale), 1);
    t.dev->k->clip(t.dev, 2, squares, 1, loss, 6, norm, scale);
    assert_near(*values(scale), 1);
    *(double *)loss.data = INFINITY;
    t.dev->k->clip(t.dev, 2, squares, 1, loss, 1, norm, scale);
    assert_near(*values(norm), 5);
    assert_true(isnan(*values(scale)));
    *(double *)squares.data = INFINITY;
    t.dev->k->clip(t.dev, 2, squares, 0, (mu_mat){ 0 }, 1, norm, scale);
    assert_true(isnan(*values(scale)));
}

/* Two segments of two tokens, one place for each expert in each; expert 1 stands first, then 2, then 0. */
static void test_plan(void **state) {
    (void)state;
    mu_mat ids = INTS(4, 2, 0, 1, 0, 2, 1, 0, 1, 2), order = INTS(1, 3, 2, 0, 1);
    mu_mat offsets = new_longs(&t, "offsets", 1, 4), token = new_ints(&t, "token", 1, 8),
           row = new_ints(&t, "row", 4, 2);
    t.dev->k->plan(t.dev, 4, 3, 2, 2, 1, ids, order, offsets, token, row);
    ASSERT_WHOLE(offsets, 4, 0, 2, 4, 6);
    ASSERT_WHOLE(token, 6, 0, 2, 1, 3, 0, 2);
    ASSERT_WHOLE(row, 8, 4, 0, -1, 2, 1, 5, -1, 3);
    t.dev->k->plan(t.dev, 4, 3, 2, 2, 0, ids, order, offsets, token, row);          /* no capacity */
    ASSERT_WHOLE(offsets, 4, 0, 3, 5, 8);
    ASSERT_WHOLE(token, 8, 0, 2, 3, 1, 3, 0, 1, 2);
    ASSERT_WHOLE(row, 8, 5, 0, 6, 3, 1, 7, 2, 4);
    mu_mat counts = new_longs(&t, "counts", 2, 3);
    t.dev->k->count_experts(t.dev, 4, 3, 2, 2, ids, counts);
    ASSERT_WHOLE(counts, 6, 2, 1, 1, 1, 2, 1);
    mu_mat total = new_longs(&t, "total", 1, 3), by_group = LONGS(3, 2, 10, 0, 0, 0, 0, 5), group = INTS(1, 2, 1, 0);
    t.dev->k->sum_counts(t.dev, 2, 3, 2, counts, group, total, by_group);
    ASSERT_WHOLE(total, 3, 3, 3, 2);
    ASSERT_WHOLE(by_group, 6, 11, 2, 2, 1, 1, 6);
    mu_mat lost = LONGS(1, 3, 0, 0, 100), lost_of = LONGS(1, 2, 0, 0);
    t.dev->k->sum_dropped(t.dev, 2, 3, 2, 1, counts, group, lost, lost_of);
    ASSERT_WHOLE(lost, 3, 1, 1, 100);
    ASSERT_WHOLE(lost_of, 2, 1, 1);
    mu_mat gates = REALS(4, 2, 0.75, 0.25, 0.5, 0.5, 1, NAN, 0.5, 0.125), mass = LONGS(1, 3, 0, 0, 0), pairs = INTS(1, 3, 0, 0, 7);
    t.dev->k->count_routes(t.dev, 4, 3, 2, 16, ids, gates, mass, pairs);
    ASSERT_WHOLE(mass, 3, 20, 28, 10);
    ASSERT_WHOLE(pairs, 3, 2, 1, 8);
    mu_mat coef = new_matrix(&t, "coef", 2, 3);
    t.dev->k->balance_coef(t.dev, 2, 3, 0.5, counts, NOTHING, coef);
    ASSERT_REALS(coef, 6, 1, 0.5, 0.5, 0.5, 1, 0.5);
    mu_mat exempt = INTS(1, 3, 0, 1, 0);                                    /* 4 of 3 counts, 2 of 3 experts; 4 of 2 */
    t.dev->k->balance_coef(t.dev, 2, 3, 0.5, counts, exempt, coef);
    ASSERT_REALS(coef, 6, 8.0 / 9, -1, 4.0 / 9, 2.0 / 3, -1, 2.0 / 3);
    mu_mat idle = LONGS(1, 3, 0, 4, 0);
    t.dev->k->balance_coef(t.dev, 1, 3, 0.5, idle, exempt, coef);
    ASSERT_REALS(coef, 3, 0, -1, 0);
}

/* Entropies ln 2 and ln 4 (scores that do not add up to 1 are divided by their sum); top margins ln 3 - and of sigmoids the logits';
 * boundary margins with a bias that makes the second score the best. */
static void test_route_margins(void **state) {
    (void)state;
    mu_mat scores = REALS(2, 4, 0, 0.5, 0.5, 0, 0.125, 0.125, 0.125, 0.125), ids = INTS(2, 2, 1, 2, 0, 1), sums = LONGS(1, 3, 0, 0, 0);
    t.dev->k->route_margins(t.dev, 2, 4, 2, false, 0x1p20, scores, NOTHING, ids, sums);
    ASSERT_WHOLE(sums, 3, 2180452, 0, 0x1p19);                          /* 3 ln 2 */
    mu_mat two = REALS(1, 2, 0.75, 0.25), bias = REALS(1, 2, 0, 1), second = INTS(1, 1, 1), of_softmax = LONGS(1, 3, 0, 0, 0), of_sigmoid = LONGS(1, 3, 0, 0, 0);
    t.dev->k->route_margins(t.dev, 1, 2, 1, false, 0x1p20, two, bias, second, of_softmax);
    ASSERT_WHOLE(of_softmax, 3, 589651, 1151978, 0x1p19);               /* 0.5623, ln 3, 1.25 - 0.75 */
    t.dev->k->route_margins(t.dev, 1, 2, 1, true, 0x1p20, two, bias, second, of_sigmoid);
    ASSERT_WHOLE(of_sigmoid, 3, 589651, 2303957, 0x1p19);               /* 2 ln 3 */
    mu_mat one = REALS(1, 1, 1), only = INTS(1, 1, 0), none = LONGS(1, 3, 0, 0, 0);
    t.dev->k->route_margins(t.dev, 1, 1, 1, false, 0x1p20, one, NOTHING, only, none);
    t.dev->k->route_margins(t.dev, 0, 1, 1, false, 0x1p20, one, NOTHING, only, none);
    ASSERT_WHOLE(none, 3, 0, 0, 0);
}

/* Cutoffs 0.5 and, with a bias that makes the third the best of the others, 1.25; bins of 0.5 from -0.5 on. */
static void test_count_cutoffs(void **state) {
    (void)state;
    mu_mat scores = REALS(2, 3, 1, 0.5, 0.25, 0.75, 0.25, 0), ids = INTS(2, 1, 0, 0), counts = INTS(3, 4, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0);
    t.dev->k->count_cutoffs(t.dev, 1, 3, 1, 4, -0.5, 0.5, scores, NOTHING, ids, counts);
    ASSERT_WHOLE(counts, 12, 1, 0, 0, 0, 10, 1, 0, 0, 0, 1, 0, 0);
    mu_mat bias = REALS(1, 3, 0, 0, 1.25), second = REALS(1, 3, 0.75, 0.25, 0);
    t.dev->k->count_cutoffs(t.dev, 1, 3, 1, 4, -0.5, 0.5, second, bias, ids, counts);      /* 0.5, 1, 1.25; the last two beyond the range */
    ASSERT_WHOLE(counts, 12, 1, 0, 1, 0, 10, 1, 0, 1, 0, 1, 0, 1);
    t.dev->k->count_cutoffs(t.dev, 1, 3, 3, 4, -0.5, 0.5, scores, bias, INTS(1, 3, 0, 1, 2), counts);
    ASSERT_WHOLE(counts, 12, 1, 0, 1, 0, 10, 1, 0, 1, 0, 1, 0, 1);
}

/* Norms 5, 0, 1.5; what is not finite is left out, and what is huge is limited to 2^39. */
static void test_sum_norms(void **state) {
    (void)state;
    mu_mat x = REALS(3, 3, 3, -4, 0, 0, 0, 0, 0, 0, 1.5), sum = LONGS(1, 1, 7);
    t.dev->k->sum_norms(t.dev, 3, 3, 16, x, sum);
    ASSERT_WHOLE(sum, 1, 7 + 80 + 24);
    mu_mat odd = REALS(3, 2, NAN, 1, INFINITY, 0, 2, 0), finite = LONGS(1, 1, 0);
    t.dev->k->sum_norms(t.dev, 3, 2, 1, odd, finite);
    ASSERT_WHOLE(finite, 1, 2);
    mu_mat huge = REALS(1, 2, 3e30, 4e30), most = LONGS(1, 1, 0);
    t.dev->k->sum_norms(t.dev, 1, 2, 1, huge, most);
    ASSERT_WHOLE(most, 1, 0x1p39);
}

/* Peer 0 sends 2 and 1 rows for the two experts, peer 1 sends 1 and 3. */
static void test_arrange(void **state) {
    (void)state;
    mu_mat counts = LONGS(2, 2, 2, 1, 1, 3), offsets = new_longs(&t, "offsets", 1, 3);
    mu_mat index = new_ints(&t, "index", 1, 7);
    t.dev->k->arrange(t.dev, 2, 2, counts, offsets, index);
    ASSERT_WHOLE(offsets, 3, 0, 3, 7);
    ASSERT_WHOLE(index, 7, 0, 1, 3, 2, 4, 5, 6);
}

static void test_gather_sum(void **state) {
    (void)state;
    mu_mat index = INTS(3, 2, 1, 0, -1, 2, -1, -1), rows = REALS(3, 1, 3, 4, 5), y = REALS(3, 1, 1000, NAN, NAN);
    t.dev->k->gather_sum(t.dev, 3, 2, 1, index, rows, false, y);
    ASSERT_REALS(y, 3, 7, 5, 0);
    t.dev->k->gather_sum(t.dev, 3, 2, 1, index, rows, true, y);
    ASSERT_REALS(y, 3, 14, 10, 0);
    mu_mat to = REALS(3, 2, 1, 2, 3, 4, 5, 6), x = REALS(3, 2, 10, 20, 30, 40, 50, 60);
    t.dev->k->scatter(t.dev, 3, 2, INTS(1, 3, 2, -1, 0), x, to);
    ASSERT_REALS(to, 6, 50, 60, 3, 4, 10, 20);
}

static void test_balance(void **state) {
    (void)state;
    mu_mat scores = REALS(2, 2, 0.25, 0.75, 0.5, 1.5), coef = REALS(2, 2, 1, 2, 10, 20),
           out = double_of(&t, "out", NAN);
    mu_mat lse = REALS(1, 2, 3, -1);
    t.dev->k->balance_fwd(t.dev, 2, 2, 1, false, scores, coef, out);
    assert_near(*values(out), 1.75 + 35);
    t.dev->k->balance_fwd(t.dev, 2, 2, 1, true, scores, coef, out);
    assert_near(*values(out), 1.75 + 17.5);
    t.dev->k->balance_fwd(t.dev, 2, 2, 2, true, scores, coef, out);         /* both tokens in one segment */
    assert_near(*values(out), 3.5);
    mu_mat kept = REALS(2, 2, 1, -1, -1, 20), dscores = REALS(2, 2, 0, 0, 0, 0), one = double_of(&t, "dout", 1);
    t.dev->k->balance_fwd(t.dev, 2, 2, 1, false, scores, kept, out);
    assert_near(*values(out), 0.25 + 30);
    t.dev->k->balance_fwd(t.dev, 2, 2, 1, true, scores, kept, out);         /* the only one left has the whole share */
    assert_near(*values(out), 1 + 20);
    t.dev->k->balance_bwd(t.dev, 2, 2, 1, false, scores, kept, one, dscores);
    ASSERT_REALS(dscores, 4, 1, 0, 0, 20);
    mu_mat none = REALS(2, 2, -1, -1, -1, -1);
    t.dev->k->balance_fwd(t.dev, 2, 2, 1, true, scores, none, out);
    assert_near(*values(out), 0);
    t.dev->k->zloss_fwd(t.dev, 2, 0.5, lse, out);
    assert_near(*values(out), 5);
}

/* ln 2 for a logit of 0 whatever the label, hardly anything for the right side of a large one and the logit itself for the wrong one. */
static void test_gate(void **state) {
    (void)state;
    mu_mat logits = REALS(2, 3, 0, 800, 5, 0, -800, 5), coef = REALS(2, 3, 2, 1, 0, -1, 3, 0), out = double_of(&t, "out", NAN);
    mu_mat dlogits = REALS(2, 3, 0, 0, 7, 0, 0, 7), dout = double_of(&t, "dout", 2);
    t.dev->k->gate_fwd(t.dev, 2, 3, 1, logits, coef, out);
    assert_near(*values(out), 3 * log(2) + 2400);
    t.dev->k->gate_bwd(t.dev, 2, 3, 1, logits, coef, dout, dlogits);
    ASSERT_REALS(dlogits, 6, -2, 0, 7, 1, -6, 7);
}

/* ---------------------------------------------------------------- router */
static mu_mat ids, gates, scores, lse;

/* One token of four experts, two chosen. */
static void route_masked(mu_route_shape s, mu_mat logits, mu_mat bias, mu_mat mask) {
    scores = new_matrix(&t, "scores", 1, 4), lse = new_vector(&t, "lse", 1);
    ids = new_ints(&t, "ids", 1, 2), gates = new_matrix(&t, "gates", 1, 2);
    s.T = 1, s.E = 4, s.K = 2;
    t.dev->k->route_fwd(t.dev, &s, logits, bias, mask, scores, lse, ids, gates);
}

static void route(mu_route_shape s, mu_mat logits, mu_mat bias) { route_masked(s, logits, bias, NOTHING); }

static void test_route_choice(void **state) {
    (void)state;
    mu_route_shape softmax = { .scale = 3 }, sigmoid = { .sigmoid = true, .normalise = true, .scale = 2 };
    route(softmax, REALS(1, 4, log(1), log(2), log(2), log(3)), NOTHING);
    ASSERT_REALS(scores, 4, 0.125, 0.25, 0.25, 0.375);
    ASSERT_REALS(lse, 1, log(8));
    ASSERT_WHOLE(ids, 2, 3, 1);                                             /* the tie goes to expert 1 */
    ASSERT_REALS(gates, 2, 3 * 0.375, 3 * 0.25);
    route(sigmoid, REALS(1, 4, 0, log(3), 0, -log(3)), REALS(1, 4, 0, 0, 0.125, 0.75));
    ASSERT_REALS(scores, 4, 0.5, 0.75, 0.5, 0.25);
    ASSERT_WHOLE(ids, 2, 3, 1);                                             /* 0.25 + 0.75 beats 0.75 */
    ASSERT_REALS(gates, 2, 2 * 0.25, 2 * 0.75);                             /* the bias is not in the gates */
    route(sigmoid, REALS(1, 4, NAN, -5, NAN, NAN), NOTHING);
    ASSERT_WHOLE(ids, 2, 1, 0);                                             /* NaN comes last, still valid */
    route(softmax, REALS(1, 4, NAN, -5, 1, 2), NOTHING);
    ASSERT_WHOLE(ids, 2, 0, 1);
}

/* A mask changes the choice alone: scores and log-sum-exp are those over all experts. */
static void test_route_mask(void **state) {
    (void)state;
    mu_mat mask = INTS(1, 4, 1, 0, 1, 1), logits = REALS(1, 4, log(1), log(9), log(2), log(3)), bias = REALS(1, 4, 0, 99, 0, 0);
    route_masked((mu_route_shape){ .scale = 3, .mask_segment = 1 }, logits, bias, mask);
    ASSERT_REALS(scores, 4, 1.0 / 15, 0.6, 2.0 / 15, 0.2);
    ASSERT_REALS(lse, 1, log(15));
    ASSERT_WHOLE(ids, 2, 3, 2);
    ASSERT_REALS(gates, 2, 0.6, 0.4);
    mu_mat required = INTS(1, 4, MU_ROUTE_REQUIRED, MU_ROUTE_FORBIDDEN, MU_ROUTE_ALLOWED, MU_ROUTE_ALLOWED);
    route_masked((mu_route_shape){ .scale = 3, .mask_segment = 1 }, logits, bias, required);
    ASSERT_WHOLE(ids, 2, 0, 3);                                             /* the required one first, then the best allowed */
    ASSERT_REALS(gates, 2, 0.2, 0.6);
    route_masked((mu_route_shape){ .scale = 1, .sigmoid = true, .mask_segment = 1 }, REALS(1, 4, NAN, 5, 0, NAN), NOTHING, mask);
    ASSERT_WHOLE(ids, 2, 2, 0);                                             /* NaN comes before the masked expert */
}

static void test_route_force(void **state) {
    (void)state;
    mu_mat logits = REALS(1, 4, -9, 1, 0, 2);
    route((mu_route_shape){ .scale = 1, .force = MU_ROUTE_SKEW }, logits, NOTHING);
    ASSERT_WHOLE(ids, 2, 0, 3);
    route((mu_route_shape){ .scale = 1, .force = MU_ROUTE_BALANCED, .first_token = 5 }, logits, NOTHING);
    ASSERT_WHOLE(ids, 2, 2, 3);
    assert_near(values(gates)[0], values(scores)[2]);
}

/* sum dg g + sum ds s + dlse lse of one token, choice as it falls */
static double route_loss(const mu_route_shape *s, mu_mat logits, mu_mat dgates, mu_mat dscores, mu_mat dlse) {
    t.dev->k->route_fwd(t.dev, s, logits, NOTHING, NOTHING, scores, lse, ids, gates);
    double loss = *values(dlse) * *values(lse);
    for (int64_t k = 0; k < s->K; k++) loss += values(dgates)[k] * values(gates)[k];
    for (int64_t i = 0; i < s->E; i++) loss += values(dscores)[i] * values(scores)[i];
    return loss;
}

/* route_bwd against central differences of route_fwd, softmax and sigmoid, normalised and not. */
static void test_route_gradient(void **state) {
    (void)state;
    const double h = 1e-5;
    mu_mat logits = REALS(1, 4, 0.3, -1.2, 0.9, 0.1), dgates = REALS(1, 2, 0.7, -1.1),
           dlse = REALS(1, 1, 0.4);
    mu_mat dscores = REALS(1, 4, 0.5, -0.3, 0.2, 1.3);
    for (int kind = 0; kind < 4; kind++) {
        mu_route_shape s = {.T = 1, .E = 4, .K = 2, .sigmoid = kind & 1, .normalise = kind & 2, .scale = 1.5};
        mu_mat dlogits = REALS(1, 4, 1, 1, 1, 1);                           /* backward adds */
        route(s, logits, NOTHING);
        t.dev->k->route_bwd(t.dev, &s, scores, ids, dgates, dscores, dlse, dlogits);
        for (int i = 0; i < 4; i++) {
            double *x = (double *)logits.data + i, middle = *x;
            *x = middle + h;
            double above = route_loss(&s, logits, dgates, dscores, dlse);
            *x = middle - h;
            double below = route_loss(&s, logits, dgates, dscores, dlse);
            *x = middle;
            assert_true(fabs(values(dlogits)[i] - 1 - (above - below) / (2 * h)) < 1e-8);
        }
    }
}

/* A choice of one with normalised gates is always 1: nothing to learn from the gate. */
static void test_route_single_choice(void **state) {
    (void)state;
    mu_route_shape s = { .T = 1, .E = 4, .K = 1, .normalise = true, .scale = 1 };
    mu_mat logits = REALS(1, 4, 0.3, -1.2, 0.9, 0.1), dgates = REALS(1, 1, 5),
           dlogits = REALS(1, 4, 0, 0, 0, 0);
    route(s, logits, NOTHING);
    t.dev->k->route_fwd(t.dev, &s, logits, NOTHING, NOTHING, scores, lse, ids, gates);
    ASSERT_REALS(gates, 1, 1);
    t.dev->k->route_bwd(t.dev, &s, scores, ids, dgates, NOTHING, NOTHING, dlogits);
    ASSERT_REALS(dlogits, 4, 0, 0, 0, 0);
}

static void test_gemm(void **state) {
    (void)state;
    mu_mat a = REALS(2, 3, 1, 2, 3, 4, 5, 6), b = REALS(3, 2, 1, 0, 0, 1, 2, 2),
           c = REALS(2, 2, NAN, NAN, NAN, NAN);
    mu_mat at = REALS(3, 2, 1, 4, 2, 5, 3, 6), bt = REALS(2, 3, 1, 0, 2, 0, 1, 2);
    t.dev->k->gemm(t.dev, false, false, 2, 2, 3, a, b, 0, c);
    ASSERT_REALS(c, 4, 7, 8, 16, 17);
    t.dev->k->gemm(t.dev, true, true, 2, 2, 3, at, bt, 1, c);
    ASSERT_REALS(c, 4, 14, 16, 32, 34);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(gemm),    TEST(rmsnorm),      TEST(rope),        TEST(attention),      TEST(experts),
        TEST(xent),    TEST(slab_adamw),   TEST(slab_rests),  TEST(slab_pull),  TEST(clip),           TEST(plan),
        TEST(route_margins), TEST(count_cutoffs), TEST(sum_norms), TEST(arrange), TEST(gather_sum),
        TEST(balance), TEST(gate), TEST(route_choice), TEST(route_mask),  TEST(route_force), TEST(route_gradient), TEST(route_single_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
