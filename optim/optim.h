/* optim.h - learning-rate schedules; the optimizer: shards and reduction, norm and clipping, update rules. */
#ifndef MUSTER_OPTIM_H
#define MUSTER_OPTIM_H
#include "dist/dist.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/*       type   key            default    min  max  choices  use  help */
#define MU_OPTIONS_OPTIM(O) \
    O(CHOICE, kind,           "adamw",   0,   0,  "adamw",   FIXED, "update rule") \
    O(FLOAT,  lr,             "1e-3",    0,   1e3, NULL, FREE, "highest learning rate") \
    O(FLOAT,  min_lr,         "1e-4",    0,   1e3, NULL, FREE, "learning rate at the end of cosine, linear and wsd, at most lr; not given: at most lr / 10") \
    O(CHOICE, schedule,       "cosine",  0,   0,   "cosine|linear|wsd|constant", FREE, "course of the learning rate after the warm-up") \
    O(INT,    warmup_steps,   "100",     0,   1e9, NULL, FREE, "steps of linear growth from 0 to lr; not given: at most a tenth of train.steps") \
    O(FLOAT,  decay_fraction, "0.2",     0,   1,   NULL, FREE, "wsd: share of the run's steps in which the rate falls") \
    O(PAIR,   betas,          "[0.9, 0.95]", 0, 0.999999999, NULL, FREE, "decay of AdamW's first and second moment") \
    O(FLOAT,  eps,            "1e-8",    1e-30, 1, NULL, FREE, "added to the root of AdamW's second moment") \
    O(FLOAT,  weight_decay,   "0.1",     0,   1e3, NULL, FREE, "decoupled decay, on matrices except the router") \
    O(FLOAT,  grad_clip,      "1.0",     0,   1e9, NULL, FREE, "largest norm of the whole gradient; 0: no clipping")

typedef struct { MU_OPTIONS_OPTIM(MU_OPTION_FIELD) } mu_optim_config;
mu_optim_config mu_optim_config_default(void);
/* Ranges, and whether the schedule's values fit each other and a run of `steps` (0: not known). Local. */
void mu_optim_config_check(const mu_optim_config *cfg, int64_t steps, mu_complaints *c);
/* A schedule of which only a part was given fits itself to that part: min_lr to at most lr / 10, warmup_steps to at most
 * steps / 10. Local. */
void mu_optim_config_resolve(mu_optim_config *cfg, int64_t steps, bool min_lr_given, bool warmup_given);
enum { MU_SCHEDULE_COSINE, MU_SCHEDULE_LINEAR, MU_SCHEDULE_WSD, MU_SCHEDULE_CONSTANT };

/* Learning rate of step s = 1 .. steps: lr*s/warmup first; min_lr is reached at s = steps. Local. */
double mu_learning_rate(const mu_optim_config *cfg, int64_t s, int64_t steps);

/* ------------------------------------------------------------------ the optimizer
 * Three parts, each a file: shards and reduction (shards.c, reduce.c), global norm and clipping (clip.c), and the update rule, which is
 * one entry of a small table (adamw.c). A training step calls, after backward,
 *     mu_grads_reduce     each rank gets the summed gradients of the units it owns
 *     mu_grad_clip        the global gradient norm, and the factor that gradients are scaled by
 *     mu_optimizer_step   each rank updates the units it owns, then hands out their values
 * With one rank all three only start work on the device and the host waits for none of it. */

/* Units of a group that are updated alike: a stretch of the group's table. Frozen ones are in none. */
typedef struct {
    double lr_factor;
    int64_t first, n_units, n_pieces;
} mu_unit_set;

/* Which rank owns which units. The ranks of a group's `reduce` communicator hold the same units and divide the optimizer's
 * work and state: each owns a shard, a stretch of whole units of about equal size. */
