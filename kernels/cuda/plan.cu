/* plan.cu - counting assignments to experts, the index plan of a dispatch, and the order of received rows.
 *
 * The plan is a stable counting sort of the T*K assignments in three passes, whose launches depend only on sizes:
 *
 *     count     a block per part (about 2048 assignments, in order): assignments to each expert in it
 *     scan      for each expert over the parts: assignments before each part; then over the experts, by place
 *     scatter   a block per part: an assignment's row = first row of its expert + those before the part + those before
 *               it in the part
 *
 * Parts do not cross segments, so that with a capacity the rank of an assignment within its segment is known, and so whether
 * it is kept. Without capacity every part is a segment and nothing is dropped. Atomics only count; they never determine an
 * order. Shared memory holds the counts of WINDOW experts; more experts take several passes. */
#include "kernels/cuda/cuda.h"

#include <math.h>

enum { WARPS = THREADS / WARP, WINDOW = 1024, ASSIGNMENTS = 2048 };

/* The assignments as parts: those of one segment have `tokens` tokens each, the last one less. */
typedef struct {
    int T, E, K, segment, tokens, parts;        /* parts per segment */
    matrix<int32_t> ids;
} division;

static division divide(int64_t T, int64_t E, int64_t K, int64_t segment, mu_mat ids) {
    MU_CHECK(T * K <= INT32_MAX && E <= INT32_MAX / WARPS && K >= 1 && K <= E,
             "plan: %lld tokens, top_k %lld of %lld experts",
             (long long)T, (long long)K, (long long)E);
    int64_t wanted = E > ASSIGNMENTS ? E : (int64_t)ASSIGNMENTS;    /* tables of all parts are no larger than the assignments */
    int64_t tokens = wanted / K;
    if (!segment) segment = tokens;
    if (segment > T) segment = T ? T : 1;
    int64_t parts = blocks_for(segment, tokens);
    return division{ (int)T, (int)E, (int)K, (int)segment, (int)blocks_for(segment, parts), (int)parts,
                     typed<int32_t>(ids) };
}

static int segments_of(const division &d) { return (int)blocks_for(d.T, d.segment); }
static int parts_of(const division &d) { return segments_of(d) * d.parts; }

/* The part of this block: its first token, and its assignments. */
typedef struct { int token, n; } chunk;

static __device__ __forceinline__ chunk chunk_of(const division &d, int part) {
    int begin = part / d.parts * d.segment, skipped = part % d.parts * d.tokens;
    int tokens = min(min(d.segment, d.T - begin) - skipped, d.tokens);
    return chunk{ begin + skipped, tokens > 0 ? tokens * d.K : 0 };
}

static __device__ __forceinline__ int expert_of(const division &d, const chunk &s, int a) {
    return d.ids.row(s.token + a / d.K)[a % d.K];
}

/* count[0 .. n) = assignments to experts low .. low+n-1 in the part. Called by the whole block, between two barriers. */
static __device__ __forceinline__ void count_chunk(const division &d, const chunk &s, int low, int n, int *count) {
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n; i += THREADS) count[i] = 0;
    __syncthreads();
    for (int a = (int)threadIdx.x; a < s.n; a += THREADS) {
        int i = expert_of(d, s, a) - low;
        if (i >= 0 && i < n) atomicAdd(&count[i], 1);
    }
    __syncthreads();
}

/* ------------------------------------------------------------------ count_experts */
/* A block per row. */
static __global__ void zero_rows(int n, matrix<int64_t> x) {
    for (int i = (int)threadIdx.x; i < n; i += THREADS) x.row(blockIdx.x)[i] = 0;
}

static __global__ void count_experts_kernel(division d, matrix<int64_t> counts) {
    static __shared__ int count[WINDOW];
    chunk s = chunk_of(d, (int)blockIdx.x);
    unsigned long long *sum = (unsigned long long *)counts.row(blockIdx.x / (unsigned)d.parts);
    for (int low = 0; low < d.E; low += WINDOW) {
        int n = min(d.E - low, (int)WINDOW);
        count_chunk(d, s, low, n, count);
        for (int i = (int)threadIdx.x; i < n; i += THREADS)
            if (count[i]) atomicAdd(&sum[low + i], (unsigned long long)count[i]);
    }
}

