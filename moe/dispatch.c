/* dispatch.c - the index plan: which row goes to which expert, and the way back.
 *
 * Each rank sorts its T*K assignments by the place of their expert (rank, then slot) with a stable counting
 * sort, so that the rows of one expert stay in order of token. With one rank in the expert group that is
 * all: the experts read x through the index. With P ranks the sorted rows are also sorted by destination:
 * each rank tells each peer how many rows come for each of the peer's experts, the rows travel, and they
 * arrive as
 *
 *     from peer 0: [expert 0 | expert 1 | ...]  from peer 1: [expert 0 | expert 1 | ...]  ...
 *
 * The receiver visits them by expert, then peer (`arrange`): peers hold ascending samples of the batch, so
 * an expert sees its rows in global order whatever the number of ranks. The inverse of that visit is the
 * same operation with the roles of peer and expert exchanged. */
#include "moe/moe.h"

#include <math.h>

static int64_t capacity_of(const mu_moe *m, const mu_context *cx) {
    if (cx->mode != MU_MODE_TRAIN || m->cfg->capacity_factor == 0) return 0;
    double rows = m->cfg->capacity_factor * (double)(m->K * cx->seq_len) / (double)m->E;
    return (int64_t)ceil(rows - 1e-9); /* 1.25 * 2 * 256 / 8 must not become 81 by rounding */
}

/* This rank's own sort. Returns rows before each place, on the device. */
static mu_tensor *sort_rows(const mu_moe *m, mu_tape *tp, const mu_context *cx, const mu_routing *r,
                            mu_plan *p) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *order = mu_tensor_ints(tp, MU_DTYPE_I32, m->E, m->place->order);
    mu_tensor *offsets = mu_tensor_ints(tp, MU_DTYPE_I64, m->E + 1, NULL);
    p->token = mu_tensor_ints(tp, MU_DTYPE_I32, p->T * p->K, NULL);
    p->row_TK = mu_tensor_new(tp, MU_DTYPE_I32, 2, (int64_t[]){ p->T, p->K });
    p->capacity = capacity_of(m, cx);
    dev->k->plan(dev, p->T, m->E, m->K, cx->seq_len, p->capacity, mu_data(r->ids_TK), mu_data(order),
                 mu_data(offsets), mu_data(p->token), mu_data(p->row_TK));
    mu_release(tp, order);
    return offsets;
}

/* A dry run has no routing. It sends balanced rows, and plans for the rank that receives the most: before the router has
 * learnt, the busiest of ep ranks gets about 1 + 0.3 log2(ep) times its share (measured with 2, 4 and 8), and no more
 * than every token can send it. */
static int64_t planned_rows(const mu_moe *m, int64_t fair) {
    double ep = m->group->size, at_once = m->K < m->place->n_local ? (double)m->K : (double)m->place->n_local;
    return (int64_t)((double)fair * fmin(1 + 0.3 * log2(ep), ep * at_once / (double)m->K));
}

/* Rows for each place, on the host. */
static int64_t *rows_per_place(const mu_moe *m, mu_tape *tp, const mu_plan *p, mu_tensor *offsets) {
    int64_t *at = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(m->E + 1));
    mu_tensor_read(offsets, at);
    for (int64_t i = 0; i < m->E; i++)
        at[i] = mu_tape_device(tp)->shape_only ? p->T * p->K / m->E + (i < p->T * p->K % m->E)
                                               : at[i + 1] - at[i];
    return at;
}

static void exchange_counts(const mu_moe *m, mu_tape *tp, mu_plan *p, const int64_t *mine, int64_t *theirs) {
    int P = m->group->size, e = m->place->n_local;
    int64_t *bytes = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)P);
    for (int i = 0; i < P; i++) bytes[i] = (int64_t)sizeof(int64_t) * e;
    if (mu_tape_device(tp)->shape_only)
        for (int i = 0; i < P * e; i++) theirs[i] = planned_rows(m, mine[i]);
    else mu_exchange(m->group, mine, bytes, theirs, bytes);
    for (int peer = 0; peer < P; peer++)
        for (int i = 0; i < e; i++) {
            p->send_rows[peer] += mine[peer * e + i], p->sent += mine[peer * e + i];
            p->recv_rows[peer] += theirs[peer * e + i], p->rows += theirs[peer * e + i];
        }
}

