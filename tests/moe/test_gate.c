/* test_gate.c - the domain gate: value, gradient, which experts have it, and independence of how the batch was split. */
#include "layer.h"

enum { E = 5, K = 2, D = 4, S = 3, SEQUENCES = 6, TOKENS = S * SEQUENCES };
static const int32_t domains[SEQUENCES] = { 0, 2, 1, 0, 0, 2 };
static const int64_t in_batch[4] = { 3, 1, 2, 0 };
static const int32_t carries[E] = { -1, 2, -1, 1, 2 };

static layer *new_layer(int score) {
    mu_moe_config cfg = layer_config(E, K, 3);
    cfg.score_func = score;
    layer *l = layer_new("ref", mesh_alone(), cfg, SEQUENCES, S, D);
    layer_protect(l);
    memcpy(l->protection.domain_of, carries, sizeof carries);
    l->protection.gate_coeff = 0.25;
    l->cx.domains = domains, l->cx.domain_sequences = in_batch;
    return l;
}

/* The terms of sequences first .. first + n - 1; the loss is NULL when there is none. */
static mu_balance part_of(mu_tape *tp, layer *l, int first, int n) {
    static double x[TOKENS * D];
    mu_tensor *rows = &l->x_TD->tensor;
    if (n < SEQUENCES) {
        mu_tensor_get(rows, x);
        rows = mu_tensor_2d(tp, n * S, D);
        mu_tensor_set(rows, x + first * S * D);
    }
    mu_context cx = l->cx;
    cx.n_sequences = n, cx.domains = l->cx.domains ? l->cx.domains + first : NULL;
    l->routing = mu_moe_route(&l->moe, tp, &cx, rows);
    mu_mat counts = mu_data(mu_tensor_ints(tp, MU_DTYPE_I64, E, (int64_t[E]){ 8, 7, 7, 7, 7 }));
    mu_balance_counts c = { counts, counts, n * S, TOKENS };
    return mu_balance_loss(&l->moe, tp, &cx, &l->routing, &c);
}

static mu_tensor *loss_of(mu_tape *tp, void *arg) { return part_of(tp, arg, 0, SEQUENCES).loss; }

static void gradients(void **state) {
    (void)state;
    for (int score = 0; score < 2; score++) {
        layer *l = new_layer(score);
        gradcheck(l->ps, l->tp, loss_of, l, 100);
        layer_free(l);
    }
}

/* r_ti = w_i x_t */
static double logit(const double *w, const double *x, int i, int t) {
    double r = 0;
    for (int d = 0; d < D; d++) r += w[i * D + d] * x[t * D + d];
    return r;
}

static void the_value_is_the_mean_over_both_classes(void **state) {
    (void)state;
    double x[TOKENS * D], w[E * D], wanted = 0, grad[E * D];
    layer *l = new_layer(0);
    mu_tensor_get(&l->x_TD->tensor, x);
    mu_tensor_get(&l->moe.router_ED->tensor, w);
    for (int i = 0; i < E; i++)
        for (int t = 0; t < TOKENS && carries[i] >= 0; t++) {
            bool inside = domains[t / S] == carries[i];
            double p = 1 / (1 + exp(-logit(w, x, i, t))), n = inside ? (double)in_batch[carries[i]] : (double)(SEQUENCES - in_batch[carries[i]]);
            wanted -= log(inside ? p : 1 - p) / (2 * n * S);
        }
    mu_balance b = part_of(l->tp, l, 0, SEQUENCES);
    assert_true(fabs(mu_tensor_scalar_get(b.gate) - wanted) < 1e-13 && wanted > 0.5);
    assert_true(fabs(mu_tensor_scalar_get(b.loss) - 0.25 * wanted) < 1e-14);
    mu_backward(l->tp, b.loss);
    mu_reals_get(l->dev, MU_DTYPE_F64, l->moe.router_ED->tensor.grad, E * D, grad);
    for (int i = 0; i < E * D; i++) assert_int_equal(grad[i] != 0, carries[i / D] >= 0);
    layer_free(l);
}

static void assert_no_term(layer *l) {
    mu_balance b = part_of(l->tp, l, 0, SEQUENCES);
    assert_true(!b.loss && !b.gate && !l->routing.logits_TE);
    mu_tape_reset(l->tp);
}

