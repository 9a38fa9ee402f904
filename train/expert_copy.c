/* expert_copy.c - muster expert reseed and duplicate: a copy of one expert replaces another. */
#include "train/expert_job.h"

#include <stdio.h>

/* Puts a copy of the donor in the place `to`; with `fresh` half of it is drawn anew. */
static mu_status copy_expert(mu_expert_job *j, mu_place from, mu_place to, int moe, bool fresh, mu_error *e) {
    mu_expert_unit donor = { 0 };
    mu_status status = mu_job_open_live(j, j->a->dry_run, e);
    if (status == MU_STATUS_OK) status = mu_job_archive_first(j, to, true, e);
    if (status == MU_STATUS_OK) status = mu_expert_unit_read(&donor, &j->s.arrays, from.layer, from.expert, e);
    if (status != MU_STATUS_OK) return mu_expert_unit_free(&donor), status;
    mu_expert_samples seen = { .D = donor.D };
    if (j->live) seen = mu_expert_samples_collect(&j->ev, -1, &donor);
    mu_expert_unit copy = mu_expert_split(&donor, to.expert, &seen, fresh, mu_job_state(j), (uint64_t)j->m.cfg.run.seed);
    mu_expert_samples_free(&seen);
    char detail[64];
    snprintf(detail, sizeof detail, "%s expert %d", fresh ? "split of" : "copy of", from.expert);
    mu_job_forget(j, moe, to.expert);
    mu_surgery_put(&j->s, donor);
    mu_surgery_put(&j->s, copy);
    mu_surgery_note(&j->s, j->a->what, to.layer, to.expert, detail);
    mu_print("expert %d of layer %d: %s\n", to.expert, to.layer, detail);
    return MU_STATUS_OK;
}

mu_status mu_expert_reseed(mu_expert_job *j, mu_error *e) {
    mu_place to = j->a->at;
    int moe = mu_job_moe(j, to, e);
    mu_status status = moe < 0 ? MU_STATUS_USAGE : mu_job_may_replace(j, to, moe, false, e);
    if (status != MU_STATUS_OK) return status;
    int donor = mu_expert_donor(mu_job_state(j), moe, to.expert);
    if (donor < 0) return mu_error_set(e, MU_STATUS_CONFIG, "layer %d: every other expert carries a domain, was overwritten or is frozen; none can be split", to.layer);
    return copy_expert(j, (mu_place){ to.layer, donor }, to, moe, true, e);
}

mu_status mu_expert_duplicate(mu_expert_job *j, mu_error *e) {
    int from = mu_job_moe(j, j->a->at, e), moe = from < 0 ? -1 : mu_job_moe(j, j->a->slot, e);
    if (moe < 0) return MU_STATUS_USAGE;
    if (j->a->slot.expert == j->a->at.expert) return mu_error_set(e, MU_STATUS_USAGE, "--slot names the expert itself");
    mu_status status = mu_job_may_replace(j, j->a->slot, moe, true, e);
    return status == MU_STATUS_OK ? copy_expert(j, j->a->at, j->a->slot, moe, false, e) : status;
}
