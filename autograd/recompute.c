/* recompute.c - activation recomputation (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016): the activations of a
 * segment are dropped when it ends, and recomputed just before backward reaches it.
 *
 * A tensor belongs to the segment (tensor.segment) if running one of the segment's nodes again produces it. All other inputs of
 * these nodes are kept, like the operands of backward (tape.c, `keeps`). So the outputs of an op with `once` do not
 * belong to the segment: they are kept. */
#include "autograd/internal.h"

void mu_tape_recompute_begin(mu_tape *tp) {
    MU_CHECK(!tp->segment, "segments do not nest");
    if (tp->recording) tp->segment = ++tp->n_segments, tp->segment_start = tp->nodes.n;
}

void mu_tape_recompute_end(mu_tape *tp) {
    MU_CHECK(tp->segment || !tp->recording, "called without mu_tape_recompute_begin");
    if (!tp->segment) return;
    for (int i = tp->segment_start; i < tp->nodes.n; i++)
        for (int k = 0; k < MU_NODE_OUTPUTS; k++) {
            mu_tensor *out = tp->nodes.list[i]->out[k];
            if (out && out->segment == tp->segment && out->released) mu_tape_give_data(tp, out);
        }
    tp->segment = 0;
}

static void want(mu_tensor *t, int segment) {
    if (t->segment == segment && !t->data) t->wanted = true;
}

static bool is_wanted(const mu_node *n) {
    for (int k = 0; k < MU_NODE_OUTPUTS; k++)
        if (n->out[k] && n->out[k]->wanted) return true;
    return false;
}

/* Marks the tensors that backward of n reads. If n itself must run again, marks all of its inputs, and counts n as
 * their reader until it has run. Nodes that read a tensor come after the node that makes it, so one pass from the end
 * finds all. */
static void find_wanted(const mu_node *n) {
    for (int k = 0; k < MU_NODE_OUTPUTS; k++)
        if (n->out[k] && n->op->keeps_out >> k & 1) want(n->out[k], n->segment);
    bool again = is_wanted(n);
    for (int k = 0; k < MU_NODE_INPUTS; k++) {
        mu_tensor *in = n->in[k];
        if (!in) continue;
        if (again || n->op->keeps_in >> k & 1) want(in, n->segment);
        if (again) in->readers++;
    }
}

static void run_again(mu_tape *tp, mu_node *n) {
    double start = mu_time();
    for (int k = 0; k < MU_NODE_OUTPUTS; k++)
        if (n->out[k] && !n->out[k]->data) mu_tape_take_data(tp, n->out[k]);
    mu_activity_set("recomputation", n->layer, n->op->name);
    mu_tape_check_inputs(tp, n);
    n->op->forward(tp, n);
    for (int k = 0; k < MU_NODE_INPUTS; k++)
        if (n->in[k]) {
            n->in[k]->readers--;
            mu_tape_give_if_unread(tp, n->in[k]);
        }
    for (int k = 0; k < MU_NODE_OUTPUTS; k++)
        if (n->out[k]) {
            n->out[k]->wanted = false;
            mu_tape_give_if_unread(tp, n->out[k]);
        }
    if (n->part) mu_tape_time(tp, n->part)->backward += mu_time() - start;
}

void mu_tape_recompute(mu_tape *tp, int last) {
    mu_node **list = tp->nodes.list;
    int segment = list[last]->segment, first = last;
    for (; first >= 0 && list[first]->segment == segment; first--) find_wanted(list[first]);
    for (int i = first + 1; i <= last; i++)
        if (is_wanted(list[i])) run_again(tp, list[i]);
}
