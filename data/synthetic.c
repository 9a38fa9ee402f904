/* synthetic.c - generated texts with a known optimal loss, and domains of very different frequencies.
 *
 * All domains share 64 symbols. A domain owns a permutation p of them: its 64 facts. A document is
 *
 *     tag  s_0  s_1  s_2 ...  end of document          256 tokens in all
 *
 * The tag (one byte, or four for a domain of an unknown name) names the domain, s_0 is uniform, and each
 * next symbol is p(previous) with probability 0.9, else uniform. The alphabet is shared on purpose: with
 * separate alphabets the facts could be learned by the embeddings, without experts.
 *
 * The optimum. A model that knows the facts predicts p(s) with probability a = 0.9 + 0.1/64 and each of the 63
 * others with b = 0.1/64, so the optimal cross-entropy of a symbol that follows a symbol is
 *
 *     H = -a ln a - 63 b ln b = 0.7294 nats
 *
 * and a loss above H on those targets measures missing facts. s_0 costs ln 64 = 4.1589 nats. Tag and end cost
 * nothing to a model that counts and has seen an earlier tag, so a window of whole documents with a tag of one
 * byte has an optimum of (4.1589 + 253 H) / 256 = 0.7371 nats per token. Accuracy on facts is the fraction of
 * the 64 symbols s for which the most likely next symbol is p(s).
 *
 * The domains, by name; the tokens of all together are about three million:
 *   common-1 ... common-13   sizes as 1/k (Zipf)
 *   rare-1, rare-2, rare-3   0.1 % each: facts that a single expert may hold
 *   decoy                    0.1 %, every symbol uniform: nothing to learn (ln 64 nats per symbol)
 *   near-copy                0.1 %, common-1's permutation with 8 of the 64 facts changed
 *   any other name           a permutation of its own and 200 kB */
#include "data/internal.h"

#include <stdlib.h>
#include <string.h>

enum { N_SYMBOLS = 64, DOCUMENT_TOKENS = 256, N_COMMON = 13, CHANGED_FACTS = 8 };
enum { LAYER_FACTS = 1, LAYER_TEXT };
static const double ALL_TOKENS = 3e6, RARE_SHARE = 0.001, OTHER_TOKENS = 200e3, FACT_PROBABILITY = 0.9;
static const int N_RARE = 5;                /* domains of size RARE_SHARE: rare-*, decoy, near-copy */

