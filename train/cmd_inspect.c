/* cmd_inspect.c - muster inspect and muster verify: show and check runs and checkpoints, without their texts. */
#include "train/run_view.h"
#include "train/train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ inspect */

static double mib(int64_t bytes) { return (double)bytes / (1 << 20); }

static void print_shards(const mu_manifest *m) {
    mu_print("\nshards (%s weights%s)\n", m->dtype, m->weights_only ? "" : ", optimizer state, step counts");
    for (int i = 0; i < m->n_shards; i++) {
        int tensors = 0;
        for (int j = 0; j < m->n_tensors; j++) tensors += m->tensors[j].shard == i;
        mu_print("  %-16s %10.1f MiB  %5d tensors  xxh3 %s\n", m->shards[i].name, mib(m->shards[i].bytes),
               tensors, m->shards[i].hash);
    }
}

/* ------------------------------------------------------------------ the list of state */

/* Kinds of arrays in a checkpoint: weights, optimizer state, and other state of the run. */
enum { WEIGHTS, OPTIMIZER, OTHER, N_KINDS };
typedef struct {
    mu_state_visitor v;
    bool list;                  /* list each array, else only totals */
    struct { int64_t arrays, sharded, bytes; } sum[N_KINDS];
} state_printer;

static int64_t bytes_of(const mu_state *s) { return mu_state_count(s) * (int64_t)mu_store_type_size(s->type); }

static void print_one(mu_state_visitor *v, const mu_state *s) {
    state_printer *p = (state_printer *)v;
    int kind = !s->tensor ? OTHER : s->for_training ? OPTIMIZER : WEIGHTS;
    p->sum[kind].arrays++, p->sum[kind].sharded += s->sharded, p->sum[kind].bytes += bytes_of(s);
    if (!p->list) return;
    char shape[80] = "[";
    size_t used = 1;
    for (int i = 0; i < s->n_dims; i++)
        used += (size_t)snprintf(shape + used, sizeof shape - used, i ? ", %lld" : "%lld", (long long)s->shape[i]);
    snprintf(shape + used, sizeof shape - used, "]");
    mu_print("  %-64s  %s  %-16s  %-10s %12lld\n", s->name, mu_store_type_name(s->type), shape, s->sharded ? "sharded" : "replicated",
             (long long)bytes_of(s));
}

static mu_status print_state(const mu_manifest *m, bool list, mu_error *e) {
    static const char *const names[] = { [WEIGHTS] = "weights", [OPTIMIZER] = "optimizer", [OTHER] = "other state" };
    state_printer p = { .v = { print_one }, .list = list };
    mu_print("\nstate (format version %d%s)\n", m->version, list ? "; name, type, shape, placement, bytes" : "; --state lists it");
    mu_status status = mu_checkpoint_visit(m, &p.v, e);
    for (int i = 0; i < N_KINDS && status == MU_STATUS_OK; i++)
        mu_print("  %-12s %7lld arrays, %lld of them sharded, %lld bytes\n", names[i], (long long)p.sum[i].arrays,
                 (long long)p.sum[i].sharded, (long long)p.sum[i].bytes);
    return status;
}

static void print_checkpoints(const mu_run_view *v) {
    enum { SHOWN = 8 };
    mu_print("  checkpoints of step%s", v->n_checkpoints == 1 ? "" : "s");
    for (int i = 0; i < v->n_checkpoints && i < SHOWN; i++) mu_print("%s %lld", i ? "," : "", (long long)v->checkpoints[i]);
    if (v->n_checkpoints > SHOWN) mu_print(" and %d older ones", v->n_checkpoints - SHOWN);
    mu_print("\n");
}

/* The last value of that key in the metrics. */
typedef struct { const char *key, *name; int64_t step; double value; } last_value;

