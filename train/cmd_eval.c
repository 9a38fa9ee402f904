/* cmd_eval.c - muster eval: validation loss of a checkpoint, domain by domain. Also the way in which eval,
 * inspect, verify and generate open a checkpoint. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

mu_status mu_open_checkpoint(mu_trainer *t, mu_mesh *mesh, const char *path, bool with_data, int n_overrides,
                             char *const *overrides, mu_manifest *m, mu_error *e) {
    bool found = false;
    mu_status status = mesh->world->rank == 0 && !mu_file_exists(path)
                           ? mu_error_set(e, MU_STATUS_NOINPUT, "%s: no such run or checkpoint", path)
                           : MU_STATUS_OK;
    status = mu_agree(mesh->world, status, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_find(mesh->world, path, m, &found, e);
    if (status != MU_STATUS_OK) return status;
    if (!found) return mu_error_set(e, MU_STATUS_DATA, "%s holds no checkpoint", path);
    status = mu_config_load_text(&t->cfg, &t->options, m->path, m->config, n_overrides, overrides, e);
    status = mu_agree(mesh->world, status, e);
    if (status != MU_STATUS_OK) {
        mu_config_free(&t->cfg, &t->options);
        return status;
    }
    t->cfg.train.micro_batch_size = 8; /* sequences at once; nothing of the result depends on it */
    t->cfg.train.global_batch_size = 8 * mesh->world->size;
    status = mu_trainer_open(t, mesh, with_data, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_load(t, m, false, e);
    return status;
}

int mu_cmd_eval(int argc, char **argv) {
    mu_error e = { 0 };
    mu_trainer t = { 0 };
    mu_manifest m = { 0 };
    mu_dist_start(&argc, &argv);
    mu_mesh *mesh = mu_mesh_open(NULL, 1);
    int rank = mesh->world->rank;
    mu_report_error(&e, rank);
    mu_status status = MU_STATUS_OK;
    for (int i = 2; i < argc && status == MU_STATUS_OK; i++)
        if (argv[i][0] == '-' || (i > 2 && !strchr(argv[i], '=')))
            status = mu_error_set(&e, MU_STATUS_USAGE, "%s: not understood", argv[i]);
    if (argc < 3) status = mu_error_set(&e, MU_STATUS_USAGE, "eval needs a run folder or a checkpoint");
    if (status == MU_STATUS_OK)
        status = mu_open_checkpoint(&t, mesh, argv[2], true, argc - 3, argv + 3, &m, &e);
    if (status == MU_STATUS_OK) {
        mu_domain_loss *results = mu_alloc((size_t)t.corpus.n_domains, sizeof *results);
        double mean = mu_evaluate(&t, 0, results);
        if (rank == 0) {
            printf("%s, step %lld: %.6f nats a token, domains weighted by their share\n", m.path,
                   (long long)m.step, mean);
            mu_print_domains(&t, results);
        }
        free(results);
    }
    mu_manifest_free(&m);
    if (t.mesh) mu_trainer_close(&t);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_mesh_close(mesh);
    mu_dist_stop();
    return (int)status;
}
