/* bpe.c - tokens and merges in hash tables, and the ids of a piece: of recent words from a cache of the thread, else by merging the
 * pair with the lowest rank, leftmost first, until no pair has one. */
#include "data/bpe.h"
#include "data/unicode.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { NONE = -1, N_BYTES = 256, SMALL_IDS = 512, SHORT = 96 };
#define NO_RANK UINT32_MAX
static const char meta[] = "\xe2\x96\x81";      /* U+2581 */

typedef struct { int64_t at; int32_t n; bool literal; } token;     /* n -1: none. literal: not in the alphabet of bytes */
typedef struct { uint32_t tag; int32_t id; } word_slot;             /* id NONE: free */
typedef struct { uint64_t pair; uint32_t rank; } pair_slot;         /* rank NO_RANK: free */

struct mu_bpe {
    mu_bpe_options o;
    bool complete, cuts_at_spaces;      /* complete: every byte has a token */
    uint64_t serial;                    /* of all models of this process */
    int32_t n_ids, ids_room, n_tokens;
    token *tokens;
    char *bytes;
    int64_t n_bytes, bytes_room;
    word_slot *words;
    uint32_t word_mask;
    int32_t (*merges)[2], *merged;
    int32_t n_merges, merges_room, n_repeated;
    pair_slot *pairs;
    uint32_t pair_mask;
    uint32_t (*small)[SMALL_IDS];       /* ranks of pairs of small ids */
    int32_t byte_id[N_BYTES];           /* of a byte; for plain characters of ASCII */
    int32_t fallback_id[N_BYTES];       /* of <0xNN> */
    _Atomic unsigned char *whole;       /* whether merging its bytes gives this token: 0 unknown, 1 yes, 2 no */
};

/* ------------------------------------------------------------------ GPT-2's alphabet
 * Printable bytes of Latin-1 are their own characters, the 68 others U+0100, U+0101, ... in order. */

