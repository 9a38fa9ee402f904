/* mpi_units.c - an expert of a run is the same unit on every rank, whichever holds it, and with any ep the one in the checkpoint; and so are its
 * samples and its Fisher information. Put back it is what it was; re-seeded it is half of its donor. */
#include "mpi_check.h"
#include "train/surgery.h"
#include "train/training.h"

#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "units-XXXXXX";
static mu_error e;

static void assert_ok(mu_status status) { check(status == MU_STATUS_OK, "status %d: %s", status, e.text); }

/* A figure of each part. */
static void fisher_sums(const mu_evaluation *ev, const mu_expert_unit *u, double sums[MU_PARTS]) {
    mu_expert_fisher f = mu_expert_fisher_estimate(ev, 1, u);
    for (int part = 0; part < MU_PARTS; part++) {
        sums[part] = 0;
        for (int64_t i = 0; i < mu_expert_unit_count(u, part); i++) sums[part] += (double)(1 + i % 7) * f.values[part][i];
    }
    mu_expert_fisher_free(&f);
}

/* Fisher information is the same on every rank, and with any ep what one rank alone finds. */
static void compare_fisher(const mu_training *t, const mu_evaluation *ev, const mu_expert_unit *u) {
    static double known[2][4][MU_PARTS];
    double *alone = known[u->layer][u->expert], sums[MU_PARTS], first[MU_PARTS];
    if (t->cfg.parallel.ep == 1) {
        mu_mesh *one = mu_mesh_alone();
        mu_evaluation mine = *ev;
        mine.batch = one->batch;
        fisher_sums(&mine, u, alone);
        mu_mesh_close(one);
    }
    fisher_sums(ev, u, sums);
    memcpy(first, sums, sizeof first);
    mu_broadcast(t->state.mesh->world, 0, first, sizeof first);
    check(!memcmp(first, sums, sizeof first), "layer %d, expert %d: other Fisher information than rank 0", u->layer, u->expert);
    for (int part = 0; part < MU_PARTS; part++)
        check(sums[part] > 0 && fabs(sums[part] - alone[part]) <= 1e-3 * alone[part], "layer %d, expert %d, part %d: Fisher information %g, alone %g",
              u->layer, u->expert, part, sums[part], alone[part]);
}

static void compare_unit(const mu_training *t, mu_checkpoint_arrays *a, int layer, int expert) {
    mu_expert_unit taken, read;
    mu_comm *world = t->state.mesh->world;
    mu_evaluation ev = { t->state.model, t->tape, &t->texts, t->state.mesh->batch, 4, { NULL, 1 }, NULL, NULL };
    mu_expert_unit_take(&taken, &t->state, layer, expert);
    assert_ok(mu_expert_unit_read(&read, a, layer, expert, &e));
    check(mu_expert_unit_equal(&taken, &read), "layer %d, expert %d: not the unit of the checkpoint", layer, expert);
    check(taken.steps[MU_PART_ROUTER] == 3, "%lld updates of the router", (long long)taken.steps[MU_PART_ROUTER]);
    mu_expert_samples p = mu_expert_samples_collect(&ev, 1, &taken);
    char mine[33], hex[33];
    mu_hash128_hex(p.h, (size_t)(p.n * p.D) * sizeof *p.h, mine);
    memcpy(hex, mine, sizeof hex);
    mu_broadcast(world, 0, hex, sizeof hex);
    check(!strcmp(mine, hex), "layer %d, expert %d: other samples than rank 0", layer, expert);
    if (expert == 2) compare_fisher(t, &ev, &taken);      /* one of each layer: many collectives */
    mu_expert_samples_free(&p);
    mu_expert_unit_free(&taken);
    mu_expert_unit_free(&read);
}

/* A frozen expert, and with protect.dormant_lr 0 a protected dormant one, stay as they are on every rank, whichever owns their rows of the router; others
 * move. */
