/* clip.c - the global gradient norm, and the factor that clips it. */
#include "optim/internal.h"

#include <math.h>
#include <stdlib.h>

mu_mat mu_norm_squares(const mu_norm *n) { return (mu_mat){ n->memory->region.base, MU_DTYPE_F64, 1 }; }
static mu_mat norm_of(const mu_norm *n, const mu_params *ps) { return mu_mat_values(mu_norm_squares(n), ps->n_global_units); }
mu_mat mu_norm_scale(const mu_norm *n, const mu_params *ps) { return mu_mat_values(norm_of(n, ps), 1); }

void mu_norm_init(mu_norm *n, const mu_params *ps) {
    size_t bytes = (size_t)(ps->n_global_units + 2) * sizeof(double);
    *n = (mu_norm){ .memory = mu_memory_new(ps->dev, bytes) };
    mu_memory_commit(n->memory, bytes);
    ps->dev->k->fill(ps->dev, 1, 1.0, mu_norm_scale(n, ps));
    n->host_squares = mu_alloc((size_t)ps->n_global_units, sizeof(double));
}

void mu_norm_free(mu_norm *n) {
    mu_memory_free(n->memory);
    free(n->host_squares);
    free(n->host_losses);
}

/* Sums the squares over ranks. A rank whose losses are not finite makes one of them NaN, so that every rank stops. */
static void sum_squares(mu_norm *n, const mu_params *ps, mu_comm *batch, int64_t n_losses, mu_mat losses) {
    size_t bytes = (size_t)ps->n_global_units * sizeof(double);
    mu_device_read(ps->dev, n->host_squares, mu_norm_squares(n).data, bytes);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) /* the same value on every rank: count it once */
        if (!u->param->desc.group->reduce && u->expert < 0 && batch->rank) n->host_squares[u->global_index] = 0;
    if (n_losses > n->max_losses) {
        n->max_losses = n_losses;
        n->host_losses = mu_realloc(n->host_losses, (size_t)n_losses, sizeof(double));
    }
    mu_device_read(ps->dev, n->host_losses, losses.data, (size_t)n_losses * sizeof(double));
    for (int64_t i = 0; i < n_losses; i++)
        if (!isfinite(n->host_losses[i])) n->host_squares[0] = NAN;
    mu_all_reduce(batch, MU_REDUCE_SUM, MU_DTYPE_F64, n->host_squares, ps->n_global_units);
    for (int64_t i = 0; i < ps->n_global_units; i++) n->stopped |= !isfinite(n->host_squares[i]);
    mu_device_write(ps->dev, mu_norm_squares(n).data, n->host_squares, bytes);
}

void mu_norm_clear(mu_norm *n, const mu_params *ps) {
    ps->dev->k->fill(ps->dev, ps->n_global_units, 0.0, mu_norm_squares(n));
    n->stopped = false;
}

void mu_norm_limit(mu_norm *n, const mu_params *ps, mu_comm *batch, double max_norm, int64_t n_losses, mu_mat losses) {
    if (batch->size > 1) sum_squares(n, ps, batch, n_losses, losses);
    ps->dev->k->clip(ps->dev, ps->n_global_units, mu_norm_squares(n), n_losses, losses, max_norm, norm_of(n, ps), mu_norm_scale(n, ps));
}

void mu_grad_clip(mu_optimizer *o, mu_comm *batch, double max_norm, int64_t n_losses, mu_mat losses) {
    MU_CHECK(batch && max_norm >= 0 && n_losses >= 0 && (losses.data || !n_losses),
             "max_norm %g, %lld losses, or an argument is NULL", max_norm,
             (long long)n_losses);
    mu_params *ps = o->params;
    mu_norm *n = &o->norm;
    const mu_shards *s = &o->shards;
    const mu_kernels *k = ps->dev->k;
    mu_params_finish_grads(ps);
    mu_shards_refresh(&o->shards);
    mu_norm_clear(n, ps);
    for (int i = 0; i < ps->n_groups; i++)
        for (const mu_unit_set *set = s->sets[i]; set < s->sets[i] + s->n_sets[i]; set++)
            k->slab_sumsq(ps->dev, set->n_units, set->n_pieces, mu_shards_units(s, i, set),
                          mu_shards_mine(s, i, ps->groups[i]->grads, ps->dev->master), mu_norm_squares(n));
    mu_norm_limit(n, ps, batch, max_norm, n_losses, losses);
}

mu_mat mu_grad_norm_on_device(const mu_optimizer *o) { return norm_of(&o->norm, o->params); }

double mu_grad_norm(const mu_optimizer *o) {
    double norm;
    mu_device_read(o->params->dev, &norm, mu_grad_norm_on_device(o).data, sizeof norm);
    return norm;
}

const mu_unit *mu_grads_nonfinite(mu_optimizer *o) {
    mu_params *ps = o->params;
    const mu_unit *bad = NULL;
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        ps->dev->k->sumsq(ps->dev, u->count, (mu_mat){ mu_unit_grad(u), ps->dev->master, 1 }, false,
                          mu_mat_values(mu_norm_squares(&o->norm), u->global_index));
    mu_device_read(ps->dev, o->norm.host_squares, mu_norm_squares(&o->norm).data, (size_t)ps->n_global_units * sizeof(double));
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        if (!u->frozen && !isfinite(o->norm.host_squares[u->global_index])) bad = u;
    return bad;
}
