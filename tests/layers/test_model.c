/* test_model.c - the whole transformer: its parameters and size, its gradient end to end, and that no
 * position sees a later one. */
#include "tiny_model.h"
#include "ref_device.h"
#include "stops.h"

static mu_model *new_model(const mu_model_config *cfg, const mu_moe_config *moe) {
    return mu_model_new(cfg, moe, TINY_V, 5, dev, mesh_alone());
}

/* ---------------------------------------------------------------- sizes and places */
/* Sums over the units that exist: all of them, and those that one token uses. */
static void check_counts(const mu_model_config *cfg, const mu_moe_config *moe) {
    mu_model *m = new_model(cfg, moe);
    int64_t total = 0, per_expert = 0;
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; u = mu_unit_next(m->params, u)) {
        total += u->count;
        if (u->expert >= 0) per_expert += u->count;
    }
    mu_model_size size = mu_model_measure(cfg, moe, TINY_V, TINY_S);
    assert_int_equal(size.total, total);
    assert_int_equal(size.tensors, m->params->n_global_units);
    if (moe->num_experts) per_expert = per_expert / moe->num_experts * (moe->num_experts - moe->top_k);
    assert_int_equal(size.active, total - per_expert);
    mu_model_free(m);
}

static void counts_are_those_of_the_units(void **state) {
    (void)state;
    for (int variant = 0; variant < 64; variant++) {
        mu_model_config cfg = tiny_model_config();
        mu_moe_config moe = tiny_moe_config();
        cfg.num_layers = 1 + variant % 4;
        cfg.tie_embeddings = variant & 4, cfg.qk_norm = variant & 8;
        moe.num_shared_experts = variant & 16 ? 2 : 0, moe.first_k_dense = variant & 32 ? 1 : 0;
        moe.moe_layer_freq = 1 + variant % 3;
        if (variant & 8) tiny_options_of_others(&cfg, &moe);
        bool some = false; /* a model whose experts have no layer is refused */
        for (int layer = 0; layer < cfg.num_layers; layer++) some |= mu_layer_is_moe(&moe, layer);
        if (some) check_counts(&cfg, &moe);
        moe.num_experts = 0;
        check_counts(&cfg, &moe);
    }
}

/* One layer by hand: D 12, 4 heads of 4 over 2 key heads, S 8, V 23, dense F 10. Products of one token:
 * q, o 2*12*16, k, v 2*12*8, feed-forward 3*12*10, head 23*12; scores: 16 wide, 4.5 keys on average taken as 4. */
static void flops_by_hand(void **state) {
    (void)state;
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = { 0 };
    cfg.num_layers = 1;
    double products = 2 * 12 * 16 + 2 * 12 * 8 + 3 * 12 * 10 + 23 * 12;
    assert_true(mu_model_measure(&cfg, &moe, TINY_V, TINY_S).train_flops ==
                3 * (2 * products + 2 * 2 * 16 * 4));
    mu_moe_config with = tiny_moe_config(), without = with;
    with.shared_expert_gate = true; /* one more product of the width of x */
    assert_true(mu_model_measure(&cfg, &with, TINY_V, TINY_S).train_flops -
                    mu_model_measure(&cfg, &without, TINY_V, TINY_S).train_flops == 3 * 2 * 12);
}

static void moe_layers_stand_where_they_should(void **state) {
    (void)state;
    mu_model_config cfg = tiny_model_config();
    cfg.num_layers = 6;
    static const struct {
        int64_t freq, dense;
        const char *wanted;
    } cases[] = {
        { 1, 0, "111111" }, { 2, 0, "010101" }, { 3, 0, "001001" }, { 1, 2, "001111" },
        { 2, 3, "000101" },
    };
    for (int c = 0; c < 5; c++) {
        mu_moe_config moe = tiny_moe_config();
        moe.moe_layer_freq = cases[c].freq, moe.first_k_dense = cases[c].dense;
        mu_model *m = new_model(&cfg, &moe);
        int n = 0;
        for (int layer = 0; layer < 6; layer++) {
            char name[64];
            bool is_moe = cases[c].wanted[layer] == '1';
            assert_int_equal(mu_layer_is_moe(&moe, layer), is_moe);
            assert_int_equal(m->blocks[layer].is_moe, is_moe);
            if (is_moe) assert_int_equal(m->moe_layers[n++], layer);
            snprintf(name, sizeof name, "/layers/%d/mlp/gate/weight", layer);
            assert_int_equal(mu_params_find(m->params, name) != NULL, is_moe);
            snprintf(name, sizeof name, "/layers/%d/mlp/down_proj/weight", layer);
            assert_int_equal(mu_params_find(m->params, name) != NULL, !is_moe);
        }
        assert_int_equal(m->n_moe, n);
        mu_model_free(m);
    }
}