static void freeze(mu_training *t) {
    enum { LAYER = 1, DORMANT = 1, FROZEN, OTHER, N = 3 };
    mu_expert_unit before[N], after[N];
    t->state.stats->health.frozen[LAYER * 4 + FROZEN] = MU_FROZEN_NOW;
    t->state.stats->health.state[LAYER * 4 + DORMANT] = MU_EXPERT_DORMANT, t->state.stats->health.carried[LAYER * 4 + DORMANT] = 1;
    mu_train_state_freeze(&t->state);
    mu_training_protect(t, NULL);
    for (int i = 0; i < N; i++) mu_expert_unit_take(&before[i], &t->state, LAYER, DORMANT + i);
    for (int i = 0; i < 3; i++) check(mu_training_step(t, NULL).finite, "frozen, step %d", i);
    for (int i = 0; i < N; i++) mu_expert_unit_take(&after[i], &t->state, LAYER, DORMANT + i);
    for (int i = 0; i < N; i++)
        for (int part = 0; part < MU_PARTS; part++) {
            size_t n = (size_t)mu_expert_unit_count(&before[i], part) * sizeof(double);
            bool same = !memcmp(before[i].values[part], after[i].values[part], n), held = DORMANT + i != OTHER;
            check(same == held, "part %d of expert %d %s", part, DORMANT + i, held ? "changed" : "did not change");
        }
    for (int i = 0; i < OTHER - DORMANT; i++) check(before[i].bias == after[i].bias, "the bias of expert %d changed", DORMANT + i);
    for (int i = 0; i < N; i++) mu_expert_unit_free(&before[i]), mu_expert_unit_free(&after[i]);
}

/* Every value, in the order of layers and experts. */
static void take_all(const mu_training *t, mu_expert_unit units[8]) {
    for (int i = 0; i < 8; i++) mu_expert_unit_take(&units[i], &t->state, i / 4, i % 4);
}

static void free_all(mu_expert_unit units[8]) {
    for (int i = 0; i < 8; i++) mu_expert_unit_free(&units[i]);
}

static bool same_values(const mu_expert_unit *a, const mu_expert_unit *b, int part) {
    return !memcmp(a->values[part], b->values[part], (size_t)mu_expert_unit_count(a, part) * sizeof(double));
}

static void put_back(mu_training *t) {
    mu_expert_unit before[8], after[8];
    take_all(t, before);
    for (int i = 0; i < 8; i++) mu_expert_unit_give(&before[i], &t->state);
    take_all(t, after);
    for (int i = 0; i < 8; i++) check(mu_expert_unit_equal(&before[i], &after[i]), "expert %d of layer %d changed", i % 4, i / 4);
    free_all(before);
    free_all(after);
}

/* How many hidden units of b are other ones than in a, in all three parts alike. */
static int64_t redrawn(const mu_expert_unit *a, const mu_expert_unit *b) {
    int64_t n = 0;
    for (int64_t f = 0; f < a->F; f++) {
        int differ = 0;
        for (int part = MU_PART_GATE; part < MU_PARTS; part++) {
            int64_t at = part == MU_PART_DOWN ? f : f * a->D;
            differ += a->values[part][at] != b->values[part][at];
        }
        check(differ == 0 || differ == 3, "hidden unit %lld is new in %d of 3 parts", (long long)f, differ);
        n += differ > 0;
    }
    return n;
}

