/* tokenizer.c - text to ids and back. A tokenizer is a table of functions; "bytes" is the first: ids 0
 * to 255 are bytes, 256 ends a document. Byte-pair encoding would be one more entry, with what it
 * has learnt in a field of its own. */
#include "data/data.h"

#include <stdlib.h>
#include <string.h>

struct mu_tokenizer {
    const char *name;
    int vocab_size, eod;
    int64_t (*encode)(const mu_tokenizer *t, const char *text, int64_t bytes, uint16_t *tokens);
    int (*decode)(const mu_tokenizer *t, int id, char *out, int room);
};

static int64_t bytes_encode(const mu_tokenizer *t, const char *text, int64_t bytes, uint16_t *tokens) {
    (void)t;
    for (int64_t i = 0; i < bytes; i++) tokens[i] = (unsigned char)text[i];
    return bytes;
}

static int bytes_decode(const mu_tokenizer *t, int id, char *out, int room) {
    (void)t;
    if (id < 0 || id > 255 || room < 1) return 0;
    *out = (char)id;
    return 1;
}

static const mu_tokenizer tokenizers[] = { { "bytes", 257, 256, bytes_encode, bytes_decode } };

mu_tokenizer *mu_tokenizer_open(const char *name) {
    for (size_t i = 0; i < sizeof tokenizers / sizeof *tokenizers; i++) {
        if (strcmp(name, tokenizers[i].name)) continue;
        mu_tokenizer *t = mu_alloc(1, sizeof *t);
        *t = tokenizers[i];
        return t;
    }
    return NULL;
}

void mu_tokenizer_close(mu_tokenizer *t) { free(t); }

const char *mu_tokenizer_name(const mu_tokenizer *t) { return t->name; }
int mu_tokenizer_vocab_size(const mu_tokenizer *t) { return t->vocab_size; }
int mu_tokenizer_eod(const mu_tokenizer *t) { return t->eod; }

int64_t mu_tokenizer_encode(const mu_tokenizer *t, const char *text, int64_t bytes, uint16_t *tokens) {
    return t->encode(t, text, bytes, tokens);
}

int mu_tokenizer_decode(const mu_tokenizer *t, int id, char *out, int room) {
    return t->decode(t, id, out, room);
}
