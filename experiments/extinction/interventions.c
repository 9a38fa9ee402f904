/* interventions.c - copies of the model and of one expert, the adversaries that revive experts, and the anchor. */
#include "nano.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ copies */

static bool wanted(const mu_unit *u, int expert) { return expert < 0 || u->expert == expert; }

static int64_t count_values(const nano *m, int expert) {
    int64_t n = 0;
    for (mu_unit *u = mu_unit_next(m->ps, NULL); u; u = mu_unit_next(m->ps, u)) n += wanted(u, expert) ? u->count : 0;
    return n;
}

static void get_reals(nano *m, const void *data, int64_t n, double *out) { mu_reals_get(m->dev, m->dev->master, data, n, out); }
static void set_reals(nano *m, void *data, int64_t n, const double *from) { mu_reals_set(m->dev, m->dev->master, data, n, from); }

static copy *copy_of(nano *m, int expert) {
    copy *c = mu_alloc(1, sizeof *c);
    size_t n = (size_t)count_values(m, expert);
    c->values = mu_alloc(n, sizeof(double)), c->m = mu_alloc(n, sizeof(double)), c->v = mu_alloc(n, sizeof(double));
    int64_t at = 0, i = 0;
    for (mu_unit *u = mu_unit_next(m->ps, NULL); u; u = mu_unit_next(m->ps, u)) {
        if (!wanted(u, expert)) continue;
        get_reals(m, mu_unit_data(u), u->count, c->values + at);
        get_reals(m, mu_optimizer_slot(m->opt, u, 0), u->count, c->m + at);
        get_reals(m, mu_optimizer_slot(m->opt, u, 1), u->count, c->v + at);
        c->steps[i++] = mu_optimizer_steps(m->opt, u);
        at += u->count;
    }
    if (m->cfg.experts) memcpy(c->bias, m->moe.bias, sizeof *c->bias * (size_t)m->cfg.experts);
    return c;
}

/* fresh: with moments and step counts 0. */
static void copy_back(nano *m, int expert, const copy *c, bool fresh) {
    int64_t at = 0, i = 0;
    double *zero = mu_alloc((size_t)count_values(m, expert), sizeof *zero);
    for (mu_unit *u = mu_unit_next(m->ps, NULL); u; u = mu_unit_next(m->ps, u)) {
        if (!wanted(u, expert)) continue;
        set_reals(m, mu_unit_data(u), u->count, c->values + at);
        set_reals(m, mu_optimizer_slot(m->opt, u, 0), u->count, fresh ? zero : c->m + at);
        set_reals(m, mu_optimizer_slot(m->opt, u, 1), u->count, fresh ? zero : c->v + at);
        mu_optimizer_steps_set(m->opt, u, fresh ? 0 : c->steps[i]);
        i++, at += u->count;
    }
    free(zero);
    mu_params_refresh(m->ps);
}

static void router_row(nano *m, int expert, double *row, bool set) {
    double all[E_MAX * D];
    mu_tensor *w = &m->moe.router_ED->tensor;
    mu_tensor_get(w, all);
    if (set) memcpy(all + expert * D, row, sizeof *row * D), mu_tensor_set(w, all);
    else memcpy(row, all + expert * D, sizeof *row * D);
}

copy *copy_model(nano *m) { return copy_of(m, -1); }
void copy_model_back(nano *m, const copy *c) {
    copy_back(m, -1, c, false);
    if (m->cfg.experts) memcpy(m->moe.bias, c->bias, sizeof *c->bias * (size_t)m->cfg.experts);
}

copy *copy_expert(nano *m, int expert) {
    copy *c = copy_of(m, expert);
    router_row(m, expert, c->row, false);
    return c;
}

void copy_expert_back(nano *m, int expert, const copy *c) {
    double row[D];
    memcpy(row, c->row, sizeof row);
    copy_back(m, expert, c, true);
    router_row(m, expert, row, true);
    m->moe.bias[expert] = c->bias[expert];
}

void copy_free(copy *c) {
    if (!c) return;
    free(c->values), free(c->m), free(c->v), free(c);
}

