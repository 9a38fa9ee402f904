/* device.c - the heavy kernels of a device, one by one, compared with the copy and product rates of the same device.
 *
 * Made for GPUs (--cuda), runs on the CPU as well (a hundredth of the sizes) and, for tests, on the emulation (--tiny).
 * First the ceilings, in this process: a copy, and the product of two large matrices of random numbers. Then an MoE
 * layer forward and backward (router, plan, experts, combine, with routing by the logits and with skewed routing), the
 * experts alone, attention, cross-entropy, norm, combine and AdamW. Each figure is the median of rounds of several
 * calls; each round measures everything once. FLOPs of an MoE layer: 6 T n d K forward, 12 T n d K backward, as the
 * literature counts them (T tokens of width d, K of E experts of width n). */
#include "bench.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
    int64_t rounds, calls, threads;
    bool bf16, cuda, tiny;
} options;

static int parse(int argc, char **argv, options *o) {
    const bench_option table[] = {
        { "--rounds", &o->rounds, NULL, "rounds in turn, whose median counts (20)" },
        { "--calls", &o->calls, NULL, "calls in a row in a round (5)" },
        { "--threads", &o->threads, NULL, "threads (cores)" },
        { "--cuda", NULL, &o->cuda, "an NVIDIA GPU" },
        { "--bf16", NULL, &o->bf16, "bf16 activations and weights" },
        { "--tiny", NULL, &o->tiny, "sizes and one round that an emulation can bear" },
    };
    return bench_parse("muster_bench_device", table, sizeof table / sizeof *table, argc, argv);
}

/* ------------------------------------------------------------------ memory and numbers */

typedef struct {
    mu_device *dev;
    mu_memory *memory;
    size_t used;
} pool;

static pool pool_new(mu_device *dev) { return (pool){ dev, mu_memory_new(dev, (size_t)1 << 40), 0 }; }

static mu_mat take(pool *p, mu_dtype dtype, int64_t rows, int64_t columns) {
    mu_mat m = { p->memory->region.base + p->used, dtype, columns };
    p->used += ((size_t)(rows * columns) * mu_dtype_size(dtype) + 255) & ~(size_t)255;
    mu_memory_commit(p->memory, p->used);
    return m;
}

/* Uniform in +-scale. */
static mu_mat random_of(pool *p, mu_dtype dtype, int64_t rows, int64_t columns, double scale) {
    mu_mat m = take(p, dtype, rows, columns), room = take(p, p->dev->master, 1, BENCH_BLOCK);
    bench_randomly(p->dev, rows * columns, scale, (uint32_t)p->used, m, room);
    return m;
}

/* ------------------------------------------------------------------ timing in turn */

typedef void action(mu_device *dev, void *what);

enum { MOST_ACTIONS = 5, MOST_ROUNDS = 99 };

/* Median seconds per call of each action. */
static void in_turn(const options *o, mu_device *dev, int n, action *const acts[], void *what,
                    double seconds[]) {
    double all[MOST_ACTIONS][MOST_ROUNDS];
    int64_t rounds = o->rounds < MOST_ROUNDS ? o->rounds : MOST_ROUNDS;
    for (int64_t round = -1; round < rounds; round++)       /* one to warm up */
        for (int i = 0; i < n; i++) {
            mu_device_finish(dev);
            double start = mu_time();
            for (int64_t call = 0; call < o->calls; call++) acts[i](dev, what);
            mu_device_finish(dev);
            if (round >= 0) all[i][round] = (mu_time() - start) / (double)o->calls;
        }
    for (int i = 0; i < n; i++) seconds[i] = bench_median(all[i], rounds);
}

typedef struct { double copy, product; } ceilings;         /* bytes/s, FLOP/s */

static void print_flops(const char *what, double flops, double seconds, const ceilings *c) {
    printf("  %-58s %9.3f ms %9.2f TFLOP/s", what, 1e3 * seconds, 1e-12 * flops / seconds);
    if (c) printf("  %5.1f %% of the product", 100 * flops / seconds / c->product);
    printf("\n");
    fflush(stdout);
}

static void print_bytes(const char *what, double bytes, double seconds, const ceilings *c) {
    printf("  %-58s %9.3f ms %9.1f GB/s   ", what, 1e3 * seconds, 1e-9 * bytes / seconds);
    if (c) printf("  %5.1f %% of the copy", 100 * bytes / seconds / c->copy);
    printf("\n");
    fflush(stdout);
}

