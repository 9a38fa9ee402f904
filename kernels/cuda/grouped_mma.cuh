/* grouped_mma.cuh - grouped products (grouped.cuh) in bf16 on tensor cores, accumulated in fp32.
 *
 * A block of 2 x 4 warps computes tiles of 128 x 256, each warp 64 x 64 of it, MMA_STEP terms at a time: of the shapes whose
 * sums fit into registers the one with the fewest reads per product, from the L2 cache and from shared memory. Kernels are
 * persistent: one block per multiprocessor takes tile after tile. Terms are copied ahead of the sums by cp.async through
 * MMA_STAGES stages of shared memory, also across tiles: while the last tile's sums are finished, the next one's first terms
 * arrive. These copies also gather rows through their index.
 *
 * A stage has two sides, A (rows of the result) and B (its columns), in pieces of 8 values (16 bytes):
 *     ALONG    terms are neighbours in memory: value (i, k) in line i of 4 pieces;       piece k/8 is at k/8 ^ (i/2 % 4)
 *     ACROSS   rows or columns are:            value (i, k) in line k of 16 or 32 pieces; piece i/8 is at i/8 ^ (k % 8)
 * The exclusive or puts the 8 pieces that ldmatrix reads at a time, and those that 8 threads write, into different banks.
 * Of UP, a warp's 64 columns of B are 8 of w0, 8 of w1, 8 of w0, ...: both results of a column are in one thread. */
#ifndef MUSTER_KERNELS_CUDA_GROUPED_MMA_H
#define MUSTER_KERNELS_CUDA_GROUPED_MMA_H
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/ptx.h"

static const int MMA_HIGH = 128, MMA_WIDE = 256, MMA_STEP = 32, MMA_STAGES = 4;
static const int WARP_TILE = 64, WARPS_WIDE = MMA_WIDE / WARP_TILE, MMA_THREADS = MMA_HIGH / WARP_TILE * WARPS_WIDE * WARP;
static const int PIECE = 8, PIECE_BYTES = PIECE * 2;
static_assert(SUMMED == WARP_TILE, "a row's sum is of a warp's columns");

/* Whether an operand is aligned for accesses of 16 bytes. */
static bool in_pieces(mu_mat m) { return (uintptr_t)m.data % PIECE_BYTES == 0; }

/* ------------------------------------------------------------------ a side of a stage: SIZE rows or columns, MMA_STEP terms */
template <bool IS_ALONG, int SIZE> struct mma_side {
    static const bool ALONG = IS_ALONG;
    static const int BYTES = SIZE * MMA_STEP * 2, LINE_BYTES = (ALONG ? MMA_STEP : SIZE) * 2, LINE = LINE_BYTES / PIECE_BYTES;
    static const int COPIES = BYTES / PIECE_BYTES / MMA_THREADS, LINES_AT_ONCE = MMA_THREADS / LINE;
    static_assert(LINES_AT_ONCE % 8 == 0, "all copies of a thread have the same place in their line");

    /* The thread copies piece `column` / 8 of some lines. */
    static __device__ __forceinline__ int line(int j) { return (int)threadIdx.x / LINE + j * LINES_AT_ONCE; }
    static __device__ __forceinline__ int column() { return (int)threadIdx.x % LINE * PIECE; }
    static __device__ __forceinline__ unsigned place(int j) {
        unsigned at = threadIdx.x / LINE, piece = threadIdx.x % LINE ^ (ALONG ? at / 2 % 4 : at % 8);
        return at * LINE_BYTES + piece * PIECE_BYTES + j * MMA_THREADS * PIECE_BYTES;
    }

    /* The i-th 16 of the warp's rows or columns, terms from `half` * 16 on, in the layout of mma. Each lane addresses 8 values: of
     * row or column lane % 8, or 8 further; of terms from 0 on, or from 8 on. */
    static __device__ __forceinline__ void load_16(unsigned r[4], unsigned side, int warp, int lane, bool line_8, bool term_8,
                                                   int i, int half) {
        if (ALONG) {
            unsigned at = warp * WARP_TILE + line_8 * 8 + lane % 8, piece = (term_8 ^ at / 2 % 4) ^ half * 2;
            mu_ptx_ldmatrix_x4(r, side + (at + i * 16) * LINE_BYTES + piece * PIECE_BYTES);
        } else {
            unsigned at = term_8 * 8 + lane % 8, piece = warp * WARP_TILE / PIECE + ((line_8 ^ lane % 8) ^ i * 2);
            mu_ptx_ldmatrix_x4_trans(r, side + (at + half * 16) * LINE_BYTES + piece * PIECE_BYTES);
        }
    }
};

