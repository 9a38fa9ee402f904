/* metrics_lines.c - reads metrics.jsonl and events.jsonl line by line; decides which lines are valid. */
#include "train/lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char checksum_key[] = ",\"xxh3\":\"";
enum { KEY_BYTES = sizeof checksum_key - 1, BLOCK_BYTES = 1 << 16 };
_Static_assert(MU_CHECKSUM_BYTES == KEY_BYTES + 16 + 2, "the key, 16 digits, a quote and a bracket");

void mu_line_checksum(const char *line, size_t bytes, char text[MU_CHECKSUM_BYTES + 1]) {
    snprintf(text, MU_CHECKSUM_BYTES + 1, "%s%016llx\"}", checksum_key, (unsigned long long)mu_hash64(line, bytes));
}

/* ------------------------------------------------------------------ lines of a file */

mu_status mu_lines_open(mu_lines *l, const char *path, mu_lines_format format, mu_error *e) {
    *l = (mu_lines){ .path = path, .format = format, .checked = format == MU_LINES_EVENTS, .file = fopen(path, "re") };
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
    if (l->ended || !l->end) l->begin = l->end;
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

static bool go_to(mu_lines *l, int64_t offset) {
    l->begin = l->end = offset;
    l->used = l->filled = 0;
    clearerr(l->file);
    return !fseeko(l->file, (off_t)offset, SEEK_SET);
}

bool mu_lines_follow(mu_lines *l) {
    struct stat named, open;
    if (stat(l->path, &named) || fstat(fileno(l->file), &open)) return false;
    return named.st_ino == open.st_ino && named.st_dev == open.st_dev && open.st_size >= l->end && go_to(l, l->begin);
}

void mu_lines_tail(mu_lines *l, int64_t bytes) {
    struct stat open;
    if (!fstat(fileno(l->file), &open) && open.st_size > bytes && go_to(l, open.st_size - bytes)) (void)mu_lines_next(l);
}

/* ------------------------------------------------------------------ the beginning of a line: its step and kind */

static const char *const first_key[MU_LINE_KINDS] = {
    [MU_LINE_TRAINING] = ",\"train/tokens\":", [MU_LINE_STATISTICS] = ",\"stats/steps\":", [MU_LINE_EVALUATION] = ",\"val/ce_loss\":",
};

/* Compares the beginnings of two texts, as far as both go. */
static bool begins_alike(const char *text, size_t bytes, const char *other) {
    size_t n = strlen(other);
    return !memcmp(text, other, bytes < n ? bytes : n);
}

/* What the first bytes of a line say, of which only some may be there. */
typedef struct {
    int64_t step;
    bool valid, whole;              /* whole: the number of the step has ended */
    bool may_be[MU_LINE_KINDS];     /* of which kind it may be; exactly one when the key is complete */
} beginning;

static beginning begin_of(const mu_lines *l) {
    static const char step_key[] = "{\"step\":";
    beginning b = { .valid = begins_alike(l->text, l->bytes, step_key) };
    size_t start = sizeof step_key - 1, at = start;
    for (; at < l->bytes && l->text[at] >= '0' && l->text[at] <= '9' && b.valid; at++) {
        b.valid = b.step <= INT64_MAX / 100;
        b.step = 10 * b.step + l->text[at] - '0';
    }
    b.whole = at < l->bytes;
    if (b.whole && (at == start || l->text[at] != ',')) b.valid = false;
    if (!b.whole || !b.valid) return b;
    b.may_be[MU_LINE_OTHER] = true;
    for (int kind = 0; kind < MU_LINE_OTHER && l->format == MU_LINES_METRICS; kind++)
        if ((b.may_be[kind] = begins_alike(l->text + at, l->bytes - at, first_key[kind]))) b.may_be[MU_LINE_OTHER] = false;
    return b;
}

bool mu_line_is_torn(const mu_lines *l, int64_t covered) {
    bool texts = l->format == MU_LINES_EVENTS;
    if (l->ended || l->bytes > MU_LINE_BYTES || (l->bytes && l->text[l->bytes - 1] == '}')) return false;
    for (size_t i = 0; i < l->bytes; i++) {
        unsigned char c = (unsigned char)l->text[i];
        if (texts ? c < ' ' || c == 127 : c <= ' ' || c > '~' || c == '}') return false;
    }
    beginning b = begin_of(l);
    bool lost = !b.whole;           /* digits of the step may be missing */
    for (int kind = 0; kind < MU_LINE_KINDS; kind++) lost |= b.may_be[kind] && b.step >= covered + (kind != MU_LINE_EVALUATION);
    return b.valid && lost;
}

/* ------------------------------------------------------------------ a line */

/* -1: the checksum is wrong; 0: there is none; 1: it matches. */
static int check(const mu_lines *l) {
    char text[MU_CHECKSUM_BYTES + 1];
    if (l->bytes <= MU_CHECKSUM_BYTES) return 0;
    size_t body = l->bytes - MU_CHECKSUM_BYTES;
    if (memcmp(l->text + body, checksum_key, KEY_BYTES)) return 0;
    mu_line_checksum(l->text, body, text);
    return memcmp(l->text + body, text, MU_CHECKSUM_BYTES) ? -1 : 1;
}

static bool is_value(const json_t *value, mu_lines_format format) {
    return json_is_number(value) || (format == MU_LINES_EVENTS && (json_is_string(value) || json_is_boolean(value)));
}

static bool has_values_only(json_t *line, mu_lines_format format) {
    const char *key;
    json_t *value;
    json_object_foreach(line, key, value) {
        if (!json_is_array(value) && !json_is_null(value) && !is_value(value, format)) return false;
        for (size_t i = 0; i < json_array_size(value); i++)
            if (!is_value(json_array_get(value, i), format)) return false;
    }
    return json_is_object(line);
}

static mu_line_kind kind_of(const beginning *b) {
    int kind = 0;
    while (kind < MU_LINE_OTHER && !b->may_be[kind]) kind++;
    return (mu_line_kind)kind;
}

bool mu_line_read(mu_lines *l, mu_line *line) {
    enum { MOST = 4 * MU_LINE_KINDS };                                  /* a step times this fits */
    int checked = l->bytes <= MU_LINE_BYTES ? check(l) : -1;
    beginning b = begin_of(l);
    *line = (mu_line){ b.step, kind_of(&b), checked > 0, NULL };
    if (checked < l->checked || !b.valid || b.step < 1 || b.step > INT64_MAX / MOST) return false;
    line->json = json_loadb(l->text, l->bytes, JSON_REJECT_DUPLICATES, NULL);
    if (checked) json_object_del(line->json, "xxh3");
    bool valid = has_values_only(line->json, l->format) && json_is_integer(json_object_get(line->json, "step"));
    l->checked |= valid && checked;
    if (!valid) json_decref(line->json), line->json = NULL;
    return valid;
}
