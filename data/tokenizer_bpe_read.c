/* tokenizer_bpe_read.c - builds a BPE tokenizer from a tokenizer.json, or from a vocabulary in memory. The vocabulary and the merges are
 * read without a tree; the other sections are small and become trees (jansson). */
#include "data/json_reader.h"
#include "data/tokenizer_bpe.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { LARGEST_MIB = 64, LARGEST_SECTION = 2 << 20 };      /* of the file; of a section that becomes a tree, in bytes */
const char *const mu_section_names[MU_SECTIONS] = { "truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder" };

/* ------------------------------------------------------------------ from parts to a tokenizer */

static const char *const usual_eod[] = { "<|endoftext|>", "</s>", "<|end_of_text|>", "<\xef\xbd\x9c" "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
                                         "<|end\xe2\x96\x81of\xe2\x96\x81sentence|>", "<eos>" };
enum { N_USUAL = sizeof usual_eod / sizeof *usual_eod };

static const mu_added_token *find_added(const mu_bpe_tokenizer *t, const char *text) {
    for (int i = 0; i < t->n_added; i++)
        if (t->added[i].text.n == (int64_t)strlen(text) && !memcmp(t->added[i].text.text, text, strlen(text))) return &t->added[i];
    return NULL;
}

const char *mu_bpe_usual_eod(const mu_bpe_tokenizer *t) {
    for (int i = 0; i < N_USUAL; i++)
        if (find_added(t, usual_eod[i])) return usual_eod[i];
    return NULL;
}

static mu_status set_eod(mu_bpe_tokenizer *t, const char *where, const char *eod, mu_error *e) {
    const char *text = eod ? eod : mu_bpe_usual_eod(t);
    if (!text)
        return mu_error_set(e, MU_STATUS_DATA, "tokenizer %s: no added token ends a document by its name (%s, %s, %s, ...); name it as "
                            "\"eos_token\" in tokenizer_config.json beside the file", where, usual_eod[0], usual_eod[1], usual_eod[2]);
    const mu_added_token *a = find_added(t, text);
    if (!a) return mu_error_set(e, MU_STATUS_DATA, "tokenizer %s: the end-of-document token \"%s\" is not in added_tokens", where, text);
    if (mu_bpe_makes(t->bpe, a->id))
        return mu_error_set(e, MU_STATUS_DATA, "tokenizer %s: the end-of-document token \"%s\" is also what the model makes of plain text", where, text);
    mu_bpe_forbid(t->bpe, a->id);
    t->tokenizer.eod = a->id;
    t->tokenizer.eod_text = t->eod_text = mu_strdup(text);
    return MU_STATUS_OK;
}

/* The byte of a token <0xNN>, or -1. */
static int byte_of_token(const char *text, int64_t n) {
    static const char digits[] = "0123456789ABCDEF";
    if (n != 6 || memcmp(text, "<0x", 3) || text[5] != '>') return -1;
    const char *high = memchr(digits, text[3], 16), *low = memchr(digits, text[4], 16);
    return high && low ? (int)((high - digits) << 4 | (low - digits)) : -1;
}

/* What a token of plain characters means, written at `to`; its bytes. */
static int64_t decode_plain(const mu_bpe_tokenizer *t, const char *text, int64_t n, char *to) {
    const char *start = to, *end = text + n, *at;
    int byte = mu_bpe_options_of(t->bpe)->byte_fallback ? byte_of_token(text, n) : -1;
    if (byte >= 0) {
        *to = (char)byte;
        return 1;
    }
    const mu_text *what = &t->decode_what, *by = &t->decode_by;
    while (what->n && (at = memmem(text, (size_t)(end - text), what->text, (size_t)what->n))) {
        memcpy(to, text, (size_t)(at - text));
        to += at - text;
        memcpy(to, by->text, (size_t)by->n);
        to += by->n, text = at + what->n;
    }
    memcpy(to, text, (size_t)(end - text));
    return to + (end - text) - start;
}

