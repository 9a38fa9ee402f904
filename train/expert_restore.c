/* expert_restore.c - muster expert restore: an expert of an archive or of another run comes back, and is healed. */
#include "train/expert_job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* From the newest checkpoint of another run, or from one. */
static mu_status read_from_checkpoint(mu_expert_job *j, mu_archive *a, mu_error *e) {
    mu_expert_job other = { .a = j->a, .mesh = j->mesh };
    bool found = false;
    mu_status status = mu_checkpoint_find(j->mesh->batch, j->a->from, &other.m, &found, e);
    if (status == MU_STATUS_OK && !found) status = mu_checkpoint_missing(j->a->from, e);
    if (status == MU_STATUS_OK) status = mu_surgery_open(&other.s, &other.m, "unused", e);
    if (status == MU_STATUS_OK) {
        int moe = mu_job_moe(&other, j->a->at, e);
        status = moe < 0 ? MU_STATUS_USAGE : mu_job_record(&other, a, j->a->at, moe, false, e);
    }
    status = mu_surgery_close(&other.s, status, e);
    mu_manifest_free(&other.m);
    return status;
}

/* --from: a file; a run, of which an archive is preferred; a checkpoint. Not given: the archive of the run itself. */
static mu_status find_record(mu_expert_job *j, mu_archive *a, mu_error *e) {
    const char *from = j->a->from;
    mu_place p = j->a->at;
    if (from && mu_file_ends(from, ".h5")) return mu_archive_read(a, from, e);
    if (from && !mu_file_exists(from)) return mu_error_set(e, MU_STATUS_NOINPUT, "--from %s: no such file or folder", from);
    char *folder = from ? mu_format("%s/archive", from) : mu_job_archives(&j->m), *path = folder ? mu_archive_best(folder, p.layer, p.expert) : NULL;
    int64_t *steps = NULL;
    if (folder && !path && mu_archive_list(folder, p.layer, p.expert, &steps)) path = mu_archive_path(folder, p.layer, p.expert, steps[0]); /* damaged */
    free(steps);
    mu_status status = path ? mu_archive_read(a, path, e) : from ? read_from_checkpoint(j, a, e)
                     : mu_error_set(e, MU_STATUS_NOINPUT, "expert %d of layer %d has no archive in %s; name one with --from", p.expert, p.layer,
                                    folder ? folder : "the checkpoint's run");
    free(path);
    free(folder);
    return status;
}

static mu_status check_record(const mu_expert_job *j, const mu_archive *a, mu_error *e) {
    const mu_config *c = &j->m.cfg;
    if (a->unit.layer != j->a->at.layer || a->unit.expert != j->a->at.expert)
        return mu_error_set(e, MU_STATUS_USAGE, "%s holds expert %d of layer %d, not %d of layer %d; --slot says where it goes", a->path, a->unit.expert,
                            a->unit.layer, j->a->at.expert, j->a->at.layer);
    if (a->unit.D != c->model.hidden_size || a->unit.F != c->moe.moe_ffn_hidden_size)
        return mu_error_set(e, MU_STATUS_CONFIG, "the archived expert has hidden size %lld and width %lld, those of %s have %lld and %lld", (long long)a->unit.D,
                            (long long)a->unit.F, j->m.path, (long long)c->model.hidden_size, (long long)c->moe.moe_ffn_hidden_size);
    return MU_STATUS_OK;
}

/* It carries what it carried, with the criticalities that it had. */
static void remember(mu_expert_job *j, const mu_archive *a, int moe, int expert) {
    mu_train_state *t = &j->s.shape.t;
    int64_t at = mu_job_cell(j, moe, expert);
    if (!t->stats) return;
    mu_knowledge *k = t->knowledge;
    for (int d = 0; d < k->domains; d++)
        for (int i = 0; i < a->n_domains; i++) {
            if (strcmp(k->names[d], a->names[i]) || isnan(a->K[i])) continue;
            int64_t cell = at * k->domains + d;
            k->K[cell] = (float)a->K[i], k->peak[cell] = fmaxf(0, (float)a->K[i]), k->at[cell] = (int32_t)t->step;
            if (strcmp(a->carries, a->names[i])) continue;
            t->stats->health.state[at] = MU_EXPERT_CARRIER, t->stats->health.carried[at] = d + 1;
        }
}

/* Pure input and output: the function of what was read, on the inputs that were stored. And how far it is off on those of the model now. */
static mu_status try_samples(mu_expert_job *j, const mu_archive *a, mu_error *e) {
    static const double EXACT = 1e-6;
    const mu_expert_samples *p = &a->samples;
    if (!p->n) return MU_STATUS_OK;
    double *y = mu_alloc((size_t)(p->n * p->D), sizeof *y);
    mu_expert_unit_apply(&a->unit, p->n, p->h, y);
    double off = mu_relative_distance(y, p->y, p->n * p->D);
    mu_print("%lld archived samples: relative error %.2g\n", (long long)p->n, off);
    mu_status status = off < EXACT ? MU_STATUS_OK : mu_error_set(e, MU_STATUS_DATA, "%s: the expert does not compute what it did: relative error %g", a->path, off);
    if (status == MU_STATUS_OK && j->live) {
        double *h = mu_expert_samples_again(p, &j->ev, a->unit.layer);
        mu_expert_unit_apply(&a->unit, p->n, h, y);
        mu_print("drift: for the same tokens of the model as it is now, the inputs differ by %.3f, the outputs by %.3f\n",
                 mu_relative_distance(h, p->h, p->n * p->D), mu_relative_distance(y, p->y, p->n * p->D));
        free(h);
    }
    free(y);
    return status;
}

