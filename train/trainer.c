/* trainer.c - a run's parts, and one step of training.
 *
 * The global batch of a step is the same whatever the number of ranks. It is cut into n_micro micro-batches
 * of consecutive samples, and each of those into one stretch a rank, so that a micro-batch holds the same
 * samples for any number of ranks. Every loss term is divided by the tokens of the global batch before
 * backward: gradients of micro-batches and ranks are then just added. */
#include "train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* All ranks have read the same texts. Collective, agreed. */
static mu_status agree_on_texts(const mu_trainer *t, mu_error *e) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    for (int i = 0; i < t->corpus.n_domains; i++) {
        const mu_domain *d = &t->corpus.domains[i];
        fprintf(out, "domain %s: %lld tokens in %lld documents, fingerprint %s\n", d->name, (long long)d->n_tokens,
                (long long)d->n_documents, d->fingerprint);
    }
    fprintf(out, "tokenizer %s: fingerprint %s\n", mu_tokenizer_name(t->tokenizer), mu_tokenizer_fingerprint(t->tokenizer));
    fclose(out);
    mu_status status = mu_agree_text(t->mesh->world, MU_STATUS_DATA, "its texts differ from those of rank 0; put the"
                                     " same texts on every host, or on a file system that all hosts share:", text, e);
    free(text);
    return status;
}

static mu_status open_data(mu_trainer *t, mu_error *e) {
    const mu_data_config *d = &t->cfg.data;
    mu_status status = mu_corpus_open(&t->corpus, &d->train, t->tokenizer, (uint64_t)t->cfg.run.seed, d->cache_mib << 20, e);
    if (status == MU_STATUS_OK)
        status = mu_loader_open(&t->loader, &t->corpus, t->cfg.train.seq_len, d->val_fraction,
                                t->val_split, (uint64_t)t->cfg.run.seed, e);
    if (status == MU_STATUS_OK)
        t->loader_before = mu_alloc((size_t)mu_loader_state_size(t->loader), sizeof *t->loader_before);
    status = mu_agree_each(t->mesh->world, status, e);
    return status == MU_STATUS_OK ? agree_on_texts(t, e) : status;
}

/* What a step computes, and where its micro-batches begin. */
static void plan_batch(mu_trainer *t) {
    int64_t share = t->cfg.train.global_batch_size / t->mesh->batch->size;
    t->micro_size = t->cfg.train.micro_batch_size ? t->cfg.train.micro_batch_size : share;
    t->n_micro = share / t->micro_size;
    int64_t tokens = t->micro_size * t->cfg.train.seq_len;
    t->samples = mu_alloc((size_t)t->cfg.train.global_batch_size, sizeof *t->samples);
    t->tokens = mu_alloc((size_t)tokens, sizeof *t->tokens);
    t->targets = mu_alloc((size_t)tokens, sizeof *t->targets);
    if (t->cfg.train.reproducible) mu_tape_set_reduction_unit(t->tape, t->cfg.train.seq_len);
    mu_batch_shape shape = { t->cfg.train.global_batch_size, t->cfg.train.seq_len, t->n_micro, t->cfg.data.train.n, t->cfg.stats.window };
    t->loss = mu_loss_new(t->model, t->tape, t->mesh->batch, &shape);
}

mu_status mu_trainer_open(mu_trainer *t, mu_mesh *mesh, bool with_data, mu_error *e) {
    t->mesh = mesh;
    mu_threads_set(mu_cores_share(mesh->local_rank, mesh->local_size, mu_config_threads(&t->cfg.train)));
    mu_status status = mu_agree(mesh->world, mu_tokenizer_open(&t->tokenizer, t->cfg.data.tokenizer, e), e);
    if (status == MU_STATUS_OK && with_data) status = open_data(t, e);
    if (status != MU_STATUS_OK) return status;
    mu_status opened = mu_train_device_open(&t->cfg.train, mesh, &t->dev, e);
    if (opened != MU_STATUS_OK) return opened;
    t->model = mu_model_new(&t->cfg.model, &t->cfg.moe, mu_tokenizer_vocab_size(t->tokenizer),
                            (uint64_t)t->cfg.run.seed, t->dev, mesh);
    t->tape = mu_tape_new(t->dev);
    plan_batch(t);
    if (!with_data) return MU_STATUS_OK;
    if (t->cfg.train.reproducible) mu_params_exact(t->model->params);
    t->opt = mu_optimizer_new(&mu_rule_adamw, &t->cfg.optim, t->model->params);
    return MU_STATUS_OK;
}

void mu_trainer_close(mu_trainer *t) {
    mu_optimizer_free(t->opt);
    mu_loss_free(t->loss);
    if (t->tape) mu_tape_free(t->tape);
    mu_model_free(t->model);
    if (t->loader) mu_loader_close(t->loader);
    mu_corpus_close(&t->corpus);
    if (t->tokenizer) mu_tokenizer_close(t->tokenizer);
    if (t->dev) mu_device_close(t->dev);
    free(t->loader_before);
    free(t->samples);
    free(t->tokens);
    free(t->targets);
    mu_config_free(&t->cfg);
    memset(t, 0, sizeof *t);
}

