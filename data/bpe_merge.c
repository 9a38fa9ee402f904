/* bpe_merge.c - which pairs of tokens to merge, from the distinct pieces of a text and their counts.
 *
 * Each step merges the most frequent pair of neighbours, and of several the one with the smallest ids: the order of Hugging Face's
 * trainer. The pieces lie one behind another in an array of cells, a byte each; a token covers a span of cells. Each pair knows
 * the cells where it begins, so a step costs as much as it changes, however long a piece is.
 *
 * A token is made by one pair only: while both of its ends are borders of tokens, what lies between is always merged in the same
 * way. So all pairs with a new token are made in the step that makes it, and from then on a pair's count only falls. Pairs that
 * are too rare at the end of their step are forgotten. */
#include "data/internal.h"

#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };

/* Of the first cell of a token its id and its length in cells; of the last cell the length, too. Between pieces: NONE, 0. */
typedef struct { int32_t id, span; } cell;

typedef uint64_t pair;          /* left id << 32 | right id */
static const pair NO_PAIR = UINT64_MAX;

/* places: first cells, ascending; some are outdated. count: how often the pair occurs, all pieces together. */
typedef struct { pair pair; int64_t count; uint32_t *places; size_t n; } pair_info;

typedef struct { int64_t count; pair pair; } candidate;        /* count: as it was, at least what it is now */

/* Pairs of the new token with one neighbour, during a step. */
typedef struct { int64_t count; size_t n; uint32_t *places; } neighbour;
typedef struct { uint32_t number, place; } found;

struct mu_bpe_merger {
    int64_t least;              /* count of a pair that may be merged */
    cell *cells;
    size_t n_cells;
    struct range { size_t first; int64_t count; } *ranges;     /* cells of pieces with the same count, most frequent first */
    size_t n_ranges;
    pair_info *pairs;           /* hash table, a power of two, at most half of it used */
    size_t n_slots, n_pairs;
    candidate *heap;            /* the largest first */
    size_t n_heap, heap_room;
    /* One step: pairs (i, new) are neighbours[2 * i], pairs (new, i) neighbours[2 * i + 1]. */
    neighbour *neighbours;
    uint32_t *touched;
    found *found;
    size_t n_touched, n_found, found_room;
    pair next;                  /* that mu_bpe_merger_next returned */
};

static pair pair_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }
static int32_t left_of(pair p) { return (int32_t)(p >> 32); }
static int32_t right_of(pair p) { return (int32_t)(uint32_t)p; }

/* ------------------------------------------------------------------ the table of pairs */

static size_t slot_of(const mu_bpe_merger *m, pair p) {
    uint64_t h = p * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(h ^ h >> 32) & (m->n_slots - 1);
    while (m->pairs[i].pair != p && m->pairs[i].pair != NO_PAIR) i = (i + 1) & (m->n_slots - 1);
    return i;
}

static void make_slots(mu_bpe_merger *m, size_t n) {
    m->n_slots = n;
    m->pairs = mu_realloc(NULL, n, sizeof *m->pairs);
    for (size_t i = 0; i < n; i++) m->pairs[i] = (pair_info){ .pair = NO_PAIR };
}

static void add_pair(mu_bpe_merger *m, pair_info info) {
    if (2 * (m->n_pairs + 1) > m->n_slots) {
        pair_info *old = m->pairs;
        size_t n = m->n_slots;
        make_slots(m, 2 * n);
        for (size_t i = 0; i < n; i++)
            if (old[i].pair != NO_PAIR) m->pairs[slot_of(m, old[i].pair)] = old[i];
        free(old);
    }
    m->pairs[slot_of(m, info.pair)] = info;
    m->n_pairs++;
}

/* ------------------------------------------------------------------ the queue */

static bool is_before(candidate a, candidate b) { return a.count != b.count ? a.count > b.count : a.pair < b.pair; }

static void sift_down(mu_bpe_merger *m) {
    candidate moved = m->heap[0];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < m->n_heap; i = child) {
        if (child + 1 < m->n_heap && is_before(m->heap[child + 1], m->heap[child])) child++;
        if (!is_before(m->heap[child], moved)) break;
        m->heap[i] = m->heap[child];
    }
    m->heap[i] = moved;
}

static void push(mu_bpe_merger *m, candidate c) {
    if (m->n_heap == m->heap_room) m->heap = mu_realloc(m->heap, m->heap_room = 2 * m->heap_room + 1024, sizeof *m->heap);
    size_t i = m->n_heap++;
    for (; i > 0 && is_before(c, m->heap[(i - 1) / 2]); i = (i - 1) / 2) m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = c;
}