static void make_decoded(mu_bpe_tokenizer *t) {
    bool plain = !mu_bpe_options_of(t->bpe)->byte_level;
    const char *text;
    int64_t bytes = 0, n;
    t->decoded = mu_alloc((size_t)t->tokenizer.vocab_size, sizeof *t->decoded);
    for (int32_t id = 0; id < mu_bpe_ids(t->bpe); id++) {
        if ((n = mu_bpe_bytes(t->bpe, id, &text)) < 0) continue;
        t->decoded[id] = (mu_text){ (char *)(uintptr_t)text, n };
        bytes += n;
    }
    if (plain) {
        char *to = t->decoded_bytes = mu_alloc((size_t)bytes + 1, 1);
        for (int32_t id = 0; id < mu_bpe_ids(t->bpe); id++) {
            mu_text *d = &t->decoded[id];
            if (!d->text) continue;
            n = decode_plain(t, d->text, d->n, to);
            *d = (mu_text){ to, n };
            to += n;
        }
    }
    for (int i = 0; i < t->n_added; i++)
        t->decoded[t->added[i].id] = t->added[i].special ? (mu_text){ 0 } : t->added[i].text;
    t->decoded[t->tokenizer.eod] = (mu_text){ 0 };
}

static void add_text(mu_hash *h, const char *text, int64_t n) {
    mu_hash_add(h, &n, sizeof n);
    mu_hash_add(h, text, (size_t)n);
}

static int compare_added(const void *a, const void *b) { return ((const mu_added_token *)a)->id - ((const mu_added_token *)b)->id; }

static void make_fingerprint(mu_bpe_tokenizer *t, const mu_json *says) {
    const mu_bpe_options *o = mu_bpe_options_of(t->bpe);
    mu_hash *h = mu_hash_new();
    const int32_t options[] = { 1, o->byte_level, o->byte_fallback, o->fuse_unk, o->ignore_merges, o->unk, t->tokenizer.eod, mu_bpe_ids(t->bpe) };
    mu_hash_add(h, options, sizeof options);
    add_text(h, says->text, (int64_t)says->length);
    for (int32_t id = 0; id < mu_bpe_ids(t->bpe); id++) {
        const char *bytes;
        char *text = mu_bpe_bytes(t->bpe, id, &bytes) < 0 ? NULL : mu_bpe_text(t->bpe, id);
        if (text) mu_hash_add(h, &id, sizeof id), add_text(h, text, (int64_t)strlen(text));
        free(text);
    }
    for (int32_t i = 0, pair[2]; i < mu_bpe_merges(t->bpe); i++) {
        mu_bpe_merge(t->bpe, i, pair);
        mu_hash_add(h, pair, sizeof pair);
    }
    for (int i = 0; i < t->n_added; i++) {
        const mu_added_token *a = &t->added[i];
        const int32_t flags[] = { a->id, a->special, a->single_word, a->lstrip, a->rstrip, a->normalized };
        mu_hash_add(h, flags, sizeof flags);
        add_text(h, a->text.text, a->text.n);
    }
    mu_hash_finish(h, t->tokenizer.fingerprint);
}

/* Whether mu_cut_line's cuts change no id: nothing sees more than a line but a named splitter, and normal forms. */
static bool may_be_cut(const mu_bpe_tokenizer *t) {
    bool only_forms = true;
    for (int i = 0; i < t->n_normalize; i++) only_forms = only_forms && t->normalize[i].kind == MU_NORMALIZE_FORM;
    return only_forms && !t->any_plain && mu_bpe_options_of(t->bpe)->byte_level && t->n_steps == 1 && t->steps[0].kind == MU_STEP_SPLITTER;
}

mu_status mu_bpe_tokenizer_finish(mu_bpe_tokenizer *t, const char *where, const char *eod, mu_error *e) {
    mu_json says;
    mu_json_init(&says);
    mu_json_begin(&says, NULL, '{');
    mu_status status = mu_bpe_read_steps(t, where, &says, e);
    mu_json_end(&says, '}');
    if (t->n_added) qsort(t->added, (size_t)t->n_added, sizeof *t->added, compare_added);
    if (!status) status = set_eod(t, where, eod, e);
    if (!status) {
        t->tokenizer.vocab_size = mu_bpe_ids(t->bpe);
        if (t->n_added && t->added[t->n_added - 1].id >= t->tokenizer.vocab_size) t->tokenizer.vocab_size = t->added[t->n_added - 1].id + 1;
        for (int i = 0; i < t->n_added; i++) t->any_plain = t->any_plain || (!t->added[i].special && t->added[i].id != t->tokenizer.eod);
        t->tokenizer.cut = may_be_cut(t) ? mu_cut_line : NULL;
        mu_added_finder_make(&t->raw, t, false);
        mu_added_finder_make(&t->normalized, t, true);
        make_decoded(t);
        make_fingerprint(t, &says);
    }
    mu_json_free(&says);
    return status;
}

