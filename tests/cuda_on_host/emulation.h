/* emulation.h - what tests say to the emulation and ask of it. Errors stop the process with one message.
 *
 * Environment: MUSTER_EMULATED_DEVICES (1), MUSTER_EMULATED_BYTES of each device (4 GiB), MUSTER_EMULATED_SMS (4),
 * MUSTER_EMULATED_ORDER (forward, backward, shuffled, or shuffled:SEED). */
#ifndef MUSTER_EMULATION_H
#define MUSTER_EMULATION_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MU_EMULATION_FORWARD, MU_EMULATION_BACKWARD, MU_EMULATION_SHUFFLED } mu_emulation_order_kind;

/* In which order the threads of a block run between two barriers, from the next launch on. */
void mu_emulation_order(mu_emulation_order_kind kind, uint64_t seed);

#ifdef __cplusplus
}
#endif
#endif
