/* manifest.c - manifest.json of a checkpoint: what belongs to it and how it must hash. One line of JSON and
 * a second with the XXH3-128 of the first; anything else is damage. */
#include "train/train.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Version 1 has no val_split: its runs split at the tail. */
enum { FORMAT_VERSION = 2, OLDEST_VERSION = 1 };
static const char *const val_splits[] = { [MU_VAL_DOCUMENTS] = "documents", [MU_VAL_TAIL] = "tail" };
static const size_t LARGEST = (size_t)64 << 20;

void mu_manifest_free(mu_manifest *m) {
    free(m->config);
    free(m->shards);
    free(m->tensors);
    *m = (mu_manifest){ 0 };
}

mu_status mu_manifest_write(const mu_manifest *m, const char *folder, mu_error *e) {
    mu_json j;
    mu_json_init(&j);
    mu_json_begin(&j, NULL, '{');
    mu_json_string(&j, "format", "muster-checkpoint");
    mu_json_int(&j, "version", FORMAT_VERSION);
    mu_json_string(&j, "program", "muster " MU_VERSION);
    mu_json_int(&j, "step", m->step);
    mu_json_int(&j, "ranks", m->ranks);
    mu_json_int(&j, "ep", m->ep);
    mu_json_string(&j, "dtype", m->dtype);
    mu_json_string(&j, "tokenizer", m->tokenizer);
    mu_json_string(&j, "data_fingerprint", m->fingerprint);
    mu_json_string(&j, "val_split", val_splits[m->val_split]);
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

/* The first line when the second is its hash, else NULL. */
static bool first_line_is_whole(char *text, size_t bytes) {
    char *end = memchr(text, '\n', bytes), hex[33];
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

static int by_name(const void *a, const void *b) { return strcmp(a, b); } /* the name comes first in both */

static bool read_tensors(mu_manifest *m, json_t *table) {
    const char *name;
    json_t *shard;
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

static bool read_shards(mu_manifest *m, json_t *list) {
    m->n_shards = (int)json_array_size(list);
    m->shards = mu_alloc((size_t)m->n_shards, sizeof *m->shards);
    for (int i = 0; i < m->n_shards; i++) {
        json_t *s = json_array_get(list, (size_t)i), *bytes = json_object_get(s, "bytes");
        if (!copy_string(s, "name", m->shards[i].name, sizeof m->shards[i].name) ||
            strchr(m->shards[i].name, '/') ||
            !copy_string(s, "xxh3_128", m->shards[i].hash, sizeof m->shards[i].hash) ||
            !json_is_integer(bytes))
            return false;
        m->shards[i].bytes = json_integer_value(bytes);
    }
    return m->n_shards > 0;
}

static bool read_val_split(mu_manifest *m, json_t *root) {
    const json_t *value = json_object_get(root, "val_split");
    const char *name = value ? json_string_value(value) : val_splits[MU_VAL_TAIL];
    m->val_split = name && !strcmp(name, val_splits[MU_VAL_TAIL]) ? MU_VAL_TAIL : MU_VAL_DOCUMENTS;
    return name && !strcmp(name, val_splits[m->val_split]);
}

static mu_status fill(mu_manifest *m, json_t *root, const char *path, mu_error *e) {
    char format[32] = "";
    copy_string(root, "format", format, sizeof format);
    json_int_t version = json_integer_value(json_object_get(root, "version"));
    if (strcmp(format, "muster-checkpoint") || version < OLDEST_VERSION || version > FORMAT_VERSION)
        return mu_error_set(
            e, MU_STATUS_DATA,
            "%s: format \"%s\" version %lld; this program reads \"muster-checkpoint\" versions %d to %d", path,
            format, (long long)version, OLDEST_VERSION, FORMAT_VERSION);
    const char *config = json_string_value(json_object_get(root, "config"));
    m->step = json_integer_value(json_object_get(root, "step"));
    m->ranks = (int)json_integer_value(json_object_get(root, "ranks"));
    m->ep = (int)json_integer_value(json_object_get(root, "ep"));
    if (!config || m->step < 0 || !copy_string(root, "dtype", m->dtype, sizeof m->dtype) ||
        !copy_string(root, "tokenizer", m->tokenizer, sizeof m->tokenizer) ||
        !copy_string(root, "data_fingerprint", m->fingerprint, sizeof m->fingerprint) ||
        !read_val_split(m, root) ||
        !read_shards(m, json_object_get(root, "shards")) ||
        !read_tensors(m, json_object_get(root, "tensors")))
        return mu_error_set(e, MU_STATUS_DATA, "%s: a field is missing or has the wrong type", path);
    m->config = mu_strdup(config);
    return MU_STATUS_OK;
}

/* A folder that says step-N must hold step N: a copy under another name would otherwise pass for the newest. */
static mu_status check_folder_name(const mu_manifest *m, const char *path, mu_error *e) {
    size_t n = strlen(m->path);
    while (n > 1 && m->path[n - 1] == '/') n--;
    while (n > 0 && m->path[n - 1] != '/') n--;
    long long step;
    if (sscanf(m->path + n, "step-%lld", &step) != 1 || step == m->step) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_DATA, "%s is the manifest of step %lld, not of step %lld", path,
                        (long long)m->step, step);
}

mu_status mu_manifest_read(mu_manifest *m, const char *checkpoint, mu_error *e) {
    *m = (mu_manifest){ 0 };
    snprintf(m->path, sizeof m->path, "%s", checkpoint);
    char *path = mu_format("%s/manifest.json", checkpoint), *text = NULL;
    size_t bytes = 0;
    mu_status status = mu_file_read(path, LARGEST, &text, &bytes, e);
    if (status == MU_STATUS_NOINPUT) status = mu_error_set(e, MU_STATUS_DATA, "%s is missing", path);
    if (status == MU_STATUS_OK && !first_line_is_whole(text, bytes))
        status = mu_error_set(e, MU_STATUS_DATA,
                              "%s is damaged: its second line is not the hash of the first", path);
    json_t *root = NULL;
    if (status == MU_STATUS_OK) {
        json_error_t problem;
        root = json_loads(text, JSON_REJECT_DUPLICATES, &problem);
        status = root ? fill(m, root, path, e)
                      : mu_error_set(e, MU_STATUS_DATA, "%s: %s", path, problem.text);
        if (status == MU_STATUS_OK) status = check_folder_name(m, path, e);
    }
    json_decref(root);
    free(text);
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

static mu_status verify_shard(const mu_manifest *m, const mu_shard *s, mu_error *e) {
    char hex[33], *path = mu_format("%s/%s", m->path, s->name);
    int64_t bytes = 0;
    mu_status status = mu_file_hash(path, hex, &bytes, e);
    if (status != MU_STATUS_OK) status = mu_error_set(e, MU_STATUS_DATA, "%s is missing or unreadable", path);
    else if (bytes != s->bytes)
        status = mu_error_set(e, MU_STATUS_DATA, "%s is damaged: %lld bytes, the manifest says %lld", path,
                              (long long)bytes, (long long)s->bytes);
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
