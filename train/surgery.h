/* surgery.h - experts as units: taken from a checkpoint or a run, kept in archives, put into other checkpoints (muster expert). */
#ifndef MUSTER_TRAIN_SURGERY_H
#define MUSTER_TRAIN_SURGERY_H
#include "train/train.h"

/* Inputs and outputs of an expert for tokens of whole sequences, with which it can be tried again. */
typedef struct {
    int64_t S, D, n_sequences, n;
    int32_t *tokens;                /* [n_sequences, S] */
    int32_t *domains;               /* [n_sequences]: numbers in the configuration, for moe.force_domains */
    int32_t *at;                    /* [n]: which of the tokens the expert had */
    double *h, *y;                  /* [n, D] each: inputs, and f(h) */
} mu_expert_samples;

/* ------------------------------------------------------------------ an expert as a unit (unit.c)
 * What belongs to one expert of one layer. Row and weights learned from the same tokens: one without the other is of no use. */
enum { MU_PART_ROUTER, MU_PART_GATE, MU_PART_UP, MU_PART_DOWN, MU_PARTS };
typedef struct {
    int layer, expert;              /* its place; the model's layer number */
    int64_t D, F;
    const mu_rule *rule;            /* of the optimizer; NULL: there are no slots */
    mu_store_type type;             /* of its values in files: F32 or F64 */
    double *values[MU_PARTS];       /* its row of the router [D]; gate and up [F, D]; down [D, F] */
    double *slots[MU_RULE_SLOTS][MU_PARTS];
    int64_t steps[MU_PARTS];        /* numbers of updates; the router has one for all rows */
    double bias;                    /* selection bias */
} mu_expert_unit;
/* Zeros; rule NULL: no slots. Local, as all below unless marked. */
void mu_expert_unit_init(mu_expert_unit *u, int64_t D, int64_t F, bool f64, const mu_rule *rule);
mu_expert_unit mu_expert_unit_copy(const mu_expert_unit *u);
void mu_expert_unit_free(mu_expert_unit *u);
int64_t mu_expert_unit_count(const mu_expert_unit *u, int part);
void mu_expert_unit_restart(mu_expert_unit *u);         /* moments and step counts of its weights as of new ones; the router's stay */
bool mu_expert_unit_equal(const mu_expert_unit *a, const mu_expert_unit *b);    /* every value and step count, wherever they are */
void mu_expert_unit_hash(const mu_expert_unit *u, char hex[33]);
/* DATA: the checkpoint is damaged. The caller frees *u after any outcome. */
mu_status mu_expert_unit_read(mu_expert_unit *u, mu_checkpoint_arrays *a, int layer, int expert, mu_error *e) MU_MUST_USE;
/* Of a run: the same on every rank, whichever holds the expert. Collective over the mesh's batch group. */
void mu_expert_unit_take(mu_expert_unit *u, const mu_train_state *t, int layer, int expert);
/* Puts it into a run in its place, on every rank as rank 0 has it; the router's step count stays, and mu_params_refresh must follow. Collective likewise. */
void mu_expert_unit_give(mu_expert_unit *u, const mu_train_state *t);
/* Puts what the array `s` of a checkpoint has of this unit into its values `host`. with_bias: the model has selection biases. */
void mu_expert_unit_put(const mu_expert_unit *u, const mu_state *s, bool with_bias, void *host);
/* y [n, D] = f(h), h [n, D], in double precision. */
void mu_expert_unit_apply(const mu_expert_unit *u, int64_t n, const double *h, double *y);
/* weight times the mean of |f(h) - y|^2 over the samples; its gradient is added to grads of gate, up and down. */
double mu_expert_unit_pull(const mu_expert_unit *u, const mu_expert_samples *p, double weight, double *const grads[MU_PARTS]);
/* Its arrays in a file, under /unit. load: *u has been initialised. */
mu_status mu_expert_unit_store(const mu_expert_unit *u, mu_store *s, mu_error *e) MU_MUST_USE;
mu_status mu_expert_unit_load(mu_expert_unit *u, mu_store *s, mu_error *e) MU_MUST_USE;
/* An array of its own for a part of it, under group. */
mu_status mu_expert_part_store(const mu_expert_unit *u, mu_store *s, const char *group, int part, const double *values, mu_error *e) MU_MUST_USE;
mu_status mu_expert_part_load(const mu_expert_unit *u, mu_store *s, const char *group, int part, double *values, mu_error *e) MU_MUST_USE;
/* The parameter's unit that holds the part (the router: all rows); NULL: on another rank. */
const mu_unit *mu_expert_unit_find(const mu_moe *m, int part, int expert);

/* ------------------------------------------------------------------ what an expert sees (live.c) */
enum { MU_SAMPLES_MAX = 256 };
void mu_expert_samples_free(mu_expert_samples *p);
/* The first tokens of the evaluation's sequences, of one domain or (-1) of all in turn, that the expert gets: at most MU_SAMPLES_MAX, from at
 * most 64 sequences; y: of `unit`. Of a domain its first MU_FISHER_SEQUENCES sequences are kept in any case. Every rank reads the same. Collective over the expert group. */
