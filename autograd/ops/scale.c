/* scale.c - y = factor * x. */
#include "autograd/autograd.h"

#include <math.h>

typedef struct {
    double factor;
} extra;

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    int64_t count = mu_count(n->out[0]);
    dev->k->fill(dev, count, 0.0, mu_data(n->out[0]));
    dev->k->axpy(dev, count, ((extra *)n->extra)->factor, mu_data(n->in[0]), mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[0];
    if (x->needs_grad) dev->k->axpy(dev, mu_count(x), ((extra *)n->extra)->factor, mu_grad_of(n->out[0]), mu_grad(tp, x));
}

static const mu_op op_scale = { .name = "scale", .forward = forward, .backward = backward };

mu_tensor *mu_scale(mu_tape *tp, mu_tensor *x, double factor) {
    mu_tensor_check(x, "scale: x", 0, MU_FLOATS);
    MU_CHECK(isfinite(factor), "scale: factor %g is not finite", factor);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    e->factor = factor;
    return mu_apply(tp, (mu_node){ .op = &op_scale, .in = { x }, .out = { mu_tensor_like(tp, x) }, .extra = e });
}
