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

static void plan_batch(mu_trainer *t) {
    int64_t share = t->cfg.train.global_batch_size / t->mesh->batch->size;
    t->micro_size = t->cfg.train.micro_batch_size ? t->cfg.train.micro_batch_size : share;
    t->n_micro = share / t->micro_size;
    int64_t tokens = t->micro_size * t->cfg.train.seq_len;
    t->samples = mu_alloc((size_t)t->cfg.train.global_batch_size, sizeof *t->samples);
    t->tokens = mu_alloc((size_t)tokens, sizeof *t->tokens);
    t->targets = mu_alloc((size_t)tokens, sizeof *t->targets);
}

/* What a step leaves on the device, in words of 8 bytes. The host reads the first three in one piece, when the whole step
 * is on its way:
 *     assignments of each MoE layer to each expert in the global batch (I64): also the optimizer's loads
 *     assignments that capacity kept (I64), and the gradient's norm (F64)
 *     values of every micro-batch, one a leaf (F64): the loss, the cross-entropy, and of each MoE layer the two balancing
 *     terms that are logged
 *     assignments in the micro-batch at hand, and in the whole global batch as the counting pass found them (I64) */
enum { LOSS, CE, LAYERS };
static int64_t n_cells(const mu_trainer *t) { return t->model->n_moe * t->cfg.moe.num_experts; }
static int64_t n_leaves(const mu_trainer *t) { return mu_leaves(t->tape, t->micro_size * t->cfg.train.seq_len); }
static int aux_of(int layer) { return LAYERS + 2 * layer; }
static int z_of(int layer) { return aux_of(layer) + 1; }

static int64_t kept_word(const mu_trainer *t) { return n_cells(t); }
static int64_t norm_word(const mu_trainer *t) { return kept_word(t) + 1; }
static int64_t value_word(const mu_trainer *t, int which, int64_t micro) {
    return norm_word(t) + 1 + (which * t->n_micro + micro) * n_leaves(t);
}
static int64_t n_results(const mu_trainer *t) { return value_word(t, aux_of(t->model->n_moe), 0); }
static int64_t n_words(const mu_trainer *t) { return n_results(t) + 2 * n_cells(t); }

static mu_mat result_words(const mu_trainer *t, mu_dtype dtype, int64_t first) {
    return mu_mat_values((mu_mat){ t->results->region.base, dtype, 1 }, first);
}
static mu_mat totals_of(const mu_trainer *t) { return result_words(t, MU_DTYPE_I64, 0); }
static mu_mat counts_of(const mu_trainer *t, int64_t layer) {
    return result_words(t, MU_DTYPE_I64, n_results(t) + layer * t->cfg.moe.num_experts);
}
static mu_mat counted_of(const mu_trainer *t, int64_t layer) {
    return mu_mat_values(counts_of(t, layer), n_cells(t));
}

static void make_results(mu_trainer *t) {
    size_t words = (size_t)n_words(t);
    t->host_results = mu_alloc((size_t)n_results(t), sizeof(int64_t));
    t->results = mu_memory_new(t->dev, words * sizeof(int64_t));
    mu_memory_commit(t->results, words * sizeof(int64_t));
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
    t->routings = mu_alloc((size_t)t->model->n_moe, sizeof *t->routings);
    t->counts = mu_alloc((size_t)n_cells(t), sizeof *t->counts);
    plan_batch(t);
    if (!with_data) return MU_STATUS_OK;
    if (t->cfg.train.reproducible) {
        mu_params_exact(t->model->params);
        mu_tape_leaf(t->tape, t->cfg.train.seq_len);
    }
    t->opt = mu_optimizer_new(&mu_rule_adamw, &t->cfg.optim, t->model->params);
    make_results(t);
    mu_roll_init(&t->roll, t->model->n_moe, (int)t->cfg.moe.num_experts);
    return MU_STATUS_OK;
}

