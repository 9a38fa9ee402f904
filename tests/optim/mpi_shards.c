/* mpi_shards.c - twenty AdamW steps divided among ranks equal those of one rank: weights, moments,
 * step counts; skipped and frozen experts are unchanged; moments exist once and can be read whole. */
#include "mpi_check.h"
#include "tiny_model.h"

enum { STEPS = 20 };

typedef struct {
    mu_device *dev;
    mu_model *model;
    mu_optimizer *opt;
    mu_memory *loads;
} run;

static run run_new(const char *device, const mu_mesh *mesh) {
    static const mu_optim_config optim = { .betas = { 0.9, 0.95 }, .eps = 1e-8, .weight_decay = 0.1 };
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    run r = { .dev = mu_device_open(device) };
    r.model = mu_model_new(&cfg, &moe, TINY_V, 5, r.dev, mesh);
    r.opt = mu_optimizer_new(&mu_rule_adamw, &optim, r.model->params);
    for (mu_unit *u = mu_unit_next(r.model->params, NULL); u; u = mu_unit_next(r.model->params, u)) {
        if (u->expert == 0) mu_unit_set_lr_factor(u, 0.25);
        if (u->expert == 3 || !strcmp(u->name, "/norm/weight")) mu_unit_freeze(u, true);
    }
    r.loads = mu_memory_new(r.dev, (size_t)r.model->params->n_loads * sizeof(int64_t));
    mu_memory_commit(r.loads, (size_t)r.model->params->n_loads * sizeof(int64_t));
    return r;
}

static void run_free(run *r) {
    mu_memory_free(r->loads);
    mu_optimizer_free(r->opt);
    mu_model_free(r->model);
    mu_device_close(r->dev);
}

/* Expert 2 never gets a token, expert 1 every third step. */
static bool is_skipped(int expert, uint32_t step) { return expert == 2 || (expert == 1 && step % 3 != 0); }

static mu_mat loads_of(const run *r, uint32_t step) {
    int64_t n = r->model->params->n_loads, *loads = mu_alloc((size_t)n, sizeof *loads);
    for (int64_t i = 0; i < n; i++) loads[i] = !is_skipped((int)(i % r->model->moe_cfg.num_experts), step);
    mu_device_write(r->dev, r->loads->region.base, loads, (size_t)n * sizeof *loads);
    free(loads);
    return (mu_mat){ r->loads->region.base, MU_DTYPE_I64, 1 };
}

/* One step of a gradient that is a sum of `parts` parts. Each rank has part number replica->rank, and what is shared
 * the first rank of an expert group only; alone, one rank has them all. */
static double step(run *r, const mu_mesh *mesh, uint32_t number, int parts) {
    bool divided = mesh->world->size > 1;
    for (mu_unit *u = mu_unit_next(r->model->params, NULL); u; u = mu_unit_next(r->model->params, u)) {
        double *sum = mu_alloc((size_t)u->count, sizeof *sum);
        uint32_t key = (uint32_t)mu_hash64(u->name, strlen(u->name)) + number * 16;
        for (int p = 0; p < parts; p++) {
            bool here = !divided || (p == mesh->replica->rank && (u->expert >= 0 || mesh->expert->rank == 0));
            double *g = random_reals(key + (uint32_t)p, u->count, 0.01);
            for (int64_t i = 0; i < u->count && here && !is_skipped(u->expert, number); i++) sum[i] += g[i];
            free(g);
        }
        mu_reals_set(r->dev, r->dev->master, mu_unit_grad(u), u->count, sum);
        free(sum);
    }
    mu_grads_reduce(r->opt);
    mu_grad_clip(r->opt, mesh->batch, 0.1, 0, (mu_mat){ 0 });
    mu_optimizer_step(r->opt, 1e-2, loads_of(r, number));
    double norm = mu_grad_norm(r->opt);
    check(norm > 0.1, "a norm of %g is not clipped", norm);
    return norm;
}

