/* products.c - muster's matrix products next to those of other libraries, in one process.
 *
 * First, whole products in the shapes of a training step. Then experts: forward is gather, two
 * up-projections, SwiGLU, down-projection for each expert's rows; backward the six products that give the
 * gradients of rows and weights. muster's are its kernels experts_fwd and experts_bwd; a library does the same
 * with a call for each expert and product, single-threaded inside a parallel loop over experts, gate and up in
 * one product, SwiGLU vectorised. Rows are gathered from R tokens; results must agree. muster and the libraries
 * alternate within each round; the figures are medians of rounds, with warm caches.
 *
 * D model width, F expert width, E experts, n rows per expert, R = E n. */
#include "bench.h"
#include "kernels/cpu/cpu.h"
#include "rivals.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t dim, ffn, experts, rows, rounds, milliseconds, threads;
    bool bf16;
} options;

static int parse(int argc, char **argv, options *o) {
    const bench_option table[] = {
        { "--dim", &o->dim, NULL, "model width of experts (256, then 512)" },
        { "--ffn", &o->ffn, NULL, "expert width (512, then 256)" },
        { "--experts", &o->experts, NULL, "experts (8, then 32)" },
        { "--rows", &o->rows, NULL, "most rows an expert (256)" },
        { "--rounds", &o->rounds, NULL, "rounds in turn (5)" },
        { "--ms", &o->milliseconds, NULL, "milliseconds each in a round (10)" },
        { "--threads", &o->threads, NULL, "threads (cores)" },
        { "--bf16", NULL, &o->bf16, "products of bf16 numbers" },
    };
    return bench_parse("muster_bench_products", table, sizeof table / sizeof *table, argc, argv);
}

typedef struct {
    const options *o;
    mu_device *dev;
    double peak;
    int n;
    rival list[MOST_RIVALS];
} bench;

/* ------------------------------------------------------------------ memory and numbers */

/* Everything of one measurement, muster's and theirs, is in one stretch of device memory. */
typedef struct {
    mu_memory *memory;
    size_t used;
} pool;

static pool pool_new(mu_device *dev) { return (pool){ mu_memory_new(dev, (size_t)8 << 30), 0 }; }

static void *take(pool *p, int64_t count, size_t size) {
    void *at = p->memory->region.base + p->used;
    p->used += ((size_t)count * size + 255) & ~(size_t)255;
    mu_memory_commit(p->memory, p->used);
    return at;
}
static float *floats(pool *p, int64_t n) { return take(p, n, sizeof(float)); }

static float *random_floats(pool *p, int64_t n, double scale, uint32_t seed) {
    float *x = floats(p, n);
    mu_rng rng = { 11, 0, seed, MU_RNG_TEST, 0 };
    for (int64_t i = 0; i < n; i++) x[i] = (float)(scale * (2 * mu_rng_uniform(&rng, (uint64_t)i) - 1));
    return x;
}

/* fp32 to bf16, to nearest, ties to even. No NaN here. */
static void narrow(int64_t n, const float *from, uint16_t *to) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, sizeof bits);
        to[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}

/* x as a rival reads it. */
static void *for_rival(pool *p, bool bf16, const float *x, int64_t n) {
    if (!bf16) {
        float *copy = floats(p, n);
        return memcpy(copy, x, (size_t)n * sizeof *copy);
    }
    uint16_t *copy = take(p, n, sizeof *copy);
    narrow(n, x, copy);
    return copy;
}

static const void *element(const rival *r, const void *x, int64_t i) {
    return (const char *)x + i * (r->bf16 ? 2 : 4);
}

#ifdef __x86_64__
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

/* y[columns, rows] = x^T, 16 x 16 at a time. */
CLONES static void transpose(int64_t rows, int64_t columns, const float *restrict x, float *restrict y) {
    enum { BLOCK = 16 };
    for (int64_t i = 0; i < rows; i += BLOCK)
        for (int64_t j = 0; j < columns; j += BLOCK)
            for (int64_t c = j; c < j + BLOCK && c < columns; c++)
                for (int64_t r = i; r < i + BLOCK && r < rows; r++) y[c * rows + r] = x[r * columns + c];
}

