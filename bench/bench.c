/* bench.c - how fast this machine trains the benchmark model, and the machine's peak rates.
 *
 * In one process: the peak of the cores (a loop of fused multiply-adds) and of the matrix product, then
 * training steps on random tokens, alternately of the MoE model and of a dense model with the same active
 * parameters, so that noise affects both equally. It takes the options of the PyTorch peers; see --help.
 * The step is the trainer's: forward, cross-entropy + balancing terms, backward, gradients summed over ranks,
 * clipping, AdamW. */
#include "bench.h"
#include "layers/layers.h"
#include "optim/optim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t vocab, dim, layers, heads, ffn, experts, topk, seq, batch, steps, threads, ep;
    bool dense, moe_only, skew, tied, bf16, reproducible, cuda, overlap;
} options;

static int parse(int argc, char **argv, options *o) {
    const bench_option table[] = {
        { "--vocab", &o->vocab, NULL, "vocabulary (257)" },
        { "--dim", &o->dim, NULL, "model width (256)" },
        { "--layers", &o->layers, NULL, "layers (4)" },
        { "--heads", &o->heads, NULL, "heads of width dim / heads (4)" },
        { "--ffn", &o->ffn, NULL, "expert width (512); the dense model's is topk times it" },
        { "--experts", &o->experts, NULL, "experts (8)" },
        { "--topk", &o->topk, NULL, "experts a token (2)" },
        { "--seq", &o->seq, NULL, "sequence length (256)" },
        { "--batch", &o->batch, NULL, "sequences a step over all ranks (8)" },
        { "--steps", &o->steps, NULL, "steps of each model, the first 3 not counted (15; at least 5)" },
        { "--threads", &o->threads, NULL, "threads a rank (cores / ranks)" },
        { "--ep", &o->ep, NULL, "ranks that share the experts (1)" },
        { "--dense", NULL, &o->dense, "the dense model alone" },
        { "--moe-only", NULL, &o->moe_only, "the MoE model alone" },
        { "--skew", NULL, &o->skew, "every token's first choice is expert 0" },
        { "--tied", NULL, &o->tied, "the head uses the embedding's weights" },
        { "--reproducible", NULL, &o->reproducible, "exact sums of gradients (train.reproducible)" },
        { "--overlap", NULL, &o->overlap, "steps in turn with sums of gradients that begin during and after backward" },
        { "--bf16", NULL, &o->bf16, "matrix products of bf16 numbers, fp32 master weights" },
        { "--cuda", NULL, &o->cuda, "an NVIDIA GPU, without the table of parts (muster_bench_device knows what it could do)" },
    };
    int code = bench_parse("muster_bench", table, sizeof table / sizeof *table, argc, argv);
    if (code >= 0 || !o->dense || !o->moe_only) return code;
    fprintf(stderr, "muster_bench: --dense and --moe-only leave no model\n");
    return 64;
}

/* ------------------------------------------------------------------ a model and its step */

typedef struct {
    mu_model *model;
    mu_optimizer *opt;
    mu_tape *tape;
    mu_loss *loss;
    mu_model_size size;
    double *seconds, *sums;   /* of each step; in it, from the end of backward until the gradients are summed */
    double reduce, optimizer; /* seconds in the measured steps */
    double value;             /* of the loss, in the last step */
    int64_t waits;            /* of the host for the device, in the last step */
} subject;

