/* ffn.c - the dense feed-forward: y = down (silu(gate x) * (up x)), computed as one expert that gets every row. */
#include "layers/internal.h"

void mu_ffn_init(mu_ffn *f, const mu_model_config *cfg, int layer, mu_params *ps, mu_group *group) {
    int64_t D = cfg->hidden_size, F = cfg->ffn_hidden_size;
    f->gate_FD = mu_layer_param(ps, group, layer, "mlp/gate_proj", F, D, cfg->init_std);
    f->up_FD = mu_layer_param(ps, group, layer, "mlp/up_proj", F, D, cfg->init_std);
    f->down_DF = mu_layer_param(ps, group, layer, "mlp/down_proj", D, F, cfg->init_std);
}

mu_tensor *mu_ffn_forward(const mu_ffn *f, mu_tape *tp, mu_tensor *x) {
    mu_plan *plan = mu_plan_dense(tp, x->shape[0]);
    mu_tensor *y = mu_experts(tp, x, NULL, &f->gate_FD->tensor, &f->up_FD->tensor, &f->down_DF->tensor, plan);
    mu_plan_release(tp, plan);
    return y;
}
