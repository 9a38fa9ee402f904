/* similarity.c - how alike the experts of a layer are: all of them process the same rows, and their outputs are compared.
 *
 *     cosine_ij = mean over rows of cos(y_i, y_j)
 *     cka_ij = <U_i, U_j> / sqrt(<U_i, U_i> <U_j, U_j>)      linear CKA (Kornblith et al. 2019); U: Gram matrix Y Y^T, centred
 *
 * With few rows for the width, CKA of Gram matrices whose rows and columns were centred is near 1 for any experts. So they are U-centred
 * (Szekely and Rizzo 2014), which makes <U_i, U_j> / (R (R - 3)) the unbiased estimate of HSIC by Song et al. 2012, as Nguyen et al. 2021
 * use it: with row sums r and sum s of G without its diagonal, U_ab = G_ab - (r_a + r_b) / (R - 2) + s / ((R - 1) (R - 2)), U_aa = 0.
 * 0 for experts that have nothing to do with each other, and a little below it by chance.
 *
 * Cosines and inner products are products of E long vectors with each other. */
#include "moe/moe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Outputs [e, R, D] of this rank's experts for the rows x [R, D], on the host. */
static double *outputs_here(const mu_moe *m, mu_tape *tp, const double *x_RD, int64_t R) {
    int64_t e = m->place->n_local;
    double *y = mu_alloc((size_t)(e * R * m->D), sizeof *y);
    mu_tensor *x = mu_tensor_2d(tp, R, m->D);
    mu_tensor_set(x, x_RD);
    mu_plan *plan = mu_plan_every(tp, R, e);
    mu_tensor *rows = mu_experts(tp, x, NULL, &m->gate_eFD->tensor, &m->up_eFD->tensor, &m->down_eDF->tensor, plan);
    mu_tensor_get(rows, y);
    mu_release(tp, rows);
    mu_plan_release(tp, plan);
    mu_release(tp, x);
    return y;
}

/* Outputs [E, R, D] of all experts, by id. Heap. Collective over the expert group. */
static double *outputs_of(const mu_moe *m, mu_tape *tp, const double *x_RD, int64_t R) {
    int64_t size = R * m->D, e = m->place->n_local;
    double *here = outputs_here(m, tp, x_RD, R), *all = mu_alloc((size_t)(m->E * size), sizeof *all);
    double *gathered = mu_alloc((size_t)(m->E * size), sizeof *gathered);
    mu_all_gather(m->group, here, (int64_t)sizeof *here * e * size, gathered);
    for (int64_t i = 0; i < m->E; i++) {
        int64_t from = m->place->rank[i] * e + m->place->slot[i];
        memcpy(all + i * size, gathered + from * size, sizeof *all * (size_t)size);
    }
    free(gathered);
    free(here);
    return all;
}

/* products_EE: of the n rows of x [n, width] with each other, as the device multiplies; heap. */
static double *products(mu_tape *tp, const double *x, int64_t n, int64_t width) {
    double *y = mu_alloc((size_t)(n * n), sizeof *y);
    mu_tensor *rows = mu_tensor_2d_master(tp, n, width);
    mu_tensor_set(rows, x);
    mu_tensor *all = mu_linear_master(tp, rows, rows);
    mu_tensor_get(all, y);
    mu_release(tp, all);
    mu_release(tp, rows);
    return y;
}

/* Every row has length 1 afterwards, or stays 0. */
static void normalise(double *y, int64_t rows, int64_t D) {
    for (int64_t r = 0; r < rows; r++, y += D) {
        double sum = 0;
        for (int64_t i = 0; i < D; i++) sum += y[i] * y[i];
        for (int64_t i = 0; i < D && sum > 0; i++) y[i] /= sqrt(sum);
    }
}

static void centre(double *y, int64_t R, int64_t D) {
    for (int64_t i = 0; i < D; i++) {
        double mean = 0;
        for (int64_t r = 0; r < R; r++) mean += y[r * D + i] / (double)R;
        for (int64_t r = 0; r < R; r++) y[r * D + i] -= mean;
    }
}

/* The mean over pairs of products_ij / scale, or of their ratio to sqrt(products_ii products_jj) when scale is 0. */
static double pair_value(const double *products, int64_t E, int64_t i, int64_t j, double scale) {
    double p = products[i * E + j], square = products[i * E + i] * products[j * E + j];
    return scale > 0 ? p / scale : square > 0 ? p / sqrt(square) : 0;
}

static double mean_of_pairs(const double *products, int64_t E, double scale) {
    double sum = 0;
    for (int64_t i = 0; i < E; i++)
        for (int64_t j = i + 1; j < E; j++) sum += pair_value(products, E, i, j, scale);
    return sum / (double)(E * (E - 1) / 2);
}

static void centre_gram(double *g, int64_t R) {
    double *sum = mu_alloc((size_t)R, sizeof *sum), all = 0, n = (double)R;
    for (int64_t a = 0; a < R; a++) {
        for (int64_t b = 0; b < R; b++) sum[a] += b != a ? g[a * R + b] : 0;
        all += sum[a];
    }
    for (int64_t a = 0; a < R; a++)
        for (int64_t b = 0; b < R; b++) g[a * R + b] = a == b ? 0 : g[a * R + b] - (sum[a] + sum[b]) / (n - 2) + all / ((n - 1) * (n - 2));
    free(sum);
}

/* The columns of y are centred first: that changes nothing but the rounding errors. */
static double cka_of(mu_tape *tp, double *y, int64_t E, int64_t R, int64_t D) {
    double *grams = mu_alloc((size_t)(E * R * R), sizeof *grams);
    for (int64_t i = 0; i < E; i++) {
        centre(y + i * R * D, R, D);
        double *gram = products(tp, y + i * R * D, R, D);
        centre_gram(gram, R);
        memcpy(grams + i * R * R, gram, sizeof *gram * (size_t)(R * R));
        free(gram);
    }
    double *all = products(tp, grams, E, R * R), mean = mean_of_pairs(all, E, 0);
    free(all);
    free(grams);
    return mean;
}

void mu_expert_similarity(const mu_moe *m, mu_tape *tp, const double *x_RD, int64_t R, mu_similarity *s, double *max_E, int64_t *twin_E) {
    int64_t E = m->E, D = m->D;
    MU_CHECK(E >= 2 && R >= 4, "the similarity of %lld experts on %lld rows", (long long)E, (long long)R);
    double *y = outputs_of(m, tp, x_RD, R), *unit = mu_alloc((size_t)(E * R * D), sizeof *unit);
    memcpy(unit, y, sizeof *y * (size_t)(E * R * D));
    normalise(unit, E * R, D);
    double *cosines = products(tp, unit, E, R * D);
    s->cosine = mean_of_pairs(cosines, E, (double)R);
    for (int64_t i = 0; i < E; i++) {
        twin_E[i] = -1;
        for (int64_t j = 0; j < E; j++) {
            double c = pair_value(cosines, E, i, j, (double)R);
            if (j != i && (twin_E[i] < 0 || c > max_E[i])) max_E[i] = c, twin_E[i] = j;
        }
    }
    s->cka = cka_of(tp, y, E, R, D);
    free(cosines);
    free(unit);
    free(y);
}
