/* attention.c - causal softmax attention, blockwise, without the full S x S scores. d head width, H query heads,
 * G key/value heads.
 *
 * Forward: keys are packed once per (sequence, key head); an item is 32 queries of one head, with the keys up
 * to the diagonal in chunks of 256 and a running maximum and sum. A single query, a step of generation, has an
 * item per key head, whose keys are read in place. Blocks and chunks begin at fixed positions of the sequence,
 * so a query's bits do not depend on other queries. Backward: an item is one head of one sequence; it loops over
 * blocks of 64 keys and the queries after them with the scores *transposed*, so that dk and dv need no
 * transposition, the softmax statistics lie along the vectors, and dk, dv have one owner and one order of sums.
 * All products run on panels in the cache; blocks above the diagonal are skipped. */
#include "kernels/cpu/cpu.h"

enum { QUERIES = 32, CHUNK = 256, KEYS = 64 };

typedef struct { const mu_attention_shape *s; mu_mat q, k, v, y, lse; float *packed_k, *packed_v; } forward;

static int64_t keys_of(const mu_attention_shape *s) { return s->past + s->S; }

/* Packed keys (transposed, [d, keys]) and values ([keys, d], unless read in place) of sequence b, key head g. */
static size_t key_pack(const mu_attention_shape *s) { return cpu_packed(s->d, keys_of(s)); }
static size_t value_pack(const mu_attention_shape *s) {
    return cpu_in_place(s->d) ? 0 : cpu_packed(keys_of(s), s->d);
}

static void pack_head(const forward *f, int64_t bg) {
    const mu_attention_shape *s = f->s;
    int64_t keys = keys_of(s), row = bg / s->G * keys, column = bg % s->G * s->d;
    CPU(pack)(true, s->d, keys, cpu_f32(f->k) + row * f->k.ld + column, f->k.ld,
              f->packed_k + (size_t)bg * key_pack(s));
    if (!cpu_in_place(s->d))
        CPU(pack)(false, keys, s->d, cpu_f32(f->v) + row * f->v.ld + column, f->v.ld,
                  f->packed_v + (size_t)bg * value_pack(s));
}

/* Rounded up to whole vectors: a scalar remainder of exponentials would be slower. */
static int64_t whole(int64_t n) { return (n + 15) / 16 * 16; }

/* One chunk of scores p[rows, n]: query i (position at + i) sees keys `first` .. its own position. Updates the
 * running maximum and sum of each row; p becomes exp(scale * score - max), and `keep` the factor for the earlier
 * output. */
static void softmax_chunk(int64_t rows, int64_t n, int64_t at, int64_t first, float scale, float *p,
                            float *max, float *sum, float *keep) {
    for (int64_t i = 0; i < rows; i++) {
        float *x = p + i * CHUNK, m = max[i], s = 0;
        int64_t seen = cpu_min(n, at + i - first + 1), end = whole(seen);
#pragma omp simd reduction(max : m)
        for (int64_t j = 0; j < seen; j++) {
            x[j] *= scale;
            m = x[j] > m ? x[j] : m;
        }
        for (int64_t j = seen; j < end; j++) x[j] = -INFINITY;
#pragma omp simd reduction(+ : s)
        for (int64_t j = 0; j < end; j++) {
            x[j] = cpu_exp(x[j] - m);
            s += x[j];
        }
        for (int64_t j = end; j < n; j++) x[j] = 0;
        keep[i] = cpu_exp(max[i] - m);
        sum[i] = sum[i] * keep[i] + s;
        max[i] = m;
    }
}

static void scale_rows(int64_t rows, int64_t d, const float *factor, float *y, int64_t ld) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < d; j++) y[i * ld + j] *= factor[i];
}

/* Running statistics of a block's rows; `keep`: the factor for the output of earlier chunks. */
typedef struct { float max[QUERIES], sum[QUERIES], keep[QUERIES]; } running;

static running running_new(int64_t rows) {
    running r;
    for (int64_t i = 0; i < rows; i++) r.max[i] = -INFINITY, r.sum[i] = 0;
    return r;
}

