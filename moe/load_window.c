/* load_window.c - the load of every expert over the last steps, how long it has been silent, and which experts are dead or
 * starved. */
#include "moe/moe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t cells(const mu_load_window *w) { return (int64_t)w->layers * w->experts; }
static int32_t *row_of(const mu_load_window *w, int64_t step) { return w->ring + step % w->length * cells(w); }

void mu_load_window_init(mu_load_window *w, int layers, int experts, int64_t length) {
    MU_CHECK(w && layers >= 0 && experts >= 0, "load window: %d layers with %d experts each; neither may be negative", layers, experts);
    MU_CHECK(length >= MU_LOAD_WINDOW_MIN, "load window: length is %lld steps, must be at least %d", (long long)length, MU_LOAD_WINDOW_MIN);
    *w = (mu_load_window){ .layers = layers, .experts = experts, .length = length };
    w->ring = mu_alloc(mu_size_mul((size_t)cells(w), (size_t)length), sizeof *w->ring);
    w->total = mu_alloc((size_t)cells(w), sizeof(int64_t));
    w->previous = mu_alloc((size_t)cells(w), sizeof(int64_t));
    w->last_step = mu_alloc((size_t)cells(w), sizeof(int64_t));
    w->gaps = mu_alloc((size_t)cells(w), sizeof(int64_t));
    w->mean_gap = mu_alloc((size_t)cells(w), sizeof(double));
}

void mu_load_window_free(mu_load_window *w) {
    free(w->ring);
    free(w->total);
    free(w->previous);
    free(w->last_step);
    free(w->gaps);
    free(w->mean_gap);
    *w = (mu_load_window){ 0 };
}

int64_t mu_load_window_bytes(const mu_load_window *w) {
    return cells(w) * (w->length * (int64_t)sizeof *w->ring + 5 * (int64_t)sizeof(int64_t));
}

int64_t mu_load_window_start(const mu_load_window *w) { return w->held < w->length ? w->steps - w->held : 0; }

/* Step `step` (the first is 1) gave expert i tokens. Its first gap begins with the steps that the window holds. */
static void note_tokens(mu_load_window *w, int64_t i, int64_t step) {
    double gap = (double)(step - (w->last_step[i] ? w->last_step[i] : mu_load_window_start(w)));
    if (w->gaps[i] < MU_PAST_GAPS) w->gaps[i]++;
    w->mean_gap[i] += (gap - w->mean_gap[i]) / (double)w->gaps[i];
    w->last_step[i] = step;
}

void mu_load_window_add(mu_load_window *w, const int64_t *counts) {
    MU_CHECK(counts || !cells(w), "load window: counts is NULL, but there are %d layers with %d experts", w->layers, w->experts);
    MU_CHECK(w->steps >= 0, "load window: the number of steps is %lld, must not be negative", (long long)w->steps);
    int32_t *row = row_of(w, w->steps);
    for (int64_t i = 0; i < cells(w); i++) {
        MU_CHECK(counts[i] <= INT32_MAX, "load window: %lld tokens for one expert in one step; at most 2^31 - 1", (long long)counts[i]);
        w->total[i] += counts[i] - row[i]; /* the row still holds the step that leaves the window, or zeros */
        row[i] = (int32_t)counts[i];
        w->previous[i] = counts[i];
        if (counts[i]) note_tokens(w, i, w->steps + 1);
    }
    w->steps++;
    if (w->held < w->length) w->held++;
}

/* ------------------------------------------------------------------ after loading from a checkpoint */

static bool is_empty(const mu_load_window *w, int64_t step) {
    const int32_t *row = row_of(w, step);
    for (int64_t i = 0; i < cells(w); i++)
        if (row[i]) return false;
    return cells(w) > 0;
}

void mu_load_window_derive(mu_load_window *w) {
    MU_CHECK(w->steps >= 0, "load window: the number of steps is %lld, must not be negative", (long long)w->steps);
    for (w->held = 0; w->held < w->length && w->held < w->steps && !is_empty(w, w->steps - 1 - w->held);) w->held++;
    for (int64_t i = 0; i < cells(w); i++) w->total[i] = w->last_step[i] = w->gaps[i] = 0, w->mean_gap[i] = 0;
    for (int64_t step = w->steps - w->held; step < w->steps; step++)
        for (int64_t i = 0; i < cells(w); i++) {
            w->total[i] += row_of(w, step)[i];
            if (row_of(w, step)[i]) note_tokens(w, i, step + 1);
        }
    for (int64_t i = 0; i < cells(w); i++) w->previous[i] = row_of(w, w->steps ? w->steps - 1 : 0)[i];
}

/* The first layer whose counts do not add up to `wanted`, or have a negative one; -1: none. */
static int uneven_layer(const mu_load_window *w, const int32_t *row, int64_t wanted) {
    for (int layer = 0; layer < w->layers; layer++, row += w->experts) {
        int64_t left = wanted;
        for (int i = 0; i < w->experts; i++) {
            if (row[i] < 0 || row[i] > left) return layer;
            left -= row[i];
        }
        if (left) return layer;
    }
    return -1;
}

