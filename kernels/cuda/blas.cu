/* blas.cu - dense products, by cuBLAS: the only file that includes it.
 *
 * cuBLAS reads a row-major matrix as its transpose, so C = op(A) op(B) is asked for as C^T = op(B)^T op(A)^T: the operands
 * change places and keep their flags. Sums are fp32; fp32 operands are never rounded (no TF32), and the product of two
 * bf16 values is exact. cuBLAS gives the same bits in every run on one kind of GPU as long as it uses no atomics (its
 * default) and no other stream; its workspace is our scratch, so that nothing is allocated after the first product. */
#include "kernels/cuda/cuda.h"

#include <cublas_v2.h>

static const int64_t WORKSPACE = (int64_t)32 << 20;         /* bytes: what cuBLAS recommends for Hopper */
#ifndef MU_BLAS_PIECE           /* the emulation has smaller ones, so that its tests meet several */
#define MU_BLAS_PIECE (16 << 20)
#endif
static const int64_t PIECE = MU_BLAS_PIECE;                 /* values of an operand that are fp32 in scratch at a time */

static void check(cublasStatus_t status, const char *what) {
    MU_CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLAS: %s: %s%s", what, cublasGetStatusString(status),
             status == CUBLAS_STATUS_ALLOC_FAILED ? "; a smaller train.micro_batch_size leaves it more memory" : "");
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

/* ------------------------------------------------------------------ what cuBLAS can do at once */
static cudaDataType type_of(mu_mat x) { return x.dtype == MU_DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF; }

/* cuBLAS wants a leading dimension that would do for a second row, too. */
static int64_t ld_of(mu_mat x, int64_t width) { return x.ld > width ? x.ld : width; }

/* C = beta C + op(A) op(B). False, and nothing done, for types that cuBLAS does not bring together, or when it refuses
 * these operands. */
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

/* ------------------------------------------------------------------ anything else: in fp32, piece by piece */
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

/* Rows of C in pieces, and sums in pieces that are added in their order; both cuts depend on the sizes alone. */
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
            MU_CHECK(done, "cuBLAS refuses a product of fp32 matrices, %lld x %lld x %lld", (long long)mi, (long long)n,
                     (long long)kp);
        }
        if (sums.data != ci.data) convert(dev, mi, n, sums, ci);
    }
}

/* ------------------------------------------------------------------ the kernels of the list */
static void zero(mu_device *dev, int64_t m, int64_t n, mu_mat c) {
    if (c.ld == n) n *= m, m = 1;
    for (int64_t i = 0; i < m; i++) mu_cuda_fill(dev, n, 0.0, part(c, i, 0));
}

void mu_cuda_gemm(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b, double beta,
                  mu_mat c) {
    if (!m || !n || (!k && beta != 0)) return;
    if (!k) zero(dev, m, n, c);
    else if (!product(dev, ta, tb, m, n, k, a, b, beta, c)) product_in_fp32(dev, ta, tb, m, n, k, a, b, beta, c);
}

/* The types of the operands say it all: nothing is rounded but a bf16 result. */
void mu_cuda_gemm_fine(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b, double beta,
                       mu_mat c) {
    mu_cuda_gemm(dev, ta, tb, m, n, k, a, b, beta, c);
}
