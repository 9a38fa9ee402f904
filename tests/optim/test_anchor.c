/* test_anchor.c - the anchor: its pull is the gradient of its penalty, is limited, and leaves out idle and frozen units. */
#include "moe/layer.h"
#include "optim/optim.h"

enum { E = 4, D = 6, F = 3 };
static const mu_optim_config config = { .betas = { 0.9, 0.95 }, .eps = 1e-8, .weight_decay = 0.1 };
static const mu_option_domains domains = { 1, (mu_option_domain[]){ { .domain = "latin" } } };
static const char *const devices[] = { "ref", "cpu", "guarded" };
enum { DEVICES = 3 };

typedef struct { layer *l; mu_optimizer *o; mu_anchor *a; } stand;

static stand stand_new(const char *device) {
    stand s = { .l = layer_new(device, mesh_alone(), layer_config(E, 2, F), 2, 4, D) };
    s.o = mu_optimizer_new(&mu_rule_adamw, &config, s.l->ps);
    s.a = mu_anchor_new(s.o, &domains);
    return s;
}

static void stand_free(stand *s) {
    mu_anchor_free(s->a);
    mu_optimizer_free(s->o);
    layer_free(s->l);
}

#define FOR_UNITS(s, u) for (mu_unit *u = mu_unit_next((s)->l->ps, NULL); u; u = mu_unit_next((s)->l->ps, u))

static double *values_of(const stand *s, const mu_unit *u, bool grad) {
    double *x = mu_alloc((size_t)u->count, sizeof *x);
    mu_reals_get(s->l->dev, s->l->dev->master, grad ? mu_unit_grad(u) : mu_unit_data(u), u->count, x);
    return x;
}

/* Numbers of this seed, times `by`, in [-by, by]. */
static double *numbers(uint32_t seed, const mu_unit *u, double by) {
    double *x = random_reals(seed * 100 + (uint32_t)u->global_index, u->count, 1);
    for (int64_t i = 0; i < u->count; i++) x[i] *= by;
    return x;
}

static void set_gradients(const stand *s, uint32_t seed, double by) {
    FOR_UNITS(s, u) {
        double *g = numbers(seed, u, by);
        mu_reals_set(s->l->dev, s->l->dev->master, mu_unit_grad(u), u->count, g);
        free(g);
    }
}

/* Every weight moves by numbers of seed 9. */
static void move(const stand *s) {
    FOR_UNITS(s, u) {
        double *w = values_of(s, u, false), *by = numbers(9, u, 0.5);
        for (int64_t i = 0; i < u->count; i++) w[i] += by[i];
        mu_reals_set(s->l->dev, s->l->dev->master, mu_unit_data(u), u->count, w);
        free(w);
        free(by);
    }
}

/* F = 0.25 g1^2 + 0.75 g2^2, at the weights of then; the weights have moved since. */
static stand anchored(const char *device, double cut) {
    stand s = stand_new(device);
    for (uint32_t seed = 1; seed <= 2; seed++) {
        set_gradients(&s, seed, 1);
        mu_anchor_add(s.a, seed == 1 ? 0.25 : 0.75);
    }
    mu_anchor_renew(s.a, comm_alone(), cut);
    move(&s);
    return s;
}

static double *fisher(const mu_unit *u) {
    double *f = numbers(1, u, 1), *g = numbers(2, u, 1);
    for (int64_t i = 0; i < u->count; i++) f[i] = 0.25 * f[i] * f[i] + 0.75 * g[i] * g[i];
    free(g);
    return f;
}

/* strength / 2 * sum of F (w - at)^2, with value `which` of unit `at` changed by `by`. */
static double penalty(const stand *s, double strength, const mu_unit *at, int64_t which, double by) {
    double sum = 0;
    FOR_UNITS(s, u) {
        double *f = fisher(u), *moved = numbers(9, u, 0.5);
        for (int64_t i = 0; i < u->count; i++) {
            double d = moved[i] + (u == at && i == which ? by : 0);
            sum += strength / 2 * f[i] * d * d;
        }
        free(f);
        free(moved);
    }
    return sum;
}

