/* trainer.h - what tests of the trainer share: one rank that talks to nobody. */
#ifndef MUSTER_TESTS_TRAINER_H
#define MUSTER_TESTS_TRAINER_H
#include "train/train.h"

#include <stdlib.h>
#include <unistd.h>

/* Of a trainer on the heap that was opened on a mesh of its own. */
static inline void trainer_free(mu_trainer *t) {
    mu_mesh *mesh = t->mesh;
    mu_trainer_close(t);
    mu_mesh_close(mesh);
    free(t);
}

/* The trainer of a configuration, in a new working folder that is named after the template; NULL when that fails. */
static inline mu_trainer *trainer_in_folder(char *template, const char *text, mu_error *e) {
    if (!mkdtemp(template) || chdir(template)) return NULL;
    mu_trainer *t = mu_alloc(1, sizeof *t);
    if (mu_config_load_text(&t->cfg, "test", text, 0, NULL, e) || mu_trainer_open(t, mu_mesh_alone(), true, e)) return NULL;
    return t;
}

/* Its end: 0, or -1 when the folder cannot be removed. */
static inline int trainer_free_folder(mu_trainer *t, const char *folder) {
    trainer_free(t);
    return chdir("..") || mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

#endif
