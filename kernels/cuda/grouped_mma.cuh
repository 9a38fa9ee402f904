/* grouped_mma.cuh - grouped products (grouped.cuh) in bf16 on tensor cores, added up in fp32.
 *
 * A block of four warps makes tiles of 128 x 128, each warp 64 x 64 of it, STEP terms at a time. It is started once for each
 * place on the GPU and takes tile after tile. Terms travel ahead of the sums by cp.async through STAGES stages of shared
 * memory, over the ends of tiles too: while the last tile's sums are finished, the next one's first terms arrive. Rows are
 * gathered through their index on that way.
 *
 * A stage has two sides, A (rows of the result) and B (its columns), 128 x STEP values each in pieces of 8 (16 bytes):
 *     ALONG    terms are neighbours in memory: value (i, k) in row i of 4 pieces; piece k/8 stands at k/8 ^ (i/2 % 4)
 *     ACROSS   rows or columns are:            value (i, k) in row k of 16 pieces; piece i/8 stands at i/8 ^ (k % 8)
 * The exclusive or puts the 8 pieces that ldmatrix reads at a time, and those that 8 threads write, into different banks.
 * Of UP, a warp's 64 columns of B are 8 of w0, 8 of w1, 8 of w0, ...: both results of a column are in one thread. */
#ifndef MUSTER_KERNELS_CUDA_GROUPED_MMA_H
#define MUSTER_KERNELS_CUDA_GROUPED_MMA_H
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/ptx.h"

static const int MMA_TILE = 128, MMA_STEP = 32, MMA_STAGES = 4, MMA_THREADS = 128, MMA_BLOCKS = 2, PIECE = 8;
static const int SIDE_BYTES = MMA_TILE * MMA_STEP * 2, STAGE_BYTES = 2 * SIDE_BYTES;
static const int ALONG_BYTES = MMA_STEP * 2, ACROSS_BYTES = MMA_TILE * 2, PIECE_BYTES = PIECE * 2;
static const int PIECES = 4, PIECES_BYTES = MMA_THREADS * PIECE_BYTES;     /* a thread's of a side, and how far apart they are */

/* How the sides lie in memory, and how many columns of the result a tile has, of which UP has two. */
template <int KIND> struct mma_layout {
    static const bool A_ALONG = KIND != GRADIENT, B_ALONG = KIND == UP || KIND == DOWN;
    static const int WIDTH = KIND == UP ? MMA_TILE / 2 : MMA_TILE;
};

/* Does an operand begin where 16 bytes are read at a time? */
static bool in_pieces(mu_mat m) { return (uintptr_t)m.data % PIECE_BYTES == 0; }

template <int KIND> static __device__ __forceinline__ int steps_of(const product<bf16> &p, tile_place at) {
    if (KIND == GRADIENT) return tiles_of(at.end - at.first, MMA_STEP);
    return tiles_of(p.K, MMA_STEP) << (KIND == BACK && p.both);
}

/* ------------------------------------------------------------------ the copies, which run ahead
 * Of a side's 512 pieces this thread copies four: ALONG piece t%4 of rows t/4 + 32 j, ACROSS piece t%16 of terms t/16 + 8 j. */
template <bool ALONG> static __device__ __forceinline__ unsigned piece_place() {
    unsigned t = threadIdx.x, row = t / (ALONG ? 4 : 16), piece = t % (ALONG ? 4 : 16);
    return ALONG ? row * ALONG_BYTES + (piece ^ (row / 2 % 4)) * PIECE_BYTES : row * ACROSS_BYTES + (piece ^ row % 8) * PIECE_BYTES;
}

static __device__ __forceinline__ void copy_piece(unsigned to, const bf16 *base, int64_t offset, bool there) {
    mu_ptx_cp_async_16(to, there ? base + offset : base, there ? PIECE_BYTES : 0);
}

