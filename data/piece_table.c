/* piece_table.c - how often each distinct piece of a text occurs: a hash table with open addressing. Most pieces have eight bytes or
 * less and are their own key, so that looking one up touches one slot and nothing else. */
#include "data/internal.h"

#include <stdlib.h>
#include <string.h>

/* A piece is a slot of the table; length 0: free. */
struct mu_piece_table {
    mu_counted_piece *slots;            /* a power of two, at most three quarters used */
    size_t n_slots, n;
    char *bytes;                        /* of all pieces, one behind another */
    size_t n_bytes, room;
};

enum { FIRST_SLOTS = 1 << 10, FIRST_ROOM = 1 << 14, IN_KEY = 8 };

mu_piece_table *mu_piece_table_new(void) {
    mu_piece_table *t = mu_alloc(1, sizeof *t);
    t->slots = mu_alloc(t->n_slots = FIRST_SLOTS, sizeof *t->slots);
    return t;
}

void mu_piece_table_free(mu_piece_table *t) {
    if (!t) return;
    free(t->slots);
    free(t->bytes);
    free(t);
}

int64_t mu_piece_table_length(const mu_piece_table *t) { return (int64_t)t->n; }
const char *mu_piece_table_bytes(const mu_piece_table *t, const mu_counted_piece *p) { return t->bytes + p->at; }

/* The bytes themselves, up to eight, the first lowest; else their hash. */
static uint64_t key_of(const char *bytes, size_t length) {
    uint32_t first, last;
    uint64_t key = 0;
    if (length > IN_KEY) return mu_hash64(bytes, length);
    if (length < sizeof first) {
        for (size_t i = 0; i < length; i++) key |= (uint64_t)(unsigned char)bytes[i] << 8 * i;
        return key;
    }
    memcpy(&first, bytes, sizeof first);
    memcpy(&last, bytes + length - sizeof last, sizeof last);
    return first | (uint64_t)last << 8 * (length - sizeof last);
}

static size_t first_place(const mu_piece_table *t, uint64_t key) {
    key *= 0x9e3779b97f4a7c15u;
    return (size_t)(key ^ key >> 32) & (t->n_slots - 1);
}

/* The slot of the piece, or the free one where it belongs. */
static mu_counted_piece *find(const mu_piece_table *t, const char *bytes, uint32_t length, uint64_t key) {
    for (size_t i = first_place(t, key);; i = (i + 1) & (t->n_slots - 1)) {
        mu_counted_piece *p = &t->slots[i];
        if (!p->length) return p;
        if (p->key == key && p->length == length && (length <= IN_KEY || !memcmp(t->bytes + p->at, bytes, length))) return p;
    }
}

static void grow(mu_piece_table *t) {
    mu_counted_piece *old = t->slots;
    size_t n = t->n_slots;
    t->slots = mu_alloc(t->n_slots = 2 * n, sizeof *t->slots);
    for (size_t k = 0; k < n; k++) {
        size_t i = first_place(t, old[k].key);
        if (!old[k].length) continue;
        while (t->slots[i].length) i = (i + 1) & (t->n_slots - 1);
        t->slots[i] = old[k];
    }
    free(old);
}

static size_t keep_bytes(mu_piece_table *t, const char *bytes, uint32_t length) {
    if (t->room - t->n_bytes < length) t->bytes = mu_realloc(t->bytes, t->room += t->room / 2 + length + FIRST_ROOM, 1);
    memcpy(t->bytes + t->n_bytes, bytes, length);
    t->n_bytes += length;
    return t->n_bytes - length;
}

void mu_piece_table_add(mu_piece_table *t, const char *bytes, int64_t length, int64_t count) {
    MU_CHECK(length > 0 && length <= UINT32_MAX, "a piece of %lld bytes", (long long)length);
    uint64_t key = key_of(bytes, (size_t)length);
    mu_counted_piece *p = find(t, bytes, (uint32_t)length, key);
    if (p->length) {
        p->count += count;
        return;
    }
    *p = (mu_counted_piece){ .key = key, .count = count, .at = keep_bytes(t, bytes, (uint32_t)length), .length = (uint32_t)length };
    if (4 * ++t->n > 3 * t->n_slots) grow(t);
}

void mu_piece_table_move(mu_piece_table *to, mu_piece_table *from) {
    for (size_t i = 0; i < from->n_slots; i++) {
        const mu_counted_piece *p = &from->slots[i];
        if (p->length) mu_piece_table_add(to, from->bytes + p->at, p->length, p->count);
    }
    memset(from->slots, 0, from->n_slots * sizeof *from->slots);
    from->n = from->n_bytes = 0;
}

mu_counted_piece *mu_piece_table_list(mu_piece_table *t) {
    size_t n = 0;
    for (size_t i = 0; i < t->n_slots; i++)
        if (t->slots[i].length) t->slots[n++] = t->slots[i];
    return t->slots;
}
