/* bpe_train.c - trains a byte-level BPE tokenizer: counts the pieces of texts on all threads, then merges pairs of tokens.
 *
 * Ids are those of Hugging Face's BpeTrainer with its ByteLevel alphabet: special tokens, the 256 bytes in the order of the
 * characters that stand for them in a tokenizer.json, then a token for each merge. */
#include "data/internal.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { N_BYTES = 256, THREAD_PIECES = 1 << 18 };

/* ------------------------------------------------------------------ counting */

/* Each thread counts in a table of its own, which it empties into `all` when it has grown. */
typedef struct {
    const mu_splitter *splitter;
    mu_piece_table *all, **of_thread;
} counting;

static void empty_into_all(counting *c, mu_piece_table *t) {
    #pragma omp critical(mu_piece_tables)
    mu_piece_table_move(c->all, t);
}

static void count_batch(void *context, mu_batch *b) {
    counting *c = context;
    mu_piece_table *t = c->of_thread[omp_get_thread_num()];
    for (int64_t i = 0, at = 0; i < b->n_parts; i++)
        for (int64_t end; at < b->parts[i].end; at = end) {
            end = mu_splitter_next(c->splitter, b->text, b->parts[i].end, at);
            mu_piece_table_add(t, b->text + at, end - at, 1);
        }
    if (mu_piece_table_length(t) > THREAD_PIECES) empty_into_all(c, t);
}

typedef struct {
    const mu_bpe_training *how;
    mu_batches *batches;
    int n_paths;
    char *const *paths;
    int64_t before;             /* bytes of the files of earlier paths */
    mu_bpe_trained *result;
} source;

static mu_status add_document(void *to, const mu_document *d, mu_error *e) {
    source *s = to;
    (void)e;
    s->result->documents++;
    s->result->text_bytes += d->bytes;
    mu_batches_add(s->batches, d->text, d->bytes, s->before + d->read);
    return MU_STATUS_OK;
}

static mu_status read_paths(mu_batches *b, void *from, mu_error *e) {
    source *s = from;
    mu_status status = MU_STATUS_OK;
    s->batches = b;
    for (int i = 0; !status && i < s->n_paths; i++) {
        int64_t bytes;
        status = mu_text_each(s->paths[i], s->how->text_key, add_document, s, e);
        if (!status) status = mu_text_bytes(s->paths[i], &bytes, e);
        if (!status) s->before += bytes;
    }
    return status;
}

/* Sets *all to the pieces of all texts, in any case. */
static mu_status count_pieces(source *s, mu_piece_table **all, mu_error *e) {
    int threads = mu_threads();
    counting c = { .splitter = mu_splitter_named(s->how->splitter), .all = mu_piece_table_new(),
                   .of_thread = mu_alloc((size_t)threads, sizeof *c.of_thread) };
    mu_batch_work work = { .work = count_batch, .cut = mu_cut_line, .context = &c };
    mu_activity_set("reading texts", -1, NULL);
    for (int i = 0; i < threads; i++) c.of_thread[i] = mu_piece_table_new();
    mu_status status = mu_batches_run(&work, read_paths, s, e);
    for (int i = 0; i < threads; i++) {
        empty_into_all(&c, c.of_thread[i]);
        mu_piece_table_free(c.of_thread[i]);
    }
    free(c.of_thread);
    *all = c.all;
    s->result->pieces = mu_piece_table_length(c.all);
    return status;
}

/* ------------------------------------------------------------------ the vocabulary */

typedef struct {
    mu_token *tokens;           /* their bytes: heap */
    int32_t (*merges)[2];
    int32_t n_tokens, n_merges;
} vocabulary;

static int32_t add_token(vocabulary *v, const char *first, int64_t n, const char *second, int64_t m) {
    char *bytes = mu_alloc((size_t)(n + m), 1);
    memcpy(bytes, first, (size_t)n);
    if (m) memcpy(bytes + n, second, (size_t)m);
    v->tokens[v->n_tokens] = (mu_token){ bytes, n + m };
    return v->n_tokens++;
}

/* In a tokenizer.json a byte that is a visible character of Latin-1 stands for itself; the others, in order, for U+0100 and the
 * following. */
static bool is_visible(int byte) { return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae; }

static void add_first_tokens(vocabulary *v, const mu_bpe_training *how, int32_t ids[N_BYTES]) {
    for (int i = 0; i < how->n_special; i++) add_token(v, how->special[i], (int64_t)strlen(how->special[i]), NULL, 0);
    for (int visible = 1; visible >= 0; visible--)
        for (int b = 0; b < N_BYTES; b++)
            if (is_visible(b) == visible) ids[b] = add_token(v, &(char){ (char)b }, 1, NULL, 0);
}

static mu_status add_merges(vocabulary *v, const mu_bpe_training *how, mu_piece_table *pieces, const int32_t ids[N_BYTES], mu_error *e) {
    mu_bpe_merger *m;
    int32_t left, right, size = (int32_t)how->vocab_size;
    mu_status status = mu_bpe_merger_new(&m, pieces, ids, v->n_tokens, size, how->min_frequency, e);
    mu_activity_set("merging", -1, NULL);
    while (!status && v->n_tokens < size && mu_bpe_merger_next(m, &left, &right)) {
        const mu_token *a = &v->tokens[left], *b = &v->tokens[right];
        memcpy(v->merges[v->n_merges++], (int32_t[]){ left, right }, sizeof *v->merges);
        mu_bpe_merger_join(m, add_token(v, a->bytes, a->n, b->bytes, b->n));
        mu_activity_done(v->n_tokens);
    }
    mu_bpe_merger_free(m);
    return status;
}

