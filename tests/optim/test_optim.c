/* test_optim.c - learning-rate schedules, AdamW and the units it skips, the gradient norm. */
#include "moe/layer.h"
#include "optim/optim.h"

static bool near(double x, double y) { return fabs(x - y) <= 1e-15 * (1 + fabs(y)); }

/* ---------------------------------------------------------------- schedules */
static void schedules(void **state) {
    (void)state;
    mu_optim_config c = { .lr = 1, .min_lr = 0.1, .warmup_steps = 10, .decay_fraction = 0.2 };
    for (c.schedule = 0; c.schedule < 4; c.schedule++) {
        assert_true(near(mu_learning_rate(&c, 1, 110), 0.1));
        assert_true(near(mu_learning_rate(&c, 5, 110), 0.5));
        assert_true(near(mu_learning_rate(&c, 10, 110), 1));
        assert_true(near(mu_learning_rate(&c, 110, 110), c.schedule == MU_SCHEDULE_CONSTANT ? 1 : 0.1));
        for (int64_t s = 11; s <= 110; s++)
            assert_true(mu_learning_rate(&c, s, 110) <= mu_learning_rate(&c, s - 1, 110));
    }
    c.schedule = MU_SCHEDULE_COSINE;
    assert_true(near(mu_learning_rate(&c, 60, 110), 0.55));
    assert_true(near(mu_learning_rate(&c, 35, 110), 0.55 + 0.45 * sqrt(0.5)));
    c.schedule = MU_SCHEDULE_LINEAR;
    assert_true(near(mu_learning_rate(&c, 35, 110), 0.775));
    c.schedule = MU_SCHEDULE_WSD;           /* the last 22 of 110 steps fall */
    assert_true(near(mu_learning_rate(&c, 88, 110), 1));
    assert_true(near(mu_learning_rate(&c, 89, 110), 1 - 0.9 / 22));
    assert_true(near(mu_learning_rate(&c, 99, 110), 0.55));
}

static void short_and_odd_runs(void **state) {
    (void)state;
    mu_optim_config c = { .lr = 1, .min_lr = 0.1, .decay_fraction = 1 };
    for (c.schedule = 0; c.schedule < 4; c.schedule++)
        for (int64_t steps = 1; steps < 6; steps++)
            for (c.warmup_steps = 0; c.warmup_steps < 8; c.warmup_steps++)
                for (int64_t s = 1; s <= steps; s++) {
                    double lr = mu_learning_rate(&c, s, steps);
                    assert_true(isfinite(lr) && lr > 0 && lr <= 1);
                    if (s < c.warmup_steps) assert_true(near(lr, (double)s / (double)c.warmup_steps));
                    if (s == steps && s > c.warmup_steps && c.schedule != MU_SCHEDULE_CONSTANT)
                        assert_true(near(lr, 0.1));
                }
    c = (mu_optim_config){ .lr = 0.5, .min_lr = 0.5, .schedule = MU_SCHEDULE_COSINE };
    for (int64_t s = 1; s <= 9; s++) assert_true(near(mu_learning_rate(&c, s, 9), 0.5));
    c = (mu_optim_config){ .lr = 1, .min_lr = 0.1, .schedule = MU_SCHEDULE_WSD };   /* decay_fraction 0 */
    assert_true(near(mu_learning_rate(&c, 8, 9), 1));
}

/* ---------------------------------------------------------------- AdamW */
enum { E = 4, D = 6, F = 3 };
static const mu_optim_config config = { .betas = { 0.9, 0.95 }, .eps = 1e-8, .weight_decay = 0.1 };

typedef struct { layer *l; mu_optimizer *o; mu_memory *loads; } stand;

static stand stand_new(const char *device) {
    mu_moe_config cfg = layer_config(E, 2, F);
    cfg.num_shared_experts = 1;
    stand s = { .l = layer_new(device, mesh_alone(), cfg, 2, 4, D) };
    s.o = mu_optimizer_new(&mu_rule_adamw, &config, s.l->ps);
    s.loads = mu_memory_new(s.l->dev, E * sizeof(int64_t));
    mu_memory_commit(s.loads, E * sizeof(int64_t));
    return s;
}

