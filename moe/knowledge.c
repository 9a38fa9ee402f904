/* knowledge.c - what a probe shows of the experts: criticality, cross-entropies, flips, and what to measure next. The
 * measuring itself is the program's (train/probe.c). */
#include "moe/moe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double CRITICAL = 0.01;        /* nats: an expert with this K is measured again, whatever its share */
static const double NATS_MAX = 1e9;         /* limit of values in checkpoints */
enum { NO_TOKEN = UINT16_MAX };             /* in landmark_ids */
static const int64_t CREDIT_MAX = (int64_t)1 << 60;

static int64_t rows(const mu_knowledge *k) { return (int64_t)k->layers * k->experts; }
static int64_t cells(const mu_knowledge *k) { return rows(k) * k->domains; }
static int64_t n_ids(const mu_knowledge *k) { return (int64_t)k->layers * k->domains * k->sampled * k->top_k; }

int64_t mu_knowledge_sampled(int64_t layers, int64_t domains, int64_t top_k) {
    int64_t each = layers * domains * top_k, most = each ? MU_KNOWLEDGE_IDS / each : MU_KNOWLEDGE_TOKENS;
    return most > MU_KNOWLEDGE_TOKENS ? MU_KNOWLEDGE_TOKENS : most < 1 ? 1 : most;
}

static int64_t cell_of(const mu_knowledge *k, int layer, int expert, int domain) {
    return ((int64_t)layer * k->experts + expert) * k->domains + domain;
}

/* Its arrays: the address of the pointer, and the bytes. */
typedef struct { void *at; size_t bytes; } part;
enum { PARTS = 23 };
static void *array_of(const part *p) {
    void *array;
    memcpy(&array, p->at, sizeof array);
    return array;
}
static void set_array(const part *p, void *array) { memcpy(p->at, &array, sizeof array); }
#define PART(array, n) { (void *)&k->array, sizeof *k->array * (size_t)(n) }
#define PARTS_OF(k) { \
    PART(names, k->domains), PART(choices, k->domains), PART(rare, k->domains), PART(pass, k->layers), PART(K, cells(k)), PART(peak, cells(k)), PART(at, cells(k)), PART(n, cells(k)), \
    PART(ce, k->domains), PART(ce_best, k->domains), PART(ce_ref, k->domains), PART(tokens, k->domains), PART(twin, rows(k)), \
    PART(twin_of, rows(k)), PART(similarity, k->layers), PART(cka, k->layers), PART(margins, k->layers), PART(flip_rate, k->layers), PART(vocabulary, k->layers), \
    PART(ids, n_ids(k)), PART(landmark_step, MU_LANDMARKS), PART(landmark_ids, MU_LANDMARKS * n_ids(k)), \
    PART(saturation, MU_LANDMARKS * k->layers) }

mu_knowledge *mu_knowledge_new(int layers, int experts, int top_k, const mu_option_domains *domains) {
    MU_CHECK(layers >= 0 && experts >= 0 && top_k >= 0 && domains, "%d layers of %d experts, %d per token", layers, experts, top_k);
    mu_knowledge *k = mu_alloc(1, sizeof *k);
    *k = (mu_knowledge){ .layers = layers, .experts = experts, .top_k = top_k, .domains = domains->n,
                         .sampled = mu_knowledge_sampled(layers, domains->n, top_k) };
    const part parts[PARTS] = PARTS_OF(k);
    for (int i = 0; i < PARTS; i++) set_array(&parts[i], mu_alloc(parts[i].bytes, 1));
    for (int d = 0; d < domains->n; d++) memcpy(k->names[d], domains->list[d].domain, sizeof k->names[d]);
    for (int d = 0; d < domains->n; d++) k->choices[d] = experts;
    for (int64_t i = 0; i < rows(k); i++) k->twin_of[i] = -1;
    for (int64_t i = 0; i < n_ids(k); i++) k->ids[i] = -1;
    for (int i = 0; i < layers; i++) k->pass[i] = 1, k->flip_rate[i] = k->vocabulary[i] = NAN;
    for (int i = 0; i < layers * MU_LANDMARKS; i++) k->saturation[i] = NAN;
    return k;
}

