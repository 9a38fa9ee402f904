/* blas.cu - dense products with cuBLAS: the only file that includes it.
 *
 * cuBLAS reads a row-major matrix as its transpose, so C = op(A) op(B) is computed as C^T = op(B)^T op(A)^T: the operands
 * are swapped and keep their flags. Sums are fp32; fp32 operands are never rounded (no TF32), and the product of two
 * bf16 values is exact. cuBLAS gives the same bits in every run on one kind of GPU as long as it uses no atomics (its
 * default) and no other stream; its workspace is the device's scratch, so that nothing is allocated after the first product. */
#include "kernels/cuda/cuda.h"

#include <cublas_v2.h>

static const int64_t WORKSPACE = (int64_t)32 << 20;         /* bytes: what cuBLAS recommends for Hopper */
#ifndef MU_BLAS_PIECE           /* smaller in the emulation, so that its tests need several */
#define MU_BLAS_PIECE (16 << 20)
#endif
static const int64_t PIECE = MU_BLAS_PIECE;                 /* values of an operand converted to fp32 in scratch at a time */

static void check(cublasStatus_t status, const char *what) {
    MU_CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLAS: %s: %s%s", what, cublasGetStatusString(status),
             status == CUBLAS_STATUS_ALLOC_FAILED ? "; a smaller micro-batch leaves it more memory" : "");
}

static cublasHandle_t handle_of(mu_device *dev) {
    cublasHandle_t &handle = cuda_blas(dev);
    if (handle) return handle;
    check(cublasCreate(&handle), "starting");
    check(cublasSetStream(handle, cuda_stream(dev)), "setting the stream");
    check(cublasSetMathMode(handle, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION), "asking for fp32 sums");
    return handle;
}

void cuda_blas_close(cublasHandle_t handle) {
    if (handle) check(cublasDestroy(handle), "closing");
}

/* ------------------------------------------------------------------ products that cuBLAS supports */
static cudaDataType type_of(mu_mat x) { return x.dtype == MU_DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF; }

/* cuBLAS requires a leading dimension of at least a row, even for one row. */
static int64_t ld_of(mu_mat x, int64_t width) { return x.ld > width ? x.ld : width; }

/* C = beta C + op(A) op(B). Returns false, without doing anything, for operands that cuBLAS does not support. */
static bool product(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b, double beta,
                    mu_mat c) {
    if (a.dtype != b.dtype || (a.dtype == MU_DTYPE_F32 && c.dtype != MU_DTYPE_F32)) return false;
    cuda_scratch scratch(dev);
    cublasHandle_t handle = handle_of(dev);
    check(cublasSetWorkspace(handle, scratch.take<char>(WORKSPACE), WORKSPACE), "setting the workspace");
    const float one = 1, keep = (float)beta;
    cublasStatus_t status = cublasGemmEx_64(handle, tb ? CUBLAS_OP_T : CUBLAS_OP_N, ta ? CUBLAS_OP_T : CUBLAS_OP_N, n, m, k,
                                            &one, b.data, type_of(b), ld_of(b, tb ? k : n), a.data, type_of(a),
                                            ld_of(a, ta ? m : k), &keep, c.data, type_of(c), ld_of(c, n),
                                            CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
    check(status, "product");
    return true;
}

/* ------------------------------------------------------------------ all others: in fp32, in pieces */
template <typename X, typename Y>
static __global__ void convert_kernel(uint32_t n, uint32_t columns, matrix<const X> x, matrix<Y> y) {
#pragma unroll
    for (int j = 0; j < ELEMENTS / THREADS; j++) {
        uint32_t i = blockIdx.x * ELEMENTS + j * THREADS + threadIdx.x, row = i / columns, column = i - row * columns;
        if (i < n) store(y.row(row) + column, as_float(x.row(row)[column]));
    }
}

template <typename X, typename Y>
static void convert_as(mu_device *dev, int64_t rows, int64_t columns, mu_mat x, mu_mat y) {
    MU_CHECK(rows * columns < UINT32_MAX - ELEMENTS, "%lld x %lld values", (long long)rows, (long long)columns);
    launch(dev, blocks_for(rows * columns, ELEMENTS), THREADS, 0, convert_kernel<X, Y>, (uint32_t)(rows * columns),
           (uint32_t)columns, matrix<const X>{ typed<X>(x).at, x.ld }, typed<Y>(y));
}

static void convert(mu_device *dev, int64_t rows, int64_t columns, mu_mat x, mu_mat y) {
    if (x.dtype == MU_DTYPE_BF16) convert_as<bf16, float>(dev, rows, columns, x, y);
    else convert_as<float, bf16>(dev, rows, columns, x, y);
}

/* The operand from (row, column) on. */
static mu_mat part(mu_mat x, int64_t row, int64_t column) {
    x.data = (char *)x.data + (row * x.ld + column) * (int64_t)mu_dtype_size(x.dtype);
    return x;
}

/* x in fp32: itself, or a copy in scratch; with `fill` the copy holds its values. */
static mu_mat in_fp32(cuda_scratch &scratch, mu_device *dev, int64_t rows, int64_t columns, mu_mat x, bool fill) {
    if (x.dtype == MU_DTYPE_F32) return x;
    mu_mat copy = { scratch.take<float>(rows * columns), MU_DTYPE_F32, columns };
    if (fill) convert(dev, rows, columns, x, copy);
    return copy;
}

static int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit > 1 ? limit : 1; }

