/* 01_network.c - a small network learns a function from samples.
 *
 * Two things are new after 00_tape. A *custom op*: an op is a forward function, a backward function
 * and a name; ops need no registration. And the *training loop*, whose five
 * lines are the same for one matrix and for a billion parameters:
 *
 *     record the loss -> backward -> optimizer step -> clear the gradients -> reset the tape
 *
 * The network:  (x, 1) -> linear -> + feed-forward (SwiGLU) -> linear -> y,  trained to approximate  sin(pi x) + x/2
 * on [-1, 1]. Letters: T points of a batch, D width, F hidden width. */
#include "layers/layers.h"
#include "optim/optim.h"
#include "check.h"

#include <math.h>

enum { T = 64, D = 16, F = 32, STEPS = 1000 };

static double truth(double x) { return sin(3.14159265358979323846 * x) + x / 2; }

/* ------------------------------------------------------------------ an op: loss = mean of (y - wanted)^2
 * out[1] keeps the difference for backward. Only kernels touch data, so the op runs on any device. */
static void squared_error_forward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    int64_t count = mu_count(n->in[0]);
    mu_mat loss = mu_data(n->out[0]), difference = mu_data(n->out[1]);
    mu_tensor *sum = mu_tensor_scalar(tp);
    dev->k->fill(dev, count, 0.0, difference);
    dev->k->axpy(dev, count, 1.0, mu_data(n->in[0]), difference);
    dev->k->axpy(dev, count, -1.0, mu_data(n->in[1]), difference);
    dev->k->sumsq(dev, count, difference, false, mu_data(sum));
    dev->k->fill(dev, 1, 0.0, loss);
    dev->k->axpy(dev, 1, 1.0 / (double)count, mu_data(sum), loss);
    mu_release(tp, sum);
}

/* dy += dloss * 2 (y - wanted) / count */
static void squared_error_backward(mu_tape *tp, mu_node *n) {
    mu_device *dev = mu_tape_device(tp);
    int64_t count = mu_count(n->in[0]);
    double dloss;
    mu_device_read(dev, &dloss, mu_grad_of(n->out[0]).data, sizeof dloss);
    if (n->in[0]->needs_grad)
        dev->k->axpy(dev, count, 2 * dloss / (double)count, mu_data(n->out[1]), mu_grad(tp, n->in[0]));
}

/* keeps_out, saved: backward reads out[1], and it is not returned to callers. */
static const mu_op op_squared_error = { .name = "squared_error", .forward = squared_error_forward,
                                        .backward = squared_error_backward, .keeps_out = MU_BIT(1), .saved = MU_BIT(1) };

static mu_tensor *squared_error(mu_tape *tp, mu_tensor *y, mu_tensor *wanted) {
    return mu_apply(tp, (mu_node){ .op = &op_squared_error, .in = { y, wanted },
                                   .out = { mu_tensor_scalar(tp), mu_tensor_like(tp, y) } });
}

/* ------------------------------------------------------------------ the network */
typedef struct { mu_param *in_D2, *out_1D; mu_ffn ffn; } network;

static mu_param *matrix(mu_params *ps, const char *name, int64_t out, int64_t in, double std) {
    mu_param_desc d = { .group = ps->groups[0], .name = name, .n_dims = 2, .shape = { out, in }, .std = std,
                        .layer = -1 };
    return mu_params_add(ps, &d);
}

static void network_init(network *net, mu_params *ps) {
    mu_model_config cfg = mu_model_config_default();
    cfg.hidden_size = D, cfg.ffn_hidden_size = F, cfg.init_std = 0.3;
    net->in_D2 = matrix(ps, "/in", D, 2, 1.0);
    mu_ffn_init(&net->ffn, &cfg, 0, ps, ps->groups[0]);
    net->out_1D = matrix(ps, "/out", 1, D, 0.3);
}

static mu_tensor *network_forward(const network *net, mu_tape *tp, mu_tensor *x_T2) {
    mu_tensor *h_TD = mu_linear(tp, x_T2, &net->in_D2->tensor);
    h_TD = mu_add(tp, h_TD, mu_ffn_forward(&net->ffn, tp, h_TD));       /* residual connection */
    return mu_linear(tp, h_TD, &net->out_1D->tensor);
}

