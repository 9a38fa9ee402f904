/* layers.h - the transformer, built from the ops of autograd/ and moe/.
 *
 *     x = embedding(tokens)
 *     each layer:  x += attention(norm(x));  x += feed_forward(norm(x))      feed-forward: dense or MoE
 *     loss = head(norm(x))
 *
 * Options add what families of models differ in: factors of the embedding, of the scores, of each += and of the logits, biases,
 * norms and limits of queries and keys. At their defaults none of these is computed.
 *
 * A layer is a configuration, its parameters, `init`, which declares them, and `forward`, which calls ops; the
 * tape provides backward. T = sequences * seq_len tokens. */
#ifndef MUSTER_LAYERS_H
#define MUSTER_LAYERS_H
#include "moe/moe.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/*       type   key              default    min  max  choices  use  help */
#define MU_OPTIONS_MODEL(O) \
    O(INT,    hidden_size,     "256",     1,   1048576, NULL, SHAPE, "width of the residual stream (D)") \
    O(INT,    num_layers,      "4",       1,   1024, NULL, SHAPE, "transformer layers (L)") \
    O(INT,    num_heads,       "4",       1,   4096, NULL, SHAPE, "query heads") \
    O(INT,    num_kv_heads,    "0",       0,   4096, NULL, SHAPE, "key and value heads, a divisor of num_heads; 0: num_heads") \
    O(INT,    head_dim,        "0",       0,   4096, NULL, SHAPE, "size of a head, even; 0: hidden_size / num_heads") \
    O(INT,    max_seq_len,     "256",     2,   16777216, NULL, FIXED, "maximum sequence length") \
    O(INT,    ffn_hidden_size, "0",       0,   1048576, NULL, SHAPE, "hidden size of dense feed-forward layers; 0: top_k * moe_ffn_hidden_size, or 4 * hidden_size in a dense model") \
    O(FLOAT,  rope_theta,      "10000",   1,   1e12, NULL, FIXED, "base of the rotary embedding frequencies") \
    O(BOOL,   qk_norm,         "true",    0,   0,  NULL, SHAPE, "RMSNorm on queries and keys") \
    O(CHOICE, qk_norm_over,    "head",    0,   0,  "head|all", SHAPE, "what that RMSNorm normalizes together: each head, or all heads of a token (OLMoE)") \
    O(BOOL,   qkv_bias,        "false",   0,   0,  NULL, SHAPE, "biases in the projections to queries, keys and values (Qwen2)") \
    O(FLOAT,  clip_qkv,        "0",       0,   1e6, NULL, FIXED, "queries, keys and values are limited to [-clip_qkv, clip_qkv] (OLMoE); 0: no limit") \
    O(FLOAT,  embedding_multiplier, "1",  1e-6, 1e6, NULL, FIXED, "the embedding's output is multiplied by this (Granite)") \
    O(FLOAT,  attention_multiplier, "0",  0,   1e6, NULL, FIXED, "the attention scores are multiplied by this (Granite); 0: 1 / sqrt(head_dim)") \
    O(FLOAT,  residual_multiplier, "1",   1e-6, 1e6, NULL, FIXED, "the outputs of attention and feed-forward are multiplied by this before they are added to the residual stream (Granite)") \
    O(FLOAT,  logits_scaling,  "1",       1e-6, 1e6, NULL, FIXED, "the logits are divided by this (Granite)") \
    O(BOOL,   tie_embeddings,  "false",   0,   0,  NULL, SHAPE, "the output head shares the embedding's weights") \
    O(INT,    vocab_size,      "0",       0,   2147483647, NULL, SHAPE, "rows of the embedding and the output head (V); 0: the tokenizer's vocabulary; more, for a model that has rows without a token: they take part in training and are never generated") \
    O(FLOAT,  rms_norm_eps,    "1e-6",    0,   1,  NULL, FIXED, "epsilon of RMSNorm, added to the mean square") \
    O(FLOAT,  init_std,        "0.02",    0,   10, NULL, FIXED, "standard deviation of initial weight matrices")

typedef struct { MU_OPTIONS_MODEL(MU_OPTION_FIELD) } mu_model_config;
enum { MU_QK_NORM_HEAD, MU_QK_NORM_ALL };
mu_model_config mu_model_config_default(void);
/* Derived values (num_kv_heads, head_dim and ffn_hidden_size that are 0). Local (config.c). */
void mu_model_config_resolve(mu_model_config *cfg, const mu_moe_config *moe);
/* Checks both sections, before or after resolving: ranges, combinations, size. Local. */
void mu_model_config_check(const mu_model_config *cfg, const mu_moe_config *moe, mu_complaints *c);

