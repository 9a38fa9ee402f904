/* adamw.c - AdamW (Loshchilov & Hutter 2019), expert-lazy: an expert that took no token in the global batch
 * is left as it is. Without that, decay shrinks a resting expert by (1 - lr*wd)^n, the tail of its momentum
 * walks it along one stale batch, and the first step after a silence is too long: each of them destroys
 * what only this expert knew. Its own step count makes the bias correction right when it wakes. */
#include "optim/optim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

mu_adamw *mu_adamw_new(const mu_optim_config *cfg, mu_params *ps) {
    mu_adamw *o = mu_alloc(1, sizeof *o);
    o->cfg = *cfg, o->params = ps;
    for (int i = 0; i < ps->n_groups; i++)
        for (int which = 0; which < 2; which++) {
            size_t bytes = (size_t)ps->groups[i]->count * mu_dtype_size(ps->dev->real);
            o->moments[i][which] = mu_memory_new(ps->dev, bytes ? bytes : 1);
            mu_memory_commit(o->moments[i][which], bytes);
        }
    size_t bytes = (size_t)ps->n_global_units * sizeof(double);
    o->squares = mu_memory_new(ps->dev, bytes);
    mu_memory_commit(o->squares, bytes);
    o->host_squares = mu_alloc((size_t)ps->n_global_units, sizeof(double));
    return o;
}

void mu_adamw_free(mu_adamw *o) {
    if (!o) return;
    for (int i = 0; i < o->params->n_groups; i++)
        for (int which = 0; which < 2; which++) mu_memory_free(o->moments[i][which]);
    mu_memory_free(o->squares);
    free(o->host_squares);
    free(o);
}

void *mu_adamw_moment(const mu_adamw *o, const mu_unit *u, int which) {
    const mu_param *p = u->param;
    int g = 0;
    while (o->params->groups[g] != p->desc.group) g++;
    return o->moments[g][which]->region.base +
           (size_t)(p->slab_offset + u->offset) * mu_dtype_size(p->tensor.dtype);
}

static mu_mat operand(const mu_params *ps, void *data) { return (mu_mat){ data, ps->dev->real, 1 }; }

double mu_grad_norm(mu_adamw *o, mu_comm *group, const mu_unit **bad) {
    mu_params *ps = o->params;
    double *squares = o->host_squares, total = 0;
    char *base = o->squares->region.base;
    size_t bytes = (size_t)ps->n_global_units * sizeof *squares;
    memset(squares, 0, bytes);
    mu_device_write(ps->dev, base, squares, bytes);
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u))
        ps->dev->k->sumsq(ps->dev, u->count, operand(ps, mu_unit_grad(u)), false,
                          (mu_mat){ base + (size_t)u->global_index * sizeof(double), MU_DTYPE_F64, 1 });
    mu_device_read(ps->dev, squares, base, bytes);
    if (bad) *bad = NULL;
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
        if (bad && !isfinite(squares[u->global_index])) *bad = u;
        if (u->expert < 0 && group->rank) squares[u->global_index] = 0; /* every rank has it: counted once */
    }
    mu_all_reduce(group, MU_REDUCE_SUM, MU_DTYPE_F64, squares, ps->n_global_units);
    for (int64_t i = 0; i < ps->n_global_units; i++) total += squares[i];
    return sqrt(total);
}

void mu_adamw_step(mu_adamw *o, double lr, double grad_scale) {
    mu_params *ps = o->params;
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
        const mu_param_desc *d = &u->param->desc;
        if (u->idle || d->group->frozen) continue;
        mu_adamw_spec spec = { lr * d->group->lr_factor,
                               o->cfg.betas[0],
                               o->cfg.betas[1],
                               o->cfg.eps,
                               d->decay ? o->cfg.weight_decay : 0.0,
                               grad_scale,
                               ++u->steps };
        ps->dev->k->adamw(ps->dev, u->count, &spec, operand(ps, mu_unit_data(u)),
                          operand(ps, mu_unit_grad(u)), operand(ps, mu_adamw_moment(o, u, 0)),
                          operand(ps, mu_adamw_moment(o, u, 1)));
    }
}
