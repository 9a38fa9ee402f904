/* token_file.c - a tokenized corpus in one HDF5 file: /tokenizer, /fingerprint and, for each domain,
 * /domains/NAME/{tokens u16, document_offsets i64, text_bytes i64 [1]}. */
#include "data/internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool mu_token_file_named(const char *path) {
    return mu_file_ends(path, ".h5") || mu_file_ends(path, ".hdf5");
}

/* The heap name of one of a domain's datasets. */
static char *dataset(const mu_domain *d, const char *what) {
    return mu_format("/domains/%s/%s", d->name, what);
}

/* ------------------------------------------------------------------ writing */

static mu_status write_array(mu_store *s, const mu_domain *d, const char *what, mu_store_type type, int64_t n,
                             const void *data, mu_error *e) {
    char *name = dataset(d, what);
    mu_status status = mu_store_write(s, name, type, 1, &n, data, e);
    free(name);
    return status;
}

static mu_status write_domain(mu_store *s, const mu_domain *d, mu_error *e) {
    mu_status status = write_array(s, d, "tokens", MU_STORE_U16, d->n_tokens, d->tokens, e);
    if (!status)
        status =
            write_array(s, d, "document_offsets", MU_STORE_I64, d->n_documents + 1, d->document_offsets, e);
    if (!status) status = write_array(s, d, "text_bytes", MU_STORE_I64, 1, &d->text_bytes, e);
    return status;
}

static mu_status write_file(const mu_corpus *c, const mu_tokenizer *t, const char *path, mu_error *e) {
    mu_store *s;
    mu_status status = mu_store_create(&s, path, e);
    if (status) return status;
    status = mu_store_write_text(s, "/tokenizer", mu_tokenizer_name(t), e);
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

/* Only a token file is replaced: it can be made again. */
static mu_status check_free(const char *path, char fingerprint[33], mu_error *e) {
    struct stat st;
    fingerprint[0] = '\0';
    if (lstat(path, &st)) return MU_STATUS_OK;
    if (S_ISREG(st.st_mode) && read_fingerprint(path, fingerprint)) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_USAGE, "%s is there already and is not a token file", path);
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

/* Under another name first: a half token file never has the name of a whole one. */
mu_status mu_corpus_write(const mu_corpus *c, const mu_tokenizer *t, const char *path, mu_error *e) {
    char *temporary, old[33];
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

/* A one-dimensional dataset of any length into heap memory. */
static mu_status read_array(mu_store *s, const mu_domain *d, const char *what, mu_store_type type,
                            size_t size, void **data, int64_t *n, mu_error *e) {
    char *name = dataset(d, what);
    mu_store_type found;
    int n_dims;
    int64_t shape[4];
    mu_status status = mu_store_shape(s, name, &found, &n_dims, shape, e);
    *n = status || n_dims != 1 ? 0 : shape[0];          /* more dimensions: refused by the reading below */
    if (!status) {
        *data = mu_alloc((size_t)*n, size);
        status = mu_store_read(s, name, type, 1, n, *data, e);
    }
    free(name);
    return status;
}

/* Every id is in the vocabulary, and documents follow each other without a gap, each with its end. */
static mu_status check_content(const mu_domain *d, const mu_tokenizer *t, const char *path, mu_error *e) {
    int vocab_size = mu_tokenizer_vocab_size(t), eod = mu_tokenizer_eod(t);
    for (int64_t i = 0; i < d->n_tokens; i++)
        if (d->tokens[i] >= vocab_size)
            return mu_error_set(e, MU_STATUS_DATA, "%s: domain \"%s\": token %lld is %d, vocabulary %d", path,
                                d->name, (long long)i, d->tokens[i], vocab_size);
    bool whole = d->n_documents >= 0 && d->document_offsets[0] == 0 &&
                 d->document_offsets[d->n_documents] == d->n_tokens && d->text_bytes >= 0;
    for (int64_t i = 0; whole && i < d->n_documents; i++) {
        int64_t end = d->document_offsets[i + 1];
        whole = end > d->document_offsets[i] && end <= d->n_tokens && d->tokens[end - 1] == eod;
    }
    if (whole) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_DATA, "%s: domain \"%s\": document_offsets do not fit the tokens", path,
                        d->name);
}

static mu_status read_domain(mu_store *s, mu_domain *d, const mu_tokenizer *t, const char *path,
                             mu_error *e) {
    char *written_by;
    mu_status status = mu_store_read_text(s, "/tokenizer", &written_by, e);
    if (status) return status;
    if (strcmp(written_by, mu_tokenizer_name(t)))
        status = mu_error_set(e, MU_STATUS_DATA, "%s: made with tokenizer \"%s\", not \"%s\"", path,
                              written_by, mu_tokenizer_name(t));
    free(written_by);
    void *tokens = NULL, *offsets = NULL, *bytes = NULL;
    int64_t n_offsets = 0, n_bytes = 0;
    if (!status)
        status = read_array(s, d, "tokens", MU_STORE_U16, sizeof *d->tokens, &tokens, &d->n_tokens, e);
    if (!status)
        status = read_array(s, d, "document_offsets", MU_STORE_I64, sizeof(int64_t), &offsets, &n_offsets, e);
    if (!status)
        status = read_array(s, d, "text_bytes", MU_STORE_I64, sizeof(int64_t), &bytes, &n_bytes, e);
    d->tokens = tokens;
    d->document_offsets = offsets;
    d->n_documents = n_offsets - 1;
    d->text_bytes = n_bytes == 1 ? *(int64_t *)bytes : -1;
    free(bytes);
    return status ? status : check_content(d, t, path, e);
}

mu_status mu_token_file_read(mu_domain *d, const mu_tokenizer *t, const char *path, mu_error *e) {
    mu_store *s;
    mu_status status = mu_store_open(&s, path, e);
    if (status) return status;
    status = read_domain(s, d, t, path, e);
    return mu_store_finish(s, status, e);
}
