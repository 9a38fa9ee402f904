/* probe.c - measures what experts know on the probe: the first validation sequences of each domain, always the same ones. A
 * domain that leaves the training data keeps its probe.
 *
 * The unit of work is a sequence with one expert masked, or none. Work is divided over the ranks by sequence; each sum over a
 * sequence is made on one rank, in order, and sequences are added in order: results are the same bits for any number of ranks.
 *
 * Below the layer of the masked expert nothing changes. So the pass without a mask keeps the inputs of MoE layers, and the passes with a
 * mask go on from there: the same bits with fewer layers to run. */
#include "train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };
typedef struct {
    int sequence;
    int64_t masked;             /* layer * experts + expert, or NONE */
} item;

struct mu_probe {
    mu_evaluation ev;
    int64_t E, K, S;
    int L, domains, n;          /* n: sequences */
    int *domain;                /* [n] */
    int64_t *number;            /* [n]: among the validation sequences of its domain */
    int64_t *first;             /* [domains + 1]: sequences of a domain */
    int64_t per_domain, *tokens;
    int32_t *slot;              /* [vocab_size]: ids with at least E occurrences have a slot, others NONE */
    int64_t n_slots, frequent;  /* number of slots, and of their occurrences */
    double *nll;                /* [n], nothing masked */
    int32_t *inputs, *targets;  /* of a batch, and what follows too */
    double *token_nll;
    mu_routing *routings;
    /* routing of the whole probe, nothing masked */
    int64_t *counts, *top1;     /* [L, E, domains], [L, n_slots, E] */
    int32_t *ids;               /* [L, domains * sampled, K]: id + 1, 0: none */
    mu_margins *margins;        /* [L], borrowed; NULL: not wanted */
    /* for the similarity of experts: inputs of the MoE layers for R tokens, evenly spread */
    int64_t R, D;
    double *x;                  /* [L, R, D] */
    /* during a measurement: the residual stream before kept_layers MoE layers from first_kept on, in the compute dtype */
    int64_t keep_bytes;         /* at most */
    int first_kept, kept_layers;
    unsigned char *kept;        /* [kept_layers, n, S, D] */
};

/* All experts process R rows, which costs as much as R E / K tokens of the forward pass or less, and comparing the outputs as much
 * again at most. R is chosen so that this is one pass over the probe, and limited by memory: 128 MiB. */
static int64_t similarity_rows(const mu_probe *p) {
    enum { MOST = 256, LEAST = 4 };
    int64_t values = (int64_t)1 << 24, wide = p->E > p->L ? p->E : p->L, rows = p->n * p->S * p->K / (2 * p->E);
    if (rows > values / (wide * p->D)) rows = values / (wide * p->D);
    return rows > MOST ? MOST : rows < LEAST ? LEAST : rows;
}
static int64_t similarity_cost(const mu_probe *p) {
    int64_t cost = 2 * p->R * p->E / p->K, most = p->n * p->S;
    return cost < most ? cost : most;
}

/* ------------------------------------------------------------------ where passes with a mask begin */

static size_t kept_bytes(const mu_probe *p) { return (size_t)(p->S * p->D) * mu_dtype_size(mu_tape_device(p->ev.tape)->compute); } /* a sequence */

/* All MoE layers; or as many as fit, from the one whose turn it is. The same for any number of ranks. */
static void keep_layers(mu_probe *p, const mu_knowledge *k) {
    size_t layer = kept_bytes(p) * (size_t)p->n;
    int64_t room = p->keep_bytes / (int64_t)layer;
    p->first_kept = room >= p->L ? 0 : (int)(k->next / p->E) % p->L;
    p->kept_layers = room < p->L - p->first_kept ? (int)room : p->L - p->first_kept;
    p->kept = mu_alloc(layer * (size_t)p->kept_layers + sizeof(int32_t), 1);
}

