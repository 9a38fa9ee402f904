/* report_experts.c - what the experts are for: lift of domains, measures of specialisation by layer, criticality, pairs. */
#include "train/report.h"

#include <math.h>
#include <stdlib.h>

enum { OPEN = 4 };      /* layers shown unfolded */

/* ------------------------------------------------------------------ domain x expert */

static mu_axes domain_axes(const char *title, const char *how) { return (mu_axes){ title, how, "expert", "domain", 0, 0 }; }

static void put_lift(mu_page *p, const mu_report *r, int64_t l) {
    enum { RANGE = 3 };
    int64_t E = r->experts, D = r->n_domains;
    uint8_t *levels = mu_alloc((size_t)(E * D), 1);
    for (int64_t d = 0; d < D; d++)
        for (int64_t i = 0; i < E; i++) {
            double lift = mu_report_lift(r, l, i, d);
            levels[d * E + i] = isinf(lift) ? MU_LEVEL_SPECIAL : mu_colours_level(lift, -RANGE, RANGE);
        }
    mu_axes axes = domain_axes(mu_show("Lift, layer %lld", (long long)r->layer[l]), "Share of a domain's tokens that an expert gets, as a multiple of its share of all "
                               "tokens: red experts prefer the domain, blue ones avoid it, white ones do not care. Hatched: too few tokens to tell.");
    mu_map map = { .colours = MU_COLOURS_DIVERGING, .rows = D, .cols = E, .levels = levels, .low = -RANGE, .high = RANGE, .log2 = true,
                   .unit = "x its share of all tokens (lift)", .special = "no token of this domain", .row = "domain", .col = "expert",
                   .row_names = r->domain };
    mu_plot_map(p, &axes, &map);
    free(levels);
}

static int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* One scale for all layers, up to a size that one in twenty of the measured cells exceeds, so that a single expert on which everything
 * depends does not make all others white. */
typedef struct {
    double most, largest;
    bool told;                  /* cells that are still to be measured can be told from those that will not be */
} scale;
static scale scale_of(const mu_report *r) {
    static const double least = 0.05;   /* nats/token; less is not worth a strong colour */
    int64_t cells = r->experts * r->n_domains, n = 0;
    double *all = mu_alloc((size_t)(r->n_moe * cells) + 1, sizeof *all);
    bool told = json_number_value(json_object_get(r->statistics, "stats/criticality_coverage")) == 1;
    for (int64_t l = 0; l < r->n_moe; l++) {
        double *k = mu_report_list(r, cells, "moe/layer_%lld/criticality", (long long)r->layer[l]);
        double *at = mu_report_list(r, cells, "moe/layer_%lld/criticality_step", (long long)r->layer[l]);
        for (int64_t i = 0; k && at && i < cells; i++) {
            if (at[i] > 0) all[n++] = fabs(k[i]);
            told |= at[i] < 0;
        }
        free(k);
        free(at);
    }
    qsort(all, (size_t)n, sizeof *all, descending);
    scale s = { fmax(all[n / 20], least), fmax(all[0], least), told };
    free(all);
    return s;
}

static void put_criticality(mu_page *p, const mu_report *r, int64_t l, scale s) {
    double most = s.most;
    int64_t E = r->experts, D = r->n_domains;
    double *k = mu_report_list(r, E * D, "moe/layer_%lld/criticality", (long long)r->layer[l]);
    double *at = mu_report_list(r, E * D, "moe/layer_%lld/criticality_step", (long long)r->layer[l]);
    if (k && at) {
        uint8_t *levels = mu_alloc((size_t)(E * D), 1);
        for (int64_t d = 0; d < D; d++)
            for (int64_t i = 0; i < E; i++) {
                double step = at[i * D + d];
                levels[d * E + i] = step > 0 ? mu_colours_level(k[i * D + d], -most, most) : step < 0 ? MU_LEVEL_SPECIAL : MU_LEVEL_NONE;
            }
        int64_t known = 0;
        for (int64_t i = 0; i < E * D; i++) known += at[i] > 0;
        mu_axes axes = domain_axes(mu_show("Criticality, layer %lld", (long long)r->layer[l]), mu_show("How much the loss of a domain's probe rises when this one expert is masked: red experts "
                                   "hold what the domain needs. One scale for all layers%s. %lld of %lld cells were measured.",
                                   s.largest > most ? mu_show(", which ends at %.2g: a few cells are stronger, up to %.2g", most, s.largest) : "",
                                   (long long)known, (long long)(E * D)));
        mu_plot_map(p, &axes, &(mu_map){ .colours = MU_COLOURS_DIVERGING, .rows = D, .cols = E, .levels = levels, .low = -most, .high = most,
                                         .unit = "nats/token", .special = "not measured yet", .none = s.told ? "screened out: too few tokens of the domain" : "not measured",
                                         .row = "domain", .col = "expert", .row_names = r->domain });
        free(levels);
    }
    free(k);
    free(at);
}

