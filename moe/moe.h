/* moe.h - one Mixture-of-Experts feed-forward layer: route -> dispatch -> experts -> combine; the terms
 * that balance its load; and statistics of its routing: which experts take tokens, which are dead or starved.
 *
 * Letters: T tokens of this rank's micro-batch, S of a sequence, D model width, F expert width, E experts,
 * e experts on this rank, K top-k, R routed rows, c_i assignments to expert i, f_i = c_i E / (K T): 1 when
 * balanced, p_ti = the scores of token t divided by their sum. */
#ifndef MUSTER_MOE_H
#define MUSTER_MOE_H
#include "dist/dist.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum { MU_BIAS_RATE_MAX = 1000 };
/*       type     key                 default      min  max  choices  use  help */
#define MU_OPTIONS_MOE(O) \
    O(INT,    num_experts,         "8",         0,   65536, NULL, SHAPE, "routed experts per MoE layer (E); 0: a dense model") \
    O(INT,    top_k,               "2",         1,   1024, NULL, FIXED, "experts per token (K)") \
    O(INT,    moe_ffn_hidden_size, "512",       1,   1048576, NULL, SHAPE, "hidden size of one expert (F)") \
    O(INT,    num_shared_experts,  "0",         0,   1024, NULL, SHAPE, "shared experts, which process every token, each of moe_ffn_hidden_size") \
    O(BOOL,   shared_expert_gate,  "false",     0,   0,  NULL, SHAPE, "the output of the shared experts is multiplied by the sigmoid of a linear layer with one output (Qwen2-MoE)") \
    O(INT,    moe_layer_freq,      "1",         1,   1024, NULL, SHAPE, "every n-th layer is a MoE layer, the others are dense") \
    O(INT,    first_k_dense,       "0",         0,   1024, NULL, SHAPE, "the first k layers are dense") \
    O(CHOICE, score_func,          "softmax",   0,   0,  "softmax|sigmoid", FIXED, "scoring function of the router logits") \
    O(BOOL,   norm_topk_prob,      "true",      0,   0,  NULL, FIXED, "normalize the top-k scores to sum to 1 to get the gates") \
    O(FLOAT,  route_scale,         "1.0",       1e-6, 1e6, NULL, FIXED, "scaling factor of the gates") \
    O(CHOICES, balance,            "[global_aux_loss]", 0, 0, "none|aux_loss|seq_aux_loss|global_aux_loss|expert_bias|quantile_balancing", FREE, "load-balancing methods; several can be combined, but not expert_bias with quantile_balancing") \
    O(FLOAT,  aux_loss_coeff,      "0.01",      0,   1e6, NULL, FREE, "coefficient of aux_loss and global_aux_loss") \
    O(FLOAT,  seq_aux_loss_coeff,  "0.0001",    0,   1e6, NULL, FREE, "coefficient of seq_aux_loss") \
    O(FLOAT,  z_loss_coeff,        "0.001",     0,   1e6, NULL, FREE, "coefficient of the router z-loss, the mean squared log-sum-exp of the router's logits; by default 0 with sigmoid scores") \
    O(CHOICE, global_aux_counts,   "exact",     0,   0,  "exact|previous", FREE, "expert counts in global_aux_loss: of this global batch (exact) or of the previous one") \
    O(FLOAT,  bias_update_rate,    "0.001",     0,   MU_BIAS_RATE_MAX, NULL, FREE, "update rate of the selection bias (expert_bias); 0 in the last 3 % of the run") \
    O(FLOAT,  capacity_factor,     "0",         0,   1e6, NULL, FREE, "an expert takes at most ceil(factor * top_k * seq_len / num_experts) tokens per sequence, the earliest; 0: dropless") \
    O(CHOICE, token_drop_policy,   "position",  0,   0,  "position", RETIRED, "beyond the capacity the last tokens of a sequence are dropped") \
    O(FLOAT,  router_jitter,       "0",         0,   1, NULL, FREE, "training noise on the router input: each value times a random factor in [1 - jitter, 1 + jitter]; 0: none") \
    O(DOMAIN_INTS, force_domains, NULL,         0,   65535, NULL, FIXED, "experiments only, {DOMAIN: EXPERT, ...}: in each MoE layer every token of the domain has this expert among its top_k, and tokens of other domains never have it") \
    O(BOOL,   force_balanced,      "false",     0,   0,  NULL, FIXED, "benchmarks only: ignore the router, distribute tokens evenly") \
    O(BOOL,   force_skew,          "false",     0,   0,  NULL, FIXED, "benchmarks only: every token's first choice is expert 0")

typedef struct { MU_OPTIONS_MOE(MU_OPTION_FIELD) } mu_moe_config;

/* Thresholds of the states of experts (expert_states.c). A window is one evaluation, every stats.every steps. */
#define MU_OPTIONS_STATES(O) \
    O(FLOAT,  starved_load,        "0.25",      0,   1, NULL, FREE, "starved: an expert with less than this share of the mean load") \
    O(INT,    starved_windows,     "2",         1,   1000, NULL, FREE, "... for so many windows in a row") \
    O(FLOAT,  starved_silence,     "3",         0,   1e6, NULL, FREE, "... or with a silence above this: steps without tokens, relative to its own past; the past explains a silence of z with probability exp(-z)") \
    O(FLOAT,  dead_load,           "0.01",      0,   1, NULL, FREE, "dead: an expert with less than this share of the mean load") \
    O(INT,    dead_windows,        "5",         1,   1000, NULL, FREE, "... for so many windows in a row") \
    O(FLOAT,  dead_silence,        "7",         0,   1e6, NULL, FREE, "... and with a silence above this; a carrier that is as silent is dormant") \
    O(FLOAT,  dead_criticality,    "0.01",      0,   1e6, NULL, FREE, "... and every domain loses less than this without it, in nats per token") \
    O(FLOAT,  rare_domain,         "0.02",      0,   1, NULL, FREE, "a domain with at most this share of the training tokens (in all so far or in the present phase, by the weights) is rare, and can have carriers") \
    O(FLOAT,  carrier_criticality, "0.05",      0,   1e6, NULL, FREE, "carrier: a rare domain loses at least this without the expert, in nats per token") \
    O(FLOAT,  carrier_gain,        "0.1",       0,   1, NULL, FREE, "... and at least this share of what the model has learned of the domain") \
    O(FLOAT,  carrier_share,       "0.25",      0,   1, NULL, FREE, "share of the experts of a layer that can be carriers") \
    O(FLOAT,  overwritten_criticality, "0.5",   0,   1, NULL, FREE, "overwritten: a carrier whose criticality fell below this share of its peak") \
    O(FLOAT,  overwritten_retention, "0.7",     0,   1, NULL, FREE, "... or whose domain keeps less than this share of what was learned; if also its top domain changed or it copies a busy expert") \
    O(FLOAT,  copy_cosine,         "0.9",       0,   1, NULL, FREE, "an expert whose outputs have at least this cosine with those of another is its copy") \
    O(INT,    duplicate_windows,   "10",        0,   100000, NULL, FREE, "duplicate: a copy so many windows after it was re-seeded; before, it is not judged dead, either") \
    O(INT,    leave_windows,       "2",         1,   1000, NULL, FREE, "an expert leaves a state other than healthy after its rule failed so many windows in a row")

