/* archive_run.c - which experts of a run are archived when, and archiving them. */
#include "train/surgery.h"

#include <stdlib.h>
#include <string.h>

/* Of all parameters but those of the experts. */
static void hash_shared(const mu_train_state *t, char hex[33]) {
    mu_hash *h = mu_hash_new();
    mu_device *dev = t->model->params->dev;
    for (mu_unit *u = mu_unit_next(t->model->params, NULL); u; u = mu_unit_next(t->model->params, u)) {
        if (u->expert >= 0) continue;
        double *values = mu_alloc((size_t)u->count, sizeof *values);
        mu_reals_get(dev, dev->master, mu_unit_data(u), u->count, values);
        mu_hash_add(h, values, (size_t)u->count * sizeof *values);
        free(values);
    }
    mu_hash_finish(h, hex);
}

void mu_archive_measure(mu_archive *a, const mu_evaluation *ev) {
    const mu_corpus *c = &ev->texts->corpus;
    int domain = -1;
    for (int d = 0; d < c->n_domains && a->carries[0]; d++)
        if (!strcmp(c->domains[d].name, a->carries)) domain = d;
    a->samples = mu_expert_samples_collect(ev, domain, &a->unit);
    if (domain >= 0) a->fisher = mu_expert_fisher_estimate(ev, domain, &a->unit);
}

mu_status mu_archive_expert(const mu_log_source *src, const mu_evaluation *ev, int moe, int expert, mu_error *e) {
    const mu_train_state *t = src->state;
    mu_archive a = { 0 };
    mu_activity_set("archiving an expert", t->model->moe_layers[moe], NULL);
    mu_expert_unit_take(&a.unit, t, t->model->moe_layers[moe], expert);
    mu_archive_describe(&a, t, src->cfg, moe, expert);
    if (t->knowledge->rounds) mu_archive_measure(&a, ev); /* else nothing may be measured (stats.budget) */
    mu_status status = MU_STATUS_OK;
    if (mu_mesh_writes_shared(t->mesh)) {
        char *folder = mu_format("%s/archive", src->cfg->run.dir), *run = realpath(src->cfg->run.dir, NULL);
        snprintf(a.run, sizeof a.run, "%s", run && strlen(run) < sizeof a.run ? run : src->cfg->run.dir);
        hash_shared(t, a.shared_hash);
        status = mu_archive_write(&a, folder, e);
        free(folder);
        free(run);
    }
    mu_archive_free(&a);
    return mu_agree(t->mesh->batch, status, e);
}

mu_status mu_archive_set_aside(const mu_train_state *t, const char *run, int64_t step, mu_error *e) {
    char *folder = mu_format("%s/archive", run);
    mu_status status = MU_STATUS_OK;
    bool here = mu_mesh_writes_shared(t->mesh) && mu_file_exists(folder);
    for (int64_t i = 0; here && i < t->model->n_moe * t->model->moe_cfg.num_experts && status == MU_STATUS_OK; i++) {
        int layer = t->model->moe_layers[i / t->model->moe_cfg.num_experts], expert = (int)(i % t->model->moe_cfg.num_experts);
        int64_t *steps;
        int n = mu_archive_list(folder, layer, expert, &steps);
        for (int k = 0; k < n && steps[k] > step && status == MU_STATUS_OK; k++) {
            char *path = mu_archive_path(folder, layer, expert, steps[k]), *aside = NULL;
            status = mu_file_set_aside(path, &aside, e);
            free(path);
            free(aside);
        }
        free(steps);
    }
    free(folder);
    return mu_agree(t->mesh->batch, status, e);
}

/* ------------------------------------------------------------------ when */

typedef enum { NOT_DUE, BECAME_CARRIER, GREW, STARVED, WHYS } why;
static const char *const texts[WHYS] = { NULL, "became a carrier", "criticality grew by a tenth", "starved for the first time" };

/* -1: there is none. */
static int64_t newest_record(const char *folder, int layer, int expert) {
    int64_t *steps, newest = mu_archive_list(folder, layer, expert, &steps) ? steps[0] : -1;
    free(steps);
    return newest;
}

int64_t mu_archive_newest(const mu_log_source *src, int moe, int expert) {
    char *folder = mu_format("%s/archive", src->cfg->run.dir);
    int64_t newest = mu_mesh_writes_shared(src->state->mesh) ? newest_record(folder, src->state->model->moe_layers[moe], expert) : -1;
    mu_broadcast(src->state->mesh->batch, 0, &newest, sizeof newest); /* the first rank has looked at the files */
    free(folder);
    return newest;
}

/* Did any domain ever need it, as far as that is measured? Of experts that none needs there is nothing to keep, and they can be many. */
static bool may_matter(const mu_log_source *src, int64_t cell) {
    const mu_knowledge *k = src->state->knowledge;
    bool any = !k->rounds;
    for (int d = 0; d < k->domains; d++) any |= (double)k->peak[cell * k->domains + d] >= src->cfg->stats.dead_criticality;
    return any;
}

void mu_archive_find_due(const mu_log_source *src, const mu_expert_change *changes, int n, const double *noted, const char **reasons) {
    const mu_train_state *t = src->state;
    const mu_expert_health *h = &t->stats->health;
    int64_t cells = (int64_t)h->layers * h->experts;
    uint8_t *due = mu_alloc((size_t)cells + 1, sizeof *due);
    char *folder = mu_format("%s/archive", src->cfg->run.dir);
    for (int64_t i = 0; i < cells; i++)
        if (mu_expert_carries(h->state[i]) && h->top_criticality[i] > noted[i]) due[i] = GREW;
    for (int i = 0; i < n; i++) {
        int64_t at = (int64_t)changes[i].layer * h->experts + changes[i].expert;
        if (mu_expert_carries(changes[i].to) && !mu_expert_carries(changes[i].from)) due[at] = BECAME_CARRIER;
        if (changes[i].to == MU_EXPERT_STARVED && mu_mesh_writes_shared(t->mesh) && may_matter(src, at) &&
            newest_record(folder, t->model->moe_layers[changes[i].layer], changes[i].expert) < 0)
            due[at] = STARVED;
    }
    mu_broadcast(t->mesh->batch, 0, due, cells); /* the first rank has looked at the files */
    for (int64_t i = 0; i < cells; i++) reasons[i] = texts[due[i]];
    free(folder);
    free(due);
}
