/* advice.c - recommendations: what goes wrong with the routing of a run, and the option that would help. Found from the values of a
 * logged step and from what checkpoints keep, so that a resumed run finds the same. */
#include "train/events.h"

#include <math.h>
#include <stdlib.h>

static const double MOST_TOKENS = 0.9;      /* collapse: one expert gets this share of the tokens */
static const double MANY_UNUSED = 0.1;      /* share of experts, see is_unused */
static const double MANY_DROPS = 0.05;      /* share of assignments */
static const double LARGE_TERM = 0.8;       /* of the gradient of the routers' logits */
enum { LATEST = 10 };                       /* steps in which routing collapses; none before so many */

const char *mu_advice_name(mu_advice_topic topic) {
    static const char *const names[MU_ADVICES] = { [MU_ADVICE_COLLAPSE] = "collapse", [MU_ADVICE_UNUSED] = "unused_experts",
                                                   [MU_ADVICE_NEEDED] = "needed_experts", [MU_ADVICE_DROPS] = "drops", [MU_ADVICE_TERM] = "loss_term" };
    return names[topic];
}

void mu_advice_free(mu_advice *a) {
    free(a->value);
    free(a->text);
}

/* ------------------------------------------------------------------ options that balance the load */

/* The next step against an uneven load: a method where there is none, else a stronger one. "Use OPTION=VALUE (now ...)". */
static char *balance_more(const mu_moe_config *m, mu_advice *a) {
    bool aux = m->balance & (MU_BALANCE_AUX | MU_BALANCE_GLOBAL_AUX);
    if (aux) {
        a->option = "moe.aux_loss_coeff", a->value = mu_format("%g", m->aux_loss_coeff);
        return mu_format("raise moe.aux_loss_coeff (now %g), to %g for example, or lower optim.lr", m->aux_loss_coeff,
                         m->aux_loss_coeff > 0 ? 10 * m->aux_loss_coeff : 0.01);
    }
    if (m->balance & MU_BALANCE_BIAS) {
        a->option = "moe.bias_update_rate", a->value = mu_format("%g", m->bias_update_rate);
        return mu_format("raise moe.bias_update_rate (now %g), to %g for example, or lower optim.lr", m->bias_update_rate,
                         m->bias_update_rate > 0 ? 10 * m->bias_update_rate : 0.001);
    }
    a->option = "moe.balance", a->value = mu_strdup(m->balance & MU_BALANCE_QUANTILE ? "[quantile_balancing]"
                                                       : m->balance & MU_BALANCE_SEQ_AUX ? "[seq_aux_loss]" : "[none]");
    return mu_format("balance the load: moe.balance=[global_aux_loss] (now %s)", a->value);
}

/* ------------------------------------------------------------------ what goes wrong */

/* The expert of the layer that most tokens chose in the latest steps, and their share. */
static double busiest(const mu_log_source *src, int layer, int *expert) {
    const mu_load_window *w = &src->state->stats->window;
    double most = -1, tokens = (double)(src->cfg->train.global_batch_size * src->cfg->train.seq_len * LATEST);
    for (int i = 0; i < w->experts; i++) {
        double n = 0;
        for (int64_t step = w->steps - LATEST; step < w->steps; step++)
            n += (double)w->ring[(step % w->length * w->layers + layer) * w->experts + i];
        if (n > most) most = n, *expert = i;
    }
    return most / tokens;
}

static bool collapses(const mu_log_source *src, mu_advice *a) {
    const mu_moe_config *m = &src->cfg->moe;
    for (int layer = 0; layer < src->state->model->n_moe && src->state->stats->window.held >= LATEST; layer++) {
        int expert = 0;
        double share = busiest(src, layer, &expert);
        if (share < MOST_TOKENS || m->num_experts < 2 * m->top_k) continue;
        char *remedy = balance_more(m, a);
        a->text = mu_format("layer %d: expert %d got %.0f %% of the tokens in the last %d steps, an even load is %.0f %%: routing collapses;"
                            " %s", src->state->model->moe_layers[layer], expert, 100 * share, LATEST,
                            100.0 * (double)m->top_k / (double)m->num_experts, remedy);
        free(remedy);
        return true;
    }
    return false;
}

static bool is_needed(const mu_log_source *src, int64_t i) {
    const mu_knowledge *k = src->state->knowledge;
    for (int d = 0; d < k->domains; d++)
        if ((double)k->K[i * k->domains + d] >= src->cfg->stats.dead_criticality) return true;
    return false;
}

/* For some windows: in the first ones the load is still settling. */
static bool is_starved(const mu_log_source *src, int64_t i) {
    enum { WINDOWS = 3 };
    const mu_expert_health *h = &src->state->stats->health;
    return h->state[i] == MU_EXPERT_STARVED && src->state->step - h->since[i] >= WINDOWS * src->cfg->stats.every;
}

