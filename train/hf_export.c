/* hf_export.c - the model type of Hugging Face that holds a configuration, and its config.json. What no type holds is an error that names
 * the option: nothing is dropped. */
#include "train/hf_config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ which type */

static bool has_dense_layer(const mu_config *cfg) {
    for (int layer = 0; layer < cfg->model.num_layers; layer++)
        if (!mu_layer_is_moe(&cfg->moe, layer)) return true;
    return false;
}

/* Whether the option has no effect on what this model computes. Options that change during training (FREE) are of the training loss. */
static bool is_idle(const mu_option *o, const mu_config *cfg) {
    size_t at = o->offset;
    bool dense = cfg->moe.num_experts == 0, moe = !strcmp(o->section, "moe");
    if (o->use & MU_ON_RESUME || o->use & MU_USE_RETIRED) return true;
    if (at == offsetof(mu_config, model.vocab_size) || at == offsetof(mu_config, model.rope_theta)) return true; /* written by themselves */
    if (at == offsetof(mu_config, model.ffn_hidden_size)) return !has_dense_layer(cfg);
    if (at == offsetof(mu_config, model.qk_norm_over)) return !cfg->model.qk_norm;
    if (at == offsetof(mu_config, moe.shared_expert_gate)) return !cfg->moe.num_shared_experts || dense;
    return moe && dense && at != offsetof(mu_config, moe.num_experts);
}

static const mu_hf_key *find_key(const mu_hf_key *keys, const mu_option *o) {
    for (; keys->key || keys->option; keys++)
        if (keys->option && keys->kind != MU_HF_SETS && mu_hf_option(keys->option) == o) return keys;
    return NULL;
}

static bool same_value(const char *a, const char *b) {
    char *end_a, *end_b;
    double x = strtod(a, &end_a), y = strtod(b, &end_b);
    return !strcmp(a, b) || (end_a > a && end_b > b && !*end_a && !*end_b && x == y);
}

/* The value that the option must have in this type, heap; NULL: any. */
static char *needed_value(const mu_hf_model_type *type, const mu_option *o, const mu_config *cfg, const mu_config *defaults) {
    const mu_hf_key *k = find_key(type->keys, o);
    if (!k) k = find_key(mu_hf_common_keys, o);
    if (!k) return mu_option_text(o, defaults);
    if (k->kind == MU_HF_FIXED) return mu_strdup(k->value);
    if (k->kind == MU_HF_IMPORT) return mu_format("%lld", (long long)(cfg->model.hidden_size / cfg->model.num_heads)); /* head_dim */
    return NULL;
}

/* What the type does not hold, one line each. */
typedef struct { char *text; size_t size; FILE *out; int n; } misfits;

static void check_option(const mu_hf_model_type *type, const mu_option *o, const mu_config *cfg, const mu_config *defaults, misfits *m) {
    if ((strcmp(o->section, "model") && strcmp(o->section, "moe")) || is_idle(o, cfg)) return;
    char *is = mu_option_text(o, cfg), *needed = needed_value(type, o, cfg, defaults);
    if (needed && !same_value(is, needed)) {
        fprintf(m->out, "\n  %s.%s is %s; there it is %s", o->section, o->key, is, needed);
        m->n++;
    }
    free(is);
    free(needed);
}

