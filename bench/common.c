/* common.c - command lines, medians and the device, shared by the benchmark programs. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(const double *values, int64_t n) {
    if (n < 1) return 0;
    double *sorted = mu_alloc((size_t)n, sizeof *sorted);
    memcpy(sorted, values, sizeof *values * (size_t)n);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    double middle = n % 2 ? sorted[n / 2] : 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]);
    free(sorted);
    return middle;
}

static int usage(FILE *out, int code, const char *program, const bench_option *options, int n) {
    fprintf(out, "usage: %s [--OPTION [N] ...]\n", program);
    for (int i = 0; i < n; i++)
        fprintf(out, "  %-10s %s %s\n", options[i].name, options[i].number ? "N" : " ", options[i].help);
    return code;
}

/* Parses one option with its value. Returns the number of arguments used, 0 if it is not a valid option. */
static int read_option(const bench_option *options, int n, int left, char **words) {
    int i = 0;
    while (i < n && strcmp(options[i].name, words[0])) i++;
    if (i == n) return 0;
    if (options[i].flag) {
        *options[i].flag = true;
        return 1;
    }
    char *end = NULL;
    long long value = left > 1 ? strtoll(words[1], &end, 10) : 0;
    if (!end || end == words[1] || *end || value < 1) return 0;
    *options[i].number = value;
    return 2;
}

int bench_parse(const char *program, const bench_option *options, int n, int argc, char **argv) {
    for (int i = 1, took; i < argc; i += took) {
        if (!strcmp(argv[i], "--help")) return usage(stdout, 0, program, options, n);
        took = read_option(options, n, argc - i, argv + i);
        if (took) continue;
        fprintf(stderr, "%s: cannot read '%s%s%s'\n", program, argv[i], i + 1 < argc ? " " : "",
                i + 1 < argc ? argv[i + 1] : "");
        return usage(stderr, 64, program, options, n);
    }
    return -1;
}

struct mu_device *bench_device(const char *program, bool bf16, bool cuda) {
    mu_device *dev = mu_device_open(cuda ? bf16 ? "cuda-bf16" : "cuda" : bf16 ? "cpu-bf16" : "cpu");
    if (!dev) fprintf(stderr, "%s: %s\n", program, cuda ? mu_cuda_missing() : "this processor has no bf16 products");
    return dev;
}

void bench_randomly(mu_device *dev, int64_t n, double scale, uint32_t stream, mu_mat x, mu_mat room) {
    int64_t made = n < BENCH_BLOCK ? n : BENCH_BLOCK;
    mu_rng rng = { 3, stream, 0, MU_RNG_TEST, 0 };
    float *host = mu_alloc((size_t)made, sizeof *host);
    for (int64_t i = 0; i < made; i++) host[i] = (float)(scale * (2 * mu_rng_uniform(&rng, (uint64_t)i) - 1));
    mu_device_write(dev, room.data, host, (size_t)made * sizeof *host);
    for (int64_t at = 0; at < n; at += made) {
        mu_mat to = x;
        to.data = (char *)x.data + (size_t)at * mu_dtype_size(x.dtype);
        dev->k->copy(dev, n - at < made ? n - at : made, room, to);
    }
    free(host);
}
