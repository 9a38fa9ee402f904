/* statistics_resume.c - continues the statistics.rec of an earlier job, as metrics_resume.c does for metrics.jsonl:
 * keeps the valid records up to the resume step. Afterwards each training line has a record; missing or damaged ones are rebuilt
 * from the line, without domains, as for runs of older versions. */
#include "train/run_view.h"
#include "train/train.h"

#include <stdlib.h>

typedef struct { int64_t index, step; } kept_record;

typedef struct {
    const mu_log_source *src;
    const char *path, *metrics_path;
    const mu_logged_steps *logged;
    int64_t step;               /* that the run resumes from */
    mu_statistics_shape shape;
    mu_statistics *old;         /* NULL: no file that this run can continue */
    bool foreign;               /* the existing file is of another run, or damaged */
    kept_record *kept;
    int64_t n, invalid, beyond; /* invalid: records before the last kept one; later ones may be torn by a kill */
    int64_t missing;            /* training lines without a record */
} old_file;

static mu_statistics_shape shape_of(const mu_log_source *src) {
    mu_statistics_shape s = { src->state->model->n_moe, src->cfg->moe.num_experts, src->corpus->n_domains, NULL, NULL };
    s.layer = mu_alloc((size_t)s.layers, sizeof *s.layer);
    s.domain = mu_alloc((size_t)s.domains, sizeof *s.domain);
    for (int64_t i = 0; i < s.layers; i++) s.layer[i] = src->state->model->moe_layers[i];
    for (int64_t i = 0; i < s.domains; i++) snprintf(s.domain[i], MU_STATISTICS_NAME, "%s", src->corpus->domains[i].name);
    return s;
}

/* ------------------------------------------------------------------ the existing file */

static mu_status open_old(old_file *s, mu_error *e) {
    mu_status status = mu_statistics_open(&s->old, s->path, true, e);
    s->foreign = status == MU_STATUS_DATA || (status == MU_STATUS_OK && !mu_statistics_same_shape(&s->old->shape, &s->shape));
    if (status == MU_STATUS_NOINPUT || s->foreign) {
        mu_statistics_close(s->old);
        s->old = NULL;
        return MU_STATUS_OK;
    }
    return status;
}

static mu_status read_records(old_file *s, mu_error *e) {
    int64_t invalid = 0;
    s->kept = mu_alloc((size_t)s->old->n, sizeof *s->kept);
    for (int64_t i = 0; i < s->old->n; i++) {
        bool valid;
        mu_activity_tick();
        mu_status status = mu_statistics_read(s->old, i, &valid, e);
        if (status != MU_STATUS_OK) return status;
        if (valid && s->old->step > s->step) s->beyond++;
        else if (valid && (!s->n || s->old->step > s->kept[s->n - 1].step)) {
            s->kept[s->n++] = (kept_record){ i, s->old->step };
            s->invalid = invalid + s->beyond; /* steps must increase: newer ones before this record are invalid */
        } else invalid++;
    }
    return MU_STATUS_OK;
}

static void count_missing(old_file *s) {
    int64_t at = 0;
    for (int64_t i = 0; i < s->logged->n; i++) {
        while (at < s->n && s->kept[at].step < s->logged->step[i]) at++;
        s->missing += at == s->n || s->kept[at].step != s->logged->step[i];
    }
}

/* ------------------------------------------------------------------ a new file of kept and rebuilt records */

typedef struct {
    old_file *s;
    mu_statistics *to;
    mu_lines lines;
    int64_t *loads;     /* [MoE layers, experts] */
} merge;

static mu_status copy_record(merge *m, int64_t index, mu_error *e) {
    mu_statistics *old = m->s->old;
    bool valid;
    mu_status status = mu_statistics_read(old, index, &valid, e);
    if (status == MU_STATUS_OK && !valid) status = mu_error_set(e, MU_STATUS_IO, "%s changed while being read", old->path);
    if (status != MU_STATUS_OK) return status;
    const int64_t *counts = old->counts;
    int64_t D = m->s->shape.domains, pairs = m->s->shape.layers * m->s->shape.experts;
    for (int64_t i = 0; i < pairs && !old->by_domain; i++) m->loads[i] = counts[i * D];
    return mu_statistics_append(m->to, old->step, old->by_domain, old->by_domain ? counts : m->loads, e);
}

