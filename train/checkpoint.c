/* checkpoint.c - saving and loading a whole run so that a kill at any moment leaves the last good state.
 *
 * A save writes  step-N.tmp/shard-0000.h5 ...  (one file a writing rank: the ranks of the first expert group,
 * which together hold every expert; rank 0 also holds everything shared),  closes and syncs them,  writes
 * manifest.json with sizes and hashes,  syncs,  renames step-N.tmp to step-N  and syncs the parent. What was
 * not renamed does not exist. A checkpoint does not know how many ranks wrote it: tensors are found by name.
 *
 *     /<name>                 weights of a parameter, or of a single expert, whole
 *     /optim/{m,v}/<name>     moments      /optim/steps/<name>   its own step count
 *     /layers/L/mlp/gate/e_score_correction_bias                 selection bias
 *     /state/...              step, seed, loader, expert statistics      (in shard 0) */
#include "train/train.h"

#include <dirent.h>
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ------------------------------------------------------------------ names */

void mu_checkpoint_name(int64_t step, char name[MU_CHECKPOINT_NAME]) {
    snprintf(name, MU_CHECKPOINT_NAME, "step-%08lld", (long long)step);
}

char *mu_checkpoint_path(const char *run, int64_t step) {
    char name[MU_CHECKPOINT_NAME];
    mu_checkpoint_name(step, name);
    return mu_format("%s/checkpoints/%s", run, name);
}

bool mu_checkpoint_step(const char *path, int64_t *step) {
    size_t end = strlen(path), start;
    while (end > 1 && path[end - 1] == '/') end--;
    for (start = end; start > 0 && path[start - 1] != '/';) start--;
    char name[MU_CHECKPOINT_NAME], given[MU_CHECKPOINT_NAME];
    if (end - start >= sizeof given || strncmp(path + start, "step-", 5)) return false;
    snprintf(given, sizeof given, "%.*s", (int)(end - start), path + start);
    *step = strtoll(given + 5, NULL, 10);
    mu_checkpoint_name(*step, name);
    return *step >= 0 && !strcmp(name, given); /* not step-40, not step-+5: a second name for a step is somebody else's */
}

static mu_store_type type_of(const mu_trainer *t) {
    return t->dev->fine == MU_DTYPE_F64 ? MU_STORE_F64 : MU_STORE_F32;
}
static bool is_writer(const mu_trainer *t) { return t->mesh->batch->rank < t->mesh->ep; }

/* Which units this rank writes: its experts, and on rank 0 everything shared. */
static bool writes(const mu_trainer *t, const mu_unit *u) {
    return u->expert >= 0 || t->mesh->batch->rank == 0;
}

/* ------------------------------------------------------------------ one array
 * What a checkpoint holds is a list of these, for writing and for reading, by resume and verify alike: a value that
 * is read is in its range, or the checkpoint is refused. */
typedef struct {
    char name[128];
    mu_store_type type;
    int n_dims;
    int64_t shape[3];
    void *data;
    int64_t least, most;  /* of integers */
    double low, high;     /* of floats, finite */
} array;

static int64_t count_of(const array *a) {
    int64_t n = 1;
    for (int i = 0; i < a->n_dims; i++) n *= a->shape[i];
    return n;
}

static mu_status write_array(mu_store *s, const array *a, mu_error *e) {
    return mu_store_write(s, a->name, a->type, a->n_dims, a->shape, a->data, e);
}

/* The first value that is out of range, or -1. A NaN is in none. */
static int64_t first_bad(const array *a) {
    const int64_t *whole = a->data, n = count_of(a);
    const double *fine = a->data;
    const float *real = a->data;
    int64_t i = 0;
    if (a->type == MU_STORE_I64) while (i < n && whole[i] >= a->least && whole[i] <= a->most) i++;
    else if (a->type == MU_STORE_F64) while (i < n && fine[i] >= a->low && fine[i] <= a->high) i++;
    else while (i < n && (double)real[i] >= a->low && (double)real[i] <= a->high) i++;
    return i < n ? i : -1;
}

static mu_status check_array(const array *a, const char *file, mu_error *e) {
    int64_t at = first_bad(a);
    if (at < 0) return MU_STATUS_OK;
    if (a->type == MU_STORE_I64)
        return mu_error_set(e, MU_STATUS_DATA, "%s: %s holds %lld at %lld, which must be in [%lld, %lld]", file, a->name,
                            (long long)((const int64_t *)a->data)[at], (long long)at, (long long)a->least, (long long)a->most);
    double value = a->type == MU_STORE_F64 ? ((const double *)a->data)[at] : (double)((const float *)a->data)[at];
    if (isfinite(value))
        return mu_error_set(e, MU_STATUS_DATA, "%s: %s holds %g at %lld, which must be in [%g, %g]", file, a->name, value,
                            (long long)at, a->low, a->high);
    return mu_error_set(e, MU_STATUS_DATA, "%s: %s holds a value that is not finite at %lld", file, a->name, (long long)at);
}

/* The shards of a checkpoint that is read, each opened when it is first needed. */
typedef struct {
    const mu_manifest *m;
    mu_store **stores; /* [n_shards] */
} source;

