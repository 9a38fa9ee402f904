/* test_data.c - tokenizers, corpora from every kind of source, token files, the generator, the loader. */
#include "data/folder.h"
#include "data/internal.h"

#include <math.h>
#include <setjmp.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static mu_tokenizer *bytes;
enum { CACHE = 8 << 20 };
static int64_t cache_bytes = CACHE;

static int set_up(void **state) {
    (void)state;
    return !mu_tokenizer_open(&bytes, "bytes", &e) && folder_make("data") ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    mu_tokenizer_close(bytes);
    return mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

static void assert_error(mu_status status, mu_status expected, const char *text) {
    if (status != expected || e.status != expected)
        fail_msg("status %d, not %d: %s", status, expected, e.text);
    if (!strstr(e.text, text)) fail_msg("no \"%s\" in: %s", text, e.text);
}

static void put(const char *name, const char *text, size_t n) {
    char *path = mu_strdup(in_folder(name)), *slash = strrchr(path, '/');
    *slash = '\0';
    assert_ok(mu_file_make_dirs(path, &e));
    *slash = '/';
    assert_ok(mu_file_replace(path, text, n, &e));
    free(path);
}

static void put_text(const char *name, const char *text) { put(name, text, strlen(text)); }

typedef struct { const char *name, *path; } entry;

/* Weights are 1 where none are given. */
static mu_status open_corpus(mu_corpus *c, int n, const entry *entries, const double *weights) {
    mu_option_domain list[20] = { 0 };
    for (int i = 0; i < n; i++) {
        snprintf(list[i].domain, sizeof list[i].domain, "%s", entries[i].name);
        snprintf(list[i].path, sizeof list[i].path, "%s", entries[i].path);
        list[i].weight = weights ? weights[i] : 1;
    }
    return mu_corpus_open(c, &(mu_option_domains){ n, list }, "text", bytes, 7, cache_bytes, &e);
}

static mu_status open_one(mu_corpus *c, const char *path) {
    return open_corpus(c, 1, (const entry[]){ { "one", path } }, NULL);
}

static int32_t id_at(const mu_domain *d, int64_t i) {
    int32_t id;
    mu_domain_ids(d, i, 1, &id);
    return id;
}

static int64_t document_end(const mu_domain *d, int64_t i) {
    int64_t end;
    mu_domain_document_ends(d, i, 1, &end);
    return end;
}

static int64_t document_start(const mu_domain *d, int64_t i) { return i ? document_end(d, i - 1) : 0; }

/* The domain is exactly these documents. */
static void assert_documents(const mu_domain *d, int n, const char *const *documents) {
    int64_t at = 0, text_bytes = 0;
    assert_int_equal(d->n_documents, n);
    for (int i = 0; i < n; i++) {
        for (const char *c = documents[i]; *c; c++) assert_int_equal(id_at(d, at++), (unsigned char)*c);
        assert_int_equal(id_at(d, at++), 256);
        assert_int_equal(document_end(d, i), at);
        text_bytes += (int64_t)strlen(documents[i]);
    }
    assert_int_equal(d->n_tokens, at);
    assert_int_equal(d->text_bytes, text_bytes);
}

/* ------------------------------------------------------------------ tokenizer */

typedef struct { int32_t ids[70000]; int64_t n; } id_list;
static void add_ids(void *to, const int32_t *ids, int64_t n) {
    id_list *l = to;
    memcpy(l->ids + l->n, ids, (size_t)n * sizeof *ids);
    l->n += n;
}

static void test_tokenizer(void **state) {
    (void)state;
    static char all[66000];
    const char *out;
    id_list *list = mu_alloc(1, sizeof *list);
    for (size_t i = 0; i < sizeof all; i++) all[i] = (char)i;
    assert_string_equal(mu_tokenizer_name(bytes), "bytes");
    assert_string_equal(mu_tokenizer_fingerprint(bytes), "a1dc7d4fdaa77eeb863dea03ed5cc81c");
    assert_int_equal(mu_tokenizer_vocab_size(bytes), 257);
    assert_int_equal(mu_tokenizer_eod(bytes), 256);
    mu_tokenizer_encode(bytes, all, sizeof all, add_ids, list);
    assert_int_equal(list->n, sizeof all);
    for (size_t i = 0; i < sizeof all; i++) {
        assert_int_equal(list->ids[i], i % 256);
        assert_int_equal(mu_tokenizer_decode(bytes, list->ids[i], &out), 1);
        assert_int_equal(*out, all[i]);
    }
    mu_tokenizer_encode(bytes, all, 0, add_ids, list);
    assert_int_equal(list->n, sizeof all);
    const int32_t none[] = { 256, 257, 65535, 65536 + 'a', -1, INT32_MAX };
    for (int i = 0; i < 6; i++) assert_int_equal(mu_tokenizer_decode(bytes, none[i], &out), 0);
    free(list);
}

static void test_open_tokenizer(void **state) {
    (void)state;
    mu_tokenizer *t = bytes;
    put_text("tokenizer.json", "{}");
    assert_error(mu_tokenizer_open(&t, "words", &e), MU_STATUS_CONFIG, "unknown tokenizer \"words\"; available: bytes");
    assert_null(t);
    assert_error(mu_tokenizer_open(&t, "", &e), MU_STATUS_CONFIG, "unknown tokenizer");
    assert_error(mu_tokenizer_open(&t, in_folder("absent"), &e), MU_STATUS_NOINPUT, "/absent: no such file");
    assert_error(mu_tokenizer_open(&t, "absent.json", &e), MU_STATUS_NOINPUT, "absent.json: no such file");
    assert_error(mu_tokenizer_open(&t, in_folder("tokenizer.json"), &e), MU_STATUS_DATA, "/tokenizer.json: model: missing");
    assert_error(mu_tokenizer_open(&t, folder, &e), MU_STATUS_DATA, "/tokenizer.json: model: missing");
    assert_error(mu_tokenizer_open(&t, "/dev", &e), MU_STATUS_NOINPUT, "/dev: no tokenizer.json in this folder");
    assert_error(mu_tokenizer_write(bytes, in_folder("x.json"), &e), MU_STATUS_USAGE, "tokenizer \"bytes\" has no file");
    assert_null(mu_tokenizer_path(bytes));
    assert_null(mu_tokenizer_eod_text(bytes));
    const char *f = mu_tokenizer_fingerprint(bytes);
    assert_ok(mu_tokenizer_check(bytes, "x.h5", "bytes", f, &e));
    assert_ok(mu_tokenizer_check(bytes, "x.h5", "bytes", "", &e));
    assert_error(mu_tokenizer_check(bytes, "x.h5", "words", f, &e), MU_STATUS_DATA, "x.h5: made with tokenizer \"words\", not \"bytes\"");
    assert_error(mu_tokenizer_check(bytes, "x.h5", "bytes", "0123", &e), MU_STATUS_DATA, "fingerprint 0123, not");
}

/* ------------------------------------------------------------------ texts */

static void test_folder(void **state) {
    (void)state;
    put_text("f/b.txt", "second");
    put_text("f/a/z.txt", "first, and \xff is no UTF-8");
    put_text(
        "f/c.jsonl",
        "{\"text\": \"third \\u00e9\\n\", \"id\": [1, 2]}\n\n  \r\n{\"text\":\"\"}\r\n{\"text\":\"4th\"}");
    put_text("f/empty.txt", "");
    put_text("f/notes.md", "not a text");
    put_text("f/.hidden.txt", "not wanted");
    put_text("elsewhere.txt", "linked");
    assert_int_equal(symlink("../elsewhere.txt", in_folder("f/d.txt")), 0);
    assert_int_equal(symlink("..", in_folder("f/loop")), 0);
    mu_corpus c;
    assert_ok(open_one(&c, in_folder("f")));
    assert_documents(
        &c.domains[0], 5,
        (const char *[]){"first, and \xff is no UTF-8", "second", "third \xc3\xa9\n", "4th", "linked"});
    assert_false(c.synthetic);
    mu_corpus_close(&c);
}

static void test_single_files(void **state) {
    (void)state;
    mu_corpus c;
    put_text("one.txt", "just this");
    put_text("one.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    assert_ok(open_one(&c, in_folder("one.txt")));
    assert_documents(&c.domains[0], 1, (const char *[]){ "just this" });
    mu_corpus_close(&c);
    assert_ok(open_one(&c, in_folder("one.jsonl")));
    assert_documents(&c.domains[0], 2, (const char *[]){ "a", "b" });
    mu_corpus_close(&c);
}

static void test_many_documents(void **state) {
    (void)state;
    enum { N = 5000 };
    char *text = mu_alloc(N, 32);
    size_t n = 0;
    for (int i = 0; i < N; i++) n += (size_t)sprintf(text + n, "{\"text\": \"%d\"}\n", i * i);
    put("many.jsonl", text, n);
    mu_corpus c;
    assert_ok(open_one(&c, in_folder("many.jsonl")));
    const mu_domain *d = &c.domains[0];
    assert_int_equal(d->n_documents, N);
    for (int i = 0; i < N; i++) {
        char number[16] = "";
        for (int64_t start = document_start(d, i), t = start; t < document_end(d, i) - 1; t++)
            number[t - start] = (char)id_at(d, t);
        assert_int_equal(atoi(number), i * i);
    }
    mu_corpus_close(&c);
    free(text);
}

static void assert_bad(const char *name, const char *text, size_t n, mu_status status, const char *says) {
    mu_corpus c;
    put(name, text, n);
    assert_error(open_one(&c, in_folder(name)), status, says);
    assert_null(c.domains);
}

static void test_bad_texts(void **state) {
    (void)state;
    mu_corpus c;
    assert_error(open_one(&c, in_folder("absent")), MU_STATUS_NOINPUT, "absent: No such file");
    assert_bad("nul.txt", "text\0binary", 11, MU_STATUS_DATA, "nul.txt: not a text: NUL at byte 4");
    assert_bad("none.txt", "", 0, MU_STATUS_DATA, "no text in");
    assert_bad("mark.txt", "\xef\xbb\xbf", 3, MU_STATUS_DATA, "no text in");
    assert_bad("picture.png", "x", 1, MU_STATUS_DATA, "picture.png: neither a folder");
    put_text("only/readme.md", "x");
    assert_error(open_one(&c, in_folder("only")), MU_STATUS_DATA, "no text in");
    assert_int_equal(symlink("nowhere", in_folder("only/a.txt")), 0);
    assert_error(open_one(&c, in_folder("only")), MU_STATUS_NOINPUT, "only/a.txt");
}

static char logged[8192];
static void keep_log(mu_log_level level, const char *line) {
    assert_int_equal(level, MU_LOG_INFO);
    snprintf(logged + strlen(logged), sizeof logged - strlen(logged), "%s\n", line);
}

/* Files of a folder that are not read are counted and named in one line, others are not. */
static void test_not_read(void **state) {
    (void)state;
    mu_corpus c;
    put_text("mixed/a.txt", "read");
    for (int i = 0; i < 5; i++) {
        char name[32];
        snprintf(name, sizeof name, "mixed/%d.md", i);
        put_text(name, "x");
    }
    put_text("mixed/.git/config.txt", "x");
    put_text("mixed/.DS_Store", "a tool's own");
    put_text("mixed/sub/none.txt", "");
    put_text("mixed/sub/mark.txt", "\xef\xbb\xbf");
    put_text("mixed/old/config.resolved.yaml", "run: {}\n");
    put_text("mixed/old/run.json", "{}\n");
    put_text("mixed/old/metrics.jsonl", "{\"text\": \"not a text\"}\n");
    assert_int_equal(symlink("..", in_folder("mixed/up")), 0);
    assert_int_equal(mkfifo(in_folder("mixed/pipe.txt"), 0600), 0);
    mu_log_set_sink(keep_log);
    logged[0] = '\0';
    assert_ok(open_one(&c, in_folder("mixed")));
    assert_documents(&c.domains[0], 1, (const char *[]){ "read" });
    mu_corpus_close(&c);
    assert_non_null(strstr(logged, "/mixed: 5 not named .txt, .jsonl or .json (0.md, 1.md, 2.md, ...), 1 hidden (.git), 2 empty "
                                   "(sub/mark.txt, sub/none.txt), 1 link to a folder around it (up), 1 folder of a run (old), 1 not a "
                                   "plain file (pipe.txt)\n"));
    assert_int_equal(strlen(strchr(logged, '\n')), 1);
    logged[0] = '\0';
    assert_ok(open_one(&c, in_folder("mixed/a.txt")));
    mu_corpus_close(&c);
    assert_string_equal(logged, "");
    assert_error(open_one(&c, in_folder("mixed/old")), MU_STATUS_DATA, "mixed/old is the folder of a run");
    assert_error(open_one(&c, in_folder("mixed/pipe.txt")), MU_STATUS_NOINPUT, "pipe");
    mu_log_set_sink(NULL);
}

static void test_overlaps(void **state) {
    (void)state;
    mu_corpus c;
    put_text("over/x/a.txt", "text");
    put_text("over/y/b.txt", "text");
    assert_int_equal(symlink("x", in_folder("over/z")), 0);
    const struct { const char *a, *b, *says; } cases[] = {
        { "over/x", "over/y", NULL },
        { "over/x", "over", "\"a\" and \"b\"" },
        { "over", "over/y/b.txt", "\"b\" and \"a\"" },
        { "over/x", "over/z", "\"a\" and \"b\"" },
    };
    mu_log_set_sink(keep_log);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        logged[0] = '\0';
        assert_ok(open_corpus(&c, 2, (const entry[]){ { "a", in_folder(cases[i].a) }, { "b", in_folder(cases[i].b) } }, NULL));
        mu_corpus_close(&c);
        if (!cases[i].says) assert_null(strstr(logged, "in common"));
        else if (!strstr(logged, cases[i].says) || strstr(strstr(logged, "in common") + 1, "in common"))
            fail_msg("%s and %s: %s", cases[i].a, cases[i].b, logged);
    }
    mu_log_set_sink(NULL);
}

/* Numbers are of any size as long as they are JSON; a mark at the start is none of the text. */
static void test_jsonl_values(void **state) {
    (void)state;
    const char *good[] = {
        "{\"id\": 9253674967913938907, \"text\": \"a\"}", "{\"score\": 1e999, \"text\": \"a\"}",
        "{\"text\": \"a\", \"x\": {\"y\": [-1E+999, 0, -0.0, 12345678901234567890123.5e-7]}}",
        "{\"text\":\"a\",\"n\":1e400}", "{\"other\": \"\\u0000 \\\" 1e\", \"text\": \"a\", \"n\": -0}",
        "\xef\xbb\xbf{\"text\": \"a\"}", "\xef\xbb\xbf\n\n{\"text\": \"a\"}", "\n \r\n\xef\xbb\xbf{\"text\": \"a\"}",
    };
    mu_corpus c;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        put_text("good.jsonl", good[i]);
        mu_status status = open_one(&c, in_folder("good.jsonl"));
        if (status) fail_msg("%s: %s", good[i], e.text);
        assert_documents(&c.domains[0], 1, (const char *[]){ "a" });
        mu_corpus_close(&c);
    }
    put_text("digits.jsonl", "{\"text\": \"12 \\\" 1e999 \\\\\", \"n\": 7}");
    assert_ok(open_one(&c, in_folder("digits.jsonl")));
    assert_documents(&c.domains[0], 1, (const char *[]){ "12 \" 1e999 \\" });
    mu_corpus_close(&c);
    put_text("mark.txt", "\xef\xbb\xbf\nmarked");
    assert_ok(open_one(&c, in_folder("mark.txt")));
    assert_documents(&c.domains[0], 1, (const char *[]){ "\nmarked" });
    mu_corpus_close(&c);
    put_text("late.txt", "\n \r\n\xef\xbb\xbfmarked \xef\xbb\xbf late");
    assert_ok(open_one(&c, in_folder("late.txt")));
    assert_documents(&c.domains[0], 1, (const char *[]){ "\n \r\nmarked \xef\xbb\xbf late" });
    mu_corpus_close(&c);
    const char *bad[] = { "01", "1.", ".5", "+1", "-", "1e", "1e+", "--1", "1.5.3", "1 2", "0x10", "1e5e5", "NaN", "1-2", "-01" };
    char line[64];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(line, sizeof line, "{\"text\": \"a\", \"n\": %s}", bad[i]);
        put_text("bad.jsonl", line);
        if (open_one(&c, in_folder("bad.jsonl")) != MU_STATUS_DATA) fail_msg("%s is taken for JSON", line);
    }
}

