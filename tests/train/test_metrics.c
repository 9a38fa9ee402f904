/* test_metrics.c - how a resumed run continues existing metrics: valid lines up to its step are kept, damaged ones are
 * counted, and old files are never lost. */
#include "train/training_run.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static mu_error e;
static mu_training *t;
static char folder[] = "metrics-XXXXXX", warning[4096];

static void note_warning(mu_log_level level, const char *line) {
    if (level == MU_LOG_WARNING) snprintf(warning, sizeof warning, "%s", line);
}

static void assert_ok(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

/* In a folder of its own, a run after 8 steps. */
static int open_trainer(void **state) {
    (void)state;
    mu_log_set_sink(note_warning);
    static const char text[] = "run: {dir: .}\n"
                               "model: {hidden_size: 8, num_layers: 3, num_heads: 2, max_seq_len: 8}\n"
                               "moe: {num_experts: 2, top_k: 1, norm_topk_prob: false, moe_ffn_hidden_size: 4, first_k_dense: 1}\n"
                               "data: {train: [{domain: a, path: synthetic}]}\n"
                               "train: {steps: 40, global_batch_size: 2, seq_len: 8, threads: 1}\n";
    t = training_in_folder(folder, text, &e);
    if (t) t->state.step = 8;
    return t ? 0 : -1;
}

static int close_trainer(void **state) {
    (void)state;
    return training_free_folder(t, folder);
}

/* ------------------------------------------------------------------ lines */

typedef struct { char *bytes; size_t n; } text;         /* bytes on the heap */

static void add(text *x, const char *bytes, size_t n) {
    x->bytes = mu_realloc(x->bytes, x->n + n + 1, 1);
    memcpy(x->bytes + x->n, bytes, n);
    x->n += n;
}

static char *finish(char *line, bool checked) {
    char checksum[MU_CHECKSUM_BYTES + 1] = "}";
    if (checked) mu_line_checksum(line, strlen(line), checksum);
    char *whole = mu_format("%s%s", line, checksum);
    free(line);
    return whole;
}

/* Lines of a step, without their newline; as older runs wrote them, or with their checksum. */
static char *line_of(int step, bool checked) {
    return finish(mu_format("{\"step\":%d,\"train/tokens\":%d,\"train/loss\":1.5,\"moe/layer_1/load\":[%d,%d],\"moe/layer_2/load\":[16,0]",
                            step, 16 * step, step, 16 - step), checked);
}
static char *statistics_of(int step, bool checked) {
    return finish(mu_format("{\"step\":%d,\"stats/steps\":100,\"moe/layer_1/coactivation\":[1,0,0,1]", step), checked);
}
static char *evaluation_of(int step, bool checked) { return finish(mu_format("{\"step\":%d,\"val/ce_loss\":2.5", step), checked); }

static void add_line(text *x, char *line) {
    add(x, line, strlen(line));
    add(x, "\n", 1);
    free(line);
}

static void add_steps(text *x, int first, int last, bool checked) {
    for (int step = first; step <= last; step++) add_line(x, line_of(step, checked));
}

/* ------------------------------------------------------------------ resuming from a file */

/* Changed metrics are those of another run of an older version: without statistics.rec. */
static void put(const char *path, const char *bytes, size_t n) {
    if (!strcmp(path, "metrics.jsonl")) remove("statistics.rec");
    FILE *f = fopen(path, "w");
    assert_true(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

static void assert_content(const char *path, const char *text, size_t bytes) {
    char *found;
    size_t n;
    assert_ok(mu_file_read(path, 1 << 26, &found, &n, &e));
    if (n != bytes || memcmp(found, text, n)) fail_msg("%s is\n%s, not\n%s", path, found, text);
    free(found);
}

static void assert_loads(const int *steps, int n) {
    int64_t found[16], loads[16][2][2];
    mu_store *s;
    assert_ok(mu_store_open(&s, "routing.h5", &e));
    assert_ok(mu_store_read(s, "/step", MU_STORE_I64, 1, (int64_t[]){ n }, found, &e));
    assert_ok(mu_store_read(s, "/load", MU_STORE_I64, 3, (int64_t[]){ n, 2, 2 }, loads, &e));
    assert_ok(mu_store_close(s, &e));
    for (int i = 0; i < n; i++) assert_true(found[i] == steps[i] && loads[i][0][0] == steps[i] && loads[i][1][0] == 16);
}

static void open_and_sync(void) {
    mu_metrics *m;
    warning[0] = '\0';
    assert_ok(mu_metrics_open(&m, log_source(t), &e));
    assert_ok(mu_metrics_sync(m, &e));
    mu_metrics_write_routing(m, false);
    mu_metrics_close(m);
}

/* A file to resume from, the kept part, and the number of damaged lines (0: no warning). Of the steps to 8 all
 * but those from `gap` to gap_end are in routing.h5. Frees the texts. */
typedef struct { text was, kept; int damaged, lines, first, gap, gap_end; } resumed;

static void resume(resumed r) {
    char *metrics = mu_file_free_name("./metrics.jsonl", ".aside"), *routing = mu_file_free_name("./routing.h5", ".aside");
    put("metrics.jsonl", r.was.bytes, r.was.n);
    put("routing.h5", "of before", 9);
    open_and_sync();
    assert_content("metrics.jsonl", r.kept.bytes, r.kept.n);
    if (r.damaged) {
        char *said = mu_format("metrics.jsonl: %d of %d lines are damaged, the first is line %d; the others are kept, old file moved aside to"
                               " %s and %s", r.damaged, r.lines, r.first, metrics, routing);
        if (!strstr(warning, said)) fail_msg("no \"%s\" in: %s", said, warning);
        free(said);
        assert_content(metrics, r.was.bytes, r.was.n);
        assert_content(routing, "of before", 9);
        assert_int_equal(unlink(metrics) | unlink(routing), 0);
    } else if (warning[0] || mu_file_exists(metrics) || mu_file_exists(routing)) fail_msg("valid, but: %s", warning);
    int steps[8], n = 0;
    for (int step = 1; step <= 8; step++)
        if (step < r.gap || step > r.gap_end) steps[n++] = step;
    assert_loads(steps, n);
    free(metrics);
    free(routing);
    free(r.was.bytes);
    free(r.kept.bytes);
}

/* Steps 1 to 4, `extra`, 5 to 8, a step that will be computed again and a line torn by a kill. `stays`: the extra lines are valid;
 * otherwise the last one is not, and `sound` bytes before it are. */
static void try(const char *extra, size_t bytes, size_t sound, bool stays) {
    resumed r = { .damaged = !stays, .lines = 10 + (sound > 0), .first = 5 + (sound > 0) };
    add_steps(&r.was, 1, 4, false);
    add(&r.was, extra, bytes);
    add_steps(&r.was, 5, 9, false);
    add(&r.was, "{\"step\":10,\"tr", 14);
    add_steps(&r.kept, 1, 4, false);
    add(&r.kept, extra, stays ? bytes : sound);
    add_steps(&r.kept, 5, 8, false);
    resume(r);
}

static void sound_lines_stay(void **state) {
    (void)state;
    static const char *const sound[] = { "{\"step\":4,\"val/ce_loss\":2.5,\"val/a/ce_loss\":null}\n", "{\"step\":4,\"later/name\":[1,2]}\n",
                                        "{\"step\":4,\"stats/steps\":4,\"x\":[0.5,-99]}\n",
                                        "{\"step\":4,\"stats/steps\":4}\n{\"step\":4,\"val/ce_loss\":2}\n{\"step\":4,\"later/name\":1}\n" };
    for (size_t i = 0; i < sizeof sound / sizeof *sound; i++) try(sound[i], strlen(sound[i]), 0, true);
}

static void damaged_lines_are_kept_aside(void **state) {
    (void)state;
    static const char nul[] = "{\"step\":4,\"val/ce_loss\":2\0.5}\n";
    static const char *const damaged[] = {
        "\n", "junk\n", "[4]\n", "4\n", "{}\n", "{\"step\":4,\n", "{\"step\":4}{\"step\":4}\n", "{\"step\":4,\"step\":4}\n",
        "{\"step\":\"4\"}\n", "{\"step\":4.0}\n", "{\"step\":null}\n", "{\"step\":-4}\n", "{\"step\":0}\n", "{\"step\":3}\n",
        "{\"step\":99999999999999999999}\n", "{\"step\":9223372036854775807}\n", "{\"step\":4,\"x\":1e999}\n", "{\"step\":4,\"x\":\"text\"}\n",
        "{\"step\":4,\"x\":[[1]]}\n", "{\"step\":4,\"x\":[1,\"text\"]}\n", "{\"step\":4,\"x\":[null]}\n", "{\"step\":4,\"x\":true}\n",
        "{\"step\":4}\n", "{\"step\": 4,\"x\":1}\n", "{\"x\":1,\"step\":4}\n", "{\"step\":5,\"stats/steps\":4}\n", "{\"step\":3,\"stats/steps\":4}\n",
        "{\"step\":4,\"x\":{}}\n", "{\"step\":4,\"x\":\"\x80\"}\n", "{\"step\":4,\"xxh3\":\"0123456789abcdef\"}\n",
        "{\"step\":4,\"train/tokens\":64,\"moe/layer_1/load\":[4,12],\"moe/layer_2/load\":[16,0]}\n",                /* twice */
        "{\"step\":5,\"val/ce_loss\":2.5}\n",                                                                    /* before its step */
        "{\"step\":12,\"val/ce_loss\":2.5}\n", "{\"step\":2,\"val/ce_loss\":2.5}\n",                             /* a digit is wrong */
        "{\"step\":12,\"train/tokens\":192,\"moe/layer_1/load\":[4,12],\"moe/layer_2/load\":[16,0]}\n",
        "{\"step\":5,\"train/tokens\":64,\"moe/layer_1/load\":[4,12],\"moe/layer_2/load\":[16,0]}\n",
        "{\"step\":5,\"train/tokens\":81,\"moe/layer_1/load\":[4,12],\"moe/layer_2/load\":[16,0]}\n",
        "{\"step\":5,\"moe/layer_1/load\":[4,12],\"moe/layer_2/load\":[16,0]}\n", "{\"step\":5,\"train/tokens\":80}\n",
        "{\"step\":5,\"train/tokens\":80,\"moe/layer_1/load\":[4,12]}\n",
        "{\"step\":5,\"train/tokens\":80,\"moe/layer_1/load\":[16],\"moe/layer_2/load\":[16,0]}\n",
        "{\"step\":5,\"train/tokens\":80,\"moe/layer_1/load\":[25,-9],\"moe/layer_2/load\":[16,0]}\n",
        "{\"step\":5,\"train/tokens\":80,\"moe/layer_1/load\":[4,17],\"moe/layer_2/load\":[16,0]}\n",
        "{\"step\":5,\"train/tokens\":80,\"moe/layer_1/load\":[4,11],\"moe/layer_2/load\":[16,0]}\n",
        "{\"step\":5,\"train/tokens\":80,\"moe/layer_1/load\":[4,\"12\"],\"moe/layer_2/load\":[16,0]}\n",
        "{\"step\":5,\"train/tokens\":80,\"moe/layer_1/load\":16,\"moe/layer_2/load\":[16,0]}\n",
    };
    try(nul, sizeof nul - 1, 0, false);
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) try(damaged[i], strlen(damaged[i]), 0, false);
    size_t length = 5 << 20;                                    /* longer than any line */
    char *list = mu_alloc(length + 1, 1);
    memset(list, '[', length);
    list[length - 1] = '\n';
    try(list, length, 0, false);
    free(list);
}

/* Of one step there is a line of each kind, in this order: training, statistics, evaluation. */
static void kinds_are_in_order(void **state) {
    (void)state;
    static const char statistics[] = "{\"step\":4,\"stats/steps\":4}\n", evaluation[] = "{\"step\":4,\"val/ce_loss\":2}\n",
                      other[] = "{\"step\":4,\"later/name\":1}\n";
    static const struct { const char *sound, *damaged; } pairs[] = {
        { statistics, statistics }, { evaluation, evaluation }, { other, other },
        { evaluation, statistics }, { other, statistics }, { other, evaluation },
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char *both = mu_format("%s%s", pairs[i].sound, pairs[i].damaged);
        try(both, strlen(both), strlen(pairs[i].sound), false);
        free(both);
    }
}

/* Old lines, then new ones; a bit of one byte of line 5, its newline included, is wrong. */
static void any_changed_byte_is_found(void **state) {
    (void)state;
    char *line = line_of(5, true);
    size_t n = strlen(line) + 1;
    free(line);
    for (size_t i = 0; i < 8 * n; i += 19) {
        resumed r = { .damaged = 1, .lines = 9, .first = 5, .gap = 5, .gap_end = 5 };
        add_steps(&r.was, 1, 4, false);
        add_steps(&r.kept, 1, 4, false);
        char *changed = (add_steps(&r.was, 5, 9, true), r.was.bytes + r.kept.n + i / 8);
        *changed ^= (char)(1 << i % 8);
        if (*changed == '\n') r.damaged = 2, r.lines = 10;      /* two lines of it */
        if (i / 8 == n - 1) r.gap_end = 6, r.lines = 8;         /* one line of two */
        add_steps(&r.kept, r.gap_end + 1, 8, true);
        resume(r);
    }
}

/* A line without a checksum after one with a checksum is damaged. */
static void a_checksum_cannot_be_left_out(void **state) {
    (void)state;
    resumed r = { .damaged = 1, .lines = 8, .first = 5, .gap = 5, .gap_end = 5 };
    add_steps(&r.was, 1, 4, true);
    add_steps(&r.was, 5, 5, false);
    add_steps(&r.was, 6, 8, true);
    add_steps(&r.kept, 1, 4, true);
    add_steps(&r.kept, 6, 8, true);
    resume(r);
}

/* Lines out of order are damaged, as few as possible, and so are duplicates; an unproven evaluation
 * yields to lines with a proven step. */
static void disorder_costs_no_other_line(void **state) {
    (void)state;
    for (int checked = 0; checked < 2; checked++) {
        resumed r = { .damaged = 5, .lines = 14, .first = 1 };
        add_steps(&r.was, 7, 8, checked);
        add_steps(&r.was, 1, 4, checked);
        add_line(&r.was, evaluation_of(4, checked));
        add_steps(&r.was, 5, 6, checked);
        add_steps(&r.was, 20, 20, checked);
        add_steps(&r.was, 2, 3, checked);
        add_steps(&r.was, 7, 8, checked);
        add_steps(&r.kept, 1, 4, checked);
        add_line(&r.kept, evaluation_of(4, checked));
        add_steps(&r.kept, 5, 8, checked);
        resume(r);
    }
    for (int checked = 0; checked < 2; checked++) {
        resumed r = { .damaged = 9, .lines = 18, .first = 6 };
        add_steps(&r.was, 1, 4, checked);
        for (int i = 0; i < 10; i++) add_line(&r.was, evaluation_of(4, checked));
        add_steps(&r.was, 5, 8, checked);
        add_steps(&r.kept, 1, 4, checked);
        add_line(&r.kept, evaluation_of(4, checked));
        add_steps(&r.kept, 5, 8, checked);
        resume(r);
    }
    resumed r = { .damaged = 6, .lines = 14, .first = 5 };
    add_steps(&r.was, 1, 4, false);
    for (int i = 0; i < 6; i++) add_line(&r.was, evaluation_of(12 + i, false));
    add_steps(&r.was, 5, 8, false);
    add_steps(&r.kept, 1, 8, false);
    resume(r);
}

/* Within a step: the training line, statistics, the evaluation. */
static void kinds_of_lines_have_an_order(void **state) {
    (void)state;
    resumed r = { .damaged = 1, .lines = 13, .first = 8 };
    for (int kept = 0; kept < 2; kept++) {
        text *x = kept ? &r.kept : &r.was;
        add_steps(x, 1, 4, true);
        add_line(x, statistics_of(4, true));
        add_line(x, evaluation_of(4, true));
        add_steps(x, 5, 5, true);
        if (!kept) add_line(x, evaluation_of(4, true));
        add_steps(x, 6, 6, true);
        add_line(x, statistics_of(6, true));
        add_steps(x, 7, 8, true);
        add_line(x, statistics_of(8, true));
    }
    resume(r);
}

/* ------------------------------------------------------------------ the end of the file */

/* A kill may leave any prefix (here every second) of the line that was being written: of a step newer than the checkpoint, or the evaluation of
 * its step. A complete line without its newline is kept. */
static char *(*const writers[])(int step, bool checked) = { line_of, statistics_of, evaluation_of, evaluation_of };
static const int written_step[] = { 12, 12, 12, 8 };

static void a_kill_at_any_byte_is_no_damage(void **state) {
    (void)state;
    for (int i = 0; i < 8; i++) {
        bool checked = i % 2;
        char *line = writers[i / 2](written_step[i / 2], checked);
        for (size_t n = strlen(line) % 2; n <= strlen(line); n += checked ? 2 : 10) {
            resumed r = { 0 };
            add_steps(&r.was, 1, 8, checked);
            add(&r.was, line, n);
            add_steps(&r.kept, 1, 8, checked);
            if (written_step[i / 2] == 8 && n == strlen(line)) add_line(&r.kept, evaluation_of(8, checked));
            resume(r);
        }
        free(line);
    }
    resumed r = { 0 };
    add_steps(&r.was, 1, 8, true);
    add_steps(&r.kept, 1, 8, true);
    r.was.n--;
    resume(r);
}

/* Steps 1 to 7, and an end that no kill can leave. */
static void other_ends_are_damage(void **state) {
    (void)state;
#define END(text) { text, sizeof text - 1 }
    static const struct { const char *end; size_t n; } ends[] = {
        END("\0"), END("\0\0\0\0"), END("{\"step\":9,\"tr\0\0\0\0"), END("x"), END(" "), END("\r"), END("{\"step\":9,\"tr\r"), END("{\"stop\":9"),
        END("{\"step\":,"), END("{\"step\":-9,"), END("{\"step\":99999999999999999999,"), END("{\"step\":7,\"train/tok"),
        END("{\"step\":8,\"train/tok"), END("{\"step\":8,\"t"), END("{\"step\":8,\"s"), END("{\"step\":8,\"stats/steps\":100,\"moe/"),
        END("{\"step\":7,\"later"), END("{\"step\":7,\"val/"), END("{\"step\":9,}"), END("{\"step\":9,\"val/ce_loss\":2.5}x"),
        END("{\"step\":9,\"val/ce_loss\":2.5}\r"),
    };
#undef END
    for (size_t i = 0; i < sizeof ends / sizeof *ends + 2; i++) {
        resumed r = { .damaged = 1, .lines = 8, .first = 8, .gap = 8, .gap_end = 8 };
        size_t changed_end = i - sizeof ends / sizeof *ends;         /* 0: the last newline is another byte; 1: the last line lost its end */
        add_steps(&r.was, 1, changed_end < 2 ? 8 : 7, true);
        if (changed_end == 0) r.was.bytes[r.was.n - 1] = '\r';
        else if (changed_end == 1) r.was.n -= 2;
        else add(&r.was, ends[i].end, ends[i].n);
        add_steps(&r.kept, 1, 7, true);
        resume(r);
    }
}

/* ------------------------------------------------------------------ events.jsonl */

static char *event_of(int step, const char *what) {
    return finish(mu_format("{\"step\":%d,\"event\":\"%s\",\"layers\":[1,2],\"names\":[\"a b\"],\"again\":false,\"load\":0.5", step, what), true);
}
static void add_events(text *x, int first, int last) {
    for (int step = first; step <= last; step++) add_line(x, event_of(step, "dead")), add_line(x, event_of(step, "alive {}, \303\266"));
}

/* Continues `was` from step 8, or from `step`, and appends an event of step 9: `kept` and that event are in the file. Frees the texts. */
typedef struct { text was, kept; int damaged, lines, first; bool from_start, rewinds; } continued;

static void continue_events(continued c) {
    mu_lines_out out;
    mu_lines_resume how = { .path = "./events.jsonl", .format = MU_LINES_EVENTS, .step = c.from_start ? 0 : 8, .rewinds = c.rewinds };
    char *next = event_of(9, "x"), *said = NULL;
    mu_json line = { .text = next, .length = strlen(next) - MU_CHECKSUM_BYTES };
    put("events.jsonl", c.was.bytes, c.was.n);
    warning[0] = '\0';
    next[line.length] = '\0';
    assert_ok(mu_lines_continue(&out, &how, NULL, &e));
    assert_ok(mu_lines_write(&out, &line, &e));
    assert_ok(mu_lines_sync(&out, &e));
    mu_lines_out_close(&out);
    add_line(&c.kept, event_of(9, "x"));
    assert_content("events.jsonl", c.kept.bytes, c.kept.n);
    if (c.damaged) said = mu_format("events.jsonl: %d of %d lines are damaged, the first is line %d; the others are kept, old file moved aside to"
                                    " ./events.jsonl.aside", c.damaged, c.lines, c.first);
    else if (c.from_start) said = mu_strdup("events.jsonl is from an earlier job and there is no checkpoint");
    else if (c.rewinds) said = mu_strdup("events.jsonl: lines newer than resume step 8, moved aside to ./events.jsonl.aside");
    if (said && !strstr(warning, said)) fail_msg("no \"%s\" in: %s", said, warning);
    if (said) assert_content("events.jsonl.aside", c.was.bytes, c.was.n);
    else if (warning[0] || mu_file_exists("events.jsonl.aside")) fail_msg("valid, but: %s", warning);
    remove("events.jsonl.aside");
    free(said);
    free(next);
    free(c.was.bytes);
    free(c.kept.bytes);
}

static void events_are_cut_back(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {                               /* nothing newer; newer ones; when the run rewinds; without a checkpoint */
        continued c = { .from_start = i == 3, .rewinds = i == 2 };
        add_events(&c.was, 1, i ? 10 : 8);
        if (i < 3) add_events(&c.kept, 1, 8);
        continue_events(c);
    }
    continue_events((continued){ .from_start = false });        /* no events yet */
    for (int step = 8; step < 10; step++) {                     /* a kill at any byte: of step 8 a checkpoint covers the events */
        char *line = event_of(step, "alive {}, \303\266");
        size_t n = strlen(line);
        for (size_t at = n; at > 1; at -= 2) {
            bool covered = step == 8 && at < n && at > strlen("{\"step\":8"), misread = at < n && line[at - 1] == '}';
            continued c = { .damaged = covered || misread, .lines = 17, .first = 17 };
            add_events(&c.was, 1, 8);
            add(&c.was, line, at);
            add_events(&c.kept, 1, 8);
            if (step == 8 && at == n) add_line(&c.kept, event_of(8, "alive {}, \303\266"));
            continue_events(c);
        }
        free(line);
    }
}

static void damaged_events_are_kept_aside(void **state) {
    (void)state;
    char *line = event_of(5, "dead");
    size_t n = strlen(line);
    for (size_t at = 0; at < n; at += 3) {
        continued c = { .damaged = 1, .lines = 17, .first = 9 };
        add_events(&c.was, 1, 4);
        add_events(&c.kept, 1, 4);
        add(&c.was, line, n);
        c.was.bytes[c.was.n - n + at] ^= 1;
        add(&c.was, "\n", 1);
        add_events(&c.was, 5, 8);
        add_events(&c.kept, 5, 8);
        continue_events(c);
    }
    free(line);
    static const char *const damaged[] = { "{\"step\":5,\"event\":\"dead\"}", "{\"step\":5,\"x\":1}", "" };       /* without a checksum */
    for (int i = 0; i < 5; i++) {
        continued c = { .damaged = 1, .lines = 17, .first = 9 };
        add_events(&c.was, 1, 4);
        add_events(&c.kept, 1, 4);
        add_line(&c.was, i == 4 ? event_of(2, "dead") : i == 3 ? finish(mu_strdup("{\"step\":5,\"x\":{}"), true) : mu_strdup(damaged[i]));
        add_events(&c.was, 5, 8);
        add_events(&c.kept, 5, 8);
        continue_events(c);
    }
}

/* ------------------------------------------------------------------ files of another run, and files that are not plain */

/* When a run resumes from before its newest checkpoint, newer lines may never be computed again. */
static void a_course_that_is_left_is_kept(void **state) {
    (void)state;
    mu_metrics *m;
    assert_ok(mu_file_make_dirs("checkpoints/step-00000009", &e));
    for (int last = 8; last < 10; last++) {
        text was = { 0 }, kept = { 0 };
        add_steps(&was, 1, last, true);
        add_steps(&kept, 1, 8, true);
        put("metrics.jsonl", was.bytes, was.n);
        warning[0] = '\0';
        assert_ok(mu_metrics_open(&m, log_source(t), &e));
        mu_metrics_close(m);
        assert_content("metrics.jsonl", kept.bytes, kept.n);
        if (last == 8) assert_string_equal(warning, "");
        else {
            assert_non_null(strstr(warning, "lines newer than resume step 8, moved aside to ./metrics.jsonl.aside"));
            assert_content("metrics.jsonl.aside", was.bytes, was.n);
        }
        remove("metrics.jsonl.aside");
        remove("routing.h5.aside");
        free(was.bytes);
        free(kept.bytes);
    }
    assert_ok(mu_file_remove_tree("checkpoints", &e));
}


static void without_a_checkpoint_all_is_kept(void **state) {
    (void)state;
    text was = { 0 };
    add_steps(&was, 1, 8, true);
    t->state.step = 0;
    for (int kind = 0; kind < 3; kind++) {                      /* both files, one, the other */
        unlink("metrics.jsonl");
        unlink("statistics.rec");
        unlink("routing.h5");
        if (kind != 2) put("metrics.jsonl", was.bytes, was.n);
        if (kind != 1) put("routing.h5", "of before", 9);
        open_and_sync();
        char *said = mu_format("metrics.jsonl is from an earlier job and there is no checkpoint to resume from: moved aside to %s%s%s",
                               kind != 2 ? "./metrics.jsonl.aside" : "", kind == 0 ? " and " : "", kind != 1 ? "./routing.h5.aside" : "");
        if (!strstr(warning, said)) fail_msg("no \"%s\" in: %s", said, warning);
        free(said);
        assert_content("metrics.jsonl", "", 0);
        assert_loads(NULL, 0);
        if (kind != 2) assert_content("metrics.jsonl.aside", was.bytes, was.n);
        if (kind != 1) assert_content("routing.h5.aside", "of before", 9);
        unlink("metrics.jsonl.aside");
        unlink("routing.h5.aside");
    }
    unlink("routing.h5");
    open_and_sync();                                            /* an empty file holds nothing */
    assert_string_equal(warning, "");
    t->state.step = 8;
    free(was.bytes);
}

static int make_folder(const char *path) { return mkdir(path, 0700); }
static int make_pipe(const char *path) { return mkfifo(path, 0600); }
static int make_link(const char *path) { return symlink("elsewhere", path); }
static const struct { int (*make)(const char *); const char *reason; mode_t type; } others[] = {
    { make_folder, "is a directory", S_IFDIR }, { make_pipe, "is a pipe, not a plain file", S_IFIFO },
    { make_link, "is a symbolic link, not a plain file", S_IFLNK },
};

static void metrics_must_be_a_plain_file(void **state) {
    (void)state;
    for (int i = 0; i < 6; i++) {
        mu_metrics *m;
        remove("metrics.jsonl");
        assert_int_equal(others[i % 3].make("metrics.jsonl"), 0);
        t->state.step = i < 3 ? 8 : 0;
        alarm(20);
        mu_status status = mu_metrics_open(&m, log_source(t), &e);
        alarm(0);
        assert_int_equal(status, MU_STATUS_IO);
        if (!strstr(e.text, "./metrics.jsonl ") || !strstr(e.text, others[i % 3].reason)) fail_msg("%s", e.text);
        mu_metrics_close(m);
        remove("metrics.jsonl");
    }
    t->state.step = 8;
}

/* routing.h5 is derived: an obstacle causes a warning, and is kept. */
static void routing_costs_no_checkpoint(void **state) {
    (void)state;
    text was = { 0 };
    add_steps(&was, 1, 8, true);
    for (int i = 0; i < 3; i++) {
        mu_metrics *m;
        struct stat st;
        remove("routing.h5");
        assert_int_equal(others[i].make("routing.h5"), 0);
        put("metrics.jsonl", was.bytes, was.n);
        warning[0] = '\0';
        assert_ok(mu_metrics_open(&m, log_source(t), &e));
        assert_string_equal(warning, "");
        alarm(20);
        mu_metrics_write_routing(m, false);
        alarm(0);
        if (!strstr(warning, "./routing.h5 ") || !strstr(warning, others[i].reason)) fail_msg("%s", warning);
        assert_true(lstat("routing.h5", &st) == 0 && (st.st_mode & S_IFMT) == others[i].type);
        warning[0] = '\0';
        mu_metrics_write_routing(m, false);                         /* warns once */
        assert_string_equal(warning, "");
        remove("routing.h5");
        mu_metrics_write_routing(m, false);
        mu_metrics_close(m);
        assert_loads((int[]){ 1, 2, 3, 4, 5, 6, 7, 8 }, 8);
    }
    free(was.bytes);
}

/* Lines that muster writes have a checksum, and are kept unchanged. */
static void written_lines_are_sound(void **state) {
    (void)state;
    mu_metrics *m;
    mu_domain_loss results = { .tokens = 1, .bytes = 1, .ce = 2, .bits_per_byte = 3 };
    mu_step_result r = { .values = { .loss = 1.5, .ce = 1.25, .aux = NAN, .z = NAN, .grad_norm = 1 }, .lr = 1e-3, .seconds = 0.1, .finite = true };
    unlink("metrics.jsonl");
    unlink("statistics.rec");
    for (int i = 0; i < 4; i++) t->state.stats->counts[i] = i % 2 ? 7 : 9;
    assert_ok(mu_metrics_open(&m, log_source(t), &e));
    assert_ok(mu_metrics_step(m, log_source(t), &r, 100, &e));
    assert_ok(mu_metrics_eval(m, log_source(t), 2.5, &results, &e));
    mu_metrics_close(m);
    char *written;
    size_t n;
    int lines = 0;
    assert_ok(mu_file_read("metrics.jsonl", 1 << 20, &written, &n, &e));
    for (char *line = written, *end; (end = strchr(line, '\n')); line = end + 1, lines++) {
        char checksum[MU_CHECKSUM_BYTES + 1];
        mu_line_checksum(line, (size_t)(end - line) - MU_CHECKSUM_BYTES, checksum);
        assert_memory_equal(end - MU_CHECKSUM_BYTES, checksum, MU_CHECKSUM_BYTES);
    }
    assert_int_equal(lines, 2);
    open_and_sync();
    assert_string_equal(warning, "");
    assert_content("metrics.jsonl", written, n);
    free(written);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sound_lines_stay), cmocka_unit_test(kinds_are_in_order), cmocka_unit_test(damaged_lines_are_kept_aside), cmocka_unit_test(any_changed_byte_is_found),
        cmocka_unit_test(a_checksum_cannot_be_left_out), cmocka_unit_test(disorder_costs_no_other_line),
        cmocka_unit_test(kinds_of_lines_have_an_order),
        cmocka_unit_test(a_kill_at_any_byte_is_no_damage), cmocka_unit_test(other_ends_are_damage),
        cmocka_unit_test(events_are_cut_back), cmocka_unit_test(damaged_events_are_kept_aside),
        cmocka_unit_test(a_course_that_is_left_is_kept), cmocka_unit_test(without_a_checkpoint_all_is_kept), cmocka_unit_test(metrics_must_be_a_plain_file),
        cmocka_unit_test(routing_costs_no_checkpoint), cmocka_unit_test(written_lines_are_sound),
    };
    return cmocka_run_group_tests(tests, open_trainer, close_trainer);
}
