/* test_tokenizer.c - BPE tokenizers: ids of Hugging Face's tokenizers (fixtures/make_tokenizers.py), splitters against Oniguruma, what is
 * written and read again, bytes that are not UTF-8, long pieces, and files that are refused. */
#include "data/folder.h"
#include "data/bpe.h"
#include "data/pattern.h"
#include "data/unicode.h"

#include <dirent.h>
#include <jansson.h>
#include <omp.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>


static int set_up(void **state) {
    (void)state;
    return folder_make("tokenizers") ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    return mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

typedef struct { int32_t *ids; int64_t n, room; } id_list;

static void add_ids(void *to, const int32_t *ids, int64_t n) {
    id_list *l = to;
    if (l->n + n > l->room) l->ids = mu_realloc(l->ids, (size_t)(l->room = 2 * (l->n + n)), sizeof *l->ids);
    memcpy(l->ids + l->n, ids, (size_t)n * sizeof *ids);
    l->n += n;
}

static id_list ids_of(const mu_tokenizer *t, const char *text, int64_t n, bool prompt) {
    id_list l = { 0 };
    (prompt ? mu_tokenizer_encode_prompt : mu_tokenizer_encode)(t, text, n, add_ids, &l);
    return l;
}

/* The decoded text, heap. */
static char *decoded(const mu_tokenizer *t, const id_list *l, int64_t *n) {
    char *text = NULL;
    const char *bytes;
    *n = 0;
    for (int64_t i = 0; i < l->n; i++) {
        int64_t more = mu_tokenizer_decode(t, l->ids[i], &bytes);
        text = mu_realloc(text, (size_t)(*n + more + 1), 1);
        memcpy(text + *n, bytes, (size_t)more);
        *n += more;
    }
    return text;
}

static mu_tokenizer *open_fixture(const char *name) {
    char *path = mu_format("%s/tokenizers/%s.json", MUSTER_FIXTURES, name);
    mu_tokenizer *t = NULL;
    assert_ok(mu_tokenizer_open(&t, path, &e));
    assert_string_equal(mu_tokenizer_path(t), path);
    free(path);
    return t;
}

/* ------------------------------------------------------------------ ids of Hugging Face's tokenizers */

static json_t *expected;

static void check_ids(const mu_tokenizer *t, const char *name) {
    static const char *const modes[] = { "corpus", "prompt" };
    const json_t *texts = json_object_get(expected, "texts");
    for (size_t i = 0; i < json_array_size(texts); i++)
        for (int mode = 0; mode < 2; mode++) {
            const json_t *text = json_array_get(texts, i),
                         *ids = json_array_get(json_object_get(json_object_get(json_object_get(expected, "ids"), name), modes[mode]), i);
            id_list l = ids_of(t, json_string_value(text), (int64_t)json_string_length(text), mode);
            if (l.n != (int64_t)json_array_size(ids)) fail_msg("%s, %s, text %zu: %lld ids, not %zu", name, modes[mode], i, (long long)l.n, json_array_size(ids));
            for (int64_t k = 0; k < l.n; k++)
                if (l.ids[k] != json_integer_value(json_array_get(ids, (size_t)k)))
                    fail_msg("%s, %s, text %zu: id %lld is %d, not %lld", name, modes[mode], i, (long long)k, l.ids[k],
                             (long long)json_integer_value(json_array_get(ids, (size_t)k)));
            free(l.ids);
        }
}

static void test_fixtures(void **state) {
    (void)state;
    const char *name;
    json_t *ids;
    int n = 0;
    expected = json_load_file(MUSTER_FIXTURES "/tokenizers/expected.json", JSON_ALLOW_NUL, NULL);
    assert_non_null(expected);
    json_object_foreach(json_object_get(expected, "ids"), name, ids) {
        mu_tokenizer *t = open_fixture(name), *again = NULL;
        check_ids(t, name);
        bool characters = !strncmp(name, "llama", 5) || !strncmp(name, "metaspace", 9);
        assert_string_equal(mu_tokenizer_eod_text(t), characters && strcmp(name, "llama3") ? "</s>" : "<|endoftext|>");
        assert_ok(mu_tokenizer_write(t, in_folder("tokenizer.json"), &e));
        assert_ok(mu_tokenizer_open(&again, folder, &e));
        check_ids(again, name);
        assert_string_equal(mu_tokenizer_fingerprint(again), mu_tokenizer_fingerprint(t));
        assert_int_equal(mu_tokenizer_vocab_size(again), mu_tokenizer_vocab_size(t));
        assert_int_equal(mu_tokenizer_eod(again), mu_tokenizer_eod(t));
        mu_tokenizer_close(t), mu_tokenizer_close(again);
        n++;
    }
    assert_int_equal(n, 24);
    json_decref(expected);
    assert_ok(mu_file_remove_tree(in_folder("tokenizer.json"), &e));
}

/* ------------------------------------------------------------------ splitters against Oniguruma */

typedef struct { int64_t ends[20000]; int n; int64_t base; const mu_pattern *const *next; const char *text; } ends;

static void take_end(void *to, mu_part part) {
    ends *x = to;
    if (part.to == part.from) return;
    if (x->next[0]) {
        ends *all = x;
        int64_t base = all->base;
        const mu_pattern *const *next = all->next;
        const char *text = all->text;
        all->base = base + part.from, all->next = next + 1, all->text = text + part.from;
        mu_pattern_parts(next[0], text + part.from, part.to - part.from, take_end, all);
        all->base = base, all->next = next, all->text = text;
    } else x->ends[x->n++] = x->base + part.to;
}

/* The expressions of a splitter, from its pre_tokenizer. */
static int patterns_of(const mu_splitter *s, mu_pattern **patterns) {
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    char why[256];
    json_t *pre = json_loads(mu_splitter_json(s), 0, NULL), *steps = json_object_get(pre, "pretokenizers"), *step;
    size_t i;
    int n = 0;
    json_array_foreach(steps, i, step) {
        const char *regex = json_string_value(json_object_get(json_object_get(step, "pattern"), "Regex"));
        if (regex) patterns[n++] = mu_pattern_regex(regex, (int64_t)strlen(regex), why, sizeof why);
        else if (json_object_get(step, "individual_digits")) patterns[n++] = mu_pattern_regex("\\p{N}", 5, why, sizeof why);
    }
    const json_t *last = steps ? json_array_get(steps, json_array_size(steps) - 1) : pre;
    if (json_is_true(json_object_get(last, "use_regex"))) patterns[n++] = mu_pattern_regex(gpt2, sizeof gpt2 - 1, why, sizeof why);
    patterns[n] = NULL;
    json_decref(pre);
    for (int k = 0; k < n; k++) assert_non_null(patterns[k]);
    return n;
}

/* A text of characters that splitters treat apart, assigned since long; some bytes that are not UTF-8. */
static int64_t random_text(char *text, uint64_t seed) {
    static const char *const parts[] = { "'s", "'S", "'\xc5\xbf", "'ll", "'Ve", "'", " ", "  ", "\n", "\r\n", "\t", "\xc2\xa0", "\xe3\x80\x80", "\xe2\x80\xa8",
        "/", "\\", "_", "Hello", "HELLO", "hW", "1", "123", "\xc2\xbd", "\xd9\xa3", "\xcc\x81", "\xe0\xb8\x81", "\xe0\xb8\xb3", "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb",
        "\xe4\xb8\xad", "\xe3\x83\x8a", "\xe3\x83\xbb", "\xe3\x82\x99", "\xe1\x84\x92", "\xed\x95\x9c", "!?", "$", "\xe2\x82\xac", "\xc7\x85", "\xca\xb0", "\xef\xbb\xbf", "\x01", "\x7f", "",
        "\xc3", "\xff\xfe", "\xe4\xb8", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xcd\x85", "\xd0\x96", "\xd0\xb6", "\xe2\x85\xa7", "\xe2\x93\x90", "\xee\x80\x80" };
    enum { N = sizeof parts / sizeof *parts };
    const mu_rng rng = { .seed = seed, .purpose = MU_RNG_TEST };
    int64_t n = 0;
    for (uint64_t i = 0, length = 1 + mu_rng_u32(&rng, 0) % 40; i < length; i++) {
        const char *part = parts[mu_rng_u32(&rng, 1 + i) % N];
        size_t bytes = strlen(part);
        memcpy(text + n, part, bytes);
        n += (int64_t)bytes;
    }
    return n;
}

static void test_splitters(void **state) {
    (void)state;
    const mu_splitter *s;
    int i = 0;
    for (; (s = mu_splitter_number(i)); i++) {
        mu_pattern *patterns[8];
        int n_patterns = patterns_of(s, patterns);
        assert_ptr_equal(mu_splitter_named(mu_splitter_name(s)), s);
        for (uint64_t seed = 0; seed < 1500; seed++) {
            char text[2048];
            static ends x;
            int64_t n = random_text(text, seed);
            x = (ends){ .next = (const mu_pattern *const *)patterns + 1, .text = text };
            mu_pattern_parts(patterns[0], text, n, take_end, &x);
            int k = 0;
            for (int64_t at = 0; at < n; k++) {
                int64_t end = mu_splitter_next(s, text, n, at);
                if (k >= x.n || end != x.ends[k])
                    fail_msg("%s, text %llu, \"%.*s\": piece %d, from %lld, ends at %lld, not %lld", mu_splitter_name(s), (unsigned long long)seed, (int)n, text, k,
                             (long long)at, (long long)end, (long long)(k < x.n ? x.ends[k] : -1));
                at = end;
            }
            assert_int_equal(k, x.n);
        }
        for (int k = 0; k < n_patterns; k++) mu_pattern_free(patterns[k]);
    }
    assert_int_equal(i, 7);
    assert_null(mu_splitter_named("gpt3"));
}

/* ------------------------------------------------------------------ any bytes */

static void assert_exact(const mu_tokenizer *t, const char *text, int64_t n) {
    int64_t bytes;
    id_list l = ids_of(t, text, n, false);
    char *back = decoded(t, &l, &bytes);
    assert_int_equal(bytes, n);
    if (n) assert_memory_equal(back, text, (size_t)n);
    free(back), free(l.ids);
}

static void test_any_bytes(void **state) {
    (void)state;
    static const char *const names[] = { "gpt2", "cl100k", "o200k", "deepseek", "digits", "pattern" };
    static char all[66000];
    for (size_t i = 0; i < sizeof all; i++) all[i] = (char)(i * 2654435761u >> 13);
    for (int i = 0; i < 6; i++) {
        mu_tokenizer *t = open_fixture(names[i]);
        for (uint64_t seed = 0; seed < 300; seed++) {
            char text[2048];
            assert_exact(t, text, random_text(text, seed));
        }
        assert_exact(t, all, sizeof all);
        assert_exact(t, "x<|endoftext|>y", 15);
        mu_tokenizer_close(t);
    }
    mu_tokenizer *t = open_fixture("llama");            /* a space stands before it */
    id_list l = ids_of(t, "a\xff\xe4\xb8 b", 6, false);
    int64_t n;
    char *back = decoded(t, &l, &n);
    assert_int_equal(n, 7);
    assert_memory_equal(back, " a\xff\xe4\xb8 b", 7);
    free(back), free(l.ids);
    const char *bytes;
    assert_int_equal(mu_tokenizer_decode(t, mu_tokenizer_eod(t), &bytes), 0);
    assert_int_equal(mu_tokenizer_decode(t, -1, &bytes), 0);
    assert_int_equal(mu_tokenizer_decode(t, mu_tokenizer_vocab_size(t), &bytes), 0);
    mu_tokenizer_close(t);
}

/* One piece of a megabyte, and texts without a blank, take no quadratic time; all threads give the same ids. */
static void test_long_pieces(void **state) {
    (void)state;
    enum { BYTES = 1 << 20 };
    static const char *const names[] = { "gpt2", "o200k", "pattern", "llama", "metaspace-first", "split-text" };
    char *text = mu_alloc(BYTES, 1);
    for (int i = 0; i < 6; i++) {
        mu_tokenizer *t = open_fixture(names[i]);
        for (int k = 0; k < 3; k++) {
            for (int64_t at = 0; at < BYTES; at++) text[at] = k == 0 ? 'a' : k == 1 ? ' ' : (char)('a' + at * 7 % 26);
            id_list one = ids_of(t, text, BYTES, false), other[2];
#pragma omp parallel for num_threads(2)
            for (int thread = 0; thread < 2; thread++) other[thread] = ids_of(t, text, BYTES, false);
            for (int thread = 0; thread < 2; thread++) {
                assert_int_equal(one.n, other[thread].n);
                if (one.n) assert_memory_equal(one.ids, other[thread].ids, (size_t)one.n * sizeof *one.ids);
                free(other[thread].ids);
            }
            free(one.ids);
        }
        mu_tokenizer_close(t);
    }
    free(text);
}

/* ------------------------------------------------------------------ from memory; the end-of-document token */

static mu_token token_of(const char *text) { return (mu_token){ text, (int64_t)strlen(text) }; }

static void test_from_memory(void **state) {
    (void)state;
    enum { BYTES = 256, N = BYTES + 4 };
    static char bytes[BYTES];
    mu_token tokens[N] = { token_of("<|done|>") };
    for (int i = 0; i < BYTES; i++) bytes[i] = (char)i, tokens[1 + i] = (mu_token){ &bytes[i], 1 };
    tokens[BYTES + 1] = token_of(" \xc3"), tokens[BYTES + 2] = token_of("th"), tokens[BYTES + 3] = token_of("the");
    const int32_t merges[][2] = { { 1 + ' ', 1 + 0xC3 }, { 1 + 't', 1 + 'h' }, { BYTES + 2, 1 + 'e' } }, special[] = { 0 };
    mu_bpe_vocabulary v = { .splitter = "gpt2", .n_tokens = N, .n_merges = 3, .n_special = 1, .tokens = tokens, .merges = merges, .special = special };
    mu_tokenizer *t = NULL, *again = NULL;
    assert_ok(mu_tokenizer_bpe_new(&t, &v, &e));
    assert_int_equal(mu_tokenizer_vocab_size(t), N);
    assert_int_equal(mu_tokenizer_eod(t), 0);
    assert_null(mu_tokenizer_path(t));
    id_list l = ids_of(t, "the \xc3\x9c" "th", 8, false);
    const int32_t ids[] = { BYTES + 3, BYTES + 1, 1 + 0x9C, BYTES + 2 };
    assert_int_equal(l.n, 4);
    assert_memory_equal(l.ids, ids, sizeof ids);
    free(l.ids);

    /* Its end-of-document token has no usual name: a second file says it. */
    assert_ok(mu_tokenizer_write(t, in_folder("tokenizer.json"), &e));
    assert_ok(mu_tokenizer_open(&again, folder, &e));
    assert_string_equal(mu_tokenizer_fingerprint(t), mu_tokenizer_fingerprint(again));
    assert_string_equal(mu_tokenizer_eod_text(again), "<|done|>");
    mu_tokenizer_close(again);
    assert_ok(mu_file_replace(in_folder("tokenizer_config.json"), "{\"eos_token\":{\"content\":\"</s>\"}}", 32, &e));
    assert_int_equal(mu_tokenizer_open(&again, folder, &e), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "the end-of-document token \"</s>\" is not in added_tokens"));
    assert_int_equal(mu_tokenizer_write(t, in_folder("tokenizer.json"), &e), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "/tokenizer_config.json: its \"eos_token\" is not \"<|done|>\""));
    assert_ok(mu_file_remove_tree(in_folder("tokenizer_config.json"), &e));
    assert_int_equal(mu_tokenizer_open(&again, folder, &e), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "no added token ends a document by its name"));
    mu_tokenizer_close(t);

    tokens[BYTES + 2] = token_of("tx");
    assert_int_equal(mu_tokenizer_bpe_new(&t, &v, &e), MU_STATUS_DATA);
    assert_null(t);
    tokens[5] = tokens[6];
    assert_int_equal(mu_tokenizer_bpe_new(&t, &v, &e), MU_STATUS_DATA);
    v.n_special = 0;
    assert_int_equal(mu_tokenizer_bpe_new(&t, &v, &e), MU_STATUS_DATA);
}