static mu_status make_tokenizer(mu_tokenizer **t, const vocabulary *v, const mu_bpe_training *how, mu_error *e) {
    int32_t *special = mu_alloc((size_t)how->n_special, sizeof *special);
    for (int32_t i = 0; i < how->n_special; i++) special[i] = i;
    mu_status status = mu_tokenizer_bpe_new(t, &(mu_bpe_vocabulary){ .splitter = how->splitter, .n_tokens = v->n_tokens, .n_merges = v->n_merges,
                                                                    .n_special = how->n_special, .tokens = v->tokens,
                                                                    .merges = (const int32_t (*)[2])v->merges, .special = special }, e);
    free(special);
    return status;
}

static void free_vocabulary(vocabulary *v) {
    for (int32_t i = 0; i < v->n_tokens; i++) free((char *)v->tokens[i].bytes);
    free(v->tokens);
    free(v->merges);
}

/* ------------------------------------------------------------------ training */

/* A special token that is one piece of a text, or part of one, could be made by merges. */
static mu_status check_special(const mu_bpe_training *how, const mu_splitter *s, int i, mu_error *e) {
    const char *text = how->special[i];
    int64_t bytes = (int64_t)strlen(text);
    for (int64_t at = 0; at < bytes;) {
        uint32_t code;
        int n = mu_utf8_decode(text + at, (size_t)(bytes - at), &code);
        if (n == 0) return mu_error_set(e, MU_STATUS_USAGE, "special token \"%s\" is not UTF-8", text);
        at += n;
    }
    if (bytes == 0) return mu_error_set(e, MU_STATUS_USAGE, "a special token is empty");
    if (mu_splitter_next(s, text, bytes, 0) == bytes)
        return mu_error_set(e, MU_STATUS_USAGE, "special token \"%s\" could be an ordinary token of a text; choose one such as <|%s|>", text, text);
    for (int k = 0; k < i; k++)
        if (!strcmp(text, how->special[k])) return mu_error_set(e, MU_STATUS_USAGE, "special token \"%s\" appears twice", text);
    return MU_STATUS_OK;
}

static char *splitter_names(void) {
    char *names = mu_strdup("");
    for (int i = 0; mu_splitter_number(i); i++) {
        char *longer = mu_format("%s%s%s", names, i ? ", " : "", mu_splitter_name(mu_splitter_number(i)));
        free(names);
        names = longer;
    }
    return names;
}

mu_status mu_bpe_training_check(const mu_bpe_training *how, mu_error *e) {
    const mu_splitter *s = mu_splitter_named(how->splitter);
    int64_t least = N_BYTES + how->n_special;
    mu_status status = MU_STATUS_OK;
    if (!s) {
        char *names = splitter_names();
        status = mu_error_set(e, MU_STATUS_USAGE, "unknown pattern \"%s\"; available: %s", how->splitter, names);
        free(names);
        return status;
    }
    if (how->n_special < 1) return mu_error_set(e, MU_STATUS_USAGE, "at least one special token is needed, to end a document");
    for (int i = 0; !status && i < how->n_special; i++) status = check_special(how, s, i, e);
    if (!status && (how->vocab_size < least || how->vocab_size > MU_BPE_VOCAB_MAX))
        status = mu_error_set(e, MU_STATUS_USAGE, "vocabulary size %lld: expected %lld (256 bytes, %d special) to %d", (long long)how->vocab_size,
                              (long long)least, how->n_special, MU_BPE_VOCAB_MAX);
    if (!status && how->min_frequency < 1)
        status = mu_error_set(e, MU_STATUS_USAGE, "minimum frequency %lld: expected at least 1", (long long)how->min_frequency);
    return status;
}

mu_status mu_bpe_train(mu_tokenizer **t, mu_bpe_trained *result, const mu_bpe_training *how, int n_paths, char *const *paths, mu_error *e) {
    MU_CHECK(t && result && how && n_paths > 0 && paths, "tokenizer %p, result %p, options %p, %d paths", (void *)t, (void *)result,
             (const void *)how, n_paths);
    *t = NULL, *result = (mu_bpe_trained){ 0 };
    mu_status status = mu_bpe_training_check(how, e);
    if (status) return status;
    mu_piece_table *pieces;
    int32_t ids[N_BYTES];
    vocabulary v = { .tokens = mu_alloc((size_t)how->vocab_size, sizeof *v.tokens), .merges = mu_alloc((size_t)how->vocab_size, sizeof *v.merges) };
    status = count_pieces(&(source){ .how = how, .n_paths = n_paths, .paths = paths, .result = result }, &pieces, e);
    add_first_tokens(&v, how, ids);
    if (!status) status = add_merges(&v, how, pieces, ids, e);
    if (!status) status = make_tokenizer(t, &v, how, e);
    result->merges = v.n_merges;
    mu_piece_table_free(pieces);
    free_vocabulary(&v);
    return status;
}
