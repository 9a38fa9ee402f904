/* stats.c - routing statistics: how many tokens each expert was assigned, in all and of each domain; gates, drops, margins, and
 * which experts were chosen together. Counted on the device, in integers: any order of micro-batches and ranks gives the same sums.
 *
 * The device's buffer, words of 8 bytes. The host reads the first ones, until `values`, at the end of a step, in one piece:
 *     total      [layers, experts]            of the global batch, over all ranks; the loads of mu_optimizer_step
 *     by_domain  [layers, experts, domains]   the same by domain; this and the next five are of this rank
 *     gate_mass  [layers, experts]            sums of gates
 *     dropped    [layers, experts]            assignments beyond the capacity limit
 *     dropped_of [domains]                    the same by domain
 *     margins    [layers, 3]                  mu_margins
 *     grads      [layers, MU_ROUTER_GRADS]    norms of the gradients of the logits
 *     values     [n_values], F64              for the caller's use
 *     micro      [layers, experts]            of the current micro-batch, over all ranks
 *     counted    [layers, experts]            of the global batch, from the counting pass
 *     pairs      [layers, pairs], I32         tokens of the global batch that chose both experts, of this rank
 *     interval   [layers, pairs], I32         the same of the steps since mu_routing_stats_restart */
#include "moe/moe.h"

#include <stdlib.h>
#include <string.h>

static int64_t cells(const mu_routing_stats *s) { return (int64_t)s->window.layers * s->window.experts; }
static int64_t domain_cells(const mu_routing_stats *s) { return cells(s) * s->domains; }

/* Pairs of different experts of a layer; 0 where they are not counted. */
static int64_t pairs_of(const mu_routing_stats *s) {
    int64_t E = s->window.experts;
    return E <= MU_PAIRS_EXPERTS_MAX ? E * (E - 1) / 2 : 0;
}
static int64_t pair_words(const mu_routing_stats *s) { return (s->window.layers * pairs_of(s) + 1) / 2; }

static mu_mat words(const mu_routing_stats *s, mu_dtype dtype, int64_t first) {
    return (mu_mat){ (int64_t *)s->memory->region.base + first, dtype, 1 };
}
/* The first word of each part. */
static int64_t mass_word(const mu_routing_stats *s) { return cells(s) + domain_cells(s); }
static int64_t dropped_word(const mu_routing_stats *s) { return mass_word(s) + cells(s); }
static int64_t dropped_of_word(const mu_routing_stats *s) { return dropped_word(s) + cells(s); }
static int64_t margins_word(const mu_routing_stats *s) { return dropped_of_word(s) + s->domains; }
static int64_t grads_word(const mu_routing_stats *s) { return margins_word(s) + 3 * (int64_t)s->window.layers; }
static int64_t values_word(const mu_routing_stats *s) { return grads_word(s) + MU_ROUTER_GRADS * (int64_t)s->window.layers; }
static int64_t micro_word(const mu_routing_stats *s) { return values_word(s) + s->n_values; }
static int64_t pairs_word(const mu_routing_stats *s) { return micro_word(s) + 2 * cells(s); }
static int64_t interval_word(const mu_routing_stats *s) { return pairs_word(s) + pair_words(s); }
static int64_t end_word(const mu_routing_stats *s) { return interval_word(s) + pair_words(s); }

mu_mat mu_routing_stats_total(const mu_routing_stats *s) { return words(s, MU_DTYPE_I64, 0); }
mu_mat mu_routing_stats_values(const mu_routing_stats *s) { return words(s, MU_DTYPE_F64, values_word(s)); }
mu_mat mu_routing_stats_router_grads(const mu_routing_stats *s) { return words(s, MU_DTYPE_I64, grads_word(s)); }
mu_mat mu_routing_stats_micro(const mu_routing_stats *s, int layer) {
    return words(s, MU_DTYPE_I64, micro_word(s) + layer * s->window.experts);
}
mu_mat mu_routing_stats_counted(const mu_routing_stats *s, int layer) {
    return mu_mat_values(mu_routing_stats_micro(s, layer), cells(s));
}
/* Of one layer, from a part that begins at `word`. */
static mu_mat pairs_at(const mu_routing_stats *s, int64_t word, int layer) {
    return mu_mat_values(words(s, MU_DTYPE_I32, word), layer * pairs_of(s));
}

