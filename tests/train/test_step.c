/* test_step.c - one training step: host synchronizations, experts without tokens are not updated, and
 * a non-finite step changes nothing. */
#include "train/training_run.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const char *const common =
    "run: {dir: unused}\n"
    "model: {hidden_size: 24, num_layers: 3, num_heads: 2, max_seq_len: 16}\n"
    "data: {train: [{domain: common-1, path: synthetic}, {domain: rare-1, path: synthetic}]}\n"
    "log: {progress: quiet}\n";

static mu_training *training_new(const char *rest) {
    mu_error e = { 0 };
    mu_training *t = mu_alloc(1, sizeof *t);
    char *text = mu_format("%s%s", common, rest);
    if (mu_config_load_text(&t->cfg, "test", text, 0, NULL, &e) != MU_STATUS_OK ||
        mu_training_open(t, mu_mesh_alone(), MU_VAL_DOCUMENTS_BY_HASH, &e) != MU_STATUS_OK)
        fail_msg("%s", e.text);
    free(text);
    return t;
}

static void expect_one_wait(const char *moe, const char *train) {
    char *text = mu_format("moe: {top_k: 2, moe_ffn_hidden_size: 20, %s}\n"
                           "train: {steps: 20, global_batch_size: 4, seq_len: 16, threads: 1, device: guarded, %s}\n",
                           moe, train);
    mu_training *t = training_new(text);
    for (int i = 0; i < 4; i++) {
        int64_t before = mu_device_waits(t->dev), waits;
        mu_step_result r = mu_training_step(t, NULL);
        assert_true(r.finite && r.values.loss > 0 && r.values.ce > 0 && r.values.grad_norm > 0);
        assert_true(t->state.model->n_moe ? r.values.aux > 0.5 : r.values.aux == 0);
        assert_int_equal(r.values.dropped > 0, t->cfg.moe.capacity_factor > 0);
        waits = mu_device_waits(t->dev) - before;
        if (waits != 1) fail_msg("step %d: %lld waits; %s", i, (long long)waits, text);
    }
    training_free(t);
    free(text);
}

/* On one rank the host waits once, for all results, after the whole step is enqueued. */
static void the_host_waits_once_at_the_end(void **state) {
    (void)state;
    static const char *const train[] = { "micro_batch_size: 4", "micro_batch_size: 2", "micro_batch_size: 1" };
    for (int i = 0; i < 3; i++) {
        expect_one_wait("num_experts: 8", train[i]);
        expect_one_wait("num_experts: 8, global_aux_counts: previous, num_shared_experts: 1", train[i]);
        expect_one_wait("num_experts: 8, balance: [aux_loss, seq_aux_loss]", train[i]);
        expect_one_wait("num_experts: 8, balance: [expert_bias], score_func: sigmoid", train[i]);
        expect_one_wait("num_experts: 8, balance: [none], moe_layer_freq: 2", train[i]);
        expect_one_wait("num_experts: 0", train[i]);
        expect_one_wait("num_experts: 8, capacity_factor: 0.5", train[i]);
    }
}

/* All values of a unit. Heap. */
static double *values_of(const mu_training *t, const mu_unit *u) {
    double *x = mu_alloc((size_t)u->count, sizeof *x);
    mu_reals_get(t->dev, t->dev->master, mu_unit_data(u), u->count, x);
    return x;
}

static int64_t n_units(const mu_training *t) { return t->state.model->params->n_global_units; }

static double **all_values(const mu_training *t) {
    double **x = mu_alloc((size_t)n_units(t), sizeof *x);
    for (mu_unit *u = mu_unit_next(t->state.model->params, NULL); u; u = mu_unit_next(t->state.model->params, u))
        x[u->global_index] = values_of(t, u);
    return x;
}

static void values_free(const mu_training *t, double **x) {
    for (int64_t i = 0; i < n_units(t); i++) free(x[i]);
    free(x);
}

/* Every token goes to expert 0. The others keep weights and step counts, with one micro-batch and with several. */
static void experts_without_tokens_rest(void **state) {
    (void)state;
    enum { STEPS = 3 };
    for (int micro = 1; micro <= 4; micro *= 2) {
        char *text = mu_format("moe: {num_experts: 4, top_k: 1, norm_topk_prob: false, moe_ffn_hidden_size: 20, force_skew: true}\n"
                               "train: {steps: 20, global_batch_size: 4, micro_batch_size: %d, seq_len: 16, threads: 1}\n",
                               4 / micro);
        mu_training *t = training_new(text);
        double **before = all_values(t), **after;
        for (int i = 0; i < STEPS; i++) assert_true(mu_training_step(t, NULL).finite);
        after = all_values(t);
        for (mu_unit *u = mu_unit_next(t->state.model->params, NULL); u; u = mu_unit_next(t->state.model->params, u)) {
            int64_t i = u->global_index;
            bool same = !memcmp(before[i], after[i], (size_t)u->count * sizeof **before);
            assert_int_equal(same, u->expert > 0);
            assert_int_equal(mu_optimizer_steps(t->state.opt, u), u->expert > 0 ? 0 : STEPS);
        }
        values_free(t, before);
        values_free(t, after);
        training_free(t);
        free(text);
    }
}

static void a_step_that_is_not_finite_changes_nothing(void **state) {
    (void)state;
    for (int micro = 1; micro <= 2; micro++) {
        char *text = mu_format("moe: {num_experts: 4, moe_ffn_hidden_size: 20}\n"
                               "train: {steps: 20, global_batch_size: 4, micro_batch_size: %d, seq_len: 16, threads: 1}\n",
                               4 / micro);
        mu_training *t = training_new(text);
        assert_true(mu_training_step(t, NULL).finite);
        mu_unit *u = mu_params_find(t->state.model->params, "/layers/2/post_attention_layernorm/weight");
        mu_reals_set(t->dev, t->dev->master, mu_unit_data(u), 1, &(double){ NAN });
        double **before = all_values(t), **after;
        assert_false(mu_training_step(t, NULL).finite);
        after = all_values(t);
        assert_int_equal(t->state.step, 1);
        for (u = mu_unit_next(t->state.model->params, NULL); u; u = mu_unit_next(t->state.model->params, u)) {
            int64_t i = u->global_index;
            assert_memory_equal(before[i], after[i], (size_t)u->count * sizeof **before);
            assert_true(mu_optimizer_steps(t->state.opt, u) <= 1);
        }
        values_free(t, before);
        values_free(t, after);
        training_free(t);
        free(text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_host_waits_once_at_the_end),
        cmocka_unit_test(experts_without_tokens_rest),
        cmocka_unit_test(a_step_that_is_not_finite_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
