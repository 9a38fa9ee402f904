/* autograd.h - tensors, a linear tape, parameters, and the ops every model needs.
 *
 * An op is one file in ops/: shape rule, forward, backward and a `static const mu_op`. Forward runs when
 * the op is recorded; ops are recorded in order of dependence, so backward is one loop from the
 * end. Backward *adds* to the gradients of its inputs, skips inputs that need none and accepts outputs
 * without a gradient. Everything in this header is Local: only ops of dist/ communicate.
 *
 * Lifetimes: parameters (slabs, one per group) | activations and gradients (the tape's memory, freed by
 * mu_tape_reset at the latest) | scratch (a tensor allocated and released inside one op) | borrowed batches.
 * Shapes in comments: T tokens, D width, V vocabulary, H heads, d head width. */
#ifndef MUSTER_AUTOGRAD_H
#define MUSTER_AUTOGRAD_H
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct mu_tape mu_tape;
typedef struct mu_tensor mu_tensor;
typedef struct mu_node mu_node;
typedef struct mu_param mu_param;

/* ------------------------------------------------------------------ tensors (tensor.c) */
struct mu_tensor {
    mu_device *dev;
    mu_dtype dtype;
    int n_dims;
    int64_t shape[4];
    void *data, *grad;      /* device memory; grad is NULL until something is added to it */
    void *master;           /* a parameter's values in the device's master dtype; equals `data` where that is the compute dtype */
    bool needs_grad;
    bool grad_new;          /* a parameter's `grad` is not initialised yet: the first contribution assigns */
    bool released;          /* no further op will read it ... */
    int readers;            /* ... except the backward of this many recorded ops */
    int uses;               /* of a parameter, during mu_backward_with: ops whose backward has not run yet */
    void *sums;             /* a parameter's exact sums (kernels.h), which accumulate its gradient; else NULL */
    int64_t sums_ld;        /* words per unit */
    bool bounded;           /* integers written by the host: all are in [low, high] */
    int64_t low, high;
    bool view;                      /* of another tensor's memory (mu_tensor_rows) */
    int segment;                    /* the segment that can recompute the data; 0: none */
    bool wanted;                    /* the current recomputation must compute the data */
};

/* A new tensor on the tape, not cleared. */
mu_tensor *mu_tensor_new(mu_tape *tp, mu_dtype dtype, int n_dims, const int64_t *shape);
mu_tensor *mu_tensor_2d(mu_tape *tp, int64_t rows, int64_t columns);            /* compute dtype */
mu_tensor *mu_tensor_2d_master(mu_tape *tp, int64_t rows, int64_t columns);     /* master dtype */
mu_tensor *mu_tensor_like(mu_tape *tp, const mu_tensor *x);
mu_tensor *mu_tensor_scalar(mu_tape *tp);                               /* one F64 */
mu_tensor *mu_tensor_loss(mu_tape *tp, int64_t rows);                   /* F64 [reduction units of `rows` rows] */
mu_tensor *mu_tensor_ints(mu_tape *tp, mu_dtype dtype, int64_t n, const void *host_or_null);
/* Fatal, beginning with `what` ("linear: x"), unless t is not NULL, has n_dims dimensions (0: any number) and one of
 * the dtypes (bits 1 << dtype). */
