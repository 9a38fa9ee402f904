/* train.h - interfaces shared within the program. One file per sub-command (cmd_*.c); the training loop is in loop.c, its
 * parts in training.h; checkpoints, metrics and the run folder in files of their own. A run belongs to a batch group (dist.h):
 * functions are Collective over it, and its first rank, called rank 0 here, writes. */
#ifndef MUSTER_TRAIN_H
#define MUSTER_TRAIN_H
#include "train/config.h"
#include "train/lines.h"
#include "train/statistics.h"

/* ------------------------------------------------------------------ the texts of a run (texts.c) */
typedef struct {
    const mu_tokenizer *tokenizer;  /* borrowed */
    mu_corpus corpus;
    mu_loader *loader;
    mu_val_split val_split;         /* a resumed run keeps its split */
    int64_t seq_len;
} mu_texts;
/* Reads the texts of cfg->data; the ranks agree on the status and verify that their texts are equal. mu_texts_close may follow any outcome.
 * Collective over `batch`. */
mu_status mu_texts_open(mu_texts *t, const mu_config *cfg, const mu_tokenizer *tokenizer, mu_val_split split, mu_comm *batch,
                        mu_error *e) MU_MUST_USE;
/* Texts that are not divided into training and validation, without a loader: of this list, with cfg's sequence length and cache. DATA
 * when one is shorter than a sequence. */
mu_status mu_texts_open_whole(mu_texts *t, const mu_config *cfg, const mu_option_domains *list, const mu_tokenizer *tokenizer, mu_comm *world,
                              mu_error *e) MU_MUST_USE;
void mu_texts_close(mu_texts *t);
/* The sequences on which a model is evaluated: the validation sequences, or all of texts without a loader. */
int64_t mu_texts_sequences(const mu_texts *t, int domain);
void mu_texts_read(const mu_texts *t, int domain, int64_t sequence, int32_t *tokens, int32_t *targets);
bool mu_texts_have_validation(const mu_texts *t);      /* does any domain have validation sequences? */

/* ------------------------------------------------------------------ the tokenizer of a run (run_tokenizer.c). Local
 * The caller closes what is opened; *t is NULL after an error. */
/* Rows of the embedding and the head: model.vocab_size, or the ids of the tokenizer. When that has more: DATA for those of existing weights
 * (`trained`, or the option was not given), else CONFIG. */
mu_status mu_vocab_rows(const mu_config *cfg, const mu_tokenizer *t, bool trained, int64_t *rows, mu_error *e) MU_MUST_USE;
/* Opens the run's copy, RUN/tokenizer.json, or, if that is missing or another one, the file of the configuration. With a name and
 * fingerprint ("": any) it must be that tokenizer: DATA. NOINPUT: there is neither file. */
mu_status mu_run_tokenizer_open(mu_tokenizer **t, const char *run, const char *configured, const char *name, const char *fingerprint,
                                mu_error *e) MU_MUST_USE;
