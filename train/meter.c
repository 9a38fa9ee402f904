/* meter.c - progress of the commands that read texts: on a terminal a line that is drawn anew, else a line every ten seconds. */
#include "train/train.h"

#include <math.h>
#include <string.h>

static struct {
    bool bar, drawn;
    int64_t bytes, tokens;      /* all there is to do */
    int64_t before, done;       /* of earlier sources; of this one */
    double started, last;       /* of the phase; when it was shown */
    const char *phase, *source;
} meter;

static void clear_bar(void) {
    if (meter.drawn) printf("\r\033[K");
    meter.drawn = false;
}

static void print_left(double seconds) {
    long s = lround(seconds);
    if (s >= 3600) printf(", %ld:%02ld:%02ld left", s / 3600, s / 60 % 60, s % 60);
    else printf(", %ld:%02ld left", s / 60, s % 60);
}

static void show(double seconds) {
    bool texts = !strcmp(meter.phase, "reading texts");
    int64_t total = texts ? meter.bytes : meter.tokens;
    double done = (double)(meter.before + meter.done), share = total > 0 ? fmin(done / (double)total, 1) : 0;
    clear_bar();
    printf("%s: %.0f %%", meter.phase, 100 * share);
    if (texts) printf(" of %.1f MB, %.1f MB/s", (double)total / 1e6, done / 1e6 / seconds);
    else printf(", %lld of %lld tokens", (long long)done, (long long)total);
    if (share > 0) print_left(seconds * (1 - share) / share);
    if (!meter.bar) printf("\n");
    fflush(stdout);
    meter.drawn = meter.bar;
}

/* At every report of mu_activity. A source is a domain: its count begins at 0. */
static void look(void) {
    const mu_activity *a = mu_activity_now();
    double now = mu_time();
    if (a->phase != meter.phase) {
        clear_bar();
        meter.phase = a->phase, meter.source = a->op, meter.before = meter.done = 0;
        meter.started = meter.last = now;
    } else if (a->op != meter.source) meter.source = a->op, meter.before += meter.done;
    if (meter.done == a->done) return;
    meter.done = a->done;
    if (now - meter.last < (meter.bar ? 0.1 : 10)) return;
    meter.last = now;
    show(now - meter.started);
}

void mu_meter_start(int64_t bytes, int64_t tokens) {
    memset(&meter, 0, sizeof meter);
    meter.bar = mu_output_is_terminal();
    meter.bytes = bytes, meter.tokens = tokens, meter.phase = "";
    mu_activity_set_hook(look);
}

void mu_meter_stop(void) {
    mu_activity_set_hook(NULL);
    clear_bar();
}
