/* anchor.c - elastic weight consolidation: weights that matter to a domain that has disappeared from the stream are pulled back to
 * their values of then. */
#include "optim/internal.h"

#include <stdlib.h>
#include <string.h>

mu_anchor *mu_anchor_new(mu_optimizer *o, const mu_option_domains *domains) {
    mu_anchor *a = mu_alloc(1, sizeof *a);
    *a = (mu_anchor){ .opt = o, .domains = domains, .holds = mu_alloc((size_t)domains->n, sizeof *a->holds) };
    return a;
}

void mu_anchor_free(mu_anchor *a) {
    if (!a) return;
    for (int i = 0; i < a->opt->params->n_groups; i++) {
        mu_memory_free(a->fisher[i]);
        mu_memory_free(a->at[i]);
    }
    if (a->set) mu_norm_free(&a->norm);
    free(a->holds);
    free(a);
}

static int64_t my_count(const mu_anchor *a, int group) {
    const mu_group *g = a->opt->params->groups[group];
    return mu_shards_count(&a->opt->shards, group, g->reduce ? comm_of(g)->rank : 0);
}

static mu_mat slab_of(const mu_anchor *a, const mu_memory *slab) { return (mu_mat){ slab->region.base, a->opt->params->dev->master, 1 }; }

static mu_memory *new_slab(const mu_anchor *a, int group) {
    mu_device *dev = a->opt->params->dev;
    size_t bytes = (size_t)my_count(a, group) * mu_dtype_size(dev->master);
    mu_memory *slab = mu_memory_new(dev, bytes);
    mu_memory_commit(slab, bytes);
    return slab;
}

void mu_anchor_prepare(mu_anchor *a) {
    if (a->set) return;
    for (int i = 0; i < a->opt->params->n_groups; i++) a->fisher[i] = new_slab(a, i), a->at[i] = new_slab(a, i);
    mu_norm_init(&a->norm, a->opt->params);
    a->set = true;
}

/* ------------------------------------------------------------------ setting it */

static mu_mat mine(const mu_anchor *a, int group, const mu_memory *slab) {
    return mu_shards_mine(&a->opt->shards, group, slab, a->opt->params->dev->master);
}

void mu_anchor_add(mu_anchor *a, double weight) {
    mu_params *ps = a->opt->params;
    mu_anchor_prepare(a);
    mu_params_finish_grads(ps);
    for (int i = 0; i < ps->n_groups; i++)
        ps->dev->k->add_squares(ps->dev, my_count(a, i), weight, mine(a, i, ps->groups[i]->grads), slab_of(a, a->fisher[i]));
}

/* Calls `each` for all values of F on this rank, in blocks, and writes them back if it says so. */
typedef struct { double largest, cut; int64_t above; } survey;
static bool find_largest(survey *s, double *f, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (f[i] > s->largest) s->largest = f[i];
    return false;
}

static bool cut_small(survey *s, double *f, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (f[i] < s->cut) f[i] = 0;
        s->above += f[i] > 0;
    }
    return s->cut > 0;
}

static void for_blocks(const mu_anchor *a, bool (*each)(survey *s, double *f, int64_t n), survey *s) {
    enum { BLOCK = 1 << 16 };
    mu_device *dev = a->opt->params->dev;
    double *f = mu_alloc(BLOCK, sizeof *f);
    for (int i = 0; i < a->opt->params->n_groups; i++)
        for (int64_t first = 0, count = my_count(a, i); first < count; first += BLOCK) {
            int64_t n = count - first < BLOCK ? count - first : BLOCK;
            void *at = mu_mat_values(slab_of(a, a->fisher[i]), first).data;
            mu_reals_get(dev, dev->master, at, n, f);
            if (each(s, f, n)) mu_reals_set(dev, dev->master, at, n, f);
        }
    free(f);
}

mu_anchor_size mu_anchor_renew(mu_anchor *a, mu_comm *batch, double cut) {
    mu_params *ps = a->opt->params;
    survey s = { 0 };
    mu_anchor_prepare(a);
    for (int i = 0; i < ps->n_groups; i++)
        ps->dev->k->copy(ps->dev, my_count(a, i), mine(a, i, ps->groups[i]->values), slab_of(a, a->at[i]));
    for_blocks(a, find_largest, &s);
    mu_all_reduce(batch, MU_REDUCE_MAX, MU_DTYPE_F64, &s.largest, 1);
    s.cut = cut * s.largest;
    for_blocks(a, cut_small, &s);
    mu_all_reduce(batch, MU_REDUCE_SUM, MU_DTYPE_I64, &s.above, 1);
    return (mu_anchor_size){ s.largest, s.above };
}

