/* test_recompute.c - MoE layers recomputed in backward give the same bits as layers that were kept, with the same
 * routing. And the tensors of a plan live as long as an op's backward reads them. */
#include "layer.h"
#include "stops.h"

enum { D = 12, F = 10, S = 6, SEQUENCES = 4, T = S * SEQUENCES, E = 6, K = 2, LAYERS = 5 };

typedef struct {
    int32_t ids[LAYERS][T * K];
    double *y, *grads;          /* the output; all gradients, one after another */
    int64_t n, peak;
} outcome;

static double *gradients(const layer *l, int64_t *n) {
    for (mu_unit *u = mu_unit_next(l->ps, NULL); u; u = mu_unit_next(l->ps, u)) *n += u->count;
    double *grads = mu_alloc((size_t)*n, sizeof *grads), *at = grads;
    for (mu_unit *u = mu_unit_next(l->ps, NULL); u; at += u->count, u = mu_unit_next(l->ps, u))
        mu_reals_get(l->dev, l->dev->master, mu_unit_grad(u), u->count, at);
    return grads;
}

/* x += layer(x), LAYERS times with the same weights, and a loss that depends on the router's scores, too. With `turn` the router
 * turns round between forward and backward. */
static outcome train(const char *device, const mu_moe_config *cfg, bool exact, bool recompute, bool turn) {
    static const int64_t samples[SEQUENCES] = { 4, 5, 6, 7 };
    outcome o = { .n = 0 };
    layer *l = layer_new(device, mesh_alone(), *cfg, SEQUENCES, S, D);
    l->cx.global_samples = samples, l->cx.seed = 42, l->cx.step = 17;
    if (exact) mu_params_exact(l->ps);
    mu_params_zero_grad(l->ps);
    mu_routing routings[LAYERS];
    mu_tensor *x = &l->x_TD->tensor, *loss = NULL, *value;
    for (int i = 0; i < LAYERS; i++) {
        if (recompute) mu_tape_recompute_begin(l->tp);
        mu_tensor *y = mu_moe_forward(&l->moe, l->tp, &l->cx, x, &routings[i]), *sum = mu_add(l->tp, x, y);
        mu_release(l->tp, y);
        mu_release(l->tp, routings[i].gates_TK);
        if (i) mu_release(l->tp, x);
        if (recompute) mu_tape_recompute_end(l->tp);
        x = sum;
        mu_tensor_read(routings[i].ids_TK, o.ids[i]);
        mu_tensor *term = mu_z_term(l->tp, routings[i].lse_T, 0.01, 1, &value);
        loss = loss ? mu_add(l->tp, loss, term) : term;
    }
    loss = mu_add(l->tp, loss, weighted_sum(l->tp, x, 1));
    o.y = mu_alloc(T * D, sizeof *o.y);
    mu_tensor_get(x, o.y);
    mu_release(l->tp, x);
    if (turn) negate(&l->moe.router_ED->tensor);
    mu_backward(l->tp, loss);
    if (exact) mu_params_round_grads(l->ps);
    for (int i = 0; i < LAYERS; i++) {
        int32_t ids[T * K];
        mu_tensor_read(routings[i].ids_TK, ids);
        assert_memory_equal(ids, o.ids[i], sizeof ids);
    }
    o.grads = gradients(l, &o.n);
    o.peak = mu_tape_peak(l->tp);
    layer_free(l);
    return o;
}

static void outcome_free(outcome *o) {
    free(o->y);
    free(o->grads);
}

/* Returns the peaks' ratio. */
static double recomputes_the_same(const char *device, const mu_moe_config *cfg, bool exact, bool turn) {
    outcome kept = train(device, cfg, exact, false, turn), again = train(device, cfg, exact, true, turn);
    assert_memory_equal(kept.ids, again.ids, sizeof kept.ids);
    assert_memory_equal(kept.y, again.y, T * D * sizeof *kept.y);
    assert_int_equal(kept.n, again.n);
    assert_memory_equal(kept.grads, again.grads, (size_t)kept.n * sizeof *kept.grads);
    double ratio = (double)again.peak / (double)kept.peak;
    outcome_free(&kept);
    outcome_free(&again);
    return ratio;
}

static const char *const devices[] = { "ref", "cpu", "guarded" };

static void recomputed_layers_have_the_same_bits(void **state) {
    (void)state;
    for (int variant = 0; variant < 8; variant++) {
        mu_moe_config cfg = layer_config(E, K, F);
        cfg.score_func = variant & 1, cfg.num_shared_experts = variant & 2;
        cfg.capacity_factor = variant & 4 ? 0.75 : 0, cfg.router_jitter = variant & 4 ? 0.2 : 0;
        for (int d = 0; d < 3; d++)
            for (int exact = 0; exact < 2; exact++) assert_true(recomputes_the_same(devices[d], &cfg, exact, false) < 0.8);
    }
}

/* Had backward asked the router again, it would have chosen others. */
static void routing_is_the_one_it_had(void **state) {
    (void)state;
    mu_moe_config cfg = layer_config(E, K, F);
    cfg.capacity_factor = 0.75, cfg.router_jitter = 0.2;
    for (int d = 0; d < 3; d++) recomputes_the_same(devices[d], &cfg, false, true);
    layer *l = layer_new("ref", mesh_alone(), layer_config(E, K, F), SEQUENCES, S, D);
    int32_t before[T * K], after[T * K], same = 0;
    layer_forward(l, l->tp);
    mu_tensor_read(l->routing.ids_TK, before);
    negate(&l->moe.router_ED->tensor);
    layer_forward(l, l->tp);
    mu_tensor_read(l->routing.ids_TK, after);
    for (int i = 0; i < T * K; i++) same += before[i] == after[i];
    assert_true(same < T * K / 4);
    layer_free(l);
}

/* A plan released after its ops were recorded exists until backward has read it; without recording, not at all. */
static void a_plan_lives_as_long_as_its_readers(void **state) {
    (void)state;
    layer *l = layer_new("ref", mesh_alone(), layer_config(E, K, F), SEQUENCES, S, D);
    mu_tensor *y = layer_forward(l, l->tp);
    const mu_plan *plan = l->routing.plan;
    assert_true(plan->row_source->data && plan->token_rows->data && plan->offsets->data);
    mu_backward(l->tp, weighted_sum(l->tp, y, 1));
    assert_true(!plan->row_source->data && !plan->token_rows->data && plan->offsets->data);
    mu_tape_record(l->tp, false);
    layer_forward(l, l->tp);
    assert_true(!l->routing.plan->row_source->data && !l->routing.plan->token_rows->data);
    STOPS("scatter_rows: input 1 has no data: it was released",
          mu_scatter_rows(l->tp, l->routing.gates_TK, l->routing.plan->row_TK, l->routing.plan->rows));
    layer_free(l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recomputed_layers_have_the_same_bits),
        cmocka_unit_test(routing_is_the_one_it_had),
        cmocka_unit_test(a_plan_lives_as_long_as_its_readers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
