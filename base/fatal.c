/* fatal.c - fatal errors: one line with file, line and values, then the handler. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

static void abort_here(mu_status status, const char *line) {
    (void)status;
    fprintf(stderr, "%s\n", line);
    abort();
}

static mu_fatal_handler *the_handler = abort_here;

mu_fatal_handler *mu_fatal_set_handler(mu_fatal_handler *handler) {
    mu_fatal_handler *old = the_handler;
    the_handler = handler ? handler : abort_here;
    return old;
}

_Noreturn void mu_fatal(mu_status status, const char *file, int line, const char *func, const char *fmt,
                        ...) {
    char text[1024];
    const char *from_root = strstr(file, "muster/");
    int n = snprintf(text, sizeof text, "%s:%d: %s: ", from_root ? from_root + 7 : file, line, func);
    va_list args;
    va_start(args, fmt);
    mu_text_vformat(text + n, sizeof text - (size_t)n, fmt, args);
    va_end(args);
    the_handler(status, text);
    abort();
}
