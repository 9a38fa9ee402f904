/* balance.c - the terms that keep the load even, and the selection bias.
 *
 * The auxiliary loss (Switch, Fedus et al. 2021; GShard) is  L = alpha sum_i f_i P_i  with
 *     f_i = c_i E / (K T)           how often expert i was chosen; 1 when balanced; has no gradient
 *     P_i = (1/T) sum_t p_ti        the mean probability it was given; carries the gradient
 * so L = alpha for a uniform router, and dL/dp_ti = alpha f_i / T moves probability away from overloaded experts.
 * The three terms differ in what c_i counts: this micro-batch over all ranks (aux_loss), each
 * sequence (seq_aux_loss), or the whole global batch (global_aux_loss). Each term is a mean over the tokens
 * of the global batch, so a token's coefficient is f_i / T_global in all of them: aux_loss averages
 * over micro-batches, seq_aux_loss over sequences.
 *
 * Exempt experts (mu_protection) are left out of all of it, as if the layer consisted of the other E' experts: f_i and p_ti are
 * divided by the sums over these, so f_i is 1 when they share their assignments evenly, and no gradient reaches the exempt ones' scores.
 * (Without dividing p, pushing probability to exempt experts would lower the loss.) The selection bias moves for the others alone, by
 * their mean, and theirs are centred. */
#include "moe/moe.h"

#include <math.h>

/* I32 [E] on the device: 1 for exempt experts; NULL: there are none. */
static mu_tensor *exempt_of(const mu_moe *m, mu_tape *tp) {
    if (mu_moe_balanced(m) == m->E) return NULL;
    int32_t *exempt = mu_tape_alloc(tp, (size_t)m->E * sizeof *exempt);
    for (int64_t i = 0; i < m->E; i++) exempt[i] = mu_moe_exempts(m, i);
    return mu_tensor_ints(tp, MU_DTYPE_I32, m->E, exempt);
}

/* coef[row, i] = f_i / T_global from counts of `tokens` tokens, -1 for exempt experts; no counts: f_i = 1. The counts stay on the device,
 * so the host does not wait for them. */
static mu_tensor *coef_of(const mu_moe *m, mu_tape *tp, mu_mat counts, int64_t rows, int64_t tokens,
                          int64_t global_tokens) {
    mu_device *dev = mu_tape_device(tp);
    mu_tensor *coef = mu_tensor_2d_master(tp, rows, m->E), *exempt = exempt_of(m, tp);
    double even = 1 / (double)global_tokens;
    MU_CHECK(counts.data || !exempt, "layer %d: balancing without some experts needs counts", m->layer);
    if (counts.data)
        dev->k->balance_coef(dev, rows, m->E, even * (double)m->E / (double)(m->K * tokens), counts, mu_data(exempt), mu_data(coef));
    else dev->k->fill(dev, rows * m->E, even, mu_data(coef));
    mu_release(tp, exempt);
    return coef;
}

static void add_term(mu_tape *tp, mu_balance *b, mu_tensor *term) {
    b->loss = b->loss ? mu_add(tp, b->loss, term) : term;
}

/* A term with one set of counts for every `segment` tokens. */
static mu_tensor *term_of(const mu_moe *m, mu_tape *tp, const mu_routing *r, mu_mat counts, int64_t rows,
                          int64_t segment, int64_t tokens, int64_t global_tokens, double weight,
                          mu_router_grad term, mu_tensor **value) {
    counts.ld = m->E;
    mu_tensor *coef = coef_of(m, tp, counts, rows, tokens, global_tokens);
    bool normalise = m->cfg->score_func == MU_MOE_SCORE_SIGMOID || mu_moe_balanced(m) < m->E;
    return mu_balance_term(tp, r->scores_TE, coef, segment, normalise, weight, r->grads, term, value);
}

