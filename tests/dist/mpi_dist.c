/* mpi_dist.c - collectives with uneven, empty and cut messages, through shared memory and through MPI; agreement;
 * groups; shards; the exchange as an op;
 * and a MoE layer whose experts are spread over ranks against the same layer on one. */
#include "mpi_check.h"

#include <unistd.h>
#include "moe/layer.h"

static mu_comm *world;

/* Message sizes that do not divide anything, smaller than one value too. */
static const int64_t limits[] = { 5, 7, 64, (int64_t)1 << 30 };
enum { LIMITS = 4 };

/* ---------------------------------------------------------------- collectives */
static void reductions(void **state) {
    (void)state;
    enum { N = 37 };
    int P = world->size, r = world->rank;
    for (int l = 0; l < LIMITS; l++) {
        world->piece_limit = limits[l];
        double sum[N];
        float most[N];
        int64_t least[N];
        int32_t whole[N];
        for (int i = 0; i < N; i++)
            sum[i] = r + i, most[i] = (float)((r + i) % P), least[i] = ((int64_t)1 << 40) - r * i,
            whole[i] = i;
        mu_all_reduce(world, MU_REDUCE_SUM, MU_DTYPE_F64, sum, N);
        mu_all_reduce(world, MU_REDUCE_MAX, MU_DTYPE_F32, most, N);
        mu_all_reduce(world, MU_REDUCE_MIN, MU_DTYPE_I64, least, N);
        mu_all_reduce(world, MU_REDUCE_SUM, MU_DTYPE_I32, whole, N);
        mu_all_reduce(world, MU_REDUCE_SUM, MU_DTYPE_F64, NULL, 0);
        for (int i = 0; i < N; i++) {
            check(sum[i] == P * (P - 1) / 2 + P * i, "sum[%d] = %g", i, sum[i]);
            check(most[i] == (float)(P - 1), "most[%d] = %g", i, (double)most[i]);
            check(least[i] == ((int64_t)1 << 40) - (P - 1) * i, "least[%d] = %lld", i, (long long)least[i]);
            check(whole[i] == P * i, "whole[%d] = %d", i, (int)whole[i]);
        }
    }
}

static void gather_and_broadcast(void **state) {
    (void)state;
    enum { N = 23 };
    int P = world->size, r = world->rank;
    char mine[3] = { (char)r, (char)(r + 50), 7 }, *all = mu_alloc((size_t)P, 3), text[N];
    for (int l = 0; l < LIMITS; l++) {
        world->piece_limit = limits[l];
        mu_all_gather(world, mine, 3, all);
        for (int p = 0; p < P; p++)
            check(all[3 * p] == p && all[3 * p + 1] == p + 50 && all[3 * p + 2] == 7, "from rank %d", p);
        mu_all_gather(world, NULL, 0, all);
        for (int root = 0; root < P; root++) {
            for (int i = 0; i < N; i++) text[i] = (char)(r == root ? i + root : -1);
            mu_broadcast(world, root, text, N);
            for (int i = 0; i < N; i++)
                check(text[i] == i + root, "byte %d of root %d is %d", i, root, text[i]);
            mu_broadcast(world, root, NULL, 0);
        }
        mu_barrier(world);
    }
    free(all);
}

/* Bytes from p to q: 0 for many pairs, and nothing at all from the last rank when there are several. */
static int64_t amount(int p, int q) {
    return world->size > 1 && p == world->size - 1 ? 0 : (p * 5 + q * 3) % 4 * 11;
}
static char content(int p, int q, int64_t i) { return (char)(p * 64 + q * 16 + i % 13); }

