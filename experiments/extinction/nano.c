/* nano.c - one arm of the extinction experiment with one seed: trains the nano model through the phases A (mixed), B (drought:
 * the rare domains are absent) and C (they return), and prints what was measured as one JSON object.
 *
 *     nano --arm ours --seed 1 [--steps-a 6000] [--steps-b 3000] [--steps-c 3000] [--weight-decay 0.01] [--width 32]
 *     nano --list                      the arms
 */
#include "nano.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CURVE_EVERY = 100, STATES_EVERY = 500, HEAL_STEPS = 100, HEAL_REPLAY = TOKENS / 4 };

/* ------------------------------------------------------------------ arms
 * Which switches are on from the beginning, and which from the drought on. */
typedef struct {
    const char *name, *what;
    uint32_t balance;
    gate_kind gate;
    bool i1, i3, i4, i5;        /* in the drought: exemption, freezing, anchor, replay */
    bool dense_adam;            /* without I2 */
    bool release;               /* the anchor ends with the drought */
    revive_kind revive;
    bool archive;               /* the carrier of the end of A is restored and healed before C */
    int micro_batches;          /* 0: 1 */
    int dense_width;            /* not 0: no experts */
} arm;
#define BIAS MU_BALANCE_BIAS
static const arm arms[] = {
    { "none", "no balancing", .balance = MU_BALANCE_NONE },
    { "aux_micro", "auxiliary loss 0.01, counts of each of 4 micro-batches", .balance = MU_BALANCE_AUX, .micro_batches = 4 },
    { "aux_global", "auxiliary loss 0.01, counts of the batch", .balance = MU_BALANCE_GLOBAL_AUX },
    { "loss_free", "selection bias", .balance = BIAS },
    { "quantile", "quantile balancing", .balance = MU_BALANCE_QUANTILE },
    { "hash", "each symbol has two experts, no choice", .balance = MU_BALANCE_NONE, .gate = GATE_HASH },
    { "gate_balancer", "carrier by the true domain, exempt in A; the balancer takes it in B", .balance = BIAS, .gate = GATE_ORACLE },
    { "mimic", "carrier, revived in B as a copy of the busiest expert", .balance = BIAS, .gate = GATE_ORACLE, .i1 = true,
      .revive = REVIVE_MIMIC },
    { "redo", "carrier, revived in B by ReDo", .balance = BIAS, .gate = GATE_ORACLE, .i1 = true, .revive = REVIVE_REDO },
    { "drop", "carrier, revived in B as a half-redrawn copy (Drop-Upcycling)", .balance = BIAS, .gate = GATE_ORACLE, .i1 = true,
      .revive = REVIVE_DROP },
    { "exempt", "carrier, exempt (I1)", .balance = BIAS, .gate = GATE_ORACLE, .i1 = true },
    { "exempt_dense", "carrier, I1 with dense AdamW (without I2)", .balance = BIAS, .gate = GATE_ORACLE, .i1 = true, .dense_adam = true },
    { "exempt_frozen", "carrier, I1 and frozen (I3)", .balance = BIAS, .gate = GATE_ORACLE, .i1 = true, .i3 = true },
    { "balancer_anchor", "carrier taken by the balancer, anchor", .balance = BIAS, .gate = GATE_ORACLE, .i4 = true },
    { "balancer_replay", "carrier taken by the balancer, replay", .balance = BIAS, .gate = GATE_ORACLE, .i5 = true },
    { "replay", "no carrier, replay alone", .balance = BIAS, .i5 = true },
    { "ewc", "no carrier, anchor alone", .balance = BIAS, .i4 = true },
    { "ewc_release", "no carrier, anchor alone, until the domains return", .balance = BIAS, .i4 = true, .release = true },
    { "ours", "carrier, I1 I2 I4 I5 I6", .balance = BIAS, .gate = GATE_ORACLE, .i1 = true, .i4 = true, .i5 = true },
    { "ours_no_i1", "ours without exemption in B", .balance = BIAS, .gate = GATE_ORACLE, .i4 = true, .i5 = true },
    { "ours_no_i2", "ours with dense AdamW", .balance = BIAS, .gate = GATE_ORACLE, .i1 = true, .i4 = true, .i5 = true, .dense_adam = true },
    { "ours_no_i4", "ours without anchor: exempt, and replay", .balance = BIAS, .gate = GATE_ORACLE, .i1 = true, .i5 = true },
    { "ours_no_i5", "ours without replay: exempt, and anchor", .balance = BIAS, .gate = GATE_ORACLE, .i1 = true, .i4 = true },
    { "ours_no_i6", "ours without gate: nothing to exempt", .balance = BIAS, .i4 = true, .i5 = true },
    { "gate_balancer_learned", "gate_balancer with the learned gate", .balance = BIAS, .gate = GATE_LEARNED },
    { "exempt_learned", "exempt with the learned gate", .balance = BIAS, .gate = GATE_LEARNED, .i1 = true },
    { "ours_learned", "ours with the learned gate", .balance = BIAS, .gate = GATE_LEARNED, .i1 = true, .i4 = true, .i5 = true },
    { "ours_auto", "ours, but carriers are what the states of experts say", .balance = BIAS, .gate = GATE_AUTO, .i1 = true, .i4 = true, .i5 = true },
    { "archive_only", "the balancer takes the carrier, which is restored after B", .balance = BIAS, .gate = GATE_ORACLE, .archive = true },
    { "oracle_router", "a table from domain to expert", .balance = BIAS, .gate = GATE_TABLE },
    { "dense_flops", "dense, as wide as the chosen experts", .balance = MU_BALANCE_NONE, .dense_width = 2 },
    { "dense_params", "dense, as wide as all experts", .balance = MU_BALANCE_NONE, .dense_width = 8 },
};
enum { ARMS = sizeof arms / sizeof *arms };

