/* report_derive.c - specialisation, from the counts of the recent steps. */
#include "train/report.h"

#include <math.h>

static const int64_t *counts_of(const mu_report *r, int64_t layer, int64_t expert) {
    return r->recent + (layer * r->experts + expert) * r->n_domains;
}

/* Assignments: tokens times top_k. */
static double of_domain(const mu_report *r, int64_t layer, int64_t domain) { return (double)r->of_domain[layer * r->n_domains + domain]; }

double mu_report_domain_tokens(const mu_report *r, int64_t domain) {
    return r->by_domain ? of_domain(r, 0, domain) / (double)r->view.cfg.moe.top_k : 0;
}

double mu_report_lift(const mu_report *r, int64_t layer, int64_t expert, int64_t domain) {
    double n = (double)counts_of(r, layer, expert)[domain], load = (double)r->of_expert[layer * r->experts + expert];
    double expected = load * of_domain(r, layer, domain) / fmax((double)r->of_layer[layer], 1);
    if (expected < MU_LIFT_TOKENS) return NAN;
    return n > 0 ? log2(n / expected) : -INFINITY;
}

double mu_report_share(const mu_report *r, int64_t layer, int64_t expert, int64_t domain) {
    double all = of_domain(r, layer, domain) / (double)r->view.cfg.moe.top_k;
    return all > 0 ? (double)counts_of(r, layer, expert)[domain] / all : NAN;
}

static double entropy(double part, double all) { return part > 0 ? -part / all * log(part / all) : 0; }

/* As moe/layer_L/mutual_information_norm, over more steps. I = H(expert) + H(domain) - H(expert, domain); each entropy of k occupied cells is too low by (k - 1) / 2N. */
double mu_report_information(const mu_report *r, int64_t layer) {
    if (!r->by_domain) return NAN;
    double all = (double)r->of_layer[layer], experts = 0, domains = 0, both = 0, cells = 0, rows = 0, cols = 0;
    if (all <= 0) return NAN;
    for (int64_t d = 0; d < r->n_domains; d++) {
        double n = of_domain(r, layer, d);
        domains += entropy(n, all), cols += n > 0;
    }
    for (int64_t i = 0; i < r->experts; i++) {
        double n = (double)r->of_expert[layer * r->experts + i];
        experts += entropy(n, all), rows += n > 0;
        for (int64_t d = 0; d < r->n_domains; d++) {
            double c = (double)counts_of(r, layer, i)[d];
            both += entropy(c, all), cells += c > 0;
        }
    }
    double information = experts + domains - both - (cells - rows - cols + 1) / (2 * all);
    double limit = fmin(domains, experts);
    return limit > 0 ? fmax(information, 0) / limit : NAN;
}
