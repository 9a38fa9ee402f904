/* test_balance.c - the balancing terms: gradients, values known in advance, and independence of how the
 * batch was split; the selection bias. */
#include "layer.h"

enum { E = 6, K = 2, D = 5, S = 4, SEQUENCES = 3, TOKENS = S * SEQUENCES };

static layer *new_layer(uint32_t balance, int score, double z) {
    mu_moe_config cfg = layer_config(E, K, 3);
    cfg.balance = balance, cfg.score_func = score, cfg.z_loss_coeff = z;
    return layer_new("ref", mesh_alone(), cfg, SEQUENCES, S, D);
}

/* Counts as the terms take them; NULL: not given. */
static mu_mat on_device(mu_tape *tp, const int64_t *counts) {
    return counts ? mu_data(mu_tensor_ints(tp, MU_DTYPE_I64, E, counts)) : (mu_mat){ 0 };
}

static double scalar(const mu_tensor *t) { return mu_tensor_scalar_get(t); }

/* ---------------------------------------------------------------- gradients */
typedef struct { layer *l; const int64_t *micro, *global; } balanced;

/* Twice on the same input, as two micro-batches of one global batch. */
static mu_tensor *loss_of(mu_tape *tp, void *arg) {
    const balanced *b = arg;
    mu_balance_counts c = { on_device(tp, b->micro), on_device(tp, b->global), TOKENS, 2 * TOKENS };
    mu_tensor *loss[2];
    for (int time = 0; time < 2; time++) {
        b->l->routing = mu_moe_route(&b->l->moe, tp, &b->l->cx, &b->l->x_TD->tensor);
        loss[time] = mu_balance_loss(&b->l->moe, tp, &b->l->cx, &b->l->routing, &c).loss;
    }
    return mu_add(tp, loss[0], loss[1]);
}

static void gradients(void **state) {
    (void)state;
    static const int64_t global[E] = { 11, 0, 7, 24, 1, 5 };
    static const uint32_t terms[] = { MU_BALANCE_AUX, MU_BALANCE_SEQ_AUX, MU_BALANCE_GLOBAL_AUX,
                                      MU_BALANCE_NONE,
                                      MU_BALANCE_AUX | MU_BALANCE_SEQ_AUX | MU_BALANCE_GLOBAL_AUX |
                                          MU_BALANCE_BIAS };
    for (int score = 0; score < 2; score++)
        for (int i = 0; i < 5; i++) {
            layer *l = new_layer(terms[i], score, i > 2 ? 0.03 : 0);      /* the fourth: z-loss alone */
            l->routing = mu_moe_route(&l->moe, l->tp, &l->cx, &l->x_TD->tensor);
            int64_t *micro = layer_counts(l);
            gradcheck(l->ps, l->tp, loss_of, &(balanced){ l, micro, global }, 100);
            free(micro);
            layer_free(l);
        }
}

/* The gradient with respect to the scores, from the formula: d/ds_i of alpha f_i P_i, P_i = mean s_i / sum s. */
static void gradient_by_formula(void **state) {
    (void)state;
    for (int score = 0; score < 2; score++) {
        layer *l = new_layer(MU_BALANCE_AUX, score, 0);
        mu_tensor *scores = mu_tensor_2d(l->tp, TOKENS, E);
        double s[TOKENS * E], grad[TOKENS * E];
        for (int i = 0; i < TOKENS * E; i++) s[i] = (1 + i * 7 % 13) / 20.0;
        for (int t = 0; t < TOKENS && !score; t++) {
            double sum = 0;
            for (int i = 0; i < E; i++) sum += s[t * E + i];
            for (int i = 0; i < E; i++) s[t * E + i] /= sum;
        }
        mu_tensor_set(scores, s);
        scores->needs_grad = true;
        mu_routing r = { .scores_TE = scores, .lse_T = mu_tensor_2d(l->tp, TOKENS, 1) };
        static const int64_t counts[E] = { 9, 3, 0, 2, 4, 6 };
        mu_balance_counts c = { on_device(l->tp, counts), { 0 }, TOKENS, TOKENS };
        mu_backward(l->tp, mu_balance_loss(&l->moe, l->tp, &l->cx, &r, &c).loss);
        mu_reals_get(l->dev, MU_DTYPE_F64, scores->grad, TOKENS * E, grad);
        for (int t = 0; t < TOKENS; t++) {
            double sum = 0, mean = 0;
            for (int i = 0; i < E; i++) sum += s[t * E + i];
            for (int i = 0; i < E; i++) mean += counts[i] * (double)E / (K * TOKENS) * s[t * E + i] / sum;
            for (int i = 0; i < E; i++) {
                double f = counts[i] * (double)E / (K * TOKENS);
                double wanted = 0.01 / TOKENS * (score ? (f - mean) / sum : f);
                assert_true(fabs(grad[t * E + i] - wanted) < 1e-15);
            }
        }
        layer_free(l);
    }
}

