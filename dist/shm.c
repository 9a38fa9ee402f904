/* shm.c - collectives of large payloads between ranks of one node, through shared memory.
 *
 * The shared memory holds a ring of a few slots for each ordered pair of ranks (p, q): p copies a piece into a free
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

enum { SLOTS = 2, LINE = 64, SLOT_MIN = 4096, SLOT_MAX = 128 << 10, RINGS_OF_A_RANK = 2 << 20 };

/* Counters of different writers never share a cache line. They only grow, from one collective to the next. */
typedef struct {
    _Alignas(LINE) _Atomic uint64_t n;
} counter;

struct mu_shm {
    int rank, size;
    int64_t slot;         /* bytes */
    counter *put, *taken; /* [size, size]: by the writer p and by the reader q of ring (p, q) */
    counter *copied;      /* [size, size]: taken out of ring (p, p) by q */
    char *slots, *memory;
    mu_transfer *out, *in; /* [size] each */
    const char **parts;    /* [size] */
};

static int64_t slot_bytes(int size) {
    int64_t slot = SLOT_MAX;
    while (slot > SLOT_MIN && slot * SLOTS * size > RINGS_OF_A_RANK) slot /= 2;
    return slot;
}

static size_t counters_bytes(int size) {
    size_t bytes = (1 + 3 * (size_t)size * (size_t)size) * sizeof(counter);
    return (bytes + SLOT_MIN - 1) / SLOT_MIN * SLOT_MIN;
}

size_t mu_shm_bytes(int size) {
    return counters_bytes(size) + (size_t)size * (size_t)size * SLOTS * (size_t)slot_bytes(size);
}

mu_shm *mu_shm_new(void *memory, int rank, int size) {
    mu_shm *m = mu_alloc(1, sizeof *m);
    size_t pairs = (size_t)size * (size_t)size;
    *m = (mu_shm){ .rank = rank, .size = size, .slot = slot_bytes(size), .memory = memory };
    m->put = (counter *)memory + 1, m->taken = m->put + pairs, m->copied = m->taken + pairs;
    m->slots = m->memory + counters_bytes(size);
    m->out = mu_alloc((size_t)size, sizeof *m->out);
    m->in = mu_alloc((size_t)size, sizeof *m->in);
    m->parts = mu_alloc((size_t)size, sizeof *m->parts);
    return m;
}

void *mu_shm_free(mu_shm *m) {
    if (!m) return NULL;
    void *memory = m->memory;
    free(m->out);
    free(m->in);
    free(m->parts);
    free(m);
    return memory;
}

_Atomic uint64_t *mu_shm_mark(void *memory) { return &((counter *)memory)->n; }

mu_transfers mu_shm_transfers(mu_shm *m) { return (mu_transfers){ m->out, m->in }; }

/* ------------------------------------------------------------------ rings */

static size_t pair(const mu_shm *m, int p, int q) { return (size_t)p * (size_t)m->size + (size_t)q; }

/* own reads a counter that only this rank changes, so relaxed order is enough; seen reads another rank's; tell sets
 * this rank's. */
static uint64_t own(counter *c) { return atomic_load_explicit(&c->n, memory_order_relaxed); }
static uint64_t seen(counter *c) { return atomic_load_explicit(&c->n, memory_order_acquire); }
static void tell(counter *c, uint64_t n) { atomic_store_explicit(&c->n, n, memory_order_release); }

static char *slot_of(const mu_shm *m, int p, int q, uint64_t piece) {
    return m->slots + (pair(m, p, q) * SLOTS + piece % SLOTS) * (size_t)m->slot;
}

/* The next piece of ring (p, q), counted by `taken`; NULL: not there yet. */
static const char *next_piece(const mu_shm *m, counter *put, counter *taken, int p, int q) {
    uint64_t n = own(taken);
    return seen(put) > n ? slot_of(m, p, q, n) : NULL;
}

static int64_t piece_bytes(const mu_shm *m, const mu_transfer *t) {
    return t->left < m->slot ? t->left : m->slot;
}

static void advance(mu_transfer *t, int64_t bytes) { t->at += bytes, t->left -= bytes; }

/* Unread pieces of ring (this rank, q); q == rank: of the slowest reader. */
static uint64_t unread(const mu_shm *m, int q) {
    uint64_t put = own(&m->put[pair(m, m->rank, q)]), most = 0;
    if (q != m->rank) return put - seen(&m->taken[pair(m, m->rank, q)]);
    for (int p = 0; p < m->size; p++) {
        uint64_t n = p == m->rank ? 0 : put - seen(&m->copied[pair(m, m->rank, p)]);
        if (n > most) most = n;
    }
    return most;
}

/* Copies one piece into the ring for q, if there is data to send and a free slot. */
static bool put_piece(mu_shm *m, int q, mu_transfer *t) {
    if (!t->left || unread(m, q) >= SLOTS) return false;
    counter *put = &m->put[pair(m, m->rank, q)];
    uint64_t n = own(put);
    int64_t bytes = piece_bytes(m, t);
    memcpy(slot_of(m, m->rank, q, n), t->at, (size_t)bytes);
    tell(put, n + 1);
    advance(t, bytes);
    return true;
}

