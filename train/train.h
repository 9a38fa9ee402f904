/* train.h - the program: what its files share. One file per sub-command (cmd_*.c); the training loop in loop.c, on what
 * training.h declares; checkpoints, metrics and the run folder beside it. */
#ifndef MUSTER_TRAIN_H
#define MUSTER_TRAIN_H
#include "train/config.h"
#include "train/statistics.h"

/* ------------------------------------------------------------------ the texts of a run (texts.c) */
typedef struct {
    const mu_tokenizer *tokenizer;  /* borrowed */
    mu_corpus corpus;
    mu_loader *loader;
    mu_val_split val_split;         /* a resumed run keeps the one it had */
    int64_t seq_len;
} mu_texts;
/* Reads the texts of cfg->data; the ranks agree on the status and on what they read. mu_texts_close may follow any outcome.
 * Collective over `world`. */
mu_status mu_texts_open(mu_texts *t, const mu_config *cfg, const mu_tokenizer *tokenizer, mu_val_split split, mu_comm *world,
                        mu_error *e) MU_MUST_USE;
void mu_texts_close(mu_texts *t);
bool mu_texts_validate(const mu_texts *t);      /* has any domain a validation text? */

/* ------------------------------------------------------------------ the state of a run: what a checkpoint holds
 * All borrowed. The ranks of `mesh` hold it together. */
typedef struct {
    mu_mesh *mesh;
    int64_t step;                   /* finished optimizer steps */
    mu_model *model;
    mu_optimizer *opt;              /* NULL: a model that is not trained; only its weights are loaded */
    mu_routing_stats *stats;        /* NULL without an optimizer, like loader */
    mu_loader *loader;              /* NULL: its state is checked when it is loaded, and not kept */
} mu_train_state;

/* Values of one step, the same on every rank. */
typedef struct {
    mu_loss_values values;
    double lr;
    bool stop;                      /* some rank was asked to stop by a signal */
    bool interrupted;               /* so much so that the step was given up: nothing has changed */
    bool finite;
    double seconds, comm_seconds;
} mu_step_result;

/* How the global batch is cut for so many ranks: into micro-batches, of which each rank has micro_size sequences (batches.c). */
mu_batch_shape mu_batch_shape_of(const mu_config *cfg, int ranks);
int64_t mu_batch_micro_size(const mu_batch_shape *s, int ranks);

/* ------------------------------------------------------------------ evaluation (evaluate.c) */
typedef struct {
    int64_t tokens, bytes;
    double ce;                      /* nats a token */
    double bits_per_byte;
    double unigram;                 /* nats per token: entropy of the token frequencies */
} mu_domain_loss;
/* What an evaluation computes with; borrowed. */
typedef struct {
    mu_model *model;
    mu_tape *tape;
    const mu_texts *texts;
    mu_comm *batch;                 /* the ranks that share the sequences */
    int64_t at_once;                /* sequences that a rank computes at once; no result depends on it */
} mu_evaluation;
/* Validation loss of every domain, `most` sequences each (0: all); results [n_domains], the same on every rank, with
 * tokens 0 for a domain without validation text. Returns the mean over the others, weighted by their training shares;
 * NAN when there are none. Collective over `batch`. */
double mu_evaluate(const mu_evaluation *ev, int64_t most, mu_domain_loss *results);

/* ------------------------------------------------------------------ checkpoints (checkpoint.c, manifest.c)
 * RUN/checkpoints/step-N/: manifest.json, shard-0000.h5, ... Committed by renaming step-N.tmp. */
