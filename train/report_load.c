/* report_load.c - how the load spreads over the experts: measures of balance over time, load by layer, by expert and over time. */
#include "train/report.h"

#include <math.h>
#include <stdlib.h>

/* Values of curves by key; those that the run has. */
typedef struct { const char *key, *name; } wanted;
static void put_wanted(mu_page *p, const mu_report *r, const mu_axes *axes, const wanted *list, int n, const mu_curve_options *options) {
    mu_curve curves[8] = { 0 };
    for (int i = 0; i < n; i++) {
        const mu_series *s = mu_report_series(r, "%s", list[i].key);
        if (s) curves[i] = (mu_curve){ .name = list[i].name, .n = s->n, .x = s->step, .y = s->value, .dots = s->n <= 20 };
    }
    mu_plot_curves(p, axes, curves, n, options);
}
#define PUT_WANTED(p, r, axes, list, options) put_wanted(p, r, axes, list, (int)(sizeof list / sizeof *list), options)

void mu_report_put_balance(mu_page *p, const mu_report *r) {
    static const wanted imbalance[] = { { "moe/load_imbalance", "busiest expert (load_imbalance)" } };
    static const wanted shares[] = { { "moe/dead_frac", "dead" }, { "moe/starved_frac", "below 10 % of the mean load" }, { "moe/dropped_frac", "dropped assignments" } };
    static const wanted spread[] = { { "moe/diversity", "diversity" }, { "moe/load_cv", "load_cv" }, { "moe/gini", "gini" } };
    double last = (double)r->last_step;
    mu_page_section(p, "balance", "Balance");
    mu_axes axes = { "Load of the busiest expert", "Tokens of the busiest expert of the least balanced layer, as a multiple of the mean. 1 is perfect "
                     "balance; above 2 the busiest expert does the work of two.", "step", "x mean load", 0, last };
    PUT_WANTED(p, r, &axes, imbalance, NULL);
    axes = (mu_axes){ "Evenness of the load", "Means over the layers. diversity is the share of experts that is effectively in use (1 is best); load_cv is standard "
                      "deviation over mean, and gini the inequality, of the loads (0 is best).", "step", "", 0, last };
    PUT_WANTED(p, r, &axes, spread, &(mu_curve_options){ .from_zero = true });
    axes = (mu_axes){ "Experts without work, and work without experts", "Share of all experts that is dead, or below 10 % of the mean load, in the window of stats.window "
                      "steps (the state starved has another rule), and share of assignments that is dropped. All should be 0.", "step", "share", 0, last };
    PUT_WANTED(p, r, &axes, shares, &(mu_curve_options){ .from_zero = true });
    static const wanted parts[] = { { "moe/grad_share/lm", "through the gates (cross-entropy)" }, { "moe/grad_share/aux", "aux_loss, global_aux_loss" },
                                    { "moe/grad_share/seq_aux", "seq_aux_loss" }, { "moe/grad_share/z", "z-loss" } };
    axes = (mu_axes){ "What moves the routers", "Share of each loss term in the gradient of the routers' logits: mean norm over tokens, mean over layers. Where a balancing "
                      "term takes most of it, the routers learn little from the texts.", "step", "share", 0, last };
    PUT_WANTED(p, r, &axes, parts, &(mu_curve_options){ .from_zero = true });
    static const wanted entropy[] = { { "moe/router_entropy", "router entropy" } };
    static const wanted top[] = { { "moe/top1_margin", "top-1 margin" } }, boundary[] = { { "moe/boundary_margin", "boundary margin" } };
    axes = (mu_axes){ "How undecided the router is", mu_show("Entropy of the router's scores, mean over tokens and layers: %.2f is undecided between all experts, 0 is certain. A fall to 0 in the "
                      "first steps is a collapse.", log((double)r->experts)), "step", "nats", 0, last };
    PUT_WANTED(p, r, &axes, entropy, &(mu_curve_options){ .from_zero = true });
    axes = (mu_axes){ "How clear the first choice is", "top-1 margin: the largest logit minus the second largest.", "step", "logits", 0, last };
    PUT_WANTED(p, r, &axes, top, &(mu_curve_options){ .from_zero = true });
    axes = (mu_axes){ "How clear the last choice is", "boundary margin: the score of the last chosen expert minus that of the best that was not chosen. While it is small, tokens change "
                      "experts easily.", "step", "score", 0, last };
    PUT_WANTED(p, r, &axes, boundary, &(mu_curve_options){ .from_zero = true });
}

