/* cases.h - the one list of cases for every kernel; each device is tested with all of them.
 *
 * A function run_<kernel> makes the operands of a case from its parameters and calls the kernel; the table
 * at the end lists the parameters. Backward kernels get the results of the same device's forward kernels. */
#ifndef MUSTER_TESTS_KERNELS_CASES_H
#define MUSTER_TESTS_KERNELS_CASES_H
#include "harness.h"

/* ---------------------------------------------------------------- basic */
/* n, f64? : a vector of the device's type or of doubles */
static mu_mat any_vector(trial *t, const char *name, int64_t n, bool f64) {
    double *x = random_values(t, (uint32_t)t->n_operands, n);
    return operand_new(t, name, f64 ? MU_DTYPE_F64 : float_type(t), 1, n, x)->mat;
}

/* out: one double, exact to the last digits since sums are accumulated in double */
static mu_mat exact_double(trial *t, double value) {
    operand *o = operand_new(t, "out", MU_DTYPE_F64, 1, 1, constant_values(1, value));
    o->tolerance = 1e-10;
    return o->mat;
}

static void run_fill(trial *t, const int64_t *p) {
    mu_mat x = any_vector(t, "x", p[0] + 3, p[1]);
    t->dev->k->fill(t->dev, p[0], 0.5, x);          /* the last three values stay */
}

static void run_axpy(trial *t, const int64_t *p) {
    mu_mat x = any_vector(t, "x", p[0], p[1]), y = any_vector(t, "y", p[0], p[1]);
    t->dev->k->axpy(t->dev, p[0], -0.75, x, y);
}

static void run_add_squares(trial *t, const int64_t *p) {
    all_master(t);
    mu_mat x = vector(t, "x", p[0]), y = vector(t, "y", p[0]);
    t->dev->k->add_squares(t->dev, p[0], 0.375, x, y);
}

/* integers of up to 51 bits */
static mu_mat long_vector(trial *t, const char *name, int64_t n) {
    int64_t *x = mu_alloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (draw(t, INT32_MAX) - INT32_MAX / 2) * (1 << 20);
    mu_mat m = longs_of(t, name, 1, n, x);
    free(x);
    return m;
}

static mu_mat int_vector(trial *t, const char *name, int64_t n) {
    int64_t *x = mu_alloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = draw(t, 1 << 30);
    mu_mat m = ints_of(t, name, 1, n, x);
    free(x);
    return m;
}

/* n, 0: the device's type, 1: doubles, 2, 3: integers of 8 and 4 bytes */
static void run_add(trial *t, const int64_t *p) {
    static const char *const names[] = { "x", "y", "z" };
    mu_mat m[3];
    for (int i = 0; i < 3; i++)
        m[i] = p[1] == 3 ? int_vector(t, names[i], p[0]) : p[1] == 2 ? long_vector(t, names[i], p[0]) : any_vector(t, names[i], p[0], p[1]);
    t->dev->k->add(t->dev, p[0], m[0], m[1], m[2]);
}

/* n, with dy? */
static void run_clamp(trial *t, const int64_t *p) {
    mu_mat x = vector(t, "x", p[0]), none = { 0 }, dy = p[1] ? vector(t, "dy", p[0]) : none;
    t->dev->k->clamp(t->dev, p[0], 0.5, x, dy, p[1] ? vector(t, "y", p[0]) : new_vector(t, "y", p[0] + 3));
}

/* n, the types of x and y: 0 compute, 1 master */
static void run_copy(trial *t, const int64_t *p) {
    t->next_master = p[1];
    mu_mat x = vector(t, "x", p[0]);
    t->next_master = p[2];
    t->dev->k->copy(t->dev, p[0], x, new_vector(t, "y", p[0] + 3));
}

/* n, add? */
static void run_sum(trial *t, const int64_t *p) {
    mu_mat x = vector(t, "x", p[0]), out = exact_double(t, p[1] ? 100.5 : NAN);
    t->dev->k->sum(t->dev, p[0], 0.25, x, p[1], out);
}

static void run_sumsq(trial *t, const int64_t *p) {
    mu_mat x = vector(t, "x", p[0]), out = exact_double(t, p[1] ? 100.5 : NAN);
    t->dev->k->sumsq(t->dev, p[0], x, p[1], out);
}

/* ta, tb, m, n, k, beta, C master? Operands of a master product are those of a linear layer with master weights:
 * y = x w^T, dx = dy w, dw = dy^T x, where x and dx are compute. */
static void any_gemm(trial *t, const int64_t *p, bool master) {
    bool ta = p[0], tb = p[1];
    int64_t m = p[2], n = p[3], k = p[4];
    bool coarse = t->coarse;
    t->next_master = master && !tb;
    t->coarse = coarse && !t->next_master;
    mu_mat a = ta ? matrix(t, "a", k, m) : matrix(t, "a", m, k);
    t->pad *= 2;
    t->next_master = master && !ta;
    t->coarse = coarse && !t->next_master;
    mu_mat b = tb ? matrix(t, "b", n, k) : matrix(t, "b", k, n);
    t->pad *= 2;
    t->next_master = p[6] || (master && (ta || tb));
    t->coarse = coarse;
    mu_mat c = p[5] ? matrix(t, "c", m, n) : new_matrix(t, "c", m, n);
    if (master && c.dtype != MU_DTYPE_BF16) t->operands[t->n_operands - 1].tolerance = TOLERANCE;
    if (master) t->dev->k->gemm_master(t->dev, ta, tb, m, n, k, a, b, (double)p[5], c);
    else t->dev->k->gemm(t->dev, ta, tb, m, n, k, a, b, (double)p[5], c);
}

static void run_gemm(trial *t, const int64_t *p) { any_gemm(t, p, false); }

/* The remainder of x after subtracting its bf16 rounding, `times` times. */
static double left_of(double x, int times) {
    for (; times--;) x -= rounded_to_bf16(x);
    return x;
}

/* Rows (x, -x1, -x2) times (1, 1, 1)', or the other way round: the result is the last eight bits of x, which only a
 * product that uses all bits of its fp32 operands keeps. The ones are master and C compute, or the other way round. */
static void last_bits(trial *t, int64_t m, int64_t n, bool swapped, bool master_c) {
    enum { K = 3 };
    int64_t many = swapped ? n : m, other = swapped ? m : n;
    double *x = random_values(t, 1, many), *a = mu_alloc((size_t)(many * K), sizeof *a),
           *b = constant_values(other * K, 1);
    for (int64_t i = 0; i < many; i++) {
        double parts[K] = { x[i], -rounded_to_bf16(x[i]), -rounded_to_bf16(left_of(x[i], 1)) };
        for (int j = 0; j < K; j++) a[swapped ? j * many + i : i * K + j] = parts[j];
    }
    free(x);
    t->next_master = !(master_c && swapped);
    mu_mat first = reals_of(t, "a", m, K, swapped ? b : a);
    t->next_master = !master_c || swapped;
    mu_mat second = reals_of(t, "b", K, n, swapped ? a : b);
    t->next_master = master_c;
    mu_mat c = new_matrix(t, "c", m, n);
    t->operands[t->n_operands - 1].least = 1e-12;          /* only exact terms cancel */
    t->dev->k->gemm_master(t->dev, false, false, m, n, K, first, second, 0, c);
}

/* as gemm; then 1 or 2: the last bits of a, of b; 3 or 4: of fp32 values beside bf16 ones */
static void run_gemm_master(trial *t, const int64_t *p) {
    bool coarse = t->coarse;
    t->coarse = coarse && !p[7];
    if (p[7]) last_bits(t, p[2], p[3], p[7] % 2 == 0, p[7] > 2);
    else any_gemm(t, p, true);
    t->coarse = coarse;
}

/* n random integers below `below`; with `same` all are below - 1. */
static mu_mat random_ints(trial *t, const char *name, int64_t n, int64_t below, bool same) {
    int64_t *x = mu_alloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = same ? below - 1 : draw(t, below);
    mu_mat m = ints_of(t, name, 1, n, x);
    free(x);
    return m;
}

/* T, D, V, same? */
static void run_embed_fwd(trial *t, const int64_t *p) {
    mu_mat ids = random_ints(t, "ids", p[0], p[2], p[3]), w = matrix(t, "w", p[2], p[1]);
    mu_mat y = new_matrix(t, "y", p[0], p[1]);
    t->dev->k->embed_fwd(t->dev, p[0], p[1], ids, w, y);
}

static void run_embed_bwd(trial *t, const int64_t *p) {
    mu_mat ids = random_ints(t, "ids", p[0], p[2], p[3]), dy = matrix(t, "dy", p[0], p[1]);
    mu_mat dw = matrix(as_master(t), "dw", p[2], p[1]);
    t->dev->k->embed_bwd(t->dev, p[0], p[1], p[2], ids, dy, dw);
}

/* R, D, rows of x */
static void run_gather(trial *t, const int64_t *p) {
    mu_mat index = random_ints(t, "index", p[0], p[2], false), x = matrix(t, "x", p[2], p[1]);
    mu_mat y = new_matrix(t, "y", p[0], p[1]);
    t->dev->k->gather(t->dev, p[0], p[1], index, x, y);
}

/* index[T,K]: each row at most once, about one in five dropped; T*K rows exist. */
static mu_mat slots(trial *t, int64_t T, int64_t K) {
    int64_t *index = draw_permutation(t, T * K);
    for (int64_t i = 0; i < T * K; i++)
        if (draw(t, 5) == 0) index[i] = -1;
    mu_mat m = ints_of(t, "index", T, K, index);
    free(index);
    return m;
}

/* T, K, D, add?, master? */
static void run_gather_sum(trial *t, const int64_t *p) {
    int64_t T = p[0], K = p[1], D = p[2];
    mu_mat index = slots(t, T, K);
    t->master = p[4];
    mu_mat rows = matrix(t, "rows", T * K, D), y = p[3] ? matrix(t, "y", T, D) : new_matrix(t, "y", T, D);
    t->dev->k->gather_sum(t->dev, T, K, D, index, rows, p[3], y);
}