static subject subject_new(const options *o, bool dense, mu_device *dev, const mu_mesh *mesh) {
    mu_model_config c = mu_model_config_default();
    c.hidden_size = o->dim, c.num_layers = o->layers, c.max_seq_len = o->seq;
    c.num_heads = c.num_kv_heads = o->heads, c.head_dim = o->dim / o->heads, c.ffn_hidden_size = o->topk * o->ffn;
    c.tie_embeddings = o->tied;
    mu_moe_config m = mu_moe_config_default();
    m.num_experts = dense ? 0 : o->experts, m.top_k = o->topk, m.moe_ffn_hidden_size = o->ffn, m.force_skew = o->skew;
    mu_optim_config oc = mu_optim_config_default();
    subject s = { .model = mu_model_new(&c, &m, o->vocab, 1, dev, mesh), .tape = mu_tape_new(dev) };
    if (o->reproducible) {
        mu_params_exact(s.model->params);
        mu_tape_set_reduction_unit(s.tape, o->seq);
    }
    s.opt = mu_optimizer_new(&mu_rule_adamw, &oc, s.model->params);
    mu_batch_shape shape = { o->batch, o->seq, 1, 0, 0 };
    s.loss = mu_loss_new(s.model, s.tape, mesh->batch, &shape);
    s.size = mu_model_measure(&c, &m, o->vocab, o->seq);
    s.seconds = mu_alloc((size_t)o->steps, sizeof *s.seconds);
    s.sums = mu_alloc((size_t)o->steps, sizeof *s.sums);
    return s;
}

static void subject_free(subject *s) {
    mu_loss_free(s->loss);
    mu_optimizer_free(s->opt);
    mu_tape_free(s->tape);
    mu_model_free(s->model);
    free(s->seconds);
    free(s->sums);
}

/* T + 1 random tokens of this rank. Heap. */
static int32_t *random_tokens(const options *o, const mu_mesh *mesh, int64_t number, int64_t T) {
    int32_t *tokens = mu_alloc((size_t)T + 1, sizeof *tokens);
    mu_rng rng = { 7, (uint32_t)number, (uint32_t)mesh->batch->rank, MU_RNG_TEST, 0 };
    for (int64_t i = 0; i <= T; i++)
        tokens[i] = (int32_t)(mu_rng_u32(&rng, (uint64_t)i) % (uint32_t)o->vocab);
    return tokens;
}

static void step(subject *s, const options *o, mu_mesh *mesh, int64_t number, bool counted) {
    int64_t mine = o->batch / mesh->batch->size, T = mine * o->seq, n;
    int32_t *tokens = random_tokens(o, mesh, number, T);
    mu_device *dev = mu_tape_device(s->tape);
    int64_t waits = mu_device_waits(dev);
    if (o->overlap) mesh->batch->overlap = mesh->replica->overlap = number % 2;
    mu_barrier(mesh->world);
    double start = mu_time();
    mu_context cx = { .mode = MU_MODE_TRAIN, .step = number, .n_sequences = mine, .seq_len = o->seq };
    mu_params_zero_grad(s->model->params);
    mu_loss_begin(s->loss);
    mu_tensor *in = mu_tensor_ints(s->tape, MU_DTYPE_I32, T, tokens),
              *targets = mu_tensor_ints(s->tape, MU_DTYPE_I32, T, tokens + 1);
    mu_backward_last(s->opt, s->tape, mu_loss_forward(s->loss, &cx, in, targets));
    double reduce = mu_time();
    mu_grads_reduce(s->opt);
    double update = mu_time();
    mu_mat terms = mu_loss_terms(s->loss, &n);
    mu_grad_clip(s->opt, mesh->batch, 1.0, n, terms);
    mu_optimizer_step(s->opt, 1e-3, mu_loss_loads(s->loss));
    s->value = mu_loss_read(s->loss, (mu_mat){ 0 }, false).loss;
    mu_loss_end(s->loss, true);
    mu_tape_reset(s->tape);
    s->seconds[number] = mu_time() - start;
    s->sums[number] = update - reduce;
    s->waits = mu_device_waits(dev) - waits;
    if (counted) s->reduce += update - reduce, s->optimizer += mu_time() - update;
    free(tokens);
}

/* ------------------------------------------------------------------ results */

static void print_part(const char *name, double forward, double backward, double steps, double whole) {
    printf("    %-22s %8.2f %8.2f  %5.1f %%\n", name, 1e3 * forward / steps, 1e3 * backward / steps,
           100 * (forward + backward) / steps / whole);
}

