/* fork.c - a new run from another run's checkpoint (train --fork): weights, optimizer state and step are those of the checkpoint, the
 * configuration may be another. A domain with the texts it had continues where the other run stopped; expert statistics continue when all
 * domains do. The other run is only read. */
#include "train/training.h"

#include <stdlib.h>
#include <string.h>

/* Which domain of the checkpoint has this name and this text; -1: none. */
static int same_text(const mu_manifest *m, const mu_domain *d) {
    for (int i = 0; i < m->n_domains; i++)
        if (!strcmp(m->domains[i].name, d->name)) return strcmp(m->domains[i].fingerprint, d->fingerprint) ? -1 : i;
    return -1;
}

/* was[n_domains]: of each domain of this run, its number in the checkpoint, or -1. Checkpoints of older versions know only the
 * fingerprint of all texts. */
static void match_domains(const mu_training *t, const mu_manifest *m, int *was) {
    const mu_corpus *c = &t->texts.corpus;
    bool equal = !strcmp(c->fingerprint, m->fingerprint);
    for (int i = 0; i < c->n_domains; i++) was[i] = m->n_domains ? same_text(m, &c->domains[i]) : equal ? i : -1;
}

/* What is measured on the validation texts is kept for domains of the same name: none may have other texts now. */
static bool keeps_knowledge(const mu_training *t, const mu_manifest *m, const int *was) {
    const mu_config *now = &t->cfg, *then = &m->cfg;
    bool same = now->moe.top_k == then->moe.top_k && now->train.seq_len == then->train.seq_len &&
                now->data.val_fraction == then->data.val_fraction;
    for (int i = 0; i < now->data.train.n; i++)
        for (int k = 0; k < then->data.train.n; k++)
            same &= was[i] >= 0 || strcmp(now->data.train.list[i].domain, then->data.train.list[k].domain) != 0;
    return same;
}

/* Statistics count assignments by domain, and the assignments of a step are known. */
static bool keeps_statistics(const mu_config *now, const mu_manifest *m, const int *was) {
    const mu_config *then = &m->cfg;
    bool same = now->data.train.n == then->data.train.n && now->moe.top_k == then->moe.top_k &&
                now->train.global_batch_size == then->train.global_batch_size && now->train.seq_len == then->train.seq_len;
    for (int i = 0; same && i < now->data.train.n; i++) same = was[i] == i;
    return same;
}

/* drawn[domains of the checkpoint]: samples of each, by its run and those before it. Local. */
static mu_status read_drawn(const mu_manifest *m, int64_t *drawn, mu_error *e) {
    int64_t n = m->cfg.data.train.n, total = n + 1, *earlier = mu_alloc((size_t)n, sizeof *earlier);
    char *path = mu_format("%s/%s", m->path, m->shards[0].name);
    mu_store *s = NULL;
    mu_status status = mu_store_open(&s, path, e);
    if (status == MU_STATUS_OK) status = mu_store_read(s, "/state/loader", MU_STORE_I64, 1, &total, drawn, e);
    if (status == MU_STATUS_OK && mu_store_has(s, "/state/earlier"))
        status = mu_store_read(s, "/state/earlier", MU_STORE_I64, 1, &n, earlier, e);
    status = mu_store_finish(s, status, e);
    for (int64_t i = 0; i < n; i++) drawn[i] += earlier[i];
    free(path);
    free(earlier);
    return status;
}

/* Loads everything but the loader's state, which is only checked. What is not kept is loaded, too, because other state is checked
 * against it, and dropped. */
static mu_status load(mu_training *t, const mu_manifest *m, bool statistics, bool knowledge, mu_error *e) {
    mu_train_state *s = &t->state, own = *s;
    int layers = s->model->n_moe, experts = (int)m->cfg.moe.num_experts;
    mu_routing_stats *stats = NULL;
    mu_knowledge *known = NULL;
    if (!statistics)
        s->stats = stats = mu_routing_stats_new(t->dev, s->mesh->batch, layers, experts, m->cfg.data.train.n, m->cfg.stats.window, 0);
    if (!knowledge) s->knowledge = known = mu_knowledge_new(layers, experts, (int)m->cfg.moe.top_k, &m->cfg.data.train);
    s->loader = NULL;
    mu_status status = mu_checkpoint_load(s, m, t->tokenizer, e);
    s->stats = own.stats, s->knowledge = own.knowledge, s->loader = own.loader;
    if (stats) { /* what was done to an expert stays */
        size_t n = (size_t)(layers * experts);
        memcpy(s->stats->health.frozen, stats->health.frozen, n * sizeof(int64_t));
        memcpy(s->stats->health.reseeded, stats->health.reseeded, n * sizeof(int64_t));
    }
    mu_routing_stats_free(stats);
    mu_knowledge_free(known);
    if (status == MU_STATUS_OK && !statistics) mu_routing_stats_start_at(s->stats, m->step);
    return status;
}

