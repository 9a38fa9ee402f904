/* hf_config.c - config.json of Hugging Face to muster's options. What would change the computation and is not in muster is refused by
 * its key and value; keys without effect are ignored; unknown keys are named in one warning. */
#include "train/hf_config.h"

#include <stdlib.h>
#include <string.h>

/* Parsing takes some 50 times the size of a hostile text. */
enum { CONFIG_BYTES = 1 << 20, LAYERS_MAX = 1024 };

typedef struct {
    const mu_hf_model_type *type;
    json_t *root;
    const char *path;           /* of config.json, for messages */
    FILE *model, *moe;          /* the sections */
    mu_error *e;
    bool failed;
} reader;

static void refuse(reader *r, const char *key, const char *fmt, ...) MU_PRINTF(3, 4);
static void refuse(reader *r, const char *key, const char *fmt, ...) {
    char text[300];
    va_list args;
    va_start(args, fmt);
    mu_text_vformat(text, sizeof text, fmt, args);
    va_end(args);
    if (!r->failed) mu_error_set(r->e, MU_STATUS_OK, "%s", "");
    mu_error_add(r->e, MU_STATUS_DATA, "%s: %s: %s", r->path, key, text);
    r->failed = true;
}

/* The value as JSON, at most 80 bytes; heap. */
static char *value_text(const json_t *value) {
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS);
    MU_CHECK(text, "a JSON value cannot be written");
    char *mine = mu_format("%.80s%s", text, strlen(text) > 80 ? "..." : "");
    free(text);
    return mine;
}

static void refuse_value(reader *r, const char *key, const json_t *value, const char *why) {
    char *text = value_text(value);
    refuse(r, key, "%s: %s", text, why);
    free(text);
}

static bool is_given(const json_t *value) { return value && !json_is_null(value); }

/* ------------------------------------------------------------------ keys and options */

/* Whether `keys`, "a|b", names this key. */
static bool names_key(const char *keys, const char *key) {
    size_t n = strlen(key);
    for (const char *at = keys; at; at = strchr(at, '|'), at = at ? at + 1 : NULL)
        if (!strncmp(at, key, n) && (at[n] == '|' || !at[n])) return true;
    return false;
}

/* The value of any of the names; those that are given must agree. */
static const json_t *find_value(reader *r, const char *keys) {
    const json_t *found = NULL, *value;
    const char *key;
    json_object_foreach(r->root, key, value) {
        if (!names_key(keys, key) || !is_given(value)) continue;
        if (found && !json_equal(found, value)) refuse_value(r, key, value, "another value than that of the same key by its other name");
        found = value;
    }
    return found;
}

const mu_option *mu_hf_option(const char *name) {
    int n;
    const mu_option *table = mu_config_table(&n);
    for (int i = 0; i < n; i++) {
        size_t length = strlen(table[i].section);
        if (!strncmp(name, table[i].section, length) && name[length] == '.' && !strcmp(name + length + 1, table[i].key)) return &table[i];
    }
    MU_FATAL(MU_STATUS_INTERNAL, "no option %s", name);
}

static void emit(reader *r, const char *option, const char *text) {
    bool moe = !strncmp(option, "moe.", 4);
    fprintf(moe ? r->moe : r->model, "  %s: %s\n", strchr(option, '.') + 1, text);
}

static void emit_number(reader *r, const char *option, double value) {
    mu_json j;
    mu_json_init(&j);
    mu_json_float(&j, NULL, value);
    emit(r, option, j.text);
    mu_json_free(&j);
}

static void read_option(reader *r, const mu_hf_key *k) {
    const json_t *value = find_value(r, k->key);
    mu_option_type type = mu_hf_option(k->option)->type;
    if (!value && !k->value) refuse(r, k->key, "missing");
    else if (!value) emit(r, k->option, k->value);
    else if (type == MU_OPTION_BOOL && !json_is_boolean(value)) refuse_value(r, k->key, value, "must be true or false");
    else if (type == MU_OPTION_INT && !json_is_integer(value)) refuse_value(r, k->key, value, "must be an integer");
    else if (type == MU_OPTION_FLOAT && !json_is_number(value)) refuse_value(r, k->key, value, "must be a number");
    else if (type == MU_OPTION_FLOAT) emit_number(r, k->option, json_number_value(value));
    else {
        char *text = value_text(value);
        emit(r, k->option, text);
        free(text);
    }
}

