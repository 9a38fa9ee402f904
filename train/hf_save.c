/* hf_save.c - writes a model in Hugging Face's files: weights, config.json, generation_config.json, tokenizer. Values are read one tensor
 * at a time. */
#include "train/hf_config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ which of our tensors make which of theirs */

typedef struct {
    mu_hf_place place;
    int layer;
    const mu_unit *unit;        /* NULL: the selection bias of the layer */
} piece;

/* In order of layers and names; the pieces of a fused tensor one after another. */
static int compare_pieces(const void *a, const void *b) {
    const piece *x = a, *y = b;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    int order = strcmp(x->place.name, y->place.name);
    return order ? order : (x->place.first > y->place.first) - (x->place.first < y->place.first);
}

static piece *list_pieces(const mu_hf_model_type *type, const mu_model *m, int *n) {
    piece *list = mu_alloc((size_t)(m->params->n_global_units + m->n_moe), sizeof *list);
    *n = 0;
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; u = mu_unit_next(m->params, u)) {
        const mu_param_desc *d = &u->param->desc;
        piece *p = &list[(*n)++];
        *p = (piece){ .layer = d->layer, .unit = u };
        mu_hf_place_of(type, u->name, -1, d->n_dims, d->shape, d->n_experts, &p->place);
    }
    for (int i = 0; i < m->n_moe && type->selection_bias; i++)
        list[(*n)++] = (piece){ .layer = m->moe_layers[i], .place = mu_hf_bias_place(type, m->moe_layers[i], m->moe_cfg.num_experts) };
    qsort(list, (size_t)*n, sizeof *list, compare_pieces);
    return list;
}

/* Their tensors; names are those of the pieces. A selection bias stays fp32, as in Hugging Face's models. */
static mu_safetensor *list_tensors(const piece *pieces, int n, bool bf16, int *n_tensors) {
    mu_safetensor *list = mu_alloc((size_t)n + 1, sizeof *list);
    *n_tensors = 0;
    for (int i = 0; i < n; i++) {
        const mu_hf_place *p = &pieces[i].place;
        if (i && !strcmp(p->name, pieces[i - 1].place.name)) continue;
        mu_safetensor *t = &list[(*n_tensors)++];
        *t = (mu_safetensor){ .name = p->name, .n_dims = p->n_dims, .dtype = bf16 && pieces[i].unit ? MU_SAFETENSORS_BF16 : MU_SAFETENSORS_F32 };
        memcpy(t->shape, p->shape, sizeof p->shape);
    }
    return list;
}

/* ------------------------------------------------------------------ weights */

static mu_status check_finite(const char *name, const float *values, int64_t n, mu_error *e) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i])) return mu_error_set(e, MU_STATUS_DATA, "%s: value %lld is not finite", name, (long long)i);
    return MU_STATUS_OK;
}

static mu_status read_piece(const mu_hf_export *x, const piece *p, float *values, mu_error *e) {
    if (p->unit) return x->read(x->from, p->unit->name, MU_STORE_F32, p->unit->param->desc.n_dims, p->unit->param->desc.shape, values, e);
    double *bias = mu_alloc((size_t)p->place.count, sizeof *bias);
    char *name = mu_format("/layers/%d/mlp/gate/e_score_correction_bias", p->layer);
    mu_status status = x->read(x->from, name, MU_STORE_F64, 1, &p->place.count, bias, e);
    for (int64_t i = 0; i < p->place.count; i++) values[i] = (float)bias[i];
    free(name);
    free(bias);
    return status;
}

static mu_status write_weights(const char *folder, const mu_hf_export *x, const mu_hf_model_type *type, mu_error *e) {
    int n, n_tensors;
    piece *pieces = list_pieces(type, x->model, &n);
    mu_safetensor *tensors = list_tensors(pieces, n, x->bf16, &n_tensors);
    mu_safetensors_writer *w = mu_safetensors_writer_new(folder, tensors, n_tensors, x->shard_bytes);
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < n && status == MU_STATUS_OK; i++) {
        int64_t count = pieces[i].place.count;
        float *values = mu_alloc((size_t)count, sizeof *values);
        status = read_piece(x, &pieces[i], values, e);
        if (status == MU_STATUS_OK) status = check_finite(pieces[i].place.name, values, count, e);
        if (status == MU_STATUS_OK) status = mu_safetensors_write(w, values, count, e);
        free(values);
    }
    status = mu_safetensors_writer_finish(w, status, e);
    free(tensors);
    free(pieces);
    return status;
}

/* ------------------------------------------------------------------ the tokenizer's files */

enum { TOKENIZER_BYTES = 1 << 28 };

static mu_status put_text(const char *folder, const char *name, const char *text, size_t bytes, mu_error *e) {
    char *path = mu_format("%s/%s", folder, name);
    mu_status status = mu_file_replace(path, text, bytes, e);
    free(path);
    return status;
}

static mu_status copy_file(const char *from, const char *folder, const char *name, mu_error *e) {
    char *text;
    size_t bytes;
    mu_status status = mu_file_read(from, TOKENIZER_BYTES, &text, &bytes, e);
    if (status == MU_STATUS_OK) status = put_text(folder, name, text, bytes, e);
    free(text);
    return status;
}

/* The file beside `path`, heap; NULL when it does not exist. */
static char *beside(const char *path, const char *name) {
    const char *slash = strrchr(path, '/');
    char *other = mu_format("%.*s%s", slash ? (int)(slash + 1 - path) : 0, path, name);
    if (mu_file_exists(other)) return other;
    free(other);
    return NULL;
}

