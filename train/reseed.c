/* reseed.c - a dead expert of a run becomes half of a busy one (protect.reseed_dead). */
#include "train/surgery.h"

/* The anchor no longer holds what is not there any more. */
static void release(mu_anchor *a, const mu_moe *m, const mu_expert_unit *unit) {
    for (int part = 0; part < MU_PARTS && a; part++) {
        const mu_unit *u = mu_expert_unit_find(m, part, unit->expert);
        if (u) mu_anchor_release(a, u, part == MU_PART_ROUTER ? unit->expert * m->D : 0, mu_expert_unit_count(unit, part));
    }
}

void mu_reseed(const mu_train_state *t, const mu_evaluation *ev, int moe, int expert, int donor, uint64_t seed) {
    int layer = t->model->moe_layers[moe];
    mu_moe *m = &t->model->blocks[layer].moe;
    mu_expert_unit from;
    mu_activity_set("re-seeding an expert", layer, NULL);
    mu_expert_unit_take(&from, t, layer, donor);
    mu_expert_samples seen = mu_expert_samples_collect(ev, -1, &from);
    mu_expert_unit copy = mu_expert_split(&from, expert, &seen, true, t, seed);
    mu_expert_unit_give(&from, t);
    mu_expert_unit_give(&copy, t);
    mu_params_refresh(t->model->params);
    mu_balance_centre_bias(m);
    release(t->anchor, m, &copy);
    mu_expert_forget(t, moe, expert);
    mu_expert_samples_free(&seen);
    mu_expert_unit_free(&copy);
    mu_expert_unit_free(&from);
}
