/* 03_two_ranks.c - the layer of 02 on two ranks: each holds half of the experts, and rows of tokens are exchanged.
 *
 *     mpirun -n 2 build/examples/example_03_two_ranks
 *
 * Every rank reads its own half of the batch, but the experts of its tokens may be on the other
 * rank. So the rows are sorted by destination, exchanged, processed by the expert, and exchanged
 * back; backward does the same in reverse. Router and head exist on both ranks, and their gradients are
 * summed over both.
 *
 * None of this may change the result. So a second layer is trained beside it, on one rank that holds
 * all experts and reads the whole batch, and the losses must agree. In double precision (`ref`) they agree
 * to a few units in the last place: only the order of some sums differs. In single precision a rounding difference
 * would eventually change a router's choice, and from then on the two diverge, both correct.
 *
 * A program that uses the library owns MPI: main calls MPI_Init and MPI_Finalize, and a mesh is created from
 * any communicator. Letters: B sequences of S tokens in a global batch; others as in 02. */
#include "moe/moe.h"
#include "optim/optim.h"
#include "check.h"

#include <math.h>
#include <mpi.h>

enum { B = 8, S = 16, D = 12, F = 16, E = 4, K = 2, V = 5, STEPS = 25 };

typedef struct {
    mu_device *dev;
    mu_mesh *mesh;
    mu_placement *place;
    mu_moe_config cfg;
    mu_params *ps;
    mu_moe moe;
    mu_param *head_VD;
    mu_optimizer *opt;
    mu_tape *tp;
    mu_routing_stats *stats;
    int64_t sent, assignments;          /* of this rank, so far: rows sent to experts elsewhere; all rows */
} model;

/* Collective over `comm`: all its ranks together form one expert group. */
static void model_open(model *m, MPI_Comm comm) {
    int ranks;
    MPI_Comm_size(comm, &ranks);
    *m = (model){ .dev = mu_device_open("ref"), .mesh = mu_mesh_open(&comm, ranks) };
    m->cfg = mu_moe_config_default();
    m->cfg.num_experts = E, m->cfg.top_k = K, m->cfg.moe_ffn_hidden_size = F;
    m->place = mu_placement_new(m->mesh->expert, E);
    m->ps = mu_params_new(m->dev);
    mu_group *shared = mu_params_group(m->ps, "shared", m->mesh->batch);
    mu_group *expert = mu_params_group(m->ps, "expert", m->mesh->replica);
    mu_moe_init(&m->moe, &m->cfg, D, 0.3, 0, m->ps, shared, expert, m->mesh->expert, m->place);
    mu_param_desc head = { .group = shared, .name = "/head", .n_dims = 2, .shape = { V, D }, .std = 0.3,
                           .layer = -1 };
    m->head_VD = mu_params_add(m->ps, &head);
    mu_params_alloc(m->ps);
    mu_params_init(m->ps, 3);           /* by name: initial values do not depend on the rank */
    mu_optim_config optim = mu_optim_config_default();
    optim.lr = 1e-2, optim.warmup_steps = 5;
    m->opt = mu_optimizer_new(&mu_rule_adamw, &optim, m->ps);
    m->tp = mu_tape_new(m->dev);
    m->stats = mu_routing_stats_new(m->dev, m->mesh->batch, 1, E, 1, 0, 0);
}

static void model_close(model *m) {
    mu_routing_stats_free(m->stats);
    mu_tape_free(m->tp);
    mu_optimizer_free(m->opt);
    mu_moe_free(&m->moe);
    mu_params_free(m->ps);
    mu_placement_free(m->place);
    mu_mesh_close(m->mesh);
    mu_device_close(m->dev);
}

/* How many of this rank's rows went elsewhere. The placement of experts is a table, not a formula. */
static void count_sent(model *m, const mu_routing *r) {
    int64_t n = mu_count(r->ids_TK);
    int32_t *ids = mu_tape_alloc(m->tp, sizeof *ids * (size_t)n);
    mu_tensor_read(r->ids_TK, ids);
    for (int64_t i = 0; i < n; i++) m->sent += m->place->rank[ids[i]] != m->mesh->expert->rank;
    m->assignments += n;
}

