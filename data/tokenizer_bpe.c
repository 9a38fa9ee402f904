/* tokenizer_bpe.c - a text to ids: added tokens are cut out, the rest is normalized, split into pieces, and each piece encoded by the
 * model; all as Hugging Face's tokenizers do it. Bytes that are not UTF-8 separate what the steps see. */
#include "data/tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>

mu_text mu_text_copy(const char *text, int64_t n) {
    mu_text t = { .text = mu_alloc((size_t)n + 1, 1), .n = n };
    memcpy(t.text, text, (size_t)n);
    return t;
}

/* memmem, which takes long to begin, for short texts that are often found. */
static const char *find(const char *p, const char *end, const char *what, int64_t n) {
    if (n > 8) return memmem(p, (size_t)(end - p), what, (size_t)n);
    for (; end - p >= n && (p = memchr(p, what[0], (size_t)(end - p - n + 1))); p++)
        if (!memcmp(p, what, (size_t)n)) return p;
    return NULL;
}

/* ------------------------------------------------------------------ the normalizer */

static char *replace_all(const char *text, int64_t n, const mu_text *what, const mu_text *by, int64_t *out) {
    const char *end = text + n, *first = find(text, end, what->text, what->n);
    if (!first) return NULL;
    int64_t count = 0;
    for (const char *p = first; p; p = find(p + what->n, end, what->text, what->n)) count++;
    *out = n + count * (by->n - what->n);
    char *result = mu_alloc((size_t)*out + 1, 1), *to = result;
    for (const char *p = first; p; p = find(text, end, what->text, what->n)) {
        memcpy(to, text, (size_t)(p - text));
        to += p - text;
        memcpy(to, by->text, (size_t)by->n);
        to += by->n, text = p + what->n;
    }
    memcpy(to, text, (size_t)(end - text));
    return result;
}

static char *prepend(const char *text, int64_t n, const mu_text *first, int64_t *out) {
    char *result = mu_alloc((size_t)(n + first->n) + 1, 1);
    memcpy(result, first->text, (size_t)first->n);
    memcpy(result + first->n, text, (size_t)n);
    *out = n + first->n;
    return result;
}

static char *normalize_once(const mu_normalize_step *s, const char *text, int64_t n, int64_t *out) {
    if (s->kind == MU_NORMALIZE_FORM) return mu_unicode_normalize(s->form, text, n, out);
    if (s->kind == MU_NORMALIZE_PREPEND) return n ? prepend(text, n, &s->text, out) : NULL;
    return replace_all(text, n, &s->text, &s->by, out);
}

char *mu_bpe_normalize(const mu_bpe_tokenizer *t, const char *text, int64_t n, int64_t *out) {
    char *made = NULL;
    *out = n;
    for (int i = 0; i < t->n_normalize; i++) {
        char *next = normalize_once(&t->normalize[i], made ? made : text, *out, out);
        if (!next) continue;
        free(made);
        made = next;
    }
    return made;
}

/* ------------------------------------------------------------------ splitting into pieces */

typedef struct {
    const mu_bpe_tokenizer *t;
    mu_ids *out;
    bool prompt;            /* special tokens are recognised */
    bool begins;            /* the section begins the text */
} encoder;

static void run_steps(encoder *x, int step, const char *p, int64_t n);

/* Plain characters are cut before each run of U+2581 when that changes no id: short pieces are found in the cache. */
static void encode_piece(encoder *x, const char *p, int64_t n) {
    static const char meta[] = "\xe2\x96\x81";
    const mu_bpe *b = x->t->bpe;
    const mu_bpe_options *o = mu_bpe_options_of(b);
    const char *end = p + n;
    if (o->byte_level || o->ignore_merges || !mu_bpe_cuts_at_spaces(b)) {
        mu_bpe_encode(b, p, n, x->out);
        return;
    }
    while (p < end) {
        const char *q = p;
        while (end - q >= 3 && !memcmp(q, meta, 3)) q += 3;
        const char *cut = find(q, end, meta, 3);
        if (!cut) cut = end;
        mu_bpe_encode(b, p, cut - p, x->out);
        p = cut;
    }
}

