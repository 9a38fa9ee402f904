/* nonfinite.c - finds the origin of the first non-finite value by computing the step again. */
#include "train/training.h"

#include <stdlib.h>

/* First layer with a non-finite output in this rank's forward pass; num_layers + 1: none. */
static int replay(mu_training *t) {
    int worst = (int)t->cfg.model.num_layers + 1;
    mu_tape_record(t->tape, false);
    for (int64_t m = 0; m < t->batches.shape.micro_batches; m++) {
        mu_micro_batch b = mu_batches_read(&t->batches, m);
        int found = mu_model_find_nonfinite(t->state.model, t->tape, &b.cx, b.tokens, t->loss->routings);
        if (found < worst) worst = found;
        mu_tape_reset(t->tape);
    }
    mu_tape_record(t->tape, true);
    return worst;
}

/* The unit nearest to the loss whose gradient from this rank's own sequences is not finite, or NULL: backward once
 * more, without the sum over ranks that spreads it everywhere. */
static const mu_unit *replay_backward(mu_training *t) {
    mu_training_gradients(t, false, NULL);
    mu_params_round_grads(t->state.model->params);
    return mu_grads_nonfinite(t->state.opt);
}

/* The first rank that has the largest value. Collective. */
static int32_t rank_of_largest(mu_comm *batch, int64_t mine) {
    int64_t largest = mine;
    mu_all_reduce(batch, MU_REDUCE_MAX, MU_DTYPE_I64, &largest, 1);
    int32_t rank = mine == largest ? batch->rank : batch->size;
    mu_all_reduce(batch, MU_REDUCE_MIN, MU_DTYPE_I32, &rank, 1);
    return rank;
}

char *mu_training_explain_nonfinite(mu_training *t) {
    mu_comm *batch = t->state.mesh->batch;
    int layers = (int)t->cfg.model.num_layers, mine = replay(t);
    int32_t first = mine, rank = rank_of_largest(batch, -mine);
    char where[200] = "head: the last norm's output";
    mu_all_reduce(batch, MU_REDUCE_MIN, MU_DTYPE_I32, &first, 1);
    if (first < 0) snprintf(where, sizeof where, "embedding: its output");
    else if (first < layers) snprintf(where, sizeof where, "layer %d: its output", first);
    else if (first > layers) {
        const mu_unit *bad = replay_backward(t);
        rank = rank_of_largest(batch, bad ? bad->global_index : -1);
        int layer = bad ? bad->param->desc.layer : -1;
        snprintf(where, sizeof where, "%s", bad ? "" : "head: the loss, or a gradient summed over the ranks,");
        if (bad && layer < 0) snprintf(where, sizeof where, "the gradient of %s", bad->name);
        if (bad && layer >= 0)
            snprintf(where, sizeof where, "layer %d: the gradient of %s", layer, bad->name);
        mu_broadcast(batch, rank, where, sizeof where);
    }
    int64_t *steps;
    bool saved = mu_checkpoint_list(t->cfg.run.dir, &steps) > 0;
    free(steps);
    return mu_format(
        "step %lld, rank %d, %s is not finite%s; nothing was written. Try a smaller optim.lr, a longer "
        "optim.warmup_steps, or gradient clipping (optim.grad_clip); %s",
        (long long)t->state.step + 1, rank, where,
        t->cfg.train.reproducible ? " (or exceeds 6.7e7, the limit of train.reproducible)" : "",
        saved ? "the last checkpoint is intact" : "no checkpoint was written yet");
}
