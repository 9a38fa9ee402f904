/* test_hf.c - models in Hugging Face's files: small folders of every type give their logits, and are written as they were, bit for bit;
 * every key that changes the computation is mapped or refused; broken folders are refused by tensor and reason. The folders were made by
 * tests/train/convert_models.py. */
#include "train/hf.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static const char *const types[] = { "qwen3_moe", "dots1", "mixtral", "granitemoe", "granitemoeshared", "olmoe", "qwen2_moe", "qwen3", "llama" };
enum { N_TYPES = sizeof types / sizeof *types, V = 40 };

static mu_error e;
static mu_mesh *mesh;
static char folder[] = "/tmp/muster-hf-XXXXXX";

static char *fixture(const char *type) { return mu_format("%s/hf/%s", MUSTER_FIXTURES, type); }

static void assert_ok(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

static mu_config config_of(const mu_hf *h, const char *more) {
    char *const rest[] = { (char[]){ "run.dir=x" }, (char[]){ "data.train=[{domain: a, path: synthetic}]" }, (char[]){ "train.seq_len=2" }, mu_strdup(more) };
    mu_config cfg;
    assert_ok(mu_config_load_text(&cfg, "config", mu_hf_config(h), more[0] ? 4 : 3, rest, &e));
    free(rest[3]);
    return cfg;
}

/* ---------------------------------------------------------------- logits */
static void check_logits(const char *path, const mu_model *m, mu_device *dev) {
    char *name = mu_format("%s/expected.json", path);
    json_t *expected = json_load_file(name, 0, NULL), *ids = json_object_get(expected, "tokens"), *rows = json_object_get(expected, "logits");
    int n = (int)json_array_size(ids), last = (int)json_array_size(rows);
    int32_t tokens[64];
    assert_true(n > 0 && n <= 64 && last > 0);
    for (int i = 0; i < n; i++) tokens[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    mu_tape *tp = mu_tape_new(dev);
    mu_routing routings[8];
    double *logits = mu_alloc((size_t)(n * V), sizeof *logits), apart = 0;
    mu_context cx = { .mode = MU_MODE_EVAL, .n_sequences = 1, .seq_len = n };
    mu_tensor_get(mu_model_logits(m, tp, mu_model_forward(m, tp, &cx, mu_tensor_ints(tp, MU_DTYPE_I32, n, tokens), routings)), logits);
    for (int t = 0; t < last; t++)
        for (int i = 0; i < V; i++) {
            double wanted = json_number_value(json_array_get(json_array_get(rows, (size_t)t), (size_t)i));
            apart = fmax(apart, fabs(logits[(n - last + t) * V + i] - wanted));
        }
    if (!(apart < 1e-5)) fail_msg("%s: logits %g apart", path, apart);
    free(logits);
    mu_tape_free(tp);
    json_decref(expected);
    free(name);
}

static mu_status read_model(void *from, const char *name, mu_store_type type, int n_dims, const int64_t *shape, void *values, mu_error *why) {
    mu_model *m = from;
    mu_unit *u = mu_params_find(m->params, name);
    (void)n_dims, (void)shape, (void)why;
    if (!u) {
        int layer = atoi(name + strlen("/layers/"));
        assert_int_equal(type, MU_STORE_F64);
        memcpy(values, m->blocks[layer].moe.bias, (size_t)m->moe_cfg.num_experts * sizeof(double));
        return MU_STATUS_OK;
    }
    double *wide = mu_alloc((size_t)u->count, sizeof *wide);
    mu_reals_get(m->params->dev, m->params->dev->master, mu_unit_data(u), u->count, wide);
    for (int64_t i = 0; i < u->count; i++) ((float *)values)[i] = (float)wide[i];
    free(wide);
    return MU_STATUS_OK;
}

/* ---------------------------------------------------------------- what is written */
static bool is_tensor_equal(mu_safetensors *a, const mu_safetensor *x, mu_safetensors *b, const mu_safetensor *y) {
    float *p = mu_alloc((size_t)x->count, sizeof *p), *q = mu_alloc((size_t)x->count, sizeof *q);
    bool same = !strcmp(x->name, y->name) && x->n_dims == y->n_dims && !memcmp(x->shape, y->shape, (size_t)x->n_dims * sizeof *x->shape);
    if (same) {
        assert_ok(mu_safetensors_read(a, x, 0, x->count, p, &e));
        assert_ok(mu_safetensors_read(b, y, 0, x->count, q, &e));
        same = !memcmp(p, q, (size_t)x->count * sizeof *p);
    }
    free(p);
    free(q);
    return same;
}

/* The same tensors; in BF16, if the original is; fp32 otherwise. The configuration, read again, is the same. */
static void check_written(const char *type, const char *path, mu_hf *h, const mu_config *cfg, mu_model *m) {
    char *out = mu_format("%s/%s", folder, type);
    const char *written;
    mu_tokenizer *t;
    mu_safetensors *before, *after;
    mu_hf *again;
    assert_ok(mu_safetensors_open(&before, path, &e));
    bool bf16 = mu_safetensors_at(before, 0)->dtype == MU_SAFETENSORS_BF16;
    assert_ok(mu_tokenizer_open(&t, "bytes", &e));
    assert_ok(mu_file_make_dirs(out, &e));
    mu_hf_export x = { .cfg = cfg, .model = m, .tokenizer = t, .bf16 = bf16, .shard_bytes = 10000, .read = read_model, .from = m };
    assert_ok(mu_hf_save(out, &x, &written, &e));
    assert_string_equal(written, type);
    assert_ok(mu_safetensors_open(&after, out, &e));
    assert_int_equal(mu_safetensors_count(before), mu_safetensors_count(after));
    for (int i = 0; i < mu_safetensors_count(before); i++) {
        const mu_safetensor *a = mu_safetensors_at(before, i), *b = mu_safetensors_at(after, i);
        if (!is_tensor_equal(before, a, after, b)) fail_msg("%s: %s and %s differ", type, a->name, b->name);
        bool bias = strstr(a->name, "e_score_correction_bias") != NULL;
        assert_int_equal(b->dtype, bf16 && !bias ? MU_SAFETENSORS_BF16 : MU_SAFETENSORS_F32);
    }
    assert_ok(mu_hf_open(&again, out, &e));
    assert_string_equal(mu_hf_config(again), mu_hf_config(h));
    assert_non_null(mu_hf_tokenizer(again));
    mu_hf_close(again);
    mu_safetensors_close(before);
    mu_safetensors_close(after);
    mu_tokenizer_close(t);
    free(out);
}

static void every_type_is_read_and_written(void **state) {
    (void)state;
    mu_device *dev = mu_device_open("ref");
    for (int i = 0; i < N_TYPES; i++) {
        mu_hf *h;
        char *path = fixture(types[i]);
        assert_ok(mu_hf_open(&h, path, &e));
        assert_string_equal(mu_hf_type(h), types[i]);
        assert_int_equal(mu_hf_vocab_size(h), V);
        assert_null(mu_hf_tokenizer(h));
        mu_config cfg = config_of(h, "");
        mu_model *m = mu_model_new(&cfg.model, &cfg.moe, V, 1, dev, mesh);
        assert_ok(mu_hf_load(h, m, &e));
        check_logits(path, m, dev);
        check_written(types[i], path, h, &cfg, m);
        mu_model_free(m);
        mu_config_free(&cfg);
        mu_hf_close(h);
        free(path);
    }
    mu_device_close(dev);
}

/* ---------------------------------------------------------------- config.json */
static void copy_weights(const char *type) {
    char *from = fixture(type), *command = mu_format("rm -rf %s/edit; cp -r %s %s/edit", folder, from, folder);
    assert_int_equal(system(command), 0);
    free(command);
    free(from);
}

/* Opens the type's folder with key = value (JSON; NULL: without the key) in its config.json. */
static mu_status open_edited(const char *type, const char *key, const char *value, mu_hf **h) {
    char *from = mu_format("%s/hf/%s/config.json", MUSTER_FIXTURES, type), *to = mu_format("%s/edit", folder), *file = mu_format("%s/config.json", to);
    json_t *config = json_load_file(from, 0, NULL);
    assert_non_null(config);
    if (value) json_object_set_new(config, key, json_loads(value, JSON_DECODE_ANY, NULL));
    else json_object_del(config, key);
    assert_int_equal(json_dump_file(config, file, 0), 0);
    mu_status status = mu_hf_open(h, to, &e);
    json_decref(config);
    free(file);
    free(to);
    free(from);
    return status;
}

static void accepted(const char *type, const char *key, const char *value, const char *line) {
    mu_hf *h;
    if (open_edited(type, key, value, &h)) fail_msg("%s, %s = %s: %s", type, key, value ? value : "missing", e.text);
    if (!strstr(mu_hf_config(h), line)) fail_msg("%s, %s = %s: no \"%s\" in\n%s", type, key, value ? value : "missing", line, mu_hf_config(h));
    mu_hf_close(h);
}

static void refused(const char *type, const char *key, const char *value, const char *words) {
    mu_hf *h;
    mu_status status = open_edited(type, key, value, &h);
    if (status != MU_STATUS_DATA || !strstr(e.text, words) || !strstr(e.text, "config.json"))
        fail_msg("%s, %s = %s: expected \"%s\", got %d: %s", type, key, value ? value : "missing", words, (int)status, e.text);
}

static void keys_of_all_types(void **state) {
    (void)state;
    copy_weights("qwen3_moe");
    static const char q[] = "qwen3_moe";
    accepted(q, "hidden_act", NULL, "hidden_size: 16\n");
    accepted(q, "attention_dropout", "0.5", "hidden_size: 16\n");
    accepted(q, "something_new", "{\"a\": [1]}", "hidden_size: 16\n");
    accepted(q, "sliding_window", "4", "hidden_size: 16\n");      /* use_sliding_window is false */
    accepted(q, "rope_scaling", "null", "rope_theta: 50000\n");
    accepted(q, "rope_scaling", "{\"type\": \"default\"}", "rope_theta: 50000\n");
    accepted(q, "rope_parameters", NULL, "rope_theta: 10000\n");
    accepted(q, "rope_theta", "50000", "rope_theta: 50000\n");
    accepted(q, "num_experts", "4", "num_experts: 4\n");
    accepted(q, "mlp_only_layers", "null", "first_k_dense: 0\n");
    accepted(q, "decoder_sparse_step", "2", "moe_layer_freq: 2\n");
    accepted(q, "norm_topk_prob", NULL, "norm_topk_prob: false\n");
    accepted(q, "num_key_value_heads", "null", "num_kv_heads: 0\n");
    refused(q, "model_type", "\"gpt_oss\"", "model_type: \"gpt_oss\"; muster reads qwen3_moe, dots1");
    refused(q, "model_type", NULL, "model_type: missing");
    refused(q, "hidden_size", NULL, "hidden_size: missing");
    refused(q, "hidden_size", "16.5", "hidden_size: 16.5: must be an integer");
    refused(q, "hidden_size", "\"16\"", "hidden_size: \"16\": must be an integer");
    refused(q, "hidden_size", "-1", "model.hidden_size");
    refused(q, "num_hidden_layers", "100000", "model.num_layers");
    refused(q, "rms_norm_eps", "true", "rms_norm_eps: true: must be a number");
    refused(q, "tie_word_embeddings", "1", "tie_word_embeddings: 1: must be true or false");
    refused(q, "num_experts_per_tok", "5", "moe.top_k");
    refused(q, "num_experts", "5", "another value than that of the same key");
    refused(q, "hidden_act", "\"gelu\"", "hidden_act: \"gelu\": muster computes models with \"silu\"");
    refused(q, "attention_bias", "true", "attention_bias: true");
}

static void positions_and_windows(void **state) {
    (void)state;
    copy_weights("qwen3_moe");
    static const char q[] = "qwen3_moe";
    refused(q, "rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4}", "rope_scaling: rope_type \"yarn\"");
    refused(q, "rope_scaling", "{\"type\": \"linear\"}", "rope_scaling: type \"linear\"");
    refused(q, "rope_scaling", "{\"factor\": 8.0, \"high_freq_factor\": 4.0, \"rope_type\": \"llama3\"}", "rope_scaling: rope_type \"llama3\": muster");
    assert_null(strchr(e.text, '\n'));         /* one line for all of them */
    refused(q, "rope_scaling", "\"linear\"", "must be an object");
    refused(q, "rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 1e4, \"partial_rotary_factor\": 0.5}", "partial_rotary_factor 0.5");
    refused(q, "rope_parameters", "{\"full_attention\": {}}", "rope_parameters: full_attention {}");
    refused(q, "rope_theta", "10000", "rope_parameters has another value");
    refused(q, "partial_rotary_factor", "0.5", "partial_rotary_factor: 0.5");
    refused(q, "quantization_config", "{\"quant_method\": \"fp8\"}", "quantization_config");
    refused(q, "layer_types", "[\"full_attention\", \"sliding_attention\"]", "layer_types: \"sliding_attention\"");
    refused(q, "mlp_only_layers", "[1]", "mlp_only_layers: [1]: must be a list of the first layers");
    refused(q, "mlp_only_layers", "[0, 0]", "mlp_only_layers: [0,0]");
    refused(q, "mlp_only_layers", "{}", "mlp_only_layers: {}");
    refused(q, "vocab_size", "41", "vocab_size: 41, but tensor model.embed_tokens.weight has 40 rows");
    refused(q, "vocab_size", "0", "vocab_size: must be an integer");
    copy_weights("mixtral");
    accepted("mixtral", "sliding_window", "128", "max_seq_len: 128\n");
    accepted("mixtral", "rope_parameters", NULL, "rope_theta: 1000000\n");
    refused("mixtral", "sliding_window", "127", "sliding_window: 127");
    copy_weights("dots1");
    accepted("dots1", "scoring_func", "\"noaux_tc\"", "balance: [expert_bias]\n");
    refused("dots1", "n_group", "2", "n_group: 2: muster computes models with 1 only");
    refused("dots1", "topk_group", "2", "topk_group: 2");
    refused("dots1", "scoring_func", "\"softmax\"", "scoring_func: \"softmax\"");
    refused("dots1", "moe_layer_freq", "2", "moe_layer_freq: 2");
}

static void options_of_families(void **state) {
    (void)state;
    copy_weights("granitemoeshared");
    static const char g[] = "granitemoeshared";
    accepted(g, "attention_multiplier", "0.25", "attention_multiplier: 0.25\n");
    accepted(g, "attention_multiplier", NULL, "attention_multiplier: 1.0\n");
    accepted(g, "embedding_multiplier", "12", "embedding_multiplier: 12\n");
    accepted(g, "residual_multiplier", "0.22", "residual_multiplier: 0.22\n");
    accepted(g, "logits_scaling", "6.0", "logits_scaling: 6\n");
    accepted(g, "shared_intermediate_size", "0", "num_shared_experts: 0\n");
    refused(g, "shared_intermediate_size", "12", "must be a multiple of that of one expert, 8");
    refused(g, "shared_intermediate_size", "-8", "shared_intermediate_size: -8");
    refused(g, "logits_scaling", "0", "model.logits_scaling");
    refused(g, "position_embedding_type", "\"nope\"", "position_embedding_type");
    copy_weights("olmoe");
    accepted("olmoe", "clip_qkv", "8.0", "clip_qkv: 8\n");
    accepted("olmoe", "clip_qkv", "null", "clip_qkv: 0\n");
    copy_weights("qwen2_moe");
    accepted("qwen2_moe", "qkv_bias", NULL, "qkv_bias: true\n");
    refused("qwen2_moe", "shared_expert_intermediate_size", NULL, "missing");
    copy_weights("llama");
    refused("llama", "mlp_bias", "true", "mlp_bias: true");
    refused("llama", "attention_bias", "true", "attention_bias: true");
}

static void broken_texts_are_refused(void **state) {
    (void)state;
    static const struct { const char *text, *words; } cases[] = {
        { "", "config.json:1:0" }, { "[]", "not an object" }, { "{\"a\": 1, \"a\": 2}", "duplicate" }, { "{\"a\": }", "config.json:1:" },
        { "{\"model_type\": 7}", "model_type: 7" }, { "{\"a\": NaN}", "config.json:1:" }, { "{\"model_type\": \"llama\"}", "hidden_size: missing" },
    };
    char *path = mu_format("%s/edit", folder), *file = mu_format("%s/config.json", path);
    mu_hf *h;
    copy_weights("llama");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_ok(mu_file_replace(file, cases[i].text, strlen(cases[i].text), &e));
        mu_status status = mu_hf_open(&h, path, &e);
        if (status != MU_STATUS_DATA || !strstr(e.text, cases[i].words)) fail_msg("%s: got %d: %s", cases[i].text, (int)status, e.text);
    }
    enum { HUGE = 1 << 20 };
    char *text = mu_alloc(HUGE + 1, 1);
    memset(text, '[', HUGE + 1);
    assert_ok(mu_file_replace(file, text, HUGE + 1, &e));
    assert_int_equal(mu_hf_open(&h, path, &e), MU_STATUS_DATA);
    assert_ok(mu_file_replace(file, text, HUGE, &e));
    assert_int_equal(mu_hf_open(&h, path, &e), MU_STATUS_DATA);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(mu_hf_open(&h, path, &e), MU_STATUS_NOINPUT);
    assert_false(mu_hf_is(path));
    free(text);
    free(file);
    free(path);
}

/* ---------------------------------------------------------------- weights */
/* Loads the fixture with other options than those of its config.json: the tensors do not fit. */
static void load_fails(const char *type, const char *override, mu_status wanted, const char *words) {
    mu_hf *h;
    char *path = fixture(type);
    mu_device *dev = mu_device_open("ref");
    assert_ok(mu_hf_open(&h, path, &e));
    mu_config cfg = config_of(h, override);
    mu_model *m = mu_model_new(&cfg.model, &cfg.moe, V, 1, dev, mesh);
    mu_status status = mu_hf_load(h, m, &e);
    if (status != wanted || !strstr(e.text, words)) fail_msg("%s with %s: expected \"%s\", got %d: %s", type, override, words, (int)status, e.text);
    mu_model_free(m);
    mu_config_free(&cfg);
    mu_hf_close(h);
    mu_device_close(dev);
    free(path);
}

static void tensors_that_do_not_fit(void **state) {
    (void)state;
    load_fails("mixtral", "model.qk_norm=true", MU_STATUS_DATA, "tensor model.layers.0.self_attn.q_norm.weight is missing; the model needs it with shape [8]");
    load_fails("mixtral", "moe.moe_ffn_hidden_size=9", MU_STATUS_DATA, "experts.0.w1.weight has shape [8, 16], but the model needs [9, 16]");
    load_fails("mixtral", "moe.num_experts=3", MU_STATUS_DATA, "block_sparse_moe.gate.weight has shape [4, 16], but the model needs [3, 16]");
    load_fails("mixtral", "model.num_layers=1", MU_STATUS_DATA, "has no place in a model of type mixtral; there are others");
    load_fails("granitemoe", "moe.num_experts=5", MU_STATUS_DATA, "has shape [4, 16], but the model needs [5, 16]");
    load_fails("granitemoeshared", "moe.num_shared_experts=1", MU_STATUS_DATA, "shared_mlp.input_linear.weight has shape [32, 16], but the model needs [16, 16]");
    load_fails("qwen2_moe", "model.qkv_bias=false", MU_STATUS_DATA, "(a bias that the configuration does not have)");
    load_fails("dots1", "moe.balance=[none]", MU_STATUS_CONFIG, "needs expert_bias or quantile_balancing in moe.balance");
}

/* ---------------------------------------------------------------- configurations that no type holds */
static void no_type(const char *yaml, const char *words) {
    char *text = mu_format("run: {dir: x}\ndata: {train: [{domain: a, path: synthetic}]}\n%s\n", yaml);
    mu_config cfg;
    assert_ok(mu_config_load_text(&cfg, "config", text, 0, NULL, &e));
    mu_status status = mu_hf_holds(&cfg, &e);
    if (words ? status != MU_STATUS_CONFIG || !strstr(e.text, words) : status != MU_STATUS_OK) fail_msg("%s: %d, %s", yaml, (int)status, e.text);
    mu_config_free(&cfg);
    free(text);
}

static void what_no_type_holds_is_named(void **state) {
    (void)state;
    no_type("", NULL);
    no_type("moe: {capacity_factor: 1.5, router_jitter: 0.1}", NULL);      /* of training alone */
    no_type("moe: {route_scale: 2}", "nearest is qwen3_moe, but:\n  moe.route_scale is 2; there it is 1.0");
    no_type("moe: {balance: [expert_bias]}", "moe.balance has expert_bias");
    no_type("moe: {score_func: sigmoid}", "moe.score_func is sigmoid; there it is softmax");
    no_type("moe: {score_func: sigmoid, route_scale: 2}", "nearest is dots1, but:\n  moe.num_shared_experts is 0; there it is at least 1");
    no_type("moe: {score_func: sigmoid, num_shared_experts: 1, moe_layer_freq: 2}", "moe.moe_layer_freq is 2; there it is 1");
    no_type("moe: {force_skew: true}", "moe.force_skew is true; there it is false");
    no_type("moe: {num_shared_experts: 1, shared_expert_gate: true}", "nearest is");
    no_type("model: {qk_norm: false}\nmoe: {num_shared_experts: 2, shared_expert_gate: true}", NULL);
    no_type("model: {qk_norm: false, head_dim: 32, embedding_multiplier: 2}\nmoe: {num_shared_experts: 2}", "model.head_dim is 32; there it is 64");
    no_type("model: {qk_norm: false, hidden_size: 42, head_dim: 16}\nmoe: {num_experts: 0}", "model.qk_norm is false");   /* llama needs whole heads */
    no_type("model: {logits_scaling: 2, qk_norm: false}\nmoe: {num_experts: 0}", "model.logits_scaling is 2");
}

static int make_folder(void **state) {
    (void)state;
    mesh = mu_mesh_alone();
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    mu_mesh_close(mesh);
    return mu_file_remove_tree(folder, NULL) != MU_STATUS_OK;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_read_and_written), cmocka_unit_test(keys_of_all_types),
        cmocka_unit_test(positions_and_windows),          cmocka_unit_test(options_of_families),
        cmocka_unit_test(broken_texts_are_refused),       cmocka_unit_test(tensors_that_do_not_fit),
        cmocka_unit_test(what_no_type_holds_is_named),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
