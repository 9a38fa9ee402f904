/* ptx.h - wrappers for the few instructions without a C equivalent.
 *
 * Names and fragment layouts as in the PTX manual ("Warp-level matrix instructions", "cp.async"). Lane l of a warp has
 * group g = l / 4 and column pair c = 2 * (l % 4); two bf16 share a register, the lower index in the lower half.
 *     A 16x16, row-major:  a[0] = A[g][c, c+1]  a[1] = A[g+8][c, c+1]  a[2] = A[g][c+8, c+9]  a[3] = A[g+8][c+8, c+9]
 *     B 16x8 (K x N):      b[0] = B[c, c+1][g]  b[1] = B[c+8, c+9][g]
 *     C, D 16x8, fp32:     d[0], d[1] = D[g][c, c+1]   d[2], d[3] = D[g+8][c, c+1]
 * The tests define these functions on the host instead (tests/cuda_on_host/on_host.h). */
#ifndef MUSTER_KERNELS_CUDA_PTX_H
#define MUSTER_KERNELS_CUDA_PTX_H
#include <cuda_runtime.h>

/* A shared-memory address for the instructions below. */
static __device__ __forceinline__ unsigned mu_ptx_shared(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

/* Four 8x8 matrices of 16-bit elements from shared memory: lane 8*i + j gives the address of row j of matrix i (16
 * bytes, aligned to 16); of matrix i, lane l receives elements c and c+1 of row g in r[i]. */
static __device__ __forceinline__ void mu_ptx_ldmatrix_x4(unsigned r[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

/* The same, each matrix transposed: lane l receives elements g of rows c and c+1. */
static __device__ __forceinline__ void mu_ptx_ldmatrix_x4_trans(unsigned r[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

/* D += A B: bf16 operands, fp32 sums. */
static __device__ __forceinline__ void mu_ptx_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Asynchronous copies from global to shared memory: `bytes` of the 4, 8 or 16 come from `from`, the rest becomes zero.
 * Both addresses are multiples of the size. The data is valid after the wait. */
static __device__ __forceinline__ void mu_ptx_cp_async_4(unsigned to, const void *from, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" : : "r"(to), "l"(from), "r"(bytes) : "memory");
}
static __device__ __forceinline__ void mu_ptx_cp_async_8(unsigned to, const void *from, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" : : "r"(to), "l"(from), "r"(bytes) : "memory");
}
static __device__ __forceinline__ void mu_ptx_cp_async_16(unsigned to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(to), "l"(from), "r"(bytes) : "memory");
}

/* Closes this thread's current group of copies. */
static __device__ __forceinline__ void mu_ptx_cp_async_commit(void) { asm volatile("cp.async.commit_group;" : : : "memory"); }

/* Waits for all but the newest `pending` groups of this thread. Other threads see the data after a barrier. */
template <int pending> static __device__ __forceinline__ void mu_ptx_cp_async_wait(void) {
    asm volatile("cp.async.wait_group %0;" : : "n"(pending) : "memory");
}

/* 2^x to about two units in the last place; a result below 2^-126 is 0. */
static __device__ __forceinline__ float mu_ptx_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif
