/* optimizer.c - the optimizer: an update rule's state, its step on each group's shard, and its checkpoint state. */
#include "optim/internal.h"

#include <math.h>
#include <stdlib.h>

static int my_rank(const mu_group *g) { return g->reduce ? comm_of(g)->rank : 0; }

static int64_t my_count(const mu_optimizer *o, int group) {
    return mu_shards_count(&o->shards, group, my_rank(o->params->groups[group]));
}

static mu_mat slot_of(const mu_optimizer *o, int group, int slot) {
    return (mu_mat){ o->slots[group][slot]->region.base, o->params->dev->master, 1 };
}

/* init writes every page, even with zeros. If a page were read first, the kernel would map its shared zero page, and
 * the first write would then interrupt all cores (TLB shootdown). */
static void new_slots(mu_optimizer *o, int group) {
    mu_device *dev = o->params->dev;
    size_t bytes = (size_t)my_count(o, group) * mu_dtype_size(dev->master);
    for (int slot = 0; slot < o->rule->n_slots; slot++) {
        o->slots[group][slot] = mu_memory_new(dev, bytes);
        mu_memory_commit(o->slots[group][slot], bytes);
        o->rule->init(dev, slot, my_count(o, group), slot_of(o, group, slot));
    }
}

#define RULE_ADDRESS(name) &mu_rule_##name,
static const mu_rule *const rules[] = { MU_RULES(RULE_ADDRESS) };
enum { N_RULES = sizeof rules / sizeof *rules };

const mu_rule *mu_rule_of(const mu_optim_config *cfg) {
    MU_CHECK(cfg->kind >= 0 && cfg->kind < N_RULES, "optim.kind %d of %d update rules", cfg->kind, N_RULES);
    return rules[cfg->kind];
}

mu_optimizer *mu_optimizer_new(const mu_rule *rule, const mu_optim_config *cfg, mu_params *ps) {
    mu_error e = { 0 };
    mu_complaints found = { .e = &e };
    MU_CHECK(rule && cfg && ps, "rule, configuration or parameters are NULL");
    MU_CHECK(rule->n_slots >= 0 && rule->n_slots <= MU_RULE_SLOTS, "update rule %s has %d slots, more than %d",
             rule->name, rule->n_slots, MU_RULE_SLOTS);
    mu_optim_config_check(cfg, 0, &found);
    MU_CHECK(found.status == MU_STATUS_OK, "%-s", e.text);
    mu_optimizer *o = mu_alloc(1, sizeof *o);
    *o = (mu_optimizer){ .rule = rule, .cfg = *cfg, .params = ps };
    mu_shards_init(&o->shards, ps);
    mu_norm_init(&o->norm, ps);
    for (int i = 0; i < ps->n_groups; i++) new_slots(o, i);
    size_t bytes = (size_t)ps->n_global_units * sizeof(int64_t);
    o->steps = mu_memory_new(ps->dev, bytes);
    mu_memory_commit(o->steps, bytes);
    return o;
}

void mu_optimizer_free(mu_optimizer *o) {
    if (!o) return;
    for (int i = 0; i < o->params->n_groups; i++)
        for (int slot = 0; slot < o->rule->n_slots; slot++) mu_memory_free(o->slots[i][slot]);
    mu_memory_free(o->steps);
    mu_norm_free(&o->norm);
    mu_shards_free(&o->shards);
    free(o);
}

static mu_mat steps_of(const mu_optimizer *o) { return (mu_mat){ o->steps->region.base, MU_DTYPE_I64, 1 }; }

static void update(mu_optimizer *o, int group, const mu_unit_set *set, double lr, mu_mat loads) {
    mu_params *ps = o->params;
    const mu_group *g = ps->groups[group];
    const mu_shards *s = &o->shards;
    mu_update u = { .dev = ps->dev,
                    .lr = lr * set->lr_factor,
                    .n_units = set->n_units,
                    .n_pieces = set->n_pieces,
                    .units = mu_shards_units(s, group, set),
                    .loads = loads,
                    .scale = mu_norm_scale(&o->norm, ps),
                    .steps = steps_of(o),
                    .values = mu_shards_mine(s, group, g->values, ps->dev->master),
                    .grads = mu_shards_mine(s, group, g->grads, ps->dev->master),
                    .compute = mu_shards_mine(s, group, g->compute, ps->dev->compute) };
    for (int slot = 0; slot < o->rule->n_slots; slot++) u.slots[slot] = slot_of(o, group, slot);
    o->rule->step(&o->cfg, &u);
}