/* Adds a chunk of scores p[rows, n] and the values of its keys to y, which is not normalised yet. */
static void add_chunk(const mu_attention_shape *s, int64_t rows, int64_t n, int64_t at, int64_t first,
                         float *p, cpu_panels v, running *r, float *y, int64_t ldy) {
    softmax_chunk(rows, n, at, first, (float)s->scale, p, r->max, r->sum, r->keep);
    if (first) scale_rows(rows, s->d, r->keep, y, ldy);
    CPU(multiply)(false, rows, s->d, n, p, CHUNK, v, first > 0, y, ldy);
}

static void finish_rows(int64_t rows, int64_t d, running *r, float *y, int64_t ldy, float *lse,
                        int64_t ldlse) {
    for (int64_t i = 0; i < rows; i++) {
        lse[i * ldlse] = r->max[i] + logf(r->sum[i]);
        r->keep[i] = 1 / r->sum[i];
    }
    scale_rows(rows, d, r->keep, y, ldy);
}

/* The block of queries from position `at` up to the next multiple of QUERIES. */
static void query_block(const forward *f, int64_t b, int64_t h, int64_t at, float *p) {
    const mu_attention_shape *s = f->s;
    int64_t end = cpu_min(at - at % QUERIES + QUERIES, keys_of(s)), rows = end - at;
    int64_t row = b * s->S + at - s->past;
    size_t bg = (size_t)(b * s->G + h / (s->H / s->G));
    running r = running_new(rows);
    const float *q = cpu_f32(f->q) + row * f->q.ld + h * s->d;
    float *y = cpu_f32(f->y) + row * f->y.ld + h * s->d;
    cpu_panels k = cpu_panels_of(f->packed_k + bg * key_pack(s), s->d);
    cpu_panels v = cpu_in_place(s->d)
        ? cpu_panels_in_place(cpu_f32(f->v) + b * keys_of(s) * f->v.ld + h / (s->H / s->G) * s->d, f->v.ld)
        : cpu_panels_of(f->packed_v + bg * value_pack(s), keys_of(s));
    for (int64_t first = 0; first < end; first += CHUNK) {
        int64_t n = cpu_min(CHUNK, end - first);
        CPU(multiply)(false, rows, n, s->d, q, f->q.ld, k, false, p, CHUNK);
        add_chunk(s, rows, n, at, first, p, v, &r, y, f->y.ld);
        k = cpu_panels_columns(k, CHUNK);
        v = cpu_panels_rows(v, CHUNK);
    }
    finish_rows(rows, s->d, &r, y, f->y.ld, cpu_f32(f->lse) + h * f->lse.ld + row, 1);
}

/* ---------------------------------------------------------------- one query of each sequence
 * A block's rows are query heads that share a key head. Packing all its keys for these few rows would cost more
 * than the product, so the product is transposed, scores^T = K q^T: the keys are read in place, each once, and a
 * score is the same chain of multiply-adds. */
static size_t single_floats(const mu_attention_shape *s) {
    return 2 * QUERIES * CHUNK + cpu_packed(s->d, QUERIES) +
           (cpu_in_place(s->d) ? 0 : cpu_packed(CHUNK, s->d));
}

/* p[rows, n] = q[rows, d] k[n, d]^T; q is packed. */
static void transposed_scores(int64_t rows, int64_t n, int64_t d, const float *packed_q, const float *k,
                          int64_t ldk, float *transposed, float *p) {
    if (rows == 1) transposed = p;
    CPU(multiply)(false, n, rows, d, k, ldk, cpu_panels_of(packed_q, d), false, transposed, rows);
    for (int64_t i = 0; i < rows && transposed != p; i++)
        for (int64_t j = 0; j < n; j++) p[i * CHUNK + j] = transposed[j * rows + i];
}

