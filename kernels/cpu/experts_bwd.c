/* experts_bwd.c - SwiGLU experts over routed rows, backward (experts.h).
 *
 * A thread takes some rows of an expert, a part, from dy to dx: some columns of the down-projection at a time, which stay
 * in the second-level cache for all blocks of rows, and SwiGLU's gradient; then columns of both up-projections. Weight
 * gradients are tiles of an expert's matrices. They follow their expert's rows closely and usually on the same thread, so
 * their operands are still in its cache. */
#include "kernels/cpu/experts.h"

#include <sched.h>

enum { PART_ROWS = CPU_ROUNDS ? 512 : 256 };
enum { TILE_M = 256, TILE_N = 256 };                        /* of a weight gradient */

typedef struct {
    const mu_experts_shape *s;
    mu_mat x, in, gate, up, down, hg, hu, out, weights, dy, act, xg, dyg, dx, dweights, dgate, dup, ddown;
} backward;

/* act = weight * a, a = silu(hg) * hu; then hg and hu become their gradients. b: the gradient of a, without the
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

/* ---------------------------------------------------------------- rows */
/* Columns j .. j+n-1 of a weight [k, ld] of an expert, as a right operand: in place if possible, else packed into `to`. */
static cpu_panels columns_of(const backward *f, mu_mat weight, int64_t expert, int64_t k, int64_t ld, int64_t j, int64_t n,
                             float *to) {
    return cpu_panels_from(k, n, cpu_matrix_of(weight, f->s, expert) + j, ld, to);
}

/* hg, hu, act of a block of rows, columns j .. j+n-1, of which da is the gradient; a row's share of dweights. */
static void block_of_h(const backward *f, cpu_item b, int64_t j, int64_t n, const float *da) {
    for (int64_t r = 0; r < b.rows; r++) {
        int64_t row = b.first + r;
        float *hg = cpu_f32(f->hg) + row * f->hg.ld + j, *hu = cpu_f32(f->hu) + row * f->hu.ld + j;
        float share = swiglu_bwd(n, cpu_row_weight(f->weights, row), da + r * n, hg, hu, cpu_f32(f->act) + row * f->act.ld + j);
        if (f->dweights.data) cpu_f32(f->dweights)[row] = j ? cpu_f32(f->dweights)[row] + share : share;
    }
}

/* dx of a block of rows, columns j .. j+n-1. */
static void block_of_dx(const backward *f, cpu_item b, int64_t j, int64_t n, cpu_panels gate, cpu_panels up) {
    mu_mat hg = cpu_part_of(f->hg, b.first, 0), hu = cpu_part_of(f->hu, b.first, 0), dx = cpu_part_of(f->dx, b.first, j);
    CPU(multiply)(false, b.rows, n, f->s->F, hg.data, hg.ld, gate, false, dx.data, dx.ld);
    CPU(multiply)(false, b.rows, n, f->s->F, hu.data, hu.ld, up, true, dx.data, dx.ld);
}

/* Columns at a time of the down-projection, and of the up-projections. */
static int64_t downs(const mu_experts_shape *s) { return cpu_columns_at_once(s->F, 1, s->D); }
static int64_t ups(const mu_experts_shape *s) { return cpu_columns_at_once(s->D, 2, s->F); }

/* A thread's buffer: gradients of a block's activations; packed columns, if any; a part's rows of dy. */
static int64_t packed_floats(const mu_experts_shape *s) {
    if (cpu_in_place(s->D) && cpu_in_place(s->F)) return 0;
    return cpu_max((int64_t)cpu_packed(s->D, downs(s)), 2 * (int64_t)cpu_packed(s->F, ups(s)));
}

static size_t part_floats(const mu_experts_shape *s, int64_t most_rows) {
    return (size_t)(CPU_BLOCK_ROWS * downs(s) + packed_floats(s) + cpu_min(PART_ROWS, most_rows) * s->D);
}

