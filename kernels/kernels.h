/* kernels.h - devices, and the list of kernels that every device implements.
 *
 * A kernel gets pointers and sizes, no tensors. Only kernels, mu_device_read/write and mu_device_stage_*
 * access device memory. Devices:
 *   ref      plain fp64 loops: the definition of every kernel, used by gradient checks
 *   cpu      fast fp32; compiled for several instruction sets, the best one is chosen when it is opened
 *            ("cpu-base", "cpu-avx2", "cpu-avx512" name one)
 *   cpu-bf16 as cpu-avx512, but matrix products round their operands to bf16 and accumulate in fp32 (AVX512-BF16)
 *   guarded  cpu whose memory is unreadable outside kernels: catches code that accesses tensor data elsewhere
 *   cuda     an NVIDIA GPU, fp32; "cuda-bf16": activations and the weights that products read are bf16; master weights,
 *            weight gradients, statistics and router are fp32 ("cuda:1": the second GPU)
 *   shape    hands out addresses and computes nothing: a dry run counts its bytes
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

/* R rows in `experts` groups; group i holds rows offsets[i] .. offsets[i+1]-1 (offsets: i64, on the device).
 * batch_invariant: a row's result does not depend on other rows; else the order of its sums, and whether operands are
 * rounded to bf16, may depend on the number of rows. */
typedef struct { int64_t R, experts, D, F; bool fresh, batch_invariant; } mu_experts_shape;

/* T tokens choose K of E experts. A mask says for each token and expert whether it may, may not or must be chosen. */
typedef enum { MU_ROUTE_FREE, MU_ROUTE_BALANCED, MU_ROUTE_SKEW } mu_route_force;
enum { MU_ROUTE_FORBIDDEN, MU_ROUTE_ALLOWED, MU_ROUTE_REQUIRED };   /* values of a mask */
typedef struct {
    int64_t T, E, K;
    bool sigmoid, normalise;
    double scale;
    mu_route_force force;
    int64_t first_token;        /* global number of row 0, for MU_ROUTE_BALANCED */
    int64_t mask_segment;       /* consecutive tokens that share a row of the mask */
} mu_route_shape;

typedef struct { double lr, beta1, beta2, eps, weight_decay; } mu_adamw_spec;

/* A row of the table of units (I64, in device memory) of a slab of values, in ascending order; values between two units
 * are unused. A unit is processed in pieces of MU_SLAB_PIECE values from its first value on, the last one shorter, so
 * its sums do not depend on its position in the slab. */
enum { MU_SLAB_PIECE = 16384 };
typedef struct {
    int64_t first, count;       /* the unit's values; count 0: another rank updates it, here only its step is counted */
    int64_t piece;              /* pieces of all units before it */
    int64_t id;                 /* index into sums of squares and step counts */
    int64_t load;               /* index into loads: the unit is skipped when its load is 0; -1: never skipped */
    int64_t decays;             /* 1: weight decay applies */
} mu_slab_unit;
enum { MU_SLAB_UNIT_WORDS = sizeof(mu_slab_unit) / sizeof(int64_t) };
static inline int64_t mu_slab_pieces(int64_t count) { return (count + MU_SLAB_PIECE - 1) / MU_SLAB_PIECE; }

/* Exact sums of n values: I64 words [n] high, [n] low, and one that is nonzero once a summand was NaN, infinite or at
 * least 2^26, or a sum left +-2^26. A value is high * 2^-24 + low * 2^-69, -2^44 <= low < 2^44. A summand is rounded
 * to a multiple of 2^-69 (1.7e-21; a float of 1.5e-14 or more is one); sums are never rounded, so any order and
 * grouping of the same summands gives the same words. Sums of several ranks are added word by word. */
static inline int64_t mu_exact_sums_words(int64_t n) { return (2 * n + 8) / 8 * 8; }    /* whole cache lines */

