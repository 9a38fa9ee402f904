/* split.c - an expert divided in two: what a new expert is made of. */
#include "train/surgery.h"

#include <math.h>
#include <stdlib.h>

static const double APART = 0.1;        /* the rows of the router are moved apart by this share of their length */

bool mu_expert_carries(int64_t state) { return state == MU_EXPERT_CARRIER || state == MU_EXPERT_DORMANT; }

int mu_expert_donor(const mu_train_state *t, int moe, int not_this) {
    int E = (int)t->model->moe_cfg.num_experts, best = -1;
    const int64_t first = (int64_t)moe * E;
    for (int i = 0; i < E; i++) {
        if (i == not_this) continue;
        if (!t->stats) return i;
        const mu_expert_health *h = &t->stats->health;
        int64_t state = h->state[first + i];
        if (mu_expert_carries(state) || state == MU_EXPERT_OVERWRITTEN || h->frozen[first + i] == MU_FROZEN_NOW) continue;
        if (best < 0 || t->stats->window.total[first + i] > t->stats->window.total[first + best]) best = i;
    }
    return best;
}

void mu_expert_split_rows(mu_expert_unit *donor, mu_expert_unit *copy, const mu_expert_samples *seen, uint64_t seed) {
    double *axis = mu_principal_axis(seen->h, seen->n, donor->D, seed), length = 0;
    double *row = donor->values[MU_PART_ROUTER], *other = copy->values[MU_PART_ROUTER];
    for (int64_t i = 0; i < donor->D; i++) length += row[i] * row[i];
    for (int64_t i = 0; i < donor->D; i++) {
        double step = APART * sqrt(length) * axis[i];
        other[i] = row[i] + step, row[i] -= step;
    }
    free(axis);
}

void mu_expert_redraw(mu_expert_unit *u, uint64_t seed) {
    const int64_t n = u->F / 2;
    int64_t *order = mu_alloc((size_t)u->F, sizeof *order);
    double *drawn = mu_alloc((size_t)(n * u->D) + 1, sizeof *drawn);
    mu_rng rng = { .seed = seed, .purpose = MU_RNG_SURGERY, .layer = (uint32_t)u->layer, .sample = (uint32_t)u->expert };
    for (int64_t i = 0; i < u->F; i++) order[i] = i;
    for (int64_t i = 0; i < n; i++) {
        int64_t k = i + (int64_t)(mu_rng_uniform(&rng, (uint64_t)i) * (double)(u->F - i)), one = order[i];
        order[i] = order[k], order[k] = one;
    }
    for (int part = MU_PART_GATE; part < MU_PARTS; part++) {
        double sum = 0, squares = 0, count = (double)(n * u->D), *w = u->values[part];
#define AT(i, d) w[part == MU_PART_DOWN ? (d) * u->F + order[i] : order[i] * u->D + (d)]
        for (int64_t i = 0; i < n; i++)
            for (int64_t d = 0; d < u->D; d++) sum += AT(i, d), squares += AT(i, d) * AT(i, d);
        double mean = sum / count, deviation = sqrt(fmax(0, squares / count - mean * mean));
        rng.step = (uint32_t)part;
        mu_rng_normals(&rng, n * u->D, deviation, drawn);
        for (int64_t i = 0; i < n; i++)
            for (int64_t d = 0; d < u->D; d++) AT(i, d) = mean + drawn[i * u->D + d];
#undef AT
    }
    free(drawn);
    free(order);
}
