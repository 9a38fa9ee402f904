/* route.c - the router: scores, the choice of K experts, gates, and the balancing terms.
 *
 *     s = softmax(r) or sigmoid(r) of the logits r,   C = the K largest of s + bias,
 *     g_i = c s_i, or c s_i / (sum_C s + 1e-20) if normalised, for i in C; c is the scale.
 * Gradient with respect to the scores, with A_i the gradient with respect to gate i:
 *     ds_i = c A_i,  normalised: (c A_i - sum_C g A) / (sum_C s + 1e-20),  0 outside C,  plus dscores;
 * then with respect to the logits, with p = softmax(r) and dlse the gradient with respect to log sum exp(r):
 *     dr_i += s_i (ds_i - sum_j s_j ds_j)  or  s_i (1 - s_i) ds_i,   dr_i += p_i dlse.
 * The normalised softmax is softmax over C (Mixtral's order): unchosen experts get no gradient through it. */
#include "kernels/ref/ref.h"

#include <math.h>

static const double TINY = 1e-20;

static double log_sum_exp(int64_t n, const double *x) {
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) max = fmax(max, x[i]);
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - max);
    return max + log(sum);
}

static double value_or_nothing(double x) { return isnan(x) ? -INFINITY : x; }

/* Required experts, then the best others: in each class the best s + bias first, ties to the lower index; NaN counts as minus
 * infinity. With a forced skew expert 0 comes first, whatever its score. */
static void choose(const mu_route_shape *s, const double *scores, const double *bias, const int32_t *mask, bool *taken,
                   int32_t *ids) {
    for (int64_t i = 0; i < s->E; i++) taken[i] = mask && mask[i] == MU_ROUTE_FORBIDDEN;
    for (int64_t k = 0; k < s->K; k++) {
        int64_t best = -1;
        int32_t class = 0;
        double most = 0;
        for (int64_t i = 0; i < s->E; i++) {
            double value = value_or_nothing(scores[i] + (bias ? bias[i] : 0));
            int32_t its = mask ? mask[i] : MU_ROUTE_ALLOWED;
            if (taken[i] || (best >= 0 && !(its > class || (its == class && value > most)))) continue;
            best = i, class = its, most = value;
        }
        if (k == 0 && s->force == MU_ROUTE_SKEW) best = 0;
        taken[best] = true;
        ids[k] = (int32_t)best;
    }
}

static double chosen_sum(const mu_route_shape *s, const double *scores, const int32_t *ids) {
    double sum = TINY;
    for (int64_t k = 0; k < s->K; k++) sum += scores[ids[k]];
    return sum;
}

void mu_ref_route_fwd(mu_device *dev, const mu_route_shape *s, mu_mat logits_TE, mu_mat bias_E, mu_mat mask_nE,
                      mu_mat scores_TE, mu_mat lse_T, mu_mat ids_TK, mu_mat gates_TK) {
    MU_CHECK(s->K >= 1 && s->K <= s->E, "router: top_k %lld of %lld experts", (long long)s->K, (long long)s->E);
    size_t mark = mu_arena_mark(&dev->scratch);
    bool *taken = mu_arena_alloc(&dev->scratch, (size_t)s->E);
    for (int64_t t = 0; t < s->T; t++) {
        const double *logits = row(logits_TE, t, s->E);
        double *scores = row(scores_TE, t, s->E), *gates = row(gates_TK, t, s->K);
        int32_t *ids = int_row(ids_TK, t, s->K);
        const int32_t *mask = mask_nE.data ? int_row(mask_nE, t / s->mask_segment, s->E) : NULL;
        double lse = reals(lse_T)[t] = log_sum_exp(s->E, logits);
        for (int64_t i = 0; i < s->E; i++) scores[i] = s->sigmoid ? 1 / (1 + exp(-logits[i])) : exp(logits[i] - lse);
        if (s->force == MU_ROUTE_BALANCED)
            for (int64_t k = 0; k < s->K; k++) ids[k] = (int32_t)(((s->first_token + t) * s->K + k) % s->E);
        else
            choose(s, scores, reals(bias_E), mask, taken, ids);
        double divisor = s->normalise ? chosen_sum(s, scores, ids) : 1;
        for (int64_t k = 0; k < s->K; k++) gates[k] = s->scale * scores[ids[k]] / divisor;
    }
    mu_arena_release(&dev->scratch, mark);
}

