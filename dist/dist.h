/* dist.h - ranks and groups, collectives, and the all-to-all as an op on the tape.
 *
 * The world, all ranks of a job, consists of batch groups, usually of one. A batch group trains one model: batch = dp x ep. Its ranks
 * r*ep .. r*ep + ep-1 form an expert group: together they hold every expert once. Ranks with the same position in their expert group
 * form a replica group: they hold the same experts. Everything but the experts is replicated in the batch group. Only dist/mpi.c uses MPI;
 * dist/mpi_none.c replaces it for a single rank (MUSTER_MPI=OFF).
 *
 * Every wait is a non-blocking call, tested with a back-off, so that more ranks than cores make progress.
 * A failing MPI call is fatal.
 *
 * Ranks of one node also share a few MiB of memory per communicator (shm.c) for large sums, shards and
 * exchanges; without it they use MPI. Functions not marked Collective are Local. */
#ifndef MUSTER_DIST_H
#define MUSTER_DIST_H
#include "autograd/autograd.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct mu_comm {
    int rank, size;
    int64_t piece_limit;        /* bytes of the largest single message, below 2 GiB */
    int64_t shm_threshold_bytes;    /* payloads of this size and more use shared memory (all ranks on one node);
                                     * INT64_MAX: none. The same on every rank */
    bool overlap;               /* gradient reduction starts during backward (mu_reduction): where ranks are on several nodes,
                                 * or no memory is shared. The same on every rank */
    bool cuda_aware;            /* MPI accepts device pointers on all ranks: no copies through the host */
    double seconds;             /* spent in collectives so far */
    int reductions;             /* number of calls of mu_reduction_new: each gets its own message tag */
    void *handle;               /* private to the transport */
} mu_comm;

/* ------------------------------------------------------------------ for programs (mpi.c, mpi_none.c)
 * A library user initialises MPI and does not need these. */
void mu_dist_start(int *argc, char ***argv);            /* Collective over all processes started together */
void mu_dist_stop(void);                                /* Collective likewise */
MU_NORETURN void mu_dist_abort(int exit_code);            /* Local: ends every rank */
bool mu_dist_has_mpi(void);
const char *mu_dist_library(void);                      /* "Open MPI v4.1.4, ...", for run.json */

/* ------------------------------------------------------------------ communicators (mpi.c, mpi_none.c)
 * `mpi_comm` points to the caller's MPI_Comm, which is duplicated; NULL means MPI_COMM_WORLD. The caller frees the result. */
mu_comm *mu_comm_new(const void *mpi_comm);                             /* Collective over it */
mu_comm *mu_comm_alone(void);                                           /* Local: this process, needs no MPI */
mu_comm *mu_comm_split(const mu_comm *c, int color, int key);           /* Collective over c */
void mu_comm_node(const mu_comm *c, int *local_rank, int *local_size);  /* Collective over c: ranks on this node */
void mu_comm_free(mu_comm *c);                                          /* Collective over c */

/* ------------------------------------------------------------------ collectives, all Collective over c
 * Every reduction over ranks goes through mu_all_reduce: its order of sums depends only on the number of ranks, so that a
 * fixed tree can replace MPI's. Host memory; the same sizes on every rank, except in mu_exchange. */
typedef enum { MU_REDUCE_SUM, MU_REDUCE_MAX, MU_REDUCE_MIN } mu_reduce_op;
void mu_all_reduce(mu_comm *c, mu_reduce_op op, mu_dtype dtype, void *data, int64_t n);
void mu_all_gather(mu_comm *c, const void *mine, int64_t bytes, void *all);     /* all: [size * bytes], in order of rank */
void mu_broadcast(mu_comm *c, int root, void *data, int64_t bytes);
void mu_barrier(mu_comm *c);
/* send_bytes[p] bytes to each peer p, recv_bytes[p] from it, contiguous in order of p. Zeros are allowed. */
void mu_exchange(mu_comm *c, const void *send, const int64_t *send_bytes, void *recv, const int64_t *recv_bytes);

/* ------------------------------------------------------------------ agreement and shards (comm.c) */
/* The largest status of all ranks; when it is not OK every rank gets the text of the first rank that has it. Collective over c. */
mu_status mu_agree(mu_comm *c, mu_status status, mu_error *e) MU_MUST_USE;
/* The same for an operation that every rank tried separately: the message names the failed rank, also rank 0, unless
 * all failed. Collective over c. */
mu_status mu_agree_each(mu_comm *c, mu_status status, mu_error *e) MU_MUST_USE;
/* Reduce-scatter and all-gather in place. Every rank has all of `data` on its device; shard r is elements
 * ends[r-1] .. ends[r]-1 (ends: [size], ascending, the same on every rank; a shard may be empty). reduce: rank r's shard
 * becomes the sum over ranks of that shard; its copies of the other shards are undefined afterwards. gather: every rank gets
 * the other ranks' shards. Together they are an all-reduce. Collective over c; a dry run does nothing. */