/* Heads h .. h+rows-1 at the last position, which sees every key. */
static void single_query(const forward *f, int64_t b, int64_t h, int64_t rows, float *buffer) {
    const mu_attention_shape *s = f->s;
    int64_t keys = keys_of(s), row = b * keys, column = h / (s->H / s->G) * s->d;
    float *p = buffer, *transposed = p + QUERIES * CHUNK, *packed_q = transposed + QUERIES * CHUNK;
    float *packed_v = packed_q + cpu_packed(s->d, QUERIES), *y = cpu_f32(f->y) + b * f->y.ld + h * s->d;
    running r = running_new(rows);
    CPU(pack)(true, s->d, rows, cpu_f32(f->q) + b * f->q.ld + h * s->d, s->d, packed_q);
    for (int64_t first = 0; first < keys; first += CHUNK) {
        int64_t n = cpu_min(CHUNK, keys - first);
        const float *v = cpu_f32(f->v) + (row + first) * f->v.ld + column;
        transposed_scores(rows, n, s->d, packed_q, cpu_f32(f->k) + (row + first) * f->k.ld + column, f->k.ld,
                      transposed, p);
        add_chunk(s, rows, n, s->past, first, p, cpu_panels_from(n, s->d, v, f->v.ld, packed_v), &r, y,
                     s->d);
    }
    finish_rows(rows, s->d, &r, y, s->d, cpu_f32(f->lse) + h * f->lse.ld + b, f->lse.ld);
}

/* An item is up to QUERIES heads of a key head. */
static void single_queries(mu_device *dev, const forward *f) {
    const mu_attention_shape *s = f->s;
    int64_t heads = s->H / s->G, blocks = cpu_blocks(heads, QUERIES), items = s->B * s->G * blocks;
    int team = cpu_team(items * keys_of(s) * s->d / 2);
    size_t mark = mu_arena_mark(&dev->scratch);
    cpu_buffers buffers = cpu_buffers_new(dev, team, single_floats(s));
#pragma omp parallel for schedule(static) num_threads(team)
    for (int64_t item = 0; item < items; item++) {
        int64_t bg = item / blocks, at = item % blocks * QUERIES;
        single_query(f, bg / s->G, bg % s->G * heads + at, cpu_min(QUERIES, heads - at), cpu_buffer(buffers));
    }
    mu_arena_release(&dev->scratch, mark);
}

void CPU(attention_fwd)(mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y,
                        mu_mat lse) {
    if (s->S == 1) {
        single_queries(dev, &(forward){ s, q, k, v, y, lse, NULL, NULL });
        return;
    }
    int64_t skipped = s->past / QUERIES, blocks = cpu_blocks(keys_of(s), QUERIES) - skipped;
    int64_t items = s->B * s->H * blocks, heads = s->B * s->G;
    int team = cpu_team(items * QUERIES * keys_of(s));
    size_t mark = mu_arena_mark(&dev->scratch);
    cpu_buffers buffers = cpu_buffers_new(dev, team, QUERIES * CHUNK);
    cpu_shares shares = cpu_shares_new(dev, team, items);
    forward f = { s, q, k, v, y, lse, mu_arena_alloc(&dev->scratch,
                                                     (size_t)heads * key_pack(s) * sizeof(float)),
                  mu_arena_alloc(&dev->scratch, (size_t)heads * value_pack(s) * sizeof(float)) };
#pragma omp parallel num_threads(team)
    {
        float *p = cpu_buffer(buffers);
#pragma omp for schedule(static)
        for (int64_t bg = 0; bg < heads; bg++) pack_head(&f, bg);
        int turn = 0;
        for (int64_t item; (item = cpu_take(shares, &turn)) >= 0;) {
            int64_t bh = item / blocks, block = skipped + blocks - 1 - item % blocks;
            query_block(&f, bh / s->H, bh % s->H, cpu_max(s->past, block * QUERIES), p);
        }
    }
    mu_arena_release(&dev->scratch, mark);
}

/* ---------------------------------------------------------------- backward */
typedef struct { const mu_attention_shape *s; mu_mat q, k, v, y, lse, dy, dq, dk, dv; } backward;

