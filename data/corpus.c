/* corpus.c - all domains of a run. */
#include "data/internal.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ a domain from any kind of source */

static bool is_synthetic(const char *path) { return !strcmp(path, "synthetic"); }

static mu_status open_domain(mu_domain *d, const char *path, const char *text_key, const mu_tokenizer *t, uint64_t seed,
                             mu_cache *cache, mu_error *e) {
    mu_domain_maker m = { .domain = d, .tokenizer = t, .path = path, .text_key = text_key, .seed = seed };
    mu_status status = MU_STATUS_OK;
    bool in_file = !is_synthetic(path) && mu_is_token_file(path);
    mu_activity_set("reading texts", -1, d->name);
    if (in_file) status = mu_token_file_open(d, t, path, cache, e);
    else status = mu_domain_make(&m, is_synthetic(path) ? mu_synthetic_make : mu_text_read, e);
    if (!status) status = mu_domain_scan(d, t, path, e);
    if (!status && d->n_tokens == 0)
        status = mu_error_set(e, MU_STATUS_DATA, "domain \"%s\": no text in %s", d->name, path);
    return status;
}

mu_status mu_domain_measure(mu_domain_size *size, const mu_option_domain *d, const mu_tokenizer *t, uint64_t seed,
                            mu_error *e) {
    MU_CHECK(size && d && t,
             "size %p, domain %p, tokenizer %p", (void *)size, (const void *)d, (const void *)t);
    *size = (mu_domain_size){ 0 };
    mu_status status = MU_STATUS_OK;
    if (is_synthetic(d->path)) mu_synthetic_measure(size, d->domain, seed);
    else if (mu_is_token_file(d->path)) status = mu_token_file_measure(size, d->domain, t, d->path, e);
    else status = mu_text_measure(size, d->domain, d->path, e);
    int64_t id_bytes = mu_ids_type(mu_tokenizer_vocab_size(t)) == MU_STORE_U16 ? sizeof(uint16_t) : sizeof(int32_t);
    size->bytes = size->tokens * id_bytes + (size->documents + 1) * (int64_t)sizeof(int64_t);
    return status;
}

/* ------------------------------------------------------------------ the corpus */

/* Names are parts of dataset paths and metric names. */
static mu_status check_names(const mu_option_domains *list, mu_error *e) {
    mu_error why;
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < list->n && !status; i++)
        status = mu_option_domain_check(list->list[i].domain, &(mu_option_domains){ i, list->list }, MU_STATUS_CONFIG, &why);
    return status ? mu_error_set(e, status, "data.train: %s", why.text) : MU_STATUS_OK;
}

/* A hash of hashes: lines with the tokenizer's name and each domain's name and fingerprint, in the list's order. Names have no
 * line breaks. */
void mu_corpus_fingerprint(mu_corpus *c, const mu_tokenizer *t) {
    char *lines = mu_format("%s\n", mu_tokenizer_name(t));
    for (int i = 0; i < c->n_domains; i++) {
        char *before = lines;
        lines = mu_format("%s%s\n%s\n", before, c->domains[i].name, c->domains[i].fingerprint);
        free(before);
    }
    mu_hash128_hex(lines, strlen(lines), c->fingerprint);
    free(lines);
}

/* Warns of text in two domains: it may be held out in one and trained on in the other. Domains of an HDF5 token file are disjoint. */
static void point_out_overlaps(const mu_option_domains *list) {
    for (int i = 0; i < list->n; i++)
        for (int j = 0; j < list->n; j++) {
            const mu_option_domain *a = &list->list[i], *b = &list->list[j];
            if (i == j || is_synthetic(a->path) || is_synthetic(b->path) ||
                mu_is_hdf5(a->path) || !mu_file_is_inside(a->path, b->path) ||
                (j < i && mu_file_is_inside(b->path, a->path)))         /* the same path: reported already */
                continue;
            mu_log(MU_LOG_INFO,
                   "note: domains \"%s\" and \"%s\" have texts in common (%s is inside %s): text held out for "
                   "validation in one may be trained on in the other",
                   a->domain, b->domain, a->path, b->path);
        }
}

mu_status mu_corpus_open(mu_corpus *c, const mu_option_domains *list, const char *text_key, const mu_tokenizer *t, uint64_t seed,
                         int64_t cache_bytes, mu_error *e) {
    MU_CHECK(c && list && t && text_key,
             "corpus %p, list %p, tokenizer %p, text key %p", (void *)c, (const void *)list, (const void *)t, (const void *)text_key);
    MU_CHECK(list->n >= 0 && (list->n == 0 || list->list) && cache_bytes >= 0,
             "%d domains in %p, cache of %lld bytes",
             list->n, (void *)list->list, (long long)cache_bytes);
    *c = (mu_corpus){ 0 };
    if (list->n == 0) return mu_error_set(e, MU_STATUS_CONFIG, "data.train: no domain is listed");
    mu_status status = check_names(list, e);
    if (status) return status;
    point_out_overlaps(list);
    *c = (mu_corpus){ .n_domains = list->n, .domains = mu_alloc((size_t)list->n, sizeof *c->domains),
                      .cache = mu_cache_new(cache_bytes) };
    for (int i = 0; !status && i < list->n; i++) {
        const mu_option_domain *entry = &list->list[i];
        snprintf(c->domains[i].name, sizeof c->domains[i].name, "%s", entry->domain);
        c->domains[i].weight = entry->weight;
        c->synthetic = c->synthetic || is_synthetic(entry->path);
        status = open_domain(&c->domains[i], entry->path, text_key, t, seed, c->cache, e);
    }
    if (status) mu_corpus_close(c);
    else mu_corpus_fingerprint(c, t);
    return status;
}

void mu_corpus_close(mu_corpus *c) {
    for (int i = 0; i < c->n_domains; i++) mu_domain_close(&c->domains[i]);
    free(c->domains);
    mu_cache_free(c->cache);
    *c = (mu_corpus){ 0 };
}
