/* elementwise.cu - fill, axpy, squares, add, clamp, copy and the two sums: vectors of n values, memory-bound. A thread takes
 * every THREADS-th of its block's ELEMENTS, so that a warp reads 32 neighbours at a time. */
#include "kernels/cuda/cuda.h"

/* body(i) for the indices below n that are this thread's. */
template <typename F> static __device__ __forceinline__ void each_element(int64_t n, F body) {
    int64_t first = (int64_t)blockIdx.x * ELEMENTS + threadIdx.x;
#pragma unroll
    for (int j = 0; j < ELEMENTS / THREADS; j++)
        if (first + j * THREADS < n) body(first + j * THREADS);
}

template <typename T> static __global__ void fill_kernel(int64_t n, double value, T *x) {
    each_element(n, [=](int64_t i) { store(x + i, (T)value); });
}

/* Computes in T's own precision, bf16 in float. */
template <typename T> struct wide_of { typedef float type; };
template <> struct wide_of<double> { typedef double type; };
template <typename T> static __device__ __forceinline__ float widened(T x) { return as_float(x); }
static __device__ __forceinline__ double widened(double x) { return x; }
static __device__ __forceinline__ int64_t widened(int64_t x) { return x; }
static __device__ __forceinline__ int32_t widened(int32_t x) { return x; }

template <typename T> static __global__ void axpy_kernel(int64_t n, typename wide_of<T>::type a, const T *x, T *y) {
    each_element(n, [=](int64_t i) { store(y + i, widened(y[i]) + a * widened(x[i])); });
}

static __global__ void add_squares_kernel(int64_t n, float a, const float *x, float *y) {
    each_element(n, [=](int64_t i) { y[i] += a * (x[i] * x[i]); });
}

template <typename T> static __global__ void add_kernel(int64_t n, const T *x, const T *y, T *z) {
    each_element(n, [=](int64_t i) { store(z + i, widened(x[i]) + widened(y[i])); });
}

template <typename T> static __global__ void clamp_kernel(int64_t n, float limit, const T *x, T *y) {
    each_element(n, [=](int64_t i) {
        float v = widened(x[i]);
        store(y + i, v > limit ? limit : v < -limit ? -limit : v);
    });
}

template <typename T> static __global__ void add_within_kernel(int64_t n, float limit, const T *x, const T *dy, T *y) {
    each_element(n, [=](int64_t i) {
        float v = widened(x[i]);
        if (v >= -limit && v <= limit) store(y + i, widened(y[i]) + widened(dy[i]));
    });
}

template <typename X, typename Y> static __global__ void copy_kernel(int64_t n, const X *x, Y *y) {
    each_element(n, [=](int64_t i) { store(y + i, widened(x[i])); });
}

/* with_float_type, also for double */
template <typename F> static void with_floating(mu_dtype dtype, F body) {
    if (dtype == MU_DTYPE_F64) body(0.0);
    else with_float_type(dtype, body);
}

void mu_cuda_fill(mu_device *dev, int64_t n, double value, mu_mat x) {
    with_floating(x.dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(dev, blocks_for(n, ELEMENTS), THREADS, 0, fill_kernel<T>, n, value, (T *)x.data);
    });
}

void mu_cuda_axpy(mu_device *dev, int64_t n, double a, mu_mat x, mu_mat y) {
    with_floating(x.dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(dev, blocks_for(n, ELEMENTS), THREADS, 0, axpy_kernel<T>, n, a, typed<T>(x).at, typed<T>(y).at);
    });
}

void mu_cuda_add_squares(mu_device *dev, int64_t n, double a, mu_mat x, mu_mat y) {
    launch(dev, blocks_for(n, ELEMENTS), THREADS, 0, add_squares_kernel, n, (float)a, typed<float>(x).at, typed<float>(y).at);
}

void mu_cuda_add(mu_device *dev, int64_t n, mu_mat x, mu_mat y, mu_mat z) {
    auto run = [&](auto zero) {
        typedef decltype(zero) T;
        launch(dev, blocks_for(n, ELEMENTS), THREADS, 0, add_kernel<T>, n, typed<T>(x).at, typed<T>(y).at, typed<T>(z).at);
    };
    if (x.dtype == MU_DTYPE_I64) run((int64_t)0);
    else if (x.dtype == MU_DTYPE_I32) run((int32_t)0);
    else with_floating(x.dtype, run);
}

void mu_cuda_clamp(mu_device *dev, int64_t n, double limit, mu_mat x, mu_mat dy, mu_mat y) {
    with_float_type(x.dtype, [&](auto zero) {
        typedef decltype(zero) T;
        if (dy.data)
            launch(dev, blocks_for(n, ELEMENTS), THREADS, 0, add_within_kernel<T>, n, (float)limit, typed<T>(x).at, typed<T>(dy).at,
                   typed<T>(y).at);
        else launch(dev, blocks_for(n, ELEMENTS), THREADS, 0, clamp_kernel<T>, n, (float)limit, typed<T>(x).at, typed<T>(y).at);
    });
}

void mu_cuda_copy(mu_device *dev, int64_t n, mu_mat x, mu_mat y) {
    with_floating(x.dtype, [&](auto from) {
        with_floating(y.dtype, [&](auto to) {
            typedef decltype(from) X;
            typedef decltype(to) Y;
            launch(dev, blocks_for(n, ELEMENTS), THREADS, 0, copy_kernel<X, Y>, n, (const X *)x.data, (Y *)y.data);
        });
    });
}

/* ------------------------------------------------------------------ sums
 * A block sums a range in double; a second kernel, one block, adds the ranges in order. */
enum { CHUNK = 16 * THREADS };

template <typename T, bool SQUARE> static __global__ void partial_sums(int64_t n, const T *x, double *part) {
    int64_t first = (int64_t)blockIdx.x * CHUNK, end = first + CHUNK < n ? first + CHUNK : n;
    double sum = 0;
    for (int64_t i = first + threadIdx.x; i < end; i += THREADS) {
        double value = widened(x[i]);
        sum += SQUARE ? value * value : value;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

static __global__ void total_of_parts(int64_t n, double scale, const double *part, bool add, double *out) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += THREADS) sum += part[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = (add ? *out : 0) + scale * sum;
}

void cuda_total(mu_device *dev, int64_t n, double scale, const double *part, bool add, double *out) {
    launch(dev, 1, THREADS, 0, total_of_parts, n, scale, part, add, out);
}

template <bool SQUARE> static void any_sum(mu_device *dev, int64_t n, double scale, mu_mat x, bool add, mu_mat out) {
    cuda_scratch scratch(dev);
    int64_t blocks = blocks_for(n, CHUNK);
    double *part = scratch.take<double>(blocks);
    with_float_type(x.dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(dev, blocks, THREADS, 0, partial_sums<T, SQUARE>, n, (const T *)x.data, part);
    });
    cuda_total(dev, blocks, scale, part, add, typed<double>(out).at);
}

void mu_cuda_sum(mu_device *dev, int64_t n, double scale, mu_mat x, bool add, mu_mat out) {
    any_sum<false>(dev, n, scale, x, add, out);
}

void cuda_sumsq(mu_device *dev, int64_t n, double scale, mu_mat x, bool add, mu_mat out) {
    any_sum<true>(dev, n, scale, x, add, out);
}

void mu_cuda_sumsq(mu_device *dev, int64_t n, mu_mat x, bool add, mu_mat out) { cuda_sumsq(dev, n, 1, x, add, out); }
