/* attention.c - causal softmax attention, blockwise: the S x S scores never exist at once.
 *
 * Work item: 64 queries of one head (forward), one sequence and key head (backward). Keys come in stretches of
 * up to 256, cut at the diagonal: products of 64 x 256 x d are large enough for the library to run near its
 * peak, and the stretch of scores stays in the second-level cache. */
#include "kernels/cpu/cpu.h"

enum { QUERIES = 64, KEYS = 256 };

/* One stretch of scores p[rows, n]: query i (position `at` + i) sees keys `first` .. its own position. Running
 * maximum and sum of each row are brought up to date, p becomes exp(score - max), and `keep` what the earlier
 * output must be multiplied by. */
static void softmax_stretch(int64_t rows, int64_t n, int64_t at, int64_t first, float *p, float *max, float *sum,
                            float *keep) {
    for (int64_t i = 0; i < rows; i++) {
        float *x = p + i * KEYS, m = max[i], s = 0;
        int64_t seen = cpu_min(n, at + i - first + 1);
#pragma omp simd reduction(max : m)
        for (int64_t j = 0; j < seen; j++) m = x[j] > m ? x[j] : m;
#pragma omp simd reduction(+ : s)
        for (int64_t j = 0; j < seen; j++) {
            x[j] = cpu_exp(x[j] - m);
            s += x[j];
        }
        for (int64_t j = seen; j < n; j++) x[j] = 0;
        keep[i] = cpu_exp(max[i] - m);
        sum[i] = sum[i] * keep[i] + s;
        max[i] = m;
    }
}

static void scale_rows(int64_t rows, int64_t d, const float *factor, float *y, int64_t ld) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < d; j++) y[i * ld + j] *= factor[i];
}

typedef struct { const mu_attention_shape *s; mu_mat q, k, v, y, lse; } forward;

static void query_block(const forward *f, int64_t b, int64_t h, int64_t at, float *p) {
    const mu_attention_shape *s = f->s;
    int64_t rows = cpu_min(QUERIES, s->S - at), row = b * s->S + at, g = h / (s->H / s->G), end = at + rows;
    float max[QUERIES], sum[QUERIES], keep[QUERIES];
    const float *q = cpu_f32(f->q) + row * f->q.ld + h * s->d;
    float *y = cpu_f32(f->y) + row * f->y.ld + h * s->d;
    for (int64_t i = 0; i < rows; i++) max[i] = -INFINITY, sum[i] = 0;
    for (int64_t first = 0; first < end; first += KEYS) {
        int64_t n = cpu_min(KEYS, end - first), key = b * s->S + first;
        CPU(sgemm)(false, true, rows, n, s->d, (float)s->scale, q, f->q.ld,
                   cpu_f32(f->k) + key * f->k.ld + g * s->d, f->k.ld, 0, p, KEYS);
        softmax_stretch(rows, n, at, first, p, max, sum, keep);
        if (first) scale_rows(rows, s->d, keep, y, f->y.ld);
        CPU(sgemm)(false, false, rows, s->d, n, 1, p, KEYS, cpu_f32(f->v) + key * f->v.ld + g * s->d, f->v.ld,
                   first ? 1 : 0, y, f->y.ld);
    }
    for (int64_t i = 0; i < rows; i++) {
        cpu_f32(f->lse)[(row + i) * f->lse.ld + h] = max[i] + logf(sum[i]);
        keep[i] = 1 / sum[i];
    }
    scale_rows(rows, s->d, keep, y, f->y.ld);
}

void CPU(attention_fwd)(mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y,
                        mu_mat lse) {
    forward f = { s, q, k, v, y, lse };
    int64_t blocks = cpu_blocks(s->S, QUERIES), items = s->B * s->H * blocks;
    int team = cpu_team(items * QUERIES * s->S);
    size_t mark = mu_arena_mark(&dev->scratch);
    cpu_buffers buffers = cpu_buffers_new(dev, team, QUERIES * KEYS);
#pragma omp parallel num_threads(team)
    {
        cpu_enter();
        float *p = cpu_buffer(buffers);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < items; item++) {
            int64_t bh = item % (s->B * s->H), block = blocks - 1 - item / (s->B * s->H);   /* long ones first */
            query_block(&f, bh / s->H, bh % s->H, block * QUERIES, p);
        }
    }
    mu_arena_release(&dev->scratch, mark);
}

typedef struct { const mu_attention_shape *s; mu_mat q, k, v, y, lse, dy, dq, dk, dv; } backward;

