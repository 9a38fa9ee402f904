/* test_probe.c - criticality on a probe against the same forward passes by hand; an oracle that gives each domain its own expert is
 * found; what is not paid for, and domains without validation text. */
#include "train/training_run.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { S = 16 };
static const char *const common =
    "run: {dir: unused, seed: %d}\n"
    "model: {hidden_size: 16, num_layers: 3, num_heads: 2, max_seq_len: 16}\n"
    "moe: {num_experts: 4, top_k: %d, moe_ffn_hidden_size: 12, first_k_dense: 1, norm_topk_prob: false}\n"
    "data: {train: [{domain: common-1, path: synthetic}, {domain: rare-1, path: synthetic}, {domain: x, path: synthetic}], %s}\n"
    "train: {steps: 20, global_batch_size: 4, seq_len: 16, threads: 1}\n"
    "stats: {probe_tokens: 50}\n"
    "log: {progress: quiet}\n";

static mu_training *training_of(char *text) {
    mu_error e = { 0 };
    mu_training *t = mu_alloc(1, sizeof *t);
    if (mu_config_load_text(&t->cfg, "test", text, 0, NULL, &e) != MU_STATUS_OK ||
        mu_training_open(t, mu_mesh_alone(), MU_VAL_DOCUMENTS_BY_HASH, &e) != MU_STATUS_OK)
        fail_msg("%s", e.text);
    free(text);
    return t;
}

static mu_training *training_new(int seed, int top_k, const char *data) { return training_of(mu_format(common, seed, top_k, data)); }

/* Domain a is forced to expert 5, b to 2 and the rare one to 0, in each layer. */
static const char *const oracle =
    "run: {dir: unused, seed: %d}\n"
    "model: {hidden_size: 32, num_layers: %d, num_heads: 2, max_seq_len: 32}\n"
    "moe: {num_experts: %d, top_k: 2, moe_ffn_hidden_size: 32, balance: [%s], aux_loss_coeff: 0.001, force_domains: {%s}}\n"
    "data: {val_fraction: 0.2, train: [{domain: a, path: synthetic}, {domain: b, path: synthetic}, {domain: rare-1, path: synthetic, weight: 20}]}\n"
    "optim: {lr: 1e-2, warmup_steps: 5}\n"
    "train: {steps: %d, global_batch_size: 16, seq_len: 32, threads: 1}\n"
    "log: {progress: quiet}\n";

static mu_probe *probe_keeping(const mu_training *t, int64_t at_once, int64_t keep_bytes) {
    return mu_probe_new(&(mu_evaluation){ t->state.model, t->tape, &t->texts, t->state.mesh->batch, at_once, { NULL, 1 }, NULL, NULL },
                        t->cfg.stats.probe_tokens, keep_bytes);
}
static mu_probe *probe_of(const mu_training *t, int64_t at_once) { return probe_keeping(t, at_once, MU_PROBE_KEEP_BYTES); }

/* The sum of cross-entropies of a domain's first `n` validation sequences with an expert masked (-1: none): all layers, one sequence at a
 * time. */
static double nll_by_hand(const mu_training *t, int domain, int n, int layer, int expert) {
    const mu_model *m = t->state.model;
    int E = (int)m->moe_cfg.num_experts;
    int32_t tokens[S], targets[S], mask[8] = { 1, 1, 1, 1, 1, 1, 1, 1 };
    mu_routing routings[2];
    double sum = 0, nll[S];
    if (expert >= 0) mask[layer * E + expert] = 0;
    mu_tape_record(t->tape, false);
    for (int i = 0; i < n; i++) {
        mu_loader_val_read(t->texts.loader, domain, i, tokens, targets);
        mu_context cx = { .mode = MU_MODE_EVAL, .n_sequences = 1, .seq_len = S, .expert_mask = { mask, 1 } };
        mu_tensor *x = mu_model_forward(m, t->tape, &cx, mu_tensor_ints(t->tape, MU_DTYPE_I32, S, tokens), routings), *each;
        mu_model_head_loss(m, t->tape, x, mu_tensor_ints(t->tape, MU_DTYPE_I32, S, targets), 1.0, &each);
        mu_tensor_get(each, nll);
        double of_sequence = 0;
        for (int s = 0; s < S; s++) of_sequence += nll[s];
        sum += of_sequence;
        mu_tape_reset(t->tape);
    }
    mu_tape_record(t->tape, true);
    return sum;
}