/* Copies one piece out of the ring (p, q), q being this rank, or p for the ring for all. */
static bool take_piece(mu_shm *m, int p, int q, mu_transfer *t) {
    if (!t->left) return false;
    counter *taken = q == p ? &m->copied[pair(m, p, m->rank)] : &m->taken[pair(m, p, q)];
    const char *piece = next_piece(m, &m->put[pair(m, p, q)], taken, p, q);
    if (!piece) return false;
    int64_t bytes = piece_bytes(m, t);
    memcpy(t->at, piece, (size_t)bytes);
    tell(taken, own(taken) + 1);
    advance(t, bytes);
    return true;
}

/* ------------------------------------------------------------------ exchange and gather */

static int64_t left(const mu_shm *m) {
    int64_t sum = 0;
    for (int p = 0; p < m->size; p++) sum += m->out[p].left + m->in[p].left;
    return sum;
}

/* Copies one piece of the data that a rank sends to itself. */
static bool copy_own(mu_shm *m) {
    mu_transfer *out = &m->out[m->rank], *in = &m->in[m->rank];
    int64_t bytes = piece_bytes(m, out);
    if (!bytes) return false;
    memcpy(in->at, out->at, (size_t)bytes);
    advance(out, bytes);
    advance(in, bytes);
    return true;
}

void mu_shm_exchange(mu_comm *c, mu_shm *m) {
    mu_wait wait = { 0 };
    while (left(m)) {
        bool moved = false;
        for (int i = 1; i < m->size; i++) { /* each rank starts with a different peer */
            int to = (m->rank + i) % m->size, from = (m->rank + m->size - i) % m->size;
            moved |= put_piece(m, to, &m->out[to]);
            moved |= take_piece(m, from, m->rank, &m->in[from]);
        }
        if (moved || copy_own(m)) wait = (mu_wait){ 0 }; /* copy own data instead of waiting */
        else mu_wait_turn(c, &wait);
    }
}

/* Shard r of `data`: elements ends[r - 1] .. ends[r] - 1. */
static mu_transfer shard(int r, size_t size, void *data, const int64_t *ends) {
    int64_t first = r ? ends[r - 1] : 0;
    return (mu_transfer){ (char *)data + first * (int64_t)size, (ends[r] - first) * (int64_t)size };
}

void mu_shm_gather(mu_comm *c, mu_shm *m, mu_dtype dtype, void *data, const int64_t *ends) {
    mu_wait wait = { 0 };
    for (int p = 0; p < m->size; p++) {
        mu_transfer t = shard(p, mu_dtype_size(dtype), data, ends);
        m->in[p] = m->out[p] = (mu_transfer){ 0 };
        *(p == m->rank ? &m->out[p] : &m->in[p]) = t;
    }
    while (left(m)) {
        bool moved = put_piece(m, m->rank, &m->out[m->rank]);
        for (int i = 1; i < m->size; i++) {
            int from = (m->rank + i) % m->size;
            moved |= take_piece(m, from, from, &m->in[from]);
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
static bool add_piece(mu_shm *m, mu_dtype dtype, mu_transfer *mine) {
    if (!mine->left) return false;
    for (int p = 0; p < m->size; p++) {
        size_t ring = pair(m, p, m->rank);
        m->parts[p] = p == m->rank ? mine->at : next_piece(m, &m->put[ring], &m->taken[ring], p, m->rank);
        if (!m->parts[p]) return false;
    }
    int64_t bytes = piece_bytes(m, mine);
    mu_add_up(dtype, bytes, m->parts, m->size, mine->at);
    for (int p = 0; p < m->size; p++) {
        counter *taken = &m->taken[pair(m, p, m->rank)];
        if (p != m->rank) tell(taken, own(taken) + 1);
    }
    advance(mine, bytes);
    return true;
}

void mu_shm_reduce(mu_comm *c, mu_shm *m, mu_dtype dtype, void *data, const int64_t *ends) {
    mu_wait wait = { 0 };
    size_t size = mu_dtype_size(dtype);
    for (int p = 0; p < m->size; p++) {
        m->out[p] = m->in[p] = (mu_transfer){ 0 };
        if (p != m->rank) m->out[p] = shard(p, size, data, ends);
    }
    mu_transfer *mine = &m->in[m->rank];
    *mine = shard(m->rank, size, data, ends);
    while (left(m)) {
        bool moved = false;
        for (int i = 1; i < m->size; i++) {
            int to = (m->rank + i) % m->size;
            moved |= put_piece(m, to, &m->out[to]);
        }
        moved |= add_piece(m, dtype, mine);
        if (moved) wait = (mu_wait){ 0 };
        else mu_wait_turn(c, &wait);
    }
}