static char *shard_path(const mu_manifest *m, int shard) { return mu_format("%s/%s", m->path, m->shards[shard].name); }

static mu_status read_array(const source *from, int shard, const array *a, mu_error *e) {
    char *path = shard_path(from->m, shard);
    mu_status status = from->stores[shard] ? MU_STATUS_OK : mu_store_open(&from->stores[shard], path, e);
    if (status == MU_STATUS_OK)
        status = mu_store_read(from->stores[shard], a->name, a->type, a->n_dims, a->shape, a->data, e);
    if (status == MU_STATUS_OK) status = check_array(a, path, e);
    free(path);
    return status;
}

/* ------------------------------------------------------------------ the state beside the tensors, in shard 0 */

/* What is not the trainer's own: where the loader stands at the end of a step, samples of each domain, then of all; and of how
 * many tokens each domain is, by which its share can be told without the texts. */
typedef struct {
    int64_t seed, *loader, *tokens;
} side_state;

static side_state side_state_new(const mu_trainer *t) {
    size_t n = (size_t)t->cfg.data.train.n;
    side_state side = { t->cfg.run.seed, mu_alloc(n + 1, sizeof(int64_t)), mu_alloc(n, sizeof(int64_t)) };
    if (t->loader) mu_loader_state_get(t->loader, side.loader);
    for (size_t i = 0; t->loader && i < n; i++) side.tokens[i] = t->corpus.domains[i].n_tokens;
    return side;
}

static void side_state_free(side_state *side) {
    free(side->loader);
    free(side->tokens);
}

/* Of all experts of a layer together, in each step. */
static int64_t assignments_of(const mu_config *cfg) {
    return cfg->train.global_batch_size * cfg->train.seq_len * cfg->moe.top_k;
}

enum { STATE_ARRAYS = 8, FIRST_STATE_ARRAYS = 7 };    /* the first checkpoints did not have the last */
static void list_state(mu_trainer *t, side_state *side, array arrays[STATE_ARRAYS]) {
    int n = t->cfg.data.train.n;
    int64_t L = t->loss->stats->window.layers, E = t->loss->stats->window.experts, step = t->step, samples = step * t->cfg.train.global_batch_size;
    int64_t window = mu_roll_window(&(mu_roll){ .steps = step });
    int64_t most = assignments_of(&t->cfg);
    const array list[STATE_ARRAYS] = {
        { "/state/step", MU_STORE_I64, 1, { 1 }, &t->step, .least = step, .most = step },
        { "/state/seed", MU_STORE_I64, 1, { 1 }, &side->seed, .least = t->cfg.run.seed, .most = t->cfg.run.seed },
        { "/state/loader", MU_STORE_I64, 1, { n + 1 }, side->loader, .least = 0, .most = samples },
        { "/state/roll/steps", MU_STORE_I64, 1, { 1 }, &t->loss->stats->window.steps, .least = step, .most = step },
        { "/state/roll/ring", MU_STORE_I64, 3, { MU_ROLL_WINDOW, L, E }, t->loss->stats->window.ring, .least = 0, .most = most },
        { "/state/roll/total", MU_STORE_I64, 2, { L, E }, t->loss->stats->window.total, .least = 0, .most = window * most },
        { "/state/roll/previous", MU_STORE_I64, 2, { L, E }, t->loss->stats->window.previous, .least = 0, .most = most },
        { "/state/tokens", MU_STORE_I64, 1, { n }, side->tokens, .least = 0, .most = INT64_MAX },
    };
    memcpy(arrays, list, sizeof list);
}

/* A step moves each bias by at most bias_update_rate, which may have been another before; without expert_bias all are 0. */
static array bias_array(const mu_trainer *t, int moe_layer, bool used) {
    const mu_moe *m = &t->model->blocks[t->model->moe_layers[moe_layer]].moe;
    double most = used ? 1.001 * MU_BIAS_RATE_MAX * (double)t->step : 0;
    array a = { .type = MU_STORE_F64, .n_dims = 1, .shape = { m->E }, .data = m->bias, .low = 0 - most, .high = most };
    snprintf(a.name, sizeof a.name, "/layers/%d/mlp/gate/e_score_correction_bias", m->layer);
    return a;
}

static mu_status write_state(mu_trainer *t, mu_store *s, mu_error *e) {
    side_state side = side_state_new(t);
    array arrays[STATE_ARRAYS];
    list_state(t, &side, arrays);
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < STATE_ARRAYS && status == MU_STATUS_OK; i++) status = write_array(s, &arrays[i], e);
    for (int i = 0; i < t->model->n_moe && status == MU_STATUS_OK; i++) {
        array bias = bias_array(t, i, true);
        status = write_array(s, &bias, e);
    }
    side_state_free(&side);
    return status;
}

/* Where expert_bias is off now all are 0, and stay so in the next checkpoint: switched on again, it starts anew. */
static mu_status read_bias(mu_trainer *t, const source *from, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < t->model->n_moe && status == MU_STATUS_OK; i++) {
        array bias = bias_array(t, i, from->m->cfg.moe.balance & MU_BALANCE_BIAS);
        status = read_array(from, 0, &bias, e);
        if (!(t->cfg.moe.balance & MU_BALANCE_BIAS)) memset(bias.data, 0, sizeof(double) * (size_t)bias.shape[0]);
    }
    return status;
}

