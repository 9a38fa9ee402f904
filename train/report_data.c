/* report_data.c - reads the records of a run for its report: metrics.jsonl by key, counts of statistics.rec in columns of time. */
#include "train/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ series */

static void add_point(mu_series *s, int64_t step, double value) {
    if (s->n == s->room) {
        s->room = s->room ? 2 * s->room : 64;
        s->step = mu_realloc(s->step, (size_t)s->room, sizeof *s->step);
        s->value = mu_realloc(s->value, (size_t)s->room, sizeof *s->value);
    }
    s->step[s->n] = (double)step, s->value[s->n++] = value;
}

/* Lines of a kind have the same keys in the same order, so the series is usually the one after the last. */
static mu_series *find_series(mu_report *r, const char *key, int *hint) {
    for (int i = 0; i < r->n_series; i++) {
        int at = (*hint + i) % r->n_series;
        if (!strcmp(r->series[at].key, key)) return *hint = at + 1, &r->series[at];
    }
    if (r->n_series % 64 == 0) r->series = mu_realloc(r->series, (size_t)r->n_series + 64, sizeof *r->series);
    *hint = r->n_series + 1;
    r->series[r->n_series] = (mu_series){ .key = mu_strdup(key) };
    return &r->series[r->n_series++];
}

const mu_series *mu_report_series(const mu_report *r, const char *format, ...) {
    char key[160];
    va_list args;
    va_start(args, format);
    vsnprintf(key, sizeof key, format, args);
    va_end(args);
    for (int i = 0; i < r->n_series; i++)
        if (!strcmp(r->series[i].key, key)) return &r->series[i];
    return NULL;
}

double mu_series_last(const mu_series *s) { return s && s->n ? s->value[s->n - 1] : NAN; }

double mu_series_recent(const mu_series *s) {
    if (!s || !s->n) return NAN;
    int64_t n = (s->n + 9) / 10;
    double sum = 0;
    for (int64_t i = s->n - n; i < s->n; i++) sum += s->value[i];
    return sum / (double)n;
}

