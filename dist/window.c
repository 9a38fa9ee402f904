/* window.c - collectives of large payloads between ranks of one node, through shared memory.
 *
 * The window holds a ring of a few slots for each ordered pair of ranks (p, q): p copies a piece into a free
 * slot and counts it as put, q reads it there and counts it as taken. A ring has one writer and one reader, both
 * know the length of the data, so two counters suffice. The ring (p, p) is read by all others: data for
 * everyone is written once. A ring stays in the cache while gigabytes pass through it.
 *
 *     exchange   each rank puts and takes pieces where possible, in turn with all peers
 *     reduce     a rank puts its parts of the others' shards; when a piece of its own shard has arrived from
 *                everyone, it adds them up in order of rank, directly from the slots
 *     gather     a rank puts its shard into its ring for all, and copies the others' shards from theirs
 *
 * Sums are x[0] + x[1] + ... in order of rank, elementwise: their bits depend on nothing else. */
#include "dist/internal.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 2, LINE = 64, SLOT_LEAST = 4096, SLOT_MOST = 128 << 10, RINGS_OF_A_RANK = 2 << 20 };

/* Counters of different writers never share a cache line. They only grow, from one collective to the next. */
typedef struct {
    _Alignas(LINE) _Atomic uint64_t n;
} counter;

struct mu_window {
    int rank, size;
    int64_t slot;         /* bytes */
    counter *put, *taken; /* [size, size]: by the writer p and by the reader q of ring (p, q) */
    counter *copied;      /* [size, size]: taken out of ring (p, p) by q */
    char *slots, *memory;
    mu_transfer *out, *in; /* [size] each */
    const char **parts;    /* [size] */
};

static int64_t slot_bytes(int size) {
    int64_t slot = SLOT_MOST;
    while (slot > SLOT_LEAST && slot * SLOTS * size > RINGS_OF_A_RANK) slot /= 2;
    return slot;
}

static size_t counters_bytes(int size) {
    size_t bytes = (1 + 3 * (size_t)size * (size_t)size) * sizeof(counter);
    return (bytes + SLOT_LEAST - 1) / SLOT_LEAST * SLOT_LEAST;
}

size_t mu_window_bytes(int size) {
    return counters_bytes(size) + (size_t)size * (size_t)size * SLOTS * (size_t)slot_bytes(size);
}

mu_window *mu_window_new(void *memory, int rank, int size) {
    mu_window *w = mu_alloc(1, sizeof *w);
    size_t pairs = (size_t)size * (size_t)size;
    *w = (mu_window){ .rank = rank, .size = size, .slot = slot_bytes(size), .memory = memory };
    w->put = (counter *)memory + 1, w->taken = w->put + pairs, w->copied = w->taken + pairs;
    w->slots = w->memory + counters_bytes(size);
    w->out = mu_alloc((size_t)size, sizeof *w->out);
    w->in = mu_alloc((size_t)size, sizeof *w->in);
    w->parts = mu_alloc((size_t)size, sizeof *w->parts);
    return w;
}

void *mu_window_free(mu_window *w) {
    if (!w) return NULL;
    void *memory = w->memory;
    free(w->out);
    free(w->in);
    free(w->parts);
    free(w);
    return memory;
}

_Atomic uint64_t *mu_window_mark(void *memory) { return &((counter *)memory)->n; }

mu_transfers mu_window_transfers(mu_window *w) { return (mu_transfers){ w->out, w->in }; }

/* ------------------------------------------------------------------ rings */

static size_t pair(const mu_window *w, int p, int q) { return (size_t)p * (size_t)w->size + (size_t)q; }

/* own reads a counter that only this rank changes, so relaxed order is enough; seen reads another rank's; tell sets
 * this rank's. */
static uint64_t own(counter *c) { return atomic_load_explicit(&c->n, memory_order_relaxed); }
static uint64_t seen(counter *c) { return atomic_load_explicit(&c->n, memory_order_acquire); }
static void tell(counter *c, uint64_t n) { atomic_store_explicit(&c->n, n, memory_order_release); }

