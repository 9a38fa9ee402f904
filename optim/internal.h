/* internal.h - shared by the files of optim/. */
#ifndef MUSTER_OPTIM_INTERNAL_H
#define MUSTER_OPTIM_INTERNAL_H
#include "optim/optim.h"

/* A group's communicator, which mu_group declares const; collectives change it. NULL: none. */
static inline mu_comm *comm_of(const mu_group *g) { return (mu_comm *)(uintptr_t)g->reduce; }

/* Rebuilds the tables of groups in which mu_unit_freeze or mu_unit_set_lr_factor was called. */
void mu_shards_refresh(mu_shards *s);
/* One set's table of units, on the device. */
mu_mat mu_shards_units(const mu_shards *s, int group, const mu_unit_set *set);

void mu_norm_init(mu_norm *n, const mu_params *ps);
void mu_norm_free(mu_norm *n);
mu_mat mu_norm_scale(const mu_norm *n, const mu_params *ps);    /* one F64: the factor of all gradients; NaN: no update */
#endif
