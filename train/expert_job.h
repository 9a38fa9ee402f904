/* expert_job.h - the parts of `muster expert`: its arguments (expert_arguments.c), the checkpoint it works on (expert_job.c), and one file for
 * each kind of operation. cmd_expert.c puts them together. All functions are Local. */
#ifndef MUSTER_TRAIN_EXPERT_JOB_H
#define MUSTER_TRAIN_EXPERT_JOB_H
#include "train/surgery.h"

typedef struct { int layer, expert; } mu_place;     /* the model's layer number; -1: not given */

typedef struct {
    const char *what;               /* "list", ... */
    char *path, *out;               /* out NULL: not given */
    const char *from, *by;
    mu_place at, slot;
    int64_t keep, heal;             /* -1: not given */
    int force;                      /* how often it was given */
    bool dry_run, undo;
    int n_overrides;
    char **overrides;
} mu_expert_arguments;
/* USAGE, NOINPUT: why they are of no use. mu_expert_arguments_free may follow any outcome. */
mu_status mu_expert_arguments_read(mu_expert_arguments *a, int argc, char **argv, mu_error *e) MU_MUST_USE;
void mu_expert_arguments_free(mu_expert_arguments *a);
bool mu_expert_is(const mu_expert_arguments *a, const char *what);      /* is it this operation? */

/* A checkpoint, and where it is possible its model and texts. */
typedef struct {
    const mu_expert_arguments *a;
    mu_mesh *mesh;
    mu_manifest m;
    mu_surgery s;
    mu_inference o;
    mu_texts texts;
    mu_evaluation ev;
    bool live;                      /* ev can be used */
    char shared_hash[33];           /* of all parameters but those of the experts; "": not computed yet */
    char *folder;                   /* of the result, while it is being written; NULL: nothing is written */
} mu_expert_job;

const mu_train_state *mu_job_state(const mu_expert_job *j);
int64_t mu_job_experts(const mu_expert_job *j);         /* of each MoE layer */
/* Number among the MoE layers; -1 with an error when there is no such expert. */
int mu_job_moe(const mu_expert_job *j, mu_place p, mu_error *e);
int64_t mu_job_cell(const mu_expert_job *j, int moe, int expert);       /* of an expert, in arrays [MoE layers, experts] */
mu_expert_state mu_job_expert_state(const mu_expert_job *j, int64_t cell);
char *mu_job_archives(const mu_manifest *m);            /* the folder of the run's archives, heap; NULL: it is not in a run */
/* The model and its texts; without `needed` it is enough to say that they are not there. */
mu_status mu_job_open_live(mu_expert_job *j, bool needed, mu_error *e) MU_MUST_USE;
/* An expert as it stands, with all that is known of it. mu_archive_free may follow any outcome. */
mu_status mu_job_record(mu_expert_job *j, mu_archive *a, mu_place p, int moe, bool samples, mu_error *e) MU_MUST_USE;
void mu_job_tell_fisher(const mu_archive *a);           /* which part of the expert matters to its domain, where it is known */
/* Before anything overwrites the expert: its record, read back and compared. A dry run overwrites nothing. */
mu_status mu_job_archive_first(mu_expert_job *j, mu_place p, bool samples, mu_error *e) MU_MUST_USE;
/* The state of an expert whose weights are now others: nothing is known of it. */
void mu_job_forget(mu_expert_job *j, int moe, int expert);
/* CONFIG unless the expert has no knowledge of its own: only such a one may be replaced. */
mu_status mu_job_may_replace(const mu_expert_job *j, mu_place p, int moe, bool also_overwritten, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ operations */
typedef mu_status mu_expert_operation(mu_expert_job *j, mu_error *e);
mu_expert_operation mu_expert_list;                                     /* expert_list.c */
mu_expert_operation mu_expert_restore;                                  /* expert_restore.c */
mu_expert_operation mu_expert_reseed, mu_expert_duplicate;              /* expert_copy.c */
mu_expert_operation mu_expert_prune;                                    /* expert_prune.c */

#endif
