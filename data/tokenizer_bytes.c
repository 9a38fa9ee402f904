/* tokenizer_bytes.c - the tokenizer "bytes": ids 0 to 255 are bytes, 256 ends a document. */
#include "data/internal.h"

#include <stdlib.h>

enum { N_BYTES = 256 };

static void encode(const mu_tokenizer *t, const char *text, int64_t bytes, mu_take_ids *take, void *to) {
    enum { SOME = 4096 };
    int32_t ids[SOME];
    (void)t;
    for (int64_t at = 0, n; at < bytes; at += n) {
        n = bytes - at < SOME ? bytes - at : SOME;
        for (int64_t i = 0; i < n; i++) ids[i] = (unsigned char)text[at + i];
        take(to, ids, n);
    }
}

static int64_t cut_anywhere(const char *text, int64_t bytes, int64_t from) {
    (void)text;
    return from < bytes ? from : bytes;
}

typedef struct {
    mu_tokenizer tokenizer;
    char bytes[N_BYTES];        /* byte i */
} bytes_tokenizer;

static int64_t decode(const mu_tokenizer *t, int32_t id, const char **bytes) {
    if (id < 0 || id >= N_BYTES) return 0;
    *bytes = &((const bytes_tokenizer *)t)->bytes[id];
    return 1;
}

static void close_bytes(mu_tokenizer *t) { free(t); }

mu_tokenizer *mu_tokenizer_bytes_new(void) {
    static const char meaning[] = "bytes: ids 0-255 are bytes, 256 ends a document";
    bytes_tokenizer *b = mu_alloc(1, sizeof *b);
    b->tokenizer = (mu_tokenizer){ .name = "bytes", .vocab_size = N_BYTES + 1, .eod = N_BYTES, .encode = encode, .cut = cut_anywhere,
                                   .decode = decode, .close = close_bytes };
    mu_hash128_hex(meaning, sizeof meaning - 1, b->tokenizer.fingerprint);
    for (int i = 0; i < N_BYTES; i++) b->bytes[i] = (char)i;
    return &b->tokenizer;
}
