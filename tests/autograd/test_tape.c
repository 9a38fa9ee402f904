/* test_tape.c - memory that the tape keeps and frees, errors, and that only kernels access data. */
#include "stops.h"
#include "tiny_model.h"

enum { ROWS = 256, WIDE = 256, LAYERS = 6 };
static const int64_t SHEET = ROWS * WIDE * (int64_t)sizeof(double);     /* bytes of one activation below */

/* ---------------------------------------------------------------- a chain of products */
typedef struct { mu_device *dev; mu_params *ps; mu_param *w; mu_tape *tp; } chain;

static chain chain_new(const char *device) {
    chain c = { .dev = mu_device_open(device) };
    c.ps = mu_params_new(c.dev);
    mu_params_group(c.ps, "leaves", NULL);
    c.w = leaf(c.ps, "w", WIDE, WIDE, 0.05);
    mu_params_alloc(c.ps);
    mu_params_init(c.ps, 3);
    c.tp = mu_tape_new(c.dev);
    return c;
}

static void chain_free(chain *c) {
    mu_tape_free(c->tp);
    mu_params_free(c->ps);
    mu_device_close(c->dev);
}

static mu_tensor *chain_loss(chain *c, int64_t rows) {
    mu_tensor *x = mu_tensor_2d(c->tp, rows, WIDE);
    double *host = random_reals(9, rows * WIDE, 1);
    mu_tensor_set(x, host);
    free(host);
    for (int i = 0; i < LAYERS; i++) {
        mu_tensor *y = mu_linear(c->tp, x, &c->w->tensor);
        mu_release(c->tp, x);
        x = y;
    }
    mu_tensor *loss = weighted_sum(c->tp, x, 1);
    mu_release(c->tp, x);
    return loss;
}

static void forward_alone_keeps_two_activations(void **state) {
    (void)state;
    chain c = chain_new("ref");
    mu_tape_record(c.tp, false);
    chain_loss(&c, ROWS);
    int64_t without = mu_tape_peak(c.tp);
    assert_true(without >= 2 * SHEET && without < 5 * SHEET / 2);
    chain_free(&c);
    c = chain_new("ref");
    chain_loss(&c, ROWS);
    assert_true(mu_tape_peak(c.tp) >= LAYERS * SHEET);      /* linear's backward needs every input */
    chain_free(&c);
}

/* Backward frees each activation: apart from the kept inputs it needs two gradients and little else. */
static void backward_frees_as_it_goes(void **state) {
    (void)state;
    chain c = chain_new("ref");
    mu_backward(c.tp, chain_loss(&c, ROWS));
    assert_true(mu_tape_peak(c.tp) < (LAYERS + 4) * SHEET);
    chain_free(&c);
}

static void steps_do_not_grow(void **state) {
    (void)state;
    chain c = chain_new("ref");
    int64_t largest = 0, memory = 0;
    for (int step = 0; step < 12; step++) {
        mu_tape_reset(c.tp);
        mu_params_zero_grad(c.ps);
        mu_backward(c.tp, chain_loss(&c, step % 3 == 0 ? ROWS : ROWS / 4 + step));
        if (step == 0) largest = mu_tape_peak(c.tp), memory = mu_device_bytes(c.dev);
        assert_int_equal(mu_tape_peak(c.tp), largest);
        assert_int_equal(mu_device_bytes(c.dev), memory);
    }
    chain_free(&c);
}

static void gradients_accumulate_in_parameters(void **state) {
    (void)state;
    chain c = chain_new("ref");
    int64_t n = mu_count(&c.w->tensor);
    double *once = mu_alloc((size_t)n, sizeof *once), *twice = mu_alloc((size_t)n, sizeof *twice);
    for (int pass = 0; pass < 2; pass++) {
        mu_tape_reset(c.tp);
        mu_backward(c.tp, chain_loss(&c, 8));
        mu_reals_get(c.dev, MU_DTYPE_F64, mu_unit_grad(&c.w->units[0]), n, pass ? twice : once);
    }
    for (int64_t i = 0; i < n; i++) assert_true(fabs(twice[i] - 2 * once[i]) <= 1e-12 * (1 + fabs(once[i])));
    assert_true(fabs(once[0]) > 0);
    mu_params_zero_grad(c.ps);
    mu_reals_get(c.dev, MU_DTYPE_F64, mu_unit_grad(&c.w->units[0]), n, once);
    for (int64_t i = 0; i < n; i++) assert_true(once[i] == 0);
    free(once);
    free(twice);
    chain_free(&c);
}

/* ---------------------------------------------------------------- events of backward */
typedef struct { mu_model *m; int ops, events; double *seen[64]; } listener;

