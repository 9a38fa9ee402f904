/* experts.c - the states of the experts of a run (moe/expert_states.c): gathers the evidence, and sums them up. */
#include "train/events.h"

#include <stdlib.h>

/* An expert that never had a token has been silent since the statistics began. */
static double *silences(const mu_load_window *w) {
    double *z = mu_alloc((size_t)w->layers * (size_t)w->experts, sizeof *z);
    for (int i = 0; i < w->layers * w->experts; i++)
        z[i] = w->last_step[i] ? mu_load_window_silence(w, i / w->experts, i % w->experts) : (double)(w->steps - mu_load_window_start(w));
    return z;
}

/* Each domain's share of the training tokens by the weights, of steps 1 to s->step and of this step's phase. (Shares of what was drawn
 * would make common domains rare by chance.) */
static void shares(const mu_log_source *src, double *share, double *present) {
    const mu_option_phases *phases = &src->cfg->data.phases;
    int64_t steps = src->state->step;
    for (int64_t first = 1, last; first <= steps; first = last + 1) {
        int phase = mu_phase_of_step(phases, first);
        last = phase < phases->n - 1 && phases->list[phase].until_step < steps ? phases->list[phase].until_step : steps;
        for (int d = 0; d < src->corpus->n_domains; d++) {
            present[d] = mu_loader_share_at(src->state->loader, first, d);      /* the last phase's stay */
            share[d] += (double)(last - first + 1) / (double)steps * present[d];
        }
    }
}

void mu_experts_find_rare(const mu_log_source *src, bool *rare) {
    size_t D = (size_t)src->corpus->n_domains;
    double *share = mu_alloc(D, sizeof *share), *present = mu_alloc(D, sizeof *present);
    shares(src, share, present);
    for (size_t d = 0; d < D; d++) rare[d] = mu_domain_is_rare(&src->cfg->stats, share[d], present[d]);
    free(share);
    free(present);
}

int mu_experts_judge(const mu_log_source *src, mu_expert_change *changes) {
    const mu_train_state *s = src->state;
    const mu_knowledge *k = s->knowledge;
    size_t D = (size_t)src->corpus->n_domains;
    double *silence = silences(&s->stats->window), *share = mu_alloc(D, sizeof *share), *present_share = mu_alloc(D, sizeof *present_share);
    shares(src, share, present_share);
    mu_expert_evidence v = { .domains = src->corpus->n_domains, .step = s->step, .interval = src->cfg->stats.every,
                             .load = s->stats->window.total, .silence = silence, .share = share, .by_domain = s->stats->interval.by_domain,
                             .present_share = present_share, .reseeded = s->stats->health.reseeded };
    if (k->rounds) v.K = k->K, v.peak = k->peak, v.at = k->at, v.ce = k->ce, v.ce_best = k->ce_best, v.ce_ref = k->ce_ref;
    if (k->similarity_step) v.twin = k->twin, v.twin_of = k->twin_of;
    int n = mu_expert_health_update(&s->stats->health, &v, &src->cfg->stats, changes);
    free(silence);
    free(share);
    free(present_share);
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

/* ------------------------------------------------------------------ in one line */

/* " (layer 3: 11, 12; layer 4: 1)": the experts in that state, when they are few. */
static void list_places(const mu_log_source *src, mu_expert_state state, int64_t n, FILE *out) {
    enum { FEW = 4 };
    const mu_expert_health *h = &src->state->stats->health;
    int last = -1;
    for (int64_t i = 0; i < (int64_t)h->layers * h->experts && n <= FEW; i++) {
        int layer = (int)(i / h->experts);
        if (h->state[i] != state) continue;
        if (layer != last) fprintf(out, "%slayer %d: ", last < 0 ? " (" : "; ", src->state->model->moe_layers[layer]);
        else fprintf(out, ", ");
        fprintf(out, "%d", (int)(i % h->experts));
        last = layer;
    }
    if (last >= 0) fprintf(out, ")");
}

/* -1: nothing was measured. */
static int worst_domain(const mu_knowledge *k) {
    int worst = -1;
    for (int d = 0; d < k->domains && k->rounds; d++) {
        if (!k->tokens[d]) continue;
        double rise = k->ce[d] - k->ce_best[d], most = worst < 0 ? -1 : k->ce[worst] - k->ce_best[worst];
        if (rise > most || (rise == most && k->ce[d] > k->ce[worst])) worst = d;
    }
    return worst;
}

char *mu_experts_summary(const mu_log_source *src) {
    static const mu_expert_state order[] = { MU_EXPERT_HEALTHY, MU_EXPERT_CARRIER, MU_EXPERT_DORMANT, MU_EXPERT_STARVED, MU_EXPERT_DEAD,
                                             MU_EXPERT_DUPLICATE, MU_EXPERT_OVERWRITTEN };
    const mu_knowledge *k = src->state->knowledge;
    int64_t counts[MU_EXPERT_STATES];
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    mu_expert_health_count(&src->state->stats->health, -1, counts);
    for (int i = 0; i < MU_EXPERT_STATES; i++) {
        if (i && !counts[order[i]]) continue;
        bool plural = counts[order[i]] > 1 && (order[i] == MU_EXPERT_CARRIER || order[i] == MU_EXPERT_DUPLICATE);
        fprintf(out, "%s%lld %s%s", i ? ", " : "", (long long)counts[order[i]], mu_expert_state_name(order[i]), plural ? "s" : "");
        if (i) list_places(src, order[i], counts[order[i]], out);
    }
    int worst = worst_domain(k);
    if (worst >= 0) {
        fprintf(out, "; worst domain %s %.2f", src->corpus->domains[worst].name, k->ce[worst]);
        if (k->step == src->state->step) fprintf(out, " (%+.2f)", k->ce[worst] - k->ce_best[worst]);
        else fprintf(out, " (as of step %lld)", (long long)k->step);
    }
    fclose(out);
    return text;
}

char *mu_experts_missing(const mu_log_source *src) {
    const mu_config *cfg = src->cfg;
    const mu_loader *loader = src->state->loader;
    const char *unknown = "so no expert is found to be a carrier, dormant or overwritten";
    double rarest = 1;
    bool validates = false;
    for (int d = 0; d < src->corpus->n_domains; d++) {
        double share = mu_loader_share(loader, d);
        if (share < rarest) rarest = share;
        validates |= mu_loader_val_sequences(loader, d) > 0;
    }
    if (!validates || !(cfg->stats.budget > 0))
        return mu_format("%s, %s, and dead ones are judged by their load alone",
                         validates ? "stats.budget is 0" : "there are no validation texts (data.val_fraction)", unknown);
    if (src->corpus->n_domains == 1) return mu_format("the texts have one domain (data.train), %s", unknown);
    if (rarest > cfg->stats.rare_domain && !cfg->data.phases.n) /* in a phase without it a domain is rare */
        return mu_format("no domain is rare (stats.rare_domain=%g, the rarest has %.1f %% of the texts), %s", cfg->stats.rare_domain,
                         100 * rarest, unknown);
    return NULL;
}
