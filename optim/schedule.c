/* schedule.c - the course of the learning rate. */
#include "optim/optim.h"

#include <math.h>

MU_OPTION_DEFAULTS(mu_optim_config, MU_OPTIONS_OPTIM)

/* How far a fall has come that begins after step `from` and ends at step `to`: 0 .. 1. */
static double progress(int64_t s, int64_t from, int64_t to) {
    if (s <= from || to <= from) return s > from ? 1.0 : 0.0;
    return s >= to ? 1.0 : (double)(s - from) / (double)(to - from);
}

double mu_learning_rate(const mu_optim_config *cfg, int64_t s, int64_t steps) {
    if (s < cfg->warmup_steps) return cfg->lr * (double)s / (double)cfg->warmup_steps;
    double fall = cfg->lr - cfg->min_lr;
    switch (cfg->schedule) {
    case MU_SCHEDULE_COSINE:
        return cfg->min_lr +
               0.5 * fall * (1.0 + cos(3.14159265358979323846 * progress(s, cfg->warmup_steps, steps)));
    case MU_SCHEDULE_LINEAR: return cfg->lr - fall * progress(s, cfg->warmup_steps, steps);
    case MU_SCHEDULE_WSD:
        return cfg->lr -
               fall * progress(s, steps - (int64_t)llround(cfg->decay_fraction * (double)steps), steps);
    default: return cfg->lr;
    }
}
