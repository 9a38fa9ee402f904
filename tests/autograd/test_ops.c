/* test_ops.c - the gradient of every op of autograd/ops, with each input used by two nodes, with every subset
 * of inputs that need a gradient, and with an unused output. */
#include "gradcheck.h"
#include "ref_device.h"

enum { LEAVES = 3 };

/* One op under test: `apply` is recorded twice on the same inputs, and once more with its output unused. */
typedef struct check check;
struct check {
    mu_tensor *(*apply)(mu_tape *tp, const check *c, int time);     /* time: 0, 1, 2 */
    int64_t p[6];
    double eps;
    mu_tensor *in[LEAVES];
};

static mu_tensor *loss_of(mu_tape *tp, void *arg) {
    const check *c = arg;
    mu_tensor *loss[2];
    for (int time = 0; time < 2; time++) {
        mu_tensor *y = c->apply(tp, c, time);
        loss[time] = mu_count(y) == 1 && y->dtype == MU_DTYPE_F64 && y->n_dims == 1
                         ? y
                         : weighted_sum(tp, y, (uint32_t)time);
    }
    c->apply(tp, c, 2);
    return mu_add(tp, loss[0], loss[1]);
}

/* shapes: rows (0: a vector) and columns of each leaf. */
static void check_op(check c, int n, int64_t shapes[][2], int64_t most) {
    for (unsigned mask = 1; mask < 1u << n; mask++) {
        mu_params *ps = mu_params_new(dev);
        mu_params_group(ps, "leaves", NULL);
        static const char *const names[LEAVES] = { "first", "second", "third" };
        for (int i = 0; i < n; i++) {
            mu_param *p = leaf(ps, names[i], shapes[i][0], shapes[i][1], 1.0);
            p->tensor.needs_grad = mask >> i & 1;
            c.in[i] = &p->tensor;
        }
        mu_params_alloc(ps);
        mu_params_init(ps, 7);
        mu_tape *tp = mu_tape_new(dev);
        gradcheck(ps, tp, loss_of, &c, most);
        mu_tape_free(tp);
        mu_params_free(ps);
    }
}

static mu_tensor *apply_add(mu_tape *tp, const check *c, int time) {
    return time == 0 ? mu_add(tp, c->in[0], c->in[1]) : mu_add(tp, c->in[1], c->in[1]);
}

static void adds(void **state) {
    (void)state;
    check_op((check){ .apply = apply_add }, 2, (int64_t[][2]){ { 3, 5 }, { 3, 5 } }, 100);
}

static mu_tensor *apply_scale(mu_tape *tp, const check *c, int time) { return mu_scale(tp, c->in[0], time ? -2.5 : 0.3); }

static void scale(void **state) {
    (void)state;
    check_op((check){ .apply = apply_scale }, 1, (int64_t[][2]){ { 3, 5 } }, 100);
}

/* No value of the leaf lies so close to a limit that a difference crosses it. */
static mu_tensor *apply_clamp(mu_tape *tp, const check *c, int time) { return mu_clamp(tp, c->in[0], time ? 1.25 : 0.5); }

static void clamp(void **state) {
    (void)state;
    check_op((check){ .apply = apply_clamp }, 1, (int64_t[][2]){ { 5, 7 } }, 100);
}

static mu_tensor *apply_add_bias(mu_tape *tp, const check *c, int time) {
    mu_tensor *x = time ? mu_scale(tp, c->in[0], 2) : c->in[0];
    return mu_add_bias(tp, x, c->in[1]);
}

static void add_bias(void **state) {
    (void)state;
    check_op((check){ .apply = apply_add_bias }, 2, (int64_t[][2]){ { 3, 5 }, { 0, 5 } }, 100);
    check_op((check){ .apply = apply_add_bias }, 2, (int64_t[][2]){ { 70, 1 }, { 0, 1 } }, 100);
}

static mu_tensor *apply_linear(mu_tape *tp, const check *c, int time) {
    (void)time;
    return mu_linear(tp, c->in[0], c->in[1]);
}