/* Rows of C in pieces, and sums in pieces that are added in order; both depend only on the sizes. */
static void product_in_fp32(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b,
                            double beta, mu_mat c) {
    int64_t rows = at_most(m, PIECE / n), depth = at_most(k, PIECE / (n > rows ? n : rows));
    for (int64_t i = 0, mi; i < m; i += mi) {
        mi = at_most(m - i, rows);
        cuda_scratch for_c(dev);
        mu_mat ci = part(c, i, 0), sums = in_fp32(for_c, dev, mi, n, ci, beta != 0);
        for (int64_t p = 0, kp; p < k; p += kp) {
            kp = at_most(k - p, depth);
            cuda_scratch for_ab(dev);
            mu_mat ap = in_fp32(for_ab, dev, ta ? kp : mi, ta ? mi : kp, ta ? part(a, p, i) : part(a, i, p), true);
            mu_mat bp = in_fp32(for_ab, dev, tb ? n : kp, tb ? kp : n, tb ? part(b, 0, p) : part(b, p, 0), true);
            bool done = product(dev, ta, tb, mi, n, kp, ap, bp, p ? 1 : beta, sums);
            MU_CHECK(done,
                     "cuBLAS does not support a product of fp32 matrices, %lld x %lld x %lld", (long long)mi, (long long)n,
                     (long long)kp);
        }
        if (sums.data != ci.data) convert(dev, mi, n, sums, ci);
    }
}

/* ------------------------------------------------------------------ fp32 operands as sums of bf16 ones
 * A float is the sum of three bf16 numbers, of 8 bits each: x = x1 + x2 + x3, exactly, unless it is close to
 * overflow or underflow. So products of fp32 with bf16 matrices, the router's, go through the tensor cores and are
 * as exact as in fp32, in three products; of two fp32 matrices in six, x1 y1 + x1 y2 + x2 y1 + x2 y2 + x1 y3 + x3 y1,
 * where the omitted terms are below a float's last bit. (Ootomo & Yokota 2022 do the same with two fp16 numbers.) */
enum { PARTS = 3, PAIRS = 6 };
struct part_list { int n; unsigned char part[PAIRS]; };
static const part_list EACH = { PARTS, { 0, 1, 2 } }, OF_LEFT = { PAIRS, { 0, 0, 1, 1, 0, 2 } },
                       OF_RIGHT = { PAIRS, { 0, 1, 0, 1, 2, 0 } };

/* y[i * apart + ...] = part list.part[i] of x, a matrix of as many rows and columns. */
static __global__ void split_kernel(uint32_t n, uint32_t columns, matrix<const float> x, part_list list, matrix<bf16> y,
                                    int64_t apart) {
#pragma unroll
    for (int j = 0; j < ELEMENTS / THREADS; j++) {
        uint32_t i = blockIdx.x * ELEMENTS + j * THREADS + threadIdx.x, row = i / columns, column = i - row * columns;
        if (i >= n) continue;
        float left = x.row(row)[column], parts[PARTS];
#pragma unroll
        for (int p = 0; p < PARTS; p++) left -= parts[p] = as_float(__float2bfloat16_rn(left));
        bf16 *to = y.row(row) + column;
#pragma unroll
        for (int p = 0; p < PAIRS; p++)
            if (p < list.n) store(to + p * apart, list.part[p] == 0 ? parts[0] : list.part[p] == 1 ? parts[1] : parts[2]);
    }
}