static void criticality_is_what_masking_costs(void **state) {
    (void)state;
    enum { SEQUENCES = 3, PROBE = SEQUENCES * 3 * S, CELLS = 2 * 4 * 3 };       /* 50 tokens: three sequences of 16 */
    mu_training *t = training_new(5, 1, "val_fraction: 0.1");
    float first[CELLS];
    for (int at_once = 1; at_once <= 4; at_once += 3) {
        mu_probe *p = probe_of(t, at_once);
        mu_knowledge *k = mu_knowledge_new(2, 4, 1, &t->cfg.data.train);
        k->credit = (int64_t)1 << 40;
        assert_int_equal(mu_probe_tokens(p), PROBE);
        assert_true(mu_probe_measure(p, k, 7));
        int measured = 0;
        for (int d = 0; d < 3; d++) {
            double base = nll_by_hand(t, d, SEQUENCES, 0, -1);
            assert_true(k->ce[d] == base / (SEQUENCES * S) && k->ce_ref[d] > 0);
            for (int layer = 0; layer < 2; layer++)
                for (int i = 0; i < 4; i++) {
                    int64_t cell = (layer * 4 + i) * 3 + d;
                    if (!k->at[cell]) continue;
                    float K = (float)((nll_by_hand(t, d, SEQUENCES, layer, i) - base) / (SEQUENCES * S));
                    if (k->K[cell] != K) fail_msg("layer %d, expert %d, domain %d: %.9g, not %.9g", layer, i, d, (double)k->K[cell], (double)K);
                    measured += K != 0;
                }
        }
        assert_true(measured >= 3 && mu_knowledge_coverage(k, 7) == 1);
        assert_int_equal(k->credit, 2 * PROBE);
        if (at_once == 1) memcpy(first, k->K, sizeof first);
        assert_memory_equal(first, k->K, sizeof first);         /* the same bits for another number of sequences at once */
        mu_knowledge_free(k);
        mu_probe_free(p);
    }
    training_free(t);
}

/* Of three layers the first is dense. Passes with a mask go on from the input of the second or third layer, or begin anew where memory keeps
 * only some or none of these. */
static void passes_with_a_mask_repeat_no_layer_below_it(void **state) {
    (void)state;
    enum { CELLS = 2 * 4 * 3, LAYER = 9 * S * 16 * (int)sizeof(float) };
    static const struct { int64_t bytes; int turn; double pass[2]; } kept[] = {     /* in layers of three, if the head cost nothing */
        { MU_PROBE_KEEP_BYTES, 0, { 1 / 3.0, 2 / 3.0 } }, { LAYER, 0, { 1 / 3.0, 1 / 3.0 } }, { LAYER, 5, { 0, 2 / 3.0 } }, { LAYER - 1, 0, { 0, 0 } },
    };
    mu_training *t = training_new(5, 1, "val_fraction: 0.1");
    mu_model_size size = mu_model_measure(&t->cfg.model, &t->cfg.moe, t->state.model->vocab_size, S);
    double layers = 1 - 6.0 * 16 * (double)t->state.model->vocab_size / size.train_flops;
    float first[CELLS];
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        mu_probe *p = probe_keeping(t, 2, kept[i].bytes);
        mu_knowledge *k = mu_knowledge_new(2, 4, 1, &t->cfg.data.train);
        k->credit = (int64_t)1 << 40, k->next = kept[i].turn;
        assert_true(mu_probe_measure(p, k, 7) && mu_knowledge_coverage(k, 7) == 1);
        for (int layer = 0; layer < 2; layer++) assert_true(fabs(k->pass[layer] - (1 - layers * kept[i].pass[layer])) < 1e-12);
        if (!i) memcpy(first, k->K, sizeof first);
        assert_memory_equal(first, k->K, sizeof first);
        mu_knowledge_free(k);
        mu_probe_free(p);
    }
    training_free(t);
}

static void nothing_is_measured_without_text_or_credit(void **state) {
    (void)state;
    mu_training *t = training_new(5, 1, "val_fraction: 0");
    mu_probe *p = probe_of(t, 1);
    t->state.knowledge->credit = 1000;
    assert_int_equal(mu_probe_tokens(p), 0);
    assert_false(mu_probe_measure(p, t->state.knowledge, 7));
    assert_int_equal(t->state.knowledge->rounds, 0);
    mu_probe_free(p);
    training_free(t);
    t = training_new(5, 1, "val_fraction: 0.1");
    p = probe_of(t, 1);
    mu_knowledge *k = t->state.knowledge;
    k->credit = 2 * mu_probe_tokens(p) - 1;
    assert_false(mu_probe_measure(p, k, 7));
    k->credit++;
    assert_true(mu_probe_measure(p, k, 7));
    assert_true(k->rounds == 1 && k->step == 7 && k->credit >= 0 && k->credit < mu_probe_tokens(p));
    mu_probe_free(p);
    training_free(t);
}

