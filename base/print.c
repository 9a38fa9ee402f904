/* print.c - text for terminals and logs. Paths, configurations, manifests and messages of libraries are untrusted: a name may
 * hold an escape sequence that rewrites the screen, or a newline that forges a message. The arguments of %s and %c are
 * therefore escaped where messages are formatted; only newlines of the format itself remain. %-s inserts the text of a
 * mu_error, which is escaped already and keeps its newlines. */
#include "base/internal.h"

#include <string.h>

typedef struct {
    char *at;
    size_t room;                /* bytes left, the final NUL included; at least 1 */
} output;

/* Appends the whole text, or nothing of it and of all later text when it does not fit. */
static void put(output *o, const char *text, size_t bytes) {
    if (bytes >= o->room) {
        o->room = 1;
        return;
    }
    memcpy(o->at, text, bytes);
    o->at += bytes, o->room -= bytes;
    *o->at = '\0';
}

/* Control characters of both sets, and the marks that reorder a line or end it. */
static bool is_harmful(uint32_t code) {
    return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x61C || code == 0x200E || code == 0x200F ||
           (code >= 0x2028 && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069);
}

/* One character of a text of n bytes, or its first byte when that is none; returns how many bytes were taken. */
static size_t put_escaped(output *o, const char *text, size_t n, const char *keep) {
    uint32_t code = 0;
    int length = mu_utf8_decode(text, n, &code);
    if (length && (!is_harmful(code) || (code && code < 0x80 && strchr(keep, (int)code)))) {
        put(o, text, (size_t)length);
        return (size_t)length;
    }
    for (int i = 0; i < (length ? length : 1); i++) {
        char shown[5];
        const char *letter = text[i] ? strchr("\nn\tt\rr", text[i]) : NULL;
        snprintf(shown, sizeof shown, letter ? "\\%c" : "\\x%02x", letter ? letter[1] : (unsigned char)text[i]);
        put(o, shown, strlen(shown));
    }
    return length ? (size_t)length : 1;
}

void mu_text_escape(char *out, size_t room, const char *text, size_t n, const char *keep) {
    output o = { out, room };
    *out = '\0';
    for (size_t i = 0; i < n;) i += put_escaped(&o, text + i, n - i, keep);
}

/* ------------------------------------------------------------------ printf */

/* A parsed conversion of a format; the compiler has checked its letters. */
typedef struct {
    char spec[40];              /* "%-8.3", without length modifier and letter */
    int width, precision;       /* -1: none */
    bool left;
    char length;                /* 'l', 'L' for ll, 'z', 't', 'j', or 0 */
    char letter;
} conversion;

typedef struct { va_list list; } arguments;     /* va_list may be an array, whose address cannot be passed on */

static int read_number(const char **at, arguments *a) {
    int n = 0;
    if (**at == '*') return ++*at, va_arg(a->list, int);
    for (; **at >= '0' && **at <= '9'; ++*at) n = 10 * n + (**at - '0');
    return n;
}

/* *at: behind the '%' before the call, behind the letter afterwards. */
static conversion read_conversion(const char **at, arguments *a) {
    conversion c = { .width = -1, .precision = -1 };
    char flags[8] = "";
    for (size_t n = 0; **at && strchr("-+ #0", **at); ++*at)
        if (n < sizeof flags - 1) flags[n++] = **at;
    if (**at == '*' || (**at >= '1' && **at <= '9')) c.width = read_number(at, a);
    if (**at == '.') ++*at, c.precision = read_number(at, a);
    for (; **at && strchr("hlzjt", **at); ++*at) c.length = **at == 'l' && c.length == 'l' ? 'L' : **at;
    c.letter = **at;
    if (c.letter) ++*at;
    c.left = strchr(flags, '-') || c.width < -1;
    if (c.width < -1) c.width = -c.width;
    int n = snprintf(c.spec, sizeof c.spec, "%%%s%s", c.left ? "-" : "", flags);
    if (c.width >= 0) n += snprintf(c.spec + n, sizeof c.spec - (size_t)n, "%d", c.width);
    if (c.precision >= 0) snprintf(c.spec + n, sizeof c.spec - (size_t)n, ".%d", c.precision);
    return c;
}

static void put_string(output *o, const conversion *c, const char *text) {
    if (!text) text = "(null)";
    size_t n = c->precision >= 0 ? strnlen(text, (size_t)c->precision) : strlen(text);
    char *start = o->at;
    const char *keep = c->left && c->width < 0 ? "\n" : ""; /* %-s: already escaped */
    for (size_t i = 0; i < n;) i += put_escaped(o, text + i, n - i, keep);
    size_t shown = (size_t)(o->at - start), pad = c->width > 0 && (size_t)c->width > shown ? (size_t)c->width - shown : 0;
    if (pad >= o->room) pad = o->room - 1;
    if (!c->left) memmove(start + pad, start, shown);
    memset(c->left ? o->at : start, ' ', pad);
    o->at += pad, o->room -= pad;
    *o->at = '\0';
}

static void put_number(output *o, conversion *c, arguments *a) {
    char text[512];             /* %f of the largest double has 309 digits before its point */
    size_t end = strlen(c->spec);
    bool whole = strchr("diuxXo", c->letter) != NULL;
    snprintf(c->spec + end, sizeof c->spec - end, whole ? "ll%c" : "%c", c->letter);
    if (strchr("di", c->letter)) {
        long long value = c->length == 'L'   ? va_arg(a->list, long long)
                          : c->length == 'l' ? va_arg(a->list, long)
                          : c->length == 'z' ? (long long)va_arg(a->list, size_t)
                          : c->length == 't' ? va_arg(a->list, ptrdiff_t)
                          : c->length == 'j' ? va_arg(a->list, intmax_t)
                                             : va_arg(a->list, int);
        snprintf(text, sizeof text, c->spec, value);
    } else if (whole) {
        unsigned long long value = c->length == 'L'   ? va_arg(a->list, unsigned long long)
                                   : c->length == 'l' ? va_arg(a->list, unsigned long)
                                   : c->length == 'z' ? va_arg(a->list, size_t)
                                   : c->length == 't' ? (unsigned long long)va_arg(a->list, ptrdiff_t)
                                   : c->length == 'j' ? va_arg(a->list, uintmax_t)
                                                      : va_arg(a->list, unsigned);
        snprintf(text, sizeof text, c->spec, value);
    } else if (c->letter == 'p') snprintf(text, sizeof text, c->spec, va_arg(a->list, void *));
    else snprintf(text, sizeof text, c->spec, va_arg(a->list, double));
    put(o, text, strlen(text));
}

void mu_text_vformat(char *out, size_t room, const char *format, va_list list) {
    output o = { out, room };
    arguments a;
    va_copy(a.list, list);
    *out = '\0';
    for (const char *at = format; *at;) {
        size_t plain = strcspn(at, "%");
        put(&o, at, plain);
        at += plain;
        if (*at != '%') break;
        at++;
        conversion c = read_conversion(&at, &a);
        if (c.letter == 's') put_string(&o, &c, va_arg(a.list, const char *));
        else if (c.letter == 'c') put_string(&o, &(conversion){ .width = c.width, .precision = 1, .left = c.left },
                                             (char[]){ (char)va_arg(a.list, int), '\0' });
        else if (c.letter == '%') put(&o, "%", 1);
        else put_number(&o, &c, &a);
    }
    va_end(a.list);
}
