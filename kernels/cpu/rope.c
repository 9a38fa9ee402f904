/* rope.c - rotary position embedding: in each head (x[i], x[i+d/2]) rotates by its position's angle. One pass over the
 * row; the cosines and sines of a position serve all its heads. y may be x. */
#include "kernels/cpu/cpu.h"

static void rotate(int64_t half, float sign, const float *restrict c, const float *restrict s, const float *x,
                 float *y) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half], si = sign * s[i];
        y[i] = a * c[i] - b * si;
        y[i + half] = b * c[i] + a * si;
    }
}

static void rotate_add(int64_t half, float sign, const float *restrict c, const float *restrict s,
                     const float *x, float *y) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half], si = sign * s[i];
        y[i] += a * c[i] - b * si;
        y[i + half] += b * c[i] + a * si;
    }
}

void CPU(rope)(mu_device *dev, int64_t T, int64_t S, int64_t H, int64_t d, int sign, mu_mat cos, mu_mat sin,
               mu_mat x, bool add, mu_mat y) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * H * d))
    for (int64_t t = 0; t < T; t++) {
        const float *c = cpu_f32(cos) + t % S * cos.ld, *s = cpu_f32(sin) + t % S * sin.ld;
        for (int64_t h = 0; h < H; h++) {
            const float *xh = cpu_f32(x) + t * x.ld + h * d;
            float *yh = cpu_f32(y) + t * y.ld + h * d;
            if (add) rotate_add(d / 2, (float)sign, c, s, xh, yh);
            else rotate(d / 2, (float)sign, c, s, xh, yh);
        }
    }
}
