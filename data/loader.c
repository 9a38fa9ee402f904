/* loader.c - which sequence is sample g of the run.
 *
 * A random number keyed with g chooses the domain of sample g; the sample is the next of the domain's sequences, in an order
 * that is shuffled every epoch and depends only on the domain's name and content. So the state is the number of samples drawn
 * per domain; nothing depends on how samples are split into batches, ranks or runs; and adding, removing or reweighting a
 * domain does not change the samples that the others give. So a domain that a phase leaves out continues where it stopped.
 *
 * Replay needs no stored texts either: the last sequences of a domain are the last places of its order. */
#include "data/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    mu_split split;
    double share;               /* by the weights of the corpus */
    int64_t drawn, earlier;     /* samples drawn by this run; by those that it was forked from */
    mu_order order;             /* of the training sequences */
    bool replayed;              /* while it is absent */
} part;

/* Samples before `until`, from the end of the phase before. */
typedef struct {
    int64_t until;
    double *share, *up_to;      /* [n_parts]; up_to: cumulative share, this domain included */
} phase;

struct mu_loader {
    const mu_corpus *corpus;
    int64_t seq_len;
    uint64_t seed;
    int64_t first, next_sample, per_step;       /* first: of this run */
    int n_parts;
    part *parts;
    bool order_in_memory;       /* of any length */
    int n_phases;               /* 1 without phases */
    phase *phases;
    double replay_share;        /* of the samples, for each absent domain; 0: no replay */
    int64_t replay_sequences;
};

/* ------------------------------------------------------------------ opening */

/* share[i] = weight[i] * tokens[i], divided by their sum; all 0 when that is not positive and finite. */
static void normalise(int n, const double *weight, const int64_t *tokens, double *share) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += share[i] = weight[i] * (double)tokens[i];
    for (int i = 0; i < n; i++) share[i] = sum > 0 && isfinite(sum) ? share[i] / sum : 0;
}

static mu_status check_weights(const mu_loader *l, const double *weight, const char *option, mu_error *e) {
    double sum = 0;
    for (int i = 0; i < l->n_parts; i++) {
        const mu_domain *d = &l->corpus->domains[i];
        double share = weight[i] * (double)d->n_tokens;
        if (!(weight[i] >= 0 && isfinite(share)))
            return mu_error_set(e, MU_STATUS_CONFIG, "domain \"%s\": weight %g must be a finite number, at least 0", d->name, weight[i]);
        sum += share;
    }
    if (sum > 0 && isfinite(sum)) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_CONFIG, "%s: all weights are 0 or the shares are not finite: no training data", option);
}

/* Shares count all tokens of a domain, validation included, so that the split does not make rare domains rarer. `option`: for
 * errors. */
static mu_status add_phase(mu_loader *l, int64_t until, const double *weight, const char *option, mu_error *e) {
    int n = l->n_parts;
    double up_to = 0;
    phase p = { until, mu_alloc((size_t)n, sizeof(double)), mu_alloc((size_t)n, sizeof(double)) };
    int64_t *tokens = mu_alloc((size_t)n, sizeof *tokens);
    for (int i = 0; i < n; i++) tokens[i] = l->corpus->domains[i].n_tokens;
    normalise(n, weight, tokens, p.share);
    for (int i = 0; i < n; i++) p.up_to[i] = up_to += p.share[i];
    free(tokens);
    l->phases = mu_realloc(l->phases, (size_t)l->n_phases + 1, sizeof *l->phases);
    l->phases[l->n_phases++] = p;
    return check_weights(l, weight, option, e);
}

static void free_phases(mu_loader *l) {
    for (int i = 0; i < l->n_phases; i++) {
        free(l->phases[i].share);
        free(l->phases[i].up_to);
    }
    free(l->phases);
    l->phases = NULL;
    l->n_phases = 0;
}

/* One phase, with the weights of the corpus. */
static mu_status set_shares(mu_loader *l, mu_error *e) {
    double *weight = mu_alloc((size_t)l->n_parts, sizeof *weight);
    for (int i = 0; i < l->n_parts; i++) weight[i] = l->corpus->domains[i].weight;
    mu_status status = add_phase(l, INT64_MAX, weight, "data.train", e);
    for (int i = 0; i < l->n_parts; i++) l->parts[i].share = l->phases[0].share[i];
    free(weight);
    return status;
}