static void zero(const mu_routing_stats *s, int64_t first, int64_t n) {
    s->dev->k->fill(s->dev, n, 0.0, words(s, MU_DTYPE_F64, first)); /* zero in all types */
}

mu_routing_stats *mu_routing_stats_new(mu_device *dev, mu_comm *batch, int layers, int experts, int domains, int64_t window,
                                       int64_t n_values) {
    MU_CHECK(dev && batch, "routing statistics: device or batch communicator is NULL");
    MU_CHECK(domains >= 1 && n_values >= 0, "routing statistics: %d domains and %lld values; must be at least 1 and 0", domains, (long long)n_values);
    mu_routing_stats *s = mu_alloc(1, sizeof *s);
    *s = (mu_routing_stats){ .dev = dev, .batch = batch, .domains = domains, .n_values = n_values };
    mu_load_window_init(&s->window, layers, experts, window ? window : MU_LOAD_WINDOW_DEFAULT);
    mu_expert_health_init(&s->health, layers, experts);
    size_t bytes = (size_t)end_word(s) * sizeof(int64_t);
    s->memory = mu_memory_new(dev, bytes);
    mu_memory_commit(s->memory, bytes);
    s->counts = s->host = mu_alloc((size_t)micro_word(s), sizeof *s->host);
    s->by_domain = s->host + cells(s);
    s->gate_mass = s->host + mass_word(s);
    s->dropped = s->host + dropped_word(s);
    s->dropped_of = s->host + dropped_of_word(s);
    s->margins = (mu_margins *)(void *)(s->host + margins_word(s));
    s->router_grads = s->host + grads_word(s);
    s->values = s->host + values_word(s);
    s->interval.by_domain = mu_alloc((size_t)domain_cells(s), sizeof *s->interval.by_domain);
    s->all_pairs = experts <= MU_PAIRS_ALL && cells(s) * experts <= MU_PAIRS_CELLS;
    s->n_pairs = s->all_pairs || pairs_of(s) < MU_PAIRS_MOST ? pairs_of(s) : MU_PAIRS_MOST;
    s->pairs = mu_alloc((size_t)(layers * s->n_pairs), sizeof *s->pairs);
    mu_routing_stats_begin(s);
    mu_routing_stats_restart(s);
    return s;
}

void mu_routing_stats_free(mu_routing_stats *s) {
    if (!s) return;
    mu_load_window_free(&s->window);
    mu_expert_health_free(&s->health);
    mu_memory_free(s->memory);
    free(s->interval.by_domain);
    free(s->pairs);
    free(s->host);
    free(s);
}

void mu_routing_stats_start_at(mu_routing_stats *s, int64_t step) {
    MU_CHECK(step >= 0 && s->window.steps == 0, "statistics of %lld steps cannot start at %lld", (long long)s->window.steps, (long long)step);
    s->window.steps = step;
}

int64_t mu_routing_stats_bytes(const mu_routing_stats *s) {
    int64_t pairs = s->window.layers * s->n_pairs * (int64_t)sizeof *s->pairs, by_domain = domain_cells(s) * (int64_t)sizeof *s->interval.by_domain;
    return mu_load_window_bytes(&s->window) + micro_word(s) * (int64_t)sizeof *s->host + by_domain + pairs;
}

void mu_routing_stats_begin(mu_routing_stats *s) { zero(s, 0, interval_word(s)); }

void mu_routing_stats_restart(mu_routing_stats *s) {
    s->interval.steps = 0;
    if (domain_cells(s)) memset(s->interval.by_domain, 0, sizeof *s->interval.by_domain * (size_t)domain_cells(s));
    zero(s, interval_word(s), pair_words(s));
}

