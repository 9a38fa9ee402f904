/* cmd_compare.c - muster compare: several runs in one page. */
#include "train/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS_MOST = MU_CURVES_MOST };    /* curves of one picture */
typedef struct {
    int n;
    char *dir[RUNS_MOST], *out;         /* heap */
    mu_report run[RUNS_MOST];
    const char *name[RUNS_MOST];        /* the folder's name, or its path when two have the same name */
} comparison;

static mu_status parse(int argc, char **argv, comparison *c, mu_error *e) {
    const char *out = "compare.html";
    mu_status status = mu_run_arguments(argc, argv, &(mu_run_options){ .least = 2, .most = RUNS_MOST, .out = &out }, &c->n, c->dir, e);
    return status == MU_STATUS_OK ? mu_expand_home(out, &c->out, e) : status;
}

static mu_status read_runs(comparison *c, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < c->n && status == MU_STATUS_OK; i++) status = mu_report_read(&c->run[i], c->dir[i], e);
    for (int i = 0; i < c->n && status == MU_STATUS_OK; i++) {
        c->name[i] = c->run[i].name;
        for (int j = 0; j < c->n; j++)
            if (j != i && !strcmp(c->run[i].name, c->run[j].name)) c->name[i] = c->dir[i];
    }
    return status;
}

/* ------------------------------------------------------------------ tables */

static void begin_table(mu_page *p, const comparison *c, const char *first) {
    mu_page_put(p, "<div class=\"wide\"><table><thead><tr><th>%s</th>", first);
    for (int i = 0; i < c->n; i++)
        mu_page_put(p, "<th><span class=\"patch\" style=\"background:%-s\"></span>%s</th>", mu_curve_colour(i), c->name[i]);
    mu_page_put(p, "</tr></thead><tbody>\n");
}

static void end_table(mu_page *p) { mu_page_put(p, "</tbody></table></div>\n"); }

/* One number of each run; the smallest is bold when `best`. */
static void put_row(mu_page *p, const comparison *c, const char *name, const double *values, bool best) {
    double least = INFINITY;
    for (int i = 0; i < c->n; i++) least = fmin(least, isnan(values[i]) ? INFINITY : values[i]);
    mu_page_put(p, "<tr><td>%s</td>", name);
    for (int i = 0; i < c->n; i++)
        mu_page_put(p, best && values[i] == least ? "<td><b>%s</b></td>" : "<td>%s</td>", mu_show_number(values[i]));
    mu_page_put(p, "</tr>\n");
}

static mu_model_size size_of(const mu_report *r) {
    const mu_config *cfg = &r->view.cfg;
    return r->vocab_size ? mu_model_measure(&cfg->model, &cfg->moe, r->vocab_size, cfg->train.seq_len) : (mu_model_size){ 0 };
}

static void put_overview(mu_page *p, const comparison *c) {
    enum { STEPS, TOKENS, TOTAL, ACTIVE, FLOPS, SECONDS, SPEED, TRAIN, VAL, ROWS };
    static const char *const names[ROWS] = { "steps", "tokens", "parameters", "active per token", "FLOPs per token", "training time, s", "tokens/s",
                                             "training loss (last tenth)", "validation loss" };
    double values[ROWS][RUNS_MOST];
    for (int i = 0; i < c->n; i++) {
        const mu_report *r = &c->run[i];
        mu_model_size size = size_of(r);
        int64_t n;
        double *seconds = mu_report_seconds(r, &n);
        values[STEPS][i] = (double)r->last_step;
        values[TOKENS][i] = mu_series_last(mu_report_series(r, "train/tokens"));
        values[TOTAL][i] = (double)size.total, values[ACTIVE][i] = (double)size.active, values[FLOPS][i] = size.train_flops;
        values[SECONDS][i] = n ? rint(seconds[n - 1]) : NAN;
        values[SPEED][i] = rint(mu_series_recent(mu_report_series(r, "perf/tokens_per_s")));
        values[TRAIN][i] = mu_series_recent(mu_report_series(r, "train/ce_loss"));
        values[VAL][i] = mu_series_last(mu_report_series(r, "val/ce_loss"));
        free(seconds);
    }
    begin_table(p, c, "");
    mu_page_put(p, "<tr><td>state</td>");
    for (int i = 0; i < c->n; i++) mu_page_put(p, "<td>%s</td>", mu_run_state_name(c->run[i].view.state));
    mu_page_put(p, "</tr>\n");
    for (int row = 0; row < ROWS; row++) put_row(p, c, names[row], values[row], row >= TRAIN);
    end_table(p);
}

