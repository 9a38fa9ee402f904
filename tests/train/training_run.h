/* training_run.h - shared by tests of a training run on one rank. */
#ifndef MUSTER_TESTS_TRAINING_H
#define MUSTER_TESTS_TRAINING_H
#include "train/training.h"

#include <stdlib.h>
#include <unistd.h>

/* The source of its metrics and statistics; valid until the next call. */
static inline const mu_log_source *log_source(const mu_training *t) {
    static mu_log_source s;
    s = (mu_log_source){ &t->cfg, &t->texts.corpus, &t->state, t->peak_flops };
    return &s;
}

/* Of a run on the heap that was opened on a mesh of its own. */
static inline void training_free(mu_training *t) {
    mu_mesh *mesh = t->state.mesh;
    mu_training_close(t);
    mu_mesh_close(mesh);
    free(t);
}

/* The run of a configuration, in a new working folder that is named after the template; NULL when that fails. */
static inline mu_training *training_in_folder(char *template, const char *text, mu_error *e) {
    if (!mkdtemp(template) || chdir(template)) return NULL;
    mu_training *t = mu_alloc(1, sizeof *t);
    if (mu_config_load_text(&t->cfg, "test", text, 0, NULL, e) || mu_training_open(t, mu_mesh_alone(), MU_VAL_DOCUMENTS_BY_HASH, e)) return NULL;
    return t;
}

/* Closes it: 0, or -1 when the folder cannot be removed. */
static inline int training_free_folder(mu_training *t, const char *folder) {
    training_free(t);
    return chdir("..") || mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

#endif
