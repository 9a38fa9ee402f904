/* comm.c - what is built on the collectives: agreement, and shards of device memory. */
#include "dist/internal.h"

#include <string.h>

mu_comm *mu_comm_alone(void) {
    mu_comm *c = mu_alloc(1, sizeof *c);
    *c = (mu_comm){ .size = 1, .piece_limit = (int64_t)1 << 30, .window_least = INT64_MAX };
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

/* A collective on host memory, run on a host view of all shards. */
static void on_host(void (*run)(mu_comm *, mu_dtype, void *, const int64_t *), mu_comm *c, mu_device *dev,
                    mu_dtype dtype, void *data, const int64_t *ends) {
    if (c->size == 1 || dev->shape_only) return;
    size_t bytes = (size_t)ends[c->size - 1] * mu_dtype_size(dtype);
    void *host = mu_device_stage_begin(dev, data, bytes);
    run(c, dtype, host, ends);
    mu_device_stage_end(dev, data, bytes, true);
}

void mu_reduce_shards(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    on_host(mu_host_reduce_shards, c, dev, dtype, data, ends);
}

void mu_gather_shards(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    on_host(mu_host_gather_shards, c, dev, dtype, data, ends);
}