#define MU_OPTIONS_STATS(O) \
    O(INT,    window,              "200",       20,  100000, NULL, FREE, "steps over which expert load is summed; moe/starved_frac is the share of experts below 10 % of the mean load in it (the state starved has rules of its own: starved_load); takes 4 bytes per step and expert of each MoE layer in memory, 8 in checkpoints") \
    O(INT,    every,               "100",       0,   1e9, NULL, FREE, "steps between statistics lines of metrics.jsonl, which describe the experts over the window; 0: never") \
    O(INT,    probe_tokens,        "512",       1,   1e6, NULL, FREE, "validation tokens per domain, as whole sequences, on which experts are measured: at least one sequence") \
    O(FLOAT,  budget,              "0.02",      0,   1, NULL, FREE, "share of the training time for measuring on these tokens what experts know, by the number of tokens; each time some experts are masked, in turn; 0: never") \
    MU_OPTIONS_STATES(O)

typedef struct { MU_OPTIONS_STATS(MU_OPTION_FIELD) } mu_stats_config;
mu_stats_config mu_stats_config_default(void);
/* Checks ranges, and thresholds against each other. Local (expert_states.c). */
void mu_stats_config_check(const mu_stats_config *cfg, mu_complaints *c);

/* Protection of experts that rare domains depend on (protection.c); each intervention has its options here. */
#define MU_OPTIONS_PROTECT(O) \
    O(NAMES,  domains,              "none",      0,   0, NULL, FREE, "domains whose carriers are protected, also while they are dormant and when they were overwritten, and of which replay and anchor keep what was learned while they are absent; auto: the rare ones (stats.rare_domain), and so all that disappear") \
    O(DOMAIN_INTS, carriers,        NULL,        0,   65535, NULL, FREE, "{DOMAIN: EXPERT, ...}: in each MoE layer this expert is protected for the domain from the start, whatever its state") \
    O(BOOL,   exempt,               "true",      0,   0, NULL, FREE, "protected experts are left out of balancing: the others share their load evenly, and the selection bias of the protected ones stays") \
    O(BOOL,   archive,              "true",      0,   0, NULL, FREE, "an expert is archived in RUN/archive when it becomes a carrier, when it has become more critical by a tenth, when it is starved for the first time and some domain needed it, and carriers at the end of the run") \
    O(FLOAT,  gate_coeff,           "0.05",      0,   1e6, NULL, FREE, "coefficient of the domain gate: the router's logit of a protected expert learns, from the labels of training sequences, to be above 0 for tokens of its domain and below 0 for others; 0: none") \
    O(FLOAT,  dormant_lr,           "1",         0,   1, NULL, FREE, "factor of the learning rate of protected experts while they are dormant; 1: as ever, 0: they are frozen") \
    O(FLOAT,  replay,               "0.01",     0,   0.5, NULL, FREE, "share of the training samples that each protected domain replaces while its share is 0 and samples of it were drawn before: by one of its last sequences; at most half of them for all domains together") \
    O(INT,    replay_sequences,     "32",         1,   1e6, NULL, FREE, "number of last sequences of a domain for protect.replay and protect.anchor") \
    O(FLOAT,  anchor,               "0",       0,   1e9, NULL, FREE, "strength of the anchor: from the step in which a protected domain disappears from the samples, weights that matter to it are pulled back to their values of then; 0: none; takes two copies of the weights") \
    O(FLOAT,  anchor_cut,           "0",         0,   1, NULL, FREE, "weights whose Fisher information is below this share of the largest are not anchored") \
    O(FLOAT,  starved_boost,        "0",         0,   1, NULL, FREE, "added to the selection bias of a starved expert that carries no domain, after it was archived, each stats.every steps and at most three times until it is healthy; one expert per layer at a time; needs expert_bias in moe.balance; 0: never") \
    O(BOOL,   reseed_dead,          "false",     0,   0, NULL, FREE, "a dead expert becomes half of the busiest expert of its layer that carries no domain, after it was archived: at most one per layer each stats.every steps, none in the last tenth of the run") \
    O(FLOAT,  upsample,             "1",         0.05, 1, NULL, FIXED, "exponent of the domains' shares in the samples, in every phase and for all domains: share^upsample, normalized; below 1 rare domains are drawn more often")

typedef struct { MU_OPTIONS_PROTECT(MU_OPTION_FIELD) } mu_protect_config;
mu_protect_config mu_protect_config_default(void);
/* Checks ranges, and that the carriers are experts of the model. Local (protection.c). */
void mu_protect_config_check(const mu_protect_config *cfg, int64_t num_experts, mu_complaints *c);
/* Is this domain to be protected, should it have carriers? Local (protection.c, like the next). */
bool mu_protects_domain(const mu_protect_config *cfg, const char *domain);
bool mu_protects_auto(const mu_protect_config *cfg);        /* protect.domains: auto */
/* The domain that protect.carriers gives to an expert, of several the first; -1: none. Local (protection.c). */
int32_t mu_given_domain(const mu_protect_config *cfg, const mu_option_domains *domains, int64_t expert);

enum { MU_MOE_SCORE_SOFTMAX, MU_MOE_SCORE_SIGMOID };
enum { MU_BALANCE_NONE = 1, MU_BALANCE_AUX = 2, MU_BALANCE_SEQ_AUX = 4, MU_BALANCE_GLOBAL_AUX = 8, MU_BALANCE_BIAS = 16,
       MU_BALANCE_QUANTILE = 32, MU_BALANCE_SELECTION = MU_BALANCE_BIAS | MU_BALANCE_QUANTILE };  /* SELECTION: those with a selection bias */
enum { MU_MOE_COUNTS_EXACT, MU_MOE_COUNTS_PREVIOUS };

mu_moe_config mu_moe_config_default(void);
/* For a program that knows that z_loss_coeff was not given: the default becomes 0 for sigmoid scores. Local (config.c). */
void mu_moe_config_resolve(mu_moe_config *cfg);
/* Checks ranges, and options that exclude each other. False: a value is out of its range, and the caller must not
 * calculate with it. A dense model (num_experts 0) is not checked. Local. */
bool mu_moe_config_check(const mu_moe_config *cfg, mu_complaints *c);

