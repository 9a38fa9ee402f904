/* cmd_stats.c - muster stats: what the experts of a checkpoint do with any texts, and what they know of them. */
#include "train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *path;
    mu_option_domains list;
    int n_overrides;
    char **overrides;
} arguments;

static void free_arguments(arguments *a) {
    free(a->list.list);
    free(a->overrides);
}

/* Does the argument begin with the name of an option and '='? */
static bool is_override(const char *text) {
    int n;
    const mu_option *table = mu_config_table(&n);
    for (int i = 0; i < n; i++) {
        char name[80];
        int length = snprintf(name, sizeof name, "%s.%s=", table[i].section, table[i].key);
        if (!strncmp(text, name, (size_t)length)) return true;
    }
    return false;
}

static mu_status parse(int argc, char **argv, arguments *a, mu_error *e) {
    a->list.list = mu_alloc((size_t)argc, sizeof *a->list.list);
    a->overrides = mu_alloc((size_t)argc, sizeof *a->overrides);
    mu_status status = MU_STATUS_OK;
    for (int i = 2; i < argc && status == MU_STATUS_OK; i++) {
        if (argv[i][0] == '-') status = mu_error_set(e, MU_STATUS_USAGE, "unexpected argument '%s'", argv[i]);
        else if (i == 2) a->path = argv[i];
        else if (!is_override(argv[i])) status = mu_domain_argument(argv[i], &a->list, e);
        else if (strncmp(argv[i], "stats.probe_tokens=", 19) && strncmp(argv[i], "data.text_key=", 14))
            status = mu_config_check_use(argv[i], MU_ON_GENERATE, "stats (and stats.probe_tokens, data.text_key)", e);
        if (status == MU_STATUS_OK && i > 2 && is_override(argv[i])) a->overrides[a->n_overrides++] = argv[i];
    }
    if (status != MU_STATUS_OK) return status;
    if (!a->path) return mu_error_set(e, MU_STATUS_USAGE, "stats needs a run folder or a checkpoint, and DOMAIN=PATH for each text");
    if (!a->list.n) return mu_error_set(e, MU_STATUS_USAGE, "stats needs at least one DOMAIN=PATH");
    return mu_expand_argument(&a->path, e);
}

/* ------------------------------------------------------------------ tables */

/* What is printed: counts over all of the texts, and what was measured on a part of them. */
typedef struct {
    const mu_inference *o;
    const mu_texts *texts;
    const mu_knowledge *all, *probe;
    int64_t tokens, probe_tokens;   /* of all domains */
    int64_t *of_expert, *of_domain, *of_layer;  /* [layers, experts], [layers, domains], [layers]: sums of all's counts */
} results;

static int64_t cell_of(const mu_knowledge *k, int layer, int expert, int domain) {
    return ((int64_t)layer * k->experts + expert) * k->domains + domain;
}
static int layer_id(const results *r, int layer) { return r->o->state.model->moe_layers[layer]; }

static void add_up(results *r) {
    const mu_knowledge *k = r->all;
    r->of_expert = mu_alloc((size_t)k->layers * (size_t)k->experts, sizeof *r->of_expert);
    r->of_domain = mu_alloc((size_t)k->layers * (size_t)k->domains, sizeof *r->of_domain);
    r->of_layer = mu_alloc((size_t)k->layers, sizeof *r->of_layer);
    for (int layer = 0; layer < k->layers; layer++)
        for (int i = 0; i < k->experts; i++)
            for (int d = 0; d < k->domains; d++) {
                int64_t n = k->n[cell_of(k, layer, i, d)];
                r->of_expert[layer * k->experts + i] += n, r->of_domain[layer * k->domains + d] += n, r->of_layer[layer] += n;
            }
}

static void free_sums(results *r) {
    free(r->of_expert);
    free(r->of_domain);
    free(r->of_layer);
}

/* An expert's share of a domain's assignments, or of all (domain < 0). */
static double share(const results *r, int layer, int expert, int domain) {
    const mu_knowledge *k = r->all;
    if (domain < 0) return (double)r->of_expert[layer * k->experts + expert] / (double)r->of_layer[layer];
    return (double)k->n[cell_of(k, layer, expert, domain)] / (double)r->of_domain[layer * k->domains + domain];
}