/* ------------------------------------------------------------------ attention (attention.c) */
typedef struct {
    int64_t heads, kv_heads;
    double eps, scale, clip;                        /* of the norms; of the scores, 0: 1/sqrt(head_dim); clip_qkv */
    int layer;
    mu_param *q, *k, *v, *o, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm;   /* NULL without qkv_bias, qk_norm */
} mu_attention_layer;
/* Declares parameters under /layers/<layer>/self_attn. Local. */
void mu_attention_init(mu_attention_layer *a, const mu_model_config *cfg, int layer, mu_params *ps, mu_group *group);
/* cos, sin: [max_seq_len, head_dim/2]. With cx->cache the tokens follow those in it. Returns [T, D]. Local. */
mu_tensor *mu_attention_forward(const mu_attention_layer *a, mu_tape *tp, const mu_context *cx, mu_tensor *x_TD, mu_tensor *cos,
                                mu_tensor *sin);

/* ------------------------------------------------------------------ dense feed-forward (ffn.c) */
typedef struct { mu_param *gate_FD, *up_FD, *down_DF; } mu_ffn;
void mu_ffn_init(mu_ffn *f, const mu_model_config *cfg, int layer, mu_params *ps, mu_group *group);     /* /layers/<layer>/mlp. Local */
mu_tensor *mu_ffn_forward(const mu_ffn *f, mu_tape *tp, mu_tensor *x_TD);                               /* Local */

/* ------------------------------------------------------------------ the model (transformer.c, config.c) */
typedef struct {
    mu_param *attention_norm, *ffn_norm;
    mu_attention_layer attention;
    bool is_moe;
    mu_moe moe;                 /* if is_moe */
    mu_ffn ffn;                 /* otherwise */
} mu_block;
typedef struct {
    mu_model_config cfg;        /* with derived values filled in */
    mu_moe_config moe_cfg;
    int64_t vocab_size;
    mu_params *params;          /* owned: group 0 shared (summed over the batch), group 1 expert (over the replicas) */
    mu_param *embed, *norm, *head;      /* head == embed when tied */
    mu_block *blocks;           /* [num_layers] */
    int n_moe, *moe_layers;     /* indices of the MoE layers */
    mu_placement *place;        /* NULL for a dense model */
    int32_t *domain_mask;       /* of moe.force_domains, see mu_model_name_domains; or NULL */
    mu_protection protection;   /* of the experts of the MoE layers; mu_protection_update has effect at once */
    mu_memory *rope;
    mu_tensor cos, sin;
} mu_model;
/* Resolves the configuration, declares, allocates and initialises parameters: the same model on every mesh. Fatal, with the
 * message of mu_model_config_check, for an invalid configuration. The caller frees it; `dev` and `mesh` must outlive it.
 * Local, but with the same arguments on every rank. */
mu_model *mu_model_new(const mu_model_config *cfg, const mu_moe_config *moe, int64_t vocab_size, uint64_t seed, mu_device *dev,
                       const mu_mesh *mesh);
void mu_model_free(mu_model *m);
/* Checkpoint state: selection biases, in [-bias_most, bias_most], then weights. Call mu_params_refresh after loading.
 * Local. */
void mu_model_state(mu_model *m, double bias_most, mu_state_visitor *v);
/* The domains that cx->domains numbers, for moe.force_domains: before this call it has no effect. Local. */
void mu_model_name_domains(mu_model *m, const mu_option_domains *domains);
bool mu_layer_is_moe(const mu_moe_config *moe, int layer);
/* Final normed activations [T, D] of tokens_T. routings: [n_moe], filled. With cx->cache, tokens_T continue the cached sequence
 * and are appended to the cache. Collective over the expert group. */
mu_tensor *mu_model_forward(const mu_model *m, mu_tape *tp, const mu_context *cx, mu_tensor *tokens_T, mu_routing *routings);
/* The same in parts, without a cache, for passes that begin between layers; routings: those of the whole model. The input of layer 0 (Local);
 * the input of layer `end` from that of layer `first`, which is released (Collective over the expert group); the final norm (Local), likewise. */
mu_tensor *mu_model_embed(const mu_model *m, mu_tape *tp, const mu_context *cx, mu_tensor *tokens_T, const mu_routing *routings);
mu_tensor *mu_model_layers(const mu_model *m, mu_tape *tp, const mu_context *cx, int first, int end, mu_tensor *x_TD, mu_routing *routings);
mu_tensor *mu_model_final_norm(const mu_model *m, mu_tape *tp, mu_tensor *x_TD);
/* The first layer whose output is not finite in a forward pass; -1: the embedding, num_layers: the final norm, num_layers + 1:
 * none. For the message of a failing run. Collective over the expert group. */
int mu_model_find_nonfinite(const mu_model *m, mu_tape *tp, const mu_context *cx, mu_tensor *tokens_T, mu_routing *routings);
/* scale * sum of cross-entropies (one F64 per reduction unit); *nll_T (if not NULL) receives each token's. Local. */
mu_tensor *mu_model_head_loss(const mu_model *m, mu_tape *tp, mu_tensor *x_TD, mu_tensor *targets_T, double scale, mu_tensor **nll_T);
mu_tensor *mu_model_logits(const mu_model *m, mu_tape *tp, mu_tensor *x_TD);        /* [T, V]. Local */

