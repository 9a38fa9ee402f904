/* metrics_moe.c - what the metrics say of the experts: for each MoE layer, and for the whole model. Definitions: docs/files.md. */
#include "train/train.h"

#include <math.h>
#include <stdlib.h>

/* "moe/layer_3/NAME"; the text lives until the next call with the same key. */
typedef struct { char text[96]; } name;
static const char *of_layer(name *key, const mu_log_source *src, int layer, const char *what) {
    snprintf(key->text, sizeof key->text, "moe/layer_%d/%s", src->state->model->moe_layers[layer], what);
    return key->text;
}

/* Values that are not finite are left out. */
static void add_value(mu_json *j, const char *key, double value) {
    if (isfinite(value)) mu_json_float(j, key, value);
}

static void add_counts(mu_json *j, const char *key, const int64_t *values, int64_t n) {
    mu_json_begin(j, key, '[');
    for (int64_t i = 0; i < n; i++) mu_json_int(j, NULL, values[i]);
    mu_json_end(j, ']');
}

/* The experts in this state; returns how many. */
static int add_states(mu_json *j, const char *key, const mu_expert_state *states, int experts, mu_expert_state state) {
    int n = 0;
    mu_json_begin(j, key, '[');
    for (int i = 0; i < experts; i++)
        if (states[i] == state) mu_json_int(j, NULL, i), n++;
    mu_json_end(j, ']');
    return n;
}

static double bias_absmax(const mu_log_source *src, int layer) {
    const mu_moe *moe = &src->state->model->blocks[src->state->model->moe_layers[layer]].moe;
    double most = 0;
    for (int64_t i = 0; i < moe->E; i++) most = fmax(most, fabs(moe->bias[i]));
    return most;
}

static bool has_bias(const mu_log_source *src) { return src->cfg->moe.balance & MU_BALANCE_SELECTION; }

/* To six digits: lists of many values stay short. */
static double rounded(double x) {
    char text[32];
    snprintf(text, sizeof text, "%.6g", x);
    return strtod(text, NULL);
}

/* Means over the tokens of a step. */
typedef struct { double entropy, top, boundary; } margins;

static margins margins_of(const mu_log_source *src, int layer) {
    const mu_margins *m = &src->state->stats->margins[layer];
    double all = (double)(src->cfg->train.global_batch_size * src->cfg->train.seq_len) * MU_MARGIN_UNIT;
    return (margins){ (double)m->entropy / all, (double)m->top / all, (double)m->boundary / all };
}

static void add_margins(mu_json *j, const mu_log_source *src, int layer, const margins *m) {
    name key;
    mu_json_float(j, of_layer(&key, src, layer, "router_entropy"), m->entropy);
    mu_json_float(j, of_layer(&key, src, layer, "top1_margin"), m->top);
    mu_json_float(j, of_layer(&key, src, layer, "boundary_margin"), m->boundary);
}

/* Which terms the loss of a router has: none that is off has a key. */
static bool has_term(const mu_log_source *src, mu_router_grad term) {
    const mu_moe_config *m = &src->cfg->moe;
    const mu_protect_config *p = &src->cfg->protect;
    switch (term) {
    case MU_ROUTER_GRAD_GATE: return p->gate_coeff > 0 && (p->domains.n || p->carriers.n);
    case MU_ROUTER_GRAD_AUX: return m->balance & (MU_BALANCE_AUX | MU_BALANCE_GLOBAL_AUX);
    case MU_ROUTER_GRAD_SEQ_AUX: return m->balance & MU_BALANCE_SEQ_AUX;
    case MU_ROUTER_GRAD_Z: return m->z_loss_coeff > 0;
    default: return true;
    }
}

static const char *const terms[MU_ROUTER_GRADS] = { [MU_ROUTER_GRAD_LM] = "lm", [MU_ROUTER_GRAD_AUX] = "aux", [MU_ROUTER_GRAD_SEQ_AUX] = "seq_aux",
                                                    [MU_ROUTER_GRAD_Z] = "z", [MU_ROUTER_GRAD_GATE] = "gate" };

static double grad_share(const mu_routing_stats *s, int layer, int term) {
    const int64_t *norms = s->router_grads + layer * MU_ROUTER_GRADS;
    double sum = 0;
    for (int i = 0; i < MU_ROUTER_GRADS; i++) sum += (double)norms[i];
    return (double)norms[term] / sum;
}

