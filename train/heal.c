/* heal.c - trains a restored expert alone. The run in which that happens is thrown away: only the expert's weights remain. */
#include "train/surgery.h"
#include "train/training.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double RETENTION = 0.9, COMMON = 0.005, HOLD = 0.1;

/* ------------------------------------------------------------------ figures */

mu_heal_figures mu_heal_measure(const mu_evaluation *ev, const mu_healing *h, int64_t sequences) {
    int n = ev->texts->corpus.n_domains;
    mu_domain_loss *results = mu_alloc((size_t)n, sizeof *results);
    mu_evaluate(ev, sequences, results);
    double sum = 0, shares = 0;
    for (int d = 0; d < n; d++) {
        double share = mu_loader_share(ev->texts->loader, d);
        if (d == h->domain || !results[d].tokens) continue;
        sum += share * results[d].ce, shares += share;
    }
    mu_heal_figures f = { .own = results[h->domain].ce, .others = shares > 0 ? sum / shares : NAN };
    f.retention = (results[h->domain].unigram - f.own) / (results[h->domain].unigram - h->best);
    free(results);
    return f;
}

bool mu_heal_accepts(const mu_healing *h) {
    bool common = isnan(h->healed.others) || h->healed.others <= h->before.others + COMMON;
    return h->healed.retention >= RETENTION && common;
}

/* ------------------------------------------------------------------ a step */

/* A quarter of the batch, the first of every four samples, is from the expert's domain. */
static void replay(mu_training *t, int domain, int64_t step) {
    int64_t n = mu_loader_train_sequences(t->texts.loader, domain), quarter = (t->batches.shape.sequences + 3) / 4;
    for (int64_t i = 0; i < t->batches.shape.sequences && n; i += 4) {
        t->batches.samples[i].domain = domain;
        t->batches.samples[i].sequence = (step * quarter + i / 4) % n;
    }
}

static mu_unit *weight_of(mu_param *p, int expert) {
    for (int i = 0; i < p->n_units; i++)
        if (p->units[i].expert == expert) return &p->units[i];
    return NULL;
}

/* Only the expert's weights and the router train; of the router the other rows get no gradient. */
static void freeze_others(mu_training *t, const mu_moe *m, int expert) {
    mu_params *ps = t->state.model->params;
    mu_param *const parts[] = { m->gate_eFD, m->up_eFD, m->down_eDF };
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) mu_unit_freeze(u, u->param != m->router_ED);
    for (int k = 0; k < 3; k++) mu_unit_freeze(weight_of(parts[k], expert), false);
}

static void keep_one_row(const mu_moe *m, int expert) {
    mu_device *dev = m->router_ED->tensor.dev;
    mu_mat grad = { mu_unit_grad(m->router_ED->units), dev->master, 1 };
    dev->k->fill(dev, expert * m->D, 0.0, grad);
    dev->k->fill(dev, (m->E - 1 - expert) * m->D, 0.0, mu_mat_values(grad, (expert + 1) * m->D));
}

/* Adds the gradient that holds the expert near its archived outputs. */
static void hold(mu_training *t, const mu_moe *m, int expert, const mu_expert_samples *samples) {
    mu_expert_unit now;
    mu_device *dev = t->dev;
    mu_param *const params[MU_PARTS] = { NULL, m->gate_eFD, m->up_eFD, m->down_eDF };
    double *grads[MU_PARTS];
    mu_expert_unit_take(&now, &t->state, m->layer, expert);
    for (int part = 0; part < MU_PARTS; part++) grads[part] = mu_alloc((size_t)mu_expert_unit_count(&now, part), sizeof(double));
    mu_expert_unit_pull(&now, samples, HOLD, grads);
    for (int part = MU_PART_GATE; part < MU_PARTS; part++) {
        const mu_unit *u = weight_of(params[part], expert);
        double *sum = mu_alloc((size_t)u->count, sizeof *sum);
        mu_reals_get(dev, dev->master, mu_unit_grad(u), u->count, sum);
        for (int64_t i = 0; i < u->count; i++) sum[i] += grads[part][i];
        mu_reals_set(dev, dev->master, mu_unit_grad(u), u->count, sum);
        free(sum);
    }
    for (int part = 0; part < MU_PARTS; part++) free(grads[part]);
    mu_expert_unit_free(&now);
}