/* The pair to merge next, removed from the queue; NULL when all are too rare. Valid until a pair is added. */
static pair_info *pop(mu_bpe_merger *m) {
    while (m->n_heap > 0 && m->heap[0].count >= m->least) {
        pair_info *info = &m->pairs[slot_of(m, m->heap[0].pair)];
        bool current = info->count == m->heap[0].count;
        m->heap[0] = current ? m->heap[--m->n_heap] : (candidate){ info->count, info->pair };
        sift_down(m);
        if (current) return info;
    }
    return NULL;
}

/* ------------------------------------------------------------------ the beginning */

static int more_frequent(const void *a, const void *b) {
    const mu_counted_piece *p = a, *q = b;
    return p->count != q->count ? (p->count < q->count ? 1 : -1) : (p->at > q->at) - (p->at < q->at);
}

/* The cells of all pieces of two bytes or more, and of the separators before, between and behind them. */
static size_t count_cells(const mu_counted_piece *pieces, int64_t n) {
    size_t cells = 1;
    for (int64_t i = 0; i < n; i++) cells += pieces[i].length > 1 ? pieces[i].length + 1 : 0;
    return cells;
}

static void fill_cells(mu_bpe_merger *m, const mu_piece_table *t, const mu_counted_piece *pieces, const int32_t ids[256]) {
    size_t at = 0, room = 0;
    m->cells = mu_realloc(NULL, m->n_cells, sizeof *m->cells);
    m->cells[at++] = (cell){ NONE, 0 };
    for (int64_t i = 0; i < mu_piece_table_length(t); i++) {
        const unsigned char *bytes = (const unsigned char *)mu_piece_table_bytes(t, &pieces[i]);
        if (pieces[i].length < 2) continue;
        if (m->n_ranges == 0 || m->ranges[m->n_ranges - 1].count != pieces[i].count) {
            if (m->n_ranges == room) m->ranges = mu_realloc(m->ranges, room = 2 * room + 64, sizeof *m->ranges);
            m->ranges[m->n_ranges++] = (struct range){ at, pieces[i].count };
        }
        for (uint32_t k = 0; k < pieces[i].length; k++) m->cells[at++] = (cell){ ids[bytes[k]], 1 };
        m->cells[at++] = (cell){ NONE, 0 };
    }
}

/* Pairs of single bytes: their counts, then their places. */
static void find_first_pairs(mu_bpe_merger *m, int32_t n_ids) {
    neighbour *first = mu_alloc((size_t)n_ids * (size_t)n_ids, sizeof *first);
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 1, range = 0; i + 1 < m->n_cells; i++) {
            int32_t left = m->cells[i].id, right = m->cells[i + 1].id;
            if (left == NONE || right == NONE) continue;
            neighbour *p = &first[(size_t)left * (size_t)n_ids + (size_t)right];
            while (range + 1 < m->n_ranges && m->ranges[range + 1].first <= i) range++;
            if (pass == 0) p->count += m->ranges[range].count, p->n++;
            else if (p->count >= m->least) {
                if (!p->places) p->places = mu_realloc(NULL, p->n, sizeof *p->places), p->n = 0;
                p->places[p->n++] = (uint32_t)i;
            }
        }
    for (int32_t left = 0; left < n_ids; left++)
        for (int32_t right = 0; right < n_ids; right++) {
            const neighbour *p = &first[(size_t)left * (size_t)n_ids + (size_t)right];
            if (!p->places) continue;
            add_pair(m, (pair_info){ pair_of(left, right), p->count, p->places, p->n });
            push(m, (candidate){ p->count, pair_of(left, right) });
        }
    free(first);
}

/* ------------------------------------------------------------------ a step */

static void lower(mu_bpe_merger *m, int32_t left, int32_t right, int32_t made, int64_t count) {
    if (left == made) m->neighbours[2 * right + 1].count -= count;
    else {
        pair_info *info = &m->pairs[slot_of(m, pair_of(left, right))];
        if (info->pair != NO_PAIR) info->count -= count;
    }
}

static void raise_count(mu_bpe_merger *m, uint32_t number, size_t place, int64_t count) {
    neighbour *n = &m->neighbours[number];
    if (n->n++ == 0) m->touched[m->n_touched++] = number;
    n->count += count;
    if (m->n_found == m->found_room) m->found = mu_realloc(m->found, m->found_room = 2 * m->found_room + 1024, sizeof *m->found);
    m->found[m->n_found++] = (found){ number, (uint32_t)place };
}

/* Makes the tokens at cells x and y, neighbours, one token of this id. */
static void join(mu_bpe_merger *m, size_t x, size_t y, int32_t id) {
    int32_t span = m->cells[x].span + m->cells[y].span;
    m->cells[y].id = NONE;
    m->cells[x] = (cell){ id, span };
    m->cells[x + (size_t)span - 1].span = span;
}

