/* optim.h - learning-rate schedules; the optimizer: shards and reduction, norm and clipping, update rules; the anchor. */
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
    O(FLOAT,  lr,             "1e-3",    0,   1e3, NULL, FREE, "peak learning rate") \
    O(FLOAT,  min_lr,         "1e-4",    0,   1e3, NULL, FREE, "final learning rate of cosine, linear and wsd, at most lr; not given: at most lr / 10") \
    O(CHOICE, schedule,       "cosine",  0,   0,   "cosine|linear|wsd|constant", FREE, "learning-rate schedule after warm-up") \
    O(INT,    warmup_steps,   "100",     0,   1e9, NULL, FREE, "steps of linear warm-up from 0 to lr; not given: at most a tenth of train.steps") \
    O(FLOAT,  decay_fraction, "0.2",     0,   1,   NULL, FREE, "wsd: fraction of the run's steps in which the rate decays") \
    O(PAIR,   betas,          "[0.9, 0.95]", 0, 0.999999999, NULL, FREE, "AdamW: decay rates of the first and second moments") \
    O(FLOAT,  eps,            "1e-8",    1e-30, 1, NULL, FREE, "AdamW: added to the square root of the second moment") \
    O(FLOAT,  weight_decay,   "0.1",     0,   1e3, NULL, FREE, "decoupled weight decay, on all matrices except the router and the gate of the shared experts") \
    O(FLOAT,  grad_clip,      "1.0",     0,   1e9, NULL, FREE, "maximum global gradient norm; 0: no clipping")

typedef struct { MU_OPTIONS_OPTIM(MU_OPTION_FIELD) } mu_optim_config;
mu_optim_config mu_optim_config_default(void);
/* Checks ranges, and that the schedule's values fit each other and a run of `steps` (0: unknown). Local. */
void mu_optim_config_check(const mu_optim_config *cfg, int64_t steps, mu_complaints *c);
/* Limits defaults to the given values: min_lr to at most lr / 10, warmup_steps to at most steps / 10. Local. */
void mu_optim_config_resolve(mu_optim_config *cfg, int64_t steps, bool min_lr_given, bool warmup_given);
enum { MU_SCHEDULE_COSINE, MU_SCHEDULE_LINEAR, MU_SCHEDULE_WSD, MU_SCHEDULE_CONSTANT };

/* Learning rate of step s = 1 .. steps: lr*s/warmup during the warm-up; min_lr is reached at s = steps. Local. */
double mu_learning_rate(const mu_optim_config *cfg, int64_t s, int64_t steps);

/* ------------------------------------------------------------------ the optimizer
 * Three parts: shards and reduction (shards.c, reduce.c), global norm and clipping (clip.c), and the update rule, one entry of
 * a table (adamw.c). A training step calls, after backward,
 *     mu_grads_reduce     each rank gets the summed gradients of the units it owns (reduce-scatter)
 *     mu_grad_clip        the global gradient norm, and the factor that scales gradients
 *     mu_optimizer_step   each rank updates the units it owns, then all get their values (all-gather)
 * With one rank none of them waits for the device. */

/* Units of a group with the same learning-rate factor: a range of the group's table. Frozen units are in none. */
typedef struct {
    double lr_factor;
    int64_t first, n_units, n_pieces;
} mu_unit_set;

/* Ownership of units. The ranks of a group's `reduce` communicator hold the same units and divide the optimizer's work
 * and state: each owns a shard, a range of whole units, of about equal size. */
typedef struct {
    mu_params *params;              /* borrowed */
    int64_t *ends[4];               /* per group and rank: end of the rank's shard, in values of the slab */
    mu_memory *units[4];            /* per group: mu_slab_unit, by set, offsets from the shard's beginning */
    mu_unit_set *sets[4];
    int n_sets[4];
    int64_t versions[4];            /* of the group, when its table was built */
    mu_reduction *early[4];         /* per group: the reduction during backward; NULL: not used so far */
    bool begun[4];                  /* per group: reduction in progress, from mu_backward_last to mu_grads_reduce */
    bool *complete;                 /* [parameters]: gradient complete in this backward */
    int waits_for[4];               /* per group: the last parameter with an incomplete gradient, -1: none */
} mu_shards;
void mu_shards_init(mu_shards *s, mu_params *ps);       /* after mu_params_alloc. Local */
void mu_shards_free(mu_shards *s);                      /* Local, as are the next five */
int  mu_shards_group(const mu_shards *s, const mu_unit *u);             /* index of the unit's group */
int  mu_shards_owner(const mu_shards *s, const mu_unit *u);             /* owning rank in the group's `reduce` communicator */
bool mu_shards_owns(const mu_shards *s, const mu_unit *u);              /* whether this rank owns it */
int64_t mu_shards_offset(const mu_shards *s, const mu_unit *u);         /* first value of an owned unit in the shard */
int64_t mu_shards_count(const mu_shards *s, int group, int rank);       /* values in a rank's shard */
/* This rank's shard of a group's slab; `slab` NULL: data NULL. Local. */
mu_mat mu_shards_mine(const mu_shards *s, int group, const mu_memory *slab, mu_dtype dtype);
/* All-gather: every rank gets the values of the units that others own. Collective over the `reduce` communicators. */
void mu_values_gather(mu_shards *s);

