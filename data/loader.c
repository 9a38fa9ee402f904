/* loader.c - which sequence is sample g of the run.
 *
 * A random number keyed with g chooses the domain of sample g; the sample is the next of the domain's sequences, in an order
 * that is shuffled every epoch and depends only on the domain's name and content. So the state is the number of samples drawn
 * per domain; nothing depends on how samples are split into batches, ranks or runs; and adding, removing or reweighting a
 * domain does not change the samples that the others give. */
#include "data/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    mu_split split;
    double share, up_to;        /* up_to: cumulative share, this domain included */
    int64_t drawn;              /* samples drawn so far */
    uint32_t *order;            /* the training sequences, shuffled for `epoch` */
    int64_t epoch;              /* -1: not yet */
} part;

struct mu_loader {
    const mu_corpus *corpus;
    int64_t seq_len;
    uint64_t seed;
    int64_t next_sample;
    int n_parts;
    part *parts;
};

/* ------------------------------------------------------------------ opening */

/* Shares count all tokens of a domain, validation included, so that the split does not make rare domains rarer. */
static mu_status set_shares(mu_loader *l, mu_error *e) {
    double sum = 0, up_to = 0;
    for (int i = 0; i < l->n_parts; i++) {
        const mu_domain *d = &l->corpus->domains[i];
        l->parts[i].share = d->weight * (double)d->n_tokens;
        if (!(d->weight >= 0 && isfinite(l->parts[i].share)))
            return mu_error_set(e, MU_STATUS_CONFIG, "domain \"%s\": weight %g must be a finite number, at least 0",
                                d->name, d->weight);
        sum += l->parts[i].share;
    }
    if (!(sum > 0 && isfinite(sum)))
        return mu_error_set(e, MU_STATUS_CONFIG, "data.train: all weights are 0 or the shares are not finite: no training data");
    for (int i = 0; i < l->n_parts; i++) {
        l->parts[i].share /= sum;
        l->parts[i].up_to = up_to += l->parts[i].share;
    }
    return MU_STATUS_OK;
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
    *l = (mu_loader){ .corpus = c, .seq_len = seq_len, .seed = seed, .n_parts = c->n_domains };
    l->parts = mu_alloc((size_t)l->n_parts, sizeof *l->parts);
    mu_status status = MU_STATUS_OK;
    for (int i = 0; !status && i < l->n_parts; i++) {
        l->parts[i].epoch = -1;
        status = mu_split_make(&l->parts[i].split, &c->domains[i], seq_len, val_fraction, split, e);
        if (!status && l->parts[i].split.n_train > UINT32_MAX)
            status = mu_error_set(e, MU_STATUS_DATA, "domain \"%s\": %lld training sequences are more than %lld; use longer sequences",
                                  c->domains[i].name, (long long)l->parts[i].split.n_train, (long long)UINT32_MAX);
    }
    if (!status) status = set_shares(l, e);
    *out = status ? NULL : l;
    if (status) mu_loader_close(l);
    return status;
}

void mu_loader_close(mu_loader *l) {
    if (!l) return;
    for (int i = 0; i < l->n_parts; i++) {
        free(l->parts[i].order);
        mu_split_free(&l->parts[i].split);
    }
    free(l->parts);
    free(l);
}

/* ------------------------------------------------------------------ drawing */

/* A domain with share 0 is never chosen. Rounding may leave the last up_to slightly below 1; numbers beyond it choose the last
 * domain with a share. */
static int choose_domain(const mu_loader *l, int64_t sample) {
    mu_rng r = { .seed = l->seed, .step = (uint32_t)((uint64_t)sample >> 32), .sample = (uint32_t)sample,
                 .purpose = MU_RNG_DATA_DOMAIN };
    double u = mu_rng_uniform(&r, 0);
    int last = 0;
    for (int i = 0; i < l->n_parts; i++) {
        if (u < l->parts[i].up_to) return i;
        if (l->parts[i].share > 0) last = i;
    }
    return last;
}

/* Fisher-Yates shuffle, keyed by seed, domain name and epoch. */
static void shuffle(const mu_loader *l, int domain, int64_t epoch) {
    part *p = &l->parts[domain];
    const char *name = l->corpus->domains[domain].name;
    mu_rng r = { .seed = l->seed, .step = (uint32_t)epoch, .sample = (uint32_t)mu_hash64(name, strlen(name)),
                 .purpose = MU_RNG_DATA_ORDER };
    if (!p->order) p->order = mu_alloc((size_t)p->split.n_train, sizeof *p->order);
    for (int64_t i = 0; i < p->split.n_train; i++) p->order[i] = (uint32_t)i;
    for (int64_t i = p->split.n_train - 1; i > 0; i--) {
        int64_t j = (int64_t)(mu_rng_uniform(&r, (uint64_t)i) * (double)(i + 1));
        uint32_t moved = p->order[i];
        if (j > i) j = i;
        p->order[i] = p->order[j];
        p->order[j] = moved;
    }
    p->epoch = epoch;
}

