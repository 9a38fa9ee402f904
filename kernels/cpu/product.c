/* product.c - the inner part of every matrix product: register tiles of up to CPU_MR x CPU_NR of C.
 *
 * Why not a library's product: weights are read by many blocks of rows, and packing them once for all of
 * them (or reading them in place) is what a library call cannot do; blocks of few rows (an expert's 30
 * tokens, 32 queries of a head) run at the same rate as large ones; and a row's result does not depend on its
 * neighbours. The tiles are GNU vector arithmetic with constant bounds, which gcc keeps in registers: 98 % of
 * the multiply-add peak with AVX-512 and with AVX2 as soon as the panel comes from the first or second-level
 * cache.
 *
 * Rows are cut into tiles of nearly equal height (100 = 13+12+13+12+...), because a tile under 8 accumulators
 * waits for its own sums. */
#include "kernels/cpu/cpu.h"

typedef float vec __attribute__((vector_size(4 * CPU_LANES)));
typedef float vec_u __attribute__((vector_size(4 * CPU_LANES), aligned(4), may_alias));
typedef float vec4 __attribute__((vector_size(16)));
typedef float vec4_u __attribute__((vector_size(16), aligned(4), may_alias));

/* ---------------------------------------------------------------- packing */
/* Rows p .. end-1 of B to all panels: b is read in the order it lies in memory, which is what counts. */
static void copy_rows(int64_t k, int64_t n, const float *b, int64_t ldb, int64_t p, int64_t end, float *to) {
    int64_t whole = n / CPU_NR, rest = n - whole * CPU_NR;
    for (; p < end; p++) {
        for (int64_t j = 0; j < whole; j++) {
            float *row = to + (j * k + p) * CPU_NR;
            for (int i = 0; i < CPU_NR; i += 16) __builtin_prefetch(row + 8 * CPU_NR + i, 1);
            memcpy(row, b + p * ldb + j * CPU_NR, CPU_NR * sizeof *to);
        }
        if (rest == 0) continue;
        float *last = to + (whole * k + p) * CPU_NR;
        memcpy(last, b + p * ldb + whole * CPU_NR, (size_t)rest * sizeof *to);
        memset(last + rest, 0, (size_t)(CPU_NR - rest) * sizeof *to);
    }
}

#if defined(__AVX512F__)
#include "kernels/cpu/transpose.h"

/* `to` gets k rows of a panel whose `width` columns are rows of b, 16 x 16 of them at once. */
static void transpose_panel(int64_t k, int64_t width, const float *b, int64_t ldb, float *to) {
    for (int64_t p = 0; p < k; p += 16)
        for (int64_t j = 0; j < CPU_NR; j += 16) {
            const float *from = b + j * ldb + p;
            __m512 r[16];
            __mmask16 rest = cpu_lanes(k - p);
            if (rest == 0xffff && width - j >= 16) {
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(from + i * ldb);
            } else {
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_ps(j + i < width ? rest : 0, from + i * ldb);
            }
            for (int i = 0; i < 16; i++) __builtin_prefetch(from + (CPU_NR + i) * ldb, 0, 2);   /* the next panel's */
            cpu_transpose(r);
            float *row = to + p * CPU_NR + j;
            if (rest == 0xffff) {
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) _mm512_storeu_ps(row + i * CPU_NR, r[i]);
            } else {
                for (int64_t i = 0; i < k - p; i++) _mm512_storeu_ps(row + i * CPU_NR, r[i]);
            }
        }
}
#else
/* Four rows and four columns at once, in registers. */
static void transpose_4x4(const float *b, int64_t ldb, float *to) {
    vec4 r0 = *(const vec4_u *)b, r1 = *(const vec4_u *)(b + ldb);
    vec4 r2 = *(const vec4_u *)(b + 2 * ldb), r3 = *(const vec4_u *)(b + 3 * ldb);
    vec4 a = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), c = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
    vec4 d = __builtin_shufflevector(r0, r1, 2, 6, 3, 7), e = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
    *(vec4_u *)to = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    *(vec4_u *)(to + CPU_NR) = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    *(vec4_u *)(to + 2 * CPU_NR) = __builtin_shufflevector(d, e, 0, 1, 4, 5);
    *(vec4_u *)(to + 3 * CPU_NR) = __builtin_shufflevector(d, e, 2, 3, 6, 7);
}

static void transpose_panel(int64_t k, int64_t width, const float *b, int64_t ldb, float *to) {
    int64_t fours = width / 4 * 4, p = 0;
    for (; p + 4 <= k; p += 4) {
        if (p % 16 == 0)                        /* the next panel is on its way while this one is turned */
            for (int64_t j = CPU_NR; j < 2 * CPU_NR; j++) __builtin_prefetch(b + j * ldb + p, 0, 2);
        for (int64_t j = 0; j < fours; j += 4) transpose_4x4(b + j * ldb + p, ldb, to + p * CPU_NR + j);
        for (int64_t q = p; q < p + 4; q++)
            for (int64_t j = fours; j < CPU_NR; j++) to[q * CPU_NR + j] = j < width ? b[j * ldb + q] : 0;
    }
    for (; p < k; p++)
        for (int64_t j = 0; j < CPU_NR; j++) to[p * CPU_NR + j] = j < width ? b[j * ldb + p] : 0;
}
#endif

void CPU(pack_part)(bool tb, int64_t k, int64_t n, const float *b, int64_t ldb, int64_t part, float *to) {
    int64_t first = part * (tb ? CPU_NR : CPU_PART);
    if (tb) transpose_panel(k, cpu_min(CPU_NR, n - first), b + first * ldb, ldb, to + first * k);
    else copy_rows(k, n, b, ldb, first, cpu_min(k, first + CPU_PART), to);
}

