/* stats.c - routing statistics: how many tokens each expert was assigned, in all and of each domain. Counted on the device,
 * in integers: any order of micro-batches and ranks gives the same sums.
 *
 * The device's buffer, words of 8 bytes. The host reads the first four at the end of a step, in one piece:
 *     total      [layers, experts]            of the global batch, over all ranks; the loads of mu_optimizer_step
 *     by_domain  [layers, experts, domains]   the same by domain, of this rank
 *     kept       1                            this rank's assignments within the capacity limit
 *     values     [n_values], F64              for the caller's use
 *     micro      [layers, experts]            of the current micro-batch, over all ranks
 *     counted    [layers, experts]            of the global batch, from the counting pass */
#include "moe/moe.h"

#include <stdlib.h>
#include <string.h>

static int64_t cells(const mu_routing_stats *s) { return (int64_t)s->window.layers * s->window.experts; }
static int64_t domain_cells(const mu_routing_stats *s) { return cells(s) * s->domains; }

static mu_mat words(const mu_routing_stats *s, mu_dtype dtype, int64_t first) {
    return mu_mat_values((mu_mat){ s->memory->region.base, dtype, 1 }, first);
}
static int64_t kept_word(const mu_routing_stats *s) { return cells(s) + domain_cells(s); }
static int64_t micro_word(const mu_routing_stats *s) { return kept_word(s) + 1 + s->n_values; }

mu_mat mu_routing_stats_total(const mu_routing_stats *s) { return words(s, MU_DTYPE_I64, 0); }
mu_mat mu_routing_stats_values(const mu_routing_stats *s) { return words(s, MU_DTYPE_F64, kept_word(s) + 1); }
mu_mat mu_routing_stats_micro(const mu_routing_stats *s, int layer) {
    return words(s, MU_DTYPE_I64, micro_word(s) + layer * s->window.experts);
}
mu_mat mu_routing_stats_counted(const mu_routing_stats *s, int layer) {
    return mu_mat_values(mu_routing_stats_micro(s, layer), cells(s));
}

mu_routing_stats *mu_routing_stats_new(mu_device *dev, mu_comm *batch, int layers, int experts, int domains, int64_t window,
                                       int64_t n_values) {
    MU_CHECK(dev && batch, "routing statistics: device or batch communicator is NULL");
    MU_CHECK(domains >= 1 && n_values >= 0, "routing statistics: %d domains and %lld values; must be at least 1 and 0", domains, (long long)n_values);
    mu_routing_stats *s = mu_alloc(1, sizeof *s);
    *s = (mu_routing_stats){ .dev = dev, .batch = batch, .domains = domains, .n_values = n_values };
    mu_load_window_init(&s->window, layers, experts, window ? window : MU_LOAD_WINDOW_DEFAULT);
    mu_expert_health_init(&s->health, layers, experts);
    size_t bytes = (size_t)(micro_word(s) + 2 * cells(s)) * sizeof(int64_t);
    s->memory = mu_memory_new(dev, bytes);
    mu_memory_commit(s->memory, bytes);
    s->host = mu_alloc((size_t)micro_word(s), sizeof *s->host);
    s->counts = s->host;
    s->by_domain = s->host + cells(s);
    s->values = s->host + kept_word(s) + 1;
    mu_routing_stats_begin(s);
    return s;
}

void mu_routing_stats_free(mu_routing_stats *s) {
    if (!s) return;
    mu_load_window_free(&s->window);
    mu_expert_health_free(&s->health);
    mu_memory_free(s->memory);
    free(s->host);
    free(s);
}

void mu_routing_stats_start_at(mu_routing_stats *s, int64_t step) {
    MU_CHECK(step >= 0 && s->window.steps == 0, "statistics of %lld steps cannot start at %lld", (long long)s->window.steps, (long long)step);
    s->window.steps = step;
}