static void units_are_named_once(void **state) {
    (void)state;
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    tiny_options_of_others(&cfg, &moe);
    mu_model *m = new_model(&cfg, &moe);
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; u = mu_unit_next(m->params, u)) {
        assert_ptr_equal(mu_params_find(m->params, u->name), u);
        bool vector = strstr(u->name, "norm") || strstr(u->name, "/bias");
        bool gate = strstr(u->name, "/mlp/gate/weight") || strstr(u->name, "/mlp/shared_expert_gate/weight");
        assert_int_equal(u->param->desc.decay, !vector && !gate);
        assert_int_equal(u->param->desc.group == m->params->groups[1], u->expert >= 0);
        assert_int_equal(u->load, u->expert < 0 ? -1 : u->param->desc.layer * moe.num_experts + u->expert);
    }
    assert_non_null(mu_params_find(m->params, "/layers/1/mlp/shared_experts/up_proj/weight"));
    assert_non_null(mu_params_find(m->params, "/layers/0/self_attn/q_norm/weight"));
    assert_int_equal(mu_params_find(m->params, "/layers/1/self_attn/k_norm/weight")->count, 2 * 4);
    assert_int_equal(mu_params_find(m->params, "/layers/1/self_attn/q_proj/bias")->count, 4 * 4);
    assert_int_equal(mu_params_find(m->params, "/layers/1/self_attn/v_proj/bias")->count, 2 * 4);
    assert_int_equal(mu_params_find(m->params, "/layers/0/mlp/shared_expert_gate/weight")->count, 12);
    assert_null(mu_params_find(m->params, "/layers/2/mlp/gate/weight"));
    mu_model_free(m);
}

/* ---------------------------------------------------------------- configurations of a library user */
/* Defaults make a model: derived values are filled in, in the model's copy. */
static void defaults_make_a_model(void **state) {
    (void)state;
    mu_device *shape = mu_device_open("shape");
    for (int variant = 0; variant < 4; variant++) {
        mu_model_config cfg = mu_model_config_default();
        mu_moe_config moe = mu_moe_config_default();
        if (variant & 1) moe.score_func = MU_MOE_SCORE_SIGMOID;
        if (variant & 2) moe.num_experts = 0;
        mu_model *m = mu_model_new(&cfg, &moe, TINY_V, 5, shape, mesh_alone());
        assert_int_equal(m->cfg.num_kv_heads, 4);
        assert_int_equal(m->cfg.head_dim, 64);
        assert_int_equal(m->cfg.ffn_hidden_size, variant & 2 ? 1024 : 2 * 512);
        assert_true(m->moe_cfg.z_loss_coeff == 0.001);
        mu_model_size raw = mu_model_measure(&cfg, &moe, TINY_V, 32), filled = mu_model_measure(&m->cfg, &m->moe_cfg, TINY_V, 32);
        assert_int_equal(raw.total, filled.total);
        assert_true(raw.total > 0 && raw.train_flops == filled.train_flops);
        mu_model_free(m);
    }
    mu_device_close(shape);
}

