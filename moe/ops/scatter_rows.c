/* scatter_rows.c - one value per row: y[row[i]] = x[i], [rows, 1]; a value with row -1 is dropped. Rows without a value
 * stay uninitialised; nothing reads them. */
#include "moe/moe.h"

enum { X, ROW }; /* in[] */

/* Any tensor as a column: one value per row. */
static mu_mat column(mu_mat m) { return (mu_mat){ m.data, m.dtype, 1 }; }

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *row = n->in[ROW];
    dev->k->scatter(dev, mu_count(row), 1, mu_data(row), column(mu_data(n->in[X])), mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *x = n->in[X], *row = n->in[ROW];
    mu_mat dx;
    if (!x->needs_grad) return;
    bool add = mu_grad_beta(tp, x, &dx) != 0;
    dev->k->gather_sum(dev, mu_count(row), 1, 1, column(mu_data(row)), mu_grad_of(n->out[0]), add, column(dx));
}

static const mu_op op_scatter_rows = { .name = "scatter_rows", .forward = forward, .backward = backward, .keeps_in = MU_BIT(ROW) };

mu_tensor *mu_scatter_rows(mu_tape *tp, mu_tensor *x, mu_tensor *row, int64_t rows) {
    mu_tensor_check(x, "scatter_rows: x", 0, MU_FLOATS);
    mu_tensor_check(row, "scatter_rows: row", 0, 1u << MU_DTYPE_I32);
    MU_CHECK(rows >= 0, "scatter_rows: %lld rows", (long long)rows);
    mu_ids_check(row, "scatter_rows", -1, rows - 1);
    MU_CHECK(mu_count(x) == mu_count(row), "scatter_rows: %lld values for %lld rows", (long long)mu_count(x),
             (long long)mu_count(row));
    mu_tensor *y = mu_tensor_new(tp, x->dtype, 2, (int64_t[]){ rows, 1 });
    return mu_apply(tp, (mu_node){ .op = &op_scatter_rows, .in = { x, row }, .out = { y } });
}
