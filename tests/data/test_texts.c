/* test_texts.c - documents of .txt, .jsonl and .json, plain, .gz and .zst; folders with links; hostile files. */
#include "data/folder.h"
#include "data/internal.h"

#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>


static int set_up(void **state) {
    (void)state;
    return folder_make("texts") ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    return mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

/* ------------------------------------------------------------------ making files */

typedef struct { char *data; size_t n; } blob;

static void put(const char *name, const void *data, size_t n) {
    char *path = mu_strdup(in_folder(name)), *slash = strrchr(path, '/');
    *slash = '\0';
    assert_ok(mu_file_make_dirs(path, &e));
    *slash = '/';
    FILE *f = fopen(path, "w");         /* not mu_file_replace: syncs are slow, and these are many */
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
    free(path);
}

static blob gz(const char *text, size_t n) {
    z_stream z = { 0 };
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    blob b = { mu_alloc(deflateBound(&z, n) + 64, 1), 0 };
    z.next_in = (unsigned char *)(uintptr_t)text, z.avail_in = (uInt)n;
    z.next_out = (unsigned char *)b.data, z.avail_out = (uInt)(deflateBound(&z, n) + 64);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    b.n = z.total_out;
    deflateEnd(&z);
    return b;
}

static blob zst(const char *text, size_t n) {
    blob b = { mu_alloc(ZSTD_compressBound(n) + 64, 1), 0 };
    ZSTD_CCtx *c = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
    b.n = ZSTD_compress2(c, b.data, ZSTD_compressBound(n), text, n);
    ZSTD_freeCCtx(c);
    assert_false(ZSTD_isError(b.n));
    return b;
}

typedef blob packer(const char *text, size_t n);
static const struct { const char *ending; packer *pack; } packers[] = { { "", NULL }, { ".gz", gz }, { ".zst", zst } };
enum { N_PACKERS = 3 };

static const char *packed_name(const char *name, int packer) {
    static char text[64];
    snprintf(text, sizeof text, "%s%s", name, packers[packer].ending);
    return text;
}

static void put_packed(const char *name, int packer, const char *text, size_t n) {
    if (!packers[packer].pack) {
        put(name, text, n);
        return;
    }
    blob b = packers[packer].pack(text, n);
    put(packed_name(name, packer), b.data, b.n);
    free(b.data);
}

/* ------------------------------------------------------------------ reading them */

typedef struct { char text[4096]; int64_t n, bytes, read, last_line; } seen;

/* Documents as "line:text|", paths not shown. */
static mu_status take(void *to, const mu_document *d, mu_error *error) {
    seen *s = to;
    size_t used = strlen(s->text);
    assert_true(d->bytes > 0 && d->read >= s->read);
    s->n++, s->bytes += d->bytes, s->read = d->read, s->last_line = d->line;
    if (d->bytes < 1000) snprintf(s->text + used, sizeof s->text - used, "%lld:%.*s|", (long long)d->line, (int)d->bytes, d->text);
    return s->n < 100000000 ? MU_STATUS_OK : mu_error_set(error, MU_STATUS_DATA, "enough");
}

static mu_status read_all(const char *path, const char *key, seen *s) {
    *s = (seen){ 0 };
    e = (mu_error){ 0 };
    return mu_text_each(path, key, take, s, &e);
}

static void assert_reads(const char *name, const char *text, size_t n, const char *expected) {
    seen s;
    int64_t on_disk;
    for (int i = 0; i < N_PACKERS; i++) {
        put_packed(name, i, text, n);
        const char *path = in_folder(packed_name(name, i));
        assert_ok(read_all(path, "text", &s));
        if (strcmp(s.text, expected)) fail_msg("%s: %s\nnot: %s", path, s.text, expected);
        assert_ok(mu_text_bytes(path, &on_disk, &e));
        assert_int_equal(s.read, on_disk);
    }
}

static void assert_refuses(const char *name, const char *text, size_t n, const char *says) {
    seen s;
    for (int i = 0; i < N_PACKERS; i++) {
        put_packed(name, i, text, n);
        const char *path = in_folder(packed_name(name, i));
        char whole[256];
        snprintf(whole, sizeof whole, "%s%s", path, says);
        assert_int_equal(read_all(path, "text", &s), MU_STATUS_DATA);
        if (strncmp(e.text, whole, strlen(whole))) fail_msg("\"%s\" does not begin with \"%s\"", e.text, whole);
    }
}

static void test_json(void **state) {
    (void)state;
    const struct { const char *text, *documents; } cases[] = {
        { "{\"text\": \"one\"}", "1:one|" },
        { "\xef\xbb\xbf\n{\"id\": {\"text\": [1, \"]}\"]},\n \"text\"\n:\"o\\\"n\\\\\"}\n", "2:o\"n\\|" },
        { "[]\n[{\"text\": \"a\"} ,\n\n \"b\", {\"text\": \"\"}, {\"x\": [[]],\"te\\u0078t\": \"\\ud83d\\ude00 \\u00e9\"}\n]", "2:a|4:b|4:\xf0\x9f\x98\x80 \xc3\xa9|" },
        { "{\"text\": \"a\"}\n{\"text\": \"b\"}\n[\"c\"]{\"text\": \"d\"}", "1:a|2:b|3:c|3:d|" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_reads("t.json", cases[i].text, strlen(cases[i].text), cases[i].documents);
    assert_reads("t.jsonl", "\n{\"text\": \"a\"}\r\n \n{\"text\":\"b\"}", 30, "2:a|4:b|");
    assert_reads("t.txt", "\xef\xbb\xbfone\ntwo\n", 11, "1:one\ntwo\n|");
}

static void test_bad_json(void **state) {
    (void)state;
    const struct { const char *text, *says; } cases[] = {
        { "7", ":1: bad JSON at byte 1: an object or an array expected near '7'" },
        { "\"a\"", ":1: bad JSON at byte 1: an object or an array expected" },
        { "[\"a\",\n  7]", ":2: bad JSON at byte 3: an object or a string expected near '7'" },
        { "[\"a\",]", ":1: bad JSON at byte 6: an object or a string expected near ']'" },
        { "[,", ":1: bad JSON at byte 2: an object, a string or ']' expected near ','" },
        { "[\n[\"a\"]]", ":2: bad JSON at byte 1: an object, a string" },
        { "[\"a\" \"b\"]", ":1: bad JSON at byte 6: ',' or ']' expected near '\"'" },
        { "[\"a\"\n", ":2: bad JSON: ',' or ']' expected at the end of the file" },
        { "[{\"text\": \"a\"}}", ":1: bad JSON at byte 15: ',' or ']' expected near '}'" },
        { "[\"a\",\n \"b", ":2: bad JSON at byte 2: the string does not end near '\"b'" },
        { "[\"a\", {\"text\": \"a\",\n \"b\": tru}]", ":2: bad JSON at byte 7: invalid token near 'tru'" },
        { "[\"a\", {\"text\": \"a\", \"b\": [1, 2}]", ":1: bad JSON at byte 31: ']' expected near '}'" },
        { "[\"\\x\"]", ":1: bad JSON at byte 3: invalid escape near '\\'" },
        { "[\"\\ud83d\\u0041\"]", ":1: bad JSON at byte 3: invalid escape" },
        { "[\"\\ude00\"]", ":1: bad JSON at byte 3: invalid escape" },
        { "[\"a\nb\"]", ":1: bad JSON at byte 4: control character in a string" },
        { "[\"\xed\xa0\x80\"]", ":1: bad JSON at byte 3: invalid UTF-8" },
        { "[{\"text\": \"a\", \"text\": \"b\"}]", ":1: bad JSON at byte 16: duplicate key near '\"text\"'" },
        { "[{\"a\" 1}]", ":1: bad JSON at byte 7: ':' expected near '1'" },
        { "[{a: 1}]", ":1: bad JSON at byte 3: string or '}' expected near 'a'" },
        { "[{\"a\": 1,}]", ":1: bad JSON at byte 10: string or '}' expected near '}'" },
        { "[{\"text\":}]", ":1: bad JSON at byte 10: invalid token near '}'" },
        { "[\"a\",\n{\"body\": \"a\"}]", ":2: no string named \"text\"; data.text_key, or --text-key of a command, selects another key" },
        { "[\"a\\u0000b\"]", ":1: not a text: \"text\" has a NUL" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_refuses("bad.json", cases[i].text, strlen(cases[i].text), cases[i].says);
    assert_refuses("bad.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"\n", 28, ":2: bad JSON at byte 13: '}' expected near the end");
    char deep[2100];
    memset(deep, '[', sizeof deep);
    memcpy(deep, "{\"text\": \"a\", \"x\": ", 19);
    assert_refuses("deep.jsonl", deep, sizeof deep, ":1: bad JSON at byte 532: nested too deep near '['");
}

/* Texts far larger than a block, with what may fall on the border of two blocks everywhere. */
static void test_long_texts(void **state) {
    (void)state;
    enum { N = 40000 };
    char *text = mu_alloc(N, 64);
    size_t n = 0;
    seen s;
    static const char *const names[] = { "long.jsonl", "long.json" };
    for (int kind = 0; kind < 2; kind++) {
        int64_t bytes = 0;
        n = 0;
        for (int i = 0; i < N; i++) {
            n += (size_t)sprintf(text + n, "%s{\"text\": \"\\\\\\\"%0*d\\u00e9\", \"x\": [{}]}\n", kind == 0 ? "" : i ? "," : "[", i % 23 + 1, i % 10);
            bytes += 2 + i % 23 + 1 + 2;
        }
        if (kind == 1) text[n++] = ']';
        for (int i = 0; i < N_PACKERS; i++) {
            put_packed(names[kind], i, text, n);
            assert_ok(read_all(in_folder(packed_name(names[kind], i)), "text", &s));
            assert_int_equal(s.n, N);
            assert_int_equal(s.bytes, bytes);
            assert_int_equal(s.last_line, N);
        }
    }
    put_packed("long.txt", 2, text, n);
    assert_ok(read_all(in_folder("long.txt.zst"), "text", &s));
    assert_int_equal(s.bytes, n);
    free(text);
}

static void test_text_key(void **state) {
    (void)state;
    seen s;
    put("key.jsonl", "{\"text\": 1, \"body\": \"b\"}\n", 25);
    assert_ok(read_all(in_folder("key.jsonl"), "body", &s));
    assert_string_equal(s.text, "1:b|");
    assert_int_equal(read_all(in_folder("key.jsonl"), "content", &s), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "key.jsonl:1: no string named \"content\""));
}

/* ------------------------------------------------------------------ compressed files */

static blob join(blob a, blob b) {
    blob both = { mu_alloc(a.n + b.n + 1, 1), a.n + b.n };
    memcpy(both.data, a.data, a.n);
    memcpy(both.data + a.n, b.data, b.n);
    return both;
}

/* Members and frames one after another, empty ones and zstd's skippable ones among them, are one text. */
static void test_joined(void **state) {
    (void)state;
    static char skippable[] = "\x53\x2a\x4d\x18\x03\0\0\0abc";
    seen s;
    for (int i = 1; i < N_PACKERS; i++) {
        blob a = packers[i].pack("{\"text\": \"on", 12), none = packers[i].pack("", 0), b = packers[i].pack("e\"}\n{\"text\": \"b\"}", 17);
        blob ab = join(a, none), all = join(ab, b), padded = join(all, i == 1 ? (blob){ (char[4]){ 0 }, 4 } : (blob){ skippable, 11 });
        put(packed_name("joined.jsonl", i), padded.data, padded.n);
        assert_ok(read_all(in_folder(packed_name("joined.jsonl", i)), "text", &s));
        assert_string_equal(s.text, "1:one|2:b|");
        blob blobs[] = { a, none, b, ab, all, padded };
        for (int k = 0; k < 6; k++) free(blobs[k].data);
    }
}

/* Every prefix of a compressed file is refused, and so is every byte that is changed, unless it changes no text. */
static void test_broken(void **state) {
    (void)state;
    static const char text[] = "The quick brown fox jumps over the lazy dog, and again the quick brown fox, the dog and the fox.";
    seen s;
    for (int i = 1; i < N_PACKERS; i++) {
        blob b = packers[i].pack(text, sizeof text - 1);
        const char *name = packed_name("broken.txt", i);
        for (size_t n = 0; n < b.n; n++) {
            put(name, b.data, n);
            assert_int_equal(read_all(in_folder(name), "text", &s), MU_STATUS_DATA);
            if (!strstr(e.text, "truncated: the file ends at byte")) fail_msg("%zu bytes: %s", n, e.text);
        }
        for (size_t n = 0; n < b.n; n++) {
            b.data[n] = (char)(b.data[n] ^ 0x55);
            put(name, b.data, b.n);
            if (!read_all(in_folder(name), "text", &s)) assert_int_equal(s.bytes, sizeof text - 1);
            else if (!strstr(e.text, " data near byte ") && !strstr(e.text, "truncated")) fail_msg("byte %zu: %s", n, e.text);
            b.data[n] = (char)(b.data[n] ^ 0x55);
        }
        blob more = join(b, (blob){ (char[]){ "garbage" }, 7 });
        put(name, more.data, more.n);
        assert_int_equal(read_all(in_folder(name), "text", &s), MU_STATUS_DATA);
        assert_non_null(strstr(e.text, " data near byte "));
        free(more.data);
        free(b.data);
    }
}

/* zstd: a frame that wants a window of 1 GiB is refused before memory is taken. */
static void test_window(void **state) {
    (void)state;
    static const unsigned char frame[] = { 0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 0x01, 0x00, 0x00 };
    seen s;
    put("window.txt.zst", frame, sizeof frame);
    assert_int_equal(read_all(in_folder("window.txt.zst"), "text", &s), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "requires too much memory"));
}

static void test_bombs(void **state) {
    (void)state;
    enum { SIZE = 200 << 20 };
    seen s;
    char *text = mu_alloc(SIZE, 1);
    struct rusage before, after;
    memset(text, 'a', SIZE);
    memcpy(text, "[\"", 2);
    for (int i = 1; i < N_PACKERS; i++) {
        blob b = packers[i].pack(text, SIZE);
        static const char *const names[] = { "bomb.txt", "bomb.json" };
        for (int k = 0; k < 2; k++) put(packed_name(names[k], i), b.data, b.n);
        free(b.data);
    }
    free(text);
    getrusage(RUSAGE_SELF, &before);
    static const char *const files[] = { "bomb.txt.gz", "bomb.json.gz", "bomb.txt.zst", "bomb.json.zst" };
    for (int i = 0; i < 4; i++) {
        assert_int_equal(read_all(in_folder(files[i]), "text", &s), MU_STATUS_DATA);
        if (!strstr(e.text, "over 100 times as many is refused, behind the first 64 MiB")) fail_msg("%s: %s", files[i], e.text);
        assert_int_equal(s.n, 0);
    }
    getrusage(RUSAGE_SELF, &after);
#ifndef __SANITIZE_ADDRESS__            /* which keeps freed memory */
    assert_true(after.ru_maxrss <= before.ru_maxrss + 1024);    /* KiB: the bombs took no more than making them did */
#endif
}

static void test_long_line(void **state) {
    (void)state;
    seen s;
    FILE *f = fopen(in_folder("long_line.jsonl"), "w");
    assert_int_equal(fseek(f, 129 << 20, SEEK_SET), 0);         /* a hole */
    fputc('\n', f);
    fclose(f);
    assert_int_equal(read_all(in_folder("long_line.jsonl"), "text", &s), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "long_line.jsonl:1: a document of more than 128 MiB"));
    unlink(in_folder("long_line.jsonl"));
}

/* ------------------------------------------------------------------ folders */

static char logged[4096];
static void keep_log(mu_log_level level, const char *line) {
    (void)level;
    snprintf(logged, sizeof logged, "%s", line);
}

/* A folder is read once, under its own name where it lies inside, else under the first link to it. */
static void test_links(void **state) {
    (void)state;
    seen s;
    put("links/b/t.txt", "b", 1);
    put("links/c.txt.gz", "", 0);
    put("outside/t.txt", "outside", 7);
    put("outside/sub/t.json", "[\"sub\"]", 7);
    put_packed("links/c.txt", 1, "c", 1);
    const char *const links[][2] = { { "b", "links/a" }, { "../../outside", "links/b/out" }, { "../outside", "links/z" }, { "..", "outside/sub/up" },
                                     { ".", "links/self" }, { "../links", "outside/back" }, { "../..", "links/b/top" } };
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) assert_int_equal(symlink(links[i][0], in_folder(links[i][1])), 0);
    mu_log_set_sink(keep_log);
    assert_ok(read_all(in_folder("links"), "text", &s));
    mu_log_set_sink(NULL);
    assert_string_equal(s.text, "1:sub|1:outside|1:b|1:c|");
    const char *note = strstr(logged, "/links: ");
    assert_non_null(note);
    assert_string_equal(note, "/links: 3 links to folders around them (b/out/sub/up, b/top, self), "
                              "3 links to folders that are read already (a, b/out/back, z)");
    assert_int_equal(symlink("nowhere", in_folder("links/gone")), 0);
    assert_ok(read_all(in_folder("links"), "text", &s));
    assert_int_equal(symlink("nowhere", in_folder("links/gone.jsonl.zst")), 0);
    assert_int_equal(read_all(in_folder("links"), "text", &s), MU_STATUS_NOINPUT);
    if (!strstr(e.text, "links/gone.jsonl.zst: No such file")) fail_msg("%s", e.text);
}

static void test_sizes(void **state) {
    (void)state;
    mu_domain_size size = { 0 };
    put_packed("sizes/a.txt", 1, "0123456789", 10);
    put_packed("sizes/b.json", 2, "[\"abc\"]", 7);
    assert_ok(mu_text_measure(&size, "x", in_folder("sizes"), &e));
    assert_int_equal(size.tokens, 17);
    assert_int_equal(size.documents, 2);
    put("sizes/a.txt.gz", "\x1f\x8b", 2);
    assert_int_equal(mu_text_measure(&size, "x", in_folder("sizes"), &e), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "domain \"x\": "));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),      cmocka_unit_test(test_bad_json), cmocka_unit_test(test_long_texts), cmocka_unit_test(test_text_key),
        cmocka_unit_test(test_joined),    cmocka_unit_test(test_broken),   cmocka_unit_test(test_window),     cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_long_line), cmocka_unit_test(test_links),    cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
