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
    unsigned class = class_of_category(utf8proc_category((utf8proc_int32_t)c));
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
    if (utf8proc_get_property((utf8proc_int32_t)c)->combining_class) class[c] |= MU_CHAR_UNSTABLE;
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

static unsigned class_of_code(uint32_t c) { return classes[block_of[c / BLOCK]][c % BLOCK]; }

unsigned mu_char_wide(const unsigned char *p, const unsigned char *end, int *bytes) {
    ptrdiff_t room = end - p;
    if (p[0] >= 0xC2 && p[0] < 0xE0 && room >= 2 && (p[1] & 0xC0) == 0x80) {
        *bytes = 2;
        return class_of_code((p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu));
    }
    if ((p[0] & 0xF0) == 0xE0 && room >= 3 && (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80) {
        uint32_t c = (p[0] & 0xFu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
        *bytes = 3;
        if (c >= 0x800 && (c < 0xD800 || c > 0xDFFF)) return class_of_code(c);
    }
    if (p[0] >= 0xF0 && p[0] < 0xF5 && room >= 4 && (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80 && (p[3] & 0xC0) == 0x80) {
        uint32_t c = (p[0] & 7u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
        *bytes = 4;
        if (c >= 0x10000 && c < CODES) return class_of_code(c);
    }
    *bytes = 1;
    return MU_CHAR_BROKEN;
}

/* ------------------------------------------------------------------ normalization forms */

static bool is_normalized(const unsigned char *p, const unsigned char *end) {      /* surely NFC */
    int n;
    for (; p < end; p += n)
        if (mu_char_class(p, end, &n) & MU_CHAR_UNSTABLE) return false;
    return true;
}

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

/* Valid UTF-8. */
static void append_normalized(text_buffer *b, mu_unicode_form form, const unsigned char *p, int64_t n) {
    static const int options[] = { UTF8PROC_COMPOSE, UTF8PROC_DECOMPOSE, UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
                                   UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT };
    utf8proc_uint8_t *out = NULL;
    utf8proc_ssize_t bytes = utf8proc_map(p, n, &out, (utf8proc_option_t)(UTF8PROC_STABLE | options[form]));
    MU_CHECK(bytes >= 0, "utf8proc_map of %lld bytes: %s", (long long)n, utf8proc_errmsg(bytes));
    append(b, out, bytes);
    free(out);
}

char *mu_unicode_normalize(mu_unicode_form form, const char *text, int64_t bytes, int64_t *out_bytes) {
    const unsigned char *p = (const unsigned char *)text, *end = p + bytes;
    if (form == MU_NFC ? is_normalized(p, end) : is_ascii(p, end)) return NULL;
    text_buffer b = { .bytes = mu_alloc((size_t)bytes + 16, 1), .room = bytes + 16 };
    while (p < end) {
        const unsigned char *q = p;
        int n;
        while (q < end && !(mu_char_class(q, end, &n) & MU_CHAR_BROKEN)) q += n;
        append_normalized(&b, form, p, q - p);
        for (p = q; p < end && mu_char_class(p, end, &n) & MU_CHAR_BROKEN; p++) append(&b, p, 1);
    }
    *out_bytes = b.n;
    return b.bytes;
}