static void check_must(reader *r, const mu_hf_key *k) {
    const json_t *value = find_value(r, k->key);
    if (!value) return;
    char *text = value_text(value);
    if (!names_key(k->value, text)) refuse(r, k->key, "%s: muster computes models with %s only", text, k->value);
    free(text);
}

/* moe.num_shared_experts from the width of all shared experts. */
static void read_width(reader *r, const mu_hf_key *k) {
    const json_t *value = find_value(r, k->key), *one = NULL;
    for (const mu_hf_key *other = r->type->keys; other->key || other->option; other++)
        if (other->option && other->kind == MU_HF_OPTION && !strcmp(other->option, "moe.moe_ffn_hidden_size")) one = find_value(r, other->key);
    json_int_t all = json_integer_value(value), width = json_integer_value(one);
    if (!value && !k->value) refuse(r, k->key, "missing");
    else if (value && (!json_is_integer(value) || all < 0)) refuse_value(r, k->key, value, "must be an integer of at least 0");
    else if (all && (width <= 0 || all % width))
        refuse(r, k->key, "%lld: the width of the shared experts must be a multiple of that of one expert, %lld", (long long)all, (long long)width);
    else emit_number(r, k->option, all ? (double)(all / width) : 0);
}

static void read_dense_layers(reader *r, const mu_hf_key *k) {
    const json_t *list = find_value(r, k->key);
    size_t n = json_array_size(list);
    bool seen[LAYERS_MAX] = { false }, first = (!list || json_is_array(list)) && n <= LAYERS_MAX;
    for (size_t i = 0; first && i < n; i++) {
        const json_t *layer = json_array_get(list, i);
        json_int_t number = json_integer_value(layer);
        first = json_is_integer(layer) && number >= 0 && (size_t)number < n && !seen[number];
        if (first) seen[number] = true;
    }
    if (first) emit_number(r, k->option, (double)n);
    else refuse_value(r, k->key, list, "must be a list of the first layers, [0, 1, ...]: muster has dense layers at the beginning"
                      " (moe.first_k_dense) and in regular distances (moe.moe_layer_freq)");
}

static void read_key(reader *r, const mu_hf_key *k) {
    switch (k->kind) {
    case MU_HF_OPTION:
    case MU_HF_SCALE:
    case MU_HF_NULL:
    case MU_HF_IMPORT: read_option(r, k); break;
    case MU_HF_FIXED:
    case MU_HF_SETS: emit(r, k->option, k->value); break;
    case MU_HF_MUST:
    case MU_HF_MUST_READ: check_must(r, k); break;
    case MU_HF_WIDTH: read_width(r, k); break;
    case MU_HF_DENSE_LAYERS: read_dense_layers(r, k); break;
    case MU_HF_EXPORT:
    case MU_HF_WRITE: break;
    }
}

/* ------------------------------------------------------------------ positions and windows */

/* Whether this parameter is that of plain RoPE. */
static bool is_plain_rope(const char *key, const json_t *value) {
    const char *kind = json_string_value(value);
    if (!is_given(value) || (!strcmp(key, "partial_rotary_factor") && json_is_number(value) && json_number_value(value) == 1)) return true;
    return (!strcmp(key, "rope_type") || !strcmp(key, "type")) && kind && !strcmp(kind, "default");
}

/* *theta: where the parameters give it. False: they are refused, in one line, which names their type, or else the first of another kind. */
static bool read_rope_object(reader *r, const char *name, const json_t *rope, const json_t **theta) {
    const char *key, *other = NULL;
    const json_t *value;
    if (!is_given(rope)) return true;
    if (!json_is_object(rope)) return refuse_value(r, name, rope, "must be an object"), false;
    json_object_foreach((json_t *)(uintptr_t)rope, key, value) {
        if (!strcmp(key, "rope_theta") && theta) *theta = value;
        else if (!is_plain_rope(key, value) && (!other || !strcmp(key, "rope_type") || !strcmp(key, "type"))) other = key;
    }
    if (!other) return true;
    char *text = value_text(json_object_get(rope, other));
    refuse(r, name, "%s %s: muster computes rotary positions of type \"default\" over whole heads only", other, text);
    free(text);
    return false;
}

