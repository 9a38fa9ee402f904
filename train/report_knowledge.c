/* report_knowledge.c - rare knowledge: which experts carry it, what left the stream of samples and what held it, what was archived, and what
 * all that cost. */
#include "train/report.h"
#include "train/surgery.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ------------------------------------------------------------------ carriers */

/* What is known of an expert at the end of the run. */
typedef struct {
    mu_expert_state state;
    bool protected;             /* at the end */
    int64_t since;              /* the step in which it got this state; 0: unknown */
    const char *domain;         /* that it carries; NULL: unknown */
} fate;

/* By protect.carriers; NULL: it is not in that table. */
static const char *domain_by_option(const mu_report *r, int64_t expert) {
    const mu_option_domain_ints *table = &r->view.cfg.protect.carriers;
    for (int i = 0; i < table->n; i++)
        if (table->list[i].value == expert) return table->list[i].domain;
    return NULL;
}

/* Number among the MoE layers; -1: none of these. */
static int64_t number_of(const mu_report *r, int64_t layer) {
    for (int64_t l = 0; l < r->n_moe; l++)
        if (r->layer[l] == layer) return l;
    return -1;
}

/* NULL: no such expert. */
static fate *fate_at(const mu_report *r, fate *all, int64_t layer, int64_t expert) {
    int64_t l = number_of(r, layer);
    return l < 0 || expert < 0 || expert >= r->experts ? NULL : &all[l * r->experts + expert];
}

/* [MoE layers, experts], heap. */
static fate *find_fates(const mu_report *r) {
    fate *all = mu_alloc((size_t)(r->n_moe * r->experts) + 1, sizeof *all);
    for (int64_t i = 0; i < r->n_moe * r->experts; i++) {
        all[i].domain = domain_by_option(r, i % r->experts), all[i].protected = all[i].domain != NULL;
        if (r->n_states) all[i].state = (mu_expert_state)r->states[r->n_states - 1].state[i];
    }
    for (int64_t i = 0; i < r->n_events; i++) {
        const mu_report_event *v = &r->events[i];
        fate *f = fate_at(r, all, v->layer, v->expert);
        if (!f || strcmp(v->state, mu_expert_state_name(f->state))) continue;
        f->since = v->step;
        if (v->domain >= 0) f->domain = r->domain[v->domain];
    }
    for (int64_t i = 0; i < r->n_care; i++) {
        const mu_report_care *c = &r->care[i];
        fate *f = fate_at(r, all, c->layer, c->expert);
        if (f && c->kind == MU_CARE_PROTECTED) f->protected = true;
        if (f && c->kind == MU_CARE_LEFT) f->protected = domain_by_option(r, c->expert) != NULL;
    }
    return all;
}

static bool is_of_interest(const fate *f) { return f->protected || mu_expert_carries(f->state) || f->state == MU_EXPERT_OVERWRITTEN; }

/* What the domain loses without the expert, as last measured; NAN: unknown. */
static double criticality_for(const mu_report *r, int64_t l, int64_t expert, const char *domain) {
    double *K = mu_report_list(r, r->experts * r->n_domains, "moe/layer_%lld/criticality", (long long)r->layer[l]), value = NAN;
    for (int64_t d = 0; K && domain && d < r->n_domains; d++)
        if (!strcmp(r->domain[d], domain)) value = K[expert * r->n_domains + d];
    free(K);
    return value;
}

/* "300, 200": the steps of its records, newest first. */
static const char *records_of(const char *folder, int64_t layer, int64_t expert) {
    int64_t *steps;
    int n = mu_archive_list(folder, (int)layer, (int)expert, &steps);
    const char *text = "";
    for (int i = 0; i < n; i++) text = mu_show("%s%s%lld", text, i ? ", " : "", (long long)steps[i]);
    free(steps);
    return n ? text : "-";
}