/* Writes the copy, unless it is there; nothing for a built-in tokenizer. */
mu_status mu_run_keep_tokenizer(const char *run, const mu_tokenizer *t, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ phases of the mixture (phases.c). Local; texts: heap */
/* One line per phase, with its weights; "" without phases. last: train.steps. */
char *mu_phases_text(const mu_data_config *d, int64_t last);
/* Where a phase begins with this step, other than the first: a line that says what changes. Else NULL. */
char *mu_phase_begins(const mu_data_config *d, int64_t step);
/* The first of these steps that draws its samples with other weights in `a` than in `b`; 0: none. Both have the same domains. */
int64_t mu_phases_differ(const mu_data_config *a, const mu_data_config *b, int64_t steps);

/* The checkpoint that a run was forked from (train --fork). checkpoint "": none. */
typedef struct {
    char run[1024], checkpoint[1024];   /* folders; run "": not in a run folder */
    int64_t step;
    int64_t tokens;                 /* seen until then, by its run and those before it */
    char manifest_hash[33];
} mu_parent;
/* The parents before it, when it was forked itself: the latest first; of more than MU_ANCESTORS the latest. */
enum { MU_ANCESTORS = 15 };
typedef struct { int n; mu_parent list[MU_ANCESTORS]; } mu_ancestors;
int64_t mu_tokens_seen(const mu_config *cfg, const mu_parent *p, int64_t step);     /* by a run and those before it */
/* Where the first weights came from (train --init-from). path "": they were random. */
typedef struct {
    char path[1024];                /* of a checkpoint, or of a folder of safetensors */
    int64_t step;                   /* of the checkpoint; 0: safetensors */
    char manifest_hash[33];         /* of the checkpoint; "": safetensors */
} mu_origin;
/* What `muster expert` did to a checkpoint, or to those before it: of more than MU_EDITS the latest, the last one last. */
typedef struct {
    char what[16];                  /* "restore", ... */
    int layer, expert;              /* the model's layer number; -1: several */
    char detail[256];               /* "expert 3 of archive/...", or "" */
    char checkpoint[1024];          /* that was changed */
    int64_t step;                   /* of it */
    char manifest_hash[33];
} mu_edit;
enum { MU_EDITS = 16 };
typedef struct { int n; mu_edit list[MU_EDITS]; } mu_edits;

/* ------------------------------------------------------------------ the state of a run, as kept in checkpoints
 * Does not own its parts: the struct that contains it (mu_training, mu_inference, mu_checkpoint_shape) frees them
 * when it closes. Each rank of `mesh` holds its part of the state. */
typedef struct {
    mu_mesh *mesh;
    int64_t step;                   /* finished optimizer steps */
    mu_parent parent;
    mu_origin origin;
    mu_ancestors ancestors;
    mu_edits edits;
    mu_model *model;
    mu_optimizer *opt;              /* NULL: inference; only the weights are loaded */
    mu_anchor *anchor;              /* of absent domains; NULL: none */
    mu_routing_stats *stats;        /* NULL without an optimizer, like knowledge and loader */
    mu_knowledge *knowledge;
    mu_loader *loader;              /* NULL: its state is checked while loading, and not kept */
} mu_train_state;

/* Values of one step, the same on every rank. */
typedef struct {
    mu_loss_values values;
    double lr;
    bool stop;                      /* some rank received a stop signal */
    bool interrupted;               /* the step was abandoned because of it: nothing has changed */
    bool finite;
    double seconds, comm_seconds;
    bool absent;                    /* is a domain absent that may be replayed? */
    int64_t replayed;               /* the samples of such domains */
} mu_step_result;

/* Split of the global batch into micro-batches, each with micro_size sequences per rank (batches.c). */
mu_batch_shape mu_batch_shape_of(const mu_config *cfg, int ranks);
int64_t mu_batch_micro_size(const mu_batch_shape *s, int ranks);

/* ------------------------------------------------------------------ routing records (routing_record.c)
 * Files of the experts of every token, of an evaluation or of training steps; the format is in docs/experts.md. All functions are
 * Collective over `batch` unless marked. */
typedef struct mu_routing_record mu_routing_record;
/* What must be the same for a replay, as lines of text, heap. kind: "training"; `more`: further lines. Local. */
char *mu_routing_record_about(const mu_config *cfg, const mu_model *m, const mu_corpus *corpus, const char *kind, const char *more);
typedef enum { MU_ROUTING_RECORD, MU_ROUTING_CONTINUE, MU_ROUTING_REPLAY } mu_routing_record_mode;
/* Begins a new file, which gets its name when it is complete, or opens one to replay it. CONTINUE: an existing record is replaced by the
 * new one, into which mu_routing_record_copy takes its arrays. USAGE: the file exists, or the model is dense; NOINPUT: no such file; DATA:
 * not a routing record, or of something else. Agreed. mu_routing_record_close may follow any outcome. */
mu_status mu_routing_record_open(mu_routing_record **r, const char *path, mu_routing_record_mode mode, const mu_model *m, int64_t seq_len,
                                 mu_comm *batch, const char *about, mu_error *e) MU_MUST_USE;
/* Copies the array, if the continued record has it. Rank 0. */
mu_status mu_routing_record_copy(mu_routing_record *r, const char *name, int64_t sequences, mu_error *e) MU_MUST_USE;
/* Rank 0. */
bool mu_routing_record_has(const mu_routing_record *r, const char *name);
/* Checks before a replay that the file has this array, of so many sequences. Rank 0. */
mu_status mu_routing_record_expect(mu_routing_record *r, const char *name, int64_t sequences, mu_error *e) MU_MUST_USE;
/* Completes a new file. Returns so_far, or if that is OK the first failure of reading and writing, or of closing. r may be NULL. Agreed. */
mu_status mu_routing_record_close(mu_routing_record *r, mu_status so_far, mu_error *e) MU_MUST_USE;
/* The first failure of reading and writing so far. Local. */
mu_status mu_routing_record_status(const mu_routing_record *r, mu_error *e) MU_MUST_USE;
void mu_routing_record_print(const char *replay, const char *record);   /* a line for each file that is given. Local */
/* Sequences first .. first + n - 1 of the array `name`, which has `total`. Of this block this rank has `own`, at offset, offset + stride, ... */
typedef struct { const char *name; int64_t total, first, n, offset, stride, own; } mu_routing_block;
/* own: U16 [own, S, MoE layers, K]. read: false after a failure. */
void mu_routing_record_write(mu_routing_record *r, const mu_routing_block *b, const uint16_t *own);
bool mu_routing_record_read(mu_routing_record *r, const mu_routing_block *b, uint16_t *own);
/* The ids [tokens, MoE layers, K] of a forward pass, and the mask with which it chooses them again. Local. */
void mu_routing_ids(const mu_model *m, const mu_routing *routings, int64_t tokens, uint16_t *ids);
mu_expert_mask mu_routing_ids_mask(const mu_model *m, mu_tape *tp, int64_t tokens, const uint16_t *ids);

/* ------------------------------------------------------------------ evaluation (evaluate.c) */
typedef struct {
    int64_t tokens, bytes;
    double ce;                      /* nats per token */
    double bits_per_byte;
    double unigram;                 /* nats per token: entropy of the token frequencies */
} mu_domain_loss;
/* Parts that an evaluation uses; borrowed. */
typedef struct {
    mu_model *model;
    mu_tape *tape;
    const mu_texts *texts;
    mu_comm *batch;                 /* the ranks that share the sequences */
    int64_t at_once;                /* batch size per rank; does not change results */
    mu_expert_mask expert_mask;     /* of one row; values NULL: none */
    mu_routing_record *record, *replay;     /* to write, and to read; or NULL */
} mu_evaluation;
/* Name of a domain's array in a routing record, heap. Local. */
char *mu_evaluation_array(const mu_evaluation *ev, int domain);
int64_t mu_evaluation_sequences(const mu_evaluation *ev, int domain, int64_t most);     /* that are evaluated. Local */
/* Validation loss of every domain, at most `most` sequences each (0: all); results [n_domains], the same on every rank, with
 * tokens 0 for a domain without validation text. Returns the mean over the others, weighted by their training shares;
 * NAN when there are none. Collective over `batch`. */
double mu_evaluate(const mu_evaluation *ev, int64_t most, mu_domain_loss *results);

/* ------------------------------------------------------------------ what experts know (probe.c, metrics_knowledge.c) */
typedef struct mu_probe mu_probe;
/* The probe: the first sequences of each domain (mu_texts_sequences), of about `tokens` tokens (stats.probe_tokens), at least one where there
 * are any. keep_bytes: memory that a measurement may take for the inputs of layers, so that passes with a masked expert begin at its layer;
 * results do not depend on it. `ev` is copied, its parts are borrowed; the caller frees it. Local. */
enum { MU_PROBE_KEEP_BYTES = 128 << 20 };
mu_probe *mu_probe_new(const mu_evaluation *ev, int64_t tokens, int64_t keep_bytes);
void mu_probe_free(mu_probe *p);
int64_t mu_probe_tokens(const mu_probe *p);     /* of all domains; 0: there is no validation text */
/* Counts the routing, its margins and the cross-entropies alone, whatever the credit. Collective over `batch`. */
void mu_probe_count(mu_probe *p, mu_knowledge *k, int64_t step);
/* Measures what k->credit pays for, after `step` steps; false: too little for a measurement. Collective over `batch`. */
bool mu_probe_measure(mu_probe *p, mu_knowledge *k, int64_t step);

/* ------------------------------------------------------------------ checkpoints (checkpoint.c, manifest.c)
 * RUN/checkpoints/step-N/: manifest.json, shard-0000.h5, ... Committed by renaming step-N.tmp. */
#define MU_CHECKPOINT_VERSION 6     /* of the format; raised by one when state is added or left out (mu_state.since, until) */
enum { MU_SHARD_NAME = 32 };
typedef struct { char name[MU_SHARD_NAME]; int64_t bytes; char hash[33]; } mu_shard;
void mu_shard_name(int shard, char name[MU_SHARD_NAME]);           /* shard-0000.h5 */
typedef struct {
    char path[768];                 /* of the checkpoint's folder */
    int lock;                       /* a descriptor; 0: none */
    int64_t step;
    int version;                    /* of the format */
    int ranks, ep;
    char dtype[8];
    char *config;                   /* YAML */
    mu_config cfg;                  /* the same, parsed (by mu_manifest_read) */
    char fingerprint[33], tokenizer[32];    /* of the texts; the tokenizer's name */
    char tokenizer_fingerprint[33]; /* "": none, in checkpoints of older versions */
    int64_t vocab_size;             /* rows of the embedding */
    bool weights_only;              /* muster convert: no state of a run, which could be resumed */
    char hash[33];                  /* its own, by mu_manifest_read */
    mu_parent parent;
    mu_origin origin;
    mu_ancestors ancestors;
    mu_edits edits;
    int n_domains;                  /* 0 in checkpoints of older versions */
    struct { char name[64], fingerprint[33]; int64_t tokens; } *domains;
    mu_val_split val_split;
    bool anchored;                  /* holds the state of an anchor */
    bool order_in_memory;           /* mu_loader_order_in_memory: of runs that began with an older version */
    int n_shards;
    mu_shard *shards;
    int n_tensors;
    struct { char name[112]; int shard; } *tensors;     /* sorted by name */
} mu_manifest;
/* Until it is freed, the checkpoint's run does not remove it (a shared lock on manifest.json; none where the file system has no locks). */
mu_status mu_manifest_read(mu_manifest *m, const char *checkpoint, mu_error *e) MU_MUST_USE;
/* Before a checkpoint is removed: false while a manifest of it is held. *fd: the caller closes it after removing; 0: without a lock. */
bool mu_checkpoint_lock_alone(const char *checkpoint, int *fd) MU_MUST_USE;
mu_status mu_manifest_write(const mu_manifest *m, const char *folder, mu_error *e) MU_MUST_USE;
void mu_manifest_free(mu_manifest *m);
/* "parent": {...}, "ancestors": [{...}, ...]; nothing for none */
void mu_lineage_write(mu_json *j, const mu_parent *p, const mu_ancestors *earlier);
void mu_origin_write(mu_json *j, const mu_origin *o);      /* "init_from": {...}, likewise */
void mu_edits_write(mu_json *j, const mu_edits *list);     /* "edits": [{...}, ...], likewise */
int  mu_manifest_find(const mu_manifest *m, const char *tensor);    /* shard, or -1 */
/* The run folder of a checkpoint RUN/checkpoints/step-N, heap. Local. */
char *mu_checkpoint_run(const mu_manifest *m);
/* The tokenizer of a checkpoint, as mu_run_tokenizer_open; and the path of its file, or the name of a built-in one, heap. Local. */
mu_status mu_checkpoint_tokenizer_open(mu_tokenizer **t, const mu_manifest *m, mu_error *e) MU_MUST_USE;
char *mu_checkpoint_tokenizer_path(const mu_manifest *m);
/* Sizes and hashes of all shards, or of those with number % of == part. MU_STATUS_DATA names the first damage. Local. */
mu_status mu_manifest_verify(const mu_manifest *m, int part, int of, mu_error *e) MU_MUST_USE;

/* Name of a checkpoint's folder, step-00000200, and its path in a run (heap). Only this exact form counts as a
 * checkpoint: step-200 or step-+200 do not. */
enum { MU_CHECKPOINT_NAME = 32 };
void mu_checkpoint_name(int64_t step, char name[MU_CHECKPOINT_NAME]);
char *mu_checkpoint_path(const char *run, int64_t step);
bool mu_checkpoint_step(const char *path, int64_t *step);           /* does the path end in such a name? */

/* Writes the checkpoint of step t->step into cfg->run.dir, then removes those beyond checkpoint.keep. Collective, agreed. */
mu_status mu_checkpoint_save(mu_train_state *t, const mu_config *cfg, const mu_texts *texts, mu_error *e) MU_MUST_USE;
/* Newest checkpoint of the run whose manifest, hashes (shards divided among the ranks) and state pass verification; skips
 * others with a warning. *found false: there is none at all. MU_STATUS_DATA when there are some and none
 * passes. `path` may also name one checkpoint. Collective, agreed. */
mu_status mu_checkpoint_find(mu_comm *batch, const char *path, mu_manifest *m, bool *found, mu_error *e) MU_MUST_USE;
/* Does the path name a single checkpoint, valid or not? Local. */
bool mu_checkpoint_named(const char *path);
/* The error for an existing path without a checkpoint, which says what it is. Local. */
mu_status mu_checkpoint_missing(const char *path, mu_error *e) MU_MUST_USE;
/* Steps of the finished checkpoints of a run, newest first; heap, the caller frees. -1, with errno, when the
 * folder cannot be read. Local. */
int mu_checkpoint_list(const char *run, int64_t **steps);
/* Renames the run's checkpoints newer than `step`, damaged or of an abandoned history, to step-N.aside, so that they are never
 * taken for the newest. Collective, agreed. */
mu_status mu_checkpoint_set_aside(mu_comm *batch, const char *run, int64_t step, mu_error *e) MU_MUST_USE;
/* After *m could not be loaded, for the reason in *e (MU_STATUS_DATA): warns and finds an older one, so that a checkpoint
 * with valid hashes and invalid values does not stop a run. Returns e's status when there is none, or `path` names one
 * checkpoint. Collective, agreed. */
mu_status mu_checkpoint_fall_back(mu_comm *batch, const char *path, mu_manifest *m, mu_error *e) MU_MUST_USE;
/* Loads the weights, and with an optimizer all state that a resumed run needs. MU_STATUS_DATA when a value is out of its range
 * or the tokenizer is not the checkpoint's. Collective, agreed. */
mu_status mu_checkpoint_load(mu_train_state *t, const mu_manifest *m, const mu_tokenizer *tokenizer, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ where weights come from (source.c)
 * One checkpoint, the newest valid one of a run, or Hugging Face's files (hf.h). */
typedef struct {
    const char *path;               /* as it was given, borrowed */
    mu_manifest m;                  /* of Hugging Face's files: path, cfg, config and vocab_size; seq_len is at most 1024 */
    struct mu_hf *hf;               /* NULL: a checkpoint */
} mu_source;
/* NOINPUT: there is nothing; DATA: not a source, or damaged. mu_source_close may follow any outcome. Collective, agreed. */
mu_status mu_source_open(mu_source *s, mu_comm *batch, const char *path, mu_error *e) MU_MUST_USE;
void mu_source_close(mu_source *s);
/* As mu_checkpoint_fall_back. */
mu_status mu_source_fall_back(mu_source *s, mu_comm *batch, mu_error *e) MU_MUST_USE;
/* Its tokenizer (DATA: there is none), and the path of that, or the name of a built-in one, heap (NULL: there is none). Local. */
mu_status mu_source_tokenizer_open(mu_tokenizer **t, const mu_source *s, mu_error *e) MU_MUST_USE;
char *mu_source_tokenizer_path(const mu_source *s);
/* CONFIG, naming data.tokenizer, when its weights were made with another tokenizer. Local. */
mu_status mu_source_tokenizer_check(const mu_source *s, const mu_config *cfg, const mu_tokenizer *t, mu_error *e) MU_MUST_USE;
/* Checks the names and shapes of its tensors. DATA as mu_source_load. Local. */
mu_status mu_source_check(const mu_source *s, const mu_model *model, mu_error *e) MU_MUST_USE;
/* Loads the weights that this rank holds, and the selection biases, into a model of the same architecture. DATA names a missing or wrong
 * tensor with both shapes. Collective over the mesh, agreed. */
mu_status mu_source_load(const mu_source *s, mu_model *model, mu_mesh *mesh, const mu_tokenizer *tokenizer, mu_error *e) MU_MUST_USE;
mu_origin mu_source_origin(const mu_source *s);
/* Completes the configuration of a run that begins with these weights, before it is checked (init_from.c): takes the options of the
 * architecture, and data.tokenizer, that were not given. CONFIG, naming key and both values, for those given with another value. Local. */
mu_status mu_init_configure(mu_config *c, const mu_source *s, mu_error *e) MU_MUST_USE;
bool mu_option_is_architecture(const mu_option *o);     /* does it say what a model computes, not how it is trained? Local */

/* The model, optimizer and statistics of a checkpoint's own configuration on the shape device, where no tensor's values are
 * computed or stored: loading into it checks the checkpoint. With `state` the state beside the tensors (step, loader, expert
 * statistics) is loaded. One rank. Local; mu_checkpoint_shape_close may follow any outcome. */
typedef struct {
    mu_device *dev;
    mu_routing_stats *stats;
    mu_knowledge *knowledge;
    mu_anchor *anchor;
    mu_train_state t;
} mu_checkpoint_shape;
mu_status mu_checkpoint_shape_open(mu_checkpoint_shape *s, const mu_manifest *m, bool state, mu_error *e) MU_MUST_USE;
void mu_checkpoint_shape_close(mu_checkpoint_shape *s);
/* Hands every array that the checkpoint *m holds to the visitor: names, types and shapes, no values. Local. */
mu_status mu_checkpoint_visit(const mu_manifest *m, mu_state_visitor *v, mu_error *e) MU_MUST_USE;
/* The arrays of a checkpoint, read by name (checkpoint_arrays.c). `tensor`: in whose shard the array is; NULL: in the first. Shards are opened
 * when they are first needed; close returns so_far, or if that is OK its own failure. Local. */
typedef struct { const mu_manifest *m; mu_store **stores; } mu_checkpoint_arrays;
void mu_checkpoint_arrays_open(mu_checkpoint_arrays *a, const mu_manifest *m);
mu_status mu_checkpoint_array(mu_checkpoint_arrays *a, const char *name, const char *tensor, mu_store_type type, int n_dims, const int64_t *shape,
                              void *values, mu_error *e) MU_MUST_USE;
mu_status mu_checkpoint_arrays_close(mu_checkpoint_arrays *a, mu_status so_far, mu_error *e) MU_MUST_USE;
/* Writes RUN/checkpoints/step-N, which must not exist: the arrays of `s`, in one shard, with the values that `fill` gives, and m as its manifest
 * (whose shards, tensors, ranks and ep are set here). Checks the result as `muster verify` does. Local. */
typedef mu_status mu_state_fill(void *context, const mu_state *s, void *host, mu_error *e);
mu_status mu_checkpoint_write(mu_checkpoint_shape *s, mu_manifest *m, const char *run, mu_state_fill *fill, void *context, mu_error *e) MU_MUST_USE;
/* Freezes the units of the experts that are frozen by t->stats->health. Local. */
void mu_train_state_freeze(mu_train_state *t);
/* Checks the content of a checkpoint with valid hashes by loading it; without `tensors` only the state. MU_STATUS_DATA for
 * values that no run writes. Local. */
mu_status mu_checkpoint_check(const mu_manifest *m, bool tensors, mu_error *e) MU_MUST_USE;
/* Can this configuration resume from that checkpoint? MU_STATUS_CONFIG lists the options that must not change; *notes
 * (heap, may be NULL) those that did change. corpus NULL: can it be forked from it? Local. */
mu_status mu_checkpoint_compare(const mu_config *cfg, const mu_corpus *corpus, const mu_manifest *m, char **notes,
                                mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ the run folder (run_folder.c) */
/* The lock of a run folder (lock.c), for rank 0. Local. */
typedef struct mu_lock mu_lock;
/* Waits up to 10 s for another job. CONFIG when it stays, REQUEUE when it is an orphan of a killed mpirun. The caller releases *l
 * after any outcome. */
mu_status mu_lock_take(mu_lock **l, const char *dir, mu_error *e) MU_MUST_USE;
/* Is the folder still this job's? Recreates a removed lock file; CONFIG, with the reason, when another job took the
 * folder, when the path leads to no or another folder, and when the file was not written by muster. */
mu_status mu_lock_check(mu_lock *l, mu_error *e) MU_MUST_USE;
void mu_lock_release(mu_lock *l);
/* Whether a job holds the lock, without taking it or waiting. ABANDONED: its holder was killed. */
typedef enum { MU_LOCK_FREE, MU_LOCK_HELD, MU_LOCK_ABANDONED } mu_lock_state;
mu_lock_state mu_lock_look(const char *dir);

/* Makes the folder, takes its lock (*lock on rank 0, see above), and checks that it is the same folder on every rank and
 * writable, before any step is computed. CONFIG when a file with a name that muster uses was not written by muster. Collective, agreed. */
mu_status mu_run_claim(const mu_config *cfg, const mu_mesh *mesh, mu_lock **lock, mu_error *e) MU_MUST_USE;
/* config.resolved.yaml and run.json of a job that begins with this state. Collective, agreed. */
mu_status mu_run_describe(const mu_config *cfg, const mu_device *dev, const mu_corpus *corpus, const mu_train_state *state, int argc,
                          char **argv, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ metrics and console output (metrics.c, metrics_resume.c, progress.c) */
/* Sources of metrics and statistics; borrowed. */
typedef struct {
    const mu_config *cfg;
    const mu_corpus *corpus;
    const mu_train_state *state;
    double peak_flops;              /* of all ranks together; 0: unknown */
} mu_log_source;
/* Continues the metrics.jsonl of an earlier job (mu_lines_continue in lines.h); a training line must also have the tokens and loads of
 * its step. Local. */
mu_status mu_metrics_continue(mu_lines_out *f, const char *path, const char *routing_path, const mu_log_source *src, mu_logged_steps *logged,
                              mu_error *e) MU_MUST_USE;
/* The same for statistics.rec, called afterwards: opens it for appending, with a record of each logged step; missing records are
 * rebuilt from metrics.jsonl. Local. */
mu_status mu_statistics_resume(mu_statistics **s, const char *path, const char *metrics_path, const mu_log_source *src,
                               const mu_logged_steps *logged, mu_error *e) MU_MUST_USE;
/* A warning that a file of an earlier job was rewritten, and why: damaged parts (`damaged` of `all`), an earlier job without a
 * checkpoint (step 0), or parts newer than the resume step. names: of the old files, moved aside. Local. */
typedef struct {
    const char *path, *names, *parts;               /* parts: "lines" */
    int64_t step, damaged, all;
    const char *detail;                             /* of the damage */
} mu_rewritten;
void mu_run_warn_rewritten(const mu_rewritten *r);
/* Does the run resume from before its newest checkpoint? The newer checkpoints and the records of their steps are then moved aside. Local. */
bool mu_run_rewinds(const mu_log_source *src);
/* The step up to which files of an earlier job are continued: 0, also for a fork that has no checkpoint yet, moves them aside. Local. */
int64_t mu_run_resume_step(const mu_log_source *src);

/* What a step line and a statistics line say of the experts (metrics_moe.c). Local. */
void mu_metrics_add_routing(mu_json *j, const mu_log_source *src, const mu_step_result *r);
/* The share of a loss term in the gradient of the routers' logits, after a logged step: of the sum over the terms of the mean norm over
 * tokens; the mean over layers. NAN where all are 0. */
double mu_router_grad_share(const mu_routing_stats *s, mu_router_grad term);
void mu_metrics_add_window(mu_json *j, const mu_log_source *src);
enum { MU_DOMAIN_CELLS = 1 << 16 };     /* a statistics line has lists over experts and domains up to so many values in all layers */
void mu_metrics_add_states(mu_json *j, const mu_log_source *src);     /* the states in a statistics line. Local */

typedef struct mu_metrics mu_metrics;
/* Continues metrics.jsonl and statistics.rec; before mu_checkpoint_set_aside. One rank only. */
mu_status mu_metrics_open(mu_metrics **m, const mu_log_source *src, mu_error *e) MU_MUST_USE;
mu_status mu_metrics_step(mu_metrics *m, const mu_log_source *src, const mu_step_result *r, double tokens_per_s, mu_error *e) MU_MUST_USE;
/* Of the seconds since the process began to train: what was spent on statistics, and on protecting (mu_training.protect_seconds). */
mu_status mu_metrics_statistics(mu_metrics *m, const mu_log_source *src, double measuring_seconds, double protecting_seconds, mu_error *e) MU_MUST_USE;
void mu_metrics_add_knowledge(mu_json *j, const mu_log_source *src);    /* the keys of what experts know */
mu_status mu_metrics_eval(mu_metrics *m, const mu_log_source *src, double mean, const mu_domain_loss *results, mu_error *e) MU_MUST_USE;
/* Syncs metrics and statistics to disk; before the checkpoint that covers them is committed. */
mu_status mu_metrics_sync(mu_metrics *m, mu_error *e) MU_MUST_USE;
/* Rewrites routing.h5. It is derived, so a failure is only a warning. When it takes more than a second, calls are skipped,
 * except the `last` one. */
void mu_metrics_write_routing(mu_metrics *m, bool last);
void mu_metrics_close(mu_metrics *m);

typedef struct mu_progress mu_progress;
mu_progress *mu_progress_open(const mu_log_source *src);
void mu_progress_step(mu_progress *p, const mu_log_source *src, const mu_step_result *r, bool logged, double tokens_per_s);
void mu_progress_say(mu_progress *p, const char *fmt, ...) MU_PRINTF(2, 3);     /* a line above the bar */
void mu_progress_close(mu_progress *p);
/* The table of validation losses; `most`: sequences evaluated per domain, 0: all. */
void mu_print_domains(const mu_texts *texts, int64_t most, const mu_domain_loss *results);
void mu_print_expert_load(const mu_load_window *window, const int *layer_ids);
/* Timing (recorder.c). Local. */
bool mu_due(int64_t every, int64_t step, int64_t last);     /* every 0: never; otherwise the last step is always due */
bool mu_is_logged(const mu_config *cfg, int64_t step);      /* has the step a line of metrics? */
double mu_kill_timeout(void);       /* seconds from SIGTERM to SIGKILL for the ranks of an mpirun that was signalled */

/* ------------------------------------------------------------------ progress of reading texts (meter.c)
 * Shows mu_activity while texts are read: phase "reading texts", of `bytes` of files, and others, of `tokens`. Rank 0. */
void mu_meter_start(int64_t bytes, int64_t tokens);
void mu_meter_stop(void);

/* ------------------------------------------------------------------ threads and device of a rank (device.c, peak.c) */
/* Sets the threads of this rank: as configured, within its share of the node's cores. Local. */
void mu_config_use_threads(const mu_train_config *cfg, const mu_mesh *mesh);
/* The device of train.device and train.dtype, the same kind on every rank. Collective over the batch group. CONFIG
 * when it is missing on some rank. */
mu_status mu_train_device_open(const mu_train_config *cfg, const mu_mesh *mesh, mu_device **dev, mu_error *e);

/* FLOP/s of this rank's fp32 matrix product (all ranks at once when called together); 0 on slow devices. Local. */
double mu_peak_measure(mu_device *dev);

/* ------------------------------------------------------------------ faults for tests (fault.c)
 * MUSTER_FAULT=POINT:RANK:ACTION[:COUNT] in a build with -DMUSTER_FAULTS=ON: when this rank reaches the
 * point for the COUNT-th time (default 1), it is killed (`kill`), stops with SIGSTOP (`stop`), or the point
 * fails as if the disk were full (`enospc`: true is returned) or a weight turns into NaN (`nan`, at the point
 * `step`), or a rank leaves out a collective (`skip`, at the point `collective`). Otherwise nothing happens. */
bool mu_fault(const char *point, int rank);
void mu_fault_nan(mu_model *model);             /* one weight of the last layer on this rank becomes NaN */

/* ------------------------------------------------------------------ sub-commands (cmd_*.c): the exit code */
int mu_cmd_train(int argc, char **argv);
int mu_cmd_eval(int argc, char **argv);
int mu_cmd_generate(int argc, char **argv);
int mu_cmd_inspect(int argc, char **argv);
int mu_cmd_verify(int argc, char **argv);
int mu_cmd_report(int argc, char **argv);
int mu_cmd_compare(int argc, char **argv);
int mu_cmd_watch(int argc, char **argv);
int mu_cmd_selftest(int argc, char **argv);
int mu_cmd_tokenize(int argc, char **argv);
int mu_cmd_train_tokenizer(int argc, char **argv);
int mu_cmd_convert(int argc, char **argv);
int mu_cmd_stats(int argc, char **argv);
int mu_cmd_expert(int argc, char **argv);
/* ------------------------------------------------------------------ messages (messages.c)
 * Written to stderr; mu_report_error sets their rank. Local. */
void mu_messages_start(void);
int mu_messages_rank(void);
/* printf to stdout with escaped %s arguments (mu_text_vformat): for untrusted text, such as paths and
 * the fields of a checkpoint. */
void mu_print(const char *fmt, ...) MU_PRINTF(1, 2);
void mu_vprint(const char *fmt, va_list args) MU_PRINTF(1, 0);
void mu_print_text(const char *text);                   /* any length; keeps newlines and tabs */
/* Prints an error once (rank 0) and returns the exit code. */
int mu_report_error(const mu_error *e, int rank);
/* For mu_watch_start: prints the report and ends every rank with MU_STATUS_INTERNAL. */
void mu_report_stall(const char *report);
/* ------------------------------------------------------------------ parts of sub-commands (arguments.c, expert_choice.c, open.c, dry_run.c) */
/* Is argv[*i] one of these options, as `--name VALUE` or `--name=VALUE`? Then *found, its *value is set and *i is the last argument
 * used. USAGE when the value is missing, or empty where `needs`, what it must be, is given. Local. */
typedef struct { const char *name, **value, *needs; } mu_argument;
mu_status mu_argument_find(int argc, char **argv, int *i, const mu_argument *options, int n, bool *found, mu_error *e) MU_MUST_USE;
/* The value of an option: a whole number, at least 0; NULL: not given, *value stays. USAGE for anything else. Local. */
mu_status mu_argument_whole(const char *option, const char *text, int64_t *value, mu_error *e) MU_MUST_USE;
/* --threads N of the commands that have no configuration, as train.threads: sets the threads of this process. Local. */
mu_status mu_argument_threads(const char *text, mu_error *e) MU_MUST_USE;
/* The arguments of a command about runs: `least` to `most` (1 or more) run folders; out: --out FILE.html, NULL: not an option; a flag, or NULL. */
typedef struct { int least, most; const char **out, *flag; bool *flagged; } mu_run_options;
/* Folders with ~/ expanded: dir[*n] on, heap, also after an error; *n is increased. Local. */
mu_status mu_run_arguments(int argc, char **argv, const mu_run_options *o, int *n, char **dir, mu_error *e) MU_MUST_USE;
/* Appends DOMAIN=PATH, with weight 1, to a list with room for it. USAGE when it is not of this form. Local. */
mu_status mu_domain_argument(const char *text, mu_option_domains *list, mu_error *e) MU_MUST_USE;
/* Checks that all ranks have the same arguments. Collective, agreed. */
mu_status mu_arguments_agree(mu_comm *world, int argc, char **argv, mu_error *e) MU_MUST_USE;
/* --mask and --force of eval and generate: LAYER:EXPERT,...; NULL: not given. */
typedef struct { const char *mask, *force; } mu_expert_choice;
/* The mask of one row that they mean, its values heap, NULL when neither is given. domains: of the texts, for moe.force_domains, or
 * NULL. USAGE: not layers and experts of the model, or no top_k experts that fit. Local. */
mu_status mu_expert_choice_read(const mu_expert_choice *c, const mu_model *m, const mu_option_domains *domains, mu_expert_mask *mask,
                                mu_error *e) MU_MUST_USE;
/* A model with its weights, for eval, generate and stats (open.c), of a source that `path` names, with overrides of device, dtype and
 * threads. Collective over the mesh, agreed; mu_inference_close may follow any outcome. */
typedef struct {
    mu_source source;
    mu_config cfg;
    mu_tokenizer *tokenizer;
    mu_device *dev;
    mu_tape *tape;
    mu_train_state state;           /* the model; no optimizer */
} mu_inference;
mu_status mu_inference_open(mu_inference *o, mu_mesh *mesh, const char *path, int n_overrides, char *const *overrides, mu_error *e) MU_MUST_USE;
void mu_inference_close(mu_inference *o);
/* Prints what a run on `mesh`, a planned one, would need. init: the source of its weights; path NULL: none. Errors: those of the
 * tokenizer and of mu_source_check. Local. */
mu_status mu_dry_run(const mu_config *cfg, mu_mesh *mesh, const mu_source *init, mu_error *e) MU_MUST_USE;

#endif