static uint32_t char_of_byte(int byte) {
    if ((byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE) return (uint32_t)byte;
    return 256u + (uint32_t)(byte <= ' ' ? byte : byte <= 0xA0 ? byte - 127 + 33 : 67);
}

static int byte_of_char(uint32_t c) {
    static const int other = 256 + 68;
    if (c < 256) return char_of_byte((int)c) == c ? (int)c : NONE;
    if (c >= (uint32_t)other) return NONE;
    int i = (int)c - 256;
    return i <= ' ' ? i : i < 67 ? i - 33 + 127 : 0xAD;
}

char *mu_bpe_spell(const char *bytes, int64_t n) {
    char *text = mu_alloc((size_t)n * 2 + 1, 1), *p = text;
    for (int64_t i = 0; i < n; i++) {
        uint32_t c = char_of_byte((unsigned char)bytes[i]);
        if (c < 0x80) *p++ = (char)c;
        else *p++ = (char)(0xC0 | c >> 6), *p++ = (char)(0x80 | (c & 0x3F));
    }
    return text;
}

static int char_at(const char *p, int64_t n, uint32_t *code) {
    return mu_char_code((const unsigned char *)p, (const unsigned char *)p + n, code);
}

/* The bytes that a text spells, into room for n; their number, or NONE. */
static int64_t unspell(const char *text, int64_t n, char *bytes) {
    int64_t out = 0;
    for (int64_t i = 0; i < n; out++) {
        uint32_t c = 0;
        int length = char_at(text + i, n - i, &c), byte = length ? byte_of_char(c) : NONE;
        if (byte == NONE) return NONE;
        bytes[out] = (char)byte;
        i += length;
    }
    return out;
}

/* ------------------------------------------------------------------ tokens */

static bool is_token(const mu_bpe *b, int32_t id, const char *bytes, int64_t n, bool literal) {
    const token *t = &b->tokens[id];
    return t->n == n && t->literal == literal && !memcmp(b->bytes + t->at, bytes, (size_t)n);
}

static uint64_t word_hash(const char *bytes, int64_t n, bool literal) { return mu_hash64(bytes, (size_t)n) + literal; }

/* The slot of the word, or the free one where it belongs. */
static word_slot *find_word(const mu_bpe *b, uint64_t hash, const char *bytes, int64_t n, bool literal) {
    for (uint32_t i = (uint32_t)hash;; i++) {
        word_slot *s = &b->words[i & b->word_mask];
        if (s->id == NONE || (s->tag == (uint32_t)(hash >> 32) && is_token(b, s->id, bytes, n, literal))) return s;
    }
}

static void make_words(mu_bpe *b, uint32_t size) {
    b->words = mu_alloc(size, sizeof *b->words);
    b->word_mask = size - 1;
    for (uint32_t i = 0; i < size; i++) b->words[i].id = NONE;
}

static void grow_words(mu_bpe *b) {
    free(b->words);
    make_words(b, 2 * (b->word_mask + 1));
    for (int32_t id = 0; id < b->n_ids; id++) {
        const token *t = &b->tokens[id];
        if (t->n == NONE) continue;
        uint64_t hash = word_hash(b->bytes + t->at, t->n, t->literal);
        *find_word(b, hash, b->bytes + t->at, t->n, t->literal) = (word_slot){ (uint32_t)(hash >> 32), id };
    }
}

mu_bpe *mu_bpe_new(bool byte_level) {
    static atomic_uint_fast64_t serial;
    mu_bpe *b = mu_alloc(1, sizeof *b);
    b->o = (mu_bpe_options){ .byte_level = byte_level, .unk = NONE };
    b->serial = ++serial;
    make_words(b, 1024);
    return b;
}

void mu_bpe_free(mu_bpe *b) {
    if (!b) return;
    free(b->tokens), free(b->bytes), free(b->words), free(b->merges), free(b->merged), free(b->pairs), free(b->small);
    free((void *)b->whole), free(b);
}

/* The key of a text: bytes, in *own when they had to be made, which the caller frees. */
static const char *key_of(const mu_bpe *b, const char *text, int64_t *n, bool *literal, char **own) {
    *literal = false, *own = NULL;
    if (!b->o.byte_level) return text;
    *own = mu_alloc((size_t)*n + 1, 1);
    int64_t bytes = unspell(text, *n, *own);
    *literal = bytes == NONE;
    if (*literal) return text;
    *n = bytes;
    return *own;
}

static void make_id(mu_bpe *b, int32_t id) {
    if (id >= b->ids_room) b->tokens = mu_realloc(b->tokens, (size_t)(b->ids_room = id + id / 2 + 64), sizeof *b->tokens);
    for (; b->n_ids <= id; b->n_ids++) b->tokens[b->n_ids] = (token){ .n = NONE };
}

static int64_t keep(mu_bpe *b, const char *bytes, int64_t n) {
    if (b->n_bytes + n > b->bytes_room) b->bytes = mu_realloc(b->bytes, (size_t)(b->bytes_room = 2 * (b->n_bytes + n) + 4096), 1);
    if (n) memcpy(b->bytes + b->n_bytes, bytes, (size_t)n);
    b->n_bytes += n;
    return b->n_bytes - n;
}

const char *mu_bpe_add_token(mu_bpe *b, const char *text, int64_t n, int32_t id) {
    if (id < b->n_ids && b->tokens[id].n != NONE) return "its id is taken by another token";
    if (n > INT32_MAX / 2) return "it is too long";
    bool literal;
    char *own;
    const char *key = key_of(b, text, &n, &literal, &own);
    uint64_t hash = word_hash(key, n, literal);
    word_slot *s = find_word(b, hash, key, n, literal);
    if (s->id != NONE) {
        free(own);
        return "there is an equal token";
    }
    make_id(b, id);
    b->tokens[id] = (token){ .at = keep(b, key, n), .n = (int32_t)n, .literal = literal };
    *s = (word_slot){ (uint32_t)(hash >> 32), id };
    if (2u * (uint32_t)++b->n_tokens > b->word_mask) grow_words(b);
    free(own);
    return NULL;
}

static int32_t find(const mu_bpe *b, const char *bytes, int64_t n) {       /* raw bytes, or plain text */
    return find_word(b, word_hash(bytes, n, false), bytes, n, false)->id;
}

int32_t mu_bpe_id(const mu_bpe *b, const char *text, int64_t n) {
    bool literal;
    char *own;
    const char *key = key_of(b, text, &n, &literal, &own);
    int32_t id = find_word(b, word_hash(key, n, literal), key, n, literal)->id;
    free(own);
    return id;
}

int32_t mu_bpe_ids(const mu_bpe *b) { return b->n_ids; }
int32_t mu_bpe_tokens(const mu_bpe *b) { return b->n_tokens; }
int32_t mu_bpe_merges(const mu_bpe *b) { return b->n_merges; }
int32_t mu_bpe_repeated(const mu_bpe *b) { return b->n_repeated; }
void mu_bpe_merge(const mu_bpe *b, int32_t i, int32_t pair[2]) { memcpy(pair, b->merges[i], sizeof b->merges[i]); }
const mu_bpe_options *mu_bpe_options_of(const mu_bpe *b) { return &b->o; }
bool mu_bpe_cuts_at_spaces(const mu_bpe *b) { return b->cuts_at_spaces; }

int64_t mu_bpe_bytes(const mu_bpe *b, int32_t id, const char **bytes) {
    if (id < 0 || id >= b->n_ids || b->tokens[id].n == NONE) return NONE;
    *bytes = b->bytes + b->tokens[id].at;
    return b->tokens[id].n;
}

char *mu_bpe_text(const mu_bpe *b, int32_t id) {
    const token *t = &b->tokens[id];
    if (b->o.byte_level && !t->literal) return mu_bpe_spell(b->bytes + t->at, t->n);
    char *text = mu_alloc((size_t)t->n + 1, 1);
    memcpy(text, b->bytes + t->at, (size_t)t->n);
    return text;
}

/* ------------------------------------------------------------------ merges */

static uint64_t pair_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

static uint64_t mix(uint64_t x) {
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 32;
}

static pair_slot *find_pair(const mu_bpe *b, uint64_t pair) {
    for (uint32_t i = (uint32_t)mix(pair);; i++) {
        pair_slot *s = &b->pairs[i & b->pair_mask];
        if (s->rank == NO_RANK || s->pair == pair) return s;
    }
}

static inline uint32_t rank_of(const mu_bpe *b, int32_t left, int32_t right) {
    if ((uint32_t)left < SMALL_IDS && (uint32_t)right < SMALL_IDS) return b->small[left][right];
    return find_pair(b, pair_of(left, right))->rank;
}

const char *mu_bpe_add_merge(mu_bpe *b, const char *left, int64_t left_n, const char *right, int64_t right_n) {
    if (b->n_merges == MU_BPE_MOST) return "there are too many merges";
    if (!left_n || !right_n) return "a part is empty";
    int32_t l = mu_bpe_id(b, left, left_n), r = mu_bpe_id(b, right, right_n);
    if (l == NONE || r == NONE) return l == NONE ? "its left part is not in the vocabulary" : "its right part is not in the vocabulary";
    char *both = mu_alloc((size_t)(left_n + right_n), 1);
    memcpy(both, left, (size_t)left_n);
    memcpy(both + left_n, right, (size_t)right_n);
    int32_t id = mu_bpe_id(b, both, left_n + right_n);
    free(both);
    if (id == NONE) return "its result is not in the vocabulary";
    if (b->n_merges == b->merges_room) {
        b->merges_room = 2 * b->merges_room + 1024;
        b->merges = mu_realloc(b->merges, (size_t)b->merges_room, sizeof *b->merges);
        b->merged = mu_realloc(b->merged, (size_t)b->merges_room, sizeof *b->merged);
    }
    b->merges[b->n_merges][0] = l, b->merges[b->n_merges][1] = r;
    b->merged[b->n_merges++] = id;
    return NULL;
}

static bool has_inner_space(const mu_bpe *b, int32_t id) {
    const token *t = &b->tokens[id];
    const char *p = b->bytes + t->at, *end = p + t->n;
    while (end - p >= 3 && !memcmp(p, meta, 3)) p += 3;
    return memmem(p, (size_t)(end - p), meta, 3) != NULL;
}

static void index_merges(mu_bpe *b) {
    uint32_t size = 1024;
    while (size < 2u * (uint32_t)b->n_merges) size *= 2;
    b->pairs = mu_alloc(size, sizeof *b->pairs);
    b->pair_mask = size - 1;
    for (uint32_t i = 0; i < size; i++) b->pairs[i].rank = NO_RANK;
    b->small = mu_alloc(SMALL_IDS, sizeof *b->small);
    memset(b->small, 0xFF, SMALL_IDS * sizeof *b->small);
    b->cuts_at_spaces = mu_bpe_id(b, meta, 3) != NONE;
    for (int32_t i = 0; i < b->n_merges; i++) {
        int32_t left = b->merges[i][0], right = b->merges[i][1];
        pair_slot *s = find_pair(b, pair_of(left, right));      /* of equal ones the last counts, as in Hugging Face's */
        b->n_repeated += s->rank != NO_RANK;
        *s = (pair_slot){ pair_of(left, right), (uint32_t)i };
        if (left < SMALL_IDS && right < SMALL_IDS) b->small[left][right] = (uint32_t)i;
        b->cuts_at_spaces = b->cuts_at_spaces && !has_inner_space(b, b->merged[i]);
    }
}

const char *mu_bpe_finish(mu_bpe *b, const mu_bpe_options *o) {
    b->o = *o;
    b->complete = true;
    for (int i = 0; i < N_BYTES; i++) {
        char text[8] = { (char)i }, code[8];
        snprintf(code, sizeof code, "<0x%02X>", (unsigned)i);
        b->byte_id[i] = find(b, text, 1);
        b->fallback_id[i] = o->byte_fallback ? mu_bpe_id(b, code, 6) : NONE;
        b->complete = b->complete && b->byte_id[i] != NONE;
    }
    for (int i = 0; o->byte_level && i < N_BYTES; i++)      /* real vocabularies miss bytes that UTF-8 has not, or nothing assigned */
        if (b->byte_id[i] == NONE && (o->byte_fallback || (o->unk == NONE && i < 0xF1 && i != 0xC0 && i != 0xC1)))
            return "with ByteLevel the vocabulary needs a token for each byte of UTF-8";
    index_merges(b);
    b->whole = mu_alloc((size_t)b->n_ids + 1, 1);
    return NULL;
}

bool mu_bpe_makes(const mu_bpe *b, int32_t id) {
    const char *text = "";
    uint32_t code;
    int64_t n = mu_bpe_bytes(b, id, &text);
    for (int32_t i = 0; i < b->n_merges; i++)
        if (b->merged[i] == id) return true;
    for (int i = 0; i < N_BYTES; i++)
        if (b->byte_id[i] == id || b->fallback_id[i] == id) return true;
    if (b->o.byte_level) return id == b->o.unk && !b->complete;
    return id == b->o.unk || (n > 0 && char_at(text, n, &code) == n);
}

void mu_bpe_forbid(mu_bpe *b, int32_t id) {
    if (id < b->n_ids) b->whole[id] = 2;
}

/* ------------------------------------------------------------------ the first symbols of a piece */

typedef struct { const mu_bpe *b; int32_t *ids; int64_t n; bool unknown; } symbols;    /* unknown: an unknown token is due */

static void put_symbol(symbols *s, int32_t id) {
    if (s->unknown) s->ids[s->n++] = s->b->o.unk;
    s->unknown = false;
    s->ids[s->n++] = id;
}

/* A character without a token. Due unknown tokens come behind byte tokens, as in Hugging Face's. */
static void put_unknown(symbols *s, const char *p, int n) {
    const mu_bpe *b = s->b;
    bool bytes = b->o.byte_fallback;
    for (int i = 0; i < n; i++) bytes = bytes && b->fallback_id[(unsigned char)p[i]] != NONE;
    if (bytes) {
        for (int i = 0; i < n; i++) s->ids[s->n++] = b->fallback_id[(unsigned char)p[i]];
    } else if (b->o.unk != NONE) {
        if (s->unknown && !b->o.fuse_unk) s->ids[s->n++] = b->o.unk;
        s->unknown = true;
    }
}

/* At most n ids. */
static int64_t first_symbols(const mu_bpe *b, const char *piece, int64_t n, int32_t *ids) {
    symbols s = { .b = b, .ids = ids };
    if (b->o.byte_level && b->complete) {
        for (int64_t i = 0; i < n; i++) ids[i] = b->byte_id[(unsigned char)piece[i]];
        return n;
    }
    for (int64_t i = 0; i < n;) {
        uint32_t code;
        int length = b->o.byte_level ? 1 : char_at(piece + i, n - i, &code);
        int32_t id = length == 1 ? b->byte_id[(unsigned char)piece[i]] : length ? find(b, piece + i, length) : NONE;
        if (!length) length = 1;
        if (id == NONE) put_unknown(&s, piece + i, length);
        else put_symbol(&s, id);
        i += length;
    }
    if (s.unknown) ids[s.n++] = b->o.unk;
    return s.n;
}

/* ------------------------------------------------------------------ merging */

/* Few symbols: the lowest rank is searched each time. Returns their number. */
static int64_t merge_few(const mu_bpe *b, int32_t *ids, int64_t n) {
    uint32_t ranks[SHORT];
    for (int64_t i = 0; i + 1 < n; i++) ranks[i] = rank_of(b, ids[i], ids[i + 1]);
    while (n > 1) {
        int64_t at = 0;
        uint32_t lowest = ranks[0];
        for (int64_t i = 1; i + 1 < n; i++)
            if (ranks[i] < lowest) lowest = ranks[i], at = i;
        if (lowest == NO_RANK) break;
        ids[at] = b->merged[lowest];
        n--;
        memmove(ids + at + 1, ids + at + 2, (size_t)(n - at - 1) * sizeof *ids);
        if (at + 1 < n) {
            memmove(ranks + at, ranks + at + 1, (size_t)(n - at - 1) * sizeof *ranks);
            ranks[at] = rank_of(b, ids[at], ids[at + 1]);
        }
        if (at > 0) ranks[at - 1] = rank_of(b, ids[at - 1], ids[at]);
    }
    return n;
}

/* Many: a heap of (rank, position), in which entries that no longer hold stay until they are taken out. */
typedef struct { uint64_t *list; int64_t n, room; } heap;

static void sink(heap *h, int64_t i) {
    uint64_t x = h->list[i];
    for (int64_t child; (child = 2 * i + 1) < h->n; i = child) {
        if (child + 1 < h->n && h->list[child + 1] < h->list[child]) child++;
        if (h->list[child] >= x) break;
        h->list[i] = h->list[child];
    }
    h->list[i] = x;
}

static void push(heap *h, uint64_t x) {
    if (h->n == h->room) h->list = mu_realloc(h->list, (size_t)(h->room *= 2), sizeof *h->list);
    int64_t i = h->n++;
    for (; i > 0 && h->list[(i - 1) / 2] > x; i = (i - 1) / 2) h->list[i] = h->list[(i - 1) / 2];
    h->list[i] = x;
}

static uint64_t pop(heap *h) {
    uint64_t top = h->list[0];
    h->list[0] = h->list[--h->n];
    if (h->n) sink(h, 0);
    return top;
}

typedef struct { int32_t id; uint32_t rank, next, before; } link;      /* rank: with the next. next: n at the end */
static const uint32_t nowhere = UINT32_MAX;

static void rank_link(const mu_bpe *b, link *links, int64_t n, uint32_t i, heap *h) {
    link *l = &links[i];
    l->rank = l->next < n ? rank_of(b, l->id, links[l->next].id) : NO_RANK;
    if (l->rank != NO_RANK) push(h, (uint64_t)l->rank << 32 | i);
}

static int64_t merge_many(const mu_bpe *b, int32_t *ids, int64_t n) {
    MU_CHECK(n < UINT32_MAX, "a piece of %lld symbols", (long long)n);
    link *links = mu_alloc((size_t)n, sizeof *links);
    heap h = { .list = mu_alloc((size_t)n, sizeof *h.list), .room = n };
    for (int64_t i = 0; i < n; i++) links[i] = (link){ ids[i], NO_RANK, (uint32_t)i + 1, i ? (uint32_t)i - 1 : nowhere };
    for (int64_t i = 0; i + 1 < n; i++)
        if ((links[i].rank = rank_of(b, ids[i], ids[i + 1])) != NO_RANK) h.list[h.n++] = (uint64_t)links[i].rank << 32 | (uint64_t)i;
    for (int64_t i = h.n / 2 - 1; i >= 0; i--) sink(&h, i);
    while (h.n) {
        uint64_t top = pop(&h);
        uint32_t at = (uint32_t)top, rank = (uint32_t)(top >> 32);
        link *l = &links[at];
        if (l->rank != rank) continue;
        link *right = &links[l->next];
        l->id = b->merged[rank];
        l->next = right->next;
        right->rank = NO_RANK;
        if (l->next < n) links[l->next].before = at;
        rank_link(b, links, n, at, &h);
        if (l->before != nowhere) rank_link(b, links, n, l->before, &h);
    }
    int64_t out = 0;
    for (uint32_t i = 0; i < n; i = links[i].next) ids[out++] = links[i].id;
    free(links), free(h.list);
    return out;
}

/* ------------------------------------------------------------------ a cache per thread
 * Direct-mapped: short pieces and their ids, of the model that this thread used last. */
enum { CACHE_ENTRIES = 1 << 14, CACHED_BYTES = 26, CACHED_IDS = 8 };
typedef struct {
    uint32_t tag;
    uint8_t n, n_ids;               /* n 0: empty */
    char bytes[CACHED_BYTES];
    int32_t ids[CACHED_IDS];
} cached;
typedef struct { uint64_t serial; cached entries[CACHE_ENTRIES]; } cache;
static pthread_key_t cache_key;

static void make_key(void) { MU_CHECK(!pthread_key_create(&cache_key, free), "no thread-specific data left"); }

static cache *cache_of(const mu_bpe *b) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static _Thread_local cache *mine;
    if (!mine) {
        pthread_once(&once, make_key);
        mine = mu_alloc(1, sizeof *mine);
        pthread_setspecific(cache_key, mine);       /* freed when the thread ends */
    }
    if (mine->serial != b->serial) {
        memset(mine, 0, sizeof *mine);
        mine->serial = b->serial;
    }
    return mine;
}

