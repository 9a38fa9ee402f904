/* fisher.c - which values of an expert matter to its domain: the diagonal of the empirical Fisher information (docs/protection.md). */
#include "train/surgery.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void mu_expert_fisher_free(mu_expert_fisher *f) {
    for (int part = 0; part < MU_PARTS; part++) free(f->values[part]);
    *f = (mu_expert_fisher){ 0 };
}

/* The other ranks, which experts may need, take part with a loss of nothing. */
void mu_sequence_gradient(const mu_model *m, mu_tape *tape, const mu_comm *batch, int64_t S, const int32_t *tokens, int32_t *targets, int32_t domain) {
    mu_routing *routings = mu_alloc((size_t)m->n_moe, sizeof *routings);
    mu_context cx = { .mode = MU_MODE_EVAL, .n_sequences = 1, .seq_len = S, .domains = &domain, .expert_mask = { NULL, 1 } };
    for (int64_t i = 0; i < S && batch->rank; i++) targets[i] = -1;
    mu_params_zero_grad(m->params);
    mu_tensor *x = mu_model_forward(m, tape, &cx, mu_tensor_ints(tape, MU_DTYPE_I32, S, tokens), routings);
    mu_tensor *to = mu_tensor_ints(tape, MU_DTYPE_I32, S, targets);
    mu_backward(tape, mu_model_head_loss(m, tape, x, to, 1 / sqrt((double)S), NULL));
    mu_tape_reset(tape);
    free(routings);
}

/* Adds the weighted squares of the expert's gradient. Only one rank has one for a part: that of the sequence. */
static void add_squares(mu_expert_fisher *f, const mu_evaluation *ev, const mu_expert_unit *u, double weight) {
    const mu_moe *m = &ev->model->blocks[u->layer].moe;
    mu_device *dev = ev->model->params->dev;
    for (int part = 0; part < MU_PARTS; part++) {
        int64_t n = mu_expert_unit_count(u, part), first = part == MU_PART_ROUTER ? u->expert * u->D : 0;
        const mu_unit *p = mu_expert_unit_find(m, part, u->expert);
        double *grad = mu_alloc((size_t)n, sizeof *grad);
        if (p) mu_reals_get(dev, dev->master, mu_mat_values((mu_mat){ mu_unit_grad(p), dev->master, 1 }, first).data, n, grad);
        mu_all_reduce(ev->batch, MU_REDUCE_SUM, MU_DTYPE_F64, grad, n);
        for (int64_t i = 0; i < n; i++) f->values[part][i] += weight * grad[i] * grad[i];
        free(grad);
    }
}

mu_expert_fisher mu_expert_fisher_estimate(const mu_evaluation *ev, int domain, const mu_expert_unit *u) {
    int64_t S = ev->texts->seq_len, all = mu_texts_sequences(ev->texts, domain);
    mu_expert_fisher f = { .n = all < MU_FISHER_SEQUENCES ? all : MU_FISHER_SEQUENCES };
    int32_t *tokens = mu_alloc(2 * (size_t)S, sizeof *tokens), *targets = tokens + S;
    for (int part = 0; part < MU_PARTS && f.n; part++) f.values[part] = mu_alloc((size_t)mu_expert_unit_count(u, part), sizeof(double));
    for (int64_t i = 0; i < f.n; i++) {
        mu_texts_read(ev->texts, domain, i, tokens, targets);
        mu_sequence_gradient(ev->model, ev->tape, ev->batch, S, tokens, targets, domain);
        mu_params_round_grads(ev->model->params);
        add_squares(&f, ev, u, 1.0 / (double)f.n);
    }
    for (int part = 0; part < MU_PARTS && f.n && u->type == MU_STORE_F32; part++)       /* as it is in files */
        for (int64_t i = 0; i < mu_expert_unit_count(u, part); i++) f.values[part][i] = (float)f.values[part][i];
    free(tokens);
    return f;
}

static int descending(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x < *y) - (*x > *y);
}

double mu_expert_fisher_share(const mu_expert_fisher *f, const mu_expert_unit *u) {
    int64_t all = 0, n = 0;
    double sum = 0, part_sum = 0;
    for (int part = 0; part < MU_PARTS; part++) all += mu_expert_unit_count(u, part);
    double *sorted = mu_alloc((size_t)all, sizeof *sorted);
    for (int part = 0; part < MU_PARTS && f->n; n += mu_expert_unit_count(u, part), part++)
        memcpy(sorted + n, f->values[part], (size_t)mu_expert_unit_count(u, part) * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, descending);
    for (int64_t i = 0; i < n; i++) sum += sorted[i];
    for (n = 0; part_sum < 0.9 * sum; n++) part_sum += sorted[n];
    free(sorted);
    return (double)n / (double)all;
}