static void put_carrier(mu_page *p, const mu_report *r, int64_t l, int64_t expert, const fate *f, const char *folder) {
    double mean = r->of_layer ? (double)r->of_layer[l] / (double)r->experts : 0, K = criticality_for(r, l, expert, f->domain);
    mu_page_put(p, "<tr><td>%lld</td><td>%lld</td><td class=\"words\">%s</td><td class=\"words\">%s%s</td><td>%s</td><td>%s</td>", (long long)r->layer[l],
                (long long)expert, f->domain ? f->domain : "-", mu_expert_state_name(f->state), f->since ? mu_show(" since step %lld", (long long)f->since) : "",
                isnan(K) ? "-" : mu_show("%.2f", K),
                mean > 0 ? mu_show("%.2f", (double)r->of_expert[l * r->experts + expert] / mean) : "-");
    mu_page_put(p, "<td class=\"words\">%s</td><td class=\"words\">%s</td></tr>\n", f->protected ? "yes" : "no", records_of(folder, r->layer[l], expert));
}

static void put_carriers(mu_page *p, const mu_report *r, const char *folder) {
    enum { ROWS = 100 };
    fate *all = find_fates(r);
    int64_t n = 0;
    for (int64_t i = 0; i < r->n_moe * r->experts; i++) {
        if (!is_of_interest(&all[i]) || n++ >= ROWS) continue;
        if (n == 1)
            mu_page_put(p, "<h3>Carriers and protected experts</h3>\n<div class=\"wide\"><table><thead><tr><th>layer</th><th>expert</th><th class=\"words\">carries</th>"
                           "<th class=\"words\">state</th><th>criticality, nats</th><th>load, of the mean</th><th class=\"words\">protected</th>"
                           "<th class=\"words\">archived at step</th></tr></thead><tbody>\n");
        put_carrier(p, r, i / r->experts, i % r->experts, &all[i], folder);
    }
    if (n) mu_page_put(p, "</tbody></table></div>\n");
    else
        mu_page_missing(p, "No expert carries a rare domain, and none is protected: a domain is rare with up to stats.rare_domain of the tokens, and protect.domains"
                           " says which are protected.");
    if (n > ROWS) mu_page_put(p, "<p class=\"soft\">The first %d of %lld; muster expert list shows all.</p>\n", ROWS, (long long)n);
    free(all);
}

/* ------------------------------------------------------------------ domains that left the samples */

typedef struct { const char *domain; int64_t from, to; } absence;       /* steps, to: the last one so far */

static double weight_at(const mu_option_phases *phases, int64_t step, const char *domain) {
    return phases->n ? mu_phase_weight(&phases->list[mu_phase_of_step(phases, step)], domain) : 1;
}

/* The last step without the domain. */
static int64_t end_of(const mu_report *r, const char *domain, int64_t from) {
    const mu_option_phases *phases = &r->view.cfg.data.phases;
    for (int i = 0; i + 1 < phases->n; i++)
        if (phases->list[i].until_step >= from && phases->list[i].until_step < r->last_step && weight_at(phases, phases->list[i].until_step + 1, domain) > 0)
            return phases->list[i].until_step;
    return r->last_step;
}

/* By the phases, and, of a fork that begins without a domain, by the events; heap. */
static absence *find_absences(const mu_report *r, int *n) {
    const mu_option_phases *phases = &r->view.cfg.data.phases;
    absence *list = mu_alloc((size_t)(phases->n * r->n_domains + r->n_absences) + 1, sizeof *list);
    *n = 0;
    for (int i = 0; i + 1 < phases->n; i++)
        for (int64_t d = 0; d < r->n_domains; d++) {
            int64_t end = phases->list[i].until_step;
            if (end < r->last_step && weight_at(phases, end, r->domain[d]) > 0 && weight_at(phases, end + 1, r->domain[d]) == 0)
                list[(*n)++] = (absence){ r->domain[d], end + 1, end_of(r, r->domain[d], end + 1) };
        }
    for (int64_t i = 0; i < r->n_absences; i++) {
        const mu_report_absence *a = &r->absences[i];
        int k = 0;
        while (k < *n && !(a->step >= list[k].from && a->step <= list[k].to && !strcmp(a->domain, list[k].domain))) k++;
        if (k == *n) list[(*n)++] = (absence){ a->domain, a->step, end_of(r, a->domain, a->step) };
    }
    return list;
}