/* ------------------------------------------------------------------ ceilings */

typedef struct { int64_t n; mu_mat x, y, z; } simple;

static void copy(mu_device *dev, void *what) {
    const simple *s = what;
    dev->k->copy(dev, s->n, s->x, s->y);
}

static void product(mu_device *dev, void *what) {
    const simple *s = what;
    dev->k->gemm(dev, false, true, s->n, s->n, s->n, s->x, s->y, 0.0, s->z);
}

static ceilings measure_ceilings(const options *o, mu_device *dev) {
    ceilings c;
    pool p = pool_new(dev);
    simple s = { .n = o->tiny ? 1 << 12 : o->cuda ? 1 << 29 : 1 << 25 };
    s.x = random_of(&p, dev->compute, 1, s.n, 1), s.y = take(&p, dev->compute, 1, s.n);
    double seconds;
    in_turn(o, dev, 1, (action *const[]){ copy }, &s, &seconds);
    double bytes = 2.0 * (double)s.n * (double)mu_dtype_size(dev->compute);
    c.copy = bytes / seconds;
    print_bytes("copy", bytes, seconds, NULL);
    mu_memory_free(p.memory);

    p = pool_new(dev);
    s.n = o->tiny ? 64 : o->cuda ? 8192 : 2048;
    s.x = random_of(&p, dev->compute, s.n, s.n, 1), s.y = random_of(&p, dev->compute, s.n, s.n, 1);
    s.z = take(&p, dev->compute, s.n, s.n);
    in_turn(o, dev, 1, (action *const[]){ product }, &s, &seconds);
    double flops = 2 * pow((double)s.n, 3);
    c.product = flops / seconds;
    char text[64];
    snprintf(text, sizeof text, "product of %lld x %lld matrices", (long long)s.n, (long long)s.n);
    print_flops(text, flops, seconds, NULL);
    mu_memory_free(p.memory);
    return c;
}

/* ------------------------------------------------------------------ an MoE layer */

typedef struct {
    mu_route_shape route;
    mu_experts_shape shape;
    mu_mat x, router, logits, scores, lse, ids, gates, order, offsets, token, row;          /* forward */
    mu_mat gate, up, down, hg, hu, rows, y;
    mu_mat dy, weights, dweights, act, drows, dx, dgates, dlogits, drouter, dgate, dup, ddown;      /* backward */
} layer;

static const mu_mat none;

static mu_mat rows_of(mu_mat m, int64_t first) {
    m.data = (char *)m.data + (size_t)(first * m.ld) * mu_dtype_size(m.dtype);
    return m;
}

static mu_mat column(mu_mat m) { return (mu_mat){ m.data, m.dtype, 1 }; }

static void layer_route(mu_device *dev, void *what) {
    const layer *l = what;
    int64_t T = l->route.T, E = l->route.E, D = l->shape.D;
    dev->k->gemm_master(dev, false, true, T, E, D, l->x, l->router, 0.0, l->logits);
    dev->k->route_fwd(dev, &l->route, l->logits, none, none, l->scores, l->lse, l->ids, l->gates);
    dev->k->plan(dev, T, E, l->route.K, T, 0, l->ids, l->order, l->offsets, l->token, l->row);
    dev->k->scatter(dev, T * l->route.K, 1, column(l->row), column(l->gates), l->weights);
}

static void layer_experts(mu_device *dev, void *what) {
    const layer *l = what;
    dev->k->experts_fwd(dev, &l->shape, l->x, l->token, l->offsets, l->gate, l->up, l->down, l->hg, l->hu, none,
                        l->weights, l->rows);
}

/* The products of layer_experts alone, one call for each expert and product. Rows are already gathered, with the same
 * number for each expert, so that the host knows their positions. */
static void layer_loop(mu_device *dev, void *what) {
    const layer *l = what;
    int64_t E = l->route.E, rows = l->shape.R / E, D = l->shape.D, F = l->shape.F;
    for (int64_t i = 0; i < E; i++) {
        mu_mat x = rows_of(l->drows, i * rows), hg = rows_of(l->hg, i * rows), hu = rows_of(l->hu, i * rows);
        dev->k->gemm(dev, false, true, rows, F, D, x, rows_of(l->gate, i * F), 0.0, hg);
        dev->k->gemm(dev, false, true, rows, F, D, x, rows_of(l->up, i * F), 0.0, hu);
        dev->k->gemm(dev, false, true, rows, D, F, hg, rows_of(l->down, i * D), 0.0, rows_of(l->rows, i * rows));
    }
}

