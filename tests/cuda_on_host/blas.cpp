/* blas.cpp - cuBLAS for the emulation: the few calls of kernels/cuda/blas.cu, by their manual, the product as work of the
 * stream like any other. Matrices are column-major. A call is as strict as cuBLAS may be: what would make it allocate, or what some
 * version could refuse, is an error or refused here. */
#include "engine.h"

#include <cublas_v2.h>
#include <cuda_bf16.h>

using namespace emu;

struct cublasContext { cudaStream_t stream; void *workspace; bool wide_sums; };

cublasStatus_t cublasCreate(cublasHandle_t *handle) {
    *handle = new cublasContext{};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle) {
    cudaStreamSynchronize(handle->stream);
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

/* Another stream: back to memory of its own. */
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
    handle->stream = stream, handle->workspace = nullptr;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void *workspace, size_t bytes) {
    if ((uintptr_t)workspace % 256 || !bytes) return CUBLAS_STATUS_INVALID_VALUE;
    handle->workspace = workspace;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
    handle->wide_sums = mode == CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusString(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
        case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
        case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
        case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
        case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "unknown cuBLAS status";
}

/* ---------------------------------------------------------------- the product */
/* rows x columns values, `across` apart along a row and `down` apart along a column: op(A) as it lies, or transposed. */
struct operand {
    const void *at;
    int64_t rows, columns, down, across;
    bool half;
    float value(int64_t i, int64_t j) const {
        int64_t place = i * down + j * across;
        return half ? (float)((const __nv_bfloat16 *)at)[place] : ((const float *)at)[place];
    }
};
enum { TALL = 8, WIDE = 4 };
typedef float four __attribute__((vector_size(16)));

/* Strips of `wide` values along a row, one after the other: for each, all k rows. What is missing of the last is 0. */
static std::vector<float> strips_of(const operand &x, int64_t wide) {
    std::vector<float> strips((size_t)((x.columns + wide - 1) / wide * wide * x.rows));
    float *to = strips.data();
    for (int64_t first = 0; first < x.columns; first += wide)
        for (int64_t i = 0; i < x.rows; i++, to += wide)
            for (int64_t j = 0; j < wide && first + j < x.columns; j++) to[j] = x.value(i, first + j);
    return strips;
}

/* TALL x WIDE sums of products, each in the order of k. */
static void tile(int64_t k, const float *a, const float *b, float sum[WIDE][TALL]) {
    four s[WIDE][2] = {};
    for (int64_t p = 0; p < k; p++, a += TALL, b += WIDE) {
        four low, high;
        memcpy(&low, a, sizeof low), memcpy(&high, a + 4, sizeof high);
        for (int j = 0; j < WIDE; j++) s[j][0] += low * b[j], s[j][1] += high * b[j];
    }
    memcpy(sum, s, sizeof s);
}

/* C [m, n], column-major = alpha A B + beta C, with A^T [k, m] and B [k, n]. */
template <typename T> static void product(float alpha, const operand &a, const operand &b, float beta, T *c, int64_t ldc) {
    int64_t m = a.columns, n = b.columns, k = a.rows;
    std::vector<float> of_a = strips_of(a, TALL), of_b = strips_of(b, WIDE);
    for (int64_t j = 0; j < n; j += WIDE)
        for (int64_t i = 0; i < m; i += TALL) {
            float sum[WIDE][TALL];
            tile(k, of_a.data() + i * k, of_b.data() + j * k, sum);
            for (int64_t q = 0; q < min(n - j, (int64_t)WIDE); q++)
                for (int64_t p = 0; p < min(m - i, (int64_t)TALL); p++) {
                    T *to = c + (j + q) * ldc + i + p;
                    *to = T(alpha * sum[q][p] + (beta == 0 ? 0 : beta * (float)*to));
                }
        }
}

/* `columns` stretches of memory, `apart` values from one to the next, that the product touches. */
static void touch(Access how, const void *at, int64_t rows, int64_t columns, int64_t apart, size_t size) {
    for (int64_t j = 0; j < columns; j++)
        library_access("cublasGemmEx_64", (const char *)at + (size_t)(j * apart) * size, (size_t)rows * size, how);
}

/* The manual asks no more than alignment to the element; 16-bit values at odd places are where a version could differ. */
static bool odd_place(const void *p, cudaDataType type, int64_t ld) {
    return type == CUDA_R_16BF && ((uintptr_t)p % 4 || ld % 2);
}

cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t ta, cublasOperation_t tb, int64_t m, int64_t n,
                               int64_t k, const void *alpha, const void *a, cudaDataType a_type, int64_t lda, const void *b,
                               cudaDataType b_type, int64_t ldb, const void *beta, void *c, cudaDataType c_type, int64_t ldc,
                               cublasComputeType_t, cublasGemmAlgo_t) {
    if (!handle->workspace || !handle->wide_sums) return CUBLAS_STATUS_NOT_INITIALIZED;
    int64_t a_rows = ta == CUBLAS_OP_N ? m : k, b_rows = tb == CUBLAS_OP_N ? k : n;
    if (m < 0 || n < 0 || k < 0 || lda < max(a_rows, (int64_t)1) || ldb < max(b_rows, (int64_t)1) || ldc < max(m, (int64_t)1))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a_type != b_type || (a_type == CUDA_R_32F && c_type != CUDA_R_32F)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (odd_place(a, a_type, lda) || odd_place(b, b_type, ldb) || odd_place(c, c_type, ldc)) return CUBLAS_STATUS_NOT_SUPPORTED;
    float one = *(const float *)alpha, keep = *(const float *)beta;
    bool half = a_type == CUDA_R_16BF, half_result = c_type == CUDA_R_16BF;
    operand left = { a, k, m, ta == CUBLAS_OP_N ? lda : 1, ta == CUBLAS_OP_N ? 1 : lda, half };
    operand right = { b, k, n, tb == CUBLAS_OP_N ? 1 : ldb, tb == CUBLAS_OP_N ? ldb : 1, half };
    enqueue(handle->stream, "cublasGemmEx_64", [=] {
        touch(READ, a, a_rows, ta == CUBLAS_OP_N ? k : m, lda, half ? 2 : 4);
        touch(READ, b, b_rows, tb == CUBLAS_OP_N ? n : k, ldb, half ? 2 : 4);
        if (keep != 0) touch(READ, c, m, n, ldc, half_result ? 2 : 4);
        touch(WRITE, c, m, n, ldc, half_result ? 2 : 4);
        if (half_result) product(one, left, right, keep, (__nv_bfloat16 *)c, ldc);
        else product(one, left, right, keep, (float *)c, ldc);
    });
    return CUBLAS_STATUS_SUCCESS;
}
