/* manifest.c - manifest.json of a checkpoint: its files and their hashes. One line of JSON and
 * a second with the XXH3-128 of the first; anything else is damage. */
#include "train/train.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Version 1 has no val_split: its runs split at the tail. EP_MAX: one shard per rank of an expert group, which has at least one
 * expert of each layer. The limits on bytes and values allow the largest model of MU_MODEL_TENSORS_MAX tensors (a tensor is one
 * value, a shard four, and a configuration has commas, too); parsing takes under 256 MiB. */
enum { OLDEST_VERSION = 1, RANKS_MAX = 1 << 20, EP_MAX = 1 << 16,
       VALUES_MAX = MU_MODEL_TENSORS_MAX + 4 * EP_MAX + (1 << 17), OBJECTS_MAX = EP_MAX + (1 << 14) };
static const char *const val_splits[] = {
    [MU_VAL_DOCUMENTS_BY_HASH] = "documents_by_hash", [MU_VAL_DOCUMENTS] = "documents", [MU_VAL_TAIL] = "tail"
};
static const char computed[] = "computed";      /* the order of samples, in large domains; older versions made it in memory */
static const size_t LARGEST = (size_t)40 << 20;

void mu_shard_name(int shard, char name[MU_SHARD_NAME]) { snprintf(name, MU_SHARD_NAME, "shard-%04d.h5", shard); }

void mu_manifest_free(mu_manifest *m) {
    if (m->lock) close(m->lock);
    mu_config_free(&m->cfg);
    free(m->config);
    free(m->shards);
    free(m->tensors);
    free(m->domains);
    *m = (mu_manifest){ 0 };
}

static void write_parent(mu_json *j, const char *key, const mu_parent *p) {
    mu_json_begin(j, key, '{');
    if (p->run[0]) mu_json_string(j, "run", p->run);
    mu_json_string(j, "checkpoint", p->checkpoint);
    mu_json_int(j, "step", p->step);
    mu_json_int(j, "tokens", p->tokens);
    mu_json_string(j, "manifest_hash", p->manifest_hash);
    mu_json_end(j, '}');
}

void mu_origin_write(mu_json *j, const mu_origin *o) {
    if (!o->path[0]) return;
    mu_json_begin(j, "init_from", '{');
    mu_json_string(j, "path", o->path);
    if (o->manifest_hash[0]) {
        mu_json_int(j, "step", o->step);
        mu_json_string(j, "manifest_hash", o->manifest_hash);
    }
    mu_json_end(j, '}');
}

void mu_lineage_write(mu_json *j, const mu_parent *p, const mu_ancestors *earlier) {
    if (p->checkpoint[0]) write_parent(j, "parent", p);
    if (!earlier->n) return;
    mu_json_begin(j, "ancestors", '[');
    for (int i = 0; i < earlier->n; i++) write_parent(j, NULL, &earlier->list[i]);
    mu_json_end(j, ']');
}

void mu_edits_write(mu_json *j, const mu_edits *list) {
    if (!list->n) return;
    mu_json_begin(j, "edits", '[');
    for (int i = 0; i < list->n; i++) {
        const mu_edit *x = &list->list[i];
        mu_json_begin(j, NULL, '{');
        mu_json_string(j, "what", x->what);
        mu_json_int(j, "layer", x->layer);
        mu_json_int(j, "expert", x->expert);
        mu_json_string(j, "detail", x->detail);
        mu_json_string(j, "checkpoint", x->checkpoint);
        mu_json_int(j, "step", x->step);
        mu_json_string(j, "manifest_hash", x->manifest_hash);
        mu_json_end(j, '}');
    }
    mu_json_end(j, ']');
}

static void write_domains(mu_json *j, const mu_manifest *m) {
    mu_json_begin(j, "domains", '[');
    for (int i = 0; i < m->n_domains; i++) {
        mu_json_begin(j, NULL, '{');
        mu_json_string(j, "name", m->domains[i].name);
        mu_json_int(j, "tokens", m->domains[i].tokens);
        mu_json_string(j, "fingerprint", m->domains[i].fingerprint);
        mu_json_end(j, '}');
    }
    mu_json_end(j, ']');
}

