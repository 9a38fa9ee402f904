/* gemm.c - C[m,n] = beta C + op(A)[m,k] op(B)[k,n]. */
#include "kernels/ref/ref.h"

void mu_ref_gemm(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a_mk, mu_mat b_kn,
                 double beta, mu_mat c_mn) {
    (void)dev;
    MU_CHECK(beta == 0 || beta == 1, "gemm: beta is %g, not 0 or 1", beta);
    const double *a = reals(a_mk), *b = reals(b_kn);
    /* from one value to the next along m, n and along k */
    int64_t a_m = ta ? 1 : a_mk.ld, a_k = ta ? a_mk.ld : 1;
    int64_t b_n = tb ? b_kn.ld : 1, b_k = tb ? 1 : b_kn.ld;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double *c = row(c_mn, i, n) + j, sum = 0;
            for (int64_t p = 0; p < k; p++) sum += a[i * a_m + p * a_k] * b[p * b_k + j * b_n];
            *c = (beta == 0 ? 0 : *c) + sum;        /* 0 * NaN would be NaN */
        }
}

void mu_ref_gemm_master(mu_device *dev, bool ta, bool tb, int64_t m, int64_t n, int64_t k, mu_mat a, mu_mat b,
                      double beta, mu_mat c) {
    mu_ref_gemm(dev, ta, tb, m, n, k, a, b, beta, c);
}
