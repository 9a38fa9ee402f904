/* clusters.c - documents without labels: grouped by k-means into clusters, which take the place of domains.
 *
 * Documents are cut into pieces of about PIECE bytes of text, behind a line: a book is one document and may speak of many things.
 * A piece is a unit vector of DIMS numbers: its distinct groups of GRAM bytes (Cavnar & Trenkle 1994; the tokenizer does not
 * matter), with weight (1 + log count) * log(pieces / pieces with the group), each added to one of the numbers with a sign, both
 * by a hash (Weinberger et al. 2009). What all pieces have in common, their mean, is taken away. Similarity is the cosine.
 * k-means++ (Arthur & Vassilvitskii 2007) chooses the first centres; of several tries the best stays.
 *
 * A document is divided only where the cluster changes; there the end-of-document id is put behind. No result depends on the number of
 * threads. Memory beside the ids of the corpus and of the result: 4 * DIMS bytes and a little for each piece. */
#include "data/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 1 << 12, DIMS = 512, GRAM = 3, BUCKET_BITS = 18, BLOCK = 256, ROUNDS = 30, TRIES = 4 };

typedef struct {
    int from, cluster;              /* domain of the corpus */
    bool ends;                      /* with the document */
    int64_t first, n, bytes;        /* tokens of the domain; of text */
} piece;
typedef struct {
    const mu_corpus *c;
    const mu_tokenizer *t;
    int k;
    int64_t n, room;
    piece *pieces;
    uint32_t *documents;            /* pieces with a group of this hash */
    float *x, *centres;             /* [n, DIMS], [k, DIMS] */
    float *near;                    /* [n]: cosine of a piece and its centre */
    int *cluster;                   /* [n] */
} clustering;

/* ------------------------------------------------------------------ pieces */

/* Closes the piece p behind token `to`. A short rest of a document belongs to the piece before it. */
static void add_piece(clustering *w, piece *p, int64_t to, bool ends) {
    piece *last = w->n ? &w->pieces[w->n - 1] : NULL;
    if (ends && last && !last->ends && last->from == p->from && p->bytes < PIECE / 4) {
        last->n = to - last->first, last->bytes += p->bytes, last->ends = true;
    } else {
        if (w->n == w->room) w->pieces = mu_realloc(w->pieces, (size_t)(w->room = 2 * w->room + 64), sizeof *w->pieces);
        p->n = to - p->first, p->ends = ends;
        w->pieces[w->n++] = *p;
    }
    p->first = to, p->bytes = 0;
}

static void cut_domain(clustering *w, int from) {
    enum { PART = 1 << 15 };
    const mu_domain *d = &w->c->domains[from];
    piece p = { .from = from };
    int32_t *ids = mu_alloc(PART, sizeof *ids);
    const char *text;
    int64_t document = 0, end = 0;
    for (int64_t at = 0; at < d->n_tokens; at++) {
        if (at % PART == 0) mu_domain_ids(d, at, d->n_tokens - at < PART ? d->n_tokens - at : PART, ids), mu_activity_tick();
        if (at == end) mu_domain_document_ends(d, document++, 1, &end);
        int64_t bytes = mu_tokenizer_decode(w->t, ids[at % PART], &text);
        p.bytes += bytes;
        bool line = bytes && text[bytes - 1] == '\n';
        if (at + 1 == end || (p.bytes >= PIECE && line) || p.bytes >= PIECE + PIECE / 4) add_piece(w, &p, at + 1, at + 1 == end);
    }
    free(ids);
}

/* The text of a piece, heap. */
static char *text_of(const clustering *w, const piece *p) {
    int32_t *ids = mu_alloc((size_t)p->n, sizeof *ids);
    char *text = mu_alloc((size_t)p->bytes + 1, 1), *end = text;
    const char *bytes;
    mu_domain_ids(&w->c->domains[p->from], p->first, p->n, ids);
    for (int64_t i = 0; i < p->n; i++) {
        int64_t n = mu_tokenizer_decode(w->t, ids[i], &bytes);
        if (n) memcpy(end, bytes, (size_t)n);
        end += n;
    }
    free(ids);
    return text;
}

