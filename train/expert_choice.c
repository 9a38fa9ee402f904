/* expert_choice.c - the options --mask and --force: experts that no token may have, or every token must have, as LAYER:EXPERT,...
 * with the model's layer numbers. */
#include "train/train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool read_number(const char **text, char end, long *value) {
    char *rest;
    errno = 0;
    *value = strtol(*text, &rest, 10);
    if (rest == *text || errno || !strchr("0123456789", **text) || (*rest != end && (*rest || end == ':'))) return false;
    *text = *rest ? rest + 1 : rest;
    return true;
}

/* The MoE layers as text, "0, 1, 3"; heap. */
static char *layers_text(const mu_model *m) {
    char *text = mu_strdup("");
    for (int i = 0; i < m->n_moe; i++) {
        char *longer = mu_format("%s%s%d", text, i ? ", " : "", m->moe_layers[i]);
        free(text);
        text = longer;
    }
    return text;
}

/* Index of a layer among the MoE layers, or -1 with an error. */
static int moe_layer(const mu_model *m, const char *option, long layer, mu_error *e) {
    for (int i = 0; i < m->n_moe; i++)
        if (m->moe_layers[i] == layer) return i;
    char *layers = layers_text(m);
    if (layer >= m->cfg.num_layers)
        mu_error_set(e, MU_STATUS_USAGE, "%s: layer %ld: the model has layers 0 to %lld", option, layer, (long long)m->cfg.num_layers - 1);
    else mu_error_set(e, MU_STATUS_USAGE, "%s: layer %ld is dense; layers with experts: %s", option, layer, layers);
    free(layers);
    return -1;
}

/* Sets the experts of one option in values [MoE layers, E]. */
static mu_status read_list(const mu_model *m, const char *option, const char *text, int32_t value, int32_t *values, mu_error *e) {
    int64_t E = m->moe_cfg.num_experts;
    const char *at = text;
    do {
        long layer, expert;
        if (!read_number(&at, ':', &layer) || !read_number(&at, ',', &expert) || (!*at && at[-1] == ','))
            return mu_error_set(e, MU_STATUS_USAGE, "%s %s: expected LAYER:EXPERT,..., as in 0:3,1:7", option, text);
        int i = moe_layer(m, option, layer, e);
        if (i < 0) return MU_STATUS_USAGE;
        if (expert >= E)
            return mu_error_set(e, MU_STATUS_USAGE, "%s: expert %ld of layer %ld: experts are 0 to %lld", option, expert, layer,
                                (long long)E - 1);
        int32_t before = values[i * E + expert];
        if (before != MU_ROUTE_ALLOWED && before != value)
            return mu_error_set(e, MU_STATUS_USAGE, "expert %ld of layer %ld is in both --mask and --force", expert, layer);
        if (before != MU_ROUTE_ALLOWED)
            return mu_error_set(e, MU_STATUS_USAGE, "%s: expert %ld of layer %ld appears twice", option, expert, layer);
        values[i * E + expert] = value;
    } while (*at);
    return MU_STATUS_OK;
}

/* Checks the row of one layer, together with the row of a domain (NULL: none), named `domain`. */
static mu_status check_row(const mu_model *m, int layer, const int32_t *row, const int32_t *of_domain, const char *domain, mu_error *e) {
    int64_t E = m->moe_cfg.num_experts, K = m->moe_cfg.top_k, left = 0, required = 0;
    const char *where = of_domain ? ", with moe.force_domains for domain " : "";
    for (int64_t i = 0; i < E; i++) {
        bool forbidden = row[i] == MU_ROUTE_FORBIDDEN || (of_domain && of_domain[i] == MU_ROUTE_FORBIDDEN);
        bool must = row[i] == MU_ROUTE_REQUIRED || (of_domain && of_domain[i] == MU_ROUTE_REQUIRED);
        if (forbidden && row[i] == MU_ROUTE_REQUIRED)
            return mu_error_set(e, MU_STATUS_USAGE, "--force: expert %lld of layer %d is kept from domain %s by moe.force_domains",
                                (long long)i, layer, domain);
        left += !forbidden, required += must && !forbidden;
    }
    if (left < K)
        return mu_error_set(e, MU_STATUS_USAGE, "--mask: layer %d has %lld of %lld experts left%s%s, fewer than top_k %lld", layer,
                            (long long)left, (long long)E, where, domain, (long long)K);
    if (required > K)
        return mu_error_set(e, MU_STATUS_USAGE, "--force: layer %d has %lld required experts%s%s, more than top_k %lld", layer,
                            (long long)required, where, domain, (long long)K);
    return MU_STATUS_OK;
}

static mu_status check_rows(const mu_model *m, const int32_t *values, const mu_option_domains *domains, mu_error *e) {
    int64_t E = m->moe_cfg.num_experts;
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < m->n_moe && status == MU_STATUS_OK; i++) {
        const int32_t *row = values + i * E;
        if (!m->domain_mask || !domains) status = check_row(m, m->moe_layers[i], row, NULL, "", e);
        for (int d = 0; m->domain_mask && domains && d < domains->n && status == MU_STATUS_OK; d++)
            status = check_row(m, m->moe_layers[i], row, m->domain_mask + d * E, domains->list[d].domain, e);
    }
    return status;
}

mu_status mu_expert_choice_read(const mu_expert_choice *c, const mu_model *m, const mu_option_domains *domains, mu_expert_mask *mask,
                                mu_error *e) {
    *mask = (mu_expert_mask){ NULL, 1 };
    if (!c->mask && !c->force) return MU_STATUS_OK;
    if (!m->n_moe) return mu_error_set(e, MU_STATUS_USAGE, "%s: a dense model has no experts", c->mask ? "--mask" : "--force");
    int64_t n = m->n_moe * m->moe_cfg.num_experts;
    int32_t *values = mu_alloc((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++) values[i] = MU_ROUTE_ALLOWED;
    mu_status status = c->mask ? read_list(m, "--mask", c->mask, MU_ROUTE_FORBIDDEN, values, e) : MU_STATUS_OK;
    if (status == MU_STATUS_OK && c->force) status = read_list(m, "--force", c->force, MU_ROUTE_REQUIRED, values, e);
    if (status == MU_STATUS_OK) status = check_rows(m, values, domains, e);
    if (status == MU_STATUS_OK) mask->values = values;
    else free(values);
    return status;
}