static void pull_is_the_gradient_of_the_penalty(void **state) {
    (void)state;
    for (int d = 0; d < DEVICES; d++) {
        stand s = anchored(devices[d], 0);
        set_gradients(&s, 5, 0);
        mu_anchor_pull(s.a, comm_alone(), 3, 0, (mu_mat){ 0 });
        FOR_UNITS(&s, u) {
            double *g = values_of(&s, u, true), h = 1e-3;
            for (int64_t i = 0; i < u->count; i += 1 + u->count / 5) {
                double wanted = (penalty(&s, 3, u, i, h) - penalty(&s, 3, u, i, -h)) / (2 * h);
                assert_true(fabs(g[i] - wanted) < (d ? 1e-5 : 1e-9) * (1 + fabs(wanted)));
            }
            free(g);
        }
        stand_free(&s);
    }
}

static mu_mat loads_without(const stand *s, int idle, mu_memory **memory) {
    int64_t loads[E];
    for (int i = 0; i < E; i++) loads[i] = i == idle ? 0 : 1;
    *memory = mu_memory_new(s->l->dev, sizeof loads);
    mu_memory_commit(*memory, sizeof loads);
    mu_device_write(s->l->dev, (*memory)->region.base, loads, sizeof loads);
    return (mu_mat){ (*memory)->region.base, MU_DTYPE_I64, 1 };
}

/* After clipping to 2, the step sees the clipped gradient plus a pull whose norm is 0.5. Expert 2 is idle, expert 1 frozen. */
static void pull_is_limited_and_not_clipped(void **state) {
    (void)state;
    for (int d = 0; d < DEVICES; d++) {
        stand s = anchored(devices[d], 0);
        mu_memory *memory;
        mu_mat loads = loads_without(&s, 2, &memory);
        FOR_UNITS(&s, u) if (u->expert == 1) mu_unit_freeze(u, true);
        set_gradients(&s, 5, 1);
        mu_grad_clip(s.o, comm_alone(), 2, 0, (mu_mat){ 0 });
        double scale = 2 / mu_grad_norm(s.o), squares = 0, tolerance = d ? 1e-5 : 1e-12;
        assert_true(scale < 1);
        mu_anchor_pull(s.a, comm_alone(), 100, 0.5, loads);
        FOR_UNITS(&s, u) {
            double *g = values_of(&s, u, true), *before = numbers(5, u, 1), *f = fisher(u), *moved = numbers(9, u, 0.5);
            bool left_out = u->expert == 1 || u->expert == 2;
            for (int64_t i = 0; i < u->count; i++) {
                double pull = scale * (g[i] - before[i]);
                if (left_out) assert_true(fabs(pull) < 1e-6);
                else assert_true(pull * f[i] * moved[i] >= -tolerance);
                squares += pull * pull;
            }
            free(g);
            free(before);
            free(f);
            free(moved);
        }
        assert_true(fabs(sqrt(squares) - 0.5) < tolerance);
        mu_memory_free(memory);
        stand_free(&s);
    }
}

