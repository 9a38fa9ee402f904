/* cpu.h - private to kernels/cpu: names per instruction set, operands, teams, thread buffers, exp.
 *
 * Every file here is compiled once per instruction set with -DMU_CPU_ISA=base|avx2|avx512|bf16, so each external
 * symbol is CPU(name) = mu_cpu_<isa>_<name>. Loops are plain C for the compiler's vectoriser (omp simd).
 * Order of sums: the blocks of a sum depend only on the problem; threads take whole blocks, and partial sums are
 * added in block order. So results have the same bits for any number of threads. */
#ifndef MUSTER_KERNELS_CPU_H
#define MUSTER_KERNELS_CPU_H

#include "kernels/kernels.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#ifndef MU_CPU_ISA
#define MU_CPU_ISA base
#endif
#define CPU_PASTE3(isa, name) mu_cpu_##isa##_##name
#define CPU_PASTE2(isa, name) CPU_PASTE3(isa, name)
#define CPU(name) CPU_PASTE2(MU_CPU_ISA, name)

#define K(name, params, args) void CPU(name) params;
MU_KERNELS(K)
#undef K

/* The same kernel without rounding to bf16. */
#if defined(__AVX512BF16__)
#define CPU_MASTER(name) mu_cpu_avx512_##name
#define K(name, params, args) void CPU_MASTER(name) params;
MU_KERNELS(K)
#undef K
enum { CPU_ROUNDS = 1 };
#else
#define CPU_MASTER(name) CPU(name)
enum { CPU_ROUNDS = 0 };
#endif

/* Products (product.c), each on the calling thread alone. B is packed first, into panels of CPU_NR columns:
 * row p of a panel holds CPU_NR neighbours of op(B)[p], missing columns are 0. An element of C is one chain
 * of multiply-adds in the order of k (in chunks of CPU_KC, added in order): its bits depend on its row of A
 * and its column of B, not on the number of rows or columns. */
#if defined(__AVX512F__)
enum { CPU_LANES = 16, CPU_MR = 14 };       /* 28 accumulators of 32 registers */
#elif defined(__AVX2__)
enum { CPU_LANES = 8, CPU_MR = 6 };         /* 12 of 16 */
#elif defined(__aarch64__)
enum { CPU_LANES = 4, CPU_MR = 12 };        /* 24 of 32 */
#else
enum { CPU_LANES = 4, CPU_MR = 6 };         /* 12 of 16 */
#endif
enum { CPU_NR = 2 * CPU_LANES, CPU_KC = 256 };
/* T(rows) for every height of a register tile. */
#define CPU_TILES(T) T(1) T(2) T(3) T(4) T(5) T(6) T(7) T(8) T(9) T(10) T(11) T(12) T(13) T(14)

/* With bf16 products (product_bf16.c) one packed word holds two neighbours along k: half as many rows. */
enum { CPU_ROWS_A_WORD = CPU_ROUNDS ? 2 : 1 };
static inline int64_t cpu_pairs(int64_t k) { return (k + CPU_ROWS_A_WORD - 1) / CPU_ROWS_A_WORD; }

/* Floats (or words of that size) of a packed op(B)[k, n]. */
static inline size_t cpu_packed(int64_t k, int64_t n) {
    return (size_t)((n + CPU_NR - 1) / CPU_NR * CPU_NR * cpu_pairs(k));
}

/* Packs op(B)[k, n]; b is [k, n], or [n, k] when tb. A part is the unit of work of one thread: a
 * panel if tb, else CPU_PART rows of b. */
enum { CPU_PART = 32 };
static inline int64_t cpu_parts(bool tb, int64_t k, int64_t n) {
    return tb ? (n + CPU_NR - 1) / CPU_NR : (k + CPU_PART - 1) / CPU_PART;
}
void CPU(pack_part)(bool tb, int64_t k, int64_t n, const float *b, int64_t ldb, int64_t part, float *to);
void CPU(pack)(bool tb, int64_t k, int64_t n, const float *b, int64_t ldb, float *to);

/* Packed B as the operand of products: `stride` floats between panels, `ld` between rows of a panel. */
typedef struct { const float *data; int64_t stride, ld; } cpu_panels;

static inline cpu_panels cpu_panels_of(const float *packed, int64_t k) {
    return (cpu_panels){ packed, cpu_pairs(k) * CPU_NR, CPU_NR };
}

