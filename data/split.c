/* split.c - the split of a domain into training and validation sequences.
 *
 * A stream of tokens is divided into sequences of L inputs. Targets are inputs shifted by one, so sequence i reads tokens
 * [i L, i L + L] of the stream; neighbours share one token: the last target of one is the first input of the next.
 *
 * asked(n) of n sequences are for validation: the fraction, at least one of ten, so at most the fraction or a tenth. Whole
 * documents are chosen in ascending order of a hash of their beginnings, each if it still fits, and moved to the end of the
 * stream: sequences that begin there or reach into it are for validation. The remaining ones are spread evenly over the rest
 * of the stream. So of a domain of n sequences exactly
 *
 *     asked(n) are for validation, n - asked(n) for training.
 *
 * The latter never decreases with n: adding text anywhere never reduces the training set. The hash depends only on the
 * document, so added text changes the choice among existing documents little. */
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

/* Appends tokens [from, from + n) of the domain to the stream. */
static void append(mu_stream *s, int64_t from, int64_t n) {
    const mu_piece *last = s->n ? &s->pieces[s->n - 1] : NULL;
    if (n == 0) return;
    if (!last || last->from + (s->tokens - last->at) != from) {
        if (s->n == s->room) s->pieces = mu_realloc(s->pieces, (size_t)(s->room = 2 * s->room + 4), sizeof *s->pieces);
        s->pieces[s->n++] = (mu_piece){ from, s->tokens };
    }
    s->tokens += n;
}

/* Reads the ends of documents in order, some at a time. */
enum { SOME_ENDS = 1024 };
typedef struct { const mu_domain *d; int64_t next, ends[SOME_ENDS]; } end_reader;
static int64_t next_end(end_reader *r) {
    int64_t at = r->next % SOME_ENDS, left = r->d->n_documents - r->next++;
    if (at == 0) mu_domain_document_ends(r->d, r->next - 1, left < SOME_ENDS ? left : SOME_ENDS, r->ends);
    return r->ends[at];
}

/* A step coprime to n of about the golden ratio: multiples of it modulo n visit 0 .. n - 1, any first few evenly spread. */
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

/* Validation sequence j of `rest`, ascending. */
static int64_t held(const mu_split *s, int64_t j) {
    if (j >= s->n_spread) return s->before + (j - s->n_spread);
    return (int64_t)(((double)j + 0.5) * (double)s->before / (double)s->n_spread);
}

/* Holds out the last `last` of the n sequences of `rest`, `spread` of those before them, and all of `kept`. */
static void hold_out(mu_split *s, int64_t n, int64_t L, int64_t spread, int64_t last) {
    s->n_held = spread + last, s->n_spread = spread, s->before = n - last;
    s->n_train = n - s->n_held;
    s->n_val = s->n_held + sequences(s->kept.tokens, L);
    s->step = s->n_val ? spreading_step(s->n_val) : 1;
}

/* ------------------------------------------------------------------ documents by hash */

typedef struct { uint64_t hash; int64_t from, n; } document;
typedef struct {
    int64_t room;               /* tokens */
    int64_t n, capacity, tokens;
    document *list;
} choice;

/* Documents with the same beginning (a common header) are ordered by a hash of their lengths. */
static int by_hash(const void *a, const void *b) {
    const document *x = a, *y = b;
    uint64_t mixed_x = (uint64_t)x->n * 0x9E3779B97F4A7C15u, mixed_y = (uint64_t)y->n * 0x9E3779B97F4A7C15u;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    if (mixed_x != mixed_y) return mixed_x < mixed_y ? -1 : 1;
    return x->from < y->from ? -1 : x->from > y->from;
}

static int by_place(const void *a, const void *b) {
    const document *x = a, *y = b;
    return x->from < y->from ? -1 : x->from > y->from;
}

/* Keeps only the first by hash, of twice the room: later ones are hardly ever needed, and may be very many. */
static void shorten(choice *c) {
    int64_t n = 0, tokens = 0;
    if (c->n) qsort(c->list, (size_t)c->n, sizeof *c->list, by_hash);
    while (n < c->n && tokens < 2 * c->room) tokens += c->list[n++].n;
    c->n = n, c->tokens = tokens;
}

static void consider(choice *c, document next) {
    if (c->n == c->capacity) c->list = mu_realloc(c->list, (size_t)(c->capacity = 2 * c->capacity + 16), sizeof *c->list);
    c->list[c->n++] = next;
    c->tokens += next.n;
    if (c->tokens > 8 * c->room) shorten(c);
}

/* Chooses documents with at most `room` tokens in total, in the domain's order. Reads the first L tokens of each. */
static choice choose_documents(const mu_domain *d, int64_t L, int64_t room) {
    choice c = { .room = room };
    end_reader r = { .d = d };
    int32_t *ids = mu_alloc((size_t)L, sizeof *ids);
    for (int64_t from = 0, end; r.next < d->n_documents; from = end) {
        end = next_end(&r);
        int64_t n = end - from, read = n < L ? n : L;
        if (n > room) continue;
        mu_domain_ids(d, from, read, ids);
        consider(&c, (document){ mu_hash64(ids, (size_t)read * sizeof *ids), from, n });
        mu_activity_tick();
    }
    free(ids);
    shorten(&c);
    int64_t n = 0, tokens = 0;
    for (int64_t i = 0; i < c.n; i++)
        if (tokens + c.list[i].n <= room) tokens += c.list[i].n, c.list[n++] = c.list[i];
    c.n = n, c.tokens = tokens;
    if (n) qsort(c.list, (size_t)n, sizeof *c.list, by_place);
    return c;
}

