/* tensor.c - tensors: shape, type, and the copies between host and device. */
#include "autograd/internal.h"

#include <stdlib.h>
#include <string.h>

int64_t mu_count(const mu_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= t->shape[i];
    return n;
}

void mu_tensor_check(const mu_tensor *t, const char *what, int n_dims, unsigned types) {
    MU_CHECK(t, "%s is missing", what);
    MU_CHECK(!n_dims || t->n_dims == n_dims, "%s has %d dimension%s, not %d", what, t->n_dims, t->n_dims == 1 ? "" : "s", n_dims);
    MU_CHECK(types >> t->dtype & 1, "%s has unexpected dtype %s", what, mu_dtype_name(t->dtype));
}

void mu_ids_check(const mu_tensor *ids, const char *what, int64_t low, int64_t high) {
    MU_CHECK(!ids->bounded || (ids->low >= low && ids->high <= high),
             "%s: ids in [%lld, %lld], expected [%lld, %lld]", what,
             (long long)ids->low, (long long)ids->high, (long long)low, (long long)high);
}

mu_tensor *mu_tensor_new(mu_tape *tp, mu_dtype dtype, int n_dims, const int64_t *shape) {
    MU_CHECK(tp && n_dims >= 0 && n_dims <= 4 && (unsigned)dtype <= MU_DTYPE_I64,
             "invalid tensor: %d dimensions, dtype %d", n_dims,
             (int)dtype);
    mu_tensor *t = mu_tape_alloc(tp, sizeof *t);
    *t = (mu_tensor){ .dev = tp->dev, .dtype = dtype, .n_dims = n_dims };
    for (int i = 0; i < n_dims; i++) {
        MU_CHECK(shape[i] >= 0 && shape[i] <= INT64_C(1) << 40,
                 "invalid tensor: dimension %d is %lld", i, (long long)shape[i]);
        t->shape[i] = shape[i];
    }
    t->data = mu_pool_take(&tp->pool, mu_size_mul((size_t)mu_count(t), mu_dtype_size(dtype)));
    return t;
}

mu_tensor *mu_tensor_2d(mu_tape *tp, int64_t rows, int64_t columns) {
    return mu_tensor_new(tp, tp->dev->compute, 2, (int64_t[]){ rows, columns });
}

mu_tensor *mu_tensor_2d_master(mu_tape *tp, int64_t rows, int64_t columns) {
    return mu_tensor_new(tp, tp->dev->master, 2, (int64_t[]){ rows, columns });
}

mu_tensor *mu_tensor_like(mu_tape *tp, const mu_tensor *x) {
    return mu_tensor_new(tp, x->dtype, x->n_dims, x->shape);
}

mu_tensor *mu_tensor_scalar(mu_tape *tp) { return mu_tensor_new(tp, MU_DTYPE_F64, 1, (int64_t[]){ 1 }); }

mu_tensor *mu_tensor_loss(mu_tape *tp, int64_t rows) {
    return mu_tensor_new(tp, MU_DTYPE_F64, 1, (int64_t[]){ mu_tape_reduction_units(tp, rows) });
}

mu_tensor *mu_tensor_ints(mu_tape *tp, mu_dtype dtype, int64_t n, const void *host_or_null) {
    mu_tensor *t = mu_tensor_new(tp, dtype, 1, &n);
    if (host_or_null) mu_tensor_write(t, host_or_null);
    return t;
}

mu_tensor *mu_tensor_rows(mu_tape *tp, const mu_tensor *x, int64_t first, int64_t n) {
    MU_CHECK(x && x->n_dims == 2 && first >= 0 && n >= 0 && first + n <= x->shape[0],
             "rows [%lld, %lld) out of range for %lld rows", (long long)first, (long long)(first + n),
             x ? (long long)x->shape[0] : 0);
    mu_tensor *t = mu_tape_alloc(tp, sizeof *t);
    *t = (mu_tensor){ .dev = x->dev, .dtype = x->dtype, .n_dims = 2, .shape = { n, x->shape[1] }, .view = true };
    t->data = (char *)x->data + (size_t)(first * x->shape[1]) * mu_dtype_size(x->dtype);
    return t;
}

mu_mat mu_data(const mu_tensor *t) {
    if (!t) return (mu_mat){ 0 };
    return (mu_mat){ t->data, t->dtype, t->n_dims ? t->shape[t->n_dims - 1] : 1 };
}

mu_mat mu_master(const mu_tensor *t) {
    mu_mat m = mu_data(t);
    if (t->master) m.data = t->master, m.dtype = t->dev->master;
    return m;
}

/* A parameter's gradient has the master dtype, an activation's its own dtype. */
static mu_dtype grad_type(const mu_tensor *t) { return t->master ? t->dev->master : t->dtype; }

mu_mat mu_grad_of(const mu_tensor *t) {
    if (!t || !t->grad) return (mu_mat){ 0 };
    return (mu_mat){ t->grad, grad_type(t), t->n_dims ? t->shape[t->n_dims - 1] : 1 };
}

