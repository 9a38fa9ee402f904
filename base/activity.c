/* activity.c - the current work of this process. See base.h. */
#include "base/base.h"

static mu_activity now = { .phase = "starting", .layer = -1, .step = -1 };
static void (*the_hook)(void);

const mu_activity *mu_activity_now(void) { return &now; }

void mu_activity_set_hook(void (*hook)(void)) { the_hook = hook; }

void mu_activity_tick(void) {
    now.progress++;
    if (the_hook) the_hook();
}

void mu_activity_set(const char *phase, int layer, const char *op) {
    now.phase = phase, now.layer = layer, now.op = op, now.done = 0;
    mu_activity_tick();
}

void mu_activity_done(int64_t done) {
    now.done = done;
    mu_activity_tick();
}

void mu_activity_step(int64_t step) { now.step = step; }

char *mu_activity_text(const mu_activity *a, char *text, size_t room) {
    size_t n = 0;
    text[0] = '\0';
    if (a->step >= 0) n += (size_t)snprintf(text, room, "step %lld, ", (long long)a->step);
    if (n < room) n += (size_t)snprintf(text + n, room - n, "%s", a->phase);
    if (a->layer >= 0 && n < room) n += (size_t)snprintf(text + n, room - n, ", layer %d", a->layer);
    if (a->op && n < room) snprintf(text + n, room - n, " (%s)", a->op);
    return text;
}
