/* raw_file.c - token files of other programs: ids one after another in a file, in some integer type (llmc_file.c, megatron_file.c).
 *
 * A domain is one file, or all .bin files of a folder in the order of their names; llm.c's documents may go on in the next file.
 * A domain's documents end with the end-of-document id. A raw file may have it in front of documents instead, or nowhere, or another
 * id in front of each. So the domain's tokens are pieces of files: empty documents are left out, and behind a document without the id
 * one is inserted.
 * Opening reads all ids once, in parts; afterwards they are read in blocks through the corpus's cache. Every id is checked against
 * the vocabulary each time: the file may change. */
#include "data/internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK_BYTES = 1 << 15, PART = 1 << 16 };

/* Tokens [at, the next piece's at) of the domain are those from `from` on of a file; the last one is inserted if `ends`. */
typedef struct { int64_t at, from; int file; bool ends; } piece;

typedef struct {
    int n_files;
    mu_raw_tokens *files;
    int32_t eod, vocab_size;
    int64_t n, n_pieces, room;
    piece *pieces;
} raw;

/* ------------------------------------------------------------------ ids of the file */

mu_status mu_raw_read(int fd, const char *path, int64_t at, void *out, size_t bytes, mu_error *e) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(fd, (char *)out + done, bytes - done, at + (int64_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return mu_error_set(e, errno == EIO ? MU_STATUS_IO : MU_STATUS_NOINPUT, "%s: %s", path, strerror(errno));
        if (n == 0) return mu_error_set(e, MU_STATUS_DATA, "%s: truncated at byte %lld", path, (long long)at + (long long)done);
        done += (size_t)n;
    }
    return MU_STATUS_OK;
}

static int64_t value_at(const char *bytes, mu_raw_type type, int64_t i) {
    union { uint8_t u8; int16_t i16; uint16_t u16; int32_t i32; uint32_t u32; int64_t i64; } v;
    size_t size = mu_raw_size(type);
    memcpy(&v, bytes + (size_t)i * size, size);
    switch (type) {
    case MU_RAW_U8: return v.u8;
    case MU_RAW_I16: return v.i16;
    case MU_RAW_U16: return v.u16;
    case MU_RAW_I32: return v.i32;
    case MU_RAW_U32: return v.u32;
    case MU_RAW_I64: return v.i64;
    }
    return -1;
}

size_t mu_raw_size(mu_raw_type type) {
    return type == MU_RAW_U8 ? 1 : type == MU_RAW_I16 || type == MU_RAW_U16 ? 2 : type == MU_RAW_I64 ? 8 : 4;
}

/* Ids [from, from + n) of a file. */
static mu_status file_ids(const raw *r, int file, int64_t from, int64_t n, int32_t *ids, mu_error *e) {
    const mu_raw_tokens *t = &r->files[file];
    size_t size = mu_raw_size(t->type);
    char *bytes = mu_alloc((size_t)(n < PART ? n : PART), size);
    mu_status status = MU_STATUS_OK;
    for (int64_t done = 0, here; !status && done < n; done += here) {
        here = n - done < PART ? n - done : PART;
        status = mu_raw_read(t->fd, t->path, t->begin + (from + done) * (int64_t)size, bytes, (size_t)here * size, e);
        for (int64_t i = 0; !status && i < here; i++) {
            int64_t id = value_at(bytes, t->type, i);
            if (id < 0 || id >= r->vocab_size)
                status = mu_error_set(e, MU_STATUS_DATA, "%s: token %lld has id %lld, but the vocabulary has %d ids; data.tokenizer must be the tokenizer "
                                      "that the file was made with", t->path, (long long)(from + done + i), (long long)id, r->vocab_size);
            else ids[done + i] = (int32_t)id;
        }
    }
    free(bytes);
    return status;
}

/* ------------------------------------------------------------------ ids of the domain */

static const piece *piece_of(const raw *r, int64_t token) {
    int64_t low = 0;
    for (int64_t high = r->n_pieces; high - low > 1;) {
        int64_t middle = (low + high) / 2;
        if (r->pieces[middle].at <= token) low = middle;
        else high = middle;
    }
    return &r->pieces[low];
}

