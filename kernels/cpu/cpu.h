/* cpu.h - private to kernels/cpu: names that carry the instruction set, operands, teams, thread buffers, exp.
 *
 * Every file here is compiled once per instruction set with -DMU_CPU_ISA=base|avx2|avx512, so each external
 * symbol is CPU(name) = cpu_<isa>_<name>. Loops are plain C for the compiler's vectoriser (omp simd).
 * Order of sums: work is cut into blocks that depend on the problem only; threads take whole blocks, and
 * partial sums of blocks are added in block order. So results are the same bits for any number of threads. */
#ifndef MUSTER_KERNELS_CPU_H
#define MUSTER_KERNELS_CPU_H

#include "kernels/kernels.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#ifndef MU_CPU_ISA
#define MU_CPU_ISA base
#endif
#define CPU_PASTE3(isa, name) cpu_##isa##_##name
#define CPU_PASTE2(isa, name) CPU_PASTE3(isa, name)
#define CPU(name) CPU_PASTE2(MU_CPU_ISA, name)

#define K(name, params, args) void CPU(name) params;
MU_KERNELS(K)
#undef K

/* C[m,n] = beta C + alpha op(A) op(B) on the calling thread alone; call cpu_enter() first in the region. */
void CPU(sgemm)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* Elements of a block of an element-wise loop: 64 KiB of floats, enough to pay for handing it out. */
enum { CPU_BLOCK = 16384 };

static inline float *cpu_f32(mu_mat a) { return a.data; }
static inline double *cpu_f64(mu_mat a) { return a.data; }
static inline int32_t *cpu_i32(mu_mat a) { return a.data; }
static inline int64_t *cpu_i64(mu_mat a) { return a.data; }

static inline int64_t cpu_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t cpu_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t cpu_blocks(int64_t n, int64_t block) { return (n + block - 1) / block; }

/* Threads for `work` elements touched: waking a team costs a few microseconds. */
static inline int cpu_team(int64_t work) { return work < 20000 ? 1 : mu_threads(); }

/* A region of one thread counts as "not parallel", and oneDNN would start its own team in it. */
static inline void cpu_enter(void) { omp_set_num_threads(1); }

/* One buffer of `floats` for each of `team` threads, from the device's scratch; the stride keeps the buffers
 * on different pages. Taken before the parallel region, given back with mu_arena_release. */
typedef struct { float *base; size_t stride; } cpu_buffers;

static inline size_t cpu_round(size_t floats) { return (floats + 15) & ~(size_t)15; }

static inline cpu_buffers cpu_buffers_new(mu_device *dev, int team, size_t floats) {
    size_t stride = ((floats + 1023) & ~(size_t)1023) + 16;
    return (cpu_buffers){ mu_arena_alloc(&dev->scratch, stride * sizeof(float) * (size_t)team), stride };
}

static inline float *cpu_buffer(cpu_buffers b) { return b.base + b.stride * (size_t)omp_get_thread_num(); }

/* exp(x), about 1e-7 relative, written so that loops over it vectorise on every instruction set:
 * x = n ln2 + r, the polynomial of Cephes' expf for r, then n goes into the exponent. Below -87.3 (so for
 * -inf too) it is 0, above 88.3 infinity; NaN stays NaN. */
static inline float cpu_exp(float x) {
    const float round = 12582912.0f;            /* 1.5 * 2^23: adding it leaves n in the low bits */
    union { float f; int32_t i; } t, two_n;
    float y = x < -87.3f ? -87.3f : x > 88.7f ? 88.7f : x;
    t.f = y * 1.44269504088896341f + round;
    float n = t.f - round;
    float r = y - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    two_n.i = (int32_t)((uint32_t)t.i << 23) + 0x3f800000;
    float e = p * two_n.f;
    return x < -87.3f ? 0.0f : e;
}

static inline float cpu_sigmoid(float x) { return 1.0f / (1.0f + cpu_exp(-x)); }

#endif
