/* test_bpe_train.c - training of BPE: equal to Hugging Face's trainer (fixtures/bpe_train.json) and to the plain definition. */
#include "data/folder.h"
#include "data/internal.h"

#include <setjmp.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int set_up(void **state) {
    (void)state;
    return folder_make("bpe") ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    return mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

static void assert_error(mu_status status, mu_status expected, const char *text) {
    if (status != expected || !strstr(e.text, text)) fail_msg("status %d, not %d with \"%s\": %s", status, expected, text, e.text);
}

static const char *const eod[] = { "<|endoftext|>" };
static mu_bpe_training plain(int64_t size, int64_t least) {
    return (mu_bpe_training){ .vocab_size = size, .min_frequency = least, .splitter = "gpt2", .n_special = 1, .special = eod, .text_key = "text" };
}

static mu_bpe_trained trained;
static mu_tokenizer *train(const mu_bpe_training *how, const char *path) {
    mu_tokenizer *t;
    char *paths[] = { (char *)path };
    assert_ok(mu_bpe_train(&t, &trained, how, 1, paths, &e));
    return t;
}

/* The "model" of the tokenizer.json. */
static json_t *model_of(const mu_tokenizer *t) {
    json_error_t why;
    assert_ok(mu_tokenizer_write(t, in_folder("tokenizer.json"), &e));
    json_t *file = json_load_file(in_folder("tokenizer.json"), 0, &why), *model = json_object_get(file, "model");
    if (!model) fail_msg("tokenizer.json: %s", why.text);
    json_incref(model);
    json_decref(file);
    return model;
}

/* ------------------------------------------------------------------ Hugging Face's */

static void put_documents(const json_t *list) {
    FILE *f = fopen(in_folder("texts.jsonl"), "w");
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *line = json_pack("{s:O}", "text", json_array_get(list, i));
        json_dumpf(line, f, 0);
        fputc('\n', f);
        json_decref(line);
    }
    fclose(f);
}

static void assert_case(const json_t *c) {
    const char *name = json_string_value(json_object_get(c, "name")), *special[8];
    const json_t *tokens = json_object_get(c, "tokens"), *list = json_object_get(c, "special");
    mu_bpe_training how = plain(json_integer_value(json_object_get(c, "vocab_size")), json_integer_value(json_object_get(c, "min_frequency")));
    how.splitter = json_string_value(json_object_get(c, "splitter"));
    how.n_special = (int)json_array_size(list), how.special = special;
    for (int i = 0; i < how.n_special; i++) special[i] = json_string_value(json_array_get(list, (size_t)i));
    put_documents(json_object_get(c, "documents"));
    mu_tokenizer *t = train(&how, in_folder("texts.jsonl"));
    json_t *model = model_of(t), *vocab = json_object_get(model, "vocab");
    if (json_object_size(vocab) != json_array_size(tokens)) fail_msg("%s: %zu tokens, not %zu", name, json_object_size(vocab), json_array_size(tokens));
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        const char *token = json_string_value(json_array_get(tokens, i));
        json_t *id = json_object_get(vocab, token);
        if (!id || json_integer_value(id) != (json_int_t)i) fail_msg("%s: token %s, id %zu", name, token, i);
    }
    if (!json_equal(json_object_get(model, "merges"), json_object_get(c, "merges"))) fail_msg("%s: other merges", name);
    json_decref(model);
    mu_tokenizer_close(t);
}

static void test_fixture(void **state) {
    (void)state;
    json_error_t why;
    json_t *cases = json_load_file(MUSTER_FIXTURES "/bpe_train.json", 0, &why);
    assert_true(json_array_size(cases) > 10);
    for (size_t i = 0; i < json_array_size(cases); i++) assert_case(json_array_get(cases, i));
    json_decref(cases);
}

/* ------------------------------------------------------------------ the plain definition */

enum { IDS = 512 };

