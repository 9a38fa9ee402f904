/* split.c - an expert divided in two, in a checkpoint (muster expert) or in a run (protect.reseed_dead). */
#include "train/surgery.h"

#include <math.h>
#include <stdlib.h>

static const double APART = 0.1;        /* the rows of the router are moved apart by this share of their length */

int mu_expert_donor(const mu_train_state *t, int moe, int not_this) {
    if (t->stats) return mu_reseed_donor(&t->stats->health, &t->model->protection, t->stats->window.total, moe, not_this);
    return not_this ? 0 : t->model->moe_cfg.num_experts > 1 ? 1 : -1;
}

/* Two rows of the router that divide the tokens of one: moved apart along the axis in which the inputs of these tokens differ most. */
static void split_rows(mu_expert_unit *donor, mu_expert_unit *copy, const mu_expert_samples *seen, uint64_t seed) {
    double *axis = mu_principal_axis(seen->h, seen->n, donor->D, seed), length = 0;
    double *row = donor->values[MU_PART_ROUTER], *other = copy->values[MU_PART_ROUTER];
    for (int64_t i = 0; i < donor->D; i++) length += row[i] * row[i];
    for (int64_t i = 0; i < donor->D; i++) {
        double step = APART * sqrt(length) * axis[i];
        other[i] = row[i] + step, row[i] -= step;
    }
    free(axis);
}

/* Draws a share of the hidden units anew, rows of gate and up and columns of down alike, with mean and deviation of what they replace. */
static void redraw(mu_expert_unit *u, uint64_t seed, int64_t step) {
    const int64_t n = u->F / 2;
    int64_t *order = mu_alloc((size_t)u->F, sizeof *order);
    double *drawn = mu_alloc((size_t)(n * u->D) + 1, sizeof *drawn);
    uint32_t stream = (uint32_t)(step * MU_PARTS);
    mu_rng rng = { .seed = seed, .purpose = MU_RNG_SURGERY, .layer = (uint32_t)u->layer, .sample = (uint32_t)u->expert, .step = stream };
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
        rng.step = stream + (uint32_t)part;
        mu_rng_normals(&rng, n * u->D, deviation, drawn);
        for (int64_t i = 0; i < n; i++)
            for (int64_t d = 0; d < u->D; d++) AT(i, d) = mean + drawn[i * u->D + d];
#undef AT
    }
    free(drawn);
    free(order);
}

mu_expert_unit mu_expert_split(mu_expert_unit *donor, int expert, const mu_expert_samples *seen, bool fresh, const mu_train_state *t, uint64_t seed) {
    mu_expert_unit copy = mu_expert_unit_copy(donor);
    copy.expert = expert;
    split_rows(donor, &copy, seen, seed);
    mu_expert_unit_restart(&copy);
    if (fresh) redraw(&copy, seed, t->step);
    return copy;
}

void mu_expert_forget(const mu_train_state *t, int moe, int expert) {
    mu_expert_health *h = &t->stats->health;
    mu_knowledge *k = t->knowledge;
    int64_t at = (int64_t)moe * h->experts + expert;
    h->state[at] = MU_EXPERT_HEALTHY, h->since[at] = h->reseeded[at] = t->step;
    h->below_dead[at] = h->below_starved[at] = h->leaving[at] = h->carried[at] = h->top[at] = 0, h->top_criticality[at] = 0;
    if (h->frozen[at] == MU_FROZEN_NOW) h->frozen[at] = MU_FROZEN_PAST;
    for (int64_t d = 0; d < k->domains; d++) k->K[at * k->domains + d] = k->peak[at * k->domains + d] = 0, k->at[at * k->domains + d] = 0;
}