/* The last value up to this step; NAN: none. */
static double value_at(const mu_series *s, double step) {
    double value = NAN;
    for (int64_t i = 0; s && i < s->n && s->step[i] <= step; i++) value = s->value[i];
    return value;
}

static void put_absence(mu_page *p, const mu_report *r, const absence *a) {
    const mu_series *s = mu_report_series(r, "probe/%s/ce_loss", a->domain);
    if (isnan(value_at(s, (double)a->from - 1))) s = mu_report_series(r, "val/%s/ce_loss", a->domain);
    double before = value_at(s, (double)a->from - 1), after = value_at(s, (double)a->to);
    mu_page_put(p, "<tr><td>%s</td><td>%lld</td><td>%s</td><td>%s</td><td>%s</td><td class=\"words\">", a->domain, (long long)a->from,
                a->to < r->last_step ? mu_show("%lld", (long long)a->to) : "the end", isnan(before) ? "-" : mu_show("%.3f", before),
                isnan(after) ? "-" : mu_show("%.3f", after));
    int n = 0;
    for (int64_t i = 0; i < r->n_absences; i++) {
        const mu_report_absence *x = &r->absences[i];
        if (!strcmp(x->domain, a->domain) && x->step >= a->from && x->step <= a->to) mu_page_put(p, "%s%s", n++ ? "; " : "", x->text);
    }
    mu_page_put(p, "%s</td></tr>\n", n ? "" : "nothing");
}

static void put_absences(mu_page *p, const mu_report *r) {
    int n;
    absence *list = find_absences(r, &n);
    if (n)
        mu_page_put(p, "<h3>Domains that left the samples</h3>\n<div class=\"wide\"><table><thead><tr><th>domain</th><th>from step</th><th>to step</th>"
                       "<th>loss before</th><th>loss at the end of it</th><th class=\"words\">held by</th></tr></thead><tbody>\n");
    for (int i = 0; i < n; i++) put_absence(p, r, &list[i]);
    if (n)
        mu_page_put(p, "</tbody></table></div>\n<p class=\"soft\">Losses: on the probe, else on the validation texts, in nats per token, as last measured. Protected carriers"
                       " are held by their exemption from balancing, too.</p>\n");
    free(list);
}

/* ------------------------------------------------------------------ what it cost */

/* n: how many there were so far. */
static void cost(mu_page *p, int *n, const char *name, const char *value, const char *more) {
    if (!(*n)++) mu_page_put(p, "<h3>What it cost</h3>\n<dl class=\"facts\">\n");
    mu_page_put(p, "<div><dt>%s</dt><dd>%s<small>%s</small></dd></div>\n", name, value, more);
}

static void put_archives(mu_page *p, int *costs, const mu_report *r, const char *folder) {
    int64_t records = 0, experts = 0;
    double bytes = 0;
    for (int64_t i = 0; i < r->n_moe * r->experts; i++) {
        int64_t *steps;
        int layer = (int)r->layer[i / r->experts], expert = (int)(i % r->experts), n = mu_archive_list(folder, layer, expert, &steps);
        for (int k = 0; k < n; k++) {
            struct stat st;
            char *path = mu_archive_path(folder, layer, expert, steps[k]);
            if (!stat(path, &st)) bytes += (double)st.st_size;
            free(path);
        }
        records += n, experts += n > 0;
        free(steps);
    }
    if (records)
        cost(p, costs, "archive", mu_show("%lld record%s, %.1f MB", (long long)records, records == 1 ? "" : "s", 1e-6 * bytes),
             mu_show("of %lld expert%s, in RUN/archive", (long long)experts, experts == 1 ? "" : "s"));
}