void mu_routing_stats_begin(mu_routing_stats *s) {
    s->dev->k->fill(s->dev, micro_word(s) + 2 * cells(s), 0.0, words(s, MU_DTYPE_F64, 0)); /* zero in both types */
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

void mu_routing_stats_add(mu_routing_stats *s, mu_tape *tp, const mu_context *cx, const mu_routing *routings) {
    if (!cells(s)) return;
    mu_mat kept = words(s, MU_DTYPE_I64, kept_word(s));
    count_micro(s, routings, domains_of(s, tp, cx));
    sum_over_ranks(s, mu_routing_stats_micro(s, 0));
    add(s, mu_routing_stats_total(s));
    for (int layer = 0; layer < s->window.layers; layer++)
        if (routings[layer].plan && routings[layer].plan->capacity) mu_routing_add_kept(tp, &routings[layer], kept);
}

void mu_routing_stats_count(mu_routing_stats *s, const mu_routing *routings, bool last) {
    mu_mat counted = mu_routing_stats_counted(s, 0);
    count_micro(s, routings, NULL);
    add(s, counted);
    if (last) sum_over_ranks(s, counted);
}

void mu_routing_stats_read(mu_routing_stats *s) {
    mu_device_read(s->dev, s->host, s->memory->region.base, sizeof(int64_t) * (size_t)micro_word(s));
    int64_t *sums = s->host + cells(s), n = domain_cells(s) + 1; /* by_domain, and `kept` after it */
    if (s->batch->size > 1 && cells(s)) mu_all_reduce(s->batch, MU_REDUCE_SUM, MU_DTYPE_I64, sums, n);
    s->kept = s->host[kept_word(s)];
}

/* ------------------------------------------------------------------ state of a checkpoint */

/* from: has the checkpoint's length; its ring is saved and loaded. to: the run's window. The same one if the lengths
 * agree. */
typedef struct { mu_load_window *from, *to; } windows;

/* After loading the ring: derives and checks the rest, and copies it to the run's window. */
static mu_status ring_set(const mu_state *st, const void *host, mu_error *e) {
    windows *w = st->module;
    (void)host;
    w->from->steps = w->to->steps;
    mu_load_window_derive(w->from);
    mu_status status = mu_load_window_check(w->from, st->max, e);
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
    mu_state gap = { .name = "/state/window/mean_gap", .type = MU_STORE_F64, .n_dims = 2, .shape = { w->layers, w->experts },
                     .data = w->mean_gap, .low = 0, .high = (double)step, .for_training = true, .since = 4, .module = w,
                     .set = silence_set };
    v->visit(v, &last);
    v->visit(v, &gap);
}

void mu_routing_stats_state(mu_routing_stats *s, int64_t step, int64_t assignments, int64_t length, mu_state_visitor *v) {
    mu_load_window *w = &s->window, other = { 0 };
    windows both = { w, w };
    if (length != w->length) mu_load_window_init(both.from = &other, w->layers, w->experts, length);
    mu_state steps = { .name = "/state/window/steps", .type = MU_STORE_I64, .n_dims = 1, .shape = { 1 }, .data = &w->steps,
                       .min = step, .max = step, .for_training = true, .since = 3 };
    mu_state ring = { .name = "/state/window/counts", .type = MU_STORE_I64, .n_dims = 3,
                      .shape = { length, w->layers, w->experts }, .data = both.from->ring, .min = 0, .max = assignments,
                      .for_training = true, .since = 3, .module = &both, .set = ring_set };
    v->visit(v, &steps);
    v->visit(v, &ring);
    steps.since = ring.since = 0, steps.until = ring.until = 2; /* the same arrays had these names up to version 2 */
    snprintf(steps.name, sizeof steps.name, "/state/roll/steps");
    snprintf(ring.name, sizeof ring.name, "/state/roll/ring");
    v->visit(v, &steps);
    v->visit(v, &ring);
    visit_silence(w, step, v);
    mu_load_window_free(&other);
}

void mu_routing_stats_end(mu_routing_stats *s) { mu_load_window_add(&s->window, s->counts); }
