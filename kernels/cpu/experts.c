/* experts.c - SwiGLU experts over routed rows. R rows in groups by expert, D model width, F expert width;
 * gate, up [experts, F, D], down [experts, D, F].
 *
 * One parallel region over (expert, block of rows) items: gather the block's rows into a thread buffer, two
 * products, SwiGLU, one product, scatter, all while the block is in the second-level cache. Each expert's
 * weights are packed once, by all threads, for all its rows; experts with few rows cost no fork and no idle
 * threads. Weight gradients are tiles of (expert, matrix), which follow their expert's blocks closely. */
#include "kernels/cpu/cpu.h"

#include <sched.h>

enum { ROWS = 56, MOST_ROWS = 70 };                        /* of a block: even tiles, fits the cache; a little more alone */
enum { TILE_M = 256, TILE_N = 256 };                        /* of a weight gradient */
static const int64_t MOST_PACKED = (int64_t)1 << 20;        /* floats packed at a time, still in a cache */

typedef struct { int64_t expert, first, rows; } item;
typedef struct { item *list; int64_t n; } items;

/* Weights are read for each block: 64 rows in one are faster than in two. */
static int64_t blocks_of(int64_t rows) { return rows <= MOST_ROWS ? cpu_blocks(rows, MOST_ROWS) : cpu_blocks(rows, ROWS); }

/* Blocks of near-equal height of experts first .. end-1. */
static items list_blocks(mu_device *dev, const int64_t *offsets, int64_t first, int64_t end) {
    size_t most = (size_t)((offsets[end] - offsets[first]) / ROWS + end - first);
    items l = { mu_arena_alloc(&dev->scratch, most * sizeof *l.list), 0 };
    for (int64_t i = first; i < end; i++) {
        int64_t rows = offsets[i + 1] - offsets[i], blocks = blocks_of(rows);
        for (int64_t b = 0; b < blocks; b++) {
            int64_t at = rows * b / blocks;
            l.list[l.n++] = (item){ i, offsets[i] + at, rows * (b + 1) / blocks - at };
        }
    }
    return l;
}

/* Experts whose packed weights fit together, from `first` on; at least one. */
static int64_t group_end(const mu_experts_shape *s, int64_t each, int64_t first) {
    return cpu_min(s->experts, first + cpu_max(1, MOST_PACKED / cpu_max(each, 1)));
}

/* The packed weights of experts `first` and on: gate, up, down of one, then of the next. data is NULL when
 * the products read the weights in place. */
typedef struct { float *data; int64_t first, gate, each; } packs;

static float *pack_of(packs p, int64_t expert, int which) {
    return p.data + (expert - p.first) * p.each + which * p.gate;
}

static mu_mat part_of(mu_mat m, int64_t row, int64_t column) {
    return (mu_mat){ cpu_f32(m) + row * m.ld + column, m.dtype, m.ld };
}

/* Rows first .. first+n-1 of x as products read them: in place, or gathered into `room` when there is an index. */
static mu_mat rows_of(mu_mat x, mu_mat index, int64_t first, int64_t n, int64_t D, mu_mat room) {
    if (!index.data) return part_of(x, first, 0);
    cpu_gather_rows(n, D, cpu_i32(index) + first, x.data, x.ld, room.data, room.ld);
    return room;
}

static void scatter_rows(int64_t n, int64_t D, const int32_t *index, const float *from, mu_mat y) {
    for (int64_t r = 0; r < n; r++)
        memcpy(cpu_f32(y) + index[r] * y.ld, from + r * D, (size_t)D * sizeof *from);
}

static float row_weight(mu_mat weights, int64_t row) { return weights.data ? cpu_f32(weights)[row] : 1; }

/* a = silu(hg) * hu, times the weights of rows `first` and on; a may be hg */
static void swiglu(int64_t n, int64_t F, const float *hg, int64_t ldg, const float *hu, int64_t ldu, mu_mat weights,
                   int64_t first, float *a, int64_t lda) {
    for (int64_t r = 0; r < n; r++) {
        const float *g = hg + r * ldg, *u = hu + r * ldu;
        float *out = a + r * lda, weight = row_weight(weights, first + r);
#pragma omp simd
        for (int64_t i = 0; i < F; i++) out[i] = weight * (g[i] * cpu_sigmoid(g[i]) * u[i]);
    }
}

