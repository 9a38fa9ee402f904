/* kernels.h - devices, and the one list of kernels that every device implements.
 *
 * A kernel gets pointers and sizes, no tensors. Only kernels, mu_device_read/write and mu_device_stage_*
 * touch the memory that a device hands out. Devices:
 *   ref      plain double-precision loops: the definition of every kernel, and the device of gradient checks
 *   cpu      fast fp32; compiled for several instruction sets, the best one is chosen when it is opened
 *            ("cpu-base", "cpu-avx2", "cpu-avx512" name one)
 *   cpu-bf16 as cpu-avx512, but matrix products round their operands to bf16 and add in fp32 (AVX512-BF16)
 *   guarded  cpu whose memory is unreadable outside kernels: proves who touches data
 *   cuda     an NVIDIA GPU, fp32; "cuda-bf16": activations and the weights that products read are bf16, with fp32
 *            masters of the weights, gradients of weights, statistics and router ("cuda:1": the second GPU)
 *   shape    hands out addresses and does nothing: a dry run counts its bytes
 * Everything is Local. */
#ifndef MUSTER_KERNELS_H
#define MUSTER_KERNELS_H
#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum { MU_DTYPE_F64, MU_DTYPE_F32, MU_DTYPE_BF16, MU_DTYPE_I32, MU_DTYPE_I64 } mu_dtype;
size_t mu_dtype_size(mu_dtype dtype);
const char *mu_dtype_name(mu_dtype dtype);

/* An operand: row-major, `ld` elements from one row to the next (ignored for vectors and scalars).
 * data == NULL means "not given" where a kernel allows it. */
typedef struct { void *data; mu_dtype dtype; int64_t ld; } mu_mat;

typedef struct mu_device mu_device;

/* B sequences of S tokens, H query heads, G key/value heads (H % G == 0), width d; tokens are rows b*S + s, at
 * position past + s. Keys and values: rows b*(past+S) + position, `past` of each sequence before its first query. */
typedef struct { int64_t B, S, H, G, d; double scale; int64_t past; } mu_attention_shape;

/* R rows in `experts` groups; group i holds rows offsets[i] .. offsets[i+1]-1 (offsets: i64, on the device). loose: the order
 * of a row's sums, and whether operands are rounded to bf16, may depend on how many rows the groups have; else a row's
 * result does not depend on other rows. */
typedef struct { int64_t R, experts, D, F; bool fresh, loose; } mu_experts_shape;

/* T tokens choose K of E experts. */
typedef enum { MU_ROUTE_FREE, MU_ROUTE_BALANCED, MU_ROUTE_SKEW } mu_route_force;
typedef struct {
    int64_t T, E, K;
    bool sigmoid, normalise;
    double scale;
    mu_route_force force;
    int64_t first_token;        /* global number of row 0, for MU_ROUTE_BALANCED */
} mu_route_shape;

typedef struct { double lr, beta1, beta2, eps, weight_decay; } mu_adamw_spec;

/* A line of the table of units (I64, in device memory) that a slab of values consists of, in ascending order; what lies
 * between two units is nobody's. Work on a slab is cut into pieces: of a unit, from its first value on, MU_SLAB_PIECE
 * values, at the end fewer. So a unit's sums do not depend on where it lies. */
enum { MU_SLAB_PIECE = 16384 };
typedef struct {
    int64_t first, count;       /* the unit's values; a count of 0: others work on it, here only its step is counted */
    int64_t piece;              /* pieces of all units before it */
    int64_t id;                 /* its place among sums of squares and step counts */
    int64_t load;               /* its place among the loads: the unit rests when it is 0 there; -1: it never rests */
    int64_t decays;             /* 1: weight decay applies */
} mu_slab_unit;
enum { MU_SLAB_UNIT_WORDS = sizeof(mu_slab_unit) / sizeof(int64_t) };
static inline int64_t mu_slab_pieces(int64_t count) { return (count + MU_SLAB_PIECE - 1) / MU_SLAB_PIECE; }

