/* gemm.c - C[m,n] = beta C + op(A)[m,k] op(B)[k,n].
 *
 * B is packed by all threads together, some columns at a time to limit memory, or read in place. Then threads
 * take blocks of C: 14 to 128 rows times a group of panels. The order of an element's sum does not depend on its
 * block. */
#include "kernels/cpu/cpu.h"

enum { MOST_ROWS = 128, LEAST_ROWS = 28, BLOCKS_A_THREAD = 2 };
static const int64_t MOST_PACKED = (int64_t)4 << 20;        /* floats of B packed at a time */

typedef struct { bool ta, tb; int64_t m, n, k; mu_mat a, b; bool add; mu_mat c; } product;

/* Blocks: `down` row blocks of equal height, `across` groups of panels. */
typedef struct { int64_t down, across; } grid;

/* A few blocks per thread, as high as possible: each reads all of B, or its group of panels. */
static grid choose_grid(int64_t m, int64_t panels, int team) {
    grid g = { cpu_max(cpu_blocks(m, MOST_ROWS), cpu_min(cpu_blocks(m, LEAST_ROWS), BLOCKS_A_THREAD * team)), 1 };
    while (g.down * g.across < BLOCKS_A_THREAD * team && g.across < panels) g.across *= 2;
    g.across = cpu_min(g.across, panels);
    return g;
}

/* Adds values at .. at+depth-1 along k to columns first .. first+n of C; b holds the columns' panels. */
static void block(const product *p, grid g, int64_t i, int64_t first, int64_t n, int64_t at, int64_t depth, cpu_panels b) {
    int64_t panels = cpu_blocks(n, CPU_NR), across = i % g.across, down = i / g.across;
    int64_t j = panels * across / g.across, end = panels * (across + 1) / g.across;
    int64_t columns = cpu_min(n, end * CPU_NR) - j * CPU_NR;
    int64_t r = p->m * down / g.down, rows = p->m * (down + 1) / g.down - r;
    const float *a = cpu_f32(p->a) + (p->ta ? r + at * p->a.ld : r * p->a.ld + at);
    float *c = cpu_f32(p->c) + r * p->c.ld + first + j * CPU_NR;
    CPU(multiply)(p->ta, rows, columns, depth, a, p->a.ld, cpu_panels_columns(cpu_panels_rows(b, at), j * CPU_NR),
                  p->add || at, c, p->c.ld);
}

/* Depth along k that all blocks finish before any continues: a B that is larger than a cache is then read from memory once,
 * not once per block of rows. */
static int64_t choose_depth(const product *p, int64_t n) {
    enum { DEPTH = 2 * CPU_KC };
    static const int64_t most = (int64_t)1 << 20;
    return !p->ta && p->k * n > most ? DEPTH : cpu_max(p->k, 1);
}

static void columns_of_c(mu_device *dev, const product *p, int team, int64_t first, int64_t n) {
    bool direct = !p->tb && cpu_in_place(n);
    size_t mark = mu_arena_mark(&dev->scratch);
    const float *from = cpu_f32(p->b) + (p->tb ? first * p->b.ld : first);
    float *packed = direct ? NULL : mu_arena_alloc(&dev->scratch, cpu_packed(p->k, n) * sizeof *packed);
    cpu_panels b = direct ? cpu_panels_in_place(from, p->b.ld) : cpu_panels_of(packed, p->k);
    int64_t panels = cpu_blocks(n, CPU_NR), parts = cpu_parts(p->tb, p->k, n);
    int64_t depth = choose_depth(p, n);
    grid g = choose_grid(p->m, panels, team);
    int64_t steps = cpu_blocks(cpu_max(p->k, 1), depth);
    cpu_shares *shares = mu_arena_alloc(&dev->scratch, (size_t)steps * sizeof *shares);
    for (int64_t i = 0; i < steps; i++) shares[i] = cpu_shares_new(dev, team, g.down * g.across);
#pragma omp parallel num_threads(team)
    {
        if (!direct) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < parts; i++) CPU(pack_part)(p->tb, p->k, n, from, p->b.ld, i, packed);
        }
        for (int64_t step = 0; step < steps; step++) {
            int64_t at = step * depth;
            int turn = 0;
            for (int64_t i; (i = cpu_take(shares[step], &turn)) >= 0;)
                block(p, g, i, first, n, at, cpu_min(depth, p->k - at), b);
#pragma omp barrier
        }
    }
    mu_arena_release(&dev->scratch, mark);
}

static void few_rows(const product *p) {
    int team = cpu_product_team(p->m, p->n, p->k);
#pragma omp parallel for schedule(static) num_threads(team)
    for (int64_t j = 0; j < p->n; j += CPU_WIDE)
        CPU(multiply_few)(true, p->m, cpu_min(CPU_WIDE, p->n - j), p->k, cpu_f32(p->a), p->a.ld,
                          cpu_f32(p->b) + j * p->b.ld, p->b.ld, p->add, cpu_f32(p->c) + j, p->c.ld);
}

void CPU(gemm)(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b,
               double beta, mu_mat c) {
    if (m == 0 || n == 0) return;
    product p = { ta, tb, m, n, k, a, b, beta != 0, c };
    if (tb && !ta && m <= CPU_FEW) {
        few_rows(&p);
        return;
    }
    int64_t most = cpu_max(1, MOST_PACKED / cpu_max(k, 1) / CPU_NR) * CPU_NR;
    for (int64_t first = 0; first < n; first += most)
        columns_of_c(dev, &p, cpu_product_team(m, n, k), first, cpu_min(most, n - first));
}

void CPU(gemm_master)(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b,
                    double beta, mu_mat c) {
    CPU_MASTER(gemm)(dev, ta, tb, m, n, k, a, b, beta, c);
}