static float *transposed(pool *p, const float *x, int64_t rows, int64_t columns) {
    float *y = floats(p, rows * columns);
    transpose(rows, columns, x, y);
    return y;
}

/* Checks that both results agree, by the largest difference relative to the largest value. */
static void compare(const rival *r, const char *what, const float *x, const float *y, int64_t n,
                    double most) {
    double difference = 0, largest = 1e-30;
    for (int64_t i = 0; i < n; i++) {
        difference = fmax(difference, fabs((double)x[i] - (double)y[i]));
        largest = fmax(largest, fabs((double)x[i]));
    }
    MU_CHECK(difference <= most * largest, "%s: %s differs by %.2g of its largest value", r->name, what,
             difference / largest);
}
static double tolerance(const bench *b) { return b->o->bf16 ? 3e-2 : 1e-4; }

/* ------------------------------------------------------------------ timing in turn */

typedef void action(void *what);

/* Seconds per call: the mean of as many as fit into a slot, after one that warms the caches. */
static double slot(const options *o, action *act, void *what) {
    act(what);
    double start = mu_time(), end = start + 1e-3 * (double)o->milliseconds, now;
    int64_t calls = 0;
    do act(what), calls++;
    while ((now = mu_time()) < end);
    return (now - start) / (double)calls;
}

enum { MOST_ROUNDS = 99 };
/* rates[0]: ours, then each rival's; FLOP/s, medians. what[i] is the argument of act[i]. */
static void in_turn(const bench *b, double flops, action *const act[], void *const what[], double *rates) {
    double seconds[1 + MOST_RIVALS][MOST_ROUNDS];
    int rounds = (int)cpu_min(b->o->rounds, MOST_ROUNDS);
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i <= b->n; i++) seconds[i][round] = slot(b->o, act[i], what[i]);
    for (int i = 0; i <= b->n; i++) rates[i] = flops / bench_median(seconds[i], rounds);
}

static void print_head(const bench *b, const char *title) {
    printf("\n%s\n  %-30s %8s %8s", title, "GFLOP/s", "muster", "of peak");
    for (int i = 0; i < b->n; i++) printf(" %8s", b->list[i].name);
    printf("%s\n", b->n ? "    ratio" : "");
}

/* Four decimals or one: slow figures do not become zero, fast ones stay readable. */
static void print_number(double x) { printf(" %8.*f", x < 10 ? 4 : 1, x); }

/* The last column: muster's rate over that of the fastest library. */
static void print_rates(const bench *b, const char *what, const double *rates) {
    double best = 0;
    printf("  %-30s", what);
    print_number(rates[0] * 1e-9);
    printf(" %6.1f %%", 100 * rates[0] / b->peak);
    for (int i = 1; i <= b->n; i++) {
        print_number(rates[i] * 1e-9);
        best = fmax(best, rates[i]);
    }
    if (best > 0) print_number(rates[0] / best);
    printf("\n");
    fflush(stdout);
}

/* ------------------------------------------------------------------ whole products */

typedef struct {
    const bench *b;
    const rival *r;
    rival_shape s;
    const float *x, *w;
    const void *rival_x, *rival_w;
    float *y, *rival_y;
} whole;

static void whole_ours(void *p) {
    const whole *g = p;
    mu_mat a = { NULL, MU_DTYPE_F32, g->s.lda }, b = { NULL, MU_DTYPE_F32, g->s.ldb },
           c = { g->y, MU_DTYPE_F32, g->s.ldc };
    memcpy(&a.data, &g->x, sizeof g->x), memcpy(&b.data, &g->w, sizeof g->w); /* operands are not const */
    g->b->dev->k->gemm(g->b->dev, g->s.ta, g->s.tb, g->s.m, g->s.n, g->s.k, a, b, 0.0, c);
}

/* The most favourable way for the library: the rows of C divided among the threads, one call each. */
static void whole_theirs(void *p) {
    const whole *g = p;
    int threads = mu_threads(), m = g->s.m;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int t = 0; t < threads; t++) {
        int first = (int)((int64_t)m * t / threads), end = (int)((int64_t)m * (t + 1) / threads);
        if (first == end) continue;
        rival_shape s = g->s;
        s.m = end - first;
        g->r->gemm(&s, element(g->r, g->rival_x, g->s.ta ? first : (int64_t)first * g->s.lda), g->rival_w,
                   g->rival_y + (int64_t)first * g->s.ldc);
    }
}

