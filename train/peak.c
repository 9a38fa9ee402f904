/* peak.c - measures the peak FLOP/s that MFU is relative to: C = A B of square matrices with the
 * device's own kernel and threads, the best of as many rounds as fit into 0.2 s. On the CPU they
 * are 768 wide; on a GPU the size doubles from 256 until a product takes two milliseconds. */
#include "train/train.h"

#include <string.h>

/* Seconds of one product, from the call until its last value can be read. */
static double product_seconds(mu_device *dev, int64_t n, mu_mat a, mu_mat b, mu_mat c) {
    char last;
    double start = mu_time();
    dev->k->gemm(dev, false, true, n, n, n, a, b, 0.0, c);
    mu_device_read(dev, &last, c.data, 1);
    return mu_time() - start;
}

/* The best rate of n x n products; *seconds: of the fastest. */
static double rate_of(mu_device *dev, int64_t n, double *seconds) {
    size_t bytes = (size_t)(n * n) * mu_dtype_size(dev->compute);
    mu_memory *memory = mu_memory_new(dev, 3 * bytes);
    mu_memory_commit(memory, 3 * bytes);
    mu_mat a = { memory->region.base, dev->compute, n }, b = a, c = a;
    b.data = memory->region.base + bytes, c.data = memory->region.base + 2 * bytes;
    dev->k->fill(dev, 2 * n * n, 0.5, a);
    *seconds = 1e9;
    for (double end = mu_time() + 0.2; mu_time() < end;) {
        double now = product_seconds(dev, n, a, b, c);
        if (now < *seconds) *seconds = now;
    }
    mu_memory_free(memory);
    return 2.0 * (double)n * (double)n * (double)n / *seconds;
}

double mu_peak_measure(mu_device *dev) {
    double seconds;
    if (dev->shape_only || dev->compute == MU_DTYPE_F64) return 0;
    if (strncmp(dev->name, "cuda", 4)) return rate_of(dev, 768, &seconds);
    int64_t n = 256;
    double rate = rate_of(dev, n, &seconds);
    while (seconds < 2e-3 && n < 16384) rate = rate_of(dev, n *= 2, &seconds);
    return rate;
}