mu_status mu_manifest_write(const mu_manifest *m, const char *folder, mu_error *e) {
    mu_json j;
    mu_json_init(&j);
    mu_json_begin(&j, NULL, '{');
    mu_json_string(&j, "format", "muster-checkpoint");
    mu_json_int(&j, "version", MU_CHECKPOINT_VERSION);
    mu_json_string(&j, "program", "muster " MU_VERSION);
    mu_json_int(&j, "step", m->step);
    mu_json_int(&j, "ranks", m->ranks);
    mu_json_int(&j, "ep", m->ep);
    mu_json_string(&j, "dtype", m->dtype);
    mu_json_string(&j, "tokenizer", m->tokenizer);
    if (m->tokenizer_fingerprint[0]) mu_json_string(&j, "tokenizer_fingerprint", m->tokenizer_fingerprint);
    mu_json_int(&j, "vocab_size", m->vocab_size);
    if (m->weights_only) mu_json_bool(&j, "weights_only", true);
    mu_json_string(&j, "data_fingerprint", m->fingerprint);
    if (m->n_domains) write_domains(&j, m);
    mu_lineage_write(&j, &m->parent, &m->ancestors);
    mu_origin_write(&j, &m->origin);
    mu_edits_write(&j, &m->edits);
    mu_json_string(&j, "val_split", val_splits[m->val_split]);
    if (!m->order_in_memory) mu_json_string(&j, "order", computed);
    if (m->anchored) mu_json_bool(&j, "anchored", true);
    mu_json_string(&j, "config", m->config);
    mu_json_begin(&j, "shards", '[');
    for (int i = 0; i < m->n_shards; i++) {
        mu_json_begin(&j, NULL, '{');
        mu_json_string(&j, "name", m->shards[i].name);
        mu_json_int(&j, "bytes", m->shards[i].bytes);
        mu_json_string(&j, "xxh3_128", m->shards[i].hash);
        mu_json_end(&j, '}');
    }
    mu_json_end(&j, ']');
    mu_json_begin(&j, "tensors", '{');
    for (int i = 0; i < m->n_tensors; i++) mu_json_int(&j, m->tensors[i].name, m->tensors[i].shard);
    mu_json_end(&j, '}');
    mu_json_end(&j, '}');
    char hex[33], *path = mu_format("%s/manifest.json", folder);
    mu_hash128_hex(j.text, j.length, hex);
    char *text = mu_format("%s\n%s\n", j.text, hex);
    mu_status status = mu_file_replace(path, text, strlen(text), e);
    free(text);
    free(path);
    mu_json_free(&j);
    return status;
}

/* Is the second line, `hex`, the hash of the first? Cuts off the text after the first. */
static bool first_line_is_whole(char *text, size_t bytes, char hex[33]) {
    char *end = memchr(text, '\n', bytes);
    if (!end || text + bytes != end + 34 || end[33] != '\n') return false;
    mu_hash128_hex(text, (size_t)(end - text), hex);
    bool equal = !memcmp(hex, end + 1, 32);
    *end = '\0';
    return equal;
}

static bool copy_string(const json_t *root, const char *key, char *out, size_t size) {
    const char *value = json_string_value(json_object_get(root, key));
    return value && snprintf(out, size, "%s", value) < (int)size;
}

/* 32 lower-case hexadecimal digits. */
static bool copy_hash(const json_t *root, const char *key, char out[33]) {
    return copy_string(root, key, out, 33) && strlen(out) == 32 && strspn(out, "0123456789abcdef") == 32;
}

static int by_name(const void *a, const void *b) { return strcmp(a, b); } /* the name comes first in both */