/* Dead or starved, but never one that a domain needs: balancing more would take what it knows. */
static bool is_unused(const mu_log_source *src, int64_t i) {
    return (src->state->stats->health.state[i] == MU_EXPERT_DEAD || is_starved(src, i)) && !is_needed(src, i);
}

static bool unused(const mu_log_source *src, mu_advice *a) {
    int64_t n = 0, all = (int64_t)src->state->model->n_moe * src->cfg->moe.num_experts;
    for (int64_t i = 0; i < all; i++) n += is_unused(src, i);
    if (n == 0 || (double)n < MANY_UNUSED * (double)all) return false;
    char *remedy = balance_more(&src->cfg->moe, a);
    a->text = mu_format("%lld of %lld experts are in the state dead, or for at least three windows in the state starved, and no domain is known to need them: the model learns"
                        " with fewer parameters than it has; %s", (long long)n, (long long)all, remedy);
    free(remedy);
    return true;
}

/* The starved expert that some domain needs most. A rare domain would have made it a carrier. */
static bool needed(const mu_log_source *src, mu_advice *a) {
    const mu_knowledge *k = src->state->knowledge;
    int64_t cells = (int64_t)k->layers * k->experts * k->domains, most = -1;
    for (int64_t i = 0; i < cells; i++)
        if (is_starved(src, i / k->domains) && (double)k->K[i] >= src->cfg->stats.carrier_criticality && (most < 0 || k->K[i] > k->K[most])) most = i;
    if (most < 0) return false;
    int64_t expert = most / k->domains;
    const char *domain = k->names[most % k->domains];
    a->option = "stats.rare_domain", a->value = mu_format("%g", src->cfg->stats.rare_domain);
    a->text = mu_format("layer %d: expert %lld is starved, but %s depends on it: it loses %.2f nats per token without it, and more balancing would replace what it"
                        " knows. Where stats.rare_domain (now %g) is at least the share of %s, such an expert can be a carrier, which"
                        " protect.domains protects",
                        src->state->model->moe_layers[expert / k->experts], (long long)(expert % k->experts), domain, (double)k->K[most],
                        src->cfg->stats.rare_domain, domain);
    return true;
}

static bool drops(const mu_log_source *src, const mu_step_result *r, mu_advice *a) {
    double factor = src->cfg->moe.capacity_factor;
    if (!(r->values.dropped > MANY_DROPS)) return false;
    a->option = "moe.capacity_factor", a->value = mu_format("%g", factor);
    a->text = mu_format("%.0f %% of the assignments were dropped: raise moe.capacity_factor (now %g; %s0 drops none)", 100 * r->values.dropped,
                        factor, factor < 1 ? "even a balanced load needs 1; " : "");
    return true;
}

/* A balancing term or the z-loss moves the routers more than what they could learn from the texts. */
static bool dominated(const mu_log_source *src, mu_advice *a) {
    const mu_moe_config *m = &src->cfg->moe, usual = mu_moe_config_default();
    const struct { const char *option; double now, usual; mu_router_grad term; } terms[] = {
        { "moe.aux_loss_coeff", m->aux_loss_coeff, usual.aux_loss_coeff, MU_ROUTER_GRAD_AUX },
        { "moe.seq_aux_loss_coeff", m->seq_aux_loss_coeff, usual.seq_aux_loss_coeff, MU_ROUTER_GRAD_SEQ_AUX },
        { "moe.z_loss_coeff", m->z_loss_coeff, usual.z_loss_coeff, MU_ROUTER_GRAD_Z },
    };
    for (size_t i = 0; i < sizeof terms / sizeof *terms; i++) {
        double share = mu_router_grad_share(src->state->stats, terms[i].term);
        if (!(share > LARGE_TERM)) continue;
        a->option = terms[i].option, a->value = mu_format("%g", terms[i].now);
        a->text = mu_format("%s=%g makes its term %.0f %% of the gradient of the routers, so that they learn little from the texts: lower it"
                            " (the default is %g)", a->option, terms[i].now, 100 * share, terms[i].usual);
        return true;
    }
    return false;
}

bool mu_advice_find(const mu_log_source *src, const mu_step_result *r, mu_advice_topic topic, mu_advice *a) {
    const mu_moe_config *m = &src->cfg->moe;
    *a = (mu_advice){ .topic = topic };
    if (src->state->step < LATEST || m->force_balanced || m->force_skew) return false; /* benchmarks */
    switch (topic) {
    case MU_ADVICE_COLLAPSE: return collapses(src, a);
    case MU_ADVICE_UNUSED: return unused(src, a);
    case MU_ADVICE_NEEDED: return needed(src, a);
    case MU_ADVICE_DROPS: return drops(src, r, a);
    default: return dominated(src, a);
    }
}
