/* schedule.c - learning-rate schedules. */
#include "optim/optim.h"

#include <math.h>

MU_OPTION_DEFAULTS(mu_optim_config, "optim", MU_OPTIONS_OPTIM)

void mu_optim_config_check(const mu_optim_config *cfg, int64_t steps, mu_complaints *c) {
    bool constant = cfg->schedule == MU_SCHEDULE_CONSTANT;
    if (!check_ranges(cfg, c) || constant) return;
    if (cfg->min_lr > cfg->lr)
        mu_complain(c, "optim", "min_lr", "optim.lr optim.min_lr optim.schedule", "%g is more than lr %g", cfg->min_lr, cfg->lr);
    if (steps > 0 && cfg->warmup_steps > steps)
        mu_complain(c, "optim", "warmup_steps", "optim.warmup_steps optim.schedule train.steps",
                    "%lld is more than train.steps %lld; the rate would never reach lr", (long long)cfg->warmup_steps,
                    (long long)steps);
}

void mu_optim_config_resolve(mu_optim_config *cfg, int64_t steps, bool min_lr_given, bool warmup_given) {
    if (!min_lr_given && cfg->min_lr > cfg->lr / 10) cfg->min_lr = cfg->lr / 10;
    if (!warmup_given && cfg->warmup_steps > steps / 10) cfg->warmup_steps = steps / 10;
}

/* Progress, 0 .. 1, of a decay that begins after step `from` and ends at step `to`. */
static double progress(int64_t s, int64_t from, int64_t to) {
    if (s <= from || to <= from) return s > from ? 1.0 : 0.0;
    return s >= to ? 1.0 : (double)(s - from) / (double)(to - from);
}

double mu_learning_rate(const mu_optim_config *cfg, int64_t s, int64_t steps) {
    MU_CHECK(s >= 1 && steps >= 1, "step %lld of %lld steps", (long long)s, (long long)steps);
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