/* ------------------------------------------------------------------ the file */

typedef struct {
    const char *where;          /* for messages */
    mu_json_reader json;
    mu_bpe_tokenizer *t;
    mu_bpe *added;              /* texts and ids of added tokens so far */
    const char *section[MU_SECTIONS], *model, *added_tokens, *version;
    int64_t section_n[MU_SECTIONS], model_n, added_n, version_n;
    mu_bpe_options o;
    mu_error *e;
    mu_status status;
} reader;

static bool refuse(reader *r, const char *key, const char *fmt, ...) MU_PRINTF(3, 4);
static bool refuse(reader *r, const char *key, const char *fmt, ...) {
    char text[1024];
    va_list args;
    va_start(args, fmt);
    mu_text_vformat(text, sizeof text, fmt, args);
    va_end(args);
    if (!r->status) r->status = mu_error_set(r->e, MU_STATUS_DATA, "tokenizer %s: %s: %-s", r->where, key, text);
    return false;
}

/* The error of the JSON reader, with its line. `base`: where the text begins in the file that r->json reads. */
static bool refuse_json(reader *r, const mu_json_reader *j, const char *key) {
    mu_json_reader whole = { .start = r->json.start, .error_at = j->error_at };
    return refuse(r, key, "line %lld: %s", (long long)mu_json_reader_line(&whole), j->error);
}

/* A slice of the file as a tree. NULL: refused. */
static json_t *parse_tree(reader *r, const char *key, const char *text, int64_t n) {
    json_error_t why;
    if (n > LARGEST_SECTION) {
        refuse(r, key, "%lld bytes, more than %d", (long long)n, LARGEST_SECTION);
        return NULL;
    }
    json_t *tree = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    mu_json_reader at = { .start = r->json.start, .error_at = text };
    if (!tree) refuse(r, key, "line %lld: %s", (long long)mu_json_reader_line(&at) + why.line - 1, why.text);
    return tree;
}

