/* peak.c - what the machine's matrix product reaches, as the yardstick of MFU: C = A B, 768 x 768 x 768 in
 * the device's own kernel and threads, the best of as many rounds as fit into a fifth of a second. */
#include "train/train.h"

double mu_peak_measure(mu_device *dev) {
    enum { N = 768 };
    if (dev->shape_only || dev->real != MU_DTYPE_F32) return 0;
    size_t bytes = sizeof(float) * N * N;
    mu_memory *memory = mu_memory_new(dev, 3 * bytes);
    mu_memory_commit(memory, 3 * bytes);
    mu_mat a = { memory->region.base, dev->real, N }, b = a, c = a;
    b.data = memory->region.base + bytes, c.data = memory->region.base + 2 * bytes;
    dev->k->fill(dev, 2 * N * N, 0.5, a);
    double best = 0, end = mu_time() + 0.2;
    while (mu_time() < end) {
        double start = mu_time();
        dev->k->gemm(dev, false, true, N, N, N, a, b, 0.0, c);
        double rate = 2.0 * N * N * N / (mu_time() - start);
        if (rate > best) best = rate;
    }
    mu_memory_free(memory);
    return best;
}
