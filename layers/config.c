/* config.c - the configuration sections model and moe together: derived values, checks, and the size of the model. */
#include "layers/internal.h"

MU_OPTION_DEFAULTS(mu_model_config, "model", MU_OPTIONS_MODEL)

void mu_model_config_resolve(mu_model_config *m, const mu_moe_config *moe) {
    if (m->num_kv_heads == 0) m->num_kv_heads = m->num_heads;
    if (m->head_dim == 0 && m->num_heads > 0) m->head_dim = m->hidden_size / m->num_heads;
    if (m->ffn_hidden_size == 0)
        m->ffn_hidden_size = moe->num_experts > 0 ? moe->top_k * moe->moe_ffn_hidden_size : 4 * m->hidden_size;
}

/* ------------------------------------------------------------------ checks
 * They check the user's values, before resolving: head_dim 0 means that it is not given. */

static void check_head_dim(const mu_model_config *m, mu_complaints *c) {
    static const char compared[] = "model.hidden_size model.num_heads model.head_dim";
    long long D = m->hidden_size, H = m->num_heads;
    if (m->head_dim == 0 && D % H)
        mu_complain(c, "model", "hidden_size", compared,
                    "%lld is not divisible by num_heads %lld; %lld or %lld would be, or give head_dim", D, H,
                    D < H ? H : D / H * H, D < H ? 2 * H : (D / H + 1) * H);
    else if (m->head_dim == 0 && D / H % 2)
        mu_complain(c, "model", "hidden_size", compared,
                    "%lld / num_heads %lld = %lld is odd; head_dim must be even for rotary position embedding", D,
                    H, D / H);
    else if (m->head_dim % 2)
        mu_complain(c, "model", "head_dim", compared, "%lld is odd; it must be even for rotary position embedding",
                    (long long)m->head_dim);
}

static void check_kv_heads(const mu_model_config *m, mu_complaints *c) {
    if (m->num_kv_heads == 0 || m->num_heads % m->num_kv_heads == 0) return;
    int64_t near = m->num_kv_heads < m->num_heads ? m->num_kv_heads : m->num_heads;
    while (m->num_heads % near) near--;
    mu_complain(c, "model", "num_kv_heads", "model.num_heads model.num_kv_heads",
                "%lld is not a divisor of num_heads %lld; %lld would be", (long long)m->num_kv_heads,
                (long long)m->num_heads, (long long)near);
}

static void check_qk_norm(const mu_model_config *m, mu_complaints *c) {
    if (!m->qk_norm && m->qk_norm_over != MU_QK_NORM_HEAD)
        mu_complain(c, "model", "qk_norm_over", "model.qk_norm model.qk_norm_over", "needs `qk_norm: true`");
}

/* There is an MoE layer, and first_k_dense is at most the number of layers. */
static void check_moe_layers(const mu_model_config *m, const mu_moe_config *moe, mu_complaints *c) {
    if (moe->num_experts == 0) return;
    if (moe->first_k_dense > m->num_layers) {
        mu_complain(c, "moe", "first_k_dense", "moe.first_k_dense moe.num_experts model.num_layers",
                    "%lld is more than model.num_layers %lld", (long long)moe->first_k_dense, (long long)m->num_layers);
        return;
    }
    for (int layer = 0; layer < m->num_layers; layer++)
        if (mu_layer_is_moe(moe, layer)) return;
    bool first = moe->first_k_dense >= m->num_layers;
    mu_complain(c, "moe", first ? "first_k_dense" : "moe_layer_freq",
                "moe.first_k_dense moe.moe_layer_freq moe.num_experts model.num_layers",
                "%lld leaves no MoE layer among %lld layers; a dense model has moe.num_experts: 0",
                (long long)(first ? moe->first_k_dense : moe->moe_layer_freq), (long long)m->num_layers);
}

/* ------------------------------------------------------------------ size
 * In floating point: the products of the largest values overflow 64 bits. Exact up to 2^53. */
typedef struct { double total, active, products, tensors; } counts;