/* The listed parts of x [rows, columns], below one another or, `beside`, next to one another, in scratch. */
static mu_mat split(cuda_scratch &scratch, mu_device *dev, int64_t rows, int64_t columns, mu_mat x, const part_list &list,
                    bool beside) {
    const int64_t EVEN = 8;                                 /* rows are aligned to 16 bytes for any number of columns */
    MU_CHECK(rows * columns < UINT32_MAX - ELEMENTS, "%lld x %lld values", (long long)rows, (long long)columns);
    int64_t wide = blocks_for(beside ? list.n * columns : columns, EVEN) * EVEN;
    mu_mat y = { scratch.take<bf16>((beside ? 1 : list.n) * rows * wide), MU_DTYPE_BF16, wide };
    launch(dev, blocks_for(rows * columns, ELEMENTS), THREADS, 0, split_kernel, (uint32_t)(rows * columns), (uint32_t)columns,
           matrix<const float>{ typed<float>(x).at, x.ld }, list, typed<bf16>(y), beside ? columns : rows * wide);
    return y;
}

/* One operand is bf16, the other one and C are fp32: a product for each part. */
static bool product_of_each(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b,
                            double beta, mu_mat c) {
    bool left = a.dtype == MU_DTYPE_F32;
    int64_t rows = left ? (ta ? k : m) : (tb ? n : k), columns = left ? (ta ? m : k) : (tb ? k : n);
    if (a.dtype == b.dtype || c.dtype != MU_DTYPE_F32 || rows * columns > PIECE) return false;
    cuda_scratch scratch(dev);
    mu_mat parts = split(scratch, dev, rows, columns, left ? a : b, EACH, false);
    for (int p = 0; p < PARTS; p++) {
        mu_mat one = part(parts, p * rows, 0);
        if (!product(dev, ta, tb, m, n, k, left ? one : a, left ? b : one, p ? 1 : beta, c)) return false;
    }
    return true;
}

/* Both are fp32 and C is bf16: one product, six times as deep, so that C is rounded once. Rows of C in pieces. */
static bool product_of_pairs(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b,
                             double beta, mu_mat c) {
    if (a.dtype != MU_DTYPE_F32 || b.dtype != MU_DTYPE_F32 || c.dtype != MU_DTYPE_BF16 || PAIRS * k * n > PIECE) return false;
    int64_t most = at_most(m, PIECE / (PAIRS * k));
    cuda_scratch for_b(dev);
    mu_mat right = split(for_b, dev, tb ? n : k, tb ? k : n, b, OF_RIGHT, tb);
    for (int64_t i = 0, rows; i < m; i += rows) {
        rows = at_most(m - i, most);
        cuda_scratch for_a(dev);
        mu_mat left = split(for_a, dev, ta ? k : rows, ta ? rows : k, ta ? part(a, 0, i) : part(a, i, 0), OF_LEFT, !ta);
        if (!product(dev, ta, tb, rows, n, PAIRS * k, left, right, beta, part(c, i, 0))) return false;
    }
    return true;
}

/* ------------------------------------------------------------------ the kernels */
static void zero(mu_device *dev, int64_t m, int64_t n, mu_mat c) {
    if (c.ld == n) n *= m, m = 1;
    for (int64_t i = 0; i < m; i++) mu_cuda_fill(dev, n, 0.0, part(c, i, 0));
}

void mu_cuda_gemm(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b, double beta,
                  mu_mat c) {
    if (!m || !n || (!k && beta != 0)) return;
    if (!k) zero(dev, m, n, c);
    else if (!product(dev, ta, tb, m, n, k, a, b, beta, c) && !product_of_each(dev, ta, tb, m, n, k, a, b, beta, c) &&
             !product_of_pairs(dev, ta, tb, m, n, k, a, b, beta, c))
        product_in_fp32(dev, ta, tb, m, n, k, a, b, beta, c);
}

/* Determined by the dtypes of the operands: only a bf16 result is rounded. */
void mu_cuda_gemm_master(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b, double beta,
                       mu_mat c) {
    mu_cuda_gemm(dev, ta, tb, m, n, k, a, b, beta, c);
}
