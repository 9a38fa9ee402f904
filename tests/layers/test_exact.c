/* test_exact.c - exact sums of gradients give the gradients: the whole model, every op with weights, in double
 * precision, with a sequence as reduction unit and with the whole batch as one; and losses have one value per unit. */
#include "tiny_model.h"
#include "ref_device.h"

/* The loss of one batch, and all gradients one after another. Heap. */
static double *gradients(mu_model *m, int64_t unit_rows, double *loss, int64_t *n) {
    mu_tape *tp = mu_tape_new(dev);
    mu_tape_set_reduction_unit(tp, unit_rows);
    mu_params_zero_grad(m->params);
    mu_loss *l = tiny_loss_new(m, tp);
    mu_tensor *losses = tiny_loss(l);
    assert_int_equal(mu_count(losses), unit_rows ? TINY_T / unit_rows : 1);
    double value[TINY_B];
    mu_tensor_get(losses, value);
    *loss = 0;
    for (int64_t i = 0; i < mu_count(losses); i++) *loss += value[i];
    mu_backward(tp, losses);
    mu_params_round_grads(m->params);
    *n = 0;
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; u = mu_unit_next(m->params, u)) *n += u->count;
    double *grads = mu_alloc((size_t)*n, sizeof *grads), *at = grads;
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; at += u->count, u = mu_unit_next(m->params, u))
        mu_reals_get(dev, dev->master, mu_unit_grad(u), u->count, at);
    mu_loss_free(l);
    mu_tape_free(tp);
    return grads;
}

/* Summands are rounded to 2^-69, about 2e-21; the rest is the rounding of the plain sum. */
static void check(const mu_model_config *cfg, const mu_moe_config *moe) {
    mu_model *plain = mu_model_new(cfg, moe, TINY_V, 5, dev, mesh_alone());
    mu_model *exact = mu_model_new(cfg, moe, TINY_V, 5, dev, mesh_alone());
    mu_params_exact(exact->params);
    double expected_loss, loss;
    int64_t n;
    double *expected = gradients(plain, 0, &expected_loss, &n);
    const int64_t unit_rows[] = { 0, TINY_S };
    for (int i = 0; i < 2; i++) {
        double *got = gradients(exact, unit_rows[i], &loss, &n),
               *again = gradients(exact, unit_rows[i], &loss, &n);
        assert_true(fabs(loss - expected_loss) < 1e-13 * fabs(expected_loss));
        assert_memory_equal(got, again, sizeof *got * (size_t)n);
        for (int64_t j = 0; j < n; j++)
            assert_true(fabs(got[j] - expected[j]) < 1e-14 + 1e-12 * fabs(expected[j]));
        free(got);
        free(again);
    }
    free(expected);
    mu_model_free(plain);
    mu_model_free(exact);
}

static void exact_gradients_are_the_gradients(void **state) {
    (void)state;
    for (int variant = 0; variant < 17; variant++) {
        mu_model_config cfg = tiny_model_config();
        mu_moe_config moe = tiny_moe_config();
        cfg.tie_embeddings = variant & 1, cfg.qk_norm = variant & 2;
        moe.first_k_dense = variant & 4 ? 1 : 0, moe.capacity_factor = variant & 8 ? 0.75 : 0;
        moe.balance = MU_BALANCE_GLOBAL_AUX | MU_BALANCE_SEQ_AUX | (variant & 2 ? MU_BALANCE_AUX : 0);
        if (variant == 16) tiny_options_of_others(&cfg, &moe);
        check(&cfg, &moe);
        moe.num_experts = variant & 8 ? 0 : 4, moe.score_func = MU_MOE_SCORE_SIGMOID, moe.z_loss_coeff = 0;
        check(&cfg, &moe);
    }
}

/* Values too large for exact sums make their own tensor's gradient NaN, and no other's. */
static void too_large_is_not_finite(void **state) {
    (void)state;
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    mu_model *m = mu_model_new(&cfg, &moe, TINY_V, 5, dev, mesh_alone());
    mu_params_exact(m->params);
    const char *name = "/layers/1/mlp/experts/2/up_proj/weight";
    mu_unit *hit = mu_params_find(m->params, name);
    assert_non_null(hit);
    mu_mat sums = mu_mat_rows(mu_sums(&hit->param->tensor), hit - hit->param->units);
    mu_tape *tp = mu_tape_new(dev);
    mu_tensor *x = mu_tensor_2d(tp, 1, hit->count);
    dev->k->fill(dev, hit->count, 1e9, mu_data(x));
    dev->k->exact_add(dev, hit->count, mu_data(x), sums);
    mu_params_round_grads(m->params);
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; u = mu_unit_next(m->params, u)) {
        double first;
        mu_reals_get(dev, dev->master, mu_unit_grad(u), 1, &first);
        assert_true(u == hit ? isnan(first) : first == 0);
    }
    mu_tape_free(tp);
    mu_model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_gradients_are_the_gradients),
        cmocka_unit_test(too_large_is_not_finite),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