static bool read_tensors(mu_manifest *m, json_t *table) {
    const char *name;
    json_t *shard;
    if (json_object_size(table) > MU_MODEL_TENSORS_MAX) return false;
    m->n_tensors = (int)json_object_size(table);
    m->tensors = mu_alloc((size_t)m->n_tensors, sizeof *m->tensors);
    int i = 0;
    json_object_foreach(table, name, shard) {
        json_int_t at = json_integer_value(shard);
        if (!json_is_integer(shard) || at < 0 || at >= m->n_shards ||
            strlen(name) >= sizeof m->tensors[i].name)
            return false;
        snprintf(m->tensors[i].name, sizeof m->tensors[i].name, "%s", name);
        m->tensors[i++].shard = (int)at;
    }
    qsort(m->tensors, (size_t)m->n_tensors, sizeof *m->tensors, by_name);
    return true;
}

/* One shard per rank of an expert group, each with its fixed name, so none is listed twice or lies elsewhere. */
static bool read_shards(mu_manifest *m, json_t *list) {
    if ((int64_t)json_array_size(list) != m->ep) return false;
    m->n_shards = m->ep;
    m->shards = mu_alloc((size_t)m->n_shards, sizeof *m->shards);
    for (int i = 0; i < m->n_shards; i++) {
        json_t *s = json_array_get(list, (size_t)i), *bytes = json_object_get(s, "bytes");
        char name[sizeof m->shards[i].name];
        mu_shard_name(i, name);
        if (!copy_string(s, "name", m->shards[i].name, sizeof m->shards[i].name) || strcmp(m->shards[i].name, name) ||
            !copy_hash(s, "xxh3_128", m->shards[i].hash) || !json_is_integer(bytes) ||
            json_integer_value(bytes) < 0)
            return false;
        m->shards[i].bytes = json_integer_value(bytes);
    }
    return true;
}

/* An integer from `least` to `most`, or `least` - 1. */
static int64_t read_integer(const json_t *root, const char *key, int64_t least, int64_t most) {
    json_t *value = json_object_get(root, key);
    json_int_t n = json_integer_value(value);
    return json_is_integer(value) && n >= least && n <= most ? n : least - 1;
}

/* Older versions have none. Names are those of the configuration, in its order. */
static bool read_domains(mu_manifest *m, const json_t *list) {
    if (!list) return true;
    if (json_array_size(list) < 1 || json_array_size(list) > OBJECTS_MAX - EP_MAX) return false;
    m->n_domains = (int)json_array_size(list);
    m->domains = mu_alloc((size_t)m->n_domains, sizeof *m->domains);
    for (int i = 0; i < m->n_domains; i++) {
        const json_t *d = json_array_get(list, (size_t)i);
        m->domains[i].tokens = read_integer(d, "tokens", 0, INT64_MAX);
        if (!copy_string(d, "name", m->domains[i].name, sizeof m->domains[i].name) || m->domains[i].tokens < 0 ||
            !copy_hash(d, "fingerprint", m->domains[i].fingerprint))
            return false;
    }
    return true;
}

/* step: at most this one. */
static bool read_parent(mu_parent *p, int64_t step, const json_t *parent) {
    p->step = read_integer(parent, "step", 0, step);
    p->tokens = read_integer(parent, "tokens", 0, INT64_MAX / 4);
    bool has_run = json_object_get(parent, "run") != NULL;
    return p->step >= 0 && p->tokens >= 0 && copy_string(parent, "checkpoint", p->checkpoint, sizeof p->checkpoint) && p->checkpoint[0] &&
           (!has_run || copy_string(parent, "run", p->run, sizeof p->run)) && copy_hash(parent, "manifest_hash", p->manifest_hash);
}

static bool read_origin(mu_manifest *m, const json_t *origin) {
    mu_origin *o = &m->origin;
    if (!origin) return true;
    if (!copy_string(origin, "path", o->path, sizeof o->path) || !o->path[0]) return false;
    if (!json_object_get(origin, "manifest_hash")) return true;
    o->step = read_integer(origin, "step", 0, INT64_MAX);
    return o->step >= 0 && copy_hash(origin, "manifest_hash", o->manifest_hash);
}

