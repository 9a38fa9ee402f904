/* report_diagnosis.c - findings in words, by the rules of docs/report.md: a sentence with its figures for whatever a reader should know
 * first. */
#include "train/report.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

typedef enum { BAD, NOTE, GOOD } kind;
typedef struct {
    int n;
    struct { kind kind; char *text; } *list;
} findings;

static void finding(findings *f, kind k, const char *text) {
    if (f->n % 32 == 0) f->list = mu_realloc(f->list, (size_t)f->n + 32, sizeof *f->list);
    f->list[f->n].kind = k;
    f->list[f->n++].text = mu_strdup(text);
}

/* What is wrong comes first. */
static void put_findings(mu_page *p, const findings *f) {
    static const char *const names[] = { [BAD] = "bad", [NOTE] = "note", [GOOD] = "good" };
    mu_page_put(p, "<ul class=\"findings\">\n");
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < f->n; i++)
            if ((f->list[i].kind == BAD) == (pass == 0)) mu_page_put(p, "<li class=\"%-s\">%s</li>\n", names[f->list[i].kind], f->list[i].text);
    mu_page_put(p, "</ul>\n");
}

static void free_findings(findings *f) {
    for (int i = 0; i < f->n; i++) free(f->list[i].text);
    free(f->list);
}

/* "3, 7, 11 and 5 more" */
static void list_numbers(char *text, size_t room, const int64_t *numbers, int64_t n) {
    enum { SHOWN = 8 };
    size_t used = 0;
    text[0] = '\0';
    for (int64_t i = 0; i < n && i < SHOWN; i++) used += (size_t)snprintf(text + used, room - used, "%s%lld", i ? ", " : "", (long long)numbers[i]);
    if (n > SHOWN) snprintf(text + used, room - used, " and %lld more", (long long)(n - SHOWN));
}

/* ------------------------------------------------------------------ the run */

static void about_the_run(findings *f, const mu_report *r) {
    static const char *const texts[] = {
        [MU_RUN_CRASHED] = "The job was killed. The same command resumes from the newest checkpoint.",
        [MU_RUN_STOPPED] = "The run stopped before its last step; the same command resumes it." };
    for (int64_t i = 0; i < r->n_advice; i++) finding(f, NOTE, mu_show("Advice of step %lld: %s", (long long)r->advice[i].step, r->advice[i].text));
    if (r->view.state == MU_RUN_CRASHED || r->view.state == MU_RUN_STOPPED) finding(f, NOTE, texts[r->view.state]);
}

/* A domain whose validation loss is this much above its best is getting worse (nats/token). */
static const double worse = 0.02;

static void about_losses(findings *f, const mu_report *r) {
    const mu_series *all = mu_report_series(r, "val/ce_loss");
    double most = -INFINITY;
    const char *worst = NULL;
    for (int64_t d = 0; d < r->n_domains; d++) {
        const mu_series *s = mu_report_series(r, "val/%s/ce_loss", r->domain[d]);
        double last = mu_series_last(s), best = INFINITY, best_step = 0;
        if (last > most) most = last, worst = r->domain[d];
        for (int64_t i = 0; s && i < s->n; i++)
            if (s->value[i] < best) best = s->value[i], best_step = s->step[i];
        if (last > best + worse)
            finding(f, BAD, mu_show("%s gets worse: validation loss %.3f now, %.3f at step %.0f.", r->domain[d], last, best, best_step));
    }
    if (all && all->n > 1 && worst)
        finding(f, all->value[all->n - 1] <= all->value[0] ? GOOD : BAD,
                mu_show("Validation loss went from %.3f (step %.0f) to %.3f (step %.0f)%s.", all->value[0], all->step[0], all->value[all->n - 1],
                        all->step[all->n - 1], r->n_domains > 1 ? mu_show("; hardest domain: %s, %.3f", worst, most) : ""));
}

/* ------------------------------------------------------------------ health of the experts */

/* The experts of a layer that are in this state now; returns how many. */
static int64_t in_state(const mu_report *r, int64_t layer, int state, int64_t *experts) {
    const uint8_t *now = r->states[r->n_states - 1].state + layer * r->experts;
    int64_t n = 0;
    for (int64_t i = 0; i < r->experts; i++)
        if (now[i] == state) experts[n++] = i;
    return n;
}