enum { MU_SHARD_NAME = 32 };
typedef struct { char name[MU_SHARD_NAME]; int64_t bytes; char hash[33]; } mu_shard;
void mu_shard_name(int shard, char name[MU_SHARD_NAME]);           /* shard-0000.h5 */
typedef struct {
    char path[768];                 /* of the checkpoint's folder */
    int64_t step;
    int version;                    /* of the format */
    int ranks, ep;
    char dtype[8];
    char *config;                   /* YAML */
    mu_config cfg;                  /* the same, read; of a manifest that was read */
    char fingerprint[33], tokenizer[32];
    char tokenizer_fingerprint[33]; /* "": a checkpoint of an older version, which has none */
    mu_val_split val_split;
    int n_shards;
    mu_shard *shards;
    int n_tensors;
    struct { char name[112]; int shard; } *tensors;     /* sorted by name */
} mu_manifest;
mu_status mu_manifest_read(mu_manifest *m, const char *checkpoint, mu_error *e) MU_MUST_USE;
mu_status mu_manifest_write(const mu_manifest *m, const char *folder, mu_error *e) MU_MUST_USE;
void mu_manifest_free(mu_manifest *m);
int  mu_manifest_find(const mu_manifest *m, const char *tensor);    /* shard, or -1 */
/* Sizes and hashes of all shards, or of those with number % of == part. MU_STATUS_DATA names the first damage. Local. */
mu_status mu_manifest_verify(const mu_manifest *m, int part, int of, mu_error *e) MU_MUST_USE;

/* The name of a checkpoint's folder, step-00000200, and where it stands in a run; heap. Only a name that is written so
 * counts: a folder step-200 or step-+200 is somebody else's. */
enum { MU_CHECKPOINT_NAME = 32 };
void mu_checkpoint_name(int64_t step, char name[MU_CHECKPOINT_NAME]);
char *mu_checkpoint_path(const char *run, int64_t step);
bool mu_checkpoint_step(const char *path, int64_t *step);           /* does the path end in such a name? */

/* Writes checkpoint `t->step` of the run that cfg and texts describe into cfg->run.dir, and removes what `keep` no longer
 * wants. Collective, agreed. */
mu_status mu_checkpoint_save(mu_train_state *t, const mu_config *cfg, const mu_texts *texts, mu_error *e) MU_MUST_USE;
/* Newest checkpoint of the run whose manifest, hashes (the shards shared out over the ranks) and state are sound; passes over
 * others with a warning. *found false: there is none at all. MU_STATUS_DATA when there are some and none
 * is. `path` may also name one checkpoint. Collective, agreed. */
mu_status mu_checkpoint_find(mu_comm *world, const char *path, mu_manifest *m, bool *found, mu_error *e) MU_MUST_USE;
/* Does the path name one checkpoint, whether or not that is sound? Local. */
bool mu_checkpoint_named(const char *path);
/* The error for a path that is there and holds no checkpoint: a run without any, or something else. Local. */
mu_status mu_checkpoint_missing(const char *path, mu_error *e) MU_MUST_USE;
/* Steps of the finished checkpoints of a run, newest first; heap, the caller frees. -1, with errno, when they are
 * there and cannot be read. Local. */
int mu_checkpoint_list(const char *run, int64_t **steps);
/* Renames the run's checkpoints beyond `step`, damaged or of a course that is left, to step-N.aside, so that they are never
 * taken for the newest. Collective, agreed. */
mu_status mu_checkpoint_set_aside(mu_comm *world, const char *run, int64_t step, mu_error *e) MU_MUST_USE;
/* After *m could not be loaded, for the reason in *e (MU_STATUS_DATA): says so and finds an older one, so that a checkpoint
 * that hashes right and says nonsense stops no run. Returns e's status where there is none, or `path` names one
 * checkpoint. Collective, agreed. */
mu_status mu_checkpoint_fall_back(mu_comm *world, const char *path, mu_manifest *m, mu_error *e) MU_MUST_USE;
/* Everything that *t has room for: the weights, and with an optimizer all that a resumed run needs. Every value is in its range
 * and the tokenizer is the checkpoint's, else MU_STATUS_DATA. Collective, agreed. */
