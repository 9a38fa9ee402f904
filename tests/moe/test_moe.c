/* test_moe.c - the whole layer: dispatch and combine, capacity, gradients, and a naive loop over tokens. */
#include "layer.h"

enum { D = 5, F = 3, S = 6, SEQUENCES = 3, TOKENS = S * SEQUENCES };

static layer *plain_layer(int64_t E, int64_t K) {
    return layer_new("ref", mesh_alone(), layer_config(E, K, F), SEQUENCES, S, D);
}

/* ---------------------------------------------------------------- dispatch */
/* Every kept pair has one row, in its expert's range, in order of token; the row names the token. */
static void check_plan(const layer *l, const mu_plan *plan, int64_t capacity) {
    int64_t E = l->moe.E, K = l->moe.K, *offsets = mu_alloc((size_t)E + 1, sizeof *offsets), kept = 0;
    int64_t *load = mu_alloc((size_t)E, sizeof *load);
    int32_t *ids = mu_alloc(TOKENS * (size_t)K, sizeof *ids),
            *rows = mu_alloc(TOKENS * (size_t)K, sizeof *rows);
    int32_t *token = mu_alloc(TOKENS * (size_t)K, sizeof *token),
            *seen = mu_alloc(TOKENS * (size_t)K, sizeof *seen);
    mu_tensor_read(l->routing.ids_TK, ids);
    mu_tensor_read(plan->row_TK, rows);
    mu_tensor_read(plan->row_source, token);
    mu_tensor_read(plan->offsets, offsets);
    for (int64_t i = 0; i < TOKENS * K; i++) {
        if (i % (S * K) == 0) memset(load, 0, (size_t)E * sizeof *load);
        bool keep = capacity == 0 || load[ids[i]]++ < capacity;     /* the latest of a sequence are dropped */
        assert_int_equal(rows[i] >= 0, keep);
        if (!keep) continue;
        kept++;
        assert_int_equal(seen[rows[i]]++, 0);
        assert_in_range(rows[i], offsets[ids[i]], offsets[ids[i] + 1] - 1);
        assert_int_equal(token[rows[i]], i / K);
    }
    assert_int_equal(offsets[0], 0);
    assert_int_equal(offsets[E], kept);
    for (int64_t i = 0; i < E; i++)
        for (int64_t r = offsets[i] + 1; r < offsets[i + 1]; r++) assert_true(token[r - 1] < token[r]);
    free(offsets);
    free(load);
    free(ids);
    free(rows);
    free(token);
    free(seen);
}

static void every_pair_lands_once(void **state) {
    (void)state;
    for (int64_t K = 1; K <= 4; K++)
        for (int tight = 0; tight < 3; tight++) {
            layer *l = plain_layer(4, K);
            l->cfg.capacity_factor = tight * 0.5;
            l->routing = mu_moe_route(&l->moe, l->tp, &l->cx, &l->x_TD->tensor);
            int64_t capacity = (int64_t)ceil(tight * 0.5 * (double)(K * S) / 4);
            check_plan(l, mu_dispatch(&l->moe, l->tp, &l->cx, &l->routing), tight ? capacity : 0);
            layer_free(l);
        }
}

/* Gather and combine give every token back, K times. */
static void combine_undoes_dispatch(void **state) {
    (void)state;
    enum { K = 2 };
    layer *l = plain_layer(4, K);
    l->routing = mu_moe_route(&l->moe, l->tp, &l->cx, &l->x_TD->tensor);
    mu_plan *plan = mu_dispatch(&l->moe, l->tp, &l->cx, &l->routing);
    plan->sent = plan->rows;
    double x[TOKENS * D], back[TOKENS * D];
    mu_tensor_get(mu_combine(l->tp, mu_gather_rows(l->tp, &l->x_TD->tensor, plan), plan), back);
    mu_tensor_get(&l->x_TD->tensor, x);
    for (int i = 0; i < TOKENS * D; i++) assert_true(back[i] == K * x[i]);
    layer_free(l);
}

/* 1.1 * 2 * 25 / 5 is 11, though the product of doubles lies above it. */
static void capacity_is_not_raised_by_rounding(void **state) {
    (void)state;
    layer *l = layer_new("ref", mesh_alone(), layer_config(5, 2, F), 1, 25, D);
    l->cfg.force_skew = true, l->cfg.capacity_factor = 1.1;
    layer_forward(l, l->tp);
    int64_t *counts = layer_counts(l), dropped = 0;
    for (int i = 0; i < 5; i++) dropped += counts[i] > 11 ? counts[i] - 11 : 0;
    assert_int_equal(counts[0], 25);
    assert_int_equal(layer_dropped(l), dropped);
    free(counts);
    layer_free(l);
}