/* Merges of one piece, by counting all pairs anew for each. */
static int64_t plain_merges(int32_t *ids, int64_t n, int64_t size, int64_t least, int32_t merges[IDS][2]) {
    int64_t *counts = mu_alloc(IDS * IDS, sizeof *counts), made = 0;
    for (int32_t id = 257; id < size; id++) {
        int64_t best = 0, kept = 0;
        memset(counts, 0, IDS * IDS * sizeof *counts);
        for (int64_t i = 0; i + 1 < n; i++) counts[ids[i] * IDS + ids[i + 1]]++;
        for (int64_t p = 0; p < IDS * IDS; p++)
            if (counts[p] > counts[best]) best = p;
        if (counts[best] < least) break;
        int32_t left = merges[made][0] = (int32_t)(best / IDS), right = merges[made][1] = (int32_t)(best % IDS);
        made++;
        for (int64_t i = 0; i < n; kept++) {
            bool pair = i + 1 < n && ids[i] == left && ids[i + 1] == right;
            ids[kept] = pair ? id : ids[i];
            i += pair ? 2 : 1;
        }
        n = kept;
    }
    free(counts);
    return made;
}

/* Documents of letters alone, one piece each; the ids of letters are those of bytes, 33 being the first of the visible ones. */
static void assert_plain(int64_t bytes, int letters, int64_t size, uint32_t seed) {
    char *text = mu_alloc((size_t)bytes, 1);
    int32_t *ids = mu_alloc((size_t)bytes, sizeof *ids), merges[IDS][2];
    for (int64_t i = 0; i < bytes; i++) {
        seed = seed * 1664525u + 1013904223u;
        text[i] = (char)('a' + (seed >> 16) % (uint32_t)letters * (seed >> 28 ? 1 : 0));
        ids[i] = 1 + text[i] - '!';
    }
    assert_ok(mu_file_replace(in_folder("letters.txt"), text, (size_t)bytes, &e));
    int64_t n = plain_merges(ids, bytes, size, 2, merges);
    mu_bpe_training how = plain(size, 2);
    mu_tokenizer *t = train(&how, in_folder("letters.txt"));
    assert_int_equal(trained.merges, n);
    assert_int_equal(trained.pieces, 1);
    for (int64_t i = 0; i < n; i++) {
        const char *left, *right, *both;
        int64_t l = mu_tokenizer_decode(t, merges[i][0], &left), r = mu_tokenizer_decode(t, merges[i][1], &right);
        assert_int_equal(mu_tokenizer_decode(t, (int32_t)(257 + i), &both), l + r);
        assert_memory_equal(both, left, (size_t)l);
        assert_memory_equal(both + l, right, (size_t)r);
    }
    mu_tokenizer_close(t);
    free(text);
    free(ids);
}

static void test_plain_definition(void **state) {
    (void)state;
    for (uint32_t seed = 0; seed < 40; seed++) assert_plain(50 + 20 * seed, 1 + (int)(seed % 5), 300, seed);
}

/* Ten megabytes without a space: one piece. A step costs as much as it changes, not the length of the piece. */
static void test_long_piece(void **state) {
    (void)state;
    assert_plain(10 << 20, 26, 262, 1);
    mu_bpe_training how = plain(8192, 2);
    double start = mu_time();
    mu_tokenizer_close(train(&how, in_folder("letters.txt")));
    if (mu_time() - start > 60) fail_msg("%.1f s", mu_time() - start);
}

/* ------------------------------------------------------------------ threads, cuts */

static void put_mixed(int64_t bytes) {
    static const char *const words[] = { "boat", "lock", "The", "été", "水門", "\n", ".\n", "\n\n", "\r\n", "  ", " ", "1234", "don't", "/", "\xff", "👍", "x=3;\n\n", "\t" };
    FILE *f = fopen(in_folder("mixed.txt"), "w");
    uint32_t seed = 3;
    while (ftell(f) < bytes) {
        seed = seed * 1664525u + 1013904223u;
        fputs(words[(seed >> 16) % (sizeof words / sizeof *words)], f);
        if (seed >> 30 == 0) fprintf(f, "%u ", seed >> 20 & 255);
    }
    fclose(f);
}

