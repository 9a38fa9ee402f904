/* bench.h - what the benchmark programs share. */
#ifndef MUSTER_BENCH_H
#define MUSTER_BENCH_H
#include "base/base.h"

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
struct mu_device;
struct mu_device *bench_device(const char *program, bool bf16, bool cuda);
enum { BENCH_CANNOT = 69 };                             /* exit code when this machine cannot (EX_UNAVAILABLE) */
#endif
