/* protection.c - which experts are protected, from their states and the options of the section protect. */
#include "moe/moe.h"

#include <stdlib.h>
#include <string.h>

MU_OPTION_DEFAULTS(mu_protect_config, "protect", MU_OPTIONS_PROTECT)

static bool is_auto(const char *name) { return !strcmp(name, "auto"); }

bool mu_protects_auto(const mu_protect_config *cfg) { return cfg->domains.n == 1 && is_auto(cfg->domains.list[0]); }

bool mu_protects_domain(const mu_protect_config *cfg, const char *domain) {
    bool listed = mu_protects_auto(cfg);
    for (int i = 0; i < cfg->domains.n; i++) listed |= !strcmp(cfg->domains.list[i], domain);
    return listed;
}

void mu_protect_config_check(const mu_protect_config *cfg, int64_t num_experts, mu_complaints *c) {
    if (!check_ranges(cfg, c)) return;
    for (int i = 0; i < cfg->domains.n && cfg->domains.n > 1; i++)
        if (is_auto(cfg->domains.list[i])) mu_complain(c, "protect", "domains", "protect.domains", "'auto' cannot be combined with others");
    for (int i = 0; i < cfg->carriers.n && num_experts; i++)
        if (cfg->carriers.list[i].value >= num_experts)
            mu_complain(c, "protect", "carriers", "protect.carriers moe.num_experts",
                        "domain '%s' has expert %lld, but moe.num_experts is %lld: experts are 0 to %lld", cfg->carriers.list[i].domain,
                        (long long)cfg->carriers.list[i].value, (long long)num_experts, (long long)num_experts - 1);
}

void mu_protection_init(mu_protection *p, int layers, int experts) {
    size_t n = (size_t)layers * (size_t)experts;
    *p = (mu_protection){ layers, experts, mu_alloc(n, sizeof *p->domain_of), mu_alloc(n, sizeof *p->exempt), 0 };
    for (size_t i = 0; i < n; i++) p->domain_of[i] = -1;
}

void mu_protection_free(mu_protection *p) {
    free(p->domain_of);
    free(p->exempt);
    *p = (mu_protection){ 0 };
}

bool mu_moe_exempts(const mu_moe *m, int64_t expert) { return m->protection && m->protection->exempt[m->first_load + expert]; }

int64_t mu_moe_balanced(const mu_moe *m) {
    int64_t n = 0;
    for (int64_t i = 0; i < m->E; i++) n += !mu_moe_exempts(m, i);
    return n;
}

/* The domain that the state says it carries; -1: none, or one that is not to be protected. */
static int32_t carried(const mu_protect_config *cfg, const mu_expert_health *h, const mu_option_domains *domains, int64_t i) {
    int64_t state = h->state[i], d = h->carried[i] - 1;
    bool carries = mu_expert_carries(state) || state == MU_EXPERT_OVERWRITTEN;
    return carries && d >= 0 && mu_protects_domain(cfg, domains->list[d].domain) ? (int32_t)d : -1;
}

int32_t mu_given_domain(const mu_protect_config *cfg, const mu_option_domains *domains, int64_t expert) {
    for (int i = 0; i < cfg->carriers.n; i++)
        for (int d = 0; d < domains->n && cfg->carriers.list[i].value == expert; d++)
            if (!strcmp(domains->list[d].domain, cfg->carriers.list[i].domain)) return d;
    return -1;
}

int mu_protection_update(mu_protection *p, const mu_protect_config *cfg, const mu_expert_health *h, const mu_option_domains *domains,
                         mu_protection_change *changes) {
    int n = 0;
    p->gate_coeff = cfg->gate_coeff;
    MU_CHECK(h->layers == p->layers && h->experts == p->experts, "protection of %d layers with %d experts each, states of %d with %d", p->layers,
             p->experts, h->layers, h->experts);
    for (int64_t i = 0; i < (int64_t)p->layers * p->experts; i++) {
        int32_t fixed = mu_given_domain(cfg, domains, i % p->experts), now = fixed >= 0 ? fixed : carried(cfg, h, domains, i), before = p->domain_of[i];
        p->domain_of[i] = now;
        p->exempt[i] = (cfg->exempt && now >= 0) || h->frozen[i] == MU_FROZEN_NOW;
        if (now == before) continue;
        if (changes) changes[n] = (mu_protection_change){ (int)(i / p->experts), (int)(i % p->experts), now >= 0 ? now : before, now >= 0 };
        n++;
    }
    return n;
}

static bool is_slow(const mu_protection *p, const mu_expert_health *h, int64_t at) { return p->domain_of[at] >= 0 && h->state[at] == MU_EXPERT_DORMANT; }

bool mu_protection_freezes(const mu_protection *p, const mu_expert_health *h, int64_t at, double factor) {
    return h->frozen[at] == MU_FROZEN_NOW || (factor == 0 && is_slow(p, h, at));
}

void mu_protection_slow(const mu_protection *p, const mu_expert_health *h, mu_params *ps, double factor) {
    for (mu_unit *u = mu_unit_next(ps, NULL); u && factor != 1; u = mu_unit_next(ps, u)) {
        if (u->load < 0) continue;
        bool frozen = mu_protection_freezes(p, h, u->load, factor);
        double by = factor > 0 && is_slow(p, h, u->load) ? factor : 1;
        if (u->frozen != frozen) mu_unit_freeze(u, frozen);
        if (u->lr_factor != by) mu_unit_set_lr_factor(u, by);
    }
}