/* ------------------------------------------------------------------ files that are refused */

#define CHARACTERS "\"model\":{\"type\":\"BPE\",\"byte_fallback\":false,\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define EOS "\"added_tokens\":[{\"id\":3,\"content\":\"</s>\",\"special\":true}]"
#define MODEL(REST) "{" EOS ",\"model\":{\"type\":\"BPE\"," REST "}}"
#define VOCAB(TEXT) MODEL("\"vocab\":{" TEXT "},\"merges\":[]")
#define MERGES(TEXT) MODEL("\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[" TEXT "]")
#define WITH(SECTION) "{" EOS "," SECTION "," CHARACTERS "}"
#define SPLIT(REGEX) WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" REGEX "\"},\"behavior\":\"Isolated\",\"invert\":false}")
#define ADDED(TEXT) "{\"added_tokens\":[" TEXT "]," CHARACTERS "}"

static const struct { const char *json, *error; } refused[] = {
    { "", "the file ends where '{' is expected" }, { "[]", "'[' where '{' is expected" }, { "{}", "model: missing" }, { "{\"model\":", "the file ends within a value" },
    { "{\"model\":{}} x", "text behind the end" }, { "{\"model\":{]}", "']' closes nothing" }, { "{\"model\":{},\"model\":{}}", "model: twice" },
    { "{\"version\":\"1.0\",\"version\":\"1.0\",\"model\":{}}", "version: twice" }, { WITH("\"decoder\":null,\"decoder\":null"), "decoder: twice" },
    { MODEL("\"vocab\":{},\"merges\":[],\"fuse_unk\":true,\"fuse_unk\":true"), "model.fuse_unk: twice" }, { MODEL("\"type\":\"BPE\",\"vocab\":{},\"merges\":[]"), "model.type: twice" },
    { "{\"version\":\"2.0\",\"model\":{}}", "version: \"2.0\"; only \"1.0\" is supported" }, { "{\"modle\":{}}", "modle: unknown key" },
    { "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]", "the file ends within a value" }, { "{\"mod", "the file ends where '\"' is expected" },
    { "{\"model\":{\"type\":\"WordPiece\",\"vocab\":{},\"merges\":[]}}", "model.type: \"WordPiece\" is not supported; only \"BPE\" is" },
    { MODEL("\"vocab\":{}"), "model: \"merges\" is missing" }, { MODEL("\"merges\":[]"), "model: \"vocab\" is missing" },
    { MODEL("\"vocab\":{},\"merges\":[],\"speed\":9"), "model: unknown option \"speed\"" }, { MODEL("\"vocab\":{},\"vocab\":{},\"merges\":[]"), "model.vocab: twice" },
    { MODEL("\"vocab\":{},\"merges\":[],\"dropout\":0.1"), "model.dropout: dropout is not supported" },
    { MODEL("\"vocab\":{},\"merges\":[],\"end_of_word_suffix\":\"</w>\""), "model.end_of_word_suffix: \"</w>\" is not supported" },
    { MODEL("\"vocab\":{},\"merges\":[],\"fuse_unk\":1"), "model.fuse_unk: neither true nor false" },
    { MODEL("\"vocab\":{},\"merges\":[],\"unk_token\":\"<unk>\""), "model.unk_token: \"<unk>\" is not in the vocabulary" },
    { MODEL("\"vocab\":[],\"merges\":[]"), "'[' where '{' is expected" }, { MODEL("\"vocab\":{},\"merges\":{}"), "'{' where '[' is expected" },
    { VOCAB("\"a\":-1"), "model.vocab: line 1: \"-1\" is not an integer from 0 to 4194303" }, { VOCAB("\"a\":4194304"), "\"4194304\" is not an integer" },
    { VOCAB("\"a\":2147483648"), "is not an integer" }, { VOCAB("\"a\":99999999999999999999999999"), "is not an integer" }, { VOCAB("\"a\":1.5"), "\"1.5\" is not an integer" },
    { VOCAB("\"a\":01"), "is not an integer" }, { VOCAB("\"a\":\"1\""), "is not an integer" }, { VOCAB("\"a\":true"), "\"true\" is not an integer" },
    { VOCAB("\"a\":1,\n\"a\":2"), "model.vocab: line 2: token \"a\" with id 2: there is an equal token" }, { VOCAB("\"a\":1,\"b\":1"), "token \"b\" with id 1: its id is taken" },
    { VOCAB("\"a\":1 \"b\":2"), "'\"' where ',' is expected" }, { VOCAB("\"a\" 1"), "'1' where ':' is expected" }, { VOCAB("\"\\ud800\":1"), "an escape that is not supported" },
    { VOCAB("\"\\u0000\":1"), "an escape that is not supported" }, { VOCAB("\"\xff\":1"), "a string is not UTF-8" }, { VOCAB("\"\t\":1"), "a control character in a string" },
    { VOCAB("\"a\":1,"), "'}' where '\"' is expected" },
    { VOCAB("\"a\":0,\"b\":65544"), "model.vocab: token \"b\" has id 65544; with 2 tokens ids are at most 65543" },
    { ADDED("{\"content\":\"</s>\",\"id\":65552}"), "added_tokens[0]: token \"</s>\" has id 65552; with 4 tokens ids are at most 65551" },
    { MERGES("\"a c\""), "model.merges: line 1: merge 0, \"a\" and \"c\": its right part is not in the vocabulary" }, { MERGES("[\"c\",\"a\"]"), "its left part is not" },
    { MERGES("\"b a\""), "merge 0, \"b\" and \"a\": its result is not in the vocabulary" }, { MERGES("\"ab\""), "\"ab\" is not two texts with a blank between" },
    { MERGES("\"a b c\""), "is not two texts" }, { MERGES("[\"a\",\"\"]"), "a part is empty" }, { MERGES("[\"a\"]"), "']' where ',' is expected" },
    { MERGES("[\"a\",\"b\",\"c\"]"), "',' where ']' is expected" }, { MERGES("1"), "'1' where '\"' is expected" }, { MERGES("[[\"a\",\"b\"]]"), "'[' where '\"' is expected" },
    { WITH("\"normalizer\":{\"type\":\"Lowercase\"}"), "normalizer: type \"Lowercase\" is not supported" }, { WITH("\"normalizer\":7"), "normalizer: neither an object nor null" },
    { WITH("\"normalizer\":{\"type\":\"NFC\",\"x\":1}"), "normalizer: NFC: unknown option \"x\"" }, { WITH("\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"\"}"), "is not a text, or empty" },
    { WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" \"},\"content\":\"_\"}"), "a pattern that is no \"String\" is not supported" },
    { WITH("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":7}"), "Sequence: \"normalizers\" is not a list" }, { WITH("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[7]}"), "Sequence: not an object" },
    { WITH("\"pre_tokenizer\":{\"type\":\"Whitespace\"}"), "pre_tokenizer: type \"Whitespace\" is not supported" }, { SPLIT("("), "Split: regular expression: end pattern with unmatched parenthesis" },
    { SPLIT("(a+)+$"), "it backtracks without bound" }, { SPLIT("(a|aa)+$"), "it backtracks without bound" }, { WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":\"a\"}"), "Split: \"pattern\" is neither" },
    { WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Odd\",\"invert\":false}"), "Split: unknown \"behavior\": Odd" },
    { WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Isolated\",\"invert\":0}"), "\"invert\" is neither true nor false" },
    { WITH("\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"trim_offsets\":true}"), "with ByteLevel the vocabulary needs a token for each byte of UTF-8" },
    { WITH("\"pre_tokenizer\":{\"type\":\"Digits\"}"), "\"individual_digits\" is missing" }, { WITH("\"post_processor\":{\"type\":\"Odd\"}"), "post_processor: type \"Odd\" is not supported" },
    { WITH("\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"RobertaProcessing\",\"sep\":[\"a\",1],\"cls\":[\"b\",2]}]}"), "type \"RobertaProcessing\" is not supported" },
    { WITH("\"decoder\":{\"type\":\"CTC\"}"), "decoder: type \"CTC\" is not supported" }, { WITH("\"pre_tokenizer\":{\"type\":\"Digits\",\"type\":\"Digits\"}"), "duplicate object key" },
    { ADDED("7"), "added_tokens: number 0 is not an object" }, { ADDED("{\"id\":9}"), "added_tokens[0]: \"content\" is not a text" }, { ADDED("{\"content\":\"x\",\"id\":-1}"), "\"id\" is not an integer" },
    { ADDED("{\"content\":\"x\",\"id\":4194304}"), "\"id\" is not an integer from 0 to 4194303" }, { ADDED("{\"content\":\"x\",\"id\":4,\"special\":1}"), "\"special\" is neither true nor false" },
    { ADDED("{\"content\":\"x\",\"id\":1}"), "\"x\" with id 1: the vocabulary has another token with this id" }, { ADDED("{\"content\":\"a\",\"id\":7}"), "the vocabulary has it with another id" },
    { ADDED("{\"content\":\"x\",\"id\":7},{\"content\":\"x\",\"id\":8}"), "there is an equal token" }, { ADDED("{\"content\":\"x\",\"id\":7},{\"content\":\"y\",\"id\":7}"), "its id is taken" },
    { ADDED("{\"content\":\"x\",\"id\":7}"), "no added token ends a document by its name" }, { "{\"added_tokens\":{}," CHARACTERS "}", "added_tokens: not a list" },
    { "{\"added_tokens\":[{\"id\":1,\"content\":\"</s>\"}],\"model\":{\"vocab\":{\"<\":0,\"</s>\":1,\"/s>\":2},\"merges\":[[\"<\",\"/s>\"]]}}",
      "the end-of-document token \"</s>\" is also what the model makes of plain text" },
};

