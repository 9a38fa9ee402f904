/* adamw.c - AdamW (Loshchilov & Hutter 2019), expert-lazy: an expert that took no token in the global batch
 * is left as it is. Without that, decay shrinks a resting expert by (1 - lr*wd)^n, the tail of its momentum
 * walks it along one stale batch, and the first step after a silence is too long: each of them destroys
 * what only this expert knew. Its own step count makes the bias correction right when it wakes.
 *
 * Gradients, moments and the work are divided among the ranks that hold the same units (ZeRO, Rajbhandari et
 * al. 2020, stage 1): a reduce-scatter before the step and an all-gather of values after it move what one
 * all-reduce moves. Units are not cut, so that the sum of squares of each has the same bits on any mesh. */
#include "optim/optim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A group's communicator is declared const to those who may only compare it; collectives count time in it. */
static mu_comm *comm_of(const mu_group *g) { return (mu_comm *)(uintptr_t)g->reduce; }
static int rank_in(const mu_group *g) { return g->reduce ? comm_of(g)->rank : 0; }
static int ranks_of(const mu_group *g) { return g->reduce ? comm_of(g)->size : 1; }

static int64_t place_of(const mu_unit *u) { return u->param->slab_offset + u->offset; }

/* Shares end where units end, each as near as can be to an equal part of the group's values. */
static int64_t *new_shares(const mu_params *ps, const mu_group *g) {
    int ranks = ranks_of(g);
    int64_t *ends = mu_alloc((size_t)ranks, sizeof *ends);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        if (u->param->desc.group == g)
            for (int r = 0; r < ranks; r++) {
                int64_t wanted = g->count / ranks * (r + 1), here = place_of(u);
                if (llabs(here - wanted) < llabs(ends[r] - wanted)) ends[r] = here;
                if (llabs(g->count - wanted) < llabs(ends[r] - wanted)) ends[r] = g->count;
            }
    ends[ranks - 1] = g->count;
    return ends;
}

static int64_t share_begin(const mu_adamw *o, int group) {
    int rank = rank_in(o->params->groups[group]);
    return rank ? o->ends[group][rank - 1] : 0;
}

static int64_t share_end(const mu_adamw *o, int group) {
    return o->ends[group][rank_in(o->params->groups[group])];
}

/* The group's table of units, on the device. Those of other ranks are in it without values: their steps count. */
static void make_table(mu_adamw *o, int group) {
    mu_params *ps = o->params;
    int64_t begin = share_begin(o, group), end = share_end(o, group);
    mu_slab_unit *table = mu_alloc((size_t)ps->n_global_units, sizeof *table);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
        if (u->param->desc.group != ps->groups[group]) continue;
        int64_t first = place_of(u), count = first >= begin && first < end ? u->count : 0;
        table[o->n_units[group]++] = (mu_slab_unit){ count ? first - begin : 0, count,   o->n_pieces[group],
                                                     u->global_index,           u->load, u->param->desc.decay };
        o->n_pieces[group] += mu_slab_pieces(count);
    }
    size_t bytes = (size_t)o->n_units[group] * sizeof *table;
    o->units[group] = mu_memory_new(ps->dev, bytes);
    mu_memory_commit(o->units[group], bytes);
    mu_device_write(ps->dev, o->units[group]->region.base, table, bytes);
    free(table);
}

/* In o->state: sums of squares and step counts of all units, then the norm and the scale. */
static mu_mat squares_of(const mu_adamw *o) { return (mu_mat){ o->state->region.base, MU_DTYPE_F64, 1 }; }
static mu_mat steps_of(const mu_adamw *o) {
    mu_mat squares = squares_of(o);
    return (mu_mat){ (double *)squares.data + o->params->n_global_units, MU_DTYPE_I64, 1 };
}
static mu_mat norm_of(const mu_adamw *o) { return mu_mat_values(squares_of(o), 2 * o->params->n_global_units); }
static mu_mat scale_of(const mu_adamw *o) { return mu_mat_values(norm_of(o), 1); }

mu_adamw *mu_adamw_new(const mu_optim_config *cfg, mu_params *ps) {
    mu_error e = { 0 };
    mu_complaints found = { .e = &e };
    MU_CHECK(cfg && ps, "an optimizer needs its configuration and parameters");
    mu_optim_config_check(cfg, 0, &found);
    MU_CHECK(found.status == MU_STATUS_OK, "%s", e.text);
    for (int i = 0; i < ps->n_groups; i++)
        MU_CHECK(ps->groups[i]->values, "the optimizer comes after mu_params_alloc");
    mu_adamw *o = mu_alloc(1, sizeof *o);
    o->cfg = *cfg, o->params = ps;
    for (int i = 0; i < ps->n_groups; i++) {
        o->ends[i] = new_shares(ps, ps->groups[i]);
        size_t bytes = (size_t)(share_end(o, i) - share_begin(o, i)) * mu_dtype_size(ps->dev->fine);
        for (int which = 0; which < 2; which++) {
            o->moments[i][which] = mu_memory_new(ps->dev, bytes ? bytes : 1);
            mu_memory_commit(o->moments[i][which], bytes);
            /* Touched by writing: reading first would map the system's page of zeros, and each page's first write then
             * interrupts all cores. */
            mu_mat all = { o->moments[i][which]->region.base, ps->dev->fine, 1 };
            ps->dev->k->fill(ps->dev, share_end(o, i) - share_begin(o, i), 0.0, all);
        }
        make_table(o, i);
    }
    size_t bytes = (size_t)(2 * ps->n_global_units + 2) * sizeof(double);
    o->state = mu_memory_new(ps->dev, bytes);
    mu_memory_commit(o->state, bytes);
    ps->dev->k->fill(ps->dev, 1, 1.0, scale_of(o));
    o->host_squares = mu_alloc((size_t)ps->n_global_units, sizeof(double));
    return o;
}

