/* run_folder.c - RUN/lock, RUN/config.resolved.yaml and RUN/run.json. */
#include "train/train.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

/* Takes the lock, which the kernel gives back when the process ends, however it ends. */
static mu_status lock(const char *dir, mu_error *e) {
    char *path = mu_format("%s/lock", dir), holder[160] = "";
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    mu_status status = MU_STATUS_OK;
    if (fd < 0) status = mu_error_set(e, MU_STATUS_IO, "%s cannot be opened: %s", path, strerror(errno));
    else if (flock(fd, LOCK_EX | LOCK_NB)) {
        ssize_t n = read(fd, holder, sizeof holder - 1);
        holder[n > 0 ? strcspn(holder, "\n") : 0] = '\0';
        status = mu_error_set(
            e, MU_STATUS_CONFIG,
            "run.dir %s is in use by another job (%s); wait for it, or choose another run.dir", dir,
            holder[0] ? holder : "unknown");
        close(fd);
    } else { /* the descriptor stays open as long as the process lives */
        char host[64] = "";
        gethostname(host, sizeof host - 1);
        int n = snprintf(holder, sizeof holder, "process %ld on %s\n", (long)getpid(), host);
        if (ftruncate(fd, 0) || write(fd, holder, (size_t)n) != n)
            status = mu_error_set(e, MU_STATUS_IO, "%s cannot be written: %s", path, strerror(errno));
    }
    free(path);
    return status;
}

mu_status mu_run_lock(const mu_trainer *t, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    if (t->mesh->world->rank == 0) {
        status = mu_file_make_dirs(t->cfg.run.dir, e);
        if (status == MU_STATUS_OK) status = lock(t->cfg.run.dir, e);
    }
    return mu_agree(t->mesh->world, status, e);
}

typedef struct {
    char host[64];
    int64_t pid;
} process;

static mu_status write_run_json(const mu_trainer *t, const process *all, int argc, char **argv, mu_error *e) {
    char when[32], *path = mu_format("%s/run.json", t->cfg.run.dir);
    time_t now = time(NULL);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    mu_json j;
    mu_json_init(&j);
    mu_json_begin(&j, NULL, '{');
    mu_json_string(&j, "program", "muster " MU_VERSION);
    mu_json_string(&j, "started", when);
    mu_json_int(&j, "resumed_from_step", t->step);
    mu_json_begin(&j, "argv", '[');
    for (int i = 0; i < argc; i++) mu_json_string(&j, NULL, argv[i]);
    mu_json_end(&j, ']');
    mu_json_int(&j, "seed", t->cfg.run.seed);
    mu_json_int(&j, "dp", t->mesh->dp);
    mu_json_int(&j, "ep", t->mesh->ep);
    mu_json_int(&j, "threads_per_rank", mu_threads());
    mu_json_string(&j, "device", t->dev->name);
    mu_json_string(&j, "mpi", mu_dist_library());
    mu_json_bool(&j, "mpi_reads_gpus", t->mesh->world->reads_gpus);
    mu_json_string(&j, "data_fingerprint", t->corpus.fingerprint);
    mu_json_bool(&j, "synthetic_data", t->corpus.synthetic);
    mu_json_begin(&j, "ranks", '[');
    for (int i = 0; i < t->mesh->world->size; i++) {
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

mu_status mu_run_describe(const mu_trainer *t, int argc, char **argv, mu_error *e) {
    mu_comm *world = t->mesh->world;
    process me = { .pid = getpid() }, *all = mu_alloc((size_t)world->size, sizeof *all);
    gethostname(me.host, sizeof me.host - 1);
    mu_all_gather(world, &me, sizeof me, all);
    mu_status status = MU_STATUS_OK;
    if (world->rank == 0) {
        char *yaml = mu_options_dump(&t->options, &t->cfg),
             *path = mu_format("%s/config.resolved.yaml", t->cfg.run.dir);
        status = mu_file_replace(path, yaml, strlen(yaml), e);
        if (status == MU_STATUS_OK) status = write_run_json(t, all, argc, argv, e);
        free(path);
        free(yaml);
    }
    free(all);
    return mu_agree(world, status, e);
}
