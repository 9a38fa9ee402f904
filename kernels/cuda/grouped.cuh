/* grouped.cuh - products of rows grouped by expert with their expert's weights: definitions, and tiles of work.
 *
 * Rows offsets[i] .. offsets[i+1]-1 belong to expert i; the offsets are only on the device. Four kinds of
 * product, and two kernels for all of them, each in tiles of the result:
 *     grouped_plain.cuh   any type, sizes and addresses
 *     grouped_mma.cuh     bf16 on tensor cores; see can_multiply()
 * Either passes its sums and their positions to an epilogue, which computes and writes the results. */
#ifndef MUSTER_KERNELS_CUDA_GROUPED_H
#define MUSTER_KERNELS_CUDA_GROUPED_H
#include "kernels/cuda/cuda.h"

/* For row r of expert i, K long and N wide; a row of `a` is given by its index if there is one:
 *     UP        two results  a0[r] w0_i^T, a0[r] w1_i^T       w [experts, N, K]
 *     DOWN      a0[r] w0_i^T
 *     BACK      a0[r] w0_i, with `both` + a1[r] w1_i          w [experts, K, N]
 *     GRADIENT  of expert i, M high: sum over its rows r of a0[r]^T a1[r] */
enum product_kind { UP, DOWN, BACK, GRADIENT };

template <typename T> struct grouped_rows { const T *at; int64_t ld; const int32_t *index; };

struct row_tile { int32_t expert, first, end; };    /* rows first .. end-1 */

template <typename T> struct product {
    grouped_rows<T> a0, a1;
    const T *w0, *w1;
    int M, N, K;
    bool both;
    /* rows per expert: tiles of the kernel's height (all kinds but GRADIENT), or the offsets (GRADIENT) */
    const row_tile *tiles;
    const int32_t *n_tiles;
    const int64_t *offsets;
    int experts;
};

/* An epilogue is called as
 *     float e(int64_t row, int64_t column, const float (&v)[OUTPUTS][n])
 * with n neighbouring values of each result, aligned to n; row is among all rows, or i*M + m of a gradient. Its return values
 * are summed along the row, over SUMMED columns from a multiple of SUMMED on, and passed to
 *     void e.sum(int64_t row, int64_t part, float)            if Epilogue::SUMS. */
static const int SUMMED = 64;

/* ------------------------------------------------------------------ the tiles of the rows, listed once for several products */
/* The first of n ascending numbers that is above x; there is one. */
static __device__ int first_above(int n, const int32_t *numbers, int x) {
    int low = 0;
    while (n > 1) {
        int half = n / 2;
        if (numbers[low + half - 1] > x) n = half;
        else low += half, n -= half;
    }
    return low;
}

/* One block: tiles of at most `height` rows, expert by expert, and their number. */
static __global__ void list_row_tiles(int experts, const int64_t *offsets, int height, row_tile *tiles, int32_t *n_tiles) {
    static __shared__ int32_t ends[THREADS];        /* number of tiles up to and including an expert, for THREADS experts */
    int t = (int)threadIdx.x, before = 0;
    for (int base = 0; base < experts; base += THREADS) {
        int64_t rows = base + t < experts ? offsets[base + t + 1] - offsets[base + t] : 0;
        ends[t] = (int32_t)((rows + height - 1) / height);
        for (int step = 1; step < THREADS; step *= 2) {
            __syncthreads();
            int more = t >= step ? ends[t - step] : 0;
            __syncthreads();
            ends[t] += more;
        }
        __syncthreads();
        for (int at = t; at < ends[THREADS - 1]; at += THREADS) {
            int i = first_above(THREADS, ends, at);
            int64_t first = offsets[base + i] + (int64_t)(at - (i ? ends[i - 1] : 0)) * height, end = offsets[base + i + 1];
            tiles[before + at] = row_tile{ base + i, (int32_t)first, (int32_t)(first + height < end ? first + height : end) };
        }
        before += ends[THREADS - 1];
        __syncthreads();
    }
    if (t == 0) *n_tiles = before;
}