static char *slot_of(const mu_window *w, int p, int q, uint64_t piece) {
    return w->slots + (pair(w, p, q) * SLOTS + piece % SLOTS) * (size_t)w->slot;
}

/* The next piece of ring (p, q), counted by `taken`; NULL: not there yet. */
static const char *next_piece(const mu_window *w, counter *put, counter *taken, int p, int q) {
    uint64_t n = own(taken);
    return seen(put) > n ? slot_of(w, p, q, n) : NULL;
}

static int64_t piece_bytes(const mu_window *w, const mu_transfer *t) {
    return t->left < w->slot ? t->left : w->slot;
}

static void advance(mu_transfer *t, int64_t bytes) { t->at += bytes, t->left -= bytes; }

/* Unread pieces of ring (this rank, q); q == rank: of the slowest reader. */
static uint64_t unread(const mu_window *w, int q) {
    uint64_t put = own(&w->put[pair(w, w->rank, q)]), most = 0;
    if (q != w->rank) return put - seen(&w->taken[pair(w, w->rank, q)]);
    for (int p = 0; p < w->size; p++) {
        uint64_t n = p == w->rank ? 0 : put - seen(&w->copied[pair(w, w->rank, p)]);
        if (n > most) most = n;
    }
    return most;
}

/* Copies one piece into the ring for q, if there is data to send and a free slot. */
static bool put_piece(mu_window *w, int q, mu_transfer *t) {
    if (!t->left || unread(w, q) >= SLOTS) return false;
    counter *put = &w->put[pair(w, w->rank, q)];
    uint64_t n = own(put);
    int64_t bytes = piece_bytes(w, t);
    memcpy(slot_of(w, w->rank, q, n), t->at, (size_t)bytes);
    tell(put, n + 1);
    advance(t, bytes);
    return true;
}

/* Copies one piece out of the ring (p, q), q being this rank, or p for the ring for all. */
static bool take_piece(mu_window *w, int p, int q, mu_transfer *t) {
    if (!t->left) return false;
    counter *taken = q == p ? &w->copied[pair(w, p, w->rank)] : &w->taken[pair(w, p, q)];
    const char *piece = next_piece(w, &w->put[pair(w, p, q)], taken, p, q);
    if (!piece) return false;
    int64_t bytes = piece_bytes(w, t);
    memcpy(t->at, piece, (size_t)bytes);
    tell(taken, own(taken) + 1);
    advance(t, bytes);
    return true;
}

/* ------------------------------------------------------------------ exchange and gather */

static int64_t left(const mu_window *w) {
    int64_t sum = 0;
    for (int p = 0; p < w->size; p++) sum += w->out[p].left + w->in[p].left;
    return sum;
}

/* Copies one piece of the data that a rank sends to itself. */
static bool copy_own(mu_window *w) {
    mu_transfer *out = &w->out[w->rank], *in = &w->in[w->rank];
    int64_t bytes = piece_bytes(w, out);
    if (!bytes) return false;
    memcpy(in->at, out->at, (size_t)bytes);
    advance(out, bytes);
    advance(in, bytes);
    return true;
}

void mu_window_exchange(mu_comm *c, mu_window *w) {
    mu_wait wait = { 0 };
    while (left(w)) {
        bool moved = false;
        for (int i = 1; i < w->size; i++) { /* each rank starts with a different peer */
            int to = (w->rank + i) % w->size, from = (w->rank + w->size - i) % w->size;
            moved |= put_piece(w, to, &w->out[to]);
            moved |= take_piece(w, from, w->rank, &w->in[from]);
        }
        if (moved || copy_own(w)) wait = (mu_wait){ 0 }; /* copy own data instead of waiting */
        else mu_wait_turn(c, &wait);
    }
}

/* Shard r of `data`: elements ends[r - 1] .. ends[r] - 1. */
static mu_transfer shard(int r, size_t size, void *data, const int64_t *ends) {
    int64_t first = r ? ends[r - 1] : 0;
    return (mu_transfer){ (char *)data + first * (int64_t)size, (ends[r] - first) * (int64_t)size };
}

