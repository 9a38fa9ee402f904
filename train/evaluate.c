/* evaluate.c - validation loss of every domain. Sequences are distributed over the ranks; every rank runs the
 * same number of batches, empty ones included, because the ranks of an expert group exchange tokens in each. */
#include "train/train.h"

#include <math.h>
#include <stdlib.h>

static int64_t text_bytes(const mu_tokenizer *t, const int32_t *targets, int64_t n) {
    const char *text;
    int64_t bytes = 0;
    for (int64_t i = 0; i < n; i++) bytes += mu_tokenizer_decode(t, targets[i], &text);
    return bytes;
}

/* Buffers of one batch. */
typedef struct {
    int32_t *tokens, *targets;      /* [at_once * seq_len] */
    int32_t *domains;               /* [at_once] */
    double *nll;
    mu_routing *routings;           /* [n_moe] */
    uint16_t *experts;              /* [at_once * seq_len, n_moe, K], with a routing record */
} buffers;

static buffers buffers_new(const mu_evaluation *ev) {
    size_t n = (size_t)(ev->at_once * ev->texts->seq_len);
    return (buffers){ mu_alloc(n, sizeof(int32_t)), mu_alloc(n, sizeof(int32_t)), mu_alloc((size_t)ev->at_once, sizeof(int32_t)),
                      mu_alloc(n, sizeof(double)), mu_alloc((size_t)ev->model->n_moe, sizeof(mu_routing)),
                      mu_alloc(ev->record || ev->replay ? n * (size_t)(ev->model->n_moe * ev->model->moe_cfg.top_k) : 0, sizeof(uint16_t)) };
}

static void buffers_free(buffers *b) {
    free(b->tokens);
    free(b->targets);
    free(b->domains);
    free(b->nll);
    free(b->routings);
    free(b->experts);
}

/* One batch of up to `at_once` sequences of a domain on each rank, `block` together, dealt in turn. */
static void run_batch(const mu_evaluation *ev, buffers *b, int domain, mu_routing_block *block, mu_exact *nll_sum, int64_t *tokens,
                      int64_t *bytes) {
    int64_t S = ev->texts->seq_len, n = 0;
    for (int64_t i = ev->batch->rank; i < block->n; i += ev->batch->size, n++)
        mu_loader_val_read(ev->texts->loader, domain, block->first + i, b->tokens + n * S, b->targets + n * S);
    block->offset = ev->batch->rank, block->stride = ev->batch->size, block->own = n;
    for (int64_t i = 0; i < n; i++) b->domains[i] = domain;
    mu_context cx = { .mode = MU_MODE_EVAL, .n_sequences = n, .seq_len = S, .domains = b->domains,
                      .expert_mask = ev->expert_mask };
    if (ev->replay && mu_routing_record_read(ev->replay, block, b->experts))
        cx.expert_mask = mu_routing_ids_mask(ev->model, ev->tape, n * S, b->experts);
    mu_tensor *ids = mu_tensor_ints(ev->tape, MU_DTYPE_I32, n * S, b->tokens), *nll;
    mu_tensor *targets = mu_tensor_ints(ev->tape, MU_DTYPE_I32, n * S, b->targets);
    mu_tensor *x = mu_model_forward(ev->model, ev->tape, &cx, ids, b->routings);
    if (ev->record) {
        mu_routing_ids(ev->model, b->routings, n * S, b->experts);
        mu_routing_record_write(ev->record, block, b->experts);
    }
    mu_model_head_loss(ev->model, ev->tape, x, targets, 1.0, &nll);
    mu_tensor_get(nll, b->nll);
    for (int64_t i = 0; i < n * S; i++) mu_exact_add(nll_sum, b->nll[i]);
    *tokens += n * S, *bytes += text_bytes(ev->texts->tokenizer, b->targets, n * S);
    mu_tape_reset(ev->tape);
}

char *mu_evaluation_array(const mu_evaluation *ev, int domain) {
    return mu_format("/domains/%s/ids", ev->texts->corpus.domains[domain].name);
}

int64_t mu_evaluation_sequences(const mu_evaluation *ev, int domain, int64_t most) {
    int64_t n = mu_loader_val_sequences(ev->texts->loader, domain);
    return most > 0 && n > most ? most : n;
}

static mu_domain_loss evaluate_domain(const mu_evaluation *ev, buffers *b, int domain, int64_t most) {
    int64_t n = mu_evaluation_sequences(ev, domain, most), per_round = ev->batch->size * ev->at_once;
    char *array = mu_evaluation_array(ev, domain);
    mu_exact nll_sum = { 0 };
    int64_t sums[2] = { 0, 0 };
    for (int64_t first = 0; first < n; first += per_round) {
        mu_routing_block block = { .name = array, .total = n, .first = first, .n = n - first < per_round ? n - first : per_round };
        run_batch(ev, b, domain, &block, &nll_sum, &sums[0], &sums[1]);
    }
    free(array);
    mu_all_reduce(ev->batch, MU_REDUCE_SUM, MU_DTYPE_I64, &nll_sum, MU_EXACT_WORDS);
    mu_all_reduce(ev->batch, MU_REDUCE_SUM, MU_DTYPE_I64, sums, 2);
    double nll = mu_exact_value(&nll_sum);
    mu_domain_loss d = { .tokens = sums[0], .bytes = sums[1] };
    d.ce = d.tokens ? nll / (double)d.tokens : NAN;
    d.bits_per_byte = d.bytes ? nll / log(2.0) / (double)d.bytes : NAN;
    d.unigram = ev->texts->corpus.domains[domain].unigram_entropy;
    return d;
}

/* Domains without validation text do not count; the shares of the others are scaled up to one. */
double mu_evaluate(const mu_evaluation *ev, int64_t most, mu_domain_loss *results) {
    double mean = 0, shares = 0, plain = 0;
    int n = 0;
    buffers b = buffers_new(ev);
    mu_tape_record(ev->tape, false);
    for (int i = 0; i < ev->texts->corpus.n_domains; i++) {
        results[i] = evaluate_domain(ev, &b, i, most);
        if (!results[i].tokens) continue;
        mean += mu_loader_share(ev->texts->loader, i) * results[i].ce;
        shares += mu_loader_share(ev->texts->loader, i);
        plain += results[i].ce, n++;
    }
    mu_tape_record(ev->tape, true);
    buffers_free(&b);
    /* If only domains of weight 0 have any: plain mean. */
    return shares > 0 ? mean / shares : n ? plain / n : NAN;
}