/* False: something is not finite. */
static bool heal_step(mu_training *t, const mu_moe *m, int expert, const mu_healing *h, int64_t step) {
    int64_t n;
    mu_batches_next(&t->batches, t->state.step + step);
    replay(t, h->domain, step);
    mu_training_gradients(t, true, NULL);
    mu_mat terms = mu_loss_terms(t->loss, &n);
    mu_grads_reduce(t->state.opt);
    keep_one_row(m, expert);
    if (h->record->samples.n) hold(t, m, expert, &h->record->samples);
    mu_grad_clip(t->state.opt, t->state.mesh->batch, t->cfg.optim.grad_clip, n, terms);
    mu_optimizer_step(t->state.opt, t->cfg.optim.lr, mu_loss_loads(t->loss));
    mu_loss_values v = mu_loss_read(t->loss, mu_grad_norm_on_device(t->state.opt), false);
    return isfinite(v.loss) && isfinite(v.grad_norm);
}

/* ------------------------------------------------------------------ all of it */

static mu_status open_run(mu_training *t, const mu_surgery *s, const mu_healing *h, mu_mesh *mesh, mu_error *e) {
    char **with = mu_alloc((size_t)h->n_overrides + 1, sizeof *with);
    with[0] = mu_format("run.dir=%s", s->cfg.run.dir);
    for (int i = 0; i < h->n_overrides; i++) with[i + 1] = h->overrides[i];
    mu_status status = mu_config_load_text(&t->cfg, s->m->path, s->m->config, h->n_overrides + 1, with, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_tokenizer_open(&t->tokenizer, s->m, e);
    if (status == MU_STATUS_OK) status = mu_training_open(t, mesh, s->m->val_split, e);
    free(with[0]);
    free(with);
    return status;
}

/* Takes the weights of the expert over into the surgery's unit. */
static void take_back(mu_training *t, mu_expert_unit *unit) {
    mu_expert_unit healed;
    mu_expert_unit_take(&healed, &t->state, unit->layer, unit->expert);
    for (int part = 0; part < MU_PARTS; part++)
        memcpy(unit->values[part], healed.values[part], (size_t)mu_expert_unit_count(unit, part) * sizeof(double));
    mu_expert_unit_free(&healed);
}

static mu_status train_alone(mu_training *t, mu_surgery *s, mu_healing *h, mu_error *e) {
    enum { AT_ONCE = 8 };
    mu_expert_unit *unit = &s->units[s->n_units - 1];
    const mu_moe *m = &t->state.model->blocks[unit->layer].moe;
    int64_t *none = mu_alloc((size_t)t->texts.corpus.n_domains, sizeof *none), probe = t->cfg.stats.probe_tokens / t->cfg.train.seq_len;
    mu_evaluation ev = { t->state.model, t->tape, &t->texts, t->state.mesh->batch, AT_ONCE, { NULL, 1 }, NULL, NULL };
    mu_status status = mu_surgery_load(s, t->state.model, e);
    t->state.step = s->m->step;
    mu_loader_continue(t->texts.loader, s->m->step * t->cfg.train.global_batch_size, none);     /* the present phase */
    free(none);
    if (status != MU_STATUS_OK) return status;
    h->restored = mu_heal_measure(&ev, h, probe ? probe : 1);
    freeze_others(t, m, unit->expert);
    for (int64_t i = 0; i < h->steps; i++)
        if (!heal_step(t, m, unit->expert, h, i)) return mu_error_set(e, MU_STATUS_NUMERIC, "healing: the loss of step %lld is not finite", (long long)i + 1);
    h->healed = mu_heal_measure(&ev, h, probe ? probe : 1);
    take_back(t, unit);
    return MU_STATUS_OK;
}

mu_status mu_heal(mu_surgery *s, mu_healing *h, mu_error *e) {
    mu_training t = { 0 };
    mu_mesh *mesh = mu_mesh_alone();
    mu_status status = open_run(&t, s, h, mesh, e);
    if (status == MU_STATUS_OK) status = train_alone(&t, s, h, e);
    mu_training_close(&t);
    mu_mesh_close(mesh);
    return status;
}
