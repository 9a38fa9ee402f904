/* test_knowledge.c - what a probe shows of the experts: what is paid for, which experts are masked next, criticality and its
 * peak, flips, coverage; state of a checkpoint, of other domains, too. */
#include "moe/moe.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "stops.h"

enum { L = 2, E = 4, K = 2, D = 2, CELLS = L * E * D, TOKENS = 100 };

static mu_option_domain of_a_and_b[] = { { .domain = "a" }, { .domain = "b" } }, of_b_and_c[] = { { .domain = "b" }, { .domain = "c" } };
static const mu_option_domains a_and_b = { D, of_a_and_b }, b_and_c = { D, of_b_and_c };
static const int64_t tokens[D] = { TOKENS, TOKENS };
static const double nll[D] = { 200, 300 };

/* Domain a chooses experts 0 and 1 of layer 0 alone, b all four of both layers alike, as a does in layer 1. */
static const int64_t n[CELLS] = { 100, 50, 100, 50, 0, 50, 0, 50, 50, 50, 50, 50, 50, 50, 50, 50 };

static int at(int layer, int expert, int domain) { return (layer * E + expert) * D + domain; }

static void a_measurement_begins_with_what_is_known_without_masks(void **state) {
    (void)state;
    mu_knowledge *k = mu_knowledge_new(L, E, K, &a_and_b);
    k->K[at(0, 2, 0)] = k->peak[at(0, 2, 0)] = 0.5;         /* known before, and now no token of the domain chooses it */
    mu_knowledge_begin(k, 40, n, tokens, nll);
    assert_true(k->ce[0] == 2 && k->ce[1] == 3 && k->ce_best[0] == 2);
    assert_true(k->K[at(0, 2, 0)] == 0 && k->at[at(0, 2, 0)] == 40 && k->peak[at(0, 2, 0)] == 0.5);
    assert_int_equal(k->at[at(0, 0, 0)], 0);
    static const double worse[D] = { 250, 100 };
    mu_knowledge_begin(k, 50, n, tokens, worse);
    assert_true(k->ce[0] == 2.5 && k->ce_best[0] == 2 && k->ce_best[1] == 1);
    static const double broken[D] = { NAN, INFINITY };
    mu_knowledge_begin(k, 60, n, tokens, broken);
    assert_true(k->ce[0] == 2.5 && k->ce[1] == 1);
    assert_int_equal(k->rounds, 3);
    mu_knowledge_free(k);
}

static void experts_of_many_tokens_and_critical_ones_are_screened(void **state) {
    (void)state;
    mu_knowledge *k = mu_knowledge_new(L, E, K, &a_and_b);
    mu_knowledge_begin(k, 1, n, tokens, nll);
    for (int layer = 0; layer < L; layer++)
        for (int i = 0; i < E; i++)
            for (int d = 0; d < D; d++) assert_int_equal(mu_knowledge_screened(k, layer, i, d), layer == 0 && i < 2 && d == 0);
    k->K[at(1, 3, 1)] = 0.0101f;
    assert_true(mu_knowledge_screened(k, 1, 3, 1));
    k->K[at(0, 3, 0)] = 0.0101f;     /* no token: nothing to measure */
    assert_false(mu_knowledge_screened(k, 0, 3, 0));
    k->rare[0] = true;               /* of experts that a rare domain needs, all domains are measured */
    for (int i = 0; i < E; i++) assert_false(mu_knowledge_screened(k, 0, i, 1));
    k->K[at(1, 2, 0)] = k->K[at(1, 0, 1)] = 0.0101f;
    assert_true(mu_knowledge_screened(k, 1, 2, 1) && !mu_knowledge_screened(k, 1, 0, 0));
    mu_knowledge_free(k);
    mu_knowledge *all = mu_knowledge_new(1, 2, 2, &a_and_b);        /* every token takes every expert */
    mu_knowledge_begin(all, 1, (int64_t[]){ 100, 100, 100, 100 }, tokens, nll);
    assert_false(mu_knowledge_screened(all, 0, 0, 0));
    assert_true(isnan(mu_knowledge_coverage(all, 0)));
    mu_knowledge_free(all);
}