void mu_cuda_count_experts(mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t segment, mu_mat ids, mu_mat counts) {
    MU_CHECK(segment > 0 && T % segment == 0,
             "%lld tokens are not a multiple of the segment, %lld tokens", (long long)T, (long long)segment);
    division d = divide(T, E, K, segment, ids);
    launch(dev, segments_of(d), THREADS, 0, zero_rows, (int)E, typed<int64_t>(counts));
    launch(dev, parts_of(d), THREADS, 0, count_experts_kernel, d, typed<int64_t>(counts));
}

/* ------------------------------------------------------------------ sum_counts */
/* A thread per expert: its sums have one writer. A rank has few sequences, so the loop is short. */
static __global__ void sum_counts_kernel(int S, int E, matrix<const int64_t> counts, const int *group, int64_t *total,
                                         matrix<int64_t> by_group) {
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= E) return;
    int64_t sum = 0;
    for (int s = 0; s < S; s++) {
        int64_t n = counts.row(s)[i];
        sum += n;
        if (by_group.at) by_group.row(i)[group[s]] += n;
    }
    if (total) total[i] = sum;
}

void mu_cuda_sum_counts(mu_device *dev, int64_t S, int64_t E, int64_t G, mu_mat counts, mu_mat group, mu_mat total,
                        mu_mat by_group) {
    (void)G;
    launch(dev, blocks_for(E, THREADS), THREADS, 0, sum_counts_kernel, (int)S, (int)E, typed<const int64_t>(counts),
           (const int *)typed<const int32_t>(group).at, typed<int64_t>(total).at, typed<int64_t>(by_group));
}

/* ------------------------------------------------------------------ sum_dropped, count_routes */
/* A thread per expert; groups have many writers. */
static __global__ void sum_dropped_kernel(int S, int E, int64_t capacity, matrix<const int64_t> counts, const int *group, int64_t *by_expert,
                                          unsigned long long *by_group) {
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= E) return;
    int64_t sum = 0;
    for (int s = 0; s < S; s++) {
        int64_t n = counts.row(s)[i] - capacity;
        if (n <= 0) continue;
        sum += n;
        atomicAdd(&by_group[group[s]], (unsigned long long)n);
    }
    by_expert[i] += sum;
}

void mu_cuda_sum_dropped(mu_device *dev, int64_t S, int64_t E, int64_t G, int64_t capacity, mu_mat counts, mu_mat group, mu_mat by_expert,
                         mu_mat by_group) {
    (void)G;
    launch(dev, blocks_for(E, THREADS), THREADS, 0, sum_dropped_kernel, (int)S, (int)E, capacity, typed<const int64_t>(counts),
           (const int *)typed<const int32_t>(group).at, typed<int64_t>(by_expert).at, (unsigned long long *)typed<int64_t>(by_group).at);
}

/* A thread per assignment: its gate, and its pairs with the token's earlier ones. */
static __global__ void count_routes_kernel(int T, int E, int K, double unit, matrix<const int32_t> ids, matrix<const float> gates,
                                           unsigned long long *mass, int *pairs) {
    int64_t a = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (a >= (int64_t)T * K) return;
    int k = (int)(a % K);
    const int32_t *id = ids.row(a / K);
    double gate = (double)gates.row(a / K)[k];
    if (isfinite(gate)) atomicAdd(&mass[id[k]], (unsigned long long)__double2ll_rn(gate * unit));
    for (int l = 0; l < k && pairs; l++) {
        int64_t i = min(id[k], id[l]), j = max(id[k], id[l]);
        atomicAdd(&pairs[i * (2 * (int64_t)E - i - 1) / 2 + j - i - 1], 1);
    }
}

void mu_cuda_count_routes(mu_device *dev, int64_t T, int64_t E, int64_t K, double unit, mu_mat ids, mu_mat gates, mu_mat mass, mu_mat pairs) {
    launch(dev, blocks_for(T * K, THREADS), THREADS, 0, count_routes_kernel, (int)T, (int)E, (int)K, unit, typed<const int32_t>(ids),
           typed<const float>(gates), (unsigned long long *)typed<int64_t>(mass).at, (int *)typed<int32_t>(pairs).at);
}

/* ------------------------------------------------------------------ scans by one block */
enum { SCAN_THREADS = 1024 };

/* Sum of the x of the threads before this one; *all: of all. */
static __device__ int64_t block_prefix(int64_t x, int64_t *all) {
    static __shared__ int64_t part[WARP];
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int64_t sum = x;
    for (int step = 1; step < WARP; step *= 2) {
        int64_t lower = __shfl_up_sync(ALL_LANES, sum, step);
        if (lane >= step) sum += lower;
    }
    __syncthreads();
    if (lane == WARP - 1) part[warp] = sum;
    __syncthreads();
    int64_t others = part[lane], before = warp_sum(lane < warp ? others : (int64_t)0);
    *all = warp_sum(others);
    return before + sum - x;
}

