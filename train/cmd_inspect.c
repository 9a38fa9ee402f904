/* cmd_inspect.c - muster inspect and muster verify: look at checkpoints without a model or texts. */
#include "train/train.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ inspect */

static double mib(int64_t bytes) { return (double)bytes / (1 << 20); }

static void print_shards(const mu_manifest *m) {
    printf("\nshards (%s weights, AdamW moments, step counts)\n", m->dtype);
    for (int i = 0; i < m->n_shards; i++) {
        int tensors = 0;
        for (int j = 0; j < m->n_tensors; j++) tensors += m->tensors[j].shard == i;
        printf("  %-16s %10.1f MiB  %5d tensors  xxh3 %s\n", m->shards[i].name, mib(m->shards[i].bytes),
               tensors, m->shards[i].hash);
    }
}

/* Reads the roll call out of shard 0 and lets the trainer's own table print it. */
static mu_status print_roll(const mu_manifest *m, const mu_config *cfg, mu_error *e) {
    int moe_layers = 0, *ids = mu_alloc((size_t)cfg->model.num_layers, sizeof *ids);
    for (int i = 0; i < cfg->model.num_layers; i++)
        if (mu_layer_is_moe(&cfg->moe, i)) ids[moe_layers++] = i;
    mu_model model = { .n_moe = moe_layers, .moe_layers = ids };
    mu_trainer t = { .model = &model };
    mu_roll_init(&t.roll, moe_layers, (int)cfg->moe.num_experts);
    char *path = mu_format("%s/%s", m->path, m->shards[0].name);
    int64_t L = moe_layers, E = cfg->moe.num_experts;
    mu_store *s = NULL;
    mu_status status = mu_store_open(&s, path, e);
    if (status == MU_STATUS_OK)
        status = mu_store_read(s, "/state/roll/steps", MU_STORE_I64, 1, (int64_t[]){ 1 }, &t.roll.steps, e);
    if (status == MU_STATUS_OK)
        status = mu_store_read(s, "/state/roll/total", MU_STORE_I64, 2, (int64_t[]){ L, E }, t.roll.total, e);
    if (s) {
        mu_status closed = mu_store_close(s, status == MU_STATUS_OK ? e : NULL);
        if (status == MU_STATUS_OK) status = closed;
    }
    if (status == MU_STATUS_OK) mu_print_roll_call(&t);
    mu_roll_free(&t.roll);
    free(path);
    free(ids);
    return status;
}

static mu_status inspect(const mu_manifest *m, mu_error *e) {
    mu_config cfg;
    mu_options options;
    mu_status status = mu_config_load_text(&cfg, &options, m->path, m->config, 0, NULL, e);
    if (status == MU_STATUS_OK) {
        mu_tokenizer *tokenizer = mu_tokenizer_open(m->tokenizer);
        int vocab = tokenizer ? mu_tokenizer_vocab_size(tokenizer) : 0;
        mu_model_size size = mu_model_measure(&cfg.model, &cfg.moe, vocab, cfg.train.seq_len);
        printf("%s\n  step %lld of %lld, %lld tokens seen, written by %d rank%s (ep %d)\n", m->path,
               (long long)m->step, (long long)cfg.train.steps,
               (long long)(m->step * cfg.train.global_batch_size * cfg.train.seq_len), m->ranks,
               m->ranks == 1 ? "" : "s", m->ep);
        printf("  %lld parameters, %lld active a token, vocabulary %d (%s)\n  texts: fingerprint %s\n",
               (long long)size.total, (long long)size.active, vocab, m->tokenizer, m->fingerprint);
        print_shards(m);
        if (cfg.moe.num_experts) status = print_roll(m, &cfg, e);
        printf("\nconfiguration\n%s", m->config);
        if (tokenizer) mu_tokenizer_close(tokenizer);
    }
    mu_config_free(&cfg, &options);
    return status;
}

static mu_status one_argument(int argc, char **argv, mu_error *e) {
    if (argc != 3 || argv[2][0] == '-')
        return mu_error_set(e, MU_STATUS_USAGE, "%s needs one run folder or checkpoint", argv[1]);
    return mu_file_exists(argv[2])
               ? MU_STATUS_OK
               : mu_error_set(e, MU_STATUS_NOINPUT, "%s: no such run or checkpoint", argv[2]);
}

