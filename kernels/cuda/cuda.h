/* cuda.h - private to kernels/cuda: the device, launches, scratch, operands, and small device functions.
 *
 * Every .cu file is compiled by nvcc for the GPU, and by the host's C++ compiler against an emulation of CUDA for the
 * tests (tests/cuda_on_host). So: no <<<>>>, static shared memory is `static __shared__ T x[N]`, dynamic shared memory
 * `extern __shared__ unsigned char dynamic_shared[]`, kernels are static, and PTX is in ptx.h only.
 *
 * Everything runs in order on one stream; only mu_device_read and staging wait for it. Kernels support any strides and
 * any number of rows. The order of sums is fixed by the problem: no float atomics, the same bits every time. */
#ifndef MUSTER_KERNELS_CUDA_H
#define MUSTER_KERNELS_CUDA_H
#include "kernels/internal.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <string.h>
#include <type_traits>

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
int cuda_processors(mu_device *dev);        /* streaming multiprocessors: number of blocks of a persistent kernel */
void cuda_check(cudaError_t status, const char *what, const char *file, int line);
#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)

/* Device memory for one kernel call: freed with the object, in stream order. */
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

/* Threads of a block for n items: whole warps, at least one, at most `most`. */
static inline int threads_for(int64_t n, int most) {
    int64_t whole = blocks_for(n, WARP) * WARP;
    return whole < WARP ? WARP : whole < most ? (int)whole : most;
}

/* kernel(args...) on blocks x threads; nothing when there are no blocks. Grids are one-dimensional or, with `rows`,
 * blockIdx.y < rows <= 65535. */
template <typename... Params, typename... Args>
static void launch_2d(mu_device *dev, int64_t blocks, int64_t rows, int threads, size_t shared,
                      void (*kernel)(Params...), Args... args) {
    if (!blocks || !rows) return;
    MU_CHECK(blocks <= INT32_MAX && rows <= 65535,
             "%lld x %lld blocks are more than a grid holds", (long long)blocks, (long long)rows);
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
template <typename T> struct dtype_of<const T> : dtype_of<T> {};

/* The message names the caller, which is the kernel's own function. */
template <typename T> static matrix<T> typed(mu_mat m, const char *file = __builtin_FILE(), int line = __builtin_LINE(),
                                             const char *kernel = __builtin_FUNCTION()) {
    if (m.data && m.dtype != dtype_of<T>::value)
        mu_fatal(MU_STATUS_INTERNAL, file, line, kernel, "operand is %s, expected %s", mu_dtype_name(m.dtype),
                 mu_dtype_name(dtype_of<T>::value));
    return matrix<T>{ (T *)m.data, m.ld };
}

/* with_float_type(dtype, [&](auto zero) { using R = decltype(zero); ... }): the code for float or bf16. */
template <typename F> static void with_float_type(mu_dtype dtype, F body, const char *file = __builtin_FILE(),
                                                  int line = __builtin_LINE(), const char *kernel = __builtin_FUNCTION()) {
    if (dtype == MU_DTYPE_F32) body(0.0f);
    else if (dtype == MU_DTYPE_BF16) body(bf16());
    else mu_fatal(MU_STATUS_INTERNAL, file, line, kernel, "no code for operands of type %s", mu_dtype_name(dtype));
}

/* Whether a vector, or the rows of a matrix, can be accessed n values at a time. True if data is NULL. */
static inline bool is_aligned(mu_mat m, int n) { return (uintptr_t)m.data % ((size_t)n * mu_dtype_size(m.dtype)) == 0; }
static inline bool rows_aligned(mu_mat m, int n) { return is_aligned(m, n) && m.ld % n == 0; }

/* with_width<WIDE>(wide, [&](auto n) { const int N = decltype(n)::value; ... }): the code for WIDE values at a time, or
 * for one. */
template <int WIDE, typename F> static void with_width(bool wide, F body) {
    if (wide) body(std::integral_constant<int, WIDE>());
    else body(std::integral_constant<int, 1>());
}

/* ------------------------------------------------------------------ device side */
static __device__ __forceinline__ float as_float(float x) { return x; }
static __device__ __forceinline__ float as_float(bf16 x) { return __bfloat162float(x); }
static __device__ __forceinline__ void store(float *to, float x) { *to = x; }
static __device__ __forceinline__ void store(bf16 *to, float x) { *to = __float2bfloat16_rn(x); }
static __device__ __forceinline__ void store(double *to, double x) { *to = x; }
static __device__ __forceinline__ void store(int64_t *to, int64_t x) { *to = x; }
static __device__ __forceinline__ void store(int32_t *to, int32_t x) { *to = x; }

/* N neighbouring values in one access of 2, 4, 8 or 16 bytes, to which the address must be aligned. */
template <int BYTES> struct word_of_bytes;
template <> struct word_of_bytes<2> { typedef unsigned short type; };
template <> struct word_of_bytes<4> { typedef unsigned type; };
template <> struct word_of_bytes<8> { typedef uint2 type; };
template <> struct word_of_bytes<16> { typedef uint4 type; };
template <typename T, int N> using word = typename word_of_bytes<N * (int)sizeof(T)>::type;

template <typename T, int N> static __device__ __forceinline__ word<T, N> load_word(const T *from) {
    return *(const word<T, N> *)from;
}
template <typename T, int N> static __device__ __forceinline__ void store_word(T *to, word<T, N> w) {
    *(word<T, N> *)to = w;
}
template <typename T, int N> static __device__ __forceinline__ void unpack(word<T, N> w, float x[N]) {
    T value[N];
    memcpy(value, &w, sizeof w);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = as_float(value[i]);
}
template <typename T, int N> static __device__ __forceinline__ word<T, N> packed(const float x[N]) {
    T value[N];
    word<T, N> w;
#pragma unroll
    for (int i = 0; i < N; i++) store(value + i, x[i]);
    memcpy((void *)&w, value, sizeof w);
    return w;
}
template <typename T, int N> static __device__ __forceinline__ void load_values(const T *from, float x[N]) {
    unpack<T, N>(load_word<T, N>(from), x);
}
template <typename T, int N> static __device__ __forceinline__ void store_values(T *to, const float x[N]) {
    store_word<T, N>(to, packed<T, N>(x));
}

/* In one register, `low` in the lower half: one instruction, unlike packed<bf16, 2>. */
static __device__ __forceinline__ unsigned two_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    unsigned word;
    memcpy(&word, &pair, sizeof word);
    return word;
}

