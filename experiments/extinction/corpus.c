/* corpus.c - the corpus of the extinction experiment. Counter-based random numbers: the same for a seed on any machine. */
#include "nano.h"

#include <math.h>
#include <string.h>

enum { FACTS = 1, CHANGES, RESERVOIR, REPLAY };     /* mu_rng.layer: what is drawn; 0: tokens */

static mu_rng rng_of(uint64_t seed, int64_t step, int sample, int what) {
    return (mu_rng){ seed, (uint32_t)step, (uint32_t)sample, MU_RNG_SYNTHETIC, (uint32_t)what };
}

static int below(const mu_rng *r, uint64_t index, int n) { return (int)(mu_rng_uniform(r, index) * n); }

static void permutation(const mu_rng *r, uint8_t *out) {
    for (int i = 0; i < SYMBOLS; i++) out[i] = (uint8_t)i;
    for (int i = SYMBOLS - 1; i > 0; i--) {
        int j = below(r, (uint64_t)i, i + 1);
        uint8_t swap = out[i];
        out[i] = out[j], out[j] = swap;
    }
}

void corpus_make(corpus *c, uint64_t seed) {
    *c = (corpus){ .seed = seed };
    for (int d = 0; d < DOMAINS; d++) {
        mu_rng r = rng_of(seed, 0, d, FACTS);
        permutation(&r, c->next[d]);
    }
    uint8_t order[SYMBOLS];
    mu_rng r = rng_of(seed, 0, 0, CHANGES);
    permutation(&r, order);
    memcpy(c->next[NEAR_COPY], c->next[PARENT], SYMBOLS);
    for (int i = 0; i < CHANGED; i++) {     /* a cycle of the parent's facts: still a permutation */
        c->next[NEAR_COPY][order[i]] = c->next[PARENT][order[(i + 1) % CHANGED]];
        c->changed[order[i]] = true;
    }
    double zipf = 0, small = (DOMAINS - COMMON) * RARE_SHARE;
    for (int d = 0; d < COMMON; d++) zipf += 1.0 / (d + 1);
    for (int d = 0; d < DOMAINS; d++) {
        c->drought[d] = d < COMMON ? 1.0 / (d + 1) / zipf : 0;
        c->mixed[d] = d < COMMON ? (1 - small) * c->drought[d] : RARE_SHARE;
    }
}

static int pick(const double *shares, double at) {
    int d = 0, last = 0;
    for (; d < DOMAINS; d++) {
        if (shares[d] > 0) last = d;
        if (at < shares[d]) return d;
        at -= shares[d];
    }
    return last;        /* rounding */
}

/* In a chain of such tokens prev is uniform, because every f is a permutation; so it is drawn. */
void corpus_draw(const corpus *c, int64_t step, const double *shares, tokens *out) {
    int32_t prev[TOKENS], tag[TOKENS], next[TOKENS];
    for (int t = 0; t < TOKENS; t++) {
        mu_rng r = rng_of(c->seed, step, t, 0);
        tag[t] = pick(shares, mu_rng_uniform(&r, 0));
        prev[t] = below(&r, 1, SYMBOLS);
        bool fact = mu_rng_uniform(&r, 2) < FACT && tag[t] != DECOY;
        next[t] = fact ? c->next[tag[t]][prev[t]] : below(&r, 3, SYMBOLS);
    }
    out->n = 0;
    for (int d = 0; d < DOMAINS; d++)
        for (int t = 0; t < TOKENS; t++)
            if (tag[t] == d) out->prev[out->n] = prev[t], out->tag[out->n] = d, out->next[out->n++] = next[t];
}

void corpus_all(const corpus *c, tokens *out) {
    out->n = DOMAINS * SYMBOLS;
    for (int t = 0; t < out->n; t++) {
        out->tag[t] = t / SYMBOLS, out->prev[t] = t % SYMBOLS;
        out->next[t] = c->next[out->tag[t]][out->prev[t]];
    }
}

const mu_option_domains *corpus_domains(void) {
    static mu_option_domain list[DOMAINS];
    static const mu_option_domains all = { DOMAINS, list };
    for (int d = 0; d < DOMAINS; d++) snprintf(list[d].domain, sizeof list[d].domain, "%d", d);
    return &all;
}

double corpus_optimum(int domain) {
    double other = (1 - FACT) / SYMBOLS, fact = FACT + other;
    return domain == DECOY ? log(SYMBOLS) : -fact * log(fact) - (SYMBOLS - 1) * other * log(other);
}

static void put(tokens *to, int at, const tokens *from, int i) {
    to->prev[at] = from->prev[i], to->tag[at] = from->tag[i], to->next[at] = from->next[i];
}

void buffer_add(buffer *b, uint64_t seed, const tokens *t) {
    for (int i = 0; i < t->n; i++) {
        int d = t->tag[i] - COMMON;
        if (d < 0 || d >= RARE) continue;
        tokens *kept = &b->kept[d];
        mu_rng r = rng_of(seed, b->seen[d], d, RESERVOIR);
        int64_t at = kept->n < BUFFER ? kept->n++ : (int64_t)(mu_rng_uniform(&r, 0) * (double)(b->seen[d] + 1));
        if (at < BUFFER) put(kept, (int)at, t, i);
        b->seen[d]++;
    }
}

void buffer_replay(const buffer *b, uint64_t seed, int64_t step, int n, tokens *t) {
    for (int i = 0; i < n; i++) {
        mu_rng r = rng_of(seed, step, i, REPLAY);
        const tokens *kept = &b->kept[below(&r, 0, RARE)];
        if (kept->n) put(t, i, kept, below(&r, 1, kept->n));
    }
}
