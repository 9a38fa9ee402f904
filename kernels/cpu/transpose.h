/* transpose.h - transposes blocks of 16 x 16 words with AVX-512, to pack weights. */
#ifndef MUSTER_KERNELS_CPU_TRANSPOSE_H
#define MUSTER_KERNELS_CPU_TRANSPOSE_H
#include <immintrin.h>
#include <stdint.h>

/* Lanes 0 .. n-1. */
static inline __mmask16 cpu_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* r[i][j] becomes r[j][i]: first whole lanes of four words among rows i, i+4, i+8, i+12, which moves columns
 * 4q .. 4q+3 of all rows into r[4q] .. r[4q+3]; then words within the lanes. */
static inline __attribute__((always_inline)) void cpu_transpose(__m512 r[16]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x44), b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xee);
        __m512 c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x44), d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xee);
        r[i] = _mm512_shuffle_f32x4(a, c, 0x88), r[i + 4] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[i + 8] = _mm512_shuffle_f32x4(b, d, 0x88), r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        __m512d a = (__m512d)_mm512_unpacklo_ps(r[i], r[i + 1]), b = (__m512d)_mm512_unpackhi_ps(r[i], r[i + 1]);
        __m512d c = (__m512d)_mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = (__m512d)_mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        r[i] = (__m512)_mm512_unpacklo_pd(a, c), r[i + 1] = (__m512)_mm512_unpackhi_pd(a, c);
        r[i + 2] = (__m512)_mm512_unpacklo_pd(b, d), r[i + 3] = (__m512)_mm512_unpackhi_pd(b, d);
    }
}

#endif
