/* unicode.c - the classes of all characters from utf8proc's categories, and the four normalization forms. */
#include "data/unicode.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { CODES = 0x110000, BLOCK = 256, BLOCKS = CODES / BLOCK };
uint16_t mu_char_ascii[128];
static uint16_t block_of[BLOCKS];           /* index of a block of classes */
static uint16_t (*classes)[BLOCK];
static int n_blocks;

static bool is_space(uint32_t c) {          /* White_Space */
    return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028
        || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* Characters that Unicode 15.1 and 16.0 added: Debian's utf8proc knows 15.0, while the regular expressions of tokenizers follow 16.0.
 * Made by asking them for the category of each character. */
#define C(CATEGORY) UTF8PROC_CATEGORY_##CATEGORY
static const struct { uint32_t first, last; int category; } newer[] = {
    { 0x897, 0x897, C(MN) }, { 0x1B4E, 0x1B4F, C(PO) }, { 0x1B7F, 0x1B7F, C(PO) }, { 0x1C89, 0x1C89, C(LU) },
    { 0x1C8A, 0x1C8A, C(LL) }, { 0x2427, 0x2429, C(SO) }, { 0x2FFC, 0x2FFF, C(SO) }, { 0x31E4, 0x31E5, C(SO) },
    { 0x31EF, 0x31EF, C(SO) }, { 0xA7CB, 0xA7CC, C(LU) }, { 0xA7CD, 0xA7CD, C(LL) }, { 0xA7DA, 0xA7DA, C(LU) },
    { 0xA7DB, 0xA7DB, C(LL) }, { 0xA7DC, 0xA7DC, C(LU) }, { 0x105C0, 0x105F3, C(LO) }, { 0x10D40, 0x10D49, C(ND) },
    { 0x10D4A, 0x10D4D, C(LO) }, { 0x10D4E, 0x10D4E, C(LM) }, { 0x10D4F, 0x10D4F, C(LO) }, { 0x10D50, 0x10D65, C(LU) },
    { 0x10D69, 0x10D6D, C(MN) }, { 0x10D6E, 0x10D6E, C(PD) }, { 0x10D6F, 0x10D6F, C(LM) }, { 0x10D70, 0x10D85, C(LL) },
    { 0x10D8E, 0x10D8F, C(SM) }, { 0x10EC2, 0x10EC4, C(LO) }, { 0x10EFC, 0x10EFC, C(MN) }, { 0x11380, 0x11389, C(LO) },
    { 0x1138B, 0x1138B, C(LO) }, { 0x1138E, 0x1138E, C(LO) }, { 0x11390, 0x113B5, C(LO) }, { 0x113B7, 0x113B7, C(LO) },
    { 0x113B8, 0x113BA, C(MC) }, { 0x113BB, 0x113C0, C(MN) }, { 0x113C2, 0x113C2, C(MC) }, { 0x113C5, 0x113C5, C(MC) },
    { 0x113C7, 0x113CA, C(MC) }, { 0x113CC, 0x113CD, C(MC) }, { 0x113CE, 0x113CE, C(MN) }, { 0x113CF, 0x113CF, C(MC) },
    { 0x113D0, 0x113D0, C(MN) }, { 0x113D1, 0x113D1, C(LO) }, { 0x113D2, 0x113D2, C(MN) }, { 0x113D3, 0x113D3, C(LO) },
    { 0x113D4, 0x113D5, C(PO) }, { 0x113D7, 0x113D8, C(PO) }, { 0x113E1, 0x113E2, C(MN) }, { 0x116D0, 0x116E3, C(ND) },
    { 0x11BC0, 0x11BE0, C(LO) }, { 0x11BE1, 0x11BE1, C(PO) }, { 0x11BF0, 0x11BF9, C(ND) }, { 0x11F5A, 0x11F5A, C(MN) },
    { 0x13460, 0x143FA, C(LO) }, { 0x16100, 0x1611D, C(LO) }, { 0x1611E, 0x16129, C(MN) }, { 0x1612A, 0x1612C, C(MC) },
    { 0x1612D, 0x1612F, C(MN) }, { 0x16130, 0x16139, C(ND) }, { 0x16D40, 0x16D42, C(LM) }, { 0x16D43, 0x16D6A, C(LO) },
    { 0x16D6B, 0x16D6C, C(LM) }, { 0x16D6D, 0x16D6F, C(PO) }, { 0x16D70, 0x16D79, C(ND) }, { 0x18CFF, 0x18CFF, C(LO) },
    { 0x1CC00, 0x1CCEF, C(SO) }, { 0x1CCF0, 0x1CCF9, C(ND) }, { 0x1CD00, 0x1CEB3, C(SO) }, { 0x1E5D0, 0x1E5ED, C(LO) },
    { 0x1E5EE, 0x1E5EF, C(MN) }, { 0x1E5F0, 0x1E5F0, C(LO) }, { 0x1E5F1, 0x1E5FA, C(ND) }, { 0x1E5FF, 0x1E5FF, C(PO) },
    { 0x1F8B2, 0x1F8BB, C(SO) }, { 0x1F8C0, 0x1F8C1, C(SO) }, { 0x1FA89, 0x1FA89, C(SO) }, { 0x1FA8F, 0x1FA8F, C(SO) },
    { 0x1FABE, 0x1FABE, C(SO) }, { 0x1FAC6, 0x1FAC6, C(SO) }, { 0x1FADC, 0x1FADC, C(SO) }, { 0x1FADF, 0x1FADF, C(SO) },
    { 0x1FAE9, 0x1FAE9, C(SO) }, { 0x1FBCB, 0x1FBEF, C(SO) }, { 0x2EBF0, 0x2EE5D, C(LO) },
};

static int category_of(uint32_t c) {
    int category = utf8proc_category((utf8proc_int32_t)c);
    for (size_t i = 0; category == UTF8PROC_CATEGORY_CN && i < sizeof newer / sizeof *newer && newer[i].first <= c; i++)
        if (c <= newer[i].last) category = newer[i].category;
    return category;
}

/* Characters with a combining class or a decomposition that came after Unicode 9, whose forms tokenizers normalize to; found by
 * comparing NFC of each character in four surroundings. */
static const struct { uint32_t first, last; } recent[] = {
    { 0x7FD, 0x7FD }, { 0x898, 0x89F }, { 0x8CA, 0x8D3 }, { 0x9FE, 0x9FE }, { 0xC3C, 0xC3C }, { 0xD3B, 0xD3C }, { 0xEBA, 0xEBA },
    { 0x1715, 0x1715 }, { 0x1ABF, 0x1ACE }, { 0x1DF6, 0x1DFA }, { 0xA82C, 0xA82C }, { 0x10D24, 0x10D27 }, { 0x10EAB, 0x10EAC },
    { 0x10EFD, 0x10EFF }, { 0x10F46, 0x10F50 }, { 0x10F82, 0x10F85 }, { 0x11070, 0x11070 }, { 0x1133B, 0x1133B }, { 0x1145E, 0x1145E },
    { 0x11839, 0x1183A }, { 0x1193D, 0x1193E }, { 0x11943, 0x11943 }, { 0x119E0, 0x119E0 }, { 0x11A34, 0x11A34 }, { 0x11A47, 0x11A47 },
    { 0x11A99, 0x11A99 }, { 0x11D42, 0x11D42 }, { 0x11D44, 0x11D45 }, { 0x11D97, 0x11D97 }, { 0x11F41, 0x11F42 }, { 0x16FF0, 0x16FF1 },
    { 0x1E08F, 0x1E08F }, { 0x1E130, 0x1E136 }, { 0x1E2AE, 0x1E2AE }, { 0x1E2EC, 0x1E2EF }, { 0x1E4EC, 0x1E4EF },
};

/* The same for compatibility forms: their NFKC and NFKD leave these. */
static const struct { uint32_t first, last; } recent_compatible[] = {
    { 0x32FF, 0x32FF }, { 0xA7F2, 0xA7F4 }, { 0xAB69, 0xAB69 }, { 0x10781, 0x10785 }, { 0x10787, 0x107B0 }, { 0x107B2, 0x107BA },
    { 0x1E030, 0x1E06D }, { 0x1F16C, 0x1F16C }, { 0x1FBF0, 0x1FBF9 },
};

static unsigned class_of_category(int category) {
    switch (category) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LT: return MU_CHAR_LETTER | MU_CHAR_UPPER | MU_CHAR_WORD;
    case UTF8PROC_CATEGORY_LL: return MU_CHAR_LETTER | MU_CHAR_LOWER | MU_CHAR_WORD;
    case UTF8PROC_CATEGORY_LM: case UTF8PROC_CATEGORY_LO:
        return MU_CHAR_LETTER | MU_CHAR_UPPER | MU_CHAR_LOWER | MU_CHAR_WORD;
    case UTF8PROC_CATEGORY_MN: case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME:
        return MU_CHAR_MARK | MU_CHAR_UPPER | MU_CHAR_LOWER | MU_CHAR_WORD;
    case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: return MU_CHAR_NUMBER | MU_CHAR_WORD;
    case UTF8PROC_CATEGORY_NO: return MU_CHAR_NUMBER;
    case UTF8PROC_CATEGORY_PC: return MU_CHAR_PUNCTUATION | MU_CHAR_WORD;
    case UTF8PROC_CATEGORY_PD: case UTF8PROC_CATEGORY_PS: case UTF8PROC_CATEGORY_PE: case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF: case UTF8PROC_CATEGORY_PO: return MU_CHAR_PUNCTUATION;
    case UTF8PROC_CATEGORY_SM: case UTF8PROC_CATEGORY_SC: case UTF8PROC_CATEGORY_SK: case UTF8PROC_CATEGORY_SO:
        return MU_CHAR_SYMBOL;
    default: return 0;
    }
}

