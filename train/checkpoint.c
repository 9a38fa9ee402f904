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
 *     /state/...              step, seed, loader, roll call      (in shard 0) */
#include "train/train.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static mu_store_type type_of(const mu_trainer *t) {
    return t->dev->fine == MU_DTYPE_F64 ? MU_STORE_F64 : MU_STORE_F32;
}
static bool is_writer(const mu_trainer *t) { return t->mesh->world->rank < t->mesh->ep; }

/* Which units this rank writes: its experts, and on rank 0 everything shared. */
static bool writes(const mu_trainer *t, const mu_unit *u) {
    return u->expert >= 0 || t->mesh->world->rank == 0;
}

static int unit_shape(const mu_unit *u, int64_t shape[2]) {
    for (int i = 0; i < u->param->desc.n_dims; i++) shape[i] = u->param->desc.shape[i];
    return u->param->desc.n_dims;
}

/* ------------------------------------------------------------------ the state beside the tensors */

/* Everything small, in one list, so that writing and reading cannot disagree. */
typedef struct {
    char name[112];
    mu_store_type type;
    int n_dims;
    int64_t shape[3];
    void *data;
} state_item;

static int list_state(mu_trainer *t, int64_t *loader, int64_t *seed, state_item *items) {
    int64_t L = t->roll.layers, E = t->roll.experts;
    int n = 0;
    items[n++] = (state_item){ "/state/step", MU_STORE_I64, 1, { 1 }, &t->step };
    items[n++] = (state_item){ "/state/seed", MU_STORE_I64, 1, { 1 }, seed };
    items[n++] = (state_item){
        "/state/loader", MU_STORE_I64, 1, { mu_loader_state_size(t->loader) }, loader
    };
    items[n++] = (state_item){ "/state/roll/steps", MU_STORE_I64, 1, { 1 }, &t->roll.steps };
    items[n++] = (state_item){ "/state/roll/ring", MU_STORE_I64, 3, { MU_ROLL_WINDOW, L, E }, t->roll.ring };
    items[n++] = (state_item){ "/state/roll/total", MU_STORE_I64, 2, { L, E }, t->roll.total };
    items[n++] = (state_item){ "/state/roll/previous", MU_STORE_I64, 2, { L, E }, t->roll.previous };
    return n;
}
enum { STATE_ITEMS = 7 };

static state_item bias_item(const mu_trainer *t, int moe_layer) {
    const mu_moe *m = &t->model->blocks[t->model->moe_layers[moe_layer]].moe;
    state_item item = { .type = MU_STORE_F64, .n_dims = 1, .shape = { m->E }, .data = m->bias };
    snprintf(item.name, sizeof item.name, "/layers/%d/mlp/gate/e_score_correction_bias", m->layer);
    return item;
}

static mu_status write_item(mu_store *s, const state_item *i, mu_error *e) {
    return mu_store_write(s, i->name, i->type, i->n_dims, i->shape, i->data, e);
}
static mu_status read_item(mu_store *s, const state_item *i, mu_error *e) {
    return mu_store_read(s, i->name, i->type, i->n_dims, i->shape, i->data, e);
}

static mu_status write_state(mu_trainer *t, mu_store *s, mu_error *e) {
    int64_t seed = t->cfg.run.seed,
            *loader = mu_alloc((size_t)mu_loader_state_size(t->loader), sizeof *loader);
    mu_loader_state_get(t->loader, loader);
    state_item items[STATE_ITEMS];
    int n = list_state(t, loader, &seed, items);
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < n && status == MU_STATUS_OK; i++) status = write_item(s, &items[i], e);
    for (int i = 0; i < t->model->n_moe && status == MU_STATUS_OK; i++) {
        state_item bias = bias_item(t, i);
        status = write_item(s, &bias, e);
    }
    free(loader);
    return status;
}

