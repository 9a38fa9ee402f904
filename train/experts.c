/* experts.c - evaluates the states of the experts of a run (moe/expert_states.c): gathers the evidence. */
#include "train/train.h"

#include <stdlib.h>

/* An expert that never had a token has been silent all the time. */
static double *silences(const mu_load_window *w) {
    double *z = mu_alloc((size_t)w->layers * (size_t)w->experts, sizeof *z);
    for (int i = 0; i < w->layers * w->experts; i++)
        z[i] = w->last_step[i] ? mu_load_window_silence(w, i / w->experts, i % w->experts) : (double)w->steps;
    return z;
}

/* Each domain's share of the samples drawn so far. */
static double *shares(const mu_log_source *src) {
    const mu_loader *loader = src->state->loader;
    int n = src->corpus->n_domains;
    int64_t *drawn = mu_alloc((size_t)mu_loader_state_size(loader), sizeof *drawn);
    double *share = mu_alloc((size_t)n, sizeof *share);
    mu_loader_state_get(loader, drawn);
    for (int d = 0; d < n; d++) share[d] = drawn[n] ? (double)drawn[d] / (double)drawn[n] : 0;
    free(drawn);
    return share;
}

int mu_experts_judge(const mu_log_source *src, mu_expert_change *changes) {
    const mu_train_state *s = src->state;
    const mu_knowledge *k = s->knowledge;
    double *silence = silences(&s->stats->window), *share = shares(src);
    mu_expert_evidence v = { .domains = src->corpus->n_domains, .step = s->step, .interval = src->cfg->stats.every,
                             .load = s->stats->window.total, .silence = silence, .share = share };
    if (k->rounds) v.K = k->K, v.peak = k->peak, v.ce = k->ce, v.ce_best = k->ce_best, v.ce_ref = k->ce_ref;
    if (k->similarity_step) v.twin = k->twin, v.twin_of = k->twin_of;
    int n = mu_expert_health_update(&s->stats->health, &v, &src->cfg->stats, changes);
    free(silence);
    free(share);
    return n;
}

void mu_metrics_add_states(mu_json *j, const mu_log_source *src) {
    const mu_expert_health *h = &src->state->stats->health;
    for (int layer = 0; layer < h->layers; layer++) {
        char key[64];
        snprintf(key, sizeof key, "moe/layer_%d/state", src->state->model->moe_layers[layer]);
        mu_json_begin(j, key, '[');
        for (int i = 0; i < h->experts; i++) mu_json_int(j, NULL, h->state[(int64_t)layer * h->experts + i]);
        mu_json_end(j, ']');
    }
}