static int64_t kept_values(const mu_probe *p) { return (int64_t)((kept_bytes(p) * (size_t)(p->n * p->kept_layers) + 3) / sizeof(int32_t)); }

/* Which kept layer passes with an expert of this MoE layer masked begin with; NONE: the embedding. */
static int begins_at(const mu_probe *p, int64_t moe_layer) {
    int64_t i = moe_layer - p->first_kept;
    return i < 0 || !p->kept_layers ? NONE : i < p->kept_layers ? (int)i : p->kept_layers - 1;
}
static int layer_of(const mu_probe *p, int kept) { return kept == NONE ? 0 : p->ev.model->moe_layers[p->first_kept + kept]; }

/* Cost of such a pass over that of a whole one, by FLOPs: as if all layers were alike. */
static double pass_cost(const mu_probe *p, int moe_layer) {
    const mu_model *m = p->ev.model;
    double all = mu_model_measure(&m->cfg, &m->moe_cfg, m->vocab_size, p->S).train_flops, head = 6.0 * (double)m->vocab_size * (double)p->D;
    return 1 - (1 - head / all) * layer_of(p, begins_at(p, moe_layer)) / (double)m->cfg.num_layers;
}

static int64_t sampled(const mu_probe *p) { return mu_knowledge_sampled(p->L, p->domains, p->K); }
static int64_t n_ids(const mu_probe *p) { return (int64_t)p->L * p->domains * sampled(p) * p->K; }

static int64_t sequences_of(const mu_probe *p, int domain) {
    int64_t n = mu_texts_sequences(p->ev.texts, domain);
    return n < p->per_domain ? n : p->per_domain;
}

/* The first validation sequences are spread over the text; of a whole text they are chosen so. */
static void list_sequences(mu_probe *p) {
    const mu_texts *texts = p->ev.texts;
    for (int d = 0; d < p->domains; d++) {
        int64_t n = sequences_of(p, d), all = texts->loader ? n : mu_texts_sequences(texts, d);
        for (int64_t i = 0; i < n; i++, p->n++) p->domain[p->n] = d, p->number[p->n] = i * all / n;
        p->tokens[d] = n * p->S;
        p->first[d + 1] = p->n;
    }
}

/* Specialisation in the vocabulary says something only of ids that every expert could have got. With very many only the first count. */
static void find_frequent_ids(mu_probe *p) {
    int64_t V = p->ev.model->vocab_size, *seen = mu_alloc((size_t)V, sizeof *seen);
    for (int i = 0; i < p->n; i++) {
        mu_texts_read(p->ev.texts, p->domain[i], p->number[i], p->inputs, p->targets);
        for (int64_t t = 0; t < p->S; t++) seen[p->inputs[t]]++;
    }
    int64_t most = ((int64_t)1 << 24) / (p->L * p->E + 1); /* memory: 128 MiB */
    for (int64_t v = 0; v < V; v++) {
        bool frequent = seen[v] >= p->E && p->n_slots < most;
        p->slot[v] = frequent ? (int32_t)p->n_slots++ : NONE;
        if (frequent) p->frequent += seen[v];
    }
    free(seen);
}

