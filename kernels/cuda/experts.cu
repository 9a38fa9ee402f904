/* experts.cu - SwiGLU experts on rows that are grouped by expert (the mathematics: ref/experts.c).
 *
 * Forward and backward are grouped products (grouped.cuh) with epilogues:
 *     UP        hg, hu = x[in] gate^T, x[in] up^T     hg, hu (if kept) and a = silu(hg) hu
 *     DOWN      a down^T                              rows of y
 *     BACK      b = dy[out] down                      dhg, dhu over hg, hu; w a; <b, a> of 64 columns each
 *     BACK      dhg gate + dhu up                     dx
 *     GRADIENT  dhg^T x[in], dhu^T x[in], dy[out]^T (w a)
 * Only x, hg and hu are kept between the two; the numbers of rows per expert are only on the device. */
#include "kernels/cuda/grouped_mma.cuh"
#include "kernels/cuda/grouped_plain.cuh"

#include <initializer_list>

static __device__ __forceinline__ float sigmoid(float z) { return __fdividef(1, 1 + __expf(-z)); }

/* ------------------------------------------------------------------ epilogues */
/* hg and hu, each unless it is NULL, and a */
template <typename T> struct keep_swiglu {
    static const bool SUMS = false;
    matrix<T> hg, hu, act;
    const float *weights;               /* NULL: 1 */
    template <int n> __device__ __forceinline__ float operator()(int64_t r, int64_t f, const float (&h)[2][n]) const {
        float a[n], weight = weights ? weights[r] : 1;
#pragma unroll
        for (int i = 0; i < n; i++) a[i] = weight * (h[0][i] * sigmoid(h[0][i]) * h[1][i]);
        if (hg.at) store_values<T, n>(hg.row(r) + f, h[0]);
        if (hu.at) store_values<T, n>(hu.row(r) + f, h[1]);
        store_values<T, n>(act.row(r) + f, a);
        return 0;
    }
};

/* writes row r, or index[r] if there is an index */
template <typename T> struct put_rows {
    static const bool SUMS = false;
    matrix<T> y;
    const int32_t *index;
    template <int n> __device__ __forceinline__ float operator()(int64_t r, int64_t d, const float (&v)[1][n]) const {
        store_values<T, n>(y.row(index ? index[r] : r) + d, v[0]);
        return 0;
    }
};

/* From b = down^T dy: hg and hu become their gradients, act the weighted a; <b, a>, in parts, is the weight's gradient. */
template <typename T> struct swiglu_backward {
    static const bool SUMS = true;
    matrix<T> hg, hu, act;
    const float *weights;               /* NULL: 1 */
    float *parts;                       /* [SUMMED columns each, R], or NULL */
    int64_t R;
    template <int n> __device__ __forceinline__ float operator()(int64_t r, int64_t f, const float (&b)[1][n]) const {
        float g[n], u[n], a[n], weight = weights ? weights[r] : 1, sum = 0;
        load_values<T, n>(hg.row(r) + f, g);
        load_values<T, n>(hu.row(r) + f, u);
#pragma unroll
        for (int i = 0; i < n; i++) {
            float s = sigmoid(g[i]), silu = g[i] * s, da = weight * b[0][i];
            a[i] = silu * u[i];
            sum += b[0][i] * a[i];
            a[i] *= weight;
            g[i] = da * u[i] * (s + silu * (1 - s));
            u[i] = da * silu;
        }
        store_values<T, n>(hg.row(r) + f, g);
        store_values<T, n>(hu.row(r) + f, u);
        store_values<T, n>(act.row(r) + f, a);
        return sum;
    }
    __device__ __forceinline__ void sum(int64_t r, int64_t chunk, float x) const {
        if (parts) parts[chunk * R + r] = x;
    }
};

struct add_gradient {
    static const bool SUMS = false;
    float *dw;
    int64_t width;
    bool fresh;
    template <int n> __device__ __forceinline__ float operator()(int64_t row, int64_t column, const float (&v)[1][n]) const {
        float x[n], *at = dw + row * width + column;
        if (!fresh) load_values<float, n>(at, x);
#pragma unroll
        for (int i = 0; i < n; i++) x[i] = fresh ? v[0][i] : x[i] + v[0][i];
        store_values<float, n>(at, x);
        return 0;
    }
};

