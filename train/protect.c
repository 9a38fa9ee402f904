/* protect.c - domains that are absent from the training samples (protect.domains): what the loader replays of them, and the anchor that
 * holds what the model has learned of them. */
#include "train/events.h"
#include "train/surgery.h"
#include "train/training.h"

#include <math.h>
#include <stdlib.h>

/* ------------------------------------------------------------------ before the first step */

static FILE *open_text(char **text, size_t *size) {
    FILE *out = open_memstream(text, size);
    MU_CHECK(out, "out of memory");
    return out;
}

/* "a 61.2 % (66.7 % by the weights), ...", of the phase of this step: the shares by the weights are those to the power 1 / tau. */
static void write_shares(const mu_texts *t, double tau, int64_t step, FILE *out) {
    const char *between = "";
    double sum = 0;
    for (int d = 0; d < t->corpus.n_domains; d++) sum += pow(mu_loader_share_at(t->loader, step, d), 1 / tau);
    for (int d = 0; d < t->corpus.n_domains; d++) {
        double share = mu_loader_share_at(t->loader, step, d);
        if (share == 0) continue;
        fprintf(out, "%s%s %.3g %% (%.3g %% by the weights)", between, t->corpus.domains[d].name, 100 * share, 100 * pow(share, 1 / tau) / sum);
        between = ", ";
    }
    fputs("\n", out);
}

static void write_upsampling(const mu_config *cfg, const mu_texts *t, FILE *out) {
    const mu_option_phases *phases = &cfg->data.phases;
    for (int i = 0; i < (phases->n ? phases->n : 1); i++) {
        fprintf(out, "samples with protect.upsample %g", cfg->protect.upsample);
        if (phases->n) fprintf(out, ", phase %d of %d", i + 1, phases->n);
        fputs(": ", out);
        write_shares(t, cfg->protect.upsample, i ? phases->list[i - 1].until_step + 1 : 1, out);
    }
}

/* More passes over the same text teach little (Muennighoff et al. 2023). */
static void write_repeats(const mu_config *cfg, const mu_texts *t, FILE *out) {
    enum { PASSES = 4 };
    for (int d = 0; d < t->corpus.n_domains; d++) {
        int64_t n = mu_loader_train_sequences(t->loader, d);
        double passes = mu_loader_expected(t->loader, cfg->train.steps * cfg->train.global_batch_size, d) / (double)n;
        if (passes > PASSES)
            fprintf(out, "warning: %s: this run is to draw each of its %lld sequences %.1f times; more than %d times is of little use; raise"
                         " protect.upsample, or add text\n", t->corpus.domains[d].name, (long long)n, passes, PASSES);
    }
}

static void write_domains(const mu_config *cfg, FILE *out) {
    const mu_protect_config *p = &cfg->protect;
    const char *before = "protected: ";
    if (mu_protects_auto(p)) fprintf(out, "%sdomains with at most %g %% of the training tokens", before, 100 * cfg->stats.rare_domain), before = ", ";
    for (int i = 0; i < p->domains.n && !mu_protects_auto(p); i++, before = ", ") fprintf(out, "%s%s", before, p->domains.list[i]);
    for (int i = 0; i < p->carriers.n; i++, before = ", ")
        fprintf(out, "%sexpert %lld of each MoE layer for %s", before, (long long)p->carriers.list[i].value, p->carriers.list[i].domain);
}

enum { ACTIONS = 3, ACTION_TEXT = 48 };

/* Those that are not empty, separated by commas; false: all are. */
static bool write_actions(const char *title, char (*action)[ACTION_TEXT], FILE *out) {
    const char *before = title;
    for (int i = 0; i < ACTIONS; i++)
        if (action[i][0]) fprintf(out, "%s%s", before, action[i]), before = ", ";
    return before != title;
}

/* Which domains are protected, and what acts for them. */
static void write_protection(const mu_config *cfg, FILE *out) {
    const mu_protect_config *p = &cfg->protect;
    char carriers[ACTIONS][ACTION_TEXT] = { "" }, absent[ACTIONS][ACTION_TEXT] = { "" };
    bool experts = cfg->moe.num_experts > 0;
    if (experts && p->exempt) snprintf(carriers[0], ACTION_TEXT, "no balancing");
    if (experts && p->gate_coeff > 0) snprintf(carriers[1], ACTION_TEXT, "domain gate %g", p->gate_coeff);
    if (experts && p->dormant_lr < 1) snprintf(carriers[2], ACTION_TEXT, "learning rate x %g while dormant", p->dormant_lr);
    if (p->domains.n && p->replay > 0) snprintf(absent[0], ACTION_TEXT, "replay %g", p->replay);
    if (p->domains.n && p->anchor > 0) snprintf(absent[1], ACTION_TEXT, "anchor %g", p->anchor);
    write_domains(cfg, out);
    bool acts = write_actions("; carriers: ", carriers, out);
    acts |= write_actions("; while absent: ", absent, out);
    fputs(acts ? "\n" : "; all options that act are off\n", out);
    if (experts && p->carriers.n && p->gate_coeff > 0 && cfg->moe.score_func == MU_MOE_SCORE_SOFTMAX)
        fputs("warning: protect.carriers with softmax scores: the domain gate keeps few other tokens away from a carrier; use moe.score_func: sigmoid"
              " (docs/rare-texts.md)\n", out);
}

