/* check.h - checks of the examples: each claim is printed with its result, and a false one
 * makes the program exit with 1. The examples run as tests. */
#ifndef MUSTER_EXAMPLES_CHECK_H
#define MUSTER_EXAMPLES_CHECK_H
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static int failed_checks;

__attribute__((format(printf, 2, 3))) static inline void check(bool right, const char *claim, ...) {
    va_list args;
    va_start(args, claim);
    fputs(right ? "  [ok]    " : "  [FAILED] ", stdout);
    vprintf(claim, args);
    putchar('\n');
    va_end(args);
    failed_checks += !right;
}

#endif
