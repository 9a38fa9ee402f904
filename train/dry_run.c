/* dry_run.c - what a run would need, found by running one step on the shape device: every allocation is made
 * and counted, nothing is computed or touched. */
#include "train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One micro-batch: the others need no more. */
static void shape_step(mu_trainer *t) {
    mu_batch_shape shape = { t->cfg.train.global_batch_size, t->cfg.train.seq_len, t->n_micro, t->cfg.data.train.n, t->cfg.stats.window };
    int64_t T = t->micro_size * t->cfg.train.seq_len;
    mu_context cx = mu_trainer_context(t, MU_MODE_TRAIN, t->micro_size);
    t->loss = mu_loss_new(t->model, t->tape, t->mesh->batch, &shape);
    mu_tensor *tokens = mu_tensor_ints(t->tape, MU_DTYPE_I32, T, NULL),
              *targets = mu_tensor_ints(t->tape, MU_DTYPE_I32, T, NULL);
    mu_backward(t->tape, mu_loss_forward(t->loss, &cx, tokens, targets));
}

/* ------------------------------------------------------------------ texts */

/* Bytes of all domains in memory: ids and offsets of documents (of token files as far as the cache has room), and the place of
 * a training sequence in the order of an epoch. What cannot be read is named, and counts nothing. */
static double text_memory(const mu_trainer *t) {
    double held = 0, cached = 0;
    for (int i = 0; i < t->cfg.data.train.n; i++) {
        const mu_option_domain *d = &t->cfg.data.train.list[i];
        mu_domain_size size;
        mu_error e;
        if (mu_domain_measure(&size, d, t->tokenizer, (uint64_t)t->cfg.run.seed, &e) != MU_STATUS_OK) {
            mu_print("note: %s: its text is not counted\n", e.text);
            continue;
        }
        *(size.in_file ? &cached : &held) += (double)size.bytes;
        held += 4.0 * (double)size.tokens / (double)t->cfg.train.seq_len;
    }
    return held + fmin(cached, (double)t->cfg.data.cache_mib * (1 << 20));
}

/* ------------------------------------------------------------------ memory */

/* Optimizer state of the rank that owns the most of it, beyond this one's. */
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

/* Libraries, heap and stacks, as this very process had them before it planned anything (a build with cuBLAS has 150 MiB
 * of them); and of each thread room for an expert's packed weights. */
static double program_memory(const mu_trainer *t, int64_t at_start) {
    int wanted = mu_config_threads(&t->cfg.train), threads = wanted ? wanted : mu_cores() / t->mesh->local_size;
    double width = (double)(t->model->n_moe ? t->cfg.moe.moe_ffn_hidden_size : t->cfg.model.ffn_hidden_size);
    return (double)at_start + fmax(threads, 1) * 3 * width * (double)t->cfg.model.hidden_size * (double)mu_dtype_size(t->dev->master);
}

static double mib(double bytes) { return bytes / (1 << 20); }

static void print_memory(const mu_trainer *t, double parameters, double state, double texts, int64_t program) {
    const struct { const char *name; double bytes; } parts[] = {
        { "weights, gradients, moments", state + largest_shard(t->opt) },
        { "activations", (double)mu_device_bytes(t->dev) - state },
        { "expert load statistics", (double)mu_load_window_bytes(&t->loss->stats->window) },
        { "texts", texts },
        { "shared with other ranks", (double)mu_mesh_shared_bytes(t->mesh) },
        { "program", program_memory(t, program) },
    };
    double total = 0;
    printf("\nmemory of the busiest rank, MiB (estimate)\n");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        printf("  %-27s  %9.1f\n", parts[i].name, mib(parts[i].bytes));
        total += parts[i].bytes;
    }
    printf("  %-27s  %9.1f\n", "total", mib(total));
    printf("checkpoint, all ranks          %9.1f MiB\n", mib((1 + t->opt->rule->n_slots) * parameters * (double)mu_dtype_size(t->dev->master) + (double)mu_load_window_bytes(&t->loss->stats->window)));
}

/* The device whose types a run of this configuration has. */
static mu_device *open_shape(const mu_train_config *cfg) {
    bool half = cfg->dtype == MU_TRAIN_DTYPE_BF16 && cfg->device == MU_TRAIN_DEVICE_CUDA;
    return mu_device_open(cfg->device == MU_TRAIN_DEVICE_REF ? "shape-f64" : half ? "shape-bf16" : "shape");
}

static void print_placement(const mu_trainer *t) {
    if (!t->model->place) return;
    printf("\nexperts of each MoE layer (%d of %lld layers), the same in each of %d replica%s\n",
           t->model->n_moe, (long long)t->cfg.model.num_layers, t->mesh->dp, t->mesh->dp == 1 ? "" : "s");
    for (int rank = 0; rank < t->mesh->ep; rank++) {
        printf("  rank %d:", rank);
        int n = 0;
        for (int i = 0; i < t->model->place->n_experts; i++)
            if (t->model->place->rank[i] == rank && n++ < 16) printf(" %d", i);
        printf(n > 16 ? " ... (%d)\n" : "\n", n);
    }
}

mu_status mu_dry_run(mu_trainer *t, mu_error *e) {
    int64_t program = mu_memory_rss();
    mu_status status = mu_tokenizer_open(&t->tokenizer, t->cfg.data.tokenizer, e);
    if (status != MU_STATUS_OK) return status;
    double texts = text_memory(t);
    t->dev = open_shape(&t->cfg.train);
    t->model = mu_model_new(&t->cfg.model, &t->cfg.moe, mu_tokenizer_vocab_size(t->tokenizer), 1, t->dev,
                            t->mesh);
    if (t->cfg.train.reproducible) mu_params_exact(t->model->params);
    t->opt = mu_optimizer_new(&mu_rule_adamw, &t->cfg.optim, t->model->params);
    double state = (double)mu_device_bytes(t->dev);
    t->tape = mu_tape_new(t->dev);
    if (t->cfg.train.reproducible) mu_tape_set_reduction_unit(t->tape, t->cfg.train.seq_len);
    int ranks = t->mesh->batch->size;
    int64_t share = t->cfg.train.global_batch_size / t->mesh->batch->size;
    t->micro_size = t->cfg.train.micro_batch_size ? t->cfg.train.micro_batch_size : share;
    t->n_micro = share / t->micro_size;
    shape_step(t);
    char *yaml = mu_options_dump(&t->cfg.options, &t->cfg);
    mu_model_size size = mu_model_measure(&t->cfg.model, &t->cfg.moe, t->model->vocab_size,
                                          t->cfg.train.seq_len);
    mu_print_text(yaml);
    printf("\nparameters: %lld total, %lld active a token\nFLOPs: %.4g a training token, %.4g a step\n",
           (long long)size.total, (long long)size.active, size.train_flops,
           size.train_flops * (double)(t->cfg.train.global_batch_size * t->cfg.train.seq_len));
    printf("ranks: %d = dp %d x ep %d, %lld micro-batch%s of %lld sequences\n", ranks, t->mesh->dp,
           t->mesh->ep, (long long)t->n_micro, t->n_micro == 1 ? "" : "es",
           (long long)t->micro_size);
    print_memory(t, (double)size.total, state, texts, program);
    print_placement(t);
    free(yaml);
    return MU_STATUS_OK;
}
