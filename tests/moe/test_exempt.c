/* test_exempt.c - balancing leaves exempt experts out: the terms have the values and gradients of a layer of the other experts alone,
 * and the selection bias of exempt ones stays. */
#include "layer.h"

enum { E = 6, K = 2, D = 5, S = 4, SEQUENCES = 3, TOKENS = S * SEQUENCES, KEPT = 4 };
static const uint8_t some[E] = { 0, 1, 0, 0, 1, 0 };
static const uint32_t terms[] = { MU_BALANCE_AUX, MU_BALANCE_SEQ_AUX, MU_BALANCE_GLOBAL_AUX };

static void exempt(layer *l, const uint8_t which[E]) { memcpy(l->protection.exempt, which, E); }

static layer *new_layer(uint32_t balance, int score) {
    mu_moe_config cfg = layer_config(E, K, 3);
    cfg.balance = balance, cfg.score_func = score;
    layer *l = layer_new("ref", mesh_alone(), cfg, SEQUENCES, S, D);
    layer_protect(l);
    exempt(l, some);
    return l;
}

static mu_mat on_device(mu_tape *tp, const int64_t *counts) { return mu_data(mu_tensor_ints(tp, MU_DTYPE_I64, E, counts)); }

typedef struct { layer *l; const int64_t *counts; } balanced;

static mu_balance terms_of(mu_tape *tp, const balanced *b) {
    mu_balance_counts c = { on_device(tp, b->counts), on_device(tp, b->counts), TOKENS, TOKENS };
    b->l->routing = mu_moe_route(&b->l->moe, tp, &b->l->cx, &b->l->x_TD->tensor);
    return mu_balance_loss(&b->l->moe, tp, &b->l->cx, &b->l->routing, &c);
}

static mu_tensor *loss_of(mu_tape *tp, void *arg) { return terms_of(tp, arg).loss; }

static void gradients(void **state) {
    (void)state;
    for (int score = 0; score < 2; score++)
        for (int i = 0; i < 4; i++) {
            layer *l = new_layer(i < 3 ? terms[i] : MU_BALANCE_AUX | MU_BALANCE_SEQ_AUX | MU_BALANCE_GLOBAL_AUX, score);
            l->routing = mu_moe_route(&l->moe, l->tp, &l->cx, &l->x_TD->tensor);
            int64_t *counts = layer_counts(l);
            gradcheck(l->ps, l->tp, loss_of, &(balanced){ l, counts }, 100);
            free(counts);
            layer_free(l);
        }
}

/* sum over the others of f_i P_i / T, f_i = c_i E' / N and p_ti = s_ti / sum of theirs, from the scores that the router gave. */
static double by_formula(const double *scores, const int64_t *counts, int64_t from, int64_t n) {
    double sum = 0;
    int64_t all = 0;
    for (int i = 0; i < E; i++) all += some[i] ? 0 : counts[i];
    for (int64_t t = from; t < from + n; t++) {
        double total = 0;
        for (int i = 0; i < E; i++) total += some[i] ? 0 : scores[t * E + i];
        for (int i = 0; i < E; i++) sum += some[i] ? 0 : (double)counts[i] * KEPT / (double)all * scores[t * E + i] / total;
    }
    return sum / TOKENS;
}

static void values_are_those_of_the_others(void **state) {
    (void)state;
    for (int score = 0; score < 2; score++)
        for (int i = 0; i < 3; i++) {
            layer *l = new_layer(terms[i], score);
            static const int64_t counts[E] = { 3, 9, 1, 0, 7, 4 };
            mu_balance b = terms_of(l->tp, &(balanced){ l, counts });
            double scores[TOKENS * E], wanted = 0, coeff = i == 1 ? 0.02 : 0.01;
            int64_t rows[SEQUENCES * E];
            mu_tensor_get(l->routing.scores_TE, scores);
            mu_tensor_read(l->routing.counts_SE, rows);
            for (int s = 0; s < SEQUENCES && i == 1; s++) wanted += by_formula(scores, rows + s * E, s * S, S);
            if (i != 1) wanted = by_formula(scores, counts, 0, TOKENS);
            assert_true(fabs(mu_tensor_scalar_get(b.aux) - wanted) < 1e-14 && wanted > 0.5);
            assert_true(fabs(mu_tensor_scalar_get(b.loss) - coeff * wanted) < 1e-14);
            layer_free(l);
        }
}