static void run_splitter(encoder *x, int step, const mu_splitter *s, const char *p, int64_t n) {
    bool last = step + 1 == x->t->n_steps && mu_bpe_options_of(x->t->bpe)->byte_level;
    for (int64_t at = 0, end; at < n; at = end) {
        end = mu_splitter_next(s, p, n, at);
        if (last) mu_bpe_encode(x->t->bpe, p + at, end - at, x->out);
        else run_steps(x, step + 1, p + at, end - at);
    }
}

/* Joins matches with what stands beside them, as the step's behaviour says. */
typedef struct {
    encoder *x;
    int step;
    const char *p;
    mu_part held;           /* not passed on yet; to < 0: none */
    bool last_match;
} joiner;

static void pass_held(joiner *j) {
    if (j->held.to > j->held.from) run_steps(j->x, j->step + 1, j->p + j->held.from, j->held.to - j->held.from);
    j->held.to = -1;
}

static void join_part(void *to, mu_part part) {
    joiner *j = to;
    const mu_split_step *s = &j->x->t->steps[j->step];
    bool match = part.match != s->invert, joins = false;
    switch (s->behavior) {
    case MU_SPLIT_REMOVED: if (match) return; break;
    case MU_SPLIT_CONTIGUOUS: joins = match == j->last_match; break;
    case MU_SPLIT_WITH_PREVIOUS: joins = match && !j->last_match; break;
    case MU_SPLIT_WITH_NEXT: joins = !match && j->last_match; break;
    case MU_SPLIT_ISOLATED: break;
    }
    j->last_match = match;
    if (joins && j->held.to >= 0) {
        j->held.to = part.to;
        return;
    }
    pass_held(j);
    j->held = part;
}

static void run_pattern(encoder *x, int step, const char *p, int64_t n) {
    joiner j = { .x = x, .step = step, .p = p, .held.to = -1 };
    mu_pattern_parts(x->t->steps[step].pattern, p, n, join_part, &j);
    pass_held(&j);
}

static void run_metaspace(encoder *x, int step, const char *p, int64_t n) {
    const mu_text space = { .text = (char[]){ " " }, .n = 1 };
    const mu_split_step *s = &x->t->steps[step];
    int64_t size = n;
    char *replaced = replace_all(p, n, &space, &s->text, &size), *first = NULL;
    const char *now = replaced ? replaced : p;
    bool has = size >= s->text.n && !memcmp(now, s->text.text, (size_t)s->text.n);
    if (!has && (s->prepend == MU_PREPEND_ALWAYS || (s->prepend == MU_PREPEND_FIRST && x->begins)))
        first = prepend(now, size, &s->text, &size);
    run_steps(x, step + 1, first ? first : now, size);
    free(replaced), free(first);
}

static void run_steps(encoder *x, int step, const char *p, int64_t n) {
    const mu_bpe_tokenizer *t = x->t;
    if (!n) return;
    if (step == t->n_steps) {
        encode_piece(x, p, n);
        return;
    }
    const mu_split_step *s = &t->steps[step];
    if (s->kind == MU_STEP_SPLITTER) run_splitter(x, step, s->splitter, p, n);
    else if (s->kind == MU_STEP_PATTERN) run_pattern(x, step, p, n);
    else if (s->kind == MU_STEP_METASPACE) run_metaspace(x, step, p, n);
    else if (*p == ' ') run_steps(x, step + 1, p, n);
    else {
        int64_t size;
        char *first = prepend(p, n, &s->text, &size);
        run_steps(x, step + 1, first, size);
        free(first);
    }
}

/* ------------------------------------------------------------------ added tokens */

static int compare_texts(const mu_text *a, const mu_text *b) {
    int order = memcmp(a->text, b->text, (size_t)(a->n < b->n ? a->n : b->n));
    return order ? order : (a->n > b->n) - (a->n < b->n);
}