/* ------------------------------------------------------------------ the layer (moe.c) */
typedef struct {
    const mu_moe_config *cfg;
    int layer;
    int64_t D, F, E, K;
    int64_t first_load;                     /* of expert 0, among the loads of all experts */
    mu_comm *group;                         /* the expert group */
    const mu_placement *place;
    mu_param *router_ED, *gate_eFD, *up_eFD, *down_eDF;
    mu_param *shared_gate, *shared_up, *shared_down;    /* [n F, D], [n F, D], [D, n F]; NULL without shared experts */
    mu_param *shared_scale_1D;              /* of moe.shared_expert_gate, or NULL */
    double *bias;                           /* [E] selection bias, the same on every rank; all 0 without MU_BALANCE_SELECTION */
    int domains;
    const int32_t *domain_mask;             /* [domains, E]: mu_moe_domain_mask, borrowed; NULL: none */
    const struct mu_protection *protection; /* of its experts from first_load on, borrowed; NULL: none is protected */
} mu_moe;

/* What the router decided for one micro-batch. Tensors live until the tape is reset. */
typedef struct {
    mu_tensor *scores_TE, *lse_T, *ids_TK, *gates_TK;
    mu_tensor *counts_SE;                   /* I64 [sequences, E]: assignments, dropped ones included */
    mu_tensor *bias_E;                      /* the selection bias, NULL without one */
    mu_tensor *logits_TE;                   /* for the domain gate (mu_moe_has_gate); else NULL */
    bool sigmoid;                           /* scores are sigmoids of the logits, not their softmax */
    double gate_scale;                      /* moe.route_scale, the largest gate */
    const struct mu_router_grads *grads;    /* what measures the gradients of the logits; NULL: not wanted */
    const struct mu_plan *plan;             /* the dispatch plan of the rows */
} mu_routing;

/* Declares the layer's parameters under /layers/<layer>/mlp. Borrows cfg, group and place. Local. */
void mu_moe_init(mu_moe *m, const mu_moe_config *cfg, int64_t D, double init_std, int layer, mu_params *ps,
                 mu_group *shared, mu_group *expert, mu_comm *group, const mu_placement *place);
void mu_moe_free(mu_moe *m);
/* The selection bias as checkpoint state; each value lies in [-most, most]. Without MU_BALANCE_SELECTION loading sets it
 * to 0. Local. */
void mu_moe_state(mu_moe *m, double most, mu_state_visitor *v);
/* y_TD of x_TD. Collective over m->group. */
mu_tensor *mu_moe_forward(const mu_moe *m, mu_tape *tp, const mu_context *cx, mu_tensor *x_TD, mu_routing *routing);

/* ------------------------------------------------------------------ routing (router.c, ops/route.c, ops/dispatch.c) */
/* The router: input, jitter, logits and mu_route. The result has no plan yet. Local. */
mu_routing mu_moe_route(const mu_moe *m, mu_tape *tp, const mu_context *cx, mu_tensor *x_TD);

/* What moe.force_domains means for each of n domains: MU_ROUTE_REQUIRED, FORBIDDEN or ALLOWED. Local (expert_mask.c, like the next). */
void mu_moe_domain_mask(const mu_moe_config *cfg, const mu_option_domains *domains, int32_t *mask_nE);
/* This layer's part of cx->expert_mask, with the domain mask of each sequence's domain in cx->domains: I32 [1, n_sequences or T,
 * E]; NULL when every expert may be chosen. Local. */
mu_tensor *mu_moe_mask(const mu_moe *m, mu_tape *tp, const mu_context *cx);

/* The dispatch plan: which expert processes which routed row (a token with one of its experts), and where the result
 * goes. With one rank in the expert group, rows are sorted by expert and read directly from x. With several, rows are
 * sent sorted by destination, and the receiver reads them by expert, then sender. Ops take the tensors that they read
 * as inputs, so that the tape keeps those alive. */
typedef struct mu_plan {
    int64_t T, K;
    int64_t capacity;                       /* maximum rows per expert and sequence; 0: no limit */
    int64_t rows;                           /* of this rank's experts (with one rank T*K, dropped ones included) */
    int64_t experts;                        /* e */
    mu_tensor *offsets;                     /* I64 [e+1] */
    mu_tensor *unit_bounds;                 /* I64 [e * reduction_units + 1]: first row of each unit; for exact sums, or NULL */
    int64_t reduction_units;                /* of all ranks of the expert group */
    mu_tensor *row_source;                  /* I32 [rows]: input row that each reads (several ranks: and writes) */
    mu_tensor *token_rows;                  /* I32 [inputs, rows_per_token]: the rows that read an input row, -1 for none */
    int64_t rows_per_token;                 /* K for one rank, else 1 */
    bool all_to_all;                        /* rows are exchanged among ranks */
    bool batch_invariant;                   /* a row's bits do not depend on the number of rows (kernels.h) */
    mu_tensor *row_TK;                      /* I32: row of each assignment in this rank's own order, -1 when dropped */
    mu_tensor *token;                       /* I32: token of each of this rank's rows, before they are sent */
    int64_t sent;                           /* number of rows that this rank sends, with several ranks */
    int64_t *send_rows, *recv_rows;         /* [group size], with several ranks */
} mu_plan;
/* One op (ops/dispatch.c), without gradient: recomputation uses the plan again. Collective over m->group (counts are exchanged
 * when it has several ranks). */
mu_plan *mu_dispatch(const mu_moe *m, mu_tape *tp, const mu_context *cx, const mu_routing *r);
/* A plan that sends every one of T rows to one expert: a dense feed-forward. Local. */
mu_plan *mu_plan_dense(mu_tape *tp, int64_t T);
/* A plan that sends every one of T rows to each of this rank's `experts`; for mu_experts without gradient. Local. */
mu_plan *mu_plan_every(mu_tape *tp, int64_t T, int64_t experts);
/* Releases the plan's tensors (mu_release): no further op may use it. Local. */
void mu_plan_release(mu_tape *tp, const mu_plan *p);

/* ------------------------------------------------------------------ ops (ops/) */
/* x_TD, master dtype, each value times a factor in 1 +- eps. Row t is position t % S of sample rng->sample + t / S (kernels.h). */
mu_tensor *mu_jitter(mu_tape *tp, mu_tensor *x_TD, int64_t S, double eps, const mu_rng *rng);
/* Which loss terms the gradient of a router's logits consists of: what comes through the gates (the cross-entropy; of an earlier layer
 * also the terms of later ones, which depend on its outputs), the balancing terms by their coefficient, the z-loss, and the domain gate. */
typedef enum { MU_ROUTER_GRAD_LM, MU_ROUTER_GRAD_AUX, MU_ROUTER_GRAD_SEQ_AUX, MU_ROUTER_GRAD_Z, MU_ROUTER_GRAD_GATE,
               MU_ROUTER_GRADS } mu_router_grad;
typedef struct mu_router_grads {
    mu_route_shape shape;
    const mu_tensor *scores, *ids;
    mu_mat sums;                            /* I64 [MU_ROUTER_GRADS]: of this layer */
    double unit;
} mu_router_grads;
/* During backward: sums[term] adds the norm of each token's gradient of the logits that follows from these gradients of the route's
 * outputs (data NULL: none). Changes no gradient. Local. */