/* R, D, master? */
static void run_scatter(trial *t, const int64_t *p) {
    t->master = p[2];
    mu_mat index = slots(t, 1, p[0]), x = matrix(t, "x", p[0], p[1]), y = matrix(t, "y", p[0], p[1]);
    t->dev->k->scatter(t->dev, p[0], p[1], index, x, y);
}

/* ---------------------------------------------------------------- norm, rope, attention */
/* rows, D, zero row? */
static mu_mat norm_input(trial *t, int64_t rows, int64_t D, bool zero_row) {
    double *x = random_values(t, 77, rows * D);
    for (int64_t i = 0; i < D && zero_row && rows; i++) x[(rows - 1) * D + i] = 0;
    return reals_of(t, "x", rows, D, x);
}

static void run_rmsnorm_fwd(trial *t, const int64_t *p) {
    mu_mat x = norm_input(t, p[0], p[1], p[2]), w = vector(as_master(t), "w", p[1]);
    mu_mat y = new_matrix(t, "y", p[0], p[1]), rstd = new_vector(as_master(t), "rstd", p[0]);
    t->dev->k->rmsnorm_fwd(t->dev, p[0], p[1], 1e-5, x, w, y, rstd);
}

/* rows, D, zero row?, dx?, dw? */
static void run_rmsnorm_bwd(trial *t, const int64_t *p) {
    mu_mat x = norm_input(t, p[0], p[1], p[2]), w = vector(as_master(t), "w", p[1]);
    mu_mat y = new_matrix(t, "y", p[0], p[1]), rstd = new_vector(as_master(t), "rstd", p[0]);
    mu_mat dy = matrix(t, "dy", p[0], p[1]);
    mu_mat dx = p[3] ? matrix(t, "dx", p[0], p[1]) : NOTHING, dw = p[4] ? vector(as_master(t), "dw", p[1]) : NOTHING;
    t->dev->k->rmsnorm_fwd(t->dev, p[0], p[1], 1e-5, x, w, y, rstd);
    t->dev->k->rmsnorm_bwd(t->dev, p[0], p[1], x, w, rstd, dy, dx, dw);
}

/* B, S, H, d, sign, add? */
static void run_rope(trial *t, const int64_t *p) {
    int64_t S = p[1], H = p[2], d = p[3], T = p[0] * S, half = d / 2;
    double *c = mu_alloc((size_t)(S * half), sizeof *c), *s = mu_alloc((size_t)(S * half), sizeof *s);
    for (int64_t i = 0; i < S * half; i++) {
        double angle = (double)(i / half) * pow(10000, -2.0 * (double)(i % half) / (double)d);
        c[i] = (float)cos(angle), s[i] = (float)sin(angle);
    }
    mu_mat cosines = reals_of(as_master(t), "cos", S, half, c), sines = reals_of(as_master(t), "sin", S, half, s);
    mu_mat x = matrix(t, "x", T, H * d), y = p[5] ? matrix(t, "y", T, H * d) : new_matrix(t, "y", T, H * d);
    t->dev->k->rope(t->dev, T, S, H, d, (int)p[4], cosines, sines, x, p[5], y);
}

/* B, S, H, G, d, how many times the usual scale, past */
static mu_attention_shape attention_shape(const int64_t *p) {
    return (mu_attention_shape){ p[0], p[1], p[2], p[3], p[4], (double)p[5] / sqrt((double)p[4]), p[6] };
}

/* A logarithm: its error is absolute. It is of sums in the master type over operands that bf16 holds exactly. */
static mu_mat new_lse(trial *t, int64_t H, int64_t T) {
    mu_mat lse = new_matrix(as_master(t), "lse", H, T);
    operand *o = &t->operands[t->n_operands - 1];
    o->least = 1;
    if (t->bf16) o->tolerance = TOLERANCE;
    return lse;
}

static void run_attention_fwd(trial *t, const int64_t *p) {
    mu_attention_shape s = attention_shape(p);
    int64_t T = s.B * s.S, keys = s.B * (s.past + s.S);
    mu_mat q = matrix(t, "q", T, s.H * s.d), k = matrix(t, "k", keys, s.G * s.d),
           v = matrix(t, "v", keys, s.G * s.d);
    mu_mat y = new_matrix(t, "y", T, s.H * s.d);
    mu_mat lse = new_lse(t, s.H, T);
    t->dev->k->attention_fwd(t->dev, &s, q, k, v, y, lse);
}

static void run_attention_bwd(trial *t, const int64_t *p) {
    mu_attention_shape s = attention_shape(p);
    int64_t T = s.B * s.S, wide = s.H * s.d, narrow = s.G * s.d;
    mu_mat q = matrix(t, "q", T, wide), k = matrix(t, "k", T, narrow), v = matrix(t, "v", T, narrow);
    mu_mat y = new_matrix(t, "y", T, wide), dy = matrix(t, "dy", T, wide), dq = matrix(t, "dq", T, wide);
    mu_mat dk = matrix(t, "dk", T, narrow), dv = matrix(t, "dv", T, narrow);
    mu_mat lse = new_lse(t, s.H, T);
    t->dev->k->attention_fwd(t->dev, &s, q, k, v, y, lse);
    t->dev->k->attention_bwd(t->dev, &s, q, k, v, y, lse, dy, dq, dk, dv);
}

/* ---------------------------------------------------------------- experts */
enum { EVEN, EMPTY_ONES, ONE_TAKES_ALL, SPARE_ROWS };

/* offsets of R rows over `experts` groups; SPARE_ROWS: the first and the last rows belong to no group */
static mu_mat group_offsets(trial *t, int64_t R, int64_t experts, int64_t spread) {
    int64_t *offsets = mu_alloc((size_t)experts + 1, sizeof *offsets),
            spare = spread == SPARE_ROWS ? R / 8 : 0;
    offsets[0] = spare;
    for (int64_t r = 2 * spare; r < R; r++) {
        int64_t i = draw(t, experts);
        if (spread == EMPTY_ONES) i = i / 2 * 2;
        if (spread == ONE_TAKES_ALL) i = experts - 1;
        offsets[i + 1]++;
    }
    for (int64_t i = 0; i < experts; i++) offsets[i + 1] += offsets[i];
    mu_mat m = longs_of(t, "offsets", 1, experts + 1, offsets);
    free(offsets);
    return m;
}

/* Bits of the sixth parameter. TO_TOKENS: several rows read one row of dy, and nothing gathered is kept. */
enum { WITH_IN = 1, WITH_OUT = 2, WITH_H = 4, WITH_DX = 8, WITH_DGATE = 16, WITH_DUP = 32, WITH_DDOWN = 64,
       WITH_ALL = 127, FRESH = 128, WITH_WEIGHTS = 256, WITH_DWEIGHTS = 512, TO_TOKENS = 1024, ANY_ORDER = 2048 };

typedef struct { mu_experts_shape s; mu_mat x, in, offsets, gate, up, down, hg, hu, out, weights, y; } expert_operands;

/* Weights about 1/sqrt(width) keep activations of order 1. */
static mu_mat weights(trial *t, const char *name, int64_t n, int64_t width) {
    double *x = random_values(t, (uint32_t)t->n_operands, n);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(x[i] / sqrt((double)width));
    return operand_new(t, name, float_type(t), 1, n, x)->mat;
}

/* R, experts, D, F, spread, bits */
static expert_operands expert_case(trial *t, const int64_t *p, int64_t bits) {
    int64_t R = p[0], n = p[1], D = p[2], F = p[3], tokens = bits & WITH_IN ? (R + 1) / 2 : R;
    expert_operands o = { .s = { R, n, D, F, .fresh = bits & FRESH, .batch_invariant = !(bits & ANY_ORDER) }, .x = matrix(t, "x", tokens, D) };
    o.in = bits & WITH_IN ? random_ints(t, "in", R, tokens ? tokens : 1, false) : NOTHING;
    o.offsets = group_offsets(t, R, n, p[4]);
    o.gate = weights(t, "gate", n * F * D, D);
    o.up = weights(t, "up", n * F * D, D);
    o.down = weights(t, "down", n * D * F, F);
    o.hg = bits & WITH_H ? new_matrix(t, "hg", R, F) : NOTHING;
    o.hu = bits & WITH_H ? new_matrix(t, "hu", R, F) : NOTHING;
    if (bits & WITH_OUT) {
        int64_t *order = draw_permutation(t, R);
        o.out = ints_of(t, "out", 1, R, order);
        free(order);
    }
    o.weights = bits & WITH_WEIGHTS ? vector(as_master(t), "weights", R) : NOTHING;
    o.y = new_matrix(t, "y", R, D);
    return o;
}

static void experts_forward(trial *t, const expert_operands *o) {
    t->dev->k->experts_fwd(t->dev, &o->s, o->x, o->in, o->offsets, o->gate, o->up, o->down, o->hg, o->hu,
                           o->out, o->weights, o->y);
}

static void run_experts_fwd(trial *t, const int64_t *p) {
    expert_operands o = expert_case(t, p, p[5]);
    experts_forward(t, &o);
}