template <int KIND> struct mma_of {
    typedef mma_side<KIND != GRADIENT, MMA_HIGH> A;
    typedef mma_side<KIND == UP || KIND == DOWN, MMA_WIDE> B;
    static const int STAGE_BYTES = A::BYTES + B::BYTES, WIDTH = KIND == UP ? MMA_WIDE / 2 : MMA_WIDE;

    static __device__ __forceinline__ int tiles(const product<bf16> &p) { return count_tiles<KIND, MMA_HIGH, WIDTH>(p); }
    static __device__ __forceinline__ tile_place place(const product<bf16> &p, int tile) {
        return place_of<KIND, MMA_HIGH, WIDTH>(p, tile);
    }
    static __device__ __forceinline__ int steps(const product<bf16> &p, tile_place at) {
        if (KIND == GRADIENT) return tiles_of(at.end - at.first, MMA_STEP);
        return tiles_of(p.K, MMA_STEP) << (KIND == BACK && p.both);
    }
};

/* ------------------------------------------------------------------ the copies, ahead of the sums */
static __device__ __forceinline__ void copy_piece(unsigned to, const bf16 *base, int64_t offset, bool there) {
    mu_ptx_cp_async_16(to, there ? base + offset : base, there ? PIECE_BYTES : 0);
}

/* The next copy: a step of a tile, and the rows of this thread's lines that use an index (-1: none). */
template <int KIND> struct ahead {
    typedef typename mma_of<KIND>::A A;
    typedef typename mma_of<KIND>::B B;
    int tile, step, steps;                      /* steps 0: no more */
    tile_place at;
    int32_t row[A::COPIES > B::COPIES ? A::COPIES : B::COPIES];

    __device__ __forceinline__ void find_tile(const product<bf16> &p) {
        for (steps = step = 0; !steps && tile < mma_of<KIND>::tiles(p); tile += (int)gridDim.x) {
            at = mma_of<KIND>::place(p, tile);
            steps = mma_of<KIND>::steps(p, at);
        }
        if (steps) find_rows(p);
    }

    /* Read one step before they are needed. Of a gradient's sides one has an index at most. */
    __device__ __forceinline__ void find_rows(const product<bf16> &p) {
        if (KIND == GRADIENT && !p.a0.index) find_lines<B>(p.a1.index, step * MMA_STEP);
        else find_lines<A>(p.a0.index, KIND == GRADIENT ? step * MMA_STEP : 0);
    }
    template <typename SIDE> __device__ __forceinline__ void find_lines(const int32_t *index, int first) {
#pragma unroll
        for (int j = 0; j < SIDE::COPIES; j++) {
            int r = at.first + first + SIDE::line(j);
            row[j] = r >= at.end ? -1 : index ? index[r] : r;
        }
    }

    /* of a gradient, whose terms are rows */
    template <typename SIDE>
    __device__ __forceinline__ void copy_terms(const grouped_rows<bf16> &from, int column, int width, unsigned to) const {
        int i = column + SIDE::column();
#pragma unroll
        for (int j = 0; j < SIDE::COPIES; j++) {
            int r = at.first + step * MMA_STEP + SIDE::line(j);
            copy_piece(to + SIDE::place(j), from.at, (int64_t)(from.index ? row[j] : r) * from.ld + i, r < at.end && i < width);
        }
    }

    __device__ __forceinline__ void copy_rows(const product<bf16> &p, bool second, int first, unsigned to) const {
        const bf16 *from = second ? p.a1.at : p.a0.at;
        int64_t ld = second ? p.a1.ld : p.a0.ld;
        int k = first + A::column();
#pragma unroll
        for (int j = 0; j < A::COPIES; j++) copy_piece(to + A::place(j), from, row[j] * ld + k, row[j] >= 0 && k < p.K);
    }

    __device__ __forceinline__ void copy_weights(const product<bf16> &p, bool second, int first, unsigned to) const {
        if (KIND == UP) second = B::line(0) / 8 % 2;
        const bf16 *w = (second ? p.w1 : p.w0) + (int64_t)at.expert * p.N * p.K;
#pragma unroll
        for (int j = 0; j < B::COPIES; j++) {
            int line = B::line(j), n = B::ALONG ? line : B::column(), k = first + (B::ALONG ? B::column() : line);
            n = at.column + (KIND == UP ? n / 16 * 8 + n % 8 : n);
            copy_piece(to + B::place(j), w, B::ALONG ? (int64_t)n * p.K + k : (int64_t)k * p.N + n, n < p.N && k < p.K);
        }
    }

    /* Starts the copy of a step to a stage, if there is one left, and advances to the next. */
    __device__ __forceinline__ void copy(const product<bf16> &p, unsigned stage) {
        if (steps) {
            if constexpr (KIND == GRADIENT) {
                copy_terms<A>(p.a0, at.row, p.M, stage);
                copy_terms<B>(p.a1, at.column, p.N, stage + A::BYTES);
            } else {
                int half = tiles_of(p.K, MMA_STEP);
                bool second = KIND == BACK && step >= half;
                int first = (second ? step - half : step) * MMA_STEP;
                copy_rows(p, second, first, stage);
                copy_weights(p, second, first, stage + A::BYTES);
            }
            if (++step == steps) find_tile(p);
            else if (KIND == GRADIENT) find_rows(p);
        }
        mu_ptx_cp_async_commit();
    }
};

