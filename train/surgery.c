/* surgery.c - the checkpoint that an operation on experts makes of another. Arrays are copied one by one: nothing but the units that are put
 * is in memory. */
#include "train/hf.h"
#include "train/surgery.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { OLDEST = 4 };    /* format version that has all state of the loader */

/* The number that expert `was` has in every layer of the result; -1: it has not the same one in all. */
static int64_t number_of(int layers, int64_t n, const int *kept, int64_t was) {
    for (int64_t i = 0; i < n; i++) {
        int have = 0;
        while (have < layers && kept[have * n + i] == was) have++;
        if (have == layers) return i;
    }
    return -1;
}

/* An override: the table with the experts' new numbers, without those that have none. */
static char *renumbered(const char *option, const mu_option_domain_ints *table, int layers, int64_t n, const int *kept) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    fprintf(out, "%s={", option);
    for (int i = 0, written = 0; i < table->n; i++) {
        int64_t now = number_of(layers, n, kept, table->list[i].value);
        if (now >= 0) fprintf(out, "%s%s: %lld", written++ ? ", " : "", table->list[i].domain, (long long)now);
    }
    fputs("}", out);
    fclose(out);
    return text;
}

/* The source's configuration with changes, for one rank; an error names the checkpoint. */
static mu_status configure(mu_surgery *s, int n, char **overrides, mu_error *e) {
    mu_error why = { 0 };
    mu_config_free(&s->cfg);
    mu_status status = mu_config_load_text(&s->cfg, s->m->path, s->m->config, n, overrides, &why);
    return status == MU_STATUS_OK ? status : mu_error_set(e, status, "%-s", why.text);
}

mu_status mu_surgery_open(mu_surgery *s, const mu_manifest *m, const char *out, mu_error *e) {
    *s = (mu_surgery){ .m = m };
    mu_checkpoint_arrays_open(&s->arrays, m);
    if (!m->cfg.moe.num_experts) return mu_error_set(e, MU_STATUS_CONFIG, "%s: a dense model has no experts", m->path);
    if (m->version < OLDEST && !m->weights_only)
        return mu_error_set(e, MU_STATUS_CONFIG, "%s is of format version %d; resume its run with this muster, which writes a newer one", m->path,
                            m->version);
    char *overrides[] = { mu_format("run.dir=%s", out), (char[]){ "parallel.ep=1" } };
    mu_status status = configure(s, 2, overrides, e);
    free(overrides[0]);
    return status == MU_STATUS_OK ? mu_checkpoint_shape_open(&s->shape, m, !m->weights_only, e) : status;
}

mu_status mu_surgery_close(mu_surgery *s, mu_status so_far, mu_error *e) {
    for (int i = 0; i < s->n_units; i++) mu_expert_unit_free(&s->units[i]);
    free(s->units);
    free(s->kept);
    if (s->shape.dev) mu_checkpoint_shape_close(&s->shape);
    mu_config_free(&s->cfg);
    so_far = mu_checkpoint_arrays_close(&s->arrays, so_far, e);
    *s = (mu_surgery){ 0 };
    return so_far;
}

void mu_surgery_put(mu_surgery *s, mu_expert_unit unit) {
    s->units = mu_realloc(s->units, (size_t)s->n_units + 1, sizeof *s->units);
    s->units[s->n_units++] = unit;
}

void mu_surgery_note(mu_surgery *s, const char *what, int layer, int expert, const char *detail) {
    mu_edits *list = &s->shape.t.edits;
    if (list->n == MU_EDITS) memmove(list->list, list->list + 1, (size_t)--list->n * sizeof *list->list);
    mu_edit *x = &list->list[list->n++];
    char *path = realpath(s->m->path, NULL);
    *x = (mu_edit){ .layer = layer, .expert = expert, .step = s->m->step };
    snprintf(x->what, sizeof x->what, "%s", what);
    snprintf(x->detail, sizeof x->detail, "%s", detail);
    snprintf(x->checkpoint, sizeof x->checkpoint, "%s", path && strlen(path) < sizeof x->checkpoint ? path : s->m->path);
    snprintf(x->manifest_hash, sizeof x->manifest_hash, "%s", s->m->hash);
    free(path);
}

/* ------------------------------------------------------------------ fewer experts */

