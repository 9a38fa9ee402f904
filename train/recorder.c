/* recorder.c - metrics, progress, evaluations and checkpoints of a run. Nothing is written
 * to a run folder that another job has taken. */
#include "train/events.h"
#include "train/surgery.h"
#include "train/training.h"

#include <math.h>
#include <stdlib.h>

enum { RECENT = 5 };
struct mu_recorder {
    mu_training *t;
    mu_lock *lock;         /* rank 0, borrowed */
    mu_error lock_lost;    /* rank 0: why this job lost the run folder */
    mu_log_source source;
    mu_metrics *metrics;   /* rank 0 */
    mu_events *events;     /* rank 0; NULL: a dense model has none */
    mu_progress *progress; /* rank 0 */
    mu_domain_loss *domains;
    mu_probe *probe;       /* NULL: nothing is measured on it */
    mu_expert_change *changes; /* of the last evaluation of states, room for all experts */
    mu_protection_change *protected;    /* likewise */
    int n_changes;         /* of the last evaluation */
    double *noted;         /* top_criticality of the experts before it */
    int64_t saved_step;    /* of the newest checkpoint */
    double since_log_seconds;   /* of the steps since the last logged line, and their number */
    int64_t since_log_steps;
    double save_seconds;   /* of the last checkpoint */
    double statistics_seconds;  /* of this process, in statistics lines and what is measured for them */
    double recent[RECENT]; /* seconds of the last steps, step i of this process at i % RECENT */
    int64_t n_recent;
    bool warned;           /* about the short kill timeout of mpirun */
};

static mu_evaluation evaluation(const mu_training *t) {
    return (mu_evaluation){ t->state.model, t->tape, &t->texts, t->state.mesh->batch, t->batches.micro_size, { NULL, 1 }, NULL, NULL };
}

mu_status mu_recorder_open(mu_recorder **out, mu_training *t, mu_lock *lock, int64_t saved_step, mu_error *e) {
    mu_recorder *r = *out = mu_alloc(1, sizeof *r);
    *r = (mu_recorder){ .t = t, .lock = lock, .saved_step = saved_step };
    r->source = (mu_log_source){ &t->cfg, &t->texts.corpus, &t->state, t->peak_flops };
    r->domains = mu_alloc((size_t)t->texts.corpus.n_domains, sizeof *r->domains);
    r->changes = mu_alloc((size_t)(t->state.model->n_moe * t->cfg.moe.num_experts), sizeof *r->changes);
    r->protected = mu_alloc((size_t)(t->state.model->n_moe * t->cfg.moe.num_experts), sizeof *r->protected);
    r->noted = mu_alloc((size_t)(t->state.model->n_moe * t->cfg.moe.num_experts), sizeof *r->noted);
    if (t->cfg.stats.every && t->cfg.stats.budget > 0 && t->state.model->n_moe) {
        mu_evaluation ev = evaluation(t);
        r->probe = mu_probe_new(&ev, t->cfg.stats.probe_tokens, MU_PROBE_KEEP_BYTES);
    }
    bool root = mu_mesh_writes_shared(t->state.mesh);
    mu_status status = root ? mu_metrics_open(&r->metrics, &r->source, e) : MU_STATUS_OK;
    if (root && status == MU_STATUS_OK && t->state.model->n_moe) status = mu_events_open(&r->events, &r->source, e);
    if (root && status == MU_STATUS_OK) r->progress = mu_progress_open(&r->source);
    return mu_agree(t->state.mesh->batch, status, e);
}

void mu_recorder_close(mu_recorder *r) {
    if (!r) return;
    mu_progress_close(r->progress);
    mu_events_close(r->events);
    mu_metrics_close(r->metrics);
    mu_probe_free(r->probe);
    free(r->domains);
    free(r->changes);
    free(r->protected);
    free(r->noted);
    free(r);
}

const mu_domain_loss *mu_recorder_losses(const mu_recorder *r) { return r->domains; }

bool mu_due(int64_t every, int64_t step, int64_t last) { return every > 0 && (step % every == 0 || step == last); }
bool mu_is_logged(const mu_config *cfg, int64_t step) {
    return mu_due(cfg->log.every, step, cfg->train.steps) || (cfg->log.every > 0 && step == 1);
}

/* ------------------------------------------------------------------ the run folder's lock */

/* Checks the lock once per step. If it was lost, the error is reported before the next write. Rank 0. */
static void check_lock(mu_recorder *r) {
    if (r->lock && r->lock_lost.status == MU_STATUS_OK) r->lock_lost.status = mu_lock_check(r->lock, &r->lock_lost);
}