static double whole(const run *r, const void *host, int64_t i) {
    return r->dev->compute == MU_DTYPE_F64 ? ((const double *)host)[i] : (double)((const float *)host)[i];
}

/* One unit's weights, which every rank that has it must have, and moments, which rank 0 of its group gets. */
static void compare(const run *r, const run *alone, mu_unit *u, double tolerance) {
    const mu_unit *v = mu_params_find(alone->model->params, u->name);
    const mu_comm *group = u->param->desc.group->reduce;
    long long steps = mu_optimizer_steps(r->opt, u), wanted = mu_optimizer_steps(alone->opt, v);
    check(steps == wanted, "%s: %lld steps, not %lld", u->name, steps, wanted);
    check((u->expert != 2 && !u->frozen) || steps == 0, "%s took a step", u->name);
    void *mine = mu_alloc((size_t)u->count, sizeof(double)),
         *theirs = mu_alloc((size_t)u->count, sizeof(double));
    for (int part = 0; part < 3; part++) {
        size_t bytes = (size_t)u->count * mu_dtype_size(r->dev->compute);
        if (part == 0) mu_device_read(r->dev, mine, mu_unit_data(u), bytes);
        else mu_optimizer_slot_read(r->opt, u, part - 1, mine);
        mu_device_read(alone->dev, theirs, part ? mu_optimizer_slot(alone->opt, v, part - 1) : mu_unit_data(v),
                       bytes);
        for (int64_t i = 0; i < u->count && (part == 0 || group->rank == 0); i++)
            check(fabs(whole(r, mine, i) - whole(r, theirs, i)) <=
                      tolerance * (1 + fabs(whole(r, theirs, i))),
                  "%s, part %d: [%lld] = %.17g, not %.17g", u->name, part, (long long)i, whole(r, mine, i),
                  whole(r, theirs, i));
        for (int64_t i = 0; i < u->count && part && group->rank == 0 && u->expert == 2; i++)
            check(whole(r, mine, i) == 0, "%s: a skipped expert's moment is %g", u->name, whole(r, mine, i));
    }
    free(mine);
    free(theirs);
}

static void same_as_alone(const char *device, int ep, int64_t shm_threshold_bytes, double tolerance) {
    mu_mesh *mesh = mu_mesh_open(NULL, ep), *one = mu_mesh_alone();
    mesh->world->shm_threshold_bytes = mesh->replica->shm_threshold_bytes = shm_threshold_bytes;
    run r = run_new(device, mesh), alone = run_new(device, one);
    for (uint32_t number = 0; number < STEPS; number++) {
        double wanted = step(&alone, one, number, mesh->dp), norm = step(&r, mesh, number, mesh->dp);
        check(fabs(norm - wanted) <= tolerance * wanted, "norm %.17g, not %.17g", norm, wanted);
    }
    int64_t owned = 0, all = 0, P = mesh->world->size;
    for (mu_unit *u = mu_unit_next(r.model->params, NULL); u; u = mu_unit_next(r.model->params, u)) {
        bool mine = mu_shards_owns(&r.opt->shards, u);
        compare(&r, &alone, u, tolerance);
        check((mu_optimizer_slot(r.opt, u, 0) != NULL) == mine, "%s: a moment without an owner", u->name);
        owned += mine ? u->count : 0, all += u->count;
    }
    if (ep == 1 && P > 1)
        check(owned * P < 2 * all && owned * P > all / 2, "owns %lld of %lld values", (long long)owned,
              (long long)all);
    run_free(&r);
    run_free(&alone);
    mu_mesh_close(mesh);
    mu_mesh_close(one);
}

static void divided_steps_are_those_of_one_rank(void **state) {
    (void)state;
    mu_comm *world = mu_comm_new(NULL);
    int size = world->size;
    mu_comm_free(world);
    for (int window = 0; window < 2; window++) {
        int64_t least = window ? 1 : INT64_MAX;
        same_as_alone("ref", 1, least, 1e-12);
        same_as_alone("guarded", 1, least, 1e-4);
        for (int ep = 2; ep <= size; ep *= 2) same_as_alone("ref", ep, least, 1e-12);
    }
}

