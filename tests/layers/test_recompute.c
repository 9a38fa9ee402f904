/* test_recompute.c - a transformer whose layers are recomputed in backward gives the same bits as one that
 * keeps them, and needs less memory. */
#include "tiny_model.h"

enum { BLOCKS = 6 };

static mu_tensor *add_released(mu_tape *tp, mu_tensor *x, mu_tensor *y) {
    mu_tensor *sum = mu_add(tp, x, y);
    mu_release(tp, x);
    mu_release(tp, y);
    return sum;
}

static mu_tensor *block(mu_model *m, int i, mu_tape *tp, const mu_context *cx, mu_tensor *x, mu_routing *routing) {
    const mu_block *b = &m->blocks[i];
    mu_tensor *h = mu_rmsnorm(tp, x, &b->attention_norm->tensor, m->cfg.rms_norm_eps);
    mu_tensor *y = mu_attention_forward(&b->attention, tp, cx, h, &m->cos, &m->sin);
    mu_release(tp, h);
    x = add_released(tp, x, y);
    h = mu_rmsnorm(tp, x, &b->ffn_norm->tensor, m->cfg.rms_norm_eps);
    y = b->is_moe ? mu_moe_forward(&b->moe, tp, cx, h, routing) : mu_ffn_forward(&b->ffn, tp, h);
    mu_release(tp, h);
    return add_released(tp, x, y);
}

/* All gradients of cross-entropy and z-loss, one after another. Heap. */
static double *gradients(mu_model *m, mu_tape *tp, bool recompute, double *loss, int64_t *n) {
    mu_context cx = tiny_context();
    int32_t *tokens = random_ints(1, TINY_T, TINY_V), *targets = random_ints(2, TINY_T, TINY_V);
    mu_routing routing;
    mu_tensor *x = mu_embedding(tp, mu_tensor_ints(tp, MU_DTYPE_I32, TINY_T, tokens), &m->embed->tensor), *sum = NULL, *value;
    mu_params_zero_grad(m->params);
    for (int i = 0; i < BLOCKS; i++) {
        if (recompute) mu_tape_recompute_begin(tp);
        x = block(m, i, tp, &cx, x, &routing);
        if (recompute) mu_tape_recompute_end(tp);
        if (!m->blocks[i].is_moe) continue;
        mu_tensor *z = mu_z_term(tp, routing.lse_T, 1.0 / TINY_T, 0.01, &value);
        sum = sum ? mu_add(tp, sum, z) : z;
    }
    mu_tensor *out = mu_rmsnorm(tp, x, &m->norm->tensor, m->cfg.rms_norm_eps);
    mu_release(tp, x);
    sum = mu_add(tp, sum, mu_model_head_loss(m, tp, out, mu_tensor_ints(tp, MU_DTYPE_I32, TINY_T, targets), 1.0 / TINY_T, NULL));
    mu_release(tp, out);
    *loss = mu_tensor_scalar_get(sum);
    mu_backward(tp, sum);
    mu_params_round_grads(m->params);
    *n = 0;
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; u = mu_unit_next(m->params, u)) *n += u->count;
    double *grads = mu_alloc((size_t)*n, sizeof *grads), *at = grads;
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; at += u->count, u = mu_unit_next(m->params, u))
        mu_reals_get(m->params->dev, m->params->dev->master, mu_unit_grad(u), u->count, at);
    free(tokens);
    free(targets);
    return grads;
}

static void same_gradients(const char *device, mu_moe_config *moe, bool exact, bool others) {
    mu_device *dev = mu_device_open(device);
    mu_model_config cfg = tiny_model_config();
    cfg.num_layers = BLOCKS;
    if (others) tiny_options_of_others(&cfg, moe);
    mu_model *m = mu_model_new(&cfg, moe, TINY_V, 5, dev, mesh_alone());
    if (exact) mu_params_exact(m->params);
    double *grads[2], loss[2];
    int64_t n, peak[2];
    for (int recompute = 0; recompute < 2; recompute++) {
        mu_tape *tp = mu_tape_new(dev);
        grads[recompute] = gradients(m, tp, recompute, &loss[recompute], &n);
        peak[recompute] = mu_tape_peak(tp);
        mu_tape_free(tp);
    }
    printf("%s: %lld KiB at most, %lld KiB with recomputation\n", device, (long long)peak[0] >> 10, (long long)peak[1] >> 10);
    assert_true(isfinite(loss[0]) && loss[0] == loss[1]);
    assert_memory_equal(grads[0], grads[1], (size_t)n * sizeof **grads);
    assert_true(2 * peak[1] < peak[0]);
    free(grads[0]);
    free(grads[1]);
    mu_model_free(m);
    mu_device_close(dev);
}

static void recomputed_layers_have_the_same_bits(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu", "guarded" };
    for (int d = 0; d < 3; d++)
        for (int variant = 0; variant < 5; variant++) {
            mu_moe_config moe = tiny_moe_config();
            moe.router_jitter = 0.1, moe.capacity_factor = variant & 1 ? 0.75 : 0, moe.first_k_dense = 1;
            same_gradients(devices[d], &moe, variant & 2, variant == 4);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(recomputed_layers_have_the_same_bits) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