mu_mat mu_sums(const mu_tensor *t) { return (mu_mat){ t->sums, MU_DTYPE_I64, t->sums_ld }; }

mu_mat mu_mat_rows(mu_mat m, int64_t first) {
    if (m.data) m.data = (char *)m.data + (size_t)(first * m.ld) * mu_dtype_size(m.dtype);
    return m;
}

mu_mat mu_mat_values(mu_mat m, int64_t first) {
    m.ld = 1;
    return mu_mat_rows(m, first);
}

double mu_grad_beta(mu_tape *tp, mu_tensor *t, mu_mat *grad) {
    bool first = !t->grad || t->grad_new;
    if (!t->grad) t->grad = mu_pool_take(&tp->pool, (size_t)mu_count(t) * mu_dtype_size(grad_type(t)));
    t->grad_new = false;
    *grad = mu_grad_of(t);
    return first ? 0.0 : 1.0;
}

mu_mat mu_grad(mu_tape *tp, mu_tensor *t) {
    mu_mat grad;
    if (mu_grad_beta(tp, t, &grad) == 0.0) tp->dev->k->fill(tp->dev, mu_count(t), 0.0, grad);
    return grad;
}

void mu_tensor_read(const mu_tensor *t, void *host) {
    mu_device_read(t->dev, host, t->data, (size_t)mu_count(t) * mu_dtype_size(t->dtype));
}

/* Smallest and largest of integers that the host writes, so that ids can be checked without waiting for the device. */
static void find_bounds(mu_tensor *t, const void *host) {
    int64_t n = mu_count(t);
    bool narrow = t->dtype == MU_DTYPE_I32;
    t->bounded = n > 0 && (narrow || t->dtype == MU_DTYPE_I64);
    t->low = INT64_MAX, t->high = INT64_MIN;
    for (int64_t i = 0; i < n && t->bounded; i++) {
        int64_t value = narrow ? ((const int32_t *)host)[i] : ((const int64_t *)host)[i];
        if (value < t->low) t->low = value;
        if (value > t->high) t->high = value;
    }
}

void mu_tensor_write(mu_tensor *t, const void *host) {
    find_bounds(t, host);
    mu_device_write(t->dev, t->data, host, (size_t)mu_count(t) * mu_dtype_size(t->dtype));
}

enum { CHUNK = 4096 }; /* values converted at a time, on the stack */

static bool is_bf16(mu_dtype dtype) {
    MU_CHECK(dtype == MU_DTYPE_F32 || dtype == MU_DTYPE_BF16, "%s is not a floating-point dtype",
             mu_dtype_name(dtype));
    return dtype == MU_DTYPE_BF16;
}

static float from_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Round to nearest, ties to even; NaN stays NaN. */
static uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void mu_reals_get(mu_device *dev, mu_dtype dtype, const void *data, int64_t n, double *host) {
    if (dtype == MU_DTYPE_F64) {
        mu_device_read(dev, host, data, (size_t)n * sizeof(double));
        return;
    }
    float chunk[CHUNK];
    uint16_t halves[CHUNK];
    bool bf16 = is_bf16(dtype);
    size_t size = mu_dtype_size(dtype);
    for (int64_t at = 0; at < n; at += CHUNK) {
        int64_t now = n - at < CHUNK ? n - at : CHUNK;
        mu_device_read(dev, bf16 ? (void *)halves : chunk, (const char *)data + (size_t)at * size, (size_t)now * size);
        for (int64_t i = 0; i < now; i++) host[at + i] = (double)(bf16 ? from_bf16(halves[i]) : chunk[i]);
    }
}

void mu_reals_set(mu_device *dev, mu_dtype dtype, void *data, int64_t n, const double *host) {
    if (dtype == MU_DTYPE_F64) {
        mu_device_write(dev, data, host, (size_t)n * sizeof(double));
        return;
    }
    float chunk[CHUNK];
    uint16_t halves[CHUNK];
    bool bf16 = is_bf16(dtype);
    size_t size = mu_dtype_size(dtype);
    for (int64_t at = 0; at < n; at += CHUNK) {
        int64_t now = n - at < CHUNK ? n - at : CHUNK;
        for (int64_t i = 0; i < now; i++) chunk[i] = (float)host[at + i], halves[i] = to_bf16(chunk[i]);
        mu_device_write(dev, (char *)data + (size_t)at * size, bf16 ? (void *)halves : chunk, (size_t)now * size);
    }
}

void mu_tensor_get(const mu_tensor *t, double *host) {
    mu_reals_get(t->dev, t->dtype, t->data, mu_count(t), host);
}
void mu_tensor_set(mu_tensor *t, const double *host) {
    mu_reals_set(t->dev, t->dtype, t->data, mu_count(t), host);
}

double mu_tensor_scalar_get(const mu_tensor *t) {
    MU_CHECK(t->dtype == MU_DTYPE_F64 && mu_count(t) == 1,
             "a scalar loss is one f64; this tensor has %lld values of type %s",
             (long long)mu_count(t), mu_dtype_name(t->dtype));
    double value;
    mu_tensor_read(t, &value);
    return value;
}
