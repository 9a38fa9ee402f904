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

/* A domain of which a removed expert is the last carrier in its layer; -1: none. */
static int loses_domain(const mu_expert_job *j, int moe, const candidate *c, int64_t keep, int *expert) {
    const mu_expert_health *h = &mu_job_state(j)->stats->health;
    for (int64_t i = keep; i < mu_job_experts(j); i++) {
        int64_t at = mu_job_cell(j, moe, c[i].expert);
        bool stays = !mu_expert_carries(mu_job_expert_state(j, at));
        for (int64_t k = 0; k < keep && !stays; k++) {
            int64_t other = mu_job_cell(j, moe, c[k].expert);
            stays = mu_expert_carries(mu_job_expert_state(j, other)) && h->carried[other] == h->carried[at];
        }
        if (!stays) return *expert = c[i].expert, (int)h->carried[at] - 1;
    }
    return -1;
}

/* kept [N], ascending. */
static mu_status choose(mu_expert_job *j, int moe, int *kept, mu_error *e) {
    int64_t E = mu_job_experts(j), N = j->a->keep;
    int expert, layer = mu_job_state(j)->model->moe_layers[moe];
    candidate *c = mu_alloc((size_t)E, sizeof *c);
    for (int i = 0; i < E; i++) {
        int64_t at = mu_job_cell(j, moe, i);
        c[i] = (candidate){ i, score_of(j, at), (double)mu_job_state(j)->stats->window.total[at] };
    }
    qsort(c, (size_t)E, sizeof *c, by_score);
    int lost = loses_domain(j, moe, c, N, &expert);
    mu_status status = lost < 0 || j->a->force ? MU_STATUS_OK
        : mu_error_set(e, MU_STATUS_CONFIG, "expert %d of layer %d is the last carrier of %s there; keep more experts, or --by criticality, or --force", expert,
                       layer, mu_job_state(j)->knowledge->names[lost]);
    for (int i = 0; i < N; i++) kept[i] = c[i].expert;
    qsort(kept, (size_t)N, sizeof *kept, by_number);
    for (int64_t i = N; i < E && status == MU_STATUS_OK; i++) status = mu_job_archive_first(j, (mu_place){ layer, c[i].expert }, false, e);
    free(c);
    return status;
}

mu_status mu_expert_prune(mu_expert_job *j, mu_error *e) {
    int64_t E = mu_job_experts(j), N = j->a->keep;
    int layers = mu_job_state(j)->model->n_moe, *kept = mu_alloc((size_t)(layers * N) + 1, sizeof *kept);
    mu_status status = MU_STATUS_OK;
    if (!mu_job_state(j)->stats) status = mu_error_set(e, MU_STATUS_CONFIG, "%s holds weights only: nothing is known of its experts", j->m.path);
    else if (N >= E) status = mu_error_set(e, MU_STATUS_USAGE, "--keep %lld: the layers have %lld experts", (long long)N, (long long)E);
    else if (N < j->m.cfg.moe.top_k)
        status = mu_error_set(e, MU_STATUS_USAGE, "--keep %lld: each token takes moe.top_k=%lld experts", (long long)N, (long long)j->m.cfg.moe.top_k);
    else if (j->m.cfg.moe.force_domains.n || j->m.cfg.protect.carriers.n)
        status = mu_error_set(e, MU_STATUS_CONFIG, "%s name experts by their numbers, which prune changes: begin a run without it, with --fork, and"
                              " prune that", j->m.cfg.moe.force_domains.n ? "moe.force_domains" : "protect.carriers");
    if (status == MU_STATUS_OK && j->a->dry_run) status = mu_job_open_live(j, true, e);
    for (int i = 0; i < layers && status == MU_STATUS_OK; i++) status = choose(j, i, kept + i * N, e);
    for (int i = 0; i < layers && status == MU_STATUS_OK; i++) {
        mu_print("layer %d keeps", mu_job_state(j)->model->moe_layers[i]);
        for (int64_t k = 0; k < N; k++) mu_print(" %d", kept[i * N + k]);
        mu_print("\n");
    }
    if (status == MU_STATUS_OK) status = mu_surgery_keep(&j->s, N, kept, e);
    if (status == MU_STATUS_OK) {
        char detail[64];
        snprintf(detail, sizeof detail, "%lld of %lld experts kept, by %s", (long long)N, (long long)E, j->a->by ? j->a->by : "load");
        mu_surgery_note(&j->s, "prune", -1, -1, detail);
    }
    free(kept);
    return status;
}