static unsigned class_of(uint32_t c) {
    unsigned class = class_of_category(category_of(c));
    if (is_space(c)) class |= MU_CHAR_SPACE;
    if (c == '\r' || c == '\n') class |= MU_CHAR_NEWLINE;
    if (!(class & (MU_CHAR_SPACE | MU_CHAR_LETTER | MU_CHAR_NUMBER))) class |= MU_CHAR_OTHER;
    if ((c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF)) class |= MU_CHAR_CJK;
    if (c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9)) class |= MU_CHAR_WORD;  /* Join_Control, Other_Alphabetic */
    return class;
}

/* A character is unstable when NFC changes it, when it has a combining class, or when it can be composed with one before it: it
 * stands behind the first in the decomposition of another. */
static void mark_unstable(uint16_t *class, uint32_t c) {
    utf8proc_int32_t out[32];
    int boundary = UTF8PROC_BOUNDCLASS_START;
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)c, out, 32, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
    for (utf8proc_ssize_t i = 1; i < n; i++) class[out[i]] |= MU_CHAR_UNSTABLE;
    if (n == 1 && out[0] != (utf8proc_int32_t)c) class[c] |= MU_CHAR_UNSTABLE;
    if (n > 1 && !(c >= 0xAC00 && c <= 0xD7A3)) {           /* excluded from composition? */
        n = utf8proc_normalize_utf32(out, n, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        if (n != 1 || out[0] != (utf8proc_int32_t)c) class[c] |= MU_CHAR_UNSTABLE;
    }
    if (utf8proc_get_property((utf8proc_int32_t)c)->combining_class) class[c] |= MU_CHAR_ORDERED;
}