/* Cells are screened before they are measured; or why there is no criticality at all. */
static bool put_coverage(mu_page *p, const mu_report *r) {
    double covered = mu_series_last(mu_report_series(r, "stats/criticality_coverage"));
    if (isnan(covered)) {
        mu_page_missing(p, "No criticality: %s.", mu_report_why_no_probe(r));
        return false;
    }
    mu_page_put(p, "<p class=\"soft\">Criticality is measured where an expert gets at least 1.5 times its fair share of a domain. Of these cells <b>%.0f %%</b> were measured in the last ten intervals of "
                   "stats.every (%lld steps); %s</p>\n", 100 * covered, (long long)r->view.cfg.stats.every,
                covered < 1 ? mu_show("a larger stats.budget (now %g) reaches more.", r->view.cfg.stats.budget) : "the other cells were screened out.");
    return true;
}

/* ------------------------------------------------------------------ measures by layer */

typedef struct { const char *key, *name, *how; } measure;
static const measure measures[] = {
    { "load_imbalance", "imbalance", "load of the busiest expert over the mean" },
    { "gini", "gini", "inequality of the loads, 0 to 1" },
    { "router_entropy", "router entropy", "of the scores, nats, mean over tokens: how undecided the router is" },
    { "top1_margin", "top-1 margin", "largest logit minus the second largest" },
    { "boundary_margin", "boundary margin", "score of the last chosen expert minus that of the best other: small, many tokens are about to change experts" },
    { "vocabulary_specialisation", "vocabulary spec.", "share of the tokens with one id that go to one expert first, on the probe" },
    { "similarity", "similarity", "mean cosine of the outputs of two experts on the probe" },
    { "cka", "CKA", "linear CKA of the outputs of two experts on the probe" },
    { "flip_rate", "flip rate", "share of the chosen experts that were not chosen at the measurement before, on the probe" },
};
enum { N_MEASURES = sizeof measures / sizeof *measures };

static double measured(const mu_report *r, int64_t l, int m) {
    const mu_series *s = mu_report_series(r, "moe/layer_%lld/%s", (long long)r->layer[l], measures[m].key);
    return mu_series_recent(s);
}

static void put_measures(mu_page *p, const mu_report *r) {
    bool shown[N_MEASURES] = { false };
    for (int m = 0; m < N_MEASURES; m++)
        for (int64_t l = 0; l < r->n_moe; l++) shown[m] |= !isnan(measured(r, l, m));
    mu_page_put(p, "<h3>Layer by layer</h3><p class=\"soft\">Means of the last tenth of the logged values. <b>domain information</b>: mutual information of domain and expert over the smaller of "
                   "their entropies (0: experts ignore domains, 1: one follows from the other), from the counts of this page");
    for (int m = 0; m < N_MEASURES; m++)
        if (shown[m]) mu_page_put(p, "; <b>%s</b>: %s", measures[m].name, measures[m].how);
    mu_page_put(p, ".</p>\n<div class=\"wide\"><table><thead><tr><th>layer</th><th>domain information</th>");
    for (int m = 0; m < N_MEASURES; m++)
        if (shown[m]) mu_page_put(p, "<th>%s</th>", measures[m].name);
    mu_page_put(p, "</tr></thead><tbody>\n");
    for (int64_t l = 0; l < r->n_moe; l++) {
        mu_page_put(p, "<tr><td>%lld</td><td>%s</td>", (long long)r->layer[l], mu_show_number(mu_report_information(r, l)));
        for (int m = 0; m < N_MEASURES; m++)
            if (shown[m]) mu_page_put(p, "<td>%s</td>", mu_show_number(measured(r, l, m)));
        mu_page_put(p, "</tr>\n");
    }
    mu_page_put(p, "</tbody></table></div>\n");
}