mu_status mu_checkpoint_load(mu_train_state *t, const mu_manifest *m, const mu_tokenizer *tokenizer, mu_error *e) MU_MUST_USE;
/* The model, optimizer and statistics of a checkpoint's own configuration on the shape device, where no tensor's values are
 * computed or stored: loading into it checks the checkpoint. With `state` the state beside the tensors (step, loader, expert
 * statistics) is loaded. One rank. Local; mu_checkpoint_shape_close may follow any outcome. */
typedef struct {
    mu_tokenizer *tokenizer;
    mu_device *dev;
    mu_routing_stats *stats;
    mu_train_state t;
} mu_checkpoint_shape;
mu_status mu_checkpoint_shape_open(mu_checkpoint_shape *s, const mu_manifest *m, bool state, mu_error *e) MU_MUST_USE;
void mu_checkpoint_shape_close(mu_checkpoint_shape *s);
/* Hands every array that the checkpoint *m holds to the visitor: names, types and shapes, no values. Local. */
mu_status mu_checkpoint_visit(const mu_manifest *m, mu_state_visitor *v, mu_error *e) MU_MUST_USE;
/* The content of a checkpoint whose hashes are right, loaded so; without `tensors` only the state. MU_STATUS_DATA says what
 * no run writes. Local. */
mu_status mu_checkpoint_check(const mu_manifest *m, bool tensors, mu_error *e) MU_MUST_USE;
/* May this configuration go on from that checkpoint? MU_STATUS_CONFIG lists what may not change; *notes
 * (heap, may be NULL) what did change. Local. */
