/* tape.c - the linear tape: ops run when recorded; backward is one loop from the end. */
#include "autograd/internal.h"

#include <stdlib.h>
#include <string.h>

static const size_t HOST_RESERVE = (size_t)1 << 34; /* address space for nodes and tensors */

mu_tape *mu_tape_new(mu_device *dev) {
    MU_CHECK(dev, "a tape needs a device");
    mu_tape *tp = mu_alloc(1, sizeof *tp);
    tp->dev = dev;
    tp->recording = true;
    tp->layer = -1;
    mu_pool_init(&tp->pool, dev);
    mu_arena_init(&tp->host, HOST_RESERVE);
    return tp;
}

void mu_tape_free(mu_tape *tp) {
    if (!tp) return;
    mu_pool_free(&tp->pool);
    mu_arena_free(&tp->host);
    free(tp->nodes.list);
    free(tp);
}

void mu_tape_reset(mu_tape *tp) {
    tp->part = NULL;
    tp->layer = -1;
    tp->nodes.n = 0;
    tp->segment = tp->n_segments = 0;
    mu_pool_reset(&tp->pool);
    mu_arena_release(&tp->host, 0);
}

void mu_tape_record(mu_tape *tp, bool on) { tp->recording = on; }
bool mu_tape_recording(const mu_tape *tp) { return tp->recording; }
mu_device *mu_tape_device(const mu_tape *tp) { return tp->dev; }
int64_t mu_tape_peak(const mu_tape *tp) { return (int64_t)tp->pool.peak; }

void *mu_tape_alloc(mu_tape *tp, size_t bytes) { return memset(mu_arena_alloc(&tp->host, bytes), 0, bytes); }

void mu_tape_set_reduction_unit(mu_tape *tp, int64_t rows) {
    MU_CHECK(rows >= 0, "a reduction unit cannot have %lld rows", (long long)rows);
    tp->unit_rows = rows;
}

int64_t mu_tape_reduction_units(const mu_tape *tp, int64_t rows) {
    if (!tp->unit_rows) return 1;
    MU_CHECK(rows % tp->unit_rows == 0, "%lld rows are not a multiple of the reduction unit, %lld rows", (long long)rows,
             (long long)tp->unit_rows);
    return rows / tp->unit_rows;
}

mu_tensor *mu_tape_unit_bounds(mu_tape *tp, int64_t rows) {
    int64_t units = mu_tape_reduction_units(tp, rows);
    int64_t *bounds = mu_tape_alloc(tp, sizeof *bounds * (size_t)(units + 1));
    for (int64_t i = 1; i <= units; i++) bounds[i] = rows / units * i;
    return mu_tensor_ints(tp, MU_DTYPE_I64, units + 1, bounds);
}

static size_t bytes_of(const mu_tensor *t) { return (size_t)mu_count(t) * mu_dtype_size(t->dtype); }

/* Parameters are in slabs and views in other tensors; only the tape's own memory can be freed here. */
static bool in_pool(const mu_tape *tp, const void *data) {
    const mu_region *r = &tp->pool.memory->region;
    return (const char *)data >= r->base && (const char *)data < r->base + r->reserved;
}

void mu_tape_take_data(mu_tape *tp, mu_tensor *t) { t->data = mu_pool_take(&tp->pool, bytes_of(t)); }

void mu_tape_give_data(mu_tape *tp, mu_tensor *t) {
    if (!in_pool(tp, t->data)) return;
    mu_pool_give(&tp->pool, t->data, bytes_of(t));
    t->data = NULL;
}

void mu_tape_give_if_unread(mu_tape *tp, mu_tensor *t) {
    if (t->released && t->readers == 0) mu_tape_give_data(tp, t);
}

void mu_release(mu_tape *tp, mu_tensor *t) {
    if (!t) return;
    t->released = true;
    mu_tape_give_if_unread(tp, t);
}