void mu_reduce_shards(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends);
void mu_gather_shards(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends);

/* mu_reduce_shards in host memory, overlapped with computing the values: each rank reports which are final, and their
 * sums start while it computes others. Values become final from the end of `data` to its beginning. The bits are those of
 * mu_reduce_shards. Other collectives and reductions of the communicator may run in between. `data` and `ends` are borrowed
 * until mu_reduction_free. new, begin and finish: Collective over c, of several ranks; the others are Local and never wait. */
typedef struct mu_reduction mu_reduction;
mu_reduction *mu_reduction_new(mu_comm *c, mu_dtype dtype, void *data, const int64_t *ends);
void mu_reduction_begin(mu_reduction *r);
void mu_reduction_final(mu_reduction *r, int64_t from);     /* values from here on are final on this rank */
void mu_reduction_turn(mu_reduction *r);                    /* makes progress; call it often */
void mu_reduction_finish(mu_reduction *r);                  /* marks all values as final; waits for the sums */
void mu_reduction_free(mu_reduction *r);                    /* NULL is allowed */
/* Whether mu_reduction works here: not with one rank, in a dry run, or in memory that MPI cannot always access (a GPU's, a
 * guarded device's). */
bool mu_reduction_possible(const mu_comm *c, const mu_device *dev);

/* Checks that `text`, lines of "name: value", is the same on every rank. If not, all return `status` and a message that begins
 * with `what` and names the first rank that differs from rank 0, its host and the lines that differ. Collective over c. */
mu_status mu_agree_text(mu_comm *c, mu_status status, const char *what, const char *text, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ the watchdog (watch.c)
 * Ranks send each other their mu_activity. When a rank waits for others and none of them has made progress for half of
 * `seconds`, it logs a warning; after `seconds` one rank passes a report on all ranks to `stalled`, which must end the job.
 * Time in which the waiting rank itself was stopped does not count. With one rank there is no watchdog. Collective over c,
 * all ranks of the job; one watchdog per process. */
typedef void mu_watch_stalled(const char *report);
void mu_watch_start(mu_comm *c, double seconds, mu_watch_stalled *stalled);
void mu_watch_stop(void);                               /* Collective likewise; no effect without a watchdog */

/* ------------------------------------------------------------------ the mesh (mesh.c) */
typedef struct {
    mu_comm *world, *expert, *replica;
    mu_comm *batch;                         /* ranks that share a global batch (data parallel), each with its own sequences: losses, counts
                                             * and gradients of replicated parameters are summed over it. `world` itself with one group */
    int dp, ep;
    int local_rank, local_size;             /* on this node */
} mu_mesh;
/* Collective over mpi_comm (NULL: MPI_COMM_WORLD). ep must divide the number of ranks. */
mu_mesh *mu_mesh_open(const void *mpi_comm, int ep);
/* The same with `groups` batch groups of consecutive ranks, of equal size, each for a model and a run of its own: all that follows is
 * Collective over the batch group, except closing. groups * ep must divide the number of ranks. */
mu_mesh *mu_mesh_open_groups(const void *mpi_comm, int groups, int ep);
mu_mesh *mu_mesh_alone(void);               /* Local: one process, needs no MPI */
/* One rank of a mesh that is not running, all on one node: for dry runs on the shape device. A collective of more than one
 * rank is fatal. Local. */
mu_mesh *mu_mesh_planned(int rank, int size, int ep);
/* Bytes of shared memory for communication within a node that one rank maps: an upper bound. Local. */
int64_t mu_mesh_shared_bytes(const mu_mesh *m);
void mu_mesh_close(mu_mesh *m);             /* Collective over `world`. NULL is allowed */
/* Which rank writes what several hold: the first of the batch group everything shared, the ranks of its first expert group their
 * experts. Local. */
bool mu_mesh_writes_shared(const mu_mesh *m);
bool mu_mesh_writes_experts(const mu_mesh *m);
double mu_mesh_seconds(const mu_mesh *m);   /* spent in collectives so far. Local */
/* Which rank holds each expert, and in which slot. All other code must use this table, not a formula. */
typedef struct {
    int n_experts, n_local;
    int *rank, *slot;           /* [E] */
    int *local;                 /* [n_local]: ids of the experts of this rank, by slot */
    int32_t *order;             /* [E]: position of an expert when sorted by rank, then slot */
} mu_placement;
mu_placement *mu_placement_new(const mu_comm *expert_group, int n_experts);     /* contiguous blocks; the caller frees it. Local */
void mu_placement_free(mu_placement *p);

/* ------------------------------------------------------------------ all-to-all as an op (ops/all_to_all.c)
 * Collective over c. x [sum of send_rows, D], sorted by destination; result [sum of recv_rows, D], sorted by
 * source. Backward is the reverse exchange, also Collective. send_rows, recv_rows: [size], on the host, copied. */
mu_tensor *mu_all_to_all(mu_tape *tp, mu_comm *c, mu_tensor *x, const int64_t *send_rows, const int64_t *recv_rows);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