/* On the device: counts[cells] = their sum over the ranks that share the batch. */
static void sum_over_ranks(const mu_routing_stats *s, mu_mat counts) {
    size_t bytes = sizeof(int64_t) * (size_t)cells(s);
    if (s->batch->size == 1 || !bytes || s->dev->shape_only) return;
    void *host = mu_device_stage_begin(s->dev, counts.data, bytes, true);
    mu_all_reduce(s->batch, MU_REDUCE_SUM, MU_DTYPE_I64, host, cells(s));
    mu_device_stage_end(s->dev, counts.data, bytes, true);
}

/* micro = this rank's counts of the current micro-batch. With `domains` (I32 [sequences]) they are also added to
 * by_domain. */
static void count_micro(const mu_routing_stats *s, const mu_routing *routings, const mu_tensor *domains) {
    int64_t E = s->window.experts, D = s->domains;
    for (int layer = 0; layer < s->window.layers; layer++) {
        const mu_tensor *counts_SE = routings[layer].counts_SE;
        MU_CHECK(counts_SE->shape[1] == E, "routing statistics: layer %d has counts of %lld experts, expected %lld", layer,
                 (long long)counts_SE->shape[1], (long long)E);
        mu_mat by_domain = domains ? words(s, MU_DTYPE_I64, cells(s) + layer * E * D) : (mu_mat){ 0 };
        mu_mat total = mu_routing_stats_micro(s, layer);
        by_domain.ld = D, total.ld = E;
        s->dev->k->sum_counts(s->dev, counts_SE->shape[0], E, D, mu_data(counts_SE), mu_data(domains), total, by_domain);
    }
}

/* The domain of each sequence; 0 for all when cx->domains is NULL. */
static mu_tensor *domains_of(const mu_routing_stats *s, mu_tape *tp, const mu_context *cx) {
    int32_t *none = cx->domains ? NULL : mu_tape_alloc(tp, sizeof *none * (size_t)(cx->n_sequences + 1));
    mu_tensor *domains = mu_tensor_ints(tp, MU_DTYPE_I32, cx->n_sequences, cx->domains ? cx->domains : none);
    mu_ids_check(domains, "routing statistics: domains", 0, s->domains - 1);
    return domains;
}

static void add(const mu_routing_stats *s, mu_mat to) { s->dev->k->add(s->dev, cells(s), to, mu_routing_stats_micro(s, 0), to); }

/* What a layer's routing of a micro-batch adds to the parts of this rank. */
static void add_layer(mu_routing_stats *s, const mu_routing *r, const mu_tensor *domains, int layer) {
    const mu_kernels *k = s->dev->k;
    int64_t T = r->ids_TK->shape[0], K = r->ids_TK->shape[1], E = s->window.experts, first = layer * E;
    mu_mat pairs = pairs_of(s) ? pairs_at(s, pairs_word(s), layer) : (mu_mat){ 0 };
    MU_CHECK(r->gate_scale > 0, "routing statistics: layer %d has gates of scale %g", layer, r->gate_scale);
    s->top_k = K;
    k->count_routes(s->dev, T, E, K, MU_GATE_UNIT / r->gate_scale, mu_data(r->ids_TK), mu_data(r->gates_TK),
                    words(s, MU_DTYPE_I64, mass_word(s) + first), pairs);
    if (r->plan && r->plan->capacity)
        k->sum_dropped(s->dev, r->counts_SE->shape[0], E, s->domains, r->plan->capacity, mu_data(r->counts_SE), mu_data(domains),
                       words(s, MU_DTYPE_I64, dropped_word(s) + first), words(s, MU_DTYPE_I64, dropped_of_word(s)));
    if (s->details_wanted)
        k->route_margins(s->dev, T, E, K, r->sigmoid, MU_MARGIN_UNIT, mu_data(r->scores_TE), mu_data(r->bias_E), mu_data(r->ids_TK),
                         words(s, MU_DTYPE_I64, margins_word(s) + 3 * layer));
}