/* When and why the expert came into its present state; NULL: not known. */
static const mu_report_event *event_of(const mu_report *r, int64_t layer, int64_t expert) {
    uint8_t now = r->states[r->n_states - 1].state[layer * r->experts + expert];
    for (int64_t i = r->n_events - 1; i >= 0; i--)
        if (r->events[i].layer == r->layer[layer] && r->events[i].expert == expert)
            return strcmp(r->events[i].state, mu_expert_state_name((mu_expert_state)now)) ? NULL : &r->events[i];
    return NULL;
}

static const char *const meanings[] = {
    [MU_EXPERT_STARVED] = "little load (stats.starved_load), or no token for long", [MU_EXPERT_DEAD] = "without tokens", [MU_EXPERT_CARRIER] = "a rare domain depends on it",
    [MU_EXPERT_DORMANT] = "its domain is absent from the stream now", [MU_EXPERT_DUPLICATE] = "a near copy of another expert",
    [MU_EXPERT_OVERWRITTEN] = "it carried a rare domain and lost it" };

/* Starved and dead experts of a layer are listed; the other states have reasons of their own. */
static void about_state(findings *f, const mu_report *r, int64_t layer, int state, const int64_t *experts, int64_t n, kind k) {
    enum { SHOWN = 3 };
    const char *name = mu_expert_state_name((mu_expert_state)state);
    char list[160];
    if (state > MU_EXPERT_DEAD && n <= SHOWN) {
        for (int64_t i = 0; i < n; i++) {
            const mu_report_event *v = event_of(r, layer, experts[i]);
            const char *since = v ? mu_show(" since step %lld", (long long)v->step) : "";
            finding(f, k, mu_show("Layer %lld: expert %lld is %s%s: %s%s%s.", (long long)r->layer[layer], (long long)experts[i], name, since, meanings[state],
                                  v && v->reason[0] ? "; at that step: " : "", v ? v->reason : ""));
        }
        return;
    }
    list_numbers(list, sizeof list, experts, n);
    finding(f, k, mu_show("Layer %lld: %s %s %s now %s: %s.", (long long)r->layer[layer], n == 1 ? "expert" : "experts", list, n == 1 ? "is" : "are", name,
                          meanings[state]));
}

/* Carriers of a known domain are told with this domain. Keeps the others; returns how many. */
static int64_t without_domain(const mu_report *r, int64_t layer, int64_t *experts, int64_t n) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        const mu_report_event *v = event_of(r, layer, experts[i]);
        if (!v || v->domain < 0) experts[kept++] = experts[i];
    }
    return kept;
}

/* Starved experts that some domain depended on when they became so: told one by one. */
static void about_needed(findings *f, const mu_report *r, int64_t layer, const int64_t *experts, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const mu_report_event *v = event_of(r, layer, experts[i]);
        if (v && v->domain >= 0 && v->criticality >= r->view.cfg.stats.carrier_criticality)
            finding(f, BAD, mu_show("Layer %lld: expert %lld is starved since step %lld: %s.", (long long)r->layer[layer], (long long)experts[i], (long long)v->step, v->reason));
    }
}

static void about_states(findings *f, const mu_report *r) {
    static const kind kinds[] = { [MU_EXPERT_STARVED] = BAD, [MU_EXPERT_DEAD] = BAD, [MU_EXPERT_CARRIER] = NOTE, [MU_EXPERT_DORMANT] = NOTE,
                                  [MU_EXPERT_DUPLICATE] = BAD, [MU_EXPERT_OVERWRITTEN] = BAD };
    int64_t *experts = mu_alloc((size_t)r->experts, sizeof *experts), idle = 0;
    for (int s = MU_EXPERT_STARVED; s < MU_EXPERT_STATES && r->n_states; s++)
        for (int64_t layer = 0; layer < r->n_moe; layer++) {
            int64_t n = in_state(r, layer, s, experts);
            if (s == MU_EXPERT_CARRIER) n = without_domain(r, layer, experts, n);
            idle += s <= MU_EXPERT_DEAD ? n : 0;
            if (n) about_state(f, r, layer, s, experts, n, kinds[s]);
            if (s == MU_EXPERT_STARVED) about_needed(f, r, layer, experts, n);
        }
    free(experts);
    const mu_series *judged = mu_report_series(r, "moe/dead_frac");
    if (!idle && judged && judged->n) finding(f, GOOD, mu_show("No expert is in the state dead or starved: all %lld get tokens.", (long long)(r->n_moe * r->experts)));
}

