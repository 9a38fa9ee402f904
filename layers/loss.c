/* loss.c - the loss of a model over a global batch: cross-entropy, balancing terms, routing statistics.
 *
 * A global batch is split into micro-batches, and each of those over the ranks. Every term is divided by the tokens of the
 * global batch before backward, so gradients of micro-batches and ranks are simply added, and the loss does not depend on how
 * the batch is split.
 *
 * Nothing waits for the device before mu_loss_read. Until then values stay in device memory as F64: the gradient
 * norm; then, per micro-batch and reduction unit, loss, cross-entropy, and three logged terms of each MoE layer. */
#include "layers/layers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LOSS, CE, LAYERS };
static int aux_of(int layer) { return LAYERS + 3 * layer; }
static int z_of(int layer) { return aux_of(layer) + 1; }
static int gate_of(int layer) { return aux_of(layer) + 2; }

/* Index of the first value of micro-batch m. */
static int64_t value_word(const mu_loss *l, int which, int64_t m) { return 1 + (which * l->shape.micro_batches + m) * l->units; }
static mu_mat value_at(const mu_loss *l, int which, int64_t m) {
    return mu_mat_values(mu_routing_stats_values(l->stats), value_word(l, which, m));
}

static int64_t micro_sequences(const mu_loss *l) {
    return l->shape.sequences / (l->shape.micro_batches * l->batch->size);
}

mu_loss *mu_loss_new(mu_model *model, mu_tape *tp, mu_comm *batch, const mu_batch_shape *shape) {
    MU_CHECK(model && tp && batch && shape, "model, tape, batch communicator or shape is NULL");
    MU_CHECK(shape->sequences >= 1 && shape->seq_len >= 1 && shape->micro_batches >= 1 &&
                 shape->sequences % (shape->micro_batches * batch->size) == 0,
             "a global batch of %lld sequences of %lld tokens does not divide into %lld micro-batches on %d ranks",
             (long long)shape->sequences, (long long)shape->seq_len, (long long)shape->micro_batches, batch->size);
    mu_loss *l = mu_alloc(1, sizeof *l);
    *l = (mu_loss){ .model = model, .tape = tp, .batch = batch, .shape = *shape };
    l->tokens = shape->sequences * shape->seq_len;
    l->units = mu_tape_reduction_units(tp, micro_sequences(l) * shape->seq_len);
    l->routings = mu_alloc((size_t)model->n_moe, sizeof *l->routings);
    l->stats = mu_routing_stats_new(mu_tape_device(tp), batch, model->n_moe, (int)model->moe_cfg.num_experts,
                                    shape->domains ? shape->domains : 1, shape->window, value_word(l, aux_of(model->n_moe), 0));
    if (model->n_moe && model->moe_cfg.balance & MU_BALANCE_QUANTILE)
        l->quantiles = mu_quantiles_new(mu_tape_device(tp), batch, model->n_moe, (int)model->moe_cfg.num_experts);
    return l;
}

void mu_loss_free(mu_loss *l) {
    if (!l) return;
    mu_quantiles_free(l->quantiles);
    mu_routing_stats_free(l->stats);
    free(l->routings);
    free(l);
}

void mu_loss_begin(mu_loss *l) {
    l->micro = 0, l->has_gate = false;
    mu_routing_stats_begin(l->stats);
    if (l->quantiles) mu_quantiles_begin(l->quantiles);
}

static mu_moe *moe_of(const mu_loss *l, int layer) { return &l->model->blocks[l->model->moe_layers[layer]].moe; }

/* global_aux_loss uses the counts of this batch; so does the logged value of the first batch, which has no predecessor. */
static bool uses_own_counts(const mu_loss *l) {
    const mu_moe_config *moe = &l->model->moe_cfg;
    bool needed = moe->balance & MU_BALANCE_GLOBAL_AUX && moe->global_aux_counts == MU_MOE_COUNTS_EXACT;
    return needed || !l->stats->window.held;
}