static bool read_lineage(mu_manifest *m, const json_t *root) {
    const json_t *parent = json_object_get(root, "parent"), *earlier = json_object_get(root, "ancestors");
    if (parent && !read_parent(&m->parent, m->step, parent)) return false;
    if (!earlier) return true;
    if (!parent || !json_is_array(earlier) || json_array_size(earlier) > MU_ANCESTORS) return false;
    m->ancestors.n = (int)json_array_size(earlier);
    for (int i = 0; i < m->ancestors.n; i++)
        if (!read_parent(&m->ancestors.list[i], i ? m->ancestors.list[i - 1].step : m->parent.step, json_array_get(earlier, (size_t)i))) return false;
    return true;
}

static bool read_edits(mu_manifest *m, const json_t *list) {
    if (!list) return true;
    if (!json_is_array(list) || json_array_size(list) > MU_EDITS) return false;
    m->edits.n = (int)json_array_size(list);
    for (int i = 0; i < m->edits.n; i++) {
        const json_t *j = json_array_get(list, (size_t)i);
        mu_edit *x = &m->edits.list[i];
        x->layer = (int)read_integer(j, "layer", -1, INT32_MAX), x->expert = (int)read_integer(j, "expert", -1, INT32_MAX);
        x->step = read_integer(j, "step", 0, m->step);
        if (x->layer < -1 || x->expert < -1 || x->step < 0 || !copy_string(j, "what", x->what, sizeof x->what) ||
            !copy_string(j, "detail", x->detail, sizeof x->detail) || !copy_string(j, "checkpoint", x->checkpoint, sizeof x->checkpoint) ||
            !copy_hash(j, "manifest_hash", x->manifest_hash))
            return false;
    }
    return true;
}

static bool read_val_split(mu_manifest *m, json_t *root, json_int_t version) {
    const json_t *value = json_object_get(root, "val_split");
    const char *name = value || version > 1 ? json_string_value(value) : val_splits[MU_VAL_TAIL];
    for (int i = 0; name && i <= MU_VAL_TAIL; i++)
        if (!strcmp(name, val_splits[i])) return m->val_split = (mu_val_split)i, true;
    return false;
}

static bool read_order(mu_manifest *m, const json_t *value) {
    const char *name = json_string_value(value);
    m->order_in_memory = !value;
    return !value || (name && !strcmp(name, computed));
}

static mu_status fill(mu_manifest *m, json_t *root, const char *path, mu_error *e) {
    char format[32] = "";
    copy_string(root, "format", format, sizeof format);
    json_int_t version = json_integer_value(json_object_get(root, "version"));
    if (strcmp(format, "muster-checkpoint") || version < OLDEST_VERSION || version > MU_CHECKPOINT_VERSION)
        return mu_error_set(
            e, MU_STATUS_DATA,
            "%s: format \"%s\" version %lld; this program reads \"muster-checkpoint\" versions %d to %d", path,
            format, (long long)version, OLDEST_VERSION, MU_CHECKPOINT_VERSION);
    m->version = (int)version;
    const char *config = json_string_value(json_object_get(root, "config"));
    m->step = read_integer(root, "step", 0, INT64_MAX);
    m->weights_only = json_is_true(json_object_get(root, "weights_only"));
    m->anchored = json_is_true(json_object_get(root, "anchored"));
    m->ranks = (int)read_integer(root, "ranks", 1, RANKS_MAX);
    m->ep = (int)read_integer(root, "ep", 1, EP_MAX);
    m->vocab_size = json_object_get(root, "vocab_size") ? read_integer(root, "vocab_size", 1, INT32_MAX) : -1; /* -1: an older version */
    if (!config || m->step < 0 || m->ranks < 1 || m->ep < 1 || !m->vocab_size || !copy_string(root, "dtype", m->dtype, sizeof m->dtype) ||
        !copy_string(root, "tokenizer", m->tokenizer, sizeof m->tokenizer) ||
        (json_object_get(root, "tokenizer_fingerprint") &&
         !copy_hash(root, "tokenizer_fingerprint", m->tokenizer_fingerprint)) ||
        !copy_hash(root, "data_fingerprint", m->fingerprint) || !read_val_split(m, root, version) || !read_order(m, json_object_get(root, "order")) ||
        !read_domains(m, json_object_get(root, "domains")) || !read_lineage(m, root) ||
        !read_origin(m, json_object_get(root, "init_from")) || !read_edits(m, json_object_get(root, "edits")) ||
        !read_shards(m, json_object_get(root, "shards")) ||
        !read_tensors(m, json_object_get(root, "tensors")))
        return mu_error_set(e, MU_STATUS_DATA, "%s: a field is missing, out of its range or of the wrong type", path);
    m->config = mu_strdup(config);
    return MU_STATUS_OK;
}