static void split_by_hash(mu_split *s, const mu_domain *d, int64_t L, double fraction) {
    int64_t n = sequences(d->n_tokens, L), val = asked(n, fraction), at = 0;
    /* The last target of the last training sequence is token (n - val) L: all later tokens may be held out. */
    choice c = val ? choose_documents(d, L, d->n_tokens - 1 - (n - val) * L) : (choice){ 0 };
    for (int64_t i = 0; i < c.n; at = c.list[i].from + c.list[i].n, i++) append(&s->rest, at, c.list[i].from - at);
    append(&s->rest, at, d->n_tokens - at);
    for (int64_t i = 0; i < c.n; i++) append(&s->rest, c.list[i].from, c.list[i].n);
    int64_t last = n - sequences(d->n_tokens - c.tokens, L);
    hold_out(s, n, L, val - last, last);
    free(c.list);
}

/* ------------------------------------------------------------------ splits of older checkpoints, unchanged */

/* Maximum tokens of documents held out of n: twice the number asked for, but at most the fraction or a tenth. */
static double room(int64_t n, int64_t L, double fraction) {
    return fmin(2 * fmax(fraction * (double)n, (double)L + 1), fmax(fraction, 0.1) * (double)n);
}

/* DOCUMENTS: documents in order, short ones joined until they fill a sequence. The next are held out while `kept` has fewer
 * sequences than asked for, unless they are longer than room() allows. */
static void hold_out_documents(mu_split *s, const mu_domain *d, int64_t L, double fraction) {
    end_reader r = { .d = d };
    for (int64_t from = 0, end; r.next < d->n_documents; from = end) {
        do end = next_end(&r); while (end - from <= L && r.next < d->n_documents);
        int64_t n = end - from, kept = sequences(s->kept.tokens, L), rest = sequences(s->rest.tokens, L);
        bool hold = asked(rest + kept, fraction) > kept && (double)(s->kept.tokens + n) <= room(end, L, fraction);
        append(hold ? &s->kept : &s->rest, from, n);
    }
}

static void split_documents(mu_split *s, const mu_domain *d, int64_t L, double fraction) {
    hold_out_documents(s, d, L, fraction);
    int64_t kept = sequences(s->kept.tokens, L), rest = sequences(s->rest.tokens, L);
    int64_t spread = asked(rest + kept, fraction) - 2 * kept;
    hold_out(s, rest, L, spread > 0 ? spread : 0, 0);
}

/* TAIL: the last sequences, and at least 16 where there are more. */
static void split_tail(mu_split *s, const mu_domain *d, int64_t L, double fraction) {
    enum { LEAST = 16 };
    int64_t n = sequences(d->n_tokens, L), least = n > LEAST ? LEAST : n / 2, last = 0;
    append(&s->rest, 0, d->n_tokens);
    if (fraction > 0) last = llround(fraction * (double)n);
    if (fraction > 0 && last < least) last = least;
    hold_out(s, n, L, 0, last < n ? last : n - 1);
    s->step = 1;
}

/* ------------------------------------------------------------------ making */

mu_status mu_split_make(mu_split *s, const mu_domain *d, int64_t L, double fraction, mu_val_split rule, mu_error *e) {
    *s = (mu_split){ 0 };
    if (sequences(d->n_tokens, L) < 1)
        return mu_error_set(
            e, MU_STATUS_DATA,
            "domain \"%s\": %lld tokens are too few: one training sequence of length %lld needs "
            "%lld; add text or use sequences of at most %lld tokens",
            d->name, (long long)d->n_tokens, (long long)L, (long long)L + 1,
            (long long)(d->n_tokens > 1 ? d->n_tokens - 1 : 1));
    static void (*const rules[])(mu_split *s, const mu_domain *d, int64_t L, double fraction) = {
        [MU_VAL_DOCUMENTS_BY_HASH] = split_by_hash, [MU_VAL_DOCUMENTS] = split_documents, [MU_VAL_TAIL] = split_tail,
    };
    rules[rule](s, d, L, fraction);
    return MU_STATUS_OK;
}

void mu_split_free(mu_split *s) {
    free(s->rest.pieces);
    free(s->kept.pieces);
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
    int64_t before = 0;     /* held-out sequences in front of it: held(j) - j training sequences precede held(j) */
    for (int64_t high = s->n_held; before < high;) {
        int64_t middle = (before + high) / 2;
        if (held(s, middle) - middle <= sequence) before = middle + 1;
        else high = middle;
    }
    read_stream(&s->rest, d, sequence + before, L, tokens, targets);
}

void mu_split_read_val(const mu_split *s, const mu_domain *d, int64_t sequence, int64_t L, int32_t *tokens,
                       int32_t *targets) {
    int64_t i = (int64_t)((uint64_t)sequence * (uint64_t)s->step % (uint64_t)s->n_val), kept = s->n_val - s->n_held;
    if (i < kept) read_stream(&s->kept, d, i, L, tokens, targets);
    else read_stream(&s->rest, d, held(s, i - kept), L, tokens, targets);
}
