/* exchange.c - cost of communication between ranks of one node: mu_exchange against plain MPI_Alltoallv with the same
 * rows, and mu_all_reduce and reduce + gather of shards against MPI_Allreduce.
 *
 *     mpirun -n 2 build/bench/muster_bench_exchange [REPEATS]
 *
 * The sides of a comparison alternate, so that noise affects them equally; medians of the slowest rank. GB/s counts the
 * payload of a rank: bytes sent, its own share included, as MPI_Alltoallv does; bytes reduced. Like any
 * user of the library a program may call MPI itself: here the library is compared with it. */
#include "dist/dist.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

enum { ROW = 1024, MOST = 16 << 20, REPEATS_MOST = 1001 }; /* bytes: of a row of 256 floats, of a payload */

typedef struct {
    mu_comm *comm;
    mu_device *dev;
    char *send, *recv;
    int64_t bytes, *out, *in, *ends; /* bytes to and from each rank; ends of shards, in floats */
    int *counts[4];                  /* the same for MPI_Alltoallv: counts and displacements, sent and received */
} stage;

static void by_mpi_alltoallv(stage *s) {
    MPI_Alltoallv(s->send, s->counts[0], s->counts[1], MPI_BYTE, s->recv, s->counts[2], s->counts[3],
                  MPI_BYTE, MPI_COMM_WORLD);
}
static void by_exchange(stage *s) { mu_exchange(s->comm, s->send, s->out, s->recv, s->in); }

static void by_mpi_allreduce(stage *s) {
    MPI_Allreduce(MPI_IN_PLACE, s->send, (int)(s->bytes / 4), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}
static void by_all_reduce(stage *s) {
    mu_all_reduce(s->comm, MU_REDUCE_SUM, MU_DTYPE_F32, s->send, s->bytes / 4);
}
static void by_shards(stage *s) {
    mu_reduce_shards(s->comm, s->dev, MU_DTYPE_F32, s->send, s->ends);
    mu_gather_shards(s->comm, s->dev, MU_DTYPE_F32, s->send, s->ends);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of the slowest rank. */
static double once(stage *s, void (*work)(stage *)) {
    MPI_Barrier(MPI_COMM_WORLD);
    double start = mu_time();
    work(s);
    double seconds = mu_time() - start, slowest;
    MPI_Allreduce(&seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest;
}

/* Rows for each rank are uneven, as routing makes them: shares 2 : 3 : 2 : 3 ... counted from the sender. */
static void plan(stage *s, int64_t bytes) {
    int P = s->comm->size;
    int64_t parts = 0, rows = bytes / ROW;
    for (int p = 0; p < P; p++) parts += 2 + p % 2;
    for (int p = 0; p < P; p++) {
        int to = (s->comm->rank + p) % P, from = (s->comm->rank + P - p) % P;
        s->out[to] = s->in[from] = rows * (2 + p % 2) / parts * ROW;
    }
    for (int p = 0, out = 0, in = 0; p < P; p++) {
        s->counts[0][p] = (int)s->out[p], s->counts[2][p] = (int)s->in[p];
        s->counts[1][p] = out, s->counts[3][p] = in;
        out += (int)s->out[p], in += (int)s->in[p];
        s->ends[p] = bytes / 4 / P * (p + 1);
    }
    s->ends[P - 1] = bytes / 4;
    s->bytes = bytes;
    memset(s->send, 0, (size_t)bytes);
}

static double middle(double *seconds, int n) {
    qsort(seconds, (size_t)n, sizeof *seconds, by_value);
    return seconds[n / 2];
}

static void compare(stage *s, const char *name, void (*theirs)(stage *), void (*ours)(stage *), int repeats) {
    static double a[REPEATS_MOST], b[REPEATS_MOST];
    for (int i = -2; i < repeats; i++) { /* two rounds to warm up */
        double x = once(s, theirs), y = once(s, ours);
        if (i >= 0) a[i] = x, b[i] = y;
    }
    double x = middle(a, repeats), y = middle(b, repeats);
    if (s->comm->rank == 0)
        printf("%-34s %8lld KiB  MPI %7.2f GB/s  muster %7.2f GB/s  %5.2f x\n", name,
               (long long)s->bytes >> 10, (double)s->bytes / x * 1e-9, (double)s->bytes / y * 1e-9, x / y);
}

int main(int argc, char **argv) {
    int repeats = argc > 1 ? atoi(argv[1]) : 51;
    if (argc > 2 || repeats < 1 || repeats > REPEATS_MOST) {
        fprintf(stderr, "usage: mpirun -n RANKS muster_bench_exchange [REPEATS, 1 to %d]\n", REPEATS_MOST);
        return 64;
    }
    mu_dist_start(&argc, &argv);
    stage s = { .comm = mu_comm_new(NULL), .dev = mu_device_open("cpu") };
    size_t P = (size_t)s.comm->size;
    s.send = mu_alloc(MOST, 1), s.recv = mu_alloc(MOST, 1);
    s.out = mu_alloc(P, sizeof *s.out), s.in = mu_alloc(P, sizeof *s.in),
    s.ends = mu_alloc(P, sizeof *s.ends);
    for (int i = 0; i < 4; i++) s.counts[i] = mu_alloc(P, sizeof *s.counts[i]);
    for (int64_t bytes = 64 << 10; bytes <= MOST; bytes *= 4) {
        plan(&s, bytes);
        compare(&s, "exchange : MPI_Alltoallv", by_mpi_alltoallv, by_exchange, repeats);
        compare(&s, "all_reduce : MPI_Allreduce", by_mpi_allreduce, by_all_reduce, repeats);
        compare(&s, "reduce + gather : MPI_Allreduce", by_mpi_allreduce, by_shards, repeats);
    }
    for (int i = 0; i < 4; i++) free(s.counts[i]);
    free(s.send);
    free(s.recv);
    free(s.out);
    free(s.in);
    free(s.ends);
    mu_device_close(s.dev);
    mu_comm_free(s.comm);
    mu_dist_stop();
    return 0;
}
