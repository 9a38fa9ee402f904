/* test_router.c - scores, choice, gates and their gradients, against formulas written out here. */
#include "gradcheck.h"
#include "moe/moe.h"
#include "ref_device.h"

enum { T = 7, E = 6 };

/* Which of the router's outputs the loss uses. */
enum { GATES = 1, SCORES = 2, LSE = 4 };

typedef struct {
    mu_route_shape shape;
    const double *bias;         /* [E] or NULL */
    const int32_t *mask;        /* [mask_rows, E] or NULL */
    int64_t mask_rows;
    unsigned uses;
    mu_tensor *logits;
    mu_routing last;            /* of the last run */
} routed;

static void route(mu_tape *tp, routed *r) {
    mu_tensor *bias = NULL, *mask = r->mask ? mu_tensor_new(tp, MU_DTYPE_I32, 2, (int64_t[]){ r->mask_rows, r->shape.E }) : NULL;
    if (mask) mu_tensor_write(mask, r->mask);
    if (r->bias) {
        bias = mu_tensor_2d(tp, 1, r->shape.E);
        mu_tensor_set(bias, r->bias);
    }
    r->last = mu_route(tp, r->logits, bias, mask, &r->shape, r->shape.T, (mu_mat){ 0 }, 0);
}

static mu_tensor *add_loss(mu_tape *tp, mu_tensor *loss, mu_tensor *x, uint32_t stream) {
    mu_tensor *more = weighted_sum(tp, x, stream);
    return loss ? mu_add(tp, loss, more) : more;
}

/* The router twice on the same logits, each with its own weights. */
static mu_tensor *loss_of(mu_tape *tp, void *arg) {
    routed *r = arg;
    mu_tensor *loss = NULL;
    for (uint32_t time = 0; time < 2; time++) {
        route(tp, r);
        if (r->uses & GATES) loss = add_loss(tp, loss, r->last.gates_TK, 3 * time);
        if (r->uses & SCORES) loss = add_loss(tp, loss, r->last.scores_TE, 3 * time + 1);
        if (r->uses & LSE) loss = add_loss(tp, loss, r->last.lse_T, 3 * time + 2);
    }
    return loss;
}

typedef struct { mu_params *ps; mu_param *logits; mu_tape *tp; } stand;

static stand stand_new(int64_t rows, int64_t experts) {
    stand s = { .ps = mu_params_new(dev), .tp = mu_tape_new(dev) };
    mu_params_group(s.ps, "leaves", NULL);
    s.logits = leaf(s.ps, "logits", rows, experts, 1.5);
    mu_params_alloc(s.ps);
    mu_params_init(s.ps, 11);
    return s;
}

static void stand_free(stand *s) {
    mu_tape_free(s->tp);
    mu_params_free(s->ps);
}

static void gradients(void **state) {
    (void)state;
    static const double bias[E] = { 0.3, -0.2, 0.1, 0, -0.4, 0.25 };
    stand s = stand_new(T, E);
    for (int sigmoid = 0; sigmoid < 2; sigmoid++)
        for (int normalise = 0; normalise < 2; normalise++)
            for (int scaled = 0; scaled < 2; scaled++)
                for (int biased = 0; biased < 2; biased++)
                    for (int64_t K = 1; K <= E; K += K == 3 ? 3 : 1)
                        for (unsigned uses = 1; uses < 8; uses++) {
                            if (uses == GATES && normalise && K == 1) continue;     /* zero: see below */
                            routed r = { .shape = { T, E, K, sigmoid, normalise, scaled ? 2.5 : 1,
                                                    MU_ROUTE_FREE, 0 },
                                         .bias = biased ? bias : NULL,
                                         .uses = uses,
                                         .logits = &s.logits->tensor };
                            gradcheck(s.ps, s.tp, loss_of, &r, 100);
                        }
    stand_free(&s);
}

/* Is expert i chosen before expert j? */
static bool before(const int32_t *mask, const double *value, int i, int j) {
    if (mask[i] != mask[j]) return mask[i] > mask[j];
    return value[i] != value[j] ? value[i] > value[j] : i < j;
}

/* The K experts of a token by a mask: required ones first, forbidden ones never, each class best first. */
static void expect_choice(const int32_t *mask, const double *scores, const double *bias, int K, const int32_t *ids) {
    double value[E];
    for (int i = 0; i < E; i++) value[i] = scores[i] + (bias ? bias[i] : 0);
    for (int i = 0; i < E; i++) {
        int rank = 0;
        for (int j = 0; j < E; j++) rank += before(mask, value, j, i);
        if (rank < K) assert_int_equal(ids[rank], i);
    }
}

/* A mask changes which experts are chosen and nothing else: scores and log-sum-exp keep their bits, gates and gradients are
 * those of a free choice. */