/* What a file that is no JSON object may be, for those who took it for a tokenizer.json; NULL: unknown. */
static const char *other_kind(const char *text, int64_t n) {
    static const struct { const char *begins, *what; } kinds[] = {
        { "version https://git-lfs", "a pointer of Git LFS; fetch the file itself" }, { "<!doctype", "a page of HTML; fetch the file itself" },
        { "<html", "a page of HTML; fetch the file itself" },
        { "#version", "the merges of an older format; docs/tokenizers.md says how to make a tokenizer.json of it" },
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (n >= (int64_t)strlen(kinds[i].begins) && !strncasecmp(text, kinds[i].begins, strlen(kinds[i].begins))) return kinds[i].what;
    if (n > 4 && text[0] == '\n' && text[2] == '\n')      /* pieces of a message of Protocol Buffers */
        return "a model of SentencePiece; docs/tokenizers.md says how to make a tokenizer.json of it";
    int64_t letters = 0, digits = 0;
    while (letters < n && (isalnum((unsigned char)text[letters]) || (text[letters] && strchr("+/=", text[letters])))) letters++;
    while (letters + 1 + digits < n && isdigit((unsigned char)text[letters + 1 + digits])) digits++;
    if (letters && letters < n && text[letters] == ' ' && digits)
        return "a vocabulary of tiktoken, without pattern and special tokens; docs/tokenizers.md says how to make a tokenizer.json of it";
    return NULL;
}

/* Where the extent of a key's value is kept, and its length; NULL: an unknown key. */
static const char **place_of(reader *r, const char *key, int64_t **n) {
    const struct { const char *key, **to; int64_t *n; } others[] = {
        { "model", &r->model, &r->model_n }, { "added_tokens", &r->added_tokens, &r->added_n }, { "version", &r->version, &r->version_n }
    };
    for (int i = 0; i < MU_SECTIONS; i++)
        if (!strcmp(key, mu_section_names[i])) return *n = &r->section_n[i], &r->section[i];
    for (int i = 0; i < 3; i++)
        if (!strcmp(key, others[i].key)) return *n = others[i].n, others[i].to;
    return NULL;
}

/* The extents of what stands at the top of the file. */
static bool read_top(reader *r) {
    mu_json_reader *j = &r->json;
    const char *other = mu_json_reader_peek(j) == '{' ? NULL : other_kind(j->start, j->end - j->start);
    if (other) return refuse(r, "not a tokenizer.json", "this is %s", other);
    mu_json_reader_take(j, '{');
    for (bool first = true; mu_json_reader_more(j, '}', first); first = false) {
        if (!mu_json_reader_key(j)) break;
        int64_t *n;
        const char **to = place_of(r, j->text, &n);
        if (!to) return refuse(r, j->text, "unknown key of a tokenizer.json");
        if (*to) return refuse(r, j->text, "twice");
        if (!mu_json_reader_skip(j, to, n)) break;
    }
    if (!j->error[0] && r->version && (r->version_n != 5 || memcmp(r->version, "\"1.0\"", 5)))
        return refuse(r, "version", "%.*s; only \"1.0\" is supported", r->version_n > 40 ? 40 : (int)r->version_n, r->version);
    if (!j->error[0] && mu_json_reader_peek(j)) mu_json_reader_fail(j, "text behind the end");
    if (j->error[0]) return refuse_json(r, j, "bad JSON");
    if (!r->model) return refuse(r, "model", "missing: this is not a tokenizer.json");
    return true;
}

/* ------------------------------------------------------------------ model */

/* Memory and time grow with the largest id. */
static bool check_id(reader *r, const char *key, const char *text, int64_t id, int64_t tokens) {
    if (id < MU_BPE_IDS_MOST(tokens)) return true;
    return refuse(r, key, "token \"%.60s\" has id %lld; with %lld tokens ids are at most %lld (4 for each token, and 65536)", text, (long long)id,
                  (long long)tokens, (long long)MU_BPE_IDS_MOST(tokens) - 1);
}

static bool read_vocab(reader *r, const char *text, int64_t n) {
    mu_json_reader j;
    const mu_bpe *b = r->t->bpe;
    mu_json_reader_init(&j, text, n);
    mu_json_reader_take(&j, '{');
    for (bool first = true; mu_json_reader_more(&j, '}', first); first = false) {
        int64_t id;
        if (!mu_json_reader_key(&j) || !mu_json_reader_int(&j, MU_BPE_MOST - 1, &id)) break;
        const char *why = mu_bpe_add_token(r->t->bpe, j.text, j.n, (int32_t)id);
        if (why) mu_json_reader_fail(&j, "token \"%.60s\" with id %lld: %s", j.text, (long long)id, why);
    }
    if (j.error[0]) refuse_json(r, &j, "model.vocab");
    mu_json_reader_free(&j);
    if (r->status || !mu_bpe_ids(b)) return !r->status;
    char *last = mu_bpe_text(b, mu_bpe_ids(b) - 1);
    check_id(r, "model.vocab", last, mu_bpe_ids(b) - 1, mu_bpe_tokens(b));
    free(last);
    return !r->status;
}

/* The two parts of a merge, "a b" or ["a", "b"]. The left one is copied to *left. */
static bool read_merge(mu_json_reader *j, char **left, int64_t *left_n, const char **right, int64_t *right_n) {
    bool pair = mu_json_reader_peek(j) == '[';
    if (pair) mu_json_reader_take(j, '[');
    if (!mu_json_reader_string(j)) return false;
    const char *blank = pair ? NULL : memchr(j->text, ' ', (size_t)j->n);
    if (!pair && (!blank || strchr(blank + 1, ' '))) {
        mu_json_reader_fail(j, "\"%.60s\" is not two texts with a blank between", j->text);
        return false;
    }
    *left_n = blank ? blank - j->text : j->n;
    *left = mu_realloc(*left, (size_t)*left_n + 1, 1);
    memcpy(*left, j->text, (size_t)*left_n);
    if (pair && (!mu_json_reader_take(j, ',') || !mu_json_reader_string(j))) return false;
    *right = blank ? blank + 1 : j->text, *right_n = j->text + j->n - *right;
    return !pair || mu_json_reader_take(j, ']');
}

static bool read_merges(reader *r, const char *text, int64_t n) {
    mu_json_reader j;
    char *left = NULL;
    const char *right;
    int64_t left_n, right_n;
    mu_json_reader_init(&j, text, n);
    mu_json_reader_take(&j, '[');
    for (bool first = true; mu_json_reader_more(&j, ']', first); first = false) {
        if (!read_merge(&j, &left, &left_n, &right, &right_n)) break;
        const char *why = mu_bpe_add_merge(r->t->bpe, left, left_n, right, right_n);
        if (why) mu_json_reader_fail(&j, "merge %d, \"%.*s\" and \"%.40s\": %s", mu_bpe_merges(r->t->bpe), left_n > 40 ? 40 : (int)left_n, left, right, why);
    }
    if (j.error[0]) refuse_json(r, &j, "model.merges");
    free(left);
    mu_json_reader_free(&j);
    return !r->status;
}

/* Options of the model that are not lists. */
typedef struct { const char *vocab, *merges; int64_t vocab_n, merges_n; char *unk; bool seen[8]; } model_parts;     /* seen: of the options */

static bool read_option(reader *r, const char *key, json_t *v, model_parts *m) {
    struct { const char *key; bool *value; } switches[] = { { "fuse_unk", &r->o.fuse_unk }, { "byte_fallback", &r->o.byte_fallback },
                                                            { "ignore_merges", &r->o.ignore_merges } };
    char name[64];
    snprintf(name, sizeof name, "model.%s", key);
    for (int i = 0; i < 3; i++)
        if (!strcmp(key, switches[i].key)) {
            *switches[i].value = json_is_true(v);
            return json_is_boolean(v) || refuse(r, name, "neither true nor false");
        }
    if (!strcmp(key, "type")) {
        const char *type = json_string_value(v);
        return (type && !strcmp(type, "BPE")) || refuse(r, name, "\"%s\" is not supported; only \"BPE\" is", type ? type : "not a text");
    }
    if (!strcmp(key, "dropout")) return json_is_null(v) || json_number_value(v) == 0 || refuse(r, name, "dropout is not supported");
    bool none = json_is_null(v), text = json_is_string(v);
    if (!none && !text) return refuse(r, name, "neither a text nor null");
    if (!strcmp(key, "unk_token")) {
        if (text) m->unk = mu_strdup(json_string_value(v));
        return true;
    }
    return none || !json_string_length(v) || refuse(r, name, "\"%s\" is not supported", json_string_value(v));
}

static bool read_model_key(reader *r, mu_json_reader *j, model_parts *m) {
    static const char *const options[] = { "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                                           "byte_fallback", "ignore_merges" };
    if (!mu_json_reader_key(j)) return false;
    char *key = mu_strdup(j->text);
    const char *from;
    int64_t n;
    int i = 0;
    bool vocab = !strcmp(key, "vocab"), merges = !strcmp(key, "merges"), good = mu_json_reader_skip(j, &from, &n);
    while (i < 8 && strcmp(key, options[i])) i++;
    if (good && (vocab || merges)) {
        const char **to = vocab ? &m->vocab : &m->merges;
        good = !*to || refuse(r, vocab ? "model.vocab" : "model.merges", "twice");
        *to = from, *(vocab ? &m->vocab_n : &m->merges_n) = n;
    } else if (good && i == 8) good = refuse(r, "model", "unknown option \"%s\"", key);
    else if (good && m->seen[i]) {
        char name[64];
        snprintf(name, sizeof name, "model.%s", key);
        good = refuse(r, name, "twice");
    } else if (good) {
        m->seen[i] = true;
        json_t *tree = parse_tree(r, key, from, n);
        good = tree && read_option(r, key, tree, m);
        json_decref(tree);
    }
    free(key);
    return good;
}

static bool read_model(reader *r) {
    mu_json_reader j;
    model_parts m = { 0 };
    mu_json_reader_init(&j, r->model, r->model_n);
    mu_json_reader_take(&j, '{');
    for (bool first = true; mu_json_reader_more(&j, '}', first); first = false)
        if (!read_model_key(r, &j, &m)) break;
    if (j.error[0]) refuse_json(r, &j, "model");
    mu_json_reader_free(&j);
    bool good = !r->status && ((m.vocab && m.merges) || refuse(r, "model", "\"%s\" is missing", m.vocab ? "merges" : "vocab"))
             && read_vocab(r, m.vocab, m.vocab_n) && read_merges(r, m.merges, m.merges_n);
    if (good && m.unk) {
        r->o.unk = mu_bpe_id(r->t->bpe, m.unk, (int64_t)strlen(m.unk));
        if (r->o.unk < 0) good = refuse(r, "model.unk_token", "\"%s\" is not in the vocabulary", m.unk);
    }
    const char *why = good ? mu_bpe_finish(r->t->bpe, &r->o) : NULL;
    if (good && !why && mu_bpe_repeated(r->t->bpe))
        mu_log(MU_LOG_INFO, "note: tokenizer %s: model.merges: %d are repeated; the last of equal ones counts, as in Hugging Face's tokenizers", r->where,
               mu_bpe_repeated(r->t->bpe));
    free(m.unk);
    return why ? refuse(r, "model", "%s", why) : good;
}

/* ------------------------------------------------------------------ added tokens */

/* of: their number. */
static bool read_added_token(reader *r, json_t *o, int i, size_t of) {
    static const char *const keys[] = { "special", "single_word", "lstrip", "rstrip", "normalized" };
    mu_added_token *a = &r->t->added[r->t->n_added];
    bool *const flags[] = { &a->special, &a->single_word, &a->lstrip, &a->rstrip, &a->normalized };
    const json_t *text = json_object_get(o, "content"), *id = json_object_get(o, "id"), *flag;
    char name[64];
    const char *why = NULL, *bytes;
    snprintf(name, sizeof name, "added_tokens[%d]", i);
    if (!json_is_string(text) || !json_string_length(text)) return refuse(r, name, "\"content\" is not a text, or empty");
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= MU_BPE_MOST)
        return refuse(r, name, "\"id\" is not an integer from 0 to %d", MU_BPE_MOST - 1);
    for (int k = 0; k < 5; k++) {
        if ((flag = json_object_get(o, keys[k])) && !json_is_boolean(flag)) return refuse(r, name, "\"%s\" is neither true nor false", keys[k]);
        *flags[k] = json_is_true(flag);
    }
    a->id = (int32_t)json_integer_value(id);
    if (!check_id(r, name, json_string_value(text), a->id, mu_bpe_tokens(r->t->bpe) + (int64_t)of)) return false;
    int64_t n = (int64_t)json_string_length(text);
    int32_t in_vocab = mu_bpe_id(r->t->bpe, json_string_value(text), n);
    if (in_vocab >= 0 && in_vocab != a->id) why = "the vocabulary has it with another id";
    if (in_vocab < 0 && mu_bpe_bytes(r->t->bpe, a->id, &bytes) >= 0) why = "the vocabulary has another token with this id";
    if (!why) why = mu_bpe_add_token(r->added, json_string_value(text), n, a->id);
    if (why) return refuse(r, name, "\"%s\" with id %d: %s", json_string_value(text), a->id, why);
    a->text = mu_text_copy(json_string_value(text), n);
    r->t->n_added++;
    return true;
}

static bool read_added(reader *r) {
    json_t *list = r->added_tokens ? parse_tree(r, "added_tokens", r->added_tokens, r->added_n) : NULL, *one;
    if (r->added_tokens && list && !json_is_array(list)) refuse(r, "added_tokens", "not a list");
    size_t i, n = json_array_size(list);
    r->t->added = mu_alloc(n + 1, sizeof *r->t->added);
    r->added = mu_bpe_new(false);
    json_array_foreach(list, i, one)
        if (r->status || !(json_is_object(one) ? read_added_token(r, one, (int)i, n) : refuse(r, "added_tokens", "number %d is not an object", (int)i))) break;
    mu_bpe_free(r->added);
    json_decref(list);
    return !r->status;
}

/* ------------------------------------------------------------------ sections */

static bool read_sections(reader *r) {
    for (int i = 0; i < MU_SECTIONS; i++) {
        if (!r->section[i]) continue;
        json_t *tree = r->t->sections[i] = parse_tree(r, mu_section_names[i], r->section[i], r->section_n[i]);
        if (!tree) return false;
        if (!json_is_object(tree) && !json_is_null(tree)) return refuse(r, mu_section_names[i], "neither an object nor null");
    }
    return true;
}

static bool read_all(reader *r) {
    /* The pre-tokenizer says how the vocabulary is written. */
    json_t *pre = NULL;
    if (!read_top(r)) return false;
    if (r->section[MU_SECTION_PRE_TOKENIZER])
        pre = parse_tree(r, mu_section_names[MU_SECTION_PRE_TOKENIZER], r->section[MU_SECTION_PRE_TOKENIZER], r->section_n[MU_SECTION_PRE_TOKENIZER]);
    r->o = (mu_bpe_options){ .byte_level = mu_bpe_is_byte_level(pre), .unk = -1 };
    json_decref(pre);
    if (r->status) return false;
    r->t = mu_bpe_tokenizer_new(r->o.byte_level);
    return read_sections(r) && read_model(r) && read_added(r);
}

/* The special tokens that a TemplateProcessing puts before one sequence: {"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": ...}],
 * "special_tokens": {"<s>": {"ids": [1]}}}. */
static bool read_front(reader *r, json_t *post) {
    const char *type = json_string_value(json_object_get(post, "type"));
    bool sequence = type && !strcmp(type, "Sequence");
    json_t *list = json_object_get(post, sequence ? "processors" : "single"), *one, *id;
    size_t i, k;
    if (!post || json_is_null(post) || (type && !strcmp(type, "ByteLevel"))) return true;
    if (!sequence && (!type || strcmp(type, "TemplateProcessing")))
        return refuse(r, "post_processor", "type \"%s\" is not supported; only TemplateProcessing, ByteLevel and Sequence are", type ? type : "");
    json_array_foreach(list, i, one) {
        const char *name = json_string_value(json_object_get(json_object_get(one, "SpecialToken"), "id"));
        if (sequence && !read_front(r, one)) return false;
        if (!sequence && !name) break;
        json_array_foreach(json_object_get(json_object_get(json_object_get(post, "special_tokens"), name ? name : ""), "ids"), k, id) {
            if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= r->t->tokenizer.vocab_size)
                return refuse(r, "post_processor", "\"%s\" has no id of the vocabulary", name);
            if (r->t->n_front == MU_BPE_STEPS) return refuse(r, "post_processor", "more than %d tokens in front", MU_BPE_STEPS);
            r->t->front[r->t->n_front++] = (int32_t)json_integer_value(id);
        }
    }
    return true;
}

