/* safetensors.c - reads Hugging Face's safetensors files, as strictly as the format is defined (the README of
 * github.com/huggingface/safetensors), and writes them.
 *
 *     8 bytes: N, little-endian | N bytes: JSON, may end with spaces | data
 *     {"__metadata__": {"format": "pt"}, "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
 *
 * Offsets count from the beginning of the data, which the tensors fill without holes and overlaps. A model is one file, or
 * several with model.safetensors.index.json: {"metadata": {"total_size": BYTES}, "weight_map": {"a.weight": "FILE", ...}}.
 *
 * Only headers are in memory. The JSON is parsed in place, so that a hostile header takes little more than its own bytes. */
#include "base/base.h"
#include "base/internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* The limit of the format; here it holds for all headers of a model together, with the index. */
enum { TEXT_MAX = 100000000, TENSORS_MAX = 1 << 19, FILES_MAX = 1 << 14, DEPTH_MAX = 32 };

static const struct { const char *name; int bits; } dtypes[] = {
    { "F32", 32 }, { "BF16", 16 }, { "F16", 16 }, { "F64", 64 }, { "BOOL", 8 }, { "U8", 8 }, { "I8", 8 }, { "F8_E5M2", 8 },
    { "F8_E4M3", 8 }, { "F8_E8M0", 8 }, { "F4", 4 }, { "F6_E2M3", 6 }, { "F6_E3M2", 6 }, { "I16", 16 }, { "U16", 16 },
    { "I32", 32 }, { "U32", 32 }, { "I64", 64 }, { "U64", 64 }, { "C64", 64 },
};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };
static const char single_name[] = "model.safetensors", index_name[] = "model.safetensors.index.json";

/* ------------------------------------------------------------------ JSON, in place */

typedef struct {
    const char *path;
    char *start, *at, *end;
    mu_error *e;
    bool failed;
} scan;

static bool bad(scan *s, const char *what) {
    if (!s->failed) mu_error_set(s->e, MU_STATUS_DATA, "%s: JSON, byte %lld: %s", s->path, (long long)(s->at - s->start), what);
    s->failed = true;
    return false;
}

static void skip_space(scan *s) {
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\r' || *s->at == '\t')) s->at++;
}

static bool is_next(scan *s, char c) {
    skip_space(s);
    return s->at < s->end && *s->at == c;
}

static bool take(scan *s, char c) {
    char what[] = "expected ' '";
    what[10] = c;
    if (!is_next(s, c)) return bad(s, s->at < s->end ? what : "the text ends too early");
    s->at++;
    return true;
}

static bool hex4(scan *s, uint32_t *code) {
    *code = 0;
    for (int i = 0; i < 4; i++) {
        char c = s->at < s->end ? *s->at : ' ';
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) return bad(s, "expected four hexadecimal digits after \\u");
        *code = *code << 4 | (uint32_t)digit;
        s->at++;
    }
    return true;
}

static char *put_utf8(char *to, uint32_t c) {
    if (c < 0x80) return *to++ = (char)c, to;
    if (c < 0x800) *to++ = (char)(0xC0 | c >> 6);
    else {
        if (c < 0x10000) *to++ = (char)(0xE0 | c >> 12);
        else *to++ = (char)(0xF0 | c >> 18), *to++ = (char)(0x80 | (c >> 12 & 63));
        *to++ = (char)(0x80 | (c >> 6 & 63));
    }
    return *to++ = (char)(0x80 | (c & 63)), to;
}

