/* product.c - the inner part of every matrix product: register tiles of up to CPU_MR x CPU_NR of C.
 *
 * Advantages over a library: weights are packed once for all blocks of rows (or read in place); blocks of few
 * rows (an expert's 30 tokens, 32 queries of a head) run at the same rate as large ones; and kernels are
 * batch-invariant: a row's result does not depend on other rows. The tiles are GNU vector arithmetic with
 * constant bounds, which gcc keeps in registers: 98 % of the multiply-add peak with AVX-512 and AVX2 when the
 * panel is in the first or second-level cache.
 *
 * Rows are divided into tiles of nearly equal height (100 = 13+12+13+12+...), because a tile with fewer than 8
 * accumulators stalls on its own sums. */
#include "kernels/cpu/cpu.h"

typedef float vec __attribute__((vector_size(4 * CPU_LANES)));
typedef float vec_u __attribute__((vector_size(4 * CPU_LANES), aligned(4), may_alias));
typedef float vec4 __attribute__((vector_size(16)));
typedef float vec4_u __attribute__((vector_size(16), aligned(4), may_alias));

/* ---------------------------------------------------------------- packing */
/* Packs rows p .. end-1 of B into all panels, reading b in memory order. */
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

/* `to` gets k rows of a panel whose `width` columns are rows of b, 16 x 16 of them at once. Prefetches the next panel's rows,
 * if there is one. */
static void transpose_panel(int64_t k, int64_t width, bool more, const float *b, int64_t ldb, float *to) {
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
                for (int i = 0; i < 16; i++)    /* a masked load without lanes is slow on unmapped memory */
                    r[i] = j + i < width ? _mm512_maskz_loadu_ps(rest, from + i * ldb) : _mm512_setzero_ps();
            }
            for (int i = 0; i < 16 && more; i++) __builtin_prefetch(from + (CPU_NR + i) * ldb, 0, 2);
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

static void transpose_panel(int64_t k, int64_t width, bool more, const float *b, int64_t ldb, float *to) {
    int64_t fours = width / 4 * 4, p = 0;
    for (; p + 4 <= k; p += 4) {
        if (p % 16 == 0 && (more || width == CPU_NR))       /* few.c transposes one panel after the other */
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
    if (tb) transpose_panel(k, cpu_min(CPU_NR, n - first), first + CPU_NR < n, b + first * ldb, ldb, to + first * k);
    else copy_rows(k, n, b, ldb, first, cpu_min(k, first + CPU_PART), to);
}

void CPU(pack)(bool tb, int64_t k, int64_t n, const float *b, int64_t ldb, float *to) {
    for (int64_t i = 0; i < cpu_parts(tb, k, n); i++) CPU(pack_part)(tb, k, n, b, ldb, i, to);
}

/* ---------------------------------------------------------------- tiles
 * c[rows, nv vectors] (+)= a b over k steps; a[i, p] is at a[i * ra + p * ca]. `rows`, `nv` and one of
 * the strides are constants where it is inlined, so the loops are unrolled and the accumulators are registers.
 * B is prefetched from the second-level cache, AHEAD rows before it is used, and so is a strip of columns of A, a cache line
 * of each row; C may be in memory and has k steps to arrive. Rows of A that are `far` away, in memory, are prefetched FAR_AHEAD
 * values before: a dozen streams are too many for the hardware prefetcher. */
enum { AHEAD = CPU_LANES == 16 ? 16 : 0, FAR_AHEAD = 64, MOST_VECTORS = 8 };
enum access { BY_ROW, BY_COLUMN, BY_FAR_ROW };

static inline __attribute__((always_inline))
void tile(const int rows, const int nv, const enum access how, int64_t k, const float *a, int64_t ra, int64_t ca,
          const float *b, int64_t ldb, bool add, float *c, int64_t ldc) {
    vec sum[14][MOST_VECTORS];
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < nv * CPU_LANES; j += 16) __builtin_prefetch(c + i * ldc + j, 1);
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < nv; j++) sum[i][j] = (vec){ 0 };
    /* Rows 0, 3, 6 ...: pointers for all rows would not fit into registers, so the compiler must not create them. */
    const float *third[5];
