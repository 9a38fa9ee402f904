/* mpi_groups.c - a world of two batch groups: each trains a model of its own into a run folder of its own, for another number of
 * steps, and writes and finds its checkpoints. Code that takes the world for the ranks that share a batch would wait forever, sum
 * over both, or leave the files of the second group unwritten. */
#include "mpi_check.h"
#include "train/run_view.h"
#include "train/training.h"

#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SECONDS = 120 };                     /* then a rank that waits forever ends all */
static char folder[] = "groups-XXXXXX";
static mu_error e;

static void assert_ok(mu_status status) { check(status == MU_STATUS_OK, "status %d: %s", status, e.text); }

/* Trains 2 steps, or 5 in the second group; evaluations and checkpoints are at different steps, too. */
static int last_step(int group) { return 2 + 3 * group; }

static void open_run(mu_training *t, const char *dir, int group, int ep, mu_mesh *mesh) {
    *t = (mu_training){ 0 };
    char *text = mu_format("run: {dir: %s, seed: %d}\n"
                           "model: {hidden_size: 16, num_layers: 2, num_heads: 2, max_seq_len: 16}\n"
                           "moe: {num_experts: 4, top_k: 2, moe_ffn_hidden_size: 8, balance: global_aux_loss}\n"
                           "data: {train: [{domain: a, path: synthetic}, {domain: b, path: synthetic}]}\n"
                           "parallel: {ep: %d}\n"
                           "train: {steps: %d, global_batch_size: 4, micro_batch_size: 1, seq_len: 16, threads: 1, reproducible: true, eval_every: %d, eval_sequences: 2}\n"
                           "checkpoint: {every: %d}\n"
                           "log: {every: 1, progress: quiet}\n", dir, 1 + group, ep, last_step(group), 2 - group, 1 + group);
    assert_ok(mu_config_load_text(&t->cfg, "test", text, 0, NULL, &e));
    assert_ok(mu_training_open(t, mesh, MU_VAL_DOCUMENTS_BY_HASH, &e));
    free(text);
}

/* As `muster train` does for a new run. Collective over the batch group. */
static void train(mu_training *t) {
    mu_lock *lock = NULL;
    mu_recorder *rec;
    assert_ok(mu_run_claim(&t->cfg, t->state.mesh, &lock, &e));
    assert_ok(mu_run_describe(&t->cfg, t->dev, &t->texts.corpus, &t->state, 1, (char *[]){ "test" }, &e));
    assert_ok(mu_recorder_open(&rec, t, lock, -1, &e));
    assert_ok(mu_training_loop(t, rec, NULL, &e));
    mu_recorder_close(rec);
    mu_lock_release(lock);
}

/* Do the lines of both runs agree in all but times and memory? */
static void compare_lines(const char *a, const char *b) {
    mu_run_view v[2];
    mu_run_metrics m[2];
    int lines = 0;
    for (int i = 0; i < 2; i++) {
        assert_ok(mu_run_view_open(&v[i], i ? b : a, &e));
        assert_ok(mu_run_metrics_open(&m[i], &v[i], &e));
    }
    for (; mu_run_metrics_next(&m[0]); lines++) {
        const char *key;
        json_t *value;
        check(mu_run_metrics_next(&m[1]) && m[0].step == m[1].step, "%s has fewer lines", b);
        json_object_foreach(m[0].line, key, value)
            if (strncmp(key, "perf/", 5) && strncmp(key, "mem/", 4) && strcmp(key, "stats/seconds_share"))
                check(json_equal(value, json_object_get(m[1].line, key)), "step %lld: %s differs", (long long)m[0].step, key);
    }
    check(lines > 0 && !mu_run_metrics_next(&m[1]), "%s has more lines", b);
    for (int i = 0; i < 2; i++) {
        check(v[i].state == MU_RUN_FINISHED, "%s is %s", v[i].dir, mu_run_state_name(v[i].state));
        assert_ok(mu_run_metrics_close(&m[i], MU_STATUS_OK, &e));
        mu_run_view_close(&v[i]);
    }
}

/* One rank alone trains the same, loads the checkpoint of the group, and has the same next step. Local. */
static void compare_with_one_rank(const char *dir, int group, int ep, int ranks) {
    mu_manifest m = { 0 };
    bool found = false;
    char *alone = mu_format("%s-alone", dir);
    mu_mesh *mesh[] = { mu_mesh_alone(), mu_mesh_alone() };
    mu_training t, loaded;
    open_run(&t, alone, group, 1, mesh[0]);
    open_run(&loaded, "unused", group, 1, mesh[1]);
    train(&t);
    compare_lines(alone, dir);
    assert_ok(mu_checkpoint_find(mesh[1]->batch, dir, &m, &found, &e));
    check(found && m.step == last_step(group) && m.ranks == ranks && m.ep == ep && m.n_shards == ep && m.cfg.run.seed == 1 + group,
          "group %d: step %lld, %d ranks, ep %d, %d shards", group, (long long)m.step, m.ranks, m.ep, m.n_shards);
    assert_ok(mu_checkpoint_load(&loaded.state, &m, loaded.tokenizer, &e));
    mu_step_result a = mu_training_step(&t, NULL), b = mu_training_step(&loaded, NULL);
    check(a.values.loss == b.values.loss && a.values.grad_norm == b.values.grad_norm, "loss %.17g, %.17g after loading", a.values.loss,
          b.values.loss);
    mu_training_close(&t);
    mu_training_close(&loaded);
    for (int i = 0; i < 2; i++) mu_mesh_close(mesh[i]);
    mu_manifest_free(&m);
    free(alone);
}

static void try(int groups, int ep) {
    mu_mesh *mesh = mu_mesh_open_groups(NULL, groups, ep);
    int group = mesh->world->rank / mesh->batch->size;
    check(mesh->batch->size * groups == mesh->world->size && mesh->dp * ep == mesh->batch->size, "%d of %d ranks, dp %d x ep %d",
          mesh->batch->size, mesh->world->size, mesh->dp, ep);
    char *dir = mu_format("%s/group-%d-ep-%d", folder, group, ep);
    mu_training t;
    open_run(&t, dir, group, ep, mesh);
    train(&t);
    if (mesh->batch->rank == 0) compare_with_one_rank(dir, group, ep, mesh->batch->size);
    mu_training_close(&t);
    mu_mesh_close(mesh);
    free(dir);
}

static void groups_train_their_own_models(void **state) {
    (void)state;
    mu_comm *world = mu_comm_new(NULL);
    int size = world->size, groups = size > 1 ? 2 : 1;
    alarm(SECONDS);
    if (world->rank == 0) check(mkdtemp(folder), "no folder");
    mu_broadcast(world, 0, folder, sizeof folder);
    for (int ep = 1; ep <= size / groups; ep *= 2) try(groups, ep);
    mu_barrier(world);
    if (world->rank == 0) assert_ok(mu_file_remove_tree(folder, &e));
    mu_comm_free(world);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(groups_train_their_own_models) };
    mpi_tests_begin(&argc, &argv);
    return mpi_tests_end(cmocka_run_group_tests(tests, NULL, NULL));
}
