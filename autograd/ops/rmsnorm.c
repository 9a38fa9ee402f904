/* rmsnorm.c - y = w * x / sqrt(mean(x^2) + eps) over each group of D = len(w) values: over the model's
 * width, or over each head. Zhang & Sennrich, "Root mean square layer normalization" (2019). */
#include "autograd/autograd.h"

enum { X, W }; /* in[] */
enum { Y, RSTD }; /* out[] */

typedef struct {
    double eps;
} extra;

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[X], *w = n->in[W], *y = n->out[Y], *rstd = n->out[RSTD];
    int64_t D = mu_count(w);
    mu_mat mx = mu_data(x), my = mu_data(y);
    mx.ld = my.ld = D;
    dev->k->rmsnorm_fwd(dev, mu_count(rstd), D, ((extra *)n->extra)->eps, mx, mu_master(w), my, mu_data(rstd));
}

/* Computes dw [D] of each reduction unit separately and adds it to the exact sums. A row has D values: with a norm
 * per head a token has several rows. */
static void exact_backward(mu_tape *tp, mu_node *n, mu_mat x, mu_mat dy, mu_mat dx) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *w = n->in[W], *dw = mu_tensor_2d_master(tp, 1, mu_count(w)), *rstd = n->out[RSTD];
    int64_t units = mu_tape_reduction_units(tp, n->in[X]->shape[0]), D = mu_count(w);
    for (int64_t i = 0; i < units; i++) {
        int64_t rows = mu_count(rstd) / units, first = i * rows;
        dev->k->fill(dev, D, 0.0, mu_data(dw));
        dev->k->rmsnorm_bwd(dev, rows, D, mu_mat_rows(x, first), mu_master(w),
                            mu_mat_values(mu_data(rstd), first), mu_mat_rows(dy, first),
                            mu_mat_rows(dx, first), mu_data(dw));
        dev->k->exact_add(dev, D, mu_data(dw), mu_sums(w));
    }
    mu_release(tp, dw);
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[X], *w = n->in[W], *rstd = n->out[RSTD];
    int64_t D = mu_count(w);
    mu_mat none = { 0 }, mx = mu_data(x), dy = mu_grad_of(n->out[Y]);
    bool exact = w->needs_grad && w->sums;
    mu_mat dx = x->needs_grad ? mu_grad(tp, x) : none, dw = w->needs_grad && !exact ? mu_grad(tp, w) : none;
    mx.ld = dy.ld = dx.ld = D;
    if (exact) exact_backward(tp, n, mx, dy, dx);
    else dev->k->rmsnorm_bwd(dev, mu_count(rstd), D, mx, mu_master(w), mu_data(rstd), dy, dx, dw);
}

static const mu_op op_rmsnorm = {
    .name = "rmsnorm", .forward = forward, .backward = backward,
    .keeps_in = MU_BIT(X) | MU_BIT(W), .keeps_out = MU_BIT(RSTD), .saved = MU_BIT(RSTD)
};

mu_tensor *mu_rmsnorm(mu_tape *tp, mu_tensor *x, mu_tensor *w, double eps) {
    mu_tensor_check(x, "rmsnorm: x", 0, 1u << mu_tape_device(tp)->compute);
    mu_tensor_check(w, "rmsnorm: w", 1, MU_FLOATS);
    MU_CHECK(mu_count(w) >= 1 && eps >= 0,
             "rmsnorm: weight of %lld values, eps %g; need at least 1 value and eps >= 0", (long long)mu_count(w), eps);
    int64_t D = mu_count(w), rows = mu_count(x) / D;
    MU_CHECK(rows * D == mu_count(x), "rmsnorm: %lld values are not a multiple of the weight's %lld",
             (long long)mu_count(x), (long long)D);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    e->eps = eps;
    mu_tensor *y = mu_tensor_like(tp, x), *rstd = mu_tensor_2d_master(tp, rows, 1);
    return mu_apply(tp, (mu_node){ .op = &op_rmsnorm, .in = { x, w }, .out = { y, rstd }, .extra = e });
}