static int compare_entries(const void *a, const void *b) { return compare_texts(a, b); }    /* the text is their first field */

void mu_added_finder_make(mu_added_finder *f, const mu_bpe_tokenizer *t, bool normalized) {
    f->list = mu_alloc((size_t)t->n_added + 1, sizeof *f->list);
    for (int i = 0; i < t->n_added; i++) {
        const mu_added_token *a = &t->added[i];
        if (a->normalized != normalized || !a->text.n) continue;
        int64_t n = a->text.n;
        char *made = normalized ? mu_bpe_normalize(t, a->text.text, a->text.n, &n) : NULL;
        f->list[f->n].text = made ? (mu_text){ made, n } : mu_text_copy(a->text.text, n);
        if (n) f->list[f->n++].token = i;
        else free(f->list[f->n].text.text);
    }
    if (f->n) qsort(f->list, (size_t)f->n, sizeof *f->list, compare_entries);
    for (int i = 0; i < f->n; i++) f->first[(unsigned char)f->list[i].text.text[0]] = true;
}

/* The longest that begins at p, or -1: the range of those that agree so far gets smaller byte by byte. */
static int longest_at(const mu_added_finder *f, const char *p, int64_t n) {
    int low = 0, high = f->n, found = -1;
    for (int64_t i = 0; low < high; i++) {
        while (low < high && f->list[low].text.n == i) found = low++;
        if (i == n) break;
        unsigned char byte = (unsigned char)p[i];
        for (int a = low, b = high; a < b;) {           /* the first whose byte i is not smaller */
            int m = (a + b) / 2;
            if ((unsigned char)f->list[m].text.text[i] < byte) low = a = m + 1;
            else b = m;
        }
        for (int a = low, b = high; a < b;) {           /* the first whose byte i is larger */
            int m = (a + b) / 2;
            if ((unsigned char)f->list[m].text.text[i] <= byte) a = m + 1;
            else high = b = m;
        }
    }
    return found;
}

/* The class of the character that ends behind p. */
static unsigned class_before(const char *text, const char *p, const char *end) {
    const unsigned char *start = (const unsigned char *)text, *at = (const unsigned char *)p;
    int n;
    do at--;
    while (at > start && (*at & 0xC0) == 0x80 && (const unsigned char *)p - at < 4);
    unsigned class = mu_char_class(at, (const unsigned char *)end, &n);
    return at + n == (const unsigned char *)p ? class : MU_CHAR_BROKEN;
}

static const char *spaces_before(const char *text, const char *p) {
    while (p > text && class_before(text, p, p) & MU_CHAR_SPACE) {
        do p--;
        while ((*p & 0xC0) == 0x80);
    }
    return p;
}

static const char *spaces_behind(const char *p, const char *end) {
    int n;
    while (p < end && mu_char_class((const unsigned char *)p, (const unsigned char *)end, &n) & MU_CHAR_SPACE) p += n;
    return p;
}

static bool is_single_word(const char *text, const char *from, const char *to, const char *end) {
    int n;
    return !(from > text && class_before(text, from, from) & MU_CHAR_WORD)
        && !(to < end && mu_char_class((const unsigned char *)to, (const unsigned char *)end, &n) & MU_CHAR_WORD);
}

typedef void run_section(encoder *x, const char *p, int64_t n);

