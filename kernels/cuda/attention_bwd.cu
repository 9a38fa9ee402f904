/* attention_bwd.cu - causal softmax attention, backward, from y and the log-sum-exp that forward kept:
 *     p = exp(scale q.k - lse),  ds = p (dy.v - delta),  delta = dy.y
 *     dq += scale sum over keys of ds k,  dk += scale sum over queries of ds q,  dv += sum over queries of p dy.
 * One kernel loops over tiles of queries for dq, one over tiles of keys for dk and dv, with transposed scores, so that
 * each sum has one owner and one order; the query heads of a key head are processed one after the other. Scores are computed
 * twice: 7 products instead of 5, the price of sums without atomics. Probabilities are to base 2. */
#include "kernels/cuda/attention.cuh"

extern __shared__ __align__(128) unsigned char dynamic_shared[];

template <typename T> struct backward {
    mu_attention_shape s;
    float scale, scale2;            /* the scale, and times log2(e) */
    int padded;                     /* S in whole tiles: row length of lse2 and delta */
    matrix<T> q, k, v, y, dy, dq, dk, dv;
    matrix<float> lse;
    float *lse2, *delta;            /* [B*H, padded]: lse to base 2, delta; padded with 0, as are q and dy */
};

/* ------------------------------------------------------------------ lse2 and delta
 * A block takes 32 tokens, a warp a head at a time; lane i keeps token i's results, for contiguous writes. */
template <typename T> static __global__ void __launch_bounds__(BLOCK, 2) prepare_rows(backward<T> f) {
    int lane = (int)threadIdx.x % WARP, groups = f.padded / WARP, first = (int)(blockIdx.x % groups) * WARP;
    int64_t b = blockIdx.x / groups, row = b * f.s.S + first, d = f.s.d;
    int count = (int)min(f.s.S - first, (int64_t)WARP);
    for (int64_t h = threadIdx.x / WARP; h < f.s.H; h += WARPS) {
        float delta = 0;
#pragma unroll 4
        for (int i = 0; i < count; i++) {
            float sum = 0;
            for (int64_t c = h * d + lane; c < (h + 1) * d; c += WARP)
                sum += as_float(f.y.row(row + i)[c]) * as_float(f.dy.row(row + i)[c]);
            sum = warp_sum(sum);
            delta = lane == i ? sum : delta;
        }
        int64_t at = (b * f.s.H + h) * f.padded + first + lane;
        f.lse2[at] = lane < count ? f.lse.row(h)[row + lane] * (float)LOG2_E : 0;
        f.delta[at] = delta;
    }
}

/* A block's work: `rows` queries (or keys) of head h (or key head) of sequence b, from `first` on. */
struct tile { int64_t b, h; int first, rows; };

static __device__ __forceinline__ tile tile_of(int64_t S, int64_t heads, int tiles, int length, int index) {
    int64_t bh = blockIdx.x / tiles, first = index * (int64_t)length;
    return tile{ bh / heads, bh % heads, (int)first, (int)min(S - first, (int64_t)length) };
}

template <typename T>
static __device__ __forceinline__ head_rows<T> rows_of(matrix<T> m, int64_t row, int64_t column, int count) {
    return head_rows<T>{ m.row(row) + column, m.ld, count };
}

/* ------------------------------------------------------------------ plain */
/* to[rows of the block] += factor * sum */
template <typename T>
static __device__ void plain_write(const float *sum, float factor, int64_t d, int rows, T *to, int64_t ld) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < rows * d; i += BLOCK) {
        T *at = to + i / d * ld + i % d;
        store(at, as_float(*at) + factor * sum[i]);
    }
}

static __device__ void plain_zero(int64_t n, float *sum) {
    for (int64_t i = threadIdx.x; i < n; i += BLOCK) sum[i] = 0;
}

