/* transpose.h - a block of 16 x 16 words turned in 16 registers of AVX-512; used where weights are packed. */
#ifndef MUSTER_KERNELS_CPU_TRANSPOSE_H
#define MUSTER_KERNELS_CPU_TRANSPOSE_H
#include <immintrin.h>

/* Lanes 0 .. n-1. */
static inline __mmask16 cpu_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* Afterwards r[i] holds word i of the 16 rows: four rounds in which rows 8, 4, 2, 1 apart exchange what they
 * hold for each other. */
static inline __attribute__((always_inline)) void cpu_transpose_words(__m512i r[16]) {
    static const int32_t kept[4][16] = {
        { 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23 },
        { 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27 },
        { 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29 },
        { 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30 },
    };
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++) {
        const int apart = 8 >> round;
        __m512i keep = _mm512_loadu_si512(kept[round]);
        __m512i take = _mm512_add_epi32(keep, _mm512_set1_epi32(apart));
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            if (i & apart) continue;
            __m512i a = r[i], b = r[i + apart];
            r[i] = _mm512_permutex2var_epi32(a, keep, b);
            r[i + apart] = _mm512_permutex2var_epi32(a, take, b);
        }
    }
}

#endif