void mu_trainer_close(mu_trainer *t) {
    mu_roll_free(&t->roll);
    mu_optimizer_free(t->opt);
    mu_memory_free(t->results);
    if (t->tape) mu_tape_free(t->tape);
    mu_model_free(t->model);
    if (t->loader) mu_loader_close(t->loader);
    mu_corpus_close(&t->corpus);
    if (t->tokenizer) mu_tokenizer_close(t->tokenizer);
    if (t->dev) mu_device_close(t->dev);
    free(t->routings);
    free(t->loader_before);
    free(t->samples);
    free(t->tokens);
    free(t->targets);
    free(t->counts);
    free(t->host_results);
    mu_config_free(&t->cfg, &t->options);
    memset(t, 0, sizeof *t);
}

/* ------------------------------------------------------------------ one step */

static int64_t global_tokens(const mu_trainer *t) {
    return t->cfg.train.global_batch_size * t->cfg.train.seq_len;
}

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

/* On the device: sums[cells] += counts_of. */
static void add_counts(mu_trainer *t, mu_mat sums) { t->dev->k->add(t->dev, n_cells(t), sums, counts_of(t, 0), sums); }

/* counts_of = the assignments of the micro-batch at hand, over this rank's sequences. */
static void count(mu_trainer *t) {
    for (int layer = 0; layer < t->model->n_moe; layer++)
        mu_routing_count(t->tape, &t->routings[layer], counts_of(t, layer));
}

/* On the device: counts[cells] = their sum over all ranks. */
static void sum_counts(mu_trainer *t, mu_mat counts) {
    size_t bytes = sizeof(int64_t) * (size_t)n_cells(t);
    if (t->mesh->batch->size == 1 || !bytes) return;
    mu_device_read(t->dev, t->counts, counts.data, bytes);
    mu_all_reduce(t->mesh->batch, MU_REDUCE_SUM, MU_DTYPE_I64, t->counts, n_cells(t));
    mu_device_write(t->dev, counts.data, t->counts, bytes);
}

/* global_aux_loss compares with the counts of the whole batch, which several micro-batches only know at the
 * end: a first forward pass without tape counts them. */
static bool uses_own_counts(const mu_trainer *t) {
    const mu_moe_config *moe = &t->cfg.moe;
    bool exact = moe->balance & MU_BALANCE_GLOBAL_AUX && moe->global_aux_counts == MU_MOE_COUNTS_EXACT;
    return exact || !t->roll.steps; /* the first batch has none before it */
}
static bool needs_count_pass(const mu_trainer *t) {
    return t->cfg.moe.num_experts && t->n_micro > 1 && uses_own_counts(t);
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
    int64_t m = 0;
    mu_tape_record(t->tape, false);
    for (; m < t->n_micro && !interrupted(t, m, stop); m++) {
        micro_batch b = read_micro(t, m);
        mu_model_forward(t->model, t->tape, &b.cx, b.tokens, t->routings);
        count(t);
        add_counts(t, counted_of(t, 0));
        mu_tape_reset(t->tape);
    }
    mu_tape_record(t->tape, true);
    if (m < t->n_micro) return false;
    sum_counts(t, counted_of(t, 0));
    return true;
}

/* The counts that global_aux_loss uses in this micro-batch. Where it is off they only serve the logged value, for which the
 * batch before is good enough, and the same for any number of micro-batches. */
static mu_mat global_counts(const mu_trainer *t, int layer) {
    int64_t E = t->cfg.moe.num_experts;
    if (uses_own_counts(t)) return t->n_micro == 1 ? counts_of(t, layer) : counted_of(t, layer);
    return mu_data(mu_tensor_ints(t->tape, MU_DTYPE_I64, E, t->roll.previous + layer * E));
}

/* Sums over micro-batches of this rank's share of each value, all in words that ranks add up. */
typedef struct {
    mu_exact loss, ce, aux, z;
    int64_t kept, stop;
} sums;
enum { SUM_WORDS = sizeof(sums) / sizeof(int64_t) };

