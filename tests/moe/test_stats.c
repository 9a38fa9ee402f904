/* test_stats.c - routing statistics: sums over micro-batches and domains, capacity, empty ones, invalid input. */
#include "layer.h"
#include "stops.h"

#include <math.h>

enum { E = 8, K = 2, SEQUENCES = 5, S = 4, DOMAINS = 3, T = SEQUENCES * S };

/* Adds the layer's last forward, in `domains`, and what it counted to wanted[E][DOMAINS]. */
static void add(mu_routing_stats *s, layer *l, const int32_t *domains, int64_t wanted[E][DOMAINS]) {
    int32_t ids[T * K];
    l->cx.domains = domains;
    layer_forward(l, l->tp);
    mu_routing_stats_add(s, l->tp, &l->cx, &l->routing);
    mu_tensor_read(l->routing.ids_TK, ids);
    for (int i = 0; i < T * K; i++) wanted[ids[i]][domains ? domains[i / (S * K)] : 0]++;
}

static void check(mu_routing_stats *s, int64_t wanted[E][DOMAINS]) {
    mu_routing_stats_read(s);
    for (int i = 0; i < E; i++) {
        int64_t sum = 0;
        for (int d = 0; d < DOMAINS; d++) {
            assert_int_equal(s->by_domain[i * DOMAINS + d], wanted[i][d]);
            sum += wanted[i][d];
        }
        assert_int_equal(s->counts[i], sum);
    }
}

static void counts_add_up(const char *device) {
    static const int32_t first[SEQUENCES] = { 2, 0, 0, 1, 2 }, second[SEQUENCES] = { 1, 1, 1, 1, 1 };
    int64_t wanted[E][DOMAINS] = { 0 }, again[E][DOMAINS] = { 0 };
    layer *l = layer_new(device, mesh_alone(), layer_config(E, K, 3), SEQUENCES, S, 5);
    layer *empty = layer_new(device, mesh_alone(), layer_config(E, K, 3), 0, S, 5);
    mu_routing_stats *s = mu_routing_stats_new(l->dev, comm_alone(), 1, E, DOMAINS, 0, 2);
    add(s, l, first, wanted);
    l->cfg.force_skew = true; /* another choice in the second micro-batch */
    add(s, l, second, wanted);
    add(s, l, NULL, wanted);
    int64_t micro[E];
    mu_device_read(l->dev, micro, mu_routing_stats_micro(s, 0).data, sizeof micro);
    assert_int_equal(micro[0], T);
    layer_forward(empty, empty->tp);
    mu_routing_stats_add(s, empty->tp, &empty->cx, &empty->routing);
    mu_device_read(l->dev, micro, mu_routing_stats_micro(s, 0).data, sizeof micro);
    assert_int_equal(micro[0], 0);
    check(s, wanted);
    for (int i = 0; i < E; i++) assert_int_equal(s->dropped[i], 0);
    mu_routing_stats_end(s);
    for (int i = 0; i < E; i++) assert_int_equal(s->window.previous[i], s->counts[i]);
    mu_routing_stats_begin(s);
    add(s, l, first, again);
    check(s, again);
    mu_routing_stats_free(s);
    layer_free(empty);
    layer_free(l);
}

static void micro_batches_and_domains_add_up(void **state) {
    (void)state;
    counts_add_up("ref");
    counts_add_up("cpu");
    counts_add_up("guarded");
}

/* Two passes that only count find what training finds. */
static void a_counting_pass_finds_the_same(void **state) {
    (void)state;
    int64_t counted[E];
    layer *l = layer_new("ref", mesh_alone(), layer_config(E, K, 3), SEQUENCES, S, 5);
    mu_routing_stats *s = mu_routing_stats_new(l->dev, comm_alone(), 1, E, 1, 0, 0);
    layer_forward(l, l->tp);
    mu_routing_stats_count(s, &l->routing, false);
    mu_routing_stats_count(s, &l->routing, true);
    mu_routing_stats_read(s);
    for (int i = 0; i < E; i++) assert_int_equal(s->counts[i], 0); /* the pass is not the batch */
    mu_routing_stats_add(s, l->tp, &l->cx, &l->routing);
    mu_routing_stats_add(s, l->tp, &l->cx, &l->routing);
    mu_routing_stats_read(s);
    mu_device_read(l->dev, counted, mu_routing_stats_counted(s, 0).data, sizeof counted);
    assert_memory_equal(counted, s->counts, sizeof counted);
    mu_routing_stats_free(s);
    layer_free(l);
}