static void exchange(void **state) {
    (void)state;
    int P = world->size, r = world->rank;
    int64_t sends[16], receives[16], out = 0, in = 0, at = 0;
    for (int p = 0; p < P; p++) out += sends[p] = amount(r, p), in += receives[p] = amount(p, r);
    char *send = mu_alloc((size_t)out, 1), *recv = mu_alloc((size_t)in + 1, 1);
    for (int p = 0; p < P; p++)
        for (int64_t i = 0; i < sends[p]; i++) send[at++] = content(r, p, i);
    for (int l = 0; l < LIMITS; l++) {
        world->piece_limit = limits[l];
        memset(recv, 99, (size_t)in + 1);
        mu_exchange(world, send, sends, recv, receives);
        at = 0;
        for (int p = 0; p < P; p++)
            for (int64_t i = 0; i < receives[p]; i++, at++)
                check(recv[at] == content(p, r, i), "byte %lld of rank %d", (long long)i, p);
        check(recv[in] == 99, "wrote beyond the end");
    }
    free(send);
    free(recv);
}

static void nothing_to_exchange(void **state) {
    (void)state;
    int64_t zeros[16] = { 0 };
    mu_exchange(world, NULL, zeros, NULL, zeros);
}

/* ---------------------------------------------------------------- shared memory and MPI */
/* Everything through shared memory, some of it, nothing. */
static const int64_t leasts[] = { 1, 5000, INT64_MAX };
enum { LEASTS = 3, PIECE = 128 << 10 };     /* of the shared memory, for up to 8 ranks */

/* What rank `rank` brings to collective number `seed`: reals that fp32 holds, or whole numbers, whose sums are exact. */
static double *values_of(uint32_t seed, int rank, int64_t n, bool whole) {
    double *x = mu_alloc((size_t)n, sizeof *x);
    uint32_t random = seed * 977 + (uint32_t)rank * 7919 + 1;
    for (int64_t i = 0; i < n; i++) {
        random = random * 1664525u + 1013904223u;
        x[i] = (double)(random >> 12) - (1 << 19);
        if (!whole) x[i] = (double)(float)(x[i] / (1 + (random >> 8) % 1000));
    }
    return x;
}

static double value_at(mu_dtype dtype, const void *data, int64_t i) {
    return dtype == MU_DTYPE_F64   ? ((const double *)data)[i]
           : dtype == MU_DTYPE_F32 ? (double)((const float *)data)[i]
                                   : (double)((const int64_t *)data)[i];
}

static void value_set(mu_dtype dtype, void *data, int64_t i, double x) {
    if (dtype == MU_DTYPE_F64) ((double *)data)[i] = x;
    else if (dtype == MU_DTYPE_F32) ((float *)data)[i] = (float)x;
    else ((int64_t *)data)[i] = (int64_t)x;
}

/* x[0] + x[1] + ... in order of rank, in the arithmetic of the type. */
static double *sum_in_order(mu_dtype dtype, uint32_t seed, int ranks, int64_t n, bool whole) {
    double *sum = values_of(seed, 0, n, whole);
    for (int p = 1; p < ranks; p++) {
        double *x = values_of(seed, p, n, whole);
        for (int64_t i = 0; i < n; i++)
            sum[i] = dtype == MU_DTYPE_F32 ? (double)((float)sum[i] + (float)x[i]) : sum[i] + x[i];
        free(x);
    }
    return sum;
}

/* How a sum over ranks is done: at once, or in shards whose ends are very uneven, with empty ones; or in such shards while
 * values are still being made. */
enum { AT_ONCE, SHARDS, EARLY, WAYS };

/* Each rank makes its values from the end on, in stretches of its own, with other collectives in between; twice. */
static void sum_early(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, int64_t n, const int64_t *ends) {
    size_t bytes = (size_t)n * mu_dtype_size(dtype);
    char *values = mu_alloc(bytes + 1, 1);
    memcpy(values, data, bytes);
    check(mu_reduction_possible(c, dev) == (c->size > 1), "a reduction of %d ranks", c->size);
    mu_reduction *r = c->size > 1 ? mu_reduction_new(c, dtype, data, ends) : NULL;
    for (int step = 0; step < 2 && r; step++) {
        for (int64_t i = 0; i < n; i++) value_set(dtype, data, i, -55);
        mu_reduction_begin(r);
        for (int64_t from = n; from > 0;) {
            int64_t h = (int64_t)(mu_hash64((int64_t[]){ from, c->rank, step }, 24) % 8), less = 1 + h * n / 16;
            int64_t at = from > less ? from - less : 0;
            for (int64_t i = at; i < from; i++) value_set(dtype, data, i, value_at(dtype, values, i));
            mu_reduction_final(r, from = at);
            mu_reduction_turn(r);
        }
        mu_barrier(c);
        mu_reduction_finish(r);
    }
    mu_reduction_free(r);
    free(values);
}

