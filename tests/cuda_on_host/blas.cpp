/* blas.cpp - cuBLAS for the emulation: the few calls of kernels/cuda/blas.cu, by their manual, the product as a plain
 * kernel. Matrices are column-major. A call is as strict as cuBLAS may be: what would make it allocate, or what some
 * version could refuse, is an error or refused here. */
#include <cublas_v2.h>
#include <cuda_bf16.h>

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
struct operand { const void *at; int64_t along, k; };       /* values apart along m or n, and along k */
enum { THREADS = 128, STRIP = 16 };

/* A thread sums STRIP values of a column of C, each in the order of k. */
template <typename AB, typename CT>
static __global__ void product(int64_t m, int64_t n, int64_t k, float alpha, operand a, operand b, float beta, CT *c,
                               int64_t ldc) {
    int64_t strips = (m + STRIP - 1) / STRIP, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= strips * n) return;
    int64_t column = i / strips, first = i % strips * STRIP, rows = min(m - first, (int64_t)STRIP);
    const AB *from_a = (const AB *)a.at + first * a.along, *from_b = (const AB *)b.at + column * b.along;
    float sum[STRIP] = {};
    for (int64_t p = 0; p < k; p++) {
        float value = from_b[p * b.k];
        const AB *row = from_a + p * a.k;
        if (rows == STRIP)
            for (int r = 0; r < STRIP; r++) sum[r] += (float)row[r * a.along] * value;
        else
            for (int64_t r = 0; r < rows; r++) sum[r] += (float)row[r * a.along] * value;
    }
    CT *to = c + column * ldc + first;
    for (int64_t r = 0; r < rows; r++) to[r] = CT(alpha * sum[r] + (beta == 0 ? 0 : beta * (float)to[r]));
}

template <typename AB, typename CT>
static cublasStatus_t start(cublasHandle_t handle, int64_t m, int64_t n, int64_t k, float alpha, operand a, operand b,
                            float beta, void *c, int64_t ldc) {
    int64_t threads = (m + STRIP - 1) / STRIP * n;
    if (!threads) return CUBLAS_STATUS_SUCCESS;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)((threads + THREADS - 1) / THREADS)), config.blockDim = dim3(THREADS);
    config.stream = handle->stream;
    cudaError_t error = cudaLaunchKernelEx(&config, product<AB, CT>, m, n, k, alpha, a, b, beta, (CT *)c, ldc);
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED;
}

/* The manual asks no more than alignment to the element; 16-bit values at odd places are where a version could differ. */
static bool odd_place(const void *p, cudaDataType type, int64_t ld) {
    return type == CUDA_R_16BF && ((uintptr_t)p % 4 || ld % 2);
}

cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t ta, cublasOperation_t tb, int64_t m, int64_t n,
                               int64_t k, const void *alpha, const void *a, cudaDataType a_type, int64_t lda,
                               const void *b, cudaDataType b_type, int64_t ldb, const void *beta, void *c,
                               cudaDataType c_type, int64_t ldc, cublasComputeType_t, cublasGemmAlgo_t) {
    if (!handle->workspace || !handle->wide_sums) return CUBLAS_STATUS_NOT_INITIALIZED;
    int64_t a_rows = ta == CUBLAS_OP_N ? m : k, b_rows = tb == CUBLAS_OP_N ? k : n;
    const int64_t least = 1;
    if (m < 0 || n < 0 || k < 0 || lda < max(a_rows, least) || ldb < max(b_rows, least) || ldc < max(m, least))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a_type != b_type || (a_type == CUDA_R_32F && c_type != CUDA_R_32F)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (odd_place(a, a_type, lda) || odd_place(b, b_type, ldb) || odd_place(c, c_type, ldc))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    operand left = ta == CUBLAS_OP_N ? operand{ a, 1, lda } : operand{ a, lda, 1 };
    operand right = tb == CUBLAS_OP_N ? operand{ b, ldb, 1 } : operand{ b, 1, ldb };
    float one = *(const float *)alpha, keep = *(const float *)beta;
    if (a_type == CUDA_R_32F) return start<float, float>(handle, m, n, k, one, left, right, keep, c, ldc);
    if (c_type == CUDA_R_32F) return start<__nv_bfloat16, float>(handle, m, n, k, one, left, right, keep, c, ldc);
    return start<__nv_bfloat16, __nv_bfloat16>(handle, m, n, k, one, left, right, keep, c, ldc);
}