/* The caller agrees on the status. */
static mu_status still_locked(mu_recorder *r, mu_error *e) {
    if (!r->lock) return MU_STATUS_OK;
    check_lock(r);
    if (r->lock_lost.status != MU_STATUS_OK) *e = r->lock_lost;
    return r->lock_lost.status;
}

/* ------------------------------------------------------------------ archives */

/* A record that cannot be written is no reason to stop; but then nothing may overwrite the expert. otherwise: said when it was not written. */
static mu_status archive(mu_recorder *r, int64_t cell, const char *reason, const char *otherwise, bool *written, mu_error *e) {
    mu_evaluation ev = evaluation(r->t);
    mu_error why = { 0 };
    double start = mu_time();
    int64_t E = r->t->cfg.moe.num_experts;
    int moe = (int)(cell / E), expert = (int)(cell % E);
    *written = mu_archive_expert(&r->source, &ev, moe, expert, &why) == MU_STATUS_OK;
    r->t->protect_seconds += mu_time() - start;
    if (!*written && r->progress)
        mu_log(MU_LOG_WARNING, "expert %d of layer %d could not be archived%s: %-s", expert, r->t->state.model->moe_layers[moe], otherwise, why.text);
    return r->events ? mu_events_archive(r->events, &r->source, moe, expert, reason, *written ? NULL : why.text, e) : MU_STATUS_OK;
}

/* Those with a reason. Collective, agreed. */
static mu_status archive_all(mu_recorder *r, const char *const *reasons, mu_error *e) {
    const mu_train_state *s = &r->t->state;
    mu_status status = MU_STATUS_OK;
    for (int64_t i = 0; i < s->model->n_moe * r->t->cfg.moe.num_experts; i++) { /* every rank takes part in each */
        if (!reasons[i]) continue;
        mu_error why = { 0 };
        bool written;
        mu_status one = archive(r, i, reasons[i], "", &written, &why);
        if (one != MU_STATUS_OK && status == MU_STATUS_OK) status = one, *e = why;
    }
    return mu_agree(s->mesh->batch, status, e);
}

static mu_status archive_due(mu_recorder *r, mu_error *e) {
    const mu_training *t = r->t;
    if (!t->cfg.protect.archive) return MU_STATUS_OK;
    const char **reasons = mu_alloc((size_t)(t->state.model->n_moe * t->cfg.moe.num_experts) + 1, sizeof *reasons);
    mu_archive_find_due(&r->source, r->changes, r->n_changes, r->noted, reasons);
    mu_status status = archive_all(r, reasons, e);
    free(reasons);
    return status;
}

/* The carriers, and those that protect.carriers names, at the end of the run. */
static mu_status archive_carriers(mu_recorder *r, mu_error *e) {
    const mu_training *t = r->t;
    const mu_expert_health *h = &t->state.stats->health;
    int64_t cells = (int64_t)h->layers * h->experts;
    if (!t->cfg.protect.archive || t->state.step < t->cfg.train.steps) return MU_STATUS_OK;
    const char **reasons = mu_alloc((size_t)cells + 1, sizeof *reasons);
    for (int64_t i = 0; i < cells; i++)
        reasons[i] = mu_expert_carries(h->state[i]) || mu_given_domain(&t->cfg.protect, &t->cfg.data.train, i % h->experts) >= 0 ? "end of the run" : NULL;
    mu_status status = archive_all(r, reasons, e);
    free(reasons);
    return status;
}

/* ------------------------------------------------------------------ interventions */

/* Of the mean of its layer, over the window. */
static double load_of(const mu_log_source *src, int moe, int expert) {
    const mu_load_window *w = &src->state->stats->window;
    const int64_t *loads = w->total + (int64_t)moe * w->experts;
    double sum = 0;
    for (int i = 0; i < w->experts; i++) sum += (double)loads[i];
    return sum > 0 ? (double)loads[expert] * w->experts / sum : 0;
}

static mu_status tell(mu_recorder *r, const mu_action *a, const char *done, mu_error *e) {
    const mu_train_state *s = &r->t->state;
    if (r->progress) mu_progress_say(r->progress, "layer %d: expert %d %s (%s)", s->model->moe_layers[a->moe], a->expert, done, a->reason);
    return mu_agree(s->mesh->batch, r->events ? mu_events_action(r->events, &r->source, a, e) : MU_STATUS_OK, e);
}

/* Before an expert is changed: a record that is not older than `since`; *written false: there is none, and the expert must stay as it is. Collective,
 * agreed. */
