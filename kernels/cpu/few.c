/* few.c - products of few rows with unpacked weights [n, k]: C[m,n] = A[m,k] B^T, m <= CPU_FEW, n <= CPU_WIDE.
 *
 * To vectorise over columns the weights must be transposed, which for few rows costs more than the product. Alternatives,
 * all but the last with the same chain of multiply-adds per element as in product.c, so the same bits:
 *   transposed  AVX-512, up to eight rows, fp32: blocks of 16 columns x 16 values are transposed in registers and multiplied
 *               from there: nothing is stored, and the shuffles run on other ports than the multiply-adds. One or two
 *               rows alternate between two blocks, so that a row's chain of sums does not stall. The next columns' weights
 *               are prefetched in software: there are too many streams for the hardware prefetcher.
 *   across      AVX-512, more rows: the product is transposed, C^T = B A^T: the weights are the left operand and are not
 *               transposed; the few rows of A and of the result are.
 *   packed      Otherwise the weights of a panel are transposed into the first-level cache and used at once.
 *   dots        Up to four rows, not batch-invariant: dots.c. */
#include "kernels/cpu/cpu.h"

#if defined(__AVX512F__)
#include "kernels/cpu/transpose.h"
#endif

/* ---------------------------------------------------------------- transposed */
#if defined(__AVX512F__) && !defined(__AVX512BF16__)
enum { AT_ONCE = 8 };

/* Sums of `rows` rows and `groups` times 16 columns over k <= CPU_KC values; columns beyond n are 0. */
static inline __attribute__((always_inline)) void transposed_tile(const int rows, const int groups, int64_t n,
                                                              int64_t k, const float *a, int64_t lda,
                                                              const float *b, int64_t ldb, bool add, float *c,
                                                              int64_t ldc) {
    __m512 sum[AT_ONCE][2], r[16];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int g = 0; g < groups; g++) sum[i][g] = _mm512_setzero_ps();
    int64_t p = 0;
    for (; p + 16 <= k; p += 16)
#pragma GCC unroll 2
        for (int g = 0; g < groups; g++) {
            if (n >= 16 * groups) {
#pragma GCC unroll 16
                for (int j = 0; j < 16; j++) r[j] = _mm512_loadu_ps(b + (16 * g + j) * ldb + p);
            } else {
#pragma GCC unroll 16
                for (int j = 0; j < 16; j++)
                    r[j] = 16 * g + j < n ? _mm512_loadu_ps(b + (16 * g + j) * ldb + p) : _mm512_setzero_ps();
            }
            cpu_transpose(r);
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) __builtin_prefetch(b + (16 * (g + groups) + j) * ldb + p, 0, 2);
#pragma GCC unroll 16
            for (int q = 0; q < 16; q++)
#pragma GCC unroll 8
                for (int i = 0; i < rows; i++)
                    sum[i][g] = _mm512_fmadd_ps(r[q], _mm512_set1_ps(a[i * lda + p + q]), sum[i][g]);
        }
    for (; p < k; p++) /* the remainder of k, value by value */
#pragma GCC unroll 2
        for (int g = 0; g < groups; g++) {
            float column[16];
            for (int j = 0; j < 16; j++) column[j] = 16 * g + j < n ? b[(16 * g + j) * ldb + p] : 0;
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++)
                sum[i][g] = _mm512_fmadd_ps(_mm512_loadu_ps(column), _mm512_set1_ps(a[i * lda + p]),
                                            sum[i][g]);
        }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int g = 0; g < groups; g++) {
            __mmask16 columns = cpu_lanes(n - 16 * g);
            float *to = c + i * ldc + 16 * g;
            if (add) sum[i][g] = _mm512_add_ps(sum[i][g], _mm512_maskz_loadu_ps(columns, to));
            _mm512_mask_storeu_ps(to, columns, sum[i][g]);
        }
}

typedef void transposed_function(int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                             bool add, float *c, int64_t ldc);
#define TILES(T) T(1, 2) T(2, 2) T(3, 1) T(4, 1) T(5, 1) T(6, 1) T(7, 1) T(8, 1)
#define TILE(rows, groups)                                                                       \
    static void transposed_##rows(int64_t n, int64_t k, const float *a, int64_t lda, const float *b, \
                              int64_t ldb, bool add, float *c, int64_t ldc) {                    \
        transposed_tile(rows, groups, n, k, a, lda, b, ldb, add, c, ldc);                            \
    }