/* ------------------------------------------------------------------ adversaries */

int busiest(const nano *m) {
    int best = CARRIER == 0;
    for (int i = 0; i < m->cfg.experts; i++)
        if (i != CARRIER && m->stats->window.total[i] > m->stats->window.total[best]) best = i;
    return best;
}

static double mean_square(const double *x, int64_t n, double mean) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
    return sum / (double)n;
}

static mu_rng noise_of(uint64_t seed, int what) { return (mu_rng){ seed, 0, (uint32_t)what, MU_RNG_TEST, 1 }; }

/* A matrix of the donor with 2 % noise. */
static void mimic(double *w, int64_t n, const mu_rng *r) {
    double scale = 0.02 * sqrt(mean_square(w, n, 0));
    for (int64_t i = 0; i < n; i++) w[i] += scale * mu_rng_normal(r, (uint64_t)i);
}

/* Half of the hidden units are drawn anew, with the mean and deviation of those they replace (Drop-Upcycling). The same
 * units in all three matrices; `down` has a unit in a column. */
static void drop(double *w, int64_t F, bool down, const bool *out, const mu_rng *r) {
    double sum = 0, squares = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < F * D; i++)
        if (out[down ? i % F : i / D]) sum += w[i], squares += w[i] * w[i], n++;
    double mean = sum / (double)n, std = sqrt(fmax(squares / (double)n - mean * mean, 0));
    for (int64_t i = 0; i < F * D; i++)
        if (out[down ? i % F : i / D]) w[i] = mean + std * mu_rng_normal(r, (uint64_t)i);
}

/* ReDo: incoming weights as at the start, outgoing 0. */
static void redo(double *w, int64_t n, bool down, const mu_rng *r) {
    for (int64_t i = 0; i < n; i++) w[i] = down ? 0 : mu_rng_normal(r, (uint64_t)i) / sqrt(D);
}

void revive(nano *m, revive_kind kind, uint64_t seed) {
    int donor = busiest(m);
    int64_t F = m->cfg.width;
    copy *c = copy_expert(m, donor);
    bool out[1024] = { false };
    mu_rng order = noise_of(seed, 9);
    for (int64_t taken = 0, i = 0; taken < F / 2; i++) {
        int64_t f = (int64_t)(mu_rng_uniform(&order, (uint64_t)i) * (double)F);
        taken += !out[f], out[f] = true;
    }
    for (int i = 0; i < 3; i++) {       /* gate, up, down: in the order of declaration */
        double *w = c->values + i * F * D;
        mu_rng r = noise_of(seed, i);
        if (kind == REVIVE_MIMIC) mimic(w, F * D, &r);
        else if (kind == REVIVE_DROP) drop(w, F, i == 2, out, &r);
        else redo(w, F * D, i == 2, &r);
    }
    mu_rng r = noise_of(seed, 3);
    if (kind == REVIVE_REDO) router_row(m, CARRIER, c->row, false);     /* it keeps its own */
    for (int i = 0; i < D && kind == REVIVE_DROP; i++) c->row[i] = 0.02 * mu_rng_normal(&r, (uint64_t)i);
    c->bias[CARRIER] = kind == REVIVE_REDO ? m->moe.bias[CARRIER] : c->bias[donor];
    copy_expert_back(m, CARRIER, c);
    copy_free(c);
}

/* ------------------------------------------------------------------ anchor */

mu_anchor *anchor_new(nano *m, const buffer *b) {
    static tokens one;
    mu_anchor *a = mu_anchor_new(m->opt, corpus_domains());
    for (int d = 0; d < RARE; d++)
        for (int t = 0; t < b->kept[d].n; t++) {
            one.n = 1, one.prev[0] = b->kept[d].prev[t], one.tag[0] = b->kept[d].tag[t], one.next[0] = b->kept[d].next[t];
            nano_backward(m, &one);
            mu_anchor_add(a, 1.0 / b->kept[d].n);
        }
    mu_anchor_renew(a, m->mesh->batch, 0);
    mu_params_zero_grad(m->ps);
    return a;
}
