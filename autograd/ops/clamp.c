/* clamp.c - y = x, limited to [-limit, limit]; the gradient passes where x is within the limits. */
#include "autograd/autograd.h"

#include <math.h>

typedef struct {
    double limit;
} extra;

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    dev->k->clamp(dev, mu_count(n->in[0]), ((extra *)n->extra)->limit, mu_data(n->in[0]), (mu_mat){ 0 }, mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[0];
    if (x->needs_grad)
        dev->k->clamp(dev, mu_count(x), ((extra *)n->extra)->limit, mu_data(x), mu_grad_of(n->out[0]), mu_grad(tp, x));
}

static const mu_op op_clamp = { .name = "clamp", .forward = forward, .backward = backward, .keeps_in = MU_BIT(0) };

mu_tensor *mu_clamp(mu_tape *tp, mu_tensor *x, double limit) {
    mu_tensor_check(x, "clamp: x", 0, 1u << mu_tape_device(tp)->compute);
    MU_CHECK(isfinite(limit) && limit > 0, "clamp: limit %g must be positive", limit);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    e->limit = limit;
    return mu_apply(tp, (mu_node){ .op = &op_clamp, .in = { x }, .out = { mu_tensor_like(tp, x) }, .extra = e });
}
