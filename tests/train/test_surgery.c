/* test_surgery.c - experts as units: taken from a run or its checkpoint, archived and read back, put elsewhere, frozen, held near what they
 * computed. */
#include "train/surgery.h"
#include "train/training_run.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

static mu_error e;
static char folder[] = "surgery-XXXXXX";
static mu_training *t;

static void assert_ok(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

static void assert_error(mu_status status, mu_status expected, const char *text) {
    if (status != expected || e.status != expected) fail_msg("status %d, not %d: %s", status, expected, e.text);
    if (!strstr(e.text, text)) fail_msg("no \"%s\" in: %s", text, e.text);
}

static int open_run(void **state) {
    (void)state;
    t = training_in_folder(folder,
        "run: {dir: run, seed: 7}\n"
        "model: {hidden_size: 8, num_layers: 3, num_heads: 2, max_seq_len: 8}\n"
        "data: {train: [{domain: a, path: synthetic}, {domain: b, path: synthetic}]}\n"
        "train: {steps: 400, global_batch_size: 4, seq_len: 8, threads: 1}\n"
        "checkpoint: {keep: 100}\n"
        "moe: {num_experts: 4, top_k: 2, moe_ffn_hidden_size: 4, first_k_dense: 1, balance: [expert_bias], score_func: sigmoid}\n", &e);
    return t ? 0 : -1;
}

static int close_run(void **state) {
    (void)state;
    return training_free_folder(t, folder);
}

static void train_to(int64_t step) {
    while (t->state.step < step) assert_true(mu_training_step(t, NULL).finite);
}

static mu_evaluation evaluation(void) {
    return (mu_evaluation){ t->state.model, t->tape, &t->texts, t->state.mesh->batch, 4, { NULL, 1 }, NULL, NULL };
}

/* A unit of the checkpoint of this step. */
static mu_expert_unit read_unit(int64_t step, int layer, int expert) {
    mu_manifest m;
    mu_checkpoint_arrays a;
    mu_expert_unit u;
    char *path = mu_checkpoint_path("run", step);
    assert_ok(mu_manifest_read(&m, path, &e));
    mu_checkpoint_arrays_open(&a, &m);
    assert_ok(mu_expert_unit_read(&u, &a, layer, expert, &e));
    assert_ok(mu_checkpoint_arrays_close(&a, MU_STATUS_OK, &e));
    mu_manifest_free(&m);
    free(path);
    return u;
}

static void a_run_and_its_checkpoint_have_the_same_units(void **state) {
    (void)state;
    train_to(3);
    assert_ok(mu_checkpoint_save(&t->state, &t->cfg, &t->texts, &e));
    double biases = 0, moments = 0;
    for (int layer = 1; layer < 3; layer++)
        for (int expert = 0; expert < 4; expert++) {
            mu_expert_unit a, b = read_unit(3, layer, expert);
            mu_expert_unit_take(&a, &t->state, layer, expert);
            assert_true(mu_expert_unit_equal(&a, &b));
            assert_int_equal(a.steps[MU_PART_ROUTER], 3);
            biases += fabs(a.bias), moments += a.slots[1][MU_PART_DOWN][0];
            b.values[MU_PART_DOWN][31] += 1e-6;
            assert_false(mu_expert_unit_equal(&a, &b));
            mu_expert_unit_free(&a);
            mu_expert_unit_free(&b);
        }
    assert_true(biases > 0 && moments > 0);
}

/* ---------------------------------------------------------------- archives */

static mu_archive record(int64_t step, double K) {
    mu_archive a = { 0 };
    mu_evaluation ev = evaluation();
    mu_expert_unit_take(&a.unit, &t->state, 2, 1);
    mu_archive_describe(&a, &t->state, &t->cfg, 1, 1);
    a.step = step, a.carried = K;
    snprintf(a.carries, sizeof a.carries, "a");
    mu_archive_measure(&a, &ev);
    return a;
}

static void write_record(const char *to, int64_t step, double K) {
    mu_archive a = record(step, K);
    assert_ok(mu_archive_write(&a, to, &e));
    mu_archive_free(&a);
}

static void a_record_is_read_back_in_every_bit(void **state) {
    (void)state;
    mu_archive a = record(3, 0.25), b;
    assert_true(a.samples.n > 8 && a.n_domains == 2 && a.fisher.n == MU_FISHER_SEQUENCES && a.samples.n_sequences >= MU_FISHER_SEQUENCES);
    assert_ok(mu_archive_write(&a, "archive", &e));
    assert_string_equal(a.path, "archive/layer_02/expert_001/step-00000003.h5");
    assert_ok(mu_archive_read(&b, a.path, &e));
    assert_true(mu_expert_unit_equal(&a.unit, &b.unit));
    assert_true(b.unit.layer == 2 && b.unit.expert == 1 && b.step == 3 && b.carried == 0.25 && b.samples.n == a.samples.n);
    assert_string_equal(b.state, a.state);
    assert_string_equal(b.carries, "a");
    assert_string_equal(b.names[1], "b");
    assert_memory_equal(a.samples.h, b.samples.h, (size_t)(a.samples.n * 8) * sizeof(double));
    for (int part = 0; part < MU_PARTS; part++)
        assert_memory_equal(a.fisher.values[part], b.fisher.values[part], (size_t)mu_expert_unit_count(&a.unit, part) * sizeof(double));
    double *y = mu_alloc((size_t)(a.samples.n * 8), sizeof *y);
    mu_expert_unit_apply(&b.unit, b.samples.n, b.samples.h, y);
    assert_true(mu_relative_distance(y, b.samples.y, b.samples.n * 8) == 0);
    mu_evaluation ev = evaluation();
    double *again = mu_expert_samples_again(&b.samples, &ev, 2);
    assert_memory_equal(again, b.samples.h, (size_t)(b.samples.n * 8) * sizeof(double));
    free(again);
    free(y);
    mu_archive_free(&a);
    mu_archive_free(&b);
}

static void an_expert_without_tokens_is_archived(void **state) {
    (void)state;
    mu_archive a = record(4, 0), b;
    a.samples.n = a.samples.n_sequences = 0;
    assert_ok(mu_archive_write(&a, "idle", &e));
    assert_ok(mu_archive_read(&b, a.path, &e));
    assert_true(mu_expert_unit_equal(&a.unit, &b.unit) && b.samples.n == 0);
    mu_archive_free(&a);
    mu_archive_free(&b);
}

/* The squared derivative of each sequence's loss, by finite differences, over its tokens; their mean. */
static void fisher_information_is_that_of_the_losses(void **state) {
    (void)state;
    enum { S = 8, PART = MU_PART_DOWN, N = MU_FISHER_SEQUENCES };
    const float step = 0.02f;
    mu_evaluation ev = evaluation();
    mu_expert_unit u;
    mu_expert_unit_take(&u, &t->state, 1, 2);
    mu_expert_fisher f = mu_expert_fisher_estimate(&ev, 0, &u);
    assert_int_equal(f.n, N);
    int64_t best = 0;
    for (int64_t i = 0; i < mu_expert_unit_count(&u, PART); i++)
        if (f.values[PART][i] > f.values[PART][best]) best = i;
    float *w = mu_unit_data(mu_expert_unit_find(&t->state.model->blocks[1].moe, PART, 2)), was;
    double sums[2][N + 1] = { { 0 } }, F = 0;
    mu_domain_loss losses[2];
    memcpy(&was, w + best, sizeof was);
    for (int side = 0; side < 2; side++) {
        w[best] = was + (side ? step : -step);
        mu_params_refresh(t->state.model->params);
        for (int n = 1; n <= N; n++) mu_evaluate(&ev, n, losses), sums[side][n] = losses[0].ce * n * S;
    }
    w[best] = was;
    mu_params_refresh(t->state.model->params);
    for (int n = 1; n <= N; n++) {
        double slope = (sums[1][n] - sums[1][n - 1] - sums[0][n] + sums[0][n - 1]) / (2 * (double)step);
        F += slope * slope / S / N;
    }
    if (!(F > 0 && fabs(f.values[PART][best] - F) <= 0.01 * F)) fail_msg("F is %g, by finite differences %g", f.values[PART][best], F);
    assert_true(mu_expert_fisher_share(&f, &u) > 0 && mu_expert_fisher_share(&f, &u) < 0.9);
    for (int part = 0; part < MU_PARTS; part++)
        for (int64_t i = 0; i < mu_expert_unit_count(&u, part); i++) f.values[part][i] = part == PART && i < 5;     /* 104 values */
    assert_true(mu_expert_fisher_share(&f, &u) == 5.0 / 104);
    mu_expert_fisher_free(&f);
    assert_true(mu_expert_fisher_share(&f, &u) == 0);
    mu_expert_unit_free(&u);
}

static void a_record_of_version_1_is_read(void **state) {
    (void)state;
    mu_archive a;
    assert_ok(mu_archive_read(&a, MUSTER_FIXTURES "/archived-expert-v1.h5", &e));
    assert_true(a.unit.layer == 2 && a.unit.expert == 1 && a.step == 20 && a.samples.n == 256 && a.fisher.n == 0);
    double *y = mu_alloc((size_t)(a.samples.n * a.unit.D), sizeof *y);
    mu_expert_unit_apply(&a.unit, a.samples.n, a.samples.h, y);
    assert_true(mu_relative_distance(y, a.samples.y, a.samples.n * a.unit.D) < 1e-12);
    free(y);
    mu_archive_free(&a);
}

static void the_best_and_the_last_two_are_kept(void **state) {
    (void)state;
    static const double K[] = { 0.5, 0.9, 0.1, 0.9, 0.2, 0.3, 0.1 };
    int64_t *steps;
    for (int i = 0; i < 7; i++) write_record("kept", i + 1, K[i]);
    assert_int_equal(mu_archive_list("kept", 2, 1, &steps), 3);
    assert_true(steps[0] == 7 && steps[1] == 6 && steps[2] == 4);
    char *best = mu_archive_best("kept", 2, 1);
    assert_string_equal(best, "kept/layer_02/expert_001/step-00000004.h5");
    free(best);
    free(steps);
}

static void a_damaged_record_is_refused(void **state) {
    (void)state;
    struct stat st;
    char path[] = "archive/layer_02/expert_001/step-00000003.h5";
    mu_archive a;
    assert_int_equal(stat(path, &st), 0);
    for (int64_t at = 4; at < 10; at++) {       /* somewhere in the middle, at several places */
        char *text;
        size_t n;
        assert_ok(mu_file_read(path, 1 << 20, &text, &n, &e));
        text[(size_t)st.st_size * (size_t)at / 10] ^= 0x10;
        assert_ok(mu_file_replace("damaged.h5", text, n, &e));
        mu_status status = mu_archive_read(&a, "damaged.h5", &e);
        if (status == MU_STATUS_OK) { /* a byte that nothing uses: then nothing has changed */
            mu_archive whole;
            assert_ok(mu_archive_read(&whole, path, &e));
            assert_true(mu_expert_unit_equal(&a.unit, &whole.unit));
            mu_archive_free(&whole);
        } else assert_int_equal(status, MU_STATUS_DATA);
        mu_archive_free(&a);
        free(text);
    }
    assert_ok(mu_file_replace("damaged.h5", "no HDF5", 7, &e));
    assert_error(mu_archive_read(&a, "damaged.h5", &e), MU_STATUS_DATA, "damaged.h5");
    mu_archive_free(&a);
    assert_error(mu_archive_read(&a, "nowhere.h5", &e), MU_STATUS_NOINPUT, "nowhere.h5");
    mu_archive_free(&a);
}

/* ---------------------------------------------------------------- surgery */

/* What the unit of one expert is in a result, and what every other array was. */
static void only_the_slot_changes(void **state) {
    (void)state;
    mu_manifest m, made;
    mu_surgery s;
    bool found;
    mu_expert_unit from = read_unit(3, 1, 2), before = read_unit(3, 1, 0), other = read_unit(3, 1, 3);
    assert_ok(mu_checkpoint_find(t->state.mesh->batch, "run", &m, &found, &e));
    assert_ok(mu_surgery_open(&s, &m, "out", &e));
    mu_expert_unit put = mu_expert_unit_copy(&from);
    mu_expert_unit_restart(&put);
    put.expert = 0;
    s.shape.t.stats->health.reseeded[0] = 3;
    mu_surgery_put(&s, put);
    mu_surgery_note(&s, "restore", 1, 0, "expert 2");
    assert_ok(mu_surgery_write(&s, "out", &e));
    assert_ok(mu_surgery_close(&s, MU_STATUS_OK, &e));
    assert_ok(mu_manifest_read(&made, "out/checkpoints/step-00000003", &e));
    assert_int_equal(made.edits.n, 1);
    assert_string_equal(made.edits.list[0].detail, "expert 2");
    assert_string_equal(made.edits.list[0].manifest_hash, m.hash);
    mu_checkpoint_arrays a;
    mu_expert_unit now, still;
    mu_checkpoint_arrays_open(&a, &made);
    assert_ok(mu_expert_unit_read(&now, &a, 1, 0, &e));
    assert_ok(mu_expert_unit_read(&still, &a, 1, 3, &e));
    assert_ok(mu_checkpoint_arrays_close(&a, MU_STATUS_OK, &e));
    for (int part = 0; part < MU_PARTS; part++)
        assert_memory_equal(now.values[part], from.values[part], (size_t)mu_expert_unit_count(&now, part) * sizeof(double));
    assert_true(now.bias == from.bias && now.steps[MU_PART_UP] == 0 && now.slots[1][MU_PART_UP][0] == 0 && now.slots[0][MU_PART_ROUTER][0] == 0);
    assert_int_equal(now.steps[MU_PART_ROUTER], before.steps[MU_PART_ROUTER]);
    assert_true(mu_expert_unit_equal(&still, &other));
    mu_expert_unit_free(&now);
    mu_expert_unit_free(&still);
    mu_expert_unit_free(&from);
    mu_expert_unit_free(&before);
    mu_expert_unit_free(&other);
    mu_manifest_free(&m);
    mu_manifest_free(&made);
}

static void a_frozen_expert_does_not_change(void **state) {
    (void)state;
    mu_expert_unit before, after, others, moved;
    mu_expert_health *h = &t->state.stats->health;
    mu_expert_unit_take(&before, &t->state, 2, 1);
    mu_expert_unit_take(&others, &t->state, 2, 2);
    h->frozen[1 * 4 + 1] = MU_FROZEN_NOW;
    mu_train_state_freeze(&t->state);
    mu_training_protect(t, NULL);
    train_to(t->state.step + 5);
    mu_expert_unit_take(&after, &t->state, 2, 1);
    mu_expert_unit_take(&moved, &t->state, 2, 2);
    assert_true(before.bias == after.bias && moved.bias != others.bias);
    for (int part = 0; part < MU_PARTS; part++) {
        size_t n = (size_t)mu_expert_unit_count(&before, part) * sizeof(double);
        assert_memory_equal(before.values[part], after.values[part], n);
        assert_memory_not_equal(others.values[part], moved.values[part], n);
    }
    assert_ok(mu_checkpoint_save(&t->state, &t->cfg, &t->texts, &e));   /* fewer updates than steps with tokens are in order */
    h->frozen[1 * 4 + 1] = MU_FROZEN_NEVER;
    mu_manifest m;
    bool found;
    assert_ok(mu_checkpoint_find(t->state.mesh->batch, "run", &m, &found, &e));
    assert_ok(mu_checkpoint_load(&t->state, &m, t->tokenizer, &e));
    assert_int_equal(h->frozen[1 * 4 + 1], MU_FROZEN_NOW);
    assert_true(mu_params_find(t->state.model->params, "/layers/2/mlp/experts/1/up_proj/weight")->frozen);
    h->frozen[1 * 4 + 1] = MU_FROZEN_PAST;
    mu_train_state_freeze(&t->state);
    mu_training_protect(t, NULL);
    train_to(t->state.step + 2);
    assert_ok(mu_checkpoint_save(&t->state, &t->cfg, &t->texts, &e));
    mu_manifest_free(&m);
    assert_ok(mu_checkpoint_find(t->state.mesh->batch, "run", &m, &found, &e));
    assert_int_equal(m.step, t->state.step);
    mu_manifest_free(&m);
    mu_expert_unit_free(&moved);
    mu_expert_unit_take(&moved, &t->state, 2, 1);
    assert_memory_not_equal(before.values[MU_PART_ROUTER], moved.values[MU_PART_ROUTER], 8 * sizeof(double));
    mu_expert_unit_free(&before);
    mu_expert_unit_free(&after);
    mu_expert_unit_free(&others);
    mu_expert_unit_free(&moved);
}

/* ---------------------------------------------------------------- held near what it computed */

static void the_pull_has_the_gradient_of_its_loss(void **state) {
    (void)state;
    mu_expert_unit u;
    mu_evaluation ev = evaluation();
    mu_expert_unit_take(&u, &t->state, 1, 0);
    mu_expert_samples p = mu_expert_samples_collect(&ev, -1, &u);
    assert_true(p.n > 2);
    double *grads[MU_PARTS], *none[MU_PARTS];
    for (int part = 0; part < MU_PARTS; part++) {
        grads[part] = mu_alloc((size_t)mu_expert_unit_count(&u, part), sizeof(double));
        none[part] = mu_alloc((size_t)mu_expert_unit_count(&u, part), sizeof(double));
        for (int64_t i = 0; i < mu_expert_unit_count(&u, part); i++) u.values[part][i] = 20 * u.values[part][i] + 0.1 * (double)(i % 5);
    }
    assert_true(mu_expert_unit_pull(&u, &p, 0.1, grads) > 0);
    for (int part = MU_PART_GATE; part < MU_PARTS; part++)
        for (int64_t i = 0; i < mu_expert_unit_count(&u, part); i += 3) {
            const double step = 1e-5, was = u.values[part][i];
            u.values[part][i] = was + step;
            double above = mu_expert_unit_pull(&u, &p, 0.1, none);
            u.values[part][i] = was - step;
            double below = mu_expert_unit_pull(&u, &p, 0.1, none);
            u.values[part][i] = was;
            assert_true(fabs((above - below) / (2 * step) - grads[part][i]) <= 1e-6 * (1 + fabs(grads[part][i])));
        }
    for (int part = 0; part < MU_PARTS; part++) free(grads[part]), free(none[part]);
    mu_expert_samples_free(&p);
    mu_expert_unit_free(&u);
}

static void the_principal_axis_is_found(void **state) {
    (void)state;
    double rows[6][3];
    for (int i = 0; i < 6; i++) rows[i][0] = 5 + 0.1 * (i % 2), rows[i][1] = i, rows[i][2] = -2 * i;
    double *axis = mu_principal_axis(rows[0], 6, 3, 1);
    assert_true(fabs(axis[0]) < 0.02 && fabs(fabs(axis[2]) - 2 / sqrt(5)) < 1e-3 && axis[1] * axis[2] < 0);
    free(axis);
    axis = mu_principal_axis(NULL, 0, 3, 1);
    assert_true(fabs(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2] - 1) < 1e-12);
    free(axis);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_and_its_checkpoint_have_the_same_units),
        cmocka_unit_test(a_record_is_read_back_in_every_bit),
        cmocka_unit_test(an_expert_without_tokens_is_archived),
        cmocka_unit_test(fisher_information_is_that_of_the_losses),
        cmocka_unit_test(a_record_of_version_1_is_read),
        cmocka_unit_test(the_best_and_the_last_two_are_kept),
        cmocka_unit_test(a_damaged_record_is_refused),
        cmocka_unit_test(only_the_slot_changes),
        cmocka_unit_test(a_frozen_expert_does_not_change),
        cmocka_unit_test(the_pull_has_the_gradient_of_its_loss),
        cmocka_unit_test(the_principal_axis_is_found),
    };
    return cmocka_run_group_tests(tests, open_run, close_run);
}