double *mu_report_list(const mu_report *r, int64_t n, const char *format, ...) {
    char key[160];
    va_list args;
    va_start(args, format);
    vsnprintf(key, sizeof key, format, args);
    va_end(args);
    const json_t *list = json_object_get(r->statistics, key);
    if (!list || (int64_t)json_array_size(list) != n) return NULL;
    double *values = mu_alloc((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++) values[i] = json_number_value(json_array_get(list, (size_t)i));
    return values;
}

/* perf/elapsed_s begins at 0 with every start of the program. */
double *mu_report_seconds(const mu_report *r, int64_t *n) {
    const mu_series *tokens = mu_report_series(r, "train/tokens"), *elapsed = mu_report_series(r, "perf/elapsed_s");
    *n = tokens && elapsed && tokens->n == elapsed->n ? tokens->n : 0;
    double *seconds = mu_alloc((size_t)*n + 1, sizeof *seconds), before = 0;
    for (int64_t i = 0; i < *n; i++) {
        if (i && elapsed->value[i] < elapsed->value[i - 1]) before += elapsed->value[i - 1];
        seconds[i] = before + elapsed->value[i];
    }
    return seconds;
}

/* ------------------------------------------------------------------ states of the experts */

static void add_event(mu_report *r, int64_t step, int64_t layer, int64_t expert, const char *state, const char *reason) {
    if (r->n_events % 256 == 0) r->events = mu_realloc(r->events, (size_t)r->n_events + 256, sizeof *r->events);
    mu_report_event *v = &r->events[r->n_events++];
    *v = (mu_report_event){ .step = step, .layer = (int)layer, .expert = (int)expert, .domain = -1 };
    snprintf(v->state, sizeof v->state, "%s", state);
    snprintf(v->reason, sizeof v->reason, "%s", reason);
}

/* Takes ownership of `state`. */
static void add_states(mu_report *r, int64_t step, uint8_t *state) {
    size_t n = (size_t)(r->n_moe * r->experts);
    const uint8_t *old = r->n_states ? r->states[r->n_states - 1].state : NULL;
    for (int64_t i = 0; i < (int64_t)n; i++)
        if (old ? old[i] != state[i] : state[i] != MU_EXPERT_HEALTHY)
            add_event(r, step, r->layer[i / r->experts], i % r->experts, mu_expert_state_name((mu_expert_state)state[i]), "");
    if (old && !memcmp(old, state, n)) {
        free(state);
        return;
    }
    if (r->n_states % 64 == 0) r->states = mu_realloc(r->states, (size_t)r->n_states + 64, sizeof *r->states);
    r->states[r->n_states++] = (mu_report_states){ step, state };
}

static void mark_listed(const mu_report *r, const json_t *line, const char *name, int64_t layer, uint8_t value, uint8_t *state) {
    char key[64];
    size_t i;
    const json_t *one;
    snprintf(key, sizeof key, "moe/layer_%lld/%s", (long long)r->layer[layer], name);
    json_array_foreach(json_object_get(line, key), i, one) {
        int64_t expert = json_integer_value(one);
        if (expert >= 0 && expert < r->experts) state[layer * r->experts + expert] = value;
    }
}

/* A step line lists starved and dead experts. */
static void take_lists(mu_report *r, int64_t step, const json_t *line) {
    char key[64];
    if (!r->n_moe || r->all_states) return;
    snprintf(key, sizeof key, "moe/layer_%lld/dead", (long long)r->layer[0]);
    if (!json_object_get(line, key)) return;
    uint8_t *state = mu_alloc((size_t)(r->n_moe * r->experts), 1);
    for (int64_t layer = 0; layer < r->n_moe; layer++) {
        mark_listed(r, line, "starved", layer, MU_EXPERT_STARVED, state);
        mark_listed(r, line, "dead", layer, MU_EXPERT_DEAD, state);
    }
    add_states(r, step, state);
}

static void forget_states(mu_report *r) {
    for (int64_t i = 0; i < r->n_states; i++) free(r->states[i].state);
    r->n_states = r->n_events = 0;
}

/* A statistics line has the state of each expert. From the first of these on, the lists of step lines do not count. */
static void take_states(mu_report *r, int64_t step, const json_t *line) {
    char key[64];
    uint8_t *state = mu_alloc((size_t)(r->n_moe * r->experts) + 1, 1);
    bool found = r->n_moe > 0;
    for (int64_t layer = 0; layer < r->n_moe && found; layer++) {
        snprintf(key, sizeof key, "moe/layer_%lld/state", (long long)r->layer[layer]);
        const json_t *list = json_object_get(line, key);
        found = (int64_t)json_array_size(list) == r->experts;
        for (int64_t i = 0; i < r->experts && found; i++) {
            int64_t s = json_integer_value(json_array_get(list, (size_t)i));
            state[layer * r->experts + i] = s >= 0 && s < MU_EXPERT_STATES ? (uint8_t)s : 0;
        }
    }
    if (!found) {
        free(state);
        return;
    }
    if (!r->all_states) forget_states(r);
    r->all_states = true;
    add_states(r, step, state);
}

/* ------------------------------------------------------------------ metrics.jsonl */

static bool copy_list(const mu_report *r, const json_t *line, int64_t layer, const char *name, int64_t n, float *single, double *real) {
    char key[64];
    snprintf(key, sizeof key, "moe/layer_%lld/%s", (long long)r->layer[layer], name);
    const json_t *list = json_object_get(line, key);
    if ((int64_t)json_array_size(list) != n) return false;
    for (int64_t i = 0; i < n; i++) {
        double x = json_number_value(json_array_get(list, (size_t)i));
        if (single) single[i] = (float)x;
        else real[i] = x;
    }
    return true;
}

/* Keeps the last MU_REPORT_SHARES lines. */
static void take_shares(mu_report *r, int64_t step, const json_t *line) {
    int64_t E = r->experts, cells = E * r->n_domains;
    if (!r->shares) r->shares = mu_alloc(MU_REPORT_SHARES, sizeof *r->shares);
    mu_report_shares s = { step, json_integer_value(json_object_get(line, "stats/steps")), mu_alloc((size_t)(r->n_moe * cells) + 1, sizeof *s.of_domain),
                           mu_alloc((size_t)(r->n_moe * E) + 1, sizeof *s.load) };
    bool whole = r->n_moe > 0 && s.steps > 0;
    for (int64_t l = 0; l < r->n_moe && whole; l++)
        whole = copy_list(r, line, l, "domain_specialisation", cells, s.of_domain + l * cells, NULL) && copy_list(r, line, l, "load", E, NULL, s.load + l * E);
    if (whole && r->n_shares == MU_REPORT_SHARES) {
        free(r->shares[0].of_domain), free(r->shares[0].load);
        memmove(r->shares, r->shares + 1, (size_t)--r->n_shares * sizeof *r->shares);
    }
    if (whole) r->shares[r->n_shares++] = s;
    else free(s.of_domain), free(s.load);
}

static void take_line(mu_report *r, const mu_run_metrics *m, int *hint) {
    json_t *line = m->line;
    int64_t step = m->step;
    const char *key;
    json_t *value;
    json_object_foreach(line, key, value)
        if (json_is_number(value) && strcmp(key, "step")) add_point(find_series(r, key, hint), step, json_number_value(value));
    if (m->kind == MU_LINE_TRAINING) {
        if (!r->n_steps++) r->first_step = step;
        r->last_step = step;
        take_lists(r, step, line);
    }
    if (m->kind == MU_LINE_STATISTICS) {
        take_states(r, step, line);
        take_shares(r, step, line);
        json_decref(r->statistics);
        r->statistics = json_incref(line);
    }
}

static void read_metrics(mu_report *r) {
    mu_run_metrics m;
    mu_error why;
    int hint = 0;
    mu_status status = mu_run_metrics_open(&m, &r->view, &why);
    while (status == MU_STATUS_OK && mu_run_metrics_next(&m)) take_line(r, &m, &hint);
    r->skipped = m.skipped;
    status = mu_run_metrics_close(&m, status, &why);
    if (status != MU_STATUS_OK && status != MU_STATUS_NOINPUT) mu_log(MU_LOG_WARNING, "%s", why.text);
}

static void take_advice(mu_report *r, int64_t step, const char *text) {
    if (r->n_advice % 16 == 0) r->advice = mu_realloc(r->advice, (size_t)r->n_advice + 16, sizeof *r->advice);
    r->advice[r->n_advice].step = step;
    snprintf(r->advice[r->n_advice].text, sizeof r->advice->text, "%s", text);
    r->n_advice++;
}

/* "archived: became a carrier", "protected for chemistry", "re-seeded: dead since step 300, ..." */
static void take_care(mu_report *r, int64_t step, const json_t *line) {
    const char *event = json_string_value(json_object_get(line, "event")), *reason = json_string_value(json_object_get(line, "reason"));
    const char *domain = json_string_value(json_object_get(line, "domain")), *error = json_string_value(json_object_get(line, "error"));
    bool archive = event && reason && !strcmp(event, "archive"), protection = event && domain && !strcmp(event, "protection");
    bool reseed = event && reason && !strcmp(event, "reseed"), boost = event && reason && !strcmp(event, "boost");
    if (!archive && !protection && !reseed && !boost) return;
    if (r->n_care % 256 == 0) r->care = mu_realloc(r->care, (size_t)r->n_care + 256, sizeof *r->care);
    mu_report_care *c = &r->care[r->n_care++];
    c->step = step, c->layer = json_integer_value(json_object_get(line, "layer")), c->expert = json_integer_value(json_object_get(line, "expert"));
    bool good = json_is_true(json_object_get(line, archive ? "written" : "protected"));
    c->kind = reseed || boost ? MU_CARE_OTHER : archive ? (good ? MU_CARE_ARCHIVED : MU_CARE_OTHER) : good ? MU_CARE_PROTECTED : MU_CARE_LEFT;
    if (archive)
        snprintf(c->text, sizeof c->text, "%s: %s%s%s", good ? "archived" : "could not be archived", reason,
                 error ? "; " : "", error ? error : "");
    else if (reseed || boost) snprintf(c->text, sizeof c->text, "%s: %s", reseed ? "re-seeded" : "selection bias raised", reason);
    else snprintf(c->text, sizeof c->text, "%s for %s", good ? "protected" : "no longer protected", domain);
}

/* "replay: 0.2 % of the samples; sequences to replay: 8", "anchor: 0.04 M weights, strength 1000" */
static void take_absence(mu_report *r, int64_t step, const json_t *line) {
    const char *event = json_string_value(json_object_get(line, "event")), *domain = json_string_value(json_object_get(line, "domain"));
    if (!event || !domain || strcmp(event, "absence")) return;
    if (r->n_absences % 16 == 0) r->absences = mu_realloc(r->absences, (size_t)r->n_absences + 16, sizeof *r->absences);
    mu_report_absence *a = &r->absences[r->n_absences++];
    a->step = step, a->weights = json_number_value(json_object_get(line, "weights"));
    snprintf(a->domain, sizeof a->domain, "%s", domain);
    if (a->weights > 0)
        snprintf(a->text, sizeof a->text, "anchor: %.2f M weights, strength %g", 1e-6 * a->weights, json_number_value(json_object_get(line, "strength")));
    else
        snprintf(a->text, sizeof a->text, "replay: %.3g %% of the samples; sequences to replay: %.0f", 100 * json_number_value(json_object_get(line, "share")),
                 json_number_value(json_object_get(line, "sequences")));
}

/* Changes of state have reasons in words, so they replace those that were derived from lists of states. */
static void take_event(mu_report *r, int64_t step, const json_t *line, bool *any) {
    const char *to = json_string_value(json_object_get(line, "to")), *reason = json_string_value(json_object_get(line, "reason"));
    const char *domain = json_string_value(json_object_get(line, "domain")), *text = json_string_value(json_object_get(line, "text"));
    if (text) take_advice(r, step, text);
    take_care(r, step, line);
    take_absence(r, step, line);
    if (!to) return;
    if (!*any) r->n_events = 0;
    *any = true;
    bool names_it = !domain || !strcmp(to, mu_expert_state_name(MU_EXPERT_HEALTHY)) || !strcmp(to, mu_expert_state_name(MU_EXPERT_STARVED)); /* in the reason */
    char *why = mu_format("%s%s%s", names_it ? "" : domain, !names_it && reason ? ": " : "", reason ? reason : "");
    add_event(r, step, json_integer_value(json_object_get(line, "layer")), json_integer_value(json_object_get(line, "expert")), to, why);
    free(why);
    mu_report_event *v = &r->events[r->n_events - 1];
    v->criticality = json_number_value(json_object_get(line, "criticality"));
    for (int d = 0; domain && d < (int)r->n_domains; d++)
        if (!strcmp(domain, r->domain[d])) v->domain = d;
}

static void read_events(mu_report *r) {
    mu_run_metrics m;
    mu_error why;
    bool any = false;
    mu_status status = mu_run_events_open(&m, &r->view, &why);
    while (status == MU_STATUS_OK && mu_run_metrics_next(&m)) take_event(r, m.step, m.line, &any);
    r->skipped_events = m.skipped;
    status = mu_run_metrics_close(&m, status, &why);
    if (status != MU_STATUS_OK && status != MU_STATUS_NOINPUT) mu_log(MU_LOG_WARNING, "%s", why.text);
}

/* ------------------------------------------------------------------ statistics.rec */

static void add_record(mu_report *r, const mu_statistics *s) {
    int64_t col = (int64_t)ceil((double)s->step * (double)r->columns / (double)r->last_step) - 1;   /* (a, b] */
    col = col < 0 ? 0 : col >= r->columns ? r->columns - 1 : col;
    bool recent = s->step >= r->recent_from;
    r->by_domain |= recent && s->by_domain;
    for (int64_t layer = 0; layer < r->n_moe; layer++) {
        int64_t *load = r->load + (layer * r->columns + col) * r->experts;
        for (int64_t i = 0; i < r->experts; i++) {
            const int64_t *counts = s->counts + (layer * r->experts + i) * r->n_domains;
            int64_t sum = 0;
            for (int64_t d = 0; d < r->n_domains; d++) sum += counts[d];
            load[i] += sum;
            if (!recent || !s->by_domain) continue;
            int64_t *to = r->recent + (layer * r->experts + i) * r->n_domains;
            for (int64_t d = 0; d < r->n_domains; d++) to[d] += counts[d];
        }
    }
}

/* A large file is sampled, so that a report takes seconds. */
static mu_status read_records(mu_report *r, mu_statistics *s, mu_error *e) {
    enum { COLUMNS = 200, CELLS = 1 << 24 };
    static const int64_t most = 1 << 30;        /* bytes */
    int64_t every = (s->n * s->record_bytes + most - 1) / most;
    mu_status status = MU_STATUS_OK;
    r->n_records = s->n;
    int64_t fit = CELLS / (r->n_moe * r->experts), columns = fit < 1 ? 1 : fit < COLUMNS ? fit : COLUMNS;
    r->columns = s->n < columns ? s->n : columns;
    r->load = mu_alloc((size_t)(r->n_moe * r->columns * r->experts) + 1, sizeof *r->load);
    r->recent = mu_alloc((size_t)(r->n_moe * r->experts * r->n_domains), sizeof *r->recent);
    for (int64_t i = (s->n - 1) % (every ? every : 1); i < s->n && status == MU_STATUS_OK; i += every) {
        bool valid = false;
        status = mu_statistics_read(s, i, &valid, e);
        if (status == MU_STATUS_OK && valid && s->step > 0) {
            if (s->step <= r->last_step) add_record(r, s);
        } else r->damaged_records++;
    }
    return status;
}

static void add_up(mu_report *r) {
    r->of_expert = mu_alloc((size_t)(r->n_moe * r->experts), sizeof *r->of_expert);
    r->of_domain = mu_alloc((size_t)(r->n_moe * r->n_domains), sizeof *r->of_domain);
    r->of_layer = mu_alloc((size_t)r->n_moe, sizeof *r->of_layer);
    const int64_t *n = r->recent;
    for (int64_t l = 0; l < r->n_moe; l++)
        for (int64_t i = 0; i < r->experts; i++)
            for (int64_t d = 0; d < r->n_domains; d++, n++)
                r->of_expert[l * r->experts + i] += *n, r->of_domain[l * r->n_domains + d] += *n, r->of_layer[l] += *n;
}

static void read_counts(mu_report *r) {
    mu_statistics *s = NULL;
    mu_error why = { 0 };
    r->recent_from = r->last_step / 2 + 1;
    mu_status status = mu_run_statistics_open(&s, &r->view, &why);
    if (status == MU_STATUS_OK && (s->shape.layers != r->n_moe || s->shape.experts != r->experts || s->shape.domains != r->n_domains))
        status = mu_error_set(&why, MU_STATUS_DATA, "%s: of another model", s->path);
    if (status == MU_STATUS_OK && (!s->n || !r->last_step)) status = mu_error_set(&why, MU_STATUS_DATA, "no step was logged yet");
    if (status == MU_STATUS_OK) status = read_records(r, s, &why);
    if (status == MU_STATUS_OK) add_up(r);
    else r->by_domain = false;
    if (status != MU_STATUS_OK) r->no_counts = mu_strdup(why.text);
    mu_statistics_close(s);
}

/* ------------------------------------------------------------------ a run */

static void describe(mu_report *r) {
    const mu_config *cfg = &r->view.cfg;
    mu_tokenizer *t = NULL;
    mu_error why;
    if (mu_run_tokenizer_open(&t, r->view.dir, cfg->data.tokenizer, "", "", &why) == MU_STATUS_OK &&
        mu_vocab_rows(cfg, t, true, &r->vocab_size, &why) != MU_STATUS_OK)
        r->vocab_size = 0;
    mu_tokenizer_close(t);
    char *path = realpath(r->view.dir, NULL);
    const char *slash = strrchr(path ? path : r->view.dir, '/');
    r->name = mu_strdup(slash && slash[1] ? slash + 1 : r->view.dir);
    free(path);
    r->experts = cfg->moe.num_experts;
    r->layer = mu_alloc((size_t)cfg->model.num_layers + 1, sizeof *r->layer);
    r->n_moe = mu_run_moe_layers(&r->view, r->layer);
    r->n_domains = cfg->data.train.n;
    r->domain = mu_alloc((size_t)r->n_domains + 1, sizeof *r->domain);
    for (int64_t i = 0; i < r->n_domains; i++) r->domain[i] = cfg->data.train.list[i].domain;
    int64_t cells = r->n_moe * r->experts * (r->n_domains > 50 ? r->n_domains : 50);
    r->layer_step = 1 + (cells - 1) / MU_REPORT_CELLS;
}

mu_status mu_report_read(mu_report *r, const char *dir, mu_error *e) {
    *r = (mu_report){ 0 };
    mu_status status = mu_run_view_open(&r->view, dir, e);
    if (status != MU_STATUS_OK) return status;
    describe(r);
    read_metrics(r);
    read_events(r);
    if (r->n_moe) read_counts(r);
    return MU_STATUS_OK;
}

void mu_report_free(mu_report *r) {
    forget_states(r);
    for (int i = 0; i < r->n_series; i++) {
        free(r->series[i].key);
        free(r->series[i].step);
        free(r->series[i].value);
    }
    json_decref(r->statistics);
    for (int64_t i = 0; i < r->n_shares; i++) free(r->shares[i].of_domain), free(r->shares[i].load);
    free(r->shares), free(r->series), free(r->states), free(r->events), free(r->advice), free(r->care), free(r->absences), free(r->layer), free(r->domain);
    free(r->load), free(r->recent), free(r->of_expert), free(r->of_domain), free(r->of_layer), free(r->no_counts), free(r->name);
    mu_run_view_close(&r->view);
    *r = (mu_report){ 0 };
}