static void test_bad_jsonl(void **state) {
    (void)state;
    const struct { const char *text, *says; } cases[] = {
        { "{\"text\": \"a\"}\n{\"text\": \"b\"\n", "bad.jsonl:2: bad JSON" },
        { "{\"text\": \"a\"}\n\n{\"text\": 5}\n", "bad.jsonl:3: no string named \"text\"" },
        { "{\"txt\": \"a\"}\n", "bad.jsonl:1: no string" },
        { "[\"text\"]\n", "bad.jsonl:1: not a JSON object" },
        { "{\"text\": \"a\", \"text\": \"b\"}\n", "bad.jsonl:1: bad JSON" },
        { "{\"text\": \"a\"} {\"text\": \"b\"}\n", "bad.jsonl:1: bad JSON" },
        { "{\"text\": \"\xff\"}\n", "bad.jsonl:1: bad JSON" },
        { "plain words\n", "bad.jsonl:1: bad JSON" },
        { "\n{\"text\": \"a\\u0000b\"}\n", "bad.jsonl:2: not a text: \"text\" has a NUL character" },
        { "{\"text\": \"a\"}\n\xef\xbb\xbf{\"text\": \"b\"}\n", "bad.jsonl:2: a byte-order mark (U+FEFF) in the middle" },
        { "{\"text\": \"half \\ud83d pair\"}\n", "bad.jsonl:1: bad JSON" },
        { "{\"text\": 12 3456}\n", "bad JSON at byte 13: '}' expected near '3456'" },     /* the text's numbers, not a 0 */
        { "{\"text\": \"a\", -1.5e3: 2}\n", "near '-1.5e3'" },
        { "{\"text\": 0 0}\n", "near '0'" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_bad("bad.jsonl", cases[i].text, strlen(cases[i].text), MU_STATUS_DATA, cases[i].says);
}

static void test_bad_names(void **state) {
    (void)state;
    mu_corpus c;
    put_text("one.txt", "text");
    const char *path = in_folder("one.txt");
    assert_error(open_corpus(&c, 2, (const entry[]){ { "a", path }, { "a", path } }, NULL), MU_STATUS_CONFIG,
                 "domain 'a' appears twice");
    const char *bad[] = { "", "a/b", "..", "a\nb", "a b" };
    for (int i = 0; i < 5; i++)
        assert_error(open_corpus(&c, 1, (const entry[]){ { bad[i], path } }, NULL), MU_STATUS_CONFIG, "name");
    assert_error(open_corpus(&c, 0, NULL, NULL), MU_STATUS_CONFIG, "no domain");
}

static void test_entropy(void **state) {
    (void)state;
    mu_corpus c;
    put_text("four.txt", "abcabca");        /* with the end of document: a 3, b 2, c 2, end 1 of 8 */
    assert_ok(open_one(&c, in_folder("four.txt")));
    double expected = -(3 * log(3 / 8.) + 4 * log(2 / 8.) + log(1 / 8.)) / 8;
    assert_true(fabs(c.domains[0].unigram_entropy - expected) < 1e-12);
    mu_corpus_close(&c);
}

/* Documents of 1 MiB, which are encoded in parts, and small ones: the same for any number of threads, and for a tokenizer
 * whose texts must not be cut. */
static void test_threads(void **state) {
    (void)state;
    enum { LARGE = 1 << 20, SMALL = 3000 };
    char *text = mu_alloc(LARGE, 1);
    for (int i = 0; i < LARGE; i++) text[i] = (char)('!' + i % 89);
    put("threads/b.txt", text, LARGE);
    put("threads/d.txt", text + 5, LARGE - 5);
    FILE *lines = fopen(in_folder("threads/c.jsonl"), "w");
    for (int i = 0; i < SMALL; i++) fprintf(lines, "{\"text\": \"%d%.*s\"}\n", i, i % 500, "01234567890");
    fclose(lines);
    put_text("threads/a.txt", "first");
    mu_tokenizer whole = *bytes;
    whole.cut = NULL;
    char fingerprint[33] = "";
    for (int i = 0; i < 6; i++) {
        mu_corpus c;
        mu_threads_set(1 << i % 3);
        mu_option_domain one = { .domain = "one", .weight = 1 };
        snprintf(one.path, sizeof one.path, "%s", in_folder("threads"));
        assert_ok(mu_corpus_open(&c, &(mu_option_domains){ 1, &one }, "text", i < 3 ? bytes : &whole, 7, cache_bytes, &e));
        assert_int_equal(c.domains[0].n_documents, SMALL + 3);
        assert_int_equal(c.domains[0].n_tokens, c.domains[0].text_bytes + SMALL + 3);
        assert_int_equal(document_end(&c.domains[0], 1), 6 + LARGE + 1);
        assert_int_equal(id_at(&c.domains[0], 6 + LARGE - 1), text[LARGE - 1]);
        if (i) assert_string_equal(c.domains[0].fingerprint, fingerprint);
        snprintf(fingerprint, sizeof fingerprint, "%s", c.domains[0].fingerprint);
        mu_corpus_close(&c);
    }
    mu_threads_set(1);
    free(text);
}

/* ------------------------------------------------------------------ token files */

/* Nothing in the folder has a name that begins so. */
static void assert_no_temporaries(const char *a, const char *b, const char *c) {
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));)
        if (!strncmp(f->d_name, a, strlen(a)) || !strncmp(f->d_name, b, strlen(b)) || !strncmp(f->d_name, c, strlen(c)))
            fail_msg("%s was left", f->d_name);
    closedir(d);
}

static void test_token_file(void **state) {
    (void)state;
    put_text("t1/a.txt", "alpha");
    put_text("t1/b.txt", "beta");
    put_text("t2.txt", "gamma \xf0\x9f\x8d\x80");
    mu_corpus c, again, other;
    assert_ok(open_corpus(&c, 2, (const entry[]){{"x", in_folder("t1")}, {"y", in_folder("t2.txt")}}, NULL));
    char file[64];
    snprintf(file, sizeof file, "%s", in_folder("tokens.h5"));
    char old[33];
    assert_ok(mu_token_file_check(file, old, &e));
    assert_string_equal(old, "");
    assert_ok(mu_corpus_write(&c, bytes, file, &e));
    assert_ok(mu_token_file_check(file, old, &e));      /* a token file may be replaced, with a notice */
    assert_string_equal(old, c.fingerprint);
    assert_ok(mu_corpus_write(&c, bytes, file, &e));
    put_text("precious.h5", "not a token file");
    assert_error(mu_token_file_check(in_folder("precious.h5"), old, &e), MU_STATUS_USAGE, "precious.h5 exists");
    assert_error(mu_corpus_write(&c, bytes, in_folder("precious.h5"), &e), MU_STATUS_USAGE, "precious.h5 exists");
    put_text("dir.h5/note", "mine");            /* a folder is never in the way of a name, and never removed */
    put_text("new.h5.tmp/note", "mine");
    assert_error(mu_token_file_check(in_folder("dir.h5"), old, &e), MU_STATUS_USAGE, "not a token file");
    assert_error(mu_corpus_write(&c, bytes, in_folder("dir.h5"), &e), MU_STATUS_USAGE, "not a token file");
    assert_error(mu_token_file_check(in_folder("none/x.h5"), old, &e), MU_STATUS_IO, "none/x.h5");
    assert_ok(mu_token_file_check(in_folder("new.h5"), old, &e));
    assert_false(mu_file_exists(in_folder("new.h5")));
    assert_ok(mu_corpus_write(&c, bytes, in_folder("new.h5"), &e));
    assert_true(mu_file_exists(in_folder("dir.h5/note")) && mu_file_exists(in_folder("new.h5.tmp/note")));
    assert_no_temporaries("tokens.h5.", "new.h5.tmp-", "dir.h5.");
    assert_ok(open_corpus(&again, 2, (const entry[]){ { "x", file }, { "y", file } }, NULL));
    assert_string_equal(c.fingerprint, again.fingerprint);
    assert_documents(&again.domains[0], 2, (const char *[]){ "alpha", "beta" });
    assert_documents(&again.domains[1], 1, (const char *[]){ "gamma \xf0\x9f\x8d\x80" });
    assert_error(open_corpus(&other, 1, (const entry[]){{"z", file}}, NULL), MU_STATUS_DATA, "/domains/z/");
    mu_corpus_close(&again);

    put_text("t2.txt", "gammA \xf0\x9f\x8d\x80"); /* one letter, one name, one order: other fingerprints */
    assert_ok(open_corpus(&other, 2, (const entry[]){ { "x", file }, { "y", in_folder("t2.txt") } }, NULL));
    assert_string_not_equal(c.fingerprint, other.fingerprint);
    mu_corpus_close(&other);
    assert_ok(open_corpus(&other, 2, (const entry[]){ { "y", file }, { "x", file } }, NULL));
    assert_string_not_equal(c.fingerprint, other.fingerprint);
    mu_corpus_close(&other);
    mu_corpus_close(&c);
}

/* A tokenizer whose ids need more than 16 bits. */
static void wide_encode(const mu_tokenizer *t, const char *text, int64_t n, mu_take_ids *take, void *to) {
    (void)t;
    for (int64_t i = 0; i < n; i++) take(to, &(int32_t){ 1000 * (unsigned char)text[i] }, 1);
}
static mu_tokenizer wide = { .name = "wide", .fingerprint = "of wide", .vocab_size = 300000, .eod = 299999, .encode = wide_encode };