void mu_anchor_release(mu_anchor *a, const mu_unit *u, int64_t first, int64_t n) {
    mu_device *dev = a->opt->params->dev;
    const mu_shards *s = &a->opt->shards;
    void *f = a->set ? mu_shards_unit(s, u, a->fisher[mu_shards_group(s, u)]) : NULL;
    if (f) dev->k->fill(dev, n, 0.0, mu_mat_values((mu_mat){ f, dev->master, 1 }, first));
}

/* ------------------------------------------------------------------ a step */

void mu_anchor_pull(mu_anchor *a, mu_comm *batch, double strength, double max_norm, mu_mat loads) {
    mu_optimizer *o = a->opt;
    mu_params *ps = o->params;
    const mu_kernels *k = ps->dev->k;
    MU_CHECK(strength >= 0 && max_norm >= 0, "strength %g, max_norm %g", strength, max_norm);
    if (!a->set || strength == 0 || o->norm.stopped) return;
    mu_params_finish_grads(ps);
    mu_shards_refresh(&o->shards);
    mu_norm_clear(&a->norm, ps);
    for (int i = 0; i < ps->n_groups; i++)
        for (const mu_unit_set *u = o->shards.sets[i]; u < o->shards.sets[i] + o->shards.n_sets[i]; u++)
            k->slab_pull_sumsq(ps->dev, u->n_units, u->n_pieces, mu_shards_units(&o->shards, i, u), loads, slab_of(a, a->fisher[i]),
                               mine(a, i, ps->groups[i]->values), slab_of(a, a->at[i]), mu_norm_squares(&a->norm));
    mu_norm_limit(&a->norm, ps, batch, max_norm / strength, 0, (mu_mat){ 0 });
    for (int i = 0; i < ps->n_groups; i++)
        for (const mu_unit_set *u = o->shards.sets[i]; u < o->shards.sets[i] + o->shards.n_sets[i]; u++)
            k->slab_pull(ps->dev, u->n_units, u->n_pieces, strength, mu_shards_units(&o->shards, i, u), loads, mu_norm_scale(&a->norm, ps),
                         mu_norm_scale(&o->norm, ps), slab_of(a, a->fisher[i]), mine(a, i, ps->groups[i]->values), slab_of(a, a->at[i]),
                         mine(a, i, ps->groups[i]->grads));
}

/* ------------------------------------------------------------------ state */

static const mu_memory *slab_named(const mu_anchor *a, const mu_unit *u, int which) {
    int group = mu_shards_group(&a->opt->shards, u);
    return which ? a->at[group] : a->fisher[group];
}

static void slab_get(const mu_state *s, void *host) {
    const mu_anchor *a = s->module;
    mu_shards_unit_read(&a->opt->shards, s->item, slab_named(a, s->item, s->index), host);
}

static mu_status slab_set(const mu_state *s, const void *host, mu_error *e) {
    const mu_anchor *a = s->module;
    const mu_unit *u = s->item;
    mu_device *dev = a->opt->params->dev;
    (void)e;
    mu_device_write(dev, mu_shards_unit(&a->opt->shards, u, slab_named(a, u, s->index)), host, (size_t)u->count * mu_dtype_size(dev->master));
    return MU_STATUS_OK;
}

static void visit_slab(mu_anchor *a, const mu_unit *u, int which, mu_state_visitor *v) {
    mu_state s = mu_unit_state(u, which ? "/optim/anchor" : "/optim/fisher");
    if (!which) s.low = 0;
    s.collective = s.for_training = true, s.elsewhere = !mu_shards_owns(&a->opt->shards, u);
    s.module = a, s.index = which, s.get = slab_get, s.set = slab_set;
    v->visit(v, &s);
}

static void holds_get(const mu_state *s, void *host) {
    const mu_anchor *a = s->module;
    memcpy(host, a->holds, (size_t)a->domains->n * sizeof *a->holds);
}

static mu_status holds_set(const mu_state *s, const void *host, mu_error *e) {
    const mu_anchor *a = s->module;
    const mu_option_domains *from = s->item;
    (void)e;
    for (int d = 0; d < a->domains->n; d++) {
        a->holds[d] = 0;
        for (int i = 0; i < from->n; i++)
            if (!strcmp(a->domains->list[d].domain, from->list[i].domain)) a->holds[d] = ((const int64_t *)host)[i];
    }
    return MU_STATUS_OK;
}

void mu_anchor_state(mu_anchor *a, const mu_option_domains *from, mu_state_visitor *v) {
    if (!a->set) return;
    mu_state holds = { .name = "/state/anchor", .type = MU_STORE_I64, .n_dims = 1, .shape = { from->n }, .min = 0, .max = 1, .for_training = true,
                       .module = a, .item = from, .get = holds_get, .set = holds_set };
    v->visit(v, &holds);
    for (mu_unit *u = mu_unit_next(a->opt->params, NULL); u; u = mu_unit_next(a->opt->params, u))
        for (int which = 0; which < 2; which++) visit_slab(a, u, which, v);
}