bool mu_loss_counts_first(const mu_loss *l) { return l->model->n_moe && l->shape.micro_batches > 1 && uses_own_counts(l); }

static void check_micro(const mu_loss *l, const mu_context *cx) {
    MU_CHECK(l->micro < l->shape.micro_batches, "micro-batch %lld of %lld: call mu_loss_begin for a new global batch",
             (long long)l->micro + 1, (long long)l->shape.micro_batches);
    MU_CHECK(cx && cx->n_sequences == micro_sequences(l) && cx->seq_len == l->shape.seq_len,
             "a micro-batch must have %lld sequences of %lld tokens, not %lld of %lld", (long long)micro_sequences(l),
             (long long)l->shape.seq_len, (long long)(cx ? cx->n_sequences : 0), (long long)(cx ? cx->seq_len : 0));
}

void mu_loss_count(mu_loss *l, const mu_context *cx, mu_tensor *tokens) {
    check_micro(l, cx);
    bool last = ++l->micro == l->shape.micro_batches, recording = mu_tape_recording(l->tape);
    mu_tape_record(l->tape, false);
    mu_model_forward(l->model, l->tape, cx, tokens, l->routings);
    mu_routing_stats_count(l->stats, l->routings, last);
    mu_tape_record(l->tape, recording);
    if (last) l->micro = 0;
}

/* Without global_aux_loss the counts only serve the logged value: the previous batch's suffice, and they are the same for any
 * number of micro-batches. */
static mu_mat global_counts(const mu_loss *l, int layer) {
    int64_t E = l->model->moe_cfg.num_experts;
    if (!uses_own_counts(l)) return mu_data(mu_tensor_ints(l->tape, MU_DTYPE_I64, E, l->stats->window.previous + layer * E));
    return l->shape.micro_batches == 1 ? mu_routing_stats_micro(l->stats, layer) : mu_routing_stats_counted(l->stats, layer);
}

static void keep_value(const mu_loss *l, int which, const mu_tensor *value) {
    mu_mat to = value_at(l, which, l->micro);
    mu_device *dev = mu_tape_device(l->tape);
    if (value) dev->k->add(dev, l->units, to, mu_data(value), to);
}

/* Adds every MoE layer's balancing terms to the loss. */
static mu_tensor *add_balance(mu_loss *l, const mu_context *cx, mu_tensor *loss) {
    mu_tape_part(l->tape, "balance");
    for (int layer = 0; layer < l->model->n_moe; layer++) {
        const mu_moe *moe = moe_of(l, layer);
        mu_balance_counts c = { mu_routing_stats_micro(l->stats, layer), global_counts(l, layer),
                                l->tokens / l->shape.micro_batches, l->tokens };
        mu_balance b = mu_balance_loss(moe, l->tape, cx, &l->routings[layer], &c);
        keep_value(l, aux_of(layer), b.aux);
        keep_value(l, z_of(layer), b.z);
        keep_value(l, gate_of(layer), b.gate);
        l->has_gate |= b.gate != NULL;
        if (b.loss) loss = mu_add(l->tape, loss, b.loss);
    }
    mu_tape_part(l->tape, NULL);
    return loss;
}

mu_tensor *mu_loss_forward(mu_loss *l, const mu_context *cx, mu_tensor *tokens, mu_tensor *targets) {
    check_micro(l, cx);
    mu_context own = *cx;
    if (l->stats->details_wanted && l->model->n_moe)
        own.router_grads = mu_routing_stats_router_grads(l->stats), own.router_grad_unit = MU_GRAD_UNIT * (double)l->tokens;
    mu_tensor *x = mu_model_forward(l->model, l->tape, &own, tokens, l->routings);
    mu_routing_stats_add(l->stats, l->tape, cx, l->routings);
    for (int layer = 0; layer < l->model->n_moe && l->quantiles; layer++)
        mu_quantiles_add(l->quantiles, moe_of(l, layer), layer, &l->routings[layer]);
    mu_tensor *ce = mu_model_head_loss(l->model, l->tape, x, targets, 1.0 / (double)l->tokens, NULL);
    mu_release(l->tape, x);
    mu_tensor *loss = add_balance(l, cx, ce);
    keep_value(l, CE, ce);
    keep_value(l, LOSS, loss);
    l->micro++;
    return loss;
}

