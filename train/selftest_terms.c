/* selftest_terms.c - balancing terms of a model on the double-precision device: their value against their definition, computed here from
 * scores and counts, and where it is known; their gradient against finite differences of the loss, and against the one without the term. */
#include "train/selftest.h"

#include <math.h>
#include <stdlib.h>

#define COEFFICIENT "0.5"
enum { EXPERTS = 4, SEQUENCES = 4 };        /* of mu_selftest_open's model and its batch */

/* A balancing loss is the mean, over groups of sequences, of sum_i f_i P_i: f_i = c_i E / (K T), with c_i assignments and T tokens of the
 * group, and P_i the mean probability of expert i in it. With equal probabilities it is 1. The z-loss is the mean of the squared log of
 * the sum of the exponentials of the router's logits, with equal logits of 0 log(E)^2. */
typedef struct {
    const char *name, *balance, *coefficient;
    int group;                  /* sequences; 0: the z-loss */
} term;
static const term terms[] = {
    { "aux_loss", "moe.balance=[aux_loss]", "moe.aux_loss_coeff=", SEQUENCES / 2 },          /* a micro-batch */
    { "seq_aux_loss", "moe.balance=[seq_aux_loss]", "moe.seq_aux_loss_coeff=", 1 },
    { "global_aux_loss", "moe.balance=[global_aux_loss]", "moe.aux_loss_coeff=", SEQUENCES },
    { "z_loss", "moe.balance=[none]", "moe.z_loss_coeff=", 0 },
};

int mu_selftest_n_terms(void) { return (int)(sizeof terms / sizeof *terms); }

/* The run with this coefficient for the term; two micro-batches, so that global_aux_loss differs from aux_loss. */
static mu_training *open_with(const mu_selftest *t, const term *a, const char *coefficient) {
    char *value = mu_format("%s%s", a->coefficient, coefficient);
    mu_training *r = mu_selftest_open(t, t->alone, false, (const char *[]){ "moe.z_loss_coeff=0", a->balance, value, "train.micro_batch_size=2", NULL });
    free(value);
    return r;
}

static mu_unit *router(mu_training *r, int layer) {
    char name[64];
    snprintf(name, sizeof name, "/layers/%d/mlp/gate/weight", r->state.model->moe_layers[layer]);
    return mu_params_find(r->state.model->params, name);
}

/* ------------------------------------------------------------------ values */

/* What a layer's router did in a sequence. */
typedef struct { double probability[EXPERTS], squared_lse; int64_t count[EXPERTS]; } routed;

/* Adds sequence s of a micro-batch, from its tensors on the host: scores [tokens, E], lse [tokens], counts [sequences, E]. */
static void note_sequence(routed *x, const double *scores, const double *lse, const int64_t *counts, int64_t s, int64_t S) {
    for (int64_t t = s * S; t < (s + 1) * S; t++) {
        for (int i = 0; i < EXPERTS; i++) x->probability[i] += scores[t * EXPERTS + i];
        x->squared_lse += lse[t] * lse[t];
    }
    for (int i = 0; i < EXPERTS; i++) x->count[i] = counts[s * EXPERTS + i];
}

/* Routes the first global batch: all [MoE layers, SEQUENCES]. */
static void route(mu_training *r, routed *all) {
    int64_t S = r->cfg.train.seq_len, n = r->batches.micro_size, layers = r->state.model->n_moe;
    mu_routing *routings = mu_alloc((size_t)layers, sizeof *routings);
    double *scores = mu_alloc((size_t)(n * S * EXPERTS), sizeof *scores), *lse = mu_alloc((size_t)(n * S), sizeof *lse);
    int64_t *counts = mu_alloc((size_t)(n * EXPERTS), sizeof *counts);
    mu_batches_next(&r->batches, 0);
    for (int64_t m = 0; m < r->batches.shape.micro_batches; m++) {
        mu_micro_batch b = mu_batches_read(&r->batches, m);
        mu_model_forward(r->state.model, r->tape, &b.cx, b.tokens, routings);
        for (int64_t l = 0; l < layers; l++) {
            mu_tensor_get(routings[l].scores_TE, scores);
            mu_tensor_get(routings[l].lse_T, lse);
            mu_tensor_read(routings[l].counts_SE, counts);
            for (int64_t s = 0; s < n; s++) note_sequence(&all[l * SEQUENCES + m * n + s], scores, lse, counts, s, S);
        }
        mu_tape_reset(r->tape);
    }
    mu_batches_put_back(&r->batches);
    free(counts);
    free(lse);
    free(scores);
    free(routings);
}

