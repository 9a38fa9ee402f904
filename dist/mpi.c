/* mpi.c - communicators, collectives, messages and waiting, with MPI. Large payloads within a node go through shared
 * memory (shm.c). The only file that includes mpi.h. */
#include "dist/internal.h"

#include <fcntl.h>
#include <mpi.h>
#ifdef OPEN_MPI
#include <mpi-ext.h>
#endif
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct mu_requests {
    MPI_Request *list;
    int n, capacity;
};

typedef struct {
    MPI_Comm comm;
    mu_requests requests;
    mu_shm *shm;        /* NULL: ranks on several nodes, or no shared memory */
    int64_t *ends;      /* [size]: the even shards of mu_all_reduce */
    char **parts;       /* [size]: each rank's part, for sums in GPU memory */
} handle;
enum { BUFFER = 4 << 20 };    /* bytes of GPU memory for such parts */

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
    CALL(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN)); /* some errors are reported on it: check() makes them fatal */
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

/* Does MPI accept device pointers on every rank? Collective. */
static bool cuda_aware(MPI_Comm comm) {
    int mine = 0, all;
#ifdef OMPI_HAVE_MPI_EXT_CUDA
    mine = MPIX_Query_cuda_support() == 1;
#endif
    CALL(MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, comm));
    return all;
}

static bool on_one_node(MPI_Comm comm, int size) {
    MPI_Comm node;
    int together;
    CALL(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
    CALL(MPI_Comm_size(node, &together));
    CALL(MPI_Comm_free(&node));
    return together == size;
}

/* Maps `bytes` of memory that all ranks of `comm` share; NULL on all of them when one of them cannot. It is an
 * unnamed file (memfd) of rank 0, which the others open through /proc: no limit on /dev/shm applies and nothing
 * is left behind. The mark proves that it is the same file: in containers, process ids may differ. */
static void *share_memory(MPI_Comm comm, int rank, size_t bytes) {
    struct {
        int64_t process, file;
        uint64_t mark;
    } offer = { getpid(), -1, (uint64_t)(mu_time() * 1e9) };
    void *memory = MAP_FAILED;
    if (rank == 0) {
        offer.file = memfd_create("muster", MFD_CLOEXEC);
        if (offer.file >= 0 && ftruncate((int)offer.file, (off_t)bytes)) {
            close((int)offer.file);
            offer.file = -1;
        }
    }
    CALL(MPI_Bcast(&offer, sizeof offer, MPI_BYTE, 0, comm));
    int file = (int)offer.file;
    if (rank && file >= 0) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%lld/fd/%d", (long long)offer.process, file);
        file = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    }
    off_t size = file >= 0 ? lseek(file, 0, SEEK_END) : 0;
    if (size == (off_t)bytes) memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (rank == 0 && memory != MAP_FAILED) atomic_store(mu_shm_mark(memory), offer.mark);
    CALL(MPI_Barrier(comm));
    int good = memory != MAP_FAILED && atomic_load(mu_shm_mark(memory)) == offer.mark, all;
    CALL(MPI_Allreduce(&good, &all, 1, MPI_INT, MPI_MIN, comm));
    if (file >= 0) close(file);
    if (!all && memory != MAP_FAILED) munmap(memory, bytes);
    return all ? memory : NULL;
}

static mu_comm *wrap(MPI_Comm comm) {
    mu_comm *c = mu_alloc(1, sizeof *c);
    handle *h = mu_alloc(1, sizeof *h);
    h->comm = comm;
    CALL(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
    CALL(MPI_Comm_rank(comm, &c->rank));
    CALL(MPI_Comm_size(comm, &c->size));
    c->handle = h;
    c->cuda_aware = cuda_aware(comm);
    c->piece_limit = (int64_t)1 << 30;
    c->shm_threshold_bytes = (int64_t)4 << 10;
    h->ends = mu_alloc((size_t)c->size, sizeof *h->ends);
    if (c->size > 1 && on_one_node(comm, c->size)) {
        void *memory = share_memory(comm, c->rank, mu_shm_bytes(c->size));
        if (memory) h->shm = mu_shm_new(memory, c->rank, c->size);
    }
    c->overlap = !h->shm;
    return c;
}

mu_comm *mu_comm_new(const void *mpi_comm) {
    int begun, ended;
    MPI_Initialized(&begun);
    MPI_Finalized(&ended);
    MU_CHECK(begun && !ended, "a communicator cannot be created %s (mu_dist_start, mu_dist_stop)",
             begun ? "after MPI_Finalize" : "before MPI_Init");
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
        if (h->shm) munmap(mu_shm_free(h->shm), mu_shm_bytes(c->size));
        CALL(MPI_Comm_free(&h->comm));
        free(h->requests.list);
        free(h->ends);
        free(h->parts);
    }
    free(h);
    free(c);
}

