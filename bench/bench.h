/* bench.h - what the benchmark programs share. */
#ifndef MUSTER_BENCH_H
#define MUSTER_BENCH_H
#include "kernels/kernels.h"

#include <stdio.h>

double bench_fma_peak(void);                            /* FLOP/s of all threads (fma.c) */
/* Bytes/s at which all threads together read this many bytes again and again, each its own share of them: memory, or the
 * cache that holds them (fma.c). */
enum { BENCH_MEMORY = 128 << 20 };                      /* more than most caches hold, less than a model needs */
double bench_read_rate(int64_t bytes);
double bench_median(const double *values, int64_t n);   /* 0 of none */

/* An option of a command line: exactly one of `number` (takes a whole number from 1 on) and `flag` is set. */
typedef struct { const char *name; int64_t *number; bool *flag; const char *help; } bench_option;
/* Reads argv into the options. Result: -1 to go on; else the exit code, after --help or after an error. */
int bench_parse(const char *program, const bench_option *options, int n, int argc, char **argv);

/* The device to measure, a GPU or the processor, with bf16 products or not; NULL after one line that says why. */
mu_device *bench_device(const char *program, bool bf16, bool cuda);
/* x[0 .. n-1] uniform in +-scale, of any type: a block of numbers made on the host goes through `room` (F32, the smaller of n
 * and BENCH_BLOCK values) to the device and is copied on over the rest. Zeros, or one number again and again, would let a
 * GPU run faster. */
enum { BENCH_BLOCK = 262139 };                          /* a prime: no two rows, and no two experts, are the same */
void bench_randomly(mu_device *dev, int64_t n, double scale, uint32_t stream, mu_mat x, mu_mat room);
enum { BENCH_CANNOT = 69 };                             /* exit code when this machine cannot (EX_UNAVAILABLE) */
#endif