/* Calls `use` for every piece on all threads; ids are read by this one. */
static void each_piece(clustering *w, void (*use)(clustering *w, int64_t i, const char *text)) {
    char *texts[BLOCK];
    for (int64_t at = 0; at < w->n; at += BLOCK) {
        int n = (int)(w->n - at < BLOCK ? w->n - at : BLOCK);
        for (int i = 0; i < n; i++) texts[i] = text_of(w, &w->pieces[at + i]);
        #pragma omp parallel for schedule(dynamic) num_threads(mu_threads())
        for (int i = 0; i < n; i++) use(w, at + i, texts[i]);
        for (int i = 0; i < n; i++) free(texts[i]);
        mu_activity_tick();
    }
}

/* ------------------------------------------------------------------ vectors */

/* Distinct groups of a piece and how often they occur; count 0: free. */
enum { SLOT_BITS = 14, SLOTS = 1 << SLOT_BITS };
typedef struct { uint32_t gram[SLOTS], count[SLOTS]; } grams;

static uint64_t hash_of(uint32_t gram) {
    uint64_t h = (gram + 1u) * 0x9e3779b97f4a7c15u;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

/* Upper and lower case are one, so are all digits, and all white space. */
static unsigned char fold(unsigned char c) {
    return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c >= '0' && c <= '9' ? '0' : c <= ' ' ? ' ' : c;
}

static grams *grams_of(const char *text, int64_t bytes) {
    grams *g = mu_alloc(1, sizeof *g);
    uint32_t gram = 0;
    unsigned char last = 0;
    int n = 0, used = 0;
    for (int64_t i = 0; i < bytes; i++) {
        unsigned char c = fold((unsigned char)text[i]);
        if (c == ' ' && last == ' ') continue;
        gram = (gram << 8 | (last = c)) & ((1u << 8 * GRAM) - 1);
        if (++n < GRAM) continue;
        size_t at = hash_of(gram) >> (64 - SLOT_BITS);
        while (g->count[at] && g->gram[at] != gram) at = (at + 1) % SLOTS;
        if (!g->count[at] && used++ >= SLOTS / 2) break;        /* a piece with a very long token */
        g->gram[at] = gram, g->count[at]++;
    }
    return g;
}

static void count_documents(clustering *w, int64_t i, const char *text) {
    grams *g = grams_of(text, w->pieces[i].bytes);
    for (int s = 0; s < SLOTS; s++)
        if (g->count[s]) {
            #pragma omp atomic
            w->documents[hash_of(g->gram[s]) >> (64 - BUCKET_BITS)]++;
        }
    free(g);
}

static void normalise(float *x) {
    double sum = 0;
    for (int d = 0; d < DIMS; d++) sum += (double)x[d] * x[d];
    for (int d = 0; d < DIMS && sum > 0; d++) x[d] = (float)(x[d] / sqrt(sum));
}

static void make_vector(clustering *w, int64_t i, const char *text) {
    grams *g = grams_of(text, w->pieces[i].bytes);
    float *x = w->x + i * DIMS;
    for (int s = 0; s < SLOTS; s++) {
        if (!g->count[s]) continue;
        uint64_t h = hash_of(g->gram[s]);
        double rare = log((double)w->n / w->documents[h >> (64 - BUCKET_BITS)]), weight = (1 + log(g->count[s])) * rare;
        x[h % DIMS] += (float)(h & DIMS ? weight : -weight);
    }
    normalise(x);
    free(g);
}

static void remove_mean(clustering *w) {
    double mean[DIMS] = { 0 };
    for (int64_t i = 0; i < w->n * DIMS; i++) mean[i % DIMS] += w->x[i];
    for (int64_t i = 0; i < w->n * DIMS; i++) w->x[i] -= (float)(mean[i % DIMS] / (double)w->n);
    for (int64_t i = 0; i < w->n; i++) normalise(w->x + i * DIMS);
}

/* ------------------------------------------------------------------ k-means */

static float dot(const float *a, const float *b) {
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int d = 0; d < DIMS; d++) sum += a[d] * b[d];
    return sum;
}

/* Gives each piece the nearest of the centres [first, end), or leaves it where it is nearer. Returns how many moved. */
static int64_t assign(clustering *w, int first, int end) {
    int64_t moved = 0;
    #pragma omp parallel for schedule(static) num_threads(mu_threads()) reduction(+ : moved)
    for (int64_t i = 0; i < w->n; i++) {
        int was = w->cluster[i];
        for (int j = first; j < end; j++) {
            float near = dot(w->x + i * DIMS, w->centres + (int64_t)j * DIMS);
            if (j == 0 || near > w->near[i]) w->near[i] = near, w->cluster[i] = j;
        }
        moved += w->cluster[i] != was;
    }
    return moved;
}

