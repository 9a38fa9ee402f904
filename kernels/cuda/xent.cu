/* xent.cu - cross-entropy of a block of rows of V logits: log of the softmax's denominator, then the gradient in place of
 * the logits. Both directions read the logits once. */
#include "kernels/cuda/cuda.h"

#include <float.h>

enum { AHEAD = 4, MOST_THREADS = 512 };     /* accesses in flight per thread; threads per row */

/* A block per row. Each thread keeps the maximum of its logits so far and the sum of exp(logit - maximum), rescaled when the
 * maximum grows. Missing logits are minus infinity, which adds exp(-infinity) = 0. */
template <typename R, int N>
static __global__ void xent_fwd_kernel(int64_t V, matrix<const R> logits, const int32_t *targets, float *lse, float *nll) {
    const R *row = logits.row(blockIdx.x);
    int64_t step = (int64_t)blockDim.x * N;
    float max = -FLT_MAX, sum = 0;
    for (int64_t first = threadIdx.x * N; first < V; first += AHEAD * step) {
        float x[AHEAD][N], before = max;
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (first + j * step < V) load_values<R, N>(row + first + j * step, x[j]);
            else
#pragma unroll
                for (int n = 0; n < N; n++) x[j][n] = -INFINITY;
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
#pragma unroll
            for (int n = 0; n < N; n++) max = fmaxf(max, x[j][n]);
        sum *= __expf(before - max);
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
#pragma unroll
            for (int n = 0; n < N; n++) sum += __expf(x[j][n] - max);
    }
    float largest = block_max(max);
    sum = block_sum(sum * __expf(max - largest));
    if (threadIdx.x > 0) return;
    double l = (double)largest + log((double)sum);
    int32_t target = targets[blockIdx.x];
    lse[blockIdx.x] = (float)l;
    nll[blockIdx.x] = target < 0 ? 0.0f : (float)(l - (double)as_float(row[target]));
}

/* 16 bytes at a time if rows are aligned. */
template <typename R, typename F> static void with_words(int64_t V, mu_mat logits, F body) {
    const int WIDE = 16 / sizeof(R);
    with_width<WIDE>(V % WIDE == 0 && rows_aligned(logits, WIDE), body);
}

void mu_cuda_xent_fwd(mu_device *dev, int64_t rows, int64_t V, mu_mat logits, mu_mat targets, mu_mat lse, mu_mat nll) {
    with_float_type(logits.dtype, [&](auto zero) {
        typedef decltype(zero) R;
        with_words<R>(V, logits, [&](auto n) {
            const int N = decltype(n)::value;
            launch(dev, rows, threads_for(blocks_for(V, N * AHEAD), MOST_THREADS), 0, xent_fwd_kernel<R, N>, V,
                   typed<const R>(logits), typed<const int32_t>(targets).at, typed<float>(lse).at, typed<float>(nll).at);
        });
    });
}

/* Block b takes piece b % pieces of row b / pieces, AHEAD accesses per thread. */
template <typename R, int N>
static __global__ void xent_bwd_kernel(int64_t V, int pieces, double scale, const double *dout, const int32_t *targets,
                                       const float *lse, matrix<R> logits) {
    int64_t r = (int)blockIdx.x / pieces, step = (int64_t)blockDim.x * N;
    int64_t first = (int)blockIdx.x % pieces * AHEAD * step + threadIdx.x * N;
    int32_t target = targets[r];
    float factor = (float)(scale * *dout), l = lse[r], x[AHEAD][N] = {};
    R *row = logits.row(r);
#pragma unroll
    for (int j = 0; j < AHEAD; j++)
        if (target >= 0 && first + j * step < V) load_values<R, N>(row + first + j * step, x[j]);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
        int64_t c = first + j * step;
        if (c >= V) break;
#pragma unroll
        for (int n = 0; n < N; n++) {
            float hit = c + n == target ? 1.0f : 0.0f;
            x[j][n] = target < 0 ? 0.0f : factor * (__expf(x[j][n] - l) - hit);
        }
        store_values<R, N>(row + c, x[j]);
    }
}

void mu_cuda_xent_bwd(mu_device *dev, int64_t rows, int64_t V, double scale, mu_mat dout, mu_mat targets, mu_mat lse,
                      mu_mat logits) {
    with_float_type(logits.dtype, [&](auto zero) {
        typedef decltype(zero) R;
        with_words<R>(V, logits, [&](auto n) {
            const int N = decltype(n)::value;
            int threads = threads_for(blocks_for(V, N * AHEAD), THREADS);
            int64_t pieces = blocks_for(V, (int64_t)N * AHEAD * threads);
            launch(dev, rows * pieces, threads, 0, xent_bwd_kernel<R, N>, V, (int)pieces, scale,
                   typed<const double>(dout).at, typed<const int32_t>(targets).at, typed<const float>(lse).at,
                   typed<R>(logits));
        });
    });
}
