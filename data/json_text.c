/* json_text.c - the text in a JSON value: a string, or the string of a given key of an object. The value is checked completely and
 * decoded in place, so a hostile one needs no more memory than its bytes. */
#include "data/json_reader.h"

#include <string.h>

enum { DEPTH_MAX = 512, SHOWN = 40 };

typedef struct {
    char *line_begin, *at, *end;
    const char *key;
    mu_json_text *out;
} reader;

/* ------------------------------------------------------------------ errors */

static size_t number_like(const char *s, const char *end) {
    size_t n = 0;
    while (s + n < end && memchr("+-.eE0123456789", s[n], 15)) n++;
    return n;
}

/* Bytes of the token at `s`: a number, word or string, as far as it is shown; else a character. */
static size_t token_length(const char *s, const char *end) {
    size_t n = number_like(s, end);
    if (n || s == end) return n;
    if (*s == '"') {
        for (n = 1; s + n < end && s[n] != '"' && n < SHOWN; n++) {}
        return s + n < end && s[n] == '"' ? n + 1 : n;
    }
    while (s + n < end && ((s[n] | 32) >= 'a' && (s[n] | 32) <= 'z')) n++;
    return n ? n : 1;
}

/* `at`: where; the first error counts. */
static bool bad(reader *r, const char *at, const char *what) {
    size_t n = token_length(at, r->end);
    r->out->at = at - r->line_begin;
    if (n == 0) snprintf(r->out->why, sizeof r->out->why, "%s near the end", what);
    else snprintf(r->out->why, sizeof r->out->why, "%s near '%.*s%s'", what, (int)(n < SHOWN ? n : SHOWN), at, n > SHOWN ? "..." : "");
    return false;
}

/* ------------------------------------------------------------------ strings */

/* Characters of ASCII at s that stand for themselves in a string. */
static size_t plain_length(const char *s, const char *end) {
    const char *p = s;
    while (p < end && *p >= 0x20 && *p < 0x7f && *p != '"' && *p != '\\') p++;
    return p > s ? (size_t)(p - s) : 1;
}

/* The string at r->at, decoded in place: never longer than before. */
static bool read_string(reader *r, char **text, int64_t *bytes) {
    char *quote = r->at++, *out = r->at;
    *text = out;
    while (r->at < r->end && *r->at != '"') {
        unsigned char c = (unsigned char)*r->at;
        uint32_t code;
        if (c == '\\') {
            char decoded[4];
            const char *next = r->at;
            int n = mu_json_escape(&next, r->end, decoded);
            if (n == 0) return bad(r, r->at, "invalid escape");
            r->at += next - r->at;
            memcpy(out, decoded, (size_t)n);
            out += n;
        } else if (c < 0x20) return bad(r, r->at, "control character in a string");
        else {
            size_t n = c < 0x80 ? plain_length(r->at, r->end) : (size_t)mu_utf8_decode(r->at, (size_t)(r->end - r->at), &code);
            if (n == 0) return bad(r, r->at, "invalid UTF-8 in a string");
            if (out != r->at) memmove(out, r->at, n);
            out += n, r->at += n;
        }
    }
    if (r->at >= r->end) return bad(r, quote, "the string does not end");
    r->at++;
    *bytes = out - *text;
    return true;
}

/* ------------------------------------------------------------------ values */

/* Line breaks in strings are not valid, so these are all. */
static void skip_space(reader *r) {
    for (; r->at < r->end && memchr(" \t\r\n", *r->at, 4); r->at++)
        if (*r->at == '\n') r->out->line++, r->line_begin = r->at + 1;
}