/* Files that are taken for a tokenizer.json. */
static void test_other_kinds(void **state) {
    (void)state;
    static const struct { const char *text; size_t n; const char *error; } others[] = {
        { "IQ== 0\nIg== 1\n", 14, "not a tokenizer.json: this is a vocabulary of tiktoken" },
        { "\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2\n\x0c", 18, "this is a model of SentencePiece; docs/tokenizers.md" },
        { "version https://git-lfs.github.com/spec/v1\noid", 46, "this is a pointer of Git LFS" }, { "<!doctype html>", 15, "this is a page of HTML" },
        { "<html><body>", 12, "this is a page of HTML" }, { "#version: 0.2\ni n\n", 18, "this is the merges of an older format" },
        { "12", 2, "bad JSON: line 1: '1' where '{' is expected" }, { "a b\n", 4, "bad JSON: line 1: 'a' where '{'" },
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        mu_tokenizer *t;
        assert_ok(mu_file_replace(in_folder("tokenizer.json"), others[i].text, others[i].n, &e));
        assert_int_equal(mu_tokenizer_open(&t, folder, &e), MU_STATUS_DATA);
        if (!strstr(e.text, others[i].error)) fail_msg("no \"%s\" in: %s", others[i].error, e.text);
    }
}

static void test_refused(void **state) {
    (void)state;
    mu_tokenizer *t;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        assert_ok(mu_file_replace(in_folder("tokenizer.json"), refused[i].json, strlen(refused[i].json), &e));
        mu_status status = mu_tokenizer_open(&t, folder, &e);
        if (status != MU_STATUS_DATA || e.status != status || !strstr(e.text, refused[i].error) || !strstr(e.text, "/tokenizer.json: "))
            fail_msg("status %d: %s\nof %s\nnot: %s", status, e.text, refused[i].json, refused[i].error);
        assert_null(t);
    }
    assert_ok(mu_file_replace(in_folder("tokenizer.json"), "{" EOS "," CHARACTERS "}", strlen("{" EOS "," CHARACTERS "}"), &e));
    assert_ok(mu_tokenizer_open(&t, folder, &e));       /* what all of these were made from */
    assert_int_equal(mu_tokenizer_vocab_size(t), 4);
    mu_tokenizer_close(t);
}

