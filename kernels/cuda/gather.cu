/* gather.cu - rows copied through an index, either way, and the sum of each token's rows. A row is processed by
 * neighbouring lanes, one per access, at most a warp. */
#include "kernels/cuda/cuda.h"

enum { AHEAD = 4 };     /* accesses in flight per thread */

/* Lanes that share a row of n accesses, as a power of two. */
static int lanes_shift(int64_t n) {
    int shift = 0;
    while (shift < 5 && (int64_t)1 << shift < n) shift++;
    return shift;
}

/* 16 bytes at a time where all rows allow it. */
template <typename R, typename F> static void with_words(int64_t D, mu_mat x, mu_mat y, F body) {
    const int WIDE = 16 / sizeof(R);
    with_width<WIDE>(D % WIDE == 0 && rows_aligned(x, WIDE) && rows_aligned(y, WIDE), body);
}

/* y[r] = x[index[r]], or y[index[r]] = x[r] unless the index is -1 */
template <typename R, int N, bool SCATTER>
static __global__ void copy_rows(int64_t rows, int64_t D, int shift, const int32_t *index, matrix<const R> x,
                                 matrix<R> y) {
    int64_t r = thread_index() >> shift, step = (int64_t)N << shift;
    if (r >= rows || (SCATTER && index[r] < 0)) return;
    const R *from = x.row(SCATTER ? r : index[r]);
    R *to = y.row(SCATTER ? index[r] : r);
    word<R, N> w[AHEAD];
    for (int64_t c = (threadIdx.x & ((1 << shift) - 1)) * N; c < D; c += AHEAD * step) {
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (c + j * step < D) w[j] = load_word<R, N>(from + c + j * step);
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (c + j * step < D) store_word<R, N>(to + c + j * step, w[j]);
    }
}

template <bool SCATTER> static void any_copy(mu_device *dev, int64_t rows, int64_t D, mu_mat index, mu_mat x, mu_mat y) {
    with_float_type(x.dtype, [&](auto zero) {
        typedef decltype(zero) R;
        with_words<R>(D, x, y, [&](auto n) {
            const int N = decltype(n)::value;
            int shift = lanes_shift(blocks_for(D, N));
            launch(dev, blocks_for(rows << shift, THREADS), THREADS, 0, copy_rows<R, N, SCATTER>, rows, D, shift,
                   typed<const int32_t>(index).at, typed<const R>(x), typed<R>(y));
        });
    });
}

void mu_cuda_gather(mu_device *dev, int64_t R, int64_t D, mu_mat index, mu_mat x, mu_mat y) {
    any_copy<false>(dev, R, D, index, x, y);
}

void mu_cuda_scatter(mu_device *dev, int64_t R, int64_t D, mu_mat index, mu_mat x, mu_mat y) {
    any_copy<true>(dev, R, D, index, x, y);
}

/* y[t] (+)= sum over k, in order, of rows[index[t,k]] */
template <typename R, int N>
static __global__ void gather_sum_kernel(int64_t T, int64_t K, int64_t D, int shift, matrix<const int32_t> index,
                                         matrix<const R> rows, bool add, matrix<R> y) {
    int64_t t = thread_index() >> shift, step = (int64_t)N << shift;
    if (t >= T) return;
    for (int64_t c = (threadIdx.x & ((1 << shift) - 1)) * N; c < D; c += step) {
        float sum[N] = {}, row[AHEAD][N];
        if (add) load_values<R, N>(y.row(t) + c, sum);
        for (int64_t k = 0; k < K; k += AHEAD) {
            int32_t r[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                r[j] = k + j < K ? index.row(t)[k + j] : -1;
                if (r[j] >= 0) load_values<R, N>(rows.row(r[j]) + c, row[j]);
            }
#pragma unroll
            for (int j = 0; j < AHEAD; j++)
#pragma unroll
                for (int n = 0; n < N; n++)
                    if (r[j] >= 0) sum[n] += row[j][n];
        }
        store_values<R, N>(y.row(t) + c, sum);
    }
}

void mu_cuda_gather_sum(mu_device *dev, int64_t T, int64_t K, int64_t D, mu_mat index, mu_mat rows, bool add, mu_mat y) {
    with_float_type(y.dtype, [&](auto zero) {
        typedef decltype(zero) R;
        with_words<R>(D, rows, y, [&](auto n) {
            const int N = decltype(n)::value;
            int shift = lanes_shift(blocks_for(D, N));
            launch(dev, blocks_for(T << shift, THREADS), THREADS, 0, gather_sum_kernel<R, N>, T, K, D, shift,
                   typed<const int32_t>(index), typed<const R>(rows), add, typed<R>(y));
        });
    });
}