mu_status mu_bpe_read_eos(const char *folder, char **eos, mu_error *e) {
    char *path = mu_format("%s/tokenizer_config.json", folder), *text = NULL;
    size_t n = 0;
    mu_status status = MU_STATUS_OK;
    json_error_t why;
    *eos = NULL;
    if (mu_file_exists(path)) status = mu_file_read(path, LARGEST_SECTION, &text, &n, e);
    if (!status && text) {
        /* model_max_length is 1e30 where there is none, written as an integer */
        json_t *tree = json_loadb(text, n, JSON_DECODE_INT_AS_REAL, &why), *token = json_object_get(tree, "eos_token");
        const char *name = json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
        if (!tree) status = mu_error_set(e, MU_STATUS_DATA, "%s:%d: bad JSON: %s", path, why.line, why.text);
        else if (token && !json_is_null(token) && !name)
            status = mu_error_set(e, MU_STATUS_DATA, "%s: \"eos_token\" is neither a text, an object with \"content\", nor null", path);
        else if (name) *eos = mu_strdup(name);
        json_decref(tree);
    }
    free(path), free(text);
    return status;
}

mu_status mu_bpe_tokenizer_read(mu_tokenizer **t, const char *path, mu_error *e) {
    char *text, *eos = NULL, *folder = mu_strdup(path), *slash = strrchr(folder, '/');
    size_t n;
    mu_status status = mu_file_read(path, (size_t)LARGEST_MIB << 20, &text, &n, e);
    if (status) {
        free(folder);
        return status;
    }
    reader r = { .where = path, .e = e };
    mu_json_reader_init(&r.json, text, (int64_t)n);
    if (slash) slash[slash == folder] = '\0';
    read_all(&r);
    if (!r.status) r.status = mu_bpe_read_eos(slash ? folder : ".", &eos, e);
    if (!r.status) r.status = mu_bpe_tokenizer_finish(r.t, path, eos, e);
    if (!r.status) read_front(&r, r.t->sections[MU_SECTION_POST_PROCESSOR]);
    if (!r.status) r.t->tokenizer.path = r.t->path = mu_strdup(path);
    if (r.status) mu_bpe_tokenizer_free(r.t);
    else *t = &r.t->tokenizer;
    mu_json_reader_free(&r.json);
    free(text), free(eos), free(folder);
    return r.status;
}

