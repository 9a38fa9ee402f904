/* pool.c - the allocator behind the tape; see internal.h. */
#include "autograd/internal.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };
static const size_t RESERVE = (size_t)1 << 40; /* address space only */

static size_t rounded(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

void mu_pool_init(mu_pool *p, mu_device *dev) { *p = (mu_pool){ .memory = mu_memory_new(dev, RESERVE) }; }

void mu_pool_free(mu_pool *p) {
    mu_memory_free(p->memory);
    free(p->free_list);
}

void mu_pool_reset(mu_pool *p) { p->n_free = 0, p->end = 0; }

static void remove_at(mu_pool *p, int i) {
    memmove(p->free_list + i, p->free_list + i + 1, sizeof(mu_free_block) * (size_t)(p->n_free - i - 1));
    p->n_free--;
}

void *mu_pool_take(mu_pool *p, size_t bytes) {
    size_t need = rounded(bytes ? bytes : 1);
    for (int i = 0; i < p->n_free; i++) {
        mu_free_block *s = &p->free_list[i];
        if (s->bytes < need) continue;
        size_t at = s->at;
        s->at += need, s->bytes -= need;
        if (!s->bytes) remove_at(p, i);
        return p->memory->region.base + at;
    }
    size_t at = p->end;
    p->end += need;
    if (p->end > p->peak) {
        p->peak = p->end;
        mu_memory_commit(p->memory, p->peak);
    }
    return p->memory->region.base + at;
}

static void insert_at(mu_pool *p, int i, mu_free_block s) {
    if (p->n_free == p->capacity) {
        p->capacity = p->capacity ? 2 * p->capacity : 64;
        p->free_list = mu_realloc(p->free_list, (size_t)p->capacity, sizeof(mu_free_block));
    }
    memmove(p->free_list + i + 1, p->free_list + i, sizeof(mu_free_block) * (size_t)(p->n_free - i));
    p->free_list[i] = s;
    p->n_free++;
}

void mu_pool_give(mu_pool *p, void *data, size_t bytes) {
    mu_free_block s = { (size_t)((char *)data - p->memory->region.base), rounded(bytes ? bytes : 1) };
    int i = 0;
    while (i < p->n_free && p->free_list[i].at < s.at) i++;
    if (i < p->n_free && s.at + s.bytes == p->free_list[i].at) { /* merges with the next one */
        s.bytes += p->free_list[i].bytes;
        remove_at(p, i);
    }
    if (i > 0 && p->free_list[i - 1].at + p->free_list[i - 1].bytes == s.at) {
        s.at = p->free_list[i - 1].at, s.bytes += p->free_list[i - 1].bytes;
        remove_at(p, --i);
    }
    if (s.at + s.bytes == p->end) p->end = s.at;
    else insert_at(p, i, s);
}
