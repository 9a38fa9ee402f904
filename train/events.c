/* events.c - RUN/events.jsonl: one line for each change of an expert's state, with the reason and the figures behind it, and for each
 * advice. The console says the same in words. */
#include "train/events.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct mu_events {
    mu_lines_out out;
    mu_json line;
    int64_t step;               /* resume step */
    bool advised[MU_ADVICES];
};

/* Notes the advice of earlier jobs. */
static bool note_advice(void *context, const mu_line *line) {
    mu_events *ev = context;
    const char *topic = json_string_value(json_object_get(line->json, "topic"));
    for (int i = 0; i < MU_ADVICES && topic; i++) ev->advised[i] |= line->step <= ev->step && !strcmp(topic, mu_advice_name((mu_advice_topic)i));
    return true;
}

mu_status mu_events_open(mu_events **out, const mu_log_source *src, mu_error *e) {
    mu_events *ev = *out = mu_alloc(1, sizeof *ev);
    char *path = mu_format("%s/events.jsonl", src->cfg->run.dir);
    mu_json_init(&ev->line);
    ev->step = mu_run_resume_step(src);
    mu_lines_resume how = { .path = path, .format = MU_LINES_EVENTS, .step = ev->step, .rewinds = mu_run_rewinds(src), .check = note_advice,
                            .context = ev };
    mu_status status = mu_lines_continue(&ev->out, &how, NULL, e);
    free(path);
    return status;
}

void mu_events_close(mu_events *ev) {
    if (!ev) return;
    mu_lines_out_close(&ev->out);
    mu_json_free(&ev->line);
    free(ev);
}

mu_status mu_events_sync(mu_events *ev, mu_error *e) { return mu_lines_sync(&ev->out, e); }

/* ------------------------------------------------------------------ words */

static const char *domain_of(const mu_log_source *src, const mu_expert_change *c) {
    return c->domain >= 0 ? src->corpus->domains[c->domain].name : "a domain of the run that this one was forked from";
}

/* With tokens at random a silence of z has a chance of exp(-z). */
static char *silence_of(const mu_log_source *src, const mu_expert_change *c) {
    static const double MILLION = 1e6;
    const mu_load_window *w = &src->state->stats->window;
    long long last = w->last_step[(int64_t)c->layer * w->experts + c->expert], n = w->steps - last;
    double chance = exp(c->silence);
    if (!last) return mu_format("no token so far");
    if (chance > MILLION) return mu_format("no token for %lld steps, by its past a chance of less than 1 in a million", n);
    return mu_format("no token for %lld steps, by its past a chance of 1 in %.0f", n, chance);
}

/* The factor of its learning rate while it is dormant. */
static double slowed(const mu_log_source *src, const mu_expert_change *c) {
    const mu_protection *p = &src->state->model->protection;
    bool protected = c->to == MU_EXPERT_DORMANT && p->domain_of[(int64_t)c->layer * p->experts + c->expert] >= 0;
    return protected ? src->cfg->protect.dormant_lr : 1;
}

static char *with_silence(const mu_log_source *src, const mu_expert_change *c, const char *what, double value, const char *unit) {
    char *silence = silence_of(src, c), *text = mu_format("%s %.*f %s, %s", what, *unit == 'n' ? 2 : 3, value, unit, silence);
    free(silence);
    return text;
}

static char *why_starved(const mu_log_source *src, const mu_expert_change *c) {
    const mu_stats_config *t = &src->cfg->stats;
    char *why = c->load < t->starved_load ? mu_format("load %.2f of the mean, below %g", c->load, t->starved_load) : silence_of(src, c);
    if (c->domain < 0 || c->criticality < t->carrier_criticality) return why;
    char *more = mu_format("%s, but %s depends on it: criticality %.2f nats", why, domain_of(src, c), c->criticality);
    free(why);
    return more;
}

static char *why_healthy(const mu_log_source *src, const mu_expert_change *c) {
    switch (c->from) {
    case MU_EXPERT_CARRIER:
    case MU_EXPERT_DORMANT: return mu_format("no longer the carrier of %s, criticality %.2f nats", domain_of(src, c), c->criticality);
    case MU_EXPERT_OVERWRITTEN: return mu_format("was the carrier of %s, criticality %.2f nats", domain_of(src, c), c->criticality);
    case MU_EXPERT_DUPLICATE: return mu_format("cosine with expert %d now %.2f", c->twin, c->cosine);
    default: return mu_format("load %.2f of the mean", c->load);
    }
}

