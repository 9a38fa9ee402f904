/* mpi_none.c - replaces mpi.c in a build without MPI: every communicator has one rank. */
#include "dist/internal.h"

#include <stdlib.h>
#include <string.h>

void mu_dist_start(int *argc, char ***argv) { (void)argc, (void)argv; }
void mu_dist_stop(void) {}
_Noreturn void mu_dist_abort(int exit_code) { _Exit(exit_code); }
bool mu_dist_has_mpi(void) { return false; }
const char *mu_dist_library(void) { return "built without MPI"; }

mu_comm *mu_comm_new(const void *mpi_comm) {
    (void)mpi_comm;
    mu_comm *c = mu_alloc(1, sizeof *c);
    *c = (mu_comm){ .size = 1, .piece_limit = (int64_t)1 << 30, .shm_threshold_bytes = INT64_MAX };
    return c;
}

mu_reduction *mu_reduction_new(mu_comm *c, mu_dtype dtype, void *data, const int64_t *ends) {
    (void)c, (void)dtype, (void)data, (void)ends;
    return NULL;
}
void mu_reduction_begin(mu_reduction *r) { (void)r; }
void mu_reduction_final(mu_reduction *r, int64_t from) { (void)r, (void)from; }
void mu_reduction_turn(mu_reduction *r) { (void)r; }
void mu_reduction_finish(mu_reduction *r) { (void)r; }
void mu_reduction_free(mu_reduction *r) { (void)r; }

mu_notes *mu_notes_new(const mu_comm *c, int bytes) {
    (void)c, (void)bytes;
    return NULL;
}
void mu_notes_send(mu_notes *n, const void *note) { (void)n, (void)note; }
bool mu_notes_take(mu_notes *n, int *from, void *note) {
    (void)n, (void)from, (void)note;
    return false;
}
void mu_notes_free(mu_notes *n) { (void)n; }

mu_comm *mu_comm_split(const mu_comm *c, int color, int key) {
    (void)c, (void)color, (void)key;
    return mu_comm_new(NULL);
}

void mu_comm_node(const mu_comm *c, int *local_rank, int *local_size) {
    (void)c;
    *local_rank = 0, *local_size = 1;
}

void mu_comm_free(mu_comm *c) { free(c); }

void mu_all_reduce(mu_comm *c, mu_reduce_op op, mu_dtype dtype, void *data, int64_t n) {
    (void)c, (void)op, (void)dtype, (void)data, (void)n;
}

void mu_reduce_in_place(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    (void)c, (void)dev, (void)dtype, (void)data, (void)ends;
}
void mu_gather_in_place(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    (void)c, (void)dev, (void)dtype, (void)data, (void)ends;
}
void mu_exchange_direct(mu_comm *c, mu_device *dev, void *send, const int64_t *send_bytes, void *recv,
                        const int64_t *recv_bytes) {
    (void)dev;
    mu_exchange(c, send, send_bytes, recv, recv_bytes);
}

void mu_all_gather(mu_comm *c, const void *mine, int64_t bytes, void *all) {
    (void)c;
    if (bytes) memmove(all, mine, (size_t)bytes);
}

void mu_broadcast(mu_comm *c, int root, void *data, int64_t bytes) {
    (void)c, (void)root, (void)data, (void)bytes;
}
void mu_barrier(mu_comm *c) { (void)c; }

void mu_exchange(mu_comm *c, const void *send, const int64_t *send_bytes, void *recv,
                 const int64_t *recv_bytes) {
    (void)c;
    MU_CHECK(send_bytes[0] == recv_bytes[0], "rank 0 sends itself %lld bytes but expects %lld",
             (long long)send_bytes[0], (long long)recv_bytes[0]);
    if (send_bytes[0]) memcpy(recv, send, (size_t)send_bytes[0]);
}

int64_t mu_mesh_shared_bytes(const mu_mesh *m) { return (void)m, 0; }
