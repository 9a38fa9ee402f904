/* log.c - messages go to one sink; without a sink the library is silent. */
#include "base/base.h"

static mu_log_sink *the_sink;

void mu_log_set_sink(mu_log_sink *sink) { the_sink = sink; }

void mu_log(mu_log_level level, const char *fmt, ...) {
    if (!the_sink) return;
    char line[4096];
    va_list args;
    va_start(args, fmt);
    mu_text_vformat(line, sizeof line, fmt, args);
    va_end(args);
    the_sink(level, line);
}