/* ------------------------------------------------------------------ besides the products */
/* Rows of the experts: r = offsets[0] .. offsets[experts]-1. dweights[r] = sum of its parts, in order */
static __global__ void sum_parts(int64_t R, int experts, const int64_t *offsets, int parts, const float *part, float *dweights) {
    int64_t r = thread_index();
    if (r < offsets[0] || r >= offsets[experts]) return;
    float sum = 0;
    for (int i = 0; i < parts; i++) sum += part[i * R + r];
    dweights[r] = sum;
}

/* y[r] = x[index[r]] */
template <typename T>
static __global__ void gather_experts_rows(int experts, const int64_t *offsets, int64_t D, grouped_rows<T> x, matrix<T> y) {
    int64_t r = blockIdx.x;
    if (r < offsets[0] || r >= offsets[experts]) return;
    const T *from = x.at + (x.index ? x.index[r] : r) * x.ld;
    for (int64_t d = threadIdx.x; d < D; d += THREADS) y.row(r)[d] = from[d];
}

template <typename T> static void gather_rows(mu_device *dev, const mu_experts_shape *s, mu_mat offsets, grouped_rows<T> x, mu_mat y) {
    if (y.data)
        launch(dev, s->R, THREADS, 0, gather_experts_rows<T>, s->experts, typed<int64_t>(offsets).at, s->D, x, typed<T>(y));
}

/* ------------------------------------------------------------------ the two passes */
/* On tensor cores where everything is bf16 and can be read 16 bytes at a time. */
template <typename T> static bool is_fast(const mu_experts_shape *s, std::initializer_list<mu_mat> rows,
                                          std::initializer_list<mu_mat> weights) {
    bool fast = std::is_same<T, bf16>::value && s->D % PIECE == 0 && s->F % PIECE == 0;
    for (mu_mat m : rows) fast &= !m.data || (in_pieces(m) && m.ld % PIECE == 0);
    for (mu_mat m : weights) fast &= in_pieces(m);
    return fast;
}

template <int KIND, typename T, typename Epilogue>
static void multiply(mu_device *dev, const mu_experts_shape *s, bool fast, const product<T> &p, Epilogue e) {
    if constexpr (std::is_same<T, bf16>::value)
        if (fast) return multiply_mma<KIND>(dev, s, p, e);
    multiply_plain<KIND>(dev, s, p, e);
}

template <typename T> static grouped_rows<T> rows_at(mu_mat m, mu_mat index) {
    return grouped_rows<T>{ typed<T>(m).at, m.ld, typed<int32_t>(index).at };
}

template <typename T>
static void forward(mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets, mu_mat gate, mu_mat up,
                    mu_mat down, mu_mat hg, mu_mat hu, mu_mat out, mu_mat weights, mu_mat y) {
    cuda_scratch scratch(dev);
    bool fast = is_fast<T>(s, { x, hg, hu, y }, { gate, up, down });
    matrix<T> act = { scratch.take<T>(s->R * s->F), s->F };
    product<T> p = list_rows<T>(dev, scratch, s, offsets, fast ? MMA_HIGH : PLAIN_TILE);
    p.a0 = rows_at<T>(x, in), p.w0 = typed<T>(gate).at, p.w1 = typed<T>(up).at, p.K = (int)s->D, p.N = (int)s->F;
    multiply<UP>(dev, s, fast, p, keep_swiglu<T>{ typed<T>(hg), typed<T>(hu), act, typed<float>(weights).at });
    p.a0 = grouped_rows<T>{ act.at, act.ld, NULL }, p.w0 = typed<T>(down).at, p.K = (int)s->F, p.N = (int)s->D;
    multiply<DOWN>(dev, s, fast, p, put_rows<T>{ typed<T>(y), typed<int32_t>(out).at });
}

