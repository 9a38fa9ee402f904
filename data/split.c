/* split.c - what of a domain is for training and what for validation.
 *
 * Sequences of L inputs are cut out of two streams: `kept`, the documents held out in whole, one after the other, and
 * `rest`, the others. As targets are inputs shifted by one, sequence i of a stream reads its tokens [i L, i L + L];
 * neighbours share the one token that ends the last target of one and is the first input of the other. Where whole
 * documents make less than half of what is asked, sequences of `rest` are held out as well, spread evenly.
 *
 * asked(n) of n sequences are for validation: the fraction, at least one of ten, so at most the fraction or a tenth.
 * The documents are gone through in order, short ones joined until they make a sequence. The next are held out when
 * `kept` has fewer sequences than asked, unless they are longer than room() allows. With R and K sequences of the two
 * streams in the end,
 *
 *     validation = max(K, asked(R + K) - K)        training = min(R, R + 2 K - asked(R + K))
 *
 * More text at the end never means fewer sequences to train on: what is decided about a document depends on those before
 * it, so a document added makes R or K larger and neither smaller, and n - asked(n) never falls with n. Nor does it when
 * the last document grows: held out, it adds nothing to R; at the length where it no longer fits it goes to `rest`, which
 * gains at least the sequences that asked() then wants more. Text that comes in between others may move the choice of
 * those after it, and so cost a part of one document. */
#include "data/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t sequences(int64_t tokens, int64_t L) { return tokens > L ? (tokens - 1) / L : 0; }

static int64_t asked(int64_t n, double fraction) {
    if (fraction <= 0) return 0;
    int64_t share = (int64_t)(fraction * (double)n);
    return share < 1 ? n >= 10 : share < n ? share : n - 1;
}

/* Tokens of documents held out of n: twice what is asked, but not more than the fraction or a tenth. */
static double room(int64_t n, int64_t L, double fraction) {
    return fmin(2 * fmax(fraction * (double)n, (double)L + 1), fmax(fraction, 0.1) * (double)n);
}

/* Tokens [from, from + n) of the domain, at the end of the stream. */
static void append(mu_stream *s, int64_t from, int64_t n) {
    const mu_piece *last = s->n ? &s->pieces[s->n - 1] : NULL;
    if (!last || last->from + (s->tokens - last->at) != from) {
        if (s->n == s->room) s->pieces = mu_realloc(s->pieces, (size_t)(s->room = 2 * s->room + 4), sizeof *s->pieces);
        s->pieces[s->n++] = (mu_piece){ from, s->tokens };
    }
    s->tokens += n;
}

/* Ends of documents, in order, some read at a time. */
enum { SOME_ENDS = 1024 };
typedef struct { const mu_domain *d; int64_t next, ends[SOME_ENDS]; } end_reader;
static int64_t next_end(end_reader *r) {
    int64_t at = r->next % SOME_ENDS, left = r->d->n_documents - r->next++;
    if (at == 0) mu_domain_document_ends(r->d, r->next - 1, left < SOME_ENDS ? left : SOME_ENDS, r->ends);
    return r->ends[at];
}

static void hold_out_documents(mu_split *s, const mu_domain *d, int64_t L, double fraction) {
    end_reader r = { .d = d };
    for (int64_t from = 0, end; r.next < d->n_documents; from = end) {
        do end = next_end(&r); while (end - from <= L && r.next < d->n_documents);
        int64_t n = end - from, kept = sequences(s->kept.tokens, L), rest = sequences(s->rest.tokens, L);
        bool hold = asked(rest + kept, fraction) > kept && (double)(s->kept.tokens + n) <= room(end, L, fraction);
        append(hold ? &s->kept : &s->rest, from, n);
    }
}

/* Numbers 0 .. n - 1 in steps of about the golden ratio: the first few of them are spread over all, however few. */
static int64_t spreading_step(int64_t n) {
    int64_t step = n > 2 ? llround(0.6180339887498949 * (double)n) : 1;
    for (;; step++) {
        int64_t a = step, b = n;
        while (b) {
            int64_t c = a % b;
            a = b, b = c;
        }
        if (a == 1) return step;
    }
}

