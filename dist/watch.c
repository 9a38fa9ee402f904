/* watch.c - the watchdog: ends a job without progress, with a report on the activity of each rank.
 *
 * A frozen process, an unresponsive disk or a dead link would leave the other ranks in a collective for ever. So every
 * rank regularly sends the others a note with its activity and its progress count, whenever it makes progress
 * (mu_activity) and while it waits. A waiting rank reads them; as long as any rank makes progress, however slowly, there
 * is no stall: long steps, evaluations and checkpoints are allowed.
 *
 * Clocks: only the time that this rank spent polling counts, at most POLL_MAX per poll, so that stopping the whole job
 * (a suspended laptop, a preempting scheduler) does not count as a stall. */
#include "dist/internal.h"

#include <stdlib.h>
#include <string.h>

static const double POLL_MAX = 1.0;

typedef struct {
    int64_t progress;
    int32_t waits;
    char text[116];             /* mu_activity_text */
} note;

typedef struct {
    char host[MU_HOST_NAME];
    note last;
    double heard;               /* by this rank's clock */
} peer;

static struct {
    mu_notes *notes;            /* NULL: no watchdog */
    mu_watch_stalled *stalled;
    int rank, size;
    double seconds, interval;   /* interval: between two notes */
    double clock;               /* total seconds of polling without progress */
    double last_poll;           /* mu_time() of the last poll */
    double moved;               /* `clock` when a rank last made progress */
    double sent;                /* mu_time() of the last note */
    bool warned;
    peer *peers;                /* [size] */
} w;

static void send_note(bool waits) {
    double now = mu_time();
    if (now - w.sent < w.interval) return;
    w.sent = now;
    const mu_activity *a = mu_activity_now();
    note mine = { .progress = a->progress, .waits = waits };
    mu_activity_text(a, mine.text, sizeof mine.text);
    mu_notes_send(w.notes, &mine);
}

/* This rank has made progress itself. */
static void on_progress(void) {
    w.moved = w.clock;
    w.warned = false;
    w.last_poll = 0;
    send_note(false);
}

static void read_notes(void) {
    note got;
    for (int from; mu_notes_take(w.notes, &from, &got);) {
        peer *p = &w.peers[from];
        if (got.progress != p->last.progress) w.moved = w.clock, w.warned = false;
        p->last = got, p->heard = w.clock;
    }
}

static bool is_silent(int rank) { return rank != w.rank && w.clock - w.peers[rank].heard > 5 * w.interval + 0.25; }

/* The lowest rank that is alive reports; others only if it fails to. */
static bool is_reporter(void) {
    int first = 0;
    while (first < w.rank && is_silent(first)) first++;
    return first == w.rank;
}

/* One line per rank. */
static void print_rank(FILE *out, int rank) {
    const peer *p = &w.peers[rank];
    char mine[116];
    fprintf(out, "\n  rank %d on %s: ", rank, p->host);
    if (rank == w.rank)
        fprintf(out, "waiting for the others; %s", mu_activity_text(mu_activity_now(), mine, sizeof mine));
    else if (is_silent(rank))
        fprintf(out, "no message for %.0f s; its last report: %s", w.clock - p->heard, p->last.text[0] ? p->last.text : "none");
    else fprintf(out, "%s; %s", p->last.waits ? "waiting for the others" : "working without progress", p->last.text);
}

/* The known activity of all ranks, silent ones first; heap text. */
static char *describe(void) {
    enum { MOST = 40 };
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    int n = 0;
    for (int silent = 1; silent >= 0; silent--)
        for (int r = 0; r < w.size; r++)
            if (is_silent(r) == silent && n++ < MOST) print_rank(out, r);
    if (n > MOST) fprintf(out, "\n  and %d more ranks", n - MOST);
    fclose(out);
    return text;
}

static void warn(double still) {
    char doing[116], silent[200] = "";
    w.warned = true;
    for (int r = 0; r < w.size && !silent[0]; r++)
        if (is_silent(r))
            snprintf(silent, sizeof silent, "; no message from rank %d on %s", r, w.peers[r].host);
    mu_log(MU_LOG_WARNING, "rank %d on %s has waited %.0f s for the others without progress: %s%s. The watchdog ends"
           " the job in %.0f s", w.rank, w.peers[w.rank].host, still,
           mu_activity_text(mu_activity_now(), doing, sizeof doing), silent, w.seconds - still);
}

static void end_job(double still) {
    char *ranks = describe();
    char *report = mu_format("no rank has made progress for %.0f s; a process, a disk or the network hangs:%s",
                             still, ranks);
    w.stalled(report);
    MU_FATAL(MU_STATUS_INTERNAL, "%s", report); /* `stalled` returned */
}

void mu_watch_poll(void) {
    if (!w.notes) return;
    double now = mu_time(), spent = w.last_poll > 0 ? now - w.last_poll : 0;
    w.last_poll = now;
    w.clock += spent < POLL_MAX ? spent : POLL_MAX;
    read_notes();
    send_note(true);
    double still = w.clock - w.moved, grace = w.seconds / 5 + 2;
    if (still >= w.seconds / 2 && !w.warned) warn(still);
    if (still >= w.seconds && (is_reporter() || still >= w.seconds + grace)) end_job(still);
}

void mu_watch_start(mu_comm *c, double seconds, mu_watch_stalled *stalled) {
    MU_CHECK(!w.notes, "the watchdog is running already");
    if (seconds <= 0 || c->size == 1) return;
    w.rank = c->rank, w.size = c->size, w.seconds = seconds, w.stalled = stalled;
    w.interval = seconds / 20 < 30 ? seconds / 20 : 30;
    w.clock = w.moved = w.last_poll = w.sent = 0, w.warned = false;
    w.peers = mu_alloc((size_t)c->size, sizeof *w.peers);
    char host[MU_HOST_NAME], *hosts = mu_alloc((size_t)c->size, sizeof host);
    mu_host_name(host);
    mu_all_gather(c, host, sizeof host, hosts);
    for (int r = 0; r < c->size; r++) memcpy(w.peers[r].host, hosts + (size_t)r * sizeof host, sizeof host);
    free(hosts);
    w.notes = mu_notes_new(c, sizeof(note));
    mu_activity_set_hook(on_progress);
}

void mu_watch_stop(void) {
    if (!w.notes) return;
    mu_activity_set_hook(NULL);
    mu_notes *notes = w.notes;
    w.notes = NULL;
    mu_notes_free(notes);
    free(w.peers);
    w.peers = NULL;
}