/* What arrays say of each other; tokens NULL: not known. */
static mu_status check_state(const mu_trainer *t, const side_state *side, const int64_t *tokens, mu_error *e) {
    const mu_option_domains *train = &t->cfg.data.train;
    mu_status status = mu_roll_check(&t->loss->stats->window, assignments_of(&t->cfg), e);
    if (status == MU_STATUS_OK)
        status = mu_loader_state_check(train, tokens, side->loader, t->step * t->cfg.train.global_batch_size, e);
    return status == MU_STATUS_OK && t->loader ? mu_loader_state_set(t->loader, train, side->loader, e) : status;
}

/* Without a loader (verify has no texts) its state is only checked. */
static mu_status read_state(mu_trainer *t, const source *from, mu_error *e) {
    side_state side = side_state_new(t);
    array arrays[STATE_ARRAYS];
    list_state(t, &side, arrays);
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < FIRST_STATE_ARRAYS && status == MU_STATUS_OK; i++) status = read_array(from, 0, &arrays[i], e);
    bool tokens_known = t->loader || (status == MU_STATUS_OK && mu_store_has(from->stores[0], "/state/tokens"));
    if (status == MU_STATUS_OK && !t->loader && tokens_known) status = read_array(from, 0, &arrays[FIRST_STATE_ARRAYS], e);
    mu_error why;
    if (status == MU_STATUS_OK && check_state(t, &side, tokens_known ? side.tokens : NULL, &why) != MU_STATUS_OK)
        status = mu_error_set(e, why.status, "%s/%s: %-s", from->m->path, from->m->shards[0].name, why.text);
    side_state_free(&side);
    return status;
}

/* ------------------------------------------------------------------ tensors */

/* A unit's values under "", "/optim/m" or "/optim/v". */
static array unit_array(const mu_trainer *t, const char *prefix, const mu_unit *u, void *host) {
    const mu_param_desc *d = &u->param->desc;
    array a = { .type = type_of(t), .n_dims = d->n_dims, .shape = { d->shape[0], d->shape[1] }, .data = host };
    a.low = strcmp(prefix, "/optim/v") ? -DBL_MAX : 0, a.high = DBL_MAX;
    snprintf(a.name, sizeof a.name, "%s%s", prefix, u->name);
    return a;
}

static array steps_array(const mu_unit *u, int64_t *steps) {
    array a = { .type = MU_STORE_I64, .n_dims = 1, .shape = { 1 }, .data = steps };
    snprintf(a.name, sizeof a.name, "/optim/steps%s", u->name);
    return a;
}

/* Every step updates every unit, except an expert that took no token: what it took lately is in the window. */
static mu_status read_steps(mu_trainer *t, const source *from, int shard, const mu_unit *u, mu_error *e) {
    int64_t steps = 0;
    array a = steps_array(u, &steps);
    a.least = a.most = t->step;
    if (u->expert >= 0) {
        a.least = mu_roll_active(&t->loss->stats->window, (int)(u->load / t->loss->stats->window.experts), u->expert);
        a.most -= mu_roll_window(&t->loss->stats->window) - a.least;
    }
    mu_status status = read_array(from, shard, &a, e);
    if (status == MU_STATUS_OK) mu_optimizer_steps_set(t->opt, u, steps);
    return status;
}

/* One slot of the optimizer's state of a unit: /optim/m/norm/weight. */
static array slot_array(const mu_trainer *t, const mu_unit *u, int slot, void *host) {
    char prefix[32];
    snprintf(prefix, sizeof prefix, "/optim/%s", t->opt->rule->slots[slot]);
    return unit_array(t, prefix, u, host);
}

/* A rank that writes no shard has s == NULL and only hands over the moments it owns; so does one whose writing
 * has failed: the others are waiting for it. Collective over the unit's group, agreed by nobody. */
static mu_status write_unit(mu_trainer *t, mu_store *s, const mu_unit *u, mu_status status, mu_error *e) {
    bool mine = s && writes(t, u);
    mu_activity_set("writing a checkpoint", u->param->desc.layer, NULL);
    void *host = mu_alloc((size_t)u->count, mu_dtype_size(t->dev->fine));
    if (mine && status == MU_STATUS_OK) {
        mu_device_read(t->dev, host, mu_unit_data(u), (size_t)u->count * mu_dtype_size(t->dev->fine));
        array values = unit_array(t, "", u, host);
        status = write_array(s, &values, e);
    }
    for (int slot = 0; slot < t->opt->rule->n_slots; slot++) {
        array values = slot_array(t, u, slot, host);
        mu_optimizer_slot_read(t->opt, u, slot, host);
        if (mine && status == MU_STATUS_OK) status = write_array(s, &values, e);
    }
    free(host);
    if (!mine || status != MU_STATUS_OK) return status;
    int64_t steps = mu_optimizer_steps(t->opt, u);
    array a = steps_array(u, &steps);
    return write_array(s, &a, e);
}