static void layer_forward(mu_device *dev, void *what) {
    const layer *l = what;
    layer_route(dev, what);
    layer_experts(dev, what);
    dev->k->gather_sum(dev, l->route.T, l->route.K, l->shape.D, l->row, l->rows, false, l->y);
}

static void layer_backward(mu_device *dev, void *what) {
    const layer *l = what;
    int64_t T = l->route.T, E = l->route.E, K = l->route.K, D = l->shape.D;
    dev->k->experts_bwd(dev, &l->shape, l->x, l->token, l->offsets, l->gate, l->up, l->down, l->hg, l->hu, l->token,
                        l->weights, l->dy, l->act, none, none, l->drows, l->dweights, l->dgate, l->dup, l->ddown);
    dev->k->gather_sum(dev, T * K, 1, 1, column(l->row), l->dweights, false, column(l->dgates));
    dev->k->gather_sum(dev, T, K, D, l->row, l->drows, false, l->dx);
    dev->k->fill(dev, T * E, 0.0, l->dlogits);
    dev->k->route_bwd(dev, &l->route, l->scores, l->ids, l->dgates, none, none, l->dlogits);
    dev->k->gemm_master(dev, false, false, T, D, E, l->dlogits, l->router, 1.0, l->dx);
    dev->k->gemm_master(dev, true, false, E, D, T, l->dlogits, l->x, 0.0, l->drouter);
}

typedef struct { int64_t T, d, n, E, K; } moe_shape;

static layer layer_new(pool *p, moe_shape s, bool skew) {
    mu_device *dev = p->dev;
    mu_dtype compute = dev->compute, master = dev->master;
    int64_t R = s.T * s.K;
    double width = 1 / sqrt((double)s.d);
    layer l = { .route = { s.T, s.E, s.K, false, true, 1, skew ? MU_ROUTE_SKEW : MU_ROUTE_FREE, 0 },
                .shape = { R, s.E, s.d, s.n, .fresh = true, .batch_invariant = true } };
    l.x = random_of(p, compute, s.T, s.d, 1), l.dy = random_of(p, compute, s.T, s.d, 1);
    l.router = random_of(p, master, s.E, s.d, width);
    l.gate = random_of(p, compute, s.E * s.n, s.d, width), l.up = random_of(p, compute, s.E * s.n, s.d, width);
    l.down = random_of(p, compute, s.E * s.d, s.n, 1 / sqrt((double)s.n));
    l.logits = take(p, master, s.T, s.E), l.scores = take(p, master, s.T, s.E), l.lse = take(p, master, 1, s.T);
    l.ids = take(p, MU_DTYPE_I32, s.T, s.K), l.gates = take(p, master, s.T, s.K), l.row = take(p, MU_DTYPE_I32, s.T, s.K);
    l.order = take(p, MU_DTYPE_I32, 1, s.E), l.offsets = take(p, MU_DTYPE_I64, 1, s.E + 1);
    l.token = take(p, MU_DTYPE_I32, 1, R);
    l.hg = take(p, compute, R, s.n), l.hu = take(p, compute, R, s.n), l.rows = take(p, compute, R, s.d);
    l.y = take(p, compute, s.T, s.d), l.dx = take(p, compute, s.T, s.d);
    l.weights = take(p, master, R, 1), l.dweights = take(p, master, R, 1);
    l.act = take(p, compute, R, s.n), l.drows = take(p, compute, R, s.d), l.dgates = take(p, master, s.T, s.K);
    l.dlogits = take(p, master, s.T, s.E), l.drouter = take(p, master, s.E, s.d);
    l.dgate = take(p, master, s.E * s.n, s.d), l.dup = take(p, master, s.E * s.n, s.d), l.ddown = take(p, master, s.E * s.d, s.n);
    int32_t *order = mu_alloc((size_t)s.E, sizeof *order);
    for (int64_t i = 0; i < s.E; i++) order[i] = (int32_t)i;
    mu_device_write(dev, l.order.data, order, (size_t)s.E * sizeof *order);
    free(order);
    return l;
}

/* A backward overwrites what forward kept, so it is measured with a forward pass, and the difference is reported. */
static void forward_and_backward(mu_device *dev, void *what) {
    layer_forward(dev, what);
    layer_backward(dev, what);
}

