/* curand.cpp - base/philox.c against cuRAND's own headers, which compile for the host: the function that kernels call, and
 * the generator with seed, subsequence and offset. curand.sh builds and runs it. */
#include "base/base.h"

#include <cuda_runtime.h>
#define QUALIFIERS static inline
#include <curand_kernel.h>
#include <cstdlib>

/* philox.c is linked alone. */
extern "C" void mu_fatal(mu_status, const char *, int, const char *, const char *, ...) { abort(); }

static int wrong;

static void compare(const char *what, uint32_t ours, uint32_t theirs) {
    if (ours == theirs) return;
    if (wrong++ < 10) printf("%s: %08x, cuRAND has %08x\n", what, (unsigned)ours, (unsigned)theirs);
}

/* Word j of the i-th counter and key: first every combination of corners, then numbers of a stream. */
static uint32_t some(uint32_t i, int j) {
    const uint32_t corners[] = { 0, 1, 0x7fffffff, 0x80000000, 0xffffffff };
    uint32_t digits = i;
    for (int d = 0; d < j; d++) digits /= 5;
    mu_rng r = { 77, i, 0, MU_RNG_TEST, 0 };
    return i < 15625 ? corners[digits % 5] : mu_rng_u32(&r, (uint64_t)j);
}

static void function_of_counter_and_key(void) {
    for (uint32_t i = 0; i < 30000; i++) {
        uint32_t counter[4] = { some(i, 0), some(i, 1), some(i, 2), some(i, 3) }, ours[4];
        uint32_t low = some(i, 4), high = some(i, 5);
        mu_philox4x32((uint64_t)high << 32 | low, counter, ours);
        uint4 theirs = curand_Philox4x32_10(make_uint4(counter[0], counter[1], counter[2], counter[3]),
                                            make_uint2(low, high));
        compare("word 0", ours[0], theirs.x);
        compare("word 1", ours[1], theirs.y);
        compare("word 2", ours[2], theirs.z);
        compare("word 3", ours[3], theirs.w);
    }
}

/* base.h: counter = (block, step, sample, purpose << 16 | layer) is subsequence = its upper two words, and an offset of
 * four numbers a block. */
static void generator(void) {
    const uint32_t steps[] = { 0, 1, 99999, 0x3fffffff };
    for (uint32_t step : steps)
        for (uint32_t sample = 0; sample < 3; sample++) {
            mu_rng r = { 0xfedcba9876543210u, step, 0xfffffffeu + sample, MU_RNG_JITTER, 11 };
            uint64_t subsequence = (uint64_t)(r.purpose << 16 | r.layer) << 32 | r.sample, first = 1000003;
            curandStatePhilox4_32_10_t state;
            curand_init(r.seed, subsequence, ((uint64_t)step << 34) + first, &state);
            for (uint64_t i = first; i < first + 50; i++) compare("number of a stream", mu_rng_u32(&r, i), curand(&state));
        }
}

int main() {
    function_of_counter_and_key();
    generator();
    printf("%s\n", wrong ? "they differ" : "the same numbers");
    return wrong != 0;
}