static const float *matrix_of(mu_mat w, const mu_experts_shape *s, int64_t i) {
    return cpu_f32(w) + i * s->D * s->F;
}

/* Packs the weights of experts first .. end-1 that have rows, inside a parallel region. Forward multiplies by
 * the transposes, backward by the matrices as they are. */
static void pack_weights(const mu_experts_shape *s, const int64_t *offsets, bool transposed, packs p,
                         int64_t end, mu_mat gate, mu_mat up, mu_mat down) {
    int64_t D = s->D, F = s->F, out = F, in = D;                        /* gate and up are [F, D] */
    int64_t gates = cpu_parts(transposed, transposed ? in : out, transposed ? out : in);
    int64_t each = 2 * gates + cpu_parts(transposed, transposed ? out : in, transposed ? in : out);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (end - p.first) * each; i++) {
        int64_t expert = p.first + i / each, part = i % each;
        int which = part < gates ? 0 : part < 2 * gates ? 1 : 2;
        if (offsets[expert] == offsets[expert + 1]) continue;
        const float *from = matrix_of(which == 0 ? gate : which == 1 ? up : down, s, expert);
        int64_t rows = which == 2 ? D : F, columns = which == 2 ? F : D;
        CPU(pack_part)(transposed, transposed ? columns : rows, transposed ? rows : columns, from, columns,
                       part - which * gates, pack_of(p, expert, which));
    }
}

typedef struct {
    const mu_experts_shape *s;
    mu_mat x, in, gate, up, down, hg, hu, out, weights, y;
} forward;

static mu_mat input_rows(const forward *f, item it, float *room) {
    return rows_of(f->x, f->in, it.first, it.rows, f->s->D, (mu_mat){ room, MU_DTYPE_F32, f->s->D });
}

static void block_fwd(const forward *f, packs p, item it, float *buffer) {
    int64_t D = f->s->D, F = f->s->F, n = it.rows, ldg = F, ldu = F;
    float *rows = buffer, *a = rows + MOST_ROWS * D, *hg = a, *hu = a + MOST_ROWS * F;
    mu_mat x = input_rows(f, it, rows);
    if (f->hg.data) hg = cpu_f32(f->hg) + it.first * f->hg.ld, ldg = f->hg.ld;
    if (f->hu.data) hu = cpu_f32(f->hu) + it.first * f->hu.ld, ldu = f->hu.ld;
    CPU(multiply)(false, n, F, D, x.data, x.ld, cpu_panels_of(pack_of(p, it.expert, 0), D), false, hg, ldg);
    CPU(multiply)(false, n, F, D, x.data, x.ld, cpu_panels_of(pack_of(p, it.expert, 1), D), false, hu, ldu);
    swiglu(n, F, hg, ldg, hu, ldu, f->weights, it.first, a, F);
    float *y = f->out.data ? rows : cpu_f32(f->y) + it.first * f->y.ld;
    CPU(multiply)(false, n, D, F, a, F, cpu_panels_of(pack_of(p, it.expert, 2), F), false, y,
                  f->out.data ? D : f->y.ld);
    if (f->out.data) scatter_rows(n, D, cpu_i32(f->out) + it.first, rows, f->y);
}

/* ---------------------------------------------------------------- forward, few rows an expert
 * An item is CPU_WIDE columns of one expert: its weights are read once. First
 * the columns of both up-projections and SwiGLU, then those of the result. */
typedef struct { const forward *f; items live; float *act; } few;

