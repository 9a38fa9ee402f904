/* json_reader.c - JSON, value by value, without a tree. */
#include "data/json_reader.h"
#include "data/unicode.h"

#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 64 };

void mu_json_reader_init(mu_json_reader *r, const char *text, int64_t bytes) {
    *r = (mu_json_reader){ .start = text, .at = text, .end = text + bytes };
}

void mu_json_reader_free(mu_json_reader *r) { free(r->text); }

void mu_json_reader_fail(mu_json_reader *r, const char *fmt, ...) {
    va_list args;
    if (r->error[0]) return;
    va_start(args, fmt);
    mu_text_vformat(r->error, sizeof r->error, fmt, args);
    va_end(args);
    r->error_at = r->at;
}

int64_t mu_json_reader_line(const mu_json_reader *r) {
    int64_t line = 1;
    for (const char *p = r->start; p < r->error_at; p++) line += *p == '\n';
    return line;
}

char mu_json_reader_peek(mu_json_reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\t' || *r->at == '\r')) r->at++;
    return r->at < r->end && !r->error[0] ? *r->at : 0;
}

bool mu_json_reader_take(mu_json_reader *r, char c) {
    char next = mu_json_reader_peek(r);
    if (next == c && c) {
        r->at++;
        return true;
    }
    if (r->at == r->end) mu_json_reader_fail(r, "the file ends where '%c' is expected", c);
    else mu_json_reader_fail(r, "'%c' where '%c' is expected", *r->at, c);
    return false;
}

bool mu_json_reader_more(mu_json_reader *r, char closing, bool first) {
    if (mu_json_reader_peek(r) == closing) {
        r->at++;
        return false;
    }
    return first ? !r->error[0] && r->at < r->end : mu_json_reader_take(r, ',');
}

bool mu_json_reader_key(mu_json_reader *r) { return mu_json_reader_string(r) && mu_json_reader_take(r, ':'); }

/* ------------------------------------------------------------------ strings */

static void put(mu_json_reader *r, const char *bytes, int64_t n) {
    if (r->n + n + 1 > r->room) r->text = mu_realloc(r->text, (size_t)(r->room = 2 * (r->n + n + 1)), 1);
    memcpy(r->text + r->n, bytes, (size_t)n);
    r->n += n;
    r->text[r->n] = '\0';
}

static int encode(uint32_t c, char out[4]) {
    int n = 0;
    if (c < 0x80) out[n++] = (char)c;
    else if (c < 0x800) out[n++] = (char)(0xC0 | c >> 6);
    else if (c < 0x10000) out[n++] = (char)(0xE0 | c >> 12);
    else out[n++] = (char)(0xF0 | c >> 18);
    if (c >= 0x10000) out[n++] = (char)(0x80 | (c >> 12 & 0x3F));
    if (c >= 0x800) out[n++] = (char)(0x80 | (c >> 6 & 0x3F));
    if (c >= 0x80) out[n++] = (char)(0x80 | (c & 0x3F));
    return n;
}

/* Four hexadecimal digits behind \u, or 0x110000. */
static uint32_t hex4(const char **at, const char *end) {
    uint32_t c = 0;
    if (end - *at < 4) return 0x110000;
    for (int i = 0; i < 4; i++) {
        char d = *(*at)++;
        int digit = d >= '0' && d <= '9' ? d - '0' : (d | 0x20) >= 'a' && (d | 0x20) <= 'f' ? (d | 0x20) - 'a' + 10 : -1;
        if (digit < 0) return 0x110000;
        c = c << 4 | (uint32_t)digit;
    }
    return c;
}

