/* watch_screen.c - draws a run in lines of at most the terminal's width. */
#include "train/watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum { PLAIN, BOLD, SOFT, GREEN, YELLOW, RED, BLUE, CYAN, MAGENTA, N_COLOURS } colour;
static const char *const codes[N_COLOURS] = { "0", "1", "2", "32", "33", "1;31", "1;34", "36", "35" };
static const colour of_state[MU_EXPERT_STATES] = {
    [MU_EXPERT_HEALTHY] = GREEN, [MU_EXPERT_STARVED] = YELLOW, [MU_EXPERT_DEAD] = RED, [MU_EXPERT_CARRIER] = BLUE,
    [MU_EXPERT_DORMANT] = CYAN, [MU_EXPERT_DUPLICATE] = MAGENTA, [MU_EXPERT_OVERWRITTEN] = RED };

typedef struct {
    const mu_watch *w;
    const mu_watch_screen *s;
    FILE *out;
    int column, row;        /* of the next character */
} pen;

static int rows_left(const pen *p) { return p->s->height ? p->s->height - p->row : 1 << 20; }

/* A line has no newline before it is followed by another, so that a full screen does not scroll. */
static void end_line(pen *p) {
    fputs(p->s->clear ? "\033[K\r\n" : "\n", p->out);
    p->column = 0, p->row++;
}

static const char *format_text(char text[MU_WATCH_TEXT], const char *format, ...) MU_PRINTF(2, 3);
static const char *format_text(char text[MU_WATCH_TEXT], const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(text, MU_WATCH_TEXT, format, args);
    va_end(args);
    return text;
}

/* As much of the text as fits into the line; what is not printable is escaped. */
static void put(pen *p, colour c, const char *format, ...) MU_PRINTF(3, 4);
static void put(pen *p, colour c, const char *format, ...) {
    char raw[1024], text[4 * sizeof raw + 1];
    va_list args;
    va_start(args, format);
    vsnprintf(raw, sizeof raw, format, args);
    va_end(args);
    mu_text_escape(text, sizeof text, raw, strlen(raw), "");
    bool coloured = p->s->colour && c != PLAIN && p->column < p->s->width;
    if (coloured) fprintf(p->out, "\033[%sm", codes[c]);
    for (const char *t = text; *t; t++) {
        bool begins = ((unsigned char)*t & 0xC0) != 0x80;
        if (begins && p->column >= p->s->width) break;
        if (p->s->utf8 || (unsigned char)*t < 128) putc(*t, p->out);
        else if (begins) putc('?', p->out);
        p->column += begins;
    }
    if (coloured) fputs("\033[0m", p->out);
}

/* The part, after a blank, or on a new line when it does not fit into this one. */
static void put_part(pen *p, colour c, const char *text) {
    if (p->column && p->column + 1 + (int)strlen(text) > p->s->width && rows_left(p) > 1) end_line(p);
    put(p, c, p->column ? " %s" : "%s", text);
}