enum { MU_FLOATS = 1 << MU_DTYPE_F64 | 1 << MU_DTYPE_F32 | 1 << MU_DTYPE_BF16 };
void mu_tensor_check(const mu_tensor *t, const char *what, int n_dims, unsigned types);
/* Fatal unless ids written by the host are in [low, high]. (Ids from kernels are valid by construction.) */
void mu_ids_check(const mu_tensor *ids, const char *what, int64_t low, int64_t high);
int64_t mu_count(const mu_tensor *t);                   /* number of elements */
mu_mat  mu_data(const mu_tensor *t);                    /* operand; ld = the last dimension. t NULL: data NULL */
mu_mat  mu_master(const mu_tensor *t);                  /* the same; of a parameter, its master values */
mu_mat  mu_grad(mu_tape *tp, mu_tensor *t);             /* gradient to add to: allocated and zeroed at first use */
double  mu_grad_beta(mu_tape *tp, mu_tensor *t, mu_mat *grad);  /* for kernels that can assign: 0: assign all of *grad; 1: add to it */
mu_mat  mu_grad_of(const mu_tensor *t);                 /* the gradient, data NULL when there is none */
mu_mat  mu_sums(const mu_tensor *t);                    /* a parameter's exact sums, data NULL when there are none */
mu_mat  mu_mat_rows(mu_mat m, int64_t first);           /* the operand, starting at row `first` */
mu_mat  mu_mat_values(mu_mat m, int64_t first);         /* the operand as a vector (ld 1), starting at value `first` */
void mu_tensor_read(const mu_tensor *t, void *host);    /* raw copy of all elements */
void mu_tensor_write(mu_tensor *t, const void *host);
void mu_tensor_get(const mu_tensor *t, double *host);   /* floating tensors of any type, as double */
void mu_tensor_set(mu_tensor *t, const double *host);
double mu_tensor_scalar_get(const mu_tensor *t);        /* the one F64 of a loss */
/* Rows [first, first+n) of a matrix as a view of x's memory, without gradient. Valid as long as x; must not be
 * released when x is an activation. */
mu_tensor *mu_tensor_rows(mu_tape *tp, const mu_tensor *x, int64_t first, int64_t n);
/* mu_tensor_get and mu_tensor_set for `n` floating-point values at `data`, in device memory. */
void mu_reals_get(mu_device *dev, mu_dtype dtype, const void *data, int64_t n, double *host);
void mu_reals_set(mu_device *dev, mu_dtype dtype, void *data, int64_t n, const double *host);

/* ------------------------------------------------------------------ the tape (tape.c) */
enum { MU_NODE_INPUTS = 9, MU_NODE_OUTPUTS = 6 };
typedef struct {
    const char *name;
    void (*forward)(mu_tape *tp, mu_node *n);
    void (*backward)(mu_tape *tp, mu_node *n);  /* NULL: no gradient */
    unsigned keeps_in, keeps_out;   /* MU_BIT(i): backward reads the data of in[i] / out[i] */
    unsigned saved;                 /* MU_BIT(i): out[i] is for backward only, not for callers */
    bool once;                      /* chooses experts: recomputation keeps the outputs, never repeats forward */
} mu_op;
#define MU_BIT(i) (1u << (i))
struct mu_node {
    const mu_op *op;
    mu_tensor *in[MU_NODE_INPUTS], *out[MU_NODE_OUTPUTS];
    void *extra;                    /* the op's own data, in the tape's host arena */
    const char *part;               /* this, the layer (-1: none) and the segment are set by mu_apply */
    int layer;
    int segment;                    /* the segment it belongs to; 0: none */
};

mu_tape *mu_tape_new(mu_device *dev);
void mu_tape_free(mu_tape *tp);
void mu_tape_reset(mu_tape *tp);                        /* drops nodes and activations; keeps the memory for the next step */
void mu_tape_record(mu_tape *tp, bool on);              /* off: forward only, nothing is kept */
bool mu_tape_recording(const mu_tape *tp);
mu_device *mu_tape_device(const mu_tape *tp);
/* Runs the op and, when an input needs a gradient, records it. Returns out[0]. */
mu_tensor *mu_apply(mu_tape *tp, mu_node node);
void *mu_tape_alloc(mu_tape *tp, size_t bytes);         /* host memory until reset, zeroed */
/* The caller (an op or a layer) does not use `t` any more: its memory is freed once no recorded backward needs it.
 * Gradients stay. NULL is allowed. */
void mu_release(mu_tape *tp, mu_tensor *t);
/* Activation recomputation: less memory for more time. The ops recorded between these two calls (a layer) are a segment. At
 * its end the activations that it made and that the caller has released (mu_release) are dropped; mu_backward recomputes them
 * just before it reaches the segment, by running the forward of those ops that backward needs: the same bits, and the same
 * choices of ops with `once`. Inputs of the segment, unreleased activations and outputs of ops without gradient (a dispatch
 * plan) are kept. Segments do not nest. Without recording both calls do nothing. Local, but a segment that communicates does so
 * again in mu_backward: all ranks of its communicators must have the same segments. */
