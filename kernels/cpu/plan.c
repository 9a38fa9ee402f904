/* plan.c - the index plan of a dispatch, and the copies of rows that use it. T tokens choose K of E
 * experts, R rows, D wide. The counting sort is serial: T*K integers take microseconds, products
 * milliseconds. The copies are parallel over rows or tokens. */
#include "kernels/cpu/cpu.h"

enum { ROWS = 64 };             /* of a gather, for one thread at a time */

typedef struct {
    int64_t T, E, K, segment, capacity;
    const int32_t *ids;
    int64_t ld;
    int64_t *filled;        /* rows of each expert in this segment */
} sorting;

/* Whether the assignment (t, expert) is kept; called in order of tokens. */
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
    for (int64_t b = 0; b < cpu_blocks(R, ROWS); b++) {
        int64_t r = b * ROWS;
        cpu_gather_rows(cpu_min(ROWS, R - r), D, cpu_i32(index) + r, x.data, x.ld, cpu_f32(y) + r * y.ld, y.ld);
    }
}

void CPU(scatter)(mu_device *dev, int64_t R, int64_t D, mu_mat index, mu_mat x, mu_mat y) {
    (void)dev;
    const int32_t *to = cpu_i32(index);
#pragma omp parallel for schedule(static) num_threads(cpu_team(R * D))
    for (int64_t r = 0; r < R; r++)
        if (to[r] >= 0 && D == 1) cpu_f32(y)[to[r] * y.ld] = cpu_f32(x)[r * x.ld];
        else if (to[r] >= 0) memcpy(cpu_f32(y) + to[r] * y.ld, cpu_f32(x) + r * x.ld, (size_t)D * sizeof(float));
}

/* Some columns of a token's sum, in registers, over all of its rows. */
typedef float vec16 __attribute__((vector_size(64)));
typedef float vec16_u __attribute__((vector_size(64), aligned(4), may_alias));
enum { SUMS = 4, CHUNK = 16 * SUMS };

static void sum_chunk(int64_t K, const int32_t *from, const float *rows, int64_t ld, bool add, float *y) {
    vec16 sum[SUMS] = { { 0 } };
    for (int i = 0; i < SUMS && add; i++) sum[i] = ((const vec16_u *)y)[i];
    for (int64_t k = 0; k < K; k++)
        for (int i = 0; i < SUMS && from[k] >= 0; i++) sum[i] += ((const vec16_u *)(rows + from[k] * ld))[i];
    for (int i = 0; i < SUMS; i++) ((vec16_u *)y)[i] = sum[i];
}

static void sum_values(int64_t K, int64_t n, const int32_t *from, const float *rows, int64_t ld, bool add, float *y) {
    for (int64_t i = 0; i < n; i++) {
        float sum = add ? y[i] : 0;
        for (int64_t k = 0; k < K; k++)
            if (from[k] >= 0) sum += rows[from[k] * ld + i];
        y[i] = sum;
    }
}

/* Prefetches the rows of the next token while this one's are summed. */
static void prefetch_chunk(int64_t K, const int32_t *from, const float *rows, int64_t ld) {
    for (int64_t k = 0; k < K; k++)
        for (int i = 0; i < CHUNK && from[k] >= 0; i += 16) __builtin_prefetch(rows + from[k] * ld + i);
}

void CPU(gather_sum)(mu_device *dev, int64_t T, int64_t K, int64_t D, mu_mat index, mu_mat rows, bool add, mu_mat y) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * K * D))
    for (int64_t t = 0; t < T; t++) {
        const int32_t *from = cpu_i32(index) + t * index.ld;
        float *yt = cpu_f32(y) + t * y.ld;
        int64_t i = 0;
        for (; i + CHUNK <= D; i += CHUNK) {
            if (t + 1 < T) prefetch_chunk(K, from + index.ld, cpu_f32(rows) + i, rows.ld);
            sum_chunk(K, from, cpu_f32(rows) + i, rows.ld, add, yt + i);
        }
        sum_values(K, D - i, from, cpu_f32(rows) + i, rows.ld, add, yt + i);
    }
}