static void few_up(const few *w, int64_t i, float *buffer) {
    const forward *f = w->f;
    int64_t D = f->s->D, F = f->s->F, parts = cpu_blocks(F, CPU_WIDE), j = i % parts * CPU_WIDE;
    item it = w->live.list[i / parts];
    int64_t n = it.rows, columns = cpu_min(CPU_WIDE, F - j), ldg = CPU_WIDE, ldu = CPU_WIDE;
    float *rows = buffer, *hg = rows + CPU_FEW * D, *hu = hg + CPU_FEW * CPU_WIDE;
    mu_mat x = input_rows(f, it, rows);
    if (f->hg.data) hg = cpu_f32(f->hg) + it.first * f->hg.ld + j, ldg = f->hg.ld;
    if (f->hu.data) hu = cpu_f32(f->hu) + it.first * f->hu.ld + j, ldu = f->hu.ld;
    CPU(multiply_few)(f->s->loose, n, columns, D, x.data, x.ld, matrix_of(f->gate, f->s, it.expert) + j * D, D, false, hg, ldg);
    CPU(multiply_few)(f->s->loose, n, columns, D, x.data, x.ld, matrix_of(f->up, f->s, it.expert) + j * D, D, false, hu, ldu);
    swiglu(n, columns, hg, ldg, hu, ldu, f->weights, it.first, w->act + it.first * F + j, F);
}

static void few_down(const few *w, int64_t i, float *buffer) {
    const forward *f = w->f;
    int64_t D = f->s->D, F = f->s->F, parts = cpu_blocks(D, CPU_WIDE), j = i % parts * CPU_WIDE;
    item it = w->live.list[i / parts];
    int64_t n = it.rows, columns = cpu_min(CPU_WIDE, D - j);
    mu_mat part = part_of(f->y, 0, j);
    float *y = f->out.data ? buffer : cpu_f32(part) + it.first * part.ld;
    CPU(multiply_few)(f->s->loose, n, columns, F, w->act + it.first * F, F, matrix_of(f->down, f->s, it.expert) + j * F, F, false, y,
                      f->out.data ? columns : part.ld);
    if (f->out.data) scatter_rows(n, columns, cpu_i32(f->out) + it.first, buffer, part);
}

static items list_experts(mu_device *dev, const int64_t *offsets, int64_t experts) {
    items l = { mu_arena_alloc(&dev->scratch, (size_t)experts * sizeof *l.list), 0 };
    for (int64_t i = 0; i < experts; i++)
        if (offsets[i + 1] > offsets[i]) l.list[l.n++] = (item){ i, offsets[i], offsets[i + 1] - offsets[i] };
    return l;
}

static void few_rows_fwd(mu_device *dev, const forward *f, const int64_t *offsets) {
    int64_t D = f->s->D, F = f->s->F, R = offsets[f->s->experts];
    few w = { f, list_experts(dev, offsets, f->s->experts), NULL };
    w.act = mu_arena_alloc(&dev->scratch, (size_t)(R * F) * sizeof *w.act);
    int64_t ups = w.live.n * cpu_blocks(F, CPU_WIDE), downs = w.live.n * cpu_blocks(D, CPU_WIDE);
    int team = cpu_product_team(R, 3 * w.live.n * D, F);
    cpu_buffers buffers = cpu_buffers_new(dev, team, (size_t)(CPU_FEW * (D + 2 * CPU_WIDE)));
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < ups; i++) few_up(&w, i, cpu_buffer(buffers));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < downs; i++) few_down(&w, i, cpu_buffer(buffers));
    }
}

/* Rows of the expert with the most. */
static int64_t most_rows(const int64_t *offsets, int64_t experts) {
    int64_t most = 0;
    for (int64_t i = 0; i < experts; i++) most = cpu_max(most, offsets[i + 1] - offsets[i]);
    return most;
}

/* Weights that are packed for all rows pay when a block's activations stay in the cache meanwhile; not for few rows (with
 * AVX-512 products of few rows need no packing at all), nor when the packed weights would not fit into a cache anyway. */
enum { ALWAYS_FEW = CPU_LANES == 16 ? 128 : 64, FP32_FEW = 8 };
static bool few_for_large_weights(const mu_experts_shape *s, int64_t rows) {
    return rows <= CPU_FEW && 3 * s->D * s->F > MOST_PACKED;
}
static bool are_few(const mu_experts_shape *s, int64_t rows) { return rows <= ALWAYS_FEW || few_for_large_weights(s, rows); }

/* To round weights to bf16 takes longer than to multiply them with a handful of rows. */
static bool better_in_fp32(const mu_experts_shape *s, const int64_t *offsets) {
    return CPU_ROUNDS && s->loose && most_rows(offsets, s->experts) <= FP32_FEW;
}

