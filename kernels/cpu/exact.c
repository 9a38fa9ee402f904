/* exact.c - exact sums (format: kernels.h). Splitting a summand costs four additions of doubles: adding
 * 1.5 * 2^(52 - s) leaves v * 2^s, rounded, in the low bits of the result, and the remainder is exact. */
#include "kernels/cpu/cpu.h"

enum {
    TILE_M = 64,
    TILE_N = 128
}; /* of a product: its sums take 128 KiB and stay in the cache over all reduction units */

static const double HIGH = 0x1.8p28, LOW = 0x1.8p-17, LARGEST = 0x1p26;
enum { LOW_BITS = 45 };

static inline uint64_t bits_of(double x) {
    union {
        double d;
        uint64_t i;
    } u = { x };
    return u.i;
}

/* The carry from low to high words that makes -2^44 <= low < 2^44; shifts a positive number. */
static inline uint64_t carry_of(uint64_t low) {
    const uint64_t bias = ((uint64_t)1 << 62) + ((uint64_t)1 << (LOW_BITS - 1));
    return ((low + bias) >> LOW_BITS) - (bias >> LOW_BITS);
}

/* Returns nonzero when a summand or a sum was too large. */
static uint64_t add(int64_t n, const float *restrict x, int64_t *restrict high, int64_t *restrict low) {
    uint64_t bad = 0;
#pragma omp simd reduction(| : bad)
    for (int64_t i = 0; i < n; i++) {
        double v = (double)x[i], h = v + HIGH, l = (v - (h - HIGH)) + LOW;
        uint64_t down = (uint64_t)low[i] + bits_of(l) - bits_of(LOW), carry = carry_of(down);
        uint64_t up = (uint64_t)high[i] + bits_of(h) - bits_of(HIGH) + carry;
        low[i] = (int64_t)(down - (carry << LOW_BITS));
        high[i] = (int64_t)up;
        bad |= (up + ((uint64_t)1 << 50)) >> 51;
        bad |= fabs(v) < LARGEST ? 0 : 1;
    }
    return bad;
}

void CPU(exact_add)(mu_device *dev, int64_t n, mu_mat x, mu_mat sums) {
    (void)dev;
    int64_t blocks = cpu_blocks(n, CPU_BLOCK), *high = cpu_i64(sums), *low = high + n;
    uint64_t bad = 0;
#pragma omp parallel for schedule(static) num_threads(cpu_team(4 * n)) reduction(| : bad)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t i = b * CPU_BLOCK;
        bad |= add(cpu_min(CPU_BLOCK, n - i), cpu_f32(x) + i, high + i, low + i);
    }
    if (bad) high[2 * n] = 1;
}

void CPU(exact_round)(mu_device *dev, int64_t n, mu_mat sums, mu_mat x) {
    (void)dev;
    int64_t blocks = cpu_blocks(n, CPU_BLOCK), *high = cpu_i64(sums), *low = high + n;
    float *to = cpu_f32(x);
    bool bad = high[2 * n] != 0;
#pragma omp parallel for schedule(static) num_threads(cpu_team(4 * n))
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t i = b * CPU_BLOCK; i < cpu_min(n, (b + 1) * CPU_BLOCK); i++) {
            uint64_t carry = carry_of((uint64_t)low[i]);
            double h = (double)(int64_t)((uint64_t)high[i] + carry);
            double l = (double)(int64_t)((uint64_t)low[i] - (carry << LOW_BITS));
            to[i] = bad ? NAN : (float)(h * 0x1p-24 + l * 0x1p-69);
        }
}

/* Split over columns, like embed_bwd: each sum has one owner. */
void CPU(exact_embed)(mu_device *dev, int64_t T, int64_t D, int64_t V, mu_mat ids, mu_mat dy, mu_mat sums) {
    enum { COLUMNS = 64 };
    (void)dev;
    int64_t *high = cpu_i64(sums), *low = high + V * D;
    uint64_t bad = 0;
#pragma omp parallel for schedule(static) num_threads(cpu_team(4 * T * D)) reduction(| : bad)
    for (int64_t first = 0; first < D; first += COLUMNS)
        for (int64_t t = 0; t < T; t++) {
            int64_t at = cpu_i32(ids)[t] * D + first;
            bad |= add(cpu_min(COLUMNS, D - first), cpu_f32(dy) + t * dy.ld + first, high + at, low + at);
        }
    if (bad) high[2 * V * D] = 1;
}

typedef struct {
    int64_t units, m, n;
    const int64_t *bounds;
    mu_mat a, b;
    int64_t *sums;
} product;

/* tile[height, width] = the product over rows row .. end-1 of columns i.. of a and j.. of b. If b does not fill
 * panels it is packed, some rows at a time. */
static void unit_tile(const product *p, int64_t i, int64_t j, int64_t height, int64_t width, int64_t row,
                      int64_t end, float *pack, float *tile) {
    for (int64_t at = row; at < end; at += CPU_KC) {
        int64_t k = cpu_min(CPU_KC, end - at);
        const float *ai = cpu_f32(p->a) + at * p->a.ld + i, *bj = cpu_f32(p->b) + at * p->b.ld + j;
        CPU(multiply)(true, height, width, k, ai, p->a.ld, cpu_panels_from(k, width, bj, p->b.ld, pack), at > row,
                      tile, TILE_N);
    }
}

/* Every reduction unit of one tile, of one group. */
static uint64_t sum_tile(const product *p, int64_t group, int64_t i, int64_t j, float *buffer) {
    int64_t height = cpu_min(TILE_M, p->m - i), width = cpu_min(TILE_N, p->n - j), count = p->m * p->n;
    int64_t *high = p->sums + i * p->n + j, *low = high + count;
    float *tile = buffer + CPU_KC * TILE_N;
    uint64_t bad = 0;
    for (const int64_t *at = p->bounds + group * p->units, *last = at + p->units; at < last; at++) {
        if (at[0] == at[1]) continue;
        unit_tile(p, i, j, height, width, at[0], at[1], buffer, tile);
        for (int64_t r = 0; r < height; r++)
            bad |= add(width, tile + r * TILE_N, high + r * p->n, low + r * p->n);
    }
    return bad;
}

void CPU(exact_product)(mu_device *dev, bool master, int64_t groups, int64_t units, int64_t m, int64_t n,
                        mu_mat bounds, mu_mat a, mu_mat b, mu_mat sums) {
    if (CPU_ROUNDS && master) {
        CPU_MASTER(exact_product)(dev, master, groups, units, m, n, bounds, a, b, sums);
        return;
    }
    const int64_t *at = cpu_i64(bounds);
    int64_t down = cpu_blocks(m, TILE_M), tiles = down * cpu_blocks(n, TILE_N);
    int team = cpu_team((at[groups * units] - at[0]) * m * n / 16);
    size_t mark = mu_arena_mark(&dev->scratch);
    cpu_buffers buffers = cpu_buffers_new(dev, team, (CPU_KC + TILE_M) * TILE_N);
#pragma omp parallel for schedule(dynamic) num_threads(team)
    for (int64_t item = 0; item < groups * tiles; item++) {
        int64_t group = item / tiles, t = item % tiles;
        product p = { units, m, n, at, a, b, cpu_i64(sums) + group * sums.ld };
        if (!sum_tile(&p, group, t % down * TILE_M, t / down * TILE_N, cpu_buffer(buffers))) continue;
#pragma omp atomic write
        p.sums[2 * m * n] = 1;
    }
    mu_arena_release(&dev->scratch, mark);
}
