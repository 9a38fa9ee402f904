/* cmd_train.c - muster train: from a configuration to a trained model. */
#include "train/train.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The signal that asked for a checkpoint and the end. A second Ctrl-C does not wait for them. */
static volatile sig_atomic_t stop_asked;
static void on_signal(int number) {
    if (number == SIGINT && stop_asked == SIGINT) {
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);
    }
    stop_asked = number;
}

/* HUP stays ignored where nohup or the shell has it so. */
static void catch_signals(void) {
    struct sigaction action = { .sa_handler = on_signal }, old;
    sigemptyset(&action.sa_mask);
    int numbers[] = { SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        sigaction(numbers[i], NULL, &old);
        if (numbers[i] != SIGHUP || old.sa_handler != SIG_IGN) sigaction(numbers[i], &action, NULL);
    }
}

/* Seconds that mpirun leaves its ranks between TERM and KILL once it gets INT, TERM or HUP itself. */
static double kill_timeout(void) {
    const char *names[] = { "OMPI_MCA_odls_base_sigkill_timeout", "PRTE_MCA_odls_base_sigkill_timeout" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i])) return atof(getenv(names[i]));
    return 1;
}

typedef struct {
    char *config, *resume;
    bool dry_run;
    int ranks; /* of the dry run; 0: those that are running */
    int n_overrides;
    char **overrides;
} arguments;

static mu_status set_resume(arguments *a, const char *text, mu_error *e) {
    free(a->resume);
    return mu_expand_home(text, &a->resume, e);
}

static bool read_ranks(const char *text, int *ranks) {
    char *end;
    long n = strtol(text, &end, 10);
    *ranks = (int)n;
    return end != text && !*end && n >= 1 && n <= 65536;
}

static mu_status parse(int argc, char **argv, arguments *a, mu_error *e) {
    *a = (arguments){ .resume = mu_strdup("auto"), .overrides = mu_alloc((size_t)argc, sizeof(char *)) };
    for (int i = 2; i < argc; i++) {
        const char *ranks = !strncmp(argv[i], "--ranks=", 8) ? argv[i] + 8 : strcmp(argv[i], "--ranks") ? NULL : "";
        if (ranks && !ranks[0] && i + 1 < argc) ranks = argv[++i];
        if (ranks) {
            if (!read_ranks(ranks, &a->ranks))
                return mu_error_set(e, MU_STATUS_USAGE, "--ranks %s: expected a whole number from 1 to 65536", ranks);
        } else if (!strcmp(argv[i], "--dry-run")) a->dry_run = true;
        else if ((!strcmp(argv[i], "--resume") && i + 1 < argc) || !strncmp(argv[i], "--resume=", 9)) {
            mu_status status = set_resume(a, argv[i][8] ? argv[i] + 9 : argv[++i], e);
            if (status != MU_STATUS_OK) return status;
        } else if (argv[i][0] == '-')
            return mu_error_set(e, MU_STATUS_USAGE, "%s is not an option of train%s", argv[i],
                                strcmp(argv[i], "--resume") ? "" : " without auto, never or a path");
        else if (strchr(argv[i], '=')) a->overrides[a->n_overrides++] = argv[i];
        else if (!a->config) a->config = argv[i];
        else
            return mu_error_set(e, MU_STATUS_USAGE,
                                "%s: one configuration is enough (%s); overrides read section.key=value",
                                argv[i], a->config);
    }
    if (a->ranks && !a->dry_run)
        return mu_error_set(e, MU_STATUS_USAGE, "--ranks plans for ranks that are not running: it needs --dry-run");
    return a->config ? mu_expand_argument(&a->config, e)
                     : mu_error_set(e, MU_STATUS_USAGE,
                                    "train needs a configuration; configs/first.yaml is one to start from");
}

/* ------------------------------------------------------------------ before the first step */

static bool holds_a_run(const char *dir) {
    char *metrics = mu_format("%s/metrics.jsonl", dir);
    int64_t *steps;
    bool yes = mu_checkpoint_list(dir, &steps) != 0 || mu_file_exists(metrics);
    free(metrics);
    free(steps);
    return yes;
}