/* ds[E] += the gradient through one token's gates with respect to its scores. */
static void gates_bwd(const mu_route_shape *s, const double *scores, const int32_t *ids, const double *dgates, double *ds) {
    double divisor = s->normalise ? chosen_sum(s, scores, ids) : 1, mean = 0;
    for (int64_t k = 0; k < s->K && s->normalise; k++) mean += s->scale * scores[ids[k]] / divisor * dgates[k];
    for (int64_t k = 0; k < s->K; k++) ds[ids[k]] += (s->scale * dgates[k] - mean) / divisor;
}

/* p[E] = softmax of the logits. From sigmoids it is recovered by exp(r) = s / (1 - s). */
static void softmax_of_scores(const mu_route_shape *s, const double *scores, double *p) {
    double sum = 0;
    for (int64_t i = 0; i < s->E; i++) {
        p[i] = s->sigmoid ? scores[i] / fmax(1 - scores[i], 1e-16) : scores[i];
        sum += p[i];
    }
    for (int64_t i = 0; i < s->E && s->sigmoid; i++) p[i] /= sum;
}

static void token_bwd(const mu_route_shape *s, const double *scores, const double *p, const double *ds,
                      double dlse, double *dlogits) {
    double mean = dot(s->E, scores, ds);
    for (int64_t i = 0; i < s->E; i++) {
        double by_score = s->sigmoid ? scores[i] * (1 - scores[i]) * ds[i] : scores[i] * (ds[i] - mean);
        dlogits[i] += by_score + p[i] * dlse;
    }
}

void mu_ref_route_bwd(mu_device *dev, const mu_route_shape *s, mu_mat scores_TE, mu_mat ids_TK,
                      mu_mat dgates_TK, mu_mat dscores_TE, mu_mat dlse_T,
                      mu_mat dlogits_TE) {
    size_t mark = mu_arena_mark(&dev->scratch);
    double *ds = mu_arena_alloc(&dev->scratch, (size_t)s->E * sizeof *ds);
    double *p = mu_arena_alloc(&dev->scratch, (size_t)s->E * sizeof *p);
    for (int64_t t = 0; t < s->T; t++) {
        const double *scores = row(scores_TE, t, s->E);
        for (int64_t i = 0; i < s->E; i++) ds[i] = given(dscores_TE) ? row(dscores_TE, t, s->E)[i] : 0;
        if (given(dgates_TK))
            gates_bwd(s, scores, int_row(ids_TK, t, s->K), row(dgates_TK, t, s->K), ds);
        for (int64_t i = 0; i < s->E; i++) p[i] = 0;
        if (given(dlse_T)) softmax_of_scores(s, scores, p);
        token_bwd(s, scores, p, ds, given(dlse_T) ? reals(dlse_T)[t] : 0, row(dlogits_TE, t, s->E));
    }
    mu_arena_release(&dev->scratch, mark);
}

/* ---------------------------------------------------------------- statistics */
static int64_t fixed_point(double x, double unit) { return isfinite(x) ? llrint(x * unit) : 0; }

void mu_ref_count_routes(mu_device *dev, int64_t T, int64_t E, int64_t K, double unit, mu_mat ids_TK, mu_mat gates_TK, mu_mat mass_E,
                         mu_mat pairs) {
    (void)dev;
    for (int64_t t = 0; t < T; t++) {
        const int32_t *ids = int_row(ids_TK, t, K);
        for (int64_t k = 0; k < K; k++) longs(mass_E)[ids[k]] += fixed_point(row(gates_TK, t, K)[k], unit);
        for (int64_t k = 0; k < K && pairs.data; k++)
            for (int64_t l = 0; l < k; l++) {
                int64_t i = ids[k] < ids[l] ? ids[k] : ids[l], j = ids[k] + ids[l] - i;
                ints(pairs)[i * (2 * E - i - 1) / 2 + j - i - 1]++;
            }
    }
}

static double entropy(int64_t E, const double *scores) {
    double sum = 0, weighted = 0;
    for (int64_t i = 0; i < E; i++) {
        sum += scores[i];
        if (scores[i] > 0) weighted += scores[i] * log(scores[i]);
    }
    return log(sum) - weighted / sum;
}