/* ------------------------------------------------------------------ a run */
typedef struct {
    const char *arm;
    int64_t seed, steps[3], width, experts;
    double weight_decay, lr, anchor, bias_rate;
    int replay;
} options;
typedef struct { int64_t step; double rare, worst, common, retention, max_vio; } point;
typedef struct {
    const arm *arm;
    options o;
    corpus data;
    nano m;
    buffer kept;
    mu_anchor *anchor;
    copy *archived;             /* of the carrier, at the end of A */
    float K[E_MAX * DOMAINS], peak[E_MAX * DOMAINS];
    double best[DOMAINS];       /* lowest cross-entropy so far */
    mu_expert_health health;
    point *curve;
    int n_points;
    double seconds;             /* of processor time, in steps */
} run;

static double seen_share(const run *r, int d) {
    int64_t a = r->o.steps[0], b = r->o.steps[1], s = r->m.step;
    int64_t dry = s <= a ? 0 : s <= a + b ? s - a : b;
    return s ? (r->data.mixed[d] * (double)(s - dry) + r->data.drought[d] * (double)dry) / (double)s : 0;
}

static bool in_drought(const run *r) { return r->m.step > r->o.steps[0] && r->m.step <= r->o.steps[0] + r->o.steps[1]; }

/* As `muster train` with protect.domains: auto. */
static void protect_carriers(run *r) {
    char all[1][64] = { "auto" };
    mu_protect_config cfg = mu_protect_config_default();
    cfg.domains = (mu_option_names){ 1, all };
    mu_protection_update(&r->m.protection, &cfg, &r->health, corpus_domains(), NULL);
}