void mu_tape_recompute_begin(mu_tape *tp);
void mu_tape_recompute_end(mu_tape *tp);
/* A reduction unit is a group of consecutive rows of a batch, `rows` of them (a sequence); 0, the default, is the
 * whole batch. Losses have one value per unit. With exact sums (mu_params_exact) each unit's share of a weight's
 * gradient is computed by itself and then added exactly: the same bits whatever other units the batch holds. */
void mu_tape_set_reduction_unit(mu_tape *tp, int64_t rows);
int64_t mu_tape_reduction_units(const mu_tape *tp, int64_t rows);   /* number of units in `rows` rows */
mu_tensor *mu_tape_unit_bounds(mu_tape *tp, int64_t rows);        /* I64 [units + 1]: the first row of each, then `rows` */
/* Gradients of the sum of `loss` (F64, one value per reduction unit) into every tensor it depends on. Frees each
 * activation and gradient once its producer's backward is done. */
void mu_backward(mu_tape *tp, mu_tensor *loss);
/* The same, with events, for work that overlaps with backward. `complete`: the gradient of p is complete (on a GPU the
 * last addition has been launched, not finished). `op_done`: one more op's backward has run. Neither may use the tape. */
typedef struct {
    void (*complete)(void *arg, mu_param *p);
    void (*op_done)(void *arg);
    void *arg;
} mu_backward_events;
void mu_backward_with(mu_tape *tp, mu_tensor *loss, const mu_backward_events *events);
int64_t mu_tape_peak(const mu_tape *tp);                /* bytes: high-water mark of device memory */
/* Profile: ops recorded from here on belong to `part` ("attention", "router", ...; a static string, NULL for none).
 * Forward counts the time until the next call, backward that of the part's ops. */
void mu_tape_part(mu_tape *tp, const char *part);
void mu_tape_layer(mu_tape *tp, int layer);             /* ops recorded from here on belong to this layer; -1: none */
typedef struct { const char *name; double forward, backward; } mu_part_time;
int  mu_tape_profile(const mu_tape *tp, const mu_part_time **times);   /* since mu_tape_profile_reset; returns the number of parts */
void mu_tape_profile_reset(mu_tape *tp);

/* KV cache (cache.c): keys and values of the tokens so far of one sequence, computed once per token in generation. */
typedef struct {
    int64_t length, capacity;               /* in tokens; length = 0 empties it */
    int n_layers;
    mu_memory *memory;
    mu_tensor *k, *v;                       /* [n_layers], each [capacity, width] */
} mu_kv_cache;
mu_kv_cache *mu_kv_cache_new(mu_device *dev, int n_layers, int64_t capacity, int64_t width);
void mu_kv_cache_free(mu_kv_cache *c);
/* Appends *k, *v ([n, width], the next n tokens) to those of one layer, releases them and replaces them by all rows so
 * far. The caller adds n to c->length once all layers are done. Not while recording. */
void mu_kv_cache_append(mu_kv_cache *c, mu_tape *tp, int layer, mu_tensor **k, mu_tensor **v);

/* The context of a forward pass. Arrays are borrowed and may be NULL where nothing reads them. */
typedef enum { MU_MODE_TRAIN, MU_MODE_EVAL, MU_MODE_GENERATE } mu_mode;
/* MU_ROUTE_FORBIDDEN, _ALLOWED or _REQUIRED for each expert: for each MoE layer, in their order, [rows, E]. The tokens are divided
 * evenly among the rows: 1: all tokens share one, n_sequences: each sequence has its own, T: each token has. */