/* The rows of exempt experts get no gradient, with softmax scores neither, whose denominator contains them. */
static void exempt_rows_get_no_gradient(void **state) {
    (void)state;
    static const int64_t counts[E] = { 3, 9, 1, 0, 7, 4 };
    for (int score = 0; score < 2; score++) {
        layer *l = new_layer(MU_BALANCE_AUX, score);
        double grad[E * D];
        mu_backward(l->tp, loss_of(l->tp, &(balanced){ l, counts }));
        mu_reals_get(l->dev, MU_DTYPE_F64, l->moe.router_ED->tensor.grad, E * D, grad);
        for (int i = 0; i < E; i++) {
            double most = 0;
            for (int d = 0; d < D; d++) most = fmax(most, fabs(grad[i * D + d]));
            assert_true(some[i] ? most < 1e-18 : most > 1e-6);
        }
        layer_free(l);
    }
}

/* No token for the others, one expert left, none left: no NaN, and a term only where there is something to share. */
static void few_or_none_are_left(void **state) {
    (void)state;
    static const uint8_t all[E] = { 1, 1, 1, 1, 1, 1 }, all_but_one[E] = { 1, 1, 1, 0, 1, 1 };
    static const int64_t counts[E] = { 3, 9, 1, 0, 7, 4 }, busy[E] = { 3, 9, 1, 4, 7, 0 };
    for (int score = 0; score < 2; score++) {
        layer *l = new_layer(MU_BALANCE_AUX | MU_BALANCE_GLOBAL_AUX | MU_BALANCE_BIAS, score);
        exempt(l, all);
        mu_balance b = terms_of(l->tp, &(balanced){ l, counts });
        assert_true(mu_tensor_scalar_get(b.loss) == 0);
        mu_backward(l->tp, b.loss);
        double grad[E * D];
        mu_reals_get(l->dev, MU_DTYPE_F64, l->moe.router_ED->tensor.grad, E * D, grad);
        for (int i = 0; i < E * D; i++) assert_true(grad[i] == 0);
        mu_balance_update_bias(&l->moe, counts, 1.0);
        exempt(l, all_but_one);
        assert_true(mu_tensor_scalar_get(terms_of(l->tp, &(balanced){ l, counts }).aux) == 0);     /* it has no token */
        assert_true(fabs(mu_tensor_scalar_get(terms_of(l->tp, &(balanced){ l, busy }).aux) - 1) < 1e-14);
        mu_balance_update_bias(&l->moe, busy, 1.0);
        for (int i = 0; i < E; i++) assert_true(l->moe.bias[i] == 0);
        layer_free(l);
    }
}

/* Mean of the others 2: exempt experts have the most tokens and none, and keep their biases bit for bit. */
static void the_bias_of_exempt_experts_stays(void **state) {
    (void)state;
    layer *l = new_layer(MU_BALANCE_BIAS, MU_MOE_SCORE_SIGMOID);
    static const int64_t counts[E] = { 4, 16, 2, 0, 0, 2 };
    static const double before[E] = { 0.1, 0.7, -0.3, 0.2, -0.9, 0 }, wanted[E] = { -0.4, 0.7, -0.3, 0.7, -0.9, 0 };
    memcpy(l->moe.bias, before, sizeof before);
    mu_balance_update_bias(&l->moe, counts, 0.5);
    for (int i = 0; i < E; i++) assert_true(some[i] ? l->moe.bias[i] == before[i] : fabs(l->moe.bias[i] - wanted[i]) < 1e-15);
    mu_balance_raise_bias(&l->moe, 2, 0.4);         /* of one; those of the other three fall by 0.1 */
    for (int i = 0; i < E; i++) assert_true(some[i] ? l->moe.bias[i] == before[i] : fabs(l->moe.bias[i] - wanted[i] - (i == 2 ? 0.3 : -0.1)) < 1e-15);
    mu_balance_raise_bias(&l->moe, 2, -0.4);
    exempt(l, (uint8_t[E]){ 0 });                  /* no longer exempt: all move, by the mean of all, 4, and are centred */
    mu_balance_update_bias(&l->moe, counts, 0.5);
    static const double again[E] = { -0.4, 0.2, 0.2, 1.2, -0.4, 0.5 };
    for (int i = 0; i < E; i++) assert_true(fabs(l->moe.bias[i] - (again[i] - 1.3 / E)) < 1e-15);
    layer_free(l);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(gradients), cmocka_unit_test(values_are_those_of_the_others),
                                        cmocka_unit_test(exempt_rows_get_no_gradient), cmocka_unit_test(few_or_none_are_left),
                                        cmocka_unit_test(the_bias_of_exempt_experts_stays) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
