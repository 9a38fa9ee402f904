/* texts.c - the texts of a run: corpus and loader, the same on every rank. */
#include "train/train.h"

#include <stdlib.h>

/* Checks that all ranks read the same texts. Collective, agreed. */
static mu_status agree_on_texts(const mu_texts *t, mu_comm *batch, mu_error *e) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    for (int i = 0; i < t->corpus.n_domains; i++) {
        const mu_domain *d = &t->corpus.domains[i];
        fprintf(out, "domain %s: %lld tokens in %lld documents, fingerprint %s\n", d->name, (long long)d->n_tokens,
                (long long)d->n_documents, d->fingerprint);
    }
    fprintf(out, "tokenizer %s: fingerprint %s\n", mu_tokenizer_name(t->tokenizer), mu_tokenizer_fingerprint(t->tokenizer));
    fclose(out);
    mu_status status = mu_agree_text(batch, MU_STATUS_DATA, "its texts differ from those of rank 0; put the"
                                     " same texts on every host, or on a file system that all hosts share:", text, e);
    free(text);
    return status;
}

/* Rare and absent domains (section protect). */
static void protect(mu_texts *t, const mu_protect_config *cfg) {
    int n = t->corpus.n_domains;
    bool *listed = mu_alloc((size_t)n, sizeof *listed);
    for (int i = 0; i < n; i++) listed[i] = mu_protects_domain(cfg, t->corpus.domains[i].name);
    mu_loader_set_replay(t->loader, cfg->replay, cfg->replay_sequences, listed);
    mu_loader_upsample(t->loader, cfg->upsample);
    free(listed);
}

mu_status mu_texts_open(mu_texts *t, const mu_config *cfg, const mu_tokenizer *tokenizer, mu_val_split split, mu_comm *batch,
                        mu_error *e) {
    const mu_data_config *d = &cfg->data;
    uint64_t seed = (uint64_t)cfg->run.seed;
    *t = (mu_texts){ .tokenizer = tokenizer, .seq_len = cfg->train.seq_len, .val_split = split };
    mu_status status = mu_corpus_open(&t->corpus, &d->train, d->text_key, tokenizer, seed, d->cache_mib << 20, e);
    if (status == MU_STATUS_OK)
        status = mu_loader_open(&t->loader, &t->corpus, t->seq_len, d->val_fraction, split, seed, e);
    if (status == MU_STATUS_OK) status = mu_loader_set_phases(t->loader, &d->phases, cfg->train.global_batch_size, e);
    if (status == MU_STATUS_OK) protect(t, &cfg->protect);
    status = mu_agree_each(batch, status, e);
    return status == MU_STATUS_OK ? agree_on_texts(t, batch, e) : status;
}

static mu_status check_lengths(const mu_texts *t, mu_error *e) {
    for (int i = 0; i < t->corpus.n_domains; i++)
        if (mu_texts_sequences(t, i) < 1)
            return mu_error_set(e, MU_STATUS_DATA, "domain '%s' has %lld tokens, fewer than one sequence of %lld and a target",
                                t->corpus.domains[i].name, (long long)t->corpus.domains[i].n_tokens, (long long)t->seq_len);
    return MU_STATUS_OK;
}

mu_status mu_texts_open_whole(mu_texts *t, const mu_config *cfg, const mu_option_domains *list, const mu_tokenizer *tokenizer, mu_comm *world,
                              mu_error *e) {
    *t = (mu_texts){ .tokenizer = tokenizer, .seq_len = cfg->train.seq_len };
    mu_status status = mu_corpus_open(&t->corpus, list, cfg->data.text_key, tokenizer, (uint64_t)cfg->run.seed, cfg->data.cache_mib << 20, e);
    if (status == MU_STATUS_OK) status = check_lengths(t, e);
    status = mu_agree_each(world, status, e);
    return status == MU_STATUS_OK ? agree_on_texts(t, world, e) : status;
}

int64_t mu_texts_sequences(const mu_texts *t, int domain) {
    return t->loader ? mu_loader_val_sequences(t->loader, domain) : (t->corpus.domains[domain].n_tokens - 1) / t->seq_len;
}

void mu_texts_read(const mu_texts *t, int domain, int64_t sequence, int32_t *tokens, int32_t *targets) {
    const mu_domain *d = &t->corpus.domains[domain];
    if (t->loader) mu_loader_val_read(t->loader, domain, sequence, tokens, targets);
    else {
        mu_domain_ids(d, sequence * t->seq_len, t->seq_len, tokens);
        mu_domain_ids(d, sequence * t->seq_len + 1, t->seq_len, targets);
    }
}

void mu_texts_close(mu_texts *t) {
    if (t->loader) mu_loader_close(t->loader);
    mu_corpus_close(&t->corpus);
    *t = (mu_texts){ 0 };
}

bool mu_texts_have_validation(const mu_texts *t) {
    for (int i = 0; i < t->corpus.n_domains; i++)
        if (mu_loader_val_sequences(t->loader, i) > 0) return true;
    return false;
}
