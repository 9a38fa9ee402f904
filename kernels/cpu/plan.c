/* plan.c - the index plan of a dispatch, and the moves of rows that follow it. T tokens choose K of E
 * experts, R rows, D wide. The counting sort is serial: it touches T*K integers, microseconds against the
 * products' milliseconds. The row moves are parallel over rows or tokens. */
#include "kernels/cpu/cpu.h"

typedef struct {
    int64_t T, E, K, segment, capacity;
    const int32_t *ids;
    int64_t ld;
    int64_t *filled;        /* rows of each expert in this segment */
} sorting;

/* Whether the assignment (t, expert) is kept; walks tokens in order. */
static bool keeps(sorting *s, int64_t t, int64_t k, int32_t expert) {
    if (s->capacity <= 0) return true;
    if (k == 0 && t % s->segment == 0) memset(s->filled, 0, (size_t)s->E * sizeof *s->filled);
    return s->filled[expert]++ < s->capacity;
}

void CPU(plan)(mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t segment, int64_t capacity, mu_mat ids,
               mu_mat order, mu_mat offsets, mu_mat token, mu_mat row_TK) {
    size_t mark = mu_arena_mark(&dev->scratch);
    int64_t *next = mu_arena_alloc(&dev->scratch, (size_t)E * sizeof *next), *first = cpu_i64(offsets);
    sorting s = { T, E, K, segment, capacity, cpu_i32(ids), ids.ld,
                  mu_arena_alloc(&dev->scratch, (size_t)E * sizeof(int64_t)) };
    const int32_t *place = cpu_i32(order);
    memset(first, 0, (size_t)(E + 1) * sizeof *first);
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < K; k++) {
            int32_t expert = s.ids[t * s.ld + k];
            bool kept = keeps(&s, t, k, expert);
            cpu_i32(row_TK)[t * row_TK.ld + k] = kept ? 0 : -1;
            if (kept) first[place[expert] + 1]++;
        }
    for (int64_t i = 0; i < E; i++) {
        next[i] = first[i];
        first[i + 1] += first[i];
    }
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < K; k++) {
            int32_t *row = cpu_i32(row_TK) + t * row_TK.ld + k;
            if (*row < 0) continue;
            *row = (int32_t)next[place[s.ids[t * s.ld + k]]]++;
            cpu_i32(token)[*row] = (int32_t)t;
        }
    mu_arena_release(&dev->scratch, mark);
}

void CPU(arrange)(mu_device *dev, int64_t P, int64_t e, mu_mat counts, mu_mat offsets, mu_mat index) {
    size_t mark = mu_arena_mark(&dev->scratch);
    int64_t *start = mu_arena_alloc(&dev->scratch, (size_t)(P * e) * sizeof *start), received = 0, r = 0;
    for (int64_t p = 0; p < P; p++)
        for (int64_t i = 0; i < e; i++) {
            start[p * e + i] = received;
            received += cpu_i64(counts)[p * counts.ld + i];
        }
    for (int64_t i = 0; i < e; i++) {
        cpu_i64(offsets)[i] = r;
        for (int64_t p = 0; p < P; p++)
            for (int64_t j = 0; j < cpu_i64(counts)[p * counts.ld + i]; j++)
                cpu_i32(index)[r++] = (int32_t)(start[p * e + i] + j);
    }
    cpu_i64(offsets)[e] = r;
    mu_arena_release(&dev->scratch, mark);
}

void CPU(gather)(mu_device *dev, int64_t R, int64_t D, mu_mat index, mu_mat x, mu_mat y) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(cpu_team(R * D))
    for (int64_t r = 0; r < R; r++)
        memcpy(cpu_f32(y) + r * y.ld, cpu_f32(x) + cpu_i32(index)[r] * x.ld, (size_t)D * sizeof(float));
}

static float weight_of(mu_mat weights, int64_t t, int64_t k) {
    return weights.data ? cpu_f32(weights)[t * weights.ld + k] : 1.0f;
}

static void add_scaled(int64_t D, float w, const float *restrict x, float *restrict y) {
    for (int64_t i = 0; i < D; i++) y[i] += w * x[i];
}

void CPU(gather_sum)(mu_device *dev, int64_t T, int64_t K, int64_t D, mu_mat index, mu_mat weights,
                     mu_mat rows, bool add, mu_mat y) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * K * D))
    for (int64_t t = 0; t < T; t++) {
        float *yt = cpu_f32(y) + t * y.ld;
        if (!add) memset(yt, 0, (size_t)D * sizeof *yt);
        for (int64_t k = 0; k < K; k++) {
            int32_t r = cpu_i32(index)[t * index.ld + k];
            if (r >= 0) add_scaled(D, weight_of(weights, t, k), cpu_f32(rows) + r * rows.ld, yt);
        }
    }
}

static void scaled(int64_t D, float w, const float *restrict x, float *restrict y) {
    for (int64_t i = 0; i < D; i++) y[i] = w * x[i];
}

static float dot(int64_t D, const float *x, const float *y) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < D; i++) s += x[i] * y[i];
    return s;
}

void CPU(gather_sum_bwd)(mu_device *dev, int64_t T, int64_t K, int64_t D, mu_mat index, mu_mat weights,
                         mu_mat rows, mu_mat dy, mu_mat drows, mu_mat dweights) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * K * D))
    for (int64_t t = 0; t < T; t++) {
        const float *dyt = cpu_f32(dy) + t * dy.ld;
        for (int64_t k = 0; k < K; k++) {
            int32_t r = cpu_i32(index)[t * index.ld + k];
            if (r < 0) continue;
            if (drows.data) scaled(D, weight_of(weights, t, k), dyt, cpu_f32(drows) + r * drows.ld);
            if (dweights.data)
                cpu_f32(dweights)[t * dweights.ld + k] += dot(D, dyt, cpu_f32(rows) + r * rows.ld);
        }
    }
}