static void whole_product(const bench *b, const char *name, bool ta, bool tb, int m, int n, int k) {
    pool p = pool_new(b->dev);
    rival_shape s = { ta, tb, false, m, n, k, ta ? m : k, tb ? k : n, n };
    whole ours = { .b = b, .s = s }, theirs[MOST_RIVALS];
    ours.x = random_floats(&p, (int64_t)m * k, 1, 1), ours.w = random_floats(&p, (int64_t)k * n, 1, 2);
    ours.y = floats(&p, (int64_t)m * n);
    action *act[1 + MOST_RIVALS] = { whole_ours };
    void *what[1 + MOST_RIVALS] = { &ours };
    whole_ours(&ours);
    for (int i = 0; i < b->n; i++) {
        const rival *r = &b->list[i];
        bool turn = tb && r->no_tb;
        theirs[i] = ours, theirs[i].r = r;
        theirs[i].rival_x = for_rival(&p, r->bf16, ours.x, (int64_t)m * k);
        theirs[i].rival_w = for_rival(&p, r->bf16, turn ? transposed(&p, ours.w, n, k) : ours.w,
                                      (int64_t)k * n);
        theirs[i].rival_y = floats(&p, (int64_t)m * n);
        if (turn) theirs[i].s.tb = false, theirs[i].s.ldb = n;
        whole_theirs(&theirs[i]);
        compare(r, name, ours.y, theirs[i].rival_y, (int64_t)m * n, tolerance(b));
        act[i + 1] = whole_theirs, what[i + 1] = &theirs[i];
    }
    double rates[1 + MOST_RIVALS];
    char text[64];
    snprintf(text, sizeof text, "%s %d x %d x %d", name, m, n, k);
    in_turn(b, 2.0 * m * n * k, act, what, rates);
    print_rates(b, text, rates);
    mu_memory_free(p.memory);
}

/* ------------------------------------------------------------------ experts */

typedef struct {
    const bench *b;
    mu_experts_shape s;
    int64_t n;
    int64_t *offsets;
    int32_t *index;
    float *x, *gate, *up, *down, *dy;                         /* operands */
    float *hg, *hu, *act, *xg, *y, *dx, *dgate, *dup, *ddown; /* ours */
} experts;

static mu_mat matrix(void *data, int64_t ld) { return (mu_mat){ data, MU_DTYPE_F32, ld }; }

static void ours_forward(void *p) {
    experts *e = p;
    int64_t D = e->s.D, F = e->s.F;
    mu_device *dev = e->b->dev;
    dev->k->experts_fwd(dev, &e->s, matrix(e->x, D), (mu_mat){ e->index, MU_DTYPE_I32, 1 },
                        (mu_mat){ e->offsets, MU_DTYPE_I64, 1 }, matrix(e->gate, D), matrix(e->up, D),
                        matrix(e->down, F), matrix(e->hg, F), matrix(e->hu, F), (mu_mat){ 0 },
                        (mu_mat){ 0 }, matrix(e->y, D));
}

static void ours_both(void *p) {
    experts *e = p;
    int64_t D = e->s.D, F = e->s.F;
    mu_device *dev = e->b->dev;
    ours_forward(p);
    dev->k->experts_bwd(dev, &e->s, matrix(e->x, D), (mu_mat){ e->index, MU_DTYPE_I32, 1 },
                        (mu_mat){ e->offsets, MU_DTYPE_I64, 1 }, matrix(e->gate, D), matrix(e->up, D),
                        matrix(e->down, F), matrix(e->hg, F), matrix(e->hu, F), (mu_mat){ 0 },
                        (mu_mat){ 0 }, matrix(e->dy, D), matrix(e->act, F), matrix(e->xg, D), (mu_mat){ 0 },
                        matrix(e->dx, D), (mu_mat){ 0 }, matrix(e->dgate, D), matrix(e->dup, D), matrix(e->ddown, F));
}

/* A library's experts. up_2FD: gate above up, so that one product gives both; *_t transposed, for a library
 * that cannot transpose. x, act, dh, dy as it reads them, the rest fp32. */