mu_knowledge *mu_knowledge_copy(const mu_knowledge *from) {
    mu_knowledge *k = mu_alloc(1, sizeof *k);
    *k = *from;
    const part parts[PARTS] = PARTS_OF(k);
    for (int i = 0; i < PARTS; i++) {
        void *array = mu_alloc(parts[i].bytes, 1);
        if (parts[i].bytes) memcpy(array, array_of(&parts[i]), parts[i].bytes);
        set_array(&parts[i], array);
    }
    return k;
}

void mu_knowledge_free(mu_knowledge *k) {
    if (!k) return;
    const part parts[PARTS] = PARTS_OF(k);
    for (int i = 0; i < PARTS; i++) free(array_of(&parts[i]));
    free(k);
}

int64_t mu_knowledge_bytes(const mu_knowledge *k) {
    const part parts[PARTS] = PARTS_OF(k);
    int64_t bytes = 0;
    for (int i = 0; i < PARTS; i++) bytes += (int64_t)parts[i].bytes;
    return bytes;
}

/* ------------------------------------------------------------------ state of a checkpoint */

static mu_state array(const char *name, mu_store_type type, int64_t a, int64_t b, int64_t c, void *data) {
    mu_state s = { .type = type, .n_dims = c >= 0 ? 3 : b >= 0 ? 2 : 1, .shape = { a, b, c }, .data = data,
                   .low = 0 - NATS_MAX, .high = NATS_MAX, .for_training = true, .since = 4 };
    snprintf(s.name, sizeof s.name, "/state/knowledge/%s", name);
    return s;
}

static void visit_whole(mu_state_visitor *v, mu_state s, int64_t min, int64_t max) {
    s.min = min, s.max = max;
    v->visit(v, &s);
}

static void visit_reals(mu_state_visitor *v, mu_state s) { v->visit(v, &s); }

/* Checkpoints hold F64 and I64. */
static void floats_get(const mu_state *s, void *host) {
    const float *from = s->module;
    for (int64_t i = 0; i < mu_state_count(s); i++) ((double *)host)[i] = (double)from[i];
}

static mu_status floats_set(const mu_state *s, const void *host, mu_error *e) {
    float *to = s->module;
    (void)e;
    for (int64_t i = 0; i < mu_state_count(s); i++) to[i] = (float)((const double *)host)[i];
    return MU_STATUS_OK;
}

static void steps_get(const mu_state *s, void *host) {
    const int32_t *from = s->module;
    for (int64_t i = 0; i < mu_state_count(s); i++) ((int64_t *)host)[i] = from[i];
}

static mu_status steps_set(const mu_state *s, const void *host, mu_error *e) {
    int32_t *to = s->module;
    (void)e;
    for (int64_t i = 0; i < mu_state_count(s); i++) to[i] = (int32_t)((const int64_t *)host)[i];
    return MU_STATUS_OK;
}

static void landmarks_get(const mu_state *s, void *host) {
    const uint16_t *from = s->module;
    for (int64_t i = 0; i < mu_state_count(s); i++) ((int32_t *)host)[i] = from[i] == NO_TOKEN ? -1 : from[i];
}

static mu_status landmarks_set(const mu_state *s, const void *host, mu_error *e) {
    uint16_t *to = s->module;
    (void)e;
    for (int64_t i = 0; i < mu_state_count(s); i++) to[i] = (uint16_t)((const int32_t *)host)[i]; /* -1 is NO_TOKEN */
    return MU_STATUS_OK;
}

static mu_state converted(mu_state s, void *array, void get(const mu_state *, void *), mu_status set(const mu_state *, const void *, mu_error *)) {
    s.module = array, s.get = get, s.set = set;
    return s;
}