/* Criticality of every expert for every domain, and the states of experts that follow. */
static void update_states(run *r, const evaluation *now) {
    nano *m = &r->m;
    int E = m->cfg.experts;
    double silence[E_MAX], share[DOMAINS], present[DOMAINS], ref[DOMAINS];
    for (int i = 0; i < E; i++) {
        evaluation without;
        nano_evaluate(m, i, &without);
        silence[i] = mu_load_window_silence(&m->stats->window, 0, i);
        for (int d = 0; d < DOMAINS; d++) {
            float *K_id = &r->K[i * DOMAINS + d], *peak = &r->peak[i * DOMAINS + d];
            *K_id = now->taken[d][i] > 0 ? (float)(without.ce[d] - now->ce[d]) : 0;
            if (*K_id > *peak) *peak = *K_id;
        }
    }
    for (int d = 0; d < DOMAINS; d++)
        share[d] = seen_share(r, d), present[d] = in_drought(r) ? r->data.drought[d] : r->data.mixed[d], ref[d] = log(SYMBOLS);
    mu_stats_config thresholds = mu_stats_config_default();
    mu_expert_change changes[E_MAX];
    mu_expert_evidence v = { .domains = DOMAINS, .step = m->step, .interval = STATES_EVERY, .load = m->stats->window.total,
                             .silence = silence, .by_domain = m->stats->interval.by_domain, .share = share, .present_share = present,
                             .K = r->K, .peak = r->peak, .ce = now->ce, .ce_best = r->best, .ce_ref = ref };
    mu_expert_health_update(&r->health, &v, &thresholds, changes);
    mu_routing_stats_restart(m->stats);
    if (m->cfg.gate == GATE_AUTO) protect_carriers(r);
}

/* R of a domain: the share of what was learned at best that is known now; 0 while hardly anything was. */
static double retention(const run *r, const evaluation *e, int d) {
    double learned = log(SYMBOLS) - r->best[d];
    return learned > 0.05 ? (log(SYMBOLS) - e->ce[d]) / learned : 0;
}

typedef struct { double rare, worst, excess, R, R_worst, common, common_excess; } summary;
static summary summarise(const run *r, const evaluation *e) {
    summary s = { .worst = 1, .R_worst = 1e9 };
    for (int d = COMMON; d < DECOY; d++) {
        double R = retention(r, e, d);
        s.rare += e->accuracy[d] / RARE, s.excess += (e->ce[d] - corpus_optimum(d)) / RARE, s.R += R / RARE;
        s.worst = fmin(s.worst, e->accuracy[d]), s.R_worst = fmin(s.R_worst, R);
    }
    for (int d = 0; d < COMMON; d++) {
        s.common += r->data.drought[d] * e->accuracy[d];
        s.common_excess += r->data.drought[d] * (e->ce[d] - corpus_optimum(d));
    }
    return s;
}

static void look(run *r) {
    evaluation e;
    nano_evaluate(&r->m, -1, &e);
    for (int d = 0; d < DOMAINS; d++) r->best[d] = fmin(r->best[d], e.ce[d]);
    if (r->m.cfg.experts && r->m.step % STATES_EVERY == 0) update_states(r, &e);
    summary s = summarise(r, &e);
    double max_vio = r->m.cfg.experts ? mu_load_of(r->m.stats->window.total, r->m.cfg.experts).max_vio : 0;
    r->curve[r->n_points++] = (point){ r->m.step, s.rare, s.worst, s.common_excess, s.R, max_vio };
}

static void train(run *r, int64_t steps, bool drought) {
    static tokens t;
    for (int64_t i = 0; i < steps; i++) {
        int64_t step = r->m.step + 1;
        corpus_draw(&r->data, step, drought ? r->data.drought : r->data.mixed, &t);
        buffer_add(&r->kept, r->data.seed, &t);
        if (r->arm->i5 && r->m.step >= r->o.steps[0]) buffer_replay(&r->kept, r->data.seed, step, r->o.replay, &t);
        clock_t before = clock();
        nano_step(&r->m, &t);
        r->seconds += (double)(clock() - before) / CLOCKS_PER_SEC;
        if (r->m.step % CURVE_EVERY == 0) look(r);
    }
}

static void freeze(nano *m, bool carrier, bool others, bool on) {
    for (mu_unit *u = mu_unit_next(m->ps, NULL); u; u = mu_unit_next(m->ps, u))
        if (u->expert == CARRIER ? carrier : others) mu_unit_freeze(u, on);
}

/* ------------------------------------------------------------------ what is printed */

