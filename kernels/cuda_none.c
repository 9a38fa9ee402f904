/* cuda_none.c - replaces cuda/device.cu in a build without CUDA. */
#include "kernels/internal.h"

mu_device *mu_cuda_open(const char *kind) {
    (void)kind;
    return NULL;
}

bool mu_cuda_unsupported(void) { return false; }
const char *mu_cuda_missing(void) { return "built without CUDA (MUSTER_CUDA=OFF)"; }