static void unsound_configurations_stop(void **state) {
    (void)state;
    mu_model_config good = tiny_model_config(), cfg;
    mu_moe_config good_moe = tiny_moe_config(), moe;
#define MODEL_STOPS(words, ...) \
    cfg = good, moe = good_moe; \
    __VA_ARGS__; \
    STOPS(words, new_model(&cfg, &moe))
    MODEL_STOPS("model.num_heads: 0 is out of range; allowed: an integer from 1 to 4096", cfg.num_heads = 0);
    MODEL_STOPS("model.head_dim: -2 is out of range", cfg.head_dim = -2);
    MODEL_STOPS("model.init_std: nan is out of range", cfg.init_std = NAN);
    MODEL_STOPS("model.hidden_size: 12 is not divisible by num_heads 5; 10 or 15", cfg.head_dim = 0, cfg.num_heads = 5, cfg.num_kv_heads = 0);
    MODEL_STOPS("model.head_dim: 5 is odd", cfg.head_dim = 5);
    MODEL_STOPS("model.num_kv_heads: 3 is not a divisor", cfg.num_kv_heads = 3);
    MODEL_STOPS("model.qk_norm_over: needs `qk_norm: true`", cfg.qk_norm = false, cfg.qk_norm_over = MU_QK_NORM_ALL);
    MODEL_STOPS("model.logits_scaling: 0 is out of range", cfg.logits_scaling = 0);
    MODEL_STOPS("moe.shared_expert_gate: needs shared experts", moe.num_shared_experts = 0, moe.shared_expert_gate = true);
    MODEL_STOPS("moe.top_k: 5 is more than num_experts 4", moe.top_k = 5);
    MODEL_STOPS("moe.top_k: 0 is out of range", moe.top_k = 0);
    MODEL_STOPS("moe.num_experts: -1 is out of range", moe.num_experts = -1);
    MODEL_STOPS("moe.moe_layer_freq: 0 is out of range", moe.moe_layer_freq = 0);
    MODEL_STOPS("moe.score_func: choice 7 is out of range; allowed: softmax or sigmoid", moe.score_func = 7);
    MODEL_STOPS("moe.balance: choice 64", moe.balance = 64);
    MODEL_STOPS("moe.first_k_dense: 3 is more than model.num_layers 2", moe.first_k_dense = 3);
    MODEL_STOPS("leaves no MoE layer among 2 layers", moe.moe_layer_freq = 3);
    MODEL_STOPS("more than 2^19", cfg.num_layers = 1024, moe.num_experts = 65536);
    MODEL_STOPS("more than 2^40", cfg.hidden_size = 1048576, moe.moe_ffn_hidden_size = 1048576);
    STOPS("vocabulary of 0 ids", mu_model_new(&good, &good_moe, 0, 5, dev, mesh_alone()));
    STOPS("device or mesh is NULL", mu_model_new(&good, &good_moe, TINY_V, 5, dev, NULL));
    mu_error e = { 0 };         /* the same without the end of the program, all at once */
    mu_complaints found = { .e = &e };
    cfg = good, moe = good_moe, cfg.head_dim = 3, moe.top_k = 9;
    mu_model_config_check(&cfg, &moe, &found);
    assert_int_equal(found.status, MU_STATUS_CONFIG);
    assert_non_null(strstr(e.text, "moe.top_k: 9 is more than num_experts 4\nmodel.head_dim: 3 is odd"));
}

/* Places, devices, load statistics and communicators that cannot be. */
static void unsound_arguments_stop(void **state) {
    (void)state;
    mu_load_window r;
    STOPS("a device needs a kind", mu_device_open(NULL));
    STOPS("placement of 4 experts: the expert group is NULL", mu_placement_new(NULL, 4));
    STOPS("5 experts are not a multiple of 2 ranks", mu_placement_new(&(mu_comm){ .size = 2 }, 5));
    STOPS("load window: -1 layers with 4 experts", mu_load_window_init(&r, -1, 4, 20));
    STOPS("load window: 2 layers with -4 experts", mu_load_window_init(&r, 2, -4, 20));
    STOPS("load window: length is 19 steps, must be at least 20", mu_load_window_init(&r, 2, 4, 19));
    STOPS("load: counts of 4 experts are NULL", mu_load_of(NULL, 4));
    STOPS("load: counts of 0 experts", mu_load_of((int64_t[]){ 1 }, 0));
    STOPS("expert 1 has -3 tokens, must not be negative", mu_load_of((int64_t[]){ 1, -3 }, 2));
    if (mu_dist_has_mpi()) STOPS("a communicator cannot be created before MPI_Init", mu_mesh_open(NULL, 1));
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    mu_model *m = new_model(&cfg, &moe);
    mu_unit *u = mu_params_find(m->params, "/norm/weight");
    STOPS("learning-rate factor -1 for /norm/weight", mu_unit_set_lr_factor(u, -1));
    STOPS("learning-rate factor nan for /norm/weight", mu_unit_set_lr_factor(u, NAN));
    STOPS("mu_unit_freeze: unit is NULL", mu_unit_freeze(NULL, true));
    mu_model_free(m);
}