/* Values of F below the cut do not pull; a gradient that is not finite leaves everything as it is. */
static void small_values_and_bad_steps_do_not_pull(void **state) {
    (void)state;
    for (int d = 0; d < DEVICES; d++) {
        stand s = anchored(devices[d], 0.05);
        double largest = 0;
        int64_t above = 0, all = 0;
        FOR_UNITS(&s, u) {
            double *f = fisher(u);
            for (int64_t i = 0; i < u->count; i++) largest = fmax(largest, f[i]);
            free(f);
        }
        set_gradients(&s, 5, 0);
        mu_anchor_pull(s.a, comm_alone(), 1, 0, (mu_mat){ 0 });
        FOR_UNITS(&s, u) {
            double *g = values_of(&s, u, true), *f = fisher(u), *moved = numbers(9, u, 0.5);
            for (int64_t i = 0; i < u->count; i++, all++) {
                if (fabs(f[i] - 0.05 * largest) < 1e-6) continue;
                assert_true(f[i] < 0.05 * largest ? g[i] == 0 : fabs(g[i] - f[i] * moved[i]) < 1e-6);
                above += g[i] != 0;
            }
            free(g);
            free(f);
            free(moved);
        }
        assert_true(above > all / 10 && above < all);
        mu_anchor_size size = mu_anchor_renew(s.a, comm_alone(), 0);
        assert_true(fabs(size.largest - largest) < 1e-6 && llabs(size.weights - above) <= 1);

        set_gradients(&s, 5, NAN);
        mu_grad_clip(s.o, comm_alone(), 1, 0, (mu_mat){ 0 });
        set_gradients(&s, 5, 1);
        mu_anchor_pull(s.a, comm_alone(), 1, 0, (mu_mat){ 0 });
        FOR_UNITS(&s, u) {
            double *g = values_of(&s, u, true), *before = numbers(5, u, 1);
            for (int64_t i = 0; i < u->count; i++) assert_true(fabs(g[i] - before[i]) < 1e-6);
            free(g);
            free(before);
        }
        stand_free(&s);
    }
}

/* One that was never set has no effect; a renewed one holds the weights of now, with the sum of both. */
static void renewing_it_takes_the_weights_of_now(void **state) {
    (void)state;
    stand s = stand_new("ref");
    set_gradients(&s, 5, 0);
    mu_anchor_pull(s.a, comm_alone(), 1, 0, (mu_mat){ 0 });
    assert_false(s.a->set);
    stand_free(&s);
    s = anchored("ref", 0);
    set_gradients(&s, 3, 1);
    mu_anchor_add(s.a, 2);
    mu_anchor_renew(s.a, comm_alone(), 0);
    for (int moved = 0; moved < 2; moved++) {
        if (moved) move(&s);
        set_gradients(&s, 5, 0);
        mu_anchor_pull(s.a, comm_alone(), 1, 0, (mu_mat){ 0 });
        FOR_UNITS(&s, u) {
            double *g = values_of(&s, u, true), *f = fisher(u), *more = numbers(3, u, 1), *by = numbers(9, u, 0.5);
            for (int64_t i = 0; i < u->count; i++)
                assert_true(fabs(g[i] - moved * (f[i] + 2 * more[i] * more[i]) * by[i]) < 1e-12);
            free(g);
            free(f);
            free(more);
            free(by);
        }
    }
    stand_free(&s);
}

/* Weights that were replaced are held no longer, those beside them are. */
static void released_values_do_not_pull(void **state) {
    (void)state;
    enum { FIRST = 2, N = 5 };
    stand s = stand_new("ref");
    FOR_UNITS(&s, u) mu_anchor_release(s.a, u, FIRST, N);   /* it is not set */
    stand_free(&s);
    for (int d = 0; d < DEVICES; d++) {
        s = anchored(devices[d], 0);
        FOR_UNITS(&s, u) if (u->count >= FIRST + N) mu_anchor_release(s.a, u, FIRST, N);
        set_gradients(&s, 5, 0);
        mu_anchor_pull(s.a, comm_alone(), 1, 0, (mu_mat){ 0 });
        FOR_UNITS(&s, u) {
            double *g = values_of(&s, u, true);
            for (int64_t i = 0; i < u->count; i++) assert_int_equal(g[i] == 0, u->count >= FIRST + N && i >= FIRST && i < FIRST + N);
            free(g);
        }
        stand_free(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(pull_is_the_gradient_of_the_penalty), cmocka_unit_test(pull_is_limited_and_not_clipped),
                                        cmocka_unit_test(small_values_and_bad_steps_do_not_pull),
                                        cmocka_unit_test(renewing_it_takes_the_weights_of_now), cmocka_unit_test(released_values_do_not_pull) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
