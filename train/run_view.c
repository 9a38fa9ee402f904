/* run_view.c - reads a run folder. Files that a run replaces (run.json, config.resolved.yaml, checkpoints) are renamed into place, and
 * files that it appends to have checksums, so a run can be read while it runs. */
#include "train/run_view.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { FILE_BYTES = 16 << 20 };     /* maximum size of run.json and config.resolved.yaml */

static mu_status read_named(const mu_run_view *v, const char *name, char **path, char **text, size_t *bytes, mu_error *e) {
    *path = mu_format("%s/%s", v->dir, name);
    return mu_file_read(*path, FILE_BYTES, text, bytes, e);
}

static mu_status read_config(mu_run_view *v, mu_error *e) {
    char *path;
    size_t bytes;
    mu_status status = read_named(v, "config.resolved.yaml", &path, &v->config_text, &bytes, e);
    if (status == MU_STATUS_OK) status = mu_config_load_text(&v->cfg, path, v->config_text, 0, NULL, e);
    free(path);
    return status;
}

static mu_status read_facts(mu_run_view *v, mu_error *e) {
    char *path, *text = NULL;
    size_t bytes = 0;
    json_error_t why;
    mu_status status = read_named(v, "run.json", &path, &text, &bytes, e);
    if (status == MU_STATUS_OK) {
        v->facts = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why);
        if (!json_is_object(v->facts)) status = mu_error_set(e, MU_STATUS_DATA, "%s is damaged: not one JSON object", path);
    }
    free(path);
    free(text);
    return status;
}

static mu_status list_checkpoints(mu_run_view *v, mu_error *e) {
    v->n_checkpoints = mu_checkpoint_list(v->dir, &v->checkpoints);
    if (v->n_checkpoints >= 0) return MU_STATUS_OK;
    v->n_checkpoints = 0;
    return mu_error_set(e, MU_STATUS_IO, "%s/checkpoints cannot be read: %s", v->dir, strerror(errno));
}

static bool is_elsewhere(const mu_run_view *v) {
    const char *was = json_string_value(json_object_get(v->facts, "dir"));
    char *now = realpath(v->dir, NULL);
    bool moved = was && now && strcmp(was, now);
    free(now);
    return moved;
}

/* The lock is read first, so later writes of a running job do not change the verdict. */
static mu_run_state state_of(const mu_run_view *v, mu_lock_state lock) {
    if (lock == MU_LOCK_HELD) return MU_RUN_RUNNING;
    if (v->n_checkpoints && v->checkpoints[0] >= v->cfg.train.steps) return MU_RUN_FINISHED;
    return lock == MU_LOCK_ABANDONED ? MU_RUN_CRASHED : MU_RUN_STOPPED;
}

static bool holds(const char *dir, const char *name) {
    char *path = mu_format("%s/%s", dir, name);
    bool there = mu_file_exists(path);
    free(path);
    return there;
}

static bool holds_weights_only(const char *dir) {
    int64_t *steps;
    mu_manifest m = { 0 };
    mu_error why;
    bool weights = false;
    if (mu_checkpoint_list(dir, &steps) > 0) {
        char *path = mu_checkpoint_path(dir, steps[0]);
        weights = mu_manifest_read(&m, path, &why) == MU_STATUS_OK && m.weights_only;
        mu_manifest_free(&m);
        free(path);
    }
    free(steps);
    return weights;
}

static mu_status check_folder(const char *dir, mu_error *e) {
    struct stat st;
    if (stat(dir, &st))
        return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", dir, errno == ENOENT ? "no such file or folder" : strerror(errno));
    if (!S_ISDIR(st.st_mode)) return mu_error_set(e, MU_STATUS_NOINPUT, "%s is not a run folder", dir);
    if (holds(dir, "config.resolved.yaml") || holds(dir, "run.json")) return MU_STATUS_OK;
    const char *what = holds_weights_only(dir) ? "%s holds weights only (muster convert), no run: there are no steps to show"
                       : holds(dir, "config.json") ? "%s is a model of Hugging Face, no run: there are no steps to show"
                                                   : "%s is not a run folder: it has no config.resolved.yaml";
    return mu_error_set(e, MU_STATUS_NOINPUT, what, dir);
}

