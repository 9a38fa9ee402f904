/* add.c - z = x + y; x, y, z have the same shape and dtype. */
#include "autograd/autograd.h"

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    dev->k->add(dev, mu_count(n->out[0]), mu_data(n->in[0]), mu_data(n->in[1]), mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_mat dz = mu_grad_of(n->out[0]);
    for (int i = 0; i < 2; i++)
        if (n->in[i]->needs_grad) dev->k->axpy(dev, mu_count(n->in[i]), 1.0, dz, mu_grad(tp, n->in[i]));
}

static const mu_op op_add = { .name = "add", .forward = forward, .backward = backward };

mu_tensor *mu_add(mu_tape *tp, mu_tensor *x, mu_tensor *y) {
    mu_tensor_check(x, "add: x", 0, ~0u);
    mu_tensor_check(y, "add: y", 0, ~0u);
    MU_CHECK(mu_count(x) == mu_count(y) && x->dtype == y->dtype, "add: x has %lld %s values, y has %lld %s values",
             (long long)mu_count(x), mu_dtype_name(x->dtype), (long long)mu_count(y),
             mu_dtype_name(y->dtype));
    return mu_apply(tp, (mu_node){ .op = &op_add, .in = { x, y }, .out = { mu_tensor_like(tp, x) } });
}
