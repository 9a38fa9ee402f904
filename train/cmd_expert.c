/* cmd_expert.c - muster expert: looks at single experts of a checkpoint, archives them, and makes checkpoints in which they are changed. The
 * source is only read; the result is written beside its name, with archives of what was overwritten, and renamed when it is complete. */
#include "train/expert_job.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static mu_status archive(mu_expert_job *j, mu_error *e) {
    mu_archive a;
    int moe = mu_job_moe(j, j->a->at, e);
    if (moe < 0) return MU_STATUS_USAGE;
    char *folder = j->a->out ? mu_strdup(j->a->out) : mu_job_archives(&j->m);
    if (!folder) return mu_error_set(e, MU_STATUS_USAGE, "%s is not in a run folder: expert archive needs --out FOLDER", j->m.path);
    mu_status status = mu_job_open_live(j, false, e);
    if (status != MU_STATUS_OK) return free(folder), status;
    status = mu_job_record(j, &a, j->a->at, moe, true, e);
    if (status == MU_STATUS_OK) status = mu_archive_write(&a, folder, e);
    if (status == MU_STATUS_OK)
        mu_print("%s: expert %d of layer %d at step %lld (%s%s%s), %lld samples\n", a.path, j->a->at.expert, j->a->at.layer, (long long)a.step, a.state,
                 a.carries[0] ? " of " : "", a.carries, (long long)a.samples.n);
    if (status == MU_STATUS_OK) mu_job_tell_fisher(&a);
    mu_archive_free(&a);
    free(folder);
    return status;
}