static mu_status archive_first(mu_recorder *r, int moe, int expert, int64_t since, const char *reason, const char *otherwise, bool *written, mu_error *e) {
    *written = true;
    if (mu_archive_newest(&r->source, moe, expert) >= since) return MU_STATUS_OK;
    return mu_agree(r->t->state.mesh->batch, archive(r, moe * r->t->cfg.moe.num_experts + expert, reason, otherwise, written, e), e);
}

/* A dead expert of this layer is archived and becomes half of the busiest one; *found: there is one. Collective, agreed. */
static mu_status reseed(mu_recorder *r, int moe, bool *found, mu_error *e) {
    const mu_train_state *s = &r->t->state;
    const mu_expert_health *h = &s->stats->health;
    int expert = mu_reseed_find(h, &s->model->protection, moe), donor = expert < 0 ? -1 : mu_expert_donor(s, moe, expert);
    bool written;
    *found = donor >= 0;
    if (donor < 0) return MU_STATUS_OK;
    int64_t since = h->since[(int64_t)moe * h->experts + expert];
    mu_status status = archive_first(r, moe, expert, s->step, "before it is re-seeded", ", so it is not re-seeded", &written, e);
    if (status != MU_STATUS_OK || !written) return status;
    mu_evaluation ev = evaluation(r->t);
    mu_reseed(s, &ev, moe, expert, donor, (uint64_t)r->t->cfg.run.seed);
    double load = load_of(&r->source, moe, donor);
    char *reason = mu_format("dead since step %lld; now half of expert %d, load %.2f of the mean", (long long)since, donor, load);
    mu_action a = { "reseed", moe, expert, donor, "dead", "healthy", reason, 2, { { "since", (double)since }, { "parent_load", load } } };
    status = tell(r, &a, "is re-seeded", e);
    free(reason);
    return status;
}

/* The selection bias of a starved expert of this layer is raised, once the expert is archived. Collective, agreed. */
static mu_status boost(mu_recorder *r, int moe, mu_error *e) {
    const mu_train_state *s = &r->t->state;
    const mu_expert_health *h = &s->stats->health;
    double by = r->t->cfg.protect.starved_boost;
    int expert = mu_boost_find(h, &s->model->protection, s->stats->window.total, moe, s->step, r->t->cfg.stats.every);
    bool written;
    if (expert < 0) return MU_STATUS_OK;
    int64_t since = h->since[(int64_t)moe * h->experts + expert];
    mu_status status = archive_first(r, moe, expert, since, "before its selection bias is raised", ", so its selection bias is not raised", &written, e);
    if (status != MU_STATUS_OK || !written) return status;
    mu_moe *m = &s->model->blocks[s->model->moe_layers[moe]].moe;
    mu_balance_raise_bias(m, expert, by);
    double load = load_of(&r->source, moe, expert), bias = m->bias[expert];
    char *reason = mu_format("starved since step %lld, load %.2f of the mean; raised by %g to %.3g", (long long)since, load, by, bias);
    mu_action a = { "boost", moe, expert, expert, NULL, NULL, reason, 3, { { "load", load }, { "by", by }, { "bias", bias } } };
    status = tell(r, &a, "has its selection bias raised", e);
    free(reason);
    return status;
}

/* At most one expert of each layer. Not at the end of the run, where there is no time to learn. */
static mu_status intervene(mu_recorder *r, mu_error *e) {
    const mu_training *t = r->t;
    mu_status status = MU_STATUS_OK;
    double start = mu_time();
    if (10 * t->state.step > 9 * t->cfg.train.steps) return MU_STATUS_OK;
    for (int i = 0; i < t->state.model->n_moe && status == MU_STATUS_OK; i++) {
        bool found = false;
        if (t->cfg.protect.reseed_dead) status = reseed(r, i, &found, e);
        if (t->cfg.protect.starved_boost > 0 && !found && status == MU_STATUS_OK) status = boost(r, i, e);
    }
    r->statistics_seconds += mu_time() - start;
    return status;
}

/* ------------------------------------------------------------------ checkpoints and evaluations */