/* B without its first rows, or columns; `row` a multiple of 2, `column` of CPU_NR. */
static inline cpu_panels cpu_panels_rows(cpu_panels b, int64_t row) {
    return (cpu_panels){ b.data + row / CPU_ROWS_A_WORD * b.ld, b.stride, b.ld };
}
static inline cpu_panels cpu_panels_columns(cpu_panels b, int64_t column) {
    return (cpu_panels){ b.data + column / CPU_NR * b.stride, b.stride, b.ld };
}

/* A row-major B whose width is a multiple of a panel need not be packed: reading it in place is as fast (only
 * transposing costs time). */
static inline bool cpu_in_place(int64_t n) { return CPU_ROWS_A_WORD == 1 && n % CPU_NR == 0; }
static inline cpu_panels cpu_panels_in_place(const float *b, int64_t ldb) {
    return (cpu_panels){ b, CPU_NR, ldb };
}
/* B [k, n] as a right operand: in place if possible, else packed into `to`. */
static inline cpu_panels cpu_panels_from(int64_t k, int64_t n, const float *b, int64_t ldb, float *to) {
    if (cpu_in_place(n)) return cpu_panels_in_place(b, ldb);
    CPU(pack)(false, k, n, b, ldb, to);
    return cpu_panels_of(to, k);
}

/* A product over nothing, k = 0. */
static inline void cpu_zero_rows(int64_t m, int64_t n, float *c, int64_t ldc) {
    for (int64_t i = 0; i < m; i++) memset(c + i * ldc, 0, (size_t)n * sizeof *c);
}

/* C[m,n] = op(A)[m,k] B, or += when `add`; a is [m, k], or [k, m] when ta. */
void CPU(multiply)(bool ta, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b,
                   bool add, float *c, int64_t ldc);

/* The same, not transposed, for an A that is not in a cache; AVX-512 only. */
void CPU(multiply_far)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b, bool add, float *c,
                       int64_t ldc);

/* C[m,n] = A[m,k] B^T, or +=, for few rows, m <= CPU_FEW, with B [n, k], n <= CPU_WIDE, unpacked: weights are read once, and
 * their transpose stays in the first-level cache. The same bits as multiply if batch_invariant; else the order of sums may
 * depend on m. */
enum { CPU_FEW = 256, CPU_WIDE = 4 * CPU_NR };
void CPU(multiply_few)(bool batch_invariant, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                       bool add, float *c, int64_t ldc);

/* The same with another order of sums; returns false, without doing anything, where that is not faster. */
bool CPU(multiply_dots)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, bool add,
                        float *c, int64_t ldc);

/* Elements per block of an element-wise loop: 64 KiB of floats. */
enum { CPU_BLOCK = 16384 };

/* An operand as a C array; fatal if its dtype is wrong. */
static inline void *cpu_typed(mu_mat m, mu_dtype dtype, const char *kernel) {
    MU_CHECK(!m.data || m.dtype == dtype, "%s: operand is %s, expected %s", kernel, mu_dtype_name(m.dtype), mu_dtype_name(dtype));
    return m.data;
}
#define cpu_f32(m) ((float *)cpu_typed(m, MU_DTYPE_F32, __func__))
#define cpu_f64(m) ((double *)cpu_typed(m, MU_DTYPE_F64, __func__))
#define cpu_i32(m) ((int32_t *)cpu_typed(m, MU_DTYPE_I32, __func__))
#define cpu_i64(m) ((int64_t *)cpu_typed(m, MU_DTYPE_I64, __func__))

static inline int64_t cpu_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t cpu_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t cpu_blocks(int64_t n, int64_t block) { return (n + block - 1) / block; }

/* Sum of squares of a block. */
static inline double cpu_sumsq(int64_t n, const float *x) {
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)x[i];
    return s;
}

/* to[r] = x[index[r]], n rows of D. Prefetches the row after next while copying a row. */
static inline void cpu_gather_rows(int64_t n, int64_t D, const int32_t *index, const float *x, int64_t ldx, float *to,
                                   int64_t ld) {
    for (int64_t r = 0; r < n; r++, to += ld) {
        const float *from = x + index[r] * ldx, *ahead = x + index[cpu_min(r + 2, n - 1)] * ldx;
        int64_t i = 0;
        for (; i + 16 <= D; i += 16) {
            __builtin_prefetch(ahead + i);
            memcpy(to + i, from + i, 16 * sizeof *to);
        }
        for (; i < D; i++) to[i] = from[i];
    }
}