/* A curve for each layer; nothing without such a key. */
static void put_layers(mu_page *p, const mu_report *r, const char *key, const char *title, const char *how) {
    mu_curve *curves = mu_alloc((size_t)r->n_moe, sizeof *curves);
    char (*names)[24] = mu_alloc((size_t)r->n_moe, sizeof *names);
    for (int64_t l = 0; l < r->n_moe; l++) {
        const mu_series *s = mu_report_series(r, "moe/layer_%lld/%s", (long long)r->layer[l], key);
        snprintf(names[l], sizeof names[l], "layer %lld", (long long)r->layer[l]);
        if (s) curves[l] = (mu_curve){ .name = names[l], .n = s->n, .x = s->step, .y = s->value, .dots = s->n <= 60 };
    }
    mu_axes axes = { title, how, "step", "share", 0, (double)r->last_step };
    mu_plot_curves(p, &axes, curves, (int)r->n_moe, &(mu_curve_options){ .from_zero = true });
    free(curves);
    free(names);
}

/* From the last statistics line: how much of the routing of earlier steps was final. */
static void put_saturation(mu_page *p, const mu_report *r) {
    int64_t n = (int64_t)json_array_size(json_object_get(r->statistics, "stats/saturation_steps"));
    double *steps = n ? mu_report_list(r, n, "stats/saturation_steps") : NULL;
    if (!steps) return;
    mu_curve *curves = mu_alloc((size_t)r->n_moe, sizeof *curves);
    char (*names)[24] = mu_alloc((size_t)r->n_moe, sizeof *names);
    double **values = mu_alloc((size_t)r->n_moe, sizeof *values);
    for (int64_t l = 0; l < r->n_moe; l++) {
        values[l] = mu_report_list(r, n, "moe/layer_%lld/saturation", (long long)r->layer[l]);
        snprintf(names[l], sizeof names[l], "layer %lld", (long long)r->layer[l]);
        if (values[l]) curves[l] = (mu_curve){ .name = names[l], .n = n, .x = steps, .y = values[l], .dots = true };
    }
    mu_axes axes = { "Saturation of routing", "Share of the experts chosen at this step that the last measurement chose, too, for the same tokens of the probe. Near 1 already early: "
                     "routing settled early (the saturation of OLMoE).", "step", "share", 0, (double)r->last_step };
    mu_plot_curves(p, &axes, curves, (int)r->n_moe, &(mu_curve_options){ .from_zero = true });
    for (int64_t l = 0; l < r->n_moe; l++) free(values[l]);
    free(values);
    free(curves);
    free(names);
    free(steps);
}

void mu_report_put_specialisation(mu_page *p, const mu_report *r) {
    mu_page_section(p, "domains", "Which expert serves which domain");
    put_measures(p, r);
    put_layers(p, r, "mutual_information_norm", "Specialisation over time", "Share of what the choice of experts can tell about a token's domain: 0, experts ignore domains. A curve that has "
               "levelled off means that the layers' division of labour is settled.");
    put_layers(p, r, "flip_rate", "Changes of routing", "Share of the chosen experts that were not chosen at the measurement before, for the same tokens of the probe. It falls as routing "
               "settles; where it rises again something has upset it.");
    put_saturation(p, r);
    if (!r->statistics)
        mu_page_missing(p, "No statistics lines: similarity of experts, criticality and mutual information are not known; %s.",
                        r->view.cfg.stats.every ? mu_show("they come every %lld steps (stats.every)", (long long)r->view.cfg.stats.every) : "stats.every is 0");
    if (!r->by_domain) {
        mu_page_missing(p, "No counts by domain: %s.", r->no_counts ? r->no_counts : "this run was made by a version that counts only totals");
        return;
    }
    scale s = scale_of(r);
    if (r->n_domains > 1) mu_page_put(p, "<p class=\"soft\">Lift is from %s.</p>\n", mu_report_lift_source(r));
    else mu_page_missing(p, "No lift and no domain information: they compare domains, and data.train has only %s.", r->domain[0]);
    bool pictures = put_coverage(p, r) || r->n_domains > 1;
    for (int64_t l = 0; pictures && l < r->n_moe; l += r->layer_step) {
        mu_page_fold(p, r->n_moe <= OPEN || l == 0, "Layer %lld", (long long)r->layer[l]);
        if (r->n_domains > 1) put_lift(p, r, l);
        put_criticality(p, r, l, s);
        mu_page_unfold(p);
    }
}

