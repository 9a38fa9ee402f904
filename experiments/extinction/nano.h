/* nano.h - the smallest size of the extinction experiment: its corpus, its model, and what is done to the model.
 *
 * Letters: T tokens of a batch, V symbols, D width, F width of an expert, E experts, K chosen experts per token. */
#ifndef EXTINCTION_NANO_H
#define EXTINCTION_NANO_H
#include "layers/layers.h"
#include "optim/optim.h"

/* ------------------------------------------------------------------ corpus (corpus.c)
 * A token is (prev, tag) -> next: next = f_tag(prev) with probability FACT, else any symbol. f_tag is a permutation of the
 * SYMBOLS that belongs to the domain: 64 facts. All domains use the same symbols. */
enum { SYMBOLS = 64, COMMON = 13, RARE = 3, DECOY = COMMON + RARE, NEAR_COPY, DOMAINS, PARENT = 2, CHANGED = 8 };
enum { TOKENS = 512, BUFFER = 512 };    /* of a batch; replay tokens kept of each rare domain */
static const double FACT = 0.9, RARE_SHARE = 0.001;
typedef struct {
    uint64_t seed;
    uint8_t next[DOMAINS][SYMBOLS];     /* the facts */
    bool changed[SYMBOLS];              /* facts in which NEAR_COPY differs from PARENT */
    double mixed[DOMAINS], drought[DOMAINS];    /* shares of the tokens, with and without the domains from COMMON on */
} corpus;
typedef struct { int n; int32_t prev[DOMAINS * SYMBOLS], tag[DOMAINS * SYMBOLS], next[DOMAINS * SYMBOLS]; } tokens;
void corpus_make(corpus *c, uint64_t seed);
void corpus_draw(const corpus *c, int64_t step, const double *shares, tokens *out);    /* TOKENS of them, sorted by tag */
void corpus_all(const corpus *c, tokens *out);         /* every prev of every domain once; next: the fact */
const mu_option_domains *corpus_domains(void);          /* their names are their numbers */
double corpus_optimum(int domain);                      /* the lowest possible cross-entropy, nats */

/* A sample of a domain's tokens of a fixed size, every token seen so far with equal probability (reservoir sampling). */
typedef struct { tokens kept[RARE]; int64_t seen[RARE]; } buffer;
void buffer_add(buffer *b, uint64_t seed, const tokens *t);
/* Replaces the first n tokens of a batch by tokens of the buffer. */
void buffer_replay(const buffer *b, uint64_t seed, int64_t step, int n, tokens *t);

/* ------------------------------------------------------------------ model (model.c)
 * x = prev[.] + tag[.];  logits = head (x + moe(x)); a dense feed-forward in place of the experts where E is 0. */
enum { D = 32, K = 2, E_MAX = 32, CARRIER = 0 };       /* CARRIER: the expert that the gate gives to the rare domains */
/* Who chooses experts: the router; the router, which must give the rare domains the carrier and the others not (ORACLE) or is trained to
 * (LEARNED, the library's domain gate); or protection by what the states of experts say (AUTO); tables of domains or symbols. */
typedef enum { GATE_NONE, GATE_ORACLE, GATE_LEARNED, GATE_AUTO, GATE_TABLE, GATE_HASH } gate_kind;
typedef struct {
    int experts, width;         /* experts 0: dense */
    uint32_t balance;           /* MU_BALANCE_* */
    int micro_batches;          /* of a batch, each of about as few domains as possible */
    gate_kind gate;
    bool lazy;                  /* experts without tokens are not updated */
    double lr, weight_decay, anchor;    /* anchor: its strength */
} nano_config;
typedef struct {
    nano_config cfg;
    const corpus *data;
    mu_device *dev;
    mu_mesh *mesh;
    mu_placement *place;
    mu_moe_config moe_cfg;
    mu_optim_config optim;
    mu_params *ps;
    mu_param *prev_VD, *tag_ND, *head_VD;
    mu_moe moe;
    mu_ffn ffn;
    mu_protection protection;
    mu_quantiles *quantiles;    /* NULL without quantile_balancing */
    mu_optimizer *opt;
    mu_tape *tp;
    mu_routing_stats *stats;
    int64_t step;
    bool exempt;                /* the carrier is left out of balancing, and with GATE_ORACLE other domains never choose it */
    int32_t domain_mask[DOMAINS * E_MAX];
    mu_anchor *anchor;          /* NULL: none */
} nano;
typedef struct {
    double ce[DOMAINS], accuracy[DOMAINS];      /* exact: over all prev, and over the distribution of next */
    double changed;                             /* accuracy in the facts in which NEAR_COPY differs from PARENT */
    double taken[DOMAINS][E_MAX];               /* share of a domain's tokens that chose the expert */
} evaluation;
void nano_open(nano *m, const nano_config *cfg, const corpus *data);
void nano_close(nano *m);
bool nano_has_carrier(const nano *m);           /* CARRIER, from the beginning */
void nano_exempt(nano *m, bool on);             /* for models that have one */
void nano_step(nano *m, const tokens *t);
void nano_backward(nano *m, const tokens *t);   /* gradients of the cross-entropy of some tokens alone */
void nano_evaluate(nano *m, int masked, evaluation *e);    /* masked: an expert that may not be chosen, -1: none */

/* ------------------------------------------------------------------ interventions (interventions.c) */
/* Everything that is trained, or one expert of it: matrices with moments and step counts, the router's row, the bias. */
typedef struct { double *values, *m, *v, row[D], bias[E_MAX]; int64_t steps[128]; } copy;
copy *copy_model(nano *m);                      /* free with copy_free */
void copy_model_back(nano *m, const copy *c);
copy *copy_expert(nano *m, int expert);
void copy_expert_back(nano *m, int expert, const copy *c);     /* with new moments and step count */
void copy_free(copy *c);

/* Adversaries: what revives an expert without tokens. donor: the busiest other one. */
typedef enum { REVIVE_NONE, REVIVE_MIMIC, REVIVE_REDO, REVIVE_DROP } revive_kind;
int  busiest(const nano *m);
void revive(nano *m, revive_kind kind, uint64_t seed);

/* On what the buffer holds of the rare domains, a token a sequence; mu_anchor_free. */
mu_anchor *anchor_new(nano *m, const buffer *b);
#endif