/* max/mean load, mean of the last tenth of the logged steps. */
static void about_balance(findings *f, const mu_report *r) {
    double most = 0;
    int64_t where = 0;
    for (int64_t layer = 0; layer < r->n_moe; layer++) {
        double x = mu_series_recent(mu_report_series(r, "moe/layer_%lld/load_imbalance", (long long)r->layer[layer]));
        if (x > most) most = x, where = r->layer[layer];
    }
    if (most <= 0) return;
    kind k = most > 3 ? BAD : most > 1.5 ? NOTE : GOOD;
    finding(f, k, mu_show("%s layer %lld, the busiest expert gets %.2f times the mean.",
                          k == GOOD ? "Load is even: even in the least balanced" : "Load is uneven: in the least balanced", (long long)where, most));
}

static void about_drops(findings *f, const mu_report *r) {
    double all = mu_series_recent(mu_report_series(r, "moe/dropped_frac")), most = 0;
    int64_t worst = -1;
    for (int64_t d = 0; d < r->n_domains; d++) {
        double x = mu_series_recent(mu_report_series(r, "moe/%s/dropped_frac", r->domain[d]));
        if (x > most) most = x, worst = d;
    }
    if (!(all > 0.001)) return;
    const char *more = worst < 0 ? "" : mu_show("; worst off: %s, %.1f %%", r->domain[worst], 100 * most);
    finding(f, all > 0.01 ? BAD : NOTE, mu_show("%.1f %% of all assignments exceed moe.capacity_factor %g and are dropped%s.", 100 * all,
                                                r->view.cfg.moe.capacity_factor, more));
}

/* ------------------------------------------------------------------ which expert serves whom */

/* The expert with the largest share of a domain's tokens, over all layers, among those that prefer the domain (lift of at least 1). */
static void about_domain(findings *f, const mu_report *r, int64_t d) {
    double share = 0, lift = 0;
    int64_t layer = -1, expert = 0;
    for (int64_t l = 0; l < r->n_moe; l++)
        for (int64_t i = 0; i < r->experts; i++) {
            double one = mu_report_lift(r, l, i, d), s = mu_report_share(r, l, i, d);
            if (one >= 1 && s > share) share = s, lift = one, layer = l, expert = i;
        }
    double tokens = mu_report_domain_tokens(r, d);
    if (layer < 0 || share < 0.1 || tokens < 100) return;
    finding(f, NOTE, mu_show("%s %s of layer %lld: expert %lld gets %.0f %% of its tokens, %.1f times its share of all tokens.", r->domain[d],
                             share >= 0.5 ? "lives in one expert" : "is served most by one expert", (long long)r->layer[layer],
                             (long long)expert, 100 * share, exp2(lift)));
}

static void about_specialisation(findings *f, const mu_report *r) {
    double most = 0;
    int64_t where = -1;
    if (!r->by_domain || r->n_domains < 2) return;
    for (int64_t l = 0; l < r->n_moe; l++) {
        double x = mu_report_information(r, l);
        if (x > most) most = x, where = l;
    }
    if (where >= 0)
        finding(f, NOTE, mu_show("Experts specialise most in layer %lld: the choice of experts tells %.0f %% of what it can about a token's domain.",
                                 (long long)r->layer[where], 100 * most));
    for (int64_t d = 0; d < r->n_domains && d < 60; d++) about_domain(f, r, d);
}

/* ------------------------------------------------------------------ what was measured on the probe */