static mu_status print_losses(const mu_run_view *v, mu_error *e) {
    last_value last[] = { { "train/ce_loss", "training loss", 0, 0 }, { "val/ce_loss", "validation loss", 0, 0 } };
    int64_t steps = 0, skipped;
    mu_run_metrics m;
    mu_status status = mu_run_metrics_open(&m, v, e);
    while (status == MU_STATUS_OK && mu_run_metrics_next(&m)) {
        steps += m.kind == MU_LINE_TRAINING;
        for (int i = 0; i < 2; i++) {
            const json_t *value = json_object_get(m.line, last[i].key);
            if (json_is_number(value)) last[i].step = m.step, last[i].value = json_number_value(value);
        }
    }
    skipped = m.skipped;
    status = mu_run_metrics_close(&m, status, e);
    if (status != MU_STATUS_OK) return status;
    mu_print("  %lld logged step%s", (long long)steps, steps == 1 ? "" : "s");
    for (int i = 0; i < 2; i++)
        if (last[i].step) mu_print("; %s %.4f (step %lld)", last[i].name, last[i].value, (long long)last[i].step);
    mu_print("\n");
    if (skipped) mu_print("  metrics.jsonl: %lld line%s damaged\n", (long long)skipped, skipped == 1 ? " is" : "s are");
    return MU_STATUS_OK;
}

/* The run as a whole. A folder with only checkpoints is allowed, too. */
static void print_run(const char *dir) {
    mu_run_view v;
    mu_error why = { 0 };
    mu_status status = mu_run_view_open(&v, dir, &why);
    if (status == MU_STATUS_OK) {
        const char *started = json_string_value(json_object_get(v.facts, "started"));
        mu_print("%s: %s%s%s%s\n", dir, mu_run_state_name(v.state), v.moved ? ", moved or copied" : "",
                 started ? "; last started " : "", started ? started : "");
        if (v.n_checkpoints) print_checkpoints(&v);
        status = print_losses(&v, &why);
        mu_print("\n");
    }
    if (status != MU_STATUS_OK && status != MU_STATUS_NOINPUT) mu_log(MU_LOG_WARNING, "%s", why.text);
    mu_run_view_close(&v);
}

/* Of weights that were converted no more is known: the other options in the manifest are the defaults. */
static void print_architecture(const mu_config *cfg) {
    int n;
    const mu_option *table = mu_config_table(&n);
    const char *section = "";
    for (int i = 0; i < n; i++) {
        if (!mu_option_is_architecture(&table[i]) && table[i].offset != offsetof(mu_config, model.max_seq_len)) continue;
        char *value = mu_option_text(&table[i], cfg);
        if (strcmp(section, table[i].section)) mu_print("%s:\n", section = table[i].section);
        mu_print("  %s: %s\n", table[i].key, value);
        free(value);
    }
}

static void print_training(const mu_manifest *m) {
    const mu_config *cfg = &m->cfg;
    mu_print("  step %lld of %lld, %lld tokens seen, written by %d rank%s (ep %d)\n", (long long)m->step, (long long)cfg->train.steps,
             (long long)mu_tokens_seen(cfg, &m->parent, m->step), m->ranks, m->ranks == 1 ? "" : "s", m->ep);
}

static mu_status inspect(const mu_manifest *m, bool list_state, mu_error *e) {
    mu_checkpoint_shape s;
    mu_status status = mu_checkpoint_shape_open(&s, m, true, e);
    if (status == MU_STATUS_OK) {
        const mu_config *cfg = &m->cfg;
        mu_model_size size = mu_model_measure(&cfg->model, &cfg->moe, m->vocab_size, cfg->train.seq_len);
        mu_print("%s\n", m->path);
        if (m->weights_only) mu_print("  weights only (muster convert)\n");
        else print_training(m);
        if (m->parent.checkpoint[0])
            mu_print("  forked from %s at step %lld\n", m->parent.run[0] ? m->parent.run : m->parent.checkpoint, (long long)m->parent.step);
        for (int i = 0; i < m->ancestors.n; i++) {
            const mu_parent *p = &m->ancestors.list[i];
            mu_print("    that one from %s at step %lld\n", p->run[0] ? p->run : p->checkpoint, (long long)p->step);
        }
        if (m->origin.path[0]) mu_print("  first weights from %s\n", m->origin.path);
        mu_print("  %lld parameters, %lld active per token, vocabulary %lld (%s)\n", (long long)size.total, (long long)size.active,
                 (long long)m->vocab_size, m->tokenizer);
        if (!m->weights_only) mu_print("  texts: fingerprint %s\n", m->fingerprint);
        print_shards(m);
        status = print_state(m, list_state, e);
        if (s.stats && cfg->moe.num_experts && !m->weights_only) mu_print_expert_load(&s.stats->window, s.t.model->moe_layers);
        printf("\nconfiguration\n");
        if (m->weights_only) print_architecture(cfg);
        else mu_print_text(m->config);
    }
    mu_checkpoint_shape_close(&s);
    return status;
}