int mu_json_escape(const char **at, const char *end, char out[4]) {
    static const char letters[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
    if (++*at >= end) return 0;
    char letter = *(*at)++;
    const char *found = letter ? strchr(letters, letter) : NULL;
    if (found) return out[0] = means[found - letters], 1;
    uint32_t c = letter == 'u' ? hex4(at, end) : 0x110000;
    if (c >= 0xD800 && c < 0xDC00 && end - *at > 2 && (*at)[0] == '\\' && (*at)[1] == 'u') {
        *at += 2;
        uint32_t low = hex4(at, end);
        c = low >= 0xDC00 && low < 0xE000 ? 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00) : 0x110000;
    }
    return c >= 0x110000 || (c >= 0xD800 && c < 0xE000) ? 0 : encode(c, out);
}

bool mu_json_reader_string(mu_json_reader *r) {
    uint32_t code;
    if (!mu_json_reader_take(r, '"')) return false;
    r->n = 0;
    put(r, "", 0);
    while (r->at < r->end && *r->at != '"') {
        const char *from = r->at;
        if (*r->at == '\\') {
            char bytes[4];
            int n = mu_json_escape(&r->at, r->end, bytes);
            if (!n || !bytes[0]) {
                mu_json_reader_fail(r, "a string has an escape that is not supported (a half of a pair, U+0000, or none of JSON)");
                return false;
            }
            put(r, bytes, n);
            continue;
        }
        int n = mu_char_code((const unsigned char *)from, (const unsigned char *)r->end, &code);
        if (!n || code < 0x20) {
            mu_json_reader_fail(r, n ? "a control character in a string" : "a string is not UTF-8");
            return false;
        }
        r->at += n;
        put(r, from, n);
    }
    return mu_json_reader_take(r, '"');
}

/* ------------------------------------------------------------------ other values */

bool mu_json_reader_int(mu_json_reader *r, int64_t most, int64_t *value) {
    char next = mu_json_reader_peek(r);
    const char *from = r->at;
    *value = 0;
    while (next && r->at < r->end && *r->at >= '0' && *r->at <= '9' && *value <= most) *value = 10 * *value + (*r->at++ - '0');
    bool rest = r->at < r->end && strchr("+-.eE0123456789", *r->at) && *r->at;
    if (r->at > from && !rest && *value <= most && (*from != '0' || r->at == from + 1)) return true;
    while (r->at < r->end && r->at - from < 20 && *r->at && strchr("+-.eE0123456789abcdefghijklmnopqrstuvwxyz", *r->at)) r->at++;
    mu_json_reader_fail(r, "\"%.*s\" is not an integer from 0 to %lld", (int)(r->at - from), from, (long long)most);
    return false;
}

static bool skip_string(mu_json_reader *r) {
    for (r->at++; r->at < r->end && *r->at != '"'; r->at++)
        if (*r->at == '\\') r->at++;
    if (r->at >= r->end) {
        r->at = r->end;
        mu_json_reader_fail(r, "the file ends within a string");
        return false;
    }
    r->at++;
    return true;
}

bool mu_json_reader_skip(mu_json_reader *r, const char **from, int64_t *bytes) {
    char open[DEEPEST];
    int depth = 0;
    char c = mu_json_reader_peek(r);
    *from = r->at;
    do {
        c = mu_json_reader_peek(r);
        if (c == '{' || c == '[') {
            if (depth == DEEPEST) mu_json_reader_fail(r, "brackets are more than %d deep", DEEPEST);
            else open[depth++] = *r->at++ == '{' ? '}' : ']';
        } else if (c == '}' || c == ']') {
            if (!depth || open[--depth] != c) mu_json_reader_fail(r, "'%c' closes nothing", c);
            else r->at++;
        } else if (c == '"') skip_string(r);
        else if (c) r->at++;
        else mu_json_reader_fail(r, "the file ends within a value");
        if (!depth && c && c != '"' && !strchr("{}[]", c))          /* a number or a word */
            while (r->at < r->end && *r->at && !strchr(",]} \n\t\r", *r->at)) r->at++;
    } while (depth && !r->error[0]);
    *bytes = r->at - *from;
    return !r->error[0];
}
