/* gather.c - this rank's routed rows in the order in which they travel: y[r] = x[token[r]]. Its gradient
 * is, for each token, the sum over the rows that copied it. */
#include "moe/moe.h"

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const mu_plan *p = n->extra;
    dev->k->gather(dev, p->sent, n->in[0]->shape[1], mu_data(p->token), mu_data(n->in[0]),
                   mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const mu_plan *p = n->extra;
    if (!n->in[0]->needs_grad) return;
    mu_mat dx;
    bool add = mu_grad_beta(tp, n->in[0], &dx) != 0;
    dev->k->gather_sum(dev, p->T, p->K, n->in[0]->shape[1], mu_data(p->row_TK), mu_grad_of(n->out[0]),
                       add, dx);
}

static const mu_op op_gather = { .name = "gather", .forward = forward, .backward = backward };

mu_tensor *mu_gather(mu_tape *tp, mu_tensor *x, const mu_plan *plan) {
    mu_tensor_check(x, "gather: x", 2, MU_FLOATS);
    MU_CHECK(plan && plan->row_TK && plan->token, "gather: not a plan of mu_dispatch");
    MU_CHECK(x->shape[0] == plan->T, "gather: %lld rows for a plan of %lld tokens", (long long)x->shape[0],
             (long long)plan->T);
    mu_tensor *y = mu_tensor_2d(tp, plan->sent, x->shape[1]);
    return mu_apply(
        tp, (mu_node){ .op = &op_gather, .in = { x }, .out = { y }, .extra = (void *)(uintptr_t)plan });
}
