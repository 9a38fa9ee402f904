/* exact.c - exact sums of n values: words [n] high, [n] low, one mark; a value is high 2^-24 + low 2^-69. */
#include "kernels/ref/ref.h"

#include <math.h>

typedef struct {
    int64_t *high, *low, *mark;
} exact_sums;

static exact_sums sums_of(int64_t *words, int64_t n) {
    return (exact_sums){ words, words + n, words + 2 * n };
}

/* One summand: its multiple of 2^-24, then the remainder as a multiple of 2^-69; low stays in -2^44 .. 2^44-1. */
static void add_one(exact_sums s, int64_t i, double x) {
    if (!(fabs(x) < 0x1p26)) {
        *s.mark = 1;
        return;
    }
    double high = nearbyint(x * 0x1p24);
    s.high[i] += (int64_t)high;
    s.low[i] += (int64_t)nearbyint((x - high * 0x1p-24) * 0x1p69);
    int64_t carry = (int64_t)floor(((double)s.low[i] + 0x1p44) * 0x1p-45);
    s.high[i] += carry;
    s.low[i] -= carry * ((int64_t)1 << 45);
    if (s.high[i] < -((int64_t)1 << 50) || s.high[i] >= (int64_t)1 << 50) *s.mark = 1;
}

void mu_ref_exact_add(mu_device *dev, int64_t n, mu_mat x_n, mu_mat sums_n) {
    (void)dev;
    exact_sums s = sums_of(longs(sums_n), n);
    for (int64_t i = 0; i < n; i++) add_one(s, i, reals(x_n)[i]);
}

void mu_ref_exact_round(mu_device *dev, int64_t n, mu_mat sums_n, mu_mat x_n) {
    (void)dev;
    exact_sums s = sums_of(longs(sums_n), n);
    for (int64_t i = 0; i < n; i++) {
        int64_t carry = (int64_t)floor(((double)s.low[i] + 0x1p44) * 0x1p-45);
        double low = (double)(s.low[i] - carry * ((int64_t)1 << 45));
        reals(x_n)[i] = *s.mark ? NAN : (double)(s.high[i] + carry) * 0x1p-24 + low * 0x1p-69;
    }
}

void mu_ref_exact_embed(mu_device *dev, int64_t T, int64_t D, int64_t V, mu_mat ids_T, mu_mat dy_TD,
                        mu_mat sums_VD) {
    (void)dev;
    exact_sums s = sums_of(longs(sums_VD), V * D);
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < D; i++) add_one(s, ints(ids_T)[t] * D + i, row(dy_TD, t, D)[i]);
}

void mu_ref_exact_product(mu_device *dev, bool master, int64_t groups, int64_t units, int64_t m, int64_t n,
                          mu_mat bounds, mu_mat a_Rm, mu_mat b_Rn, mu_mat sums) {
    (void)dev, (void)master;
    for (int64_t unit = 0; unit < groups * units; unit++) {
        exact_sums s = sums_of(longs(sums) + unit / units * sums.ld, m * n);
        int64_t first = longs(bounds)[unit], end = longs(bounds)[unit + 1];
        for (int64_t i = 0; i < m && first < end; i++)
            for (int64_t j = 0; j < n; j++) {
                double sum = 0;
                for (int64_t r = first; r < end; r++) sum += row(a_Rm, r, m)[i] * row(b_Rn, r, n)[j];
                add_one(s, i * n + j, sum);
            }
    }
}