#pragma GCC unroll 5
    for (int i = 0; i < 5; i++) {
        third[i] = a + 3 * i * ra;
        __asm__("" : "+r"(third[i]));
    }
    for (int64_t p = 0; p < k; p++) {
        vec bp[MOST_VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < nv; j++) bp[j] = *(const vec_u *)(b + p * ldb + j * CPU_LANES);
#pragma GCC unroll 8
        for (int j = 0; j < nv * CPU_LANES && AHEAD > 0; j += 16) __builtin_prefetch(b + (p + AHEAD) * ldb + j);
        if (how == BY_COLUMN && AHEAD > 0) __builtin_prefetch(a + (p + AHEAD) * ca + rows - 1, 0, 2);
        if (how == BY_FAR_ROW && p % 16 == 0) {             /* the end of these rows, then the beginning of the next tile's */
            const float *ahead = p + FAR_AHEAD < k ? a + p + FAR_AHEAD : a + rows * ra + p + FAR_AHEAD - k;
#pragma GCC unroll 14
            for (int i = 0; i < rows; i++) __builtin_prefetch(ahead + i * ra, 0, 2);
        }
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
            for (int j = 0; j < nv; j++) sum[i][j] += third[i / 3][i % 3 * ra + p * ca] * bp[j];
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < nv; j++) {
            vec_u *to = (vec_u *)(c + i * ldc + j * CPU_LANES);
            if (add) *to += sum[i][j];
            else *to = sum[i][j];
        }
}

typedef void tile_function(int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, bool add,
                           float *c, int64_t ldc);

/* by_row: A[m, k]; by_column: A[k, m], read in place, too: the rows of a tile are adjacent in memory. */
#define TILE_AS(name, rows, nv, how, ra, ca)                                                              \
    static void name(int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, bool add,       \
                     float *c, int64_t ldc) {                                                             \
        tile(rows, nv, how, k, a, ra, ca, b, ldb, add, c, ldc);                                           \
    }