static inline uint64_t load(const char *p, int n) {
    uint64_t x = 0;
    memcpy(&x, p, (size_t)n);
    return x;
}

static inline uint64_t piece_hash(const char *p, int64_t n) {      /* 1 to CACHED_BYTES bytes */
    uint64_t x;
    if (n >= 8) x = load(p, 8) * 0x9E3779B97F4A7C15u ^ load(p + n - 8, 8);
    else if (n >= 4) x = load(p, 4) << 32 | load(p + n - 4, 4);
    else x = (uint64_t)(unsigned char)p[0] << 16 | (uint64_t)(unsigned char)p[n / 2] << 8 | (unsigned char)p[n - 1];
    if (n > 16) x ^= load(p + 8, 8) * 0xC2B2AE3D27D4EB4Fu;
    x = (x ^ (uint64_t)n << 56) * 0xD6E8FEB86659FD93u;
    return x ^ x >> 32;
}

/* ------------------------------------------------------------------ one piece */

/* Merges all of it. ids: room for n. */
static int64_t merge_piece(const mu_bpe *b, const char *piece, int64_t n, int32_t *ids) {
    int64_t symbols_n = first_symbols(b, piece, n, ids);
    return symbols_n <= SHORT ? merge_few(b, ids, symbols_n) : merge_many(b, ids, symbols_n);
}

