/* z_term.c - out = weight * value, value = coef * sum_t lse_t^2, one value per reduction unit: keeps router logits small
 * (Zoph et al. 2022, ST-MoE). d/dlogit_ti = 2 coef lse_t softmax_ti; backward of the router op
 * multiplies by softmax_ti. */
#include "moe/moe.h"

enum { LSE }; /* in[] */
enum { LOSS, VALUE }; /* out[] */

typedef struct {
    double coef, weight;
} extra;

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    int64_t units = mu_count(n->out[LOSS]), rows = units ? mu_count(n->in[LSE]) / units : 0;
    for (int64_t i = 0; i < units; i++)
        dev->k->zloss_fwd(dev, rows, e->coef, mu_mat_values(mu_data(n->in[LSE]), i * rows),
                          mu_mat_values(mu_data(n->out[VALUE]), i));
    dev->k->fill(dev, units, 0.0, mu_data(n->out[LOSS]));
    dev->k->axpy(dev, units, e->weight, mu_data(n->out[VALUE]), mu_data(n->out[LOSS]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *lse = n->in[LSE];
    int64_t units = mu_count(n->out[LOSS]), rows = units ? mu_count(lse) / units : 0;
    for (int64_t i = 0; i < units && lse->needs_grad; i++)
        dev->k->zloss_bwd(dev, rows, e->coef * e->weight, mu_mat_values(mu_data(lse), i * rows),
                          mu_mat_values(mu_grad_of(n->out[LOSS]), i), mu_mat_values(mu_grad(tp, lse), i * rows));
}

static const mu_op op_z_term = { .name = "z_term", .forward = forward, .backward = backward, .keeps_in = MU_BIT(LSE) };

mu_tensor *mu_z_term(mu_tape *tp, mu_tensor *lse, double coef, double weight, mu_tensor **value) {
    mu_tensor_check(lse, "z_term: lse", 0, MU_FLOATS);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    *e = (extra){ coef, weight };
    *value = mu_tensor_loss(tp, mu_count(lse));
    mu_tensor *out = mu_apply(
        tp, (mu_node){
                .op = &op_z_term, .in = { lse }, .out = { mu_tensor_like(tp, *value), *value }, .extra = e });
    (*value)->needs_grad = false; /* for the log */
    return out;
}
