/* cmd_inspect.c - muster inspect and muster verify: look at checkpoints without their texts. */
#include "train/train.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ inspect */

static double mib(int64_t bytes) { return (double)bytes / (1 << 20); }

static void print_shards(const mu_manifest *m) {
    mu_print("\nshards (%s weights, AdamW moments, step counts)\n", m->dtype);
    for (int i = 0; i < m->n_shards; i++) {
        int tensors = 0;
        for (int j = 0; j < m->n_tensors; j++) tensors += m->tensors[j].shard == i;
        mu_print("  %-16s %10.1f MiB  %5d tensors  xxh3 %s\n", m->shards[i].name, mib(m->shards[i].bytes),
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
    status = mu_store_finish(s, status, e);
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
        mu_print("%s\n  step %lld of %lld, %lld tokens seen, written by %d rank%s (ep %d)\n", m->path,
               (long long)m->step, (long long)cfg.train.steps,
               (long long)(m->step * cfg.train.global_batch_size * cfg.train.seq_len), m->ranks,
               m->ranks == 1 ? "" : "s", m->ep);
        mu_print("  %lld parameters, %lld active a token, vocabulary %d (%s)\n  texts: fingerprint %s\n",
               (long long)size.total, (long long)size.active, vocab, m->tokenizer, m->fingerprint);
        print_shards(m);
        if (cfg.moe.num_experts) status = print_roll(m, &cfg, e);
        printf("\nconfiguration\n");
        mu_print_text(m->config);
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
    mu_status status = mu_agree(world, one_argument(argc, argv, &e), &e);
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

/* ------------------------------------------------------------------ verify
 * What a checkpoint must hold follows from its own configuration: that model is built on the shape device,
 * where nothing is computed or touched, and every tensor of it is looked up. */

/* The array is there, of exactly this shape, and finite. */
static mu_status check_array(mu_store *s, const char *name, mu_store_type type, int n_dims,
                             const int64_t *shape, const char *file, mu_error *e) {
    mu_store_type found_type;
    int found_dims;
    int64_t found[4], n = 1;
    mu_status status = mu_store_shape(s, name, &found_type, &found_dims, found, e);
    if (status != MU_STATUS_OK) return status;
    for (int i = 0; i < found_dims; i++) n *= found[i];
    /* Room for what is in the file, not for what should be: with another shape nothing is read. */
    void *values = mu_alloc((size_t)n, sizeof(double));
    status = mu_store_read(s, name, type, n_dims, shape, values, e);
    for (int64_t i = 0; i < n && type != MU_STORE_I64 && status == MU_STATUS_OK; i++) {
        double value = type == MU_STORE_F64 ? ((double *)values)[i] : (double)((float *)values)[i];
        if (!isfinite(value))
            status = mu_error_set(e, MU_STATUS_DATA, "%s: %s holds a value that is not finite at %lld", file,
                                  name, (long long)i);
    }
    free(values);
    return status;
}

static mu_status check_unit(mu_store *s, const mu_manifest *m, const mu_unit *u, const char *file,
                            mu_error *e) {
    static const char *const prefixes[] = { "", "/optim/m", "/optim/v", "/optim/steps" };
    mu_store_type real = strcmp(m->dtype, mu_dtype_name(MU_DTYPE_F64)) ? MU_STORE_F32 : MU_STORE_F64;
    const mu_param_desc *d = &u->param->desc;
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < 4 && status == MU_STATUS_OK; i++) {
        char *name = mu_format("%s%s", prefixes[i], u->name);
        status = i < 3 ? check_array(s, name, real, d->n_dims, d->shape, file, e)
                       : check_array(s, name, MU_STORE_I64, 1, (int64_t[]){ 1 }, file, e);
        free(name);
    }
    return status;
}

/* A number that the manifest says too. */
static mu_status check_number(mu_store *s, const char *name, int64_t expected, const char *file,
                              mu_error *e) {
    int64_t value = 0;
    mu_status status = mu_store_read(s, name, MU_STORE_I64, 1, (int64_t[]){ 1 }, &value, e);
    if (status == MU_STATUS_OK && value != expected)
        status = mu_error_set(e, MU_STATUS_DATA, "%s: %s is %lld, by the manifest it is %lld", file, name,
                              (long long)value, (long long)expected);
    return status;
}

/* What shard 0 holds beside tensors: where the run stood, and the selection biases. */
static mu_status check_state(mu_store *s, const mu_manifest *m, const mu_trainer *t, const char *file,
                             mu_error *e) {
    int64_t L = t->model->n_moe, E = t->cfg.moe.num_experts, domains = t->cfg.data.train.n;
    const struct {
        const char *name;
        int n_dims;
        int64_t shape[3];
    } items[] = {
        { "/state/loader", 1, { domains + 1 } },
        { "/state/roll/steps", 1, { 1 } },
        { "/state/roll/ring", 3, { MU_ROLL_WINDOW, L, E } },
        { "/state/roll/total", 2, { L, E } },
        { "/state/roll/previous", 2, { L, E } },
    };
    mu_status status = check_number(s, "/state/step", m->step, file, e);
    if (status == MU_STATUS_OK) status = check_number(s, "/state/seed", t->cfg.run.seed, file, e);
    for (size_t i = 0; i < sizeof items / sizeof *items && status == MU_STATUS_OK; i++)
        status = check_array(s, items[i].name, MU_STORE_I64, items[i].n_dims, items[i].shape, file, e);
    for (int i = 0; i < t->model->n_moe && status == MU_STATUS_OK; i++) {
        char *name = mu_format("/layers/%d/mlp/gate/e_score_correction_bias", t->model->moe_layers[i]);
        status = check_array(s, name, MU_STORE_F64, 1, &E, file, e);
        free(name);
    }
    return status;
}

static mu_status check_shard(const mu_manifest *m, const mu_trainer *t, int shard, mu_error *e) {
    char *path = mu_format("%s/%s", m->path, m->shards[shard].name);
    mu_params *ps = t->model->params;
    mu_store *s = NULL;
    mu_status status = mu_store_open(&s, path, e);
    for (mu_unit *u = mu_unit_next(ps, NULL); u && status == MU_STATUS_OK; u = mu_unit_next(ps, u))
        if (mu_manifest_find(m, u->name) == shard) status = check_unit(s, m, u, path, e);
    if (status == MU_STATUS_OK && shard == 0) status = check_state(s, m, t, path, e);
    status = mu_store_finish(s, status, e);
    free(path);
    return status;
}

/* The manifest names the tensors of the model, all of them and no others. */
static mu_status check_names(const mu_manifest *m, mu_params *ps, mu_error *e) {
    int units = 0;
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u), units++)
        if (mu_manifest_find(m, u->name) < 0)
            return mu_error_set(e, MU_STATUS_DATA,
                                "%s/manifest.json names no tensor %s, which its configuration has", m->path,
                                u->name);
    /* Names are unique on both sides: with equal counts there is nothing more to find. */
    for (int i = 0; i < m->n_tensors && m->n_tensors > units; i++)
        if (!mu_params_find(ps, m->tensors[i].name))
            return mu_error_set(
                e, MU_STATUS_DATA,
                "%s/manifest.json names the tensor %s in %s, which its configuration does not have", m->path,
                m->tensors[i].name, m->shards[m->tensors[i].shard].name);
    return MU_STATUS_OK;
}