static void visit(mu_knowledge *k, int64_t step, mu_state_visitor *v) {
    int64_t L = k->layers, E = k->experts, D = k->domains;
    int64_t *numbers[] = { &k->step, &k->rounds, &k->earned_step, &k->similarity_step, &k->next, &k->credit, &k->ids_sequences };
    const char *names[] = { "step", "rounds", "earned_step", "similarity_step", "next", "credit", "ids_sequences" };
    int64_t max[] = { step, step, step, step, rows(k), CREDIT_MAX, INT64_MAX };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        visit_whole(v, array(names[i], MU_STORE_I64, 1, -1, -1, numbers[i]), 0, max[i]);
    visit_reals(v, converted(array("criticality", MU_STORE_F64, L, E, D, NULL), k->K, floats_get, floats_set));
    visit_reals(v, converted(array("criticality_peak", MU_STORE_F64, L, E, D, NULL), k->peak, floats_get, floats_set));
    visit_whole(v, converted(array("criticality_step", MU_STORE_I64, L, E, D, NULL), k->at, steps_get, steps_set), 0, step);
    visit_reals(v, array("ce_loss", MU_STORE_F64, D, -1, -1, k->ce));
    visit_reals(v, array("ce_best", MU_STORE_F64, D, -1, -1, k->ce_best));
    visit_reals(v, array("similarity_max", MU_STORE_F64, L, E, -1, k->twin));
    visit_whole(v, array("most_similar", MU_STORE_I64, L, E, -1, k->twin_of), -1, E - 1);
    visit_reals(v, array("similarity", MU_STORE_F64, L, -1, -1, k->similarity));
    visit_reals(v, array("cka", MU_STORE_F64, L, -1, -1, k->cka));
    visit_whole(v, array("ids", MU_STORE_I32, L, D * k->sampled, k->top_k, k->ids), -1, E - 1);
    mu_state steps = array("landmark_step", MU_STORE_I64, MU_LANDMARKS, -1, -1, k->landmark_step);
    mu_state ids = array("landmark_ids", MU_STORE_I32, MU_LANDMARKS * L, D * k->sampled, k->top_k, NULL);
    steps.since = ids.since = 5;
    visit_whole(v, steps, 0, step);
    visit_whole(v, converted(ids, k->landmark_ids, landmarks_get, landmarks_set), -1, E - 1);
}

/* Everything of one layer and expert, or of the model, but the domains. */
static void copy_common(mu_knowledge *to, const mu_knowledge *from) {
    to->step = from->step, to->rounds = from->rounds, to->earned_step = from->earned_step, to->credit = from->credit;
    to->next = from->next, to->similarity_step = from->similarity_step;
    memcpy(to->twin, from->twin, sizeof *to->twin * (size_t)rows(to));
    memcpy(to->twin_of, from->twin_of, sizeof *to->twin_of * (size_t)rows(to));
    memcpy(to->similarity, from->similarity, sizeof *to->similarity * (size_t)to->layers);
    memcpy(to->cka, from->cka, sizeof *to->cka * (size_t)to->layers);
}

static void copy_domain(mu_knowledge *to, int d, const mu_knowledge *from, int f) {
    to->ce[d] = from->ce[f], to->ce_best[d] = from->ce_best[f];
    for (int64_t i = 0; i < rows(to); i++) {
        int64_t a = i * to->domains + d, b = i * from->domains + f;
        to->K[a] = from->K[b], to->peak[a] = from->peak[b], to->at[a] = from->at[b];
    }
}

static bool same_domains(const mu_knowledge *k, const mu_option_domains *domains) {
    bool same = domains->n == k->domains;
    for (int d = 0; same && d < k->domains; d++) same = !strcmp(k->names[d], domains->list[d].domain);
    return same;
}

void mu_knowledge_state(mu_knowledge *k, const mu_option_domains *domains, int64_t step, mu_state_visitor *v) {
    if (same_domains(k, domains)) {
        visit(k, step, v);
        return;
    }
    mu_knowledge *other = mu_knowledge_new(k->layers, k->experts, k->top_k, domains);
    visit(other, step, v);
    copy_common(k, other);
    for (int d = 0; d < k->domains; d++)
        for (int f = 0; f < other->domains; f++)
            if (!strcmp(k->names[d], other->names[f])) copy_domain(k, d, other, f);
    mu_knowledge_free(other);
}