/* What is copied next: a step of a tile, and where this thread's rows of A are, or the terms of a gradient (-1: none). */
template <int KIND> struct ahead {
    int tile, step, steps;                      /* steps 0: nothing is left */
    tile_place at;
    int32_t row[PIECES];

    __device__ __forceinline__ void find_tile(const product<bf16> &p, int high, int tiles) {
        for (steps = step = 0; !steps && tile < tiles; tile += (int)gridDim.x) {
            at = place_of<KIND, MMA_TILE, mma_layout<KIND>::WIDTH>(p, high, tile);
            steps = steps_of<KIND>(p, at);
        }
        if (steps) find_rows(p);
    }

    /* Read one step before they are needed. Of a gradient's sides one has an index at most. */
    __device__ __forceinline__ void find_rows(const product<bf16> &p) {
        const int32_t *index = KIND == GRADIENT && !p.a0.index ? p.a1.index : p.a0.index;
#pragma unroll
        for (int j = 0; j < PIECES; j++) {
            int r = KIND == GRADIENT ? term(j) : at.first + (int)threadIdx.x / 4 + 32 * j;
            row[j] = r >= at.end ? -1 : index ? index[r] : r;
        }
    }

    /* the row of the experts' that is this thread's j-th term of a gradient's step */
    __device__ __forceinline__ int term(int j) const { return at.first + step * MMA_STEP + (int)threadIdx.x / 16 + 8 * j; }

    __device__ __forceinline__ void copy_gradient(const grouped_rows<bf16> &from, int column, int width, unsigned to) const {
        int i = column + (int)threadIdx.x % 16 * PIECE;
#pragma unroll
        for (int j = 0; j < PIECES; j++) {
            int64_t r = from.index ? row[j] : term(j);
            copy_piece(to + j * PIECES_BYTES, from.at, r * from.ld + i, row[j] >= 0 && i < width);
        }
    }

    __device__ __forceinline__ void copy_product(const product<bf16> &p, unsigned a, unsigned b) const {
        int t = (int)threadIdx.x, half = tiles_of(p.K, MMA_STEP);
        bool second = KIND == BACK && step >= half;
        int first = (second ? step - half : step) * MMA_STEP, k = first + t % 4 * PIECE;
        const bf16 *from = second ? p.a1.at : p.a0.at;
        int64_t ld = second ? p.a1.ld : p.a0.ld, weights = (int64_t)at.expert * p.N * p.K;
        const bf16 *w = (second || (KIND == UP && t / 32 % 2) ? p.w1 : p.w0) + weights;
        int column = at.column + (KIND == UP ? t / 64 * 8 + t / 4 % 8 : KIND == DOWN ? t / 4 : t % 16 * PIECE);
#pragma unroll
        for (int j = 0; j < PIECES; j++) {
            copy_piece(a + j * PIECES_BYTES, from, row[j] * ld + k, row[j] >= 0 && k < p.K);
            int n = column + (KIND == UP ? 16 : KIND == DOWN ? 32 : 0) * j, l = KIND == BACK ? first + t / 16 + 8 * j : k;
            int64_t offset = KIND == BACK ? (int64_t)l * p.N + n : (int64_t)n * p.K + l;
            copy_piece(b + j * PIECES_BYTES, w, offset, n < p.N && l < p.K);
        }
    }

    /* Starts the copy of a step to a stage, unless nothing is left, and goes on to the next. */
    __device__ __forceinline__ void copy(const product<bf16> &p, int high, int tiles, unsigned stage) {
        if (steps) {
            unsigned a = stage + piece_place<mma_layout<KIND>::A_ALONG>();
            unsigned b = stage + SIDE_BYTES + piece_place<mma_layout<KIND>::B_ALONG>();
            if constexpr (KIND == GRADIENT) copy_gradient(p.a0, at.row, p.M, a), copy_gradient(p.a1, at.column, p.N, b);
            else copy_product(p, a, b);
            if (++step == steps) find_tile(p, high, tiles);
            else if (KIND == GRADIENT) find_rows(p);
        }
        mu_ptx_cp_async_commit();
    }
};

/* ------------------------------------------------------------------ the sums */
static const int M_TILES = 4, N_TILES = 8;             /* a warp's 64 x 64: tiles of 16 x 8, 16 terms an instruction */

