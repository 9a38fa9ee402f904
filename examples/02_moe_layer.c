/* 02_moe_layer.c - one layer of experts learns a task with several domains.
 *
 * Each token belongs to one of four domains, and each domain has a rule of its own from token to class. Experts
 * do not see the domain of a token: a router, one weight row per expert, scores the
 * token and picks two of eight experts for it. Only these two compute. This is the idea of a Mixture of
 * Experts: the parameters of eight networks, the FLOPs of two.
 *
 * The problem: a router that prefers an expert sends it more tokens, so it learns
 * faster and is preferred even more, while the others starve. Here this is provoked: two experts start
 * with an advantage. The same layer is then trained twice, without and with the *balance loss*
 *
 *     aux = sum over experts of f_i P_i         f_i load of expert i (1 = uniform),
 *                                               P_i the mean probability that the router gave it
 *
 * which is 1 when balanced and lowers the probability of overloaded experts. The tables show the load by domain.
 * Letters: T tokens, D width, F hidden width of an expert, E experts, K chosen experts per token, V classes. */
#include "moe/moe.h"
#include "optim/optim.h"
#include "check.h"

#include <math.h>
#include <string.h>

enum { DOMAINS = 4, B = 16, S = 32, T = B * S, D = 16, F = 32, E = 8, K = 2, V = 4, STEPS = 300 };

/* ------------------------------------------------------------------ the task
 * A token of domain d is the domain's centre plus noise; its class is the row of the domain's own matrix that
 * agrees best with the noise. Each of the B sequences is of one domain. */
static double centre[DOMAINS][D], rule[DOMAINS][V][D];
typedef struct { double x_TD[T * D]; int32_t class_T[T], domains[B]; } batch;

/* Counter-based: the numbers of a purpose, step and sample do not depend on rank or order. */
static void draw(uint32_t sample, uint32_t step, int64_t n, double scale, double *out) {
    mu_rng rng = { .seed = 2, .step = step, .sample = sample, .purpose = MU_RNG_TEST };
    mu_rng_normals(&rng, n, scale, out);
}

static void make_task(void) {
    draw(1, 0, DOMAINS * D, 2.0, centre[0]);
    draw(2, 0, DOMAINS * V * D, 1.0, rule[0][0]);
}

static int domain_of(int t) { return t / S % DOMAINS; }

static int32_t class_of(int d, const double *noise) {
    double best = -INFINITY;
    int32_t class = 0;
    for (int32_t v = 0; v < V; v++) {
        double sum = 0;
        for (int j = 0; j < D; j++) sum += rule[d][v][j] * noise[j];
        if (sum > best) best = sum, class = v;
    }
    return class;
}

static void make_batch(uint32_t step, batch *b) {
    draw(0, step, T * D, 1.0, b->x_TD);
    for (int i = 0; i < B; i++) b->domains[i] = domain_of(i * S);
    for (int t = 0; t < T; t++) {
        b->class_T[t] = class_of(domain_of(t), b->x_TD + t * D);
        for (int j = 0; j < D; j++) b->x_TD[t * D + j] += centre[domain_of(t)][j];
    }
}

/* ------------------------------------------------------------------ the model: x + moe(x), then a head */
typedef struct {
    mu_device *dev;
    mu_mesh *mesh;
    mu_placement *place;        /* which rank holds which expert: here all on this rank */
    mu_moe_config cfg;
    mu_params *ps;
    mu_moe moe;
    mu_param *head_VD;
} model;