/* Lower bound of the shards' bytes: weights, two moments and the window of expert loads, uncompressed. */
static double least_bytes(const mu_config *c, const mu_model_size *size, bool f64, bool weights_only) {
    double cells = 0;
    if (weights_only) return (double)size->total * (f64 ? 8 : 4);
    for (int layer = 0; layer < c->model.num_layers; layer++) cells += mu_layer_is_moe(&c->moe, layer) ? (double)c->moe.num_experts : 0;
    return 3.0 * (double)size->total * (f64 ? 8 : 4) + (double)c->stats.window * cells * (double)sizeof(int64_t);
}

/* Files of tokenizers are not read here: a checkpoint is whole without them. Checkpoints of older versions, which have only the tokenizer
 * "bytes", have no vocab_size. */
static mu_status check_vocabulary(mu_manifest *m, const char *path, mu_error *e) {
    const mu_config *c = &m->cfg;
    int64_t rows = c->model.vocab_size;
    if (mu_tokenizer_is_built_in(c->data.tokenizer)) {
        mu_tokenizer *t;
        mu_status status = mu_tokenizer_open(&t, c->data.tokenizer, e);
        if (status != MU_STATUS_OK) return status;
        status = mu_tokenizer_check(t, path, m->tokenizer, m->tokenizer_fingerprint, e);
        if (!rows) rows = mu_tokenizer_vocab_size(t);
        mu_tokenizer_close(t);
        if (status != MU_STATUS_OK) return status;
    }
    if (m->vocab_size < 0) m->vocab_size = rows;
    if (m->vocab_size < 1 || (rows && m->vocab_size != rows))
        return mu_error_set(e, MU_STATUS_DATA, "%s: vocab_size %lld; the model of its configuration has %lld", path, (long long)m->vocab_size,
                            (long long)rows);
    return MU_STATUS_OK;
}

/* Checks the other fields against the configuration, before a model of it is allocated. */
static mu_status check_config(mu_manifest *m, const char *path, mu_error *e) {
    const mu_config *c = &m->cfg;
    bool f64 = !strcmp(m->dtype, mu_dtype_name(MU_DTYPE_F64));
    mu_status status = check_vocabulary(m, path, e);
    if (status != MU_STATUS_OK) return status;
    mu_model_size size = mu_model_measure(&c->model, &c->moe, m->vocab_size, c->train.seq_len);
    if (!f64 && strcmp(m->dtype, mu_dtype_name(MU_DTYPE_F32)))
        return mu_error_set(e, MU_STATUS_DATA, "%s: dtype '%s'; a checkpoint is f32 or f64", path, m->dtype);
    if (m->step > c->train.steps)
        return mu_error_set(e, MU_STATUS_DATA, "%s: step %lld is more than train.steps %lld of its configuration", path, (long long)m->step,
                            (long long)c->train.steps);
    if (m->ranks % m->ep || (c->moe.num_experts ? c->moe.num_experts % m->ep != 0 : m->ep != 1))
        return mu_error_set(e, MU_STATUS_DATA, "%s: ep %d must divide the %d ranks and moe.num_experts %lld, and be 1 without experts", path, m->ep,
                            m->ranks, (long long)c->moe.num_experts);
    if (m->n_domains && m->n_domains != c->data.train.n)
        return mu_error_set(e, MU_STATUS_DATA, "%s names %d domains; its configuration has %d", path, m->n_domains, c->data.train.n);
    if (m->n_tensors != size.tensors)
        return mu_error_set(e, MU_STATUS_DATA, "%s lists %d tensors, but the model of its configuration has %lld", path,
                            m->n_tensors, (long long)size.tensors);
    double bytes = 0, least = least_bytes(c, &size, f64, m->weights_only);
    for (int i = 0; i < m->n_shards; i++) bytes += (double)m->shards[i].bytes;
    if (bytes < least)
        return mu_error_set(e, MU_STATUS_DATA, "%s: the shards have %.0f bytes, but the model of its configuration needs at least %.0f", path,
                            bytes, least);
    return MU_STATUS_OK;
}

