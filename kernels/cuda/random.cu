/* random.cu - random numbers on the device, by cuRAND's Philox: the only file that includes it. Its counter and key are
 * those of base/philox.c, so the numbers are the same. */
#include "kernels/cuda/cuda.h"

#include <curand_philox4x32_x.h>

/* A block per row of x: each thread draws four numbers at a time, with a stride of THREADS. */
template <typename X, typename Y>
static __global__ void jitter_kernel(int64_t S, int64_t D, float eps, mu_rng rng, matrix<const X> x, bool add,
                                     matrix<Y> y) {
    static __shared__ __align__(16) uint32_t words[ELEMENTS];
    int64_t t = blockIdx.x;
    uint32_t block = (uint32_t)(t % S * ((D + 3) / 4)) + threadIdx.x, sample = rng.sample + (uint32_t)(t / S);
    uint2 key = make_uint2((uint32_t)rng.seed, (uint32_t)(rng.seed >> 32));
    const X *from = x.row(t);
    Y *to = y.row(t);
    for (int64_t first = 0; first < D; first += ELEMENTS, block += THREADS) {
        uint4 counter = make_uint4(block, rng.step, sample, rng.purpose << 16 | rng.layer);
        __syncthreads();
        ((uint4 *)words)[threadIdx.x] = curand_Philox4x32_10(counter, key);
        __syncthreads();
        for (int64_t j = threadIdx.x; j < ELEMENTS && first + j < D; j += THREADS) {
            int64_t i = first + j;
            float value = as_float(from[i]) * (1 + eps * ((float)(words[j] >> 8) * 0x1p-23f - 1));
            store(to + i, add ? as_float(to[i]) + value : value);
        }
    }
}

void mu_cuda_jitter(mu_device *dev, int64_t T, int64_t S, int64_t D, double eps, const mu_rng *rng, mu_mat x, bool add,
                    mu_mat y) {
    with_float_type(x.dtype, [&](auto from) {
        with_float_type(y.dtype, [&](auto to) {
            typedef decltype(from) X;
            typedef decltype(to) Y;
            launch(dev, T, THREADS, 0, jitter_kernel<X, Y>, S, D, (float)eps, *rng,
                   matrix<const X>{ (const X *)x.data, x.ld }, add, typed<Y>(y));
        });
    });
}
