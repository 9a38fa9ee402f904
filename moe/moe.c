/* moe.c - one MoE feed-forward layer: its parameters, its checkpoint state and its forward pass, with or without expert
 * parallelism. */
#include "moe/moe.h"

#include <stdlib.h>

static mu_param *add(mu_params *ps, const mu_moe *m, mu_group *group, const char *what, int64_t out,
                     int64_t in, double std, bool decay, bool per_expert) {
    char name[112];
    snprintf(name, sizeof name, "/layers/%d/mlp/%s/weight", m->layer, what);
    mu_param_desc d = { .group = group,
                        .name = name,
                        .n_dims = 2,
                        .shape = { out, in },
                        .std = std,
                        .decay = decay,
                        .layer = m->layer };
    if (per_expert) {
        d.n_experts = (int)m->E, d.local = m->place->local, d.n_local = m->place->n_local;
        d.first_load = m->first_load;
    }
    return mu_params_add(ps, &d);
}

void mu_moe_init(mu_moe *m, const mu_moe_config *cfg, int64_t D, double init_std, int layer, mu_params *ps,
                 mu_group *shared, mu_group *expert, mu_comm *group, const mu_placement *place) {
    MU_CHECK(cfg && ps && shared && expert && group && place, "MoE layer %d: configuration, parameters, groups or placement is NULL", layer);
    MU_CHECK(cfg->num_experts >= 1 && cfg->top_k >= 1 && cfg->top_k <= cfg->num_experts,
             "MoE layer %d: moe.top_k is %lld, must be 1 to moe.num_experts %lld", layer, (long long)cfg->top_k, (long long)cfg->num_experts);
    MU_CHECK(D >= 1 && cfg->moe_ffn_hidden_size >= 1 && cfg->num_shared_experts >= 0 && layer >= 0 && init_std >= 0,
             "MoE layer %d: hidden size %lld and moe_ffn_hidden_size %lld must be at least 1, num_shared_experts %lld and init_std %g"
             " at least 0", layer, (long long)D,
             (long long)cfg->moe_ffn_hidden_size, (long long)cfg->num_shared_experts, init_std);
    MU_CHECK(place->n_experts == cfg->num_experts, "MoE layer %d: moe.num_experts is %lld, but the placement is for %d",
             layer, (long long)cfg->num_experts, place->n_experts);
    *m = (mu_moe){ .cfg = cfg,
                   .layer = layer,
                   .D = D,
                   .F = cfg->moe_ffn_hidden_size,
                   .E = cfg->num_experts,
                   .K = cfg->top_k,
                   .first_load = ps->n_loads,
                   .group = group,
                   .place = place,
                   .bias = mu_alloc((size_t)cfg->num_experts, sizeof(double)) };
    ps->n_loads += m->E;
    m->router_ED = add(ps, m, shared, "gate", m->E, D, init_std, false, false);
    m->gate_eFD = add(ps, m, expert, "experts/%d/gate_proj", m->F, D, init_std, true, true);
    m->up_eFD = add(ps, m, expert, "experts/%d/up_proj", m->F, D, init_std, true, true);
    m->down_eDF = add(ps, m, expert, "experts/%d/down_proj", D, m->F, init_std, true, true);
    if (!cfg->num_shared_experts) return;
    int64_t wide = cfg->num_shared_experts * m->F;
    m->shared_gate = add(ps, m, shared, "shared_experts/gate_proj", wide, D, init_std, true, false);
    m->shared_up = add(ps, m, shared, "shared_experts/up_proj", wide, D, init_std, true, false);
    m->shared_down = add(ps, m, shared, "shared_experts/down_proj", D, wide, init_std, true, false);
    if (cfg->shared_expert_gate) m->shared_scale_1D = add(ps, m, shared, "shared_expert_gate", 1, D, init_std, false, false);
}

void mu_moe_free(mu_moe *m) { free(m->bias); }

/* After loading: without a method that has one the loaded bias is discarded. */
static mu_status bias_set(const mu_state *s, const void *host, mu_error *e) {
    mu_moe *m = s->module;
    (void)host, (void)e;
    for (int64_t i = 0; i < m->E && !(m->cfg->balance & MU_BALANCE_SELECTION); i++) m->bias[i] = 0;
    return MU_STATUS_OK;
}

void mu_moe_state(mu_moe *m, double most, mu_state_visitor *v) {
    mu_state s = { .type = MU_STORE_F64, .n_dims = 1, .shape = { m->E }, .data = m->bias, .low = 0 - most, .high = most,
                   .module = m, .set = bias_set };
    snprintf(s.name, sizeof s.name, "/layers/%d/mlp/gate/e_score_correction_bias", m->layer);
    v->visit(v, &s);
}