/* Through `host`, [count], onto the device. */
static mu_status read_values(mu_trainer *t, const source *from, int shard, const array *a, void *data, mu_error *e) {
    mu_status status = read_array(from, shard, a, e);
    if (status == MU_STATUS_OK)
        mu_device_write(t->dev, data, a->data, (size_t)count_of(a) * mu_dtype_size(t->dev->fine));
    return status;
}

/* Moments are read by the rank that owns them. */
static mu_status read_unit(mu_trainer *t, const source *from, mu_unit *u, bool training, mu_error *e) {
    int shard = mu_manifest_find(from->m, u->name);
    mu_activity_set("loading a checkpoint", u->param->desc.layer, NULL);
    if (shard < 0) return mu_error_set(e, MU_STATUS_DATA, "%s/manifest.json names no tensor %s", from->m->path, u->name);
    void *host = mu_alloc((size_t)u->count, mu_dtype_size(t->dev->fine));
    array values = unit_array(t, "", u, host);
    mu_status status = read_values(t, from, shard, &values, mu_unit_data(u), e);
    int slots = training && mu_shards_owns(&t->opt->shards, u) ? t->opt->rule->n_slots : 0;
    for (int slot = 0; slot < slots && status == MU_STATUS_OK; slot++) {
        values = slot_array(t, u, slot, host);
        status = read_values(t, from, shard, &values, mu_optimizer_slot(t->opt, u, slot), e);
    }
    free(host);
    return status == MU_STATUS_OK && training ? read_steps(t, from, shard, u, e) : status;
}

/* ------------------------------------------------------------------ saving */

static mu_status fault_status(const mu_trainer *t, const char *point, mu_error *e) {
    return mu_fault(point, t->mesh->world->rank)
               ? mu_error_set(e, MU_STATUS_IO, "%s: no space left on device (planted by a test)", point)
               : MU_STATUS_OK;
}

/* Collective: every rank comes here, whatever its status and whether or not it writes a shard. */
static mu_status write_tensors(mu_trainer *t, mu_store *s, mu_status status, mu_error *e) {
    mu_params *ps = t->model->params;
    int written = 0;
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
        status = write_unit(t, s, u, status, e);
        if (s && writes(t, u) && status == MU_STATUS_OK && written++ == 2)
            status = fault_status(t, "mid-shard", e);
    }
    if (s && status == MU_STATUS_OK && t->mesh->world->rank == 0) status = write_state(t, s, e);
    return status;
}

/* This rank's shard, if it writes one, closed and synced, its size and hash in *shard. Collective. */
static mu_status write_shard(mu_trainer *t, const char *folder, mu_shard *shard, mu_error *e) {
    if (!is_writer(t)) return write_tensors(t, NULL, MU_STATUS_OK, e);
    mu_shard_name(t->mesh->world->rank, shard->name);
    char *path = mu_format("%s/%s", folder, shard->name);
    mu_store *s = NULL;
    mu_status status = fault_status(t, "open", e);
    if (status == MU_STATUS_OK) status = mu_store_create(&s, path, e);
    status = write_tensors(t, s, status, e);
    if (status == MU_STATUS_OK) status = fault_status(t, "before-close", e);
    status = mu_store_finish(s, status, e);
    if (status == MU_STATUS_OK) status = fault_status(t, "after-close", e);
    if (status == MU_STATUS_OK) status = mu_file_hash(path, shard->hash, &shard->bytes, e);
    free(path);
    return status;
}

/* Collects the names that each writer wrote on rank 0, which fills m->tensors. Collective. */
static void collect_names(mu_trainer *t, mu_manifest *m) {
    mu_comm *world = t->mesh->world;
    mu_params *ps = t->model->params;
    size_t size = sizeof m->tensors[0].name;
    int64_t mine = 0, *counts = mu_alloc((size_t)world->size, sizeof *counts);
    char *names = mu_alloc((size_t)ps->n_global_units + 1, size);
    if (is_writer(t))
        for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
            if (writes(t, u)) memcpy(names + size * (size_t)mine++, u->name, size);
    mu_all_gather(world, &mine, sizeof mine, counts);
    int64_t *send = mu_alloc((size_t)world->size, sizeof *send),
            *recv = mu_alloc((size_t)world->size, sizeof *recv), total = 0;
    send[0] = mine * (int64_t)size;
    for (int p = 0; p < world->size; p++)
        recv[p] = world->rank == 0 ? counts[p] * (int64_t)size : 0, total += counts[p];
    char *all = mu_alloc((size_t)total + 1, size);
    mu_exchange(world, names, send, all, recv);
    if (world->rank == 0) {
        m->n_tensors = (int)total;
        m->tensors = mu_alloc((size_t)total + 1, sizeof *m->tensors);
        for (int64_t i = 0, p = 0, left = counts[0]; i < total; i++, left--) {
            while (left == 0) left = counts[++p];
            memcpy(m->tensors[i].name, all + size * (size_t)i, size);
            m->tensors[i].shard = (int)p;
        }
    }
    free(all);
    free(send);
    free(recv);
    free(names);
    free(counts);
}

