/* checkpoint.c - saving and loading the state of a run; a kill at any moment leaves the last good checkpoint.
 *
 * A save writes  step-N.tmp/shard-0000.h5 ...  (one file per writing rank, mu_mesh_writes_experts; the first also holds
 * everything shared),  closes and syncs them,  writes
 * manifest.json with sizes and hashes,  syncs,  renames step-N.tmp to step-N  and syncs the parent. Only renamed
 * folders count. A checkpoint does not depend on how many ranks wrote it: tensors are found by name.
 *
 *     /<name>                 weights of a parameter, or of a single expert, whole
 *     /optim/<slot>/<name>    state of the optimizer      /optim/steps/<name>   number of its updates
 *     /layers/L/mlp/gate/e_score_correction_bias                 selection bias
 *     /state/...              step, seed, loader, expert statistics      (in shard 0) */
#include "train/train.h"

#include <dirent.h>
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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
    return *step >= 0 && !strcmp(name, given); /* exactly this form: not step-40, not step-+5 */
}

/* Which units a writing rank writes: its experts, and the first one everything shared. */
static bool writes(const mu_train_state *t, const mu_unit *u) { return u->expert >= 0 || mu_mesh_writes_shared(t->mesh); }

int64_t mu_tokens_seen(const mu_config *cfg, const mu_parent *p, int64_t step) {
    return p->tokens + (step - p->step) * cfg->train.global_batch_size * cfg->train.seq_len;
}

/* ------------------------------------------------------------------ the list of state
 * Every module lists its own state (mu_state in base.h). Here are the modules, and the state of the run itself. */

/* Assignments per layer and step, over all experts. */
static int64_t assignments_of(const mu_config *cfg) {
    return cfg->train.global_batch_size * cfg->train.seq_len * cfg->moe.top_k;
}

static void visit_number(mu_state_visitor *v, const char *name, int64_t value) {
    mu_state s = { .type = MU_STORE_I64, .n_dims = 1, .shape = { 1 }, .data = &value, .min = value, .max = value,
                   .for_training = true };
    snprintf(s.name, sizeof s.name, "%s", name);
    v->visit(v, &s);
}

void mu_train_state_freeze(mu_train_state *t) {
    const mu_expert_health *h = &t->stats->health;
    for (int i = 0; i < t->model->n_moe; i++) {
        const mu_moe *m = &t->model->blocks[t->model->moe_layers[i]].moe;
        mu_param *const parts[] = { m->gate_eFD, m->up_eFD, m->down_eDF };
        for (int k = 0; k < 3; k++)
            for (int n = 0; n < parts[k]->n_units; n++) {
                mu_unit *u = &parts[k]->units[n];
                if (h->frozen[(int64_t)i * h->experts + u->expert] == MU_FROZEN_NOW && !u->frozen) mu_unit_freeze(u, true);
            }
    }
}

/* The active steps of each expert in the load window bound the step counts of the optimizer; but not of one whose weights were replaced, or
 * did not change for a time; carriers may have been frozen while they were dormant. */
static void visit_optimizer(mu_train_state *t, mu_state_visitor *v) {
    const mu_load_window *w = &t->stats->window;
    const mu_expert_health *h = &t->stats->health;
    int64_t n = (int64_t)w->layers * w->experts, *active = mu_alloc(2 * (size_t)n + 1, sizeof *active), *idle = active + n;
    for (int64_t i = 0; i < n; i++) {
        active[i] = mu_load_window_active_steps(w, (int)(i / w->experts), (int)(i % w->experts));
        idle[i] = w->held - active[i];
        if (h->reseeded[i] || h->frozen[i] || h->carried[i]) active[i] = 0;
    }
    mu_train_state_freeze(t);
    mu_optimizer_state(t->opt, &(mu_step_bounds){ t->step, active, idle }, v);
    free(active);
}

/* Visits all state of a run. `cfg`: the configuration that produced the values. The order matters: values of earlier
 * entries bound those of later ones. */