/* The next centre: a piece, with a probability proportional to its squared distance from the nearest centre so far. */
static int64_t choose(const clustering *w, int number, const mu_rng *rng) {
    double sum = 0, u = mu_rng_uniform(rng, (uint64_t)number);
    if (number == 0) return (int64_t)(u * (double)w->n);
    for (int64_t i = 0; i < w->n; i++) sum += fmax(0, 1 - w->near[i]);
    int64_t found = 0;
    double left = u * sum;
    for (int64_t i = 0; i < w->n && left >= 0; i++)
        if (w->near[i] < 1) left -= 1 - w->near[i], found = i;
    return found;
}

/* No cluster stays empty: it takes the piece that is farthest from its centre, of those that are not alone. */
static void fill_empty(clustering *w) {
    int64_t *size = mu_alloc((size_t)w->k, sizeof *size);
    for (int64_t i = 0; i < w->n; i++) size[w->cluster[i]]++;
    for (int j = 0; j < w->k; j++) {
        int64_t far = -1;
        if (size[j]) continue;
        for (int64_t i = 0; i < w->n; i++)
            if (size[w->cluster[i]] > 1 && (far < 0 || w->near[i] < w->near[far])) far = i;
        size[w->cluster[far]]--, size[j]++;
        w->cluster[far] = j, w->near[far] = 1;
    }
    free(size);
}

/* Centres: the directions of their pieces' sums. */
static void move_centres(clustering *w) {
    #pragma omp parallel for schedule(dynamic) num_threads(mu_threads())
    for (int j = 0; j < w->k; j++) {
        float *centre = w->centres + (int64_t)j * DIMS;
        memset(centre, 0, DIMS * sizeof *centre);
        for (int64_t i = 0; i < w->n; i++)
            for (int d = 0; d < DIMS && w->cluster[i] == j; d++) centre[d] += w->x[i * DIMS + d];
        normalise(centre);
    }
}

/* One try. Returns the sum of cosines, which k-means makes large. */
static double find_clusters(clustering *w, const mu_rng *rng) {
    for (int j = 0; j < w->k; j++) {
        memcpy(w->centres + (int64_t)j * DIMS, w->x + choose(w, j, rng) * DIMS, DIMS * sizeof *w->x);
        assign(w, j, j + 1);
    }
    for (int round = 0, moved = 1; moved && round < ROUNDS; round++) {
        fill_empty(w);
        move_centres(w);
        moved = assign(w, 0, w->k) > 0;
        mu_activity_tick();
    }
    fill_empty(w);
    double sum = 0;
    for (int64_t i = 0; i < w->n; i++) sum += w->near[i];
    return sum;
}

static void cluster_pieces(clustering *w, uint64_t seed) {
    double best = -INFINITY;
    for (uint32_t try = 0; try < TRIES; try++) {
        double sum = find_clusters(w, &(mu_rng){ .seed = seed, .step = try, .purpose = MU_RNG_CLUSTERS });
        if (sum <= best) continue;
        best = sum;
        for (int64_t i = 0; i < w->n; i++) w->pieces[i].cluster = w->cluster[i];
    }
}

/* The largest cluster, by tokens, becomes number 0. */
typedef struct { int64_t tokens; int cluster; } sized;

static int by_size(const void *a, const void *b) {
    const sized *l = a, *r = b;
    return l->tokens != r->tokens ? (l->tokens < r->tokens ? 1 : -1) : l->cluster - r->cluster;
}

static void sort_clusters(clustering *w) {
    sized *sizes = mu_alloc((size_t)w->k, sizeof *sizes);
    int *place = mu_alloc((size_t)w->k, sizeof *place);
    for (int j = 0; j < w->k; j++) sizes[j].cluster = j;
    for (int64_t i = 0; i < w->n; i++) sizes[w->pieces[i].cluster].tokens += w->pieces[i].n;
    qsort(sizes, (size_t)w->k, sizeof *sizes, by_size);
    for (int j = 0; j < w->k; j++) place[sizes[j].cluster] = j;
    for (int64_t i = 0; i < w->n; i++) w->pieces[i].cluster = place[w->pieces[i].cluster];
    free(sizes);
    free(place);
}