typedef struct {
    const experts *e;
    const rival *r;
    const void *x, *up, *down, *dy;
    float *up_t, *down_t;
    void *xg, *act, *dh;
    float *h, *wide, *y, *dx, *dup, *ddown; /* wide [R, 2F]: fp32 values on their way to act or dh */
} library;

/* act = silu(g) * u; h[n, 2F] holds g, then u. */
CLONES static void swiglu_rows(int64_t n, int64_t F, const float *restrict h, float *restrict act) {
    for (int64_t r = 0; r < n; r++, h += 2 * F, act += F) {
#pragma omp simd
        for (int64_t i = 0; i < F; i++) act[i] = h[i] * cpu_sigmoid(h[i]) * h[F + i];
    }
}

/* From da and h: act again, and h becomes its own gradient. */
CLONES static void swiglu_rows_bwd(int64_t n, int64_t F, float *restrict h, float *restrict da) {
    for (int64_t r = 0; r < n; r++, h += 2 * F, da += F) {
#pragma omp simd
        for (int64_t i = 0; i < F; i++) {
            float g = h[i], u = h[F + i], d = da[i], s = cpu_sigmoid(g), silu = g * s;
            da[i] = silu * u;
            h[i] = d * u * (s + silu * (1 - s));
            h[F + i] = d * silu;
        }
    }
}

CLONES static void narrow_rows(int64_t n, const float *from, uint16_t *to) { narrow(n, from, to); }

/* A library that cannot transpose gets its weights transposed first: they change in every training step. */
static void turn_weights(const library *l, int64_t i) {
    int64_t D = l->e->s.D, F = l->e->s.F;
    transpose(2 * F, D, (const float *)l->up + 2 * i * D * F, l->up_t + 2 * i * D * F);
    transpose(D, F, (const float *)l->down + i * D * F, l->down_t + i * D * F);
}

static void expert_forward(const library *l, int64_t i) {
    const experts *e = l->e;
    const rival *r = l->r;
    int D = (int)e->s.D, F = (int)e->s.F, n = (int)e->n;
    int64_t row = i * n, weight = i * D * F;
    if (r->no_tb) turn_weights(l, i);
    size_t size = r->bf16 ? 2 : 4;
    char *xg = (char *)l->xg + (size_t)(row * D) * size;
    for (int64_t j = 0; j < n; j++)
        memcpy(xg + (size_t)(j * D) * size, element(r, l->x, e->index[row + j] * (int64_t)D),
               (size_t)D * size);
    float *h = l->h + row * 2 * F, *act = r->bf16 ? l->wide + row * 2 * F : (float *)l->act + row * F;
    rival_shape up = { false, !r->no_tb, false, n, 2 * F, D, D, r->no_tb ? 2 * F : D, 2 * F };
    r->gemm(&up, xg, r->no_tb ? l->up_t + 2 * weight : element(r, l->up, 2 * weight), h);
    swiglu_rows(n, F, h, act);
    if (r->bf16) narrow_rows((int64_t)n * F, act, (uint16_t *)l->act + row * F);
    rival_shape down = { false, !r->no_tb, false, n, D, F, F, r->no_tb ? D : F, D };
    r->gemm(&down, element(r, l->act, row * F), r->no_tb ? l->down_t + weight : element(r, l->down, weight),
            l->y + row * D);
}

static void expert_backward(const library *l, int64_t i) {
    const experts *e = l->e;
    const rival *r = l->r;
    int D = (int)e->s.D, F = (int)e->s.F, n = (int)e->n;
    int64_t row = i * n, weight = i * D * F;
    const void *dy = element(r, l->dy, row * D), *act = element(r, l->act, row * F),
               *dh = element(r, l->dh, row * 2 * F);
    float *h = l->h + row * 2 * F, *da = r->bf16 ? l->wide + row * 2 * F : (float *)l->act + row * F;
    r->gemm(&(rival_shape){ false, false, false, n, F, D, D, F, F }, dy, element(r, l->down, weight), da);
    swiglu_rows_bwd(n, F, h, da);
    if (r->bf16) {
        narrow_rows((int64_t)n * F, da, (uint16_t *)l->act + row * F);
        narrow_rows((int64_t)n * 2 * F, h, (uint16_t *)l->dh + row * 2 * F);
    }
    r->gemm(&(rival_shape){ false, false, false, n, D, 2 * F, 2 * F, D, D }, dh,
            element(r, l->up, 2 * weight), l->dx + row * D);
    r->gemm(&(rival_shape){ true, false, true, 2 * F, D, n, 2 * F, D, D }, dh, element(r, l->xg, row * D),
            l->dup + 2 * weight);
    r->gemm(&(rival_shape){ true, false, true, D, F, n, D, F, F }, dy, act, l->ddown + weight);
}

