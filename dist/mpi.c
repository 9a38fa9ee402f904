/* mpi.c - the only file that includes mpi.h. */
#include "dist/dist.h"

#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    MPI_Comm comm;
    MPI_Request *requests;
    int n_requests, capacity;
} handle;

static void check(int code, const char *call) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    MU_FATAL(MU_STATUS_INTERNAL, "%s failed: %s", call, text);
}
#define CALL(call) check((call), #call)

void mu_dist_start(int *argc, char ***argv) {
    int given;
    CALL(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &given));
}

void mu_dist_stop(void) { CALL(MPI_Finalize()); }

_Noreturn void mu_dist_abort(int exit_code) {
    int initialized = 0, finalized = 0;
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    if (initialized && !finalized) MPI_Abort(MPI_COMM_WORLD, exit_code);
    _Exit(exit_code);
}

bool mu_dist_has_mpi(void) { return true; }

const char *mu_dist_library(void) {
    static char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(text, &length);
    text[strcspn(text, ",\n")] = '\0';
    return text;
}

static mu_comm *wrap(MPI_Comm comm) {
    mu_comm *c = mu_alloc(1, sizeof *c);
    handle *h = mu_alloc(1, sizeof *h);
    h->comm = comm;
    CALL(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
    CALL(MPI_Comm_rank(comm, &c->rank));
    CALL(MPI_Comm_size(comm, &c->size));
    c->handle = h;
    c->piece_limit = (int64_t)1 << 30;
    return c;
}

mu_comm *mu_comm_new(const void *mpi_comm) {
    MPI_Comm from = mpi_comm ? *(const MPI_Comm *)mpi_comm : MPI_COMM_WORLD, comm;
    CALL(MPI_Comm_dup(from, &comm));
    return wrap(comm);
}

mu_comm *mu_comm_split(const mu_comm *c, int color, int key) {
    MPI_Comm comm;
    MU_CHECK(c->handle, "a communicator of mu_comm_alone cannot be split");
    CALL(MPI_Comm_split(((handle *)c->handle)->comm, color, key, &comm));
    return wrap(comm);
}

void mu_comm_node(const mu_comm *c, int *local_rank, int *local_size) {
    MPI_Comm node;
    CALL(MPI_Comm_split_type(((handle *)c->handle)->comm, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL,
                             &node));
    CALL(MPI_Comm_rank(node, local_rank));
    CALL(MPI_Comm_size(node, local_size));
    CALL(MPI_Comm_free(&node));
}

void mu_comm_free(mu_comm *c) {
    if (!c) return;
    handle *h = c->handle;
    if (h) {
        CALL(MPI_Comm_free(&h->comm));
        free(h->requests);
    }
    free(h);
    free(c);
}

/* Waits for all posted requests without hogging the core: spin for a moment, then offer the core to
 * others, then sleep. Messages only move while MPI is called, so sleeps stay short. */
static void wait_all(mu_comm *c) {
    handle *h = c->handle;
    if (!h) return; /* mu_comm_alone: nothing was posted */
    double start = mu_time();
    for (int tries = 0;; tries++) {
        int done;
        CALL(MPI_Testall(h->n_requests, h->requests, &done, MPI_STATUSES_IGNORE));
        if (done) break;
        if (tries < 200) continue;
        double waited = mu_time() - start;
        if (waited < 0.005) sched_yield();
        else nanosleep(&(struct timespec){ 0, waited < 0.1 ? 20000 : 200000 }, NULL);
    }
    h->n_requests = 0;
    c->seconds += mu_time() - start;
}

static MPI_Request *new_request(handle *h) {
    if (h->n_requests == h->capacity) {
        h->capacity = h->capacity ? 2 * h->capacity : 64;
        h->requests = mu_realloc(h->requests, (size_t)h->capacity, sizeof *h->requests);
    }
    return &h->requests[h->n_requests++];
}

static MPI_Datatype type_of(mu_dtype dtype) {
    switch (dtype) {
    case MU_DTYPE_F64: return MPI_DOUBLE;
    case MU_DTYPE_F32: return MPI_FLOAT;
    case MU_DTYPE_I32: return MPI_INT32_T;
    case MU_DTYPE_I64: return MPI_INT64_T;
    case MU_DTYPE_BF16: break;
    }
    MU_FATAL(MU_STATUS_INTERNAL, "no reduction of %s values", mu_dtype_name(dtype));
}

void mu_all_reduce(mu_comm *c, mu_reduce_op op, mu_dtype dtype, void *data, int64_t n) {
    if (c->size == 1) return;
    handle *h = c->handle;
    MPI_Op mpi_op = op == MU_REDUCE_SUM ? MPI_SUM : op == MU_REDUCE_MAX ? MPI_MAX : MPI_MIN;
    int64_t size = (int64_t)mu_dtype_size(dtype),
            most = c->piece_limit / size > 0 ? c->piece_limit / size : 1;
    for (int64_t at = 0; at < n; at += most) {
        int now = (int)(n - at < most ? n - at : most);
        CALL(MPI_Iallreduce(MPI_IN_PLACE, (char *)data + at * size, now, type_of(dtype), mpi_op, h->comm,
                            new_request(h)));
        wait_all(c);
    }
}

void mu_all_gather(mu_comm *c, const void *mine, int64_t bytes, void *all) {
    handle *h = c->handle;
    if (c->size == 1) {
        if (bytes) memmove(all, mine, (size_t)bytes);
        return;
    }
    MU_CHECK(bytes <= c->piece_limit, "gathering %lld bytes a rank, more than one message holds",
             (long long)bytes);
    CALL(MPI_Iallgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, h->comm, new_request(h)));
    wait_all(c);
}