static counts count(const mu_model_config *given, const mu_moe_config *moe, int64_t vocab_size) {
    mu_model_config m = *given;
    mu_model_config_resolve(&m, moe);
    double D = (double)m.hidden_size, wide = (double)(m.num_heads * m.head_dim),
           narrow = (double)(m.num_kv_heads * m.head_dim), embedding = (double)vocab_size * D;
    double qk_norm = m.qk_norm_over == MU_QK_NORM_ALL ? wide + narrow : 2 * (double)m.head_dim;
    double attention = 2 * D * (wide + narrow), vectors = 2 * D + (m.qk_norm ? qk_norm : 0) + (m.qkv_bias ? wide + 2 * narrow : 0);
    counts n = { .total = embedding + D + (m.tie_embeddings ? 0 : embedding), .products = embedding,
                 .tensors = m.tie_embeddings ? 2 : 3 };
    n.active = n.total;
    for (int layer = 0; layer < m.num_layers; layer++) {
        double ffn = 3 * D * (double)m.ffn_hidden_size, all = ffn;
        n.tensors += 9 + (m.qk_norm ? 2 : 0) + (m.qkv_bias ? 3 : 0); /* 2 norms, 4 of attention, 3 of the feed-forward */
        if (mu_layer_is_moe(moe, layer)) {
            double expert = 3 * D * (double)moe->moe_ffn_hidden_size;
            double gates = D * (double)(moe->num_experts + moe->shared_expert_gate), fixed = gates + expert * (double)moe->num_shared_experts;
            ffn = fixed + expert * (double)moe->top_k, all = fixed + expert * (double)moe->num_experts;
            n.tensors += 3 * (double)moe->num_experts - 2 + (moe->num_shared_experts ? 3 : 0) + moe->shared_expert_gate;
        }
        n.total += attention + vectors + all, n.active += attention + vectors + ffn, n.products += attention + ffn;
    }
    return n;
}

mu_model_size mu_model_measure(const mu_model_config *cfg, const mu_moe_config *moe, int64_t vocab_size,
                               int64_t seq_len) {
    counts n = count(cfg, moe, vocab_size);
    mu_model_config m = *cfg;
    mu_model_config_resolve(&m, moe);
    /* per token: q k^T and p v, of each only the causal half */
    double scores = 2.0 * (double)m.num_layers * (double)seq_len * (double)(m.num_heads * m.head_dim);
    return (mu_model_size){ (int64_t)n.total, (int64_t)n.active, (int64_t)n.tensors, 3.0 * (2.0 * n.products + scores) };
}

static void check_size(const mu_model_config *m, const mu_moe_config *moe, mu_complaints *c) {
    counts size = count(m, moe, 0);
    double n = size.total;
    if (n > 0x1p40)
        mu_complain(c, "model", "hidden_size",
                    "model.hidden_size model.num_layers model.num_heads model.num_kv_heads model.head_dim"
                    " model.ffn_hidden_size moe.num_experts moe.top_k moe.moe_ffn_hidden_size"
                    " moe.num_shared_experts moe.first_k_dense moe.moe_layer_freq",
                    "the model would have about %.2g parameters, more than 2^40; reduce"
                    " hidden_size, num_layers, head_dim, moe.num_experts or moe.moe_ffn_hidden_size",
                    n);
    else if (size.tensors > MU_MODEL_TENSORS_MAX)
        mu_complain(c, "moe", "num_experts",
                    "model.num_layers moe.num_experts moe.num_shared_experts moe.first_k_dense moe.moe_layer_freq",
                    "%lld in each MoE layer of %lld layers make %.2g tensors (three per expert), more than 2^19; use fewer,"
                    " larger experts or fewer layers",
                    (long long)moe->num_experts, (long long)m->num_layers, size.tensors);
}

void mu_model_config_check(const mu_model_config *m, const mu_moe_config *moe, mu_complaints *c) {
    bool sound = mu_moe_config_check(moe, c);
    sound = check_ranges(m, c) && sound;
    if (!sound) return;
    check_head_dim(m, c);
    check_kv_heads(m, c);
    check_qk_norm(m, c);
    check_moe_layers(m, moe, c);
    check_size(m, moe, c);
}
