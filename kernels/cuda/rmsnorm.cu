/* rmsnorm.cu - y = x * rstd * w over rows of width D (the model's width, or one head's).
 *
 * A row belongs to a team: 16 or 32 lanes if one access each covers it, else a block. A thread owns columns: every access is
 * of N = WIDE values, 16 bytes of fp32 and 8 of bf16, contiguous across a warp (N = 1 where alignment forbids it). The first
 * KEPT accesses stay in registers; the rest of a very wide row is read again. */
#include "kernels/cuda/cuda.h"

enum { BLOCK = 0, KEPT_BY_BLOCK = 4, MOST_THREADS = 512, WIDE = 4 };

/* A team of LANES lanes (BLOCK: the whole block), and this thread's position in it. */
template <int LANES> struct team {
    int lanes, lane, number, count;
    __device__ __forceinline__ team()
        : lanes(LANES == BLOCK ? (int)blockDim.x : LANES), lane((int)threadIdx.x % lanes),
          number((int)threadIdx.x / lanes), count((int)blockDim.x / lanes) {}
    __device__ __forceinline__ float sum(float x) const { return LANES == BLOCK ? block_sum(x) : lanes_sum(x, LANES); }
};

/* body(j, c) for the columns c .. c+N-1 of this thread: j < KEPT is the access, j == KEPT: not kept. */
template <int N, int KEPT, typename F>
static __device__ __forceinline__ void each_access(int64_t D, int lane, int lanes, F body) {
#pragma unroll
    for (int j = 0; j < KEPT; j++)
        if (int64_t c = ((int64_t)j * lanes + lane) * N; c < D) body(j, c);
    for (int64_t c = ((int64_t)KEPT * lanes + lane) * N; c < D; c += (int64_t)lanes * N) body(KEPT, c);
}

template <typename R, int N, int LANES, int KEPT>
static __global__ void __launch_bounds__(MOST_THREADS)
rmsnorm_fwd_kernel(int64_t rows, int64_t D, float eps, matrix<const R> x, const float *w, matrix<R> y, float *rstd) {
    team<LANES> team;
    int64_t r = (int64_t)blockIdx.x * team.count + team.number, width = r < rows ? D : 0;
    float kept[KEPT + 1][N] = {}, weight[N], sum = 0;
    each_access<N, KEPT>(width, team.lane, team.lanes, [&](int j, int64_t c) {
        load_values<R, N>(x.row(r) + c, kept[j]);
#pragma unroll
        for (int n = 0; n < N; n++) sum += kept[j][n] * kept[j][n];
    });
    float scale = rsqrtf(team.sum(sum) / (float)D + eps);
    each_access<N, KEPT>(width, team.lane, team.lanes, [&](int j, int64_t c) {
        if (j == KEPT) load_values<R, N>(x.row(r) + c, kept[j]);
        load_values<float, N>(w + c, weight);
#pragma unroll
        for (int n = 0; n < N; n++) kept[j][n] *= scale * weight[n];
        store_values<R, N>(y.row(r) + c, kept[j]);
    });
    if (team.lane == 0 && r < rows) rstd[r] = scale;
}

/* with_team(D, N, [&](auto lanes, auto kept, int threads) { ... }): the code for rows of D values, N at a time. */
template <typename F> static void with_team(int64_t D, int N, F body) {
    int64_t accesses = blocks_for(D, N);
    if (accesses <= 16) body(std::integral_constant<int, 16>(), std::integral_constant<int, 1>(), THREADS);
    else if (accesses <= 32) body(std::integral_constant<int, 32>(), std::integral_constant<int, 1>(), THREADS);
    else body(std::integral_constant<int, BLOCK>(), std::integral_constant<int, KEPT_BY_BLOCK>(),
              threads_for(blocks_for(accesses, KEPT_BY_BLOCK), MOST_THREADS));
}

static int64_t teams_of(int lanes, int threads) { return lanes == BLOCK ? 1 : threads / lanes; }

void mu_cuda_rmsnorm_fwd(mu_device *dev, int64_t rows, int64_t D, double eps, mu_mat x, mu_mat w, mu_mat y, mu_mat rstd) {
    bool wide = D % WIDE == 0 && rows_aligned(x, WIDE) && is_aligned(w, WIDE) && rows_aligned(y, WIDE);
    with_float_type(x.dtype, [&](auto zero) {
        typedef decltype(zero) R;
        with_width<WIDE>(wide, [&](auto n) {
            const int N = decltype(n)::value;
            with_team(D, N, [&](auto lanes, auto kept, int threads) {
                const int LANES = decltype(lanes)::value, KEPT = decltype(kept)::value;
                launch(dev, blocks_for(rows, teams_of(LANES, threads)), threads, 0, rmsnorm_fwd_kernel<R, N, LANES, KEPT>,
                       rows, D, (float)eps, typed<const R>(x), typed<const float>(w).at, typed<R>(y),
                       typed<float>(rstd).at);
            });
        });
    });
}

/* ------------------------------------------------------------------ backward
 * dx += rstd * (w dy - x * rstd^2 / D * <w dy, x>);  dw += sum over rows of dy x rstd. A block takes a range of rows and
 * writes their dw to part[block]; a second kernel adds the parts in order. */
enum { MOST_CHUNKS = 1024, LEAST_ROWS = 4 };         /* with fewer rows, the parts would dominate the memory traffic */

/* part[c] = the sum of the block's teams, in order. */
template <int N, int LANES>
static __device__ __forceinline__ void join_teams(const team<LANES> &team, int64_t D, const float mine[N], float *part) {
    static __shared__ __align__(16) float sums[THREADS * N];
    store_values<float, N>(sums + threadIdx.x * N, mine);
    __syncthreads();
    for (int c = (int)threadIdx.x; c < LANES * N && c < D; c += (int)blockDim.x) {
        float sum = 0;
        for (int i = 0; i < team.count; i++) sum += sums[i * LANES * N + c];
        part[c] = sum;
    }
}