static mu_status commit(mu_trainer *t, mu_manifest *m, const char *tmp, const char *final, mu_error *e) {
    m->step = t->step, m->ranks = t->mesh->world->size, m->ep = t->mesh->ep;
    snprintf(m->dtype, sizeof m->dtype, "%s", mu_dtype_name(t->dev->fine));
    snprintf(m->tokenizer, sizeof m->tokenizer, "%s", mu_tokenizer_name(t->tokenizer));
    snprintf(m->tokenizer_fingerprint, sizeof m->tokenizer_fingerprint, "%s", mu_tokenizer_fingerprint(t->tokenizer));
    snprintf(m->fingerprint, sizeof m->fingerprint, "%s", t->corpus.fingerprint);
    m->val_split = t->val_split;
    m->config = mu_options_dump(&t->options, &t->cfg);
    mu_status status = fault_status(t, "before-manifest", e);
    if (status == MU_STATUS_OK) status = mu_manifest_write(m, tmp, e);
    if (status == MU_STATUS_OK) status = fault_status(t, "after-manifest", e);
    if (status == MU_STATUS_OK) status = mu_file_sync(tmp, e);
    if (status == MU_STATUS_OK) status = fault_status(t, "before-rename", e);
    if (status == MU_STATUS_OK) status = mu_file_rename(tmp, final, e);
    if (status == MU_STATUS_OK) status = fault_status(t, "after-rename", e);
    return status;
}

int mu_checkpoint_list(const char *run, int64_t **steps) {
    char *folder = mu_format("%s/checkpoints", run);
    int n = 0;
    *steps = NULL;
    DIR *d = opendir(folder);
    int error = errno;
    free(folder);
    if (!d && error != ENOENT && error != ENOTDIR) return errno = error, -1;
    for (struct dirent *f = d ? readdir(d) : NULL; f; f = readdir(d)) {
        int64_t step;
        if (!mu_checkpoint_step(f->d_name, &step)) continue;
        *steps = mu_realloc(*steps, (size_t)n + 1, sizeof **steps);
        int at = n++;
        for (; at > 0 && (*steps)[at - 1] < step; at--) (*steps)[at] = (*steps)[at - 1];
        (*steps)[at] = step;
    }
    if (d) closedir(d);
    return n;
}

/* Is there anything of this name, if only a link that leads nowhere? */
static bool is_taken(const char *path) {
    struct stat st;
    return !lstat(path, &st);
}

mu_status mu_checkpoint_set_aside(const mu_trainer *t, mu_error *e) {
    int64_t *steps = NULL;
    int n = t->mesh->world->rank == 0 ? mu_checkpoint_list(t->cfg.run.dir, &steps) : 0;
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < n && steps[i] > t->step && status == MU_STATUS_OK; i++) {
        char *from = mu_checkpoint_path(t->cfg.run.dir, steps[i]);
        char *to = mu_file_free_name(from, ".aside");
        status = mu_file_rename(from, to, e);
        if (status == MU_STATUS_OK)
            mu_log(
                MU_LOG_WARNING,
                "the checkpoint of step %lld is beyond step %lld, from which this run goes on: renamed to %s",
                (long long)steps[i], (long long)t->step, to);
        free(from);
        free(to);
    }
    free(steps);
    return mu_agree(t->mesh->world, status, e);
}

/* ------------------------------------------------------------------ removing
 * A checkpoint is removed only while nothing is in it that a save does not write: what somebody put there stays, and so does
 * a link. */

/* How many shards are a save's: those of the manifest, and before there is one as many as ranks wrote; 0 when it cannot be
 * read. */
static int shards_in(const char *folder, mu_error *e) {
    char *path = mu_format("%s/manifest.json", folder);
    mu_manifest m = { 0 };
    int n = !is_taken(path) ? INT_MAX : mu_manifest_read(&m, folder, e) == MU_STATUS_OK ? m.n_shards : 0;
    mu_manifest_free(&m);
    free(path);
    return n;
}

static bool is_written_by_save(const char *folder, const char *name, int n_shards) {
    char shard[MU_SHARD_NAME];
    struct stat st;
    char *path = mu_format("%s/%s", folder, name);
    bool plain = !lstat(path, &st) && S_ISREG(st.st_mode);
    int number = strncmp(name, "shard-", 6) ? -1 : atoi(name + 6);
    free(path);
    mu_shard_name(number, shard);
    return plain && (!strcmp(name, "manifest.json") || !strncmp(name, "manifest.json.tmp-", 18) ||
                     (number >= 0 && number < n_shards && !strcmp(name, shard)));
}

/* Why the folder does not hold what a save writes and nothing else; heap, NULL when it does. */
static char *why_not_removed(const char *folder) {
    struct stat st;
    mu_error e = { 0 };
    if (lstat(folder, &st) || !S_ISDIR(st.st_mode)) return mu_format("%s is not a folder", folder);
    int n_shards = shards_in(folder, &e);
    char *why = n_shards ? NULL : mu_strdup(e.text);
    DIR *d = opendir(folder);
    if (!d && !why) why = mu_format("%s: %s", folder, strerror(errno));
    for (struct dirent *f = d ? readdir(d) : NULL; f && !why; f = readdir(d))
        if (strcmp(f->d_name, ".") && strcmp(f->d_name, "..") && !is_written_by_save(folder, f->d_name, n_shards))
            why = mu_format("%s holds %s", folder, f->d_name);
    if (d) closedir(d);
    return why;
}

