/* state.c - one array of a checkpoint. */
#include "base/base.h"

#include <math.h>

int64_t mu_state_count(const mu_state *s) {
    int64_t n = 1;
    for (int i = 0; i < s->n_dims; i++) n *= s->shape[i];
    return n;
}

bool mu_state_is_in(const mu_state *s, int version) { return version >= s->since && (!s->until || version <= s->until); }

static bool is_whole(const mu_state *s) { return s->type == MU_STORE_I64 || s->type == MU_STORE_I32; }
static int64_t whole_at(const mu_state *s, const void *host, int64_t i) {
    return s->type == MU_STORE_I64 ? ((const int64_t *)host)[i] : ((const int32_t *)host)[i];
}

/* The index of the first value that is out of range (NaN always is), or -1. */
static int64_t first_bad(const mu_state *s, const void *host) {
    const int64_t n = mu_state_count(s);
    const double *f64 = host;
    const float *f32 = host;
    int64_t i = 0;
    if (is_whole(s)) while (i < n && whole_at(s, host, i) >= s->min && whole_at(s, host, i) <= s->max) i++;
    else if (s->type == MU_STORE_F64) while (i < n && f64[i] >= s->low && f64[i] <= s->high) i++;
    else while (i < n && (double)f32[i] >= s->low && (double)f32[i] <= s->high) i++;
    return i < n ? i : -1;
}

mu_status mu_state_check(const mu_state *s, const void *host, const char *file, mu_error *e) {
    int64_t at = first_bad(s, host);
    if (at < 0) return MU_STATUS_OK;
    if (is_whole(s))
        return mu_error_set(e, MU_STATUS_DATA, "%s: %s[%lld] is %lld, must be in [%lld, %lld]", file, s->name, (long long)at,
                            (long long)whole_at(s, host, at), (long long)s->min, (long long)s->max);
    double value = s->type == MU_STORE_F64 ? ((const double *)host)[at] : (double)((const float *)host)[at];
    if (isfinite(value))
        return mu_error_set(e, MU_STATUS_DATA, "%s: %s[%lld] is %g, must be in [%g, %g]", file, s->name, (long long)at, value,
                            s->low, s->high);
    return mu_error_set(e, MU_STATUS_DATA, "%s: %s[%lld] is not finite", file, s->name, (long long)at);
}