/* A choice that the configuration forces knows no mask. */
static void a_forced_choice_is_counted_and_not_masked(void **state) {
    (void)state;
    mu_training *t = training_new(5, 1, "val_fraction: 0.1");
    t->state.model->moe_cfg.force_balanced = true;
    mu_probe *p = probe_of(t, 3);
    t->state.knowledge->credit = 100000;
    assert_true(mu_probe_measure(p, t->state.knowledge, 7));
    for (int i = 0; i < 2 * 4 * 3; i++) assert_true(t->state.knowledge->K[i] == 0 && t->state.knowledge->n[i] == 12);
    mu_probe_free(p);
    training_free(t);
}

static int most_critical(const mu_knowledge *k, int layer, int domain) {
    int best = 0;
    for (int i = 1; i < k->experts; i++)
        if (k->K[(layer * k->experts + i) * k->domains + domain] > k->K[(layer * k->experts + best) * k->domains + domain]) best = i;
    return best;
}

static const int expert_of[3] = { 5, 2, 0 };
static const char *const experts_of = "a: 5, b: 2, rare-1: 0";

/* Trains with the oracle, then measures all that is screened. */
static mu_training *with_an_oracle(int seed, int layers, const char *balance, int steps) {
    mu_training *t = training_of(mu_format(oracle, seed, layers, 8, balance, experts_of, steps));
    for (int i = 0; i < steps; i++) assert_true(mu_training_step(t, NULL).finite);
    mu_probe *p = probe_of(t, 8);
    t->state.knowledge->credit = (int64_t)1 << 40;
    assert_true(mu_probe_measure(p, t->state.knowledge, t->state.step));
    mu_probe_free(p);
    return t;
}

static void the_expert_of_an_oracle_is_the_most_critical(void **state) {
    (void)state;
    for (int seed = 1; seed <= 4; seed++) {
        mu_training *t = with_an_oracle(seed, 2, "none", 120);
        for (int layer = 0; layer < 2; layer++)
            for (int d = 0; d < 3; d++)
                if (most_critical(t->state.knowledge, layer, d) != expert_of[d])
                    fail_msg("seed %d, layer %d, domain %d: expert %d", seed, layer, d, most_critical(t->state.knowledge, layer, d));
        training_free(t);
    }
}

/* Of all experts of all layers but its own, the largest criticality for a domain. */
static double largest_of_others(const mu_knowledge *k, int domain) {
    double most = 0;
    for (int64_t i = 0; i < (int64_t)k->layers * k->experts; i++)
        if (i % k->experts != expert_of[domain]) most = fmax(most, (double)k->K[i * k->domains + domain]);
    return most;
}

/* Where a domain's facts are is the model's choice. In a longer run of three layers they are in the first two: of the last layer it needs its expert
 * no more than the free ones, which serve all domains. Over all layers it depends on an expert of the oracle, far more than on any other. */
static void each_domain_depends_most_on_the_expert_of_an_oracle(void **state) {
    (void)state;
    for (int seed = 1; seed <= 3; seed++) {
        mu_training *t = with_an_oracle(seed, 3, "global_aux_loss", 300);
        const mu_knowledge *k = t->state.knowledge;
        for (int d = 0; d < 3; d++) {
            double own = 0, others = largest_of_others(k, d);
            for (int layer = 0; layer < 3; layer++) own = fmax(own, (double)k->K[(layer * k->experts + expert_of[d]) * k->domains + d]);
            if (own < 4 * others || own < 0.2) fail_msg("seed %d, domain %d: its expert %.4f nats, another %.4f", seed, d, own, others);
        }
        training_free(t);
    }
}

/* Two domains have an expert each of four, so the third has two to choose from, as many as a token takes: none can be masked. */
static void an_oracle_without_a_choice_is_not_masked(void **state) {
    (void)state;
    mu_training *t = training_of(mu_format(oracle, 1, 2, 4, "none", "a: 1, b: 2", 120));
    mu_probe *p = probe_of(t, 8);
    mu_knowledge *k = t->state.knowledge;
    bool measured = false;
    k->credit = (int64_t)1 << 40;
    assert_true(mu_probe_measure(p, k, 1));
    for (int i = 0; i < 2 * 4; i++) {
        assert_true(k->K[3 * i + 2] == 0);
        measured |= k->K[3 * i] != 0;
    }
    assert_true(measured);
    mu_probe_free(p);
    training_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_measured_without_text_or_credit),
        cmocka_unit_test(a_forced_choice_is_counted_and_not_masked),
        cmocka_unit_test(criticality_is_what_masking_costs),
        cmocka_unit_test(passes_with_a_mask_repeat_no_layer_below_it),
        cmocka_unit_test(the_expert_of_an_oracle_is_the_most_critical),
        cmocka_unit_test(each_domain_depends_most_on_the_expert_of_an_oracle),
        cmocka_unit_test(an_oracle_without_a_choice_is_not_masked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