/* Bytes of the JSON number at `s`; 0 if it is not valid. Numbers may be of any size: their values are not used. */
static size_t number_length(const char *s, const char *end) {
    const char *p = s + (s < end && *s == '-');
    if (p == end || *p < '0' || *p > '9') return 0;
    if (*p++ != '0')
        while (p < end && *p >= '0' && *p <= '9') p++;
    for (int part = 0; part < 2; part++) {          /* a fraction, an exponent */
        if (p == end || (part ? *p != 'e' && *p != 'E' : *p != '.')) continue;
        p++;
        if (part && p < end && (*p == '+' || *p == '-')) p++;
        if (p == end || *p < '0' || *p > '9') return 0;
        while (p < end && *p >= '0' && *p <= '9') p++;
    }
    return (size_t)(p - s);
}

static bool read_number(reader *r) {
    size_t n = number_length(r->at, r->end);
    if (n == 0 || n != number_like(r->at, r->end)) return bad(r, r->at, "invalid number");
    r->at += n;
    return true;
}

static bool read_word(reader *r) {
    static const char *const words[] = { "true", "false", "null" };
    size_t n = token_length(r->at, r->end);
    for (int i = 0; i < 3; i++)
        if (n == strlen(words[i]) && !memcmp(r->at, words[i], n)) return r->at += n, true;
    return bad(r, r->at, r->at == r->end ? "value expected" : "invalid token");
}

static bool read_value(reader *r, int depth);

/* Whether the next character is this one, which is then consumed. */
static bool next_is(reader *r, char c) {
    skip_space(r);
    if (r->at == r->end || *r->at != c) return false;
    return r->at++, true;
}

static bool read_array(reader *r, int depth) {
    r->at++;
    if (next_is(r, ']')) return true;
    do
        if (!read_value(r, depth + 1)) return false;
    while (next_is(r, ','));
    return next_is(r, ']') || bad(r, r->at, "']' expected");
}

/* The value of the key that is looked for, in the outermost object. */
static bool read_wanted(reader *r, const char *key_at) {
    mu_json_text *out = r->out;
    if (out->has_key) return bad(r, key_at, "duplicate key");
    out->has_key = true;
    skip_space(r);
    if (r->at == r->end || *r->at != '"') return read_value(r, 1);
    return read_string(r, &out->text, &out->bytes);
}

static bool read_member(reader *r, int depth) {
    char *name;
    int64_t bytes;
    skip_space(r);
    char *key_at = r->at;
    if (r->at == r->end || *r->at != '"') return bad(r, r->at, "string or '}' expected");
    if (!read_string(r, &name, &bytes)) return false;
    if (!next_is(r, ':')) return bad(r, r->at, "':' expected");
    bool wanted = depth == 0 && bytes == (int64_t)strlen(r->key) && !memcmp(name, r->key, (size_t)bytes);
    return wanted ? read_wanted(r, key_at) : read_value(r, depth + 1);
}

static bool read_object(reader *r, int depth) {
    r->at++;
    if (next_is(r, '}')) return true;
    do
        if (!read_member(r, depth)) return false;
    while (next_is(r, ','));
    return next_is(r, '}') || bad(r, r->at, "'}' expected");
}

static bool read_value(reader *r, int depth) {
    char *text;
    int64_t bytes;
    skip_space(r);
    char c = r->at < r->end ? *r->at : '\0';
    if (depth > DEPTH_MAX) return bad(r, r->at, "nested too deep");
    if (c == '{') return read_object(r, depth);
    if (c == '[') return read_array(r, depth);
    if (c == '"') return read_string(r, &text, &bytes);
    return c == '-' || (c >= '0' && c <= '9') ? read_number(r) : read_word(r);
}

bool mu_json_text_find(mu_json_text *t, char *json, int64_t bytes, const char *key) {
    *t = (mu_json_text){ 0 };
    reader r = { json, json, json + bytes, key, t };
    skip_space(&r);
    char first = r.at < r.end ? *r.at : '\0';
    t->is_object = first == '{', t->is_string = first == '"';
    bool good = t->is_string ? read_string(&r, &t->text, &t->bytes) : read_value(&r, 0);
    if (!good) return false;
    skip_space(&r);
    return r.at == r.end || bad(&r, r.at, "end of the value expected");
}
