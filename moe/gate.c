/* gate.c - the domain gate: the coefficients of mu_gate_term from the labels of the sequences. */
#include "moe/moe.h"

bool mu_moe_has_gate(const mu_moe *m, const mu_context *cx) {
    const mu_protection *p = m->protection;
    bool labelled = cx->mode == MU_MODE_TRAIN && cx->domains && cx->domain_sequences, any = false;
    for (int64_t i = 0; i < m->E && labelled && p && p->gate_coeff > 0; i++) any |= p->domain_of[m->first_load + i] >= 0;
    return any;
}

/* Of a token of a sequence of domain `its`, for an expert of domain d: 1 / (2 * tokens of its class), negative for others. */
static double weight_of(const mu_context *cx, int32_t d, int32_t its, int64_t sequences) {
    int64_t inside = cx->domain_sequences[d], outside = sequences - inside;
    if (!inside || !outside) return 0;
    return d == its ? 0.5 / (double)(inside * cx->seq_len) : -0.5 / (double)(outside * cx->seq_len);
}

mu_tensor *mu_gate_loss(const mu_moe *m, mu_tape *tp, const mu_context *cx, const mu_routing *r, int64_t global_tokens, mu_tensor **value) {
    const mu_protection *p = m->protection;
    double *c = mu_tape_alloc(tp, (size_t)(cx->n_sequences * m->E) * sizeof *c);
    for (int64_t s = 0; s < cx->n_sequences; s++)
        for (int64_t i = 0; i < m->E; i++) {
            int32_t d = p->domain_of[m->first_load + i];
            c[s * m->E + i] = d < 0 ? 0 : weight_of(cx, d, cx->domains[s], global_tokens / cx->seq_len);
        }
    mu_tensor *coef = mu_tensor_2d_master(tp, cx->n_sequences, m->E);
    mu_tensor_set(coef, c);
    return mu_gate_term(tp, r->logits_TE, coef, cx->seq_len, p->gate_coeff, r->grads, value);
}
