/* basic.c - fills, sums, limits, embedding, gather and its weighted sum. */
#include "kernels/ref/ref.h"

void mu_ref_fill(mu_device *dev, int64_t n, double value, mu_mat x_n) {
    (void)dev;
    double *x = reals(x_n);
    for (int64_t i = 0; i < n; i++) x[i] = value;
}

void mu_ref_axpy(mu_device *dev, int64_t n, double a, mu_mat x_n, mu_mat y_n) {
    (void)dev;
    add_scaled(n, a, reals(x_n), reals(y_n));
}

void mu_ref_add_squares(mu_device *dev, int64_t n, double a, mu_mat x_n, mu_mat y_n) {
    (void)dev;
    const double *x = reals(x_n);
    double *y = reals(y_n);
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i] * x[i];
}

static void add_words(int64_t n, const int64_t *x, const int64_t *y, int64_t *z) {
    for (int64_t i = 0; i < n; i++) z[i] = x[i] + y[i];
}

void mu_ref_add(mu_device *dev, int64_t n, mu_mat x_n, mu_mat y_n, mu_mat z_n) {
    (void)dev;
    if (x_n.dtype == MU_DTYPE_I64) {
        add_words(n, longs(x_n), longs(y_n), longs(z_n));
        return;
    }
    if (x_n.dtype == MU_DTYPE_I32) {
        for (int64_t i = 0; i < n; i++) ints(z_n)[i] = ints(x_n)[i] + ints(y_n)[i];
        return;
    }
    const double *x = reals(x_n), *y = reals(y_n);
    double *z = reals(z_n);
    for (int64_t i = 0; i < n; i++) z[i] = x[i] + y[i];
}

void mu_ref_clamp(mu_device *dev, int64_t n, double limit, mu_mat x_n, mu_mat dy_n, mu_mat y_n) {
    (void)dev;
    const double *x = reals(x_n), *dy = reals(dy_n);
    double *y = reals(y_n);
    for (int64_t i = 0; i < n; i++)
        if (!dy) y[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
        else if (x[i] >= -limit && x[i] <= limit) y[i] += dy[i];
}

void mu_ref_copy(mu_device *dev, int64_t n, mu_mat x_n, mu_mat y_n) {
    (void)dev;
    const double *x = reals(x_n);
    double *y = reals(y_n);
    for (int64_t i = 0; i < n; i++) y[i] = x[i];
}

void mu_ref_sum(mu_device *dev, int64_t n, double scale, mu_mat x_n, bool add, mu_mat out) {
    (void)dev;
    const double *x = reals(x_n);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    *reals(out) = (add ? *reals(out) : 0) + scale * sum;
}

void mu_ref_sumsq(mu_device *dev, int64_t n, mu_mat x_n, bool add, mu_mat out) {
    (void)dev;
    const double *x = reals(x_n);
    *reals(out) = (add ? *reals(out) : 0) + dot(n, x, x);
}

/* y[t] = w[ids[t]] */
void mu_ref_embed_fwd(mu_device *dev, int64_t T, int64_t D, mu_mat ids_T, mu_mat w_VD, mu_mat y_TD) {
    (void)dev;
    const int32_t *ids = ints(ids_T);
    for (int64_t t = 0; t < T; t++) {
        const double *w = row(w_VD, ids[t], D);
        double *y = row(y_TD, t, D);
        for (int64_t i = 0; i < D; i++) y[i] = w[i];
    }
}

/* dw[ids[t]] += dy[t] */
void mu_ref_embed_bwd(mu_device *dev, int64_t T, int64_t D, int64_t V, mu_mat ids_T, mu_mat dy_TD,
                      mu_mat dw_VD) {
    (void)dev;
    const int32_t *ids = ints(ids_T);
    for (int64_t t = 0; t < T; t++) {
        MU_CHECK(ids[t] >= 0 && ids[t] < V, "embedding: id %d is not below %lld", (int)ids[t], (long long)V);
        add_scaled(D, 1, row(dy_TD, t, D), row(dw_VD, ids[t], D));
    }
}

/* y[r] = x[index[r]] */
void mu_ref_gather(mu_device *dev, int64_t R, int64_t D, mu_mat index_R, mu_mat x_TD, mu_mat y_RD) {
    (void)dev;
    const int32_t *index = ints(index_R);
    for (int64_t r = 0; r < R; r++) {
        const double *x = row(x_TD, index[r], D);
        double *y = row(y_RD, r, D);
        for (int64_t i = 0; i < D; i++) y[i] = x[i];
    }
}

void mu_ref_scatter(mu_device *dev, int64_t R, int64_t D, mu_mat index_R, mu_mat x_RD, mu_mat y) {
    (void)dev;
    for (int64_t r = 0; r < R; r++) {
        if (ints(index_R)[r] < 0) continue;
        double *to = row(y, ints(index_R)[r], D);
        for (int64_t i = 0; i < D; i++) to[i] = row(x_RD, r, D)[i];
    }
}

/* y[t] (+)= sum_k rows[index[t,k]] */
void mu_ref_gather_sum(mu_device *dev, int64_t T, int64_t K, int64_t D, mu_mat index_TK, mu_mat rows_RD, bool add,
                       mu_mat y_TD) {
    (void)dev;
    for (int64_t t = 0; t < T; t++) {
        const int32_t *index = int_row(index_TK, t, K);
        double *y = row(y_TD, t, D);
        for (int64_t i = 0; i < D && !add; i++) y[i] = 0;
        for (int64_t k = 0; k < K; k++)
            if (index[k] >= 0) add_scaled(D, 1, row(rows_RD, index[k], D), y);
    }
}
