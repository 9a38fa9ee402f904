/* test_run_view.c - the view of a run folder: in every state, moved, while lines are being written, and damaged. */
#include "train/events.h"
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

static mu_error e;
static mu_training *t;
static char folder[] = "run-view-XXXXXX";

static void assert_ok(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

/* In a folder of its own, a run in ./run with its run.json. */
static int open_trainer(void **state) {
    (void)state;
    static const char text[] = "run: {dir: run}\n"
                               "model: {hidden_size: 8, num_layers: 2, num_heads: 2, max_seq_len: 8}\n"
                               "moe: {num_experts: 2, top_k: 1, norm_topk_prob: false, moe_ffn_hidden_size: 4}\n"
                               "data: {train: [{domain: a, path: synthetic}]}\n"
                               "train: {steps: 40, global_batch_size: 2, seq_len: 8, threads: 1}\n";
    t = training_in_folder(folder, text, &e);
    return t ? 0 : -1;
}

static int close_trainer(void **state) {
    (void)state;
    return training_free_folder(t, folder);
}

static void make_folder(void) {
    assert_ok(mu_file_remove_tree("run", &e));
    assert_ok(mu_file_make_dirs("run/checkpoints", &e));
    assert_ok(mu_run_describe(&t->cfg, t->dev, &t->texts.corpus, &t->state, 2, (char *[]){ "muster", "train" }, &e));
}

static void assert_state(const char *dir, mu_run_state state, bool moved, int n_checkpoints) {
    mu_run_view v;
    assert_ok(mu_run_view_open(&v, dir, &e));
    if (v.state != state || v.moved != moved || v.n_checkpoints != n_checkpoints)
        fail_msg("%s is %s%s with %d checkpoints", dir, mu_run_state_name(v.state), v.moved ? ", moved," : "", v.n_checkpoints);
    assert_int_equal(v.cfg.train.steps, 40);
    assert_string_equal(v.cfg.run.dir, "run");
    assert_int_equal(json_integer_value(json_object_get(v.facts, "seed")), 1);
    mu_run_view_close(&v);
}

static void assert_error(const char *dir, mu_status status, const char *text) {
    mu_run_view v;
    assert_int_equal(mu_run_view_open(&v, dir, &e), status);
    if (!strstr(e.text, text)) fail_msg("no \"%s\" in: %s", text, e.text);
    mu_run_view_close(&v);
}

static void states(void **state) {
    (void)state;
    mu_lock *lock;
    make_folder();
    assert_state("run", MU_RUN_STOPPED, false, 0);              /* an older run may have no lock */
    assert_ok(mu_lock_take(&lock, "run", &e));
    assert_state("run", MU_RUN_RUNNING, false, 0);
    mu_lock_release(lock);
    assert_state("run", MU_RUN_STOPPED, false, 0);
    assert_ok(mu_file_make_dirs("run/checkpoints/step-00000020", &e));
    assert_ok(mu_file_replace("run/lock", "process 1 on elsewhere start 1 launcher 0\n", 42, &e));
    assert_state("run", MU_RUN_CRASHED, false, 1);
    assert_ok(mu_file_make_dirs("run/checkpoints/step-00000040", &e));
    assert_state("run", MU_RUN_FINISHED, false, 2);
    assert_ok(mu_lock_take(&lock, "run", &e));                  /* to be extended */
    assert_state("run/", MU_RUN_RUNNING, false, 2);
    mu_lock_release(lock);
    assert_ok(mu_file_make_dirs("away", &e));
    assert_int_equal(rename("run", "away/run"), 0);
    assert_state("away/run", MU_RUN_FINISHED, true, 2);
    assert_int_equal(symlink("away/run", "run"), 0);
    assert_state("run", MU_RUN_FINISHED, true, 2);
    remove("run");
    assert_int_equal(rename("away/run", "run"), 0);
}

static void what_is_no_run_is_an_error(void **state) {
    (void)state;
    make_folder();
    assert_error("nothing", MU_STATUS_NOINPUT, "nothing: no such file or folder");
    assert_error("run/run.json", MU_STATUS_NOINPUT, "is not a run folder");
    assert_ok(mu_file_replace("run/run.json", "{\"seed\":", 8, &e));
    assert_error("run", MU_STATUS_DATA, "run/run.json is damaged");
    remove("run/run.json");
    assert_error("run", MU_STATUS_NOINPUT, "run/run.json");
    assert_ok(mu_file_replace("run/config.resolved.yaml", "x: 1\n", 5, &e));
    assert_error("run", MU_STATUS_CONFIG, "run/config.resolved.yaml");
    remove("run/config.resolved.yaml");
    assert_error("run", MU_STATUS_NOINPUT, "run is not a run folder: it has no config.resolved.yaml");
    assert_ok(mu_file_replace("run/config.json", "{}", 2, &e));
    assert_error("run", MU_STATUS_NOINPUT, "run is a model of Hugging Face, no run");
}

static void add_line(FILE *f, const char *body) {
    char checksum[MU_CHECKSUM_BYTES + 1];
    mu_line_checksum(body, strlen(body), checksum);
    assert_true(fprintf(f, "%s%s\n", body, checksum) > 0 && !fflush(f));
}

/* Lines of a running job are read as far as written, damaged ones are counted; records can be read, too. */
static void metrics_and_statistics(void **state) {
    (void)state;
    mu_metrics *m;
    mu_run_view v;
    mu_step_result r = { .values = { .loss = 1, .ce = 1, .aux = NAN, .z = NAN, .grad_norm = 1 }, .lr = 1e-3, .seconds = 0.1, .finite = true };
    make_folder();
    t->state.step = 0;
    assert_ok(mu_metrics_open(&m, log_source(t), &e));
    for (t->state.step = 1; t->state.step <= 4; t->state.step++) assert_ok(mu_metrics_step(m, log_source(t), &r, 100, &e));
    mu_domain_loss loss = { 0 };
    FILE *f = fopen("run/metrics.jsonl", "a");
    assert_true(f);
    t->state.step = 4;
    add_line(f, "{\"step\":4,\"stats/steps\":4,\"moe/layer_1/load\":[3,5]");
    assert_ok(mu_metrics_eval(m, log_source(t), 2.5, &loss, &e));
    add_line(f, "{\"step\":4,\"later/name\":1");
    assert_true(fputs("{\"step\":5,\"val/ce_loss\":1}\n", f) >= 0 && fputs("{\"step\":6,\"tr", f) >= 0);  /* no checksum; incomplete */
    assert_int_equal(fclose(f), 0);
    assert_ok(mu_run_view_open(&v, "run", &e));
    mu_run_metrics lines;
    assert_ok(mu_run_metrics_open(&lines, &v, &e));
    for (int64_t step = 1; step <= 4; step++) {
        assert_true(mu_run_metrics_next(&lines) && lines.step == step && lines.kind == MU_LINE_TRAINING);
        assert_int_equal(json_integer_value(json_object_get(lines.line, "train/tokens")), 16 * step);
    }
    for (mu_line_kind kind = MU_LINE_STATISTICS; kind <= MU_LINE_OTHER; kind++) {
        assert_true(mu_run_metrics_next(&lines) && lines.step == 4 && lines.kind == kind);
        assert_null(json_object_get(lines.line, "xxh3"));
    }
    assert_false(mu_run_metrics_next(&lines));
    assert_int_equal(lines.skipped, 1);
    assert_ok(mu_run_metrics_close(&lines, MU_STATUS_OK, &e));
    mu_statistics *s;
    bool sound;
    assert_ok(mu_run_statistics_open(&s, &v, &e));
    assert_int_equal(s->n, 4);
    assert_ok(mu_statistics_read(s, 2, &sound, &e));
    assert_true(sound && s->step == 3 && s->by_domain);
    mu_statistics_close(s);
    mu_metrics_close(m);
    remove("run/statistics.rec");
    assert_int_equal(mu_run_statistics_open(&s, &v, &e), MU_STATUS_NOINPUT);
    mu_statistics_close(s);
    mu_run_view_close(&v);
}

/* ------------------------------------------------------------------ events */

static mu_events *open_events(int64_t step) {
    mu_events *ev;
    t->state.step = step;
    assert_ok(mu_events_open(&ev, log_source(t), &e));
    return ev;
}

/* The steps and kinds of the events, as text. */
static void assert_events(const char *wanted) {
    mu_run_view v;
    mu_run_metrics lines;
    char found[256] = "";
    assert_ok(mu_run_view_open(&v, "run", &e));
    assert_ok(mu_run_events_open(&lines, &v, &e));
    while (mu_run_metrics_next(&lines)) {
        size_t n = strlen(found);
        const char *to = json_string_value(json_object_get(lines.line, "to")), *topic = json_string_value(json_object_get(lines.line, "topic"));
        snprintf(found + n, sizeof found - n, "%lld %s %s; ", (long long)lines.step, json_string_value(json_object_get(lines.line, "event")),
                 to ? to : topic);
    }
    assert_int_equal(lines.skipped, 0);
    assert_ok(mu_run_metrics_close(&lines, MU_STATUS_OK, &e));
    mu_run_view_close(&v);
    assert_string_equal(found, wanted);
}

/* Written, read, cut back on resume with what was advised until then, and set aside with another history. */
static void events(void **state) {
    (void)state;
    const mu_expert_change changes[] = {
        { .layer = 1, .expert = 1, .from = MU_EXPERT_STARVED, .to = MU_EXPERT_DEAD, .since = 2, .silence = 8, .domain = -1, .twin = -1 },
        { .layer = 0, .expert = 0, .to = MU_EXPERT_CARRIER, .load = 0.5, .criticality = 0.42, .domain = 0, .twin = 1, .cosine = 0.3 },
    };
    make_folder();
    mu_events *ev = open_events(0);
    t->state.step = 3;
    assert_ok(mu_events_changes(ev, log_source(t), changes, 2, &e));
    assert_ok(mu_events_advice(ev, log_source(t), &(mu_advice){ MU_ADVICE_DROPS, "moe.capacity_factor", "0.5", "text" }, &e));
    t->state.step = 5;
    assert_ok(mu_events_advice(ev, log_source(t), &(mu_advice){ MU_ADVICE_TERM, "moe.aux_loss_coeff", "10", "text" }, &e));
    assert_ok(mu_events_sync(ev, &e));
    mu_events_close(ev);
    char *text = mu_change_text(log_source(t), &changes[0]);
    assert_string_equal(text, "layer 1: expert 1 is dead (load 0.000 of the mean, no token so far)");
    free(text);
    text = mu_change_text(log_source(t), &changes[1]);
    assert_string_equal(text, "layer 0: expert 0 became the carrier of a (criticality 0.42 nats)");
    free(text);
    mu_expert_change starved = { .to = MU_EXPERT_STARVED, .load = 0.1, .criticality = 0.06, .twin = -1 };
    text = mu_change_text(log_source(t), &starved);
    assert_string_equal(text, "layer 0: expert 0 is starved (load 0.10 of the mean, below 0.25, but a depends on it: criticality 0.06 nats)");
    free(text);
    starved.criticality = 0.04;
    text = mu_change_text(log_source(t), &starved);
    assert_string_equal(text, "layer 0: expert 0 is starved (load 0.10 of the mean, below 0.25)");
    free(text);
    assert_events("3 state dead; 3 state carrier; 3 advice drops; 5 advice loss_term; ");
    ev = open_events(4);
    assert_true(mu_events_advised(ev, MU_ADVICE_DROPS) && !mu_events_advised(ev, MU_ADVICE_TERM));
    mu_events_close(ev);
    assert_events("3 state dead; 3 state carrier; 3 advice drops; ");
    mu_events_close(open_events(0));                            /* without a checkpoint */
    assert_events("");
    assert_true(mu_file_exists("run/events.jsonl.aside"));
    t->state.step = 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states), cmocka_unit_test(what_is_no_run_is_an_error), cmocka_unit_test(metrics_and_statistics),
        cmocka_unit_test(events),
    };
    return cmocka_run_group_tests(tests, open_trainer, close_trainer);
}