/* ------------------------------------------------------------------ maps of load */

enum { RANGE = 2 };     /* from 1/4 to 4 times the mean load */

static uint8_t level_of(double load, double mean) {
    if (mean <= 0) return MU_LEVEL_NONE;
    return load > 0 ? mu_colours_level(log2(load / mean), -RANGE, RANGE) : MU_LEVEL_SPECIAL;
}

static mu_map load_map(const uint8_t *levels, int64_t rows, int64_t cols) {
    return (mu_map){ .colours = MU_COLOURS_DIVERGING, .rows = rows, .cols = cols, .levels = levels, .low = -RANGE, .high = RANGE, .log2 = true,
                     .unit = "x mean load of the layer", .special = "no token", .row = "expert", .col = "step" };
}

static void put_by_layer(mu_page *p, const mu_report *r) {
    int64_t E = r->experts;
    uint8_t *levels = mu_alloc((size_t)(r->n_moe * E), 1);
    for (int64_t l = 0; l < r->n_moe; l++) {
        double mean = (double)r->of_layer[l] / (double)E;
        for (int64_t i = 0; i < E; i++) levels[l * E + i] = level_of((double)r->of_expert[l * E + i], mean);
    }
    mu_map map = load_map(levels, r->n_moe, E);
    map.row = "layer", map.col = "expert", map.row_first = r->layer[0];
    mu_axes axes = { "Load now, by layer and expert", mu_show("Each cell is one expert, over the logged steps since %lld (the second half). White is the mean load; red experts are "
                     "overloaded, blue ones get little, black ones nothing.", (long long)r->recent_from), "expert", "layer", 0, 0 };
    if (r->by_domain) mu_plot_map(p, &axes, &map);
    free(levels);
}

static void put_layer(mu_page *p, const mu_report *r, int64_t l) {
    int64_t E = r->experts, C = r->columns;
    uint8_t *levels = mu_alloc((size_t)(E * C), 1);
    for (int64_t col = 0; col < C; col++) {
        const int64_t *load = r->load + (l * C + col) * E;
        double all = 0;
        for (int64_t i = 0; i < E; i++) all += (double)load[i];
        for (int64_t i = 0; i < E; i++)     /* no logged step in this column: as before */
            levels[i * C + col] = all > 0 ? level_of((double)load[i], all / (double)E) : col ? levels[i * C + col - 1] : MU_LEVEL_NONE;
    }
    mu_map map = load_map(levels, E, C);
    mu_axes axes = { mu_show("Load over time, layer %lld", (long long)r->layer[l]), "A row is an expert, time runs to the right. A row that turns blue is an "
                     "expert losing its tokens; one that stays red takes those of others.", "step", "expert", 0, (double)r->last_step };
    mu_plot_map(p, &axes, &map);
    free(levels);
}

void mu_report_put_load(mu_page *p, const mu_report *r) {
    enum { OPEN = 4 };
    mu_page_section(p, "load", "Load of the experts");
    if (r->no_counts) {
        mu_page_missing(p, "No counts: %s. They are in statistics.rec, one record per logged step (log.every).", r->no_counts);
        return;
    }
    put_by_layer(p, r);
    for (int64_t l = 0; l < r->n_moe; l += r->layer_step) {
        mu_page_fold(p, r->n_moe <= OPEN || l == 0, "Layer %lld", (long long)r->layer[l]);
        put_layer(p, r, l);
        mu_page_unfold(p);
    }
}
