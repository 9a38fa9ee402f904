/* messages.c - output on stderr: log lines, warnings, errors and fatal errors; escaped output on stdout. */
#include "train/train.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

static int the_rank;

static void log_sink(mu_log_level level, const char *line) {
    fflush(stdout);
    if (level == MU_LOG_WARNING) fprintf(stderr, "muster: warning: %s\n", line);
    else if (the_rank == 0) fprintf(stderr, "muster: %s\n", line);
}

static volatile sig_atomic_t abort_code;
static void abort_now(int number) {
    (void)number;
    _exit(abort_code);
}

/* MPI_Abort may never return when the network is down: then this process ends after PATIENCE seconds. */
MU_NORETURN static void end_all_ranks(int code) {
    enum { PATIENCE = 10 };
    abort_code = code;
    signal(SIGALRM, abort_now);
    alarm(PATIENCE);
    mu_dist_abort(code);
}

static void on_fatal(mu_status status, const char *line) {
    fflush(stdout);
    fprintf(stderr, "muster: fatal: rank %d: %s\n", the_rank, line);
    end_all_ranks((int)status);
}

void mu_report_stall(const char *report) {
    fflush(stdout);
    fprintf(stderr, "muster: error: rank %d: %s\n  (run.watchdog sets this time limit)\n", the_rank, report);
    end_all_ranks(MU_STATUS_INTERNAL);
}

void mu_messages_start(void) {
    mu_log_set_sink(log_sink);
    mu_fatal_set_handler(on_fatal);
}

int mu_messages_rank(void) { return the_rank; }

void mu_vprint(const char *fmt, va_list args) {
    char text[8192];
    mu_text_vformat(text, sizeof text, fmt, args);
    fputs(text, stdout);
}

void mu_print(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    mu_vprint(fmt, args);
    va_end(args);
}

void mu_print_text(const char *text) {
    char part[1024];            /* escaping turns one byte into at most four */
    for (size_t n = strlen(text), at = 0; at < n; at += 255) {
        mu_text_escape(part, sizeof part, text + at, n - at < 255 ? n - at : 255, "\n\t");
        fputs(part, stdout);
    }
}

int mu_report_error(const mu_error *e, int rank) {
    the_rank = rank;
    fflush(stdout);
    const char *kind = e->status == MU_STATUS_REQUEUE ? "" : "error: ";      /* a stop signal is not an error */
    if (rank == 0 && e->status != MU_STATUS_OK) fprintf(stderr, "muster: %s%s\n", kind, e->text);
    return (int)e->status;
}