/* factor * K * S / E, rounded up */
static void capacity_counts_what_it_drops(void **state) {
    (void)state;
    static const struct {
        double factor;
        int64_t capacity;
    } cases[] = { { 1.25, 3 }, { 0.1, 1 }, { 0.84, 3 }, { 0.83, 2 }, { 10, 24 } };
    for (int c = 0; c < 5; c++) {
        layer *l = plain_layer(5, 2);
        l->cfg.force_skew = true;               /* expert 0 gets the S tokens of each sequence */
        l->cfg.capacity_factor = cases[c].factor;
        int64_t dropped = 0, rows[SEQUENCES * 5];
        layer_forward(l, l->tp);
        mu_tensor_read(l->routing.counts_SE, rows);
        for (int i = 0; i < SEQUENCES * 5; i++)
            dropped += rows[i] > cases[c].capacity ? rows[i] - cases[c].capacity : 0;
        assert_int_equal(layer_dropped(l), dropped);
        assert_int_equal(dropped > 0, cases[c].capacity < S);
        l->cx.mode = MU_MODE_EVAL;              /* evaluation never drops */
        layer_forward(l, l->tp);
        assert_int_equal(layer_dropped(l), 0);
        layer_free(l);
    }
}

/* ---------------------------------------------------------------- a naive loop over tokens */
static double *values_of(const mu_param *p) {
    double *x = mu_alloc((size_t)mu_count(&p->tensor), sizeof *x);
    mu_tensor_get(&p->tensor, x);
    return x;
}

/* y += gate * down (silu(gate x) * (up x)) */
static void add_expert(const double *gate, const double *up, const double *down, int64_t width,
                       const double *x, double weight, double *y) {
    for (int64_t f = 0; f < width; f++) {
        double g = 0, u = 0;
        for (int d = 0; d < D; d++) g += gate[f * D + d] * x[d], u += up[f * D + d] * x[d];
        double a = g / (1 + exp(-g)) * u;
        for (int d = 0; d < D; d++) y[d] += weight * down[d * width + f] * a;
    }
}

static double *naive(const layer *l, int64_t capacity) {
    int64_t E = l->moe.E, K = l->moe.K, load[8] = { 0 }, n = l->cfg.num_shared_experts;
    double *x = values_of(l->x_TD), *gate = values_of(l->moe.gate_eFD), *up = values_of(l->moe.up_eFD);
    double *down = values_of(l->moe.down_eDF), *y = mu_alloc(TOKENS * D, sizeof *y), gates[TOKENS * 8];
    double *shared[3] = { NULL };
    int32_t ids[TOKENS * 8];
    mu_tensor_get(l->routing.gates_TK, gates);
    mu_tensor_read(l->routing.ids_TK, ids);
    if (n)
        shared[0] = values_of(l->moe.shared_gate), shared[1] = values_of(l->moe.shared_up),
        shared[2] = values_of(l->moe.shared_down);
    for (int t = 0; t < TOKENS; t++) {
        if (t % S == 0) memset(load, 0, (size_t)E * sizeof *load);
        for (int64_t k = 0; k < K; k++) {
            int i = ids[t * K + k];
            if (capacity && load[i]++ >= capacity) continue;
            add_expert(gate + i * F * D, up + i * F * D, down + i * D * F, F, x + t * D, gates[t * K + k],
                       y + t * D);
        }
        if (n) add_expert(shared[0], shared[1], shared[2], n * F, x + t * D, 1, y + t * D);
    }
    for (int i = 0; i < 3; i++) free(shared[i]);
    free(x);
    free(gate);
    free(up);
    free(down);
    return y;
}

static void equals_a_loop_over_tokens(void **state) {
    (void)state;
    for (int64_t K = 1; K <= 4; K++)
        for (int variant = 0; variant < 8; variant++) {
            mu_moe_config cfg = layer_config(4, K, F);
            cfg.score_func = variant & 1, cfg.num_shared_experts = variant & 2,
            cfg.capacity_factor = variant & 4 ? 0.75 : 0;
            cfg.route_scale = 1 + variant, cfg.norm_topk_prob = variant & 1;
            layer *l = layer_new("ref", mesh_alone(), cfg, SEQUENCES, S, D);
            double y[TOKENS * D];
            mu_tensor_get(layer_forward(l, l->tp), y);
            double *wanted = naive(l, variant & 4 ? (int64_t)ceil(0.75 * (double)(K * S) / 4 - 1e-9) : 0);
            for (int i = 0; i < TOKENS * D; i++)
                assert_true(fabs(y[i] - wanted[i]) < 1e-12 * (1 + fabs(wanted[i])));
            free(wanted);
            layer_free(l);
        }
}

