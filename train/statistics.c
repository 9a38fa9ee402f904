/* statistics.c - the format of RUN/statistics.rec: words of 8 bytes, little-endian.
 *     header   magic, version, bytes of the header, layers L, experts E, domains D, the numbers of the layers [L], the names of
 *              the domains [D, 8 words], XXH3 of the preceding words
 *     record   step, 1 (0: not counted by domain), counts [L, E, D], XXH3 of the preceding words
 * Record i is at header + i * record, so records can be read in any order. */
#include "train/statistics.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "statistics.rec has the byte order of memory");

static const char magic[8] = "MUSTATS\n";
enum { VERSION = 1, FIXED_WORDS = 6, RECORD_EXTRA = 3, NAME_WORDS = MU_STATISTICS_NAME / 8 };
static const int64_t MOST_CELLS = 1 << 28, MOST_NUMBER = 1 << 24;   /* limits of a valid header, beyond any model */

static int64_t cells(const mu_statistics_shape *s) { return s->layers * s->experts * s->domains; }
static int64_t header_words(const mu_statistics_shape *s) { return FIXED_WORDS + s->layers + s->domains * NAME_WORDS + 1; }

static mu_status write_failed(const char *path, mu_error *e) {
    return mu_error_set(e, MU_STATUS_IO, "%s cannot be written: %s", path, strerror(errno));
}

/* The checksum of all words but the last. */
static int64_t checksum(const int64_t *words, int64_t n) { return (int64_t)mu_hash64(words, (size_t)(n - 1) * sizeof *words); }