static void test_wide_ids(void **state) {
    (void)state;
    const char *file = in_folder("wide.h5");
    put_text("wide.txt", "A\xff");
    mu_option_domain entry = { .domain = "one", .weight = 1 };
    mu_option_domains list = { 1, &entry };
    snprintf(entry.path, sizeof entry.path, "%s", in_folder("wide.txt"));
    for (int from_file = 0; from_file < 2; from_file++) {
        mu_corpus c;
        char fingerprint[33];
        assert_ok(mu_corpus_open(&c, &list, "text", &wide, 1, CACHE, &e));
        int32_t ids[3];
        mu_domain_ids(&c.domains[0], 0, 3, ids);
        assert_int_equal(c.domains[0].n_tokens, 3);
        assert_memory_equal(ids, ((int32_t[]){ 65000, 255000, 299999 }), sizeof ids);
        mu_hash128_hex(ids, sizeof ids, fingerprint);
        assert_string_equal(c.domains[0].fingerprint, fingerprint);
        if (!from_file) assert_ok(mu_corpus_write(&c, &wide, file, &e));
        mu_corpus_close(&c);
        snprintf(entry.path, sizeof entry.path, "%s", file);
    }
    mu_corpus c;
    mu_tokenizer other = wide;
    assert_error(mu_corpus_open(&c, &list, "text", bytes, 1, CACHE, &e), MU_STATUS_DATA, "tokenizer \"wide\", not \"bytes\"");
    snprintf(other.fingerprint, sizeof other.fingerprint, "another");
    assert_error(mu_corpus_open(&c, &list, "text", &other, 1, CACHE, &e), MU_STATUS_DATA, "fingerprint of wide, not another");
    other = wide, other.vocab_size = 65536;
    assert_error(mu_corpus_open(&c, &list, "text", &other, 1, CACHE, &e), MU_STATUS_DATA, "/domains/one/tokens: expected u16 of one dimension, found i32 [3]");
    other.vocab_size = 299999;
    assert_error(mu_corpus_open(&c, &list, "text", &other, 1, CACHE, &e), MU_STATUS_DATA, "token 2 has id 299999, but the vocabulary has 299999 ids");
}

static jmp_buf fatal_exit;
static mu_status fatal_status;
static char fatal_line[1024];
static void catch_fatal(mu_status status, const char *line) {
    fatal_status = status;
    snprintf(fatal_line, sizeof fatal_line, "%s", line);
    longjmp(fatal_exit, 1);
}