/* Puts a value of micro-batch m, one a leaf, where the host will read it. */
static void keep_value(mu_trainer *t, int which, int64_t m, const mu_tensor *value) {
    mu_mat to = result_words(t, MU_DTYPE_F64, value_word(t, which, m));
    if (value) t->dev->k->add(t->dev, n_leaves(t), to, mu_data(value), to);
}

/* Adds every MoE layer's balancing terms to the loss. */
static mu_tensor *add_balance(mu_trainer *t, const mu_context *cx, mu_tensor *loss) {
    mu_tape_part(t->tape, "balance");
    for (int layer = 0; layer < t->model->n_moe; layer++) {
        const mu_moe *moe = &t->model->blocks[t->model->moe_layers[layer]].moe;
        mu_balance_counts c = { counts_of(t, layer), global_counts(t, layer), global_tokens(t) / t->n_micro,
                                global_tokens(t) };
        mu_balance b = mu_balance_loss(moe, t->tape, cx, &t->routings[layer], &c);
        keep_value(t, aux_of(layer), cx->micro_batch, b.aux);
        keep_value(t, z_of(layer), cx->micro_batch, b.z);
        if (b.loss) loss = mu_add(t->tape, loss, b.loss);
    }
    return loss;
}

/* Starts forward and backward of a micro-batch; its results wait on the device. Sums of gradients begin in the last one. */
static void train_micro(mu_trainer *t, int64_t m, bool last) {
    micro_batch b = read_micro(t, m);
    mu_tensor *x = mu_model_forward(t->model, t->tape, &b.cx, b.tokens, t->routings);
    count(t);
    sum_counts(t, counts_of(t, 0));
    add_counts(t, totals_of(t));
    if (t->cfg.moe.capacity_factor > 0)
        for (int layer = 0; layer < t->model->n_moe; layer++)
            mu_routing_add_kept(t->tape, &t->routings[layer], result_words(t, MU_DTYPE_I64, kept_word(t)));
    mu_tensor *ce = mu_model_head_loss(t->model, t->tape, x, b.targets, 1.0 / (double)global_tokens(t), NULL);
    mu_release(t->tape, x);
    mu_tensor *loss = add_balance(t, &b.cx, ce);
    keep_value(t, CE, m, ce);
    keep_value(t, LOSS, m, loss);
    if (last) mu_backward_last(t->opt, t->tape, loss);
    else mu_backward(t->tape, loss);
    mu_tape_reset(t->tape);
}

/* This rank's gradients of the whole global batch, to be summed over ranks or not; false when a signal (`stop`, may be NULL)
 * interrupted it. */
static bool make_gradients(mu_trainer *t, bool reduce, const volatile sig_atomic_t *stop) {
    mu_params_zero_grad(t->model->params);
    t->dev->k->fill(t->dev, n_words(t), 0.0, result_words(t, MU_DTYPE_F64, 0));
    if (needs_count_pass(t) && !count_pass(t, stop)) return false;
    for (int64_t m = 0; m < t->n_micro; m++) {
        if (interrupted(t, m, stop)) return false;
        train_micro(t, m, reduce && m == t->n_micro - 1);
    }
    return true;
}

static void add_values(const mu_trainer *t, int which, double by, mu_exact *sum) {
    const int64_t *words = t->host_results + value_word(t, which, 0);
    for (int64_t i = 0; i < t->n_micro * n_leaves(t); i++) {
        double value;
        memcpy(&value, &words[i], sizeof value);
        mu_exact_add(sum, value / by);
    }
}

/* Waits for the device: this rank's share of the step's values, and what is the same on every rank. */
static sums collect(mu_trainer *t, mu_step_result *r) {
    int n = t->model->n_moe;
    sums s = { 0 };
    mu_device_read(t->dev, t->host_results, t->results->region.base, sizeof(int64_t) * (size_t)n_results(t));
    memcpy(t->counts, t->host_results, sizeof *t->counts * (size_t)n_cells(t));
    memcpy(&r->grad_norm, t->host_results + norm_word(t), sizeof r->grad_norm);
    s.kept = t->host_results[kept_word(t)];
    add_values(t, LOSS, 1, &s.loss);
    add_values(t, CE, 1, &s.ce);
    for (int layer = 0; layer < n; layer++) {
        add_values(t, aux_of(layer), n, &s.aux);
        add_values(t, z_of(layer), n, &s.z);
    }
    return s;
}

