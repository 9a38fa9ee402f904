/* text.c - the documents of texts, one at a time: a .txt is one document, so is every line of a .jsonl, and every element of an
 * array in a .json, which holds arrays or objects. A folder holds all of these (folder.c). Compressed files are read as a stream
 * (input.c); lines and columns of messages are those of the text.
 *
 * Memory: the largest document. */
#include "data/internal.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_ROOM = 1 << 18 };
static const int64_t LINE_MAX_BYTES = 128 << 20;

/* Bytes [begin, n) of the buffer are the next of the file, scanned as far as `at`. */
typedef struct {
    const char *path, *key;
    mu_take_document *take;
    void *to;
    int64_t before, documents;      /* bytes of earlier files; documents so far */
    mu_input *in;
    char *buffer;
    size_t begin, at, n, room;
    bool ended;
    int64_t line, column;           /* of `begin`, from 1 and from 0 */
    int64_t most;                   /* bytes of a document */
} reader;

static mu_status deliver(reader *r, const char *text, int64_t bytes, mu_error *e) {
    if (bytes == 0) return MU_STATUS_OK;
    mu_document d = { .text = text, .bytes = bytes, .path = r->path, .line = r->line, .read = r->before + mu_input_taken(r->in) };
    r->documents++;
    return r->take(r->to, &d, e);
}

/* Appends more of the file; at its end sets `ended`. */
static mu_status more(reader *r, mu_error *e) {
    size_t got;
    if ((int64_t)(r->n - r->begin) > r->most)
        return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: a document of more than %lld MiB", r->path, (long long)r->line, (long long)r->most >> 20);
    if (r->n == r->room && r->begin >= r->room / 2 && r->begin) {
        memmove(r->buffer, r->buffer + r->begin, r->n - r->begin);
        r->n -= r->begin, r->at -= r->begin, r->begin = 0;
    } else if (r->n == r->room) r->buffer = mu_realloc(r->buffer, r->room *= 2, 1);
    mu_status status = mu_input_read(r->in, r->buffer + r->n, r->room - r->n, &got, e);
    r->n += got;
    r->ended = got == 0;
    return status;
}

static bool is_blank(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (!memchr(" \t\r\n", text[i], 4)) return false;
    return true;
}

/* Bytes of the byte order mark with which some editors begin a UTF-8 file. */
static size_t byte_order_mark(const char *text, size_t bytes) {
    return bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3) ? 3 : 0;
}

/* ------------------------------------------------------------------ .txt */

/* Removes a byte order mark, also behind empty lines, which stay. Returns the text without it. */
static char *without_mark(char *text, size_t *bytes) {
    size_t blank = 0;
    while (blank < *bytes && is_blank(text + blank, 1)) blank++;
    size_t mark = byte_order_mark(text + blank, *bytes - blank);
    memmove(text + mark, text, blank);
    *bytes -= mark;
    return text + mark;
}

/* Any encoding is allowed, but a NUL byte means that this is not a text. */
static mu_status read_txt(reader *r, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    r->most = MU_DOMAIN_BYTES_MAX;
    while (!status && !r->ended) {
        status = more(r, e);
        const char *nul = status ? NULL : memchr(r->buffer + r->at, '\0', r->n - r->at);
        if (nul) status = mu_error_set(e, MU_STATUS_DATA, "%s: not a text: NUL at byte %td", r->path, nul - r->buffer);
        r->at = r->n;
    }
    if (status) return status;
    const char *text = without_mark(r->buffer, &r->n);
    return deliver(r, text, (int64_t)r->n, e);
}

/* ------------------------------------------------------------------ JSON */

/* The document in the first `bytes` of the buffer, which are changed. */
static mu_status take_json(reader *r, size_t bytes, bool string_allowed, mu_error *e) {
    mu_json_text t;
    if (!mu_json_text_find(&t, r->buffer + r->begin, (int64_t)bytes, r->key))
        return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: bad JSON at byte %lld: %s", r->path, (long long)(r->line + t.line),
                            (long long)(t.at + 1 + (t.line ? 0 : r->column)), t.why);
    if (!t.is_object && !(t.is_string && string_allowed))
        return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: not a JSON object", r->path, (long long)r->line);
    if (!t.text)
        return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: no string named \"%s\"; data.text_key, or --text-key of a command, selects another key", r->path,
                            (long long)r->line, r->key);
    if (memchr(t.text, '\0', (size_t)t.bytes))
        return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: not a text: \"%s\" has a NUL character", r->path, (long long)r->line, r->key);
    return deliver(r, t.text, t.bytes, e);
}

static mu_status take_line(reader *r, size_t bytes, bool first, mu_error *e) {
    size_t mark = byte_order_mark(r->buffer + r->begin, bytes);
    if (mark && !first)
        return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: a byte-order mark (U+FEFF) in the middle of the file", r->path, (long long)r->line);
    r->begin += mark;
    return is_blank(r->buffer + r->begin, bytes - mark) ? MU_STATUS_OK : take_json(r, bytes - mark, false, e);
}

