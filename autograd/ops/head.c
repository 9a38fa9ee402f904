/* head.c - the head as one op: loss = scale * sum_t [ logsumexp(w x_t) - (w x_t)[target_t] ], the sum over each reduction unit.
 * x [T, D], w [V, D]. Logits exist for one chunk of rows at a time, at most 64 MiB of them in fp32 (or 64 rows). If
 * that is the whole batch, they are kept for backward, which comes next; otherwise backward recomputes them from x (one
 * more product, 1/4 of the head's work) instead of storing T*V values. */
#include "autograd/autograd.h"

#include <math.h>

enum { X, W, TARGETS }; /* in[] */
enum { LOSS, NLL, LSE, LOGITS }; /* out[] */

typedef struct {
    double scale;
} extra;

static int64_t chunk_rows(int64_t T, int64_t V) {
    int64_t rows = ((int64_t)1 << 24) / V; /* fewer rows would not pay for reading all weights */
    if (rows < 64) rows = 64;
    return rows < T ? rows : T;
}

static void make_logits(mu_device *dev, mu_node *n, int64_t from, int64_t rows, mu_tensor *logits) {
    mu_tensor *x = n->in[X], *w = n->in[W];
    dev->k->gemm(dev, false, true, rows, w->shape[0], w->shape[1], mu_mat_rows(mu_data(x), from), mu_data(w),
                 0.0, mu_data(logits));
}

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[X], *w = n->in[W], *targets = n->in[TARGETS], *nll = n->out[NLL], *lse = n->out[LSE];
    int64_t T = x->shape[0], V = w->shape[0], chunk = chunk_rows(T, V);
    mu_tensor *kept = n->out[LOGITS], *logits = kept ? kept : mu_tensor_2d(tp, chunk, V);
    for (int64_t from = 0; from < T; from += chunk) {
        int64_t rows = T - from < chunk ? T - from : chunk;
        make_logits(dev, n, from, rows, logits);
        dev->k->xent_fwd(dev, rows, V, mu_data(logits), mu_mat_values(mu_data(targets), from),
                         mu_mat_values(mu_data(lse), from), mu_mat_values(mu_data(nll), from));
    }
    if (!kept) mu_release(tp, logits);
    int64_t units = mu_count(n->out[LOSS]), each = units ? T / units : 0;
    for (int64_t i = 0; i < units; i++)
        dev->k->sum(dev, each, ((extra *)n->extra)->scale, mu_mat_values(mu_data(nll), i * each), false,
                    mu_mat_values(mu_data(n->out[LOSS]), i));
}

/* Adds dw of one chunk to the gradient, or to the exact sums. */
static void add_dw(mu_tape *tp, mu_tensor *w, int64_t rows, mu_mat dlogits, mu_mat x) {
    mu_device *dev = mu_tape_device(tp);
    int64_t V = w->shape[0], D = w->shape[1];
    if (!w->sums) {
        mu_mat dw;
        double beta = mu_grad_beta(tp, w, &dw);
        dev->k->gemm(dev, true, false, V, D, rows, dlogits, x, beta, dw);
        return;
    }
    mu_tensor *bounds = mu_tensor_ints(tp, MU_DTYPE_I64, 2, (int64_t[]){ 0, rows });
    dev->k->exact_product(dev, false, 1, 1, V, D, mu_data(bounds), dlogits, x, mu_sums(w));
    mu_release(tp, bounds);
}

/* dlogits = scale * dloss * (softmax - onehot); dx = dlogits w; dw = dlogits^T x, chunk by chunk. No chunk spans
 * two reduction units. */
static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[X], *w = n->in[W], *targets = n->in[TARGETS], *lse = n->out[LSE];
    int64_t T = x->shape[0], V = w->shape[0], D = w->shape[1], chunk = chunk_rows(T, V);
    int64_t each = T ? T / mu_count(n->out[LOSS]) : 0;
    mu_tensor *kept = n->out[LOGITS], *room = kept ? NULL : mu_tensor_2d(tp, chunk, V);
    mu_mat dloss = mu_grad_of(n->out[LOSS]), dx = { 0 };
    double beta = x->needs_grad ? mu_grad_beta(tp, x, &dx) : 0; /* no two chunks share a row */
    for (int64_t from = 0, rows; from < T; from += rows) {
        int64_t left = each - from % each;
        rows = left < chunk ? left : chunk;
        mu_mat logits = kept ? mu_mat_rows(mu_data(kept), from) : mu_data(room);
        if (!kept) make_logits(dev, n, from, rows, room);
        dev->k->xent_bwd(dev, rows, V, ((extra *)n->extra)->scale, mu_mat_values(dloss, from / each),
                         mu_mat_values(mu_data(targets), from), mu_mat_values(mu_data(lse), from), logits);
        if (x->needs_grad)
            dev->k->gemm(dev, false, false, rows, D, V, logits, mu_data(w), beta, mu_mat_rows(dx, from));
        if (w->needs_grad) add_dw(tp, w, rows, logits, mu_mat_rows(mu_data(x), from));
    }
    mu_release(tp, room);
}

static const mu_op op_head = {
    .name = "head", .forward = forward, .backward = backward,
    .keeps_in = MU_BIT(X) | MU_BIT(W) | MU_BIT(TARGETS), .keeps_out = MU_BIT(LSE) | MU_BIT(LOGITS), .saved = MU_BIT(LSE) | MU_BIT(LOGITS)
};

mu_tensor *mu_head_loss(mu_tape *tp, mu_tensor *x, mu_tensor *w, mu_tensor *targets, double scale,
                        mu_tensor **nll) {
    mu_tensor_check(x, "head: x", 2, 1u << mu_tape_device(tp)->compute);
    mu_tensor_check(w, "head: w", 2, MU_FLOATS);
    mu_tensor_check(targets, "head: targets", 0, 1u << MU_DTYPE_I32);
    mu_ids_check(targets, "head: targets", -1, w->shape[0] - 1);
    int64_t T = x->shape[0];
    MU_CHECK(x->shape[1] == w->shape[1] && mu_count(targets) == T && targets->dtype == MU_DTYPE_I32,
             "head: input has %lld rows of %lld features, but %lld targets and a weight for %lld features", (long long)T, (long long)x->shape[1],
             (long long)mu_count(targets), (long long)w->shape[1]);
    MU_CHECK(isfinite(scale), "head: scale %g is not finite", scale);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    e->scale = scale;
    mu_tensor *rows_nll = mu_tensor_2d_master(tp, T, 1), *lse = mu_tensor_2d_master(tp, T, 1),
              *loss = mu_tensor_loss(tp, T);
    bool keep = mu_tape_recording(tp) && (x->needs_grad || w->needs_grad) && chunk_rows(T, w->shape[0]) == T;
    mu_tensor *logits = keep ? mu_tensor_2d(tp, T, w->shape[0]) : NULL;
    mu_apply(tp, (mu_node){ .op = &op_head,
                            .in = { x, w, targets },
                            .out = { loss, rows_nll, lse, logits },
                            .extra = e });
    rows_nll->needs_grad = false; /* has no gradient: mu_backward refuses a loss that depends on it alone */
    if (nll) *nll = rows_nll;
    else mu_release(tp, rows_nll);
    return loss;
}
