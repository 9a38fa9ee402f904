/* dispatch.c - from the chosen experts to a plan: which row goes to which expert, and the way back.
 *
 * Each rank sorts its T*K assignments by the place of their expert (rank, then slot) with a stable counting
 * sort, so that the rows of one expert stay in order of token. With one rank in the expert group that is
 * all: the experts read x through the plan. With P ranks the sorted rows are also sorted by destination:
 * each rank tells each peer how many rows come for each of the peer's experts, an all-to-all moves the rows, and
 * they arrive as
 *
 *     from peer 0: [expert 0 | expert 1 | ...]  from peer 1: [expert 0 | expert 1 | ...]  ...
 *
 * The receiver reads them by expert, then peer (`arrange`): peers hold ascending samples of the batch, so
 * an expert sees its rows in global order whatever the number of ranks. The inverse of that order is the
 * same operation with the roles of peer and expert exchanged.
 *
 * The op has no gradient, so recomputation does not run it again: recomputed experts use the existing plan. */
#include "moe/moe.h"

#include <math.h>

enum { IDS, ORDER, COUNTS }; /* in[] */
enum { OFFSETS, TOKEN, ROW_TK, ROW_SOURCE, TOKEN_ROWS, UNIT_BOUNDS }; /* out[] */

typedef struct {
    const mu_moe *m;
    int64_t seq_len;
    bool exact;                 /* experts' gradients are summed by reduction unit */
    mu_plan *plan;              /* forward fills in numbers of rows, and the tensors of those sizes */
} extra;

static int64_t capacity_of(const mu_moe *m, const mu_context *cx) {
    if (cx->mode != MU_MODE_TRAIN || m->cfg->capacity_factor == 0) return 0;
    double rows = m->cfg->capacity_factor * (double)(m->K * cx->seq_len) / (double)m->E;
    return (int64_t)ceil(rows - 1e-9); /* 1.25 * 2 * 256 / 8 must not become 81 by rounding */
}

/* A dry run has no routing. It sends balanced rows, and plans for the rank that receives the most: before the router has
 * learnt, the busiest of ep ranks gets about 1 + 0.3 log2(ep) times its share (measured with 2, 4 and 8), and no more
 * than every token can send it. */
static int64_t planned_rows(const mu_moe *m, int64_t fair) {
    double ep = m->group->size, at_once = m->K < m->place->n_local ? (double)m->K : (double)m->place->n_local;
    return (int64_t)((double)fair * fmin(1 + 0.3 * log2(ep), ep * at_once / (double)m->K));
}

/* Number of rows for each place (position of an expert by rank, then slot), on the host. */
static int64_t *rows_per_place(const mu_moe *m, mu_tape *tp, const mu_plan *p, const mu_tensor *offsets) {
    int64_t *at = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(m->E + 1));
    mu_tensor_read(offsets, at);
    for (int64_t i = 0; i < m->E; i++)
        at[i] = mu_tape_device(tp)->shape_only ? p->T * p->K / m->E + (i < p->T * p->K % m->E)
                                               : at[i + 1] - at[i];
    return at;
}

/* All-to-all of counts, n to each peer: sends `counts` [P, n]; returns what the peers sent to this rank, [P, n]. */
static int64_t *exchange_counts(const mu_moe *m, mu_tape *tp, const int64_t *counts, int64_t n) {
    int P = m->group->size;
    int64_t *bytes = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)P), *theirs = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(P * n));
    for (int i = 0; i < P; i++) bytes[i] = (int64_t)sizeof(int64_t) * n;
    mu_exchange(m->group, counts, bytes, theirs, bytes);
    return theirs;
}

/* Returns how many rows each peer sends to each expert of this rank, [P, e]; sets the numbers of rows in the plan. */
static const int64_t *exchange_rows(const mu_moe *m, mu_tape *tp, mu_plan *p, const mu_tensor *offsets) {
    int P = m->group->size, e = m->place->n_local;
    int64_t *mine = rows_per_place(m, tp, p, offsets), *theirs;
    if (mu_tape_device(tp)->shape_only) {
        theirs = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)m->E);
        for (int i = 0; i < P * e; i++) theirs[i] = planned_rows(m, mine[i]);
    } else theirs = exchange_counts(m, tp, mine, e);
    for (int peer = 0; peer < P; peer++)
        for (int i = 0; i < e; i++) {
            p->send_rows[peer] += mine[peer * e + i], p->sent += mine[peer * e + i];
            p->recv_rows[peer] += theirs[peer * e + i], p->rows += theirs[peer * e + i];
        }
    return theirs;
}