static void experts_take_turns_within_the_credit(void **state) {
    (void)state;
    int64_t cells[L * E];
    mu_knowledge *k = mu_knowledge_new(L, E, K, &a_and_b);
    k->K[at(1, 3, 0)] = k->K[at(1, 3, 1)] = 1;
    mu_knowledge_earn(k, 10, 10, 1000, 0.024);       /* 600 tokens */
    assert_int_equal(k->credit, 600);
    assert_false(mu_knowledge_affords(k, 301));
    assert_true(mu_knowledge_affords(k, 2 * TOKENS));
    mu_knowledge_begin(k, 10, n, tokens, nll);
    assert_int_equal(k->credit, 400);
    assert_int_equal(mu_knowledge_choose(k, cells), 3);
    assert_int_equal(cells[0], 0);
    assert_int_equal(cells[1], 1);
    assert_int_equal(cells[2], E + 3);
    assert_int_equal(k->credit, 0);
    assert_int_equal(k->next, 0);
    mu_knowledge_earn(k, 15, 10, 1000, 0.024);       /* 300: after the first pass not enough for two */
    assert_false(mu_knowledge_affords(k, 2 * TOKENS));
    mu_knowledge_earn(k, 20, 10, 1000, 0.024);
    assert_int_equal(k->credit, 600);
    k->credit = 350;
    mu_knowledge_begin(k, 20, n, tokens, nll);
    assert_int_equal(mu_knowledge_choose(k, cells), 1);
    assert_int_equal(cells[0], 0);
    assert_int_equal(k->next, 1);
    k->credit = 100;
    assert_int_equal(mu_knowledge_choose(k, cells), 1);
    assert_int_equal(cells[0], 1);
    assert_int_equal(k->next, E + 3);           /* this one costs 200 */
    k->credit = 1000000;
    assert_int_equal(mu_knowledge_choose(k, cells), 3);         /* each once at most */
    assert_int_equal(cells[0], E + 3);
    k->credit = 149, k->pass[1] = 0.5, k->next = 0;     /* half a pass in layer 1, where the layers below are known */
    assert_int_equal(mu_knowledge_choose(k, cells), 1);
    k->credit = 199, k->next = 2;
    assert_int_equal(mu_knowledge_choose(k, cells), 1);
    assert_true(cells[0] == E + 3 && k->credit == 99 && k->next == 0);
    k->credit = 1000000;
    mu_knowledge_end(k, 2 * TOKENS);
    assert_int_equal(k->credit, 4 * TOKENS);
    k->credit = 0, k->earned_step = 0;
    mu_knowledge_earn(k, 20, 5, 1000, 0.024);    /* 20 steps without a measurement, which was due every 5: paid for 5 */
    assert_int_equal(k->credit, 300);
    STOPS("step 19, paid until step 20", mu_knowledge_earn(k, 19, 10, 1, 1));
    mu_knowledge_free(k);
}

static void criticality_is_a_difference_of_means(void **state) {
    (void)state;
    mu_knowledge *k = mu_knowledge_new(L, E, K, &a_and_b);
    mu_knowledge_begin(k, 7, n, tokens, nll);
    assert_true(mu_knowledge_coverage(k, 0) == 0);
    mu_knowledge_set(k, 0, 1, 0, 350, 200);
    assert_true(k->K[at(0, 1, 0)] == 1.5 && k->peak[at(0, 1, 0)] == 1.5);
    assert_int_equal(k->at[at(0, 1, 0)], 7);
    assert_true(mu_knowledge_coverage(k, 7) == 0.5 && mu_knowledge_coverage(k, 8) == 0);
    mu_knowledge_set(k, 0, 1, 0, 190, 200);
    assert_true(fabs((double)k->K[at(0, 1, 0)] + 0.1) < 1e-8 && k->peak[at(0, 1, 0)] == 1.5);
    mu_knowledge_set(k, 0, 1, 0, INFINITY, 200);
    assert_true(fabs((double)k->K[at(0, 1, 0)] + 0.1) < 1e-8);
    mu_knowledge_free(k);
}