static int64_t bytes_of(mu_mat m, int64_t rows) { return rows * m.ld * (int64_t)mu_dtype_size(m.dtype); }

static void measure_layer(const options *o, mu_device *dev, moe_shape s, bool skew, const ceilings *c) {
    pool p = pool_new(dev);
    layer l = layer_new(&p, s, skew);
    double seconds[5], unit = (double)s.T * (double)s.d * (double)s.n * (double)s.K;
    in_turn(o, dev, 5,
            (action *const[]){ layer_route, layer_experts, layer_loop, layer_forward, forward_and_backward }, &l,
            seconds);
    int64_t kept = bytes_of(l.x, s.T) + 2 * bytes_of(l.hg, l.shape.R) + bytes_of(l.scores, s.T) + bytes_of(l.gates, s.T) +
                   bytes_of(l.ids, s.T) + bytes_of(l.row, s.T) + bytes_of(column(l.token), l.shape.R) +
                   bytes_of(column(l.lse), s.T) + bytes_of(column(l.offsets), s.E + 1);
    printf("MoE layer, T %lld d %lld n %lld E %lld K %lld%s\n", (long long)s.T, (long long)s.d, (long long)s.n,
           (long long)s.E, (long long)s.K, skew ? ", skewed" : "");
    /* x is read; logits written and read, scores written; gates and ids written, ids read; token and row written */
    int64_t a_token = s.d * (int64_t)mu_dtype_size(dev->compute) + 3 * s.E * (int64_t)mu_dtype_size(dev->master) + 5 * s.K * 4;
    print_bytes("router and plan", (double)(s.T * a_token), seconds[0], c);
    print_flops("experts forward", 6 * unit, seconds[1], c);
    print_flops("the same products in a loop over experts", 6 * unit, seconds[2], c);
    print_flops("layer forward", 6 * unit, seconds[3], c);
    print_flops("layer backward", 12 * unit, seconds[4] - seconds[3], c);
    printf("  kept for backward %lld bytes\n", (long long)kept);
    mu_memory_free(p.memory);
}

/* ------------------------------------------------------------------ attention, cross-entropy, norm */

typedef struct { mu_attention_shape s; mu_mat q, k, v, y, lse, dy, dq, dk, dv; } attention;

static void attention_forward(mu_device *dev, void *what) {
    const attention *a = what;
    dev->k->attention_fwd(dev, &a->s, a->q, a->k, a->v, a->y, a->lse);
}

static void attention_backward(mu_device *dev, void *what) {
    const attention *a = what;
    dev->k->attention_bwd(dev, &a->s, a->q, a->k, a->v, a->y, a->lse, a->dy, a->dq, a->dk, a->dv);
}

static void measure_attention(const options *o, mu_device *dev, int64_t B, int64_t S, int64_t H, int64_t d,
                              const ceilings *c) {
    pool p = pool_new(dev);
    int64_t T = B * S, wide = H * d;
    attention a = { .s = { B, S, H, H, d, 1 / sqrt((double)d), 0 } };
    mu_mat *inputs[] = { &a.q, &a.k, &a.v, &a.dy }, *results[] = { &a.y, &a.dq, &a.dk, &a.dv };
    for (int i = 0; i < 4; i++) *inputs[i] = random_of(&p, dev->compute, T, wide, 1), *results[i] = take(&p, dev->compute, T, wide);
    for (int i = 1; i < 4; i++) dev->k->fill(dev, T * wide, 0.0, *results[i]);      /* backward adds */
    a.lse = take(&p, dev->master, H, T);
    double seconds[2], unit = (double)B * (double)H * (double)S * (double)S * (double)d;
    in_turn(o, dev, 2, (action *const[]){ attention_forward, attention_backward }, &a, seconds);
    char text[96];
    snprintf(text, sizeof text, "attention, %lld x %lld tokens, %lld heads of %lld, forward", (long long)B, (long long)S,
             (long long)H, (long long)d);
    print_flops(text, 2 * unit, seconds[0], c);
    print_flops("  backward", 5 * unit, seconds[1], c);
    mu_memory_free(p.memory);
}

typedef struct { int64_t rows, V; mu_mat logits, targets, lse, nll, dout; } loss;

static void loss_forward(mu_device *dev, void *what) {
    const loss *l = what;
    dev->k->xent_fwd(dev, l->rows, l->V, l->logits, l->targets, l->lse, l->nll);
}

