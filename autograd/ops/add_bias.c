/* add_bias.c - y_TO[t] = x_TO[t] + b_O, as x plus the product of a column of ones with b; db = the sum of dy over rows is
 * the product of dy^T with that column. */
#include "autograd/autograd.h"

enum { X, B }; /* in[] */

static mu_tensor *column_of_ones(mu_tape *tp, int64_t T) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *ones = mu_tensor_2d(tp, T, 1);
    dev->k->fill(dev, T, 1.0, mu_data(ones));
    return ones;
}

/* b or its gradient as a matrix [O, 1] */
static mu_mat column(mu_mat m) { return (mu_mat){ m.data, m.dtype, 1 }; }

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[X], *b = n->in[B], *ones = column_of_ones(tp, x->shape[0]);
    dev->k->copy(dev, mu_count(x), mu_data(x), mu_data(n->out[0]));
    dev->k->gemm(dev, false, true, x->shape[0], mu_count(b), 1, mu_data(ones), column(mu_data(b)), 1.0, mu_data(n->out[0]));
    mu_release(tp, ones);
}

static void add_db(mu_tape *tp, mu_tensor *b, int64_t T, mu_mat dy) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *ones = column_of_ones(tp, T);
    mu_mat db;
    if (b->sums) {
        mu_tensor *bounds = mu_tape_unit_bounds(tp, T);
        dev->k->exact_product(dev, false, 1, mu_count(bounds) - 1, mu_count(b), 1, mu_data(bounds), dy, mu_data(ones), mu_sums(b));
        mu_release(tp, bounds);
    } else {
        double beta = mu_grad_beta(tp, b, &db);
        dev->k->gemm(dev, true, false, mu_count(b), 1, T, dy, mu_data(ones), beta, column(db));
    }
    mu_release(tp, ones);
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[X], *b = n->in[B];
    mu_mat dy = mu_grad_of(n->out[0]);
    if (x->needs_grad) dev->k->axpy(dev, mu_count(x), 1.0, dy, mu_grad(tp, x));
    if (b->needs_grad) add_db(tp, b, x->shape[0], dy);
}

static const mu_op op_add_bias = { .name = "add_bias", .forward = forward, .backward = backward };

mu_tensor *mu_add_bias(mu_tape *tp, mu_tensor *x, mu_tensor *b) {
    mu_tensor_check(x, "add_bias: x", 2, 1u << mu_tape_device(tp)->compute);
    mu_tensor_check(b, "add_bias: b", 1, MU_FLOATS);
    MU_CHECK(mu_count(b) == x->shape[1], "add_bias: x has %lld features, the bias %lld", (long long)x->shape[1], (long long)mu_count(b));
    return mu_apply(tp, (mu_node){ .op = &op_add_bias, .in = { x, b }, .out = { mu_tensor_like(tp, x) } });
}
