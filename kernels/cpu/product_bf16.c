/* product_bf16.c - the products of the device "cpu-bf16", in place of product.c: operands are rounded to bf16
 * (8 bits of mantissa, nearest, ties to even) while they are packed, sums are fp32.
 *
 * VDPBF16PS multiplies two neighbours along k and adds both to one of 16 sums, twice the work of an fp32
 * multiply-add; the two must be adjacent in memory. Packed B holds, for a pair of rows of op(B), CPU_NR words of
 * two bf16; A is rounded a block of rows at a time into a buffer in the cache, from which the tile broadcasts
 * words. So the operands of a tile are half as large as in fp32, too. An odd k is padded with zeros. As in
 * product.c an element's bits depend only on its row of A and its column of B. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/transpose.h"

enum { CHUNK = 10 * CPU_MR, CHUNK_LD = CPU_KC / 2 };     /* rows of A rounded at a time; words of such a row */
enum { AHEAD = 16 };                                    /* prefetch distance in rows of a panel */

/* 16 words: x[i] in the lower half (first along k), y[i] in the upper. */
static __m512i interleave(__m512 x, __m512 y) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(y));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* Words of n <= 32 neighbours of one row. */
static __m512i neighbours(const float *x, int64_t n) {
    __m512 a = _mm512_maskz_loadu_ps(cpu_lanes(n), x), b = _mm512_maskz_loadu_ps(cpu_lanes(n - 16), x + 16);
    return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

/* ---------------------------------------------------------------- packing */
/* Packs rows p .. end-1 of B, p even, into all panels. */
static void pack_rows(int64_t k, int64_t n, const float *b, int64_t ldb, int64_t p, int64_t end, float *to) {
    int64_t pairs = cpu_pairs(k);
    for (; p < end; p += 2)
        for (int64_t j = 0; j < n; j += 16) {
            __mmask16 columns = cpu_lanes(n - j);
            __m512 x = _mm512_maskz_loadu_ps(columns, b + p * ldb + j), y = _mm512_setzero_ps();
            if (p + 1 < k) y = _mm512_maskz_loadu_ps(columns, b + (p + 1) * ldb + j);
            float *row = to + (j / CPU_NR * pairs + p / 2) * CPU_NR + j % CPU_NR;
            _mm512_storeu_si512(row, interleave(x, y));
            if (n - j <= 16 && j % CPU_NR == 0) _mm512_storeu_si512(row + 16, _mm512_setzero_si512());
        }
}

/* A panel of up to CPU_NR columns of op(B), which are rows of b: 16 of them and 32 values of each at once. */
static void transpose_panel(int64_t k, int64_t width, const float *b, int64_t ldb, float *to) {
    int64_t pairs = cpu_pairs(k);
    for (int64_t q = 0; q < pairs; q += 16)
        for (int64_t j = 0; j < CPU_NR; j += 16) {
            __m512 r[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                r[i] = j + i < width ? (__m512)neighbours(b + (j + i) * ldb + 2 * q, k - 2 * q) : _mm512_setzero_ps();
            cpu_transpose(r);
            for (int64_t i = 0; i < cpu_min(16, pairs - q); i++) _mm512_storeu_ps(to + (q + i) * CPU_NR + j, r[i]);
        }
}

void CPU(pack_part)(bool tb, int64_t k, int64_t n, const float *b, int64_t ldb, int64_t part, float *to) {
    int64_t at = part * (tb ? CPU_NR : CPU_PART);
    if (tb) transpose_panel(k, cpu_min(CPU_NR, n - at), b + at * ldb, ldb, to + at * cpu_pairs(k));
    else pack_rows(k, n, b, ldb, at, cpu_min(k, at + CPU_PART), to);
}

void CPU(pack)(bool tb, int64_t k, int64_t n, const float *b, int64_t ldb, float *to) {
    for (int64_t i = 0; i < cpu_parts(tb, k, n); i++) CPU(pack_part)(tb, k, n, b, ldb, i, to);
}

/* ---------------------------------------------------------------- A, rounded
 * Rows of A become rows of CHUNK_LD words; with `ta` each pair of rows of a becomes a row of CHUNK words. */
static void round_rows(int64_t m, int64_t k, const float *a, int64_t lda, uint32_t *to) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t p = 0; p < k; p += 32)
            _mm512_storeu_si512(to + i * CHUNK_LD + p / 2, neighbours(a + i * lda + p, k - p));
}

static void round_columns(int64_t m, int64_t k, const float *a, int64_t lda, uint32_t *to) {
    for (int64_t p = 0; p < k; p += 2)
        for (int64_t i = 0; i < m; i += 16) {
            __mmask16 rows = cpu_lanes(m - i);
            __m512 x = _mm512_maskz_loadu_ps(rows, a + p * lda + i), y = _mm512_setzero_ps();
            if (p + 1 < k) y = _mm512_maskz_loadu_ps(rows, a + (p + 1) * lda + i);
            _mm512_mask_storeu_epi32(to + p / 2 * CHUNK + i, rows, interleave(x, y));
        }
}