static void theirs_forward(void *p) {
    const library *l = p;
#pragma omp parallel for schedule(dynamic) num_threads(mu_threads())
    for (int64_t i = 0; i < l->e->s.experts; i++) expert_forward(l, i);
}

static void theirs_both(void *p) {
    const library *l = p;
    theirs_forward(p); /* all experts first: in training the loss is computed between forward and backward */
#pragma omp parallel for schedule(dynamic) num_threads(mu_threads())
    for (int64_t i = 0; i < l->e->s.experts; i++) expert_backward(l, i);
}

static experts experts_new(const bench *b, pool *p, int64_t E, int64_t D, int64_t F, int64_t n) {
    int64_t R = E * n, W = E * D * F;
    double scale = sqrt(3.0 / (double)D); /* keeps values near 1 */
    experts e = { .b = b, .s = { R, E, D, F, .batch_invariant = false }, .n = n };
    e.offsets = take(p, E + 1, sizeof *e.offsets), e.index = take(p, R, sizeof *e.index);
    for (int64_t i = 0; i <= E; i++) e.offsets[i] = i * n;
    for (int64_t i = 0; i < R; i++) e.index[i] = (int32_t)(i % n * E + i / n); /* every E-th token */
    e.x = random_floats(p, R * D, 1, 1), e.dy = random_floats(p, R * D, 1, 2);
    e.gate = random_floats(p, W, scale, 3), e.up = random_floats(p, W, scale, 4),
    e.down = random_floats(p, W, scale, 5);
    e.hg = floats(p, R * F), e.hu = floats(p, R * F), e.act = floats(p, R * F), e.xg = floats(p, R * D);
    e.y = floats(p, R * D), e.dx = floats(p, R * D);
    e.dgate = floats(p, W), e.dup = floats(p, W), e.ddown = floats(p, W);
    return e;
}

static library library_new(const experts *e, const rival *r, pool *p) {
    int64_t R = e->s.R, E = e->s.experts, D = e->s.D, F = e->s.F, W = D * F;
    float *up = floats(p, 2 * E * W);
    for (int64_t i = 0; i < E; i++) {
        memcpy(up + 2 * i * W, e->gate + i * W, (size_t)W * sizeof *up);
        memcpy(up + (2 * i + 1) * W, e->up + i * W, (size_t)W * sizeof *up);
    }
    library l = { .e = e, .r = r };
    l.x = for_rival(p, r->bf16, e->x, R * D), l.dy = for_rival(p, r->bf16, e->dy, R * D);
    l.up = for_rival(p, r->bf16, up, 2 * E * W), l.down = for_rival(p, r->bf16, e->down, E * W);
    if (r->no_tb) l.up_t = floats(p, 2 * E * W), l.down_t = floats(p, E * W);
    l.h = floats(p, R * 2 * F), l.wide = floats(p, R * 2 * F), l.xg = floats(p, R * D),
    l.act = floats(p, R * F);
    l.dh = r->bf16 ? take(p, R * 2 * F, 2) : l.h;
    l.y = floats(p, R * D), l.dx = floats(p, R * D), l.dup = floats(p, 2 * E * W), l.ddown = floats(p, E * W);
    return l;
}

/* After one pass of both, with weight gradients starting from zero. */
static void compare_experts(const experts *e, const library *l) {
    double most = tolerance(e->b);
    int64_t E = e->s.experts, W = e->s.D * e->s.F;
    compare(l->r, "experts' y", e->y, l->y, e->s.R * e->s.D, most);
    compare(l->r, "experts' dx", e->dx, l->dx, e->s.R * e->s.D, most);
    compare(l->r, "experts' ddown", e->ddown, l->ddown, E * W, most);
    for (int64_t i = 0; i < E; i++) {
        compare(l->r, "experts' dgate", e->dgate + i * W, l->dup + 2 * i * W, W, most);
        compare(l->r, "experts' dup", e->dup + i * W, l->dup + (2 * i + 1) * W, W, most);
    }
}

