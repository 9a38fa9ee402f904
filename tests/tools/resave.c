/* resave.c - loads a checkpoint as a resumed run does, on any number of ranks, and saves it again without a
 * step in between: what was loaded must be what was there.
 *
 *   resave CONFIG CHECKPOINT section.key=value ...       (run.dir is where it goes) */
#include "train/training.h"

#include <stdlib.h>

static mu_status resave(mu_training *t, mu_mesh *mesh, const char *path, mu_error *e) {
    mu_manifest m = { 0 };
    bool found;
    mu_status status = mu_training_open(t, mesh, MU_VAL_DOCUMENTS_BY_HASH, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_find(mesh->world, path, &m, &found, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_compare(&t->cfg, &t->texts.corpus, &m, NULL, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_load(&t->state, &m, t->tokenizer, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_save(&t->state, &t->cfg, &t->texts, e);
    mu_manifest_free(&m);
    return status;
}

int main(int argc, char **argv) {
    mu_error e = { 0 };
    mu_training t = { 0 };
    mu_messages_start();
    if (argc < 3) return MU_STATUS_USAGE;
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_status status = mu_config_load(&t.cfg, argv[1], argc - 3, argv + 3, world->size, true, &e);
    mu_comm_free(world);
    if (status == MU_STATUS_OK) {
        mu_mesh *mesh = mu_mesh_open(NULL, (int)t.cfg.parallel.ep);
        status = resave(&t, mesh, argv[2], &e);
        mu_training_close(&t);
        mu_mesh_close(mesh);
    }
    mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}
