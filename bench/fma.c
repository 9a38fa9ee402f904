/* fma.c - the peak of the cores: independent fused multiply-adds on registers, in the widest vectors the
 * processor has, on as many threads as the kernels use. Twelve accumulators cover the latency (4 or 5
 * cycles) of two units. */
#include "bench.h"

#include <omp.h>
#include <stdlib.h>

enum { CHAINS = 12, ROUNDS = 1 << 20 };

#define LOOP(name, lanes, target)                                                              \
    typedef float name##_vector __attribute__((vector_size(4 * lanes)));                       \
    target static float name(float start) {                                                    \
        name##_vector a[CHAINS], x = { 0 }, y = { 0 };                                          \
        for (int i = 0; i < lanes; i++) x[i] = 0.999f, y[i] = start;                            \
        for (int c = 0; c < CHAINS; c++) a[c] = y + (float)c;                                   \
        for (int r = 0; r < ROUNDS; r++)                                                       \
            for (int c = 0; c < CHAINS; c++) a[c] = a[c] * x + y;                               \
        float sum = 0;                                                                         \
        for (int c = 0; c < CHAINS; c++)                                                       \
            for (int i = 0; i < lanes; i++) sum += a[c][i];                                     \
        return sum;                                                                            \
    }
LOOP(narrow, 4, )
#ifdef __x86_64__
LOOP(avx2, 8, __attribute__((target("avx2,fma"))))
LOOP(avx512, 16, __attribute__((target("avx512f,prefer-vector-width=512"))))
#endif

static int pick(float (**loop)(float)) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return *loop = avx512, 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return *loop = avx2, 8;
#endif
    return *loop = narrow, 4;
}

double bench_fma_peak(void) {
    float (*loop)(float);
    int lanes = pick(&loop), threads = mu_threads();
    double best = 0;
    for (double end = mu_time() + 0.3; mu_time() < end;) {     /* until the threads have settled on their cores */
        float sum = 0;
        double start = mu_time();
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        sum += loop(0.5f + (float)omp_get_thread_num());
        double rate = 2.0 * lanes * CHAINS * (double)ROUNDS * threads / (mu_time() - start);
        if (rate > best && sum != 0) best = rate;     /* the sum is used, so that the loop is kept */
    }
    return best;
}

typedef int64_t pair __attribute__((vector_size(16)));

/* Eight independent sums, so that the cache is the limit, not the latency of additions. */
static int64_t sum_of(int64_t n, const pair *x) {
    pair sum[8] = { { 0 } }, all = { 0 };
    for (int64_t i = 0; i + 8 <= n; i += 8)
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) sum[j] += x[i + j];
    for (int j = 0; j < 8; j++) all += sum[j];
    return all[0] + all[1];
}

double bench_read_rate(int64_t bytes) {
    const int64_t n = bytes / (int64_t)sizeof(pair);
    pair *x = mu_alloc((size_t)n, sizeof *x);
    double best = 0;
    for (int64_t i = 0; i < n; i += 256) x[i][0] = i;           /* its own pages, not the shared page of zeros */
    for (int round = 0; round < 20; round++) {
        int64_t sum = 0, threads = mu_threads();
        double start = mu_time();
#pragma omp parallel for schedule(static) num_threads((int)threads) reduction(+ : sum)
        for (int64_t i = 0; i < threads; i++) sum += sum_of(n * (i + 1) / threads - n * i / threads, x + n * i / threads);
        double rate = (double)bytes / (mu_time() - start);
        if (rate > best && sum != 0) best = rate;
    }
    free(x);
    return best;
}
