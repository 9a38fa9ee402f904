/* test_advice.c - what is said of experts in made-up states: advice, and the line of all states. */
#include "train/events.h"
#include "train/training_run.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Two layers of four experts, two domains, judged every 10 steps. */
enum { E = 4, D = 2, STEP = 30, DEAD = 1, STARVED = E + 2, A = 0, B = 1 };
static const char *const text =
    "run: {dir: unused}\n"
    "model: {hidden_size: 16, num_layers: 2, num_heads: 2, max_seq_len: 16}\n"
    "moe: {num_experts: 4, top_k: 1, moe_ffn_hidden_size: 12, norm_topk_prob: false}\n"
    "data: {train: [{domain: a, path: synthetic}, {domain: b, path: synthetic}]}\n"
    "train: {steps: 100, global_batch_size: 4, seq_len: 16, threads: 1}\n"
    "stats: {every: 10}\n"
    "log: {progress: quiet}\n";
static mu_training *t;

static int start(void **state) {
    (void)state;
    mu_error e = { 0 };
    t = mu_alloc(1, sizeof *t);
    if (mu_config_load_text(&t->cfg, "test", text, 0, NULL, &e) || mu_training_open(t, mu_mesh_alone(), MU_VAL_DOCUMENTS_BY_HASH, &e)) fail_msg("%s", e.text);
    t->state.step = STEP;
    t->state.stats->health.state[DEAD] = MU_EXPERT_DEAD, t->state.stats->health.state[STARVED] = MU_EXPERT_STARVED;
    return 0;
}

static int end(void **state) {
    (void)state;
    training_free(t);
    return 0;
}

static void assert_advice(mu_advice_topic topic, const char *beginning) {
    mu_step_result r = { 0 };
    mu_advice a;
    if (!mu_advice_find(log_source(t), &r, topic, &a)) {
        assert_null(beginning);
        return;
    }
    if (!beginning || strncmp(a.text, beginning, strlen(beginning))) fail_msg("%s", a.text);
    mu_advice_free(&a);
}

static void set_criticality(int expert, int domain, double K) { t->state.knowledge->K[expert * D + domain] = (float)K; }

static void experts_that_a_domain_needs_are_not_unused(void **state) {
    (void)state;
    assert_advice(MU_ADVICE_UNUSED, "2 of 8 experts are in the state dead, or for at least three windows in the state starved");
    set_criticality(DEAD, A, 0.0099), set_criticality(STARVED, B, 0.0099);      /* below stats.dead_criticality */
    assert_advice(MU_ADVICE_UNUSED, "2 of 8 ");
    set_criticality(STARVED, B, 0.0101);
    assert_advice(MU_ADVICE_UNUSED, "1 of 8 ");
    set_criticality(DEAD, A, 0.0101);
    assert_advice(MU_ADVICE_UNUSED, NULL);
    set_criticality(STARVED, B, 0);
    assert_advice(MU_ADVICE_UNUSED, "1 of 8 ");
    t->state.stats->health.since[STARVED] = STEP - 29;                          /* two windows */
    assert_advice(MU_ADVICE_UNUSED, NULL);
}

static void a_starved_expert_that_a_domain_needs_is_told(void **state) {
    (void)state;
    set_criticality(DEAD, A, 2), set_criticality(STARVED, A, 0.0499);           /* below stats.carrier_criticality */
    assert_advice(MU_ADVICE_NEEDED, NULL);
    set_criticality(STARVED, A, 0.0501), set_criticality(STARVED, B, 0.25);
    assert_advice(MU_ADVICE_NEEDED, "layer 1: expert 2 is starved, but b depends on it: it loses 0.25 nats per token without it");
    t->state.stats->health.since[STARVED] = STEP - 29;
    assert_advice(MU_ADVICE_NEEDED, NULL);
}

static void assert_summary(const char *wanted) {
    char *line = mu_experts_summary(log_source(t));
    assert_string_equal(line, wanted);
    free(line);
}

static void the_line_of_all_states_says_when_the_worst_domain_was_measured(void **state) {
    (void)state;
    mu_knowledge *k = t->state.knowledge;
    assert_summary("6 healthy, 1 starved (layer 1: 2), 1 dead (layer 0: 1)");
    k->rounds = 1, k->step = STEP;
    k->tokens[A] = k->tokens[B] = 16;
    k->ce[A] = 2, k->ce_best[A] = 2, k->ce[B] = 1.5, k->ce_best[B] = 1.25;
    assert_summary("6 healthy, 1 starved (layer 1: 2), 1 dead (layer 0: 1); worst domain b 1.50 (+0.25)");
    k->step = 20;
    assert_summary("6 healthy, 1 starved (layer 1: 2), 1 dead (layer 0: 1); worst domain b 1.50 (as of step 20)");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, end)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(experts_that_a_domain_needs_are_not_unused), TEST(a_starved_expert_that_a_domain_needs_is_told),
        TEST(the_line_of_all_states_says_when_the_worst_domain_was_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
