/* store_check.c - checks that a file has muster's format before HDF5 parses any of it.
 *
 * HDF5 trusts its input: it divides by a rank of 0, and follows a list that points back to itself until memory is
 * exhausted. Here all metadata is parsed first, after the "HDF5 File Format Specification Version 3.0"
 * (The HDF Group), and only the store's own format is accepted: superblock 3, version 2 object headers, groups
 * with links in their header or in a fractal heap, arrays in one chunk or under a fixed array of chunks,
 * Fletcher32 as the only filter. Every piece has its checksum, lies in the file, and belongs to one owner:
 * no two overlap, so there are no cycles and nothing claims more than the file holds. Data is not read.
 *
 * Numbers are little-endian, addresses and lengths have 8 bytes, all ones is "no address". */
#include "base/base.h"
#include "base/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_RANK = 4,
    MAX_DEPTH = 64,
    MAX_NAME = 1024,
    MAX_CONTINUATIONS = 64,
    MAX_PIECES = 1 << 22, /* parts of a file with their own address: 128 MiB of bookkeeping */
    BLOCK = 1 << 17,      /* no part of the metadata is larger; the largest is 64 KiB */
    FLETCHER_BYTES = 4,
    SUM_BYTES = 4,
};
static const uint64_t NOWHERE = UINT64_MAX;

typedef struct {
    uint64_t at, bytes;
} piece;
typedef struct {
    uint64_t at;
    int depth;
} object_place;

typedef struct {
    int fd;
    const char *path;
    uint64_t size;
    mu_error *e;
    piece *pieces;         /* a hash table by address; bytes 0: free */
    size_t n_pieces, room; /* room: a power of 2, at least twice n_pieces */
    object_place *objects; /* object headers still to be checked */
    size_t n_objects, object_room;
    uint8_t block[BLOCK];
    uint64_t ahead_at,
        n_ahead; /* read-ahead: small parts are adjacent */
    uint8_t ahead[4096];
} walk;

/* ------------------------------------------------------------------ bytes */