/* Invalid arguments of a forward pass stop with a message before a kernel sees them. */
static void unsound_batches_stop(void **state) {
    (void)state;
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    mu_model *m = new_model(&cfg, &moe);
    mu_tape *tp = mu_tape_new(dev);
    mu_routing routings[TINY_LAYERS];
    int32_t *ids = random_ints(1, TINY_T, TINY_V);
#define TOKENS mu_tensor_ints(tp, MU_DTYPE_I32, TINY_T, ids)
#define FORWARD_STOPS(words, tokens, ...) \
    do { \
        mu_context cx = tiny_context(); \
        mu_tape_reset(tp); \
        __VA_ARGS__; \
        STOPS(words, mu_model_forward(m, tp, &cx, tokens, routings)); \
    } while (0)
    int32_t kept = ids[3];
    ids[3] = TINY_V;
    FORWARD_STOPS(", 23], expected [0, 22]", TOKENS, );
    STOPS("head: targets: ids in [", mu_model_head_loss(m, tp, mu_tensor_2d(tp, TINY_T, 12), TOKENS, 1, NULL));
    ids[3] = -1;
    FORWARD_STOPS("embedding: ids in [-1, ", TOKENS, );
    ids[3] = kept;
    STOPS("head: scale nan is not finite", mu_model_head_loss(m, tp, mu_tensor_2d(tp, TINY_T, 12), TOKENS, NAN, NULL));
    FORWARD_STOPS("model: tokens is missing", NULL, );
    FORWARD_STOPS("model: tokens has unexpected dtype i64", mu_tensor_ints(tp, MU_DTYPE_I64, TINY_T, NULL), );
    FORWARD_STOPS("24 tokens do not match 2 sequences of 8", TOKENS, cx.n_sequences = 2);
    FORWARD_STOPS("24 tokens do not match 3 sequences of 0", TOKENS, cx.seq_len = 0);
    FORWARD_STOPS("sequences of 24 tokens are longer than max_seq_len 8", TOKENS, cx.n_sequences = 1, cx.seq_len = TINY_T);
    int32_t too_few[] = { 0, 0, 1, 0, 0, 0, 1, 0 };
    FORWARD_STOPS("layer 0: expert_mask allows 1 of 4 experts and requires 0, but top_k is 2", TOKENS,
                  cx.expert_mask = ((mu_expert_mask){ too_few, 1 }));
    int32_t too_many[] = { 1, 1, 1, 1, 2, 2, 2, 1 };
    FORWARD_STOPS("layer 1: expert_mask allows 4 of 4 experts and requires 3, but top_k is 2", TOKENS,
                  cx.expert_mask = ((mu_expert_mask){ too_many, 1 }));
    mu_context cx = tiny_context();
    STOPS("routings is NULL", mu_model_forward(m, tp, &cx, TOKENS, NULL));
    mu_tensor *x = mu_tensor_2d(tp, 4, 12);
    mu_tensor *w = &m->blocks[0].attention.q->tensor;
    STOPS("linear: w is missing", mu_linear(tp, x, NULL));
    STOPS("linear: x has 1 dimension, not 2", mu_linear(tp, mu_tensor_scalar(tp), w));
    STOPS("attention: 0 heads", mu_attention(tp, x, x, x, 0, 1, 4, 0));
    STOPS("sequence length 3", mu_rope(tp, x, (mu_tensor *)(uintptr_t)&m->cos, (mu_tensor *)(uintptr_t)&m->sin, 3, 3));
    STOPS("rmsnorm: w has 2 dimensions", mu_rmsnorm(tp, x, w, 1e-6));
    STOPS("dimension 0 is -4", mu_tensor_2d(tp, -4, 2));
    mu_route_shape shape = { .T = 4, .E = 12, .K = 13 };
    STOPS("route: 13 of 12 experts", mu_route(tp, x, NULL, NULL, &shape, 4, (mu_mat){ 0 }, 0));
    mu_release(tp, x);
    STOPS("linear: input 0 has no data: it was released", mu_linear(tp, x, w));
    mu_device *other = mu_device_open("cpu");
    mu_tape *far = mu_tape_new(other);
    STOPS("embedding: input 0 is on another device (ref) than the tape", mu_embedding(far, mu_tensor_ints(far, MU_DTYPE_I32, 4, ids), &m->embed->tensor));
    mu_tape_free(far);
    mu_device_close(other);
    mu_optim_config optim = mu_optim_config_default();
    optim.betas[1] = 1;
    STOPS("optim.betas: [0.9, 1] is out of range", mu_optimizer_new(&mu_rule_adamw, &optim, m->params));
    optim = mu_optim_config_default(), optim.kind = 9;
    STOPS("optim.kind 9 of 1 update rules", mu_rule_of(&optim));
    STOPS("mu_learning_rate: step 0 of 10 steps", mu_learning_rate(&optim, 0, 10));
    free(ids);
    mu_tape_free(tp);
    mu_model_free(m);
}