static mu_status read_jsonl(reader *r, mu_error *e) {
    bool begun = false;
    mu_status status = MU_STATUS_OK;
    while (!status && !(r->ended && r->begin == r->n)) {
        const char *end = memchr(r->buffer + r->at, '\n', r->n - r->at);
        r->at = end ? (size_t)(end - r->buffer) : r->n;
        if (!end && !r->ended) {
            status = more(r, e);
            continue;
        }
        bool blank = is_blank(r->buffer + r->begin, r->at - r->begin);
        status = take_line(r, r->at - r->begin, !begun, e);
        begun = begun || !blank;
        r->at += end != NULL;
        r->begin = r->at;
        r->line++;
    }
    return status;
}

/* ------------------------------------------------------------------ .json */

/* Moves behind the first `bytes`, of which `lines` are line breaks, the last one ending at `last`. */
static void advance(reader *r, size_t bytes, int64_t lines, size_t last) {
    r->begin += bytes;
    r->line += lines;
    r->column = (lines ? 0 : r->column) + (int64_t)(bytes - last);
    if (r->at < r->begin) r->at = r->begin;
}

/* The next character that is no white space; -1 at the end of the file. */
static mu_status next_character(reader *r, int *c, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (*c = -1; !status; advance(r, 1, *c == '\n', *c == '\n')) {
        while (!status && r->begin == r->n && !r->ended) status = more(r, e);
        if (status) return status;
        *c = r->begin == r->n ? -1 : (unsigned char)r->buffer[r->begin];
        if (*c < 0 || !memchr(" \t\r\n", *c, 4)) break;
    }
    return status;
}

typedef struct {
    int64_t depth, lines;           /* of open brackets; line breaks */
    size_t last;                    /* behind the last line break, from the element's begin */
    bool string, escape;
} scan;

/* Continues to scan an element; true behind its last byte. Whether it is valid is not looked at. */
static bool scan_element(reader *r, scan *s) {
    while (r->at < r->n) {
        char c = r->buffer[r->at++];
        if (c == '\n') s->lines++, s->last = r->at - r->begin;
        if (s->escape) s->escape = false;
        else if (s->string) s->escape = c == '\\', s->string = c != '"';
        else if (c == '"') s->string = true;
        else if (c == '{' || c == '[') s->depth++;
        else if (c == '}' || c == ']') s->depth--;
        if (!s->string && s->depth <= 0) return true;
    }
    return false;
}

static mu_status take_element(reader *r, mu_error *e) {
    scan s = { 0 };
    mu_status status = MU_STATUS_OK;
    r->at = r->begin;
    while (!status && !scan_element(r, &s) && !r->ended) status = more(r, e);
    size_t bytes = r->at - r->begin;
    if (!status) status = take_json(r, bytes, true, e);
    advance(r, bytes, s.lines, s.last);
    return status;
}

static mu_status unexpected(const reader *r, int c, const char *expected, mu_error *e) {
    if (c < 0) return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: bad JSON: %s expected at the end of the file", r->path, (long long)r->line, expected);
    return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: bad JSON at byte %lld: %s expected near '%c'", r->path, (long long)r->line,
                        (long long)r->column + 1, expected, c);
}

/* Objects, and arrays of objects and strings; several may follow each other (many a .json holds a line for each document). */
static mu_status read_json(reader *r, mu_error *e) {
    enum { OUTSIDE, FIRST, ELEMENT, BEHIND } place = OUTSIDE;      /* in an array: where */
    static const char *const expected[] = { "an object or an array", "an object, a string or ']'", "an object or a string", "',' or ']'" };
    mu_status status = MU_STATUS_OK;
    while (!r->ended && r->n < 3 && !status) status = more(r, e);
    if (!status) advance(r, byte_order_mark(r->buffer, r->n), 0, 0);
    for (int c = 0; !status && !(status = next_character(r, &c, e)) && (c >= 0 || place != OUTSIDE);) {
        bool in_array = place == FIRST || place == ELEMENT, closes = c == ']' && (place == FIRST || place == BEHIND);
        if ((c == '{' && place != BEHIND) || (c == '"' && in_array)) {
            status = take_element(r, e);
            place = in_array ? BEHIND : OUTSIDE;
            continue;
        }
        if (c == '[' && place == OUTSIDE) place = FIRST;
        else if (c == ',' && place == BEHIND) place = ELEMENT;
        else if (closes) place = OUTSIDE;
        else return unexpected(r, c, expected[place], e);
        advance(r, 1, 0, 0);
    }
    return status;
}

/* ------------------------------------------------------------------ files and folders */