static void run_experts_bwd(trial *t, const int64_t *p) {
    int64_t R = p[0], n = p[1], D = p[2], F = p[3], bits = p[5];
    expert_operands o = expert_case(t, p, bits | WITH_H);
    mu_mat dy = matrix(t, "dy", R, D), act = new_matrix(t, "act", R, F);
    mu_mat xg = bits & WITH_IN && !(bits & TO_TOKENS) ? new_matrix(t, "xg", R, D) : NOTHING;
    mu_mat dyg = bits & WITH_OUT ? new_matrix(t, "dyg", R, D) : NOTHING;
    mu_mat out = bits & TO_TOKENS ? random_ints(t, "token", R, R ? R : 1, false) : o.out;
    mu_mat dweights = bits & WITH_DWEIGHTS ? new_vector(as_master(t), "dweights", R) : NOTHING;
    mu_mat dx = bits & WITH_DX ? new_matrix(t, "dx", R, D) : NOTHING;
    mu_mat (*gradient)(trial *, const char *, int64_t) = bits & FRESH ? new_vector : vector;
    mu_mat dgate = bits & WITH_DGATE ? gradient(as_master(t), "dgate", n * F * D) : NOTHING;
    mu_mat dup = bits & WITH_DUP ? gradient(as_master(t), "dup", n * F * D) : NOTHING;
    mu_mat ddown = bits & WITH_DDOWN ? gradient(as_master(t), "ddown", n * D * F) : NOTHING;
    experts_forward(t, &o);
    t->dev->k->experts_bwd(t->dev, &o.s, o.x, o.in, o.offsets, o.gate, o.up, o.down, o.hg, o.hu, out, o.weights,
                           dy, act, xg, dyg, dx, dweights, dgate, dup, ddown);
}

/* ---------------------------------------------------------------- exact sums */
/* The words of `groups` sums of n values, `ld` apart: zero, or left by an earlier step, including the NaN mark. */
static mu_mat exact_words(trial *t, int64_t groups, int64_t n, bool used) {
    int64_t ld = mu_exact_sums_words(n) + t->pad, *words = mu_alloc((size_t)(groups * ld), sizeof *words);
    for (int64_t i = 0; i < groups * ld && used; i++)
        if (i % ld < 2 * n) words[i] = (draw(t, 1 << 30) - (1 << 29)) * (1 << (i % ld < n ? 18 : 15));
    mu_mat m = longs_of(t, "sums", 1, groups * ld, words);
    m.ld = ld;
    free(words);
    return m;
}

/* n, sums used before?, exponent: values around 2^exponent */
static void run_exact_add(trial *t, const int64_t *p) {
    double *x = random_values(t, 7, p[0]);
    for (int64_t i = 0; i < p[0]; i++) x[i] = ldexp(x[i], (int)p[2]);
    mu_mat values = reals_of(t, "x", 1, p[0], x), sums = exact_words(t, 1, p[0], p[1]);
    for (int i = 0; i < 3; i++) t->dev->k->exact_add(t->dev, p[0], values, sums);
}

/* n, marked? */
static void run_exact_round(trial *t, const int64_t *p) {
    mu_mat values = vector(t, "x", p[0]), sums = exact_words(t, 1, p[0], true), y = new_vector(t, "y", p[0]);
    t->dev->k->exact_add(t->dev, p[0], values, sums);
    if (p[1]) mu_device_write(t->dev, (int64_t *)sums.data + 2 * p[0], &(int64_t){ 3 }, sizeof(int64_t));
    t->dev->k->exact_round(t->dev, p[0], sums, y);
}

/* T, D, V, same? */
static void run_exact_embed(trial *t, const int64_t *p) {
    mu_mat ids = random_ints(t, "ids", p[0], p[2], p[3]), dy = matrix(t, "dy", p[0], p[1]);
    t->dev->k->exact_embed(t->dev, p[0], p[1], p[2], ids, dy, exact_words(t, 1, p[1] * p[2], true));
}

/* R, groups, m, n, spread, units: a group's rows are split into reduction units anywhere, some of them empty. */
static void run_exact_product(trial *t, const int64_t *p) {
    int64_t R = p[0], groups = p[1], m = p[2], n = p[3], units = p[5];
    mu_mat a = matrix(t, "a", R, m), b = matrix(t, "b", R, n);
    mu_mat bounds = group_offsets(t, R, groups * units, p[4]), sums = exact_words(t, groups, m * n, true);
    t->operands[t->n_operands - 1].scratch = true; /* products in double differ; their values are compared */
    t->dev->k->exact_product(t->dev, true, groups, units, m, n, bounds, a, b, sums);
    for (int64_t i = 0; i < groups; i++, sums.data = (int64_t *)sums.data + sums.ld)
        t->dev->k->exact_round(t->dev, m * n, sums, new_vector(t, "c", m * n));
}

/* ---------------------------------------------------------------- router */
enum { SIGMOID = 1, NORMALISE = 2, BIAS = 4, TIES = 8, NO_DGATES = 16, NO_DSCORES = 32, NO_DLSE = 64,
       NANS = 128, MASK = 256, MASKS = 512 };

typedef struct { mu_route_shape s; mu_mat logits, bias, mask, scores, lse, ids, gates; } route_operands;

/* TIES: few different logits, so that equal scores are common and must be equal wherever they stand.
 * NANS: some logits, and all of the first token, are not finite. */
static mu_mat route_logits(trial *t, int64_t T, int64_t E, int64_t bits) {
    double *x = random_values(t, (uint32_t)t->n_operands, T * E);
    for (int64_t i = 0; i < T * E; i++) {
        if (bits & TIES) x[i] = floor(2 * x[i]) / 2;
        if (bits & NANS && (i < E || draw(t, 4) == 0)) x[i] = i % 3 ? NAN : -INFINITY;
    }
    return reals_of(t, "logits", T, E, x);
}

/* Two of three experts may be chosen, or as many as are needed; in row r up to r % (K + 1) experts must be. */
static mu_mat route_mask(trial *t, int64_t rows, int64_t E, int64_t K) {
    int64_t *x = mu_alloc((size_t)(rows * E), sizeof *x);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0, required = r % (K + 1); i < E; i++) {
            bool may = (i + r) % 3 != 1 || E - i <= K, must = may && required > 0 && (7 * i + r) % 5 < 2;
            x[r * E + i] = must ? MU_ROUTE_REQUIRED : may ? MU_ROUTE_ALLOWED : MU_ROUTE_FORBIDDEN;
            required -= must;
        }
    mu_mat mask = ints_of(t, "mask", rows, E, x);
    free(x);
    return mask;
}

/* T, E, K, bits, force */
static route_operands route_case(trial *t, const int64_t *p) {
    all_master(t);
    int64_t T = p[0], E = p[1], K = p[2], bits = p[3];
    int64_t segment = bits & MASK ? T + 1 : T % 3 ? 1 : 3; /* MASK: one row; MASKS: several */
    mu_route_shape s = { T, E, K, bits & SIGMOID, bits & NORMALISE, 2.5, (mu_route_force)p[4], 1000003, segment };
    route_operands o = { .s = s, .logits = route_logits(t, T, E, bits) };
    o.bias = bits & BIAS ? vector(t, "bias", E) : NOTHING;
    o.mask = bits & (MASK | MASKS) ? route_mask(t, (T + segment - 1) / segment, E, K) : NOTHING;
    o.scores = new_matrix(t, "scores", T, E);
    o.lse = new_vector(t, "lse", T);
    o.ids = new_ints(t, "ids", T, K);
    o.gates = new_matrix(t, "gates", T, K);
    t->dev->k->route_fwd(t->dev, &o.s, o.logits, o.bias, o.mask, o.scores, o.lse, o.ids, o.gates);
    return o;
}

static void run_route_fwd(trial *t, const int64_t *p) { route_case(t, p); }

static void run_route_bwd(trial *t, const int64_t *p) {
    int64_t T = p[0], E = p[1], K = p[2], bits = p[3];
    route_operands o = route_case(t, p);
    mu_mat dgates = bits & NO_DGATES ? NOTHING : matrix(t, "dgates", T, K);
    mu_mat dscores = bits & NO_DSCORES ? NOTHING : matrix(t, "dscores", T, E);
    mu_mat dlse = bits & NO_DLSE ? NOTHING : vector(t, "dlse", T), dlogits = matrix(t, "dlogits", T, E);
    t->dev->k->route_bwd(t->dev, &o.s, o.scores, o.ids, dgates, dscores, dlse, dlogits);
}

/* ids[T,K], K different experts per token; ONE_TAKES_ALL: always the last ones. */
static mu_mat chosen_experts(trial *t, int64_t T, int64_t E, int64_t K, int64_t spread) {
    int64_t *ids = mu_alloc((size_t)(T * K), sizeof *ids);
    for (int64_t i = 0; i < T; i++) {
        int64_t *order = draw_permutation(t, E);
        for (int64_t k = 0; k < K; k++) ids[i * K + k] = spread == ONE_TAKES_ALL ? E - 1 - k : order[k];
        free(order);
    }
    mu_mat m = ints_of(t, "ids", T, K, ids);
    free(ids);
    return m;
}

/* T, E, K, segment, spread */
static void run_count_experts(trial *t, const int64_t *p) {
    mu_mat ids = chosen_experts(t, p[0], p[1], p[2], p[4]);
    mu_mat counts = new_longs(t, "counts", p[0] / p[3], p[1]);
    t->dev->k->count_experts(t->dev, p[0], p[1], p[2], p[3], ids, counts);
}

/* S, E, G (0: no groups), no total? */
static void run_sum_counts(trial *t, const int64_t *p) {
    int64_t *n = mu_alloc((size_t)(p[0] * p[1]), sizeof *n), *g = mu_alloc((size_t)p[0], sizeof *g);
    for (int64_t i = 0; i < p[0] * p[1]; i++) n[i] = draw(t, 4097) << (i % 40);
    for (int64_t i = 0; i < p[0] && p[2]; i++) g[i] = draw(t, p[2]);
    mu_mat counts = longs_of(t, "counts", p[0], p[1], n), group = p[2] ? ints_of(t, "group", 1, p[0], g) : NOTHING;
    mu_mat total = p[3] ? NOTHING : new_longs(t, "total", 1, p[1]);
    mu_mat by_group = p[2] ? new_longs(t, "by_group", p[1], p[2]) : NOTHING;
    free(n);
    free(g);
    t->dev->k->sum_counts(t->dev, p[0], p[1], p[2], counts, group, total, by_group);
}