/* A row of the table of options, if the texts (heap, freed here) differ. */
static void put_texts(mu_page *p, const comparison *c, const char *name, char *text[RUNS_MOST], int *shown) {
    bool differ = false;
    for (int i = 1; i < c->n; i++) differ |= strcmp(text[i], text[0]) != 0;
    if (differ) {
        if (!(*shown)++) begin_table(p, c, "option");
        mu_page_put(p, "<tr><td>%s</td>", name);
        for (int i = 0; i < c->n; i++) mu_page_put(p, "<td class=\"value\">%s</td>", text[i]);
        mu_page_put(p, "</tr>\n");
    }
    for (int i = 0; i < c->n; i++) free(text[i]);
}

static const mu_option_domain *find_domain(const mu_report *r, const char *name) {
    const mu_option_domains *all = &r->view.cfg.data.train;
    for (int i = 0; i < all->n; i++)
        if (!strcmp(all->list[i].domain, name)) return &all->list[i];
    return NULL;
}

/* Was the domain in the list of an earlier run? */
static bool seen_before(const comparison *c, int run, const char *domain) {
    for (int i = 0; i < run; i++)
        if (find_domain(&c->run[i], domain)) return true;
    return false;
}

/* data.train is a long list: a row for each domain in which it differs. */
static void put_data(mu_page *p, const comparison *c, int *shown) {
    for (int i = 0; i < c->n; i++)
        for (int64_t d = 0; d < c->run[i].n_domains; d++) {
            const char *domain = c->run[i].domain[d];
            char *text[RUNS_MOST];
            if (seen_before(c, i, domain)) continue;
            for (int j = 0; j < c->n; j++) {
                const mu_option_domain *o = find_domain(&c->run[j], domain);
                text[j] = o ? mu_format("%s, weight %g", o->path, o->weight) : mu_strdup("\xE2\x80\x93");
            }
            put_texts(p, c, mu_show("data.train: %s", domain), text, shown);
        }
}

static void put_differences(mu_page *p, const comparison *c) {
    int n_options, shown = 0;
    const mu_option *table = mu_config_table(&n_options);
    mu_page_section(p, "options", "Different options");
    for (int o = 0; o < n_options; o++) {
        char *text[RUNS_MOST];
        if (table[o].use & MU_USE_RETIRED || (!strcmp(table[o].section, "run") && !strcmp(table[o].key, "dir"))) continue;
        if (!strcmp(table[o].section, "data") && !strcmp(table[o].key, "train")) {
            put_data(p, c, &shown);
            continue;
        }
        for (int i = 0; i < c->n; i++) text[i] = mu_option_text(&table[o], &c->run[i].view.cfg);
        put_texts(p, c, mu_show("%s.%s", table[o].section, table[o].key), text, &shown);
    }
    if (shown) end_table(p);
    else mu_page_put(p, "<p>None: the runs have the same options.</p>\n");
}

/* ------------------------------------------------------------------ curves over steps, tokens and seconds */

typedef enum { BY_STEPS, BY_TOKENS, BY_SECONDS, N_AXES } axis;
static const char *const axis_names[N_AXES] = { "step", "tokens", "seconds of training" };