/* The back-off between two polls of every wait: spin briefly, then yield the core, then sleep. Messages only make progress
 * inside MPI calls, so sleeps stay short. */
static void back_off(mu_wait *wait) {
    enum { SPINS = 200 };
    if (wait->tries++ == 0) wait->start = mu_time();
    if (wait->tries < SPINS) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        return;
    }
    double waited = mu_time() - wait->start;
    if (waited >= 0.1) mu_watch_poll();
    if (waited < 0.005) sched_yield();
    else nanosleep(&(struct timespec){ 0, waited < 0.1 ? 20000 : 200000 }, NULL);
}

bool mu_requests_done(mu_requests *q) {
    int done;
    CALL(MPI_Testall(q->n, q->list, &done, MPI_STATUSES_IGNORE));
    if (done) q->n = 0;
    return done;
}

/* Also lets MPI make progress: a peer may need a pending message of this rank before it puts anything into the shared memory. */
void mu_wait_turn(mu_comm *c, mu_wait *wait) {
    handle *h = c->handle;
    enum { BETWEEN = 16 };
    if (wait->tries % BETWEEN == BETWEEN - 1 || wait->tries > 200) {
        int arrived;
        if (h->requests.n) (void)mu_requests_done(&h->requests);
        else CALL(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, h->comm, &arrived, MPI_STATUS_IGNORE));
    }
    back_off(wait);
}

/* Waits for all posted requests. */
static void wait_all(mu_comm *c) {
    handle *h = c->handle;
    if (!h) return; /* mu_comm_alone: nothing was posted */
    double start = mu_time();
    for (mu_wait wait = { 0 }; !mu_requests_done(&h->requests);) back_off(&wait);
    c->seconds += mu_time() - start;
}

static MPI_Request *add_request(mu_requests *q) {
    if (q->n == q->capacity) {
        q->capacity = q->capacity ? 2 * q->capacity : 64;
        q->list = mu_realloc(q->list, (size_t)q->capacity, sizeof *q->list);
    }
    return &q->list[q->n++];
}

static MPI_Request *new_request(handle *h) { return add_request(&h->requests); }

mu_requests *mu_requests_new(void) { return mu_alloc(1, sizeof(mu_requests)); }

void mu_requests_free(mu_requests *q) {
    if (!q) return;
    MU_CHECK(!q->n, "%d messages are still pending", q->n);
    free(q->list);
    free(q);
}

void mu_requests_send(mu_requests *q, const mu_comm *c, int tag, const void *data, int64_t bytes, int peer) {
    CALL(MPI_Isend(data, (int)bytes, MPI_BYTE, peer, tag, ((handle *)c->handle)->comm, add_request(q)));
}

void mu_requests_receive(mu_requests *q, const mu_comm *c, int tag, void *data, int64_t bytes, int peer) {
    CALL(MPI_Irecv(data, (int)bytes, MPI_BYTE, peer, tag, ((handle *)c->handle)->comm, add_request(q)));
}

/* ------------------------------------------------------------------ notes */

struct mu_notes {
    MPI_Comm comm;
    int rank, size, bytes;
    MPI_Request in, *out;       /* out: [size] */
    char *received, *sent;      /* [bytes], [size, bytes] */
};

static void expect_note(mu_notes *n) {
    CALL(MPI_Irecv(n->received, n->bytes, MPI_BYTE, MPI_ANY_SOURCE, 0, n->comm, &n->in));
}

mu_notes *mu_notes_new(const mu_comm *c, int bytes) {
    mu_notes *n = mu_alloc(1, sizeof *n);
    *n = (mu_notes){ .rank = c->rank, .size = c->size, .bytes = bytes };
    CALL(MPI_Comm_dup(((handle *)c->handle)->comm, &n->comm));
    n->out = mu_alloc((size_t)c->size, sizeof *n->out);
    for (int p = 0; p < c->size; p++) n->out[p] = MPI_REQUEST_NULL;
    n->received = mu_alloc((size_t)bytes, 1);
    n->sent = mu_alloc((size_t)c->size, (size_t)bytes);
    expect_note(n);
    return n;
}