/* S, E, G, capacity */
static void run_sum_dropped(trial *t, const int64_t *p) {
    int64_t *n = mu_alloc((size_t)(p[0] * p[1]), sizeof *n), *g = mu_alloc((size_t)p[0], sizeof *g);
    for (int64_t i = 0; i < p[0] * p[1]; i++) n[i] = draw(t, 17);
    for (int64_t i = 0; i < p[0]; i++) g[i] = draw(t, p[2]);
    mu_mat counts = longs_of(t, "counts", p[0], p[1], n), group = ints_of(t, "group", 1, p[0], g);
    free(n);
    free(g);
    mu_mat by_expert = new_longs(t, "by_expert", 1, p[1]), by_group = new_longs(t, "by_group", 1, p[2]);
    t->dev->k->sum_dropped(t->dev, p[0], p[1], p[2], p[3], counts, group, by_expert, by_group);
}

/* T, E, K, spread, bits */
static void run_count_routes(trial *t, const int64_t *p) {
    all_master(t);
    int64_t T = p[0], E = p[1], K = p[2];
    mu_mat ids = chosen_experts(t, T, E, K, p[3]);
    double *x = random_values(t, (uint32_t)t->n_operands, T * K);
    for (int64_t i = 0; i < T * K && p[4] & NANS; i++) x[i] = i % 5 == 1 ? NAN : i % 5 == 3 ? INFINITY : x[i];
    mu_mat gates = reals_of(t, "gates", T, K, x);
    mu_mat mass = new_longs(t, "mass", 1, E), pairs = p[4] & TIES ? NOTHING : new_ints(t, "pairs", 1, E * (E - 1) / 2);
    t->dev->k->count_routes(t->dev, T, E, K, 0x1p32, ids, gates, mass, pairs);
}

static mu_mat scores_of_router(trial *t, int64_t T, int64_t E, int64_t bits) {
    double *x = random_values(t, (uint32_t)t->n_operands, T * E);
    for (int64_t i = 0; i < T * E; i++) {
        x[i] = (float)(fabs(x[i]) / 2);
        if (bits & TIES) x[i] = floor(2 * x[i]);            /* 0 and 1 */
        if (bits & NANS && i < E) x[i] = NAN;
    }
    return reals_of(t, "scores", T, E, x);
}

/* T, E, K, bits, spread */
static void run_route_margins(trial *t, const int64_t *p) {
    all_master(t);
    int64_t T = p[0], E = p[1], K = p[2], bits = p[3];
    mu_mat scores = scores_of_router(t, T, E, bits), bias = bits & BIAS ? vector(t, "bias", E) : NOTHING;
    mu_mat ids = chosen_experts(t, T, E, K, p[4]), sums = new_longs(t, "sums", 1, 3);
    t->dev->k->route_margins(t->dev, T, E, K, bits & SIGMOID, 0x1p20, scores, bias, ids, sums);
}

/* T, E, K, bits, bins */
static void run_count_cutoffs(trial *t, const int64_t *p) {
    all_master(t);
    int64_t T = p[0], E = p[1], K = p[2], bits = p[3];
    mu_mat scores = scores_of_router(t, T, E, bits), bias = bits & BIAS ? vector(t, "bias", E) : NOTHING;
    mu_mat ids = chosen_experts(t, T, E, K, 1), counts = new_ints(t, "counts", E, p[4]);
    t->dev->k->count_cutoffs(t->dev, T, E, K, p[4], -1.25, 3.0 / (double)p[4], scores, bias, ids, counts);
}

/* T, E, bits, log10 of the unit */
static void run_sum_norms(trial *t, const int64_t *p) {
    all_master(t);
    int64_t T = p[0], E = p[1];
    double *x = random_values(t, (uint32_t)t->n_operands, T * E);
    for (int64_t i = 0; i < T * E; i++) {
        x[i] = (float)x[i];
        if (p[2] & NANS && i % 7 == 3) x[i] = i % 2 ? NAN : INFINITY;
        if (p[2] & TIES) x[i] = 0;
    }
    mu_mat rows = reals_of(t, "x", T, E, x), sum = new_longs(t, "sum", 1, 1);
    t->dev->k->sum_norms(t->dev, T, E, pow(10, (double)p[3]), rows, sum);
}

/* exempt[E]: every second, or (what 2) all, or (what 3) none of them. */
static mu_mat exempt_experts(trial *t, int64_t E, int64_t what) {
    int64_t *x = mu_alloc((size_t)E, sizeof *x);
    for (int64_t i = 0; i < E; i++) x[i] = what == 2 || (what == 1 && i % 2);
    mu_mat m = what ? ints_of(t, "exempt", 1, E, x) : NOTHING;
    free(x);
    return m;
}

/* n, E, exempt */
static void run_balance_coef(trial *t, const int64_t *p) {
    all_master(t);
    int64_t *n = mu_alloc((size_t)(p[0] * p[1]), sizeof *n);
    for (int64_t i = 0; i < p[0] * p[1]; i++) n[i] = draw(t, 4097);
    mu_mat counts = longs_of(t, "counts", p[0], p[1], n), exempt = exempt_experts(t, p[1], p[2]), coef = new_matrix(t, "coef", p[0], p[1]);
    free(n);
    t->dev->k->balance_coef(t->dev, p[0], p[1], 0x1.8p-21, counts, exempt, coef);
}

static mu_mat positive(trial *t, const char *name, int64_t rows, int64_t cols) {
    double *x = random_values(t, (uint32_t)t->n_operands, rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) x[i] = (float)(fabs(x[i]) + 0.01);
    return reals_of(t, name, rows, cols, x);
}

/* Every `out`-th coefficient is -1. */
static mu_mat coefficients(trial *t, int64_t rows, int64_t E, int64_t out) {
    double *x = random_values(t, (uint32_t)t->n_operands, rows * E);
    for (int64_t i = 0; i < rows * E; i++) x[i] = out && i % E % out == 0 ? -1 : (double)(float)(fabs(x[i]) + 0.01);
    return reals_of(t, "coef", rows, E, x);
}

/* T, E, segment, normalise?, experts of which one is left out (0: none; 1: all are) */
static void run_balance_fwd(trial *t, const int64_t *p) {
    all_master(t);
    mu_mat scores = positive(t, "scores", p[0], p[1]), coef = coefficients(t, p[0] / p[2], p[1], p[4]);
    mu_mat out = double_of(t, "out", NAN);
    t->dev->k->balance_fwd(t->dev, p[0], p[1], p[2], p[3], scores, coef, out);
}

static void run_balance_bwd(trial *t, const int64_t *p) {
    all_master(t);
    mu_mat scores = positive(t, "scores", p[0], p[1]), coef = coefficients(t, p[0] / p[2], p[1], p[4]);
    mu_mat dout = double_of(t, "dout", -1.25), dscores = matrix(t, "dscores", p[0], p[1]);
    t->dev->k->balance_bwd(t->dev, p[0], p[1], p[2], p[3], scores, coef, dout, dscores);
}

/* 0 but for every third expert, there of both signs. */
static mu_mat labels(trial *t, int64_t rows, int64_t E) {
    double *x = random_values(t, (uint32_t)t->n_operands, rows * E);
    for (int64_t i = 0; i < rows * E; i++) x[i] = i % E % 3 ? 0 : (double)(float)x[i];
    return reals_of(t, "coef", rows, E, x);
}

/* logits times `by`, which may be large */
static mu_mat gate_logits(trial *t, int64_t T, int64_t E, int64_t by) {
    double *x = random_values(t, (uint32_t)t->n_operands, T * E);
    for (int64_t i = 0; i < T * E; i++) x[i] = (float)(x[i] * (double)by);
    return reals_of(t, "logits", T, E, x);
}

/* T, E, segment, logits times */
static void run_gate_fwd(trial *t, const int64_t *p) {
    all_master(t);
    mu_mat logits = gate_logits(t, p[0], p[1], p[3]), coef = labels(t, p[0] / p[2], p[1]), out = double_of(t, "out", NAN);
    t->dev->k->gate_fwd(t->dev, p[0], p[1], p[2], logits, coef, out);
}

static void run_gate_bwd(trial *t, const int64_t *p) {
    all_master(t);
    mu_mat logits = gate_logits(t, p[0], p[1], p[3]), coef = labels(t, p[0] / p[2], p[1]);
    mu_mat dout = double_of(t, "dout", -1.25), dlogits = matrix(t, "dlogits", p[0], p[1]);
    t->dev->k->gate_bwd(t->dev, p[0], p[1], p[2], logits, coef, dout, dlogits);
}

static void run_zloss_fwd(trial *t, const int64_t *p) {
    all_master(t);
    mu_mat lse = vector(t, "lse", p[0]), out = double_of(t, "out", NAN);
    t->dev->k->zloss_fwd(t->dev, p[0], 0.125, lse, out);
}

static void run_zloss_bwd(trial *t, const int64_t *p) {
    all_master(t);
    mu_mat lse = vector(t, "lse", p[0]), dout = double_of(t, "dout", 3), dlse = vector(t, "dlse", p[0]);
    t->dev->k->zloss_bwd(t->dev, p[0], 0.125, lse, dout, dlse);
}

/* T, E, K, segment, capacity, spread */
static void run_plan(trial *t, const int64_t *p) {
    int64_t T = p[0], E = p[1], K = p[2];
    mu_mat ids = chosen_experts(t, T, E, K, p[5]);
    int64_t *permutation = draw_permutation(t, E);
    mu_mat order = ints_of(t, "order", 1, E, permutation);
    mu_mat offsets = new_longs(t, "offsets", 1, E + 1), token = new_ints(t, "token", 1, T * K);
    mu_mat row = new_ints(t, "row", T, K);
    free(permutation);
    t->dev->k->plan(t->dev, T, E, K, p[3], p[4], ids, order, offsets, token, row);
}

