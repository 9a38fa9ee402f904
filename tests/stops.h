/* stops.h - for tests of fatal errors. */
#ifndef MUSTER_TESTS_STOPS_H
#define MUSTER_TESTS_STOPS_H
#include "base/base.h"

#include <setjmp.h>
#include <string.h>

static jmp_buf stops_here;
static char stops_line[1024];
static inline void stops_catch(mu_status status, const char *line) {
    (void)status;
    snprintf(stops_line, sizeof stops_line, "%s", line);
    longjmp(stops_here, 1);
}

/* Does the statement end in a fatal error with these words? */
#define STOPS(words, ...) \
    do { \
        stops_line[0] = '\0'; \
        mu_fatal_set_handler(stops_catch); \
        if (!setjmp(stops_here)) { __VA_ARGS__; } \
        mu_fatal_set_handler(NULL); \
        if (!strstr(stops_line, words)) fail_msg("'%s' is not in '%s'", words, stops_line); \
    } while (0)

#endif