static void print_phase(run *r, const char *name) {
    evaluation e;
    nano_evaluate(&r->m, -1, &e);
    summary s = summarise(r, &e);
    printf(", \"%s_rare\": %.5f, \"%s_worst\": %.5f, \"%s_rare_excess\": %.5f, \"%s_R\": %.5f, \"%s_R_worst\": %.5f, \"%s_common\": %.5f,"
           " \"%s_common_excess\": %.5f", name, s.rare, name, s.worst, name, s.excess, name, s.R, name, s.R_worst, name, s.common, name,
           s.common_excess);
    printf(", \"%s_near\": %.5f, \"%s_changed\": %.5f, \"%s_decoy_excess\": %.5f", name, e.accuracy[NEAR_COPY], name, e.changed, name,
           e.ce[DECOY] - corpus_optimum(DECOY));
}

static void print_load(run *r, const char *name) {
    const nano *m = &r->m;
    int dead = 0;
    if (!m->cfg.experts) return;
    mu_load load = mu_load_of(m->stats->window.total, m->cfg.experts);
    for (int i = 0; i < m->cfg.experts; i++) dead += m->stats->window.total[i] == 0;
    printf(", \"%s_max_vio\": %.4f, \"%s_load_cv\": %.4f, \"%s_dead\": %d", name, load.max_vio, name, load.load_cv, name, dead);
}

static bool carries(const run *r, int i) { return mu_expert_carries(r->health.state[i]); }

/* Carriers by the library's rule, and how the decoy and the near-copy fared (E5). */
static void print_states(run *r, const char *name) {
    const nano *m = &r->m;
    int carriers = 0, of[DOMAINS] = { 0 };
    double decoy = 0, near = 0, tpr = 0, fpr = 0;
    evaluation e;
    if (!m->cfg.experts) return;
    nano_evaluate(&r->m, -1, &e);
    for (int i = 0; i < m->cfg.experts; i++) {
        if (carries(r, i)) carriers++, of[r->health.carried[i] - 1]++;
        decoy = fmax(decoy, (double)r->K[i * DOMAINS + DECOY]);
        near += fmin(e.taken[NEAR_COPY][i], e.taken[PARENT][i]) / K;
    }
    for (int d = COMMON; d < DECOY; d++) tpr += e.taken[d][CARRIER] / RARE;
    for (int d = 0; d < COMMON; d++) fpr += r->data.drought[d] * e.taken[d][CARRIER];
    printf(", \"%s_carriers\": %d, \"%s_decoy_carriers\": %d, \"%s_near_carriers\": %d, \"%s_decoy_K\": %.4f, \"%s_near_overlap\": %.4f,"
           " \"%s_tpr\": %.4f, \"%s_fpr\": %.5f", name, carriers, name, of[DECOY], name, of[NEAR_COPY], name, decoy, name, near, name, tpr,
           name, fpr);
}

static void print_end(run *r, const char *name) {
    print_phase(r, name);
    print_load(r, name);
    print_states(r, name);
}

/* First step after `from` at which the rare accuracy is at least half; -1: never. */
static int64_t steps_to_half(const run *r, int64_t from, int64_t to) {
    for (int i = 0; i < r->n_points; i++)
        if (r->curve[i].step >= from && r->curve[i].step <= to && r->curve[i].rare >= 0.5) return r->curve[i].step - from;
    return -1;
}

static void print_curve(const run *r) {
    printf(", \"curve\": [");
    for (int i = 0; i < r->n_points; i++)
        printf("%s[%lld, %.4f, %.4f, %.4f, %.4f, %.4f]", i ? ", " : "", (long long)r->curve[i].step, r->curve[i].rare, r->curve[i].worst,
               r->curve[i].common, r->curve[i].retention, r->curve[i].max_vio);
    printf("]");
}

/* ------------------------------------------------------------------ the archive */

