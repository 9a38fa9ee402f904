/* cmd_eval.c - muster eval: validation loss of a checkpoint, domain by domain. Also the way in which eval,
 * inspect, verify and generate open a checkpoint. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

/* The model of *m's configuration, with its weights. */
static mu_status open_model(mu_trainer *t, mu_mesh *mesh, bool with_data, int n_overrides, char *const *overrides,
                            const mu_manifest *m, bool *opened, mu_error *e) {
    *opened = false;
    mu_status status = mu_config_load_text(&t->cfg, m->path, m->config, n_overrides, overrides, e);
    status = mu_agree(mesh->world, status, e);
    if (status != MU_STATUS_OK) {
        mu_config_free(&t->cfg);
        return status;
    }
    mu_watch_start(mesh->world, (double)t->cfg.run.watchdog, mu_report_stall);
    t->cfg.train.micro_batch_size = 8; /* sequences at once; nothing of the result depends on it */
    t->cfg.train.global_batch_size = 8 * mesh->batch->size;
    t->val_split = m->val_split;
    status = mu_trainer_open(t, mesh, with_data, e);
    if (status == MU_STATUS_NOINPUT) {
        mu_error why = *e;
        mu_error_set(e, status, "%-s; if texts have moved, add data.train='[{domain: %s, path: ...}, ...]'",
                     why.text, t->cfg.data.train.list[0].domain);
    }
    *opened = status == MU_STATUS_OK;
    return status == MU_STATUS_OK ? mu_checkpoint_load(t, m, false, e) : status;
}

mu_status mu_open_checkpoint(mu_trainer *t, mu_mesh *mesh, const char *path, bool with_data, int n_overrides,
                             char *const *overrides, mu_manifest *m, mu_error *e) {
    bool found = false, opened;
    mu_status status = mesh->world->rank == 0 && !mu_file_exists(path)
                           ? mu_error_set(e, MU_STATUS_NOINPUT, "%s: no such run or checkpoint", path)
                           : MU_STATUS_OK;
    status = mu_agree(mesh->world, status, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_find(mesh->world, path, m, &found, e);
    if (status != MU_STATUS_OK) return status;
    if (!found) return mu_checkpoint_missing(path, e);
    for (;;) {
        status = open_model(t, mesh, with_data, n_overrides, overrides, m, &opened, e);
        if (!opened || status != MU_STATUS_DATA) return status;
        status = mu_checkpoint_fall_back(mesh->world, path, m, e); /* weights that are no weights */
        if (status != MU_STATUS_OK) return status;
        mu_trainer_close(t);
        *t = (mu_trainer){ 0 };
    }
}

static mu_status check_arguments(int argc, char **argv, mu_error *e) {
    if (argc < 3) return mu_error_set(e, MU_STATUS_USAGE, "eval needs a run folder or a checkpoint");
    for (int i = 2; i < argc; i++)
        if (argv[i][0] == '-' || (i > 2 && !strchr(argv[i], '=')))
            return mu_error_set(e, MU_STATUS_USAGE, "%s: not understood", argv[i]);
    mu_status status = mu_expand_argument(&argv[2], e);
    for (int i = 3; i < argc && status == MU_STATUS_OK; i++)
        status = mu_config_check_use(argv[i], MU_ON_EVAL, argv[1], e);
    return status;
}

/* All sequences unless the command line says otherwise: what the run used in training does not count here. */
static void choose_sequences(mu_trainer *t, int n_overrides, char *const *overrides) {
    bool given = false;
    for (int i = 0; i < n_overrides; i++) given |= !strncmp(overrides[i], "train.eval_sequences=", 21);
    if (!given) t->cfg.train.eval_sequences = 0;
}

static void print_results(const mu_trainer *t, const mu_manifest *m, double mean,
                          const mu_domain_loss *results) {
    if (strcmp(m->fingerprint, t->corpus.fingerprint))
        mu_print("note: these are not the texts it was trained on: fingerprint %s then, %s now\n",
               m->fingerprint, t->corpus.fingerprint);
    mu_print("%s, step %lld: %.6f nats a token, domains weighted by their share\n", m->path, (long long)m->step,
           mean);
    mu_print_domains(t, results);
}

static mu_status evaluate(mu_trainer *t, const mu_manifest *m, mu_error *e) {
    mu_domain_loss *results = mu_alloc((size_t)t->corpus.n_domains, sizeof *results);
    double mean = mu_evaluate(t, t->cfg.train.eval_sequences, results);
    int64_t tokens = 0;
    for (int i = 0; i < t->corpus.n_domains; i++) tokens += results[i].tokens;
    if (tokens && t->mesh->world->rank == 0) print_results(t, m, mean, results);
    free(results);
    return tokens ? MU_STATUS_OK
                  : mu_error_set(e, MU_STATUS_DATA,
                                 "there is nothing to validate on: data.val_fraction is 0 or the texts are "
                                 "too short");
}

/* All ranks were started with the same arguments. Collective, agreed. */
static mu_status agree_on_arguments(mu_comm *world, int argc, char **argv, mu_error *e) {
    char *text = mu_strdup("");
    for (int i = 2; i < argc; i++) {
        char *longer = mu_format("%sargument %d: %s\n", text, i, argv[i]);
        free(text);
        text = longer;
    }
    mu_status status = mu_agree_text(world, MU_STATUS_USAGE, "arguments differ from those of rank 0:", text, e);
    free(text);
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
    mu_status status = mu_agree(mesh->world, check_arguments(argc, argv, &e), &e);
    if (status == MU_STATUS_OK) status = agree_on_arguments(mesh->world, argc, argv, &e);
    if (status == MU_STATUS_OK)
        status = mu_open_checkpoint(&t, mesh, argv[2], true, argc - 3, argv + 3, &m, &e);
    if (status == MU_STATUS_OK) {
        choose_sequences(&t, argc - 3, argv + 3);
        status = evaluate(&t, &m, &e);
    }
    mu_watch_stop();
    mu_manifest_free(&m);
    if (t.mesh) mu_trainer_close(&t);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_mesh_close(mesh);
    mu_dist_stop();
    return (int)status;
}
