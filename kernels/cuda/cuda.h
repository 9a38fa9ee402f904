/* cuda.h - private to kernels/cuda: the device, launches, scratch, operands, and small device functions.
 *
 * Every .cu file is compiled by nvcc for the GPU, and by the host's C++ compiler against an emulation of CUDA for the
 * tests (tests/cuda_on_host). So: no <<<>>>, static shared memory is `static __shared__ T x[N]`, dynamic shared memory
 * `extern __shared__ unsigned char dynamic_shared[]`, kernels are static, and PTX stands in ptx.h alone.
 *
 * Everything runs in order on one stream; only mu_device_read and its kin wait for it. Kernels are written for any
 * strides and any number of rows. Order of sums is fixed by the problem: no float atomics, the same bits every time. */
#ifndef MUSTER_KERNELS_CUDA_H
#define MUSTER_KERNELS_CUDA_H
#include "kernels/internal.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

extern "C" {
#define K(name, params, args) void mu_cuda_##name params;
MU_KERNELS(K)
#undef K
}

typedef __nv_bfloat16 bf16;

enum { WARP = 32 };
static const unsigned ALL_LANES = 0xffffffffu;

/* ------------------------------------------------------------------ host side */
typedef struct mu_cuda mu_cuda;             /* device.cu; the mu_device is its first member */
cudaStream_t cuda_stream(mu_device *dev);
struct cublasContext *&cuda_blas(mu_device *dev);       /* cuBLAS's handle; NULL until the first product */
void cuda_blas_close(struct cublasContext *handle);     /* blas.cu; NULL allowed */
int cuda_processors(mu_device *dev);        /* streaming multiprocessors: how many blocks a persistent kernel starts */
void cuda_check(cudaError_t status, const char *what, const char *file, int line);
#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)

/* Device memory for the length of one kernel of the list: gone, in the order of the stream, with the object. */
class cuda_scratch {
    mu_device *dev;
    size_t mark;
    void *bytes(size_t n);
  public:
    explicit cuda_scratch(mu_device *dev);
    ~cuda_scratch();
    template <typename T> T *take(int64_t n) { return (T *)bytes((size_t)n * sizeof(T)); }
};

static inline int64_t blocks_for(int64_t n, int64_t each) { return (n + each - 1) / each; }

/* kernel(args...) on blocks x threads; nothing when there are no blocks. Grids are one-dimensional or, with `rows`,
 * blockIdx.y < rows <= 65535. */
template <typename... Params, typename... Args>
static void launch_2d(mu_device *dev, int64_t blocks, int64_t rows, int threads, size_t shared,
                      void (*kernel)(Params...), Args... args) {
    if (!blocks || !rows) return;
    MU_CHECK(blocks <= INT32_MAX && rows <= 65535, "%lld x %lld blocks", (long long)blocks, (long long)rows);
    if (shared > 48 * 1024)
        CUDA_CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)blocks, (unsigned)rows), config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared, config.stream = cuda_stream(dev);
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, Params(args)...));
}

template <typename... Params, typename... Args>
static void launch(mu_device *dev, int64_t blocks, int threads, size_t shared, void (*kernel)(Params...), Args... args) {
    launch_2d(dev, blocks, 1, threads, shared, kernel, args...);
}

/* Sums in double, in an order fixed by n: *out (+)= scale * sum of x^2; *out (+)= scale * sum of parts (on the device). */
void cuda_sumsq(mu_device *dev, int64_t n, double scale, mu_mat x, bool add, mu_mat out);
void cuda_total(mu_device *dev, int64_t n, double scale, const double *part, bool add, double *out);

/* An operand as a kernel takes it: typed, by value. */
template <typename T> struct matrix {
    T *at;
    int64_t ld;
    __host__ __device__ T *row(int64_t r) const { return at + r * ld; }
};

template <typename T> struct dtype_of;
template <> struct dtype_of<double> { static const mu_dtype value = MU_DTYPE_F64; };
template <> struct dtype_of<float> { static const mu_dtype value = MU_DTYPE_F32; };
template <> struct dtype_of<bf16> { static const mu_dtype value = MU_DTYPE_BF16; };
template <> struct dtype_of<int32_t> { static const mu_dtype value = MU_DTYPE_I32; };
template <> struct dtype_of<int64_t> { static const mu_dtype value = MU_DTYPE_I64; };

template <typename T> static matrix<T> typed(mu_mat m) {
    MU_CHECK(!m.data || m.dtype == dtype_of<T>::value, "operand is %s, expected %s", mu_dtype_name(m.dtype),
             mu_dtype_name(dtype_of<T>::value));
    return matrix<T>{ (T *)m.data, m.ld };
}

/* with_real(dtype, [&](auto zero) { using R = decltype(zero); ... }): the code for float or bf16. */
template <typename F> static void with_real(mu_dtype dtype, F body) {
    if (dtype == MU_DTYPE_F32) body(0.0f);
    else if (dtype == MU_DTYPE_BF16) body(bf16());
    else MU_FATAL(MU_STATUS_INTERNAL, "no kernel for operands of %s", mu_dtype_name(dtype));
}

/* ------------------------------------------------------------------ device side */
static __device__ __forceinline__ float as_float(float x) { return x; }
static __device__ __forceinline__ float as_float(bf16 x) { return __bfloat162float(x); }
static __device__ __forceinline__ float as_float(double x) { return (float)x; }
static __device__ __forceinline__ void store(float *to, float x) { *to = x; }
static __device__ __forceinline__ void store(bf16 *to, float x) { *to = __float2bfloat16_rn(x); }
static __device__ __forceinline__ void store(double *to, double x) { *to = x; }

/* This thread's number in a one-dimensional grid, and how many there are: for grid-stride loops. */
static __device__ __forceinline__ int64_t thread_index() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
static __device__ __forceinline__ int64_t thread_count() { return (int64_t)gridDim.x * blockDim.x; }

/* Sums over the 32 lanes, the same bits in every lane; over a block of `blockDim.x` threads (a multiple of 32, at most
 * 1024), in all threads. The block's may be called again at once. */
template <typename T> static __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int step = WARP / 2; step; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = WARP / 2; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

template <typename T> static __device__ T block_sum(T x) {
    static __shared__ T part[WARP];
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) part[warp] = x;
    __syncthreads();
    x = lane < (int)blockDim.x / WARP ? part[lane] : T(0);
    return warp_sum(x);
}

/* Threads of a block, and elements it takes, of element-wise kernels. */
enum { THREADS = 256, ELEMENTS = 4 * THREADS };

#endif