template <typename T> static __global__ void __launch_bounds__(BLOCK, 2) plain_queries(backward<T> f, int tiles) {
    plain_shared *w = (plain_shared *)dynamic_shared;
    float *dq = (float *)(w + 1), p[EACH], dp[EACH], lse2[EACH], delta[EACH];
    tile t = tile_of(f.s.S, f.s.H, tiles, PLAIN_ROWS, tiles - 1 - (int)(blockIdx.x % tiles));
    int lane = (int)threadIdx.x % WARP, mine = t.first + (int)threadIdx.x / WARP * EACH;
    int64_t d = f.s.d, row = t.b * f.s.S, column = t.h * d, key_column = t.h / (f.s.H / f.s.G) * d;
    head_rows<T> q = rows_of(f.q, row + t.first, column, t.rows), dy = rows_of(f.dy, row + t.first, column, t.rows);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int64_t at = (t.b * f.s.H + t.h) * f.padded + mine + i;
        lse2[i] = f.lse2[at], delta[i] = f.delta[at];
    }
    plain_zero(PLAIN_ROWS * d, dq);
    for (int key = 0; key < t.first + t.rows; key += WARP) {
        int count = t.first + t.rows - key;
        head_rows<T> k = rows_of(f.k, row + key, key_column, count), v = rows_of(f.v, row + key, key_column, count);
        plain_products(q, k, d, w, p);
        plain_products(dy, v, d, w, dp);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            p[i] = key + lane <= mine + i ? exp2f(f.scale2 * p[i] - lse2[i]) * (dp[i] - delta[i]) : 0;
        plain_add(p, k, d, w, dq);
    }
    plain_write(dq, f.scale, d, t.rows, f.dq.row(row + t.first) + column, f.dq.ld);
}

template <typename T> static __global__ void __launch_bounds__(BLOCK, 2) plain_keys(backward<T> f, int tiles) {
    plain_shared *w = (plain_shared *)dynamic_shared;
    tile t = tile_of(f.s.S, f.s.G, tiles, PLAIN_ROWS, (int)(blockIdx.x % tiles));
    int lane = (int)threadIdx.x % WARP, mine = t.first + (int)threadIdx.x / WARP * EACH;
    int64_t d = f.s.d, row = t.b * f.s.S, column = t.h * d, group = f.s.H / f.s.G;
    float *dk = (float *)(w + 1), *dv = dk + PLAIN_ROWS * d, p[EACH], dp[EACH];
    head_rows<T> k = rows_of(f.k, row + t.first, column, t.rows), v = rows_of(f.v, row + t.first, column, t.rows);
    plain_zero(2 * PLAIN_ROWS * d, dk);
    for (int64_t h = t.h * group; h < (t.h + 1) * group; h++)
        for (int at = t.first / WARP * WARP; at < f.s.S; at += WARP) {
            int count = (int)f.s.S - at;
            head_rows<T> q = rows_of(f.q, row + at, h * d, count), dy = rows_of(f.dy, row + at, h * d, count);
            int64_t query = (t.b * f.s.H + h) * f.padded + at + lane;
            float lse2 = f.lse2[query], delta = f.delta[query];
            plain_products(k, q, d, w, p);
            plain_products(v, dy, d, w, dp);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                p[i] = mine + i <= at + lane ? exp2f(f.scale2 * p[i] - lse2) : 0;
                dp[i] = p[i] * (dp[i] - delta);
            }
            plain_add(p, dy, d, w, dv);
            plain_add(dp, q, d, w, dk);
        }
    plain_write(dk, f.scale, d, t.rows, f.dk.row(row + t.first) + column, f.dk.ld);
    plain_write(dv, 1, d, t.rows, f.dv.row(row + t.first) + column, f.dv.ld);
}

/* ------------------------------------------------------------------ fast
 * Both kernels keep their own rows' tiles in shared memory; of the other side's, one stage is copied while another is
 * used. A warp skips tiles that are entirely above the diagonal. */
enum { STAGES = 2 };

/* Starts copying lse2 and then delta of N queries of head h of sequence b, from `first` on. */
template <int N>
static __device__ __forceinline__ void fetch_statistics(const backward<bf16> &f, int64_t b, int64_t h, int first,
                                                        unsigned to) {
    int part = (int)threadIdx.x;
    const float *from = (part < N / 4 ? f.lse2 : f.delta) + (b * f.s.H + h) * f.padded + first + part % (N / 4) * 4;
    if (part < N / 2) mu_ptx_cp_async_16(to + part * 16, from, 16);
}