/* Ids may have holes, as in real vocabularies, also in front of added tokens. */
static void test_holes(void **state) {
    (void)state;
    static const char with_holes[] = "{\"added_tokens\":[{\"id\":65551,\"content\":\"</s>\",\"special\":true}],\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":9,"
                                     "\"b\":1,\"ab\":65547},\"merges\":[\"a b\"]}}";
    mu_tokenizer *t;
    assert_ok(mu_file_replace(in_folder("tokenizer.json"), with_holes, sizeof with_holes - 1, &e));
    assert_ok(mu_tokenizer_open(&t, folder, &e));
    assert_int_equal(mu_tokenizer_vocab_size(t), 65552);
    id_list l = ids_of(t, "aab</s>", 7, true);
    static const int32_t wanted[] = { 9, 65547, 65551 };
    assert_int_equal(l.n, 3);
    assert_memory_equal(l.ids, wanted, sizeof wanted);
    free(l.ids);
    mu_tokenizer_close(t);
}

/* Of equal merges the last counts, as in Hugging Face's tokenizers, which make "a", "bc" of this. */
static void test_repeated_merges(void **state) {
    (void)state;
    static const char repeated[] = "{" EOS ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":4,\"bc\":5},"
                                   "\"merges\":[\"a b\",\"b c\",\"a b\"]}}";
    mu_tokenizer *t;
    assert_ok(mu_file_replace(in_folder("tokenizer.json"), repeated, strlen(repeated), &e));
    assert_ok(mu_tokenizer_open(&t, folder, &e));
    id_list l = ids_of(t, "abc", 3, false);
    assert_true(l.n == 2 && l.ids[0] == 0 && l.ids[1] == 5);
    free(l.ids);
    mu_tokenizer_close(t);
}

