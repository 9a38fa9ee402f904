/* unicode.h - classes of characters, for the files that split texts: a table of two levels, filled once. */
#ifndef MUSTER_DATA_UNICODE_H
#define MUSTER_DATA_UNICODE_H
#include "data/internal.h"

enum {
    MU_CHAR_LETTER = 1,         /* \p{L} */
    MU_CHAR_NUMBER = 2,         /* \p{N} */
    MU_CHAR_MARK = 4,           /* \p{M} */
    MU_CHAR_UPPER = 8,          /* Lu Lt Lm Lo M: the first part of a word of o200k */
    MU_CHAR_LOWER = 16,         /* Ll Lm Lo M: the second part */
    MU_CHAR_PUNCTUATION = 32,   /* \p{P} */
    MU_CHAR_SYMBOL = 64,        /* \p{S} */
    MU_CHAR_SPACE = 128,        /* \s: White_Space */
    MU_CHAR_NEWLINE = 256,      /* \r \n */
    MU_CHAR_OTHER = 512,        /* [^\s\p{L}\p{N}] */
    MU_CHAR_WORD = 1024,        /* \w */
    MU_CHAR_UNSTABLE = 2048,    /* NFC may change it or its neighbours */
    MU_CHAR_CJK = 4096,         /* the ranges that DeepSeek's pattern names */
    MU_CHAR_BROKEN = 8192,      /* a byte that is not UTF-8 */
    MU_CHAR_RECENT = 16384,     /* newer than the normalization forms of Hugging Face's tokenizers: they do not change or reorder it */
    MU_CHAR_ORDERED = 32768,    /* UNSTABLE for its combining class only: alone behind a stable one it stays */
};

/* Fills the tables; thread-safe. Everything below needs it. */
void mu_unicode_init(void);
extern uint16_t mu_char_ascii[128];
/* Bytes of the UTF-8 character at p < end and its code; 0: there is none. Needs no table. */
int mu_char_code(const unsigned char *p, const unsigned char *end, uint32_t *code);
/* Class of the character outside of ASCII at p < end, and its bytes. A byte that is not UTF-8: MU_CHAR_BROKEN and 1. */
unsigned mu_char_wide(const unsigned char *p, const unsigned char *end, int *bytes);

static inline unsigned mu_char_class(const unsigned char *p, const unsigned char *end, int *bytes) {
    if (*p >= 0x80) return mu_char_wide(p, end, bytes);
    *bytes = 1;
    return mu_char_ascii[*p];
}

/* NFC, NFD, NFKC or NFKD of a text, heap, its length in *out_bytes; NULL when it is the text itself. Bytes that are not UTF-8 and
 * characters of MU_CHAR_RECENT stay and separate what is normalized. */
typedef enum { MU_NFC, MU_NFD, MU_NFKC, MU_NFKD } mu_unicode_form;
char *mu_unicode_normalize(mu_unicode_form form, const char *text, int64_t bytes, int64_t *out_bytes);

#endif