/* Where the steps of a series are on this axis; heap [n]. */
static double *positions(const mu_report *r, const mu_series *s, axis x) {
    double *out = mu_alloc((size_t)s->n + 1, sizeof *out);
    const mu_series *tokens = mu_report_series(r, "train/tokens");
    int64_t n, at = 0;
    double *seconds = mu_report_seconds(r, &n);
    for (int64_t i = 0; i < s->n; i++) {
        while (tokens && at + 1 < tokens->n && tokens->step[at + 1] <= s->step[i]) at++;
        out[i] = x == BY_STEPS ? s->step[i] : x == BY_TOKENS ? (tokens ? tokens->value[at] : 0) : at < n ? seconds[at] : 0;
    }
    free(seconds);
    return out;
}

static void put_curves(mu_page *p, const comparison *c, const char *key, const char *title, const char *how, const char *unit, axis x, bool share) {
    mu_curve curves[RUNS_MOST] = { 0 };
    double end = 0;
    for (int i = 0; i < c->n; i++) {
        const mu_series *s = mu_report_series(&c->run[i], "%s", key);
        if (!s) continue;
        double *at = positions(&c->run[i], s, x);
        curves[i] = (mu_curve){ .name = c->name[i], .n = s->n, .x = at, .y = s->value, .dots = s->n <= 60 };
        end = fmax(end, at[s->n - 1]);
    }
    mu_plot_curves(p, &(mu_axes){ title, how, axis_names[x], unit, 0, end }, curves, c->n, &(mu_curve_options){ .from_zero = share });
    for (int i = 0; i < c->n; i++) free((void *)curves[i].x);
}

/* The same picture over each axis, one shown at a time: radio buttons need no script. */
static void put_tabs(mu_page *p, const comparison *c, const char *key, const char *title, const char *how, const char *unit) {
    bool any = false;
    for (int i = 0; i < c->n; i++) any |= mu_report_series(&c->run[i], "%s", key) != NULL;
    if (!any) return;
    mu_page_put(p, "<div class=\"tabs\">");
    int group = p->figures;
    for (int x = 0; x < N_AXES; x++)
        mu_page_put(p, "<input type=\"radio\" name=\"t%d\" id=\"t%d-%d\"%-s><label for=\"t%d-%d\">%s</label>", group, group, x, x ? "" : " checked", group, x,
                    axis_names[x]);
    for (int x = 0; x < N_AXES; x++) {
        mu_page_put(p, "<section>\n");
        put_curves(p, c, key, title, how, unit, (axis)x, !strcmp(unit, "share"));
        mu_page_put(p, "</section>");
    }
    mu_page_put(p, "</div>\n");
}

/* ------------------------------------------------------------------ parts */

static void put_balance(mu_page *p, const comparison *c) {
    mu_page_section(p, "balance", "Balance");
    put_tabs(p, c, "moe/load_imbalance", "Load of the busiest expert", "As a multiple of the mean, in the least balanced layer; 1 is perfect balance.", "x mean load");
    put_tabs(p, c, "moe/diversity", "Diversity", "Share of the experts that is effectively in use, mean of the layers; 1 is best.", "share");
    put_tabs(p, c, "moe/dropped_frac", "Dropped assignments", "Share of assignments beyond moe.capacity_factor.", "share");
}

static void put_states(mu_page *p, const comparison *c) {
    bool any = false;
    mu_page_section(p, "states", "States of the experts");
    for (int i = 0; i < c->n; i++) any |= c->run[i].n_states > 0;
    if (!any) {
        mu_page_missing(p, "No run has judged its experts yet.");
        return;
    }
    begin_table(p, c, "experts now");
    for (int s = 0; s < MU_EXPERT_STATES; s++) {
        double counts[RUNS_MOST] = { 0 }, sum = 0;
        for (int i = 0; i < c->n; i++) {
            const mu_report *r = &c->run[i];
            for (int64_t k = 0; r->n_states && k < r->n_moe * r->experts; k++) counts[i] += r->states[r->n_states - 1].state[k] == s;
            if (!r->n_states) counts[i] = NAN;
            else sum += counts[i];
        }
        if (sum > 0 || s <= MU_EXPERT_DEAD) put_row(p, c, mu_expert_state_name((mu_expert_state)s), counts, false);
    }
    end_table(p);
    put_tabs(p, c, "moe/dead_frac", "Dead experts", "Share of all experts without a token in the window of stats.window steps.", "share");
    put_tabs(p, c, "moe/starved_frac", "Experts with little load", "Share of all experts below 10 % of the mean load in that window.", "share");
}

