/* optim.h - learning-rate schedules, the gradient's norm, and AdamW that leaves idle experts alone. */
#ifndef MUSTER_OPTIM_H
#define MUSTER_OPTIM_H
#include "dist/dist.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/*       type   key            default    min  max  choices  use  help */
#define MU_OPTIONS_OPTIM(O) \
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

/* The ranks of a group's `reduce` communicator hold the same units and share the optimizer's work: each owns a
 * stretch of whole units, of about equal size. A step is
 *     mu_grads_reduce     every rank gets the summed gradients of the units it owns
 *     mu_grad_clip        the norm: each unit's sum of squares by its owner; how much the gradient is to be scaled
 *     mu_adamw_step       each rank updates the units it owns, then hands out their values
 * and moments exist with the owner only. With one rank the host only starts work, in all three: the norm, the scale,
 * the step counts and who rests are the device's. Step counts are the same on every rank. */
typedef struct {
    mu_optim_config cfg;
    mu_params *params;              /* borrowed */
    int64_t *ends[4];               /* of each group: where the share of each rank ends, in values of the slab */
    mu_memory *moments[4][2];       /* first and second moment of this rank's share of each group's slab */
    mu_memory *units[4];            /* mu_slab_unit [n_units] of each group, values from the share's beginning */
    int64_t n_units[4], n_pieces[4];
    mu_memory *state;               /* squares F64 [global units], steps I64 [global units], norm, scale F64 */
    double *host_squares, *host_losses;
    int64_t most_losses;
    bool stopped;                   /* several ranks: the last mu_grad_clip found what is not finite */
} mu_adamw;
mu_adamw *mu_adamw_new(const mu_optim_config *cfg, mu_params *ps);      /* moments zero. Local */
void mu_adamw_free(mu_adamw *o);
bool mu_adamw_owns(const mu_adamw *o, const mu_unit *u);                /* Local */
/* Device pointer to a moment (0 first, 1 second) of a unit that this rank owns; NULL for others' units. Local. */
void *mu_adamw_moment(const mu_adamw *o, const mu_unit *u, int which);
/* The same in host memory [u->count], on rank 0 of the group's `reduce` communicator, whoever owns it; on other
 * ranks `host` is room for it all the same. Collective over that communicator. */
void mu_adamw_moment_read(const mu_adamw *o, const mu_unit *u, int which, void *host);
/* Steps that a unit has taken, whoever owns it: its bias correction. Reading waits for the device. Local. */
int64_t mu_adamw_steps(const mu_adamw *o, const mu_unit *u);
void mu_adamw_steps_set(mu_adamw *o, const mu_unit *u, int64_t steps);
/* Sums every group's gradients over the group's `reduce` communicator, into the owners' gradients only: what is
 * left in those of other units is of no use. Exact sums are added up as such and rounded afterwards, on every rank. Collective over those communicators. */
void mu_grads_reduce(mu_adamw *o);
/* The norm of the whole gradient, and what steps scale it by from here on so that it is no longer than max_norm (0: of any length).
 * When the norm, or one of n_losses losses (F64, on the device) of any rank, is not finite, steps change nothing. Squares of
 * each tensor and each expert are added in one fixed order: the same norm for any ep. Collective over `world`, all ranks that
 * train together. */
void mu_grad_clip(mu_adamw *o, mu_comm *world, double max_norm, int64_t n_losses, mu_mat losses);
/* What the last mu_grad_clip found: where it is on the device (F64), and itself, for which the host waits. Local. */
mu_mat mu_grad_norm_place(const mu_adamw *o);
double mu_grad_norm(const mu_adamw *o);
/* The last unit, the nearest to the loss, whose gradient on this rank is not finite, or NULL. Local. */
const mu_unit *mu_grads_nonfinite(mu_adamw *o);
/* One AdamW step, scaled as the last mu_grad_clip found (never called: not at all). Experts whose load is 0 in `loads` (I64 on the
 * device, u->load is the place; not given: nobody rests) keep weights, moments and their own step count bit for bit.
 * Collective over the `reduce` communicators. */
void mu_adamw_step(mu_adamw *o, double lr, mu_mat loads);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