/* Exact sums of n values: I64 words [n] high, [n] low, and one that is not 0 once a summand was NaN, infinite or not
 * below 2^26, or a sum left +-2^26. A value is high * 2^-24 + low * 2^-69, -2^44 <= low < 2^44. A summand is rounded
 * to a multiple of 2^-69 (1.7e-21; a float of 1.5e-14 or more is one); sums are not rounded at all, so any order and
 * any grouping of the same summands gives the same words. Sums of several ranks are added word by word. */
static inline int64_t mu_exact_sums_words(int64_t n) { return (2 * n + 8) / 8 * 8; }    /* the next ones start on a line */

/* The kernels: K(name, parameters, arguments). A device has two floating types: `real`, of activations and of the weights
 * that products read, and `fine`, the same (F64 on ref, F32 on cpu and cuda) or a wider one (F32 beside the BF16 of
 * cuda-bf16), of masters and gradients of weights, statistics and all of the router. Operands are real unless a line
 * says otherwise, "any" is one of the two; ids, targets, index and token lists are I32; counts and offsets are I64.
 * "adds" = accumulates into the result; everything else assigns. Zero rows, zero groups are ordinary. */
#define MU_KERNELS(K) \
    /* x[0..n) = value;  y += a x;  z = x + y.  x, y, z are of any one type, also F64, of add also I64. */ \
    K(fill, (mu_device *dev, int64_t n, double value, mu_mat x), (dev, n, value, x)) \
    K(axpy, (mu_device *dev, int64_t n, double a, mu_mat x, mu_mat y), (dev, n, a, x, y)) \
    K(add,  (mu_device *dev, int64_t n, mu_mat x, mu_mat y, mu_mat z), (dev, n, x, y, z)) \
    /* y[0..n) = x, any types: rounded to that of y. */ \
    K(copy, (mu_device *dev, int64_t n, mu_mat x, mu_mat y), (dev, n, x, y)) \
    /* x any: out (one F64) = scale * sum of x;  out (one F64) = sum of x^2, accumulated in double. Adds if `add`. */ \
    K(sum,   (mu_device *dev, int64_t n, double scale, mu_mat x, bool add, mu_mat out), (dev, n, scale, x, add, out)) \
    K(sumsq, (mu_device *dev, int64_t n, mu_mat x, bool add, mu_mat out), (dev, n, x, add, out)) \
    /* C[m,n] = beta C + op(A)[m,k] op(B)[k,n], beta 0 or 1; op transposes when ta / tb. beta 0 ignores old C (NaN too).
     * C any. */ \
    K(gemm, (mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b, double beta, mu_mat c), \
            (dev, ta, tb, m, n, k, a, b, beta, c)) \
    /* The same, never in less than the fine type, operands any: the router's. Other products of "cpu-bf16" round to bf16. */ \
    K(gemm_fine, (mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b, double beta, mu_mat c), \
                 (dev, ta, tb, m, n, k, a, b, beta, c)) \
    /* y_TD[t] = w_VD[ids[t]];  dw_VD[ids[t]] += dy_TD[t]; dw fine */ \
    K(embed_fwd, (mu_device *dev, int64_t T, int64_t D, mu_mat ids, mu_mat w, mu_mat y), (dev, T, D, ids, w, y)) \
    K(embed_bwd, (mu_device *dev, int64_t T, int64_t D, int64_t V, mu_mat ids, mu_mat dy, mu_mat dw), (dev, T, D, V, ids, dy, dw)) \
    /* y = x * rstd * w, rstd[r] = 1/sqrt(mean(x[r]^2) + eps); adds dx and dw, either may be NULL. w, rstd, dw fine */ \
    K(rmsnorm_fwd, (mu_device *dev, int64_t rows, int64_t D, double eps, mu_mat x, mu_mat w, mu_mat y, mu_mat rstd), \
                   (dev, rows, D, eps, x, w, y, rstd)) \
    K(rmsnorm_bwd, (mu_device *dev, int64_t rows, int64_t D, mu_mat x, mu_mat w, mu_mat rstd, mu_mat dy, mu_mat dx, mu_mat dw), \
                   (dev, rows, D, x, w, rstd, dy, dx, dw)) \
    /* Rotary positions, half rotation: of each head's d values, (x[i], x[i+d/2]) turns by position*theta^(-2i/d).
     * cos, sin: fine [positions, d/2] tables. Row t stands at position t % S. sign -1 turns back. Adds if `add`. */ \
    K(rope, (mu_device *dev, int64_t T, int64_t S, int64_t H, int64_t d, int sign, mu_mat cos, mu_mat sin, mu_mat x, bool add, mu_mat y), \
            (dev, T, S, H, d, sign, cos, sin, x, add, y)) \
    /* Causal softmax attention, blockwise. q, y: [B*S, H*d]; k, v: [B*(past+S), G*d]; head h reads key head h/(H/G).
     * lse: fine [H, B*S], log of the softmax's denominator. A query's result is the same bits whether it comes with the
     * ones before it or alone. Backward is for past == 0; it adds dq, dk, dv (none may be NULL). */ \
    K(attention_fwd, (mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y, mu_mat lse), \
                     (dev, s, q, k, v, y, lse)) \
    K(attention_bwd, (mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y, mu_mat lse, \
                      mu_mat dy, mu_mat dq, mu_mat dk, mu_mat dv), \
                     (dev, s, q, k, v, y, lse, dy, dq, dk, dv)) \
    /* SwiGLU experts. For row r of group i: xr = x[in[r]] (in NULL: x[r]); hg = gate_i xr, hu = up_i xr;
     * a = silu(hg) * hu; y[out[r]] = down_i (weights[r] a) (out NULL: y[r]; weights [R], fine, NULL: 1). gate, up:
     * [experts, F, D], down: [experts, D, F], contiguous. Rows outside offsets[0] .. offsets[experts]-1 are not touched.
     * hg, hu [R, F] are kept for backward, or NULL.
     * Backward of y[out[r]] += down_i (weights[r] a): several rows may share an out[r]. dy is read at out[r]; hg, hu are
     * overwritten (by their gradients); act [R, F] receives weights[r] * a; xg, dyg [R, D] receive x[in[r]] and
     * dy[out[r]], each only where there is the index, or NULL; dx [R, D] (row r, not in[r]) and dweights [R] are
     * assigned, dgate, dup, ddown added to, or assigned if s->fresh; each of the five may be NULL; all but dx are fine. */ \
    K(experts_fwd, (mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets, mu_mat gate, mu_mat up, mu_mat down, \
                    mu_mat hg, mu_mat hu, mu_mat out, mu_mat weights, mu_mat y), \
                   (dev, s, x, in, offsets, gate, up, down, hg, hu, out, weights, y)) \
    K(experts_bwd, (mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets, mu_mat gate, mu_mat up, mu_mat down, \
                    mu_mat hg, mu_mat hu, mu_mat out, mu_mat weights, mu_mat dy, mu_mat act, mu_mat xg, mu_mat dyg, mu_mat dx, \
                    mu_mat dweights, mu_mat dgate, mu_mat dup, mu_mat ddown), \
                   (dev, s, x, in, offsets, gate, up, down, hg, hu, out, weights, dy, act, xg, dyg, dx, dweights, dgate, dup, ddown)) \
    /* Router; everything here, and in the balancing terms, is fine. scores[T,E] = softmax or sigmoid of logits,
     * lse[t] = log sum exp(logits[t]); ids[T,K]: the K largest
     * of scores + bias (bias [E] may be NULL), best first, ties to the lower index, NaN as minus infinity: always K
     * different valid ids; mask [E] (I32, may be NULL): an expert with 0 is as if it were not there, its score is 0 and
     * it is never chosen (at least K are left; not with a forced choice); gates[T,K] = scale * score, divided by (sum of the chosen scores + 1e-20) if normalise.
     * MU_ROUTE_BALANCED: ids[t,k] = ((first_token + t)*K + k) % E. MU_ROUTE_SKEW: expert 0 first, then the best others.
     * Backward adds into dlogits; dgates, dscores, dlse may each be NULL. Unchosen experts get gradient only
     * through the softmax's denominator (normalise: not even that), dscores and dlse. For sigmoid scores dlse's
     * softmax is recovered from score / (1 - score): in fp32 inexact for logits above about 8. */ \
    K(route_fwd, (mu_device *dev, const mu_route_shape *s, mu_mat logits, mu_mat bias, mu_mat mask, mu_mat scores, mu_mat lse, mu_mat ids, \
                  mu_mat gates), \
                 (dev, s, logits, bias, mask, scores, lse, ids, gates)) \
    K(route_bwd, (mu_device *dev, const mu_route_shape *s, mu_mat scores, mu_mat ids, mu_mat dgates, mu_mat dscores, mu_mat dlse, \
                  mu_mat dlogits), \
                 (dev, s, scores, ids, dgates, dscores, dlse, dlogits)) \
    /* counts[T/segment, E] (I64): assignments ids[T,K] of each segment of `segment` tokens to each expert.
     * segment >= 1 divides T, here and below. */ \
    K(count_experts, (mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t segment, mu_mat ids, mu_mat counts), \
                     (dev, T, E, K, segment, ids, counts)) \
    /* Of counts[S,E] (I64), those of each sequence: total[E] = their sum; by_group[E,G] adds to the count of expert i and
     * group group[s] (I32, 0 .. G-1). total, or group and by_group, may be NULL. */ \
    K(sum_counts, (mu_device *dev, int64_t S, int64_t E, int64_t G, mu_mat counts, mu_mat group, mu_mat total, mu_mat by_group), \
                  (dev, S, E, G, counts, group, total, by_group)) \
    /* coef[n,E] = factor * counts[n,E] (I64), the product in double, then rounded. */ \
    K(balance_coef, (mu_device *dev, int64_t n, int64_t E, double factor, mu_mat counts, mu_mat coef), (dev, n, E, factor, counts, coef)) \
    /* Balancing term: out (F64) = sum_t sum_i coef[t/segment, i] * p[t,i], p = scores, or scores / their sum if
     * normalise; backward adds dout * the derivative into dscores. */ \
    K(balance_fwd, (mu_device *dev, int64_t T, int64_t E, int64_t segment, bool normalise, mu_mat scores, mu_mat coef, mu_mat out), \
                   (dev, T, E, segment, normalise, scores, coef, out)) \
    K(balance_bwd, (mu_device *dev, int64_t T, int64_t E, int64_t segment, bool normalise, mu_mat scores, mu_mat coef, mu_mat dout, mu_mat dscores), \
                   (dev, T, E, segment, normalise, scores, coef, dout, dscores)) \
    /* z-loss: out (F64) = coef * sum lse^2; adds 2 coef lse dout into dlse. */ \
    K(zloss_fwd, (mu_device *dev, int64_t T, double coef, mu_mat lse, mu_mat out), (dev, T, coef, lse, out)) \
    K(zloss_bwd, (mu_device *dev, int64_t T, double coef, mu_mat lse, mu_mat dout, mu_mat dlse), (dev, T, coef, lse, dout, dlse)) \
    /* Router's noise: y[t] = x[t] * (1 + eps (2u - 1)) with u in [0, 1): the upper 24 bits of a number of the stream `rng`
     * over 2^24. Row t is position t % S of sample rng->sample + t / S; value i of position p takes word i % 4 of block
     * p * ceil(D/4) + i/4. x, y any. Adds if `add`: the gradient, which the same factors pass back. */ \
    K(jitter, (mu_device *dev, int64_t T, int64_t S, int64_t D, double eps, const mu_rng *rng, mu_mat x, bool add, mu_mat y), \
              (dev, T, S, D, eps, rng, x, add, y)) \
    /* Index plan: a stable counting sort of the T*K assignments by order[expert] (I32, a permutation of 0..E-1).
     * capacity > 0 keeps the first `capacity` rows of each expert in each segment of `segment` tokens, in order of
     * token, then slot. offsets[E+1] (I64): rows before each place; token[r]: row r's token; row_TK[t,k]: its row
     * or -1 when dropped. Rows of an expert are in order of token. token has room for T*K; what lies behind the
     * last row is not touched. `segment` means nothing when capacity is 0. */ \
    K(plan, (mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t segment, int64_t capacity, mu_mat ids, mu_mat order, \
             mu_mat offsets, mu_mat token, mu_mat row_TK), \
            (dev, T, E, K, segment, capacity, ids, order, offsets, token, row_TK)) \
    /* Rows received from P peers, peer by peer and within a peer by expert, counts[P, e] (I64) each:
     * offsets[e+1] and index[r] = received row that is row r when sorted by expert, then peer. */ \
    K(arrange, (mu_device *dev, int64_t P, int64_t e, mu_mat counts, mu_mat offsets, mu_mat index), (dev, P, e, counts, offsets, index)) \
    /* y[r] = x[index[r]], D wide */ \
    K(gather, (mu_device *dev, int64_t R, int64_t D, mu_mat index, mu_mat x, mu_mat y), (dev, R, D, index, x, y)) \
    /* y[index[r]] = x[r], D wide; index -1 is skipped, each other row is named at most once. x and y are of any one
     * type, here and below. */ \
    K(scatter, (mu_device *dev, int64_t R, int64_t D, mu_mat index, mu_mat x, mu_mat y), (dev, R, D, index, x, y)) \
    /* y[t] (+)= sum over k, in order, of rows[index[t,k]]; index -1 is skipped. Adds if `add`. */ \
    K(gather_sum, (mu_device *dev, int64_t T, int64_t K, int64_t D, mu_mat index, mu_mat rows, bool add, mu_mat y), \
                  (dev, T, K, D, index, rows, add, y)) \
    /* Cross-entropy of a block of rows: lse[r], nll[r] = lse - logits[r, target]; target < 0: row ignored (nll 0).
     * Backward turns logits into dlogits = scale * dout * (softmax - onehot), zero in ignored rows; dout: one F64. lse and
     * nll are fine. */ \
    K(xent_fwd, (mu_device *dev, int64_t rows, int64_t V, mu_mat logits, mu_mat targets, mu_mat lse, mu_mat nll), \
                (dev, rows, V, logits, targets, lse, nll)) \
    K(xent_bwd, (mu_device *dev, int64_t rows, int64_t V, double scale, mu_mat dout, mu_mat targets, mu_mat lse, mu_mat logits), \
                (dev, rows, V, scale, dout, targets, lse, logits)) \
    /* x any: exact sums (above) += x, n values;  x = the sums, rounded to double and then to x's type, NaN if marked. */ \
    K(exact_add,   (mu_device *dev, int64_t n, mu_mat x, mu_mat sums), (dev, n, x, sums)) \
    K(exact_round, (mu_device *dev, int64_t n, mu_mat sums, mu_mat x), (dev, n, sums, x)) \
    /* The same sums of a table [V, D], row ids[t] += dy_TD[t]. */ \
    K(exact_embed, (mu_device *dev, int64_t T, int64_t D, int64_t V, mu_mat ids, mu_mat dy, mu_mat sums), (dev, T, D, V, ids, dy, sums)) \
    /* Exact sums of matrices [m, n], one for each of `groups`, sums.ld words apart. Each of a group's leaves gives one
     * summand: leaf j of group i is rows r = cuts[i*leaves + j] .. cuts[i*leaves + j+1]-1 (cuts: I64 [groups*leaves + 1]),
     * its summand sum over r of a[r]^T b[r], rounded as a product is; a [R, m], b [R, n]. Other leaves do not matter to it. `fine`: as gemm_fine. */ \
    K(exact_product, (mu_device *dev, bool fine, int64_t groups, int64_t leaves, int64_t m, int64_t n, mu_mat cuts, mu_mat a, mu_mat b, mu_mat sums), \
                     (dev, fine, groups, leaves, m, n, cuts, a, b, sums)) \
    /* A slab of n_units units, n_pieces pieces altogether; units I64 [n_units, MU_SLAB_UNIT_WORDS]; g, w, m, v fine; squares,
     * losses, norm and scale F64; loads and steps I64. squares[id] = sum of g^2 over the unit,
     * accumulated in double, the same bits wherever the unit lies. */ \
    K(slab_sumsq, (mu_device *dev, int64_t n_units, int64_t n_pieces, mu_mat units, mu_mat g, mu_mat squares), \
                  (dev, n_units, n_pieces, units, g, squares)) \
    /* norm = root of the sum of n squares, added in a fixed order; scale = what the gradient is to be multiplied by so that
     * it is no longer than max_norm (0: of any length), NaN when the norm or one of the n_losses losses is not finite. */ \
    K(clip, (mu_device *dev, int64_t n, mu_mat squares, int64_t n_losses, mu_mat losses, double max_norm, mu_mat norm, mu_mat scale), \
            (dev, n, squares, n_losses, losses, max_norm, norm, scale)) \
    /* AdamW (Loshchilov & Hutter 2019) on every unit that does not rest: steps[id] += 1, then with that many steps for the bias
     * correction, g scaled and decoupled decay, the unit's w, m, v; `real`, where given, receives the new w. Nothing at
     * all when the scale is not finite. loads NULL: no unit rests. */ \
    K(slab_adamw, (mu_device *dev, int64_t n_units, int64_t n_pieces, const mu_adamw_spec *spec, mu_mat units, mu_mat loads, mu_mat scale, \
                   mu_mat steps, mu_mat w, mu_mat g, mu_mat m, mu_mat v, mu_mat real), \
                  (dev, n_units, n_pieces, spec, units, loads, scale, steps, w, g, m, v, real))