/* delta[i] = <y[i], dy[i]>, the sum of p * dp of a row. */
static void row_deltas(int64_t rows, int64_t d, const float *y, int64_t ldy, const float *dy, int64_t lddy,
                       float *delta) {
    for (int64_t i = 0; i < rows; i++) {
        float s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t j = 0; j < d; j++) s += y[i * ldy + j] * dy[i * lddy + j];
        delta[i] = s;
    }
}

/* Scores p become probabilities, dp their scores' gradient times `scale`; both 0 above the diagonal. */
static void softmax_gradient(int64_t rows, int64_t n, int64_t at, int64_t first, float scale, const float *lse,
                             int64_t ld, const float *delta, float *p, float *dp) {
    for (int64_t i = 0; i < rows; i++) {
        float *restrict x = p + i * KEYS, *restrict dx = dp + i * KEYS, l = lse[i * ld], e = delta[i];
        int64_t seen = cpu_min(n, at + i - first + 1);
#pragma omp simd
        for (int64_t j = 0; j < seen; j++) {
            x[j] = cpu_exp(x[j] - l);
            dx[j] = x[j] * (dx[j] - e) * scale;
        }
        for (int64_t j = seen; j < n; j++) x[j] = dx[j] = 0;
    }
}

static void query_block_bwd(const backward *f, int64_t b, int64_t h, int64_t at, float *p) {
    const mu_attention_shape *s = f->s;
    int64_t rows = cpu_min(QUERIES, s->S - at), row = b * s->S + at, g = h / (s->H / s->G), d = s->d;
    const float *q = cpu_f32(f->q) + row * f->q.ld + h * d, *dy = cpu_f32(f->dy) + row * f->dy.ld + h * d;
    const float *lse = cpu_f32(f->lse) + row * f->lse.ld + h;
    float delta[QUERIES], *dp = p + QUERIES * KEYS, *dq = cpu_f32(f->dq) + row * f->dq.ld + h * d;
    row_deltas(rows, d, cpu_f32(f->y) + row * f->y.ld + h * d, f->y.ld, dy, f->dy.ld, delta);
    for (int64_t first = 0; first < at + rows; first += KEYS) {
        int64_t n = cpu_min(KEYS, at + rows - first), key = b * s->S + first;
        const float *k = cpu_f32(f->k) + key * f->k.ld + g * d, *v = cpu_f32(f->v) + key * f->v.ld + g * d;
        CPU(sgemm)(false, true, rows, n, d, (float)s->scale, q, f->q.ld, k, f->k.ld, 0, p, KEYS);
        CPU(sgemm)(false, true, rows, n, d, 1, dy, f->dy.ld, v, f->v.ld, 0, dp, KEYS);
        softmax_gradient(rows, n, at, first, (float)s->scale, lse, f->lse.ld, delta, p, dp);
        CPU(sgemm)(true, false, n, d, rows, 1, p, KEYS, dy, f->dy.ld, 1, cpu_f32(f->dv) + key * f->dv.ld + g * d,
                   f->dv.ld);
        CPU(sgemm)(true, false, n, d, rows, 1, dp, KEYS, q, f->q.ld, 1, cpu_f32(f->dk) + key * f->dk.ld + g * d,
                   f->dk.ld);
        CPU(sgemm)(false, false, rows, d, n, 1, dp, KEYS, k, f->k.ld, 1, dq, f->dq.ld);
    }
}

/* One item owns all queries that read a key head, so dk and dv have one owner and one order of sums. */
void CPU(attention_bwd)(mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y,
                        mu_mat lse, mu_mat dy, mu_mat dq, mu_mat dk, mu_mat dv) {
    backward f = { s, q, k, v, y, lse, dy, dq, dk, dv };
    int64_t items = s->B * s->G, heads = s->H / s->G;
    int team = cpu_team(items * heads * s->S * s->S);
    size_t mark = mu_arena_mark(&dev->scratch);
    cpu_buffers buffers = cpu_buffers_new(dev, team, 2 * QUERIES * KEYS);
#pragma omp parallel num_threads(team)
    {
        cpu_enter();
        float *p = cpu_buffer(buffers);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < items; item++)
            for (int64_t h = 0; h < heads; h++)
                for (int64_t at = 0; at < s->S; at += QUERIES)
                    query_block_bwd(&f, item / s->G, item % s->G * heads + h, at, p);
    }
    mu_arena_release(&dev->scratch, mark);
}
