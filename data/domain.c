/* domain.c - one domain: adding documents, scanning, reading. */
#include "data/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ making */

/* The ids of a batch; ends: behind the ids of each part. */
typedef struct { mu_column *ids; int64_t *ends, room; } encoded;

static encoded *encoded_of(mu_batch *b, const mu_tokenizer *t) {
    encoded *r = b->result ? b->result : mu_alloc(1, sizeof *r);
    b->result = r;
    if (!r->ids) r->ids = mu_column_new(mu_ids_type(mu_tokenizer_vocab_size(t)));
    if (r->room < b->n_parts) r->ends = mu_realloc(r->ends, (size_t)(r->room = b->parts_room), sizeof *r->ends);
    return r;
}

static void free_encoded(void *result) {
    encoded *r = result;
    if (!r) return;
    mu_column_free(r->ids);
    free(r->ends);
    free(r);
}

static void take_ids(void *tokens, const int32_t *ids, int64_t n) { mu_column_append_ids(tokens, ids, n); }

static void encode_batch(void *maker, mu_batch *b) {
    const mu_domain_maker *m = maker;
    encoded *r = encoded_of(b, m->tokenizer);
    int32_t eod = mu_tokenizer_eod(m->tokenizer);
    mu_column_clear(r->ids);
    for (int64_t i = 0, at = 0; i < b->n_parts; at = b->parts[i++].end) {
        mu_tokenizer_encode(m->tokenizer, b->text + at, b->parts[i].end - at, take_ids, r->ids);
        if (b->parts[i].ends_document) take_ids(r->ids, &eod, 1);
        r->ends[i] = mu_column_length(r->ids);
    }
}

static void take_batch(void *maker, const mu_batch *b) {
    mu_domain *d = ((mu_domain_maker *)maker)->domain;
    const encoded *r = b->result;
    mu_column_append(d->tokens, r->ids);
    for (int64_t i = 0; i < b->n_parts; i++) {
        if (!b->parts[i].ends_document) continue;
        mu_column_append_offset(d->document_offsets, d->n_tokens + r->ends[i]);
        d->n_documents++;
    }
    d->n_tokens = mu_column_length(d->tokens);
}

typedef struct { mu_domain_maker *maker; mu_status (*read)(mu_domain_maker *m, mu_error *e); } source;

static mu_status read_source(mu_batches *b, void *from, mu_error *e) {
    source *s = from;
    s->maker->batches = b;
    return s->read(s->maker, e);
}

mu_status mu_domain_make(mu_domain_maker *m, mu_status (*read)(mu_domain_maker *m, mu_error *e), mu_error *e) {
    mu_domain *d = m->domain;
    mu_batch_work work = { .work = encode_batch, .take = take_batch, .free = free_encoded, .cut = m->tokenizer->cut, .context = m };
    d->tokens = mu_column_new(mu_ids_type(mu_tokenizer_vocab_size(m->tokenizer)));
    d->document_offsets = mu_column_new(MU_STORE_I64);
    mu_column_append_offset(d->document_offsets, 0);
    return mu_batches_run(&work, read_source, &(source){ m, read }, e);
}

void mu_domain_add(mu_domain_maker *m, const char *text, int64_t bytes, int64_t read) {
    if (bytes == 0) return;
    m->domain->text_bytes += bytes;
    mu_batches_add(m->batches, text, bytes, read);
}

void mu_domain_close(mu_domain *d) {
    mu_error e;
    mu_column_free(d->tokens);
    mu_column_free(d->document_offsets);
    if (mu_store_close(d->file, &e)) mu_log(MU_LOG_WARNING, "%s", e.text);
}

/* ------------------------------------------------------------------ scanning */

/* State of the scan: `document` is the one that ends at `end`. */
typedef struct {
    mu_domain *d;
    const mu_tokenizer *t;
    const char *path;
    mu_hash *hash;
    int64_t *counts;            /* of each id */
    int64_t document, end;
} scan;

static mu_status bad_offsets(const scan *s, mu_error *e) {
    return mu_error_set(e, MU_STATUS_DATA, "%s: domain \"%s\": document_offsets do not match the tokens", s->path, s->d->name);
}

