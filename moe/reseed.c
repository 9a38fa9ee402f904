/* reseed.c - which expert may be replaced, and which one it becomes half of. */
#include "moe/moe.h"

static bool carries(int64_t state) { return state == MU_EXPERT_CARRIER || state == MU_EXPERT_DORMANT; }

/* Nothing touches an expert that is protected or frozen. */
static bool is_kept(const mu_expert_health *h, const mu_protection *p, int64_t at) { return p->domain_of[at] >= 0 || h->frozen[at] == MU_FROZEN_NOW; }

int mu_reseed_find(const mu_expert_health *h, const mu_protection *p, int layer) {
    int64_t first = (int64_t)layer * h->experts;
    int longest = -1;
    for (int i = 0; i < h->experts; i++) {
        if (h->state[first + i] != MU_EXPERT_DEAD || is_kept(h, p, first + i)) continue;
        if (longest < 0 || h->since[first + i] < h->since[first + longest]) longest = i;
    }
    return longest;
}

int mu_reseed_donor(const mu_expert_health *h, const mu_protection *p, const int64_t *loads, int layer, int not_this) {
    int64_t first = (int64_t)layer * h->experts;
    int busiest = -1;
    for (int i = 0; i < h->experts; i++) {
        int64_t state = h->state[first + i];
        if (i == not_this || carries(state) || state == MU_EXPERT_OVERWRITTEN || is_kept(h, p, first + i)) continue;
        if (busiest < 0 || loads[first + i] > loads[first + busiest]) busiest = i;
    }
    return busiest;
}
