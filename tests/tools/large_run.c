/* large_run.c - makes a run folder of any size without training: large_run FOLDER LAYERS EXPERTS DOMAINS STEPS. Every step is logged: lines
 * of metrics.jsonl with the keys that a run writes, statistics lines every tenth, evaluations every fifth, and statistics.rec; made-up numbers. */
#include "train/lines.h"
#include "train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t L, E, D, N;
static mu_error e;
enum { BATCH = 64, SEQ = 512, K = 8 };

static double noise(int64_t step, int64_t i) { return mu_rng_uniform(&(mu_rng){ 1, (uint32_t)step, 0, MU_RNG_TEST, 0 }, (uint64_t)i); }

static void must(mu_status status) {
    if (status == MU_STATUS_OK) return;
    fprintf(stderr, "large_run: %s\n", e.text);
    exit((int)status);
}

static void write_file(const char *folder, const char *name, const char *text) {
    char *path = mu_format("%s/%s", folder, name);
    must(mu_file_replace(path, text, strlen(text), &e));
    free(path);
}

static void write_config(const char *folder) {
    char *text = mu_format("run: {dir: %s}\nmodel: {hidden_size: 64, num_layers: %lld, num_heads: 4, max_seq_len: %d}\n"
                           "moe: {num_experts: %lld, top_k: %d, moe_ffn_hidden_size: 32, capacity_factor: 1.5}\n"
                           "train: {steps: %lld, seq_len: %d, global_batch_size: %d}\nlog: {every: 1}\ndata:\n  train:\n",
                           folder, (long long)L, SEQ, (long long)E, K, (long long)N, SEQ, BATCH);
    for (int64_t d = 0; d < D; d++) {
        char *more = mu_format("%s    - {domain: domain-%lld, path: synthetic}\n", text, (long long)d);
        free(text);
        text = more;
    }
    write_file(folder, "config.resolved.yaml", text);
    free(text);
    write_file(folder, "run.json", "{\"program\":\"muster\",\"dir\":\"/elsewhere\",\"started\":\"2026-01-01T00:00:00Z\",\"dp\":4,\"ep\":2,\"device\":\"cpu\"}");
}

static void begin_line(mu_json *j, int64_t step) {
    mu_json_reset(j);
    mu_json_begin(j, NULL, '{');
    mu_json_int(j, "step", step);
}

static void end_line(mu_json *j, FILE *out) {
    char checksum[MU_CHECKSUM_BYTES + 1];
    mu_line_checksum(j->text, j->length, checksum);
    fprintf(out, "%s%s\n", j->text, checksum);
}

/* A list of n integers below `most`, for a layer. */
static void add_list(mu_json *j, const char *name, int64_t layer, int64_t step, int64_t n, double most) {
    char key[96];
    snprintf(key, sizeof key, "moe/layer_%lld/%s", (long long)layer, name);
    mu_json_begin(j, key, '[');
    for (int64_t i = 0; i < n; i++) mu_json_int(j, NULL, (int64_t)(most * noise(step, layer * n + i)));
    mu_json_end(j, ']');
}

static void add_domains(mu_json *j, const char *format, int64_t step, double high) {
    for (int64_t d = 0; d < D; d++) {
        char key[96], name[32];
        snprintf(name, sizeof name, "domain-%lld", (long long)d);
        snprintf(key, sizeof key, format[0] == 'v' ? "val/%s/ce_loss" : format[0] == 'p' ? "probe/%s/ce_loss" : "moe/%s/dropped_frac", name);
        mu_json_float(j, key, high * (0.5 + noise(step, d)) / sqrt((double)step));
    }
}

static void write_lines(mu_json *j, FILE *out, int64_t step) {
    begin_line(j, step);
    mu_json_int(j, "train/tokens", step * BATCH * SEQ);
    mu_json_float(j, "train/ce_loss", 5 / sqrt((double)step) + noise(step, 0));
    mu_json_float(j, "moe/load_imbalance", 1 + noise(step, 1));
    mu_json_float(j, "moe/dropped_frac", 0.02 * noise(step, 1));
    add_domains(j, "d", step, 0.05);
    for (int64_t l = 0; l < L; l++) {
        char key[64];
        add_list(j, "load", l, step, E, 2.0 * BATCH * SEQ * K / (double)E);
        snprintf(key, sizeof key, "moe/layer_%lld/load_imbalance", (long long)l);
        mu_json_float(j, key, 1 + noise(step, l));
        if (step >= 20) add_list(j, "dead", l, step, 2, (double)E), add_list(j, "starved", l, step + 1, 5, (double)E);
    }
    mu_json_float(j, "perf/step_ms", 100);
    mu_json_float(j, "perf/comm_ms", 10);
    mu_json_float(j, "perf/tokens_per_s", 1e5);
    mu_json_float(j, "perf/elapsed_s", (double)step);
    end_line(j, out);
    if (step % 10 == 0) {
        begin_line(j, step);
        mu_json_int(j, "stats/steps", 200);
        for (int64_t l = 0; l < L; l++) add_list(j, "state", l, step, E, 7), add_list(j, "similarity_max", l, step, E, 1), add_list(j, "coactivation_top", l, step, 150, (double)E);
        add_domains(j, "p", step, 5);
        end_line(j, out);
    }
    if (step % 5) return;
    begin_line(j, step);
    mu_json_float(j, "val/ce_loss", 5 / sqrt((double)step));
    add_domains(j, "v", step, 5);
    end_line(j, out);
}

static void write_metrics(const char *folder) {
    char *path = mu_format("%s/metrics.jsonl", folder);
    FILE *out = fopen(path, "wb");
    mu_json j;
    mu_json_init(&j);
    for (int64_t step = 1; out && step <= N; step++) write_lines(&j, out, step);
    mu_json_free(&j);
    free(path);
    if (!out || fclose(out)) exit(MU_STATUS_IO);
}

static void write_counts(const char *folder) {
    char *path = mu_format("%s/statistics.rec", folder);
    mu_statistics_shape shape = { L, E, D, mu_alloc((size_t)L, sizeof(int64_t)), mu_alloc((size_t)D, MU_STATISTICS_NAME) };
    int64_t *counts = mu_alloc((size_t)(L * E * D), sizeof *counts);
    mu_statistics *s = NULL;
    for (int64_t l = 0; l < L; l++) shape.layer[l] = l;
    for (int64_t d = 0; d < D; d++) snprintf(shape.domain[d], MU_STATISTICS_NAME, "domain-%lld", (long long)d);
    must(mu_statistics_create(&s, path, &shape, &e));
    for (int64_t step = 1; step <= N; step++) {
        for (int64_t i = 0; i < L * E * D; i++) {       /* noise of each expert times noise of each domain, so that no picture is flat */
            uint64_t expert = (uint64_t)(i / D + step * 977) * 0x9E3779B97F4A7C15u, cell = (uint64_t)i * 0xD1B54A32D192ED03u;
            counts[i] = (int64_t)((expert >> 40 & 63) * (cell >> 40 & 15));
        }
        must(mu_statistics_append(s, step, true, counts, &e));
    }
    mu_statistics_close(s);
    mu_statistics_shape_free(&shape);
    free(counts);
    free(path);
}

int main(int argc, char **argv) {
    int64_t *const numbers[] = { &L, &E, &D, &N };
    if (argc != 6) return MU_STATUS_USAGE;
    for (int i = 0; i < 4; i++) *numbers[i] = strtoll(argv[2 + i], NULL, 10);
    must(mu_file_make_dirs(argv[1], &e));
    write_config(argv[1]);
    write_metrics(argv[1]);
    write_counts(argv[1]);
    return 0;
}