/* Says once why not: this is asked at every checkpoint. */
static bool may_be_removed(const char *folder) {
    static bool told;
    char *why = why_not_removed(folder);
    bool good = !why;
    if (!good && !told) mu_log(MU_LOG_WARNING, "%s, which is not as muster writes it: it is not removed", why);
    told |= !good;
    free(why);
    return good;
}

/* Removes what a killed save left: step-N.tmp. */
static mu_status remove_unfinished(const char *folder, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    DIR *d = opendir(folder);
    for (struct dirent *f = d ? readdir(d) : NULL; f && status == MU_STATUS_OK; f = readdir(d)) {
        int64_t step;
        size_t n = strlen(f->d_name);
        char *name = mu_format("%.*s", (int)(n > 4 ? n - 4 : 0), f->d_name), *path = mu_format("%s/%s", folder, f->d_name);
        if (n > 4 && !strcmp(f->d_name + n - 4, ".tmp") && mu_checkpoint_step(name, &step) && may_be_removed(path))
            status = mu_file_remove_tree(path, e);
        free(name);
        free(path);
    }
    if (d) closedir(d);
    return status;
}

static mu_status prune(const mu_trainer *t, mu_error *e) {
    const mu_checkpoint_config *cfg = &t->cfg.checkpoint;
    int64_t *steps;
    int n = mu_checkpoint_list(t->cfg.run.dir, &steps);
    mu_status status = MU_STATUS_OK;
    for (int i = (int)cfg->keep; i < n && status == MU_STATUS_OK; i++) {
        if (cfg->keep_every && steps[i] % cfg->keep_every == 0) continue;
        char *from = mu_checkpoint_path(t->cfg.run.dir, steps[i]), *to = mu_format("%s.tmp", from);
        if (may_be_removed(from) && !is_taken(to)) {
            status = mu_file_rename(from, to, e); /* half a removal must not look like damage */
            if (status == MU_STATUS_OK) status = mu_file_remove_tree(to, e);
        }
        free(from);
        free(to);
    }
    free(steps);
    return status;
}

/* Makes step-N.tmp. What is there under that name after remove_unfinished is not a save's, and moves out of the way. */
static mu_status make_unfinished(const char *folder, const char *tmp, mu_error *e) {
    mu_status status = mu_file_make_dirs(folder, e);
    if (status == MU_STATUS_OK) status = remove_unfinished(folder, e);
    if (status == MU_STATUS_OK && is_taken(tmp)) {
        char *to = mu_file_free_name(tmp, ".aside");
        status = mu_file_rename(tmp, to, e);
        if (status == MU_STATUS_OK)
            mu_log(MU_LOG_WARNING, "%s is in the way of a checkpoint and not muster's: renamed to %s", tmp, to);
        free(to);
    }
    return status == MU_STATUS_OK ? mu_file_make_dirs(tmp, e) : status;
}

mu_status mu_checkpoint_save(mu_trainer *t, mu_error *e) {
    mu_comm *world = t->mesh->world;
    char *folder = mu_format("%s/checkpoints", t->cfg.run.dir), *final = mu_checkpoint_path(t->cfg.run.dir, t->step);
    char *tmp = mu_format("%s.tmp", final);
    mu_manifest m = { 0 };
    mu_status status = mu_agree(world, world->rank == 0 ? make_unfinished(folder, tmp, e) : MU_STATUS_OK, e);
    bool made = status == MU_STATUS_OK;
    mu_shard mine = { 0 };
    if (status == MU_STATUS_OK) status = write_shard(t, tmp, &mine, e);
    status = mu_agree(world, status, e);
    if (status == MU_STATUS_OK) {
        m.n_shards = t->mesh->ep;
        m.shards = mu_alloc((size_t)world->size, sizeof *m.shards);
        mu_all_gather(world, &mine, sizeof mine, m.shards);
        collect_names(t, &m);
        if (world->rank == 0) {
            status = commit(t, &m, tmp, final, e);
            if (status == MU_STATUS_OK) status = prune(t, e);
        }
        status = mu_agree(world, status, e);
    }
    if (status != MU_STATUS_OK && made && world->rank == 0 && may_be_removed(tmp)) (void)!mu_file_remove_tree(tmp, NULL);
    mu_manifest_free(&m);
    free(folder);
    free(final);
    free(tmp);
    return status;
}

/* ------------------------------------------------------------------ finding and loading */

/* Manifest, shards and state of one checkpoint; the ranks share the hashing. What the tensors hold is seen when they are
 * loaded: reading it twice would take too long. Collective, agreed. */
