/* test_quantile.c - quantile balancing: the bias is the quantile that the definition says, exempt experts keep theirs, the split of a batch does
 * not matter, and it makes an uneven router even. */
#include "layer.h"

enum { E = 8, K = 2, D = 6, S = 16, SEQUENCES = 8, TOKENS = S * SEQUENCES };

static layer *new_layer(const char *device, int64_t K_, int score) {
    mu_moe_config cfg = layer_config(E, K_, 3);
    cfg.balance = MU_BALANCE_QUANTILE, cfg.score_func = score;
    layer *l = layer_new(device, mesh_alone(), cfg, SEQUENCES, S, D);
    layer_protect(l);
    return l;
}

/* One global batch of all sequences, in micro-batches of n. Heap: the loads. */
static int64_t *update(layer *l, mu_quantiles *q, int64_t n) {
    static double x[TOKENS * D];
    int64_t *loads = mu_alloc(E, sizeof *loads);
    mu_tensor_get(&l->x_TD->tensor, x);
    mu_quantiles_begin(q);
    for (int64_t from = 0; from < SEQUENCES; from += n) {
        mu_tensor *part = mu_tensor_2d(l->tp, n * S, D);
        mu_tensor_set(part, x + from * S * D);
        mu_context cx = { .mode = MU_MODE_TRAIN, .n_sequences = n, .seq_len = S };
        l->routing = mu_moe_route(&l->moe, l->tp, &cx, part);
        mu_quantiles_add(q, &l->moe, 0, &l->routing);
        int64_t *counts = layer_counts(l);
        for (int i = 0; i < E; i++) loads[i] += counts[i];
        free(counts);
        mu_tape_reset(l->tp);
    }
    mu_quantiles_read(q);
    mu_quantiles_update(q, &l->moe, 0, loads);
    return loads;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* r[i]: of the sorted cutoff - score of expert i over the tokens, the one below which `share` of them lie. */
static void quantiles_of(layer *l, double share, double r[E]) {
    static double scores[TOKENS * E], all[E][TOKENS];
    l->routing = mu_moe_route(&l->moe, l->tp, &l->cx, &l->x_TD->tensor);
    mu_tensor_get(l->routing.scores_TE, scores);
    for (int t = 0; t < TOKENS; t++) {
        double biased[E];
        for (int i = 0; i < E; i++) biased[i] = scores[t * E + i] + l->moe.bias[i];
        qsort(biased, E, sizeof *biased, by_size);
        for (int i = 0; i < E; i++) all[i][t] = biased[E - K - 1] - scores[t * E + i];      /* the (K+1)-th largest */
    }
    for (int i = 0; i < E; i++) {
        qsort(all[i], TOKENS, sizeof *all[i], by_size);
        r[i] = all[i][(int)(share * TOKENS) - 1];
    }
    mu_tape_reset(l->tp);
}

static double centred(double *x, const uint8_t *out) {
    double mean = 0;
    int n = 0;
    for (int i = 0; i < E; i++)
        if (!out[i]) mean += x[i], n++;
    for (int i = 0; i < E; i++)
        if (!out[i]) x[i] -= mean / n;
    return mean / n;
}

static double range_of(const double *bias) {
    double least = bias[0], most = bias[0];
    for (int i = 1; i < E; i++) least = fmin(least, bias[i]), most = fmax(most, bias[i]);
    return most - least + 2;
}

/* Within a bin of the value by definition, and of the mean as well. */
static void the_bias_is_a_quantile(void **state) {
    (void)state;
    for (int score = 0; score < 2; score++) {
        layer *l = new_layer("ref", K, score);
        mu_quantiles *q = mu_quantiles_new(l->dev, comm_alone(), 1, E);
        for (int step = 0; step < 3; step++) {
            double wanted[E], bin = range_of(l->moe.bias) / MU_QUANTILE_BINS;
            quantiles_of(l, (double)K / E, wanted);
            centred(wanted, l->protection.exempt);
            free(update(l, q, SEQUENCES));
            for (int i = 0; i < E; i++) assert_true(fabs(l->moe.bias[i] - wanted[i]) < 2 * bin);
        }
        mu_quantiles_free(q);
        layer_free(l);
    }
}

static void exempt_experts_keep_theirs(void **state) {
    (void)state;
    layer *l = new_layer("ref", K, MU_MOE_SCORE_SIGMOID);
    mu_quantiles *q = mu_quantiles_new(l->dev, comm_alone(), 1, E);
    l->protection.exempt[2] = l->protection.exempt[5] = 1;
    l->moe.bias[2] = -0.75, l->moe.bias[5] = 0.25;
    l->routing = mu_moe_route(&l->moe, l->tp, &l->cx, &l->x_TD->tensor);
    int64_t *counts = layer_counts(l);
    double wanted[E], bin = range_of(l->moe.bias) / MU_QUANTILE_BINS;
    /* even shares of what the others have: with one of 128 tokens less or more, too */
    double share = (double)(TOKENS * K - counts[2] - counts[5]) / ((E - 2) * TOKENS);
    assert_true(counts[2] != counts[5]);
    free(counts);
    quantiles_of(l, share, wanted);
    centred(wanted, l->protection.exempt);
    free(update(l, q, SEQUENCES));
    assert_true(l->moe.bias[2] == -0.75 && l->moe.bias[5] == 0.25);
    for (int i = 0; i < E; i++)
        if (!l->protection.exempt[i]) assert_true(fabs(l->moe.bias[i] - wanted[i]) < 0.03 + 2 * bin);
    memset(l->protection.exempt, 1, E);            /* none is left */
    free(update(l, q, SEQUENCES));
    for (int i = 0; i < E; i++) assert_true(isfinite(l->moe.bias[i]));
    mu_quantiles_free(q);
    layer_free(l);
}

static void splits_give_the_same_bits(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu" };
    for (int d = 0; d < 2; d++) {
        double bias[4][E];
        for (int split = 0; split < 4; split++) {
            layer *l = new_layer(devices[d], K, MU_MOE_SCORE_SIGMOID);
            mu_quantiles *q = mu_quantiles_new(l->dev, comm_alone(), 1, E);
            for (int step = 0; step < 3; step++) free(update(l, q, SEQUENCES >> split));
            memcpy(bias[split], l->moe.bias, sizeof bias[split]);
            mu_quantiles_free(q);
            layer_free(l);
        }
        for (int split = 1; split < 4; split++) assert_memory_equal(bias[split], bias[0], sizeof bias[0]);
        assert_true(range_of(bias[0]) > 2.01);
    }
}

/* Logits that prefer some experts: from uneven to nearly even in a few updates. */
static void the_load_becomes_even(void **state) {
    (void)state;
    for (int score = 0; score < 2; score++) {
        layer *l = new_layer("cpu", K, score);
        mu_quantiles *q = mu_quantiles_new(l->dev, comm_alone(), 1, E);
        double vio[12];
        for (int step = 0; step < 12; step++) {
            int64_t *loads = update(l, q, SEQUENCES);
            vio[step] = mu_load_of(loads, E).max_vio;
            free(loads);
        }
        assert_true(vio[0] > 0.3 && vio[11] <= 0.1);
        mu_quantiles_free(q);
        layer_free(l);
    }
}

/* Nothing to choose, and nothing to count. */
static void all_experts_and_no_tokens(void **state) {
    (void)state;
    layer *l = new_layer("ref", E, MU_MOE_SCORE_SIGMOID);
    mu_quantiles *q = mu_quantiles_new(l->dev, comm_alone(), 1, E);
    free(update(l, q, SEQUENCES));
    for (int i = 0; i < E; i++) assert_true(l->moe.bias[i] == 0);
    mu_quantiles_free(q);
    layer_free(l);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(the_bias_is_a_quantile), cmocka_unit_test(exempt_experts_keep_theirs),
                                        cmocka_unit_test(splits_give_the_same_bits), cmocka_unit_test(the_load_becomes_even),
                                        cmocka_unit_test(all_experts_and_no_tokens) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