/* Ranks that are planned have sizes and places, and cannot communicate. */
static void planned_ranks_do_not_talk(void **state) {
    (void)state;
    mu_mesh *mesh = mu_mesh_planned(5, 8, 4);
    assert_int_equal(mesh->dp, 2);
    assert_int_equal(mesh->expert->rank, 1);
    assert_int_equal(mesh->expert->size, 4);
    assert_int_equal(mesh->replica->rank, 1);
    assert_int_equal(mesh->replica->size, 2);
    int64_t value = 0;
    if (mu_dist_has_mpi()) STOPS("of 8 ranks cannot communicate", mu_all_reduce(mesh->world, MU_REDUCE_SUM, MU_DTYPE_I64, &value, 1));
    STOPS("ep 3 does not divide 8 ranks", mu_mesh_planned(0, 8, 3));
    mu_mesh_close(mesh);
}

/* ---------------------------------------------------------------- gradient end to end */
static mu_tensor *whole_loss(mu_tape *tp, void *arg) {
    (void)tp;
    return tiny_loss(arg);
}

/* global_aux_loss against given counts: those of a batch before. */
static void check_model(mu_model_config cfg, mu_moe_config moe) {
    static const int64_t counts[TINY_LAYERS * 4] = { 12, 20, 4, 12, 30, 0, 10, 8 };
    moe.global_aux_counts = MU_MOE_COUNTS_PREVIOUS;
    mu_model *m = new_model(&cfg, &moe);
    for (int i = 0; i < m->n_moe && moe.balance & MU_BALANCE_BIAS; i++)
        for (int j = 0; j < 4; j++) m->blocks[m->moe_layers[i]].moe.bias[j] = 0.1 * (j - 1);
    tiny_spread_biases(m);
    mu_tape *tp = mu_tape_new(dev);
    mu_loss *l = tiny_loss_new(m, tp);
    mu_load_window_add(&l->stats->window, counts);
    gradcheck(m->params, tp, whole_loss, l, 6);
    mu_loss_free(l);
    mu_tape_free(tp);
    mu_model_free(m);
}

static void gradients(void **state) {
    (void)state;
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    check_model(cfg, moe);
    cfg.tie_embeddings = true;
    moe.balance = MU_BALANCE_AUX | MU_BALANCE_SEQ_AUX;
    check_model(cfg, moe);
    moe.score_func = MU_MOE_SCORE_SIGMOID, moe.route_scale = 2.5, moe.first_k_dense = 1, moe.z_loss_coeff = 0.01;
    moe.balance = MU_BALANCE_BIAS | MU_BALANCE_SEQ_AUX;
    check_model(cfg, moe);
    moe.capacity_factor = 0.75, cfg.qk_norm = false, cfg.num_kv_heads = 4;
    check_model(cfg, moe);
}