/* Threads for `work` elements: starting a team costs a few microseconds. */
static inline int cpu_team(int64_t work) { return work < 20000 ? 1 : mu_threads(); }
/* The same for a product of `rows` rows with n*k weights, whose reading counts, too. */
static inline int cpu_product_team(int64_t rows, int64_t n, int64_t k) {
    return cpu_team(cpu_max(rows, 4) * n * cpu_max(k, 1) / 16);
}

/* One buffer of `floats` per thread of a team, from the device's scratch; the stride keeps the buffers on different
 * pages. Allocated before the parallel region, freed with mu_arena_release. */
typedef struct { float *base; size_t stride; } cpu_buffers;

static inline cpu_buffers cpu_buffers_new(mu_device *dev, int team, size_t floats) {
    size_t stride = ((floats + 1023) & ~(size_t)1023) + 16;
    return (cpu_buffers){ mu_arena_alloc(&dev->scratch, stride * sizeof(float) * (size_t)team), stride };
}

static inline float *cpu_buffer(cpu_buffers b) { return b.base + b.stride * (size_t)omp_get_thread_num(); }

/* Items 0 .. n-1 for a team: a thread takes the items of its own share, in order, then steals from the others'. So a thread
 * gets the same rows in consecutive kernels, which are then in its cache (cores need not share a cache), and all threads
 * finish together. Allocated before the parallel region, like buffers. */
typedef struct { _Alignas(64) int64_t next, end; } cpu_share;
typedef struct { cpu_share *list; int team; } cpu_shares;

static inline cpu_shares cpu_shares_new(mu_device *dev, int team, int64_t n) {
    cpu_shares s = { mu_arena_alloc(&dev->scratch, (size_t)team * sizeof *s.list), team };
    for (int t = 0; t < team; t++) s.list[t] = (cpu_share){ n * t / team, n * (t + 1) / team };
    return s;
}

/* The next item for this thread, or -1; *turn starts at 0. */
static inline int64_t cpu_take(cpu_shares s, int *turn) {
    for (; *turn < s.team; ++*turn) {
        cpu_share *share = s.list + (omp_get_thread_num() + *turn) % s.team;
        int64_t i = __atomic_fetch_add(&share->next, 1, __ATOMIC_RELAXED);
        if (i < share->end) return i;
    }
    return -1;
}

/* exp(x), relative error about 1e-7; loops over it vectorise on every instruction set:
 * x = n ln2 + r, the polynomial of Cephes' expf for r, then n is added to the exponent. Below -87.3 (and
 * for -inf) it is 0, above 88.3 infinity; NaN stays NaN. */
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

/* The same in double, about 1e-14: 11 terms of the series for r. Below -708 it is 0. */
static inline double cpu_exp_f64(double x) {
    const double round = 6755399441055744.0;    /* 1.5 * 2^52 */
    union { double f; int64_t i; } t, two_n;
    double y = x < -708 ? -708 : x > 709 ? 709 : x;
    t.f = y * 1.4426950408889634074 + round;
    double n = t.f - round;
    double r = y - n * 0.693147180369123816490; /* ln 2 in two parts, the first with 32 zero bits at its end */
    r = r - n * 1.90821492927058770002e-10;
    double p = r * (1.0 / 12) + 1;
    p = p * (r * (1.0 / 11)) + 1;
    p = p * (r * (1.0 / 10)) + 1;
    p = p * (r * (1.0 / 9)) + 1;
    p = p * (r * (1.0 / 8)) + 1;
    p = p * (r * (1.0 / 7)) + 1;
    p = p * (r * (1.0 / 6)) + 1;
    p = p * (r * (1.0 / 5)) + 1;
    p = p * (r * (1.0 / 4)) + 1;
    p = p * (r * (1.0 / 3)) + 1;
    p = p * (r * (1.0 / 2)) + 1;
    p = p * r + 1;
    two_n.i = (int64_t)((uint64_t)t.i << 52) + 0x3ff0000000000000;
    double e = p * two_n.f;
    return x < -708 ? 0 : e;
}

static inline float cpu_sigmoid(float x) { return 1.0f / (1.0f + cpu_exp(-x)); }

#endif
