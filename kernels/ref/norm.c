/* norm.c - RMSNorm (Zhang & Sennrich 2019): y = x rstd w with rstd = (mean(x^2) + eps)^(-1/2), row by row. */
#include "kernels/ref/ref.h"

#include <math.h>

void mu_ref_rmsnorm_fwd(mu_device *dev, int64_t rows, int64_t D, double eps, mu_mat x_rD, mu_mat w_D,
                        mu_mat y_rD, mu_mat rstd_r) {
    (void)dev;
    const double *w = reals(w_D);
    for (int64_t r = 0; r < rows; r++) {
        const double *x = row(x_rD, r, D);
        double *y = row(y_rD, r, D);
        double rstd = 1 / sqrt(dot(D, x, x) / (double)D + eps);
        for (int64_t i = 0; i < D; i++) y[i] = x[i] * rstd * w[i];
        reals(rstd_r)[r] = rstd;
    }
}

/* With n = x rstd:  dw += dy n,  dx += rstd (w dy - n mean(w dy n)). */
void mu_ref_rmsnorm_bwd(mu_device *dev, int64_t rows, int64_t D, mu_mat x_rD, mu_mat w_D, mu_mat rstd_r,
                        mu_mat dy_rD, mu_mat dx_rD, mu_mat dw_D) {
    (void)dev;
    const double *w = reals(w_D);
    double *dw = reals(dw_D);
    for (int64_t r = 0; r < rows; r++) {
        const double *x = row(x_rD, r, D), *dy = row(dy_rD, r, D);
        double *dx = given(dx_rD) ? row(dx_rD, r, D) : NULL;
        double rstd = reals(rstd_r)[r], mean = 0;
        for (int64_t i = 0; i < D; i++) mean += w[i] * dy[i] * x[i] * rstd / (double)D;
        for (int64_t i = 0; i < D && dx; i++) dx[i] += rstd * (w[i] * dy[i] - x[i] * rstd * mean);
        for (int64_t i = 0; i < D && dw; i++) dw[i] += dy[i] * x[i] * rstd;
    }
}
