/* attention.cu - causal softmax attention, forward: a block is a tile of queries of one head, which loops over its keys
 * with a running maximum and sum (Dao 2023, FlashAttention-2). Scores are to base 2: exp2 of scale * log2(e) * q.k. */
#include "kernels/cuda/attention.cuh"

extern __shared__ __align__(128) unsigned char dynamic_shared[];

template <typename T> struct forward {
    mu_attention_shape s;
    float scale;                    /* times log2(e) */
    int tiles;                      /* of queries, per sequence */
    matrix<T> q, k, v, y;
    matrix<float> lse;
};

/* A block's work: head h of sequence b, queries `first` .. first+rows-1, which see the sequence's first `keys` keys.
 * Heads that share keys run concurrently, and each head's last tile, the longest one, comes first. */
struct query_tile { int64_t b, h; int first, rows, keys; };

template <typename T> static __device__ __forceinline__ query_tile query_tile_of(const forward<T> &f, int length) {
    int64_t bh = blockIdx.x / f.tiles, first = (f.tiles - 1 - blockIdx.x % f.tiles) * (int64_t)length;
    int rows = (int)min(f.s.S - first, (int64_t)length);
    return query_tile{ bh / f.s.H, bh % f.s.H, (int)first, rows, (int)f.s.past + (int)first + rows };
}

/* ------------------------------------------------------------------ plain */
/* Adds some of a row's scores, one key per lane; returns the probability before division, and in `keep` the factor for
 * earlier sums. */
static __device__ __forceinline__ float take_score(float score, float *max, float *sum, float *keep) {
    float top = fmaxf(*max, warp_max(score)), p = exp2f(score - top);
    *keep = exp2f(*max - top);
    *sum = *sum * *keep + warp_sum(p);
    *max = top;
    return p;
}

template <typename T> static __global__ void __launch_bounds__(BLOCK, 2) plain_forward(forward<T> f) {
    plain_shared *w = (plain_shared *)dynamic_shared;
    float *y = (float *)(w + 1), p[EACH], max[EACH], sum[EACH];
    query_tile t = query_tile_of(f, PLAIN_ROWS);
    int lane = (int)threadIdx.x % WARP, mine = (int)threadIdx.x / WARP * EACH;
    int64_t d = f.s.d, row = t.b * f.s.S + t.first, key_row = t.b * (f.s.past + f.s.S), g = t.h / (f.s.H / f.s.G);
    head_rows<T> q = { f.q.row(row) + t.h * d, f.q.ld, t.rows };
    for (int64_t i = threadIdx.x; i < PLAIN_ROWS * d; i += BLOCK) y[i] = 0;
    for (int i = 0; i < EACH; i++) max[i] = -INFINITY, sum[i] = 0;
    for (int key = 0; key < t.keys; key += WARP) {
        head_rows<T> k = { f.k.row(key_row + key) + g * d, f.k.ld, t.keys - key };
        head_rows<T> v = { f.v.row(key_row + key) + g * d, f.v.ld, t.keys - key };
        plain_products(q, k, d, w, p);
        for (int i = 0; i < EACH; i++) {
            bool seen = key + lane <= (int)f.s.past + t.first + mine + i;
            float keep;
            p[i] = take_score(seen ? f.scale * p[i] : -INFINITY, &max[i], &sum[i], &keep);
            for (int64_t c = lane; c < d; c += WARP) y[(mine + i) * d + c] *= keep;
        }
        plain_add(p, v, d, w, y);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (mine + i >= t.rows) break;
        for (int64_t c = lane; c < d; c += WARP)
            store(f.y.row(row + mine + i) + t.h * d + c, y[(mine + i) * d + c] / sum[i]);
        if (lane == 0) f.lse.row(t.h)[row + mine + i] = LN_2 * (max[i] + log2f(sum[i]));
    }
}

/* ------------------------------------------------------------------ fast */
/* A warp owns 16 M queries; the number of keys at once is limited by registers. */
template <int D> struct forward_block {
    enum { M = 2, QUERIES = WARPS * 16 * M, KEYS = D > 80 ? 48 : 64, BYTES = (QUERIES + 2 * KEYS) * D * 2 };
};

/* take_score for a tile; a lane's `sum` is of its own columns. The scale is applied with the subtraction. */
template <int D, int M, int N>
static __device__ __forceinline__ void take_tile(float scale, float (&s)[M][N / 8][4], float (&max)[M][2],
                                                 float (&sum)[M][2], float (&y)[M][D / 8][4]) {
#pragma unroll
    for (int j = 0; j < 2 * M; j++) {
        int m = j / 2, i = j % 2;
        float top = max[m][i], part = 0;
#pragma unroll
        for (int n = 0; n < N / 8; n++) top = fmaxf(top, fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
        float keep = mu_ptx_exp2((max[m][i] - top) * scale), base = top * scale;
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int e = 2 * i; e < 2 * i + 2; e++) part += s[m][n][e] = mu_ptx_exp2(s[m][n][e] * scale - base);
        sum[m][i] = sum[m][i] * keep + part;
        max[m][i] = top;
#pragma unroll
        for (int n = 0; n < D / 8; n++) y[m][n][2 * i] *= keep, y[m][n][2 * i + 1] *= keep;
    }
}

