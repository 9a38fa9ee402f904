/* cache.c - KV cache of one sequence: keys and values of all layers in one range of device memory. */
#include "autograd/autograd.h"

#include <stdlib.h>

static mu_tensor matrix_at(mu_kv_cache *c, size_t bytes, int i, int64_t width) {
    return (mu_tensor){ .dev = c->memory->dev,
                        .dtype = c->memory->dev->compute,
                        .n_dims = 2,
                        .shape = { c->capacity, width },
                        .data = c->memory->region.base + (size_t)i * bytes };
}

mu_kv_cache *mu_kv_cache_new(mu_device *dev, int n_layers, int64_t capacity, int64_t width) {
    MU_CHECK(dev && n_layers >= 1 && capacity >= 1 && width >= 1,
             "KV cache: %d layers, capacity %lld tokens, width %lld; each must be at least 1", n_layers,
             (long long)capacity, (long long)width);
    mu_kv_cache *c = mu_alloc(1, sizeof *c);
    size_t bytes = mu_size_mul((size_t)(capacity * width), mu_dtype_size(dev->compute));
    size_t all = mu_size_mul(2 * (size_t)n_layers, bytes);
    c->n_layers = n_layers, c->capacity = capacity;
    c->memory = mu_memory_new(dev, all);
    mu_memory_commit(c->memory, all);
    c->k = mu_alloc(2 * (size_t)n_layers, sizeof *c->k), c->v = c->k + n_layers;
    for (int i = 0; i < 2 * n_layers; i++) c->k[i] = matrix_at(c, bytes, i, width);
    return c;
}

void mu_kv_cache_free(mu_kv_cache *c) {
    if (!c) return;
    mu_memory_free(c->memory);
    free(c->k);
    free(c);
}

static mu_tensor *append(mu_kv_cache *c, mu_tape *tp, mu_tensor *all, mu_tensor *x) {
    mu_device *dev = mu_tape_device(tp);
    int64_t n = x->shape[0];
    MU_CHECK(c->length + n <= c->capacity && x->shape[1] == all->shape[1],
             "KV cache: %lld tokens of width %lld do not fit behind %lld tokens (capacity %lld, width %lld)", (long long)n, (long long)x->shape[1],
             (long long)c->length, (long long)c->capacity, (long long)all->shape[1]);
    dev->k->copy(dev, n * x->shape[1], mu_data(x), mu_data(mu_tensor_rows(tp, all, c->length, n)));
    mu_release(tp, x);
    return mu_tensor_rows(tp, all, 0, c->length + n);
}

void mu_kv_cache_append(mu_kv_cache *c, mu_tape *tp, int layer, mu_tensor **k, mu_tensor **v) {
    MU_CHECK(!mu_tape_recording(tp), "a KV cache has no backward: use it with mu_tape_record(tape, false)");
    MU_CHECK(layer >= 0 && layer < c->n_layers, "KV cache: layer %d of %d layers", layer, c->n_layers);
    *k = append(c, tp, &c->k[layer], *k);
    *v = append(c, tp, &c->v[layer], *v);
}
