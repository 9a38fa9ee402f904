/* quantile.c - quantile balancing (Kimi K3; Megatron-LM #6637): the selection bias with which each expert would have been chosen by its
 * share of the tokens of the global batch. Token t chooses expert i when s_ti + b_i reaches the cutoff a_t, the largest s + b among those that
 * it did not choose; with a_t given, the bias b_i = r makes all tokens with a_t - s_ti <= r choose it. So the next bias is a quantile of a_t - s_ti
 * over the tokens: the one below which there are as many tokens as an expert's even share of the assignments. Then the biases are centred.
 *
 * The quantile comes from a histogram of whole numbers, summed over micro-batches and ranks, so it is the same for any split of the batch. Its range
 * follows from the biases: a_t - s_ti lies in [min b - 1, max b + 1], because scores lie in [0, 1].
 *
 * Exempt experts keep their biases, and are left out of the mean; the even share is that of the others' assignments. */
#include "moe/moe.h"

#include <math.h>
#include <stdlib.h>

enum { BINS = MU_QUANTILE_BINS };

/* The range of a layer's histogram. */
typedef struct { double low, width; } range;

static range range_of(const mu_moe *m) {
    double least = INFINITY, most = -INFINITY;
    for (int64_t i = 0; i < m->E; i++) least = fmin(least, m->bias[i]), most = fmax(most, m->bias[i]);
    return (range){ least - 1, (most - least + 2) / BINS };
}

static int64_t cells(const mu_quantiles *q) { return (int64_t)q->layers * q->experts * BINS; }

static mu_mat counts_of(const mu_quantiles *q, int layer) {
    return (mu_mat){ (int32_t *)q->memory->region.base + (int64_t)layer * q->experts * BINS, MU_DTYPE_I32, BINS };
}

mu_quantiles *mu_quantiles_new(mu_device *dev, mu_comm *batch, int layers, int experts) {
    MU_CHECK(dev && batch && layers >= 0 && experts >= 1, "quantiles of %d layers with %d experts each", layers, experts);
    mu_quantiles *q = mu_alloc(1, sizeof *q);
    *q = (mu_quantiles){ .dev = dev, .batch = batch, .layers = layers, .experts = experts };
    q->host = mu_alloc((size_t)cells(q), sizeof *q->host);
    q->memory = mu_memory_new(dev, (size_t)cells(q) * sizeof *q->host);
    mu_memory_commit(q->memory, (size_t)cells(q) * sizeof *q->host);
    return q;
}

void mu_quantiles_free(mu_quantiles *q) {
    if (!q) return;
    mu_memory_free(q->memory);
    free(q->host);
    free(q);
}

void mu_quantiles_begin(mu_quantiles *q) {
    mu_mat all = counts_of(q, 0);
    all.dtype = MU_DTYPE_F64;   /* zero in all types; the number of bins is even */
    q->dev->k->fill(q->dev, cells(q) / 2, 0.0, all);
}

void mu_quantiles_add(mu_quantiles *q, const mu_moe *m, int layer, const mu_routing *r) {
    range of = range_of(m);
    q->dev->k->count_cutoffs(q->dev, r->ids_TK->shape[0], m->E, m->K, BINS, of.low, of.width, mu_data(r->scores_TE), mu_data(r->bias_E),
                             mu_data(r->ids_TK), counts_of(q, layer));
}

void mu_quantiles_read(mu_quantiles *q) {
    mu_device_read(q->dev, q->host, q->memory->region.base, (size_t)cells(q) * sizeof *q->host);
    if (q->batch->size > 1) mu_all_reduce(q->batch, MU_REDUCE_SUM, MU_DTYPE_I32, q->host, cells(q));
}

/* The value below which `wanted` of the counts lie, as if they were spread evenly within each bin. */
static double quantile_of(const int32_t *counts, range of, double wanted) {
    double below = 0;
    int64_t bin = 0;
    while (bin < BINS - 1 && below + counts[bin] < wanted) below += counts[bin++];
    double part = counts[bin] ? fmin(fmax((wanted - below) / counts[bin], 0), 1) : 0;
    return of.low + of.width * ((double)bin + part);
}

void mu_quantiles_update(const mu_quantiles *q, mu_moe *m, int layer, const int64_t *loads) {
    const int32_t *counts = q->host + (int64_t)layer * q->experts * BINS;
    double share = (double)mu_balance_assignments(m, loads) / (double)mu_moe_balanced(m);
    range of = range_of(m);
    for (int64_t i = 0; i < m->E && m->K < m->E; i++)
        if (!mu_moe_exempts(m, i)) m->bias[i] = quantile_of(counts + i * BINS, of, share);
    mu_balance_centre_bias(m);
}