static void put_words(pen *p, colour c, const char *text) {
    char *copy = mu_strdup(text), *rest = NULL;
    for (char *word = strtok_r(copy, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) put_part(p, c, word);
    free(copy);
}

/* ------------------------------------------------------------------ progress and losses */

static void show_time(char text[32], double seconds) {
    long long s = llround(seconds);
    if (s >= 3600) snprintf(text, 32, "%lld h %02lld min", s / 3600, s / 60 % 60);
    else if (s >= 60) snprintf(text, 32, "%lld min %02lld s", s / 60, s % 60);
    else snprintf(text, 32, "%lld s", s);
}

static void put_progress(pen *p) {
    static const colour colours[] = { [MU_RUN_RUNNING] = GREEN, [MU_RUN_FINISHED] = BOLD, [MU_RUN_STOPPED] = YELLOW, [MU_RUN_CRASHED] = RED };
    const mu_watch *w = p->w;
    const mu_config *cfg = &w->view->cfg;
    char text[MU_WATCH_TEXT];
    double share = cfg->train.steps > 0 ? fmin((double)w->step / (double)cfg->train.steps, 1) : 0;
    put(p, BOLD, "%s", w->view->dir);
    put(p, PLAIN, "  ");
    put(p, colours[w->view->state], "%s", mu_run_state_name(w->view->state));
    end_line(p);
    int cells = p->s->width < 60 ? 10 : 20, full = (int)(share * cells);
    put(p, PLAIN, "[");
    for (int i = 0; i < cells; i++) put(p, i < full ? GREEN : SOFT, "%s", i < full ? "#" : ".");
    put(p, PLAIN, "]");
    put_part(p, PLAIN, format_text(text, "step %lld of %lld", (long long)w->step, (long long)cfg->train.steps));
    if (w->tokens_per_s > 0) {
        char left[32];
        double tokens = (double)(cfg->train.steps - w->step) * (double)(cfg->train.global_batch_size * cfg->train.seq_len);
        put_part(p, PLAIN, format_text(text, " %.0f tokens/s", w->tokens_per_s));
        show_time(left, tokens / w->tokens_per_s);
        if (w->view->state == MU_RUN_RUNNING) put_part(p, PLAIN, format_text(text, " %s left", left));
    }
    end_line(p);
}

/* Rounded, and never -0.00. */
static void put_change(pen *p, const mu_watch_loss *l) {
    double x = rint(l->change * 100) / 100;
    if (l->has_change) put(p, x > 0.02 ? RED : x < 0 ? GREEN : SOFT, " (%+.2f)", x == 0 ? 0.0 : x);
}

static void put_loss(pen *p, const char *name, const mu_watch_loss *l, const char *rest) {
    put(p, PLAIN, "%-10s ", name);
    if (l->known) put(p, BOLD, "%.4f", l->value);
    else put(p, SOFT, "none yet");
    put_change(p, l);
    if (l->known) put(p, SOFT, "%s", rest);
    end_line(p);
}

static void put_losses(pen *p) {
    const mu_watch *w = p->w;
    char text[64];
    if (rows_left(p) < 3) return;
    put(p, SOFT, "loss, nats per token (change)");
    end_line(p);
    put_loss(p, "training", &w->train, "");
    snprintf(text, sizeof text, "  step %lld", (long long)w->val_step);
    put_loss(p, "validation", &w->val, text);
}

/* As many side by side as fit. */
static void put_domains(pen *p, int rows) {
    const mu_watch *w = p->w;
    const mu_option_domains *all = &w->view->cfg.data.train;
    enum { NAME = 12, CELL = NAME + 16 };
    int in_a_row = p->s->width / CELL > 0 ? p->s->width / CELL : 1, shown = 0, known = 0, fit = (rows - 2) * in_a_row;
    if (!w->domain_step || rows < 4) return;
    end_line(p);
    put_words(p, SOFT, w->probe ? "by domain, on the probe (change since the best)" : "validation by domain (change)");
    if (w->probe && w->coverage.known && p->s->width >= 80) put(p, SOFT, "; criticality coverage %.0f %%", 100 * w->coverage.value);
    end_line(p);
    for (int d = 0; d < all->n; d++) known += w->domain[d].known;
    for (int d = 0; d < all->n; d++) {
        if (!w->domain[d].known) continue;
        if (known > fit && shown == fit - in_a_row) {
            end_line(p);
            put(p, SOFT, "and %d more domains", known - shown);
            break;
        }
        if (shown && shown % in_a_row == 0) end_line(p);
        int at = shown++ % in_a_row * CELL;
        put(p, PLAIN, "%*s%-*.*s ", at > p->column ? at - p->column : 0, "", NAME, NAME, all->list[d].domain);
        put(p, BOLD, "%.2f", w->domain[d].value);
        put_change(p, &w->domain[d]);
    }
    if (shown) end_line(p);
}

/* ------------------------------------------------------------------ loads and states */

/* Half as high at the mean load, a fifth of the mean for each step; a blank for none. */
static const char *block(const pen *p, double load) {
    static const char *const blocks[] = { "\xE2\x96\x81", "\xE2\x96\x82", "\xE2\x96\x83", "\xE2\x96\x84", "\xE2\x96\x85", "\xE2\x96\x86", "\xE2\x96\x87", "\xE2\x96\x88" };
    static const char *const plain[] = { ".", ":", "-", "=", "+", "*", "#", "@" };
    int level = load <= 0 ? -1 : (int)fmin(fmax(rint((load - 1) * 5) + 3, 0), 7);
    return level < 0 ? " " : (p->s->utf8 ? blocks : plain)[level];
}

/* What needs eyes most, of the experts of a column. */
static mu_expert_state worst_of(const uint8_t *state, int64_t n) {
    static const int order[MU_EXPERT_STATES] = { [MU_EXPERT_OVERWRITTEN] = 6, [MU_EXPERT_DEAD] = 5, [MU_EXPERT_STARVED] = 4, [MU_EXPERT_DUPLICATE] = 3,
                                                 [MU_EXPERT_CARRIER] = 2, [MU_EXPERT_DORMANT] = 1 };
    mu_expert_state worst = MU_EXPERT_HEALTHY;
    for (int64_t i = 0; i < n; i++)
        if (order[state[i]] > order[worst]) worst = (mu_expert_state)state[i];
    return worst;
}

static void put_layer(pen *p, int64_t l, int64_t per) {
    const mu_watch *w = p->w;
    const int64_t *load = w->load + l * w->experts;
    double all = 0, most = 0;
    for (int64_t i = 0; i < w->experts; i++) all += (double)load[i], most = fmax(most, (double)load[i]);
    double mean = all > 0 ? all / (double)w->experts : 1;
    put(p, SOFT, "%3lld ", (long long)w->layer[l]);
    for (int64_t i = 0; i < w->experts; i += per) {
        int64_t n = i + per < w->experts ? per : w->experts - i;
        double sum = 0;
        for (int64_t k = i; k < i + n; k++) sum += (double)load[k];
        put(p, of_state[worst_of(w->state + l * w->experts + i, n)], "%s", block(p, sum / (double)n / mean));
    }
    put(p, SOFT, " %.2f", most / mean);
    end_line(p);
}

/* "61 healthy, 3 carriers (layer 0: 0, 5, 10)" */
static void put_states(pen *p) {
    enum { FEW = 6 };
    static const mu_expert_state order[] = { MU_EXPERT_HEALTHY, MU_EXPERT_CARRIER, MU_EXPERT_DORMANT, MU_EXPERT_STARVED, MU_EXPERT_DEAD, MU_EXPERT_DUPLICATE,
                                             MU_EXPERT_OVERWRITTEN };
    const mu_watch *w = p->w;
    for (int k = 0; k < MU_EXPERT_STATES; k++) {
        int64_t n = 0, last = -1;
        char text[256];
        size_t used = 0;
        for (int64_t i = 0; i < w->n_moe * w->experts; i++) n += w->state[i] == order[k];
        if (!n && k) continue;
        bool plural = n > 1 && (order[k] == MU_EXPERT_CARRIER || order[k] == MU_EXPERT_DUPLICATE);
        used += (size_t)snprintf(text, sizeof text, "%lld %s%s", (long long)n, mu_expert_state_name(order[k]), plural ? "s" : "");
        for (int64_t i = 0; i < w->n_moe * w->experts && k && n <= FEW; i++) {
            if (w->state[i] != order[k]) continue;
            long long layer = w->layer[i / w->experts];
            if (layer != last) used += (size_t)snprintf(text + used, sizeof text - used, "%slayer %lld: %lld", last < 0 ? " (" : "; ", layer, (long long)(i % w->experts));
            else used += (size_t)snprintf(text + used, sizeof text - used, ", %lld", (long long)(i % w->experts));
            last = layer;
        }
        if (last >= 0) snprintf(text + used, sizeof text - used, ")");
        if (rows_left(p) < 2) return;
        put_words(p, of_state[order[k]], text);
        end_line(p);
    }
}

static void put_loads(pen *p, int rows) {
    const mu_watch *w = p->w;
    if (!w->load_steps || rows < 3) return;
    int64_t room = p->s->width > 20 ? p->s->width - 10 : 10, per = (w->experts + room - 1) / room, shown = rows - 2 < w->n_moe ? rows - 3 : w->n_moe;
    char text[MU_WATCH_TEXT];
    end_line(p);
    put_words(p, SOFT, format_text(text, "load by layer and %s (%s half the mean, %s mean, %s 1.8), busiest/mean", per > 1 ? "expert, several in a column" : "expert",
                                     block(p, 0.5), block(p, 1), block(p, 1.8)));
    end_line(p);
    for (int64_t l = 0; l < shown; l++) put_layer(p, l, per);
    if (shown < w->n_moe) {
        put(p, SOFT, "    and %lld more layers", (long long)(w->n_moe - shown));
        end_line(p);
    }
}

static void put_events(pen *p) {
    const mu_watch *w = p->w;
    int fit = rows_left(p) - 3, first = fit < w->n_events ? w->n_events - fit : 0;
    if (!p->s->height && w->n_events > 5) first = w->n_events - 5;
    if (fit < 1 || !w->n_events) return;
    end_line(p);
    put(p, SOFT, "last events");
    end_line(p);
    for (int i = first; i < w->n_events && rows_left(p) > 1; i++) {
        char text[MU_WATCH_TEXT + 24];
        snprintf(text, sizeof text, "%lld %s", (long long)w->event[i].step, w->event[i].text);
        if (p->s->height) put(p, PLAIN, "%s", text);
        else put_words(p, PLAIN, text);
        end_line(p);
    }
}

char *mu_watch_draw(const mu_watch *w, const mu_watch_screen *s) {
    char *text = NULL;
    size_t bytes = 0;
    pen p = { w, s, open_memstream(&text, &bytes), 0, 0 };
    MU_CHECK(p.out, "out of memory");
    if (s->clear) fputs("\033[H", p.out);
    put_progress(&p);
    put_losses(&p);
    int events = w->n_events ? 4 : 0, states = w->load_steps ? 3 : 0;
    int half = s->height ? (rows_left(&p) - events - states) / 2 : 1 << 20, loads = (int)w->n_moe + 3;
    put_domains(&p, half > rows_left(&p) - events - states - loads ? half : rows_left(&p) - events - states - loads);
    put_loads(&p, rows_left(&p) - states);
    if (w->load_steps) put_states(&p);
    put_events(&p);
    if (w->damaged && rows_left(&p) > 1) put(&p, YELLOW, "%lld damaged lines are left out", (long long)w->damaged), end_line(&p);
    if (s->clear) {
        put(&p, SOFT, w->view->state == MU_RUN_CRASHED ? "killed; waits for a restart; q: quit" : "q: quit");
        fputs("\033[K\033[J", p.out);
    }
    fclose(p.out);
    return text;
}
