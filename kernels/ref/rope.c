/* rope.c - rotary position embedding (Su et al. 2021), half rotation: the pair (x[i], x[i + d/2]) of a head is a
 * complex number, rotated by the angle of its row's position. */
#include "kernels/ref/ref.h"

void mu_ref_rope(mu_device *dev, int64_t T, int64_t S, int64_t H, int64_t d, int sign, mu_mat cos_Sh,
                 mu_mat sin_Sh, mu_mat x_THd, bool add, mu_mat y_THd) {
    (void)dev;
    int64_t half = d / 2;
    MU_CHECK(d % 2 == 0 && (sign == 1 || sign == -1),
             "rope: head width %lld must be even, sign %d must be 1 or -1", (long long)d, sign);
    for (int64_t t = 0; t < T; t++) {
        const double *cos = row(cos_Sh, t % S, half), *sin = row(sin_Sh, t % S, half);
        for (int64_t h = 0; h < H; h++) {
            const double *x = row(x_THd, t, H * d) + h * d;
            double *y = row(y_THd, t, H * d) + h * d;
            for (int64_t i = 0; i < half; i++) {
                double re = x[i] * cos[i] - x[i + half] * sign * sin[i];
                double im = x[i] * sign * sin[i] + x[i + half] * cos[i];
                y[i] = (add ? y[i] : 0) + re;
                y[i + half] = (add ? y[i + half] : 0) + im;
            }
        }
    }
}