void mu_window_gather(mu_comm *c, mu_window *w, mu_dtype dtype, void *data, const int64_t *ends) {
    mu_wait wait = { 0 };
    for (int p = 0; p < w->size; p++) {
        mu_transfer t = shard(p, mu_dtype_size(dtype), data, ends);
        w->in[p] = w->out[p] = (mu_transfer){ 0 };
        *(p == w->rank ? &w->out[p] : &w->in[p]) = t;
    }
    while (left(w)) {
        bool moved = put_piece(w, w->rank, &w->out[w->rank]);
        for (int i = 1; i < w->size; i++) {
            int from = (w->rank + i) % w->size;
            moved |= take_piece(w, from, from, &w->in[from]);
        }
        if (moved) wait = (mu_wait){ 0 };
        else mu_wait_turn(c, &wait);
    }
}

/* ------------------------------------------------------------------ reduce */

#define ADD(name, type)                                                         \
    static void name(int64_t n, const void *a, const void *b, void *to) {       \
        const type *x = a, *y = b;                                              \
        type *z = to;                                                           \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) z[i] = x[i] + y[i]; \
    }
ADD(add_f64, double)
ADD(add_f32, float)
ADD(add_i64, uint64_t) /* wraps around */

typedef void add_function(int64_t n, const void *a, const void *b, void *to);

static add_function *adder(mu_dtype dtype) {
    switch (dtype) {
    case MU_DTYPE_F64: return add_f64;
    case MU_DTYPE_F32: return add_f32;
    case MU_DTYPE_I64: return add_i64;
    default: return NULL;
    }
}

bool mu_can_add(mu_dtype dtype) { return adder(dtype) != NULL; }

/* Block by block, so that partial sums stay in the cache. */
void mu_add_up(mu_dtype dtype, int64_t bytes, const char *const *x, int parts, char *to) {
    enum { BLOCK = 8192 };
    _Alignas(LINE) char half[BLOCK];
    add_function *add = adder(dtype);
    int64_t size = (int64_t)mu_dtype_size(dtype);
    for (int64_t at = 0; at < bytes; at += BLOCK) {
        int64_t n = (bytes - at < BLOCK ? bytes - at : BLOCK) / size;
        for (int p = 1; p < parts; p++)
            add(n, p == 1 ? x[0] + at : half, x[p] + at, p == parts - 1 ? to + at : half);
    }
}

/* Adds up the next piece of this rank's shard once it has arrived from everyone. */
static bool add_piece(mu_window *w, mu_dtype dtype, mu_transfer *mine) {
    if (!mine->left) return false;
    for (int p = 0; p < w->size; p++) {
        size_t ring = pair(w, p, w->rank);
        w->parts[p] = p == w->rank ? mine->at : next_piece(w, &w->put[ring], &w->taken[ring], p, w->rank);
        if (!w->parts[p]) return false;
    }
    int64_t bytes = piece_bytes(w, mine);
    mu_add_up(dtype, bytes, w->parts, w->size, mine->at);
    for (int p = 0; p < w->size; p++) {
        counter *taken = &w->taken[pair(w, p, w->rank)];
        if (p != w->rank) tell(taken, own(taken) + 1);
    }
    advance(mine, bytes);
    return true;
}

void mu_window_reduce(mu_comm *c, mu_window *w, mu_dtype dtype, void *data, const int64_t *ends) {
    mu_wait wait = { 0 };
    size_t size = mu_dtype_size(dtype);
    for (int p = 0; p < w->size; p++) {
        w->out[p] = w->in[p] = (mu_transfer){ 0 };
        if (p != w->rank) w->out[p] = shard(p, size, data, ends);
    }
    mu_transfer *mine = &w->in[w->rank];
    *mine = shard(w->rank, size, data, ends);
    while (left(w)) {
        bool moved = false;
        for (int i = 1; i < w->size; i++) {
            int to = (w->rank + i) % w->size;
            moved |= put_piece(w, to, &w->out[to]);
        }
        moved |= add_piece(w, dtype, mine);
        if (moved) wait = (mu_wait){ 0 };
        else mu_wait_turn(c, &wait);
    }
}
