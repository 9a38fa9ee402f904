/* tokenizer_bpe_steps.c - "normalizer", "pre_tokenizer" and "decoder" of a tokenizer.json. What is not understood, a type or an
 * option of one, is refused by its name. */
#include "data/tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    mu_bpe_tokenizer *t;
    const char *where, *section;        /* the file; the key at its top */
    mu_json *says;                      /* what decides ids */
    bool byte_level;                    /* the last step has been read */
    mu_error *e;
    mu_status status;
} reader;

static bool refuse(reader *r, const char *fmt, ...) MU_PRINTF(2, 3);
static bool refuse(reader *r, const char *fmt, ...) {
    char text[1024];
    va_list args;
    va_start(args, fmt);
    mu_text_vformat(text, sizeof text, fmt, args);
    va_end(args);
    r->status = mu_error_set(r->e, MU_STATUS_DATA, "tokenizer %s: %s: %-s", r->where, r->section, text);
    return false;
}

/* ------------------------------------------------------------------ values */

static const char *type_of(const json_t *o) {
    const char *type = json_string_value(json_object_get(o, "type"));
    return type ? type : "";
}

/* Whether the object has no key but "type" and these, separated by blanks. */
static bool has_only(reader *r, json_t *o, const char *keys) {
    const char *key;
    json_t *value;
    json_object_foreach(o, key, value) {
        char word[64];
        snprintf(word, sizeof word, " %s ", key);
        if (strcmp(key, "type") && (strlen(key) > 40 || !strstr(keys, word)))
            return refuse(r, "%s: unknown option \"%s\"", type_of(o), key);
    }
    return true;
}

/* A text that is not empty. */
static bool get_text(reader *r, const json_t *o, const char *key, mu_text *text) {
    const json_t *value = json_object_get(o, key);
    if (!json_is_string(value) || !json_string_length(value)) return refuse(r, "%s: \"%s\" is not a text, or empty", type_of(o), key);
    *text = mu_text_copy(json_string_value(value), (int64_t)json_string_length(value));
    mu_json_string(r->says, key, text->text);
    return true;
}

/* fallback -1: it must be given. */
static bool get_bool(reader *r, const json_t *o, const char *key, int fallback, bool *value) {
    const json_t *v = json_object_get(o, key);
    if (v ? !json_is_boolean(v) : fallback < 0)
        return refuse(r, "%s: \"%s\" is %s", type_of(o), key, v ? "neither true nor false" : "missing");
    *value = v ? json_is_true(v) : fallback;
    mu_json_bool(r->says, key, *value);
    return true;
}

/* One of `words`; fallback NULL: it must be given. */
static bool get_choice(reader *r, const json_t *o, const char *key, const char *const *words, int n, const char *fallback, int *value) {
    const json_t *v = json_object_get(o, key);
    const char *word = v ? json_string_value(v) : fallback;
    for (*value = 0; word && *value < n; ++*value)
        if (!strcmp(word, words[*value])) {
            mu_json_string(r->says, key, word);
            return true;
        }
    return refuse(r, "%s: unknown \"%s\": %s", type_of(o), key, word ? word : v ? "not a text" : "missing");
}

/* Calls `read` for an object, or for each of the list `list` in a Sequence. */
typedef bool read_step(reader *r, json_t *o);
static bool read_all(reader *r, json_t *o, const char *list, read_step *read) {
    if (!o || json_is_null(o)) return true;
    if (!json_is_object(o)) return refuse(r, "not an object");
    if (strcmp(type_of(o), "Sequence")) return read(r, o);
    char keys[64];
    snprintf(keys, sizeof keys, " %s ", list);
    if (!has_only(r, o, keys)) return false;
    json_t *all = json_object_get(o, list), *one;
    if (!json_is_array(all)) return refuse(r, "Sequence: \"%s\" is not a list", list);
    size_t i;
    json_array_foreach(all, i, one) {
        if (!json_is_object(one)) return refuse(r, "Sequence: not an object");
        if (!strcmp(type_of(one), "Sequence") ? !read_all(r, one, list, read) : !read(r, one)) return false;
    }
    return true;
}

