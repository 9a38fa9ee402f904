/* reduce.c - gradient reduction over the ranks that hold the same units.
 *
 * A group's gradients are in one slab in order of declaration, and backward completes them roughly from its end. The complete
 * part, from some parameter to the end of the slab, can be reduced while the rest is still being computed. */
#include "optim/internal.h"

#include <string.h>

/* Tells the reduction which part of the slab is complete by now: from some parameter to the end. */
static void advance(mu_shards *s, int group) {
    mu_params *ps = s->params;
    int64_t from = -1;
    int i = s->waits_for[group];
    for (; i >= 0; i--) {
        mu_param *p = ps->params[i];
        if (p->desc.group != ps->groups[group]) continue;
        if (!s->complete[i]) break;
        mu_param_finish_grad(p);
        from = p->slab_offset;
    }
    s->waits_for[group] = i;
    if (from >= 0) mu_reduction_final(s->early[group], from);
}

static void on_complete(void *arg, mu_param *p) {
    mu_shards *s = arg;
    s->complete[p->index] = true;
    for (int i = 0; i < s->params->n_groups; i++)
        if (s->begun[i] && s->waits_for[i] == p->index) advance(s, i);
}

static void on_op(void *arg) {
    mu_shards *s = arg;
    for (int i = 0; i < s->params->n_groups; i++)
        if (s->begun[i]) mu_reduction_turn(s->early[i]);
}

/* The last declared parameter of a group, or -1. */
static int last_of(const mu_params *ps, const mu_group *g) {
    int i = ps->n_params - 1;
    while (i >= 0 && ps->params[i]->desc.group != g) i--;
    return i;
}

static bool is_early(const mu_params *ps, const mu_group *g) {
    return comm_of(g) && comm_of(g)->overlap && !g->sums && mu_reduction_possible(comm_of(g), ps->dev);
}

/* Starts the reductions that overlap with backward. Returns whether there are any. */
static bool begin(mu_shards *s) {
    mu_params *ps = s->params;
    bool any = false;
    memset(s->complete, 0, (size_t)ps->n_params * sizeof *s->complete);
    for (int i = 0; i < ps->n_groups; i++) {
        mu_group *g = ps->groups[i];
        s->begun[i] = is_early(ps, g);
        if (!s->begun[i]) continue;
        if (!s->early[i]) s->early[i] = mu_reduction_new(comm_of(g), ps->dev->master, g->grads->region.base, s->ends[i]);
        s->waits_for[i] = last_of(ps, g);
        mu_reduction_begin(s->early[i]);
        any = true;
    }
    return any;
}

void mu_backward_last(mu_optimizer *o, mu_tape *tp, mu_tensor *loss) {
    mu_shards *s = &o->shards;
    for (int i = 0; i < o->params->n_groups; i++)
        MU_CHECK(!s->begun[i], "mu_backward_last was called twice without mu_grads_reduce in between");
    bool any = begin(s);
    mu_backward_with(tp, loss, any ? &(mu_backward_events){ on_complete, on_op, s } : NULL);
}

/* An all-reduce of the exact sums, which are integers. */
static void reduce_sums(const mu_params *ps, mu_comm *c, const mu_group *g) {
    if (c->size == 1 || ps->dev->shape_only) return;
    size_t bytes = (size_t)g->sums_words * sizeof(int64_t);
    void *host = mu_device_stage_begin(ps->dev, g->sums->region.base, bytes, true);
    mu_all_reduce(c, MU_REDUCE_SUM, MU_DTYPE_I64, host, g->sums_words);
    mu_device_stage_end(ps->dev, g->sums->region.base, bytes, true);
}

void mu_grads_reduce(mu_optimizer *o) {
    mu_params *ps = o->params;
    mu_shards *s = &o->shards;
    mu_params_finish_grads(ps);
    for (int i = 0; i < ps->n_groups; i++) {
        mu_group *g = ps->groups[i];
        mu_comm *c = comm_of(g);
        if (s->begun[i]) mu_reduction_finish(s->early[i]);
        else if (c && g->sums) reduce_sums(ps, c, g);
        else if (c) mu_reduce_shards(c, ps->dev, ps->dev->master, g->grads->region.base, s->ends[i]);
        s->begun[i] = false;
    }
    mu_params_round_grads(ps);
}
