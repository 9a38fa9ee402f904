/* comm.c - built on the collectives: agreement on errors and texts; reduce-scatter, all-gather and exchange of device
 * memory. */
#include "dist/internal.h"

#include <stdlib.h>
#include <string.h>

mu_comm *mu_comm_alone(void) {
    mu_comm *c = mu_alloc(1, sizeof *c);
    *c = (mu_comm){ .size = 1, .piece_limit = (int64_t)1 << 30, .shm_threshold_bytes = INT64_MAX };
    return c;
}

/* Adds rank and host to the message: this rank may see other files than the others. */
static void name_rank(const mu_comm *c, mu_error *e) {
    char host[MU_HOST_NAME];
    mu_host_name(host);
    char *text = mu_format("rank %d on %s: %s", c->rank, host, e->text);
    snprintf(e->text, sizeof e->text, "%s", text);
    free(text);
}

/* names_root: rank 0 is named unless all ranks have this status. */
static mu_status agree(mu_comm *c, mu_status status, bool names_root, mu_error *e) {
    int32_t worst = (int32_t)status, least = (int32_t)status;
    mu_all_reduce(c, MU_REDUCE_MAX, MU_DTYPE_I32, &worst, 1);
    if (worst == MU_STATUS_OK) return MU_STATUS_OK;
    if (names_root) mu_all_reduce(c, MU_REDUCE_MIN, MU_DTYPE_I32, &least, 1);
    bool names = names_root && least != worst;
    int32_t first = status == (mu_status)worst ? c->rank : c->size;
    mu_all_reduce(c, MU_REDUCE_MIN, MU_DTYPE_I32, &first, 1);
    if (e) {
        if (first == c->rank && (first > 0 || names)) name_rank(c, e);
        mu_broadcast(c, first, e->text, (int64_t)sizeof e->text);
        e->status = (mu_status)worst;
    }
    return (mu_status)worst;
}

mu_status mu_agree(mu_comm *c, mu_status status, mu_error *e) { return agree(c, status, false, e); }
mu_status mu_agree_each(mu_comm *c, mu_status status, mu_error *e) { return agree(c, status, true, e); }

/* Rank 0's text, on every rank; heap. Collective. */
static char *text_of_root(mu_comm *c, const char *text) {
    int64_t bytes = (int64_t)strlen(text) + 1;
    mu_broadcast(c, 0, &bytes, sizeof bytes);
    char *root = mu_alloc((size_t)bytes, 1);
    if (c->rank == 0) memcpy(root, text, (size_t)bytes);
    mu_broadcast(c, 0, root, bytes);
    return root;
}

/* Length of the common name with ": " at the start of both lines; 0 when the names differ. */
static int common_name(const char *a, int n, const char *b) {
    const char *colon = memchr(a, ':', (size_t)n);
    int length = colon ? (int)(colon - a) + 2 : 0;
    return length <= n && !strncmp(a, b, (size_t)length) ? length : 0;
}

/* Adds the lines in which `mine` differs from `root`; both have lines of the same names, one may have more. */
static void add_differences(mu_error *e, const char *mine, const char *root) {
    enum { MOST = 12 };
    for (int n = 0; (*mine || *root) && n < MOST;) {
        int a = (int)strcspn(mine, "\n"), b = (int)strcspn(root, "\n"), skip = common_name(mine, a, root);
        if (a != b || memcmp(mine, root, (size_t)a)) {
            mu_error_add(e, e->status, "  %.*s, on rank 0: %.*s", a ? a : 7, a ? mine : "nothing", b ? b - skip : 7,
                         b ? root + skip : "nothing");
            n++;
        }
        mine += a + (mine[a] == '\n'), root += b + (root[b] == '\n');
    }
}

mu_status mu_agree_text(mu_comm *c, mu_status status, const char *what, const char *text, mu_error *e) {
    if (c->size == 1) return MU_STATUS_OK;
    char *root = text_of_root(c, text);
    bool differs = strcmp(root, text) != 0;
    mu_error mine = { 0 };
    if (differs) {
        mu_error_set(&mine, status, "%s", what);
        add_differences(&mine, text, root);
    }
    free(root);
    status = mu_agree(c, differs ? status : MU_STATUS_OK, &mine);
    if (status != MU_STATUS_OK && e) *e = mine;
    return status;
}

bool mu_reduction_possible(const mu_comm *c, const mu_device *dev) {
    return c->size > 1 && !dev->on_gpu && !dev->inner && !dev->shape_only;
}

/* Whether MPI accepts this device's pointers; else a host view is used. */
static bool is_direct(const mu_comm *c, const mu_device *dev) { return dev->on_gpu && c->cuda_aware; }

static void on_shards(mu_in_place *run, mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    if (c->size == 1 || dev->shape_only) return;
    if (is_direct(c, dev)) {
        run(c, dev, dtype, data, ends);
        return;
    }
    size_t bytes = (size_t)ends[c->size - 1] * mu_dtype_size(dtype);
    void *host = mu_device_stage_begin(dev, data, bytes, true);
    run(c, NULL, dtype, host, ends);
    mu_device_stage_end(dev, data, bytes, true);
}

void mu_reduce_shards(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    on_shards(mu_reduce_in_place, c, dev, dtype, data, ends);
}

void mu_gather_shards(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, const int64_t *ends) {
    on_shards(mu_gather_in_place, c, dev, dtype, data, ends);
}

static size_t bytes_of(const mu_comm *c, const int64_t *bytes) {
    size_t sum = 0;
    for (int p = 0; p < c->size; p++) sum += (size_t)bytes[p];
    return sum;
}

void mu_device_exchange(mu_comm *c, mu_device *dev, void *send, const int64_t *send_bytes, void *recv,
                        const int64_t *recv_bytes) {
    if (dev->shape_only) return;
    if (is_direct(c, dev)) {
        mu_exchange_direct(c, dev, send, send_bytes, recv, recv_bytes);
        return;
    }
    size_t out = bytes_of(c, send_bytes), in = bytes_of(c, recv_bytes);
    void *from = mu_device_stage_begin(dev, send, out, true), *to = mu_device_stage_begin(dev, recv, in, false);
    mu_exchange(c, from, send_bytes, to, recv_bytes);
    mu_device_stage_end(dev, recv, in, true);
    mu_device_stage_end(dev, send, out, false);
}