static void model_open(model *m, uint32_t balance) {
    m->dev = mu_device_open("cpu");
    m->mesh = mu_mesh_alone();
    m->place = mu_placement_new(m->mesh->expert, E);
    m->cfg = mu_moe_config_default();
    m->cfg.num_experts = E, m->cfg.top_k = K, m->cfg.moe_ffn_hidden_size = F;
    m->cfg.balance = balance, m->cfg.aux_loss_coeff = 0.1;
    m->ps = mu_params_new(m->dev);
    /* Two groups, because on several ranks they are reduced over different groups: the router is on every rank, an
     * expert once in each expert group. */
    mu_group *shared = mu_params_group(m->ps, "shared", m->mesh->batch);
    mu_group *expert = mu_params_group(m->ps, "expert", m->mesh->replica);
    mu_moe_init(&m->moe, &m->cfg, D, 0.2, 0, m->ps, shared, expert, m->mesh->expert, m->place);
    mu_param_desc head = { .group = shared, .name = "/head", .n_dims = 2, .shape = { V, D }, .std = 0.2,
                           .layer = -1 };
    m->head_VD = mu_params_add(m->ps, &head);
    mu_params_alloc(m->ps);
    mu_params_init(m->ps, 7);
}

/* The advantage: the router rows of experts 0 and 1 point to the mean of all domain centres. */
static void favour_two(model *m) {
    double rows[E * D];
    mu_tensor_get(&m->moe.router_ED->tensor, rows);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < D; j++)
            for (int d = 0; d < DOMAINS; d++) rows[i * D + j] += 0.07 * centre[d][j];
    mu_tensor_set(&m->moe.router_ED->tensor, rows);
}

static void model_close(model *m) {
    mu_moe_free(&m->moe);
    mu_params_free(m->ps);
    mu_placement_free(m->place);
    mu_mesh_close(m->mesh);
    mu_device_close(m->dev);
}

/* ------------------------------------------------------------------ training */
typedef struct {
    double ce, aux;                     /* of the last step */
    double imbalance;                   /* maximum / mean load: 1 is uniform, E / K the worst */
    int64_t taken[DOMAINS][E];          /* over the last 20 steps */
} result;

static void add_domains(const mu_routing_stats *stats, result *out) {
    for (int i = 0; i < E; i++)
        for (int d = 0; d < DOMAINS; d++) out->taken[d][i] += stats->by_domain[i * DOMAINS + d];
}

static void report(uint32_t step, const result *r, const int64_t *counts) {
    printf("  step %3u  cross-entropy %.3f  aux %.2f  load, 1 = uniform:", step, r->ce, r->aux);
    for (int i = 0; i < E; i++) printf(" %.2f", (double)counts[i] * E / (T * K));
    putchar('\n');
}

static void train_step(model *m, mu_tape *tp, mu_optimizer *opt, mu_routing_stats *stats, uint32_t step, const batch *b,
                       result *out) {
    mu_tensor *x = mu_tensor_2d(tp, T, D), *right = mu_tensor_ints(tp, MU_DTYPE_I32, T, b->class_T);
    mu_tensor_set(x, b->x_TD);

    /* Forward. Also returns the routing: scores, chosen experts, counts. */
    mu_context cx = { .mode = MU_MODE_TRAIN, .step = step, .n_sequences = B, .seq_len = S, .domains = b->domains };
    mu_routing routing;
    mu_tensor *y = mu_moe_forward(&m->moe, tp, &cx, x, &routing);
    mu_tensor *ce = mu_head_loss(tp, mu_add(tp, x, y), &m->head_VD->tensor, right, 1.0 / T, NULL);

    /* The statistics count assignments per expert: for the balancing terms, the optimizer and reports. */
    mu_routing_stats_begin(stats);
    mu_routing_stats_add(stats, tp, &cx, &routing);
    mu_mat counts = mu_routing_stats_micro(stats, 0);

    /* The balancing terms are ordinary loss terms: add them before backward. */
    mu_balance_counts seen = { .micro = counts, .global = counts, .micro_tokens = T, .global_tokens = T };
    mu_balance balance = mu_balance_loss(&m->moe, tp, &cx, &routing, &seen);
    mu_backward(tp, balance.loss ? mu_add(tp, ce, balance.loss) : ce);

    /* An expert without tokens has no gradient in this step: it is skipped, without weight decay. */
    mu_optimizer_step(opt, mu_learning_rate(&opt->cfg, step, STEPS), mu_routing_stats_total(stats));

    out->ce = mu_tensor_scalar_get(ce), out->aux = mu_tensor_scalar_get(balance.aux);
    mu_routing_stats_read(stats);
    if (step > STEPS - 20) add_domains(stats, out);
    if (step == 1 || step % 100 == 0) report(step, out, stats->counts);
    mu_params_zero_grad(m->ps);
    mu_tape_reset(tp);
}

