/* training.h - the parts of a training run: opened in training.c, stepped in loop.c, recorded in recorder.c.
 * nonfinite.c repeats a failed step to explain it. Everything else in train/ receives only the parts that it uses
 * (train.h). */
#ifndef MUSTER_TRAIN_TRAINING_H
#define MUSTER_TRAIN_TRAINING_H
#include "train/train.h"

#include <signal.h>

typedef struct mu_recorder mu_recorder;     /* below */

/* ------------------------------------------------------------------ this rank's part of each global batch (batches.c) */
typedef struct {
    const mu_option_domains *sources;   /* these four are borrowed */
    mu_loader *loader;
    const mu_comm *batch;
    mu_tape *tape;
    mu_batch_shape shape;
    int64_t micro_size;             /* sequences of this rank in a micro-batch */
    uint64_t seed;
    int64_t step;                   /* finished steps before the current batch */
    mu_sample *samples;             /* [shape.sequences]: the global batch */
    int64_t *domain_sequences;      /* [sources->n]: how many of these each domain has */
    int64_t *before;                /* the loader's state before this batch */
    int32_t *tokens, *targets;      /* [micro_size * seq_len] */
    const mu_model *model;          /* these two are borrowed, and only for a replay */
    const uint16_t *experts;        /* [micro_batches, micro_size, seq_len, MoE layers, K]: the experts that tokens get; or NULL */
} mu_batches;
typedef struct {
    mu_context cx;
    mu_tensor *tokens, *targets;    /* i32 [micro_size * seq_len], on the tape */
} mu_micro_batch;
void mu_batches_init(mu_batches *b, const mu_config *cfg, mu_loader *loader, const mu_comm *batch, mu_tape *tape);
void mu_batches_free(mu_batches *b);
void mu_batches_next(mu_batches *b, int64_t step);              /* draws the global batch after `step` steps. Local */
void mu_batches_put_back(mu_batches *b);                        /* undoes mu_batches_next. Local */
bool mu_batches_absent(const mu_batches *b, int64_t *replayed); /* as in mu_step_result, of this batch. Local */
mu_micro_batch mu_batches_read(mu_batches *b, int64_t m);       /* micro-batch m of this rank; lives until the tape's reset. Local */

/* ------------------------------------------------------------------ records of the routing of steps (step_routing.c) */
typedef struct {
    mu_routing_record *record, *replay;     /* or NULL */
    uint16_t *recorded, *replayed;          /* of this rank and the current step, like mu_batches.experts */
} mu_step_routing;

/* ------------------------------------------------------------------ the run (training.c) */
typedef struct {
    mu_config cfg;                  /* loaded by the caller, freed by mu_training_close */
    mu_tokenizer *tokenizer;
    mu_texts texts;
    mu_device *dev;
    mu_tape *tape;
    mu_loss *loss;
    mu_batches batches;
    mu_train_state state;
    mu_step_routing routing;
    double peak_flops;              /* of all ranks together, measured; 0: unknown */
    double protect_seconds;         /* of this process: Fisher information, the anchor's pull, archives */
} mu_training;
/* Opens all parts for t->cfg, the tokenizer unless it is open already; the ranks agree on the status. mu_training_close may follow any outcome. Collective over the mesh,
 * as is closing. */
mu_status mu_training_open(mu_training *t, mu_mesh *mesh, mu_val_split split, mu_error *e) MU_MUST_USE;
void mu_training_close(mu_training *t);
/* Protects experts by their states, as they are now (mu_protection_update). Local. */
int mu_training_protect(mu_training *t, mu_protection_change *changes);
/* Begins a new run from another's checkpoint, with all parts open (fork.c): its weights, optimizer state and step, and of texts and
 * statistics what this configuration has in common with it; says so on rank 0. CONFIG: the tensors have another shape; DATA: the checkpoint
 * turned out invalid. Collective over the mesh, agreed. */
mu_status mu_training_fork(mu_training *t, const mu_manifest *m, mu_error *e) MU_MUST_USE;

/* Begins a new run with the weights of the source, with all parts open (init_from.c). DATA as mu_source_load. Collective over the mesh, agreed. */
mu_status mu_training_init(mu_training *t, mu_source *s, mu_error *e) MU_MUST_USE;