/* What was known of the kept experts, and of the domains. */
static void keep_knowledge(mu_knowledge *to, const mu_knowledge *from, const int *kept) {
    int D = to->domains;
    for (int64_t i = 0; i < (int64_t)to->layers * to->experts; i++) {
        int64_t was = i / to->experts * from->experts + kept[i];
        memcpy(to->K + i * D, from->K + was * D, (size_t)D * sizeof *to->K);
        memcpy(to->peak + i * D, from->peak + was * D, (size_t)D * sizeof *to->peak);
        memcpy(to->at + i * D, from->at + was * D, (size_t)D * sizeof *to->at);
    }
    memcpy(to->ce, from->ce, (size_t)D * sizeof *to->ce);
    memcpy(to->ce_best, from->ce_best, (size_t)D * sizeof *to->ce_best);
    to->step = from->step, to->rounds = from->rounds, to->earned_step = from->earned_step, to->credit = from->credit;
}

static void keep_health(mu_expert_health *to, const mu_expert_health *from, const int *kept) {
    int64_t *const a[] = { to->state, to->since, to->below_dead, to->below_starved, to->leaving, to->carried, to->top, to->frozen, to->reseeded };
    int64_t *const b[] = { from->state, from->since, from->below_dead, from->below_starved, from->leaving, from->carried, from->top, from->frozen,
                           from->reseeded };
    for (int64_t i = 0; i < (int64_t)to->layers * to->experts; i++) {
        int64_t was = i / to->experts * from->experts + kept[i];
        for (size_t k = 0; k < sizeof a / sizeof *a; k++) a[k][i] = b[k][was];
        to->top_criticality[i] = from->top_criticality[was];
    }
}

/* The configuration of the result with n experts. */
static mu_status configure_fewer(mu_surgery *s, int64_t n, const int *kept, mu_error *e) {
    int layers = s->shape.t.model->n_moe;
    const mu_config *c = &s->m->cfg;
    char *overrides[] = { mu_format("run.dir=%s", s->cfg.run.dir), (char[]){ "parallel.ep=1" }, mu_format("moe.num_experts=%lld", (long long)n),
                          renumbered("moe.force_domains", &c->moe.force_domains, layers, n, kept),
                          renumbered("protect.carriers", &c->protect.carriers, layers, n, kept) };
    mu_status status = configure(s, 5, overrides, e);
    for (int i = 0; i < 5; i++)
        if (i != 1) free(overrides[i]);
    return status;
}

mu_status mu_surgery_keep(mu_surgery *s, int64_t n, const int *kept, mu_error *e) {
    mu_checkpoint_shape small;
    mu_manifest target = *s->m;
    mu_status status = configure_fewer(s, n, kept, e);
    if (status != MU_STATUS_OK) return status;
    target.cfg = s->cfg;
    status = mu_checkpoint_shape_open(&small, &target, false, e);
    if (status == MU_STATUS_OK && !s->m->weights_only) {
        mu_routing_stats_start_at(small.stats, s->m->step);
        keep_health(&small.stats->health, &s->shape.stats->health, kept);
        keep_knowledge(small.knowledge, s->shape.knowledge, kept);
    }
    mu_checkpoint_shape_close(&s->shape);
    s->shape = small;
    size_t all = (size_t)(small.t.model->n_moe * n);
    s->kept = memcpy(mu_alloc(all, sizeof *kept), kept, all * sizeof *kept);
    return status;
}

/* ------------------------------------------------------------------ values */

static bool begins(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }
static bool is_bias(const mu_state *st) { return mu_file_ends(st->name, "/e_score_correction_bias"); }
static bool is_router(const mu_state *st) { return st->tensor && mu_file_ends(st->tensor, "/mlp/gate/weight"); }

/* State that operations change, and with fewer experts all that counts by expert. */
static bool is_from_memory(const mu_surgery *s, const mu_state *st) {
    if (st->tensor || is_bias(st)) return false;
    if (!mu_state_is_in(st, s->m->version) || begins(st->name, "/state/experts/") || begins(st->name, "/state/knowledge/")) return true;
    return s->kept && (begins(st->name, "/state/window/") || begins(st->name, "/state/interval/"));
}

static int moe_index(const mu_model *m, const char *name) {
    const char *at = strstr(name, "/layers/");
    int layer = at ? atoi(at + 8) : -1, i = 0;
    while (i < m->n_moe && m->moe_layers[i] != layer) i++;
    return i;
}

/* The source's name: experts have the numbers they had there. */
static void source_name(const mu_surgery *s, const char *name, char to[MU_STATE_NAME]) {
    const char *at = strstr(name, "/mlp/experts/");
    snprintf(to, MU_STATE_NAME, "%s", name);
    if (!s->kept || !at) return;
    const mu_model *m = s->shape.t.model;
    char *rest;
    int64_t expert = strtol(at + 13, &rest, 10);
    snprintf(to, MU_STATE_NAME, "%.*s/mlp/experts/%d%s", (int)(at - name), name, s->kept[moe_index(m, name) * m->moe_cfg.num_experts + expert], rest);
}