/* A path that --resume names must be there, and a run folder holds one run. Rank 0's work. */
static mu_status check_path(const char *resume, const char *dir, mu_error *e) {
    if (!mu_file_exists(resume))
        return mu_error_set(e, MU_STATUS_NOINPUT, "--resume %s: no such file or folder", resume);
    if (holds_a_run(dir) && !mu_file_is_inside(resume, dir))
        return mu_error_set(
            e, MU_STATUS_CONFIG,
            "run.dir %s holds a run already, and --resume %s is of another; choose another run.dir, or leave "
            "--resume out to go on with the run that is there",
            dir, resume);
    return MU_STATUS_OK;
}

/* Which checkpoint to go on from: *found false means a new run. Collective, agreed. */
static mu_status choose_start(const mu_trainer *t, const char *resume, mu_manifest *m, bool *found,
                              mu_error *e) {
    mu_comm *world = t->mesh->world;
    const char *dir = t->cfg.run.dir;
    *found = false;
    if (!strcmp(resume, "auto")) return mu_checkpoint_find(world, dir, m, found, e);
    if (!strcmp(resume, "never")) {
        mu_status status = MU_STATUS_OK;
        if (world->rank == 0 && holds_a_run(dir))
            status = mu_error_set(
                e, MU_STATUS_CONFIG,
                "run.dir %s holds a run already and --resume is never; choose another run.dir, "
                "or leave --resume out to go on",
                dir);
        return mu_agree(world, status, e);
    }
    mu_status status = mu_agree(world, world->rank == 0 ? check_path(resume, dir, e) : MU_STATUS_OK, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_find(world, resume, m, found, e);
    if (status == MU_STATUS_OK && !*found)
        status = mu_error_set(e, MU_STATUS_DATA, "--resume %s: there is no checkpoint", resume);
    return status;
}

static bool quiet(const mu_trainer *t) { return t->cfg.log.progress == MU_LOG_PROGRESS_QUIET; }

/* Goes on from *m with a trainer that is open. */
static mu_status resume_from(mu_trainer *t, const mu_manifest *m, mu_error *e) {
    char *notes = NULL;
    mu_status status = mu_agree(t->mesh->world, mu_checkpoint_compare(t, m, &notes, e), e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_load(t, m, true, e);
    if (status == MU_STATUS_OK && t->mesh->world->rank == 0) {
        mu_print("resuming from %s (step %lld, written by %d rank%s)\n", m->path, (long long)m->step, m->ranks,
               m->ranks == 1 ? "" : "s");
        if (notes[0]) printf("options that differ from the checkpoint's; the new ones hold, schedules follow them:\n");
        mu_print_text(notes);
    }
    free(notes);
    return status;
}

/* A trainer as it was before it opened, with the configuration that was asked for. */
static void reset(mu_trainer *t, const mu_moe_config *moe, const mu_optim_config *optim) {
    mu_trainer before = { .cfg = t->cfg, .mesh = t->mesh };
    before.cfg.moe = *moe, before.cfg.optim = *optim;
    t->cfg = (mu_config){ 0 };
    mu_trainer_close(t);
    *t = before;
}

/* Opens the trainer, for a new run or from where one stands; what a checkpoint's tensors hold is seen last, so that a
 * checkpoint is refused with all that was taken from it. Collective, agreed. */
static mu_status open_run(mu_trainer *t, const char *resume, mu_manifest *m, bool *found, mu_error *e) {
    const mu_moe_config moe = t->cfg.moe;
    const mu_optim_config optim = t->cfg.optim;
    mu_status status = choose_start(t, resume, m, found, e);
    while (status == MU_STATUS_OK) {
        if (*found) mu_checkpoint_inherit(t, m);
        status = mu_trainer_open(t, t->mesh, true, e);
        if (status != MU_STATUS_OK || !*found) return status;
        status = resume_from(t, m, e);
        if (status != MU_STATUS_DATA) return status;
        status = mu_checkpoint_fall_back(t->mesh->world, strcmp(resume, "auto") ? resume : t->cfg.run.dir, m, e);
        if (status == MU_STATUS_OK) reset(t, &moe, &optim);
    }
    return status;
}

/* Does this run evaluate at all: is it asked to, and is there a validation text in any domain? */
static bool evaluates(const mu_trainer *t) {
    bool any = false;
    for (int i = 0; i < t->corpus.n_domains; i++) any |= mu_loader_val_sequences(t->loader, i) > 0;
    return any && t->cfg.train.eval_every > 0;
}

/* How to stop this run without losing steps, and what other ways cost. */
static void print_how_to_stop(void) {
    long launcher = mu_launcher();
    if (launcher)
        printf("to stop: kill -USR1 %ld (mpirun) saves a checkpoint and exits with 75; Ctrl-C, TERM or HUP to mpirun leave %.0f s"
               " for that\n", launcher, kill_timeout());
    else
        printf("to stop: Ctrl-C, or kill %ld, saves a checkpoint after the current step and exits with 75; a second Ctrl-C"
               " ends it at once\n", (long)getpid());
}

static void print_start(const mu_trainer *t, bool resumed) {
    mu_model_size size = mu_model_measure(&t->cfg.model, &t->cfg.moe, t->model->vocab_size,
                                          t->cfg.train.seq_len);
    int ranks = t->mesh->world->size, threads = mu_threads();
    int64_t tokens = 0;
    for (int i = 0; i < t->corpus.n_domains; i++) tokens += t->corpus.domains[i].n_tokens;
    mu_print("muster " MU_VERSION ": %d rank%s x %d thread%s on %s, dp %d x ep %d, %s\n", ranks,
           ranks == 1 ? "" : "s", threads, threads == 1 ? "" : "s", t->dev->name, t->mesh->dp, t->mesh->ep,
           mu_dist_library());
    printf("model: %.2f M parameters, %.2f M active a token, %.1f MFLOP a training token\n",
           (double)size.total * 1e-6, (double)size.active * 1e-6, size.train_flops * 1e-6);
    printf("data: %d domain%s, %.2f M tokens%s\n", t->corpus.n_domains, t->corpus.n_domains == 1 ? "" : "s",
           (double)tokens * 1e-6,
           t->corpus.synthetic ? " (synthetic: made by the built-in generator, not real text)" : "");
    printf("batch: %lld sequences of %lld tokens a step, in %lld micro-batch%s a rank\n",
           (long long)t->cfg.train.global_batch_size, (long long)t->cfg.train.seq_len, (long long)t->n_micro,
           t->n_micro == 1 ? "" : "es");
    if (t->model->n_moe && t->n_micro > 1 && (t->cfg.moe.balance & MU_BALANCE_GLOBAL_AUX) &&
        t->cfg.moe.global_aux_counts == MU_MOE_COUNTS_EXACT)
        printf(
            "note: global_aux_loss with several micro-batches needs a counting pass first, about a third more compute;\n"
            "      fewer micro-batches, moe.global_aux_counts=previous or balance: [expert_bias] do without\n");
    if (t->cfg.train.eval_every > 0 && !evaluates(t))
        printf("note: there is nothing to validate on: data.val_fraction is 0 or the texts are too short\n");
    if (t->peak_flops > 0)
        printf(
            "peak: %.0f GFLOP/s, a large %s matrix product on all ranks at once; MFU is against it\n",
            t->peak_flops * 1e-9, t->cfg.train.dtype == MU_TRAIN_DTYPE_BF16 && strstr(t->dev->name, "bf16") ? "bf16" : mu_dtype_name(t->dev->compute));
    mu_print("run folder: %s (%s)\n", t->cfg.run.dir, resumed ? "resumed" : "new run");
    print_how_to_stop();
    fflush(stdout);
}

static double measure_peak(const mu_trainer *t) {
    mu_barrier(t->mesh->world);
    double peak = mu_peak_measure(t->dev);
    mu_all_reduce(t->mesh->world, MU_REDUCE_SUM, MU_DTYPE_F64, &peak, 1);
    return peak;
}

/* ------------------------------------------------------------------ the loop */

enum { RECENT = 5 };
typedef struct {
    mu_trainer *t;
    mu_lock *lock;         /* rank 0 */
    mu_error lock_lost;    /* rank 0: why the run folder is not this job's any more */
    mu_metrics *metrics;   /* rank 0 */
    mu_progress *progress; /* rank 0 */
    mu_domain_loss *domains;
    int64_t saved_step;    /* of the newest checkpoint */
    double window_seconds; /* since the last logged line */
    int64_t window_steps;
    double save_seconds;   /* the last checkpoint took */
    double recent[RECENT]; /* seconds of the last steps, step i of this start at i % RECENT */
    int64_t n_recent;
    bool warned;           /* that mpirun leaves too little time */
} loop;

static bool due(int64_t every, int64_t step, int64_t last) {
    return every > 0 && (step % every == 0 || step == last);
}

/* Looks after the lock once a step; what it finds is said when something is to be written. Rank 0. */
static void look_after_lock(loop *l) {
    if (l->lock && l->lock_lost.status == MU_STATUS_OK) l->lock_lost.status = mu_lock_check(l->lock, &l->lock_lost);
}

/* Nothing may be written in a run folder that another job has taken. To be agreed. */
static mu_status still_locked(loop *l, mu_error *e) {
    if (!l->lock) return MU_STATUS_OK;
    look_after_lock(l);
    if (l->lock_lost.status != MU_STATUS_OK) *e = l->lock_lost;
    return l->lock_lost.status;
}

/* Metrics first: what a checkpoint covers must be on the disk when it counts. What is derived of them comes last. */
static mu_status save(loop *l, mu_error *e) {
    mu_trainer *t = l->t;
    if (l->saved_step == t->step) return MU_STATUS_OK;
    double start = mu_time();
    mu_activity_set("checkpoint", -1, NULL);
    mu_status status = still_locked(l, e);
    if (status == MU_STATUS_OK && l->metrics) status = mu_metrics_sync(l->metrics, e);
    status = mu_agree(t->mesh->world, status, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_save(t, e);
    if (status != MU_STATUS_OK) return status;
    l->saved_step = t->step;
    if (l->metrics) mu_metrics_write_routing(l->metrics, t->step >= t->cfg.train.steps);
    l->save_seconds = mu_time() - start;
    if (l->progress) mu_progress_say(l->progress, "checkpoint of step %lld written", (long long)t->step);
    return MU_STATUS_OK;
}

static mu_status evaluate(loop *l, mu_error *e) {
    mu_trainer *t = l->t;
    int n = 0;
    if (!evaluates(t)) return MU_STATUS_OK;
    double mean = mu_evaluate(t, t->cfg.train.eval_sequences, l->domains);
    for (int i = 0; i < t->corpus.n_domains; i++) n += l->domains[i].tokens > 0;
    mu_status status = still_locked(l, e);
    if (status == MU_STATUS_OK && l->metrics) status = mu_metrics_eval(l->metrics, t, mean, l->domains, e);
    if (l->progress)
        mu_progress_say(l->progress, "validation at step %lld: %.4f nats a token over %d domain%s",
                        (long long)t->step, mean, n, n == 1 ? "" : "s");
    return mu_agree(t->mesh->world, status, e);
}

static mu_status log_step(loop *l, const mu_step_result *r, mu_error *e) {
    mu_trainer *t = l->t;
    bool logged = due(t->cfg.log.every, t->step, t->cfg.train.steps) ||
                  (t->cfg.log.every > 0 && t->step == 1);
    l->window_seconds += r->seconds, l->window_steps++;
    double rate = (double)(l->window_steps * t->cfg.train.global_batch_size * t->cfg.train.seq_len) /
                  l->window_seconds;
    if (l->progress) mu_progress_step(l->progress, t, r, logged, rate);
    mu_status status = MU_STATUS_OK;
    if (!logged) look_after_lock(l);
    else {
        status = still_locked(l, e);
        if (status == MU_STATUS_OK && l->metrics) status = mu_metrics_step(l->metrics, t, r, rate, e);
        l->window_seconds = 0, l->window_steps = 0;
        if (!mu_fault("collective", t->mesh->world->rank)) status = mu_agree(t->mesh->world, status, e);
    }
    return status;
}

/* Once it is known how long steps and checkpoints take: does a plain Ctrl-C leave time for them? */
static void warn_of_kills(loop *l, double step_seconds) {
    enum { KNOWN = 3 };
    l->recent[l->n_recent++ % RECENT] = step_seconds;
    double least = step_seconds; /* the first steps, and those during which the job was stopped, are slower than others */
    for (int64_t i = 0; i < RECENT && i < l->n_recent; i++) least = fmin(least, l->recent[i]);
    double needed = least + l->save_seconds, left = kill_timeout();
    if (!l->progress || l->warned || l->n_recent < KNOWN || !mu_launcher() || needed < left) return;
    l->warned = true;
    mu_log(MU_LOG_WARNING, "a step%s takes %.1f s, and mpirun kills its ranks %.0f s after Ctrl-C, TERM or HUP: the steps since"
           " the last checkpoint would be lost. Stop this job with kill -USR1 %ld, or start mpirun with"
           " --mca odls_base_sigkill_timeout %.0f", l->save_seconds > 0 ? " with a checkpoint" : "", needed, left,
           mu_launcher(), 10 * ceil(needed));
}

/* After a signal: the checkpoint comes first, and an evaluation that is due only if there is time left. */
static mu_status stop(loop *l, bool evaluation_due, mu_error *e) {
    mu_status status = save(l, e);
    if (status == MU_STATUS_OK && evaluation_due) status = evaluate(l, e);
    if (status != MU_STATUS_OK) return status;
    return mu_error_set(e, MU_STATUS_REQUEUE, "stop signal received; checkpoint saved at step %lld. Run the same command to"
                        " resume", (long long)l->t->step);
}

static mu_status run(loop *l, mu_error *e) {
    mu_trainer *t = l->t;
    int64_t last = t->cfg.train.steps;
    mu_status status = MU_STATUS_OK;
    while (t->step < last && status == MU_STATUS_OK) {
        mu_step_result r = mu_trainer_step(t, &stop_asked);
        if (r.interrupted) return stop(l, false, e);
        if (!r.finite) {
            char *why = mu_trainer_explain_nonfinite(t);
            mu_error_set(e, MU_STATUS_NUMERIC, "%s", why);
            free(why);
            return MU_STATUS_NUMERIC;
        }
        status = log_step(l, &r, e);
        warn_of_kills(l, r.seconds);
        bool evaluation_due = due(t->cfg.train.eval_every, t->step, last), at_end = t->step == last;
        if (status == MU_STATUS_OK && r.stop && !at_end) return stop(l, evaluation_due, e);
        if (status == MU_STATUS_OK && evaluation_due) status = evaluate(l, e);
        if (status == MU_STATUS_OK && (at_end || due(t->cfg.checkpoint.every, t->step, last))) status = save(l, e);
    }
    return status;
}

static void print_end(const loop *l) {
    const mu_trainer *t = l->t;
    mu_print_domains(t, l->domains);
    mu_print_expert_load(t);
    mu_print("\nwritten to %s: checkpoints/, metrics.jsonl, statistics.rec, routing.h5, config.resolved.yaml, run.json\n"
           "look further: muster inspect %s; muster generate %s --prompt \"The \"\n",
           t->cfg.run.dir, t->cfg.run.dir, t->cfg.run.dir);
    fflush(stdout);
}

/* A run that was finished already: nothing to train, the results once more. */
static void show_finished(loop *l) {
    mu_trainer *t = l->t;
    if (t->mesh->world->rank == 0)
        printf("step %lld of %lld: this run is finished; a larger train.steps goes on\n", (long long)t->step,
               (long long)t->cfg.train.steps);
    if (evaluates(t)) mu_evaluate(t, t->cfg.train.eval_sequences, l->domains);
}

static mu_status train(mu_trainer *t, const arguments *a, int argc, char **argv, mu_error *e) {
    loop l = { .t = t, .saved_step = -1 };
    mu_manifest m = { 0 };
    bool found = false, root = t->mesh->world->rank == 0;
    mu_watch_start(t->mesh->world, (double)t->cfg.run.watchdog, mu_report_stall);
    mu_status status = mu_run_claim(t, &l.lock, e);
    if (status == MU_STATUS_OK) status = open_run(t, a->resume, &m, &found, e);
    if (status == MU_STATUS_OK) status = mu_run_describe(t, argc, argv, e);
    if (status == MU_STATUS_OK && root) status = mu_metrics_open(&l.metrics, t, e);
    status = mu_agree(t->mesh->world, status, e);
    if (status == MU_STATUS_OK && found) status = mu_checkpoint_set_aside(t, e);
    if (status == MU_STATUS_OK) {
        if (found) l.saved_step = t->step;
        t->peak_flops = measure_peak(t);
        l.domains = mu_alloc((size_t)t->corpus.n_domains, sizeof *l.domains);
        if (root) {
            if (!quiet(t)) print_start(t, found);
            l.progress = mu_progress_open(t);
        }
        if (t->step >= t->cfg.train.steps) show_finished(&l);
        status = run(&l, e);
        mu_progress_close(l.progress);
        if (status == MU_STATUS_OK && root && !quiet(t)) print_end(&l);
    }
    mu_metrics_close(l.metrics);
    mu_lock_release(l.lock);
    mu_watch_stop();
    mu_manifest_free(&m);
    free(l.domains);
    return status;
}

/* All ranks were started with the same program, arguments and options. Collective, agreed. */
static mu_status agree_on_options(mu_comm *world, const arguments *a, const mu_config *cfg, mu_error *e) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    fprintf(out, "version: " MU_VERSION "\n--dry-run: %s\n--resume: %s\n", a->dry_run ? "yes" : "no", a->resume);
    int n;
    const mu_option *table = mu_config_table(&n);
    for (int i = 0; i < n; i++) {
        char *value = mu_option_text(&table[i], cfg);
        fprintf(out, "%s.%s: %s\n", table[i].section, table[i].key, value);
        free(value);
    }
    fclose(out);
    mu_status status = mu_agree_text(world, MU_STATUS_CONFIG, "options differ from those of rank 0; start all ranks with the"
                                     " same configuration and overrides:", text, e);
    free(text);
    return status;
}

int mu_cmd_train(int argc, char **argv) {
    mu_error e = { 0 };
    arguments a;
    mu_trainer t = { 0 };
    catch_signals(); /* before MPI starts: a requeue may come at any time */
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_report_error(&e, rank); /* messages know their rank from here on */
    mu_status status = mu_agree(world, parse(argc, argv, &a, &e), &e);
    if (status == MU_STATUS_OK) {
        status = mu_config_load(&t.cfg, a.config, a.n_overrides, a.overrides, a.ranks ? a.ranks : world->size,
                                !a.dry_run, &e);
        status = mu_agree_each(world, status, &e);
        if (status == MU_STATUS_OK) status = agree_on_options(world, &a, &t.cfg, &e);
        if (status != MU_STATUS_OK) mu_config_free(&t.cfg);
    }
    int ranks = a.ranks ? a.ranks : world->size, ep = (int)t.cfg.parallel.ep;
    mu_comm_free(world);
    if (status == MU_STATUS_OK) {
        mu_mesh *mesh = a.dry_run ? mu_mesh_planned(0, ranks, ep) : mu_mesh_open(NULL, ep);
        t.mesh = mesh;
        if (!a.dry_run) status = train(&t, &a, argc, argv, &e);
        else if (rank == 0) status = mu_dry_run(&t, &e);
        mu_trainer_close(&t);
        mu_mesh_close(mesh);
    }
    free(a.overrides);
    free(a.resume);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}