static void merge_places(mu_bpe_merger *m, pair p, const uint32_t *places, size_t n, int32_t made) {
    int32_t left = left_of(p), right = right_of(p);
    for (size_t i = 0, range = 0; i < n; i++) {
        size_t x = places[i], y = x + (size_t)m->cells[x].span;
        if (m->cells[x].id != left || m->cells[y].id != right) continue;
        while (range + 1 < m->n_ranges && m->ranges[range + 1].first <= x) range++;
        int64_t count = m->ranges[range].count;
        size_t before = x - (size_t)m->cells[x - 1].span, behind = y + (size_t)m->cells[y].span;
        if (before != x) {
            lower(m, m->cells[before].id, left, made, count);
            raise_count(m, 2 * (uint32_t)m->cells[before].id, before, count);
        }
        if (m->cells[behind].span) {
            lower(m, right, m->cells[behind].id, made, count);
            raise_count(m, 2 * (uint32_t)m->cells[behind].id + 1, x, count);
        }
        join(m, x, y, made);
    }
}

/* Keeps the pairs that this step made and that are frequent enough. */
static void keep_new_pairs(mu_bpe_merger *m, int32_t made) {
    for (size_t i = 0; i < m->n_touched; i++) {
        neighbour *n = &m->neighbours[m->touched[i]];
        if (n->count >= m->least) n->places = mu_realloc(NULL, n->n, sizeof *n->places);
        n->n = 0;
    }
    for (size_t i = 0; i < m->n_found; i++) {
        neighbour *n = &m->neighbours[m->found[i].number];
        if (n->places) n->places[n->n++] = m->found[i].place;
    }
    for (size_t i = 0; i < m->n_touched; i++) {
        neighbour *n = &m->neighbours[m->touched[i]];
        int32_t other = (int32_t)(m->touched[i] / 2);
        pair p = m->touched[i] % 2 ? pair_of(made, other) : pair_of(other, made);
        if (n->places) {
            add_pair(m, (pair_info){ p, n->count, n->places, n->n });
            push(m, (candidate){ n->count, p });
        }
        *n = (neighbour){ 0 };
    }
    m->n_touched = m->n_found = 0;
}

/* ------------------------------------------------------------------ all steps */

mu_status mu_bpe_merger_new(mu_bpe_merger **out, mu_piece_table *t, const int32_t ids[256], int32_t n_ids, int32_t ids_max, int64_t least,
                            mu_error *e) {
    mu_counted_piece *pieces = mu_piece_table_list(t);
    int64_t n = mu_piece_table_length(t);
    size_t n_cells = count_cells(pieces, n);
    *out = NULL;
    if (n_cells > UINT32_MAX)
        return mu_error_set(e, MU_STATUS_DATA, "the distinct pieces of the texts have %zu bytes, more than %lu: train on a part of the texts", n_cells,
                            (unsigned long)UINT32_MAX);
    if (n) qsort(pieces, (size_t)n, sizeof *pieces, more_frequent);
    mu_bpe_merger *m = *out = mu_alloc(1, sizeof *m);
    *m = (mu_bpe_merger){ .least = least > 1 ? least : 1, .n_cells = n_cells };
    m->neighbours = mu_alloc(2 * (size_t)ids_max, sizeof *m->neighbours);
    m->touched = mu_alloc(2 * (size_t)ids_max, sizeof *m->touched);
    make_slots(m, 1 << 12);
    fill_cells(m, t, pieces, ids);
    find_first_pairs(m, n_ids);
    return MU_STATUS_OK;
}

int64_t mu_bpe_merger_next(mu_bpe_merger *m, int32_t *left, int32_t *right) {
    const pair_info *next = pop(m);
    m->next = next ? next->pair : NO_PAIR;
    if (!next) return 0;
    *left = left_of(next->pair), *right = right_of(next->pair);
    return next->count;
}

void mu_bpe_merger_join(mu_bpe_merger *m, int32_t made) {
    pair_info *info = &m->pairs[slot_of(m, m->next)];
    uint32_t *places = info->places;
    info->places = NULL;
    merge_places(m, m->next, places, info->n, made);
    free(places);
    keep_new_pairs(m, made);
}

void mu_bpe_merger_free(mu_bpe_merger *m) {
    if (!m) return;
    for (size_t i = 0; i < m->n_slots; i++) free(m->pairs[i].places);
    free(m->pairs);
    free(m->cells);
    free(m->ranges);
    free(m->heap);
    free(m->neighbours);
    free(m->touched);
    free(m->found);
    free(m);
}
