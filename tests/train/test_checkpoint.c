/* test_checkpoint.c - the content of checkpoints: every value has a range, resume and verify reject the
 * same, an older checkpoint is used instead, and only files of a save are removed. */
#include "train/training_run.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char folder[] = "checkpoints-XXXXXX";
static mu_error e;

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) && !chdir(folder) && !mu_file_replace("b.txt", "a domain of a few words, and no more", 36, &e) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return chdir("..") || mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

static void assert_ok(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

static void assert_error(mu_status status, mu_status expected, const char *text) {
    if (status != expected || e.status != expected) fail_msg("status %d, not %d: %s", status, expected, e.text);
    if (!strstr(e.text, text)) fail_msg("no \"%s\" in: %s", text, e.text);
}

static mu_training *training_new(const char *moe) {
    mu_training *t = mu_alloc(1, sizeof *t);
    char *text = mu_format(
        "run: {dir: run, seed: 7}\n"
        "model: {hidden_size: 8, num_layers: 2, num_heads: 2, max_seq_len: 8}\n"
        "data: {train: [{domain: a, path: synthetic}, {domain: b, path: b.txt}]}\n"
        "train: {steps: 40, global_batch_size: 2, seq_len: 8, threads: 1}\n"
        "checkpoint: {keep: 3}\n"
        "moe: {top_k: 2, moe_ffn_hidden_size: 4, %s}\n", moe);
    assert_ok(mu_config_load_text(&t->cfg, "test", text, 0, NULL, &e));
    assert_ok(mu_training_open(t, mu_mesh_alone(), MU_VAL_DOCUMENTS_BY_HASH, &e));
    free(text);
    return t;
}

static void steps_and_save(mu_training *t, int64_t until) {
    while (t->state.step < until) assert_true(mu_training_step(t, NULL).finite);
    assert_ok(mu_checkpoint_save(&t->state, &t->cfg, &t->texts, &e));
}

/* As `muster verify`. */
static mu_status verify(const char *path) {
    mu_manifest m;
    mu_status status = mu_manifest_read(&m, path, &e);
    if (!status) status = mu_manifest_verify(&m, 0, 1, &e);
    if (!status) status = mu_checkpoint_check(&m, true, &e);
    mu_manifest_free(&m);
    return status;
}

/* As a run that resumes. */
static mu_status load(mu_training *t, const char *path) {
    mu_manifest m = { 0 };
    bool found;
    mu_status status = mu_checkpoint_find(t->state.mesh->world, path, &m, &found, &e);
    if (!status) status = mu_checkpoint_load(&t->state, &m, t->tokenizer, &e);
    mu_manifest_free(&m);
    return status;
}

/* ---------------------------------------------------------------- values */

enum { EARLY, LATE };                           /* found when a checkpoint is chosen; when its tensors are loaded */
static const struct {
    const char *what, *message;                 /* change before saving, and the expected error */
    int when;
} bad_state[] = {
    { "window steps negative", "/state/window/steps[0] is -5, must be in [3, 3]", EARLY },
    { "window steps large", "/state/window/steps", EARLY },
    { "ring negative", "/state/window/counts[0] is -1", EARLY },
    { "ring large", "/state/window/counts", EARLY },
    { "ring and total", "MoE layer 0, slot 0: the counts of the experts do not add up to 32", EARLY },
    { "ring of no step", "MoE layer 0, slot 3: the counts of the experts do not add up to 0", EARLY },
    { "last token ahead", "/state/window/last_step[0] is 4, must be in [0, 3]", EARLY },
    { "last token of none", "MoE layer 0, expert 0: last token in step 0, mean of 3 gaps 1 steps, but its newest count is of step 3", EARLY },
    { "mean gap", "MoE layer 0, expert 0: last token in step 3, mean of 3 gaps 0.5 steps", EARLY },
    { "loader ahead", "/state/loader[0] is 7, ", EARLY },
    { "loader of one domain", "0 of 6 samples drawn; implausible for a sampling weight of 0.99", EARLY },
    { "bias infinite", "/layers/1/mlp/gate/e_score_correction_bias[1] is not finite", EARLY },
    { "bias large", "/layers/1/mlp/gate/e_score_correction_bias[1] is -1e+06, must be in [-6006, 6006]", EARLY },
    { "optimizer steps negative", "/optim/steps/norm/weight[0] is -1, must be in [3, 3]", LATE },
    { "optimizer steps ahead", "/optim/steps/norm/weight[0] is 4,", LATE },
    { "optimizer steps behind", "/optim/steps/norm/weight[0] is 2,", LATE },
    { "steps of an active expert", "/optim/steps/layers/0/mlp/experts/0/up_proj/weight[0] is 0, must be in [", LATE },
    { "steps of an idle expert", "/optim/steps/layers/0/mlp/experts/3/up_proj/weight[0] is 3, must be in [0, 0]", LATE },
    { "second moment negative", "/optim/v/norm/weight[0] is -1, must be in [0, 1.79", LATE },
    { "first moment infinite", "/optim/m/norm/weight[0] is not finite", LATE },
    { "weight not a number", "/norm/weight[0] is not finite", LATE },
};

static void set_steps(mu_training *t, const char *name, int64_t steps) {
    mu_optimizer_steps_set(t->state.opt, mu_params_find(t->state.model->params, name), steps);
}

/* No step of the run gave expert 3 of layer 0 a token: what it took is expert 0's. */
static void idle_expert(mu_training *t) {
    mu_load_window *r = &t->state.stats->window;
    for (int64_t step = 0; step < r->steps; step++) {
        int32_t *row = r->ring + step * r->layers * r->experts;
        row[0] += row[3], row[3] = 0;
    }
    r->total[0] += r->total[3], r->total[3] = 0, r->previous[0] += r->previous[3], r->previous[3] = 0;
    r->last_step[3] = r->gaps[3] = 0, r->mean_gap[3] = 0, r->last_step[0] = r->gaps[0] = r->steps, r->mean_gap[0] = 1;
    set_steps(t, "/layers/0/mlp/experts/0/gate_proj/weight", r->steps), set_steps(t, "/layers/0/mlp/experts/3/gate_proj/weight", 0);
    set_steps(t, "/layers/0/mlp/experts/0/up_proj/weight", r->steps), set_steps(t, "/layers/0/mlp/experts/3/up_proj/weight", 3);
    set_steps(t, "/layers/0/mlp/experts/0/down_proj/weight", r->steps), set_steps(t, "/layers/0/mlp/experts/3/down_proj/weight", 0);
}

static void spoil(mu_training *t, const char *how) {
    mu_unit *u = mu_params_find(t->state.model->params, "/norm/weight");
    mu_sample sample;
    double *const values = (double[]){ NAN, -1.0, INFINITY };
    if (!strcmp(how, "window steps negative")) t->state.stats->window.steps = -5;
    else if (!strcmp(how, "window steps large")) t->state.stats->window.steps = INT64_MAX - 1;
    else if (!strcmp(how, "ring negative")) t->state.stats->window.ring[0] = -1;
    else if (!strcmp(how, "ring large")) t->state.stats->window.ring[0] = INT32_MAX, t->state.stats->window.total[0] = INT32_MAX;
    else if (!strcmp(how, "ring and total")) t->state.stats->window.ring[0] ^= 1, t->state.stats->window.total[0] += t->state.stats->window.ring[0] & 1 ? 1 : -1;
    else if (!strcmp(how, "ring of no step")) t->state.stats->window.ring[3 * t->state.stats->window.layers * t->state.stats->window.experts] = 2, t->state.stats->window.total[0] += 2;
    else if (!strcmp(how, "last token ahead")) t->state.stats->window.last_step[0] = 4;
    else if (!strcmp(how, "last token of none")) t->state.stats->window.last_step[0] = 0, t->state.stats->window.mean_gap[0] = 1;
    else if (!strcmp(how, "mean gap")) t->state.stats->window.mean_gap[0] = 0.5;
    else if (!strcmp(how, "loader ahead")) mu_loader_next(t->state.loader, 1, &sample);
    else if (!strcmp(how, "loader of one domain")) assert_ok(mu_loader_state_set(t->state.loader, &t->cfg.data.train, (int64_t[]){ 0, 6, 6 }, &e));
    else if (!strcmp(how, "bias infinite")) t->state.model->blocks[1].moe.bias[1] = -INFINITY;
    else if (!strcmp(how, "bias large")) t->state.model->blocks[1].moe.bias[1] = -1e6;
    else if (!strcmp(how, "optimizer steps negative")) mu_optimizer_steps_set(t->state.opt, u, -1);
    else if (!strcmp(how, "optimizer steps ahead")) mu_optimizer_steps_set(t->state.opt, u, 4);
    else if (!strcmp(how, "optimizer steps behind")) mu_optimizer_steps_set(t->state.opt, u, 2);
    else if (!strcmp(how, "steps of an active expert")) set_steps(t, "/layers/0/mlp/experts/0/up_proj/weight", 0);
    else if (!strcmp(how, "steps of an idle expert")) idle_expert(t);
    else if (!strcmp(how, "second moment negative"))
        mu_reals_set(t->dev, t->dev->master, mu_optimizer_slot(t->state.opt, u, 1), 1, &values[1]);
    else if (!strcmp(how, "first moment infinite"))
        mu_reals_set(t->dev, t->dev->master, mu_optimizer_slot(t->state.opt, u, 0), 1, &values[2]);
    else if (!strcmp(how, "weight not a number"))
        mu_reals_set(t->dev, t->dev->master, mu_unit_data(u), 1, &values[0]);
    else fail_msg("%s", how);
}

/* A run that finds checkpoint 3 damaged resumes from 2, and its next step has this loss. */
static void goes_on_from_the_one_before(int when, const char *message, double loss) {
    mu_training *t = training_new("num_experts: 4, balance: [expert_bias], score_func: sigmoid");
    mu_manifest m;
    bool found = false;
    assert_ok(mu_checkpoint_find(t->state.mesh->world, "run", &m, &found, &e));
    assert_int_equal(m.step, when == LATE ? 3 : 2);
    if (when == LATE) {
        assert_error(mu_checkpoint_load(&t->state, &m, t->tokenizer, &e), MU_STATUS_DATA, message);
        assert_error(mu_checkpoint_fall_back(t->state.mesh->world, m.path, &m, &e), MU_STATUS_DATA, message);
        assert_ok(mu_checkpoint_fall_back(t->state.mesh->world, "run", &m, &e));
    }
    assert_string_equal(m.path, "run/checkpoints/step-00000002");
    assert_ok(mu_checkpoint_load(&t->state, &m, t->tokenizer, &e));
    assert_true(mu_training_step(t, NULL).values.loss == loss);
    mu_error_set(&e, MU_STATUS_DATA, "nonsense");
    assert_error(mu_checkpoint_fall_back(t->state.mesh->world, "run", &m, &e), MU_STATUS_DATA,
                 "all checkpoints failed verification (2); the newest: nonsense");
    training_free(t);
}

/* Two good checkpoints, then one with valid hashes and invalid values: verify and resume reject it with the same
 * message, and a run resumes from the previous one as if it did not exist. */
static void values_have_ranges(void **state) {
    (void)state;
    static const char *const newest = "run/checkpoints/step-00000003";
    for (size_t i = 0; i < sizeof bad_state / sizeof *bad_state; i++) {
        mu_training *t = training_new("num_experts: 4, balance: [expert_bias], score_func: sigmoid");
        steps_and_save(t, 2);
        double loss = mu_training_step(t, NULL).values.loss;
        assert_ok(mu_checkpoint_save(&t->state, &t->cfg, &t->texts, &e));
        assert_ok(verify(newest));
        spoil(t, bad_state[i].what);
        assert_ok(mu_file_remove_tree(newest, &e));
        assert_ok(mu_checkpoint_save(&t->state, &t->cfg, &t->texts, &e));
        training_free(t);

        assert_error(verify(newest), MU_STATUS_DATA, bad_state[i].message);
        assert_non_null(strstr(e.text, "step-00000003/shard-0000.h5"));
        t = training_new("num_experts: 4, balance: [expert_bias], score_func: sigmoid");
        assert_error(load(t, newest), MU_STATUS_DATA, bad_state[i].message);
        training_free(t);
        goes_on_from_the_one_before(bad_state[i].when, bad_state[i].message, loss);
        assert_ok(mu_file_remove_tree("run", &e));
    }
}

/* Without expert_bias there is none, whatever the rate; what a run had before it switched it off is not kept. */
static void a_bias_that_nothing_made(void **state) {
    (void)state;
    mu_training *t = training_new("num_experts: 4");
    steps_and_save(t, 1);
    assert_ok(verify("run/checkpoints/step-00000001"));
    t->state.model->blocks[0].moe.bias[2] = 0.001;
    steps_and_save(t, 2);
    assert_error(verify("run/checkpoints/step-00000002"), MU_STATUS_DATA,
                 "/layers/0/mlp/gate/e_score_correction_bias[2] is 0.001, must be in [0, 0]");
    training_free(t);
    assert_ok(mu_file_remove_tree("run", &e));
}

/* A dense model has no experts to count, and the window is longer than the run, then shorter. */
static void sound_checkpoints_load(void **state) {
    (void)state;
    static const char *const moes[] = { "num_experts: 0", "num_experts: 4, num_shared_experts: 1", "num_experts: 2, moe_layer_freq: 2",
                                        "num_experts: 4, capacity_factor: 0.5, force_skew: true" };
    for (size_t i = 0; i < sizeof moes / sizeof *moes; i++) {
        mu_training *t = training_new(moes[i]);
        int64_t *counts = mu_alloc((size_t)(t->state.stats->window.layers * t->state.stats->window.experts) + 1, sizeof *counts);
        assert_int_equal(t->state.stats->window.length, MU_LOAD_WINDOW_DEFAULT);
        steps_and_save(t, 3);
        assert_ok(verify("run/checkpoints/step-00000003"));
        assert_ok(load(t, "run"));
        for (int64_t step = 3; step < 2 * t->state.stats->window.length; step++) {
            for (int j = 0; j < t->state.stats->window.layers * t->state.stats->window.experts; j++) counts[j] = j % t->state.stats->window.experts == step % t->state.stats->window.experts ? 32 : 0;
            mu_load_window_add(&t->state.stats->window, counts);
        }
        assert_ok(mu_load_window_check(&t->state.stats->window, 32, &e));
        free(counts);
        training_free(t);
        assert_ok(mu_file_remove_tree("run", &e));
    }
}

/* A run may resume with a longer or shorter window: it keeps the newest steps that fit both, and later steps
 * equal those of a run with this window from the start. Its checkpoints are valid, too. */
static void the_window_may_change(void **state) {
    (void)state;
    static const int64_t lengths[] = { MU_LOAD_WINDOW_DEFAULT, 20, 30, 21 };
    double losses[4] = { 0 };
    for (int i = 0; i < 4; i++) {
        char *moe = mu_format("num_experts: 4, balance: [expert_bias], score_func: sigmoid}\nstats: {window: %lld", (long long)lengths[i]);
        mu_training *t = training_new(moe);
        const mu_load_window *w = &t->state.stats->window;
        assert_int_equal(w->length, lengths[i]);
        if (i == 0) steps_and_save(t, 25);
        assert_ok(load(t, "run"));
        assert_int_equal(w->steps, 25);
        assert_int_equal(w->held, i == 0 ? 25 : 20);
        int64_t assignments = 0;
        for (int j = 0; j < 4; j++) assignments += w->total[j];
        assert_int_equal(assignments, 32 * w->held);
        losses[i] = mu_training_step(t, NULL).values.loss;
        assert_true(losses[i] == losses[0]);
        assert_int_equal(w->held, i == 0 ? 26 : i == 1 ? 20 : 21);
        training_free(t);                        /* the next window reads this one's checkpoint of the same step */
        t = training_new(moe);
        assert_ok(load(t, "run"));
        assert_ok(mu_file_remove_tree("run/checkpoints/step-00000025", &e));
        assert_ok(mu_checkpoint_save(&t->state, &t->cfg, &t->texts, &e));
        assert_ok(verify("run/checkpoints/step-00000025"));
        training_free(t);
        free(moe);
    }
    assert_ok(mu_file_remove_tree("run", &e));
}

/* ---------------------------------------------------------------- consistency of the manifest */

typedef void change(mu_manifest *m);
static void later_step(mu_manifest *m) { m->step = 4; }
static void step_beyond(mu_manifest *m) { m->step = INT64_MAX; }
static void other_ep(mu_manifest *m) { m->ep = 2; }
static void no_ranks(mu_manifest *m) { m->ranks = 0; }
static void other_dtype(mu_manifest *m) { strcpy(m->dtype, "i32"); }
static void fewer_tensors(mu_manifest *m) { m->n_tensors--; }
static void shard_twice(mu_manifest *m) {
    m->ep = m->ranks = 2, m->n_shards = 2;
    m->shards = mu_realloc(m->shards, 2, sizeof *m->shards);
    m->shards[1] = m->shards[0];
}
static void shard_elsewhere(mu_manifest *m) { strcpy(m->shards[0].name, "../x/shard-0000.h5"); }
static void config_says(mu_manifest *m, const char *from, const char *to) {
    char *at = strstr(m->config, from);
    assert_non_null(at);
    char *text = mu_format("%.*s%s%s", (int)(at - m->config), m->config, to, at + strlen(from));
    free(m->config);
    m->config = text;
}
static void other_seed(mu_manifest *m) { config_says(m, "seed: 7", "seed: 8"); }
static void larger_batch(mu_manifest *m) { config_says(m, "global_batch_size: 2", "global_batch_size: 4"); }
static void other_top_k(mu_manifest *m) { config_says(m, "top_k: 2", "top_k: 3"); }
static void short_fingerprint(mu_manifest *m) { m->fingerprint[31] = '\0'; }
static void no_fingerprint(mu_manifest *m) { m->fingerprint[5] = 'x'; }
static void no_hash(mu_manifest *m) { m->shards[0].hash[0] = 'X'; }
static void no_config(mu_manifest *m) { config_says(m, "num_layers: 2", "num_layers: two"); }
static void wide(mu_manifest *m) { config_says(m, "hidden_size: 8 ", "hidden_size: 8192 "); }
static void bomb(mu_manifest *m) {
    config_says(m, "num_layers: 2", "num_layers: 1024");
    config_says(m, "num_experts: 4", "num_experts: 65536");
}

static void manifests_that_hash_right(void **state) {
    (void)state;
    static const struct {
        change *change;
        const char *message;
    } cases[] = {
        { later_step, "/state/step[0] is 3, must be in [4, 4]" },
        { step_beyond, "manifest.json: step 9223372036854775807 is more than train.steps 40" },
        { other_ep, "manifest.json: a field is missing" },
        { no_ranks, "manifest.json: a field is missing" },
        { other_dtype, "manifest.json: dtype 'i32'" },
        { fewer_tensors, "manifest.json lists 44 tensors, but the model of its configuration has 45" },
        { shard_twice, "manifest.json: a field is missing" },
        { shard_elsewhere, "manifest.json: a field is missing" },
        { other_seed, "/state/seed[0] is 7, must be in [8, 8]" },
        { larger_batch, "loader state: 6 samples drawn, but 12 are expected" },
        { other_top_k, "MoE layer 0, slot 0: the counts of the experts do not add up to 48" },
        { short_fingerprint, "manifest.json: a field is missing" },
        { no_fingerprint, "manifest.json: a field is missing" },
        { no_hash, "manifest.json: a field is missing" },
        { no_config, "manifest.json: its configuration:" },
        { wide, "manifest.json: the shards have " },
        { bomb, "65536 in each MoE layer of 1024 layers make 2e+08 tensors (three per expert), more than 2^19" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mu_training *t = training_new("num_experts: 4");
        steps_and_save(t, 3);
        training_free(t);
        assert_int_equal(rename("run/checkpoints/step-00000003", "run/checkpoints/changed"), 0);
        mu_manifest m;
        assert_ok(mu_manifest_read(&m, "run/checkpoints/changed", &e));
        cases[i].change(&m);
        assert_ok(mu_manifest_write(&m, "run/checkpoints/changed", &e));
        mu_manifest_free(&m);
        assert_error(verify("run/checkpoints/changed"), MU_STATUS_DATA, cases[i].message);
        t = training_new("num_experts: 4");      /* resuming from it gives the same error, not 78 */
        assert_error(load(t, "run/checkpoints/changed"), MU_STATUS_DATA, cases[i].message);
        training_free(t);
        assert_ok(mu_file_remove_tree("run", &e));
    }
}

/* Reads a manifest with this first line and its valid hash. */
static mu_status read_line(mu_manifest *m, const char *line) {
    char hex[33];
    mu_hash128_hex(line, strlen(line), hex);
    char *both = mu_format("%s\n%s\n", line, hex);
    assert_ok(mu_file_make_dirs("line", &e));
    assert_ok(mu_file_replace("line/manifest.json", both, strlen(both), &e));
    free(both);
    mu_status status = mu_manifest_read(m, "line", &e);
    assert_ok(mu_file_remove_tree("line", &e));
    return status;
}

/* `text` with the first `from` replaced by `to`, heap. */
static char *changed(const char *text, const char *from, const char *to) {
    const char *at = strstr(text, from);
    if (!at) fail_msg("no %s in %s", from, text);
    return mu_format("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}

#define TEXT(x) #x
#define AS_TEXT(x) TEXT(x)
#define VERSION "\"version\":" AS_TEXT(MU_CHECKPOINT_VERSION) ","

/* Only version 1 has no val_split; messages do not mention library flags. */
static void manifests_as_text(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *message;        /* NULL: fine */
    } cases[] = {
        { "", "", NULL },
        { "\"val_split\":\"documents_by_hash\",", "", "manifest.json: a field is missing" },
        { VERSION, "\"version\":1,", NULL },
        { VERSION, "\"version\":999,", "versions 1 to " },
        { "\"val_split\":\"documents_by_hash\"", "\"val_split\":\"other\"", "manifest.json: a field is missing" },
        { "\"val_split\":\"documents_by_hash\"", "\"val_split\":null", "manifest.json: a field is missing" },
        { "muster-checkpoint", "muster\\u0000checkpoint", "line/manifest.json: a NUL character" },
    };
    mu_training *t = training_new("num_experts: 4");
    steps_and_save(t, 3);
    training_free(t);
    char *text;
    size_t bytes;
    assert_ok(mu_file_read("run/checkpoints/step-00000003/manifest.json", 1 << 20, &text, &bytes, &e));
    *strchr(text, '\n') = '\0';
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *other = changed(text, cases[i].from, cases[i].to);
        mu_manifest m;
        mu_status status = read_line(&m, other);
        if (!cases[i].message) assert_ok(status);
        else assert_error(status, MU_STATUS_DATA, cases[i].message);
        mu_manifest_free(&m);
        free(other);
    }
    char *before = changed(text, "documents_by_hash", "documents");
    mu_manifest m;
    assert_ok(read_line(&m, before));
    assert_int_equal(m.val_split, MU_VAL_DOCUMENTS);
    mu_manifest_free(&m);
    free(before);
    char *old = changed(text, VERSION, "\"version\":1,"), *older = changed(old, "\"val_split\":\"documents_by_hash\",", "");
    assert_ok(read_line(&m, older));
    assert_int_equal(m.val_split, MU_VAL_TAIL);
    assert_int_equal(m.cfg.train.steps, 40);    /* its configuration, read */
    mu_manifest_free(&m);
    free(older);
    free(old);
    free(text);
    assert_ok(mu_file_remove_tree("run", &e));
}

static char *repeated(const char *part, size_t n) {
    size_t length = strlen(part);
    char *text = mu_alloc(n * length + 3, 1);
    text[0] = '[';
    for (size_t i = 0; i < n; i++) memcpy(text + 1 + i * length, part, length);
    text[n * length] = ']';                     /* replaces the last comma */
    return text;
}

/* JSON with more values or objects than any checkpoint is not parsed: that would take gigabytes. */
static void a_manifest_of_many_values(void **state) {
    (void)state;
    static const struct {
        const char *part;
        size_t n;
    } cases[] = { { "[],", 4 << 20 }, { "1,", 1 << 20 }, { "{\"name\":\"shard-0000.h5\",\"bytes\":1,\"xxh3_128\":\"\"},", 100000 } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = repeated(cases[i].part, cases[i].n);
        mu_manifest m;
        assert_error(read_line(&m, text), MU_STATUS_DATA, "line/manifest.json: more values than");
        free(text);
    }
    char *text = repeated("\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\",", 700000);
    mu_manifest m;
    assert_error(read_line(&m, text), MU_STATUS_DATA, "line/manifest.json: 46900");
    free(text);
}

/* A file of another size than the manifest says is not read: this one is as large as a disk. */
static void a_shard_of_another_size(void **state) {
    (void)state;
    mu_training *t = training_new("num_experts: 4");
    steps_and_save(t, 1);
    training_free(t);
    assert_int_equal(truncate("run/checkpoints/step-00000001/shard-0000.h5", (off_t)1 << 40), 0);
    alarm(20);
    assert_error(verify("run/checkpoints/step-00000001"), MU_STATUS_DATA, "shard-0000.h5 is damaged: 1099511627776 bytes, the manifest says ");
    alarm(0);
    assert_ok(mu_file_remove_tree("run", &e));
}

static void not_plain_files(void **state) {
    (void)state;
    mu_manifest m;
    assert_ok(mu_file_make_dirs("pipe", &e));
    assert_int_equal(mkfifo("pipe/manifest.json", 0600), 0);
    alarm(20);
    assert_error(mu_manifest_read(&m, "pipe", &e), MU_STATUS_DATA, "pipe/manifest.json: is a pipe, not a plain file");
    alarm(0);
    assert_ok(mu_file_remove_tree("pipe", &e));
    assert_error(mu_manifest_read(&m, "pipe", &e), MU_STATUS_DATA, "pipe/manifest.json is missing");
}

/* ---------------------------------------------------------------- names */

static void names_format_back_to_themselves(void **state) {
    (void)state;
    static const struct {
        const char *path;
        int64_t step;           /* -1: not a checkpoint's name */
    } cases[] = {
        { "step-00000040", 40 }, { "a/b/step-00000000/", 0 }, { "step-123456789", 123456789 }, { "x/step-9223372036854775807//", INT64_MAX },
        { "step-40", -1 }, { "step-+0000005", -1 }, { "step-000000040", -1 }, { "step-0000000x", -1 }, { "step-00000040.tmp", -1 },
        { "step-00000040.aside", -1 }, { "step-", -1 }, { "step--0000040", -1 }, { " step-00000040", -1 }, { "step- 0000040", -1 },
        { "step-99999999999999999999", -1 }, { "", -1 }, { "/", -1 }, { "step-00000040/x", -1 },
        { "step-0000000000000000000000000000000000000000000000000000000040", -1 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t step = -1;
        bool good = mu_checkpoint_step(cases[i].path, &step);
        if (good != (cases[i].step >= 0) || (good && step != cases[i].step))
            fail_msg("%s: %d, %lld", cases[i].path, good, (long long)step);
    }
    char *path = mu_checkpoint_path("runs/x", 40);
    assert_string_equal(path, "runs/x/checkpoints/step-00000040");
    free(path);
}

static void make(const char *path) {
    if (path[strlen(path) - 1] == '/') assert_ok(mu_file_make_dirs(path, &e));
    else assert_ok(mu_file_replace(path, "a user's", 8, &e));
}

/* Similar names neither stop a run nor are removed; a copy under another name does not make pruning remove the original;
 * leftovers of a killed save are removed, unless they hold other files. */
static void only_what_a_save_made_is_removed(void **state) {
    (void)state;
    static const char *const users[] = {
        "run/checkpoints/step-99/", "run/checkpoints/step-+5/", "run/checkpoints/step-3", "run/checkpoints/best.tmp/",
        "run/checkpoints/step-7.tmp/manifest.json", "run/checkpoints/step-00000009.tmp.bak/",
        "run/checkpoints/step-00000008.tmp/notes", "run/checkpoints/step-00000008.tmp/shard-0000.h5",
        "run/checkpoints/step-00000002/notes", "run/checkpoints/step-00000006.tmp.aside/mine", "run/routing.h5.tmp/mine",
        "run/checkpoints/step-00000001/shard-0001.h5", "elsewhere/manifest.json", "elsewhere/shard-0000.h5",
    };
    static const char *const links[] = { "run/checkpoints/step-00000000", "run/checkpoints/step-00000004.tmp",
                                         "run/checkpoints/step-00000009.tmp" };
    struct stat st;
    enum { N = sizeof users / sizeof *users };
    mu_training *t = training_new("num_experts: 4");
    steps_and_save(t, 1);
    steps_and_save(t, 2);
    for (int i = 0; i < N; i++) {
        char *parent = mu_format("%.*s", (int)(strrchr(users[i], '/') - users[i]), users[i]);
        assert_ok(mu_file_make_dirs(parent, &e));
        free(parent);
        make(users[i]);
    }
    assert_int_equal(rename("run/checkpoints/step-00000006.tmp.aside", "run/checkpoints/step-00000006.tmp"), 0);
    for (int i = 0; i < 2; i++) assert_int_equal(symlink("../../elsewhere", links[i]), 0);
    assert_int_equal(symlink("nowhere", links[2]), 0);
    assert_ok(mu_file_make_dirs("run/checkpoints/step-00000005.tmp", &e));     /* of a killed save */
    make("run/checkpoints/step-00000005.tmp/shard-0001.h5");
    make("run/checkpoints/step-00000005.tmp/manifest.json.tmp-12-3");
    for (int64_t step = 3; step <= 7; step++) steps_and_save(t, step);
    for (int i = 0; i < N; i++)
        if (!mu_file_exists(users[i])) fail_msg("%s is gone", users[i]);
    assert_true(!lstat(links[0], &st) && S_ISLNK(st.st_mode) && !lstat(links[2], &st) && S_ISLNK(st.st_mode));
    assert_true(!lstat("run/checkpoints/step-00000004.tmp.aside", &st) && S_ISLNK(st.st_mode));   /* blocked a save */
    int64_t *steps;
    assert_int_equal(mu_checkpoint_list("run", &steps), 6);      /* keep: 3, 2 and 1 with what is the user's, and a link */
    static const int64_t wanted[] = { 7, 6, 5, 2, 1, 0 };
    assert_memory_equal(steps, wanted, sizeof wanted);
    free(steps);
    assert_false(mu_file_exists("run/checkpoints/step-00000005.tmp"));
    assert_false(mu_file_exists("run/checkpoints/step-00000006.tmp"));
    assert_ok(load(t, "run"));
    training_free(t);
    assert_ok(mu_file_remove_tree("run", &e));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_have_ranges),         cmocka_unit_test(sound_checkpoints_load), cmocka_unit_test(the_window_may_change),
        cmocka_unit_test(a_bias_that_nothing_made),
        cmocka_unit_test(manifests_that_hash_right),  cmocka_unit_test(manifests_as_text),
        cmocka_unit_test(a_manifest_of_many_values),  cmocka_unit_test(a_shard_of_another_size),
        cmocka_unit_test(not_plain_files),            cmocka_unit_test(names_format_back_to_themselves),
        cmocka_unit_test(only_what_a_save_made_is_removed),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