static void mark_recent(uint16_t *class, uint32_t first, uint32_t last) {
    for (uint32_t c = first; c <= last; c++) class[c] = (uint16_t)((class[c] & ~(unsigned)MU_CHAR_UNSTABLE) | MU_CHAR_RECENT);
}

static int find_block(const uint16_t *block) {
    for (int i = n_blocks - 1; i >= 0; i--)
        if (!memcmp(classes[i], block, sizeof *classes)) return i;
    memcpy(classes[n_blocks], block, sizeof *classes);
    return n_blocks++;
}

static void fill(void) {
    uint16_t *class = mu_alloc(CODES, sizeof *class);
    for (uint32_t c = 0; c < CODES; c++) class[c] = (uint16_t)class_of(c);
    for (uint32_t c = 0xC0; c < 0x30000; c++)
        if (utf8proc_category((utf8proc_int32_t)c) != UTF8PROC_CATEGORY_CN) mark_unstable(class, c);
    for (uint32_t c = 0xC0; c < 0x30000; c++)
        if (class[c] & MU_CHAR_UNSTABLE) class[c] &= (uint16_t)~MU_CHAR_ORDERED;
        else if (class[c] & MU_CHAR_ORDERED) class[c] |= MU_CHAR_UNSTABLE;
    for (size_t i = 0; i < sizeof recent / sizeof *recent; i++) mark_recent(class, recent[i].first, recent[i].last);
    for (size_t i = 0; i < sizeof newer / sizeof *newer; i++) mark_recent(class, newer[i].first, newer[i].last);
    for (int c = 0; c < 128; c++) mu_char_ascii[c] = class[c];
    classes = mu_alloc(BLOCKS, sizeof *classes);
    for (int i = 0; i < BLOCKS; i++) block_of[i] = (uint16_t)find_block(class + (size_t)i * BLOCK);
    classes = mu_realloc(classes, (size_t)n_blocks, sizeof *classes);
    free(class);
}