static void dropped_is_what_capacity_left_out(void **state) {
    (void)state;
    mu_moe_config cfg = layer_config(E, K, 3);
    cfg.capacity_factor = 0.5;
    layer *l = layer_new("cpu", mesh_alone(), cfg, SEQUENCES, S, 5);
    mu_routing_stats *s = mu_routing_stats_new(l->dev, comm_alone(), 1, E, 1, 0, 0);
    layer_forward(l, l->tp);
    mu_routing_stats_add(s, l->tp, &l->cx, &l->routing);
    mu_routing_stats_read(s);
    int64_t all = 0;
    for (int i = 0; i < E; i++) all += s->counts[i];
    assert_int_equal(all, T * K);
    int64_t dropped = 0;
    for (int i = 0; i < E; i++) dropped += s->dropped[i];
    assert_int_equal(dropped, layer_dropped(l));
    assert_int_equal(s->dropped_of[0], dropped);
    assert_true(dropped > 0);
    mu_routing_stats_free(s);
    layer_free(l);
}

/* What the last forward adds, computed plainly from its tensors. */
typedef struct { int64_t mass[E], pairs[E][E]; mu_margins margins; } sums;

static void add_plainly(layer *l, sums *to) {
    int32_t ids[T * K];
    double gates[T * K], scores[T * E], bias[E];
    mu_tensor_read(l->routing.ids_TK, ids);
    mu_tensor_get(l->routing.gates_TK, gates);
    mu_tensor_get(l->routing.scores_TE, scores);
    for (int i = 0; i < E; i++) bias[i] = l->moe.bias[i];
    for (int t = 0; t < T; t++) {
        double all = 0, h = 0, first = 0, second = 0, least = INFINITY, others = -INFINITY;
        for (int i = 0; i < E; i++) all += scores[t * E + i];
        for (int i = 0; i < E; i++) {
            double s = scores[t * E + i], p = s / all;
            h -= p * log(p);
            if (s > first) second = first, first = s;
            else second = fmax(second, s);
            bool chosen = ids[t * K] == i || ids[t * K + 1] == i;
            if (chosen) least = fmin(least, s + bias[i]);
            else others = fmax(others, s + bias[i]);
        }
        for (int k = 0; k < K; k++) to->mass[ids[t * K + k]] += llrint(gates[t * K + k] * MU_GATE_UNIT);
        to->pairs[ids[t * K]][ids[t * K + 1]]++, to->pairs[ids[t * K + 1]][ids[t * K]]++;
        to->margins.entropy += llrint(h * MU_MARGIN_UNIT);
        to->margins.top += llrint((log(first / (1 - first)) - log(second / (1 - second))) * MU_MARGIN_UNIT);
        to->margins.boundary += llrint((least - others) * MU_MARGIN_UNIT);
    }
}

static void assert_margin(int64_t got, int64_t wanted) { assert_true(llabs(got - wanted) <= 2 * T); }

static void assert_pairs(mu_routing_stats *s, int64_t wanted[E][E]) {
    mu_routing_stats_read_pairs(s);
    assert_int_equal(s->n_pairs, E * (E - 1) / 2);
    for (int p = 0, i = 0; i < E; i++)
        for (int j = i + 1; j < E; j++, p++) {
            assert_true(s->pairs[p].i == i && s->pairs[p].j == j);
            assert_int_equal(s->pairs[p].n, wanted[i][j]);
        }
}

static void gates_margins_and_pairs(const char *device) {
    sums wanted = { 0 };
    mu_moe_config cfg = layer_config(E, K, 3);
    cfg.score_func = MU_MOE_SCORE_SIGMOID, cfg.balance = MU_BALANCE_BIAS;
    layer *l = layer_new(device, mesh_alone(), cfg, SEQUENCES, S, 5);
    mu_routing_stats *s = mu_routing_stats_new(l->dev, comm_alone(), 1, E, 1, 0, 0);
    for (int i = 0; i < E; i++) l->moe.bias[i] = i % 3 ? 0.25 * i : 0;
    s->details_wanted = true;
    for (int step = 1; step <= 2; step++) {
        mu_routing_stats_begin(s);
        memset(&wanted.margins, 0, sizeof wanted.margins);
        memset(wanted.mass, 0, sizeof wanted.mass);
        for (int micro = 0; micro < 2; micro++) {
            l->moe.bias[3] += step;                             /* another choice each time */
            layer_forward(l, l->tp);
            mu_routing_stats_add(s, l->tp, &l->cx, &l->routing);
            add_plainly(l, &wanted);
        }
        mu_routing_stats_read(s);
        for (int i = 0; i < E; i++) assert_int_equal(s->gate_mass[i], wanted.mass[i]);
        assert_margin(s->margins[0].entropy, wanted.margins.entropy);
        assert_margin(s->margins[0].top, wanted.margins.top);
        assert_margin(s->margins[0].boundary, wanted.margins.boundary);
        mu_routing_stats_end(s);
        assert_pairs(s, wanted.pairs);                          /* of both steps */
    }
    assert_int_equal(s->interval.steps, 2);
    int64_t all = 0;
    for (int i = 0; i < E; i++) all += s->interval.by_domain[i];
    assert_int_equal(all, 4 * T * K);
    mu_routing_stats_begin(s);                                  /* an abandoned step adds nothing */
    mu_routing_stats_add(s, l->tp, &l->cx, &l->routing);
    mu_routing_stats_begin(s);
    assert_pairs(s, wanted.pairs);
    mu_routing_stats_restart(s);
    assert_pairs(s, (int64_t[E][E]){ 0 });
    assert_int_equal(s->interval.steps, 0);
    assert_int_equal(s->interval.by_domain[3], 0);
    mu_routing_stats_free(s);
    layer_free(l);
}