void mu_router_grads_add(mu_tape *tp, const mu_router_grads *g, mu_router_grad term, mu_mat dgates, mu_mat dscores, mu_mat dlse);
/* The choice of experts from logits, with all that mu_routing has but the plan. bias_E and mask_nE (I32: MU_ROUTE_FORBIDDEN, ...; n
 * divides T, each row is for T/n consecutive tokens) may be NULL; sequences are seq_len tokens long. grad_sums (data NULL: none) gets the
 * norms of gradients, times grad_unit. */
mu_routing mu_route(mu_tape *tp, mu_tensor *logits_TE, mu_tensor *bias_E, mu_tensor *mask_nE, const mu_route_shape *shape,
                    int64_t seq_len, mu_mat grad_sums, double grad_unit);
/* SwiGLU experts over a plan: one op, so that gather, activation and products can be fused. A row's result is
 * multiplied by its weight (one per row, in the plan's order; NULL: 1). */
mu_tensor *mu_experts(mu_tape *tp, mu_tensor *x, mu_tensor *weights_R, mu_tensor *gate_eFD, mu_tensor *up_eFD,
                      mu_tensor *down_eDF, const mu_plan *plan);
/* The same over a plan of one rank, each token's rows summed: [T, D]. Neither the rows nor their gradients are kept. */
mu_tensor *mu_experts_combined(mu_tape *tp, mu_tensor *x_TD, mu_tensor *weights_R, mu_tensor *gate_eFD,
                               mu_tensor *up_eFD, mu_tensor *down_eDF, const mu_plan *plan);
mu_tensor *mu_gather_rows(mu_tape *tp, mu_tensor *x_TD, const mu_plan *plan);               /* this rank's rows, in the order to send */
mu_tensor *mu_combine(mu_tape *tp, mu_tensor *rows, const mu_plan *plan);                   /* the sum of each token's rows: [T, D] */
mu_tensor *mu_scatter_rows(mu_tape *tp, mu_tensor *x, mu_tensor *row, int64_t rows);        /* value i of x in row row[i]: [rows, 1] */
/* weight * sum_t sum_i coef[t / segment, i] p_ti (F64, one value per reduction unit); *value: the same without
 * weight. A reduction unit consists of whole segments, or a segment of whole units. grads (or NULL) gets its gradient as that of `term`. */
mu_tensor *mu_balance_term(mu_tape *tp, mu_tensor *scores_TE, mu_tensor *coef, int64_t segment, bool normalise, double weight,
                           const mu_router_grads *grads, mu_router_grad term, mu_tensor **value);
/* weight * the sum over all logits of |c| times the binary cross-entropy of their sigmoid, c = coef[t / segment, i], for the label 1 where c > 0 and
 * 0 where c < 0; *value and grads as above. */
mu_tensor *mu_gate_term(mu_tape *tp, mu_tensor *logits_TE, mu_tensor *coef, int64_t segment, double weight, const mu_router_grads *grads,
                        mu_tensor **value);
/* weight * coef * sum_t lse_t^2 (F64, one value per reduction unit); *value without weight. */
mu_tensor *mu_z_term(mu_tape *tp, mu_tensor *lse_T, double coef, double weight, mu_tensor **value);

/* ------------------------------------------------------------------ balance (balance.c)
 * All terms are means over the tokens of the global batch; counts are integers summed over ranks, so that a
 * term's value, summed over ranks and micro-batches, does not depend on how the batch was split. */
typedef struct {
    mu_mat micro;               /* I64 [E], on the device: assignments of this micro-batch over all ranks */
    mu_mat global;              /* of a global batch, for global_aux_loss or the logged aux; data NULL: f_i = 1 */
    int64_t micro_tokens;       /* over all ranks */
    int64_t global_tokens;
} mu_balance_counts;
typedef struct {
    mu_tensor *loss;            /* F64, one value per reduction unit: every term with its coefficient; NULL when none is on */
    mu_tensor *aux, *z;         /* the same: this rank's share of the unscaled values, for the log; z is NULL with sigmoid scores without z-loss */
    mu_tensor *gate;            /* likewise; NULL without a domain gate */
} mu_balance;
mu_balance mu_balance_loss(const mu_moe *m, mu_tape *tp, const mu_context *cx, const mu_routing *r,
                           const mu_balance_counts *c);
/* Loss-free balancing (Wang et al. 2024): bias_i += rate * sign(mean - c_i), counts of the global batch; then the biases are centred.
 * Exempt experts are left out. Local. */
void mu_balance_update_bias(mu_moe *m, const int64_t *counts_E, double rate);
/* Subtracts the mean of the biases of all experts that are not exempt: a common part changes no choice among these, and would grow
 * without limit. Local. */
void mu_balance_centre_bias(mu_moe *m);
void mu_balance_raise_bias(mu_moe *m, int64_t expert, double by);    /* one bias, and centres all. Local */
int64_t mu_balance_assignments(const mu_moe *m, const int64_t *counts_E);      /* of experts that are not exempt. Local */

/* ------------------------------------------------------------------ quantile balancing (quantile.c)
 * Another rule for the selection bias, without a rate. For each global batch: mu_quantiles_begin; for each micro-batch and layer mu_quantiles_add;
 * mu_quantiles_read; for each layer mu_quantiles_update. */
enum { MU_QUANTILE_BINS = 1024 };
typedef struct {
    mu_device *dev;
    mu_comm *batch;
    int layers, experts;
    mu_memory *memory;          /* I32 [layers, experts, MU_QUANTILE_BINS]: of the global batch so far, of this rank */
    int32_t *host;              /* the same over all ranks, after mu_quantiles_read */
} mu_quantiles;
mu_quantiles *mu_quantiles_new(mu_device *dev, mu_comm *batch, int layers, int experts);    /* Local, like all but one */
void mu_quantiles_free(mu_quantiles *q);
void mu_quantiles_begin(mu_quantiles *q);
void mu_quantiles_add(mu_quantiles *q, const mu_moe *m, int layer, const mu_routing *r);   /* layer: among the MoE layers */
void mu_quantiles_read(mu_quantiles *q);                                                    /* waits for the device. Collective over `batch` */
void mu_quantiles_update(const mu_quantiles *q, mu_moe *m, int layer, const int64_t *loads_E);  /* loads: of the global batch */

/* ------------------------------------------------------------------ load of experts (load_window.c)
 * Load of every expert over a window of steps. All counts are of the global batch, so every rank gets
 * the same result without communication. */