static bool write_all(int fd, const void *data, int64_t bytes, int64_t at) {
    for (int64_t done = 0; done < bytes;) {
        ssize_t n = pwrite(fd, (const char *)data + done, (size_t)(bytes - done), at + done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += n;
    }
    return true;
}

/* Bytes read, fewer only at the end of the file; -1: an error. */
static int64_t read_all(int fd, void *data, int64_t bytes, int64_t at) {
    int64_t done = 0;
    while (done < bytes) {
        ssize_t n = pread(fd, (char *)data + done, (size_t)(bytes - done), at + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += n;
    }
    return done;
}

/* ------------------------------------------------------------------ shapes and the header */

bool mu_statistics_same_shape(const mu_statistics_shape *a, const mu_statistics_shape *b) {
    return a->layers == b->layers && a->experts == b->experts && a->domains == b->domains &&
           !memcmp(a->layer, b->layer, sizeof *a->layer * (size_t)a->layers) &&
           !memcmp(a->domain, b->domain, sizeof *a->domain * (size_t)a->domains);
}

void mu_statistics_shape_free(mu_statistics_shape *s) {
    free(s->layer);
    free(s->domain);
}

/* Sets the shape (copied) and everything derived from it. */
static void take_shape(mu_statistics *s, const mu_statistics_shape *shape) {
    s->shape = *shape;
    s->shape.layer = mu_alloc((size_t)shape->layers, sizeof *shape->layer);
    s->shape.domain = mu_alloc((size_t)shape->domains, sizeof *shape->domain);
    memcpy(s->shape.layer, shape->layer, sizeof *shape->layer * (size_t)shape->layers);
    memcpy(s->shape.domain, shape->domain, sizeof *shape->domain * (size_t)shape->domains);
    s->header_bytes = 8 * header_words(shape);
    s->record_bytes = 8 * (cells(shape) + RECORD_EXTRA);
    s->words = mu_alloc((size_t)(cells(shape) + RECORD_EXTRA), sizeof *s->words);
    s->counts = s->words + 2;
}

static int64_t *make_header(const mu_statistics_shape *s) {
    int64_t n = header_words(s), *words = mu_alloc((size_t)n, sizeof *words);
    memcpy(words, magic, sizeof magic);
    memcpy(words + 1, (int64_t[]){ VERSION, 8 * n, s->layers, s->experts, s->domains }, 5 * sizeof *words);
    memcpy(words + FIXED_WORDS, s->layer, sizeof *words * (size_t)s->layers);
    memcpy(words + FIXED_WORDS + s->layers, s->domain, sizeof *s->domain * (size_t)s->domains);
    words[n - 1] = checksum(words, n);
    return words;
}

static bool in_range(int64_t value) { return value >= 1 && value <= MOST_NUMBER; }

/* NULL, or why the file has no header of this format. */
static const char *read_header(mu_statistics *s) {
    int64_t fixed[FIXED_WORDS];
    if (read_all(s->fd, fixed, sizeof fixed, 0) != (int64_t)sizeof fixed || memcmp(fixed, magic, sizeof magic))
        return "is not a file of routing statistics";
    if (fixed[1] != VERSION) return "is of another version of the format, or its header is damaged";
    mu_statistics_shape shape = { .layers = fixed[3], .experts = fixed[4], .domains = fixed[5] };
    bool good = in_range(shape.layers) && in_range(shape.experts) && in_range(shape.domains) &&
                shape.layers * shape.experts <= MOST_CELLS && cells(&shape) <= MOST_CELLS && fixed[2] == 8 * header_words(&shape);
    if (!good) return "has a damaged header";
    int64_t n = header_words(&shape), *words = mu_alloc((size_t)n, sizeof *words);
    good = read_all(s->fd, words, 8 * n, 0) == 8 * n && words[n - 1] == checksum(words, n);
    shape.layer = words + FIXED_WORDS;
    shape.domain = (char (*)[MU_STATISTICS_NAME])(words + FIXED_WORDS + shape.layers);
    for (int64_t i = 0; good && i < shape.domains; i++) good = memchr(shape.domain[i], '\0', MU_STATISTICS_NAME) != NULL;
    if (good) take_shape(s, &shape);
    free(words);
    return good ? NULL : "has a damaged header";
}

/* ------------------------------------------------------------------ files */

static mu_statistics *new_handle(const char *path) {
    mu_statistics *s = mu_alloc(1, sizeof *s);
    *s = (mu_statistics){ .path = mu_strdup(path), .fd = -1 };
    return s;
}

void mu_statistics_close(mu_statistics *s) {
    if (!s) return;
    if (s->fd >= 0) close(s->fd);
    mu_statistics_shape_free(&s->shape);
    free(s->words);
    free(s->path);
    free(s);
}

mu_status mu_statistics_create(mu_statistics **out, const char *path, const mu_statistics_shape *shape, mu_error *e) {
    int64_t *words = make_header(shape);
    mu_status status = mu_file_replace(path, words, 8 * (size_t)header_words(shape), e);
    free(words);
    *out = NULL;
    return status == MU_STATUS_OK ? mu_statistics_open(out, path, true, e) : status;
}

mu_status mu_statistics_open(mu_statistics **out, const char *path, bool append, mu_error *e) {
    mu_statistics *s = *out = new_handle(path);
    struct stat st;
    s->fd = open(path, (append ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0 || fstat(s->fd, &st))
        return mu_error_set(e, errno == ENOENT ? MU_STATUS_NOINPUT : MU_STATUS_IO, "%s cannot be opened: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return mu_error_set(e, MU_STATUS_DATA, "%s is not a plain file", path);
    const char *reason = read_header(s);
    if (reason) return mu_error_set(e, MU_STATUS_DATA, "%s %s", path, reason);
    s->n = (st.st_size - s->header_bytes) / s->record_bytes;
    s->rest = (st.st_size - s->header_bytes) % s->record_bytes;
    return MU_STATUS_OK;
}

mu_status mu_statistics_read(mu_statistics *s, int64_t i, bool *valid, mu_error *e) {
    int64_t n = s->record_bytes / 8;
    int64_t got = read_all(s->fd, s->words, s->record_bytes, s->header_bytes + i * s->record_bytes);
    if (got < 0) return mu_error_set(e, MU_STATUS_IO, "%s cannot be read: %s", s->path, strerror(errno));
    *valid = got == s->record_bytes && s->words[n - 1] == checksum(s->words, n) && s->words[0] >= 1;
    s->step = s->words[0];
    s->by_domain = s->words[1] != 0;
    return MU_STATUS_OK;
}

mu_status mu_statistics_append(mu_statistics *s, int64_t step, bool by_domain, const int64_t *counts, mu_error *e) {
    int64_t n = s->record_bytes / 8, D = s->shape.domains, all = cells(&s->shape);
    s->words[0] = step, s->words[1] = by_domain;
    for (int64_t i = 0; i < all; i++) s->words[2 + i] = by_domain ? counts[i] : i % D ? 0 : counts[i / D];
    s->words[n - 1] = checksum(s->words, n);
    if (!write_all(s->fd, s->words, s->record_bytes, s->header_bytes + s->n * s->record_bytes)) return write_failed(s->path, e);
    s->n++;
    return MU_STATUS_OK;
}

mu_status mu_statistics_cut(mu_statistics *s, int64_t n, mu_error *e) {
    if (ftruncate(s->fd, s->header_bytes + n * s->record_bytes))
        return mu_error_set(e, MU_STATUS_IO, "%s cannot be truncated to %lld records: %s", s->path, (long long)n, strerror(errno));
    s->n = n, s->rest = 0;
    return MU_STATUS_OK;
}

mu_status mu_statistics_sync(mu_statistics *s, mu_error *e) { return fsync(s->fd) ? write_failed(s->path, e) : MU_STATUS_OK; }