double mu_router_grad_share(const mu_routing_stats *s, mu_router_grad term) {
    double mean = 0;
    for (int layer = 0; layer < s->window.layers; layer++) mean += grad_share(s, layer, (int)term) / s->window.layers;
    return mean;
}

static void add_grad_shares(mu_json *j, const mu_log_source *src, int layer) {
    for (int term = 0; term < MU_ROUTER_GRADS; term++) {
        char what[32];
        name key;
        snprintf(what, sizeof what, "grad_share/%s", terms[term]);
        if (has_term(src, (mu_router_grad)term)) add_value(j, of_layer(&key, src, layer, what), grad_share(src->state->stats, layer, term));
    }
}

static void add_mean_grad_shares(mu_json *j, const mu_log_source *src) {
    for (int term = 0; term < MU_ROUTER_GRADS; term++) {
        char key[32];
        snprintf(key, sizeof key, "moe/grad_share/%s", terms[term]);
        if (has_term(src, (mu_router_grad)term)) add_value(j, key, mu_router_grad_share(src->state->stats, (mu_router_grad)term));
    }
}

/* The mean gate of each expert's tokens. */
static void add_gates(mu_json *j, const mu_log_source *src, int layer) {
    const mu_routing_stats *s = src->state->stats;
    int64_t E = s->window.experts, first = layer * E;
    name key;
    mu_json_begin(j, of_layer(&key, src, layer, "gate_mass"), '[');
    for (int64_t i = first; i < first + E; i++)
        mu_json_float(j, NULL, s->counts[i] ? rounded((double)s->gate_mass[i] / MU_GATE_UNIT * src->cfg->moe.route_scale / (double)s->counts[i]) : 0);
    mu_json_end(j, ']');
}

/* Over the layers: the worst of what describes the worst expert, the mean of the others. */
typedef struct { mu_load load; margins margins; double bias_absmax; } summary;

static void summarise(summary *s, const mu_load *l, const margins *m, double bias, int layers) {
    s->load.load_imbalance = fmax(s->load.load_imbalance, l->load_imbalance);
    s->load.max_vio = fmax(s->load.max_vio, l->max_vio);
    s->load.min_vio = fmax(s->load.min_vio, l->min_vio);
    s->load.load_cv += l->load_cv / layers;
    s->load.gini += l->gini / layers;
    s->load.diversity += l->diversity / layers;
    s->margins.entropy += m->entropy / layers;
    s->margins.top += m->top / layers;
    s->margins.boundary += m->boundary / layers;
    s->bias_absmax = fmax(s->bias_absmax, bias);
}

static void add_load(mu_json *j, const mu_log_source *src, int layer, const mu_load *l) {
    name key;
    mu_json_float(j, of_layer(&key, src, layer, "load_imbalance"), l->load_imbalance);
    mu_json_float(j, of_layer(&key, src, layer, "max_vio"), l->max_vio);
    mu_json_float(j, of_layer(&key, src, layer, "min_vio"), l->min_vio);
    mu_json_float(j, of_layer(&key, src, layer, "load_cv"), l->load_cv);
    mu_json_float(j, of_layer(&key, src, layer, "gini"), l->gini);
    mu_json_float(j, of_layer(&key, src, layer, "diversity"), l->diversity);
}

/* The experts that are dead or starved, once there are enough steps. states: scratch [experts]. */
static void add_unhealthy(mu_json *j, const mu_log_source *src, int layer, mu_expert_state *states) {
    const mu_load_window *w = &src->state->stats->window;
    name key;
    if (!mu_load_window_is_long_enough(w)) return;
    mu_load_window_states(w, layer, states);
    int dead = add_states(j, of_layer(&key, src, layer, "dead"), states, w->experts, MU_EXPERT_DEAD);
    int starved = add_states(j, of_layer(&key, src, layer, "starved"), states, w->experts, MU_EXPERT_STARVED);
    mu_json_float(j, of_layer(&key, src, layer, "dead_frac"), (double)dead / w->experts);
    mu_json_float(j, of_layer(&key, src, layer, "starved_frac"), (double)starved / w->experts);
}