/* Makes the order in which this rank's experts read the received rows, from their counts [P, e]. */
static void arrange_received(const mu_moe *m, mu_tape *tp, mu_plan *p, const int64_t *counts) {
    mu_device *dev = mu_tape_device(tp);
    int64_t P = m->group->size, e = m->place->n_local;
    int64_t *transposed = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(P * e));
    for (int64_t peer = 0; peer < P; peer++)
        for (int64_t i = 0; i < e; i++) transposed[i * P + peer] = counts[peer * e + i];
    mu_tensor *by_peer = mu_tensor_new(tp, MU_DTYPE_I64, 2, (int64_t[]){ P, e });
    mu_tensor *by_expert = mu_tensor_new(tp, MU_DTYPE_I64, 2, (int64_t[]){ e, P });
    mu_tensor_write(by_peer, counts);
    mu_tensor_write(by_expert, transposed);
    mu_tensor *peer_offsets = mu_tensor_ints(tp, MU_DTYPE_I64, P + 1, NULL);
    p->offsets = mu_tensor_ints(tp, MU_DTYPE_I64, e + 1, NULL);
    p->row_source = mu_tensor_ints(tp, MU_DTYPE_I32, p->rows, NULL);
    p->token_rows = mu_tensor_new(tp, MU_DTYPE_I32, 2, (int64_t[]){ p->rows, 1 });
    dev->k->arrange(dev, P, e, mu_data(by_peer), mu_data(p->offsets), mu_data(p->row_source));
    dev->k->arrange(dev, e, P, mu_data(by_expert), mu_data(peer_offsets), mu_data(p->token_rows));
    mu_release(tp, by_peer);
    mu_release(tp, by_expert);
    mu_release(tp, peer_offsets);
}

/* Number of rows for each place and reduction unit, on the host. most: rows per expert and sequence (capacity; 0: no
 * limit). */
static int64_t *rows_per_unit(const mu_moe *m, mu_tape *tp, const mu_tensor *counts_SE, int64_t units, int64_t most) {
    int64_t n = counts_SE->shape[0];
    int64_t *chosen = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(n * m->E));
    int64_t *rows = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(units * m->E));
    mu_tensor_read(counts_SE, chosen);
    for (int64_t s = 0; s < n; s++)
        for (int64_t i = 0; i < m->E; i++) {
            int64_t taken = chosen[s * m->E + i];
            rows[m->place->order[i] * units + s * units / n] += most && taken > most ? most : taken;
        }
    return rows;
}

/* Where the reduction units of all peers begin among the rows of each local expert: by expert, then peer, then unit. */
static void bound_units(const mu_moe *m, mu_tape *tp, const mu_tensor *counts_SE, mu_plan *p) {
    int64_t P = m->group->size, e = m->place->n_local, L = mu_tape_reduction_units(tp, p->T), n = 0;
    int64_t *rows = rows_per_unit(m, tp, counts_SE, L, p->capacity);
    int64_t *bounds = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)(e * P * L + 1));
    if (P > 1 && !mu_tape_device(tp)->shape_only) rows = exchange_counts(m, tp, rows, e * L);
    for (int64_t i = 0; i < e; i++)
        for (int64_t peer = 0; peer < P; peer++)
            for (int64_t unit = 0; unit < L; unit++, n++)
                bounds[n + 1] = bounds[n] + rows[(peer * e + i) * L + unit];
    p->reduction_units = P * L;
    p->unit_bounds = mu_tensor_ints(tp, MU_DTYPE_I64, n + 1, bounds);
}

