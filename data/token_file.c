/* token_file.c - a tokenized corpus in one HDF5 file: /tokenizer, /tokenizer_fingerprint (not in older files), /fingerprint
 * and, for each domain, /domains/NAME/{tokens, document_offsets i64, text_bytes i64 [1]}. Tokens are u16 where that suffices for the
 * vocabulary, else i32. Reading a sequence reads its whole chunk, so chunks are small. */
#include "data/internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool mu_is_hdf5(const char *path) { return mu_file_ends(path, ".h5") || mu_file_ends(path, ".hdf5"); }
bool mu_is_token_file(const char *path) { return mu_is_hdf5(path) || mu_raw_file_named(path) || mu_raw_folder(path); }

enum { CHUNK_BYTES = 1 << 15, WRITE_CHUNKS = 32 };

/* Path of one of a domain's datasets, heap. */
static char *dataset(const char *domain, const char *what) { return mu_format("/domains/%s/%s", domain, what); }

/* ------------------------------------------------------------------ writing */

static mu_status write_column(mu_store *s, const mu_domain *d, const char *what, const mu_column *c, mu_error *e) {
    int64_t n = mu_column_length(c), size = (int64_t)mu_column_size(c), most = WRITE_CHUNKS * CHUNK_BYTES / size;
    mu_store_type type = mu_column_type(c);
    char *name = dataset(d->name, what);
    void *part = mu_alloc((size_t)most, (size_t)size);
    mu_status status = mu_store_make(s, name, type, 1, &n, CHUNK_BYTES / size, e);
    for (int64_t at = 0, here; !status && at < n; at += here) {
        here = n - at < most ? n - at : most;
        status = mu_column_read(c, at, here, part, e);
        if (!status) status = mu_store_write_part(s, name, type, at, here, part, e);
        mu_activity_tick();
    }
    free(part);
    free(name);
    return status;
}

static mu_status write_domain(mu_store *s, const mu_domain *d, mu_error *e) {
    mu_status status = write_column(s, d, "tokens", d->tokens, e);
    if (!status) status = write_column(s, d, "document_offsets", d->document_offsets, e);
    char *name = dataset(d->name, "text_bytes");
    if (!status) status = mu_store_write(s, name, MU_STORE_I64, 1, (int64_t[]){ 1 }, &d->text_bytes, e);
    free(name);
    return status;
}

static mu_status write_file(const mu_corpus *c, const mu_tokenizer *t, const char *path, mu_error *e) {
    mu_store *s;
    mu_status status = mu_store_create(&s, path, e);
    if (status) return status;
    status = mu_store_write_text(s, "/tokenizer", mu_tokenizer_name(t), e);
    if (!status) status = mu_store_write_text(s, "/tokenizer_fingerprint", mu_tokenizer_fingerprint(t), e);
    if (!status) status = mu_store_write_text(s, "/fingerprint", c->fingerprint, e);
    for (int i = 0; !status && i < c->n_domains; i++) status = write_domain(s, &c->domains[i], e);
    return mu_store_finish(s, status, e);
}

/* The fingerprint of a token file; false for any other file. */
static bool read_fingerprint(const char *path, char fingerprint[33]) {
    mu_store *s;
    mu_error e;
    char *text;
    if (mu_store_open(&s, path, &e)) return false;
    mu_status status = mu_store_read_text(s, "/fingerprint", &text, &e);
    if (!status) {
        snprintf(fingerprint, 33, "%s", text);
        free(text);
    }
    return mu_store_finish(s, status, &e) == MU_STATUS_OK;
}

/* Only a token file may be replaced: it can be recreated. */
static mu_status check_free(const char *path, char fingerprint[33], mu_error *e) {
    struct stat st;
    fingerprint[0] = '\0';
    if (lstat(path, &st)) return MU_STATUS_OK;
    if (S_ISREG(st.st_mode) && read_fingerprint(path, fingerprint)) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_USAGE, "%s exists and is not a token file", path);
}