/* Sequences first .. first + n - 1 of the step's batch, keyed by their global number: no communication is needed. */
static mu_tensor *read_batch(mu_tape *tp, uint32_t step, int64_t first, int64_t n, mu_tensor **right) {
    double *x = mu_tape_alloc(tp, sizeof *x * (size_t)(n * S * D));
    int32_t *class = mu_tape_alloc(tp, sizeof *class * (size_t)(n * S));
    for (int64_t i = 0; i < n; i++) {
        mu_rng rng = { .seed = 3, .step = step, .sample = (uint32_t)(first + i), .purpose = MU_RNG_TEST };
        for (int64_t j = 0; j < S * D; j++) x[i * S * D + j] = mu_rng_normal(&rng, (uint64_t)j);
        for (int64_t t = 0; t < S; t++) {       /* the class: the largest of the first V numbers */
            const double *row = x + (i * S + t) * D;
            for (int32_t v = 1; v < V; v++)
                if (row[v] > row[class[i * S + t]]) class[i * S + t] = v;
        }
    }
    mu_tensor *x_TD = mu_tensor_2d(tp, n * S, D);
    mu_tensor_set(x_TD, x);
    *right = mu_tensor_ints(tp, MU_DTYPE_I32, n * S, class);
    return x_TD;
}

/* One step of the batch, shared among the ranks of m's mesh. Returns the whole batch's loss. Collective. */
static double train_step(model *m, uint32_t step) {
    mu_comm *batch = m->mesh->batch;
    int64_t mine = B / batch->size, T = B * S;
    mu_tensor *right, *x = read_batch(m->tp, step, mine * batch->rank, mine, &right);

    /* Every loss is divided by the tokens of the *global* batch. Losses and gradients of ranks are then
     * simply summed. */
    mu_context cx = { .mode = MU_MODE_TRAIN, .step = step, .n_sequences = mine, .seq_len = S };
    mu_routing routing;
    mu_tensor *y = mu_moe_forward(&m->moe, m->tp, &cx, x, &routing);
    mu_tensor *z = mu_add(m->tp, x, y);
    mu_tensor *ce = mu_head_loss(m->tp, z, &m->head_VD->tensor, right, 1.0 / (double)T, NULL);

    /* The counts are integers, summed over ranks: every rank sees the same load. */
    mu_routing_stats_begin(m->stats);
    mu_routing_stats_add(m->stats, m->tp, &cx, &routing);
    mu_mat counts = mu_routing_stats_micro(m->stats, 0);
    mu_balance_counts seen = { counts, counts, .micro_tokens = T, .global_tokens = T };
    mu_balance balance = mu_balance_loss(&m->moe, m->tp, &cx, &routing, &seen);
    mu_tensor *loss = mu_add(m->tp, ce, balance.loss);
    double value = mu_tensor_scalar_get(loss);
    mu_all_reduce(batch, MU_REDUCE_SUM, MU_DTYPE_F64, &value, 1);

    mu_backward(m->tp, loss);
    mu_grads_reduce(m->opt);            /* router and head over the batch, experts over their replicas */
    mu_grad_clip(m->opt, batch, m->opt->cfg.grad_clip, 0, (mu_mat){ 0 });
    mu_optimizer_step(m->opt, mu_learning_rate(&m->opt->cfg, step, STEPS), mu_routing_stats_total(m->stats));
    count_sent(m, &routing);
    mu_params_zero_grad(m->ps);
    mu_tape_reset(m->tp);
    return value;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (E % ranks || B % ranks) {
        if (rank == 0) fprintf(stderr, "%d ranks do not divide %d experts and %d sequences\n", ranks, E, B);
        MPI_Finalize();
        return 1;
    }

    model together, alone;
    model_open(&together, MPI_COMM_WORLD);
    model_open(&alone, MPI_COMM_SELF);          /* a mesh of one: each rank has one, for comparison */
    double first = 0, last = 0, apart = 0;
    for (uint32_t step = 1; step <= STEPS; step++) {
        double shared = train_step(&together, step), single = train_step(&alone, step);
        apart = fmax(apart, fabs(shared - single));
        if (rank == 0 && (step == 1 || step % 5 == 0))
            printf("  step %2u  loss %.12f with ep %d, %.12f on one rank\n", step, shared, ranks, single);
        if (step == 1) first = shared;
        last = shared;
    }

    int64_t rows[2] = { together.sent, together.assignments };
    mu_all_reduce(together.mesh->batch, MU_REDUCE_SUM, MU_DTYPE_I64, rows, 2);
    if (rank == 0) {
        check(apart < 1e-9, "the losses differ by at most %.1e", apart);
        check(last < 0.8 * first, "the loss fell from %.3f to %.3f", first, last);
        check((rows[0] > 0) == (ranks > 1), "%lld of %lld rows were sent to an expert on another rank",
              (long long)rows[0], (long long)rows[1]);
    }
    model_close(&alone);
    model_close(&together);

    /* All ranks return the same exit code. */
    MPI_Allreduce(MPI_IN_PLACE, &failed_checks, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Finalize();
    return failed_checks > 0;
}
