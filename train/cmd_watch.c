/* cmd_watch.c - muster watch: a run at a glance in a terminal, drawn again each second; into a pipe one snapshot. What lines of the run
 * add is read once. */
#include "train/watch.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum { TAIL_BYTES = 64 << 20 };     /* of a file are read at first: many statistics lines of the largest model */

typedef struct {
    mu_run_view view;
    mu_watch w;
    mu_run_metrics metrics, events;
    bool metrics_open, events_open;
} watcher;

/* ------------------------------------------------------------------ what lines say */

static bool get(const json_t *line, const char *key, double *x) {
    const json_t *value = json_object_get(line, key);
    if (json_is_number(value)) *x = json_number_value(value);
    return json_is_number(value);
}

static void take_loss(mu_watch_loss *l, double value) {
    *l = (mu_watch_loss){ value, value - l->value, true, l->known };
}

/* A list of each MoE layer: loads or states. False: the line has none. */
static bool take_lists(mu_watch *w, const json_t *line, const char *name, int64_t *counts, uint8_t *states) {
    for (int64_t l = 0; l < w->n_moe; l++) {
        char key[64];
        snprintf(key, sizeof key, "moe/layer_%lld/%s", (long long)w->layer[l], name);
        const json_t *list = json_object_get(line, key);
        if ((int64_t)json_array_size(list) != w->experts) return false;
        for (int64_t i = 0; i < w->experts; i++) {
            int64_t x = json_integer_value(json_array_get(list, (size_t)i));
            if (counts) counts[l * w->experts + i] = x;
            else states[l * w->experts + i] = x >= 0 && x < MU_EXPERT_STATES ? (uint8_t)x : MU_EXPERT_HEALTHY;
        }
    }
    return w->n_moe > 0;
}

/* Losses by domain of an evaluation, or of the probe, which is measured more often and is shown once there is one. */
static void take_domains(mu_watch *w, int64_t step, const json_t *line, const char *where) {
    const mu_option_domains *all = &w->view->cfg.data.train;
    bool probe = !strcmp(where, "probe");
    if (w->probe && !probe) return;
    for (int d = 0; d < all->n; d++) {
        char key[MU_WATCH_TEXT];
        double value, change = 0;
        snprintf(key, sizeof key, "%s/%s/ce_loss", where, all->list[d].domain);
        if (!get(line, key, &value)) continue;
        take_loss(&w->domain[d], value);
        snprintf(key, sizeof key, "probe/%s/ce_change", all->list[d].domain);
        if (probe) w->domain[d].has_change = get(line, key, &change), w->domain[d].change = change;
        w->probe = probe, w->domain_step = step;
    }
}

static void take_line(mu_watch *w, const mu_run_metrics *m) {
    double value;
    int64_t steps = json_integer_value(json_object_get(m->line, "stats/steps"));
    if (m->kind == MU_LINE_TRAINING) {
        w->step = m->step;
        if (get(m->line, "train/ce_loss", &value)) take_loss(&w->train, value);
        if (!get(m->line, "perf/tokens_per_s", &w->tokens_per_s)) w->tokens_per_s = 0;
        if (w->load_steps <= 1 && take_lists(w, m->line, "load", w->load, NULL)) w->load_steps = 1, w->load_step = m->step;
    }
    if (m->kind == MU_LINE_STATISTICS) {
        if (take_lists(w, m->line, "load", w->load, NULL)) w->load_steps = steps > 1 ? steps : 2, w->load_step = m->step;
        (void)take_lists(w, m->line, "state", NULL, w->state);
        take_domains(w, m->step, m->line, "probe");
        if (get(m->line, "stats/criticality_coverage", &value)) take_loss(&w->coverage, value);
    }
    if (m->kind == MU_LINE_EVALUATION) {
        if (get(m->line, "val/ce_loss", &value)) take_loss(&w->val, value), w->val_step = m->step;
        take_domains(w, m->step, m->line, "val");
    }
}

/* The oldest makes room. */
static void take_event(mu_watch *w, int64_t step, const json_t *line) {
    const char *to = json_string_value(json_object_get(line, "to")), *reason = json_string_value(json_object_get(line, "reason"));
    const char *domain = json_string_value(json_object_get(line, "domain")), *text = json_string_value(json_object_get(line, "text"));
    if (!to && !text) return;
    bool named = to && (!strcmp(to, mu_expert_state_name(MU_EXPERT_HEALTHY)) || !strcmp(to, mu_expert_state_name(MU_EXPERT_STARVED)));
    if (domain && named && reason) domain = NULL;   /* the reason names it */
    if (w->n_events == MU_WATCH_EVENTS) memmove(w->event, w->event + 1, (size_t)--w->n_events * sizeof *w->event);
    char *out = w->event[w->n_events].text;
    w->event[w->n_events++].step = step;
    if (text) snprintf(out, MU_WATCH_TEXT, "advice: %s", text);
    else
        snprintf(out, MU_WATCH_TEXT, "layer %lld, expert %lld: %s%s%s%s%s", (long long)json_integer_value(json_object_get(line, "layer")),
                 (long long)json_integer_value(json_object_get(line, "expert")), to, domain || reason ? ", " : "", domain ? domain : "",
                 domain && reason ? ": " : "", reason ? reason : "");
}