/* ------------------------------------------------------------------ from memory */

static const char *add_vocabulary(mu_bpe_tokenizer *t, const mu_bpe_vocabulary *v) {
    const char *why = NULL;
    bool *special = mu_alloc((size_t)v->n_tokens + 1, sizeof *special);
    for (int32_t i = 0; i < v->n_special; i++) {
        MU_CHECK(v->special[i] >= 0 && v->special[i] < v->n_tokens, "special token %d of %d", v->special[i], v->n_tokens);
        special[v->special[i]] = true;
    }
    for (int32_t i = 0; i < v->n_tokens && !why; i++) {
        const mu_token *token = &v->tokens[i];
        char *text = special[i] ? mu_text_copy(token->bytes, token->n).text : mu_bpe_spell(token->bytes, token->n);
        why = mu_bpe_add_token(t->bpe, text, (int64_t)strlen(text), i);
        free(text);
    }
    for (int32_t i = 0; i < v->n_merges && !why; i++) {
        char *part[2];
        for (int k = 0; k < 2; k++) {
            int32_t id = v->merges[i][k];
            MU_CHECK(id >= 0 && id < v->n_tokens, "merge %d has token %d of %d", i, id, v->n_tokens);
            part[k] = mu_bpe_text(t->bpe, id);
        }
        why = mu_bpe_add_merge(t->bpe, part[0], (int64_t)strlen(part[0]), part[1], (int64_t)strlen(part[1]));
        free(part[0]), free(part[1]);
    }
    t->added = mu_alloc((size_t)v->n_special + 1, sizeof *t->added);
    for (int32_t i = 0; i < v->n_special; i++) {
        const mu_token *token = &v->tokens[v->special[i]];
        t->added[t->n_added++] = (mu_added_token){ .text = mu_text_copy(token->bytes, token->n), .id = v->special[i], .special = true };
    }
    free(special);
    return why ? why : mu_bpe_finish(t->bpe, &(mu_bpe_options){ .byte_level = true, .unk = -1 });
}