/* ------------------------------------------------------------------ what is paid for */

/* Tokens that can be forwarded in the time of one training token. Three by FLOPs; passes over the probe are smaller and less efficient. */
#define FORWARD_PER_TRAINING 2.5

void mu_knowledge_earn(mu_knowledge *k, int64_t step, int64_t interval, int64_t tokens_per_step, double budget) {
    MU_CHECK(step >= k->earned_step, "step %lld, paid until step %lld", (long long)step, (long long)k->earned_step);
    int64_t steps = step - k->earned_step < interval ? step - k->earned_step : interval;
    double earned = FORWARD_PER_TRAINING * budget * (double)steps * (double)tokens_per_step;
    k->credit += (int64_t)fmin(earned, (double)(CREDIT_MAX - k->credit));
    k->earned_step = step;
}

static int64_t min_cost(const mu_knowledge *k, int64_t tokens) { return k->layers ? 2 * tokens : tokens; }

bool mu_knowledge_affords(const mu_knowledge *k, int64_t tokens) { return tokens > 0 && k->credit >= min_cost(k, tokens); }

void mu_knowledge_end(mu_knowledge *k, int64_t tokens) {
    if (k->credit > min_cost(k, tokens)) k->credit = min_cost(k, tokens);
}

/* ------------------------------------------------------------------ a measurement */

static void put(mu_knowledge *k, int64_t cell, double K) {
    if (!(fabs(K) <= NATS_MAX)) return; /* not finite: what was known stays */
    k->K[cell] = (float)K, k->at[cell] = (int32_t)k->step;
    if (k->K[cell] > k->peak[cell]) k->peak[cell] = k->K[cell];
}

void mu_knowledge_begin(mu_knowledge *k, int64_t step, const int64_t *n, const int64_t *tokens, const double *nll) {
    MU_CHECK(step <= INT32_MAX, "measured at step %lld", (long long)step);
    k->step = step, k->rounds++;
    for (int64_t i = 0; i < cells(k); i++) {
        MU_CHECK(n[i] <= INT32_MAX, "%lld tokens of one domain for one expert: too many", (long long)n[i]);
        k->n[i] = (int32_t)n[i];
    }
    memcpy(k->tokens, tokens, sizeof *tokens * (size_t)k->domains);
    for (int d = 0; d < k->domains; d++) {
        k->credit -= tokens[d];
        double ce = tokens[d] ? nll[d] / (double)tokens[d] : NAN;
        if (!(fabs(ce) <= NATS_MAX)) continue;
        k->ce[d] = ce;
        if (k->ce_best[d] == 0 || ce < k->ce_best[d]) k->ce_best[d] = ce;
    }
    for (int64_t i = 0; i < cells(k); i++)
        if (!n[i] && tokens[i % k->domains]) put(k, i, 0);
}

static bool is_critical(const mu_knowledge *k, int64_t cell) { return k->n[cell] && (double)k->K[cell] >= CRITICAL; }

bool mu_knowledge_screened(const mu_knowledge *k, int layer, int expert, int domain) {
    int64_t first = cell_of(k, layer, expert, 0), n = k->n[first + domain];
    if (!n || k->choices[domain] <= k->top_k) return false;
    bool found = 2 * n * k->experts >= 3 * k->top_k * k->tokens[domain] || is_critical(k, first + domain);
    for (int d = 0; d < k->domains && !found; d++) found = k->rare[d] && is_critical(k, first + d);
    return found;
}

/* Tokens of the screened domains of an expert, less for a pass that does not run all layers. */
static int64_t cost_of(const mu_knowledge *k, int64_t row) {
    int64_t tokens = 0;
    for (int d = 0; d < k->domains; d++)
        if (mu_knowledge_screened(k, (int)(row / k->experts), (int)(row % k->experts), d)) tokens += k->tokens[d];
    return (int64_t)ceil((double)tokens * k->pass[row / k->experts]);
}

