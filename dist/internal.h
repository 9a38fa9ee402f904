/* internal.h - shared by the files of dist/: waiting, messages, and memory shared by the ranks of one node. */
#ifndef MUSTER_DIST_INTERNAL_H
#define MUSTER_DIST_INTERNAL_H
#include "dist/dist.h"

/* ------------------------------------------------------------------ waiting (mpi.c) */
typedef struct {
    int tries;
    double start;
} mu_wait;
/* Called after each poll without progress; zero the mu_wait after progress. Local. */
void mu_wait_turn(mu_comm *c, mu_wait *wait);

/* ------------------------------------------------------------------ non-blocking messages (mpi.c)
 * Any number of messages, posted one by one and completed together; those of one pair of ranks and one tag (at least 2)
 * keep their order. */
typedef struct mu_requests mu_requests;
mu_requests *mu_requests_new(void);
void mu_requests_send(mu_requests *q, const mu_comm *c, int tag, const void *data, int64_t bytes, int peer);
void mu_requests_receive(mu_requests *q, const mu_comm *c, int tag, void *data, int64_t bytes, int peer);
bool mu_requests_done(mu_requests *q);                  /* tests for completion of all, then the list is empty. Local */
void mu_requests_free(mu_requests *q);                  /* all must be complete. NULL is allowed */

/* ------------------------------------------------------------------ notes (mpi.c)
 * Small messages of one size to all other ranks, sent and received without waiting. */
typedef struct mu_notes mu_notes;
mu_notes *mu_notes_new(const mu_comm *c, int bytes);    /* Collective over c */
void mu_notes_send(mu_notes *n, const void *note);      /* to every other rank that has received the previous one. Local */
bool mu_notes_take(mu_notes *n, int *from, void *note); /* false: none has arrived. Local */
void mu_notes_free(mu_notes *n);                        /* Collective likewise */

/* Called by a waiting rank after a poll without progress (watch.c). Local. */
void mu_watch_poll(void);

/* ------------------------------------------------------------------ data in place (mpi.c, mpi_none.c)
 * mu_reduce_shards and mu_gather_shards on host memory (dev NULL), or on GPU memory with a CUDA-aware MPI, after all pending
 * work of the device. Collective over c, of more than one rank. */
typedef void mu_in_place(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends);
mu_in_place mu_reduce_in_place, mu_gather_in_place;
/* mu_exchange of GPU memory with a CUDA-aware MPI. Collective over c. */
void mu_exchange_direct(mu_comm *c, mu_device *dev, void *send, const int64_t *send_bytes, void *recv, const int64_t *recv_bytes);

/* ------------------------------------------------------------------ data of a device (comm.c)
 * mu_exchange of device memory; a dry run does nothing. Collective over c. */
void mu_device_exchange(mu_comm *c, mu_device *dev, void *send, const int64_t *send_bytes, void *recv, const int64_t *recv_bytes);

/* ------------------------------------------------------------------ sums (shm.c) */
bool mu_can_add(mu_dtype dtype);                        /* F64, F32, I64 */
/* to = x[0] + x[1] + ..., `parts` arrays of `bytes` each; `to` may be one of them. Local. */
void mu_add_up(mu_dtype dtype, int64_t bytes, const char *const *x, int parts, char *to);

/* ------------------------------------------------------------------ shared memory of a node (shm.c)
 * `memory` is one zeroed mapping of mu_shm_bytes(size) bytes, shared by all ranks of a communicator. */
typedef struct mu_shm mu_shm;
size_t mu_shm_bytes(int size);
mu_shm *mu_shm_new(void *memory, int rank, int size);
void *mu_shm_free(mu_shm *m);                           /* returns the memory, for the caller to unmap. NULL is allowed */
_Atomic uint64_t *mu_shm_mark(void *memory);            /* one word that shm.c does not use */

/* The remaining data of one direction of the traffic with a peer. */
typedef struct {
    char *at;
    int64_t left;
} mu_transfer;
/* out[p] goes to each rank p, this one included, and in[p] is filled from it. */
typedef struct {
    mu_transfer *out, *in;
} mu_transfers;
mu_transfers mu_shm_transfers(mu_shm *m);               /* its own lists [size], to be set by the caller */
/* Collective over c. */
void mu_shm_exchange(mu_comm *c, mu_shm *m);
void mu_shm_reduce(mu_comm *c, mu_shm *m, mu_dtype dtype, void *data, const int64_t *ends);
void mu_shm_gather(mu_comm *c, mu_shm *m, mu_dtype dtype, void *data, const int64_t *ends);
#endif
