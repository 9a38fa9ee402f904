/* compare.c - compares two runs, for the tests of the program; if they differ, prints the first difference and exits
 * with 1.
 *
 *   compare metrics A.jsonl B.jsonl exact|fp32|TOLERANCE [FIRST LAST]
 *       exact: every key but perf/, mem/, stats/seconds_share and the checksum of the line, bit for bit. TOLERANCE: losses and the gradient's norm to that
 *       relative difference, expert counts exactly. fp32: 1e-5 until expert counts first differ, then 1e-2,
 *       because fp32 routing is discontinuous. FIRST LAST: only these steps, which both must have.
 *   compare checkpoints A B
 *       weights, moments, step counts and state, bit for bit, whatever the shards. A and B: step-N folders. */
#include "train/run_view.h"
#include "train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int differ(const char *fmt, ...) MU_PRINTF(1, 2);
static int differ(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    printf("differ: ");
    vprintf(fmt, args);
    printf("\n");
    va_end(args);
    return 1;
}

static void stop(const mu_error *e) {
    fprintf(stderr, "compare: %s\n", e->text);
    exit(2);
}

/* ------------------------------------------------------------------ metrics */

typedef struct { int n; json_t **line; } lines;

static int64_t step_of(const json_t *line) { return json_integer_value(json_object_get(line, "step")); }

static lines read_lines(const char *path, int64_t first, int64_t last) {
    mu_error e;
    mu_lines in;
    lines l = { 0 };
    if (mu_lines_open(&in, path, MU_LINES_METRICS, &e) != MU_STATUS_OK) stop(&e);
    for (int number = 1; mu_lines_next(&in); number++) {
        mu_line line;
        if (!mu_line_read(&in, &line)) {
            fprintf(stderr, "compare: %s:%d: not a valid line\n", path, number);
            exit(2);
        }
        bool wanted = line.step >= first && line.step <= last;
        if (wanted) l.line = mu_realloc(l.line, (size_t)l.n + 1, sizeof *l.line), l.line[l.n++] = json_incref(line.json);
        json_decref(line.json);
    }
    if (mu_lines_close(&in, &e) != MU_STATUS_OK) stop(&e);
    return l;
}

static bool starts(const char *text, const char *prefix) { return !strncmp(text, prefix, strlen(prefix)); }
static bool of_the_clock(const char *key) { return starts(key, "perf/") || starts(key, "mem/") || !strcmp(key, "stats/seconds_share"); }
static bool is_load(const char *key) {
    size_t n = strlen(key);
    return starts(key, "moe/layer_") && n > 5 && !strcmp(key + n - 5, "/load");
}

static char *shown(const json_t *value) { return value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : mu_strdup("missing"); }

static int differ_in(int64_t step, const char *key, const json_t *a, const json_t *b, const char *how) {
    char *x = shown(a), *y = shown(b);
    int code = differ("step %lld, %s: %s and %s%s", (long long)step, key, x, y, how);
    free(x);
    free(y);
    return code;
}

static int compare_exactly(json_t *a, json_t *b) {
    const char *key;
    json_t *value;
    json_object_foreach(a, key, value)
        if (!of_the_clock(key) && !json_equal(value, json_object_get(b, key))) return differ_in(step_of(a), key, value, json_object_get(b, key), "");
    json_object_foreach(b, key, value)
        if (!of_the_clock(key) && !json_object_get(a, key)) return differ_in(step_of(a), key, NULL, value, "");
    return 0;
}

static bool loads_equal(json_t *a, json_t *b) {
    const char *key;
    json_t *value;
    json_object_foreach(a, key, value)
        if (is_load(key) && !json_equal(value, json_object_get(b, key))) return false;
    return true;
}

typedef struct { double tolerance; bool fp32; int64_t parted; double worst; } closeness;     /* parted: counts differ from this step on */

static int compare_closely(json_t *a, json_t *b, closeness *c) {
    static const char *const keys[] = { "train/loss", "train/ce_loss", "moe/aux_loss", "moe/z_loss", "optim/grad_norm", "val/ce_loss" };
    if (!c->parted && !loads_equal(a, b)) {
        if (!c->fp32) return differ("step %lld: the experts' counts", (long long)step_of(a));
        c->parted = step_of(a);
        c->tolerance = 1e-2;
    }
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *x = json_object_get(a, keys[i]), *y = json_object_get(b, keys[i]);
        if (!x && !y) continue;
        double p = json_number_value(x), q = json_number_value(y), most = fmax(fabs(p), fabs(q));
        double relative = most > 0 ? fabs(p - q) / most : 0;
        c->worst = fmax(c->worst, relative);
        if (!json_is_number(x) || !json_is_number(y) || relative > c->tolerance) {
            char how[96];
            snprintf(how, sizeof how, ", relative difference %.2e, allowed %.0e", relative, c->tolerance);
            return differ_in(step_of(a), keys[i], x, y, how);
        }
    }
    return 0;
}