static void part_bwd(const backward *f, cpu_item part, float *buffer) {
    int64_t D = f->s->D, F = f->s->F, blocks = cpu_blocks(part.rows, CPU_BLOCK_ROWS);
    float *da = buffer, *packed = da + CPU_BLOCK_ROWS * downs(f->s), *rows = packed + packed_floats(f->s);
    mu_mat room = f->dyg.data ? cpu_part_of(f->dyg, part.first, 0) : (mu_mat){ rows, MU_DTYPE_F32, D };
    mu_mat dy = cpu_rows_of(f->dy, f->out, part.first, part.rows, D, room);
    if (f->xg.data) cpu_rows_of(f->x, f->in, part.first, part.rows, D, cpu_part_of(f->xg, part.first, 0));
    for (int64_t j = 0, step = downs(f->s); j < F; j += step) {
        int64_t n = cpu_min(step, F - j);
        cpu_panels down = columns_of(f, f->down, part.expert, D, F, j, n, packed);
        for (int64_t i = 0; i < blocks; i++) {
            cpu_item b = cpu_block_of(part, i, blocks);
            CPU(multiply)(false, b.rows, n, D, cpu_f32(dy) + (b.first - part.first) * dy.ld, dy.ld, down, false, da, n);
            block_of_h(f, b, j, n, da);
        }
    }
    for (int64_t j = 0, step = ups(f->s); j < D && f->dx.data; j += step) {
        int64_t n = cpu_min(step, D - j);
        cpu_panels gate = columns_of(f, f->gate, part.expert, F, D, j, n, packed);
        cpu_panels up = columns_of(f, f->up, part.expert, F, D, j, n, packed + cpu_packed(F, n));
        for (int64_t i = 0; i < blocks; i++) block_of_dx(f, cpu_block_of(part, i, blocks), j, n, gate, up);
    }
}

/* ---------------------------------------------------------------- weight gradients */
/* dw[m, n] += a^T b over an expert's rows, or = where `fresh`, for up to two matrices that share b; an operand's rows
 * are those of its index, if given. */
typedef struct { mu_mat a, index; } operand;
typedef struct { mu_mat dw[2]; operand a[2], b; int64_t m, n; } gradient;