static void print_domains(const results *r) {
    const mu_knowledge *k = r->all;
    printf("\n%-20s %12s %10s %10s\n", "domain", "tokens", "loss", "unigram");
    for (int d = 0; d < k->domains; d++)
        mu_print("%-20s %12lld %10.4f %10.4f\n", k->names[d], (long long)k->tokens[d], k->ce[d], k->ce_ref[d]);
    printf("loss in nats per token, over all whole sequences of %lld tokens; unigram: entropy of the token frequencies\n",
           (long long)r->texts->seq_len);
}

/* One row: an expert's share times the number of experts; 16 to a line. */
static void print_row(const results *r, const char *name, int layer, int domain) {
    enum { IN_A_LINE = 16 };
    for (int i = 0; i < r->all->experts; i++) {
        if (i % IN_A_LINE == 0) mu_print(i ? "\n  %-20s" : "  %-20s", i ? "" : name);
        printf(" %5.2f", share(r, layer, i, domain) * r->all->experts);
    }
    printf("\n");
}

/* The experts whose share, times their number, is in [low, high). */
static void print_experts(const results *r, int layer, const char *what, double low, double high) {
    int n = 0, E = r->all->experts;
    for (int i = 0; i < E; i++) {
        double load = share(r, layer, i, -1) * E;
        if (load < low || load >= high) continue;
        if (n++) printf(", %d", i);
        else printf("  %s: %d", what, i);
    }
    if (n) printf("\n");
}

static void print_loads(const results *r) {
    static const double SOME = 1e-300, STARVED = 0.1;
    printf("\nload of each expert, by all texts and by each domain (1.00 = uniform)\n");
    for (int layer = 0; layer < r->all->layers; layer++) {
        printf("layer %d\n", layer_id(r, layer));
        print_row(r, "all", layer, -1);
        for (int d = 0; d < r->all->domains && r->all->domains > 1; d++) print_row(r, r->all->names[d], layer, d);
        print_experts(r, layer, "no token", 0, SOME);
        print_experts(r, layer, "under 10 % of the mean", SOME, STARVED);
    }
}

/* An expert is listed when it gets this many times its fair share of the domain. */
static const double listed = 1.5;

/* The unprinted expert with the largest share of the domain. */
static int next_expert(const results *r, int layer, int domain, const bool *printed) {
    int best = -1;
    for (int i = 0; i < r->all->experts; i++)
        if (!printed[i] && (best < 0 || share(r, layer, i, domain) > share(r, layer, best, domain))) best = i;
    return best;
}

static double times_fair(const results *r, int layer, int domain, int expert) { return share(r, layer, expert, domain) * r->all->experts; }

/* 0: not measured. */
static int print_pair(const results *r, int layer, int domain, int expert) {
    const mu_knowledge *k = r->probe;
    double x = share(r, layer, expert, domain), of_all = share(r, layer, expert, -1);
    int64_t cell = cell_of(k, layer, expert, domain);
    mu_print("  %-20s %6d %8.1f%% %+8.2f ", k->names[domain], expert, 100 * x, log2(x / of_all));
    if (k->at[cell]) return printf("%11.4f\n", k->K[cell] + 0.0), 1;
    return printf("%11s\n", "too few"), 0;
}

/* The pairs of a layer; returns how many of them were not measured. */
static int print_layer(const results *r, int layer, bool *printed) {
    int n = 0, unmeasured = 0, most_domain = 0, most_expert = -1;
    for (int d = 0; d < r->all->domains; d++) {
        memset(printed, 0, sizeof *printed * (size_t)r->all->experts);
        for (int i = next_expert(r, layer, d, printed); i >= 0; i = next_expert(r, layer, d, printed)) {
            if (most_expert < 0 || times_fair(r, layer, d, i) > times_fair(r, layer, most_domain, most_expert)) most_domain = d, most_expert = i;
            if (times_fair(r, layer, d, i) < listed) break;
            if (!n++) printf("layer %d\n  %-20s %6s %9s %8s %11s\n", layer_id(r, layer), "domain", "expert", "share", "lift", "criticality");
            unmeasured += !print_pair(r, layer, d, i);
            printed[i] = true;
        }
    }
    if (!n)
        mu_print("layer %d: none; at most %.2f times, expert %d of %s\n", layer_id(r, layer), times_fair(r, layer, most_domain, most_expert), most_expert,
                 r->all->names[most_domain]);
    return unmeasured;
}