/* The median of every second step's seconds, from step `first` on. */
static double every_second(const double *seconds, int64_t steps, int64_t first) {
    double *some = mu_alloc((size_t)steps, sizeof *some);
    int64_t n = 0;
    for (int64_t i = first; i < steps; i += 2) some[n++] = seconds[i];
    double middle = bench_median(some, n);
    free(some);
    return middle;
}

/* With --overlap, odd steps sum gradients during backward. */
static void print_overlap(const subject *s, const options *o, int64_t warm) {
    for (int during = 0; during < 2; during++) {
        int64_t first = warm + (warm % 2 != during);
        printf("    gradients summed %s backward: step %.1f ms, of which waiting for them %.1f ms\n", during ? "during" : "after",
               1e3 * every_second(s->seconds, o->steps, first), 1e3 * every_second(s->sums, o->steps, first));
    }
}

static double report(const subject *s, const options *o, const char *name, double peak, int ranks,
                     int64_t warm) {
    double n = (double)(o->steps - warm), middle = bench_median(s->seconds + warm, o->steps - warm), mean = 0;
    for (int64_t i = warm; i < o->steps; i++) mean += s->seconds[i] / n;
    double rate = (double)(o->batch * o->seq) / middle, flops = rate * s->size.train_flops;
    printf("\n%s: %.2f M parameters, %.2f M active, %.1f MFLOP a token, loss %.3f\n", name,
           (double)s->size.total * 1e-6, (double)s->size.active * 1e-6, s->size.train_flops * 1e-6, s->value);
    printf("  step %.1f ms  %.0f tok/s  %.1f GFLOP/s", 1e3 * middle, rate, flops * 1e-9);
    if (o->cuda) { /* a part's time would be that of launching its kernels */
        printf("  %.1f %% of the product", 100 * flops / (peak * ranks));
        printf("  the host waits %lld time%s a step\n", (long long)s->waits, s->waits == 1 ? "" : "s");
        return rate;
    }
    printf("  %.1f %% of the FMA peak\n    %-22s %8s %8s   of the step\n", 100 * flops / (peak * ranks),
           "part (rank 0), ms", "forward", "backward");
    const mu_part_time *times;
    int parts = mu_tape_profile(s->tape, &times);
    for (int i = 0; i < parts; i++) print_part(times[i].name, times[i].forward, times[i].backward, n, mean);
    print_part("gradients over ranks", s->reduce, 0, n, mean);
    print_part("norm and optimizer", s->optimizer, 0, n, mean);
    if (o->overlap) print_overlap(s, o, warm);
    return rate;
}

/* FLOP/s of a product [M, K] by [N, K]', in the type of activations. */
static double gemm_peak(mu_device *dev, int64_t M, int64_t N, int64_t K) {
    int64_t longest = (M > N ? M : N) * (N > K ? N : K);
    size_t each = (size_t)longest * sizeof(float);
    mu_memory *memory = mu_memory_new(dev, 3 * each);
    mu_memory_commit(memory, 3 * each);
    mu_mat a = { memory->region.base, dev->compute, K }, b = { memory->region.base + each, dev->compute, K };
    mu_mat c = { memory->region.base + 2 * each, dev->compute, N }, room = { c.data, MU_DTYPE_F32, K };
    bench_randomly(dev, M * K, 1, 0, a, room);
    bench_randomly(dev, N * K, 1, 1, b, room);
    double best = 0, end = mu_time() + 0.5;
    for (int64_t i = 0; i < 3 || mu_time() < end; i++) {
        mu_device_finish(dev);
        double start = mu_time();
        dev->k->gemm(dev, false, true, M, N, K, a, b, 0.0, c);
        mu_device_finish(dev);
        if (i) best = fmax(best, 2.0 * (double)(M * N * K) / (mu_time() - start)); /* the first one warms up */
    }
    mu_memory_free(memory);
    return best;
}

