/* loop.c - the training loop: one step, and all of them.
 *
 * Every loss term is divided by the tokens of the global batch before backward: gradients of micro-batches and
 * ranks are then simply summed. */
#include "train/training.h"

#include <math.h>
#include <stdlib.h>

/* Has some rank received a stop signal? Read between micro-batches, so that a long step can be abandoned. Collective. */
static bool interrupted(const mu_training *t, int64_t m, const volatile sig_atomic_t *stop) {
    int32_t asked = stop && *stop;
    if (m == 0) return false;
    mu_all_reduce(t->state.mesh->batch, MU_REDUCE_MAX, MU_DTYPE_I32, &asked, 1);
    return asked;
}

bool mu_training_gradients(mu_training *t, bool reduce, const volatile sig_atomic_t *stop) {
    int64_t n = t->batches.shape.micro_batches;
    mu_params_zero_grad(t->state.model->params);
    mu_loss_begin(t->loss);
    for (int64_t m = 0; m < n && mu_loss_counts_first(t->loss); m++) {
        if (interrupted(t, m, stop)) return false;
        mu_micro_batch b = mu_batches_read(&t->batches, m);
        mu_loss_count(t->loss, &b.cx, b.tokens);
        mu_tape_reset(t->tape);
    }
    for (int64_t m = 0; m < n; m++) {
        if (interrupted(t, m, stop)) return false;
        mu_micro_batch b = mu_batches_read(&t->batches, m);
        mu_tensor *loss = mu_loss_forward(t->loss, &b.cx, b.tokens, b.targets);
        mu_step_routing_add(t, m);
        if (reduce && m == n - 1) mu_backward_last(t->state.opt, t->tape, loss); /* reduction overlaps with it */
        else mu_backward(t->tape, loss);
        mu_tape_reset(t->tape);
    }
    return true;
}

/* A frozen expert's row of the router, and with protect.dormant_lr 0 a dormant one's: without gradient and momentum the update leaves it as it is.
 * (Its weights are units of their own.) */
static void hold_router_rows(const mu_training *t) {
    const mu_train_state *s = &t->state;
    const mu_expert_health *h = &s->stats->health;
    for (int64_t i = 0; i < (int64_t)h->layers * h->experts; i++) {
        if (!mu_protection_freezes(&s->model->protection, h, i, t->cfg.protect.dormant_lr)) continue;
        const mu_moe *m = &s->model->blocks[s->model->moe_layers[i / h->experts]].moe;
        const mu_unit *u = m->router_ED->units;
        mu_device *dev = m->router_ED->tensor.dev;
        int64_t row = i % h->experts * m->D;
        dev->k->fill(dev, m->D, 0.0, mu_mat_values((mu_mat){ mu_unit_grad(u), dev->master, 1 }, row));
        for (int slot = 0; slot < s->opt->rule->n_slots; slot++) {
            void *values = mu_optimizer_slot(s->opt, u, slot);
            if (values) dev->k->fill(dev, m->D, 0.0, mu_mat_values((mu_mat){ values, dev->master, 1 }, row));
        }
    }
}

/* Only while a domain of the anchor is absent: afterwards it would keep the model from learning it again. */
static bool is_anchored(const mu_train_state *s) {
    bool held = false;
    for (int d = 0; s->anchor && d < s->anchor->domains->n; d++) held |= s->anchor->holds[d];
    return held;
}

/* Reduces and clips the gradients, and updates the weights. */
static void update(mu_training *t, double lr) {
    mu_optimizer *opt = t->state.opt;
    int64_t n;
    mu_mat terms = mu_loss_terms(t->loss, &n);
    mu_activity_set("reducing gradients", -1, NULL);
    mu_grads_reduce(opt);
    hold_router_rows(t);
    mu_activity_set("clipping", -1, NULL);
    mu_grad_clip(opt, t->state.mesh->batch, t->cfg.optim.grad_clip, n, terms);
    if (is_anchored(&t->state)) {
        double start = mu_time();
        mu_anchor_pull(t->state.anchor, t->state.mesh->batch, t->cfg.protect.anchor, t->cfg.optim.grad_clip, mu_loss_loads(t->loss));
        hold_router_rows(t);
        t->protect_seconds += mu_time() - start;
    }
    mu_activity_set("optimizer", -1, NULL);
    mu_optimizer_step(opt, lr, mu_loss_loads(t->loss));
}