enum { MU_LOAD_WINDOW_DEFAULT = 200, MU_LOAD_WINDOW_MIN = 20 };
enum { MU_SILENT_STEPS = 20, MU_SILENCE_MAX = 7 };  /* an expert without tokens for more steps, and with more silence, is dead */
enum { MU_PAST_GAPS = 16 };
typedef struct {
    int layers, experts;
    int64_t length;             /* steps that it has room for */
    int64_t steps;              /* added in all, since the run began */
    int64_t held;               /* how many of these, the newest, the window holds: at most length */
    int32_t *ring;              /* [length, layers, experts]: step s in row s % length, zeros where no step is held */
    int64_t *total;             /* [layers, experts]: sums over the window */
    int64_t *previous;          /* [layers, experts]: the last global batch, for global_aux_counts: previous */
    int64_t *last_step;         /* [layers, experts]: the last step (the first is 1) that gave it tokens; 0: none so far */
    int64_t *gaps;              /* [layers, experts]: from one such step to the next; how many are known, at most MU_PAST_GAPS */
    double *mean_gap;           /* [layers, experts]: their mean in steps, over about the last MU_PAST_GAPS; 0 as above */
} mu_load_window;
typedef struct {
    /* Of one batch: max/mean - 1, 1 - min/mean, max/mean, sd/mean, Gini coefficient, exp(entropy)/E. */
    double max_vio, min_vio, load_imbalance, load_cv, gini, diversity;
} mu_load;
/* The numbers are in files and do not change. The window knows only the first three; the others: expert_states.c. */
typedef enum { MU_EXPERT_HEALTHY, MU_EXPERT_STARVED, MU_EXPERT_DEAD, MU_EXPERT_CARRIER, MU_EXPERT_DORMANT, MU_EXPERT_DUPLICATE,
               MU_EXPERT_OVERWRITTEN, MU_EXPERT_STATES } mu_expert_state;
void mu_load_window_init(mu_load_window *w, int layers, int experts, int64_t length);
void mu_load_window_free(mu_load_window *w);
int64_t mu_load_window_bytes(const mu_load_window *w);                  /* of host memory */
void mu_load_window_add(mu_load_window *w, const int64_t *counts);      /* [layers, experts] of one step */
/* After `ring` and `steps` were loaded: derives held, total, previous, and last_step and mean_gap as far as the window
 * goes back. */
void mu_load_window_derive(mu_load_window *w);
/* Then checks them: in every held step the counts of each layer add up to `assignments`. MU_STATUS_DATA when not. */
mu_status mu_load_window_check(const mu_load_window *w, int64_t assignments, mu_error *e) MU_MUST_USE;
/* Do last_step and mean_gap agree with the window? MU_STATUS_DATA when not. */
mu_status mu_load_window_check_silence(const mu_load_window *w, mu_error *e) MU_MUST_USE;
/* Copies the newest steps of `from`, as many as fit into `to`, which may be shorter or longer. */
void mu_load_window_copy(mu_load_window *to, const mu_load_window *from);
/* Steps of the window in which the expert got a token. */
int64_t mu_load_window_active_steps(const mu_load_window *w, int layer, int expert);
bool mu_load_window_is_long_enough(const mu_load_window *w);    /* enough steps to call an expert dead or starved? */
/* The number of steps before the first that the window knows, while that is in it; else 0. Not 0 only when it began after others. */
int64_t mu_load_window_start(const mu_load_window *w);
/* How unusual the time is that an expert has been without tokens: with tokens at random it exceeds z with probability exp(-z),
 * however rare they are. n ln(1 + steps / (n mean_gap)) of n known gaps, which for many gaps is the number of mean gaps, and for few
 * allows for the error of their mean. 0 when it never had a token. */
double mu_load_window_silence(const mu_load_window *w, int layer, int expert);
/* States of the experts of a layer. Dead: never had a token, or has been without for more than MU_SILENT_STEPS, with a silence above MU_SILENCE_MAX;
 * starved: not dead, and below 10 % of the mean load of its layer in the window. So an expert without tokens in the window whose
 * gaps have always been long is starved, not dead. All are healthy until there are enough steps. */
void mu_load_window_states(const mu_load_window *w, int layer, mu_expert_state *states_E);
typedef struct { int dead, starved; } mu_unhealthy;
mu_unhealthy mu_load_window_count_unhealthy(const mu_load_window *w);   /* experts of all layers */
mu_load mu_load_of(const int64_t *counts_E, int experts);
/* "layer 3: 2 of 64 experts dead (no tokens for 200 steps): 5, 11", one line for each layer and state; heap text, "" when all are
 * healthy. */
char *mu_load_window_report(const mu_load_window *w, const int *layer_ids);

/* ------------------------------------------------------------------ states of experts (expert_states.c)
 * A state is the first of these whose rule holds; the thresholds are options (MU_OPTIONS_STATES):
 *
 *     overwritten  was a carrier, and lost it to other tokens
 *     dormant      a carrier without tokens: its domain is absent now
 *     carrier      a rare domain depends on it, whatever its load
 *     duplicate    a copy of another expert, long after it was re-seeded
 *     dead         hardly any load, silent for longer than its past explains, and no domain depends on it
 *     starved      little load, or silent
 *     healthy
 *
 * Evaluated every stats.every steps, a `window` in the names of thresholds. They differ from mu_load_window_states, which looks at
 * the load of one window alone. All Local, and the same on every rank when the evidence is. */
typedef struct {
    int layers, experts;
    /* [layers, experts] each: the state; the step of its evaluation; how often in a row the load was below the thresholds;
     * how often in a row its rule failed; the rare domain that it carries or once carried, and its top domain (below) then, as
     * 1 + number (0: none); its criticality when that was noted. */
    int64_t *state, *since, *below_dead, *below_starved, *leaving, *carried, *top;
    double *top_criticality;
    int64_t *frozen, *reseeded;             /* [layers, experts]: MU_FROZEN_NEVER, ...; the last step in which its weights were replaced, 0: never */
} mu_expert_health;
/* Of a frozen expert the weights, its row of the router and its selection bias do not change. PAST: it was frozen once. */
enum { MU_FROZEN_NEVER, MU_FROZEN_NOW, MU_FROZEN_PAST };
/* What one evaluation looks at; borrowed. NULL: not known, and rules that need it do not hold. */
typedef struct {
    int domains;
    int64_t step, interval;                 /* interval: steps between evaluations */
    const int64_t *load;                    /* [layers, experts]: of the window */
    const double *silence;                  /* [layers, experts]: see mu_load_window_silence */
    const int32_t *by_domain;               /* [layers, experts, domains]: of the window. The top domain of an expert is the one of whose
                                             * tokens it gets the largest share */
    const double *share, *present_share;     /* [domains]: of the training tokens so far, and of those now, by the weights */
    const float *K, *peak;                  /* [layers, experts, domains]: criticality, and the largest ever; 0 where not measured */
    const int32_t *at;                      /* [layers, experts, domains], with K: the step in which K was measured, 0: never; NULL: all were */
    const double *ce, *ce_best, *ce_ref;    /* [domains], with K: cross-entropy now, lowest so far, of token frequencies */
    const double *twin;                     /* [layers, experts]: largest cosine of its outputs with those of another expert */
    const int64_t *twin_of;                 /* [layers, experts], with twin: that expert, or -1 */
    const int64_t *reseeded;                /* [layers, experts]: the step in which it was re-seeded, 0: never */
} mu_expert_evidence;
typedef struct {
    int layer, expert;                      /* layer: among the MoE layers */
    mu_expert_state from, to;
    int64_t since;                          /* step from which it was in `from` */
    double load, silence;                   /* relative to the mean of its layer; see above */
    int twin;                               /* -1: not known */
    double cosine;
    int domain;                             /* carried now or earlier, when one of the states is about it; of a starved expert the one that depends
                                             * on it, rare or not (find_needing); else -1, and the rest 0 */
    double criticality, peak, retention, share;     /* retention: share of what was learned of the domain that is still known */
} mu_expert_change;
const char *mu_expert_state_name(mu_expert_state state);
bool mu_expert_carries(int64_t state);          /* is it a state of an expert that carries a domain? Local, like the next */
bool mu_domain_is_rare(const mu_stats_config *t, double share, double present_share);      /* shares as in mu_expert_evidence */
void mu_expert_health_init(mu_expert_health *h, int layers, int experts);
void mu_expert_health_free(mu_expert_health *h);
/* State of a checkpoint with the domains `from`, for a run with domains of these names. */
void mu_expert_health_state(mu_expert_health *h, const mu_option_domains *from, int domains, char (*names)[64], int64_t step,
                            mu_state_visitor *v);
