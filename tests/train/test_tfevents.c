/* test_tfevents.c - the bytes of TensorBoard's files: known checksums, records and messages, and the file of a run. */
#include "train/tfevents.h"
#include "train/training_run.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

static mu_error e;
static mu_training *t;
static char folder[] = "tfevents-XXXXXX", warning[4096];

static void note_warning(mu_log_level level, const char *line) {
    if (level == MU_LOG_WARNING) snprintf(warning, sizeof warning, "%s", line);
}

static int open_run(void **state) {
    (void)state;
    mu_log_set_sink(note_warning);
    static const char text[] = "run: {dir: .}\n"
                               "model: {hidden_size: 8, num_layers: 2, num_heads: 2, max_seq_len: 8}\n"
                               "moe: {num_experts: 4, top_k: 1, norm_topk_prob: false, moe_ffn_hidden_size: 4}\n"
                               "data: {train: [{domain: a, path: synthetic}, {domain: b, path: synthetic}]}\n"
                               "train: {steps: 40, global_batch_size: 2, seq_len: 8, threads: 1}\n";
    t = training_in_folder(folder, text, &e);
    return t ? 0 : -1;
}

static int close_run(void **state) {
    (void)state;
    return training_free_folder(t, folder);
}

static uint64_t word(const uint8_t *bytes, int n) {
    uint64_t value = 0;
    while (n--) value = value << 8 | bytes[n];
    return value;
}

/* RFC 3720, B.4. */
static void checksums(void **state) {
    (void)state;
    uint8_t bytes[32] = { 0 };
    assert_int_equal(mu_crc32c("", 0), 0);
    assert_int_equal(mu_crc32c("123456789", 9), 0xe3069283);
    assert_int_equal(mu_crc32c(bytes, sizeof bytes), 0x8a9136aa);
    memset(bytes, 0xff, sizeof bytes);
    assert_int_equal(mu_crc32c(bytes, sizeof bytes), 0x62a8ab43);
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)i;
    assert_int_equal(mu_crc32c(bytes, sizeof bytes), 0x46dd794e);
}

/* As tensorboard 2.21's protobuf classes and checksum give them. */
static void known_records(void **state) {
    (void)state;
    static const uint8_t expected[] = {
        24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22,                        /* length and its checksum */
        9, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f,                                        /* wall time 1.5 */
        26, 13, 'b', 'r', 'a', 'i', 'n', '.', 'E', 'v', 'e', 'n', 't', ':', '2', 0x2a, 0x28, 0x64, 0x6c,
        16, 0, 0, 0, 0, 0, 0, 0, 0x95, 0xfb, 0xfe, 0x18,
        9, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 16, 0xac, 2, 58, 2, 8, 1, 0x71, 0x3b, 0x78, 0x8a,     /* step 300, start */
    };
    mu_bytes out = { 0 };
    mu_event_version(&out, 1.5);
    mu_event_start(&out, 1.5, 300);
    assert_int_equal(out.n, sizeof expected);
    assert_memory_equal(out.data, expected, sizeof expected);
    mu_bytes_free(&out);
}

static void known_values(void **state) {
    (void)state;
    static const uint8_t expected[] = {
        10, 8, 10, 1, 'a', 21, 0, 0, 0x20, 0xc0,                                /* a: -2.5 */
        10, 15, 10, 1, 'b', 34, 10, 8, 3, 16, 0x80, 1, 24, 4, 34, 1, 'P',       /* b: image of height 3, width 128, RGBA */
    };
    mu_bytes summary = { 0 };
    mu_summary_scalar(&summary, "a", -2.5f);
    mu_summary_image(&summary, "b", 128, 3, (const uint8_t *)"P", 1);
    assert_int_equal(summary.n, sizeof expected);
    assert_memory_equal(summary.data, expected, sizeof expected);
    mu_bytes_free(&summary);
}

/* ------------------------------------------------------------------ files of a run */

/* Newest file of the folder in the order of names; heap. */
static char *newest(int *n) {
    char name[300] = "";
    DIR *d = opendir("tensorboard");
    *n = 0;
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d)); )
        if (f->d_name[0] != '.') {
            ++*n;
            if (strcmp(f->d_name, name) > 0) snprintf(name, sizeof name, "%s", f->d_name);
        }
    closedir(d);
    return mu_format("tensorboard/%s", name);
}

static bool has(const uint8_t *data, uint64_t n, const char *text) {
    for (uint64_t i = 0; i + strlen(text) <= n; i++)
        if (!memcmp(data + i, text, strlen(text))) return true;
    return false;
}