void mu_notes_send(mu_notes *n, const void *note) {
    for (int p = 0; p < n->size; p++) {
        int done;
        if (p == n->rank) continue;
        CALL(MPI_Test(&n->out[p], &done, MPI_STATUS_IGNORE));
        if (!done) continue;
        char *copy = n->sent + (size_t)p * (size_t)n->bytes;
        memcpy(copy, note, (size_t)n->bytes);
        CALL(MPI_Isend(copy, n->bytes, MPI_BYTE, p, 0, n->comm, &n->out[p]));
    }
}

bool mu_notes_take(mu_notes *n, int *from, void *note) {
    int done;
    MPI_Status status;
    CALL(MPI_Test(&n->in, &done, &status));
    if (!done) return false;
    *from = status.MPI_SOURCE;
    memcpy(note, n->received, (size_t)n->bytes);
    expect_note(n);
    return true;
}

/* Once every rank is here, no more notes are sent; pending ones are received, so that each send completes. */
void mu_notes_free(mu_notes *n) {
    int done = 0, from;
    char *note = mu_alloc((size_t)n->bytes, 1);
    MPI_Request last;
    CALL(MPI_Ibarrier(n->comm, &last));
    for (bool sent = false; !done || !sent;) {
        while (mu_notes_take(n, &from, note)) {}
        int all;
        CALL(MPI_Testall(n->size, n->out, &all, MPI_STATUSES_IGNORE));
        sent = all;
        if (!done) CALL(MPI_Test(&last, &done, MPI_STATUS_IGNORE));
        sched_yield();
    }
    CALL(MPI_Cancel(&n->in));
    CALL(MPI_Wait(&n->in, MPI_STATUS_IGNORE));
    CALL(MPI_Comm_free(&n->comm));
    free(note);
    free(n->out);
    free(n->received);
    free(n->sent);
    free(n);
}

/* A communicator of mu_mesh_planned has ranks but no transport. */
static handle *transport(const mu_comm *c) {
    MU_CHECK(c->handle, "a planned mesh (dry run) of %d ranks cannot communicate", c->size);
    return c->handle;
}

static MPI_Datatype type_of(mu_dtype dtype) {
    switch (dtype) {
    case MU_DTYPE_F64: return MPI_DOUBLE;
    case MU_DTYPE_F32: return MPI_FLOAT;
    case MU_DTYPE_I32: return MPI_INT32_T;
    case MU_DTYPE_I64: return MPI_INT64_T;
    case MU_DTYPE_BF16: break;
    }
    MU_FATAL(MU_STATUS_INTERNAL, "mu_all_reduce does not support %s", mu_dtype_name(dtype));
}

/* Number of values of `size` bytes in one message. */
static int64_t most_values(const mu_comm *c, int64_t size) {
    return c->piece_limit / size > 0 ? c->piece_limit / size : 1;
}

/* Posts the sends to a peer, or the receives from it, in pieces of at most piece_limit bytes, which keep their
 * order. */
static void post(mu_comm *c, bool send, char *data, int64_t bytes, int peer) {
    handle *h = c->handle;
    for (int64_t at = 0; at < bytes; at += c->piece_limit) {
        int now = (int)(bytes - at < c->piece_limit ? bytes - at : c->piece_limit);
        if (send) CALL(MPI_Isend(data + at, now, MPI_BYTE, peer, 1, h->comm, new_request(h)));
        else CALL(MPI_Irecv(data + at, now, MPI_BYTE, peer, 1, h->comm, new_request(h)));
    }
}

/* The shared memory for a payload of n values; NULL: there is none, or the payload is too small. */
static mu_shm *shm_for(const mu_comm *c, mu_dtype dtype, int64_t n) {
    return n * (int64_t)mu_dtype_size(dtype) >= c->shm_threshold_bytes ? transport(c)->shm : NULL;
}

/* First element of shard r. */
static int64_t begin(const int64_t *ends, int r) { return r ? ends[r - 1] : 0; }

/* Number of values of shard r in [at, at + most). */
static int64_t values_in(const int64_t *ends, int r, int64_t at, int64_t most) {
    int64_t n = ends[r] - begin(ends, r) - at;
    return n < 0 ? 0 : n < most ? n : most;
}

/* mu_add_up of `n` values in device memory; overwrites parts. */
static void add_up_on(mu_device *dev, mu_dtype dtype, int64_t n, char *const *x, int parts, char *to) {
    mu_mat sum = { x[0], dtype, 1 };
    for (int p = 1; p < parts; p++) {
        mu_mat next = { p == parts - 1 ? to : x[x[0] == to], dtype, 1 };
        dev->k->add(dev, n, sum, (mu_mat){ x[p], dtype, 1 }, next);
        sum = next;
    }
}

/* In GPU memory with a CUDA-aware MPI: chunk by chunk, every rank receives the others' parts of its shard and adds them
 * up in order of rank. */