static mu_status one_argument(int argc, char **argv, mu_error *e) {
    if (argc != 3 || argv[2][0] == '-')
        return mu_error_set(e, MU_STATUS_USAGE, "%s needs one run folder or checkpoint", argv[1]);
    mu_status status = mu_expand_argument(&argv[2], e);
    if (status != MU_STATUS_OK) return status;
    return mu_file_exists(argv[2])
               ? MU_STATUS_OK
               : mu_error_set(e, MU_STATUS_NOINPUT, "%s: no such file or folder", argv[2]);
}

/* Removes --state from the arguments. */
static bool take_state_option(int *argc, char **argv) {
    int n = 0;
    for (int i = 0; i < *argc; i++)
        if (i < 2 || strcmp(argv[i], "--state")) argv[n++] = argv[i];
    bool given = n < *argc;
    *argc = n;
    return given;
}

int mu_cmd_inspect(int argc, char **argv) {
    mu_error e = { 0 };
    mu_manifest m = { 0 };
    bool found = false;
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_report_error(&e, rank);
    bool list_state = take_state_option(&argc, argv);
    mu_status status = mu_agree(world, one_argument(argc, argv, &e), &e);
    if (status == MU_STATUS_OK && rank == 0 && !mu_checkpoint_named(argv[2])) print_run(argv[2]);
    if (status == MU_STATUS_OK) status = mu_checkpoint_find(world, argv[2], &m, &found, &e);
    if (status == MU_STATUS_OK && !found)
        status = mu_checkpoint_missing(argv[2], &e);
    if (status == MU_STATUS_OK && rank == 0) status = inspect(&m, list_state, &e);
    mu_manifest_free(&m);
    mu_comm_free(world);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}

/* ------------------------------------------------------------------ verify */

/* Verifies one checkpoint: manifest, hashes, then every tensor. Prints one line. */
static mu_status verify(const char *path) {
    mu_manifest m;
    mu_error e = { 0 };
    mu_status status = mu_manifest_read(&m, path, &e);
    if (status == MU_STATUS_OK) status = mu_manifest_verify(&m, 0, 1, &e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_check(&m, true, &e);
    if (status == MU_STATUS_OK)
        mu_print("ok       %s: step %lld, %d tensors in %d shard%s\n", path, (long long)m.step, m.n_tensors,
               m.n_shards, m.n_shards == 1 ? "" : "s");
    else mu_print("damaged  %s: %-s\n", path, e.text);
    mu_manifest_free(&m);
    return status == MU_STATUS_OK ? status : MU_STATUS_DATA;
}

/* Every checkpoint of a run, oldest first, or the named one. Damage is reported on stdout; `e`
 * is set when there is no checkpoint. */
static mu_status verify_all(const char *path, mu_error *e) {
    char *checkpoints = mu_format("%s/checkpoints", path);
    bool run = mu_file_exists(checkpoints);
    int64_t *steps = NULL;
    int n = run ? mu_checkpoint_list(path, &steps) : 0;
    mu_status status = MU_STATUS_OK;
    if (n < 0) status = mu_error_set(e, MU_STATUS_IO, "%s cannot be read: %s", checkpoints, strerror(errno));
    else if (!n && mu_checkpoint_named(path)) status = verify(path);
    else if (!n) status = mu_checkpoint_missing(path, e);
    for (int i = n - 1; i >= 0; i--) {
        char *one = mu_checkpoint_path(path, steps[i]);
        mu_status s = verify(one);
        if (s != MU_STATUS_OK) status = s;
        free(one);
    }
    free(steps);
    free(checkpoints);
    return status;
}

int mu_cmd_verify(int argc, char **argv) {
    mu_error e = { 0 };
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_report_error(&e, rank);
    mu_status status = world->size > 1 ? mu_error_set(&e, MU_STATUS_USAGE, "verify runs on one rank")
                                       : one_argument(argc, argv, &e);
    if (status == MU_STATUS_OK) status = verify_all(argv[2], &e);
    mu_comm_free(world);
    mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}