/* dq: a warp owns 16 M queries; a stage is a tile of keys and one of values. */
template <int D> struct query_block {
    enum { M = 2, QUERIES = WARPS * 16 * M, KEYS = 32, UNROLL = D > 96 ? 4 : D / 16, OWN = QUERIES * D * 2 };
    enum { TILE = KEYS * D * 2, STATISTICS = 2 * QUERIES * 4, BYTES = 2 * OWN + STATISTICS + STAGES * 2 * TILE };
};

/* dp becomes ds; rows are queries, whose statistics begin at lse2 and delta. */
template <int M, int N>
static __device__ __forceinline__ void query_gradients(float scale, const float *lse2, const float *delta,
                                                       const float (&s)[M][N / 8][4], float (&dp)[M][N / 8][4]) {
#pragma unroll
    for (int j = 0; j < 2 * M; j++) {
        int m = j / 2, i = j % 2, r = j * 8 + (int)threadIdx.x % WARP / 4;
        float l = lse2[r], d = delta[r];
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int e = 2 * i; e < 2 * i + 2; e++)
                dp[m][n][e] = mu_ptx_exp2(s[m][n][e] * scale - l) * (dp[m][n][e] - d);
    }
}

template <int D> static __global__ void __launch_bounds__(BLOCK, 2) fast_queries(backward<bf16> f, int tiles) {
    typedef query_block<D> c;
    const int M = c::M, N = c::KEYS;
    unsigned q_tile = mu_ptx_shared(dynamic_shared), dy_tile = q_tile + c::OWN, statistics = dy_tile + c::OWN;
    unsigned stage = statistics + c::STATISTICS;
    tile t = tile_of(f.s.S, f.s.H, tiles, c::QUERIES, tiles - 1 - (int)(blockIdx.x % tiles));
    int lane = (int)threadIdx.x % WARP, mine = (int)threadIdx.x / WARP * 16 * M;
    int at = t.first + mine, keys = t.first + t.rows;
    int64_t row = t.b * f.s.S, key_column = t.h / (f.s.H / f.s.G) * D;
    const bf16 *k = f.k.row(row) + key_column, *v = f.v.row(row) + key_column;
    const float *lse2 = (const float *)(dynamic_shared + 2 * c::OWN) + mine;
    float dq[M][D / 8][4] = {};
    fetch<D, c::QUERIES>(q_tile, f.q.row(row + t.first) + t.h * D, f.q.ld, t.rows);
    fetch<D, c::QUERIES>(dy_tile, f.dy.row(row + t.first) + t.h * D, f.dy.ld, t.rows);
    fetch_statistics<c::QUERIES>(f, t.b, t.h, t.first, statistics);
    fetch<D, N>(stage, k, f.k.ld, keys);
    fetch<D, N>(stage + c::TILE, v, f.v.ld, keys);
    mu_ptx_cp_async_commit();
    for (int key = 0; key < keys; key += N) {
        unsigned k_tile = stage + key / N % STAGES * 2 * c::TILE, next = stage + (key / N + 1) % STAGES * 2 * c::TILE;
        mu_ptx_cp_async_wait<0>();
        __syncthreads();                    /* this stage has arrived, and no warp reads the other any more */
        k += N * f.k.ld, v += N * f.v.ld;
        if (key + N < keys) {
            fetch<D, N>(next, k, f.k.ld, keys - key - N);
            fetch<D, N>(next + c::TILE, v, f.v.ld, keys - key - N);
        }
        mu_ptx_cp_async_commit();
        if (mine >= t.rows || key >= at + 16 * M) continue;
        float s[M][N / 8][4], dp[M][N / 8][4];
        products<D, M, N, c::UNROLL>(q_tile + mine * D * 2, k_tile, s);
        if (key + N > at + 1) hide_later_keys<M, N>(at, key, s);
        products<D, M, N, c::UNROLL>(dy_tile + mine * D * 2, k_tile + c::TILE, dp);
        query_gradients<M, N>(f.scale2, lse2, lse2 + c::QUERIES, s, dp);
        add_products<D, M, N>(dp, k_tile, dq);
    }
#pragma unroll
    for (int j = 0; j < 2 * M; j++) {
        int r = mine + j * 8 + lane / 4;
        write_row<D, true>(dq[j / 2], j % 2, f.scale, f.dq.row(row + t.first + r) + t.h * D, r < t.rows);
    }
}

