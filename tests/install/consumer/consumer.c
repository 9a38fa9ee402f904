/* consumer.c - somebody else's program: of its four ranks two, 1 and 2, train a mixture of experts of their own making
 * on a communicator of their own, while the others are busy with something else. */
#include "moe/moe.h"
#include "optim/optim.h"

#include <mpi.h>

enum { B = 8, T = 64, D = 8, E = 4, V = 3, STEPS = 60 };       /* sequences, tokens of a rank, width, experts, classes */

/* The token's class is the largest of its first three numbers. Did the loss fall to a fraction? Collective over comm. */
static int train(MPI_Comm comm) {
    mu_device *dev = mu_device_open("cpu");
    mu_mesh *mesh = mu_mesh_open(&comm, 2);                     /* each rank holds half of the experts */
    mu_placement *place = mu_placement_new(mesh->expert, E);
    mu_params *ps = mu_params_new(dev);
    mu_group *shared = mu_params_group(ps, "shared", mesh->world), *expert = mu_params_group(ps, "expert", mesh->replica);
    mu_moe_config cfg = mu_moe_config_default();
    cfg.num_experts = E, cfg.moe_ffn_hidden_size = 16;
    mu_moe moe;
    mu_moe_init(&moe, &cfg, D, 0.3, 0, ps, shared, expert, mesh->expert, place);
    mu_param *head = mu_params_add(ps, &(mu_param_desc){ .group = shared, .name = "/head", .n_dims = 2, .shape = { V, D }, .std = 0.3 });
    mu_params_alloc(ps);
    mu_params_init(ps, 1);
    mu_optim_config optim = mu_optim_config_default();
    mu_adamw *opt = mu_adamw_new(&optim, ps);
    mu_tape *tp = mu_tape_new(dev);
    double first = 0, loss = 0;
    for (uint32_t step = 1; step <= STEPS; step++) {
        double x[T * D];
        int32_t class[T];
        mu_rng rng = { .seed = 9, .step = step, .sample = (uint32_t)mesh->world->rank, .purpose = MU_RNG_TEST };
        mu_rng_normals(&rng, T * D, 1.0, x);
        for (int t = 0; t < T; t++) class[t] = x[t * D] > x[t * D + 1] ? (x[t * D] > x[t * D + 2] ? 0 : 2) : x[t * D + 1] > x[t * D + 2] ? 1 : 2;
        mu_tensor *x_TD = mu_tensor_2d(tp, T, D);
        mu_tensor_set(x_TD, x);
        mu_context cx = { .mode = MU_MODE_TRAIN, .n_sequences = B, .seq_len = T / B };
        mu_routing routing;
        mu_tensor *y = mu_add(tp, x_TD, mu_moe_forward(&moe, tp, &cx, x_TD, &routing));
        mu_tensor *ce = mu_head_loss(tp, y, &head->tensor, mu_tensor_ints(tp, MU_DTYPE_I32, T, class), 0.5 / T, NULL);
        loss = mu_tensor_scalar_get(ce);
        mu_all_reduce(mesh->world, MU_REDUCE_SUM, MU_DTYPE_F64, &loss, 1);
        if (step == 1) first = loss;
        mu_backward(tp, ce);
        mu_grads_reduce(ps);
        mu_adamw_step(opt, 0.02, 1.0);
        mu_params_zero_grad(ps);
        mu_tape_reset(tp);
    }
    if (mesh->world->rank == 0) printf("loss %.3f -> %.3f\n", first, loss);
    mu_tape_free(tp);
    mu_adamw_free(opt);
    mu_moe_free(&moe);
    mu_params_free(ps);
    mu_placement_free(place);
    mu_mesh_close(mesh);
    mu_device_close(dev);
    return loss < 0.5 * first;
}

/* The others' business: four times the area of a quarter circle, in strips. */
static int find_pi(MPI_Comm comm) {
    int rank, size;
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    double pi = 0;
    for (int i = rank; i < 100000; i += size) pi += 4e-5 / (1 + (i + 0.5) * (i + 0.5) * 1e-10);
    MPI_Allreduce(MPI_IN_PLACE, &pi, 1, MPI_DOUBLE, MPI_SUM, comm);
    if (rank == 0) printf("pi is %.6f\n", pi);
    return pi > 3.14159 && pi < 3.1416;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm mine;
    int trains = rank == 1 || rank == 2;
    MPI_Comm_split(MPI_COMM_WORLD, trains, rank, &mine);
    int good = trains ? train(mine) : find_pi(mine);
    MPI_Allreduce(MPI_IN_PLACE, &good, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    MPI_Comm_free(&mine);
    MPI_Finalize();
    return !good;
}
