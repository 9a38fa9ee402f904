/* attention.cuh - shared by attention forward and backward; private to the two files.
 *
 * Both have two implementations. The plain kernels take any width, type, stride and alignment and accumulate in fp32: rows of
 * one operand are along a warp's lanes, rows of the other along its registers. The fast ones take bf16 of the widths of
 * with_head_width, with operands aligned to 16 bytes, and multiply with mma.sync: a block is four warps, a warp owns 16 M rows
 * of the scores and keeps their sums in registers, while the other side's tiles pass through shared memory.
 *
 * Tiles of keys begin at multiples of their length from a sequence's first key, and a key that a query does not see
 * changes none of its bits: maxima stay, sums get 0, factors are 1. */
#ifndef MUSTER_KERNELS_CUDA_ATTENTION_H
#define MUSTER_KERNELS_CUDA_ATTENTION_H
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.h"

static const double LOG2_E = 1.4426950408889634;
static const float LN_2 = 0.6931471805599453f;

enum { WARPS = 4, BLOCK = WARPS * WARP };

/* ------------------------------------------------------------------ plain: fp32 sums, any operands */
enum { EACH = 4, PLAIN_ROWS = WARPS * EACH, CHUNK = 64 };   /* rows per warp, per block; columns at once */

/* A block's shared memory; followed by the sums of its rows, [PLAIN_ROWS, d] each. */
typedef struct { float a[PLAIN_ROWS][CHUNK], b[WARP][CHUNK + 1], factor[PLAIN_ROWS][WARP]; } plain_shared;

static inline size_t plain_bytes(int64_t d, int sums) {
    return sizeof(plain_shared) + (size_t)(sums * PLAIN_ROWS * d) * sizeof(float);
}

/* Rows of one head: `count` of them exist, others read as zeros. */
template <typename T> struct head_rows {
    const T *at;
    int64_t ld;
    int count;
};

template <typename T>
static __device__ void load_chunk(head_rows<T> from, int rows, int64_t column, int width, float *to, int ld) {
    for (int i = (int)threadIdx.x; i < rows * width; i += BLOCK) {
        int r = i / width, c = i % width;
        to[r * ld + c] = r < from.count ? as_float(from.at[r * from.ld + column + c]) : 0;
    }
}

/* sum[i] = <row EACH*warp + i of a, row `lane` of b> */
template <typename T>
static __device__ void plain_products(head_rows<T> a, head_rows<T> b, int64_t d, plain_shared *w, float (&sum)[EACH]) {
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < EACH; i++) sum[i] = 0;
    for (int64_t at = 0; at < d; at += CHUNK) {
        int width = (int)min(d - at, (int64_t)CHUNK);
        __syncthreads();
        load_chunk(a, PLAIN_ROWS, at, width, &w->a[0][0], CHUNK);
        load_chunk(b, WARP, at, width, &w->b[0][0], CHUNK + 1);
        __syncthreads();
        for (int c = 0; c < width; c++)
        #pragma unroll
    for (int i = 0; i < EACH; i++) sum[i] += w->a[warp * EACH + i][c] * w->b[lane][c];
    }
}

/* Row EACH*warp + i of to[PLAIN_ROWS, d] += sum over lanes j of j's factor[i] * row j of b. */
template <typename T>
static __device__ void plain_add(const float (&factor)[EACH], head_rows<T> b, int64_t d, plain_shared *w, float *to) {
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    __syncwarp();                           /* lanes of this warp may still read the previous factors */
#pragma unroll
    for (int i = 0; i < EACH; i++) w->factor[warp * EACH + i][lane] = factor[i];
    for (int64_t at = 0; at < d; at += CHUNK) {
        int width = (int)min(d - at, (int64_t)CHUNK);
        __syncthreads();
        load_chunk(b, WARP, at, width, &w->b[0][0], CHUNK + 1);
        __syncthreads();
        for (int c = lane; c < width; c += WARP)
        #pragma unroll
    for (int i = 0; i < EACH; i++) {
                float *y = to + (warp * EACH + i) * d + at + c, sum = *y;
                for (int j = 0; j < WARP; j++) sum += w->factor[warp * EACH + i][j] * w->b[j][c];
                *y = sum;
            }
    }
}

/* ------------------------------------------------------------------ fast: tiles of bf16 in shared memory
 * A row of D is D/8 chunks of 16 bytes. ldmatrix reads one chunk of eight rows at a time, which should be in all 32
 * banks: the chunks are swizzled within groups of K, the largest power of two (at most 8) that divides D/8. Tiles are
 * aligned to 128 bytes. */
template <int D> struct chunks {
    enum { LOWEST = D / 8 & -(D / 8), K = LOWEST < 8 ? LOWEST : 8 };
};

template <int D> static __device__ __forceinline__ unsigned place(unsigned tile, int row, int chunk) {
    const int K = chunks<D>::K;
    return tile + (unsigned)(row * 2 * D + (chunk ^ row / (8 / K) % K) * 16);
}

/* The position `n` chunks further in the row, from chunk 0 or 1; n is even. */
template <int D> static __device__ __forceinline__ unsigned further(unsigned place, int n) {
    const int K = chunks<D>::K;
    return (place ^ (unsigned)(n % K * 16)) + (unsigned)(n / K * K * 16);
}

