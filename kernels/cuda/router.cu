/* router.cu - the router: scores, the choice of K experts and gates in one pass, and its gradient; the balancing term and
 * the z-loss. The formulas are in kernels/ref/route.c.
 *
 * A warp per token; lane l has experts l, l + 32, ... For up to 512 experts a token's row is read once and kept in registers,
 * PER values per lane; above, PER is 0 and rows are read again where needed.
 *
 * The choice needs no flags: scores, ties by index, are a strict order, and each of the K rounds takes the next expert in
 * that order; first of the required experts, then of the others. */
#include "kernels/cuda/cuda.h"

#include <math.h>

enum { TOKENS = THREADS / WARP };               /* per block */
static const float TINY = 1e-20f;

static __device__ __forceinline__ int lane_index() { return (int)threadIdx.x % WARP; }
static __device__ __forceinline__ int token_index() { return (int)(blockIdx.x * TOKENS + threadIdx.x / WARP); }

/* body(j, i) for this lane's experts i = 32 j + lane. */
template <int PER, typename F> static __device__ __forceinline__ void each_expert(int E, F body) {
    int lane = lane_index();
    if constexpr (PER == 0) {
        for (int j = 0; j * WARP + lane < E; j++) body(j, j * WARP + lane);
    } else {
#pragma unroll
        for (int j = 0; j < PER; j++)
            if (j * WARP + lane < E) body(j, j * WARP + lane);
    }
}

/* A lane's values of a row of E values, zeros if there is no row. */
template <int PER> struct share {
    float kept[PER];
    __device__ __forceinline__ share(int E, const float *row) {
#pragma unroll
        for (int j = 0; j < PER; j++) kept[j] = row && j * WARP + lane_index() < E ? row[j * WARP + lane_index()] : 0;
    }
    __device__ __forceinline__ float at(int j, int) const { return kept[j]; }
    __device__ __forceinline__ void set(int j, int, float x) { kept[j] = x; }
    /* Value i of the row, with a different i per lane; called by all lanes. */
    __device__ __forceinline__ float find(int i) const {
        float value = 0;
#pragma unroll
        for (int j = 0; j < PER; j++) {
            float there = __shfl_sync(ALL_LANES, kept[j], i % WARP);
            if (i / WARP == j) value = there;
        }
        return value;
    }
    /* Value i += x, in the lane that holds it. */
    __device__ __forceinline__ void add(int i, float x) {
#pragma unroll
        for (int j = 0; j < PER; j++)
            if (j * WARP + lane_index() == i) kept[j] += x;
    }
};

template <> struct share<0> {
    float *row;
    __device__ __forceinline__ share(int, float *row) : row(row) {}
    __device__ __forceinline__ float at(int, int i) const { return row ? row[i] : 0; }
    __device__ __forceinline__ void set(int, int i, float x) { row[i] = x; }
    __device__ __forceinline__ float find(int i) const { return row[i]; }
    __device__ __forceinline__ void add(int i, float x) {
        if (i % WARP == lane_index()) row[i] += x;
    }
};

/* mu_route_shape for kernels; `start`: the first expert of MU_ROUTE_BALANCED. */
typedef struct {
    int T, E, K, start, mask_segment;
    mu_route_force force;
    bool sigmoid, normalise;
    float scale;
} router_shape;

static router_shape router_of(const mu_route_shape *s) {
    MU_CHECK(s->K >= 1 && s->K <= s->E, "router: top_k %lld of %lld experts", (long long)s->K, (long long)s->E);
    MU_CHECK(s->T * s->K <= INT32_MAX && s->E <= INT32_MAX - WARP,
             "router: %lld tokens, %lld experts are too many", (long long)s->T,
             (long long)s->E);
    int start = (int)(s->first_token % s->E * s->K % s->E);
    return router_shape{ (int)s->T, (int)s->E, (int)s->K, start, (int)s->mask_segment, s->force, s->sigmoid, s->normalise,
                         (float)s->scale };
}