static void gradients_of_other_families(void **state) {
    (void)state;
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    tiny_options_of_others(&cfg, &moe);
    check_model(cfg, moe);
    cfg.tie_embeddings = true, cfg.qk_norm = false, cfg.qk_norm_over = MU_QK_NORM_HEAD, moe.norm_topk_prob = false;
    check_model(cfg, moe);
}

static void gradients_of_a_dense_model(void **state) {
    (void)state;
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = { .num_experts = 0, .moe_layer_freq = 1 };
    check_model(cfg, moe);
}

/* ---------------------------------------------------------------- forward */
static void forward(const mu_model *m, mu_tape *tp, const int32_t *tokens, double *x, double *logits) {
    mu_context cx = tiny_context();
    mu_routing routings[TINY_LAYERS];
    mu_tape_reset(tp);
    mu_tensor *out = mu_model_forward(m, tp, &cx, mu_tensor_ints(tp, MU_DTYPE_I32, TINY_T, tokens), routings);
    mu_tensor_get(out, x);
    mu_tensor_get(mu_model_logits(m, tp, out), logits);
}

/* Dropless: another token changes its own and later positions of its sequence, nothing else. */
static void no_position_sees_a_later_one(void **state) {
    (void)state;
    enum { D = 12, AT = TINY_S + 3 };
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    mu_model *m = new_model(&cfg, &moe);
    mu_tape *tp = mu_tape_new(dev);
    double x[2][TINY_T * D], logits[TINY_T * TINY_V];
    int32_t *tokens = random_ints(1, TINY_T, TINY_V);
    forward(m, tp, tokens, x[0], logits);
    tokens[AT] = (tokens[AT] + 1) % TINY_V;
    forward(m, tp, tokens, x[1], logits);
    for (int t = 0; t < TINY_T; t++) {
        bool equal = !memcmp(x[0] + t * D, x[1] + t * D, D * sizeof(double));
        assert_int_equal(equal, t < AT || t >= 2 * TINY_S);
    }
    free(tokens);
    mu_tape_free(tp);
    mu_model_free(m);
}

/* The loss of the head is the cross-entropy of the logits. */
static void head_and_logits_agree(void **state) {
    (void)state;
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    moe.balance = MU_BALANCE_NONE, moe.z_loss_coeff = 0;
    mu_model *m = new_model(&cfg, &moe);
    mu_tape *tp = mu_tape_new(dev);
    double x[TINY_T * 12], logits[TINY_T * TINY_V], wanted = 0;
    int32_t *tokens = random_ints(1, TINY_T, TINY_V), *targets = random_ints(2, TINY_T, TINY_V);
    forward(m, tp, tokens, x, logits);
    for (int t = 0; t < TINY_T; t++) {
        double sum = 0;
        for (int i = 0; i < TINY_V; i++) sum += exp(logits[t * TINY_V + i]);
        wanted += (log(sum) - logits[t * TINY_V + targets[t]]) / TINY_T;
    }
    mu_tape_reset(tp);
    mu_loss *l = tiny_loss_new(m, tp);
    assert_true(fabs(mu_tensor_scalar_get(tiny_loss(l)) - wanted) < 1e-12);
    assert_true(fabs(mu_loss_read(l, (mu_mat){ 0 }, false).ce - wanted) < 1e-12);
    mu_loss_free(l);
    free(tokens);
    free(targets);
    mu_tape_free(tp);
    mu_model_free(m);
}

static void the_first_bad_layer_is_named(void **state) {
    (void)state;
    static const struct { const char *name; int wanted; } cases[] = {
        { NULL, TINY_LAYERS + 1 }, { "/embed_tokens/weight", -1 }, { "/layers/0/self_attn/o_proj/weight", 0 },
        { "/layers/1/mlp/shared_experts/down_proj/weight", 1 }, { "/norm/weight", TINY_LAYERS },
    };
    static const double bad = NAN;
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    mu_context cx = tiny_context();
    for (int c = 0; c < 10; c++) {
        if (c == 5) tiny_options_of_others(&cfg, &moe);
        mu_model *m = new_model(&cfg, &moe);
        mu_tape *tp = mu_tape_new(dev);
        mu_routing routings[TINY_LAYERS];
        int32_t *tokens = random_ints(1, TINY_T, TINY_V);
        tokens[0] = 0;
        if (cases[c % 5].name)
            mu_reals_set(dev, dev->master, mu_unit_data(mu_params_find(m->params, cases[c % 5].name)), 1, &bad);
        mu_tape_record(tp, false);
        int found =
            mu_model_find_nonfinite(m, tp, &cx, mu_tensor_ints(tp, MU_DTYPE_I32, TINY_T, tokens), routings);
        assert_int_equal(found, cases[c % 5].wanted);
        free(tokens);
        mu_tape_free(tp);
        mu_model_free(m);
    }
}