mu_status mu_loader_open(mu_loader **out, const mu_corpus *c, int64_t seq_len, double val_fraction,
                         mu_val_split split, uint64_t seed, mu_error *e) {
    MU_CHECK(out && c && c->n_domains > 0,
             "loader %p, corpus %p with %d domains", (void *)out, (const void *)c,
             c ? c->n_domains : 0);
    MU_CHECK(seq_len > 0 && val_fraction >= 0 && val_fraction < 1, "seq_len %lld, val_fraction %g",
             (long long)seq_len, val_fraction);
    MU_CHECK((int)split >= 0 && split <= MU_VAL_TAIL, "unknown split %d", (int)split);
    mu_loader *l = mu_alloc(1, sizeof *l);
    *l = (mu_loader){ .corpus = c, .seq_len = seq_len, .seed = seed, .n_parts = c->n_domains, .per_step = 1 };
    l->parts = mu_alloc((size_t)l->n_parts, sizeof *l->parts);
    mu_status status = MU_STATUS_OK;
    for (int i = 0; !status && i < l->n_parts; i++) {
        status = mu_split_make(&l->parts[i].split, &c->domains[i], seq_len, val_fraction, split, e);
        mu_order_init(&l->parts[i].order, l->parts[i].split.n_train, false);
    }
    if (!status) status = set_shares(l, e);
    *out = status ? NULL : l;
    if (status) mu_loader_close(l);
    return status;
}

void mu_loader_close(mu_loader *l) {
    if (!l) return;
    for (int i = 0; i < l->n_parts; i++) {
        mu_order_free(&l->parts[i].order);
        mu_split_free(&l->parts[i].split);
    }
    free_phases(l);
    free(l->parts);
    free(l);
}

mu_status mu_loader_order_in_memory(mu_loader *l, mu_error *e) {
    MU_CHECK(l && l->next_sample == l->first, "loader %p has drawn samples", (void *)l);
    for (int i = 0; i < l->n_parts; i++) {
        if (l->parts[i].split.n_train > UINT32_MAX)
            return mu_error_set(e, MU_STATUS_DATA, "domain \"%s\": %lld training sequences are more than %lld; use longer sequences",
                                l->corpus->domains[i].name, (long long)l->parts[i].split.n_train, (long long)UINT32_MAX);
        mu_order_init(&l->parts[i].order, l->parts[i].split.n_train, true);
    }
    l->order_in_memory = true;
    return MU_STATUS_OK;
}

bool mu_loader_is_order_in_memory(const mu_loader *l) { return l->order_in_memory; }

static const part *part_of(const mu_loader *l, int domain) {
    MU_CHECK(l && domain >= 0 && domain < l->n_parts, "loader %p, domain %d of %d", (const void *)l, domain, l ? l->n_parts : 0);
    return &l->parts[domain];
}

/* ------------------------------------------------------------------ phases */

int mu_phase_of_step(const mu_option_phases *phases, int64_t step) {
    int i = 0;
    while (i + 1 < phases->n && step > phases->list[i].until_step) i++;
    return i;
}

double mu_phase_weight(const mu_option_phase *phase, const char *domain) {
    for (int i = 0; i < phase->n; i++)
        if (!strcmp(phase->mix[i].domain, domain)) return phase->mix[i].weight;
    return 0;
}

/* The number of samples before the end of phase i. */
static int64_t end_of_phase(const mu_option_phases *phases, int i, int64_t per_step) {
    int64_t steps = phases->list[i].until_step;
    return i + 1 == phases->n || steps > INT64_MAX / per_step ? INT64_MAX : steps * per_step;
}

static mu_status check_names(const mu_loader *l, const mu_option_phases *phases, mu_error *e) {
    for (int i = 0; i < phases->n; i++)
        for (int k = 0; k < phases->list[i].n; k++) {
            const char *name = phases->list[i].mix[k].domain;
            int d = 0;
            while (d < l->n_parts && strcmp(l->corpus->domains[d].name, name)) d++;
            if (d == l->n_parts)
                return mu_error_set(e, MU_STATUS_CONFIG, "data.phases: phase %d names domain \"%s\", which is not in data.train", i + 1, name);
        }
    return MU_STATUS_OK;
}