/* Fisher information and weights of then: two values for each parameter, sharded over the ranks. */
static void put_memory(mu_page *p, int *costs, const mu_report *r) {
    const mu_config *cfg = &r->view.cfg;
    bool anchored = false;
    for (int64_t i = 0; i < r->n_absences; i++) anchored |= r->absences[i].weights > 0;
    if (!anchored || !r->vocab_size) return;
    mu_model_size size = mu_model_measure(&cfg->model, &cfg->moe, r->vocab_size, cfg->train.seq_len);
    double ranks = (double)(json_integer_value(json_object_get(r->view.facts, "dp")) * json_integer_value(json_object_get(r->view.facts, "ep")));
    cost(p, costs, "memory of the anchor", mu_show("%.1f MB", 2e-6 * 4 * (double)size.total / fmax(ranks, 1)), "on each rank: two copies of the weights, sharded");
}

static void put_cost(mu_page *p, const mu_report *r, const char *folder) {
    double share = mu_series_last(mu_report_series(r, "perf/protect_share"));
    const mu_series *replayed = mu_report_series(r, "protect/replayed");
    double sum = 0;
    int n = 0;
    for (int64_t i = 0; replayed && i < replayed->n; i++) sum += replayed->value[i];
    if (!isnan(share)) cost(p, &n, "time to protect", mu_show("%.2g %%", 100 * share), "Fisher information, the anchor's pull, archives: of the time since the last start (rank 0)");
    put_memory(p, &n, r);
    enum { LINES = 10 };                /* of few steps nothing can be told */
    if (replayed && r->view.cfg.log.every > 0 && (r->view.cfg.log.every == 1 || replayed->n >= LINES))
        cost(p, &n, "replayed samples", mu_show("%s%.0f", r->view.cfg.log.every > 1 ? "about " : "", sum * (double)r->view.cfg.log.every),
             mu_show("%.2g %% of the samples of steps in which a domain was absent", 100 * sum / ((double)replayed->n * (double)r->view.cfg.train.global_batch_size)));
    put_archives(p, &n, r, folder);
    if (n) mu_page_put(p, "</dl>\n");
}

/* ------------------------------------------------------------------ all of it */

/* What was done for experts, and when. */
static void put_care(mu_page *p, const mu_report *r) {
    enum { SHOWN = 200 };
    if (!r->n_care) return;
    int64_t first = r->n_care > SHOWN ? r->n_care - SHOWN : 0;
    mu_page_fold(p, false, "Protected and archived: %lld event%s", (long long)r->n_care, r->n_care == 1 ? "" : "s");
    if (first) mu_page_put(p, "<p class=\"soft\">The last %d of them.</p>", SHOWN);
    mu_page_put(p, "<div class=\"wide\"><table><thead><tr><th>step</th><th>layer</th><th>expert</th><th class=\"words\">what</th></tr></thead><tbody>\n");
    for (int64_t i = first; i < r->n_care; i++)
        mu_page_put(p, "<tr><td>%lld</td><td>%lld</td><td>%lld</td><td class=\"words\">%s</td></tr>\n", (long long)r->care[i].step,
                    (long long)r->care[i].layer, (long long)r->care[i].expert, r->care[i].text);
    mu_page_put(p, "</tbody></table></div>\n");
    mu_page_unfold(p);
}

void mu_report_put_knowledge(mu_page *p, const mu_report *r) {
    char *folder = mu_format("%s/archive", r->view.dir);
    mu_page_section(p, "knowledge", "Rare knowledge");
    put_carriers(p, r, folder);
    put_absences(p, r);
    put_cost(p, r, folder);
    put_care(p, r);
    free(folder);
}
