/* tiny_model.h - a small model with everything in it: attention with shared key heads, MoE and dense layers,
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

static inline mu_context tiny_context(void) {
    static const int64_t samples[TINY_B] = { 0, 1, 2 };
    return (mu_context){
        .mode = MU_MODE_TRAIN, .n_sequences = TINY_B, .seq_len = TINY_S, .global_samples = samples
    };
}

/* Cross-entropy and every balancing term of one batch. The counts are those of this forward, or given. */
static inline mu_tensor *tiny_loss(mu_tape *tp, const mu_model *m, const int64_t *counts_or_null) {
    mu_context cx = tiny_context();
    mu_routing routings[TINY_LAYERS];
    int32_t *tokens = random_ints(1, TINY_T, TINY_V), *targets = random_ints(2, TINY_T, TINY_V);
    mu_tensor *x = mu_model_forward(m, tp, &cx, mu_tensor_ints(tp, MU_DTYPE_I32, TINY_T, tokens), routings);
    mu_tensor *loss =
        mu_model_head_loss(m, tp, x, mu_tensor_ints(tp, MU_DTYPE_I32, TINY_T, targets), 1.0 / TINY_T, NULL);
    mu_release(tp, x);
    for (int i = 0; i < m->n_moe; i++) {
        const mu_moe *moe = &m->blocks[m->moe_layers[i]].moe;
        const int64_t *given = counts_or_null ? counts_or_null + i * moe->E : NULL;
        mu_mat counts = mu_data(mu_tensor_ints(tp, MU_DTYPE_I64, moe->E, given));
        if (!given) mu_routing_count(tp, &routings[i], counts);
        mu_balance_counts c = { counts, counts, TINY_T, TINY_T };
        mu_balance b = mu_balance_loss(moe, tp, &cx, &routings[i], &c);
        if (b.loss) loss = mu_add(tp, loss, b.loss);
    }
    free(tokens);
    free(targets);
    return loss;
}

/* Forward, backward, clipping, AdamW. Returns the loss. */
static inline double tiny_step(mu_tape *tp, mu_model *m, mu_optimizer *o) {
    mu_tape_reset(tp);
    mu_params_zero_grad(m->params);
    mu_tensor *loss = tiny_loss(tp, m, NULL);
    double value = mu_tensor_scalar_get(loss);
    mu_backward(tp, loss);
    mu_grads_reduce(o);
    mu_grad_clip(o, comm_alone(), 1, 0, (mu_mat){ 0 });
    mu_optimizer_step(o, 1e-2, (mu_mat){ 0 });
    return value;
}

/* Every parameter of the model, one after another. Heap; *n values. */
static inline double *tiny_values(const mu_model *m, int64_t *n) {
    *n = 0;
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; u = mu_unit_next(m->params, u)) *n += u->count;
    double *x = mu_alloc((size_t)*n, sizeof *x), *at = x;
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; at += u->count, u = mu_unit_next(m->params, u))
        mu_reals_get(m->params->dev, m->params->dev->fine, mu_unit_data(u), u->count, at);
    return x;
}

#endif