static mu_status read_config(mu_manifest *m, const char *path, mu_error *e) {
    mu_error why;
    mu_status status = mu_config_load_text(&m->cfg, "its configuration", m->config, 0, NULL, &why);
    return status == MU_STATUS_OK ? check_config(m, path, e) : mu_error_set(e, MU_STATUS_DATA, "%s: %-s", path, why.text);
}

/* Folder step-N must hold step N: a renamed copy could otherwise be taken for the newest. */
static mu_status check_folder_name(const mu_manifest *m, const char *path, mu_error *e) {
    int64_t step;
    if (!mu_checkpoint_step(m->path, &step) || step == m->step) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_DATA, "%s is the manifest of step %lld, not of step %lld", path,
                        (long long)m->step, (long long)step);
}

/* Parsing allocates some hundred bytes per value and object, so they are counted first, by their opening and separating
 * characters. */
static bool has_too_many_values(const char *text) {
    size_t n = 0, objects = 0;
    for (const char *at = text; (at = strpbrk(at, ",[{")) && n <= VALUES_MAX && objects <= OBJECTS_MAX; at++)
        n++, objects += *at == '{';
    return n > VALUES_MAX || objects > OBJECTS_MAX;
}

static json_t *parse_json(const char *text, const char *path, mu_error *e) {
    json_error_t problem = { .text = "more values than a checkpoint has" };
    json_t *root = has_too_many_values(text) ? NULL : json_loads(text, JSON_REJECT_DUPLICATES, &problem);
    bool nul = !root && json_error_code(&problem) == json_error_null_character;
    if (!root) mu_error_set(e, MU_STATUS_DATA, "%s: %s", path, nul ? "a NUL character" : problem.text);
    return root;
}

/* Frees the text as soon as it is parsed: both are large. */
static mu_status parse(mu_manifest *m, char *text, const char *path, mu_error *e) {
    json_t *root = parse_json(text, path, e);
    free(text);
    mu_status status = root ? fill(m, root, path, e) : MU_STATUS_DATA;
    json_decref(root);
    if (status == MU_STATUS_OK) status = read_config(m, path, e);
    return status == MU_STATUS_OK ? check_folder_name(m, path, e) : status;
}

/* Locks manifest.json of a checkpoint, shared or (F_WRLCK) alone. The descriptor holds the lock until it is closed; 0: the file is missing,
 * or the file system has no locks; -1: others hold a lock. */
