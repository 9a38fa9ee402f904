/* transformer.c - the model: parameters, checkpoint state, forward pass and head. */
#include "layers/internal.h"

#include <math.h>
#include <stdlib.h>

static mu_param *add(mu_params *ps, mu_group *group, int layer, const char *what, const char *kind, int64_t out, int64_t in, double std) {
    char name[96];
    if (layer < 0) snprintf(name, sizeof name, "/%s/%s", what, kind);
    else snprintf(name, sizeof name, "/layers/%d/%s/%s", layer, what, kind);
    mu_param_desc d = { .group = group,
                        .name = name,
                        .n_dims = in ? 2 : 1,
                        .shape = { out, in },
                        .std = std,
                        .decay = in != 0,
                        .layer = layer };
    return mu_params_add(ps, &d);
}

mu_param *mu_layer_param(mu_params *ps, mu_group *group, int layer, const char *what, int64_t out, int64_t in, double std) {
    return add(ps, group, layer, what, "weight", out, in, in ? std : -1);
}

mu_param *mu_layer_bias(mu_params *ps, mu_group *group, int layer, const char *what, int64_t out) {
    return add(ps, group, layer, what, "bias", out, 0, 0);
}

bool mu_layer_is_moe(const mu_moe_config *moe, int layer) {
    return moe->num_experts > 0 && layer >= moe->first_k_dense && (layer + 1) % moe->moe_layer_freq == 0;
}

static void block_init(mu_model *m, int layer, const mu_mesh *mesh) {
    mu_params *ps = m->params;
    mu_group *shared = ps->groups[0], *expert = ps->groups[1];
    mu_block *b = &m->blocks[layer];
    b->attention_norm = mu_layer_param(ps, shared, layer, "input_layernorm", m->cfg.hidden_size, 0, -1);
    mu_attention_init(&b->attention, &m->cfg, layer, ps, shared);
    b->ffn_norm = mu_layer_param(ps, shared, layer, "post_attention_layernorm", m->cfg.hidden_size, 0, -1);
    b->is_moe = mu_layer_is_moe(&m->moe_cfg, layer);
    if (b->is_moe) {
        mu_moe_init(&b->moe, &m->moe_cfg, m->cfg.hidden_size, m->cfg.init_std, layer, ps, shared, expert,
                    mesh->expert, m->place);
        m->moe_layers[m->n_moe++] = layer;
    } else mu_ffn_init(&b->ffn, &m->cfg, layer, ps, shared);
}

/* Each MoE layer looks into the model's protection. */
static void protection_init(mu_model *m) {
    mu_protection_init(&m->protection, m->n_moe, (int)m->moe_cfg.num_experts);
    for (int i = 0; i < m->n_moe; i++) m->blocks[m->moe_layers[i]].moe.protection = &m->protection;
}

/* cos and sin of position * theta^(-2i/d), computed in double on the host. */
static void make_rope(mu_model *m, mu_device *dev) {
    int64_t n = m->cfg.max_seq_len, half = m->cfg.head_dim / 2;
    size_t bytes = mu_size_mul((size_t)(n * half), mu_dtype_size(dev->master));
    m->rope = mu_memory_new(dev, 2 * bytes);
    mu_memory_commit(m->rope, 2 * bytes);
    m->cos = (mu_tensor){
        .dev = dev, .dtype = dev->master, .n_dims = 2, .shape = { n, half }, .data = m->rope->region.base
    };
    m->sin = m->cos;
    m->sin.data = m->rope->region.base + bytes;
    if (dev->shape_only) return;
    double *c = mu_alloc((size_t)(n * half), sizeof *c), *s = mu_alloc((size_t)(n * half), sizeof *s);
    for (int64_t t = 0; t < n; t++)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)t * pow(m->cfg.rope_theta, -2.0 * (double)i / (double)m->cfg.head_dim);
            c[t * half + i] = cos(angle), s[t * half + i] = sin(angle);
        }
    mu_tensor_set(&m->cos, c);
    mu_tensor_set(&m->sin, s);
    free(c);
    free(s);
}