/* An array with one row per expert, of which some are kept. */
static mu_status gather_rows(mu_surgery *s, const mu_state *st, void *host, mu_error *e) {
    int64_t rows = st->shape[0], shape[3] = { s->m->cfg.moe.num_experts, st->shape[1], st->shape[2] }, n = mu_state_count(st) / rows;
    size_t size = mu_store_type_size(st->type) * (size_t)n;
    char *all = mu_alloc((size_t)shape[0], size);
    const int *kept = s->kept + moe_index(s->shape.t.model, st->name) * rows;
    mu_status status = mu_checkpoint_array(&s->arrays, st->name, st->tensor, st->type, st->n_dims, shape, all, e);
    for (int64_t i = 0; i < rows; i++) memcpy((char *)host + (size_t)i * size, all + (size_t)kept[i] * size, size);
    free(all);
    return status;
}

static mu_status fill_from_source(mu_surgery *s, const mu_state *st, void *host, mu_error *e) {
    char name[MU_STATE_NAME], tensor[MU_STATE_NAME];
    bool steps = begins(st->name, "/optim/steps/");
    if (s->kept && (is_bias(st) || (is_router(st) && !steps))) return gather_rows(s, st, host, e);
    source_name(s, st->name, name);
    if (st->tensor) source_name(s, st->tensor, tensor);
    return mu_checkpoint_array(&s->arrays, name, st->tensor ? tensor : NULL, st->type, st->n_dims, st->shape, host, e);
}

static mu_status fill(void *context, const mu_state *st, void *host, mu_error *e) {
    mu_surgery *s = context;
    mu_activity_set("changing a checkpoint", -1, NULL);
    if (is_from_memory(s, st)) {
        if (st->get) st->get(st, host);
        else memcpy(host, st->data, (size_t)mu_state_count(st) * mu_store_type_size(st->type));
        return MU_STATUS_OK;
    }
    mu_status status = fill_from_source(s, st, host, e);
    for (int i = 0; i < s->n_units && status == MU_STATUS_OK; i++)
        mu_expert_unit_put(&s->units[i], st, s->cfg.moe.balance & MU_BALANCE_SELECTION, host);
    return status;
}

typedef struct {
    mu_state_visitor v;
    mu_surgery *s;
    mu_status status;
    mu_error *e;
} loader;

static void load_one(mu_state_visitor *v, const mu_state *st) {
    loader *l = (loader *)v;
    if (l->status != MU_STATUS_OK || st->until) return;
    void *host = st->data ? st->data : mu_alloc((size_t)mu_state_count(st), 8);
    l->status = fill(l->s, st, host, l->e);
    if (l->status == MU_STATUS_OK && st->set) l->status = st->set(st, host, l->e);
    if (!st->data) free(host);
}

mu_status mu_surgery_load(mu_surgery *s, mu_model *model, mu_error *e) {
    loader l = { { load_one }, s, MU_STATUS_OK, e };
    mu_model_state(model, DBL_MAX, &l.v);
    mu_params_refresh(model->params);
    return l.status;
}

static mu_status keep_tokenizer(const mu_surgery *s, const char *run, mu_error *e) {
    mu_tokenizer *t = NULL;
    mu_status status = mu_checkpoint_tokenizer_open(&t, s->m, e);
    if (status == MU_STATUS_OK) status = mu_run_keep_tokenizer(run, t, e);
    if (t) mu_tokenizer_close(t);
    return status;
}

/* What export to Hugging Face takes from the run. */
static mu_status keep_notes(const mu_surgery *s, const char *run, mu_error *e) {
    char *from = mu_checkpoint_run(s->m);
    mu_status status = mu_hf_copy_notes(from, run, e);
    if (status == MU_STATUS_OK) status = mu_hf_copy_note(from, MU_HF_KEPT, run, MU_HF_KEPT, e);
    free(from);
    return status;
}

mu_status mu_surgery_write(mu_surgery *s, const char *run, mu_error *e) {
    mu_manifest m = *s->m;
    char *path = mu_format("%s/config.resolved.yaml", run);
    m.cfg = s->cfg, m.config = mu_options_dump(&s->cfg.options, &s->cfg), m.shards = NULL, m.tensors = NULL;
    mu_status status = mu_checkpoint_write(&s->shape, &m, run, fill, s, e);
    if (status == MU_STATUS_OK) status = mu_file_replace(path, m.config, strlen(m.config), e);
    if (status == MU_STATUS_OK) status = keep_tokenizer(s, run, e);
    if (status == MU_STATUS_OK) status = keep_notes(s, run, e);
    free(m.config);
    free(m.shards);
    free(m.tensors);
    free(path);
    return status;
}