/* Starts copying ROWS rows of one head, of which `rows` exist; the others become zeros. */
template <int D, int ROWS>
static __device__ __forceinline__ void fetch(unsigned tile, const bf16 *from, int64_t ld, int rows) {
    const int CHUNKS = D / 8, STEP = BLOCK / CHUNKS / 8 * 8;        /* rows at once */
    int row = (int)threadIdx.x / CHUNKS, chunk = (int)threadIdx.x % CHUNKS;
    unsigned to = place<D>(tile, row, chunk);
    from += row * ld + chunk * 8;
    if (row >= STEP) return;
#pragma unroll
    for (int r = 0; r < ROWS; r += STEP, from += STEP * ld)
        if (ROWS % STEP == 0 || r + row < ROWS) mu_ptx_cp_async_16(to + r * 2 * D, from, r + row < rows ? 16 : 0);
}

/* s = a b^T: a holds the warp's 16 M rows, b N rows. UNROLL: fewer than all steps where registers are short. */
template <int D, int M, int N, int UNROLL = D / 16>
static __device__ __forceinline__ void products(unsigned a, unsigned b, float (&s)[M][N / 8][4]) {
    int lane = (int)threadIdx.x % WARP;
    a = place<D>(a, lane % 16, lane / 16);
    b = place<D>(b, lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < M * N / 2; i++) s[i / (N / 2)][i / 4 % (N / 8)][i % 4] = 0;
#pragma unroll UNROLL
    for (int k = 0; k < D / 16; k++) {
        unsigned fa[M][4], fb[4];
#pragma unroll
        for (int m = 0; m < M; m++) mu_ptx_ldmatrix_x4(fa[m], further<D>(a, 2 * k) + m * 32 * D);
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            mu_ptx_ldmatrix_x4(fb, further<D>(b, 2 * k) + n * 32 * D);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mu_ptx_mma_bf16(s[m][2 * n], fa[m], fb);
                mu_ptx_mma_bf16(s[m][2 * n + 1], fa[m], fb + 2);
            }
        }
    }
}

/* sum += p b: the warp's 16 M rows of N factors, rounded to bf16, times b's N rows. The results of mma in a
 * lane, of two adjacent tiles, have the layout of its first operand: p never leaves the registers. */
template <int D, int M, int N>
static __device__ __forceinline__ void add_products(const float (&p)[M][N / 8][4], unsigned b,
                                                    float (&sum)[M][D / 8][4]) {
    int lane = (int)threadIdx.x % WARP;
    b = place<D>(b, lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        unsigned fa[M][4], fb[4];
#pragma unroll
        for (int i = 0; i < 4 * M; i++) {
            const float *pair = &p[i / 4][2 * k + i % 4 / 2][i % 2 * 2];
            fa[i / 4][i % 4] = two_bf16(pair[0], pair[1]);
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            mu_ptx_ldmatrix_x4_trans(fb, further<D>(b, 2 * n) + k * 32 * D);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mu_ptx_mma_bf16(sum[m][2 * n], fa[m], fb);
                mu_ptx_mma_bf16(sum[m][2 * n + 1], fa[m], fb + 2);
            }
        }
    }
}

/* Causal mask: scores of the warp's queries, from position `at` on, and of keys from `key` on. */
template <int M, int N>
static __device__ __forceinline__ void hide_later_keys(int at, int key, float (&s)[M][N / 8][4]) {
    int lane = (int)threadIdx.x % WARP, ahead = at + lane / 4 - (key + lane % 4 * 2);
#pragma unroll
    for (int i = 0; i < M * N / 2; i++) {
        int m = i / (N / 2), n = i / 4 % (N / 8), e = i % 4;
        if (n * 8 + e % 2 > ahead + m * 16 + e / 2 * 8) s[m][n][e] = -INFINITY;
    }
}

/* y = scale * sum, or y += it: one row of a 16-row piece, row lane/4 or (lower) 8 below it. Of two adjacent tiles a
 * lane holds columns c, c+1 each; it swaps one pair with its neighbour, so that a row's four lanes write 32 contiguous bytes. */
template <int D, bool ADD>
static __device__ __forceinline__ void write_row(const float (&sum)[D / 8][4], bool lower, float scale, bf16 *y,
                                                 bool exists) {
    int lane = (int)threadIdx.x % WARP, i = 2 * lower;
    bool odd = lane % 2;
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        float l0 = sum[2 * n][i], l1 = sum[2 * n][i + 1], r0 = sum[2 * n + 1][i], r1 = sum[2 * n + 1][i + 1];
        float x0 = __shfl_xor_sync(ALL_LANES, odd ? l0 : r0, 1), x1 = __shfl_xor_sync(ALL_LANES, odd ? l1 : r1, 1);
        float v[4] = { odd ? x0 : l0, odd ? x1 : l1, odd ? r0 : x0, odd ? r1 : x1 }, old[4] = {};
        if (!exists) continue;
        bf16 *to = y + n * 16 + (odd ? 8 : 0) + lane % 4 / 2 * 4;
        if (ADD) load_values<bf16, 4>(to, old);
        for (int j = 0; j < 4; j++) v[j] = old[j] + scale * v[j];
        store_values<bf16, 4>(to, v);
    }
}

/* body(n), decltype(n)::value = d, for the widths that the fast kernels support; false for others. */
template <typename F> static bool with_head_width(int64_t d, F body) {
    switch (d) {
        case 16: body(std::integral_constant<int, 16>()); return true;
        case 32: body(std::integral_constant<int, 32>()); return true;
        case 64: body(std::integral_constant<int, 64>()); return true;
        case 80: body(std::integral_constant<int, 80>()); return true;
        case 96: body(std::integral_constant<int, 96>()); return true;
        case 128: body(std::integral_constant<int, 128>()); return true;
        default: return false;
    }
}

/* Whether the fast kernels support the operand. */
static inline bool is_fast(mu_mat m) { return m.dtype == MU_DTYPE_BF16 && rows_aligned(m, 8); }
#endif