static void sum_over(mu_comm *c, mu_device *dev, mu_dtype dtype, void *data, int64_t n, int way) {
    if (way == AT_ONCE) {
        mu_all_reduce(c, MU_REDUCE_SUM, dtype, data, n);
        return;
    }
    int64_t ends[16];
    for (int r = 0; r < c->size; r++) ends[r] = r % 3 == 1 ? ends[r - 1] : n * (r + 1) * (r + 1) / (c->size * c->size);
    ends[c->size - 1] = n;
    if (way == EARLY) sum_early(c, dev, dtype, data, n, ends);
    else mu_reduce_shards(c, dev, dtype, data, ends);
    for (int64_t i = 0; i < n; i++)         /* what others own is of no use now */
        if (i < (c->rank ? ends[c->rank - 1] : 0) || i >= ends[c->rank]) value_set(dtype, data, i, -77);
    mu_gather_shards(c, dev, dtype, data, ends);
}

static void check_sum(mu_comm *c, mu_device *dev, mu_dtype dtype, int64_t n, int way, uint32_t seed) {
    bool whole = dtype == MU_DTYPE_I64 || c->shm_threshold_bytes > n * (int64_t)mu_dtype_size(dtype);
    double *x = values_of(seed, c->rank, n, whole), *sum = sum_in_order(dtype, seed, c->size, n, whole);
    char *data = mu_alloc((size_t)n + 1, mu_dtype_size(dtype));
    for (int64_t i = 0; i < n; i++) value_set(dtype, data, i, x[i]);
    value_set(dtype, data, n, 99);
    sum_over(c, dev, dtype, data, n, way);
    for (int64_t i = 0; i < n; i++)
        check(value_at(dtype, data, i) == sum[i], "%s, %lld values, shared memory from %lld: [%lld] = %.17g, not %.17g",
              mu_dtype_name(dtype), (long long)n, (long long)c->shm_threshold_bytes, (long long)i,
              value_at(dtype, data, i), sum[i]);
    check(value_at(dtype, data, n) == 99, "wrote beyond the end");
    free(x);
    free(sum);
    free(data);
}

static void sums_and_shards(void **state) {
    (void)state;
    static const mu_dtype types[] = { MU_DTYPE_F32, MU_DTYPE_F64, MU_DTYPE_I64 };
    mu_device *dev = mu_device_open("ref");
    uint32_t seed = 0;
    world->piece_limit = 10000;
    for (int l = 0; l < LEASTS; l++)
        for (int type = 0; type < 3; type++) {
            int64_t piece = PIECE / (int64_t)mu_dtype_size(types[type]), P = world->size;
            int64_t sizes[] = { 0, 1, 3, 17, 1023, 1250, piece - 1, piece, piece + 1, P * piece - 1, P * piece,
                                2 * P * piece + 1, 3 * P * piece + 555 };
            world->shm_threshold_bytes = leasts[l];
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                for (int way = 0; way < WAYS; way++) check_sum(world, dev, types[type], sizes[i], way, seed++);
        }
    world->piece_limit = (int64_t)1 << 30;
    mu_device_close(dev);
}

/* Bytes from p to q in exchange number i: nothing, a few, about one piece of the shared memory, several. */
static int64_t load(int i, int p, int q) {
    uint64_t h = mu_hash64((int[]){ i, p, q }, 3 * sizeof(int));
    static const int64_t most[] = { 0, 40, 5001, PIECE + 2, 4 * PIECE };
    int64_t bytes = most[h % 5];
    return bytes == PIECE + 2 ? bytes - (int64_t)(h / 5 % 4) : bytes ? (int64_t)(h / 5 % (uint64_t)bytes) : 0;
}