mu_probe *mu_probe_new(const mu_evaluation *ev, int64_t tokens, int64_t keep_bytes) {
    const mu_model *m = ev->model;
    mu_probe *p = mu_alloc(1, sizeof *p);
    *p = (mu_probe){ .ev = *ev, .L = m->n_moe, .E = m->moe_cfg.num_experts, .K = m->moe_cfg.top_k, .S = ev->texts->seq_len,
                     .domains = ev->texts->corpus.n_domains, .keep_bytes = keep_bytes };
    p->per_domain = tokens > p->S ? tokens / p->S : 1;
    int64_t all = 0;
    for (int d = 0; d < p->domains; d++) all += sequences_of(p, d);
    MU_CHECK(all <= INT32_MAX, "a probe of %lld sequences", (long long)all);
    size_t most = (size_t)all, at_once = (size_t)(ev->at_once * p->S);
    p->domain = mu_alloc(most, sizeof *p->domain);
    p->number = mu_alloc(most, sizeof *p->number);
    p->nll = mu_alloc(most, sizeof *p->nll);
    p->first = mu_alloc((size_t)p->domains + 1, sizeof *p->first);
    p->tokens = mu_alloc((size_t)p->domains, sizeof *p->tokens);
    p->slot = mu_alloc((size_t)m->vocab_size, sizeof *p->slot);
    p->inputs = mu_alloc(at_once, sizeof *p->inputs);
    p->targets = mu_alloc(at_once, sizeof *p->targets);
    p->token_nll = mu_alloc(at_once, sizeof *p->token_nll);
    p->routings = mu_alloc((size_t)p->L, sizeof *p->routings);
    list_sequences(p);
    find_frequent_ids(p);
    p->counts = mu_alloc((size_t)(p->L * p->E * p->domains), sizeof *p->counts);
    p->top1 = mu_alloc((size_t)(p->L * p->n_slots * p->E), sizeof *p->top1);
    p->ids = mu_alloc((size_t)n_ids(p), sizeof *p->ids);
    p->D = m->cfg.hidden_size;
    if (p->n) p->R = similarity_rows(p);
    return p;
}

void mu_probe_free(mu_probe *p) {
    if (!p) return;
    void *parts[] = { p->domain, p->number, p->nll, p->first, p->tokens, p->slot, p->inputs, p->targets, p->token_nll, p->routings,
                      p->counts, p->top1, p->ids };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
    free(p);
}

int64_t mu_probe_tokens(const mu_probe *p) { return p->n * p->S; }

/* ------------------------------------------------------------------ a batch */

/* The mask of a batch, one row per sequence; no values when nothing is masked. */
static mu_expert_mask mask_of(const mu_probe *p, const item *const *batch, int64_t n) {
    bool any = false;
    for (int64_t i = 0; i < n; i++) any |= batch[i]->masked != NONE;
    if (!any) return (mu_expert_mask){ 0 };
    int32_t *values = mu_tape_alloc(p->ev.tape, sizeof *values * (size_t)(p->L * n * p->E));
    for (int64_t i = 0; i < p->L * n * p->E; i++) values[i] = MU_ROUTE_ALLOWED;
    for (int64_t i = 0; i < n; i++) {
        int64_t layer = batch[i]->masked / p->E, expert = batch[i]->masked % p->E;
        if (batch[i]->masked != NONE) values[(layer * n + i) * p->E + expert] = MU_ROUTE_FORBIDDEN;
    }
    return (mu_expert_mask){ values, n };
}

/* The slots of sampled tokens: slot s of a domain is its token s * tokens / slots. */
static void sample_ids(mu_probe *p, int layer, int sequence, const int32_t *ids_SK) {
    int d = p->domain[sequence];
    int64_t tokens = p->tokens[d], most = sampled(p), slots = tokens < most ? tokens : most;
    for (int64_t s = 0; s < slots; s++) {
        int64_t t = s * tokens / slots - (sequence - p->first[d]) * p->S;
        if (t < 0 || t >= p->S) continue;
        int32_t *to = p->ids + (((int64_t)layer * p->domains + d) * most + s) * p->K;
        for (int64_t k = 0; k < p->K; k++) to[k] = ids_SK[t * p->K + k] + 1;
    }
}

static void count_sequence(mu_probe *p, int layer, int sequence, const int32_t *inputs, const int32_t *ids_SK) {
    for (int64_t t = 0; t < p->S; t++) {
        int32_t slot = p->slot[inputs[t]];
        for (int64_t k = 0; k < p->K; k++) p->counts[(layer * p->E + ids_SK[t * p->K + k]) * p->domains + p->domain[sequence]]++;
        if (slot != NONE) p->top1[(layer * p->n_slots + slot) * p->E + ids_SK[t * p->K]]++;
    }
    sample_ids(p, layer, sequence, ids_SK);
}