mu_step_result mu_training_step(mu_training *t, const volatile sig_atomic_t *stop) {
    mu_train_state *s = &t->state;
    double start = mu_time(), comm_start = mu_mesh_seconds(s->mesh);
    mu_step_result r = { .lr = mu_learning_rate(&t->cfg.optim, s->step + 1, t->cfg.train.steps) };
    mu_activity_step(s->step + 1);
    mu_batches_next(&t->batches, s->step);
    t->loss->stats->details_wanted = mu_is_logged(&t->cfg, s->step + 1);
    if (mu_fault("step", s->mesh->world->rank)) mu_fault_nan(s->model);
    if (!mu_training_gradients(t, true, stop)) {
        mu_batches_put_back(&t->batches);
        r.stop = r.interrupted = true;
        return r;
    }
    update(t, r.lr);
    mu_activity_set("results of the step", -1, NULL);
    mu_loss_values v = r.values = mu_loss_read(t->loss, mu_grad_norm_on_device(s->opt), stop && *stop);
    r.stop = v.stop, r.finite = isfinite(v.loss) && isfinite(v.grad_norm);
    r.absent = mu_batches_absent(&t->batches, &r.replayed);
    if (r.finite) {
        s->step++;
        mu_loss_end(t->loss, (double)s->step <= 0.97 * (double)t->cfg.train.steps); /* selection biases are fixed at the end */
    }
    r.seconds = mu_time() - start, r.comm_seconds = mu_mesh_seconds(s->mesh) - comm_start;
    return r;
}

/* After a stop signal: the checkpoint first, then an evaluation that is due, in the remaining time. */
static mu_status save_and_stop(mu_training *t, mu_recorder *rec, bool evaluation_due, mu_error *e) {
    mu_status status = mu_recorder_save(rec, e);
    if (status == MU_STATUS_OK && evaluation_due) status = mu_recorder_evaluate(rec, e);
    if (status != MU_STATUS_OK) return status;
    return mu_error_set(e, MU_STATUS_REQUEUE, "stop signal received; checkpoint saved at step %lld. Run the same command to"
                        " resume", (long long)t->state.step);
}

static mu_status not_finite(mu_training *t, mu_error *e) {
    char *why = mu_training_explain_nonfinite(t);
    mu_error_set(e, MU_STATUS_NUMERIC, "%s", why);
    free(why);
    return MU_STATUS_NUMERIC;
}

mu_status mu_training_loop(mu_training *t, mu_recorder *rec, const volatile sig_atomic_t *stop, mu_error *e) {
    const int64_t *step = &t->state.step, last = t->cfg.train.steps;
    mu_status status = MU_STATUS_OK;
    mu_training_protect(t, NULL);
    while (*step < last && status == MU_STATUS_OK) {
        if ((status = mu_training_keep_absent(t, rec, e)) != MU_STATUS_OK) return status;
        if ((status = mu_step_routing_begin(t, e)) != MU_STATUS_OK) return status;
        mu_step_result r = mu_training_step(t, stop);
        if (r.interrupted) return save_and_stop(t, rec, false, e);
        if (!r.finite) return not_finite(t, e);
        status = mu_step_routing_end(t, e);
        if (status == MU_STATUS_OK) status = mu_recorder_log(rec, &r, e);
        bool evaluate = mu_due(t->cfg.train.eval_every, *step, last), save = mu_due(t->cfg.checkpoint.every, *step, last);
        if (status == MU_STATUS_OK && mu_due(t->cfg.stats.every, *step, last)) status = mu_recorder_statistics(rec, e);
        if (status == MU_STATUS_OK && r.stop && *step < last) return save_and_stop(t, rec, evaluate, e);
        if (status == MU_STATUS_OK && evaluate) status = mu_recorder_evaluate(rec, e);
        if (status == MU_STATUS_OK && (save || *step == last)) status = mu_recorder_save(rec, e);
    }
    return status;
}