static void read_rope(reader *r) {
    const json_t *theta = json_object_get(r->root, "rope_theta"), *inner = NULL;
    if (!read_rope_object(r, "rope_scaling", json_object_get(r->root, "rope_scaling"), NULL) ||
        !read_rope_object(r, "rope_parameters", json_object_get(r->root, "rope_parameters"), &inner)) return;
    if (!is_given(theta)) theta = inner;
    if (!is_given(theta)) emit_number(r, "model.rope_theta", r->type->rope_theta);
    else if (!json_is_number(theta)) refuse_value(r, "rope_theta", theta, "must be a number");
    else if (is_given(inner) && json_number_value(inner) != json_number_value(theta))
        refuse_value(r, "rope_theta", theta, "rope_parameters has another value");
    else emit_number(r, "model.rope_theta", json_number_value(theta));
}

/* Attention reaches back over the whole context: no sliding window is shorter than it. */
static void check_window(reader *r) {
    const json_t *window = json_object_get(r->root, "sliding_window"), *types = json_object_get(r->root, "layer_types");
    const json_t *from = json_object_get(r->root, "max_window_layers");
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type || strcmp(type, "full_attention")) {
            refuse_value(r, "layer_types", json_array_get(types, i), "muster computes \"full_attention\" only");
            return;
        }
    }
    if (is_given(types) && !json_is_array(types)) refuse_value(r, "layer_types", types, "must be a list");
    if (json_array_size(types) || !is_given(window)) return;
    if (r->type->window_switch && !json_is_true(json_object_get(r->root, "use_sliding_window"))) return;
    if (r->type->selection_bias && json_is_integer(from) &&
        json_integer_value(from) >= json_integer_value(json_object_get(r->root, "num_hidden_layers"))) return;
    if (!json_is_integer(window) || json_integer_value(window) < json_integer_value(json_object_get(r->root, "max_position_embeddings")))
        refuse_value(r, "sliding_window", window, "attention over a part of the context is not supported");
}

/* ------------------------------------------------------------------ the whole */

static bool has_key(const mu_hf_key *keys, const char *key) {
    for (; keys->key || keys->option; keys++)
        if (keys->key && names_key(keys->key, key)) return true;
    return false;
}

static void warn_unknown(const reader *r) {
    static const char own[] = "rope_theta|rope_scaling|rope_parameters|sliding_window|use_sliding_window|layer_types";
    char *list = mu_strdup("");
    const char *key;
    const json_t *value;
    json_object_foreach(r->root, key, value) {
        if (names_key(own, key) || has_key(mu_hf_common_keys, key) || has_key(r->type->keys, key) || mu_hf_is_harmless(key)) continue;
        char *longer = mu_format("%s%s%.60s", list, list[0] ? ", " : "", key);
        free(list);
        list = longer;
        if (strlen(list) > 1000) break;
    }
    if (list[0]) mu_log(MU_LOG_WARNING, "%s: unknown keys are ignored: %s", r->path, list);
    free(list);
}

static mu_status find_type(reader *r) {
    const json_t *name = json_object_get(r->root, "model_type");
    char *known = mu_strdup("");
    r->type = json_is_string(name) ? mu_hf_type_named(json_string_value(name)) : NULL;
    for (int i = 0; !r->type && mu_hf_type_at(i); i++) {
        char *longer = mu_format("%s%s%s", known, i ? ", " : "", mu_hf_type_at(i)->name);
        free(known);
        known = longer;
    }
    char *text = name ? value_text(name) : mu_strdup("missing");
    if (!r->type) refuse(r, "model_type", "%s; muster reads %s", text, known);
    free(text);
    free(known);
    return r->type ? MU_STATUS_OK : MU_STATUS_DATA;
}

/* The text of the configuration, heap. */
static char *read_all(reader *r) {
    char *model = NULL, *moe = NULL;
    size_t size;
    r->model = open_memstream(&model, &size), r->moe = open_memstream(&moe, &size);
    MU_CHECK(r->model && r->moe, "out of memory");
    for (const mu_hf_key *k = mu_hf_common_keys; k->key || k->option; k++) read_key(r, k);
    for (const mu_hf_key *k = r->type->keys; k->key || k->option; k++) read_key(r, k);
    read_rope(r);
    check_window(r);
    fclose(r->model);
    fclose(r->moe);
    char *text = mu_format("model:\n%smoe:\n%s", model, moe);
    free(model);
    free(moe);
    return text;
}

