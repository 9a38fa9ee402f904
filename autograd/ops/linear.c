/* linear.c - y_TO = x_TI w_OI^T, without bias. */
#include "autograd/autograd.h"

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[0], *w = n->in[1], *y = n->out[0];
    dev->k->gemm(dev, false, true, x->shape[0], w->shape[0], w->shape[1], mu_data(x), mu_data(w), 0.0,
                 mu_data(y));
}

/* dx = dy w, dw = dy^T x */
static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[0], *w = n->in[1];
    int64_t T = x->shape[0], O = w->shape[0], I = w->shape[1];
    mu_mat dy = mu_grad_of(n->out[0]);
    if (x->needs_grad) dev->k->gemm(dev, false, false, T, I, O, dy, mu_data(w), 1.0, mu_grad(tp, x));
    if (w->needs_grad) dev->k->gemm(dev, true, false, O, I, T, dy, mu_data(x), 1.0, mu_grad(tp, w));
}

static const mu_op op_linear = { "linear", forward, backward, .keeps_in = 3 };

mu_tensor *mu_linear(mu_tape *tp, mu_tensor *x, mu_tensor *w) {
    MU_CHECK(x->n_dims == 2 && w->n_dims == 2 && x->shape[1] == w->shape[1],
             "linear: rows of %lld values meet weights for %lld", (long long)x->shape[1],
             (long long)w->shape[1]);
    mu_tensor *y = mu_tensor_2d(tp, x->shape[0], w->shape[0]);
    return mu_apply(tp, (mu_node){ .op = &op_linear, .in = { x, w }, .out = { y } });
}