static packs packs_new(mu_device *dev, int64_t first, int64_t end, size_t gate, size_t down) {
    packs p = { NULL, first, (int64_t)gate, (int64_t)(2 * gate + down) };
    p.data = mu_arena_alloc(&dev->scratch, (size_t)((end - first) * p.each) * sizeof(float));
    return p;
}

void CPU(experts_fwd)(mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets,
                      mu_mat gate, mu_mat up, mu_mat down, mu_mat hg, mu_mat hu, mu_mat out,
                      mu_mat weights, mu_mat y) {
    forward f = { s, x, in, gate, up, down, hg, hu, out, weights, y };
    if (better_in_fp32(s, cpu_i64(offsets))) {
        CPU_FINE(experts_fwd)(dev, s, x, in, offsets, gate, up, down, hg, hu, out, weights, y);
        return;
    }
    int team = cpu_team(s->R * s->D * s->F / 16);
    size_t mark = mu_arena_mark(&dev->scratch), g = cpu_packed(s->D, s->F), d = cpu_packed(s->F, s->D);
    if (are_few(s, most_rows(cpu_i64(offsets), s->experts))) {
        few_rows_fwd(dev, &f, cpu_i64(offsets));
        mu_arena_release(&dev->scratch, mark);
        return;
    }
    cpu_buffers buffers = cpu_buffers_new(dev, team, (size_t)(MOST_ROWS * (s->D + 2 * s->F)));
    for (int64_t first = 0, end; first < s->experts; first = end) {
        size_t group = mu_arena_mark(&dev->scratch);
        end = group_end(s, (int64_t)(2 * g + d), first);
        items l = list_blocks(dev, cpu_i64(offsets), first, end);
        packs p = packs_new(dev, first, end, g, d);
#pragma omp parallel num_threads(team)
        {
            pack_weights(s, cpu_i64(offsets), true, p, end, gate, up, down);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < l.n; i++) block_fwd(&f, p, l.list[i], cpu_buffer(buffers));
        }
        mu_arena_release(&dev->scratch, group);
    }
    mu_arena_release(&dev->scratch, mark);
}

typedef struct {
    const mu_experts_shape *s;
    mu_mat x, in, gate, up, down, hg, hu, out, weights, dy, act, xg, dyg, dx, dweights, dgate, dup, ddown;
} backward;

/* act = weight * a, a = silu(hg) * hu; then hg and hu become their gradients. b: the gradient of a, but for the
 * weight. Returns <a, b>. */
static float swiglu_bwd(int64_t F, float weight, const float *restrict b, float *restrict hg, float *restrict hu,
                        float *restrict act) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < F; i++) {
        float g = hg[i], u = hu[i], s = cpu_sigmoid(g), silu = g * s, a = silu * u, da = weight * b[i];
        sum += a * b[i];
        act[i] = weight * a;
        hg[i] = da * u * (s + silu * (1 - s));
        hu[i] = da * silu;
    }
    return sum;
}

/* Weight [k, n] of an expert, `which` of gate, up, down, as it is multiplied from the right. */
static cpu_panels weight_panels(const mu_experts_shape *s, packs p, int64_t expert, int which, mu_mat w,
                                int64_t k, int64_t n) {
    if (p.data) return cpu_panels_of(pack_of(p, expert, which), k);
    return cpu_panels_in_place(matrix_of(w, s, expert), n);
}

