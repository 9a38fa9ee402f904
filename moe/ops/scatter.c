/* scatter.c - values to the rows they belong to: y[index[i]] = x[i], [rows, 1]; -1 belongs to none. Rows that nothing
 * belongs to stay as they are: nobody reads them. */
#include "moe/moe.h"

typedef struct {
    mu_tensor *index;
} extra;

/* Any tensor as one value a row. */
static mu_mat column(mu_mat m) { return (mu_mat){ m.data, m.dtype, 1 }; }

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *index = ((extra *)n->extra)->index;
    dev->k->scatter(dev, mu_count(index), 1, mu_data(index), column(mu_data(n->in[0])), mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *index = ((extra *)n->extra)->index;
    mu_mat dx;
    if (!n->in[0]->needs_grad) return;
    bool add = mu_grad_beta(tp, n->in[0], &dx) != 0;
    dev->k->gather_sum(dev, mu_count(index), 1, 1, column(mu_data(index)), mu_grad_of(n->out[0]), add, column(dx));
}

static const mu_op op_scatter = { .name = "scatter", .forward = forward, .backward = backward };

mu_tensor *mu_scatter(mu_tape *tp, mu_tensor *x, mu_tensor *index, int64_t rows) {
    mu_tensor_check(x, "scatter: x", 0, MU_FLOATS);
    mu_tensor_check(index, "scatter: index", 0, 1u << MU_DTYPE_I32);
    MU_CHECK(rows >= 0, "scatter: %lld rows", (long long)rows);
    mu_ids_check(index, "scatter", -1, rows - 1);
    MU_CHECK(mu_count(x) == mu_count(index), "scatter: %lld values, %lld places", (long long)mu_count(x),
             (long long)mu_count(index));
    extra *e = mu_tape_alloc(tp, sizeof *e);
    e->index = index;
    mu_tensor *y = mu_tensor_new(tp, x->dtype, 2, (int64_t[]){ rows, 1 });
    return mu_apply(tp, (mu_node){ .op = &op_scatter, .in = { x }, .out = { y }, .extra = e });
}
