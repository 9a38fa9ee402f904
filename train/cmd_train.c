/* cmd_train.c - muster train: trains a model from a configuration file. */
#include "train/surgery.h"
#include "train/training.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The stop signal received, or 0. Training then saves a checkpoint and exits. A second Ctrl-C exits at once. */
static volatile sig_atomic_t stop_signal;
static void on_signal(int number) {
    if (number == SIGINT && stop_signal == SIGINT) {
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);
    }
    stop_signal = number;
}

/* HUP stays ignored if nohup or the shell ignores it. */
static void catch_signals(void) {
    struct sigaction action = { .sa_handler = on_signal }, old;
    sigemptyset(&action.sa_mask);
    int numbers[] = { SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        sigaction(numbers[i], NULL, &old);
        if (numbers[i] != SIGHUP || old.sa_handler != SIG_IGN) sigaction(numbers[i], &action, NULL);
    }
}

typedef struct {
    char *config, *resume, *fork, *init;
    const char *record, *replay; /* files of --record-routing and --replay-routing; NULL: not given */
    bool dry_run;
    int ranks; /* planned ranks of a dry run; 0: the running ones */
    int n_overrides;
    char **overrides;
} arguments;

static mu_status set_path(char **path, const char *text, mu_error *e) {
    free(*path);
    return mu_expand_home(text, path, e);
}

static bool read_ranks(const char *text, int *ranks) {
    char *end;
    long n = strtol(text, &end, 10);
    *ranks = (int)n;
    return end != text && !*end && n >= 1 && n <= 65536;
}