static void block_bwd(const backward *f, packs p, item it, float *da) {
    int64_t D = f->s->D, F = f->s->F, n = it.rows;
    mu_mat room = { da + MOST_ROWS * F, MU_DTYPE_F32, D };
    mu_mat dy = rows_of(f->dy, f->out, it.first, n, D, f->dyg.data ? part_of(f->dyg, it.first, 0) : room);
    float *hg = cpu_f32(f->hg) + it.first * f->hg.ld, *hu = cpu_f32(f->hu) + it.first * f->hu.ld;
    float *act = cpu_f32(f->act) + it.first * f->act.ld;
    if (f->xg.data) rows_of(f->x, f->in, it.first, n, D, part_of(f->xg, it.first, 0));
    CPU(multiply)(false, n, F, D, dy.data, dy.ld, weight_panels(f->s, p, it.expert, 2, f->down, D, F), false,
                  da, F);
    for (int64_t r = 0; r < n; r++) {
        float weight = row_weight(f->weights, it.first + r);
        float dweight = swiglu_bwd(F, weight, da + r * F, hg + r * f->hg.ld, hu + r * f->hu.ld, act + r * f->act.ld);
        if (f->dweights.data) cpu_f32(f->dweights)[it.first + r] = dweight;
    }
    if (!f->dx.data) return;
    float *dx = cpu_f32(f->dx) + it.first * f->dx.ld;
    CPU(multiply)(false, n, D, F, hg, f->hg.ld, weight_panels(f->s, p, it.expert, 0, f->gate, F, D), false,
                  dx, f->dx.ld);
    CPU(multiply)(false, n, D, F, hu, f->hu.ld, weight_panels(f->s, p, it.expert, 1, f->up, F, D), true, dx,
                  f->dx.ld);
}

/* dw[m, n] += a^T b over an expert's rows, or = where `fresh`, for up to two matrices that share b; an operand's rows
 * are those of its index, if given. */
typedef struct { mu_mat a, index; } operand;
typedef struct { mu_mat dw[2]; operand a[2], b; int64_t m, n; } gradient;

/* Columns j .. j+width-1 of k of its rows. */
static mu_mat operand_part(operand o, int64_t row, int64_t k, int64_t j, int64_t width, float *room) {
    return rows_of(part_of(o.a, 0, j), o.index, row, k, width, (mu_mat){ room, MU_DTYPE_F32, width });
}

enum { PART = CPU_KC * TILE_M, WEIGHT_BUFFER = 3 * PART };  /* floats: a gathered, b gathered, b packed */

static void weight_tile(const gradient *g, bool fresh, int64_t expert, int64_t i, int64_t j, int64_t row,
                        int64_t rows, float *buffer) {
    if ((!g->dw[0].data && !g->dw[1].data) || i >= g->m || j >= g->n) return;
    int64_t height = cpu_min(TILE_M, g->m - i), width = cpu_min(TILE_N, g->n - j);
    int64_t to = (expert * g->m + i) * g->n + j;
    for (int which = 0; which < 2 && rows == 0 && fresh; which++)
        if (g->dw[which].data) cpu_zero_rows(height, width, cpu_f32(g->dw[which]) + to, g->n);
    for (int64_t at = 0; at < rows; at += CPU_KC) {
        int64_t k = cpu_min(CPU_KC, rows - at);
        mu_mat b = operand_part(g->b, row + at, k, j, width, buffer + PART);
        cpu_panels panels = cpu_panels_from(k, width, b.data, b.ld, buffer + 2 * PART);
        for (int which = 0; which < 2; which++) {
            if (!g->dw[which].data) continue;
            mu_mat a = operand_part(g->a[which], row + at, k, i, height, buffer);
            CPU(multiply)(true, height, width, k, a.data, a.ld, panels, !fresh || at, cpu_f32(g->dw[which]) + to, g->n);
        }
    }
}

static int64_t tiles_of(int64_t m, int64_t n) { return cpu_blocks(m, TILE_M) * cpu_blocks(n, TILE_N); }
static int64_t tiles_an_expert(const mu_experts_shape *s) { return tiles_of(s->F, s->D) + tiles_of(s->D, s->F); }

/* Tile `at` of an expert's weight gradients: those of gate and up, [F, D], at once, then those of down, [D, F]. */
static void weight_item(const backward *f, const int64_t *offsets, int64_t expert, int64_t at, float *buffer) {
    int64_t D = f->s->D, F = f->s->F, gates = tiles_of(F, D);
    int64_t row = offsets[expert], rows = offsets[expert + 1] - row;
    operand x = f->xg.data ? (operand){ .a = f->xg } : (operand){ f->x, f->in };
    operand dy = f->dyg.data ? (operand){ .a = f->dyg } : (operand){ f->dy, f->out };
    gradient g = at < gates ? (gradient){ { f->dgate, f->dup }, { { .a = f->hg }, { .a = f->hu } }, x, F, D }
                            : (gradient){ { f->ddown }, { dy }, { .a = f->act }, D, F };
    int64_t t = at - (at < gates ? 0 : gates), down = cpu_blocks(g.m, TILE_M);
    weight_tile(&g, f->s->fresh, expert, t % down * TILE_M, t / down * TILE_N, row, rows, buffer);
}

