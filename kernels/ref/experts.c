/* experts.c - SwiGLU experts (Shazeer 2020) on rows that are grouped by expert, one row at a time.
 *
 *     hg = gate x,  hu = up x,  a = silu(hg) hu,  y = down (w a),     silu(z) = z s(z),  s(z) = 1/(1 + exp(-z))
 * Backward:
 *     b = down' dy,  dw = <b, a>,  da = w b,  dhu = da silu(hg),  dhg = da hu s(hg) (1 + hg (1 - s(hg))),  dx = gate' dhg + up' dhu.
 * gate, up: [experts, F, D], down: [experts, D, F]; rows offsets[i] .. offsets[i+1]-1 belong to expert i. */
#include "kernels/ref/ref.h"

#include <math.h>

static double sigmoid(double z) { return 1 / (1 + exp(-z)); }
static double silu(double z) { return z * sigmoid(z); }
static double silu_slope(double z) { return sigmoid(z) * (1 + z * (1 - sigmoid(z))); }

/* The row of x or y of routed row r. */
static int64_t row_of(const int32_t *index, int64_t r) { return index ? index[r] : r; }

static double weight_of(mu_mat weights, int64_t r) { return given(weights) ? reals(weights)[r] : 1; }

void mu_ref_experts_fwd(mu_device *dev, const mu_experts_shape *s, mu_mat x_TD, mu_mat in_R, mu_mat offsets_e,
                        mu_mat gate_eFD, mu_mat up_eFD, mu_mat down_eDF, mu_mat hg_RF, mu_mat hu_RF,
                        mu_mat out_R, mu_mat weights_R, mu_mat y_TD) {
    const int64_t *offsets = longs(offsets_e), D = s->D, F = s->F;
    size_t mark = mu_arena_mark(&dev->scratch);
    double *a = mu_arena_alloc(&dev->scratch, (size_t)F * sizeof *a);
    for (int64_t i = 0; i < s->experts; i++) {
        const double *gate = reals(gate_eFD) + i * F * D, *up = reals(up_eFD) + i * F * D;
        const double *down = reals(down_eDF) + i * D * F;
        for (int64_t r = offsets[i]; r < offsets[i + 1]; r++) {
            MU_CHECK(r < s->R, "experts: row %lld of %lld rows", (long long)r, (long long)s->R);
            const double *x = row(x_TD, row_of(ints(in_R), r), D);
            double *y = row(y_TD, row_of(ints(out_R), r), D);
            for (int64_t f = 0; f < F; f++) {
                double hg = dot(D, gate + f * D, x), hu = dot(D, up + f * D, x);
                a[f] = weight_of(weights_R, r) * silu(hg) * hu;
                if (given(hg_RF)) row(hg_RF, r, F)[f] = hg;
                if (given(hu_RF)) row(hu_RF, r, F)[f] = hu;
            }
            for (int64_t j = 0; j < D; j++) y[j] = dot(F, down + j * F, a);
        }
    }
    mu_arena_release(&dev->scratch, mark);
}

/* One expert's weights and gradients; a gradient that is not wanted is NULL. */
typedef struct { const double *gate, *up, *down; double *dgate, *dup, *ddown; } expert;

static expert expert_at(const mu_experts_shape *s, int64_t i, mu_mat gate, mu_mat up, mu_mat down,
                        mu_mat dgate, mu_mat dup, mu_mat ddown) {
    int64_t at = i * s->F * s->D;
    return (expert){ .gate = reals(gate) + at, .up = reals(up) + at, .down = reals(down) + at,
                     .dgate = given(dgate) ? reals(dgate) + at : NULL,
                     .dup = given(dup) ? reals(dup) + at : NULL,
                     .ddown = given(ddown) ? reals(ddown) + at : NULL };
}

/* One row: hg and hu [F] come in, their gradients go out; act [F] and dx [D] are assigned, dx unless it is NULL.
 * Returns dweight. */
static double row_bwd(const mu_experts_shape *s, const expert *e, const double *x, const double *dy, double weight,
                      double *hg, double *hu, double *act, double *dx) {
    int64_t D = s->D, F = s->F;
    double dweight = 0;
    for (int64_t j = 0; j < D && dx; j++) dx[j] = 0;
    for (int64_t f = 0; f < F; f++) {
        double g = hg[f], u = hu[f], b = 0;
        for (int64_t j = 0; j < D; j++) b += dy[j] * e->down[j * F + f];
        dweight += b * silu(g) * u;
        act[f] = weight * silu(g) * u;
        for (int64_t j = 0; j < D && e->ddown; j++) e->ddown[j * F + f] += dy[j] * act[f];
        hg[f] = weight * b * u * silu_slope(g);
        hu[f] = weight * b * silu(g);
        if (e->dgate) add_scaled(D, hg[f], x, e->dgate + f * D);
        if (e->dup) add_scaled(D, hu[f], x, e->dup + f * D);
        if (!dx) continue;
        add_scaled(D, hg[f], e->gate + f * D, dx);
        add_scaled(D, hu[f], e->up + f * D, dx);
    }
    return dweight;
}

static void clear_gradients(const mu_experts_shape *s, const expert *e) {
    double *const all[] = { e->dgate, e->dup, e->ddown };
    for (int which = 0; which < 3; which++)
        for (int64_t i = 0; i < s->F * s->D && all[which]; i++) all[which][i] = 0;
}

static void copy(int64_t n, const double *from, double *to) {
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

void mu_ref_experts_bwd(mu_device *dev, const mu_experts_shape *s, mu_mat x_TD, mu_mat in_R, mu_mat offsets_e,
                        mu_mat gate_eFD, mu_mat up_eFD, mu_mat down_eDF, mu_mat hg_RF, mu_mat hu_RF,
                        mu_mat out_R, mu_mat weights_R, mu_mat dy_TD, mu_mat act_RF, mu_mat xg_RD, mu_mat dyg_RD,
                        mu_mat dx_RD, mu_mat dweights_R, mu_mat dgate_eFD, mu_mat dup_eFD, mu_mat ddown_eDF) {
    (void)dev;
    const int64_t *offsets = longs(offsets_e), D = s->D;
    for (int64_t i = 0; i < s->experts; i++) {
        expert e = expert_at(s, i, gate_eFD, up_eFD, down_eDF, dgate_eFD, dup_eFD, ddown_eDF);
        if (s->fresh) clear_gradients(s, &e);
        for (int64_t r = offsets[i]; r < offsets[i + 1]; r++) {
            const double *x = row(x_TD, row_of(ints(in_R), r), D);
            const double *dy = row(dy_TD, row_of(ints(out_R), r), D);
            double *dx = given(dx_RD) ? row(dx_RD, r, D) : NULL;
            double dweight = row_bwd(s, &e, x, dy, weight_of(weights_R, r), row(hg_RF, r, s->F), row(hu_RF, r, s->F),
                                     row(act_RF, r, s->F), dx);
            if (given(dweights_R)) reals(dweights_R)[r] = dweight;
            if (given(xg_RD)) copy(D, x, row(xg_RD, r, D));
            if (given(dyg_RD)) copy(D, dy, row(dyg_RD, r, D));
        }
    }
}