/* The first steps on one batch lower the loss by more than noise could. */
/* The experts of each layer and token, [TINY_LAYERS, n * TINY_S, K], and the output, of sequences first .. first + n. */
static double *routed_pass(const mu_model *m, const mu_context *cx, int64_t first, int64_t n, int32_t *experts) {
    int32_t *ids = random_ints(1, TINY_T, TINY_V);
    mu_tape *tp = mu_tape_new(dev);
    mu_routing routings[TINY_LAYERS];
    double *out = mu_alloc((size_t)(n * TINY_S * m->cfg.hidden_size), sizeof *out);
    int32_t values[TINY_LAYERS * TINY_B * 4];
    mu_context part = *cx;
    part.n_sequences = n, part.domains = cx->domains ? cx->domains + first : NULL;
    if (cx->expert_mask.rows == TINY_B) {
        part.expert_mask = (mu_expert_mask){ values, n };
        for (int l = 0; l < TINY_LAYERS; l++) memcpy(values + l * n * 4, cx->expert_mask.values + (l * TINY_B + first) * 4, (size_t)n * 4 * sizeof *values);
    }
    mu_tape_record(tp, false);
    mu_tensor_get(mu_model_forward(m, tp, &part, mu_tensor_ints(tp, MU_DTYPE_I32, n * TINY_S, ids + first * TINY_S), routings), out);
    for (int l = 0; l < TINY_LAYERS; l++) mu_tensor_read(routings[l].ids_TK, experts + l * n * TINY_S * 2);
    mu_tape_free(tp);
    free(ids);
    return out;
}

/* Forbidding, token by token, every expert that was not chosen changes no bit. */
static void expect_same_when_the_rest_is_forbidden(const mu_model *m, const mu_context *cx, const double *whole, const int32_t *ids) {
    int32_t mask[TINY_LAYERS * TINY_T * 4] = { MU_ROUTE_FORBIDDEN }, again[TINY_LAYERS * TINY_T * 2];
    for (int i = 0; i < TINY_LAYERS * TINY_T * 2; i++) mask[i / 2 * 4 + ids[i]] = MU_ROUTE_ALLOWED;
    mu_context narrow = *cx;
    narrow.expert_mask = (mu_expert_mask){ mask, TINY_T };
    double *out = routed_pass(m, &narrow, 0, TINY_B, again);
    assert_memory_equal(again, ids, sizeof again);
    assert_memory_equal(out, whole, (size_t)(TINY_T * m->cfg.hidden_size) * sizeof *out);
    free(out);
}

static bool has(const int32_t *experts, int expert) { return experts[0] == expert || experts[1] == expert; }

/* moe.force_domains: tokens of a domain have its expert, all others never. A mask of the caller is combined with it: forbidden
 * wins. A sequence has the same bits alone as in a batch. */