/* Without expert_bias all are 0, and stay so in the next checkpoint: switched on again, it starts anew. */
static mu_status read_bias(mu_trainer *t, mu_store *s, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < t->model->n_moe && status == MU_STATUS_OK; i++) {
        state_item bias = bias_item(t, i);
        status = read_item(s, &bias, e);
        if (!(t->cfg.moe.balance & MU_BALANCE_BIAS)) memset(bias.data, 0, sizeof(double) * (size_t)bias.shape[0]);
    }
    return status;
}

static mu_status read_state(mu_trainer *t, mu_store *s, mu_error *e) {
    int64_t seed = 0, *loader = mu_alloc((size_t)mu_loader_state_size(t->loader), sizeof *loader);
    state_item items[STATE_ITEMS];
    int n = list_state(t, loader, &seed, items);
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < n && status == MU_STATUS_OK; i++) status = read_item(s, &items[i], e);
    if (status == MU_STATUS_OK) status = mu_loader_state_set(t->loader, loader, e);
    free(loader);
    return status;
}

/* ------------------------------------------------------------------ tensors */

static char *moment_name(const char *which, const mu_unit *u) {
    return mu_format("/optim/%s%s", which, u->name);
}

static mu_status write_values(const mu_trainer *t, mu_store *s, const char *name, const mu_unit *u,
                              const void *host, mu_error *e) {
    int64_t shape[2];
    int n_dims = unit_shape(u, shape);
    return mu_store_write(s, name, type_of(t), n_dims, shape, host, e);
}

static mu_status read_values(mu_trainer *t, mu_store *s, const char *name, const mu_unit *u, void *data,
                             mu_error *e) {
    int64_t shape[2];
    int n_dims = unit_shape(u, shape);
    size_t bytes = (size_t)u->count * mu_dtype_size(t->dev->fine);
    void *host = mu_alloc(bytes, 1);
    mu_status status = mu_store_read(s, name, type_of(t), n_dims, shape, host, e);
    if (status == MU_STATUS_OK) mu_device_write(t->dev, data, host, bytes);
    free(host);
    return status;
}

/* A rank that writes no shard has s == NULL and only hands over the moments it owns; so does one whose writing
 * has failed: the others are waiting for it. Collective over the unit's group, agreed by nobody. */
static mu_status write_unit(mu_trainer *t, mu_store *s, const mu_unit *u, mu_status status, mu_error *e) {
    bool mine = s && writes(t, u);
    mu_activity_set("writing a checkpoint", u->param->desc.layer, NULL);
    void *host = mu_alloc((size_t)u->count, mu_dtype_size(t->dev->fine));
    if (mine && status == MU_STATUS_OK) {
        mu_device_read(t->dev, host, mu_unit_data(u), (size_t)u->count * mu_dtype_size(t->dev->fine));
        status = write_values(t, s, u->name, u, host, e);
    }
    for (int which = 0; which < 2; which++) {
        char *name = moment_name(which ? "v" : "m", u);
        mu_adamw_moment_read(t->opt, u, which, host);
        if (mine && status == MU_STATUS_OK) status = write_values(t, s, name, u, host, e);
        free(name);
    }
    free(host);
    if (!mine || status != MU_STATUS_OK) return status;
    char *name = moment_name("steps", u);
    int64_t steps = mu_adamw_steps(t->opt, u);
    status = mu_store_write(s, name, MU_STORE_I64, 1, (int64_t[]){ 1 }, &steps, e);
    free(name);
    return status;
}

