/* expert_states.c - the state of every expert: whether it is used enough, and which rare domain depends on it. Arithmetic on
 * numbers that are the same on every rank. */
#include "moe/moe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double NATS_MAX = 1e9;     /* limit of values in checkpoints */
static const double GROWN = 1.1;        /* a criticality larger by this factor makes a new record of the expert */
static const double DISTINCT = 2;       /* a carrier's criticality is at least this times the largest for a common domain */

MU_OPTION_DEFAULTS(mu_stats_config, "stats", MU_OPTIONS_STATS)

void mu_stats_config_check(const mu_stats_config *t, mu_complaints *c) {
    if (!check_ranges(t, c)) return;
    if (t->dead_load > t->starved_load)
        mu_complain(c, "stats", "dead_load", "stats.dead_load stats.starved_load", "%g is more than starved_load %g", t->dead_load,
                    t->starved_load);
    if (t->dead_silence < t->starved_silence)
        mu_complain(c, "stats", "dead_silence", "stats.dead_silence stats.starved_silence", "%g is less than starved_silence %g",
                    t->dead_silence, t->starved_silence);
}

const char *mu_expert_state_name(mu_expert_state state) {
    static const char *const names[MU_EXPERT_STATES] = {
        [MU_EXPERT_HEALTHY] = "healthy", [MU_EXPERT_STARVED] = "starved", [MU_EXPERT_DEAD] = "dead", [MU_EXPERT_CARRIER] = "carrier",
        [MU_EXPERT_DORMANT] = "dormant", [MU_EXPERT_DUPLICATE] = "duplicate", [MU_EXPERT_OVERWRITTEN] = "overwritten",
    };
    return names[state];
}

static int64_t cells(const mu_expert_health *h) { return (int64_t)h->layers * h->experts; }

void mu_expert_health_init(mu_expert_health *h, int layers, int experts) {
    MU_CHECK(h && layers >= 0 && experts >= 0, "states of %d layers with %d experts each", layers, experts);
    *h = (mu_expert_health){ .layers = layers, .experts = experts };
    int64_t **arrays[] = { &h->state, &h->since, &h->below_dead, &h->below_starved, &h->leaving, &h->carried, &h->top, &h->frozen, &h->reseeded };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) *arrays[i] = mu_alloc((size_t)cells(h), sizeof(int64_t));
    h->top_criticality = mu_alloc((size_t)cells(h), sizeof(double));
}

void mu_expert_health_free(mu_expert_health *h) {
    int64_t *arrays[] = { h->state, h->since, h->below_dead, h->below_starved, h->leaving, h->carried, h->top, h->frozen, h->reseeded };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    free(h->top_criticality);
    *h = (mu_expert_health){ 0 };
}

typedef struct {
    const mu_option_domains *from;      /* the checkpoint's */
    char (*names)[64];                  /* the run's */
    int n;
} renaming;

/* After loading: 1 + number among the checkpoint's domains becomes 1 + number among the run's, 0 for one that the run does not have. */
static mu_status rename_domains(const mu_state *s, const void *host, mu_error *e) {
    const renaming *r = s->module;
    int64_t *domain = s->data;
    (void)host, (void)e;
    for (int64_t i = 0; i < mu_state_count(s); i++) {
        int found = 0;
        for (int d = 0; d < r->n && domain[i]; d++)
            if (!strcmp(r->names[d], r->from->list[domain[i] - 1].domain)) found = d + 1;
        domain[i] = found;
    }
    return MU_STATUS_OK;
}

void mu_expert_health_state(mu_expert_health *h, const mu_option_domains *from, int domains, char (*names)[64], int64_t step,
                            mu_state_visitor *v) {
    renaming r = { from, names, domains };
    const struct { const char *name; int64_t *data, max; } list[] = {
        { "state", h->state, MU_EXPERT_STATES - 1 }, { "since", h->since, step },  { "below_dead", h->below_dead, step },
        { "below_starved", h->below_starved, step }, { "leaving", h->leaving, step }, { "carried", h->carried, from->n },
        { "top_domain", h->top, from->n },           { "frozen", h->frozen, MU_FROZEN_PAST }, { "reseeded", h->reseeded, step },
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        mu_state s = { .type = MU_STORE_I64, .n_dims = 2, .shape = { h->layers, h->experts }, .data = list[i].data, .min = 0,
                       .max = list[i].max, .for_training = true, .since = 4 };
        snprintf(s.name, sizeof s.name, "/state/experts/%s", list[i].name);
        if (list[i].data == h->carried || list[i].data == h->top) s.module = &r, s.set = rename_domains;
        if (list[i].data == h->frozen || list[i].data == h->reseeded) s.since = 6;
        v->visit(v, &s);
    }
    mu_state criticality = { .name = "/state/experts/top_criticality", .type = MU_STORE_F64, .n_dims = 2, .shape = { h->layers, h->experts },
                             .data = h->top_criticality, .low = 0, .high = NATS_MAX, .for_training = true, .since = 4 };
    v->visit(v, &criticality);
}