static void experts_rows(const bench *b, int64_t E, int64_t D, int64_t F, int64_t n, bool backward) {
    pool p = pool_new(b->dev);
    experts e = experts_new(b, &p, E, D, F, n);
    library l[MOST_RIVALS];
    action *act[1 + MOST_RIVALS] = { backward ? ours_both : ours_forward };
    void *what[1 + MOST_RIVALS] = { &e };
    ours_both(&e);
    for (int i = 0; i < b->n; i++) {
        l[i] = library_new(&e, &b->list[i], &p);
        theirs_both(&l[i]);
        compare_experts(&e, &l[i]);
        act[i + 1] = backward ? theirs_both : theirs_forward, what[i + 1] = &l[i];
    }
    double rates[1 + MOST_RIVALS];
    char text[64];
    snprintf(text, sizeof text, "%lld rows an expert", (long long)n);
    in_turn(b, (backward ? 18.0 : 6.0) * (double)(E * n * D * F), act, what, rates);
    print_rates(b, text, rates);
    mu_memory_free(p.memory);
}

static void all_rows(const bench *b, int64_t E, int64_t D, int64_t F) {
    static const int64_t rows[] = { 1, 2, 4, 8, 16, 32, 64, 128, 256 };
    for (int backward = 0; backward < 2; backward++) {
        char title[96];
        snprintf(title, sizeof title, "experts: %lld of %lld x %lld, %s", (long long)E, (long long)D,
                 (long long)F, backward ? "forward and backward" : "forward");
        print_head(b, title);
        for (size_t i = 0; i < sizeof rows / sizeof *rows && rows[i] <= b->o->rows; i++)
            experts_rows(b, E, D, F, rows[i], backward);
        if (backward || b->o->bf16) continue;
        double rate = bench_read_rate(3 * E * D * F * (int64_t)sizeof(float));
        printf("  their weights, %.1f MB, are read at %.0f GB/s: n rows an expert can have %.0f n GFLOP/s\n",
               3e-6 * (double)(E * D * F) * sizeof(float), rate * 1e-9, rate * 0.5e-9);
    }
}

static void run(bench *b) {
    const options *o = b->o;
    b->n = rivals_open(o->bf16, b->list);
    printf("%d threads on %s: FMA loop %.0f GFLOP/s; in turn with", mu_threads(), b->dev->name,
           b->peak * 1e-9);
    for (int i = 0; i < b->n; i++) printf("%s %s %s", i ? "," : "", b->list[i].name, b->list[i].version);
    printf("%s\n", b->n ? "" : " no library: none was found");
    print_head(b, "products");
    whole_product(b, "y = x w'", false, true, 2048, 512, 256);
    whole_product(b, "dx = dy w", false, false, 2048, 256, 512);
    whole_product(b, "dw = dy' x", true, false, 512, 256, 2048);
    whole_product(b, "y = x w'", false, true, 2048, 1536, 512);
    whole_product(b, "dx = dy w", false, false, 2048, 512, 1536);
    whole_product(b, "dw = dy' x", true, false, 1536, 512, 2048);
    if (o->dim || o->ffn || o->experts) {
        all_rows(b, o->experts ? o->experts : 8, o->dim ? o->dim : 256, o->ffn ? o->ffn : 512);
    } else {
        all_rows(b, 8, 256, 512);
        all_rows(b, 32, 512, 256);
    }
}

int main(int argc, char **argv) {
    options o = { .rows = 256, .rounds = 5, .milliseconds = 10 };
    int code = parse(argc, argv, &o);
    if (code >= 0) return code;
    mu_threads_set(mu_cores_share(0, 1, (int)o.threads));
    bench b = { .o = &o, .dev = bench_device("muster_bench_products", o.bf16, false) };
    if (!b.dev) return BENCH_CANNOT;
    b.peak = bench_fma_peak();
    run(&b);
    mu_device_close(b.dev);
    return 0;
}
