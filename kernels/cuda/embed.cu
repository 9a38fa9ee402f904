/* embed.cu - token embedding: rows of w_VD copied to y_TD, and their gradients added back.
 *
 * Backward: tokens are sorted by id and divided into chunks. A thread owns a few columns of a chunk and adds up its runs of
 * equal ids in order of token. A run inside one chunk is added to dw directly; parts of a longer run are stored and added in
 * order by a second kernel. So a frequent token costs no more time than a rare one. */
#include "kernels/cuda/cuda.h"

enum { CHUNK = 64, AHEAD = 8 };       /* sorted tokens per chunk; rows of dy in flight per thread */

void mu_cuda_embed_fwd(mu_device *dev, int64_t T, int64_t D, mu_mat ids, mu_mat w, mu_mat y) {
    mu_cuda_gather(dev, T, D, ids, w, y);
}

template <int N> static __device__ __forceinline__ void add_values(float *to, const float x[N]) {
    float sum[N];
    load_values<float, N>(to, sum);
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] += x[i];
    store_values<float, N>(to, sum);
}

/* This thread's first column; blockIdx.y is the block's part of the columns. */
template <int N> static __device__ __forceinline__ int64_t first_column() {
    return ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * N;
}

/* part[chunk, 0]: of the run that began before the chunk; [chunk, 1]: of the one that begins in it and continues. */
template <typename R, int N>
static __global__ void sum_runs(int64_t T, int64_t D, sorted_ids s, matrix<const R> dy, matrix<float> dw, float *part) {
    int64_t c = first_column<N>(), first = (int64_t)blockIdx.x * CHUNK;
    int64_t end = first + CHUNK < T ? first + CHUNK : T;
    if (c >= D) return;
    bool begun = first > 0 && s.id[first - 1] == s.id[first];
    float sum[N] = {}, row[AHEAD][N];
    for (int64_t i = first; i < end; i += AHEAD) {
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (i + j < end) load_values<R, N>(dy.row(s.token[i + j]) + c, row[j]);
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (i + j >= end) break;
            int32_t id = s.id[i + j];
            bool goes_on = i + j + 1 < T && s.id[i + j + 1] == id;
#pragma unroll
            for (int n = 0; n < N; n++) sum[n] += row[j][n];
            if (goes_on && i + j + 1 < end) continue;
            if (begun || goes_on) store_values<float, N>(part + ((int64_t)blockIdx.x * 2 + !begun) * D + c, sum);
            else add_values<N>(dw.row(id) + c, sum);
#pragma unroll
            for (int n = 0; n < N; n++) sum[n] = 0;
            begun = false;
        }
    }
}

/* The run that begins in this chunk and continues behind it, if there is one. */
template <int N>
static __global__ void join_runs(int64_t T, int64_t D, const int32_t *id, const float *part, matrix<float> dw) {
    int64_t c = first_column<N>(), first = (int64_t)blockIdx.x * CHUNK, next = first + CHUNK;
    if (c >= D || next >= T || id[next - 1] != id[next]) return;
    if (first > 0 && id[first - 1] == id[next]) return;
    float sum[N], more[N];
    load_values<float, N>(part + ((int64_t)blockIdx.x * 2 + 1) * D + c, sum);
#pragma unroll 4
    for (int64_t chunk = blockIdx.x + 1; chunk * CHUNK < T && id[chunk * CHUNK] == id[next]; chunk++) {
        load_values<float, N>(part + chunk * 2 * D + c, more);
#pragma unroll
        for (int n = 0; n < N; n++) sum[n] += more[n];
    }
    add_values<N>(dw.row(id[next]) + c, sum);
}

void mu_cuda_embed_bwd(mu_device *dev, int64_t T, int64_t D, int64_t V, mu_mat ids, mu_mat dy, mu_mat dw) {
    const int WIDE = 4;                 /* 16 bytes of dw */
    cuda_scratch scratch(dev);
    sorted_ids s = cuda_sort_ids(dev, scratch, T, V, typed<const int32_t>(ids).at);
    int64_t chunks = blocks_for(T, CHUNK);
    float *part = scratch.take<float>(chunks * 2 * D);
    with_float_type(dy.dtype, [&](auto zero) {
        typedef decltype(zero) R;
        with_width<WIDE>(D % WIDE == 0 && rows_aligned(dy, WIDE) && rows_aligned(dw, WIDE), [&](auto n) {
            const int N = decltype(n)::value;
            int threads = threads_for(blocks_for(D, N), THREADS);
            int64_t columns = blocks_for(D, (int64_t)N * threads);
            launch_2d(dev, chunks, columns, threads, 0, sum_runs<R, N>, T, D, s, typed<const R>(dy), typed<float>(dw),
                      part);
            launch_2d(dev, chunks, columns, threads, 0, join_runs<N>, T, D, s.id, (const float *)part,
                      typed<float>(dw));
        });
    });
}