static void visit_all(mu_train_state *t, const mu_config *cfg, mu_state_visitor *v) {
    /* A step moves each bias by at most bias_update_rate, and as much again when their mean is subtracted. The rate may have been larger
     * earlier, so its maximum counts here. Biases of quantile_balancing lie in [-1, 1]. Biases that came with the first weights may have any finite
     * value. */
    double bias_most = !(cfg->moe.balance & MU_BALANCE_SELECTION) ? 0 : t->origin.path[0] ? DBL_MAX : 2.002 * MU_BIAS_RATE_MAX * (double)t->step;
    visit_number(v, "/state/step", t->step);
    visit_number(v, "/state/seed", cfg->run.seed);
    int64_t batch = cfg->train.global_batch_size, before = t->parent.step;
    mu_mixture mix = { &cfg->data.train, &cfg->data.phases, batch, before, cfg->protect.upsample };
    mu_loader_state(t->loader, &mix, (t->step - before) * batch, v);
    if (t->stats) mu_routing_stats_state(t->stats, t->step, assignments_of(cfg), cfg->stats.window, cfg->data.train.n, v);
    if (t->stats) mu_expert_health_state(&t->stats->health, &cfg->data.train, t->knowledge->domains, t->knowledge->names, t->step, v);
    if (t->knowledge) mu_knowledge_state(t->knowledge, &cfg->data.train, t->step, v);
    mu_model_state(t->model, bias_most, v);
    if (t->opt) visit_optimizer(t, v);
    if (t->anchor) mu_anchor_state(t->anchor, &cfg->data.train, v);
}

/* Scratch memory for the values of one array. */
typedef struct {
    void *memory;
    int64_t bytes;
} scratch;

static void *scratch_for(scratch *r, const mu_state *s) {
    int64_t bytes = mu_state_count(s) * (int64_t)mu_store_type_size(s->type);
    if (bytes > r->bytes) r->memory = mu_realloc(r->memory, (size_t)bytes, 1), r->bytes = bytes;
    return r->memory;
}

/* ------------------------------------------------------------------ loading */

typedef struct {
    mu_state_visitor v;
    const mu_manifest *m;
    bool training, tensors;     /* training: also what only training needs. tensors: also weights and optimizer state */
    mu_store **stores;          /* [n_shards], each opened when it is first needed */
    scratch scratch;
    mu_status status;
    mu_error *e;
} reader;

static bool is_wanted(const reader *r, const mu_state *s) {
    return mu_state_is_in(s, r->m->version) && !s->elsewhere && (r->training || !s->for_training) && (r->tensors || !s->tensor);
}

/* Resume and verify both reject a checkpoint with values out of range or inconsistent with others. */
static mu_status load_array(reader *r, int shard, const mu_state *s) {
    char *path = mu_format("%s/%s", r->m->path, r->m->shards[shard].name);
    void *host = s->data ? s->data : scratch_for(&r->scratch, s);
    mu_error why;
    mu_status status = r->stores[shard] ? MU_STATUS_OK : mu_store_open(&r->stores[shard], path, r->e);
    if (status == MU_STATUS_OK) status = mu_store_read(r->stores[shard], s->name, s->type, s->n_dims, s->shape, host, r->e);
    if (status == MU_STATUS_OK) status = mu_state_check(s, host, path, r->e);
    if (status == MU_STATUS_OK && s->set && s->set(s, host, &why) != MU_STATUS_OK)
        status = mu_error_set(r->e, why.status, "%s: %-s", path, why.text);
    free(path);
    return status;
}

static void load_one(mu_state_visitor *v, const mu_state *s) {
    reader *r = (reader *)v;
    if (r->status != MU_STATUS_OK || !is_wanted(r, s)) return;
    mu_activity_set("loading a checkpoint", -1, NULL);
    int shard = s->tensor ? mu_manifest_find(r->m, s->tensor) : 0;
    r->status = shard < 0 ? mu_error_set(r->e, MU_STATUS_DATA, "%s/manifest.json names no tensor %s", r->m->path, s->tensor)
                          : load_array(r, shard, s);
}

/* Local; the caller agrees on the status. */
static mu_status load_state(mu_train_state *t, const mu_manifest *m, bool training, bool tensors, mu_error *e) {
    reader r = { { load_one }, m, training, tensors, mu_alloc((size_t)m->n_shards, sizeof(mu_store *)), { 0 }, MU_STATUS_OK, e };
    t->step = m->step, t->parent = m->parent, t->ancestors = m->ancestors, t->origin = m->origin, t->edits = m->edits;
    if (t->anchor && m->anchored) mu_anchor_prepare(t->anchor);
    visit_all(t, &m->cfg, &r.v);
    if (r.status == MU_STATUS_OK && tensors) mu_params_refresh(t->model->params);
    for (int i = 0; i < m->n_shards; i++) r.status = mu_store_finish(r.stores[i], r.status, e);
    free(r.scratch.memory);
    free(r.stores);
    return r.status;
}

/* ------------------------------------------------------------------ saving */

static mu_status fault_status(const mu_train_state *t, const char *point, mu_error *e) {
    return mu_fault(point, t->mesh->world->rank)
               ? mu_error_set(e, MU_STATUS_IO, "%s: no space left on device (injected by a test)", point)
               : MU_STATUS_OK;
}

