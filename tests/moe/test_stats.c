/* test_stats.c - routing statistics: sums over micro-batches and domains, capacity, empty ones, invalid input. */
#include "layer.h"
#include "stops.h"

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
    assert_int_equal(s->kept, 0);
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

static void kept_is_what_capacity_left(void **state) {
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
    assert_int_equal(s->kept, T * K - layer_dropped(l));
    assert_true(s->kept < all);
    mu_routing_stats_free(s);
    layer_free(l);
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
        cmocka_unit_test(kept_is_what_capacity_left),
        cmocka_unit_test(wrong_input_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
