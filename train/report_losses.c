/* report_losses.c - losses of training, validation and probe, and dropped assignments, by domain. */
#include "train/report.h"

#include <math.h>
#include <stdlib.h>

static mu_curve curve_of(const char *name, const mu_series *s, bool dots) {
    return s ? (mu_curve){ .name = name, .n = s->n, .x = s->step, .y = s->value, .dots = dots } : (mu_curve){ .name = name };
}

static mu_axes step_axes(const mu_report *r, const char *title, const char *how, const char *y_name) {
    return (mu_axes){ .title = title, .how = how, .x_name = "step", .y_name = y_name, .x1 = (double)r->last_step };
}

enum { PHASES = 16 };
/* Where data.phases change the mixture of domains. The caller frees the texts. */
static int phase_marks(const mu_report *r, mu_mark marks[PHASES]) {
    const mu_data_config *d = &r->view.cfg.data;
    int n = 0;
    for (int i = 0; i + 1 < d->phases.n && n < PHASES; i++) {
        int64_t end = d->phases.list[i].until_step;
        char *text = mu_phase_begins(d, end + 1);
        if (text) marks[n++] = (mu_mark){ (double)end, text };
    }
    return n;
}

static void free_marks(mu_mark *marks, int n) {
    for (int i = 0; i < n; i++) free((void *)marks[i].text);
}

/* A curve for each domain whose key begins and ends like this; false: no domain has any. */
static bool put_domains(mu_page *p, const mu_report *r, const mu_axes *axes, const char *begin, const char *end, const mu_curve_options *options) {
    mu_curve *curves = mu_alloc((size_t)r->n_domains + 1, sizeof *curves);
    bool any = false;
    for (int64_t d = 0; d < r->n_domains; d++) {
        const mu_series *s = mu_report_series(r, "%s/%s/%s", begin, r->domain[d], end);
        curves[d] = curve_of(r->domain[d], s, s && s->n <= 60);
        any |= curves[d].n > 0;
    }
    if (any) mu_plot_curves(p, axes, curves, (int)r->n_domains, options);
    free(curves);
    return any;
}

static const char *why_no_evaluation(const mu_report *r) {
    const mu_config *cfg = &r->view.cfg;
    if (!(cfg->data.val_fraction > 0)) return "data.val_fraction is 0, so there are no validation texts";
    if (!cfg->train.eval_every) return "train.eval_every is 0";
    return mu_show("there was no evaluation up to step %lld; train.eval_every is %lld", (long long)r->last_step, (long long)cfg->train.eval_every);
}

void mu_report_put_losses(mu_page *p, const mu_report *r) {
    mu_mark marks[PHASES];
    int n_marks = phase_marks(r, marks);
    mu_curve_options marked = { .n_marks = n_marks, .marks = marks };
    mu_page_section(p, "losses", "Losses");
    const mu_series *val = mu_report_series(r, "val/ce_loss");
    mu_axes axes = step_axes(r, "Training and validation loss", "Lower is better; a gap that opens between the two means that texts are learned by "
                             "heart. Cross-entropy without balancing terms.", "nats per token");
    mu_curve both[] = { curve_of("training", mu_report_series(r, "train/ce_loss"), false), curve_of("validation", val, val && val->n <= 60) };
    mu_plot_curves(p, &axes, both, 2, &marked);
    for (int i = 0; i < n_marks; i++) mu_page_put(p, "<p class=\"soft\">Dashed line %d: %s.</p>\n", i + 1, marks[i].text);
    axes = step_axes(r, "Validation loss per domain", "Each curve is one domain, on texts that are not trained on. A curve that turns upwards while others fall is "
                     "a domain being forgotten.", "nats per token");
    if (!put_domains(p, r, &axes, "val", "ce_loss", &marked))
        mu_page_missing(p, "No validation losses: %s.", why_no_evaluation(r));
    axes = step_axes(r, "Probe loss per domain", "The same few validation texts of each domain at every statistics step, also while the domain is absent from training.",
                     "nats per token");
    if (!put_domains(p, r, &axes, "probe", "ce_loss", &marked) && r->n_moe)
        mu_page_missing(p, "No probe losses: %s.", mu_report_why_no_probe(r));
    free_marks(marks, n_marks);
}

void mu_report_put_drops(mu_page *p, const mu_report *r) {
    mu_page_section(p, "drops", "Dropped assignments");
    if (r->view.cfg.moe.capacity_factor == 0) {
        mu_page_missing(p, "Dropless: moe.capacity_factor is 0, every token reaches all its experts.");
        return;
    }
    mu_axes axes = step_axes(r, "Dropped assignments per domain", "Share of a domain's assignments beyond the capacity of their experts; these experts add nothing to the token.", "share");
    if (put_domains(p, r, &axes, "moe", "dropped_frac", &(mu_curve_options){ .from_zero = true })) return;
    const mu_series *s = mu_report_series(r, "moe/dropped_frac");
    mu_curve all = curve_of("all domains", s, false);
    axes.title = "Dropped assignments";
    if (s) mu_plot_curves(p, &axes, &all, 1, &(mu_curve_options){ .from_zero = true });
    mu_page_missing(p, "Not known by domain: this run was made by a version that counts drops only in total.");
}