mu_status mu_token_file_check(const char *path, char fingerprint[33], mu_error *e) {
    char *temporary;
    mu_status status = check_free(path, fingerprint, e);
    if (!status) status = mu_file_temporary(path, &temporary, e);
    if (status) return status;
    unlink(temporary);
    free(temporary);
    return MU_STATUS_OK;
}

/* Written under a temporary name first: an incomplete token file never has the final name. */
mu_status mu_corpus_write(const mu_corpus *c, const mu_tokenizer *t, const char *path, mu_error *e) {
    char *temporary, old[33];
    MU_CHECK(c && c->n_domains > 0 && t && path,
             "corpus %p, tokenizer %p, path %s", (const void *)c, (const void *)t,
             path ? path : "NULL");
    mu_status status = mu_file_temporary(path, &temporary, e);
    if (status) return status;
    status = write_file(c, t, temporary, e);
    if (!status) status = check_free(path, old, e);
    if (!status) status = mu_file_rename(temporary, path, e);
    if (status) unlink(temporary);
    free(temporary);
    return status;
}

/* ------------------------------------------------------------------ reading */

/* Checks that the file was made with this tokenizer; older files have only its name. */
static mu_status check_tokenizer(mu_store *s, const mu_tokenizer *t, const char *path, mu_error *e) {
    char *name = NULL, *fingerprint = NULL;
    mu_status status = mu_store_read_text(s, "/tokenizer", &name, e);
    if (!status && mu_store_has(s, "/tokenizer_fingerprint"))
        status = mu_store_read_text(s, "/tokenizer_fingerprint", &fingerprint, e);
    if (!status) status = mu_tokenizer_check(t, path, name, fingerprint ? fingerprint : "", e);
    free(name);
    free(fingerprint);
    return status;
}

static mu_status open_column(mu_domain *d, const char *what, mu_store_type type, mu_cache *cache, mu_column **c, mu_error *e) {
    char *name = dataset(d->name, what);
    mu_status status = mu_column_open(c, type, d->file, name, cache, e);
    free(name);
    return status;
}

static mu_status open_domain(mu_domain *d, const mu_tokenizer *t, mu_cache *cache, mu_error *e) {
    mu_status status = open_column(d, "tokens", mu_ids_type(mu_tokenizer_vocab_size(t)), cache, &d->tokens, e);
    if (!status) status = open_column(d, "document_offsets", MU_STORE_I64, cache, &d->document_offsets, e);
    if (status) return status;
    d->n_tokens = mu_column_length(d->tokens);
    d->n_documents = mu_column_length(d->document_offsets) - 1;
    char *name = dataset(d->name, "text_bytes");
    status = mu_store_read(d->file, name, MU_STORE_I64, 1, (int64_t[]){ 1 }, &d->text_bytes, e);
    free(name);
    return status;
}

mu_status mu_token_file_open(mu_domain *d, const mu_tokenizer *t, const char *path, mu_cache *cache, mu_error *e) {
    if (!mu_is_hdf5(path)) return mu_raw_file_open(d, t, path, cache, e);
    mu_status status = mu_store_open(&d->file, path, e);
    if (!status) status = check_tokenizer(d->file, t, path, e);
    return status ? status : open_domain(d, t, cache, e);
}

mu_status mu_token_file_measure(mu_domain_size *size, const char *domain, const mu_tokenizer *t, const char *path,
                                mu_error *e) {
    mu_domain d = { 0 };
    mu_cache *cache = mu_cache_new(0);
    snprintf(d.name, sizeof d.name, "%s", domain);
    mu_status status = mu_token_file_open(&d, t, path, cache, e);
    *size = (mu_domain_size){ .tokens = d.n_tokens, .documents = d.n_documents, .in_file = true };
    mu_domain_close(&d);
    mu_cache_free(cache);
    return status;
}