/* Only the restored expert trains, not even the selection bias; a quarter of its batches is replay. */
static void heal(run *r) {
    static tokens t;
    double rate = r->m.moe_cfg.bias_update_rate;
    freeze(&r->m, false, true, true);
    mu_anchor *kept = r->m.anchor;
    r->m.anchor = NULL, r->m.moe_cfg.bias_update_rate = 0;
    int64_t step = r->m.step;
    for (int64_t i = 0; i < HEAL_STEPS; i++) {
        corpus_draw(&r->data, ((int64_t)1 << 30) + i, r->data.drought, &t);
        buffer_replay(&r->kept, r->data.seed, ((int64_t)1 << 30) + i, HEAL_REPLAY, &t);
        nano_step(&r->m, &t);
    }
    r->m.step = step, r->m.anchor = kept, r->m.moe_cfg.bias_update_rate = rate;
    freeze(&r->m, false, true, false);
}

/* At the end of B. Unless it is the arm's way, everything is then as before. */
static void restore(run *r) {
    copy *before = copy_model(&r->m);
    bool exempt = r->m.exempt;
    copy_expert_back(&r->m, CARRIER, r->archived);
    nano_exempt(&r->m, true);
    print_phase(r, "restored");
    heal(r);
    print_phase(r, "healed");
    if (!r->arm->archive) copy_model_back(&r->m, before), nano_exempt(&r->m, exempt);
    copy_free(before);
}

/* ------------------------------------------------------------------ the three phases */

static void phase_b(run *r) {
    int64_t steps = r->o.steps[1], first = r->arm->revive ? steps / 10 : 0;
    bool carrier = nano_has_carrier(&r->m) && r->arm->gate != GATE_TABLE;
    if (carrier) r->archived = copy_expert(&r->m, CARRIER);
    if (r->arm->i4) r->m.anchor = r->anchor = anchor_new(&r->m, &r->kept);
    if (r->arm->i3) freeze(&r->m, true, false, true);
    if (carrier) nano_exempt(&r->m, r->arm->i1);
    train(r, first, true);
    if (r->arm->revive) revive(&r->m, r->arm->revive, r->data.seed), nano_exempt(&r->m, false);
    train(r, steps - first, true);
    print_end(r, "B");
    if (carrier && !r->m.exempt) restore(r);
    if (r->arm->i3) freeze(&r->m, true, false, false);
}

static void run_arm(run *r) {
    const int64_t *steps = r->o.steps;
    train(r, steps[0], false);
    print_end(r, "A");
    phase_b(r);
    if (r->arm->release) r->m.anchor = NULL;
    train(r, steps[2], false);
    print_end(r, "C");
    int64_t dry = steps[0] + steps[1], first = steps_to_half(r, 0, steps[0]), again = steps_to_half(r, dry, dry + steps[2]);
    printf(", \"first_half\": %lld, \"again_half\": %lld", (long long)first, (long long)again);
}

static void start(run *r, const arm *a, const options *o) {
    *r = (run){ .arm = a, .o = *o };
    corpus_make(&r->data, (uint64_t)o->seed);
    nano_config cfg = { .experts = a->dense_width ? 0 : (int)o->experts,
                        .width = (int)(a->dense_width == 2 ? K * o->width : a->dense_width ? o->experts * o->width : o->width),
                        .balance = a->balance, .micro_batches = a->micro_batches ? a->micro_batches : 1, .gate = a->gate,
                        .lazy = !a->dense_adam, .lr = o->lr, .weight_decay = o->weight_decay, .anchor = o->anchor };
    nano_open(&r->m, &cfg, &r->data);
    r->m.moe_cfg.bias_update_rate = o->bias_rate;
    mu_expert_health_init(&r->health, cfg.experts > 0, cfg.experts);
    for (int d = 0; d < DOMAINS; d++) r->best[d] = log(SYMBOLS);
    r->curve = mu_alloc((size_t)((o->steps[0] + o->steps[1] + o->steps[2]) / CURVE_EVERY + 1), sizeof *r->curve);
}

static int64_t count_parameters(const nano *m) {
    int64_t n = 0;
    for (mu_unit *u = mu_unit_next(m->ps, NULL); u; u = mu_unit_next(m->ps, u)) n += u->count;
    return n;
}

static int64_t count_active(const nano *m) {
    int64_t idle = (int64_t)(m->cfg.experts ? m->cfg.experts - K : 0) * 3 * m->cfg.width * D;
    return count_parameters(m) - idle;
}