static mu_status freeze(mu_expert_job *j, mu_error *e) {
    int moe = mu_job_moe(j, j->a->at, e);
    if (moe < 0) return MU_STATUS_USAGE;
    if (!mu_job_state(j)->stats) return mu_error_set(e, MU_STATUS_CONFIG, "%s holds weights only: what is frozen is state of a run", j->m.path);
    int64_t *frozen = &mu_job_state(j)->stats->health.frozen[mu_job_cell(j, moe, j->a->at.expert)];
    if (j->a->undo != (*frozen == MU_FROZEN_NOW))
        return mu_error_set(e, MU_STATUS_CONFIG, "expert %d of layer %d is %s", j->a->at.expert, j->a->at.layer, j->a->undo ? "not frozen" : "frozen already");
    *frozen = j->a->undo ? MU_FROZEN_PAST : MU_FROZEN_NOW;
    mu_surgery_note(&j->s, j->a->undo ? "thaw" : "freeze", j->a->at.layer, j->a->at.expert, "");
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ the result */

/* The losses of every domain before and after. */
static mu_status predict(mu_expert_job *j, mu_error *e) {
    int n = j->texts.corpus.n_domains;
    mu_domain_loss *before = mu_alloc(2 * (size_t)n, sizeof *before), *after = before + n;
    mu_model *model = mu_model_new(&j->s.cfg.model, &j->s.cfg.moe, j->m.vocab_size, 1, j->o.dev, j->mesh);
    mu_model_name_domains(model, &j->o.cfg.data.train);
    double mean = mu_evaluate(&j->ev, 0, before);
    mu_status status = mu_surgery_load(&j->s, model, e);
    j->ev.model = model;
    if (status == MU_STATUS_OK) {
        double then = mu_evaluate(&j->ev, 0, after);
        mu_print("\nvalidation loss, nats per token\n  %-24s %9s %9s %9s\n", "domain", "before", "after", "change");
        for (int d = 0; d < n; d++)
            if (before[d].tokens)
                mu_print("  %-24s %9.4f %9.4f %+9.4f\n", j->texts.corpus.domains[d].name, before[d].ce, after[d].ce, after[d].ce - before[d].ce);
        mu_print("  %-24s %9.4f %9.4f %+9.4f\n", "mean, by their shares", mean, then, then - mean);
    }
    j->ev.model = j->o.state.model;
    mu_model_free(model);
    free(before);
    return status;
}

static char *absolute(const char *path) {
    char *here = path[0] == '/' ? NULL : realpath(".", NULL), *whole = here ? mu_format("%s/%s", here, path) : mu_strdup(path);
    free(here);
    return whole;
}

static mu_status perform(mu_expert_job *j, mu_error *e) {
    static const struct { const char *what; mu_expert_operation *run; } actions[] = {
        { "freeze", freeze }, { "restore", mu_expert_restore }, { "reseed", mu_expert_reseed }, { "duplicate", mu_expert_duplicate },
        { "prune", mu_expert_prune } };
    mu_status status = MU_STATUS_OK;
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (mu_expert_is(j->a, actions[i].what)) status = actions[i].run(j, e);
    if (status != MU_STATUS_OK || !j->a->dry_run) return status;
    if (!j->live) status = mu_job_open_live(j, true, e);
    return status == MU_STATUS_OK ? predict(j, e) : status;
}

static mu_status write_result(mu_expert_job *j, mu_error *e) {
    mu_status status = mu_surgery_write(&j->s, j->folder, e);
    if (status == MU_STATUS_OK) status = mu_file_sync(j->folder, e);
    if (status == MU_STATUS_OK) status = mu_file_rename(j->folder, j->a->out, e);
    if (status == MU_STATUS_OK)
        mu_print("written: %s, from %s; next: muster train %s/config.resolved.yaml; muster eval %s; muster convert %s OUT --to hf\n", j->a->out, j->m.path,
                 j->a->out, j->a->out, j->a->out);
    return status;
}

/* Another process may have made OUT meanwhile: a rename onto an existing folder that is not empty fails. */
static mu_status change(mu_expert_job *j, mu_error *e) {
    char *suffix = mu_format(".tmp-%ld", (long)getpid());
    if (!j->a->dry_run) j->folder = mu_file_free_name(j->a->out, suffix);
    mu_status status = j->folder ? mu_file_make_dirs(j->folder, e) : MU_STATUS_OK;
    if (status == MU_STATUS_OK) status = perform(j, e);
    if (status == MU_STATUS_OK && j->folder) status = write_result(j, e);
    if (status != MU_STATUS_OK && j->folder) (void)!mu_file_remove_tree(j->folder, NULL);
    free(j->folder);
    free(suffix);
    return status;
}

/* As in a run: the experts that protect.carriers and the states name are protected. */
static void protect(const mu_expert_job *j) {
    const mu_train_state *t = mu_job_state(j);
    if (t->stats) mu_protection_update(&t->model->protection, &j->m.cfg.protect, &t->stats->health, &j->m.cfg.data.train, NULL);
}

static mu_status run(mu_expert_job *j, mu_error *e) {
    bool found = false;
    char *out = j->a->out ? absolute(j->a->out) : mu_strdup("unused");
    mu_status status = mu_checkpoint_find(j->mesh->batch, j->a->path, &j->m, &found, e);
    if (status == MU_STATUS_OK && !found) status = mu_checkpoint_missing(j->a->path, e);
    if (status == MU_STATUS_OK) status = mu_surgery_open(&j->s, &j->m, out, e);
    if (status == MU_STATUS_OK) protect(j);
    if (status == MU_STATUS_OK) status = mu_expert_is(j->a, "list") ? mu_expert_list(j, e) : mu_expert_is(j->a, "archive") ? archive(j, e) : change(j, e);
    status = mu_surgery_close(&j->s, status, e);
    mu_texts_close(&j->texts);
    mu_inference_close(&j->o);
    mu_manifest_free(&j->m);
    free(out);
    return status;
}

/* All of it, on this rank alone. */
static mu_status run_alone(int argc, char **argv, mu_error *e) {
    mu_expert_arguments a;
    mu_mesh *mesh = mu_mesh_alone();
    mu_status status = mu_expert_arguments_read(&a, argc, argv, e);
    if (status == MU_STATUS_OK) status = run(&(mu_expert_job){ .a = &a, .mesh = mesh }, e);
    mu_expert_arguments_free(&a);
    mu_mesh_close(mesh);
    return status;
}

/* Of several ranks the first does it, and the others wait: a line of a job script may start every command in the same way. */
int mu_cmd_expert(int argc, char **argv) {
    mu_error e = { 0 };
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    mu_report_error(&e, world->rank);
    mu_status status = mu_agree(world, world->rank == 0 ? run_alone(argc, argv, &e) : MU_STATUS_OK, &e);
    if (status != MU_STATUS_OK) mu_report_error(&e, world->rank);
    mu_comm_free(world);
    mu_dist_stop();
    return (int)status;
}