static void linear(void **state) {
    (void)state;
    check_op((check){ .apply = apply_linear }, 2, (int64_t[][2]){ { 3, 5 }, { 7, 5 } }, 100);
    check_op((check){ .apply = apply_linear }, 2, (int64_t[][2]){ { 1, 1 }, { 1, 1 } }, 100);
    check_op((check){ .apply = apply_linear }, 2, (int64_t[][2]){ { 5, 5 }, { 5, 5 } }, 100);
}

static mu_tensor *apply_square(mu_tape *tp, const check *c, int time) {
    (void)time;
    return mu_linear(tp, c->in[0], c->in[0]);
}

static void linear_of_itself(void **state) {
    (void)state;
    check_op((check){ .apply = apply_square }, 1, (int64_t[][2]){ { 4, 3 } }, 100);
}

static mu_tensor *apply_embedding(mu_tape *tp, const check *c, int time) {
    static const int32_t ids[2][5] = { { 6, 0, 6, 3, 6 }, { 1, 1, 0, 6, 2 } };     /* 4 and 5 never */
    return mu_embedding(tp, mu_tensor_ints(tp, MU_DTYPE_I32, 5, ids[time % 2]), c->in[0]);
}

static void embedding(void **state) {
    (void)state;
    check_op((check){ .apply = apply_embedding }, 1, (int64_t[][2]){ { 7, 3 } }, 100);
}

static mu_tensor *apply_rmsnorm(mu_tape *tp, const check *c, int time) {
    return mu_rmsnorm(tp, c->in[0], c->in[1], time ? 0.5 : 1e-6);
}

static void rmsnorm(void **state) {
    (void)state;
    check_op((check){ .apply = apply_rmsnorm }, 2, (int64_t[][2]){ { 3, 5 }, { 0, 5 } }, 100);
    /* three heads */
    check_op((check){ .apply = apply_rmsnorm }, 2, (int64_t[][2]){ { 3, 15 }, { 0, 5 } }, 100);
    check_op((check){ .apply = apply_rmsnorm }, 2, (int64_t[][2]){ { 7, 1 }, { 0, 1 } }, 100);
}

static mu_tensor *table(mu_tape *tp, int64_t positions, int64_t half, double (*f)(double)) {
    mu_tensor *t = mu_tensor_2d(tp, positions, half);
    double *host = mu_alloc((size_t)(positions * half), sizeof *host);
    for (int64_t s = 0; s < positions; s++)
        for (int64_t i = 0; i < half; i++)
            host[s * half + i] = f((double)s * pow(100.0, -(double)i / (double)half));
    mu_tensor_set(t, host);
    free(host);
    return t;
}

/* p: heads, head width, sequence length */
static mu_tensor *apply_rope(mu_tape *tp, const check *c, int time) {
    int64_t half = c->p[1] / 2, S = c->p[2];
    (void)time;
    return mu_rope(tp, c->in[0], table(tp, S + 2, half, cos), table(tp, S + 2, half, sin), c->p[0], S);
}

static void rope(void **state) {
    (void)state;
    check_op((check){ .apply = apply_rope, .p = { 3, 6, 5 } }, 1, (int64_t[][2]){ { 10, 18 } }, 60);
    check_op((check){ .apply = apply_rope, .p = { 1, 2, 1 } }, 1, (int64_t[][2]){ { 3, 2 } }, 60);
}

/* p: H, G, S; the second time another scale */
static mu_tensor *apply_attention(mu_tape *tp, const check *c, int time) {
    return mu_attention(tp, c->in[0], c->in[1], c->in[2], c->p[0], c->p[1], c->p[2], time ? 0.7 : 0);
}

static void attention(void **state) {
    (void)state;
    static const int64_t lengths[3] = { 1, 5, 70 };
    for (int64_t G = 1; G <= 4; G *= 2)
        for (int i = 0; i < 3; i++) {
            int64_t S = lengths[i], T = (S > 5 ? 1 : 3) * S, d = 3;
            check_op((check){ .apply = apply_attention, .p = { 4, G, S } }, 3,
                     (int64_t[][2]){ { T, 4 * d }, { T, G * d }, { T, G * d } }, S > 5 ? 12 : 40);
        }
}