static void check_exchange(mu_comm *c, int i) {
    int64_t sends[16], receives[16], out = 0, in = 0, at = 0;
    for (int p = 0; p < c->size; p++) out += sends[p] = load(i, c->rank, p), in += receives[p] = load(i, p, c->rank);
    char *send = mu_alloc((size_t)out + 1, 1), *recv = mu_alloc((size_t)in + 1, 1);
    for (int p = 0; p < c->size; p++)
        for (int64_t j = 0; j < sends[p]; j++) send[at++] = (char)(j * 7 + j / 251 + c->rank * 16 + p + i);
    recv[in] = 99, at = 0;
    mu_exchange(c, send, sends, recv, receives);
    for (int p = 0; p < c->size; p++)
        for (int64_t j = 0; j < receives[p]; j++, at++)
            check(recv[at] == (char)(j * 7 + j / 251 + p * 16 + c->rank + i), "exchange %d: byte %lld of %lld from rank %d",
                  i, (long long)j, (long long)receives[p], p);
    check(recv[in] == 99, "wrote beyond the end");
    free(send);
    free(recv);
}

/* Collectives of every kind and size follow each other in many orders, on groups that share ranks. */
static void all_kinds_in_turn(void **state) {
    (void)state;
    mu_device *dev = mu_device_open("ref");
    mu_mesh *m = mu_mesh_open(NULL, world->size > 2 ? 2 : 1);
    mu_comm *comms[] = { m->world, m->expert, m->replica };
    for (int i = 0; i < 150; i++) {
        uint64_t h = mu_hash64(&i, sizeof i);
        mu_comm *c = comms[h % 3];
        c->shm_threshold_bytes = leasts[h / 3 % LEASTS];
        int64_t n = (int64_t)(h / 64 % 100000);
        switch (h / 16 % 4) {
        case 0: check_sum(c, dev, MU_DTYPE_F32, n, h / 8 & 1, (uint32_t)i); break;
        case 1: check_sum(c, dev, MU_DTYPE_F64, n, h / 8 & 1, (uint32_t)i); break;
        default: check_exchange(c, i);
        }
    }
    mu_mesh_close(m);
    mu_device_close(dev);
}

static void agreement(void **state) {
    (void)state;
    int P = world->size, r = world->rank;
    mu_error e;
    memset(&e, 0, sizeof e);
    check(mu_agree(world, MU_STATUS_OK, &e) == MU_STATUS_OK && e.text[0] == '\0', "all well: %s", e.text);
    for (int first = 0; first < P; first++) { /* ranks from `first` on fail alike, rank 0 in a lesser way */
        mu_status mine = r >= first ? MU_STATUS_IO : r == 0 ? MU_STATUS_DATA : MU_STATUS_OK;
        char wanted[128], host[64] = ""; /* a rank that fails while rank 0 does not is named, with its host */
        gethostname(host, sizeof host - 1);
        snprintf(wanted, sizeof wanted, "rank %d failed", first);
        if (first) snprintf(wanted, sizeof wanted, "rank %d on %s: rank %d failed", first, host, first);
        if (mine) mu_error_set(&e, mine, "rank %d failed", r);
        check(mu_agree(world, mine, &e) == MU_STATUS_IO && e.status == MU_STATUS_IO, "status %d",
              (int)e.status);
        check(!strcmp(e.text, wanted), "'%s' instead of '%s'", e.text, wanted);
        check(mu_agree(world, mine, NULL) == MU_STATUS_IO, "without a text");
        memset(&e, 0, sizeof e);
    }
    for (int all = 0; all < 2; all++) {         /* rank 0 alone is named as well, what all ranks have is not */
        mu_status mine = all || r == 0 ? MU_STATUS_DATA : MU_STATUS_OK;
        if (mine) mu_error_set(&e, mine, "rank %d failed", r);
        check(mu_agree_each(world, mine, &e) == MU_STATUS_DATA && e.status == MU_STATUS_DATA, "status %d", (int)e.status);
        check(!strncmp(e.text, all || P == 1 ? "rank 0 failed" : "rank 0 on ", 10), "%s", e.text);
        memset(&e, 0, sizeof e);
    }
}

