/* ffn.c - the dense feed-forward: y = down (silu(gate x) * (up x)), which is one expert that takes every row. */
#include "layers/layers.h"

static mu_param *add(mu_params *ps, mu_group *group, int layer, const char *what, int64_t out, int64_t in,
                     double std) {
    char name[96];
    snprintf(name, sizeof name, "/layers/%d/mlp/%s/weight", layer, what);
    mu_param_desc d = { .group = group,
                        .name = name,
                        .n_dims = 2,
                        .shape = { out, in },
                        .std = std,
                        .decay = true,
                        .layer = layer };
    return mu_params_add(ps, &d);
}

void mu_ffn_init(mu_ffn *f, const mu_model_config *cfg, int layer, mu_params *ps, mu_group *group) {
    int64_t D = cfg->hidden_size, F = cfg->ffn_hidden_size;
    f->gate_FD = add(ps, group, layer, "gate_proj", F, D, cfg->init_std);
    f->up_FD = add(ps, group, layer, "up_proj", F, D, cfg->init_std);
    f->down_DF = add(ps, group, layer, "down_proj", D, F, cfg->init_std);
}

mu_tensor *mu_ffn_forward(const mu_ffn *f, mu_tape *tp, mu_tensor *x) {
    return mu_experts(tp, x, &f->gate_FD->tensor, &f->up_FD->tensor, &f->down_DF->tensor,
                      mu_plan_dense(tp, x->shape[0]));
}