/* The kernels: K(name, parameters, arguments). A device has two floating-point dtypes: `compute` for activations and the
 * weights that products read; `master` for master weights, weight gradients, statistics and the router: the same (F64 on
 * ref, F32 on cpu and cuda) or wider (F32 beside the BF16 of cuda-bf16). Operands have the compute dtype unless a line
 * says "master" or "any" (either one); ids, targets, index and token lists are I32; counts and offsets are I64.
 * "adds" = accumulates into the result; everything else assigns. Zero rows and zero groups are valid. */
#define MU_KERNELS(K) \
    /* x[0..n) = value;  y += a x;  z = x + y.  x, y, z have one dtype, also F64; add: also I64 and I32. */ \
    K(fill, (mu_device *dev, int64_t n, double value, mu_mat x), (dev, n, value, x)) \
    K(axpy, (mu_device *dev, int64_t n, double a, mu_mat x, mu_mat y), (dev, n, a, x, y)) \
    K(add,  (mu_device *dev, int64_t n, mu_mat x, mu_mat y, mu_mat z), (dev, n, x, y, z)) \
    /* Without dy (data NULL): y = x, limited to [-limit, limit]; NaN stays. With dy: y += dy where x is within the limits. */ \
    K(clamp, (mu_device *dev, int64_t n, double limit, mu_mat x, mu_mat dy, mu_mat y), (dev, n, limit, x, dy, y)) \
    /* y[0..n) += a x^2; master. */ \
    K(add_squares, (mu_device *dev, int64_t n, double a, mu_mat x, mu_mat y), (dev, n, a, x, y)) \
    /* y[0..n) = x, any dtypes: rounded to that of y. */ \
    K(copy, (mu_device *dev, int64_t n, mu_mat x, mu_mat y), (dev, n, x, y)) \
    /* x any: out (one F64) = scale * sum of x;  out (one F64) = sum of x^2, accumulated in double. Adds if `add`. */ \
    K(sum,   (mu_device *dev, int64_t n, double scale, mu_mat x, bool add, mu_mat out), (dev, n, scale, x, add, out)) \
    K(sumsq, (mu_device *dev, int64_t n, mu_mat x, bool add, mu_mat out), (dev, n, x, add, out)) \
    /* C[m,n] = beta C + op(A)[m,k] op(B)[k,n], beta 0 or 1; op transposes when ta / tb. beta 0 ignores old C (NaN too).
     * C any. */ \
    K(gemm, (mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b, double beta, mu_mat c), \
            (dev, ta, tb, m, n, k, a, b, beta, c)) \
    /* The same with at least the master dtype's precision, operands any: for the router. "cpu-bf16" rounds the others to bf16. */ \
    K(gemm_master, (mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b, double beta, mu_mat c), \
                 (dev, ta, tb, m, n, k, a, b, beta, c)) \
    /* y_TD[t] = w_VD[ids[t]];  dw_VD[ids[t]] += dy_TD[t]; dw master */ \
    K(embed_fwd, (mu_device *dev, int64_t T, int64_t D, mu_mat ids, mu_mat w, mu_mat y), (dev, T, D, ids, w, y)) \
    K(embed_bwd, (mu_device *dev, int64_t T, int64_t D, int64_t V, mu_mat ids, mu_mat dy, mu_mat dw), (dev, T, D, V, ids, dy, dw)) \
    /* y = x * rstd * w, rstd[r] = 1/sqrt(mean(x[r]^2) + eps); adds dx and dw, either may be NULL. w, rstd, dw master */ \
    K(rmsnorm_fwd, (mu_device *dev, int64_t rows, int64_t D, double eps, mu_mat x, mu_mat w, mu_mat y, mu_mat rstd), \
                   (dev, rows, D, eps, x, w, y, rstd)) \
    K(rmsnorm_bwd, (mu_device *dev, int64_t rows, int64_t D, mu_mat x, mu_mat w, mu_mat rstd, mu_mat dy, mu_mat dx, mu_mat dw), \
                   (dev, rows, D, x, w, rstd, dy, dx, dw)) \
    /* Rotary positions, half rotation: of each head's d values, (x[i], x[i+d/2]) rotates by position*theta^(-2i/d).
     * cos, sin: master [positions, d/2] tables. Row t has position t % S. sign -1 rotates back. Adds if `add`. */ \
    K(rope, (mu_device *dev, int64_t T, int64_t S, int64_t H, int64_t d, int sign, mu_mat cos, mu_mat sin, mu_mat x, bool add, mu_mat y), \
            (dev, T, S, H, d, sign, cos, sin, x, add, y)) \
    /* Causal softmax attention, blockwise. q, y: [B*S, H*d]; k, v: [B*(past+S), G*d]; head h reads key head h/(H/G).
     * lse: master [H, B*S], log of the softmax's denominator. A query's result has the same bits with or without the
     * queries before it. Backward is for past == 0; it adds dq, dk, dv (none may be NULL). */ \
    K(attention_fwd, (mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y, mu_mat lse), \
                     (dev, s, q, k, v, y, lse)) \
    K(attention_bwd, (mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y, mu_mat lse, \
                      mu_mat dy, mu_mat dq, mu_mat dk, mu_mat dv), \
                     (dev, s, q, k, v, y, lse, dy, dq, dk, dv)) \
    /* SwiGLU experts. For row r of group i: xr = x[in[r]] (in NULL: x[r]); hg = gate_i xr, hu = up_i xr;
     * a = silu(hg) * hu; y[out[r]] = down_i (weights[r] a) (out NULL: y[r]; weights [R], master, NULL: 1). gate, up:
     * [experts, F, D], down: [experts, D, F], contiguous. Rows outside offsets[0] .. offsets[experts]-1 are not touched.
     * hg, hu [R, F] are kept for backward, or NULL.
     * Backward of y[out[r]] += down_i (weights[r] a): several rows may share an out[r]. dy is read at out[r]; hg, hu are
     * overwritten (by their gradients); act [R, F] receives weights[r] * a; xg, dyg [R, D] receive x[in[r]] and
     * dy[out[r]] where that index is given, or NULL; dx [R, D] (row r, not in[r]) and dweights [R] are
     * assigned, dgate, dup, ddown added to, or assigned if s->fresh; each of the five may be NULL; all but dx are master. */ \
    K(experts_fwd, (mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets, mu_mat gate, mu_mat up, mu_mat down, \
                    mu_mat hg, mu_mat hu, mu_mat out, mu_mat weights, mu_mat y), \
                   (dev, s, x, in, offsets, gate, up, down, hg, hu, out, weights, y)) \
    K(experts_bwd, (mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets, mu_mat gate, mu_mat up, mu_mat down, \
                    mu_mat hg, mu_mat hu, mu_mat out, mu_mat weights, mu_mat dy, mu_mat act, mu_mat xg, mu_mat dyg, mu_mat dx, \
                    mu_mat dweights, mu_mat dgate, mu_mat dup, mu_mat ddown), \
                   (dev, s, x, in, offsets, gate, up, down, hg, hu, out, weights, dy, act, xg, dyg, dx, dweights, dgate, dup, ddown)) \
    /* Router; all operands here, and in the balancing terms, are master. scores[T,E] = softmax or sigmoid of logits,
     * lse[t] = log sum exp(logits[t]); ids[T,K]: the K largest of scores + bias (bias [E] may be NULL), best first, ties to
     * the lower index, NaN as minus infinity: always K different valid ids; mask [T/mask_segment, E] (I32, may be NULL; not
     * with a forced choice): MU_ROUTE_REQUIRED experts (at most K) are chosen first, best first, MU_ROUTE_FORBIDDEN ones never
     * (at least K must remain). The mask changes the choice alone, no score;
     * gates[T,K] = scale * score, divided by (sum of the chosen scores + 1e-20) if normalise.
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
    /* Of the same: what each expert of each sequence has beyond `capacity`; by_expert[E] and by_group[G] (I64) add it. */ \
    K(sum_dropped, (mu_device *dev, int64_t S, int64_t E, int64_t G, int64_t capacity, mu_mat counts, mu_mat group, mu_mat by_expert, mu_mat by_group), \
                   (dev, S, E, G, capacity, counts, group, by_expert, by_group)) \
    /* mass[E] (I64) adds gates[T,K] * unit, each rounded to an integer, ties to even, 0 if not finite; pairs (I32; may be NULL)
     * adds the tokens that chose both i and j, i < j, at i (2E - i - 1) / 2 + j - i - 1. Adding integers: the order does not matter. */ \
    K(count_routes, (mu_device *dev, int64_t T, int64_t E, int64_t K, double unit, mu_mat ids, mu_mat gates, mu_mat mass, mu_mat pairs), \
                    (dev, T, E, K, unit, ids, gates, mass, pairs)) \
    /* sums[3] (I64) adds for each token, * unit and rounded as above, values that are not finite left out: the entropy of
     * p = scores / their sum, in nats; the largest logit less the second largest (0 for one expert), from the scores, which are first limited to
     * [2^-126, 1 - 2^-24]; the least score + bias of the chosen less the largest of the others (0 where all are chosen). */ \
    K(route_margins, (mu_device *dev, int64_t T, int64_t E, int64_t K, bool sigmoid, double unit, mu_mat scores, mu_mat bias, mu_mat ids, mu_mat sums), \
                     (dev, T, E, K, sigmoid, unit, scores, bias, ids, sums)) \
    /* counts[E,bins] (I32) adds 1 for each token t and expert i at bin (cutoff - score[t,i] - low) / width, rounded down and limited to
     * 0 .. bins - 1, in double; the cutoff of t is the largest score + bias of the experts that are not in ids[t,K]. bias may be NULL. Nothing for
     * K = E. */ \
    K(count_cutoffs, (mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t bins, double low, double width, mu_mat scores, mu_mat bias, \
                      mu_mat ids, mu_mat counts), \
                     (dev, T, E, K, bins, low, width, scores, bias, ids, counts)) \
    /* sum (I64, one value) adds the Euclidean norm of each row of x [T,E] (master) * unit, at most 2^39, rounded as above; the squares are added
     * in double, in their order; rows whose norm is not finite are left out. */ \
    K(sum_norms, (mu_device *dev, int64_t T, int64_t E, double unit, mu_mat x, mu_mat sum), (dev, T, E, unit, x, sum)) \
    /* coef[n,E] = factor * counts[n,E] (I64), the product in double, then rounded. exempt (I32 [E]; may be NULL): where it is not 0
     * the coefficient is -1, and those of the others in a row are multiplied by the row's sum of counts over theirs, and by their number over
     * E (0 when they have no counts): their mean stays as if the row's counts were theirs. */ \
    K(balance_coef, (mu_device *dev, int64_t n, int64_t E, double factor, mu_mat counts, mu_mat exempt, mu_mat coef), \
                    (dev, n, E, factor, counts, exempt, coef)) \
    /* Balancing term: out (F64) = sum_t sum_i coef[t/segment, i] * p[t,i], p = scores, or scores / their sum if
     * normalise; backward adds dout * the derivative into dscores. An expert whose coefficient is negative is left out, of the sum of
     * scores as well; a normalised token whose other scores add up to less than 2^-100 adds nothing. */ \
    K(balance_fwd, (mu_device *dev, int64_t T, int64_t E, int64_t segment, bool normalise, mu_mat scores, mu_mat coef, mu_mat out), \
                   (dev, T, E, segment, normalise, scores, coef, out)) \
    K(balance_bwd, (mu_device *dev, int64_t T, int64_t E, int64_t segment, bool normalise, mu_mat scores, mu_mat coef, mu_mat dout, mu_mat dscores), \
                   (dev, T, E, segment, normalise, scores, coef, dout, dscores)) \
    /* Domain gate: out (F64) = sum_t sum_i |c| log(1 + exp(-s r)), r = logits[t,i], c = coef[t/segment, i], s = its sign (0: no summand), each in double;
     * backward adds dout * the derivative into dlogits. */ \
    K(gate_fwd, (mu_device *dev, int64_t T, int64_t E, int64_t segment, mu_mat logits, mu_mat coef, mu_mat out), \
                (dev, T, E, segment, logits, coef, out)) \
    K(gate_bwd, (mu_device *dev, int64_t T, int64_t E, int64_t segment, mu_mat logits, mu_mat coef, mu_mat dout, mu_mat dlogits), \
                (dev, T, E, segment, logits, coef, dout, dlogits)) \
    /* z-loss: out (F64) = coef * sum lse^2; adds 2 coef lse dout into dlse. */ \
    K(zloss_fwd, (mu_device *dev, int64_t T, double coef, mu_mat lse, mu_mat out), (dev, T, coef, lse, out)) \
    K(zloss_bwd, (mu_device *dev, int64_t T, double coef, mu_mat lse, mu_mat dout, mu_mat dlse), (dev, T, coef, lse, dout, dlse)) \
    /* Router jitter: y[t] = x[t] * (1 + eps (2u - 1)), u in [0, 1): the upper 24 bits of a number of the stream `rng`
     * over 2^24. Row t is position t % S of sample rng->sample + t / S; value i of position p takes word i % 4 of block
     * p * ceil(D/4) + i/4. x, y any. Adds if `add`: the backward pass, with the same factors. */ \
    K(jitter, (mu_device *dev, int64_t T, int64_t S, int64_t D, double eps, const mu_rng *rng, mu_mat x, bool add, mu_mat y), \
              (dev, T, S, D, eps, rng, x, add, y)) \
    /* Index plan: a stable counting sort of the T*K assignments by order[expert] (I32, a permutation of 0..E-1).
     * capacity > 0 keeps the first `capacity` rows of each expert in each segment of `segment` tokens, in order of
     * token, then slot. offsets[E+1] (I64): rows before each position; token[r]: row r's token; row_TK[t,k]: its row
     * or -1 when dropped. Rows of an expert are in order of token. token has room for T*K; entries after
     * the last row are not touched. `segment` is ignored when capacity is 0. */ \
    K(plan, (mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t segment, int64_t capacity, mu_mat ids, mu_mat order, \
             mu_mat offsets, mu_mat token, mu_mat row_TK), \
            (dev, T, E, K, segment, capacity, ids, order, offsets, token, row_TK)) \
    /* Sorts rows received from P peers, in order of peer, then expert, counts[P, e] (I64) each, by expert, then peer:
     * offsets[e+1] and index[r] = the received row that becomes row r. */ \
    K(arrange, (mu_device *dev, int64_t P, int64_t e, mu_mat counts, mu_mat offsets, mu_mat index), (dev, P, e, counts, offsets, index)) \
    /* y[r] = x[index[r]], D wide */ \
    K(gather, (mu_device *dev, int64_t R, int64_t D, mu_mat index, mu_mat x, mu_mat y), (dev, R, D, index, x, y)) \
    /* y[index[r]] = x[r], D wide; index -1 is skipped, every other row occurs at most once. x and y have one dtype,
     * any, here and below. */ \
    K(scatter, (mu_device *dev, int64_t R, int64_t D, mu_mat index, mu_mat x, mu_mat y), (dev, R, D, index, x, y)) \
    /* y[t] (+)= sum over k, in order, of rows[index[t,k]]; index -1 is skipped. Adds if `add`. */ \
    K(gather_sum, (mu_device *dev, int64_t T, int64_t K, int64_t D, mu_mat index, mu_mat rows, bool add, mu_mat y), \
                  (dev, T, K, D, index, rows, add, y)) \
    /* Cross-entropy of a block of rows: lse[r], nll[r] = lse - logits[r, target]; target < 0: row ignored (nll 0).
     * Backward turns logits into dlogits = scale * dout * (softmax - onehot), zero in ignored rows; dout: one F64. lse and
     * nll are master. */ \
    K(xent_fwd, (mu_device *dev, int64_t rows, int64_t V, mu_mat logits, mu_mat targets, mu_mat lse, mu_mat nll), \
                (dev, rows, V, logits, targets, lse, nll)) \
    K(xent_bwd, (mu_device *dev, int64_t rows, int64_t V, double scale, mu_mat dout, mu_mat targets, mu_mat lse, mu_mat logits), \
                (dev, rows, V, scale, dout, targets, lse, logits)) \
    /* x any: exact sums (above) += x, n values;  x = the sums, rounded to double and then to x's type, NaN if marked. */ \
    K(exact_add,   (mu_device *dev, int64_t n, mu_mat x, mu_mat sums), (dev, n, x, sums)) \
    K(exact_round, (mu_device *dev, int64_t n, mu_mat sums, mu_mat x), (dev, n, sums, x)) \
    /* The same sums of a table [V, D], row ids[t] += dy_TD[t]. */ \
    K(exact_embed, (mu_device *dev, int64_t T, int64_t D, int64_t V, mu_mat ids, mu_mat dy, mu_mat sums), (dev, T, D, V, ids, dy, sums)) \
    /* Exact sums of matrices [m, n], one for each of `groups`, sums.ld words apart. Each of a group's `units`
     * reduction units gives one summand: unit j of group i is rows r = bounds[i*units + j] .. bounds[i*units + j+1]-1 (bounds:
     * I64 [groups*units + 1]), its summand sum over r of a[r]^T b[r], rounded as a product is, whatever the other units hold;
     * a [R, m], b [R, n]. `master`: as gemm_master. */ \
    K(exact_product, (mu_device *dev, bool master, int64_t groups, int64_t units, int64_t m, int64_t n, mu_mat bounds, mu_mat a, mu_mat b, mu_mat sums), \
                     (dev, master, groups, units, m, n, bounds, a, b, sums)) \
    /* A slab of n_units units, n_pieces pieces altogether; units I64 [n_units, MU_SLAB_UNIT_WORDS]; g, w, m, v master; squares,
     * losses, norm and scale F64; loads and steps I64. squares[id] = sum of g^2 over the unit,
     * accumulated in double, the same bits wherever the unit lies. */ \
    K(slab_sumsq, (mu_device *dev, int64_t n_units, int64_t n_pieces, mu_mat units, mu_mat g, mu_mat squares), \
                  (dev, n_units, n_pieces, units, g, squares)) \
    /* norm = root of the sum of n squares, added in a fixed order; scale = the factor for the gradient
     * that limits its norm to max_norm (0: no limit), NaN when the norm or one of the n_losses losses is not finite. */ \
    K(clip, (mu_device *dev, int64_t n, mu_mat squares, int64_t n_losses, mu_mat losses, double max_norm, mu_mat norm, mu_mat scale), \
            (dev, n, squares, n_losses, losses, max_norm, norm, scale)) \
    /* AdamW (Loshchilov & Hutter 2019) on every unit that is not skipped: steps[id] += 1, then its w, m, v with that step count in
     * the bias correction, g scaled, decoupled decay; `compute`, where given, receives the new w. Changes nothing when the scale
     * is not finite. loads NULL: no unit is skipped. */ \
    K(slab_adamw, (mu_device *dev, int64_t n_units, int64_t n_pieces, const mu_adamw_spec *spec, mu_mat units, mu_mat loads, mu_mat scale, \
                   mu_mat steps, mu_mat w, mu_mat g, mu_mat m, mu_mat v, mu_mat compute), \
                  (dev, n_units, n_pieces, spec, units, loads, scale, steps, w, g, m, v, compute)) \
    /* The pull of an anchor, f (w - at), on every unit that slab_adamw would not skip; f, w, at, g master. squares[id] = sum of its squares over the
     * unit, accumulated in double, 0 for a skipped unit;  g += strength * limit / scale * pull, so that scale * g gains strength * limit *
     * pull (limit, scale: one F64 each; nothing changes when one is not finite). */ \
    K(slab_pull_sumsq, (mu_device *dev, int64_t n_units, int64_t n_pieces, mu_mat units, mu_mat loads, mu_mat f, mu_mat w, mu_mat at, mu_mat squares), \
                       (dev, n_units, n_pieces, units, loads, f, w, at, squares)) \
    K(slab_pull, (mu_device *dev, int64_t n_units, int64_t n_pieces, double strength, mu_mat units, mu_mat loads, mu_mat limit, mu_mat scale, \
                  mu_mat f, mu_mat w, mu_mat at, mu_mat g), \
                 (dev, n_units, n_pieces, strength, units, loads, limit, scale, f, w, at, g))

