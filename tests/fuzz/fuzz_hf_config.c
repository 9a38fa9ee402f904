/* fuzz_hf_config.c - a folder of Hugging Face: config.json, then a byte 0 and the weights' file. */
#include "fuzz.h"
#include "train/hf.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    const uint8_t *end = n ? memchr(bytes, 0, n) : NULL;
    size_t config = end ? (size_t)(end - bytes) : n;
    size_t weights = end ? n - config - 1 : 0;
    fuzz_file("config.json", bytes, config);
    fuzz_file("model.safetensors", end ? end + 1 : bytes, weights);
    mu_hf *h;
    mu_error e = { 0 };
    if (mu_hf_open(&h, fuzz_folder(), &e) != MU_STATUS_OK) return 0;
    MU_CHECK(mu_hf_config(h)[0] && mu_hf_vocab_size(h) > 0, "%s: no configuration", mu_hf_type(h));
    mu_hf_close(h);
    return 0;
}