static const char bytes_end[] = "<|endoftext|>";

/* UTF-8 of the character that stands for a byte in byte-level tokenizers (GPT-2): itself where it is printable Latin-1, else the next
 * free one from U+0100 on. */
static void byte_character(int byte, int *spare, char text[3]) {
    bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    int code = printable ? byte : 256 + (*spare)++, n = 0;
    if (code >= 0x80) text[n++] = (char)(0xC0 | code >> 6), code = 0x80 | (code & 63);
    text[n++] = (char)code;
    text[n] = '\0';
}

static void put_byte_level(mu_json *j, const char *key) {
    mu_json_begin(j, key, '{');
    mu_json_string(j, "type", "ByteLevel");
    mu_json_bool(j, "add_prefix_space", false);
    mu_json_bool(j, "trim_offsets", false);
    mu_json_bool(j, "use_regex", false);
    mu_json_end(j, '}');
}

static void put_end_token(mu_json *j) {
    mu_json_begin(j, "added_tokens", '[');
    mu_json_begin(j, NULL, '{');
    mu_json_int(j, "id", 256);
    mu_json_string(j, "content", bytes_end);
    static const char *const off[] = { "single_word", "lstrip", "rstrip", "normalized" };
    for (int i = 0; i < 4; i++) mu_json_bool(j, off[i], false);
    mu_json_bool(j, "special", true);
    mu_json_end(j, '}');
    mu_json_end(j, ']');
}

/* The tokenizer "bytes" as a byte-level BPE without merges: the same ids. */
static mu_status write_bytes_tokenizer(const char *folder, mu_error *e) {
    mu_json j;
    int spare = 0;
    mu_json_init(&j);
    mu_json_begin(&j, NULL, '{');
    mu_json_string(&j, "version", "1.0");
    put_end_token(&j);
    mu_json_string(&j, "normalizer", NULL);
    put_byte_level(&j, "pre_tokenizer");
    put_byte_level(&j, "decoder");
    mu_json_begin(&j, "model", '{');
    mu_json_string(&j, "type", "BPE");
    mu_json_begin(&j, "vocab", '{');
    for (int byte = 0; byte < 256; byte++) {
        char text[3];
        byte_character(byte, &spare, text);
        mu_json_int(&j, text, byte);
    }
    mu_json_end(&j, '}');
    mu_json_begin(&j, "merges", '[');
    mu_json_end(&j, ']');
    mu_json_end(&j, '}');
    mu_json_end(&j, '}');
    mu_status status = put_text(folder, "tokenizer.json", j.text, j.length, e);
    mu_json_free(&j);
    return status;
}

static mu_status write_tokenizer_config(const char *folder, const char *end, int64_t most, mu_error *e) {
    mu_json j;
    mu_json_init(&j);
    mu_json_begin(&j, NULL, '{');
    mu_json_string(&j, "tokenizer_class", "PreTrainedTokenizerFast");
    mu_json_string(&j, "eos_token", end);
    mu_json_int(&j, "model_max_length", most);
    mu_json_bool(&j, "clean_up_tokenization_spaces", false);
    mu_json_end(&j, '}');
    mu_status status = put_text(folder, "tokenizer_config.json", j.text, j.length, e);
    mu_json_free(&j);
    return status;
}

mu_status mu_hf_write_tokenizer(const char *folder, const mu_tokenizer *t, int64_t max_seq_len, mu_error *e) {
    const char *path = mu_tokenizer_path(t), *end = mu_tokenizer_eod_text(t);
    char *config = path ? beside(path, "tokenizer_config.json") : NULL;
    mu_status status = path ? copy_file(path, folder, "tokenizer.json", e) : write_bytes_tokenizer(folder, e);
    if (status == MU_STATUS_OK)
        status = config ? copy_file(config, folder, "tokenizer_config.json", e) : write_tokenizer_config(folder, end ? end : bytes_end, max_seq_len, e);
    free(config);
    return status;
}

/* ------------------------------------------------------------------ the folder */

static mu_status write_generation_config(const char *folder, int32_t eod, mu_error *e) {
    mu_json j;
    mu_json_init(&j);
    mu_json_begin(&j, NULL, '{');
    mu_json_bool(&j, "_from_model_config", true);
    mu_json_int(&j, "eos_token_id", eod);
    mu_json_end(&j, '}');
    mu_status status = put_text(folder, "generation_config.json", j.text, j.length, e);
    mu_json_free(&j);
    return status;
}

mu_status mu_hf_save(const char *folder, const mu_hf_export *x, const char **type_name, mu_error *e) {
    const mu_hf_model_type *type;
    int32_t eod = mu_tokenizer_eod(x->tokenizer);
    mu_status status = mu_hf_choose(x->cfg, &type, e);
    if (status != MU_STATUS_OK) return status;
    *type_name = type->name;
    json_t *kept = NULL;
    if (x->kept) status = mu_hf_parse(x->kept, &kept, e);
    char *config = mu_hf_config_text(type, x->cfg, x->model->vocab_size, eod, kept, x->bf16);
    if (status == MU_STATUS_OK) status = write_weights(folder, x, type, e);
    if (status == MU_STATUS_OK) status = put_text(folder, "config.json", config, strlen(config), e);
    if (status == MU_STATUS_OK && !kept) status = write_generation_config(folder, eod, e);
    if (status == MU_STATUS_OK) status = mu_hf_write_tokenizer(folder, x->tokenizer, x->cfg->model.max_seq_len, e);
    json_decref(kept);
    free(config);
    return status;
}
