/* params.c - parameters: declared first, then laid out in one slab of values and one of gradients per group; their
 * initial values, compute copies, exact sums and checkpoint state. */
#include "autograd/autograd.h"

#include <math.h>
#include <float.h>
#include <stdlib.h>
#include <string.h>

enum { SLAB_ALIGNMENT = 16 }; /* elements: every parameter starts on a cache line */

mu_params *mu_params_new(mu_device *dev) {
    MU_CHECK(dev, "parameters need a device");
    mu_params *ps = mu_alloc(1, sizeof *ps);
    ps->dev = dev;
    return ps;
}

void mu_params_free(mu_params *ps) {
    if (!ps) return;
    for (int i = 0; i < ps->n_params; i++) {
        free(ps->params[i]->units);
        free(ps->params[i]);
    }
    for (int i = 0; i < ps->n_groups; i++) {
        if (ps->groups[i]->values) mu_memory_free(ps->groups[i]->values);
        if (ps->groups[i]->grads) mu_memory_free(ps->groups[i]->grads);
        mu_memory_free(ps->groups[i]->compute);
        mu_memory_free(ps->groups[i]->sums);
        free(ps->groups[i]);
    }
    free(ps->params);
    free(ps);
}

mu_group *mu_params_group(mu_params *ps, const char *name, const struct mu_comm *reduce) {
    MU_CHECK(ps->n_groups < (int)(sizeof ps->groups / sizeof *ps->groups), "too many parameter groups");
    mu_group *g = mu_alloc(1, sizeof *g);
    *g = (mu_group){ .name = name, .reduce = reduce };
    return ps->groups[ps->n_groups++] = g;
}