mu_expert_samples mu_expert_samples_collect(const mu_evaluation *ev, int domain, const mu_expert_unit *unit);
/* The inputs of `layer` at the same tokens as the model is now, [n, D]; heap. Collective over the expert group. */
double *mu_expert_samples_again(const mu_expert_samples *p, const mu_evaluation *ev, int layer);
/* |a - b| / |b| over n values */
double mu_relative_distance(const double *a, const double *b, int64_t n);
/* The first principal axis of n rows [D], of length 1; heap. Without rows, or when all are equal: random, of this seed. */
double *mu_principal_axis(const double *rows, int64_t n, int64_t D, uint64_t seed);

/* ------------------------------------------------------------------ what matters to its domain (fisher.c)
 * The diagonal of the empirical Fisher information of a token, as in the anchor (optim.h), for the values of one expert. */
enum { MU_FISHER_SEQUENCES = 8 };   /* at most */
typedef struct {
    int64_t n;                      /* sequences; 0: there is none */
    double *values[MU_PARTS];       /* [mu_expert_unit_count] each */
} mu_expert_fisher;
void mu_expert_fisher_free(mu_expert_fisher *f);
/* The gradient of 1 / sqrt(S) times the summed loss of one sequence, that of rank 0 of `batch`, on every rank what it adds to it. Collective over the
 * expert group. */
void mu_sequence_gradient(const mu_model *m, mu_tape *tape, const mu_comm *batch, int64_t S, const int32_t *tokens, int32_t *targets, int32_t domain);
/* From the first sequences of the evaluation's domain, the same on every rank; gradients are overwritten. Collective over ev->batch. */
mu_expert_fisher mu_expert_fisher_estimate(const mu_evaluation *ev, int domain, const mu_expert_unit *unit);
/* The smallest share of the unit's values that has nine tenths of the information; 0: there is none. */
double mu_expert_fisher_share(const mu_expert_fisher *f, const mu_expert_unit *u);

/* ------------------------------------------------------------------ an expert divided in two (split.c) */
/* The expert of a layer that is split (mu_reseed_donor); of weights alone any other than not_this; -1: there is none. moe: number among the MoE layers. */
int mu_expert_donor(const mu_train_state *t, int moe, int not_this);
/* A copy of the donor, for the place of another `expert` of its layer, whose row of the router and the donor's are moved apart by a tenth of their length
 * along the axis in which the donor's inputs, seen (n 0: random), differ most: so they divide its tokens. Its moments and step counts are those of
 * a new one. fresh: half of the hidden units, rows of gate and up and columns of down alike, are drawn anew with mean and deviation of what they replace;
 * at each step of t others. */
mu_expert_unit mu_expert_split(mu_expert_unit *donor, int expert, const mu_expert_samples *seen, bool fresh, const mu_train_state *t, uint64_t seed);
/* The state of an expert whose weights are now others: nothing is known of it. */
void mu_expert_forget(const mu_train_state *t, int moe, int expert);

/* ------------------------------------------------------------------ re-seeding in a run (reseed.c) */
/* Replaces an expert of a run by a split of `donor`: its weights, its row of the router and the donor's, moments, step counts, selection bias, and what is
 * known of it. moe: number among the MoE layers. Collective over the mesh's batch group. */
void mu_reseed(const mu_train_state *t, const mu_evaluation *ev, int moe, int expert, int donor, uint64_t seed);

/* ------------------------------------------------------------------ archives (archive.c)
 * FOLDER/layer_LL/expert_EEE/step-N.h5, one record each. */
typedef struct {
    mu_expert_unit unit;
    int64_t step;
    char run[1024], manifest_hash[33], shared_hash[33];     /* where it is from; "": not from a checkpoint; of all shared parameters */
    char state[16], carries[64];    /* "": no domain */
    double carried;                 /* K of that domain; 0 without */
    int n_domains;
    char (*names)[64];
    double *K, *ce, *ce_best, *ce_ref;      /* [n_domains]; NAN: not measured */
    mu_expert_samples samples;      /* n 0: none */
    mu_expert_fisher fisher;        /* for `carries` */
    char path[1024];                /* of its file; "": not written */
} mu_archive;
void mu_archive_free(mu_archive *a);
/* What the state of a checkpoint or run says of an expert. `moe`: number among the MoE layers. */
void mu_archive_describe(mu_archive *a, const mu_train_state *t, const mu_config *cfg, int moe, int expert);
/* Its samples and, when it carries a domain, Fisher information, from the texts of ev. Collective over ev->batch. */
void mu_archive_measure(mu_archive *a, const mu_evaluation *ev);
/* Writes a new record under a temporary name, syncs it, reads it back and compares, and renames it; then removes all but the one with the largest
 * K and the last two. IO or DATA: the record is not there, nothing may overwrite the expert, and earlier records are as they were. a->path is
 * set on success. */
