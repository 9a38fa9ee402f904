/* consumer.c - somebody else's program. Ranks 1 and 2 of its four train a mixture of experts of their own
 * making, on a communicator of their own; the other two are busy with something else. */
#include "moe/moe.h"
#include "optim/optim.h"

#include <mpi.h>

enum { T = 64, D = 8, E = 4, V = 2, STEPS = 60 };       /* tokens of a rank, width, experts, classes */

/* Is the token's first number larger than its second? Collective over comm; true when the loss fell well. */
static bool train(MPI_Comm comm) {
    mu_device *dev = mu_device_open("cpu");
    mu_mesh *mesh = mu_mesh_open(&comm, 2);             /* each rank holds half of the experts */
    mu_placement *place = mu_placement_new(mesh->expert, E);
    mu_params *ps = mu_params_new(dev);
    mu_group *shared = mu_params_group(ps, "shared", mesh->batch);
    mu_group *expert = mu_params_group(ps, "expert", mesh->replica);
    mu_moe_config cfg = mu_moe_config_default();
    cfg.num_experts = E, cfg.moe_ffn_hidden_size = 16;
    mu_moe moe;
    mu_moe_init(&moe, &cfg, D, 0.3, 0, ps, shared, expert, mesh->expert, place);
    mu_param_desc desc = { .group = shared, .name = "/head", .n_dims = 2, .shape = { V, D }, .std = 0.3 };
    mu_param *head = mu_params_add(ps, &desc);
    mu_params_alloc(ps);
    mu_params_init(ps, 1);
    mu_optim_config optim = mu_optim_config_default();
    mu_optimizer *opt = mu_optimizer_new(&mu_rule_adamw, &optim, ps);
    mu_tape *tp = mu_tape_new(dev);
    double first = 0, loss = 0, numbers[T * D];
    for (uint32_t step = 1; step <= STEPS; step++) {
        mu_rng rng = { .seed = 9, .step = step, .sample = (uint32_t)mesh->batch->rank };
        mu_rng_normals(&rng, T * D, 1.0, numbers);
        int32_t class[T];
        for (int t = 0; t < T; t++) class[t] = numbers[t * D] > numbers[t * D + 1];
        mu_tensor *x = mu_tensor_2d(tp, T, D), *right = mu_tensor_ints(tp, MU_DTYPE_I32, T, class);
        mu_tensor_set(x, numbers);
        mu_context cx = { .mode = MU_MODE_TRAIN, .n_sequences = 1, .seq_len = T };
        mu_routing routing;
        mu_tensor *y = mu_add(tp, x, mu_moe_forward(&moe, tp, &cx, x, &routing));
        mu_tensor *ce = mu_head_loss(tp, y, &head->tensor, right, 1.0 / (2 * T), NULL);
        loss = mu_tensor_scalar_get(ce);
        mu_all_reduce(mesh->batch, MU_REDUCE_SUM, MU_DTYPE_F64, &loss, 1);
        if (step == 1) first = loss;
        mu_backward(tp, ce);
        mu_grads_reduce(opt);
        mu_optimizer_step(opt, 0.02, (mu_mat){ 0 });
        mu_params_zero_grad(ps);
        mu_tape_reset(tp);
    }
    if (mesh->world->rank == 0) printf("loss %.3f -> %.3f\n", first, loss);
    mu_tape_free(tp);
    mu_optimizer_free(opt);
    mu_moe_free(&moe);
    mu_params_free(ps);
    mu_placement_free(place);
    mu_mesh_close(mesh);
    mu_device_close(dev);
    return loss < 0.3 * first;
}

/* The others' business: the sum of 1 .. 1000, a collective for each number. */
static bool count(MPI_Comm comm) {
    int size, sum = 0;
    MPI_Comm_size(comm, &size);
    for (int i = 1; i <= 1000; i++) {
        int all;
        MPI_Allreduce(&i, &all, 1, MPI_INT, MPI_SUM, comm);
        sum += all / size;
    }
    return sum == 500500;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    bool trains = rank == 1 || rank == 2;
    MPI_Comm mine;
    MPI_Comm_split(MPI_COMM_WORLD, trains, rank, &mine);
    int good = trains ? train(mine) : count(mine);
    MPI_Allreduce(MPI_IN_PLACE, &good, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    MPI_Comm_free(&mine);
    MPI_Finalize();
    return !good;
}