/* ---------------------------------------------------------------- gradients */
static mu_tensor *loss_of(mu_tape *tp, void *arg) {
    layer *l = arg;
    mu_tensor *once = layer_forward(l, tp), *again = layer_forward(l, tp);
    return mu_add(tp, weighted_sum(tp, once, 1), weighted_sum(tp, again, 2));
}

/* combine and scatter alone, some assignments dropped: everything goes into two sums, as a leaf and as something computed. */
typedef struct { layer *l; mu_param *rows, *more, *gates; } combined;

/* A plan as if its rows were sent: the host knows how many there are. */
static mu_plan *own_plan(layer *l, mu_tape *tp) {
    int64_t offsets[5];
    l->routing = mu_moe_route(&l->moe, tp, &l->cx, &l->x_TD->tensor);
    mu_plan *plan = mu_dispatch(&l->moe, tp, &l->cx, &l->routing);
    mu_tensor_read(plan->offsets, offsets);
    plan->sent = offsets[4];
    return plan;
}

static mu_tensor *loss_of_combine(mu_tape *tp, void *arg) {
    const combined *c = arg;
    const mu_plan *plan = own_plan(c->l, tp);
    mu_tensor *rows = mu_add(tp, &c->rows->tensor, &c->more->tensor), *loss = NULL;
    mu_tensor *gates = mu_add(tp, &c->gates->tensor, &c->gates->tensor);
    for (uint32_t time = 0; time < 2; time++) {
        mu_tensor *terms[4] = { mu_combine(tp, &c->rows->tensor, plan), mu_combine(tp, rows, plan),
                                mu_scatter_rows(tp, &c->gates->tensor, plan->row_TK, plan->sent),
                                mu_scatter_rows(tp, gates, plan->row_TK, plan->sent) };
        for (uint32_t i = 0; i < 4; i++) {
            mu_tensor *term = weighted_sum(tp, terms[i], 4 * time + i);
            loss = loss ? mu_add(tp, loss, term) : term;
        }
    }
    return loss;
}

static void gradients_of_combine(void **state) {
    (void)state;
    enum { K = 2 };
    layer *l = plain_layer(4, K);
    l->cfg.capacity_factor = 0.75;
    int64_t rows = own_plan(l, l->tp)->sent;
    assert_true(rows < TOKENS * K);
    mu_params *ps = mu_params_new(l->dev);
    mu_params_group(ps, "leaves", NULL);
    combined c = { l, leaf(ps, "rows", rows, D, 1), leaf(ps, "more", rows, D, 1), leaf(ps, "gates", TOKENS, K, 1) };
    mu_params_alloc(ps);
    mu_params_init(ps, 4);
    gradcheck(ps, l->tp, loss_of_combine, &c, 30);
    mu_params_free(ps);
    layer_free(l);
}

static void gradients(void **state) {
    (void)state;
    for (int variant = 0; variant < 8; variant++) {
        mu_moe_config cfg = layer_config(4, 2, F);
        cfg.score_func = variant & 1, cfg.num_shared_experts = variant & 2,
        cfg.capacity_factor = variant & 4 ? 0.75 : 0;
        cfg.norm_topk_prob = !(variant & 2), cfg.route_scale = 1.5;
        layer *l = layer_new("ref", mesh_alone(), cfg, SEQUENCES, S, D);
        gradcheck(l->ps, l->tp, loss_of, l, 12);
        layer_free(l);
    }
}

/* A frozen router, or an input that needs no gradient, leaves the others' gradients as they were. */
static void what_needs_no_gradient_is_skipped(void **state) {
    (void)state;
    layer *l = plain_layer(4, 2);
    mu_param *each[] = { l->x_TD, l->moe.router_ED, l->moe.gate_eFD, l->moe.up_eFD, l->moe.down_eDF };
    for (unsigned mask = 1; mask < 32; mask++) {
        for (int i = 0; i < 5; i++) each[i]->tensor.needs_grad = mask >> i & 1;
        gradcheck(l->ps, l->tp, loss_of, l, 4);
    }
    layer_free(l);
}

/* Gradients of expert `i`'s three matrices: all exactly zero? */
static bool expert_gradient_is_zero(const layer *l, int expert) {
    for (mu_unit *u = mu_unit_next(l->ps, NULL); u; u = mu_unit_next(l->ps, u)) {
        if (u->expert != expert) continue;
        double g[F * D];
        mu_reals_get(l->dev, l->dev->master, mu_unit_grad(u), u->count, g);
        for (int64_t i = 0; i < u->count; i++)
            if (g[i] != 0) return false;
    }
    return true;
}

