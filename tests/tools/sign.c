/* sign.c - makes the second line of a manifest the hash of its first: sign FILE. */
#include "base/base.h"

#include <string.h>

int main(int argc, char **argv) {
    mu_error e;
    char *text, hex[33];
    size_t bytes;
    if (argc != 2 || mu_file_read(argv[1], (size_t)64 << 20, &text, &bytes, &e) != MU_STATUS_OK) return 1;
    size_t n = strcspn(text, "\n");
    mu_hash128_hex(text, n, hex);
    char *both = mu_format("%.*s\n%s\n", (int)n, text, hex);
    return mu_file_replace(argv[1], both, strlen(both), &e) != MU_STATUS_OK;
}
