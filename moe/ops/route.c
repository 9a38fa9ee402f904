/* route.c - logits_TE -> scores, the K chosen experts, gates, and how often each sequence chose each expert. The choice itself has
 * no gradient; gates, scores (for balancing terms) and log-sum-exp (for the z-loss) have. With A_k = dL/dgate_k and normalised
 * gates g over the chosen set, dL/ds_k = (A_k - sum_j g_j A_j) / sum_j s_j (scale 1):
 * A_k relative to its mean, weighted by the gates. The kernel also handles gates that are not normalised. */
#include "moe/moe.h"

enum { LOGITS, BIAS, MASK }; /* in[] */
enum { GATES, SCORES, LSE, IDS, COUNTS }; /* out[] */

typedef struct {
    mu_route_shape shape;
    int64_t seq_len;
    mu_router_grads *grads;     /* NULL: not measured */
} extra;

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    const mu_route_shape *s = &e->shape;
    dev->k->route_fwd(dev, s, mu_data(n->in[LOGITS]), mu_data(n->in[BIAS]), mu_data(n->in[MASK]), mu_data(n->out[SCORES]),
                      mu_data(n->out[LSE]), mu_data(n->out[IDS]), mu_data(n->out[GATES]));
    dev->k->count_experts(dev, s->T, s->E, s->K, e->seq_len, mu_data(n->out[IDS]), mu_data(n->out[COUNTS]));
}

void mu_router_grads_add(mu_tape *tp, const mu_router_grads *g, mu_router_grad term, mu_mat dgates, mu_mat dscores, mu_mat dlse) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *dlogits = mu_tensor_2d_master(tp, g->shape.T, g->shape.E);
    dev->k->fill(dev, mu_count(dlogits), 0.0, mu_data(dlogits));
    dev->k->route_bwd(dev, &g->shape, mu_data(g->scores), mu_data(g->ids), dgates, dscores, dlse, mu_data(dlogits));
    dev->k->sum_norms(dev, g->shape.T, g->shape.E, g->unit, mu_data(dlogits), mu_mat_values(g->sums, term));
    mu_release(tp, dlogits);
}

/* The balancing terms measure their own (balance_term.c): here they are one sum. */
static void measure(mu_tape *tp, const mu_node *n, const mu_router_grads *g) {
    mu_mat dgates = mu_grad_of(n->out[GATES]), dlse = mu_grad_of(n->out[LSE]), none = { 0 };
    if (dgates.data) mu_router_grads_add(tp, g, MU_ROUTER_GRAD_LM, dgates, none, none);
    if (dlse.data) mu_router_grads_add(tp, g, MU_ROUTER_GRAD_Z, none, none, dlse);
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    if (e->grads) measure(tp, n, e->grads);
    if (n->in[LOGITS]->needs_grad)
        dev->k->route_bwd(dev, &e->shape, mu_data(n->out[SCORES]), mu_data(n->out[IDS]), mu_grad_of(n->out[GATES]),
                          mu_grad_of(n->out[SCORES]), mu_grad_of(n->out[LSE]), mu_grad(tp, n->in[LOGITS]));
}

/* once: recomputation must not choose again, because a difference in the last bit could select another expert. */
static const mu_op op_route = {
    .name = "route", .forward = forward, .backward = backward, .keeps_out = MU_BIT(SCORES) | MU_BIT(IDS), .once = true
};

static void check(const mu_tape *tp, const mu_tensor *logits, const mu_tensor *bias, const mu_tensor *mask, const mu_route_shape *s,
                  int64_t seq_len) {
    unsigned master = 1u << mu_tape_device(tp)->master;
    int64_t T = s->T, K = s->K, E = s->E;
    mu_tensor_check(logits, "route: logits", 2, master);
    if (bias) mu_tensor_check(bias, "route: bias", 0, master);
    if (mask) mu_tensor_check(mask, "route: mask", 2, 1u << MU_DTYPE_I32);
    MU_CHECK(K >= 1 && K <= E, "route: %lld of %lld experts for each token", (long long)K, (long long)E);
    MU_CHECK(logits->shape[0] == T && logits->shape[1] == E && (!bias || mu_count(bias) == E),
             "route: %lld x %lld logits, %lld biases for %lld x %lld", (long long)logits->shape[0],
             (long long)logits->shape[1], (long long)(bias ? mu_count(bias) : E), (long long)T, (long long)E);
    MU_CHECK(!mask || (mask->shape[1] == E && (T == 0 || (mask->shape[0] >= 1 && T % mask->shape[0] == 0)) && s->force == MU_ROUTE_FREE),
             "route: a mask of %lld rows and %lld experts for %lld tokens and %lld experts%s", (long long)mask->shape[0],
             (long long)mask->shape[1], (long long)T, (long long)E, s->force == MU_ROUTE_FREE ? "" : ", and a forced choice");
    MU_CHECK(seq_len >= 1 && T % seq_len == 0, "route: %lld tokens are not sequences of %lld", (long long)T, (long long)seq_len);
}

mu_routing mu_route(mu_tape *tp, mu_tensor *logits, mu_tensor *bias, mu_tensor *mask, const mu_route_shape *shape, int64_t seq_len,
                    mu_mat grad_sums, double grad_unit) {
    check(tp, logits, bias, mask, shape, seq_len);
    int64_t T = shape->T, K = shape->K, E = shape->E;
    extra *e = mu_tape_alloc(tp, sizeof *e);
    *e = (extra){ *shape, seq_len, NULL };
    e->shape.mask_segment = mask && T ? T / mask->shape[0] : 1;
    mu_routing r = { .gates_TK = mu_tensor_2d_master(tp, T, K),
                     .scores_TE = mu_tensor_like(tp, logits),
                     .lse_T = mu_tensor_2d_master(tp, T, 1),
                     .ids_TK = mu_tensor_new(tp, MU_DTYPE_I32, 2, (int64_t[]){ T, K }),
                     .counts_SE = mu_tensor_new(tp, MU_DTYPE_I64, 2, (int64_t[]){ T / seq_len, E }) };
    if (grad_sums.data && mu_tape_recording(tp)) {
        r.grads = e->grads = mu_tape_alloc(tp, sizeof *e->grads);
        *e->grads = (mu_router_grads){ e->shape, r.scores_TE, r.ids_TK, grad_sums, grad_unit };
    }
    mu_apply(tp, (mu_node){ .op = &op_route,
                            .in = { [LOGITS] = logits, [BIAS] = bias, [MASK] = mask },
                            .out = { [GATES] = r.gates_TK, [SCORES] = r.scores_TE, [LSE] = r.lse_T, [IDS] = r.ids_TK,
                                     [COUNTS] = r.counts_SE },
                            .extra = e });
    return r;
}