static void idle_experts_get_exactly_nothing(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu" };
    for (int d = 0; d < 2; d++) {
        layer *l = layer_new(devices[d], mesh_alone(), layer_config(4, 1, F), SEQUENCES, S, D);
        l->cfg.force_skew = true;               /* everything to expert 0 */
        mu_backward(l->tp, loss_of(l->tp, l));
        int64_t *counts = layer_counts(l);
        assert_int_equal(counts[0], TOKENS);
        assert_false(expert_gradient_is_zero(l, 0));
        for (int i = 1; i < 4; i++) assert_true(counts[i] == 0 && expert_gradient_is_zero(l, i));
        free(counts);
        layer_free(l);
    }
}

static void all_tokens_to_one_expert(void **state) {
    (void)state;
    layer *l = plain_layer(4, 1);
    l->cfg.force_skew = true, l->cfg.norm_topk_prob = false;
    gradcheck(l->ps, l->tp, loss_of, l, 12);
    layer_free(l);
}

static void forced_balance_is_even(void **state) {
    (void)state;
    layer *l = plain_layer(4, 2);
    int64_t samples[SEQUENCES] = { 5, 6, 7 };
    l->cfg.force_balanced = true, l->cx.global_samples = samples;
    layer_forward(l, l->tp);
    int32_t ids[TOKENS * 2];
    mu_tensor_read(l->routing.ids_TK, ids);
    for (int i = 0; i < TOKENS * 2; i++) assert_int_equal(ids[i], (5 * S * 2 + i) % 4);
    int64_t *counts = layer_counts(l);
    for (int i = 0; i < 4; i++) assert_int_equal(counts[i], TOKENS * 2 / 4);
    free(counts);
    gradcheck(l->ps, l->tp, loss_of, l, 8);
    layer_free(l);
}

/* A micro-batch without tokens goes through, forward and backward. */
static void no_tokens(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu", "guarded" };
    for (int d = 0; d < 3; d++) {
        mu_moe_config cfg = layer_config(4, 2, F);
        cfg.num_shared_experts = 1, cfg.capacity_factor = 1;
        layer *l = layer_new(devices[d], mesh_alone(), cfg, 0, S, D);
        mu_backward(l->tp, loss_of(l->tp, l));
        for (int i = 0; i < 4; i++) assert_true(expert_gradient_is_zero(l, i));
        assert_int_equal(layer_dropped(l), 0);
        layer_free(l);
    }
}

/* Device bytes at most in use while `layers` layers follow one another on the tape. */
static int64_t peak_of(int64_t layers, int64_t T, int64_t D, int64_t F, int64_t E, int64_t K) {
    layer *l = layer_new("shape-bf16", mesh_alone(), layer_config(E, K, F), 1, T, D);
    mu_tensor *x = &l->x_TD->tensor;
    for (int64_t i = 0; i < layers; i++) {
        mu_routing r;
        mu_tensor *y = mu_moe_forward(&l->moe, l->tp, &l->cx, x, &r);
        if (i) mu_release(l->tp, x);
        x = y;
    }
    int64_t peak = mu_tape_peak(l->tp);
    layer_free(l);
    return peak;
}

/* In bf16 a layer keeps its input and the two up-projections, 2 T D + 4 T K F bytes, and little beside them. */
static void keeps_little_for_backward(void **state) {
    (void)state;
    static const int64_t shapes[][5] = { { 4096, 768, 256, 128, 8 }, { 4096, 1536, 1024, 32, 2 }, { 2048, 4096, 256, 256, 16 } };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int64_t *s = shapes[i], T = s[0], D = s[1], F = s[2], K = s[4];
        double kept = (double)(peak_of(4, T, D, F, s[3], K) - peak_of(3, T, D, F, s[3], K));
        double least = (double)(2 * T * D + 4 * T * K * F);
        printf("T %lld D %lld F %lld E %lld K %lld: %.3f of the formula\n", (long long)T, (long long)D, (long long)F,
               (long long)s[3], (long long)K, kept / least);
        assert_true(kept >= least && kept <= 1.3 * least);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_lands_once), cmocka_unit_test(combine_undoes_dispatch),
        cmocka_unit_test(capacity_counts_what_it_drops), cmocka_unit_test(capacity_is_not_raised_by_rounding),
        cmocka_unit_test(gradients_of_combine), cmocka_unit_test(equals_a_loop_over_tokens),
        cmocka_unit_test(gradients), cmocka_unit_test(what_needs_no_gradient_is_skipped),
        cmocka_unit_test(idle_experts_get_exactly_nothing), cmocka_unit_test(all_tokens_to_one_expert),
        cmocka_unit_test(forced_balance_is_even), cmocka_unit_test(no_tokens),
        cmocka_unit_test(keeps_little_for_backward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