static void stand_free(stand *s) {
    mu_memory_free(s->loads);
    mu_optimizer_free(s->o);
    layer_free(s->l);
}

/* All experts have tokens but `skipped`. */
static mu_mat loads_without(const stand *s, int skipped) {
    int64_t loads[E];
    for (int i = 0; i < E; i++) loads[i] = i == skipped ? 0 : i + 1;
    mu_device_write(s->l->dev, s->loads->region.base, loads, sizeof loads);
    return (mu_mat){ s->loads->region.base, MU_DTYPE_I64, 1 };
}

/* A step of gradients half as long as they are. */
static void half_step(const stand *s, double lr) {
    mu_grad_clip(s->o, comm_alone(), 0, 0, (mu_mat){ 0 });
    mu_grad_clip(s->o, comm_alone(), 0.5 * mu_grad_norm(s->o), 0, (mu_mat){ 0 });
    mu_optimizer_step(s->o, lr, (mu_mat){ 0 });
}

/* A gradient for every unit, a new one each step. */
static void set_gradients(const stand *s, uint32_t step) {
    for (mu_unit *u = mu_unit_next(s->l->ps, NULL); u; u = mu_unit_next(s->l->ps, u)) {
        double *g = random_reals(step * 100 + (uint32_t)u->global_index, u->count, 1);
        mu_reals_set(s->l->dev, s->l->dev->master, mu_unit_grad(u), u->count, g);
        free(g);
    }
}

/* Weights, first and second moments of a unit, one after another. Heap. */
static double *state_of(const stand *s, const mu_unit *u) {
    double *x = mu_alloc(3 * (size_t)u->count, sizeof *x);
    mu_reals_get(s->l->dev, s->l->dev->master, mu_unit_data(u), u->count, x);
    for (int which = 0; which < 2; which++)
        mu_reals_get(s->l->dev, s->l->dev->master, mu_optimizer_slot(s->o, u, which), u->count,
                     x + (which + 1) * u->count);
    return x;
}

/* One value's AdamW, written out from the paper. */
static void scalar_adamw(double g, double lr, double decay, int64_t t, double *w, double *m, double *v) {
    *m = 0.9 * *m + 0.1 * g, *v = 0.95 * *v + 0.05 * g * g;
    double step = *m / (1 - pow(0.9, (double)t)) / (sqrt(*v / (1 - pow(0.95, (double)t))) + 1e-8);
    *w -= lr * step + lr * decay * *w;
}

static bool decays(const mu_unit *u) { return !strstr(u->name, "/mlp/gate/") && strcmp(u->name, "x") != 0; }

static void equals_scalar_adamw(void **state) {
    (void)state;
    enum { STEPS = 5 };
    stand s = stand_new("ref");
    int checked = 0;
    double *before[64];
    for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u))
        before[u->global_index] = state_of(&s, u);
    for (uint32_t step = 1; step <= STEPS; step++) {
        set_gradients(&s, step);
        half_step(&s, 0.01 * step);
    }
    for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u)) {
        double *now = state_of(&s, u), *w = before[u->global_index];
        for (uint32_t step = 1; step <= STEPS; step++) {
            double *g = random_reals(step * 100 + (uint32_t)u->global_index, u->count, 1);
            for (int64_t i = 0; i < u->count; i++)
                scalar_adamw(0.5 * g[i], 0.01 * step, decays(u) ? 0.1 : 0, step, &w[i], &w[u->count + i],
                             &w[2 * u->count + i]);
            free(g);
        }
        for (int64_t i = 0; i < 3 * u->count; i++) assert_true(fabs(now[i] - w[i]) < 1e-13);
        assert_int_equal(mu_optimizer_steps(s.o, u), STEPS);
        checked++;
        free(now);
        free(w);
    }
    assert_int_equal(checked, 1 + 3 * E + 3 + 1);
    stand_free(&s);
}

static bool is_of(const mu_unit *u, int expert) { return u->expert == expert; }