static mu_status read_unit(mu_trainer *t, mu_store *s, mu_unit *u, bool training, mu_error *e) {
    mu_activity_set("loading a checkpoint", u->param->desc.layer, NULL);
    mu_status status = read_values(t, s, u->name, u, mu_unit_data(u), e);
    if (!training) return status;
    for (int which = 0; which < 2 && status == MU_STATUS_OK && mu_adamw_owns(t->opt, u); which++) {
        char *name = moment_name(which ? "v" : "m", u);
        status = read_values(t, s, name, u, mu_adamw_moment(t->opt, u, which), e);
        free(name);
    }
    if (status != MU_STATUS_OK) return status;
    char *name = moment_name("steps", u);
    int64_t steps;
    status = mu_store_read(s, name, MU_STORE_I64, 1, (int64_t[]){ 1 }, &steps, e);
    if (status == MU_STATUS_OK) mu_adamw_steps_set(t->opt, u, steps);
    free(name);
    return status;
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
    snprintf(shard->name, sizeof shard->name, "shard-%04d.h5", t->mesh->world->rank);
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
        long long step;
        char rest;
        if (sscanf(f->d_name, "step-%lld%c", &step, &rest) != 1) continue;
        *steps = mu_realloc(*steps, (size_t)n + 1, sizeof **steps);
        int at = n++;
        for (; at > 0 && (*steps)[at - 1] < step; at--) (*steps)[at] = (*steps)[at - 1];
        (*steps)[at] = step;
    }
    if (d) closedir(d);
    return n;
}

/* step-N.aside, or the next such name that is free: nothing that was committed is ever removed here. */
static char *aside_name(const char *from) {
    char *to = mu_format("%s.aside", from);
    for (int n = 2; mu_file_exists(to); n++) {
        free(to);
        to = mu_format("%s.aside-%d", from, n);
    }
    return to;
}

mu_status mu_checkpoint_set_aside(const mu_trainer *t, mu_error *e) {
    int64_t *steps = NULL;
    int n = t->mesh->world->rank == 0 ? mu_checkpoint_list(t->cfg.run.dir, &steps) : 0;
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < n && steps[i] > t->step && status == MU_STATUS_OK; i++) {
        char *from = mu_format("%s/checkpoints/step-%08lld", t->cfg.run.dir, (long long)steps[i]);
        char *to = aside_name(from);
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

/* Removes what a killed save left, and nothing else. */
static mu_status remove_unfinished(const char *folder, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    DIR *d = opendir(folder);
    for (struct dirent *f = d ? readdir(d) : NULL; f && status == MU_STATUS_OK; f = readdir(d)) {
        size_t n = strlen(f->d_name);
        if (strncmp(f->d_name, "step-", 5) || n < 4 || strcmp(f->d_name + n - 4, ".tmp")) continue;
        char *path = mu_format("%s/%s", folder, f->d_name);
        status = mu_file_remove_tree(path, e);
        free(path);
    }
    if (d) closedir(d);
    return status;
}

static mu_status prune(const mu_trainer *t, const char *folder, mu_error *e) {
    const mu_checkpoint_config *cfg = &t->cfg.checkpoint;
    int64_t *steps;
    int n = mu_checkpoint_list(t->cfg.run.dir, &steps);
    mu_status status = MU_STATUS_OK;
    for (int i = (int)cfg->keep; i < n && status == MU_STATUS_OK; i++) {
        if (cfg->keep_every && steps[i] % cfg->keep_every == 0) continue;
        char *from = mu_format("%s/step-%08lld", folder, (long long)steps[i]),
             *to = mu_format("%s.tmp", from);
        status = mu_file_rename(from, to, e); /* half a removal must not look like damage */
        if (status == MU_STATUS_OK) status = mu_file_remove_tree(to, e);
        free(from);
        free(to);
    }
    free(steps);
    return status;
}

mu_status mu_checkpoint_save(mu_trainer *t, mu_error *e) {
    mu_comm *world = t->mesh->world;
    char *folder = mu_format("%s/checkpoints", t->cfg.run.dir),
         *final = mu_format("%s/step-%08lld", folder, (long long)t->step);
    char *tmp = mu_format("%s.tmp", final);
    mu_manifest m = { 0 };
    mu_status status = MU_STATUS_OK;
    if (world->rank == 0) {
        status = mu_file_make_dirs(folder, e);
        if (status == MU_STATUS_OK) status = remove_unfinished(folder, e);
        if (status == MU_STATUS_OK) status = mu_file_make_dirs(tmp, e);
    }
    status = mu_agree(world, status, e);
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
            if (status == MU_STATUS_OK) status = prune(t, folder, e);
        }
        status = mu_agree(world, status, e);
    }
    if (status != MU_STATUS_OK && world->rank == 0) (void)!mu_file_remove_tree(tmp, NULL);
    mu_manifest_free(&m);
    free(folder);
    free(final);
    free(tmp);
    return status;
}

