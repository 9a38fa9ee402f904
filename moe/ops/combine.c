/* combine.c - y_TD[t] = sum over k, in order, of rows[row_TK[t,k]]; dropped assignments (-1) add nothing. It gathers
 * instead of scattering: the order of the sum is fixed, and no two threads write the same row. A row's gradient is
 * that of its token. */
#include "moe/moe.h"

enum { ROWS, TOKEN, ROW_TK }; /* in[] */

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *rows = n->in[ROWS], *row_TK = n->in[ROW_TK];
    dev->k->gather_sum(dev, row_TK->shape[0], row_TK->shape[1], rows->shape[1], mu_data(row_TK), mu_data(rows), false,
                       mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *rows = n->in[ROWS], *scratch = NULL;
    mu_mat drows;
    if (!rows->needs_grad) return;
    if (mu_grad_beta(tp, rows, &drows) != 0) scratch = mu_tensor_like(tp, rows);
    dev->k->gather(dev, rows->shape[0], rows->shape[1], mu_data(n->in[TOKEN]), mu_grad_of(n->out[0]),
                   scratch ? mu_data(scratch) : drows);
    if (scratch) dev->k->axpy(dev, mu_count(rows), 1.0, mu_data(scratch), drows);
    mu_release(tp, scratch);
}

static const mu_op op_combine = { .name = "combine", .forward = forward, .backward = backward, .keeps_in = MU_BIT(TOKEN) };

mu_tensor *mu_combine(mu_tape *tp, mu_tensor *rows, const mu_plan *plan) {
    mu_tensor_check(rows, "combine: rows", 2, MU_FLOATS);
    MU_CHECK(plan && plan->row_TK && plan->token, "combine: not a plan of mu_dispatch");
    MU_CHECK(rows->shape[0] == plan->sent, "combine: %lld rows of %lld", (long long)rows->shape[0],
             (long long)plan->sent);
    mu_tensor *y = mu_tensor_2d(tp, plan->T, rows->shape[1]);
    return mu_apply(tp, (mu_node){ .op = &op_combine, .in = { rows, plan->token, plan->row_TK }, .out = { y } });
}