/* ------------------------------------------------------------------ the evidence about one expert */

typedef struct {
    int expert;
    double load;            /* relative to the mean of its layer */
    int carries;            /* the rare domain that depends on it most, -1: none */
    double score;           /* of that domain: K ln(1 / share) */
    int top;                /* the domain of whose tokens it gets the largest share; -1: no tokens, or not known */
} finding;

typedef struct {
    mu_expert_health *h;
    const mu_expert_evidence *v;
    const mu_stats_config *t;
    int64_t first;          /* cell of the layer's expert 0 */
    finding *found;         /* [experts], in the order of experts */
    int *ranked;            /* [experts]: experts that may carry a domain, the highest score first */
    int n_ranked;
} judgement;

bool mu_domain_is_rare(const mu_stats_config *t, double share, double present_share) { return fmin(share, present_share) <= t->rare_domain; }
static double K_of(const judgement *j, int expert, int d) { return (double)j->v->K[(j->first + expert) * j->v->domains + d]; }
static double peak_of(const judgement *j, int expert, int d) { return (double)j->v->peak[(j->first + expert) * j->v->domains + d]; }

/* Share of what was learned of a domain that is still known. */
static double retention(const mu_expert_evidence *v, int d) {
    double learned = v->ce_ref[d] - v->ce_best[d];
    return learned > 0 ? (v->ce_ref[d] - v->ce[d]) / learned : 1;
}

bool mu_expert_carries(int64_t state) { return state == MU_EXPERT_CARRIER || state == MU_EXPERT_DORMANT; }

static bool is_rare(const judgement *j, int d) {
    return mu_domain_is_rare(j->t, j->v->share[d], j->v->present_share ? j->v->present_share[d] : j->v->share[d]);
}

/* The most that a domain that is not rare loses without the expert; `unknown` for one that has a probe (ce) and was never measured. */
static double common_K(const judgement *j, int expert, double unknown) {
    double most = 0;
    for (int d = 0; d < j->v->domains; d++) {
        bool measured = !j->v->at || j->v->at[(j->first + expert) * j->v->domains + d] || j->v->ce[d] == 0;
        if (!is_rare(j, d)) most = fmax(most, measured ? K_of(j, expert, d) : unknown);
    }
    return most;
}

/* Does this rare domain depend on the expert? Where a common one depends on it about as much, both are alike, and what they share is in no
 * danger: it is used every day. A carrier that others begin to use stays one until they need it more. */
static bool depends(const judgement *j, int expert, int d) {
    int64_t at = j->first + expert;
    bool already = mu_expert_carries(j->h->state[at]) && j->h->carried[at] == d + 1;
    double gain = j->v->ce_ref[d] - j->v->ce[d], K = K_of(j, expert, d);
    return gain > 0 && is_rare(j, d) && K >= fmax(j->t->carrier_criticality, j->t->carrier_gain * gain) &&
           K >= (already ? common_K(j, expert, 0) : DISTINCT * common_K(j, expert, INFINITY));
}

/* The rare domain that depends on the expert; an earlier one stays as long as it does. */
static void find_carried(const judgement *j, finding *f) {
    int before = (int)j->h->carried[j->first + f->expert] - 1;
    f->carries = -1;
    for (int d = 0; d < j->v->domains && j->v->K; d++) {
        double score = depends(j, f->expert, d) ? K_of(j, f->expert, d) * log(1 / fmax(j->v->share[d], 1e-9)) : 0;
        if (score > f->score) f->score = score, f->carries = d;
    }
    if (f->carries >= 0 && before >= 0 && depends(j, f->expert, before)) f->carries = before;
}

static void find_tops(const judgement *j) {
    int D = j->v->domains, E = j->h->experts;
    const int32_t *n = j->v->by_domain ? j->v->by_domain + j->first * D : NULL;
    double *best = mu_alloc((size_t)E, sizeof *best);
    for (int d = 0; d < D && n; d++) {
        double all = 0;
        for (int i = 0; i < E; i++) all += (double)n[(int64_t)i * D + d];
        for (int i = 0; i < E; i++) {
            double part = all > 0 ? (double)n[(int64_t)i * D + d] / all : 0;
            if (part > best[i]) best[i] = part, j->found[i].top = d;
        }
    }
    free(best);
}

