/* test_similarity.c - similarity of experts: against plain loops; copies, opposites, silent experts; a plan of every expert. */
#include "layer.h"
#include "stops.h"

#include <math.h>
#include <string.h>

enum { E = 4, D = 6, F = 5, R = 7 };

/* f_i of each row by plain loops, from the layer's weights: y [R, D]. */
static void outputs(const layer *l, int expert, const double *x, double *y) {
    double g[E * F * D], u[E * F * D], d[E * D * F];
    mu_tensor_get(&l->moe.gate_eFD->tensor, g);
    mu_tensor_get(&l->moe.up_eFD->tensor, u);
    mu_tensor_get(&l->moe.down_eDF->tensor, d);
    for (int r = 0; r < R; r++)
        for (int o = 0; o < D; o++) {
            y[r * D + o] = 0;
            for (int f = 0; f < F; f++) {
                double a = 0, b = 0;
                for (int i = 0; i < D; i++) {
                    a += g[(expert * F + f) * D + i] * x[r * D + i];
                    b += u[(expert * F + f) * D + i] * x[r * D + i];
                }
                y[r * D + o] += d[(expert * D + o) * F + f] * a / (1 + exp(-a)) * b;
            }
        }
}

static double dot(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static double cosine(const double *a, const double *b) {
    double sum = 0;
    for (int r = 0; r < R; r++)
        sum += dot(a + r * D, b + r * D, D) / sqrt(dot(a + r * D, a + r * D, D) * dot(b + r * D, b + r * D, D));
    return sum / R;
}

/* The unbiased estimate of HSIC of A A^T and B B^T, times R (R - 3): Song et al. 2012, with the diagonals set to 0,
 * tr(K L) + 1^T K 1 1^T L 1 / ((R - 1)(R - 2)) - 2 / (R - 2) 1^T K L 1. */
static double hsic(const double *a, const double *b) {
    double trace = 0, all_a = 0, all_b = 0, mixed = 0;
    for (int p = 0; p < R; p++) {
        double row_a = 0, row_b = 0;
        for (int q = 0; q < R; q++) {
            double ka = p == q ? 0 : dot(a + p * D, a + q * D, D), kb = p == q ? 0 : dot(b + p * D, b + q * D, D);
            trace += ka * kb, row_a += ka, row_b += kb;
        }
        all_a += row_a, all_b += row_b, mixed += row_a * row_b;
    }
    return trace + all_a * all_b / ((R - 1.0) * (R - 2.0)) - 2 / (R - 2.0) * mixed;
}

static layer *layer_with_input(const char *device, double x[R * D]) {
    layer *l = layer_new(device, mesh_alone(), layer_config(E, 2, F), 1, R, D);
    mu_tape_record(l->tp, false);
    mu_tensor_get(&l->x_TD->tensor, x);
    return l;
}

static void the_same_as_plain_loops(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu", "guarded" };
    for (int device = 0; device < 3; device++) {
        double x[R * D], y[E][R * D], max[E], cos_sum = 0, cka_sum = 0, close = device ? 1e-5 : 1e-12;
        int64_t twin[E];
        mu_similarity s;
        layer *l = layer_with_input(devices[device], x);
        mu_expert_similarity(&l->moe, l->tp, x, R, &s, max, twin);
        for (int i = 0; i < E; i++) outputs(l, i, x, y[i]);
        for (int i = 0; i < E; i++) {
            double best = -2;
            for (int j = 0; j < E; j++) {
                if (j == i) continue;
                best = fmax(best, cosine(y[i], y[j]));
                if (j < i) continue;
                cos_sum += cosine(y[i], y[j]);
                cka_sum += hsic(y[i], y[j]) / sqrt(hsic(y[i], y[i]) * hsic(y[j], y[j]));
            }
            assert_true(fabs(max[i] - best) < close && twin[i] >= 0 && twin[i] != i);
            assert_true(fabs(cosine(y[i], y[twin[i]]) - best) < close);
        }
        assert_true(fabs(s.cosine - cos_sum / 6) < close && fabs(s.cka - cka_sum / 6) < close);
        layer_free(l);
    }
}

/* Expert 2 becomes a copy of 0 with outputs of 1 and -1 times its own; expert 3 says nothing. */
static void copies_opposites_and_silence(void **state) {
    (void)state;
    for (int sign = -1; sign <= 1; sign += 2) {
        double x[R * D], w[E * F * D], max[E];
        int64_t twin[E];
        mu_similarity s;
        layer *l = layer_with_input("cpu", x);
        mu_param *all[] = { l->moe.gate_eFD, l->moe.up_eFD, l->moe.down_eDF };
        for (int p = 0; p < 3; p++) {
            mu_tensor_get(&all[p]->tensor, w);
            for (int i = 0; i < F * D; i++) w[2 * F * D + i] = (p == 2 ? sign : 1) * w[i], w[3 * F * D + i] = 0;
            mu_tensor_set(&all[p]->tensor, w);
        }
        mu_params_refresh(l->ps);
        mu_expert_similarity(&l->moe, l->tp, x, R, &s, max, twin);
        assert_true(isfinite(s.cosine) && isfinite(s.cka));
        if (sign > 0) assert_true(twin[0] == 2 && twin[2] == 0 && fabs(max[0] - 1) < 1e-6 && fabs(max[2] - 1) < 1e-6);
        else assert_true(twin[0] != 2 && twin[2] != 0);
        assert_true(max[3] == 0 && twin[3] == 0);
        layer_free(l);
    }
}

static void wrong_input_stops(void **state) {
    (void)state;
    double x[R * D], max[E];
    int64_t twin[E];
    mu_similarity s;
    layer *l = layer_with_input("cpu", x);
    STOPS("the similarity of 4 experts on 3 rows", mu_expert_similarity(&l->moe, l->tp, x, 3, &s, max, twin));
    layer_free(l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_as_plain_loops),
        cmocka_unit_test(copies_opposites_and_silence),
        cmocka_unit_test(wrong_input_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
