/* evidence.c - memory traffic of the important kernels, counted by the emulation: no time, but bytes, coalescing, bank conflicts.
 *
 *     evidence DEVICE [KERNEL...]      DEVICE: cuda, cuda-bf16; KERNEL: only these
 *
 * Built with the checks, since only they count. Each kernel of the list runs once, at a size that the emulation can bear:
 * the widths are those of a compute layer, there are fewer rows and experts. Prints one JSON object: for each call the
 * bytes it must read and write at least (every operand once, and intermediate results of its products), and
 * what each of its launches did. bench/gpu/evidence.py makes the tables. */
#include "kernels/kernels.h"
#include "tests/cuda_on_host/emulation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct { mu_mat m; int64_t bytes; } operand;
static const mu_mat none;

typedef struct {
    mu_device *dev;
    mu_memory *memory;
    size_t used;
    char **only;
    int64_t reads, writes;      /* minimum bytes of the current call */
    mu_json json;
} stand;

/* ---------------------------------------------------------------- operands */
static operand take(stand *s, mu_dtype dtype, int64_t rows, int64_t columns) {
    operand o = { { NULL, dtype, columns }, rows * columns * (int64_t)mu_dtype_size(dtype) };
    size_t at = s->used;
    s->used += ((size_t)o.bytes + 255) & ~(size_t)255;
    mu_memory_commit(s->memory, s->used);
    o.m.data = s->memory->region.base + at;
    return o;
}

static operand compute(stand *s, int64_t rows, int64_t columns) { return take(s, s->dev->compute, rows, columns); }
static operand master(stand *s, int64_t rows, int64_t columns) { return take(s, s->dev->master, rows, columns); }

/* Uniform in +-1, by way of the master type. */
static operand filled(stand *s, operand o) {
    int64_t n = o.bytes / (int64_t)mu_dtype_size(o.m.dtype);
    float *host = mu_alloc((size_t)n, sizeof *host);
    mu_rng rng = { 5, (uint32_t)s->used, 0, MU_RNG_TEST, 0 };
    for (int64_t i = 0; i < n; i++) host[i] = (float)(2 * mu_rng_uniform(&rng, (uint64_t)i) - 1);
    operand from = take(s, s->dev->master, 1, n);
    mu_device_write(s->dev, from.m.data, host, (size_t)n * sizeof *host);
    s->dev->k->copy(s->dev, n, from.m, o.m);
    free(host);
    return o;
}

static operand whole(stand *s, int64_t rows, int64_t columns, int64_t step, int64_t below) {
    operand o = take(s, MU_DTYPE_I32, rows, columns);
    int32_t *host = mu_alloc((size_t)(rows * columns), sizeof *host);
    for (int64_t i = 0; i < rows * columns; i++) host[i] = (int32_t)(i * step % below);
    mu_device_write(s->dev, o.m.data, host, (size_t)o.bytes);
    free(host);
    return o;
}

/* ---------------------------------------------------------------- one call */
static int64_t bytes_of(const operand *list, size_t n) {
    int64_t bytes = 0;
    for (size_t i = 0; i < n; i++) bytes += list[i].bytes;
    return bytes;
}
#define BYTES(...) bytes_of((const operand[]){ __VA_ARGS__ }, sizeof((const operand[]){ __VA_ARGS__ }) / sizeof(operand))

/* The call that follows must read and write this much; everything before it is done and forgotten. */
static void begin(stand *s, int64_t reads, int64_t writes) {
    mu_device_finish(s->dev);
    s->reads = reads, s->writes = writes;
    mu_emulation_counters_reset();
}

static void write_launches(mu_json *j) {
    mu_emulation_counters c;
    mu_json_begin(j, "launches", '[');
    for (int i = 0; i < mu_emulation_kernel_count(); i++) {
        mu_json_begin(j, NULL, '{');
        mu_json_string(j, "name", mu_emulation_kernel(i, &c));
#define C(field) mu_json_int(j, #field, c.field);
        C(launches) C(blocks) C(threads) C(dynamic_shared) C(read_sectors) C(read_footprint) C(written_sectors)
        C(written_footprint) C(accesses) C(uncoalesced) C(excess_sectors) C(shared_accesses) C(bank_conflicts)
#undef C
        mu_json_end(j, '}');
    }
    mu_json_end(j, ']');
}

static void end(stand *s, const char *kernel, const char *shape) {
    mu_device_finish(s->dev);
    mu_json_begin(&s->json, NULL, '{');
    mu_json_string(&s->json, "kernel", kernel);
    mu_json_string(&s->json, "shape", shape);
    mu_json_int(&s->json, "reads", s->reads);
    mu_json_int(&s->json, "writes", s->writes);
    write_launches(&s->json);
    mu_json_end(&s->json, '}');
}