typedef struct mu_kernels {
#define K(name, params, args) void (*name) params;
    MU_KERNELS(K)
#undef K
} mu_kernels;

typedef struct mu_memory mu_memory;     /* a range of device memory, see below */

struct mu_device {
    const mu_kernels *k;
    const char *name;           /* "cpu-avx512", for messages */
    mu_dtype compute, master;   /* floating-point dtypes, see above */
    bool shape_only;
    bool on_gpu;                /* its memory is a GPU's: the host cannot read it, a CUDA-aware MPI can */
    mu_arena scratch;           /* for kernels: mark, allocate, release; host memory of the cpu kernels */
    struct mu_device *inner;    /* guarded: the device that does the work */
    mu_memory *memories;        /* list of all ranges */
    mu_memory *room;            /* of mu_device_room */
    int unlocked;               /* guarded: depth of nested permissions */
    int64_t waits;              /* how often the host waited for this device */
    const struct mu_backend *backend;   /* kernels/internal.h */
};

/* kind: "cpu", "ref", "guarded", "shape" ("shape-f64" and "shape-bf16": with the dtypes of ref and cuda-bf16),
 * "cpu-base", "cpu-avx2", "cpu-avx512", "cpu-bf16", "cuda", "cuda-bf16", the last two also with ":n" (GPU n modulo their
 * number). The caller closes it. NULL when this machine does not support it. */
