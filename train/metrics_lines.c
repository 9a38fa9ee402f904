/* metrics_lines.c - reads metrics.jsonl line by line; checksums of lines. */
#include "train/run_view.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char checksum_key[] = ",\"xxh3\":\"";
enum { KEY_BYTES = sizeof checksum_key - 1, BLOCK_BYTES = 1 << 16 };
_Static_assert(MU_CHECKSUM_BYTES == KEY_BYTES + 16 + 2, "the key, 16 digits, a quote and a bracket");

void mu_metrics_checksum(const char *line, size_t bytes, char text[MU_CHECKSUM_BYTES + 1]) {
    snprintf(text, MU_CHECKSUM_BYTES + 1, "%s%016llx\"}", checksum_key, (unsigned long long)mu_hash64(line, bytes));
}

bool mu_line_has_checksum(const char *line, size_t bytes) {
    return bytes > MU_CHECKSUM_BYTES && !memcmp(line + bytes - MU_CHECKSUM_BYTES, checksum_key, KEY_BYTES);
}

bool mu_line_checksum_holds(const char *line, size_t bytes) {
    char text[MU_CHECKSUM_BYTES + 1];
    mu_metrics_checksum(line, bytes - MU_CHECKSUM_BYTES, text);
    return !memcmp(line + bytes - MU_CHECKSUM_BYTES, text, MU_CHECKSUM_BYTES);
}

mu_status mu_lines_open(mu_lines *l, const char *path, mu_error *e) {
    *l = (mu_lines){ .path = path, .file = fopen(path, "re") };
    if (!l->file) return mu_error_set(e, MU_STATUS_IO, "%s cannot be read: %s", path, strerror(errno));
    l->text = mu_alloc(MU_LINE_BYTES, 1);
    l->block = mu_alloc(BLOCK_BYTES, 1);
    return MU_STATUS_OK;
}

mu_status mu_lines_close(mu_lines *l, mu_error *e) {
    bool failed = l->file && ferror(l->file);
    if (l->file) fclose(l->file);
    free(l->text);
    free(l->block);
    return failed ? mu_error_set(e, MU_STATUS_IO, "%s cannot be read", l->path) : MU_STATUS_OK;
}

static bool fill(mu_lines *l) {
    if (l->used < l->filled) return true;
    mu_activity_tick();
    l->used = 0;
    l->filled = fread(l->block, 1, BLOCK_BYTES, l->file);
    return l->filled > 0;
}

bool mu_lines_next(mu_lines *l) {
    l->bytes = 0;
    l->ended = false;
    while (!l->ended && fill(l)) {
        const char *part = l->block + l->used, *newline = memchr(part, '\n', l->filled - l->used);
        size_t n = newline ? (size_t)(newline - part) : l->filled - l->used, room = MU_LINE_BYTES + 1 - l->bytes;
        l->ended = newline != NULL;
        l->used += n + l->ended;
        l->end += (int64_t)(n + l->ended);
        if (n < room) memcpy(l->text + l->bytes, part, n);
        l->bytes += n < room ? n : room;
    }
    return l->ended || l->bytes > 0;
}