typedef struct {
    const int32_t *values;                  /* NULL: every expert may be chosen */
    int64_t rows;
} mu_expert_mask;
typedef struct {
    mu_mode mode;
    int64_t step, micro_batch;
    int64_t n_sequences, seq_len;           /* of this rank's micro-batch: T = n_sequences * seq_len */
    const int64_t *global_samples;          /* [n_sequences], ascending */
    const int32_t *domains;                 /* [n_sequences] */
    const int64_t *domain_sequences;        /* [domains]: sequences of each domain in the whole global batch; NULL: no domain gate (moe.h) */
    mu_expert_mask expert_mask;
    uint64_t seed;
    mu_kv_cache *cache;                     /* generation: the one sequence continues these tokens; or NULL */
    void (*moe_input)(void *arg, int layer, const mu_tensor *x_TD);    /* gets the input of each MoE layer; NULL: not wanted */
    void *moe_input_arg;
    mu_mat router_grads;                    /* I64 [MoE layers, loss terms] on the device: backward adds the norms of each term's gradient
                                             * of the routers' logits (moe.h), times router_grad_unit; data NULL: not wanted */
    double router_grad_unit;
} mu_context;

/* ------------------------------------------------------------------ parameters (params.c)
 * All are declared first, then mu_params_alloc allocates one slab of values and one of gradients per group.
 * A parameter consists of units: one per expert when experts are stacked, else one. Checkpoints store units, by their
 * names, so they do not depend on the stacking. */
struct mu_comm;
typedef struct {
    const char *name;                       /* "shared", "expert" */
    const struct mu_comm *reduce;           /* gradients are summed over it; NULL: no reduction */
    int64_t count;                          /* values on this rank */
    int64_t version;                        /* raised when a unit is frozen or its factor set: tables are out of date */
    mu_memory *values, *grads;              /* master values and gradients, both in the master dtype */
    mu_memory *compute;                     /* copies in the compute dtype; NULL where it is the master dtype */
    mu_memory *sums;                        /* exact sums of the gradients, by unit; or NULL */
    int64_t sums_words;
} mu_group;

typedef struct {
    mu_group *group;
    const char *name;                       /* "/norm/weight"; for experts a format with one %d, the expert's id */
    int n_dims;
    int64_t shape[2];                       /* of one unit */
    double std;                             /* of initial normal values; negative: ones; 0: zeros */
    bool decay;
    int layer;                              /* -1: none */
    int n_experts;                          /* 0: not stacked; else E, of which this rank holds those in local[] */
    const int *local;
    int n_local;
    int64_t first_load;                     /* for experts: index of expert 0's load among all loads */
} mu_param_desc;

typedef struct {
    char name[112];
    mu_param *param;
    int64_t offset, count;                  /* in the parameter's values */
    int expert;                             /* id, or -1 */
    int64_t global_index;                   /* the same on every rank and for any ep: the order of sums over units */
    int64_t load;                           /* an expert's index among the loads (tokens per expert); else -1 */
    bool frozen;                            /* set by mu_unit_freeze */
    double lr_factor;                       /* 1, or set by mu_unit_set_lr_factor */
} mu_unit;
struct mu_param {
    mu_tensor tensor;                       /* [shape] or [n_local, shape]; grad points into the slab */
    mu_param_desc desc;
    int index;                              /* in mu_params.params */
    int64_t slab_offset;                    /* elements from the start of the group's slab */
    int n_units;
    mu_unit *units;
};
typedef struct {
    mu_device *dev;
    int n_groups, n_params;
    mu_group *groups[4];
    mu_param **params;
    int64_t n_global_units;
    int64_t n_loads;                        /* number of loads: E per MoE layer */
} mu_params;

mu_params *mu_params_new(mu_device *dev);
void mu_params_free(mu_params *ps);
mu_group *mu_params_group(mu_params *ps, const char *name, const struct mu_comm *reduce);
mu_param *mu_params_add(mu_params *ps, const mu_param_desc *desc);
void mu_params_alloc(mu_params *ps);
/* Initial values: each unit's stream is keyed by seed and name, so any layout gives the same model. */
void mu_params_init(mu_params *ps, uint64_t seed);
/* From here on ops add gradients to exact sums (16 more bytes per value); mu_grads_reduce sums those over the ranks
 * and rounds them to the gradients: the same bits for any order and grouping of the reduction units. After mu_params_alloc. */
