/* test_raw_files.c - token files of llm.c and Megatron: equal to the same documents read from texts; hostile ones. */
#include "data/folder.h"
#include "data/internal.h"

#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static mu_tokenizer *bytes;
enum { EOD = 256, CACHE = 1 << 16 };

static int set_up(void **state) {
    (void)state;
    return !mu_tokenizer_open(&bytes, "bytes", &e) && folder_make("raw") ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    mu_tokenizer_close(bytes);
    return mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

static void put(const char *name, const void *data, size_t n) {
    FILE *f = fopen(in_folder(name), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

static mu_status open_with(const mu_tokenizer *t, mu_corpus *c, const char *name) {
    mu_option_domain d = { .domain = "one", .weight = 1 };
    snprintf(d.path, sizeof d.path, "%s", in_folder(name));
    return mu_corpus_open(c, &(mu_option_domains){ 1, &d }, "text", t, 1, CACHE, &e);
}

static mu_status open_file(mu_corpus *c, const char *name) { return open_with(bytes, c, name); }

/* ------------------------------------------------------------------ making files */

typedef struct { char *data; size_t n, room; } blob;

static void add(blob *b, const void *data, size_t n) {
    if (b->n + n > b->room) b->data = mu_realloc(b->data, b->room = 2 * b->room + n + 64, 1);
    memcpy(b->data + b->n, data, n);
    b->n += n;
}
static void add_number(blob *b, int64_t value, size_t size) { add(b, &value, size); }  /* little-endian */

static void put_blob(const char *name, blob *b) {
    put(name, b->data, b->n);
    free(b->data);
    *b = (blob){ 0 };
}

static void put_llmc(const char *name, int magic, int version, int64_t said, int64_t n, const int32_t *ids, size_t size) {
    blob b = { 0 };
    static const char zeros[1024];
    add_number(&b, magic, 4), add_number(&b, version, 4), add_number(&b, said, 4);
    add(&b, zeros, 1024 - b.n);
    for (int64_t i = 0; i < n; i++) add_number(&b, ids[i], size);
    put_blob(name, &b);
}

/* The parts of an index, for one of them to be wrong. */
typedef struct {
    const char *magic;
    int64_t version, type, S, D, offset;    /* D: entries of the table of documents; offset: of the last sequence, if not 0 */
    const int32_t *lengths;
    const int64_t *first;
} index_parts;

static void put_index(const char *name, const index_parts *x, size_t size, size_t cut) {
    blob b = { 0 };
    int64_t offset = 0;
    add(&b, x->magic, 9), add_number(&b, x->version, 8), add_number(&b, x->type, 1), add_number(&b, x->S, 8), add_number(&b, x->D, 8);
    for (int64_t i = 0; i < x->S && x->lengths; i++) add_number(&b, x->lengths[i], 4);
    for (int64_t i = 0; i < x->S && x->lengths; offset += x->lengths[i++] * (int64_t)size)
        add_number(&b, x->offset && i == x->S - 1 ? x->offset : offset, 8);
    for (int64_t i = 0; i < x->D && x->first; i++) add_number(&b, x->first[i], 8);
    b.n -= cut;
    put_blob(name, &b);
}

static void put_ids(const char *name, int64_t n, const int32_t *ids, size_t size) {
    blob b = { 0 };
    for (int64_t i = 0; i < n; i++) add_number(&b, ids[i], size);
    put_blob(name, &b);
}

/* ------------------------------------------------------------------ equal to texts */

static void assert_equal_corpora(const mu_corpus *a, const mu_corpus *b) {
    const mu_domain *x = &a->domains[0], *y = &b->domains[0];
    assert_int_equal(x->n_tokens, y->n_tokens);
    assert_int_equal(x->n_documents, y->n_documents);
    assert_int_equal(x->text_bytes, y->text_bytes);
    assert_string_equal(x->fingerprint, y->fingerprint);
    assert_true(x->unigram_entropy == y->unigram_entropy);
    for (int64_t i = 0, end, other; i < x->n_documents; i++) {
        mu_domain_document_ends(x, i, 1, &end);
        mu_domain_document_ends(y, i, 1, &other);
        assert_int_equal(end, other);
    }
    for (int64_t at = 0; at < x->n_tokens; at += 997) {        /* backwards, across the borders of pieces and blocks */
        int32_t ids[2000], others[2000];
        int64_t first = x->n_tokens - 1 - at, n = at + 1 < 2000 ? at + 1 : 2000;
        mu_domain_ids(x, first, n, ids);
        mu_domain_ids(y, first, n, others);
        assert_memory_equal(ids, others, (size_t)n * sizeof *ids);
    }
}

/* The same N documents in every form. */
static void test_forms(void **state) {
    (void)state;
    enum { N = 1500, MOST = 400 };
    static int32_t behind[N * MOST], front[N * MOST], bare[N * MOST], lengths[N + 2], short_lengths[N + 2], halves[2 * N];
    static int64_t first[N + 3], twos[N + 1];
    int64_t n = 1, k = 0, m = 0;
    blob text = { 0 };
    front[0] = EOD;
    for (int i = 0; i < N; i++) {
        int length = 1 + i * 7919 % (MOST - 2);
        for (int c = 0; c < length; c++) front[n++] = behind[k++] = bare[m++] = 'a' + (i + c * c) % 26;
        char line[MOST + 40];
        int used = sprintf(line, "{\"text\": \"");
        for (int c = 0; c < length; c++) line[used++] = (char)bare[m - length + c];
        used += sprintf(line + used, "\"}\n");
        add(&text, line, (size_t)used);
        front[n++] = behind[k++] = EOD;
        lengths[i] = length + 1, short_lengths[i] = length, first[i] = i, halves[2 * i] = length, halves[2 * i + 1] = 1, twos[i] = 2 * i;
    }
    put_blob("texts.jsonl", &text);
    first[N] = N, twos[N] = 2 * N;
    put_llmc("front.bin", 20240520, 1, n - 1, n - 1, front, 2);
    put_llmc("wide.bin", 20240801, 7, n - 1, n - 1, front, 4);
    put_llmc("behind.bin", 20240520, 1, k, k, behind, 2);
    static const struct { int code; size_t size; } types[] = { { 3, 2 }, { 4, 4 }, { 5, 8 }, { 8, 2 } };
    mu_corpus c, from_texts;
    assert_ok(open_file(&from_texts, "texts.jsonl"));
    const char *const llmc[] = { "front.bin", "wide.bin", "behind.bin" };
    for (int i = 0; i < 3; i++) {
        assert_ok(open_file(&c, llmc[i]));
        assert_equal_corpora(&c, &from_texts);
        mu_corpus_close(&c);
    }
    for (int i = 0; i < 4; i++) {
        const index_parts parts[] = { { "MMIDIDX\0", 1, types[i].code, N, N + 1, 0, lengths, first }, { "MMIDIDX\0", 1, types[i].code, 2 * N, N + 1, 0, halves, twos },
                                      { "MMIDIDX\0", 1, types[i].code, N, N + 1, 0, short_lengths, first } };
        for (int part = 0; part < 3; part++) {
            put_ids("m.bin", part < 2 ? k : m, part < 2 ? behind : bare, types[i].size);
            put_index("m.idx", &parts[part], types[i].size, 0);
            assert_ok(open_file(&c, part ? "m.bin" : "m.idx"));
            assert_equal_corpora(&c, &from_texts);
            mu_corpus_close(&c);
        }
    }
    mu_corpus_close(&from_texts);
}

/* Empty documents are left out; a file without the end-of-document id is one document; a domain can be written as HDF5. */
static void test_borders(void **state) {
    (void)state;
    const int32_t ids[] = { EOD, EOD, 'a', 'b', EOD, EOD, EOD, 'c' };
    const int32_t lengths[] = { 0, 2, 0, 1 };
    const int64_t first[] = { 0, 0, 1, 3, 3, 4, 4 };
    mu_corpus c, d;
    put("t.jsonl", "{\"text\": \"ab\"}\n{\"text\": \"c\"}", 28);
    assert_ok(open_file(&d, "t.jsonl"));
    put_llmc("b.bin", 20240520, 1, 8, 8, ids, 2);
    assert_ok(open_file(&c, "b.bin"));
    assert_equal_corpora(&c, &d);
    assert_ok(mu_corpus_write(&c, bytes, in_folder("b.h5"), &e));
    mu_corpus_close(&c);
    assert_ok(open_file(&c, "b.h5"));
    assert_equal_corpora(&c, &d);
    mu_corpus_close(&c);
    put_ids("n.bin", 3, (const int32_t[]){ 'a', 'b', 'c' }, 1);
    put_index("n.idx", &(index_parts){ "MMIDIDX\0", 1, 1, 4, 7, 0, lengths, first }, 1, 0);
    assert_ok(open_file(&c, "n.bin"));
    assert_equal_corpora(&c, &d);
    mu_corpus_close(&c);
    mu_corpus_close(&d);
    put_llmc("whole.bin", 20240801, 7, 2, 2, ids + 2, 4);
    assert_ok(open_file(&c, "whole.bin"));
    assert_int_equal(c.domains[0].n_documents, 1);
    assert_int_equal(c.domains[0].n_tokens, 3);
    mu_domain_size size;
    mu_option_domain entry = { .domain = "one" };
    snprintf(entry.path, sizeof entry.path, "%s", in_folder("whole.bin"));
    assert_ok(mu_domain_measure(&size, &entry, bytes, 1, &e));
    assert_true(size.tokens == 3 && size.documents == 1 && size.in_file);
    mu_corpus_close(&c);
}

/* A byte-level vocabulary whose token `begin` is special if `special`, as is the last one, which ends documents. */
static mu_tokenizer *llama3(bool special) {
    enum { BEGIN = 128000, END, N };
    static char texts[N][16];
    static mu_token tokens[N];
    mu_tokenizer *t;
    for (int i = 0; i < N; i++) {
        int n = i < 256 ? 1 : snprintf(texts[i], sizeof texts[i], "%07d", i);
        if (i < 256) texts[i][0] = (char)i;
        tokens[i] = (mu_token){ texts[i], n };
    }
    const mu_bpe_vocabulary v = { "cl100k", N, 0, special ? 2 : 1, tokens, NULL, (const int32_t[]){ END, BEGIN } };
    assert_ok(mu_tokenizer_bpe_new(&t, &v, &e));
    return t;
}

/* llm.c's files for Llama 3: 128000 begins each document and stays there; behind it comes the end-of-document id. In any other vocabulary it
 * is a token like others. */
static void test_llama3(void **state) {
    (void)state;
    enum { B = 128000, END = 128001, N = 9, ALL = 9 };
    static const int32_t ids[N] = { B, 'a', 'b', B, B, 'c', 'd', B, 'e' }, expected[ALL + 1] = { B, 'a', 'b', END, B, 'c', 'd', END, B, 'e' };
    mu_tokenizer *t = llama3(true);
    mu_corpus c;
    assert_ok(mu_file_make_dirs(in_folder("llama"), &e));
    for (int i = 0; i <= N; i++) {
        int32_t read[ALL + 2];
        if (i == 4) continue;       /* an empty document at the end of a file is not left out: it might go on in the next */
        put_llmc("llama/1.bin", 20240801, 7, i, i, ids, 4);
        put_llmc("llama/2.bin", 20240801, 7, N - i, N - i, ids + i, 4);
        assert_ok(open_with(t, &c, "llama"));
        assert_int_equal(c.domains[0].n_documents, 3);
        assert_int_equal(c.domains[0].text_bytes, 5);
        assert_int_equal(c.domains[0].n_tokens, ALL + 2);
        mu_domain_ids(&c.domains[0], 0, ALL + 2, read);
        assert_memory_equal(read, expected, sizeof expected);
        assert_int_equal(read[ALL + 1], END);
        mu_corpus_close(&c);
    }
    mu_tokenizer_close(t);
    t = llama3(false);
    assert_ok(open_with(t, &c, "llama/1.bin"));
    assert_int_equal(c.domains[0].n_documents, 1);
    assert_int_equal(c.domains[0].n_tokens, N + 1);
    assert_int_equal(c.domains[0].text_bytes, 5 + 4 * 7);
    mu_corpus_close(&c);
    mu_tokenizer_close(t);
}

/* Files of a folder are one domain, wherever documents are cut. */
static void test_folders(void **state) {
    (void)state;
    const int32_t ids[] = { EOD, 'a', 'b', EOD, EOD, 'c', 'd', 'e', EOD, 'f' };
    enum { N = 10 };
    const char text[] = "[\"ab\", \"cde\", \"f\"]";
    mu_corpus c, expected;
    put("s.json", text, sizeof text - 1);
    assert_ok(open_file(&expected, "s.json"));
    assert_ok(mu_file_make_dirs(in_folder("shards"), &e));
    put("shards/notes.md", "x", 1);
    for (int i = 0; i <= N; i++)
        for (int k = i; k <= N; k++) {
            put_llmc("shards/1.bin", 20240520, 1, i, i, ids, 2);
            put_llmc("shards/2.bin", 20240801, 7, k - i, k - i, ids + i, 4);
            put_llmc("shards/3.bin", 20240520, 1, N - k, N - k, ids + k, 2);
            assert_ok(open_file(&c, "shards"));
            assert_equal_corpora(&c, &expected);
            mu_corpus_close(&c);
        }
    put_llmc("shards/1.bin", 20240520, 1, 3, 3, ids, 2);       /* then a file with an index: "ab" ends in front of it */
    put_ids("shards/2.bin", 3, ids + 5, 4);
    put_index("shards/2.idx", &(index_parts){ "MMIDIDX\0", 1, 4, 1, 2, 0, (const int32_t[]){ 3 }, (const int64_t[]){ 0, 1 } }, 4, 0);
    put_llmc("shards/3.bin", 20240520, 1, 1, 1, ids + 9, 2);
    assert_ok(open_file(&c, "shards"));
    assert_equal_corpora(&c, &expected);
    mu_corpus_close(&c);
    put("shards/2.idx", "x", 1);
    assert_int_equal(open_file(&c, "shards"), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "shards/2.idx: not an index"));
    assert_ok(mu_file_make_dirs(in_folder("shards/sub"), &e));         /* a folder of texts after all */
    put("shards/sub/t.txt", "text", 4);
    assert_ok(open_file(&c, "shards"));
    assert_int_equal(c.domains[0].n_tokens, 5);
    mu_corpus_close(&c);
    mu_corpus_close(&expected);
}

/* ------------------------------------------------------------------ hostile files */

static void assert_refused(const char *name, const char *says) {
    mu_corpus c;
    if (!open_file(&c, name)) fail_msg("%s is taken; expected: %s", name, says);
    assert_int_equal(e.status, MU_STATUS_DATA);
    if (!strstr(e.text, says)) fail_msg("no \"%s\" in: %s", says, e.text);
}

static void test_bad_llmc(void **state) {
    (void)state;
    const int32_t ids[] = { 'a', 'b', 300, 256 };
    const struct { int magic, version; int64_t said; size_t size; const char *says; } cases[] = {
        { 20240520, 1, 3, 2, "bad.bin: its header says 3 tokens of 2 bytes, but the file has 1028 bytes instead of 1030" },
        { 20240520, 1, 2147483647, 2, "its header says 2147483647 tokens" },
        { 20240520, 1, -1, 2, "its header says -1 tokens" },
        { 20240520, 2, 2, 2, "llm.c token file of version 2, expected 1" },
        { 20240801, 1, 2, 4, "llm.c token file of version 1, expected 7" },
        { 20240802, 1, 2, 2, "bad.bin: not a token file: neither llm.c's (it begins with 20240802, not" },
        { 20240520, 1, 0, 2, "instead of 1024" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_llmc("bad.bin", cases[i].magic, cases[i].version, cases[i].said, 2, ids, cases[i].size);
        assert_refused("bad.bin", cases[i].says);
    }
    put_llmc("bad.bin", 20240520, 1, 4, 4, ids, 2);
    assert_refused("bad.bin", "bad.bin: token 2 has id 300, but the vocabulary has 257 ids; data.tokenizer must be");
    put_llmc("bad.bin", 20240801, 7, 1, 1, (const int32_t[]){ -1 }, 4);
    assert_refused("bad.bin", "token 0 has id 4294967295");
    put_llmc("bad.bin", 20240520, 1, 0, 0, ids, 2);
    assert_refused("bad.bin", "no text in");
    put("bad.bin", "", 0);
    assert_refused("bad.bin", "it begins with 0");
    put("bad.bin", "\x88\xd8\x34\x01\x01\0\0\0\0\0\0\0", 12);
    assert_refused("bad.bin", "the file has 12 bytes instead of 1024");
}

static void test_bad_megatron(void **state) {
    (void)state;
    const int32_t ids[] = { 'a', 'b', EOD, 'c', EOD };
    static const int32_t good[] = { 3, 2 }, negative[] = { 3, -2 }, huge[] = { 3, INT32_MAX }, little[] = { 3, 1 };
    static const int64_t first[] = { 0, 1, 2 }, backwards[] = { 0, 2, 1 }, beyond[] = { 0, 1, INT64_MAX }, late[] = { 1, 1, 2 }, early[] = { 0, 1, 1 };
    const struct { index_parts x; size_t cut; const char *says; } cases[] = {
        { { "MMIDIDY\0", 1, 4, 2, 3, 0, good, first }, 0, "m.idx: not an index of Megatron" },
        { { "MMIDIDX\0", 2, 4, 2, 3, 0, good, first }, 0, "m.idx: version 2 of the format, expected 1" },
        { { "MMIDIDX\0", 1, 7, 2, 3, 0, good, first }, 0, "m.idx: ids of type 7; known are" },
        { { "MMIDIDX\0", 1, 4, 2, 3, 0, good, first }, 1, "m.idx: its header says 2 sequences and 2 documents, which does not fit its 81 bytes" },
        { { "MMIDIDX\0", 1, 4, 2, 3, 0, good, first }, 60, "m.idx: not an index of Megatron" },
        { { "MMIDIDX\0", 1, 4, 2, 0, 0, good, first }, 0, "which does not fit" },
        { { "MMIDIDX\0", 1, 4, INT64_MAX / 6, 3, 0, NULL, NULL }, 0, "which does not fit" },
        { { "MMIDIDX\0", 1, 4, 0x1555555555555555, 3, 0, NULL, NULL }, 0, "which does not fit" },     /* times 12: small again */
        { { "MMIDIDX\0", 1, 4, 2, INT64_MIN, 0, NULL, NULL }, 0, "which does not fit" },
        { { "MMIDIDX\0", 1, 4, 2, 3, 0, negative, first }, 0, "the lengths of the sequences do not fit the tokens in the .bin (number 1 is -2)" },
        { { "MMIDIDX\0", 1, 4, 2, 3, 0, huge, first }, 0, "(number 1 is 2147483647)" },
        { { "MMIDIDX\0", 1, 4, 2, 3, 0, little, first }, 0, "the documents end before the tokens do" },
        { { "MMIDIDX\0", 1, 4, 2, 3, 4, good, first }, 0, "the sequences do not lie one after another in the .bin (number 1 is 4)" },
        { { "MMIDIDX\0", 1, 4, 2, 3, 0, good, backwards }, 0, "m.idx: the documents' first sequences are not in order (number 2 is 1)" },
        { { "MMIDIDX\0", 1, 4, 2, 3, 0, good, beyond }, 0, "are not in order (number 2 is 9223372036854775807)" },
        { { "MMIDIDX\0", 1, 4, 2, 3, 0, good, late }, 0, "are not in order (number 0 is 1)" },
        { { "MMIDIDX\0", 1, 4, 2, 3, 0, good, early }, 0, "are not in order (number 2 is 1)" },
        { { "MMIDIDX\0", 1, 5, 2, 3, 0, good, first }, 0, "m.bin: 20 bytes are no whole number of ids of 8 bytes" },
        { { "MMIDIDX\0", 1, 1, 2, 3, 0, good, first }, 0, "do not lie one after another" },
    };
    put_ids("m.bin", 5, ids, 4);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_index("m.idx", &cases[i].x, 4, cases[i].cut);
        assert_refused(i % 2 ? "m.bin" : "m.idx", cases[i].says);
    }
    put_index("m.idx", &cases[0].x, 4, 0);
    put("m.idx", "", 0);
    assert_refused("m.bin", "not an index");
    put_index("m.idx", &(index_parts){ "MMIDIDX\0", 1, 4, 2, 3, 0, good, first }, 4, 0);
    put_ids("m.bin", 5, (const int32_t[]){ 'a', 'b', EOD, -1, EOD }, 4);
    assert_refused("m.bin", "m.bin: token 3 has id -1");
    put_ids("m.bin", 4, ids, 4);
    assert_refused("m.bin", "do not fit the tokens in the .bin (number 1 is 2)");
    unlink(in_folder("m.bin"));
    mu_corpus c;
    assert_int_equal(open_file(&c, "m.idx"), MU_STATUS_NOINPUT);
    assert_non_null(strstr(e.text, "m.bin: No such file"));
}

/* Pipes are not waited for, absent files are named. */
static void test_absent(void **state) {
    (void)state;
    mu_corpus c;
    assert_int_equal(open_file(&c, "absent.bin"), MU_STATUS_NOINPUT);
    assert_non_null(strstr(e.text, "absent.bin: No such file"));
    assert_int_equal(open_file(&c, "absent.idx"), MU_STATUS_NOINPUT);
    assert_non_null(strstr(e.text, "absent.idx: No such file"));
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_forms), cmocka_unit_test(test_borders), cmocka_unit_test(test_llama3), cmocka_unit_test(test_folders),
                                        cmocka_unit_test(test_bad_llmc),
                                        cmocka_unit_test(test_bad_megatron), cmocka_unit_test(test_absent) };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
