/* evaluate.c - validation loss of every domain. Sequences are dealt out over the ranks; every rank runs the
 * same number of batches, empty ones included, because ranks of an expert group wait for each other. */
#include "train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t text_bytes(const mu_trainer *t, const int32_t *targets, int64_t n) {
    const char *text;
    int64_t bytes = 0;
    for (int64_t i = 0; i < n; i++) bytes += mu_tokenizer_decode(t->tokenizer, targets[i], &text);
    return bytes;
}

/* One batch of up to micro_size sequences of a domain, from `first` in steps of the number of ranks. */
static void run_batch(mu_trainer *t, int domain, int64_t first, int64_t end, mu_exact *nll_sum,
                      int64_t *tokens, int64_t *bytes) {
    int64_t S = t->cfg.train.seq_len, n = 0;
    for (int64_t i = first; i < end && n < t->micro_size; i += t->mesh->batch->size, n++)
        mu_loader_val_read(t->loader, domain, i, t->tokens + n * S, t->targets + n * S);
    mu_context cx = mu_trainer_context(t, MU_MODE_EVAL, n);
    mu_tensor *ids = mu_tensor_ints(t->tape, MU_DTYPE_I32, n * S, t->tokens), *nll;
    mu_tensor *targets = mu_tensor_ints(t->tape, MU_DTYPE_I32, n * S, t->targets);
    mu_tensor *x = mu_model_forward(t->model, t->tape, &cx, ids, t->loss->routings);
    mu_model_head_loss(t->model, t->tape, x, targets, 1.0, &nll);
    double *host = mu_alloc((size_t)(n * S), sizeof *host);
    mu_tensor_get(nll, host);
    for (int64_t i = 0; i < n * S; i++) mu_exact_add(nll_sum, host[i]);
    *tokens += n * S, *bytes += text_bytes(t, t->targets, n * S);
    free(host);
    mu_tape_reset(t->tape);
}

static mu_domain_loss evaluate_domain(mu_trainer *t, int domain, int64_t most) {
    int64_t n = mu_loader_val_sequences(t->loader, domain), per_round = t->mesh->batch->size * t->micro_size;
    if (most > 0 && n > most) n = most;
    mu_exact nll_sum = { 0 };
    int64_t sums[2] = { 0, 0 };
    for (int64_t round = 0; round * per_round < n; round++)
        run_batch(t, domain, round * per_round + t->mesh->batch->rank, n, &nll_sum, &sums[0], &sums[1]);
    mu_all_reduce(t->mesh->batch, MU_REDUCE_SUM, MU_DTYPE_I64, &nll_sum, MU_EXACT_WORDS);
    mu_all_reduce(t->mesh->batch, MU_REDUCE_SUM, MU_DTYPE_I64, sums, 2);
    double nll = mu_exact_value(&nll_sum);
    mu_domain_loss d = { .tokens = sums[0], .bytes = sums[1] };
    d.ce = d.tokens ? nll / (double)d.tokens : NAN;
    d.bits_per_byte = d.bytes ? nll / log(2.0) / (double)d.bytes : NAN;
    d.unigram = t->corpus.domains[domain].unigram_entropy;
    return d;
}

/* Domains without validation text do not count; the shares of the others are scaled up to one. */
double mu_evaluate(mu_trainer *t, int64_t most, mu_domain_loss *results) {
    double mean = 0, shares = 0, plain = 0;
    int n = 0;
    mu_tape_record(t->tape, false);
    for (int i = 0; i < t->corpus.n_domains; i++) {
        results[i] = evaluate_domain(t, i, most);
        if (!results[i].tokens) continue;
        mean += mu_loader_share(t->loader, i) * results[i].ce;
        shares += mu_loader_share(t->loader, i);
        plain += results[i].ce, n++;
    }
    mu_tape_record(t->tape, true);
    /* Domains of weight 0 may be the only ones that have any: then all count the same. */
    return shares > 0 ? mean / shares : n ? plain / n : NAN;
}
