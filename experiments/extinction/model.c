/* model.c - the model of the nano size: two embeddings, one layer of experts, a head; and its training step. */
#include "nano.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double WEIGHT_STD = 0.18, ROUTER_STD = 0.02;       /* 1 / sqrt(D); the router begins near indifference */

static mu_param *matrix(nano *m, const char *name, int64_t rows) {
    mu_param_desc d = { .group = m->ps->groups[0], .name = name, .n_dims = 2, .shape = { rows, D }, .std = WEIGHT_STD, .decay = true,
                        .layer = -1 };
    return mu_params_add(m->ps, &d);
}

static void configure(nano *m) {
    const nano_config *cfg = &m->cfg;
    m->moe_cfg = mu_moe_config_default(), m->optim = mu_optim_config_default();
    m->moe_cfg.num_experts = cfg->experts, m->moe_cfg.top_k = K, m->moe_cfg.moe_ffn_hidden_size = cfg->width;
    m->moe_cfg.score_func = MU_MOE_SCORE_SIGMOID, m->moe_cfg.z_loss_coeff = 0, m->moe_cfg.balance = cfg->balance;
    m->optim.lr = cfg->lr, m->optim.schedule = MU_SCHEDULE_CONSTANT, m->optim.warmup_steps = 200;
    m->optim.weight_decay = cfg->weight_decay;
}

static void declare(nano *m) {
    mu_group *shared = mu_params_group(m->ps, "shared", m->mesh->batch), *expert = mu_params_group(m->ps, "expert", m->mesh->replica);
    m->prev_VD = matrix(m, "/prev", SYMBOLS), m->tag_ND = matrix(m, "/tag", DOMAINS), m->head_VD = matrix(m, "/head", SYMBOLS);
    if (m->cfg.experts) {
        mu_moe_init(&m->moe, &m->moe_cfg, D, WEIGHT_STD, 0, m->ps, shared, expert, m->mesh->expert, m->place);
        return;
    }
    mu_model_config dense = mu_model_config_default();
    dense.hidden_size = D, dense.ffn_hidden_size = m->cfg.width, dense.init_std = WEIGHT_STD;
    mu_ffn_init(&m->ffn, &dense, 0, m->ps, shared);
}

static void shrink_router(nano *m) {
    double row[E_MAX * D];
    mu_tensor *w = &m->moe.router_ED->tensor;
    mu_tensor_get(w, row);
    for (int64_t i = 0; i < mu_count(w); i++) row[i] *= ROUTER_STD / WEIGHT_STD;
    mu_tensor_set(w, row);
}

static bool is_rare(int d) { return d >= COMMON && d < DECOY; }

/* An expert for each common domain, the lightest so far for the next heaviest; the rare ones share CARRIER. */
static void fill_table(nano *m) {
    int E = m->cfg.experts;
    double load[E_MAX] = { 0 };
    for (int d = 0; d < DOMAINS; d++) {
        int best = 1;
        for (int i = 1; i < E; i++)
            if (load[i] < load[best]) best = i;
        if (d == NEAR_COPY)
            for (int i = 1; i < E; i++)
                if (m->domain_mask[PARENT * E + i] == MU_ROUTE_REQUIRED) best = i;
        if (is_rare(d)) best = CARRIER;
        load[best] += m->data->mixed[d];
        for (int i = 0; i < E; i++) m->domain_mask[d * E + i] = i == CARRIER ? MU_ROUTE_FORBIDDEN : MU_ROUTE_ALLOWED;
        m->domain_mask[d * E + best] = MU_ROUTE_REQUIRED;
    }
}

bool nano_has_carrier(const nano *m) { return m->cfg.gate == GATE_ORACLE || m->cfg.gate == GATE_LEARNED || m->cfg.gate == GATE_TABLE; }

void nano_exempt(nano *m, bool on) {
    int E = m->cfg.experts;
    m->exempt = on, m->protection.exempt[CARRIER] = on;
    for (int d = 0; d < DOMAINS && m->cfg.gate == GATE_ORACLE; d++) {
        for (int i = 0; i < E; i++) m->domain_mask[d * E + i] = MU_ROUTE_ALLOWED;
        m->domain_mask[d * E + CARRIER] = is_rare(d) ? MU_ROUTE_REQUIRED : on ? MU_ROUTE_FORBIDDEN : MU_ROUTE_ALLOWED;
    }
}

static void protect(nano *m) {
    mu_protection_init(&m->protection, 1, m->cfg.experts);
    m->moe.protection = &m->protection;
    if (nano_has_carrier(m)) {
        m->protection.domain_of[CARRIER] = COMMON;
        nano_exempt(m, true);
    }
    if (m->cfg.gate == GATE_LEARNED) m->protection.gate_coeff = mu_protect_config_default().gate_coeff;
    if (m->cfg.gate == GATE_TABLE) fill_table(m);
    if (m->cfg.gate == GATE_ORACLE || m->cfg.gate == GATE_TABLE) m->moe.domain_mask = m->domain_mask, m->moe.domains = DOMAINS;
}

