/* plan.c - counting assignments, and stable sorting of rows by expert. Integers only. */
#include "kernels/ref/ref.h"

void mu_ref_count_experts(mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t segment, mu_mat ids_TK,
                          mu_mat counts_nE) {
    (void)dev;
    MU_CHECK(segment > 0 && T % segment == 0, "%lld tokens are not a multiple of the segment, %lld tokens", (long long)T,
             (long long)segment);
    for (int64_t n = 0; n < T / segment; n++)
        for (int64_t i = 0; i < E; i++) long_row(counts_nE, n, E)[i] = 0;
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < K; k++) long_row(counts_nE, t / segment, E)[int_row(ids_TK, t, K)[k]]++;
}

void mu_ref_sum_counts(mu_device *dev, int64_t S, int64_t E, int64_t G, mu_mat counts_SE, mu_mat group_S, mu_mat total_E,
                       mu_mat by_group_EG) {
    (void)dev;
    for (int64_t i = 0; i < E; i++) {
        int64_t sum = 0;
        for (int64_t s = 0; s < S; s++) {
            int64_t n = long_row(counts_SE, s, E)[i];
            sum += n;
            if (!by_group_EG.data) continue;
            int32_t g = int_row(group_S, 0, S)[s];
            MU_CHECK(g >= 0 && g < G, "sum_counts: group %d of %lld", g, (long long)G);
            long_row(by_group_EG, i, G)[g] += n;
        }
        if (total_E.data) long_row(total_E, 0, E)[i] = sum;
    }
}

void mu_ref_sum_dropped(mu_device *dev, int64_t S, int64_t E, int64_t G, int64_t capacity, mu_mat counts_SE, mu_mat group_S,
                        mu_mat by_expert_E, mu_mat by_group_G) {
    (void)dev;
    for (int64_t s = 0; s < S; s++)
        for (int64_t i = 0; i < E; i++) {
            int64_t n = long_row(counts_SE, s, E)[i] - capacity;
            int32_t g = int_row(group_S, 0, S)[s];
            MU_CHECK(g >= 0 && g < G, "sum_dropped: group %d of %lld", g, (long long)G);
            if (n > 0) longs(by_expert_E)[i] += n, longs(by_group_G)[g] += n;
        }
}

/* row[t,k] = 0 when the assignment is kept, -1 when its expert is full: in each segment of tokens an expert
 * takes the first `capacity` assignments, in order of token, then slot. load: [E]. */
static void keep_or_drop(int64_t T, int64_t E, int64_t K, int64_t segment, int64_t capacity, mu_mat ids_TK,
                         int64_t *load, mu_mat row_TK) {
    for (int64_t t = 0; t < T; t++) {
        const int32_t *ids = int_row(ids_TK, t, K);
        bool begins = t == 0 || (capacity > 0 && t % segment == 0);
        for (int64_t i = 0; i < E && begins; i++) load[i] = 0;
        for (int64_t k = 0; k < K; k++) {
            int64_t before = load[ids[k]]++;
            int_row(row_TK, t, K)[k] = capacity > 0 && before >= capacity ? -1 : 0;
        }
    }
}

/* Prefix sums: rows before each position. */
static void count_places(int64_t T, int64_t E, int64_t K, mu_mat ids_TK, mu_mat row_TK, const int32_t *order,
                         int64_t *offsets) {
    for (int64_t i = 0; i <= E; i++) offsets[i] = 0;
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < K; k++)
            offsets[order[int_row(ids_TK, t, K)[k]] + 1] += int_row(row_TK, t, K)[k] >= 0;
    for (int64_t i = 0; i < E; i++) offsets[i + 1] += offsets[i];
}

void mu_ref_plan(mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t segment, int64_t capacity,
                 mu_mat ids_TK, mu_mat order_E, mu_mat offsets_E1, mu_mat token_R, mu_mat row_TK) {
    const int32_t *order = ints(order_E);
    int64_t *offsets = longs(offsets_E1);
    MU_CHECK(capacity <= 0 || segment > 0,
             "plan: capacity %lld needs segments of at least 1 token, not %lld", (long long)capacity,
             (long long)segment);
    size_t mark = mu_arena_mark(&dev->scratch);
    int64_t *next = mu_arena_alloc(&dev->scratch, (size_t)E * sizeof *next);
    keep_or_drop(T, E, K, segment, capacity, ids_TK, next, row_TK);
    count_places(T, E, K, ids_TK, row_TK, order, offsets);
    for (int64_t i = 0; i < E; i++) next[i] = offsets[i];
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < K; k++) {
            int32_t *r = int_row(row_TK, t, K) + k;
            if (*r < 0) continue;
            *r = (int32_t)next[order[int_row(ids_TK, t, K)[k]]]++;
            ints(token_R)[*r] = (int32_t)t;
        }
    mu_arena_release(&dev->scratch, mark);
}

/* Received: for each peer, for each expert, counts[peer, expert] rows. Sorted: by expert, then peer. */
void mu_ref_arrange(mu_device *dev, int64_t P, int64_t e, mu_mat counts_Pe, mu_mat offsets_e1,
                    mu_mat index_R) {
    (void)dev;
    int64_t *offsets = longs(offsets_e1), r = 0;
    int32_t *index = ints(index_R);
    for (int64_t i = 0; i < e; i++) {
        int64_t received = 0;               /* rows received before this block (peer, expert) */
        offsets[i] = r;
        for (int64_t block = 0; block < P * e; block++) {
            int64_t count = long_row(counts_Pe, block / e, e)[block % e], wanted = block % e == i ? count : 0;
            for (int64_t n = 0; n < wanted; n++) index[r++] = (int32_t)(received + n);
            received += count;
        }
    }
    offsets[e] = r;
}
