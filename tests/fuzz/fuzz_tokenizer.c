/* fuzz_tokenizer.c - a tokenizer.json; one that opens encodes a text, decodes it and is written. */
#include "fuzz.h"
#include "data/data.h"

#include <string.h>

static const mu_tokenizer *opened;

static void take(void *to, const int32_t *ids, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const char *bytes;
        MU_CHECK(ids[i] >= 0 && ids[i] < mu_tokenizer_vocab_size(opened), "id %d of %d", ids[i], mu_tokenizer_vocab_size(opened));
        *(int64_t *)to += mu_tokenizer_decode(opened, ids[i], &bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    static const char text[] = "It's 2026, naïve  <|endoftext|> \xff\xfe\xc3 \xe1\x84\x80\xe1\x85\xa1 \n\n\tabcabcabc 12345 </s>";
    mu_error e = { 0 };
    mu_tokenizer *t;
    int64_t decoded = 0;
    if (mu_tokenizer_open(&t, fuzz_file("tokenizer.json", bytes, n), &e) != MU_STATUS_OK) return 0;
    opened = t;
    mu_tokenizer_encode(t, text, sizeof text - 1, take, &decoded);
    mu_tokenizer_encode_prompt(t, text, sizeof text - 1, take, &decoded);
    char path[256];
    snprintf(path, sizeof path, "%s", fuzz_file("written.json", bytes, 0));
    mu_status written = mu_tokenizer_write(t, path, &e);
    mu_tokenizer_close(t);
    if (written != MU_STATUS_OK) return 0;
    MU_CHECK(mu_tokenizer_open(&t, path, &e) == MU_STATUS_OK, "what was written is refused: %s", e.text);
    mu_tokenizer_close(t);
    return 0;
}
