/* column.c - arrays of numbers, in memory or in a token file (HDF5, or any source of ids).
 *
 * A column in a file is read in blocks of whole chunks of its dataset, so that no chunk is read and checked twice. Blocks of
 * all columns of a corpus share a cache, which evicts the least recently used block. */
#include "data/internal.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK_LEAST = 4096 };        /* minimum numbers per block, where chunks are smaller */

typedef struct block {
    struct block *newer, *older;    /* in the order of their last use */
    mu_column *column;
    int64_t number;
    char data[];
} block;

struct mu_cache {
    int64_t room, used;             /* bytes */
    block *newest, *oldest;
};

struct mu_column {
    mu_store_type type;
    int64_t n;
    char *memory;                   /* NULL: in a file, or empty */
    int64_t room;                   /* capacity, in numbers */
    mu_store *file;                 /* of the dataset `name`; or else: */
    char *name;
    void *source;                   /* of ids, read by `read` */
    mu_column_read_ids *read;
    void (*close)(void *source);
    mu_cache *cache;
    int64_t block_length, n_blocks;
    block **blocks;                 /* [n_blocks]: NULL when not in the cache */
};

mu_store_type mu_ids_type(int vocab_size) { return vocab_size <= UINT16_MAX + 1 ? MU_STORE_U16 : MU_STORE_I32; }
int64_t mu_column_length(const mu_column *c) { return c->n; }
mu_store_type mu_column_type(const mu_column *c) { return c->type; }
size_t mu_column_size(const mu_column *c) {
    return c->type == MU_STORE_U16 ? sizeof(uint16_t) : c->type == MU_STORE_I32 ? sizeof(int32_t) : sizeof(int64_t);
}

/* ------------------------------------------------------------------ the cache */

mu_cache *mu_cache_new(int64_t bytes) {
    mu_cache *cache = mu_alloc(1, sizeof *cache);
    cache->room = bytes;
    return cache;
}

void mu_cache_free(mu_cache *cache) {
    MU_CHECK(!cache || !cache->newest, "a column of the cache is still open");
    free(cache);
}

static int64_t block_bytes(const mu_column *c) { return c->block_length * (int64_t)mu_column_size(c); }

static void unlink_block(mu_cache *cache, block *b) {
    *(b->newer ? &b->newer->older : &cache->newest) = b->older;
    *(b->older ? &b->older->newer : &cache->oldest) = b->newer;
}

static void make_newest(mu_cache *cache, block *b) {
    b->newer = NULL, b->older = cache->newest;
    *(cache->newest ? &cache->newest->newer : &cache->oldest) = b;
    cache->newest = b;
}

static void forget(mu_cache *cache, block *b) {
    unlink_block(cache, b);
    cache->used -= block_bytes(b->column);
    b->column->blocks[b->number] = NULL;
}

/* Memory for a block of this column; reuses an evicted block of the same size. */
static block *new_block(mu_column *c) {
    mu_cache *cache = c->cache;
    int64_t bytes = block_bytes(c);
    block *b = NULL;
    while (cache->oldest && cache->used + bytes > cache->room) {
        free(b);
        b = cache->oldest;
        forget(cache, b);
        if (block_bytes(b->column) != bytes) free(b), b = NULL;
    }
    return b ? b : mu_alloc(1, sizeof *b + (size_t)bytes);
}

/* Ids [first, first + n) of the source, in the column's type. */
static mu_status read_source(mu_column *c, int64_t first, int64_t n, void *out, mu_error *e) {
    bool narrow = c->type == MU_STORE_U16;
    int32_t *ids = narrow ? mu_alloc((size_t)n, sizeof *ids) : out;
    mu_status status = c->read(c->source, first, n, ids, e);
    for (int64_t i = 0; narrow && !status && i < n; i++) ((uint16_t *)out)[i] = (uint16_t)ids[i];
    if (narrow) free(ids);
    return status;
}

