/* gather_rows.c - this rank's routed rows in the order in which they are sent: y[r] = x[token[r]]. Its gradient
 * is, for each token, the sum over the rows that copied it. */
#include "moe/moe.h"

enum { X, TOKEN, ROW_TK }; /* in[] */

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[X], *y = n->out[0];
    dev->k->gather(dev, y->shape[0], x->shape[1], mu_data(n->in[TOKEN]), mu_data(x), mu_data(y));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[X], *row_TK = n->in[ROW_TK];
    if (!x->needs_grad) return;
    mu_mat dx;
    bool add = mu_grad_beta(tp, x, &dx) != 0;
    dev->k->gather_sum(dev, x->shape[0], row_TK->shape[1], x->shape[1], mu_data(row_TK), mu_grad_of(n->out[0]), add, dx);
}

static const mu_op op_gather_rows = { .name = "gather_rows", .forward = forward, .backward = backward, .keeps_in = MU_BIT(ROW_TK) };

mu_tensor *mu_gather_rows(mu_tape *tp, mu_tensor *x, const mu_plan *plan) {
    mu_tensor_check(x, "gather_rows: x", 2, MU_FLOATS);
    MU_CHECK(plan && plan->row_TK && plan->token, "gather_rows: not a plan of mu_dispatch");
    MU_CHECK(x->shape[0] == plan->T, "gather_rows: %lld rows for a plan of %lld tokens", (long long)x->shape[0],
             (long long)plan->T);
    mu_tensor *y = mu_tensor_2d(tp, plan->sent, x->shape[1]);
    return mu_apply(tp, (mu_node){ .op = &op_gather_rows, .in = { x, plan->token, plan->row_TK }, .out = { y } });
}
