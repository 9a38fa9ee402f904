/* expert_list.c - muster expert list. */
#include "train/expert_job.h"

#include <stdio.h>
#include <stdlib.h>

static double mean_load(const mu_expert_job *j, int moe) {
    const mu_load_window *w = &mu_job_state(j)->stats->window;
    double sum = 0;
    for (int i = 0; i < w->experts; i++) sum += (double)w->total[(int64_t)moe * w->experts + i];
    return sum / w->experts;
}

static void list_expert(const mu_expert_job *j, int moe, int expert, const char *archives) {
    const mu_train_state *t = mu_job_state(j);
    const mu_expert_health *h = &t->stats->health;
    const mu_knowledge *k = t->knowledge;
    int64_t at = mu_job_cell(j, moe, expert), *steps = NULL;
    double mean = mean_load(j, moe);
    int top = -1, carried = (int)h->carried[at] - 1, n = archives ? mu_archive_list(archives, t->model->moe_layers[moe], expert, &steps) : 0;
    for (int d = 0; d < k->domains; d++)
        if (k->at[at * k->domains + d] && (top < 0 || k->K[at * k->domains + d] > k->K[at * k->domains + top])) top = d;
    mu_print("  %6d  %-11s %6.2f  %-20s", expert, mu_expert_state_name(mu_job_expert_state(j, at)), mean > 0 ? (double)t->stats->window.total[at] / mean : 0.0,
             carried >= 0 ? k->names[carried] : "-");
    if (top >= 0) mu_print("  %6.3f nats, %s", (double)k->K[at * k->domains + top], k->names[top]);
    if (h->frozen[at] == MU_FROZEN_NOW) mu_print("  frozen");
    if (h->reseeded[at]) mu_print("  replaced at step %lld", (long long)h->reseeded[at]);
    if (n) mu_print("  archived at step %lld%s", (long long)steps[0], n > 1 ? " and before" : "");
    mu_print("\n");
    free(steps);
}

mu_status mu_expert_list(mu_expert_job *j, mu_error *e) {
    const mu_model *m = mu_job_state(j)->model;
    char *archives = mu_job_archives(&j->m);
    if (!mu_job_state(j)->stats) {
        free(archives);
        return mu_error_set(e, MU_STATUS_CONFIG, "%s holds weights only: nothing is known of its experts", j->m.path);
    }
    mu_print("%s, step %lld: %d MoE layer%s of %lld experts\n", j->m.path, (long long)j->m.step, m->n_moe, m->n_moe == 1 ? "" : "s", (long long)mu_job_experts(j));
    for (int i = 0; i < m->n_moe; i++) {
        mu_print("layer %d\n  expert  state         load  carries               most critical for\n", m->moe_layers[i]);
        for (int x = 0; x < mu_job_experts(j); x++) list_expert(j, i, x, archives);
    }
    printf("load: of the mean of its layer, over stats.window; criticality: what a domain loses without the expert, per token\n");
    free(archives);
    return MU_STATUS_OK;
}
