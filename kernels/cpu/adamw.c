/* adamw.c - AdamW (Loshchilov & Hutter 2019) on n values: one fused pass, 28 bytes a value, bound by memory
 * traffic. The bias corrections are folded into two factors, computed in double:
 *   w = w (1 - lr wd) - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps) */
#include "kernels/cpu/cpu.h"

typedef struct { float keep, rate, root, eps, b1, a1, b2, a2, grad_scale; } factors;

static factors prepare(const mu_adamw_spec *s) {
    double c1 = 1 - pow(s->beta1, (double)s->t), c2 = 1 - pow(s->beta2, (double)s->t);
    return (factors){ .keep = (float)(1 - s->lr * s->weight_decay), .rate = (float)(s->lr / c1),
                      .root = (float)(1 / sqrt(c2)), .eps = (float)s->eps,
                      .b1 = (float)s->beta1, .a1 = (float)(1 - s->beta1),
                      .b2 = (float)s->beta2, .a2 = (float)(1 - s->beta2),
                      .grad_scale = (float)s->grad_scale };
}

static void update(int64_t n, factors f, float *restrict w, const float *restrict g, float *restrict m,
                   float *restrict v) {
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i] * f.grad_scale;
        m[i] = f.b1 * m[i] + f.a1 * gi;
        v[i] = f.b2 * v[i] + f.a2 * (gi * gi);
        w[i] = w[i] * f.keep - f.rate * m[i] / (sqrtf(v[i]) * f.root + f.eps);
    }
}

void CPU(adamw)(mu_device *dev, int64_t n, const mu_adamw_spec *spec, mu_mat w, mu_mat g, mu_mat m,
                mu_mat v, mu_mat real) {
    factors f = prepare(spec);
    int64_t blocks = cpu_blocks(n, CPU_BLOCK);
#pragma omp parallel for schedule(static) num_threads(cpu_team(n))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t i = b * CPU_BLOCK;
        update(cpu_min(CPU_BLOCK, n - i), f, cpu_f32(w) + i, cpu_f32(g) + i, cpu_f32(m) + i, cpu_f32(v) + i);
    }
    if (real.data) CPU(copy)(dev, n, w, real);
}