/* ------------------------------------------------------------------ finding and loading */

/* Manifest and shards of one checkpoint; the ranks share the hashing. Collective, agreed. */
static mu_status verify_one(mu_comm *world, const char *path, mu_manifest *m, mu_error *e) {
    mu_status status = mu_agree(world, mu_manifest_read(m, path, e), e);
    if (status == MU_STATUS_OK)
        status = mu_agree(world, mu_manifest_verify(m, world->rank, world->size, e), e);
    if (status != MU_STATUS_OK) mu_manifest_free(m);
    return status;
}

static bool names_one_checkpoint(const char *path) {
    char *manifest = mu_format("%s/manifest.json", path), *copy = mu_strdup(path);
    size_t n = strlen(copy);
    while (n > 1 && copy[n - 1] == '/') copy[--n] = '\0';
    const char *last = strrchr(copy, '/');
    bool one = mu_file_exists(manifest) || !strncmp(last ? last + 1 : copy, "step-", 5);
    free(manifest);
    free(copy);
    return one;
}

mu_status mu_checkpoint_find(mu_comm *world, const char *path, mu_manifest *m, bool *found, mu_error *e) {
    *found = false;
    if (names_one_checkpoint(path)) {
        mu_status status = verify_one(world, path, m, e);
        *found = status == MU_STATUS_OK;
        return status;
    }
    char *folder = mu_format("%s/checkpoints", path);
    int64_t *steps = NULL;
    int n = world->rank == 0 ? mu_checkpoint_list(path, &steps) : 0;
    mu_status status = n < 0 ? mu_error_set(e, MU_STATUS_IO, "%s cannot be read: %s", folder, strerror(errno))
                             : MU_STATUS_OK;
    status = mu_agree(world, status, e);
    mu_broadcast(world, 0, &n, sizeof n);
    n = n > 0 ? n : 0;
    steps = mu_realloc(steps, (size_t)n, sizeof *steps);
    mu_broadcast(world, 0, steps, (int64_t)sizeof *steps * n);
    mu_error first = { 0 }, why = { 0 };
    for (int i = 0; i < n && !*found; i++) {
        char *one = mu_format("%s/step-%08lld", folder, (long long)steps[i]);
        status = verify_one(world, one, m, &why);
        *found = status == MU_STATUS_OK;
        if (!*found && world->rank == 0)
            mu_log(MU_LOG_WARNING, "checkpoint of step %lld passed over: %s", (long long)steps[i], why.text);
        if (!*found && first.status == MU_STATUS_OK) first = why;
        free(one);
    }
    if (n && !*found)
        status = mu_error_set(e, MU_STATUS_DATA, "%s holds %d checkpoint%s and none verifies; the newest: %s",
                              folder, n, n > 1 ? "s" : "", first.text);
    free(steps);
    free(folder);
    return status;
}

static mu_status open_shard(const mu_manifest *m, mu_store **stores, int i, mu_error *e) {
    if (stores[i]) return MU_STATUS_OK;
    char *path = mu_format("%s/%s", m->path, m->shards[i].name);
    mu_status status = mu_store_open(&stores[i], path, e);
    free(path);
    return status;
}

static mu_status read_tensors(mu_trainer *t, const mu_manifest *m, mu_store **stores, bool training,
                              mu_error *e) {
    mu_params *ps = t->model->params;
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
        int shard = mu_manifest_find(m, u->name);
        if (shard < 0) return mu_error_set(e, MU_STATUS_DATA, "%s holds no tensor %s", m->path, u->name);
        mu_status status = open_shard(m, stores, shard, e);
        if (status == MU_STATUS_OK) status = read_unit(t, stores[shard], u, training, e);
        if (status != MU_STATUS_OK) return status;
    }
    mu_params_publish(ps);
    return MU_STATUS_OK;
}

