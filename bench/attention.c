/* attention.c - muster's causal attention alone, forward and with backward. bench/peers/attention.py measures
 * PyTorch's fused attention and prints the same lines; bench/compare.py runs both alternately.
 *
 * B sequences of S tokens, H heads of width d. FLOPs count the products below the diagonal: 2 B H S^2 d
 * forward (two products), 5 B H S^2 d backward (five: the scores again, and dv, dp, dq, dk). */
#include "bench.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
    int64_t seq, tokens, heads, width, rounds, threads;
    bool bf16;
} options;

static int parse(int argc, char **argv, options *o) {
    const bench_option table[] = {
        { "--seq", &o->seq, NULL, "sequence length (256, 512, 1024, 2048)" },
        { "--tokens", &o->tokens, NULL, "tokens in all, at least one sequence (2048)" },
        { "--heads", &o->heads, NULL, "heads (8)" },
        { "--width", &o->width, NULL, "width of a head (64)" },
        { "--rounds", &o->rounds, NULL, "calls whose median counts (15)" },
        { "--threads", &o->threads, NULL, "threads (cores)" },
        { "--bf16", NULL, &o->bf16, "the device of bf16 products" },
    };
    return bench_parse("muster_bench_attention", table, sizeof table / sizeof *table, argc, argv);
}

enum { Q, K, V, Y, DY, DQ, DK, DV, N_MATRICES };

typedef struct {
    mu_memory *memory;
    mu_mat m[N_MATRICES], lse;
} operands;

static operands operands_new(mu_device *dev, const mu_attention_shape *s) {
    int64_t T = s->B * s->S, W = s->H * s->d;
    size_t each = ((size_t)(T * W) * sizeof(float) + 4095) & ~(size_t)4095,
           all = N_MATRICES * each + (size_t)(T * s->H) * sizeof(float);
    operands o = { .memory = mu_memory_new(dev, all) };
    mu_memory_commit(o.memory, all);
    for (int i = 0; i < N_MATRICES; i++)
        o.m[i] = (mu_mat){ o.memory->region.base + (size_t)i * each, MU_DTYPE_F32, W };
    o.lse = (mu_mat){ o.memory->region.base + N_MATRICES * each, MU_DTYPE_F32, T };
    mu_rng rng = { 5, 0, 0, MU_RNG_TEST, 0 };
    for (int i = 0; i < N_MATRICES; i++)
        for (int64_t j = 0; (i <= V || i == DY) && j < T * W; j++)
            ((float *)o.m[i].data)[j] = (float)(2 * mu_rng_uniform(&rng, (uint64_t)(i * T * W + j)) - 1);
    return o;
}

static void measure(mu_device *dev, const options *o, int64_t S, double peak) {
    int64_t B = o->tokens > S ? o->tokens / S : 1, H = o->heads, d = o->width;
    mu_attention_shape s = { B, S, H, H, d, 1 / sqrt((double)d), 0 };
    operands m = operands_new(dev, &s);
    double *forward = mu_alloc((size_t)o->rounds, sizeof *forward),
           *both = mu_alloc((size_t)o->rounds, sizeof *both);
    for (int64_t i = -2; i < o->rounds; i++) { /* two to warm up */
        double start = mu_time();
        dev->k->attention_fwd(dev, &s, m.m[Q], m.m[K], m.m[V], m.m[Y], m.lse);
        double middle = mu_time();
        dev->k->attention_bwd(dev, &s, m.m[Q], m.m[K], m.m[V], m.m[Y], m.lse, m.m[DY], m.m[DQ], m.m[DK],
                              m.m[DV]);
        if (i >= 0) forward[i] = middle - start, both[i] = mu_time() - start;
    }
    double f = bench_median(forward, o->rounds), b = bench_median(both, o->rounds),
           unit = (double)(B * H * S * S * d);
    printf(
        "S %lld B %lld H %lld d %lld: forward %.3f ms %.1f GFLOP/s, forward and backward %.3f ms %.1f GFLOP/s (%.1f %% of the FMA peak)\n",
        (long long)S, (long long)B, (long long)H, (long long)d, 1e3 * f, 2e-9 * unit / f, 1e3 * b,
        7e-9 * unit / b, 700 * unit / b / peak);
    free(forward);
    free(both);
    mu_memory_free(m.memory);
}

int main(int argc, char **argv) {
    options o = { .tokens = 2048, .heads = 8, .width = 64, .rounds = 15 };
    int code = parse(argc, argv, &o);
    if (code >= 0) return code;
    mu_threads_set(mu_cores_share(0, 1, (int)o.threads));
    mu_device *dev = bench_device("muster_bench_attention", o.bf16, false);
    if (!dev) return BENCH_CANNOT;
    double peak = bench_fma_peak();
    printf("%d threads on %s: FMA loop %.0f GFLOP/s\n", mu_threads(), dev->name, peak * 1e-9);
    for (int64_t S = o.seq ? o.seq : 256; S <= (o.seq ? o.seq : 2048); S *= 2) measure(dev, &o, S, peak);
    mu_device_close(dev);
    return 0;
}