static void print_pairs(const results *r) {
    bool *printed = mu_alloc((size_t)r->all->experts, sizeof *printed);
    int unmeasured = 0;
    printf("\nexperts that get at least %g times their fair share of a domain\n", listed);
    for (int layer = 0; layer < r->all->layers; layer++) unmeasured += print_layer(r, layer, printed);
    printf("share: of the domain's assignments; lift: log2 of share / share of all texts; criticality: nats per token that the\n"
           "domain loses without the expert, on %lld tokens of all domains together (stats.probe_tokens)\n", (long long)r->probe_tokens);
    if (unmeasured)
        printf("too few: not measured (%d of the experts above), because on these tokens the expert gets less than %g times its\n"
               "fair share of the domain; with more stats.probe_tokens fewer are left out\n", unmeasured, listed);
    free(printed);
}

/* One line for each layer, the keys of metrics.jsonl. */
static void print_layers(const results *r) {
    const mu_knowledge *k = r->all;
    int64_t cells = (int64_t)k->experts * k->domains, *n_ED = mu_alloc((size_t)cells, sizeof *n_ED);
    printf("\n%-8s %9s %8s %8s %8s %8s %9s %12s %10s %11s\n", "layer", "imbalance", "max_vio", "min_vio", "load_cv", "gini", "diversity",
           "mutual info.", "normalised", "vocabulary");
    for (int layer = 0; layer < k->layers; layer++) {
        mu_load l = mu_load_of(r->of_expert + (int64_t)layer * k->experts, k->experts);
        for (int64_t i = 0; i < cells; i++) n_ED[i] = k->n[cell_of(k, layer, 0, 0) + i];
        mu_mutual_information mi = mu_mutual_information_of(n_ED, k->experts, k->domains);
        printf("%-8d %9.3f %8.3f %8.3f %8.3f %8.3f %9.3f %12.4f %10.4f", layer_id(r, layer), l.load_imbalance, l.max_vio, l.min_vio, l.load_cv, l.gini,
               l.diversity, mi.nats, mi.normalised);
        if (isfinite(r->probe->vocabulary[layer])) printf(" %11.3f\n", r->probe->vocabulary[layer]);
        else printf(" %11s\n", "too few");
    }
    free(n_ED);
    printf("mutual information of domain and expert in nats, and normalised (0: experts ignore domains); vocabulary: specialisation on token ids\n");
}

static void print_routers(const results *r) {
    const mu_knowledge *k = r->all;
    double tokens = MU_MARGIN_UNIT * (double)r->tokens;
    printf("\n%-8s %15s %14s %16s\n", "layer", "router entropy", "top-1 margin", "boundary margin");
    for (int layer = 0; layer < k->layers; layer++)
        printf("%-8d %15.4f %14.4f %16.4f\n", layer_id(r, layer), (double)k->margins[layer].entropy / tokens, (double)k->margins[layer].top / tokens,
               (double)k->margins[layer].boundary / tokens);
    printf("means over tokens. Entropy of the scores in nats, at most %.4f; largest logit minus the second; score of the last chosen expert minus\n"
           "that of the best other\n", log((double)k->experts));
}

static void print_similarity(const results *r) {
    const mu_knowledge *k = r->probe;
    if (!k->similarity_step) return;
    printf("\nsimilarity of experts: outputs for the same tokens\n");
    for (int layer = 0; layer < k->layers; layer++) {
        int64_t first = (int64_t)layer * k->experts, best = first;
        for (int64_t i = first; i < first + k->experts; i++)
            if (k->twin[i] > k->twin[best]) best = i;
        printf("  layer %-3d mean cosine %.4f, mean linear CKA %.4f; most alike: experts %lld and %lld, cosine %.4f\n", layer_id(r, layer),
               k->similarity[layer], k->cka[layer], (long long)(best - first), (long long)k->twin_of[best], k->twin[best]);
    }
}

