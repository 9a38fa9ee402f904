/* adamw.c - Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019). */
#include "kernels/ref/ref.h"

#include <math.h>

void mu_ref_adamw(mu_device *dev, int64_t n, const mu_adamw_spec *s, mu_mat w_n, mu_mat g_n, mu_mat m_n,
                  mu_mat v_n, mu_mat real_n) {
    (void)dev;
    MU_CHECK(s->t >= 1, "step %lld", (long long)s->t);
    double *w = reals(w_n), *m = reals(m_n), *v = reals(v_n), *real = reals(real_n);
    const double *gradient = reals(g_n);
    for (int64_t i = 0; i < n; i++) {
        double g = s->grad_scale * gradient[i];
        m[i] = s->beta1 * m[i] + (1 - s->beta1) * g;
        v[i] = s->beta2 * v[i] + (1 - s->beta2) * g * g;
        double m_hat = m[i] / (1 - pow(s->beta1, (double)s->t));
        double v_hat = v[i] / (1 - pow(s->beta2, (double)s->t));
        w[i] -= s->lr * (m_hat / (sqrt(v_hat) + s->eps) + s->weight_decay * w[i]);
        if (real) real[i] = w[i];
    }
}
