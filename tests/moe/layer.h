/* layer.h - one MoE layer on its own for tests: parameters, an input that is also a parameter, and a tape. */
#ifndef MUSTER_TESTS_MOE_LAYER_H
#define MUSTER_TESTS_MOE_LAYER_H
#include "gradcheck.h"
#include "moe/moe.h"

typedef struct {
    mu_device *dev;
    mu_params *ps;
    mu_param *x_TD;
    mu_moe_config cfg;
    mu_placement *place;
    mu_moe moe;
    mu_protection protection;   /* for moe.protection, of tests that call layer_protect */
    mu_tape *tp;
    mu_context cx;
    mu_routing routing;         /* of the last forward */
} layer;

static inline mu_moe_config layer_config(int64_t E, int64_t K, int64_t F) {
    return (mu_moe_config){ .num_experts = E,
                            .top_k = K,
                            .moe_ffn_hidden_size = F,
                            .moe_layer_freq = 1,
                            .norm_topk_prob = true,
                            .route_scale = 1,
                            .balance = MU_BALANCE_NONE,
                            .aux_loss_coeff = 0.01,
                            .seq_aux_loss_coeff = 0.02 };
}

/* On `mesh`, for `sequences` of S tokens on this rank; values depend on the names of the parameters only. */
static inline layer *layer_new(const char *device, const mu_mesh *mesh, mu_moe_config cfg, int64_t sequences,
                               int64_t S, int64_t D) {
    layer *l = mu_alloc(1, sizeof *l);
    l->dev = mu_device_open(device);
    l->cfg = cfg;
    l->ps = mu_params_new(l->dev);
    mu_group *shared = mu_params_group(l->ps, "shared", mesh->batch),
             *expert = mu_params_group(l->ps, "expert", mesh->replica);
    mu_params_group(l->ps, "input", NULL);
    l->place = mu_placement_new(mesh->expert, (int)cfg.num_experts);
    mu_moe_init(&l->moe, &l->cfg, D, 0.5, 0, l->ps, shared, expert, mesh->expert, l->place);
    mu_param_desc x = { .group = l->ps->groups[2],
                        .name = "x",
                        .n_dims = 2,
                        .shape = { sequences * S, D },
                        .std = 1,
                        .layer = -1 };
    l->x_TD = mu_params_add(l->ps, &x);
    mu_params_alloc(l->ps);
    mu_params_init(l->ps, 21);
    l->tp = mu_tape_new(l->dev);
    l->cx = (mu_context){ .mode = MU_MODE_TRAIN, .n_sequences = sequences, .seq_len = S };
    return l;
}

/* The layer looks into l->protection, which protects none so far. */
static inline void layer_protect(layer *l) {
    mu_protection_init(&l->protection, 1, (int)l->cfg.num_experts);
    l->moe.protection = &l->protection;
}

static inline void layer_free(layer *l) {
    mu_tape_free(l->tp);
    mu_moe_free(&l->moe);
    mu_protection_free(&l->protection);
    mu_params_free(l->ps);
    mu_placement_free(l->place);
    mu_device_close(l->dev);
    free(l);
}

static inline mu_tensor *layer_forward(layer *l, mu_tape *tp) {
    return mu_moe_forward(&l->moe, tp, &l->cx, &l->x_TD->tensor, &l->routing);
}

/* Assignments of each expert in the last forward, over all sequences. Heap. */
static inline int64_t *layer_counts(const layer *l) {
    int64_t E = l->moe.E, n = mu_count(l->routing.counts_SE);
    int64_t *rows = mu_alloc((size_t)n, sizeof *rows), *sum = mu_alloc((size_t)E, sizeof *sum);
    mu_tensor_read(l->routing.counts_SE, rows);
    for (int64_t i = 0; i < n; i++) sum[i % E] += rows[i];
    free(rows);
    return sum;
}

/* Assignments that capacity dropped in the last forward. */
static inline int64_t layer_dropped(layer *l) {
    const mu_plan *p = l->routing.plan;
    int64_t kept = p->sent;
    if (!p->all_to_all) mu_device_read(l->dev, &kept, mu_mat_values(mu_data(p->offsets), p->experts).data, sizeof kept);
    return mu_count(l->routing.ids_TK) - kept;
}

/* Every value of w with the other sign. */
static inline void negate(mu_tensor *w) {
    int64_t n = mu_count(w);
    double *x = mu_alloc((size_t)n, sizeof *x);
    mu_tensor_get(w, x);
    for (int64_t i = 0; i < n; i++) x[i] = -x[i];
    mu_tensor_set(w, x);
    free(x);
}

#endif