void CPU(pack)(bool tb, int64_t k, int64_t n, const float *b, int64_t ldb, float *to) {
    for (int64_t i = 0; i < cpu_parts(tb, k, n); i++) CPU(pack_part)(tb, k, n, b, ldb, i, to);
}

/* ---------------------------------------------------------------- tiles
 * c[rows, nv vectors] (+)= a b over k steps; a[i, p] stands at a[i * ra + p * ca]. `rows`, `nv` and one of
 * the strides are constants where it is inlined, so the loops vanish and the accumulators are registers.
 * B comes from the second-level cache, AHEAD rows before it is used; C has k steps' time to come. */
enum { AHEAD = 16 };

static inline __attribute__((always_inline))
void tile(const int rows, const int nv, int64_t k, const float *a, int64_t ra, int64_t ca, const float *b,
          int64_t ldb, bool add, float *c, int64_t ldc) {
    vec sum[14][2];
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++) __builtin_prefetch(c + i * ldc + j * CPU_LANES, 1);
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++) sum[i][j] = (vec){ 0 };
    for (int64_t p = 0; p < k; p++) {
        vec bp[2];
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++) bp[j] = *(const vec_u *)(b + p * ldb + j * CPU_LANES);
#pragma GCC unroll 2
        for (int j = 0; j < nv * CPU_LANES; j += 16) __builtin_prefetch(b + (p + AHEAD) * ldb + j);
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
            for (int j = 0; j < nv; j++) sum[i][j] += a[i * ra + p * ca] * bp[j];
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++) {
            vec_u *to = (vec_u *)(c + i * ldc + j * CPU_LANES);
            if (add) *to += sum[i][j];
            else *to = sum[i][j];
        }
}

typedef void tile_function(int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, bool add,
                           float *c, int64_t ldc);

/* by_row: A[m, k]; by_column: A[k, m], read in place too: the rows of a tile are neighbours in memory. */
#define TILE_AS(name, rows, nv, ra, ca)                                                                   \
    static void name(int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, bool add,       \
                     float *c, int64_t ldc) {                                                             \
        tile(rows, nv, k, a, ra, ca, b, ldb, add, c, ldc);                                                \
    }
#define TILE(r)                               \
    TILE_AS(by_row_##r##_1, r, 1, lda, 1)     \
    TILE_AS(by_row_##r##_2, r, 2, lda, 1)     \
    TILE_AS(by_column_##r##_1, r, 1, 1, lda)  \
    TILE_AS(by_column_##r##_2, r, 2, 1, lda)
CPU_TILES(TILE)
#undef TILE

#define TILE(r) { { by_row_##r##_1, by_row_##r##_2 }, { by_column_##r##_1, by_column_##r##_2 } },
static tile_function *const tile_functions[][2][2] = { { { NULL } }, CPU_TILES(TILE) };
#undef TILE

/* One tile whose columns may end inside a panel: then it goes through a buffer. */
static void edge_tile(tile_function *const f[2], int64_t rows, int64_t width, int64_t k, const float *a,
                      int64_t lda, const float *b, int64_t ldb, bool add, float *c, int64_t ldc) {
    int wide = width > CPU_LANES;
    if (width == CPU_NR || width == CPU_LANES) {
        f[wide](k, a, lda, b, ldb, add, c, ldc);
        return;
    }
    float buffer[14 * CPU_NR];
    f[wide](k, a, lda, b, ldb, false, buffer, CPU_NR);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j++)
            c[i * ldc + j] = (add ? c[i * ldc + j] : 0) + buffer[i * CPU_NR + j];
}

/* A tile of A stays in the first-level cache while it meets the panels of a group, which stay in the second-level
 * cache while all tiles meet them. Rows of A that are a multiple of 4 KiB apart share one set of the first-level cache:
 * these are moved together. */
enum { GROUP = 8 * 32 / CPU_NR };                           /* panels: at most 256 KiB */

void CPU(multiply)(bool ta, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b,
                   bool add, float *c, int64_t ldc) {
    enum { NEAR_LD = CPU_KC + 16 };
    _Alignas(64) float near[CPU_MR * NEAR_LD];
    int64_t tiles = cpu_blocks(m, CPU_MR), panels = cpu_blocks(n, CPU_NR);
    bool far = !ta && lda % 1024 == 0 && m > 4 && panels > 1;
    if (k == 0 && !add) cpu_zero_rows(m, n, c, ldc);
    for (int64_t at = 0; at < k; at += CPU_KC)
        for (int64_t first = 0; first < panels; first += GROUP) {
            int64_t depth = cpu_min(CPU_KC, k - at), end = cpu_min(panels, first + GROUP);
            for (int64_t t = 0; t < tiles; t++) {
                int64_t i = m * t / tiles, rows = m * (t + 1) / tiles - i, ld = far ? NEAR_LD : lda;
                const float *from = a + (ta ? at * lda + i : i * lda + at);
                for (int64_t r = 0; r < rows && far; r++) memcpy(near + r * ld, from + r * lda, (size_t)depth * sizeof *a);
                for (int64_t j = first; j < end; j++)
                    edge_tile(tile_functions[rows][ta], rows, cpu_min(CPU_NR, n - j * CPU_NR), depth, far ? near : from, ld,
                              b.data + j * b.stride + at * b.ld, b.ld, add || at, c + i * ldc + j * CPU_NR, ldc);
            }
        }
}