typedef struct {
    mu_state_visitor v;
    mu_train_state *t;
    mu_store *s;                /* NULL on a rank that writes no shard: it only contributes its part to collectives */
    scratch scratch;
    int written;                /* arrays of tensors */
    mu_status status;           /* the visit continues after a failure: other ranks wait in collectives */
    mu_error *e;
} writer;

static void save_one(mu_state_visitor *v, const mu_state *s) {
    writer *w = (writer *)v;
    MU_CHECK(s->since <= MU_CHECKPOINT_VERSION, "%s is state since format version %d; checkpoints are of version %d: raise"
             " MU_CHECKPOINT_VERSION in train/train.h", s->name, s->since, MU_CHECKPOINT_VERSION);
    bool mine = w->s && w->status == MU_STATUS_OK && (s->sharded || mu_mesh_writes_shared(w->t->mesh));
    if (s->until || !(mine || s->collective)) return;
    mu_activity_set("writing a checkpoint", -1, NULL);
    void *host = s->data ? s->data : scratch_for(&w->scratch, s);
    if (s->get) s->get(s, host);
    if (!mine) return;
    w->status = mu_store_write(w->s, s->name, s->type, s->n_dims, s->shape, host, w->e);
    if (w->status == MU_STATUS_OK && s->tensor && w->written++ == 2) w->status = fault_status(w->t, "mid-shard", w->e);
}

/* Collective: every rank calls it, whatever its status and whether or not it writes a shard. */
static mu_status write_arrays(mu_train_state *t, const mu_config *cfg, mu_store *s, mu_status status, mu_error *e) {
    writer w = { { save_one }, t, s, { 0 }, 0, status, e };
    visit_all(t, cfg, &w.v);
    free(w.scratch.memory);
    return w.status;
}

/* This rank's shard, if it writes one, closed and synced, its size and hash in *shard. Collective. */
static mu_status write_shard(mu_train_state *t, const mu_config *cfg, const char *folder, mu_shard *shard, mu_error *e) {
    if (!mu_mesh_writes_experts(t->mesh)) return write_arrays(t, cfg, NULL, MU_STATUS_OK, e);
    mu_shard_name(t->mesh->expert->rank, shard->name);
    char *path = mu_format("%s/%s", folder, shard->name);
    mu_store *s = NULL;
    mu_status status = fault_status(t, "open", e);
    if (status == MU_STATUS_OK) status = mu_store_create(&s, path, e);
    status = write_arrays(t, cfg, s, status, e);
    if (status == MU_STATUS_OK) status = fault_status(t, "before-close", e);
    status = mu_store_finish(s, status, e);
    if (status == MU_STATUS_OK) status = fault_status(t, "after-close", e);
    if (status == MU_STATUS_OK) status = mu_file_hash(path, shard->hash, &shard->bytes, e);
    free(path);
    return status;
}

/* Collects the names that each writing rank wrote on the first, which fills m->tensors. Collective over the expert group of the writing
 * ranks. */