/* Evaluates all experts. Returns the number of changes: changes[layers * experts] has room for all. */
int mu_expert_health_update(mu_expert_health *h, const mu_expert_evidence *v, const mu_stats_config *thresholds, mu_expert_change *changes);
void mu_expert_health_count(const mu_expert_health *h, int layer, int64_t counts[MU_EXPERT_STATES]);   /* layer -1: all */

/* ------------------------------------------------------------------ protection (protection.c)
 * Which experts are protected, and for which domain: the carriers, also dormant and overwritten ones, of protect.domains, and those
 * that protect.carriers names. It follows from the states of experts and the options, so it is no state of its own: it is updated
 * when training begins and after each evaluation of states. The same on every rank. */
typedef struct mu_protection {
    int layers, experts;
    int32_t *domain_of;         /* [layers, experts]: the number of that domain; -1: not protected */
    uint8_t *exempt;            /* [layers, experts]: 1: left out of balancing: protected (with protect.exempt), or frozen */
    double gate_coeff;          /* protect.gate_coeff */
} mu_protection;
typedef struct { int layer, expert, domain; bool on; } mu_protection_change;    /* layer: among the MoE layers; on: protected from now on */
void mu_protection_init(mu_protection *p, int layers, int experts);      /* none is protected */
void mu_protection_free(mu_protection *p);
/* domains: those of the run, which h->carried numbers. Returns the number of changes; changes: NULL, or with room for one of each expert.
 * Local. */
int mu_protection_update(mu_protection *p, const mu_protect_config *cfg, const mu_expert_health *h, const mu_option_domains *domains,
                         mu_protection_change *changes);
/* Units of protected dormant experts learn at `factor` times the rate, with factor 0 they are frozen; those of other experts learn as ever, unless
 * they are frozen for good (h->frozen). 1: nothing is changed. The same on every rank. Local. */
void mu_protection_slow(const mu_protection *p, const mu_expert_health *h, mu_params *ps, double factor);
/* Is an expert (layer * experts + expert) held as it is, with this factor? Local. */
bool mu_protection_freezes(const mu_protection *p, const mu_expert_health *h, int64_t at, double factor);
bool mu_moe_exempts(const mu_moe *m, int64_t expert);        /* Local, like the next */
int64_t mu_moe_balanced(const mu_moe *m);                   /* number of experts that are not exempt */

/* ------------------------------------------------------------------ interventions (intervene.c)
 * A dead expert becomes half of a busy one (protect.reseed_dead, muster expert reseed); the selection bias of a starved one is raised (protect.starved_boost).
 * None of them is ever a carrier, dormant or overwritten, nor protected or frozen. layer: among the MoE layers; loads [layers, experts]; -1: there is
 * none. Local. */
/* The expert of the layer that has been dead for longest, the lowest of several. */
int mu_reseed_find(const mu_expert_health *h, const mu_protection *p, int layer);
/* The busiest other expert of the layer. */
int mu_reseed_donor(const mu_expert_health *h, const mu_protection *p, const int64_t *loads, int layer, int not_this);
/* The starved expert of the layer with the least load, among those whose rule holds at `step` and that are starved for less than MU_BOOSTS intervals. */
enum { MU_BOOSTS = 3 };
int mu_boost_find(const mu_expert_health *h, const mu_protection *p, const int64_t *loads, int layer, int64_t step, int64_t interval);

/* ------------------------------------------------------------------ the domain gate (gate.c)
 * In training the router's logit r_ti of an expert i that is protected for domain d learns to tell d's tokens from others:
 *     L = sum_i (mean of log(1 + exp(-r_ti)) over d's tokens + mean of log(1 + exp(r_ti)) over the others) / 2,
 * means over the tokens of the global batch, so that both classes count the same however rare d is. An expert has no term in a step whose batch
 * lacks one of the classes. Generation and evaluation need no labels. */
bool mu_moe_has_gate(const mu_moe *m, const mu_context *cx);        /* in this pass, in this layer. Local */
/* mu_protection.gate_coeff * L: its part of this micro-batch; *value without the coefficient. Local. */
mu_tensor *mu_gate_loss(const mu_moe *m, mu_tape *tp, const mu_context *cx, const mu_routing *r, int64_t global_tokens, mu_tensor **value);

/* ------------------------------------------------------------------ specialisation (specialisation.c)
 * n_ED: assignments of each domain's tokens to each expert of a layer. Local. */
enum { MU_NO_LIFT = -99 };
/* I(D;I) = sum p(d,i) ln(p(d,i) / (p(d) p(i))) in nats, less its bias (D - 1)(E - 1) / (2N): N assignments, D and E those that have any;
 * and the same over the smaller of the entropies H(D), H(I), 0 where that is 0. 0 without assignments. */
typedef struct { double nats, normalised; } mu_mutual_information;
mu_mutual_information mu_mutual_information_of(const int64_t *n_ED, int experts, int domains);
/* log2 of P(i|d) / P(i): how many times, in doublings, more often d's tokens go to i than all tokens do. MU_NO_LIFT for none. */
void mu_domain_lift(const int64_t *n_ED, int experts, int domains, double *lift_ED);
/* Share of d's tokens that go to i, each to top_k experts; 0 for a domain without tokens. */
void mu_domain_shares(const int64_t *n_ED, int experts, int domains, int64_t top_k, double *share_ED);