static void find_all(judgement *j) {
    double total = 0;
    for (int i = 0; i < j->h->experts; i++) total += (double)j->v->load[j->first + i];
    for (int i = 0; i < j->h->experts; i++) {
        int64_t at = j->first + i;
        finding *f = &j->found[i];
        *f = (finding){ .expert = i, .carries = -1, .top = -1 };
        if (total > 0) f->load = (double)j->v->load[at] * j->h->experts / total;
        j->h->below_dead[at] = f->load < j->t->dead_load ? j->h->below_dead[at] + 1 : 0;
        j->h->below_starved[at] = f->load < j->t->starved_load ? j->h->below_starved[at] + 1 : 0;
        find_carried(j, f);
    }
    find_tops(j);
}

static int by_score(const void *a, const void *b) {
    const finding *x = a, *y = b;
    return x->score != y->score ? (x->score < y->score ? 1 : -1) : (x->expert > y->expert) - (x->expert < y->expert);
}

/* At most this many experts of a layer carry a domain. */
static int carriers_max(const judgement *j) { return (int)ceil(j->t->carrier_share * j->h->experts); }

/* Of those that could, only the first carriers_max carry a domain. */
static void rank(judgement *j) {
    finding *sorted = mu_alloc((size_t)j->h->experts, sizeof *sorted);
    memcpy(sorted, j->found, sizeof *sorted * (size_t)j->h->experts);
    qsort(sorted, (size_t)j->h->experts, sizeof *sorted, by_score);
    j->n_ranked = 0;
    for (int i = 0; i < j->h->experts && sorted[i].carries >= 0; i++) {
        if (j->n_ranked < carriers_max(j)) j->ranked[j->n_ranked++] = sorted[i].expert;
        else j->found[sorted[i].expert].carries = -1;
    }
    free(sorted);
}

/* ------------------------------------------------------------------ the rules, in their order */

static bool is_copy_of_busy(const judgement *j, int expert) {
    int64_t at = j->first + expert, twin = j->v->twin ? j->v->twin_of[at] : -1;
    return twin >= 0 && j->v->twin[at] >= j->t->copy_cosine && j->found[twin].load >= 1;
}

static bool is_overwritten(const judgement *j, const finding *f) {
    int64_t at = j->first + f->expert;
    int d = (int)j->h->carried[at] - 1, top = (int)j->h->top[at] - 1;
    if (d < 0 || !j->v->K) return false;
    bool lost = K_of(j, f->expert, d) < j->t->overwritten_criticality * peak_of(j, f->expert, d) ||
                retention(j->v, d) < j->t->overwritten_retention;
    return lost && ((top >= 0 && f->top >= 0 && f->top != top) || is_copy_of_busy(j, f->expert));
}

/* Was it re-seeded so recently that it is too early to tell? */
static bool is_new(const judgement *j, int64_t at) {
    int64_t reseeded = j->v->reseeded ? j->v->reseeded[at] : 0;
    return reseeded && j->v->step - reseeded < j->t->duplicate_windows * j->v->interval;
}

static bool is_duplicate(const judgement *j, int expert) {
    int64_t at = j->first + expert;
    if (!j->v->reseeded || !j->v->reseeded[at] || !j->v->twin) return false;
    return !is_new(j, at) && j->v->twin[at] >= j->t->copy_cosine;
}

static bool matters_to_none(const judgement *j, int expert) {
    for (int d = 0; d < j->v->domains && j->v->K; d++)
        if (K_of(j, expert, d) >= j->t->dead_criticality) return false;
    return true;
}

static mu_expert_state first_match(const judgement *j, const finding *f) {
    int64_t at = j->first + f->expert;
    double z = j->v->silence[at];
    if (is_overwritten(j, f)) return MU_EXPERT_OVERWRITTEN;
    if (f->carries >= 0) return z > j->t->dead_silence ? MU_EXPERT_DORMANT : MU_EXPERT_CARRIER;
    if (is_duplicate(j, f->expert)) return MU_EXPERT_DUPLICATE;
    bool unused = j->h->below_dead[at] >= j->t->dead_windows && z > j->t->dead_silence;
    if (unused && !is_new(j, at) && matters_to_none(j, f->expert)) return MU_EXPERT_DEAD;
    if (j->h->below_starved[at] >= j->t->starved_windows || z > j->t->starved_silence) return MU_EXPERT_STARVED;
    return MU_EXPERT_HEALTHY;
}

/* ------------------------------------------------------------------ changes */

/* A state other than healthy ends when its rule has failed leave_windows times in a row. */
static mu_expert_state next_state(const judgement *j, const finding *f) {
    int64_t at = j->first + f->expert;
    mu_expert_state now = (mu_expert_state)j->h->state[at], found = first_match(j, f);
    j->h->leaving[at] = found == now ? 0 : j->h->leaving[at] + 1;
    return now == MU_EXPERT_HEALTHY || j->h->leaving[at] >= j->t->leave_windows ? found : now;
}