typedef struct mu_kernels {
#define K(name, params, args) void (*name) params;
    MU_KERNELS(K)
#undef K
} mu_kernels;

typedef struct mu_memory mu_memory;     /* one stretch of a device's memory, see below */

struct mu_device {
    const mu_kernels *k;
    const char *name;           /* "cpu-avx512", for people */
    mu_dtype real, fine;        /* floating-point types, see above */
    bool shape_only;
    bool on_gpu;                /* its memory is a GPU's: the host cannot read it, an MPI library may know how */
    mu_arena scratch;           /* for kernels: mark, allocate, release; host memory of the cpu kernels */
    struct mu_device *inner;    /* guarded: the device that does the work */
    mu_memory *memories;        /* all stretches, a list */
    mu_memory *room;            /* mu_device_room's */
    int unlocked;               /* guarded: depth of nested permissions */
    int64_t waits;              /* how often the host waited for this device */
    const struct mu_backend *backend;   /* kernels/internal.h */
};

/* kind: "cpu", "ref", "guarded", "shape" ("shape-f64" and "shape-bf16": with the types of ref and cuda-bf16), "cpu-base", "cpu-avx2", "cpu-avx512", "cpu-bf16", "cuda", "cuda-bf16", these also with
 * ":n" (device n modulo their number). NULL when this machine cannot. */
