/* batches.c - this rank's part of each global batch.
 *
 * The global batch of a step is the same for any number of ranks. It is cut into micro-batches of consecutive
 * samples, and each of those into one slice per rank, so that a micro-batch holds the same samples for any
 * number of ranks. */
#include "train/training.h"

#include <stdlib.h>
#include <string.h>

mu_batch_shape mu_batch_shape_of(const mu_config *cfg, int ranks) {
    int64_t share = cfg->train.global_batch_size / ranks;
    int64_t size = cfg->train.micro_batch_size ? cfg->train.micro_batch_size : share;
    return (mu_batch_shape){ cfg->train.global_batch_size, cfg->train.seq_len, share / size, cfg->data.train.n, cfg->stats.window };
}

int64_t mu_batch_micro_size(const mu_batch_shape *s, int ranks) { return s->sequences / (s->micro_batches * ranks); }

void mu_batches_init(mu_batches *b, const mu_config *cfg, mu_loader *loader, const mu_comm *batch, mu_tape *tape) {
    mu_batch_shape shape = mu_batch_shape_of(cfg, batch->size);
    int64_t size = mu_batch_micro_size(&shape, batch->size);
    *b = (mu_batches){ .sources = &cfg->data.train, .loader = loader, .batch = batch, .tape = tape, .shape = shape,
                       .micro_size = size, .seed = (uint64_t)cfg->run.seed };
    b->domain_sequences = mu_alloc((size_t)cfg->data.train.n, sizeof *b->domain_sequences);
    b->samples = mu_alloc((size_t)shape.sequences, sizeof *b->samples);
    b->tokens = mu_alloc((size_t)(size * shape.seq_len), sizeof *b->tokens);
    b->targets = mu_alloc((size_t)(size * shape.seq_len), sizeof *b->targets);
    b->before = mu_alloc((size_t)mu_loader_state_size(loader), sizeof *b->before);
}

void mu_batches_free(mu_batches *b) {
    free(b->domain_sequences);
    free(b->samples);
    free(b->tokens);
    free(b->targets);
    free(b->before);
    *b = (mu_batches){ 0 };
}

void mu_batches_next(mu_batches *b, int64_t step) {
    b->step = step;
    mu_loader_state_get(b->loader, b->before);
    mu_loader_next(b->loader, b->shape.sequences, b->samples);
    memset(b->domain_sequences, 0, (size_t)b->sources->n * sizeof *b->domain_sequences);
    for (int64_t i = 0; i < b->shape.sequences; i++) b->domain_sequences[b->samples[i].domain]++;
}

bool mu_batches_absent(const mu_batches *b, int64_t *replayed) {
    bool any = false;
    *replayed = 0;
    for (int d = 0; d < b->sources->n; d++)
        if (mu_loader_is_absent(b->loader, b->step + 1, d)) any = true, *replayed += b->domain_sequences[d];
    return any;
}

void mu_batches_put_back(mu_batches *b) {
    MU_CHECK(mu_loader_state_set(b->loader, b->sources, b->before, NULL) == MU_STATUS_OK, "the loader rejects its own state");
}

mu_micro_batch mu_batches_read(mu_batches *b, int64_t m) {
    int64_t S = b->shape.seq_len, n = b->micro_size, first = (m * b->batch->size + b->batch->rank) * n;
    int64_t *samples = mu_tape_alloc(b->tape, sizeof *samples * (size_t)n);
    int32_t *domains = mu_tape_alloc(b->tape, sizeof *domains * (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        const mu_sample *s = &b->samples[first + i];
        mu_loader_read(b->loader, s, b->tokens + i * S, b->targets + i * S);
        samples[i] = s->global_sample, domains[i] = s->domain;
    }
    int64_t width = b->experts ? n * S * b->model->n_moe * b->model->moe_cfg.top_k : 0;
    mu_expert_mask mask = { NULL, 1 };
    if (b->experts) mask = mu_routing_ids_mask(b->model, b->tape, n * S, b->experts + m * width);
    return (mu_micro_batch){ .cx = { .mode = MU_MODE_TRAIN, .step = b->step, .micro_batch = m, .n_sequences = n, .seq_len = S,
                                     .global_samples = samples, .domains = domains, .domain_sequences = b->domain_sequences, .expert_mask = mask, .seed = b->seed },
                             .tokens = mu_tensor_ints(b->tape, MU_DTYPE_I32, n * S, b->tokens),
                             .targets = mu_tensor_ints(b->tape, MU_DTYPE_I32, n * S, b->targets) };
}