mu_status mu_checkpoint_load(mu_trainer *t, const mu_manifest *m, bool training, mu_error *e) {
    mu_store **stores = mu_alloc((size_t)m->n_shards, sizeof(mu_store *));
    mu_status status = MU_STATUS_OK;
    if (strcmp(m->tokenizer, mu_tokenizer_name(t->tokenizer)))
        status = mu_error_set(e, MU_STATUS_DATA, "%s was made with the tokenizer '%s', not with '%s'",
                              m->path, m->tokenizer, mu_tokenizer_name(t->tokenizer));
    if (status == MU_STATUS_OK) status = read_tensors(t, m, stores, training, e);
    if (status == MU_STATUS_OK) status = open_shard(m, stores, 0, e);
    if (status == MU_STATUS_OK) status = read_bias(t, stores[0], e);
    if (status == MU_STATUS_OK && training) status = read_state(t, stores[0], e);
    if (status == MU_STATUS_OK) t->step = m->step;
    for (int i = 0; i < m->n_shards; i++)
        status = mu_store_finish(stores[i], status, e);
    free(stores);
    return mu_agree(t->mesh->world, status, e);
}

/* ------------------------------------------------------------------ may it go on? */

mu_status mu_checkpoint_inherit(mu_trainer *t, const mu_manifest *m, mu_error *e) {
    mu_config old;
    mu_options options;
    mu_status status = mu_config_load_text(&old, &options, m->path, m->config, 0, NULL, e);
    if (status == MU_STATUS_OK) mu_config_inherit(&t->cfg, &t->options, &old);
    t->val_split = m->val_split;
    mu_config_free(&old, &options);
    return status;
}

/* Texts may move: the same domains, in order, with the same weights. What is in them is the fingerprint's to say. */
static bool same_domains(const mu_option_domains *a, const mu_option_domains *b) {
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++)
        same = !strcmp(a->list[i].domain, b->list[i].domain) && a->list[i].weight == b->list[i].weight;
    return same;
}

mu_status mu_checkpoint_compare(const mu_trainer *t, const mu_manifest *m, char **notes, mu_error *e) {
    mu_config old;
    mu_options options;
    mu_status status = mu_config_load_text(&old, &options, m->path, m->config, 0, NULL, e);
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    if (status == MU_STATUS_OK) {
        mu_error_set(e, MU_STATUS_OK, "%s", "");
        int n;
        const mu_option *table = mu_config_table(&n);
        for (int i = 0; i < n; i++) {
            char *was = mu_option_text(&table[i], &old), *is = mu_option_text(&table[i], &t->cfg);
            if (strcmp(was, is) && !(table[i].use & MU_ON_RESUME) &&
                !(table[i].type == MU_OPTION_DOMAINS && same_domains(&old.data.train, &t->cfg.data.train))) {
                if (e->status == MU_STATUS_OK)
                    mu_error_set(
                        e, MU_STATUS_CONFIG,
                        "this configuration cannot go on from %s; put these back, or choose another run.dir:",
                        m->path);
                mu_error_add(e, MU_STATUS_CONFIG, "  %s.%s was %s and is now %s", table[i].section,
                             table[i].key, was, is);
            } else if (strcmp(was, is) && strcmp(table[i].key, "dir"))
                fprintf(out, "  %s.%s: %s -> %s\n", table[i].section, table[i].key, was, is);
            free(was);
            free(is);
        }
        if (e->status == MU_STATUS_OK && strcmp(m->fingerprint, t->corpus.fingerprint))
            mu_error_set(e, MU_STATUS_CONFIG, "the texts are not those of %s: fingerprint %s then, %s now",
                         m->path, m->fingerprint, t->corpus.fingerprint);
        status = e->status;
    }
    fclose(out);
    mu_config_free(&old, &options);
    if (notes) *notes = text;
    else free(text);
    return status;
}