struct warp_place { int m, n, lane; };                  /* its 64 rows and columns: 0 or 1 */
struct fragments { unsigned a[M_TILES][4], b[N_TILES / 2][4]; };
typedef float warp_sums[M_TILES][N_TILES][4];

/* Where this lane's row of 16 bytes is that ldmatrix reads for the first 16 rows or columns of the warp's 64; rows and
 * terms 8 and on are those of the lanes that say so. */
template <bool ALONG> static __device__ __forceinline__ unsigned matrix_place(int part, int lane, bool row_8, bool term_8) {
    int row = part * 64 + row_8 * 8 + lane % 8, term = term_8 * 8 + lane % 8;
    return ALONG ? row * ALONG_BYTES + (term_8 ^ (row / 2 % 4)) * PIECE_BYTES
                 : term * ACROSS_BYTES + part * 64 * 2 + (row_8 ^ lane % 8) * PIECE_BYTES;
}

/* The i-th 16 rows or columns, terms `half` * 16 and on. */
template <bool ALONG> static __device__ __forceinline__ void load_16(unsigned r[4], unsigned side, unsigned place, int i, int half) {
    if (ALONG) mu_ptx_ldmatrix_x4(r, side + (place ^ half * 2 * PIECE_BYTES) + i * 16 * ALONG_BYTES);
    else mu_ptx_ldmatrix_x4_trans(r, side + (place ^ i * 2 * PIECE_BYTES) + half * 16 * ACROSS_BYTES);
}

template <int KIND>
static __device__ __forceinline__ void load_fragments(fragments &f, const warp_place &w, unsigned stage, int half) {
    const bool A = mma_layout<KIND>::A_ALONG, B = mma_layout<KIND>::B_ALONG;
    unsigned a = matrix_place<A>(w.m, w.lane, w.lane / 8 % 2, w.lane / 16);
    unsigned b = matrix_place<B>(w.n, w.lane, w.lane / 16, w.lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < M_TILES; i++) load_16<A>(f.a[i], stage, a, i, half);
#pragma unroll
    for (int j = 0; j < N_TILES / 2; j++) load_16<B>(f.b[j], stage + SIDE_BYTES, b, j, half);
}

static __device__ __forceinline__ void add_products(warp_sums &sums, const fragments &f) {
#pragma unroll
    for (int i = 0; i < M_TILES; i++)
#pragma unroll
        for (int j = 0; j < N_TILES; j++) mu_ptx_mma_bf16(sums[i][j], f.a[i], f.b[j / 2] + j % 2 * 2);
}

/* ------------------------------------------------------------------ the end of a tile
 * Of a row, a lane has columns c and c+1 of each 8 (c = 2 (lane % 4)): of four of these 8, x, its quad's lane q gets all of
 * the q-th, so that it writes 16 bytes, and a quad 64. A transposition of 4 x 4 pairs, each step between two lanes. */
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

/* 32 columns of one row; of UP both results. The first 8 columns of the quad's 32 are `column`. */
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
static __device__ __forceinline__ void finish_product(const product<bf16> &p, const Epilogue &e, const warp_place &w, tile_place at,
                                                      const warp_sums &sums) {
    const int GROUPS = KIND == UP ? 1 : 2;              /* of 32 columns */
    int first = at.column + w.n * GROUPS * 32;
#pragma unroll
    for (int i = 0; i < M_TILES; i++)
#pragma unroll
        for (int upper = 0; upper < 2; upper++) {
            int row = at.first + w.m * 64 + i * 16 + upper * 8 + w.lane / 4;
            float line = 0;
#pragma unroll
            for (int g = 0; g < GROUPS; g++)
                line += finish_32<KIND>(e, sums[i] + g * 4, upper, w.lane, row, first + g * 32, row < at.end, p.N);
            if constexpr (Epilogue::SUMS) {
                line += __shfl_xor_sync(ALL_LANES, line, 1);
                line += __shfl_xor_sync(ALL_LANES, line, 2);
                if (w.lane % 4 == 0 && row < at.end && first < p.N) e.sum(row, first / SUMMED, line);
            }
        }
}

