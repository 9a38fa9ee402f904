/* roll.c - the roll call: who took tokens in the last steps. */
#include "moe/moe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t cells(const mu_roll *r) { return (int64_t)r->layers * r->experts; }

void mu_roll_init(mu_roll *r, int layers, int experts) {
    MU_CHECK(r && layers >= 0 && experts >= 0, "load statistics of %d layers with %d experts each", layers, experts);
    *r = (mu_roll){ .layers = layers, .experts = experts };
    r->ring = mu_alloc((size_t)(cells(r) * MU_ROLL_WINDOW), sizeof(int64_t));
    r->total = mu_alloc((size_t)cells(r), sizeof(int64_t));
    r->previous = mu_alloc((size_t)cells(r), sizeof(int64_t));
}

void mu_roll_free(mu_roll *r) {
    free(r->ring);
    free(r->total);
    free(r->previous);
    *r = (mu_roll){ 0 };
}

void mu_roll_take(mu_roll *r, const int64_t *counts) {
    MU_CHECK(counts || !cells(r), "no counts of %d layers of %d experts", r->layers, r->experts);
    MU_CHECK(r->steps >= 0, "%lld steps", (long long)r->steps);
    int64_t *row = r->ring + (r->steps % MU_ROLL_WINDOW) * cells(r);
    for (int64_t i = 0; i < cells(r); i++) {
        r->total[i] += counts[i] - row[i]; /* the row still holds the step that leaves the window, or zeros */
        row[i] = counts[i];
        r->previous[i] = counts[i];
    }
    r->steps++;
}

/* Whether each layer's experts took `wanted` assignments together; the layer that did not, or -1. */
static int uneven_layer(const mu_roll *r, const int64_t *row, int64_t wanted) {
    for (int layer = 0; layer < r->layers; layer++, row += r->experts) {
        int64_t left = wanted;
        for (int i = 0; i < r->experts; i++) {
            if (row[i] < 0 || row[i] > left) return layer;
            left -= row[i];
        }
        if (left) return layer;
    }
    return -1;
}

mu_status mu_roll_check(const mu_roll *r, int64_t assignments, mu_error *e) {
    MU_CHECK(assignments >= 0 && assignments <= INT64_MAX / MU_ROLL_WINDOW, "%lld assignments", (long long)assignments);
    if (r->steps < 0) return mu_error_set(e, MU_STATUS_DATA, "expert statistics over %lld steps", (long long)r->steps);
    for (int64_t slot = 0; slot < MU_ROLL_WINDOW; slot++) {
        int64_t wanted = slot < r->steps ? assignments : 0;
        int layer = uneven_layer(r, r->ring + slot * cells(r), wanted);
        if (layer >= 0)
            return mu_error_set(e, MU_STATUS_DATA, "expert statistics: MoE layer %d: the experts of slot %lld do not add up to %lld",
                                layer, (long long)slot, (long long)wanted);
    }
    return MU_STATUS_OK;
}

void mu_roll_derive(mu_roll *r) {
    int64_t last = r->steps ? (r->steps - 1) % MU_ROLL_WINDOW : 0;
    for (int64_t i = 0; i < cells(r); i++) {
        r->previous[i] = r->ring[last * cells(r) + i], r->total[i] = 0;
        for (int64_t slot = 0; slot < MU_ROLL_WINDOW; slot++) r->total[i] += r->ring[slot * cells(r) + i];
    }
}

int64_t mu_roll_active(const mu_roll *r, int layer, int expert) {
    int64_t n = 0;
    for (int64_t step = 0; step < MU_ROLL_WINDOW; step++)
        n += r->ring[(step * r->layers + layer) * r->experts + expert] > 0;
    return n;
}

int64_t mu_roll_window(const mu_roll *r) { return r->steps < MU_ROLL_WINDOW ? r->steps : MU_ROLL_WINDOW; }

mu_expert_state mu_roll_state(const mu_roll *r, int layer, int expert) {
    MU_CHECK(layer >= 0 && layer < r->layers && expert >= 0 && expert < r->experts, "expert %d of %d, layer %d of %d", expert,
             r->experts, layer, r->layers);
    if (r->steps < MU_ROLL_LEAST) return MU_EXPERT_ALIVE;
    const int64_t *row = r->total + (int64_t)layer * r->experts;
    if (row[expert] == 0) return MU_EXPERT_DEAD;
    int64_t all = 0;
    for (int i = 0; i < r->experts; i++) all += row[i];
    return row[expert] * r->experts * 10 < all ? MU_EXPERT_STARVED : MU_EXPERT_ALIVE;
}

mu_load mu_load_of(const int64_t *counts, int n) {
    MU_CHECK(counts && n >= 1, "the load of %d experts%s", n, counts ? "" : ", without counts");
    double total = 0, largest = 0, squares = 0, entropy = 0;
    for (int i = 0; i < n; i++) {
        MU_CHECK(counts[i] >= 0, "expert %d has a count of %lld tokens", i, (long long)counts[i]);
        total += (double)counts[i];
        if ((double)counts[i] > largest) largest = (double)counts[i];
    }
    if (total == 0) return (mu_load){ 0, 0, 0, 0 };
    double mean = total / n;
    for (int i = 0; i < n; i++) {
        double d = (double)counts[i] - mean, p = (double)counts[i] / total;
        squares += d * d;
        if (p > 0) entropy -= p * log(p);
    }
    return (mu_load){ largest / mean - 1, largest / mean, sqrt(squares / n) / mean, exp(entropy) / n };
}

/* Appends "layer 3: experts 5, 11 took no token for 200 steps" when some expert of the layer is in `state`. */
static void report_layer(const mu_roll *r, int layer, int layer_id, mu_expert_state state, FILE *out) {
    int n = 0;
    for (int i = 0; i < r->experts; i++) n += mu_roll_state(r, layer, i) == state;
    if (!n) return;
    fprintf(out, "layer %d: expert%s", layer_id, n > 1 ? "s" : "");
    const char *separator = " ";
    for (int i = 0; i < r->experts; i++)
        if (mu_roll_state(r, layer, i) == state) {
            fprintf(out, "%s%d", separator, i);
            separator = ", ";
        }
    fprintf(out,
            state == MU_EXPERT_DEAD ? " took no token for %lld steps\n"
                                    : " took under 10 %% of a fair share for %lld steps\n",
            (long long)mu_roll_window(r));
}

char *mu_roll_report(const mu_roll *r, const int *layer_ids) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    for (int layer = 0; layer < r->layers; layer++) {
        report_layer(r, layer, layer_ids[layer], MU_EXPERT_DEAD, out);
        report_layer(r, layer, layer_ids[layer], MU_EXPERT_STARVED, out);
    }
    fclose(out);
    if (size && text[size - 1] == '\n') text[size - 1] = '\0';
    return text;
}