/* ---------------------------------------------------------------- shares of the gradient */
enum { THROUGH_GATES = 1, OF_SCORES = 2, OF_Z = 4 };
static const double UNIT = 0x1p30;

/* Backward of some terms on the same logits: what the route measured, and the sum over tokens of the norms of the logits' gradient. */
static void measure(const layer *l, int terms, bool sigmoid, mu_memory *memory, int64_t sums[MU_ROUTER_GRADS], double *norms) {
    mu_tape *tp = l->tp;
    double x[TOKENS * E], coef[TOKENS * E], grad[TOKENS * E];
    for (int i = 0; i < TOKENS * E; i++) x[i] = i * 7 % 13 / 4.0 - 1, coef[i] = i * 5 % 11 / 10.0;
    mu_mat device = { memory->region.base, MU_DTYPE_I64, 1 };
    l->dev->k->fill(l->dev, MU_ROUTER_GRADS, 0.0, (mu_mat){ memory->region.base, MU_DTYPE_F64, 1 });
    mu_tensor *logits = mu_tensor_2d(tp, TOKENS, E), *coef_TE = mu_tensor_2d(tp, TOKENS, E), *coef_TK = mu_tensor_2d(tp, TOKENS, K), *value;
    mu_tensor_set(logits, x);
    mu_tensor_set(coef_TE, coef);
    mu_tensor_set(coef_TK, coef);
    logits->needs_grad = true;
    mu_routing r = mu_route(tp, logits, NULL, NULL, &(mu_route_shape){ TOKENS, E, K, sigmoid, true, 1, MU_ROUTE_FREE, 0, 0 }, S, device, UNIT);
    mu_tensor *loss = mu_tensor_loss(tp, TOKENS);
    mu_tensor_set(loss, (double[]){ 0 });
    if (terms & THROUGH_GATES) loss = mu_add(tp, loss, mu_balance_term(tp, r.gates_TK, coef_TK, 1, false, 0.5, NULL, MU_ROUTER_GRAD_LM, &value));
    if (terms & OF_SCORES) loss = mu_add(tp, loss, mu_balance_term(tp, r.scores_TE, coef_TE, 1, sigmoid, 0.25, r.grads, MU_ROUTER_GRAD_AUX, &value));
    if (terms & OF_SCORES) loss = mu_add(tp, loss, mu_balance_term(tp, r.scores_TE, coef_TE, 1, sigmoid, 0.25, r.grads, MU_ROUTER_GRAD_SEQ_AUX, &value));
    if (terms & OF_Z) loss = mu_add(tp, loss, mu_z_term(tp, r.lse_T, 0.125, 1, &value));
    mu_backward(tp, loss);
    mu_reals_get(l->dev, MU_DTYPE_F64, logits->grad, TOKENS * E, grad);
    *norms = 0;
    for (int t = 0; t < TOKENS; t++) {
        double squares = 0;
        for (int i = 0; i < E; i++) squares += grad[t * E + i] * grad[t * E + i];
        *norms += sqrt(squares);
    }
    mu_device_read(l->dev, sums, memory->region.base, MU_ROUTER_GRADS * sizeof *sums);
    mu_tape_reset(tp);
}