/* Data of one head in its thread's buffer; lse and delta = <y, dy> contiguous along the queries. */
typedef struct { float *qt, *dyt, *q, *dy, *k, *lse, *delta, *p, *dp; cpu_panels q_panels, dy_panels; } head;

static size_t head_floats(const mu_attention_shape *s) {
    size_t S = (size_t)s->S + CPU_NR;
    return 2 * key_pack(s) + 2 * value_pack(s) + cpu_packed(KEYS, s->d) + 2 * S + 2 * KEYS * CHUNK + 128;
}

static float *take(float **at, size_t floats) {
    float *p = *at;
    *at += (floats + 15) / 16 * 16;
    return p;
}

static head head_in(const mu_attention_shape *s, float *buffer) {
    size_t S = (size_t)s->S;
    head w;
    w.qt = take(&buffer, key_pack(s)), w.dyt = take(&buffer, key_pack(s));
    w.q = take(&buffer, value_pack(s)), w.dy = take(&buffer, value_pack(s));
    w.k = take(&buffer, cpu_packed(KEYS, s->d));
    w.lse = take(&buffer, S), w.delta = take(&buffer, S);
    w.p = take(&buffer, KEYS * CHUNK), w.dp = take(&buffer, KEYS * CHUNK);
    return w;
}

static float dot(int64_t n, const float *x, const float *y) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += x[i] * y[i];
    return s;
}

static void head_prepare(const backward *f, int64_t row, int64_t h, head *w) {
    const mu_attention_shape *s = f->s;
    const float *q = cpu_f32(f->q) + row * f->q.ld + h * s->d;
    const float *dy = cpu_f32(f->dy) + row * f->dy.ld + h * s->d;
    const float *y = cpu_f32(f->y) + row * f->y.ld + h * s->d;
    CPU(pack)(true, s->d, s->S, q, f->q.ld, w->qt);
    CPU(pack)(true, s->d, s->S, dy, f->dy.ld, w->dyt);
    w->q_panels = cpu_panels_from(s->S, s->d, q, f->q.ld, w->q);
    w->dy_panels = cpu_panels_from(s->S, s->d, dy, f->dy.ld, w->dy);
    for (int64_t i = 0; i < s->S; i++) {
        w->lse[i] = cpu_f32(f->lse)[h * f->lse.ld + row + i];
        w->delta[i] = dot(s->d, y + i * f->y.ld, dy + i * f->dy.ld);
    }
}

/* Transposed scores p[keys, n] of keys `key`.. and queries `at`.. become probabilities, dp the gradient of
 * the scores; both are 0 where the key comes after the query. */
static void softmax_gradient(int64_t keys, int64_t n, int64_t key, int64_t at, float scale, head w) {
    const float *lse = w.lse + at, *delta = w.delta + at;
    for (int64_t i = 0; i < keys; i++) {
        float *restrict x = w.p + i * CHUNK, *restrict dx = w.dp + i * CHUNK;
        int64_t blind = cpu_min(n, cpu_max(0, key + i - at));
#pragma omp simd
        for (int64_t j = blind / 16 * 16; j < whole(n); j++) {
            x[j] = cpu_exp(x[j] * scale - lse[j]);
            dx[j] = x[j] * (dx[j] - delta[j]) * scale;
        }
        for (int64_t j = 0; j < blind; j++) x[j] = dx[j] = 0;
    }
}