/* Metrics first: they must be on disk before the checkpoint that covers them. Derived files last. */
mu_status mu_recorder_save(mu_recorder *r, mu_error *e) {
    mu_train_state *s = &r->t->state;
    if (r->saved_step == s->step) return MU_STATUS_OK;
    double start = mu_time();
    mu_status status = mu_agree(s->mesh->batch, still_locked(r, e), e);
    if (status == MU_STATUS_OK) status = archive_carriers(r, e);
    mu_activity_set("checkpoint", -1, NULL);
    if (status == MU_STATUS_OK && r->metrics) status = mu_metrics_sync(r->metrics, e);
    if (status == MU_STATUS_OK && r->events) status = mu_events_sync(r->events, e);
    status = mu_agree(s->mesh->batch, status, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_save(s, &r->t->cfg, &r->t->texts, e);
    if (status != MU_STATUS_OK) return status;
    r->saved_step = s->step;
    if (r->metrics) mu_metrics_write_routing(r->metrics, s->step >= r->t->cfg.train.steps);
    r->save_seconds = mu_time() - start;
    if (r->progress) mu_progress_say(r->progress, "checkpoint of step %lld written", (long long)s->step);
    return MU_STATUS_OK;
}

/* Is evaluation enabled, and does any domain have validation sequences? */
static bool evaluates(const mu_recorder *r) { return r->t->cfg.train.eval_every > 0 && mu_texts_have_validation(&r->t->texts); }

static double losses(mu_recorder *r) {
    const mu_training *t = r->t;
    mu_evaluation ev = evaluation(t);
    return mu_evaluate(&ev, t->cfg.train.eval_sequences, r->domains);
}

void mu_recorder_reevaluate(mu_recorder *r) {
    if (evaluates(r)) losses(r);
}

mu_status mu_recorder_evaluate(mu_recorder *r, mu_error *e) {
    mu_training *t = r->t;
    int n = 0;
    if (!evaluates(r)) return MU_STATUS_OK;
    double mean = losses(r);
    for (int i = 0; i < t->texts.corpus.n_domains; i++) n += r->domains[i].tokens > 0;
    mu_status status = still_locked(r, e);
    if (status == MU_STATUS_OK && r->metrics) status = mu_metrics_eval(r->metrics, &r->source, mean, r->domains, e);
    if (r->progress)
        mu_progress_say(r->progress, "step %lld: validation loss %.4f (nats/token), %d domain%s", (long long)t->state.step, mean,
                        n, n == 1 ? "" : "s");
    return mu_agree(t->state.mesh->batch, status, e);
}

/* ------------------------------------------------------------------ a step */

/* Seconds between SIGTERM and SIGKILL for the ranks, after mpirun itself got INT, TERM or HUP. */
double mu_kill_timeout(void) {
    const char *names[] = { "OMPI_MCA_odls_base_sigkill_timeout", "PRTE_MCA_odls_base_sigkill_timeout" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i])) return atof(getenv(names[i]));
    return 1;
}

/* Warns once when a step and a checkpoint take longer than mpirun waits after Ctrl-C. */
static void warn_kill_timeout(mu_recorder *r, double step_seconds) {
    enum { KNOWN = 3 };
    r->recent[r->n_recent++ % RECENT] = step_seconds;
    double least = step_seconds; /* the first steps, and those during which the job was suspended, are slower */
    for (int64_t i = 0; i < RECENT && i < r->n_recent; i++) least = fmin(least, r->recent[i]);
    double needed = least + r->save_seconds, left = mu_kill_timeout();
    if (!r->progress || r->warned || r->n_recent < KNOWN || !mu_launcher() || needed < left) return;
    r->warned = true;
    mu_log(MU_LOG_WARNING, "a step%s takes %.1f s, and mpirun kills its ranks %.0f s after Ctrl-C, TERM or HUP: the steps since"
           " the last checkpoint would be lost. Stop this job with kill -USR1 %ld, or start mpirun with"
           " --mca odls_base_sigkill_timeout %.0f", r->save_seconds > 0 ? " with a checkpoint" : "", needed, left,
           mu_launcher(), 10 * ceil(needed));
}

/* Says that a phase of the mixture begins with this step, if one does. */
static void say_phase(mu_progress *p, const mu_data_config *d, int64_t step) {
    char *text = mu_phase_begins(d, step);
    if (text) mu_progress_say(p, "%s", text);
    free(text);
}

/* Each advice once per run. Rank 0. */
static mu_status advise(mu_recorder *r, const mu_step_result *result, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int topic = 0; topic < MU_ADVICES && status == MU_STATUS_OK; topic++) {
        mu_advice a;
        if (mu_events_advised(r->events, (mu_advice_topic)topic) || !mu_advice_find(&r->source, result, (mu_advice_topic)topic, &a)) continue;
        mu_progress_say(r->progress, "advice: %s", a.text);
        status = mu_events_advice(r->events, &r->source, &a, e);
        mu_advice_free(&a);
    }
    return status;
}