/* P, e, most rows of a block, spread */
static void run_arrange(trial *t, const int64_t *p) {
    int64_t P = p[0], e = p[1], R = 0, *n = mu_alloc((size_t)(P * e), sizeof *n);
    for (int64_t i = 0; i < P * e; i++) {
        n[i] = draw(t, p[2] + 1);
        if ((p[3] == EMPTY_ONES && i % e % 2) || (p[3] == ONE_TAKES_ALL && i % e != e - 1)) n[i] = 0;
        R += n[i];
    }
    mu_mat counts = longs_of(t, "counts", P, e, n), offsets = new_longs(t, "offsets", 1, e + 1);
    mu_mat index = new_ints(t, "index", 1, R + 5);
    free(n);
    t->dev->k->arrange(t->dev, P, e, counts, offsets, index);
}

/* ---------------------------------------------------------------- loss and optimizer */
/* Every third row is ignored when `ignore`. */
static mu_mat targets(trial *t, int64_t rows, int64_t V, bool ignore) {
    int64_t *x = mu_alloc((size_t)rows, sizeof *x);
    for (int64_t r = 0; r < rows; r++) x[r] = ignore && r % 3 == 1 ? -1 : draw(t, V);
    mu_mat m = ints_of(t, "targets", 1, rows, x);
    free(x);
    return m;
}

/* rows, V, ignore?, logits times */
static mu_mat loss_logits(trial *t, const int64_t *p) {
    double *x = random_values(t, 99, p[0] * p[1]);
    for (int64_t i = 0; i < p[0] * p[1]; i++) x[i] = (float)(x[i] * (double)p[3]);
    return reals_of(t, "logits", p[0], p[1], x);
}

static void run_xent_fwd(trial *t, const int64_t *p) {
    mu_mat logits = loss_logits(t, p), target = targets(t, p[0], p[1], p[2]);
    mu_mat lse = new_vector(as_master(t), "lse", p[0]), nll = new_vector(as_master(t), "nll", p[0]);
    t->dev->k->xent_fwd(t->dev, p[0], p[1], logits, target, lse, nll);
}

static void run_xent_bwd(trial *t, const int64_t *p) {
    mu_mat logits = loss_logits(t, p), target = targets(t, p[0], p[1], p[2]),
           dout = double_of(t, "dout", 0.5);
    mu_mat lse = new_vector(as_master(t), "lse", p[0]), nll = new_vector(as_master(t), "nll", p[0]);
    t->dev->k->xent_fwd(t->dev, p[0], p[1], logits, target, lse, nll);
    t->dev->k->xent_bwd(t->dev, p[0], p[1], 0.125, dout, target, lse, logits);
}

/* A slab of `n` units of about `size` values: some empty, gaps between them, ids in another order, the first and the
 * last equally long. Every second unit has a load. */
typedef struct { int64_t n_units, n_pieces, values, first, last, count; mu_mat units; } slab;

static slab slab_new(trial *t, int64_t n, int64_t size) {
    slab s = { .n_units = n };
    int64_t *words = mu_alloc((size_t)n, sizeof(mu_slab_unit)), *ids = draw_permutation(t, n);
    mu_slab_unit *unit = (mu_slab_unit *)(void *)words;
    for (int64_t i = 0; i < n; i++) {
        int64_t count = i % 4 == 3 && i < n - 1 ? 0 : i == n - 1 ? size : size * (i % 3 + 1) / (i % 5 + 1);
        unit[i] = (mu_slab_unit){ s.values, count, s.n_pieces, ids[i], i % 2 ? i / 2 : -1, i % 3 != 1 };
        s.values += count + i % 3, s.n_pieces += mu_slab_pieces(count);
    }
    if (n) s.first = unit[0].id, s.last = unit[n - 1].id, s.count = unit[n - 1].first;
    s.units = longs_of(t, "units", n, MU_SLAB_UNIT_WORDS, words);
    free(words);
    free(ids);
    return s;
}

/* units, size */
static void run_slab_sumsq(trial *t, const int64_t *p) {
    all_master(t);
    slab s = slab_new(t, p[0], p[1]);
    double *x = random_values(t, 50, s.values), squares[2];
    for (int64_t i = 0; i < p[1] && s.n_units; i++) x[s.count + i] = x[i];      /* the last unit's are the first one's */
    mu_mat g = reals_of(t, "g", 1, s.values, x);
    operand *out = doubles_of(t, "squares", s.n_units, constant_values(s.n_units, NAN));
    out->tolerance = 1e-10;
    t->dev->k->slab_sumsq(t->dev, s.n_units, s.n_pieces, s.units, g, out->mat);
    mu_device_read(t->dev, &squares[0], (double *)out->mat.data + s.first, s.n_units ? sizeof(double) : 0);
    mu_device_read(t->dev, &squares[1], (double *)out->mat.data + s.last, s.n_units ? sizeof(double) : 0);
    MU_CHECK(!s.n_units || squares[0] == squares[1], "%s: a unit's sum depends on its place: %.17g, %.17g", t->dev->name,
             squares[0], squares[1]);
}

/* squares, losses, max_norm in percent, not finite: 1 a square, 2 a loss */
static void run_clip(trial *t, const int64_t *p) {
    all_master(t);
    double *squares = random_values(t, 50, p[0]), *losses = random_values(t, 51, p[1]);
    for (int64_t i = 0; i < p[0]; i++) squares[i] *= squares[i];
    if (p[3] == 1) squares[p[0] / 2] = INFINITY;
    if (p[3] == 2) losses[p[1] - 1] = NAN;
    mu_mat square = doubles_of(t, "squares", p[0], squares)->mat, loss = doubles_of(t, "losses", p[1], losses)->mat;
    operand *norm = doubles_of(t, "norm", 1, constant_values(1, 7)), *scale = doubles_of(t, "scale", 1, constant_values(1, 7));
    norm->tolerance = scale->tolerance = 1e-12;
    t->dev->k->clip(t->dev, p[0], square, p[1], p[1] ? loss : NOTHING, (double)p[2] / 100, norm->mat, scale->mat);
}

/* units, size, steps so far, compute?, loads?, scale in percent, 0: not a number */
static void run_slab_adamw(trial *t, const int64_t *p) {
    mu_adamw_spec spec = { .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1 };
    slab s = slab_new(t, p[0], p[1]);
    mu_mat compute = p[3] ? vector(t, "compute", s.values) : NOTHING;
    all_master(t);
    int64_t *steps = mu_alloc((size_t)p[0], sizeof *steps), *loads = mu_alloc((size_t)p[0], sizeof *loads);
    for (int64_t i = 0; i < p[0]; i++) steps[i] = p[2] + i % 3, loads[i] = i % 3;
    mu_mat step = longs_of(t, "steps", 1, p[0], steps), load = longs_of(t, "loads", 1, p[0], loads);
    double *factor = constant_values(1, p[5] ? (double)p[5] / 100 : NAN);
    mu_mat scale = doubles_of(t, "scale", 1, factor)->mat;
    free(steps);
    free(loads);
    mu_mat w = vector(t, "w", s.values), g = vector(t, "g", s.values), m = vector(t, "m", s.values);
    mu_mat v = positive(t, "v", 1, s.values);
    t->dev->k->slab_adamw(t->dev, s.n_units, s.n_pieces, &spec, s.units, p[4] ? load : NOTHING, scale, step, w, g, m, v, compute);
}

/* loads: 0, 1, 2, 0, ... */
static mu_mat some_loads(trial *t, int64_t n) {
    int64_t *loads = mu_alloc((size_t)n, sizeof *loads);
    for (int64_t i = 0; i < n; i++) loads[i] = i % 3;
    mu_mat m = longs_of(t, "loads", 1, n, loads);
    free(loads);
    return m;
}

/* units, size, loads? */
static void run_slab_pull_sumsq(trial *t, const int64_t *p) {
    all_master(t);
    slab s = slab_new(t, p[0], p[1]);
    mu_mat load = some_loads(t, p[0]), f = positive(t, "f", 1, s.values), w = vector(t, "w", s.values), at = vector(t, "at", s.values);
    operand *out = doubles_of(t, "squares", s.n_units, constant_values(s.n_units, NAN));
    out->tolerance = 1e-6;
    t->dev->k->slab_pull_sumsq(t->dev, s.n_units, s.n_pieces, s.units, p[2] ? load : NOTHING, f, w, at, out->mat);
}

/* units, size, loads?, limit and scale in percent, 0: not a number */
static void run_slab_pull(trial *t, const int64_t *p) {
    all_master(t);
    slab s = slab_new(t, p[0], p[1]);
    mu_mat load = some_loads(t, p[0]), f = positive(t, "f", 1, s.values), w = vector(t, "w", s.values), at = vector(t, "at", s.values),
           g = vector(t, "g", s.values);
    mu_mat limit = doubles_of(t, "limit", 1, constant_values(1, p[3] ? (double)p[3] / 100 : NAN))->mat,
           scale = doubles_of(t, "scale", 1, constant_values(1, p[4] ? (double)p[4] / 100 : NAN))->mat;
    t->dev->k->slab_pull(t->dev, s.n_units, s.n_pieces, 1.5, s.units, p[2] ? load : NOTHING, limit, scale, f, w, at, g);
}

/* sequences, S, D, 1000 eps, add?: x compute and y master as in forward; when adding, as in backward, the other way round.
 * With eps = 1 the x are 1, and y must be 2u to the last bit: the stream is the same one everywhere. */