typedef struct {
    mu_params *params;              /* borrowed */
    int64_t *ends[4];               /* of each group, by rank: where its shard ends, in values of the slab */
    mu_memory *units[4];            /* of each group: mu_slab_unit, set by set, values counted from the shard's beginning */
    mu_unit_set *sets[4];
    int n_sets[4];
    int64_t versions[4];            /* of the group, when its table was made */
    mu_reduction *early[4];         /* of each group: sums that begin during backward; NULL: none did so far */
    bool begun[4];                  /* of each group: they have, from mu_backward_last to mu_grads_reduce */
    bool *complete;                 /* [parameters]: their gradients, in this backward */
    int waits_for[4];               /* of each group: the last parameter whose gradient is not complete, -1: all are */
} mu_shards;
void mu_shards_init(mu_shards *s, mu_params *ps);       /* after mu_params_alloc. Local */
void mu_shards_free(mu_shards *s);
int  mu_shards_group(const mu_shards *s, const mu_unit *u);             /* index of a unit's group. Local */
int  mu_shards_owner(const mu_shards *s, const mu_unit *u);             /* rank in the group's `reduce`. Local */
bool mu_shards_owns(const mu_shards *s, const mu_unit *u);              /* is it this rank? Local */
int64_t mu_shards_offset(const mu_shards *s, const mu_unit *u);         /* of an owned unit: its first value in the shard. Local */
int64_t mu_shards_count(const mu_shards *s, int group, int rank);       /* values in a rank's shard. Local */
/* This rank's shard of a group's slab; `slab` NULL: not given. Local. */
mu_mat mu_shards_mine(const mu_shards *s, int group, const mu_memory *slab, mu_dtype dtype);
/* Every rank gets the values of the units that others own, where a group has several ranks. Collective over the `reduce`
 * communicators. */
void mu_values_gather(mu_shards *s);

/* The global gradient norm: squares per unit, added in one fixed order. */
typedef struct {
    mu_memory *memory;              /* F64: squares [global units], norm, scale */
    double *host_squares, *host_losses;
    int64_t max_losses;
    bool stopped;                   /* several ranks: the last mu_grad_clip found a value that is not finite */
} mu_norm;

/* What a rule's step works on: units of this rank's shard of one group. Operands as of slab_adamw in kernels.h. */
enum { MU_RULE_SLOTS = 4 };
typedef struct {
    mu_device *dev;
    double lr;
    int64_t n_units, n_pieces;
    mu_mat units;                   /* I64 [n_units, MU_SLAB_UNIT_WORDS]: mu_slab_unit */
    mu_mat loads, scale, steps;     /* who is skipped; the gradients' factor, not finite: nothing changes; steps per unit */
    mu_mat values, grads, compute;    /* compute: copies of values in the compute dtype, or data NULL */
    mu_mat slots[MU_RULE_SLOTS];    /* the rule's own state */
} mu_update;

/* An update rule. A slot is state as large as the parameters, in the master dtype; checkpoints keep it under /optim/NAME. `init`
 * writes the first values of one slot of a shard. `step` does one update and counts it in `steps`, for every unit but those
 * whose load is 0, which keep values, slots and step count bit for bit; frozen units are not in its table. A new rule is one file, one line in MU_RULES and its name among the choices of optim.kind. */
typedef struct {
    const char *name;
    int n_slots;
    const char *slots[MU_RULE_SLOTS];
    void (*init)(mu_device *dev, int slot, int64_t count, mu_mat values);
    void (*step)(const mu_optim_config *cfg, const mu_update *u);
    unsigned not_negative;          /* bit i: values of slot i are never below 0 */
} mu_rule;
#define MU_RULES(R) /* in the order of the choices of optim.kind */ \
    R(adamw)        /* Loshchilov & Hutter 2019: m, v */
#define MU_RULE_DECLARE(name) extern const mu_rule mu_rule_##name;
MU_RULES(MU_RULE_DECLARE)
#undef MU_RULE_DECLARE
const mu_rule *mu_rule_of(const mu_optim_config *cfg);      /* the one of cfg->kind. Local */