/* Passes what is between the added tokens to `run`. */
static void cut_added(encoder *x, const mu_added_finder *f, const char *text, int64_t bytes, run_section *run) {
    const mu_bpe_tokenizer *t = x->t;
    const char *end = text + bytes, *done = text, *p = text;
    bool begins = x->begins;
    if (!f->n || !(x->prompt || t->any_plain)) {
        run(x, text, bytes);
        return;
    }
    while (p < end) {
        int found = f->first[(unsigned char)*p] ? longest_at(f, p, end - p) : -1;
        if (found < 0) {
            p++;
            continue;
        }
        const mu_added_token *a = &t->added[f->list[found].token];
        const char *from = p, *to = p + f->list[found].text.n;
        p = to;
        if (!x->prompt && (a->special || a->id == t->tokenizer.eod)) continue;
        if (a->single_word && !is_single_word(text, from, to, end)) continue;
        if (a->lstrip) from = spaces_before(text, from);
        if (from < done) from = done;
        if (a->rstrip) to = spaces_behind(to, end);
        x->begins = begins && done == text;
        if (from > done) run(x, done, from - done);
        mu_ids_put(x->out, a->id);
        done = to;
    }
    x->begins = begins && done == text;
    if (done < end) run(x, done, end - done);
}

/* ------------------------------------------------------------------ the whole */

static void run_normalized(encoder *x, const char *p, int64_t n) { run_steps(x, 0, p, n); }

static void run_raw(encoder *x, const char *p, int64_t n) {
    int64_t size = n;
    char *made = mu_bpe_normalize(x->t, p, n, &size);
    cut_added(x, &x->t->normalized, made ? made : p, size, run_normalized);
    free(made);
}

static void encode_as(const mu_tokenizer *t, const char *text, int64_t bytes, bool prompt, mu_take_ids *take, void *to) {
    mu_ids out = { .take = take, .to = to };
    encoder x = { .t = (const mu_bpe_tokenizer *)t, .out = &out, .prompt = prompt, .begins = true };
    for (int i = 0; prompt && i < x.t->n_front; i++) mu_ids_put(&out, x.t->front[i]);
    if (bytes) cut_added(&x, &x.t->raw, text, bytes, run_raw);
    mu_ids_flush(&out);
}

static void encode(const mu_tokenizer *t, const char *text, int64_t bytes, mu_take_ids *take, void *to) {
    encode_as(t, text, bytes, false, take, to);
}

static void encode_prompt(const mu_tokenizer *t, const char *text, int64_t bytes, mu_take_ids *take, void *to) {
    encode_as(t, text, bytes, true, take, to);
}

static int64_t decode(const mu_tokenizer *t, int32_t id, const char **bytes) {
    const mu_bpe_tokenizer *b = (const mu_bpe_tokenizer *)t;
    if (id < 0 || id >= t->vocab_size) return 0;
    *bytes = b->decoded[id].text;
    return b->decoded[id].n;
}

static void close_bpe(mu_tokenizer *t) { mu_bpe_tokenizer_free((mu_bpe_tokenizer *)t); }

mu_bpe_tokenizer *mu_bpe_tokenizer_new(bool byte_level) {
    mu_unicode_init();
    mu_bpe_tokenizer *t = mu_alloc(1, sizeof *t);
    t->tokenizer = (mu_tokenizer){ .name = "bpe", .encode = encode, .encode_prompt = encode_prompt, .decode = decode,
                                   .write = mu_bpe_tokenizer_write, .close = close_bpe };
    t->bpe = mu_bpe_new(byte_level);
    return t;
}

static void free_finder(mu_added_finder *f) {
    for (int i = 0; i < f->n; i++) free(f->list[i].text.text);
    free(f->list);
}

void mu_bpe_tokenizer_free(mu_bpe_tokenizer *t) {
    if (!t) return;
    mu_bpe_free(t->bpe);
    for (int i = 0; i < t->n_added; i++) free(t->added[i].text.text);
    free(t->added);
    free_finder(&t->raw), free_finder(&t->normalized);
    for (int i = 0; i < t->n_normalize; i++) free(t->normalize[i].text.text), free(t->normalize[i].by.text);
    for (int i = 0; i < t->n_steps; i++) mu_pattern_free(t->steps[i].pattern), free(t->steps[i].text.text);
    for (int i = 0; i < MU_SECTIONS; i++) json_decref(t->sections[i]);
    free(t->decode_what.text), free(t->decode_by.text), free(t->decoded), free(t->decoded_bytes), free(t->path), free(t->eod_text), free(t);
}