static int64_t unit_count(const mu_param_desc *d) {
    int64_t n = 1;
    for (int i = 0; i < d->n_dims; i++) n *= d->shape[i];
    return n;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
static void name_unit(mu_unit *u, const mu_param_desc *d) {
    int n = d->n_experts ? snprintf(u->name, sizeof u->name, d->name, u->expert)
                         : snprintf(u->name, sizeof u->name, "%s", d->name);
    MU_CHECK(n > 0 && n < (int)sizeof u->name, "parameter name too long: %s", d->name);
}
#pragma GCC diagnostic pop

static void make_units(mu_params *ps, mu_param *p) {
    const mu_param_desc *d = &p->desc;
    p->n_units = d->n_experts ? d->n_local : 1;
    p->units = mu_alloc((size_t)p->n_units, sizeof(mu_unit));
    for (int i = 0; i < p->n_units; i++) {
        int expert = d->n_experts ? d->local[i] : -1;
        p->units[i] = (mu_unit){ .param = p,
                                 .offset = i * unit_count(d),
                                 .count = unit_count(d),
                                 .expert = expert,
                                 .lr_factor = 1.0,
                                 .load = expert < 0 ? -1 : d->first_load + expert,
                                 .global_index = ps->n_global_units + (expert < 0 ? 0 : expert) };
        name_unit(&p->units[i], d);
    }
    ps->n_global_units += d->n_experts ? d->n_experts : 1;
    p->desc.name = NULL; /* belongs to the caller; units have their own copies */
}

mu_param *mu_params_add(mu_params *ps, const mu_param_desc *desc) {
    MU_CHECK(desc->group && desc->name, "a parameter needs a group and a name");
    MU_CHECK(desc->n_dims >= 1 && desc->n_dims <= 2, "%s: %d dimensions, not 1 or 2", desc->name, desc->n_dims);
    for (int i = 0; i < desc->n_dims; i++)
        MU_CHECK(desc->shape[i] >= 0, "%s: dimension %d is %lld", desc->name, i, (long long)desc->shape[i]);
    MU_CHECK(desc->n_experts == 0 || (desc->local && desc->n_local >= 1 && desc->n_local <= desc->n_experts),
             "%s: %d local experts of %d; need 1 to all, and their ids", desc->name, desc->n_local, desc->n_experts);
    MU_CHECK(!desc->group->values, "%s declared after mu_params_alloc", desc->name);
    mu_param *p = mu_alloc(1, sizeof *p);
    p->desc = *desc;
    make_units(ps, p);
    mu_tensor *t = &p->tensor;
    *t = (mu_tensor){ .dev = ps->dev, .dtype = ps->dev->compute, .needs_grad = true };
    if (desc->n_experts) t->shape[t->n_dims++] = desc->n_local;
    for (int i = 0; i < desc->n_dims; i++) t->shape[t->n_dims++] = desc->shape[i];
    p->slab_offset = desc->group->count;
    desc->group->count += (mu_count(t) + SLAB_ALIGNMENT - 1) / SLAB_ALIGNMENT * SLAB_ALIGNMENT;
    ps->params = mu_realloc(ps->params, (size_t)ps->n_params + 1, sizeof *ps->params);
    p->index = ps->n_params;
    return ps->params[ps->n_params++] = p;
}

static mu_memory *new_slab(mu_params *ps, const mu_group *g, mu_dtype dtype) {
    size_t bytes = mu_size_mul((size_t)g->count, mu_dtype_size(dtype));
    mu_memory *slab = mu_memory_new(ps->dev, bytes);
    mu_memory_commit(slab, bytes);
    return slab;
}

static void *place_in(const mu_memory *slab, const mu_param *p, mu_dtype dtype) {
    return slab->region.base + (size_t)p->slab_offset * mu_dtype_size(dtype);
}

void mu_params_alloc(mu_params *ps) {
    for (int i = 0; i < ps->n_groups; i++) {
        mu_group *g = ps->groups[i];
        g->values = new_slab(ps, g, ps->dev->master);
        g->grads = new_slab(ps, g, ps->dev->master);
        if (ps->dev->compute != ps->dev->master) g->compute = new_slab(ps, g, ps->dev->compute);
    }
    for (int i = 0; i < ps->n_params; i++) {
        mu_param *p = ps->params[i];
        const mu_group *g = p->desc.group;
        p->tensor.master = place_in(g->values, p, ps->dev->master);
        p->tensor.grad = place_in(g->grads, p, ps->dev->master);
        p->tensor.data = g->compute ? place_in(g->compute, p, ps->dev->compute) : p->tensor.master;
    }
}

static void init_unit(const mu_params *ps, const mu_unit *u, uint64_t seed) {
    uint64_t key = mu_hash64(u->name, strlen(u->name));
    mu_rng rng = { seed, (uint32_t)key, (uint32_t)(key >> 32), MU_RNG_INIT, 0 };
    enum { PART = 1 << 16 };        /* of a large embedding: in doubles it would be the peak of a program that only reads a model */
    double *values = mu_alloc((size_t)(u->count < PART ? u->count : PART), sizeof *values), std = u->param->desc.std;
    for (int64_t at = 0, n; at < u->count; at += n) {
        n = u->count - at < PART ? u->count - at : PART;
        if (std > 0) mu_rng_normals_from(&rng, at, n, std, values);
        else for (int64_t i = 0; i < n; i++) values[i] = std < 0 ? 1.0 : 0.0;
        mu_reals_set(ps->dev, ps->dev->master, (char *)mu_unit_data(u) + (size_t)at * mu_dtype_size(ps->dev->master), n, values);
    }
    free(values);
}

void mu_params_init(mu_params *ps, uint64_t seed) {
    if (ps->dev->shape_only) return;
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) init_unit(ps, u, seed);
    mu_params_refresh(ps);
}

void mu_params_refresh(mu_params *ps) {
    for (int i = 0; i < ps->n_groups; i++) {
        const mu_group *g = ps->groups[i];
        if (g->compute)
            ps->dev->k->copy(ps->dev, g->count, (mu_mat){ g->values->region.base, ps->dev->master, 1 },
                             (mu_mat){ g->compute->region.base, ps->dev->compute, 1 });
    }
}

void mu_params_exact(mu_params *ps) {
    for (int i = 0; i < ps->n_params; i++) {
        mu_param *p = ps->params[i];
        p->tensor.sums_ld = mu_exact_sums_words(unit_count(&p->desc));
        p->desc.group->sums_words += p->n_units * p->tensor.sums_ld;
    }
    for (int i = 0; i < ps->n_groups; i++) {
        mu_group *g = ps->groups[i];
        size_t bytes = mu_size_mul((size_t)g->sums_words, sizeof(int64_t));
        g->sums = mu_memory_new(ps->dev, bytes);
        mu_memory_commit(g->sums, bytes);
        g->sums_words = 0;
    }
    for (int i = 0; i < ps->n_params; i++) {
        mu_param *p = ps->params[i];
        mu_group *g = p->desc.group;
        p->tensor.sums = g->sums->region.base + (size_t)g->sums_words * sizeof(int64_t);
        g->sums_words += p->n_units * p->tensor.sums_ld;
    }
}