void mu_params_exact(mu_params *ps);
/* Sets all gradients and exact sums to zero. Gradient memory is not cleared here: the first contribution assigns, or
 * mu_params_finish_grads and mu_unit_grad clear it. */
void mu_params_zero_grad(mu_params *ps);
void mu_params_finish_grads(mu_params *ps);                         /* zeroes those without a contribution */
void mu_param_finish_grad(mu_param *p);                             /* the same for one parameter */
void mu_params_round_grads(mu_params *ps);                          /* gradients = the exact sums, rounded, where there are any */
mu_unit *mu_params_find(mu_params *ps, const char *name);           /* NULL when not on this rank */
void *mu_unit_data(const mu_unit *u);                               /* device pointers, master dtype */
void *mu_unit_grad(const mu_unit *u);
/* The master values of this rank's units, for a checkpoint; call mu_params_refresh after loading. */
void mu_params_state(mu_params *ps, mu_state_visitor *v);
mu_state mu_unit_state(const mu_unit *u, const char *prefix);       /* an array of the unit's shape, PREFIX/NAME, finite */
/* Take effect at the next optimizer step. A frozen unit keeps its values, optimizer state and step count bit for bit, and
 * its gradient does not count in the norm. The factor, at least 0, multiplies this unit's learning rate. Every rank that
 * holds the unit must set the same. */
void mu_unit_freeze(mu_unit *u, bool frozen);
void mu_unit_set_lr_factor(mu_unit *u, double factor);
/* Refreshes the compute copies from the master values, after those were written. */
void mu_params_refresh(mu_params *ps);
/* Every unit in order of declaration: for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) */
mu_unit *mu_unit_next(const mu_params *ps, const mu_unit *u);

/* ------------------------------------------------------------------ ops (ops/<op>.c)
 * x is an activation, w a parameter's tensor. */
mu_tensor *mu_add(mu_tape *tp, mu_tensor *x, mu_tensor *y);                     /* x + y, same shape and dtype */
mu_tensor *mu_scale(mu_tape *tp, mu_tensor *x, double factor);                  /* factor * x */
mu_tensor *mu_clamp(mu_tape *tp, mu_tensor *x, double limit);                   /* x, limited to [-limit, limit] */
mu_tensor *mu_add_bias(mu_tape *tp, mu_tensor *x_TO, mu_tensor *b_O);           /* x[t] + b */
mu_tensor *mu_linear(mu_tape *tp, mu_tensor *x_TI, mu_tensor *w_OI);            /* x w^T: [T, O] */
mu_tensor *mu_linear_master(mu_tape *tp, mu_tensor *x_TI, mu_tensor *w_OI);     /* the same in the master dtype */
mu_tensor *mu_embedding(mu_tape *tp, mu_tensor *ids_T, mu_tensor *w_VD);        /* w[ids]: [T, D] */
mu_tensor *mu_rmsnorm(mu_tape *tp, mu_tensor *x, mu_tensor *w_D, double eps);   /* over groups of D values: the width, or each head */
/* Rotary position embedding of H heads; cos, sin: [max_seq_len, d/2] tables; row t has position t % seq_len. */
mu_tensor *mu_rope(mu_tape *tp, mu_tensor *x, mu_tensor *cos, mu_tensor *sin, int64_t heads, int64_t seq_len);
/* Causal grouped-query attention inside each sequence of seq_len; scores are q k^T * scale (0: 1/sqrt(d)). q: [T, H*d];
 * k, v: [T, G*d], or with more rows per sequence: those come before its first query (not while recording). */
mu_tensor *mu_attention(mu_tape *tp, mu_tensor *q, mu_tensor *k, mu_tensor *v, int64_t heads, int64_t kv_heads,
                        int64_t seq_len, double scale);
/* The head: scale * sum of cross-entropies of softmax(x w^T) against targets, one F64 per reduction unit; logits are computed
 * in chunks. *nll_T, if not NULL, receives each row's cross-entropy (no gradient). Target -1: ignored. */
mu_tensor *mu_head_loss(mu_tape *tp, mu_tensor *x_TD, mu_tensor *w_VD, mu_tensor *targets_T, double scale,
                        mu_tensor **nll_T);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
