/* corpus.c - all domains of a run in memory, and what can be said of them at once. */
#include "data/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ making a domain */

static void make_room(mu_domain_maker *m, int64_t tokens) {
    mu_domain *d = m->domain;
    if (d->n_tokens + tokens > m->token_room) {
        m->token_room = d->n_tokens + tokens + m->token_room / 2;
        d->tokens = mu_realloc(d->tokens, (size_t)m->token_room, sizeof *d->tokens);
    }
    if (d->n_documents + 2 > m->document_room) {
        m->document_room = d->n_documents + 2 + m->document_room;
        d->document_offsets = mu_realloc(d->document_offsets, (size_t)m->document_room,
                                         sizeof *d->document_offsets);
        d->document_offsets[0] = 0;
    }
}

void mu_domain_add(mu_domain_maker *m, const char *text, int64_t bytes) {
    if (bytes == 0) return;
    make_room(m, bytes + 1);
    mu_domain *d = m->domain;
    d->n_tokens += mu_tokenizer_encode(m->tokenizer, text, bytes, d->tokens + d->n_tokens);
    d->tokens[d->n_tokens++] = (uint16_t)mu_tokenizer_eod(m->tokenizer);
    d->text_bytes += bytes;
    d->document_offsets[++d->n_documents] = d->n_tokens;
}

static mu_status read_domain(mu_domain *d, const char *path, const mu_tokenizer *t, uint64_t seed,
                             mu_error *e) {
    mu_domain_maker m = { .domain = d, .tokenizer = t };
    mu_status status = MU_STATUS_OK;
    if (!strcmp(path, "synthetic")) mu_synthetic_make(&m, seed);
    else if (mu_token_file_named(path)) status = mu_token_file_read(d, t, path, e);
    else status = mu_text_read(&m, path, e);
    if (!status && d->n_tokens == 0)
        status = mu_error_set(e, MU_STATUS_DATA, "domain \"%s\": no text in %s", d->name, path);
    return status;
}

/* ------------------------------------------------------------------ the corpus */

/* Names become parts of paths in token files and of metrics. */
static mu_status check_names(const mu_option_domains *list, mu_error *e) {
    mu_error why;
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < list->n && !status; i++)
        status = mu_option_domain_check(list->list[i].domain, &(mu_option_domains){ i, list->list }, MU_STATUS_CONFIG, &why);
    return status ? mu_error_set(e, status, "data.train: %s", why.text) : MU_STATUS_OK;
}

/* A hash of hashes: lines of the tokenizer's name and of each domain's name and tokens, in the list's order.
 * No name has a line break in it. */
static void fingerprint(mu_corpus *c, const mu_tokenizer *t) {
    char *lines = mu_format("%s\n", mu_tokenizer_name(t));
    for (int i = 0; i < c->n_domains; i++) {
        char *hex = c->domains[i].fingerprint, *before = lines;
        mu_hash128_hex(c->domains[i].tokens, (size_t)c->domains[i].n_tokens * sizeof(uint16_t), hex);
        lines = mu_format("%s%s\n%s\n", before, c->domains[i].name, hex);
        free(before);
    }
    mu_hash128_hex(lines, strlen(lines), c->fingerprint);
    free(lines);
}

/* What stands in two domains may be held out of one and trained on in the other. Domains of a token file are apart. */
static void point_out_overlaps(const mu_option_domains *list) {
    for (int i = 0; i < list->n; i++)
        for (int j = 0; j < list->n; j++) {
            const mu_option_domain *a = &list->list[i], *b = &list->list[j];
            if (i == j || !strcmp(a->path, "synthetic") || !strcmp(b->path, "synthetic") ||
                mu_token_file_named(a->path) || !mu_file_is_inside(a->path, b->path) ||
                (j < i && mu_file_is_inside(b->path, a->path)))         /* the same path: said already */
                continue;
            mu_log(MU_LOG_INFO,
                   "note: domains \"%s\" and \"%s\" have texts in common (%s is inside %s): what is held out for "
                   "validation in one may be trained on in the other",
                   a->domain, b->domain, a->path, b->path);
        }
}

mu_status mu_corpus_open(mu_corpus *c, const mu_option_domains *list, const mu_tokenizer *t, uint64_t seed,
                         mu_error *e) {
    *c = (mu_corpus){ 0 };
    if (list->n == 0) return mu_error_set(e, MU_STATUS_CONFIG, "data.train: no domain is listed");
    mu_status status = check_names(list, e);
    if (status) return status;
    point_out_overlaps(list);
    *c = (mu_corpus){ .n_domains = list->n, .domains = mu_alloc((size_t)list->n, sizeof *c->domains) };
    for (int i = 0; !status && i < list->n; i++) {
        const mu_option_domain *entry = &list->list[i];
        snprintf(c->domains[i].name, sizeof c->domains[i].name, "%s", entry->domain);
        c->domains[i].weight = entry->weight;
        c->synthetic = c->synthetic || !strcmp(entry->path, "synthetic");
        status = read_domain(&c->domains[i], entry->path, t, seed, e);
    }
    if (status) mu_corpus_close(c);
    else fingerprint(c, t);
    return status;
}

void mu_corpus_close(mu_corpus *c) {
    for (int i = 0; i < c->n_domains; i++) {
        free(c->domains[i].tokens);
        free(c->domains[i].document_offsets);
    }
    free(c->domains);
    *c = (mu_corpus){ 0 };
}

double mu_domain_unigram_entropy(const mu_domain *d, int vocab_size) {
    int64_t *counts = mu_alloc((size_t)vocab_size, sizeof *counts);
    for (int64_t i = 0; i < d->n_tokens; i++) {
        MU_CHECK(d->tokens[i] < vocab_size, "token %d, vocabulary %d", d->tokens[i], vocab_size);
        counts[d->tokens[i]]++;
    }
    double entropy = 0;
    for (int v = 0; v < vocab_size; v++) {
        double p = (double)counts[v] / (double)d->n_tokens;
        if (counts[v]) entropy -= p * log(p);
    }
    free(counts);
    return entropy;
}