/* p: V; some targets are ignored. The second time another scale and other targets. */
static mu_tensor *apply_head(mu_tape *tp, const check *c, int time) {
    int64_t T = c->in[0]->shape[0];
    int32_t *targets = random_ints((uint32_t)(time + 50), T, (uint32_t)c->p[0]);
    for (int64_t t = time; t < T; t += 3) targets[t] = -1;
    mu_tensor *at = mu_tensor_ints(tp, MU_DTYPE_I32, T, targets), *nll;
    free(targets);
    return mu_head_loss(tp, c->in[0], c->in[1], at, 0.3 - time, time ? &nll : NULL);
}

static void head(void **state) {
    (void)state;
    check_op((check){ .apply = apply_head, .p = { 11 } }, 2, (int64_t[][2]){ { 5, 3 }, { 11, 3 } }, 100);
    check_op((check){ .apply = apply_head, .p = { 1 } }, 2, (int64_t[][2]){ { 4, 2 }, { 1, 2 } }, 100);
}

/* So wide that the logits of 70 rows are made in two chunks (64 rows and 6). */
static void head_in_chunks(void **state) {
    (void)state;
    check_op((check){ .apply = apply_head, .p = { 20000 } }, 2, (int64_t[][2]){ { 70, 3 }, { 20000, 3 } }, 6);
}

/* Rows 64 .. 69 belong to the second chunk: their cross-entropies and gradients are those of a batch of 6. */
static void head_chunks_agree(void **state) {
    (void)state;
    enum { V = 20000, T = 70, D = 3, TAIL = 6 };
    mu_tape *tp = mu_tape_new(dev);
    double *x = random_reals(1, T * D, 1), *w = random_reals(2, V * D, 1);
    int32_t *targets = random_ints(3, T, V);
    double nll[2][T], dx[2][T * D];
    for (int part = 0; part < 2; part++) {
        int64_t rows = part ? TAIL : T, from = T - rows;
        mu_tensor *tx = mu_tensor_2d(tp, rows, D), *tw = mu_tensor_2d(tp, V, D), *out;
        mu_tensor_set(tx, x + from * D);
        mu_tensor_set(tw, w);
        tx->needs_grad = true;
        mu_tensor *loss =
            mu_head_loss(tp, tx, tw, mu_tensor_ints(tp, MU_DTYPE_I32, rows, targets + from), 2.0, &out);
        mu_tensor_get(out, nll[part] + from);
        mu_backward(tp, loss);
        mu_reals_get(dev, MU_DTYPE_F64, tx->grad, rows * D, dx[part] + from * D);
        mu_tape_reset(tp);
    }
    assert_memory_equal(nll[0] + T - TAIL, nll[1] + T - TAIL, TAIL * sizeof(double));
    assert_memory_equal(dx[0] + (T - TAIL) * D, dx[1] + (T - TAIL) * D, TAIL * D * sizeof(double));
    free(x);
    free(w);
    free(targets);
    mu_tape_free(tp);
}

static void all_targets_ignored(void **state) {
    (void)state;
    mu_tape *tp = mu_tape_new(dev);
    mu_tensor *x = mu_tensor_2d(tp, 2, 3), *w = mu_tensor_2d(tp, 4, 3);
    double *values = random_reals(1, 12, 1), dx[6];
    mu_tensor_set(x, values);
    mu_tensor_set(w, values);
    x->needs_grad = true;
    mu_tensor *loss =
        mu_head_loss(tp, x, w, mu_tensor_ints(tp, MU_DTYPE_I32, 2, (int32_t[]){ -1, -1 }), 1.0, NULL);
    assert_true(mu_tensor_scalar_get(loss) == 0);
    mu_backward(tp, loss);
    mu_reals_get(dev, MU_DTYPE_F64, x->grad, 6, dx);
    for (int i = 0; i < 6; i++) assert_true(dx[i] == 0);
    free(values);
    mu_tape_free(tp);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adds), cmocka_unit_test(scale), cmocka_unit_test(clamp), cmocka_unit_test(add_bias),
        cmocka_unit_test(linear),
        cmocka_unit_test(linear_of_itself),
        cmocka_unit_test(embedding),
        cmocka_unit_test(rmsnorm),
        cmocka_unit_test(rope),
        cmocka_unit_test(attention),
        cmocka_unit_test(head),
        cmocka_unit_test(head_in_chunks),
        cmocka_unit_test(head_chunks_agree),
        cmocka_unit_test(all_targets_ignored),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
