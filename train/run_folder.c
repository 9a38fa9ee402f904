/* run_folder.c - creates the run folder, checks that it is the same and writable on all ranks; writes
 * RUN/config.resolved.yaml and RUN/run.json. */
#include "train/train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------------ one folder for all ranks, and writable */

/* A file that rank 0 writes to the run folder for the other ranks to find. */
typedef struct {
    char name[64], text[64], host[MU_HOST_NAME];
} marker;

static marker make_marker(void) {
    marker s = { 0 };
    mu_host_name(s.host);
    snprintf(s.name, sizeof s.name, ".ranks-%ld", (long)getpid());
    snprintf(s.text, sizeof s.text, "%016llx", (unsigned long long)mu_hash64(&s, sizeof s) ^ (unsigned long long)(mu_time() * 1e9));
    return s;
}

/* A network file system may take ten seconds to show what another host wrote. */
static bool finds_marker(const char *dir, const marker *s) {
    char host[MU_HOST_NAME];
    mu_host_name(host);
    char *path = mu_format("%s/%s", dir, s->name), *text = NULL;
    size_t bytes;
    bool found = false;
    int tries = strcmp(s->host, host) ? 50 : 1;
    for (int i = 0; i < tries && !found; i++) {
        if (i) nanosleep(&(struct timespec){ 0, 200000000 }, NULL);
        mu_activity_set("looking for the run folder of rank 0", -1, NULL);
        if (mu_file_read(path, sizeof s->text, &text, &bytes, NULL) != MU_STATUS_OK) continue;
        found = !strcmp(text, s->text);
        free(text);
    }
    free(path);
    return found;
}

/* Checks that every rank finds the file of rank 0. Collective, agreed. */
static mu_status check_shared(mu_comm *batch, const char *dir, mu_error *e) {
    marker s = make_marker();
    char *path = mu_format("%s/%s", dir, s.name), *where = realpath(dir, NULL);
    mu_status status = MU_STATUS_OK;
    if (batch->rank == 0) status = mu_file_replace(path, s.text, strlen(s.text), e);
    status = mu_agree(batch, status, e);
    if (status == MU_STATUS_OK) {
        mu_broadcast(batch, 0, &s, sizeof s);
        if (batch->rank && !finds_marker(dir, &s))
            status = mu_error_set(e, MU_STATUS_CONFIG,
                                  "run.dir %s (%s) is not the folder that rank 0 uses: all ranks need the same one; put it on a"
                                  " file system that all hosts share", dir, where ? where : "not found");
        status = mu_agree(batch, status, e);
    }
    if (batch->rank == 0) unlink(path);
    free(path);
    free(where);
    return status;
}

/* Creates and removes a small file. */
static mu_status check_writable(const char *folder, int rank, mu_error *e) {
    char *path = mu_format("%s/.writable-%d-%ld", folder, rank, (long)getpid());
    mu_status status = mu_file_replace(path, "x", 1, e);
    if (status == MU_STATUS_OK && unlink(path))
        status = mu_error_set(e, MU_STATUS_IO, "%s cannot be removed: %s", path, strerror(errno));
    free(path);
    return status;
}

/* Inside the texts, the run's own files would be read as texts the next time. */
static mu_status outside_of_texts(const mu_config *cfg, mu_error *e) {
    for (int i = 0; i < cfg->data.train.n; i++) {
        const mu_option_domain *d = &cfg->data.train.list[i];
        if (strcmp(d->path, "synthetic") && mu_file_is_inside(cfg->run.dir, d->path))
            return mu_error_set(e, MU_STATUS_CONFIG,
                                "run.dir %s lies inside the texts of domain %s (%s); choose a folder outside of them",
                                cfg->run.dir, d->domain, d->path);
    }
    return MU_STATUS_OK;
}

/* Recognize files of muster that the start of a run replaces. Empty ones are replaced, too. */
static bool is_run_json(const char *text) { return strstr(text, "\"program\"") && strstr(text, "\"muster "); }
static bool is_resolved_config(const char *text) { return !strncmp(text, "run:\n  dir: ", 12) && strstr(text, "  # "); }

static mu_status check_own(const char *dir, const char *name, bool is_own(const char *), mu_error *e) {
    char *path = mu_format("%s/%s", dir, name), text[2048];
    const char *other = mu_file_not_plain(path);
    FILE *f = other ? NULL : fopen(path, "re");
    if (f) {
        size_t n = fread(text, 1, sizeof text - 1, f);
        text[n] = '\0';
        fclose(f);
        if (n && !is_own(text)) other = "was not written by muster";
    }
    mu_status status = other ? mu_error_set(e, MU_STATUS_CONFIG, "%s %s, but muster needs this name for a file of its own; move it"
                                            " away, or choose another run.dir", path, other)
                             : MU_STATUS_OK;
    free(path);
    return status;
}

/* Creates the folder and takes its lock; overwrites no files of others. Rank 0. */
static mu_status make_folder(const mu_config *cfg, const char *checkpoints, mu_lock **lock, mu_error *e) {
    const char *dir = cfg->run.dir;
    mu_status status = outside_of_texts(cfg, e);
    if (status == MU_STATUS_OK) status = mu_file_make_dirs(dir, e);
    if (status == MU_STATUS_OK) status = check_own(dir, "run.json", is_run_json, e);
    if (status == MU_STATUS_OK) status = check_own(dir, "config.resolved.yaml", is_resolved_config, e);
    if (status == MU_STATUS_OK) status = mu_lock_take(lock, dir, e);
    return status == MU_STATUS_OK ? mu_file_make_dirs(checkpoints, e) : status;
}