/* mu_column_read_ids of a raw file. */
static mu_status domain_ids(void *source, int64_t first, int64_t n, int32_t *ids, mu_error *e) {
    const raw *r = source;
    mu_status status = MU_STATUS_OK;
    for (const piece *p = n ? piece_of(r, first) : NULL; n > 0 && !status; p++) {
        int64_t end = p + 1 < r->pieces + r->n_pieces ? p[1].at : r->n, here = end - first < n ? end - first : n;
        bool inserted = p->ends && first + here == end;
        status = file_ids(r, p->file, p->from + (first - p->at), here - inserted, ids, e);
        if (inserted) ids[here - 1] = r->eod;
        first += here, n -= here, ids += here;
    }
    return status;
}

static void close_raw(void *source) {
    raw *r = source;
    for (int i = 0; i < r->n_files; i++) {
        if (r->files[i].fd >= 0) close(r->files[i].fd);
        free(r->files[i].path);
    }
    free(r->files);
    free(r->pieces);
    free(r);
}

/* ------------------------------------------------------------------ opening */

/* Finds the documents while reading all ids. */
typedef struct {
    raw *r;
    mu_domain *d;
    int64_t *lengths;               /* bytes of text of each id */
    int file;                       /* that is being read; from, bytes: of the document */
    int64_t from, bytes;
    bool begun;                     /* the document, in an earlier file: its pieces so far are added */
    bool started;                   /* the token at `from` is the one that begins a document */
} finder;

/* Adds tokens [from, to) of the file, and the end-of-document id if `ends`. */
static void add_piece(finder *f, int64_t to, bool ends) {
    raw *r = f->r;
    piece *last = r->n_pieces ? &r->pieces[r->n_pieces - 1] : NULL;
    int64_t n = to - f->from;
    bool follows = last && !last->ends && (n == 0 || (last->file == f->file && last->from + (r->n - last->at) == f->from));
    if (r->n_pieces == r->room) r->pieces = mu_realloc(r->pieces, (size_t)(r->room = 2 * r->room + 4), sizeof *r->pieces);
    if (!follows) r->pieces[r->n_pieces++] = (piece){ .at = r->n, .from = f->from, .file = f->file };
    r->pieces[r->n_pieces - 1].ends = ends;
    r->n += n + ends;
    f->from = to;
}

/* The document ends in front of token `to`; `ended`: with the end-of-document id. */
static void add_document(finder *f, int64_t to, bool ended) {
    if (to - f->from - ended - f->started > 0 || f->begun) {
        add_piece(f, to, !ended);
        mu_column_append_offset(f->d->document_offsets, f->r->n);
        f->d->text_bytes += f->bytes;
        f->d->n_documents++;
    }
    f->from = to, f->bytes = 0, f->begun = f->started = false;
}

/* The ids [at, at + n). `end`: of the current document, where the file says so, else -1. */
static mu_status find_in_part(finder *f, int64_t at, int64_t n, const int32_t *ids, int64_t *end, mu_error *e) {
    mu_raw_tokens *t = &f->r->files[f->file];
    mu_status status = MU_STATUS_OK;
    for (int64_t i = 0; i < n && !status; i++) {
        bool eod = ids[i] == f->r->eod;
        if (ids[i] == t->start && !eod && !f->lengths[ids[i]]) {    /* no bytes: it is special in this vocabulary */
            add_document(f, at + i, false);
            f->started = true;
        }
        f->bytes += f->lengths[ids[i]];
        if (!t->next_end ? !eod : at + i + 1 != *end) continue;
        add_document(f, at + i + 1, eod);
        while (t->next_end && !status && *end == at + i + 1 && *end < t->n) status = t->next_end(t, end, e);
    }
    return status;
}

static mu_status find_in_file(finder *f, mu_error *e) {
    mu_raw_tokens *t = &f->r->files[f->file];
    int32_t *ids = mu_alloc(PART, sizeof *ids);
    int64_t end = -1;
    mu_status status = MU_STATUS_OK;
    f->from = 0;
    if (t->next_end && f->begun) add_document(f, 0, false);
    while (!status && t->next_end && t->n > 0 && end <= 0) status = t->next_end(t, &end, e);
    for (int64_t at = 0, n; !status && at < t->n; at += n) {
        n = t->n - at < PART ? t->n - at : PART;
        status = file_ids(f->r, f->file, at, n, ids, e);
        if (!status) status = find_in_part(f, at, n, ids, &end, e);
        mu_activity_tick();
    }
    free(ids);
    while (!status && t->documents_left > 0) status = t->next_end(t, &end, e);      /* empty ones: only to check them */
    if (!status && f->from < t->n) add_piece(f, t->n, false), f->begun = true, f->started = false;
    return status;
}