/* A call that no program may make is fatal, with its values. */
#define assert_fatal(call, text) assert_fatal_status(call, MU_STATUS_INTERNAL, text)
#define assert_fatal_status(call, status, text)                                                                \
    do {                                                                                          \
        fatal_line[0] = '\0';                                                                     \
        mu_fatal_handler *old = mu_fatal_set_handler(catch_fatal);                                \
        if (!setjmp(fatal_exit)) (void)!(call);                                                   \
        mu_fatal_set_handler(old);                                                                \
        if (!strstr(fatal_line, text) || fatal_status != (status)) fail_msg(#call ": no \"%s\" in: %s", text, fatal_line);  \
    } while (0)

static void assert_same_reading(const mu_loader *a, const mu_loader *b, int domain, int64_t seq_len) {
    int32_t x[4][32];
    int64_t n = mu_loader_train_sequences(a, domain), val = mu_loader_val_sequences(a, domain);
    assert_int_equal(mu_loader_train_sequences(b, domain), n);
    assert_int_equal(mu_loader_val_sequences(b, domain), val);
    for (int64_t i = 0; i < 1500; i++) {
        int64_t far = i * 7919 % (n + val);
        if (far < n) {
            mu_sample s = { .domain = domain, .sequence = far };
            mu_loader_read(a, &s, x[0], x[1]), mu_loader_read(b, &s, x[2], x[3]);
        } else {
            mu_loader_val_read(a, domain, far - n, x[0], x[1]);
            mu_loader_val_read(b, domain, far - n, x[2], x[3]);
        }
        assert_memory_equal(x[0], x[2], (size_t)seq_len * sizeof(int32_t));
        assert_memory_equal(x[1], x[3], (size_t)seq_len * sizeof(int32_t));
    }
}

/* A corpus is the same when read in pieces through a cache of one block, or of a few. */
static void test_pieces(void **state) {
    (void)state;
    enum { L = 31, LINES = 30000 };
    char *text = mu_alloc(LINES, 64), file[64];
    size_t n = 0;
    for (int i = 0; i < LINES; i++) n += (size_t)sprintf(text + n, "{\"text\": \"%d %.*s\"}\n", i * i, i % 20, "abcdefghijklmnopqrst");
    put("pieces.jsonl", text, n);
    free(text);
    snprintf(file, sizeof file, "%s", in_folder("pieces.h5"));
    const entry texts[] = { { "x", in_folder("pieces.jsonl") }, { "y", in_folder("t1") } }, files[] = { { "x", file }, { "y", file } };
    mu_corpus memory, pieces;
    mu_loader *a, *b;
    put_text("t1/a.txt", "alpha and not so little of it");
    assert_ok(open_corpus(&memory, 2, texts, NULL));
    assert_ok(mu_corpus_write(&memory, bytes, file, &e));
    assert_ok(mu_loader_open(&a, &memory, L, 0.1, MU_VAL_DOCUMENTS_BY_HASH, 1, &e));
    assert_true(memory.domains[0].n_tokens > 8 * 32768);
    const int64_t caches[] = { 0, 200000, CACHE };
    for (int i = 0; i < 3; i++) {
        cache_bytes = caches[i];
        assert_ok(open_corpus(&pieces, 2, files, NULL));
        assert_string_equal(pieces.fingerprint, memory.fingerprint);
        assert_true(pieces.domains[0].unigram_entropy == memory.domains[0].unigram_entropy);
        assert_ok(mu_loader_open(&b, &pieces, L, 0.1, MU_VAL_DOCUMENTS_BY_HASH, 1, &e));
        for (int d = 0; d < 2; d++) assert_same_reading(a, b, d, L);
        assert_ok(mu_corpus_write(&pieces, bytes, in_folder("again.h5"), &e));      /* one token file from another */
        mu_loader_close(b);
        mu_corpus_close(&pieces);
    }
    assert_ok(open_corpus(&pieces, 2, (const entry[]){ { "x", in_folder("again.h5") }, { "y", file } }, NULL));
    assert_string_equal(pieces.fingerprint, memory.fingerprint);
    mu_corpus_close(&pieces);
    mu_loader_close(a);
    mu_corpus_close(&memory);
}

/* A token file may be replaced while it is read, but not overwritten or truncated: HDF5 would read zeros. */
static void test_changed_file(void **state) {
    (void)state;
    mu_corpus c;
    int32_t ids[4];
    put_text("t1/a.txt", "alpha and not so little of it");
    assert_ok(open_corpus(&c, 1, (const entry[]){ { "x", in_folder("t1") } }, NULL));
    assert_ok(mu_corpus_write(&c, bytes, in_folder("changed.h5"), &e));
    mu_corpus_close(&c);
    cache_bytes = 0;
    assert_ok(open_corpus(&c, 1, (const entry[]){ { "x", in_folder("changed.h5") } }, NULL));
    cache_bytes = CACHE;
    mu_domain_document_ends(&c.domains[0], 0, 1, &(int64_t){ 0 });
    mu_domain_ids(&c.domains[0], 0, 4, ids);
    assert_memory_equal(ids, ((int32_t[]){ 'a', 'l', 'p', 'h' }), sizeof ids);
    assert_ok(mu_corpus_write(&c, bytes, in_folder("changed.h5"), &e));     /* another file of the same name */
    mu_domain_ids(&c.domains[0], 1, 1, ids);
    mu_corpus_close(&c);
    cache_bytes = 0;
    assert_ok(open_corpus(&c, 1, (const entry[]){ { "x", in_folder("changed.h5") } }, NULL));
    cache_bytes = CACHE;
    mu_domain_document_ends(&c.domains[0], 0, 1, &(int64_t){ 0 });
    assert_int_equal(truncate(in_folder("changed.h5"), 4000), 0);
    assert_fatal_status((mu_domain_ids(&c.domains[0], 0, 4, ids), 0), MU_STATUS_DATA, "can no longer be read");
    assert_non_null(strstr(fatal_line, "changed.h5 was written to while it was being read"));
    mu_corpus_close(&c);
}

static void test_measure(void **state) {
    (void)state;
    mu_domain_size size;
    put_text("m/a.txt", "0123456789");
    put_text("m/sub/b.jsonl", "{\"text\": \"ab\"}");
    put_text("m/notes.md", "not a text");
    mu_option_domain d = { .domain = "rare-1" };
    const struct { const char *path; int64_t tokens, documents; bool in_file; } cases[] = {
        { in_folder("m"), 24, 2, false }, { in_folder("m/a.txt"), 10, 1, false }, { in_folder("m.h5"), 14, 2, true } };
    mu_corpus c;
    assert_ok(open_corpus(&c, 1, (const entry[]){ { "rare-1", in_folder("m") } }, NULL));
    assert_ok(mu_corpus_write(&c, bytes, in_folder("m.h5"), &e));
    mu_corpus_close(&c);
    for (int i = 0; i < 3; i++) {
        snprintf(d.path, sizeof d.path, "%s", cases[i].path);
        assert_ok(mu_domain_measure(&size, &d, bytes, 7, &e));
        assert_int_equal(size.tokens, cases[i].tokens);
        assert_int_equal(size.documents, cases[i].documents);
        assert_int_equal(size.in_file, cases[i].in_file);
        assert_int_equal(size.bytes, 2 * cases[i].tokens + 8 * (cases[i].documents + 1));
    }
    strcpy(d.path, "synthetic");
    assert_ok(mu_domain_measure(&size, &d, bytes, 7, &e));
    assert_ok(open_corpus(&c, 1, (const entry[]){ { "rare-1", "synthetic" } }, NULL));
    assert_int_equal(size.tokens, c.domains[0].n_tokens);
    assert_int_equal(size.documents, c.domains[0].n_documents);
    mu_corpus_close(&c);
    strcpy(d.path, "nowhere");
    assert_error(mu_domain_measure(&size, &d, bytes, 7, &e), MU_STATUS_NOINPUT, "nowhere");
}

/* A token file by hand, with one thing wrong. */
static void write_tokens(const char *path, const char *tokenizer, const uint16_t *tokens, int64_t n,
                         const int64_t *offsets, int64_t n_offsets) {
    mu_store *s;
    int64_t text_bytes = 4, one = 1;
    assert_ok(mu_store_create(&s, path, &e));
    assert_ok(mu_store_write_text(s, "tokenizer", tokenizer, &e));
    assert_ok(mu_store_write(s, "domains/one/tokens", MU_STORE_U16, 1, &n, tokens, &e));
    assert_ok(mu_store_write(s, "domains/one/document_offsets", MU_STORE_I64, 1, &n_offsets, offsets, &e));
    assert_ok(mu_store_write(s, "domains/one/text_bytes", MU_STORE_I64, 1, &one, &text_bytes, &e));
    assert_ok(mu_store_close(s, &e));
}

static void test_bad_token_files(void **state) {
    (void)state;
    mu_corpus c;
    const char *file = in_folder("bad.h5");
    const uint16_t good[] = { 1, 2, 256, 3, 4, 256 }, big[] = { 1, 2, 256, 3, 257, 256 };
    write_tokens(file, "bytes", good, 6, (int64_t[]){ 0, 3, 6 }, 3);
    assert_ok(open_one(&c, file));
    assert_int_equal(c.domains[0].n_documents, 2);
    assert_int_equal(c.domains[0].text_bytes, 4);
    mu_corpus_close(&c);
    write_tokens(file, "words", good, 6, (int64_t[]){ 0, 3, 6 }, 3);
    assert_error(open_one(&c, file), MU_STATUS_DATA, "tokenizer \"words\", not \"bytes\"");
    write_tokens(file, "bytes", big, 6, (int64_t[]){ 0, 3, 6 }, 3);
    assert_error(open_one(&c, file), MU_STATUS_DATA, "token 4 has id 257, but the vocabulary has 257 ids");
    const int64_t bad[][3] = {{1, 3, 6}, {0, 2, 6}, {0, 3, 5}, {0, 7, 6}, {0, -1, 6}, {0, 6, 6}};
    for (int i = 0; i < 6; i++) {
        write_tokens(file, "bytes", good, 6, bad[i], 3);
        assert_error(open_one(&c, file), MU_STATUS_DATA, "document_offsets");
    }
    write_tokens(file, "bytes", good, 6, bad[0], 0);
    assert_error(open_one(&c, file), MU_STATUS_DATA, "document_offsets");
    assert_error(open_one(&c, in_folder("absent.h5")), MU_STATUS_NOINPUT, "absent.h5");
    put_text("junk.h5", "junk");
    assert_error(open_one(&c, in_folder("junk.h5")), MU_STATUS_DATA, "junk.h5");
}

/* ------------------------------------------------------------------ the generator */

enum { N_SYNTHETIC = 19 };
static const entry synthetic[N_SYNTHETIC] = {
    { "common-1", "synthetic" },  { "common-2", "synthetic" },  { "common-3", "synthetic" },
    { "common-4", "synthetic" },  { "common-5", "synthetic" },  { "common-6", "synthetic" },
    { "common-7", "synthetic" },  { "common-8", "synthetic" },  { "common-9", "synthetic" },
    { "common-10", "synthetic" }, { "common-11", "synthetic" }, { "common-12", "synthetic" },
    { "common-13", "synthetic" }, { "rare-1", "synthetic" },    { "rare-2", "synthetic" },
    { "rare-3", "synthetic" },    { "decoy", "synthetic" },     { "near-copy", "synthetic" },
    { "something", "synthetic" },
};

/* The most frequent successor of each byte in a domain, and its frequency; counts symbol pairs only. */
static double learn_facts(const mu_domain *d, int tag, int best[128]) {
    static int64_t pairs[128][128];
    memset(pairs, 0, sizeof pairs);
    int64_t total = 0, right = 0;
    for (int64_t i = 0; i < d->n_documents; i++)
        for (int64_t t = document_start(d, i) + tag; t + 2 < document_end(d, i); t++)
            pairs[id_at(d, t)][id_at(d, t + 1)]++, total++;
    for (int a = 0; a < 128; a++) {
        best[a] = -1;
        for (int b = 0; b < 128; b++)
            if (pairs[a][b] > (best[a] < 0 ? 0 : pairs[a][best[a]])) best[a] = b;
        if (best[a] >= 0) right += pairs[a][best[a]];
    }
    return (double)right / (double)total;
}

static int count_equal(const int a[128], const int b[128]) {
    int n = 0;
    for (int i = 0; i < 128; i++) n += a[i] >= 0 && a[i] == b[i];
    return n;
}

static void test_synthetic(void **state) {
    (void)state;
    mu_corpus c;
    int best[N_SYNTHETIC][128];
    int64_t known = 0;
    assert_ok(open_corpus(&c, N_SYNTHETIC, synthetic, NULL));
    assert_true(c.synthetic);
    for (int i = 0; i < N_SYNTHETIC; i++) {
        const mu_domain *d = &c.domains[i];
        bool decoy = !strcmp(d->name, "decoy"), last = i == N_SYNTHETIC - 1;
        double right = learn_facts(d, last ? 4 : 1, best[i]);
        if (decoy) assert_true(right < 0.1); /* 3000 draws: the luckiest successor of each symbol */
        else assert_true(fabs(right - 0.9016) < (d->n_tokens > 100000 ? 0.005 : 0.025));
        uint8_t images[128] = { 0 };
        int n_symbols = 0;
        for (int a = 0; a < 128; a++)
            if (best[i][a] >= 0) n_symbols++, images[best[i][a]]++;
        assert_int_equal(n_symbols, 64);
        for (int a = 0; !decoy && a < 128; a++) assert_true(images[a] <= 1);    /* a permutation */
        for (int64_t k = 0; k < d->n_documents; k++) assert_int_equal(document_end(d, k), 256 * (k + 1));
        if (!last) known += d->n_tokens;
    }
    for (int i = 0; i < 16; i++)                                    /* facts are a domain's own ... */
        for (int j = 0; j < i; j++) assert_true(count_equal(best[i], best[j]) < 10);
    assert_int_equal(count_equal(best[0], best[17]), 64 - 8);       /* ... but the near-copy's */
    assert_in_range(known, 2950000, 3050000);
    assert_in_range(c.domains[N_SYNTHETIC - 1].n_tokens, 195000, 205000);
    for (int i = 13; i < 18; i++) {
        double share = (double)c.domains[i].n_tokens / (double)known;
        assert_true(share > 0.0009 && share < 0.0011);
    }
    for (int k = 2; k <= 13; k++) {                                 /* Zipf */
        double ratio = (double)c.domains[0].n_tokens / (double)c.domains[k - 1].n_tokens;
        assert_true(fabs(ratio / k - 1) < 0.01);
    }
    for (int i = 0; i < N_SYNTHETIC; i++)                           /* tags differ and are no symbols */
        for (int j = 0; j < i; j++) assert_int_not_equal(id_at(&c.domains[i], 0), id_at(&c.domains[j], 0));
    for (int i = 0; i < N_SYNTHETIC; i++) assert_true(best[0][id_at(&c.domains[i], 0)] < 0);
    mu_corpus_close(&c);
}

static void test_synthetic_seed(void **state) {
    (void)state;
    char first[33];
    mu_corpus c;
    mu_option_domain entry = { .domain = "rare-1", .path = "synthetic", .weight = 1 };
    for (int i = 0; i < 3; i++) {
        assert_ok(mu_corpus_open(&c, &(mu_option_domains){ 1, &entry }, "text", bytes, i < 2 ? 7 : 8, CACHE, &e));
        if (i == 0) snprintf(first, sizeof first, "%s", c.fingerprint);
        else assert_int_equal(strcmp(first, c.fingerprint) == 0, i == 1);
        mu_corpus_close(&c);
    }
}

/* The tokens never change: experiments cite this generator, so a change must be noticed. */
static void test_synthetic_frozen(void **state) {
    (void)state;
    mu_corpus c;
    assert_ok(open_corpus(&c, 2, (const entry[]){{"rare-2", "synthetic"}, {"near-copy", "synthetic"}}, NULL));
    assert_string_equal(c.fingerprint, "5dc7d74e232e0fc08c029878ce2c3076");
    mu_corpus_close(&c);
}

/* ------------------------------------------------------------------ the loader */

enum { SEQ = 10 };

/* Domains of 1000, 3000 and 205 tokens; token i of domain d is a letter told by both. */
static void open_three(mu_corpus *c, const double *weights) {
    static const int sizes[3] = { 1000, 3000, 205 };
    static const char *const names[3] = { "a.txt", "b.txt", "c.txt" };
    for (int d = 0; d < 3; d++) {
        char text[3000];
        for (int i = 0; i < sizes[d] - 1; i++) text[i] = (char)(33 + (i * 7 + i / 11 + d * 31) % 90);
        put(names[d], text, (size_t)sizes[d] - 1);
    }
    assert_ok(open_corpus(c, 3, (const entry[]){ { "a", in_folder("a.txt") }, { "b", in_folder("b.txt") },
                                                     { "c", in_folder("c.txt") } }, weights));
}

static const mu_option_domains three = { 3, (mu_option_domain[]){ { .domain = "a" }, { .domain = "b" }, { .domain = "c" } } };

static mu_loader *open_split(const mu_corpus *c, int64_t seq_len, double val_fraction, mu_val_split split) {
    mu_loader *l;
    assert_ok(mu_loader_open(&l, c, seq_len, val_fraction, split, 1, &e));
    return l;
}

static mu_loader *open_loader(const mu_corpus *c, double val_fraction, uint64_t seed) {
    mu_loader *l;
    assert_ok(mu_loader_open(&l, c, SEQ, val_fraction, MU_VAL_DOCUMENTS_BY_HASH, seed, &e));
    return l;
}

static void test_split(void **state) {
    (void)state;
    mu_corpus c;
    open_three(&c, NULL);
    const struct { double fraction; mu_val_split split; int64_t val[3]; } cases[] = {
        { 0.1, MU_VAL_DOCUMENTS_BY_HASH, { 9, 29, 2 } },        /* of 99, 299 and 20 sequences, each of one document */
        { 0.02, MU_VAL_DOCUMENTS_BY_HASH, { 1, 5, 1 } },        { 0.9, MU_VAL_DOCUMENTS_BY_HASH, { 89, 269, 18 } },
        { 0, MU_VAL_DOCUMENTS_BY_HASH, { 0, 0, 0 } },           { 0, MU_VAL_TAIL, { 0, 0, 0 } },
        { 0.1, MU_VAL_TAIL, { 16, 30, 16 } },           { 0.9, MU_VAL_TAIL, { 89, 269, 18 } },
    };
    const int64_t n[3] = { 99, 299, 20 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mu_loader *l = open_split(&c, SEQ, cases[i].fraction, cases[i].split);
        for (int d = 0; d < 3; d++) {
            assert_int_equal(mu_loader_val_sequences(l, d), cases[i].val[d]);
            assert_int_equal(mu_loader_train_sequences(l, d), n[d] - cases[i].val[d]);
            assert_true(fabs(mu_loader_share(l, d) - (double)c.domains[d].n_tokens / 4205.) < 1e-12);
        }
        mu_loader_close(l);
    }
    mu_corpus_close(&c);
}

/* The split of older checkpoints: training and validation sequences are each window once, in order. */
static void test_tail(void **state) {
    (void)state;
    mu_corpus c;
    open_three(&c, NULL);
    mu_loader *l = open_split(&c, SEQ, 0.1, MU_VAL_TAIL);
    int32_t tokens[SEQ], targets[SEQ];
    for (int d = 0; d < 3; d++) {
        int64_t n_train = mu_loader_train_sequences(l, d), n = n_train + mu_loader_val_sequences(l, d);
        for (int64_t i = 0; i < n; i++) {
            if (i < n_train) mu_loader_read(l, &(mu_sample){ .domain = d, .sequence = i }, tokens, targets);
            else mu_loader_val_read(l, d, i - n_train, tokens, targets);
            for (int t = 0; t < SEQ; t++) {
                assert_int_equal(tokens[t], id_at(&c.domains[d], i * SEQ + t));
                assert_int_equal(targets[t], id_at(&c.domains[d], i * SEQ + t + 1));
            }
        }
    }
    mu_loader_close(l);
    mu_corpus_close(&c);
}

/* A domain whose token i is i, so that tokens show their position. */
enum { MOST_TOKENS = 60000 };
typedef struct { mu_corpus corpus; mu_domain domain; } numbered;

static void numbered_init(numbered *n) {
    mu_domain_close(&n->domain);
    n->domain = (mu_domain){ .name = "n", .weight = 1, .tokens = mu_column_new(MU_STORE_U16), .document_offsets = mu_column_new(MU_STORE_I64) };
    n->corpus = (mu_corpus){ .n_domains = 1, .domains = &n->domain };
    static int32_t ids[MOST_TOKENS];
    for (int32_t i = 0; i < MOST_TOKENS; i++) ids[i] = i;
    mu_column_append_ids(n->domain.tokens, ids, MOST_TOKENS);
    mu_column_append_offset(n->domain.document_offsets, 0);
}

static void numbered_add(numbered *n, int64_t tokens) {
    mu_domain *d = &n->domain;
    d->n_documents++;
    mu_column_append_offset(d->document_offsets, d->n_tokens += tokens);
    assert_true(d->n_tokens <= MOST_TOKENS && d->n_documents < MOST_TOKENS);
}

/* The last document is longer by a token. */
static void numbered_grow(numbered *n) {
    mu_column *offsets = mu_column_new(MU_STORE_I64);
    mu_domain *d = &n->domain;
    mu_column_append_offset(offsets, 0);
    for (int64_t i = 0; i + 1 < d->n_documents; i++) mu_column_append_offset(offsets, document_end(d, i));
    mu_column_append_offset(offsets, ++d->n_tokens);
    mu_column_free(d->document_offsets);
    d->document_offsets = offsets;
}

static void numbered_free(numbered *n) {
    mu_domain_close(&n->domain);
    free(n);
}

/* Lengths of documents: all equal, or random. */
enum { ONE, SHORT, SEQUENCES, LONG, MIXED, HEAVY, GROWING, N_SHAPES };
static int64_t document_length(int shape, int64_t i, int64_t seq_len) {
    mu_rng r = { .seed = (uint64_t)shape, .purpose = MU_RNG_SYNTHETIC };
    double u = mu_rng_uniform(&r, (uint64_t)i);
    switch (shape) {
    case SHORT:     return 2;
    case SEQUENCES: return seq_len + 1;
    case LONG:      return 25 * seq_len + 3;
    case MIXED:     return 1 + (int64_t)(u * 4 * (double)seq_len);
    case HEAVY:     return 1 + (int64_t)(0.3 * (double)seq_len / (1 - 0.999 * u));
    case GROWING:   return 1 + i / 3;
    default:        return 1;
    }
}

static const double fractions[] = { 0.001, 0.02, 0.05, 0.1, 0.25, 0.5, 0.9 };
enum { N_FRACTIONS = sizeof fractions / sizeof *fractions };

/* Of n sequences, how many are for validation. */
static int64_t promised(int64_t n, double fraction) {
    int64_t share = (int64_t)(fraction * (double)n);
    return share < 1 ? n >= 10 : share;
}

/* Both counts are exactly as promised; gives those to train on. */
static int64_t check_counts(const mu_corpus *c, int64_t L, double fraction) {
    int64_t n = (c->domains[0].n_tokens - 1) / L;
    mu_loader *l = open_split(c, L, fraction, MU_VAL_DOCUMENTS_BY_HASH);
    int64_t train = mu_loader_train_sequences(l, 0), val = mu_loader_val_sequences(l, 0);
    if (train + val != n || val != promised(n, fraction) || train < 1)
        fail_msg("fraction %g: %lld sequences are %lld + %lld", fraction, (long long)n, (long long)train, (long long)val);
    mu_loader_close(l);
    return train;
}

/* Documents added one by one, or one token at a time, up to 600 sequences and more: those to train on never become fewer. */
static void test_split_grows(void **state) {
    (void)state;
    enum { L = 4 };
    numbered *n = mu_alloc(1, sizeof *n);
    for (int shape = 0; shape < N_SHAPES; shape++)
        for (int f = 0; f < N_FRACTIONS; f++) {
            numbered_init(n);
            numbered_add(n, L + 1);
            for (int64_t i = 0, before = 0, train; n->domain.n_tokens < 600 * L; i++, before = train) {
                if (shape == ONE) numbered_grow(n);
                else numbered_add(n, document_length(shape, i, L));
                train = check_counts(&n->corpus, L, fractions[f]);
                assert_true(train >= before);
            }
        }
    numbered_free(n);
}

/* Some documents, of which number `extra` came in later; a token tells its document. */
enum { MOST_DOCUMENTS = 500 };
/* How many; the extra one's place and length (0: not there); how many of its first tokens a document has from a header. */
typedef struct { int64_t n, at, extra, header; } documents;
static void make_documents(mu_corpus *c, mu_domain *d, int shape, int64_t L, documents of) {
    *d = (mu_domain){ .name = "d", .weight = 1, .tokens = mu_column_new(MU_STORE_I32), .document_offsets = mu_column_new(MU_STORE_I64) };
    *c = (mu_corpus){ .n_domains = 1, .domains = d };
    mu_column_append_offset(d->document_offsets, 0);
    for (int64_t i = 0; i <= of.n; i++)
        for (int turn = i == of.at ? 0 : 1; turn < (i < of.n ? 2 : 1); turn++) {
            int64_t length = turn ? document_length(shape, i, L) : of.extra;
            const int32_t header = MOST_DOCUMENTS + 1, id = turn ? (int32_t)i : MOST_DOCUMENTS;
            for (int64_t t = 0; t < length; t++) mu_column_append_ids(d->tokens, t < of.header ? &header : &id, 1);
            if (length) mu_column_append_offset(d->document_offsets, mu_column_length(d->tokens)), d->n_documents++;
        }
    d->n_tokens = mu_column_length(d->tokens);
}

/* part[i] of a document: 1 when a target of it is for training, 2 for validation. */
static void find_parts(const mu_corpus *c, int64_t L, double fraction, char part[MOST_DOCUMENTS + 2]) {
    int32_t x[2][32];
    mu_loader *l = open_split(c, L, fraction, MU_VAL_DOCUMENTS_BY_HASH);
    int64_t n_train = mu_loader_train_sequences(l, 0), n = n_train + mu_loader_val_sequences(l, 0);
    memset(part, 0, MOST_DOCUMENTS + 2);
    for (int64_t i = 0; i < n; i++) {
        if (i < n_train) mu_loader_read(l, &(mu_sample){ .sequence = i }, x[0], x[1]);
        else mu_loader_val_read(l, 0, i - n_train, x[0], x[1]);
        for (int64_t t = 0; t < L; t++) part[x[1][t]] |= i < n_train ? 1 : 2;
    }
    mu_loader_close(l);
}

/* A document comes in at the beginning, in the middle or at the end: never less to train on, and of the documents that were
 * validation alone all but a few still are. */
static void test_split_inserts(void **state) {
    (void)state;
    enum { L = 4 };
    static char before[MOST_DOCUMENTS + 2], after[MOST_DOCUMENTS + 2];
    static const int64_t sizes[] = { 2, 9, 40, MOST_DOCUMENTS }, extras[] = { 1, L + 1, 9 * L };
    mu_corpus c;
    mu_domain d;
    for (int shape = SHORT; shape < N_SHAPES; shape++)
        for (int f = 0; f < N_FRACTIONS; f++)
            for (int size = 0; size < 4; size++) {
                int64_t n = sizes[size];
                make_documents(&c, &d, shape, L, (documents){ .n = n });
                bool enough = d.n_tokens > L;
                int64_t train = enough ? check_counts(&c, L, fractions[f]) : 0;
                if (enough) find_parts(&c, L, fractions[f], before);
                mu_domain_close(&d);
                for (int i = 0; i < 9; i++) {
                    make_documents(&c, &d, shape, L, (documents){ n, i / 3 * n / 2, extras[i % 3], 0 });
                    if (d.n_tokens > L) assert_true(check_counts(&c, L, fractions[f]) >= train);
                    if (enough) find_parts(&c, L, fractions[f], after);
                    int whole = 0, lost = 0;
                    for (int64_t k = 0; k < n && enough; k++) whole += before[k] == 2, lost += before[k] == 2 && after[k] != 2;
                    if (lost > 8) fail_msg("shape %d, fraction %g, %d documents: %d of %d lost", shape, fractions[f], (int)n, lost, whole);
                    mu_domain_close(&d);
                }
            }
}

/* Even if all documents begin alike, those for validation are spread over the whole domain. */
static void test_split_header(void **state) {
    (void)state;
    enum { L = 8, N = MOST_DOCUMENTS };
    char part[N + 2];
    int quarters[4] = { 0 };
    mu_corpus c;
    mu_domain d;
    make_documents(&c, &d, MIXED, L, (documents){ .n = N, .header = L });
    find_parts(&c, L, 0.1, part);
    for (int i = 0; i < N; i++) quarters[4 * i / N] += part[i] == 2;
    for (int i = 0; i < 4; i++) assert_in_range(quarters[i], 5, 40);
    mu_domain_close(&d);
}

/* The split of older checkpoints, which is kept to the bit: all that is read of it, in order. */
static void test_documents_frozen(void **state) {
    (void)state;
    enum { L = 8 };
    char hex[33];
    int32_t x[2][L];
    numbered *n = mu_alloc(1, sizeof *n);
    mu_hash *hash = mu_hash_new();
    for (int f = 0; f < N_FRACTIONS; f++)
        for (int shape = 0; shape < N_SHAPES; shape++) {
            numbered_init(n);
            if (shape == ONE) numbered_add(n, 400 * L);
            for (int64_t i = 0; n->domain.n_tokens < 400 * L; i++) numbered_add(n, document_length(shape, i, L));
            mu_loader *l = open_split(&n->corpus, L, fractions[f], MU_VAL_DOCUMENTS);
            int64_t counts[] = { mu_loader_train_sequences(l, 0), mu_loader_val_sequences(l, 0) };
            mu_hash_add(hash, counts, sizeof counts);
            for (int64_t i = 0; i < counts[0] + counts[1]; i++) {
                if (i < counts[0]) mu_loader_read(l, &(mu_sample){ .sequence = i }, x[0], x[1]);
                else mu_loader_val_read(l, 0, i - counts[0], x[0], x[1]);
                mu_hash_add(hash, x, sizeof x);
            }
            mu_loader_close(l);
        }
    mu_hash_finish(hash, hex);
    assert_string_equal(hex, "3f522b879347336e10385beb86732932");
    numbered_free(n);
}

static int64_t document_of(const numbered *n, int64_t token) {
    int64_t i = 0;
    while (document_end(&n->domain, i) <= token) i++;
    return i;
}

/* No target is in two sequences. `whole`: nine of ten targets for validation are of documents that are all for it.
 * `spread`: the first few validation sequences are from all over the domain. */
static void check_parts(const numbered *n, int64_t L, double fraction, bool whole, bool spread) {
    enum { FEW = 8 };
    char *used = mu_alloc(MOST_TOKENS, 1), *part = mu_alloc((size_t)n->domain.n_documents, 1);
    int32_t tokens[64], targets[64];
    mu_loader *l = open_split(&n->corpus, L, fraction, MU_VAL_DOCUMENTS_BY_HASH);
    int64_t n_train = mu_loader_train_sequences(l, 0), n_val = mu_loader_val_sequences(l, 0);
    int quarters = 0, inner = 0;
    for (int64_t i = 0; i < n_train + n_val; i++) {
        bool val = i >= n_train;
        if (val) mu_loader_val_read(l, 0, i - n_train, tokens, targets);
        else mu_loader_read(l, &(mu_sample){ .sequence = i }, tokens, targets);
        for (int64_t t = 0; t < L; t++) {
            if (t) assert_int_equal(tokens[t], targets[t - 1]);
            if (targets[t] != tokens[t] + 1) {      /* only from the end of one document to the start of another */
                assert_int_equal(document_start(&n->domain, document_of(n, targets[t])), targets[t]);
                assert_int_equal(document_end(&n->domain, document_of(n, tokens[t])), tokens[t] + 1);
            } else inner++;
            assert_false(used[targets[t]]);
            used[targets[t]] = val ? 2 : 1;
            part[document_of(n, targets[t])] |= val ? 2 : 1;
        }
        if (val && i - n_train < FEW) quarters |= 1 << (4 * (int64_t)tokens[0] / n->domain.n_tokens);
    }
    int64_t together = 0;
    for (int64_t i = 0; i < n->domain.n_tokens; i++) together += used[i] == 2 && part[document_of(n, i)] == 2;
    if (whole && (double)together < 0.9 * (double)(n_val * L))
        fail_msg("fraction %g: %lld targets of whole documents, of %lld for validation", fraction, (long long)together, (long long)(n_val * L));
    assert_true(inner > 0);
    if (spread && n_val >= FEW) assert_int_equal(quarters, 15);
    mu_loader_close(l);
    free(used);
    free(part);
}

static void test_parts(void **state) {
    (void)state;
    enum { L = 8 };
    numbered *n = mu_alloc(1, sizeof *n);
    for (int f = 0; f < N_FRACTIONS; f++)
        for (int shape = 0; shape < N_SHAPES; shape++) {
            numbered_init(n);
            if (shape == ONE) numbered_add(n, 400 * L);
            for (int64_t i = 0; n->domain.n_tokens < 400 * L; i++) numbered_add(n, document_length(shape, i, L));
            check_parts(n, L, fractions[f], fractions[f] >= 0.1 && (shape == SHORT || shape == MIXED),
                        shape == ONE || (fractions[f] >= 0.1 && (shape == SHORT || shape == SEQUENCES)));
        }
    numbered_free(n);
}

enum { N_SAMPLES = 3000 };

static void draw(mu_loader *l, int n, const int *batches, mu_sample *samples) {
    for (int done = 0, b = 0; done < n; b++) {
        int size = batches[b % 4] < n - done ? batches[b % 4] : n - done;
        mu_loader_next(l, size, samples + done);
        done += size;
    }
}

static void assert_same_samples(const mu_sample *a, const mu_sample *b, int n) {
    for (int i = 0; i < n; i++)
        if (a[i].domain != b[i].domain || a[i].sequence != b[i].sequence ||
            a[i].global_sample != b[i].global_sample)
            fail_msg("sample %d differs", i);
}

static void test_order(void **state) {
    (void)state;
    mu_corpus c;
    open_three(&c, NULL);
    static mu_sample whole[N_SAMPLES], parts[N_SAMPLES], other[N_SAMPLES];
    mu_loader *l = open_loader(&c, 0.1, 1);
    mu_loader_next(l, N_SAMPLES, whole);
    mu_loader_close(l);
    l = open_loader(&c, 0.1, 1);
    draw(l, N_SAMPLES, (const int[4]){ 1, 7, 64, 200 }, parts);
    mu_loader_close(l);
    assert_same_samples(whole, parts, N_SAMPLES);
    for (int i = 0; i < N_SAMPLES; i++) assert_int_equal(whole[i].global_sample, i);

    l = open_loader(&c, 0.1, 2);
    mu_loader_next(l, N_SAMPLES, other);
    mu_loader_close(l);
    int equal = 0;
    for (int i = 0; i < N_SAMPLES; i++)
        equal += whole[i].domain == other[i].domain && whole[i].sequence == other[i].sequence;
    assert_in_range(equal, 0, 100);             /* another seed: another order */
    mu_corpus_close(&c);
}

/* The computed order is a permutation of any length, without a trace of the places' own order, and another one for each epoch. */
static void test_computed_order(void **state) {
    (void)state;
    enum { MOST = 100003 };
    static int64_t at[MOST];
    static bool seen[MOST];
    for (int64_t n = 1; n <= MOST; n += n < 70 ? 1 : n < 4094 ? 447 : n < 4097 ? 1 : 47953) {
        mu_rng key = { .seed = 7, .step = (uint32_t)n, .sample = 3, .purpose = MU_RNG_DATA_ORDER };
        int64_t next = 0, same = 0, fixed = 0;
        double moved = 0;
        memset(seen, 0, sizeof seen);
        for (int64_t i = 0; i < n; i++) {
            at[i] = mu_order_compute(&key, n, i);
            assert_in_range(at[i], 0, n - 1);
            assert_false(seen[at[i]]);
            seen[at[i]] = true;
            next += i > 0 && at[i] == at[i - 1] + 1, fixed += at[i] == i, moved += fabs((double)(at[i] - i)) / (double)n;
        }
        key.step++;
        for (int64_t i = 0; i < n; i++) same += at[i] == mu_order_compute(&key, n, i);
        if (n >= 70 && (next > 9 || same > 9 || fixed > 9)) fail_msg("%lld places: %lld, %lld, %lld", (long long)n, (long long)next, (long long)same, (long long)fixed);
        if (n > 4000 && fabs(moved / (double)n - 1. / 3) > 0.015) fail_msg("%lld places: moved by %g", (long long)n, moved / (double)n);    /* uniform: 1/3 +- 0.004 */
    }
}

/* Id i is i modulo 256. */
static mu_status count_up(void *source, int64_t first, int64_t n, int32_t *out, mu_error *error) {
    (void)source, (void)error;
    for (int64_t i = 0; i < n; i++) out[i] = (int32_t)((first + i) % 256);
    return MU_STATUS_OK;
}
static void close_nothing(void *source) { (void)source; }

static int by_number(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* 2^31 sequences in no memory to speak of; an older run's order of more than 2^20 is still made in memory. */
static void test_large_order(void **state) {
    (void)state;
    enum { L = 3, N = 20000 };
    const int64_t lengths[] = { ((int64_t)L << 31) + 1, ((int64_t)L << 20) + ((int64_t)L << 16) };
    static mu_sample samples[N], older[N];
    static int64_t drawn[N];
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    for (int k = 0; k < 2; k++) {
        int source, equal = 0;
        mu_domain d = { .name = "large", .weight = 1, .n_tokens = lengths[k], .n_documents = 1 };
        mu_corpus c = { .n_domains = 1, .domains = &d, .cache = mu_cache_new(1 << 20) };
        d.tokens = mu_column_from(MU_STORE_U16, d.n_tokens, &source, count_up, close_nothing, c.cache, 1 << 15);
        d.document_offsets = mu_column_new(MU_STORE_I64);
        mu_column_append_offset(d.document_offsets, 0);
        mu_column_append_offset(d.document_offsets, d.n_tokens);
        mu_loader *l = NULL;
        assert_ok(mu_loader_open(&l, &c, L, 0.02, MU_VAL_DOCUMENTS_BY_HASH, 1, &e));
        int64_t n = (d.n_tokens - 1) / L, val = (int64_t)(0.02 * (double)n);
        assert_int_equal(mu_loader_train_sequences(l, 0), n - val);
        assert_int_equal(mu_loader_val_sequences(l, 0), val);
        mu_loader_next(l, N, samples);
        for (int i = 0; i < N; i++) {
            int32_t in[L], out[L];
            drawn[i] = samples[i].sequence;
            if (i % 50) continue;
            mu_loader_read(l, &samples[i], in, out);
            for (int t = 0; t < L; t++) assert_true(out[t] == (in[t] + 1) % 256);
        }
        qsort(drawn, N, sizeof *drawn, by_number);
        for (int i = 1; i < N; i++) assert_true(drawn[i] > drawn[i - 1]);
        for (int i = 0; i < N; i++)             /* spread like uniform numbers: within 5 standard deviations */
            assert_true(fabs((double)drawn[i] / (double)(n - val) - (i + 0.5) / N) < 5 * 0.5 / sqrt(N));
        mu_loader_close(l);
        if (k == 0) getrusage(RUSAGE_SELF, &after);
        assert_ok(mu_loader_open(&l, &c, L, 0.02, MU_VAL_DOCUMENTS_BY_HASH, 1, &e));
        assert_false(mu_loader_is_order_in_memory(l));
        if (k == 1) {
            assert_ok(mu_loader_order_in_memory(l, &e));
            assert_true(mu_loader_is_order_in_memory(l));
            mu_loader_next(l, N, older);
            for (int i = 0; i < N; i++) equal += older[i].sequence == samples[i].sequence;
            assert_in_range(equal, 0, 5);
        }
        mu_loader_close(l);
        mu_column_free(d.tokens);
        mu_column_free(d.document_offsets);
        mu_cache_free(c.cache);
    }
    assert_in_range(after.ru_maxrss - before.ru_maxrss, 0, 16 << 10);  /* KiB */
}

/* In each epoch of a domain every training sequence occurs once, and the order differs between epochs. */
static void test_epochs(void **state) {
    (void)state;
    mu_corpus c;
    open_three(&c, NULL);
    static mu_sample samples[N_SAMPLES];
    mu_loader *l = open_loader(&c, 0, 1);
    mu_loader_next(l, N_SAMPLES, samples);
    for (int d = 0; d < 3; d++) {
        int64_t n_train = mu_loader_train_sequences(l, d), seen = 0, epochs = 0, moved = 0;
        int *count = mu_alloc((size_t)n_train, sizeof *count);
        int64_t *first = mu_alloc((size_t)n_train, sizeof *first);
        for (int i = 0; i < N_SAMPLES; i++) {
            if (samples[i].domain != d) continue;
            assert_in_range(samples[i].sequence, 0, n_train - 1);
            if (seen < n_train) first[seen] = samples[i].sequence;
            else moved += first[seen % n_train] != samples[i].sequence;
            count[samples[i].sequence]++;
            if (++seen % n_train) continue;
            epochs++;
            for (int64_t k = 0; k < n_train; k++) assert_int_equal(count[k], epochs);
        }
        assert_true(epochs >= 5);
        assert_true(moved > (seen - n_train) * 3 / 4);
        int in_place = 0;
        for (int64_t k = 0; k < n_train; k++) in_place += first[k] == k;
        assert_in_range(in_place, 0, 5);        /* a shuffle leaves about one in its place */
        free(count);
        free(first);
    }
    mu_loader_close(l);
    mu_corpus_close(&c);
}

static void test_shares(void **state) {
    (void)state;
    enum { N = 100000 };
    mu_corpus c;
    open_three(&c, (double[]){ 3, 0.5, 0 });
    mu_loader *l = open_loader(&c, 0.1, 1);
    const double expected[3] = { 3000. / 4500, 1500. / 4500, 0 };
    int64_t count[3] = { 0 };
    mu_sample *samples = mu_alloc(N, sizeof *samples);
    mu_loader_next(l, N, samples);
    for (int i = 0; i < N; i++) count[samples[i].domain]++;
    for (int d = 0; d < 3; d++) {
        double p = expected[d], four_sd = 4 * sqrt(p * (1 - p) / N);
        assert_true(fabs(mu_loader_share(l, d) - p) < 1e-12);
        assert_true(fabs((double)count[d] / N - p) <= four_sd);
    }
    free(samples);
    mu_loader_close(l);
    mu_corpus_close(&c);
}

/* Stopped anywhere, also in the middle of an epoch, and taken up by a new loader or by one that is
 * elsewhere: the samples continue as without interruption. */
static void test_state(void **state) {
    (void)state;
    mu_corpus c;
    open_three(&c, NULL);
    static mu_sample whole[N_SAMPLES], rest[N_SAMPLES];
    mu_loader *l = open_loader(&c, 0.1, 1), *again;
    mu_loader_next(l, N_SAMPLES, whole);
    for (int at = 0; at < N_SAMPLES; at += 271) {
        int64_t saved[4];
        mu_loader *before = open_loader(&c, 0.1, 1);
        assert_int_equal(mu_loader_state_size(before), 4);
        mu_loader_next(before, at, rest);
        mu_loader_state_get(before, saved);
        assert_int_equal(saved[3], at);
        mu_loader_close(before);
        again = open_loader(&c, 0.1, 1);
        assert_ok(mu_loader_state_set(again, &three, saved, &e));
        mu_loader_next(again, N_SAMPLES - at, rest);
        assert_same_samples(whole + at, rest, N_SAMPLES - at);
        mu_loader_close(again);
        assert_ok(mu_loader_state_set(l, &three, saved, &e));      /* back from the end */
        mu_loader_next(l, N_SAMPLES - at, rest);
        assert_same_samples(whole + at, rest, N_SAMPLES - at);
    }
    mu_loader_close(l);
    mu_corpus_close(&c);
}

/* The sequences that the domain of this name gives, in order; at least `n` of `all` samples. */
static void sequences_of(const mu_corpus *c, const char *name, const mu_sample *samples, int all, int64_t *sequences, int n) {
    int found = 0;
    for (int i = 0; i < all && found < n; i++)
        if (!strcmp(c->domains[samples[i].domain].name, name)) sequences[found++] = samples[i].sequence;
    assert_int_equal(found, n);
}

/* Adding, removing, moving or reweighting domains does not change the order of the other domains' sequences. */
static void test_sources(void **state) {
    (void)state;
    enum { N = 300, HALF = N_SAMPLES / 2 };
    static const char *const names[] = { "a", "b" };
    static mu_sample before[N_SAMPLES], after[N_SAMPLES];
    int64_t want[2][N], have[N], saved[4];
    mu_corpus c, more;
    open_three(&c, NULL);
    put_text("new.txt", "what was not there before, and is long enough");
    mu_loader *l = open_loader(&c, 0.1, 1), *m;
    mu_loader_next(l, N_SAMPLES, before);
    for (int i = 0; i < 2; i++) sequences_of(&c, names[i], before, N_SAMPLES, want[i], N);
    const entry entries[] = { { "new", in_folder("new.txt") }, { "b", in_folder("b.txt") }, { "a", in_folder("a.txt") } };

    /* Without weight a new one changes nothing at all. */
    const entry with_new[] = { entries[0], entries[2], entries[1], { "c", in_folder("c.txt") } };
    assert_ok(open_corpus(&more, 4, with_new, (double[]){ 0, 1, 1, 1 }));
    m = open_loader(&more, 0.1, 1);
    mu_loader_next(m, N_SAMPLES, after);
    for (int i = 0; i < N_SAMPLES; i++) after[i].domain--;
    assert_same_samples(before, after, N_SAMPLES);
    mu_loader_close(m);
    mu_corpus_close(&more);

    /* From the beginning, and from the middle, c is replaced and all has other weights. */
    for (int from = 0; from <= HALF; from += HALF) {
        mu_loader *first = open_loader(&c, 0.1, 1);
        mu_loader_next(first, from, before);
        mu_loader_state_get(first, saved);
        assert_ok(open_corpus(&more, 3, entries, (double[]){ 50, 0.5, 3 }));
        m = open_loader(&more, 0.1, 1);
        assert_ok(mu_loader_state_set(m, &three, saved, &e));
        mu_loader_next(m, N_SAMPLES - from, after);
        assert_int_equal(after[0].global_sample, from);
        int64_t n_new = mu_loader_train_sequences(m, 0), seen = 0;
        sequences_of(&more, "new", after, N_SAMPLES - from, have, (int)n_new);
        for (int64_t i = 0; i < n_new; i++) seen |= (int64_t)1 << have[i];
        assert_int_equal(seen, ((int64_t)1 << n_new) - 1);          /* it begins with its first epoch */
        for (int i = 0; i < 2; i++) {
            int left = (int)(N - saved[i]);
            if (left <= 0) continue;
            sequences_of(&more, names[i], after, N_SAMPLES - from, have, left < 50 ? left : 50);
            assert_memory_equal(have, want[i] + saved[i], sizeof *have * (size_t)(left < 50 ? left : 50));
        }
        mu_loader_close(m);
        mu_corpus_close(&more);
        mu_loader_close(first);
    }
    mu_loader_close(l);
    mu_corpus_close(&c);
}

static void test_arguments(void **state) {
    (void)state;
    static mu_corpus c, none;
    static mu_loader *l;
    static mu_tokenizer *t;
    const mu_option_domains negative = { -1, three.list }, unlisted = { 2, NULL };
    open_three(&c, NULL);
    assert_fatal(mu_tokenizer_open(&t, NULL, &e), "name NULL");
    assert_fatal(mu_tokenizer_open(NULL, "bytes", &e), "tokenizer (nil)");
    assert_fatal((mu_tokenizer_eod(NULL), 0), "the tokenizer is NULL");
    assert_fatal((mu_tokenizer_encode(bytes, "a", -1, add_ids, NULL), 0), "-1 bytes");
    assert_fatal(mu_corpus_open(&none, NULL, "text", bytes, 1, CACHE, &e), "list (nil)");
    assert_fatal(mu_corpus_open(&none, &three, "text", NULL, 1, CACHE, &e), "tokenizer (nil)");
    assert_fatal(mu_corpus_open(NULL, &three, "text", bytes, 1, CACHE, &e), "corpus (nil)");
    assert_fatal(mu_corpus_open(&none, &negative, "text", bytes, 1, CACHE, &e), "-1 domains");
    assert_fatal(mu_corpus_open(&none, &unlisted, "text", bytes, 1, CACHE, &e), "2 domains in (nil)");
    assert_fatal(mu_corpus_open(&none, &three, "text", bytes, 1, -1, &e), "cache of -1 bytes");
    assert_fatal(mu_corpus_write(&none, bytes, "x.h5", &e), "corpus");
    assert_fatal(mu_loader_open(&l, &c, SEQ, 0.1, (mu_val_split)9, 1, &e), "unknown split 9");
    assert_fatal(mu_loader_open(&l, &c, 0, 0.1, MU_VAL_TAIL, 1, &e), "seq_len 0");
    assert_fatal(mu_loader_open(&l, &c, SEQ, 1, MU_VAL_TAIL, 1, &e), "val_fraction 1");
    assert_fatal(mu_loader_open(&l, NULL, SEQ, 0.1, MU_VAL_TAIL, 1, &e), "corpus (nil)");
    assert_fatal(mu_loader_open(&l, &none, SEQ, 0.1, MU_VAL_TAIL, 1, &e), "with 0 domains");
    l = open_loader(&c, 0.1, 1);
    assert_fatal((mu_loader_next(l, -1, NULL), 0), "-1 samples");
    assert_fatal((mu_loader_train_sequences(l, 3), 0), "domain 3 of 3");
    assert_fatal((mu_domain_ids(&c.domains[0], 990, 11, NULL), 0), "[990, 1001) out of range for a column of 1000");
    assert_fatal((mu_domain_document_ends(&c.domains[0], 1, 1, NULL), 0), "[2, 3) out of range for a column of 2");
    mu_loader_close(l);
    mu_corpus_close(&c);
}

/* Samples beyond 2^32 are neither refused nor those of 2^32 before. */
static void test_late_samples(void **state) {
    (void)state;
    mu_corpus c;
    open_three(&c, NULL);
    static mu_sample early[500], late[500];
    mu_loader *l = open_loader(&c, 0.1, 1);
    mu_loader_next(l, 500, early);
    int64_t far = (int64_t)1 << 32;
    assert_ok(mu_loader_state_set(l, &three, (int64_t[]){ far, 0, 0, far }, &e));
    mu_loader_next(l, 500, late);
    int equal = 0;
    for (int i = 0; i < 500; i++) equal += early[i].domain == late[i].domain;
    assert_int_equal(late[499].global_sample, far + 499);
    assert_in_range(equal, 150, 450);           /* by chance .57 of 500, but not all */
    mu_loader_close(l);
    mu_corpus_close(&c);
}

/* States of real loaders are accepted; states less likely than 1e-13 are not. */
static void test_state_of_a_loader(void **state) {
    (void)state;
    mu_corpus c;
    mu_loader *l;
    mu_sample samples[50];
    int64_t drawn[4];
    open_three(&c, (double[]){ 2, 1, 0 });
    const int64_t tokens[] = { c.domains[0].n_tokens, c.domains[1].n_tokens, c.domains[2].n_tokens };
    const mu_option_domains train = { 3, (mu_option_domain[]){ { .weight = 2 }, { .weight = 1 }, { .weight = 0 } } };
    const mu_mixture mix = { .train = &train };
    for (uint64_t seed = 0; seed < 20; seed++) {
        assert_ok(mu_loader_open(&l, &c, SEQ, 0.1, MU_VAL_DOCUMENTS_BY_HASH, seed, &e));
        for (int64_t n = 0; n <= 2000; n += 50) {
            mu_loader_state_get(l, drawn);
            assert_ok(mu_loader_state_check(&mix, tokens, drawn, n, &e));
            mu_loader_next(l, 50, samples);
        }
        mu_loader_close(l);
    }
    mu_corpus_close(&c);
    static const struct {
        int64_t tokens[3], state[4];
        bool good;
    } cases[] = {                       /* shares 2 t0, t1, 0 */
        { { 50, 100, 9 }, { 48, 48, 0, 96 }, true },   { { 50, 100, 9 }, { 70, 26, 0, 96 }, true },
        { { 50, 100, 9 }, { 96, 0, 0, 96 }, false },   { { 50, 100, 9 }, { 0, 96, 0, 96 }, false },
        { { 50, 100, 9 }, { 48, 47, 1, 96 }, false },  { { 50, 100, 9 }, { 12, 12, 0, 24 }, true },
        { { 50, 0, 9 }, { 96, 0, 0, 96 }, true },      { { 50, 0, 9 }, { 95, 1, 0, 96 }, false },
        { { 1, 1000000, 9 }, { 0, 96, 0, 96 }, true }, { { 1, 1000000, 9 }, { 3, 93, 0, 96 }, true },
        { { 1, 1000000, 9 }, { 9, 87, 0, 96 }, false }, { { 0, 0, 9 }, { 0, 0, 1, 1 }, false },
        { { 500000000, 1000000000, 9 }, { 500000000, 500001000, 0, 1000001000 }, true },
        { { 500000000, 1000000000, 9 }, { 500000000, 501000000, 0, 1001000000 }, false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mu_status status = mu_loader_state_check(&mix, cases[i].tokens, cases[i].state, cases[i].state[3], &e);
        if (status != (cases[i].good ? MU_STATUS_OK : MU_STATUS_DATA)) fail_msg("case %zu: %d", i, status);
    }
    assert_ok(mu_loader_state_check(&mix, NULL, (int64_t[]){ 96, 0, 0, 96 }, 96, &e));      /* shares are not known */
    assert_error(mu_loader_state_check(&mix, NULL, (int64_t[]){ 96, 0, 0, 96 }, 95, &e), MU_STATUS_DATA, "96 samples drawn, but 95 are expected");
    assert_error(mu_loader_state_check(&mix, NULL, (int64_t[]){ 95, 0, 0, 96 }, 96, &e), MU_STATUS_DATA, "do not add up to the total of 96");
}

/* ------------------------------------------------------------------ phases */

/* b leaves after step 20 and returns after step 50, when only c is drawn beside it. */
static mu_option_phases b_leaves_and_returns = { 3, (mu_option_phase[]){
    { 20, 2, (mu_option_weight[]){ { .domain = "a", .weight = 1 }, { .domain = "b", .weight = 1 } } },
    { 50, 1, (mu_option_weight[]){ { .domain = "a", .weight = 0.3 } } },
    { 60, 3, (mu_option_weight[]){ { .domain = "c", .weight = 9 }, { .domain = "a", .weight = 0 }, { .domain = "b", .weight = 1 } } } } };
enum { PER_STEP = 30, N_PHASED = 100 * PER_STEP };

static mu_loader *open_phased(const mu_corpus *c) {
    mu_loader *l = open_loader(c, 0.1, 1);
    assert_ok(mu_loader_set_phases(l, &b_leaves_and_returns, PER_STEP, &e));
    return l;
}

/* Each phase draws from its domains only; a domain that leaves and returns continues where it stopped; and no border moves with the
 * size of a batch or a resume. */
static void test_phases(void **state) {
    (void)state;
    mu_corpus c;
    open_three(&c, NULL);
    static mu_sample plain[N_PHASED], whole[N_PHASED], parts[N_PHASED];
    int64_t want[600], have[600], saved[4];
    mu_loader *l = open_loader(&c, 0.1, 1);
    mu_loader_next(l, N_PHASED, plain);
    mu_loader_close(l);
    l = open_phased(&c);
    mu_loader_next(l, N_PHASED, whole);
    int n[3][3] = { { 0 } };
    for (int i = 0; i < N_PHASED; i++) n[mu_phase_of_step(&b_leaves_and_returns, i / PER_STEP + 1)][whole[i].domain]++;
    assert_true(n[0][0] > 90 && n[0][1] > 300 && n[0][2] == 0);
    assert_true(n[1][0] == 30 * PER_STEP && n[1][1] + n[1][2] == 0);
    assert_true(n[2][0] == 0 && n[2][1] > 100 && n[2][2] > 100);        /* also beyond the last until_step */
    int b_at_border = 0;
    for (int i = 19 * PER_STEP; i < 20 * PER_STEP; i++) b_at_border += whole[i].domain == 1;
    assert_true(b_at_border > 0);
    for (int d = 0; d < 3; d++) {
        int count = 0, found = 0;
        for (int i = 0; i < N_PHASED; i++) count += whole[i].domain == d, found += plain[i].domain == d;
        if (count > found) count = found;
        if (count > 600) count = 600;
        sequences_of(&c, c.domains[d].name, plain, N_PHASED, want, count);
        sequences_of(&c, c.domains[d].name, whole, N_PHASED, have, count);
        assert_memory_equal(want, have, sizeof *want * (size_t)count);
    }
    assert_true(fabs(mu_loader_share(l, 2) - (double)c.domains[2].n_tokens / 4205.) < 1e-12);
    assert_true(mu_loader_share_at(l, 20, 2) == 0 && mu_loader_share_at(l, 21, 0) == 1 && mu_loader_share_at(l, 51, 0) == 0);
    mu_loader_close(l);

    l = open_phased(&c);
    draw(l, N_PHASED, (const int[4]){ 1, 7, 64, 200 }, parts);
    mu_loader_close(l);
    assert_same_samples(whole, parts, N_PHASED);
    for (int at = 0; at < N_PHASED; at += at % 100 ? 91 : 109) {
        l = open_phased(&c);
        mu_loader_next(l, at, parts);
        mu_loader_state_get(l, saved);
        mu_loader_close(l);
        l = open_phased(&c);
        assert_ok(mu_loader_state_set(l, &three, saved, &e));
        mu_loader_next(l, N_PHASED - at, parts);
        assert_same_samples(whole + at, parts, N_PHASED - at);
        mu_loader_close(l);
    }
    mu_corpus_close(&c);
}

/* The check of a loaded state follows the phases. */
static void test_state_of_phases(void **state) {
    (void)state;
    mu_corpus c;
    open_three(&c, NULL);
    static mu_sample samples[N_PHASED];
    const mu_option_domains train = { 3, (mu_option_domain[]){ { "a", "", 1 }, { "b", "", 1 }, { "c", "", 1 } } };
    const mu_mixture mix = { .train = &train, .phases = &b_leaves_and_returns, .per_step = PER_STEP }, plain = { .train = &train };
    const int64_t tokens[] = { c.domains[0].n_tokens, c.domains[1].n_tokens, c.domains[2].n_tokens };
    int64_t drawn[4];
    mu_loader *l = open_phased(&c);
    for (int64_t n = 0; n <= N_PHASED; n += 50) {
        mu_loader_state_get(l, drawn);
        assert_ok(mu_loader_state_check(&mix, tokens, drawn, n, &e));
        mu_loader_next(l, 50, samples);
    }
    mu_loader_close(l);
    assert_int_equal(mu_loader_state_check(&plain, tokens, drawn, N_PHASED, &e), MU_STATUS_DATA);
    /* phase 1: 600 samples, a quarter of a; phase 2: 900, all of a */
    const int64_t early[] = { 150, 450, 0, 600 }, middle[] = { 170, 450, 0, 620 };
    const int64_t one_c[] = { 150, 449, 1, 600 }, lost[] = { 899, 601, 0, 1500 }, late[] = { 950, 450, 2, 1402 };
    assert_ok(mu_loader_state_check(&mix, tokens, early, 600, &e));
    assert_ok(mu_loader_state_check(&mix, tokens, middle, 620, &e));
    assert_error(mu_loader_state_check(&mix, tokens, one_c, 600, &e), MU_STATUS_DATA, "domain 'c': 1 of 600 samples drawn; implausible");
    assert_error(mu_loader_state_check(&mix, tokens, lost, 1500, &e), MU_STATUS_DATA, "domain 'a': 899 of 1500 samples drawn; implausible");
    assert_error(mu_loader_state_check(&mix, tokens, late, 1402, &e), MU_STATUS_DATA, "domain 'c': 2 of 1402 samples drawn; implausible");
    mu_corpus_close(&c);
}

/* A fork continues with the samples of the run before, of each domain after the samples that were drawn of it; its state and the check
 * of it count its own samples. */
static void test_fork(void **state) {
    (void)state;
    enum { BEFORE = 10 * PER_STEP };
    mu_corpus c;
    open_three(&c, NULL);
    static mu_sample whole[N_PHASED], rest[N_PHASED];
    const int64_t tokens[] = { c.domains[0].n_tokens, c.domains[1].n_tokens, c.domains[2].n_tokens };
    const mu_option_domains train = { 3, (mu_option_domain[]){ { "a", "", 1 }, { "b", "", 1 }, { "c", "", 1 } } };
    const mu_mixture mix = { &train, &b_leaves_and_returns, PER_STEP, 10, 1 };
    int64_t drawn[4], own[4];
    mu_loader *l = open_phased(&c);
    mu_loader_next(l, BEFORE, whole);
    mu_loader_state_get(l, drawn);
    mu_loader_next(l, N_PHASED - BEFORE, whole + BEFORE);
    mu_loader_close(l);

    l = open_phased(&c);
    mu_loader_continue(l, BEFORE, drawn);
    mu_loader_next(l, 500, rest);
    mu_loader_state_get(l, own);
    assert_int_equal(own[3], 500);
    assert_int_equal(own[2], 0);
    assert_ok(mu_loader_state_check(&mix, tokens, own, 500, &e));       /* 300 samples of phase 1, 200 of phase 2 */
    assert_error(mu_loader_state_check(&mix, tokens, (int64_t[]){ 199, 301, 0, 500 }, 500, &e), MU_STATUS_DATA, "domain 'a': 199 of 500");
    mu_loader_next(l, N_PHASED - BEFORE - 500, rest + 500);
    assert_same_samples(whole + BEFORE, rest, N_PHASED - BEFORE);
    assert_ok(mu_loader_state_set(l, &three, own, &e));
    mu_loader_next(l, N_PHASED - BEFORE - 500, rest);
    assert_same_samples(whole + BEFORE + 500, rest, N_PHASED - BEFORE - 500);

    drawn[1] = 0;                               /* b begins anew */
    mu_loader_continue(l, BEFORE, drawn);
    mu_loader_next(l, 300, rest);
    int64_t old[50], now[50];
    sequences_of(&c, "b", whole, BEFORE, old, 50);
    sequences_of(&c, "b", rest, 300, now, 50);
    assert_memory_equal(old, now, sizeof old);
    mu_loader_close(l);
    mu_corpus_close(&c);
}

/* While b is absent, about a tenth of the samples are among its last eight; all other samples, and the state, are those without replay. */
static void test_replay(void **state) {
    (void)state;
    enum { FROM = 20 * PER_STEP, TO = 50 * PER_STEP, LAST = 8 };
    mu_corpus c;
    open_three(&c, NULL);
    static mu_sample plain[N_PHASED], whole[N_PHASED], parts[N_PHASED];
    int64_t without[4], with[4], all[600];
    int replayed = 0, times[LAST] = { 0 }, of_b = 0;
    mu_loader *l = open_phased(&c);
    mu_loader_next(l, N_PHASED, plain);
    mu_loader_state_get(l, without);
    mu_loader_close(l);
    for (int i = 0; i < FROM; i++) of_b += plain[i].domain == 1;
    sequences_of(&c, "b", plain, FROM, all, of_b);

    l = open_phased(&c);
    mu_loader_set_replay(l, 0.1, LAST, (const bool[]){ false, true, true });     /* nothing was drawn from c before phase 3 */
    assert_false(mu_loader_is_absent(l, 21, 1));                /* not yet drawn */
    mu_loader_next(l, FROM, whole);
    assert_true(!mu_loader_is_absent(l, 20, 1) && mu_loader_is_absent(l, 21, 1) && mu_loader_is_absent(l, 50, 1) && !mu_loader_is_absent(l, 51, 1));
    assert_true(!mu_loader_is_absent(l, 21, 2) && !mu_loader_is_absent(l, 51, 0));
    assert_int_equal(mu_loader_replay_sequences(l, 1), LAST);
    for (int i = 0; i < LAST; i++) assert_int_equal(mu_loader_replay_sequence(l, 1, i), all[of_b - LAST + i]);
    assert_fatal((mu_loader_replay_sequence(l, 1, LAST), 0), "sequence 8 of 8 to replay");
    mu_loader_next(l, N_PHASED - FROM, whole + FROM);
    mu_loader_state_get(l, with);
    assert_memory_equal(without, with, sizeof with);
    mu_loader_close(l);
    for (int i = 0; i < N_PHASED; i++) {
        bool same = whole[i].domain == plain[i].domain && whole[i].sequence == plain[i].sequence;
        if (same) continue;
        assert_true(i >= FROM && i < TO && whole[i].domain == 1 && whole[i].global_sample == i);
        int which = 0;
        while (which < LAST && all[of_b - LAST + which] != whole[i].sequence) which++;
        assert_true(which < LAST);
        times[which]++, replayed++;
    }
    assert_in_range(replayed, 60, 120);         /* of 900 */
    for (int i = 0; i < LAST; i++) assert_true(times[i] > 1);

    for (int at = 0; at < N_PHASED; at += 373) {                /* any batches, and resumed */
        l = open_phased(&c);
        mu_loader_set_replay(l, 0.1, LAST, (const bool[]){ false, true, true });
        draw(l, at, (const int[4]){ 1, 7, 64, 200 }, parts);
        mu_loader_state_get(l, with);
        mu_loader_close(l);
        l = open_phased(&c);
        mu_loader_set_replay(l, 0.1, LAST, (const bool[]){ false, true, true });
        assert_ok(mu_loader_state_set(l, &three, with, &e));
        mu_loader_next(l, N_PHASED - at, parts + at);
        assert_same_samples(whole, parts, N_PHASED);
        mu_loader_close(l);
    }
    mu_corpus_close(&c);
}

/* A fork replays what the run before it drew, with weights 0 and without phases; several domains at once, and never more than half. */
static void test_replay_in_a_fork(void **state) {
    (void)state;
    mu_corpus c;
    open_three(&c, (double[]){ 1, 0, 0 });
    static mu_sample samples[4000];
    const int64_t earlier[] = { 100, 700, 3 };                  /* b: 270 training sequences, c: 18 */
    int n[3] = { 0 };
    mu_loader *l = open_loader(&c, 0.1, 1);
    mu_loader_continue(l, 803, earlier);
    mu_loader_set_replay(l, 0.1, 1000, (const bool[]){ true, true, true });
    assert_true(!mu_loader_is_absent(l, 1, 0) && mu_loader_is_absent(l, 1, 1) && mu_loader_is_absent(l, 1, 2));
    assert_int_equal(mu_loader_replay_sequences(l, 1), mu_loader_train_sequences(l, 1));
    assert_int_equal(mu_loader_replay_sequences(l, 2), 3);
    mu_loader_next(l, 4000, samples);
    for (int i = 0; i < 4000; i++) n[samples[i].domain]++;
    assert_in_range(n[1], 320, 480);
    assert_in_range(n[2], 320, 480);
    mu_loader_set_replay(l, 0.4, 8, (const bool[]){ true, true, true });
    mu_loader_next(l, 4000, samples);
    memset(n, 0, sizeof n);
    for (int i = 0; i < 4000; i++) n[samples[i].domain]++;
    assert_in_range(n[1], 880, 1120);
    assert_in_range(n[2], 880, 1120);
    mu_loader_set_replay(l, 0, 8, (const bool[]){ true, true, true });
    mu_loader_next(l, 1000, samples);
    for (int i = 0; i < 1000; i++) assert_int_equal(samples[i].domain, 0);
    assert_fatal((mu_loader_set_replay(l, 0.6, 8, (const bool[3]){ false }), 0), "share 0.6");
    mu_loader_close(l);
    mu_corpus_close(&c);
}

/* Shares become proportional to share^tau, in each phase; the check of a state follows; the order within a domain stays. */
static void test_upsampling(void **state) {
    (void)state;
    const double tau = 0.5;
    mu_corpus c;
    open_three(&c, NULL);
    static mu_sample samples[N_PHASED];
    const mu_option_domains train = { 3, (mu_option_domain[]){ { "a", "", 1 }, { "b", "", 1 }, { "c", "", 1 } } };
    const int64_t tokens[] = { c.domains[0].n_tokens, c.domains[1].n_tokens, c.domains[2].n_tokens };
    const mu_mixture mix = { &train, &b_leaves_and_returns, PER_STEP, 0, tau }, as_they_are = { &train, &b_leaves_and_returns, PER_STEP, 0, 0 };
    int64_t drawn[4];
    double before = 0, root = sqrt(205. * 9), all = root + sqrt(3000.);
    mu_loader *l = open_phased(&c);
    before = mu_loader_share_at(l, 60, 2);
    mu_loader_upsample(l, 1);
    assert_true(mu_loader_share_at(l, 60, 2) == before);
    assert_true(fabs(mu_loader_expected(l, 20 * PER_STEP + 5, 0) - 155) < 1e-9);
    mu_loader_upsample(l, tau);
    assert_true(fabs(mu_loader_share_at(l, 60, 2) - root / all) < 1e-12 && mu_loader_share_at(l, 60, 0) == 0);
    assert_true(fabs(mu_loader_share(l, 2) - 205. / 4205.) < 1e-12);
    assert_true(fabs(mu_loader_expected(l, N_PHASED, 2) - 50 * PER_STEP * root / all) < 1e-9);
    for (int64_t n = 0; n <= N_PHASED; n += 50) {
        mu_loader_state_get(l, drawn);
        assert_ok(mu_loader_state_check(&mix, tokens, drawn, n, &e));
        mu_loader_next(l, 50, samples);
    }
    assert_true(fabs((double)drawn[2] - mu_loader_expected(l, N_PHASED, 2)) < 100);
    assert_error(mu_loader_state_check(&as_they_are, tokens, drawn, N_PHASED, &e), MU_STATUS_DATA, "implausible");
    assert_fatal((mu_loader_upsample(l, tau), 0), "has drawn samples");
    mu_loader_continue(l, 30 * PER_STEP, (const int64_t[]){ 7, 8, 9 });
    assert_true(fabs(mu_loader_expected(l, 50 * PER_STEP, 0) - 7 - 20 * PER_STEP) < 1e-9 && mu_loader_expected(l, 50 * PER_STEP, 2) == 9);
    mu_loader_close(l);
    mu_corpus_close(&c);
}

static void test_bad_phases(void **state) {
    (void)state;
    mu_corpus c;
    open_three(&c, NULL);
    mu_loader *l = open_loader(&c, 0.1, 1);
    mu_option_weight weight = { .domain = "nowhere", .weight = 1 };
    mu_option_phase phase = { .n = 1, .mix = &weight };
    const mu_option_phases phases = { 1, &phase };
    assert_error(mu_loader_set_phases(l, &phases, 8, &e), MU_STATUS_CONFIG, "phase 1 names domain \"nowhere\"");
    weight = (mu_option_weight){ .domain = "a", .weight = -1 };
    assert_error(mu_loader_set_phases(l, &phases, 8, &e), MU_STATUS_CONFIG, "domain \"a\": weight -1");
    weight.weight = 0;
    assert_error(mu_loader_set_phases(l, &phases, 8, &e), MU_STATUS_CONFIG, "data.phases: all weights are 0");
    mu_loader_close(l);
    mu_corpus_close(&c);
}

static void test_bad_loader(void **state) {
    (void)state;
    mu_corpus c;
    mu_loader *l;
    open_three(&c, NULL);
    assert_error(mu_loader_open(&l, &c, 205, 0.1, MU_VAL_DOCUMENTS_BY_HASH, 1, &e), MU_STATUS_DATA,
                 "domain \"c\": 205 tokens are too few");
    assert_non_null(strstr(e.text, "needs 206"));
    assert_non_null(strstr(e.text, "at most 204"));
    assert_null(l);
    assert_ok(mu_loader_open(&l, &c, 204, 0.1, MU_VAL_DOCUMENTS_BY_HASH, 1, &e));     /* one sequence: it is for training */
    assert_int_equal(mu_loader_train_sequences(l, 2), 1);
    assert_int_equal(mu_loader_val_sequences(l, 2), 0);
    const int64_t bad[][4] = { { 1, 1, 1, 2 }, { -1, 1, 1, 1 }, { 0, 0, 0, -1 }, { 5, -2, 0, 3 } };
    for (int i = 0; i < 4; i++)
        assert_error(mu_loader_state_set(l, &three, bad[i], &e), MU_STATUS_DATA, "loader state");
    mu_loader_close(l);
    mu_corpus_close(&c);
    open_three(&c, (double[]){ 0, 0, 0 });
    assert_error(mu_loader_open(&l, &c, SEQ, 0.1, MU_VAL_DOCUMENTS_BY_HASH, 1, &e), MU_STATUS_CONFIG, "weights");
    mu_corpus_close(&c);
    open_three(&c, (double[]){ 1, -1, 1 });
    assert_error(mu_loader_open(&l, &c, SEQ, 0.1, MU_VAL_DOCUMENTS_BY_HASH, 1, &e), MU_STATUS_CONFIG, "domain \"b\"");
    mu_corpus_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer),      cmocka_unit_test(test_open_tokenizer),
        cmocka_unit_test(test_folder),
        cmocka_unit_test(test_single_files),   cmocka_unit_test(test_many_documents),
        cmocka_unit_test(test_bad_texts),      cmocka_unit_test(test_bad_jsonl),
        cmocka_unit_test(test_not_read),       cmocka_unit_test(test_overlaps),
        cmocka_unit_test(test_jsonl_values),
        cmocka_unit_test(test_bad_names),      cmocka_unit_test(test_entropy),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_token_file),     cmocka_unit_test(test_bad_token_files),
        cmocka_unit_test(test_wide_ids),       cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_measure),        cmocka_unit_test(test_changed_file),
        cmocka_unit_test(test_synthetic),      cmocka_unit_test(test_synthetic_seed),
        cmocka_unit_test(test_synthetic_frozen),
        cmocka_unit_test(test_split),          cmocka_unit_test(test_tail),
        cmocka_unit_test(test_split_grows),    cmocka_unit_test(test_split_inserts),
        cmocka_unit_test(test_split_header),
        cmocka_unit_test(test_parts),          cmocka_unit_test(test_documents_frozen),
        cmocka_unit_test(test_order), cmocka_unit_test(test_computed_order), cmocka_unit_test(test_large_order),          cmocka_unit_test(test_epochs),
        cmocka_unit_test(test_shares),         cmocka_unit_test(test_state),
        cmocka_unit_test(test_sources), cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_late_samples),   cmocka_unit_test(test_bad_loader), cmocka_unit_test(test_state_of_a_loader),
        cmocka_unit_test(test_phases),         cmocka_unit_test(test_state_of_phases), cmocka_unit_test(test_fork),
        cmocka_unit_test(test_bad_phases), cmocka_unit_test(test_replay), cmocka_unit_test(test_replay_in_a_fork), cmocka_unit_test(test_upsampling),
    };
    return cmocka_run_group_tests_name("data", tests, set_up, tear_down);
}