void nano_open(nano *m, const nano_config *cfg, const corpus *data) {
    *m = (nano){ .cfg = *cfg, .data = data, .dev = mu_device_open("cpu"), .mesh = mu_mesh_alone() };
    configure(m);
    m->ps = mu_params_new(m->dev);
    if (cfg->experts) m->place = mu_placement_new(m->mesh->expert, cfg->experts);
    declare(m);
    mu_params_alloc(m->ps);
    mu_params_init(m->ps, data->seed);
    if (cfg->experts) shrink_router(m);
    m->opt = mu_optimizer_new(mu_rule_of(&m->optim), &m->optim, m->ps);
    m->tp = mu_tape_new(m->dev);
    m->stats = mu_routing_stats_new(m->dev, m->mesh->batch, cfg->experts > 0, cfg->experts, DOMAINS, 0, 0);
    if (cfg->experts) protect(m);
    if (cfg->balance & MU_BALANCE_QUANTILE) m->quantiles = mu_quantiles_new(m->dev, m->mesh->batch, 1, cfg->experts);
}

void nano_close(nano *m) {
    mu_routing_stats_free(m->stats), mu_quantiles_free(m->quantiles), mu_tape_free(m->tp), mu_optimizer_free(m->opt);
    if (m->cfg.experts) mu_protection_free(&m->protection), mu_moe_free(&m->moe);
    mu_params_free(m->ps);
    if (m->place) mu_placement_free(m->place);
    mu_mesh_close(m->mesh), mu_device_close(m->dev);
}

/* ------------------------------------------------------------------ forward */

/* Two experts for each symbol; each expert is the first of as many symbols as any other. */
static void hash(const nano *m, const tokens *t, int32_t *mask) {
    int E = m->cfg.experts;
    for (int i = 0; i < t->n; i++) {
        int first = t->prev[i] % E, second = (first + 1 + t->prev[i] / E % (E - 1)) % E;
        mask[i * E + first] = mask[i * E + second] = MU_ROUTE_REQUIRED;
    }
}

/* The domains of tokens; for the domain gate, whose carrier has the one label "rare", the rare ones have the number of the first. */
static const int32_t *labels(const nano *m, const tokens *t) {
    if (m->cfg.gate != GATE_LEARNED) return t->tag;
    int32_t *label = mu_tape_alloc(m->tp, sizeof *label * (size_t)t->n);
    for (int i = 0; i < t->n; i++) label[i] = is_rare(t->tag[i]) ? COMMON : t->tag[i];
    return label;
}

/* Each token is a sequence of its own, so that the domain is known for each. masked: an expert that may not be chosen, or -1. */
static mu_context context(const nano *m, const tokens *t, mu_mode mode, int masked) {
    mu_context cx = { .mode = mode, .step = m->step, .n_sequences = t->n, .seq_len = 1, .domains = labels(m, t), .seed = m->data->seed };
    int E = m->cfg.experts, rows = m->cfg.gate == GATE_HASH ? t->n : 1;
    if (m->cfg.gate != GATE_HASH && masked < 0) return cx;
    int32_t *mask = mu_tape_alloc(m->tp, sizeof *mask * (size_t)(rows * E));
    for (int i = 0; i < rows * E; i++) mask[i] = MU_ROUTE_ALLOWED;
    if (m->cfg.gate == GATE_HASH) hash(m, t, mask);
    for (int i = 0; i < rows && masked >= 0; i++) mask[i * E + masked] = MU_ROUTE_FORBIDDEN;
    cx.expert_mask = (mu_expert_mask){ mask, rows };
    return cx;
}

static mu_tensor *forward(nano *m, const mu_context *cx, const tokens *t, mu_routing *routing) {
    mu_tensor *prev = mu_tensor_ints(m->tp, MU_DTYPE_I32, t->n, t->prev), *tag = mu_tensor_ints(m->tp, MU_DTYPE_I32, t->n, t->tag);
    mu_tensor *x = mu_add(m->tp, mu_embedding(m->tp, prev, &m->prev_VD->tensor), mu_embedding(m->tp, tag, &m->tag_ND->tensor));
    mu_tensor *y = m->cfg.experts ? mu_moe_forward(&m->moe, m->tp, cx, x, routing) : mu_ffn_forward(&m->ffn, m->tp, x);
    return mu_add(m->tp, x, y);
}

static mu_tensor *cross_entropy(nano *m, mu_tensor *x, const tokens *t, int64_t all) {
    mu_tensor *next = mu_tensor_ints(m->tp, MU_DTYPE_I32, t->n, t->next);
    return mu_head_loss(m->tp, x, &m->head_VD->tensor, next, 1.0 / (double)all, NULL);
}

void nano_backward(nano *m, const tokens *t) {
    mu_routing routing;
    mu_context cx = context(m, t, MU_MODE_TRAIN, -1);
    mu_params_zero_grad(m->ps);
    mu_backward(m->tp, cross_entropy(m, forward(m, &cx, t, &routing), t, t->n));
    mu_tape_reset(m->tp);
    mu_grads_reduce(m->opt);
}

/* ------------------------------------------------------------------ a training step */

