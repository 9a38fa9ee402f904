/* adamw.c - the optimizer over a slab of units: Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov &
 * Hutter 2019), the gradient norm for clipping, and the pull of an anchor. */
#include "kernels/ref/ref.h"

#include <math.h>

static mu_slab_unit *unit_at(mu_mat units, int64_t i) {
    return (mu_slab_unit *)(void *)long_row(units, i, MU_SLAB_UNIT_WORDS);
}

void mu_ref_slab_sumsq(mu_device *dev, int64_t n_units, int64_t n_pieces, mu_mat units, mu_mat g, mu_mat squares) {
    (void)dev, (void)n_pieces;
    for (int64_t i = 0; i < n_units; i++) {
        const mu_slab_unit *u = unit_at(units, i);
        reals(squares)[u->id] = dot(u->count, reals(g) + u->first, reals(g) + u->first);
    }
}

void mu_ref_clip(mu_device *dev, int64_t n, mu_mat squares, int64_t n_losses, mu_mat losses, double max_norm, mu_mat norm_1,
                 mu_mat scale_1) {
    (void)dev;
    double total = 0, scale = 1;
    for (int64_t i = 0; i < n; i++) total += reals(squares)[i];
    double norm = sqrt(total);
    if (max_norm > 0 && norm > max_norm) scale = max_norm / norm;
    if (!isfinite(norm)) scale = NAN;
    for (int64_t i = 0; i < n_losses; i++)
        if (!isfinite(reals(losses)[i])) scale = NAN;
    *reals(norm_1) = norm, *reals(scale_1) = scale;
}

static bool is_skipped(const mu_slab_unit *u, mu_mat loads) { return given(loads) && u->load >= 0 && longs(loads)[u->load] == 0; }

void mu_ref_slab_pull_sumsq(mu_device *dev, int64_t n_units, int64_t n_pieces, mu_mat units, mu_mat loads, mu_mat f_n, mu_mat w_n, mu_mat at_n,
                            mu_mat squares) {
    (void)dev, (void)n_pieces;
    for (int64_t i = 0; i < n_units; i++) {
        const mu_slab_unit *u = unit_at(units, i);
        double sum = 0;
        for (int64_t j = u->first; j < u->first + u->count && !is_skipped(u, loads); j++) {
            double pull = reals(f_n)[j] * (reals(w_n)[j] - reals(at_n)[j]);
            sum += pull * pull;
        }
        reals(squares)[u->id] = sum;
    }
}

void mu_ref_slab_pull(mu_device *dev, int64_t n_units, int64_t n_pieces, double strength, mu_mat units, mu_mat loads, mu_mat limit, mu_mat scale,
                      mu_mat f_n, mu_mat w_n, mu_mat at_n, mu_mat g_n) {
    (void)dev, (void)n_pieces;
    double factor = strength * *reals(limit) / *reals(scale);
    for (int64_t i = 0; i < n_units && isfinite(factor); i++) {
        const mu_slab_unit *u = unit_at(units, i);
        for (int64_t j = u->first; j < u->first + u->count && !is_skipped(u, loads); j++)
            reals(g_n)[j] += factor * reals(f_n)[j] * (reals(w_n)[j] - reals(at_n)[j]);
    }
}

void mu_ref_slab_adamw(mu_device *dev, int64_t n_units, int64_t n_pieces, const mu_adamw_spec *s, mu_mat units, mu_mat loads,
                       mu_mat scale, mu_mat steps, mu_mat w_n, mu_mat g_n, mu_mat m_n, mu_mat v_n, mu_mat compute_n) {
    (void)dev, (void)n_pieces;
    double *w = reals(w_n), *m = reals(m_n), *v = reals(v_n), *compute = reals(compute_n);
    if (!isfinite(*reals(scale))) return;
    for (int64_t i = 0; i < n_units; i++) {
        const mu_slab_unit *u = unit_at(units, i);
        if (is_skipped(u, loads)) continue;
        double t = (double)++longs(steps)[u->id], decay = u->decays ? s->weight_decay : 0;
        for (int64_t j = u->first; j < u->first + u->count; j++) {
            double g = *reals(scale) * reals(g_n)[j];
            m[j] = s->beta1 * m[j] + (1 - s->beta1) * g;
            v[j] = s->beta2 * v[j] + (1 - s->beta2) * g * g;
            double m_hat = m[j] / (1 - pow(s->beta1, t)), v_hat = v[j] / (1 - pow(s->beta2, t));
            w[j] -= s->lr * (m_hat / (sqrt(v_hat) + s->eps) + decay * w[j]);
            if (compute) compute[j] = w[j];
        }
    }
}
