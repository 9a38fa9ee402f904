/* attention.c - y = softmax(scale q k^T, causal) v for H query heads that share G key/value heads
 * (grouped-query attention, Ainslie et al. 2023), block by block with the softmax's running maximum
 * (Dao et al. 2022), so that no [S, S] matrix exists. Kept for backward: y and the log-sum-exp of each row.
 * With more keys than queries, the first keys come before the first query (forward only). */
#include "autograd/autograd.h"

#include <math.h>

enum { Q, K, V }; /* in[] */
enum { Y, LSE }; /* out[] */

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    dev->k->attention_fwd(dev, n->extra, mu_data(n->in[Q]), mu_data(n->in[K]), mu_data(n->in[V]),
                          mu_data(n->out[Y]), mu_data(n->out[LSE]));
}

/* The kernel makes all three gradients at once; one that is not needed goes to scratch. */
static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *scratch[3] = { NULL };
    mu_mat d[3];
    for (int i = 0; i < 3; i++) {
        if (!n->in[i]->needs_grad) {
            scratch[i] = mu_tensor_like(tp, n->in[i]);
            dev->k->fill(dev, mu_count(scratch[i]), 0.0, mu_data(scratch[i]));
        }
        d[i] = scratch[i] ? mu_data(scratch[i]) : mu_grad(tp, n->in[i]);
    }
    dev->k->attention_bwd(dev, n->extra, mu_data(n->in[Q]), mu_data(n->in[K]), mu_data(n->in[V]),
                          mu_data(n->out[Y]), mu_data(n->out[LSE]), mu_grad_of(n->out[Y]), d[0], d[1], d[2]);
    for (int i = 0; i < 3; i++) mu_release(tp, scratch[i]);
}

static const mu_op op_attention = {
    .name = "attention", .forward = forward, .backward = backward,
    .keeps_in = MU_BIT(Q) | MU_BIT(K) | MU_BIT(V), .keeps_out = MU_BIT(Y) | MU_BIT(LSE), .saved = MU_BIT(LSE)
};

mu_tensor *mu_attention(mu_tape *tp, mu_tensor *q, mu_tensor *k, mu_tensor *v, int64_t heads,
                        int64_t kv_heads, int64_t seq_len, double scale) {
    unsigned compute = 1u << mu_tape_device(tp)->compute;
    mu_tensor_check(q, "attention: q", 2, compute);
    mu_tensor_check(k, "attention: k", 2, compute);
    mu_tensor_check(v, "attention: v", 2, compute);
    MU_CHECK(heads >= 1 && kv_heads >= 1 && seq_len >= 1,
             "attention: %lld heads, %lld key/value heads, sequence length %lld; each must be at least 1",
             (long long)heads, (long long)kv_heads, (long long)seq_len);
    MU_CHECK(isfinite(scale) && scale >= 0, "attention: scale %g is not finite or negative", scale);
    int64_t T = q->shape[0], d = q->shape[1] / heads;
    MU_CHECK(d * heads == q->shape[1] && d * kv_heads == k->shape[1] && k->shape[1] == v->shape[1] &&
                 heads % kv_heads == 0,
             "attention: q of width %lld with %lld heads does not match k and v of width %lld with %lld heads", (long long)q->shape[1],
             (long long)heads, (long long)k->shape[1], (long long)kv_heads);
    MU_CHECK(T % seq_len == 0, "attention: %lld tokens are not a multiple of the sequence length %lld", (long long)T,
             (long long)seq_len);
    int64_t B = T / seq_len, past = B ? k->shape[0] / B - seq_len : 0, keys = v->shape[0];
    MU_CHECK(keys == k->shape[0] && keys == B * (past + seq_len) && past >= 0,
             "attention: %lld keys and %lld values do not match %lld sequences of %lld tokens", (long long)k->shape[0],
             (long long)keys, (long long)B, (long long)seq_len);
    MU_CHECK(past == 0 || !mu_tape_recording(tp),
             "attention: %lld keys before the first query, but backward needs as many keys as queries", (long long)past);
    mu_attention_shape *s = mu_tape_alloc(tp, sizeof *s);
    *s = (mu_attention_shape){ B, seq_len, heads, kv_heads, d, scale > 0 ? scale : 1.0 / sqrt((double)d), past };
    mu_tensor *y = mu_tensor_like(tp, q), *lse = mu_tensor_2d_master(tp, heads, T);
    return mu_apply(tp, (mu_node){ .op = &op_attention, .in = { q, k, v }, .out = { y, lse }, .extra = s });
}