static void print_results(results *r) {
    add_up(r);
    for (int d = 0; d < r->all->domains; d++) r->tokens += r->all->tokens[d];
    mu_print("%s, step %lld: %d domain%s, %lld tokens\n", r->o->source.m.path, (long long)r->o->source.m.step, r->all->domains,
             r->all->domains == 1 ? "" : "s", (long long)r->tokens);
    print_domains(r);
    print_loads(r);
    print_layers(r);
    print_routers(r);
    print_pairs(r);
    print_similarity(r);
    free_sums(r);
}

/* ------------------------------------------------------------------ measuring */

static mu_knowledge *knowledge_of(const mu_inference *o, const mu_option_domains *list) {
    return mu_knowledge_new(o->state.model->n_moe, (int)o->cfg.moe.num_experts, (int)o->cfg.moe.top_k, list);
}

/* Counts over all of the texts; the rest on stats.probe_tokens of each. */
static void measure(mu_inference *o, const mu_texts *texts, const mu_option_domains *list) {
    enum { AT_ONCE = 8 };
    const mu_mesh *mesh = o->state.mesh;
    mu_evaluation ev = { .model = o->state.model, .tape = o->tape, .texts = texts, .batch = mesh->batch, .at_once = AT_ONCE };
    mu_knowledge *all = knowledge_of(o, list), *k = knowledge_of(o, list);
    mu_probe *whole = mu_probe_new(&ev, INT64_MAX, 0), *probe = mu_probe_new(&ev, o->cfg.stats.probe_tokens, MU_PROBE_KEEP_BYTES);
    int64_t step = o->source.m.step > 0 ? o->source.m.step : 1;
    mu_model_name_domains(o->state.model, list);
    mu_probe_count(whole, all, step);
    k->credit = (int64_t)1 << 60; /* whatever it costs */
    mu_probe_measure(probe, k, step);
    if (mesh->world->rank == 0) print_results(&(results){ .o = o, .texts = texts, .all = all, .probe = k, .probe_tokens = mu_probe_tokens(probe) });
    mu_probe_free(probe);
    mu_probe_free(whole);
    mu_knowledge_free(k);
    mu_knowledge_free(all);
}

static mu_status check_model(const mu_inference *o, mu_error *e) {
    return o->state.model->n_moe ? MU_STATUS_OK
                                 : mu_error_set(e, MU_STATUS_DATA, "%s is of a dense model: there are no experts", o->source.m.path);
}

int mu_cmd_stats(int argc, char **argv) {
    mu_error e = { 0 };
    mu_inference o = { 0 };
    mu_texts texts = { 0 };
    arguments a = { 0 };
    mu_dist_start(&argc, &argv);
    mu_mesh *mesh = mu_mesh_open(NULL, 1);
    int rank = mesh->world->rank;
    mu_report_error(&e, rank);
    mu_status status = mu_agree(mesh->world, parse(argc, argv, &a, &e), &e);
    if (status == MU_STATUS_OK) status = mu_arguments_agree(mesh->world, argc, argv, &e);
    if (status == MU_STATUS_OK) status = mu_inference_open(&o, mesh, a.path, a.n_overrides, a.overrides, &e);
    if (status == MU_STATUS_OK) status = mu_agree(mesh->world, check_model(&o, &e), &e);
    if (status == MU_STATUS_OK) status = mu_texts_open_whole(&texts, &o.cfg, &a.list, o.tokenizer, mesh->world, &e);
    if (status == MU_STATUS_OK) measure(&o, &texts, &a.list);
    mu_texts_close(&texts);
    mu_inference_close(&o);
    free_arguments(&a);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_mesh_close(mesh);
    mu_dist_stop();
    return (int)status;
}
