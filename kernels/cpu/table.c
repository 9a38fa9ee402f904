/* table.c - the kernel table of this instruction set. The prototypes come from the list of kernels, so a
 * missing kernel is a link error. */
#include "kernels/cpu/cpu.h"

#define TABLE3(isa) mu_kernels_cpu_##isa
#define TABLE2(isa) TABLE3(isa)
#define TABLE TABLE2(MU_CPU_ISA)

extern const mu_kernels TABLE;

#define K(name, params, args) .name = CPU(name),
const mu_kernels TABLE = { MU_KERNELS(K) };
#undef K