/* This thread's number in a one-dimensional grid. */
static __device__ __forceinline__ int64_t thread_index() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }

/* Sums over each `lanes` neighbours of a warp (a power of two, at most 32; all 32 lanes call it) or over all its lanes, the
 * same bits in every one; over a block of `blockDim.x` threads (a multiple of 32, at most 1024), in all threads. Maxima
 * likewise. block_sum and block_max may be called again at once. */
template <typename T> static __device__ __forceinline__ T lanes_sum(T x, int lanes) {
#pragma unroll
    for (int step = WARP / 2; step; step /= 2)
        if (step < lanes) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

template <typename T> static __device__ __forceinline__ T warp_sum(T x) { return lanes_sum(x, WARP); }

static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = WARP / 2; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

template <typename T, typename F> static __device__ __forceinline__ T block_reduce(T x, T nothing, F of_warp) {
    static __shared__ T part[WARP];
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    x = of_warp(x);
    __syncthreads();
    if (lane == 0) part[warp] = x;
    __syncthreads();
    return of_warp(lane < (int)blockDim.x / WARP ? part[lane] : nothing);
}

template <typename T> static __device__ T block_sum(T x) {
    return block_reduce(x, T(0), [](T value) { return warp_sum(value); });
}

static __device__ __forceinline__ float block_max(float x) {
    return block_reduce(x, -INFINITY, [](float value) { return warp_max(value); });
}

/* sort.cu: tokens 0 .. T-1 in the order of their ids, 0 <= id < V, equal ones in order of token; lives as long as
 * `scratch`. */
typedef struct { const int32_t *id, *token; } sorted_ids;
sorted_ids cuda_sort_ids(mu_device *dev, cuda_scratch &scratch, int64_t T, int64_t V, const int32_t *ids);

/* Element-wise kernels: threads per block, elements per block. */
enum { THREADS = 256, ELEMENTS = 4 * THREADS };

#endif