TILES(TILE)
#undef TILE
#define TILE(rows, groups) { transposed_##rows, 16 * groups },
static const struct {
    transposed_function *run;
    int64_t columns;
} transposed[] = { { NULL, 0 }, TILES(TILE) };
#undef TILE

static void transposed_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                           int64_t ldb, bool add, float *c, int64_t ldc) {
    int64_t step = transposed[m].columns;
    for (int64_t at = 0; at < k; at += CPU_KC)
        for (int64_t j = 0; j < n; j += step)
            transposed[m].run(cpu_min(step, n - j), cpu_min(CPU_KC, k - at), a + at, lda, b + j * ldb + at, ldb,
                          add || at, c + j, ldc);
}
#endif

#if defined(__AVX512F__)
/* ---------------------------------------------------------------- across */
enum { ACROSS = CPU_ROUNDS ? 128 : 64 };                    /* rows at a time; weights are rounded for each time */

/* c[rows, columns] (+)= the transpose of from[columns, ld]; ld a multiple of 16, at least `rows`. */
static void transpose_back(int64_t rows, int64_t columns, const float *from, int64_t ld, bool add, float *c, int64_t ldc) {
    for (int64_t j = 0; j < columns; j += 16)
        for (int64_t i = 0; i < rows; i += 16) {
            __mmask16 lanes = cpu_lanes(columns - j);
            __m512 r[16];
#pragma GCC unroll 16
            for (int q = 0; q < 16; q++)
                r[q] = j + q < columns ? _mm512_loadu_ps(from + (j + q) * ld + i) : _mm512_setzero_ps();
            cpu_transpose(r);
#pragma GCC unroll 16
            for (int q = 0; q < 16; q++) {
                if (i + q >= rows) break;
                float *to = c + (i + q) * ldc + j;
                if (add) r[q] = _mm512_add_ps(r[q], _mm512_maskz_loadu_ps(lanes, to));
                _mm512_mask_storeu_ps(to, lanes, r[q]);
            }
        }
}

static void across_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                           int64_t ldb, bool add, float *c, int64_t ldc) {
    _Alignas(64) float rows[CPU_KC * ACROSS], result[CPU_WIDE * ACROSS];
    for (int64_t at = 0; at < k; at += CPU_KC)
        for (int64_t i = 0; i < m; i += ACROSS) {
            int64_t depth = cpu_min(CPU_KC, k - at), height = cpu_min(ACROSS, m - i);
            int64_t ld = cpu_blocks(height, CPU_LANES) * CPU_LANES;
            CPU(pack)(true, depth, height, a + i * lda + at, lda, rows);
            CPU(multiply_far)(n, ld, depth, b + at, ldb, cpu_panels_of(rows, depth), false, result, ld);
            transpose_back(height, n, result, ld, add || at, c + i * ldc, ldc);
        }
}
#else
/* ---------------------------------------------------------------- packed */
static void packed_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                           int64_t ldb, bool add, float *c, int64_t ldc) {
    _Alignas(64) float packed[CPU_KC * CPU_NR];
    for (int64_t at = 0; at < k; at += CPU_KC)
        for (int64_t j = 0; j < n; j += CPU_NR) {
            int64_t depth = cpu_min(CPU_KC, k - at), width = cpu_min(CPU_NR, n - j);
            CPU(pack)(true, depth, width, b + j * ldb + at, ldb, packed);
            CPU(multiply)(false, m, width, depth, a + at, lda, cpu_panels_of(packed, depth), add || at, c + j, ldc);
        }
}
#endif

void CPU(multiply_few)(bool batch_invariant, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                       int64_t ldb, bool add, float *c, int64_t ldc) {
    if (m == 0) return;
    if (k == 0 && !add) cpu_zero_rows(m, n, c, ldc);
    if (!batch_invariant && CPU(multiply_dots)(m, n, k, a, lda, b, ldb, add, c, ldc)) return;
#if defined(__AVX512F__) && !defined(__AVX512BF16__)
    int64_t rest = m <= AT_ONCE ? m : m % CPU_LANES <= AT_ONCE / 2 ? m % CPU_LANES : 0;
    m -= rest;                                              /* with `across`, these would leave most lanes empty */
    if (rest) transposed_product(rest, n, k, a + m * lda, lda, b, ldb, add, c + m * ldc, ldc);
#endif
#if defined(__AVX512F__)
    across_product(m, n, k, a, lda, b, ldb, add, c, ldc);
#else
    packed_product(m, n, k, a, lda, b, ldb, add, c, ldc);
#endif
}