mu_status mu_loader_set_phases(mu_loader *l, const mu_option_phases *phases, int64_t per_step, mu_error *e) {
    MU_CHECK(l && phases && per_step > 0, "loader %p, phases %p, %lld samples per step", (void *)l, (const void *)phases,
             (long long)per_step);
    mu_status status = check_names(l, phases, e);
    if (status || phases->n == 0) return status;
    double *weight = mu_alloc((size_t)l->n_parts, sizeof *weight);
    free_phases(l);
    l->per_step = per_step;
    for (int i = 0; i < phases->n && !status; i++) {
        for (int d = 0; d < l->n_parts; d++) weight[d] = mu_phase_weight(&phases->list[i], l->corpus->domains[d].name);
        status = add_phase(l, end_of_phase(phases, i, per_step), weight, "data.phases", e);
    }
    free(weight);
    return status;
}

/* share[i] becomes proportional to share[i]^tau. tau 1 or 0: it stays as it is. */
static void upsample(int n, double tau, double *share) {
    double sum = 0;
    if (tau == 1 || tau == 0) return;
    for (int i = 0; i < n; i++) sum += share[i] = share[i] > 0 ? pow(share[i], tau) : 0;
    for (int i = 0; i < n; i++) share[i] /= sum;
}

void mu_loader_upsample(mu_loader *l, double tau) {
    MU_CHECK(l && tau > 0 && tau <= 1 && l->next_sample == l->first, "loader %p has drawn samples, or tau is %g", (void *)l, tau);
    for (phase *p = l->phases; p < l->phases + l->n_phases; p++) {
        double up_to = 0;
        upsample(l->n_parts, tau, p->share);
        for (int i = 0; i < l->n_parts; i++) p->up_to[i] = up_to += p->share[i];
    }
}

double mu_loader_expected(const mu_loader *l, int64_t samples, int domain) {
    double n = (double)part_of(l, domain)->earlier;
    int64_t from = l->first;
    for (const phase *p = l->phases; p < l->phases + l->n_phases && from < samples; p++) {
        int64_t to = p + 1 == l->phases + l->n_phases || p->until > samples ? samples : p->until;
        if (to > from) n += p->share[domain] * (double)(to - from), from = to;
    }
    return n;
}

/* ------------------------------------------------------------------ drawing */

static const phase *phase_of(const mu_loader *l, int64_t sample) {
    const phase *p = l->phases;
    while (p + 1 < l->phases + l->n_phases && sample >= p->until) p++;
    return p;
}

/* A domain with share 0 is never chosen. Rounding may leave the last up_to slightly below 1; numbers beyond it choose the last
 * domain with a share. */
static int choose_domain(const mu_loader *l, int64_t sample) {
    mu_rng r = { .seed = l->seed, .step = (uint32_t)((uint64_t)sample >> 32), .sample = (uint32_t)sample,
                 .purpose = MU_RNG_DATA_DOMAIN };
    double u = mu_rng_uniform(&r, 0);
    const phase *p = phase_of(l, sample);
    int last = 0;
    for (int i = 0; i < l->n_parts; i++) {
        if (u < p->up_to[i]) return i;
        if (p->share[i] > 0) last = i;
    }
    return last;
}

/* The order is keyed by seed, domain name and epoch. */
static int64_t sequence_at(const mu_loader *l, int domain, int64_t place) {
    part *p = &l->parts[domain];
    const char *name = l->corpus->domains[domain].name;
    int64_t epoch = place / p->split.n_train;
    mu_rng key = { .seed = l->seed, .step = (uint32_t)epoch, .sample = (uint32_t)mu_hash64(name, strlen(name)),
                   .purpose = MU_RNG_DATA_ORDER };
    return mu_order_at(&p->order, &key, epoch, place % p->split.n_train);
}

static int64_t next_place(const part *p) { return p->earlier + p->drawn; }

/* ------------------------------------------------------------------ replay */

void mu_loader_set_replay(mu_loader *l, double share, int64_t sequences, const bool *domains) {
    MU_CHECK(l && share >= 0 && share <= MU_REPLAY_MOST && sequences >= 1 && domains, "loader %p, share %g, %lld sequences, domains %p", (void *)l,
             share, (long long)sequences, (const void *)domains);
    l->replay_share = share, l->replay_sequences = sequences;
    for (int i = 0; i < l->n_parts; i++) l->parts[i].replayed = domains[i];
}

int64_t mu_loader_replay_sequences(const mu_loader *l, int domain) {
    const part *p = part_of(l, domain);
    int64_t n = l->replay_sequences < next_place(p) ? l->replay_sequences : next_place(p);
    return n < p->split.n_train ? n : p->split.n_train;
}