/* ------------------------------------------------------------------ routing statistics (stats.c)
 * How many tokens each expert was assigned, with what gates, together with which other experts: of a micro-batch, of a global
 * batch, of each domain in it, of the last steps. All are integers, or sums of values that were rounded to integers (fixed point), so they do
 * not depend on ranks, ep and micro-batches in any bit.
 *
 *     mu_routing_stats_begin          for each global batch
 *         mu_routing_stats_add        for each micro-batch, after the forward pass
 *     mu_routing_stats_read           the values of the batch are on the host, complete on every rank
 *     mu_routing_stats_end            the step counts: into the windows
 * and every stats.every steps, for the statistics line
 *     mu_routing_stats_read_pairs, mu_routing_stats_restart */
enum { MU_PAIRS_EXPERTS_MAX = 512, MU_PAIRS_ALL = 64, MU_PAIRS_MOST = 50, MU_PAIRS_CELLS = 1 << 17 };
static const double MU_GATE_UNIT = 0x1p32, MU_MARGIN_UNIT = 0x1p28, MU_GRAD_UNIT = 0x1p28;    /* fixed point: of 1 */
typedef struct { int64_t entropy, top, boundary; } mu_margins;          /* sums over tokens of a layer, in MU_MARGIN_UNIT */
typedef struct { int32_t i, j; int64_t n; } mu_expert_pair;             /* n tokens chose both i and j, i < j */
/* What a statistics line describes: the steps since the last one. It begins anew when counts could leave the range of 32 bits. */
typedef struct {
    int64_t steps;
    int32_t *by_domain;         /* [layers, experts, domains]: assignments. The pairs are on the device */
} mu_stats_interval;
typedef struct {
    mu_device *dev;             /* borrowed, like batch */
    mu_comm *batch;             /* the ranks that share a global batch */
    int domains;
    int64_t n_values;
    mu_memory *memory;          /* the device's counts; see stats.c */
    int64_t *host;              /* what mu_routing_stats_read has read; the pointers below point into it */
    int64_t *counts;            /* [layers, experts]: assignments in the global batch, dropped ones included */
    int64_t *by_domain;         /* [layers, experts, domains]: the same by the domain of the sequence */
    int64_t *gate_mass;         /* [layers, experts]: sums of the gates, over moe.route_scale, in MU_GATE_UNIT */
    int64_t *dropped;           /* [layers, experts]: assignments beyond the capacity limit */
    int64_t *dropped_of;        /* [domains]: the same by domain, over all layers */
    mu_margins *margins;        /* [layers]; 0 unless details_wanted, like the next */
    int64_t *router_grads;      /* [layers, MU_ROUTER_GRADS]: sums over tokens of the norms of the gradients of the logits, times the tokens of the
                                 * global batch, in MU_GRAD_UNIT */
    int64_t *values;            /* [n_values]: the bits of the caller's F64 values, this rank's */
    bool details_wanted;        /* set by the caller before mu_routing_stats_begin: margins cost a logarithm per token and expert, gradients of
                                 * the logits as much again per loss term */
    mu_load_window window;      /* layers, experts; the last steps, and the states of experts that follow from them */
    mu_expert_health health;    /* states of experts, for mu_expert_health_update */
    mu_stats_interval interval;
    int64_t top_k;              /* of the routing added last */
    bool all_pairs;             /* up to MU_PAIRS_ALL experts, layers * experts^2 up to MU_PAIRS_CELLS */
    int64_t n_pairs;            /* what mu_routing_stats_read_pairs has read: of each layer */
    mu_expert_pair *pairs;      /* [layers, n_pairs] */
} mu_routing_stats;
/* `layers` MoE layers (0: a dense model) of `experts`. The caller can keep n_values F64 values beside the counts, so
 * that one read returns both. window: steps of the window of loads, stats.window; 0: MU_LOAD_WINDOW_DEFAULT. Local. */
mu_routing_stats *mu_routing_stats_new(mu_device *dev, mu_comm *batch, int layers, int experts, int domains, int64_t window,
                                       int64_t n_values);
void mu_routing_stats_free(mu_routing_stats *s);
int64_t mu_routing_stats_bytes(const mu_routing_stats *s);  /* of host memory, without `health` */
void mu_routing_stats_begin(mu_routing_stats *s);       /* all counts and values on the device are 0. Local */
/* Counts a micro-batch of cx->n_sequences sequences, each of cx->domains[i] (NULL: 0). Collective over `batch`. */
void mu_routing_stats_add(mu_routing_stats *s, mu_tape *tp, const mu_context *cx, const mu_routing *routings);
/* Counts a micro-batch in the counting pass, which precedes the training of the same micro-batches and finds the
 * global counts for global_aux_loss. After the last micro-batch they are summed over the ranks. Collective over
 * `batch`. */
void mu_routing_stats_count(mu_routing_stats *s, const mu_routing *routings, bool last);
/* On the device. Counts (I64, over all ranks): micro, [experts], of the last added micro-batch; counted, [experts],
 * of the global batch, from the counting pass; total, [layers, experts], of the global batch so far. values: the
 * caller's (F64). Local. */
mu_mat mu_routing_stats_micro(const mu_routing_stats *s, int layer);
mu_mat mu_routing_stats_counted(const mu_routing_stats *s, int layer);
mu_mat mu_routing_stats_total(const mu_routing_stats *s);
mu_mat mu_routing_stats_values(const mu_routing_stats *s);
mu_mat mu_routing_stats_router_grads(const mu_routing_stats *s);   /* I64 [layers, MU_ROUTER_GRADS], for mu_context */
void mu_routing_stats_read(mu_routing_stats *s);        /* waits for the device. Collective over `batch` */
void mu_routing_stats_end(mu_routing_stats *s);         /* adds the values last read to the windows. Local */
/* The pairs of the interval: with all_pairs in order of i and j, else the MU_PAIRS_MOST most frequent, the largest n first, with n = 0
 * where there are fewer; none are counted of more than MU_PAIRS_EXPERTS_MAX experts. Collective over `batch`. */
void mu_routing_stats_read_pairs(mu_routing_stats *s);
void mu_routing_stats_restart(mu_routing_stats *s);     /* the interval begins anew. Local */
/* The windows after `step` steps, as checkpoint state. assignments: sum of a layer's counts in each step. length, domains:
 * of the checkpoint; with another length of the load window the newest steps are copied, with other domains the interval
 * begins anew. Collective over `batch`. */
void mu_routing_stats_state(mu_routing_stats *s, int64_t step, int64_t assignments, int64_t length, int domains, mu_state_visitor *v);
/* Statistics that begin after `step` steps, of which they know nothing. New ones only. Local. */
void mu_routing_stats_start_at(mu_routing_stats *s, int64_t step);

/* ------------------------------------------------------------------ similarity of experts (similarity.c) */
typedef struct { double cosine, cka; } mu_similarity;   /* means over all pairs of experts */
/* How alike the outputs of all experts are for R >= 4 rows x, the same on every rank of m->group: means over pairs, and for each expert the
 * largest mean cosine with another one, and which (the lowest of several). Collective over m->group. */
