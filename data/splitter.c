/* splitter.c - how well-known tokenizers split a text into pieces, between which BPE never merges. Each scanner gives the pieces
 * of one regular expression (in its comment), or of a sequence of them; tests compare them with Oniguruma. Bytes that are
 * not UTF-8 are pieces of their own, and end the text for what stands before them.
 * Names: p is where a piece begins, c the class of the character there, n its bytes. */
#include "data/unicode.h"

#include <string.h>

typedef const unsigned char *at;

enum { LETTER = MU_CHAR_LETTER, NUMBER = MU_CHAR_NUMBER, OTHER = MU_CHAR_OTHER, SPACE = MU_CHAR_SPACE, NEWLINE = MU_CHAR_NEWLINE,
       BROKEN = MU_CHAR_BROKEN, CJK = MU_CHAR_CJK };

/* The end of the run of characters that have a class of `of`. */
static inline at span(at p, at end, unsigned of) {
    int n;
    while (p < end && mu_char_class(p, end, &n) & of) p += n;
    return p;
}

static inline unsigned class_at(at p, at end, int *n) { return p < end ? mu_char_class(p, end, n) : 0; }

/* \s+(?!\S)|\s+ where a character of class `stop` ends the text: all spaces up to the end, else all but the last, at least one. */
static inline at spaces(at p, at end, unsigned stop) {
    at last = p;
    int n;
    unsigned c = SPACE;
    at q = p;
    for (; q < end; q += n) {
        c = mu_char_class(q, end, &n);
        if (!(c & SPACE)) break;
        last = q;
    }
    return q == end || c & (stop | BROKEN) || last == p ? q : last;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ */
static inline at lines_or_spaces(at p, at end, unsigned stop) {
    at newline = NULL, q = p;
    int n;
    for (unsigned c; q < end && (c = mu_char_class(q, end, &n)) & SPACE; q += n)
        if (c & NEWLINE) newline = q;
    return newline ? newline + 1 : spaces(p, end, stop);
}

static inline at numbers(at p, at end, int most) {
    int n;
    for (int i = 0; i < most && class_at(p, end, &n) & NUMBER; i++) p += n;
    return p;
}

/* 's|'t|'re|'ve|'m|'ll|'d at p, or p; any_case: (?i:...), where the long s is an s. */
static inline at contraction(at p, at end, bool any_case) {
    if (end - p < 2 || p[0] != '\'') return p;
    unsigned fold = any_case ? 0x20 : 0, a = p[1] | fold, b = end - p > 2 ? p[2] | fold : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return p + 2;
    if ((b == 'e' && (a == 'r' || a == 'v')) || (a == 'l' && b == 'l')) return p + 3;
    if (any_case && end - p > 2 && p[1] == 0xC5 && p[2] == 0xBF) return p + 3;
    return p;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static inline at gpt2(at p, at end, unsigned stop) {
    int n;
    unsigned c = mu_char_class(p, end, &n);
    if (c & BROKEN) return span(p, end, BROKEN);
    at q = contraction(p, end, false);
    if (q > p) return q;
    if (*p == ' ') {
        unsigned next = class_at(p + 1, end, &n);
        if (next & (LETTER | NUMBER | OTHER) && !(next & stop)) q = p + 1, c = next;
    }
    if (c & SPACE) return spaces(p, end, stop);
    return span(q, end, c & (LETTER | NUMBER | OTHER));
}

static at scan_gpt2(at p, at end) { return gpt2(p, end, 0); }

/* \p{N} each alone, then the same: StarCoder, Granite 3, SmolLM. */
static at scan_digits_gpt2(at p, at end) {
    int n;
    return mu_char_class(p, end, &n) & NUMBER ? p + n : gpt2(p, end, NUMBER);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static inline at cl100k(at p, at end, int digits) {
    int n, next_n;
    unsigned c = mu_char_class(p, end, &n);
    if (c & LETTER) return span(p + n, end, LETTER);
    if (c & BROKEN) return span(p, end, BROKEN);
    at q = contraction(p, end, true);
    if (q > p) return q;
    if (c & NUMBER) return numbers(p, end, digits);
    unsigned next = class_at(p + n, end, &next_n);
    if (next & LETTER && !(c & NEWLINE)) return span(p + n, end, LETTER);
    if (*p == ' ' && next & OTHER) c = next;
    if (c & OTHER) return span(span(p + n, end, OTHER), end, NEWLINE);
    return lines_or_spaces(p, end, 0);
}

static at scan_cl100k(at p, at end) { return cl100k(p, end, 3); }
static at scan_qwen2(at p, at end) { return cl100k(p, end, 1); }    /* \p{N} for \p{N}{1,3} */

/* U*W+, of which a failing U* gives back characters, or U+W*: U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}], W = [\p{Ll}\p{Lm}\p{Lo}\p{M}].
 * The end, or p without a match; `first`: the first alternative only. */
static inline at cased_word(at p, at end, bool first) {
    at both = NULL, q = p;      /* both: the end of the last character that is in U and W */
    int n;
    for (unsigned c; q < end && (c = mu_char_class(q, end, &n)) & MU_CHAR_UPPER; q += n)
        if (c & MU_CHAR_LOWER) both = q + n;
    at r = span(q, end, MU_CHAR_LOWER);
    if (r > q) return r;
    if (first) return both ? both : p;
    return q;
}

/* [^\r\n\p{L}\p{N}]?U*W+C?|[^\r\n\p{L}\p{N}]?U+W*C?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * where C is (?i:'s|'t|'re|'ve|'m|'ll|'d). */
static inline at o200k(at p, at end, int digits, bool contractions) {
    int n, next_n;
    unsigned c = mu_char_class(p, end, &n);
    if (c & BROKEN) return span(p, end, BROKEN);
    at word = c & (LETTER | NUMBER | NEWLINE) ? p : p + n;      /* behind the optional first character */
    for (int first = 1; first >= 0; first--)
        for (at from = word;; from = p) {
            at q = cased_word(from, end, first);
            if (q > from) return contractions ? contraction(q, end, true) : q;
            if (from == p) break;
        }
    if (c & NUMBER) return numbers(p, end, digits);
    if (*p == ' ' && class_at(p + 1, end, &next_n) & OTHER) c = OTHER;
    if (!(c & OTHER)) return lines_or_spaces(p, end, 0);
    at q = span(p + n, end, OTHER);
    while (q < end && (*q == '\r' || *q == '\n' || *q == '/')) q++;
    return q;
}

static at scan_o200k(at p, at end) { return o200k(p, end, 3, true); }
static at scan_tekken(at p, at end) { return o200k(p, end, 1, false); }     /* \p{N}, and no C */

static inline bool is_ascii_letter(unsigned char b) { return (b | 0x20) >= 'a' && (b | 0x20) <= 'z'; }

/* [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * in a stretch without \p{N} whose characters are all in DeepSeek's ranges (run: CJK), or none is (run: 0): STOP in c ^ run ends
 * the text. p when nothing matches here. */
enum { STOP = NUMBER | CJK, WORD = LETTER | MU_CHAR_MARK, SIGN = MU_CHAR_PUNCTUATION | MU_CHAR_SYMBOL };

static inline at span_in(at p, at end, unsigned of, unsigned run) {
    int n;
    for (unsigned c; p < end && (c = mu_char_class(p, end, &n)) & of && !((c ^ run) & STOP); p += n) { }
    return p;
}

static inline at deepseek_word(at p, at end, unsigned run) {
    int n, next_n;
    unsigned c = mu_char_class(p, end, &n), next = class_at(p + n, end, &next_n);
    if (*p < 0x80 && c & SIGN && p + 1 < end && is_ascii_letter(p[1])) {
        for (p += 2; p < end && is_ascii_letter(*p); p++) { }
        return p;
    }
    if ((next ^ run) & STOP) next = 0;
    if (next & WORD && !(c & (LETTER | SIGN | NEWLINE))) return span_in(p + n, end, WORD, run);
    if (c & WORD) return span_in(p, end, WORD, run);
    if (*p == ' ' && next & SIGN) c = next;
    if (c & SIGN) return span_in(span_in(p + n, end, SIGN, run), end, NEWLINE, run);
    return c & SPACE ? lines_or_spaces(p, end, STOP) : p;
}

/* \p{N}{1,3}, then [一-龥぀-ゟ゠-ヿ]+, then the above, each in every piece of the one before it. */
static at scan_deepseek(at p, at end) {
    int n;
    unsigned c = mu_char_class(p, end, &n), run = c & CJK;
    if (c & BROKEN) return span(p, end, BROKEN);
    if (c & NUMBER) return numbers(p, end, 3);
    at q = deepseek_word(p, end, run);
    if (q > p) return q;
    do p += n;                                          /* what nothing matches, up to the next match */
    while (p < end && !(((c = mu_char_class(p, end, &n)) ^ run) & (STOP | BROKEN)) && deepseek_word(p, end, run) == p);
    return p;
}

/* ------------------------------------------------------------------ by name, and by what stands in a tokenizer.json */

#define BYTE_LEVEL(REGEX) "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":" REGEX "}"
#define SPLIT(PATTERN) "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" PATTERN "\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define SEQUENCE(STEPS) "{\"type\":\"Sequence\",\"pretokenizers\":[" STEPS "," BYTE_LEVEL("false") "]}"
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define CL100K(DIGITS) CONTRACTIONS "|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" DIGITS "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|" SPACES
#define UPPER "[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]"
#define LOWER "[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]"
#define O200K(END, DIGITS) "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?" UPPER "*" LOWER "+" END "|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?" UPPER "+" LOWER "*" END \
    "|" DIGITS "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n/]*|" SPACES
#define DEEPSEEK "[!\\\"#$%&'()*+,\\\\-./:;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| ?[\\\\p{P}\\\\p{S}]+[\\r\\n]*|" \
    "\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

struct mu_splitter {
    const char *name, *json;        /* json: of the pre_tokenizer */
    at (*scan)(at p, at end);
};
static const mu_splitter splitters[] = {
    { "gpt2", BYTE_LEVEL("true"), scan_gpt2 },
    { "cl100k", SEQUENCE(SPLIT(CL100K("\\\\p{N}{1,3}"))), scan_cl100k },
    { "qwen2", SEQUENCE(SPLIT(CL100K("\\\\p{N}"))), scan_qwen2 },
    { "o200k", SEQUENCE(SPLIT(O200K(CONTRACTIONS "?", "\\\\p{N}{1,3}"))), scan_o200k },
    { "tekken", SEQUENCE(SPLIT(O200K("", "\\\\p{N}"))), scan_tekken },
    { "deepseek", SEQUENCE(SPLIT("\\\\p{N}{1,3}") "," SPLIT("[一-龥぀-ゟ゠-ヿ]+") "," SPLIT(DEEPSEEK)), scan_deepseek },
    { "digits-gpt2", "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true}," BYTE_LEVEL("true") "]}",
      scan_digits_gpt2 },
};
enum { N_SPLITTERS = sizeof splitters / sizeof *splitters };

const mu_splitter *mu_splitter_named(const char *name) {
    mu_unicode_init();
    for (int i = 0; i < N_SPLITTERS; i++)
        if (!strcmp(splitters[i].name, name)) return &splitters[i];
    return NULL;
}

const mu_splitter *mu_splitter_number(int i) {
    mu_unicode_init();
    return i < N_SPLITTERS ? &splitters[i] : NULL;
}

const char *mu_splitter_name(const mu_splitter *s) { return s->name; }
const char *mu_splitter_json(const mu_splitter *s) { return s->json; }

int64_t mu_splitter_next(const mu_splitter *s, const char *text, int64_t bytes, int64_t from) {
    at p = (at)text;
    return s->scan(p + from, p + bytes) - p;
}