static mu_status verify_one(mu_comm *world, const char *path, mu_manifest *m, mu_error *e) {
    mu_status status = mu_agree(world, mu_manifest_read(m, path, e), e);
    if (status == MU_STATUS_OK)
        status = mu_agree(world, mu_manifest_verify(m, world->rank, world->size, e), e);
    if (status == MU_STATUS_OK)
        status = mu_agree(world, world->rank == 0 ? mu_checkpoint_check(m, false, e) : MU_STATUS_OK, e);
    if (status != MU_STATUS_OK) mu_manifest_free(m);
    return status;
}

bool mu_checkpoint_named(const char *path) {
    int64_t step;
    char *manifest = mu_format("%s/manifest.json", path);
    bool one = mu_checkpoint_step(path, &step) || mu_file_exists(manifest);
    free(manifest);
    return one;
}

/* Rank 0 looks, all agree. */
static bool names_one_checkpoint(mu_comm *world, const char *path) {
    bool one = mu_checkpoint_named(path);
    mu_broadcast(world, 0, &one, sizeof one);
    return one;
}

mu_status mu_checkpoint_missing(const char *path, mu_error *e) {
    static const char *const signs[] = { "checkpoints", "config.resolved.yaml", "run.json", "metrics.jsonl" };
    bool run = false;
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) {
        char *name = mu_format("%s/%s", path, signs[i]);
        run |= mu_file_exists(name);
        free(name);
    }
    return mu_error_set(e, MU_STATUS_DATA, run ? "%s is a run without checkpoints" : "%s is neither a run nor a checkpoint",
                        path);
}

/* The steps of a run's checkpoints, newest first, the same on every rank; *steps heap. Collective, agreed. */
static mu_status list_all(mu_comm *world, const char *run, int64_t **steps, int *n, mu_error *e) {
    *steps = NULL;
    *n = world->rank == 0 ? mu_checkpoint_list(run, steps) : 0;
    mu_status status = *n < 0 ? mu_error_set(e, MU_STATUS_IO, "%s/checkpoints cannot be read: %s", run, strerror(errno))
                              : MU_STATUS_OK;
    status = mu_agree(world, status, e);
    if (status != MU_STATUS_OK) *n = 0;
    mu_broadcast(world, 0, n, sizeof *n);
    *steps = mu_realloc(*steps, (size_t)*n, sizeof **steps);
    mu_broadcast(world, 0, *steps, (int64_t)sizeof **steps * *n);
    return status;
}

static void say_passed_over(mu_comm *world, int64_t step, const mu_error *why) {
    if (world->rank == 0)
        mu_log(MU_LOG_WARNING, "checkpoint of step %lld passed over: %-s", (long long)step, why->text);
}

/* Newest checkpoint before step `below` that verifies. *first: what is wrong with the newest of all, if that is known. */
static mu_status find_below(mu_comm *world, const char *run, int64_t below, mu_error *first, mu_manifest *m, bool *found,
                            mu_error *e) {
    int64_t *steps;
    int n;
    mu_error why = { 0 };
    mu_status status = list_all(world, run, &steps, &n, e);
    for (int i = 0; i < n && !*found; i++) {
        if (steps[i] >= below) continue;
        char *one = mu_checkpoint_path(run, steps[i]);
        *found = verify_one(world, one, m, &why) == MU_STATUS_OK;
        if (!*found) say_passed_over(world, steps[i], &why);
        if (!*found && first->status == MU_STATUS_OK) *first = why;
        free(one);
    }
    if (n && !*found)
        status = mu_error_set(e, MU_STATUS_DATA, "%s/checkpoints holds %d checkpoint%s and none verifies; the newest: %-s",
                              run, n, n > 1 ? "s" : "", first->text);
    free(steps);
    return status;
}

mu_status mu_checkpoint_find(mu_comm *world, const char *path, mu_manifest *m, bool *found, mu_error *e) {
    mu_error first = { 0 };
    *found = false;
    if (!names_one_checkpoint(world, path)) return find_below(world, path, INT64_MAX, &first, m, found, e);
    mu_status status = verify_one(world, path, m, e);
    *found = status == MU_STATUS_OK;
    return status;
}

mu_status mu_checkpoint_fall_back(mu_comm *world, const char *path, mu_manifest *m, mu_error *e) {
    mu_error first = *e;
    int64_t step = m->step;
    bool found = false;
    if (names_one_checkpoint(world, path)) return e->status;
    say_passed_over(world, step, &first);
    mu_manifest_free(m);
    return find_below(world, path, step, &first, m, &found, e);
}

static source open_source(mu_trainer *t, const mu_manifest *m) {
    t->step = m->step;
    return (source){ m, mu_alloc((size_t)m->n_shards, sizeof(mu_store *)) };
}

static mu_status close_source(source *from, mu_status status, mu_error *e) {
    for (int i = 0; i < from->m->n_shards; i++) status = mu_store_finish(from->stores[i], status, e);
    free(from->stores);
    return status;
}

mu_status mu_checkpoint_load_state(mu_trainer *t, const mu_manifest *m, mu_error *e) {
    source from = open_source(t, m);
    mu_status status = read_bias(t, &from, e);
    if (status == MU_STATUS_OK) status = read_state(t, &from, e);
    return close_source(&from, status, e);
}

