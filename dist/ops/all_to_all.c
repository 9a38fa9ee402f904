/* all_to_all.c - exchanges rows between the ranks of a communicator; backward is the same exchange with the counts
 * swapped. x [sum of send_rows, D] sorted by destination -> y [sum of recv_rows, D] sorted by source. */
#include "dist/internal.h"

typedef struct {
    mu_comm *comm;
    int64_t *send_bytes, *recv_bytes;
} extra;

static void forward(mu_tape *tp, mu_node *n) {
    const extra *e = n->extra;
    mu_device_exchange(e->comm, mu_tape_device(tp), mu_data(n->in[0]).data, e->send_bytes, mu_data(n->out[0]).data,
                       e->recv_bytes);
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *x = n->in[0], *back = mu_tensor_like(tp, x);
    mu_device_exchange(e->comm, dev, mu_grad_of(n->out[0]).data, e->recv_bytes, mu_data(back).data, e->send_bytes);
    if (x->needs_grad) dev->k->axpy(dev, mu_count(x), 1.0, mu_data(back), mu_grad(tp, x));
    mu_release(tp, back);
}

static const mu_op op_all_to_all = { .name = "all_to_all", .forward = forward, .backward = backward };

mu_tensor *mu_all_to_all(mu_tape *tp, mu_comm *c, mu_tensor *x, const int64_t *send_rows,
                         const int64_t *recv_rows) {
    mu_tensor_check(x, "all_to_all: x", 2, ~0u);
    int64_t D = x->shape[1], row = D * (int64_t)mu_dtype_size(x->dtype), sent = 0, received = 0;
    extra *e = mu_tape_alloc(tp, sizeof *e);
    e->comm = c;
    e->send_bytes = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)c->size);
    e->recv_bytes = mu_tape_alloc(tp, sizeof(int64_t) * (size_t)c->size);
    for (int p = 0; p < c->size; p++) {
        MU_CHECK(send_rows[p] >= 0 && recv_rows[p] >= 0,
                 "all_to_all: %lld rows to rank %d and %lld from it; neither may be negative", (long long)send_rows[p], p,
                 (long long)recv_rows[p]);
        e->send_bytes[p] = send_rows[p] * row, e->recv_bytes[p] = recv_rows[p] * row;
        sent += send_rows[p], received += recv_rows[p];
    }
    MU_CHECK(sent == x->shape[0], "all_to_all: send_rows add up to %lld, x has %lld rows", (long long)sent,
             (long long)x->shape[0]);
    mu_tensor *y = mu_tensor_new(tp, x->dtype, 2, (int64_t[]){ received, D });
    return mu_apply(tp, (mu_node){ .op = &op_all_to_all, .in = { x }, .out = { y }, .extra = e });
}
