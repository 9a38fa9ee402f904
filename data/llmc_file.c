/* llmc_file.c - the .bin files of llm.c: 256 int32 (magic number, version, number of tokens, zeros), then the ids. Version 1 (magic
 * 20240520): 16 bits, GPT-2's vocabulary; version 7 (20240801): 32 bits, Llama 3's. GPT-2's end-of-document id stands in front of
 * each document; in files of Llama 3 its beginning-of-text id does.
 * Source: llm.c's dev/data/data_common.py, tinystories.py, fineweb.py. */
#include "data/internal.h"

enum { HEADER_BYTES = 1024 };
static const struct { int32_t magic, version; mu_raw_type type; int32_t start; } kinds[] = { { 20240520, 1, MU_RAW_U16, -1 }, { 20240801, 7, MU_RAW_U32, 128000 } };

mu_status mu_llmc_file_open(mu_raw_tokens *t, const char *path, mu_error *e) {
    int32_t header[3] = { 0 };
    int64_t bytes;
    const char *reason;
    t->fd = mu_file_open(path, false, &bytes, &reason);
    if (t->fd < 0) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", path, reason);
    t->path = mu_strdup(path);
    if (bytes >= (int64_t)sizeof header) {
        mu_status status = mu_raw_read(t->fd, path, 0, header, sizeof header, e);
        if (status) return status;
    }
    int kind = 0;
    while (kind < 2 && kinds[kind].magic != header[0]) kind++;
    if (kind == 2)
        return mu_error_set(e, MU_STATUS_DATA, "%s: not a token file: neither llm.c's (it begins with %d, not with 20240520 or 20240801) nor "
                            "Megatron's (there is no .idx of that name)", path, header[0]);
    if (header[1] != kinds[kind].version)
        return mu_error_set(e, MU_STATUS_DATA, "%s: llm.c token file of version %d, expected %d", path, header[1], kinds[kind].version);
    t->type = kinds[kind].type, t->begin = HEADER_BYTES, t->n = header[2], t->start = kinds[kind].start;
    if (t->n < 0 || bytes != HEADER_BYTES + t->n * (int64_t)mu_raw_size(t->type))
        return mu_error_set(e, MU_STATUS_DATA, "%s: its header says %lld tokens of %zu bytes, but the file has %lld bytes instead of %lld", path,
                            (long long)t->n, mu_raw_size(t->type), (long long)bytes, (long long)(HEADER_BYTES + t->n * (int64_t)mu_raw_size(t->type)));
    return MU_STATUS_OK;
}
