/* experts.c - SwiGLU experts over routed rows. R rows in groups by expert, D model width, F expert width;
 * gate, up [experts, F, D], down [experts, D, F].
 *
 * One parallel region over (expert, block of rows) items: gather the block's rows into a thread buffer, two
 * products, SwiGLU, one product, scatter, all while the block is in the second-level cache. Experts with few
 * rows cost no fork and no idle threads. Weight gradients are a second list of items, (expert, matrix, tile). */
#include "kernels/cpu/cpu.h"

enum { ROWS = 256 };            /* rows of a block: the products run near peak, and few rows stay on one item */

typedef struct { int64_t expert, first, rows; } item;
typedef struct { item *list; int64_t n; } items;

static items list_blocks(mu_device *dev, const mu_experts_shape *s, const int64_t *offsets) {
    size_t most = (size_t)(s->R / ROWS + s->experts);
    items l = { mu_arena_alloc(&dev->scratch, most * sizeof *l.list), 0 };
    for (int64_t i = 0; i < s->experts; i++)
        for (int64_t r = offsets[i]; r < offsets[i + 1]; r += ROWS)
            l.list[l.n++] = (item){ i, r, cpu_min(ROWS, offsets[i + 1] - r) };
    return l;
}

static void gather_rows(int64_t n, int64_t D, const int32_t *index, mu_mat x, float *to, int64_t ld) {
    for (int64_t r = 0; r < n; r++)
        memcpy(to + r * ld, cpu_f32(x) + index[r] * x.ld, (size_t)D * sizeof *to);
}

static void scatter_rows(int64_t n, int64_t D, const int32_t *index, const float *from, mu_mat y) {
    for (int64_t r = 0; r < n; r++)
        memcpy(cpu_f32(y) + index[r] * y.ld, from + r * D, (size_t)D * sizeof *from);
}

/* a = silu(hg) * hu; a may be hg */
static void swiglu(int64_t n, int64_t F, const float *hg, int64_t ldg, const float *hu, int64_t ldu, float *a,
                   int64_t lda) {
    for (int64_t r = 0; r < n; r++) {
        const float *g = hg + r * ldg, *u = hu + r * ldu;
        float *out = a + r * lda;
#pragma omp simd
        for (int64_t i = 0; i < F; i++) out[i] = g[i] * cpu_sigmoid(g[i]) * u[i];
    }
}

typedef struct {
    const mu_experts_shape *s;
    mu_mat x, in, gate, up, down, hg, hu, out, y;
} forward;

static const float *weights(mu_mat w, const mu_experts_shape *s, int64_t i) { return cpu_f32(w) + i * s->D * s->F; }

static void block_fwd(const forward *f, item it, float *buffer) {
    int64_t D = f->s->D, F = f->s->F, n = it.rows, ldx = f->x.ld, ldg = F, ldu = F;
    float *rows = buffer, *a = rows + ROWS * D, *hg = a, *hu = a + ROWS * F;
    const float *x = cpu_f32(f->x) + it.first * ldx;
    if (f->in.data) {
        gather_rows(n, D, cpu_i32(f->in) + it.first, f->x, rows, D);
        x = rows, ldx = D;
    }
    if (f->hg.data) hg = cpu_f32(f->hg) + it.first * f->hg.ld, ldg = f->hg.ld;
    if (f->hu.data) hu = cpu_f32(f->hu) + it.first * f->hu.ld, ldu = f->hu.ld;
    CPU(sgemm)(false, true, n, F, D, 1, x, ldx, weights(f->gate, f->s, it.expert), D, 0, hg, ldg);
    CPU(sgemm)(false, true, n, F, D, 1, x, ldx, weights(f->up, f->s, it.expert), D, 0, hu, ldu);
    swiglu(n, F, hg, ldg, hu, ldu, a, F);
    float *y = f->out.data ? rows : cpu_f32(f->y) + it.first * f->y.ld;
    CPU(sgemm)(false, true, n, D, F, 1, a, F, weights(f->down, f->s, it.expert), F, 0, y,
               f->out.data ? D : f->y.ld);
    if (f->out.data) scatter_rows(n, D, cpu_i32(f->out) + it.first, rows, f->y);
}

void CPU(experts_fwd)(mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets, mu_mat gate,
                      mu_mat up, mu_mat down, mu_mat hg, mu_mat hu, mu_mat out, mu_mat y) {
    forward f = { s, x, in, gate, up, down, hg, hu, out, y };
    int team = cpu_team(s->R * s->D * s->F / 16);
    size_t mark = mu_arena_mark(&dev->scratch);
    items l = list_blocks(dev, s, cpu_i64(offsets));
    cpu_buffers buffers = cpu_buffers_new(dev, team, (size_t)(ROWS * (s->D + 2 * s->F)));
#pragma omp parallel num_threads(team)
    {
        cpu_enter();
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < l.n; i++) block_fwd(&f, l.list[i], cpu_buffer(buffers));
    }
    mu_arena_release(&dev->scratch, mark);
}

typedef struct {
    const mu_experts_shape *s;
    mu_mat x, in, gate, up, down, hg, hu, out, dy, act, xg, dyg, dx, dgate, dup, ddown;
} backward;