/* ------------------------------------------------------------------ reading on */

static void forget(watcher *t) {
    mu_watch *w = &t->w;
    free(w->domain), free(w->load), free(w->state), free(w->layer);
    *w = (mu_watch){ .view = &t->view, .experts = t->view.cfg.moe.num_experts };
    w->layer = mu_alloc((size_t)t->view.cfg.model.num_layers + 1, sizeof *w->layer);
    w->n_moe = mu_run_moe_layers(&t->view, w->layer);
    size_t cells = (size_t)(w->n_moe * w->experts) + 1;
    w->domain = mu_alloc((size_t)t->view.cfg.data.train.n + 1, sizeof *w->domain);
    w->load = mu_alloc(cells, sizeof *w->load);
    w->state = mu_alloc(cells, 1);
}

static void close_file(mu_run_metrics *m, bool *open) {
    mu_error why;
    if (*open) (void)!mu_run_metrics_close(m, MU_STATUS_OK, &why);
    *open = false;
}

typedef mu_status opener(mu_run_metrics *m, const mu_run_view *v, mu_error *e);

/* The file may not be there yet. */
static void open_file(watcher *t, opener *open, mu_run_metrics *m, bool *is_open) {
    mu_error why;
    if (*is_open) return;
    *is_open = open(m, &t->view, &why) == MU_STATUS_OK;
    if (*is_open) mu_lines_tail(&m->lines, TAIL_BYTES);
    else (void)!mu_run_metrics_close(m, MU_STATUS_NOINPUT, &why);
}

static bool follows(const bool *is_open, mu_run_metrics *m) { return !*is_open || mu_run_metrics_follow(m); }

/* What was written since. The state of the run is looked at first, so that the lines of a finished run are all there. */
static mu_status read_on(watcher *t, const char *dir, mu_error *e) {
    mu_run_view now;
    mu_status status = mu_run_view_open(&now, dir, e);
    bool first = !t->w.view, changed = first || (status == MU_STATUS_OK && strcmp(now.config_text, t->view.config_text));
    if (status != MU_STATUS_OK) return mu_run_view_close(&now), status;
    mu_run_view_close(&t->view);
    t->view = now;
    if (changed || !follows(&t->metrics_open, &t->metrics) || !follows(&t->events_open, &t->events)) {
        close_file(&t->metrics, &t->metrics_open);
        close_file(&t->events, &t->events_open);
        forget(t);
    }
    open_file(t, mu_run_metrics_open, &t->metrics, &t->metrics_open);
    open_file(t, mu_run_events_open, &t->events, &t->events_open);
    while (t->metrics_open && mu_run_metrics_next(&t->metrics)) take_line(&t->w, &t->metrics);
    while (t->events_open && mu_run_metrics_next(&t->events)) take_event(&t->w, t->events.step, t->events.line);
    t->w.damaged = t->metrics.skipped + t->events.skipped;
    return MU_STATUS_OK;
}

static void close_watcher(watcher *t) {
    close_file(&t->metrics, &t->metrics_open);
    close_file(&t->events, &t->events_open);
    free(t->w.domain), free(t->w.load), free(t->w.state), free(t->w.layer);
    mu_run_view_close(&t->view);
}

/* ------------------------------------------------------------------ the terminal */

static volatile sig_atomic_t stopped;
static void on_stop(int signal) { stopped = signal; }
static void on_resize(int signal) { (void)signal; }     /* ends the wait */

typedef struct { bool terminal, keys; struct termios before; } terminal;

static bool is_utf8(void) {
    static const char *const names[] = { "LC_ALL", "LC_CTYPE", "LANG" };
    const char *value = NULL;
    for (int i = 0; i < 3 && (!value || !*value); i++) value = getenv(names[i]);
    return value && (strstr(value, "UTF-8") || strstr(value, "utf8") || strstr(value, "UTF8") || strstr(value, "utf-8"));
}

