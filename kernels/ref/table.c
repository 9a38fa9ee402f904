/* table.c - the table of the reference device; a missing kernel is a link error. */
#include "kernels/internal.h"
#include "kernels/ref/ref.h"

#define K(name, params, args) .name = mu_ref_##name,
const mu_kernels mu_kernels_ref = { MU_KERNELS(K) };
#undef K