template <int D, int M>
static __device__ __forceinline__ void finish_rows(const forward<bf16> &f, query_tile t, const float (&max)[M][2],
                                                   const float (&sum)[M][2], const float (&y)[M][D / 8][4]) {
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
#pragma unroll
    for (int j = 0; j < 2 * M; j++) {
        int r = warp * 16 * M + j * 8 + lane / 4;
        float whole = sum[j / 2][j % 2];
        whole += __shfl_xor_sync(ALL_LANES, whole, 1);
        whole += __shfl_xor_sync(ALL_LANES, whole, 2);
        int64_t row = t.b * f.s.S + t.first + r;
        write_row<D, false>(y[j / 2], j % 2, 1 / whole, f.y.row(row) + t.h * D, r < t.rows);
        if (r < t.rows && lane % 4 == 0) f.lse.row(t.h)[row] = LN_2 * (max[j / 2][j % 2] * f.scale + log2f(whole));
    }
}

/* A tile of values is copied while scores are computed, the next keys while values are summed. A warp skips tiles that none
 * of its queries sees. */
template <int D> static __global__ void __launch_bounds__(BLOCK, 2) fast_forward(forward<bf16> f) {
    const int M = forward_block<D>::M, QUERIES = forward_block<D>::QUERIES, KEYS = forward_block<D>::KEYS;
    unsigned q_tile = mu_ptx_shared(dynamic_shared), k_tile = q_tile + QUERIES * D * 2, v_tile = k_tile + KEYS * D * 2;
    query_tile t = query_tile_of(f, QUERIES);
    int mine = (int)threadIdx.x / WARP * 16 * M, at = (int)f.s.past + t.first + mine;
    int64_t key_row = t.b * (f.s.past + f.s.S), g = t.h / (f.s.H / f.s.G);
    const bf16 *k = f.k.row(key_row) + g * D, *v = f.v.row(key_row) + g * D;
    float y[M][D / 8][4] = {}, s[M][KEYS / 8][4], sum[M][2] = {}, max[M][2];
    for (int j = 0; j < 2 * M; j++) max[j / 2][j % 2] = -INFINITY;
    fetch<D, QUERIES>(q_tile, f.q.row(t.b * f.s.S + t.first) + t.h * D, f.q.ld, t.rows);
    fetch<D, KEYS>(k_tile, k, f.k.ld, t.keys);
    mu_ptx_cp_async_commit();
    for (int key = 0; key < t.keys; key += KEYS) {
        bool seen = mine < t.rows && key < at + 16 * M;
        mu_ptx_cp_async_wait<0>();
        __syncthreads();                    /* the keys have arrived, and no warp reads the last values any more */
        fetch<D, KEYS>(v_tile, v, f.v.ld, t.keys - key);
        mu_ptx_cp_async_commit();
        if (seen) products<D, M, KEYS>(q_tile + mine * D * 2, k_tile, s);
        mu_ptx_cp_async_wait<0>();
        __syncthreads();                    /* the values have arrived, and no warp reads these keys any more */
        k += KEYS * f.k.ld, v += KEYS * f.v.ld;
        if (key + KEYS < t.keys) fetch<D, KEYS>(k_tile, k, f.k.ld, t.keys - key - KEYS);
        mu_ptx_cp_async_commit();
        if (!seen) continue;
        if (key + KEYS > at + 1) hide_later_keys<M, KEYS>(at, key, s);
        take_tile<D, M, KEYS>(f.scale, s, max, sum, y);
        add_products<D, M, KEYS>(s, v_tile, y);
    }
    finish_rows<D, M>(f, t, max, sum, y);
}

/* ------------------------------------------------------------------ */
template <typename T>
static forward<T> forward_of(const mu_attention_shape *s, int length, mu_mat q, mu_mat k, mu_mat v, mu_mat y,
                             mu_mat lse) {
    return forward<T>{ *s, (float)(s->scale * LOG2_E), (int)blocks_for(s->S, length), typed<T>(q), typed<T>(k),
                       typed<T>(v), typed<T>(y), typed<float>(lse) };
}

void mu_cuda_attention_fwd(mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y,
                           mu_mat lse) {
    MU_CHECK(s->G > 0 && s->H % s->G == 0,
             "attention: %lld heads are not a multiple of %lld key/value heads", (long long)s->H, (long long)s->G);
    bool fast = is_fast(q) && is_fast(k) && is_fast(v) && is_fast(y) && s->scale > 0;
    bool done = fast && with_head_width(s->d, [&](auto width) {
        const int D = decltype(width)::value;
        forward<bf16> f = forward_of<bf16>(s, forward_block<D>::QUERIES, q, k, v, y, lse);
        launch(dev, s->B * s->H * f.tiles, BLOCK, forward_block<D>::BYTES, fast_forward<D>, f);
    });
    if (done) return;
    with_float_type(q.dtype, [&](auto zero) {
        typedef decltype(zero) T;
        forward<T> f = forward_of<T>(s, PLAIN_ROWS, q, k, v, y, lse);
        launch(dev, s->B * s->H * f.tiles, BLOCK, plain_bytes(s->d, 1), plain_forward<T>, f);
    });
}
