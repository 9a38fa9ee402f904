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

void CPU(scatter)(mu_device *dev, int64_t R, int64_t D, mu_mat index, mu_mat x, mu_mat y) {
    (void)dev;
    const int32_t *to = cpu_i32(index);
#pragma omp parallel for schedule(static) num_threads(cpu_team(R * D))
    for (int64_t r = 0; r < R; r++)
        if (to[r] >= 0 && D == 1) cpu_f32(y)[to[r] * y.ld] = cpu_f32(x)[r * x.ld];
        else if (to[r] >= 0) memcpy(cpu_f32(y) + to[r] * y.ld, cpu_f32(x) + r * x.ld, (size_t)D * sizeof(float));
}

/* y = or += x */
static void take(int64_t D, const float *restrict x, bool add, float *restrict y) {
    if (!add) memcpy(y, x, (size_t)D * sizeof *y);
    else
        for (int64_t i = 0; i < D; i++) y[i] += x[i];
}

/* The rows of the next token lie anywhere: they are on their way while this one's are summed. */
static void prefetch_rows(int64_t K, int64_t D, const int32_t *index, mu_mat rows) {
    for (int64_t k = 0; k < K; k++)
        for (int64_t i = 0; i < D && index[k] >= 0; i += 16) __builtin_prefetch(cpu_f32(rows) + index[k] * rows.ld + i);
}

void CPU(gather_sum)(mu_device *dev, int64_t T, int64_t K, int64_t D, mu_mat index, mu_mat rows, bool add, mu_mat y) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * K * D))
    for (int64_t t = 0; t < T; t++) {
        const int32_t *from = cpu_i32(index) + t * index.ld;
        float *yt = cpu_f32(y) + t * y.ld;
        bool begun = add;
        if (t + 1 < T) prefetch_rows(K, D, from + index.ld, rows);
        for (int64_t k = 0; k < K; k++) {
            if (from[k] < 0) continue;
            take(D, cpu_f32(rows) + from[k] * rows.ld, begun, yt);
            begun = true;
        }
        if (!begun) memset(yt, 0, (size_t)D * sizeof *yt);
    }
}