static misfits check_type(const mu_hf_model_type *type, const mu_config *cfg, const mu_config *defaults) {
    misfits m = { 0 };
    int n;
    const mu_option *table = mu_config_table(&n);
    m.out = open_memstream(&m.text, &m.size);
    MU_CHECK(m.out, "out of memory");
    for (int i = 0; i < n; i++) check_option(type, &table[i], cfg, defaults, &m);
    bool experts = find_key(type->keys, mu_hf_option("moe.num_experts"))->kind == MU_HF_OPTION;
    if (experts && !cfg->moe.num_experts) m.n++, fprintf(m.out, "\n  moe.num_experts is 0; there it is at least 1");
    if (cfg->moe.num_experts && cfg->moe.balance & MU_BALANCE_SELECTION && !type->selection_bias)
        m.n++, fprintf(m.out, "\n  moe.balance has %s; there is no place for a selection bias",
                       cfg->moe.balance & MU_BALANCE_BIAS ? "expert_bias" : "quantile_balancing");
    if (cfg->moe.num_experts && cfg->moe.num_shared_experts < type->least_shared)
        m.n++, fprintf(m.out, "\n  moe.num_shared_experts is %lld; there it is at least %d", (long long)cfg->moe.num_shared_experts, type->least_shared);
    if (type->whole_heads && cfg->model.hidden_size % cfg->model.num_heads)
        m.n++, fprintf(m.out, "\n  model.hidden_size %lld is not a multiple of model.num_heads %lld", (long long)cfg->model.hidden_size, (long long)cfg->model.num_heads);
    fclose(m.out);
    return m;
}

mu_status mu_hf_choose(const mu_config *cfg, const mu_hf_model_type **type, mu_error *e) {
    mu_config defaults = { 0 };
    mu_options options;
    int n;
    const mu_option *table = mu_config_table(&n);
    mu_options_init(&options, table, n, &defaults);
    const mu_hf_model_type *nearest = NULL;
    misfits least = { 0 };
    *type = NULL;
    for (int i = 0; mu_hf_type_at(i) && !*type; i++) {
        misfits m = check_type(mu_hf_type_at(i), cfg, &defaults);
        if (!m.n) *type = mu_hf_type_at(i);
        bool nearer = !nearest || m.n < least.n;
        free(nearer ? least.text : m.text);
        if (nearer) least = m, nearest = mu_hf_type_at(i);
    }
    mu_options_free(&options, &defaults);
    if (!*type)
        mu_error_set(e, MU_STATUS_CONFIG, "no model type of Hugging Face holds this configuration (docs/models.md); the nearest is %s, but:%-s",
                     nearest->name, least.text);
    free(least.text);
    return *type ? MU_STATUS_OK : MU_STATUS_CONFIG;
}

mu_status mu_hf_holds(const mu_config *cfg, mu_error *e) {
    const mu_hf_model_type *type;
    return mu_hf_choose(cfg, &type, e);
}

/* ------------------------------------------------------------------ config.json */

typedef struct { FILE *out; bool comma; const json_t *kept; } writer;

/* `key` may be "a|b", and so may the JSON value: the first is written. */
static void put(writer *w, const char *key, const char *value) {
    fprintf(w->out, "%s\n  \"%.*s\": %.*s", w->comma ? "," : "", (int)strcspn(key, "|"), key, (int)strcspn(value, "|"), value);
    w->comma = true;
}

static void put_int(writer *w, const char *key, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    put(w, key, text);
}

/* With a point: readers with types take 1 for an integer. */
static char *float_json(double value) {
    mu_json j;
    mu_json_init(&j);
    mu_json_float(&j, NULL, value);
    char *text = mu_format("%s%s", j.text, strpbrk(j.text, ".e") ? "" : ".0");
    mu_json_free(&j);
    return text;
}

static void put_float(writer *w, const char *key, double value) {
    char *text = float_json(value);
    put(w, key, text);
    free(text);
}

/* A key that was kept has its value of before, or is absent as before. False: nothing was kept. */
static bool put_kept(writer *w, const char *key) {
    const json_t *value = json_object_get(w->kept, key);
    if (json_is_real(value)) put_float(w, key, json_real_value(value));
    else if (value) {
        char *text = json_dumps(value, JSON_ENCODE_ANY);
        MU_CHECK(text, "%s cannot be written", key);
        fprintf(w->out, "%s\n  \"%s\": %s", w->comma ? "," : "", key, text);
        w->comma = true;
        free(text);
    }
    return w->kept;
}

static void put_option(writer *w, const mu_hf_key *k, const mu_config *cfg) {
    const mu_option *o = mu_hf_option(k->option);
    char *text = mu_option_text(o, cfg);
    if (o->type == MU_OPTION_FLOAT) put_float(w, k->key, strtod(text, NULL));
    else put(w, k->key, text);
    free(text);
}