mu_status mu_checkpoint_load(mu_trainer *t, const mu_manifest *m, bool training, mu_error *e) {
    source from = open_source(t, m);
    mu_params *ps = t->model->params;
    mu_status status = mu_tokenizer_check(t->tokenizer, m->path, m->tokenizer, m->tokenizer_fingerprint, e);
    if (status == MU_STATUS_OK) status = read_bias(t, &from, e);
    if (status == MU_STATUS_OK && training) status = read_state(t, &from, e);
    for (mu_unit *u = mu_unit_next(ps, NULL); u && status == MU_STATUS_OK; u = mu_unit_next(ps, u))
        status = read_unit(t, &from, u, training, e);
    if (status == MU_STATUS_OK) mu_params_publish(ps);
    return mu_agree(t->mesh->world, close_source(&from, status, e), e);
}

mu_status mu_checkpoint_open_shape(mu_trainer *t, mu_mesh *mesh, const mu_manifest *m, mu_error *e) {
    t->mesh = mesh;
    mu_status status = mu_config_load_text(&t->cfg, &t->options, m->path, m->config, 0, NULL, e);
    if (status != MU_STATUS_OK) return status;
    status = mu_tokenizer_open(&t->tokenizer, t->cfg.data.tokenizer, e);
    if (status != MU_STATUS_OK) return status;
    t->dev = mu_device_open(strcmp(m->dtype, mu_dtype_name(MU_DTYPE_F64)) ? "shape" : "shape-f64");
    t->model = mu_model_new(&t->cfg.model, &t->cfg.moe, mu_tokenizer_vocab_size(t->tokenizer), 1, t->dev, mesh);
    t->opt = mu_optimizer_new(&mu_rule_adamw, &t->cfg.optim, t->model->params);
    mu_batch_shape shape = { t->cfg.train.global_batch_size, t->cfg.train.seq_len, 1, 0 };
    t->tape = mu_tape_new(t->dev);
    t->loss = mu_loss_new(t->model, t->tape, mesh->batch, &shape);
    return MU_STATUS_OK;
}

mu_status mu_checkpoint_check(const mu_manifest *m, bool tensors, mu_error *e) {
    mu_mesh *mesh = mu_mesh_alone();
    mu_trainer t = { 0 };
    mu_status status = mu_checkpoint_open_shape(&t, mesh, m, e);
    if (status == MU_STATUS_OK) status = tensors ? mu_checkpoint_load(&t, m, true, e) : mu_checkpoint_load_state(&t, m, e);
    mu_trainer_close(&t);
    mu_mesh_close(mesh);
    return status;
}

/* ------------------------------------------------------------------ may it go on? */

void mu_checkpoint_inherit(mu_trainer *t, const mu_manifest *m) {
    mu_config_inherit(&t->cfg, &t->options, &m->cfg);
    t->val_split = m->val_split;
}

/* Texts may move: the same domains, in order, with the same weights. What is in them is the fingerprint's to say. */
static bool same_domains(const mu_option_domains *a, const mu_option_domains *b) {
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++)
        same = !strcmp(a->list[i].domain, b->list[i].domain) && a->list[i].weight == b->list[i].weight;
    return same;
}

/* An option of the checkpoint's and its value now: a line of *notes where they may differ, else a complaint. */
static void compare_option(const mu_option *option, const mu_manifest *m, const mu_config *now, FILE *notes, mu_error *e) {
    char *was = mu_option_text(option, &m->cfg), *is = mu_option_text(option, now);
    bool moved = option->type == MU_OPTION_DOMAINS && same_domains(&m->cfg.data.train, &now->data.train);
    if (strcmp(was, is) && !(option->use & MU_ON_RESUME) && !moved) {
        if (e->status == MU_STATUS_OK)
            mu_error_set(e, MU_STATUS_CONFIG, "this configuration cannot go on from %s; put these back, or choose another run.dir:",
                         m->path);
        mu_error_add(e, MU_STATUS_CONFIG, "  %s.%s was %s and is now %s", option->section, option->key, was, is);
    } else if (strcmp(was, is) && strcmp(option->key, "dir"))
        fprintf(notes, "  %s.%s: %s -> %s%s\n", option->section, option->key, was, is, moved ? " (the same texts)" : "");
    free(was);
    free(is);
}

mu_status mu_checkpoint_compare(const mu_trainer *t, const mu_manifest *m, char **notes, mu_error *e) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    mu_error_set(e, MU_STATUS_OK, "%s", "");
    int n;
    const mu_option *table = mu_config_table(&n);
    for (int i = 0; i < n; i++) compare_option(&table[i], m, &t->cfg, out, e);
    if (e->status == MU_STATUS_OK && strcmp(m->fingerprint, t->corpus.fingerprint)) {
        mu_error_set(e, MU_STATUS_CONFIG, "the texts are not those of %s: fingerprint %s then, %s now",
                     m->path, m->fingerprint, t->corpus.fingerprint);
        mu_run_name_changes(t, m, e);
    }
    fclose(out);
    if (notes) *notes = text;
    else free(text);
    return e->status;
}
