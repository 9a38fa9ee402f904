/* router.c - logits_TE -> scores, the K chosen experts, gates. The choice itself has no gradient; gates,
 * scores (for balancing terms) and log-sum-exp (for the z-loss) have. With A_k = dL/dgate_k and normalised
 * gates g over the chosen set, dL/ds_k = (A_k - sum_j g_j A_j) / sum_j s_j (scale 1): each expert is
 * judged by its advantage over the mixture. The kernel has all cases. */
#include "moe/moe.h"

enum { GATES, SCORES, LSE, IDS }; /* out[] */

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    dev->k->route_fwd(dev, n->extra, mu_data(n->in[0]), mu_data(n->in[1]), mu_data(n->in[2]),
                      mu_data(n->out[SCORES]), mu_data(n->out[LSE]), mu_data(n->out[IDS]), mu_data(n->out[GATES]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    if (n->in[0]->needs_grad)
        dev->k->route_bwd(dev, n->extra, mu_data(n->out[SCORES]), mu_data(n->out[IDS]), mu_grad_of(n->out[GATES]),
                          mu_grad_of(n->out[SCORES]), mu_grad_of(n->out[LSE]), mu_grad(tp, n->in[0]));
}

static const mu_op op_router = {
    .name = "router", .forward = forward, .backward = backward, .keeps_out = MU_BIT(SCORES) | MU_BIT(IDS)
};

mu_tensor *mu_router(mu_tape *tp, mu_tensor *logits, mu_tensor *bias, mu_tensor *mask, const mu_route_shape *shape,
                     mu_tensor **scores, mu_tensor **lse, mu_tensor **ids) {
    unsigned master = 1u << mu_tape_device(tp)->master;
    mu_tensor_check(logits, "router: logits", 2, master);
    if (bias) mu_tensor_check(bias, "router: bias", 0, master);
    if (mask) mu_tensor_check(mask, "router: mask", 0, 1u << MU_DTYPE_I32);
    int64_t T = shape->T, K = shape->K, E = shape->E;
    MU_CHECK(K >= 1 && K <= E, "router: %lld of %lld experts for each token", (long long)K, (long long)E);
    MU_CHECK(logits->shape[0] == T && logits->shape[1] == E && (!bias || mu_count(bias) == E),
             "router: %lld x %lld logits, %lld biases for %lld x %lld", (long long)logits->shape[0],
             (long long)logits->shape[1], (long long)(bias ? mu_count(bias) : E), (long long)T, (long long)E);
    MU_CHECK(!mask || (mu_count(mask) == E && shape->force == MU_ROUTE_FREE),
             "router: a mask of %lld experts for %lld%s", (long long)mu_count(mask), (long long)E,
             shape->force == MU_ROUTE_FREE ? "" : " and a forced choice");
    mu_route_shape *s = mu_tape_alloc(tp, sizeof *s);
    *s = *shape;
    mu_tensor *gates = mu_tensor_2d_master(tp, T, K);
    *scores = mu_tensor_like(tp, logits);
    *lse = mu_tensor_2d_master(tp, T, 1);
    *ids = mu_tensor_new(tp, MU_DTYPE_I32, 2, (int64_t[]){ T, K });
    return mu_apply(tp, (mu_node){ .op = &op_router,
                                   .in = { logits, bias, mask },
                                   .out = { gates, *scores, *lse, *ids },
                                   .extra = s });
}