/* The global gradient norm: sums of squares per unit, added in a fixed order. */
typedef struct {
    mu_memory *memory;              /* F64: squares [global units], norm, scale */
    double *host_squares, *host_losses;
    int64_t max_losses;
    bool stopped;                   /* several ranks: the last mu_grad_clip found a non-finite value */
} mu_norm;

/* Operands of a rule's step: units of this rank's shard of one group, as for slab_adamw in kernels.h. */
enum { MU_RULE_SLOTS = 4 };
typedef struct {
    mu_device *dev;
    double lr;
    int64_t n_units, n_pieces;
    mu_mat units;                   /* I64 [n_units, MU_SLAB_UNIT_WORDS]: mu_slab_unit */
    mu_mat loads, scale, steps;     /* units with load 0 are skipped; factor of gradients (not finite: no update); steps per unit */
    mu_mat values, grads, compute;  /* compute: copies of values in the compute dtype, or data NULL */
    mu_mat slots[MU_RULE_SLOTS];    /* the rule's own state */
} mu_update;

/* An update rule. A slot is state of the parameters' size, in the master dtype; checkpoints store it under /optim/NAME. `init`
 * sets the initial values of one slot of a shard. `step` updates every unit of the table and its count in `steps`, except
 * units whose load is 0, which keep values, slots and step count bit for bit; frozen units are not in the table. A new rule is
 * one file, one line in MU_RULES and its name among the choices of optim.kind. */
typedef struct {
    const char *name;
    int n_slots;
    const char *slots[MU_RULE_SLOTS];
    void (*init)(mu_device *dev, int slot, int64_t count, mu_mat values);
    void (*step)(const mu_optim_config *cfg, const mu_update *u);
    unsigned not_negative;          /* bit i: values of slot i are never negative */
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
    mu_memory *slots[4][MU_RULE_SLOTS];     /* per group: this rank's shard */
    mu_memory *steps;               /* I64 [global units]: the same on every rank */
} mu_optimizer;
mu_optimizer *mu_optimizer_new(const mu_rule *rule, const mu_optim_config *cfg, mu_params *ps);     /* after mu_params_alloc. Local */
void mu_optimizer_free(mu_optimizer *o);

/* mu_backward of a step's last micro-batch: where the group's communicator has `overlap`, the reduction of complete gradients
 * overlaps with the backward of earlier layers. mu_grads_reduce must follow before anything else reads or writes gradients.
 * Collective over the `reduce` communicators. */
void mu_backward_last(mu_optimizer *o, mu_tape *tp, mu_tensor *loss);
/* Sums every group's gradients over the group's `reduce` communicator, into the owners' gradients only: gradients of units
 * that others own are undefined afterwards. Exact sums are added exactly on every rank, then rounded. Collective over those
 * communicators. */
void mu_grads_reduce(mu_optimizer *o);
/* Computes the global gradient norm, and the factor by which the following steps scale gradients so that the norm is at most
 * max_norm (0: no limit). When the norm, or one of n_losses losses (F64, on the device) of any rank, is not finite, steps
 * change nothing. The squares of each tensor and each expert are added in a fixed order: the same norm for any ep. Collective
 * over `batch`, the ranks that share a batch. */
void mu_grad_clip(mu_optimizer *o, mu_comm *batch, double max_norm, int64_t n_losses, mu_mat losses);
/* The norm of the last mu_grad_clip: on the device (F64), and its value, for which the host waits. Local. */
mu_mat mu_grad_norm_on_device(const mu_optimizer *o);
double mu_grad_norm(const mu_optimizer *o);
/* The last (nearest to the loss) unfrozen unit whose gradient on this rank is not finite, or NULL. Local. */
const mu_unit *mu_grads_nonfinite(mu_optimizer *o);
/* One step of the rule, with gradients scaled by the last mu_grad_clip's factor (never called: 1). Experts whose load is 0 in
 * `loads` (I64 on the device, indexed by u->load; data NULL: none is skipped) and frozen units keep weights, slots and step
 * count bit for bit. Collective over the `reduce` communicators. */
