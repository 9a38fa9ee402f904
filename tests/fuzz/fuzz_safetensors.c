/* fuzz_safetensors.c - a safetensors file: its header, and the values of every tensor. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    enum { SOME = 256 };
    float values[SOME];
    mu_safetensors *s;
    mu_error e = { 0 };
    if (mu_safetensors_open(&s, fuzz_file("model.safetensors", bytes, n), &e) != MU_STATUS_OK) return 0;
    for (int i = 0; i < mu_safetensors_count(s); i++) {
        const mu_safetensor *t = mu_safetensors_at(s, i);
        int64_t some = t->count < SOME ? t->count : SOME;
        (void)!mu_safetensors_read(s, t, t->count - some, some, values, &e);
    }
    mu_safetensors_close(s);
    return 0;
}