static void add_margins(mu_probe *p, int layer, int64_t n) {
    const mu_routing *r = &p->routings[layer];
    mu_device *dev = mu_tape_device(p->ev.tape);
    mu_margins sums = { 0 };
    mu_tensor *t = mu_tensor_ints(p->ev.tape, MU_DTYPE_I64, 3, &sums);
    dev->k->route_margins(dev, n * p->S, p->E, p->K, r->sigmoid, MU_MARGIN_UNIT, mu_data(r->scores_TE), mu_data(r->bias_E), mu_data(r->ids_TK), mu_data(t));
    mu_tensor_read(t, &sums);
    p->margins[layer].entropy += sums.entropy, p->margins[layer].top += sums.top, p->margins[layer].boundary += sums.boundary;
}

static void note_routing(mu_probe *p, const item *const *batch, int64_t n) {
    int32_t *ids = mu_tape_alloc(p->ev.tape, sizeof *ids * (size_t)(n * p->S * p->K + 1));
    for (int layer = 0; layer < p->L; layer++) {
        mu_tensor_read(p->routings[layer].ids_TK, ids);
        if (p->margins) add_margins(p, layer, n);
        for (int64_t i = 0; i < n; i++)
            count_sequence(p, layer, batch[i]->sequence, p->inputs + i * p->S, ids + i * p->S * p->K);
    }
}

/* The batch whose inputs of MoE layers are wanted. */
typedef struct {
    mu_probe *p;
    const item *const *batch;
    int64_t n;
} watched;

static int moe_index(const mu_model *m, int layer) {
    int i = 0;
    while (m->moe_layers[i] != layer) i++;
    return i;
}

/* Keeps the rows of the R tokens. */
static void keep_inputs(void *arg, int layer, const mu_tensor *x_TD) {
    const watched *w = arg;
    mu_probe *p = w->p;
    double *all = mu_alloc((size_t)mu_count(x_TD), sizeof *all), *to = p->x + moe_index(p->ev.model, layer) * p->R * p->D;
    mu_tensor_get(x_TD, all);
    for (int64_t r = 0; r < p->R; r++) {
        int64_t token = r * (p->n * p->S) / p->R;
        for (int64_t i = 0; i < w->n; i++)
            if (w->batch[i]->sequence == token / p->S)
                memcpy(to + r * p->D, all + (i * p->S + token % p->S) * p->D, sizeof *to * (size_t)p->D);
    }
    free(all);
}

/* Rows of the batch's sequences, to or from the kept inputs of a layer. */
static void keep(mu_probe *p, int kept, const item *const *batch, int64_t n, const mu_tensor *x_TD) {
    size_t bytes = kept_bytes(p);
    unsigned char *rows = mu_tape_alloc(p->ev.tape, bytes * (size_t)n + 1);
    mu_tensor_read(x_TD, rows);
    for (int64_t i = 0; i < n; i++) memcpy(p->kept + (size_t)(kept * p->n + batch[i]->sequence) * bytes, rows + (size_t)i * bytes, bytes);
}
static mu_tensor *kept_input(const mu_probe *p, int kept, const item *const *batch, int64_t n) {
    size_t bytes = kept_bytes(p);
    unsigned char *rows = mu_tape_alloc(p->ev.tape, bytes * (size_t)n + 1);
    for (int64_t i = 0; i < n; i++) memcpy(rows + (size_t)i * bytes, p->kept + (size_t)(kept * p->n + batch[i]->sequence) * bytes, bytes);
    mu_tensor *x = mu_tensor_2d(p->ev.tape, n * p->S, p->D);
    mu_tensor_write(x, rows);
    return x;
}