mu_status mu_load_window_check(const mu_load_window *w, int64_t assignments, mu_error *e) {
    MU_CHECK(assignments >= 0 && assignments <= INT64_MAX / w->length, "load window: %lld assignments per layer and step are out of range", (long long)assignments);
    for (int64_t slot = 0; slot < w->length; slot++) {
        int64_t age = (w->steps - 1 - slot) % w->length, wanted = (age < 0 ? age + w->length : age) < w->held ? assignments : 0;
        int layer = uneven_layer(w, w->ring + slot * cells(w), wanted);
        if (layer >= 0)
            return mu_error_set(e, MU_STATUS_DATA, "load window: MoE layer %d, slot %lld: the counts of the experts do not add up to %lld",
                                layer, (long long)slot, (long long)wanted);
    }
    return MU_STATUS_OK;
}

/* The newest held step that gave expert i tokens, counted from 1; 0: none. */
static int64_t newest_step(const mu_load_window *w, int64_t i) {
    int64_t step = w->steps;
    while (step > w->steps - w->held && !row_of(w, step - 1)[i]) step--;
    return step > w->steps - w->held ? step : 0;
}

mu_status mu_load_window_check_silence(const mu_load_window *w, mu_error *e) {
    for (int64_t i = 0; i < cells(w); i++) {
        int64_t last = w->last_step[i], newest = newest_step(w, i);
        bool good = newest ? last == newest : last >= 0 && last <= w->steps - w->held;
        good = good && (last ? w->mean_gap[i] >= 1 && w->mean_gap[i] <= (double)last && w->gaps[i] >= 1 && w->gaps[i] <= last
                             : w->mean_gap[i] == 0 && w->gaps[i] == 0);
        if (!good)
            return mu_error_set(e, MU_STATUS_DATA, "load window: MoE layer %lld, expert %lld: last token in step %lld, mean of %lld gaps %g"
                                " steps, but its newest count is of step %lld", (long long)(i / w->experts), (long long)(i % w->experts),
                                (long long)last, (long long)w->gaps[i], w->mean_gap[i], (long long)newest);
    }
    return MU_STATUS_OK;
}

void mu_load_window_copy(mu_load_window *to, const mu_load_window *from) {
    MU_CHECK(to->layers == from->layers && to->experts == from->experts, "load window: cannot copy %d layers with %d experts to"
             " %d layers with %d", from->layers, from->experts, to->layers, to->experts);
    int64_t n = from->held < to->length ? from->held : to->length;
    size_t row = sizeof *to->ring * (size_t)cells(to);
    memset(to->ring, 0, row * (size_t)to->length);
    to->steps = from->steps;
    for (int64_t step = to->steps - n; step < to->steps; step++)
        if (row) memcpy(row_of(to, step), row_of(from, step), row);
    mu_load_window_derive(to);
}

/* ------------------------------------------------------------------ loads and states */

int64_t mu_load_window_active_steps(const mu_load_window *w, int layer, int expert) {
    int64_t n = 0;
    for (int64_t slot = 0; slot < w->length; slot++) n += w->ring[(slot * w->layers + layer) * w->experts + expert] > 0;
    return n;
}

bool mu_load_window_is_long_enough(const mu_load_window *w) { return w->held >= MU_LOAD_WINDOW_MIN; }

static int64_t layer_load(const mu_load_window *w, int layer) {
    int64_t all = 0;
    for (int i = 0; i < w->experts; i++) all += w->total[(int64_t)layer * w->experts + i];
    return all;
}

double mu_load_window_silence(const mu_load_window *w, int layer, int expert) {
    int64_t i = (int64_t)layer * w->experts + expert;
    double n = (double)w->gaps[i], gap = (double)(w->steps - w->last_step[i]);
    return n > 0 ? n * log1p(gap / (n * w->mean_gap[i])) : 0;
}

/* Longer silent than its own past explains. */
static bool is_silent(const mu_load_window *w, int layer, int expert) {
    int64_t gap = w->steps - w->last_step[(int64_t)layer * w->experts + expert];
    return gap > MU_SILENT_STEPS && mu_load_window_silence(w, layer, expert) > MU_SILENCE_MAX;
}

/* `all`: the load of the whole layer. */
static mu_expert_state state_of(const mu_load_window *w, int layer, int expert, int64_t all) {
    int64_t i = (int64_t)layer * w->experts + expert, load = w->total[i];
    if (!mu_load_window_is_long_enough(w)) return MU_EXPERT_HEALTHY;
    if (is_silent(w, layer, expert) || !w->last_step[i]) return MU_EXPERT_DEAD;
    return load * w->experts * 10 < all ? MU_EXPERT_STARVED : MU_EXPERT_HEALTHY;
}

void mu_load_window_states(const mu_load_window *w, int layer, mu_expert_state *states) {
    MU_CHECK(layer >= 0 && layer < w->layers, "load window: layer %d is out of range for %d layers", layer, w->layers);
    int64_t all = layer_load(w, layer);
    for (int i = 0; i < w->experts; i++) states[i] = state_of(w, layer, i, all);
}

