/* dry_run.c - memory and FLOPs of a run, from one step on the shape device, which counts every allocation
 * but computes and touches nothing. */
#include "train/training.h"

#include <math.h>
#include <stdlib.h>

/* The parts of a run on the shape device. */
typedef struct {
    const mu_config *cfg;
    mu_mesh *mesh;
    mu_tokenizer *tokenizer;
    mu_device *dev;
    mu_model *model;
    mu_optimizer *opt;
    mu_anchor *anchor;
    mu_tape *tape;
    mu_loss *loss;
    mu_batch_shape shape;
} plan;

/* One micro-batch: the others need no additional memory. */
static void shape_step(plan *p) {
    int64_t n = mu_batch_micro_size(&p->shape, p->mesh->batch->size), S = p->shape.seq_len;
    mu_context cx = { .mode = MU_MODE_TRAIN, .n_sequences = n, .seq_len = S };
    p->loss = mu_loss_new(p->model, p->tape, p->mesh->batch, &p->shape);
    mu_tensor *tokens = mu_tensor_ints(p->tape, MU_DTYPE_I32, n * S, NULL), *targets = mu_tensor_ints(p->tape, MU_DTYPE_I32, n * S, NULL);
    mu_backward(p->tape, mu_loss_forward(p->loss, &cx, tokens, targets));
}

/* ------------------------------------------------------------------ texts */

/* Bytes of all domains in memory: ids and offsets of documents (of token files as far as the cache has room), and the order of
 * training sequences, which is computed when there are more than 2^20. Unreadable texts are named and not counted. */
static double text_memory(const plan *p) {
    double held = 0, cached = 0;
    for (int i = 0; i < p->cfg->data.train.n; i++) {
        const mu_option_domain *d = &p->cfg->data.train.list[i];
        mu_domain_size size;
        mu_error e;
        if (mu_domain_measure(&size, d, p->tokenizer, (uint64_t)p->cfg->run.seed, &e) != MU_STATUS_OK) {
            mu_print("note: %s; the memory estimate leaves out its texts\n", e.text);
            continue;
        }
        *(size.in_file ? &cached : &held) += (double)size.bytes;
        held += 4.0 * fmin((double)size.tokens / (double)p->cfg->train.seq_len, 1 << 20);
    }
    return held + fmin(cached, (double)p->cfg->data.cache_mib * (1 << 20));
}

/* ------------------------------------------------------------------ memory */

/* Optimizer state of the rank with the largest shard, minus this rank's. */
static double largest_shard(const mu_optimizer *o) {
    double bytes = 0;
    for (int i = 0; i < o->params->n_groups; i++) {
        const mu_comm *c = (const mu_comm *)o->params->groups[i]->reduce;
        int64_t most = 0, mine = c ? mu_shards_count(&o->shards, i, c->rank) : 0;
        for (int r = 0; c && r < c->size; r++) {
            int64_t count = mu_shards_count(&o->shards, i, r);
            if (count > most) most = count;
        }
        bytes += o->rule->n_slots * (double)(most - mine) * (double)mu_dtype_size(o->params->dev->master);
    }
    return bytes;
}

/* What a product packs of the head's weights at a time, at most. */
static const double HEAD_PACKED = 16 << 20;

static double largest_tensor(const plan *p) {
    int64_t most = 0;
    for (mu_unit *u = mu_unit_next(p->model->params, NULL); u; u = mu_unit_next(p->model->params, u))
        if (u->count > most) most = u->count;
    return (double)most * (double)mu_dtype_size(p->dev->master);
}

/* Libraries, heap and stacks, measured in this process before planning (150 MiB in a build with cuBLAS), plus
 * an expert's packed weights per thread, the head's, and the copy of a tensor that is being written to a checkpoint. */
static double runtime_overhead(const plan *p, int64_t at_start) {
    int wanted = mu_config_threads(&p->cfg->train), threads = wanted ? wanted : mu_cores() / p->mesh->local_size;
    double width = (double)(p->model->n_moe ? p->cfg->moe.moe_ffn_hidden_size : p->cfg->model.ffn_hidden_size);
    double size = (double)mu_dtype_size(p->dev->master), D = (double)p->cfg->model.hidden_size;
    return (double)at_start + fmax(threads, 1) * 3 * width * D * size + fmin(HEAD_PACKED, (double)p->model->vocab_size * D * size) + largest_tensor(p);
}

static double mib(double bytes) { return bytes / (1 << 20); }

static double knowledge_bytes(const plan *p) {
    mu_knowledge *k = mu_knowledge_new(p->model->n_moe, (int)p->cfg->moe.num_experts, (int)p->cfg->moe.top_k, &p->cfg->data.train);
    int64_t bytes = mu_knowledge_bytes(k);
    mu_knowledge_free(k);
    return (double)bytes;
}