static void run_jitter(trial *t, const int64_t *p) {
    int64_t T = p[0] * p[1], D = p[2];
    mu_rng rng = { .seed = 0x123456789abcdef, .step = 3, .sample = UINT32_MAX - 1, .purpose = MU_RNG_JITTER, .layer = 7 };
    bool bare = p[3] == 1000, add = p[4];
    t->next_master = add;
    mu_mat x = bare ? reals_of(t, "x", T, D, constant_values(T * D, 1)) : matrix(t, "x", T, D);
    t->next_master = !add;
    mu_mat y = add ? matrix(t, "y", T, D) : new_matrix(t, "y", T, D);
    if (bare) t->operands[t->n_operands - 1].tolerance = 0;
    t->dev->k->jitter(t->dev, T, p[1], D, (double)p[3] / 1000, &rng, x, add, y);
}

/* ---------------------------------------------------------------- the list */
#define C(kernel, ...) { #kernel, run_##kernel, { __VA_ARGS__ } },

/* one line for each length of a vector */
#define LENGTHS(kernel, flag) \
    C(kernel, 0, flag) C(kernel, 1, flag) C(kernel, 7, flag) C(kernel, 64, flag) C(kernel, 1000, flag) \
    C(kernel, 100003, flag)

/* all four transpositions */
#define GEMM(...)                                                            \
    C(gemm, 0, 0, __VA_ARGS__) C(gemm, 0, 1, __VA_ARGS__)                    \
    C(gemm, 1, 0, __VA_ARGS__) C(gemm, 1, 1, __VA_ARGS__)

#define BOTH(kernel, ...) C(kernel##_fwd, __VA_ARGS__) C(kernel##_bwd, __VA_ARGS__)

/* softmax and sigmoid, normalised or not, with every subset of gradients that a caller uses */
#define ROUTES(T, E, K)                                                      \
    C(route_fwd, T, E, K, 0)                                                 \
    C(route_fwd, T, E, K, NORMALISE)                                         \
    C(route_fwd, T, E, K, SIGMOID | BIAS)                                    \
    C(route_fwd, T, E, K, SIGMOID | NORMALISE | BIAS)                        \
    C(route_fwd, T, E, K, TIES)                                              \
    C(route_fwd, T, E, K, SIGMOID | TIES)                                    \
    C(route_fwd, T, E, K, NANS)                                              \
    C(route_fwd, T, E, K, SIGMOID | BIAS | NANS)                             \
    C(route_fwd, T, E, K, SIGMOID | NANS, MU_ROUTE_SKEW)                     \
    C(route_fwd, T, E, K, NORMALISE | MASK)                                  \
    C(route_fwd, T, E, K, SIGMOID | BIAS | NANS | MASK)                      \
    C(route_fwd, T, E, K, TIES | MASKS)                                      \
    C(route_fwd, T, E, K, BIAS | NANS | MASKS)                               \
    C(route_fwd, T, E, K, SIGMOID | NORMALISE | BIAS | MASKS)                \
    C(route_bwd, T, E, K, NORMALISE | MASKS)                                 \
    C(route_bwd, T, E, K, SIGMOID | MASK)                                    \
    C(route_fwd, T, E, K, NORMALISE, MU_ROUTE_BALANCED)                      \
    C(route_fwd, T, E, K, SIGMOID, MU_ROUTE_SKEW)                            \
    C(route_fwd, T, E, K, NORMALISE | BIAS, MU_ROUTE_SKEW)                   \
    C(route_bwd, T, E, K, 0)                                                 \
    C(route_bwd, T, E, K, NORMALISE)                                         \
    C(route_bwd, T, E, K, SIGMOID | NO_DLSE)                                 \
    C(route_bwd, T, E, K, SIGMOID | NORMALISE | NO_DLSE)                     \
    C(route_bwd, T, E, K, SIGMOID | NORMALISE)                               \
    C(route_bwd, T, E, K, BIAS | NO_DGATES)                                  \
    C(route_bwd, T, E, K, BIAS | NO_DSCORES)                                 \
    C(route_bwd, T, E, K, NORMALISE | BIAS | NO_DSCORES | NO_DLSE)           \
    C(route_bwd, T, E, K, NO_DGATES | NO_DSCORES | NO_DLSE)

#define EXPERTS(...)                                                         \
    C(experts_fwd, __VA_ARGS__, 0)                                           \
    C(experts_fwd, __VA_ARGS__, WITH_IN)                                     \
    C(experts_fwd, __VA_ARGS__, WITH_OUT | WITH_H)                           \
    C(experts_fwd, __VA_ARGS__, WITH_IN | WITH_OUT | WITH_H)                 \
    C(experts_fwd, __VA_ARGS__, WITH_IN | WITH_H | WITH_WEIGHTS)             \
    C(experts_fwd, __VA_ARGS__, WITH_H | WITH_WEIGHTS)                       \
    C(experts_bwd, __VA_ARGS__, WITH_WEIGHTS | WITH_DWEIGHTS | WITH_DX | WITH_DGATE) \
    C(experts_bwd, __VA_ARGS__, WITH_ALL)                                    \
    C(experts_bwd, __VA_ARGS__, WITH_ALL | FRESH)                            \
    C(experts_bwd, __VA_ARGS__, WITH_ALL | WITH_WEIGHTS | WITH_DWEIGHTS)     \
    C(experts_bwd, __VA_ARGS__, (WITH_ALL - WITH_OUT) | TO_TOKENS | WITH_WEIGHTS | WITH_DWEIGHTS | FRESH) \
    C(experts_bwd, __VA_ARGS__, TO_TOKENS | WITH_WEIGHTS | WITH_DDOWN)       \
    C(experts_bwd, __VA_ARGS__, WITH_DX | WITH_DUP | FRESH)                  \
    C(experts_bwd, __VA_ARGS__, WITH_DX)                                     \
    C(experts_bwd, __VA_ARGS__, WITH_IN | WITH_DGATE | WITH_DUP | WITH_DDOWN)\
    C(experts_bwd, __VA_ARGS__, WITH_OUT | WITH_DX | WITH_DGATE)             \
    C(experts_bwd, __VA_ARGS__, WITH_IN | WITH_DX | WITH_DDOWN)

/* products of several tiles, each kind once or twice */
#define LARGE_EXPERTS(...)                                                   \
    C(experts_fwd, __VA_ARGS__, WITH_IN | WITH_OUT | WITH_H)                 \
    C(experts_bwd, __VA_ARGS__, WITH_ALL | WITH_WEIGHTS | WITH_DWEIGHTS)     \
    C(experts_bwd, __VA_ARGS__, (WITH_ALL - WITH_OUT) | TO_TOKENS | FRESH)

/* few rows, summed in any order */
#define ANY_ORDER_EXPERTS(...)                                                   \
    C(experts_fwd, __VA_ARGS__, ANY_ORDER | WITH_IN | WITH_OUT | WITH_H)         \
    C(experts_fwd, __VA_ARGS__, ANY_ORDER | WITH_IN | WITH_WEIGHTS)              \
    C(experts_bwd, __VA_ARGS__, ANY_ORDER | WITH_ALL | WITH_WEIGHTS | WITH_DWEIGHTS)