/* ------------------------------------------------------------------ the loss of a global batch (loss.c)
 * The training loss: cross-entropy plus the balancing terms, with the routing statistics that these need. One step:
 *
 *     mu_params_zero_grad(model->params), mu_loss_begin(loss);
 *     if (mu_loss_counts_first(loss))                      with several micro-batches and global_aux_loss
 *         for each micro-batch: mu_loss_count(loss, &cx, tokens), mu_tape_reset(tape);
 *     for each micro-batch: mu_backward(tape, mu_loss_forward(loss, &cx, tokens, targets)), mu_tape_reset(tape);
 *                                                          (of the last one: mu_backward_last(opt, tape, ...))
 *     mu_grads_reduce(opt);
 *     terms = mu_loss_terms(loss, &n), mu_grad_clip(opt, batch, max_norm, n, terms);
 *     mu_optimizer_step(opt, lr, mu_loss_loads(loss));
 *     v = mu_loss_read(loss, mu_grad_norm_on_device(opt), false);
 *     if (isfinite(v.loss + v.grad_norm)) mu_loss_end(loss, true); */
typedef struct {
    int64_t sequences, seq_len;     /* of a global batch; a multiple of micro_batches * ranks of `batch` */
    int64_t micro_batches;
    int domains;                    /* number of domains in the routing statistics; 0: one */
    int64_t window;                 /* steps of the window of expert loads (stats.window); 0: the default, 200 */
} mu_batch_shape;
typedef struct {
    mu_model *model;                /* these three are borrowed */
    mu_tape *tape;
    mu_comm *batch;                 /* the ranks that share a global batch */
    mu_batch_shape shape;
    int64_t tokens;                 /* of a global batch */
    int64_t units;                  /* reduction units of this rank's part of a micro-batch (mu_tape_set_reduction_unit) */
    int64_t micro;                  /* micro-batches since mu_loss_begin */
    bool has_gate;                  /* a layer had a domain gate since then */
    mu_routing *routings;           /* [n_moe], of the current micro-batch */
    mu_routing_stats *stats;
    mu_quantiles *quantiles;        /* of moe.balance: quantile_balancing; NULL without it */
} mu_loss;
/* The same on every rank. aux and z are means over MoE layers, without coefficients: a balanced load has aux 1. */
typedef struct {
    double loss, ce, aux, z;        /* nats per token; z is NAN with sigmoid scores without z-loss */
    double gate;                    /* mean over MoE layers of the domain gate's loss, without coefficient; NAN without one */
    double grad_norm;
    double dropped;                 /* fraction of assignments dropped by the capacity limit */
    bool stop;                      /* a rank called mu_loss_read with `stop` */
} mu_loss_values;
/* Call mu_tape_set_reduction_unit before, if it is used. The caller frees it. Local. */
mu_loss *mu_loss_new(mu_model *model, mu_tape *tp, mu_comm *batch, const mu_batch_shape *shape);
void mu_loss_free(mu_loss *l);
void mu_loss_begin(mu_loss *l);                         /* a new global batch. Local */
bool mu_loss_counts_first(const mu_loss *l);            /* whether a counting pass over all micro-batches is needed. Local */
/* The counting pass of one micro-batch: forward only, not recorded. Collective over the expert group and `batch`. */
void mu_loss_count(mu_loss *l, const mu_context *cx, mu_tensor *tokens_T);
/* Loss of one micro-batch (F64, one value per reduction unit), the argument of mu_backward. Collective likewise. */
mu_tensor *mu_loss_forward(mu_loss *l, const mu_context *cx, mu_tensor *tokens_T, mu_tensor *targets_T);
mu_mat mu_loss_loads(const mu_loss *l);                 /* I64 on the device: tokens per expert, for mu_optimizer_step. Local */
mu_mat mu_loss_terms(const mu_loss *l, int64_t *n);     /* F64 [*n] on the device: this rank's losses, for mu_grad_clip. Local */
/* Waits for the step; returns its values over all ranks. grad_norm: F64 on the device, or data NULL. Collective over `batch`. */
mu_loss_values mu_loss_read(mu_loss *l, mu_mat grad_norm, bool stop);
/* Completes a valid step: adds its loads to the window and updates the selection biases, those of expert_bias only with update_bias. Local. */
void mu_loss_end(mu_loss *l, bool update_bias);

/* Size of the whole model over all ranks: parameters, active parameters per token, tensors (each expert has its own), and
 * FLOPs per training token (3 x forward; of attention only the causal half). Local. */
typedef struct { int64_t total, active, tensors; double train_flops; } mu_model_size;
enum { MU_MODEL_TENSORS_MAX = 1 << 19 };    /* limit of a checkpoint's manifest */
mu_model_size mu_model_measure(const mu_model_config *cfg, const mu_moe_config *moe, int64_t vocab_size, int64_t seq_len);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