/* Alone, a term's norms are those of the whole gradient; with others they are the same bits; and terms that are not there have none. */
static void shares_of_the_gradient(void **state) {
    (void)state;
    static const int of[MU_ROUTER_GRADS] = { THROUGH_GATES, OF_SCORES, OF_SCORES, OF_Z };
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        layer *l = new_layer(MU_BALANCE_NONE, sigmoid, 0);
        mu_memory *memory = mu_memory_new(l->dev, MU_ROUTER_GRADS * sizeof(int64_t));
        mu_memory_commit(memory, MU_ROUTER_GRADS * sizeof(int64_t));
        int64_t all[MU_ROUTER_GRADS], alone[MU_ROUTER_GRADS];
        double norms;
        measure(l, THROUGH_GATES | OF_SCORES | OF_Z, sigmoid, memory, all, &norms);
        for (int part = THROUGH_GATES; part <= OF_Z; part *= 2) {
            int64_t sum = 0;
            measure(l, part, sigmoid, memory, alone, &norms);
            for (int i = 0; i < MU_ROUTER_GRADS; i++) {
                assert_int_equal(alone[i], of[i] == part ? all[i] : 0);
                sum += alone[i];
            }
            assert_true(norms > 0.1 && fabs((double)sum - norms * UNIT) <= 2 * TOKENS);
        }
        assert_int_equal(all[MU_ROUTER_GRAD_AUX], all[MU_ROUTER_GRAD_SEQ_AUX]);
        mu_memory_free(memory);
        layer_free(l);
    }
}

/* ---------------------------------------------------------------- known values */
static mu_balance balance_of(layer *l, const double *scores, const int64_t *counts, const int64_t *rows) {
    static double lse[TOKENS];
    mu_routing r = { .scores_TE = mu_tensor_2d(l->tp, TOKENS, E), .lse_T = mu_tensor_2d(l->tp, TOKENS, 1),
                     .counts_SE = mu_tensor_new(l->tp, MU_DTYPE_I64, 2, (int64_t[]){ SEQUENCES, E }) };
    for (int t = 0; t < TOKENS; t++) lse[t] = t % 2 ? 3 : -1;
    mu_tensor_set(r.scores_TE, scores);
    mu_tensor_set(r.lse_T, lse);
    mu_tensor_write(r.counts_SE, rows);
    mu_balance_counts c = { on_device(l->tp, counts), on_device(l->tp, counts), TOKENS, TOKENS };
    return mu_balance_loss(&l->moe, l->tp, &l->cx, &r, &c);
}

static void assert_value(uint32_t term, int score, const double *scores, const int64_t *counts,
                         const int64_t *rows, double wanted) {
    layer *l = new_layer(term, score, 0);
    mu_balance b = balance_of(l, scores, counts, rows);
    double factor = term == MU_BALANCE_SEQ_AUX ? 0.02 : 0.01;
    assert_true(fabs(scalar(b.aux) - wanted) < 1e-14);
    assert_true(fabs(scalar(b.loss) - factor * wanted) < 1e-16);
    layer_free(l);
}