/* The end of the next document, which must be behind the previous one's. */
static mu_status next_end(scan *s, mu_error *e) {
    int64_t before = s->end;
    if (s->document == s->d->n_documents) return bad_offsets(s, e);
    mu_status status = mu_column_read(s->d->document_offsets, ++s->document, 1, &s->end, e);
    if (!status && (s->end <= before || s->end > s->d->n_tokens)) status = bad_offsets(s, e);
    return status;
}

/* The ids of tokens [at, at + n). */
static mu_status scan_part(scan *s, int64_t at, int64_t n, const int32_t *ids, mu_error *e) {
    int vocab_size = mu_tokenizer_vocab_size(s->t);
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return mu_error_set(e, MU_STATUS_DATA, "%s: domain \"%s\": token %lld has id %d, but the vocabulary has %d ids", s->path, s->d->name,
                                (long long)(at + i), ids[i], vocab_size);
        s->counts[ids[i]]++;
    }
    mu_status status = MU_STATUS_OK;
    while (!status && s->end <= at + n) {
        if (ids[s->end - 1 - at] != mu_tokenizer_eod(s->t)) return bad_offsets(s, e);
        if (s->end == s->d->n_tokens) break;
        status = next_end(s, e);
    }
    return status;
}

static mu_status scan_ids(scan *s, mu_error *e) {
    enum { PART = 1 << 15 };
    const mu_column *tokens = s->d->tokens;
    size_t size = mu_column_size(tokens);
    int32_t *ids = mu_alloc(PART, sizeof *ids);
    void *raw = mu_alloc(PART, size);
    mu_status status = s->d->n_tokens ? next_end(s, e) : MU_STATUS_OK;
    for (int64_t at = 0, n; !status && at < s->d->n_tokens; at += n) {
        n = s->d->n_tokens - at < PART ? s->d->n_tokens - at : PART;
        status = mu_column_read(tokens, at, n, raw, e);
        if (!status) mu_hash_add(s->hash, raw, (size_t)n * size);
        if (!status) status = mu_column_ids(tokens, at, n, ids, e);
        if (!status) status = scan_part(s, at, n, ids, e);
        mu_activity_tick();
    }
    free(raw);
    free(ids);
    return status;
}

static double entropy(const int64_t *counts, int n, int64_t all) {
    double sum = 0;
    for (int v = 0; v < n; v++) {
        double p = (double)counts[v] / (double)all;
        if (counts[v]) sum -= p * log(p);
    }
    return sum;
}

mu_status mu_domain_scan(mu_domain *d, const mu_tokenizer *t, const char *path, mu_error *e) {
    int vocab_size = mu_tokenizer_vocab_size(t);
    scan s = { .d = d, .t = t, .path = path, .hash = mu_hash_new(), .counts = mu_alloc((size_t)vocab_size, sizeof *s.counts) };
    int64_t first = -1;
    mu_column_trim(d->tokens);
    mu_column_trim(d->document_offsets);
    mu_status status = d->n_documents < 0 || d->text_bytes < 0 ? bad_offsets(&s, e) : MU_STATUS_OK;
    if (!status) status = mu_column_read(d->document_offsets, 0, 1, &first, e);
    if (!status && first != 0) status = bad_offsets(&s, e);
    if (!status) status = scan_ids(&s, e);
    if (!status && s.document != d->n_documents) status = bad_offsets(&s, e);
    mu_hash_finish(s.hash, d->fingerprint);
    d->unigram_entropy = entropy(s.counts, vocab_size, d->n_tokens);
    free(s.counts);
    return status;
}

/* ------------------------------------------------------------------ reading */

/* A token file was read completely when it was opened; no caller can handle a read error in the middle of a step. */
static void must(mu_status status, const mu_domain *d, const mu_error *e) {
    if (status) MU_FATAL(status, "domain \"%s\": its token file can no longer be read: %s", d->name, e->text);
}

void mu_domain_ids(const mu_domain *d, int64_t first, int64_t n, int32_t *ids) {
    mu_error e;
    MU_CHECK(d && d->tokens, "domain %p has no tokens", (const void *)d);
    must(mu_column_ids(d->tokens, first, n, ids, &e), d, &e);
}

void mu_domain_document_ends(const mu_domain *d, int64_t first, int64_t n, int64_t *ends) {
    mu_error e;
    MU_CHECK(d && d->tokens, "domain %p has no tokens", (const void *)d);
    must(mu_column_read(d->document_offsets, first + 1, n, ends, &e), d, &e);
}
