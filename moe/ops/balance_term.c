/* balance_term.c - out = weight * value, value = sum_t sum_i coef[t / segment, i] * p_ti, where p are the
 * scores, divided by their sum if `normalise`. coef holds counts and is a constant: the counts are what the
 * router did, p is what it can change. */
#include "moe/moe.h"

typedef struct {
    int64_t segment;
    bool normalise;
    double weight;
} extra;

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *s = n->in[0];
    dev->k->balance_fwd(dev, s->shape[0], s->shape[1], e->segment, e->normalise, mu_data(s),
                        mu_data(n->in[1]), mu_data(n->out[1]));
    dev->k->fill(dev, 1, 0.0, mu_data(n->out[0]));
    dev->k->axpy(dev, 1, e->weight, mu_data(n->out[1]), mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *s = n->in[0], *dvalue = mu_tensor_scalar(tp);
    dev->k->fill(dev, 1, 0.0, mu_data(dvalue));
    dev->k->axpy(dev, 1, e->weight, mu_grad_of(n->out[0]), mu_data(dvalue));
    if (s->needs_grad)
        dev->k->balance_bwd(dev, s->shape[0], s->shape[1], e->segment, e->normalise, mu_data(s),
                            mu_data(n->in[1]), mu_data(dvalue), mu_grad(tp, s));
    mu_release(tp, dvalue);
}

static const mu_op op_balance_term = { "balance_term", forward, backward, .keeps_in = 3 };

mu_tensor *mu_balance_term(mu_tape *tp, mu_tensor *scores, mu_tensor *coef, int64_t segment, bool normalise,
                           double weight, mu_tensor **value) {
    MU_CHECK(coef->shape[0] * segment == scores->shape[0] && coef->shape[1] == scores->shape[1],
             "balance_term: %lld x %lld coefficients, segments of %lld, %lld tokens",
             (long long)coef->shape[0], (long long)coef->shape[1], (long long)segment,
             (long long)scores->shape[0]);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    *e = (extra){ segment, normalise, weight };
    *value = mu_tensor_scalar(tp);
    mu_tensor *out = mu_apply(tp, (mu_node){ .op = &op_balance_term,
                                             .in = { scores, coef },
                                             .out = { mu_tensor_scalar(tp), *value },
                                             .extra = e });
    (*value)->needs_grad = false; /* for the log */
    return out;
}