/* One access to w, and to a row's x, dy and dx. */
template <typename R, int N> struct row_part { word<R, N> x, dy, dx; };

template <typename R, int N, int LANES, int KEPT>
static __global__ void __launch_bounds__(MOST_THREADS)
rmsnorm_bwd_kernel(int64_t rows, int64_t chunk, int64_t D, matrix<const R> x, const float *w, const float *rstd,
                   matrix<const R> dy, matrix<R> dx, float *part) {
    team<LANES> team;
    int64_t first = (int64_t)blockIdx.x * chunk, end = first + chunk < rows ? first + chunk : rows;
    float weight[KEPT + 1][N], dw[KEPT][N] = {}, xs[N], g[N], sum[N];
    row_part<R, N> kept[KEPT + 1];
    if (part) part += blockIdx.x * D;
    each_access<N, KEPT>(D, team.lane, team.lanes, [&](int j, int64_t c) { load_values<float, N>(w + c, weight[j]); });
    for (int64_t from = first; from < end; from += team.count) {
        int64_t r = from + team.number, width = r < end ? D : 0;
        float scale = r < end ? rstd[r] : 0, dot = 0;
        auto load = [&](int j, int64_t c) {
            if (j == KEPT) load_values<float, N>(w + c, weight[j]);
            kept[j].x = load_word<R, N>(x.row(r) + c);
            kept[j].dy = load_word<R, N>(dy.row(r) + c);
            if (dx.at) kept[j].dx = load_word<R, N>(dx.row(r) + c);
        };
        each_access<N, KEPT>(width, team.lane, team.lanes, [&](int j, int64_t c) {
            load(j, c);
            unpack<R, N>(kept[j].x, xs), unpack<R, N>(kept[j].dy, g);
#pragma unroll
            for (int n = 0; n < N; n++) dot += xs[n] * (weight[j][n] * g[n]);
        });
        float along = team.sum(dot) * scale * scale * scale / (float)D;
        each_access<N, KEPT>(width, team.lane, team.lanes, [&](int j, int64_t c) {
            if (j == KEPT) load(j, c);
            unpack<R, N>(kept[j].x, xs), unpack<R, N>(kept[j].dy, g);
            if (dx.at) {
                unpack<R, N>(kept[j].dx, sum);
#pragma unroll
                for (int n = 0; n < N; n++) sum[n] += scale * (weight[j][n] * g[n]) - along * xs[n];
                store_values<R, N>(dx.row(r) + c, sum);
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                float product = g[n] * (xs[n] * scale);
                if (j < KEPT) dw[j][n] += product;
                else if (part) part[c + n] = (r == first ? 0 : part[c + n]) + product;
            }
        });
    }
    if (!part) return;
    if constexpr (LANES == BLOCK)
        each_access<N, KEPT>(D, team.lane, team.lanes, [&](int j, int64_t c) {
            if (j < KEPT) store_values<float, N>(part + c, dw[j]);
        });
    else join_teams<N, LANES>(team, D, dw[0], part);
}

/* dw[c] += the parts: a warp's lanes own neighbouring columns, warp i adds every WARP-th part from i on, and the warps' sums
 * are added in order. */
static __global__ void add_chunks(int64_t chunks, int64_t D, const float *part, float *dw) {
    static __shared__ float sums[WARP][WARP];
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    int64_t c = (int64_t)blockIdx.x * WARP + lane;
    float sum = 0;
#pragma unroll 4
    for (int64_t i = warp; i < chunks; i += WARP)
        if (c < D) sum += part[i * D + c];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= D) return;
    sum = dw[c];
    for (int i = 0; i < WARP; i++) sum += sums[i][lane];
    dw[c] = sum;
}

void mu_cuda_rmsnorm_bwd(mu_device *dev, int64_t rows, int64_t D, mu_mat x, mu_mat w, mu_mat rstd, mu_mat dy, mu_mat dx,
                         mu_mat dw) {
    if (!rows || (!dx.data && !dw.data)) return;
    cuda_scratch scratch(dev);
    bool wide = D % WIDE == 0 && rows_aligned(x, WIDE) && is_aligned(w, WIDE) && rows_aligned(dy, WIDE) &&
                rows_aligned(dx, WIDE);
    with_float_type(x.dtype, [&](auto zero) {
        typedef decltype(zero) R;
        with_width<WIDE>(wide, [&](auto n) {
            const int N = decltype(n)::value;
            with_team(D, N, [&](auto lanes, auto kept, int threads) {
                const int LANES = decltype(lanes)::value, KEPT = decltype(kept)::value;
                int64_t teams = teams_of(LANES, threads);
                int64_t share = blocks_for(rows, MOST_CHUNKS), chunk = blocks_for(share, teams) * teams;
                if (chunk < LEAST_ROWS) chunk = LEAST_ROWS;
                int64_t chunks = blocks_for(rows, chunk);
                float *part = dw.data ? scratch.take<float>(chunks * D) : NULL;
                launch(dev, chunks, threads, 0, rmsnorm_bwd_kernel<R, N, LANES, KEPT>, rows, chunk, D,
                       typed<const R>(x), typed<const float>(w).at, typed<const float>(rstd).at, typed<const R>(dy),
                       typed<R>(dx), part);
                if (part) launch(dev, blocks_for(D, WARP), WARP * WARP, 0, add_chunks, chunks, D,
                                 (const float *)part, typed<float>(dw).at);
            });
        });
    });
}