void mu_broadcast(mu_comm *c, int root, void *data, int64_t bytes) {
    if (c->size == 1) return;
    handle *h = c->handle;
    for (int64_t at = 0; at < bytes; at += c->piece_limit) {
        int now = (int)(bytes - at < c->piece_limit ? bytes - at : c->piece_limit);
        CALL(MPI_Ibcast((char *)data + at, now, MPI_BYTE, root, h->comm, new_request(h)));
        wait_all(c);
    }
}

void mu_barrier(mu_comm *c) {
    if (c->size == 1) return;
    handle *h = c->handle;
    CALL(MPI_Ibarrier(h->comm, new_request(h)));
    wait_all(c);
}

/* Posts one direction of the traffic with a peer, piece by piece; pieces of one pair keep their order. */
static void post(mu_comm *c, bool send, char *data, int64_t bytes, int peer) {
    handle *h = c->handle;
    for (int64_t at = 0; at < bytes; at += c->piece_limit) {
        int now = (int)(bytes - at < c->piece_limit ? bytes - at : c->piece_limit);
        if (send) CALL(MPI_Isend(data + at, now, MPI_BYTE, peer, 1, h->comm, new_request(h)));
        else CALL(MPI_Irecv(data + at, now, MPI_BYTE, peer, 1, h->comm, new_request(h)));
    }
}

void mu_exchange(mu_comm *c, const void *send, const int64_t *send_bytes, void *recv,
                 const int64_t *recv_bytes) {
    char *from = (char *)(uintptr_t)send, *to = recv;
    for (int p = 0; p < c->size; to += recv_bytes[p++])
        if (p != c->rank) post(c, false, to, recv_bytes[p], p);
    for (int p = 0; p < c->size; from += send_bytes[p++])
        if (p != c->rank) post(c, true, from, send_bytes[p], p);
    int64_t mine_from = 0, mine_to = 0;
    for (int p = 0; p < c->rank; p++) mine_from += send_bytes[p], mine_to += recv_bytes[p];
    MU_CHECK(send_bytes[c->rank] == recv_bytes[c->rank], "rank %d sends itself %lld bytes and expects %lld",
             c->rank, (long long)send_bytes[c->rank], (long long)recv_bytes[c->rank]);
    if (send_bytes[c->rank])
        memcpy((char *)recv + mine_to, (const char *)send + mine_from, (size_t)send_bytes[c->rank]);
    wait_all(c);
}