/* "3 and 7 (0.981), 5 and 3 (0.960)": each expert with the one whose outputs are most like its own; each pair once. */
static int list_copies(char *text, size_t room, const double *similar, const double *whose, int64_t experts) {
    static const double near = 0.95;    /* cosine of the outputs */
    enum { SHOWN = 6 };
    int n = 0;
    size_t used = 0;
    text[0] = '\0';
    for (int64_t i = 0; i < experts; i++) {
        int64_t other = (int64_t)whose[i];
        bool told = other >= 0 && other < i && (int64_t)whose[other] == i;
        if (similar[i] > near && !told && n++ < SHOWN)
            used += (size_t)snprintf(text + used, room - used, "%s%lld and %lld (%.3f)", used ? ", " : "", (long long)i, (long long)other, similar[i]);
    }
    if (n > SHOWN) snprintf(text + used, room - used, " and %d more", n - SHOWN);
    return n;
}

static void about_copies(findings *f, const mu_report *r) {
    for (int64_t l = 0; l < r->n_moe; l++) {
        double *similar = mu_report_list(r, r->experts, "moe/layer_%lld/similarity_max", (long long)r->layer[l]);
        double *whose = mu_report_list(r, r->experts, "moe/layer_%lld/most_similar", (long long)r->layer[l]);
        char list[300];
        if (similar && whose && list_copies(list, sizeof list, similar, whose, r->experts))
            finding(f, BAD, mu_show("Layer %lld: near copies are experts %s: the number is the cosine of their outputs on the probe.", (long long)r->layer[l], list));
        free(similar);
        free(whose);
    }
}

/* Criticality [experts, domains] of a layer, and the step at which each cell was measured, 0 never. K NULL: not in the run. */
typedef struct { double *K, *at; } critical;
/* A measured cell; K 0: none. */
typedef struct { double K; int64_t layer, expert; } cell;
static const double matters = 0.05;     /* nats/token */

static critical *criticality_of(const mu_report *r) {
    int64_t n = r->experts * r->n_domains;
    critical *c = mu_alloc((size_t)r->n_moe, sizeof *c);
    for (int64_t l = 0; l < r->n_moe; l++) {
        c[l].K = mu_report_list(r, n, "moe/layer_%lld/criticality", (long long)r->layer[l]);
        c[l].at = mu_report_list(r, n, "moe/layer_%lld/criticality_step", (long long)r->layer[l]);
        if (!c[l].at) free(c[l].K), c[l].K = NULL;
    }
    return c;
}

static void add_text(char *text, size_t room, const char *format, ...) MU_PRINTF(3, 4);
static void add_text(char *text, size_t room, const char *format, ...) {
    size_t used = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, room - used, format, args);
    va_end(args);
}

/* The two experts without which the domain loses most. */
static void largest_of(const mu_report *r, const critical *c, int64_t domain, cell most[2]) {
    for (int64_t l = 0; l < r->n_moe; l++)
        for (int64_t i = 0; c[l].K && i < r->experts; i++) {
            cell one = { c[l].K[i * r->n_domains + domain], l, i };
            if (!(c[l].at[i * r->n_domains + domain] > 0) || one.K <= most[1].K) continue;
            most[1] = one;
            if (one.K > most[0].K) most[1] = most[0], most[0] = one;
        }
}

/* The domain that loses most without this expert, apart from those marked in `told`; -1: no other was measured. */
static int64_t worst_of(const mu_report *r, const critical *c, int64_t expert, const bool *told) {
    const double *K = c->K + expert * r->n_domains, *at = c->at + expert * r->n_domains;
    int64_t most = -1;
    for (int64_t d = 0; d < r->n_domains; d++)
        if (!told[d] && at[d] > 0 && (most < 0 || K[d] > K[most])) most = d;
    return most;
}