/* act = silu(hg) * hu; then hg and hu become their gradients. */
static void swiglu_bwd(int64_t F, const float *restrict da, float *restrict hg, float *restrict hu,
                       float *restrict act) {
#pragma omp simd
    for (int64_t i = 0; i < F; i++) {
        float g = hg[i], u = hu[i], s = cpu_sigmoid(g), silu = g * s;
        act[i] = silu * u;
        hg[i] = da[i] * u * (s + silu * (1 - s));
        hu[i] = da[i] * silu;
    }
}

/* The rows that products read: gathered into `copy` when there is an index. */
static mu_mat block_rows(item it, int64_t D, mu_mat x, mu_mat index, mu_mat copy) {
    mu_mat from = index.data ? copy : x;
    from.data = cpu_f32(from) + it.first * from.ld;
    if (index.data) gather_rows(it.rows, D, cpu_i32(index) + it.first, x, from.data, from.ld);
    return from;
}

static void block_bwd(const backward *f, item it, float *da) {
    int64_t D = f->s->D, F = f->s->F, n = it.rows;
    mu_mat dy = block_rows(it, D, f->dy, f->out, f->dyg);
    float *hg = cpu_f32(f->hg) + it.first * f->hg.ld, *hu = cpu_f32(f->hu) + it.first * f->hu.ld;
    float *act = cpu_f32(f->act) + it.first * f->act.ld;
    block_rows(it, D, f->x, f->in, f->xg);
    CPU(sgemm)(false, false, n, F, D, 1, dy.data, dy.ld, weights(f->down, f->s, it.expert), F, 0, da, F);
    for (int64_t r = 0; r < n; r++)
        swiglu_bwd(F, da + r * F, hg + r * f->hg.ld, hu + r * f->hu.ld, act + r * f->act.ld);
    if (!f->dx.data) return;
    float *dx = cpu_f32(f->dx) + it.first * f->dx.ld;
    CPU(sgemm)(false, false, n, D, F, 1, hg, f->hg.ld, weights(f->gate, f->s, it.expert), D, 0, dx, f->dx.ld);
    CPU(sgemm)(false, false, n, D, F, 1, hu, f->hu.ld, weights(f->up, f->s, it.expert), D, 1, dx, f->dx.ld);
}

/* rows [first, first + tile) of one gradient: dw[m, n] += a^T b over the expert's rows */
static void weight_tile(mu_mat dw, int64_t expert, int64_t m, int64_t n, int64_t tile, int64_t at, int64_t row,
                        int64_t rows, mu_mat a, mu_mat b) {
    if (!dw.data) return;
    CPU(sgemm)(true, false, cpu_min(tile, m - at), n, rows, 1, cpu_f32(a) + row * a.ld + at, a.ld,
               cpu_f32(b) + row * b.ld, b.ld, 1, cpu_f32(dw) + expert * m * n + at * n, n);
}

/* Item `i` of the weight gradients: expert, then matrix, then tile of its rows. */
static void weight_item(const backward *f, const int64_t *offsets, int64_t tile, int64_t i) {
    int64_t D = f->s->D, F = f->s->F, tiles_F = cpu_blocks(F, tile), each = 2 * tiles_F + cpu_blocks(D, tile);
    int64_t expert = i / each, at = i % each, row = offsets[expert], rows = offsets[expert + 1] - row;
    mu_mat x = f->in.data ? f->xg : f->x, dy = f->out.data ? f->dyg : f->dy;
    if (rows == 0) return;
    if (at < tiles_F) weight_tile(f->dgate, expert, F, D, tile, at * tile, row, rows, f->hg, x);
    else if (at < 2 * tiles_F) weight_tile(f->dup, expert, F, D, tile, (at - tiles_F) * tile, row, rows, f->hu, x);
    else weight_tile(f->ddown, expert, D, F, tile, (at - 2 * tiles_F) * tile, row, rows, dy, f->act);
}

void CPU(experts_bwd)(mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets, mu_mat gate,
                      mu_mat up, mu_mat down, mu_mat hg, mu_mat hu, mu_mat out, mu_mat dy, mu_mat act, mu_mat xg,
                      mu_mat dyg, mu_mat dx, mu_mat dgate, mu_mat dup, mu_mat ddown) {
    backward f = { s, x, in, gate, up, down, hg, hu, out, dy, act, xg, dyg, dx, dgate, dup, ddown };
    int team = cpu_team(s->R * s->D * s->F / 16);
    size_t mark = mu_arena_mark(&dev->scratch);
    items l = list_blocks(dev, s, cpu_i64(offsets));
    cpu_buffers buffers = cpu_buffers_new(dev, team, (size_t)(ROWS * s->F));
    int64_t tile = s->experts >= 8 ? 256 : 128;
    int64_t tiles = s->experts * (2 * cpu_blocks(s->F, tile) + cpu_blocks(s->D, tile));
#pragma omp parallel num_threads(team)
    {
        cpu_enter();
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < l.n; i++) block_bwd(&f, l.list[i], cpu_buffer(buffers));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tiles; i++) weight_item(&f, cpu_i64(offsets), tile, i);
    }
    mu_arena_release(&dev->scratch, mark);
}