/* ------------------------------------------------------------------ one step */

/* First sample, within the global batch, of this rank's share of micro-batch m. */
static int64_t first_sample(const mu_trainer *t, int64_t m) {
    const mu_comm *batch = t->mesh->batch;
    return (m * batch->size + batch->rank) * t->micro_size;
}

mu_context mu_trainer_context(const mu_trainer *t, mu_mode mode, int64_t n_sequences) {
    return (mu_context){ .mode = mode,
                         .step = t->step,
                         .n_sequences = n_sequences,
                         .seq_len = t->cfg.train.seq_len,
                         .seed = (uint64_t)t->cfg.run.seed };
}

typedef struct {
    mu_context cx;
    mu_tensor *tokens, *targets;
} micro_batch;

/* Reads micro-batch m of this rank onto the tape. */
static micro_batch read_micro(mu_trainer *t, int64_t m) {
    int64_t first = first_sample(t, m), S = t->cfg.train.seq_len;
    micro_batch b = { .cx = mu_trainer_context(t, MU_MODE_TRAIN, t->micro_size) };
    b.cx.micro_batch = m;
    int64_t *samples = mu_tape_alloc(t->tape, sizeof *samples * (size_t)t->micro_size);
    int32_t *domains = mu_tape_alloc(t->tape, sizeof *domains * (size_t)t->micro_size);
    for (int64_t i = 0; i < t->micro_size; i++) {
        const mu_sample *s = &t->samples[first + i];
        mu_loader_read(t->loader, s, t->tokens + i * S, t->targets + i * S);
        samples[i] = s->global_sample, domains[i] = s->domain;
    }
    b.cx.global_samples = samples, b.cx.domains = domains;
    b.tokens = mu_tensor_ints(t->tape, MU_DTYPE_I32, t->micro_size * S, t->tokens);
    b.targets = mu_tensor_ints(t->tape, MU_DTYPE_I32, t->micro_size * S, t->targets);
    return b;
}

/* Has some rank been asked to stop? Between micro-batches, so that a long step need not come to its end. Collective. */
static bool interrupted(const mu_trainer *t, int64_t m, const volatile sig_atomic_t *stop) {
    int32_t asked = stop && *stop;
    if (m == 0) return false;
    mu_all_reduce(t->mesh->world, MU_REDUCE_MAX, MU_DTYPE_I32, &asked, 1);
    return asked;
}

/* False when it was interrupted. */
static bool count_pass(mu_trainer *t, const volatile sig_atomic_t *stop) {
    for (int64_t m = 0; m < t->n_micro; m++) {
        if (interrupted(t, m, stop)) return false;
        micro_batch b = read_micro(t, m);
        mu_loss_count(t->loss, &b.cx, b.tokens);
        mu_tape_reset(t->tape);
    }
    return true;
}

/* This rank's gradients of the whole global batch, to be summed over ranks or not; false when a signal (`stop`, may be NULL)
 * interrupted it. Sums begin in the last micro-batch. */
static bool make_gradients(mu_trainer *t, bool reduce, const volatile sig_atomic_t *stop) {
    mu_params_zero_grad(t->model->params);
    mu_loss_begin(t->loss);
    if (mu_loss_counts_first(t->loss) && !count_pass(t, stop)) return false;
    for (int64_t m = 0; m < t->n_micro; m++) {
        if (interrupted(t, m, stop)) return false;
        micro_batch b = read_micro(t, m);
        mu_tensor *loss = mu_loss_forward(t->loss, &b.cx, b.tokens, b.targets);
        if (reduce && m == t->n_micro - 1) mu_backward_last(t->opt, t->tape, loss);
        else mu_backward(t->tape, loss);
        mu_tape_reset(t->tape);
    }
    return true;
}

/* For tests of what happens then: one weight of the last layer on this rank. */
static void plant_nan(mu_trainer *t) {
    for (mu_unit *u = mu_unit_next(t->model->params, NULL); u; u = mu_unit_next(t->model->params, u))
        if (u->expert < 0 && u->param->desc.layer == t->cfg.model.num_layers - 1) {
            char nan[8];
            memset(nan, 0xff, sizeof nan);
            mu_device_write(t->dev, mu_unit_data(u), nan, mu_dtype_size(t->dev->master));
            mu_params_refresh(t->model->params);
            return;
        }
}

/* Gradients summed over ranks, clipped, and the update. */
static void update(mu_trainer *t, double lr) {
    int64_t n;
    mu_mat terms = mu_loss_terms(t->loss, &n);
    mu_activity_set("sum of gradients", -1, NULL);
    mu_grads_reduce(t->opt);
    mu_activity_set("clipping", -1, NULL);
    mu_grad_clip(t->opt, t->mesh->batch, t->cfg.optim.grad_clip, n, terms);
    mu_activity_set("optimizer", -1, NULL);
    mu_optimizer_step(t->opt, lr, mu_loss_loads(t->loss));
}