static void loss_backward(mu_device *dev, void *what) {
    const loss *l = what;
    dev->k->xent_bwd(dev, l->rows, l->V, 1e-3, l->dout, l->targets, l->lse, l->logits);
}

static void measure_loss(const options *o, mu_device *dev, int64_t rows, int64_t V, const ceilings *c) {
    pool p = pool_new(dev);
    loss l = { rows, V, random_of(&p, dev->compute, rows, V, 3), take(&p, MU_DTYPE_I32, 1, rows),
               take(&p, dev->master, 1, rows), take(&p, dev->master, 1, rows), take(&p, MU_DTYPE_F64, 1, 1) };
    int32_t *targets = mu_alloc((size_t)rows, sizeof *targets);
    for (int64_t i = 0; i < rows; i++) targets[i] = (int32_t)(i * 7919 % V);
    mu_device_write(dev, l.targets.data, targets, (size_t)rows * sizeof *targets);
    dev->k->fill(dev, 1, 1.0, l.dout);
    double seconds[2], bytes = (double)rows * (double)V * (double)mu_dtype_size(dev->compute);
    in_turn(o, dev, 2, (action *const[]){ loss_forward, loss_backward }, &l, seconds);
    print_bytes("cross-entropy of logits, forward", bytes, seconds[0], c);
    print_bytes("  backward", 2 * bytes, seconds[1], c);
    free(targets);
    mu_memory_free(p.memory);
}

typedef struct { int64_t rows, D, K; mu_mat x, w, y, rstd, dy, dx, dw, index, many; } norm;

static void norm_forward(mu_device *dev, void *what) {
    const norm *n = what;
    dev->k->rmsnorm_fwd(dev, n->rows, n->D, 1e-6, n->x, n->w, n->y, n->rstd);
}

static void norm_backward(mu_device *dev, void *what) {
    const norm *n = what;
    dev->k->rmsnorm_bwd(dev, n->rows, n->D, n->x, n->w, n->rstd, n->dy, n->dx, n->dw);
}

static void combine(mu_device *dev, void *what) {
    const norm *n = what;
    dev->k->gather_sum(dev, n->rows, n->K, n->D, n->index, n->many, false, n->y);
}

static void measure_norm(const options *o, mu_device *dev, int64_t rows, int64_t D, int64_t K, const ceilings *c) {
    pool p = pool_new(dev);
    mu_dtype compute = dev->compute, master = dev->master;
    norm n = { rows, D, K, random_of(&p, compute, rows, D, 1), random_of(&p, master, 1, D, 1), take(&p, compute, rows, D),
               take(&p, master, 1, rows), random_of(&p, compute, rows, D, 1), random_of(&p, compute, rows, D, 1),
               random_of(&p, master, 1, D, 1), take(&p, MU_DTYPE_I32, rows, K),
               random_of(&p, compute, rows * K, D, 1) };
    int32_t *index = mu_alloc((size_t)(rows * K), sizeof *index);
    for (int64_t i = 0; i < rows * K; i++) index[i] = (int32_t)(i % K * rows + i / K);    /* far apart, as after a sort */
    mu_device_write(dev, n.index.data, index, (size_t)(rows * K) * sizeof *index);
    double seconds[3], bytes = (double)rows * (double)D * (double)mu_dtype_size(compute);
    in_turn(o, dev, 3, (action *const[]){ norm_forward, norm_backward, combine }, &n, seconds);
    print_bytes("norm, forward", 2 * bytes, seconds[0], c);
    print_bytes("norm, backward", 4 * bytes, seconds[1], c);
    print_bytes("combine", (double)(K + 1) * bytes, seconds[2], c);
    free(index);
    mu_memory_free(p.memory);
}

typedef struct { int64_t n_units, n_pieces; mu_mat units, steps, scale, squares, w, g, m, v, compute; } slab;

static void adamw(mu_device *dev, void *what) {
    const slab *s = what;
    const mu_adamw_spec spec = { 1e-3, 0.9, 0.95, 1e-8, 0.1 };
    dev->k->slab_adamw(dev, s->n_units, s->n_pieces, &spec, s->units, (mu_mat){ 0 }, s->scale, s->steps, s->w, s->g, s->m,
                       s->v, s->compute);
}