mu_mat mu_loss_loads(const mu_loss *l) { return mu_routing_stats_total(l->stats); }

mu_mat mu_loss_terms(const mu_loss *l, int64_t *n) {
    *n = l->shape.micro_batches * l->units;
    return value_at(l, LOSS, 0);
}

/* ------------------------------------------------------------------ the values of a step */

/* This rank's part of each value, in words that are summed over ranks. */
typedef struct {
    mu_exact loss, ce, aux, z, gate;
    int64_t stop;
} sums;
enum { SUM_WORDS = sizeof(sums) / sizeof(int64_t) };

static void add_values(const mu_loss *l, int which, double by, mu_exact *sum) {
    const int64_t *bits = l->stats->values + value_word(l, which, 0);
    for (int64_t i = 0; i < l->shape.micro_batches * l->units; i++) {
        double value;
        memcpy(&value, &bits[i], sizeof value);
        mu_exact_add(sum, value / by);
    }
}

static sums own_sums(const mu_loss *l) {
    int n = l->model->n_moe;
    sums s = { 0 };
    add_values(l, LOSS, 1, &s.loss);
    add_values(l, CE, 1, &s.ce);
    for (int layer = 0; layer < n; layer++) {
        add_values(l, aux_of(layer), n, &s.aux);
        add_values(l, z_of(layer), n, &s.z);
        add_values(l, gate_of(layer), n, &s.gate);
    }
    return s;
}

/* Fraction of assignments dropped by the capacity limit. */
static double dropped_share(const mu_loss *l) {
    int64_t all = l->tokens * l->model->moe_cfg.top_k * l->model->n_moe, dropped = 0;
    for (int d = 0; d < l->stats->domains; d++) dropped += l->stats->dropped_of[d];
    return all ? (double)dropped / (double)all : 0.0;
}

mu_loss_values mu_loss_read(mu_loss *l, mu_mat grad_norm, bool stop) {
    mu_device *dev = mu_tape_device(l->tape);
    mu_mat norm = mu_routing_stats_values(l->stats);
    mu_loss_values v = { 0 };
    if (grad_norm.data) dev->k->add(dev, 1, norm, grad_norm, norm);
    mu_routing_stats_read(l->stats);
    if (l->quantiles) mu_quantiles_read(l->quantiles);
    memcpy(&v.grad_norm, l->stats->values, sizeof v.grad_norm);
    sums s = own_sums(l);
    s.stop = stop;
    mu_all_reduce(l->batch, MU_REDUCE_SUM, MU_DTYPE_I64, &s, SUM_WORDS);
    const mu_moe_config *moe = &l->model->moe_cfg;
    bool has_z = moe->score_func == MU_MOE_SCORE_SOFTMAX || moe->z_loss_coeff > 0;
    v.loss = mu_exact_value(&s.loss), v.ce = mu_exact_value(&s.ce), v.stop = s.stop > 0;
    v.aux = mu_exact_value(&s.aux), v.z = has_z ? mu_exact_value(&s.z) : NAN, v.dropped = dropped_share(l);
    v.gate = l->has_gate ? mu_exact_value(&s.gate) : NAN;
    return v;
}

void mu_loss_end(mu_loss *l, bool update_bias) {
    const mu_moe_config *moe = &l->model->moe_cfg;
    for (int layer = 0; layer < l->model->n_moe; layer++) {
        const int64_t *loads = l->stats->counts + layer * moe->num_experts;
        if (l->quantiles) mu_quantiles_update(l->quantiles, moe_of(l, layer), layer, loads);
        else if (update_bias && moe->balance & MU_BALANCE_BIAS) mu_balance_update_bias(moe_of(l, layer), loads, moe->bias_update_rate);
    }
    mu_routing_stats_end(l->stats);
}