/* ------------------------------------------------------------------ normalizer */

static bool read_replace(reader *r, json_t *o, mu_normalize_step *s) {
    const json_t *pattern = json_object_get(o, "pattern");
    if (!json_object_get(pattern, "String") || json_object_size(pattern) != 1)
        return refuse(r, "Replace: a pattern that is no \"String\" is not supported");
    if (!get_text(r, pattern, "String", &s->text)) return false;
    const json_t *by = json_object_get(o, "content");
    if (!json_is_string(by)) return refuse(r, "Replace: \"content\" is not a text");
    s->by = mu_text_copy(json_string_value(by), (int64_t)json_string_length(by));
    mu_json_string(r->says, "content", s->by.text);
    return has_only(r, o, " pattern content ");
}

static bool read_normalizer(reader *r, json_t *o) {
    static const char *const forms[] = { "NFC", "NFD", "NFKC", "NFKD" };
    const char *type = type_of(o);
    if (r->t->n_normalize == MU_BPE_STEPS) return refuse(r, "more than %d steps", MU_BPE_STEPS);
    mu_normalize_step *s = &r->t->normalize[r->t->n_normalize++];
    mu_json_begin(r->says, NULL, '{');
    mu_json_string(r->says, "type", type);
    bool good = false;
    int form = 0;
    while (form < 4 && strcmp(type, forms[form])) form++;
    if (form < 4) {
        s->kind = MU_NORMALIZE_FORM, s->form = (mu_unicode_form)form;
        good = has_only(r, o, "");
    } else if (!strcmp(type, "Prepend")) {
        s->kind = MU_NORMALIZE_PREPEND;
        good = get_text(r, o, "prepend", &s->text) && has_only(r, o, " prepend ");
    } else if (!strcmp(type, "Replace")) {
        s->kind = MU_NORMALIZE_REPLACE;
        good = read_replace(r, o, s);
    } else refuse(r, "type \"%s\" is not supported; only NFC, NFD, NFKC, NFKD, Prepend, Replace and Sequence are", type);
    mu_json_end(r->says, '}');
    return good;
}

/* ------------------------------------------------------------------ pre_tokenizer */

static const char *const behaviors[] = { "Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext" };

static bool read_split(reader *r, json_t *o, mu_split_step *s) {
    const json_t *pattern = json_object_get(o, "pattern");
    bool regex = json_object_get(pattern, "Regex");
    mu_text text = { 0 };
    int behavior = 0;
    char why[256];
    if (json_object_size(pattern) != 1) return refuse(r, "Split: \"pattern\" is neither a \"Regex\" nor a \"String\"");
    if (!get_text(r, pattern, regex ? "Regex" : "String", &text)) return false;
    s->pattern = regex ? mu_pattern_regex(text.text, text.n, why, sizeof why) : mu_pattern_text(text.text, text.n);
    free(text.text);
    if (!s->pattern) return refuse(r, "Split: regular expression: %s", why);
    if (!get_choice(r, o, "behavior", behaviors, 5, NULL, &behavior)) return false;
    s->behavior = (mu_split_behavior)behavior;
    return get_bool(r, o, "invert", 0, &s->invert) && has_only(r, o, " pattern behavior invert ");
}

static bool read_class(reader *r, json_t *o, mu_split_step *s, bool digits) {
    bool individual = false;
    int behavior = 0;
    s->pattern = mu_pattern_of_class(digits ? MU_PATTERN_NUMBER : MU_PATTERN_PUNCTUATION);
    if (digits) {
        if (!get_bool(r, o, "individual_digits", -1, &individual)) return false;
        s->behavior = individual ? MU_SPLIT_ISOLATED : MU_SPLIT_CONTIGUOUS;
        return has_only(r, o, " individual_digits ");
    }
    if (!get_choice(r, o, "behavior", behaviors, 5, "Isolated", &behavior)) return false;
    s->behavior = (mu_split_behavior)behavior;
    return has_only(r, o, " behavior ");
}

