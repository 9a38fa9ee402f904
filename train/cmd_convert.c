/* cmd_convert.c - muster convert: a run or checkpoint to Hugging Face's files, and back. One rank, one tensor at a time in memory. The
 * output is written beside its name and renamed when it is complete. */
#include "train/hf.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    char *in, *out, *done;       /* done: what is said when it has worked */
    bool to_hf, bf16;
    int64_t shard_bytes;
} arguments;

/* Bytes, or with a suffix KB, MB, GB: powers of 1000, as for Hugging Face's max_shard_size. */
static mu_status parse_size(const char *text, int64_t *bytes, mu_error *e) {
    enum { LEAST = 10000 };
    static const struct { const char *suffix; double factor; } units[] = { { "", 1 }, { "B", 1 }, { "KB", 1e3 }, { "MB", 1e6 }, { "GB", 1e9 } };
    char *end;
    double n = strtod(text, &end);
    for (size_t i = 0; end > text && i < sizeof units / sizeof *units; i++)
        if (!strcmp(end, units[i].suffix) && n * units[i].factor >= 0 && n * units[i].factor < 9e18) {
            *bytes = (int64_t)(n * units[i].factor);
            if (*bytes < LEAST) return mu_error_set(e, MU_STATUS_USAGE, "--shard-size %s: at least %d bytes", text, LEAST);
            return MU_STATUS_OK;
        }
    return mu_error_set(e, MU_STATUS_USAGE, "--shard-size %s: not a size such as 5GB or 500MB", text);
}

/* IN exists. A checkpoint or run, and a model of Hugging Face, are told by their files. */
static mu_status check_input(const arguments *a, mu_error *e) {
    int64_t *steps;
    bool is_hf = mu_hf_is(a->in), is_ours = mu_checkpoint_list(a->in, &steps) > 0 || mu_checkpoint_named(a->in);
    free(steps);
    if (a->to_hf && is_hf) return mu_error_set(e, MU_STATUS_USAGE, "%s has a config.json: it is in Hugging Face's format already", a->in);
    if (a->to_hf || is_hf) return MU_STATUS_OK;
    return is_ours ? mu_error_set(e, MU_STATUS_USAGE, "%s is of muster already, no model of Hugging Face", a->in) : mu_checkpoint_missing(a->in, e);
}

static mu_status check_arguments(arguments *a, const char *to, const char *dtype, const char *size, mu_error *e) {
    *a = (arguments){ .in = a->in, .out = a->out, .shard_bytes = 5000000000 };
    if (!a->in || !a->out || !a->out[0]) return mu_error_set(e, MU_STATUS_USAGE, "convert needs an input and an output folder");
    if (!to || (strcmp(to, "hf") && strcmp(to, "muster"))) return mu_error_set(e, MU_STATUS_USAGE, "convert needs --to hf or --to muster");
    if (dtype && strcmp(dtype, "fp32") && strcmp(dtype, "bf16")) return mu_error_set(e, MU_STATUS_USAGE, "--dtype %s: fp32 or bf16", dtype);
    a->to_hf = !strcmp(to, "hf"), a->bf16 = dtype && !strcmp(dtype, "bf16");
    if (!a->to_hf && (a->bf16 || size)) return mu_error_set(e, MU_STATUS_USAGE, "--to muster writes a checkpoint, which is fp32, in one file");
    if (size) {
        mu_status status = parse_size(size, &a->shard_bytes, e);
        if (status != MU_STATUS_OK) return status;
    }
    if (!mu_file_exists(a->in)) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: no such file or folder", a->in);
    mu_status status = check_input(a, e);
    if (status != MU_STATUS_OK) return status;
    if (mu_file_is_inside(a->out, a->in))
        return mu_error_set(e, MU_STATUS_USAGE, "%s lies inside %s, which is not changed; choose a folder outside of it", a->out, a->in);
    return mu_file_exists(a->out) ? mu_error_set(e, MU_STATUS_USAGE, "%s exists; choose a new folder", a->out) : MU_STATUS_OK;
}