static void masks(void **state) {
    (void)state;
    enum { N = MU_ROUTE_FORBIDDEN, Y = MU_ROUTE_ALLOWED, M = MU_ROUTE_REQUIRED, K = 3 };
    static const double bias[E] = { 0.3, -0.2, 0.1, 0, -0.4, 0.25 };
    static const int32_t mask[T][E] = { { Y, N, Y, Y, N, Y }, { M, Y, Y, Y, Y, Y }, { Y, Y, Y, Y, M, M }, { M, N, N, Y, M, M },
                                        { N, N, N, Y, Y, Y }, { Y, M, Y, N, Y, N }, { Y, Y, Y, Y, Y, Y } };
    stand s = stand_new(T, E);
    for (int kind = 0; kind < 8; kind++)
        for (int rows = 1; rows <= T; rows += T - 1) {
            routed free_choice = { .shape = { T, E, K, kind & 1, kind & 2, 2.5, MU_ROUTE_FREE, 0, 0 }, .bias = kind & 4 ? bias : NULL,
                                   .uses = GATES | SCORES | LSE, .logits = &s.logits->tensor };
            routed r = free_choice;
            double scores[T * E], lse[T], gates[T * K], free_scores[T * E], free_lse[T];
            int32_t ids[T * K];
            r.mask = rows == 1 ? mask[3] : mask[0], r.mask_rows = rows;
            gradcheck(s.ps, s.tp, loss_of, &r, 100);
            mu_tape_reset(s.tp);
            route(s.tp, &r);
            route(s.tp, &free_choice);
            mu_tensor_get(r.last.scores_TE, scores);
            mu_tensor_get(r.last.lse_T, lse);
            mu_tensor_get(r.last.gates_TK, gates);
            mu_tensor_read(r.last.ids_TK, ids);
            mu_tensor_get(free_choice.last.scores_TE, free_scores);
            mu_tensor_get(free_choice.last.lse_T, free_lse);
            assert_memory_equal(scores, free_scores, sizeof scores);
            assert_memory_equal(lse, free_lse, sizeof lse);
            for (int t = 0; t < T; t++) {
                double sum = 0;
                expect_choice(mask[rows == 1 ? 3 : t], scores + t * E, r.bias, K, ids + t * K);
                for (int k = 0; k < K; k++) sum += kind & 2 ? scores[t * E + ids[t * K + k]] : 1.0 / K;
                for (int k = 0; k < K; k++)
                    assert_true(fabs(gates[t * K + k] - 2.5 * scores[t * E + ids[t * K + k]] / sum) < 1e-14);
            }
        }
    stand_free(&s);
}

/* Forward against the definition: s, the K largest of s + bias in order, gates. */
static void definition(void **state) {
    (void)state;
    static const double bias[E] = { 0.3, -0.2, 0.1, 0, -0.4, 0.25 };
    enum { K = 3 };
    stand s = stand_new(T, E);
    double logits[T * E], gates[T * K], scores[T * E], lse[T];
    int32_t ids[T * K];
    mu_tensor_get(&s.logits->tensor, logits);
    int moved = 0;
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        routed r = { .shape = { T, E, K, sigmoid, true, 2.5, MU_ROUTE_FREE, 0 },
                     .bias = bias,
                     .logits = &s.logits->tensor };
        route(s.tp, &r);
        mu_tensor_get(r.last.gates_TK, gates);
        mu_tensor_get(r.last.scores_TE, scores);
        mu_tensor_get(r.last.lse_T, lse);
        mu_tensor_read(r.last.ids_TK, ids);
        for (int t = 0; t < T; t++) {
            double sum = 0, chosen = 0;
            for (int i = 0; i < E; i++) sum += exp(logits[t * E + i]);
            assert_true(fabs(lse[t] - log(sum)) < 1e-13);
            for (int i = 0; i < E; i++) {
                double x = logits[t * E + i], wanted = sigmoid ? 1 / (1 + exp(-x)) : exp(x) / sum;
                assert_true(fabs(scores[t * E + i] - wanted) < 1e-14);
            }
            for (int k = 0; k < K; k++) chosen += scores[t * E + ids[t * K + k]];
            for (int k = 0; k < K; k++) {
                int id = ids[t * K + k], better = 0, better_without = 0;
                for (int i = 0; i < E; i++) {
                    better += scores[t * E + i] + bias[i] > scores[t * E + id] + bias[id];
                    better_without += scores[t * E + i] > scores[t * E + id];
                }
                assert_int_equal(better, k);        /* the bias decides who is chosen ... */
                moved += better_without != k;
                /* ... not the gate */
                assert_true(fabs(gates[t * K + k] - 2.5 * scores[t * E + id] / chosen) < 1e-14);
            }
        }
    }
    assert_true(moved > 0);
    stand_free(&s);
}