/* dk, dv: a warp owns 16 M keys; a stage is a tile of queries, one of dy, and their lse2 and delta. */
template <int D> struct key_block {
    enum { M = D <= 64 ? 2 : 1, KEYS = WARPS * 16 * M, QUERIES = 32, OWN = KEYS * D * 2, TILE = QUERIES * D * 2 };
    enum { STAGE = 2 * TILE + 2 * QUERIES * 4, BYTES = 2 * OWN + STAGES * STAGE };
};

/* The block's step `i`: queries from `at` on of head h. */
struct step { int64_t h; int at; };

template <int D>
static __device__ __forceinline__ void fetch_stage(const backward<bf16> &f, int64_t b, step x, unsigned stage) {
    typedef key_block<D> c;
    int64_t row = b * f.s.S + x.at;
    int count = (int)f.s.S - x.at;
    fetch<D, c::QUERIES>(stage, f.q.row(row) + x.h * D, f.q.ld, count);
    fetch<D, c::QUERIES>(stage + c::TILE, f.dy.row(row) + x.h * D, f.dy.ld, count);
    fetch_statistics<c::QUERIES>(f, b, x.h, x.at, stage + 2 * c::TILE);
}

/* p of scores and ds of dp, both in place; rows are keys, the first at position `key`, columns queries from `at` on. */
template <int M, int N>
static __device__ __forceinline__ void key_gradients(float scale, int key, int at, const float *lse2,
                                                     const float *delta, float (&p)[M][N / 8][4],
                                                     float (&dp)[M][N / 8][4]) {
    int lane = (int)threadIdx.x % WARP, behind = key + lane / 4 - (at + lane % 4 * 2);
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
        float2 l = *(const float2 *)(lse2 + n * 8 + lane % 4 * 2), d = *(const float2 *)(delta + n * 8 + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < 4 * M; i++) {
            int m = i / 4, e = i % 4;
            float x = mu_ptx_exp2(p[m][n][e] * scale - (e % 2 ? l.y : l.x));
            p[m][n][e] = n * 8 + e % 2 < behind + m * 16 + e / 2 * 8 ? 0 : x;
            dp[m][n][e] = p[m][n][e] * (dp[m][n][e] - (e % 2 ? d.y : d.x));
        }
    }
}

template <int D> static __global__ void __launch_bounds__(BLOCK, 2) fast_keys(backward<bf16> f, int tiles) {
    typedef key_block<D> c;
    const int M = c::M, N = c::QUERIES;
    unsigned k_tile = mu_ptx_shared(dynamic_shared), v_tile = k_tile + c::OWN, stages = v_tile + c::OWN;
    tile t = tile_of(f.s.S, f.s.G, tiles, c::KEYS, (int)(blockIdx.x % tiles));
    int lane = (int)threadIdx.x % WARP, mine = (int)threadIdx.x / WARP * 16 * M, group = (int)(f.s.H / f.s.G);
    int64_t row = t.b * f.s.S + t.first, column = t.h * D;
    int each = ((int)f.s.S - t.first + N - 1) / N, steps = group * each;        /* tiles of queries of a head; of all */
    float dk[M][D / 8][4] = {}, dv[M][D / 8][4] = {};
    fetch<D, c::KEYS>(k_tile, f.k.row(row) + column, f.k.ld, t.rows);
    fetch<D, c::KEYS>(v_tile, f.v.row(row) + column, f.v.ld, t.rows);
    fetch_stage<D>(f, t.b, step{ t.h * group, t.first }, stages);
    mu_ptx_cp_async_commit();
    for (int i = 0; i < steps; i++) {
        int at = t.first + i % each * N, used = i % STAGES * c::STAGE, next = i + 1;
        mu_ptx_cp_async_wait<0>();
        __syncthreads();                    /* this stage has arrived, and no warp reads the other any more */
        if (next < steps)
            fetch_stage<D>(f, t.b, step{ t.h * group + next / each, t.first + next % each * N },
                           stages + next % STAGES * c::STAGE);
        mu_ptx_cp_async_commit();
        if (mine >= t.rows || at + N <= t.first + mine) continue;
        unsigned q_tile = stages + used, dy_tile = q_tile + c::TILE;
        const float *lse2 = (const float *)(dynamic_shared + 2 * c::OWN + used + 2 * c::TILE);
        float p[M][N / 8][4], dp[M][N / 8][4];
        products<D, M, N>(k_tile + mine * D * 2, q_tile, p);
        products<D, M, N>(v_tile + mine * D * 2, dy_tile, dp);
        key_gradients<M, N>(f.scale2, t.first + mine, at, lse2, lse2 + N, p, dp);
        add_products<D, M, N>(p, dy_tile, dv);
        add_products<D, M, N>(dp, q_tile, dk);
    }
#pragma unroll
    for (int j = 0; j < 2 * M; j++) {
        int r = mine + j * 8 + lane / 4;
        write_row<D, true>(dk[j / 2], j % 2, f.scale, f.dk.row(row + r) + column, r < t.rows);
        write_row<D, true>(dv[j / 2], j % 2, 1, f.dv.row(row + r) + column, r < t.rows);
    }
}