static const kernel_case kernel_cases[] = {
    LENGTHS(fill, 0) LENGTHS(fill, 1) LENGTHS(axpy, 0) LENGTHS(axpy, 1) LENGTHS(add, 0) LENGTHS(add, 1)
    LENGTHS(add, 2) LENGTHS(add, 3)
    LENGTHS(clamp, 0) LENGTHS(clamp, 1)
    LENGTHS(copy, 0) LENGTHS(copy, 1) C(copy, 1000, 0, 1) C(copy, 1000, 1, 1)
    LENGTHS(sum, 0) LENGTHS(sum, 1) LENGTHS(sumsq, 0) LENGTHS(sumsq, 1)

    /* m, n, k, beta */
    GEMM(0, 5, 3, 1) GEMM(5, 0, 3, 1) GEMM(5, 4, 0, 0) GEMM(5, 4, 0, 1) GEMM(1, 1, 1, 0) GEMM(3, 5, 7, 1)
    GEMM(1, 1000, 64, 0) GEMM(1000, 1, 64, 0) GEMM(16, 16, 16, 0) GEMM(17, 33, 65, 0) GEMM(17, 33, 65, 1)
    GEMM(64, 128, 96, 1) GEMM(130, 257, 80, 0) GEMM(63, 64, 300, 1) GEMM(300, 200, 260, 0)
    GEMM(12, 31, 1000, 1)
    C(gemm, 0, 0, 40, 70, 1024, 0) C(gemm, 0, 0, 1, 256, 40, 0) C(gemm, 0, 0, 3, 288, 40, 1) C(gemm, 0, 0, 2, 256, 300, 1)
    C(gemm, 0, 0, 6, 320, 300, 0)
    C(gemm, 1, 0, 40, 256, 3, 1) C(gemm, 0, 1, 25, 130, 300, 1) C(gemm, 0, 1, 40, 70, 1024, 0) C(gemm, 0, 0, 3, 300, 1, 0)
    C(gemm, 0, 0, 20, 256, 4200, 1) C(gemm, 0, 0, 20, 260, 4200, 0)
    C(gemm, 0, 1, 2, 4500, 1000, 1) C(gemm, 1, 0, 5, 4500, 1000, 0)
    C(gemm, 1, 0, 33, 65, 130, 1, 1) C(gemm, 0, 1, 33, 65, 130, 0, 1)
    C(gemm, 0, 1, 70, 48, 1, 1) C(gemm, 1, 0, 48, 1, 70, 1, 1)     /* a bias and its gradient */
    C(gemm_master, 0, 1, 17, 8, 64, 0) C(gemm_master, 0, 0, 33, 65, 8, 1) C(gemm_master, 1, 0, 8, 64, 130, 1)
    C(gemm_master, 0, 0, 9, 6, 3, 0, 0, 1) C(gemm_master, 0, 0, 5, 10, 3, 0, 0, 2)
    C(gemm_master, 0, 0, 9, 6, 3, 0, 0, 3) C(gemm_master, 0, 0, 5, 10, 3, 0, 0, 4)

    /* T, D, V, same? */
    BOTH(embed, 0, 8, 5) BOTH(embed, 1, 1, 1) BOTH(embed, 65, 80, 257) BOTH(embed, 130, 64, 1000)
    BOTH(embed, 64, 7, 3)
    BOTH(embed, 130, 33, 257, 1) BOTH(embed, 700, 132, 40) BOTH(embed, 2500, 8, 70000) BOTH(embed, 1100, 20, 600, 1)

    /* R, D, rows of x */
    C(gather, 0, 8, 5) C(gather, 1, 1, 1) C(gather, 65, 80, 33) C(gather, 130, 257, 1000) C(gather, 7, 2, 1) C(gather, 5, 2400, 9)

    /* T, K, D, add?, master? */
    C(gather_sum, 0, 2, 8, 0) C(gather_sum, 1, 1, 1, 0) C(gather_sum, 65, 2, 80, 0) C(gather_sum, 65, 2, 80, 1)
    C(gather_sum, 65, 3, 80, 0) C(gather_sum, 130, 8, 33, 1) C(gather_sum, 63, 6, 257, 1) C(gather_sum, 3000, 1, 1, 0) C(gather_sum, 130, 1, 1, 1, 1)
    C(gather_sum, 130, 8, 256, 0) C(gather_sum, 40, 2, 600, 0) C(gather_sum, 40, 2, 600, 1) C(gather_sum, 65, 5, 80, 0, 1)

    /* R, D, master? */
    C(scatter, 0, 8) C(scatter, 1, 1) C(scatter, 65, 80) C(scatter, 30000, 1) C(scatter, 300, 1, 1) C(scatter, 130, 257)

    /* rows, D, zero row?, dx?, dw? */
    BOTH(rmsnorm, 0, 8, 0, 1, 1) BOTH(rmsnorm, 1, 1, 0, 1, 1) BOTH(rmsnorm, 3, 2, 1, 1, 1)
    BOTH(rmsnorm, 65, 80, 1, 1, 1)
    BOTH(rmsnorm, 130, 257, 0, 1, 1) BOTH(rmsnorm, 7, 1000, 0, 1, 1) BOTH(rmsnorm, 1000, 16, 1, 1, 1)
    BOTH(rmsnorm, 130, 128, 1, 1, 1) BOTH(rmsnorm, 2100, 132, 0, 1, 1) BOTH(rmsnorm, 3, 8212, 1, 1, 1)
    C(rmsnorm_bwd, 65, 64, 0, 1, 0) C(rmsnorm_bwd, 65, 64, 0, 0, 1) C(rmsnorm_bwd, 65, 64, 0, 0, 0)

    /* B, S, H, d, sign, add? */
    C(rope, 0, 8, 2, 16, 1, 0) C(rope, 1, 1, 1, 2, 1, 0) C(rope, 2, 2, 3, 2, -1, 1)
    C(rope, 2, 63, 4, 16, 1, 0)
    C(rope, 3, 65, 2, 80, 1, 1) C(rope, 3, 65, 2, 80, -1, 0) C(rope, 1, 130, 5, 64, -1, 1)
    C(rope, 2, 9, 2, 6, 1, 1)
    C(rope, 2, 9, 2, 32, 1, 0)

    /* B, S, H, G, d, times the usual scale, past */
    BOTH(attention, 0, 8, 2, 2, 16, 1) BOTH(attention, 1, 1, 1, 1, 2, 1) BOTH(attention, 3, 1, 4, 2, 16, 1)
    BOTH(attention, 2, 2, 4, 4, 16, 1) BOTH(attention, 2, 63, 4, 2, 16, 1) BOTH(attention, 1, 64, 4, 1, 64, 1)
    BOTH(attention, 2, 65, 2, 2, 80, 1) BOTH(attention, 1, 130, 4, 2, 64, 1)
    BOTH(attention, 1, 130, 4, 1, 80, 1)
    BOTH(attention, 1, 130, 2, 1, 2, 1) BOTH(attention, 2, 65, 4, 4, 16, 8)
    BOTH(attention, 1, 65, 4, 2, 16, 3)
    BOTH(attention, 5, 17, 6, 3, 10, 1) BOTH(attention, 1, 257, 2, 2, 32, 1)
    BOTH(attention, 1, 600, 2, 1, 16, 2)
    BOTH(attention, 1, 200, 2, 1, 96, 1) BOTH(attention, 2, 140, 4, 2, 128, 1) BOTH(attention, 1, 300, 3, 1, 64, 2)
    C(attention_fwd, 0, 1, 2, 2, 16, 1, 7) C(attention_fwd, 1, 1, 1, 1, 2, 1, 1) C(attention_fwd, 3, 1, 4, 2, 16, 1, 255)
    C(attention_fwd, 1, 1, 4, 4, 64, 1, 256) C(attention_fwd, 2, 1, 80, 2, 10, 1, 300)
    C(attention_fwd, 1, 1, 6, 1, 80, 3, 900) C(attention_fwd, 1, 1, 3, 1, 300, 1, 40)
    C(attention_fwd, 1, 2, 4, 2, 16, 1, 31) C(attention_fwd, 2, 5, 4, 1, 10, 1, 254)
    C(attention_fwd, 1, 33, 2, 1, 64, 8, 223) C(attention_fwd, 2, 130, 2, 2, 32, 1, 500)
    C(attention_fwd, 2, 37, 2, 1, 96, 1, 100) C(attention_fwd, 1, 129, 3, 3, 128, 4, 63) C(attention_fwd, 1, 40, 2, 1, 64, 1, 33)

    /* R, experts, D, F, spread */
    EXPERTS(0, 3, 8, 4, EVEN) EXPERTS(1, 1, 1, 1, EVEN) EXPERTS(1, 4, 16, 8, EVEN)
    EXPERTS(65, 1, 80, 33, EVEN)
    EXPERTS(130, 8, 64, 48, EVEN) EXPERTS(130, 8, 64, 48, EMPTY_ONES) EXPERTS(130, 5, 33, 17, ONE_TAKES_ALL)
    EXPERTS(300, 3, 80, 130, EMPTY_ONES) EXPERTS(520, 2, 64, 96, ONE_TAKES_ALL)
    EXPERTS(90, 4, 16, 24, SPARE_ROWS)
    ANY_ORDER_EXPERTS(1, 1, 40, 24, EVEN) ANY_ORDER_EXPERTS(3, 1, 33, 64, EVEN) ANY_ORDER_EXPERTS(7, 3, 70, 40, EVEN)
    ANY_ORDER_EXPERTS(100, 1, 33, 40, EVEN) ANY_ORDER_EXPERTS(18, 8, 48, 80, EMPTY_ONES) ANY_ORDER_EXPERTS(8, 2, 96, 33, ONE_TAKES_ALL)
    C(experts_fwd, 90, 1, 592, 600, EVEN, WITH_H)
    LARGE_EXPERTS(160, 2, 136, 264, EVEN) LARGE_EXPERTS(160, 2, 264, 136, ONE_TAKES_ALL)
    LARGE_EXPERTS(1400, 2, 32, 64, EVEN) LARGE_EXPERTS(1300, 5, 32, 40, ONE_TAKES_ALL)
    C(experts_fwd, 81, 1, 40, 1100, EVEN, WITH_IN | WITH_OUT | WITH_H) C(experts_fwd, 81, 1, 1100, 40, EVEN, WITH_IN | WITH_H)
    C(experts_bwd, 30, 1, 1100, 40, EVEN, WITH_ALL | FRESH)
    C(experts_bwd, 30, 1, 40, 1100, EVEN, WITH_ALL | WITH_WEIGHTS | WITH_DWEIGHTS)
    C(experts_bwd, 5, 1, 576, 640, EVEN, WITH_DX | WITH_DGATE | WITH_DUP | WITH_DDOWN)
    C(experts_bwd, 4, 1, 576, 640, EVEN, WITH_DX | WITH_DUP | FRESH)
    C(experts_fwd, 2200, 3, 8, 136, EVEN, WITH_IN) C(experts_fwd, 600, 300, 24, 8, EVEN, WITH_OUT)

    ROUTES(0, 4, 2) ROUTES(1, 1, 1) ROUTES(130, 1, 1) ROUTES(1, 4, 4) ROUTES(65, 8, 2) ROUTES(130, 64, 8) ROUTES(130, 33, 1)
    ROUTES(63, 257, 6) ROUTES(9, 100, 5) ROUTES(18, 200, 40) ROUTES(34, 600, 40)

    /* T, E, K, segment, spread */
    C(count_experts, 0, 4, 2, 1) C(count_experts, 1, 1, 1, 1) C(count_experts, 130, 8, 2, 130)
    C(count_experts, 130, 8, 2, 65) C(count_experts, 128, 64, 6, 8, ONE_TAKES_ALL)
    C(count_experts, 1000, 7, 3, 500) C(count_experts, 3000, 7, 3, 1500) C(count_experts, 65, 2500, 6, 65)

    /* S, E, G, no total? */
    C(sum_counts, 0, 4, 2) C(sum_counts, 1, 1, 1) C(sum_counts, 5, 8, 0) C(sum_counts, 7, 300, 3) C(sum_counts, 33, 64, 40, 1)

    /* S, E, G, capacity */
    C(sum_dropped, 0, 4, 2, 1) C(sum_dropped, 1, 1, 1, 3) C(sum_dropped, 7, 300, 3, 8) C(sum_dropped, 33, 64, 40, 0) C(sum_dropped, 5, 8, 2, 17)

    /* T, E, K, spread, bits (TIES: no pairs) */
    C(count_routes, 0, 4, 2, 1) C(count_routes, 1, 1, 1, 1) C(count_routes, 5, 1, 1, 1, TIES) C(count_routes, 130, 8, 2, 1)
    C(count_routes, 1000, 8, 8, 1) C(count_routes, 300, 64, 6, ONE_TAKES_ALL) C(count_routes, 65, 300, 33, 1, NANS) C(count_routes, 40, 7, 3, 1, TIES | NANS)

    /* T, E, K, bits, spread */
    C(route_margins, 0, 4, 2, 0, 1) C(route_margins, 7, 1, 1, SIGMOID, 1) C(route_margins, 130, 8, 2, 0, 1) C(route_margins, 130, 8, 2, SIGMOID | BIAS, 1)
    C(route_margins, 65, 8, 8, BIAS, 1) C(route_margins, 65, 33, 5, TIES, 1) C(route_margins, 65, 33, 5, TIES | SIGMOID | BIAS, ONE_TAKES_ALL)
    C(route_margins, 300, 300, 6, NANS, 1) C(route_margins, 9, 700, 40, BIAS, 1)

    /* T, E, K, bits, bins */
    C(count_cutoffs, 0, 4, 2, 0, 8) C(count_cutoffs, 7, 1, 1, 0, 8) C(count_cutoffs, 130, 8, 2, 0, 64) C(count_cutoffs, 130, 8, 2, BIAS, 64)
    C(count_cutoffs, 65, 8, 8, BIAS, 16) C(count_cutoffs, 65, 33, 5, TIES, 16) C(count_cutoffs, 300, 300, 6, NANS, 1024) C(count_cutoffs, 9, 700, 40, BIAS, 1)
    C(count_cutoffs, 1000, 64, 8, BIAS, 1024)

    /* T, E, bits, log10 of the unit */
    C(sum_norms, 0, 4, 0, 6) C(sum_norms, 7, 1, 0, 6) C(sum_norms, 130, 33, 0, 8) C(sum_norms, 300, 300, NANS, 6) C(sum_norms, 65, 8, TIES, 6)
    C(sum_norms, 9, 8, 0, 30)

    /* n, E, exempt */
    C(balance_coef, 0, 4) C(balance_coef, 1, 1) C(balance_coef, 1, 64) C(balance_coef, 7, 33) C(balance_coef, 130, 1000)
    C(balance_coef, 1, 64, 1) C(balance_coef, 7, 33, 1) C(balance_coef, 3, 5, 2) C(balance_coef, 3, 5, 3) C(balance_coef, 0, 4, 1)

    /* T, E, segment, normalise?, of how many one is left out */
    BOTH(balance, 130, 8, 65, 1, 3) BOTH(balance, 126, 33, 63, 0, 2) BOTH(balance, 64, 70, 64, 1, 5) BOTH(balance, 12, 4, 3, 1, 1)
    BOTH(balance, 0, 4, 1, 0) BOTH(balance, 1, 1, 1, 1) BOTH(balance, 130, 8, 130, 0)
    BOTH(balance, 130, 8, 65, 1)
    BOTH(balance, 128, 64, 16, 0) BOTH(balance, 126, 33, 63, 1) BOTH(balance, 1000, 5, 1000, 1)
    /* T, E, segment, logits times */
    BOTH(gate, 0, 4, 1, 1) BOTH(gate, 1, 1, 1, 1) BOTH(gate, 130, 8, 65, 1) BOTH(gate, 128, 70, 16, 3) BOTH(gate, 1000, 5, 1000, 1) BOTH(gate, 12, 4, 3, 1000)
    BOTH(zloss, 0) BOTH(zloss, 1) BOTH(zloss, 65) BOTH(zloss, 10007)

    C(jitter, 0, 1, 8, 100, 0) C(jitter, 1, 1, 1, 1000, 0) C(jitter, 3, 5, 7, 1000, 0) C(jitter, 2, 33, 130, 1000, 0)
    C(jitter, 2, 9, 64, 100, 0) C(jitter, 2, 9, 64, 100, 1) C(jitter, 3, 17, 83, 10, 1) C(jitter, 1, 3, 1500, 250, 0)

    /* T, E, K, segment, capacity, spread */
    C(plan, 0, 4, 2, 1, 0) C(plan, 0, 4, 2, 1, 3) C(plan, 1, 1, 1, 1, 0) C(plan, 130, 8, 2, 130, 0)
    C(plan, 130, 8, 2, 65, 10)
    C(plan, 130, 8, 2, 65, 1) C(plan, 128, 64, 6, 16, 2) C(plan, 128, 64, 6, 16, 0)
    C(plan, 130, 5, 2, 65, 20, ONE_TAKES_ALL)
    C(plan, 130, 5, 2, 130, 0, ONE_TAKES_ALL) C(plan, 65, 257, 8, 65, 0) C(plan, 5000, 16, 4, 1000, 300)
    C(plan, 5000, 16, 4, 1000, 0) C(plan, 66, 2500, 33, 33, 0) C(plan, 66, 2500, 33, 33, 1)
    C(plan, 72000, 3, 1, 72000, 0) C(plan, 4500, 5, 2, 2250, 700, ONE_TAKES_ALL) C(plan, 3600, 6, 2, 50, 15)

    /* P, e, most rows of a block, spread */
    C(arrange, 1, 1, 0) C(arrange, 1, 1, 5) C(arrange, 1, 8, 9) C(arrange, 4, 2, 20)
    C(arrange, 4, 3, 20, EMPTY_ONES)
    C(arrange, 3, 5, 40, ONE_TAKES_ALL) C(arrange, 8, 32, 3) C(arrange, 4, 4, 0) C(arrange, 2, 4, 600)
    C(arrange, 40, 33, 3) C(arrange, 2, 2, 9000)

    /* rows, V, ignore?, logits times */
    BOTH(xent, 0, 5, 0, 1) BOTH(xent, 1, 1, 0, 1) BOTH(xent, 65, 257, 1, 1) BOTH(xent, 130, 1000, 1, 1)
    BOTH(xent, 7, 1000, 0, 20)
    BOTH(xent, 3, 2, 1, 1) BOTH(xent, 4, 40000, 1, 6) BOTH(xent, 3, 20001, 1, 6)

    /* n, sums used before?, exponent of two */
    C(exact_add, 0, 1, 0) C(exact_add, 1, 0, 0) C(exact_add, 7, 1, 0) C(exact_add, 1000, 1, 20)
    C(exact_add, 100003, 1, -3) C(exact_add, 1000, 1, -40) C(exact_add, 1000, 0, -55) C(exact_add, 65, 1, 25)
    C(exact_round, 0) C(exact_round, 1) C(exact_round, 1000) C(exact_round, 100003) C(exact_round, 65, 1)
    C(exact_embed, 0, 8, 5) C(exact_embed, 1, 1, 1) C(exact_embed, 65, 80, 257) C(exact_embed, 130, 33, 257, 1)

    /* R, groups, m, n, spread, units */
    C(exact_product, 0, 3, 8, 4, EVEN, 2) C(exact_product, 1, 1, 1, 1, EVEN, 1)
    C(exact_product, 65, 1, 80, 33, EVEN, 1) C(exact_product, 130, 8, 64, 48, EVEN, 3)
    C(exact_product, 130, 4, 70, 140, EMPTY_ONES, 5) C(exact_product, 600, 2, 33, 256, ONE_TAKES_ALL, 2)
    C(exact_product, 90, 4, 16, 24, SPARE_ROWS, 2) C(exact_product, 300, 1, 130, 64, EVEN, 12)

    /* units, size; squares, losses, largest norm in percent, not finite?; then steps, compute?, loads?, scale in percent */
    C(slab_sumsq, 0, 0) C(slab_sumsq, 1, 1) C(slab_sumsq, 2, 1000) C(slab_sumsq, 40, 33) C(slab_sumsq, 7, 40007)
    C(slab_sumsq, 3, 16384) C(slab_sumsq, 1000, 5)
    C(clip, 0, 0, 100, 0) C(clip, 1, 1, 50, 0) C(clip, 1000, 3, 0, 0) C(clip, 1000, 0, 100, 0) C(clip, 10007, 2, 1000000, 0)
    C(clip, 300, 2, 100, 1) C(clip, 300, 2, 0, 1) C(clip, 300, 2000, 100, 2)
    C(slab_adamw, 0, 0, 0, 0, 1, 100) C(slab_adamw, 1, 1, 0, 0, 0, 50) C(slab_adamw, 2, 1000, 3, 1, 1, 50)
    C(slab_adamw, 40, 33, 999, 1, 1, 100) C(slab_adamw, 7, 40007, 0, 0, 1, 10) C(slab_adamw, 7, 40007, 2, 1, 0, 100)
    C(slab_adamw, 3, 16384, 100000, 1, 1, 100) C(slab_adamw, 1000, 5, 1, 0, 1, 100) C(slab_adamw, 7, 30000, 2, 1, 1, 0)
    C(slab_pull_sumsq, 0, 0, 1) C(slab_pull_sumsq, 1, 1, 0) C(slab_pull_sumsq, 40, 33, 1) C(slab_pull_sumsq, 7, 40007, 1) C(slab_pull_sumsq, 3, 16384, 0)
    C(slab_pull, 0, 0, 1, 100, 100) C(slab_pull, 1, 1, 0, 50, 100) C(slab_pull, 40, 33, 1, 100, 20) C(slab_pull, 7, 40007, 1, 30, 70)
    C(slab_pull, 7, 30000, 0, 0, 50) C(slab_pull, 7, 30000, 0, 50, 0) C(slab_pull, 1000, 5, 1, 100, 100)
    C(add_squares, 0) C(add_squares, 1) C(add_squares, 7) C(add_squares, 1000) C(add_squares, 100003)
};

enum { N_KERNEL_CASES = sizeof kernel_cases / sizeof *kernel_cases };

#undef C
#undef LENGTHS
#undef GEMM
#undef BOTH
#undef ROUTES
#undef EXPERTS
#undef LARGE_EXPERTS
#endif
