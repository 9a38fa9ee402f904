/* tiny_model.h - a small model with everything in it: attention with grouped key/value heads, MoE and dense layers,
 * a shared expert; and one training step of it without the program. */
#ifndef MUSTER_TESTS_TINY_MODEL_H
#define MUSTER_TESTS_TINY_MODEL_H
#include "gradcheck.h"
#include "layers/layers.h"
#include "optim/optim.h"

enum { TINY_V = 23, TINY_B = 3, TINY_S = 8, TINY_T = TINY_B * TINY_S, TINY_LAYERS = 2 };

static inline mu_model_config tiny_model_config(void) {
    return (mu_model_config){ .hidden_size = 12,
                              .num_layers = TINY_LAYERS,
                              .num_heads = 4,
                              .num_kv_heads = 2,
                              .head_dim = 4,
                              .max_seq_len = TINY_S,
                              .ffn_hidden_size = 10,
                              .rope_theta = 100,
                              .qk_norm = true,
                              .embedding_multiplier = 1,
                              .residual_multiplier = 1,
                              .logits_scaling = 1,
                              .rms_norm_eps = 1e-6,
                              .init_std = 0.3 };
}

static inline mu_moe_config tiny_moe_config(void) {
    return (mu_moe_config){ .num_experts = 4,
                            .top_k = 2,
                            .moe_ffn_hidden_size = 6,
                            .num_shared_experts = 1,
                            .moe_layer_freq = 1,
                            .norm_topk_prob = true,
                            .route_scale = 1,
                            .balance = MU_BALANCE_GLOBAL_AUX,
                            .aux_loss_coeff = 0.01,
                            .seq_aux_loss_coeff = 0.02,
                            .z_loss_coeff = 0.001 };
}

/* Every option that another family of models needs: Granite's multipliers, the biases and the shared expert's gate of Qwen2-MoE,
 * OLMoE's norm over all heads and its limits. */
static inline void tiny_options_of_others(mu_model_config *cfg, mu_moe_config *moe) {
    cfg->embedding_multiplier = 3, cfg->attention_multiplier = 0.7, cfg->residual_multiplier = 0.4, cfg->logits_scaling = 1.7;
    cfg->qkv_bias = true, cfg->qk_norm = true, cfg->qk_norm_over = MU_QK_NORM_ALL, cfg->clip_qkv = 0.8;
    moe->shared_expert_gate = moe->num_shared_experts > 0;
}

static inline mu_context tiny_context(void) {
    static const int64_t samples[TINY_B] = { 0, 1, 2 };
    return (mu_context){
        .mode = MU_MODE_TRAIN, .n_sequences = TINY_B, .seq_len = TINY_S, .global_samples = samples
    };
}

/* Training batches of the tiny model: global batches of one micro-batch. */
static inline mu_loss *tiny_loss_new(mu_model *m, mu_tape *tp) {
    return mu_loss_new(m, tp, comm_alone(), &(mu_batch_shape){ TINY_B, TINY_S, 1, 0, 0 });
}

/* Cross-entropy and every balancing term of one batch, always the same. */
static inline mu_tensor *tiny_loss(mu_loss *l) {
    mu_context cx = tiny_context();
    int32_t *tokens = random_ints(1, TINY_T, TINY_V), *targets = random_ints(2, TINY_T, TINY_V);
    mu_loss_begin(l);
    mu_tensor *loss = mu_loss_forward(l, &cx, mu_tensor_ints(l->tape, MU_DTYPE_I32, TINY_T, tokens),
                                      mu_tensor_ints(l->tape, MU_DTYPE_I32, TINY_T, targets));
    free(tokens);
    free(targets);
    return loss;
}

/* Forward, backward, clipping, AdamW. Returns the loss. */
static inline double tiny_step(mu_loss *l, mu_optimizer *o) {
    mu_tape_reset(l->tape);
    mu_params_zero_grad(l->model->params);
    mu_backward(l->tape, tiny_loss(l));
    mu_grads_reduce(o);
    mu_grad_clip(o, comm_alone(), 1, 0, (mu_mat){ 0 });
    mu_optimizer_step(o, 1e-2, (mu_mat){ 0 });
    return mu_loss_read(l, (mu_mat){ 0 }, false).loss;
}

/* Biases begin at zero, where a forward pass cannot tell whether they are added. */
static inline void tiny_spread_biases(mu_model *m) {
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; u = mu_unit_next(m->params, u)) {
        if (!strstr(u->name, "/bias")) continue;
        double *x = random_reals((uint32_t)u->global_index, u->count, 0.5);
        mu_reals_set(m->params->dev, m->params->dev->master, mu_unit_data(u), u->count, x);
        free(x);
    }
    mu_params_refresh(m->params);
}

/* Every parameter of the model, one after another. Heap; *n values. */
static inline double *tiny_values(const mu_model *m, int64_t *n) {
    *n = 0;
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; u = mu_unit_next(m->params, u)) *n += u->count;
    double *x = mu_alloc((size_t)*n, sizeof *x), *at = x;
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; at += u->count, u = mu_unit_next(m->params, u))
        mu_reals_get(m->params->dev, m->params->dev->master, mu_unit_data(u), u->count, at);
    return x;
}

#endif
