/* selftest_runs.c - tiny trainings: the same loss and gradients for any split, on the user's device as in double precision; checkpoints; speed. */
#include "train/selftest.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------ a run */

static const char configuration[] =
    "run: {dir: unused}\n"
    "model: {hidden_size: 16, num_layers: 3, num_heads: 2, max_seq_len: 16, init_std: 0.2}\n"
    "moe: {num_experts: 4, top_k: 2, moe_ffn_hidden_size: 16, first_k_dense: 1}\n"
    "data: {train: [{domain: common-1, path: synthetic}, {domain: rare-1, path: synthetic}]}\n"
    "optim: {warmup_steps: 0}\n"
    "train: {steps: 1000, global_batch_size: 4, seq_len: 16, eval_every: 0}\n"
    "checkpoint: {every: 0}\n"
    "log: {progress: quiet}\n";

mu_training *mu_selftest_open(const mu_selftest *t, mu_mesh *mesh, bool here, const char *const *options) {
    enum { MOST = 16 };
    char **all = mu_alloc((size_t)t->n_overrides + MOST, sizeof *all);
    int n = 0;
    for (int i = 0; i < t->n_overrides && here; i++) all[n++] = t->overrides[i];
    int borrowed = n;
    if (!here) all[n++] = mu_strdup("train.device=ref");
    if (mesh == t->alone) all[n++] = mu_strdup("train.threads=1");
    for (int i = 0; options[i]; i++) all[n++] = mu_strdup(options[i]);
    mu_training *r = mu_alloc(1, sizeof *r);
    mu_error e;
    mu_status status = mu_config_load_text(&r->cfg, "selftest", configuration, n, all, &e);
    if (status == MU_STATUS_OK) status = mu_training_open(r, mesh, MU_VAL_DOCUMENTS_BY_HASH, &e);
    MU_CHECK(status == MU_STATUS_OK, "%s", e.text);
    for (int i = borrowed; i < n; i++) free(all[i]);
    free(all);
    return r;
}

void mu_selftest_close(mu_training *r) {
    mu_training_close(r);
    free(r);
}

double *mu_selftest_gradients(mu_training *r, double *loss, int64_t *n) {
    mu_params *ps = r->state.model->params;
    mu_comm *batch = r->state.mesh->batch;
    int64_t *first = mu_alloc((size_t)ps->n_global_units + 1, sizeof *first);
    mu_batches_next(&r->batches, 0);
    mu_training_gradients(r, false, NULL);
    *loss = mu_loss_read(r->loss, (mu_mat){ 0 }, false).loss;
    mu_batches_put_back(&r->batches);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) first[u->global_index + 1] = u->count;
    mu_all_reduce(batch, MU_REDUCE_MAX, MU_DTYPE_I64, first, ps->n_global_units + 1);
    for (int64_t i = 0; i < ps->n_global_units; i++) first[i + 1] += first[i];
    *n = first[ps->n_global_units];
    double *g = mu_alloc((size_t)*n, sizeof *g);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        mu_reals_get(r->dev, r->dev->master, mu_unit_grad(u), u->count, g + first[u->global_index]);
    mu_all_reduce(batch, MU_REDUCE_SUM, MU_DTYPE_F64, g, *n);
    free(first);
    return g;
}

double mu_selftest_distance(const double *a, const double *b, int64_t n) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) difference += (a[i] - b[i]) * (a[i] - b[i]), size += b[i] * b[i];
    return sqrt(difference / size);
}

/* ------------------------------------------------------------------ splits and devices */

typedef struct { double loss, *gradients; int64_t n; } result;

static result compute(const mu_selftest *t, mu_mesh *mesh, bool here, const char *const *options) {
    mu_training *r = mu_selftest_open(t, mesh, here, options);
    result x;
    x.gradients = mu_selftest_gradients(r, &x.loss, &x.n);
    mu_selftest_close(r);
    return x;
}

/* The larger of the differences of loss and gradients. */
static double difference(result *x, const result *from) {
    double d = fmax(fabs(x->loss - from->loss) / fabs(from->loss), mu_selftest_distance(x->gradients, from->gradients, from->n));
    free(x->gradients);
    return d;
}

/* On all ranks together, with experts on all of them if they can be distributed so. */
static result compute_together(const mu_selftest *t, const char *const *options, int ep) {
    mu_mesh *mesh = mu_mesh_open(NULL, ep);
    result x = compute(t, mesh, false, options);
    mu_mesh_close(mesh);
    return x;
}

