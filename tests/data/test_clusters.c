/* test_clusters.c - clusters of documents: planted ones are found, whatever the number of threads; a book is divided; no cluster is empty. */
#include "data/folder.h"
#include "data/internal.h"

#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

enum { TOPICS = 4, CACHE = 8 << 20 };
static mu_tokenizer *bytes;

static int set_up(void **state) {
    (void)state;
    return !mu_tokenizer_open(&bytes, "bytes", &e) && folder_make("clusters") ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    mu_tokenizer_close(bytes);
    return mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

/* Writes documents of `words` words, three of four from a topic of 60 words, the others common to all topics. */
static void write_words(FILE *f, int topic, uint32_t document, int words, const char *between) {
    const mu_rng rng = { .seed = 5, .step = document, .sample = (uint32_t)topic, .purpose = MU_RNG_TEST };
    for (uint64_t i = 0; i < (uint64_t)words; i++) {
        uint32_t u = mu_rng_u32(&rng, i), of = u % 4 ? (uint32_t)topic : TOPICS, number = (u >> 8) % 60;
        uint64_t letters = mu_hash64(&(uint32_t[]){ of, number }, 2 * sizeof number);
        for (int k = 0; k < 5; k++) fputc('a' + (int)((letters >> 8 * k) % 26), f);
        fputs(i % 12 == 11 ? between : " ", f);
    }
}

static void write_topic(int topic) {
    FILE *f = fopen(in_folder((char[]){ 't', (char)('0' + topic), '.', 'j', 's', 'o', 'n', 'l', '\0' }), "w");
    assert_non_null(f);
    for (uint32_t i = 0; i < 30; i++) {
        fputs("{\"text\": \"", f);
        write_words(f, topic, i, 300, "\\n");
        fputs("\"}\n", f);
    }
    fclose(f);
}

static void open_topics(mu_corpus *c) {
    mu_option_domain list[TOPICS] = { 0 };
    for (int i = 0; i < TOPICS; i++) {
        write_topic(i);
        snprintf(list[i].domain, sizeof list[i].domain, "t%d", i);
        snprintf(list[i].path, sizeof list[i].path, "%s/t%d.jsonl", folder, i);
        list[i].weight = 1;
    }
    assert_ok(mu_corpus_open(c, &(mu_option_domains){ TOPICS, list }, "text", bytes, 1, CACHE, &e));
}

static mu_status open_path(mu_corpus *c, const char *domain, const char *path) {
    mu_option_domain one = { .weight = 1 };
    snprintf(one.domain, sizeof one.domain, "%s", domain);
    snprintf(one.path, sizeof one.path, "%s", path);
    return mu_corpus_open(c, &(mu_option_domains){ 1, &one }, "text", bytes, 1, CACHE, &e);
}

/* Every cluster is one topic, and nothing is lost. */
static void test_planted(void **state) {
    (void)state;
    mu_corpus c;
    mu_clusters r;
    open_topics(&c);
    int64_t tokens = 0, text = 0, found = 0;
    for (int i = 0; i < TOPICS; i++) tokens += c.domains[i].n_tokens, text += c.domains[i].text_bytes;
    assert_ok(mu_corpus_cluster(&c, bytes, TOPICS, 1, &r, &e));
    assert_int_equal(c.n_domains, TOPICS);
    for (int j = 0; j < TOPICS; j++) {
        int topics = 0;
        for (int i = 0; i < TOPICS; i++) topics += r.tokens[j * TOPICS + i] > 0;
        assert_int_equal(topics, 1);
        assert_int_equal(c.domains[j].n_documents, 30);
        assert_true(j == 0 || c.domains[j].n_tokens <= c.domains[j - 1].n_tokens);
        assert_int_equal(strlen(r.words[j]), 5 * 5 + 4);
        found += c.domains[j].n_tokens, text -= c.domains[j].text_bytes;
    }
    assert_int_equal(found, tokens);
    assert_int_equal(text, 0);
    assert_string_equal(c.domains[3].name, "cluster-03");
    mu_clusters_free(&r);
    mu_corpus_close(&c);
}

/* The same for any number of threads, and from a token file. */
static void test_same(void **state) {
    (void)state;
    char first[33] = "";
    for (int threads = 1; threads <= 4; threads++) {
        mu_corpus c;
        mu_clusters r;
        mu_threads_set(threads);
        open_topics(&c);
        assert_ok(mu_corpus_cluster(&c, bytes, 7, 3, &r, &e));
        if (threads == 1) strcpy(first, c.fingerprint);
        assert_string_equal(c.fingerprint, first);
        mu_clusters_free(&r);
        mu_corpus_close(&c);
    }
    mu_corpus texts, file;
    mu_clusters r;
    char from_texts[33];
    assert_ok(open_path(&texts, "t1", in_folder("t1.jsonl")));
    assert_ok(mu_corpus_write(&texts, bytes, in_folder("t1.h5"), &e));
    assert_ok(mu_corpus_cluster(&texts, bytes, 3, 1, &r, &e));
    strcpy(from_texts, texts.fingerprint);
    mu_clusters_free(&r);
    assert_ok(open_path(&file, "t1", in_folder("t1.h5")));
    assert_ok(mu_corpus_cluster(&file, bytes, 3, 1, &r, &e));
    assert_string_equal(file.fingerprint, from_texts);
    mu_clusters_free(&r);
    mu_corpus_close(&texts);
    mu_corpus_close(&file);
    mu_threads_set(1);
}

/* A book that speaks of one thing after another is divided there, with the end-of-document id behind each part. */
static void test_book(void **state) {
    (void)state;
    mu_corpus c;
    mu_clusters r;
    FILE *f = fopen(in_folder("book.txt"), "w");
    assert_non_null(f);
    for (int topic = 0; topic < 3; topic++) write_words(f, topic, 0, 12 * 500, "\n");
    fclose(f);
    assert_ok(open_path(&c, "book", in_folder("book.txt")));
    int64_t tokens = c.domains[0].n_tokens, found = 0;
    assert_int_equal(c.domains[0].n_documents, 1);
    assert_ok(mu_corpus_cluster(&c, bytes, 3, 1, &r, &e));
    for (int j = 0; j < 3; j++) {
        const mu_domain *d = &c.domains[j];
        int32_t last[2];
        assert_int_equal(d->n_documents, 1);
        mu_domain_ids(d, d->n_tokens - 2, 2, last);
        assert_int_equal(last[0], '\n');
        assert_int_equal(last[1], mu_tokenizer_eod(bytes));
        found += d->n_tokens;
    }
    assert_int_equal(found, tokens + 2);
    mu_clusters_free(&r);
    mu_corpus_close(&c);
}

/* Texts that are all alike, and more clusters than pieces. */
static void test_few(void **state) {
    (void)state;
    mu_corpus c;
    mu_clusters r;
    FILE *f = fopen(in_folder("alike.jsonl"), "w");
    assert_non_null(f);
    for (int i = 0; i < 10; i++) fputs("{\"text\": \"the same\"}\n", f);
    fclose(f);
    for (int k = 3; k <= 10; k += 7) {
        assert_ok(open_path(&c, "alike", in_folder("alike.jsonl")));
        assert_ok(mu_corpus_cluster(&c, bytes, k, 1, &r, &e));
        for (int j = 0; j < k; j++) assert_true(c.domains[j].n_documents >= 1);
        mu_clusters_free(&r);
        mu_corpus_close(&c);
    }
    assert_ok(open_path(&c, "alike", in_folder("alike.jsonl")));
    assert_int_equal(mu_corpus_cluster(&c, bytes, 11, 1, &r, &e), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "11 clusters of 10 pieces"));
    mu_clusters_free(&r);
    mu_corpus_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_planted), cmocka_unit_test(test_same), cmocka_unit_test(test_book), cmocka_unit_test(test_few) };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