int64_t mu_loader_replay_sequence(const mu_loader *l, int domain, int64_t i) {
    int64_t n = mu_loader_replay_sequences(l, domain);
    MU_CHECK(i >= 0 && i < n, "sequence %lld of %lld to replay", (long long)i, (long long)n);
    return sequence_at(l, domain, next_place(&l->parts[domain]) - n + i);
}

/* Is it replayed in this phase? */
static bool is_absent(const mu_loader *l, const phase *now, int domain) {
    const part *p = &l->parts[domain];
    return p->replayed && now->share[domain] == 0 && next_place(p) > 0;
}

bool mu_loader_is_absent(const mu_loader *l, int64_t step, int domain) {
    MU_CHECK(step >= 1 && part_of(l, domain), "step %lld", (long long)step);
    return is_absent(l, phase_of(l, (step - 1) * l->per_step), domain);
}

/* The domain of which a sequence replaces this sample; -1: none. */
static int choose_replay(const mu_loader *l, const mu_rng *key, const phase *now) {
    int n = 0;
    for (int i = 0; i < l->n_parts; i++) n += is_absent(l, now, i);
    if (n == 0) return -1;
    double share = fmin(l->replay_share, MU_REPLAY_MOST / n), u = mu_rng_uniform(key, 0);
    for (int i = 0, k = 0; i < l->n_parts; i++)
        if (is_absent(l, now, i) && u < share * ++k) return i;
    return -1;
}

/* The replaced sample stays drawn from its domain: replay changes no other sample, and no state. */
static void replay(const mu_loader *l, mu_sample *s) {
    const mu_rng key = { .seed = l->seed, .step = (uint32_t)((uint64_t)s->global_sample >> 32), .sample = (uint32_t)s->global_sample,
                         .purpose = MU_RNG_DATA_REPLAY };
    int domain = choose_replay(l, &key, phase_of(l, s->global_sample));
    if (domain < 0) return;
    int64_t n = mu_loader_replay_sequences(l, domain);
    s->domain = domain, s->sequence = mu_loader_replay_sequence(l, domain, (int64_t)(mu_rng_uniform(&key, 1) * (double)n));
}

void mu_loader_continue(mu_loader *l, int64_t first, const int64_t *earlier) {
    MU_CHECK(l && first >= 0 && earlier, "loader %p, first sample %lld, earlier samples %p", (void *)l, (long long)first,
             (const void *)earlier);
    l->first = l->next_sample = first;
    for (int i = 0; i < l->n_parts; i++) l->parts[i].drawn = 0, l->parts[i].earlier = earlier[i];
}

void mu_loader_next(mu_loader *l, int64_t n, mu_sample *samples) {
    MU_CHECK(l && n >= 0 && (samples || !n),
             "loader %p, %lld samples to %p", (void *)l, (long long)n, (void *)samples);
    for (int64_t i = 0; i < n; i++) {
        int domain = choose_domain(l, l->next_sample);
        samples[i] = (mu_sample){ domain, sequence_at(l, domain, next_place(&l->parts[domain])), l->next_sample++ };
        l->parts[domain].drawn++;
        if (l->replay_share > 0) replay(l, &samples[i]);
    }
}

/* ------------------------------------------------------------------ reading */

void mu_loader_read(const mu_loader *l, const mu_sample *s, int32_t *tokens, int32_t *targets) {
    const part *p = part_of(l, s->domain);
    int64_t n = p->split.n_train;
    MU_CHECK(s->sequence >= 0 && s->sequence < n, "training sequence %lld of %lld", (long long)s->sequence,
             (long long)n);
    mu_split_read_train(&p->split, &l->corpus->domains[s->domain], s->sequence, l->seq_len, tokens, targets);
}

void mu_loader_val_read(const mu_loader *l, int domain, int64_t sequence, int32_t *tokens, int32_t *targets) {
    const part *p = part_of(l, domain);
    MU_CHECK(sequence >= 0 && sequence < p->split.n_val, "validation sequence %lld of %lld", (long long)sequence,
             (long long)p->split.n_val);
    mu_split_read_val(&p->split, &l->corpus->domains[domain], sequence, l->seq_len, tokens, targets);
}

