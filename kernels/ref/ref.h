/* ref.h - the reference kernels: every kernel as plain loops in double precision, close to the formula. They
 * define the results of the fast kernels, and gradient checks run on them.
 *
 * Letters: T tokens, D model width, F expert width, E experts, K choices per token, R routed rows,
 * V vocabulary; S, H, G, d sequence length, query heads, key/value heads, head width. */
#ifndef MUSTER_KERNELS_REF_H
#define MUSTER_KERNELS_REF_H
#include "kernels/kernels.h"

#define K(name, params, args) void mu_ref_##name params;
MU_KERNELS(K)
#undef K

static inline bool given(mu_mat m) { return m.data != NULL; }

static inline void *ref_typed(mu_mat m, mu_dtype dtype, const char *kernel) {
    MU_CHECK(!m.data || m.dtype == dtype, "%s: operand is %s, expected %s", kernel, mu_dtype_name(m.dtype),
             mu_dtype_name(dtype));
    return m.data;
}

/* Row r of a matrix `width` wide. */
static inline void *ref_row(mu_mat m, mu_dtype dtype, int64_t r, int64_t width, const char *kernel) {
    char *base = ref_typed(m, dtype, kernel);
    MU_CHECK(m.ld >= width, "%s: rows of %lld values have a leading dimension of %lld", kernel, (long long)width,
             (long long)m.ld);
    return base + r * m.ld * (int64_t)mu_dtype_size(dtype);
}

/* An operand as a C array; fatal if its dtype is wrong. */
#define reals(m)              ((double *)ref_typed(m, MU_DTYPE_F64, __func__))
#define ints(m)               ((int32_t *)ref_typed(m, MU_DTYPE_I32, __func__))
#define longs(m)              ((int64_t *)ref_typed(m, MU_DTYPE_I64, __func__))
#define row(m, r, width)      ((double *)ref_row(m, MU_DTYPE_F64, r, width, __func__))
#define int_row(m, r, width)  ((int32_t *)ref_row(m, MU_DTYPE_I32, r, width, __func__))
#define long_row(m, r, width) ((int64_t *)ref_row(m, MU_DTYPE_I64, r, width, __func__))

static inline double dot(int64_t n, const double *x, const double *y) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* y += a x */
static inline void add_scaled(int64_t n, double a, const double *x, double *y) {
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

#endif