/* The final activations: from the embedding on (begin NONE), keeping what is to be kept, or from a kept layer. */
static mu_tensor *forward(mu_probe *p, const mu_context *cx, const item *const *batch, int64_t n, int begin, bool masked) {
    const mu_model *m = p->ev.model;
    mu_tape *tp = p->ev.tape;
    mu_tensor *ids = mu_tensor_ints(tp, MU_DTYPE_I32, n * p->S, p->inputs);
    mu_tensor *x = begin == NONE ? mu_model_embed(m, tp, cx, ids, p->routings) : kept_input(p, begin, batch, n);
    int at = layer_of(p, begin);
    for (int i = 0; i < p->kept_layers && !masked; i++) {
        x = mu_model_layers(m, tp, cx, at, layer_of(p, i), x, p->routings);
        at = layer_of(p, i);
        keep(p, i, batch, n, x);
    }
    return mu_model_final_norm(m, tp, mu_model_layers(m, tp, cx, at, (int)m->cfg.num_layers, x, p->routings));
}

/* Adds up the cross-entropies of each sequence; *nll[i]: of batch[i]. */
static void run_batch(mu_probe *p, const item *const *batch, int64_t n, double *const *nll, int begin, bool masked) {
    mu_tape *tp = p->ev.tape;
    int32_t *domains = mu_tape_alloc(tp, sizeof *domains * (size_t)(n + 1));
    for (int64_t i = 0; i < n; i++) {
        int s = batch[i]->sequence;
        mu_texts_read(p->ev.texts, p->domain[s], p->number[s], p->inputs + i * p->S, p->targets + i * p->S);
        domains[i] = p->domain[s];
    }
    mu_context cx = { .mode = MU_MODE_EVAL, .n_sequences = n, .seq_len = p->S, .domains = domains, .expert_mask = mask_of(p, batch, n) };
    watched w = { p, batch, n };
    if (p->x) cx.moe_input = keep_inputs, cx.moe_input_arg = &w;
    mu_tensor *targets = mu_tensor_ints(tp, MU_DTYPE_I32, n * p->S, p->targets), *token_nll;
    mu_tensor *x = forward(p, &cx, batch, n, begin, masked);
    mu_model_head_loss(p->ev.model, tp, x, targets, 1.0, &token_nll);
    mu_tensor_get(token_nll, p->token_nll);
    for (int64_t i = 0; i < n; i++)
        for (int64_t t = 0; t < p->S; t++) *nll[i] += p->token_nll[i * p->S + t];
    if (!masked) note_routing(p, batch, n);
    mu_tape_reset(tp);
}

/* Items that run in one round: up to `most` whose passes begin alike, since the ranks of an expert group run each layer together. */
static int64_t round_of(const mu_probe *p, const item *items, int64_t n, int64_t most, int *begin) {
    *begin = items->masked == NONE ? NONE : begins_at(p, items->masked / p->E);
    int64_t i = 1;
    while (i < n && i < most && (items[i].masked == NONE ? NONE : begins_at(p, items[i].masked / p->E)) == *begin) i++;
    return i;
}

/* nll[i]: the sum of cross-entropies of items[i], on every rank. All ranks run the same number of batches, empty ones included:
 * the ranks of an expert group exchange tokens in each. Collective over the batch. */
static void run(mu_probe *p, const item *items, int64_t n, double *nll, bool masked) {
    mu_comm *c = p->ev.batch;
    int64_t at_once = p->ev.at_once, now;
    const item **batch = mu_alloc((size_t)at_once, sizeof *batch);
    double **sums = mu_alloc((size_t)at_once, sizeof *sums);
    memset(nll, 0, sizeof *nll * (size_t)n);
    for (int64_t first = 0; first < n; first += now) {
        int64_t mine = 0;
        int begin;
        now = round_of(p, items + first, n - first, at_once * c->size, &begin);
        for (int64_t i = first + c->rank; i < first + now; i += c->size, mine++) batch[mine] = &items[i], sums[mine] = &nll[i];
        mu_activity_set("measuring what experts know", -1, NULL);
        run_batch(p, batch, mine, sums, begin, masked);
    }
    mu_all_reduce(c, MU_REDUCE_SUM, MU_DTYPE_F64, nll, n); /* all but one summand are 0 */
    free(batch);
    free(sums);
}