/* After a backslash. */
static bool take_escape(scan *s, char **to) {
    static const char letter[] = "\"\\/bfnrt", plain[] = "\"\\/\b\f\n\r\t";
    char c = s->at < s->end ? *s->at++ : '\0';
    const char *known = c ? strchr(letter, c) : NULL;
    uint32_t code, low;
    if (known) return *(*to)++ = plain[known - letter], true;
    if (c != 'u') return bad(s, "unknown escape");
    if (!hex4(s, &code)) return false;
    if (code >= 0xD800 && code < 0xDC00 && s->end - s->at >= 6 && s->at[0] == '\\' && s->at[1] == 'u') {
        s->at += 2;
        if (!hex4(s, &low)) return false;
        if (low < 0xDC00 || low > 0xDFFF) return bad(s, "half of a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code == 0) return bad(s, "a NUL character");
    if (code >= 0xD800 && code <= 0xDFFF) return bad(s, "half of a surrogate pair");
    return *to = put_utf8(*to, code), true;
}

/* *text: the characters, NUL-terminated, where the JSON was: an escape is longer than its character. */
static bool take_string(scan *s, char **text) {
    if (!take(s, '"')) return false;
    char *to = *text = s->at;
    for (;;) {
        uint32_t code;
        if (s->at >= s->end) return bad(s, "the text ends within a string");
        if (*s->at == '"') break;
        if (*s->at == '\\') {
            s->at++;
            if (!take_escape(s, &to)) return false;
            continue;
        }
        int n = mu_utf8_decode(s->at, (size_t)(s->end - s->at), &code);
        if (!n) return bad(s, "not UTF-8");
        if (code < 0x20) return bad(s, "a control character within a string");
        memmove(to, s->at, (size_t)n);
        to += n, s->at += n;
    }
    s->at++;
    *to = '\0';
    return true;
}

static bool take_number(scan *s, int64_t *n) {
    skip_space(s);
    const char *first = s->at;
    *n = 0;
    for (; s->at < s->end && *s->at >= '0' && *s->at <= '9'; s->at++) {
        int digit = *s->at - '0';
        if (*n > (INT64_MAX - digit) / 10) return bad(s, "a number above 2^63 - 1");
        *n = 10 * *n + digit;
    }
    bool whole = s->at > first && (*first != '0' || s->at == first + 1) && (s->at == s->end || !strchr(".eE", *s->at));
    return whole || bad(s, "expected an integer of at least 0");
}

/* The next key of an object, whose '{' was taken; false at its end and on failure. *n: keys so far. */
static bool next_key(scan *s, int64_t *n, char **key) {
    if (is_next(s, '}')) return s->at++, false;
    if ((*n)++ && (!take(s, ',') || !is_next(s, '"'))) return bad(s, "expected a key");
    return take_string(s, key) && take(s, ':');
}

static bool skip_value(scan *s, int depth);

static bool skip_list(scan *s, int depth) {
    for (int64_t n = 0; s->at++, !is_next(s, ']') || n; n++) {
        if (!skip_value(s, depth + 1)) return false;
        if (is_next(s, ']')) break;
        if (!is_next(s, ',')) return take(s, ',');
    }
    s->at++;
    return true;
}

static bool skip_value(scan *s, int depth) {
    int64_t n = 0;
    char *text;
    if (depth > DEPTH_MAX) return bad(s, "nested too deeply");
    if (is_next(s, '"')) return take_string(s, &text);
    if (is_next(s, '[')) return skip_list(s, depth);
    if (is_next(s, '{')) {
        s->at++;
        while (next_key(s, &n, &text))
            if (!skip_value(s, depth + 1)) return false;
        return !s->failed;
    }
    char *first = s->at;
    while (s->at < s->end && (strchr("+-.", *s->at) || (*s->at >= '0' && *s->at <= '9') || ((*s->at | 32) >= 'a' && (*s->at | 32) <= 'z'))) s->at++;
    return s->at > first || bad(s, "expected a value");
}

/* ------------------------------------------------------------------ headers */

typedef struct { char *path, *text; int64_t data, bytes; } source;     /* data: where it begins */
struct mu_safetensors {
    char *path;
    source *files;
    int n_files, n, capacity;
    int64_t text_left;          /* bytes that headers may still have */
    mu_safetensor *list, **by_name;
    int fd, open_file;          /* open_file -1: none */
};

static int dtype_named(const char *name) {
    for (int i = 0; i < N_DTYPES; i++)
        if (!strcmp(dtypes[i].name, name)) return i;
    return -1;
}

const char *mu_safetensors_dtype_name(mu_safetensors_dtype dtype) { return dtypes[dtype].name; }

static bool take_shape(scan *s, mu_safetensor *t) {
    if (!take(s, '[')) return false;
    while (!is_next(s, ']')) {
        if (t->n_dims && !take(s, ',')) return false;
        if (t->n_dims == MU_SAFETENSORS_DIMS) return bad(s, "a tensor of more than 8 dimensions");
        if (!take_number(s, &t->shape[t->n_dims++])) return false;
    }
    s->at++;
    return true;
}

static bool take_offsets(scan *s, mu_safetensor *t) {
    return take(s, '[') && take_number(s, &t->begin) && take(s, ',') && take_number(s, &t->end) && take(s, ']');
}

static bool take_dtype(scan *s, mu_safetensor *t) {
    char *name;
    if (!take_string(s, &name)) return false;
    int dtype = dtype_named(name);
    t->dtype = (mu_safetensors_dtype)dtype;
    return dtype >= 0 || bad(s, "unknown dtype");
}

/* Shape, dtype and offsets agree; nothing overflows. */
static bool check_size(scan *s, mu_safetensor *t) {
    int64_t bits;
    t->count = 1;
    bool fits = true;
    for (int i = 0; i < t->n_dims; i++) fits &= !__builtin_mul_overflow(t->count, t->shape[i], &t->count);
    fits &= !__builtin_mul_overflow(t->count, (int64_t)dtypes[t->dtype].bits, &bits);
    if (!fits) return bad(s, "a shape whose size overflows 64 bits");
    if (t->begin > t->end) return bad(s, "data_offsets that end before they begin");
    return (bits % 8 == 0 && bits / 8 == t->end - t->begin) || bad(s, "data_offsets that do not match dtype and shape");
}

static bool take_tensor(scan *s, mu_safetensor *t) {
    static const struct { const char *key; bool (*take)(scan *s, mu_safetensor *t); } fields[3] = {
        { "dtype", take_dtype }, { "shape", take_shape }, { "data_offsets", take_offsets }
    };
    int64_t n = 0;
    unsigned seen = 0;
    char *key;
    if (!take(s, '{')) return false;
    while (next_key(s, &n, &key)) {
        unsigned i = 0;
        while (i < 3 && strcmp(key, fields[i].key)) i++;
        if (i == 3) return bad(s, "a key other than dtype, shape and data_offsets");
        if (seen & 1u << i) return bad(s, "a duplicate key");
        seen |= 1u << i;
        if (!fields[i].take(s, t)) return false;
    }
    if (!s->failed && seen != 7) return bad(s, "a tensor without dtype, shape or data_offsets");
    return !s->failed && check_size(s, t);
}

static bool take_metadata(scan *s) {
    int64_t n = 0;
    char *text;
    if (!take(s, '{')) return false;
    while (next_key(s, &n, &text))
        if (!take_string(s, &text)) return false;
    return !s->failed;
}

static bool take_header(mu_safetensors *m, scan *s, int file) {
    int64_t n = 0;
    bool metadata = false;
    char *key;
    if (s->at == s->end || *s->at != '{') return bad(s, "the header does not begin with {");
    s->at++;
    while (next_key(s, &n, &key)) {
        if (!strcmp(key, "__metadata__")) {
            if (metadata) return bad(s, "__metadata__ twice");
            if (!take_metadata(s)) return false;
            metadata = true;
            continue;
        }
        if (m->n == TENSORS_MAX) return bad(s, "more than 524288 tensors");
        if (m->n == m->capacity) m->list = mu_realloc(m->list, (size_t)(m->capacity = 2 * m->capacity + 64), sizeof *m->list);
        mu_safetensor *t = &m->list[m->n];
        *t = (mu_safetensor){ .name = key, .file = file };
        if (!take_tensor(s, t)) {
            mu_error_add(s->e, MU_STATUS_DATA, "  tensor %s", key);
            return false;
        }
        m->n++;
    }
    skip_space(s);
    return !s->failed && (s->at == s->end || bad(s, "text after the header's }"));
}

static int by_offset(const void *a, const void *b) {
    const mu_safetensor *x = *(mu_safetensor *const *)a, *y = *(mu_safetensor *const *)b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* The tensors from number `first` on fill the data of their file exactly. */
static mu_status check_layout(const mu_safetensors *m, int first, const source *f, mu_error *e) {
    int n = m->n - first;
    const mu_safetensor **order = mu_alloc((size_t)n + 1, sizeof *order);
    for (int i = 0; i < n; i++) order[i] = &m->list[first + i];
    qsort(order, (size_t)n, sizeof *order, by_offset);
    int64_t at = 0, room = f->bytes - f->data;
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < n && status == MU_STATUS_OK; i++) {
        if (order[i]->begin != at)
            status = mu_error_set(e, MU_STATUS_DATA, "%s: tensor %s begins at byte %lld of the data, but %s %lld", f->path, order[i]->name,
                                  (long long)order[i]->begin, order[i]->begin < at ? "overlaps the one before, which ends at" :
                                  "there is a hole from", (long long)at);
        at = order[i]->end;
    }
    if (status == MU_STATUS_OK && at != room)
        status = mu_error_set(e, MU_STATUS_DATA, "%s: the tensors have %lld bytes, but the file has %lld bytes of data%s", f->path,
                              (long long)at, (long long)room, at > room ? ": it is truncated" : "");
    free(order);
    return status;
}

static bool read_all(int fd, int64_t at, void *to, int64_t bytes) {
    for (char *p = to; bytes > 0;) {
        ssize_t n = pread(fd, p, (size_t)(bytes < 1 << 30 ? bytes : 1 << 30), at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return errno = n ? errno : ENODATA, false;
        p += n, at += n, bytes -= n;
    }
    return true;
}

/* The length of the header; -1 when the file cannot hold one. */
static int64_t header_bytes(int fd, int64_t bytes) {
    unsigned char head[8];
    uint64_t n = 0;
    if (bytes < 8 || !read_all(fd, 0, head, 8)) return -1;
    for (int i = 7; i >= 0; i--) n = n << 8 | head[i];
    return n > INT64_MAX ? INT64_MAX : (int64_t)n;
}

/* What a file is whose first eight characters were read as the length of a header; NULL: unknown. */
static const char *other_file(int64_t n) {
    char text[9] = "";
    for (int i = 0; i < 8; i++) text[i] = (char)(n >> 8 * i);
    if (!strcmp(text, "version ")) return "a pointer of Git LFS";
    return !strcasecmp(text, "<!doctyp") || !strncasecmp(text, "<html", 5) ? "a page of HTML" : NULL;
}

static mu_status read_header(mu_safetensors *m, source *f, int fd, mu_error *e) {
    int64_t n = header_bytes(fd, f->bytes);
    if (n < 0) return mu_error_set(e, MU_STATUS_DATA, "%s: %lld bytes are too few for a safetensors file", f->path, (long long)f->bytes);
    if (other_file(n)) return mu_error_set(e, MU_STATUS_DATA, "%s: not the weights, but %s; fetch the file itself", f->path, other_file(n));
    if (n > TEXT_MAX)
        return mu_error_set(e, MU_STATUS_DATA, "%s: not a safetensors file: a header of %lld bytes; at most %d are allowed", f->path,
                            (long long)n, TEXT_MAX);
    if (n > m->text_left)
        return mu_error_set(e, MU_STATUS_DATA, "%s: the headers of the files have more than %d bytes together", f->path, TEXT_MAX);
    if (n > f->bytes - 8)
        return mu_error_set(e, MU_STATUS_DATA, "%s: a header of %lld bytes in a file of %lld: not a safetensors file, or truncated", f->path,
                            (long long)n, (long long)f->bytes);
    m->text_left -= n;
    f->data = 8 + n;
    f->text = mu_alloc((size_t)n + 1, 1);
    if (!read_all(fd, 8, f->text, n)) return mu_error_set(e, MU_STATUS_IO, "%s: cannot be read: %s", f->path, strerror(errno));
    return MU_STATUS_OK;
}

static int compare_names(const void *a, const void *b) {
    return strcmp((*(mu_safetensor *const *)a)->name, (*(mu_safetensor *const *)b)->name);
}

static mu_status sort_names(mu_safetensors *m, mu_error *e) {
    m->by_name = mu_alloc((size_t)m->n + 1, sizeof *m->by_name);
    for (int i = 0; i < m->n; i++) m->by_name[i] = &m->list[i];
    qsort(m->by_name, (size_t)m->n, sizeof *m->by_name, compare_names);
    for (int i = 0; i < m->n; i++) m->by_name[i]->number = i;
    for (int i = 1; i < m->n; i++) {
        const mu_safetensor *a = m->by_name[i - 1], *b = m->by_name[i];
        if (!strcmp(a->name, b->name))
            return mu_error_set(e, MU_STATUS_DATA, a->file == b->file ? "%s: tensor %s is there twice" : "%s: tensor %s is in %s, too",
                                m->files[a->file].path, a->name, m->files[b->file].path);
    }
    return MU_STATUS_OK;
}

/* A tensor that is there twice is no error of the layout. */
static mu_status name_twice(mu_safetensors *m, mu_status status, mu_error *e) {
    mu_error twice;
    return sort_names(m, &twice) == MU_STATUS_OK ? status : mu_error_set(e, MU_STATUS_DATA, "%-s", twice.text);
}

static mu_status add_file(mu_safetensors *m, char *path, mu_error *e) {
    const char *reason;
    int first = m->n, number = m->n_files;
    if (number == FILES_MAX) {
        free(path);
        return mu_error_set(e, MU_STATUS_DATA, "%s: more than %d files", m->path, FILES_MAX);
    }
    m->files = mu_realloc(m->files, (size_t)number + 1, sizeof *m->files);
    source *f = &m->files[m->n_files++];
    *f = (source){ .path = path };
    int fd = mu_file_open(path, false, &f->bytes, &reason);
    if (fd < 0) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", path, reason);
    mu_status status = read_header(m, f, fd, e);
    close(fd);
    if (status != MU_STATUS_OK) return status;
    scan s = { path, f->text, f->text, f->text + (f->data - 8), e, false };
    if (!take_header(m, &s, number)) return MU_STATUS_DATA;
    status = check_layout(m, first, f, e);
    return status == MU_STATUS_OK ? status : name_twice(m, status, e);
}

/* ------------------------------------------------------------------ folders */

typedef struct { const char *name, *file; } mapped;

static int compare_files(const void *a, const void *b) { return strcmp(((const mapped *)a)->file, ((const mapped *)b)->file); }
static int compare_keys(const void *a, const void *b) { return strcmp(((const mapped *)a)->name, ((const mapped *)b)->name); }

static bool take_map(scan *s, mapped **map, int *n) {
    int64_t keys = 0, room = 0;
    char *name, *file;
    if (!take(s, '{')) return false;
    while (next_key(s, &keys, &name)) {
        if (!take_string(s, &file)) return false;
        if (!file[0] || strchr(file, '/') || !strcmp(file, "..")) return bad(s, "a file name that is empty or has a '/'");
        if (*n == TENSORS_MAX) return bad(s, "more than 524288 tensors");
        if (*n == room) *map = mu_realloc(*map, (size_t)(room = 2 * room + 64), sizeof **map);
        (*map)[(*n)++] = (mapped){ name, file };
    }
    return !s->failed;
}

static bool take_index(scan *s, mapped **map, int *n) {
    int64_t keys = 0;
    bool found = false;
    char *key;
    if (!take(s, '{')) return false;
    while (next_key(s, &keys, &key)) {
        bool is_map = !strcmp(key, "weight_map");
        if (is_map && found) return bad(s, "weight_map twice");
        found |= is_map;
        if (!(is_map ? take_map(s, map, n) : skip_value(s, 0))) return false;
    }
    skip_space(s);
    if (s->failed) return false;
    if (s->at != s->end) return bad(s, "text after the last }");
    return found || bad(s, "there is no weight_map");
}

/* Every tensor of the index is in its file, and the files hold no other. */
static mu_status check_map(const mu_safetensors *m, const char *index, const mapped *map, int n, mu_error *e) {
    for (int i = 0; i < n; i++) {
        const mu_safetensor *t = mu_safetensors_find(m, map[i].name);
        const char *path = t ? m->files[t->file].path : "", *slash = strrchr(path, '/');
        if (i && !strcmp(map[i].name, map[i - 1].name)) return mu_error_set(e, MU_STATUS_DATA, "%s: %s is there twice", index, map[i].name);
        if (!t || strcmp(slash ? slash + 1 : path, map[i].file))
            return mu_error_set(e, MU_STATUS_DATA, "%s: tensor %s is not in %s", index, map[i].name, map[i].file);
    }
    for (int i = 0; i < m->n && n != m->n; i++) {
        mapped key = { m->list[i].name, NULL };
        if (!bsearch(&key, map, (size_t)n, sizeof *map, compare_keys))
            return mu_error_set(e, MU_STATUS_DATA, "%s: tensor %s of %s is not in the index", index, key.name, m->files[m->list[i].file].path);
    }
    return MU_STATUS_OK;
}

static mu_status open_index(mu_safetensors *m, char *index, mu_error *e) {
    char *text = NULL;
    size_t bytes;
    mapped *map = NULL;
    int n = 0;
    mu_status status = mu_file_read(index, TEXT_MAX, &text, &bytes, e);
    if (status == MU_STATUS_OK) {
        m->text_left -= (int64_t)bytes;
        scan s = { index, text, text, text + bytes, e, false };
        if (!take_index(&s, &map, &n)) status = MU_STATUS_DATA;
    }
    if (n) qsort(map, (size_t)n, sizeof *map, compare_files);
    for (int i = 0; i < n && status == MU_STATUS_OK; i++)
        if (!i || strcmp(map[i].file, map[i - 1].file)) status = add_file(m, mu_format("%s/%s", m->path, map[i].file), e);
    if (status == MU_STATUS_OK) status = sort_names(m, e);
    if (n) qsort(map, (size_t)n, sizeof *map, compare_keys);
    if (status == MU_STATUS_OK) status = check_map(m, index, map, n, e);
    free(map);
    free(text);
    return status;
}

static int compare_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static mu_status open_all(mu_safetensors *m, mu_error *e) {
    char **names = NULL;
    int n = 0;
    DIR *d = opendir(m->path);
    if (!d) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", m->path, strerror(errno));
    for (struct dirent *f; n <= FILES_MAX && (f = readdir(d));)
        if (mu_file_ends(f->d_name, ".safetensors") && f->d_name[0] != '.') {
            names = mu_realloc(names, (size_t)n + 1, sizeof *names);
            names[n++] = mu_format("%s/%s", m->path, f->d_name);
        }
    closedir(d);
    if (n) qsort(names, (size_t)n, sizeof *names, compare_text);
    mu_status status = n ? MU_STATUS_OK : mu_error_set(e, MU_STATUS_NOINPUT, "%s: no *.safetensors file (files of PyTorch, *.bin, are not read)", m->path);
    for (int i = 0; i < n; i++)
        if (status == MU_STATUS_OK) status = add_file(m, names[i], e);
        else free(names[i]);
    free(names);
    return status == MU_STATUS_OK ? sort_names(m, e) : status;
}

static mu_status open_one(mu_safetensors *m, char *path, mu_error *e) {
    mu_status status = add_file(m, path, e);
    return status == MU_STATUS_OK ? sort_names(m, e) : status;
}

mu_status mu_safetensors_open(mu_safetensors **opened, const char *path, mu_error *e) {
    mu_safetensors *m = *opened = mu_alloc(1, sizeof *m);
    *m = (mu_safetensors){ .path = mu_strdup(path), .text_left = TEXT_MAX, .open_file = -1 };
    char *single = mu_format("%s/%s", path, single_name), *index = mu_format("%s/%s", path, index_name);
    mu_status status = mu_file_exists(single)  ? open_one(m, mu_strdup(single), e)
                       : mu_file_exists(index) ? open_index(m, index, e)
                       : mu_file_not_plain(path) && !strcmp(mu_file_not_plain(path), "is a directory") ? open_all(m, e)
                                                                                                    : open_one(m, mu_strdup(path), e);
    free(single);
    free(index);
    if (status != MU_STATUS_OK) mu_safetensors_close(m), *opened = NULL;
    return status;
}

void mu_safetensors_close(mu_safetensors *m) {
    if (!m) return;
    if (m->open_file >= 0) close(m->fd);
    for (int i = 0; i < m->n_files; i++) {
        free(m->files[i].path);
        free(m->files[i].text);
    }
    free(m->files);
    free(m->list);
    free(m->by_name);
    free(m->path);
    free(m);
}

int mu_safetensors_count(const mu_safetensors *m) { return m->n; }
const mu_safetensor *mu_safetensors_at(const mu_safetensors *m, int i) { return m->by_name[i]; }
const char *mu_safetensors_file(const mu_safetensors *m, const mu_safetensor *t) { return m->files[t->file].path; }

const mu_safetensor *mu_safetensors_find(const mu_safetensors *m, const char *name) {
    int low = 0, high = m->n;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(name, m->by_name[middle]->name);
        if (order == 0) return m->by_name[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

char *mu_safetensor_shape_text(int n_dims, const int64_t *shape) {
    char *text = mu_strdup("[");
    for (int i = 0; i < n_dims; i++) {
        char *longer = mu_format("%s%s%lld", text, i ? ", " : "", (long long)shape[i]);
        free(text);
        text = longer;
    }
    char *whole = mu_format("%s]", text);
    free(text);
    return whole;
}

/* ------------------------------------------------------------------ values */

static float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* IEEE half: 1 sign, 5 exponent, 10 fraction bits; every value is exact in fp32. */
static float from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 1023u;
    if (exponent == 31) return from_bits(sign | 0x7F800000u | fraction << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float small = (float)fraction * 0x1p-24f;       /* subnormal */
    return sign ? -small : small;
}

/* Rounds to nearest, ties to even; NaN stays NaN. */
static uint16_t to_bf16(float x) {
    uint32_t bits = to_bits(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

static uint32_t little_endian(const unsigned char *p, int bytes) {
    uint32_t x = 0;
    for (int i = bytes - 1; i >= 0; i--) x = x << 8 | p[i];
    return x;
}

static void decode(mu_safetensors_dtype dtype, const unsigned char *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i++)
        to[i] = dtype == MU_SAFETENSORS_F32    ? from_bits(little_endian(from + 4 * i, 4))
                : dtype == MU_SAFETENSORS_BF16 ? from_bits(little_endian(from + 2 * i, 2) << 16)
                                               : from_half((uint16_t)little_endian(from + 2 * i, 2));
}

static mu_status use_file(mu_safetensors *m, int file, mu_error *e) {
    const char *reason;
    const source *f = &m->files[file];
    int64_t bytes;
    if (m->open_file == file) return MU_STATUS_OK;
    if (m->open_file >= 0) close(m->fd);
    m->open_file = -1;
    m->fd = mu_file_open(f->path, false, &bytes, &reason);
    if (m->fd < 0) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", f->path, reason);
    m->open_file = file;
    if (bytes != f->bytes) return mu_error_set(e, MU_STATUS_DATA, "%s: changed while it was read", f->path);
    return MU_STATUS_OK;
}

mu_status mu_safetensors_read(mu_safetensors *m, const mu_safetensor *t, int64_t first, int64_t n, float *values, mu_error *e) {
    enum { CHUNK = 1 << 14 };
    unsigned char bytes[4 * CHUNK];
    MU_CHECK(first >= 0 && n >= 0 && first <= t->count - n, "%s: values [%lld, %lld) of %lld", t->name, (long long)first,
             (long long)(first + n), (long long)t->count);
    if (t->dtype > MU_SAFETENSORS_F16)
        return mu_error_set(e, MU_STATUS_DATA, "%s: tensor %s has dtype %s; F32, BF16 and F16 can be read", m->files[t->file].path, t->name,
                            dtypes[t->dtype].name);
    if (n == 0) return MU_STATUS_OK;
    mu_status status = use_file(m, t->file, e);
    int64_t size = dtypes[t->dtype].bits / 8, at = m->files[t->file].data + t->begin + first * size;
    for (int64_t i = 0; i < n && status == MU_STATUS_OK; i += CHUNK) {
        int64_t now = n - i < CHUNK ? n - i : CHUNK;
        if (!read_all(m->fd, at + i * size, bytes, now * size))
            status = mu_error_set(e, MU_STATUS_IO, "%s: cannot be read: %s", m->files[t->file].path, strerror(errno));
        else decode(t->dtype, bytes, now, values + i);
    }
    return status;
}

/* ------------------------------------------------------------------ writing */

struct mu_safetensors_writer {
    char *folder, *path;        /* of the open file */
    FILE *file;                 /* NULL: none is open */
    const mu_safetensor *list;
    int n, next, n_files;
    int *file_of;               /* [n] */
    int64_t written;            /* values of tensor `next` */
};

static int64_t bytes_of(const mu_safetensor *t) {
    int64_t n = dtypes[t->dtype].bits / 8;
    for (int i = 0; i < t->n_dims; i++) n *= t->shape[i];
    return n;
}

static char *file_name(const mu_safetensors_writer *w, int file) {
    return w->n_files == 1 ? mu_strdup(single_name) : mu_format("model-%05d-of-%05d.safetensors", file + 1, w->n_files);
}

mu_safetensors_writer *mu_safetensors_writer_new(const char *folder, const mu_safetensor *list, int n, int64_t shard_bytes) {
    mu_safetensors_writer *w = mu_alloc(1, sizeof *w);
    *w = (mu_safetensors_writer){ .folder = mu_strdup(folder), .list = list, .n = n, .n_files = 1,
                                  .file_of = mu_alloc((size_t)n + 1, sizeof(int)) };
    int64_t used = 0;
    for (int i = 0; i < n; i++) {
        MU_CHECK(list[i].dtype == MU_SAFETENSORS_F32 || list[i].dtype == MU_SAFETENSORS_BF16, "%s: dtype %s is not written", list[i].name,
                 dtypes[list[i].dtype].name);
        int64_t bytes = bytes_of(&list[i]);
        if (used && used + bytes > shard_bytes) w->n_files++, used = 0;
        used += bytes;
        w->file_of[i] = w->n_files - 1;
    }
    return w;
}

static mu_status write_failed(const mu_safetensors_writer *w, mu_error *e) {
    return mu_error_set(e, MU_STATUS_IO, "%s: cannot be written: %s", w->path, mu_io_reason(errno));
}

static void header_text(const mu_safetensors_writer *w, int first, mu_json *j) {
    int64_t at = 0;
    mu_json_begin(j, NULL, '{');
    mu_json_begin(j, "__metadata__", '{');
    mu_json_string(j, "format", "pt");
    mu_json_end(j, '}');
    for (int i = first; i < w->n && w->file_of[i] == w->file_of[first]; i++) {
        const mu_safetensor *t = &w->list[i];
        mu_json_begin(j, t->name, '{');
        mu_json_string(j, "dtype", dtypes[t->dtype].name);
        mu_json_begin(j, "shape", '[');
        for (int k = 0; k < t->n_dims; k++) mu_json_int(j, NULL, t->shape[k]);
        mu_json_end(j, ']');
        mu_json_begin(j, "data_offsets", '[');
        mu_json_int(j, NULL, at);
        mu_json_int(j, NULL, at += bytes_of(t));
        mu_json_end(j, ']');
        mu_json_end(j, '}');
    }
    mu_json_end(j, '}');
}

/* The file of tensor `next`, with its header, padded so that the data begins at a multiple of 8. */
static mu_status begin_file(mu_safetensors_writer *w, mu_error *e) {
    char *name = file_name(w, w->file_of[w->next]);
    unsigned char head[8];
    mu_json j;
    mu_json_init(&j);
    header_text(w, w->next, &j);
    size_t padded = (j.length + 7) / 8 * 8;
    for (int i = 0; i < 8; i++) head[i] = (unsigned char)(padded >> 8 * i);
    free(w->path);
    w->path = mu_format("%s/%s", w->folder, name);
    w->file = fopen(w->path, "wbx");
    bool good = w->file && fwrite(head, 8, 1, w->file) == 1 && fwrite(j.text, j.length, 1, w->file) == 1 &&
                fwrite("       ", 1, padded - j.length, w->file) == padded - j.length;
    mu_status status = good ? MU_STATUS_OK : write_failed(w, e);
    free(name);
    mu_json_free(&j);
    return status;
}

static mu_status end_file(mu_safetensors_writer *w, mu_error *e) {
    FILE *file = w->file;
    if (!file) return MU_STATUS_OK;
    w->file = NULL;
    mu_status status = fflush(file) || fsync(fileno(file)) ? write_failed(w, e) : MU_STATUS_OK;
    if (fclose(file) && status == MU_STATUS_OK) status = write_failed(w, e);
    return status;
}

static int64_t count_of(const mu_safetensor *t) { return bytes_of(t) * 8 / dtypes[t->dtype].bits; }

/* Opens the file of the next tensor that has values, closing the one before; a tensor without values only stands in the header. */
static mu_status begin_tensor(mu_safetensors_writer *w, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    while (status == MU_STATUS_OK && w->next < w->n && w->written == count_of(&w->list[w->next])) {
        if (!w->file) status = begin_file(w, e);
        w->next++, w->written = 0;
        if (status == MU_STATUS_OK && (w->next == w->n || w->file_of[w->next] != w->file_of[w->next - 1])) status = end_file(w, e);
    }
    if (status == MU_STATUS_OK && w->next < w->n && !w->file) status = begin_file(w, e);
    return status;
}

static bool write_values(mu_safetensors_writer *w, const float *values, int64_t n) {
    enum { CHUNK = 1 << 14 };
    unsigned char bytes[4 * CHUNK];
    int size = dtypes[w->list[w->next].dtype].bits / 8;
    for (int64_t at = 0; at < n; at += CHUNK) {
        int64_t now = n - at < CHUNK ? n - at : CHUNK;
        for (int64_t i = 0; i < now; i++) {
            uint32_t bits = size == 4 ? to_bits(values[at + i]) : to_bf16(values[at + i]);
            for (int k = 0; k < size; k++) bytes[i * size + k] = (unsigned char)(bits >> 8 * k);
        }
        if (fwrite(bytes, (size_t)size, (size_t)now, w->file) != (size_t)now) return false;
    }
    return true;
}

mu_status mu_safetensors_write(mu_safetensors_writer *w, const float *values, int64_t n, mu_error *e) {
    if (w->n_files > FILES_MAX)
        return mu_error_set(e, MU_STATUS_USAGE, "%s: %d files, more than %d; choose a larger size of files", w->folder, w->n_files, FILES_MAX);
    mu_status status = begin_tensor(w, e);
    while (n > 0 && status == MU_STATUS_OK) {
        MU_CHECK(w->next < w->n, "%lld values beyond the last tensor", (long long)n);
        int64_t left = count_of(&w->list[w->next]) - w->written, now = n < left ? n : left;
        if (!write_values(w, values, now)) return write_failed(w, e);
        values += now, n -= now, w->written += now;
        status = begin_tensor(w, e);
    }
    return status;
}

static mu_status write_index(const mu_safetensors_writer *w, mu_error *e) {
    int64_t total = 0;
    mu_json j;
    mu_json_init(&j);
    mu_json_begin(&j, NULL, '{');
    for (int i = 0; i < w->n; i++) total += bytes_of(&w->list[i]);
    mu_json_begin(&j, "metadata", '{');
    mu_json_int(&j, "total_size", total);
    mu_json_end(&j, '}');
    mu_json_begin(&j, "weight_map", '{');
    for (int i = 0; i < w->n; i++) {
        char *name = file_name(w, w->file_of[i]);
        mu_json_string(&j, w->list[i].name, name);
        free(name);
    }
    mu_json_end(&j, '}');
    mu_json_end(&j, '}');
    char *path = mu_format("%s/%s", w->folder, index_name);
    mu_status status = mu_file_replace(path, j.text, j.length, e);
    free(path);
    mu_json_free(&j);
    return status;
}

mu_status mu_safetensors_writer_finish(mu_safetensors_writer *w, mu_status status, mu_error *e) {
    if (!w) return status;
    if (status == MU_STATUS_OK) status = begin_tensor(w, e);
    MU_CHECK(status != MU_STATUS_OK || w->next == w->n, "only %d of %d tensors were written", w->next, w->n);
    mu_status closed = end_file(w, status == MU_STATUS_OK ? e : NULL);
    if (status == MU_STATUS_OK) status = closed;
    if (status == MU_STATUS_OK && w->n_files > 1) status = write_index(w, e);
    free(w->file_of);
    free(w->folder);
    free(w->path);
    free(w);
    return status;
}