/* The token that the piece is, when merging gives it; else NONE. */
static int32_t whole_token(const mu_bpe *b, const char *piece, int64_t n) {
    int32_t id = find(b, piece, n);
    if (id == NONE) return NONE;
    unsigned char state = atomic_load_explicit(&b->whole[id], memory_order_relaxed);
    if (b->o.ignore_merges) return state == 2 ? NONE : id;
    if (!state) {
        int32_t ids[SHORT];
        state = n <= SHORT && merge_piece(b, piece, n, ids) == 1 && ids[0] == id ? 1 : 2;
        atomic_store_explicit(&b->whole[id], state, memory_order_relaxed);
    }
    return state == 1 ? id : NONE;
}

static void encode_long(const mu_bpe *b, const char *piece, int64_t n, mu_ids *out) {
    int32_t some[512], *ids = n <= 512 ? some : mu_alloc((size_t)n, sizeof *ids);
    int64_t found = merge_piece(b, piece, n, ids);
    for (int64_t i = 0; i < found; i++) mu_ids_put(out, ids[i]);
    if (ids != some) free(ids);
}

void mu_bpe_encode(const mu_bpe *b, const char *piece, int64_t n, mu_ids *out) {
    if (n > CACHED_BYTES) {
        int32_t id = whole_token(b, piece, n);
        if (id == NONE) encode_long(b, piece, n, out);
        else mu_ids_put(out, id);
        return;
    }
    if (!n) return;
    uint64_t hash = piece_hash(piece, n);
    cached *c = &cache_of(b)->entries[hash % CACHE_ENTRIES];
    if (c->tag != (uint32_t)(hash >> 32) || c->n != n || memcmp(c->bytes, piece, (size_t)n)) {
        int32_t ids[CACHED_BYTES], id = whole_token(b, piece, n);
        int64_t found = id == NONE ? merge_piece(b, piece, n, ids) : 1;
        if (id != NONE) ids[0] = id;
        if (found > CACHED_IDS) {
            for (int64_t i = 0; i < found; i++) mu_ids_put(out, ids[i]);
            return;
        }
        *c = (cached){ .tag = (uint32_t)(hash >> 32), .n = (uint8_t)n, .n_ids = (uint8_t)found };
        memcpy(c->bytes, piece, (size_t)n);
        memcpy(c->ids, ids, (size_t)found * sizeof *ids);
    }
    for (int i = 0; i < c->n_ids; i++) mu_ids_put(out, c->ids[i]);
}
