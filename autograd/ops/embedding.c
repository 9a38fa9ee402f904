/* embedding.c - y_TD[t] = w_VD[ids_T[t]]. */
#include "autograd/autograd.h"

enum { W, IDS }; /* in[] */

static void forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *w = n->in[W], *ids = n->in[IDS];
    dev->k->embed_fwd(dev, mu_count(ids), w->shape[1], mu_data(ids), mu_data(w), mu_data(n->out[0]));
}

static void backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *w = n->in[W], *ids = n->in[IDS];
    if (w->needs_grad && w->sums) /* each token's row is added by itself */
        dev->k->exact_embed(dev, mu_count(ids), w->shape[1], w->shape[0], mu_data(ids), mu_grad_of(n->out[0]),
                            mu_sums(w));
    else if (w->needs_grad)
        dev->k->embed_bwd(dev, mu_count(ids), w->shape[1], w->shape[0], mu_data(ids), mu_grad_of(n->out[0]),
                          mu_grad(tp, w));
}

static const mu_op op_embedding = { .name = "embedding", .forward = forward, .backward = backward, .keeps_in = MU_BIT(IDS) };

mu_tensor *mu_embedding(mu_tape *tp, mu_tensor *ids, mu_tensor *w) {
    mu_tensor_check(ids, "embedding: ids", 0, 1u << MU_DTYPE_I32);
    mu_tensor_check(w, "embedding: w", 2, MU_FLOATS);
    mu_ids_check(ids, "embedding", 0, w->shape[0] - 1);
    mu_tensor *y = mu_tensor_2d(tp, mu_count(ids), w->shape[1]);
    return mu_apply(tp, (mu_node){ .op = &op_embedding, .in = { w, ids }, .out = { y } });
}