#define TILE(r)                                         \
    TILE_AS(by_row_##r##_1, r, 1, BY_ROW, lda, 1)        \
    TILE_AS(by_row_##r##_2, r, 2, BY_ROW, lda, 1)        \
    TILE_AS(by_column_##r##_1, r, 1, BY_COLUMN, 1, lda) \
    TILE_AS(by_column_##r##_2, r, 2, BY_COLUMN, 1, lda)
CPU_TILES(TILE)
#undef TILE
#if defined(__AVX512F__)                            /* used by few.c only */
#define TILE(r)                                           \
    TILE_AS(by_far_row_##r##_1, r, 1, BY_FAR_ROW, lda, 1) \
    TILE_AS(by_far_row_##r##_2, r, 2, BY_FAR_ROW, lda, 1)
CPU_TILES(TILE)
#undef TILE
#define FAR_ROWS(r) , { by_far_row_##r##_1, by_far_row_##r##_2 }
#else
#define FAR_ROWS(r)
#endif

#define TILE(r) { { by_row_##r##_1, by_row_##r##_2 }, { by_column_##r##_1, by_column_##r##_2 } FAR_ROWS(r) },
static tile_function *const tile_functions[][3][2] = { { { NULL } }, CPU_TILES(TILE) };
#undef TILE

/* Few rows times a B read in place: wide tiles read longer runs of its rows. */
#if defined(__AVX512F__)
#define WIDE_TILES(T) T(1, 8) T(2, 8) T(3, 8) T(4, 4) T(5, 4) T(6, 4)       /* rows, vectors */
enum { MOST_WIDE = 6 };
#else
#define WIDE_TILES(T) T(1, 4) T(2, 4)
enum { MOST_WIDE = 2 };
#endif
#define TILE(rows, nv) TILE_AS(wide_##rows, rows, nv, BY_ROW, lda, 1)
WIDE_TILES(TILE)
#undef TILE
#define TILE(rows, nv) { wide_##rows, nv / 2 },
static const struct { tile_function *run; int panels; } wide_tiles[] = { { NULL, 0 }, WIDE_TILES(TILE) };
#undef TILE

/* One tile; through a buffer if its columns end inside a panel. */
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
            c[i * ldc + j] = add ? c[i * ldc + j] + buffer[i * CPU_NR + j] : buffer[i * CPU_NR + j];
}

/* One product over a range of k and a group of panels, first .. end-1. */
typedef struct {
    enum access how;
    int64_t m, n, k, lda, first, end;
    const float *a;
    cpu_panels b;
    bool add;
    float *c;
    int64_t ldc;
} chunk;

/* C of the tile four panels after panel j, to prefetch: a product of few k finishes before its own C has arrived. */
enum { PANELS_AHEAD = 4 };
static void fetch_ahead(const chunk *s, int64_t i, int64_t rows, int64_t j) {
    int64_t past = j + PANELS_AHEAD - s->end;               /* after the last panel: the next rows' first panels */
    const float *c = s->c + (past < 0 ? i * s->ldc + (j + PANELS_AHEAD) * CPU_NR : (i + rows) * s->ldc + (s->first + past) * CPU_NR);
    for (int64_t r = 0; r < rows; r++)
        for (int q = 0; q < CPU_NR; q += 16) __builtin_prefetch(c + r * s->ldc + q, 1);
}

/* All panels' tiles for rows i.., whose rows of A are at `a`. */
static void tile_row(const chunk *s, enum access how, int64_t i, int64_t rows, const float *a, int64_t lda) {
    bool thin = s->k < 8 && s->end - s->first >= PANELS_AHEAD;
    bool wide = how != BY_COLUMN && s->m <= MOST_WIDE && s->b.stride == CPU_NR;
    for (int64_t j = s->first, step; j < s->end; j += step) {
        float *c = s->c + i * s->ldc + j * CPU_NR;
        const float *b = s->b.data + j * s->b.stride;
        if (thin) fetch_ahead(s, i, rows, j);
        if (wide && j + wide_tiles[rows].panels <= s->end && (j + wide_tiles[rows].panels) * CPU_NR <= s->n) {
            step = wide_tiles[rows].panels;
            wide_tiles[rows].run(s->k, a, lda, b, s->b.ld, s->add, c, s->ldc);
        } else {
            step = 1;
            edge_tile(tile_functions[rows][how], rows, cpu_min(CPU_NR, s->n - j * CPU_NR), s->k, a, lda, b, s->b.ld, s->add,
                      c, s->ldc);
        }
    }
}

/* With AVX-512 a tile of A stays in the first-level cache for all panels of a group, which stay in the second-level cache,
 * 256 KiB, for all tiles. With lower tiles panels would be read too often: there a panel stays in the cache for all tiles,
 * unless A is one tile. Rows of A that are a multiple of 4 KiB apart share one set of the first-level cache: these are copied
 * to be contiguous. */
enum { WIDE_GROUP = 8, GROUP = CPU_LANES == 16 ? WIDE_GROUP : 1 };

static bool worth_moving(const chunk *s) {
    bool far_apart = s->how != BY_COLUMN && s->lda % 1024 == 0;
    return CPU_LANES == 16 && far_apart && s->m > 4 && (s->end - s->first > 1 || s->how != BY_ROW);
}

static void multiply_chunk(const chunk *s) {
    enum { NEAR_LD = CPU_KC + 16 };
    _Alignas(64) float near[CPU_MR * NEAR_LD];
    int64_t tiles = cpu_blocks(s->m, CPU_MR);
    bool move = worth_moving(s);
    for (int64_t t = 0; t < tiles; t++) {
        int64_t i = s->m * t / tiles, rows = s->m * (t + 1) / tiles - i;
        const float *a = s->a + (s->how == BY_COLUMN ? i : i * s->lda);
        for (int64_t r = 0; r < rows && move; r++) memcpy(near + r * NEAR_LD, a + r * s->lda, (size_t)s->k * sizeof *a);
        tile_row(s, move ? BY_ROW : s->how, i, rows, move ? near : a, move ? NEAR_LD : s->lda);
    }
}

static void multiply_by(enum access how, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b,
                        bool add, float *c, int64_t ldc) {
    int64_t panels = cpu_blocks(n, CPU_NR), group = m <= MOST_WIDE ? WIDE_GROUP : GROUP;
    if (k == 0 && !add) cpu_zero_rows(m, n, c, ldc);
    for (int64_t at = 0; at < k; at += CPU_KC)
        for (int64_t first = 0; first < panels; first += group) {
            chunk s = { how, m, n, cpu_min(CPU_KC, k - at), lda, first, cpu_min(panels, first + group),
                          a + (how == BY_COLUMN ? at * lda : at), { b.data + at * b.ld, b.stride, b.ld }, add || at, c, ldc };
            multiply_chunk(&s);
        }
}

void CPU(multiply)(bool ta, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b, bool add, float *c,
                   int64_t ldc) {
    multiply_by(ta ? BY_COLUMN : BY_ROW, m, n, k, a, lda, b, add, c, ldc);
}

#if defined(__AVX512F__)
void CPU(multiply_far)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b, bool add, float *c,
                       int64_t ldc) {
    multiply_by(BY_FAR_ROW, m, n, k, a, lda, b, add, c, ldc);
}
#endif
