/* megatron_file.c - indexed token files of Megatron: NAME.bin holds the ids, NAME.idx their order:
 *
 *     "MMIDIDX\0\0", u64 version 1, u8 type of an id, u64 S sequences, u64 D + 1,
 *     i32 length[S], i64 byte_offset[S], i64 first_sequence[D + 1]: of each document, and S
 *
 * Sequences must lie one after another, as Megatron's own programs write them. Source: Megatron-LM's
 * core/datasets/indexed_dataset.py. */
#include "data/internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEADER_BYTES = 34, SOME = 4096 };
static const char magic[9] = "MMIDIDX\0";

/* Numbers of the index in order, some at a time. */
typedef struct { int64_t at, left, n, used; size_t size; char some[SOME * 8]; } numbers;

typedef struct {
    char *path;
    int fd;
    int64_t bytes, n_sequences, n_documents;
    int64_t sequence, end;          /* read so far: sequences, and their tokens */
    numbers lengths, offsets, documents;
} idx;

static mu_status bad(const idx *x, mu_error *e, const char *what, int64_t number, int64_t value) {
    return mu_error_set(e, MU_STATUS_DATA, "%s: %s (number %lld is %lld)", x->path, what, (long long)number, (long long)value);
}

static mu_status next_number(const idx *x, numbers *s, int64_t *value, mu_error *e) {
    if (s->used == s->n) {
        s->n = s->left < SOME ? s->left : SOME, s->used = 0;
        mu_status status = mu_raw_read(x->fd, x->path, s->at, s->some, (size_t)s->n * s->size, e);
        if (status) return status;
        s->at += s->n * (int64_t)s->size, s->left -= s->n;
    }
    int32_t narrow;
    if (s->size == sizeof narrow) memcpy(&narrow, s->some + 4 * s->used, 4), *value = narrow;
    else memcpy(value, s->some + 8 * s->used, 8);
    s->used++;
    return MU_STATUS_OK;
}

/* Takes the next sequence into the document. */
static mu_status add_sequence(idx *x, const mu_raw_tokens *t, mu_error *e) {
    int64_t length, offset, size = (int64_t)mu_raw_size(t->type);
    mu_status status = next_number(x, &x->lengths, &length, e);
    if (!status) status = next_number(x, &x->offsets, &offset, e);
    if (status) return status;
    if (length < 0 || length > t->n - x->end) return bad(x, e, "the lengths of the sequences do not fit the tokens in the .bin", x->sequence, length);
    if (offset != x->end * size) return bad(x, e, "the sequences do not lie one after another in the .bin", x->sequence, offset);
    x->end += length;
    x->sequence++;
    return MU_STATUS_OK;
}

/* mu_raw_tokens.next_end: the end of the next document. */
static mu_status next_end(mu_raw_tokens *t, int64_t *end, mu_error *e) {
    idx *x = t->ends;
    int64_t until, number = x->n_documents + 1 - t->documents_left;
    if (t->documents_left-- == 0) return bad(x, e, "the documents end before the tokens do", number - 1, x->end);
    mu_status status = next_number(x, &x->documents, &until, e);
    int64_t least = t->documents_left ? x->sequence : x->n_sequences;
    if (!status && (until < least || until > x->n_sequences)) status = bad(x, e, "the documents' first sequences are not in order", number, until);
    while (!status && x->sequence < until) status = add_sequence(x, t, e);
    *end = x->end;
    return status;
}

static void close_idx(mu_raw_tokens *t) {
    idx *x = t->ends;
    if (x && x->fd >= 0) close(x->fd);
    if (x) free(x->path);
    free(x);
    t->ends = NULL;
}

static mu_status read_header(idx *x, mu_raw_tokens *t, mu_error *e) {
    static const struct { int code; mu_raw_type type; } types[] = { { 1, MU_RAW_U8 }, { 3, MU_RAW_I16 }, { 4, MU_RAW_I32 }, { 5, MU_RAW_I64 }, { 8, MU_RAW_U16 } };
    char header[HEADER_BYTES] = { 0 };
    uint64_t version, S, D;
    mu_status status = x->bytes < HEADER_BYTES ? MU_STATUS_OK : mu_raw_read(x->fd, x->path, 0, header, sizeof header, e);
    if (status) return status;
    memcpy(&version, header + 9, 8), memcpy(&S, header + 18, 8), memcpy(&D, header + 26, 8);
    if (memcmp(header, magic, sizeof magic)) return mu_error_set(e, MU_STATUS_DATA, "%s: not an index of Megatron: it does not begin with MMIDIDX", x->path);
    if (version != 1) return mu_error_set(e, MU_STATUS_DATA, "%s: version %llu of the format, expected 1", x->path, (unsigned long long)version);
    size_t i = 0;
    while (i < 5 && types[i].code != header[17]) i++;
    if (i == 5) return mu_error_set(e, MU_STATUS_DATA, "%s: ids of type %d; known are 1 (u8), 3 (i16), 4 (i32), 5 (i64), 8 (u16)", x->path, header[17]);
    t->type = types[i].type;
    if (D < 1 || S > INT64_MAX / 64 || D > INT64_MAX / 64 || (int64_t)(HEADER_BYTES + 12 * S + 8 * D) != x->bytes)
        return mu_error_set(e, MU_STATUS_DATA, "%s: its header says %llu sequences and %llu documents, which does not fit its %lld bytes", x->path,
                            (unsigned long long)S, (unsigned long long)D - 1, (long long)x->bytes);
    x->n_sequences = (int64_t)S, x->n_documents = t->documents_left = (int64_t)D - 1;
    x->lengths = (numbers){ .at = HEADER_BYTES, .left = (int64_t)S, .size = 4 };
    x->offsets = (numbers){ .at = HEADER_BYTES + 4 * (int64_t)S, .left = (int64_t)S, .size = 8 };
    x->documents = (numbers){ .at = HEADER_BYTES + 12 * (int64_t)S, .left = (int64_t)D, .size = 8 };
    return MU_STATUS_OK;
}

static mu_status open_bin(mu_raw_tokens *t, const idx *x, mu_error *e) {
    int64_t bytes, size = (int64_t)mu_raw_size(t->type);
    const char *reason;
    t->path = mu_format("%.*sbin", (int)strlen(x->path) - 3, x->path);
    t->fd = mu_file_open(t->path, false, &bytes, &reason);
    if (t->fd < 0) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", t->path, reason);
    if (bytes % size) return mu_error_set(e, MU_STATUS_DATA, "%s: %lld bytes are no whole number of ids of %lld bytes", t->path, (long long)bytes, (long long)size);
    t->n = bytes / size;
    return MU_STATUS_OK;
}

mu_status mu_megatron_file_open(mu_raw_tokens *t, const char *path, bool *is_megatron, mu_error *e) {
    const char *reason;
    int64_t first;
    char *name = mu_format("%.*sidx", (int)strlen(path) - 3, path);
    *is_megatron = mu_file_ends(path, ".idx") || mu_file_exists(name);
    if (!*is_megatron) return free(name), MU_STATUS_OK;
    idx *x = mu_alloc(1, sizeof *x);
    t->ends = x, t->next_end = next_end, t->close = close_idx;
    x->path = name;
    x->fd = mu_file_open(name, false, &x->bytes, &reason);
    if (x->fd < 0) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", name, reason);
    mu_status status = read_header(x, t, e);
    if (!status) status = open_bin(t, x, e);
    if (!status) status = next_number(x, &x->documents, &first, e);
    if (!status && first != 0) status = bad(x, e, "the documents' first sequences are not in order", 0, first);
    return status;
}
