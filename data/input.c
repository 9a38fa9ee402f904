/* input.c - the bytes of a file in order, decompressed when its name ends with .gz or .zst (any number of members or frames, one
 * after another). Memory: two blocks, and at most 128 MiB of a zstd window, zstd's own limit.
 *
 * A small file can be made that expands without end. Texts shrink to a third or a tenth; what expands to more than EXPANSION_MAX
 * times its size, behind the first EXPANSION_FREE bytes, is refused as soon as it does. */
#include "data/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

enum { BLOCK = 1 << 17, EXPANSION_MAX = 100, EXPANSION_FREE = 64 << 20, WINDOW_LOG_MAX = 27 };

struct mu_input {
    char *path;
    int fd;
    int64_t size, taken, given;     /* bytes of the file; read from it; given to the caller */
    mu_status (*more)(mu_input *in, char *out, size_t room, size_t *n, mu_error *e);
    unsigned char *block;           /* compressed: bytes [at, n) of it are the next */
    size_t at, n;
    bool open, begun;               /* inside of a member or frame; behind the first */
    z_stream gz;
    ZSTD_DStream *zst;
};

/* ------------------------------------------------------------------ from the file */

static mu_status read_some(mu_input *in, void *out, size_t room, size_t *n, mu_error *e) {
    ssize_t got;
    do got = read(in->fd, out, room); while (got < 0 && errno == EINTR);
    if (got < 0) return mu_error_set(e, errno == EIO ? MU_STATUS_IO : MU_STATUS_NOINPUT, "%s: %s", in->path, strerror(errno));
    *n = (size_t)got;
    in->taken += got;
    return MU_STATUS_OK;
}

static mu_status more_plain(mu_input *in, char *out, size_t room, size_t *n, mu_error *e) { return read_some(in, out, room, n, e); }

/* The next compressed bytes, when all are used; at the end of the file n stays 0. */
static mu_status refill(mu_input *in, mu_error *e) {
    if (in->at < in->n) return MU_STATUS_OK;
    in->at = in->n = 0;
    return read_some(in, in->block, BLOCK, &in->n, e);
}

/* ------------------------------------------------------------------ compressed */

static int64_t used(const mu_input *in) { return in->taken - (int64_t)(in->n - in->at); }

static mu_status corrupt(const mu_input *in, const char *what, const char *why, mu_error *e) {
    return mu_error_set(e, MU_STATUS_DATA, "%s: not valid %s data near byte %lld of the file: %s", in->path, what, (long long)used(in), why);
}

static mu_status truncated(const mu_input *in, mu_error *e) {
    return mu_error_set(e, MU_STATUS_DATA, "%s: truncated: the file ends at byte %lld, inside of its compressed data, after %lld bytes of text",
                        in->path, (long long)in->taken, (long long)in->given);
}

static mu_status check_expansion(const mu_input *in, mu_error *e) {
    if (in->given <= EXPANSION_FREE + EXPANSION_MAX * used(in)) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_DATA,
                        "%s: %lld compressed bytes expand to more than %lld: over %d times as many is refused, behind the first %d MiB; "
                        "if this is a text, decompress the file first",
                        in->path, (long long)used(in), (long long)in->given, EXPANSION_MAX, EXPANSION_FREE >> 20);
}

/* Between members gzip allows zeros (padding of tapes). */
static void skip_zeros(mu_input *in) {
    while (in->at < in->n && !in->block[in->at]) in->at++;
}

static mu_status more_gz(mu_input *in, char *out, size_t room, size_t *n, mu_error *e) {
    z_stream *z = &in->gz;
    z->next_out = (unsigned char *)out, z->avail_out = (uInt)room;
    while (z->avail_out == room) {
        mu_status status = refill(in, e);
        if (!status && !in->open && in->begun) skip_zeros(in);
        if (status) return status;
        if (in->n == 0) return in->open || in->taken == 0 ? truncated(in, e) : MU_STATUS_OK;
        if (in->at == in->n) continue;
        z->next_in = in->block + in->at, z->avail_in = (uInt)(in->n - in->at);
        if (!in->open && inflateReset(z) != Z_OK) return corrupt(in, "gzip", "no decoder", e);
        in->open = true;
        int result = inflate(z, Z_NO_FLUSH);
        in->at = in->n - z->avail_in;
        if (result == Z_STREAM_END) in->open = false, in->begun = true;
        else if (result != Z_OK && result != Z_BUF_ERROR) return corrupt(in, "gzip", z->msg ? z->msg : "unexpected data", e);
        *n = room - z->avail_out;
    }
    return MU_STATUS_OK;
}

static mu_status more_zst(mu_input *in, char *out, size_t room, size_t *n, mu_error *e) {
    ZSTD_outBuffer to = { out, room, 0 };
    while (to.pos == 0) {
        mu_status status = refill(in, e);
        if (status) return status;
        bool ended = in->n == 0;
        ZSTD_inBuffer from = { in->block, in->n, in->at };
        if (ended && !in->open) return in->taken ? MU_STATUS_OK : truncated(in, e);
        size_t hint = ZSTD_decompressStream(in->zst, &to, &from);
        in->at = from.pos;
        if (ZSTD_isError(hint)) return corrupt(in, "zstd", ZSTD_getErrorName(hint), e);
        in->open = hint != 0;
        if (ended && to.pos == 0 && in->open) return truncated(in, e);
    }
    *n = to.pos;
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ opening */

static void open_decoder(mu_input *in) {
    if (mu_file_ends(in->path, ".gz")) {
        in->more = more_gz;
        MU_CHECK(inflateInit2(&in->gz, 15 + 16) == Z_OK, "out of memory");      /* the largest window, gzip's header */
    } else if (mu_file_ends(in->path, ".zst")) {
        in->more = more_zst;
        in->zst = ZSTD_createDStream();
        MU_CHECK(in->zst && !ZSTD_isError(ZSTD_DCtx_setParameter(in->zst, ZSTD_d_windowLogMax, WINDOW_LOG_MAX)), "out of memory");
    } else return;
    in->block = mu_alloc(BLOCK, 1);
}

mu_status mu_input_open(mu_input **out, const char *path, mu_error *e) {
    const char *reason;
    int64_t size;
    *out = NULL;
    int fd = mu_file_open(path, false, &size, &reason);
    if (fd < 0) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", path, reason);
    mu_input *in = *out = mu_alloc(1, sizeof *in);
    *in = (mu_input){ .path = mu_strdup(path), .fd = fd, .size = size, .more = more_plain };
    open_decoder(in);
    return MU_STATUS_OK;
}

mu_status mu_input_read(mu_input *in, char *out, size_t room, size_t *n, mu_error *e) {
    *n = 0;
    mu_status status = in->more(in, out, room < BLOCK ? room : BLOCK, n, e);
    in->given += (int64_t)*n;
    return status || !in->block ? status : check_expansion(in, e);
}

int64_t mu_input_taken(const mu_input *in) { return in->taken; }
int64_t mu_input_size(const mu_input *in) { return in->size; }
bool mu_input_is_compressed(const mu_input *in) { return in->block; }

void mu_input_close(mu_input *in) {
    if (!in) return;
    close(in->fd);
    if (in->more == more_gz) inflateEnd(&in->gz);
    ZSTD_freeDStream(in->zst);
    free(in->block);
    free(in->path);
    free(in);
}
