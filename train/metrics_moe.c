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

static void add_states(mu_json *j, const char *key, const mu_expert_state *states, int experts, mu_expert_state state) {
    mu_json_begin(j, key, '[');
    for (int i = 0; i < experts; i++)
        if (states[i] == state) mu_json_int(j, NULL, i);
    mu_json_end(j, ']');
}

static double bias_absmax(const mu_log_source *src, int layer) {
    const mu_moe *moe = &src->state->model->blocks[src->state->model->moe_layers[layer]].moe;
    double most = 0;
    for (int64_t i = 0; i < moe->E; i++) most = fmax(most, fabs(moe->bias[i]));
    return most;
}

static bool has_bias(const mu_log_source *src) { return src->cfg->moe.balance & MU_BALANCE_BIAS; }

/* Over the layers: the worst of what describes the worst expert, the mean of the others. */
typedef struct { mu_load load; double bias_absmax; } summary;

static void summarise(summary *s, const mu_load *l, double bias, int layers) {
    s->load.load_imbalance = fmax(s->load.load_imbalance, l->load_imbalance);
    s->load.max_vio = fmax(s->load.max_vio, l->max_vio);
    s->load.min_vio = fmax(s->load.min_vio, l->min_vio);
    s->load.load_cv += l->load_cv / layers;
    s->load.gini += l->gini / layers;
    s->load.diversity += l->diversity / layers;
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
    add_states(j, of_layer(&key, src, layer, "dead"), states, w->experts, MU_EXPERT_DEAD);
    add_states(j, of_layer(&key, src, layer, "starved"), states, w->experts, MU_EXPERT_STARVED);
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
        double bias = bias_absmax(src, layer);
        add_counts(j, of_layer(&key, src, layer, "load"), counts, E);
        add_load(j, src, layer, &l);
        if (has_bias(src)) mu_json_float(j, of_layer(&key, src, layer, "bias_absmax"), bias);
        add_unhealthy(j, src, layer, states);
        summarise(&all, &l, bias, n);
    }
    free(states);
    return all;
}

static void add_model(mu_json *j, const mu_log_source *src, const mu_step_result *r, const summary *all) {
    const mu_load_window *w = &src->state->stats->window;
    add_value(j, "moe/aux_loss", r->values.aux);
    add_value(j, "moe/z_loss", r->values.z);
    mu_json_float(j, "moe/load_imbalance", all->load.load_imbalance);
    mu_json_float(j, "moe/max_vio", all->load.max_vio);
    mu_json_float(j, "moe/min_vio", all->load.min_vio);
    mu_json_float(j, "moe/load_cv", all->load.load_cv);
    mu_json_float(j, "moe/gini", all->load.gini);
    mu_json_float(j, "moe/diversity", all->load.diversity);
    if (mu_load_window_is_long_enough(w)) {
        mu_unhealthy found = mu_load_window_count_unhealthy(w);
        mu_json_float(j, "moe/dead_frac", (double)found.dead / (w->layers * w->experts));
        mu_json_float(j, "moe/starved_frac", (double)found.starved / (w->layers * w->experts));
    }
    mu_json_float(j, "moe/dropped_frac", r->values.dropped);
    if (has_bias(src)) mu_json_float(j, "moe/bias_absmax", all->bias_absmax);
}

void mu_metrics_add_routing(mu_json *j, const mu_log_source *src, const mu_step_result *r) {
    summary all = add_layers(j, src);
    add_model(j, src, r, &all);
}

void mu_metrics_add_window(mu_json *j, const mu_log_source *src) {
    const mu_load_window *w = &src->state->stats->window;
    name key;
    mu_json_int(j, "stats/steps", w->held);
    for (int layer = 0; layer < w->layers; layer++) {
        int64_t first = (int64_t)layer * w->experts;
        add_counts(j, of_layer(&key, src, layer, "load"), w->total + first, w->experts);
        add_counts(j, of_layer(&key, src, layer, "last_step"), w->last_step + first, w->experts);
    }
}