/* The next global batch and its gradients; when interrupted, as if it had not begun. */
static bool gradients_of_next_batch(mu_trainer *t, const volatile sig_atomic_t *stop) {
    mu_loader_state_get(t->loader, t->loader_before);
    mu_loader_next(t->loader, t->cfg.train.global_batch_size, t->samples);
    if (mu_fault("step", t->mesh->world->rank)) plant_nan(t);
    bool whole = make_gradients(t, true, stop);
    if (!whole)
        MU_CHECK(mu_loader_state_set(t->loader, &t->cfg.data.train, t->loader_before, NULL) == MU_STATUS_OK, "the loader's own state");
    return whole;
}

mu_step_result mu_trainer_step(mu_trainer *t, const volatile sig_atomic_t *stop) {
    double start = mu_time(), comm_start = mu_mesh_seconds(t->mesh);
    mu_step_result r = { .lr = mu_learning_rate(&t->cfg.optim, t->step + 1, t->cfg.train.steps) };
    mu_activity_step(t->step + 1);
    if (!gradients_of_next_batch(t, stop)) {
        r.stop = r.interrupted = true;
        return r;
    }
    update(t, r.lr);
    mu_activity_set("results of the step", -1, NULL);
    mu_loss_values v = r.values = mu_loss_read(t->loss, mu_grad_norm_place(t->opt), stop && *stop);
    r.stop = v.stop, r.finite = isfinite(v.loss) && isfinite(v.grad_norm);
    if (r.finite) {
        t->step++;
        mu_loss_end(t->loss, (double)t->step <= 0.97 * (double)t->cfg.train.steps); /* biases rest in the last part */
    }
    r.seconds = mu_time() - start, r.comm_seconds = mu_mesh_seconds(t->mesh) - comm_start;
    return r;
}

/* ------------------------------------------------------------------ when numbers leave the finite */

/* Layer in which this rank's forward pass first is not finite; num_layers + 1: nowhere. */
static int replay(mu_trainer *t) {
    int worst = (int)t->cfg.model.num_layers + 1;
    mu_tape_record(t->tape, false);
    for (int64_t m = 0; m < t->n_micro; m++) {
        micro_batch b = read_micro(t, m);
        int found = mu_model_find_nonfinite(t->model, t->tape, &b.cx, b.tokens, t->loss->routings);
        if (found < worst) worst = found;
        mu_tape_reset(t->tape);
    }
    mu_tape_record(t->tape, true);
    return worst;
}

/* The unit nearest to the loss whose gradient from this rank's own sequences is not finite, or NULL: backward once
 * more, without the sum over ranks that spreads it everywhere. */
static const mu_unit *replay_backward(mu_trainer *t) {
    make_gradients(t, false, NULL);
    mu_params_round_grads(t->model->params);
    return mu_grads_nonfinite(t->opt);
}

/* The first rank that has the largest value. Collective. */
static int32_t rank_of_largest(mu_comm *world, int64_t mine) {
    int64_t largest = mine;
    mu_all_reduce(world, MU_REDUCE_MAX, MU_DTYPE_I64, &largest, 1);
    int32_t rank = mine == largest ? world->rank : world->size;
    mu_all_reduce(world, MU_REDUCE_MIN, MU_DTYPE_I32, &rank, 1);
    return rank;
}

char *mu_trainer_explain_nonfinite(mu_trainer *t) {
    mu_comm *world = t->mesh->world;
    int layers = (int)t->cfg.model.num_layers, mine = replay(t);
    int32_t first = mine, rank = rank_of_largest(world, -mine);
    char where[200] = "head: the last norm's output";
    mu_all_reduce(world, MU_REDUCE_MIN, MU_DTYPE_I32, &first, 1);
    if (first < 0) snprintf(where, sizeof where, "embedding: its output");
    else if (first < layers) snprintf(where, sizeof where, "layer %d: its output", first);
    else if (first > layers) {
        const mu_unit *bad = replay_backward(t);
        rank = rank_of_largest(world, bad ? bad->global_index : -1);
        int layer = bad ? bad->param->desc.layer : -1;
        snprintf(where, sizeof where, "%s", bad ? "" : "head: the loss, or a sum of gradients over ranks,");
        if (bad && layer < 0) snprintf(where, sizeof where, "the gradient of %s", bad->name);
        if (bad && layer >= 0)
            snprintf(where, sizeof where, "layer %d: the gradient of %s", layer, bad->name);
        mu_broadcast(world, rank, where, sizeof where);
    }
    int64_t *steps;
    bool saved = mu_checkpoint_list(t->cfg.run.dir, &steps) > 0;
    free(steps);
    return mu_format(
        "step %lld, rank %d, %s is not finite%s; nothing was written. A smaller optim.lr, a longer "
        "optim.warmup_steps or optim.grad_clip help; %s",
        (long long)t->step + 1, rank, where,
        t->cfg.train.reproducible ? " (or beyond 6.7e7, which train.reproducible cannot add up)" : "",
        saved ? "the last checkpoint is intact" : "no checkpoint was written yet");
}