/* The same text everywhere, or one message that names the first rank that has another and the lines that differ. */
static void same_text(void **state) {
    (void)state;
    int P = world->size, r = world->rank;
    mu_error e = { 0 };
    check(mu_agree_text(world, MU_STATUS_CONFIG, "differ:", "a: 1\nb: 2\n", &e) == MU_STATUS_OK && !e.text[0], "%s", e.text);
    const char *mine = r == P - 1 ? "a: 1\nb: 3\nc: 4\n" : "a: 1\nb: 2\nc: 4\n", *more = r == P - 1 ? "a: 1\n" : "";
    mu_status wanted = P > 1 ? MU_STATUS_CONFIG : MU_STATUS_OK;
    check(mu_agree_text(world, MU_STATUS_CONFIG, "differ:", mine, &e) == wanted && e.status == wanted, "status %d", (int)e.status);
    if (P == 1) return;
    check(strstr(e.text, ": differ:\n  b: 3, on rank 0: 2") && !strstr(e.text, "a:") && !strstr(e.text, "c:"), "%s", e.text);
    check(mu_agree_text(world, MU_STATUS_DATA, "differ:", more, &e) == MU_STATUS_DATA, "a line more");
    check(strstr(e.text, "  a: 1, on rank 0: nothing") != NULL, "%s", e.text);
}

/* ---------------------------------------------------------------- the mesh */
static void groups(void **state) {
    (void)state;
    int P = world->size, r = world->rank;
    for (int ep = 1; ep <= P; ep *= 2) {
        mu_mesh *m = mu_mesh_open(NULL, ep);
        check(m->ep == ep && m->dp == P / ep && m->world->rank == r && m->world->size == P, "ep %d", ep);
        check(m->batch->rank == r && m->batch->size == P, "all ranks share a batch, not %d of %d", m->batch->size, P);
        check(m->expert->size == ep && m->expert->rank == r % ep, "expert group of %d, rank %d",
              m->expert->size, m->expert->rank);
        check(m->replica->size == P / ep && m->replica->rank == r / ep, "replica group of %d",
              m->replica->size);
        check(m->local_size == P && m->local_rank == r, "%d of %d on this node", m->local_rank,
              m->local_size);
        int ranks[2] = { r, r };
        mu_all_reduce(m->expert, MU_REDUCE_MIN, MU_DTYPE_I32, &ranks[0], 1);
        mu_all_reduce(m->expert, MU_REDUCE_MAX, MU_DTYPE_I32, &ranks[1], 1);
        check(ranks[0] == r / ep * ep && ranks[1] == ranks[0] + ep - 1, "expert group %d .. %d", ranks[0],
              ranks[1]);
        ranks[0] = ranks[1] = r;
        mu_all_reduce(m->replica, MU_REDUCE_MIN, MU_DTYPE_I32, &ranks[0], 1);
        mu_all_reduce(m->replica, MU_REDUCE_MAX, MU_DTYPE_I32, &ranks[1], 1);
        check(ranks[0] == r % ep && ranks[1] == r % ep + P - ep, "replica group %d .. %d", ranks[0],
              ranks[1]);
        mu_placement *place = mu_placement_new(m->expert, 8);
        check(place->n_local == 8 / ep && place->n_experts == 8, "%d experts here", place->n_local);
        for (int i = 0; i < 8; i++) {
            check(place->rank[i] * place->n_local + place->slot[i] == place->order[i] &&
                      place->slot[i] < place->n_local,
                  "expert %d", i);
            check((place->rank[i] == m->expert->rank) == (place->local[place->slot[i]] == i), "expert %d", i);
        }
        mu_placement_free(place);
        mu_mesh_close(m);
    }
}

