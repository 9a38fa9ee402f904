/* tokenizer_bpe_write.c - a BPE tokenizer as tokenizer.json, in the form that Hugging Face's tokenizers write: merges as pairs, ids in
 * order, sections as they were read. */
#include "data/tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>

static void write_tree(mu_json *j, const char *key, json_t *v) {
    const char *name;
    json_t *child;
    size_t i;
    if (json_is_object(v)) {
        mu_json_begin(j, key, '{');
        json_object_foreach(v, name, child) write_tree(j, name, child);
        mu_json_end(j, '}');
    } else if (json_is_array(v)) {
        mu_json_begin(j, key, '[');
        json_array_foreach(v, i, child) write_tree(j, NULL, child);
        mu_json_end(j, ']');
    } else if (json_is_string(v)) mu_json_string(j, key, json_string_value(v));
    else if (json_is_integer(v)) mu_json_int(j, key, json_integer_value(v));
    else if (json_is_boolean(v)) mu_json_bool(j, key, json_is_true(v));
    else mu_json_float(j, key, json_is_real(v) ? json_real_value(v) : 0.0 / 0.0);      /* NaN is written as null */
}

static void write_added(mu_json *j, const mu_bpe_tokenizer *t) {
    mu_json_begin(j, "added_tokens", '[');
    for (int i = 0; i < t->n_added; i++) {
        const mu_added_token *a = &t->added[i];
        mu_json_begin(j, NULL, '{');
        mu_json_int(j, "id", a->id);
        mu_json_string(j, "content", a->text.text);
        mu_json_bool(j, "single_word", a->single_word);
        mu_json_bool(j, "lstrip", a->lstrip);
        mu_json_bool(j, "rstrip", a->rstrip);
        mu_json_bool(j, "normalized", a->normalized);
        mu_json_bool(j, "special", a->special);
        mu_json_end(j, '}');
    }
    mu_json_end(j, ']');
}

static void write_token(mu_json *j, const char *key, const mu_bpe *b, int32_t id) {
    char *text = mu_bpe_text(b, id);
    mu_json_string(j, key, text);
    free(text);
}

static void write_model(mu_json *j, const mu_bpe *b) {
    const mu_bpe_options *o = mu_bpe_options_of(b);
    const char *bytes;
    mu_json_begin(j, "model", '{');
    mu_json_string(j, "type", "BPE");
    mu_json_float(j, "dropout", 0.0 / 0.0);
    if (o->unk >= 0) write_token(j, "unk_token", b, o->unk);
    else mu_json_float(j, "unk_token", 0.0 / 0.0);
    mu_json_float(j, "continuing_subword_prefix", 0.0 / 0.0);
    mu_json_float(j, "end_of_word_suffix", 0.0 / 0.0);
    mu_json_bool(j, "fuse_unk", o->fuse_unk);
    mu_json_bool(j, "byte_fallback", o->byte_fallback);
    mu_json_bool(j, "ignore_merges", o->ignore_merges);
    mu_json_begin(j, "vocab", '{');
    for (int32_t id = 0; id < mu_bpe_ids(b); id++) {
        if (mu_bpe_bytes(b, id, &bytes) < 0) continue;
        char *text = mu_bpe_text(b, id);
        mu_json_int(j, text, id);
        free(text);
    }
    mu_json_end(j, '}');
    mu_json_begin(j, "merges", '[');
    for (int32_t i = 0, pair[2]; i < mu_bpe_merges(b); i++) {
        mu_bpe_merge(b, i, pair);
        mu_json_begin(j, NULL, '[');
        write_token(j, NULL, b, pair[0]);
        write_token(j, NULL, b, pair[1]);
        mu_json_end(j, ']');
    }
    mu_json_end(j, ']');
    mu_json_end(j, '}');
}

static void write_all(mu_json *j, const mu_bpe_tokenizer *t) {
    static const int behind[] = { MU_SECTION_NORMALIZER, MU_SECTION_PRE_TOKENIZER, MU_SECTION_POST_PROCESSOR, MU_SECTION_DECODER };
    mu_json_begin(j, NULL, '{');
    mu_json_string(j, "version", "1.0");
    write_tree(j, "truncation", t->sections[MU_SECTION_TRUNCATION]);
    write_tree(j, "padding", t->sections[MU_SECTION_PADDING]);
    write_added(j, t);
    for (int i = 0; i < 4; i++) write_tree(j, mu_section_names[behind[i]], t->sections[behind[i]]);
    write_model(j, t->bpe);
    mu_json_end(j, '}');
}

/* Makes sure that who reads `path` finds the same end-of-document token. */
static mu_status write_eos(const mu_bpe_tokenizer *t, const char *path, mu_error *e) {
    const char *slash = strrchr(path, '/'), *usual = mu_bpe_usual_eod(t);
    char *folder = slash ? mu_format("%.*s", slash == path ? 1 : (int)(slash - path), path) : mu_strdup("."), *old = NULL;
    char *config = mu_format("%s/tokenizer_config.json", folder);
    mu_status status = mu_bpe_read_eos(folder, &old, e);
    if (!status && (old ? strcmp(old, t->eod_text) : (!usual || strcmp(usual, t->eod_text)))) {
        mu_json j;
        mu_json_init(&j);
        mu_json_begin(&j, NULL, '{');
        mu_json_string(&j, "eos_token", t->eod_text);
        mu_json_string(&j, "tokenizer_class", "PreTrainedTokenizerFast");
        mu_json_end(&j, '}');
        if (mu_file_exists(config))
            status = mu_error_set(e, MU_STATUS_DATA, "%s: its \"eos_token\" is not \"%s\", as the tokenizer needs that is to be written beside it", config,
                                  t->eod_text);
        else status = mu_file_replace(config, j.text, j.length, e);
        mu_json_free(&j);
    }
    free(folder), free(old), free(config);
    return status;
}

mu_status mu_bpe_tokenizer_write(const mu_tokenizer *tokenizer, const char *path, mu_error *e) {
    const mu_bpe_tokenizer *t = (const mu_bpe_tokenizer *)tokenizer;
    mu_json j;
    mu_status status = write_eos(t, path, e);
    if (status) return status;
    mu_json_init(&j);
    write_all(&j, t);
    status = mu_file_replace(path, j.text, j.length, e);
    mu_json_free(&j);
    return status;
}