/* Keys key .. key+keys-1 against all queries from `key` on. dk, dv: first row of the block. */
static void key_block(const backward *f, int64_t row, int64_t h, int64_t key, head w, float *dk, int64_t lddk,
                      float *dv, int64_t lddv) {
    const mu_attention_shape *s = f->s;
    int64_t keys = cpu_min(KEYS, s->S - key), d = s->d, g = h / (s->H / s->G);
    const float *k = cpu_f32(f->k) + (row + key) * f->k.ld + g * d;
    const float *v = cpu_f32(f->v) + (row + key) * f->v.ld + g * d;
    cpu_panels k_panels = cpu_panels_from(keys, d, k, f->k.ld, w.k);
    for (int64_t at = key; at < s->S; at += CHUNK) {
        int64_t n = cpu_min(CHUNK, s->S - at);
        CPU(multiply)(false, keys, n, d, k, f->k.ld, cpu_panels_columns(cpu_panels_of(w.qt, d), at), false, w.p, CHUNK);
        CPU(multiply)(false, keys, n, d, v, f->v.ld, cpu_panels_columns(cpu_panels_of(w.dyt, d), at), false, w.dp, CHUNK);
        softmax_gradient(keys, n, key, at, (float)s->scale, w);
        CPU(multiply)(false, keys, d, n, w.p, CHUNK, cpu_panels_rows(w.dy_panels, at), true, dv, lddv);
        CPU(multiply)(false, keys, d, n, w.dp, CHUNK, cpu_panels_rows(w.q_panels, at), true, dk, lddk);
        CPU(multiply)(true, n, d, keys, w.dp, CHUNK, k_panels, true,
                        cpu_f32(f->dq) + (row + at) * f->dq.ld + h * d, f->dq.ld);
    }
}

static void add_head(int64_t rows, int64_t d, const float *from, int64_t ldf, float *to, int64_t ldt) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < d; j++) to[i * ldt + j] += from[i * ldf + j];
}

/* With several query heads per key head, each writes its own dk and dv, [B*S, H*d]; then they are added in order
 * of the heads. */
static void add_parts(const mu_attention_shape *s, int64_t bg, const float *part, mu_mat to) {
    int64_t row = bg / s->G * s->S, g = bg % s->G, heads = s->H / s->G, ld = s->H * s->d;
    for (int64_t h = g * heads; h < (g + 1) * heads; h++)
        add_head(s->S, s->d, part + row * ld + h * s->d, ld, cpu_f32(to) + row * to.ld + g * s->d, to.ld);
}

void CPU(attention_bwd)(mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y,
                        mu_mat lse, mu_mat dy, mu_mat dq, mu_mat dk, mu_mat dv) {
    backward f = { s, q, k, v, y, lse, dy, dq, dk, dv };
    int64_t items = s->B * s->H, ld = s->H * s->d;
    int team = cpu_team(items * s->S * s->S);
    bool shared = s->H > s->G;
    size_t mark = mu_arena_mark(&dev->scratch);
    size_t part = shared ? (size_t)(s->B * s->S * ld) * sizeof(float) : 0;
    cpu_buffers buffers = cpu_buffers_new(dev, team, head_floats(s));
    cpu_shares shares = cpu_shares_new(dev, team, items);
    mu_mat dkh = shared ? (mu_mat){ mu_arena_alloc(&dev->scratch, part), MU_DTYPE_F32, ld } : dk;
    mu_mat dvh = shared ? (mu_mat){ mu_arena_alloc(&dev->scratch, part), MU_DTYPE_F32, ld } : dv;
    if (part) memset(dkh.data, 0, part), memset(dvh.data, 0, part);
#pragma omp parallel num_threads(team)
    {
        head w = head_in(s, cpu_buffer(buffers));
        int turn = 0;
        for (int64_t item; (item = cpu_take(shares, &turn)) >= 0;) {
            int64_t row = item / s->H * s->S, h = item % s->H;
            head_prepare(&f, row, h, &w);
            for (int64_t key = 0; key < s->S; key += KEYS)
                key_block(&f, row, h, key, w, cpu_f32(dkh) + (row + key) * dkh.ld + h * s->d, dkh.ld,
                          cpu_f32(dvh) + (row + key) * dvh.ld + h * s->d, dvh.ld);
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t bg = 0; bg < (shared ? s->B * s->G : 0); bg++) {
            add_parts(s, bg, dkh.data, dk);
            add_parts(s, bg, dvh.data, dv);
        }
    }
    mu_arena_release(&dev->scratch, mark);
}