static bool read_metaspace(reader *r, json_t *o, mu_split_step *s) {
    static const char *const schemes[] = { "never", "first", "always" };
    bool older = true, split = true;
    int scheme = 0;
    if (r->t->n_steps > 1) return refuse(r, "Metaspace behind another step is not supported");
    s->kind = MU_STEP_METASPACE;
    if (!get_text(r, o, "replacement", &s->text) || !get_bool(r, o, "split", 1, &split)) return false;
    if (!json_object_get(o, "prepend_scheme") && !get_bool(r, o, "add_prefix_space", 1, &older)) return false;
    if (!get_choice(r, o, "prepend_scheme", schemes, 3, older ? "always" : "never", &scheme)) return false;
    s->prepend = (mu_prepend)scheme;
    if (split) {
        mu_split_step *next = &r->t->steps[r->t->n_steps++];
        next->kind = MU_STEP_PATTERN, next->behavior = MU_SPLIT_WITH_NEXT;
        next->pattern = mu_pattern_text(s->text.text, s->text.n);
    }
    return has_only(r, o, " replacement prepend_scheme split add_prefix_space str_rep ");
}

static bool read_byte_level(reader *r, json_t *o) {
    bool space, regex;
    mu_bpe_tokenizer *t = r->t;
    if (!get_bool(r, o, "add_prefix_space", -1, &space) || !get_bool(r, o, "use_regex", 1, &regex)) return false;
    r->byte_level = true;
    t->n_steps--;               /* of none to two steps */
    if (space) {
        t->steps[t->n_steps].text = mu_text_copy(" ", 1);
        t->steps[t->n_steps++].kind = MU_STEP_SPACE;
    }
    if (regex) t->steps[t->n_steps++] = (mu_split_step){ .kind = MU_STEP_SPLITTER, .splitter = mu_splitter_named("gpt2") };
    return has_only(r, o, " add_prefix_space trim_offsets use_regex ");
}

static bool read_pre_tokenizer(reader *r, json_t *o) {
    const char *type = type_of(o);
    mu_bpe_tokenizer *t = r->t;
    if (r->byte_level) return refuse(r, "type \"%s\" behind ByteLevel is not supported", type);
    if (t->n_steps + 2 > MU_BPE_STEPS) return refuse(r, "more than %d steps", MU_BPE_STEPS);
    mu_split_step *s = &t->steps[t->n_steps++];
    *s = (mu_split_step){ .kind = MU_STEP_PATTERN };
    mu_json_begin(r->says, NULL, '{');
    mu_json_string(r->says, "type", type);
    bool good = false;
    if (!strcmp(type, "ByteLevel")) good = read_byte_level(r, o);
    else if (!strcmp(type, "Split")) good = read_split(r, o, s);
    else if (!strcmp(type, "Digits")) good = read_class(r, o, s, true);
    else if (!strcmp(type, "Punctuation")) good = read_class(r, o, s, false);
    else if (!strcmp(type, "Metaspace")) good = read_metaspace(r, o, s);
    else refuse(r, "type \"%s\" is not supported; only ByteLevel, Split, Digits, Punctuation, Metaspace and Sequence are", type);
    mu_json_end(r->says, '}');
    return good;
}

/* ------------------------------------------------------------------ steps that a splitter does at once */

static void flatten(json_t *o, json_t *list) {
    json_t *all = json_object_get(o, "pretokenizers");
    if (!json_is_object(o)) return;
    if (strcmp(type_of(o), "Sequence")) json_array_append(list, o);
    else
        for (size_t i = 0; i < json_array_size(all); i++) flatten(json_array_get(all, i), list);
}

static bool is_off(const json_t *o, const char *key, bool fallback) {
    const json_t *v = json_object_get(o, key);
    return v ? !json_is_true(v) : !fallback;
}

static bool is_same(const json_t *a, const json_t *b, bool alone) {
    if (strcmp(type_of(a), type_of(b))) return false;
    if (!strcmp(type_of(a), "ByteLevel"))
        return is_off(a, "add_prefix_space", true) && is_off(a, "use_regex", true) == is_off(b, "use_regex", true);
    if (strcmp(type_of(a), "Split")) return json_equal(a, b);
    /* The expressions that stand alone match everything: what is between matches, which is dropped here, is empty. */
    const char *behavior = json_string_value(json_object_get(a, "behavior"));
    bool dropped = alone && behavior && !strcmp(behavior, "Removed") && !is_off(a, "invert", false);
    return json_equal(json_object_get(a, "pattern"), json_object_get(b, "pattern"))
        && (dropped || (behavior && !strcmp(behavior, "Isolated")));
}