static int64_t next_sequence(const mu_loader *l, int domain) {
    part *p = &l->parts[domain];
    int64_t epoch = p->drawn / p->split.n_train, place = p->drawn % p->split.n_train;
    if (epoch != p->epoch) shuffle(l, domain, epoch);
    p->drawn++;
    return p->order[place];
}

void mu_loader_next(mu_loader *l, int64_t n, mu_sample *samples) {
    MU_CHECK(l && n >= 0 && (samples || !n),
             "loader %p, %lld samples to %p", (void *)l, (long long)n, (void *)samples);
    for (int64_t i = 0; i < n; i++) {
        int domain = choose_domain(l, l->next_sample);
        samples[i] = (mu_sample){ domain, next_sequence(l, domain), l->next_sample++ };
    }
}

/* ------------------------------------------------------------------ reading */

static const part *part_of(const mu_loader *l, int domain) {
    MU_CHECK(l && domain >= 0 && domain < l->n_parts, "loader %p, domain %d of %d", (const void *)l, domain, l ? l->n_parts : 0);
    return &l->parts[domain];
}

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

/* ------------------------------------------------------------------ state */

int mu_loader_state_size(const mu_loader *l) { return l->n_parts + 1; }

void mu_loader_state_get(const mu_loader *l, int64_t *state) {
    for (int i = 0; i < l->n_parts; i++) state[i] = l->parts[i].drawn;
    state[l->n_parts] = l->next_sample;
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

/* Whether `drawn` of n samples are plausible for a domain of this share. Chernoff bound: where the left side is 30, the
 * probability of such a deviation from share * n is at most exp(-30) = 1e-13. */
static bool may_be_drawn(double share, double drawn, double n) {
    if (share <= 0 || share >= 1) return drawn == n * share;
    return n_log(drawn, n * share) + n_log(n - drawn, n * (1 - share)) <= 30;
}

mu_status mu_loader_state_check(const mu_option_domains *train, const int64_t *tokens, const int64_t *state, int64_t samples,
                                mu_error *e) {
    MU_CHECK(train && state, "domains %p, state %p", (const void *)train, (const void *)state);
    mu_status status = MU_STATUS_OK;
    if (samples_left(train->n, state) != 0)
        status = mu_error_set(e, MU_STATUS_DATA, "loader state: the samples drawn from the domains do not add up to the total of %lld",
                              (long long)state[train->n]);
    if (status == MU_STATUS_OK && state[train->n] != samples)
        status = mu_error_set(e, MU_STATUS_DATA, "loader state: %lld samples drawn, but %lld are expected after this many steps",
                              (long long)state[train->n], (long long)samples);
    double sum = 0;
    for (int i = 0; tokens && i < train->n; i++) sum += train->list[i].weight * (double)tokens[i];
    for (int i = 0; tokens && i < train->n && status == MU_STATUS_OK; i++) {
        double share = train->list[i].weight * (double)tokens[i] / sum;
        if (!may_be_drawn(share, (double)state[i], (double)samples))
            status = mu_error_set(e, MU_STATUS_DATA, "loader state: domain '%s': %lld of %lld samples drawn; implausible for a sampling weight of %g",
                                  train->list[i].domain, (long long)state[i], (long long)samples, share);
    }
    return status;
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
    l->next_sample = state[sources->n];
    return MU_STATUS_OK;
}

typedef struct {
    mu_loader *l;
    const mu_option_domains *train;
    const int64_t *tokens; /* tokens[0] is -1 when unknown */
    int64_t samples;
} saved;

static void state_get(const mu_state *s, void *host) {
    const saved *k = s->module;
    mu_loader_state_get(k->l, host);
}

static mu_status state_set(const mu_state *s, const void *host, mu_error *e) {
    const saved *k = s->module;
    mu_status status = mu_loader_state_check(k->train, k->tokens[0] < 0 ? NULL : k->tokens, host, k->samples, e);
    return status == MU_STATUS_OK && k->l ? mu_loader_state_set(k->l, k->train, host, e) : status;
}

void mu_loader_state(mu_loader *l, const mu_option_domains *train, int64_t samples, mu_state_visitor *v) {
    MU_CHECK(train && train->n >= 1 && samples >= 0 && v,
             "train or visitor is NULL, train is empty, or %lld samples", (long long)samples);
    int64_t *tokens = mu_alloc((size_t)train->n, sizeof *tokens);
    for (int i = 0; i < train->n; i++) tokens[i] = l && i < l->n_parts ? l->corpus->domains[i].n_tokens : -1;
    saved k = { l, train, tokens, samples };
    mu_state sizes = { .name = "/state/tokens", .type = MU_STORE_I64, .n_dims = 1, .shape = { train->n }, .data = tokens,
                       .min = 0, .max = INT64_MAX, .for_training = true, .since = 3 };
    mu_state drawn = { .name = "/state/loader", .type = MU_STORE_I64, .n_dims = 1, .shape = { train->n + 1 }, .min = 0,
                       .max = samples, .for_training = true, .module = &k, .get = state_get, .set = state_set };
    v->visit(v, &sizes);
    v->visit(v, &drawn);
    free(tokens);
}
