/* report_derive.c - specialisation, from the counts of the recent steps. */
#include "train/report.h"

#include <math.h>

static const int64_t *counts_of(const mu_report *r, int64_t layer, int64_t expert) {
    return r->recent + (layer * r->experts + expert) * r->n_domains;
}

/* Assignments: tokens times top_k. */
static double of_domain(const mu_report *r, int64_t layer, int64_t domain) { return (double)r->of_domain[layer * r->n_domains + domain]; }

/* The domain's share of tokens that goes to the expert, summed over the intervals that have tokens of the domain, and how many these are. */
static double sum_of_shares(const mu_report *r, int64_t layer, int64_t expert, int64_t domain, int64_t *intervals) {
    double sum = 0;
    *intervals = 0;
    for (int64_t k = 0; k < r->n_shares; k++) {
        const float *of = r->shares[k].of_domain + layer * r->experts * r->n_domains;
        bool any = false;
        for (int64_t i = 0; i < r->experts && !any; i++) any = of[i * r->n_domains + domain] > 0;
        sum += of[expert * r->n_domains + domain];
        *intervals += any;
    }
    return sum;
}

static double share_of_all(const mu_report *r, int64_t layer, int64_t expert) {
    double n = 0, all = 0;
    for (int64_t k = 0; k < r->n_shares; k++)
        for (int64_t i = 0; i < r->experts; i++) {
            double load = r->shares[k].load[layer * r->experts + i];
            all += load, n += i == expert ? load : 0;
        }
    return all > 0 ? n / all : 0;
}

double mu_report_domain_tokens(const mu_report *r, int64_t domain) {
    int64_t intervals = 0;
    double counted = r->by_domain ? of_domain(r, 0, domain) / (double)r->view.cfg.moe.top_k : 0;
    if (r->n_shares) sum_of_shares(r, 0, 0, domain, &intervals);
    return fmax(counted, (double)(intervals * r->view.cfg.train.seq_len));
}

const char *mu_report_lift_source(const mu_report *r) {
    if (!r->n_shares) return mu_show("the logged steps since %lld", (long long)r->recent_from);
    const mu_report_shares *first = &r->shares[0], *last = &r->shares[r->n_shares - 1];
    return mu_show("the statistics of steps %lld to %lld", (long long)(first->step - first->steps + 1), (long long)last->step);
}

static double lift_of_shares(const mu_report *r, int64_t layer, int64_t expert, int64_t domain) {
    int64_t intervals;
    double K = (double)r->view.cfg.moe.top_k, sum = sum_of_shares(r, layer, expert, domain, &intervals), all = share_of_all(r, layer, expert);
    if ((double)(intervals * r->view.cfg.train.seq_len) * K * all < MU_LIFT_TOKENS) return NAN;
    return sum > 0 ? log2(sum / (double)intervals / K / all) : -INFINITY;
}

double mu_report_lift(const mu_report *r, int64_t layer, int64_t expert, int64_t domain) {
    if (r->n_shares) return lift_of_shares(r, layer, expert, domain);
    double n = (double)counts_of(r, layer, expert)[domain], load = (double)r->of_expert[layer * r->experts + expert];
    double expected = load * of_domain(r, layer, domain) / fmax((double)r->of_layer[layer], 1);
    if (expected < MU_LIFT_TOKENS) return NAN;
    return n > 0 ? log2(n / expected) : -INFINITY;
}

double mu_report_share(const mu_report *r, int64_t layer, int64_t expert, int64_t domain) {
    int64_t intervals;
    if (r->n_shares) {
        double sum = sum_of_shares(r, layer, expert, domain, &intervals);
        return intervals ? sum / (double)intervals : NAN;
    }
    double all = of_domain(r, layer, domain) / (double)r->view.cfg.moe.top_k;
    return all > 0 ? (double)counts_of(r, layer, expert)[domain] / all : NAN;
}

const char *mu_report_why_no_probe(const mu_report *r) {
    const mu_config *cfg = &r->view.cfg;
    if (!cfg->stats.every) return "stats.every is 0";
    if (!(cfg->stats.budget > 0)) return "stats.budget is 0";
    if (!(cfg->data.val_fraction > 0)) return "data.val_fraction is 0, so there are no validation texts to measure on";
    return mu_show("nothing was measured up to step %lld; stats.every is %lld and stats.budget %g", (long long)r->last_step, (long long)cfg->stats.every,
                   cfg->stats.budget);
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
