/* phases.c - the phases of a run's mixture of domains (data.phases): as text for the console, and compared on resume. */
#include "train/train.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The last step of the phase that this step belongs to. */
static int64_t end_of_phase(const mu_option_phases *phases, int64_t step) {
    int i = mu_phase_of_step(phases, step);
    return i + 1 < phases->n ? phases->list[i].until_step : INT64_MAX;
}

static double weight_at(const mu_data_config *d, int64_t step, int domain) {
    const mu_option_domain *of = &d->train.list[domain];
    return d->phases.n ? mu_phase_weight(&d->phases.list[mu_phase_of_step(&d->phases, step)], of->domain) : of->weight;
}

int64_t mu_phases_differ(const mu_data_config *a, const mu_data_config *b, int64_t steps) {
    for (int64_t step = 1; step <= steps;) {
        for (int i = 0; i < a->train.n; i++)
            if (weight_at(a, step, i) != weight_at(b, step, i)) return step;
        int64_t end = end_of_phase(&a->phases, step), other = end_of_phase(&b->phases, step);
        if (other < end) end = other;
        if (end >= steps) break;
        step = end + 1;
    }
    return 0;
}

static FILE *open_text(char **text, size_t *size) {
    FILE *out = open_memstream(text, size);
    MU_CHECK(out, "out of memory");
    return out;
}

/* "latin 1, chemistry 0.5", in the order of data.train. */
static void write_weights(FILE *out, const mu_data_config *d, const mu_option_phase *phase) {
    const char *between = "";
    for (int i = 0; i < d->train.n; i++) {
        double weight = mu_phase_weight(phase, d->train.list[i].domain);
        if (weight > 0) fprintf(out, "%s%s %g", between, d->train.list[i].domain, weight);
        if (weight > 0) between = ", ";
    }
}

static bool has(const mu_option_phase *phase, const char *domain) { return mu_phase_weight(phase, domain) > 0; }

/* Whether a phase before number `end` has it. */
static bool had(const mu_option_phases *phases, int end, const char *domain) {
    for (int i = 0; i < end; i++)
        if (has(&phases->list[i], domain)) return true;
    return false;
}

/* Which domains leave and come with phase i. */
static void write_changes(FILE *out, const mu_data_config *d, int i) {
    const mu_option_phase *now = &d->phases.list[i], *before = now - 1;
    const char *between = "";
    for (int k = 0; k < d->train.n; k++) {
        const char *name = d->train.list[k].domain;
        if (has(before, name) == has(now, name)) continue;
        fprintf(out, "%s%s %s", between, name, has(before, name) ? "leaves" : had(&d->phases, i, name) ? "returns" : "begins");
        between = ", ";
    }
    if (!between[0]) fputs("the same domains", out);
}

char *mu_phase_begins(const mu_data_config *d, int64_t step) {
    int i = mu_phase_of_step(&d->phases, step);
    char *text = NULL;
    size_t size;
    if (step < 2 || i == mu_phase_of_step(&d->phases, step - 1)) return NULL;
    FILE *out = open_text(&text, &size);
    fprintf(out, "phase %d of %d from step %" PRId64 ": ", i + 1, d->phases.n, step);
    write_changes(out, d, i);
    fputs(" (weights ", out);
    write_weights(out, d, &d->phases.list[i]);
    fputs(")", out);
    fclose(out);
    return text;
}

static void write_phase(FILE *out, const mu_data_config *d, int i, int64_t last) {
    const mu_option_phases *phases = &d->phases;
    int64_t from = i ? phases->list[i - 1].until_step + 1 : 1;
    char steps[64];
    if (i + 1 < phases->n) snprintf(steps, sizeof steps, "steps %" PRId64 " to %" PRId64, from, phases->list[i].until_step);
    else snprintf(steps, sizeof steps, "from step %" PRId64 " on", from);
    fprintf(out, "phase %d of %d, %s: ", i + 1, phases->n, steps);
    write_weights(out, d, &phases->list[i]);
    if (from > last) fprintf(out, " (not reached: train.steps is %" PRId64 ")", last);
    fputs("\n", out);
}

char *mu_phases_text(const mu_data_config *d, int64_t last) {
    char *text = NULL;
    size_t size;
    FILE *out = open_text(&text, &size);
    for (int i = 0; i < d->phases.n; i++) write_phase(out, d, i, last);
    for (int i = 0; i < d->train.n && d->phases.n; i++)
        if (!had(&d->phases, d->phases.n, d->train.list[i].domain))
            fprintf(out, "note: domain %s is in no phase: it is validated, and replayed if it is protected and was drawn before\n", d->train.list[i].domain);
    fclose(out);
    return text;
}