/* Two columns a lane, a quad's are 32 bytes of fp32. */
template <typename Epilogue>
static __device__ __forceinline__ void finish_gradient(const product<bf16> &p, const Epilogue &e, const warp_place &w,
                                                       tile_place at, const warp_sums &sums) {
#pragma unroll
    for (int i = 0; i < M_TILES; i++)
#pragma unroll
        for (int upper = 0; upper < 2; upper++)
#pragma unroll
            for (int j = 0; j < N_TILES; j++) {
                int m = at.row + w.m * 64 + i * 16 + upper * 8 + w.lane / 4, n = at.column + w.n * 64 + j * 8 + w.lane % 4 * 2;
                float v[1][2] = { { sums[i][j][upper * 2], sums[i][j][upper * 2 + 1] } };
                if (m < p.M && n < p.N) e((int64_t)at.expert * p.M + m, n, v);
            }
}

/* ------------------------------------------------------------------ the kernel */
static __device__ __forceinline__ unsigned next_stage(unsigned stage) {
    return stage == (MMA_STAGES - 1) * STAGE_BYTES ? 0 : stage + STAGE_BYTES;
}

/* Until this block's oldest step is there, and everybody has read the one before it. */
static __device__ __forceinline__ void wait_for_step() {
    mu_ptx_cp_async_wait<MMA_STAGES - 2>();
    __syncthreads();
}

template <int KIND, typename Epilogue>
static __global__ void __launch_bounds__(MMA_THREADS, MMA_BLOCKS) mma_product(product<bf16> p, Epilogue e) {
    extern __shared__ unsigned char dynamic_shared[];
    unsigned shared = mu_ptx_shared(dynamic_shared), stage = 0, free_stage = (MMA_STAGES - 1) * STAGE_BYTES;
    const int HEIGHT = MMA_TILE, WIDTH = mma_layout<KIND>::WIDTH, warp = (int)threadIdx.x / WARP;
    int high = tiles_high<KIND, HEIGHT>(p), tiles = count_tiles<KIND, WIDTH>(p, high);
    warp_place w = { warp / 2, warp % 2, (int)threadIdx.x % WARP };
    ahead<KIND> next = {};
    next.tile = (int)blockIdx.x;
    next.find_tile(p, high, tiles);
    for (unsigned s = 0; s < free_stage; s += STAGE_BYTES) next.copy(p, high, tiles, shared + s);
    wait_for_step();
    for (int tile = (int)blockIdx.x; tile < tiles; tile += (int)gridDim.x) {
        warp_sums sums = {};
        fragments f[2];                                     /* of the two halves of a step */
        int steps = steps_of<KIND>(p, place_of<KIND, HEIGHT, WIDTH>(p, high, tile));
        if (steps) load_fragments<KIND>(f[0], w, shared + stage, 0);
        for (; steps; steps--) {
            next.copy(p, high, tiles, shared + free_stage);
            load_fragments<KIND>(f[1], w, shared + stage, 1);
            add_products(sums, f[0]);
            free_stage = stage, stage = next_stage(stage);
            wait_for_step();
            if (steps > 1) load_fragments<KIND>(f[0], w, shared + stage, 0);
            add_products(sums, f[1]);
        }
        tile_place at = place_of<KIND, HEIGHT, WIDTH>(p, high, tile);      /* again: registers are dear above */
        if constexpr (KIND == GRADIENT) finish_gradient(p, e, w, at, sums);
        else finish_product<KIND>(p, e, w, at, sums);
    }
}

template <int KIND, typename Epilogue>
static void multiply_mma(mu_device *dev, const mu_experts_shape *s, const product<bf16> &p, Epilogue e) {
    launch(dev, grid_for<KIND, MMA_TILE, mma_layout<KIND>::WIDTH>(dev, s, p, MMA_BLOCKS), MMA_THREADS, MMA_STAGES * STAGE_BYTES,
           mma_product<KIND, Epilogue>, p, e);
}
#endif