static void on_complete(void *arg, mu_param *p) {
    listener *l = arg;
    assert_true(p->index < 64 && l->m->params->params[p->index] == p);
    assert_null(l->seen[p->index]);
    l->seen[p->index] = mu_alloc((size_t)mu_count(&p->tensor), sizeof(double));
    mu_reals_get(l->m->params->dev, MU_DTYPE_F64, p->tensor.grad, mu_count(&p->tensor), l->seen[p->index]);
    l->events++;
}

static void on_op(void *arg) { ((listener *)arg)->ops++; }

/* Each parameter is reported complete once, and its gradient no longer changes; tied embeddings at their first use. */
static void complete_gradients_are_final(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        mu_device *d = mu_device_open("ref");
        mu_model_config cfg = tiny_model_config();
        mu_moe_config moe = tiny_moe_config();
        cfg.tie_embeddings = tied;
        listener l = { .m = mu_model_new(&cfg, &moe, TINY_V, 5, d, mesh_alone()) };
        mu_tape *tp = mu_tape_new(d);
        mu_loss *loss = tiny_loss_new(l.m, tp);
        for (int micro = 0; micro < 2; micro++) {       /* the second one adds to gradients that are there */
            mu_backward_events events = { on_complete, on_op, &l };
            l.ops = l.events = 0;
            mu_tape_reset(tp);
            mu_backward_with(tp, tiny_loss(loss), &events);
            assert_int_equal(l.events, l.m->params->n_params);
            assert_true(l.ops > l.events);
            for (int i = 0; i < l.events; i++) {
                mu_param *p = l.m->params->params[i];
                int64_t n = mu_count(&p->tensor);
                double *now = mu_alloc((size_t)n, sizeof *now);
                mu_reals_get(d, MU_DTYPE_F64, p->tensor.grad, n, now);
                assert_memory_equal(now, l.seen[i], (size_t)n * sizeof *now);
                free(now);
                free(l.seen[i]);
                l.seen[i] = NULL;
            }
        }
        mu_loss_free(loss);
        mu_tape_free(tp);
        mu_model_free(l.m);
        mu_device_close(d);
    }
}

/* A released tensor that a recorded backward reads must keep its data. */
static void release_waits_for_readers(void **state) {
    (void)state;
    chain c = chain_new("ref");
    mu_tensor *x = mu_tensor_2d(c.tp, 2, WIDE);
    double *host = random_reals(9, 2 * WIDE, 1);
    mu_tensor_set(x, host);
    mu_tensor *y = mu_linear(c.tp, x, &c.w->tensor), *z = mu_linear(c.tp, x, &c.w->tensor);
    mu_release(c.tp, x);
    assert_non_null(x->data);
    mu_tensor *loss = weighted_sum(c.tp, mu_add(c.tp, y, z), 1);
    mu_backward(c.tp, loss);
    assert_null(x->data);
    mu_release(c.tp, NULL);
    free(host);
    chain_free(&c);
}

/* ---------------------------------------------------------------- recomputation */
enum { SEGMENTS = 6, SEGMENT = 4, FEW = 64 };        /* linear layers of a segment; rows */

/* y = factor x, where the first forward chooses the factor: 1 more each time. */
static double next_factor;

static void chosen_forward(mu_tape *tp, mu_node *n) {
    mu_device *d = mu_tape_device(tp);
    *(double *)n->extra = next_factor++;
    d->k->fill(d, mu_count(n->out[0]), 0.0, mu_data(n->out[0]));
    d->k->axpy(d, mu_count(n->out[0]), *(double *)n->extra, mu_data(n->in[0]), mu_data(n->out[0]));
}

static void chosen_backward(mu_tape *tp, mu_node *n) {
    mu_device *d = mu_tape_device(tp);
    d->k->axpy(d, mu_count(n->in[0]), *(double *)n->extra, mu_grad_of(n->out[0]), mu_grad(tp, n->in[0]));
}

static mu_tensor *chosen(mu_tape *tp, mu_tensor *x) {
    static const mu_op op = { .name = "chosen", .forward = chosen_forward, .backward = chosen_backward, .once = true };
    return mu_apply(tp, (mu_node){ .op = &op, .in = { x }, .out = { mu_tensor_like(tp, x) },
                                   .extra = mu_tape_alloc(tp, sizeof(double)) });
}

static mu_tensor *pass_on(mu_tape *tp, mu_tensor *old, mu_tensor *new) {
    mu_release(tp, old);
    return new;
}