/* Prints the peak rates of the cores; returns the FMA peak. */
static double print_machine(const mu_mesh *mesh, mu_device *dev) {
    mu_barrier(mesh->world);
    double peak = bench_fma_peak(), product = gemm_peak(dev, 2048, 1024, 256);
    if (mesh->world->rank == 0)
        printf(
            "%d rank%s x %d threads on %s: FMA loop %.0f GFLOP/s, matrix product 2048 x 1024 x 256 %.0f GFLOP/s, reading memory %.0f GB/s (rank 0, all ranks busy)\n",
            mesh->world->size, mesh->world->size == 1 ? "" : "s", mu_threads(), dev->name, peak * 1e-9,
            product * 1e-9, bench_read_rate(BENCH_MEMORY) * 1e-9);
    return peak;
}

/* Prints the peak rates of the GPU; returns FLOP/s of its matrix product. */
static double print_gpu(const options *o, mu_device *dev) {
    int64_t n = o->dim < 64 ? 64 : 8192;               /* a tiny model is a test, perhaps on an emulated GPU */
    double product = gemm_peak(dev, n, n, n);
    printf("%s: product of %lld x %lld matrices %.2f TFLOP/s\n", dev->name, (long long)n, (long long)n, product * 1e-12);
    return product;
}

static void run(const options *o, mu_mesh *mesh, mu_device *dev) {
    enum { WARM = 3 };
    bool root = mesh->world->rank == 0;
    double peak = o->cuda ? print_gpu(o, dev) : print_machine(mesh, dev);
    subject moe = { 0 }, dense = { 0 };
    if (!o->dense) moe = subject_new(o, false, dev, mesh);
    if (!o->moe_only) dense = subject_new(o, true, dev, mesh);
    for (int64_t i = 0; i < o->steps; i++) {
        if (i == WARM && moe.tape) mu_tape_profile_reset(moe.tape);
        if (i == WARM && dense.tape) mu_tape_profile_reset(dense.tape);
        if (moe.tape) step(&moe, o, mesh, i, i >= WARM);
        if (dense.tape) step(&dense, o, mesh, i, i >= WARM);
    }
    if (root) {
        double moe_rate = moe.tape ? report(&moe, o, "MoE", peak, mesh->world->size, WARM) : 0;
        double dense_rate = dense.tape ? report(&dense, o, "dense", peak, mesh->world->size, WARM) : 0;
        if (moe_rate > 0 && dense_rate > 0)
            printf("\nMoE tax: %.3f (tokens/s of the MoE / of the dense model)\n", moe_rate / dense_rate);
        printf("communication on rank 0: %.1f ms a step; peak memory %.0f MiB a rank\n",
               1e3 * mu_mesh_seconds(mesh) / (double)o->steps, (double)mu_memory_peak() / (1 << 20));
    }
    if (moe.tape) subject_free(&moe);
    if (dense.tape) subject_free(&dense);
}

int main(int argc, char **argv) {
    options o = { .vocab = 257, .dim = 256, .layers = 4, .heads = 4, .ffn = 512, .experts = 8, .topk = 2, .seq = 256,
                  .batch = 8, .steps = 15, .ep = 1 };
    int code = parse(argc, argv, &o);
    if (code >= 0) return code;
    if (o.steps < 5) o.steps = 5;
    mu_dist_start(&argc, &argv);
    mu_mesh *mesh = mu_mesh_open(NULL, (int)o.ep);
    mu_threads_set(mu_cores_share(mesh->local_rank, mesh->local_size, (int)o.threads));
    mu_device *dev = bench_device("muster_bench", o.bf16, o.cuda);
    if (dev) run(&o, mesh, dev);
    mu_device_close(dev);
    mu_mesh_close(mesh);
    mu_dist_stop();
    return dev ? 0 : BENCH_CANNOT;
}
