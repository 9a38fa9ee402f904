/* emulation.h - interface of the tests to the emulation. Errors end the process with one message.
 *
 * Environment:
 *   MUSTER_EMULATED_ORDER    forward (if not set), backward, shuffled, shuffled:SEED: threads between two barriers
 *   MUSTER_EMULATED_DEVICES  number of devices (1)           MUSTER_EMULATED_BYTES   memory of each (4 GiB)
 *   MUSTER_EMULATED_SMS      multiprocessors (4)             MUSTER_EMULATED_DRIVER  CUDA version of the driver (13000)
 *   MUSTER_EMULATED_CAPABILITY  their compute capability (9)
 *   MUSTER_EMULATED_MPI      1: MPI takes device pointers, so device memory is accessible everywhere
 *   MUSTER_EMULATED_REPORT   file for mu_emulation_report when the program ends
 *   MUSTER_EMULATED_FAULT    launches of kernels whose names begin with this fail, as after a fault in a kernel */
#ifndef MUSTER_EMULATION_H
#define MUSTER_EMULATION_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MU_EMULATION_FORWARD, MU_EMULATION_BACKWARD, MU_EMULATION_SHUFFLED } mu_emulation_order_kind;

/* The order in which the threads of a block run between two barriers, from the next launch on. */
void mu_emulation_order(mu_emulation_order_kind kind, uint64_t seed);

/* Finer bounds than those of allocations: once one operand in a range of reserved addresses (or in a cudaMalloc) is
 * named, kernels may access only named operands there. Checked by the checked and the asan build. */
void mu_emulation_bounds(const void *device, size_t bytes);
void mu_emulation_bounds_clear(void);

/* From now on these bytes count as never written; they are poisoned. Waits for all work. All: every byte of every
 * device, in the checked build only. */
void mu_emulation_forget(void *device, size_t bytes);
void mu_emulation_forget_all(void);

/* What a kernel did since the last reset. Launches, blocks, threads and the emulation's seconds of processor time are
 * counted in every build; the rest in the checked one, from the first reset on (or with MUSTER_EMULATED_REPORT).
 * Sectors are 32 bytes that one access of a warp touches; bytes are those it asked for, each counted once; a footprint
 * is the distinct bytes of a launch, summed over launches. An access of a warp is uncoalesced when it touches more
 * sectors than its bytes would side by side, beginning where the first one lies. Bank conflicts are rounds beyond the first. */
typedef struct {
    int64_t launches, blocks, threads;
    int64_t read_bytes, read_sectors, read_footprint, written_bytes, written_sectors, written_footprint;
    int64_t accesses, uncoalesced, excess_sectors, shared_accesses, bank_conflicts;
    int64_t dynamic_shared;         /* bytes, the maximum over launches */
    double seconds;
} mu_emulation_counters;

void mu_emulation_counters_reset(void);
int mu_emulation_kernel_count(void);
const char *mu_emulation_kernel(int i, mu_emulation_counters *counters);   /* its name, as in "sum<256>" */
mu_emulation_counters mu_emulation_counters_of(const char *name);          /* all 0 for a kernel that never ran */
int64_t mu_emulation_host_waits(void);                                     /* how often the host waited for the device */
int64_t mu_emulation_allocations(void);                                    /* how often it asked for device or pinned memory */
void mu_emulation_report(FILE *to);

#ifdef __cplusplus
}
#endif
#endif
