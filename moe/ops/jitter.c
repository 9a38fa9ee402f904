/* jitter.c - y = x (1 + eps (2u - 1)): noise on the router's input in training, so that it explores (Fedus et al.,
 * "Switch Transformers", 2021). u comes from a counter-based random stream keyed by token and step: it is the same
 * on any rank, and backward draws it again. y has the master dtype, as all of the router. */
#include "moe/moe.h"

typedef struct {
    int64_t S;
    double eps;
    mu_rng rng;
} extra;

static void factors(mu_tape *tp, const mu_node *n, mu_mat x, bool add, mu_mat y) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    dev->k->jitter(dev, n->in[0]->shape[0], e->S, n->in[0]->shape[1], e->eps, &e->rng, x, add, y);
}

static void forward(mu_tape *tp, mu_node *n) { factors(tp, n, mu_data(n->in[0]), false, mu_data(n->out[0])); }

static void backward(mu_tape *tp, mu_node *n) {
    if (!n->in[0]->needs_grad) return;
    mu_mat dx;
    bool add = mu_grad_beta(tp, n->in[0], &dx) != 0;
    factors(tp, n, mu_grad_of(n->out[0]), add, dx);
}

static const mu_op op_jitter = { .name = "jitter", .forward = forward, .backward = backward };

mu_tensor *mu_jitter(mu_tape *tp, mu_tensor *x, int64_t S, double eps, const mu_rng *rng) {
    mu_tensor_check(x, "jitter: x", 2, MU_FLOATS);
    MU_CHECK(rng && S >= 1 && x->shape[0] % S == 0 && eps >= 0 && eps <= 1, "jitter: %lld tokens in sequences of %lld, noise %g",
             (long long)x->shape[0], (long long)S, eps);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    *e = (extra){ S, eps, *rng };
    mu_tensor *y = mu_tensor_2d_master(tp, x->shape[0], x->shape[1]);
    return mu_apply(tp, (mu_node){ .op = &op_jitter, .in = { x }, .out = { y }, .extra = e });
}
