/* philox.c - Philox 4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
 * Ten rounds; each multiplies two words by fixed odd constants and mixes the halves with the key,
 * which grows by the golden ratio and by sqrt(3) - 1 each round. */
#include "base/base.h"

#include <math.h>

void mu_philox4x32(uint64_t key, const uint32_t counter[4], uint32_t out[4]) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c0 = n0, c1 = (uint32_t)b, c2 = n2, c3 = (uint32_t)a;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

uint32_t mu_rng_u32(const mu_rng *r, uint64_t index) {
    uint32_t out[4], counter[4] = { (uint32_t)(index / 4), r->step, r->sample, r->purpose << 16 | r->layer };
    mu_philox4x32(r->seed, counter, out);
    return out[index % 4];
}

double mu_rng_uniform(const mu_rng *r, uint64_t index) {
    uint64_t high = mu_rng_u32(r, 2 * index) >> 5, low = mu_rng_u32(r, 2 * index + 1) >> 6;
    return (double)(high << 26 | low) * 0x1p-53;
}

double mu_rng_normal(const mu_rng *r, uint64_t index) {
    double u = 1.0 - mu_rng_uniform(r, index & ~(uint64_t)1), v = mu_rng_uniform(r, index | 1);
    double radius = sqrt(-2.0 * log(u)), angle = 6.283185307179586476925 * v;
    return radius * (index & 1 ? sin(angle) : cos(angle));
}

/* One Philox block gives the two uniforms of a pair of deviates. */
void mu_rng_normals_from(const mu_rng *r, int64_t first, int64_t n, double scale, double *out) {
    MU_CHECK(first % 2 == 0, "normals from number %lld on", (long long)first);
#pragma omp parallel for schedule(static) num_threads(mu_threads())
    for (int64_t pair = 0; pair < (n + 1) / 2; pair++) {
        uint32_t w[4], counter[4] = { (uint32_t)(first / 2 + pair), r->step, r->sample, r->purpose << 16 | r->layer };
        mu_philox4x32(r->seed, counter, w);
        double u = 1.0 - (double)((uint64_t)(w[0] >> 5) << 26 | w[1] >> 6) * 0x1p-53;
        double v = (double)((uint64_t)(w[2] >> 5) << 26 | w[3] >> 6) * 0x1p-53;
        double radius = scale * sqrt(-2.0 * log(u)), angle = 6.283185307179586476925 * v;
        out[2 * pair] = radius * cos(angle);
        if (2 * pair + 1 < n) out[2 * pair + 1] = radius * sin(angle);
    }
}

void mu_rng_normals(const mu_rng *r, int64_t n, double scale, double *out) { mu_rng_normals_from(r, 0, n, scale, out); }