void mu_adamw_free(mu_adamw *o) {
    if (!o) return;
    for (int i = 0; i < o->params->n_groups; i++) {
        for (int which = 0; which < 2; which++) mu_memory_free(o->moments[i][which]);
        mu_memory_free(o->units[i]);
        free(o->ends[i]);
    }
    mu_memory_free(o->state);
    free(o->host_squares);
    free(o->host_losses);
    free(o);
}

static int group_of(const mu_adamw *o, const mu_unit *u) {
    int g = 0;
    while (o->params->groups[g] != u->param->desc.group) g++;
    return g;
}

static int owner_of(const mu_adamw *o, const mu_unit *u) {
    const int64_t *ends = o->ends[group_of(o, u)];
    int r = 0;
    while (place_of(u) >= ends[r]) r++;
    return r;
}

bool mu_adamw_owns(const mu_adamw *o, const mu_unit *u) {
    int g = group_of(o, u);
    return place_of(u) >= share_begin(o, g) && place_of(u) < share_end(o, g);
}

void *mu_adamw_moment(const mu_adamw *o, const mu_unit *u, int which) {
    MU_CHECK(which == 0 || which == 1, "moment %d", which);
    int g = group_of(o, u);
    return mu_adamw_owns(o, u)
               ? o->moments[g][which]->region.base +
                     (size_t)(place_of(u) - share_begin(o, g)) * mu_dtype_size(o->params->dev->fine)
               : NULL;
}

void mu_adamw_moment_read(const mu_adamw *o, const mu_unit *u, int which, void *host) {
    mu_comm *c = comm_of(u->param->desc.group);
    int owner = owner_of(o, u);
    size_t bytes = (size_t)u->count * mu_dtype_size(o->params->dev->fine);
    if (mu_adamw_owns(o, u)) mu_device_read(o->params->dev, host, mu_adamw_moment(o, u, which), bytes);
    if (owner == 0) return;
    int64_t *send = mu_alloc(2 * (size_t)c->size, sizeof *send), *recv = send + c->size;
    if (c->rank == owner) send[0] = (int64_t)bytes;
    if (c->rank == 0) recv[owner] = (int64_t)bytes;
    mu_exchange(c, host, send, host, recv);
    free(send);
}

int64_t mu_adamw_steps(const mu_adamw *o, const mu_unit *u) {
    int64_t steps;
    mu_device_read(o->params->dev, &steps, mu_mat_values(steps_of(o), u->global_index).data, sizeof steps);
    return steps;
}

void mu_adamw_steps_set(mu_adamw *o, const mu_unit *u, int64_t steps) {
    mu_device_write(o->params->dev, mu_mat_values(steps_of(o), u->global_index).data, &steps, sizeof steps);
}

/* Exact sums are integers: every rank adds up all of them. */
static void reduce_sums(const mu_params *ps, mu_comm *c, const mu_group *g) {
    if (c->size == 1 || ps->dev->shape_only) return;
    size_t bytes = (size_t)g->sums_words * sizeof(int64_t);
    void *host = mu_device_stage_begin(ps->dev, g->sums->region.base, bytes, true);
    mu_all_reduce(c, MU_REDUCE_SUM, MU_DTYPE_I64, host, g->sums_words);
    mu_device_stage_end(ps->dev, g->sums->region.base, bytes, true);
}

void mu_grads_reduce(mu_adamw *o) {
    mu_params *ps = o->params;
    mu_params_finish_grads(ps);
    for (int i = 0; i < ps->n_groups; i++) {
        mu_group *g = ps->groups[i];
        mu_comm *c = comm_of(g);
        if (c && g->sums) reduce_sums(ps, c, g);
        else if (c) mu_reduce_shards(c, ps->dev, ps->dev->fine, g->grads->region.base, o->ends[i]);
    }
    mu_params_round_grads(ps);
}

/* This rank's share of a group's slab. */
static mu_mat share_of(const mu_adamw *o, int group, const mu_memory *slab, mu_dtype dtype) {
    return slab ? mu_mat_values((mu_mat){ slab->region.base, dtype, 1 }, share_begin(o, group)) : (mu_mat){ 0 };
}

static mu_mat table_of(const mu_adamw *o, int group) {
    return (mu_mat){ o->units[group]->region.base, MU_DTYPE_I64, MU_SLAB_UNIT_WORDS };
}