static void sum_squares(mu_device *dev, void *what) {
    const slab *s = what;
    dev->k->slab_sumsq(dev, s->n_units, s->n_pieces, s->units, s->g, s->squares);
}

/* A slab of units of equal size. */
static void measure_optimizer(const options *o, mu_device *dev, int64_t n_units, int64_t each, const ceilings *c) {
    pool p = pool_new(dev);
    int64_t n = n_units * each;
    slab s = { n_units, n_units * mu_slab_pieces(each), take(&p, MU_DTYPE_I64, n_units, MU_SLAB_UNIT_WORDS),
               take(&p, MU_DTYPE_I64, 1, n_units), take(&p, MU_DTYPE_F64, 1, 1), take(&p, MU_DTYPE_F64, 1, n_units),
               random_of(&p, dev->master, 1, n, 1), random_of(&p, dev->master, 1, n, 1), random_of(&p, dev->master, 1, n, 1),
               take(&p, dev->master, 1, n), { 0 } };
    if (dev->compute != dev->master) s.compute = take(&p, dev->compute, 1, n);
    mu_slab_unit *units = mu_alloc((size_t)n_units, sizeof *units);
    for (int64_t i = 0; i < n_units; i++)
        units[i] = (mu_slab_unit){ i * each, each, i * mu_slab_pieces(each), i, -1, 1 };
    mu_device_write(dev, s.units.data, units, (size_t)n_units * sizeof *units);
    dev->k->fill(dev, n, 1.0, s.v);
    dev->k->fill(dev, 1, 1.0, s.scale);
    double seconds[2], values = (double)n;
    in_turn(o, dev, 2, (action *const[]){ adamw, sum_squares }, &s, seconds);
    print_bytes("AdamW", values * (double)(7 * mu_dtype_size(dev->master) + (s.compute.data ? mu_dtype_size(dev->compute) : 0)),
                seconds[0], c);
    print_bytes("  sums of squares", values * (double)mu_dtype_size(dev->master), seconds[1], c);
    free(units);
    mu_memory_free(p.memory);
}

int main(int argc, char **argv) {
    static const moe_shape gpu[] = { { 40960, 768, 256, 128, 8 },   { 40960, 768, 1024, 32, 2 },
                                     { 24576, 1536, 256, 128, 8 },  { 24576, 1536, 1024, 32, 2 },
                                     { 32768, 4096, 256, 256, 16 }, { 32768, 4096, 1024, 64, 4 },
                                     { 32768, 4096, 2048, 64, 4 } },
                           cpu[] = { { 2048, 256, 512, 8, 2 }, { 2048, 512, 256, 32, 4 } }, tiny[] = { { 96, 64, 64, 4, 2 } };
    options o = { .rounds = 20, .calls = 5 };
    int code = parse(argc, argv, &o);
    if (code >= 0) return code;
    if (o.tiny) o.rounds = o.calls = 1;
    mu_threads_set(mu_cores_share(0, 1, (int)o.threads));
    mu_device *dev = bench_device("muster_bench_device", o.bf16, o.cuda);
    if (!dev) return BENCH_CANNOT;
    printf("%s\n", dev->name);
    ceilings c = measure_ceilings(&o, dev);
    const moe_shape *shapes = o.tiny ? tiny : o.cuda ? gpu : cpu;
    int n = o.tiny ? 1 : o.cuda ? 7 : 2;
    for (int i = 0; i < n; i++)
        for (int skew = 0; skew < 2; skew++) measure_layer(&o, dev, shapes[i], skew, &c);
    for (int64_t S = o.tiny ? 64 : 1024; S <= (o.tiny ? 64 : o.cuda ? 8192 : 2048); S *= 2)
        measure_attention(&o, dev, o.tiny ? 1 : o.cuda ? 16384 / S : 2048 / S, S, o.tiny ? 2 : o.cuda ? 16 : 8, o.tiny ? 16 : o.cuda ? 128 : 64, &c);
    measure_loss(&o, dev, o.tiny ? 16 : o.cuda ? 4096 : 512, o.tiny ? 300 : 50304, &c);
    measure_norm(&o, dev, o.tiny ? 32 : o.cuda ? 65536 : 4096, o.tiny ? 64 : o.cuda ? 2048 : 512, 2, &c);
    measure_optimizer(&o, dev, o.tiny ? 3 : o.cuda ? 300 : 30, o.tiny ? 1000 : 768 * 1024, &c);
    mu_device_close(dev);
    return 0;
}
