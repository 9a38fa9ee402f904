/* experts.c - SwiGLU experts over a plan, one op: row r of expert i reads x[row_source[r]],
 *     y = down_i (weight * silu(gate_i x) * (up_i x)).
 * Kept for backward: x, the weights, the outputs of gate and up [rows, F] and the plan; everything else is recomputed.
 * `combined`: the result is the sum of each token's rows, y_TD[t] = sum over k, in order, of row token_rows[t,k]. */
#include "moe/moe.h"

enum { X, GATE, UP, DOWN, WEIGHTS, OFFSETS, ROW_SOURCE, TOKEN_ROWS, UNIT_BOUNDS }; /* in[] */
enum { Y, HG, HU }; /* out[] */

typedef struct {
    const mu_plan *plan;        /* for numbers and flags; its tensors are inputs of the op */
    mu_experts_shape shape;
    bool combined;
} extra;

static mu_mat none(void) { return (mu_mat){ 0 }; }

/* The output row of each row: with several ranks, where it was received; with one rank none: rows stay sorted by
 * expert. */
static mu_mat out_rows(const mu_node *n, const extra *e) { return e->plan->all_to_all ? mu_data(n->in[ROW_SOURCE]) : none(); }

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *y = n->out[Y], *rows = e->combined ? mu_tensor_2d(tp, e->shape.R, e->shape.D) : y;
    dev->k->experts_fwd(dev, &e->shape, mu_data(n->in[X]), mu_data(n->in[ROW_SOURCE]), mu_data(n->in[OFFSETS]),
                        mu_data(n->in[GATE]), mu_data(n->in[UP]), mu_data(n->in[DOWN]), mu_data(n->out[HG]),
                        mu_data(n->out[HU]), out_rows(n, e), mu_data(n->in[WEIGHTS]), mu_data(rows));
    if (!e->combined) return;
    dev->k->gather_sum(dev, e->plan->T, e->plan->rows_per_token, e->shape.D, mu_data(n->in[TOKEN_ROWS]), mu_data(rows), false,
                       mu_data(y));
    mu_release(tp, rows);
}

/* d: gradients of gate, up and down; data NULL where none is needed. True: no weight has a contribution yet, so the
 * kernel assigns instead of adding. */
static bool weight_grads(mu_tape *tp, mu_node *n, mu_mat d[3]) {
    bool fresh = true;
    for (int i = 0; i < 3; i++) fresh &= n->in[GATE + i]->grad_new || !n->in[GATE + i]->grad;
    for (int i = 0; i < 3; i++) {
        mu_tensor *w = n->in[GATE + i];
        d[i] = none();
        if (!w->needs_grad || w->sums) continue;
        if (fresh) mu_grad_beta(tp, w, &d[i]);
        else d[i] = mu_grad(tp, w);
    }
    return fresh;
}

/* For a weight with exact sums: adds a^T b of each reduction unit to them; a and b are operands or results of
 * experts_bwd. */
static void add_sums(mu_tape *tp, const mu_node *node, int weight, int64_t m, int64_t n, mu_mat a, mu_mat b) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = node->extra;
    mu_tensor *w = node->in[weight];
    if (w->needs_grad && w->sums)
        dev->k->exact_product(dev, false, e->shape.experts, e->plan->reduction_units, m, n, mu_data(node->in[UNIT_BOUNDS]), a, b,
                              mu_sums(w));
}

static void add_dx(mu_tape *tp, const mu_node *n, mu_tensor *dx_rows) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *x = n->in[X], *token_rows = n->in[TOKEN_ROWS];
    mu_mat dx;
    if (token_rows) {
        bool add = mu_grad_beta(tp, x, &dx) != 0;
        dev->k->gather_sum(dev, x->shape[0], e->plan->rows_per_token, e->shape.D, mu_data(token_rows), mu_data(dx_rows), add, dx);
    } else dev->k->axpy(dev, mu_count(x), 1.0, mu_data(dx_rows), mu_grad(tp, x));
}

