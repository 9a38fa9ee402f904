/* xent.c - cross-entropy of a block of rows of V logits: log of the softmax's denominator, then the gradient
 * in place of the logits. Two sweeps over a row that is in the cache; exp is the vectorised one. */
#include "kernels/cpu/cpu.h"

static float row_max(int64_t n, const float *x) {
    float m = -INFINITY;
#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

/* Short runs in float, their sums in double: accurate for large vocabularies. */
static double row_sum_exp(int64_t n, const float *x, float max) {
    enum { CHUNK = 2048 };
    double total = 0;
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t end = cpu_min(n, first + CHUNK);
        float s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t i = first; i < end; i++) s += cpu_exp(x[i] - max);
        total += (double)s;
    }
    return total;
}

void CPU(xent_fwd)(mu_device *dev, int64_t rows, int64_t V, mu_mat logits, mu_mat targets, mu_mat lse,
                   mu_mat nll) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(cpu_team(rows * V))
    for (int64_t r = 0; r < rows; r++) {
        const float *x = cpu_f32(logits) + r * logits.ld;
        float max = row_max(V, x);
        double l = (double)max + log(row_sum_exp(V, x, max));
        int32_t target = cpu_i32(targets)[r];
        cpu_f32(lse)[r] = (float)l;
        cpu_f32(nll)[r] = target < 0 ? 0.0f : (float)(l - (double)x[target]);
    }
}

static void row_bwd(int64_t V, float factor, float lse, int32_t target, float *x) {
#pragma omp simd
    for (int64_t i = 0; i < V; i++) x[i] = factor * cpu_exp(x[i] - lse);
    x[target] -= factor;
}

void CPU(xent_bwd)(mu_device *dev, int64_t rows, int64_t V, double scale, mu_mat dout, mu_mat targets,
                   mu_mat lse, mu_mat logits) {
    (void)dev;
    float factor = (float)(scale * *cpu_f64(dout));
#pragma omp parallel for schedule(static) num_threads(cpu_team(rows * V))
    for (int64_t r = 0; r < rows; r++) {
        float *x = cpu_f32(logits) + r * logits.ld;
        int32_t target = cpu_i32(targets)[r];
        if (target < 0) memset(x, 0, (size_t)V * sizeof *x);
        else row_bwd(V, factor, cpu_f32(lse)[r], target, x);
    }
}
