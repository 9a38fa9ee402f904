/* test_statistics.c - RUN/statistics.rec: records are read back, a last record torn by a kill is not damage, any changed
 * byte is; resuming from the file; routing.h5. */
#include "train/run_view.h"
#include "train/training_run.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

enum { L = 2, E = 2, D = 3, BATCH = 2, SEQ = 8, STEPS = 6 };    /* every layer assigns BATCH * SEQ tokens */
static mu_error e;
static mu_training *t;
static char folder[] = "statistics-XXXXXX", warning[4096];
static const char file[] = "./statistics.rec";
static char *lines, *records;   /* of a run of STEPS steps, on the heap */
static size_t n_lines, n_records;

static void note_warning(mu_log_level level, const char *line) {
    if (level == MU_LOG_WARNING) snprintf(warning, sizeof warning, "%s", line);
}

static void assert_ok(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

static int open_trainer(void **state) {
    (void)state;
    mu_log_set_sink(note_warning);
    static const char text[] = "run: {dir: .}\n"
                               "model: {hidden_size: 8, num_layers: 3, num_heads: 2, max_seq_len: 8}\n"
                               "moe: {num_experts: 2, top_k: 1, norm_topk_prob: false, moe_ffn_hidden_size: 4, first_k_dense: 1}\n"
                               "data: {train: [{domain: a, path: synthetic}, {domain: b, path: synthetic}, {domain: c, path: synthetic}]}\n"
                               "train: {steps: 40, global_batch_size: 2, seq_len: 8, threads: 1}\n";
    t = training_in_folder(folder, text, &e);
    return t ? 0 : -1;
}

static int close_trainer(void **state) {
    (void)state;
    free(lines);
    free(records);
    return training_free_folder(t, folder);
}

/* ------------------------------------------------------------------ a logged run */

/* Assignments in step `step` to an expert of a layer, by domain. */
static int64_t count_of(int64_t step, int layer, int expert, int domain) {
    int64_t first = step + 2 * layer; /* of expert 0, at most 8 + 2 */
    int64_t all = expert ? BATCH * SEQ - first : first;
    return domain == 2 ? all - 2 * (all / 3) : all / 3;
}

static void set_counts(int64_t step) {
    int64_t *total = t->state.stats->counts, *by_domain = t->state.stats->by_domain;
    for (int i = 0; i < L * E; i++) {
        total[i] = 0;
        for (int d = 0; d < D; d++) total[i] += by_domain[i * D + d] = count_of(step, i / E, i % E, d);
    }
}

/* Steps (t->state.step, last] as a run logs them. */
static void log_steps(mu_metrics *m, int64_t last) {
    mu_step_result r = { .values = { .loss = 1, .ce = 1, .aux = NAN, .z = NAN, .grad_norm = 1 }, .lr = 1e-3, .seconds = 0.1, .finite = true };
    while (t->state.step < last) {
        t->state.step++;
        set_counts(t->state.step);
        assert_ok(mu_metrics_step(m, log_source(t), &r, 100, &e));
    }
}

static void remove_files(void) {
    static const char *const names[] = { "metrics.jsonl", "statistics.rec", "routing.h5" };
    for (int i = 0; i < 3; i++) {
        char *aside = mu_format("%s.aside", names[i]);
        remove(names[i]);
        remove(aside);
        free(aside);
    }
}

static void put(const char *path, const char *bytes, size_t n) {
    FILE *f = fopen(path, "w");
    assert_true(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

/* A run of STEPS steps, after which t->state.step is `resumed`. It is logged once, and copied. */
static void make_run(int64_t resumed) {
    remove_files();
    if (!lines) {
        mu_metrics *m;
        assert_ok(mu_metrics_open(&m, log_source(t), &e));
        log_steps(m, STEPS);
        mu_metrics_close(m);
        assert_ok(mu_file_read("metrics.jsonl", 1 << 20, &lines, &n_lines, &e));
        assert_ok(mu_file_read(file, 1 << 20, &records, &n_records, &e));
    }
    put("metrics.jsonl", lines, n_lines);
    put(file, records, n_records);
    t->state.step = resumed;
    warning[0] = '\0';
}

/* Steps 1 to `last` are in both files; of those before `from` and of step `without`, no counts by domain are known. */
static void assert_run(int last, int from, int without) {
    int64_t step[STEPS], load[STEPS][L][E], by_domain[STEPS][L][E][D];
    int32_t layer[L];
    char *names;
    mu_store *s;
    assert_ok(mu_routing_file_write("./routing.h5", file, "metrics.jsonl", &e));
    assert_ok(mu_store_open(&s, "routing.h5", &e));
    assert_ok(mu_store_read(s, "/step", MU_STORE_I64, 1, (int64_t[]){ last }, step, &e));
    assert_ok(mu_store_read(s, "/load", MU_STORE_I64, 3, (int64_t[]){ last, L, E }, load, &e));
    assert_ok(mu_store_read(s, "/domain_load", MU_STORE_I64, 4, (int64_t[]){ last, L, E, D }, by_domain, &e));
    assert_ok(mu_store_read(s, "/layer", MU_STORE_I32, 1, (int64_t[]){ L }, layer, &e));
    assert_ok(mu_store_read_text(s, "/domain", &names, &e));
    int64_t of_metrics[STEPS];
    double loss[STEPS], imbalance[STEPS];
    if (last) assert_ok(mu_store_read(s, "/metrics/step", MU_STORE_I64, 1, (int64_t[]){ last }, of_metrics, &e));
    if (last) assert_ok(mu_store_read(s, "/metrics/train/loss", MU_STORE_F64, 1, (int64_t[]){ last }, loss, &e));
    if (last) assert_ok(mu_store_read(s, "/metrics/moe/load_imbalance", MU_STORE_F64, 1, (int64_t[]){ last }, imbalance, &e));
    assert_false(mu_store_has(s, "/metrics/perf/step_ms"));
    assert_false(mu_store_has(s, "/metrics/moe/layer_1/load"));
    double gates[STEPS][E];
    if (last) assert_ok(mu_store_read(s, "/metrics/moe/layer_1/gate_mass", MU_STORE_F64, 2, (int64_t[]){ last, E }, gates, &e));
    assert_ok(mu_store_close(s, &e));
    for (int n = 0; n < last; n++) assert_true(of_metrics[n] == n + 1 && loss[n] == 1 && imbalance[n] >= 1);
    assert_true(layer[0] == 1 && layer[1] == 2);
    assert_string_equal(names, "a\nb\nc");
    free(names);
    for (int n = 0; n < last; n++) {
        assert_int_equal(step[n], n + 1);
        for (int i = 0; i < L * E; i++) {
            int64_t sum = 0;
            for (int d = 0; d < D; d++) {
                int64_t want = count_of(n + 1, i / E, i % E, d);
                bool known = n + 1 >= from && n + 1 != without;
                sum += want;
                assert_int_equal(by_domain[n][i / E][i % E][d], known ? want : -1);
            }
            assert_int_equal(load[n][i / E][i % E], sum);
        }
    }
}

static void resume(void) {
    mu_metrics *m;
    assert_ok(mu_metrics_open(&m, log_source(t), &e));
    mu_metrics_close(m);
}

static int64_t size_of(const char *path) {
    struct stat st;
    return stat(path, &st) ? -1 : st.st_size;
}
static int64_t record_bytes(void) { return 8 * (L * E * D + 3); }

static void flip(int64_t byte, int bit) {
    FILE *f = fopen(file, "r+");
    assert_true(f && !fseek(f, (long)byte, SEEK_SET));
    int was = fgetc(f);
    assert_true(was != EOF && !fseek(f, (long)byte, SEEK_SET) && fputc(was ^ 1 << bit, f) != EOF && !fclose(f));
}

/* Damaged records; -1: the file as a whole is. */
static int unsound(void) {
    mu_statistics *s;
    int n = 0;
    bool sound;
    mu_status status = mu_statistics_open(&s, file, false, &e);
    for (int64_t i = 0; status == MU_STATUS_OK && i < s->n; i++) {
        assert_ok(mu_statistics_read(s, i, &sound, &e));
        n += !sound;
    }
    mu_statistics_close(s);
    return status == MU_STATUS_DATA ? -1 : n;
}

/* ------------------------------------------------------------------ tests */

static void what_was_logged_comes_back(void **state) {
    (void)state;
    make_run(STEPS);
    resume();
    assert_string_equal(warning, "");
    assert_run(STEPS, 1, 0);
}

/* A kill leaves any number of bytes of the record of a step that no checkpoint covers. The run continues after the resume step. */
static void a_kill_at_any_byte_is_no_damage(void **state) {
    (void)state;
    for (int64_t bytes = 0; bytes < record_bytes(); bytes++) {
        mu_metrics *m;
        make_run(4);
        assert_int_equal(truncate(file, size_of(file) - 2 * record_bytes() + bytes), 0);
        mu_statistics *s;
        assert_ok(mu_statistics_open(&s, file, false, &e));
        assert_true(s->n == STEPS - 2 && s->rest == bytes);
        mu_statistics_close(s);
        if (bytes % 8 > 1) continue;                            /* not all: opening a run is slow */
        assert_ok(mu_metrics_open(&m, log_source(t), &e));
        assert_string_equal(warning, "");
        assert_false(mu_file_exists("statistics.rec.aside"));
        log_steps(m, STEPS);
        mu_metrics_close(m);
        assert_run(STEPS, 1, 0);
    }
}

/* A changed bit is found, the old file is moved aside, and the loads of the step come from its line. */
static void any_changed_byte_is_found(void **state) {
    (void)state;
    make_run(STEPS);
    int64_t header = size_of(file) - STEPS * record_bytes();
    for (int64_t i = 0; i < record_bytes(); i++) {
        make_run(STEPS);
        flip(header + record_bytes() + i, (int)(i % 8));
        assert_int_equal(unsound(), 1);
        if (i % 8 > 1) continue;
        resume();
        if (!strstr(warning, "./statistics.rec: 1 of 6 records are damaged or missing (the loads of those steps are taken from metrics.jsonl);") ||
            !strstr(warning, "moved aside to ./statistics.rec.aside"))
            fail_msg("byte %lld: %s", (long long)i, warning);
        assert_run(STEPS, 1, 2);
        assert_int_equal(size_of("statistics.rec.aside"), size_of(file));
    }
    for (int64_t i = 0; i < header; i++) {
        make_run(STEPS);
        flip(i, (int)(i % 8));
        assert_int_equal(unsound(), -1);
        if (i % 32) continue;
        resume();
        if (!strstr(warning, "./statistics.rec is not of this run, or its header is damaged: moved aside to ./statistics.rec.aside"))
            fail_msg("byte %lld of the header: %s", (long long)i, warning);
        assert_run(STEPS, STEPS + 1, 0);
    }
}

static void lost_and_moved_records_are_damage(void **state) {
    (void)state;
    make_run(STEPS);
    assert_int_equal(truncate(file, size_of(file) - 1), 0);     /* the end of a record that a checkpoint covers */
    resume();
    assert_non_null(strstr(warning, "1 of 6 records"));
    assert_run(STEPS, 1, STEPS);
    make_run(STEPS);
    char *bytes;
    size_t n;
    assert_ok(mu_file_read(file, 1 << 20, &bytes, &n, &e));
    char *last = bytes + n - record_bytes();
    memcpy(last, last - record_bytes(), (size_t)record_bytes()); /* valid, but a duplicate */
    assert_ok(mu_file_replace(file, bytes, n, &e));
    free(bytes);
    resume();
    assert_non_null(strstr(warning, "1 of 6 records"));
    assert_run(STEPS, 1, STEPS);
}

static void records_beyond_go(void **state) {
    (void)state;
    make_run(4);
    resume();
    assert_string_equal(warning, "");
    assert_run(4, 1, 0);
    make_run(4);
    assert_ok(mu_file_make_dirs("checkpoints/step-00000006", &e)); /* of an abandoned history */
    resume();
    assert_ok(mu_file_remove_tree("checkpoints", &e));
    assert_non_null(strstr(warning, "records newer than resume step 4, moved aside to ./statistics.rec.aside"));
    assert_run(4, 1, 0);
    assert_int_equal(size_of("statistics.rec.aside"), size_of(file) + 2 * record_bytes());
}

/* A run of an older version has lines only; what is logged from then on has domains, also after the next start. */
static void older_runs_have_loads_without_domains(void **state) {
    (void)state;
    mu_metrics *m;
    make_run(4);
    remove(file);
    assert_ok(mu_metrics_open(&m, log_source(t), &e));
    assert_string_equal(warning, "");
    log_steps(m, STEPS);
    mu_metrics_close(m);
    assert_run(STEPS, 5, 0);
    flip(size_of(file) - 1, 0);
    resume();
    assert_run(STEPS, 5, STEPS);
}

static void without_a_checkpoint_all_is_kept(void **state) {
    (void)state;
    make_run(0);
    int64_t bytes = size_of(file);
    resume();
    assert_non_null(strstr(warning, "statistics.rec is from an earlier job and there is no checkpoint to resume from"));
    assert_int_equal(size_of("statistics.rec.aside"), bytes);
    assert_run(0, 1, 0);
}

static void what_is_not_of_this_run_is_kept(void **state) {
    (void)state;
    mu_statistics *s;
    int64_t two_layers[] = { 1, 2 };
    mu_statistics_shape other = { 1, 4, 3, (int64_t[]){ 1 }, (char[3][MU_STATISTICS_NAME]){ "a", "b", "c" } };
    for (int kind = 0; kind < 4; kind++) {
        make_run(STEPS);
        if (kind < 2) {                                         /* another shape, a file of another kind, none at all */
            if (kind) other.layers = 2, other.experts = 2, other.layer = two_layers, strcpy(other.domain[1], "x");
            assert_ok(mu_statistics_create(&s, file, &other, &e));
            mu_statistics_close(s);
        } else assert_ok(mu_file_replace(file, "text, or nothing", kind == 2 ? 16 : 0, &e));
        int64_t bytes = size_of(file);
        resume();
        assert_non_null(strstr(warning, "is not of this run"));
        assert_int_equal(size_of("statistics.rec.aside"), bytes);
        assert_run(STEPS, STEPS + 1, 0);
    }
    make_run(STEPS);
    remove(file);
    assert_int_equal(mkfifo(file, 0600), 0);
    mu_metrics *m;
    alarm(20);
    assert_int_equal(mu_metrics_open(&m, log_source(t), &e), MU_STATUS_IO);
    alarm(0);
    assert_non_null(strstr(e.text, "./statistics.rec is a pipe, not a plain file; move it out of the way"));
    mu_metrics_close(m);
    remove(file);
}

/* With a damaged record routing.h5 is not written; the old file is kept. */
static void routing_needs_sound_records(void **state) {
    (void)state;
    make_run(STEPS);
    assert_run(STEPS, 1, 0);
    int64_t bytes = size_of("routing.h5");
    flip(size_of(file) - 20, 3);
    assert_int_equal(mu_routing_file_write("./routing.h5", file, "metrics.jsonl", &e), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "record 6 is damaged"));
    assert_int_equal(size_of("routing.h5"), bytes);
}

/* Its key begins with the metric's, which then names a group. Lists of any length are filled up. */
static void a_domain_may_be_called_like_a_metric(void **state) {
    (void)state;
    static const char text[] = "{\"step\":1,\"train/tokens\":16,\"moe/z_loss\":2,\"moe/z_loss/dropped_frac\":0.5,\"moe/layer_1/dead\":[]}\n"
                               "{\"step\":2,\"train/tokens\":32,\"moe/z_loss\":3,\"moe/z_loss/dropped_frac\":0.25,\"moe/layer_1/dead\":[1]}\n";
    int64_t n = 2;
    double value[2], dropped[2], dead[2];
    mu_store *s;
    make_run(0);
    put("metrics.jsonl", text, sizeof text - 1);
    assert_ok(mu_routing_file_write("./routing.h5", file, "metrics.jsonl", &e));
    assert_ok(mu_store_open(&s, "routing.h5", &e));
    assert_ok(mu_store_read(s, "/metrics/moe/z_loss/value", MU_STORE_F64, 1, &n, value, &e));
    assert_ok(mu_store_read(s, "/metrics/moe/z_loss/dropped_frac", MU_STORE_F64, 1, &n, dropped, &e));
    assert_ok(mu_store_read(s, "/metrics/moe/layer_1/dead", MU_STORE_F64, 2, (int64_t[]){ 2, 1 }, dead, &e));
    assert_ok(mu_store_close(s, &e));
    assert_true(value[0] == 2 && value[1] == 3 && dropped[1] == 0.25 && isnan(dead[0]) && dead[1] == 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_logged_comes_back), cmocka_unit_test(a_kill_at_any_byte_is_no_damage),
        cmocka_unit_test(any_changed_byte_is_found), cmocka_unit_test(lost_and_moved_records_are_damage), cmocka_unit_test(records_beyond_go),
        cmocka_unit_test(older_runs_have_loads_without_domains), cmocka_unit_test(without_a_checkpoint_all_is_kept),
        cmocka_unit_test(what_is_not_of_this_run_is_kept), cmocka_unit_test(routing_needs_sound_records), cmocka_unit_test(a_domain_may_be_called_like_a_metric),
    };
    return cmocka_run_group_tests(tests, open_trainer, close_trainer);
}
