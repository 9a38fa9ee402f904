/* pattern.c - matches of regular expressions, texts and classes of characters. Expressions are Oniguruma's in Ruby's syntax, as in
 * Hugging Face's tokenizers; they see valid UTF-8 only, and an expression that backtracks without end is given up: the rest of
 * the text is then one part, and the log says so once. */
#include "data/pattern.h"
#include "data/unicode.h"

#include <oniguruma.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of an expression, of a text searched at once; per match: backtracks for each byte of the text, stack entries. */
enum { LONGEST = 16384, AT_ONCE = 1 << 30, RETRIES = 64, STACK = 1 << 24 };

typedef enum { REGEX, TEXT, CLASS } kind;
struct mu_pattern {
    kind kind;
    regex_t *regex;
    char *text;
    int64_t n;
    mu_pattern_class class;
    atomic_bool gave_up;
};

static mu_pattern *new_pattern(kind kind) {
    mu_pattern *p = mu_alloc(1, sizeof *p);
    p->kind = kind;
    return p;
}

void mu_pattern_free(mu_pattern *p) {
    if (!p) return;
    if (p->regex) onig_free(p->regex);
    free(p->text), free(p);
}

mu_pattern *mu_pattern_text(const char *text, int64_t n) {
    mu_pattern *p = new_pattern(TEXT);
    p->text = mu_alloc((size_t)n + 1, 1);
    memcpy(p->text, text, (size_t)n);
    p->n = n;
    return p;
}

mu_pattern *mu_pattern_of_class(mu_pattern_class class) {
    mu_unicode_init();
    mu_pattern *p = new_pattern(CLASS);
    p->class = class;
    return p;
}

/* ------------------------------------------------------------------ regular expressions */

static void start_onig(void) {
    OnigEncoding used[] = { ONIG_ENCODING_UTF8 };
    onig_initialize(used, 1);
    onig_set_parse_depth_limit(256);
}

typedef struct {
    const mu_pattern *p;
    const OnigUChar *text;
    int64_t n;
    int64_t at, last;           /* where the next search begins; end of the last match, or -1 */
    OnigRegion *region;
    OnigMatchParam *limits;
} search;

static void search_start(search *s, const mu_pattern *p, const char *text, int64_t n) {
    *s = (search){ .p = p, .text = (const OnigUChar *)text, .n = n, .last = -1, .region = onig_region_new(), .limits = onig_new_match_param() };
    MU_CHECK(s->region && s->limits, "out of memory");
    onig_initialize_match_param(s->limits);
    onig_set_match_stack_limit_size_of_match_param(s->limits, STACK);
    onig_set_retry_limit_in_match_of_match_param(s->limits, (unsigned long)(n + 1000) * RETRIES);
    onig_set_retry_limit_in_search_of_match_param(s->limits, 0);
}

static void search_end(search *s) {
    onig_region_free(s->region, 1);
    onig_free_match_param(s->limits);
}

/* 1: the next match is [*from, *to). 0: none. -1: given up. */
static int search_next(search *s, int64_t *from, int64_t *to) {
    while (s->at <= s->n) {
        const OnigUChar *end = s->text + s->n;
        int r = onig_search_with_param(s->p->regex, s->text, end, s->text + s->at, end, s->region, ONIG_OPTION_NONE, s->limits);
        if (r == ONIG_MISMATCH) return 0;
        if (r < 0) return -1;
        *from = s->region->beg[0], *to = s->region->end[0];
        s->at = *to;
        if (*from != *to || s->last != *to) {
            s->last = *to;
            return 1;
        }
        if (s->at == s->n) return 0;            /* an empty match directly behind the last does not count */
        uint32_t code;
        int length = mu_char_code(s->text + s->at, end, &code);
        s->at += length ? length : 1;
    }
    return 0;
}

/* Tries the expression on texts on which a bad one backtracks most. */
static bool is_bounded(const mu_pattern *p) {
    static const char *const probes[] = { "a", " ", "\n", "1", "!", "aA", "a1", " a", "\xe4\xb8\xad" };
    enum { BYTES = 2000, N = sizeof probes / sizeof *probes };
    char text[BYTES + 1];
    for (int i = 0; i < 2 * N; i++) {
        size_t n = strlen(probes[i / 2]), bytes = 0;
        for (; bytes + n < BYTES; bytes += n) memcpy(text + bytes, probes[i / 2], n);
        text[bytes++] = i % 2 ? '\x01' : 'b';
        search s;
        int64_t from, to;
        int found;
        search_start(&s, p, text, (int64_t)bytes);
        while ((found = search_next(&s, &from, &to)) > 0) { }
        search_end(&s);
        if (found < 0) return false;
    }
    return true;
}

mu_pattern *mu_pattern_regex(const char *text, int64_t n, char *why, size_t room) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_onig);
    if (n > LONGEST) {
        snprintf(why, room, "%lld bytes, more than %d", (long long)n, LONGEST);
        return NULL;
    }
    mu_pattern *p = new_pattern(REGEX);
    OnigErrorInfo info;
    OnigUChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
    const OnigUChar *start = (const OnigUChar *)text;
    int r = onig_new(&p->regex, start, start + n, ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_RUBY, &info);
    if (r != ONIG_NORMAL) {
        onig_error_code_to_str(message, r, &info);
        snprintf(why, room, "%s", (const char *)message);
        p->regex = NULL;
    } else if (!is_bounded(p)) snprintf(why, room, "it backtracks without bound");
    else return p;
    mu_pattern_free(p);
    return NULL;
}