mu_device *mu_device_open(const char *kind);
const char *mu_cuda_missing(void);          /* why opening "cuda" last returned NULL, for messages */
bool mu_cuda_unsupported(void);             /* was it because the GPU or its driver is too old? */
void mu_device_close(mu_device *dev);       /* NULL allowed; fatal while memory of it is in use */

/* A range of device memory: address space for `reserve` bytes, of which the first `bytes` are usable after
 * mu_memory_commit (zeroed when new; returned to the system only by mu_memory_free). */
struct mu_memory { mu_device *dev; mu_region region; mu_memory *next; };
mu_memory *mu_memory_new(mu_device *dev, size_t reserve);
void mu_memory_commit(mu_memory *m, size_t bytes);
void mu_memory_free(mu_memory *m);
int64_t mu_device_bytes(const mu_device *dev);          /* committed bytes of all ranges */
/* Device memory for communication buffers: at least `bytes` (at most 1 GiB), the same range on every call, owned by the device. */
void *mu_device_room(mu_device *dev, size_t bytes);

/* Copies between host and device memory. shape: reads give zeros. A write does not wait for pending work of the device. */
void mu_device_read(mu_device *dev, void *host, const void *data, size_t bytes);
void mu_device_write(mu_device *dev, void *data, const void *host, size_t bytes);
void mu_device_finish(mu_device *dev);                  /* waits for all pending work */
/* For dist/: a host view of device memory, valid until mu_device_stage_end, which copies host writes back if `written`; it
 * holds the device's data only if `wanted`. May be nested. Not on `shape`, which has no data: a dry run does not communicate. */
void *mu_device_stage_begin(mu_device *dev, void *data, size_t bytes, bool wanted);
void mu_device_stage_end(mu_device *dev, void *data, size_t bytes, bool written);
/* Number of times the host has waited for the device: each read and each staging, also on the cpu, where work is
 * done at once. */
int64_t mu_device_waits(const mu_device *dev);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