mu_status mu_archive_write(mu_archive *a, const char *folder, mu_error *e) MU_MUST_USE;
/* NOINPUT: no such file; DATA: damaged, or not an archive. mu_archive_free may follow any outcome. */
mu_status mu_archive_read(mu_archive *a, const char *path, mu_error *e) MU_MUST_USE;
/* Archives an expert of a run in RUN/archive, moe: number among the MoE layers; ev: with the run's model and texts. Collective over the mesh's
 * batch group, agreed. */
mu_status mu_archive_expert(const mu_log_source *src, const mu_evaluation *ev, int moe, int expert, mu_error *e) MU_MUST_USE;
/* The step of the newest record of an expert of a run; -1: there is none. Collective likewise. */
int64_t mu_archive_newest(const mu_log_source *src, int moe, int expert);
/* Records of a run that are newer than `step`, of an abandoned history, are renamed to step-N.h5.aside. Collective likewise, agreed. */
mu_status mu_archive_set_aside(const mu_train_state *t, const char *run, int64_t step, mu_error *e) MU_MUST_USE;
/* Why experts of a run are to be archived after an evaluation of the states, for those that are: reasons [MoE layers * experts], else
 * NULL. changes: of the states; noted: top_criticality before. Collective likewise. */
void mu_archive_find_due(const mu_log_source *src, const mu_expert_change *changes, int n, const double *noted, const char **reasons);
/* Steps of the records of an expert, newest first, heap; and the path of one, heap. */
int mu_archive_list(const char *folder, int layer, int expert, int64_t **steps);
char *mu_archive_path(const char *folder, int layer, int expert, int64_t step);
/* The record with the largest K, the newest of several; heap, NULL: there is none. */
char *mu_archive_best(const char *folder, int layer, int expert);

/* ------------------------------------------------------------------ a changed checkpoint (surgery.c)
 * The checkpoint that an operation makes of another: every array is that of the source, but for the units that were put, state that the
 * operation changed in `shape`, and experts that were left out. */
typedef struct {
    const mu_manifest *m;           /* of the source, borrowed */
    mu_checkpoint_arrays arrays;
    mu_checkpoint_shape shape;      /* its state; of the result */
    mu_config cfg;                  /* of the result */
    int n_units;
    mu_expert_unit *units;          /* put in this order */
    int *kept;                      /* [MoE layers, experts of the result]: the source's experts; NULL: all */
} mu_surgery;
/* DATA, CONFIG: the source is damaged, or too old. mu_surgery_close may follow any outcome. */
mu_status mu_surgery_open(mu_surgery *s, const mu_manifest *m, const char *out, mu_error *e) MU_MUST_USE;
mu_status mu_surgery_close(mu_surgery *s, mu_status so_far, mu_error *e) MU_MUST_USE;
void mu_surgery_put(mu_surgery *s, mu_expert_unit unit);        /* takes it over */
/* Leaves out all experts but kept [MoE layers, n], in this order, which is copied. Statistics of the load begin anew. moe.force_domains and
 * protect.carriers get the new numbers, without experts that are not at the same place of every layer. CONFIG: not possible, for example because
 * of moe.top_k. */
mu_status mu_surgery_keep(mu_surgery *s, int64_t n, const int *kept, mu_error *e) MU_MUST_USE;
void mu_surgery_note(mu_surgery *s, const char *what, int layer, int expert, const char *detail);      /* in the lineage */
/* The result's weights into a model of its configuration. */
mu_status mu_surgery_load(mu_surgery *s, mu_model *model, mu_error *e) MU_MUST_USE;
/* Its checkpoint, config.resolved.yaml and tokenizer into `run`, a folder that becomes the one given to mu_surgery_open. */
mu_status mu_surgery_write(mu_surgery *s, const char *run, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ healing (heal.c)
 * A restored expert is trained alone for a few steps, within a model that has drifted since it was archived: a quarter of each batch is
 * from its own domain, and it is held near what it computed for the archived samples. */
enum { MU_HEAL_STEPS = 100 };       /* at most */
typedef struct {
    double own, others;             /* nats per token: of its domain; of the others, by their shares (NAN: there are none) */
    double retention;               /* share of what was learned of its domain that the model knows */
} mu_heal_figures;
typedef struct {
    const mu_archive *record;
    int domain;                     /* its domain */
    int64_t steps;
    double best;                    /* lowest cross-entropy of its domain so far */
    int n_overrides;                /* of the configuration: where texts are */
    char *const *overrides;
    mu_heal_figures before, restored, healed;       /* before: of the source, by the caller */
} mu_healing;
mu_heal_figures mu_heal_measure(const mu_evaluation *ev, const mu_healing *h, int64_t sequences);
bool mu_heal_accepts(const mu_healing *h);          /* is the result good enough to keep? */
/* Heals the last unit that was put, in its place. Its moments stay as of a new one. */
mu_status mu_heal(mu_surgery *s, mu_healing *h, mu_error *e) MU_MUST_USE;

#endif