int64_t mu_loader_val_sequences(const mu_loader *l, int domain) { return part_of(l, domain)->split.n_val; }
int64_t mu_loader_train_sequences(const mu_loader *l, int domain) { return part_of(l, domain)->split.n_train; }
double mu_loader_share(const mu_loader *l, int domain) { return part_of(l, domain)->share; }

double mu_loader_share_at(const mu_loader *l, int64_t step, int domain) {
    MU_CHECK(step >= 1 && part_of(l, domain), "step %lld", (long long)step);
    return phase_of(l, (step - 1) * l->per_step)->share[domain];
}

/* ------------------------------------------------------------------ state */

int mu_loader_state_size(const mu_loader *l) { return l->n_parts + 1; }

void mu_loader_state_get(const mu_loader *l, int64_t *state) {
    for (int i = 0; i < l->n_parts; i++) state[i] = l->parts[i].drawn;
    state[l->n_parts] = l->next_sample - l->first;
}

/* Samples of the total that no source accounts for; -1 for an invalid state. */
static int64_t samples_left(int n_sources, const int64_t *state) {
    int64_t left = state[n_sources];
    for (int i = 0; i < n_sources; i++) {
        if (state[i] < 0 || state[i] > left) return -1;
        left -= state[i];
    }
    return left;
}

/* n log(n / m), the limit for n = 0. */
static double n_log(double n, double m) { return n > 0 ? n * log(n / m) : 0; }

/* The samples of a domain that a mixture makes. */
typedef struct {
    double expected;
    int64_t least, most;        /* of phases where it has all samples; where it has any */
} domain_samples;

/* Whether `drawn` of n samples are plausible. Chernoff bound: where the left side is 30, the probability of such a deviation from the
 * expected number is at most exp(-30) = 1e-13, also when the shares of the samples differ (Hoeffding 1963, theorem 1). */
static bool may_be_drawn(const domain_samples *s, int64_t drawn, double n) {
    if (drawn < s->least || drawn > s->most) return false;
    if (s->least == s->most) return true;
    return n_log((double)drawn, s->expected) + n_log(n - (double)drawn, n - s->expected) <= 30;
}

/* Adds `n` samples drawn with these weights. */
static void add_samples(const mu_mixture *mix, const double *weight, const int64_t *tokens, int64_t n, domain_samples *s) {
    int domains = mix->train->n;
    double *share = mu_alloc((size_t)domains, sizeof *share);
    normalise(domains, weight, tokens, share);
    upsample(domains, mix->upsample, share);
    for (int i = 0; i < domains; i++) {
        s[i].expected += share[i] * (double)n;
        if (share[i] >= 1) s[i].least += n;
        if (share[i] > 0) s[i].most += n;
    }
    free(share);
}

/* s[domains]: the first n samples that a run draws from the mixture. */
static void expect_samples(const mu_mixture *mix, const int64_t *tokens, int64_t n, domain_samples *s) {
    const mu_option_domains *train = mix->train;
    int n_phases = mix->phases ? mix->phases->n : 0;
    double *weight = mu_alloc((size_t)train->n, sizeof *weight);
    for (int d = 0; d < train->n; d++) weight[d] = train->list[d].weight;
    if (n_phases == 0) add_samples(mix, weight, tokens, n, s);
    int64_t from = mix->steps_before * mix->per_step, last = from + n;
    for (int i = 0; i < n_phases && from < last; i++) {
        int64_t end = end_of_phase(mix->phases, i, mix->per_step), to = end < last ? end : last;
        if (to <= from) continue;
        for (int d = 0; d < train->n; d++) weight[d] = mu_phase_weight(&mix->phases->list[i], train->list[d].domain);
        add_samples(mix, weight, tokens, to - from, s);
        from = to;
    }
    free(weight);
}

static mu_status check_shares(const mu_mixture *mix, const int64_t *tokens, const int64_t *state, int64_t samples, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    domain_samples *s = mu_alloc((size_t)mix->train->n, sizeof *s);
    expect_samples(mix, tokens, samples, s);
    for (int i = 0; i < mix->train->n && !status; i++)
        if (!may_be_drawn(&s[i], state[i], (double)samples))
            status = mu_error_set(e, MU_STATUS_DATA, "loader state: domain '%s': %lld of %lld samples drawn; implausible for a sampling weight of %g",
                                  mix->train->list[i].domain, (long long)state[i], (long long)samples, s[i].expected / (double)samples);
    free(s);
    return status;
}