/* With a capacity: what is dropped of each expert, and its share of the layer's assignments. */
static void add_dropped(mu_json *j, const mu_log_source *src, int layer, const int64_t *counts_E) {
    const mu_routing_stats *s = src->state->stats;
    int64_t E = s->window.experts, all = 0, dropped = 0;
    const int64_t *dropped_E = s->dropped + layer * E;
    name key;
    if (!(src->cfg->moe.capacity_factor > 0)) return;
    for (int64_t i = 0; i < E; i++) all += counts_E[i], dropped += dropped_E[i];
    add_counts(j, of_layer(&key, src, layer, "dropped"), dropped_E, E);
    mu_json_float(j, of_layer(&key, src, layer, "dropped_frac"), (double)dropped / (double)all);
}

static summary add_layers(mu_json *j, const mu_log_source *src) {
    const mu_routing_stats *s = src->state->stats;
    int E = s->window.experts, n = s->window.layers;
    mu_expert_state *states = mu_alloc((size_t)E, sizeof *states);
    summary all = { 0 };
    name key;
    for (int layer = 0; layer < n; layer++) {
        const int64_t *counts = s->counts + (int64_t)layer * E;
        mu_load l = mu_load_of(counts, E);
        margins m = margins_of(src, layer);
        double bias = bias_absmax(src, layer);
        add_counts(j, of_layer(&key, src, layer, "load"), counts, E);
        add_load(j, src, layer, &l);
        add_margins(j, src, layer, &m);
        add_gates(j, src, layer);
        add_grad_shares(j, src, layer);
        add_dropped(j, src, layer, counts);
        if (has_bias(src)) mu_json_float(j, of_layer(&key, src, layer, "bias_absmax"), bias);
        add_unhealthy(j, src, layer, states);
        summarise(&all, &l, &m, bias, n);
    }
    free(states);
    return all;
}

/* With a capacity: the share of each domain's assignments that it drops. */
static void add_dropped_of_domains(mu_json *j, const mu_log_source *src) {
    const mu_routing_stats *s = src->state->stats;
    for (int d = 0; d < s->domains && src->cfg->moe.capacity_factor > 0; d++) {
        char key[MU_STATISTICS_NAME + 32];
        int64_t all = 0;
        for (int64_t i = 0; i < (int64_t)s->window.layers * s->window.experts; i++) all += s->by_domain[i * s->domains + d];
        snprintf(key, sizeof key, "moe/%s/dropped_frac", src->corpus->domains[d].name);
        if (all) mu_json_float(j, key, (double)s->dropped_of[d] / (double)all);
    }
}

static void add_model(mu_json *j, const mu_log_source *src, const mu_step_result *r, const summary *all) {
    const mu_load_window *w = &src->state->stats->window;
    add_value(j, "moe/aux_loss", r->values.aux);
    add_value(j, "moe/z_loss", r->values.z);
    add_value(j, "moe/gate_loss", r->values.gate);
    mu_json_float(j, "moe/load_imbalance", all->load.load_imbalance);
    mu_json_float(j, "moe/max_vio", all->load.max_vio);
    mu_json_float(j, "moe/min_vio", all->load.min_vio);
    mu_json_float(j, "moe/load_cv", all->load.load_cv);
    mu_json_float(j, "moe/gini", all->load.gini);
    mu_json_float(j, "moe/diversity", all->load.diversity);
    mu_json_float(j, "moe/router_entropy", all->margins.entropy);
    mu_json_float(j, "moe/top1_margin", all->margins.top);
    mu_json_float(j, "moe/boundary_margin", all->margins.boundary);
    if (mu_load_window_is_long_enough(w)) {
        mu_unhealthy found = mu_load_window_count_unhealthy(w);
        mu_json_float(j, "moe/dead_frac", (double)found.dead / (w->layers * w->experts));
        mu_json_float(j, "moe/starved_frac", (double)found.starved / (w->layers * w->experts));
    }
    mu_json_float(j, "moe/dropped_frac", r->values.dropped);
    add_dropped_of_domains(j, src);
    if (has_bias(src)) mu_json_float(j, "moe/bias_absmax", all->bias_absmax);
    add_mean_grad_shares(j, src);
}

void mu_metrics_add_routing(mu_json *j, const mu_log_source *src, const mu_step_result *r) {
    summary all = add_layers(j, src);
    add_model(j, src, r, &all);
}