/* Finds the training line of the step, which is further on in metrics.jsonl; all its lines are valid now. */
static mu_status take_line(merge *m, int64_t step, mu_error *e) {
    bool found = false;
    while (!found && mu_lines_next(&m->lines)) {
        mu_line line;
        found = mu_line_read(&m->lines, &line) && line.step == step && line.kind == MU_LINE_TRAINING &&
                mu_metrics_read_loads(m->s->src, line.json, m->loads);
        json_decref(line.json);
    }
    if (!found) return mu_error_set(e, MU_STATUS_IO, "%s changed while being read", m->s->metrics_path);
    return mu_statistics_append(m->to, step, false, m->loads, e);
}

static mu_status merge_all(merge *m, mu_error *e) {
    const old_file *s = m->s;
    mu_status status = MU_STATUS_OK;
    int64_t at = 0;
    for (int64_t i = 0; i < s->logged->n && status == MU_STATUS_OK; i++) {
        int64_t step = s->logged->step[i];
        for (; at < s->n && s->kept[at].step < step && status == MU_STATUS_OK; at++) status = copy_record(m, s->kept[at].index, e);
        if (status != MU_STATUS_OK) break;
        if (at < s->n && s->kept[at].step == step) status = copy_record(m, s->kept[at++].index, e);
        else status = take_line(m, step, e);
    }
    for (; at < s->n && status == MU_STATUS_OK; at++) status = copy_record(m, s->kept[at].index, e);
    return status;
}

static mu_status write_file(void *context, const char *path, mu_error *e) {
    old_file *s = context;
    merge m = { .s = s, .loads = mu_alloc((size_t)(s->shape.layers * s->shape.experts), sizeof *m.loads) };
    mu_status status = mu_statistics_create(&m.to, path, &s->shape, e);
    if (status == MU_STATUS_OK && s->missing) status = mu_lines_open(&m.lines, s->metrics_path, MU_LINES_METRICS, e);
    if (status == MU_STATUS_OK) status = merge_all(&m, e);
    mu_status closed = mu_lines_close(&m.lines, status == MU_STATUS_OK ? e : NULL);
    if (status == MU_STATUS_OK) status = closed;
    if (status == MU_STATUS_OK) status = mu_statistics_sync(m.to, e);
    mu_statistics_close(m.to);
    free(m.loads);
    return status;
}

/* Replaces the file; the old one is moved aside. */
static mu_status replace(old_file *s, mu_error *e) {
    char *aside;
    mu_status status = mu_file_rewrite(s->path, write_file, s, &aside, e);
    if (status != MU_STATUS_OK || !aside) return status;
    if (s->foreign) mu_log(MU_LOG_WARNING, "%s is not of this run, or its header is damaged: moved aside to %s", s->path, aside);
    else
        mu_run_warn_rewritten(&(mu_rewritten){ .path = s->path, .names = aside, .parts = "records", .step = s->step,
                                    .damaged = s->missing > s->invalid ? s->missing : s->invalid,
                                    .all = s->old->n > s->logged->n ? s->old->n : s->logged->n,
                                    .detail = " or missing (the loads of those steps are taken from metrics.jsonl)" });
    free(aside);
    return MU_STATUS_OK;
}

static mu_status resume(old_file *s, mu_error *e) {
    mu_status status = open_old(s, e);
    if (status == MU_STATUS_OK && s->old) status = read_records(s, e);
    if (status != MU_STATUS_OK) return status;
    count_missing(s);
    bool rewrite = !s->old || s->invalid || s->missing || (s->beyond && mu_run_rewinds(s->src)) || (!s->step && s->old->n);
    if (rewrite) return replace(s, e);
    bool longer = s->old->n > s->n || s->old->rest;
    return longer ? mu_statistics_cut(s->old, s->n, e) : MU_STATUS_OK;
}

mu_status mu_statistics_resume(mu_statistics **out, const char *path, const char *metrics_path, const mu_log_source *src,
                               const mu_logged_steps *logged, mu_error *e) {
    old_file s = { .src = src, .path = path, .metrics_path = metrics_path, .logged = logged, .step = mu_run_resume_step(src),
                   .shape = shape_of(src) };
    const char *reason = mu_file_not_plain(path);
    mu_status status = reason ? mu_error_set(e, MU_STATUS_IO, "%s %s; move it out of the way", path, reason) : resume(&s, e);
    mu_statistics_close(s.old);
    free(s.kept);
    mu_statistics_shape_free(&s.shape);
    return status == MU_STATUS_OK ? mu_statistics_open(out, path, true, e) : status;
}