/* The name without .gz or .zst ends with `ending`. */
static bool ends(const char *name, const char *ending) {
    char endings[3][16];
    static const char *const packed[3] = { "", ".gz", ".zst" };
    for (int i = 0; i < 3; i++) {
        snprintf(endings[i], sizeof endings[i], "%s%s", ending, packed[i]);
        if (mu_file_ends(name, endings[i])) return true;
    }
    return false;
}

bool mu_text_named(const char *name) { return ends(name, ".txt") || ends(name, ".jsonl") || ends(name, ".json"); }

static mu_status read_file(reader *r, mu_error *e) {
    mu_status status = mu_input_open(&r->in, r->path, e);
    if (status) return status;
    bool txt = ends(r->path, ".txt"), whole = txt && !mu_input_is_compressed(r->in) && mu_input_size(r->in) < MU_DOMAIN_BYTES_MAX;
    r->begin = r->at = r->n = 0, r->ended = false, r->line = 1, r->column = 0, r->most = LINE_MAX_BYTES;
    r->room = whole ? (size_t)mu_input_size(r->in) + 1 : FIRST_ROOM;
    r->buffer = mu_realloc(NULL, r->room, 1);
    status = txt ? read_txt(r, e) : ends(r->path, ".jsonl") ? read_jsonl(r, e) : read_json(r, e);
    r->before += mu_input_taken(r->in);
    mu_input_close(r->in);
    free(r->buffer);
    return status;
}

mu_status mu_text_each(const char *path, const char *text_key, mu_take_document *take, void *to, mu_error *e) {
    MU_CHECK(path && text_key && take, "path %s, key %s or the callback is NULL", path ? path : "NULL", text_key ? text_key : "NULL");
    mu_text_files f;
    reader r = { .key = text_key, .take = take, .to = to };
    mu_status status = mu_text_files_find(&f, path, e);
    for (size_t i = 0; !status && i < f.n; i++) {
        int64_t documents = r.documents;
        r.path = f.list[i];
        status = read_file(&r, e);
        if (r.documents == documents) mu_text_files_empty(&f, i);
    }
    if (!status) mu_text_files_log(&f);
    if (!status && r.documents == 0)
        status = mu_error_set(e, MU_STATUS_DATA, "no text in %s (%zu files %s, each also .gz or .zst)", path, f.n, MU_TEXT_NAMES);
    mu_text_files_free(&f);
    return status;
}

mu_status mu_text_bytes(const char *path, int64_t *bytes, mu_error *e) {
    mu_text_files f;
    mu_status status = mu_text_files_find(&f, path, e);
    *bytes = 0;
    for (size_t i = 0; !status && i < f.n; i++) {
        mu_input *in;
        status = mu_input_open(&in, f.list[i], e);
        if (!status) *bytes += mu_input_size(in);
        mu_input_close(in);
    }
    mu_text_files_free(&f);
    return status;
}

/* ------------------------------------------------------------------ a domain */

static mu_status of_domain(const char *domain, mu_status status, const mu_error *why, mu_error *e) {
    return status ? mu_error_set(e, status, "domain \"%s\": %-s", domain, why->text) : MU_STATUS_OK;
}

static mu_status add_document(void *to, const mu_document *d, mu_error *e) {
    mu_domain_maker *m = to;
    if (d->bytes > MU_DOMAIN_BYTES_MAX - m->domain->text_bytes)
        return mu_error_set(e, MU_STATUS_DATA, "more than %lld GiB of text, reached at %s",
                            (long long)(MU_DOMAIN_BYTES_MAX >> 30), d->path);
    mu_domain_add(m, d->text, d->bytes, d->read);
    return MU_STATUS_OK;
}

mu_status mu_text_read(mu_domain_maker *m, mu_error *e) {
    mu_error why;
    return of_domain(m->domain->name, mu_text_each(m->path, m->text_key, add_document, m, &why), &why, e);
}

/* Bytes of the file, decompressed. */
static mu_status count_bytes(const char *path, int64_t *bytes, mu_error *e) {
    static const size_t some = 1 << 17;
    mu_input *in;
    mu_status status = mu_input_open(&in, path, e);
    if (status) return status;
    char *block = mu_alloc(some, 1);
    size_t n = some;
    *bytes = mu_input_size(in);
    for (int64_t all = 0; mu_input_is_compressed(in) && !status && n > 0 && all <= MU_DOMAIN_BYTES_MAX; *bytes = all += (int64_t)n)
        status = mu_input_read(in, block, some, &n, e);
    mu_input_close(in);
    free(block);
    return status;
}

mu_status mu_text_measure(mu_domain_size *size, const char *domain, const char *path, mu_error *e) {
    mu_text_files f;
    mu_error why;
    mu_status status = mu_text_files_find(&f, path, &why);
    for (size_t i = 0; !status && i < f.n; i++) {
        int64_t bytes = 0;
        status = count_bytes(f.list[i], &bytes, &why);
        size->tokens += bytes, size->documents++;
    }
    mu_text_files_free(&f);
    return of_domain(domain, status, &why, e);
}