static int compare_metrics(const char *path_a, const char *path_b, const char *how, int64_t first, int64_t last) {
    lines a = read_lines(path_a, first, last), b = read_lines(path_b, first, last);
    bool exact = !strcmp(how, "exact"), fp32 = !strcmp(how, "fp32");
    closeness c = { .fp32 = fp32, .tolerance = fp32 ? 1e-5 : strtod(how, NULL) };
    int code = 0;
    if (a.n == 0) code = differ("%s has no line of these steps", path_a);
    for (int i = 0; i < a.n && i < b.n && !code; i++) {
        if (step_of(a.line[i]) != step_of(b.line[i]))
            code = differ("line %d is of step %lld and of step %lld", i + 1, (long long)step_of(a.line[i]), (long long)step_of(b.line[i]));
        else
            code = exact ? compare_exactly(a.line[i], b.line[i]) : compare_closely(a.line[i], b.line[i], &c);
    }
    if (!code && a.n != b.n) code = differ("%d lines and %d lines", a.n, b.n);
    if (!code && exact) printf("equal: %d lines\n", a.n);
    if (!code && !exact) printf("close: %d lines, largest relative difference %.1e", a.n, c.worst);
    if (!code && !exact && c.parted) printf(", experts' counts differ from step %lld on", (long long)c.parted);
    if (!code && !exact) printf("\n");
    for (int i = 0; i < a.n; i++) json_decref(a.line[i]);
    for (int i = 0; i < b.n; i++) json_decref(b.line[i]);
    free(a.line);
    free(b.line);
    return code;
}

/* ------------------------------------------------------------------ checkpoints */

typedef struct { mu_manifest m; mu_store **stores; } checkpoint;

static checkpoint open_checkpoint(const char *path) {
    checkpoint c;
    mu_error e;
    if (mu_manifest_read(&c.m, path, &e) != MU_STATUS_OK || mu_manifest_verify(&c.m, 0, 1, &e) != MU_STATUS_OK) stop(&e);
    c.stores = mu_alloc((size_t)c.m.n_shards, sizeof *c.stores);
    for (int i = 0; i < c.m.n_shards; i++) {
        char *shard = mu_format("%s/%s", path, c.m.shards[i].name);
        if (mu_store_open(&c.stores[i], shard, &e) != MU_STATUS_OK) stop(&e);
        free(shard);
    }
    return c;
}

static void close_checkpoint(checkpoint *c) {
    mu_error e;
    for (int i = 0; i < c->m.n_shards; i++)
        if (mu_store_close(c->stores[i], &e) != MU_STATUS_OK) stop(&e);
    free(c->stores);
    mu_manifest_free(&c->m);
}

typedef struct { mu_store_type type; int n_dims; int64_t shape[4]; size_t bytes; unsigned char *data; } array;

static array read_array(mu_store *s, const char *name) {
    array a = { .shape = { 0 } };
    mu_error e;
    if (mu_store_shape(s, name, &a.type, &a.n_dims, a.shape, &e) != MU_STATUS_OK) stop(&e);
    a.bytes = mu_store_type_size(a.type);
    for (int i = 0; i < a.n_dims; i++) a.bytes *= (size_t)a.shape[i];
    a.data = mu_alloc(a.bytes + 1, 1);
    if (mu_store_read(s, name, a.type, a.n_dims, a.shape, a.data, &e) != MU_STATUS_OK) stop(&e);
    return a;
}

static int compare_array(mu_store *sa, mu_store *sb, const char *name) {
    array a = read_array(sa, name), b = read_array(sb, name);
    int code = 0;
    if (a.type != b.type || a.n_dims != b.n_dims || memcmp(a.shape, b.shape, sizeof a.shape))
        code = differ("%s: type or shape", name);
    size_t at = 0;
    while (!code && at < a.bytes && a.data[at] == b.data[at]) at++;
    if (!code && at < a.bytes) code = differ("%s: byte %zu of %zu", name, at, a.bytes);
    free(a.data);
    free(b.data);
    return code;
}

/* Every array that checkpoint a holds, as the modules list them. */
typedef struct {
    mu_state_visitor v;
    const checkpoint *a, *b;
    int code;
} comparison;

static void compare_one(mu_state_visitor *v, const mu_state *s) {
    comparison *c = (comparison *)v;
    if (c->code) return;
    int shard_a = s->tensor ? mu_manifest_find(&c->a->m, s->tensor) : 0, shard_b = s->tensor ? mu_manifest_find(&c->b->m, s->tensor) : 0;
    c->code = shard_b < 0 ? differ("%s is missing in %s", s->name, c->b->m.path)
                          : compare_array(c->a->stores[shard_a], c->b->stores[shard_b], s->name);
}

static int compare_checkpoints(const char *path_a, const char *path_b) {
    checkpoint a = open_checkpoint(path_a), b = open_checkpoint(path_b);
    int code = 0;
    if (a.m.step != b.m.step) code = differ("step %lld and step %lld", (long long)a.m.step, (long long)b.m.step);
    if (!code && a.m.n_tensors != b.m.n_tensors) code = differ("%d tensors and %d tensors", a.m.n_tensors, b.m.n_tensors);
    comparison c = { { compare_one }, &a, &b, code };
    mu_error e;
    if (!code && mu_checkpoint_visit(&a.m, &c.v, &e) != MU_STATUS_OK) stop(&e);
    code = c.code;
    if (!code) printf("equal: step %lld, %d tensors, in %d and %d shards\n", (long long)a.m.step, a.m.n_tensors, a.m.n_shards, b.m.n_shards);
    close_checkpoint(&a);
    close_checkpoint(&b);
    return code;
}

int main(int argc, char **argv) {
    if ((argc == 5 || argc == 7) && !strcmp(argv[1], "metrics"))
        return compare_metrics(argv[2], argv[3], argv[4], argc == 7 ? atoll(argv[5]) : 0, argc == 7 ? atoll(argv[6]) : INT64_MAX);
    if (argc == 4 && !strcmp(argv[1], "checkpoints")) return compare_checkpoints(argv[2], argv[3]);
    fprintf(stderr, "usage: compare metrics A B exact|fp32|TOLERANCE [FIRST LAST]\n       compare checkpoints A B\n");
    return 64;
}
