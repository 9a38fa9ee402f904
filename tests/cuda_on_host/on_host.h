/* on_host.h - included before every .cu file that is compiled for the host: takes the place of kernels/cuda/ptx.h.
 * The definitions, from the PTX manual, are in instructions.cpp. */
#ifndef MUSTER_KERNELS_CUDA_PTX_H
#define MUSTER_KERNELS_CUDA_PTX_H
#include <cuda_runtime.h>

void mu_emulated_ldmatrix(unsigned r[4], unsigned row, bool transposed, const char *file, int line);
void mu_emulated_mma(float d[4], const unsigned a[4], const unsigned b[2], const char *file, int line);
void mu_emulated_cp_async(unsigned to, const void *from, int size, int bytes);
void mu_emulated_cp_async_commit(void);
void mu_emulated_cp_async_wait(int pending);

static inline unsigned mu_ptx_shared(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
static inline void mu_ptx_ldmatrix_x4(unsigned r[4], unsigned row, MU_SITE_PARAMETERS) {
    mu_emulated_ldmatrix(r, row, false, file, line);
}
static inline void mu_ptx_ldmatrix_x4_trans(unsigned r[4], unsigned row, MU_SITE_PARAMETERS) {
    mu_emulated_ldmatrix(r, row, true, file, line);
}
static inline void mu_ptx_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2], MU_SITE_PARAMETERS) {
    mu_emulated_mma(d, a, b, file, line);
}
static __forceinline__ void mu_ptx_cp_async_4(unsigned to, const void *from, int bytes) {
    mu_emulated_cp_async(to, from, 4, bytes);
}
static __forceinline__ void mu_ptx_cp_async_8(unsigned to, const void *from, int bytes) {
    mu_emulated_cp_async(to, from, 8, bytes);
}
static __forceinline__ void mu_ptx_cp_async_16(unsigned to, const void *from, int bytes) {
    mu_emulated_cp_async(to, from, 16, bytes);
}
static inline void mu_ptx_cp_async_commit(void) { mu_emulated_cp_async_commit(); }
template <int pending> static inline void mu_ptx_cp_async_wait(void) { mu_emulated_cp_async_wait(pending); }
static inline float mu_ptx_exp2(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
#endif