static void test_threads(void **state) {
    (void)state;
    char fingerprint[33] = "";
    put_mixed(3 << 20);
    for (int threads = 1; threads <= 4; threads *= 2) {
        mu_bpe_training how = plain(2000, 2);
        mu_threads_set(threads);
        mu_tokenizer *t = train(&how, in_folder("mixed.txt"));
        if (threads > 1) assert_string_equal(mu_tokenizer_fingerprint(t), fingerprint);
        snprintf(fingerprint, sizeof fingerprint, "%s", mu_tokenizer_fingerprint(t));
        mu_tokenizer_close(t);
    }
    mu_threads_set(1);
}

/* The parts between cuts have the pieces of the whole, for every splitter. */
static void test_cuts(void **state) {
    (void)state;
    char *text;
    size_t bytes;
    put_mixed(100000);
    assert_ok(mu_file_read(in_folder("mixed.txt"), 1 << 20, &text, &bytes, &e));
    int64_t n = (int64_t)bytes, cuts = 0;
    for (int i = 0; mu_splitter_number(i); i++) {
        const mu_splitter *s = mu_splitter_number(i);
        for (int64_t at = 0, whole = 0, end; at < n; at = end, cuts++) {
            end = at + mu_cut_line(text + at, n - at, 1);
            assert_in_range(end, at + 1, n);
            for (int64_t piece = at; piece < end; whole = mu_splitter_next(s, text, n, whole)) {
                if (piece != whole) fail_msg("%s: pieces at %lld and %lld", mu_splitter_name(s), (long long)piece, (long long)whole);
                piece = at + mu_splitter_next(s, text + at, end - at, piece - at);
            }
        }
    }
    assert_true(cuts > 2000);
    free(text);
}

/* ------------------------------------------------------------------ what is refused */

static void test_errors(void **state) {
    (void)state;
    mu_bpe_training how = plain(256, 2);
    assert_error(mu_bpe_training_check(&how, &e), MU_STATUS_USAGE, "vocabulary size 256: expected 257 (256 bytes, 1 special) to 1048576");
    how = plain(1 << 21, 2);
    assert_error(mu_bpe_training_check(&how, &e), MU_STATUS_USAGE, "vocabulary size 2097152");
    how = plain(300, 0);
    assert_error(mu_bpe_training_check(&how, &e), MU_STATUS_USAGE, "minimum frequency 0");
    how = plain(300, 2), how.splitter = "gpt5";
    assert_error(mu_bpe_training_check(&how, &e), MU_STATUS_USAGE, "unknown pattern \"gpt5\"; available: gpt2, cl100k");
    const struct { const char *special[2], *text; } bad[] = {
        { { "", "x" }, "is empty" }, { { "word", "x" }, "could be an ordinary token" }, { { "|>", "x" }, "could be an ordinary token" },
        { { "<|\xff|>", "x" }, "not UTF-8" }, { { "<|a|>", "<|a|>" }, "appears twice" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        how = plain(300, 2), how.special = bad[i].special, how.n_special = 2;
        assert_error(mu_bpe_training_check(&how, &e), MU_STATUS_USAGE, bad[i].text);
    }
    mu_tokenizer *t;
    char *paths[] = { "nowhere.txt" };
    how = plain(300, 2);
    assert_error(mu_bpe_train(&t, &trained, &how, 1, paths, &e), MU_STATUS_NOINPUT, "nowhere.txt");
    assert_null(t);
    assert_ok(mu_file_replace(in_folder("empty.txt"), "", 0, &e));
    paths[0] = (char *)in_folder("empty.txt");
    assert_error(mu_bpe_train(&t, &trained, &how, 1, paths, &e), MU_STATUS_DATA, "no text");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixture), cmocka_unit_test(test_plain_definition), cmocka_unit_test(test_long_piece),
        cmocka_unit_test(test_threads), cmocka_unit_test(test_cuts), cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests_name("training of BPE", tests, set_up, tear_down);
}