static void perform(const arm *a, const options *o) {
    static run r;
    start(&r, a, o);
    printf("{\"arm\": \"%s\", \"seed\": %lld, \"steps_a\": %lld, \"steps_b\": %lld, \"steps_c\": %lld, \"width\": %lld, \"experts\": %lld,"
           " \"weight_decay\": %g, \"lr\": %g, \"bias_rate\": %g, \"anchor\": %g, \"replay\": %d, \"parameters\": %lld, \"active\": %lld",
           a->name, (long long)o->seed, (long long)o->steps[0], (long long)o->steps[1], (long long)o->steps[2], (long long)o->width,
           (long long)o->experts, o->weight_decay, o->lr, o->bias_rate, o->anchor, o->replay, (long long)count_parameters(&r.m),
           (long long)count_active(&r.m));
    run_arm(&r);
    printf(", \"cpu_ms_per_step\": %.4f", 1e3 * r.seconds / (double)r.m.step);
    print_curve(&r);
    puts("}");
    mu_anchor_free(r.anchor), copy_free(r.archived), free(r.curve);
    mu_expert_health_free(&r.health);
    nano_close(&r.m);
}

/* ------------------------------------------------------------------ command line */

static int usage(const char *why, const char *what) {
    fprintf(stderr, "nano: %s%s\nusage: nano --arm NAME --seed N [--steps-a N] [--steps-b N] [--steps-c N] [--weight-decay X] [--lr X]"
            " [--width N] [--experts N] [--bias-rate X] [--anchor X] [--replay N] | --list\n", why, what);
    return MU_STATUS_USAGE;
}

static bool number(const char *text, double low, double high, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && *out >= low && *out <= high;
}

/* 0, or the exit code of a wrong command line. */
static int read_options(int argc, char **argv, options *o) {
    for (int i = 1; i < argc; i += 2) {
        double x = 0;
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(name, "--arm")) {
            o->arm = value;
            continue;
        }
        if (!number(value, 0, 1e9, &x)) return usage(name, " needs a number from 0 to 1e9");
        if (!strcmp(name, "--seed")) o->seed = (int64_t)x;
        else if (!strcmp(name, "--steps-a")) o->steps[0] = (int64_t)x;
        else if (!strcmp(name, "--steps-b")) o->steps[1] = (int64_t)x;
        else if (!strcmp(name, "--steps-c")) o->steps[2] = (int64_t)x;
        else if (!strcmp(name, "--weight-decay")) o->weight_decay = x;
        else if (!strcmp(name, "--lr")) o->lr = x;
        else if (!strcmp(name, "--width") && x >= 2 && x <= 128) o->width = (int64_t)x;
        else if (!strcmp(name, "--experts") && x >= 3 && x <= E_MAX) o->experts = (int64_t)x;
        else if (!strcmp(name, "--bias-rate")) o->bias_rate = x;
        else if (!strcmp(name, "--anchor")) o->anchor = x;
        else if (!strcmp(name, "--replay") && x <= TOKENS) o->replay = (int)x;
        else return usage(name, ": unknown, or its value is out of range");
    }
    return 0;
}

static void on_fatal(mu_status status, const char *line) {
    fprintf(stderr, "nano: %s\n", line);
    exit(status);
}

int main(int argc, char **argv) {
    options o = { .seed = 1, .steps = { 6000, 3000, 3000 }, .width = 32, .experts = 8, .weight_decay = 0.01, .lr = 3e-3, .anchor = 10,
                  .bias_rate = 1e-3, .replay = 1 };
    mu_fatal_set_handler(on_fatal);
    mu_threads_set(1);
    if (argc == 2 && !strcmp(argv[1], "--list")) {
        for (int i = 0; i < ARMS; i++) printf("%s\t%s\n", arms[i].name, arms[i].what);
        return 0;
    }
    int wrong = read_options(argc, argv, &o);
    if (wrong) return wrong;
    for (int i = 0; i < ARMS && o.arm; i++)
        if (!strcmp(o.arm, arms[i].name)) return perform(&arms[i], &o), 0;
    return usage("no arm ", o.arm ? o.arm : "was given");
}