int mu_cmd_inspect(int argc, char **argv) {
    mu_error e = { 0 };
    mu_manifest m = { 0 };
    bool found = false;
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_report_error(&e, rank);
    mu_status status = one_argument(argc, argv, &e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_find(world, argv[2], &m, &found, &e);
    if (status == MU_STATUS_OK && !found)
        status = mu_error_set(&e, MU_STATUS_DATA, "%s holds no checkpoint", argv[2]);
    if (status == MU_STATUS_OK && rank == 0) status = inspect(&m, &e);
    mu_manifest_free(&m);
    mu_comm_free(world);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}

/* ------------------------------------------------------------------ verify */

static mu_status check_values(mu_store *s, const char *name, const char *file, mu_error *e) {
    mu_store_type type;
    int n_dims;
    int64_t shape[4], n = 1;
    mu_status status = mu_store_shape(s, name, &type, &n_dims, shape, e);
    if (status != MU_STATUS_OK) return status;
    for (int i = 0; i < n_dims; i++) n *= shape[i];
    double *values = mu_alloc((size_t)n, sizeof *values);
    status = mu_store_read(s, name, MU_STORE_F64, n_dims, shape, values, e);
    for (int64_t i = 0; i < n && status == MU_STATUS_OK; i++)
        if (!isfinite(values[i]))
            status = mu_error_set(e, MU_STATUS_DATA, "%s: %s holds a value that is not finite at %lld", file,
                                  name, (long long)i);
    free(values);
    return status;
}

static mu_status check_shard(const mu_manifest *m, int shard, mu_error *e) {
    char *path = mu_format("%s/%s", m->path, m->shards[shard].name);
    mu_store *s = NULL;
    mu_status status = mu_store_open(&s, path, e);
    for (int i = 0; i < m->n_tensors && status == MU_STATUS_OK; i++) {
        static const char *const prefixes[] = { "", "/optim/m", "/optim/v" };
        for (int j = 0; j < 3 && m->tensors[i].shard == shard && status == MU_STATUS_OK; j++) {
            char *name = mu_format("%s%s", prefixes[j], m->tensors[i].name);
            status = check_values(s, name, path, e);
            free(name);
        }
    }
    if (s) {
        mu_status closed = mu_store_close(s, status == MU_STATUS_OK ? e : NULL);
        if (status == MU_STATUS_OK) status = closed;
    }
    free(path);
    return status;
}

/* One checkpoint from the outside in: manifest, hashes, then every tensor's values. Prints one line. */
static mu_status verify(const char *path, mu_error *e) {
    mu_manifest m;
    mu_status status = mu_manifest_read(&m, path, e);
    if (status == MU_STATUS_OK) status = mu_manifest_verify(&m, 0, 1, e);
    for (int i = 0; i < m.n_shards && status == MU_STATUS_OK; i++) status = check_shard(&m, i, e);
    if (status == MU_STATUS_OK)
        printf("ok       %s: step %lld, %d tensors in %d shard%s\n", path, (long long)m.step, m.n_tensors,
               m.n_shards, m.n_shards == 1 ? "" : "s");
    else printf("damaged  %s: %s\n", path, e->text);
    mu_manifest_free(&m);
    return status == MU_STATUS_OK ? status : MU_STATUS_DATA;
}

int mu_cmd_verify(int argc, char **argv) {
    mu_error e = { 0 };
    mu_status status = one_argument(argc, argv, &e);
    if (status != MU_STATUS_OK) return mu_report_error(&e, 0);
    char *checkpoints = mu_format("%s/checkpoints", argv[2]);
    bool run = mu_file_exists(checkpoints);
    int64_t *steps = NULL;
    int n = run ? mu_checkpoint_list(argv[2], &steps) : 0;
    if (n < 0) {
        status = mu_error_set(&e, MU_STATUS_IO, "%s cannot be read: %s", checkpoints, strerror(errno));
        mu_report_error(&e, 0);
    }
    if (run && !n)
        status = mu_error_set(&e, MU_STATUS_DATA, "%s holds no checkpoint", argv[2]), mu_report_error(&e, 0);
    if (!run) status = verify(argv[2], &e);
    for (int i = n - 1; i >= 0; i--) { /* oldest first */
        mu_error one = { 0 };
        char *path = mu_format("%s/step-%08lld", checkpoints, (long long)steps[i]);
        mu_status s = verify(path, &one);
        if (s != MU_STATUS_OK) status = s;
        free(path);
    }
    free(steps);
    free(checkpoints);
    return (int)status;
}