/* Every rank's squares to all of them; NaN in one of them when a rank's losses are not finite. */
static void sum_squares(mu_adamw *o, mu_comm *world, int64_t n_losses, mu_mat losses) {
    mu_params *ps = o->params;
    size_t bytes = (size_t)ps->n_global_units * sizeof(double);
    mu_device_read(ps->dev, o->host_squares, squares_of(o).data, bytes);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) /* every rank's own: counted once */
        if (!u->param->desc.group->reduce && u->expert < 0 && world->rank) o->host_squares[u->global_index] = 0;
    if (n_losses > o->most_losses) {
        o->most_losses = n_losses;
        o->host_losses = mu_realloc(o->host_losses, (size_t)n_losses, sizeof(double));
    }
    mu_device_read(ps->dev, o->host_losses, losses.data, (size_t)n_losses * sizeof(double));
    for (int64_t i = 0; i < n_losses; i++)
        if (!isfinite(o->host_losses[i])) o->host_squares[0] = NAN;
    mu_all_reduce(world, MU_REDUCE_SUM, MU_DTYPE_F64, o->host_squares, ps->n_global_units);
    for (int64_t i = 0; i < ps->n_global_units; i++) o->stopped |= !isfinite(o->host_squares[i]);
    mu_device_write(ps->dev, squares_of(o).data, o->host_squares, bytes);
}

void mu_grad_clip(mu_adamw *o, mu_comm *world, double max_norm, int64_t n_losses, mu_mat losses) {
    MU_CHECK(world && max_norm >= 0 && n_losses >= 0 && (losses.data || !n_losses), "clipping at %g, %lld losses", max_norm,
             (long long)n_losses);
    mu_params *ps = o->params;
    const mu_kernels *k = ps->dev->k;
    mu_params_finish_grads(ps);
    k->fill(ps->dev, ps->n_global_units, 0.0, squares_of(o)); /* of experts that live elsewhere */
    o->stopped = false;
    for (int i = 0; i < ps->n_groups; i++)
        k->slab_sumsq(ps->dev, o->n_units[i], o->n_pieces[i], table_of(o, i),
                      share_of(o, i, ps->groups[i]->grads, ps->dev->fine), squares_of(o));
    if (world->size > 1) sum_squares(o, world, n_losses, losses);
    k->clip(ps->dev, ps->n_global_units, squares_of(o), n_losses, losses, max_norm, norm_of(o), scale_of(o));
}

mu_mat mu_grad_norm_place(const mu_adamw *o) { return norm_of(o); }

double mu_grad_norm(const mu_adamw *o) {
    double norm;
    mu_device_read(o->params->dev, &norm, norm_of(o).data, sizeof norm);
    return norm;
}

const mu_unit *mu_grads_nonfinite(mu_adamw *o) {
    mu_params *ps = o->params;
    const mu_unit *bad = NULL;
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        ps->dev->k->sumsq(ps->dev, u->count, (mu_mat){ mu_unit_grad(u), ps->dev->fine, 1 }, false,
                          mu_mat_values(squares_of(o), u->global_index));
    mu_device_read(ps->dev, o->host_squares, squares_of(o).data, (size_t)ps->n_global_units * sizeof(double));
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        if (!isfinite(o->host_squares[u->global_index])) bad = u;
    return bad;
}

static void update(mu_adamw *o, int group, double lr, mu_mat loads) {
    mu_params *ps = o->params;
    const mu_group *g = ps->groups[group];
    const mu_adamw_spec spec = { lr * g->lr_factor, o->cfg.betas[0], o->cfg.betas[1], o->cfg.eps, o->cfg.weight_decay };
    mu_mat moments[2];
    for (int which = 0; which < 2; which++)
        moments[which] = (mu_mat){ o->moments[group][which]->region.base, ps->dev->fine, 1 };
    ps->dev->k->slab_adamw(ps->dev, o->n_units[group], o->n_pieces[group], &spec, table_of(o, group), loads, scale_of(o),
                           steps_of(o), share_of(o, group, g->values, ps->dev->fine),
                           share_of(o, group, g->grads, ps->dev->fine), moments[0], moments[1],
                           share_of(o, group, g->reals, ps->dev->real));
}

void mu_adamw_step(mu_adamw *o, double lr, mu_mat loads) {
    mu_params *ps = o->params;
    bool shared = false; /* others have changed values, too */
    MU_CHECK(lr >= 0 && isfinite(lr), "a learning rate of %g", lr);
    if (o->stopped) return;
    mu_params_finish_grads(ps);
    for (int i = 0; i < ps->n_groups; i++) {
        const mu_group *g = ps->groups[i];
        mu_comm *c = comm_of(g);
        if (g->frozen) continue;
        update(o, i, lr, loads);
        if (!c || c->size == 1) continue;
        mu_gather_shards(c, ps->dev, ps->dev->fine, g->values->region.base, o->ends[i]);
        shared = true;
    }
    if (shared) mu_params_publish(ps);
}