/* Columns j .. j+width-1 of k of its rows. */
static mu_mat operand_part(operand o, int64_t row, int64_t k, int64_t j, int64_t width, float *room) {
    return cpu_rows_of(cpu_part_of(o.a, 0, j), o.index, row, k, width, (mu_mat){ room, MU_DTYPE_F32, width });
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
static int64_t tiles_per_expert(const mu_experts_shape *s) { return tiles_of(s->F, s->D) + tiles_of(s->D, s->F); }

/* Tile `at` of an expert's weight gradients: those of gate and up, [F, D], at once, then those of down, [D, F]. */
static void weight_item(const backward *f, const int64_t *offsets, int64_t expert, int64_t at, float *buffer) {
    int64_t D = f->s->D, F = f->s->F, gates = tiles_of(F, D);
    int64_t row = offsets[expert], rows = offsets[expert + 1] - row;
    operand x = f->xg.data ? (operand){ .a = f->xg } : (operand){ f->x, f->in };
    operand dy = f->dyg.data ? (operand){ .a = f->dyg } : (operand){ f->dy, f->out };
    gradient g = at < gates ? (gradient){ { f->dgate, f->dup }, { { .a = f->hg }, { .a = f->hu } }, x, F, D }
                            : (gradient){ { f->ddown }, { dy }, { .a = f->act }, D, F };
    int64_t t = at - (at < gates ? 0 : gates), across = cpu_blocks(g.n, TILE_N);
    weight_tile(&g, f->s->fresh, expert, t / across * TILE_M, t % across * TILE_N, row, rows, buffer);
}

/* ---------------------------------------------------------------- the order of the work
 * A thread's share of parts becomes its share of tasks: first the parts of experts that are split over shares, then for each
 * whole expert its parts and the tiles of its weight gradients, then the tiles of experts that end in its share but began in
 * another. A tile waits until all parts of its expert are done. These are ahead of it in the same share, hence started, or
 * at the beginning of another share, whose thread waits for nothing before them: waits are short, and there is no barrier. */
typedef struct { cpu_item part; int64_t tile; } task;
typedef struct { task *list; int64_t n; int *parts, *done; } tasks;

static void add_parts(tasks *l, const cpu_item *parts, int64_t n) {
    for (int64_t i = 0; i < n; i++) l->list[l->n++] = (task){ parts[i], -1 };
}

static void add_tiles(tasks *l, int64_t expert, int64_t tiles) {
    for (int64_t i = 0; i < tiles; i++) l->list[l->n++] = (task){ { expert, 0, 0 }, i };
}

/* The end of the parts of a share that belong to the expert of part `i`. */
static int64_t same_expert(const cpu_item *parts, int64_t i, int64_t end) {
    int64_t expert = parts[i].expert;
    while (i < end && parts[i].expert == expert) i++;
    return i;
}

static bool ends_an_expert(cpu_item part, const int64_t *offsets) { return part.first + part.rows == offsets[part.expert + 1]; }
static bool begins_an_expert(cpu_item part, const int64_t *offsets) { return part.first == offsets[part.expert]; }

static cpu_share list_share(const cpu_item *parts, cpu_share share, const int64_t *offsets, int64_t tiles, tasks *l) {
    enum { PARTS_OF_CUT, WHOLE, TILES_OF_CUT, PASSES };
    cpu_share order = { .next = l->n };
    for (int pass = 0; pass < PASSES; pass++)
        for (int64_t i = share.next, end; i < share.end; i = end) {
            end = same_expert(parts, i, share.end);
            bool ends = ends_an_expert(parts[end - 1], offsets), whole = ends && begins_an_expert(parts[i], offsets);
            if (pass == (whole ? WHOLE : PARTS_OF_CUT)) add_parts(l, parts + i, end - i);
            if (pass == (whole ? WHOLE : TILES_OF_CUT) && ends) add_tiles(l, parts[i].expert, tiles);
        }
    order.end = l->n;
    return order;
}

static tasks list_tasks(mu_device *dev, const backward *f, const int64_t *offsets, cpu_shares shares) {
    const mu_experts_shape *s = f->s;
    cpu_items parts = CPU(list_parts)(dev, s, offsets, PART_ROWS, shares);
    int64_t tiles = f->dgate.data || f->dup.data || f->ddown.data ? tiles_per_expert(s) : 0;
    tasks l = { mu_arena_alloc(&dev->scratch, (size_t)(parts.n + s->experts * tiles) * sizeof *l.list), 0,
                mu_arena_alloc(&dev->scratch, (size_t)s->experts * sizeof *l.parts),
                mu_arena_alloc(&dev->scratch, (size_t)s->experts * sizeof *l.done) };
    memset(l.parts, 0, (size_t)s->experts * sizeof *l.parts);
    memset(l.done, 0, (size_t)s->experts * sizeof *l.done);
    for (int64_t i = 0; i < parts.n; i++) l.parts[parts.list[i].expert]++;
    for (int t = 0; t < shares.team; t++) shares.list[t] = list_share(parts.list, shares.list[t], offsets, tiles, &l);
    return l;
}

static void wait_for_parts(const tasks *l, int64_t expert) {
    for (int tries = 0; __atomic_load_n(&l->done[expert], __ATOMIC_ACQUIRE) < l->parts[expert];)
        if (tries < 1000) tries++;
        else sched_yield();
}

static void run_task(const backward *f, const int64_t *offsets, const tasks *l, task t, float *buffer) {
    int64_t expert = t.part.expert;
    if (t.tile < 0) {
        part_bwd(f, t.part, buffer);
        __atomic_fetch_add(&l->done[expert], 1, __ATOMIC_RELEASE);
    } else {
        wait_for_parts(l, expert);
        weight_item(f, offsets, expert, t.tile, buffer);
    }
}

static void backward_by_parts(mu_device *dev, const backward *f, const int64_t *offsets, int team) {
    cpu_shares shares = cpu_shares_new(dev, team, 0);
    tasks l = list_tasks(dev, f, offsets, shares);
    int64_t most = cpu_most_rows(offsets, f->s->experts), tiles = tiles_per_expert(f->s);
    cpu_buffers buffers = cpu_buffers_new(dev, team, (size_t)cpu_max((int64_t)part_floats(f->s, most), WEIGHT_BUFFER));
#pragma omp parallel num_threads(team)
    {
        int turn = 0;
        for (int64_t i; (i = cpu_take(shares, &turn)) >= 0;) run_task(f, offsets, &l, l.list[i], cpu_buffer(buffers));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < f->s->experts * tiles; i++)     /* experts without rows: clear their gradients */
            if (offsets[i / tiles] == offsets[i / tiles + 1])
                weight_item(f, offsets, i / tiles, i % tiles, cpu_buffer(buffers));
    }
}

