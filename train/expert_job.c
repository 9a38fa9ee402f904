/* expert_job.c - the checkpoint that muster expert works on: what is known of its experts, and records of them. */
#include "train/expert_job.h"

#include <stdlib.h>
#include <string.h>

const mu_train_state *mu_job_state(const mu_expert_job *j) { return &j->s.shape.t; }
int64_t mu_job_experts(const mu_expert_job *j) { return j->m.cfg.moe.num_experts; }

int mu_job_moe(const mu_expert_job *j, mu_place p, mu_error *e) {
    const mu_model *m = mu_job_state(j)->model;
    if (p.expert >= mu_job_experts(j)) {
        mu_error_set(e, MU_STATUS_USAGE, "expert %d of layer %d: experts are 0 to %lld", p.expert, p.layer, (long long)mu_job_experts(j) - 1);
        return -1;
    }
    for (int i = 0; i < m->n_moe; i++)
        if (m->moe_layers[i] == p.layer) return i;
    mu_error_set(e, MU_STATUS_USAGE, p.layer < m->cfg.num_layers ? "layer %d is dense" : "there is no layer %d", p.layer);
    return -1;
}

int64_t mu_job_cell(const mu_expert_job *j, int moe, int expert) { return moe * mu_job_experts(j) + expert; }
mu_expert_state mu_job_expert_state(const mu_expert_job *j, int64_t cell) { return (mu_expert_state)mu_job_state(j)->stats->health.state[cell]; }

/* RUN of RUN/checkpoints/step-N, heap; NULL: the checkpoint lies elsewhere. */
static char *run_of(const mu_manifest *m) {
    const char *at = strstr(m->path, "/checkpoints/"), *next;
    while (at && (next = strstr(at + 1, "/checkpoints/"))) at = next;
    return at ? mu_format("%.*s", (int)(at - m->path), m->path) : !strncmp(m->path, "checkpoints/", 12) ? mu_strdup(".") : NULL;
}

char *mu_job_archives(const mu_manifest *m) {
    char *run = run_of(m), *folder = run ? mu_format("%s/archive", run) : NULL;
    free(run);
    return folder;
}

mu_status mu_job_open_live(mu_expert_job *j, bool needed, mu_error *e) {
    enum { AT_ONCE = 8 };
    mu_error why = { 0 };
    mu_status status = mu_inference_open(&j->o, j->mesh, j->m.path, j->a->n_overrides, j->a->overrides, &why);
    if (status == MU_STATUS_OK) status = mu_texts_open(&j->texts, &j->o.cfg, j->o.tokenizer, j->m.val_split, j->mesh->batch, &why);
    if (status == MU_STATUS_OK && !mu_texts_have_validation(&j->texts)) status = mu_error_set(&why, MU_STATUS_DATA, "there are no validation texts");
    j->live = status == MU_STATUS_OK;
    j->ev = (mu_evaluation){ j->o.state.model, j->o.tape, &j->texts, j->mesh->batch, AT_ONCE, { NULL, 1 }, NULL, NULL };
    if (status == MU_STATUS_OK || !needed) {
        if (status != MU_STATUS_OK) mu_print("note: without texts (%-s): no samples of what experts see\n", why.text);
        return MU_STATUS_OK;
    }
    return mu_error_set(e, status, "%-s; if texts have moved, add data.train='[{domain: %s, path: ...}, ...]'", why.text,
                        j->m.cfg.data.train.list[0].domain);
}

static mu_status hash_shared(mu_expert_job *j, mu_error *e) {
    if (j->shared_hash[0]) return MU_STATUS_OK;
    mu_hash *h = mu_hash_new();
    mu_status status = MU_STATUS_OK;
    const mu_params *ps = mu_job_state(j)->model->params;
    mu_checkpoint_arrays a;
    mu_checkpoint_arrays_open(&a, &j->m);
    for (mu_unit *u = mu_unit_next(ps, NULL); u && status == MU_STATUS_OK; u = mu_unit_next(ps, u)) {
        if (u->expert >= 0) continue;
        double *values = mu_alloc((size_t)u->count, sizeof *values);
        status = mu_checkpoint_array(&a, u->name, u->name, MU_STORE_F64, u->param->desc.n_dims, u->param->desc.shape, values, e);
        mu_hash_add(h, values, (size_t)u->count * sizeof *values);
        free(values);
    }
    mu_hash_finish(h, j->shared_hash);
    return mu_checkpoint_arrays_close(&a, status, e);
}

mu_status mu_job_record(mu_expert_job *j, mu_archive *a, mu_place p, int moe, bool samples, mu_error *e) {
    *a = (mu_archive){ 0 };
    mu_status status = mu_expert_unit_read(&a->unit, &j->s.arrays, p.layer, p.expert, e);
    if (status != MU_STATUS_OK) return status;
    mu_archive_describe(a, mu_job_state(j), &j->m.cfg, moe, p.expert);
    char *path = realpath(j->m.path, NULL);
    snprintf(a->run, sizeof a->run, "%s", path && strlen(path) < sizeof a->run ? path : j->m.path);
    snprintf(a->manifest_hash, sizeof a->manifest_hash, "%s", j->m.hash);
    free(path);
    if (samples && j->live) mu_archive_measure(a, &j->ev);
    status = hash_shared(j, e);
    snprintf(a->shared_hash, sizeof a->shared_hash, "%s", j->shared_hash);
    return status;
}

void mu_job_tell_fisher(const mu_archive *a) {
    if (a->fisher.n)
        mu_print("Fisher information for %s, of %lld sequences: 90 %% of it is in %.2g %% of the expert's values\n", a->carries, (long long)a->fisher.n,
                 100 * mu_expert_fisher_share(&a->fisher, &a->unit));
}

mu_status mu_job_archive_first(mu_expert_job *j, mu_place p, bool samples, mu_error *e) {
    mu_archive a;
    if (!j->folder) return MU_STATUS_OK;
    int moe = mu_job_moe(j, p, e);
    if (moe < 0) return MU_STATUS_USAGE;
    char *folder = mu_format("%s/archive", j->folder);
    mu_status status = mu_job_record(j, &a, p, moe, samples, e);
    if (status == MU_STATUS_OK) status = mu_archive_write(&a, folder, e);
    if (status != MU_STATUS_OK) mu_error_add(e, status, "  so expert %d of layer %d is not overwritten, and nothing was written", p.expert, p.layer);
    mu_archive_free(&a);
    free(folder);
    return status;
}

void mu_job_forget(mu_expert_job *j, int moe, int expert) {
    if (j->s.shape.t.stats) mu_expert_forget(&j->s.shape.t, moe, expert);
}

mu_status mu_job_may_replace(const mu_expert_job *j, mu_place p, int moe, bool also_overwritten, mu_error *e) {
    if (j->a->force || !mu_job_state(j)->stats) return MU_STATUS_OK;
    int64_t at = mu_job_cell(j, moe, p.expert);
    mu_expert_state state = mu_job_expert_state(j, at);
    bool frozen = mu_job_state(j)->stats->health.frozen[at] == MU_FROZEN_NOW;
    if (!frozen && (state == MU_EXPERT_DEAD || (also_overwritten && (state == MU_EXPERT_DUPLICATE || state == MU_EXPERT_OVERWRITTEN))))
        return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_CONFIG, "expert %d of layer %d is %s%s: only %s may be replaced; --force replaces it all the same, after"
                        " archiving it", p.expert, p.layer, frozen ? "frozen, and " : "", mu_expert_state_name(state),
                        also_overwritten ? "a dead, duplicate or overwritten one" : "a dead one");
}
