/* dots.c - products of one to four rows with unpacked weights [n, k], with another order of sums than product.c.
 *
 * Both operands are read along k, a vector at a time; the lanes of a sum are added at its end, those of CPU_LANES sums at
 * once. So nothing is transposed, a value of B is loaded once for all rows, and the product is as fast as the memory.
 * AVX2 and AVX-512; not for bf16 products, which experts do not use for few rows. */
#include "kernels/cpu/cpu.h"

#if defined(__AVX2__) && !defined(__AVX512BF16__)
#include <immintrin.h>

enum { MOST_ROWS = 4 };

#if defined(__AVX512F__)
typedef __m512 lanes;
static inline lanes lanes_of(const float *x) { return _mm512_loadu_ps(x); }

/* Lane i = the sum of x[i]'s lanes. The remaining halves of two vectors are added in one vector. */
static inline __attribute__((always_inline)) lanes sums_of(lanes x[16]) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        x[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i], x[i + 8], 0x44), _mm512_shuffle_f32x4(x[i], x[i + 8], 0xee));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)             /* quarters of i, i+8, i+4, i+12; the indices below put them in order */
        x[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) x[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[i], x[i + 2]), _mm512_unpackhi_ps(x[i], x[i + 2]));
    lanes sums = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    return _mm512_shuffle_f32x4(sums, sums, 0xd8);
}
#else
typedef __m256 lanes;
static inline lanes lanes_of(const float *x) { return _mm256_loadu_ps(x); }

static inline __attribute__((always_inline)) lanes sums_of(lanes x[8]) {
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
        x[i] = _mm256_hadd_ps(_mm256_hadd_ps(x[i], x[i + 1]), _mm256_hadd_ps(x[i + 2], x[i + 3]));
    return _mm256_add_ps(_mm256_permute2f128_ps(x[0], x[4], 0x20), _mm256_permute2f128_ps(x[0], x[4], 0x31));
}
#endif

/* `rows` x `columns` <= CPU_LANES sums. Prefetches the next rows of B. */
static inline __attribute__((always_inline)) void dots_tile(const int rows, const int columns, int64_t k, const float *a,
                                                            int64_t lda, const float *b, int64_t ldb, bool add, float *c,
                                                            int64_t ldc) {
    lanes sum[CPU_LANES];
    float sums[CPU_LANES];
    int64_t p = 0;
#pragma GCC unroll 16
    for (int i = 0; i < CPU_LANES; i++) sum[i] = (lanes){ 0 };
    for (; p + CPU_LANES <= k; p += CPU_LANES) {
        lanes x[MOST_ROWS];
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) x[i] = lanes_of(a + i * lda + p);
#pragma GCC unroll 16
        for (int j = 0; j < columns; j++) {
            lanes w = lanes_of(b + j * ldb + p);
            __builtin_prefetch(b + (j + columns) * ldb + p, 0, 2);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) sum[i * columns + j] += x[i] * w;
        }
    }
    lanes all = sums_of(sum);
    memcpy(sums, &all, sizeof sums);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            float s = sums[i * columns + j];
            for (int64_t q = p; q < k; q++) s += a[i * lda + q] * b[j * ldb + q];
            c[i * ldc + j] = add ? c[i * ldc + j] + s : s;
        }
}

typedef void dots_function(int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, bool add, float *c, int64_t ldc);
#define DOTS(T) T(1, CPU_LANES / 2) T(2, CPU_LANES / 2) T(3, CPU_LANES / 4) T(4, CPU_LANES / 4)
#define TILE(rows, columns)                                                                                                    \
    static void dots_##rows(int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, bool add, float *c, int64_t ldc) { \
        dots_tile(rows, columns, k, a, lda, b, ldb, add, c, ldc);                                                              \
    }                                                                                                                          \
    static void dots_##rows##_single(int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, bool add, float *c,  \
                                     int64_t ldc) {                                                                            \
        dots_tile(rows, 1, k, a, lda, b, ldb, add, c, ldc);                                                                    \
    }
DOTS(TILE)
#undef TILE
#define TILE(rows, columns) { { dots_##rows##_single, dots_##rows }, columns },
static const struct { dots_function *run[2]; int64_t columns; } dots[] = { { { NULL }, 0 }, DOTS(TILE) };
#undef TILE

bool CPU(multiply_dots)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, bool add,
                        float *c, int64_t ldc) {
    if (m < 1 || m > MOST_ROWS) return false;
    for (int64_t j = 0, step; j < n; j += step) {
        bool wide = n - j >= dots[m].columns;
        step = wide ? dots[m].columns : 1;
        dots[m].run[wide](k, a, lda, b + j * ldb, ldb, add, c + j, ldc);
    }
    return true;
}
#else
bool CPU(multiply_dots)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, bool add,
                        float *c, int64_t ldc) {
    (void)m, (void)n, (void)k, (void)a, (void)lda, (void)b, (void)ldb, (void)add, (void)c, (void)ldc;
    return false;
}
#endif
