/* bench.h - shared by the benchmark programs. */
#ifndef MUSTER_BENCH_H
#define MUSTER_BENCH_H
#include "kernels/kernels.h"

#include <stdio.h>

double bench_fma_peak(void);                            /* FLOP/s of all threads (fma.c) */
/* Bandwidth, bytes/s, when all threads together read this many bytes repeatedly, each its own share: of memory, or
 * of the cache that holds them (fma.c). */
enum { BENCH_MEMORY = 128 << 20 };                      /* more than most caches hold, less than a model needs */
double bench_read_rate(int64_t bytes);
double bench_median(const double *values, int64_t n);   /* 0 if there are none */

/* A command-line option: exactly one of `number` (a whole number, at least 1) and `flag` is set. */
typedef struct { const char *name; int64_t *number; bool *flag; const char *help; } bench_option;
/* Reads argv into the options. Returns -1 to continue; else the exit code, after --help or an error. */
int bench_parse(const char *program, const bench_option *options, int n, int argc, char **argv);

/* The device to measure, a GPU or the processor, with bf16 products or not; NULL after printing why there is none. */
mu_device *bench_device(const char *program, bool bf16, bool cuda);
/* x[0 .. n-1] uniform in +-scale, of any type: a block of numbers made on the host goes through `room` (F32, the smaller of n
 * and BENCH_BLOCK values) to the device and is repeated there for the rest. A GPU would run faster on zeros, or on one
 * repeated number. */
enum { BENCH_BLOCK = 262139 };                          /* a prime, so that no two rows or experts are equal */
void bench_randomly(mu_device *dev, int64_t n, double scale, uint32_t stream, mu_mat x, mu_mat room);
enum { BENCH_CANNOT = 69 };                             /* exit code when the device is missing (EX_UNAVAILABLE) */
#endif