mu_part_time *mu_tape_time(mu_tape *tp, const char *part) {
    for (int i = 0; i < tp->n_times; i++)
        if (tp->times[i].name == part || !strcmp(tp->times[i].name, part)) return &tp->times[i];
    MU_CHECK(tp->n_times < (int)(sizeof tp->times / sizeof *tp->times), "too many profile parts, at \"%s\"",
             part);
    tp->times[tp->n_times] = (mu_part_time){ .name = part };
    return &tp->times[tp->n_times++];
}

void mu_tape_part(mu_tape *tp, const char *part) {
    double now = mu_time();
    if (tp->part) mu_tape_time(tp, tp->part)->forward += now - tp->part_start;
    tp->part = part, tp->part_start = now;
}

void mu_tape_layer(mu_tape *tp, int layer) { tp->layer = layer; }

int mu_tape_profile(const mu_tape *tp, const mu_part_time **times) {
    *times = tp->times;
    return tp->n_times;
}

void mu_tape_profile_reset(mu_tape *tp) { tp->n_times = 0; }

/* Must in[i] be kept for n? Yes if its backward reads it, or if recomputing n reads it and cannot recompute it. */
static bool keeps(const mu_node *n, int i) {
    const mu_tensor *in = n->in[i];
    return in && (n->op->keeps_in >> i & 1 || (n->segment && in->segment != n->segment));
}

/* Adds n to the current segment. Views of activations are not allowed: their memory would be dropped and moved. */
static void join_segment(mu_tape *tp, mu_node *n) {
    n->segment = tp->segment;
    for (int i = 0; i < MU_NODE_INPUTS; i++)
        MU_CHECK(!n->in[i] || !n->in[i]->view || !in_pool(tp, n->in[i]->data),
                 "%s: input %d is a view of an activation, which is not allowed in a recomputed segment", n->op->name, i);
    for (int i = 0; i < MU_NODE_OUTPUTS; i++)
        if (n->out[i] && !n->op->once) n->out[i]->segment = tp->segment;
}

static void remember(mu_tape *tp, const mu_node *node) {
    if (tp->nodes.n == tp->nodes.capacity) {
        tp->nodes.capacity = tp->nodes.capacity ? 2 * tp->nodes.capacity : 256;
        tp->nodes.list = mu_realloc(tp->nodes.list, (size_t)tp->nodes.capacity, sizeof *tp->nodes.list);
    }
    mu_node *kept = mu_tape_alloc(tp, sizeof *kept);
    *kept = *node;
    if (tp->segment) join_segment(tp, kept);
    tp->nodes.list[tp->nodes.n++] = kept;
    for (int i = 0; i < MU_NODE_INPUTS; i++)
        if (keeps(kept, i)) node->in[i]->readers++;
    for (int i = 0; i < MU_NODE_OUTPUTS; i++)
        if (node->out[i] && node->op->keeps_out >> i & 1) node->out[i]->readers++;
}

void mu_tape_check_inputs(const mu_tape *tp, const mu_node *n) {
    for (int i = 0; i < MU_NODE_INPUTS; i++) {
        const mu_tensor *x = n->in[i];
        if (!x) continue;
        MU_CHECK(x->dev == tp->dev, "%s: input %d is on another device (%s) than the tape (%s)", n->op->name, i, x->dev->name,
                 tp->dev->name);
        MU_CHECK(x->data, "%s: input %d has no data: it was released, or mu_params_alloc was not called", n->op->name, i);
    }
}

/* Integers never have a gradient. */
static bool can_have_gradient(const mu_tensor *t) { return MU_FLOATS >> t->dtype & 1; }