static mu_status parse(int argc, char **argv, arguments *a, mu_error *e) {
    const char *to = NULL, *dtype = NULL, *size = NULL;
    const mu_argument options[] = { { "--to", &to, "hf or muster" }, { "--dtype", &dtype, "fp32 or bf16" }, { "--shard-size", &size, "a size" } };
    mu_status status = MU_STATUS_OK;
    for (int i = 2; i < argc && status == MU_STATUS_OK; i++) {
        bool found;
        status = mu_argument_find(argc, argv, &i, options, sizeof options / sizeof *options, &found, e);
        if (found || status != MU_STATUS_OK) continue;
        if (argv[i][0] == '-' || a->out) return mu_error_set(e, MU_STATUS_USAGE, "unexpected argument '%s'", argv[i]);
        status = mu_expand_home(argv[i], a->in ? &a->out : &a->in, e);
    }
    return status == MU_STATUS_OK ? check_arguments(a, to, dtype, size, e) : status;
}

/* ------------------------------------------------------------------ to Hugging Face */

/* Selection biases are in the first shard. */
static mu_status read_array(void *from, const char *name, mu_store_type type, int n_dims, const int64_t *shape, void *values, mu_error *e) {
    mu_checkpoint_arrays *c = from;
    return mu_checkpoint_array(c, name, mu_manifest_find(c->m, name) < 0 ? NULL : name, type, n_dims, shape, values, e);
}

/* run: where the checkpoint is. */
static mu_status save_hf(arguments *a, const mu_manifest *m, const mu_tokenizer *t, const char *run, const char *folder, mu_error *e) {
    mu_checkpoint_arrays c;
    char *kept = mu_format("%s/%s", run, MU_HF_KEPT);
    mu_mesh *mesh = mu_mesh_alone();
    mu_device *shape = mu_device_open("shape");
    mu_model *model = mu_model_new(&m->cfg.model, &m->cfg.moe, m->vocab_size, 1, shape, mesh);
    mu_hf_export x = { .cfg = &m->cfg, .model = model, .tokenizer = t, .kept = mu_file_exists(kept) ? kept : NULL, .bf16 = a->bf16,
                       .shard_bytes = a->shard_bytes, .read = read_array, .from = &c };
    const char *type;
    mu_checkpoint_arrays_open(&c, m);
    mu_status status = mu_hf_save(folder, &x, &type, e);
    status = mu_checkpoint_arrays_close(&c, status, e);
    if (status == MU_STATUS_OK) status = mu_hf_copy_notes(run, folder, e);
    if (status == MU_STATUS_OK)
        a->done = mu_format("%s, step %lld -> %s: %s, %s, %lld parameters", m->path, (long long)m->step, a->out, type, a->bf16 ? "bf16" : "fp32",
                 (long long)mu_model_measure(&m->cfg.model, &m->cfg.moe, m->vocab_size, 2).total);
    free(kept);
    mu_model_free(model);
    mu_device_close(shape);
    mu_mesh_close(mesh);
    return status;
}