void mu_routing_stats_add(mu_routing_stats *s, mu_tape *tp, const mu_context *cx, const mu_routing *routings) {
    if (!cells(s)) return;
    mu_tensor *domains = domains_of(s, tp, cx);
    count_micro(s, routings, domains);
    sum_over_ranks(s, mu_routing_stats_micro(s, 0));
    add(s, mu_routing_stats_total(s));
    for (int layer = 0; layer < s->window.layers; layer++) add_layer(s, &routings[layer], domains, layer);
}

void mu_routing_stats_count(mu_routing_stats *s, const mu_routing *routings, bool last) {
    mu_mat counted = mu_routing_stats_counted(s, 0);
    count_micro(s, routings, NULL);
    add(s, counted);
    if (last) sum_over_ranks(s, counted);
}

void mu_routing_stats_read(mu_routing_stats *s) {
    mu_device_read(s->dev, s->host, s->memory->region.base, sizeof(int64_t) * (size_t)micro_word(s));
    if (s->batch->size > 1 && cells(s)) mu_all_reduce(s->batch, MU_REDUCE_SUM, MU_DTYPE_I64, s->by_domain, values_word(s) - cells(s));
}

/* ------------------------------------------------------------------ the windows */

/* No pair can have more tokens than the steps of the interval. */
static bool interval_is_full(const mu_routing_stats *s) {
    int64_t assignments = 0;
    for (int i = 0; i < s->window.experts; i++) assignments += s->counts[i];
    return cells(s) && (s->interval.steps + 1) * (assignments / (s->top_k ? s->top_k : 1)) > INT32_MAX;
}

void mu_routing_stats_end(mu_routing_stats *s) {
    mu_load_window_add(&s->window, s->counts);
    if (interval_is_full(s)) mu_routing_stats_restart(s);
    s->interval.steps++;
    for (int64_t i = 0; i < domain_cells(s); i++) s->interval.by_domain[i] += (int32_t)s->by_domain[i];
    mu_mat sum = words(s, MU_DTYPE_I32, interval_word(s));
    s->dev->k->add(s->dev, s->window.layers * pairs_of(s), sum, words(s, MU_DTYPE_I32, pairs_word(s)), sum);
}

/* A layer's pairs of the interval over all ranks: n [pairs]. */
static void read_layer(const mu_routing_stats *s, int layer, int64_t *n) {
    int32_t *own = mu_alloc((size_t)pairs_of(s), sizeof *own);
    mu_device_read(s->dev, own, pairs_at(s, interval_word(s), layer).data, sizeof *own * (size_t)pairs_of(s));
    for (int64_t i = 0; i < pairs_of(s); i++) n[i] = own[i];
    free(own);
    if (s->batch->size > 1 && pairs_of(s)) mu_all_reduce(s->batch, MU_REDUCE_SUM, MU_DTYPE_I64, n, pairs_of(s));
}

/* Into a list of the most frequent pairs, of which `held` are known. */
static void insert(mu_expert_pair *list, int64_t held, int64_t room, mu_expert_pair p) {
    int64_t at = held < room ? held : room - 1;
    if (held >= room && list[at].n >= p.n) return;
    for (; at > 0 && list[at - 1].n < p.n; at--) list[at] = list[at - 1];
    list[at] = p;
}

void mu_routing_stats_read_pairs(mu_routing_stats *s) {
    int E = s->window.experts;
    int64_t *n = mu_alloc((size_t)pairs_of(s), sizeof *n);
    for (int layer = 0; layer < s->window.layers && pairs_of(s); layer++) {
        mu_expert_pair *list = s->pairs + layer * s->n_pairs;
        int64_t at = 0;
        read_layer(s, layer, n);
        for (int i = 0; i < E; i++)
            for (int j = i + 1; j < E; j++, at++) {
                mu_expert_pair p = { i, j, n[at] };
                if (s->all_pairs) list[at] = p;
                else insert(list, at, s->n_pairs, p);
            }
    }
    free(n);
}