/* Gradient of w of some segments, each: a choice, its sum with the segment's input, linear layers. Heap. */
static double *segments_gradient(const char *device, bool recompute, int64_t *peak) {
    chain c = chain_new(device);
    mu_tensor *x = mu_tensor_2d(c.tp, FEW, WIDE);
    double *host = random_reals(9, FEW * WIDE, 1), *grad = mu_alloc(WIDE * WIDE, sizeof *grad);
    mu_tensor_set(x, host);
    free(host);
    next_factor = 1;
    for (int s = 0; s < SEGMENTS; s++) {
        mu_tensor *input = x;
        if (recompute) mu_tape_recompute_begin(c.tp);
        x = chosen(c.tp, input);
        x = pass_on(c.tp, x, mu_add(c.tp, x, input));
        mu_release(c.tp, input);
        for (int i = 0; i < SEGMENT; i++) x = pass_on(c.tp, x, mu_linear(c.tp, x, &c.w->tensor));
        if (recompute) mu_tape_recompute_end(c.tp);
    }
    mu_tensor *loss = weighted_sum(c.tp, x, 1);
    mu_release(c.tp, x);
    mu_backward(c.tp, loss);
    mu_reals_get(c.dev, c.dev->master, mu_unit_grad(&c.w->units[0]), WIDE * WIDE, grad);
    *peak = mu_tape_peak(c.tp);
    assert_true(next_factor == 1 + SEGMENTS);       /* each choice once */
    chain_free(&c);
    return grad;
}

static void a_segment_is_made_again(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu", "guarded" };
    for (int d = 0; d < 3; d++) {
        int64_t kept_peak, peak;
        double *kept = segments_gradient(devices[d], false, &kept_peak), *again = segments_gradient(devices[d], true, &peak);
        printf("%s: peak %lld KiB, %lld KiB with recomputation\n", devices[d], (long long)kept_peak >> 10, (long long)peak >> 10);
        assert_memory_equal(kept, again, WIDE * WIDE * sizeof *kept);
        assert_true(5 * peak < 4 * kept_peak);
        free(kept);
        free(again);
    }
}

/* When a segment ends its tensors are freed, except those the caller still holds; without recording nothing happens. */
static void a_segment_drops_what_was_released(void **state) {
    (void)state;
    chain c = chain_new("ref");
    mu_tensor *x = mu_tensor_2d(c.tp, 2, WIDE), *w = &c.w->tensor;
    double *host = random_reals(9, 2 * WIDE, 1);
    mu_tensor_set(x, host);
    free(host);
    mu_tape_record(c.tp, false);
    mu_tape_recompute_begin(c.tp);
    mu_tape_recompute_end(c.tp);
    mu_tape_record(c.tp, true);
    mu_tape_recompute_begin(c.tp);
    mu_tensor *a = mu_linear(c.tp, x, w), *b = mu_linear(c.tp, a, w), *y = mu_linear(c.tp, b, w);
    mu_release(c.tp, a);
    assert_non_null(a->data);                       /* backward of the second linear reads it */
    mu_release(c.tp, x);
    mu_tape_recompute_end(c.tp);
    assert_true(x->data && !a->data && b->data && y->data);
    mu_backward(c.tp, weighted_sum(c.tp, mu_add(c.tp, b, y), 1));
    assert_true(!x->data && !a->data && b->data);
    chain_free(&c);
}

/* ---------------------------------------------------------------- refusals */
static void backward_needs_a_parameter(void **state) {
    (void)state;
    chain c = chain_new("ref");
    mu_tensor *x = mu_tensor_2d(c.tp, 2, 3), *other = mu_tensor_2d(c.tp, 2, 3);
    double zeros[6] = { 0 };
    mu_tensor_set(x, zeros);
    mu_tensor_set(other, zeros);
    STOPS("depends on no parameter", mu_backward(c.tp, weighted_sum(c.tp, mu_add(c.tp, x, other), 1)));
    mu_tape_record(c.tp, false);
    STOPS("depends on no parameter", mu_backward(c.tp, chain_loss(&c, 2)));
    mu_tape_record(c.tp, true);
    STOPS("one f64", mu_backward(c.tp, mu_linear(c.tp, mu_tensor_2d(c.tp, 1, WIDE), &c.w->tensor)));
    chain_free(&c);
}

static void a_segment_is_refused_where_it_cannot_be(void **state) {
    (void)state;
    chain c = chain_new("ref");
    mu_tensor *x = mu_tensor_2d(c.tp, 2, WIDE), *rows = mu_tensor_rows(c.tp, x, 0, 1);
    STOPS("without mu_tape_recompute_begin", mu_tape_recompute_end(c.tp));
    mu_tape_recompute_begin(c.tp);
    STOPS("do not nest", mu_tape_recompute_begin(c.tp));
    STOPS("a view of an activation", mu_linear(c.tp, rows, &c.w->tensor));
    STOPS("mu_tape_recompute_end was not called", mu_backward(c.tp, weighted_sum(c.tp, mu_linear(c.tp, x, &c.w->tensor), 1)));
    chain_free(&c);
}