/* Off, in evaluation, without labels, and when no expert is protected. */
static void when_there_is_none(void **state) {
    (void)state;
    layer *l = new_layer(1);
    l->protection.gate_coeff = 0;
    assert_no_term(l);
    l->protection.gate_coeff = 1;
    l->cx.mode = MU_MODE_EVAL;
    assert_no_term(l);
    l->cx.mode = MU_MODE_TRAIN, l->cx.domain_sequences = NULL;
    assert_no_term(l);
    l->cx.domain_sequences = in_batch, l->moe.protection = NULL;
    assert_no_term(l);
    l->moe.protection = &l->protection;
    for (int i = 0; i < E; i++) l->protection.domain_of[i] = -1;
    assert_no_term(l);
    layer_free(l);
}

/* A domain that the batch lacks, and one that is all of it: no loss and no gradient, though the gate is on. */
static void a_batch_of_one_class_has_no_loss(void **state) {
    (void)state;
    static const int32_t alike[SEQUENCES] = { 1, 1, 1, 1, 1, 1 };
    static const int64_t alone[4] = { 0, SEQUENCES, 0, 0 };
    layer *l = new_layer(1);
    l->cx.domains = alike, l->cx.domain_sequences = alone;
    mu_balance b = part_of(l->tp, l, 0, SEQUENCES);
    assert_true(mu_tensor_scalar_get(b.loss) == 0);
    mu_backward(l->tp, b.loss);
    double grad[E * D];
    mu_reals_get(l->dev, MU_DTYPE_F64, l->moe.router_ED->tensor.grad, E * D, grad);
    for (int i = 0; i < E * D; i++) assert_true(grad[i] == 0);
    layer_free(l);
}

static void splits_do_not_matter(void **state) {
    (void)state;
    double loss[3] = { 0 }, grad[3][E * D];
    static const int sizes[3] = { SEQUENCES, 2, 1 };
    for (int split = 0; split < 3; split++) {
        layer *l = new_layer(1);
        for (int first = 0; first < SEQUENCES; first += sizes[split]) {
            mu_tensor *part = part_of(l->tp, l, first, sizes[split]).loss;
            loss[split] += mu_tensor_scalar_get(part);
            mu_backward(l->tp, part);
            mu_tape_reset(l->tp);
        }
        mu_reals_get(l->dev, MU_DTYPE_F64, l->moe.router_ED->tensor.grad, E * D, grad[split]);
        layer_free(l);
        assert_true(fabs(loss[split] - loss[0]) < 1e-15 && loss[0] > 0.1);
        for (int i = 0; i < E * D; i++) assert_true(fabs(grad[split][i] - grad[0][i]) < 1e-15);
    }
}

/* Gradient descent on the gate alone: its logits come to tell the domains apart, which here a direction of the input does. */
static void it_learns_the_domain(void **state) {
    (void)state;
    layer *l = new_layer(0);
    double x[TOKENS * D], w[E * D], grad[E * D];
    mu_tensor_get(&l->x_TD->tensor, x);
    for (int t = 0; t < TOKENS; t++) x[t * D] = domains[t / S] == 1 ? 2 : 0, x[t * D + 1] = domains[t / S] == 2 ? 2 : 0, x[t * D + 2] = 1;
    mu_tensor_set(&l->x_TD->tensor, x);
    for (int step = 0; step < 500; step++) {
        mu_params_zero_grad(l->ps);
        mu_backward(l->tp, loss_of(l->tp, l));
        mu_tape_reset(l->tp);
        mu_tensor_get(&l->moe.router_ED->tensor, w);
        mu_reals_get(l->dev, MU_DTYPE_F64, l->moe.router_ED->tensor.grad, E * D, grad);
        for (int i = 0; i < E * D; i++) w[i] -= 4 * grad[i];
        mu_tensor_set(&l->moe.router_ED->tensor, w);
    }
    for (int i = 0; i < E; i++)
        for (int t = 0; t < TOKENS && carries[i] >= 0; t++) assert_int_equal(logit(w, x, i, t) > 0, domains[t / S] == carries[i]);
    layer_free(l);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(gradients), cmocka_unit_test(the_value_is_the_mean_over_both_classes),
                                        cmocka_unit_test(when_there_is_none), cmocka_unit_test(a_batch_of_one_class_has_no_loss),
                                        cmocka_unit_test(splits_do_not_matter), cmocka_unit_test(it_learns_the_domain) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