/* Bytes of text of each id. */
static int64_t *lengths_of(const mu_tokenizer *t) {
    int32_t n = mu_tokenizer_vocab_size(t);
    int64_t *lengths = mu_alloc((size_t)n, sizeof *lengths);
    const char *bytes;
    for (int32_t id = 0; id < n; id++) lengths[id] = mu_tokenizer_decode(t, id, &bytes);
    return lengths;
}

bool mu_raw_file_named(const char *path) { return mu_file_ends(path, ".bin") || mu_file_ends(path, ".idx"); }

static int is_bin(const struct dirent *d) { return d->d_name[0] != '.' && mu_file_ends(d->d_name, ".bin"); }

/* A text, or what may be a folder with texts. */
static int may_be_text(const struct dirent *d) {
    bool folder = (d->d_type == DT_DIR || d->d_type == DT_UNKNOWN) && !mu_raw_file_named(d->d_name);
    return d->d_name[0] != '.' && (folder || mu_text_named(d->d_name));
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

/* Number of entries of a folder that are `wanted`, and their paths in order, heap, if `paths` is not NULL; 0 for what is no folder. */
static int entries(const char *folder, int (*wanted)(const struct dirent *), char ***paths) {
    struct dirent **list;
    int n = scandir(folder, &list, wanted, by_name);
    if (n < 0) return 0;
    if (paths) *paths = mu_alloc((size_t)n + 1, sizeof **paths);
    for (int i = 0; i < n; i++) {
        if (paths) (*paths)[i] = mu_format("%s/%s", folder, list[i]->d_name);
        free(list[i]);
    }
    free(list);
    return n;
}

bool mu_raw_folder(const char *path) { return entries(path, is_bin, NULL) > 0 && entries(path, may_be_text, NULL) == 0; }

/* Opens the next file, and finds its documents. */
static mu_status add_file(finder *f, const char *path, mu_error *e) {
    raw *r = f->r;
    bool is_megatron;
    r->files = mu_realloc(r->files, (size_t)r->n_files + 1, sizeof *r->files);
    f->file = r->n_files++;
    mu_raw_tokens *t = &r->files[f->file];
    *t = (mu_raw_tokens){ .fd = -1, .start = -1 };
    mu_status status = mu_megatron_file_open(t, path, &is_megatron, e);
    if (!status && !is_megatron) status = mu_llmc_file_open(t, path, e);
    if (!status) status = find_in_file(f, e);
    if (t->close) t->close(t);
    return status;
}

mu_status mu_raw_file_open(mu_domain *d, const mu_tokenizer *t, const char *path, mu_cache *cache, mu_error *e) {
    raw *r = mu_alloc(1, sizeof *r);
    *r = (raw){ .eod = mu_tokenizer_eod(t), .vocab_size = mu_tokenizer_vocab_size(t) };
    finder f = { .r = r, .d = d, .lengths = lengths_of(t) };
    char **paths = NULL;
    int n = mu_raw_file_named(path) ? 0 : entries(path, is_bin, &paths);
    d->document_offsets = mu_column_new(MU_STORE_I64);
    mu_column_append_offset(d->document_offsets, 0);
    mu_status status = n ? MU_STATUS_OK : add_file(&f, path, e);
    for (int i = 0; i < n; i++) {
        if (!status) status = add_file(&f, paths[i], e);
        free(paths[i]);
    }
    free(paths);
    free(f.lengths);
    if (status) return close_raw(r), status;
    f.from = r->files[f.file].n;
    if (f.begun) add_document(&f, f.from, false);
    if (d->n_documents == 1) mu_log(MU_LOG_INFO, "note: %s is one document: no end-of-document id (%d) is inside", path, r->eod);
    d->tokens = mu_column_from(mu_ids_type(r->vocab_size), r->n, r, domain_ids, close_raw, cache, BLOCK_BYTES);
    d->n_tokens = r->n;
    return MU_STATUS_OK;
}