static void print_memory(const plan *p, double parameters, double state, double texts, int64_t at_start) {
    const struct { const char *name; double bytes; } parts[] = {
        { "weights, gradients, optimizer", state + largest_shard(p->opt) },
        { "activations", (double)mu_device_bytes(p->dev) - state },
        { "expert load statistics", (double)mu_routing_stats_bytes(p->loss->stats) },
        { "measurements on the probe", knowledge_bytes(p) },
        { "texts", texts },
        { "shared with other ranks", (double)mu_mesh_shared_bytes(p->mesh) },
        { "runtime overhead", runtime_overhead(p, at_start) },
    };
    double total = 0;
    printf("\nmemory of the busiest rank, MiB (estimate)\n");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        printf("  %-27s  %9.1f\n", parts[i].name, mib(parts[i].bytes));
        total += parts[i].bytes;
    }
    printf("  %-27s  %9.1f\n", "total", mib(total));
    double tensors = (1 + p->opt->rule->n_slots + (p->anchor ? 2 : 0)) * parameters * (double)mu_dtype_size(p->dev->master);
    printf("checkpoint, all ranks          %9.1f MiB\n",
           mib(tensors + (double)mu_routing_stats_bytes(p->loss->stats) + knowledge_bytes(p)));
}

/* The shape device with the dtypes of this configuration. */
static mu_device *open_shape(const mu_train_config *cfg) {
    bool half = cfg->dtype == MU_TRAIN_DTYPE_BF16 && cfg->device == MU_TRAIN_DEVICE_CUDA;
    return mu_device_open(cfg->device == MU_TRAIN_DEVICE_REF ? "shape-f64" : half ? "shape-bf16" : "shape");
}

static void print_placement(const plan *p) {
    if (!p->model->place) return;
    printf("\nexperts of each MoE layer (%d of %lld layers), the same in each of %d replica%s\n",
           p->model->n_moe, (long long)p->cfg->model.num_layers, p->mesh->dp, p->mesh->dp == 1 ? "" : "s");
    for (int rank = 0; rank < p->mesh->ep; rank++) {
        printf("  rank %d:", rank);
        int n = 0;
        for (int i = 0; i < p->model->place->n_experts; i++)
            if (p->model->place->rank[i] == rank && n++ < 16) printf(" %d", i);
        printf(n > 16 ? " ... (%d)\n" : "\n", n);
    }
}

static void print_plan(const plan *p, double state, double texts, int64_t at_start) {
    const mu_config *cfg = p->cfg;
    int64_t n = p->shape.micro_batches;
    char *yaml = mu_options_dump(&cfg->options, cfg), *phases = mu_phases_text(&cfg->data, cfg->train.steps);
    char *protection = mu_protect_text(cfg, NULL);
    mu_model_size size = mu_model_measure(&cfg->model, &cfg->moe, p->model->vocab_size, cfg->train.seq_len);
    mu_print_text(yaml);
    printf("\nparameters: %lld total, %lld active per token\nFLOPs: %.4g per training token, %.4g per step\n",
           (long long)size.total, (long long)size.active, size.train_flops,
           size.train_flops * (double)(cfg->train.global_batch_size * cfg->train.seq_len));
    mu_print_text(phases);
    mu_print_text(protection);
    printf("ranks: %d = dp %d x ep %d, %lld micro-batch%s of %lld sequences\n", p->mesh->batch->size, p->mesh->dp, p->mesh->ep,
           (long long)n, n == 1 ? "" : "es", (long long)mu_batch_micro_size(&p->shape, p->mesh->batch->size));
    print_memory(p, (double)size.total, state, texts, at_start);
    print_placement(p);
    free(yaml);
    free(phases);
    free(protection);
}

/* The tensors of the source fit the model. */
static mu_status check_source(const mu_source *init, const mu_model *m, mu_error *e) {
    return init->path ? mu_source_check(init, m, e) : MU_STATUS_OK;
}

mu_status mu_dry_run(const mu_config *cfg, mu_mesh *mesh, const mu_source *init, mu_error *e) {
    int64_t at_start = mu_memory_rss();
    plan p = { .cfg = cfg, .mesh = mesh, .shape = mu_batch_shape_of(cfg, mesh->batch->size) };
    int64_t rows;
    mu_status status = mu_tokenizer_open(&p.tokenizer, cfg->data.tokenizer, e);
    if (status != MU_STATUS_OK) return status;
    status = mu_vocab_rows(cfg, p.tokenizer, false, &rows, e);
    if (status != MU_STATUS_OK) {
        mu_tokenizer_close(p.tokenizer);
        return status;
    }
    double texts = text_memory(&p);
    p.dev = open_shape(&cfg->train);
    p.model = mu_model_new(&cfg->model, &cfg->moe, rows, 1, p.dev, mesh);
    if (cfg->train.reproducible) mu_params_exact(p.model->params);
    p.opt = mu_optimizer_new(mu_rule_of(&cfg->optim), &cfg->optim, p.model->params);
    if (mu_config_anchors(cfg)) p.anchor = mu_anchor_new(p.opt, &cfg->data.train), mu_anchor_prepare(p.anchor);
    double state = (double)mu_device_bytes(p.dev);
    p.tape = mu_tape_new(p.dev);
    if (cfg->train.reproducible) mu_tape_set_reduction_unit(p.tape, cfg->train.seq_len);
    shape_step(&p);
    status = check_source(init, p.model, e);
    if (status == MU_STATUS_OK) print_plan(&p, state, texts, at_start);
    mu_loss_free(p.loss);
    mu_tape_free(p.tape);
    mu_anchor_free(p.anchor);
    mu_optimizer_free(p.opt);
    mu_model_free(p.model);
    mu_device_close(p.dev);
    mu_tokenizer_close(p.tokenizer);
    return status;
}