static void balanced_is_one_and_collapsed_is_E_over_K(void **state) {
    (void)state;
    static const uint32_t terms[] = { MU_BALANCE_AUX, MU_BALANCE_SEQ_AUX, MU_BALANCE_GLOBAL_AUX };
    double uniform[TOKENS * E], uneven[TOKENS * E], collapsed[TOKENS * E], halves[TOKENS * E];
    int64_t even_rows[SEQUENCES * E], even[E], full_rows[SEQUENCES * E], full[E] = { 0 };
    for (int i = 0; i < TOKENS * E; i++) {
        int id = i % E;
        uniform[i] = 1.0 / E;
        uneven[i] = (1 + id) / 21.0;                    /* 1 + .. + 6 = 21 */
        collapsed[i] = id == 1 || id == 4 ? 0.5 : 0;    /* all probability on the two that take everything */
        halves[i] = id == 1 ? 0.4 : 0.12;
    }
    for (int i = 0; i < SEQUENCES * E; i++) even_rows[i] = 0, full_rows[i] = i % E == 1 || i % E == 4 ? S : 0;
    for (int n = 0; n < S * K; n++)
        for (int s = 0; s < SEQUENCES; s++)
            even_rows[s * E + (n + 2 * s) % E]++; /* uniform only over the whole batch */
    for (int i = 0; i < E; i++) even[i] = TOKENS * K / E;
    full[1] = full[4] = TOKENS;
    for (int t = 0; t < 3; t++)
        for (int score = 0; score < 2; score++) {
            assert_value(terms[t], score, uniform, even, even_rows, 1);
            assert_value(terms[t], score, uniform, full, full_rows, 1);     /* uniform: whatever it chose */
            assert_value(terms[t], score, collapsed, full, full_rows, (double)E / K);
            /* f = E/K = 3 on experts 1 and 4, so 3 (P_1 + P_4) */
            assert_value(terms[t], score, halves, full, full_rows, 3 * (0.4 + 0.12));
        }
    /* balanced over the batch, so 1 for any router; the sequences are not */
    assert_value(MU_BALANCE_AUX, 0, uneven, even, even_rows, 1);
    assert_value(MU_BALANCE_GLOBAL_AUX, 0, uneven, even, even_rows, 1);
    double sequences = 0;
    for (int s = 0; s < SEQUENCES; s++)
        for (int i = 0; i < E; i++)
            sequences += (double)even_rows[s * E + i] * E / (K * S) * (1 + i) / 21.0 / SEQUENCES;
    assert_value(MU_BALANCE_SEQ_AUX, 0, uneven, even, even_rows, sequences);
}

/* Sigmoid scores are divided by their sum first: doubling them changes nothing. */
static void sigmoid_scores_are_normalised(void **state) {
    (void)state;
    double scores[TOKENS * E];
    int64_t counts[E] = { 9, 3, 0, 2, 4, 6 }, rows[SEQUENCES * E] = { 0 };
    double value[2];
    for (int twice = 0; twice < 2; twice++) {
        for (int i = 0; i < TOKENS * E; i++) scores[i] = (twice + 1) * (1 + i * 5 % 11) / 24.0;
        layer *l = new_layer(MU_BALANCE_AUX, MU_MOE_SCORE_SIGMOID, 0);
        value[twice] = scalar(balance_of(l, scores, counts, rows).aux);
        layer_free(l);
    }
    assert_true(fabs(value[0] - value[1]) < 1e-14 && value[0] > 0.1);
}

static void z_loss_is_the_mean_square(void **state) {
    (void)state;
    double scores[TOKENS * E];
    int64_t counts[E] = { 4, 4, 4, 4, 4, 4 }, rows[SEQUENCES * E] = { 0 };
    for (int i = 0; i < TOKENS * E; i++) scores[i] = 1.0 / E;
    layer *l = new_layer(MU_BALANCE_NONE, 0, 0.25);
    mu_balance b = balance_of(l, scores, counts, rows);
    assert_true(fabs(scalar(b.z) - 5) < 1e-14);             /* (9 + 1) / 2 */
    assert_true(fabs(scalar(b.loss) - 1.25) < 1e-14);
    assert_true(fabs(scalar(b.aux) - 1) < 1e-14);           /* logged, though no balancing term needs it */
    assert_false(b.aux->needs_grad);
    layer_free(l);
    l = new_layer(MU_BALANCE_BIAS, 0, 0);
    b = balance_of(l, scores, counts, rows);
    assert_true(!b.loss && fabs(scalar(b.z) - 5) < 1e-14 && fabs(scalar(b.aux) - 1) < 1e-14);
    assert_false(b.z->needs_grad);
    layer_free(l);
    l = new_layer(MU_BALANCE_BIAS, 1, 0);                   /* of sigmoid scores it is computed where it is used */
    b = balance_of(l, scores, counts, rows);
    assert_true(!b.loss && !b.z && fabs(scalar(b.aux) - 1) < 1e-14);
    layer_free(l);
    l = new_layer(MU_BALANCE_BIAS, 1, 0.25);
    b = balance_of(l, scores, counts, rows);
    assert_true(fabs(scalar(b.z) - 5) < 1e-14 && fabs(scalar(b.loss) - 1.25) < 1e-14);
    layer_free(l);
}