static void reduce_on_device(mu_comm *c, mu_device *dev, mu_dtype dtype, char *data, const int64_t *ends) {
    handle *h = c->handle;
    int64_t size = (int64_t)mu_dtype_size(dtype), chunk = BUFFER / c->size / size, longest = 0;
    if (!h->parts) h->parts = mu_alloc((size_t)c->size, sizeof *h->parts);
    char *buffer = mu_device_room(dev, BUFFER);
    for (int p = 0; p < c->size; p++) {
        int64_t n = ends[p] - begin(ends, p);
        if (n > longest) longest = n;
    }
    for (int64_t at = 0; at < longest; at += chunk) {
        int64_t mine = values_in(ends, c->rank, at, chunk);
        mu_device_finish(dev);      /* no pending work on the data or on the last chunk */
        for (int p = 0; p < c->size; p++) {
            char *part = buffer + p * chunk * size;
            h->parts[p] = p == c->rank ? data + (begin(ends, p) + at) * size : part;
            if (p == c->rank) continue;
            post(c, false, part, mine * size, p);
            post(c, true, data + (begin(ends, p) + at) * size, values_in(ends, p, at, chunk) * size, p);
        }
        wait_all(c);
        add_up_on(dev, dtype, mine, h->parts, c->size, data + (begin(ends, c->rank) + at) * size);
    }
}

/* By mu_reduction, with all values final: MPI's own Ireduce took 50 times as long for 27 MB on one node. */
static void reduce_by_messages(mu_comm *c, mu_dtype dtype, char *data, const int64_t *ends) {
    mu_reduction *r = mu_reduction_new(c, dtype, data, ends);
    mu_reduction_begin(r);
    mu_reduction_finish(r);
    mu_reduction_free(r);
}

void mu_reduce_in_place(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    MU_CHECK(mu_can_add(dtype), "mu_reduce_shards does not support %s", mu_dtype_name(dtype));
    mu_shm *m = dev ? NULL : shm_for(c, dtype, ends[c->size - 1]);
    double start = mu_time();
    if (dev) reduce_on_device(c, dev, dtype, data, ends);
    else if (!m) reduce_by_messages(c, dtype, data, ends);
    else {
        mu_shm_reduce(c, m, dtype, data, ends);
        c->seconds += mu_time() - start;
    }
}

void mu_gather_in_place(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    mu_shm *m = dev ? NULL : shm_for(c, dtype, ends[c->size - 1]);
    if (m) {
        double start = mu_time();
        mu_shm_gather(c, m, dtype, data, ends);
        c->seconds += mu_time() - start;
        return;
    }
    int64_t size = (int64_t)mu_dtype_size(dtype), mine = begin(ends, c->rank);
    if (dev) mu_device_finish(dev);
    for (int p = 0; p < c->size; p++) {
        if (p == c->rank) continue;
        post(c, false, (char *)data + begin(ends, p) * size, (ends[p] - begin(ends, p)) * size, p);
        post(c, true, (char *)data + mine * size, (ends[c->rank] - mine) * size, p);
    }
    wait_all(c);
}

/* Shards of equal size, aligned to cache lines. */
static const int64_t *even_shards(const mu_comm *c, mu_dtype dtype, int64_t n) {
    int64_t *ends = ((handle *)c->handle)->ends, line = 64 / (int64_t)mu_dtype_size(dtype);
    for (int r = 0; r < c->size; r++) ends[r] = n / line * (r + 1) / c->size * line;
    ends[c->size - 1] = n;
    return ends;
}

void mu_all_reduce(mu_comm *c, mu_reduce_op op, mu_dtype dtype, void *data, int64_t n) {
    if (c->size == 1) return;
    handle *h = transport(c);
    if (op == MU_REDUCE_SUM && mu_can_add(dtype) && shm_for(c, dtype, n)) {
        const int64_t *ends = even_shards(c, dtype, n);
        mu_reduce_in_place(c, NULL, dtype, data, ends);
        mu_gather_in_place(c, NULL, dtype, data, ends);
        return;
    }
    MPI_Op mpi_op = op == MU_REDUCE_SUM ? MPI_SUM : op == MU_REDUCE_MAX ? MPI_MAX : MPI_MIN;
    int64_t size = (int64_t)mu_dtype_size(dtype), most = most_values(c, size);
    for (int64_t at = 0; at < n; at += most) {
        int now = (int)(n - at < most ? n - at : most);
        CALL(MPI_Iallreduce(MPI_IN_PLACE, (char *)data + at * size, now, type_of(dtype), mpi_op, h->comm,
                            new_request(h)));
        wait_all(c);
    }
}

