/* exact.c - sums of doubles without rounding, so that order and grouping do not matter: Kulisch's long
 * accumulator, digits of 32 bits in words of 64. A double changes three digits; carries are propagated only when
 * the value is read, with room for 2^31 additions. */
#include "base/base.h"

#include <math.h>

enum { LOWEST = -1152 }; /* weight of the first digit's first bit is 2^LOWEST; 2^-1126 is the smallest needed */
__extension__ typedef unsigned __int128 wide;

void mu_exact_add(mu_exact *sum, double x) {
    int exponent;
    if (!isfinite(x)) {
        sum->bad++;
        return;
    }
    int64_t mantissa = (int64_t)ldexp(frexp(x, &exponent), 53), sign = mantissa < 0 ? -1 : 1;
    int bit = exponent - 53 - LOWEST;
    wide bits = (wide)(mantissa * sign) << (bit % 32);
    for (int i = 0; i < 3; i++, bits >>= 32) sum->digit[bit / 32 + i] += sign * (int64_t)(uint32_t)bits;
}

/* Digits 0 .. 2^32-1, the sign in the last one. */
static void carry(mu_exact *sum) {
    for (int i = 0; i + 1 < MU_EXACT_DIGITS; i++) {
        int64_t digit = (int64_t)(uint32_t)sum->digit[i];
        sum->digit[i + 1] += (sum->digit[i] - digit) / ((int64_t)1 << 32);
        sum->digit[i] = digit;
    }
}

static bool any_below(const mu_exact *sum, int i) {
    while (--i >= 0)
        if (sum->digit[i]) return true;
    return false;
}

double mu_exact_value(const mu_exact *from) {
    mu_exact sum = *from;
    int top = MU_EXACT_DIGITS - 1;
    if (sum.bad) return NAN;
    carry(&sum);
    bool negative = sum.digit[top] < 0;
    for (int i = 0; negative && i < MU_EXACT_DIGITS; i++) sum.digit[i] = -sum.digit[i];
    if (negative) carry(&sum);
    while (top > 2 && !sum.digit[top]) top--;
    /* 96 bits, the last one set when a lower bit is set (sticky): rounded once, correctly. */
    wide bits = (wide)sum.digit[top] << 64 | (wide)sum.digit[top - 1] << 32 | (wide)sum.digit[top - 2];
    if (any_below(&sum, top - 2)) bits |= 1;
    double value = ldexp((double)bits, 32 * (top - 2) + LOWEST);
    return negative ? -value : value;
}