/* Checks the frames of the newest file; the number of records that contain the text. */
static int records_with(const char *text, int *records, int *files) {
    char *path = newest(files), *data;
    size_t bytes, at = 0;
    int found = 0;
    assert_int_equal(mu_file_read(path, 1 << 24, &data, &bytes, &e), MU_STATUS_OK);
    for (*records = 0; at < bytes; ++*records) {
        const uint8_t *r = (const uint8_t *)data + at;
        uint64_t n = word(r, 8);
        uint32_t crc[2] = { mu_crc32c(r, 8), mu_crc32c(r + 12, n) };
        assert_true(at + 16 + n <= bytes);
        for (int i = 0; i < 2; i++)
            assert_int_equal(word(i ? r + 12 + n : r + 8, 4), (uint32_t)((crc[i] >> 15 | crc[i] << 17) + 0xa282ead8u));
        found += has(r + 12, n, text);
        at += 16 + n;
    }
    free(data);
    free(path);
    return found;
}

static void write_line(mu_tensorboard *tb, int step, bool statistics) {
    mu_json j;
    mu_json_init(&j);
    mu_json_begin(&j, NULL, '{');
    mu_json_int(&j, "step", step);
    if (statistics) mu_json_int(&j, "stats/steps", 10);
    mu_json_float(&j, "train/loss", 1.25);
    for (int layer = 0; layer < 2 && statistics; layer++) {
        char load[32], lift[32];
        snprintf(load, sizeof load, "moe/layer_%d/load", layer);
        snprintf(lift, sizeof lift, "moe/layer_%d/lift", layer);
        mu_json_begin(&j, load, '[');
        for (int i = 0; i < 4; i++) mu_json_int(&j, NULL, layer ? i : 0);       /* layer 0 has no token at all */
        mu_json_end(&j, ']');
        mu_json_begin(&j, lift, '[');
        for (int i = 0; i < 8; i++) mu_json_float(&j, NULL, i ? 0.5 * i - 2 : -99);
        mu_json_end(&j, ']');
    }
    mu_tensorboard_line(tb, &j);
    mu_json_free(&j);
}

/* One record per line; maps in those of statistics; names that sort by job, also within a second and with a clock that went back. */
static void a_file_per_job(void **state) {
    (void)state;
    int records, files;
    for (int job = 1; job <= 3; job++) {
        t->state.step = job - 1;
        if (job == 3) assert_int_equal(mu_file_replace("tensorboard/events.out.tfevents.9999999997.host.1.0", "", 0, &e), MU_STATUS_OK);
        mu_tensorboard *tb = mu_tensorboard_open(log_source(t));
        for (int step = job; step < job + 3; step++) write_line(tb, step, false);
        write_line(tb, job + 2, true);
        mu_tensorboard_sync(tb);
        mu_tensorboard_close(tb);
        assert_int_equal(records_with("train/loss", &records, &files), 4);
        assert_int_equal(records, 6);
        assert_int_equal(files, job == 3 ? 4 : job);
        assert_int_equal(records_with("moe/layer_1/lift", &records, &files), 1);
        assert_int_equal(records_with("moe/load", &records, &files), 1);
        assert_int_equal(records_with("\x89PNG", &records, &files), 1);
        assert_int_equal(records_with("brain.Event:2", &records, &files), 1);
        const char start[] = { 16, (char)job, 58, 2, 8, 1, 0 };
        assert_int_equal(records_with(start, &records, &files), 1);
    }
    assert_string_equal(warning, "");
    assert_int_equal(mu_file_remove_tree("tensorboard", &e), MU_STATUS_OK);
}

/* Events are derived: an obstacle is one warning, and stays. */
static void obstacle(void **state) {
    (void)state;
    struct stat st;
    assert_int_equal(mu_file_replace("tensorboard", "mine", 4, &e), MU_STATUS_OK);
    mu_tensorboard *tb = mu_tensorboard_open(log_source(t));
    assert_non_null(strstr(warning, "tensorboard cannot be written: "));
    warning[0] = '\0';
    write_line(tb, 1, false);
    mu_tensorboard_sync(tb);
    mu_tensorboard_close(tb);
    assert_string_equal(warning, "");
    assert_true(lstat("tensorboard", &st) == 0 && st.st_size == 4);
    remove("tensorboard");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checksums), cmocka_unit_test(known_records), cmocka_unit_test(known_values),
        cmocka_unit_test(a_file_per_job), cmocka_unit_test(obstacle),
    };
    return cmocka_run_group_tests(tests, open_run, close_run);
}
