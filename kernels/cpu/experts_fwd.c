/* experts_fwd.c - SwiGLU experts over routed rows, forward (experts.h).
 *
 * A thread takes some rows of an expert, a part, through all three products: gather, both up-projections, SwiGLU,
 * down-projection, scatter. For few rows the weights are read in place. For more, some columns of the weights at a time
 * are transposed into the thread's buffer, in the second-level cache, and used for all blocks of rows. A thread reads
 * nothing that another one has just written: cores need not share a cache. The price is that weights are transposed once
 * per part of their expert, 4 to 8 % of the time for 256 rows.
 *
 * When few experts have few rows each (a single token in generation), threads share the columns of every expert. */
#include "kernels/cpu/experts.h"

enum { FEW = CPU_LANES == 16 ? 80 : 64, PART_ROWS = 512 };

static bool are_few(const mu_experts_shape *s, int64_t rows) { return rows <= FEW || cpu_few_for_weights(s, rows); }

typedef struct {
    const mu_experts_shape *s;
    mu_mat x, in, gate, up, down, hg, hu, out, weights, y;
} forward;

static mu_mat input_rows(const forward *f, cpu_item it, float *room) {
    return cpu_rows_of(f->x, f->in, it.first, it.rows, f->s->D, (mu_mat){ room, MU_DTYPE_F32, f->s->D });
}

/* Writes rows, or some columns of them, to the rows given by `out`. */
static void scatter_rows(const forward *f, int64_t first, int64_t n, int64_t column, int64_t columns, const float *from) {
    const int32_t *index = cpu_i32(f->out) + first;
    for (int64_t r = 0; r < n; r++)
        memcpy(cpu_f32(f->y) + index[r] * f->y.ld + column, from + r * columns, (size_t)columns * sizeof *from);
}

/* a = silu(hg) * hu, times the weights of rows `first` and on */
static void swiglu(int64_t n, int64_t F, const float *hg, int64_t ldg, const float *hu, int64_t ldu, mu_mat weights,
                   int64_t first, float *a, int64_t lda) {
    for (int64_t r = 0; r < n; r++) {
        const float *g = hg + r * ldg, *u = hu + r * ldu;
        float *out = a + r * lda, weight = cpu_row_weight(weights, first + r);
#pragma omp simd
        for (int64_t i = 0; i < F; i++) out[i] = weight * (g[i] * cpu_sigmoid(g[i]) * u[i]);
    }
}

/* Columns j .. j+n-1 of a product's result: rows of weights [.., k], in place or transposed. */
typedef struct { const float *weights, *transposed; int64_t n, k; } columns;

static columns columns_of(const forward *f, mu_mat weights, int64_t expert, int64_t j, int64_t n, int64_t k) {
    return (columns){ cpu_matrix_of(weights, f->s, expert) + j * k, NULL, n, k };
}

static void pack_columns(columns *c, float *to) {
    CPU(pack)(true, c->k, c->n, c->weights, c->k, to);
    c->transposed = to;
}

static void multiply(const forward *f, int64_t rows, const float *a, int64_t lda, columns b, float *c, int64_t ldc) {
    if (b.transposed) CPU(multiply)(false, rows, b.n, b.k, a, lda, cpu_panels_of(b.transposed, b.k), false, c, ldc);
    else CPU(multiply_few)(f->s->batch_invariant, rows, b.n, b.k, a, lda, b.weights, b.k, false, c, ldc);
}

/* Both up-projections and SwiGLU of some rows, for columns j and on; hg and hu may be in `room`, [rows, 2 n]. */
static void up_columns(const forward *f, cpu_item it, const float *x, int64_t ldx, columns gate, columns up, int64_t j,
                       float *room, float *act, int64_t ldact) {
    int64_t n = gate.n, ldg = 2 * n, ldu = 2 * n;
    float *hg = room, *hu = room + n;
    if (f->hg.data) hg = cpu_f32(f->hg) + it.first * f->hg.ld + j, ldg = f->hg.ld;
    if (f->hu.data) hu = cpu_f32(f->hu) + it.first * f->hu.ld + j, ldu = f->hu.ld;
    multiply(f, it.rows, x, ldx, gate, hg, ldg);
    multiply(f, it.rows, x, ldx, up, hu, ldu);
    swiglu(it.rows, n, hg, ldg, hu, ldu, f->weights, it.first, act, ldact);
}

