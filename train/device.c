/* device.c - the device of a rank, of the same kind on all ranks: kinds differ in rounding, so mixed ranks would train
 * different models. Everything here is Collective over the batch group. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

/* The lowest rank that has no device; the number of ranks when all have one. */
static int32_t first_without(mu_comm *batch, const mu_device *dev) {
    int32_t rank = dev ? batch->size : batch->rank;
    mu_all_reduce(batch, MU_REDUCE_MIN, MU_DTYPE_I32, &rank, 1);
    return rank;
}

/* The device of this kind, or NULL on every rank when some rank has none; then *lacking is that rank. */
static mu_device *open_everywhere(mu_comm *batch, const char *kind, int32_t *lacking) {
    mu_device *dev = mu_device_open(kind);
    *lacking = first_without(batch, dev);
    if (*lacking == batch->size) return dev;
    mu_device_close(dev);
    return NULL;
}

/* Why some rank has no usable GPU; too_old: it has one that muster does not support. */
typedef struct {
    char text[256];
    bool too_old;
} missing_gpu;

/* A GPU for each rank of a node, shared when there are more ranks than GPUs. NULL: *why, the same on all ranks. */
static mu_device *open_cuda(const mu_train_config *cfg, const mu_mesh *mesh, missing_gpu *why) {
    int32_t rank;
    char *kind = mu_format("cuda%s:%d", cfg->dtype == MU_TRAIN_DTYPE_BF16 ? "-bf16" : "", mesh->local_rank);
    mu_device *dev = open_everywhere(mesh->batch, kind, &rank);
    free(kind);
    if (dev) return dev;
    *why = (missing_gpu){ .too_old = mu_cuda_unsupported() };
    snprintf(why->text, sizeof why->text, "rank %d: %s", (int)rank, mu_cuda_missing());
    mu_broadcast(mesh->batch, rank, why, sizeof *why);
    return NULL;
}

/* The best kernels that the processors of all ranks support. */
static mu_device *agree_on_kernels(mu_comm *batch, mu_device *dev) {
    static const char *const tables[] = { "cpu-avx512", "cpu-avx2", "cpu-base" };
    enum { N = sizeof tables / sizeof *tables };
    int32_t mine = 0, all;
    while (mine < N && strcmp(dev->name, tables[mine])) mine++;
    all = mine;
    mu_all_reduce(batch, MU_REDUCE_MAX, MU_DTYPE_I32, &all, 1);
    if (mine == all) return dev; /* also ref and guarded, which are the same everywhere */
    mu_device_close(dev);
    mu_log(MU_LOG_WARNING, "processors differ: rank %d uses %s, the best that all ranks support", batch->rank,
           tables[all]);
    return mu_device_open(tables[all]);
}

static mu_status open_cpu(mu_comm *batch, const mu_train_config *cfg, const char *kind, mu_device **dev,
                          mu_error *e) {
    int32_t rank;
    if (cfg->dtype == MU_TRAIN_DTYPE_BF16) {
        *dev = open_everywhere(batch, "cpu-bf16", &rank);
        if (*dev) return MU_STATUS_OK;
        if (batch->rank == 0)
            mu_log(MU_LOG_WARNING,
                   "train.dtype bf16: the processor of rank %d has no AVX512-BF16; everything is fp32", rank);
    }
    *dev = open_everywhere(batch, kind, &rank);
    if (!*dev)
        return mu_error_set(e, MU_STATUS_CONFIG,
                            "train.device %s: the processor of rank %d lacks these instructions; with "
                            "train.device=cpu every rank uses the best that all support", kind, (int)rank);
    *dev = agree_on_kernels(batch, *dev);
    return MU_STATUS_OK;
}

void mu_config_use_threads(const mu_train_config *cfg, const mu_mesh *mesh) {
    mu_threads_set(mu_cores_share(mesh->local_rank, mesh->local_size, mu_config_threads(cfg)));
}

mu_status mu_train_device_open(const mu_train_config *cfg, const mu_mesh *mesh, mu_device **dev, mu_error *e) {
    static const char *const kinds[] = { "cpu", "cpu", "cuda", "cpu-avx512", "cpu-avx2", "cpu-base", "ref", "guarded" };
    missing_gpu why;
    if (cfg->device == MU_TRAIN_DEVICE_CUDA || cfg->device == MU_TRAIN_DEVICE_AUTO) {
        *dev = open_cuda(cfg, mesh, &why);
        if (*dev) return MU_STATUS_OK;
        if (cfg->device == MU_TRAIN_DEVICE_AUTO && why.too_old && mesh->batch->rank == 0)
            mu_log(MU_LOG_WARNING, "train.device auto: %s; training on the processor", why.text);
    }
    if (cfg->device == MU_TRAIN_DEVICE_CUDA)
        return mu_error_set(e, MU_STATUS_CONFIG, "train.device cuda: %s; train.device=cpu trains on the processor", why.text);
    return open_cpu(mesh->batch, cfg, kinds[cfg->device], dev, e);
}