/* take(i, sum of value(0) .. value(i-1)) for i in 0 .. n-1; returns the sum of all. A block of SCAN_THREADS. */
template <typename V, typename F> static __device__ __forceinline__ int64_t scan(int n, V value, F take) {
    int64_t sum = 0, all;
    for (int first = 0; first < n; first += SCAN_THREADS, sum += all) {
        int i = first + (int)threadIdx.x;
        int64_t before = block_prefix(i < n ? value(i) : 0, &all);
        if (i < n) take(i, sum + before);
    }
    return sum;
}

/* ------------------------------------------------------------------ plan */
/* Tables [parts, E]: `seen`, first the assignments to an expert in a part, then those in its segment before the part;
 * `before`, rows of the expert in all earlier segments. Totals [E], by place. */
typedef struct { int *seen, *before, *total; const int32_t *place; int capacity; } tables;

static __global__ void count_parts(division d, tables t) {
    static __shared__ int count[WINDOW];
    chunk s = chunk_of(d, (int)blockIdx.x);
    int *row = t.seen + (int64_t)blockIdx.x * d.E;
    for (int low = 0; low < d.E; low += WINDOW) {
        int n = min(d.E - low, (int)WINDOW);
        count_chunk(d, s, low, n, count);
        for (int i = (int)threadIdx.x; i < n; i += THREADS) row[low + i] = count[i];
    }
}

/* 32 experts per block, one per lane; its warps share the segments. */
static __global__ void __launch_bounds__(SCAN_THREADS) scan_parts(division d, int segments, tables t) {
    static __shared__ int kept[SCAN_THREADS / WARP][WARP];
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, warps = SCAN_THREADS / WARP;
    int expert = (int)blockIdx.x * WARP + lane, each = (segments + warps - 1) / warps;
    int first = min(warp * each, segments), end = expert < d.E ? min(first + each, segments) : first, rows = 0;
    int64_t start = (int64_t)first * d.parts * d.E + expert, at = start;
    for (int s = first; s < end; s++) {
        int n = 0;
        for (int p = 0; p < d.parts; p++, at += d.E) n += t.seen[at];
        rows += min(n, t.capacity);
    }
    kept[warp][lane] = rows;
    __syncthreads();
    rows = 0, at = start;
    for (int w = 0; w < warp; w++) rows += kept[w][lane];
    for (int s = first; s < end; s++) {
        int n = 0;
        for (int p = 0; p < d.parts; p++, at += d.E) {
            int count = t.seen[at];
            t.seen[at] = n, t.before[at] = rows;
            n += count;
        }
        rows += min(n, t.capacity);
    }
    if (expert < d.E && warp == warps - 1) t.total[t.place[expert]] = rows;
}

static __global__ void __launch_bounds__(SCAN_THREADS) scan_places(int E, tables t, int64_t *offsets) {
    int64_t rows = scan(E, [&](int i) { return (int64_t)t.total[i]; },
                        [&](int i, int64_t before) { offsets[i] = before; });
    if (threadIdx.x == 0) offsets[E] = rows;
}

/* A warp takes a range of the part's assignments, 32 at a time; rank[warp][i]: assignments to expert low + i in the
 * segment before the current ones, base[i]: the expert's first row of this segment. */
