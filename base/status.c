/* status.c - collected error messages, time and hash. */
#include "base/base.h"

#include <string.h>
#include <time.h>
#include <xxhash.h>

static void append(mu_error *e, const char *fmt, va_list args) {
    size_t used = strlen(e->text);
    if (used + 1 < sizeof e->text) mu_text_vformat(e->text + used, sizeof e->text - used, fmt, args);
}

mu_status mu_error_set(mu_error *e, mu_status status, const char *fmt, ...) {
    if (!e) return status;
    e->status = status;
    e->text[0] = '\0';
    va_list args;
    va_start(args, fmt);
    append(e, fmt, args);
    va_end(args);
    return status;
}

mu_status mu_error_add(mu_error *e, mu_status status, const char *fmt, ...) {
    if (!e) return status;
    size_t used = strlen(e->text);
    if (e->status == MU_STATUS_OK) e->status = status;
    if (used && used + 2 < sizeof e->text) memcpy(e->text + used, "\n", 2);
    va_list args;
    va_start(args, fmt);
    append(e, fmt, args);
    va_end(args);
    return e->status;
}

double mu_time(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

uint64_t mu_hash64(const void *data, size_t bytes) { return XXH3_64bits(data, bytes); }
