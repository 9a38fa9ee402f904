/* rmsnorm.c - y = x * rstd * w over rows of width D (the model's width, or one head's). Both directions read
 * each row from memory once; dw is summed per fixed chunk of rows and the chunks are added in order. */
#include "kernels/cpu/cpu.h"

static void row_fwd(int64_t D, double eps, const float *restrict x, const float *restrict w,
                    float *restrict y, float *restrict rstd) {
    float ss = 0;
#pragma omp simd reduction(+ : ss)
    for (int64_t i = 0; i < D; i++) ss += x[i] * x[i];
    float r = (float)(1 / sqrt((double)ss / (double)D + eps));
    for (int64_t i = 0; i < D; i++) y[i] = x[i] * r * w[i];
    *rstd = r;
}

void CPU(rmsnorm_fwd)(mu_device *dev, int64_t rows, int64_t D, double eps, mu_mat x, mu_mat w, mu_mat y,
                      mu_mat rstd) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(cpu_team(rows * D))
    for (int64_t r = 0; r < rows; r++)
        row_fwd(D, eps, cpu_f32(x) + r * x.ld, cpu_f32(w), cpu_f32(y) + r * y.ld, cpu_f32(rstd) + r);
}

/* dx += rstd * (w dy - x * rstd^2 / D * <w dy, x>) */
static void row_bwd_x(int64_t D, float rstd, const float *restrict x, const float *restrict w,
                      const float *restrict dy, float *restrict dx) {
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < D; i++) dot += x[i] * (w[i] * dy[i]);
    float c = dot * rstd * rstd * rstd / (float)D;
    for (int64_t i = 0; i < D; i++) dx[i] += rstd * (w[i] * dy[i]) - c * x[i];
}

static void row_bwd_w(int64_t D, float rstd, const float *restrict x, const float *restrict dy,
                      float *restrict dw) {
    for (int64_t i = 0; i < D; i++) dw[i] += dy[i] * (x[i] * rstd);
}

static void add_chunks(int64_t chunks, int64_t D, const float *restrict part, float *restrict dw) {
    for (int64_t c = 0; c < chunks; c++)
        for (int64_t i = 0; i < D; i++) dw[i] += part[c * D + i];
}

void CPU(rmsnorm_bwd)(mu_device *dev, int64_t rows, int64_t D, mu_mat x, mu_mat w, mu_mat rstd, mu_mat dy,
                      mu_mat dx, mu_mat dw) {
    int64_t chunk = cpu_max(64, cpu_blocks(rows, 64)), chunks = cpu_blocks(rows, chunk);
    size_t mark = mu_arena_mark(&dev->scratch);
    float *part = dw.data ? mu_arena_alloc(&dev->scratch, (size_t)(chunks * D) * sizeof *part) : NULL;
#pragma omp parallel for schedule(static) num_threads(cpu_team(rows * D))
    for (int64_t c = 0; c < chunks; c++) {
        float *mine = part ? part + c * D : NULL;
        if (mine) memset(mine, 0, (size_t)D * sizeof *mine);
        for (int64_t r = c * chunk; r < cpu_min(rows, (c + 1) * chunk); r++) {
            const float *xr = cpu_f32(x) + r * x.ld, *dyr = cpu_f32(dy) + r * dy.ld;
            float s = cpu_f32(rstd)[r];
            if (dx.data) row_bwd_x(D, s, xr, cpu_f32(w), dyr, cpu_f32(dx) + r * dx.ld);
            if (mine) row_bwd_w(D, s, xr, dyr, mine);
        }
    }
    if (part) add_chunks(chunks, D, part, cpu_f32(dw));
    mu_arena_release(&dev->scratch, mark);
}