/* ------------------------------------------------------------------ typical words */

/* Words are counted in up to SAMPLE pieces of all clusters together, at least four of each. */
enum { SAMPLE = 2048, WORD_MIN = 3, WORD_MAX = 20, N_WORDS = 5 };
typedef struct { char text[WORD_MAX]; int cluster; } word;
typedef struct { word *list; size_t n, room; } words;
typedef struct { double score[N_WORDS]; const char *text[N_WORDS]; } typical;

static bool is_letter(unsigned char c) { return (c >= 'a' && c <= 'z') || c >= 0x80; }

static void add_words(words *l, const char *text, int cluster) {
    for (const char *p = text; *p;) {
        word v = { .cluster = cluster };
        size_t n = 0;
        for (; is_letter(fold((unsigned char)*p)); p++, n++)
            if (n < WORD_MAX - 1) v.text[n] = (char)fold((unsigned char)*p);
        p += n == 0;
        if (n < WORD_MIN || n >= WORD_MAX) continue;
        if (l->n == l->room) l->list = mu_realloc(l->list, l->room = 2 * l->room + 1024, sizeof *l->list);
        l->list[l->n++] = v;
    }
}

static int by_word(const void *a, const void *b) {
    const word *l = a, *r = b;
    int order = strcmp(l->text, r->text);
    return order ? order : l->cluster - r->cluster;
}

static void keep_best(typical *t, double score, const char *text) {
    int at = N_WORDS;
    while (at > 0 && score > t->score[at - 1]) at--;
    for (int i = N_WORDS - 1; i > at; i--) t->score[i] = t->score[i - 1], t->text[i] = t->text[i - 1];
    if (at < N_WORDS) t->score[at] = score, t->text[at] = text;
}

/* Score of a word in a cluster: its count times the logarithm of how much more frequent it is there than in all. */
static void find_typical(const words *l, int k, typical *best) {
    double *of = mu_alloc((size_t)k, sizeof *of);
    for (size_t i = 0; i < l->n; i++) of[l->list[i].cluster]++;
    for (size_t first = 0, end; first < l->n; first = end) {
        for (end = first; end < l->n && !strcmp(l->list[end].text, l->list[first].text);) end++;
        for (size_t i = first, next; i < end; i = next) {
            int j = l->list[i].cluster;
            for (next = i; next < end && l->list[next].cluster == j;) next++;
            double here = (double)(next - i), more = here * (double)l->n / (of[j] * (double)(end - first));
            keep_best(&best[j], here * log(more), l->list[i].text);
        }
    }
    free(of);
}

static void name_clusters(const clustering *w, mu_clusters *r) {
    int64_t *left = mu_alloc((size_t)w->k, sizeof *left), each = SAMPLE / w->k > 4 ? SAMPLE / w->k : 4, *n = mu_alloc((size_t)w->k, sizeof *n);
    typical *best = mu_alloc((size_t)w->k, sizeof *best);
    words l = { 0 };
    for (int64_t i = 0; i < w->n; i++) n[w->pieces[i].cluster]++;
    for (int64_t i = 0; i < w->n; i++) {        /* evenly spread over the cluster */
        int j = w->pieces[i].cluster;
        left[j] += each;
        if (left[j] < n[j]) continue;
        left[j] -= n[j] > each ? n[j] : each;
        char *text = text_of(w, &w->pieces[i]);
        add_words(&l, text, j);
        free(text);
    }
    if (l.n) qsort(l.list, l.n, sizeof *l.list, by_word);
    find_typical(&l, w->k, best);
    for (int j = 0; j < w->k; j++)
        for (int i = 0; i < N_WORDS && best[j].text[i]; i++)
            snprintf(r->words[j] + strlen(r->words[j]), sizeof r->words[j] - strlen(r->words[j]), "%s%s", i ? " " : "", best[j].text[i]);
    free(l.list);
    free(left);
    free(n);
    free(best);
}

/* ------------------------------------------------------------------ domains */