/* --record-routing and --replay-routing (NULL: not given), once the run is open at the step from which it continues. A new record is
 * complete after close, which returns so_far, or if that is OK its own failure. DATA: the record does not fit. Agreed, and Collective over
 * the batch group, as are begin and end. */
mu_status mu_step_routing_open(mu_training *t, const char *record, const char *replay, mu_error *e) MU_MUST_USE;
mu_status mu_step_routing_close(mu_training *t, mu_status so_far, mu_error *e) MU_MUST_USE;
mu_status mu_step_routing_begin(mu_training *t, mu_error *e) MU_MUST_USE;   /* reads the experts of the next step */
void mu_step_routing_add(mu_training *t, int64_t m);                        /* takes those of the forward pass of micro-batch m. Local */
mu_status mu_step_routing_end(mu_training *t, mu_error *e) MU_MUST_USE;     /* writes the experts of the finished step */

/* ------------------------------------------------------------------ absent domains (protect.c) */
/* Lines about what is protected and how, and with texts, which may be NULL, about how domains are sampled (protect.upsample); heap, "" for none.
 * Local. */
char *mu_protect_text(const mu_config *cfg, const mu_texts *t);
/* Before each step: where a protected domain is absent from this step on, says what protects it, and sets the anchor. Collective over the batch
 * group, agreed. */
mu_status mu_training_keep_absent(mu_training *t, mu_recorder *rec, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ steps (loop.c, nonfinite.c) */
/* One optimizer step. When the result is not finite nothing was updated. `stop`: set when this rank receives a stop signal, read
 * between micro-batches and at the end; NULL: never. Collective over the batch group. */
mu_step_result mu_training_step(mu_training *t, const volatile sig_atomic_t *stop);
/* Computes the gradients of the current global batch; with `reduce` the reduction over ranks begins in the last
 * micro-batch. False: some rank received a stop signal. Collective over the batch group. */
bool mu_training_gradients(mu_training *t, bool reduce, const volatile sig_atomic_t *stop);
/* After a step with a non-finite result: names step, rank and layer of the first such value. Heap. Collective over the batch group. */
char *mu_training_explain_nonfinite(mu_training *t);

/* ------------------------------------------------------------------ metrics, evaluations and checkpoints (recorder.c) */
/* Opens metrics and progress on rank 0; `saved_step`: of the checkpoint that the run resumed from, or -1. The lock is
 * borrowed. Agreed. Collective over the batch group, as are log, statistics, evaluate, reevaluate and save; close and losses are Local. */
mu_status mu_recorder_open(mu_recorder **r, mu_training *t, mu_lock *lock, int64_t saved_step, mu_error *e) MU_MUST_USE;
void mu_recorder_close(mu_recorder *r);
/* Metrics and the progress line of a finished step. */
mu_status mu_recorder_log(mu_recorder *r, const mu_step_result *step, mu_error *e) MU_MUST_USE;
/* Statistics of the experts over the window, written to the metrics; nothing for a dense model. */
mu_status mu_recorder_statistics(mu_recorder *r, mu_error *e) MU_MUST_USE;
/* Validation loss of every domain, written to the metrics; nothing without validation sequences. */
mu_status mu_recorder_evaluate(mu_recorder *r, mu_error *e) MU_MUST_USE;
void mu_recorder_reevaluate(mu_recorder *r);          /* evaluates only for mu_recorder_losses; records nothing */
struct mu_absence;              /* events.h */
/* Records and tells what protects an absent domain. The same on every rank; agreed, Collective over the batch group. */
mu_status mu_recorder_absence(mu_recorder *r, const struct mu_absence *p, mu_error *e) MU_MUST_USE;
/* A checkpoint, unless this step has one. */
mu_status mu_recorder_save(mu_recorder *r, mu_error *e) MU_MUST_USE;
/* The last validation losses [n_domains]; tokens 0: none. */
const mu_domain_loss *mu_recorder_losses(const mu_recorder *r);

/* Trains from t->state.step to train.steps. REQUEUE after a stop signal (`stop` set on any rank), with a checkpoint; NUMERIC, with
 * nothing written, when a loss is not finite. Collective over the batch group. */
mu_status mu_training_loop(mu_training *t, mu_recorder *r, const volatile sig_atomic_t *stop, mu_error *e) MU_MUST_USE;

#endif
