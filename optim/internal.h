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

/* A unit's values in memory of the size of this rank's shard: device pointer, NULL for units of other ranks; and read into host memory
 * [u->count] on rank 0 of the group's `reduce` communicator (elsewhere `host` has the same size), Collective over that. */
void *mu_shards_unit(const mu_shards *s, const mu_unit *u, const mu_memory *shard);
void mu_shards_unit_read(const mu_shards *s, const mu_unit *u, const mu_memory *shard, void *host);

void mu_norm_init(mu_norm *n, const mu_params *ps);
void mu_norm_free(mu_norm *n);
mu_mat mu_norm_squares(const mu_norm *n);                       /* F64 [global units] */
void mu_norm_clear(mu_norm *n, const mu_params *ps);            /* the squares are 0, also those of frozen units and of experts of other ranks */
/* Norm and factor from the squares of this rank's units, as mu_grad_clip. Collective over `batch`. */
void mu_norm_limit(mu_norm *n, const mu_params *ps, mu_comm *batch, double max_norm, int64_t n_losses, mu_mat losses);
mu_mat mu_norm_scale(const mu_norm *n, const mu_params *ps);    /* one F64: the factor of all gradients; NaN: no update */
#endif
