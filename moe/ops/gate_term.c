/* gate_term.c - out = weight * value, value = sum_t sum_i |c| log(1 + exp(-+r_ti)), c = coef[t / segment, i], one value per reduction unit: the
 * binary cross-entropy of sigmoid(r_ti), weighted by |c|, with the label 1 where c > 0 (and - above) and 0 where c < 0 (and +); experts with c = 0
 * have none. coef is made from labels and has no gradient. */
#include "moe/moe.h"

enum { LOGITS, COEF }; /* in[] */
enum { LOSS, VALUE }; /* out[] */

typedef struct {
    int64_t segment;
    double weight;
    int64_t units;
    const mu_router_grads *grads;   /* NULL: not measured */
} extra;

/* A reduction unit: its rows of the logits, and the coefficients of its segments, or of the segment that contains it. */
typedef struct { int64_t rows, segment; mu_mat logits, coef; } unit;

static unit unit_of(const mu_node *n, const extra *e, int64_t i) {
    int64_t rows = n->in[LOGITS]->shape[0] / e->units, first = e->segment ? i * rows / e->segment : 0;
    return (unit){ rows, e->segment < rows ? e->segment : rows, mu_mat_rows(mu_data(n->in[LOGITS]), i * rows),
                   mu_mat_rows(mu_data(n->in[COEF]), first) };
}

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    for (int64_t i = 0; i < e->units; i++) {
        unit u = unit_of(n, e, i);
        dev->k->gate_fwd(dev, u.rows, n->in[LOGITS]->shape[1], u.segment, u.logits, u.coef, mu_mat_values(mu_data(n->out[VALUE]), i));
    }
    dev->k->fill(dev, e->units, 0.0, mu_data(n->out[LOSS]));
    dev->k->axpy(dev, e->units, e->weight, mu_data(n->out[VALUE]), mu_data(n->out[LOSS]));
}

static void add_gradient(mu_tape *tp, const mu_node *n, const mu_tensor *dvalue, mu_mat dlogits) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    for (int64_t i = 0; i < e->units; i++) {
        unit u = unit_of(n, e, i);
        dev->k->gate_bwd(dev, u.rows, n->in[LOGITS]->shape[1], u.segment, u.logits, u.coef, mu_mat_values(mu_data(dvalue), i),
                         mu_mat_rows(dlogits, i * u.rows));
    }
}

/* The gradient of this term alone. */
static void measure(mu_tape *tp, const mu_node *n, const mu_tensor *dvalue) {
    mu_device *dev = mu_tape_device(tp);
    const mu_router_grads *g = ((const extra *)n->extra)->grads;
    mu_tensor *own = mu_tensor_like(tp, n->in[LOGITS]);
    dev->k->fill(dev, mu_count(own), 0.0, mu_data(own));
    add_gradient(tp, n, dvalue, mu_data(own));
    dev->k->sum_norms(dev, own->shape[0], own->shape[1], g->unit, mu_data(own), mu_mat_values(g->sums, MU_ROUTER_GRAD_GATE));
    mu_release(tp, own);
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *logits = n->in[LOGITS], *dvalue = mu_tensor_like(tp, n->out[LOSS]);
    dev->k->fill(dev, e->units, 0.0, mu_data(dvalue));
    dev->k->axpy(dev, e->units, e->weight, mu_grad_of(n->out[LOSS]), mu_data(dvalue));
    if (e->grads) measure(tp, n, dvalue);
    if (logits->needs_grad) add_gradient(tp, n, dvalue, mu_grad(tp, logits));
    mu_release(tp, dvalue);
}

static const mu_op op_gate_term = { .name = "gate_term", .forward = forward, .backward = backward, .keeps_in = MU_BIT(LOGITS) | MU_BIT(COEF) };

mu_tensor *mu_gate_term(mu_tape *tp, mu_tensor *logits, mu_tensor *coef, int64_t segment, double weight, const mu_router_grads *grads,
                        mu_tensor **value) {
    mu_tensor_check(logits, "gate_term: logits", 2, MU_FLOATS);
    mu_tensor_check(coef, "gate_term: coef", 2, MU_FLOATS);
    MU_CHECK(segment >= 1 && coef->shape[0] * segment == logits->shape[0] && coef->shape[1] == logits->shape[1],
             "gate_term: %lld x %lld coefficients, segments of %lld, %lld x %lld logits", (long long)coef->shape[0], (long long)coef->shape[1],
             (long long)segment, (long long)logits->shape[0], (long long)logits->shape[1]);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    *e = (extra){ segment, weight, mu_tape_reduction_units(tp, logits->shape[0]), grads };
    *value = mu_tensor_loss(tp, logits->shape[0]);
    mu_tensor *out = mu_apply(tp, (mu_node){ .op = &op_gate_term,
                                             .in = { logits, coef },
                                             .out = { mu_tensor_like(tp, *value), *value },
                                             .extra = e });
    (*value)->needs_grad = false; /* for the log */
    return out;
}