mu_unhealthy mu_load_window_count_unhealthy(const mu_load_window *w) {
    mu_unhealthy n = { 0, 0 };
    for (int layer = 0; layer < w->layers; layer++) {
        int64_t all = layer_load(w, layer);
        for (int i = 0; i < w->experts; i++) {
            mu_expert_state state = state_of(w, layer, i, all);
            n.dead += state == MU_EXPERT_DEAD, n.starved += state == MU_EXPERT_STARVED;
        }
    }
    return n;
}

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* sum_i (2i - n - 1) c_(i) / (n sum c), c_(i) ascending, i from 1. */
static double gini(const int64_t *counts, int n, double total) {
    int64_t *sorted = mu_alloc((size_t)n, sizeof *sorted);
    memcpy(sorted, counts, sizeof *sorted * (size_t)n);
    qsort(sorted, (size_t)n, sizeof *sorted, by_size);
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (2.0 * (i + 1) - n - 1) * (double)sorted[i];
    free(sorted);
    return sum / (n * total);
}

mu_load mu_load_of(const int64_t *counts, int n) {
    MU_CHECK(counts && n >= 1, "load: counts of %d experts%s; at least 1 is needed", n, counts ? "" : " are NULL");
    double total = 0, largest = 0, smallest = INFINITY, squares = 0, entropy = 0;
    for (int i = 0; i < n; i++) {
        MU_CHECK(counts[i] >= 0, "load: expert %d has %lld tokens, must not be negative", i, (long long)counts[i]);
        total += (double)counts[i];
        largest = fmax(largest, (double)counts[i]), smallest = fmin(smallest, (double)counts[i]);
    }
    if (total == 0) return (mu_load){ 0 };
    double mean = total / n;
    for (int i = 0; i < n; i++) {
        double d = (double)counts[i] - mean, p = (double)counts[i] / total;
        squares += d * d;
        if (p > 0) entropy -= p * log(p);
    }
    return (mu_load){ .max_vio = largest / mean - 1, .min_vio = 1 - smallest / mean, .load_imbalance = largest / mean,
                      .load_cv = sqrt(squares / n) / mean, .gini = gini(counts, n, total), .diversity = exp(entropy) / n };
}

/* ------------------------------------------------------------------ the report */

/* ": 2, 5-9, 21": the experts of a layer that are in `state`; runs of three and more as ranges. After the first
 * entries the remaining experts are only counted. */
static void list_experts(const mu_expert_state *states, int experts, mu_expert_state state, int n, FILE *out) {
    enum { ENTRIES = 12 };
    int entries = 0, listed = 0;
    for (int i = 0; i < experts && entries < ENTRIES; i++) {
        int end = i;
        while (end < experts && states[end] == state) end++;
        if (end == i) continue;
        if (end - i == 2) end = i + 1;
        fprintf(out, entries++ ? ", %d" : ": %d", i);
        if (end - i > 1) fprintf(out, "-%d", end - 1);
        listed += end - i;
        i = end - 1;
    }
    if (listed < n) fprintf(out, " and %d more", n - listed);
}

/* "dead (no tokens for 30 steps or more)": how long, as far as the window goes back. */
static void describe_dead(const mu_load_window *w, int layer, const mu_expert_state *states, FILE *out) {
    int64_t least = w->held, most = 0;
    for (int i = 0; i < w->experts; i++) {
        int64_t gap = w->steps - w->last_step[(int64_t)layer * w->experts + i];
        if (states[i] != MU_EXPERT_DEAD) continue;
        if (gap > w->held) gap = w->held;
        if (gap < least) least = gap;
        if (gap > most) most = gap;
    }
    fprintf(out, "dead (no tokens for %lld steps%s)", (long long)least, most > least ? " or more" : "");
}

/* "layer 3: 2 of 64 experts dead (no tokens for 200 steps): 5, 11", when there are any in `state`. */
static void report_layer(const mu_load_window *w, int layer, int layer_id, const mu_expert_state *states, mu_expert_state state,
                         FILE *out) {
    int n = 0;
    for (int i = 0; i < w->experts; i++) n += states[i] == state;
    if (!n) return;
    fprintf(out, "layer %d: %d of %d experts ", layer_id, n, w->experts);
    if (state == MU_EXPERT_DEAD) describe_dead(w, layer, states, out);
    else fprintf(out, "below 10 %% of the mean load over %lld steps", (long long)w->held);
    list_experts(states, w->experts, state, n, out);
    fputc('\n', out);
}

char *mu_load_window_report(const mu_load_window *w, const int *layer_ids) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    mu_expert_state *states = mu_alloc((size_t)w->experts, sizeof *states);
    for (int layer = 0; layer < w->layers; layer++) {
        mu_load_window_states(w, layer, states);
        report_layer(w, layer, layer_ids[layer], states, MU_EXPERT_DEAD, out);
        report_layer(w, layer, layer_ids[layer], states, MU_EXPERT_STARVED, out);
    }
    free(states);
    fclose(out);
    if (size && text[size - 1] == '\n') text[size - 1] = '\0';
    return text;
}