/* The work of a group of experts, in the order in which it is handed out: the blocks of an expert, then the weight
 * gradients of the one before, whose rows are still in a cache. These wait for that expert's last block, which
 * another thread has had in hand for a while: nobody waits long, and there is no barrier. */
typedef struct { item block; int64_t tile; } task;
typedef struct { task *list; int64_t n; int *done; } tasks;

static tasks list_tasks(mu_device *dev, const backward *f, const int64_t *offsets, int64_t first, int64_t end) {
    const mu_experts_shape *s = f->s;
    items blocks = list_blocks(dev, offsets, first, end);
    int64_t tiles = f->dgate.data || f->dup.data || f->ddown.data ? tiles_an_expert(s) : 0, b = 0;
    tasks l = { mu_arena_alloc(&dev->scratch, (size_t)(blocks.n + (end - first) * tiles) * sizeof *l.list), 0,
                mu_arena_alloc(&dev->scratch, (size_t)s->experts * sizeof *l.done) };
    memset(l.done, 0, (size_t)s->experts * sizeof *l.done);
    for (int64_t i = first; i <= end; i++) {
        for (; b < blocks.n && blocks.list[b].expert == i; b++) l.list[l.n++] = (task){ blocks.list[b], -1 };
        for (int64_t t = 0; t < tiles && i > first; t++) l.list[l.n++] = (task){ { i - 1, 0, 0 }, t };
    }
    return l;
}

static void wait_for_blocks(const tasks *l, const int64_t *offsets, int64_t expert) {
    int blocks = (int)blocks_of(offsets[expert + 1] - offsets[expert]);
    for (int tries = 0; __atomic_load_n(&l->done[expert], __ATOMIC_ACQUIRE) < blocks;)
        if (tries < 1000) tries++;
        else sched_yield();
}

static void run_task(const backward *f, const int64_t *offsets, packs p, const tasks *l, const task *t, float *buffer) {
    int64_t expert = t->block.expert;
    if (t->tile < 0) {
        block_bwd(f, p, t->block, buffer);
        __atomic_fetch_add(&l->done[expert], 1, __ATOMIC_RELEASE);
    } else {
        wait_for_blocks(l, offsets, expert);
        weight_item(f, offsets, expert, t->tile, buffer);
    }
}

/* ---------------------------------------------------------------- backward, few rows and weights larger than a cache
 * For rows that lie in order and are not weighted: a dense feed-forward's. An item is CPU_WIDE columns of one expert, so
 * that its weights are read once: first what becomes of hg and hu, then dx, then the gradients of weights. */
static bool goes_by_columns(const backward *f, int64_t most) {
    bool plain = !f->in.data && !f->out.data && !f->weights.data && f->dx.data;
    return plain && cpu_in_place(f->s->D) && cpu_in_place(f->s->F) && few_for_large_weights(f->s, most);
}

static void columns_of_h(const backward *f, const int64_t *offsets, int64_t expert, int64_t j, float *da) {
    int64_t D = f->s->D, F = f->s->F, row = offsets[expert], n = offsets[expert + 1] - row, width = cpu_min(CPU_WIDE, F - j);
    mu_mat dy = part_of(f->dy, row, 0), hg = part_of(f->hg, row, j), hu = part_of(f->hu, row, j), act = part_of(f->act, row, j);
    CPU(multiply)(false, n, width, D, dy.data, dy.ld, cpu_panels_in_place(matrix_of(f->down, f->s, expert) + j, F), false, da,
                  width);
    for (int64_t r = 0; r < n; r++)
        swiglu_bwd(width, 1, da + r * width, cpu_f32(hg) + r * hg.ld, cpu_f32(hu) + r * hu.ld, cpu_f32(act) + r * act.ld);
}

