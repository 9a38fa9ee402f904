/* gradcheck.h - compares the tape's gradients with central differences, in double precision on `ref`.
 *
 * A test declares leaves (parameters), gives a function that builds a scalar loss from them, and calls
 * gradcheck. The differences are of fourth order (h = 1e-4), so the relative error of a correct gradient is
 * about 1e-9; more than 1e-6 fails. A leaf whose needs_grad is switched off must keep an untouched gradient. */
#ifndef MUSTER_TESTS_GRADCHECK_H
#define MUSTER_TESTS_GRADCHECK_H
#include "dist/dist.h"

#include <math.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

static const double GRAD_TOLERANCE = 1e-6;

/* A mesh of one rank without MPI. */
static inline mu_comm *comm_alone(void) {
    static mu_comm c = { .size = 1, .piece_limit = 1 << 30 };
    return &c;
}

static inline const mu_mesh *mesh_alone(void) {
    static mu_mesh m = { .dp = 1, .ep = 1, .local_size = 1 };
    m.world = m.expert = m.replica = comm_alone();
    return &m;
}

/* `n` normal deviates of stream `stream`. Heap. */
static inline double *random_reals(uint32_t stream, int64_t n, double std) {
    double *x = mu_alloc((size_t)n, sizeof *x);
    mu_rng rng = { .seed = 4096, .step = stream, .purpose = MU_RNG_TEST };
    for (int64_t i = 0; i < n; i++) x[i] = std * mu_rng_normal(&rng, (uint64_t)i);
    return x;
}

/* `n` integers in 0 .. below-1. Heap. */
static inline int32_t *random_ints(uint32_t stream, int64_t n, uint32_t below) {
    int32_t *x = mu_alloc((size_t)n, sizeof *x);
    mu_rng rng = { .seed = 8192, .step = stream, .purpose = MU_RNG_TEST };
    for (int64_t i = 0; i < n; i++) x[i] = (int32_t)(mu_rng_u32(&rng, (uint64_t)i) % below);
    return x;
}

/* ---------------------------------------------------------------- leaves */
/* A parameter, [rows, columns], or [columns] when rows is 0; its values come from mu_params_init. */
static inline mu_param *leaf(mu_params *ps, const char *name, int64_t rows, int64_t columns, double std) {
    mu_param_desc d = {
        .group = ps->groups[0], .name = name, .n_dims = rows ? 2 : 1, .std = std, .layer = -1
    };
    d.shape[0] = rows ? rows : columns, d.shape[1] = rows ? columns : 0;
    return mu_params_add(ps, &d);
}

/* ---------------------------------------------------------------- a scalar of any tensor
 * out (one F64) = sum of weights * x, with fixed random weights; only kernels touch data. */
static inline void weighted_forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    int64_t count = mu_count(n->in[0]);
    mu_mat x = mu_data(n->in[0]), w = mu_data(n->in[1]);
    mu_tensor *one = mu_tensor_2d(tp, 1, 1);
    x.ld = count, w.ld = 1;
    dev->k->gemm(dev, false, false, 1, 1, count, x, w, 0.0, mu_data(one));
    dev->k->sum(dev, 1, 1.0, mu_data(one), false, mu_data(n->out[0]));
    mu_release(tp, one);
}

static inline void weighted_backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    double dout;
    mu_device_read(dev, &dout, n->out[0]->grad, sizeof dout);
    if (n->in[0]->needs_grad)
        dev->k->axpy(dev, mu_count(n->in[0]), dout, mu_data(n->in[1]), mu_grad(tp, n->in[0]));
}

static inline mu_tensor *weighted_sum(mu_tape *tp, mu_tensor *x, uint32_t stream) {
    static const mu_op op = {
        .name = "weighted_sum", .forward = weighted_forward, .backward = weighted_backward, .keeps_in = MU_BIT(1)
    };
    double *host = random_reals(1000 + stream, mu_count(x), 1.0);
    mu_tensor *w = mu_tensor_like(tp, x);
    mu_tensor_set(w, host);
    free(host);
    return mu_apply(tp, (mu_node){ .op = &op, .in = { x, w }, .out = { mu_tensor_scalar(tp) } });
}

/* ---------------------------------------------------------------- the check */
typedef mu_tensor *loss_function(mu_tape *tp, void *arg);

static inline double loss_without_tape(mu_tape *tp, loss_function *loss, void *arg) {
    mu_tape_reset(tp);
    mu_tape_record(tp, false);
    double value = mu_tensor_scalar_get(loss(tp, arg));
    mu_tape_record(tp, true);
    return value;
}

static inline double numeric(mu_params *ps, mu_tape *tp, loss_function *loss, void *arg, double *at) {
    static const double step[4] = { -2, -1, 1, 2 }, factor[4] = { 1, -8, 8, -1 };
    double x, sum = 0;
    mu_device_read(ps->dev, &x, at, sizeof x);
    double h = 1e-4 * fmax(1.0, fabs(x));
    for (int i = 0; i < 4; i++) {
        double moved = x + step[i] * h;
        mu_device_write(ps->dev, at, &moved, sizeof moved);
        sum += factor[i] * loss_without_tape(tp, loss, arg);
    }
    mu_device_write(ps->dev, at, &x, sizeof x);
    return sum / (12 * h);
}

static inline void gradcheck_unit(mu_params *ps, mu_tape *tp, loss_function *loss, void *arg,
                                  const mu_unit *u, double value, int64_t most) {
    double *g = mu_alloc((size_t)u->count, sizeof *g), largest = 0;
    mu_reals_get(ps->dev, MU_DTYPE_F64, mu_unit_grad(u), u->count, g);
    for (int64_t i = 0; i < u->count; i++) largest = fmax(largest, fabs(g[i]));
    int64_t checks = u->param->tensor.needs_grad ? (u->count < most ? u->count : most) : 0;
    if (!u->param->tensor.needs_grad && largest != 0) fail_msg("%s needs no gradient and got one", u->name);
    int32_t *some = random_ints((uint32_t)u->global_index, checks, (uint32_t)u->count);
    for (int64_t c = 0; c < checks; c++) {
        int64_t i = checks == u->count ? c : some[c];
        double wanted = numeric(ps, tp, loss, arg, (double *)mu_unit_data(u) + i);
        double size = fmax(fmax(fabs(wanted), fabs(g[i])), 0.01 * largest);     /* tiny next to the others */
        double allowed = GRAD_TOLERANCE * size + 1e-11 * fmax(1.0, fabs(value));
        if (!(fabs(g[i] - wanted) <= allowed))
            fail_msg("gradient of %s[%lld]: %.12g, differences say %.12g", u->name, (long long)i, g[i],
                     wanted);
    }
    free(some);
    free(g);
}

/* Every value of every leaf, or `most` random ones of each. The device is `ref`. */
static inline void gradcheck(mu_params *ps, mu_tape *tp, loss_function *loss, void *arg, int64_t most) {
    mu_params_zero_grad(ps);
    mu_tape_reset(tp);
    mu_tensor *l = loss(tp, arg);
    double value = mu_tensor_scalar_get(l);
    mu_backward(tp, l);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        gradcheck_unit(ps, tp, loss, arg, u, value, most);
}

#endif
