/* test_metrics.c - what a resumed run makes of the metrics that it finds: sound lines up to its step stay, damaged ones are
 * counted, and nothing that was there is lost. */
#include "train/train.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static mu_error e;
static mu_trainer *t;
static char folder[] = "metrics-XXXXXX", warning[4096];

static void note_warning(mu_log_level level, const char *line) {
    if (level == MU_LOG_WARNING) snprintf(warning, sizeof warning, "%s", line);
}

static void assert_ok(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

/* In a folder of its own, a trainer that has made 8 steps. */
static int open_trainer(void **state) {
    (void)state;
    if (!mkdtemp(folder) || chdir(folder)) return -1;
    mu_log_set_sink(note_warning);
    t = mu_alloc(1, sizeof *t);
    static const char text[] = "run: {dir: .}\n"
                               "model: {hidden_size: 8, num_layers: 3, num_heads: 2, max_seq_len: 8}\n"
                               "moe: {num_experts: 2, top_k: 1, norm_topk_prob: false, moe_ffn_hidden_size: 4, first_k_dense: 1}\n"
                               "data: {train: [{domain: a, path: synthetic}]}\n"
                               "train: {steps: 40, global_batch_size: 2, seq_len: 8, threads: 1}\n";
    if (mu_config_load_text(&t->cfg, &t->options, "test", text, 0, NULL, &e) ||
        mu_trainer_open(t, mu_mesh_alone(), true, &e))
        return -1;
    t->step = 8;
    return 0;
}

static int close_trainer(void **state) {
    (void)state;
    mu_mesh *mesh = t->mesh;
    mu_trainer_close(t);
    mu_mesh_close(mesh);
    free(t);
    return chdir("..") || mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

static char *line_of(int step) {
    return mu_format("{\"step\":%d,\"train/tokens\":%d,\"train/loss\":1.5,\"moe/layer_1/load\":[%d,9],\"moe/layer_2/load\":[16,0]}\n",
                     step, 16 * step, step);
}

static void assert_content(const char *path, const char *text, size_t bytes) {
    char *found;
    size_t n;
    assert_ok(mu_file_read(path, 1 << 26, &found, &n, &e));
    if (n != bytes || memcmp(found, text, n)) fail_msg("%s is\n%s, not\n%s", path, found, text);
    free(found);
}

/* Steps 1 to 4, `extra`, 5 to 8, a step that will be made again and a line that a kill cut. `stays`: the extra line is
 * sound; n: the number of the files that are set aside if it is not. */
static void try(const char *extra, size_t bytes, bool stays, int n) {
    char *text = mu_alloc(bytes + 4096, 1), *kept = mu_alloc(bytes + 4096, 1);
    size_t size = 0, size_kept = 0;
    for (int step = 1; step <= 9; step++) {
        char *line = line_of(step);
        size_t length = strlen(line);
        memcpy(text + size, line, length), size += length;
        if (step <= 8) memcpy(kept + size_kept, line, length), size_kept += length;
        if (step == 4) {
            memcpy(text + size, extra, bytes), size += bytes;
            if (stays) memcpy(kept + size_kept, extra, bytes), size_kept += bytes;
        }
        free(line);
    }
    memcpy(text + size, "{\"step\":9,\"tr", 13), size += 13;
    assert_ok(mu_file_replace("metrics.jsonl", text, size, &e));
    assert_ok(mu_file_replace("routing.h5", "of before", 9, &e));
    mu_metrics *m;
    warning[0] = '\0';
    assert_ok(mu_metrics_open(&m, t, &e));
    assert_ok(mu_metrics_sync(m, t, &e));
    mu_metrics_close(m);
    assert_content("metrics.jsonl", kept, size_kept);
    char *damaged = mu_format("./metrics.jsonl.damaged-%d", n), *routing = mu_format("./routing.h5.damaged-%d", n);
    if (!stays) {
        assert_content(damaged, text, size);
        assert_content(routing, "of before", 9);
        char *said = mu_format("metrics.jsonl: 1 of 10 lines are damaged, the first is line 5; the others stay, the file as it was is %s",
                               damaged);
        if (!strstr(warning, said)) fail_msg("no \"%s\" in: %s", said, warning);
        free(said);
    } else if (warning[0] || mu_file_exists(damaged)) fail_msg("sound, and yet: %s", warning);
    int64_t steps[8], loads[8][2][2];                           /* made anew of what stays */
    mu_store *s;
    assert_ok(mu_store_open(&s, "routing.h5", &e));
    assert_ok(mu_store_read(s, "/step", MU_STORE_I64, 1, (int64_t[]){ 8 }, steps, &e));
    assert_ok(mu_store_read(s, "/load", MU_STORE_I64, 3, (int64_t[]){ 8, 2, 2 }, loads, &e));
    assert_ok(mu_store_close(s, &e));
    for (int i = 0; i < 8; i++) assert_true(steps[i] == i + 1 && loads[i][0][0] == i + 1 && loads[i][1][0] == 16);
    free(damaged);
    free(routing);
    free(kept);
    free(text);
}

static void sound_lines_stay(void **state) {
    (void)state;
    static const char *const sound[] = { "{\"step\":4,\"val/ce_loss\":2.5,\"val/a/ce_loss\":null}\n", "{\"step\":5,\"later/name\":[1,2]}\n" };
    for (size_t i = 0; i < sizeof sound / sizeof *sound; i++) try(sound[i], strlen(sound[i]), true, 1);
}

static void damaged_lines_are_kept_aside(void **state) {
    (void)state;
    static const char nul[] = "{\"step\":4,\"val/ce_loss\":2\0.5}\n";
    static const char *const damaged[] = {
        "\n", "junk\n", "[4]\n", "4\n", "{}\n", "{\"step\":4,\n", "{\"step\":4}{\"step\":4}\n", "{\"step\":4,\"step\":4}\n",
        "{\"step\":\"4\"}\n", "{\"step\":4.0}\n", "{\"step\":null}\n", "{\"step\":-4}\n", "{\"step\":0}\n", "{\"step\":3}\n",
        "{\"step\":99999999999999999999}\n", "{\"step\":4,\"x\":1e999}\n", "{\"step\":4,\"x\":\"text\"}\n", "{\"step\":4,\"x\":{}}\n", "{\"step\":4,\"x\":\"\x80\"}\n",
        "{\"step\":4,\"train/tokens\":64,\"moe/layer_1/load\":[4,9],\"moe/layer_2/load\":[16,0]}\n",        /* twice */
        "{\"step\":5,\"moe/layer_1/load\":[4,9]}\n", "{\"step\":5,\"moe/layer_1/load\":[4],\"moe/layer_2/load\":[16,0]}\n",
        "{\"step\":5,\"moe/layer_1/load\":[4,-9],\"moe/layer_2/load\":[16,0]}\n", "{\"step\":5,\"moe/layer_1/load\":[4,17],\"moe/layer_2/load\":[16,0]}\n",
        "{\"step\":5,\"moe/layer_1/load\":[4,\"9\"],\"moe/layer_2/load\":[16,0]}\n", "{\"step\":5,\"moe/layer_1/load\":4,\"moe/layer_2/load\":[16,0]}\n",
    };
    int n = 1;
    try(nul, sizeof nul - 1, false, n++);
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) try(damaged[i], strlen(damaged[i]), false, n++);
    size_t length = 5 << 20;                                    /* longer than any line */
    char *list = mu_alloc(length + 1, 1);
    memset(list, '[', length);
    list[length - 1] = '\n';
    try(list, length, false, n);
    free(list);
}

static void a_pipe_is_refused(void **state) {
    (void)state;
    mu_metrics *m;
    unlink("metrics.jsonl");
    assert_int_equal(mkfifo("metrics.jsonl", 0600), 0);
    alarm(20);
    mu_status status = mu_metrics_open(&m, t, &e);
    alarm(0);
    assert_int_equal(status, MU_STATUS_NOINPUT);
    assert_non_null(strstr(e.text, "metrics.jsonl: is a pipe, not a plain file"));
    mu_metrics_close(m);
    unlink("metrics.jsonl");
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(sound_lines_stay), cmocka_unit_test(damaged_lines_are_kept_aside),
                                        cmocka_unit_test(a_pipe_is_refused) };
    return cmocka_run_group_tests(tests, open_trainer, close_trainer);
}