static bool wanted(const stand *s, const char *kernel) {
    bool found = !*s->only;
    for (char **only = s->only; *only; only++) found |= !strcmp(*only, kernel);
    return found;
}

/* CALL(rmsnorm_fwd, "8 x 8", (x, w), (y), dev, ...): the kernel, its least traffic, its arguments. */
#define UNPACK(...) __VA_ARGS__
#define CALL(kernel, shape, read, written, ...) do {            \
    if (!wanted(s, #kernel)) break;                             \
    begin(s, BYTES(UNPACK read), BYTES(UNPACK written));        \
    s->dev->k->kernel(s->dev, __VA_ARGS__);                     \
    end(s, #kernel, shape);                                     \
} while (0)


/* ---------------------------------------------------------------- vectors, norm, rotation, embedding, loss */
static void vectors(stand *s) {
    enum { N = 1 << 18 };
    operand g = filled(s, master(s, 1, N)), sum = take(s, MU_DTYPE_F64, 1, 1);
    operand x = filled(s, compute(s, 1, N)), y = filled(s, compute(s, 1, N)), z = compute(s, 1, N);
    CALL(sumsq, "n 262144", (g), (sum), N, g.m, false, sum.m);
    CALL(add, "n 262144", (x, y), (z), N, x.m, y.m, z.m);
}

/* Units of 36864 values: one expert's matrix of 768 x 48, and a remainder of the last one. */
static void optimizer(stand *s) {
    enum { N = 1 << 18, UNIT = 768 * 48, UNITS = (N + UNIT - 1) / UNIT };
    operand w = filled(s, master(s, 1, N)), g = filled(s, master(s, 1, N)), m = filled(s, master(s, 1, N));
    operand v = master(s, 1, N), copy = compute(s, 1, N), units = take(s, MU_DTYPE_I64, UNITS, MU_SLAB_UNIT_WORDS);
    operand steps = take(s, MU_DTYPE_I64, 1, UNITS), squares = take(s, MU_DTYPE_F64, 1, UNITS);
    operand norm = take(s, MU_DTYPE_F64, 1, 1), scale = take(s, MU_DTYPE_F64, 1, 1);
    mu_adamw_spec spec = { 1e-3, 0.9, 0.95, 1e-8, 0.1 };
    mu_slab_unit table[UNITS];
    int64_t n_pieces = 0, taken[UNITS] = { 0 };
    for (int64_t i = 0, first = 0; i < UNITS; i++, first += UNIT) {
        table[i] = (mu_slab_unit){ first, N - first < UNIT ? N - first : UNIT, n_pieces, i, -1, 1 };
        n_pieces += mu_slab_pieces(table[i].count);
    }
    mu_device_write(s->dev, units.m.data, table, sizeof table);
    mu_device_write(s->dev, steps.m.data, taken, sizeof taken);
    s->dev->k->fill(s->dev, N, 1.0, v.m);
    s->dev->k->fill(s->dev, UNITS, 0.01, squares.m);
    s->dev->k->fill(s->dev, 1, 1.0, scale.m);
    CALL(slab_adamw, "8 units of 36864", (w, g, m, v, units, steps), (w, m, v, copy, steps), UNITS, n_pieces, &spec, units.m,
         none, scale.m, steps.m, w.m, g.m, m.m, v.m, copy.m);
    CALL(slab_sumsq, "8 units of 36864", (g, units), (squares), UNITS, n_pieces, units.m, g.m, squares.m);
    CALL(clip, "8 units", (squares), (norm, scale), UNITS, squares.m, 0, none, 1.0, norm.m, scale.m);
}

static void norm(stand *s) {
    enum { R = 512, D = 768 };
    operand x = filled(s, compute(s, R, D)), dy = filled(s, compute(s, R, D)), w = filled(s, master(s, 1, D)), y = compute(s, R, D);
    operand rstd = master(s, 1, R), dx = filled(s, compute(s, R, D)), dw = filled(s, master(s, 1, D));
    CALL(rmsnorm_fwd, "512 x 768", (x, w), (y, rstd), R, D, 1e-6, x.m, w.m, y.m, rstd.m);
    CALL(rmsnorm_bwd, "512 x 768", (x, w, rstd, dy, dx, dw), (dx, dw), R, D, x.m, w.m, rstd.m, dy.m, dx.m, dw.m);
}

static void rotation(stand *s) {
    enum { T = 512, H = 8, d = 64 };
    operand x = filled(s, compute(s, T, H * d)), cosine = filled(s, master(s, T, d / 2)), sine = filled(s, master(s, T, d / 2));
    CALL(rope, "512 x 8 heads of 64", (x, cosine, sine), (x), T, T, H, d, 1, cosine.m, sine.m, x.m, false, x.m);
}

static void embedding(stand *s) {
    enum { T = 512, D = 768, V = 1000 };
    operand ids = whole(s, T, 1, 7, V), w = filled(s, compute(s, V, D)), y = filled(s, compute(s, T, D)), dw = master(s, V, D);
    operand rows = { y.m, T * D * (int64_t)mu_dtype_size(s->dev->compute) }, sums = { dw.m, T * D * 4 };   /* 7 i mod 1000 differ */
    s->dev->k->fill(s->dev, V * D, 0.0, dw.m);
    CALL(embed_fwd, "512 of 1000 x 768", (ids, rows), (y), T, D, ids.m, w.m, y.m);
    CALL(embed_bwd, "512 of 1000 x 768", (ids, y, sums), (sums), T, D, V, ids.m, y.m, dw.m);
}

static void loss(stand *s) {
    enum { R = 128, V = 8192 };
    operand logits = filled(s, compute(s, R, V)), targets = whole(s, R, 1, 61, V), lse = master(s, 1, R), nll = master(s, 1, R);
    operand dout = take(s, MU_DTYPE_F64, 1, 1);
    s->dev->k->fill(s->dev, 1, 1.0, dout.m);
    CALL(xent_fwd, "128 x 8192", (logits, targets), (lse, nll), R, V, logits.m, targets.m, lse.m, nll.m);
    s->dev->k->xent_fwd(s->dev, R, V, logits.m, targets.m, lse.m, nll.m);
    CALL(xent_bwd, "128 x 8192", (logits, targets, lse, dout), (logits), R, V, 1.0, dout.m, targets.m, lse.m, logits.m);
}

static void attention(stand *s) {
    enum { S = 512, H = 4, G = 2, d = 128 };
    const mu_attention_shape shape = { 1, S, H, G, d, 1 / sqrt((double)d), 0 };
    operand q = filled(s, compute(s, S, H * d)), k = filled(s, compute(s, S, G * d)), v = filled(s, compute(s, S, G * d));
    operand y = compute(s, S, H * d), lse = master(s, H, S), dy = filled(s, compute(s, S, H * d));
    operand dq = filled(s, compute(s, S, H * d)), dk = filled(s, compute(s, S, G * d)), dv = filled(s, compute(s, S, G * d));
    CALL(attention_fwd, "512 tokens, 4/2 heads of 128", (q, k, v), (y, lse), &shape, q.m, k.m, v.m, y.m, lse.m);
    if (!wanted(s, "attention_bwd")) return;
    s->dev->k->attention_fwd(s->dev, &shape, q.m, k.m, v.m, y.m, lse.m);
    CALL(attention_bwd, "512 tokens, 4/2 heads of 128", (q, k, v, y, lse, dy, dq, dk, dv), (dq, dk, dv), &shape, q.m, k.m, v.m, y.m,
         lse.m, dy.m, dq.m, dk.m, dv.m);
}

/* ---------------------------------------------------------------- an MoE layer: d 768, n 256 as in the finest of the table */
enum { T = 512, D = 768, F = 256, E = 8, K = 2, R = T * K };
#define LAYER "512 tokens, d 768, n 256, 2 of 8"

typedef struct {
    operand x, dy, scores, lse, ids, gates, order, offsets, token, row, weights;
    operand gate, up, down, hg, hu, act, rows, y;
} layer;

static void routing(stand *s, layer *l) {
    const mu_route_shape shape = { .T = T, .E = E, .K = K, .normalise = true, .scale = 1 };
    operand logits = filled(s, master(s, T, E)), dgates = filled(s, master(s, T, K)), dlogits = filled(s, master(s, T, E));
    operand noisy = master(s, T, D);
    mu_rng rng = { 1, 0, 0, MU_RNG_JITTER, 0 };
    l->scores = master(s, T, E), l->lse = master(s, 1, T), l->ids = take(s, MU_DTYPE_I32, T, K), l->gates = master(s, T, K);
    l->order = whole(s, 1, E, 1, E), l->offsets = take(s, MU_DTYPE_I64, 1, E + 1), l->token = take(s, MU_DTYPE_I32, 1, R);
    l->row = take(s, MU_DTYPE_I32, T, K), l->weights = master(s, R, 1);
    CALL(jitter, LAYER, (l->x), (noisy), T, T, D, 0.1, &rng, l->x.m, false, noisy.m);
    CALL(route_fwd, LAYER, (logits), (l->scores, l->lse, l->ids, l->gates), &shape, logits.m, none, none, l->scores.m,
         l->lse.m, l->ids.m, l->gates.m);
    s->dev->k->route_fwd(s->dev, &shape, logits.m, none, none, l->scores.m, l->lse.m, l->ids.m, l->gates.m);
    CALL(route_bwd, LAYER, (l->scores, l->ids, dgates, dlogits), (dlogits), &shape, l->scores.m, l->ids.m,
         dgates.m, none, none, dlogits.m);
    CALL(plan, LAYER, (l->ids, l->order), (l->offsets, l->token, l->row), T, E, K, T, 0, l->ids.m, l->order.m, l->offsets.m,
         l->token.m, l->row.m);
    s->dev->k->plan(s->dev, T, E, K, T, 0, l->ids.m, l->order.m, l->offsets.m, l->token.m, l->row.m);
    mu_mat row = l->row.m, gates = l->gates.m;
    row.ld = gates.ld = 1;
    CALL(scatter, LAYER, (l->row, l->gates), (l->weights), R, 1, row, gates, l->weights.m);
    s->dev->k->scatter(s->dev, R, 1, row, gates, l->weights.m);
}

/* Two products: hg and hu, with a = silu(hg) hu for the second one, which reads it again. */
static void experts_forward(stand *s, layer *l) {
    const mu_experts_shape shape = { R, E, D, F, .fresh = true, .batch_invariant = true };
    operand a = { none, R * F * (int64_t)mu_dtype_size(s->dev->compute) };
    CALL(experts_fwd, LAYER, (l->x, l->token, l->offsets, l->weights, l->gate, l->up, l->down, a), (l->hg, l->hu, a, l->rows),
         &shape, l->x.m, l->token.m, l->offsets.m, l->gate.m, l->up.m, l->down.m, l->hg.m, l->hu.m, none, l->weights.m,
         l->rows.m);
    CALL(gather_sum, LAYER, (l->row, l->rows), (l->y), T, K, D, l->row.m, l->rows.m, false, l->y.m);
    CALL(gather, LAYER, (l->token, l->x), (l->rows), R, D, l->token.m, l->x.m, l->rows.m);
}

/* Three: a's gradient from dy, and those of hg and hu from it; dx from these; the weights' from x, dy, a and these. */
static void experts_backward(stand *s, layer *l) {
    const mu_experts_shape shape = { R, E, D, F, .fresh = true, .batch_invariant = true };
    operand dgate = master(s, E * F, D), dup = master(s, E * F, D), ddown = master(s, E * D, F), dweights = master(s, R, 1);
    if (!wanted(s, "experts_bwd")) return;
    s->dev->k->experts_fwd(s->dev, &shape, l->x.m, l->token.m, l->offsets.m, l->gate.m, l->up.m, l->down.m, l->hg.m, l->hu.m,
                           none, l->weights.m, l->rows.m);
    CALL(experts_bwd, LAYER,
         (l->dy, l->token, l->offsets, l->weights, l->down, l->hg, l->hu, l->hg, l->hu, l->gate, l->up, l->x, l->dy, l->act,
          l->hg, l->hu),
         (l->hg, l->hu, l->act, dweights, l->rows, dgate, dup, ddown), &shape, l->x.m, l->token.m, l->offsets.m, l->gate.m,
         l->up.m, l->down.m, l->hg.m, l->hu.m, l->token.m, l->weights.m, l->dy.m, l->act.m, none, none, l->rows.m, dweights.m,
         dgate.m, dup.m, ddown.m);
}

static void moe(stand *s) {
    layer l = { .x = filled(s, compute(s, T, D)), .dy = filled(s, compute(s, T, D)) };
    l.gate = filled(s, compute(s, E * F, D)), l.up = filled(s, compute(s, E * F, D)), l.down = filled(s, compute(s, E * D, F));
    l.hg = compute(s, R, F), l.hu = compute(s, R, F), l.act = compute(s, R, F), l.rows = compute(s, R, D), l.y = compute(s, T, D);
    routing(s, &l);
    experts_forward(s, &l);
    experts_backward(s, &l);
}

int main(int argc, char **argv) {
    static void (*const parts[])(stand *) = { vectors, optimizer, norm, rotation, embedding, loss, attention, moe };
    mu_device *dev = argc > 1 ? mu_device_open(argv[1]) : NULL;
    if (!dev) {
        printf("%s\n", argc > 1 ? mu_cuda_missing() : "usage: evidence DEVICE [KERNEL...]");
        return argc > 1 ? 77 : 64;
    }
    stand s = { .dev = dev, .only = argv + 2 };
    mu_json_init(&s.json);
    mu_json_begin(&s.json, NULL, '{');
    mu_json_string(&s.json, "device", dev->name);
    mu_json_begin(&s.json, "calls", '[');
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        s.memory = mu_memory_new(dev, (size_t)1 << 30), s.used = 0;
        parts[i](&s);
        mu_memory_free(s.memory);
    }
    mu_json_end(&s.json, ']');
    mu_json_end(&s.json, '}');
    puts(s.json.text);
    mu_json_free(&s.json);
    mu_device_close(dev);
    return 0;
}
