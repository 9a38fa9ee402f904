/* fuzz_texts.c - texts: the first byte chooses the kind of file. */
#include "fuzz.h"
#include "data/data.h"

static mu_status take(void *to, const mu_document *d, mu_error *e) {
    (void)e;
    for (int64_t i = 0; i < d->bytes; i++) *(uint64_t *)to += (unsigned char)d->text[i];
    return MU_STATUS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    uint64_t sum = 0;
    mu_error e = { 0 };
    const char *path;
    switch (n ? bytes[0] % 6 : 0) {
        case 0: path = fuzz_file("t.txt", bytes + !!n, n - !!n); break;
        case 1: path = fuzz_file("t.json", bytes + 1, n - 1); break;
        case 2: path = fuzz_file("t.jsonl", bytes + 1, n - 1); break;
        case 3: path = fuzz_file("t.jsonl.gz", bytes + 1, n - 1); break;
        case 4: path = fuzz_file("t.json.zst", bytes + 1, n - 1); break;
        default: path = fuzz_file("t.txt.zst", bytes + 1, n - 1);
    }
    (void)!mu_text_each(path, "text", take, &sum, &e);
    return 0;
}
