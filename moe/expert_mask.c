/* expert_mask.c - which experts a layer's tokens may, may not and must choose: by moe.force_domains and by the caller's
 * mask (mu_context). Each may have a row per sequence or token; together, forbidden wins over required over allowed. */
#include "moe/moe.h"

#include <string.h>

void mu_moe_domain_mask(const mu_moe_config *cfg, const mu_option_domains *domains, int32_t *mask_nE) {
    const mu_option_domain_ints *forced = &cfg->force_domains;
    int64_t E = cfg->num_experts;
    for (int64_t i = 0; i < domains->n * E; i++) mask_nE[i] = MU_ROUTE_ALLOWED;
    for (int d = 0; d < domains->n; d++)
        for (int i = 0; i < forced->n; i++) {
            int32_t *value = &mask_nE[d * E + forced->list[i].value];
            if (!strcmp(forced->list[i].domain, domains->list[d].domain)) *value = MU_ROUTE_REQUIRED;
            else if (*value != MU_ROUTE_REQUIRED) *value = MU_ROUTE_FORBIDDEN;
        }
}

static int32_t together(int32_t a, int32_t b) {
    if (a == MU_ROUTE_FORBIDDEN || b == MU_ROUTE_FORBIDDEN) return MU_ROUTE_FORBIDDEN;
    return a > b ? a : b;
}

/* Each row must leave at least K experts and require at most K. */
static void check_row(const mu_moe *m, const int32_t *row) {
    int64_t left = 0, required = 0;
    for (int64_t i = 0; i < m->E; i++) left += row[i] != MU_ROUTE_FORBIDDEN, required += row[i] == MU_ROUTE_REQUIRED;
    MU_CHECK(left >= m->K && required <= m->K, "layer %d: expert_mask allows %lld of %lld experts and requires %lld, but top_k is %lld",
             m->layer, (long long)left, (long long)m->E, (long long)required, (long long)m->K);
}

/* The row of the domain of a sequence. */
static const int32_t *domain_row(const mu_moe *m, const mu_context *cx, int64_t sequence) {
    int32_t d = cx->domains[sequence];
    MU_CHECK(d >= 0 && d < m->domains, "layer %d: domain %d of %d", m->layer, d, m->domains);
    return m->domain_mask + d * m->E;
}

mu_tensor *mu_moe_mask(const mu_moe *m, mu_tape *tp, const mu_context *cx) {
    const mu_expert_mask *given = &cx->expert_mask;
    bool by_domain = m->domain_mask && cx->domains && cx->n_sequences;
    if (!given->values && !by_domain) return NULL;
    int64_t E = m->E, n = given->values ? given->rows : 1, rows = by_domain && n < cx->n_sequences ? cx->n_sequences : n;
    MU_CHECK(n == 1 || n == cx->n_sequences || n == cx->n_sequences * cx->seq_len,
             "layer %d: a mask of %lld rows for %lld sequences of %lld tokens", m->layer, (long long)n, (long long)cx->n_sequences,
             (long long)cx->seq_len);
    int32_t *values = mu_tape_alloc(tp, (size_t)(rows * E) * sizeof *values);
    for (int64_t r = 0; r < rows; r++) {
        const int32_t *a = given->values ? given->values + m->first_load * n + r * n / rows * E : NULL;
        const int32_t *b = by_domain ? domain_row(m, cx, r * cx->n_sequences / rows) : NULL;
        for (int64_t i = 0; i < E; i++) values[r * E + i] = together(a ? a[i] : MU_ROUTE_ALLOWED, b ? b[i] : MU_ROUTE_ALLOWED);
        check_row(m, values + r * E);
    }
    mu_tensor *mask = mu_tensor_new(tp, MU_DTYPE_I32, 2, (int64_t[]){ rows, E });
    mu_tensor_write(mask, values);
    return mask;
}