/* Values without gradient: a loss that depends only on them is an error, not a silently missing gradient. */
static void values_for_the_log_have_no_gradient(void **state) {
    (void)state;
    chain c = chain_new("ref");
    mu_tensor *x = mu_tensor_2d(c.tp, 2, WIDE), *nll;
    double *host = random_reals(9, 2 * WIDE, 1);
    mu_tensor_set(x, host);
    mu_head_loss(c.tp, x, &c.w->tensor, mu_tensor_ints(c.tp, MU_DTYPE_I32, 2, (int32_t[]){ 1, 2 }), 1.0,
                 &nll);
    STOPS("depends on no parameter", mu_backward(c.tp, weighted_sum(c.tp, nll, 1)));
    free(host);
    chain_free(&c);
}

/* ---------------------------------------------------------------- a whole model */
enum { STEPS = 3 };

typedef struct { double loss[STEPS], *values; int64_t n, peak, bytes; } outcome;

static outcome train(const char *device, const mu_moe_config *moe) {
    mu_device *dev = mu_device_open(device);
    mu_model_config cfg = tiny_model_config();
    mu_optim_config optim = { .betas = { 0.9, 0.95 }, .eps = 1e-8, .weight_decay = 0.1 };
    mu_model *m = mu_model_new(&cfg, moe, TINY_V, 5, dev, mesh_alone());
    mu_optimizer *o = mu_optimizer_new(&mu_rule_adamw, &optim, m->params);
    mu_tape *tp = mu_tape_new(dev);
    outcome r;
    mu_loss *l = tiny_loss_new(m, tp);
    for (int step = 0; step < STEPS; step++) r.loss[step] = tiny_step(l, o);
    r.values = tiny_values(m, &r.n);
    r.peak = mu_tape_peak(tp), r.bytes = mu_device_bytes(dev);
    mu_loss_free(l);
    mu_tape_free(tp);
    mu_optimizer_free(o);
    mu_model_free(m);
    mu_device_close(dev);
    return r;
}

/* The same numbers when all device memory is locked outside kernels and copies. */
static void only_kernels_touch_data(void **state) {
    (void)state;
    mu_moe_config moe = tiny_moe_config();
    moe.capacity_factor = 1.0, moe.balance = MU_BALANCE_AUX | MU_BALANCE_SEQ_AUX | MU_BALANCE_BIAS;
    outcome open = train("cpu", &moe), locked = train("guarded", &moe);
    assert_memory_equal(open.loss, locked.loss, sizeof open.loss);
    assert_int_equal(open.n, locked.n);
    assert_memory_equal(open.values, locked.values, (size_t)open.n * sizeof(double));
    assert_true(open.loss[STEPS - 1] < open.loss[0]);
    free(open.values);
    free(locked.values);
}

/* A dry run of a dropless model on one rank needs the same bytes as the real one. */
static void a_dry_run_counts_the_bytes(void **state) {
    (void)state;
    mu_moe_config moe = tiny_moe_config();
    outcome real = train("cpu", &moe), dry = train("shape", &moe);
    assert_int_equal(real.peak, dry.peak);
    assert_int_equal(real.bytes, dry.bytes);
    assert_true(dry.peak > TINY_T * 12 * (int64_t)sizeof(float));
    for (int64_t i = 0; i < dry.n; i++) assert_true(dry.values[i] == 0);
    free(real.values);
    free(dry.values);
}

/* fp32 and double agree on a step to fp32 precision. */
static void cpu_agrees_with_the_reference(void **state) {
    (void)state;
    mu_moe_config moe = tiny_moe_config();
    outcome fast = train("cpu", &moe), exact = train("ref", &moe);
    for (int step = 0; step < STEPS; step++) assert_true(fabs(fast.loss[step] - exact.loss[step]) < 2e-5);
    free(fast.values);
    free(exact.values);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_alone_keeps_two_activations), cmocka_unit_test(backward_frees_as_it_goes),
        cmocka_unit_test(steps_do_not_grow), cmocka_unit_test(gradients_accumulate_in_parameters),
        cmocka_unit_test(complete_gradients_are_final), cmocka_unit_test(release_waits_for_readers),
        cmocka_unit_test(a_segment_is_made_again), cmocka_unit_test(a_segment_drops_what_was_released),
        cmocka_unit_test(a_segment_is_refused_where_it_cannot_be), cmocka_unit_test(backward_needs_a_parameter),
        cmocka_unit_test(values_for_the_log_have_no_gradient), cmocka_unit_test(only_kernels_touch_data),
        cmocka_unit_test(a_dry_run_counts_the_bytes), cmocka_unit_test(cpu_agrees_with_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