static void put_or_null(writer *w, const mu_hf_key *k, const mu_config *cfg) {
    char *text = mu_option_text(mu_hf_option(k->option), cfg);
    if (strtod(text, NULL) == 0) put(w, k->key, "null");
    else put_option(w, k, cfg);
    free(text);
}

static void put_dense_layers(writer *w, const char *key, int64_t n) {
    char *list = mu_strdup("[");
    for (int64_t i = 0; i < n; i++) {
        char *longer = mu_format("%s%s%lld", list, i ? ", " : "", (long long)i);
        free(list);
        list = longer;
    }
    char *whole = mu_format("%s]", list);
    put(w, key, whole);
    free(whole);
    free(list);
}

static void put_key(writer *w, const mu_hf_key *k, const mu_config *cfg) {
    double scale = cfg->model.attention_multiplier;
    switch (k->kind) {
    case MU_HF_OPTION: put_option(w, k, cfg); break;
    case MU_HF_EXPORT:
        if (!put_kept(w, k->key)) put_option(w, k, cfg);
        break;
    case MU_HF_MUST:
    case MU_HF_WRITE: put(w, k->key, k->value); break;
    case MU_HF_WIDTH: put_int(w, k->key, cfg->moe.num_shared_experts * cfg->moe.moe_ffn_hidden_size); break;
    case MU_HF_DENSE_LAYERS: put_dense_layers(w, k->key, cfg->moe.first_k_dense); break;
    case MU_HF_NULL: put_or_null(w, k, cfg); break;
    case MU_HF_SCALE: put_float(w, k->key, scale > 0 ? scale : 1.0 / sqrt((double)cfg->model.head_dim)); break;
    case MU_HF_IMPORT:
    case MU_HF_FIXED:
    case MU_HF_SETS:
    case MU_HF_MUST_READ: break;
    }
}

static void put_rope(writer *w, double theta) {
    char *number = float_json(theta), *both = mu_format("{ \"rope_type\": \"default\", \"rope_theta\": %s }", number);
    put(w, "rope_theta", number);       /* transformers 4 */
    put(w, "rope_parameters", both);    /* transformers 5 */
    free(both);
    free(number);
}

char *mu_hf_config_text(const mu_hf_model_type *type, const mu_config *cfg, int64_t vocab_size, int32_t eod, const json_t *kept, bool bf16) {
    char *text = NULL, *architectures = mu_format("[\"%s\"]", type->class), *name = mu_format("\"%s\"", type->name);
    size_t size;
    writer w = { open_memstream(&text, &size), false, kept };
    MU_CHECK(w.out, "out of memory");
    fputc('{', w.out);
    put(&w, "architectures", architectures);
    put(&w, "model_type", name);
    put(&w, "torch_dtype", bf16 ? "\"bfloat16\"" : "\"float32\"");
    put_int(&w, "vocab_size", vocab_size);
    for (const mu_hf_key *k = mu_hf_common_keys; k->key || k->option; k++) put_key(&w, k, cfg);
    for (const mu_hf_key *k = type->keys; k->key || k->option; k++) put_key(&w, k, cfg);
    put_rope(&w, cfg->model.rope_theta);
    bool aux = cfg->moe.balance & (MU_BALANCE_AUX | MU_BALANCE_GLOBAL_AUX);
    if (!put_kept(&w, "router_aux_loss_coef") && cfg->moe.num_experts && !type->selection_bias)
        put_float(&w, "router_aux_loss_coef", aux ? cfg->moe.aux_loss_coeff : 0);
    if (!put_kept(&w, "bos_token_id")) put(&w, "bos_token_id", "null");
    if (!put_kept(&w, "eos_token_id")) put_int(&w, "eos_token_id", eod);
    if (!put_kept(&w, "pad_token_id")) put(&w, "pad_token_id", "null");
    fprintf(w.out, "\n}\n");
    fclose(w.out);
    free(architectures);
    free(name);
    return text;
}