/* Expert 0 of layer 0 becomes half of expert 1, while expert 3 is exempt. */
static void reseed(mu_training *t) {
    enum { EXPERT, DONOR, OTHER, EXEMPT };
    mu_evaluation ev = { t->state.model, t->tape, &t->texts, t->state.mesh->batch, 4, { NULL, 1 }, NULL, NULL };
    mu_expert_unit before[8], after[8];
    mu_expert_health *h = &t->state.stats->health;
    t->state.model->protection.exempt[EXEMPT] = 1;
    h->state[EXPERT] = MU_EXPERT_DEAD, h->below_dead[EXPERT] = 3;
    take_all(t, before);
    mu_reseed(&t->state, &ev, 0, EXPERT, DONOR, 1);
    take_all(t, after);
    const mu_expert_unit *was = &before[DONOR], *donor = &after[DONOR], *half = &after[EXPERT];
    double apart = 0, length = 0, moments = 0, sum = 0;
    for (int64_t i = 0; i < was->D; i++) {
        double d = half->values[MU_PART_ROUTER][i] - donor->values[MU_PART_ROUTER][i], mean = (half->values[MU_PART_ROUTER][i] + donor->values[MU_PART_ROUTER][i]) / 2;
        apart += d * d, length += was->values[MU_PART_ROUTER][i] * was->values[MU_PART_ROUTER][i];
        check(fabs(mean - was->values[MU_PART_ROUTER][i]) < 1e-6, "the rows did not move apart around %g", was->values[MU_PART_ROUTER][i]);
    }
    check(fabs(sqrt(apart / length) - 0.2) < 1e-3, "the rows are %g of their length apart", sqrt(apart / length));
    for (int part = MU_PART_GATE; part < MU_PARTS; part++) check(same_values(was, donor, part) && donor->steps[part] == was->steps[part], "part %d of the donor changed", part);
    check(redrawn(donor, half) == half->F / 2, "%lld of %lld hidden units are new", (long long)redrawn(donor, half), (long long)half->F);
    for (int part = 0; part < MU_PARTS; part++) {
        check(part == MU_PART_ROUTER || half->steps[part] == 0, "%lld steps", (long long)half->steps[part]);
        for (int slot = 0; slot < 2; slot++)
            for (int64_t i = 0; i < mu_expert_unit_count(half, part); i++) moments += fabs(half->slots[slot][part][i]);
    }
    check(moments == 0, "moments %g", moments);
    for (int i = OTHER; i < 8; i++)
        for (int part = 0; part < MU_PARTS; part++) check(same_values(&before[i], &after[i], part), "expert %d of layer %d changed", i % 4, i / 4);
    for (int i = 0; i < 4; i++) sum += i == EXEMPT ? 0 : after[i].bias;
    check(fabs(sum) < 1e-12 && half->bias == donor->bias, "biases %g and %g, sum %g", half->bias, donor->bias, sum);
    check(after[EXEMPT].bias == before[EXEMPT].bias, "the bias of an exempt expert changed");
    check(h->state[EXPERT] == MU_EXPERT_HEALTHY && h->reseeded[EXPERT] == t->state.step && h->below_dead[EXPERT] == 0, "its state was not forgotten");
    check(mu_training_step(t, NULL).finite, "after re-seeding");
    free_all(before);
    free_all(after);
}

static void run(mu_mesh *mesh, int ep) {
    mu_training t = { 0 };
    char *text = mu_format("run: {dir: run%d, seed: 1}\n"
                           "model: {hidden_size: 16, num_layers: 2, num_heads: 2, max_seq_len: 16}\n"
                           "moe: {num_experts: 4, top_k: 2, moe_ffn_hidden_size: 8, balance: [expert_bias], score_func: sigmoid}\n"
                           "data: {train: [{domain: a, path: synthetic}, {domain: b, path: synthetic}]}\n"
                           "parallel: {ep: %d}\n"
                           "protect: {domains: [a], dormant_lr: 0}\n"
                           "train: {steps: 10, global_batch_size: 4, seq_len: 16, threads: 1}\n", ep, ep);
    assert_ok(mu_config_load_text(&t.cfg, "test", text, 0, NULL, &e));
    assert_ok(mu_training_open(&t, mesh, MU_VAL_DOCUMENTS_BY_HASH, &e));
    for (int i = 0; i < 3; i++) check(mu_training_step(&t, NULL).finite, "step %d", i);
    assert_ok(mu_checkpoint_save(&t.state, &t.cfg, &t.texts, &e));
    mu_manifest m;
    bool found;
    assert_ok(mu_checkpoint_find(mesh->batch, t.cfg.run.dir, &m, &found, &e));
    mu_checkpoint_arrays a;
    mu_checkpoint_arrays_open(&a, &m);
    for (int layer = 0; layer < 2; layer++)
        for (int expert = 0; expert < 4; expert++) compare_unit(&t, &a, layer, expert);
    assert_ok(mu_checkpoint_arrays_close(&a, MU_STATUS_OK, &e));
    mu_manifest_free(&m);
    freeze(&t);
    put_back(&t);
    reseed(&t);
    mu_training_close(&t);
    free(text);
}

static void units_are_the_same_on_every_rank(void **state) {
    (void)state;
    mu_comm *world = mu_comm_new(NULL);
    if (world->rank == 0) check(mkdtemp(folder), "no folder");
    mu_broadcast(world, 0, folder, sizeof folder);
    check(!chdir(folder), "no folder %s", folder);
    for (int ep = 1; ep <= world->size; ep *= 2) {
        mu_mesh *mesh = mu_mesh_open(NULL, ep);
        run(mesh, ep);
        mu_mesh_close(mesh);
    }
    mu_barrier(world);
    check(!chdir(".."), "no way back");
    if (world->rank == 0) assert_ok(mu_file_remove_tree(folder, &e));
    mu_comm_free(world);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(units_are_the_same_on_every_rank) };
    mpi_tests_begin(&argc, &argv);
    return mpi_tests_end(cmocka_run_group_tests(tests, NULL, NULL));
}