mu_status mu_run_claim(const mu_config *cfg, const mu_mesh *mesh, mu_lock **lock, mu_error *e) {
    mu_comm *batch = mesh->batch;
    const char *dir = cfg->run.dir;
    char *checkpoints = mu_format("%s/checkpoints", dir);
    mu_status status = mu_mesh_writes_shared(mesh) ? make_folder(cfg, checkpoints, lock, e) : MU_STATUS_OK;
    status = mu_agree(batch, status, e);
    if (status == MU_STATUS_OK && batch->size > 1) status = check_shared(batch, dir, e);
    if (status == MU_STATUS_OK)
        status = mu_agree(batch, mu_mesh_writes_experts(mesh) ? check_writable(checkpoints, batch->rank, e) : MU_STATUS_OK, e);
    free(checkpoints);
    return status;
}

/* ------------------------------------------------------------------ run.json and config.resolved.yaml */

typedef struct {
    char host[MU_HOST_NAME];
    int64_t pid;
} process;

static void write_domains(mu_json *j, const mu_corpus *c) {
    mu_json_begin(j, "domains", '[');
    for (int i = 0; i < c->n_domains; i++) {
        mu_json_begin(j, NULL, '{');
        mu_json_string(j, "name", c->domains[i].name);
        mu_json_int(j, "tokens", c->domains[i].n_tokens);
        mu_json_string(j, "fingerprint", c->domains[i].fingerprint);
        mu_json_end(j, '}');
    }
    mu_json_end(j, ']');
}

/* This job, for run.json. */
typedef struct {
    const mu_config *cfg;
    const mu_device *dev;
    const mu_corpus *corpus;
    const mu_train_state *state;
    int argc;
    char **argv;
} job_info;

static mu_status write_run_json(const job_info *job, const process *all, mu_error *e) {
    char when[32], *path = mu_format("%s/run.json", job->cfg->run.dir);
    time_t now = time(NULL);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    mu_json j;
    mu_json_init(&j);
    char *where = realpath(job->cfg->run.dir, NULL);
    mu_json_begin(&j, NULL, '{');
    mu_json_string(&j, "program", "muster " MU_VERSION);
    if (where) mu_json_string(&j, "dir", where);
    free(where);
    mu_json_string(&j, "started", when);
    mu_json_int(&j, "resumed_from_step", job->state->step);
    mu_lineage_write(&j, &job->state->parent, &job->state->ancestors);
    mu_origin_write(&j, &job->state->origin);
    mu_edits_write(&j, &job->state->edits);
    mu_json_begin(&j, "argv", '[');
    for (int i = 0; i < job->argc; i++) mu_json_string(&j, NULL, job->argv[i]);
    mu_json_end(&j, ']');
    mu_json_int(&j, "seed", job->cfg->run.seed);
    mu_json_int(&j, "dp", job->state->mesh->dp);
    mu_json_int(&j, "ep", job->state->mesh->ep);
    mu_json_int(&j, "threads_per_rank", mu_threads());
    mu_json_string(&j, "device", job->dev->name);
    mu_json_string(&j, "mpi", mu_dist_library());
    mu_json_bool(&j, "mpi_cuda_aware", job->state->mesh->batch->cuda_aware);
    mu_json_string(&j, "data_fingerprint", job->corpus->fingerprint);
    mu_json_bool(&j, "synthetic_data", job->corpus->synthetic);
    write_domains(&j, job->corpus);
    mu_json_begin(&j, "ranks", '[');
    for (int i = 0; i < job->state->mesh->batch->size; i++) {
        mu_json_begin(&j, NULL, '{');
        mu_json_string(&j, "host", all[i].host);
        mu_json_int(&j, "pid", all[i].pid);
        mu_json_end(&j, '}');
    }
    mu_json_end(&j, ']');
    mu_json_end(&j, '}');
    char *text = mu_format("%s\n", j.text);
    mu_status status = mu_file_replace(path, text, strlen(text), e);
    free(text);
    free(path);
    mu_json_free(&j);
    return status;
}

mu_status mu_run_describe(const mu_config *cfg, const mu_device *dev, const mu_corpus *corpus, const mu_train_state *state, int argc,
                          char **argv, mu_error *e) {
    mu_comm *batch = state->mesh->batch;
    process me = { .pid = getpid() }, *all = mu_alloc((size_t)batch->size, sizeof *all);
    mu_host_name(me.host);
    mu_all_gather(batch, &me, sizeof me, all);
    mu_status status = MU_STATUS_OK;
    if (mu_mesh_writes_shared(state->mesh)) {
        char *yaml = mu_options_dump(&cfg->options, cfg),
             *path = mu_format("%s/config.resolved.yaml", cfg->run.dir);
        status = mu_file_replace(path, yaml, strlen(yaml), e);
        if (status == MU_STATUS_OK) status = write_run_json(&(job_info){ cfg, dev, corpus, state, argc, argv }, all, e);
        free(path);
        free(yaml);
    }
    free(all);
    return mu_agree(batch, status, e);
}

/* ------------------------------------------------------------------ files of an earlier job */

void mu_run_warn_rewritten(const mu_rewritten *r) {
    if (r->step && r->damaged)
        mu_log(MU_LOG_WARNING, "%s: %lld of %lld %s are damaged%s; the others are kept, old file moved aside to %s", r->path,
               (long long)r->damaged, (long long)r->all, r->parts, r->detail, r->names);
    else if (r->step)
        mu_log(MU_LOG_WARNING, "%s: %s newer than resume step %lld, moved aside to %s", r->path, r->parts, (long long)r->step, r->names);
    else
        mu_log(MU_LOG_WARNING, "%s is from an earlier job and there is no checkpoint to resume from: moved aside to %s", r->path,
               r->names);
}