/* Calls `put` for the domains of all runs: the first run's, then those that only later ones have. */
static void each_domain(mu_page *p, const comparison *c, void (*put)(mu_page *p, const comparison *c, const char *domain)) {
    for (int i = 0; i < c->n; i++)
        for (int64_t d = 0; d < c->run[i].n_domains; d++)
            if (!seen_before(c, i, c->run[i].domain[d])) put(p, c, c->run[i].domain[d]);
}

static void put_domain_row(mu_page *p, const comparison *c, const char *domain) {
    double last[RUNS_MOST];
    for (int j = 0; j < c->n; j++) last[j] = mu_series_last(mu_report_series(&c->run[j], "val/%s/ce_loss", domain));
    put_row(p, c, domain, last, true);
}

static void put_domain_curves(mu_page *p, const comparison *c, const char *domain) {
    put_curves(p, c, mu_show("val/%s/ce_loss", domain), domain, "Validation loss of this domain in each run.", "nats per token", BY_STEPS, false);
}

static void put_domains(mu_page *p, const comparison *c) {
    mu_page_section(p, "domains", "Validation loss per domain");
    begin_table(p, c, "nats per token, last evaluation");
    each_domain(p, c, put_domain_row);
    end_table(p);
    mu_page_fold(p, false, "Curves");
    each_domain(p, c, put_domain_curves);
    mu_page_unfold(p);
}

static void put_page(mu_page *p, const comparison *c) {
    mu_page_begin(p, "muster compare");
    mu_page_put(p, "<h1>%d runs</h1>\n<nav><a href=\"#options\">Options</a><a href=\"#losses\">Losses</a><a href=\"#domains\">Domains</a>"
                   "<a href=\"#balance\">Balance</a><a href=\"#states\">States</a></nav>\n", c->n);
    put_differences(p, c);
    mu_page_section(p, "overview", "Overview");
    put_overview(p, c);
    mu_page_section(p, "losses", "Losses");
    put_tabs(p, c, "train/ce_loss", "Training loss", "Lower is better. Against steps and tokens a better model shows, against seconds also its speed.", "nats per token");
    put_tabs(p, c, "val/ce_loss", "Validation loss", "Mean of the domains, on texts that are not trained on.", "nats per token");
    put_domains(p, c);
    put_balance(p, c);
    put_states(p, c);
}

static mu_status compare(comparison *c, mu_error *e) {
    mu_page p;
    mu_status status = mu_page_check(c->out, e);
    if (status == MU_STATUS_OK) status = read_runs(c, e);
    if (status == MU_STATUS_OK) {
        put_page(&p, c);
        status = mu_page_end(&p, c->out, e);
        if (status == MU_STATUS_OK) mu_print("written to %s, %.1f MB\n", c->out, (double)p.bytes / 1e6);
    }
    return status;
}

int mu_cmd_compare(int argc, char **argv) {
    mu_error e = { 0 };
    comparison c = { 0 };
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_report_error(&e, rank);
    mu_status status = world->size > 1 ? mu_error_set(&e, MU_STATUS_USAGE, "compare runs on one rank") : parse(argc, argv, &c, &e);
    if (status == MU_STATUS_OK) status = compare(&c, &e);
    for (int i = 0; i < c.n; i++) {
        mu_report_free(&c.run[i]);
        free(c.dir[i]);
    }
    free(c.out);
    mu_comm_free(world);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}
