/* elementwise.c - fill, axpy, squares, add, clamp, copy and the two sums: vectors of n values. Memory-bound; in blocks of
 * CPU_BLOCK, whose inner loops the compiler vectorises. */
#include "kernels/cpu/cpu.h"

static void fill_f32(int64_t n, float value, float *restrict x) {
    for (int64_t i = 0; i < n; i++) x[i] = value;
}

static void fill_f64(int64_t n, double value, double *restrict x) {
    for (int64_t i = 0; i < n; i++) x[i] = value;
}

void CPU(fill)(mu_device *dev, int64_t n, double value, mu_mat x) {
    (void)dev;
    int64_t blocks = cpu_blocks(n, CPU_BLOCK);
#pragma omp parallel for schedule(static) num_threads(cpu_team(n))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * CPU_BLOCK, count = cpu_min(CPU_BLOCK, n - first);
        if (x.dtype == MU_DTYPE_F64) fill_f64(count, value, cpu_f64(x) + first);
        else fill_f32(count, (float)value, cpu_f32(x) + first);
    }
}

/* x and y may be the same vector, which omp simd allows: indices are independent. */
static void axpy_f32(int64_t n, float a, const float *x, float *y) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void axpy_f64(int64_t n, double a, const double *x, double *y) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

void CPU(axpy)(mu_device *dev, int64_t n, double a, mu_mat x, mu_mat y) {
    (void)dev;
    int64_t blocks = cpu_blocks(n, CPU_BLOCK);
#pragma omp parallel for schedule(static) num_threads(cpu_team(n))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * CPU_BLOCK, count = cpu_min(CPU_BLOCK, n - first);
        if (x.dtype == MU_DTYPE_F64) axpy_f64(count, a, cpu_f64(x) + first, cpu_f64(y) + first);
        else axpy_f32(count, (float)a, cpu_f32(x) + first, cpu_f32(y) + first);
    }
}

static void add_squares(int64_t n, float a, const float *restrict x, float *restrict y) {
    for (int64_t i = 0; i < n; i++) y[i] += a * (x[i] * x[i]);
}

void CPU(add_squares)(mu_device *dev, int64_t n, double a, mu_mat x, mu_mat y) {
    (void)dev;
    int64_t blocks = cpu_blocks(n, CPU_BLOCK);
#pragma omp parallel for schedule(static) num_threads(cpu_team(n))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * CPU_BLOCK;
        add_squares(cpu_min(CPU_BLOCK, n - first), (float)a, cpu_f32(x) + first, cpu_f32(y) + first);
    }
}

static void add_f32(int64_t n, const float *x, const float *y, float *z) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) z[i] = x[i] + y[i];
}

static void add_f64(int64_t n, const double *x, const double *y, double *z) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) z[i] = x[i] + y[i];
}

static void add_i64(int64_t n, const int64_t *x, const int64_t *y, int64_t *z) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) z[i] = x[i] + y[i];
}

static void add_i32(int64_t n, const int32_t *x, const int32_t *y, int32_t *z) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) z[i] = x[i] + y[i];
}

void CPU(add)(mu_device *dev, int64_t n, mu_mat x, mu_mat y, mu_mat z) {
    (void)dev;
    int64_t blocks = cpu_blocks(n, CPU_BLOCK);
#pragma omp parallel for schedule(static) num_threads(cpu_team(n))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t i = b * CPU_BLOCK, count = cpu_min(CPU_BLOCK, n - i);
        if (x.dtype == MU_DTYPE_F64) add_f64(count, cpu_f64(x) + i, cpu_f64(y) + i, cpu_f64(z) + i);
        else if (x.dtype == MU_DTYPE_I32) add_i32(count, cpu_i32(x) + i, cpu_i32(y) + i, cpu_i32(z) + i);
        else if (x.dtype == MU_DTYPE_I64) add_i64(count, cpu_i64(x) + i, cpu_i64(y) + i, cpu_i64(z) + i);
        else add_f32(count, cpu_f32(x) + i, cpu_f32(y) + i, cpu_f32(z) + i);
    }
}

static void clamp_f32(int64_t n, float limit, const float *restrict x, float *restrict y) {
    for (int64_t i = 0; i < n; i++) y[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}

static void add_within_f32(int64_t n, float limit, const float *restrict x, const float *restrict dy, float *restrict y) {
    for (int64_t i = 0; i < n; i++) y[i] += x[i] >= -limit && x[i] <= limit ? dy[i] : 0;
}

void CPU(clamp)(mu_device *dev, int64_t n, double limit, mu_mat x, mu_mat dy, mu_mat y) {
    (void)dev;
    int64_t blocks = cpu_blocks(n, CPU_BLOCK);
#pragma omp parallel for schedule(static) num_threads(cpu_team(n))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t i = b * CPU_BLOCK, count = cpu_min(CPU_BLOCK, n - i);
        if (dy.data) add_within_f32(count, (float)limit, cpu_f32(x) + i, cpu_f32(dy) + i, cpu_f32(y) + i);
        else clamp_f32(count, (float)limit, cpu_f32(x) + i, cpu_f32(y) + i);
    }
}

void CPU(copy)(mu_device *dev, int64_t n, mu_mat x, mu_mat y) {
    (void)dev;
    int64_t blocks = cpu_blocks(n, CPU_BLOCK);
#pragma omp parallel for schedule(static) num_threads(cpu_team(n))
    for (int64_t b = 0; b < blocks; b++) {
        int64_t i = b * CPU_BLOCK, count = cpu_min(CPU_BLOCK, n - i);
        memcpy(cpu_f32(y) + i, cpu_f32(x) + i, (size_t)count * sizeof(float));
    }
}

static double block_sum(int64_t n, const float *x) {
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (double)x[i];
    return s;
}

static double blocked(mu_device *dev, int64_t n, const float *x, double (*sum)(int64_t, const float *)) {
    int64_t blocks = cpu_blocks(n, CPU_BLOCK);
    size_t mark = mu_arena_mark(&dev->scratch);
    double *part = mu_arena_alloc(&dev->scratch, (size_t)blocks * sizeof *part), total = 0;
#pragma omp parallel for schedule(static) num_threads(cpu_team(n))
    for (int64_t b = 0; b < blocks; b++)
        part[b] = sum(cpu_min(CPU_BLOCK, n - b * CPU_BLOCK), x + b * CPU_BLOCK);
    for (int64_t b = 0; b < blocks; b++) total += part[b];
    mu_arena_release(&dev->scratch, mark);
    return total;
}

static void deliver(double value, bool add, mu_mat out) { *cpu_f64(out) = (add ? *cpu_f64(out) : 0) + value; }

void CPU(sum)(mu_device *dev, int64_t n, double scale, mu_mat x, bool add, mu_mat out) {
    deliver(scale * blocked(dev, n, cpu_f32(x), block_sum), add, out);
}

void CPU(sumsq)(mu_device *dev, int64_t n, mu_mat x, bool add, mu_mat out) {
    deliver(blocked(dev, n, cpu_f32(x), cpu_sumsq), add, out);
}