/* out[OFFSETS] covers all places. With one rank it is also the plan's `offsets`. */
static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    const mu_moe *m = e->m;
    mu_plan *p = e->plan;
    dev->k->plan(dev, p->T, m->E, m->K, e->seq_len, p->capacity, mu_data(n->in[IDS]), mu_data(n->in[ORDER]),
                 mu_data(n->out[OFFSETS]), mu_data(n->out[TOKEN]), mu_data(n->out[ROW_TK]));
    if (e->exact) bound_units(m, tp, n->in[COUNTS], p);
    if (p->all_to_all) arrange_received(m, tp, p, exchange_rows(m, tp, p, n->out[OFFSETS]));
    n->out[ROW_SOURCE] = p->row_source, n->out[TOKEN_ROWS] = p->token_rows, n->out[UNIT_BOUNDS] = p->unit_bounds;
}

static const mu_op op_dispatch = { .name = "dispatch", .forward = forward };

mu_plan *mu_dispatch(const mu_moe *m, mu_tape *tp, const mu_context *cx, const mu_routing *r) {
    int64_t T = r->ids_TK->shape[0], K = m->K;
    size_t P = (size_t)m->group->size;
    bool exact = m->gate_eFD->tensor.sums;
    mu_plan *p = mu_tape_alloc(tp, sizeof *p);
    *p = (mu_plan){ .T = T, .K = K, .experts = m->place->n_local, .capacity = capacity_of(m, cx) };
    p->batch_invariant = cx->mode != MU_MODE_TRAIN || exact;    /* in evaluation, generation and with exact sums */
    mu_tensor *order = mu_tensor_ints(tp, MU_DTYPE_I32, m->E, m->place->order);
    mu_tensor *offsets = mu_tensor_ints(tp, MU_DTYPE_I64, m->E + 1, NULL);
    p->token = mu_tensor_ints(tp, MU_DTYPE_I32, T * K, NULL);
    p->row_TK = mu_tensor_new(tp, MU_DTYPE_I32, 2, (int64_t[]){ T, K });
    p->all_to_all = P > 1;
    if (p->all_to_all) {
        p->rows_per_token = 1;
        p->send_rows = mu_tape_alloc(tp, sizeof(int64_t) * P), p->recv_rows = mu_tape_alloc(tp, sizeof(int64_t) * P);
    } else p->rows_per_token = K, p->rows = T * K, p->offsets = offsets, p->row_source = p->token, p->token_rows = p->row_TK;
    extra *e = mu_tape_alloc(tp, sizeof *e);
    *e = (extra){ m, cx->seq_len, exact && mu_tape_recording(tp), p };
    mu_apply(tp, (mu_node){ .op = &op_dispatch,
                            .in = { [IDS] = r->ids_TK, [ORDER] = order, [COUNTS] = r->counts_SE },
                            .out = { [OFFSETS] = offsets, [TOKEN] = p->token, [ROW_TK] = p->row_TK },
                            .extra = e });
    mu_release(tp, order);
    if (p->all_to_all) mu_release(tp, offsets);
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

mu_plan *mu_plan_every(mu_tape *tp, int64_t T, int64_t experts) {
    MU_CHECK(T >= 0 && experts >= 0, "a plan of %lld rows for each of %lld experts", (long long)T, (long long)experts);
    mu_plan *p = mu_tape_alloc(tp, sizeof *p);
    *p = (mu_plan){ .T = T, .K = experts, .rows = T * experts, .experts = experts, .batch_invariant = true };
    int64_t *offsets = mu_tape_alloc(tp, sizeof *offsets * (size_t)(experts + 1));
    int32_t *source = mu_tape_alloc(tp, sizeof *source * (size_t)(p->rows + 1));
    for (int64_t i = 0; i <= experts; i++) offsets[i] = i * T;
    for (int64_t r = 0; r < p->rows; r++) source[r] = (int32_t)(r % T);
    p->offsets = mu_tensor_ints(tp, MU_DTYPE_I64, experts + 1, offsets);
    p->row_source = mu_tensor_ints(tp, MU_DTYPE_I32, p->rows, source);
    return p;
}

void mu_plan_release(mu_tape *tp, const mu_plan *p) {
    mu_tensor *tensors[] = { p->row_source, p->token_rows, p->row_TK, p->token, p->unit_bounds == p->offsets ? NULL : p->unit_bounds };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) mu_release(tp, tensors[i]);
}