/* Replaces steps by one when the file's are those of a splitter. */
static void join_steps(mu_bpe_tokenizer *t) {
    json_t *mine = json_array();
    flatten(t->sections[MU_SECTION_PRE_TOKENIZER], mine);
    const mu_splitter *s, *found = NULL;
    for (int i = 0; !found && (s = mu_splitter_number(i)); i++) {
        json_t *one = json_loads(mu_splitter_json(s), 0, NULL), *theirs = json_array();
        MU_CHECK(one, "pre_tokenizer of splitter %s", mu_splitter_name(s));
        flatten(one, theirs);
        size_t n = json_array_size(theirs), same = 0;
        if (n == json_array_size(mine))
            while (same < n && is_same(json_array_get(mine, same), json_array_get(theirs, same), n == 2)) same++;
        if (n && same == n) found = s;
        json_decref(one), json_decref(theirs);
    }
    json_decref(mine);
    if (!found) return;
    for (int i = 0; i < t->n_steps; i++) mu_pattern_free(t->steps[i].pattern), free(t->steps[i].text.text);
    t->n_steps = 1;
    t->steps[0] = (mu_split_step){ .kind = MU_STEP_SPLITTER, .splitter = found };
}

bool mu_bpe_is_byte_level(json_t *pre_tokenizer) {
    json_t *all = json_array(), *one;
    bool found = false;
    size_t i;
    flatten(pre_tokenizer, all);
    json_array_foreach(all, i, one) found = found || !strcmp(type_of(one), "ByteLevel");
    json_decref(all);
    return found;
}

/* ------------------------------------------------------------------ decoder */

static bool read_decoder(reader *r, json_t *o) {
    static const char *const known[] = { "ByteLevel", "ByteFallback", "Fuse", "Strip" };
    const char *type = type_of(o);
    mu_bpe_tokenizer *t = r->t;
    for (int i = 0; i < 4; i++)
        if (!strcmp(type, known[i])) return true;
    bool metaspace = !strcmp(type, "Metaspace");
    if (!metaspace && strcmp(type, "Replace"))
        return refuse(r, "type \"%s\" is not supported; only ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace and Sequence are", type);
    if (t->decode_what.n) return refuse(r, "more than one replacement is not supported");
    mu_normalize_step s = { 0 };
    if (metaspace ? !get_text(r, o, "replacement", &s.text) : !read_replace(r, o, &s)) {
        free(s.text.text), free(s.by.text);
        return false;
    }
    t->decode_what = s.text;
    t->decode_by = metaspace ? mu_text_copy(" ", 1) : s.by;
    return true;
}

mu_status mu_bpe_read_steps(mu_bpe_tokenizer *t, const char *where, mu_json *says, mu_error *e) {
    reader r = { .t = t, .where = where, .e = e };
    static const struct { int section; const char *list; read_step *read; } parts[] = {
        { MU_SECTION_NORMALIZER, "normalizers", read_normalizer }, { MU_SECTION_PRE_TOKENIZER, "pretokenizers", read_pre_tokenizer },
        { MU_SECTION_DECODER, "decoders", read_decoder },
    };
    mu_json unused;                     /* the decoder decides no ids */
    mu_json_init(&unused);
    for (int i = 0; i < 3 && !r.status; i++) {
        r.says = parts[i].section == MU_SECTION_DECODER ? &unused : says;
        r.section = mu_section_names[parts[i].section];
        mu_json_begin(r.says, r.section, '[');
        bool good = read_all(&r, t->sections[parts[i].section], parts[i].list, parts[i].read);
        MU_CHECK(good == !r.status, "%s: status %d", r.section, r.status);
        mu_json_end(r.says, ']');
    }
    mu_json_free(&unused);
    if (!r.status) join_steps(t);
    return r.status;
}