mu_status mu_tokenizer_bpe_new(mu_tokenizer **t, const mu_bpe_vocabulary *v, mu_error *e) {
    static const char byte_level[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}";
    const mu_splitter *s = mu_splitter_named(v->splitter);
    *t = NULL;
    if (!s) return mu_error_set(e, MU_STATUS_CONFIG, "unknown splitter \"%s\"", v->splitter);
    mu_bpe_tokenizer *b = mu_bpe_tokenizer_new(true);
    const char *why = v->n_special ? add_vocabulary(b, v) : "no special token";
    mu_status status = why ? mu_error_set(e, MU_STATUS_DATA, "vocabulary: %s", why) : MU_STATUS_OK;
    b->sections[MU_SECTION_PRE_TOKENIZER] = json_loads(mu_splitter_json(s), 0, NULL);
    b->sections[MU_SECTION_POST_PROCESSOR] = json_loads(byte_level, 0, NULL);
    b->sections[MU_SECTION_DECODER] = json_loads(byte_level, 0, NULL);
    if (!status) {
        char *eod = mu_strdup(b->added[0].text.text);       /* the list is sorted by ids */
        status = mu_bpe_tokenizer_finish(b, "in memory", eod, e);
        free(eod);
    }
    if (status) mu_bpe_tokenizer_free(b);
    else *t = &b->tokenizer;
    return status;
}