static void flips_are_counted_as_sets(void **state) {
    (void)state;
    mu_knowledge *k = mu_knowledge_new(1, E, K, &a_and_b);
    int32_t ids[D * MU_KNOWLEDGE_TOKENS][K];
    memset(ids, -1, sizeof ids);
    ids[0][0] = 0, ids[0][1] = 1, ids[70][0] = 2, ids[70][1] = 3;
    mu_knowledge_flips(k, ids[0], 1);
    assert_true(isnan(k->flip_rate[0]));
    ids[0][0] = 1, ids[0][1] = 0, ids[70][1] = 0;       /* another order is no flip */
    mu_knowledge_flips(k, ids[0], 1);
    assert_true(k->flip_rate[0] == 0.25);
    mu_knowledge_flips(k, ids[0], 1);
    assert_true(k->flip_rate[0] == 0);
    mu_knowledge_flips(k, ids[0], 2);                   /* another probe */
    assert_true(isnan(k->flip_rate[0]));
    mu_knowledge_free(k);
}

/* Measurements 1 and 4 are landmarks. Layer 0 keeps one of two experts of its token from 1 to 4, and both from then on. */
static void saturation_looks_back(void **state) {
    (void)state;
    int32_t ids[6][L * D * MU_KNOWLEDGE_TOKENS * K];
    mu_knowledge *k = mu_knowledge_new(L, E, K, &a_and_b);
    for (int round = 1; round <= 5; round++) {
        for (size_t i = 0; i < sizeof ids[0] / sizeof ids[0][0]; i++) ids[round][i] = -1;
        ids[round][0] = 1, ids[round][1] = round == 1 ? 0 : round == 2 ? 2 : 3;
        mu_knowledge_begin(k, 10 * round, n, tokens, nll);
        mu_knowledge_flips(k, ids[round], 1);
        assert_true(round == 1 ? isnan(k->saturation[0]) : k->saturation[0] == 0.5);
    }
    assert_true(k->landmark_step[0] == 10 && k->landmark_step[1] == 40 && k->landmark_step[2] == 0);
    assert_true(k->saturation[1] == 1 && isnan(k->saturation[2]) && isnan(k->saturation[MU_LANDMARKS]));
    mu_knowledge_flips(k, ids[5], 2);                   /* another probe */
    assert_true(k->landmark_step[0] == 0 && isnan(k->saturation[0]));
    mu_knowledge_free(k);
}

/* ------------------------------------------------------------------ state: copied array by array, as through a file */

typedef struct { mu_state_visitor v; int n; void *saved[32]; char names[32][MU_STATE_NAME]; bool load; } copier;

static size_t bytes_of(const mu_state *s) { return (size_t)mu_state_count(s) * (s->type == MU_STORE_I32 ? 4 : 8); }

static void copy_one(mu_state_visitor *v, const mu_state *s) {
    copier *c = (copier *)v;
    assert_int_equal(s->since, strstr(s->name, "/landmark_") ? 5 : 4);
    assert_true((s->data || (s->get && s->set)) && s->for_training);
    if (!c->load) {
        c->saved[c->n] = malloc(bytes_of(s) + 1);
        if (s->data) memcpy(c->saved[c->n], s->data, bytes_of(s));
        else s->get(s, c->saved[c->n]);
        memcpy(c->names[c->n++], s->name, MU_STATE_NAME);
        return;
    }
    mu_error e;
    for (int i = 0; i < c->n; i++) {
        if (strcmp(c->names[i], s->name)) continue;
        assert_int_equal(mu_state_check(s, c->saved[i], "file", &e), MU_STATUS_OK);
        if (s->data) memcpy(s->data, c->saved[i], bytes_of(s));
        else assert_int_equal(s->set(s, c->saved[i], &e), MU_STATUS_OK);
    }
}