/* Forward and backward of a micro-batch of this rank's own. */
static void micro_batch(run *r, mu_tape *tp, const mu_mesh *mesh, uint32_t number, bool last) {
    mu_context cx = tiny_context();
    mu_routing routings[TINY_LAYERS];
    uint32_t seed = 100 * number + 2 * (uint32_t)mesh->world->rank;
    int32_t *tokens = random_ints(seed, TINY_T, TINY_V), *targets = random_ints(seed + 1, TINY_T, TINY_V);
    mu_tape_reset(tp);
    mu_tensor *x = mu_model_forward(r->model, tp, &cx, mu_tensor_ints(tp, MU_DTYPE_I32, TINY_T, tokens), routings);
    mu_tensor *loss = mu_model_head_loss(r->model, tp, x, mu_tensor_ints(tp, MU_DTYPE_I32, TINY_T, targets), 1, NULL);
    if (last) mu_backward_last(r->opt, tp, loss);
    else mu_backward(tp, loss);
    free(tokens);
    free(targets);
}

/* Three steps of two micro-batches. The hash is of the weights that this rank holds and the first moments that it owns. */
static uint64_t train(const char *device, int ep, bool early) {
    mu_mesh *mesh = mu_mesh_open(NULL, ep);
    mesh->batch->overlap = mesh->replica->overlap = early;
    run r = run_new(device, mesh);
    mu_tape *tp = mu_tape_new(r.dev);
    for (uint32_t step = 0; step < 3; step++) {
        mu_params_zero_grad(r.model->params);
        micro_batch(&r, tp, mesh, 2 * step, false);
        micro_batch(&r, tp, mesh, 2 * step + 1, true);
        mu_grads_reduce(r.opt);
        mu_grad_clip(r.opt, mesh->batch, 1, 0, (mu_mat){ 0 });
        mu_optimizer_step(r.opt, 1e-2, (mu_mat){ 0 });
    }
    for (int i = 0; i < 2; i++) {
        int ranks = r.model->params->groups[i]->reduce->size;
        bool wanted = early && ranks > 1 && strcmp(device, "guarded");
        check((r.opt->shards.early[i] != NULL) == wanted, "%s: group %d of %d ranks", device, i, ranks);
    }
    int64_t n;
    double *x = tiny_values(r.model, &n);
    uint64_t hash = mu_hash64(x, (size_t)n * sizeof *x);
    for (mu_unit *u = mu_unit_next(r.model->params, NULL); u; u = mu_unit_next(r.model->params, u)) {
        if (!mu_shards_owns(&r.opt->shards, u)) continue;
        mu_reals_get(r.dev, r.dev->master, mu_optimizer_slot(r.opt, u, 0), u->count, x);
        hash = hash * 31 + mu_hash64(x, (size_t)u->count * sizeof *x);
    }
    free(x);
    mu_tape_free(tp);
    run_free(&r);
    mu_mesh_close(mesh);
    return hash;
}

static void sums_during_backward_have_the_same_bits(void **state) {
    (void)state;
    mu_comm *world = mu_comm_new(NULL);
    int size = world->size;
    mu_comm_free(world);
    for (int ep = 1; ep <= size; ep *= 2) check(train("cpu", ep, true) == train("cpu", ep, false), "ep %d: other bits", ep);
    check(train("guarded", 1, true) == train("guarded", 1, false), "guarded: other bits");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(divided_steps_are_those_of_one_rank),
                                        cmocka_unit_test(sums_during_backward_have_the_same_bits) };
    mpi_tests_begin(&argc, &argv);
    return mpi_tests_end(cmocka_run_group_tests(tests, NULL, NULL));
}
