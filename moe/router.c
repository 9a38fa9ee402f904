/* router.c - the router: input, jitter in training, a linear layer that makes the logits, and the choice of
 * experts (mu_route). All of it is computed in the device's master dtype, at least fp32. */
#include "moe/moe.h"

static mu_route_force force_of(const mu_moe_config *cfg) {
    return cfg->force_balanced ? MU_ROUTE_BALANCED : cfg->force_skew ? MU_ROUTE_SKEW : MU_ROUTE_FREE;
}

/* The router's input: x, with jitter in training. */
static mu_tensor *router_input(const mu_moe *m, mu_tape *tp, const mu_context *cx, mu_tensor *x) {
    if (cx->mode != MU_MODE_TRAIN || m->cfg->router_jitter == 0) return x;
    const int64_t *samples = cx->global_samples;
    for (int64_t i = 0; i < cx->n_sequences; i++) /* the kernel derives all samples from the first */
        MU_CHECK(samples && samples[i] == samples[0] + i,
                 "router_jitter: cx->global_samples must be consecutive numbers, one per sequence");
    mu_rng rng = { cx->seed, (uint32_t)cx->step, cx->n_sequences ? (uint32_t)samples[0] : 0, MU_RNG_JITTER,
                   (uint32_t)m->layer };
    return mu_jitter(tp, x, cx->seq_len, m->cfg->router_jitter, &rng);
}

mu_routing mu_moe_route(const mu_moe *m, mu_tape *tp, const mu_context *cx, mu_tensor *x) {
    mu_tensor_check(x, "router: x", 2, MU_FLOATS);
    MU_CHECK(x->shape[1] == m->D && cx->seq_len >= 1 && x->shape[0] == cx->n_sequences * cx->seq_len,
             "router: x is [%lld, %lld], expected [n_sequences %lld x seq_len %lld, hidden_size %lld]", (long long)x->shape[0],
             (long long)x->shape[1], (long long)cx->n_sequences, (long long)cx->seq_len, (long long)m->D);
    int64_t T = x->shape[0], first = cx->global_samples ? cx->global_samples[0] * cx->seq_len : 0;
    if (cx->cache) first += cx->cache->length;
    mu_route_shape shape = { T,
                             m->E,
                             m->K,
                             m->cfg->score_func == MU_MOE_SCORE_SIGMOID,
                             m->cfg->norm_topk_prob,
                             m->cfg->route_scale,
                             force_of(m->cfg),
                             first,
                             0 };
    mu_tensor *bias = NULL;
    if (m->cfg->balance & MU_BALANCE_SELECTION) {
        bias = mu_tensor_2d_master(tp, 1, m->E);
        mu_tensor_set(bias, m->bias);
    }
    mu_tensor *seen = router_input(m, tp, cx, x);
    mu_tensor *logits = mu_linear_master(tp, seen, &m->router_ED->tensor);
    if (seen != x) mu_release(tp, seen);
    mu_tensor *mask = mu_moe_mask(m, tp, cx);
    mu_mat grads = cx->router_grads; /* of this layer, if wanted */
    if (grads.data) grads = mu_mat_values(grads, m->first_load / m->E * MU_ROUTER_GRADS);
    mu_routing r = mu_route(tp, logits, bias, mask, &shape, cx->seq_len, grads, cx->router_grad_unit);
    if (mu_moe_has_gate(m, cx)) r.logits_TE = logits;
    else mu_release(tp, logits);
    mu_release(tp, mask);
    r.bias_E = bias, r.sigmoid = shape.sigmoid, r.gate_scale = shape.scale;
    return r;
}