bool mu_selftest_split(mu_selftest *t) {
    int ranks = t->mesh->world->size;
    char batch[64], whole[64];
    snprintf(batch, sizeof batch, "train.global_batch_size=%d", 4 * ranks);
    snprintf(whole, sizeof whole, "train.micro_batch_size=%d", 4 * ranks);
    static const char balance[] = "moe.balance=[global_aux_loss,seq_aux_loss]", one[] = "train.micro_batch_size=1";
    result all = compute(t, t->alone, false, (const char *[]){ batch, whole, balance, NULL });
    result cut = compute(t, t->alone, false, (const char *[]){ batch, one, balance, NULL });
    if (mu_fault("selftest_split", t->mesh->world->rank)) cut.gradients[0] += 1;
    double micro = difference(&cut, &all), over_ranks = 0, over_experts = 0;
    if (ranks > 1) {
        result x = compute_together(t, (const char *[]){ batch, one, balance, NULL }, 1);
        over_ranks = difference(&x, &all);
    }
    bool experts = ranks > 1 && 4 % ranks == 0;
    if (experts) {
        result x = compute_together(t, (const char *[]){ batch, one, balance, NULL }, ranks);
        over_experts = difference(&x, &all);
    }
    free(all.gradients);
    int at = snprintf(t->figures, sizeof t->figures, "loss and gradients of one batch: %d micro-batches or one differ by %.1e", 4 * ranks, micro);
    if (ranks > 1) at += snprintf(t->figures + at, sizeof t->figures - (size_t)at, ", %d ranks or one by %.1e", ranks, over_ranks);
    if (experts) snprintf(t->figures + at, sizeof t->figures - (size_t)at, ", with expert parallelism %.1e", over_experts);
    return micro < 1e-9 && over_ranks < 1e-9 && over_experts < 1e-9;
}

bool mu_selftest_device(mu_selftest *t) {
    static const char *const options[] = { "moe.balance=[global_aux_loss,seq_aux_loss]", NULL };
    mu_training *r = mu_selftest_open(t, t->alone, true, options);
    result exact = compute(t, t->alone, false, options), x;
    x.gradients = mu_selftest_gradients(r, &x.loss, &x.n);
    if (mu_fault("selftest_device", t->mesh->world->rank)) x.loss *= 1.5;
    bool bf16 = strstr(r->dev->name, "bf16") || r->dev->compute == MU_DTYPE_BF16;
    double d = difference(&x, &exact);
    snprintf(t->figures, sizeof t->figures, "%s: loss and gradients differ from double precision by %.1e", r->dev->name, d);
    free(exact.gradients);
    mu_selftest_close(r);
    return d < (bf16 ? 0.1 : 1e-4);
}

/* ------------------------------------------------------------------ batch invariance */

/* The model's activations of the first n sequences, the first of them; heap. */
static uint8_t *first_row(mu_training *r, const int32_t *tokens, int64_t n, size_t *bytes) {
    int64_t S = r->cfg.train.seq_len;
    int32_t *domains = mu_alloc((size_t)n, sizeof *domains);
    mu_routing *routings = mu_alloc((size_t)r->state.model->n_moe, sizeof *routings);
    mu_context cx = { .mode = MU_MODE_EVAL, .n_sequences = n, .seq_len = S, .domains = domains };
    mu_tape_record(r->tape, false);
    mu_tensor *x = mu_model_forward(r->state.model, r->tape, &cx, mu_tensor_ints(r->tape, MU_DTYPE_I32, n * S, tokens), routings);
    double *all = mu_alloc((size_t)mu_count(x), sizeof *all);
    mu_tensor_get(x, all);
    *bytes = (size_t)(mu_count(x) / n) * sizeof *all;
    mu_tape_reset(r->tape);
    mu_tape_record(r->tape, true);
    free(routings);
    free(domains);
    return (uint8_t *)all;
}

bool mu_selftest_rows(mu_selftest *t) {
    enum { MOST = 13, S = 16 };
    mu_training *r = mu_selftest_open(t, t->alone, true, (const char *[]){ "model.hidden_size=64", "moe.num_experts=8", "moe.moe_ffn_hidden_size=96", NULL });
    int32_t tokens[MOST * S];
    size_t bytes;
    for (int i = 0; i < MOST * S; i++) tokens[i] = (int32_t)(i * 2654435761u >> 16) % (int32_t)r->state.model->vocab_size;
    uint8_t *alone = first_row(r, tokens, 1, &bytes);
    if (mu_fault("selftest_rows", t->mesh->world->rank)) alone[0] ^= 1;
    int64_t differ = 0;
    for (int64_t n = 2; n <= MOST; n++) {
        uint8_t *x = first_row(r, tokens, n, &bytes);
        differ += memcmp(x, alone, bytes) != 0;
        free(x);
    }
    free(alone);
    mu_selftest_close(r);
    snprintf(t->figures, sizeof t->figures, "a sequence evaluated alone and beside 1 to %d others: %lld of %d results differ in some bit", MOST - 1,
             (long long)differ, MOST - 1);
    return differ == 0;
}

