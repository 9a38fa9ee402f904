/* comm.c - what is built on the collectives: agreement, device memory, gradients. */
#include "dist/dist.h"

#include <string.h>

mu_comm *mu_comm_alone(void) {
    mu_comm *c = mu_alloc(1, sizeof *c);
    *c = (mu_comm){ .size = 1, .piece_limit = (int64_t)1 << 30 };
    return c;
}

mu_status mu_agree(mu_comm *c, mu_status status, mu_error *e) {
    int32_t worst = (int32_t)status;
    mu_all_reduce(c, MU_REDUCE_MAX, MU_DTYPE_I32, &worst, 1);
    if (worst == MU_STATUS_OK) return MU_STATUS_OK;
    int32_t first = status == (mu_status)worst ? c->rank : c->size;
    mu_all_reduce(c, MU_REDUCE_MIN, MU_DTYPE_I32, &first, 1);
    if (e) {
        mu_broadcast(c, first, e->text, (int64_t)sizeof e->text);
        e->status = (mu_status)worst;
    }
    return (mu_status)worst;
}

void mu_all_reduce_device(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, int64_t n) {
    if (c->size == 1 || dev->shape_only) return;
    size_t bytes = (size_t)n * mu_dtype_size(dtype);
    void *host = mu_device_stage_begin(dev, data, bytes);
    mu_all_reduce(c, MU_REDUCE_SUM, dtype, host, n);
    mu_device_stage_end(dev, data, bytes, true);
}

void mu_grads_reduce(mu_params *ps) {
    for (int i = 0; i < ps->n_groups; i++) {
        mu_group *g = ps->groups[i];
        /* A group's communicator is declared const to those who may only compare it; reducing counts time in it. */
        mu_comm *c = (mu_comm *)(uintptr_t)g->reduce;
        if (!c) continue;
        if (g->sums) mu_all_reduce_device(c, ps->dev, MU_DTYPE_I64, g->sums->region.base, g->sums_words);
        else mu_all_reduce_device(c, ps->dev, ps->dev->real, g->grads->region.base, g->count);
    }
    mu_params_round_grads(ps);
}