/* experts_bwd assigns the gradients of the row weights to scratch; this adds them. */
static void add_dweights(mu_tape *tp, mu_tensor *weights, mu_tensor *dweights) {
    mu_device *dev = mu_tape_device(tp);
    dev->k->axpy(dev, mu_count(weights), 1.0, mu_data(dweights), mu_grad(tp, weights));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *x = n->in[X], *weights = n->in[WEIGHTS];
    int64_t R = e->shape.R, D = e->shape.D, F = e->shape.F;
    mu_tensor *act = mu_tensor_2d(tp, R, F), *dx = x->needs_grad ? mu_tensor_2d(tp, R, D) : NULL;
    mu_tensor *dweights = weights && weights->needs_grad ? mu_tensor_like(tp, weights) : NULL;
    bool exact = n->in[GATE]->sums || n->in[UP]->sums || n->in[DOWN]->sums;
    /* combined: a row reads dy where it reads x */
    mu_mat source = mu_data(n->in[ROW_SOURCE]), out = e->combined ? source : out_rows(n, e), dw[3];
    mu_tensor *xg = source.data && exact ? mu_tensor_2d(tp, R, D) : NULL;
    mu_tensor *dyg = out.data && exact ? mu_tensor_2d(tp, R, D) : NULL;
    mu_experts_shape shape = e->shape;
    shape.fresh = weight_grads(tp, n, dw);
    dev->k->experts_bwd(dev, &shape, mu_data(x), source, mu_data(n->in[OFFSETS]), mu_data(n->in[GATE]),
                        mu_data(n->in[UP]), mu_data(n->in[DOWN]), mu_data(n->out[HG]), mu_data(n->out[HU]), out,
                        mu_data(weights), mu_grad_of(n->out[Y]), mu_data(act), mu_data(xg), mu_data(dyg),
                        mu_data(dx), mu_data(dweights), dw[0], dw[1], dw[2]);
    mu_mat rows = xg ? mu_data(xg) : mu_data(x), dy = dyg ? mu_data(dyg) : mu_grad_of(n->out[Y]);
    add_sums(tp, n, GATE, F, D, mu_data(n->out[HG]), rows);
    add_sums(tp, n, UP, F, D, mu_data(n->out[HU]), rows);
    add_sums(tp, n, DOWN, D, F, dy, mu_data(act));
    mu_release(tp, act);
    mu_release(tp, xg);
    mu_release(tp, dyg);
    if (dweights) add_dweights(tp, weights, dweights);
    mu_release(tp, dweights);
    if (dx) add_dx(tp, n, dx);
    mu_release(tp, dx);
}

static const mu_op op_experts = {
    .name = "experts", .forward = forward, .backward = backward,
    .keeps_in = MU_BIT(X) | MU_BIT(GATE) | MU_BIT(UP) | MU_BIT(DOWN) | MU_BIT(WEIGHTS) | MU_BIT(OFFSETS) | MU_BIT(ROW_SOURCE) |
                MU_BIT(TOKEN_ROWS) | MU_BIT(UNIT_BOUNDS),
    .keeps_out = MU_BIT(HG) | MU_BIT(HU), .saved = MU_BIT(HG) | MU_BIT(HU)
};

static mu_tensor *apply(mu_tape *tp, mu_tensor *x, mu_tensor *weights, mu_tensor *gate, mu_tensor *up,
                        mu_tensor *down, const mu_plan *plan, bool combined) {
    mu_tensor_check(x, "experts: x", 2, 1u << mu_tape_device(tp)->compute);
    mu_tensor_check(gate, "experts: gate", 0, MU_FLOATS);
    mu_tensor_check(up, "experts: up", 0, MU_FLOATS);
    mu_tensor_check(down, "experts: down", 0, MU_FLOATS);
    if (weights) mu_tensor_check(weights, "experts: weights", 0, 1u << mu_tape_device(tp)->master);
    MU_CHECK(plan && gate->n_dims >= 2, "experts: no plan, or gate is no matrix");
    int64_t D = x->shape[1], F = gate->shape[gate->n_dims - 2], R = plan->rows;
    MU_CHECK(mu_count(gate) == plan->experts * F * D && mu_count(up) == mu_count(gate) &&
                 mu_count(down) == mu_count(gate),
             "experts: weights of %lld values for %lld experts of %lld x %lld", (long long)mu_count(gate),
             (long long)plan->experts, (long long)F, (long long)D);
    MU_CHECK(!weights || mu_count(weights) == R, "experts: %lld rows and weights for %lld", (long long)R,
             (long long)mu_count(weights));
    MU_CHECK(!combined || (plan->token_rows && !plan->all_to_all), "experts: combined experts need a local plan, of one rank");
    extra *e = mu_tape_alloc(tp, sizeof *e);
    *e = (extra){ plan, { R, plan->experts, D, F, .batch_invariant = plan->batch_invariant }, combined };
    bool keep = mu_tape_recording(tp);
    mu_tensor *hg = keep ? mu_tensor_2d(tp, R, F) : NULL, *hu = keep ? mu_tensor_2d(tp, R, F) : NULL;
    mu_tensor *y = mu_tensor_2d(tp, combined ? plan->T : R, D);
    return mu_apply(tp, (mu_node){ .op = &op_experts,
                                   .in = { x, gate, up, down, weights, plan->offsets, plan->row_source, plan->token_rows,
                                           plan->unit_bounds },
                                   .out = { y, hg, hu },
                                   .extra = e });
}

mu_tensor *mu_experts(mu_tape *tp, mu_tensor *x, mu_tensor *weights, mu_tensor *gate, mu_tensor *up, mu_tensor *down,
                      const mu_plan *plan) {
    return apply(tp, x, weights, gate, up, down, plan, false);
}

mu_tensor *mu_experts_combined(mu_tape *tp, mu_tensor *x, mu_tensor *weights, mu_tensor *gate, mu_tensor *up,
                               mu_tensor *down, const mu_plan *plan) {
    return apply(tp, x, weights, gate, up, down, plan, true);
}
