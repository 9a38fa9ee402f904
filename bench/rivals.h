/* rivals.h - matrix products of other libraries, found when the program starts, for comparison with muster's.
 *
 * oneDNN, OpenBLAS and BLIS are opened with dlopen, so that nothing depends on them and two libraries that
 * both export cblas_sgemm do not clash; libxsmm is linked in when the build found it (Debian has no shared
 * one). Each call is single-threaded: callers divide the work among threads. */
#ifndef MUSTER_BENCH_RIVALS_H
#define MUSTER_BENCH_RIVALS_H
#include <stdbool.h>
#include <stdint.h>

/* Row-major C[m,n] = op(A)[m,k] op(B)[k,n], or += when `add`. a is [m, k], or [k, m] when ta; b likewise.
 * Elements of A and B are floats, or bf16 (the upper halves of floats) in a rival with `bf16`; C is fp32. */
typedef struct { bool ta, tb, add; int m, n, k, lda, ldb, ldc; } rival_shape;

typedef struct {
    const char *name;
    char version[64];
    bool bf16;
    bool no_tb;             /* cannot transpose B: gets a transposed copy of the weights */
    void (*gemm)(const rival_shape *s, const void *a, const void *b, float *c);
} rival;

/* Those available on this machine, with fp32 or with bf16 operands. Returns their number. */
enum { MOST_RIVALS = 4 };
int rivals_open(bool bf16, rival list[MOST_RIVALS]);

bool rival_dnnl_bf16(rival *r);         /* rivals_dnnl.c; false without headers at build time or without the library */
#endif
