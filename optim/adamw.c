/* adamw.c - AdamW (Loshchilov & Hutter 2019), expert-lazy: an expert without tokens in the global batch is not updated.
 * Otherwise weight decay shrinks an idle expert by (1 - lr*wd)^n, its remaining momentum moves it along a stale batch, and
 * the first step after an idle period is too long: each of these destroys what the expert has learned. Its own step count
 * keeps the bias correction right when it gets tokens again. */
#include "optim/internal.h"

static void init(mu_device *dev, int slot, int64_t count, mu_mat values) {
    (void)slot;
    dev->k->fill(dev, count, 0.0, values);
}

static void step(const mu_optim_config *cfg, const mu_update *u) {
    const mu_adamw_spec spec = { u->lr, cfg->betas[0], cfg->betas[1], cfg->eps, cfg->weight_decay };
    u->dev->k->slab_adamw(u->dev, u->n_units, u->n_pieces, &spec, u->units, u->loads, u->scale, u->steps, u->values, u->grads,
                          u->slots[0], u->slots[1], u->compute);
}

const mu_rule mu_rule_adamw = { .name = "adamw", .n_slots = 2, .slots = { "m", "v" }, .init = init, .step = step, .not_negative = 1 << 1 };
