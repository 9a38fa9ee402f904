/* page.c - writes a self-contained HTML page: text with everything escaped, its parts, and the file. */
#include "train/page.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ text */

static void put_html(FILE *out, const char *text) {
    for (const char *c = text; *c; c++) switch (*c) {
        case '&': fputs("&amp;", out); break;
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '"': fputs("&quot;", out); break;
        case '\'': fputs("&#39;", out); break;
        default: putc(*c, out);
        }
}

void mu_html_escape(FILE *out, const char *text, size_t n) {
    char *shown = mu_alloc(4 * n + 1, 1);       /* a byte becomes at most four: \x1b */
    mu_text_escape(shown, 4 * n + 1, text, n, "\n\t");
    put_html(out, shown);
    free(shown);
}

typedef struct { va_list list; } arguments;     /* va_list may be an array, whose address cannot be passed on */

static void put_text(mu_page *p, const char *spec, const char *text) {
    if (spec[1] == '-') fputs(text, p->out);
    else mu_html_escape(p->out, text, strlen(text));
}

/* One conversion; returns what follows it. */
static const char *put_conversion(mu_page *p, const char *format, arguments *a) {
    char spec[24];
    size_t n = 1 + strspn(format + 1, "0123456789.+-lz") + 1;
    MU_CHECK(n < sizeof spec, "page: conversion %s", format);
    memcpy(spec, format, n);
    spec[n] = '\0';
    switch (spec[n - 1]) {
    case '%': putc('%', p->out); break;
    case 's': put_text(p, spec, va_arg(a->list, const char *)); break;
    case 'd':
        if (strstr(spec, "ll")) fprintf(p->out, spec, va_arg(a->list, long long));
        else fprintf(p->out, spec, va_arg(a->list, int));
        break;
    case 'u': fprintf(p->out, spec, va_arg(a->list, size_t)); break;
    case 'f': case 'g': fprintf(p->out, spec, va_arg(a->list, double)); break;
    default: MU_FATAL(MU_STATUS_INTERNAL, "page: conversion %s", spec);
    }
    return format + n;
}

static void put_list(mu_page *p, const char *format, va_list list) {
    arguments a;
    va_copy(a.list, list);
    while (*format) {
        if (*format == '%') format = put_conversion(p, format, &a);
        else putc(*format++, p->out);
    }
    va_end(a.list);
}

void mu_page_put(mu_page *p, const char *format, ...) {
    va_list list;
    va_start(list, format);
    put_list(p, format, list);
    va_end(list);
}

void mu_page_json(mu_page *p, const mu_json *j) {
    for (const char *c = j->text; *c; c++)
        if (*c == '<') fputs("\\u003c", p->out);    /* occurs in strings only; a "</script>" in one would end the script */
        else putc(*c, p->out);
}

/* ------------------------------------------------------------------ numbers for people */

enum { SHOWN_BYTES = 512, SHOWN_TEXTS = 32 };

const char *mu_show(const char *format, ...) {
    static char ring[SHOWN_TEXTS][SHOWN_BYTES];
    static int at;
    char *text = ring[at++ % SHOWN_TEXTS];
    va_list args;
    va_start(args, format);
    vsnprintf(text, SHOWN_BYTES, format, args);
    va_end(args);
    return text;
}

const char *mu_show_count(double n) {
    static const struct { double from, unit; const char *name; } units[] = {
        { 1e12, 1e12, " T" }, { 1e9, 1e9, " G" }, { 1e6, 1e6, " M" }, { 1e5, 1e3, " k" } };
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        double shown = n / units[i].unit;
        if (fabs(n) >= units[i].from) return mu_show("%.*f%s", fabs(shown) < 10 ? 2 : fabs(shown) < 100 ? 1 : 0, shown, units[i].name);
    }
    return mu_show(n == rint(n) ? "%.0f" : "%.1f", n);
}

const char *mu_show_number(double x) {
    double size = fabs(x);
    if (isnan(x)) return "\xE2\x80\x93";
    if (size >= 1e5) return mu_show_count(x);
    if (x == rint(x)) return mu_show("%.0f", x);
    if (size < 1e-3) return mu_show("%.1e", x);
    return mu_show("%.*f", size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : size >= 0.1 ? 3 : 4, x);
}

const char *mu_show_seconds(double s) {
    long long whole = llround(s);
    if (s < 10) return mu_show("%.1f s", s);
    if (whole < 120) return mu_show("%lld s", whole);
    if (whole < 7200) return mu_show("%lld min %02lld s", whole / 60, whole % 60);
    return mu_show("%lld h %02lld min", whole / 3600, whole / 60 % 60);
}

/* ------------------------------------------------------------------ parts of a page */

void mu_page_begin(mu_page *p, const char *title) {
    *p = (mu_page){ 0 };
    p->out = open_memstream(&p->text, &p->bytes);
    MU_CHECK(p->out, "out of memory");
    mu_page_put(p, MU_PAGE_MARK "<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                   "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
                   "<meta name=\"color-scheme\" content=\"light dark\">\n<title>%s</title>\n", title);
    mu_page_styles(p);
    mu_page_put(p, "</head>\n<body>\n<main>\n");
}

void mu_page_section(mu_page *p, const char *id, const char *heading) {
    mu_page_put(p, "<h2 id=\"%s\">%s</h2>\n", id, heading);
}

void mu_page_fold(mu_page *p, bool open, const char *format, ...) {
    va_list list;
    va_start(list, format);
    mu_page_put(p, "<details%-s><summary>", open ? " open" : "");
    put_list(p, format, list);
    mu_page_put(p, "</summary>\n");
    va_end(list);
}

void mu_page_unfold(mu_page *p) { mu_page_put(p, "</details>\n"); }

void mu_page_missing(mu_page *p, const char *format, ...) {
    va_list list;
    va_start(list, format);
    mu_page_put(p, "<p class=\"missing\">");
    put_list(p, format, list);
    mu_page_put(p, "</p>\n");
    va_end(list);
}

/* ------------------------------------------------------------------ the file */

mu_status mu_page_check(const char *path, mu_error *e) {
    char begin[sizeof MU_PAGE_MARK] = "";
    const char *reason = mu_file_not_plain(path);
    if (reason) return mu_error_set(e, MU_STATUS_USAGE, "--out %s %s; name a file", path, reason);
    FILE *f = fopen(path, "rbe");
    if (!f) return MU_STATUS_OK;        /* new, or it cannot be read: then it is replaced or that fails */
    size_t n = fread(begin, 1, sizeof begin - 1, f);
    fclose(f);
    if (!n || !strcmp(begin, MU_PAGE_MARK)) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_USAGE, "--out %s: the file was not made by muster; choose another name or remove it", path);
}

mu_status mu_page_end(mu_page *p, const char *path, mu_error *e) {
    mu_page_put(p, "</main>\n");
    mu_page_scripts(p);
    mu_page_put(p, "</body>\n</html>\n");
    fclose(p->out);
    mu_status status = mu_page_check(path, e);
    if (status == MU_STATUS_OK) status = mu_file_replace(path, p->text, p->bytes, e);
    free(p->text);
    *p = (mu_page){ .bytes = p->bytes };
    return status;
}