/* An upper bound for any groups. */
static int64_t most_row_tiles(const mu_experts_shape *s, int height) { return s->R / height + s->experts; }

/* A product of the experts' rows without its operands; the list is valid as long as `scratch`. */
template <typename T> static product<T> list_rows(mu_device *dev, cuda_scratch &scratch, const mu_experts_shape *s,
                                                  mu_mat offsets, int height) {
    product<T> p = {};
    row_tile *tiles = scratch.take<row_tile>(most_row_tiles(s, height));
    int32_t *n_tiles = scratch.take<int32_t>(1);
    p.tiles = tiles, p.n_tiles = n_tiles, p.offsets = typed<int64_t>(offsets).at, p.experts = (int)s->experts;
    launch(dev, 1, THREADS, 0, list_row_tiles, p.experts, p.offsets, height, tiles, n_tiles);
    return p;
}

/* ------------------------------------------------------------------ the order of a product's tiles
 * Blocks take every gridDim.x-th tile, so concurrent ones are neighbours: a few columns of weights and a few tiles of rows,
 * which they read from the L2 cache. */
static const int NEIGHBOURS = 16;

static __host__ __device__ __forceinline__ int tiles_of(int n, int each) { return (n + each - 1) / each; }

struct tile_place { int expert, first, end, row, column; };     /* rows that are read; first row (of a gradient) and column of the result */

/* Tile `at` of high x wide ones: down a column of NEIGHBOURS of them, then the next column. */
static __device__ __forceinline__ void neighbours(int at, int high, int wide, int *row, int *column) {
    int band = at / (NEIGHBOURS * wide), inside = at - band * NEIGHBOURS * wide;
    int height = min(NEIGHBOURS, high - band * NEIGHBOURS);
    *column = inside / height;
    *row = band * NEIGHBOURS + inside - *column * height;
}

/* Number of tiles down a column, of all rows or of one expert's gradient; and of all tiles. */
template <int KIND, int HEIGHT, typename T> static __device__ __forceinline__ int tiles_high(const product<T> &p) {
    return KIND == GRADIENT ? tiles_of(p.M, HEIGHT) : *p.n_tiles;
}
template <int KIND, int HEIGHT, int WIDTH, typename T> static __device__ __forceinline__ int count_tiles(const product<T> &p) {
    return (KIND == GRADIENT ? p.experts : 1) * tiles_high<KIND, HEIGHT>(p) * tiles_of(p.N, WIDTH);
}

template <int KIND, int HEIGHT, int WIDTH, typename T>
static __device__ __forceinline__ tile_place place_of(const product<T> &p, int at) {
    int high = tiles_high<KIND, HEIGHT>(p), wide = tiles_of(p.N, WIDTH), row, column;
    int expert = KIND == GRADIENT ? at / (high * wide) : 0;
    neighbours(at - expert * high * wide, high, wide, &row, &column);
    if (KIND == GRADIENT)
        return tile_place{ expert, (int)p.offsets[expert], (int)p.offsets[expert + 1], row * HEIGHT, column * WIDTH };
    row_tile t = p.tiles[row];
    return tile_place{ t.expert, t.first, t.end, 0, column * WIDTH };
}

/* Number of blocks: as many as run concurrently, or as there can be tiles. */
template <int KIND, int HEIGHT, int WIDTH, typename T>
static int64_t grid_for(mu_device *dev, const mu_experts_shape *s, const product<T> &p, int64_t at_once) {
    int64_t high = KIND == GRADIENT ? s->experts * tiles_of(p.M, HEIGHT) : most_row_tiles(s, HEIGHT);
    int64_t most = high * tiles_of(p.N, WIDTH);
    MU_CHECK(most <= INT32_MAX && s->R <= INT32_MAX - HEIGHT,
             "grouped product: %lld tiles of %lld rows are too many", (long long)most, (long long)s->R);
    return most < at_once * cuda_processors(dev) ? most : at_once * cuda_processors(dev);
}

#endif