mu_status mu_checkpoint_compare(const mu_config *cfg, const mu_corpus *corpus, const mu_manifest *m, char **notes,
                                mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ the run folder (run_folder.c) */
/* The lock of a run folder (lock.c), for rank 0. Local. */
typedef struct mu_lock mu_lock;
/* Waits up to 10 s for another job. CONFIG when it stays, REQUEUE when it is what a killed mpirun left behind. *l is to be
 * released whatever the outcome. */
mu_status mu_lock_take(mu_lock **l, const char *dir, mu_error *e) MU_MUST_USE;
/* Is the folder still this job's? Puts back a lock file that was removed; CONFIG, with the reason, when another job took the
 * folder over, when the path leads to no or another folder, and when the file is not muster's. */
mu_status mu_lock_check(mu_lock *l, mu_error *e) MU_MUST_USE;
void mu_lock_release(mu_lock *l);
/* Whether a job has the folder, without taking or waiting for anything. ABANDONED: the one that had it was killed. */
typedef enum { MU_LOCK_FREE, MU_LOCK_HELD, MU_LOCK_ABANDONED } mu_lock_state;
mu_lock_state mu_lock_look(const char *dir);
/* What is there where a plain file should be, "a link"; NULL for a plain file and for nothing. Local. */
const char *mu_not_plain(const char *path);

/* Makes the folder, takes its lock (*lock on rank 0, see above), and proves that it is the same folder on every rank and
 * can be written: an error here costs no steps. CONFIG where a file of a run's names is not a run's. Collective, agreed. */
mu_status mu_run_claim(const mu_config *cfg, const mu_mesh *mesh, mu_lock **lock, mu_error *e) MU_MUST_USE;
/* config.resolved.yaml and run.json of a job that begins after `step` steps. Collective, agreed. */
mu_status mu_run_describe(const mu_config *cfg, const mu_mesh *mesh, const mu_device *dev, const mu_corpus *corpus, int64_t step,
                          int argc, char **argv, mu_error *e) MU_MUST_USE;
/* To an error about other texts than those of *m: the domains that changed, where the run.json of *m's run tells. Local. */
void mu_run_name_changes(const mu_corpus *corpus, const mu_manifest *m, mu_error *e);

/* ------------------------------------------------------------------ what the user sees (metrics.c, metrics_resume.c, progress.c) */
/* The run that metrics and statistics are of; borrowed. */
typedef struct {
    const mu_config *cfg;
    const mu_corpus *corpus;
    const mu_train_state *state;
    double peak_flops;              /* of all ranks together; 0: unknown */
} mu_log_source;
/* The steps of the training lines in metrics.jsonl; heap. */
typedef struct { int64_t n, *step; } mu_logged_steps;
/* The end of every line of metrics.jsonl, its last key and bracket: XXH3-64 of all bytes of the line before. */
enum { MU_CHECKSUM_BYTES = 27 };
void mu_metrics_checksum(const char *line, size_t bytes, char text[MU_CHECKSUM_BYTES + 1]);
/* Leaves in the file of an earlier job the sound lines up to the state's step, of which *logged tells. Where anything else is lost than lines
 * beyond it, whose steps are made again, and one that a kill tore, both files are kept aside with a warning; where a
 * checkpoint beyond it is there, and another course starts here, those lines, too. *ended false: the last line lacks its
 * newline. IO when it is no plain file. Local. */
mu_status mu_metrics_cut_back(const char *path, const char *routing_path, const mu_log_source *src, mu_logged_steps *logged, bool *ended,
                              mu_error *e) MU_MUST_USE;
/* The same for statistics.rec, after it: opens it for appending, with a record of each logged step; what the file lacks is taken from
 * the lines of metrics.jsonl. Local. */
mu_status mu_statistics_resume(mu_statistics **s, const char *path, const char *metrics_path, const mu_log_source *src,
                               const mu_logged_steps *logged, mu_error *e) MU_MUST_USE;
/* A warning that a file of an earlier job was written anew, and why: damaged parts (`damaged` of `all`), an earlier job of which there is no
 * checkpoint (step 0), or parts newer than the resume step. names: what was there is kept under. Local. */
typedef struct {
    const char *path, *names, *parts;               /* parts: "lines" */
    int64_t step, damaged, all;
    const char *detail;                             /* of the damage */
} mu_kept;
void mu_run_say_kept(const mu_kept *k);
/* Is a course left at the state's step, of which there are checkpoints beyond it? They and what belongs to their steps are kept. Local. */
bool mu_run_leaves_course(const mu_log_source *src);

typedef struct mu_metrics mu_metrics;
/* Opens metrics.jsonl for appending after mu_metrics_cut_back, and statistics.rec after mu_statistics_resume; before mu_checkpoint_set_aside. Rank 0 only. */
mu_status mu_metrics_open(mu_metrics **m, const mu_log_source *src, mu_error *e) MU_MUST_USE;
mu_status mu_metrics_step(mu_metrics *m, const mu_log_source *src, const mu_step_result *r, double tokens_per_s, mu_error *e) MU_MUST_USE;
mu_status mu_metrics_eval(mu_metrics *m, const mu_log_source *src, double mean, const mu_domain_loss *results, mu_error *e) MU_MUST_USE;
/* Metrics so far onto the disk, before a checkpoint counts that covers them. */
mu_status mu_metrics_sync(mu_metrics *m, mu_error *e) MU_MUST_USE;
/* routing.h5 anew. It can be made again: that it cannot be written is a warning. Where that takes more than a second it is done
 * less often than it is asked for, but for the `last` time. */
void mu_metrics_write_routing(mu_metrics *m, bool last);
void mu_metrics_close(mu_metrics *m);

typedef struct mu_progress mu_progress;
mu_progress *mu_progress_open(const mu_log_source *src);
void mu_progress_step(mu_progress *p, const mu_log_source *src, const mu_step_result *r, bool logged, double tokens_per_s);
void mu_progress_say(mu_progress *p, const char *fmt, ...) MU_PRINTF(2, 3);     /* a line of its own, above the bar */
void mu_progress_close(mu_progress *p);
/* The table people read; `most`: sequences of a domain that were evaluated, 0: all. */
void mu_print_domains(const mu_texts *texts, int64_t most, const mu_domain_loss *results);
void mu_print_expert_load(const mu_load_window *window, const int *layer_ids);
bool mu_due(int64_t every, int64_t step, int64_t last);     /* every: 0 is never; the last step always is otherwise */
double mu_kill_timeout(void);       /* seconds that mpirun leaves its ranks after a signal that ends it */

/* ------------------------------------------------------------------ measuring the machine (peak.c) */
/* Sets the threads of this rank: what the configuration asks for, within its share of the node's cores. Local. */
void mu_config_use_threads(const mu_train_config *cfg, const mu_mesh *mesh);
/* The device that train.device and train.dtype ask for, the same kind on every rank. Collective over the world. CONFIG
 * when some rank has none. */
mu_status mu_train_device_open(const mu_train_config *cfg, const mu_mesh *mesh, mu_device **dev, mu_error *e);

/* FLOP/s of this rank's fp32 matrix product (all ranks at once when called together); 0 on slow devices. */
double mu_peak_measure(mu_device *dev);

/* ------------------------------------------------------------------ faults for tests (fault.c)
 * MUSTER_FAULT=POINT:RANK:ACTION[:COUNT] in a build with -DMUSTER_FAULTS=ON: when this rank reaches the
 * point for the COUNT-th time (default 1), it is killed (`kill`), stops with SIGSTOP (`stop`), or the point
 * fails as if the disk were full (`enospc`: true is returned) or a weight turns into NaN (`nan`, at the point
 * `step`), or a rank leaves out a collective (`skip`, at the point `collective`). Elsewhere nothing happens. */
bool mu_fault(const char *point, int rank);
void mu_fault_nan(mu_model *model);             /* one weight of the last layer on this rank becomes NaN */

/* ------------------------------------------------------------------ sub-commands (cmd_*.c): the exit code */
int mu_cmd_train(int argc, char **argv);
int mu_cmd_eval(int argc, char **argv);
int mu_cmd_generate(int argc, char **argv);
int mu_cmd_inspect(int argc, char **argv);
int mu_cmd_verify(int argc, char **argv);
int mu_cmd_tokenize(int argc, char **argv);
/* Messages (messages.c): from the start they go to stderr; mu_report_error tells them the rank. */
void mu_messages_start(void);
int mu_messages_rank(void);
/* printf to stdout with what %s inserts escaped (mu_text_vformat): for all that may come from outside, such as paths and
 * what a checkpoint says of itself. */
void mu_print(const char *fmt, ...) MU_PRINTF(1, 2);
void mu_vprint(const char *fmt, va_list args) MU_PRINTF(1, 0);
void mu_print_text(const char *text);                   /* any length, its newlines and tabs as they are */
/* Prints an error once (rank 0), in the program's form, and returns the exit code. */
int mu_report_error(const mu_error *e, int rank);
/* For mu_watch_start: prints the report and ends every rank with MU_STATUS_INTERNAL. */
void mu_report_stall(const char *report);
/* A checkpoint's model with its weights, for eval and generate (open.c): the newest sound one of a run, or the one that `path`
 * names, with overrides of where and how it is computed. Collective over the mesh, agreed; mu_opened_close may follow any outcome. */
typedef struct {
    mu_manifest manifest;
    mu_config cfg;
    mu_tokenizer *tokenizer;
    mu_device *dev;
    mu_tape *tape;
    mu_train_state state;           /* the model; no optimizer */
} mu_opened;
mu_status mu_opened_open(mu_opened *o, mu_mesh *mesh, const char *path, int n_overrides, char *const *overrides, mu_error *e) MU_MUST_USE;
void mu_opened_close(mu_opened *o);
/* What a run on `mesh`, a planned one, would need: printed. Errors: of the tokenizer. Local. */
mu_status mu_dry_run(const mu_config *cfg, mu_mesh *mesh, mu_error *e) MU_MUST_USE;

#endif
