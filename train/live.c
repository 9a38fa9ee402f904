/* live.c - what an expert sees: its inputs for tokens of whole sequences, collected once and found again in a changed model. */
#include "train/surgery.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SEQUENCES_MAX = 64 };

void mu_expert_samples_free(mu_expert_samples *p) {
    free(p->tokens);
    free(p->domains);
    free(p->at);
    free(p->h);
    free(p->y);
    *p = (mu_expert_samples){ 0 };
}

/* The inputs of one layer. */
typedef struct { int layer; double *x_TD; } watched;

static void keep(void *arg, int layer, const mu_tensor *x_TD) {
    const watched *w = arg;
    if (layer == w->layer) mu_tensor_get(x_TD, w->x_TD);
}

static int moe_index(const mu_model *m, int layer) {
    int i = 0;
    while (m->moe_layers[i] != layer) i++;
    return i;
}

/* x [S, D]: the layer's inputs of one sequence; ids [S, K]: the experts of its tokens, or NULL. */
static void forward(const mu_evaluation *ev, int layer, int64_t S, const int32_t *tokens, int32_t domain, double *x, int32_t *ids) {
    mu_routing *routings = mu_alloc((size_t)ev->model->n_moe, sizeof *routings);
    watched w = { layer, x };
    mu_context cx = { .mode = MU_MODE_EVAL, .n_sequences = 1, .seq_len = S, .domains = &domain, .moe_input = keep, .moe_input_arg = &w };
    bool recording = mu_tape_recording(ev->tape);
    mu_tape_record(ev->tape, false);
    mu_model_forward(ev->model, ev->tape, &cx, mu_tensor_ints(ev->tape, MU_DTYPE_I32, S, tokens), routings);
    if (ids) mu_tensor_read(routings[moe_index(ev->model, layer)].ids_TK, ids);
    mu_tape_reset(ev->tape);
    mu_tape_record(ev->tape, recording);
    free(routings);
}

/* Adds the tokens of the last sequence that the expert got, and keeps it if there are any, or `anyway`. */
static void take(mu_expert_samples *p, const mu_expert_unit *u, int64_t K, const double *x, const int32_t *ids, bool anyway) {
    int64_t first = p->n_sequences * p->S;
    bool any = anyway;
    for (int64_t t = 0; t < p->S && p->n < MU_SAMPLES_MAX; t++)
        for (int64_t k = 0; k < K; k++) {
            if (ids[t * K + k] != u->expert) continue;
            memcpy(p->h + p->n * p->D, x + t * p->D, (size_t)p->D * sizeof *x);
            p->at[p->n++] = (int32_t)(first + t);
            any = true;
            break;
        }
    p->n_sequences += any;
}

mu_expert_samples mu_expert_samples_collect(const mu_evaluation *ev, int domain, const mu_expert_unit *unit) {
    const mu_texts *texts = ev->texts;
    int64_t S = texts->seq_len, K = ev->model->moe_cfg.top_k, read = 0;
    int domains = texts->corpus.n_domains;
    mu_expert_samples p = { .S = S, .D = unit->D };
    p.tokens = mu_alloc((size_t)(SEQUENCES_MAX * S), sizeof *p.tokens);
    p.domains = mu_alloc(SEQUENCES_MAX, sizeof *p.domains);
    p.at = mu_alloc(MU_SAMPLES_MAX, sizeof *p.at);
    p.h = mu_alloc((size_t)(MU_SAMPLES_MAX * p.D), sizeof *p.h);
    double *x = mu_alloc((size_t)(S * p.D), sizeof *x);
    int32_t *ids = mu_alloc((size_t)(S * K), sizeof *ids), *targets = mu_alloc((size_t)S, sizeof *targets);
    bool more = true;
    for (int64_t i = 0; more; i++) {
        bool keep_it = domain >= 0 && i < MU_FISHER_SEQUENCES;
        more = false;
        for (int d = 0; d < domains && read < SEQUENCES_MAX && (p.n < MU_SAMPLES_MAX || keep_it); d++) {
            if ((domain >= 0 && d != domain) || i >= mu_texts_sequences(texts, d)) continue;
            int32_t *tokens = p.tokens + p.n_sequences * S;
            mu_texts_read(texts, d, i, tokens, targets);
            p.domains[p.n_sequences] = d;
            forward(ev, unit->layer, S, tokens, d, x, ids);
            take(&p, unit, K, x, ids, keep_it);
            more = true, read++;
        }
    }
    p.y = mu_alloc((size_t)(p.n * p.D) + 1, sizeof *p.y);
    mu_expert_unit_apply(unit, p.n, p.h, p.y);
    free(targets);
    free(ids);
    free(x);
    return p;
}

double *mu_expert_samples_again(const mu_expert_samples *p, const mu_evaluation *ev, int layer) {
    double *h = mu_alloc((size_t)(p->n * p->D) + 1, sizeof *h), *x = mu_alloc((size_t)(p->S * p->D), sizeof *x);
    int64_t next = 0;
    for (int64_t s = 0; s < p->n_sequences; s++) {
        forward(ev, layer, p->S, p->tokens + s * p->S, p->domains[s] < ev->texts->corpus.n_domains ? p->domains[s] : 0, x, NULL);
        for (; next < p->n && p->at[next] / p->S == s; next++)
            memcpy(h + next * p->D, x + p->at[next] % p->S * p->D, (size_t)p->D * sizeof *h);
    }
    free(x);
    return h;
}

double mu_relative_distance(const double *a, const double *b, int64_t n) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) difference += (a[i] - b[i]) * (a[i] - b[i]), size += b[i] * b[i];
    return size > 0 ? sqrt(difference / size) : difference > 0 ? INFINITY : 0;
}

static double normalise(double *v, int64_t D) {
    double sum = 0;
    for (int64_t i = 0; i < D; i++) sum += v[i] * v[i];
    for (int64_t i = 0; i < D && sum > 0; i++) v[i] /= sqrt(sum);
    return sum;
}

/* Power iteration on the covariance. */
double *mu_principal_axis(const double *rows, int64_t n, int64_t D, uint64_t seed) {
    enum { ROUNDS = 100 };
    double *v = mu_alloc((size_t)D, sizeof *v), *mean = mu_alloc((size_t)D, sizeof *mean), *next = mu_alloc((size_t)D, sizeof *next);
    mu_rng rng = { .seed = seed, .purpose = MU_RNG_SURGERY };
    mu_rng_normals(&rng, D, 1, v);
    normalise(v, D);
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < D; i++) mean[i] += rows[r * D + i] / (double)n;
    for (int round = 0; round < ROUNDS; round++) {
        memset(next, 0, (size_t)D * sizeof *next);
        for (int64_t r = 0; r < n; r++) {
            double along = 0;
            for (int64_t i = 0; i < D; i++) along += (rows[r * D + i] - mean[i]) * v[i];
            for (int64_t i = 0; i < D; i++) next[i] += along * (rows[r * D + i] - mean[i]);
        }
        if (normalise(next, D) > 0) memcpy(v, next, (size_t)D * sizeof *v);
    }
    free(mean);
    free(next);
    return v;
}
