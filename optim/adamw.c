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

mu_adamw *mu_adamw_new(const mu_optim_config *cfg, mu_params *ps) {
    mu_adamw *o = mu_alloc(1, sizeof *o);
    o->cfg = *cfg, o->params = ps;
    for (int i = 0; i < ps->n_groups; i++) {
        o->ends[i] = new_shares(ps, ps->groups[i]);
        size_t bytes = (size_t)(share_end(o, i) - share_begin(o, i)) * mu_dtype_size(ps->dev->fine);
        for (int which = 0; which < 2; which++) {
            o->moments[i][which] = mu_memory_new(ps->dev, bytes ? bytes : 1);
            mu_memory_commit(o->moments[i][which], bytes);
        }
    }
    size_t bytes = (size_t)ps->n_global_units * sizeof(double);
    o->squares = mu_memory_new(ps->dev, bytes);
    mu_memory_commit(o->squares, bytes);
    o->host_squares = mu_alloc((size_t)ps->n_global_units, sizeof(double));
    return o;
}

void mu_adamw_free(mu_adamw *o) {
    if (!o) return;
    for (int i = 0; i < o->params->n_groups; i++) {
        for (int which = 0; which < 2; which++) mu_memory_free(o->moments[i][which]);
        free(o->ends[i]);
    }
    mu_memory_free(o->squares);
    free(o->host_squares);
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

/* Exact sums are integers: every rank adds up all of them. */
static void reduce_sums(const mu_params *ps, mu_comm *c, const mu_group *g) {
    if (ps->dev->shape_only) return;
    size_t bytes = (size_t)g->sums_words * sizeof(int64_t);
    void *host = mu_device_stage_begin(ps->dev, g->sums->region.base, bytes);
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

static mu_mat operand(const mu_params *ps, void *data) { return (mu_mat){ data, ps->dev->fine, 1 }; }

/* Sums of squares of this rank's gradients, on the host; 0 for units that are left out. */
static void measure(mu_adamw *o, bool owned_only) {
    mu_params *ps = o->params;
    char *base = o->squares->region.base;
    size_t bytes = (size_t)ps->n_global_units * sizeof(double);
    memset(o->host_squares, 0, bytes);
    mu_device_write(ps->dev, base, o->host_squares, bytes);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        if (!owned_only || mu_adamw_owns(o, u))
            ps->dev->k->sumsq(ps->dev, u->count, operand(ps, mu_unit_grad(u)), false,
                              (mu_mat){ base + (size_t)u->global_index * sizeof(double), MU_DTYPE_F64, 1 });
    mu_device_read(ps->dev, o->host_squares, base, bytes);
}

double mu_grad_norm(mu_adamw *o, mu_comm *world) {
    mu_params *ps = o->params;
    double *squares = o->host_squares, total = 0;
    measure(o, true);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) /* every rank's own: counted once */
        if (!u->param->desc.group->reduce && u->expert < 0 && world->rank) squares[u->global_index] = 0;
    mu_all_reduce(world, MU_REDUCE_SUM, MU_DTYPE_F64, squares, ps->n_global_units);
    for (int64_t i = 0; i < ps->n_global_units; i++) total += squares[i];
    return sqrt(total);
}

const mu_unit *mu_grads_nonfinite(mu_adamw *o) {
    const mu_unit *bad = NULL;
    measure(o, false);
    for (mu_unit *u = mu_unit_next(o->params, NULL); u; u = mu_unit_next(o->params, u))
        if (!isfinite(o->host_squares[u->global_index])) bad = u;
    return bad;
}

static void update(mu_adamw *o, mu_unit *u, double lr, double grad_scale) {
    mu_params *ps = o->params;
    const mu_param_desc *d = &u->param->desc;
    mu_adamw_spec spec = { lr * d->group->lr_factor,
                           o->cfg.betas[0],
                           o->cfg.betas[1],
                           o->cfg.eps,
                           d->decay ? o->cfg.weight_decay : 0.0,
                           grad_scale,
                           u->steps };
    ps->dev->k->adamw(ps->dev, u->count, &spec, operand(ps, mu_unit_data(u)), operand(ps, mu_unit_grad(u)),
                      operand(ps, mu_adamw_moment(o, u, 0)), operand(ps, mu_adamw_moment(o, u, 1)),
                      mu_unit_real(u));
}

void mu_adamw_step(mu_adamw *o, double lr, double grad_scale) {
    mu_params *ps = o->params;
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
        if (u->idle || u->param->desc.group->frozen) continue;
        u->steps++;
        if (mu_adamw_owns(o, u)) update(o, u, lr, grad_scale);
    }
    for (int i = 0; i < ps->n_groups; i++) {
        mu_group *g = ps->groups[i];
        mu_comm *c = comm_of(g);
        if (c && !g->frozen) mu_gather_shards(c, ps->dev, ps->dev->fine, g->values->region.base, o->ends[i]);
    }
    mu_params_publish(ps);
}