/* n points on the tape, each with a constant 1 as bias input; and their targets. */
static mu_tensor *points(mu_tape *tp, int64_t n, const double *x, mu_tensor **wanted) {
    double pairs[2 * T], y[T];
    for (int64_t i = 0; i < n; i++) pairs[2 * i] = x[i], pairs[2 * i + 1] = 1, y[i] = truth(x[i]);
    mu_tensor *x_T2 = mu_tensor_2d(tp, n, 2);
    mu_tensor_set(x_T2, pairs);
    *wanted = mu_tensor_2d(tp, n, 1);
    mu_tensor_set(*wanted, y);
    return x_T2;
}

static double train(const network *net, mu_params *ps, mu_tape *tp) {
    mu_optim_config cfg = mu_optim_config_default();
    cfg.lr = 1e-2, cfg.warmup_steps = 20;
    mu_optimizer *opt = mu_optimizer_new(&mu_rule_adamw, &cfg, ps);
    double value = 0;
    for (int step = 1; step <= STEPS; step++) {
        /* Random numbers are counter-based: number i of step s is the same on any rank, in any order. */
        mu_rng rng = { .seed = 1, .step = (uint32_t)step, .purpose = MU_RNG_TEST };
        double x[T];
        for (int i = 0; i < T; i++) x[i] = 2 * mu_rng_uniform(&rng, (uint64_t)i) - 1;
        mu_tensor *wanted, *x_T2 = points(tp, T, x, &wanted);

        mu_tensor *loss = squared_error(tp, network_forward(net, tp, x_T2), wanted);
        value = mu_tensor_scalar_get(loss);
        if (step == 1 || step % 200 == 0) printf("  step %4d  mean squared error %.6f\n", step, value);
        mu_backward(tp, loss);
        mu_optimizer_step(opt, mu_learning_rate(&cfg, step, STEPS), (mu_mat){ 0 });
        mu_params_zero_grad(ps);
        mu_tape_reset(tp);
    }
    mu_optimizer_free(opt);
    return value;
}

/* Plots the curve on points outside the batches. Returns the largest error. */
static double show(const network *net, mu_tape *tp) {
    enum { N = 21 };
    double x[N], y[N], worst = 0;
    for (int i = 0; i < N; i++) x[i] = -1 + 0.1 * i;
    mu_tape_record(tp, false);                  /* no backward will follow: record nothing */
    mu_tensor *wanted;
    mu_tensor_get(network_forward(net, tp, points(tp, N, x, &wanted)), y);
    mu_tape_record(tp, true);
    mu_tape_reset(tp);
    for (int i = 0; i < N; i++) {
        char line[50] = "                                                 ";
        line[24 + (int)lround(14 * truth(x[i]))] = '.';
        line[24 + (int)lround(14 * fmax(-1.7, fmin(1.7, y[i])))] = 'o';
        printf("  %5.1f %s %6.3f, wanted %6.3f\n", x[i], line, y[i], truth(x[i]));
        worst = fmax(worst, fabs(y[i] - truth(x[i])));
    }
    return worst;
}

int main(void) {
    mu_device *dev = mu_device_open("cpu");     /* single precision, the machine's best instructions */
    mu_tape *tp = mu_tape_new(dev);
    mu_params *ps = mu_params_new(dev);
    mu_params_group(ps, "shared", NULL);
    network net;
    network_init(&net, ps);
    mu_params_alloc(ps);
    mu_params_init(ps, 1);                      /* values depend on seed and name only: the same in every run */

    double loss = train(&net, ps, tp);
    double worst = show(&net, tp);
    check(loss < 1e-3, "the error of the last batch is %.6f; predicting the mean gives about 0.9", loss);
    check(worst < 0.15, "the largest error of the curve is %.3f", worst);

    mu_params_free(ps);
    mu_tape_free(tp);
    mu_device_close(dev);
    return failed_checks > 0;
}
