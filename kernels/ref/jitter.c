/* jitter.c - router jitter, noise on the router's input: each value times 1 + eps (2u - 1), u uniform in [0, 1). */
#include "kernels/ref/ref.h"

/* Value i of a row at position p is drawn as number 4 * (p * ceil(D/4)) + i: each row begins a block of four. */
void mu_ref_jitter(mu_device *dev, int64_t T, int64_t S, int64_t D, double eps, const mu_rng *rng,
                   mu_mat x_TD, bool add, mu_mat y_TD) {
    (void)dev;
    for (int64_t t = 0; t < T; t++) {
        const double *x = row(x_TD, t, D);
        double *y = row(y_TD, t, D);
        mu_rng r = *rng;
        r.sample += (uint32_t)(t / S);
        for (int64_t i = 0; i < D; i++) {
            double u = (mu_rng_u32(&r, (uint64_t)(t % S * ((D + 3) / 4) * 4 + i)) >> 8) * 0x1p-24;
            y[i] = (add ? y[i] : 0) + x[i] * (1 + eps * (2 * u - 1));
        }
    }
}