void mu_optimizer_step(mu_optimizer *o, double lr, mu_mat loads);

/* Slots and step counts of this rank's units, after `step` steps, for a checkpoint. Bounds for an expert's own step count: at
 * least active[u->load] and at most step - idle[u->load]; NULL: none. Saving is Collective over the groups' `reduce`
 * communicators. */
typedef struct { int64_t step; const int64_t *active, *idle; } mu_step_bounds;
void mu_optimizer_state(mu_optimizer *o, const mu_step_bounds *bounds, mu_state_visitor *v);
/* Device pointer to slot 0 .. rule->n_slots - 1 of a unit that this rank owns; NULL for other units. Local. */
void *mu_optimizer_slot(const mu_optimizer *o, const mu_unit *u, int slot);
/* The same in host memory [u->count], on rank 0 of the group's `reduce` communicator, whichever rank owns it; on other ranks
 * `host` must have the same size. Collective over that communicator. */
void mu_optimizer_slot_read(const mu_optimizer *o, const mu_unit *u, int slot, void *host);
/* A unit's step count, whichever rank owns it. Reading waits for the device. Local. */
int64_t mu_optimizer_steps(const mu_optimizer *o, const mu_unit *u);
void mu_optimizer_steps_set(mu_optimizer *o, const mu_unit *u, int64_t steps);

/* ------------------------------------------------------------------ the anchor (anchor.c)
 * Elastic weight consolidation (Kirkpatrick et al. 2017), in its online form (Schwarz et al. 2018, without decay): once a domain has
 * disappeared from the stream, weights that matter to it are pulled back to their values of then, at, by the gradient of
 *     strength / 2 * sum over weights of F (w - at)^2.
 * F is the diagonal of the empirical Fisher information of a token: the mean over some of the domain's sequences of the squared gradient
 * of the sequence's summed loss, divided by its tokens. (Squares of each token's gradient would need a backward for each token. Under the
 * model's own distribution the gradients of a sequence's tokens are uncorrelated, so both have the same expectation.) Of several domains F is added, and `at` is
 * renewed. To set it:
 *     for each of n sequences of T tokens: mu_backward of sqrt(1/T) * summed loss, mu_grads_reduce, mu_anchor_add(a, 1.0 / n)
 *     mu_anchor_renew
 * and in every step, between mu_grad_clip and mu_optimizer_step, mu_anchor_pull. F and `at` are sharded like the rule's slots. */
typedef struct {
    mu_optimizer *opt;              /* borrowed */
    const mu_option_domains *domains;   /* of the run, borrowed */
    int64_t *holds;                 /* [domains]: 1: held, F has a share of this domain. For the caller, kept in checkpoints */
    bool set;                       /* false: neither memory nor effect */
    mu_memory *fisher[4], *at[4];   /* per group: this rank's shard */
    mu_norm norm;                   /* of the pull */
} mu_anchor;
mu_anchor *mu_anchor_new(mu_optimizer *o, const mu_option_domains *domains);    /* Local, like the next two */
void mu_anchor_free(mu_anchor *a);      /* NULL is allowed; before the optimizer */
void mu_anchor_prepare(mu_anchor *a);   /* sets it, with F 0: before a state is loaded */
void mu_anchor_add(mu_anchor *a, double weight);    /* F += weight * square of the reduced gradients. Local */
/* `at` = the weights now; F below cut * its largest value becomes 0. Collective over `batch`, the ranks that share a batch. */
typedef struct { double largest; int64_t weights; } mu_anchor_size;     /* largest F; number of weights with F > 0 */
mu_anchor_size mu_anchor_renew(mu_anchor *a, mu_comm *batch, double cut);
/* F of these values of a unit becomes 0: their weights are others now. On the rank that owns the unit; nothing when it is not set. Local. */
void mu_anchor_release(mu_anchor *a, const mu_unit *u, int64_t first, int64_t n);
/* Adds the gradient above to the gradients, such that it is not scaled by the last mu_grad_clip, and its norm over all units that are updated is at
 * most max_norm (0: no limit). Experts whose load is 0 and frozen units are left out. Collective over `batch`. */
void mu_anchor_pull(mu_anchor *a, mu_comm *batch, double strength, double max_norm, mu_mat loads);
/* State for a checkpoint of a run with the domains `from`; nothing when it is not set. Saving is Collective over the groups' `reduce`
 * communicators. */
void mu_anchor_state(mu_anchor *a, const mu_option_domains *from, mu_state_visitor *v);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