void mu_unicode_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill);
}

static inline int decode(const unsigned char *p, const unsigned char *end, uint32_t *code) {
    ptrdiff_t room = end - p;
    if (*p < 0x80) {
        *code = *p;
        return 1;
    }
    if (*p >= 0xC2 && *p < 0xE0 && room >= 2 && (p[1] & 0xC0) == 0x80) {
        *code = (*p & 0x1Fu) << 6 | (p[1] & 0x3Fu);
        return 2;
    }
    if ((*p & 0xF0) == 0xE0 && room >= 3 && (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80) {
        *code = (*p & 0xFu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
        return *code >= 0x800 && (*code < 0xD800 || *code > 0xDFFF) ? 3 : 0;
    }
    if (*p >= 0xF0 && *p < 0xF5 && room >= 4 && (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80 && (p[3] & 0xC0) == 0x80) {
        *code = (*p & 7u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
        return *code >= 0x10000 && *code < CODES ? 4 : 0;
    }
    return 0;
}

int mu_char_code(const unsigned char *p, const unsigned char *end, uint32_t *code) { return decode(p, end, code); }

unsigned mu_char_wide(const unsigned char *p, const unsigned char *end, int *bytes) {
    uint32_t code;
    *bytes = decode(p, end, &code);
    if (*bytes) return classes[block_of[code / BLOCK]][code % BLOCK];
    *bytes = 1;
    return MU_CHAR_BROKEN;
}

/* ------------------------------------------------------------------ normalization forms */

static bool is_ascii(const unsigned char *p, const unsigned char *end) {
    while (p < end && *p < 0x80) p++;
    return p == end;
}

typedef struct { char *bytes; int64_t n, room; } text_buffer;

static void append(text_buffer *b, const void *bytes, int64_t n) {
    if (b->n + n > b->room) b->bytes = mu_realloc(b->bytes, (size_t)(b->room = 2 * (b->n + n)), 1);
    if (n) memcpy(b->bytes + b->n, bytes, (size_t)n);
    b->n += n;
}

static const int form_options[] = { UTF8PROC_COMPOSE, UTF8PROC_DECOMPOSE, UTF8PROC_COMPOSE | UTF8PROC_COMPAT, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT };

/* Valid UTF-8. */
static void append_normalized(text_buffer *b, mu_unicode_form form, const unsigned char *p, int64_t n) {
    enum { ROOM = 256 };
    utf8proc_int32_t some[ROOM], *codes = some;
    utf8proc_option_t options = (utf8proc_option_t)(UTF8PROC_STABLE | form_options[form]);
    utf8proc_ssize_t length = utf8proc_decompose(p, n, codes, ROOM - 1, options);
    if (length >= ROOM) {                       /* reencode needs room for one more */
        codes = mu_alloc((size_t)length + 1, sizeof *codes);
        length = utf8proc_decompose(p, n, codes, length, options);
    }
    if (length > 0) length = utf8proc_reencode(codes, length, options);
    MU_CHECK(length >= 0, "utf8proc with %lld bytes: %s", (long long)n, utf8proc_errmsg(length));
    append(b, codes, length);
    if (codes != some) free(codes);
}

/* Where the next character stands that NFC may change: *from is the stable one before it, or it, and *to the next stable one. */
static bool find_unstable(const unsigned char *p, const unsigned char *end, const unsigned char **from, const unsigned char **to) {
    const unsigned char *stable = p;
    int n;
    while (p < end) {
        unsigned c = mu_char_class(p, end, &n), count = 0;
        bool ordered = true;
        if (!(c & MU_CHAR_UNSTABLE)) {
            stable = p;
            p += n;
            continue;
        }
        for (; p < end && (c = mu_char_class(p, end, &n)) & MU_CHAR_UNSTABLE; p += n, count++) ordered = ordered && c & MU_CHAR_ORDERED;
        if (ordered && count == 1) continue;
        *from = stable, *to = p;
        return true;
    }
    return false;
}

/* NFC, and only where it is needed: a stable character composes with none before it, so that it begins anew there. */
static void append_composed(text_buffer *b, const unsigned char *p, const unsigned char *end) {
    const unsigned char *from, *to;
    for (; find_unstable(p, end, &from, &to); p = to) {
        append(b, p, from - p);
        append_normalized(b, MU_NFC, from, to - from);
    }
    append(b, p, end - p);
}

/* Whether the character stays as it is and separates what is normalized. */
static bool is_apart(const unsigned char *p, const unsigned char *end, mu_unicode_form form, int *n) {
    uint32_t code = 0;
    if (mu_char_class(p, end, n) & (MU_CHAR_BROKEN | MU_CHAR_RECENT)) return true;
    if (form == MU_NFC || form == MU_NFD || *n < 3) return false;
    decode(p, end, &code);
    for (size_t i = 0; i < sizeof recent_compatible / sizeof *recent_compatible && recent_compatible[i].first <= code; i++)
        if (code <= recent_compatible[i].last) return true;
    return false;
}

char *mu_unicode_normalize(mu_unicode_form form, const char *text, int64_t bytes, int64_t *out_bytes) {
    const unsigned char *p = (const unsigned char *)text, *end = p + bytes, *from, *to;
    if (form == MU_NFC ? !find_unstable(p, end, &from, &to) : is_ascii(p, end)) return NULL;
    text_buffer b = { .bytes = mu_alloc((size_t)bytes + 16, 1), .room = bytes + 16 };
    while (p < end) {
        const unsigned char *q = p;
        int n;
        while (q < end && !is_apart(q, end, form, &n)) q += n;
        if (form == MU_NFC) append_composed(&b, p, q);
        else if (q > p) append_normalized(&b, form, p, q - p);
        for (p = q; p < end && is_apart(p, end, form, &n); p += n) append(&b, p, n);
    }
    *out_bytes = b.n;
    return b.bytes;
}