/* ------------------------------------------------------------------ statistics lines */

/* [E, E] of tokens that chose both; on the diagonal those that chose the expert. Or the most frequent pairs as i, j, n. */
static void add_pairs(mu_json *j, const mu_log_source *src, int layer, const int64_t *load_E) {
    const mu_routing_stats *s = src->state->stats;
    const mu_expert_pair *list = s->pairs + layer * s->n_pairs;
    int64_t E = s->window.experts, *joint = s->all_pairs ? mu_alloc((size_t)(E * E), sizeof *joint) : NULL;
    name key;
    if (!joint) mu_json_begin(j, of_layer(&key, src, layer, "coactivation_top"), '[');
    for (int64_t p = 0; p < s->n_pairs; p++) {
        if (joint) joint[list[p].i * E + list[p].j] = joint[list[p].j * E + list[p].i] = list[p].n;
        else if (list[p].n) mu_json_int(j, NULL, list[p].i), mu_json_int(j, NULL, list[p].j), mu_json_int(j, NULL, list[p].n);
    }
    if (!joint) mu_json_end(j, ']');
    for (int64_t i = 0; i < E && joint; i++) joint[i * E + i] = load_E[i];
    if (joint) add_counts(j, of_layer(&key, src, layer, "coactivation"), joint, E * E);
    free(joint);
}

static void add_list(mu_json *j, const char *key, const double *values, int64_t n) {
    mu_json_begin(j, key, '[');
    for (int64_t i = 0; i < n; i++) mu_json_float(j, NULL, rounded(values[i]));
    mu_json_end(j, ']');
}

/* Lists [E, D] would make the lines of a large model with many domains too long; they follow from statistics.rec, too. */
static bool has_domain_lists(const mu_routing_stats *s) {
    return (int64_t)s->window.layers * s->window.experts * s->domains <= MU_DOMAIN_CELLS;
}

static mu_mutual_information add_specialisation(mu_json *j, const mu_log_source *src, int layer, const int64_t *n_ED) {
    const mu_routing_stats *s = src->state->stats;
    int E = s->window.experts, D = s->domains;
    mu_mutual_information mi = mu_mutual_information_of(n_ED, E, D);
    name key;
    mu_json_float(j, of_layer(&key, src, layer, "mutual_information"), mi.nats);
    mu_json_float(j, of_layer(&key, src, layer, "mutual_information_norm"), mi.normalised);
    if (!has_domain_lists(s)) return mi;
    double *values = mu_alloc((size_t)E * (size_t)D, sizeof *values);
    mu_domain_shares(n_ED, E, D, src->cfg->moe.top_k, values);
    add_list(j, of_layer(&key, src, layer, "domain_specialisation"), values, (int64_t)E * D);
    mu_domain_lift(n_ED, E, D, values);
    add_list(j, of_layer(&key, src, layer, "lift"), values, (int64_t)E * D);
    free(values);
    return mi;
}

void mu_metrics_add_window(mu_json *j, const mu_log_source *src) {
    const mu_routing_stats *s = src->state->stats;
    int64_t E = s->window.experts, D = s->domains, *load = mu_alloc((size_t)E, sizeof *load), *n_ED = mu_alloc((size_t)(E * D), sizeof *n_ED);
    mu_mutual_information mean = { 0, 0 };
    name key;
    mu_json_int(j, "stats/steps", s->interval.steps);
    for (int layer = 0; layer < s->window.layers; layer++) {
        for (int64_t i = 0; i < E; i++) load[i] = 0;
        for (int64_t c = 0; c < E * D; c++) load[c / D] += n_ED[c] = s->interval.by_domain[layer * E * D + c];
        add_counts(j, of_layer(&key, src, layer, "load"), load, E);
        add_counts(j, of_layer(&key, src, layer, "last_step"), s->window.last_step + layer * E, E);
        if (s->n_pairs) add_pairs(j, src, layer, load);
        mu_mutual_information mi = add_specialisation(j, src, layer, n_ED);
        mean.nats += mi.nats / s->window.layers, mean.normalised += mi.normalised / s->window.layers;
    }
    add_value(j, "moe/mutual_information", mean.nats);
    add_value(j, "moe/mutual_information_norm", mean.normalised);
    free(n_ED);
    free(load);
}