/* ------------------------------------------------------------------ state of a checkpoint */

/* from: has the checkpoint's length; its ring is saved and loaded. to: the run's window. The same one if the lengths
 * agree. */
typedef struct { mu_load_window *from, *to; int64_t assignments; } windows;

static void ring_get(const mu_state *st, void *host) {
    const windows *w = st->module;
    int64_t *counts = host;
    for (int64_t i = 0; i < mu_state_count(st); i++) counts[i] = w->from->ring[i];
}

/* Derives and checks what follows from the ring, and copies it to the run's window. */
static mu_status ring_set(const mu_state *st, const void *host, mu_error *e) {
    windows *w = st->module;
    const int64_t *counts = host;
    for (int64_t i = 0; i < mu_state_count(st); i++) w->from->ring[i] = (int32_t)counts[i];
    w->from->steps = w->to->steps;
    mu_load_window_derive(w->from);
    mu_status status = mu_load_window_check(w->from, w->assignments, e);
    if (status == MU_STATUS_OK && w->from != w->to) mu_load_window_copy(w->to, w->from);
    return status;
}

static mu_status silence_set(const mu_state *st, const void *host, mu_error *e) {
    (void)host;
    return mu_load_window_check_silence(st->module, e);
}

/* After the ring, from which older checkpoints derive it. */
static void visit_silence(mu_load_window *w, int64_t step, mu_state_visitor *v) {
    mu_state last = { .name = "/state/window/last_step", .type = MU_STORE_I64, .n_dims = 2, .shape = { w->layers, w->experts },
                      .data = w->last_step, .min = 0, .max = step, .for_training = true, .since = 4 };
    mu_state gaps = { .name = "/state/window/gaps", .type = MU_STORE_I64, .n_dims = 2, .shape = { w->layers, w->experts },
                      .data = w->gaps, .min = 0, .max = MU_PAST_GAPS, .for_training = true, .since = 4 };
    mu_state gap = { .name = "/state/window/mean_gap", .type = MU_STORE_F64, .n_dims = 2, .shape = { w->layers, w->experts },
                     .data = w->mean_gap, .low = 0, .high = (double)step, .for_training = true, .since = 4, .module = w,
                     .set = silence_set };
    v->visit(v, &last);
    v->visit(v, &gaps);
    v->visit(v, &gap);
}

/* ------------------------------------------------------------------ the interval */

/* by_domain: has the checkpoint's domains. The run's own array if the number agrees. */
typedef struct { mu_routing_stats *s; int32_t *by_domain; int64_t domains, assignments; } interval;

static void by_domain_get(const mu_state *st, void *host) {
    const interval *v = st->module;
    int64_t *counts = host;
    for (int64_t i = 0; i < mu_state_count(st); i++) counts[i] = v->by_domain[i];
}

/* Each layer's counts add up to the assignments of the interval's steps. */
static mu_status by_domain_set(const mu_state *st, const void *host, mu_error *e) {
    const interval *v = st->module;
    const int64_t *counts = host;
    int64_t n = v->s->window.experts * v->domains, wanted = v->s->interval.steps * v->assignments;
    for (int layer = 0; layer < v->s->window.layers; layer++) {
        int64_t left = wanted;
        for (int64_t i = 0; i < n && left >= 0; i++) left -= counts[layer * n + i];
        if (left)
            return mu_error_set(e, MU_STATUS_DATA, "expert statistics: MoE layer %d: the experts' assignments in the last %lld steps do not"
                                " add up to %lld", layer, (long long)v->s->interval.steps, (long long)wanted);
    }
    for (int64_t i = 0; i < mu_state_count(st); i++) v->by_domain[i] = (int32_t)counts[i];
    return MU_STATUS_OK;
}

