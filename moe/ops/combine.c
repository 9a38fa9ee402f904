/* combine.c - y_TD[t] = sum over k, in order, of gates[t,k] * rows[row_TK[t,k]]; dropped assignments (-1)
 * add nothing. A gather, not a scatter: the order of the sum is fixed and no two threads meet. */
#include "moe/moe.h"

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const mu_plan *p = n->extra;
    dev->k->gather_sum(dev, p->T, p->K, n->in[0]->shape[1], mu_data(p->row_TK), mu_data(n->in[1]),
                       mu_data(n->in[0]), false, mu_data(n->out[0]));
}

/* The kernel assigns drows: a fresh gradient takes them directly, one that holds something gets them added. */
static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const mu_plan *p = n->extra;
    mu_tensor *rows = n->in[0], *gates = n->in[1], *scratch = NULL;
    mu_mat none = { 0 }, drows = none;
    if (rows->needs_grad && !rows->grad) drows = mu_grad(tp, rows);
    else if (rows->needs_grad) {
        scratch = mu_tensor_like(tp, rows);
        drows = mu_data(scratch);
        dev->k->fill(dev, mu_count(rows), 0.0, drows);
    }
    dev->k->gather_sum_bwd(dev, p->T, p->K, rows->shape[1], mu_data(p->row_TK), mu_data(gates), mu_data(rows),
                           mu_grad_of(n->out[0]), drows, gates->needs_grad ? mu_grad(tp, gates) : none);
    if (scratch) dev->k->axpy(dev, mu_count(rows), 1.0, drows, mu_grad(tp, rows));
    mu_release(tp, scratch);
}

static const mu_op op_combine = { "combine", forward, backward, .keeps_in = 3 };

mu_tensor *mu_combine(mu_tape *tp, mu_tensor *rows, mu_tensor *gates, const mu_plan *plan) {
    MU_CHECK(gates->shape[0] == plan->T && gates->shape[1] == plan->K,
             "combine: %lld x %lld gates for %lld x %lld", (long long)gates->shape[0],
             (long long)gates->shape[1], (long long)plan->T, (long long)plan->K);
    mu_tensor *y = mu_tensor_2d(tp, plan->T, rows->shape[1]);
    return mu_apply(
        tp, (mu_node){
                .op = &op_combine, .in = { rows, gates }, .out = { y }, .extra = (void *)(uintptr_t)plan });
}
