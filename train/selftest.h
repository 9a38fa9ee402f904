/* selftest.h - the checks of `muster selftest`: selftest_terms.c, selftest_runs.c. */
#ifndef MUSTER_TRAIN_SELFTEST_H
#define MUSTER_TRAIN_SELFTEST_H
#include "train/training.h"

typedef struct {
    mu_mesh *mesh, *alone;      /* all ranks; this one by itself */
    int n_overrides;
    char **overrides;           /* device, dtype, threads: for the checks on the user's device */
    char figures[512];          /* what the check found, set by it */
} mu_selftest;
/* A check: true when all is well on this rank. Fills t->figures. All ranks call it, in the same order. */
typedef bool mu_selftest_check(mu_selftest *t);

/* A tiny training run on synthetic texts, on `mesh`; its options are overridden by those of the list, which ends with NULL. On the
 * user's device with `here`, else on the double-precision one. Heap; fatal when it cannot be opened. Collective over the mesh, like
 * closing. */
mu_training *mu_selftest_open(const mu_selftest *t, mu_mesh *mesh, bool here, const char *const *options);
void mu_selftest_close(mu_training *r);
/* Loss and gradients of the run's first global batch, over all its ranks: [*n] values of all units, by their global index; heap.
 * Collective over the run's mesh. */
double *mu_selftest_gradients(mu_training *r, double *loss, int64_t *n);
/* |a - b| / |b| as vectors. */
double mu_selftest_distance(const double *a, const double *b, int64_t n);

mu_selftest_check mu_selftest_split, mu_selftest_device, mu_selftest_rows, mu_selftest_checkpoint, mu_selftest_speed;
int mu_selftest_n_terms(void);
/* The check of a balancing term; *name is set. */
bool mu_selftest_term(mu_selftest *t, int term, const char **name);

#endif
