/* combine.c - y_TD[t] = sum over k, in order, of rows[row_TK[t,k]]; dropped assignments (-1) add nothing. A gather, not
 * a scatter: the order of the sum is fixed and no two threads meet. A row's gradient is that of its token. */
#include "moe/moe.h"

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const mu_plan *p = n->extra;
    dev->k->gather_sum(dev, p->T, p->K, n->in[0]->shape[1], mu_data(p->row_TK), mu_data(n->in[0]), false,
                       mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const mu_plan *p = n->extra;
    mu_tensor *rows = n->in[0], *scratch = NULL;
    mu_mat drows;
    if (!rows->needs_grad) return;
    if (mu_grad_beta(tp, rows, &drows) != 0) scratch = mu_tensor_like(tp, rows);
    dev->k->gather(dev, p->sent, rows->shape[1], mu_data(p->token), mu_grad_of(n->out[0]),
                   scratch ? mu_data(scratch) : drows);
    if (scratch) dev->k->axpy(dev, mu_count(rows), 1.0, mu_data(scratch), drows);
    mu_release(tp, scratch);
}

static const mu_op op_combine = { .name = "combine", .forward = forward, .backward = backward };

mu_tensor *mu_combine(mu_tape *tp, mu_tensor *rows, const mu_plan *plan) {
    mu_tensor_check(rows, "combine: rows", 2, MU_FLOATS);
    MU_CHECK(plan && plan->row_TK && plan->token, "combine: not a plan of mu_dispatch");
    MU_CHECK(rows->shape[0] == plan->sent, "combine: %lld rows of %lld", (long long)rows->shape[0],
             (long long)plan->sent);
    mu_tensor *y = mu_tensor_2d(tp, plan->T, rows->shape[1]);
    return mu_apply(
        tp, (mu_node){ .op = &op_combine, .in = { rows }, .out = { y }, .extra = (void *)(uintptr_t)plan });
}
