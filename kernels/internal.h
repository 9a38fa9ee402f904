/* internal.h - the kernel tables that mu_device_open chooses from, and the interface of a kind of device. */
#ifndef MUSTER_KERNELS_INTERNAL_H
#define MUSTER_KERNELS_INTERNAL_H
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const mu_kernels mu_kernels_ref;             /* kernels/ref/table.c */
extern const mu_kernels mu_kernels_cpu_base;        /* kernels/cpu/, compiled once for each instruction set */
#if defined(__x86_64__)
extern const mu_kernels mu_kernels_cpu_avx2, mu_kernels_cpu_avx512, mu_kernels_cpu_bf16;
#endif

/* Memory and copies of a kind of device, behind the functions of kernels.h with the same names. `reserve` and
 * `release` fill in and empty m->region; bytes are never 0 in `read` and `write`; `close` frees the device. */
typedef struct mu_backend {
    void (*reserve)(mu_memory *m, size_t bytes);
    void (*commit)(mu_memory *m, size_t bytes);
    void (*release)(mu_memory *m);
    void (*read)(mu_device *dev, void *to, const void *data, size_t bytes);
    void (*write)(mu_device *dev, void *data, const void *from, size_t bytes);
    void *(*stage_begin)(mu_device *dev, void *data, size_t bytes, bool wanted);
    void (*stage_end)(mu_device *dev, void *data, size_t bytes, bool written);
    void (*finish)(mu_device *dev);                     /* NULL: work is done when a kernel returns */
    void (*close)(mu_device *dev);
} mu_backend;

/* "cuda" or "cuda-bf16", with ":n" on GPU n modulo their number; NULL when there is none. In cuda/device.cu, or in
 * cuda_none.c in a build without CUDA. */
mu_device *mu_cuda_open(const char *kind);

#ifdef __cplusplus
}
#endif
#endif