/* ------------------------------------------------------------------ the sums of a warp's 64 x 64: tiles of 16 x 8 */
static const int M_TILES = WARP_TILE / 16, N_TILES = WARP_TILE / 8;

struct warp_place { int m, n, lane; };                  /* which 64 rows and columns */
struct fragments { unsigned a[M_TILES][4], b[N_TILES / 2][4]; };
typedef float warp_sums[M_TILES][N_TILES][4];

template <int KIND>
static __device__ __forceinline__ void load_fragments(fragments &f, const warp_place &w, unsigned stage, int half) {
    typedef mma_of<KIND> of;
    bool upper = w.lane / 16, odd = w.lane / 8 % 2;
#pragma unroll
    for (int i = 0; i < M_TILES; i++) of::A::load_16(f.a[i], stage, w.m, w.lane, odd, upper, i, half);
#pragma unroll
    for (int j = 0; j < N_TILES / 2; j++) of::B::load_16(f.b[j], stage + of::A::BYTES, w.n, w.lane, upper, odd, j, half);
}

static __device__ __forceinline__ void add_products(warp_sums &sums, const fragments &f) {
#pragma unroll
    for (int i = 0; i < M_TILES; i++)
#pragma unroll
        for (int j = 0; j < N_TILES; j++) mu_ptx_mma_bf16(sums[i][j], f.a[i], f.b[j / 2] + j % 2 * 2);
}

/* ------------------------------------------------------------------ the end of a tile
 * Of a row, a lane has columns c and c+1 of each 8 (c = 2 (lane % 4)): of four of these groups of 8, lane q of a quad gets all
 * of the q-th, so that it writes 16 bytes, and a quad 64: a transposition of 4 x 4 pairs, in steps between two lanes. */
static __device__ __forceinline__ void eight_of_quad(float (&x)[4][2], int lane, float (&eight)[8]) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int pair = 0; pair < 2; pair++) {
                if (i & step) continue;
                bool upper = lane & step;
                float got = __shfl_xor_sync(ALL_LANES, upper ? x[i][pair] : x[i + step][pair], step);
                x[i][pair] = upper ? got : x[i][pair];
                x[i + step][pair] = upper ? x[i + step][pair] : got;
            }
#pragma unroll
    for (int i = 0; i < 8; i++) eight[i] = x[i / 2][i % 2];
}

/* 32 columns of one row from `column` on; for UP both results. */
template <int KIND, typename Epilogue>
static __device__ __forceinline__ float finish_32(const Epilogue &e, const float (*sums)[4], int upper, int lane, int64_t row,
                                                  int column, bool inside, int N) {
    const int OUTPUTS = KIND == UP ? 2 : 1;
    float v[OUTPUTS][8];
#pragma unroll
    for (int w = 0; w < OUTPUTS; w++) {
        float x[4][2];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i][0] = sums[i * OUTPUTS + w][upper * 2], x[i][1] = sums[i * OUTPUTS + w][upper * 2 + 1];
        eight_of_quad(x, lane, v[w]);
    }
    column += lane % 4 * 8;
    return inside && column < N ? e(row, column, v) : 0;
}

template <int KIND, typename Epilogue>
static __device__ __forceinline__ void finish_product(const product<bf16> &p, const Epilogue &e, int lane, tile_place at,
                                                      const warp_sums &sums) {
#pragma unroll
    for (int i = 0; i < M_TILES; i++) {
#pragma unroll
        for (int upper = 0; upper < 2; upper++) {
            int row = at.first + i * 16 + upper * 8 + lane / 4;
            float line = 0;
#pragma unroll
            for (int g = 0; g < (KIND == UP ? 1 : 2); g++)
                line += finish_32<KIND>(e, sums[i] + g * 4, upper, lane, row, at.column + g * 32, row < at.end, p.N);
            if constexpr (Epilogue::SUMS) {
                line = lanes_sum(line, 4);
                if (lane % 4 == 0 && row < at.end) e.sum(row, at.column / SUMMED, line);
            }
        }
    }
}