mu_status mu_run_view_open(mu_run_view *v, const char *dir, mu_error *e) {
    *v = (mu_run_view){ .dir = mu_strdup(dir) };
    mu_status status = check_folder(dir, e);
    if (status != MU_STATUS_OK) return status;
    mu_lock_state lock = mu_lock_look(dir);
    status = read_config(v, e);
    if (status == MU_STATUS_OK) status = read_facts(v, e);
    if (status == MU_STATUS_OK) status = list_checkpoints(v, e);
    if (status != MU_STATUS_OK) return status;
    v->state = state_of(v, lock);
    v->moved = is_elsewhere(v);
    return MU_STATUS_OK;
}

void mu_run_view_close(mu_run_view *v) {
    mu_config_free(&v->cfg);
    json_decref(v->facts);
    free(v->config_text);
    free(v->checkpoints);
    free(v->dir);
    *v = (mu_run_view){ 0 };
}

const char *mu_run_state_name(mu_run_state state) {
    static const char *const names[] = { [MU_RUN_RUNNING] = "running", [MU_RUN_FINISHED] = "finished", [MU_RUN_STOPPED] = "stopped",
                                         [MU_RUN_CRASHED] = "crashed" };
    return names[state];
}

int64_t mu_run_moe_layers(const mu_run_view *v, int64_t *layer) {
    int64_t n = 0;
    for (int i = 0; i < v->cfg.model.num_layers && v->cfg.moe.num_experts; i++)
        if (mu_layer_is_moe(&v->cfg.moe, i)) layer[n++] = i;
    return n;
}

/* ------------------------------------------------------------------ its metrics and statistics */

static mu_status open_lines(mu_run_metrics *m, const mu_run_view *v, const char *name, mu_lines_format format, mu_error *e) {
    *m = (mu_run_metrics){ .path = mu_format("%s/%s", v->dir, name) };
    const char *reason = mu_file_exists(m->path) ? mu_file_not_plain(m->path) : "does not exist";
    if (reason) return mu_error_set(e, MU_STATUS_NOINPUT, "%s %s", m->path, reason);
    return mu_lines_open(&m->lines, m->path, format, e);
}

mu_status mu_run_metrics_open(mu_run_metrics *m, const mu_run_view *v, mu_error *e) {
    return open_lines(m, v, "metrics.jsonl", MU_LINES_METRICS, e);
}

mu_status mu_run_events_open(mu_run_metrics *m, const mu_run_view *v, mu_error *e) {
    return open_lines(m, v, "events.jsonl", MU_LINES_EVENTS, e);
}

bool mu_run_metrics_next(mu_run_metrics *m) {
    mu_line line = { 0 };
    json_decref(m->line);
    while (!line.json && mu_lines_next(&m->lines)) m->skipped += !mu_line_read(&m->lines, &line) && m->lines.ended;
    m->line = line.json, m->step = line.step, m->kind = line.kind;
    return m->line != NULL;
}

bool mu_run_metrics_follow(mu_run_metrics *m) { return mu_lines_follow(&m->lines); }

mu_status mu_run_metrics_close(mu_run_metrics *m, mu_status status, mu_error *e) {
    json_decref(m->line);
    mu_status closed = mu_lines_close(&m->lines, status == MU_STATUS_OK ? e : NULL);
    free(m->path);
    *m = (mu_run_metrics){ 0 };
    return status == MU_STATUS_OK ? closed : status;
}

mu_status mu_run_statistics_open(mu_statistics **s, const mu_run_view *v, mu_error *e) {
    char *path = mu_format("%s/statistics.rec", v->dir);
    mu_status status = mu_statistics_open(s, path, false, e);
    free(path);
    return status;
}
