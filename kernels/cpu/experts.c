/* experts.c - distribution of the experts' rows over the threads of a team (experts.h). */
#include "kernels/cpu/experts.h"

/* Reading or transposing an expert's weights takes as long as WEIGHTS_COST rows. No part of a split expert has fewer than
 * LEAST_CUT rows: smaller ones do not pay, and might be summed in another order (multiply_few). */
enum { WEIGHTS_COST = 16, LEAST_CUT = 16 };

static int64_t cost_of(int64_t rows) { return rows ? rows + WEIGHTS_COST : 0; }

/* The row at which the cost of all rows before it reaches `cost`. */
static int64_t row_at(const int64_t *offsets, int64_t experts, int64_t cost) {
    int64_t i = 0, rows = 0;
    for (; i < experts; i++) {
        rows = offsets[i + 1] - offsets[i];
        if (cost < cost_of(rows)) break;
        cost -= cost_of(rows);
    }
    if (i == experts) return offsets[experts];
    int64_t cut = cost - WEIGHTS_COST / 2;
    if (cut < cpu_min(LEAST_CUT, (rows + 1) / 2)) return offsets[i];
    return rows - cut < LEAST_CUT ? offsets[i + 1] : offsets[i] + cut;
}

static bool is_border(const int64_t *offsets, int64_t experts, int64_t row) {
    for (int64_t i = 0; i <= experts; i++)
        if (offsets[i] == row) return true;
    return false;
}

/* Rows at .. end-1 in parts of near-equal height, none of more than `most` rows and none of two experts. */
static void cut(const int64_t *offsets, int64_t at, int64_t end, int64_t most, cpu_items *l) {
    int64_t expert = 0;
    while (at < end) {
        while (offsets[expert + 1] <= at) expert++;
        int64_t rows = cpu_min(offsets[expert + 1], end) - at, parts = cpu_blocks(rows, most);
        for (int64_t i = 0; i < parts; i++) l->list[l->n++] = cpu_block_of((cpu_item){ expert, at, rows }, i, parts);
        at += rows;
    }
}

cpu_items CPU(list_parts)(mu_device *dev, const mu_experts_shape *s, const int64_t *offsets, int64_t most, cpu_shares shares) {
    int64_t all = 0, at = offsets[0];
    size_t room = (size_t)(s->experts + shares.team + offsets[s->experts] / most);
    cpu_items l = { mu_arena_alloc(&dev->scratch, room * sizeof *l.list), 0 };
    for (int64_t i = 0; i < s->experts; i++) all += cost_of(offsets[i + 1] - offsets[i]);
    for (int t = 0; t < shares.team; t++) {
        int64_t end = row_at(offsets, s->experts, all * (t + 1) / shares.team);
        if (end - at < LEAST_CUT && !is_border(offsets, s->experts, end)) end = at;
        shares.list[t].next = l.n;
        cut(offsets, at, end, most, &l);
        shares.list[t].end = l.n;
        at = end;
    }
    return l;
}