/* ---------------------------------------------------------------- splits */
/* Loss, and in `grad` the router's gradient, of the batch in micro-batches of `n` sequences. */
static double split_loss(uint32_t term, int score, double z, int n, double *grad) {
    double loss = 0;
    layer *whole = new_layer(term, score, z);
    whole->routing = mu_moe_route(&whole->moe, whole->tp, &whole->cx, &whole->x_TD->tensor);
    int64_t *global = layer_counts(whole);
    double x[TOKENS * D];
    mu_tensor_get(&whole->x_TD->tensor, x);
    for (int from = 0; from < SEQUENCES; from += n) {
        mu_tape_reset(whole->tp);
        mu_tensor *part = mu_tensor_2d(whole->tp, n * S, D);
        mu_tensor_set(part, x + from * S * D);
        mu_context cx = { .n_sequences = n, .seq_len = S };
        whole->routing = mu_moe_route(&whole->moe, whole->tp, &cx, part);
        int64_t *micro = layer_counts(whole);
        mu_balance_counts c = { on_device(whole->tp, micro), on_device(whole->tp, global), n * S, TOKENS };
        mu_tensor *l = mu_balance_loss(&whole->moe, whole->tp, &cx, &whole->routing, &c).loss;
        loss += scalar(l);
        mu_backward(whole->tp, l);
        free(micro);
    }
    mu_reals_get(whole->dev, MU_DTYPE_F64, whole->moe.router_ED->tensor.grad, E * D, grad);
    free(global);
    layer_free(whole);
    return loss;
}

static void splits_do_not_matter(void **state) {
    (void)state;
    static const uint32_t terms[] = { MU_BALANCE_SEQ_AUX, MU_BALANCE_GLOBAL_AUX, MU_BALANCE_NONE };
    double one[E * D], three[E * D];
    for (int score = 0; score < 2; score++)
        for (int t = 0; t < 3; t++) {
            double z = terms[t] == MU_BALANCE_NONE ? 0.1 : 0;
            double a = split_loss(terms[t], score, z, SEQUENCES, one),
                   b = split_loss(terms[t], score, z, 1, three);
            assert_true(fabs(a - b) < 1e-14 && fabs(a) > 1e-3);
            for (int i = 0; i < E * D; i++) assert_true(fabs(one[i] - three[i]) < 1e-14);
        }
    /* aux_loss is local to a micro-batch by definition: with one sequence in each it is seq_aux_loss */
    double aux = split_loss(MU_BALANCE_AUX, 0, 0, 1, one),
           sequence = split_loss(MU_BALANCE_SEQ_AUX, 0, 0, 1, three);
    assert_true(fabs(2 * aux - sequence) < 1e-14);
}

/* A micro-batch without tokens has every term, each 0, and a backward. */
static void no_tokens(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu" };
    static const int64_t counts[E] = { 4, 4, 4, 4, 4, 4 }, none[E] = { 0 };
    for (int d = 0; d < 2; d++) {
        mu_moe_config cfg = layer_config(E, K, 3);
        cfg.balance = MU_BALANCE_AUX | MU_BALANCE_SEQ_AUX | MU_BALANCE_GLOBAL_AUX, cfg.z_loss_coeff = 1;
        layer *l = layer_new(devices[d], mesh_alone(), cfg, 0, S, D);
        l->routing = mu_moe_route(&l->moe, l->tp, &l->cx, &l->x_TD->tensor);
        mu_balance_counts c = { on_device(l->tp, none), on_device(l->tp, counts), TOKENS, TOKENS };
        mu_tensor *loss = mu_balance_loss(&l->moe, l->tp, &l->cx, &l->routing, &c).loss;
        assert_true(scalar(loss) == 0);
        mu_backward(l->tp, loss);
        layer_free(l);
    }
}