/* The domain that the record carries, or is most critical for; -1: none is known. */
static int domain_of(const mu_expert_job *j, const mu_archive *a) {
    int best = -1;
    for (int i = 0; i < a->n_domains; i++)
        if (!strcmp(a->names[i], a->carries) || (!a->carries[0] && a->K[i] > 0 && (best < 0 || a->K[i] > a->K[best]))) best = i;
    for (int d = 0; d < j->texts.corpus.n_domains && best >= 0; d++)
        if (!strcmp(j->texts.corpus.domains[d].name, a->names[best])) return d;
    return -1;
}

static double best_loss(const mu_expert_job *j, const mu_archive *a, int domain) {
    const char *name = j->texts.corpus.domains[domain].name;
    double best = INFINITY;
    const mu_knowledge *k = mu_job_state(j)->knowledge;
    for (int i = 0; i < a->n_domains; i++)
        if (!strcmp(a->names[i], name) && a->ce_best[i] > 0) best = a->ce_best[i];
    for (int d = 0; k && d < k->domains; d++)
        if (!strcmp(k->names[d], name) && k->ce_best[d] > 0) best = fmin(best, k->ce_best[d]);
    return best;
}

static void print_figures(const char *when, const mu_heal_figures *f) {
    mu_print("  %-16s %9.4f %9.0f %% %9.4f\n", when, f->own, 100 * f->retention, f->others);
}

/* Trains the restored expert alone, and keeps it only when its domain is known again and others lose nothing. */
static mu_status heal(mu_expert_job *j, const mu_archive *a, mu_error *e) {
    mu_healing h = { .record = a, .steps = j->a->heal, .n_overrides = j->a->n_overrides, .overrides = j->a->overrides };
    if (j->a->heal < 0) return MU_STATUS_OK;
    int64_t probe = j->m.cfg.stats.probe_tokens / j->m.cfg.train.seq_len;
    mu_status status = j->live ? MU_STATUS_OK : mu_job_open_live(j, true, e);
    if (status == MU_STATUS_OK && (h.domain = domain_of(j, a)) < 0)
        status = mu_error_set(e, MU_STATUS_CONFIG, "the record names no domain of these texts for which the expert mattered: --heal has nothing to measure");
    if (status == MU_STATUS_OK && !isfinite(h.best = best_loss(j, a, h.domain)))
        status = mu_error_set(e, MU_STATUS_CONFIG, "it is not known how well domain %s was once predicted: --heal has nothing to measure",
                              j->texts.corpus.domains[h.domain].name);
    if (status != MU_STATUS_OK) return status;
    h.before = mu_heal_measure(&j->ev, &h, probe ? probe : 1);
    status = mu_heal(&j->s, &h, e);
    if (status != MU_STATUS_OK) return status;
    mu_print("%lld steps of healing; loss of %s, share of what was learned of it that is known, loss of the other domains\n", (long long)h.steps,
             j->texts.corpus.domains[h.domain].name);
    print_figures("before", &h.before);
    print_figures("restored", &h.restored);
    print_figures("healed", &h.healed);
    if (mu_heal_accepts(&h)) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_DATA, "rolled back: %.0f %% of what was learned of %s is known, 90 %% are needed, and the other domains may lose"
                        " 0.005 nats (they lose %.4f); nothing was written", 100 * h.healed.retention,
                        j->texts.corpus.domains[h.domain].name, h.healed.others - h.before.others);
}

mu_status mu_expert_restore(mu_expert_job *j, mu_error *e) {
    mu_archive a = { 0 };
    mu_place to = j->a->slot.layer >= 0 ? j->a->slot : j->a->at;
    int moe = mu_job_moe(j, to, e);
    mu_status status = moe < 0 ? MU_STATUS_USAGE : find_record(j, &a, e);
    if (status == MU_STATUS_OK) status = check_record(j, &a, e);
    if (status == MU_STATUS_OK) status = mu_job_may_replace(j, to, moe, true, e);
    if (status == MU_STATUS_OK) status = mu_job_open_live(j, j->a->dry_run, e);
    if (status == MU_STATUS_OK) status = try_samples(j, &a, e);
    if (status == MU_STATUS_OK) mu_job_tell_fisher(&a);
    if (status == MU_STATUS_OK) status = mu_job_archive_first(j, to, true, e);
    if (status == MU_STATUS_OK) {
        mu_expert_unit unit = mu_expert_unit_copy(&a.unit);
        char *detail = mu_format("expert %d of step %lld, %s", a.unit.expert, (long long)a.step, a.path[0] ? a.path : a.run);
        mu_expert_unit_restart(&unit);
        unit.layer = to.layer, unit.expert = to.expert;
        mu_job_forget(j, moe, to.expert);
        remember(j, &a, moe, to.expert);
        mu_surgery_put(&j->s, unit);
        mu_surgery_note(&j->s, "restore", to.layer, to.expert, detail);
        mu_print("expert %d of layer %d: %s%s%s\n", to.expert, to.layer, detail, a.carries[0] ? ", carrier of " : "", a.carries);
        free(detail);
    }
    if (status == MU_STATUS_OK) status = heal(j, &a, e);
    mu_archive_free(&a);
    return status;
}
