/* attention.c - grouped-query causal attention with rotary positions and optional norms and biases. */
#include "layers/internal.h"

void mu_attention_init(mu_attention_layer *a, const mu_model_config *cfg, int layer, mu_params *ps,
                       mu_group *group) {
    MU_CHECK(cfg->num_heads >= 1 && cfg->num_kv_heads >= 1 && cfg->head_dim >= 2,
             "attention: %lld heads, %lld key/value heads, head_dim %lld; call mu_model_config_resolve first",
             (long long)cfg->num_heads, (long long)cfg->num_kv_heads, (long long)cfg->head_dim);
    int64_t D = cfg->hidden_size, wide = cfg->num_heads * cfg->head_dim,
            narrow = cfg->num_kv_heads * cfg->head_dim;
    *a = (mu_attention_layer){
        .heads = cfg->num_heads, .kv_heads = cfg->num_kv_heads, .eps = cfg->rms_norm_eps, .scale = cfg->attention_multiplier,
        .clip = cfg->clip_qkv, .layer = layer
    };
    a->q = mu_layer_param(ps, group, layer, "self_attn/q_proj", wide, D, cfg->init_std);
    a->k = mu_layer_param(ps, group, layer, "self_attn/k_proj", narrow, D, cfg->init_std);
    a->v = mu_layer_param(ps, group, layer, "self_attn/v_proj", narrow, D, cfg->init_std);
    a->o = mu_layer_param(ps, group, layer, "self_attn/o_proj", D, wide, cfg->init_std);
    if (cfg->qkv_bias) {
        a->q_bias = mu_layer_bias(ps, group, layer, "self_attn/q_proj", wide);
        a->k_bias = mu_layer_bias(ps, group, layer, "self_attn/k_proj", narrow);
        a->v_bias = mu_layer_bias(ps, group, layer, "self_attn/v_proj", narrow);
    }
    if (!cfg->qk_norm) return;
    bool all = cfg->qk_norm_over == MU_QK_NORM_ALL;
    a->q_norm = mu_layer_param(ps, group, layer, "self_attn/q_norm", all ? wide : cfg->head_dim, 0, -1);
    a->k_norm = mu_layer_param(ps, group, layer, "self_attn/k_norm", all ? narrow : cfg->head_dim, 0, -1);
}

static mu_tensor *project(mu_tape *tp, mu_tensor *x, mu_param *w, mu_param *bias) {
    mu_tensor *h = mu_linear(tp, x, &w->tensor);
    if (!bias) return h;
    mu_tensor *sum = mu_add_bias(tp, h, &bias->tensor);
    mu_release(tp, h);
    return sum;
}

/* x within the limits of clip_qkv; releases x. Without a limit, x. */
static mu_tensor *clipped(const mu_attention_layer *a, mu_tape *tp, mu_tensor *x) {
    if (a->clip == 0) return x;
    mu_tensor *y = mu_clamp(tp, x, a->clip);
    mu_release(tp, x);
    return y;
}

/* Queries or keys: projection, norm, limits, rotary embedding. */
static mu_tensor *heads(const mu_attention_layer *a, mu_tape *tp, const mu_context *cx, mu_tensor *x, mu_param *w, mu_param *bias,
                        mu_param *norm, int64_t n_heads, mu_tensor *cos, mu_tensor *sin) {
    mu_tensor *h = project(tp, x, w, bias);
    if (norm) {
        mu_tensor *normed = mu_rmsnorm(tp, h, &norm->tensor, a->eps);
        mu_release(tp, h);
        h = normed;
    }
    h = clipped(a, tp, h);
    mu_tensor *rotated = mu_rope(tp, h, cos, sin, n_heads, cx->seq_len);
    mu_release(tp, h);
    return rotated;
}

mu_tensor *mu_attention_forward(const mu_attention_layer *a, mu_tape *tp, const mu_context *cx, mu_tensor *x,
                                mu_tensor *cos, mu_tensor *sin) {
    if (cx->cache) {
        int64_t past = cx->cache->length;
        cos = mu_tensor_rows(tp, cos, past, cos->shape[0] - past);
        sin = mu_tensor_rows(tp, sin, past, sin->shape[0] - past);
    }
    mu_tensor *q = heads(a, tp, cx, x, a->q, a->q_bias, a->q_norm, a->heads, cos, sin);
    mu_tensor *k = heads(a, tp, cx, x, a->k, a->k_bias, a->k_norm, a->kv_heads, cos, sin);
    mu_tensor *v = clipped(a, tp, project(tp, x, a->v, a->v_bias));
    if (cx->cache) mu_kv_cache_append(cx->cache, tp, a->layer, &k, &v);
    mu_tensor *mixed = mu_attention(tp, q, k, v, a->heads, a->kv_heads, cx->seq_len, a->scale);
    mu_release(tp, q);
    mu_release(tp, k);
    mu_release(tp, v);
    mu_tensor *y = mu_linear(tp, mixed, &a->o->tensor);
    mu_release(tp, mixed);
    return y;
}