static void collect_names(mu_train_state *t, mu_manifest *m) {
    mu_comm *writers = t->mesh->expert;
    bool first = mu_mesh_writes_shared(t->mesh);
    mu_params *ps = t->model->params;
    size_t size = sizeof m->tensors[0].name;
    int64_t mine = 0, *counts = mu_alloc((size_t)writers->size, sizeof *counts);
    char *names = mu_alloc((size_t)ps->n_global_units + 1, size);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        if (writes(t, u)) memcpy(names + size * (size_t)mine++, u->name, size);
    mu_all_gather(writers, &mine, sizeof mine, counts);
    int64_t *send = mu_alloc((size_t)writers->size, sizeof *send),
            *recv = mu_alloc((size_t)writers->size, sizeof *recv), total = 0;
    send[0] = mine * (int64_t)size;
    for (int p = 0; p < writers->size; p++)
        recv[p] = first ? counts[p] * (int64_t)size : 0, total += counts[p];
    char *all = mu_alloc((size_t)total + 1, size);
    mu_exchange(writers, names, send, all, recv);
    if (first) {
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

static void name_domains(mu_manifest *m, const mu_corpus *c) {
    m->n_domains = c->n_domains;
    m->domains = mu_alloc((size_t)c->n_domains, sizeof *m->domains);
    for (int i = 0; i < c->n_domains; i++) {
        const mu_domain *d = &c->domains[i];
        snprintf(m->domains[i].name, sizeof m->domains[i].name, "%s", d->name);
        snprintf(m->domains[i].fingerprint, sizeof m->domains[i].fingerprint, "%s", d->fingerprint);
        m->domains[i].tokens = d->n_tokens;
    }
}

static mu_status commit(const mu_train_state *t, const mu_config *cfg, const mu_texts *texts, mu_manifest *m, const char *tmp,
                        const char *final, mu_error *e) {
    m->step = t->step, m->ranks = t->mesh->batch->size, m->ep = t->mesh->ep;
    snprintf(m->dtype, sizeof m->dtype, "%s", mu_dtype_name(t->model->params->dev->master));
    snprintf(m->tokenizer, sizeof m->tokenizer, "%s", mu_tokenizer_name(texts->tokenizer));
    snprintf(m->tokenizer_fingerprint, sizeof m->tokenizer_fingerprint, "%s", mu_tokenizer_fingerprint(texts->tokenizer));
    snprintf(m->fingerprint, sizeof m->fingerprint, "%s", texts->corpus.fingerprint);
    m->vocab_size = t->model->vocab_size, m->val_split = texts->val_split, m->parent = t->parent, m->ancestors = t->ancestors, m->origin = t->origin, m->edits = t->edits;
    m->order_in_memory = mu_loader_is_order_in_memory(texts->loader), m->anchored = t->anchor && t->anchor->set;
    name_domains(m, &texts->corpus);
    m->config = mu_options_dump(&cfg->options, cfg);
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

/* Does the path exist, even as a dangling link? */
static bool is_taken(const char *path) {
    struct stat st;
    return !lstat(path, &st);
}

mu_status mu_checkpoint_set_aside(mu_comm *batch, const char *run, int64_t step, mu_error *e) {
    int64_t *steps = NULL;
    int n = batch->rank == 0 ? mu_checkpoint_list(run, &steps) : 0;
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < n && steps[i] > step && status == MU_STATUS_OK; i++) {
        char *from = mu_checkpoint_path(run, steps[i]);
        char *to;
        status = mu_file_set_aside(from, &to, e);
        if (status == MU_STATUS_OK)
            mu_log(MU_LOG_WARNING, "checkpoint of step %lld is newer than resume step %lld, moved aside to %s", (long long)steps[i],
                   (long long)step, to);
        free(from);
        free(to);
    }
    free(steps);
    return mu_agree(batch, status, e);
}

/* ------------------------------------------------------------------ removing
 * A checkpoint is removed only if it holds nothing but files of a save; one with other files stays, and so does
 * a link. */

/* Number of shards: that of the manifest; INT_MAX (any) while there is no manifest; 0 when it cannot be
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

/* Why the folder is not exactly what a save writes; heap, NULL when it is. */
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
            why = mu_format("%s contains %s", folder, f->d_name);
    if (d) closedir(d);
    return why;
}

/* Warns once: this is called at every checkpoint. */
static bool may_be_removed(const char *folder) {
    static bool warned;
    char *why = why_not_removed(folder);
    bool good = !why;
    if (!good && !warned) mu_log(MU_LOG_WARNING, "an old checkpoint is kept, because it is not as muster wrote it: %s", why);
    warned |= !good;
    free(why);
    return good;
}

/* Removes step-N.tmp folders, which killed saves leave. */
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

static mu_status prune(const mu_checkpoint_config *cfg, const char *run, mu_error *e) {
    int64_t *steps;
    int n = mu_checkpoint_list(run, &steps);
    mu_status status = MU_STATUS_OK;
    for (int i = (int)cfg->keep; i < n && status == MU_STATUS_OK; i++) {
        if (cfg->keep_every && steps[i] % cfg->keep_every == 0) continue;
        char *from = mu_checkpoint_path(run, steps[i]), *to = mu_format("%s.tmp", from);
        int lock = 0;
        if (may_be_removed(from) && !is_taken(to) && mu_checkpoint_lock_alone(from, &lock)) { /* else at a later save */
            status = mu_file_rename(from, to, e); /* so that an interrupted removal does not look like damage */
            if (status == MU_STATUS_OK) status = mu_file_remove_tree(to, e);
        }
        if (lock > 0) close(lock);
        free(from);
        free(to);
    }
    free(steps);
    return status;
}

/* Creates step-N.tmp. Anything left under that name by remove_unfinished was not written by a save, and is moved aside. */
static mu_status make_unfinished(const char *folder, const char *tmp, mu_error *e) {
    mu_status status = mu_file_make_dirs(folder, e);
    if (status == MU_STATUS_OK) status = remove_unfinished(folder, e);
    if (status == MU_STATUS_OK && is_taken(tmp)) {
        char *to;
        status = mu_file_set_aside(tmp, &to, e);
        if (status == MU_STATUS_OK)
            mu_log(MU_LOG_WARNING, "%s has the name of a new checkpoint, but was not written by muster: renamed to %s", tmp, to);
        free(to);
    }
    return status == MU_STATUS_OK ? mu_file_make_dirs(tmp, e) : status;
}

/* Shards and names of all writing ranks; Collective over their expert group. */
static void collect(mu_train_state *t, const mu_shard *mine, mu_manifest *m) {
    m->n_shards = t->mesh->expert->size;
    m->shards = mu_alloc((size_t)m->n_shards, sizeof *m->shards);
    mu_all_gather(t->mesh->expert, mine, sizeof *mine, m->shards);
    collect_names(t, m);
}

mu_status mu_checkpoint_save(mu_train_state *t, const mu_config *cfg, const mu_texts *texts, mu_error *e) {
    mu_comm *batch = t->mesh->batch;
    bool first = mu_mesh_writes_shared(t->mesh);
    char *folder = mu_format("%s/checkpoints", cfg->run.dir), *final = mu_checkpoint_path(cfg->run.dir, t->step);
    char *tmp = mu_format("%s.tmp", final);
    mu_manifest m = { 0 };
    mu_status status = mu_agree(batch, first ? make_unfinished(folder, tmp, e) : MU_STATUS_OK, e);
    bool made = status == MU_STATUS_OK;
    mu_shard mine = { 0 };
    if (status == MU_STATUS_OK) status = write_shard(t, cfg, tmp, &mine, e);
    status = mu_agree(batch, status, e);
    if (status == MU_STATUS_OK) {
        if (mu_mesh_writes_experts(t->mesh)) collect(t, &mine, &m);
        if (first) {
            status = commit(t, cfg, texts, &m, tmp, final, e);
            if (status == MU_STATUS_OK) status = prune(&cfg->checkpoint, cfg->run.dir, e);
        }
        status = mu_agree(batch, status, e);
    }
    if (status != MU_STATUS_OK && made && first && may_be_removed(tmp)) (void)!mu_file_remove_tree(tmp, NULL);
    mu_manifest_free(&m);
    free(folder);
    free(final);
    free(tmp);
    return status;
}

/* ------------------------------------------------------------------ finding and loading */

/* Manifest, shards and state of one checkpoint; the ranks share the hashing. Tensor values are checked when they are
 * loaded: reading them twice would take too long. Collective, agreed. */
static mu_status verify_one(mu_comm *batch, const char *path, mu_manifest *m, mu_error *e) {
    mu_status status = mu_agree(batch, mu_manifest_read(m, path, e), e);
    if (status == MU_STATUS_OK)
        status = mu_agree(batch, mu_manifest_verify(m, batch->rank, batch->size, e), e);
    if (status == MU_STATUS_OK)
        status = mu_agree(batch, batch->rank == 0 ? mu_checkpoint_check(m, false, e) : MU_STATUS_OK, e);
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
static bool names_one_checkpoint(mu_comm *batch, const char *path) {
    bool one = mu_checkpoint_named(path);
    mu_broadcast(batch, 0, &one, sizeof one);
    return one;
}

mu_status mu_checkpoint_missing(const char *path, mu_error *e) {
    static const char run[] = "%s is a run folder without checkpoints", bare[] = "%s has weights in safetensors, but no config.json; put the model's there";
    static const struct { const char *file, *says; } signs[] = {
        { "checkpoints", run }, { "config.resolved.yaml", run }, { "run.json", run }, { "metrics.jsonl", run },
        { "config.json", "%s is a model of Hugging Face, not a run folder or checkpoint; muster convert makes a checkpoint of it" },
        { "model.safetensors", bare }, { "model.safetensors.index.json", bare },
        { "pytorch_model.bin", "%s has weights in pytorch_model.bin, which is not read; transformers' from_pretrained and save_pretrained make safetensors of them" },
    };
    const char *says = mu_file_not_plain(path) ? "%s is neither a run folder or checkpoint nor a model of Hugging Face, which has a config.json" : "%s is a file; name the folder of the run, checkpoint or model";
    for (size_t i = 0, found = 0; i < sizeof signs / sizeof *signs && !found; i++) {
        char *name = mu_format("%s/%s", path, signs[i].file);
        if ((found = mu_file_exists(name))) says = signs[i].says;
        free(name);
    }
    return mu_error_set(e, MU_STATUS_DATA, says, path);
}

/* The steps of a run's checkpoints, newest first, the same on every rank; *steps heap. Collective, agreed. */
static mu_status list_all(mu_comm *batch, const char *run, int64_t **steps, int *n, mu_error *e) {
    *steps = NULL;
    *n = batch->rank == 0 ? mu_checkpoint_list(run, steps) : 0;
    mu_status status = *n < 0 ? mu_error_set(e, MU_STATUS_IO, "%s/checkpoints cannot be read: %s", run, strerror(errno))
                              : MU_STATUS_OK;
    status = mu_agree(batch, status, e);
    if (status != MU_STATUS_OK) *n = 0;
    mu_broadcast(batch, 0, n, sizeof *n);
    *steps = mu_realloc(*steps, (size_t)*n, sizeof **steps);
    mu_broadcast(batch, 0, *steps, (int64_t)sizeof **steps * *n);
    return status;
}

static void warn_skipped(mu_comm *batch, int64_t step, const mu_error *why) {
    if (batch->rank == 0)
        mu_log(MU_LOG_WARNING, "checkpoint of step %lld skipped, failed verification: %-s", (long long)step, why->text);
}

/* Newest checkpoint before step `below` that verifies. *first: the error of the newest of all, if known. */
static mu_status find_below(mu_comm *batch, const char *run, int64_t below, mu_error *first, mu_manifest *m, bool *found,
                            mu_error *e) {
    int64_t *steps;
    int n;
    mu_error why = { 0 };
    mu_status status = list_all(batch, run, &steps, &n, e);
    for (int i = 0; i < n && !*found; i++) {
        if (steps[i] >= below) continue;
        char *one = mu_checkpoint_path(run, steps[i]);
        *found = verify_one(batch, one, m, &why) == MU_STATUS_OK;
        if (!*found) warn_skipped(batch, steps[i], &why);
        if (!*found && first->status == MU_STATUS_OK) *first = why;
        free(one);
    }
    if (n && !*found)
        status = mu_error_set(e, MU_STATUS_DATA, "%s/checkpoints: all checkpoints failed verification (%d); the newest: %-s", run, n, first->text);
    free(steps);
    return status;
}

mu_status mu_checkpoint_find(mu_comm *batch, const char *path, mu_manifest *m, bool *found, mu_error *e) {
    mu_error first = { 0 };
    *found = false;
    if (!names_one_checkpoint(batch, path)) return find_below(batch, path, INT64_MAX, &first, m, found, e);
    mu_status status = verify_one(batch, path, m, e);
    *found = status == MU_STATUS_OK;
    return status;
}

mu_status mu_checkpoint_fall_back(mu_comm *batch, const char *path, mu_manifest *m, mu_error *e) {
    mu_error first = *e;
    int64_t step = m->step;
    bool found = false;
    if (names_one_checkpoint(batch, path)) return e->status;
    warn_skipped(batch, step, &first);
    mu_manifest_free(m);
    return find_below(batch, path, step, &first, m, &found, e);
}

mu_status mu_checkpoint_load(mu_train_state *t, const mu_manifest *m, const mu_tokenizer *tokenizer, mu_error *e) {
    mu_status status = mu_tokenizer_check(tokenizer, m->path, m->tokenizer, m->tokenizer_fingerprint, e);
    if (status == MU_STATUS_OK) status = load_state(t, m, t->opt != NULL, true, e);
    return mu_agree(t->mesh->batch, status, e);
}

mu_status mu_checkpoint_shape_open(mu_checkpoint_shape *s, const mu_manifest *m, bool state, mu_error *e) {
    const mu_config *cfg = &m->cfg;
    *s = (mu_checkpoint_shape){ .t = { .mesh = mu_mesh_alone(), .step = m->step, .parent = m->parent, .ancestors = m->ancestors, .origin = m->origin,
                                          .edits = m->edits } };
    mu_train_state *t = &s->t;
    s->dev = mu_device_open(strcmp(m->dtype, mu_dtype_name(MU_DTYPE_F64)) ? "shape" : "shape-f64");
    t->model = mu_model_new(&cfg->model, &cfg->moe, m->vocab_size, 1, s->dev, t->mesh);
    if (m->weights_only) return state ? load_state(t, m, false, false, e) : MU_STATUS_OK;
    t->opt = mu_optimizer_new(mu_rule_of(&cfg->optim), &cfg->optim, t->model->params);
    if (m->anchored) t->anchor = s->anchor = mu_anchor_new(t->opt, &cfg->data.train);
    if (m->anchored) mu_anchor_prepare(t->anchor);
    t->stats = s->stats = mu_routing_stats_new(s->dev, t->mesh->batch, t->model->n_moe, (int)cfg->moe.num_experts, cfg->data.train.n, cfg->stats.window, 0);
    t->knowledge = s->knowledge = mu_knowledge_new(t->model->n_moe, (int)cfg->moe.num_experts, (int)cfg->moe.top_k, &cfg->data.train);
    return state ? load_state(t, m, true, false, e) : MU_STATUS_OK;
}

void mu_checkpoint_shape_close(mu_checkpoint_shape *s) {
    mu_knowledge_free(s->knowledge);
    mu_routing_stats_free(s->stats);
    mu_anchor_free(s->anchor);
    mu_optimizer_free(s->t.opt);
    mu_model_free(s->t.model);
    if (s->dev) mu_device_close(s->dev);
    mu_mesh_close(s->t.mesh);
    *s = (mu_checkpoint_shape){ 0 };
}

/* Forwards only the state that a checkpoint of this format version has, or of weights. */
typedef struct {
    mu_state_visitor v, *to;
    const mu_manifest *m;
} filter;

static void pass_on(mu_state_visitor *v, const mu_state *s) {
    filter *f = (filter *)v;
    if (mu_state_is_in(s, f->m->version) && !(f->m->weights_only && s->for_training)) f->to->visit(f->to, s);
}

mu_status mu_checkpoint_visit(const mu_manifest *m, mu_state_visitor *v, mu_error *e) {
    filter f = { { pass_on }, v, m };
    mu_checkpoint_shape s;
    mu_status status = mu_checkpoint_shape_open(&s, m, false, e);
    if (status == MU_STATUS_OK) visit_all(&s.t, &m->cfg, &f.v);
    mu_checkpoint_shape_close(&s);
    return status;
}

mu_status mu_checkpoint_check(const mu_manifest *m, bool tensors, mu_error *e) {
    mu_checkpoint_shape s;
    mu_status status = mu_checkpoint_shape_open(&s, m, !tensors, e);
    if (status == MU_STATUS_OK && tensors) status = load_state(&s.t, m, !m->weights_only, true, e);
    mu_checkpoint_shape_close(&s);
    return status;
}

/* ------------------------------------------------------------------ writing without a run */

typedef struct {
    mu_state_visitor v;
    mu_state_fill *fill;
    void *context;
    mu_store *s;
    scratch scratch;
    mu_status status;
    mu_error *e;
} copier;

static void copy_one(mu_state_visitor *v, const mu_state *s) {
    copier *c = (copier *)v;
    if (s->until || c->status != MU_STATUS_OK) return;
    void *host = scratch_for(&c->scratch, s);
    c->status = c->fill(c->context, s, host, c->e);
    if (c->status == MU_STATUS_OK) c->status = mu_store_write(c->s, s->name, s->type, s->n_dims, s->shape, host, c->e);
}

static void list_tensors(mu_manifest *m, const mu_params *ps) {
    free(m->tensors);
    m->n_tensors = 0, m->tensors = mu_alloc((size_t)ps->n_global_units, sizeof *m->tensors);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
        snprintf(m->tensors[m->n_tensors].name, sizeof m->tensors->name, "%s", u->name);
        m->tensors[m->n_tensors++].shard = 0;
    }
}

/* As `muster verify`. */
static mu_status check_written(const char *folder, mu_error *e) {
    mu_manifest m;
    mu_status status = mu_manifest_read(&m, folder, e);
    if (status == MU_STATUS_OK) status = mu_manifest_verify(&m, 0, 1, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_check(&m, true, e);
    mu_manifest_free(&m);
    return status;
}

mu_status mu_checkpoint_write(mu_checkpoint_shape *s, mu_manifest *m, const char *run, mu_state_fill *fill, void *context, mu_error *e) {
    char *folder = mu_checkpoint_path(run, s->t.step);
    m->ranks = m->ep = m->n_shards = 1;
    m->shards = mu_realloc(m->shards, 1, sizeof *m->shards);
    m->parent = s->t.parent, m->ancestors = s->t.ancestors, m->origin = s->t.origin, m->edits = s->t.edits, m->step = s->t.step;
    mu_shard_name(0, m->shards[0].name);
    list_tensors(m, s->t.model->params);
    char *path = mu_format("%s/%s", folder, m->shards[0].name);
    copier c = { .v = { copy_one }, .fill = fill, .context = context, .e = e };
    c.status = mu_file_make_dirs(folder, e);
    if (c.status == MU_STATUS_OK) c.status = fault_status(&s->t, "expert-checkpoint", e);
    if (c.status == MU_STATUS_OK) c.status = mu_store_create(&c.s, path, e);
    if (c.status == MU_STATUS_OK && m->weights_only) mu_model_state(s->t.model, DBL_MAX, &c.v);
    else if (c.status == MU_STATUS_OK) visit_all(&s->t, &m->cfg, &c.v);
    c.status = mu_store_finish(c.s, c.status, e);
    if (c.status == MU_STATUS_OK) c.status = mu_file_hash(path, m->shards[0].hash, &m->shards[0].bytes, e);
    if (c.status == MU_STATUS_OK) c.status = mu_manifest_write(m, folder, e);
    if (c.status == MU_STATUS_OK) c.status = mu_file_sync(folder, e);
    if (c.status == MU_STATUS_OK) c.status = check_written(folder, e);
    free(c.scratch.memory);
    free(path);
    free(folder);
    return c.status;
}

/* ------------------------------------------------------------------ compatibility on resume, and of a fork */

/* Texts may move: the same domains, in order, with the same weights. Their content is checked by fingerprint. */
static bool same_domains(const mu_option_domains *a, const mu_option_domains *b) {
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++)
        same = !strcmp(a->list[i].domain, b->list[i].domain) && a->list[i].weight == b->list[i].weight;
    return same;
}

/* The file of a tokenizer may move, too; its fingerprint is checked when it is opened. */
static bool is_moved(const mu_option *option, const mu_manifest *m, const mu_config *now, bool fork) {
    const char *was = m->cfg.data.tokenizer, *is = now->data.tokenizer;
    if (option->type == MU_OPTION_DOMAINS) return !fork && same_domains(&m->cfg.data.train, &now->data.train);
    return option->offset == offsetof(mu_config, data.tokenizer) && !mu_tokenizer_is_built_in(was) && !mu_tokenizer_is_built_in(is);
}

/* Compares one option with the checkpoint's: a changed value is a line of *notes, or an error if it must not change. */
static void compare_option(const mu_option *option, const mu_manifest *m, const mu_config *now, bool fork, FILE *notes, mu_error *e) {
    char *was = mu_option_text(option, &m->cfg), *is = mu_option_text(option, now);
    bool moved = is_moved(option, m, now, fork);
    int64_t past = option->type == MU_OPTION_PHASES && !fork && now->data.train.n == m->cfg.data.train.n
                       ? mu_phases_differ(&m->cfg.data, &now->data, m->step) : 0;
    bool fixed = fork ? option->use & MU_USE_SHAPE : past || !(option->use & MU_ON_RESUME);
    if (strcmp(was, is) && fixed && !moved) {
        if (e->status == MU_STATUS_OK)
            mu_error_set(e, MU_STATUS_CONFIG, fork ? "cannot fork from %s: its tensors have another shape; these options must not change:"
                         : "cannot resume from %s: these options must not change (or choose another run.dir, or begin a new run from it"
                           " with --fork):", m->path);
        mu_error_add(e, MU_STATUS_CONFIG, "  %s.%s was %s and is now %s", option->section, option->key, was, is);
        if (past)
            mu_error_add(e, MU_STATUS_CONFIG, "    they differ from step %lld on, which is finished; phases that begin after step %lld may"
                         " change", (long long)past, (long long)m->step);
    } else if (strcmp(was, is) && strcmp(option->key, "dir"))
        fprintf(notes, "  %s.%s: %s -> %s%s\n", option->section, option->key, was, is,
                !moved ? "" : option->type == MU_OPTION_DOMAINS ? " (the same texts)" : " (the same tokenizer)");
    free(was);
    free(is);
}

/* Adds which domains differ. */
static void name_changes(const mu_corpus *corpus, const mu_manifest *m, mu_error *e) {
    for (int i = 0; i < m->n_domains; i++)
        for (int k = 0; k < corpus->n_domains; k++) {
            const mu_domain *d = &corpus->domains[k];
            if (!strcmp(m->domains[i].name, d->name) && strcmp(m->domains[i].fingerprint, d->fingerprint))
                mu_error_add(e, e->status, "  domain %s: %lld tokens, fingerprint %s then; %lld tokens, %s now", d->name,
                             (long long)m->domains[i].tokens, m->domains[i].fingerprint, (long long)d->n_tokens, d->fingerprint);
        }
}

mu_status mu_checkpoint_compare(const mu_config *cfg, const mu_corpus *corpus, const mu_manifest *m, char **notes, mu_error *e) {
    char *text = NULL;
    size_t size;
    if (m->weights_only)
        return mu_error_set(e, MU_STATUS_CONFIG, "%s holds weights only, without the state of a run: begin a run from it with --init-from and another"
                            " run.dir", m->path);
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    mu_error_set(e, MU_STATUS_OK, "%s", "");
    int n;
    const mu_option *table = mu_config_table(&n);
    for (int i = 0; i < n; i++) compare_option(&table[i], m, cfg, !corpus, out, e);
    if (e->status == MU_STATUS_OK && corpus && strcmp(m->fingerprint, corpus->fingerprint)) {
        mu_error_set(e, MU_STATUS_CONFIG, "the texts differ from those of %s: fingerprint %s then, %s now",
                     m->path, m->fingerprint, corpus->fingerprint);
        name_changes(corpus, m, e);
    }
    fclose(out);
    if (notes) *notes = text;
    else free(text);
    return e->status;
}