/* Two columns per lane: 32 bytes of fp32 per quad. */
template <typename Epilogue>
static __device__ __forceinline__ void finish_gradient(const product<bf16> &p, const Epilogue &e, int lane, tile_place at,
                                                       const warp_sums &sums) {
#pragma unroll
    for (int i = 0; i < M_TILES; i++)
#pragma unroll
        for (int upper = 0; upper < 2; upper++)
#pragma unroll
            for (int j = 0; j < N_TILES; j++) {
                int m = at.row + i * 16 + upper * 8 + lane / 4, n = at.column + j * 8 + lane % 4 * 2;
                float v[1][2] = { { sums[i][j][upper * 2], sums[i][j][upper * 2 + 1] } };
                if (m < p.M && n < p.N) e((int64_t)at.expert * p.M + m, n, v);
            }
}

/* ------------------------------------------------------------------ the kernel */
/* A warp's part of a tile, and whether it contains any result. */
template <int KIND> static __device__ __forceinline__ bool part_of(const product<bf16> &p, const warp_place &w, tile_place *at) {
    at->row += w.m * WARP_TILE, at->column += w.n * (mma_of<KIND>::WIDTH / WARPS_WIDE);
    if (KIND != GRADIENT) at->first += w.m * WARP_TILE;
    return (KIND == GRADIENT ? at->row < p.M : at->first < at->end) && at->column < p.N;
}

/* Waits until this block's oldest step has arrived and all warps have read the one before it. */
static __device__ __forceinline__ void wait_for_step() {
    mu_ptx_cp_async_wait<MMA_STAGES - 2>();
    __syncthreads();
}

template <int KIND, typename Epilogue>
static __global__ void __launch_bounds__(MMA_THREADS, 1) mma_product(product<bf16> p, Epilogue e) {
    typedef mma_of<KIND> of;
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    unsigned shared = mu_ptx_shared(dynamic_shared), stage = shared, last = shared + (MMA_STAGES - 1) * of::STAGE_BYTES;
    int warp = __shfl_sync(ALL_LANES, (int)threadIdx.x / WARP, 0);      /* tells the compiler that it is uniform */
    warp_place w = { warp / WARPS_WIDE, warp % WARPS_WIDE, (int)threadIdx.x % WARP };
    ahead<KIND> next = {};
    next.tile = (int)blockIdx.x;
    next.find_tile(p);
    for (unsigned to = shared; to < last; to += of::STAGE_BYTES) next.copy(p, to);
    wait_for_step();
    for (int tile = (int)blockIdx.x; tile < of::tiles(p); tile += (int)gridDim.x) {
        warp_sums sums = {};
        fragments f[2];                                     /* of the two halves of a step */
        tile_place at = of::place(p, tile);
        int steps = of::steps(p, at);
        bool busy = part_of<KIND>(p, w, &at);
        if (steps) load_fragments<KIND>(f[0], w, stage, 0);
        for (; steps; steps--) {
            next.copy(p, stage == shared ? last : stage - of::STAGE_BYTES);
            load_fragments<KIND>(f[1], w, stage, 1);
            if (busy) add_products(sums, f[0]);
            stage = stage == last ? shared : stage + of::STAGE_BYTES;
            wait_for_step();
            if (steps > 1) load_fragments<KIND>(f[0], w, stage, 0);
            if (busy) add_products(sums, f[1]);
        }
        if (!busy) continue;
        at = of::place(p, tile);                      /* recomputed, to save registers above */
        part_of<KIND>(p, w, &at);
        if constexpr (KIND == GRADIENT) finish_gradient(p, e, w.lane, at, sums);
        else finish_product<KIND>(p, e, w.lane, at, sums);
    }
}

template <int KIND, typename Epilogue>
static void multiply_mma(mu_device *dev, const mu_experts_shape *s, const product<bf16> &p, Epilogue e) {
    typedef mma_of<KIND> of;
    launch(dev, grid_for<KIND, MMA_HIGH, of::WIDTH>(dev, s, p, 1), MMA_THREADS, MMA_STAGES * of::STAGE_BYTES,
           mma_product<KIND, Epilogue>, p, e);
}
#endif