static mu_watch_screen screen_of(const terminal *t) {
    const char *no_colour = getenv("NO_COLOR"), *kind = getenv("TERM"), *columns = getenv("COLUMNS");
    struct winsize size;
    mu_watch_screen s = { .width = columns ? atoi(columns) : 80, .utf8 = is_utf8() };
    if (t->terminal && !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col) s.width = size.ws_col, s.height = size.ws_row;
    if (s.width < 20) s.width = 20;
    s.colour = t->terminal && !(no_colour && *no_colour) && kind && strcmp(kind, "dumb");
    return s;
}

/* The other screen, without cursor; keys come at once and without echo, also Ctrl-C. */
static void enter(terminal *t) {
    struct sigaction stop = { .sa_handler = on_stop }, resize = { .sa_handler = on_resize };
    int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) sigaction(signals[i], &stop, NULL);
    sigaction(SIGWINCH, &resize, NULL);
    t->keys = isatty(STDIN_FILENO) && !tcgetattr(STDIN_FILENO, &t->before);
    if (t->keys) {
        struct termios raw = t->before;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO | ISIG);
        raw.c_cc[VMIN] = 0, raw.c_cc[VTIME] = 0;
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    fputs("\033[?1049h\033[?25l", stdout);
}

static void leave(const terminal *t) {
    fputs("\033[?25h\033[?1049l", stdout);
    fflush(stdout);
    if (t->keys) tcsetattr(STDIN_FILENO, TCSANOW, &t->before);
}

/* A second, less when the window changes its size; true: q, Ctrl-C or a signal. */
static bool wait_for_end(const terminal *t) {
    enum { CTRL_C = 3, CTRL_D = 4 };
    struct pollfd keys = { .fd = STDIN_FILENO, .events = POLLIN };
    char key;
    int n = poll(&keys, t->keys ? 1 : 0, 1000);
    if (n > 0 && (keys.revents & POLLIN) && read(STDIN_FILENO, &key, 1) == 1 && (key == 'q' || key == 'Q' || key == CTRL_C || key == CTRL_D)) return true;
    return stopped || (n > 0 && (keys.revents & (POLLHUP | POLLERR)));
}

static void draw(const watcher *t, const mu_watch_screen *s) {
    char *text = mu_watch_draw(&t->w, s);
    fputs(text, stdout);
    fflush(stdout);
    free(text);
}

/* A job that was killed may be started again at once. *killed: when that was seen, 0: it was not. */
static bool goes_on(const watcher *t, double *killed) {
    static const double PATIENCE = 10;  /* seconds */
    if (t->view.state != MU_RUN_CRASHED) *killed = 0;
    else if (*killed == 0) *killed = mu_time();
    return t->view.state == MU_RUN_RUNNING || (*killed > 0 && mu_time() - *killed < PATIENCE);
}

/* Until the run ends or the user does. */
static mu_status follow(watcher *t, const char *dir, terminal *term, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    bool ended = false;
    double killed = 0;
    enter(term);
    while (status == MU_STATUS_OK && !ended && goes_on(t, &killed)) {
        mu_watch_screen s = screen_of(term);
        s.clear = true;
        draw(t, &s);
        ended = wait_for_end(term);
        if (!ended) status = read_on(t, dir, e);
    }
    leave(term);
    return status;
}

static mu_status watch(const char *dir, mu_error *e) {
    static const char *const words[] = { [MU_RUN_RUNNING] = "still runs", [MU_RUN_FINISHED] = "has finished; `muster report` draws all of it",
                                         [MU_RUN_STOPPED] = "has stopped before its last step; the same command resumes it",
                                         [MU_RUN_CRASHED] = "was killed; the same command resumes it from its newest checkpoint" };
    watcher t = { 0 };
    terminal term = { .terminal = mu_output_is_terminal() };
    mu_status status = read_on(&t, dir, e);
    if (status == MU_STATUS_OK && term.terminal && t.view.state == MU_RUN_RUNNING) status = follow(&t, dir, &term, e);
    if (status == MU_STATUS_OK) {
        mu_watch_screen s = screen_of(&term);
        s.height = 0;
        if (!term.terminal || t.view.state != MU_RUN_RUNNING) draw(&t, &s);
        mu_print("%s %s\n", dir, words[t.view.state]);
    }
    close_watcher(&t);
    return status;
}

int mu_cmd_watch(int argc, char **argv) {
    mu_error e = { 0 };
    char *dir = NULL;
    int n = 0;
    mu_report_error(&e, 0);
    mu_status status = mu_run_arguments(argc, argv, &(mu_run_options){ .least = 1, .most = 1 }, &n, &dir, &e);
    if (status == MU_STATUS_OK) status = watch(dir, &e);
    free(dir);
    if (status != MU_STATUS_OK) mu_report_error(&e, 0);
    return (int)status;
}