/* Expert 2 gets no tokens for 100 steps. Afterwards its bias correction continues where it stopped. */
static void idle_experts_stay_bit_for_bit(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu" };
    for (int d = 0; d < 2; d++) {
        stand s = stand_new(devices[d]);
        double *before[64] = { NULL };
        for (uint32_t step = 1; step <= 3; step++) {
            set_gradients(&s, step);
            mu_optimizer_step(s.o, 0.01, loads_without(&s, -1));
        }
        for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u))
            before[u->global_index] = state_of(&s, u);
        for (uint32_t step = 4; step <= 103; step++) {
            set_gradients(&s, step);
            mu_optimizer_step(s.o, 0.01, loads_without(&s, 2));
        }
        for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u)) {
            double *now = state_of(&s, u);
            bool equal = !memcmp(now, before[u->global_index], 3 * (size_t)u->count * sizeof *now);
            assert_int_equal(equal, is_of(u, 2));
            assert_int_equal(mu_optimizer_steps(s.o, u), is_of(u, 2) ? 3 : 103);
            free(now);
        }
        set_gradients(&s, 104);
        mu_optimizer_step(s.o, 0.01, (mu_mat){ 0 });
        for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u)) {
            double *now = state_of(&s, u), *w = before[u->global_index],
                   *g = random_reals(104 * 100 + (uint32_t)u->global_index, u->count, 1);
            assert_int_equal(mu_optimizer_steps(s.o, u), is_of(u, 2) ? 4 : 104);
            for (int64_t i = 0; i < u->count && is_of(u, 2); i++) {
                scalar_adamw(g[i], 0.01, 0.1, 4, &w[i], &w[u->count + i], &w[2 * u->count + i]);
                assert_true(fabs(now[i] - w[i]) < (d ? 1e-6 : 1e-14));
            }
            free(now);
            free(w);
            free(g);
        }
        stand_free(&s);
    }
}

/* Three steps at `lr`. From the second one on expert 2 is frozen, if `freeze`; expert 1 learns at `factor` times the rate. */
static stand stand_after(const char *device, double lr, double factor, bool freeze) {
    stand s = stand_new(device);
    for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u))
        if (is_of(u, 1)) mu_unit_set_lr_factor(u, factor);
    for (uint32_t step = 1; step <= 3; step++) {
        set_gradients(&s, step);
        mu_optimizer_step(s.o, lr, (mu_mat){ 0 });
        for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u))
            if (is_of(u, 2)) mu_unit_freeze(u, freeze);
    }
    return s;
}

static bool same_state(const stand *a, const stand *b, const mu_unit *u) {
    double *x = state_of(a, u), *y = state_of(b, mu_params_find(b->l->ps, u->name));
    bool same = !memcmp(x, y, 3 * (size_t)u->count * sizeof *x);
    free(x);
    free(y);
    return same;
}

/* One expert frozen, another one slower: bit for bit as without the settings of other units. */
static void experts_can_be_frozen_or_slower(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu", "guarded" };
    for (int d = 0; d < 3; d++) {
        stand s = stand_after(devices[d], 0.02, 0.5, true), plain = stand_after(devices[d], 0.02, 1, false),
              slow = stand_after(devices[d], 0.01, 1, false), once = stand_new(devices[d]);
        set_gradients(&once, 1);
        mu_optimizer_step(once.o, 0.02, (mu_mat){ 0 });
        double squares = 0;
        for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u)) {
            const stand *wanted = is_of(u, 2) ? &once : is_of(u, 1) ? &slow : &plain;
            assert_true(same_state(&s, wanted, u));
            assert_int_equal(mu_optimizer_steps(s.o, u), is_of(u, 2) ? 1 : 3);
            double *g = random_reals(300 + (uint32_t)u->global_index, u->count, 1);
            for (int64_t i = 0; i < u->count && !is_of(u, 2); i++) squares += g[i] * g[i];
            free(g);
        }
        mu_grad_clip(s.o, comm_alone(), 0, 0, (mu_mat){ 0 });
        assert_true(fabs(mu_grad_norm(s.o) - sqrt(squares)) < 1e-6 * sqrt(squares));   /* without the frozen ones */
        for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u)) mu_unit_freeze(u, !is_of(u, 2));
        mu_optimizer_step(s.o, 0.02, (mu_mat){ 0 });
        for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u))
            assert_int_equal(mu_optimizer_steps(s.o, u), is_of(u, 2) ? 2 : 3);
        for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u)) mu_unit_freeze(u, true);
        mu_optimizer_step(s.o, 0.02, (mu_mat){ 0 });
        stand_free(&s), stand_free(&plain), stand_free(&slow), stand_free(&once);
    }
}

