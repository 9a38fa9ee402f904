/* loader.c - which sequence is sample g of the run.
 *
 * Sample g falls to a domain by a random number keyed with g, and is there the next of the domain's
 * sequences in an order shuffled anew each epoch, which depends on its name and content alone. So the state is how many
 * samples each domain has given, nothing depends on how the samples are split into batches, ranks or runs, and domains
 * that come, go or change their weight leave to the others the sequence of samples that they give. */
#include "data/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    mu_split split;
    double share, up_to;        /* up_to: the shares of this domain and all before it */
    int64_t drawn;              /* samples given so far */
    uint32_t *order;            /* the training sequences as shuffled for `epoch` */
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

/* A share counts all tokens of the domain: that validation keeps some must not make a rare one rarer. */
static mu_status share_out(mu_loader *l, mu_error *e) {
    double sum = 0, up_to = 0;
    for (int i = 0; i < l->n_parts; i++) {
        const mu_domain *d = &l->corpus->domains[i];
        l->parts[i].share = d->weight * (double)d->n_tokens;
        if (!(d->weight >= 0 && isfinite(l->parts[i].share)))
            return mu_error_set(e, MU_STATUS_CONFIG, "domain \"%s\": weight %g is not a number from 0 up",
                                d->name, d->weight);
        sum += l->parts[i].share;
    }
    if (!(sum > 0 && isfinite(sum)))
        return mu_error_set(e, MU_STATUS_CONFIG, "data.train: the weights leave nothing to train on");
    for (int i = 0; i < l->n_parts; i++) {
        l->parts[i].share /= sum;
        l->parts[i].up_to = up_to += l->parts[i].share;
    }
    return MU_STATUS_OK;
}

mu_status mu_loader_open(mu_loader **out, const mu_corpus *c, int64_t seq_len, double val_fraction,
                         mu_val_split split, uint64_t seed, mu_error *e) {
    MU_CHECK(out && c && c->n_domains > 0, "loader %p, corpus %p of %d domains", (void *)out, (const void *)c,
             c ? c->n_domains : 0);
    MU_CHECK(seq_len > 0 && val_fraction >= 0 && val_fraction < 1, "seq_len %lld, val_fraction %g",
             (long long)seq_len, val_fraction);
    MU_CHECK((int)split >= 0 && split <= MU_VAL_TAIL, "no split %d", (int)split);
    mu_loader *l = mu_alloc(1, sizeof *l);
    *l = (mu_loader){ .corpus = c, .seq_len = seq_len, .seed = seed, .n_parts = c->n_domains };
    l->parts = mu_alloc((size_t)l->n_parts, sizeof *l->parts);
    mu_status status = MU_STATUS_OK;
    for (int i = 0; !status && i < l->n_parts; i++) {
        l->parts[i].epoch = -1;
        status = mu_split_make(&l->parts[i].split, &c->domains[i], seq_len, val_fraction, split, e);
        if (!status && l->parts[i].split.n_train > UINT32_MAX)
            status = mu_error_set(e, MU_STATUS_DATA, "domain \"%s\": %lld training sequences are more than %lld; make train.seq_len larger",
                                  c->domains[i].name, (long long)l->parts[i].split.n_train, (long long)UINT32_MAX);
    }
    if (!status) status = share_out(l, e);
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

/* A domain without a share is never chosen: it adds nothing to up_to. Rounding may leave the last up_to
 * a little under one; what falls there goes to the last domain that has a share. */
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

/* Fisher and Yates, with numbers keyed by seed, domain name and epoch. */
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
    MU_CHECK(l && n >= 0 && (samples || !n), "loader %p, %lld samples to %p", (void *)l, (long long)n, (void *)samples);
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
    MU_CHECK(s->sequence >= 0 && s->sequence < n, "sequence %lld of %lld", (long long)s->sequence,
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

/* Samples that no source of the state has given; -1 when it is no state. */
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

/* Could so many of n samples fall to a domain of this share? Chernoff: with a chance of at most exp(-30) = 1e-13 they are as far
 * from share * n where the left side is 30. */
static bool may_be_drawn(double share, double drawn, double n) {
    if (share <= 0 || share >= 1) return drawn == n * share;
    return n_log(drawn, n * share) + n_log(n - drawn, n * (1 - share)) <= 30;
}

mu_status mu_loader_state_check(const mu_option_domains *train, const int64_t *tokens, const int64_t *state, int64_t samples,
                                mu_error *e) {
    MU_CHECK(train && state, "domains %p, state %p", (const void *)train, (const void *)state);
    mu_status status = MU_STATUS_OK;
    if (samples_left(train->n, state) != 0)
        status = mu_error_set(e, MU_STATUS_DATA, "loader state: the domains' samples do not add up to %lld",
                              (long long)state[train->n]);
    if (status == MU_STATUS_OK && state[train->n] != samples)
        status = mu_error_set(e, MU_STATUS_DATA, "loader state: %lld samples, by the steps %lld",
                              (long long)state[train->n], (long long)samples);
    double sum = 0;
    for (int i = 0; tokens && i < train->n; i++) sum += train->list[i].weight * (double)tokens[i];
    for (int i = 0; tokens && i < train->n && status == MU_STATUS_OK; i++) {
        double share = train->list[i].weight * (double)tokens[i] / sum;
        if (!may_be_drawn(share, (double)state[i], (double)samples))
            status = mu_error_set(e, MU_STATUS_DATA, "loader state: %lld of %lld samples for a domain whose share is %g",
                                  (long long)state[i], (long long)samples, share);
    }
    return status;
}

/* Samples drawn from the source of that name; 0 when the state does not name it. */
static int64_t drawn_from(const char *name, const mu_option_domains *sources, const int64_t *state) {
    for (int i = 0; i < sources->n; i++)
        if (!strcmp(sources->list[i].domain, name)) return state[i];
    return 0;
}

mu_status mu_loader_state_set(mu_loader *l, const mu_option_domains *sources, const int64_t *state, mu_error *e) {
    MU_CHECK(l && sources && state, "loader %p, sources %p, state %p", (void *)l, (const void *)sources, (const void *)state);
    if (samples_left(sources->n, state) < 0)
        return mu_error_set(e, MU_STATUS_DATA, "loader state: the domains' samples are negative, or more than %lld",
                            (long long)state[sources->n]);
    for (int i = 0; i < l->n_parts; i++) l->parts[i].drawn = drawn_from(l->corpus->domains[i].name, sources, state);
    l->next_sample = state[sources->n];
    return MU_STATUS_OK;
}

typedef struct {
    mu_loader *l;
    const mu_option_domains *train;
    const int64_t *tokens; /* tokens[0] is -1 where they are not known */
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
    MU_CHECK(train && train->n >= 1 && samples >= 0 && v, "a loader's state after %lld samples", (long long)samples);
    int64_t *tokens = mu_alloc((size_t)train->n, sizeof *tokens);
    for (int i = 0; i < train->n; i++) tokens[i] = l && i < l->n_parts ? l->corpus->domains[i].n_tokens : -1;
    saved k = { l, train, tokens, samples };
    mu_state sizes = { .name = "/state/tokens", .type = MU_STORE_I64, .n_dims = 1, .shape = { train->n }, .data = tokens,
                       .least = 0, .most = INT64_MAX, .for_training = true, .since = 3 };
    mu_state drawn = { .name = "/state/loader", .type = MU_STORE_I64, .n_dims = 1, .shape = { train->n + 1 }, .least = 0,
                       .most = samples, .for_training = true, .module = &k, .get = state_get, .set = state_set };
    v->visit(v, &sizes);
    v->visit(v, &drawn);
    free(tokens);
}