void mu_cuda_experts_fwd(mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets, mu_mat gate,
                         mu_mat up, mu_mat down, mu_mat hg, mu_mat hu, mu_mat out, mu_mat weights, mu_mat y) {
    with_float_type(x.dtype, [&](auto zero) {
        forward<decltype(zero)>(dev, s, x, in, offsets, gate, up, down, hg, hu, out, weights, y);
    });
}

/* dw_i [M, N] (+)= sum over the expert's rows of a[r]^T b[r], unless it is not wanted */
template <typename T>
static void gradient(mu_device *dev, const mu_experts_shape *s, bool fast, product<T> p, int64_t M, grouped_rows<T> a,
                     int64_t N, grouped_rows<T> b, mu_mat dw) {
    if (!dw.data) return;
    p.a0 = a, p.a1 = b, p.M = (int)M, p.N = (int)N;
    multiply<GRADIENT>(dev, s, fast, p, add_gradient{ typed<float>(dw).at, N, s->fresh });
}

template <typename T>
static void backward(mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets, mu_mat gate, mu_mat up,
                     mu_mat down, mu_mat hg, mu_mat hu, mu_mat out, mu_mat weights, mu_mat dy, mu_mat act, mu_mat xg, mu_mat dyg,
                     mu_mat dx, mu_mat dweights, mu_mat dgate, mu_mat dup, mu_mat ddown) {
    const mu_mat none = {};
    cuda_scratch scratch(dev);
    bool fast = is_fast<T>(s, { x, hg, hu, dy, act, dx }, { gate, up, down, dgate, dup, ddown });
    int64_t D = s->D, F = s->F, R = s->R, chunks = blocks_for(F, SUMMED);
    float *parts = dweights.data ? scratch.take<float>(chunks * R) : NULL;
    grouped_rows<T> x_in = rows_at<T>(x, in), dy_out = rows_at<T>(dy, out);
    product<T> p = list_rows<T>(dev, scratch, s, offsets, fast ? MMA_HIGH : PLAIN_TILE), dh = p;
    p.a0 = dy_out, p.w0 = typed<T>(down).at, p.K = (int)D, p.N = (int)F;
    multiply<BACK>(dev, s, fast, p,
                   swiglu_backward<T>{ typed<T>(hg), typed<T>(hu), typed<T>(act), typed<float>(weights).at, parts, R });
    if (parts)
        launch(dev, blocks_for(R, THREADS), THREADS, 0, sum_parts, R, p.experts, p.offsets, chunks, parts,
               typed<float>(dweights).at);
    dh.a0 = rows_at<T>(hg, none), dh.a1 = rows_at<T>(hu, none), dh.both = true, dh.K = (int)F, dh.N = (int)D;
    dh.w0 = typed<T>(gate).at, dh.w1 = typed<T>(up).at;
    if (dx.data) multiply<BACK>(dev, s, fast, dh, put_rows<T>{ typed<T>(dx), NULL });
    gradient(dev, s, fast, p, F, dh.a0, D, x_in, dgate);
    gradient(dev, s, fast, p, F, dh.a1, D, x_in, dup);
    gradient(dev, s, fast, p, D, dy_out, F, rows_at<T>(act, none), ddown);
    gather_rows(dev, s, offsets, x_in, xg);
    gather_rows(dev, s, offsets, dy_out, dyg);
}

void mu_cuda_experts_bwd(mu_device *dev, const mu_experts_shape *s, mu_mat x, mu_mat in, mu_mat offsets, mu_mat gate,
                         mu_mat up, mu_mat down, mu_mat hg, mu_mat hu, mu_mat out, mu_mat weights, mu_mat dy, mu_mat act,
                         mu_mat xg, mu_mat dyg, mu_mat dx, mu_mat dweights, mu_mat dgate, mu_mat dup, mu_mat ddown) {
    with_float_type(x.dtype, [&](auto zero) {
        backward<decltype(zero)>(dev, s, x, in, offsets, gate, up, down, hg, hu, out, weights, dy, act, xg, dyg, dx, dweights,
                                 dgate, dup, ddown);
    });
}
