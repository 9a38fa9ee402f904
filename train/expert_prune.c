/* expert_prune.c - muster expert prune: a model with fewer experts. */
#include "train/expert_job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int expert; double score, load; } candidate;

static int by_score(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    if (x->load != y->load) return x->load < y->load ? 1 : -1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

static int by_number(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static double score_of(const mu_expert_job *j, int64_t at) {
    const mu_knowledge *k = mu_job_state(j)->knowledge;
    double most = 0;
    if (!j->a->by || !strcmp(j->a->by, "load")) return (double)mu_job_state(j)->stats->window.total[at];
    for (int d = 0; d < k->domains; d++) most = fmax(most, (double)k->K[at * k->domains + d]);
    return most;
}

/* Does no other carrier of its domain stay in the layer? c: sorted, of which `keep` stay. */
static bool is_last_carrier(const mu_expert_job *j, int moe, const candidate *c, int64_t keep, int expert) {
    const mu_expert_health *h = &mu_job_state(j)->stats->health;
    int64_t at = mu_job_cell(j, moe, expert);
    bool last = mu_expert_carries(h->state[at]);
    for (int64_t k = 0; k < keep && last; k++) {
        int64_t other = mu_job_cell(j, moe, c[k].expert);
        last = !mu_expert_carries(h->state[other]) || h->carried[other] != h->carried[at];
    }
    return last;
}

/* The last carrier of a domain goes only when --force is given twice. Every expert that goes is archived, carriers with samples. */
static mu_status leave_out(mu_expert_job *j, int moe, const candidate *c, int expert, mu_error *e) {
    mu_place p = { mu_job_state(j)->model->moe_layers[moe], expert };
    int64_t at = mu_job_cell(j, moe, expert);
    if (is_last_carrier(j, moe, c, j->a->keep, expert)) {
        const char *domain = mu_job_state(j)->knowledge->names[mu_job_state(j)->stats->health.carried[at] - 1];
        if (j->a->force < 2)
            return mu_error_set(e, MU_STATUS_CONFIG, "expert %d of layer %d is the last carrier of %s there; keep more experts, or --by criticality;"
                                " --force --force removes it all the same, after archiving it", expert, p.layer, domain);
        mu_print("layer %d loses expert %d, the last carrier of %s\n", p.layer, expert, domain);
    }
    return mu_job_archive_first(j, p, mu_expert_carries(mu_job_expert_state(j, at)), e);
}

/* kept [N], ascending. */
static mu_status choose(mu_expert_job *j, int moe, int *kept, mu_error *e) {
    int64_t E = mu_job_experts(j), N = j->a->keep;
    mu_status status = MU_STATUS_OK;
    candidate *c = mu_alloc((size_t)E, sizeof *c);
    for (int i = 0; i < E; i++) {
        int64_t at = mu_job_cell(j, moe, i);
        c[i] = (candidate){ i, score_of(j, at), (double)mu_job_state(j)->stats->window.total[at] };
    }
    qsort(c, (size_t)E, sizeof *c, by_score);
    for (int i = 0; i < N; i++) kept[i] = c[i].expert;
    qsort(kept, (size_t)N, sizeof *kept, by_number);
    for (int64_t i = N; i < E && status == MU_STATUS_OK; i++) status = leave_out(j, moe, c, c[i].expert, e);
    free(c);
    return status;
}

/* ------------------------------------------------------------------ tables that name experts */

/* The first layer that does not keep the expert; -1: all do. */
static int missing_in(const mu_expert_job *j, const int *kept, int64_t expert) {
    int64_t N = j->a->keep;
    for (int i = 0; i < mu_job_state(j)->model->n_moe; i++) {
        int64_t k = 0;
        while (k < N && kept[i * N + k] != expert) k++;
        if (k == N) return i;
    }
    return -1;
}

/* A table has one number for all layers, so an expert that it names stays in all of them, or the domain is left out of the table. */
static mu_status check_table(const mu_expert_job *j, const int *kept, const char *option, const mu_option_domain_ints *table, mu_error *e) {
    for (int i = 0; i < table->n; i++) {
        const mu_option_domain_int *x = &table->list[i];
        int layer = missing_in(j, kept, x->value);
        if (layer < 0) continue;
        if (!j->a->force)
            return mu_error_set(e, MU_STATUS_CONFIG, "%s gives %s to expert %lld, which layer %d would lose; keep more experts, or --by criticality; --force"
                                " leaves %s out of the table", option, x->domain, (long long)x->value, mu_job_state(j)->model->moe_layers[layer], x->domain);
        mu_print("%s is left out of %s: expert %lld does not stay in layer %d\n", x->domain, option, (long long)x->value,
                 mu_job_state(j)->model->moe_layers[layer]);
    }
    return MU_STATUS_OK;
}

static bool names(const mu_option_domain_ints *table, int64_t expert) {
    for (int i = 0; i < table->n; i++)
        if (table->list[i].value == expert) return true;
    return false;
}

/* Experts that a table names and every layer keeps come first: so they have one number again. */
static void order(const mu_expert_job *j, int *kept) {
    int64_t N = j->a->keep;
    int layers = mu_job_state(j)->model->n_moe, *all = mu_alloc((size_t)(layers * N), sizeof *all);
    for (int64_t i = 0; i < layers * N; i++) all[i] = kept[i];
    for (int layer = 0; layer < layers; layer++) {
        int *to = kept + layer * N;
        for (int rest = 0; rest < 2; rest++)
            for (int64_t k = 0; k < N; k++) {
                int x = all[layer * N + k];
                bool named = (names(&j->m.cfg.moe.force_domains, x) || names(&j->m.cfg.protect.carriers, x)) && missing_in(j, all, x) < 0;
                if (named == !rest) *to++ = x;
            }
    }
    free(all);
}

/* ------------------------------------------------------------------ all of it */

static mu_status check(const mu_expert_job *j, mu_error *e) {
    int64_t E = mu_job_experts(j), N = j->a->keep;
    if (!mu_job_state(j)->stats) return mu_error_set(e, MU_STATUS_CONFIG, "%s holds weights only: nothing is known of its experts", j->m.path);
    if (N >= E) return mu_error_set(e, MU_STATUS_USAGE, "--keep %lld: the layers have %lld experts", (long long)N, (long long)E);
    if (N < j->m.cfg.moe.top_k)
        return mu_error_set(e, MU_STATUS_USAGE, "--keep %lld: each token takes moe.top_k=%lld experts", (long long)N, (long long)j->m.cfg.moe.top_k);
    return MU_STATUS_OK;
}

static void tell(const mu_expert_job *j, const int *kept) {
    for (int i = 0; i < mu_job_state(j)->model->n_moe; i++) {
        mu_print("layer %d keeps", mu_job_state(j)->model->moe_layers[i]);
        for (int64_t k = 0; k < j->a->keep; k++) mu_print(" %d", kept[i * j->a->keep + k]);
        mu_print("\n");
    }
}

mu_status mu_expert_prune(mu_expert_job *j, mu_error *e) {
    int64_t N = j->a->keep;
    int layers = mu_job_state(j)->model->n_moe, *kept = mu_alloc((size_t)(layers * N) + 1, sizeof *kept);
    mu_status status = check(j, e);
    if (status == MU_STATUS_OK) status = mu_job_open_live(j, j->a->dry_run, e);
    for (int i = 0; i < layers && status == MU_STATUS_OK; i++) status = choose(j, i, kept + i * N, e);
    if (status == MU_STATUS_OK) status = check_table(j, kept, "moe.force_domains", &j->m.cfg.moe.force_domains, e);
    if (status == MU_STATUS_OK) status = check_table(j, kept, "protect.carriers", &j->m.cfg.protect.carriers, e);
    if (status == MU_STATUS_OK) order(j, kept), tell(j, kept);
    if (status == MU_STATUS_OK) status = mu_surgery_keep(&j->s, N, kept, e);
    if (status == MU_STATUS_OK) {
        char detail[64];
        snprintf(detail, sizeof detail, "%lld of %lld experts kept, by %s", (long long)N, (long long)mu_job_experts(j), j->a->by ? j->a->by : "load");
        mu_surgery_note(&j->s, "prune", -1, -1, detail);
    }
    free(kept);
    return status;
}
