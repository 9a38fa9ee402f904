/* report.c - all errors of a configuration at once: one line each, at most 20. */
#include "base/internal.h"

#include <string.h>

enum { LINES_MAX = 20, LINE_BYTES = 390, NAME_BYTES = 120 };

/* Lines so far. Several reports may share one mu_error: the file, the overrides, the checks. */
static int lines_of(const mu_error *e) {
    int n = e->text[0] != '\0';
    for (const char *p = e->text; (p = strchr(p, '\n')) != NULL && p[1]; p++)
        n++;
    return n;
}

void mu_report_add(mu_report *r, int line, int column, const char *fmt, ...) {
    r->status = MU_STATUS_CONFIG;
    r->n++;
    if (!r->e)
        return;
    int lines = lines_of(r->e);
    if (lines == LINES_MAX)
        mu_error_add(r->e, MU_STATUS_CONFIG, "further errors are not shown");
    if (lines >= LINES_MAX)
        return;
    char place[NAME_BYTES + 40], text[LINE_BYTES];
    size_t length = r->name ? strlen(r->name) : 0;
    const char *tail = length > NAME_BYTES ? r->name + length - NAME_BYTES : r->name;
    if (!r->name)
        snprintf(place, sizeof place, "command line");
    else if (line > 0)
        snprintf(place, sizeof place, "%s:%d:%d", tail, line, column);
    else
        snprintf(place, sizeof place, "%s", tail);
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text - strlen(place), fmt, args);
    va_end(args);
    mu_error_add(r->e, MU_STATUS_CONFIG, "%s: %s", place, text);
}

bool mu_report_full(const mu_report *r) {
    return r->n > LINES_MAX;
}

const char *mu_quote(mu_quoted *out, const char *text) {
    enum { SHOWN = 40 };
    size_t n = strlen(text), used = 0;
    while (used < n) {
        uint32_t code;
        int length = mu_utf8_decode(text + used, n - used, &code);
        if (used + (size_t)(length ? length : 1) > SHOWN) break;
        used += (size_t)(length ? length : 1);
    }
    snprintf(out->text, sizeof out->text, "%.*s%s", (int)used, text, used < n ? "..." : "");
    return out->text;
}