static void domains_are_forced(void **state) {
    (void)state;
    enum { FORBIDDEN_HERE = 2 };        /* by the caller's mask, to sequence 2 in layer 1 */
    mu_option_domain_int forced[] = { { "rare", 3 }, { "odd", 2 } };
    mu_option_domain listed[] = { { .domain = "plain" }, { .domain = "odd" }, { .domain = "rare" } };
    static const int32_t domains[TINY_B] = { 2, 0, 1 };
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    moe.force_domains = (mu_option_domain_ints){ 2, forced };
    mu_model *m = new_model(&cfg, &moe);
    mu_context cx = { .mode = MU_MODE_EVAL, .n_sequences = TINY_B, .seq_len = TINY_S, .domains = domains };
    int32_t mask[TINY_LAYERS * TINY_B * 4], free_choice[TINY_LAYERS * TINY_T * 2], before[TINY_LAYERS * TINY_T * 2], ids[TINY_LAYERS * TINY_T * 2];
    free(routed_pass(m, &cx, 0, TINY_B, free_choice));  /* domains without names: no effect */
    cx.domains = NULL;
    double *plain = routed_pass(m, &cx, 0, TINY_B, before);
    expect_same_when_the_rest_is_forbidden(m, &cx, plain, before);
    free(plain);
    assert_memory_equal(free_choice, before, sizeof before);
    mu_model_name_domains(m, &(mu_option_domains){ 3, listed });
    free(routed_pass(m, &cx, 0, TINY_B, ids));          /* names without domains, as in generation: none */
    assert_memory_equal(free_choice, ids, sizeof ids);
    cx.domains = domains;
    for (int masked = 0; masked < 2; masked++) {
        for (int i = 0; i < TINY_LAYERS * TINY_B * 4; i++) mask[i] = MU_ROUTE_ALLOWED;
        mask[(TINY_B + 2) * 4 + FORBIDDEN_HERE] = MU_ROUTE_FORBIDDEN;
        if (masked) cx.expert_mask = (mu_expert_mask){ mask, TINY_B };
        double *whole = routed_pass(m, &cx, 0, TINY_B, ids);
        for (int l = 0; l < TINY_LAYERS; l++)
            for (int t = 0; t < TINY_T; t++) {
                const int32_t *its = ids + (l * TINY_T + t) * 2;
                int sequence = t / TINY_S;
                bool taken = masked && l == 1 && sequence == 2;
                assert_int_equal(has(its, 3), sequence == 0);
                assert_int_equal(has(its, 2), sequence == 2 && !taken);
            }
        expect_same_when_the_rest_is_forbidden(m, &cx, whole, ids);
        for (int64_t s = 0; s < TINY_B; s++) {
            int32_t alone[TINY_LAYERS * TINY_S * 2];
            double *part = routed_pass(m, &cx, s, 1, alone);
            assert_memory_equal(part, whole + s * TINY_S * cfg.hidden_size, (size_t)(TINY_S * cfg.hidden_size) * sizeof *part);
            for (int l = 0; l < TINY_LAYERS; l++)
                assert_memory_equal(alone + l * TINY_S * 2, ids + (l * TINY_T + s * TINY_S) * 2, TINY_S * 2 * sizeof *ids);
            free(part);
        }
        free(whole);
    }
    mu_model_free(m);
}

static void training_learns(void **state) {
    (void)state;
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    mu_optim_config optim = { .betas = { 0.9, 0.95 }, .eps = 1e-8, .weight_decay = 0.1 };
    mu_model *m = new_model(&cfg, &moe);
    mu_optimizer *o = mu_optimizer_new(&mu_rule_adamw, &optim, m->params);
    mu_tape *tp = mu_tape_new(dev);
    mu_loss *l = tiny_loss_new(m, tp);
    double first = tiny_step(l, o), last = first;
    for (int step = 0; step < 40; step++) last = tiny_step(l, o);
    assert_true(last < 0.25 * first);
    mu_loss_free(l);
    mu_tape_free(tp);
    mu_optimizer_free(o);
    mu_model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_are_those_of_the_units), cmocka_unit_test(flops_by_hand),
        cmocka_unit_test(moe_layers_stand_where_they_should), cmocka_unit_test(units_are_named_once),
        cmocka_unit_test(defaults_make_a_model), cmocka_unit_test(unsound_configurations_stop),
        cmocka_unit_test(unsound_batches_stop), cmocka_unit_test(unsound_arguments_stop),
        cmocka_unit_test(planned_ranks_do_not_talk),
        cmocka_unit_test(gradients), cmocka_unit_test(gradients_of_other_families), cmocka_unit_test(gradients_of_a_dense_model),
        cmocka_unit_test(no_position_sees_a_later_one), cmocka_unit_test(head_and_logits_agree),
        cmocka_unit_test(the_first_bad_layer_is_named), cmocka_unit_test(domains_are_forced), cmocka_unit_test(training_learns),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
