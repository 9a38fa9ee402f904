/* cmd_eval.c - muster eval: validation loss of a checkpoint, domain by domain. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

static mu_status check_arguments(int argc, char **argv, mu_error *e) {
    if (argc < 3) return mu_error_set(e, MU_STATUS_USAGE, "eval needs a run folder or a checkpoint");
    for (int i = 2; i < argc; i++)
        if (argv[i][0] == '-' || (i > 2 && !strchr(argv[i], '=')))
            return mu_error_set(e, MU_STATUS_USAGE, "unexpected argument '%s'; overrides are section.key=value", argv[i]);
    mu_status status = mu_expand_argument(&argv[2], e);
    for (int i = 3; i < argc && status == MU_STATUS_OK; i++)
        status = mu_config_check_use(argv[i], MU_ON_EVAL, argv[1], e);
    return status;
}

/* All sequences unless the command line sets train.eval_sequences; the run's own value is for training only. */
static int64_t sequences(const mu_config *cfg, int n_overrides, char *const *overrides) {
    bool given = false;
    for (int i = 0; i < n_overrides; i++) given |= !strncmp(overrides[i], "train.eval_sequences=", 21);
    return given ? cfg->train.eval_sequences : 0;
}

static void print_results(const mu_manifest *m, const mu_texts *texts, int64_t most, double mean, const mu_domain_loss *results) {
    if (strcmp(m->fingerprint, texts->corpus.fingerprint))
        mu_print("note: the texts differ from the training texts: fingerprint %s then, %s now\n",
               m->fingerprint, texts->corpus.fingerprint);
    mu_print("%s, step %lld: %.6f nats/token, mean of the domains weighted by their share\n", m->path, (long long)m->step, mean);
    mu_print_domains(texts, most, results);
}

static mu_status evaluate(const mu_inference *o, const mu_texts *texts, int64_t most, mu_error *e) {
    enum { AT_ONCE = 8 };
    const mu_mesh *mesh = o->state.mesh;
    mu_domain_loss *results = mu_alloc((size_t)texts->corpus.n_domains, sizeof *results);
    double mean = mu_evaluate(&(mu_evaluation){ o->state.model, o->tape, texts, mesh->batch, AT_ONCE }, most, results);
    int64_t tokens = 0;
    for (int i = 0; i < texts->corpus.n_domains; i++) tokens += results[i].tokens;
    if (tokens && mesh->world->rank == 0) print_results(&o->manifest, texts, most, mean, results);
    free(results);
    return tokens ? MU_STATUS_OK
                  : mu_error_set(e, MU_STATUS_DATA,
                                 "no validation data: data.val_fraction is 0 or the texts are "
                                 "too short");
}

static mu_status open_texts(mu_texts *texts, const mu_inference *o, mu_error *e) {
    mu_status status = mu_texts_open(texts, &o->cfg, o->tokenizer, o->manifest.val_split, o->state.mesh->world, e);
    if (status == MU_STATUS_NOINPUT) {
        mu_error why = *e;
        mu_error_set(e, status, "%-s; if texts have moved, add data.train='[{domain: %s, path: ...}, ...]'",
                     why.text, o->cfg.data.train.list[0].domain);
    }
    return status;
}

/* Checks that all ranks have the same arguments. Collective, agreed. */
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
    mu_inference o = { 0 };
    mu_texts texts = { 0 };
    mu_dist_start(&argc, &argv);
    mu_mesh *mesh = mu_mesh_open(NULL, 1);
    int rank = mesh->world->rank;
    mu_report_error(&e, rank);
    mu_status status = mu_agree(mesh->world, check_arguments(argc, argv, &e), &e);
    if (status == MU_STATUS_OK) status = agree_on_arguments(mesh->world, argc, argv, &e);
    if (status == MU_STATUS_OK)
        status = mu_inference_open(&o, mesh, argv[2], argc - 3, argv + 3, &e);
    if (status == MU_STATUS_OK) status = open_texts(&texts, &o, &e);
    if (status == MU_STATUS_OK) status = evaluate(&o, &texts, sequences(&o.cfg, argc - 3, argv + 3), &e);
    mu_texts_close(&texts);
    mu_inference_close(&o);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_mesh_close(mesh);
    mu_dist_stop();
    return (int)status;
}