/* ---------------------------------------------------------------- the exchange as an op */
/* y = all_to_all(x), L = <w, y>: dx is w, sent back to where each row of y came from. */
static void all_to_all(void **state) {
    (void)state;
    enum { D = 3 };
    int P = world->size, r = world->rank;
    mu_device *dev = mu_device_open("ref");
    mu_tape *tp = mu_tape_new(dev);
    int64_t sends[16], receives[16], out = 0, in = 0, at = 0;
    for (int p = 0; p < P; p++) out += sends[p] = amount(r, p) / 11, in += receives[p] = amount(p, r) / 11;
    double *x = mu_alloc((size_t)(out * D) + 1, sizeof *x), *y = mu_alloc((size_t)(in * D) + 1, sizeof *y);
    for (int p = 0; p < P; p++)
        for (int64_t i = 0; i < sends[p] * D; i++) x[at++] = 1000 * r + 100 * p + (double)i;
    for (int l = 0; l < LIMITS; l++) {
        world->piece_limit = limits[l];
        mu_tape_reset(tp);
        mu_tensor *tx = mu_tensor_2d(tp, out, D);
        mu_tensor_set(tx, x);
        tx->needs_grad = true;
        mu_tensor *ty = mu_all_to_all(tp, world, tx, sends, receives),
                  *again = mu_all_to_all(tp, world, tx, sends, receives);
        mu_tensor_get(ty, y);
        at = 0;
        for (int p = 0; p < P; p++)
            for (int64_t i = 0; i < receives[p] * D; i++, at++)
                check(y[at] == 1000 * p + 100 * r + (double)i, "%g", y[at]);
        /* x is sent twice; the weights of each rank come from streams of its own */
        mu_backward(tp, mu_add(tp, weighted_sum(tp, ty, 1 + 2 * (uint32_t)r),
                               weighted_sum(tp, again, 2 + 2 * (uint32_t)r)));
        double *dx = mu_alloc((size_t)(out * D) + 1, sizeof *dx);
        if (out) mu_reals_get(dev, MU_DTYPE_F64, tx->grad, out * D, dx);
        at = 0;
        for (int p = 0; p < P; p++) {
            int64_t before = 0, total = 0;
            for (int q = 0; q < P; q++) before += q < r ? amount(q, p) / 11 : 0, total += amount(q, p) / 11;
            double *w = random_reals(1001 + 2 * (uint32_t)p, total * D, 1),
                   *v = random_reals(1002 + 2 * (uint32_t)p, total * D, 1);
            for (int64_t i = 0; i < sends[p] * D; i++, at++)
                check(fabs(dx[at] - w[before * D + i] - v[before * D + i]) < 1e-15, "dx[%lld] = %g",
                      (long long)at, dx[at]);
            free(w);
            free(v);
        }
        free(dx);
    }
    free(x);
    free(y);
    mu_tape_free(tp);
    mu_device_close(dev);
}

/* ---------------------------------------------------------------- experts over ranks */
enum { D = 5, F = 3, S = 4, E = 8 };

typedef struct {
    mu_moe_config cfg;
    int64_t sequences;
    const char *device;
    int64_t shm_threshold_bytes;
    bool recompute;             /* each layer is a segment of its own */
    bool turn_router;           /* the router's weights are negated between forward and backward */
} scene;
typedef struct { double *y, *dx, *grads; int64_t dropped; } result;

/* Gradients of all parameters but x, whole on every rank: units in global order, at most E*D values each. */
static double *gather_gradients(layer *l, mu_comm *expert_group) {
    int64_t n = l->ps->n_global_units * E * D;
    double *all = mu_alloc((size_t)n, sizeof *all);
    for (mu_unit *u = mu_unit_next(l->ps, NULL); u; u = mu_unit_next(l->ps, u)) {
        if (u->param == l->x_TD || (u->expert < 0 && expert_group->rank)) continue;
        mu_reals_get(l->dev, l->dev->master, mu_unit_grad(u), u->count, all + u->global_index * E * D);
    }
    mu_all_reduce(expert_group, MU_REDUCE_SUM, MU_DTYPE_F64, all, n);
    return all;
}