static mu_status open_shape(mu_trainer *t, const mu_manifest *m, mu_error *e) {
    mu_status status = mu_config_load_text(&t->cfg, &t->options, m->path, m->config, 0, NULL, e);
    if (status != MU_STATUS_OK) return status;
    t->tokenizer = mu_tokenizer_open(m->tokenizer);
    if (!t->tokenizer)
        return mu_error_set(e, MU_STATUS_DATA, "%s/manifest.json: there is no tokenizer '%s'", m->path,
                            m->tokenizer);
    t->dev = mu_device_open("shape");
    t->model = mu_model_new(&t->cfg.model, &t->cfg.moe, mu_tokenizer_vocab_size(t->tokenizer), 1, t->dev,
                            t->mesh);
    return MU_STATUS_OK;
}

static mu_status check_tensors(const mu_manifest *m, mu_error *e) {
    mu_mesh *mesh = mu_mesh_alone();
    mu_trainer t = { .mesh = mesh };
    mu_status status = open_shape(&t, m, e);
    if (status == MU_STATUS_OK) status = check_names(m, t.model->params, e);
    for (int i = 0; i < m->n_shards && status == MU_STATUS_OK; i++) status = check_shard(m, &t, i, e);
    mu_trainer_close(&t);
    mu_mesh_close(mesh);
    return status;
}

/* One checkpoint from the outside in: manifest, hashes, then every tensor. Prints one line. */
static mu_status verify(const char *path) {
    mu_manifest m;
    mu_error e = { 0 };
    mu_status status = mu_manifest_read(&m, path, &e);
    if (status == MU_STATUS_OK) status = mu_manifest_verify(&m, 0, 1, &e);
    if (status == MU_STATUS_OK) status = check_tensors(&m, &e);
    if (status == MU_STATUS_OK)
        mu_print("ok       %s: step %lld, %d tensors in %d shard%s\n", path, (long long)m.step, m.n_tensors,
               m.n_shards, m.n_shards == 1 ? "" : "s");
    else mu_print("damaged  %s: %s\n", path, e.text);
    mu_manifest_free(&m);
    return status == MU_STATUS_OK ? status : MU_STATUS_DATA;
}

/* Every checkpoint of a run, oldest first, or the one that is named. Damage has its own line on stdout; `e`
 * is set when there was nothing to look at. */
static mu_status verify_all(const char *path, mu_error *e) {
    char *checkpoints = mu_format("%s/checkpoints", path);
    bool run = mu_file_exists(checkpoints);
    int64_t *steps = NULL;
    int n = run ? mu_checkpoint_list(path, &steps) : 0;
    mu_status status = MU_STATUS_OK;
    if (n < 0) status = mu_error_set(e, MU_STATUS_IO, "%s cannot be read: %s", checkpoints, strerror(errno));
    else if (run && !n) status = mu_error_set(e, MU_STATUS_DATA, "%s holds no checkpoint", path);
    else if (!run) status = verify(path);
    for (int i = n - 1; i >= 0; i--) {
        char *one = mu_format("%s/step-%08lld", checkpoints, (long long)steps[i]);
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