static mu_status to_hf(arguments *a, mu_comm *world, const char *folder, mu_error *e) {
    mu_manifest m = { 0 };
    mu_tokenizer *t = NULL;
    bool found = false;
    mu_status status = mu_checkpoint_find(world, a->in, &m, &found, e);
    if (status == MU_STATUS_OK && !found) status = mu_checkpoint_missing(a->in, e);
    if (status == MU_STATUS_OK) status = mu_hf_holds(&m.cfg, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_tokenizer_open(&t, &m, e);
    if (status == MU_STATUS_OK) {
        char *run = mu_checkpoint_run(&m);
        status = save_hf(a, &m, t, run, folder, e);
        free(run);
    }
    if (t) mu_tokenizer_close(t);
    mu_manifest_free(&m);
    return status;
}

/* ------------------------------------------------------------------ to muster */

/* OUT as an absolute path: the configuration of the checkpoint names its folder and its tokenizer. */
static char *absolute(const char *path) {
    char *here = path[0] == '/' ? NULL : realpath(".", NULL), *whole = here ? mu_format("%s/%s", here, path) : mu_strdup(path);
    free(here);
    return whole;
}

/* The configuration of the checkpoint: that of a run in OUT which has not begun. Its texts are to be replaced. */
static mu_status configure(const arguments *a, const mu_hf *h, const mu_tokenizer *t, mu_config *cfg, mu_error *e) {
    char *out = absolute(a->out);
    int64_t rows = mu_hf_vocab_size(h), ids = mu_tokenizer_vocab_size(t);
    char *text = mu_format("%s", mu_hf_config(h)), *overrides[] = {
        mu_format("run.dir=%s", out), mu_format("model.vocab_size=%lld", (long long)(rows == ids ? 0 : rows)), (char[]){ "train.seq_len=2" },
        (char[]){ "data.train=[{domain: text, path: synthetic}]" },
        mu_format("data.tokenizer=%s/tokenizer.json", out)
    };
    mu_status status = mu_config_load_text(cfg, a->in, text, 5, overrides, e);
    if (status == MU_STATUS_OK && rows < ids)
        status = mu_error_set(e, MU_STATUS_DATA, "%s: the model has %lld ids, but its tokenizer.json has %lld", a->in, (long long)rows,
                              (long long)ids);
    free(overrides[0]);
    free(overrides[1]);
    free(overrides[4]);
    free(text);
    free(out);
    return status;
}

/* Biases, then weights, in the order of a checkpoint. */
static mu_status write_arrays(mu_store *s, mu_hf *h, const mu_model *m, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < m->n_moe && status == MU_STATUS_OK; i++) {
        const mu_moe *moe = &m->blocks[m->moe_layers[i]].moe;
        char *name = mu_format("/layers/%d/mlp/gate/e_score_correction_bias", moe->layer);
        double *bias = mu_alloc((size_t)moe->E, sizeof *bias);
        status = mu_hf_read_bias(h, moe, bias, e);
        if (status == MU_STATUS_OK) status = mu_store_write(s, name, MU_STORE_F64, 1, &moe->E, bias, e);
        free(bias);
        free(name);
    }
    for (mu_unit *u = mu_unit_next(m->params, NULL); u && status == MU_STATUS_OK; u = mu_unit_next(m->params, u)) {
        const mu_param_desc *d = &u->param->desc;
        float *values = mu_alloc((size_t)u->count, sizeof *values);
        status = mu_hf_read_unit(h, u, 0, u->count, values, e);
        if (status == MU_STATUS_OK) status = mu_store_write(s, u->name, MU_STORE_F32, d->n_dims, d->shape, values, e);
        free(values);
    }
    return status;
}

static void fill_manifest(mu_manifest *m, const arguments *a, const mu_config *cfg, const mu_tokenizer *t, const mu_model *model) {
    char *whole = realpath(a->in, NULL);
    m->ranks = m->ep = 1, m->weights_only = true, m->vocab_size = model->vocab_size;
    snprintf(m->dtype, sizeof m->dtype, "%s", mu_dtype_name(MU_DTYPE_F32));
    snprintf(m->tokenizer, sizeof m->tokenizer, "%s", mu_tokenizer_name(t));
    snprintf(m->tokenizer_fingerprint, sizeof m->tokenizer_fingerprint, "%s", mu_tokenizer_fingerprint(t));
    memset(m->fingerprint, '0', sizeof m->fingerprint - 1); /* of no texts */
    snprintf(m->origin.path, sizeof m->origin.path, "%s", whole && strlen(whole) < sizeof m->origin.path ? whole : a->in);
    m->config = mu_options_dump(&cfg->options, cfg);
    m->n_shards = 1, m->shards = mu_alloc(1, sizeof *m->shards);
    mu_shard_name(0, m->shards[0].name);
    m->tensors = mu_alloc((size_t)model->params->n_global_units, sizeof *m->tensors);
    for (mu_unit *u = mu_unit_next(model->params, NULL); u; u = mu_unit_next(model->params, u))
        snprintf(m->tensors[m->n_tensors++].name, sizeof m->tensors->name, "%s", u->name);
    free(whole);
}