/* ------------------------------------------------------------------ checkpoints */

/* The loss of two more steps, the second of which depends on all state. */
static double two_steps(mu_training *r) {
    mu_training_step(r, NULL);
    return mu_training_step(r, NULL).values.loss;
}

static mu_status round_trip(mu_selftest *t, const char *folder, double losses[2], mu_error *e) {
    char *dir = mu_format("run.dir=%s", folder), *checkpoints = mu_format("%s/checkpoints", folder);
    const char *options[] = { dir, NULL };
    mu_training *a = mu_selftest_open(t, t->alone, true, options), *b = mu_selftest_open(t, t->alone, true, options);
    mu_manifest m = { 0 };
    bool found = false;
    for (int i = 0; i < 3; i++) mu_training_step(a, NULL);
    mu_status status = mu_file_make_dirs(checkpoints, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_save(&a->state, &a->cfg, &a->texts, e);
    losses[0] = two_steps(a);
    if (status == MU_STATUS_OK) status = mu_checkpoint_find(t->alone->world, folder, &m, &found, e);
    if (status == MU_STATUS_OK && !found) status = mu_error_set(e, MU_STATUS_DATA, "no checkpoint found in %s", folder);
    if (status == MU_STATUS_OK) status = mu_checkpoint_load(&b->state, &m, b->tokenizer, e);
    if (status == MU_STATUS_OK && mu_fault("selftest_checkpoint", t->mesh->world->rank)) mu_fault_nan(b->state.model);
    losses[1] = status == MU_STATUS_OK ? two_steps(b) : NAN;
    mu_manifest_free(&m);
    mu_selftest_close(a);
    mu_selftest_close(b);
    free(checkpoints);
    free(dir);
    return status;
}

bool mu_selftest_checkpoint(mu_selftest *t) {
    const char *parent = getenv("TMPDIR");
    char *folder = mu_format("%s/muster-selftest-XXXXXX", parent && parent[0] ? parent : "/tmp");
    double losses[2] = { 0, NAN };
    mu_error e = { 0 };
    mu_status status = mkdtemp(folder) ? round_trip(t, folder, losses, &e) : mu_error_set(&e, MU_STATUS_IO, "%s cannot be created: %s (TMPDIR names its folder)", folder,
                                                                                       strerror(errno));
    bool same = status == MU_STATUS_OK && !memcmp(&losses[0], &losses[1], sizeof losses[0]);
    if (status == MU_STATUS_OK)
        snprintf(t->figures, sizeof t->figures, "loss %.9g two steps after a checkpoint, %.9g when resumed from it", losses[0], losses[1]);
    else snprintf(t->figures, sizeof t->figures, "%.500s", e.text);
    mu_error ignored;
    if (mu_file_exists(folder) && mu_file_remove_tree(folder, &ignored) != MU_STATUS_OK)
        mu_log(MU_LOG_WARNING, "%s could not be removed: %s", folder, ignored.text);
    free(folder);
    return same;
}

/* ------------------------------------------------------------------ speed */

/* Of all ranks together. */
bool mu_selftest_speed(mu_selftest *t) {
    enum { STEPS = 4 };
    mu_comm *world = t->mesh->world;
    int64_t sequences = 8 * world->size;
    char batch[64];
    snprintf(batch, sizeof batch, "train.global_batch_size=%lld", (long long)sequences);
    const char *options[] = { "model.hidden_size=128", "model.num_heads=4", "model.max_seq_len=128", "moe.num_experts=8",
                              "moe.moe_ffn_hidden_size=256", "train.seq_len=128", batch, NULL };
    mu_training *r = mu_selftest_open(t, t->mesh, true, options);
    double peak = mu_peak_measure(r->dev), best = 1e9;
    mu_all_reduce(world, MU_REDUCE_SUM, MU_DTYPE_F64, &peak, 1);
    bool finite = true;
    for (int i = 0; i < 1 + STEPS; i++) {
        mu_step_result s = mu_training_step(r, NULL);
        finite = finite && s.finite;
        if (i > 0) best = fmin(best, s.seconds);
    }
    snprintf(t->figures, sizeof t->figures, "matrix products %.0f GFLOP/s, training %.0f tokens/s (3 layers, width 128, 2 of 8 experts per token), %d rank%s of %d "
             "thread%s", peak / 1e9, (double)(sequences * 128) / best, world->size, world->size == 1 ? "" : "s", mu_threads(), mu_threads() == 1 ? "" : "s");
    mu_selftest_close(r);
    return finite;
}