/* ---------------------------------------------------------------- another rule */
/* Gradient descent with momentum, one slot, as someone else would write it for a host device. */
static void momentum_init(mu_device *dev, int slot, int64_t count, mu_mat values) {
    assert_int_equal(slot, 0);
    dev->k->fill(dev, count, 0.25, values);
}

static void momentum_step(const mu_optim_config *cfg, const mu_update *u) {
    double *w = u->values.data, *g = u->grads.data, *b = u->slots[0].data;
    assert_null(u->slots[1].data);
    for (int64_t i = 0; i < u->n_units; i++) {
        const mu_slab_unit *unit = (const mu_slab_unit *)u->units.data + i;
        if (u->loads.data && unit->load >= 0 && ((const int64_t *)u->loads.data)[unit->load] == 0) continue;
        ((int64_t *)u->steps.data)[unit->id]++;
        for (int64_t j = unit->first; j < unit->first + unit->count; j++) {
            b[j] = cfg->betas[0] * b[j] + *(const double *)u->scale.data * g[j];
            w[j] -= u->lr * b[j];
        }
    }
}

static const mu_rule momentum = { "momentum", 1, { "buf" }, momentum_init, momentum_step, 0 };

static void another_rule_is_one_struct(void **state) {
    (void)state;
    stand s = stand_new("ref");
    mu_optimizer_free(s.o);
    s.o = mu_optimizer_new(&momentum, &config, s.l->ps);
    mu_unit *u = mu_params_find(s.l->ps, "/layers/0/mlp/experts/3/up_proj/weight");
    assert_non_null(u);
    double *w = mu_alloc((size_t)u->count, sizeof *w), *b = mu_alloc((size_t)u->count, sizeof *b),
           *host = mu_alloc((size_t)u->count, sizeof *host);
    mu_reals_get(s.l->dev, s.l->dev->master, mu_unit_data(u), u->count, w);
    for (int64_t i = 0; i < u->count; i++) b[i] = 0.25;
    for (uint32_t step = 1; step <= 4; step++) {        /* expert 3 is skipped in the last one */
        set_gradients(&s, step);
        mu_optimizer_step(s.o, 0.01, loads_without(&s, step == 4 ? 3 : -1));
        double *g = random_reals(step * 100 + (uint32_t)u->global_index, u->count, 1);
        for (int64_t i = 0; i < u->count && step < 4; i++) b[i] = 0.9 * b[i] + g[i], w[i] -= 0.01 * b[i];
        free(g);
    }
    assert_int_equal(mu_optimizer_steps(s.o, u), 3);
    mu_optimizer_slot_read(s.o, u, 0, host);
    for (int64_t i = 0; i < u->count; i++) assert_true(near(host[i], b[i]));
    mu_reals_get(s.l->dev, s.l->dev->master, mu_unit_data(u), u->count, host);
    for (int64_t i = 0; i < u->count; i++) assert_true(near(host[i], w[i]));
    free(w);
    free(b);
    free(host);
    stand_free(&s);
}

/* ---------------------------------------------------------------- the norm */
static void norm_is_the_naive_norm(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu", "guarded" };
    for (int d = 0; d < 3; d++) {
        stand s = stand_new(devices[d]);
        double sum = 0;
        set_gradients(&s, 1);
        for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u)) {
            double *g = mu_alloc((size_t)u->count, sizeof *g);
            mu_reals_get(s.l->dev, s.l->dev->master, mu_unit_grad(u), u->count, g);
            for (int64_t i = 0; i < u->count; i++) sum += g[i] * g[i];
            free(g);
        }
        mu_grad_clip(s.o, comm_alone(), 1, 0, (mu_mat){ 0 });
        assert_true(fabs(mu_grad_norm(s.o) - sqrt(sum)) < 1e-12 * sqrt(sum));
        assert_null(mu_grads_nonfinite(s.o));
        stand_free(&s);
    }
}

