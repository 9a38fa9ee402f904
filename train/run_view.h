/* run_view.h - read-only view of a run folder, of a running, finished or killed job. */
#ifndef MUSTER_TRAIN_RUN_VIEW_H
#define MUSTER_TRAIN_RUN_VIEW_H
#include "train/lines.h"
#include "train/train.h"

/* The loads of a training line, [MoE layers, experts]; false when they are not those of a step of this model (their sum is known). Local. */
bool mu_metrics_read_loads(const mu_log_source *src, const json_t *line, int64_t *loads);

/* ------------------------------------------------------------------ a run (run_view.c) */
typedef enum {
    MU_RUN_RUNNING,         /* a job holds its lock */
    MU_RUN_FINISHED,        /* its newest checkpoint is of the last step, train.steps */
    MU_RUN_STOPPED,         /* ended in order before that */
    MU_RUN_CRASHED          /* its job was killed: the lock still names it */
} mu_run_state;
typedef struct {
    char *dir;
    mu_run_state state;
    bool moved;             /* or copied: run.json names another folder. False for runs of older versions */
    char *config_text;      /* config.resolved.yaml */
    mu_config cfg;          /* the same, parsed */
    json_t *facts;          /* run.json, an object */
    int n_checkpoints;
    int64_t *checkpoints;   /* [n_checkpoints]: their steps, newest first; not verified */
} mu_run_view;
/* NOINPUT: no such folder, or it has no config.resolved.yaml or run.json; DATA, CONFIG: one of them is invalid. Local;
 * mu_run_view_close may follow any outcome. */
mu_status mu_run_view_open(mu_run_view *v, const char *dir, mu_error *e) MU_MUST_USE;
void mu_run_view_close(mu_run_view *v);
const char *mu_run_state_name(mu_run_state state);
/* The numbers of the MoE layers, layer [model.num_layers]; returns how many, 0 for a dense model. */
int64_t mu_run_moe_layers(const mu_run_view *v, int64_t *layer);

/* The valid lines of its metrics.jsonl, one by one, as far as they are written now:
 *     mu_run_metrics m;
 *     status = mu_run_metrics_open(&m, &view, e);
 *     while (status == MU_STATUS_OK && mu_run_metrics_next(&m)) use(m.step, m.line);
 *     status = mu_run_metrics_close(&m, status, e); */
typedef struct {
    char *path;
    mu_lines lines;
    int64_t skipped;        /* invalid lines; one that is being written is not counted */
    int64_t step;           /* of the current line */
    mu_line_kind kind;
    json_t *line;           /* an object without the checksum, valid until the next call */
} mu_run_metrics;
mu_status mu_run_metrics_open(mu_run_metrics *m, const mu_run_view *v, mu_error *e) MU_MUST_USE;
bool mu_run_metrics_next(mu_run_metrics *m);
/* After mu_run_metrics_next returned false: may it be called again, for lines written since? False: open the file anew. */
bool mu_run_metrics_follow(mu_run_metrics *m);
/* The same for its events.jsonl, with mu_run_metrics_next and _close; NOINPUT where there is none (a dense model, an older run). */
mu_status mu_run_events_open(mu_run_metrics *m, const mu_run_view *v, mu_error *e) MU_MUST_USE;
/* Returns `status` if it is an error, else that of reading. */
mu_status mu_run_metrics_close(mu_run_metrics *m, mu_status status, mu_error *e) MU_MUST_USE;

/* Its statistics.rec, for mu_statistics_read; NOINPUT where there is none (a dense model, an older run). */
mu_status mu_run_statistics_open(mu_statistics **s, const mu_run_view *v, mu_error *e) MU_MUST_USE;

#endif
