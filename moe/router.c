/* router.c - from the layer's input to a decision: one product with the router's rows, then scores, the
 * top K and the gates, all in the device's floating type and at least fp32. */
#include "moe/moe.h"

static mu_route_force force_of(const mu_moe_config *cfg) {
    return cfg->force_balanced ? MU_ROUTE_BALANCED : cfg->force_skew ? MU_ROUTE_SKEW : MU_ROUTE_FREE;
}

mu_routing mu_route(const mu_moe *m, mu_tape *tp, const mu_context *cx, mu_tensor *x) {
    int64_t T = x->shape[0], first = cx->global_samples ? cx->global_samples[0] * cx->seq_len : 0;
    if (cx->cache) first += cx->cache->length;
    mu_route_shape shape = { T,
                             m->E,
                             m->K,
                             m->cfg->score_func == MU_MOE_SCORE_SIGMOID,
                             m->cfg->norm_topk_prob,
                             m->cfg->route_scale,
                             force_of(m->cfg),
                             first };
    mu_tensor *bias = NULL;
    if (m->cfg->balance & MU_BALANCE_BIAS) {
        bias = mu_tensor_fine(tp, 1, m->E);
        mu_tensor_set(bias, m->bias);
    }
    mu_routing r = { 0 };
    mu_tensor *logits = mu_linear_fine(tp, x, &m->router_ED->tensor);
    r.gates_TK = mu_router(tp, logits, bias, &shape, &r.scores_TE, &r.lse_T, &r.ids_TK);
    mu_release(tp, logits);
    r.counts_SE = mu_tensor_new(tp, MU_DTYPE_I64, 2, (int64_t[]){ T / cx->seq_len, m->E });
    mu_device *dev = mu_tape_device(tp);
    dev->k->count_experts(dev, T, m->E, m->K, cx->seq_len, mu_data(r.ids_TK), mu_data(r.counts_SE));
    return r;
}

void mu_routing_count(mu_tape *tp, const mu_routing *r, mu_mat counts) {
    mu_device *dev = mu_tape_device(tp);
    int64_t T = r->ids_TK->shape[0], K = r->ids_TK->shape[1], E = r->counts_SE->shape[1];
    counts.ld = E;
    if (T) dev->k->count_experts(dev, T, E, K, T, mu_data(r->ids_TK), counts);
    else dev->k->fill(dev, E, 0.0, (mu_mat){ counts.data, MU_DTYPE_F64, 1 }); /* words of zero bits */
}
