/* metrics_knowledge.c - what experts know, in the statistics lines of metrics.jsonl. */
#include "train/train.h"

#include <math.h>

static double rounded(double x) { return round(x * 1e6) / 1e6 + 0.0; } /* never -0 */

static void add_value(mu_json *j, const char *key, double x) {
    if (isfinite(x)) mu_json_float(j, key, rounded(x));
}

/* Of a measurement of this step (of_now) it is known which cells are still to be measured. */
static void add_criticality(mu_json *j, const mu_knowledge *k, int layer, int number, bool of_now) {
    char key[64];
    int64_t n = (int64_t)k->experts * k->domains, first = layer * n;
    snprintf(key, sizeof key, "moe/layer_%d/criticality", number);
    mu_json_begin(j, key, '[');
    for (int64_t i = first; i < first + n; i++) mu_json_float(j, NULL, rounded((double)k->K[i]));
    mu_json_end(j, ']');
    snprintf(key, sizeof key, "moe/layer_%d/criticality_step", number);
    mu_json_begin(j, key, '[');
    for (int64_t i = 0; i < n; i++) {
        bool waits = of_now && !k->at[first + i] && mu_knowledge_screened(k, layer, (int)(i / k->domains), (int)(i % k->domains));
        mu_json_int(j, NULL, waits ? -1 : k->at[first + i]);
    }
    mu_json_end(j, ']');
}

static void add_list(mu_json *j, const char *key, const double *x, const int64_t *whole, int64_t n) {
    mu_json_begin(j, key, '[');
    for (int64_t i = 0; i < n; i++) {
        if (x) mu_json_float(j, NULL, rounded(x[i]));
        else mu_json_int(j, NULL, whole[i]);
    }
    mu_json_end(j, ']');
}

/* The landmarks that there are: their steps, or a layer's saturation. */
static void add_landmarks(mu_json *j, const mu_knowledge *k, const char *key, const double *saturation) {
    mu_json_begin(j, key, '[');
    for (int m = 0; m < MU_LANDMARKS; m++) {
        if (!k->landmark_step[m] || k->landmark_step[m] == k->step) continue;
        if (saturation) mu_json_float(j, NULL, rounded(saturation[m]));
        else mu_json_int(j, NULL, k->landmark_step[m]);
    }
    mu_json_end(j, ']');
}

/* What has one value per layer, and for the model their mean. NaN: not measured. */
enum { VALUES = 4 };
static const char *const names[VALUES] = { "flip_rate", "vocabulary_specialisation", "similarity", "cka" };

static void values_of(const mu_knowledge *k, int layer, bool of_now, double values[VALUES]) {
    values[0] = of_now ? k->flip_rate[layer] : NAN, values[1] = of_now ? k->vocabulary[layer] : NAN;
    values[2] = k->similarity_step ? k->similarity[layer] : NAN, values[3] = k->similarity_step ? k->cka[layer] : NAN;
}

static void add_means(mu_json *j, const mu_knowledge *k, bool of_now) {
    double mean[VALUES] = { 0 }, values[VALUES];
    char key[64];
    for (int layer = 0; layer < k->layers; layer++) {
        values_of(k, layer, of_now, values);
        for (int i = 0; i < VALUES; i++) mean[i] += values[i] / k->layers;
    }
    for (int i = 0; i < VALUES; i++) {
        snprintf(key, sizeof key, "moe/%s", names[i]);
        add_value(j, key, mean[i]);
    }
}

/* of_now: of a measurement of this step; otherwise only what holds longer. */
static void add_layer(mu_json *j, const mu_knowledge *k, int layer, int number, bool of_now) {
    char key[64];
    int64_t row = (int64_t)layer * k->experts;
    double values[VALUES];
    values_of(k, layer, of_now, values);
    for (int i = 0; i < VALUES; i++) {
        snprintf(key, sizeof key, "moe/layer_%d/%s", number, names[i]);
        add_value(j, key, values[i]);
    }
    if (of_now) {
        snprintf(key, sizeof key, "moe/layer_%d/saturation", number);
        add_landmarks(j, k, key, k->saturation + layer * MU_LANDMARKS);
    }
    if (k->similarity_step) {
        snprintf(key, sizeof key, "moe/layer_%d/similarity_max", number);
        add_list(j, key, k->twin + row, NULL, k->experts);
        snprintf(key, sizeof key, "moe/layer_%d/most_similar", number);
        add_list(j, key, NULL, k->twin_of + row, k->experts);
    }
    add_criticality(j, k, layer, number, of_now);
}

static void add_domains(mu_json *j, const mu_knowledge *k) {
    for (int d = 0; d < k->domains; d++) {
        char key[96];
        if (!k->tokens[d] || k->ce_best[d] == 0) continue;
        snprintf(key, sizeof key, "probe/%s/ce_loss", k->names[d]);
        mu_json_float(j, key, k->ce[d]);
        snprintf(key, sizeof key, "probe/%s/ce_change", k->names[d]);
        mu_json_float(j, key, k->ce[d] - k->ce_best[d]);
    }
}

void mu_metrics_add_knowledge(mu_json *j, const mu_log_source *src) {
    enum { ROUNDS = 10 };
    const mu_knowledge *k = src->state->knowledge;
    bool of_now = k->rounds && k->step == src->state->step;
    if (!k->rounds) return;
    if (of_now) {
        add_domains(j, k);
        add_landmarks(j, k, "stats/saturation_steps", NULL);
        add_value(j, "stats/criticality_coverage", mu_knowledge_coverage(k, k->step - ROUNDS * src->cfg->stats.every));
    }
    add_means(j, k, of_now);
    for (int layer = 0; layer < k->layers; layer++) add_layer(j, k, layer, src->state->model->moe_layers[layer], of_now);
}