static void norm_names_what_is_not_finite(void **state) {
    (void)state;
    static const double poison[] = { NAN, INFINITY };
    for (int p = 0; p < 2; p++) {
        stand s = stand_new("cpu");
        set_gradients(&s, 1);
        mu_unit *u = mu_params_find(s.l->ps, "/layers/0/mlp/experts/3/up_proj/weight");
        assert_non_null(u);
        mu_reals_set(s.l->dev, s.l->dev->master, (float *)mu_unit_grad(u) + u->count - 1, 1, &poison[p]);
        mu_grad_clip(s.o, comm_alone(), 1, 0, (mu_mat){ 0 });
        assert_false(isfinite(mu_grad_norm(s.o)));
        assert_ptr_equal(mu_grads_nonfinite(s.o), u);
        stand_free(&s);
    }
}

/* A gradient or a loss that is not finite leaves weights, moments and step counts as they are; the next step that has
 * both continues. */
static void nothing_moves_that_is_not_finite(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu" };
    for (int c = 0; c < 4; c++) {
        bool bad_loss = c & 1, moved = false;
        double loss[2] = { 3, bad_loss ? INFINITY : 4 };
        stand s = stand_new(devices[c / 2]);
        double *before[64];
        set_gradients(&s, 1);
        for (mu_unit *u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u))
            before[u->global_index] = state_of(&s, u);
        mu_unit *u = mu_params_find(s.l->ps, "/layers/0/mlp/experts/1/down_proj/weight");
        if (!bad_loss) mu_reals_set(s.l->dev, s.l->dev->master, mu_unit_grad(u), 1, &(double){ NAN });
        mu_tape_set_reduction_unit(s.l->tp, 4);
        mu_tensor *losses = mu_tensor_loss(s.l->tp, 8);
        mu_tensor_write(losses, loss);
        mu_grad_clip(s.o, comm_alone(), 1, mu_count(losses), mu_data(losses));
        mu_optimizer_step(s.o, 0.01, (mu_mat){ 0 });
        for (u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u)) {
            double *now = state_of(&s, u);
            assert_memory_equal(now, before[u->global_index], 3 * (size_t)u->count * sizeof *now);
            assert_int_equal(mu_optimizer_steps(s.o, u), 0);
            free(now);
        }
        set_gradients(&s, 1);
        mu_grad_clip(s.o, comm_alone(), 1, 0, (mu_mat){ 0 });
        mu_optimizer_step(s.o, 0.01, (mu_mat){ 0 });
        for (u = mu_unit_next(s.l->ps, NULL); u; u = mu_unit_next(s.l->ps, u)) {
            double *now = state_of(&s, u);
            moved |= memcmp(now, before[u->global_index], (size_t)u->count * sizeof *now) != 0;
            free(now);
            free(before[u->global_index]);
        }
        assert_true(moved);
        stand_free(&s);
    }
}

/* Clipping, the step and skipped experts need no host synchronization. */
static void a_step_does_not_wait(void **state) {
    (void)state;
    stand s = stand_new("guarded");
    set_gradients(&s, 1);
    int64_t waits = mu_device_waits(s.l->dev);
    mu_grads_reduce(s.o);
    mu_grad_clip(s.o, comm_alone(), 1, 0, (mu_mat){ 0 });
    mu_optimizer_step(s.o, 0.01, loads_without(&s, 2));
    assert_int_equal(mu_device_waits(s.l->dev), waits);
    mu_grad_norm(s.o);
    assert_int_equal(mu_device_waits(s.l->dev), waits + 1);
    stand_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedules),
        cmocka_unit_test(short_and_odd_runs),
        cmocka_unit_test(equals_scalar_adamw),
        cmocka_unit_test(idle_experts_stay_bit_for_bit),
        cmocka_unit_test(experts_can_be_frozen_or_slower),
        cmocka_unit_test(another_rule_is_one_struct),
        cmocka_unit_test(norm_is_the_naive_norm),
        cmocka_unit_test(norm_names_what_is_not_finite),
        cmocka_unit_test(nothing_moves_that_is_not_finite),
        cmocka_unit_test(a_step_does_not_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
