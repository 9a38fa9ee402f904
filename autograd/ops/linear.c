/* linear.c - y_TO = x_TI w_OI^T, without bias; `master`: in the master dtype, from w's master values. */
#include "autograd/autograd.h"

enum { X, W }; /* in[] */

typedef struct {
    bool master;
} extra;

static mu_mat weights(const mu_node *n) {
    return ((extra *)n->extra)->master ? mu_master(n->in[W]) : mu_data(n->in[W]);
}

static void product(mu_node *n, mu_device *dev, bool ta, bool tb, int64_t m, int64_t columns, int64_t k,
                    mu_mat a, mu_mat b, double beta, mu_mat c) {
    if (((extra *)n->extra)->master) dev->k->gemm_master(dev, ta, tb, m, columns, k, a, b, beta, c);
    else dev->k->gemm(dev, ta, tb, m, columns, k, a, b, beta, c);
}

static void forward(mu_tape *tp, mu_node *n) {
    mu_tensor *x = n->in[X], *w = n->in[W], *y = n->out[0];
    product(n, mu_tape_device(tp), false, true, x->shape[0], w->shape[0], w->shape[1], mu_data(x), weights(n),
            0.0, mu_data(y));
}

/* Adds each reduction unit's dy^T x to the exact sums. */
static void exact_dw(mu_tape *tp, bool master, mu_tensor *x, mu_tensor *w, mu_mat dy) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *bounds = mu_tape_unit_bounds(tp, x->shape[0]);
    dev->k->exact_product(dev, master, 1, mu_count(bounds) - 1, w->shape[0], w->shape[1], mu_data(bounds), dy,
                          mu_data(x), mu_sums(w));
    mu_release(tp, bounds);
}

/* dx = dy w, dw = dy^T x */
static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[X], *w = n->in[W];
    int64_t T = x->shape[0], O = w->shape[0], I = w->shape[1];
    mu_mat dy = mu_grad_of(n->out[0]);
    mu_mat dx, dw;
    if (x->needs_grad) {
        double beta = mu_grad_beta(tp, x, &dx);
        product(n, dev, false, false, T, I, O, dy, weights(n), beta, dx);
    }
    if (w->needs_grad && w->sums) exact_dw(tp, ((extra *)n->extra)->master, x, w, dy);
    else if (w->needs_grad) {
        double beta = mu_grad_beta(tp, w, &dw);
        product(n, dev, true, false, O, I, T, dy, mu_data(x), beta, dw);
    }
}

static const mu_op op_linear = {
    .name = "linear", .forward = forward, .backward = backward, .keeps_in = MU_BIT(X) | MU_BIT(W)
};

static mu_tensor *linear(mu_tape *tp, mu_tensor *x, mu_tensor *w, bool master) {
    mu_tensor_check(x, "linear: x", 2, master ? MU_FLOATS : 1u << mu_tape_device(tp)->compute);
    mu_tensor_check(w, "linear: w", 2, MU_FLOATS);
    MU_CHECK(x->shape[1] == w->shape[1],
             "linear: input has %lld features, weight expects %lld", (long long)x->shape[1],
             (long long)w->shape[1]);
    mu_tensor *y = master ? mu_tensor_2d_master(tp, x->shape[0], w->shape[0]) : mu_tensor_2d(tp, x->shape[0], w->shape[0]);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    e->master = master;
    return mu_apply(tp, (mu_node){ .op = &op_linear, .in = { x, w }, .out = { y }, .extra = e });
}

mu_tensor *mu_linear(mu_tape *tp, mu_tensor *x, mu_tensor *w) { return linear(tp, x, w, false); }
mu_tensor *mu_linear_master(mu_tape *tp, mu_tensor *x, mu_tensor *w) { return linear(tp, x, w, true); }