mu_tensor *mu_apply(mu_tape *tp, mu_node node) {
    mu_tape_check_inputs(tp, &node);
    bool needs_grad = false;
    if (tp->recording && node.op->backward)
        for (int i = 0; i < MU_NODE_INPUTS; i++) needs_grad |= node.in[i] && node.in[i]->needs_grad;
    for (int i = 0; i < MU_NODE_OUTPUTS; i++)
        if (node.out[i]) node.out[i]->needs_grad = needs_grad && !(node.op->saved >> i & 1) && can_have_gradient(node.out[i]);
    node.part = tp->part, node.layer = tp->layer;
    mu_activity_set("forward", node.layer, node.op->name);
    node.op->forward(tp, &node);
    if (needs_grad) remember(tp, &node);
    for (int i = 0; i < MU_NODE_OUTPUTS; i++)
        if (node.op->saved >> i & 1) mu_release(tp, node.out[i]);
    return node.out[0];
}

/* After a node's backward nothing reads its outputs any more: every reader was recorded later. */
static void retire(mu_tape *tp, mu_node *n) {
    for (int i = 0; i < MU_NODE_INPUTS; i++)
        if (keeps(n, i)) {
            n->in[i]->readers--;
            mu_tape_give_if_unread(tp, n->in[i]);
        }
    for (int i = 0; i < MU_NODE_OUTPUTS; i++) {
        mu_tensor *out = n->out[i];
        if (!out) continue;
        if (out->grad) mu_pool_give(&tp->pool, out->grad, bytes_of(out));
        out->grad = NULL;
        if (n->op->keeps_out >> i & 1) out->readers--;
        mu_tape_give_if_unread(tp, out);
    }
}

static bool has_gradient(const mu_node *n) {
    for (int i = 0; i < MU_NODE_OUTPUTS; i++)
        if (n->out[i] && n->out[i]->grad) return true;
    return false;
}

/* Input i of the op if it is a parameter, else NULL. */
static mu_tensor *parameter(const mu_node *n, int i) { return n->in[i] && n->in[i]->master ? n->in[i] : NULL; }

static void count_uses(const mu_tape *tp) {
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < tp->nodes.n; i++)
            for (int k = 0; k < MU_NODE_INPUTS; k++) {
                mu_tensor *t = parameter(tp->nodes.list[i], k);
                if (t) t->uses = pass ? t->uses + 1 : 0;
            }
}

/* Reports the gradients that are complete after the backward of n. A mu_param begins with its tensor. */
static void report(const mu_node *n, const mu_backward_events *events) {
    for (int k = 0; k < MU_NODE_INPUTS; k++) {
        mu_tensor *t = parameter(n, k);
        if (t && --t->uses == 0) events->complete(events->arg, (mu_param *)t);
    }
    events->op_done(events->arg);
}

void mu_backward(mu_tape *tp, mu_tensor *loss) { mu_backward_with(tp, loss, NULL); }

void mu_backward_with(mu_tape *tp, mu_tensor *loss, const mu_backward_events *events) {
    mu_tensor_check(loss, "backward: loss", 0, MU_FLOATS);
    MU_CHECK(loss->dtype == MU_DTYPE_F64 && (tp->unit_rows || mu_count(loss) == 1),
             "backward: the loss must be one f64, or one per reduction unit");
    MU_CHECK(loss->needs_grad, "backward: the loss depends on no parameter, or the tape was not recording");
    MU_CHECK(!tp->segment, "backward: mu_tape_recompute_end was not called");
    mu_tape_part(tp, NULL);
    tp->dev->k->fill(tp->dev, mu_count(loss), 1.0, mu_grad(tp, loss));
    if (events) count_uses(tp);
    int made = 0; /* the segment that was recomputed last */
    for (int i = tp->nodes.n - 1; i >= 0; i--) {
        mu_node *n = tp->nodes.list[i];
        if (has_gradient(n)) {
            if (n->segment && n->segment != made) mu_tape_recompute(tp, i);
            made = n->segment;
            double start = mu_time();
            mu_activity_set("backward", n->layer, n->op->name);
            n->op->backward(tp, n);
            if (n->part) mu_tape_time(tp, n->part)->backward += mu_time() - start;
        }
        retire(tp, n);
        if (events) report(n, events);
    }
    tp->nodes.n = 0;
}