mu_status mu_loader_state_check(const mu_mixture *mix, const int64_t *tokens, const int64_t *state, int64_t samples, mu_error *e) {
    MU_CHECK(mix && mix->train && state, "mixture %p, state %p", (const void *)mix, (const void *)state);
    const mu_option_domains *train = mix->train;
    mu_status status = MU_STATUS_OK;
    if (samples_left(train->n, state) != 0)
        status = mu_error_set(e, MU_STATUS_DATA, "loader state: the samples drawn from the domains do not add up to the total of %lld",
                              (long long)state[train->n]);
    if (status == MU_STATUS_OK && state[train->n] != samples)
        status = mu_error_set(e, MU_STATUS_DATA, "loader state: %lld samples drawn, but %lld are expected after this many steps",
                              (long long)state[train->n], (long long)samples);
    return status == MU_STATUS_OK && tokens ? check_shares(mix, tokens, state, samples, e) : status;
}

/* Samples drawn from the source of that name; 0 if there is none. */
static int64_t drawn_from(const char *name, const mu_option_domains *sources, const int64_t *state) {
    for (int i = 0; i < sources->n; i++)
        if (!strcmp(sources->list[i].domain, name)) return state[i];
    return 0;
}

mu_status mu_loader_state_set(mu_loader *l, const mu_option_domains *sources, const int64_t *state, mu_error *e) {
    MU_CHECK(l && sources && state,
             "loader %p, sources %p, state %p", (void *)l, (const void *)sources, (const void *)state);
    if (samples_left(sources->n, state) < 0)
        return mu_error_set(e, MU_STATUS_DATA, "loader state: a domain's number of samples is negative, or they exceed the total of %lld",
                            (long long)state[sources->n]);
    for (int i = 0; i < l->n_parts; i++) l->parts[i].drawn = drawn_from(l->corpus->domains[i].name, sources, state);
    l->next_sample = l->first + state[sources->n];
    return MU_STATUS_OK;
}

typedef struct {
    mu_loader *l;
    const mu_mixture *mix;
    const int64_t *tokens; /* tokens[0] is -1 when unknown */
    const int64_t *earlier;
    int64_t samples;
} saved;

static void state_get(const mu_state *s, void *host) {
    const saved *k = s->module;
    mu_loader_state_get(k->l, host);
}

static mu_status state_set(const mu_state *s, const void *host, mu_error *e) {
    const saved *k = s->module;
    mu_status status = mu_loader_state_check(k->mix, k->tokens[0] < 0 ? NULL : k->tokens, host, k->samples, e);
    if (status != MU_STATUS_OK || !k->l) return status;
    if (k->mix->train->n == k->l->n_parts) mu_loader_continue(k->l, k->mix->steps_before * k->mix->per_step, k->earlier);
    return mu_loader_state_set(k->l, k->mix->train, host, e);
}

void mu_loader_state(mu_loader *l, const mu_mixture *mix, int64_t samples, mu_state_visitor *v) {
    const mu_option_domains *train = mix ? mix->train : NULL;
    MU_CHECK(train && train->n >= 1 && samples >= 0 && v,
             "train or visitor is NULL, train is empty, or %lld samples", (long long)samples);
    int64_t *tokens = mu_alloc(2 * (size_t)train->n, sizeof *tokens), *earlier = tokens + train->n;
    for (int i = 0; i < train->n; i++) {
        bool known = l && i < l->n_parts;
        tokens[i] = known ? l->corpus->domains[i].n_tokens : -1;
        earlier[i] = known ? l->parts[i].earlier : 0;
    }
    saved k = { l, mix, tokens, earlier, samples };
    mu_state sizes = { .name = "/state/tokens", .type = MU_STORE_I64, .n_dims = 1, .shape = { train->n }, .data = tokens,
                       .min = 0, .max = INT64_MAX, .for_training = true, .since = 3 };
    mu_state before = { .name = "/state/earlier", .type = MU_STORE_I64, .n_dims = 1, .shape = { train->n }, .data = earlier,
                        .min = 0, .max = INT64_MAX / 4, .for_training = true, .since = 4 };
    mu_state drawn = { .name = "/state/loader", .type = MU_STORE_I64, .n_dims = 1, .shape = { train->n + 1 }, .min = 0,
                       .max = samples, .for_training = true, .module = &k, .get = state_get, .set = state_set };
    v->visit(v, &sizes);
    v->visit(v, &before);
    v->visit(v, &drawn);
    free(tokens);
}