mu_model *mu_model_new(const mu_model_config *cfg, const mu_moe_config *moe, int64_t vocab_size,
                       uint64_t seed, mu_device *dev, const mu_mesh *mesh) {
    MU_CHECK(cfg && moe && dev && mesh, "configuration, device or mesh is NULL");
    MU_CHECK(vocab_size >= 1 && vocab_size <= INT32_MAX,
             "vocabulary of %lld ids; need 1 to 2^31 - 1", (long long)vocab_size);
    mu_moe_config moe_cfg = *moe;
    mu_error e = { 0 };
    mu_complaints found = { .e = &e };
    mu_model_config_check(cfg, &moe_cfg, &found);
    MU_CHECK(found.status == MU_STATUS_OK, "%-s", e.text);
    mu_model *m = mu_alloc(1, sizeof *m);
    m->cfg = *cfg, m->moe_cfg = moe_cfg, m->vocab_size = vocab_size;
    mu_model_config_resolve(&m->cfg, &moe_cfg);
    m->params = mu_params_new(dev);
    mu_group *shared = mu_params_group(m->params, "shared", mesh->batch);
    mu_params_group(m->params, "expert", mesh->replica);
    int64_t L = cfg->num_layers, D = cfg->hidden_size;
    m->blocks = mu_alloc((size_t)L, sizeof *m->blocks);
    m->moe_layers = mu_alloc((size_t)L, sizeof *m->moe_layers);
    if (moe->num_experts) m->place = mu_placement_new(mesh->expert, (int)moe->num_experts);
    m->embed = mu_layer_param(m->params, shared, -1, "embed_tokens", vocab_size, D, cfg->init_std);
    for (int layer = 0; layer < L; layer++) block_init(m, layer, mesh);
    protection_init(m);
    m->norm = mu_layer_param(m->params, shared, -1, "norm", D, 0, -1);
    m->head = cfg->tie_embeddings
                  ? m->embed
                  : mu_layer_param(m->params, shared, -1, "lm_head", vocab_size, D, cfg->init_std);
    mu_params_alloc(m->params);
    mu_params_init(m->params, seed);
    make_rope(m, dev);
    return m;
}

void mu_model_free(mu_model *m) {
    if (!m) return;
    for (int i = 0; i < m->n_moe; i++) mu_moe_free(&m->blocks[m->moe_layers[i]].moe);
    mu_memory_free(m->rope);
    mu_params_free(m->params);
    mu_placement_free(m->place);
    mu_protection_free(&m->protection);
    free(m->domain_mask);
    free(m->moe_layers);
    free(m->blocks);
    free(m);
}

void mu_model_name_domains(mu_model *m, const mu_option_domains *domains) {
    if (!m->moe_cfg.force_domains.n || !m->n_moe) return;
    free(m->domain_mask);
    m->domain_mask = mu_alloc((size_t)(domains->n * m->moe_cfg.num_experts), sizeof *m->domain_mask);
    mu_moe_domain_mask(&m->moe_cfg, domains, m->domain_mask);
    for (int i = 0; i < m->n_moe; i++) {
        mu_moe *moe = &m->blocks[m->moe_layers[i]].moe;
        moe->domains = domains->n, moe->domain_mask = m->domain_mask;
    }
}

void mu_model_state(mu_model *m, double bias_most, mu_state_visitor *v) {
    for (int i = 0; i < m->n_moe; i++) mu_moe_state(&m->blocks[m->moe_layers[i]].moe, bias_most, v);
    mu_params_state(m->params, v);
}

/* factor * x; releases x. Without a factor, x. */
static mu_tensor *scaled(mu_tape *tp, mu_tensor *x, double factor) {
    if (factor == 1) return x;
    mu_tensor *y = mu_scale(tp, x, factor);
    mu_release(tp, x);
    return y;
}

static mu_tensor *embed(const mu_model *m, mu_tape *tp, mu_tensor *tokens) {
    return scaled(tp, mu_embedding(tp, tokens, &m->embed->tensor), m->cfg.embedding_multiplier);
}

/* x + residual_multiplier * y; releases both. */
static mu_tensor *residual(const mu_model *m, mu_tape *tp, mu_tensor *x, mu_tensor *y) {
    y = scaled(tp, y, m->cfg.residual_multiplier);
    mu_tensor *sum = mu_add(tp, x, y);
    mu_release(tp, x);
    mu_release(tp, y);
    return sum;
}

static mu_tensor *block_forward(const mu_model *m, const mu_block *b, mu_tape *tp, const mu_context *cx,
                                mu_tensor *x, mu_routing *routing) {
    mu_tensor *cos = (mu_tensor *)(uintptr_t)&m->cos, *sin = (mu_tensor *)(uintptr_t)&m->sin;
    mu_tape_layer(tp, b->attention.layer);
    mu_tape_part(tp, "attention");
    mu_tensor *h = mu_rmsnorm(tp, x, &b->attention_norm->tensor, m->cfg.rms_norm_eps);
    mu_tensor *y = mu_attention_forward(&b->attention, tp, cx, h, cos, sin);
    mu_release(tp, h);
    x = residual(m, tp, x, y);
    mu_tape_part(tp, "feed-forward");
    h = mu_rmsnorm(tp, x, &b->ffn_norm->tensor, m->cfg.rms_norm_eps);
    y = b->is_moe ? mu_moe_forward(&b->moe, tp, cx, h, routing) : mu_ffn_forward(&b->ffn, tp, h);
    mu_release(tp, h);
    x = residual(m, tp, x, y);
    mu_tape_layer(tp, -1);
    return x;
}

