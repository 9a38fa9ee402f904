/* jitter.c - router jitter, noise on the router's input: each value times 1 + eps (2u - 1), u uniform in [0, 1). */
#include "kernels/cpu/cpu.h"

/* The factors of one row, four at a time. */
static void draw_factors(const mu_rng *r, int64_t position, int64_t D, float eps, float *factor) {
    int64_t blocks = cpu_blocks(D, 4);
    for (int64_t b = 0; b < blocks; b++) {
        uint32_t word[4], counter[4] = { (uint32_t)(position * blocks + b), r->step, r->sample,
                                         r->purpose << 16 | r->layer };
        mu_philox4x32(r->seed, counter, word);
        for (int j = 0; j < 4; j++) factor[4 * b + j] = 1 + eps * ((float)(word[j] >> 8) * 0x1p-23f - 1);
    }
}

void CPU(jitter)(mu_device *dev, int64_t T, int64_t S, int64_t D, double eps, const mu_rng *rng, mu_mat x,
                 bool add, mu_mat y) {
    int team = cpu_team(T * D);
    size_t mark = mu_arena_mark(&dev->scratch);
    cpu_buffers factors = cpu_buffers_new(dev, team, (size_t)D + 4);
#pragma omp parallel for schedule(static) num_threads(team)
    for (int64_t t = 0; t < T; t++) {
        const float *from = cpu_f32(x) + t * x.ld;
        float *to = cpu_f32(y) + t * y.ld, *factor = cpu_buffer(factors);
        mu_rng r = *rng;
        r.sample += (uint32_t)(t / S);
        draw_factors(&r, t % S, D, (float)eps, factor);
#pragma omp simd
        for (int64_t i = 0; i < D; i++) to[i] = (add ? to[i] : 0) + from[i] * factor[i];
    }
    mu_arena_release(&dev->scratch, mark);
}
