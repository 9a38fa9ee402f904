/* attention.c - causal softmax attention, one query at a time.
 *
 * The query at position t of head h sees keys u = 0 .. t of its sequence and of key head g = h / (H/G):
 *     p_u = exp(scale q_t.k_u - lse_t),   lse_t = log sum_u exp(scale q_t.k_u),   y_t = sum_u p_u v_u.
 * Backward, with ds the derivative with respect to the score (Dao et al. 2022, appendix B.2):
 *     ds_u = p_u (dy_t.v_u - dy_t.y_t),
 *     dq_t += scale sum_u ds_u k_u,  dk_u += scale ds_u q_t,  dv_u += p_u dy_t.
 * q, y, dq, dy: [B*S, H*d]; k, v, dk, dv: [B*(past+S), G*d]; lse: [H, B*S]. */
#include "kernels/ref/ref.h"

#include <math.h>

static double *query_at(mu_mat m, const mu_attention_shape *s, int64_t token, int64_t h) {
    return row(m, token, s->H * s->d) + h * s->d;
}

static double *key_at(mu_mat m, const mu_attention_shape *s, int64_t token, int64_t h) {
    return row(m, token, s->G * s->d) + h / (s->H / s->G) * s->d;
}

/* One query: first = row of its sequence's first key, n = visible keys, token = its own row. p holds n values. */
static void query_fwd(const mu_attention_shape *s, int64_t first, int64_t n, int64_t token, int64_t h,
                      mu_mat q_m, mu_mat k_m, mu_mat v_m, mu_mat y_m, mu_mat lse_m, double *p) {
    const double *q = query_at(q_m, s, token, h);
    double *y = query_at(y_m, s, token, h), max = -INFINITY, sum = 0;
    for (int64_t u = 0; u < n; u++) {
        p[u] = s->scale * dot(s->d, q, key_at(k_m, s, first + u, h));
        max = fmax(max, p[u]);
    }
    for (int64_t u = 0; u < n; u++) sum += exp(p[u] - max);
    double lse = max + log(sum);
    for (int64_t i = 0; i < s->d; i++) y[i] = 0;
    for (int64_t u = 0; u < n; u++) add_scaled(s->d, exp(p[u] - lse), key_at(v_m, s, first + u, h), y);
    row(lse_m, h, s->B * s->S)[token] = lse;
}

void mu_ref_attention_fwd(mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y,
                          mu_mat lse) {
    MU_CHECK(s->G > 0 && s->H % s->G == 0,
             "attention: %lld heads are not a multiple of %lld key/value heads", (long long)s->H, (long long)s->G);
    size_t mark = mu_arena_mark(&dev->scratch);
    int64_t keys = s->past + s->S;
    double *p = mu_arena_alloc(&dev->scratch, (size_t)keys * sizeof *p);
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t t = 0; t < s->S; t++)
            for (int64_t h = 0; h < s->H; h++)
                query_fwd(s, b * keys, s->past + t + 1, b * s->S + t, h, q, k, v, y, lse, p);
    mu_arena_release(&dev->scratch, mark);
}

typedef struct { mu_mat q, k, v, y, lse, dy, dq, dk, dv; } operands;

static void query_bwd(const mu_attention_shape *s, int64_t first, int64_t token, int64_t h,
                      const operands *o) {
    const double *q = query_at(o->q, s, token, h), *dy = query_at(o->dy, s, token, h);
    double *dq = query_at(o->dq, s, token, h);
    double lse = row(o->lse, h, s->B * s->S)[token], mean = dot(s->d, dy, query_at(o->y, s, token, h));
    for (int64_t u = first; u <= token; u++) {
        const double *k = key_at(o->k, s, u, h), *v = key_at(o->v, s, u, h);
        double p = exp(s->scale * dot(s->d, q, k) - lse);
        double ds = p * (dot(s->d, dy, v) - mean);
        add_scaled(s->d, s->scale * ds, k, dq);
        add_scaled(s->d, s->scale * ds, q, key_at(o->dk, s, u, h));
        add_scaled(s->d, p, dy, key_at(o->dv, s, u, h));
    }
}

void mu_ref_attention_bwd(mu_device *dev, const mu_attention_shape *s, mu_mat q, mu_mat k, mu_mat v, mu_mat y,
                          mu_mat lse, mu_mat dy, mu_mat dq, mu_mat dk, mu_mat dv) {
    (void)dev;
    operands o = { q, k, v, y, lse, dy, dq, dk, dv };
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t t = 0; t < s->S; t++)
            for (int64_t h = 0; h < s->H; h++) query_bwd(s, b * s->S, b * s->S + t, h, &o);
}
