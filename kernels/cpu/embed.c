/* embed.c - token embedding: rows of w_VD copied to y_TD, and their gradients added back. Copies only; the
 * backward pass is split over columns, so that each sum over tokens has one owner and one order. */
#include "kernels/cpu/cpu.h"

void CPU(embed_fwd)(mu_device *dev, int64_t T, int64_t D, mu_mat ids, mu_mat w, mu_mat y) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * D))
    for (int64_t t = 0; t < T; t++)
        memcpy(cpu_f32(y) + t * y.ld, cpu_f32(w) + cpu_i32(ids)[t] * w.ld, (size_t)D * sizeof(float));
}

void CPU(embed_bwd)(mu_device *dev, int64_t T, int64_t D, int64_t V, mu_mat ids, mu_mat dy, mu_mat dw) {
    enum { COLUMNS = 64 };
    (void)dev, (void)V;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * D))
    for (int64_t first = 0; first < D; first += COLUMNS) {
        int64_t count = cpu_min(COLUMNS, D - first);
        for (int64_t t = 0; t < T; t++) {
            const float *restrict from = cpu_f32(dy) + t * dy.ld + first;
            float *restrict to = cpu_f32(dw) + cpu_i32(ids)[t] * dw.ld + first;
            for (int64_t i = 0; i < count; i++) to[i] += from[i];
        }
    }
}