static mu_status save_checkpoint(mu_hf *h, mu_manifest *m, const mu_model *model, const char *run, mu_error *e) {
    char *folder = mu_checkpoint_path(run, 0), *path = mu_format("%s/%s", folder, m->shards[0].name);
    mu_store *s = NULL;
    mu_status status = mu_file_make_dirs(folder, e);
    if (status == MU_STATUS_OK) status = mu_store_create(&s, path, e);
    if (status == MU_STATUS_OK) status = write_arrays(s, h, model, e);
    status = mu_store_finish(s, status, e);
    if (status == MU_STATUS_OK) status = mu_file_hash(path, m->shards[0].hash, &m->shards[0].bytes, e);
    if (status == MU_STATUS_OK) status = mu_manifest_write(m, folder, e);
    if (status == MU_STATUS_OK) status = mu_file_sync(folder, e);
    free(path);
    free(folder);
    return status;
}

static mu_status save_muster(arguments *a, mu_hf *h, const mu_tokenizer *t, const char *folder, mu_error *e) {
    mu_config cfg;
    mu_status status = configure(a, h, t, &cfg, e);
    if (status == MU_STATUS_OK) {
        mu_mesh *mesh = mu_mesh_alone();
        mu_device *shape = mu_device_open("shape");
        mu_model *model = mu_model_new(&cfg.model, &cfg.moe, mu_hf_vocab_size(h), 1, shape, mesh);
        mu_manifest m = { 0 };
        fill_manifest(&m, a, &cfg, t, model);
        status = mu_hf_check(h, model, e);
        if (status == MU_STATUS_OK) status = save_checkpoint(h, &m, model, folder, e);
        if (status == MU_STATUS_OK) status = mu_hf_write_tokenizer(folder, t, cfg.model.max_seq_len, e);
        if (status == MU_STATUS_OK) a->done = mu_format("%s, %s -> %s: weights of %d tensors", a->in, mu_hf_type(h), a->out, m.n_tensors);
        mu_manifest_free(&m);
        mu_model_free(model);
        mu_device_close(shape);
        mu_mesh_close(mesh);
    }
    mu_config_free(&cfg);
    return status;
}

static mu_status to_muster(arguments *a, const char *folder, mu_error *e) {
    mu_hf *h;
    mu_tokenizer *t = NULL;
    mu_status status = mu_hf_open(&h, a->in, e);
    if (status == MU_STATUS_OK && !mu_hf_tokenizer(h))
        status = mu_error_set(e, MU_STATUS_DATA, "%s has no tokenizer.json; put the one of the model there", a->in);
    if (status == MU_STATUS_OK) status = mu_tokenizer_open(&t, mu_hf_tokenizer(h), e);
    if (status == MU_STATUS_OK) status = save_muster(a, h, t, folder, e);
    if (status == MU_STATUS_OK) status = mu_hf_copy_notes(a->in, folder, e);
    if (status == MU_STATUS_OK) status = mu_hf_copy_note(a->in, "config.json", folder, MU_HF_KEPT, e);
    if (t) mu_tokenizer_close(t);
    mu_hf_close(h);
    return status;
}

/* ------------------------------------------------------------------ the command */

/* Another process may have made OUT meanwhile: a rename onto an existing folder that is not empty fails. */
static mu_status convert(arguments *a, mu_comm *world, mu_error *e) {
    char *suffix = mu_format(".tmp-%ld", (long)getpid()), *folder = mu_file_free_name(a->out, suffix);
    mu_status status = mu_file_make_dirs(folder, e);
    if (status == MU_STATUS_OK) status = a->to_hf ? to_hf(a, world, folder, e) : to_muster(a, folder, e);
    if (status == MU_STATUS_OK) status = mu_file_sync(folder, e);
    if (status == MU_STATUS_OK) status = mu_file_rename(folder, a->out, e);
    if (status != MU_STATUS_OK) (void)!mu_file_remove_tree(folder, NULL);
    else mu_print("%s\n", a->done);
    free(folder);
    free(suffix);
    return status;
}

int mu_cmd_convert(int argc, char **argv) {
    mu_error e = { 0 };
    arguments a = { 0 };
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_report_error(&e, rank);
    mu_status status = parse(argc, argv, &a, &e);
    if (status == MU_STATUS_OK && world->size > 1) status = mu_error_set(&e, MU_STATUS_USAGE, "convert runs on one rank");
    if (status == MU_STATUS_OK) status = convert(&a, world, &e);
    free(a.in);
    free(a.out);
    free(a.done);
    mu_comm_free(world);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}