mu_device *mu_device_open(const char *kind);
const char *mu_cuda_missing(void);          /* why the last opening of "cuda" gave NULL: for a message */
void mu_device_close(mu_device *dev);       /* NULL allowed; fatal while memory of it is in use */

/* A stretch of device memory: address space for `reserve` bytes, of which the first `bytes` are usable
 * after mu_memory_commit (zeroed when new, never given back before mu_memory_free). */
struct mu_memory { mu_device *dev; mu_region region; mu_memory *next; };
mu_memory *mu_memory_new(mu_device *dev, size_t reserve);
void mu_memory_commit(mu_memory *m, size_t bytes);
void mu_memory_free(mu_memory *m);
int64_t mu_device_bytes(const mu_device *dev);          /* committed bytes of all stretches */
/* Device memory for those who pass data between ranks: at least `bytes`, the same stretch on every call, until the device
 * is closed. */
void *mu_device_room(mu_device *dev, size_t bytes);

/* Copies between host and device memory. shape: reads give zeros. A write does not wait for what the device has to do. */
void mu_device_read(mu_device *dev, void *host, const void *data, size_t bytes);
void mu_device_write(mu_device *dev, void *data, const void *host, size_t bytes);
void mu_device_finish(mu_device *dev);                  /* waits until everything that was started is done */
/* For dist/: a host view of device memory, valid until the end call, which makes host writes visible; it holds what is there
 * if that is `wanted`. May be nested. Not on `shape`, which has no data: a dry run communicates nothing. */
void *mu_device_stage_begin(mu_device *dev, void *data, size_t bytes, bool wanted);
void mu_device_stage_end(mu_device *dev, void *data, size_t bytes, bool written);
/* How often the host has waited for the device so far: each read and each staging, also where, as on the cpu, the work
 * was done already. A step of a fast device has few. */
int64_t mu_device_waits(const mu_device *dev);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
