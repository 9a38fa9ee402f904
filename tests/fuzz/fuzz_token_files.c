/* fuzz_token_files.c - token files of others: the first byte chooses llm.c's (the rest is the file) or Megatron's (two bytes: length of
 * the index, which follows; then the tokens). */
#include "fuzz.h"
#include "data/data.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    if (n < 3) return 0;
    mu_option_domain domain = { .domain = "d", .weight = 1 };
    const char *path;
    if (bytes[0] % 2) path = fuzz_file("llmc.bin", bytes + 1, n - 1);
    else {
        size_t index = bytes[1] | (size_t)bytes[2] << 8, room = n - 3;
        if (index > room) index = room;
        fuzz_file("megatron.idx", bytes + 3, index);
        path = fuzz_file("megatron.bin", bytes + 3 + index, room - index);
    }
    snprintf(domain.path, sizeof domain.path, "%s", path);
    mu_tokenizer *t;
    mu_corpus c;
    mu_error e = { 0 };
    MU_CHECK(mu_tokenizer_open(&t, "bytes", &e) == MU_STATUS_OK, "%s", e.text);
    mu_option_domains list = { 1, &domain };
    if (mu_corpus_open(&c, &list, "text", t, 1, 8 << 20, &e) == MU_STATUS_OK) mu_corpus_close(&c);
    mu_tokenizer_close(t);
    return 0;
}