/* ---------------------------------------------------------------- a part on one thread */
/* Columns at a time of the up-projections, and of the down-projection. */
static int64_t ups(const mu_experts_shape *s, bool few) {
    return few ? CPU_WIDE : cpu_columns_at_once(s->F, 2, s->D);
}
static int64_t downs(const mu_experts_shape *s, bool few) {
    return few ? CPU_WIDE : cpu_columns_at_once(s->D, 1, s->F);
}

/* A thread's buffer: the part's rows, first of x, then of y; its activations; hg and hu of a block; transposed weights. */
typedef struct { float *rows, *act, *h, *transposed; } workplace;

static int64_t h_floats(const mu_experts_shape *s) {
    return 2 * cpu_max(CPU_FEW * CPU_WIDE, CPU_BLOCK_ROWS * ups(s, false));
}

/* For parts of up to `most` rows. */
static size_t workplace_floats(const mu_experts_shape *s, int64_t most) {
    int64_t up = 2 * (int64_t)cpu_packed(s->D, ups(s, false)), down = (int64_t)cpu_packed(s->F, downs(s, false));
    return (size_t)(most * (s->D + s->F) + h_floats(s) + cpu_max(up, down));
}

static workplace workplace_in(const mu_experts_shape *s, int64_t most, float *buffer) {
    float *act = buffer + most * s->D, *h = act + most * s->F;
    return (workplace){ buffer, act, h, h + h_floats(s) };
}

/* Number of blocks of a part's rows. */
static int64_t blocks_of(cpu_item part, bool few) { return few ? 1 : cpu_blocks(part.rows, CPU_BLOCK_ROWS); }

static void part_up(const forward *f, cpu_item part, bool few, workplace w) {
    int64_t D = f->s->D, F = f->s->F, step = ups(f->s, few), blocks = blocks_of(part, few);
    mu_mat x = input_rows(f, part, w.rows);
    for (int64_t j = 0; j < F; j += step) {
        columns gate = columns_of(f, f->gate, part.expert, j, cpu_min(step, F - j), D);
        columns up = columns_of(f, f->up, part.expert, j, cpu_min(step, F - j), D);
        if (!few) pack_columns(&gate, w.transposed), pack_columns(&up, w.transposed + cpu_packed(D, step));
        for (int64_t i = 0; i < blocks; i++) {
            cpu_item b = cpu_block_of(part, i, blocks);
            int64_t at = b.first - part.first;
            up_columns(f, b, cpu_f32(x) + at * x.ld, x.ld, gate, up, j, w.h, w.act + at * F + j, F);
        }
    }
}

static void part_down(const forward *f, cpu_item part, bool few, workplace w) {
    int64_t D = f->s->D, F = f->s->F, step = downs(f->s, few), blocks = blocks_of(part, few);
    mu_mat y = f->out.data ? (mu_mat){ w.rows, MU_DTYPE_F32, D } : cpu_part_of(f->y, part.first, 0);
    for (int64_t j = 0; j < D; j += step) {
        columns down = columns_of(f, f->down, part.expert, j, cpu_min(step, D - j), F);
        if (!few) pack_columns(&down, w.transposed);
        for (int64_t i = 0; i < blocks; i++) {
            cpu_item b = cpu_block_of(part, i, blocks);
            int64_t at = b.first - part.first;
            multiply(f, b.rows, w.act + at * F, F, down, cpu_f32(y) + at * y.ld + j, y.ld);
        }
    }
    if (f->out.data) scatter_rows(f, part.first, part.rows, 0, D, w.rows);
}

static void part_fwd(const forward *f, cpu_item part, workplace w) {
    bool few = are_few(f->s, part.rows);
    part_up(f, part, few, w);
    part_down(f, part, few, w);
}

static void forward_by_parts(mu_device *dev, const forward *f, const int64_t *offsets, int team) {
    cpu_shares shares = cpu_shares_new(dev, team, 0);
    cpu_items l = CPU(list_parts)(dev, f->s, offsets, PART_ROWS, shares);
    int64_t most = cpu_min(PART_ROWS, cpu_most_rows(offsets, f->s->experts));
    cpu_buffers buffers = cpu_buffers_new(dev, team, workplace_floats(f->s, most));
#pragma omp parallel num_threads(team)
    {
        workplace w = workplace_in(f->s, most, cpu_buffer(buffers));
        int turn = 0;
        for (int64_t i; (i = cpu_take(shares, &turn)) >= 0;) part_fwd(f, l.list[i], w);
    }
}