static const char symbols[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+-";
static const char tag_bytes[] = "!\"#$%&'()*,./:;<=>"; /* common-1 ..., rare-1 ..., decoy, near-copy */

typedef struct {
    int64_t n_documents;
    char tag[5];
    bool noise;
    uint8_t next[N_SYMBOLS];                /* the facts, as indices into symbols[] */
} recipe;

/* A separate stream of random numbers for every name and use. */
static mu_rng stream(const char *name, uint64_t seed, uint32_t use) {
    uint64_t hash = mu_hash64(name, strlen(name));
    return (mu_rng){ .seed = seed, .step = (uint32_t)(hash >> 32), .sample = (uint32_t)hash,
                     .purpose = MU_RNG_SYNTHETIC, .layer = use };
}

static int below(const mu_rng *r, uint64_t index, int n) { return (int)(mu_rng_uniform(r, index) * n); }

/* ------------------------------------------------------------------ the domain of a name */

static void make_facts(uint8_t next[N_SYMBOLS], const char *name, uint64_t seed) {
    mu_rng r = stream(name, seed, LAYER_FACTS);
    for (int i = 0; i < N_SYMBOLS; i++) next[i] = (uint8_t)i;
    for (int i = N_SYMBOLS - 1; i > 0; i--) {
        int j = below(&r, (uint64_t)i, i + 1);
        uint8_t t = next[i];
        next[i] = next[j];
        next[j] = t;
    }
}

/* Rotates the images of a few symbols: still a permutation, and all of them changed. */
static void change_facts(uint8_t next[N_SYMBOLS], const char *name, uint64_t seed) {
    uint8_t order[N_SYMBOLS];
    make_facts(order, name, seed);
    uint8_t first = next[order[0]];
    for (int i = 0; i + 1 < CHANGED_FACTS; i++) next[order[i]] = next[order[i + 1]];
    next[order[CHANGED_FACTS - 1]] = first;
}

/* The number in a name like "rare-2", from 1 to n; 0 for other names. */
static int number_after(const char *name, const char *prefix, int n) {
    for (int i = 1; i <= n; i++) {
        char known[32];
        snprintf(known, sizeof known, "%s%d", prefix, i);
        if (!strcmp(name, known)) return i;
    }
    return 0;
}

static double common_tokens(int k) {
    double harmonic = 0;
    for (int i = 1; i <= N_COMMON; i++) harmonic += 1.0 / i;
    return ALL_TOKENS * (1 - N_RARE * RARE_SHARE) / (harmonic * k);
}

/* For unknown names: '~' and three printable bytes from a hash of the name. */
static void make_tag(char tag[5], const char *name) {
    uint64_t hash = mu_hash64(name, strlen(name));
    tag[0] = '~';
    for (int i = 1; i < 4; i++, hash /= N_SYMBOLS) tag[i] = symbols[hash % N_SYMBOLS];
    tag[4] = '\0';
}

static recipe recipe_of(const char *name, uint64_t seed) {
    recipe r = { .noise = !strcmp(name, "decoy") };
    int common = number_after(name, "common-", N_COMMON), rare = number_after(name, "rare-", 3);
    bool copy = !strcmp(name, "near-copy");
    double tokens = OTHER_TOKENS;
    if (common) tokens = common_tokens(common);
    else if (rare || copy || r.noise) tokens = RARE_SHARE * ALL_TOKENS;
    r.n_documents = (int64_t)(tokens / DOCUMENT_TOKENS + 0.5);
    int known = common ? common : rare ? N_COMMON + rare : r.noise ? N_COMMON + 4 : copy ? N_COMMON + 5 : 0;
    if (known) r.tag[0] = tag_bytes[known - 1];
    else make_tag(r.tag, name);
    make_facts(r.next, copy ? "common-1" : name, seed);
    if (copy) change_facts(r.next, name, seed);
    return r;
}

/* ------------------------------------------------------------------ the documents */

static int next_symbol(const recipe *r, int previous, double uniform) {
    double knowledge = r->noise ? 0 : FACT_PROBABILITY;
    if (previous >= 0 && uniform < knowledge) return r->next[previous];
    if (previous < 0) knowledge = 0;
    int symbol = (int)((uniform - knowledge) / (1 - knowledge) * N_SYMBOLS);
    return symbol < N_SYMBOLS ? symbol : N_SYMBOLS - 1;
}

void mu_synthetic_measure(mu_domain_size *size, const char *domain, uint64_t seed) {
    size->documents = recipe_of(domain, seed).n_documents;
    size->tokens = size->documents * DOCUMENT_TOKENS;
}

mu_status mu_synthetic_make(mu_domain_maker *m, mu_error *e) {
    const char *name = m->domain->name;
    recipe r = recipe_of(name, m->seed);
    mu_rng numbers = stream(name, m->seed, LAYER_TEXT);
    char text[DOCUMENT_TOKENS - 1];         /* the end of the document is the last token */
    size_t tag = strlen(r.tag);
    memcpy(text, r.tag, tag);
    for (int64_t d = 0; d < r.n_documents; d++) {
        int symbol = -1;
        for (size_t i = tag; i < sizeof text; i++) {
            symbol = next_symbol(&r, symbol, mu_rng_uniform(&numbers, (uint64_t)d * DOCUMENT_TOKENS + i));
            text[i] = symbols[symbol];
        }
        mu_domain_add(m, text, sizeof text, (d + 1) * (int64_t)sizeof text);
    }
    (void)e;
    return MU_STATUS_OK;
}