char *mu_protect_text(const mu_config *cfg, const mu_texts *t) {
    char *text = NULL;
    size_t size;
    FILE *out = open_text(&text, &size);
    if (cfg->protect.domains.n || cfg->protect.carriers.n) write_protection(cfg, out);
    if (cfg->moe.num_experts && cfg->protect.reseed_dead) fputs("dead experts are archived and become halves of busy ones (protect.reseed_dead)\n", out);
    if (cfg->moe.num_experts && cfg->protect.starved_boost > 0)
        fprintf(out, "starved experts are archived and their selection bias is raised by %g (protect.starved_boost)\n", cfg->protect.starved_boost);
    if (t && cfg->protect.upsample != 1) {
        write_upsampling(cfg, t, out);
        write_repeats(cfg, t, out);
    }
    fclose(out);
    return text;
}

/* ------------------------------------------------------------------ Fisher information */

static void add_sequence(mu_training *t, const mu_sample *sample, double weight) {
    mu_train_state *s = &t->state;
    int64_t S = t->texts.seq_len;
    int32_t *tokens = mu_alloc(2 * (size_t)S, sizeof *tokens), *targets = tokens + S;
    mu_loader_read(s->loader, sample, tokens, targets);
    mu_sequence_gradient(s->model, t->tape, s->mesh->batch, S, tokens, targets, sample->domain);
    mu_grads_reduce(s->opt);
    mu_anchor_add(s->anchor, weight);
    free(tokens);
}

static void add_domain(mu_training *t, int d) {
    int64_t n = mu_loader_replay_sequences(t->state.loader, d);
    mu_activity_set("Fisher information", -1, NULL);
    for (int64_t i = 0; i < n; i++)
        add_sequence(t, &(mu_sample){ .domain = d, .sequence = mu_loader_replay_sequence(t->state.loader, d, i) }, 1.0 / (double)n);
}

/* ------------------------------------------------------------------ domains that disappear */

/* Of a fork also what was drawn by the runs before it, and is not drawn from its first step on. */
static bool disappears(const mu_training *t, int64_t step, int d) {
    const mu_loader *l = t->state.loader;
    return mu_loader_is_absent(l, step, d) && (step - 1 == t->state.parent.step || !mu_loader_is_absent(l, step - 1, d));
}

static mu_status tell_replay(mu_training *t, mu_recorder *rec, int64_t step, int d, mu_error *e) {
    const char *name = t->texts.corpus.domains[d].name;
    double n = (double)mu_loader_replay_sequences(t->state.loader, d), share = t->cfg.protect.replay;
    if (share == 0 || !disappears(t, step, d)) return MU_STATUS_OK;
    char *text = mu_format("%s is absent from step %lld on: %.3g %% of the samples are its last %.0f sequence%s", name, (long long)step, 100 * share, n, n == 1 ? "" : "s");
    mu_status status = mu_recorder_absence(rec, &(mu_absence){ step, "replay", name, text, 2, { { "share", share }, { "sequences", n } } }, e);
    free(text);
    return status;
}

static mu_status tell_anchor(mu_training *t, mu_recorder *rec, int64_t step, int d, const mu_anchor_size *size, mu_error *e) {
    const char *name = t->texts.corpus.domains[d].name;
    double n = (double)mu_loader_replay_sequences(t->state.loader, d);
    char *text = mu_format("%s is absent from step %lld on: %.2f M weights are anchored, by %.0f of its sequences (largest Fisher information %.3g)", name,
                           (long long)step, (double)size->weights * 1e-6, n, size->largest);
    mu_status status = mu_recorder_absence(rec, &(mu_absence){ step, "anchor", name, text, 4,
                                                   { { "strength", t->cfg.protect.anchor }, { "sequences", n }, { "largest", size->largest },
                                                     { "weights", (double)size->weights } } }, e);
    free(text);
    return status;
}

/* Anchors for the domains that are absent and not yet in the anchor, which are added to list[domains]; returns their number. */
static int anchor(mu_training *t, int64_t step, int *list, mu_anchor_size *size) {
    mu_anchor *a = t->state.anchor;
    int n = 0;
    double start = mu_time();
    for (int d = 0; a && d < t->texts.corpus.n_domains; d++) {
        bool absent = mu_loader_is_absent(t->state.loader, step, d);
        if (absent && !a->holds[d]) list[n++] = d;
        a->holds[d] = absent;
    }
    for (int i = 0; i < n; i++) add_domain(t, list[i]);
    if (n) *size = mu_anchor_renew(a, t->state.mesh->batch, t->cfg.protect.anchor_cut);
    if (n) t->protect_seconds += mu_time() - start;
    return n;
}

mu_status mu_training_keep_absent(mu_training *t, mu_recorder *rec, mu_error *e) {
    int64_t step = t->state.step + 1;
    int D = t->texts.corpus.n_domains, *list = mu_alloc((size_t)D, sizeof *list);
    mu_anchor_size size;
    mu_status status = MU_STATUS_OK;
    int n = anchor(t, step, list, &size);
    for (int d = 0; d < D && status == MU_STATUS_OK; d++) status = tell_replay(t, rec, step, d, e);
    for (int i = 0; i < n && status == MU_STATUS_OK; i++) status = tell_anchor(t, rec, step, list[i], &size, e);
    free(list);
    return status;
}