/* The domain that loses most without the expert, at least carrier_criticality; -1: none. */
static int find_needing(const judgement *j, int expert) {
    int most = -1;
    for (int d = 0; d < j->v->domains && j->v->K; d++)
        if (K_of(j, expert, d) >= j->t->carrier_criticality && (most < 0 || K_of(j, expert, d) > K_of(j, expert, most))) most = d;
    return most;
}

static mu_expert_change change_of(const judgement *j, const finding *f, mu_expert_state to) {
    int64_t at = j->first + f->expert;
    mu_expert_change c = { .layer = (int)(j->first / j->h->experts), .expert = f->expert, .from = (mu_expert_state)j->h->state[at], .to = to,
                           .since = j->h->since[at], .load = f->load, .silence = j->v->silence[at], .domain = (int)j->h->carried[at] - 1,
                           .twin = -1 };
    if (j->v->twin) c.twin = (int)j->v->twin_of[at], c.cosine = j->v->twin[at];
    if (!mu_expert_carries(to) && !mu_expert_carries(c.from) && to != MU_EXPERT_OVERWRITTEN && c.from != MU_EXPERT_OVERWRITTEN) c.domain = -1;
    int needing = to == MU_EXPERT_STARVED ? find_needing(j, f->expert) : -1;
    if (needing >= 0) c.domain = needing;
    if (c.domain < 0 || !j->v->K) return c;
    c.criticality = K_of(j, f->expert, c.domain), c.peak = peak_of(j, f->expert, c.domain), c.retention = retention(j->v, c.domain);
    c.share = j->v->share[c.domain];
    return c;
}

/* What an expert that carries a domain is remembered by: the domain, and its top domain when it became the carrier or its criticality
 * had grown much. */
static void remember(const judgement *j, const finding *f) {
    int64_t at = j->first + f->expert;
    double K = K_of(j, f->expert, f->carries);
    bool grown = j->h->carried[at] != f->carries + 1 || K >= GROWN * j->h->top_criticality[at];
    j->h->carried[at] = f->carries + 1;
    if (f->top >= 0 && grown) j->h->top[at] = f->top + 1, j->h->top_criticality[at] = fmin(K, NATS_MAX);
}

static int judge_layer(judgement *j, mu_expert_change *changes) {
    mu_expert_health *h = j->h;
    int n = 0, room = carriers_max(j);
    mu_expert_state *next = mu_alloc((size_t)h->experts, sizeof *next);
    find_all(j);
    rank(j);
    for (int i = 0; i < h->experts; i++) {
        next[i] = next_state(j, &j->found[i]);
        room -= mu_expert_carries(next[i]) && mu_expert_carries(h->state[j->first + i]);
    }
    for (int r = 0; r < j->n_ranked; r++) { /* one that has not left its place yet keeps a new one out */
        int i = j->ranked[r];
        bool enters = mu_expert_carries(next[i]) && !mu_expert_carries(h->state[j->first + i]);
        if (enters && room-- <= 0) next[i] = (mu_expert_state)h->state[j->first + i];
    }
    for (int i = 0; i < h->experts; i++) {
        int64_t at = j->first + i;
        if (mu_expert_carries(next[i]) && j->found[i].carries >= 0) remember(j, &j->found[i]);
        if (next[i] == (mu_expert_state)h->state[at]) continue;
        changes[n++] = change_of(j, &j->found[i], next[i]);
        h->state[at] = next[i], h->since[at] = j->v->step, h->leaving[at] = 0;
    }
    free(next);
    return n;
}

int mu_expert_health_update(mu_expert_health *h, const mu_expert_evidence *v, const mu_stats_config *t, mu_expert_change *changes) {
    MU_CHECK(v->load && v->silence && (!v->K || (v->peak && v->share && v->ce && v->ce_best && v->ce_ref)), "states of experts from nothing");
    judgement j = { .h = h, .v = v, .t = t };
    int n = 0;
    j.found = mu_alloc((size_t)h->experts, sizeof *j.found);
    j.ranked = mu_alloc((size_t)h->experts, sizeof *j.ranked);
    for (int layer = 0; layer < h->layers; layer++) {
        j.first = (int64_t)layer * h->experts;
        n += judge_layer(&j, changes + n);
    }
    free(j.found);
    free(j.ranked);
    return n;
}

void mu_expert_health_count(const mu_expert_health *h, int layer, int64_t counts[MU_EXPERT_STATES]) {
    memset(counts, 0, sizeof *counts * MU_EXPERT_STATES);
    int64_t first = layer < 0 ? 0 : (int64_t)layer * h->experts, end = layer < 0 ? cells(h) : first + h->experts;
    for (int64_t i = first; i < end; i++) counts[h->state[i]]++;
}