static mu_status load_block(mu_column *c, int64_t number, mu_error *e) {
    int64_t first = number * c->block_length, n = c->n - first < c->block_length ? c->n - first : c->block_length;
    block *b = new_block(c);
    mu_status status = c->file ? mu_store_read_part(c->file, c->name, c->type, first, n, b->data, e) : read_source(c, first, n, b->data, e);
    if (status) {
        free(b);
        return status;
    }
    b->column = c, b->number = number;
    c->blocks[number] = b;
    c->cache->used += block_bytes(c);
    make_newest(c->cache, b);
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ opening */

mu_column *mu_column_new(mu_store_type type) {
    mu_column *c = mu_alloc(1, sizeof *c);
    c->type = type;
    return c;
}

static void make_blocks(mu_column *c, int64_t length) {
    c->block_length = length < c->n ? length : c->n ? c->n : 1;
    c->n_blocks = (c->n + c->block_length - 1) / c->block_length;
    c->blocks = mu_alloc((size_t)c->n_blocks, sizeof(block *));
}

mu_status mu_column_open(mu_column **out, mu_store_type type, mu_store *file, const char *name, mu_cache *cache,
                         mu_error *e) {
    int n_dims;
    int64_t shape[4], chunk = 1;
    mu_store_type found;
    *out = NULL;
    mu_status status = mu_store_read_part(file, name, type, 0, 0, NULL, e);     /* checks type and dimensions */
    if (!status) status = mu_store_shape(file, name, &found, &n_dims, shape, e);
    if (!status) status = mu_store_chunk(file, name, &chunk, e);
    if (status) return status;
    mu_column *c = *out = mu_column_new(type);
    c->n = shape[0];
    c->file = file;
    c->name = mu_strdup(name);
    c->cache = cache;
    make_blocks(c, chunk * (chunk < BLOCK_LEAST ? (BLOCK_LEAST + chunk - 1) / chunk : 1));
    return MU_STATUS_OK;
}

mu_column *mu_column_from(mu_store_type type, int64_t n, void *source, mu_column_read_ids *read, void (*close)(void *source),
                          mu_cache *cache, int64_t block_bytes) {
    mu_column *c = mu_column_new(type);
    c->n = n, c->source = source, c->read = read, c->close = close, c->cache = cache;
    make_blocks(c, block_bytes / (int64_t)mu_column_size(c));
    return c;
}

void mu_column_free(mu_column *c) {
    if (!c) return;
    for (int64_t i = 0; i < c->n_blocks; i++) {
        block *b = c->blocks[i];
        if (b) forget(c->cache, b), free(b);
    }
    if (c->source) c->close(c->source);
    free(c->blocks);
    free(c->memory);
    free(c->name);
    free(c);
}

/* ------------------------------------------------------------------ reading */

/* A contiguous run of at most *n numbers from `first` on, valid until the next call. Changes only the cached blocks of a
 * column. */
static mu_status find_run(mu_column *c, int64_t first, int64_t *n, const char **numbers, mu_error *e) {
    size_t size = mu_column_size(c);
    if (!c->blocks) {
        *numbers = c->memory + (size_t)first * size;
        return MU_STATUS_OK;
    }
    int64_t number = first / c->block_length, at = first % c->block_length;
    mu_status status = c->blocks[number] ? MU_STATUS_OK : load_block(c, number, e);
    if (status) return status;
    block *b = c->blocks[number];
    if (b != c->cache->newest) unlink_block(c->cache, b), make_newest(c->cache, b);
    *numbers = b->data + (size_t)at * size;
    if (*n > c->block_length - at) *n = c->block_length - at;
    return MU_STATUS_OK;
}

static void check_range(const mu_column *c, int64_t first, int64_t n) {
    MU_CHECK(first >= 0 && n >= 0 && first <= c->n && n <= c->n - first,
             "numbers [%lld, %lld) out of range for a column of %lld", (long long)first,
             (long long)(first + n), (long long)c->n);
}

/* Numbers [first, first + n) into `out`, of the column's type, or of 32 bits if `widen`. */
static mu_status copy_numbers(const mu_column *c, int64_t first, int64_t n, bool widen, void *out, mu_error *e) {
    size_t size = mu_column_size(c);
    mu_status status = MU_STATUS_OK;
    check_range(c, first, n);
    for (int64_t done = 0, here; !status && done < n; done += here) {
        const char *from = NULL;
        here = n - done;
        status = find_run((mu_column *)c, first + done, &here, &from, e);
        if (status) return status;
        if (!widen) memcpy((char *)out + (size_t)done * size, from, (size_t)here * size);
        for (int64_t i = 0; widen && i < here; i++) ((int32_t *)out)[done + i] = ((const uint16_t *)(const void *)from)[i];
    }
    return status;
}

mu_status mu_column_read(const mu_column *c, int64_t first, int64_t n, void *numbers, mu_error *e) {
    return copy_numbers(c, first, n, false, numbers, e);
}

mu_status mu_column_ids(const mu_column *c, int64_t first, int64_t n, int32_t *ids, mu_error *e) {
    return copy_numbers(c, first, n, c->type == MU_STORE_U16, ids, e);
}

/* ------------------------------------------------------------------ adding */

static void make_room(mu_column *c, int64_t n) {
    if (c->n + n <= c->room) return;
    c->room = c->n + n + c->room / 2;
    c->memory = mu_realloc(c->memory, (size_t)c->room, mu_column_size(c));
}

void mu_column_append_ids(mu_column *c, const int32_t *ids, int64_t n) {
    make_room(c, n);
    void *end = c->memory + (size_t)c->n * mu_column_size(c);
    if (c->type == MU_STORE_U16)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)end)[i] = (uint16_t)ids[i];
    else memcpy(end, ids, (size_t)n * sizeof *ids);
    c->n += n;
}

void mu_column_append(mu_column *c, const mu_column *more) {
    size_t size = mu_column_size(c);
    MU_CHECK(c->type == more->type, "a column of %s gets %s", mu_store_type_name(c->type), mu_store_type_name(more->type));
    make_room(c, more->n);
    if (more->n) memcpy(c->memory + (size_t)c->n * size, more->memory, (size_t)more->n * size);
    c->n += more->n;
}

void mu_column_clear(mu_column *c) { c->n = 0; }

void mu_column_append_offset(mu_column *c, int64_t offset) {
    make_room(c, 1);
    ((int64_t *)(void *)c->memory)[c->n++] = offset;
}

void mu_column_trim(mu_column *c) {
    if (c->n && c->n < c->room) c->memory = mu_realloc(c->memory, (size_t)(c->room = c->n), mu_column_size(c));
}