/* Fills index, back and offsets of the receiver's visit from the counts [P, e]. */
static void arrange_received(const mu_moe *m, mu_tape *tp, mu_plan *p, const int64_t *counts) {
    mu_device *dev = mu_tape_device(tp);
    int64_t P = m->group->size, e = m->place->n_local;
    int64_t *turned = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(P * e));
    for (int64_t peer = 0; peer < P; peer++)
        for (int64_t i = 0; i < e; i++) turned[i * P + peer] = counts[peer * e + i];
    mu_tensor *by_peer = mu_tensor_new(tp, MU_DTYPE_I64, 2, (int64_t[]){ P, e });
    mu_tensor *by_expert = mu_tensor_new(tp, MU_DTYPE_I64, 2, (int64_t[]){ e, P });
    mu_tensor_write(by_peer, counts);
    mu_tensor_write(by_expert, turned);
    mu_tensor *peer_offsets = mu_tensor_ints(tp, MU_DTYPE_I64, P + 1, NULL);
    p->offsets = mu_tensor_ints(tp, MU_DTYPE_I64, e + 1, NULL);
    p->index = mu_tensor_ints(tp, MU_DTYPE_I32, p->rows, NULL);
    p->back = mu_tensor_new(tp, MU_DTYPE_I32, 2, (int64_t[]){ p->rows, 1 });
    dev->k->arrange(dev, P, e, mu_data(by_peer), mu_data(p->offsets), mu_data(p->index));
    dev->k->arrange(dev, e, P, mu_data(by_expert), mu_data(peer_offsets), mu_data(p->back));
    p->fan = 1;
    mu_release(tp, by_peer);
    mu_release(tp, by_expert);
    mu_release(tp, peer_offsets);
}

/* Rows for each place and reduction unit, on the host: of a sequence's assignments an expert takes up to the capacity. */
static int64_t *rows_per_unit(const mu_moe *m, mu_tape *tp, const mu_routing *r,
                              int64_t units, int64_t most) {
    int64_t n = r->counts_SE->shape[0];
    int64_t *chosen = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(n * m->E));
    int64_t *rows = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(units * m->E));
    mu_tensor_read(r->counts_SE, chosen);
    for (int64_t s = 0; s < n; s++)
        for (int64_t i = 0; i < m->E; i++) {
            int64_t taken = chosen[s * m->E + i];
            rows[m->place->order[i] * units + s * units / n] += most && taken > most ? most : taken;
        }
    return rows;
}

/* Where the reduction units of all peers begin among the rows of each local expert: by expert, then peer, then unit. */
static void set_unit_bounds(const mu_moe *m, mu_tape *tp, const mu_routing *r, mu_plan *p) {
    int64_t P = m->group->size, e = m->place->n_local, L = mu_tape_reduction_units(tp, p->T), n = 0;
    int64_t *mine = rows_per_unit(m, tp, r, L, p->capacity), *theirs = mine;
    int64_t *bounds = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(e * P * L + 1));
    if (P > 1 && !mu_tape_device(tp)->shape_only) {
        int64_t *bytes = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)P);
        for (int64_t i = 0; i < P; i++) bytes[i] = (int64_t)sizeof(int64_t) * e * L;
        theirs = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(P * e * L));
        mu_exchange(m->group, mine, bytes, theirs, bytes);
    }
    for (int64_t i = 0; i < e; i++)
        for (int64_t peer = 0; peer < P; peer++)
            for (int64_t unit = 0; unit < L; unit++, n++)
                bounds[n + 1] = bounds[n] + theirs[(peer * e + i) * L + unit];
    p->reduction_units = P * L;
    p->unit_bounds = mu_tensor_ints(tp, MU_DTYPE_I64, n + 1, bounds);
}

mu_plan *mu_dispatch(const mu_moe *m, mu_tape *tp, const mu_context *cx, const mu_routing *r) {
    int P = m->group->size;
    mu_plan *p = mu_tape_alloc(tp, sizeof *p);
    *p = (mu_plan){ .T = r->ids_TK->shape[0], .K = m->K, .experts = m->place->n_local };
    p->batch_invariant = cx->mode != MU_MODE_TRAIN || m->gate_eFD->tensor.sums;     /* in evaluation, generation and with exact sums */
    mu_tensor *offsets = sort_rows(m, tp, cx, r, p);
    if (m->gate_eFD->tensor.sums && mu_tape_recording(tp)) set_unit_bounds(m, tp, r, p);
    if (P == 1) {
        p->rows = p->T * p->K;
        p->offsets = offsets, p->index = p->token, p->back = p->row_TK, p->fan = p->K;
        return p;
    }
    p->exchanged = true;
    p->send_rows = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)P);
    p->recv_rows = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)P);
    int64_t *theirs = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)m->E);
    exchange_counts(m, tp, p, rows_per_place(m, tp, p, offsets), theirs);
    mu_release(tp, offsets);
    arrange_received(m, tp, p, theirs);
    return p;
}

mu_plan *mu_plan_dense(mu_tape *tp, int64_t T) {
    MU_CHECK(T >= 0, "a plan of %lld rows", (long long)T);
    mu_plan *p = mu_tape_alloc(tp, sizeof *p);
    *p = (mu_plan){ .T = T, .K = 1, .rows = T, .experts = 1, .batch_invariant = true };
    p->offsets = mu_tensor_ints(tp, MU_DTYPE_I64, 2, (int64_t[]){ 0, T });
    if (!mu_tape_recording(tp)) return p;
    p->reduction_units = mu_tape_reduction_units(tp, T);
    p->unit_bounds = p->reduction_units == 1 ? p->offsets : mu_tape_unit_bounds(tp, T);
    return p;
}