static void pairs_get(const mu_state *st, void *host) {
    const interval *v = st->module;
    read_layer(v->s, st->index, host);
}

/* The first rank continues with the sum of all. */
static mu_status pairs_set(const mu_state *st, const void *host, mu_error *e) {
    const mu_routing_stats *s = ((const interval *)st->module)->s;
    const int64_t *n = host;
    int32_t *own = mu_alloc((size_t)pairs_of(s), sizeof *own);
    (void)e;
    for (int64_t i = 0; i < pairs_of(s); i++) own[i] = s->batch->rank == 0 ? (int32_t)n[i] : 0;
    mu_device_write(s->dev, pairs_at(s, interval_word(s), st->index).data, own, sizeof *own * (size_t)pairs_of(s));
    free(own);
    return MU_STATUS_OK;
}

static void visit_interval(mu_routing_stats *s, int64_t step, int64_t assignments, int domains, mu_state_visitor *v) {
    int64_t n = cells(s) * domains, most = assignments > 0 && step < INT64_MAX / assignments ? step * assignments : INT64_MAX;
    int32_t *other = domains == s->domains ? NULL : mu_alloc((size_t)n, sizeof *other);
    interval of = { s, other ? other : s->interval.by_domain, domains, assignments };
    mu_state steps = { .name = "/state/interval/steps", .type = MU_STORE_I64, .n_dims = 1, .shape = { 1 }, .data = &s->interval.steps,
                       .min = 0, .max = step, .for_training = true, .since = 4 };
    mu_state by_domain = { .name = "/state/interval/by_domain", .type = MU_STORE_I64, .n_dims = 3,
                           .shape = { s->window.layers, s->window.experts, domains }, .min = 0, .max = most < INT32_MAX ? most : INT32_MAX,
                           .for_training = true, .since = 4, .module = &of, .get = by_domain_get, .set = by_domain_set };
    mu_state pairs = { .type = MU_STORE_I64, .n_dims = 1, .shape = { pairs_of(s) }, .min = 0, .max = INT32_MAX, .collective = true,
                       .for_training = true, .since = 4, .module = &of, .get = pairs_get, .set = pairs_set };
    v->visit(v, &steps);
    v->visit(v, &by_domain);
    for (pairs.index = 0; pairs.index < s->window.layers && pairs_of(s); pairs.index++) {
        snprintf(pairs.name, sizeof pairs.name, "/state/interval/pairs/%d", pairs.index);
        v->visit(v, &pairs);
    }
    if (other) mu_routing_stats_restart(s);
    free(other);
}

void mu_routing_stats_state(mu_routing_stats *s, int64_t step, int64_t assignments, int64_t length, int domains, mu_state_visitor *v) {
    mu_load_window *w = &s->window, other = { 0 };
    windows both = { w, w, assignments };
    if (length != w->length) mu_load_window_init(both.from = &other, w->layers, w->experts, length);
    mu_state steps = { .name = "/state/window/steps", .type = MU_STORE_I64, .n_dims = 1, .shape = { 1 }, .data = &w->steps,
                       .min = step, .max = step, .for_training = true, .since = 3 };
    mu_state ring = { .name = "/state/window/counts", .type = MU_STORE_I64, .n_dims = 3,
                      .shape = { length, w->layers, w->experts }, .min = 0, .max = assignments < INT32_MAX ? assignments : INT32_MAX,
                      .for_training = true, .since = 3, .module = &both, .get = ring_get, .set = ring_set };
    v->visit(v, &steps);
    v->visit(v, &ring);
    steps.since = ring.since = 0, steps.until = ring.until = 2; /* the same arrays had these names up to version 2 */
    snprintf(steps.name, sizeof steps.name, "/state/roll/steps");
    snprintf(ring.name, sizeof ring.name, "/state/roll/ring");
    v->visit(v, &steps);
    v->visit(v, &ring);
    visit_silence(w, step, v);
    visit_interval(s, step, assignments, domains, v);
    mu_load_window_free(&other);
}