mu_status mu_recorder_log(mu_recorder *r, const mu_step_result *result, mu_error *e) {
    const mu_config *cfg = &r->t->cfg;
    const mu_train_state *s = &r->t->state;
    bool logged = mu_is_logged(cfg, s->step);
    r->since_log_seconds += result->seconds, r->since_log_steps++;
    double rate = (double)(r->since_log_steps * cfg->train.global_batch_size * cfg->train.seq_len) / r->since_log_seconds;
    if (r->progress) mu_progress_step(r->progress, &r->source, result, logged, rate);
    if (r->progress && s->step < cfg->train.steps) say_phase(r->progress, &cfg->data, s->step + 1);
    warn_kill_timeout(r, result->seconds);
    if (!logged) {
        check_lock(r);
        return MU_STATUS_OK;
    }
    mu_status status = still_locked(r, e);
    if (status == MU_STATUS_OK && r->metrics) status = mu_metrics_step(r->metrics, &r->source, result, rate, e);
    if (status == MU_STATUS_OK && r->events) status = advise(r, result, e);
    r->since_log_seconds = 0, r->since_log_steps = 0;
    return mu_fault("collective", s->mesh->world->rank) ? status : mu_agree(s->mesh->batch, status, e);
}

mu_status mu_recorder_absence(mu_recorder *r, const mu_absence *p, mu_error *e) {
    mu_status status = still_locked(r, e);
    if (r->progress) mu_progress_say(r->progress, "%s", p->reason);
    if (status == MU_STATUS_OK && r->events) status = mu_events_absence(r->events, p, e);
    return mu_agree(r->t->state.mesh->batch, status, e);
}

/* What experts know, as far as training has paid for measuring it. */
static void measure(mu_recorder *r) {
    const mu_config *cfg = &r->t->cfg;
    mu_knowledge *k = r->t->state.knowledge;
    if (!r->probe) return;
    mu_knowledge_earn(k, r->t->state.step, cfg->stats.every, cfg->train.global_batch_size * cfg->train.seq_len, cfg->stats.budget);
    mu_experts_find_rare(&r->source, k->rare);
    mu_probe_measure(r->probe, k, r->t->state.step);
}

/* Evaluates the states; not at a last step that is no multiple of stats.every, so that a run that ended there and was extended has
 * the same states as one that did not end. Rank 0 records and tells the changes. */
static mu_status judge(mu_recorder *r, mu_error *e) {
    if (r->t->state.step % r->t->cfg.stats.every) return MU_STATUS_OK;
    const mu_expert_health *h = &r->t->state.stats->health;
    for (int64_t i = 0; i < (int64_t)h->layers * h->experts; i++) r->noted[i] = h->top_criticality[i];
    int n = r->n_changes = mu_experts_judge(&r->source, r->changes), n_protected = mu_training_protect(r->t, r->protected);
    if (r->progress) mu_progress_experts(r->progress, &r->source, r->changes, n);
    mu_status status = r->events ? mu_events_changes(r->events, &r->source, r->changes, n, e) : MU_STATUS_OK;
    return r->events && status == MU_STATUS_OK ? mu_events_protection(r->events, &r->source, r->protected, n_protected, e) : status;
}

/* The statistics of a step. */
static mu_status statistics(mu_recorder *r, double start, mu_error *e) {
    measure(r);
    mu_routing_stats_read_pairs(r->t->state.stats);
    mu_status status = still_locked(r, e);
    if (status == MU_STATUS_OK) status = judge(r, e);
    if (status == MU_STATUS_OK && r->metrics)
        status = mu_metrics_statistics(r->metrics, &r->source, r->statistics_seconds + mu_time() - start, r->t->protect_seconds, e);
    r->statistics_seconds += mu_time() - start;
    return status;
}

/* A last step that is no multiple of stats.every leaves no trace in what is known and counted: a run that ended there and is extended
 * measures the same as one that did not end. */
mu_status mu_recorder_statistics(mu_recorder *r, mu_error *e) {
    mu_train_state *s = &r->t->state;
    double start = mu_time();
    if (!s->model->n_moe) return MU_STATUS_OK;
    if (s->step % r->t->cfg.stats.every == 0) {
        mu_status status = statistics(r, start, e);
        mu_routing_stats_restart(s->stats);
        status = mu_agree(s->mesh->batch, status, e);
        if (status == MU_STATUS_OK) status = archive_due(r, e);
        return status == MU_STATUS_OK ? intervene(r, e) : status;
    }
    mu_knowledge *kept = s->knowledge;
    s->knowledge = mu_knowledge_copy(kept);
    mu_status status = statistics(r, start, e);
    mu_knowledge_free(s->knowledge);
    s->knowledge = kept;
    return mu_agree(s->mesh->batch, status, e);
}
