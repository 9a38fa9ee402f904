/* curand_philox4x32_x.h - what the emulation offers of cuRAND's header of this name: the one function, as our own Philox
 * (base/philox.c). tests/kernels/curand.sh compares the two where cuRAND's header is installed. */
#ifndef MUSTER_EMULATED_CURAND_PHILOX_H
#define MUSTER_EMULATED_CURAND_PHILOX_H
#include <cuda_runtime.h>

#include "base/base.h"

static inline uint4 curand_Philox4x32_10(uint4 c, uint2 key) {
    uint32_t counter[4] = { c.x, c.y, c.z, c.w }, number[4];
    mu_philox4x32((uint64_t)key.y << 32 | key.x, counter, number);
    return make_uint4(number[0], number[1], number[2], number[3]);
}
#endif