void mu_expert_similarity(const mu_moe *m, mu_tape *tp, const double *x_RD, int64_t R, mu_similarity *s, double *max_E, int64_t *twin_E);

/* ------------------------------------------------------------------ what experts know (knowledge.c)
 * Measured on a probe, a few held-out sequences of each domain that never change: the cross-entropy of each domain, and the
 * criticality K of an expert for a domain: the cross-entropy when the expert may not be chosen (each token takes its next best)
 * minus the cross-entropy. 0: the domain loses nothing without the expert. One measurement:
 *
 *     mu_knowledge_earn               what training has paid for since the last one
 *     mu_knowledge_begin              the routing and the cross-entropies, nothing masked
 *     mu_knowledge_choose             the experts to mask next, in turn, as far as they are paid for
 *         mu_knowledge_set            for each of their screened domains
 *     mu_knowledge_end
 *
 * All of it is arithmetic on numbers that are the same on every rank. Local. */
/* MU_KNOWLEDGE_TOKENS; fewer, at least one, when there would be more than MU_KNOWLEDGE_IDS ids in all layers. */
enum { MU_KNOWLEDGE_TOKENS = 64, MU_KNOWLEDGE_IDS = 1 << 17, MU_LANDMARKS = 8 };
int64_t mu_knowledge_sampled(int64_t layers, int64_t domains, int64_t top_k);
typedef struct {
    int layers, experts, top_k, domains;
    char (*names)[64];              /* of the domains */
    int *choices;                   /* [domains]: experts that its tokens may choose; all but with moe.force_domains (not state) */
    bool *rare;                     /* [domains]: carriers of these are looked for; none (not state) */
    double *pass;                   /* [layers]: cost of a pass with an expert of the layer masked, over that of a whole pass; 1 (not state) */
    int64_t step, rounds;           /* of the last measurement (0: none yet); number of measurements */
    int64_t earned_step, credit;    /* until this step training has paid; tokens of the probe that may still be forwarded */
    int64_t next;                   /* whose turn it is: layer * experts + expert */
    /* [layers, experts, domains], 32 bits each: there can be a million. Nats per token, as last measured, 0: never; the largest ever, at
     * least 0; the step of the measurement, 0: never. */
    float *K, *peak;
    int32_t *at;
    double *ce, *ce_best, *ce_ref;  /* [domains], nats per token: last, lowest so far (0: none), of unigram frequencies (not state) */
    double *twin;                   /* [layers, experts]: largest cosine of its outputs with those of another expert */
    int64_t *twin_of;               /* [layers, experts]: that expert, -1: not measured */
    double *similarity, *cka;       /* [layers]: means over all pairs of experts */
    int64_t similarity_step;        /* 0: not measured */
    int64_t sampled;                /* tokens of each domain whose experts are kept for the flip rate: mu_knowledge_sampled */
    int32_t *ids;                   /* [layers, domains * sampled, top_k]: the experts of those tokens; -1: no token */
    int64_t ids_sequences;          /* sequences per domain of the probe that `ids` are of; 0: none */
    int64_t *landmark_step;         /* [MU_LANDMARKS]: landmark i is measurement number 4^i; its step, 0: none yet */
    uint16_t *landmark_ids;         /* [MU_LANDMARKS, layers, domains * sampled, top_k]: `ids` then, and 65535 for no token */
    /* of the last measurement of this process, not state */
    int32_t *n;                     /* [layers, experts, domains]: assignments */
    int64_t *tokens;                /* [domains]: tokens of the probe */
    double *saturation;             /* [layers, MU_LANDMARKS]: share of the choices of a landmark that are the same now, as sets; NAN: unknown */
    mu_margins *margins;            /* [layers]: sums over the tokens, where they were wanted */
    double *flip_rate, *vocabulary; /* [layers]: share of choices that changed since the measurement before; vocabulary
                                     * specialisation; NAN: unknown */
} mu_knowledge;
mu_knowledge *mu_knowledge_new(int layers, int experts, int top_k, const mu_option_domains *domains);
mu_knowledge *mu_knowledge_copy(const mu_knowledge *k);  /* for mu_knowledge_free */
void mu_knowledge_free(mu_knowledge *k);
int64_t mu_knowledge_bytes(const mu_knowledge *k);      /* of host memory; a checkpoint holds a little less */
/* Checkpoint state of a run with these domains; those of other names are dropped, new ones start unmeasured. */
void mu_knowledge_state(mu_knowledge *k, const mu_option_domains *domains, int64_t step, mu_state_visitor *v);
/* Training from k->earned_step to `step`, but at most `interval` steps of it, pays for `budget` of its time: a training token costs as
 * much as two and a half that are only forwarded. (A run that was trained long without measuring does not make up for it.) */
void mu_knowledge_earn(mu_knowledge *k, int64_t step, int64_t interval, int64_t tokens_per_step, double budget);
/* Is a measurement paid for? It forwards the whole probe, `tokens`, once and, with experts, at least once more. */
bool mu_knowledge_affords(const mu_knowledge *k, int64_t tokens);
/* n, tokens and nll (sums over the domain's probe, nats; NULL entries do not exist) of this step. An expert that no token of a
 * domain chose has K 0 there. */
void mu_knowledge_begin(mu_knowledge *k, int64_t step, const int64_t *n, const int64_t *tokens, const double *nll);
/* Should K be measured? Yes where the expert gets at least 1.5 times its fair share of the domain's assignments, or K was at
 * least 0.01 nats and it gets some; where it was for a rare domain, of all others, too, since a carrier is one for rare domains alone. Never when
 * no other expert could be chosen. */
bool mu_knowledge_screened(const mu_knowledge *k, int layer, int expert, int domain);
/* The next experts with screened domains, whose passes cost no more than the credit; each pass costs the tokens of those
 * domains, as far as it repeats layers (`pass`). cells: [layers * experts], layer * experts + expert. Returns their number. */
int64_t mu_knowledge_choose(mu_knowledge *k, int64_t *cells);
/* nll: sum over the domain's probe with the expert masked; base: without. */
void mu_knowledge_set(mu_knowledge *k, int layer, int expert, int domain, double nll, double base);
/* Flip rates of [layers, domains * sampled, top_k] against the ids before, which they replace; and saturation against the landmarks, of which
 * they can become one. */
void mu_knowledge_flips(mu_knowledge *k, const int32_t *ids, int64_t sequences);
/* Before mu_knowledge_begin: is the similarity of experts to be measured, too? Every tenth time. */
bool mu_knowledge_compares(const mu_knowledge *k);
/* Unused credit beyond another measurement is lost. */
void mu_knowledge_end(mu_knowledge *k, int64_t tokens);
/* Share of the screened (layer, expert, domain) that were measured at or after a step; NAN: there are none. */
double mu_knowledge_coverage(const mu_knowledge *k, int64_t since);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