static double logit(bool sigmoid, double score) {
    double s = fmin(fmax(score, 0x1p-126), 1 - 0x1p-24);
    return sigmoid ? log(s / (1 - s)) : log(s);
}

static double top_margin(int64_t E, bool sigmoid, const double *scores) {
    double first = 0, second = 0;
    for (int64_t i = 0; i < E; i++) {
        if (scores[i] > first) second = first, first = scores[i];
        else second = fmax(second, scores[i]);
    }
    return E > 1 ? logit(sigmoid, first) - logit(sigmoid, second) : 0;
}

static double boundary_margin(int64_t E, int64_t K, const double *scores, const double *bias, const int32_t *ids) {
    double least = INFINITY, most = -INFINITY;
    for (int64_t i = 0; i < E; i++) {
        double value = scores[i] + (bias ? bias[i] : 0);
        bool chosen = false;
        for (int64_t k = 0; k < K; k++) chosen |= ids[k] == i;
        if (chosen) least = fmin(least, value);
        else most = fmax(most, value);
    }
    return K < E ? least - most : 0;
}

void mu_ref_route_margins(mu_device *dev, int64_t T, int64_t E, int64_t K, bool sigmoid, double unit, mu_mat scores_TE, mu_mat bias_E,
                          mu_mat ids_TK, mu_mat sums) {
    (void)dev;
    for (int64_t t = 0; t < T; t++) {
        const double *scores = row(scores_TE, t, E);
        longs(sums)[0] += fixed_point(entropy(E, scores), unit);
        longs(sums)[1] += fixed_point(top_margin(E, sigmoid, scores), unit);
        longs(sums)[2] += fixed_point(boundary_margin(E, K, scores, given(bias_E) ? reals(bias_E) : NULL, int_row(ids_TK, t, K)), unit);
    }
}

/* The largest s + b of the experts that are not chosen. */
static double cutoff(int64_t E, int64_t K, const double *scores, const double *bias, const int32_t *ids) {
    double most = -INFINITY;
    for (int64_t i = 0; i < E; i++) {
        bool chosen = false;
        for (int64_t k = 0; k < K; k++) chosen |= ids[k] == i;
        if (!chosen) most = fmax(most, scores[i] + (bias ? bias[i] : 0));
    }
    return most;
}

void mu_ref_count_cutoffs(mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t bins, double low, double width, mu_mat scores_TE,
                          mu_mat bias_E, mu_mat ids_TK, mu_mat counts) {
    (void)dev;
    for (int64_t t = 0; t < T && K < E; t++) {
        const double *scores = row(scores_TE, t, E);
        double at = cutoff(E, K, scores, given(bias_E) ? reals(bias_E) : NULL, int_row(ids_TK, t, K));
        for (int64_t i = 0; i < E; i++) {
            double bin = (at - scores[i] - low) / width;
            int_row(counts, i, bins)[bin > 0 ? bin < (double)bins ? (int64_t)bin : bins - 1 : 0]++;
        }
    }
}

void mu_ref_sum_norms(mu_device *dev, int64_t T, int64_t E, double unit, mu_mat x_TE, mu_mat sum) {
    (void)dev;
    for (int64_t t = 0; t < T; t++) {
        double norm = sqrt(dot(E, row(x_TE, t, E), row(x_TE, t, E)));
        *longs(sum) += isfinite(norm) ? fixed_point(fmin(norm * unit, 0x1p39), 1) : 0;
    }
}

/* ---------------------------------------------------------------- balancing terms */
/* Over the experts that are not left out: sum coef s and sum s. */
typedef struct { double dot, sum; } balance_sums;

static balance_sums balance_sums_of(int64_t E, const double *coef, const double *scores) {
    balance_sums b = { 0, 0 };
    for (int64_t i = 0; i < E; i++)
        if (coef[i] >= 0) b.dot += coef[i] * scores[i], b.sum += scores[i];
    return b;
}

/* The factor for the other experts: (sum of counts / sum of theirs) (their number / E). */
static double kept_factor(int64_t E, const int64_t *counts, const int32_t *exempt) {
    int64_t all = 0, kept = 0, n = 0;
    for (int64_t i = 0; i < E; i++) {
        all += counts[i];
        if (!exempt[i]) kept += counts[i], n++;
    }
    return kept ? (double)all * (double)n / ((double)kept * (double)E) : 0;
}