/* For tests of what happens then: one weight of the last layer on this rank. */
static void plant_nan(mu_trainer *t) {
    for (mu_unit *u = mu_unit_next(t->model->params, NULL); u; u = mu_unit_next(t->model->params, u))
        if (u->expert < 0 && u->param->desc.layer == t->cfg.model.num_layers - 1) {
            char nan[8];
            memset(nan, 0xff, sizeof nan);
            mu_device_write(t->dev, mu_unit_data(u), nan, mu_dtype_size(t->dev->fine));
            mu_params_publish(t->model->params);
            return;
        }
}

static double dropped_share(const mu_trainer *t, int64_t kept) {
    int64_t assignments = global_tokens(t) * t->cfg.moe.top_k * t->model->n_moe;
    return t->model->n_moe && t->cfg.moe.capacity_factor > 0 ? (double)(assignments - kept) / (double)assignments : 0.0;
}

/* The step's values over all ranks. */
static void add_up(mu_trainer *t, sums *s, bool stop_asked, mu_step_result *r) {
    s->stop = stop_asked;
    mu_all_reduce(t->mesh->batch, MU_REDUCE_SUM, MU_DTYPE_I64, s, SUM_WORDS);
    r->loss = mu_exact_value(&s->loss), r->ce = mu_exact_value(&s->ce), r->stop = s->stop > 0;
    bool softmax = t->cfg.moe.score_func == MU_MOE_SCORE_SOFTMAX;
    r->aux = mu_exact_value(&s->aux), r->z = softmax ? mu_exact_value(&s->z) : NAN, r->dropped = dropped_share(t, s->kept);
}

/* What else a step changes, once it is known to be finite. */
static void finish_step(mu_trainer *t) {
    int64_t s = t->step + 1;
    bool last_part = (double)s > 0.97 * (double)t->cfg.train.steps;
    if ((t->cfg.moe.balance & MU_BALANCE_BIAS) && !last_part)
        for (int layer = 0; layer < t->model->n_moe; layer++)
            mu_balance_update_bias(&t->model->blocks[t->model->moe_layers[layer]].moe,
                                   t->counts + layer * t->cfg.moe.num_experts, t->cfg.moe.bias_update_rate);
    mu_roll_take(&t->roll, t->counts);
    t->step = s;
}

/* Gradients summed over ranks, clipped, and the update. */
static void update(mu_trainer *t, double lr) {
    mu_mat losses = result_words(t, MU_DTYPE_F64, value_word(t, LOSS, 0)),
           norm = result_words(t, MU_DTYPE_F64, norm_word(t));
    mu_activity_set("sum of gradients", -1, NULL);
    mu_grads_reduce(t->opt);
    mu_activity_set("clipping", -1, NULL);
    mu_grad_clip(t->opt, t->mesh->batch, t->cfg.optim.grad_clip, t->n_micro * n_leaves(t), losses);
    t->dev->k->add(t->dev, 1, norm, mu_grad_norm_place(t->opt), norm);
    mu_activity_set("optimizer", -1, NULL);
    /* Experts without a token in the whole global batch rest: the optimizer leaves them alone. */
    mu_optimizer_step(t->opt, lr, totals_of(t));
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
    sums s = collect(t, &r);
    add_up(t, &s, stop && *stop, &r);
    r.finite = isfinite(r.loss) && isfinite(r.grad_norm);
    if (r.finite) finish_step(t);
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
        int found = mu_model_find_nonfinite(t->model, t->tape, &b.cx, b.tokens, t->routings);
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