static void gates_margins_and_pairs_add_up(void **state) {
    (void)state;
    gates_margins_and_pairs("ref");
    gates_margins_and_pairs("cpu");
    gates_margins_and_pairs("guarded");
}

/* More than 64 experts: the 50 most frequent pairs, ties in order. */
static void the_most_frequent_pairs(void **state) {
    (void)state;
    enum { MANY = 80 };
    layer *l = layer_new("cpu", mesh_alone(), layer_config(MANY, K, 3), SEQUENCES, S, 5);
    mu_routing_stats *s = mu_routing_stats_new(l->dev, comm_alone(), 1, MANY, 1, 0, 0);
    int64_t together[MANY][MANY] = { 0 };
    int32_t ids[T * K];
    layer_forward(l, l->tp);
    mu_routing_stats_add(s, l->tp, &l->cx, &l->routing);
    mu_routing_stats_read(s);
    mu_routing_stats_end(s);
    mu_routing_stats_read_pairs(s);
    mu_tensor_read(l->routing.ids_TK, ids);
    for (int t = 0; t < T; t++) together[ids[t * K] < ids[t * K + 1] ? ids[t * K] : ids[t * K + 1]][ids[t * K] < ids[t * K + 1] ? ids[t * K + 1] : ids[t * K]]++;
    assert_int_equal(s->n_pairs, MU_PAIRS_MOST);
    int64_t all = 0;
    for (int p = 0; p < MU_PAIRS_MOST; p++) {
        const mu_expert_pair *q = &s->pairs[p], *before = p ? q - 1 : q;
        assert_int_equal(q->n, together[q->i][q->j]);
        assert_true(before->n > q->n || (before->n == q->n && (p == 0 || before->i < q->i || (before->i == q->i && before->j < q->j))));
        all += q->n;
    }
    assert_int_equal(all, T);                                   /* 20 tokens: 50 pairs hold them all */
    mu_routing_stats_free(s);
    layer_free(l);
}

/* 64 layers of 256 experts and 50 domains: 64 MiB on host and device together, with the states and with what is known from a probe. */
static void memory_is_bounded(void **state) {
    (void)state;
    enum { LAYERS = 64, EXPERTS = 256, DOMAINS = 50, PER_TOKEN = 8 };
    mu_option_domain list[DOMAINS] = { { .domain = "" } };
    mu_device *dev = mu_device_open("shape");
    mu_routing_stats *s = mu_routing_stats_new(dev, comm_alone(), LAYERS, EXPERTS, DOMAINS, 0, 1000);
    mu_knowledge *k = mu_knowledge_new(LAYERS, EXPERTS, PER_TOKEN, &(mu_option_domains){ .n = DOMAINS, .list = list });
    int64_t counts = mu_routing_stats_bytes(s) + (int64_t)s->memory->region.committed, states = 8 * 8 * LAYERS * EXPERTS;
    assert_in_range(counts, 32 << 20, 48 << 20);
    assert_in_range(counts + states + mu_knowledge_bytes(k), 48 << 20, 64 << 20);
    mu_knowledge_free(k);
    mu_routing_stats_free(s);
    mu_device_close(dev);
}

static void wrong_input_stops(void **state) {
    (void)state;
    static const int32_t domains[SEQUENCES] = { 0, 1, 3, 0, 0 };
    layer *l = layer_new("cpu", mesh_alone(), layer_config(E, K, 3), SEQUENCES, S, 5);
    mu_routing_stats *s = mu_routing_stats_new(l->dev, comm_alone(), 1, E, DOMAINS, 0, 0);
    mu_routing_stats *other = mu_routing_stats_new(l->dev, comm_alone(), 1, E + 1, DOMAINS, 0, 0);
    layer_forward(l, l->tp);
    l->cx.domains = domains;
    STOPS("routing statistics: domains", mu_routing_stats_add(s, l->tp, &l->cx, &l->routing));
    l->cx.domains = NULL;
    STOPS("counts of 8 experts, expected 9", mu_routing_stats_add(other, l->tp, &l->cx, &l->routing));
    STOPS("routing statistics: 0 domains", mu_routing_stats_new(l->dev, comm_alone(), 1, E, 0, 0, 0));
    mu_routing_stats_free(other);
    mu_routing_stats_free(s);
    layer_free(l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(micro_batches_and_domains_add_up),
        cmocka_unit_test(a_counting_pass_finds_the_same),
        cmocka_unit_test(dropped_is_what_capacity_left_out),
        cmocka_unit_test(gates_margins_and_pairs_add_up), cmocka_unit_test(the_most_frequent_pairs), cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(wrong_input_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
