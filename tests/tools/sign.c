/* sign.c - makes the second line of a manifest the hash of its first: sign FILE [SHARD], where SHARD is a path: its hash
 * is first put in the place of the one that the manifest has for the shard of that name. */
#include "base/base.h"

#include <string.h>

static bool rehash(char *text, const char *shard) {
    const char *slash = strrchr(shard, '/');
    char *at = strstr(text, slash ? slash + 1 : shard), hex[33];
    mu_error e;
    int64_t bytes;
    at = at ? strstr(at, "\"xxh3_128\":\"") : NULL;
    if (!at || mu_file_hash(shard, hex, &bytes, &e) != MU_STATUS_OK) return false;
    memcpy(at + strlen("\"xxh3_128\":\""), hex, 32);
    return true;
}

int main(int argc, char **argv) {
    mu_error e;
    char *text, hex[33];
    size_t bytes;
    if (argc < 2 || mu_file_read(argv[1], (size_t)64 << 20, &text, &bytes, &e) != MU_STATUS_OK) return 1;
    if (argc > 2 && !rehash(text, argv[2])) return 1;
    size_t n = strcspn(text, "\n");
    mu_hash128_hex(text, n, hex);
    char *both = mu_format("%.*s\n%s\n", (int)n, text, hex);
    return mu_file_replace(argv[1], both, strlen(both), &e) != MU_STATUS_OK;
}