static void give_up(const mu_pattern *p, int64_t n) {
    mu_pattern *mine = (mu_pattern *)(uintptr_t)p;      /* the flag only */
    if (!atomic_exchange(&mine->gave_up, true))
        mu_log(MU_LOG_WARNING, "tokenizer: its regular expression backtracks too much on a text of %lld bytes; such rests are not split", (long long)n);
}

/* Valid UTF-8 of n > 0 bytes, `base` bytes behind the beginning of the text. */
static void regex_parts(const mu_pattern *p, const char *text, int64_t n, int64_t base, mu_take_part *take, void *to) {
    search s;
    int64_t at = 0, from, end;
    int found;
    search_start(&s, p, text, n);
    while ((found = search_next(&s, &from, &end)) > 0) {
        if (from > at) take(to, (mu_part){ base + at, base + from, false });
        take(to, (mu_part){ base + from, base + end, true });
        at = end;
    }
    search_end(&s);
    if (found < 0) give_up(p, n - at);
    if (at < n) take(to, (mu_part){ base + at, base + n, false });
}

/* ------------------------------------------------------------------ all kinds */

/* Signs that became punctuation after the table of Hugging Face's Punctuation was made; two ceased to be. */
static const struct { uint32_t first, last; } later_punctuation[] = {
    { 0x61D, 0x61D }, { 0x9FD, 0x9FD }, { 0xA76, 0xA76 }, { 0xC77, 0xC77 }, { 0xC84, 0xC84 }, { 0x1B4E, 0x1B4F },
    { 0x1B7D, 0x1B7F }, { 0x2E43, 0x2E4F }, { 0x2E52, 0x2E5D }, { 0x10D6E, 0x10D6E }, { 0x10EAD, 0x10EAD },
    { 0x10F55, 0x10F59 }, { 0x10F86, 0x10F89 }, { 0x113D4, 0x113D5 }, { 0x113D7, 0x113D8 }, { 0x1144B, 0x1144F },
    { 0x1145A, 0x1145B }, { 0x1145D, 0x1145D }, { 0x11660, 0x1166C }, { 0x116B9, 0x116B9 }, { 0x1183B, 0x1183B },
    { 0x11944, 0x11946 }, { 0x119E2, 0x119E2 }, { 0x11A3F, 0x11A46 }, { 0x11A9A, 0x11A9C }, { 0x11A9E, 0x11AA2 },
    { 0x11B00, 0x11B09 }, { 0x11BE1, 0x11BE1 }, { 0x11C41, 0x11C45 }, { 0x11C70, 0x11C71 }, { 0x11EF7, 0x11EF8 },
    { 0x11F43, 0x11F4F }, { 0x11FFF, 0x11FFF }, { 0x12FF1, 0x12FF2 }, { 0x16D6D, 0x16D6F }, { 0x16E97, 0x16E9A },
    { 0x16FE2, 0x16FE2 }, { 0x1E5FF, 0x1E5FF }, { 0x1E95E, 0x1E95F },
};

static bool is_punctuation(const unsigned char *p, const unsigned char *end, unsigned class) {
    uint32_t code = 0;
    if (*p < 0x80) return class & (MU_CHAR_PUNCTUATION | MU_CHAR_SYMBOL);
    mu_char_code(p, end, &code);
    for (size_t i = 0; i < sizeof later_punctuation / sizeof *later_punctuation && later_punctuation[i].first <= code; i++)
        if (code <= later_punctuation[i].last) return false;
    return class & MU_CHAR_PUNCTUATION || code == 0x166D || code == 0x111C9;
}

static void class_parts(const mu_pattern *p, const char *text, int64_t n, mu_take_part *take, void *to) {
    const unsigned char *start = (const unsigned char *)text, *end = start + n, *gap = start;
    int length;
    for (const unsigned char *at = start; at < end; at += length) {
        unsigned class = mu_char_class(at, end, &length);
        if (!(p->class == MU_PATTERN_NUMBER ? class & MU_CHAR_NUMBER : is_punctuation(at, end, class))) continue;
        if (at > gap) take(to, (mu_part){ gap - start, at - start, false });
        take(to, (mu_part){ at - start, at + length - start, true });
        gap = at + length;
    }
    if (gap < end) take(to, (mu_part){ gap - start, n, false });
}

static void text_parts(const mu_pattern *p, const char *text, int64_t n, mu_take_part *take, void *to) {
    const char *at = text, *found;
    for (; (found = memmem(at, (size_t)(text + n - at), p->text, (size_t)p->n)); at = found + p->n) {
        if (found > at) take(to, (mu_part){ at - text, found - text, false });
        take(to, (mu_part){ found - text, found + p->n - text, true });
    }
    if (at < text + n) take(to, (mu_part){ at - text, n, false });
}

void mu_pattern_parts(const mu_pattern *p, const char *text, int64_t n, mu_take_part *take, void *to) {
    if (p->kind == CLASS) class_parts(p, text, n, take, to);
    if (p->kind == TEXT) text_parts(p, text, n, take, to);
    if (p->kind != REGEX) return;
    const unsigned char *start = (const unsigned char *)text, *end = start + n, *q;
    uint32_t code;
    int length;
    for (const unsigned char *at = start; at < end; at = q) {       /* stretches of valid UTF-8 and of other bytes in turn */
        for (q = at; q < end && q - at < AT_ONCE && (length = mu_char_code(q, end, &code)); q += length) { }
        if (q > at) regex_parts(p, (const char *)at, q - at, at - start, take, to);
        for (at = q; q < end && !mu_char_code(q, end, &code); q++) { }
        if (q > at) take(to, (mu_part){ at - start, q - start, false });
    }
}