static void split_documents(mu_split *s, const mu_domain *d, int64_t L, double fraction) {
    hold_out_documents(s, d, L, fraction);
    int64_t kept = sequences(s->kept.tokens, L), rest = sequences(s->rest.tokens, L);
    int64_t held = asked(rest + kept, fraction) - 2 * kept;
    s->n_held = held > 0 ? held : 0;
    s->held = mu_alloc((size_t)s->n_held, sizeof *s->held);
    for (int64_t j = 0; j < s->n_held; j++)
        s->held[j] = (int64_t)(((double)j + 0.5) * (double)rest / (double)s->n_held);
    s->n_val = kept + s->n_held;
    s->n_train = rest - s->n_held;
    s->step = s->n_val ? spreading_step(s->n_val) : 1;
}

/* The split of checkpoints in format 1: the last sequences, and at least 16 where there are more. */
static void split_tail(mu_split *s, const mu_domain *d, int64_t L, double fraction) {
    enum { LEAST = 16 };
    int64_t n = sequences(d->n_tokens, L), least = n > LEAST ? LEAST : n / 2;
    append(&s->rest, 0, d->n_tokens);
    s->n_val = fraction > 0 ? llround(fraction * (double)n) : 0;
    if (fraction > 0 && s->n_val < least) s->n_val = least;
    if (s->n_val > n - 1) s->n_val = n - 1;
    s->n_train = n - s->n_val;
    s->n_held = s->n_val;
    s->held = mu_alloc((size_t)s->n_held, sizeof *s->held);
    for (int64_t j = 0; j < s->n_held; j++) s->held[j] = s->n_train + j;
    s->step = 1;
}

mu_status mu_split_make(mu_split *s, const mu_domain *d, int64_t L, double fraction, mu_val_split rule, mu_error *e) {
    *s = (mu_split){ 0 };
    if (sequences(d->n_tokens, L) < 1)
        return mu_error_set(
            e, MU_STATUS_DATA,
            "domain \"%s\": %lld tokens are too few: one training sequence of train.seq_len %lld needs "
            "%lld; give it more text or make train.seq_len at most %lld",
            d->name, (long long)d->n_tokens, (long long)L, (long long)L + 1,
            (long long)(d->n_tokens > 1 ? d->n_tokens - 1 : 1));
    (rule == MU_VAL_TAIL ? split_tail : split_documents)(s, d, L, fraction);
    return MU_STATUS_OK;
}

void mu_split_free(mu_split *s) {
    free(s->rest.pieces);
    free(s->kept.pieces);
    free(s->held);
}

/* ------------------------------------------------------------------ reading */

/* Tokens [at, at + n) of the stream. */
static void read_tokens(const mu_stream *s, const mu_domain *d, int64_t at, int64_t n, int32_t *ids) {
    int64_t low = 0;
    for (int64_t high = s->n; high - low > 1;) {
        int64_t middle = (low + high) / 2;
        if (s->pieces[middle].at <= at) low = middle;
        else high = middle;
    }
    for (int64_t here; n > 0; at += here, ids += here, n -= here, low++) {
        const mu_piece *p = &s->pieces[low];
        int64_t left = (low + 1 < s->n ? p[1].at : s->tokens) - at;
        here = n < left ? n : left;
        mu_domain_ids(d, p->from + (at - p->at), here, ids);
    }
}

static void read_stream(const mu_stream *s, const mu_domain *d, int64_t sequence, int64_t L, int32_t *tokens,
                        int32_t *targets) {
    read_tokens(s, d, sequence * L, L, tokens);
    memcpy(targets, tokens + 1, (size_t)(L - 1) * sizeof *targets);
    read_tokens(s, d, sequence * L + L, 1, &targets[L - 1]);
}

void mu_split_read_train(const mu_split *s, const mu_domain *d, int64_t sequence, int64_t L, int32_t *tokens,
                         int32_t *targets) {
    int64_t before = 0;     /* sequences held out in front of it: held[j] - j of those that train are */
    for (int64_t high = s->n_held; before < high;) {
        int64_t middle = (before + high) / 2;
        if (s->held[middle] - middle <= sequence) before = middle + 1;
        else high = middle;
    }
    read_stream(&s->rest, d, sequence + before, L, tokens, targets);
}

void mu_split_read_val(const mu_split *s, const mu_domain *d, int64_t sequence, int64_t L, int32_t *tokens,
                       int32_t *targets) {
    int64_t i = (int64_t)((uint64_t)sequence * (uint64_t)s->step % (uint64_t)s->n_val), kept = s->n_val - s->n_held;
    if (i < kept) read_stream(&s->kept, d, i, L, tokens, targets);
    else read_stream(&s->rest, d, s->held[i - kept], L, tokens, targets);
}