static void columns_of_dx(const backward *f, const int64_t *offsets, int64_t expert, int64_t j) {
    int64_t D = f->s->D, F = f->s->F, row = offsets[expert], n = offsets[expert + 1] - row, width = cpu_min(CPU_WIDE, D - j);
    mu_mat hg = part_of(f->hg, row, 0), hu = part_of(f->hu, row, 0), dx = part_of(f->dx, row, j);
    CPU(multiply)(false, n, width, F, hg.data, hg.ld, cpu_panels_in_place(matrix_of(f->gate, f->s, expert) + j, D), false,
                  dx.data, dx.ld);
    CPU(multiply)(false, n, width, F, hu.data, hu.ld, cpu_panels_in_place(matrix_of(f->up, f->s, expert) + j, D), true, dx.data,
                  dx.ld);
}

static void backward_by_columns(mu_device *dev, const backward *f, const int64_t *offsets, int team) {
    int64_t D = f->s->D, F = f->s->F, E = f->s->experts, tiles = tiles_an_expert(f->s);
    int64_t of_h = cpu_blocks(F, CPU_WIDE), of_dx = cpu_blocks(D, CPU_WIDE);
    cpu_buffers buffers = cpu_buffers_new(dev, team, (size_t)cpu_max(CPU_FEW * CPU_WIDE, WEIGHT_BUFFER));
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < E * of_h; i++) columns_of_h(f, offsets, i / of_h, i % of_h * CPU_WIDE, cpu_buffer(buffers));
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < E * of_dx; i++) columns_of_dx(f, offsets, i / of_dx, i % of_dx * CPU_WIDE);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < E * tiles; i++) weight_item(f, offsets, i / tiles, i % tiles, cpu_buffer(buffers));
    }
}

void CPU(experts_bwd)(mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets,
                      mu_mat gate, mu_mat up, mu_mat down, mu_mat hg, mu_mat hu, mu_mat out, mu_mat weights,
                      mu_mat dy, mu_mat act, mu_mat xg, mu_mat dyg, mu_mat dx, mu_mat dweights, mu_mat dgate,
                      mu_mat dup, mu_mat ddown) {
    if (better_in_fp32(s, cpu_i64(offsets))) {
        CPU_FINE(experts_bwd)(dev, s, x, in, offsets, gate, up, down, hg, hu, out, weights, dy, act, xg, dyg, dx, dweights, dgate,
                              dup, ddown);
        return;
    }
    backward f = { s, x, in, gate, up, down, hg, hu, out, weights, dy, act, xg, dyg, dx, dweights, dgate, dup, ddown };
    const int64_t *at = cpu_i64(offsets);
    int team = cpu_team(s->R * s->D * s->F / 16);
    size_t mark = mu_arena_mark(&dev->scratch), g = cpu_packed(s->F, s->D), d = cpu_packed(s->D, s->F);
    if (goes_by_columns(&f, most_rows(at, s->experts))) {
        backward_by_columns(dev, &f, at, team);
        mu_arena_release(&dev->scratch, mark);
        return;
    }
    cpu_buffers buffers = cpu_buffers_new(dev, team, (size_t)cpu_max(MOST_ROWS * (s->F + s->D), WEIGHT_BUFFER));
    bool in_place = cpu_in_place(s->D) && cpu_in_place(s->F);
    for (int64_t first = 0, end; first < s->experts; first = end) {
        size_t group = mu_arena_mark(&dev->scratch);
        end = in_place ? s->experts : group_end(s, (int64_t)(2 * g + d), first);
        tasks l = list_tasks(dev, &f, at, first, end);
        packs p = in_place ? (packs){ 0 } : packs_new(dev, first, end, g, d);
#pragma omp parallel num_threads(team)
        {
            if (!in_place) pack_weights(s, at, false, p, end, gate, up, down);
#pragma omp for schedule(monotonic : dynamic)
            for (int64_t i = 0; i < l.n; i++) run_task(&f, at, p, &l, &l.list[i], cpu_buffer(buffers));
        }
        mu_arena_release(&dev->scratch, group);
    }
    mu_arena_release(&dev->scratch, mark);
}