static void make_domains(const clustering *w, mu_domain *domains) {
    int32_t eod = mu_tokenizer_eod(w->t);
    for (int j = 0; j < w->k; j++) {
        mu_domain *d = &domains[j];
        snprintf(d->name, sizeof d->name, "cluster-%02d", j);
        d->weight = 1;
        d->tokens = mu_column_new(mu_ids_type(mu_tokenizer_vocab_size(w->t)));
        d->document_offsets = mu_column_new(MU_STORE_I64);
        mu_column_append_offset(d->document_offsets, 0);
    }
    for (int64_t i = 0; i < w->n; i++) {
        const piece *p = &w->pieces[i];
        mu_domain *d = &domains[p->cluster];
        int32_t *ids = mu_alloc((size_t)p->n, sizeof *ids);
        mu_domain_ids(&w->c->domains[p->from], p->first, p->n, ids);
        mu_column_append_ids(d->tokens, ids, p->n);
        free(ids);
        d->text_bytes += p->bytes;
        if (!p->ends && p[1].cluster == p->cluster) continue;
        if (!p->ends) mu_column_append_ids(d->tokens, &eod, 1);
        mu_column_append_offset(d->document_offsets, mu_column_length(d->tokens));
        d->n_documents++;
    }
    for (int j = 0; j < w->k; j++) domains[j].n_tokens = mu_column_length(domains[j].tokens);
}

static void report(const clustering *w, mu_clusters *r) {
    *r = (mu_clusters){ .n = w->k, .n_from = w->c->n_domains, .words = mu_alloc((size_t)w->k, sizeof *r->words),
                        .tokens = mu_alloc((size_t)w->k * (size_t)w->c->n_domains, sizeof *r->tokens) };
    for (int64_t i = 0; i < w->n; i++) r->tokens[w->pieces[i].cluster * r->n_from + w->pieces[i].from] += w->pieces[i].n;
    name_clusters(w, r);
}

static mu_status replace_domains(mu_corpus *c, const clustering *w, mu_error *e) {
    mu_domain *domains = mu_alloc((size_t)w->k, sizeof *domains);
    make_domains(w, domains);
    for (int i = 0; i < c->n_domains; i++) mu_domain_close(&c->domains[i]);
    free(c->domains);
    c->domains = domains, c->n_domains = w->k;
    mu_status status = MU_STATUS_OK;
    for (int j = 0; !status && j < w->k; j++) status = mu_domain_scan(&domains[j], w->t, "clusters", e);
    if (!status) mu_corpus_fingerprint(c, w->t);
    return status;
}

mu_status mu_corpus_cluster(mu_corpus *c, const mu_tokenizer *t, int k, uint64_t seed, mu_clusters *r, mu_error *e) {
    MU_CHECK(c && t && r && k > 0, "corpus %p, tokenizer %p, result %p, %d clusters", (void *)c, (const void *)t, (void *)r, k);
    clustering w = { .c = c, .t = t, .k = k };
    mu_status status = MU_STATUS_OK;
    *r = (mu_clusters){ 0 };
    mu_activity_set("clustering", -1, NULL);
    for (int i = 0; i < c->n_domains; i++) cut_domain(&w, i);
    if (w.n < k)
        status = mu_error_set(e, MU_STATUS_DATA, "%d clusters of %lld pieces: the texts are cut into pieces of %d KiB, and each cluster needs at least one; ask "
                              "for fewer clusters, or give more texts", k, (long long)w.n, PIECE >> 10);
    if (!status) {
        w.documents = mu_alloc((size_t)1 << BUCKET_BITS, sizeof *w.documents);
        w.x = mu_alloc((size_t)w.n, DIMS * sizeof *w.x), w.centres = mu_alloc((size_t)k, DIMS * sizeof *w.centres);
        w.near = mu_alloc((size_t)w.n, sizeof *w.near), w.cluster = mu_alloc((size_t)w.n, sizeof *w.cluster);
        each_piece(&w, count_documents);
        each_piece(&w, make_vector);
        remove_mean(&w);
        cluster_pieces(&w, seed);
        sort_clusters(&w);
        report(&w, r);
        status = replace_domains(c, &w, e);
    }
    free(w.pieces);
    free(w.documents);
    free(w.x);
    free(w.centres);
    free(w.near);
    free(w.cluster);
    return status;
}

void mu_clusters_free(mu_clusters *r) {
    free(r->tokens);
    free(r->words);
    *r = (mu_clusters){ 0 };
}