static void take_path(char *to, size_t room, const char *path, size_t n) {
    if (n < room) snprintf(to, room, "%.*s", (int)n, path);
}

/* The run is the folder above checkpoints/. */
static mu_parent parent_of(const mu_manifest *m) {
    static const char between[] = "/checkpoints";
    mu_parent p = { .step = m->step, .tokens = mu_tokens_seen(&m->cfg, &m->parent, m->step) };
    char *path = realpath(m->path, NULL);
    const char *whole = path ? path : m->path, *end = strrchr(whole, '/');
    snprintf(p.checkpoint, sizeof p.checkpoint, "%s", m->path);
    take_path(p.checkpoint, sizeof p.checkpoint, whole, strlen(whole));
    size_t n = end ? (size_t)(end - whole) : 0, k = sizeof between - 1;
    if (n > k && !strncmp(end - k, between, k)) take_path(p.run, sizeof p.run, whole, n - k);
    snprintf(p.manifest_hash, sizeof p.manifest_hash, "%s", m->hash);
    free(path);
    return p;
}

/* The parent of the checkpoint, and those before it. */
static mu_ancestors ancestors_of(const mu_manifest *m) {
    mu_ancestors a = { .n = 0 };
    if (m->parent.checkpoint[0]) a.list[a.n++] = m->parent;
    for (int i = 0; i < m->ancestors.n && a.n < MU_ANCESTORS; i++) a.list[a.n++] = m->ancestors.list[i];
    return a;
}

/* The domains that continue, or those that begin anew. */
static void print_domains(const mu_corpus *c, const int *was, const int64_t *earlier, bool kept) {
    const char *between = kept ? "  texts that continue: " : "  texts that begin anew: ";
    bool any = false;
    for (int i = 0; i < c->n_domains; i++) {
        if ((was[i] >= 0) != kept) continue;
        mu_print("%s%s", any ? ", " : between, c->domains[i].name);
        if (kept) printf(" (after %lld samples)", (long long)earlier[i]);
        any = true;
    }
    if (any) printf("\n");
}

static void print_fork(const mu_training *t, const mu_manifest *m, const int *was, const int64_t *earlier, bool keep, const char *notes) {
    mu_print("forked from %s (step %lld, written by %d rank%s)\n", m->path, (long long)m->step, m->ranks, m->ranks == 1 ? "" : "s");
    if (notes[0]) printf("changed options (new values used; learning-rate schedule recomputed):\n");
    mu_print_text(notes);
    print_domains(&t->texts.corpus, was, earlier, true);
    print_domains(&t->texts.corpus, was, earlier, false);
    if (t->cfg.moe.num_experts)
        printf("  expert statistics %s\n", keep ? "continue" : "begin anew: other domains, or other assignments per step");
}

mu_status mu_training_fork(mu_training *t, const mu_manifest *m, mu_error *e) {
    mu_comm *batch = t->state.mesh->batch;
    char *notes = NULL;
    int n = t->texts.corpus.n_domains, *was = mu_alloc((size_t)n, sizeof *was);
    int64_t *earlier = mu_alloc((size_t)n, sizeof *earlier), *drawn = mu_alloc((size_t)m->cfg.data.train.n + 1, sizeof *drawn);
    match_domains(t, m, was);
    bool keep = keeps_statistics(&t->cfg, m, was);
    mu_status status = mu_agree(batch, mu_checkpoint_compare(&t->cfg, NULL, m, &notes, e), e);
    if (status == MU_STATUS_OK) status = load(t, m, keep, keeps_knowledge(t, m, was), e);
    if (status == MU_STATUS_OK) status = mu_agree(batch, read_drawn(m, drawn, e), e);
    if (status == MU_STATUS_OK) {
        for (int i = 0; i < n; i++) earlier[i] = was[i] < 0 ? 0 : drawn[was[i]];
        t->state.parent = parent_of(m), t->state.ancestors = ancestors_of(m);
        mu_loader_continue(t->state.loader, m->step * t->cfg.train.global_batch_size, earlier);
        if (batch->rank == 0) print_fork(t, m, was, earlier, keep, notes);
    }
    free(notes);
    free(was);
    free(earlier);
    free(drawn);
    return status;
}