typedef struct {
    const mu_rule *rule;
    mu_optim_config cfg;
    mu_params *params;              /* borrowed */
    mu_shards shards;
    mu_norm norm;
    mu_memory *slots[4][MU_RULE_SLOTS];     /* of each group: this rank's shard */
    mu_memory *steps;               /* I64 [global units]: the same on every rank */
} mu_optimizer;
mu_optimizer *mu_optimizer_new(const mu_rule *rule, const mu_optim_config *cfg, mu_params *ps);     /* after mu_params_alloc. Local */
void mu_optimizer_free(mu_optimizer *o);

/* mu_backward of a step's last micro-batch: gradients that are complete are already being summed over the ranks while earlier
 * layers are still at work, where the group's communicator says so (mu_comm.overlap). mu_grads_reduce must follow, before
 * anything else reads or writes gradients. Collective over the `reduce` communicators. */
void mu_backward_last(mu_optimizer *o, mu_tape *tp, mu_tensor *loss);
/* Sums every group's gradients over the group's `reduce` communicator, into the owners' gradients only: those of units that
 * others own are undefined afterwards. Exact sums are added up as such on every rank, then rounded. Collective over those
 * communicators. */
void mu_grads_reduce(mu_optimizer *o);
/* The norm of the whole gradient, and the factor by which the following steps scale it so that its norm is at most max_norm
 * (0: no limit). When the norm, or one of n_losses losses (F64, on the device) of any rank, is not finite, steps change
 * nothing. The squares of each tensor and each expert are added in one fixed order: the same norm for any ep. Collective over
 * `batch`, the ranks that share a batch. */
void mu_grad_clip(mu_optimizer *o, mu_comm *batch, double max_norm, int64_t n_losses, mu_mat losses);
/* The norm that the last mu_grad_clip found: its place on the device (F64), and its value, for which the host waits. Local. */
mu_mat mu_grad_norm_place(const mu_optimizer *o);
double mu_grad_norm(const mu_optimizer *o);
/* The last unit, the nearest to the loss, that is not frozen and whose gradient on this rank is not finite, or NULL. Local. */
const mu_unit *mu_grads_nonfinite(mu_optimizer *o);
/* One step of the rule, scaled as the last mu_grad_clip found (never called: not scaled). Experts whose load is 0 in `loads` (I64
 * on the device, u->load is the place; not given: none is skipped) and frozen units keep weights, slots and their own step count
 * bit for bit.
 * Collective over the `reduce` communicators. */
void mu_optimizer_step(mu_optimizer *o, double lr, mu_mat loads);

/* Slots and step counts of this rank's units, after `step` steps, for a checkpoint. What is known of the steps that each unit
 * took: an expert (at u->load) at least active[u->load] and at most step - idle[u->load]; NULL: nothing. Visiting to save is
 * collective over the groups' `reduce` communicators. */
typedef struct { int64_t step; const int64_t *active, *idle; } mu_step_bounds;
void mu_optimizer_state(mu_optimizer *o, const mu_step_bounds *bounds, mu_state_visitor *v);
/* State of a unit. Device pointer to slot 0 .. rule->n_slots - 1 of a unit that this rank owns; NULL for
 * others' units. Local. */
void *mu_optimizer_slot(const mu_optimizer *o, const mu_unit *u, int slot);
/* The same in host memory [u->count], on rank 0 of the group's `reduce` communicator, whoever owns it; on other
 * ranks `host` is room for it all the same. Collective over that communicator. */
void mu_optimizer_slot_read(const mu_optimizer *o, const mu_unit *u, int slot, void *host);
/* Steps that a unit has taken, whoever owns it. Reading waits for the device. Local. */
int64_t mu_optimizer_steps(const mu_optimizer *o, const mu_unit *u);
void mu_optimizer_steps_set(mu_optimizer *o, const mu_unit *u, int64_t steps);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