void mu_optimizer_step(mu_optimizer *o, double lr, mu_mat loads) {
    MU_CHECK(lr >= 0 && isfinite(lr), "learning rate %g must be finite and at least 0", lr);
    if (o->norm.stopped) return;
    mu_params_finish_grads(o->params);
    mu_shards_refresh(&o->shards);
    for (int i = 0; i < o->params->n_groups; i++)
        for (int n = 0; n < o->shards.n_sets[i]; n++) update(o, i, &o->shards.sets[i][n], lr, loads);
    mu_values_gather(&o->shards);
}

/* ------------------------------------------------------------------ state of a unit */

void *mu_optimizer_slot(const mu_optimizer *o, const mu_unit *u, int slot) {
    MU_CHECK(slot >= 0 && slot < o->rule->n_slots,
             "slot %d out of range for update rule %s with %d slots", slot, o->rule->name,
             o->rule->n_slots);
    return mu_shards_unit(&o->shards, u, o->slots[mu_shards_group(&o->shards, u)][slot]);
}

void mu_optimizer_slot_read(const mu_optimizer *o, const mu_unit *u, int slot, void *host) {
    mu_shards_unit_read(&o->shards, u, o->slots[mu_shards_group(&o->shards, u)][slot], host);
}

int64_t mu_optimizer_steps(const mu_optimizer *o, const mu_unit *u) {
    int64_t steps;
    mu_device_read(o->params->dev, &steps, mu_mat_values(steps_of(o), u->global_index).data, sizeof steps);
    return steps;
}

void mu_optimizer_steps_set(mu_optimizer *o, const mu_unit *u, int64_t steps) {
    mu_device_write(o->params->dev, mu_mat_values(steps_of(o), u->global_index).data, &steps, sizeof steps);
}

/* ------------------------------------------------------------------ state of a checkpoint */

static void slot_get(const mu_state *s, void *host) { mu_optimizer_slot_read(s->module, s->item, s->index, host); }

static mu_status slot_set(const mu_state *s, const void *host, mu_error *e) {
    const mu_optimizer *o = s->module;
    const mu_unit *u = s->item;
    (void)e;
    mu_device_write(o->params->dev, mu_optimizer_slot(o, u, s->index), host, (size_t)u->count * mu_dtype_size(o->params->dev->master));
    return MU_STATUS_OK;
}

static void steps_get(const mu_state *s, void *host) { *(int64_t *)host = mu_optimizer_steps(s->module, s->item); }

static mu_status steps_set(const mu_state *s, const void *host, mu_error *e) {
    (void)e;
    mu_optimizer_steps_set(s->module, s->item, *(const int64_t *)host);
    return MU_STATUS_OK;
}

static mu_state slot_state(mu_optimizer *o, const mu_unit *u, int slot) {
    char prefix[64];
    snprintf(prefix, sizeof prefix, "/optim/%s", o->rule->slots[slot]);
    mu_state s = mu_unit_state(u, prefix);
    if (o->rule->not_negative & 1u << slot) s.low = 0;
    s.collective = s.for_training = true, s.elsewhere = !mu_shards_owns(&o->shards, u);
    s.module = o, s.index = slot, s.get = slot_get, s.set = slot_set;
    return s;
}

/* Every step updates every unit except experts without tokens and frozen units. */
static mu_state steps_state(mu_optimizer *o, const mu_unit *u, const mu_step_bounds *b) {
    mu_state s = mu_unit_state(u, "/optim/steps");
    s.type = MU_STORE_I64, s.n_dims = 1, s.shape[0] = 1;
    s.min = s.max = b->step;
    if (u->load >= 0) {
        s.min = b->active ? b->active[u->load] : 0;
        s.max -= b->idle ? b->idle[u->load] : 0;
    }
    if (u->frozen) s.min = 0;
    s.for_training = true, s.module = o, s.get = steps_get, s.set = steps_set;
    return s;
}

void mu_optimizer_state(mu_optimizer *o, const mu_step_bounds *bounds, mu_state_visitor *v) {
    MU_CHECK(o && bounds && v, "optimizer, bounds or visitor is NULL");
    for (mu_unit *u = mu_unit_next(o->params, NULL); u; u = mu_unit_next(o->params, u)) {
        for (int slot = 0; slot < o->rule->n_slots; slot++) {
            mu_state s = slot_state(o, u, slot);
            v->visit(v, &s);
        }
        mu_state s = steps_state(o, u, bounds);
        v->visit(v, &s);
    }
}