/* Zero bits, written as doubles, which `fill` accepts on every device. */
static void zero_sums(mu_params *ps, mu_group *g) {
    if (g->sums)
        ps->dev->k->fill(ps->dev, g->sums_words, 0.0, (mu_mat){ g->sums->region.base, MU_DTYPE_F64, 1 });
}

void mu_params_zero_grad(mu_params *ps) {
    for (int i = 0; i < ps->n_groups; i++) zero_sums(ps, ps->groups[i]);
    for (int i = 0; i < ps->n_params; i++) ps->params[i]->tensor.grad_new = !ps->params[i]->tensor.sums;
}

void mu_param_finish_grad(mu_param *p) {
    mu_tensor *t = &p->tensor;
    if (t->grad_new) t->dev->k->fill(t->dev, mu_count(t), 0.0, mu_grad_of(t));
    t->grad_new = false;
}

void mu_params_finish_grads(mu_params *ps) {
    for (int i = 0; i < ps->n_params; i++) mu_param_finish_grad(ps->params[i]);
}

void mu_params_round_grads(mu_params *ps) {
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
        mu_mat sums = mu_sums(&u->param->tensor);
        if (!sums.data) continue;
        mu_mat grad = { mu_unit_grad(u), ps->dev->master, 1 };
        ps->dev->k->exact_round(ps->dev, u->count, mu_mat_rows(sums, u - u->param->units), grad);
    }
}

mu_unit *mu_unit_next(const mu_params *ps, const mu_unit *u) {
    int i = 0;
    if (u) {
        const mu_param *p = u->param;
        if (u + 1 < p->units + p->n_units) return p->units + (u - p->units) + 1;
        while (ps->params[i] != p) i++;
        i++;
    }
    while (i < ps->n_params && ps->params[i]->n_units == 0) i++;
    return i < ps->n_params ? ps->params[i]->units : NULL;
}

mu_unit *mu_params_find(mu_params *ps, const char *name) {
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        if (!strcmp(u->name, name)) return u;
    return NULL;
}

void mu_unit_freeze(mu_unit *u, bool frozen) {
    MU_CHECK(u, "unit is NULL");
    u->frozen = frozen;
    u->param->desc.group->version++;
}

void mu_unit_set_lr_factor(mu_unit *u, double factor) {
    MU_CHECK(u && factor >= 0 && isfinite(factor),
             "learning-rate factor %g for %s must be finite and at least 0", factor,
             u ? u->name : "a NULL unit");
    u->lr_factor = factor;
    u->param->desc.group->version++;
}

static void *at_unit(const mu_unit *u, void *of_param, mu_dtype dtype) {
    return (char *)of_param + (size_t)u->offset * mu_dtype_size(dtype);
}

void *mu_unit_data(const mu_unit *u) {
    const mu_tensor *t = &u->param->tensor;
    return at_unit(u, t->master, t->dev->master);
}

void *mu_unit_grad(const mu_unit *u) {
    mu_param_finish_grad(u->param);
    return at_unit(u, u->param->tensor.grad, u->param->tensor.dev->master);
}

/* ------------------------------------------------------------------ state */

static void values_get(const mu_state *s, void *host) {
    const mu_unit *u = s->item;
    mu_device *dev = u->param->tensor.dev;
    mu_device_read(dev, host, mu_unit_data(u), (size_t)u->count * mu_dtype_size(dev->master));
}

static mu_status values_set(const mu_state *s, const void *host, mu_error *e) {
    const mu_unit *u = s->item;
    mu_device *dev = u->param->tensor.dev;
    (void)e;
    mu_device_write(dev, mu_unit_data(u), host, (size_t)u->count * mu_dtype_size(dev->master));
    return MU_STATUS_OK;
}

mu_state mu_unit_state(const mu_unit *u, const char *prefix) {
    const mu_param_desc *d = &u->param->desc;
    mu_state s = { .type = u->param->tensor.dev->master == MU_DTYPE_F64 ? MU_STORE_F64 : MU_STORE_F32,
                   .n_dims = d->n_dims,
                   .shape = { d->shape[0], d->shape[1] },
                   .low = -DBL_MAX,
                   .high = DBL_MAX,
                   .tensor = u->name,
                   .sharded = u->expert >= 0,
                   .item = u };
    snprintf(s.name, sizeof s.name, "%s%s", prefix, u->name);
    return s;
}

void mu_params_state(mu_params *ps, mu_state_visitor *v) {
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
        mu_state s = mu_unit_state(u, "");
        s.get = values_get, s.set = values_set;
        v->visit(v, &s);
    }
}