/* Which other domains lose at least half as much without this expert; only measured ones are known. */
static void add_others(char *text, size_t room, const mu_report *r, const critical *layer, cell of, int64_t domain) {
    enum { SHOWN = 3 };
    const double *K = layer->K + of.expert * r->n_domains;
    bool *told = mu_alloc((size_t)r->n_domains, sizeof *told);
    told[domain] = true;
    int64_t worst = worst_of(r, layer, of.expert, told);
    if (worst < 0 && r->n_domains > 1) add_text(text, room, "; no other domain was measured with this expert");
    else if (worst >= 0 && K[worst] < 0.5 * of.K) add_text(text, room, "; of the other domains measured with it, %s loses most: %.2f", r->domain[worst], K[worst]);
    for (int n = 0; worst >= 0 && K[worst] >= 0.5 * of.K && n <= SHOWN; n++) {
        if (n < SHOWN) add_text(text, room, "%s %s %.2f", n ? "," : "; shared with", r->domain[worst], K[worst]);
        else add_text(text, room, " and others");
        told[worst] = true;
        worst = worst_of(r, layer, of.expert, told);
    }
    free(told);
}

/* Experts that are carriers of the domain now: criticality of the last measurement, and when they became it. */
static void add_carriers(char *text, size_t room, const mu_report *r, const critical *c, int64_t domain) {
    enum { SHOWN = 4 };
    int64_t n = 0;
    for (int64_t l = 0; l < r->n_moe && r->n_states; l++)
        for (int64_t i = 0; i < r->experts; i++) {
            if (r->states[r->n_states - 1].state[l * r->experts + i] != MU_EXPERT_CARRIER) continue;
            const mu_report_event *v = event_of(r, l, i);
            int64_t at = i * r->n_domains + domain;
            if (!v || v->domain != domain || n++ >= SHOWN) continue;
            add_text(text, room, "%s expert %lld of layer %lld (", n == 1 ? " Carriers:" : ",", (long long)i, (long long)r->layer[l]);
            if (c[l].K && c[l].at[at] > 0) add_text(text, room, "%.2f at step %.0f, ", c[l].K[at], c[l].at[at]);
            add_text(text, room, "since step %lld with %.2f)", (long long)v->step, v->criticality);
        }
    if (n > SHOWN) add_text(text, room, " and %lld more", (long long)(n - SHOWN));
    if (n) add_text(text, room, ".");
}

/* One statement for each domain: the experts that it needs most, who shares them, and its carriers. */
static void about_criticality(findings *f, const mu_report *r) {
    critical *c = criticality_of(r);
    for (int64_t d = 0; d < r->n_domains; d++) {
        char text[1000] = "", carriers[600] = "";
        cell most[2] = { { 0 } };
        largest_of(r, c, d, most);
        add_carriers(carriers, sizeof carriers, r, c, d);
        if (most[0].K >= matters) {
            add_text(text, sizeof text, "%s depends most on expert %lld of layer %lld: without it its loss on the probe rises by %.2f nats/token (step %.0f)",
                     r->domain[d], (long long)most[0].expert, (long long)r->layer[most[0].layer], most[0].K,
                     c[most[0].layer].at[most[0].expert * r->n_domains + d]);
            add_others(text, sizeof text, r, &c[most[0].layer], most[0], d);
            if (most[1].K >= matters)
                add_text(text, sizeof text, "; next: expert %lld of layer %lld, %.2f", (long long)most[1].expert, (long long)r->layer[most[1].layer], most[1].K);
            add_text(text, sizeof text, ".");
        } else if (carriers[0]) add_text(text, sizeof text, "%s has carriers, but at the last measurement no expert cost it %.2f nats/token or more.", r->domain[d], matters);
        add_text(text, sizeof text, "%s", carriers);
        if (text[0]) finding(f, NOTE, text);
    }
    for (int64_t l = 0; l < r->n_moe; l++) free(c[l].K), free(c[l].at);
    free(c);
}

void mu_report_put_diagnosis(mu_page *p, const mu_report *r) {
    findings f = { 0 };
    about_the_run(&f, r);
    about_losses(&f, r);
    if (r->n_moe) {
        about_states(&f, r);
        about_balance(&f, r);
        about_drops(&f, r);
        about_copies(&f, r);
        about_criticality(&f, r);
        about_specialisation(&f, r);
    } else finding(&f, NOTE, "A dense model: there are no experts to report on.");
    mu_page_section(p, "diagnosis", "Diagnosis");
    put_findings(p, &f);
    free_findings(&f);
}
