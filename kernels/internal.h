/* internal.h - the kernel tables that mu_device_open chooses from. */
#ifndef MUSTER_KERNELS_INTERNAL_H
#define MUSTER_KERNELS_INTERNAL_H
#include "kernels/kernels.h"

extern const mu_kernels mu_kernels_ref;             /* kernels/ref/table.c */
extern const mu_kernels mu_kernels_cpu_base;        /* kernels/cpu/, compiled once for each instruction set */
#if defined(__x86_64__)
extern const mu_kernels mu_kernels_cpu_avx2, mu_kernels_cpu_avx512, mu_kernels_cpu_bf16;
#endif

#endif