/* The same checks as for a configuration of the user. */
static mu_status check_text(const char *path, const char *text, mu_error *e) {
    char *const rest[] = { (char[]){ "run.dir=unused" }, (char[]){ "data.train=[{domain: text, path: synthetic}]" }, (char[]){ "train.seq_len=2" } };
    mu_config cfg;
    mu_error why;
    mu_status status = mu_config_load_text(&cfg, "in muster's options", text, 3, rest, &why);
    mu_config_free(&cfg);
    return status == MU_STATUS_OK ? status : mu_error_set(e, MU_STATUS_DATA, "%s: %-s", path, why.text);
}

mu_status mu_hf_parse(const char *path, json_t **root, mu_error *e) {
    json_error_t problem;
    char *text;
    size_t bytes;
    *root = NULL;
    mu_status status = mu_file_read(path, CONFIG_BYTES, &text, &bytes, e);
    if (status != MU_STATUS_OK) return status;
    *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &problem);
    free(text);
    if (!*root) return mu_error_set(e, MU_STATUS_DATA, "%s:%d:%d: %s", path, problem.line, problem.column, problem.text);
    return json_is_object(*root) ? MU_STATUS_OK : mu_error_set(e, MU_STATUS_DATA, "%s: not an object", path);
}

mu_status mu_hf_config_read(const char *folder, const mu_hf_model_type **type, char **text, int64_t *vocab_size, mu_error *e) {
    char *path = mu_format("%s/config.json", folder);
    reader r = { .path = path, .e = e };
    *text = NULL;
    mu_status status = mu_hf_parse(path, &r.root, e);
    if (status == MU_STATUS_OK) status = find_type(&r);
    if (status == MU_STATUS_OK) {
        const json_t *vocabulary = json_object_get(r.root, "vocab_size");
        *type = r.type;
        *vocab_size = json_is_integer(vocabulary) ? json_integer_value(vocabulary) : -1;
        if (*vocab_size < 1) refuse(&r, "vocab_size", "must be an integer of at least 1");
        *text = read_all(&r);
        status = r.failed ? MU_STATUS_DATA : check_text(path, *text, e);
        if (status == MU_STATUS_OK) warn_unknown(&r);
    }
    json_decref(r.root);
    free(path);
    return status;
}

/* ------------------------------------------------------------------ where a text ends */

static mu_status add_stop(const char *path, const json_t *id, int32_t *ids, int *n, mu_error *e) {
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
        return mu_error_set(e, MU_STATUS_DATA, "%s: eos_token_id: must be an id, a list of ids, or null", path);
    if (*n == MU_HF_STOPS) return mu_error_set(e, MU_STATUS_DATA, "%s: eos_token_id: more than %d ids", path, MU_HF_STOPS);
    ids[(*n)++] = (int32_t)json_integer_value(id);
    return MU_STATUS_OK;
}

static mu_status add_stops(const char *path, const json_t *value, int32_t *ids, int *n, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    if (!is_given(value)) return status;
    if (!json_is_array(value)) return add_stop(path, value, ids, n, e);
    for (size_t i = 0; i < json_array_size(value) && status == MU_STATUS_OK; i++) status = add_stop(path, json_array_get(value, i), ids, n, e);
    return status;
}

mu_status mu_hf_stop_ids(const char *folder, int32_t ids[MU_HF_STOPS], int *n, mu_error *e) {
    static const char *const names[] = { "generation_config.json", "config.json", MU_HF_KEPT };
    mu_status status = MU_STATUS_OK;
    *n = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names && status == MU_STATUS_OK && !*n; i++) {
        char *path = mu_format("%s/%s", folder, names[i]);
        json_t *root = NULL;
        if (mu_file_exists(path)) status = mu_hf_parse(path, &root, e);
        if (status == MU_STATUS_OK) status = add_stops(path, json_object_get(root, "eos_token_id"), ids, n, e);
        json_decref(root);
        free(path);
    }
    return status;
}