/* ------------------------------------------------------------------ pairs of experts */

/* Joint counts against those of a choice in which a token's experts do not depend on one another. */
static void put_matrix(mu_page *p, const mu_report *r, int64_t l, const double *joint) {
    enum { RANGE = 3 };
    int64_t E = r->experts;
    double *of = mu_alloc((size_t)E, sizeof *of), pairs = 0, products = 0, all = 0;
    uint8_t *levels = mu_alloc((size_t)(E * E), 1);
    for (int64_t i = 0; i < E; i++)
        for (int64_t j = 0; j < E; j++)
            if (i != j) of[i] += joint[i * E + j], pairs += joint[i * E + j];
    for (int64_t i = 0; i < E; i++) all += of[i];
    for (int64_t i = 0; i < E; i++) products += of[i] * (all - of[i]);
    for (int64_t i = 0; i < E; i++)
        for (int64_t j = 0; j < E; j++) {
            double expected = products > 0 ? of[i] * of[j] * pairs / products : 0, n = joint[i * E + j];
            bool told = i != j && expected >= MU_LIFT_TOKENS;
            levels[i * E + j] = !told ? MU_LEVEL_NONE : n > 0 ? mu_colours_level(log2(n / expected), -RANGE, RANGE) : MU_LEVEL_SPECIAL;
        }
    mu_axes axes = { mu_show("Experts chosen together, layer %lld", (long long)r->layer[l]), "How often two experts get the same token, as a multiple of what chance would give for their "
                     "loads: red pairs work together, blue ones replace one another. Hatched: the diagonal, and pairs too rare to tell.", "expert", "expert", 0, 0 };
    mu_plot_map(p, &axes, &(mu_map){ .colours = MU_COLOURS_DIVERGING, .rows = E, .cols = E, .levels = levels, .low = -RANGE, .high = RANGE, .log2 = true,
                                     .unit = "x chance", .special = "never together", .row = "expert", .col = "expert" });
    free(of);
    free(levels);
}

/* Beyond 64 experts only the most frequent pairs are kept: i, j, n of each. */
static void put_top_pairs(mu_page *p, const mu_report *r, int64_t l) {
    enum { SHOWN = 10 };
    char key[64];
    snprintf(key, sizeof key, "moe/layer_%lld/coactivation_top", (long long)r->layer[l]);
    const json_t *list = json_object_get(r->statistics, key);
    mu_page_put(p, "<p><b>Layer %lld</b>, most frequent pairs:", (long long)r->layer[l]);
    for (size_t i = 0; i + 2 < json_array_size(list) && i < 3 * SHOWN; i += 3)
        mu_page_put(p, "%-s %.0f + %.0f (%s)", i ? "," : "", json_number_value(json_array_get(list, i)), json_number_value(json_array_get(list, i + 1)),
                    mu_show_count(json_number_value(json_array_get(list, i + 2))));
    mu_page_put(p, "</p>\n");
}

void mu_report_put_pairs(mu_page *p, const mu_report *r) {
    int64_t shown = 0, E = r->experts;
    mu_page_section(p, "pairs", "Experts chosen together");
    for (int64_t l = 0; l < r->n_moe; l += r->layer_step) {
        char key[64];
        double *joint = mu_report_list(r, E * E, "moe/layer_%lld/coactivation", (long long)r->layer[l]);
        snprintf(key, sizeof key, "moe/layer_%lld/coactivation_top", (long long)r->layer[l]);
        shown += joint || json_object_get(r->statistics, key);
        if (joint) {
            mu_page_fold(p, l == 0, "Layer %lld", (long long)r->layer[l]);
            put_matrix(p, r, l, joint);
            mu_page_unfold(p);
        } else if (json_object_get(r->statistics, key)) put_top_pairs(p, r, l);
        free(joint);
    }
    if (!shown && r->view.cfg.moe.top_k == 1) mu_page_missing(p, "A token has one expert (moe.top_k is 1), so there are no pairs.");
    else if (!shown) mu_page_missing(p, "No pairs were counted in this run: they are in its statistics lines, every stats.every steps.");
}