/* ---------------------------------------------------------------- tiles
 * c[rows, width] (+)= a b over `pairs`; word p of row i is at a[i * ra + p * ca]. As in product.c. */
static inline __attribute__((always_inline))
void tile(const int rows, const int nv, int64_t pairs, const uint32_t *a, const int64_t ra, const int64_t ca,
          const float *b, int64_t width, bool add, float *c, int64_t ldc) {
    __m512 sum[14][2];
    const __mmask16 columns[2] = { cpu_lanes(width), cpu_lanes(width - 16) };
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++) {
            sum[i][j] = _mm512_setzero_ps();
            __builtin_prefetch(c + i * ldc + j * 16, 1);
        }
    for (int64_t p = 0; p < pairs; p++) {
        __m512bh bp[2];
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++) {
            bp[j] = (__m512bh)_mm512_loadu_si512(b + p * CPU_NR + j * 16);
            __builtin_prefetch(b + (p + AHEAD) * CPU_NR + j * 16);
        }
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) {
            __m512bh ap = (__m512bh)_mm512_set1_epi32((int)a[i * ra + p * ca]);
#pragma GCC unroll 2
            for (int j = 0; j < nv; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], ap, bp[j]);
        }
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++) {
            float *to = c + i * ldc + j * 16;
            if (add) sum[i][j] = _mm512_add_ps(sum[i][j], _mm512_maskz_loadu_ps(columns[j], to));
            _mm512_mask_storeu_ps(to, columns[j], sum[i][j]);
        }
}

typedef void tile_function(int64_t pairs, const uint32_t *a, const float *b, int64_t width, bool add, float *c,
                           int64_t ldc);
#define TILE_AS(name, rows, nv, ra, ca)                                                                    \
    static void name(int64_t pairs, const uint32_t *a, const float *b, int64_t width, bool add, float *c, \
                     int64_t ldc) {                                                                        \
        tile(rows, nv, pairs, a, ra, ca, b, width, add, c, ldc);                                           \
    }
#define TILE(r)                                \
    TILE_AS(by_row_##r##_1, r, 1, CHUNK_LD, 1) \
    TILE_AS(by_row_##r##_2, r, 2, CHUNK_LD, 1) \
    TILE_AS(by_column_##r##_1, r, 1, 1, CHUNK) \
    TILE_AS(by_column_##r##_2, r, 2, 1, CHUNK)
CPU_TILES(TILE)
#undef TILE
#define TILE(r) { { by_row_##r##_1, by_row_##r##_2 }, { by_column_##r##_1, by_column_##r##_2 } },
static tile_function *const tile_functions[][2][2] = { { { NULL } }, CPU_TILES(TILE) };
#undef TILE

/* Up to CHUNK rows of C over one range of k. */
static void chunk(bool ta, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                  int64_t stride, bool add, float *c, int64_t ldc) {
    _Alignas(64) uint32_t words[CHUNK * CHUNK_LD];
    int64_t tiles = cpu_blocks(m, CPU_MR);
    if (ta) round_columns(m, k, a, lda, words);
    else round_rows(m, k, a, lda, words);
    for (int64_t t = 0; t < tiles; t++) {
        int64_t i = m * t / tiles, rows = m * (t + 1) / tiles - i;
        for (int64_t j = 0; j < n; j += CPU_NR) {
            int64_t width = cpu_min(CPU_NR, n - j);
            tile_functions[rows][ta][width > 16](cpu_pairs(k), words + (ta ? i : i * CHUNK_LD), b + j / CPU_NR * stride,
                                                 width, add, c + i * ldc + j, ldc);
        }
    }
}

void CPU(multiply)(bool ta, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b,
                   bool add, float *c, int64_t ldc) {
    int64_t chunks = cpu_blocks(m, CHUNK);
    if (k == 0 && !add) cpu_zero_rows(m, n, c, ldc);
    for (int64_t at = 0; at < k; at += CPU_KC)
        for (int64_t part = 0; part < chunks; part++) {
            int64_t i = m * part / chunks, rows = m * (part + 1) / chunks - i;
            const float *from = a + (ta ? at * lda + i : i * lda + at);
            chunk(ta, rows, n, cpu_min(CPU_KC, k - at), from, lda, cpu_panels_rows(b, at).data, b.stride,
                  add || at, c + i * ldc, ldc);
        }
}

/* Rows of A are rounded in memory order: hardware prefetching suffices. */
void CPU(multiply_far)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b, bool add, float *c,
                       int64_t ldc) {
    CPU(multiply)(false, m, n, k, a, lda, b, add, c, ldc);
}