static mu_status parse(int argc, char **argv, arguments *a, mu_error *e) {
    *a = (arguments){ .resume = mu_strdup("auto"), .overrides = mu_alloc((size_t)argc, sizeof(char *)) };
    const char *resume = NULL, *fork = NULL, *init = NULL, *ranks = NULL;
    const mu_argument options[] = { { "--resume", &resume, "auto, never or a path" },
                                    { "--fork", &fork, "the path of a run folder or a checkpoint" },
                                    { "--init-from", &init, "the path of a run folder, a checkpoint or a folder of safetensors" },
                                    { "--ranks", &ranks, NULL },
                                    { "--record-routing", &a->record, "FILE.h5" },
                                    { "--replay-routing", &a->replay, "FILE.h5" } };
    mu_status status = MU_STATUS_OK;
    for (int i = 2; i < argc && status == MU_STATUS_OK; i++) {
        bool found;
        status = mu_argument_find(argc, argv, &i, options, sizeof options / sizeof *options, &found, e);
        if (found) continue;
        if (!strcmp(argv[i], "--dry-run")) a->dry_run = true;
        else if (argv[i][0] == '-') return mu_error_set(e, MU_STATUS_USAGE, "unknown option %s", argv[i]);
        else if (strchr(argv[i], '=')) a->overrides[a->n_overrides++] = argv[i];
        else if (!a->config) a->config = argv[i];
        else
            return mu_error_set(e, MU_STATUS_USAGE,
                                "unexpected argument '%s'; overrides are section.key=value",
                                argv[i]);
    }
    if (status == MU_STATUS_OK && resume) status = set_path(&a->resume, resume, e);
    if (status == MU_STATUS_OK && fork) status = set_path(&a->fork, fork, e);
    if (status == MU_STATUS_OK && init) status = set_path(&a->init, init, e);
    if (status != MU_STATUS_OK) return status;
    if (ranks && !read_ranks(ranks, &a->ranks))
        return mu_error_set(e, MU_STATUS_USAGE, "--ranks %s: expected a whole number from 1 to 65536", ranks);
    if (a->fork && a->init)
        return mu_error_set(e, MU_STATUS_USAGE, "--init-from %s and --fork %s exclude each other: a fork takes optimizer state and step, too",
                            a->init, a->fork);
    if ((a->fork || a->init) && strcmp(a->resume, "auto") && strcmp(a->resume, "never"))
        return mu_error_set(e, MU_STATUS_USAGE, "%s %s and --resume %s exclude each other", a->fork ? "--fork" : "--init-from",
                            a->fork ? a->fork : a->init, a->resume);
    if (a->dry_run && (a->record || a->replay))
        return mu_error_set(e, MU_STATUS_USAGE, "%s-routing cannot be combined with --dry-run", a->record ? "--record" : "--replay");
    if (a->ranks && !a->dry_run)
        return mu_error_set(e, MU_STATUS_USAGE, "--ranks needs --dry-run");
    return a->config ? mu_expand_argument(&a->config, e)
                     : mu_error_set(e, MU_STATUS_USAGE,
                                    "train needs a configuration file, for example configs/first.yaml");
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

/* A path given to --resume must exist, and a run folder holds one run. Rank 0. */
static mu_status check_path(const char *resume, const char *dir, mu_error *e) {
    if (!mu_file_exists(resume))
        return mu_error_set(e, MU_STATUS_NOINPUT, "--resume %s: no such file or folder", resume);
    if (holds_a_run(dir) && !mu_file_is_inside(resume, dir))
        return mu_error_set(
            e, MU_STATUS_CONFIG,
            "run.dir %s already holds a run, and --resume %s belongs to another; choose another run.dir, or omit "
            "--resume to resume the existing run",
            dir, resume);
    return MU_STATUS_OK;
}

/* Where a run begins. */
typedef struct {
    const char *path;               /* where its checkpoint was found: a run folder or a checkpoint */
    mu_manifest m;
    int64_t newest;                 /* forked: step of the newest checkpoint when it was found */
    bool found, forked;             /* found false: a new run. forked: a new run from the checkpoint of another */
    mu_source init;                 /* path NULL: not given, or a resumed run */
} start;

/* Finds the checkpoint to resume from; *found false: a new run. Collective, agreed. */
static mu_status choose_checkpoint(mu_comm *batch, const char *dir, const char *resume, mu_manifest *m, bool *found, mu_error *e) {
    *found = false;
    if (!strcmp(resume, "auto")) return mu_checkpoint_find(batch, dir, m, found, e);
    if (!strcmp(resume, "never")) {
        mu_status status = MU_STATUS_OK;
        if (batch->rank == 0 && holds_a_run(dir))
            status = mu_error_set(
                e, MU_STATUS_CONFIG,
                "run.dir %s already holds a run (--resume never); choose another run.dir, "
                "or omit --resume to resume it",
                dir);
        return mu_agree(batch, status, e);
    }
    mu_status status = mu_agree(batch, batch->rank == 0 ? check_path(resume, dir, e) : MU_STATUS_OK, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_find(batch, resume, m, found, e);
    if (status == MU_STATUS_OK && !*found)
        status = mu_error_set(e, MU_STATUS_DATA, "--resume %s: no checkpoint found", resume);
    return status;
}

/* The step of the newest checkpoint of a run, valid or not; -1: none. Collective. */
static int64_t newest_step(mu_comm *batch, const char *run) {
    int64_t *steps = NULL, newest = batch->rank == 0 && mu_checkpoint_list(run, &steps) > 0 ? steps[0] : -1;
    free(steps);
    mu_broadcast(batch, 0, &newest, sizeof newest);
    return newest;
}

/* A running job replaces its checkpoints: when its newest is another one afterwards, a failure is no damage. */
static bool has_moved_on(mu_comm *batch, const start *s, const char *path) { return newest_step(batch, path) != s->newest; }

/* Collective, agreed. */
static mu_status find_parent(mu_comm *batch, const char *path, start *s, mu_error *e) {
    enum { TRIES = 20 };
    mu_status status = MU_STATUS_DATA;
    for (int i = 0; i < TRIES && status != MU_STATUS_OK; i++) {
        s->newest = newest_step(batch, path);
        status = mu_checkpoint_find(batch, path, &s->m, &s->found, e);
        if (!has_moved_on(batch, s, path)) break;
    }
    return status;
}

/* The checkpoint to fork from. Collective, agreed. */
static mu_status choose_parent(mu_comm *batch, const char *path, start *s, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    if (batch->rank == 0 && !mu_file_exists(path))
        status = mu_error_set(e, MU_STATUS_NOINPUT, "--fork %s: no such file or folder", path);
    status = mu_agree(batch, status, e);
    if (status == MU_STATUS_OK) status = find_parent(batch, path, s, e);
    if (status != MU_STATUS_OK) return status;
    if (!s->found)
        return mu_error_set(e, MU_STATUS_DATA, "--fork %s: no checkpoint found; name a run folder, or a checkpoint in it"
                            " (RUN/checkpoints/step-N), or take weights alone from a model of Hugging Face with --init-from", path);
    s->path = path, s->forked = true;
    return MU_STATUS_OK;
}

/* Collective, agreed. */
static mu_status choose_start(mu_comm *batch, const mu_config *cfg, const arguments *a, start *s, mu_error *e) {
    const char *dir = cfg->run.dir;
    mu_status status = choose_checkpoint(batch, dir, a->resume, &s->m, &s->found, e);
    s->path = !strcmp(a->resume, "auto") || !strcmp(a->resume, "never") ? dir : a->resume;
    if (status != MU_STATUS_OK || !(a->fork || a->init)) return status;
    if (!s->found) return a->fork ? choose_parent(batch, a->fork, s, e) : MU_STATUS_OK;
    if (batch->rank == 0)
        mu_print("note: %s already holds a checkpoint, which is resumed; %s %s has no effect\n", dir, a->fork ? "--fork" : "--init-from",
                 a->fork ? a->fork : a->init);
    return status;
}

/* train.steps counts from the beginning of the first run. */
static mu_status check_steps(const mu_config *cfg, const mu_manifest *m, mu_error *e) {
    if (m->step < cfg->train.steps) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_CONFIG, "train.steps is %lld, and %s is of step %lld: a fork goes on from there, and train.steps counts"
                        " all steps; increase it, or fork from an older checkpoint", (long long)cfg->train.steps, m->path,
                        (long long)m->step);
}

static bool quiet(const mu_config *cfg) { return cfg->log.progress == MU_LOG_PROGRESS_QUIET; }

/* The run's copy of the tokenizer is used where the file that the configuration still names is gone. Collective, agreed. */
static mu_status open_tokenizer(mu_training *t, mu_comm *batch, const start *s, mu_error *e) {
    const mu_config *cfg = &t->cfg;
    const mu_source from = { .path = s->path, .m = s->m };
    mu_status status = mu_tokenizer_open(&t->tokenizer, cfg->data.tokenizer, e);
    if (status == MU_STATUS_NOINPUT && s->found && !strcmp(cfg->data.tokenizer, s->m.cfg.data.tokenizer))
        status = mu_checkpoint_tokenizer_open(&t->tokenizer, &s->m, e);
    if (status == MU_STATUS_OK && s->found) status = mu_source_tokenizer_check(&from, cfg, t->tokenizer, e);
    if (status == MU_STATUS_OK && s->init.path) status = mu_source_tokenizer_check(&s->init, cfg, t->tokenizer, e);
    return mu_agree(batch, status, e);
}

/* Resumes from *m with all parts open. */
static mu_status resume_from(mu_training *t, const mu_manifest *m, mu_error *e) {
    mu_comm *batch = t->state.mesh->batch;
    char *notes = NULL;
    mu_status status = mu_agree(batch, mu_checkpoint_compare(&t->cfg, &t->texts.corpus, m, &notes, e), e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_load(&t->state, m, t->tokenizer, e);
    if (status == MU_STATUS_OK && batch->rank == 0) {
        mu_print("resuming from %s (step %lld, written by %d rank%s)\n", m->path, (long long)m->step, m->ranks,
               m->ranks == 1 ? "" : "s");
        if (notes[0]) printf("changed options (new values used; learning-rate schedule recomputed):\n");
        mu_print_text(notes);
    }
    free(notes);
    return status;
}

/* Closes all parts and restores the configuration from before mu_config_inherit. */
static void reset(mu_training *t, const mu_config *before) {
    mu_config cfg = t->cfg;
    cfg.model = before->model, cfg.moe = before->moe, cfg.optim = before->optim;
    t->cfg = (mu_config){ 0 };
    mu_training_close(t);
    t->cfg = cfg;
}

/* A new run, with random weights or those of --init-from. Collective, agreed. */
static mu_status begin(mu_training *t, start *s, mu_error *e) {
    if (!s->init.path) return MU_STATUS_OK;
    mu_status status = mu_training_init(t, &s->init, e);
    if (status == MU_STATUS_OK && t->state.mesh->batch->rank == 0) mu_print("weights from %s\n", t->state.origin.path);
    return status;
}

/* Opens all parts, for a new run, to resume or to fork. A checkpoint whose tensors turn out invalid while loading is dropped with
 * everything taken from it, and an older one is tried. Collective, agreed. */
static mu_status open_run(mu_training *t, mu_mesh *mesh, const arguments *a, start *s, mu_error *e) {
    const mu_config before = t->cfg;
    mu_status status = choose_start(mesh->batch, &t->cfg, a, s, e);
    while (status == MU_STATUS_OK) {
        if (s->forked) status = check_steps(&t->cfg, &s->m, e);
        if (s->found) mu_config_inherit(&t->cfg, &s->m.cfg);
        if (status == MU_STATUS_OK) status = open_tokenizer(t, mesh->batch, s, e);
        if (status == MU_STATUS_OK) status = mu_training_open(t, mesh, s->found ? s->m.val_split : MU_VAL_DOCUMENTS_BY_HASH, e);
        if (status == MU_STATUS_OK && s->found && s->m.order_in_memory) status = mu_loader_order_in_memory(t->texts.loader, e);
        if (status != MU_STATUS_OK) return status;
        if (!s->found) return begin(t, s, e);
        status = s->forked ? mu_training_fork(t, &s->m, e) : resume_from(t, &s->m, e);
        if (status != MU_STATUS_DATA) return status;
        status = mu_checkpoint_fall_back(mesh->batch, s->path, &s->m, e);
        if (status == MU_STATUS_OK) reset(t, &before);
    }
    return status;
}

/* How to stop this run without losing steps. */
static void print_how_to_stop(void) {
    long launcher = mu_launcher();
    if (launcher)
        printf("to stop: kill -USR1 %ld (mpirun) saves a checkpoint and exits with 75; so do Ctrl-C, TERM and HUP, but mpirun"
               " kills the ranks %.0f s after those\n", launcher, mu_kill_timeout());
    else
        printf("to stop: Ctrl-C, or kill %ld, saves a checkpoint after the current step and exits with 75; a second Ctrl-C"
               " ends it at once\n", (long)getpid());
}

static void print_missing_validation(const mu_training *t) {
    const mu_config *cfg = &t->cfg;
    bool evaluates = cfg->train.eval_every > 0, probes = t->state.model->n_moe && cfg->stats.every > 0 && cfg->stats.budget > 0;
    if ((!evaluates && !probes) || mu_texts_have_validation(&t->texts)) return;
    printf("note: no validation data: data.val_fraction is 0 or the texts are too short. Not measured: %s%s%s\n",
           evaluates ? "validation loss" : "", evaluates && probes ? "; " : "",
           probes ? "what experts know (loss of each domain on its probe, criticality, flip rate)" : "");
}

static void print_model_and_data(const mu_training *t) {
    const mu_config *cfg = &t->cfg;
    const mu_corpus *c = &t->texts.corpus;
    mu_model_size size = mu_model_measure(&cfg->model, &cfg->moe, t->state.model->vocab_size, cfg->train.seq_len);
    int64_t tokens = 0, n = t->batches.shape.micro_batches;
    for (int i = 0; i < c->n_domains; i++) tokens += c->domains[i].n_tokens;
    printf("model: %.2f M parameters, %.2f M active parameters, %.1f MFLOPs per token (forward + backward)\n",
           (double)size.total * 1e-6, (double)size.active * 1e-6, size.train_flops * 1e-6);
    printf("data: %d domain%s, %.2f M tokens%s\n", c->n_domains, c->n_domains == 1 ? "" : "s", (double)tokens * 1e-6,
           c->synthetic ? " (synthetic: made by the built-in generator, not real text)" : "");
    char *phases = mu_phases_text(&cfg->data, cfg->train.steps);
    mu_print_text(phases);
    free(phases);
    char *protection = mu_protect_text(cfg, &t->texts);
    mu_print_text(protection);
    free(protection);
    printf("batch: %lld sequences of %lld tokens per step, in %lld micro-batch%s per rank\n",
           (long long)cfg->train.global_batch_size, (long long)cfg->train.seq_len, (long long)n, n == 1 ? "" : "es");
    if (t->state.model->n_moe && n > 1 && (cfg->moe.balance & MU_BALANCE_GLOBAL_AUX) && cfg->moe.global_aux_counts == MU_MOE_COUNTS_EXACT)
        printf("note: global_aux_loss with several micro-batches needs an extra counting pass (about a third more compute);\n"
               "      fewer micro-batches, moe.global_aux_counts=previous or balance: [expert_bias] avoid it\n");
    print_missing_validation(t);
}

static void print_start(const mu_training *t, const start *s, const arguments *a) {
    const mu_mesh *mesh = t->state.mesh;
    int ranks = mesh->batch->size, threads = mu_threads();
    bool bf16 = t->cfg.train.dtype == MU_TRAIN_DTYPE_BF16 && strstr(t->dev->name, "bf16");
    mu_print("muster " MU_VERSION ": %d rank%s x %d thread%s on %s, dp %d x ep %d, %s\n", ranks, ranks == 1 ? "" : "s",
             threads, threads == 1 ? "" : "s", t->dev->name, mesh->dp, mesh->ep, mu_dist_library());
    print_model_and_data(t);
    if (t->peak_flops > 0)
        printf("measured peak: %.0f GFLOP/s (%s GEMM, all ranks); MFU is relative to this\n", t->peak_flops * 1e-9,
               bf16 ? "bf16" : mu_dtype_name(t->dev->compute));
    mu_print("run folder: %s (%s)\n", t->cfg.run.dir, s->forked ? "new run, forked" : s->found ? "resumed" : "new run");
    mu_routing_record_print(a->replay, a->record);
    print_how_to_stop();
    fflush(stdout);
}

static double measure_peak(const mu_training *t) {
    mu_comm *batch = t->state.mesh->batch;
    mu_barrier(batch);
    double peak = mu_peak_measure(t->dev);
    mu_all_reduce(batch, MU_REDUCE_SUM, MU_DTYPE_F64, &peak, 1);
    return peak;
}

static void print_end(const mu_training *t, const mu_recorder *rec) {
    const char *dir = t->cfg.run.dir;
    mu_print_domains(&t->texts, t->cfg.train.eval_sequences, mu_recorder_losses(rec));
    mu_print_expert_load(&t->state.stats->window, t->state.model->moe_layers);
    mu_print("\nwritten to %s: checkpoints/, metrics.jsonl, events.jsonl, statistics.rec, routing.h5, tensorboard/, config.resolved.yaml, run.json\n"
             "next: muster report %s; muster inspect %s; muster generate %s --prompt \"The \"\n", dir, dir, dir, dir);
    fflush(stdout);
}

/* The run is already finished: evaluates again to show the results. */
static void show_finished(const mu_training *t, mu_recorder *rec) {
    if (t->state.mesh->batch->rank == 0)
        printf("already at step %lld (train.steps=%lld). Increase train.steps to continue\n", (long long)t->state.step,
               (long long)t->cfg.train.steps);
    mu_recorder_reevaluate(rec);
}

/* Collective, agreed. */
static mu_status keep_tokenizer(const mu_training *t, mu_error *e) {
    const mu_mesh *mesh = t->state.mesh;
    return mu_agree(mesh->batch, mu_mesh_writes_shared(mesh) ? mu_run_keep_tokenizer(t->cfg.run.dir, t->tokenizer, e) : MU_STATUS_OK, e);
}

/* init: the source of --init-from, open, or empty; its owner is the caller. */
static mu_status train(mu_training *t, mu_mesh *mesh, const arguments *a, mu_source *init, int argc, char **argv, mu_error *e) {
    const mu_config *cfg = &t->cfg;
    start s = { .init = *init };
    *init = (mu_source){ 0 };
    mu_lock *lock = NULL;
    mu_recorder *rec = NULL;
    mu_watch_start(mesh->world, (double)cfg->run.watchdog, mu_report_stall);
    mu_status status = mu_run_claim(cfg, mesh, &lock, e);
    if (status == MU_STATUS_OK) status = open_run(t, mesh, a, &s, e);
    mu_source_close(&s.init); /* its weights are loaded */
    mu_manifest_free(&s.m);   /* what it tells of is loaded: the checkpoint may be removed from now on */
    if (status == MU_STATUS_OK) status = keep_tokenizer(t, e);
    if (status == MU_STATUS_OK) status = mu_step_routing_open(t, a->record, a->replay, e);
    bool resumed = s.found && !s.forked;
    if (status == MU_STATUS_OK) status = mu_run_describe(cfg, t->dev, &t->texts.corpus, &t->state, argc, argv, e);
    if (status == MU_STATUS_OK) t->peak_flops = measure_peak(t);
    if (status == MU_STATUS_OK) status = mu_recorder_open(&rec, t, lock, resumed ? t->state.step : -1, e);
    if (status == MU_STATUS_OK && resumed) status = mu_checkpoint_set_aside(mesh->batch, cfg->run.dir, t->state.step, e);
    if (status == MU_STATUS_OK && resumed) status = mu_archive_set_aside(&t->state, cfg->run.dir, t->state.step, e);
    if (status == MU_STATUS_OK) {
        bool verbose = mesh->batch->rank == 0 && !quiet(cfg);
        if (verbose) print_start(t, &s, a);
        if (s.forked) status = mu_recorder_save(rec, e); /* from now on the run depends on no other */
        if (t->state.step >= cfg->train.steps) show_finished(t, rec);
        if (status == MU_STATUS_OK) status = mu_training_loop(t, rec, &stop_signal, e);
        if (status == MU_STATUS_OK && verbose) print_end(t, rec);
    }
    mu_recorder_close(rec);
    status = mu_step_routing_close(t, status, e);
    mu_lock_release(lock);
    mu_watch_stop();
    return status;
}

/* Checks that all ranks have the same version, arguments and options. Collective, agreed. */
static mu_status agree_on_options(mu_comm *world, const arguments *a, const mu_config *cfg, mu_error *e) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    fprintf(out, "version: " MU_VERSION "\n--dry-run: %s\n--resume: %s\n--fork: %s\n--init-from: %s\n--record-routing: %s\n--replay-routing: %s\n",
            a->dry_run ? "yes" : "no", a->resume, a->fork ? a->fork : "no", a->init ? a->init : "no", a->record ? a->record : "no", a->replay ? a->replay : "no");
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

/* The newest checkpoint of run.dir with a valid manifest. Local. */
static bool read_own(const char *dir, mu_manifest *m) {
    int64_t *steps;
    int n = mu_checkpoint_list(dir, &steps);
    mu_error why;
    bool found = false;
    for (int i = 0; i < n && !found; i++) {
        char *path = mu_checkpoint_path(dir, steps[i]);
        found = mu_manifest_read(m, path, &why) == MU_STATUS_OK;
        free(path);
    }
    free(steps);
    return found;
}

/* Does run.dir hold a run that began with --init-from? It is resumed with the architecture of its checkpoint. */
static bool began_with_weights(const char *dir) {
    mu_manifest m = { 0 };
    bool began = read_own(dir, &m) && m.origin.path[0];
    mu_manifest_free(&m);
    return began;
}

/* Options of the architecture that were not given come from the checkpoint in run.dir, which will be resumed, or else from --init-from,
 * which is then open. Collective, agreed. */
static mu_status configure_from(mu_config *cfg, const arguments *a, mu_comm *world, mu_source *init, mu_error *e) {
    mu_source own = { .path = cfg->run.dir };
    bool resumes = read_own(cfg->run.dir, &own.m);
    mu_broadcast(world, 0, &resumes, sizeof resumes);
    mu_status status = resumes || !a->init ? MU_STATUS_OK : mu_source_open(init, world, a->init, e);
    bool takes_name = resumes && own.m.config && !mu_options_given(&cfg->options, "data", "tokenizer");
    if (status == MU_STATUS_OK && (resumes ? own.m.config : a->init)) status = mu_init_configure(cfg, resumes ? &own : init, e);
    if (takes_name) memcpy(cfg->data.tokenizer, own.m.cfg.data.tokenizer, sizeof cfg->data.tokenizer); /* not that of the copy */
    mu_manifest_free(&own.m);
    return mu_agree_each(world, status, e);
}

/* Collective, agreed. */
static mu_status load_config(mu_config *cfg, const arguments *a, mu_comm *world, mu_source *init, mu_error *e) {
    mu_status status = mu_config_read(cfg, a->config, a->n_overrides, a->overrides, e);
    bool weights = a->init || (status == MU_STATUS_OK && began_with_weights(cfg->run.dir));
    mu_broadcast(world, 0, &weights, sizeof weights);
    if (weights) {
        status = mu_agree_each(world, status, e);
        if (status == MU_STATUS_OK) status = configure_from(cfg, a, world, init, e);
    }
    bool goes_on = status == MU_STATUS_OK || status == MU_STATUS_CONFIG; /* all errors of the configuration are reported together */
    if (goes_on) status = mu_config_finish(cfg, status, a->ranks ? a->ranks : world->size, !a->dry_run, e);
    return mu_agree_each(world, status, e);
}

int mu_cmd_train(int argc, char **argv) {
    mu_error e = { 0 };
    arguments a;
    mu_source init = { 0 };
    mu_training t = { 0 };
    catch_signals(); /* before MPI starts: a requeue may come at any time */
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_report_error(&e, rank); /* messages know their rank from here on */
    mu_status status = mu_agree(world, parse(argc, argv, &a, &e), &e);
    if (status == MU_STATUS_OK) {
        status = load_config(&t.cfg, &a, world, &init, &e);
        if (status == MU_STATUS_OK) status = agree_on_options(world, &a, &t.cfg, &e);
        if (status != MU_STATUS_OK) mu_config_free(&t.cfg);
    }
    int ranks = a.ranks ? a.ranks : world->size, ep = (int)t.cfg.parallel.ep;
    mu_comm_free(world);
    if (status == MU_STATUS_OK) {
        mu_mesh *mesh = a.dry_run ? mu_mesh_planned(0, ranks, ep) : mu_mesh_open(NULL, ep);
        if (!a.dry_run) status = train(&t, mesh, &a, &init, argc, argv, &e);
        else if (rank == 0) status = mu_dry_run(&t.cfg, mesh, &init, &e);
        mu_training_close(&t);
        mu_mesh_close(mesh);
    }
    free(a.overrides);
    free(a.resume);
    free(a.fork);
    free(a.init);
    mu_source_close(&init);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}