/* Sums every group's gradients over its ranks, in shards of very different size. */
static void sum_gradients(mu_params *ps) {
    for (int i = 0; i < ps->n_groups; i++) {
        mu_group *g = ps->groups[i];
        mu_comm *c = (mu_comm *)(uintptr_t)g->reduce;
        if (!c) continue;
        int64_t ends[16];
        for (int r = 0; r < c->size; r++) ends[r] = g->count * (r + 1) * (r + 1) / (c->size * c->size);
        mu_reduce_shards(c, ps->dev, ps->dev->compute, g->grads->region.base, ends);
        mu_gather_shards(c, ps->dev, ps->dev->compute, g->grads->region.base, ends);
    }
}

static mu_tensor *forward_once(const scene *s, layer *l) {
    if (s->recompute) mu_tape_recompute_begin(l->tp);
    mu_tensor *y = layer_forward(l, l->tp);
    mu_release(l->tp, l->routing.gates_TK);
    if (s->recompute) mu_tape_recompute_end(l->tp);
    return y;
}

/* One forward and backward, experts over groups of `ep` ranks; each rank has tokens of its own. */
static result run(const scene *s, int ep) {
    mu_mesh *mesh = mu_mesh_open(NULL, ep);
    mesh->expert->piece_limit = 100, mesh->expert->shm_threshold_bytes = s->shm_threshold_bytes;
    layer *l = layer_new(s->device, mesh, s->cfg, s->sequences, S, D);
    int64_t n = mu_count(&l->x_TD->tensor);
    double *x = random_reals(70 + (uint32_t)world->rank, n, 1);
    mu_tensor_set(&l->x_TD->tensor, x);
    l->cx.global_samples = (int64_t[]){ 0, 1, 2 };
    mu_tensor *once = forward_once(s, l), *again = forward_once(s, l);
    result r = { mu_alloc((size_t)n + 1, sizeof(double)), mu_alloc((size_t)n + 1, sizeof(double)), NULL,
                 layer_dropped(l) };
    mu_tensor_get(once, r.y);
    if (s->turn_router) negate(&l->moe.router_ED->tensor);
    mu_backward(l->tp, mu_add(l->tp, weighted_sum(l->tp, once, 1),
                              weighted_sum(l->tp, again, 2 + (uint32_t)world->rank)));
    sum_gradients(l->ps);
    mu_reals_get(l->dev, l->dev->compute, l->x_TD->tensor.grad, n, r.dx);
    r.grads = gather_gradients(l, mesh->expert);
    free(x);
    layer_free(l);
    mu_mesh_close(mesh);
    return r;
}

static void result_free(result *r) {
    free(r->y);
    free(r->dx);
    free(r->grads);
}

static void same(const char *what, int ep, const double *a, const double *b, int64_t n, double tolerance) {
    for (int64_t i = 0; i < n; i++)
        check(fabs(a[i] - b[i]) <= tolerance * (1 + fabs(a[i])), "ep %d: %s[%lld] %.15g, not %.15g", ep, what,
              (long long)i, b[i], a[i]);
}

/* Outputs, gradients of the input, and gradients of every parameter do not depend on ep. */
static void compare(scene s, double tolerance) {
    int64_t n = s.sequences * S * D, units = 1 + 3 * E + (s.cfg.num_shared_experts ? 3 : 0);
    result one = run(&s, 1);
    for (int ep = 2; ep <= world->size; ep *= 2) {
        result r = run(&s, ep);
        same("y", ep, one.y, r.y, n, tolerance);
        same("dx", ep, one.dx, r.dx, n, tolerance);
        same("gradient", ep, one.grads, r.grads, units * E * D, tolerance);
        check(one.dropped == r.dropped, "%lld dropped, not %lld", (long long)r.dropped,
              (long long)one.dropped);
        result_free(&r);
    }
    double largest = 0;
    for (int64_t i = 0; i < units * E * D; i++) largest = fmax(largest, fabs(one.grads[i]));
    check(largest > 0, "no gradient at all");
    result_free(&one);
}

static void layers_agree(void **state) {
    (void)state;
    for (int variant = 0; variant < 8; variant++) {
        mu_moe_config cfg = layer_config(E, 1 + variant % 3, F);
        cfg.score_func = variant & 1, cfg.num_shared_experts = variant & 2,
        cfg.capacity_factor = variant & 4 ? 0.7 : 0;
        compare((scene){ .cfg = cfg, .sequences = 3, .device = "ref", .shm_threshold_bytes = variant & 1 ? 1 : INT64_MAX }, 1e-12);
    }
}

