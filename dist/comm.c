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

/* MPI takes this device's memory as it is; else a host view of it is passed on. */
static bool is_direct(const mu_comm *c, const mu_device *dev) { return dev->on_gpu && c->reads_gpus; }

static void on_shards(mu_shards *run, mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    if (c->size == 1 || dev->shape_only) return;
    if (is_direct(c, dev)) {
        run(c, dev, dtype, data, ends);
        return;
    }
    size_t bytes = (size_t)ends[c->size - 1] * mu_dtype_size(dtype);
    void *host = mu_device_stage_begin(dev, data, bytes, true);
    run(c, NULL, dtype, host, ends);
    mu_device_stage_end(dev, data, bytes, true);
}

void mu_reduce_shards(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    on_shards(mu_shards_reduce, c, dev, dtype, data, ends);
}

void mu_gather_shards(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    on_shards(mu_shards_gather, c, dev, dtype, data, ends);
}

static size_t bytes_of(const mu_comm *c, const int64_t *bytes) {
    size_t sum = 0;
    for (int p = 0; p < c->size; p++) sum += (size_t)bytes[p];
    return sum;
}

void mu_device_exchange(mu_comm *c, mu_device *dev, void *send, const int64_t *send_bytes, void *recv,
                        const int64_t *recv_bytes) {
    if (dev->shape_only) return;
    if (is_direct(c, dev)) {
        mu_exchange_direct(c, dev, send, send_bytes, recv, recv_bytes);
        return;
    }
    size_t out = bytes_of(c, send_bytes), in = bytes_of(c, recv_bytes);
    void *from = mu_device_stage_begin(dev, send, out, true), *to = mu_device_stage_begin(dev, recv, in, false);
    mu_exchange(c, from, send_bytes, to, recv_bytes);
    mu_device_stage_end(dev, recv, in, true);
    mu_device_stage_end(dev, send, out, false);
}