/* ------------------------------------------------------------------ */
enum { PADDING = 128 };                     /* whole tiles of any kernel above */

template <typename T> static void launch_plain(mu_device *dev, const backward<T> &f) {
    int tiles = (int)blocks_for(f.s.S, PLAIN_ROWS);
    launch(dev, f.s.B * f.s.H * tiles, BLOCK, plain_bytes(f.s.d, 1), plain_queries<T>, f, tiles);
    launch(dev, f.s.B * f.s.G * tiles, BLOCK, plain_bytes(f.s.d, 2), plain_keys<T>, f, tiles);
}

static void launch_tiles(mu_device *dev, const backward<float> &f, bool) { launch_plain(dev, f); }
static void launch_tiles(mu_device *dev, const backward<bf16> &f, bool fast) {
    bool done = fast && with_head_width(f.s.d, [&](auto width) {
        const int D = decltype(width)::value;
        int query_tiles = (int)blocks_for(f.s.S, query_block<D>::QUERIES);
        int key_tiles = (int)blocks_for(f.s.S, key_block<D>::KEYS);
        launch(dev, f.s.B * f.s.H * query_tiles, BLOCK, query_block<D>::BYTES, fast_queries<D>, f, query_tiles);
        launch(dev, f.s.B * f.s.G * key_tiles, BLOCK, key_block<D>::BYTES, fast_keys<D>, f, key_tiles);
    });
    if (!done) launch_plain(dev, f);
}

void mu_cuda_attention_bwd(mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y,
                           mu_mat lse, mu_mat dy, mu_mat dq, mu_mat dk, mu_mat dv) {
    MU_CHECK(s->past == 0, "attention backward: %lld keys before the first query are not supported", (long long)s->past);
    bool fast = is_fast(q) && is_fast(k) && is_fast(v) && is_fast(dy) && is_fast(dq) && is_fast(dk) &&
                   is_fast(dv);
    int64_t padded = blocks_for(s->S, PADDING) * PADDING;
    cuda_scratch scratch(dev);
    float *lse2 = scratch.take<float>(s->B * s->H * padded), *delta = scratch.take<float>(s->B * s->H * padded);
    with_float_type(q.dtype, [&](auto zero) {
        typedef decltype(zero) T;
        backward<T> f = { *s, (float)s->scale, (float)(s->scale * LOG2_E), (int)padded, typed<T>(q), typed<T>(k),
                          typed<T>(v), typed<T>(y), typed<T>(dy), typed<T>(dq), typed<T>(dk), typed<T>(dv),
                          typed<float>(lse), lse2, delta };
        launch(dev, s->B * padded / WARP, BLOCK, 0, prepare_rows<T>, f);
        launch_tiles(dev, f, fast);
    });
}