/* Criticality, and what it means for the learning rate (protect.dormant_lr). */
static char *why_dormant(const mu_log_source *src, const mu_expert_change *c) {
    double factor = slowed(src, c);
    char *why = with_silence(src, c, "criticality", c->criticality, "nats");
    if (factor == 1) return why;
    char *text = factor > 0 ? mu_format("%s; it learns at %g of the rate", why, factor) : mu_format("%s; it is frozen", why);
    free(why);
    return text;
}

static char *reason_of(const mu_log_source *src, const mu_expert_change *c) {
    switch (c->to) {
    case MU_EXPERT_STARVED: return why_starved(src, c);
    case MU_EXPERT_DEAD: return with_silence(src, c, "load", c->load, "of the mean");
    case MU_EXPERT_CARRIER: return mu_format("criticality %.2f nats", c->criticality);
    case MU_EXPERT_DORMANT: return why_dormant(src, c);
    case MU_EXPERT_DUPLICATE: return mu_format("cosine %.2f after it was re-seeded", c->cosine);
    case MU_EXPERT_OVERWRITTEN:
        return mu_format("criticality %.2f of %.2f nats, %.0f %% of what was learned is kept", c->criticality, c->peak, 100 * c->retention);
    default: return why_healthy(src, c);
    }
}

/* "became the carrier of chemistry" */
static char *verb_of(const mu_log_source *src, const mu_expert_change *c) {
    switch (c->to) {
    case MU_EXPERT_CARRIER: return mu_format("became the carrier of %s", domain_of(src, c));
    case MU_EXPERT_DORMANT: return mu_format("is dormant, as carrier of %s", domain_of(src, c));
    case MU_EXPERT_DUPLICATE: return mu_format("is a duplicate of expert %d", c->twin);
    case MU_EXPERT_OVERWRITTEN: return mu_format("was overwritten, as carrier of %s", domain_of(src, c));
    case MU_EXPERT_HEALTHY: return mu_strdup("is healthy again");
    default: return mu_format("is %s", mu_expert_state_name(c->to));
    }
}

char *mu_change_text(const mu_log_source *src, const mu_expert_change *c) {
    char *verb = verb_of(src, c), *reason = reason_of(src, c);
    char *text = mu_format("layer %d: expert %d %s (%s)", src->state->model->moe_layers[c->layer], c->expert, verb, reason);
    free(verb);
    free(reason);
    return text;
}

/* ------------------------------------------------------------------ a line */

static void describe(mu_json *j, const mu_log_source *src, const mu_expert_change *c) {
    char *reason = reason_of(src, c);
    mu_json_reset(j);
    mu_json_begin(j, NULL, '{');
    mu_json_int(j, "step", src->state->step);
    mu_json_string(j, "event", "state");
    mu_json_int(j, "layer", src->state->model->moe_layers[c->layer]);
    mu_json_int(j, "expert", c->expert);
    mu_json_string(j, "from", mu_expert_state_name(c->from));
    mu_json_string(j, "to", mu_expert_state_name(c->to));
    mu_json_int(j, "since", c->since);
    mu_json_string(j, "reason", reason);
    mu_json_float(j, "load", c->load);
    mu_json_float(j, "silence", c->silence);
    if (c->twin >= 0) {
        mu_json_int(j, "nearest", c->twin);
        mu_json_float(j, "cosine", c->cosine);
    }
    if (c->domain >= 0) {
        mu_json_string(j, "domain", domain_of(src, c));
        mu_json_float(j, "share", c->share);
        mu_json_float(j, "criticality", c->criticality);
        mu_json_float(j, "peak", c->peak);
        mu_json_float(j, "retention", c->retention);
        if (slowed(src, c) != 1) mu_json_float(j, "lr_factor", slowed(src, c));
    }
    free(reason);
}