static void check_batch(const mu_model *m, const mu_context *cx, const mu_tensor *tokens, const mu_routing *routings) {
    int64_t past = cx->cache ? cx->cache->length : 0;
    mu_tensor_check(tokens, "model: tokens", 0, 1u << MU_DTYPE_I32);
    MU_CHECK(!cx->cache || (cx->n_sequences == 1 && mu_count(tokens) == cx->seq_len),
             "model: with a KV cache the batch is one sequence of %lld tokens, not %lld sequences and %lld tokens", (long long)cx->seq_len,
             (long long)cx->n_sequences, (long long)mu_count(tokens));
    MU_CHECK(cx->n_sequences >= 0 && cx->seq_len >= 1 && mu_count(tokens) == cx->n_sequences * cx->seq_len,
             "model: %lld tokens do not match %lld sequences of %lld", (long long)mu_count(tokens), (long long)cx->n_sequences,
             (long long)cx->seq_len);
    MU_CHECK(past + cx->seq_len <= m->cfg.max_seq_len,
             "model: sequences of %lld tokens are longer than max_seq_len %lld",
             (long long)(past + cx->seq_len), (long long)m->cfg.max_seq_len);
    MU_CHECK(!cx->cache || cx->cache->n_layers == m->cfg.num_layers, "model: the KV cache has %d layers, the model %lld",
             cx->cache ? cx->cache->n_layers : 0, (long long)m->cfg.num_layers);
    MU_CHECK(routings || !m->n_moe, "model: routings is NULL, but there are %d MoE layers", m->n_moe);
}

mu_tensor *mu_model_embed(const mu_model *m, mu_tape *tp, const mu_context *cx, mu_tensor *tokens, const mu_routing *routings) {
    check_batch(m, cx, tokens, routings);
    mu_tape_part(tp, "embedding and norms");
    return embed(m, tp, tokens);
}

mu_tensor *mu_model_layers(const mu_model *m, mu_tape *tp, const mu_context *cx, int first, int end, mu_tensor *x, mu_routing *routings) {
    MU_CHECK(first >= 0 && first <= end && end <= m->cfg.num_layers, "model: layers %d to %d of %lld", first, end - 1,
             (long long)m->cfg.num_layers);
    for (int layer = 0; layer < end; layer++) {
        const mu_block *b = &m->blocks[layer];
        mu_routing *routing = b->is_moe ? routings++ : NULL;
        if (layer >= first) x = block_forward(m, b, tp, cx, x, routing);
    }
    return x;
}

mu_tensor *mu_model_final_norm(const mu_model *m, mu_tape *tp, mu_tensor *x) {
    mu_tape_part(tp, "embedding and norms");
    mu_tensor *out = mu_rmsnorm(tp, x, &m->norm->tensor, m->cfg.rms_norm_eps);
    mu_release(tp, x);
    mu_tape_part(tp, NULL);
    return out;
}

mu_tensor *mu_model_forward(const mu_model *m, mu_tape *tp, const mu_context *cx, mu_tensor *tokens,
                            mu_routing *routings) {
    mu_tensor *x = mu_model_embed(m, tp, cx, tokens, routings);
    x = mu_model_layers(m, tp, cx, 0, (int)m->cfg.num_layers, x, routings);
    if (cx->cache) cx->cache->length += cx->seq_len;
    return mu_model_final_norm(m, tp, x);
}

static bool is_finite(mu_tape *tp, const mu_tensor *x) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *sum = mu_tensor_scalar(tp);
    dev->k->sumsq(dev, mu_count(x), mu_data(x), false, mu_data(sum));
    return isfinite(mu_tensor_scalar_get(sum));
}

int mu_model_find_nonfinite(const mu_model *m, mu_tape *tp, const mu_context *cx, mu_tensor *tokens,
                            mu_routing *routings) {
    check_batch(m, cx, tokens, routings);
    int layers = (int)m->cfg.num_layers, found = layers + 1;
    mu_tensor *x = embed(m, tp, tokens);
    if (!is_finite(tp, x)) found = -1;
    for (int layer = 0; layer < layers; layer++) { /* all layers: other ranks of the expert group wait in them */
        const mu_block *b = &m->blocks[layer];
        x = block_forward(m, b, tp, cx, x, b->is_moe ? routings++ : NULL);
        if (found > layers && !is_finite(tp, x)) found = layer;
    }
    if (found > layers && !is_finite(tp, mu_rmsnorm(tp, x, &m->norm->tensor, m->cfg.rms_norm_eps)))
        found = layers;
    return found;
}

/* What the head multiplies: x, divided by logits_scaling. The caller keeps x. */
static mu_tensor *head_input(const mu_model *m, mu_tape *tp, mu_tensor *x) {
    return m->cfg.logits_scaling == 1 ? x : mu_scale(tp, x, 1 / m->cfg.logits_scaling);
}

mu_tensor *mu_model_head_loss(const mu_model *m, mu_tape *tp, mu_tensor *x, mu_tensor *targets, double scale,
                              mu_tensor **nll) {
    MU_CHECK(m && tp, "model or tape is NULL");
    mu_tape_part(tp, "head");
    mu_tensor *h = head_input(m, tp, x), *loss = mu_head_loss(tp, h, &m->head->tensor, targets, scale, nll);
    if (h != x) mu_release(tp, h);
    mu_tape_part(tp, NULL);
    return loss;
}

mu_tensor *mu_model_logits(const mu_model *m, mu_tape *tp, mu_tensor *x) {
    mu_tensor *h = head_input(m, tp, x), *logits = mu_linear(tp, h, &m->head->tensor);
    if (h != x) mu_release(tp, h);
    return logits;
}
