/* linear.c - y_TO = x_TI w_OI^T, without bias; `fine`: in the device's fine type, from the master of w. */
#include "autograd/autograd.h"

typedef struct {
    bool fine;
} extra;

static mu_mat weights(const mu_node *n) {
    return ((extra *)n->extra)->fine ? mu_master(n->in[1]) : mu_data(n->in[1]);
}

static void product(mu_node *n, mu_device *dev, bool ta, bool tb, int64_t m, int64_t columns, int64_t k,
                    mu_mat a, mu_mat b, double beta, mu_mat c) {
    if (((extra *)n->extra)->fine) dev->k->gemm_fine(dev, ta, tb, m, columns, k, a, b, beta, c);
    else dev->k->gemm(dev, ta, tb, m, columns, k, a, b, beta, c);
}

static void forward(mu_tape *tp, mu_node *n) {
    mu_tensor *x = n->in[0], *w = n->in[1], *y = n->out[0];
    product(n, mu_tape_device(tp), false, true, x->shape[0], w->shape[0], w->shape[1], mu_data(x), weights(n),
            0.0, mu_data(y));
}

/* The leaves' products into the exact sums. */
static void exact_dw(mu_tape *tp, bool fine, mu_tensor *x, mu_tensor *w, mu_mat dy) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *cuts = mu_leaf_cuts(tp, x->shape[0]);
    dev->k->exact_product(dev, fine, 1, mu_count(cuts) - 1, w->shape[0], w->shape[1], mu_data(cuts), dy,
                          mu_data(x), mu_sums(w));
    mu_release(tp, cuts);
}

/* dx = dy w, dw = dy^T x */
static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[0], *w = n->in[1];
    int64_t T = x->shape[0], O = w->shape[0], I = w->shape[1];
    mu_mat dy = mu_grad_of(n->out[0]);
    mu_mat dx, dw;
    if (x->needs_grad) {
        double beta = mu_grad_beta(tp, x, &dx);
        product(n, dev, false, false, T, I, O, dy, weights(n), beta, dx);
    }
    if (w->needs_grad && w->sums) exact_dw(tp, ((extra *)n->extra)->fine, x, w, dy);
    else if (w->needs_grad) {
        double beta = mu_grad_beta(tp, w, &dw);
        product(n, dev, true, false, O, I, T, dy, mu_data(x), beta, dw);
    }
}

static const mu_op op_linear = { "linear", forward, backward, .keeps_in = 3 };

static mu_tensor *linear(mu_tape *tp, mu_tensor *x, mu_tensor *w, bool fine) {
    mu_tensor_check(x, "linear: x", 2, fine ? MU_FLOATS : 1u << mu_tape_device(tp)->real);
    mu_tensor_check(w, "linear: w", 2, MU_FLOATS);
    MU_CHECK(x->shape[1] == w->shape[1],
             "linear: rows of %lld values meet weights for %lld", (long long)x->shape[1],
             (long long)w->shape[1]);
    mu_tensor *y = fine ? mu_tensor_fine(tp, x->shape[0], w->shape[0]) : mu_tensor_2d(tp, x->shape[0], w->shape[0]);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    e->fine = fine;
    return mu_apply(tp, (mu_node){ .op = &op_linear, .in = { x, w }, .out = { y }, .extra = e });
}

mu_tensor *mu_linear(mu_tape *tp, mu_tensor *x, mu_tensor *w) { return linear(tp, x, w, false); }
mu_tensor *mu_linear_fine(mu_tape *tp, mu_tensor *x, mu_tensor *w) { return linear(tp, x, w, true); }
