/* test_jitter.c - the noise on the router's input: its definition and gradient; only in training, only for the
 * router, and the same for a token however the batch is split. */
#include "layer.h"
#include "ref_device.h"

enum { S = 5, SEQUENCES = 4, T = S * SEQUENCES, D = 6, E = 4, K = 2 };
static const double EPS = 0.25;

static double factor(const mu_rng *first, int t, int i) {
    mu_rng r = *first;
    r.sample += (uint32_t)(t / S);
    uint32_t word = mu_rng_u32(&r, (uint64_t)(t % S * 2 * 4 + i)); /* D = 6 takes two blocks of four */
    return 1 + EPS * (2 * ((word >> 8) / 16777216.0) - 1);
}

/* ---------------------------------------------------------------- the op */
static const mu_rng stream = { .seed = 99, .step = 4, .sample = 12, .purpose = MU_RNG_JITTER, .layer = 3 };

static mu_tensor *loss_of(mu_tape *tp, void *x) {
    mu_tensor *once = weighted_sum(tp, mu_jitter(tp, x, S, EPS, &stream), 0);
    return mu_add(tp, once, weighted_sum(tp, mu_jitter(tp, x, S, EPS, &stream), 1));
}

static void definition_and_gradient(void **state) {
    (void)state;
    mu_params *ps = mu_params_new(dev);
    mu_tape *tp = mu_tape_new(dev);
    mu_params_group(ps, "leaves", NULL);
    mu_param *x = leaf(ps, "x", T, D, 1);
    mu_params_alloc(ps);
    mu_params_init(ps, 5);
    double before[T * D], after[T * D], least = 2, most = 0;
    mu_tensor_get(&x->tensor, before);
    mu_tensor_get(mu_jitter(tp, &x->tensor, S, EPS, &stream), after);
    for (int j = 0; j < T * D; j++) {
        double f = factor(&stream, j / D, j % D);
        assert_true(fabs(after[j] - before[j] * f) <= 1e-15 * fabs(before[j]));
        least = fmin(least, f), most = fmax(most, f);
    }
    assert_true(least >= 1 - EPS && least < 1 - 0.9 * EPS && most < 1 + EPS && most > 1 + 0.9 * EPS);
    gradcheck(ps, tp, loss_of, &x->tensor, T * D);
    mu_tape_free(tp);
    mu_params_free(ps);
}

/* ---------------------------------------------------------------- the layer */
static layer *noisy_layer(int64_t experts, double jitter, int64_t first_sample, int64_t sequences) {
    static int64_t samples[SEQUENCES];
    mu_moe_config cfg = layer_config(experts, experts < K ? experts : K, 3);
    cfg.router_jitter = jitter;
    layer *l = layer_new("ref", mesh_alone(), cfg, sequences, S, D);
    for (int i = 0; i < SEQUENCES; i++) samples[i] = first_sample + i;
    l->cx.global_samples = samples, l->cx.seed = 42, l->cx.step = 17;
    return l;
}

/* Scores and output for the rows of x that belong to the layer's samples. */
static void run(layer *l, const double *x, double *scores, double *y) {
    mu_tensor_set(&l->x_TD->tensor, x);
    mu_tensor_get(layer_forward(l, l->tp), y);
    mu_tensor_get(l->routing.scores_TE, scores);
    mu_tape_reset(l->tp);
}

static bool differ(const double *a, const double *b, int n) {
    return memcmp(a, b, (size_t)n * sizeof *a) != 0;
}

/* The scores are those of x times the factors. A single expert, whose gate is always 1, shows that experts see x. */
static void only_the_router_sees_it(void **state) {
    (void)state;
    layer *noisy = noisy_layer(E, EPS, 0, SEQUENCES), *plain = noisy_layer(E, 0, 0, SEQUENCES);
    double *x = random_reals(7, T * D, 1), moved[T * D], a[T * E], b[T * E], ya[T * D], yb[T * D];
    mu_rng rng = { 42, 17, 0, MU_RNG_JITTER, 0 };
    for (int j = 0; j < T * D; j++) moved[j] = x[j] * factor(&rng, j / D, j % D);
    run(noisy, x, a, ya);
    run(plain, moved, b, yb);
    for (int i = 0; i < T * E; i++) assert_true(fabs(a[i] - b[i]) < 1e-14);
    layer *noisy_one = noisy_layer(1, EPS, 0, SEQUENCES), *plain_one = noisy_layer(1, 0, 0, SEQUENCES);
    run(noisy_one, x, a, ya);
    run(plain_one, x, b, yb);
    assert_false(differ(ya, yb, T * D));
    free(x);
    layer_free(noisy);
    layer_free(plain);
    layer_free(noisy_one);
    layer_free(plain_one);
}

static void not_in_evaluation(void **state) {
    (void)state;
    layer *noisy = noisy_layer(E, EPS, 0, SEQUENCES), *plain = noisy_layer(E, 0, 0, SEQUENCES);
    double *x = random_reals(7, T * D, 1), a[T * E], b[T * E], ya[T * D], yb[T * D];
    run(plain, x, a, ya);
    run(noisy, x, b, yb);
    assert_true(differ(a, b, T * E));
    noisy->cx.mode = MU_MODE_EVAL;
    run(noisy, x, b, yb);
    assert_false(differ(a, b, T * E) || differ(ya, yb, T * D));
    free(x);
    layer_free(noisy);
    layer_free(plain);
}

/* A sequence's scores are the same bits in a batch of four, in two of two, and in one that begins elsewhere. */
static void belongs_to_the_token(void **state) {
    (void)state;
    layer *whole = noisy_layer(E, EPS, 100, SEQUENCES);
    double *x = random_reals(7, T * D, 1), a[T * E], b[T * E], y[T * D];
    run(whole, x, a, y);
    for (int first = 0; first < SEQUENCES; first++)
        for (int n = 1; n <= SEQUENCES - first; n++) {
            layer *part = noisy_layer(E, EPS, 100 + first, n);
            run(part, x + first * S * D, b, y);
            assert_false(differ(a + first * S * E, b, n * S * E));
            part->cx.step++;
            run(part, x + first * S * D, b, y);
            assert_true(differ(a + first * S * E, b, n * S * E));
            layer_free(part);
        }
    free(x);
    layer_free(whole);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(definition_and_gradient),
        cmocka_unit_test(only_the_router_sees_it),
        cmocka_unit_test(not_in_evaluation),
        cmocka_unit_test(belongs_to_the_token),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