/* ---------------------------------------------------------------- by columns
 * An item is CPU_WIDE columns of one expert: first of both up-projections, then of the result. */
static cpu_items list_experts(mu_device *dev, const int64_t *offsets, int64_t experts) {
    cpu_items l = { mu_arena_alloc(&dev->scratch, (size_t)experts * sizeof *l.list), 0 };
    for (int64_t i = 0; i < experts; i++)
        if (offsets[i + 1] > offsets[i]) l.list[l.n++] = (cpu_item){ i, offsets[i], offsets[i + 1] - offsets[i] };
    return l;
}

static void item_up(const forward *f, cpu_item it, int64_t j, float *act, float *buffer) {
    int64_t D = f->s->D, F = f->s->F, n = cpu_min(CPU_WIDE, F - j);
    mu_mat x = input_rows(f, it, buffer);
    up_columns(f, it, x.data, x.ld, columns_of(f, f->gate, it.expert, j, n, D), columns_of(f, f->up, it.expert, j, n, D), j,
               buffer + CPU_FEW * D, act + it.first * F + j, F);
}

static void item_down(const forward *f, cpu_item it, int64_t j, const float *act, float *buffer) {
    int64_t F = f->s->F, n = cpu_min(CPU_WIDE, f->s->D - j);
    mu_mat y = f->out.data ? (mu_mat){ buffer, MU_DTYPE_F32, n } : cpu_part_of(f->y, it.first, j);
    multiply(f, it.rows, act + it.first * F, F, columns_of(f, f->down, it.expert, j, n, F), y.data, y.ld);
    if (f->out.data) scatter_rows(f, it.first, it.rows, j, n, buffer);
}

static void forward_by_columns(mu_device *dev, const forward *f, const int64_t *offsets, cpu_items live, int team) {
    int64_t D = f->s->D, F = f->s->F, of_h = cpu_blocks(F, CPU_WIDE), of_y = cpu_blocks(D, CPU_WIDE);
    float *act = mu_arena_alloc(&dev->scratch, (size_t)(offsets[f->s->experts] * F) * sizeof *act);
    cpu_buffers buffers = cpu_buffers_new(dev, team, (size_t)(CPU_FEW * (D + 2 * CPU_WIDE)));
    cpu_shares first = cpu_shares_new(dev, team, live.n * of_h), second = cpu_shares_new(dev, team, live.n * of_y);
#pragma omp parallel num_threads(team)
    {
        int turn = 0;
        for (int64_t i; (i = cpu_take(first, &turn)) >= 0;)
            item_up(f, live.list[i / of_h], i % of_h * CPU_WIDE, act, cpu_buffer(buffers));
#pragma omp barrier
        turn = 0;
        for (int64_t i; (i = cpu_take(second, &turn)) >= 0;)
            item_down(f, live.list[i / of_y], i % of_y * CPU_WIDE, act, cpu_buffer(buffers));
    }
}

/* Few experts with few rows, which cannot be distributed evenly. */
static bool goes_by_columns(const mu_experts_shape *s, const int64_t *offsets, int64_t live, int team) {
    return live < 4 * team && live % team && are_few(s, cpu_most_rows(offsets, s->experts));
}

void CPU(experts_fwd)(mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets,
                      mu_mat gate, mu_mat up, mu_mat down, mu_mat hg, mu_mat hu, mu_mat out,
                      mu_mat weights, mu_mat y) {
    const int64_t *at = cpu_i64(offsets);
    if (cpu_better_in_fp32(s, at)) {
        CPU_MASTER(experts_fwd)(dev, s, x, in, offsets, gate, up, down, hg, hu, out, weights, y);
        return;
    }
    forward f = { s, x, in, gate, up, down, hg, hu, out, weights, y };
    size_t mark = mu_arena_mark(&dev->scratch);
    cpu_items live = list_experts(dev, at, s->experts);
    int team = cpu_product_team(at[s->experts], 3 * live.n * s->D, s->F);
    if (goes_by_columns(s, at, live.n, team)) forward_by_columns(dev, &f, at, live, team);
    else forward_by_parts(dev, &f, at, team);
    mu_arena_release(&dev->scratch, mark);
}