void mu_all_gather(mu_comm *c, const void *mine, int64_t bytes, void *all) {
    if (c->size == 1) {
        if (bytes) memmove(all, mine, (size_t)bytes);
        return;
    }
    handle *h = transport(c);
    MU_CHECK(bytes <= c->piece_limit, "%lld bytes per rank are more than one message holds",
             (long long)bytes);
    CALL(MPI_Iallgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, h->comm, new_request(h)));
    wait_all(c);
}

void mu_broadcast(mu_comm *c, int root, void *data, int64_t bytes) {
    if (c->size == 1) return;
    handle *h = transport(c);
    for (int64_t at = 0; at < bytes; at += c->piece_limit) {
        int now = (int)(bytes - at < c->piece_limit ? bytes - at : c->piece_limit);
        CALL(MPI_Ibcast((char *)data + at, now, MPI_BYTE, root, h->comm, new_request(h)));
        wait_all(c);
    }
}

void mu_barrier(mu_comm *c) {
    if (c->size == 1) return;
    handle *h = transport(c);
    CALL(MPI_Ibarrier(h->comm, new_request(h)));
    wait_all(c);
}

/* Do `bytes` to or from a peer go through shared memory? Else by messages. Both ends know the length, so they agree. */
static bool through_shm(const mu_comm *c, int64_t bytes, int peer) {
    return peer != c->rank && bytes && bytes >= c->shm_threshold_bytes && ((handle *)c->handle)->shm;
}

/* Posts messages, and lists transfers through shared memory in `t`. Returns whether there are any of those. */
static bool divide(mu_comm *c, mu_transfers t, char *from, const int64_t *send_bytes, char *to,
                   const int64_t *recv_bytes) {
    bool any = false;
    for (int p = 0; p < c->size; to += recv_bytes[p++]) {
        bool shared = through_shm(c, recv_bytes[p], p);
        if (!shared && p != c->rank) post(c, false, to, recv_bytes[p], p);
        if (t.in) t.in[p] = (mu_transfer){ to, shared ? recv_bytes[p] : 0 };
        any |= shared;
    }
    for (int p = 0; p < c->size; from += send_bytes[p++]) {
        bool shared = through_shm(c, send_bytes[p], p);
        if (!shared && p != c->rank) post(c, true, from, send_bytes[p], p);
        if (t.out) t.out[p] = (mu_transfer){ from, shared ? send_bytes[p] : 0 };
        any |= shared;
    }
    return any;
}

void mu_exchange_direct(mu_comm *c, mu_device *dev, void *send, const int64_t *send_bytes, void *recv,
                        const int64_t *recv_bytes) {
    char *from = send, *to = recv;
    mu_device_finish(dev);
    for (int p = 0; p < c->size; to += recv_bytes[p++]) post(c, false, to, recv_bytes[p], p);
    for (int p = 0; p < c->size; from += send_bytes[p++]) post(c, true, from, send_bytes[p], p);
    wait_all(c);
}

void mu_exchange(mu_comm *c, const void *send, const int64_t *send_bytes, void *recv,
                 const int64_t *recv_bytes) {
    handle *h = c->size > 1 ? transport(c) : c->handle;
    mu_shm *m = h ? h->shm : NULL;
    mu_transfers t = m ? mu_shm_transfers(m) : (mu_transfers){ 0 };
    char *from = (char *)(uintptr_t)send, *to = recv;
    int64_t own = send_bytes[c->rank];
    MU_CHECK(own == recv_bytes[c->rank], "rank %d sends itself %lld bytes but expects %lld", c->rank,
             (long long)own, (long long)recv_bytes[c->rank]);
    bool shared = divide(c, t, from, send_bytes, to, recv_bytes);
    for (int p = 0; p < c->rank; p++) from += send_bytes[p], to += recv_bytes[p];
    if (shared) {
        double start = mu_time();
        t.out[c->rank] = (mu_transfer){ from, own }, t.in[c->rank] = (mu_transfer){ to, own };
        mu_shm_exchange(c, m);
        c->seconds += mu_time() - start;
    } else if (own) memcpy(to, from, (size_t)own);
    wait_all(c);
}

int64_t mu_mesh_shared_bytes(const mu_mesh *m) {
    const mu_comm *comms[] = { m->world, m->expert, m->replica, m->batch };
    int64_t bytes = 0;
    for (int i = 0; i < 3 + (m->batch != m->world); i++)
        if (comms[i]->size > 1) bytes += (int64_t)mu_shm_bytes(comms[i]->size);
    return bytes;
}