mu_balance mu_balance_loss(const mu_moe *m, mu_tape *tp, const mu_context *cx, const mu_routing *r,
                           const mu_balance_counts *c) {
    MU_CHECK(c->global_tokens >= 1 && c->micro_tokens >= 0 && cx->seq_len >= 1, "balancing loss: micro_tokens %lld,"
             " global_tokens %lld, seq_len %lld; must be at least 0, 1 and 1", (long long)c->micro_tokens,
             (long long)c->global_tokens, (long long)cx->seq_len);
    mu_balance b = { 0 };
    uint32_t on = m->cfg->balance;
    int64_t T = r->scores_TE->shape[0], S = cx->seq_len, all = c->global_tokens;
    if (on & MU_BALANCE_SEQ_AUX)
        add_term(tp, &b,
                 term_of(m, tp, r, mu_data(r->counts_SE), r->counts_SE->shape[0], S, S, all,
                         m->cfg->seq_aux_loss_coeff, MU_ROUTER_GRAD_SEQ_AUX, &b.aux));
    if (on & MU_BALANCE_AUX)
        add_term(tp, &b,
                 term_of(m, tp, r, c->micro, 1, T, c->micro_tokens, all, m->cfg->aux_loss_coeff, MU_ROUTER_GRAD_AUX, &b.aux));
    if (on & MU_BALANCE_GLOBAL_AUX)
        add_term(tp, &b, term_of(m, tp, r, c->global, 1, T, all, all, m->cfg->aux_loss_coeff, MU_ROUTER_GRAD_AUX, &b.aux));
    if (m->cfg->z_loss_coeff > 0)
        add_term(tp, &b, mu_z_term(tp, r->lse_T, 1.0 / (double)all, m->cfg->z_loss_coeff, &b.z));
    if (r->logits_TE) {
        add_term(tp, &b, mu_gate_loss(m, tp, cx, r, all, &b.gate));
        mu_release(tp, r->logits_TE);
    }
    bool recording = mu_tape_recording(tp);
    mu_tape_record(tp, false); /* the terms below are only logged */
    if (!b.aux) term_of(m, tp, r, c->global, 1, T, all, all, 0.0, MU_ROUTER_GRAD_AUX, &b.aux);
    if (!b.z && m->cfg->score_func == MU_MOE_SCORE_SOFTMAX) mu_z_term(tp, r->lse_T, 1.0 / (double)all, 0.0, &b.z);
    mu_tape_record(tp, recording);
    return b;
}

void mu_balance_centre_bias(mu_moe *m) {
    double mean = 0, n = (double)mu_moe_balanced(m);
    for (int64_t i = 0; i < m->E; i++)
        if (!mu_moe_exempts(m, i)) mean += m->bias[i] / n;
    for (int64_t i = 0; i < m->E; i++)
        if (!mu_moe_exempts(m, i)) m->bias[i] -= mean;
}

void mu_balance_raise_bias(mu_moe *m, int64_t expert, double by) {
    MU_CHECK(!mu_moe_exempts(m, expert), "layer %d: the bias of expert %lld, which is exempt, must stay", m->layer, (long long)expert);
    m->bias[expert] += by;
    mu_balance_centre_bias(m);
}

int64_t mu_balance_assignments(const mu_moe *m, const int64_t *counts) {
    int64_t total = 0;
    for (int64_t i = 0; i < m->E; i++)
        if (!mu_moe_exempts(m, i)) total += counts[i];
    return total;
}

void mu_balance_update_bias(mu_moe *m, const int64_t *counts, double rate) {
    int64_t total = mu_balance_assignments(m, counts), n = mu_moe_balanced(m);
    for (int64_t i = 0; i < m->E; i++) {
        int64_t gap = total - counts[i] * n; /* sign of mean - c_i, in integers */
        if (!mu_moe_exempts(m, i)) m->bias[i] += rate * (double)((gap > 0) - (gap < 0));
    }
    mu_balance_centre_bias(m);
}