/* with_share(E, [&](auto per) { const int PER = decltype(per)::value; ... }): the code for E experts. */
template <typename F> static void with_share(int64_t E, F body) {
    if (E <= WARP) body(std::integral_constant<int, 1>());
    else if (E <= 2 * WARP) body(std::integral_constant<int, 2>());
    else if (E <= 4 * WARP) body(std::integral_constant<int, 4>());
    else if (E <= 8 * WARP) body(std::integral_constant<int, 8>());
    else if (E <= 16 * WARP) body(std::integral_constant<int, 16>());
    else body(std::integral_constant<int, 0>());
}

/* ------------------------------------------------------------------ scores and choice */
/* An integer for each float, in the same order, NaN as minus infinity; 0 is below all of them. */
static __device__ __forceinline__ unsigned order_of(float x) {
    unsigned bits = __float_as_uint(isnan(x) ? -INFINITY : x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* What the choice of a token depends on beside its scores. `without`: an expert that is excluded, or -1. */
typedef struct {
    const float *bias;
    const int *mask;
    int without;
} selection;

/* The key of the choice of each expert: from its score; 0 for an excluded one, or one whose value in the mask is not `which`. */
template <int PER> static __device__ __forceinline__ unsigned key_of(const share<PER> &scores, const selection &c, int which, int j, int i) {
    return i == c.without || (c.mask && c.mask[i] != which) ? 0 : order_of(scores.at(j, i) + (c.bias ? c.bias[i] : 0));
}

template <int PER> struct ranking {
    unsigned kept[PER];
    __device__ __forceinline__ void rank(int E, const share<PER> &scores, const selection &c, int which) {
#pragma unroll
        for (int j = 0; j < PER; j++) {
            int i = j * WARP + lane_index();
            kept[j] = i < E ? key_of(scores, c, which, j, i) : 0;
        }
    }
    __device__ __forceinline__ unsigned at(const share<PER> &, const selection &, int j, int) const { return kept[j]; }
};

template <> struct ranking<0> {
    int which;
    __device__ __forceinline__ void rank(int, const share<0> &, const selection &, int class_) { which = class_; }
    __device__ __forceinline__ unsigned at(const share<0> &scores, const selection &c, int j, int i) const {
        return key_of(scores, c, which, j, i);
    }
};

/* Experts that the token's row of the mask requires; 0 without a mask. */
template <int PER> static __device__ __forceinline__ int required_count(int E, const int *mask) {
    int n = 0;
    if (!mask) return 0;
    each_expert<PER>(E, [&](int, int i) { n += mask[i] == MU_ROUTE_REQUIRED; });
    return __reduce_add_sync(ALL_LANES, n);
}

/* The next expert after `id`, whose key is `last`: the greatest remaining key, ties to the lower index. */
template <int PER>
static __device__ __forceinline__ int next_best(int E, const ranking<PER> &r, const share<PER> &scores, const selection &c, int id,
                                                unsigned *last) {
    unsigned best = 0, limit = *last;
    int at = E;
    each_expert<PER>(E, [&](int j, int i) {
        unsigned n = r.at(scores, c, j, i);
        if ((n < limit || (n == limit && i > id)) && n > best) best = n, at = i;
    });
    *last = __reduce_max_sync(ALL_LANES, best);
    return __reduce_min_sync(ALL_LANES, best == *last ? at : E);
}

/* scores of a token, its log sum exp returned. */
template <int PER>
static __device__ __forceinline__ float score_token(int E, bool sigmoid, float *logits, share<PER> &scores, float *scores_at) {
    share<PER> x(E, logits);
    float most = -INFINITY, sum = 0;
    each_expert<PER>(E, [&](int j, int i) { most = fmaxf(most, x.at(j, i)); });
    most = warp_max(most);
    each_expert<PER>(E, [&](int j, int i) { sum += expf(x.at(j, i) - most); });
    sum = warp_sum(sum);
    float factor = 1 / sum;
    each_expert<PER>(E, [&](int j, int i) {
        float p = sigmoid ? 1 / (1 + expf(-x.at(j, i))) : expf(x.at(j, i) - most) * factor;
        scores.set(j, i, p);
        scores_at[i] = p;
    });
    __syncwarp();                               /* find() may read what another lane wrote */
    return most + logf(sum);
}

template <int PER>
static __global__ void __launch_bounds__(THREADS, 2)
    route_fwd_kernel(router_shape s, matrix<float> logits, const float *bias, matrix<const int32_t> mask, matrix<float> scores,
                     float *lse, matrix<int32_t> ids, matrix<float> gates) {
    int t = token_index();
    if (t >= s.T) return;
    int E = s.E, K = s.K, lane = lane_index(), id = -1, mine = 0;
    share<PER> p(0, scores.row(t));
    float log_sum = score_token<PER>(E, s.sigmoid, logits.row(t), p, scores.row(t)), sum = TINY;
    if (lane == 0) lse[t] = log_sum;

    bool skew = s.force == MU_ROUTE_SKEW, balanced = s.force == MU_ROUTE_BALANCED;
    selection c = { bias, mask.at ? mask.row(t / s.mask_segment) : NULL, skew ? 0 : -1 };
    int required = required_count<PER>(E, c.mask);
    ranking<PER> r;
    r.rank(E, p, c, required ? MU_ROUTE_REQUIRED : MU_ROUTE_ALLOWED);
    unsigned last = ~0u;
    unsigned start = (unsigned)s.start + (unsigned)(t * K);
    int32_t *my_ids = ids.row(t) + lane;
    for (int k0 = 0; k0 < K; k0 += WARP) {      /* the choices of 32 rounds are in 32 lanes */
        for (int k = k0; k < min(K, k0 + WARP); k++) {
            if (required && k == required) {
                r.rank(E, p, c, MU_ROUTE_ALLOWED);
                last = ~0u, id = -1;
            }
            if (balanced) id = (int)((start + (unsigned)k) % (unsigned)E);
            else if (skew && k == 0) id = 0;
            else id = next_best<PER>(E, r, p, c, id, &last);
            if (lane == k - k0) mine = id;
        }
        float score = p.find(mine);
        if (k0 + lane < K) my_ids[k0] = mine;
        sum += warp_sum(k0 + lane < K ? score : 0.0f);
    }
    float factor = s.scale / (s.normalise ? sum : 1);
    for (int k0 = 0; k0 < K; k0 += WARP) {
        if (K > WARP) mine = k0 + lane < K ? my_ids[k0] : 0;
        float score = p.find(mine);
        if (k0 + lane < K) gates.row(t)[k0 + lane] = factor * score;
    }
}

void mu_cuda_route_fwd(mu_device *dev, const mu_route_shape *s, mu_mat logits, mu_mat bias, mu_mat mask, mu_mat scores,
                       mu_mat lse, mu_mat ids, mu_mat gates) {
    with_share(s->E, [&](auto per) {
        launch(dev, blocks_for(s->T, TOKENS), THREADS, 0, route_fwd_kernel<decltype(per)::value>, router_of(s),
               typed<float>(logits), typed<float>(bias).at, typed<const int32_t>(mask), typed<float>(scores),
               typed<float>(lse).at, typed<int32_t>(ids), typed<float>(gates));
    });
}

/* ------------------------------------------------------------------ gradient */
/* exp(logit) from a sigmoid score; scores of 1 in single precision give the largest representable value. */
static __device__ __forceinline__ float odds_of(float p) { return p / fmaxf(1 - p, 2e-8f); }

/* The gates' part of the scores' gradient: rate * (dgate_k - mean) for the chosen ones; `inner` is the sum of score * that,
 * for normalised gates in closed form, because as a sum it would cancel. */
typedef struct { float rate, mean, inner; } gate_slopes;

template <int PER>
static __device__ __forceinline__ gate_slopes slopes_of(const router_shape &s, const share<PER> &p, const int32_t *ids,
                                                        const float *dgates) {
    float sum = 0, dot = 0;
    int K = s.K;
    for (int k0 = 0; k0 < K; k0 += WARP) {
        int k = k0 + lane_index();
        float score = p.find(k < K ? ids[k] : 0);
        if (k < K) sum += score, dot += dgates[k] * score;
    }
    sum = s.normalise ? warp_sum(sum) + TINY : 1;
    dot = warp_sum(dot);
    float rate = s.scale / sum;
    return gate_slopes{ rate, s.normalise ? dot / sum : 0, rate * dot * (s.normalise ? TINY / sum : 1) };
}

/* d[id_k] += the gates' part of the gradient of the chosen experts' logits, without `inner`. */
template <int PER>
static __device__ __forceinline__ void add_chosen(const router_shape &s, const gate_slopes &g, const share<PER> &p,
                                                  const int32_t *ids, const float *dgates, share<PER> &d) {
    int K = s.K;
    for (int k0 = 0; k0 < K; k0 += WARP) {
        int k = k0 + lane_index(), id = k < K ? ids[k] : 0;
        float score = p.find(id), slope = s.sigmoid ? score * (1 - score) : score;
        float value = k < K ? slope * g.rate * (dgates[k] - g.mean) : 0;
        for (int l = 0; l < min(K - k0, (int)WARP); l++)
            d.add(__shfl_sync(ALL_LANES, id, l), __shfl_sync(ALL_LANES, value, l));
    }
}

template <int PER>
static __global__ void __launch_bounds__(THREADS, 2)
    route_bwd_kernel(router_shape s, matrix<float> scores, matrix<int32_t> ids, matrix<float> dgates,
                     matrix<float> dscores, const float *dlse, matrix<float> dlogits) {
    int t = token_index();
    if (t >= s.T) return;
    int E = s.E;
    share<PER> p(E, scores.row(t)), ds(E, dscores.at ? dscores.row(t) : NULL), d(E, dlogits.row(t));
    gate_slopes g = {};
    if (dgates.at) g = slopes_of<PER>(s, p, ids.row(t), dgates.row(t));
    float inner = 0, odds = 0, z = dlse ? dlse[t] : 0;
    each_expert<PER>(E, [&](int j, int i) {
        inner += ds.at(j, i) * p.at(j, i);
        if (s.sigmoid) odds += odds_of(p.at(j, i));
    });
    inner = warp_sum(inner) + g.inner;
    if (z != 0 && s.sigmoid) z /= warp_sum(odds);
    each_expert<PER>(E, [&](int j, int i) {
        float x = p.at(j, i), value = s.sigmoid ? x * (1 - x) * ds.at(j, i) : x * (ds.at(j, i) - inner);
        if (z != 0) value += z * (s.sigmoid ? odds_of(x) : x);
        d.set(j, i, d.at(j, i) + value);
    });
    if (dgates.at) add_chosen<PER>(s, g, p, ids.row(t), dgates.row(t), d);
    if constexpr (PER > 0) each_expert<PER>(E, [&](int j, int i) { dlogits.row(t)[i] = d.at(j, i); });
}

void mu_cuda_route_bwd(mu_device *dev, const mu_route_shape *s, mu_mat scores, mu_mat ids, mu_mat dgates, mu_mat dscores,
                       mu_mat dlse, mu_mat dlogits) {
    with_share(s->E, [&](auto per) {
        launch(dev, blocks_for(s->T, TOKENS), THREADS, 0, route_bwd_kernel<decltype(per)::value>, router_of(s),
               typed<float>(scores), typed<int32_t>(ids), typed<float>(dgates), typed<float>(dscores),
               typed<float>(dlse).at, typed<float>(dlogits));
    });
}

/* ------------------------------------------------------------------ balancing term
 * The sums: a warp per token, in double; a block adds CHUNK tokens, the chunks are added in order. */
static __device__ double kept_factor(int E, const int64_t *counts, const int32_t *exempt) {
    int64_t all = 0, kept = 0, n = 0;
    for (int i = 0; i < E; i++) {
        all += counts[i];
        if (!exempt[i]) kept += counts[i], n++;
    }
    return kept ? (double)all * (double)n / ((double)kept * (double)E) : 0;
}

/* A thread per cell; with exempt experts each adds up its row: there are few rows. */
static __global__ void balance_coef_kernel(int n, int E, double factor, matrix<int64_t> counts, const int32_t *exempt, matrix<float> coef) {
    int cell = (int)thread_index(), r = cell / E, i = cell % E;
    if (r >= n) return;
    double by = exempt ? factor * kept_factor(E, counts.row(r), exempt) : factor;
    coef.row(r)[i] = exempt && exempt[i] ? -1 : (float)(by * (double)counts.row(r)[i]);
}

void mu_cuda_balance_coef(mu_device *dev, int64_t n, int64_t E, double factor, mu_mat counts, mu_mat exempt, mu_mat coef) {
    MU_CHECK(n * E <= INT32_MAX - THREADS,
             "balancing term: %lld x %lld coefficients are too many", (long long)n, (long long)E);
    launch(dev, blocks_for(n * E, THREADS), THREADS, 0, balance_coef_kernel, (int)n, (int)E, factor,
           typed<int64_t>(counts), typed<const int32_t>(exempt).at, typed<float>(coef));
}

static const double NO_SHARE = 0x1p-100;

enum { CHUNK = 8 * TOKENS };

typedef struct { int T, E, segment; bool normalise; } balance_shape;

static balance_shape balance_of(int64_t T, int64_t E, int64_t segment, bool normalise) {
    MU_CHECK(T <= INT32_MAX && E <= INT32_MAX,
             "balancing term: %lld tokens, %lld experts are too many", (long long)T, (long long)E);
    return balance_shape{ (int)T, (int)E, (int)segment, normalise };
}

/* This lane's part of sum coef p and sum p of one row, without the experts that are left out. */
typedef struct { double dot, sum; } row_sums;

static __device__ __forceinline__ row_sums sums_of(int E, const float *coef, const float *p) {
    row_sums s = { 0, 0 };
    for (int i = lane_index(); i < E; i += WARP) {
        if (coef[i] < 0) continue;
        s.dot += (double)coef[i] * (double)p[i];
        s.sum += (double)p[i];
    }
    return s;
}

static __global__ void balance_fwd_kernel(balance_shape s, matrix<float> scores, matrix<float> coef, double *part) {
    int first = (int)blockIdx.x * CHUNK, end = first + min(s.T - first, (int)CHUNK);
    double sum = 0;
    for (int t = first + (int)threadIdx.x / WARP; t < end; t += TOKENS) {
        row_sums r = sums_of(s.E, coef.row(t / s.segment), scores.row(t));
        double all = s.normalise ? warp_sum(r.sum) : 1;
        if (all >= NO_SHARE) sum += r.dot / all;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

void mu_cuda_balance_fwd(mu_device *dev, int64_t T, int64_t E, int64_t segment, bool normalise, mu_mat scores,
                         mu_mat coef, mu_mat out) {
    cuda_scratch scratch(dev);
    int64_t blocks = blocks_for(T, CHUNK);
    double *part = scratch.take<double>(blocks);
    launch(dev, blocks, THREADS, 0, balance_fwd_kernel, balance_of(T, E, segment, normalise), typed<float>(scores),
           typed<float>(coef), part);
    cuda_total(dev, blocks, 1, part, false, typed<double>(out).at);
}

static __global__ void balance_bwd_kernel(balance_shape s, matrix<float> scores, matrix<float> coef, const double *dout,
                                          matrix<float> dscores) {
    int t = token_index();
    if (t >= s.T) return;
    const float *c = coef.row(t / s.segment);
    double factor = *dout, mean = 0;
    if (s.normalise) {
        row_sums r = sums_of(s.E, c, scores.row(t));
        double sum = warp_sum(r.sum);
        mean = warp_sum(r.dot) / sum;
        if (sum < NO_SHARE) return;
        factor /= sum;
    }
    for (int i = lane_index(); i < s.E; i += WARP)
        if (c[i] >= 0) dscores.row(t)[i] += (float)factor * (c[i] - (float)mean);
}

void mu_cuda_balance_bwd(mu_device *dev, int64_t T, int64_t E, int64_t segment, bool normalise, mu_mat scores,
                         mu_mat coef, mu_mat dout, mu_mat dscores) {
    launch(dev, blocks_for(T, TOKENS), THREADS, 0, balance_bwd_kernel, balance_of(T, E, segment, normalise),
           typed<float>(scores), typed<float>(coef), typed<double>(dout).at, typed<float>(dscores));
}

/* ------------------------------------------------------------------ domain gate */
static __global__ void gate_fwd_kernel(balance_shape s, matrix<float> logits, matrix<float> coef, double *part) {
    int first = (int)blockIdx.x * CHUNK, end = first + min(s.T - first, (int)CHUNK);
    double sum = 0;
    for (int t = first + (int)threadIdx.x / WARP; t < end; t += TOKENS) {
        const float *c = coef.row(t / s.segment), *r = logits.row(t);
        for (int i = lane_index(); i < s.E; i += WARP) {
            double x = c[i] > 0 ? -(double)r[i] : (double)r[i];
            if (c[i] != 0) sum += fabs((double)c[i]) * (fmax(x, 0.0) + log1p(exp(-fabs(x))));
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

void mu_cuda_gate_fwd(mu_device *dev, int64_t T, int64_t E, int64_t segment, mu_mat logits, mu_mat coef, mu_mat out) {
    cuda_scratch scratch(dev);
    int64_t blocks = blocks_for(T, CHUNK);
    double *part = scratch.take<double>(blocks);
    launch(dev, blocks, THREADS, 0, gate_fwd_kernel, balance_of(T, E, segment, false), typed<float>(logits), typed<float>(coef), part);
    cuda_total(dev, blocks, 1, part, false, typed<double>(out).at);
}

static __global__ void gate_bwd_kernel(balance_shape s, matrix<float> logits, matrix<float> coef, const double *dout, matrix<float> dlogits) {
    int t = token_index();
    if (t >= s.T) return;
    const float *c = coef.row(t / s.segment), *r = logits.row(t);
    for (int i = lane_index(); i < s.E; i += WARP)
        if (c[i] != 0) dlogits.row(t)[i] -= (float)(*dout * (double)c[i] / (1 + exp(c[i] > 0 ? (double)r[i] : -(double)r[i])));
}

void mu_cuda_gate_bwd(mu_device *dev, int64_t T, int64_t E, int64_t segment, mu_mat logits, mu_mat coef, mu_mat dout, mu_mat dlogits) {
    launch(dev, blocks_for(T, TOKENS), THREADS, 0, gate_bwd_kernel, balance_of(T, E, segment, false), typed<float>(logits), typed<float>(coef),
           typed<double>(dout).at, typed<float>(dlogits));
}

/* ------------------------------------------------------------------ z-loss */
void mu_cuda_zloss_fwd(mu_device *dev, int64_t T, double coef, mu_mat lse, mu_mat out) {
    cuda_sumsq(dev, T, coef, lse, false, out);
}

static __global__ void zloss_bwd_kernel(int64_t T, double coef, const float *lse, const double *dout, float *dlse) {
    int64_t t = thread_index();
    if (t < T) dlse[t] += (float)(2 * coef * *dout) * lse[t];
}

void mu_cuda_zloss_bwd(mu_device *dev, int64_t T, double coef, mu_mat lse, mu_mat dout, mu_mat dlse) {
    launch(dev, blocks_for(T, THREADS), THREADS, 0, zloss_bwd_kernel, T, coef, typed<float>(lse).at,
           typed<double>(dout).at, typed<float>(dlse).at);
}

/* ------------------------------------------------------------------ route_margins */
static __device__ __forceinline__ unsigned long long fixed_point(double x, double unit) {
    return isfinite(x) ? (unsigned long long)__double2ll_rn(x * unit) : 0;
}

static __device__ __forceinline__ double logit_of(bool sigmoid, double score) {
    double s = fmin(fmax(score, 0x1p-126), 1 - 0x1p-24);
    return sigmoid ? log(s / (1 - s)) : log(s);
}

/* A thread per token: only logged steps need it. The sums over the experts are in their order, as on other devices. */
static __global__ void route_margins_kernel(int T, int E, int K, bool sigmoid, double unit, matrix<const float> scores, const float *bias,
                                            matrix<const int32_t> ids, unsigned long long *sums) {
    int t = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (t >= T) return;
    const float *s = scores.row(t);
    const int32_t *id = ids.row(t);
    double sum = 0, weighted = 0, least = INFINITY, most = -INFINITY;
    float first = 0, second = 0;
    for (int i = 0; i < E; i++) {
        double p = (double)s[i], key = p + (bias ? (double)bias[i] : 0.0);
        bool chosen = false;
        for (int k = 0; k < K; k++) chosen |= id[k] == i;
        sum += p;
        if (p > 0) weighted += p * log(p);
        if (s[i] > first) second = first, first = s[i];
        else if (s[i] > second) second = s[i];
        if (chosen) least = key < least ? key : least;
        else most = key > most ? key : most;
    }
    double top = E > 1 ? logit_of(sigmoid, (double)first) - logit_of(sigmoid, (double)second) : 0;
    atomicAdd(&sums[0], fixed_point(log(sum) - weighted / sum, unit));
    atomicAdd(&sums[1], fixed_point(top, unit));
    atomicAdd(&sums[2], fixed_point(K < E ? least - most : 0, unit));
}

void mu_cuda_route_margins(mu_device *dev, int64_t T, int64_t E, int64_t K, bool sigmoid, double unit, mu_mat scores, mu_mat bias, mu_mat ids,
                           mu_mat sums) {
    launch(dev, blocks_for(T, THREADS), THREADS, 0, route_margins_kernel, (int)T, (int)E, (int)K, sigmoid, unit, typed<const float>(scores),
           typed<const float>(bias).at, typed<const int32_t>(ids), (unsigned long long *)typed<int64_t>(sums).at);
}

/* ------------------------------------------------------------------ count_cutoffs */
static __device__ __forceinline__ bool is_chosen(int K, const int32_t *ids, int i) {
    for (int k = 0; k < K; k++)
        if (ids[k] == i) return true;
    return false;
}

/* A warp per token. */
static __global__ void count_cutoffs_kernel(int T, int E, int K, int bins, double low, double width, matrix<const float> scores, const float *bias,
                                            matrix<const int32_t> ids, matrix<int32_t> counts) {
    int t = token_index();
    if (t >= T) return;
    const float *s = scores.row(t);
    double most = -INFINITY;
    for (int i = lane_index(); i < E; i += WARP)
        if (!is_chosen(K, ids.row(t), i)) most = fmax(most, (double)s[i] + (bias ? (double)bias[i] : 0.0));
    for (int step = WARP / 2; step; step /= 2) most = fmax(most, __shfl_xor_sync(ALL_LANES, most, step));
    for (int i = lane_index(); i < E; i += WARP) {
        double bin = (most - (double)s[i] - low) / width;
        atomicAdd(&counts.row(i)[bin > 0 ? bin < (double)bins ? (int)bin : bins - 1 : 0], 1);
    }
}

void mu_cuda_count_cutoffs(mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t bins, double low, double width, mu_mat scores, mu_mat bias,
                           mu_mat ids, mu_mat counts) {
    if (K == E) return;
    launch(dev, blocks_for(T, TOKENS), THREADS, 0, count_cutoffs_kernel, (int)T, (int)E, (int)K, (int)bins, low, width, typed<const float>(scores),
           typed<const float>(bias).at, typed<const int32_t>(ids), typed<int32_t>(counts));
}

/* ------------------------------------------------------------------ sum_norms */
static __global__ void sum_norms_kernel(int T, int E, double unit, matrix<const float> x, unsigned long long *sum) {
    int t = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (t >= T) return;
    const float *row = x.row(t);
    double squares = 0;
    for (int i = 0; i < E; i++) squares += (double)row[i] * (double)row[i];
    double norm = sqrt(squares);
    if (isfinite(norm)) atomicAdd(sum, fixed_point(fmin(norm * unit, 0x1p39), 1));
}

/* A thread per token, as above: only logged steps need it. */
void mu_cuda_sum_norms(mu_device *dev, int64_t T, int64_t E, double unit, mu_mat x, mu_mat sum) {
    launch(dev, blocks_for(T, THREADS), THREADS, 0, sum_norms_kernel, (int)T, (int)E, unit, typed<const float>(x),
           (unsigned long long *)typed<int64_t>(sum).at);
}