/* coef = factor counts, -1 for exempt experts */
void mu_ref_balance_coef(mu_device *dev, int64_t n, int64_t E, double factor, mu_mat counts_nE, mu_mat exempt_E, mu_mat coef_nE) {
    (void)dev;
    const int32_t *exempt = exempt_E.data ? ints(exempt_E) : NULL;
    for (int64_t r = 0; r < n; r++) {
        const int64_t *counts = long_row(counts_nE, r, E);
        double by = exempt ? factor * kept_factor(E, counts, exempt) : factor;
        for (int64_t i = 0; i < E; i++) row(coef_nE, r, E)[i] = exempt && exempt[i] ? -1 : by * (double)counts[i];
    }
}

static const double NO_SHARE = 0x1p-100;

/* out = sum_t sum_i coef[t/segment, i] p[t,i],  p = s or s / sum s */
void mu_ref_balance_fwd(mu_device *dev, int64_t T, int64_t E, int64_t segment, bool normalise,
                        mu_mat scores_TE, mu_mat coef_nE, mu_mat out) {
    (void)dev;
    double sum = 0;
    for (int64_t t = 0; t < T; t++) {
        balance_sums b = balance_sums_of(E, row(coef_nE, t / segment, E), row(scores_TE, t, E));
        if (!normalise) sum += b.dot;
        else if (b.sum >= NO_SHARE) sum += b.dot / b.sum;
    }
    *reals(out) = sum;
}

/* ds_i += dout coef_i, normalised: dout (coef_i - sum_j coef_j p_j) / sum s; 0 for those that are left out */
void mu_ref_balance_bwd(mu_device *dev, int64_t T, int64_t E, int64_t segment, bool normalise,
                        mu_mat scores_TE, mu_mat coef_nE, mu_mat dout, mu_mat dscores_TE) {
    (void)dev;
    for (int64_t t = 0; t < T; t++) {
        const double *scores = row(scores_TE, t, E), *coef = row(coef_nE, t / segment, E);
        balance_sums b = balance_sums_of(E, coef, scores);
        double *dscores = row(dscores_TE, t, E), divisor = normalise ? b.sum : 1, mean = normalise ? b.dot / divisor : 0;
        for (int64_t i = 0; i < E && divisor >= NO_SHARE; i++)
            if (coef[i] >= 0) dscores[i] += *reals(dout) * (coef[i] - mean) / divisor;
    }
}

/* |c| log(1 + exp(x)), x = -r for c > 0 and r for c < 0 */
static double gate_loss(double c, double r) {
    double x = c > 0 ? -r : r;
    return fabs(c) * (fmax(x, 0) + log1p(exp(-fabs(x))));
}

void mu_ref_gate_fwd(mu_device *dev, int64_t T, int64_t E, int64_t segment, mu_mat logits_TE, mu_mat coef_nE, mu_mat out) {
    (void)dev;
    double sum = 0;
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < E; i++) {
            double c = row(coef_nE, t / segment, E)[i];
            if (c != 0) sum += gate_loss(c, row(logits_TE, t, E)[i]);
        }
    *reals(out) = sum;
}

/* dr += dout (-c) sigmoid(x) */
void mu_ref_gate_bwd(mu_device *dev, int64_t T, int64_t E, int64_t segment, mu_mat logits_TE, mu_mat coef_nE, mu_mat dout, mu_mat dlogits_TE) {
    (void)dev;
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < E; i++) {
            double c = row(coef_nE, t / segment, E)[i], r = row(logits_TE, t, E)[i];
            row(dlogits_TE, t, E)[i] -= *reals(dout) * c / (1 + exp(c > 0 ? r : -r));
        }
}

/* out = coef sum lse^2 (ST-MoE, Zoph et al. 2022) */
void mu_ref_zloss_fwd(mu_device *dev, int64_t T, double coef, mu_mat lse_T, mu_mat out) {
    (void)dev;
    *reals(out) = coef * dot(T, reals(lse_T), reals(lse_T));
}

void mu_ref_zloss_bwd(mu_device *dev, int64_t T, double coef, mu_mat lse_T, mu_mat dout, mu_mat dlse_T) {
    (void)dev;
    add_scaled(T, 2 * coef * *reals(dout), reals(lse_T), reals(dlse_T));
}