static mu_status refuse(walk *w, uint64_t at, const char *fmt, ...) MU_PRINTF(3, 4);
static mu_status refuse(walk *w, uint64_t at, const char *fmt, ...) {
    char what[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return mu_error_set(
        w->e, MU_STATUS_DATA,
        "%s: cannot be read: not an HDF5 file as muster writes it (damaged, unfinished or another format): byte %llu: %s",
        w->path, (unsigned long long)at, what);
}

static uint64_t number(const uint8_t *p, int bytes) {
    uint64_t x = 0;
    for (int i = bytes - 1; i >= 0; i--) x = x << 8 | p[i];
    return x;
}

/* Bytes in which HDF5 writes numbers up to `limit`. */
static int number_bytes(uint64_t limit) {
    int bits = 0;
    while (limit >>= 1) bits++;
    return bits / 8 + 1;
}

/* lookup3 (Bob Jenkins, public domain): the checksum of all metadata, and the hash of names. */
static uint32_t lookup3(const void *data, size_t n) {
#define ROTATE(x, k) ((x) << (k) | (x) >> (32 - (k)))
    const uint8_t *p = data;
    uint32_t a = 0xdeadbeef + (uint32_t)n, b = a, c = a;
    for (; n > 12; p += 12, n -= 12) {
        a += (uint32_t)number(p, 4), b += (uint32_t)number(p + 4, 4), c += (uint32_t)number(p + 8, 4);
        a -= c, a ^= ROTATE(c, 4), c += b, b -= a, b ^= ROTATE(a, 6), a += c;
        c -= b, c ^= ROTATE(b, 8), b += a, a -= c, a ^= ROTATE(c, 16), c += b;
        b -= a, b ^= ROTATE(a, 19), a += c, c -= b, c ^= ROTATE(b, 4), b += a;
    }
    if (n == 0) return c;
    uint8_t last[12] = { 0 };
    memcpy(last, p, n);
    a += (uint32_t)number(last, 4), b += (uint32_t)number(last + 4, 4), c += (uint32_t)number(last + 8, 4);
    c ^= b, c -= ROTATE(b, 14), a ^= c, a -= ROTATE(c, 11), b ^= a, b -= ROTATE(a, 25);
    c ^= b, c -= ROTATE(b, 16), a ^= c, a -= ROTATE(c, 4), b ^= a, b -= ROTATE(a, 14);
    return c ^= b, c - ROTATE(b, 24);
#undef ROTATE
}

static mu_status read_bytes(walk *w, uint64_t at, uint64_t n, uint8_t *bytes) {
    for (uint64_t done = 0; done < n;) {
        ssize_t got = pread(w->fd, bytes + done, n - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return mu_error_set(w->e, MU_STATUS_IO, "%s: %s", w->path, strerror(errno));
        if (got == 0) return refuse(w, at + done, "unexpected end of file");
        done += (uint64_t)got;
    }
    return MU_STATUS_OK;
}

static mu_status load(walk *w, uint64_t at, uint64_t n, void *bytes, const char *what) {
    if (at > w->size || n > w->size - at)
        return refuse(w, at, "%s of %llu bytes extends beyond the end of the file (%llu bytes)", what, (unsigned long long)n,
                      (unsigned long long)w->size);
    if (n > sizeof w->ahead) return read_bytes(w, at, n, bytes);
    if (at < w->ahead_at || at + n > w->ahead_at + w->n_ahead) {
        w->ahead_at = at;
        w->n_ahead = w->size - at < sizeof w->ahead ? w->size - at : sizeof w->ahead;
        mu_status status = read_bytes(w, at, w->n_ahead, w->ahead);
        if (status) return status;
    }
    memcpy(bytes, w->ahead + (at - w->ahead_at), n);
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ ownership of bytes */

static piece *piece_slot(piece *pieces, size_t room, uint64_t at) {
    size_t i = (size_t)(at * 0x9e3779b97f4a7c15u >> 20) & (room - 1);
    while (pieces[i].bytes && pieces[i].at != at) i = (i + 1) & (room - 1);
    return &pieces[i];
}

static void grow_pieces(walk *w) {
    size_t room = w->room ? 2 * w->room : 1024;
    piece *larger = mu_alloc(room, sizeof *larger);
    for (size_t i = 0; i < w->room; i++)
        if (w->pieces[i].bytes) *piece_slot(larger, room, w->pieces[i].at) = w->pieces[i];
    free(w->pieces);
    w->pieces = larger;
    w->room = room;
}

/* These bytes belong to `what` alone. */
static mu_status claim(walk *w, uint64_t at, uint64_t bytes, const char *what) {
    if (bytes == 0 || at >= w->size || bytes > w->size - at)
        return refuse(w, at, "%s of %llu bytes extends beyond the end of the file (%llu bytes)", what,
                      (unsigned long long)bytes, (unsigned long long)w->size);
    if (w->n_pieces == MAX_PIECES) return refuse(w, at, "more than %d blocks", MAX_PIECES);
    if (2 * (w->n_pieces + 1) > w->room) grow_pieces(w);
    piece *p = piece_slot(w->pieces, w->room, at);
    if (p->bytes) return refuse(w, at, "%s is used twice", what);
    *p = (piece){ at, bytes };
    w->n_pieces++;
    return MU_STATUS_OK;
}

static int by_address(const void *a, const void *b) {
    uint64_t x = ((const piece *)a)->at, y = ((const piece *)b)->at;
    return (x > y) - (x < y);
}

static mu_status no_overlaps(walk *w) {
    size_t n = 0;
    for (size_t i = 0; i < w->room; i++)
        if (w->pieces[i].bytes) w->pieces[n++] = w->pieces[i];
    qsort(w->pieces, n, sizeof *w->pieces, by_address);
    for (size_t i = 1; i < n; i++)
        if (w->pieces[i].at - w->pieces[i - 1].at < w->pieces[i - 1].bytes)
            return refuse(w, w->pieces[i].at, "two parts of the file overlap");
    return MU_STATUS_OK;
}

static bool has_sum(const uint8_t *bytes, uint64_t n) {
    return number(bytes + n - SUM_BYTES, SUM_BYTES) == lookup3(bytes, n - SUM_BYTES);
}

/* A piece that begins with its signature and version and ends, after `used` bytes, with its checksum. */
static mu_status take(walk *w, uint64_t at, uint64_t bytes, uint64_t used, const char *begins, int version,
                      uint8_t *into) {
    mu_status status = claim(w, at, bytes, begins);
    if (!status) status = load(w, at, used, into, begins);
    if (status) return status;
    if (memcmp(into, begins, 4)) return refuse(w, at, "no signature \"%s\"", begins);
    if (version >= 0 && into[4] != version)
        return refuse(w, at, "\"%s\" of version %d, not %d", begins, into[4], version);
    if (!has_sum(into, used)) return refuse(w, at, "\"%s\": checksum mismatch", begins);
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ superblock */

static const uint8_t signature[8] = "\x89HDF\r\n\x1a\n";

static mu_status check_superblock(walk *w, uint64_t *root) {
    uint8_t b[48];
    if (w->size < sizeof b) return refuse(w, 0, "too short for an HDF5 file");
    mu_status status = claim(w, 0, sizeof b, "superblock");
    if (!status) status = load(w, 0, sizeof b, b, "superblock");
    if (status) return status;
    if (memcmp(b, signature, sizeof signature)) return refuse(w, 0, "no HDF5 signature");
    if (b[8] != 3) return refuse(w, 8, "superblock of version %d, not 3 (HDF5 1.10)", b[8]);
    if (!has_sum(b, sizeof b)) return refuse(w, 0, "superblock: checksum mismatch");
    if (b[9] != 8 || b[10] != 8)
        return refuse(w, 9, "addresses of %d and lengths of %d bytes, not 8", b[9], b[10]);
    if (b[11]) return refuse(w, 11, "still open for writing: its writer did not finish");
    if (number(b + 12, 8) != 0 || number(b + 20, 8) != NOWHERE)
        return refuse(w, 12, "superblock with a base address or an extension");
    if (number(b + 28, 8) != w->size)
        return refuse(w, 28, "the file has %llu bytes, its superblock says %llu", (unsigned long long)w->size,
                      (unsigned long long)number(b + 28, 8));
    *root = number(b + 36, 8);
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ links */

static mu_status add_object(walk *w, uint64_t at, int depth) {
    if (depth > MAX_DEPTH) return refuse(w, at, "groups nested more than %d deep", MAX_DEPTH);
    if (w->n_objects == MAX_PIECES) return refuse(w, at, "more than %d objects", MAX_PIECES);
    if (w->n_objects == w->object_room) {
        w->object_room = w->object_room ? 2 * w->object_room : 256;
        w->objects = mu_realloc(w->objects, w->object_room, sizeof *w->objects);
    }
    w->objects[w->n_objects++] = (object_place){ at, depth };
    return MU_STATUS_OK;
}

/* A link message: version, flags, bytes of the name, name, address. `hash`: NULL, or the required hash of its name. */
static mu_status check_link(walk *w, uint64_t at, const uint8_t *m, size_t n, int depth,
                            const uint32_t *hash) {
    enum { LENGTH_BYTES = 3, HAS_TYPE = 8, HAS_CHARSET = 16 };
    if (n < 3 || m[0] != 1) return refuse(w, at, "unknown version of a link message");
    int flags = m[1], length_bytes = 1 << (flags & LENGTH_BYTES);
    if (flags & HAS_TYPE) return refuse(w, at, "a soft or external link");
    if (flags & ~(LENGTH_BYTES | HAS_CHARSET)) return refuse(w, at, "a link with flags %#x", flags);
    size_t head = 2 + (flags & HAS_CHARSET ? 1 : 0) + (size_t)length_bytes;
    if (n < head) return refuse(w, at, "a link message is cut off");
    uint64_t length = number(m + head - length_bytes, length_bytes);
    if (length == 0 || length > MAX_NAME || n != head + length + 8)
        return refuse(w, at, "wrong length of a link's name");
    const uint8_t *name = m + head;
    if (memchr(name, '/', length) || memchr(name, '\0', length))
        return refuse(w, at, "'/' or NUL in a link's name");
    if (hash && *hash != lookup3(name, length)) return refuse(w, at, "hash mismatch of a link's name");
    return add_object(w, number(name + length, 8), depth + 1);
}

/* ------------------------------------------------------------------ groups of many links
 * More than 8 links are in a fractal heap: rows of 4 blocks whose sizes are 512, 512, 1024, 2048, ... bytes; from
 * 64 KiB on a row's blocks are tables of rows themselves. A B-tree by the hash of the names has where in the heap. */

enum {
    HEAP_WIDTH = 4,
    HEAP_FIRST = 512,
    HEAP_DIRECT_ROWS = 9,
    HEAP_MAX_ROWS = 22,
    HEAP_ID = 7,
    HEAP_BLOCK_HEAD = 21,
    RECORD = 4 + HEAP_ID,
    NODE = 512,
    NODE_HEAD = 6,
    MAX_LEVELS = 8
};

typedef struct {
    uint64_t offset, at, bytes;
} heap_block; /* offset: in the heap's own addresses, ascending */
typedef struct {
    uint64_t at;
    heap_block *blocks;
    size_t n, room;
} heap;

static uint64_t row_bytes(int row) { return row < 2 ? HEAP_FIRST : (uint64_t)HEAP_FIRST << (row - 1); }

static mu_status check_heap_block(walk *w, heap *h, uint64_t at, uint64_t offset, uint64_t bytes) {
    mu_status status = claim(w, at, bytes, "FHDB");
    if (!status) status = load(w, at, bytes, w->block, "FHDB");
    if (status) return status;
    uint8_t *b = w->block;
    if (memcmp(b, "FHDB", 4) || b[4] != 0) return refuse(w, at, "no signature \"FHDB\" of version 0");
    if (number(b + 5, 8) != h->at || number(b + 13, 4) != offset)
        return refuse(w, at, "\"FHDB\": wrong heap or offset");
    uint32_t sum = (uint32_t)number(b + 17, SUM_BYTES);
    memset(b + 17, 0, SUM_BYTES); /* the sum was taken so */
    if (sum != lookup3(b, bytes)) return refuse(w, at, "\"FHDB\": checksum mismatch");
    if (h->n == h->room) {
        h->room = h->room ? 2 * h->room : 16;
        h->blocks = mu_realloc(h->blocks, h->room, sizeof *h->blocks);
    }
    h->blocks[h->n++] = (heap_block){ offset, at, bytes };
    return MU_STATUS_OK;
}

/* A table of `rows` rows that stand for the heap's bytes from `offset` on. */
static mu_status check_heap_table(walk *w, heap *h, uint64_t at, uint64_t offset, int rows) {
    uint8_t b[17 + HEAP_MAX_ROWS * HEAP_WIDTH * 8 + SUM_BYTES];
    uint64_t bytes = 17 + (uint64_t)rows * HEAP_WIDTH * 8 + SUM_BYTES;
    mu_status status = take(w, at, bytes, bytes, "FHIB", 0, b);
    if (!status && (number(b + 5, 8) != h->at || number(b + 13, 4) != offset))
        status = refuse(w, at, "\"FHIB\": wrong heap or offset");
    for (int i = 0; !status && i < rows * HEAP_WIDTH; i++) {
        int row = i / HEAP_WIDTH;
        uint64_t child = number(b + 17 + 8 * i, 8);
        if (child != NOWHERE && row < HEAP_DIRECT_ROWS)
            status = check_heap_block(w, h, child, offset, row_bytes(row));
        else if (child != NOWHERE) /* as many rows as add up to this one's block */
            status = check_heap_table(w, h, child, offset, row - 2);
        offset += row_bytes(row);
    }
    return status;
}

static mu_status check_free_space(walk *w, uint64_t at) {
    uint8_t b[82];
    if (at == NOWHERE) return MU_STATUS_OK;
    mu_status status = take(w, at, sizeof b, sizeof b, "FSHD", 0, b);
    uint64_t sections = status ? NOWHERE : number(b + 54, 8);
    return status || sections == NOWHERE ? status : claim(w, sections, number(b + 70, 8), "FSSE");
}

static mu_status check_heap(walk *w, heap *h, uint64_t *n_links) {
    uint8_t b[146];
    mu_status status = take(w, h->at, sizeof b, sizeof b, "FRHP", 0, b);
    if (status) return status;
    bool plain = number(b + 5, 2) == HEAP_ID && number(b + 7, 2) == 0 && b[9] == 2 &&
                 number(b + 10, 4) <= 4096 && number(b + 14, 8) == 0 && number(b + 22, 8) == NOWHERE &&
                 number(b + 110, 2) == HEAP_WIDTH && number(b + 112, 8) == HEAP_FIRST &&
                 number(b + 120, 8) == row_bytes(HEAP_DIRECT_ROWS - 1) && number(b + 128, 2) == 32 &&
                 number(b + 130, 2) == 1;
    for (int i = 78; i < 110; i += 8)
        plain = plain && number(b + i, 8) == 0; /* no huge and no tiny objects */
    for (int i = 46; i < 70; i += 8)
        plain = plain && number(b + i, 8) <= (uint64_t)1 << 32; /* sizes; 30: free space */
    if (!plain || number(b + 30, 8) > (uint64_t)1 << 32) return refuse(w, h->at, "\"FRHP\": unexpected heap parameters");
    *n_links = number(b + 70, 8);
    uint64_t root = number(b + 132, 8), rows = number(b + 140, 2);
    if (rows > HEAP_MAX_ROWS) return refuse(w, h->at, "\"FRHP\": %d rows, at most %d are allowed", (int)rows, HEAP_MAX_ROWS);
    status = check_free_space(w, number(b + 38, 8));
    if (status) return status;
    return rows ? check_heap_table(w, h, root, 0, (int)rows) : check_heap_block(w, h, root, 0, HEAP_FIRST);
}

/* A record of the tree: the name's hash, and the link's place in the heap: kind (0), offset, bytes. */
static mu_status check_record(walk *w, const heap *h, uint64_t at, const uint8_t *record, int depth) {
    uint32_t hash = (uint32_t)number(record, 4);
    uint64_t offset = number(record + 5, 4), bytes = number(record + 9, 2);
    uint8_t link[MAX_NAME + 16];
    size_t low = 0, high = h->n;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (h->blocks[middle].offset <= offset) low = middle;
        else high = middle;
    }
    const heap_block *b = h->n ? &h->blocks[low] : NULL;
    if (record[4] != 0 || !b || bytes > sizeof link || offset < b->offset + HEAP_BLOCK_HEAD ||
        offset - b->offset > b->bytes || bytes > b->bytes - (offset - b->offset))
        return refuse(w, at, "a B-tree record points outside its heap");
    uint64_t place = b->at + (offset - b->offset);
    mu_status status = load(w, place, bytes, link, "link");
    return status ? status : check_link(w, place, link, bytes, depth, &hash);
}

/* Of the tree: how many records a node of each level takes, and the bytes in which its numbers are written. */
typedef struct {
    uint64_t max[MAX_LEVELS], total[MAX_LEVELS];
    int count_bytes, total_bytes[MAX_LEVELS];
} tree_shape;

static tree_shape shape_of_tree(void) {
    tree_shape t = { .max[0] = (NODE - NODE_HEAD - SUM_BYTES) / RECORD };
    t.total[0] = t.max[0];
    t.count_bytes = number_bytes(t.max[0]);
    for (int i = 1; i < MAX_LEVELS; i++) {
        uint64_t pointer = 8 + (uint64_t)t.count_bytes + (uint64_t)t.total_bytes[i - 1];
        t.max[i] = (NODE - NODE_HEAD - SUM_BYTES - pointer) / (RECORD + pointer);
        t.total[i] = (t.max[i] + 1) * t.total[i - 1] + t.max[i];
        t.total_bytes[i] = number_bytes(t.total[i]);
    }
    return t;
}

/* A node of the tree at `level` (0: a leaf), and what is below. Counts its records into *seen. */
static mu_status check_node(walk *w, const heap *h, const tree_shape *t, uint64_t at, int level, uint64_t n,
                            int depth, uint64_t *seen) {
    uint8_t b[NODE];
    if (n > t->max[level]) return refuse(w, at, "a B-tree node of %llu records, at most %llu fit", (unsigned long long)n, (unsigned long long)t->max[level]);
    uint64_t pointer = level ? 8 + (uint64_t)t->count_bytes + (uint64_t)t->total_bytes[level - 1] : 0;
    uint64_t used = NODE_HEAD + n * RECORD + (level ? (n + 1) * pointer : 0) + SUM_BYTES;
    mu_status status = take(w, at, NODE, used, level ? "BTIN" : "BTLF", 0, b);
    if (!status && b[5] != 5) status = refuse(w, at, "a B-tree of type %d, expected 5 (link names)", b[5]);
    for (uint64_t i = 0; !status && i < n; i++)
        status = check_record(w, h, at, b + NODE_HEAD + i * RECORD, depth);
    *seen += n;
    for (uint64_t i = 0; !status && level && i <= n; i++) {
        const uint8_t *child = b + NODE_HEAD + n * RECORD + i * pointer;
        uint64_t before = *seen;
        status = check_node(w, h, t, number(child, 8), level - 1, number(child + 8, t->count_bytes), depth,
                            seen);
        if (!status && level > 1 &&
            number(child + 8 + t->count_bytes, t->total_bytes[level - 1]) != *seen - before)
            status = refuse(w, at, "wrong record count of a B-tree node");
    }
    return status;
}

static mu_status check_tree(walk *w, const heap *h, uint64_t at, uint64_t n_links, int depth) {
    uint8_t b[38];
    mu_status status = take(w, at, sizeof b, sizeof b, "BTHD", 0, b);
    if (status) return status;
    uint64_t levels = number(b + 12, 2), root = number(b + 16, 8), seen = 0;
    if (b[5] != 5 || number(b + 6, 4) != NODE || number(b + 10, 2) != RECORD || levels >= MAX_LEVELS ||
        b[14] != 100 || b[15] != 40)
        return refuse(w, at, "\"BTHD\": unexpected B-tree parameters");
    tree_shape t = shape_of_tree();
    status = check_node(w, h, &t, root, (int)levels, number(b + 24, 2), depth, &seen);
    if (!status && (seen != n_links || seen != number(b + 26, 8)))
        status = refuse(w, at, "wrong link count of a group");
    return status;
}

static mu_status check_many_links(walk *w, uint64_t heap_at, uint64_t tree_at, int depth) {
    heap h = { .at = heap_at };
    uint64_t n_links = 0;
    mu_status status = check_heap(w, &h, &n_links);
    if (!status) status = check_tree(w, &h, tree_at, n_links, depth);
    free(h.blocks);
    return status;
}

/* ------------------------------------------------------------------ chunks */

/* The description of an array in its object header. */
typedef struct {
    int rank, type_bytes, layout_rank, index, filters, compact;
    uint64_t shape[MAX_RANK], chunk[MAX_RANK + 1]; /* the last of a chunk: bytes of an element */
    uint64_t index_at, stored;                     /* stored: bytes of a single chunk, or 0: not given */
} array;

enum { SINGLE_CHUNK = 1, FIXED_ARRAY = 3, PAGE_BITS = 10, PAGE = 1 << PAGE_BITS };

/* One entry for each chunk: its address, and when filtered its bytes and a mask of filters left out. */
static mu_status check_entry(walk *w, uint64_t at, const uint8_t *entry, const array *a, uint64_t chunk_bytes,
                             int size_bytes) {
    if (number(entry, 8) == NOWHERE) return refuse(w, at, "data are missing");
    uint64_t stored = a->filters ? chunk_bytes + FLETCHER_BYTES : chunk_bytes;
    if (a->filters && (number(entry + 8, size_bytes) != stored || number(entry + 8 + size_bytes, 4)))
        return refuse(w, at, "wrong size of a chunk");
    return claim(w, number(entry, 8), stored, "a chunk");
}

static mu_status check_entries(walk *w, uint64_t at, const uint8_t *entries, uint64_t n, const array *a,
                               uint64_t chunk_bytes, int entry_bytes) {
    mu_status status = MU_STATUS_OK;
    for (uint64_t i = 0; !status && i < n; i++)
        status = check_entry(w, at, entries + i * (uint64_t)entry_bytes, a, chunk_bytes, entry_bytes - 12);
    return status;
}

/* Pages of 1024 entries with a checksum each follow the block, whose bits say which of them are in use. */
static mu_status check_pages(walk *w, uint64_t at, uint64_t header, uint64_t n, const array *a,
                             uint64_t chunk_bytes, int entry_bytes) {
    uint64_t pages = (n + PAGE - 1) / PAGE, bytes = 14 + (pages + 7) / 8 + SUM_BYTES;
    mu_status status = take(w, at, bytes, bytes, "FADB", 0, w->block);
    if (!status && (w->block[5] != !!a->filters || number(w->block + 6, 8) != header))
        status = refuse(w, at, "\"FADB\" belongs to another array");
    for (uint64_t i = 0; !status && i < pages; i++)
        if (!(w->block[14 + i / 8] & 0x80 >> i % 8)) status = refuse(w, at, "data are missing");
    uint64_t page_at = at + bytes;
    for (uint64_t done = 0; !status && done < n; done += PAGE) {
        uint64_t here = n - done < PAGE ? n - done : PAGE,
                 page_bytes = here * (uint64_t)entry_bytes + SUM_BYTES;
        status = claim(w, page_at, page_bytes, "a page of chunks");
        if (!status) status = load(w, page_at, page_bytes, w->block, "a page of chunks");
        if (!status && !has_sum(w->block, page_bytes))
            status = refuse(w, page_at, "a page of chunks: checksum mismatch");
        if (!status) status = check_entries(w, page_at, w->block, here, a, chunk_bytes, entry_bytes);
        page_at += page_bytes;
    }
    return status;
}

static mu_status check_fixed_array(walk *w, const array *a, uint64_t n, uint64_t chunk_bytes) {
    uint8_t b[28];
    mu_status status = take(w, a->index_at, sizeof b, sizeof b, "FAHD", 0, b);
    if (status) return status;
    int size_bytes = 1 + number_bytes(chunk_bytes),
        entry_bytes = a->filters ? 8 + (size_bytes < 8 ? size_bytes : 8) + 4 : 8;
    if (b[5] != !!a->filters || b[6] != entry_bytes || b[7] != PAGE_BITS || number(b + 8, 8) != n)
        return refuse(w, a->index_at, "\"FAHD\" does not match its dataset");
    uint64_t at = number(b + 16, 8), bytes = 14 + n * (uint64_t)entry_bytes + SUM_BYTES;
    if (at == NOWHERE) return refuse(w, a->index_at, "data are missing");
    if (n > PAGE) return check_pages(w, at, a->index_at, n, a, chunk_bytes, entry_bytes);
    status = take(w, at, bytes, bytes, "FADB", 0, w->block);
    if (!status && (w->block[5] != !!a->filters || number(w->block + 6, 8) != a->index_at))
        status = refuse(w, at, "\"FADB\" belongs to another array");
    return status ? status : check_entries(w, at, w->block + 14, n, a, chunk_bytes, entry_bytes);
}

static mu_status check_chunks(walk *w, uint64_t at, const array *a) {
    uint64_t n = 1, chunk_bytes = (uint64_t)a->type_bytes;
    if (a->layout_rank != a->rank + 1 || a->chunk[a->rank] != (uint64_t)a->type_bytes)
        return refuse(w, at, "chunks do not match their dataset");
    for (int i = 0; i < a->rank; i++) {
        uint64_t c = a->chunk[i];
        if (c == 0 || c > INT32_MAX || __builtin_mul_overflow(chunk_bytes, c, &chunk_bytes) ||
            chunk_bytes > UINT32_MAX)
            return refuse(w, at, "a chunk's dimension %d is %llu", i, (unsigned long long)c);
        if (__builtin_mul_overflow(n, a->shape[i] / c + (a->shape[i] % c != 0), &n) || n > MAX_PIECES)
            return refuse(w, at, "more chunks than the file holds: data are missing");
    }
    if (a->index_at == NOWHERE) return refuse(w, at, "data are missing");
    if (a->index == FIXED_ARRAY) return check_fixed_array(w, a, n, chunk_bytes);
    if (n != 1 || (a->filters ? a->stored != chunk_bytes + FLETCHER_BYTES : a->stored != 0))
        return refuse(w, at, "wrong size of a single chunk");
    return claim(w, a->index_at, a->filters ? a->stored : chunk_bytes, "a chunk");
}

/* ------------------------------------------------------------------ messages of an object header */

enum {
    NIL = 0,
    DATASPACE = 1,
    LINK_INFO = 2,
    DATATYPE = 3,
    FILL_VALUE = 5,
    LINK = 6,
    LAYOUT = 8,
    GROUP_INFO = 10,
    FILTERS = 11,
    ATTRIBUTE = 12,
    CONTINUATION = 16,
    ATTRIBUTE_INFO = 21,
    MESSAGE_KINDS = 22
};

typedef struct {
    uint64_t at;
    int depth, seen[MESSAGE_KINDS];
    uint64_t heap, tree; /* of a group of many links */
    array a;
    piece more[MAX_CONTINUATIONS];
    int n_more;
} object;

static mu_status check_dataspace(walk *w, object *o, uint64_t at, const uint8_t *m, size_t n) {
    if (n < 4 || m[0] != 2) return refuse(w, at, "unknown version of a dataspace message");
    int rank = m[1], flags = m[2];
    if (m[3] != 1 || rank < 1 || rank > MAX_RANK)
        return refuse(w, at, "a dataset must have 1 to %d dimensions, not %d", MAX_RANK, rank);
    if (flags > 1 || n != 4 + (size_t)rank * 8 * (size_t)(1 + flags))
        return refuse(w, at, "wrong size of a dataspace message");
    o->a.rank = rank;
    for (int i = 0; i < rank; i++) {
        o->a.shape[i] = number(m + 4 + 8 * i, 8);
        if (o->a.shape[i] > INT64_MAX) return refuse(w, at, "a dimension of 2^63 or more");
        if (flags && number(m + 4 + 8 * (rank + i), 8) != o->a.shape[i])
            return refuse(w, at, "a dataset that can grow");
    }
    return MU_STATUS_OK;
}

/* The store's types as they are written, with bit 0 of the second byte set for the other byte order. */
static mu_status check_datatype(walk *w, object *o, uint64_t at, const uint8_t *m, size_t n) {
    static const uint8_t types[][21] = {
        { 12, 0x10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 8, 0 },
        { 12, 0x10, 0, 0, 0, 2, 0, 0, 0, 0, 0, 16, 0 },
        { 12, 0x10, 8, 0, 0, 4, 0, 0, 0, 0, 0, 32, 0 },
        { 12, 0x10, 8, 0, 0, 8, 0, 0, 0, 0, 0, 64, 0 },
        { 20, 0x11, 0x20, 31, 0, 4, 0, 0, 0, 0, 0, 32, 0, 23, 8, 0, 23, 0x7f, 0, 0, 0 },
        { 20, 0x11, 0x20, 63, 0, 8, 0, 0, 0, 0, 0, 64, 0, 52, 11, 0, 52, 0xff, 3, 0, 0 },
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (n == types[i][0] && m[0] == types[i][1] && (m[1] & ~1) == types[i][2] &&
            !memcmp(m + 2, types[i] + 3, n - 2)) {
            o->a.type_bytes = m[4];
            return MU_STATUS_OK;
        }
    return refuse(w, at, "a data type that muster does not write");
}

/* No fill value, only when to write one: two bits when space is taken, two bits when it is filled. */
static mu_status check_fill_value(walk *w, uint64_t at, const uint8_t *m, size_t n) {
    if (n != 2 || m[0] != 3 || m[1] > 0xb) return refuse(w, at, "an unexpected fill value");
    return MU_STATUS_OK;
}

/* Empty arrays have no chunks: 0 bytes in the header, or nowhere in the file. */
static mu_status check_no_chunks(walk *w, object *o, uint64_t at, const uint8_t *m, size_t n) {
    o->a.compact = 1;
    if (n == 4 && m[1] == 0 && number(m + 2, 2) == 0) return MU_STATUS_OK;
    if (n == 18 && m[1] == 1 && number(m + 2, 8) == NOWHERE && number(m + 10, 8) == 0) return MU_STATUS_OK;
    return refuse(w, at, "not chunked");
}

static mu_status check_layout(walk *w, object *o, uint64_t at, const uint8_t *m, size_t n) {
    enum { CHUNKED = 2, SINGLE_FILTERED = 2 };
    if (n < 4 || m[0] < 3 || m[0] > 4) return refuse(w, at, "unknown version of a layout message");
    if (m[1] != CHUNKED) return check_no_chunks(w, o, at, m, n);
    if (n < 5 || m[0] != 4) return refuse(w, at, "chunks of layout version 3");
    array *a = &o->a;
    int flags = m[2], rank = m[3], width = m[4];
    if (rank < 2 || rank > MAX_RANK + 1 || width < 1 || width > 8)
        return refuse(w, at, "chunks of %d dimensions", rank - 1);
    size_t head = 5 + (size_t)rank * (size_t)width;
    if (n < head + 1) return refuse(w, at, "a layout message is cut off");
    a->layout_rank = rank;
    for (int i = 0; i < rank; i++) a->chunk[i] = number(m + 5 + i * width, width);
    a->index = m[head];
    const uint8_t *rest = m + head + 1;
    bool single = a->index == SINGLE_CHUNK, filtered = single && flags == SINGLE_FILTERED;
    if (!single && a->index != FIXED_ARRAY)
        return refuse(w, at, "chunk index of type %d", a->index);
    if ((flags && !filtered) || n != head + 1 + (single ? filtered ? 12 : 0 : 1) + 8)
        return refuse(w, at, "unexpected flags or size of a layout message");
    if (filtered) a->stored = number(rest, 8);
    if (filtered && (number(rest + 8, 4) || !a->stored)) return refuse(w, at, "a chunk without its checksum filter");
    if (!single && rest[0] != PAGE_BITS) return refuse(w, at, "wrong page size of a chunk index");
    a->index_at = number(m + n - 8, 8);
    return MU_STATUS_OK;
}

static mu_status check_filters(walk *w, object *o, uint64_t at, const uint8_t *m, size_t n) {
    static const uint8_t fletcher32[8] = { 2, 1, 3, 0, 0, 0, 0, 0 };
    if (n != sizeof fletcher32 || memcmp(m, fletcher32, n))
        return refuse(w, at, "a filter other than Fletcher32");
    o->a.filters = 1;
    return MU_STATUS_OK;
}

static mu_status check_link_info(walk *w, object *o, uint64_t at, const uint8_t *m, size_t n) {
    if (n != 18 || m[0] != 0 || m[1] != 0) return refuse(w, at, "unexpected group settings");
    o->heap = number(m + 2, 8);
    o->tree = number(m + 10, 8);
    if ((o->heap == NOWHERE) != (o->tree == NOWHERE)) return refuse(w, at, "a group has a heap without a B-tree, or the reverse");
    return MU_STATUS_OK;
}

static mu_status check_continuation(walk *w, object *o, uint64_t at, const uint8_t *m, size_t n) {
    if (n != 16 || o->n_more == MAX_CONTINUATIONS)
        return refuse(w, at, "an object header with too many continuations");
    o->more[o->n_more++] = (piece){ number(m, 8), number(m + 8, 8) };
    return MU_STATUS_OK;
}

/* Only what mu_store_attribute writes: a name and one text, null-padded, both in the message. */
static mu_status check_attribute(walk *w, uint64_t at, const uint8_t *m, size_t n) {
    static const uint8_t type[] = { 0x13, 1, 0, 0 }, scalar[] = { 2, 0, 0, 0 };
    if (n < 9 || m[0] != 3 || m[1] != 0 || m[8] != 0) return refuse(w, at, "an attribute that muster does not write");
    size_t name = number(m + 2, 2), types = number(m + 4, 2), spaces = number(m + 6, 2), head = 9 + name + 8 + 4;
    bool good = name >= 2 && types == 8 && spaces == 4 && n > head && !m[9 + name - 1] && !memchr(m + 9, 0, name - 1) &&
                !memcmp(m + 9 + name, type, 4) && number(m + 9 + name + 4, 4) == n - head && !memcmp(m + 9 + name + 8, scalar, 4);
    return good ? MU_STATUS_OK : refuse(w, at, "an attribute that muster does not write");
}

/* All attributes are in the header: no heap and no B-tree. */
static mu_status check_attribute_info(walk *w, uint64_t at, const uint8_t *m, size_t n) {
    bool good = n == 18 && m[0] == 0 && m[1] == 0 && number(m + 2, 8) == NOWHERE && number(m + 10, 8) == NOWHERE;
    return good ? MU_STATUS_OK : refuse(w, at, "attributes outside of an object header");
}

static mu_status check_message(walk *w, object *o, uint64_t at, int kind, int flags, const uint8_t *m,
                               size_t n) {
    static const char *const foreign[] = { [7] = "external storage",
                                           [17] = "a symbol table (group of HDF5 before 1.8)",
                                           [22] = "an object with several hard links" };
    if (kind < (int)(sizeof foreign / sizeof *foreign) && foreign[kind])
        return refuse(w, at, "%s", foreign[kind]);
    if (kind >= MESSAGE_KINDS) return refuse(w, at, "a message of kind %d", kind);
    if (flags > 1 && !(kind == ATTRIBUTE_INFO && flags == 4)) /* 4: never shared */
        return refuse(w, at, "a message of kind %d with flags %#x", kind, flags);
    bool many = kind == NIL || kind == LINK || kind == ATTRIBUTE || kind == CONTINUATION;
    if (o->seen[kind]++ && !many) return refuse(w, at, "a second message of kind %d", kind);
    switch (kind) {
    case NIL: return MU_STATUS_OK;
    case DATASPACE: return check_dataspace(w, o, at, m, n);
    case LINK_INFO: return check_link_info(w, o, at, m, n);
    case DATATYPE: return check_datatype(w, o, at, m, n);
    case FILL_VALUE: return check_fill_value(w, at, m, n);
    case LINK: return check_link(w, at, m, n, o->depth, NULL);
    case LAYOUT: return check_layout(w, o, at, m, n);
    case GROUP_INFO:
        return n == 2 && !m[0] && !m[1] ? MU_STATUS_OK : refuse(w, at, "unexpected group settings");
    case FILTERS: return check_filters(w, o, at, m, n);
    case ATTRIBUTE: return check_attribute(w, at, m, n);
    case ATTRIBUTE_INFO: return check_attribute_info(w, at, m, n);
    case CONTINUATION: return check_continuation(w, o, at, m, n);
    default: return refuse(w, at, "a message of kind %d", kind);
    }
}

/* The messages of one part of a header: kind, bytes (2), flags (1: constant), then the message. */
static mu_status check_messages(walk *w, object *o, uint64_t at, const uint8_t *p, size_t n) {
    size_t done = 0;
    while (n - done >= 4) {
        size_t bytes = (size_t)number(p + done + 1, 2);
        if (bytes > n - done - 4) return refuse(w, at + done, "a message longer than its object header");
        mu_status status = check_message(w, o, at + done, p[done], p[done + 3], p + done + 4, bytes);
        if (status) return status;
        done += 4 + bytes;
    }
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ object headers */

/* The first part: signature, version, flags, four times where flag 0x20 says so, bytes of the messages. */
static mu_status check_header(walk *w, object *o) {
    enum { WIDTH = 3, TIMES = 0x20 };
    uint8_t head[6 + 16 + 8];
    uint64_t there = w->size - o->at < sizeof head ? w->size - o->at : sizeof head;
    mu_status status = o->at >= w->size ? refuse(w, o->at, "an object header beyond the end of the file")
                                        : load(w, o->at, there, head, "OHDR");
    if (status) return status;
    if (there < 4 || memcmp(head, "OHDR", 4)) return refuse(w, o->at, "not an object header of version 2");
    int flags = there > 5 ? head[5] : 0xff, width = 1 << (flags & WIDTH);
    uint64_t at = flags & TIMES ? 22 : 6, first = at + (uint64_t)width;
    if (flags & ~(WIDTH | TIMES)) return refuse(w, o->at, "an object header with flags %#x", flags);
    if (first > there) return refuse(w, o->at, "an object header is cut off");
    uint64_t bytes = number(head + at, width);
    if (bytes > BLOCK - sizeof head - SUM_BYTES)
        return refuse(w, o->at, "an object header of %llu bytes", (unsigned long long)bytes);
    uint64_t whole = first + bytes + SUM_BYTES;
    status = take(w, o->at, whole, whole, "OHDR", 2, w->block);
    return status ? status : check_messages(w, o, o->at + first, w->block + first, bytes);
}

static mu_status check_continuations(walk *w, object *o) {
    mu_status status = MU_STATUS_OK;
    for (int i = 0; !status && i < o->n_more; i++) {
        piece p = o->more[i];
        if (p.bytes < 8 || p.bytes > BLOCK)
            return refuse(w, p.at, "an object header continuation of %llu bytes", (unsigned long long)p.bytes);
        status = take(w, p.at, p.bytes, p.bytes, "OCHK", -1, w->block);
        if (!status) status = check_messages(w, o, p.at + 4, w->block + 4, p.bytes - 8);
    }
    return status;
}

static mu_status check_group(walk *w, const object *o) {
    if (o->seen[DATASPACE] || o->seen[DATATYPE] || o->seen[LAYOUT] || o->seen[FILL_VALUE] || o->seen[FILTERS])
        return refuse(w, o->at, "an object is both group and dataset");
    if (o->heap == NOWHERE) return MU_STATUS_OK;
    if (o->seen[LINK]) return refuse(w, o->at, "a group has links both in its header and in a heap");
    return check_many_links(w, o->heap, o->tree, o->depth);
}

static mu_status check_array(walk *w, const object *o) {
    if (!o->seen[DATASPACE] || !o->seen[DATATYPE] || !o->seen[LAYOUT] || !o->seen[FILL_VALUE] ||
        o->seen[LINK] || o->seen[GROUP_INFO])
        return refuse(w, o->at, "an object is neither a group nor a dataset");
    bool empty = false;
    for (int i = 0; i < o->a.rank; i++) empty = empty || o->a.shape[i] == 0;
    if (o->a.compact != empty) return refuse(w, o->at, "not chunked");
    if (empty && o->a.filters) return refuse(w, o->at, "an empty dataset with filters");
    return empty ? MU_STATUS_OK : check_chunks(w, o->at, &o->a);
}

static mu_status check_object(walk *w, object_place place) {
    object o = { .at = place.at, .depth = place.depth };
    mu_status status = check_header(w, &o);
    if (!status) status = check_continuations(w, &o);
    if (status) return status;
    if (!o.seen[LINK_INFO] && place.depth == 0) return refuse(w, o.at, "the root is not a group");
    return o.seen[LINK_INFO] ? check_group(w, &o) : check_array(w, &o);
}

mu_status mu_store_check(int fd, const char *path, int64_t bytes, mu_error *e) {
    walk *w = mu_alloc(1, sizeof *w);
    w->fd = fd;
    w->path = path;
    w->size = (uint64_t)bytes;
    w->e = e;
    uint64_t root = 0;
    mu_status status = check_superblock(w, &root);
    if (!status) status = add_object(w, root, 0);
    while (!status && w->n_objects) status = check_object(w, w->objects[--w->n_objects]);
    if (!status) status = no_overlaps(w);
    free(w->objects);
    free(w->pieces);
    free(w);
    return status;
}