static result train(uint32_t balance) {
    static batch b;
    model m;
    result out = { 0 };
    model_open(&m, balance);
    favour_two(&m);
    mu_optim_config cfg = mu_optim_config_default();
    cfg.lr = 1e-2, cfg.warmup_steps = 20;
    mu_optimizer *opt = mu_optimizer_new(&mu_rule_adamw, &cfg, m.ps);
    mu_tape *tp = mu_tape_new(m.dev);
    mu_routing_stats *stats = mu_routing_stats_new(m.dev, m.mesh->batch, 1, E, DOMAINS, 0, 0);
    for (uint32_t step = 1; step <= STEPS; step++) {
        make_batch(step, &b);
        train_step(&m, tp, opt, stats, step, &b, &out);
    }
    int64_t total[E] = { 0 };
    for (int d = 0; d < DOMAINS; d++)
        for (int i = 0; i < E; i++) total[i] += out.taken[d][i];
    out.imbalance = mu_load_of(total, E).load_imbalance;
    mu_routing_stats_free(stats);
    mu_tape_free(tp);
    mu_optimizer_free(opt);
    model_close(&m);
    return out;
}

/* ------------------------------------------------------------------ load by domain */
static void show(const result *r) {
    static const char *const shade[] = { "  ", "..", "::", "oo", "##" };
    puts("\n      share of each expert in the assignments of a domain, in percent (at most 50)");
    printf("      expert  ");
    for (int i = 0; i < E; i++) printf("%7d", i);
    for (int d = 0; d < DOMAINS; d++) {
        printf("\n      domain %d", d);
        double all = 0;
        for (int i = 0; i < E; i++) all += (double)r->taken[d][i];
        for (int i = 0; i < E; i++) {
            double share = (double)r->taken[d][i] / all;
            int dark = (share >= 0.02) + (share >= 0.1) + (share >= 0.25) + (share >= 0.4);
            printf("  %s%3.0f", shade[dark], 100 * share);
        }
    }
    printf("\n      maximum expert load: %.2f times the mean\n\n", r->imbalance);
}

/* The mean, over domains, of the share that a domain's two favourite experts take: 2/E without
 * specialisation, 1 when each domain has its own pair. */
static double specialisation(const result *r) {
    double sum = 0;
    for (int d = 0; d < DOMAINS; d++) {
        int64_t first = 0, second = 0, all = 0;
        for (int i = 0; i < E; i++) {
            int64_t n = r->taken[d][i];
            all += n;
            if (n > first) second = first, first = n;
            else if (n > second) second = n;
        }
        sum += (double)(first + second) / (double)all / DOMAINS;
    }
    return sum;
}

int main(void) {
    make_task();
    puts("1. Without a balance loss:");
    result without = train(MU_BALANCE_NONE);
    show(&without);
    puts("2. With it:");
    result with = train(MU_BALANCE_AUX);
    show(&with);
    double expertise = specialisation(&with);
    check(without.imbalance > 1.8, "without a balance loss the maximum load is %.2f times the mean", without.imbalance);
    check(with.imbalance < 1.4, "the balance loss reduces it to %.2f", with.imbalance);
    check(fabs(with.aux - 1) < 0.15, "aux ends at %.2f (balanced: 1), instead of %.2f", with.aux, without.aux);
    check(with.ce < 0.6 * log(V), "the task is learned: cross-entropy %.3f, guessing %.3f", with.ce, log(V));
    check(expertise > 0.5, "experts specialised: the top two of a domain have %.0f %% of its load, by chance %d %%",
          100 * expertise, 100 * K / E);
    return failed_checks > 0;
}