static void ties_go_to_the_lower_index(void **state) {
    (void)state;
    static const double logits[2 * E] = { 1, 1, 1, 1, 1, 1, 0, 2, 1, 2, 1, 2 };
    static const int32_t wanted[2 * 4] = { 0, 1, 2, 3, 1, 3, 5, 2 };
    static const char *const devices[] = { "ref", "cpu" };
    for (int d = 0; d < 2; d++)
        for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
            mu_device *here = mu_device_open(devices[d]);
            mu_tape *tp = mu_tape_new(here);
            routed r = { .shape = { 2, E, 4, sigmoid, true, 1, MU_ROUTE_FREE, 0 },
                         .logits = mu_tensor_2d(tp, 2, E) };
            mu_tensor_set(r.logits, logits);
            route(tp, &r);
            int32_t ids[8];
            mu_tensor_read(r.last.ids_TK, ids);
            assert_memory_equal(ids, wanted, sizeof ids);
            mu_tape_free(tp);
            mu_device_close(here);
        }
}

/* Softmax over all, then renormalised over the chosen = softmax over the chosen (Mixtral's order). */
static void softmax_before_or_after_the_choice(void **state) {
    (void)state;
    enum { K = 3 };
    stand s = stand_new(T, E);
    double logits[T * E], gates[T * K], grad[T * E];
    int32_t ids[T * K];
    double *A = random_reals(1000, T * K, 1.0);         /* the weights of weighted_sum, stream 0 */
    routed r = { .shape = { T, E, K, false, true, 1, MU_ROUTE_FREE, 0 }, .logits = &s.logits->tensor };
    mu_params_zero_grad(s.ps);
    route(s.tp, &r);
    mu_tensor_get(r.logits, logits);
    mu_tensor_get(r.last.gates_TK, gates);
    mu_tensor_read(r.last.ids_TK, ids);
    mu_backward(s.tp, weighted_sum(s.tp, r.last.gates_TK, 0));
    mu_reals_get(dev, MU_DTYPE_F64, s.logits->tensor.grad, T * E, grad);
    for (int t = 0; t < T; t++) {
        double sum = 0, mean = 0, g[K], wanted[E] = { 0 };
        for (int k = 0; k < K; k++) sum += exp(logits[t * E + ids[t * K + k]]);
        for (int k = 0; k < K; k++) {
            g[k] = exp(logits[t * E + ids[t * K + k]]) / sum;
            mean += g[k] * A[t * K + k];
            assert_true(fabs(gates[t * K + k] - g[k]) < 1e-13);
        }
        for (int k = 0; k < K; k++) wanted[ids[t * K + k]] = g[k] * (A[t * K + k] - mean);
        for (int i = 0; i < E; i++) assert_true(fabs(grad[t * E + i] - wanted[i]) < 1e-13);
    }
    free(A);
    stand_free(&s);
}

/* One expert with a normalised gate: the gate is the scale, whatever the router says. */
static void one_normalised_expert_teaches_nothing(void **state) {
    (void)state;
    stand s = stand_new(T, E);
    for (int sigmoid = 0; sigmoid < 2; sigmoid++)
        for (int scale = 1; scale <= 4; scale *= 2) {
            routed r = { .shape = { T, E, 1, sigmoid, true, scale, MU_ROUTE_FREE, 0 },
                         .uses = GATES,
                         .logits = &s.logits->tensor };
            double grad[T * E];
            mu_tape_reset(s.tp);
            mu_params_zero_grad(s.ps);
            mu_backward(s.tp, loss_of(s.tp, &r));
            mu_reals_get(dev, MU_DTYPE_F64, s.logits->tensor.grad, T * E, grad);
            for (int i = 0; i < T * E; i++) assert_true(grad[i] == 0);
        }
    stand_free(&s);
}

static void forced_choices(void **state) {
    (void)state;
    enum { K = 2 };
    stand s = stand_new(T, E);
    routed r = { .shape = { T, E, K, false, true, 1, MU_ROUTE_BALANCED, 5 },
                 .uses = GATES | SCORES | LSE,
                 .logits = &s.logits->tensor };
    int32_t ids[T * K];
    route(s.tp, &r);
    mu_tensor_read(r.last.ids_TK, ids);
    for (int i = 0; i < T * K; i++) assert_int_equal(ids[i], (5 * K + i) % E);
    gradcheck(s.ps, s.tp, loss_of, &r, 100);
    r.shape.force = MU_ROUTE_SKEW;
    route(s.tp, &r);
    mu_tensor_read(r.last.ids_TK, ids);
    for (int t = 0; t < T; t++) assert_true(ids[t * K] == 0 && ids[t * K + 1] > 0 && ids[t * K + 1] < E);
    gradcheck(s.ps, s.tp, loss_of, &r, 100);
    stand_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients),
        cmocka_unit_test(masks),
        cmocka_unit_test(definition),
        cmocka_unit_test(ties_go_to_the_lower_index),
        cmocka_unit_test(softmax_before_or_after_the_choice),
        cmocka_unit_test(one_normalised_expert_teaches_nothing),
        cmocka_unit_test(forced_choices),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