/* Everything goes to expert 0: all ranks but the first of a group have no rows. */
static void idle_ranks_agree(void **state) {
    (void)state;
    mu_moe_config cfg = layer_config(E, 1, F);
    cfg.force_skew = true, cfg.norm_topk_prob = false;
    compare((scene){ .cfg = cfg, .sequences = 3, .device = "ref", .shm_threshold_bytes = INT64_MAX }, 1e-12);
    bool without = world->size > 1 && world->rank == world->size - 1;        /* a rank without tokens, too */
    compare((scene){ .cfg = cfg, .sequences = without ? 0 : 2, .device = "ref", .shm_threshold_bytes = 1 }, 1e-12);
}

static void fast_layers_agree(void **state) {
    (void)state;
    mu_moe_config cfg = layer_config(E, 2, F);
    compare((scene){ .cfg = cfg, .sequences = 3, .device = "cpu", .shm_threshold_bytes = 1 }, 1e-5);
    compare((scene){ .cfg = cfg, .sequences = 3, .device = "guarded", .shm_threshold_bytes = 1 }, 1e-5);
}

/* Recomputed layers exchange rows again, by the plan that they had: the same bits, even if the router would now choose others. */
static void recomputed_layers_agree(void **state) {
    (void)state;
    mu_moe_config cfg = layer_config(E, 2, F);
    cfg.capacity_factor = 0.7, cfg.router_jitter = 0.2, cfg.num_shared_experts = 1;
    for (int ep = 1; ep <= world->size; ep *= 2)
        for (int variant = 0; variant < 6; variant++) {
            scene s = { .cfg = cfg, .sequences = 3, .device = (const char *const[]){ "ref", "cpu", "guarded" }[variant % 3],
                        .shm_threshold_bytes = 1, .turn_router = variant >= 3 };
            result kept = run(&s, ep);
            s.recompute = true;
            result again = run(&s, ep);
            same("y", ep, kept.y, again.y, s.sequences * S * D, 0);
            same("dx", ep, kept.dx, again.dx, s.sequences * S * D, 0);
            same("gradient", ep, kept.grads, again.grads, (1 + 3 * E + 3) * E * D, 0);
            check(kept.dropped == again.dropped, "%lld dropped, not %lld", (long long)again.dropped, (long long)kept.dropped);
            result_free(&kept);
            result_free(&again);
        }
}

/* A dry run of one rank of a larger mesh does not communicate, and counts bytes. */
static void dry_runs_are_silent(void **state) {
    (void)state;
    mu_mesh *mesh = mu_mesh_open(NULL, world->size);
    if (world->rank == 0) {
        layer *l = layer_new("shape", mesh, layer_config(E, 2, F), 2, S, D);
        mu_backward(l->tp, weighted_sum(l->tp, layer_forward(l, l->tp), 1));
        sum_gradients(l->ps);
        check(mu_tape_peak(l->tp) > 2 * S * D * (int64_t)sizeof(float), "%lld bytes",
              (long long)mu_tape_peak(l->tp));
        layer_free(l);
    }
    mu_mesh_close(mesh);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reductions), cmocka_unit_test(gather_and_broadcast), cmocka_unit_test(exchange),
        cmocka_unit_test(nothing_to_exchange), cmocka_unit_test(sums_and_shards),
        cmocka_unit_test(all_kinds_in_turn), cmocka_unit_test(agreement), cmocka_unit_test(same_text),
        cmocka_unit_test(groups),
        cmocka_unit_test(all_to_all), cmocka_unit_test(layers_agree), cmocka_unit_test(idle_ranks_agree),
        cmocka_unit_test(fast_layers_agree), cmocka_unit_test(recomputed_layers_agree), cmocka_unit_test(dry_runs_are_silent),
    };
    mpi_tests_begin(&argc, &argv);
    world = mu_comm_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (!failed) mu_comm_free(world);
    return mpi_tests_end(failed);
}
