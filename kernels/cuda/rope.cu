/* rope.cu - rotary position embedding: in each head (x[i], x[i + d/2]) rotates by its position's angle. y may be x.
 *
 * A thread takes N neighbouring pairs of some heads of a token: cosines and sines are read once for all of them. */
#include "kernels/cuda/cuda.h"

enum { TOKENS = 8, HEADS = 4, WIDE = 4 };       /* per block, per thread; values per access: 16 bytes of the tables */

/* One head's pairs: words of x become words of y; `old`: added to the result. */
template <typename R, int N>
static __device__ __forceinline__ void turn(const float c[N], const float s[N], word<R, N> x[2], const word<R, N> old[2]) {
    float a[N], b[N], re[N], im[N];
    unpack<R, N>(x[0], a), unpack<R, N>(x[1], b);
    unpack<R, N>(old[0], re), unpack<R, N>(old[1], im);
#pragma unroll
    for (int n = 0; n < N; n++) re[n] += a[n] * c[n] - b[n] * s[n], im[n] += b[n] * c[n] + a[n] * s[n];
    x[0] = packed<R, N>(re), x[1] = packed<R, N>(im);
}

template <typename R, int N>
static __global__ void rope_kernel(int64_t T, int64_t S, int H, int half, float sign, matrix<const float> cos,
                                   matrix<const float> sin, matrix<const R> x, bool add, matrix<R> y) {
    int64_t first = (int64_t)blockIdx.x * TOKENS, position = first % S;
    int groups = half / N, work = (H + HEADS - 1) / HEADS * groups;
    int tokens = T - first < TOKENS ? (int)(T - first) : TOKENS;
    for (int item = (int)threadIdx.x; item < tokens * work; item += (int)blockDim.x) {
        int token = item / work, h = item % work / groups * HEADS, i = item % groups * N;
        int64_t t = first + token, p = position + token;
        float c[N], s[N];
        word<R, N> w[HEADS][2] = {}, old[HEADS][2] = {};
        while (p >= S) p -= S;
        load_values<float, N>(cos.row(p) + i, c), load_values<float, N>(sin.row(p) + i, s);
#pragma unroll
        for (int n = 0; n < N; n++) s[n] *= sign;
#pragma unroll
        for (int j = 0; j < HEADS; j++)
#pragma unroll
            for (int part = 0; part < 2 && h + j < H; part++) {
                int64_t at = ((int64_t)(h + j) * 2 + part) * half + i;
                w[j][part] = load_word<R, N>(x.row(t) + at);
                if (add) old[j][part] = load_word<R, N>(y.row(t) + at);
            }
#pragma unroll
        for (int j = 0; j < HEADS; j++) {
            if (h + j >= H) break;
            turn<R, N>(c, s, w[j], old[j]);
            R *to = y.row(t) + (int64_t)(h + j) * 2 * half + i;
            store_word<R, N>(to, w[j][0]), store_word<R, N>(to + half, w[j][1]);
        }
    }
}

void mu_cuda_rope(mu_device *dev, int64_t T, int64_t S, int64_t H, int64_t d, int sign, mu_mat cos, mu_mat sin, mu_mat x,
                  bool add, mu_mat y) {
    int64_t half = d / 2;
    bool wide = half % WIDE == 0 && rows_aligned(cos, WIDE) && rows_aligned(sin, WIDE) && rows_aligned(x, WIDE) &&
                rows_aligned(y, WIDE);
    MU_CHECK(d % 2 == 0 && H * d < INT32_MAX / TOKENS,
             "rope: %lld heads of width %lld; the width must be even", (long long)H, (long long)d);
    with_float_type(x.dtype, [&](auto zero) {
        typedef decltype(zero) R;
        with_width<WIDE>(wide, [&](auto n) {
            const int N = decltype(n)::value;
            int64_t work = TOKENS * blocks_for(H, HEADS) * (half / N);
            launch(dev, blocks_for(T, TOKENS), threads_for(work, THREADS), 0, rope_kernel<R, N>, T, S, (int)H, (int)half,
                   (float)sign, typed<const float>(cos), typed<const float>(sin), typed<const R>(x), add, typed<R>(y));
        });
    });
}