static void assert_refused(char *json, size_t n, const char *error) {
    mu_tokenizer *t;
    double start = mu_time();
    assert_ok(mu_file_replace(in_folder("tokenizer.json"), json, n, &e));
    assert_int_equal(mu_tokenizer_open(&t, folder, &e), MU_STATUS_DATA);
    if (!strstr(e.text, error)) fail_msg("no \"%s\" in: %s", error, e.text);
    assert_true(mu_time() - start < 10);
    free(json);
}

/* Deep brackets, sections and expressions without end, every truncation of a good file. */
static void test_bombs(void **state) {
    (void)state;
    enum { DEEP = 1 << 20 };
    char *deep = mu_alloc(DEEP + 64, 1);
    size_t n = (size_t)sprintf(deep, "{\"model\":");
    memset(deep + n, '[', DEEP);
    assert_refused(deep, n + DEEP, "brackets are more than 64 deep");
    char *wide = mu_alloc(4 * DEEP + 64, 1);
    n = (size_t)sprintf(wide, "{" CHARACTERS ",\"added_tokens\":[0");
    for (size_t i = 0; i < DEEP; i++, n += 2) memcpy(wide + n, ",0", 2);
    n += (size_t)sprintf(wide + n, "]}");
    assert_refused(wide, n, "more than 2097152");
    char *long_regex = mu_alloc(65536, 1);
    n = (size_t)sprintf(long_regex, "{" CHARACTERS "," EOS ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"");
    for (int i = 0; i < 20000; i++) long_regex[n++] = '(';
    n += (size_t)sprintf(long_regex + n, "\"},\"behavior\":\"Isolated\",\"invert\":false}}");
    assert_refused(long_regex, n, "20000 bytes, more than 16384");

    char *path = mu_format("%s/tokenizers/llama.json", MUSTER_FIXTURES), *text;
    assert_ok(mu_file_read(path, 1 << 20, &text, &n, &e));
    for (size_t cut = 0; cut < n; cut += 1 + cut / 50) {
        char *part = mu_alloc(cut + 1, 1);
        memcpy(part, text, cut);
        assert_refused(part, cut, "tokenizer.json: ");
    }
    for (size_t at = 0; at < n; at += 3 + at / 40) {    /* one byte changed: refused or another tokenizer, nothing worse */
        mu_tokenizer *t;
        char old = text[at];
        text[at] = "\"0]\xff{"[at % 5];
        assert_ok(mu_file_replace(in_folder("tokenizer.json"), text, n, &e));
        if (!mu_tokenizer_open(&t, folder, &e)) {
            id_list l = ids_of(t, "a \xe4\xb8\xad \xffz", 8, true);
            free(l.ids);
            mu_tokenizer_close(t);
        }
        text[at] = old;
    }
    free(path), free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixtures), cmocka_unit_test(test_splitters), cmocka_unit_test(test_any_bytes), cmocka_unit_test(test_long_pieces),
        cmocka_unit_test(test_from_memory), cmocka_unit_test(test_refused), cmocka_unit_test(test_other_kinds), cmocka_unit_test(test_holes),
        cmocka_unit_test(test_repeated_merges), cmocka_unit_test(test_bombs),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, set_up, tear_down);
}