static mu_tensor *send_rows(mu_tape *tp, const mu_moe *m, mu_tensor *rows, const int64_t *send, const int64_t *recv) {
    mu_tape_part(tp, "communication");
    mu_tensor *y = mu_all_to_all(tp, m->group, rows, send, recv);
    mu_tape_part(tp, "dispatch and combine");
    return y;
}

/* Several ranks in the expert group: sends rows and their gates to the ranks of their experts, runs the experts here
 * on what was received, sends the results back, and sums the rows of each token. */
static mu_tensor *forward_expert_parallel(const mu_moe *m, mu_tape *tp, mu_tensor *x, mu_tensor *gates, const mu_plan *plan) {
    mu_tensor *rows = mu_gather_rows(tp, x, plan), *row_gates = mu_scatter_rows(tp, gates, plan->row_TK, plan->sent);
    mu_tensor *received = send_rows(tp, m, rows, plan->send_rows, plan->recv_rows);
    mu_tensor *received_gates = send_rows(tp, m, row_gates, plan->send_rows, plan->recv_rows);
    mu_tensor *weights = mu_scatter_rows(tp, received_gates, plan->token_rows, plan->rows);
    mu_release(tp, rows);
    mu_release(tp, row_gates);
    mu_release(tp, received_gates);
    mu_tape_part(tp, "experts");
    mu_tensor *done = mu_experts(tp, received, weights, &m->gate_eFD->tensor, &m->up_eFD->tensor, &m->down_eDF->tensor, plan);
    mu_release(tp, received);
    mu_release(tp, weights);
    mu_tensor *returned = send_rows(tp, m, done, plan->recv_rows, plan->send_rows);
    mu_release(tp, done);
    mu_tensor *y = mu_combine(tp, returned, plan);
    mu_release(tp, returned);
    return y;
}

/* One rank in the expert group: nothing is sent. The experts gather rows of x and sum each token's results. */
static mu_tensor *forward_local(const mu_moe *m, mu_tape *tp, mu_tensor *x, mu_tensor *gates, const mu_plan *plan) {
    mu_tensor *weights = mu_scatter_rows(tp, gates, plan->row_TK, plan->rows);
    mu_tape_part(tp, "experts");
    mu_tensor *y = mu_experts_combined(tp, x, weights, &m->gate_eFD->tensor, &m->up_eFD->tensor, &m->down_eDF->tensor, plan);
    mu_release(tp, weights);
    return y;
}

/* sigmoid(w x_t) of each token, [T, 1], or NULL: a router with sigmoid scores that has one expert. Computed like the router, in
 * the master dtype. */
static mu_tensor *shared_scale(const mu_moe *m, mu_tape *tp, mu_tensor *x) {
    int64_t T = x->shape[0];
    if (!m->shared_scale_1D) return NULL;
    mu_tensor *logits = mu_linear_master(tp, x, &m->shared_scale_1D->tensor);
    mu_route_shape one = { .T = T, .E = 1, .K = 1, .sigmoid = true, .scale = 1 };
    mu_routing r = mu_route(tp, logits, NULL, NULL, &one, T ? T : 1, (mu_mat){ 0 }, 0);
    mu_release(tp, logits);
    mu_release(tp, r.scores_TE);
    mu_release(tp, r.lse_T);
    mu_release(tp, r.ids_TK);
    mu_release(tp, r.counts_SE);
    return r.gates_TK;
}

/* The shared experts are one dense feed-forward. */
static mu_tensor *add_shared_experts(const mu_moe *m, mu_tape *tp, mu_tensor *x, mu_tensor *y) {
    mu_plan *plan = mu_plan_dense(tp, x->shape[0]);
    mu_tensor *scale = shared_scale(m, tp, x);
    mu_tensor *shared = mu_experts(tp, x, scale, &m->shared_gate->tensor, &m->shared_up->tensor, &m->shared_down->tensor, plan);
    mu_tensor *sum = mu_add(tp, y, shared);
    mu_plan_release(tp, plan);
    mu_release(tp, scale);
    mu_release(tp, y);
    mu_release(tp, shared);
    return sum;
}

mu_tensor *mu_moe_forward(const mu_moe *m, mu_tape *tp, const mu_context *cx, mu_tensor *x,
                          mu_routing *routing) {
    if (cx->moe_input) cx->moe_input(cx->moe_input_arg, m->layer, x);
    mu_tape_part(tp, "router");
    *routing = mu_moe_route(m, tp, cx, x);
    mu_tape_part(tp, "dispatch and combine");
    mu_plan *plan = mu_dispatch(m, tp, cx, routing);
    routing->plan = plan;
    mu_tensor *y = plan->all_to_all ? forward_expert_parallel(m, tp, x, routing->gates_TK, plan)
                                    : forward_local(m, tp, x, routing->gates_TK, plan);
    mu_plan_release(tp, plan);
    mu_tape_part(tp, "experts");
    return m->shared_gate ? add_shared_experts(m, tp, x, y) : y;
}