int64_t mu_knowledge_choose(mu_knowledge *k, int64_t *chosen) {
    int64_t n = 0, all = rows(k);
    for (int64_t i = 0; i < all; i++) {
        int64_t row = k->next % all, cost = cost_of(k, row);
        if (cost > k->credit) break;
        k->credit -= cost;
        k->next = (row + 1) % all;
        if (cost) chosen[n++] = row;
    }
    return n;
}

void mu_knowledge_set(mu_knowledge *k, int layer, int expert, int domain, double nll, double base) {
    put(k, cell_of(k, layer, expert, domain), (nll - base) / (double)k->tokens[domain]);
}

bool mu_knowledge_compares(const mu_knowledge *k) {
    enum { ROUNDS = 10 };
    return k->layers && k->experts >= 2 && k->rounds % ROUNDS == 0;
}

/* How many of the experts in a are in b, too. */
static int shared(const int32_t *a, const int32_t *b, int n) {
    int found = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) found += a[i] == b[j];
    return found;
}

/* Share of a layer's choices, [domains * sampled, top_k] each, that are the same, as sets; NAN when no token has both. */
static double same_choices(const mu_knowledge *k, const int32_t *a, const int32_t *b) {
    int64_t same = 0, all = 0;
    for (int64_t t = 0; t < k->domains * k->sampled; t++, a += k->top_k, b += k->top_k) {
        if (a[0] < 0 || b[0] < 0) continue;
        same += shared(a, b, k->top_k), all += k->top_k;
    }
    return all ? (double)same / (double)all : NAN;
}

/* Saturation against every landmark; and the ids become one at measurements 1, 4, 16, ... */
static void compare_landmarks(mu_knowledge *k, const int32_t *ids) {
    int64_t of_layer = k->layers ? n_ids(k) / k->layers : 0;
    int32_t *then = mu_alloc((size_t)of_layer, sizeof *then);
    for (int m = 0; m < MU_LANDMARKS; m++) {
        uint16_t *landmark = k->landmark_ids + m * n_ids(k);
        for (int layer = 0; layer < k->layers; layer++) {
            const uint16_t *from = landmark + layer * of_layer;
            for (int64_t i = 0; i < of_layer; i++) then[i] = from[i] == NO_TOKEN ? -1 : from[i];
            k->saturation[layer * MU_LANDMARKS + m] = k->landmark_step[m] ? same_choices(k, ids + layer * of_layer, then) : NAN;
        }
        if (k->rounds != (int64_t)1 << 2 * m) continue;
        k->landmark_step[m] = k->step;
        for (int64_t i = 0; i < n_ids(k); i++) landmark[i] = (uint16_t)ids[i];
    }
    free(then);
}

void mu_knowledge_flips(mu_knowledge *k, const int32_t *ids, int64_t sequences) {
    int64_t of_layer = k->layers ? n_ids(k) / k->layers : 0;
    bool same_probe = sequences == k->ids_sequences;
    for (int layer = 0; layer < k->layers; layer++)
        k->flip_rate[layer] = same_probe ? 1 - same_choices(k, ids + layer * of_layer, k->ids + layer * of_layer) : NAN;
    for (int m = 0; m < MU_LANDMARKS && !same_probe; m++) k->landmark_step[m] = 0;
    compare_landmarks(k, ids);
    memcpy(k->ids, ids, sizeof *ids * (size_t)n_ids(k));
    k->ids_sequences = sequences;
}

double mu_knowledge_coverage(const mu_knowledge *k, int64_t since) {
    int64_t screened = 0, measured = 0;
    for (int layer = 0; layer < k->layers; layer++)
        for (int i = 0; i < k->experts; i++)
            for (int d = 0; d < k->domains; d++) {
                if (!mu_knowledge_screened(k, layer, i, d)) continue;
                int64_t at = k->at[cell_of(k, layer, i, d)];
                screened++, measured += at > 0 && at >= since;
            }
    return screened ? (double)measured / (double)screened : NAN;
}
