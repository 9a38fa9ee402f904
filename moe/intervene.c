/* intervene.c - which expert may be replaced, which one it becomes half of, and whose selection bias may be raised. */
#include "moe/moe.h"

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
        if (i == not_this || mu_expert_carries(state) || state == MU_EXPERT_OVERWRITTEN || is_kept(h, p, first + i)) continue;
        if (busiest < 0 || loads[first + i] > loads[first + busiest]) busiest = i;
    }
    return busiest;
}

int mu_boost_find(const mu_expert_health *h, const mu_protection *p, const int64_t *loads, int layer, int64_t step, int64_t interval) {
    int64_t first = (int64_t)layer * h->experts;
    int least = -1;
    for (int i = 0; i < h->experts; i++) {
        int64_t at = first + i;
        bool starves = h->state[at] == MU_EXPERT_STARVED && h->leaving[at] == 0 && step - h->since[at] < MU_BOOSTS * interval;
        if (!starves || is_kept(h, p, at)) continue;
        if (least < 0 || loads[at] < loads[first + least]) least = i;
    }
    return least;
}