static int lock(const char *path, short type) {
    struct flock whole = { .l_type = type, .l_whence = SEEK_SET };
    int opened = open(path, (type == F_WRLCK ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK), fd = opened, failed;
    if (fd >= 0 && fd <= STDERR_FILENO) fd = fcntl(opened, F_DUPFD_CLOEXEC, STDERR_FILENO + 1), close(opened);
    if (fd < 0) return 0;
    while ((failed = fcntl(fd, F_OFD_SETLK, &whole)) && errno == EINTR) {}
    bool taken = failed && (errno == EAGAIN || errno == EACCES);
    if (failed) close(fd);
    return taken ? -1 : failed ? 0 : fd;
}

bool mu_checkpoint_lock_alone(const char *checkpoint, int *fd) {
    char *path = mu_format("%s/manifest.json", checkpoint);
    *fd = lock(path, F_WRLCK);
    free(path);
    return *fd >= 0;
}

mu_status mu_manifest_read(mu_manifest *m, const char *checkpoint, mu_error *e) {
    *m = (mu_manifest){ 0 };
    if (snprintf(m->path, sizeof m->path, "%s", checkpoint) >= (int)sizeof m->path)
        return mu_error_set(e, MU_STATUS_DATA, "%s: a path of more than %zu bytes", checkpoint, sizeof m->path - 1);
    char *path = mu_format("%s/manifest.json", checkpoint), *text = NULL;
    size_t bytes = 0;
    int held = lock(path, F_RDLCK);
    m->lock = held > 0 ? held : 0;
    mu_status status = held < 0 ? mu_error_set(e, MU_STATUS_DATA, "%s: its run is removing this checkpoint", checkpoint)
                                : mu_file_read(path, LARGEST, &text, &bytes, e);
    if (status == MU_STATUS_NOINPUT && !mu_file_exists(path)) mu_error_set(e, status, "%s is missing", path);
    if (status == MU_STATUS_NOINPUT) e->status = status = MU_STATUS_DATA;
    if (status == MU_STATUS_OK && !first_line_is_whole(text, bytes, m->hash)) {
        status = mu_error_set(e, MU_STATUS_DATA,
                              "%s is damaged: its second line is not the hash of the first", path);
        free(text);
    }
    if (status == MU_STATUS_OK) status = parse(m, text, path, e);
    free(path);
    if (status != MU_STATUS_OK) mu_manifest_free(m);
    return status;
}

int mu_manifest_find(const mu_manifest *m, const char *tensor) {
    const char *at = m->n_tensors
                         ? bsearch(tensor, m->tensors, (size_t)m->n_tensors, sizeof *m->tensors, by_name)
                         : NULL;
    return at ? m->tensors[(at - m->tensors[0].name) / (ptrdiff_t)sizeof *m->tensors].shard : -1;
}

static mu_status wrong_size(const char *path, int64_t bytes, const mu_shard *s, mu_error *e) {
    return mu_error_set(e, MU_STATUS_DATA, "%s is damaged: %lld bytes, the manifest says %lld", path, (long long)bytes,
                        (long long)s->bytes);
}

/* The size first: a file may be much larger than the manifest says. */
static mu_status verify_shard(const mu_manifest *m, const mu_shard *s, mu_error *e) {
    char hex[33], *path = mu_format("%s/%s", m->path, s->name);
    struct stat st;
    int64_t bytes = 0;
    mu_status status = !stat(path, &st) && S_ISREG(st.st_mode) && st.st_size != s->bytes
                           ? wrong_size(path, st.st_size, s, e) : mu_file_hash(path, hex, &bytes, e);
    if (status == MU_STATUS_NOINPUT && !mu_file_exists(path)) mu_error_set(e, status, "%s is missing", path);
    if (status != MU_STATUS_OK) e->status = status = MU_STATUS_DATA;
    else if (bytes != s->bytes) status = wrong_size(path, bytes, s, e);
    else if (strcmp(hex, s->hash))
        status = mu_error_set(e, MU_STATUS_DATA, "%s is damaged: its hash is %s, the manifest says %s", path,
                              hex, s->hash);
    free(path);
    return status;
}

mu_status mu_manifest_verify(const mu_manifest *m, int part, int of, mu_error *e) {
    for (int i = part; i < m->n_shards; i += of) {
        mu_status status = verify_shard(m, &m->shards[i], e);
        if (status != MU_STATUS_OK) return status;
    }
    return MU_STATUS_OK;
}
