/* config.c - derived values and checks of the configuration section moe. */
#include "moe/moe.h"

MU_OPTION_DEFAULTS(mu_moe_config, "moe", MU_OPTIONS_MOE)

void mu_moe_config_resolve(mu_moe_config *cfg) {
    if (cfg->score_func == MU_MOE_SCORE_SIGMOID && cfg->z_loss_coeff == mu_moe_config_default().z_loss_coeff)
        cfg->z_loss_coeff = 0;
}

static void check_top_k(const mu_moe_config *m, mu_complaints *c) {
    if (m->top_k > m->num_experts)
        mu_complain(c, "moe", "top_k", "moe.top_k moe.num_experts", "%lld is more than num_experts %lld",
                    (long long)m->top_k, (long long)m->num_experts);
    /* A single score, normalised, is 1 for any output of the router. */
    if (m->top_k == 1 && m->norm_topk_prob)
        mu_complain(c, "moe", "top_k", "moe.top_k moe.num_experts moe.norm_topk_prob",
                    "1 with norm_topk_prob true: the gate would always be 1, so the router would get no"
                    " gradient from the language model's loss; use `norm_topk_prob: false`");
}

static void check_quantile(const mu_moe_config *m, mu_complaints *c) {
    if (!(m->balance & MU_BALANCE_QUANTILE)) return;
    if (m->balance & MU_BALANCE_BIAS)
        mu_complain(c, "moe", "balance", "moe.balance moe.num_experts", "expert_bias and quantile_balancing both set the selection bias: use only one");
    if (m->force_domains.n || m->force_balanced || m->force_skew)
        mu_complain(c, "moe", "balance", "moe.balance moe.force_domains moe.force_balanced moe.force_skew moe.num_experts",
                    "quantile_balancing needs experts chosen by their scores; it cannot be combined with %s",
                    m->force_domains.n ? "force_domains" : m->force_balanced ? "force_balanced" : "force_skew");
}

static void check_shared_expert_gate(const mu_moe_config *m, mu_complaints *c) {
    if (m->shared_expert_gate && m->num_shared_experts == 0)
        mu_complain(c, "moe", "shared_expert_gate", "moe.shared_expert_gate moe.num_shared_experts moe.num_experts",
                    "needs shared experts, but num_shared_experts is 0");
}

static void check_force_domains(const mu_moe_config *m, mu_complaints *c) {
    static const char compared[] = "moe.force_domains moe.num_experts";
    const mu_option_domain_ints *forced = &m->force_domains;
    for (int i = 0; i < forced->n; i++)
        if (forced->list[i].value >= m->num_experts)
            mu_complain(c, "moe", "force_domains", compared, "domain '%s' has expert %lld, but num_experts is %lld: experts are 0 to %lld",
                        forced->list[i].domain, (long long)forced->list[i].value, (long long)m->num_experts, (long long)m->num_experts - 1);
    if (forced->n && (m->force_balanced || m->force_skew))
        mu_complain(c, "moe", "force_domains", "moe.force_domains moe.force_balanced moe.force_skew moe.num_experts",
                    "cannot be combined with %s", m->force_balanced ? "force_balanced" : "force_skew");
}

bool mu_moe_config_check(const mu_moe_config *m, mu_complaints *c) {
    if (m->num_experts == 0) return true;
    if (!check_ranges(m, c)) return false;
    check_top_k(m, c);
    check_quantile(m, c);
    check_shared_expert_gate(m, c);
    check_force_domains(m, c);
    if (m->force_balanced && m->force_skew)
        mu_complain(c, "moe", "force_skew", "moe.force_balanced moe.force_skew moe.num_experts",
                    "cannot be combined with force_balanced: set only one of them");
    return true;
}
