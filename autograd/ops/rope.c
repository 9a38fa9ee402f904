/* rope.c - rotary position embedding in the half-rotation form (Su et al. 2021, as in GPT-NeoX): within each head
 * the pair (x[i], x[i + d/2]) rotates by position * theta^(-2i/d); the gradient rotates back. */
#include "autograd/autograd.h"

enum { X, COS, SIN }; /* in[] */

typedef struct {
    int64_t heads, seq_len;
} extra;

static void rotate(mu_tape *tp, mu_node *n, int sign, mu_mat from, bool add, mu_mat to) {
    mu_device *dev = mu_tape_device(tp);
    const extra *e = n->extra;
    mu_tensor *x = n->in[X];
    dev->k->rope(dev, x->shape[0], e->seq_len, e->heads, x->shape[1] / e->heads, sign, mu_data(n->in[COS]),
                 mu_data(n->in[SIN]), from, add, to);
}

static void forward(mu_tape *tp, mu_node *n) {
    rotate(tp, n, +1, mu_data(n->in[X]), false, mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    if (!n->in[X]->needs_grad) return;
    mu_mat dx;
    bool add = mu_grad_beta(tp, n->in[X], &dx) != 0;
    rotate(tp, n, -1, mu_grad_of(n->out[0]), add, dx);
}

static const mu_op op_rope = {
    .name = "rope", .forward = forward, .backward = backward, .keeps_in = MU_BIT(COS) | MU_BIT(SIN)
};

mu_tensor *mu_rope(mu_tape *tp, mu_tensor *x, mu_tensor *cos, mu_tensor *sin, int64_t heads,
                   int64_t seq_len) {
    unsigned master = 1u << mu_tape_device(tp)->master;
    mu_tensor_check(x, "rope: x", 2, 1u << mu_tape_device(tp)->compute);
    mu_tensor_check(cos, "rope: cos", 2, master);
    mu_tensor_check(sin, "rope: sin", 2, master);
    MU_CHECK(heads >= 1 && seq_len >= 1 && x->shape[0] % seq_len == 0,
             "rope: %lld heads, %lld tokens, sequence length %lld; tokens must be whole sequences",
             (long long)heads, (long long)x->shape[0], (long long)seq_len);
    int64_t d = x->shape[1] / heads;
    MU_CHECK(d * heads == x->shape[1] && d % 2 == 0, "rope: width %lld does not divide into %lld heads of even width",
             (long long)x->shape[1], (long long)heads);
    MU_CHECK(seq_len <= cos->shape[0] && cos->shape[1] == d / 2 && sin->shape[0] == cos->shape[0] && sin->shape[1] == d / 2,
             "rope: cos/sin tables are [%lld, %lld], need at least [%lld, %lld]", (long long)cos->shape[0],
             (long long)cos->shape[1], (long long)seq_len, (long long)d / 2);
    extra *e = mu_tape_alloc(tp, sizeof *e);
    *e = (extra){ heads, seq_len };
    mu_tensor *y = mu_tensor_like(tp, x);
    return mu_apply(tp, (mu_node){ .op = &op_rope, .in = { x, cos, sin }, .out = { y }, .extra = e });
}