mu_status mu_events_changes(mu_events *ev, const mu_log_source *src, const mu_expert_change *changes, int n, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < n && status == MU_STATUS_OK; i++) {
        describe(&ev->line, src, &changes[i]);
        status = mu_lines_write(&ev->out, &ev->line, e);
    }
    return status;
}

mu_status mu_events_protection(mu_events *ev, const mu_log_source *src, const mu_protection_change *changes, int n, mu_error *e) {
    const mu_expert_health *h = &src->state->stats->health;
    mu_json *j = &ev->line;
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < n && status == MU_STATUS_OK; i++) {
        const mu_protection_change *c = &changes[i];
        mu_json_reset(j);
        mu_json_begin(j, NULL, '{');
        mu_json_int(j, "step", src->state->step);
        mu_json_string(j, "event", "protection");
        mu_json_int(j, "layer", src->state->model->moe_layers[c->layer]);
        mu_json_int(j, "expert", c->expert);
        mu_json_string(j, "domain", src->corpus->domains[c->domain].name);
        mu_json_bool(j, "protected", c->on);
        mu_json_bool(j, "exempt", c->on && src->cfg->protect.exempt);
        mu_json_string(j, "reason", mu_expert_state_name((mu_expert_state)h->state[(int64_t)c->layer * h->experts + c->expert]));
        status = mu_lines_write(&ev->out, j, e);
    }
    return status;
}

mu_status mu_events_archive(mu_events *ev, const mu_log_source *src, int moe, int expert, const char *reason, const char *error, mu_error *e) {
    mu_json *j = &ev->line;
    mu_json_reset(j);
    mu_json_begin(j, NULL, '{');
    mu_json_int(j, "step", src->state->step);
    mu_json_string(j, "event", "archive");
    mu_json_int(j, "layer", src->state->model->moe_layers[moe]);
    mu_json_int(j, "expert", expert);
    mu_json_string(j, "reason", reason);
    mu_json_bool(j, "written", !error);
    if (error) mu_json_string(j, "error", error);
    return mu_lines_write(&ev->out, j, e);
}

mu_status mu_events_action(mu_events *ev, const mu_log_source *src, const mu_action *a, mu_error *e) {
    mu_json *j = &ev->line;
    mu_json_reset(j);
    mu_json_begin(j, NULL, '{');
    mu_json_int(j, "step", src->state->step);
    mu_json_string(j, "event", a->what);
    mu_json_int(j, "layer", src->state->model->moe_layers[a->moe]);
    mu_json_int(j, "expert", a->expert);
    mu_json_int(j, "parent", a->parent);
    if (a->from) {
        mu_json_string(j, "from", a->from);
        mu_json_string(j, "to", a->to);
    }
    mu_json_string(j, "reason", a->reason);
    for (int i = 0; i < a->n; i++) mu_json_float(j, a->figures[i].name, a->figures[i].value);
    return mu_lines_write(&ev->out, j, e);
}

bool mu_events_advised(const mu_events *ev, mu_advice_topic topic) { return ev->advised[topic]; }

mu_status mu_events_advice(mu_events *ev, const mu_log_source *src, const mu_advice *a, mu_error *e) {
    mu_json *j = &ev->line;
    mu_json_reset(j);
    mu_json_begin(j, NULL, '{');
    mu_json_int(j, "step", src->state->step);
    mu_json_string(j, "event", "advice");
    mu_json_string(j, "topic", mu_advice_name(a->topic));
    mu_json_string(j, "text", a->text);
    mu_json_string(j, "option", a->option);
    mu_json_string(j, "value", a->value);
    ev->advised[a->topic] = true;
    return mu_lines_write(&ev->out, j, e);
}

mu_status mu_events_absence(mu_events *ev, const mu_absence *p, mu_error *e) {
    mu_json *j = &ev->line;
    mu_json_reset(j);
    mu_json_begin(j, NULL, '{');
    mu_json_int(j, "step", p->step);
    mu_json_string(j, "event", "absence");
    mu_json_string(j, "intervention", p->intervention);
    mu_json_string(j, "domain", p->domain);
    mu_json_string(j, "reason", p->reason);
    for (int i = 0; i < p->n; i++) mu_json_float(j, p->figures[i].name, p->figures[i].value);
    return mu_lines_write(&ev->out, j, e);
}