static mu_knowledge *with_history(void) {
    mu_knowledge *k = mu_knowledge_new(L, E, K, &a_and_b);
    int32_t ids[L * D * MU_KNOWLEDGE_TOKENS * K] = { 1, 2 };
    mu_knowledge_earn(k, 10, 10, 1000, 0.06);
    mu_knowledge_begin(k, 10, n, tokens, nll);
    mu_knowledge_set(k, 0, 1, 0, 350, 200);
    mu_knowledge_set(k, 1, 2, 1, 400, 300);
    mu_knowledge_flips(k, ids, 1);
    k->twin[3] = 0.75, k->twin_of[3] = 2, k->similarity_step = 10, k->cka[1] = 0.5;
    return k;
}

static void state_is_kept(void **state) {
    (void)state;
    copier c = { .v = { copy_one } };
    mu_knowledge *k = with_history(), *again = mu_knowledge_new(L, E, K, &a_and_b), *other = mu_knowledge_new(L, E, K, &b_and_c);
    mu_knowledge_state(k, &a_and_b, 10, &c.v);
    c.load = true;
    mu_knowledge_state(again, &a_and_b, 10, &c.v);
    assert_memory_equal(again->K, k->K, sizeof *k->K * CELLS);
    assert_memory_equal(again->peak, k->peak, sizeof *k->peak * CELLS);
    assert_memory_equal(again->at, k->at, sizeof *k->at * CELLS);
    assert_memory_equal(again->ids, k->ids, sizeof *k->ids * L * D * MU_KNOWLEDGE_TOKENS * K);
    assert_memory_equal(again->landmark_ids, k->landmark_ids, sizeof *k->landmark_ids * MU_LANDMARKS * L * D * MU_KNOWLEDGE_TOKENS * K);
    assert_true(again->landmark_step[0] == 10 && again->credit == k->credit && again->earned_step == 10 && again->ids_sequences == 1 && again->twin_of[3] == 2);
    mu_knowledge_state(other, &a_and_b, 10, &c.v);              /* a run with domains b and c goes on from one of a and b */
    assert_true(other->K[at(1, 2, 0)] == 1 && other->ce[0] == 3 && other->ce_best[1] == 0 && other->twin[3] == 0.75);
    for (int i = 0; i < L * E; i++) assert_int_equal(other->at[i * D + 1], 0);
    assert_int_equal(other->ids_sequences + other->landmark_step[0], 0);
    for (int i = 0; i < c.n; i++) free(c.saved[i]);
    mu_knowledge *copy = mu_knowledge_copy(k);
    mu_knowledge_set(copy, 0, 0, 0, 900, 100);                  /* changes no other */
    assert_memory_equal(again->K, k->K, sizeof *k->K * CELLS);
    assert_true(copy->K[at(0, 0, 0)] != k->K[at(0, 0, 0)] && copy->credit == k->credit && !strcmp(copy->names[1], "b") && copy->twin_of[3] == 2);
    mu_knowledge_free(copy);
    mu_knowledge_free(k);
    mu_knowledge_free(again);
    mu_knowledge_free(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_measurement_begins_with_what_is_known_without_masks),
        cmocka_unit_test(experts_of_many_tokens_and_critical_ones_are_screened),
        cmocka_unit_test(experts_take_turns_within_the_credit),
        cmocka_unit_test(criticality_is_a_difference_of_means),
        cmocka_unit_test(flips_are_counted_as_sets),
        cmocka_unit_test(saturation_looks_back),
        cmocka_unit_test(state_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