/* ------------------------------------------------------------------ nothing masked */

/* Weighted by occurrences: how often an id goes to the expert that gets it most, as first choice; 1: always the same. */
static void specialise(const mu_probe *p, mu_knowledge *k) {
    for (int layer = 0; layer < p->L; layer++) {
        int64_t sum = 0;
        for (int64_t v = 0; v < p->n_slots; v++) {
            const int64_t *row = p->top1 + (layer * p->n_slots + v) * p->E;
            int64_t most = 0;
            for (int64_t i = 0; i < p->E; i++) most = row[i] > most ? row[i] : most;
            sum += most;
        }
        k->vocabulary[layer] = p->frequent ? (double)sum / (double)p->frequent : NAN;
    }
}

static double domain_sum(const mu_probe *p, const double *nll, int d) {
    double sum = 0;
    for (int64_t i = p->first[d]; i < p->first[d + 1]; i++) sum += nll[i];
    return sum;
}

/* From the inputs that this rank has kept. */
static void measure_similarity(mu_probe *p, mu_knowledge *k, int64_t step) {
    mu_all_reduce(p->ev.batch, MU_REDUCE_SUM, MU_DTYPE_F64, p->x, p->L * p->R * p->D); /* all but one summand are 0 */
    for (int layer = 0; layer < p->L; layer++) {
        const mu_moe *m = &p->ev.model->blocks[p->ev.model->moe_layers[layer]].moe;
        mu_similarity s;
        mu_activity_set("comparing experts", m->layer, NULL);
        mu_expert_similarity(m, p->ev.tape, p->x + layer * p->R * p->D, p->R, &s, k->twin + layer * p->E, k->twin_of + layer * p->E);
        k->similarity[layer] = s.cosine, k->cka[layer] = s.cka;
        mu_tape_reset(p->ev.tape);
    }
    k->similarity_step = step;
    k->credit -= similarity_cost(p);
}

/* An oracle forbids experts, and a mask must leave top_k of the others. */
static int choices_of(const mu_probe *p, int domain) {
    const int32_t *forced = p->ev.model->domain_mask;
    int n = 0;
    for (int64_t i = 0; i < p->E; i++) n += !forced || forced[domain * p->E + i] != MU_ROUTE_FORBIDDEN;
    return n;
}

/* compare: the similarity of experts, too. */
static void measure_unmasked(mu_probe *p, mu_knowledge *k, int64_t step, bool compare) {
    mu_comm *c = p->ev.batch;
    int64_t n_counts = p->L * p->E * p->domains, n_top1 = p->L * p->n_slots * p->E;
    item *items = mu_alloc((size_t)p->n, sizeof *items);
    double *sums = mu_alloc((size_t)p->domains, sizeof *sums);
    for (int i = 0; i < p->n; i++) items[i] = (item){ i, NONE };
    memset(p->counts, 0, sizeof *p->counts * (size_t)n_counts);
    memset(p->top1, 0, sizeof *p->top1 * (size_t)n_top1);
    memset(p->ids, 0, sizeof *p->ids * (size_t)n_ids(p));
    if (compare) p->x = mu_alloc((size_t)(p->L * p->R * p->D), sizeof *p->x);
    run(p, items, p->n, p->nll, false);
    mu_all_reduce(c, MU_REDUCE_SUM, MU_DTYPE_I32, p->kept, kept_values(p)); /* the bytes; all but one summand are 0 */
    mu_all_reduce(c, MU_REDUCE_SUM, MU_DTYPE_I64, p->counts, n_counts);
    mu_all_reduce(c, MU_REDUCE_SUM, MU_DTYPE_I64, p->top1, n_top1);
    mu_all_reduce(c, MU_REDUCE_SUM, MU_DTYPE_I32, p->ids, n_ids(p));
    for (int64_t i = 0; i < n_ids(p); i++) p->ids[i]--;
    for (int layer = 0; layer < p->L; layer++) k->pass[layer] = pass_cost(p, layer);
    for (int d = 0; d < p->domains; d++) {
        sums[d] = domain_sum(p, p->nll, d);
        k->choices[d] = choices_of(p, d);
        k->ce_ref[d] = p->ev.texts->corpus.domains[d].unigram_entropy;
    }
    if (p->x) measure_similarity(p, k, step);
    free(p->x);
    p->x = NULL;
    mu_knowledge_begin(k, step, p->counts, p->tokens, sums);
    mu_knowledge_flips(k, p->ids, p->per_domain);
    specialise(p, k);
    free(sums);
    free(items);
}