static __global__ void __launch_bounds__(THREADS)
    scatter_rows(division d, tables t, const int64_t *offsets, int32_t *token, matrix<int32_t> row_TK) {
    static __shared__ int rank[WARPS][WINDOW], base[WINDOW];
    chunk s = chunk_of(d, (int)blockIdx.x);
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int each = (s.n + THREADS - 1) / THREADS * WARP, begin = warp * each, end = min(begin + each, s.n);
    for (int low = 0; low < d.E; low += WINDOW) {
        int n = min(d.E - low, (int)WINDOW);
        for (int i = lane; i < n; i += WARP) rank[warp][i] = 0;
        __syncwarp();
        for (int a = begin + lane; a < end; a += WARP) {
            int i = expert_of(d, s, a) - low;
            if (i >= 0 && i < n) atomicAdd(&rank[warp][i], 1);
        }
        __syncthreads();
        for (int i = (int)threadIdx.x; i < n; i += THREADS) {
            int64_t at = (int64_t)blockIdx.x * d.E + low + i;
            int sum = t.seen[at];
            base[i] = t.before[at] + (int)offsets[t.place[low + i]];
            for (int w = 0; w < WARPS; w++) {
                int count = rank[w][i];
                rank[w][i] = sum;
                sum += count;
            }
        }
        __syncthreads();
        for (int a0 = begin; a0 < end; a0 += WARP) {
            int a = a0 + lane, i = a < end ? expert_of(d, s, a) - low : -1;
            if (i >= n) i = -1;
            unsigned same = __match_any_sync(ALL_LANES, i), lower = same & ((1u << lane) - 1);
            int before = i >= 0 ? rank[warp][i] + __popc(lower) : 0;
            __syncwarp();
            if (i >= 0 && !lower) rank[warp][i] += __popc(same);
            __syncwarp();
            if (i < 0) continue;
            int from = s.token + a / d.K, row = before < t.capacity ? base[i] + before : -1;
            row_TK.row(from)[a % d.K] = row;
            if (row >= 0) token[row] = from;
        }
        __syncthreads();
    }
}

void mu_cuda_plan(mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t segment, int64_t capacity, mu_mat ids,
                  mu_mat order, mu_mat offsets, mu_mat token, mu_mat row_TK) {
    MU_CHECK(capacity <= 0 || segment > 0,
             "plan: capacity %lld needs segments of at least 1 token, not %lld", (long long)capacity, (long long)segment);
    division d = divide(T, E, K, capacity > 0 ? segment : 0, ids);
    int64_t parts = parts_of(d);
    cuda_scratch scratch(dev);
    tables t = { scratch.take<int>(parts * E), scratch.take<int>(parts * E), scratch.take<int>(E), typed<int32_t>(order).at,
                 capacity > 0 && capacity < INT32_MAX ? (int)capacity : INT32_MAX };
    int64_t *first = typed<int64_t>(offsets).at;
    launch(dev, parts, THREADS, 0, count_parts, d, t);
    launch(dev, blocks_for(E, WARP), SCAN_THREADS, 0, scan_parts, d, segments_of(d), t);
    launch(dev, 1, SCAN_THREADS, 0, scan_places, (int)E, t, first);
    launch(dev, parts, THREADS, 0, scatter_rows, d, t, first, typed<int32_t>(token).at, typed<int32_t>(row_TK));
}

/* ------------------------------------------------------------------ arrange */
/* received[p, i], sorted[p, i]: first row from peer p for expert i, as received and sorted. */
static __global__ void __launch_bounds__(SCAN_THREADS)
    place_blocks(int P, int e, matrix<int64_t> counts, int64_t *received, int64_t *sorted, int64_t *offsets) {
    scan(P * e, [&](int n) { return counts.row(n / e)[n % e]; }, [&](int n, int64_t before) { received[n] = before; });
    int64_t rows = scan(P * e, [&](int n) { return counts.row(n % P)[n / P]; }, [&](int n, int64_t before) {
        sorted[n % P * e + n / P] = before;
        if (n % P == 0) offsets[n / P] = before;
    });
    if (threadIdx.x == 0) offsets[e] = rows;
}

/* SHARES blocks for the rows of each peer and expert. */
enum { SHARES = 8 };

static __global__ void write_blocks(int e, matrix<int64_t> counts, const int64_t *received, const int64_t *sorted,
                                    int32_t *index) {
    int n = (int)blockIdx.x;
    int64_t rows = counts.row(n / e)[n % e];
    for (int64_t r = (int64_t)blockIdx.y * THREADS + threadIdx.x; r < rows; r += SHARES * THREADS)
        index[sorted[n] + r] = (int32_t)(received[n] + r);
}

void mu_cuda_arrange(mu_device *dev, int64_t P, int64_t e, mu_mat counts, mu_mat offsets, mu_mat index) {
    MU_CHECK(P * e <= INT32_MAX, "arrange: %lld x %lld blocks are too many", (long long)P, (long long)e);
    cuda_scratch scratch(dev);
    int64_t *received = scratch.take<int64_t>(P * e), *sorted = scratch.take<int64_t>(P * e);
    matrix<int64_t> c = typed<int64_t>(counts);
    launch(dev, 1, SCAN_THREADS, 0, place_blocks, (int)P, (int)e, c, received, sorted, typed<int64_t>(offsets).at);
    launch_2d(dev, P * e, SHARES, THREADS, 0, write_blocks, (int)e, c, received, sorted, typed<int32_t>(index).at);
}
