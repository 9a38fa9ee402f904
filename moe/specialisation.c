/* specialisation.c - how experts divide the domains among themselves, from the assignments n_id of domain d's tokens to expert i.
 * Muennighoff et al. 2024 (OLMoE) for the shares; mutual information with the correction of Miller 1955 for small samples. */
#include "moe/moe.h"

#include <math.h>
#include <stdlib.h>

/* of_expert [E], of_domain [D]: the sums of the counts; returns the sum of all. */
static double sums(const int64_t *n_ED, int E, int D, double *of_expert, double *of_domain) {
    double all = 0;
    for (int i = 0; i < E; i++)
        for (int d = 0; d < D; d++) {
            double n = (double)n_ED[(int64_t)i * D + d];
            of_expert[i] += n, of_domain[d] += n, all += n;
        }
    return all;
}

/* -sum p ln p; *nonzero: how many are. */
static double entropy(const double *n, int count, double all, int *nonzero) {
    double h = 0;
    *nonzero = 0;
    for (int i = 0; i < count; i++) {
        if (n[i] > 0) h -= n[i] / all * log(n[i] / all);
        *nonzero += n[i] > 0;
    }
    return h;
}

mu_mutual_information mu_mutual_information_of(const int64_t *n_ED, int E, int D) {
    double *of_expert = mu_alloc((size_t)E + (size_t)D, sizeof *of_expert), *of_domain = of_expert + E, joint = 0;
    double all = sums(n_ED, E, D, of_expert, of_domain);
    int experts, domains;
    double h_experts = entropy(of_expert, E, all, &experts), h_domains = entropy(of_domain, D, all, &domains);
    for (int64_t c = 0; c < (int64_t)E * D; c++) {
        double n = (double)n_ED[c];
        if (n > 0) joint += n / all * log(n * all / (of_expert[c / D] * of_domain[c % D]));
    }
    free(of_expert);
    double bias = all > 0 ? (experts - 1.0) * (domains - 1.0) / (2 * all) : 0, most = fmin(h_experts, h_domains);
    return (mu_mutual_information){ joint - bias, most > 0 ? (joint - bias) / most : 0 };
}

void mu_domain_lift(const int64_t *n_ED, int E, int D, double *lift_ED) {
    double *of_expert = mu_alloc((size_t)E + (size_t)D, sizeof *of_expert), *of_domain = of_expert + E;
    double all = sums(n_ED, E, D, of_expert, of_domain);
    for (int64_t c = 0; c < (int64_t)E * D; c++)
        lift_ED[c] = n_ED[c] ? log2((double)n_ED[c] * all / (of_expert[c / D] * of_domain[c % D])) : MU_NO_LIFT;
    free(of_expert);
}

void mu_domain_shares(const int64_t *n_ED, int E, int D, int64_t K, double *share_ED) {
    double *of_expert = mu_alloc((size_t)E + (size_t)D, sizeof *of_expert), *of_domain = of_expert + E;
    sums(n_ED, E, D, of_expert, of_domain);
    for (int64_t c = 0; c < (int64_t)E * D; c++) share_ED[c] = n_ED[c] ? (double)n_ED[c] * (double)K / of_domain[c % D] : 0;
    free(of_expert);
}