/* ------------------------------------------------------------------ experts masked, one at a time */

/* The screened domains' sequences, for every chosen expert; heap. */
static item *masked_items(const mu_probe *p, const mu_knowledge *k, const int64_t *cells, int64_t n_cells, int64_t *n) {
    item *items = mu_alloc((size_t)(n_cells * p->n), sizeof *items);
    *n = 0;
    for (int64_t c = 0; c < n_cells; c++)
        for (int i = 0; i < p->n; i++)
            if (mu_knowledge_screened(k, (int)(cells[c] / p->E), (int)(cells[c] % p->E), p->domain[i]))
                items[(*n)++] = (item){ i, cells[c] };
    return items;
}

static void measure_criticality(mu_probe *p, mu_knowledge *k) {
    int64_t *cells = mu_alloc((size_t)(p->L * p->E), sizeof *cells), n;
    int64_t n_cells = mu_knowledge_choose(k, cells);
    item *items = masked_items(p, k, cells, n_cells, &n);
    double *nll = mu_alloc((size_t)n, sizeof *nll);
    run(p, items, n, nll, true);
    for (int64_t i = 0; i < n;) { /* items of one expert and domain follow one another */
        int d = p->domain[items[i].sequence];
        int64_t cell = items[i].masked;
        double sum = 0;
        for (; i < n && items[i].masked == cell && p->domain[items[i].sequence] == d; i++) sum += nll[i];
        mu_knowledge_set(k, (int)(cell / p->E), (int)(cell % p->E), d, sum, domain_sum(p, p->nll, d));
    }
    free(nll);
    free(items);
    free(cells);
}

void mu_probe_count(mu_probe *p, mu_knowledge *k, int64_t step) {
    bool recording = mu_tape_recording(p->ev.tape);
    mu_tape_record(p->ev.tape, false);
    memset(k->margins, 0, sizeof *k->margins * (size_t)k->layers);
    p->margins = k->margins;
    measure_unmasked(p, k, step, false);
    mu_all_reduce(p->ev.batch, MU_REDUCE_SUM, MU_DTYPE_I64, k->margins, 3 * (int64_t)k->layers);
    p->margins = NULL;
    mu_tape_record(p->ev.tape, recording);
}

bool mu_probe_measure(mu_probe *p, mu_knowledge *k, int64_t step) {
    const mu_moe_config *moe = &p->ev.model->moe_cfg;
    if (!mu_knowledge_affords(k, mu_probe_tokens(p))) return false;
    bool recording = mu_tape_recording(p->ev.tape);
    mu_tape_record(p->ev.tape, false);
    bool masks = p->L && !moe->force_balanced && !moe->force_skew; /* a forced choice knows no mask */
    if (masks) keep_layers(p, k);
    measure_unmasked(p, k, step, mu_knowledge_compares(k));
    if (masks) measure_criticality(p, k);
    free(p->kept);
    p->kept = NULL, p->kept_layers = 0;
    mu_knowledge_end(k, mu_probe_tokens(p));
    mu_tape_record(p->ev.tape, recording);
    return true;
}
