/* report_states.c - the states of the experts over time, above the losses of the domains. */
#include "train/report.h"

#include <stdlib.h>
#include <string.h>

static int64_t common_divisor(int64_t a, int64_t b) {
    while (b) {
        int64_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

/* So many columns of time that each step in which a state changed is the border of two, if that is possible. */
static int64_t columns_of(const mu_report *r) {
    enum { LEAST = 200, MOST = 1000 };
    int64_t divisor = r->last_step;
    for (int64_t i = 0; i < r->n_states; i++) divisor = common_divisor(divisor, r->states[i].step);
    int64_t columns = divisor > 0 ? r->last_step / divisor : LEAST;
    if (columns > MOST) return MOST;
    return columns * (1 + (LEAST - 1) / (columns > 0 ? columns : 1));
}

/* A column has the states at its middle. */
static void fill_levels(const mu_report *r, int64_t l, int64_t C, uint8_t *levels) {
    int64_t E = r->experts, at = -1;
    for (int64_t col = 0; col < C; col++) {
        while (at + 1 < r->n_states && (double)r->states[at + 1].step * (double)C <= ((double)col + 0.5) * (double)r->last_step) at++;
        for (int64_t i = 0; i < E; i++)
            levels[i * C + col] = at < 0 ? MU_LEVEL_NONE : (uint8_t)(1 + r->states[at].state[l * E + i]);
    }
}

static void put_strips(mu_page *p, const mu_report *r, int64_t l, const mu_mark *marks, int n_marks) {
    int64_t C = columns_of(r);
    uint8_t *levels = mu_alloc((size_t)(r->experts * C), 1);
    fill_levels(r, l, C, levels);
    mu_axes axes = { mu_show("States, layer %lld", (long long)r->layer[l]), "A strip is an expert, time runs to the right. Dashed lines mark steps in which a state changed.",
                     "step", "expert", 0, (double)r->last_step };
    mu_plot_map(p, &axes, &(mu_map){ .colours = MU_COLOURS_STATES, .rows = r->experts, .cols = C, .levels = levels, .row = "expert", .col = "step",
                                     .n_marks = n_marks, .marks = marks });
    free(levels);
}

/* One mark for each step with events, up to `most`; layer -1: of all layers. Heap texts. */
static int make_marks(const mu_report *r, int64_t layer, mu_mark *marks, int most) {
    int n = 0;
    for (int64_t i = 0; i < r->n_events; i++) {
        const mu_report_event *v = &r->events[i];
        if (layer >= 0 && v->layer != layer) continue;
        char *text = mu_format("step %lld: layer %d, expert %d %s%s%s", (long long)v->step, v->layer, v->expert, v->state, v->reason[0] ? ", " : "",
                               v->reason);
        if (n && marks[n - 1].x == (double)v->step) {
            char *both = strlen(marks[n - 1].text) < 300 ? mu_format("%s\n%s", marks[n - 1].text, text) : mu_strdup(marks[n - 1].text);
            free((void *)marks[n - 1].text);
            marks[n - 1].text = both;
            free(text);
        } else if (n < most) marks[n++] = (mu_mark){ (double)v->step, text };
        else free(text);
    }
    return n;
}

static void free_marks(mu_mark *marks, int n) {
    for (int i = 0; i < n; i++) free((void *)marks[i].text);
}

static void put_events(mu_page *p, const mu_report *r) {
    enum { SHOWN = 200 };
    if (!r->n_events) return;
    int64_t first = r->n_events > SHOWN ? r->n_events - SHOWN : 0;
    mu_page_fold(p, false, "%lld change%s of state", (long long)r->n_events, r->n_events == 1 ? "" : "s");
    if (first) mu_page_put(p, "<p class=\"soft\">The last %d of them.</p>", SHOWN);
    mu_page_put(p, "<div class=\"wide\"><table><thead><tr><th>step</th><th>layer</th><th>expert</th><th class=\"words\">state</th><th class=\"words\">why</th></tr></thead><tbody>\n");
    for (int64_t i = first; i < r->n_events; i++)
        mu_page_put(p, "<tr><td>%lld</td><td>%d</td><td>%d</td><td class=\"words\">%s</td><td class=\"words\">%s</td></tr>\n", (long long)r->events[i].step, r->events[i].layer, r->events[i].expert,
                    r->events[i].state, r->events[i].reason);
    mu_page_put(p, "</tbody></table></div>\n");
    mu_page_unfold(p);
}

static void put_losses_below(mu_page *p, const mu_report *r, const mu_mark *marks, int n_marks) {
    const char *kind = mu_report_series(r, "probe/%s/ce_loss", r->n_domains ? r->domain[0] : "") ? "probe" : "val";
    mu_curve *curves = mu_alloc((size_t)r->n_domains + 1, sizeof *curves);
    for (int64_t d = 0; d < r->n_domains; d++) {
        const mu_series *s = mu_report_series(r, "%s/%s/ce_loss", kind, r->domain[d]);
        if (s) curves[d] = (mu_curve){ .name = r->domain[d], .n = s->n, .x = s->step, .y = s->value, .dots = s->n <= 60 };
    }
    mu_axes axes = { "Loss per domain at the same time", "Below the strips on the same axis: a loss that rises after a mark is what the change cost.", "step", "nats per token", 0,
                     (double)r->last_step };
    mu_plot_curves(p, &axes, curves, (int)r->n_domains, &(mu_curve_options){ .n_marks = n_marks, .marks = marks });
    free(curves);
}

void mu_report_put_timeline(mu_page *p, const mu_report *r) {
    enum { MARKS = 40, OPEN = 4 };
    mu_mark marks[MARKS];
    mu_page_section(p, "states", "States over time");
    if (!r->n_states) {
        mu_page_missing(p, "No states yet: they are judged from step 20 on, over the last stats.window steps.");
        return;
    }
    if (!r->all_states)
        mu_page_missing(p, "Healthy, dead and below 10 %% of the mean load (drawn as starved) only, as in step lines: states are in the statistics lines of a run, every stats.every steps.");
    p->label_digits = 5;        /* one axis for all pictures of this part */
    for (int64_t l = 0; l < r->n_moe; l += r->layer_step) {
        int n = make_marks(r, r->layer[l], marks, MARKS);
        mu_page_fold(p, r->n_moe <= OPEN || l == 0, "Layer %lld", (long long)r->layer[l]);
        put_strips(p, r, l, marks, n);
        mu_page_unfold(p);
        free_marks(marks, n);
    }
    int n = make_marks(r, -1, marks, MARKS);
    mu_page_fold(p, true, "Losses at the same time");
    put_losses_below(p, r, marks, n);
    mu_page_unfold(p);
    p->label_digits = 0;
    free_marks(marks, n);
    put_events(p, r);
}
