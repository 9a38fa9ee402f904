/* checkpoint_arrays.c - single arrays of a checkpoint, for commands that need no run. */
#include "train/train.h"

#include <stdlib.h>

void mu_checkpoint_arrays_open(mu_checkpoint_arrays *a, const mu_manifest *m) {
    *a = (mu_checkpoint_arrays){ m, mu_alloc((size_t)m->n_shards, sizeof *a->stores) };
}

mu_status mu_checkpoint_array(mu_checkpoint_arrays *a, const char *name, const char *tensor, mu_store_type type, int n_dims, const int64_t *shape,
                              void *values, mu_error *e) {
    int shard = tensor ? mu_manifest_find(a->m, tensor) : 0;
    if (shard < 0) return mu_error_set(e, MU_STATUS_DATA, "%s/manifest.json names no tensor %s", a->m->path, tensor);
    char *path = mu_format("%s/%s", a->m->path, a->m->shards[shard].name);
    mu_status status = a->stores[shard] ? MU_STATUS_OK : mu_store_open(&a->stores[shard], path, e);
    if (status == MU_STATUS_OK) status = mu_store_read(a->stores[shard], name, type, n_dims, shape, values, e);
    free(path);
    return status;
}

mu_status mu_checkpoint_arrays_close(mu_checkpoint_arrays *a, mu_status so_far, mu_error *e) {
    for (int i = 0; a->m && i < a->m->n_shards; i++) so_far = mu_store_finish(a->stores[i], so_far, e);
    free(a->stores);
    *a = (mu_checkpoint_arrays){ 0 };
    return so_far;
}
