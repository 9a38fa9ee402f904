/* balance_term.c - out = weight * value, value = sum_t sum_i coef[t / segment, i] * p_ti, where p are the
 * scores, divided by their sum if `normalise`; one value per reduction unit. coef is made from
 * counts and has no gradient; only p has one. */
#include "moe/moe.h"

enum { SCORES, COEF }; /* in[] */
enum { LOSS, VALUE }; /* out[] */

typedef struct {
    int64_t segment;
    bool normalise;
    double weight;
    int64_t units;
    const mu_router_grads *grads;   /* NULL: not measured */
    mu_router_grad term;
} extra;

/* A reduction unit: its rows of the scores, and the coefficients of its segments, or of the segment that contains
 * it. */
typedef struct {
    int64_t rows, segment;
    mu_mat scores, coef;
} unit;

static unit unit_of(const mu_node *n, const extra *e, int64_t i) {
    int64_t rows = n->in[SCORES]->shape[0] / e->units, first = e->segment ? i * rows / e->segment : 0;
    return (unit){ rows, e->segment < rows ? e->segment : rows, mu_mat_rows(mu_data(n->in[SCORES]), i * rows),
                   mu_mat_rows(mu_data(n->in[COEF]), first) };
}

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    for (int64_t i = 0; i < e->units; i++) {
        unit u = unit_of(n, e, i);
        dev->k->balance_fwd(dev, u.rows, n->in[SCORES]->shape[1], u.segment, e->normalise, u.scores, u.coef,
                            mu_mat_values(mu_data(n->out[VALUE]), i));
    }
    dev->k->fill(dev, e->units, 0.0, mu_data(n->out[LOSS]));
    dev->k->axpy(dev, e->units, e->weight, mu_data(n->out[VALUE]), mu_data(n->out[LOSS]));
}

static void add_gradient(mu_tape *tp, const mu_node *n, const mu_tensor *dvalue, mu_mat dscores) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    for (int64_t i = 0; i < e->units; i++) {
        unit u = unit_of(n, e, i);
        dev->k->balance_bwd(dev, u.rows, n->in[SCORES]->shape[1], u.segment, e->normalise, u.scores, u.coef,
                            mu_mat_values(mu_data(dvalue), i), mu_mat_rows(dscores, i * u.rows));
    }
}

/* The gradient of this term alone. */
static void measure(mu_tape *tp, const mu_node *n, const mu_tensor *dvalue) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *own = mu_tensor_like(tp, n->in[SCORES]);
    dev->k->fill(dev, mu_count(own), 0.0, mu_data(own));
    add_gradient(tp, n, dvalue, mu_data(own));
    mu_router_grads_add(tp, e->grads, e->term, (mu_mat){ 0 }, mu_data(own), (mu_mat){ 0 });
    mu_release(tp, own);
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *s = n->in[SCORES], *dvalue = mu_tensor_like(tp, n->out[LOSS]);
    dev->k->fill(dev, e->units, 0.0, mu_data(dvalue));
    dev->k->axpy(dev, e->units, e->weight, mu_grad_of(n->out[LOSS]), mu_data(dvalue));
    if (e->grads) measure(tp, n, dvalue);
    if (s->needs_grad) add_gradient(tp, n, dvalue, mu_grad(tp, s));
    mu_release(tp, dvalue);
}

static const mu_op op_balance_term = {
    .name = "balance_term", .forward = forward, .backward = backward, .keeps_in = MU_BIT(SCORES) | MU_BIT(COEF)
};

mu_tensor *mu_balance_term(mu_tape *tp, mu_tensor *scores, mu_tensor *coef, int64_t segment, bool normalise,
                           double weight, const mu_router_grads *grads, mu_router_grad term, mu_tensor **value) {
    mu_tensor_check(scores, "balance_term: scores", 2, MU_FLOATS);
    mu_tensor_check(coef, "balance_term: coef", 2, MU_FLOATS);
    MU_CHECK(segment >= 1 || scores->shape[0] == 0, "balance_term: segments of %lld", (long long)segment);
    MU_CHECK(coef->shape[0] * segment == scores->shape[0] && coef->shape[1] == scores->shape[1],
             "balance_term: %lld x %lld coefficients, segments of %lld, %lld tokens",
             (long long)coef->shape[0], (long long)coef->shape[1], (long long)segment,
             (long long)scores->shape[0]);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    *e = (extra){ segment, normalise, weight, mu_tape_reduction_units(tp, scores->shape[0]), grads, term };
    *value = mu_tensor_loss(tp, scores->shape[0]);
    mu_tensor *out = mu_apply(tp, (mu_node){ .op = &op_balance_term,
                                             .in = { scores, coef },
                                             .out = { mu_tensor_like(tp, *value), *value },
                                             .extra = e });
    (*value)->needs_grad = false; /* for the log */
    return out;
}
