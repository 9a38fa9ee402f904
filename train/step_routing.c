/* step_routing.c - records of the routing of training steps, and their replay: /steps/N of a routing record (routing_record.c) has
 * the experts of the global batch of step N. */
#include "train/training.h"

#include <stdlib.h>

static int64_t micro_width(const mu_training *t) {
    const mu_model *m = t->state.model;
    return t->batches.micro_size * t->batches.shape.seq_len * m->n_moe * m->moe_cfg.top_k;
}

static char *array_of(int64_t step) { return mu_format("/steps/%08lld", (long long)step); }

/* This rank's sequences of micro-batch m. */
static mu_routing_block block_of(const mu_training *t, const char *array, int64_t m) {
    const mu_batches *b = &t->batches;
    int64_t n = b->micro_size * b->batch->size;
    return (mu_routing_block){ .name = array, .total = b->shape.sequences, .first = m * n, .n = n, .offset = b->batch->rank * b->micro_size,
                               .stride = 1, .own = b->micro_size };
}

/* ------------------------------------------------------------------ opening and closing */

/* What must be the same to replay the steps: all that decides which sequences a step has. Heap. */
static char *about(const mu_training *t) {
    const mu_config *cfg = &t->cfg;
    char *text = mu_strdup("weights:");
    for (int i = 0; i < cfg->data.train.n; i++) {
        char *longer = mu_format("%s %s %g", text, cfg->data.train.list[i].domain, cfg->data.train.list[i].weight);
        free(text);
        text = longer;
    }
    char *options = mu_config_lines(cfg, "run.seed train.global_batch_size data.val_fraction data.phases");
    char *more = mu_format("%s\n%s", text, options), *whole = mu_routing_record_about(cfg, t->state.model, &t->texts.corpus, "training", more);
    free(text);
    free(options);
    free(more);
    return whole;
}

/* Rank 0: which of the run's steps the record has, when it lacks one. */
static mu_status lacks_step(const mu_training *t, const char *path, mu_error *e) {
    long long first = 0, last = 0, begin = t->state.step + 1, end = t->cfg.train.steps;
    for (int64_t step = 1; step <= end; step++) {
        char *array = array_of(step);
        if (mu_routing_record_has(t->routing.replay, array)) last = step, first = first ? first : step;
        free(array);
    }
    if (!first) return mu_error_set(e, MU_STATUS_DATA, "--replay-routing %s does not fit: it has none of the steps 1 to %lld", path, end);
    return mu_error_set(e, MU_STATUS_DATA, "--replay-routing %s does not fit: it has the steps %lld to %lld, this run needs %lld to %lld", path, first,
                        last, begin, end);
}

/* Rank 0: the record has every step that will be trained. */
static mu_status expect_steps(const mu_training *t, const char *path, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int64_t step = t->state.step + 1; step <= t->cfg.train.steps && status == MU_STATUS_OK; step++) {
        char *array = array_of(step);
        bool has = mu_routing_record_has(t->routing.replay, array);
        status = has ? mu_routing_record_expect(t->routing.replay, array, t->batches.shape.sequences, e) : lacks_step(t, path, e);
        free(array);
    }
    return status;
}

/* Rank 0: the steps before this job, from the record that it continues. */
static mu_status copy_steps(const mu_training *t, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int64_t step = 1; step <= t->state.step && status == MU_STATUS_OK; step++) {
        char *array = array_of(step);
        status = mu_routing_record_copy(t->routing.record, array, t->batches.shape.sequences, e);
        free(array);
    }
    return status;
}

mu_status mu_step_routing_open(mu_training *t, const char *record, const char *replay, mu_error *e) {
    mu_step_routing *s = &t->routing;
    mu_comm *batch = t->state.mesh->batch;
    size_t n = (size_t)(t->batches.shape.micro_batches * micro_width(t));
    char *text = about(t);
    mu_status status = MU_STATUS_OK;
    if (replay) status = mu_routing_record_open(&s->replay, replay, MU_ROUTING_REPLAY, t->state.model, t->cfg.train.seq_len, batch, text, e);
    if (replay && status == MU_STATUS_OK) {
        s->replayed = mu_alloc(n, sizeof *s->replayed);
        t->batches.model = t->state.model, t->batches.experts = s->replayed;
        status = mu_agree(batch, batch->rank == 0 ? expect_steps(t, replay, e) : MU_STATUS_OK, e);
    }
    mu_routing_record_mode mode = t->state.step ? MU_ROUTING_CONTINUE : MU_ROUTING_RECORD;
    if (record && status == MU_STATUS_OK)
        status = mu_routing_record_open(&s->record, record, mode, t->state.model, t->cfg.train.seq_len, batch, text, e);
    if (record && status == MU_STATUS_OK) {
        s->recorded = mu_alloc(n, sizeof *s->recorded);
        status = mu_agree(batch, batch->rank == 0 ? copy_steps(t, e) : MU_STATUS_OK, e);
    }
    free(text);
    return status;
}

mu_status mu_step_routing_close(mu_training *t, mu_status so_far, mu_error *e) {
    mu_step_routing *s = &t->routing;
    mu_status status = mu_routing_record_close(s->replay, so_far, e);
    status = mu_routing_record_close(s->record, status, e);
    free(s->recorded);
    free(s->replayed);
    *s = (mu_step_routing){ 0 };
    t->batches.experts = NULL;
    return status;
}

/* ------------------------------------------------------------------ steps */

mu_status mu_step_routing_begin(mu_training *t, mu_error *e) {
    mu_step_routing *s = &t->routing;
    if (!s->replay) return MU_STATUS_OK;
    char *array = array_of(t->state.step + 1);
    for (int64_t m = 0; m < t->batches.shape.micro_batches; m++) {
        mu_routing_block block = block_of(t, array, m);
        mu_routing_record_read(s->replay, &block, s->replayed + m * micro_width(t));
    }
    free(array);
    return mu_routing_record_status(s->replay, e);
}

void mu_step_routing_add(mu_training *t, int64_t m) {
    const mu_batches *b = &t->batches;
    if (t->routing.record)
        mu_routing_ids(t->state.model, t->loss->routings, b->micro_size * b->shape.seq_len, t->routing.recorded + m * micro_width(t));
}

mu_status mu_step_routing_end(mu_training *t, mu_error *e) {
    mu_step_routing *s = &t->routing;
    if (!s->record) return MU_STATUS_OK;
    char *array = array_of(t->state.step);
    for (int64_t m = 0; m < t->batches.shape.micro_batches; m++) {
        mu_routing_block block = block_of(t, array, m);
        mu_routing_record_write(s->record, &block, s->recorded + m * micro_width(t));
    }
    free(array);
    return mu_routing_record_status(s->record, e);
}