/* ---------------------------------------------------------------- backward, few rows and weights larger than a cache
 * For rows in order and without weights, and matrices read in place: a dense feed-forward. An item is CPU_WIDE columns of
 * one expert, so that its weights are read once: first hg and hu, then dx, then the weight gradients. */
static bool goes_by_columns(const backward *f, int64_t most) {
    bool plain = !f->in.data && !f->out.data && !f->weights.data && !f->dweights.data && f->dx.data;
    return plain && cpu_in_place(f->s->D) && cpu_in_place(f->s->F) && cpu_few_for_weights(f->s, most);
}

static cpu_item rows_of_expert(const int64_t *offsets, int64_t expert) {
    return (cpu_item){ expert, offsets[expert], offsets[expert + 1] - offsets[expert] };
}

static void columns_of_h(const backward *f, cpu_item it, int64_t j, float *da) {
    int64_t D = f->s->D, n = cpu_min(CPU_WIDE, f->s->F - j);
    mu_mat dy = cpu_part_of(f->dy, it.first, 0);
    cpu_panels down = columns_of(f, f->down, it.expert, D, f->s->F, j, n, NULL);
    CPU(multiply)(false, it.rows, n, D, dy.data, dy.ld, down, false, da, n);
    block_of_h(f, it, j, n, da);
}

static void columns_of_dx(const backward *f, cpu_item it, int64_t j) {
    int64_t D = f->s->D, F = f->s->F, n = cpu_min(CPU_WIDE, D - j);
    cpu_panels gate = columns_of(f, f->gate, it.expert, F, D, j, n, NULL);
    cpu_panels up = columns_of(f, f->up, it.expert, F, D, j, n, NULL);
    block_of_dx(f, it, j, n, gate, up);
}

static void backward_by_columns(mu_device *dev, const backward *f, const int64_t *offsets, int team) {
    int64_t D = f->s->D, F = f->s->F, E = f->s->experts, tiles = tiles_per_expert(f->s);
    int64_t of_h = cpu_blocks(F, CPU_WIDE), of_dx = cpu_blocks(D, CPU_WIDE);
    cpu_buffers buffers = cpu_buffers_new(dev, team, (size_t)cpu_max(CPU_FEW * CPU_WIDE, WEIGHT_BUFFER));
    cpu_shares h = cpu_shares_new(dev, team, E * of_h), dx = cpu_shares_new(dev, team, E * of_dx);
    cpu_shares weights = cpu_shares_new(dev, team, E * tiles);
#pragma omp parallel num_threads(team)
    {
        float *buffer = cpu_buffer(buffers);
        int turn = 0;
        for (int64_t i; (i = cpu_take(h, &turn)) >= 0;)
            columns_of_h(f, rows_of_expert(offsets, i / of_h), i % of_h * CPU_WIDE, buffer);
#pragma omp barrier
        turn = 0;
        for (int64_t i; (i = cpu_take(dx, &turn)) >= 0;)
            columns_of_dx(f, rows_of_expert(offsets, i / of_dx), i % of_dx * CPU_WIDE);
        turn = 0;
        for (int64_t i; (i = cpu_take(weights, &turn)) >= 0;) weight_item(f, offsets, i / tiles, i % tiles, buffer);
    }
}

void CPU(experts_bwd)(mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets,
                      mu_mat gate, mu_mat up, mu_mat down, mu_mat hg, mu_mat hu, mu_mat out, mu_mat weights,
                      mu_mat dy, mu_mat act, mu_mat xg, mu_mat dyg, mu_mat dx, mu_mat dweights, mu_mat dgate,
                      mu_mat dup, mu_mat ddown) {
    const int64_t *at = cpu_i64(offsets);
    if (cpu_better_in_fp32(s, at)) {
        CPU_MASTER(experts_bwd)(dev, s, x, in, offsets, gate, up, down, hg, hu, out, weights, dy, act, xg, dyg, dx, dweights,
                              dgate, dup, ddown);
        return;
    }
    backward f = { s, x, in, gate, up, down, hg, hu, out, weights, dy, act, xg, dyg, dx, dweights, dgate, dup, ddown };
    int team = cpu_team(s->R * s->D * s->F / 16);
    size_t mark = mu_arena_mark(&dev->scratch);
    if (goes_by_columns(&f, cpu_most_rows(at, s->experts))) backward_by_columns(dev, &f, at, team);
    else backward_by_parts(dev, &f, at, team);
    mu_arena_release(&dev->scratch, mark);
}
