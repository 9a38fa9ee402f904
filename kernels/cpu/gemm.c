/* gemm.c - C[m,n] = beta C + op(A)[m,k] op(B)[k,n]: blocks of C, each one single-threaded oneDNN product.
 *
 * oneDNN reaches 90-95 % of the FMA peak on one thread, but its own threading is slow on small products and
 * would let the order of sums depend on the number of threads. The blocks depend on m, n, k only. */
#include "kernels/cpu/cpu.h"

#include <oneapi/dnnl/dnnl.h>

void CPU(sgemm)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    dnnl_status_t status = dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    MU_CHECK(status == dnnl_success, "dnnl_sgemm %d x %d x %d: status %d", (int)m, (int)n, (int)k, (int)status);
}

static void no_products(int64_t m, int64_t n, double beta, mu_mat c) {
    if (beta == 0)
        for (int64_t i = 0; i < m; i++) memset(cpu_f32(c) + i * c.ld, 0, (size_t)n * sizeof(float));
}

/* Sides of the blocks: as large as gives at least 8 blocks, but not under 128 (copying the operands inside
 * the library would then cost too much). */
typedef struct { int64_t m, n; } tile;

static tile choose_tile(int64_t m, int64_t n) {
    tile t = { 512, 512 };
    while (cpu_blocks(m, t.m) * cpu_blocks(n, t.n) < 8) {
        if (t.m > 128 && (m > 128 && cpu_min(m, t.m) >= cpu_min(n, t.n))) t.m /= 2;
        else if (t.n > 128 && n > 128) t.n /= 2;
        else if (t.m > 128 && m > 128) t.m /= 2;
        else break;
    }
    if (n - n / t.n * t.n < 16 && n < 4 * t.n) t.n = n;     /* no sliver for a vocabulary of 257 */
    return t;
}

void CPU(gemm)(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b, double beta,
               mu_mat c) {
    (void)dev;
    if (m == 0 || n == 0) return;
    if (k == 0) { no_products(m, n, beta, c); return; }
    tile t = choose_tile(m, n);
    int64_t across = cpu_blocks(n, t.n), blocks = cpu_blocks(m, t.m) * across;
#pragma omp parallel num_threads(cpu_team(m * n * k / 16))
    {
        cpu_enter();
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            int64_t i = block / across * t.m, j = block % across * t.n;
            const float *ai = cpu_f32(a) + (ta ? i : i * a.ld), *bj = cpu_f32(b) + (tb ? j * b.ld : j);
            CPU(sgemm)(ta, tb, cpu_min(t.m, m - i), cpu_min(t.n, n - j), k, 1, ai, a.ld, bj, b.ld, (float)beta,
                       cpu_f32(c) + i * c.ld + j, c.ld);
        }
    }
}
