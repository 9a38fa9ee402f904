/* mpi_norm.c - the gradient's norm, and the weights after clipped steps, are the same wherever experts live. */
#include "mpi_check.h"
#include "tiny_model.h"

/* The same global gradient whatever the mesh: each unit's stream is keyed by its name. */
static void set_gradients(mu_params *ps, uint32_t step) {
    for (mu_unit *u = mu_unit_next(ps, NULL); u; u = mu_unit_next(ps, u)) {
        double *g = random_reals((uint32_t)mu_hash64(u->name, strlen(u->name)) + step, u->count, 0.01);
        mu_reals_set(ps->dev, ps->dev->master, mu_unit_grad(u), u->count, g);
        free(g);
    }
}

typedef struct { double norms[3]; uint64_t hash; } outcome;

/* Steps with experts over `ep` ranks; the hash is of all weights in global order. */
static outcome run(const char *device, int ep) {
    mu_mesh *mesh = mu_mesh_open(NULL, ep);
    mu_device *dev = mu_device_open(device);
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    mu_optim_config optim = { .betas = { 0.9, 0.95 }, .eps = 1e-8, .weight_decay = 0.1 };
    moe.first_k_dense = 1;
    mu_model *m = mu_model_new(&cfg, &moe, TINY_V, 5, dev, mesh);
    mu_optimizer *o = mu_optimizer_new(&mu_rule_adamw, &optim, m->params);
    outcome r;
    for (uint32_t step = 0; step < 3; step++) {
        set_gradients(m->params, step);
        mu_grad_clip(o, mesh->batch, 0.1, 0, (mu_mat){ 0 });
        mu_optimizer_step(o, 1e-2, (mu_mat){ 0 });
        r.norms[step] = mu_grad_norm(o);
    }
    int64_t wide = TINY_V * cfg.hidden_size, n = m->params->n_global_units * wide;
    double *all = mu_alloc((size_t)n, sizeof *all);
    for (mu_unit *u = mu_unit_next(m->params, NULL); u; u = mu_unit_next(m->params, u))
        if (u->expert >= 0 || mesh->expert->rank == 0)
            mu_reals_get(dev, dev->master, mu_unit_data(u), u->count, all + u->global_index * wide);
    mu_all_reduce(mesh->expert, MU_REDUCE_SUM, MU_DTYPE_F64, all, n);
    r.hash = mu_hash64(all, (size_t)n * sizeof *all);
    free(all);
    mu_optimizer_free(o);
    mu_model_free(m);
    mu_device_close(dev);
    mu_mesh_close(mesh);
    return r;
}

static void norm_and_weights_are_the_same_for_any_ep(void **state) {
    (void)state;
    static const char *const devices[] = { "ref", "cpu" };
    mu_comm *world = mu_comm_new(NULL);
    int size = world->size;
    mu_comm_free(world);
    for (int d = 0; d < 2; d++) {
        outcome one = run(devices[d], 1);
        check(one.norms[0] > 0.1, "norm %g", one.norms[0]);
        for (int ep = 2; ep <= size; ep *= 2) {
            outcome r = run(devices[d], ep);
            for (int step = 0; step < 3; step++)
                check(r.norms[step] == one.norms[step], "ep %d: norm %.17g, not %.17g", ep, r.norms[step],
                      one.norms[step]);
            check(r.hash == one.hash, "ep %d: weights differ", ep);
        }
    }
}

/* A model whose experts are distributed over all ranks, and its optimizer. */
typedef struct { mu_mesh *mesh; mu_device *dev; mu_model *m; mu_optimizer *o; int rank, size; } stand;

static stand stand_new(void) {
    mu_comm *world = mu_comm_new(NULL);
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    mu_optim_config optim = { .betas = { 0.9, 0.95 }, .eps = 1e-8 };
    stand s = { .mesh = mu_mesh_open(NULL, world->size), .dev = mu_device_open("cpu"), .rank = world->rank, .size = world->size };
    mu_comm_free(world);
    s.m = mu_model_new(&cfg, &moe, TINY_V, 5, s.dev, s.mesh);
    s.o = mu_optimizer_new(&mu_rule_adamw, &optim, s.m->params);
    set_gradients(s.m->params, 0);
    return s;
}

static void stand_free(stand *s) {
    mu_optimizer_free(s->o);
    mu_model_free(s->m);
    mu_device_close(s->dev);
    mu_mesh_close(s->mesh);
}

/* A gradient that is not finite is seen by every rank of the group; the rank that has it can name it. */
static void everybody_sees_a_bad_gradient(void **state) {
    (void)state;
    stand s = stand_new();
    mu_unit *u = mu_params_find(s.m->params, "/layers/1/mlp/experts/3/down_proj/weight");
    check((u != NULL) == (s.rank == s.size - 1), "expert 3 lives on the last rank");
    if (u) mu_reals_set(s.dev, s.dev->master, mu_unit_grad(u), 1, &(double){ NAN });
    mu_grad_clip(s.o, s.mesh->batch, 1, 0, (mu_mat){ 0 });
    check(isnan(mu_grad_norm(s.o)), "a NaN was lost");
    const mu_unit *bad = mu_grads_nonfinite(s.o);
    check(bad == u, "%s", bad ? bad->name : "nothing named");
    stand_free(&s);
}

/* One rank's loss is not finite, though all gradients are: no rank's weights move. */
static void a_bad_loss_stops_every_rank(void **state) {
    (void)state;
    stand s = stand_new();
    mu_memory *memory = mu_memory_new(s.dev, sizeof(double));
    mu_memory_commit(memory, sizeof(double));
    mu_mat loss = { memory->region.base, MU_DTYPE_F64, 1 };
    mu_unit *u = mu_params_find(s.m->params, "/norm/weight");
    for (int bad = 1; bad >= 0; bad--) {
        double before, after;
        mu_reals_get(s.dev, s.dev->master, mu_unit_data(u), 1, &before);
        set_gradients(s.m->params, 0);
        s.dev->k->fill(s.dev, 1, bad && s.rank == s.size - 1 ? INFINITY : 3, loss);
        mu_grad_clip(s.o, s.mesh->batch, 1, 1, loss);
        mu_optimizer_step(s.o, 1e-2, (mu_mat){ 0 });
        mu_reals_get(s.dev, s.dev->master, mu_unit_data(u), 1, &after);
        check((after == before) == (bool)bad, "bad %d: %g, then %g", bad, before, after);
        check(mu_optimizer_steps(s.o, u) == !bad, "bad %d: %lld steps", bad, (long long)mu_optimizer_steps(s.o, u));
    }
    mu_memory_free(memory);
    stand_free(&s);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norm_and_weights_are_the_same_for_any_ep),
        cmocka_unit_test(everybody_sees_a_bad_gradient),
        cmocka_unit_test(a_bad_loss_stops_every_rank),
    };
    mpi_tests_begin(&argc, &argv);
    return mpi_tests_end(cmocka_run_group_tests(tests, NULL, NULL));
}
