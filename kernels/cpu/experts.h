/* experts.h - shared by experts_fwd.c and experts_bwd.c. R rows in groups by expert, D model width, F expert width;
 * gate, up [experts, F, D], down [experts, D, F]. */
#ifndef MUSTER_KERNELS_CPU_EXPERTS_H
#define MUSTER_KERNELS_CPU_EXPERTS_H

#include "kernels/cpu/cpu.h"

typedef struct { int64_t expert, first, rows; } cpu_item;
typedef struct { cpu_item *list; int64_t n; } cpu_items;

enum { CPU_BLOCK_ROWS = 56 };                               /* rows at a time: even tiles, fits the cache */

/* Block i of `blocks` of near-equal height. */
static inline cpu_item cpu_block_of(cpu_item part, int64_t i, int64_t blocks) {
    int64_t at = part.rows * i / blocks;
    return (cpu_item){ part.expert, part.first + at, part.rows * (i + 1) / blocks - at };
}

static inline const float *cpu_matrix_of(mu_mat w, const mu_experts_shape *s, int64_t i) {
    return cpu_f32(w) + i * s->D * s->F;
}

static inline mu_mat cpu_part_of(mu_mat m, int64_t row, int64_t column) {
    return (mu_mat){ cpu_f32(m) + row * m.ld + column, m.dtype, m.ld };
}

/* Rows first .. first+n-1 of x as an operand: in place, or gathered into `room` if there is an index. */
static inline mu_mat cpu_rows_of(mu_mat x, mu_mat index, int64_t first, int64_t n, int64_t D, mu_mat room) {
    if (!index.data) return cpu_part_of(x, first, 0);
    cpu_gather_rows(n, D, cpu_i32(index) + first, x.data, x.ld, room.data, room.ld);
    return room;
}

static inline float cpu_row_weight(mu_mat weights, int64_t row) { return weights.data ? cpu_f32(weights)[row] : 1; }

/* The largest number of rows of an expert. */
static inline int64_t cpu_most_rows(const int64_t *offsets, int64_t experts) {
    int64_t most = 0;
    for (int64_t i = 0; i < experts; i++) most = cpu_max(most, offsets[i + 1] - offsets[i]);
    return most;
}

/* Columns of n to process at a time, with k values in each of `matrices`: as many panels as fit into a second-level cache of
 * 1 MiB, but 4 to 32, and about the same number each time. */
static inline int64_t cpu_columns_at_once(int64_t n, int64_t matrices, int64_t k) {
    enum { FLOATS = 262144 };
    int64_t panels = FLOATS / cpu_max(1, matrices * (int64_t)cpu_packed(k, CPU_NR));
    int64_t times = cpu_blocks(n, CPU_NR * cpu_max(4, cpu_min(32, panels)));
    return CPU_NR * cpu_blocks(cpu_blocks(n, CPU_NR), cpu_max(1, times));
}

/* Splits the rows into parts of up to `most` rows of one expert each, in order, and fills `shares` with parts of equal
 * estimated cost (rows, and weights to be read) per thread. An expert with fewer than 32 rows is one part: the split depends
 * on the team, and the bits must not. In scratch. */
cpu_items CPU(list_parts)(mu_device *dev, const mu_experts_shape *s, const int64_t *offsets, int64_t most, cpu_shares shares);

/* Whether there are so few rows that all threads together read the weights by columns, instead of per block of rows. */
static inline bool cpu_few_for_weights(const mu_experts_shape *s, int64_t rows) {
    static const int64_t large = (int64_t)1 << 20;          /* floats: more than a second-level cache holds */
    return rows <= CPU_FEW && 3 * s->D * s->F > large;
}

/* Rounding weights to bf16 takes longer than multiplying them with a handful of rows. */
static inline bool cpu_better_in_fp32(const mu_experts_shape *s, const int64_t *offsets) {
    enum { HANDFUL = 8 };
    return CPU_ROUNDS && !s->batch_invariant && cpu_most_rows(offsets, s->experts) <= HANDFUL;
}

#endif
