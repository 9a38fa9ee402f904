/* trainer.h - what tests of the trainer share: one rank that talks to nobody. */
#ifndef MUSTER_TESTS_TRAINER_H
#define MUSTER_TESTS_TRAINER_H
#include "train/train.h"

#include <stdlib.h>

/* Of a trainer on the heap that was opened on a mesh of its own. */
static inline void trainer_free(mu_trainer *t) {
    mu_mesh *mesh = t->mesh;
    mu_trainer_close(t);
    mu_mesh_close(mesh);
    free(t);
}

#endif
