/* grouped_plain.cuh - grouped products (grouped.cuh) of any type, sizes and addresses: 64 x 64 tiles through shared memory,
 * 4 x 4 sums per thread, in fp32. */
#ifndef MUSTER_KERNELS_CUDA_GROUPED_PLAIN_H
#define MUSTER_KERNELS_CUDA_GROUPED_PLAIN_H
#include "kernels/cuda/grouped.cuh"

static const int PLAIN_TILE = 64, PLAIN_STEP = 16, PLAIN_ACROSS = 16, PLAIN_EACH = PLAIN_TILE / PLAIN_ACROSS, PLAIN_BLOCKS = 2;
static_assert(THREADS == PLAIN_ACROSS * PLAIN_ACROSS && PLAIN_TILE == SUMMED, "a thread has 4 x 4 of a tile, a row is one sum");

/* PLAIN_STEP terms of a tile's sums; the padding of two puts the 16 terms and 2 positions that a warp writes into 32 banks. */
typedef float plain_side[PLAIN_STEP][PLAIN_TILE + 2];

/* side[k][i] = value(i, k), read along k, or along i if that is the order in memory */
template <bool ALONG_K, typename F> static __device__ __forceinline__ void fill_side(plain_side &side, F value) {
    for (int at = (int)threadIdx.x; at < PLAIN_STEP * PLAIN_TILE; at += THREADS) {
        int k = ALONG_K ? at % PLAIN_STEP : at / PLAIN_TILE, i = ALONG_K ? at / PLAIN_STEP : at % PLAIN_TILE;
        side[k][i] = value(i, k);
    }
}

template <typename T> static __device__ __forceinline__ float value_of(const grouped_rows<T> &a, int64_t r, int column) {
    return as_float(a.at[(a.index ? a.index[r] : r) * a.ld + column]);
}

/* Terms k .. k+15 of the sums of tile `at`, zero beyond their ends. The terms of BACK's second half follow the first's. */
template <int KIND, typename T>
static __device__ __forceinline__ void fill_sides(const product<T> &p, tile_place at, int k, plain_side &a, plain_side *b) {
    int64_t expert = (int64_t)at.expert * p.N * p.K;
    if constexpr (KIND == GRADIENT) {
        int left = at.end - at.first - k;
        int64_t r = (int64_t)at.first + k;
        fill_side<false>(a, [&](int i, int j) { return j < left && at.row + i < p.M ? value_of(p.a0, r + j, at.row + i) : 0; });
        fill_side<false>(b[0], [&](int i, int j) {
            return j < left && at.column + i < p.N ? value_of(p.a1, r + j, at.column + i) : 0;
        });
    } else {
        bool second = KIND == BACK && k >= p.K;
        const grouped_rows<T> rows = second ? p.a1 : p.a0;
        int from = second ? k - p.K : k, left = p.K - from;
        fill_side<true>(a, [&](int i, int j) {
            return j < left && at.first + i < at.end ? value_of(rows, at.first + i, from + j) : 0;
        });
        for (int which = 0; which < (KIND == UP ? 2 : 1); which++) {
            const T *w = (which || second ? p.w1 : p.w0) + expert;
            fill_side<KIND != BACK>(b[which], [&](int i, int j) {
                if (j >= left || at.column + i >= p.N) return 0.0f;
                int64_t n = at.column + i, term = from + j;
                return as_float(w[KIND == BACK ? term * p.N + n : n * p.K + term]);
            });
        }
    }
}

template <int OUTPUTS> struct plain_sums { float of[OUTPUTS][PLAIN_EACH][PLAIN_EACH]; };

template <int OUTPUTS>
static __device__ __forceinline__ void add_terms(plain_sums<OUTPUTS> &sums, const plain_side &a, const plain_side *b) {
    int x = (int)threadIdx.x % PLAIN_ACROSS, y = (int)threadIdx.x / PLAIN_ACROSS;
#pragma unroll
    for (int k = 0; k < PLAIN_STEP; k++)
#pragma unroll
        for (int w = 0; w < OUTPUTS; w++)
#pragma unroll
            for (int i = 0; i < PLAIN_EACH; i++)
#pragma unroll
                for (int j = 0; j < PLAIN_EACH; j++)
                    sums.of[w][i][j] += a[k][y * PLAIN_EACH + i] * b[w][k][x + j * PLAIN_ACROSS];
}

/* Passes the tile's sums to the epilogue. A thread has columns x, x + 16, ... of PLAIN_EACH rows: a warp writes neighbours. */
template <int KIND, int OUTPUTS, typename T, typename Epilogue>
static __device__ void finish_tile(const product<T> &p, const Epilogue &e, tile_place at, const plain_sums<OUTPUTS> &sums) {
    int x = (int)threadIdx.x % PLAIN_ACROSS, y = (int)threadIdx.x / PLAIN_ACROSS;
#pragma unroll
    for (int i = 0; i < PLAIN_EACH; i++) {
        int place = y * PLAIN_EACH + i;
        bool inside = KIND == GRADIENT ? at.row + place < p.M : at.first + place < at.end;
        int64_t row = KIND == GRADIENT ? (int64_t)at.expert * p.M + at.row + place : at.first + place;
        float line = 0;
#pragma unroll
        for (int j = 0; j < PLAIN_EACH; j++) {
            int column = at.column + x + j * PLAIN_ACROSS;
            float v[OUTPUTS][1];
#pragma unroll
            for (int w = 0; w < OUTPUTS; w++) v[w][0] = sums.of[w][i][j];
            if (inside && column < p.N) line += e(row, column, v);
        }
        if constexpr (Epilogue::SUMS) {
            line = lanes_sum(line, PLAIN_ACROSS);
            if (inside && x == 0) e.sum(row, at.column / SUMMED, line);
        }
    }
}

template <int KIND, typename T, typename Epilogue>
static __global__ void __launch_bounds__(THREADS, PLAIN_BLOCKS) plain_product(product<T> p, Epilogue e) {
    const int OUTPUTS = KIND == UP ? 2 : 1;
    static __shared__ plain_side a, b[OUTPUTS];
    int tiles = count_tiles<KIND, PLAIN_TILE, PLAIN_TILE>(p);
    for (int tile = (int)blockIdx.x; tile < tiles; tile += (int)gridDim.x) {
        tile_place at = place_of<KIND, PLAIN_TILE, PLAIN_TILE>(p, tile);
        plain_sums<OUTPUTS> sums = {};
        int halves = KIND == BACK && p.both ? 2 : 1, terms = KIND == GRADIENT ? at.end - at.first : p.K;
        for (int half = 0; half < halves; half++)
            for (int k = 0; k < terms; k += PLAIN_STEP) {
                fill_sides<KIND>(p, at, half * p.K + k, a, b);
                __syncthreads();
                add_terms(sums, a, b);
                __syncthreads();
            }
        finish_tile<KIND>(p, e, at, sums);
    }
}

template <int KIND, typename T, typename Epilogue>
static void multiply_plain(mu_device *dev, const mu_experts_shape *s, const product<T> &p, Epilogue e) {
    launch(dev, grid_for<KIND, PLAIN_TILE, PLAIN_TILE>(dev, s, p, PLAIN_BLOCKS), THREADS, 0, plain_product<KIND, T, Epilogue>, p, e);
}
#endif