/* sum_i f_i P_i of a group of sequences. */
static double balance_of(const routed *x, int group, double tokens, double K) {
    double sum = 0;
    for (int i = 0; i < EXPERTS; i++) {
        double count = 0, probability = 0;
        for (int s = 0; s < group; s++) count += (double)x[s].count[i], probability += x[s].probability[i];
        sum += count * EXPERTS / (K * tokens) * (probability / tokens);
    }
    return sum;
}

/* The term by its definition, mean over layers. */
static double defined_value(mu_training *r, const term *a) {
    int64_t layers = r->state.model->n_moe, n = layers * SEQUENCES;
    double sum = 0, S = (double)r->cfg.train.seq_len;
    routed *all = mu_alloc((size_t)n, sizeof *all);
    route(r, all);
    for (int64_t i = 0; i < n; i += a->group ? a->group : 1)
        sum += a->group ? a->group * balance_of(all + i, a->group, a->group * S, (double)r->cfg.moe.top_k) : all[i].squared_lse / S;
    free(all);
    return sum / (double)n;
}

static double loss_of(mu_training *r) {
    double loss;
    int64_t n;
    free(mu_selftest_gradients(r, &loss, &n));
    return loss;
}

static void set(mu_training *r, const mu_unit *u, int64_t i, double x) {
    mu_reals_set(r->dev, MU_DTYPE_F64, (double *)mu_unit_data(u) + i, 1, &x);
}

/* ------------------------------------------------------------------ gradients */

/* The derivative of the loss: differences of fourth order. */
static double derivative(mu_training *r, const mu_unit *u, int64_t i) {
    static const double move[4] = { -2, -1, 1, 2 }, factor[4] = { 1, -8, 8, -1 }, h = 1e-5;
    double x, sum = 0;
    mu_reals_get(r->dev, MU_DTYPE_F64, (double *)mu_unit_data(u) + i, 1, &x);
    for (int k = 0; k < 4; k++) {
        set(r, u, i, x + move[k] * h);
        sum += factor[k] * loss_of(r);
    }
    set(r, u, i, x);
    return sum / (12 * h);
}

/* The gradient of every MoE layer's router, one after another; heap. */
static double *router_gradients(mu_training *r, int64_t *n) {
    int layers = r->state.model->n_moe;
    int64_t each = router(r, 0)->count;
    double *g = mu_alloc((size_t)(layers * each), sizeof *g);
    loss_of(r);
    for (int l = 0; l < layers; l++) mu_reals_get(r->dev, MU_DTYPE_F64, mu_unit_grad(router(r, l)), each, g + l * each);
    *n = layers * each;
    return g;
}

/* The largest error of the gradient g at some of its values, relative to the largest value. */
static double worst_error(mu_training *r, const double *g, int64_t n) {
    enum { CHECKED = 12 };
    int64_t each = router(r, 0)->count;
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs(g[i]));
    for (int64_t i = 0; i < CHECKED; i++) {
        int64_t at = i * (n - 1) / (CHECKED - 1);
        worst = fmax(worst, fabs(derivative(r, router(r, (int)(at / each)), at % each) - g[at]) / largest);
    }
    return worst;
}

/* The term in the loss, mean over layers. */
static double value_in_loss(mu_training *on, mu_training *off) {
    return (loss_of(on) - loss_of(off)) / (atof(COEFFICIENT) * on->state.model->n_moe);
}

/* Makes the router give every expert the same score. */
static void make_uniform(mu_training *r) {
    for (int l = 0; l < r->state.model->n_moe; l++)
        for (int64_t i = 0; i < router(r, l)->count; i++) set(r, router(r, l), i, 0);
}

/* ------------------------------------------------------------------ a term */

bool mu_selftest_term(mu_selftest *t, int number, const char **name) {
    const term *a = &terms[number];
    mu_training *on = open_with(t, a, COEFFICIENT), *off = open_with(t, a, "0");
    int64_t n;
    bool detached = mu_fault("selftest_term", t->mesh->world->rank);        /* as if the term had no gradient */
    double *g = router_gradients(detached ? off : on, &n), *without = router_gradients(off, &n);
    double share = mu_selftest_distance(g, without, n), error = worst_error(on, g, n);
    double value = value_in_loss(on, off), defined = defined_value(off, a);
    make_uniform(on), make_uniform(off);
    double uniform = value_in_loss(on, off), known = a->group ? 1 : log(EXPERTS) * log(EXPERTS);
    snprintf(t->figures, sizeof t->figures, "value %.6f (by definition %.6f), of a uniform router %.6f (known: %.6f); router's gradient: %.0e from finite"
             " differences, changed by %.0f %% by the term", value, defined, uniform, known, error, 100 * share);
    *name = a->name;
    free(g);
    free(without);
    mu_selftest_close(on);
    mu_selftest_close(off);
    return fabs(value - defined) < 1e-9 && fabs(uniform - known) < 1e-9 && error < 1e-6 && share > 1e-3;
}