/* ---------------------------------------------------------------- selection bias */
static void assert_biases(const layer *l, const double wanted[E]) {
    for (int i = 0; i < E; i++) assert_true(fabs(l->moe.bias[i] - wanted[i]) < 1e-15);
}

/* By the sign of the gap to the mean, 4; the steps add up to one of 0.5, so each bias loses 0.5 / 6 of its own. */
static void bias_moves_against_the_load(void **state) {
    (void)state;
    layer *l = new_layer(MU_BALANCE_BIAS, MU_MOE_SCORE_SIGMOID, 0);
    static const int64_t counts[E] = { 0, 4, 5, 3, 12, 0 };
    static const double m = 0.5 / E, wanted[E] = { 0.5 - m, -m, -0.5 - m, 0.5 - m, -0.5 - m, 0.5 - m };
    mu_balance_update_bias(&l->moe, counts, 0.5);
    assert_biases(l, wanted);
    mu_balance_update_bias(&l->moe, counts, 0.0);
    mu_balance_update_bias(&l->moe, (int64_t[E]){ 2, 2, 2, 2, 2, 2 }, 0.5);
    mu_balance_update_bias(&l->moe, (int64_t[E]){ 0 }, 0.5);
    assert_biases(l, wanted);
    layer_free(l);
}

/* One busy expert drives the others up, step after step: without the mean their biases would reach 1000. */
static void bias_has_mean_zero(void **state) {
    (void)state;
    layer *l = new_layer(MU_BALANCE_BIAS, MU_MOE_SCORE_SIGMOID, 0);
    double sum = 0;
    for (int step = 0; step < 1000; step++) mu_balance_update_bias(&l->moe, (int64_t[E]){ 24, 0, 0, 0, 0, 0 }, 1.0);
    for (int i = 0; i < E; i++) sum += l->moe.bias[i];
    assert_true(fabs(sum) < 1e-9 && fabs(l->moe.bias[1] - 2000.0 / E) < 1e-9 && fabs(l->moe.bias[0] + 2000.0 * (E - 1) / E) < 1e-9);
    layer_free(l);
}

/* The bias steers the choice in every mode, and only when expert_bias is on. */
static void bias_steers_the_choice(void **state) {
    (void)state;
    for (int on = 0; on < 2; on++) {
        layer *l = new_layer(on ? MU_BALANCE_BIAS : MU_BALANCE_NONE, MU_MOE_SCORE_SIGMOID, 0);
        l->moe.bias[5] = 10, l->moe.bias[0] = -10;
        l->routing = mu_moe_route(&l->moe, l->tp, &l->cx, &l->x_TD->tensor);
        int64_t *counts = layer_counts(l);
        assert_int_equal(counts[5] == TOKENS && counts[0] == 0, on);
        free(counts);
        layer_free(l);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients),
        cmocka_unit_test(gradient_by_formula), cmocka_unit_test(shares_of_the_gradient),
        cmocka_unit_test(balanced_is_one_and_collapsed_is_E_over_K),
        cmocka_unit_test(sigmoid_scores_are_normalised),
        cmocka_unit_test(z_loss_is_the_mean_square),
        cmocka_unit_test(splits_do_not_matter),
        cmocka_unit_test(no_tokens),
        cmocka_unit_test(bias_moves_against_the_load),
        cmocka_unit_test(bias_has_mean_zero),
        cmocka_unit_test(bias_steers_the_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