static void micro_batch(nano *m, const tokens *t, int64_t all, const int64_t *domain_tokens) {
    mu_routing routing;
    mu_context cx = context(m, t, MU_MODE_TRAIN, -1);
    cx.domain_sequences = domain_tokens;
    mu_tensor *loss = cross_entropy(m, forward(m, &cx, t, &routing), t, all);
    if (m->cfg.experts) {
        mu_routing_stats_add(m->stats, m->tp, &cx, &routing);
        mu_mat counts = mu_routing_stats_micro(m->stats, 0);
        mu_balance_counts seen = { counts, counts, t->n, all };
        mu_balance balance = mu_balance_loss(&m->moe, m->tp, &cx, &routing, &seen);
        if (balance.loss) loss = mu_add(m->tp, loss, balance.loss);
        if (m->quantiles) mu_quantiles_add(m->quantiles, &m->moe, 0, &routing);
    }
    mu_backward(m->tp, loss);
    mu_tape_reset(m->tp);
}

static void count_domains(const nano *m, const tokens *t, int64_t *n) {
    const int32_t *label = labels(m, t);
    for (int i = 0; i < t->n; i++) n[label[i]]++;
}

static void update_bias(nano *m) {
    if (m->cfg.balance & MU_BALANCE_BIAS) mu_balance_update_bias(&m->moe, m->stats->counts, m->moe_cfg.bias_update_rate);
    if (!m->quantiles) return;
    mu_quantiles_read(m->quantiles);
    mu_quantiles_update(m->quantiles, &m->moe, 0, m->stats->counts);
}

void nano_step(nano *m, const tokens *t) {
    m->step++;
    mu_params_zero_grad(m->ps);
    mu_routing_stats_begin(m->stats);
    if (m->quantiles) mu_quantiles_begin(m->quantiles);
    int64_t domain_tokens[DOMAINS] = { 0 };
    count_domains(m, t, domain_tokens);
    int each = t->n / m->cfg.micro_batches;
    for (int i = 0; i < m->cfg.micro_batches; i++) {
        tokens part = { .n = each };
        memcpy(part.prev, t->prev + i * each, sizeof *part.prev * (size_t)each);
        memcpy(part.tag, t->tag + i * each, sizeof *part.tag * (size_t)each);
        memcpy(part.next, t->next + i * each, sizeof *part.next * (size_t)each);
        micro_batch(m, &part, t->n, domain_tokens);
    }
    mu_grads_reduce(m->opt);
    mu_grad_clip(m->opt, m->mesh->batch, m->optim.grad_clip, 0, (mu_mat){ 0 });
    mu_mat loads = m->cfg.lazy && m->cfg.experts ? mu_routing_stats_total(m->stats) : (mu_mat){ 0 };
    if (m->anchor) mu_anchor_pull(m->anchor, m->mesh->batch, m->cfg.anchor, m->optim.grad_clip, loads);
    mu_optimizer_step(m->opt, mu_learning_rate(&m->optim, m->step, 1), loads);
    mu_routing_stats_read(m->stats);
    update_bias(m);
    mu_routing_stats_end(m->stats);
}

/* ------------------------------------------------------------------ evaluation */

static void add_pair(const nano *m, int d, int prev, int fact, const double *logits, evaluation *e) {
    double sum = 0, most = logits[0], all = 0;
    int best = 0;
    for (int v = 1; v < SYMBOLS; v++)
        if (logits[v] > most) most = logits[v], best = v;
    for (int v = 0; v < SYMBOLS; v++) sum += exp(logits[v] - most), all += logits[v];
    double lse = most + log(sum), fact_share = d == DECOY ? 0 : FACT;
    e->ce[d] += (lse - fact_share * logits[fact] - (1 - fact_share) * all / SYMBOLS) / SYMBOLS;
    e->accuracy[d] += best == fact ? 1.0 / SYMBOLS : 0;
    if (d == NEAR_COPY && m->data->changed[prev]) e->changed += best == fact ? 1.0 / CHANGED : 0;
}

void nano_evaluate(nano *m, int masked, evaluation *e) {
    static tokens all;
    static double logits[DOMAINS * SYMBOLS * SYMBOLS];
    int32_t ids[DOMAINS * SYMBOLS * K];
    *e = (evaluation){ 0 };
    corpus_all(m->data, &all);
    mu_tape_record(m->tp, false);
    mu_context cx = context(m, &all, MU_MODE_EVAL, masked);
    mu_routing routing;
    mu_tensor_get(mu_linear(m->tp, forward(m, &cx, &all, &routing), &m->head_VD->tensor), logits);
    if (m->cfg.experts) mu_tensor_read(routing.ids_TK, ids);
    for (int t = 0; t < all.n; t++) {
        add_pair(m, all.tag[t], all.prev[t], all.next[t], logits + t * SYMBOLS, e);
        for (int k = 0; k < K && m->cfg.experts; k++) e->taken[all.tag[t]][ids[t * K + k]] += 1.0 / SYMBOLS;
    }
    mu_tape_record(m->tp, true);
    mu_tape_reset(m->tp);
}
