/* reduction.c - mu_reduction: a reduce-scatter that starts while other values are still being computed.
 *
 * Every shard is split into pieces, from its end to its beginning, as values become final. A rank sends a piece to its owner
 * as soon as its own values of it are final, directly from `data`. The owner receives the pieces of its shard into a ring
 * of slots, each with room for one part from every other rank; once all parts have arrived and its own values are final, it
 * adds them up in order of rank. So the bits do not depend on timing.
 *
 * Pieces are small: Open MPI passes a TCP message of up to 64 KiB to the kernel at once, which sends it while the processor
 * computes. A larger one is not sent before both ranks have called MPI again, and an op may take 100 ms. With pieces of
 * 1 MiB nothing overlapped (docs/performance.md). */
#include "dist/internal.h"

#include <stdlib.h>

enum { ROOM = 8 << 20, PIECE_MOST = 60 << 10, SLOTS_MOST = 256, TAGS = 1024 };    /* bytes: all slots; one piece */

struct mu_reduction {
    mu_comm *c;
    int tag;
    mu_dtype dtype;
    char *data;
    const int64_t *ends;
    int64_t size, piece;            /* bytes of a value, values of a piece */
    int64_t final;                  /* values from here on are final on this rank */
    int64_t *sent;                  /* [ranks]: of each shard, values from here on are sent */
    int64_t expected, summed;       /* this rank's shard: from here on receives are posted, sums are done */
    int n_slots, first, used;       /* the ring: slots first .. first + used - 1 wait for parts */
    char *room;                     /* [n_slots, ranks - 1, piece] */
    mu_requests *slots[SLOTS_MOST], *sends;
    const char **parts;             /* [ranks] */
};

mu_reduction *mu_reduction_new(mu_comm *c, mu_dtype dtype, void *data, const int64_t *ends) {
    MU_CHECK(c && c->size > 1 && ends && mu_can_add(dtype),
             "mu_reduction needs several ranks and a type that can be added, not %s", mu_dtype_name(dtype));
    mu_reduction *r = mu_alloc(1, sizeof *r);
    *r = (mu_reduction){ .c = c, .tag = 2 + c->reductions++ % TAGS, .dtype = dtype, .data = data, .ends = ends, .size = (int64_t)mu_dtype_size(dtype) };
    int64_t others = c->size - 1, bytes = ROOM / 2 / others;
    if (bytes > PIECE_MOST) bytes = PIECE_MOST;
    if (bytes > c->piece_limit) bytes = c->piece_limit;
    r->piece = bytes > r->size ? bytes / r->size : 1;
    int64_t slots = ROOM / (others * r->piece * r->size);
    r->n_slots = slots > SLOTS_MOST ? SLOTS_MOST : (int)slots;
    r->sent = mu_alloc((size_t)c->size, sizeof *r->sent);
    r->parts = mu_alloc((size_t)c->size, sizeof *r->parts);
    r->room = mu_alloc((size_t)(r->n_slots * others * r->piece), (size_t)r->size);
    r->sends = mu_requests_new();
    for (int i = 0; i < r->n_slots; i++) r->slots[i] = mu_requests_new();
    return r;
}

void mu_reduction_free(mu_reduction *r) {
    if (!r) return;
    for (int i = 0; i < r->n_slots; i++) mu_requests_free(r->slots[i]);
    mu_requests_free(r->sends);
    free(r->room);
    free(r->parts);
    free(r->sent);
    free(r);
}

static int64_t begin_of(const mu_reduction *r, int rank) { return rank ? r->ends[rank - 1] : 0; }

/* First value of the piece of `rank`'s shard that ends at `end`. */
static int64_t piece_begin(const mu_reduction *r, int rank, int64_t end) {
    int64_t first = begin_of(r, rank);
    return end - first > r->piece ? end - r->piece : first;
}

void mu_reduction_begin(mu_reduction *r) {
    r->final = r->ends[r->c->size - 1];
    for (int p = 0; p < r->c->size; p++) r->sent[p] = r->ends[p];
    r->expected = r->summed = r->ends[r->c->rank];
}

void mu_reduction_final(mu_reduction *r, int64_t from) {
    MU_CHECK(from >= 0 && from <= r->final,
             "values from %lld on, but those from %lld on are final already", (long long)from,
             (long long)r->final);
    r->final = from;
}

/* Sends the final pieces of the others' shards. */
static bool send_pieces(mu_reduction *r) {
    bool moved = false;
    for (int i = 1; i < r->c->size; i++) {
        int p = (r->c->rank + i) % r->c->size;
        while (r->sent[p] > begin_of(r, p)) {
            int64_t at = piece_begin(r, p, r->sent[p]);
            if (at < r->final) break;
            mu_requests_send(r->sends, r->c, r->tag, r->data + at * r->size, (r->sent[p] - at) * r->size, p);
            r->sent[p] = at, moved = true;
        }
    }
    return moved;
}

/* The part of rank p in a slot. */
static char *part_of(const mu_reduction *r, int slot, int p) {
    int other = p < r->c->rank ? p : p - 1;
    return r->room + ((int64_t)slot * (r->c->size - 1) + other) * r->piece * r->size;
}

/* Posts receives for the next pieces of this rank's shard into free slots. */
static bool expect_pieces(mu_reduction *r) {
    bool moved = false;
    while (r->used < r->n_slots && r->expected > begin_of(r, r->c->rank)) {
        int64_t at = piece_begin(r, r->c->rank, r->expected);
        int slot = (r->first + r->used++) % r->n_slots;
        for (int p = 0; p < r->c->size; p++)
            if (p != r->c->rank)
                mu_requests_receive(r->slots[slot], r->c, r->tag, part_of(r, slot, p), (r->expected - at) * r->size, p);
        r->expected = at, moved = true;
    }
    return moved;
}

/* Adds up the pieces that have arrived, as far as this rank's own values are final. */
static bool sum_pieces(mu_reduction *r) {
    bool moved = false;
    while (r->used) {
        int64_t at = piece_begin(r, r->c->rank, r->summed);
        if (!mu_requests_done(r->slots[r->first]) || at < r->final) break;
        char *mine = r->data + at * r->size;
        for (int p = 0; p < r->c->size; p++) r->parts[p] = p == r->c->rank ? mine : part_of(r, r->first, p);
        mu_add_up(r->dtype, (r->summed - at) * r->size, r->parts, r->c->size, mine);
        r->first = (r->first + 1) % r->n_slots, r->used--;
        r->summed = at, moved = true;
    }
    return moved;
}

static bool move_on(mu_reduction *r) {
    bool sent = send_pieces(r), expected = expect_pieces(r), summed = sum_pieces(r);
    return sent || expected || summed;
}

void mu_reduction_turn(mu_reduction *r) {
    double start = mu_time();
    (void)move_on(r);
    if (!r->used) (void)mu_requests_done(r->sends);     /* lets MPI make progress if nothing else has */
    r->c->seconds += mu_time() - start;
}

static bool is_done(const mu_reduction *r) {
    for (int p = 0; p < r->c->size; p++)
        if (p != r->c->rank && r->sent[p] > begin_of(r, p)) return false;
    return r->summed == begin_of(r, r->c->rank);
}

void mu_reduction_finish(mu_reduction *r) {
    double start = mu_time();
    mu_wait wait = { 0 };
    mu_reduction_final(r, 0);
    while (!is_done(r) || !mu_requests_done(r->sends))
        if (move_on(r)) wait = (mu_wait){ 0 };
        else mu_wait_turn(r->c, &wait);
    r->c->seconds += mu_time() - start;
}
