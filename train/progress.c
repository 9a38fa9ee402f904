/* progress.c - console output of training: one line per logged step, a live bar on a
 * terminal, and the tables of domains and expert load. Rank 0 only. */
#include "train/events.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct mu_progress {
    bool bar, quiet;
    double mean_seconds; /* of a step, for the ETA */
    double train_flops;  /* of one token */
    double last_drawn;
    int cells;
    bool missing_said;   /* what states need that is not there */
};

mu_progress *mu_progress_open(const mu_log_source *src) {
    mu_progress *p = mu_alloc(1, sizeof *p);
    int64_t kind = src->cfg->log.progress;
    p->quiet = kind == MU_LOG_PROGRESS_QUIET;
    p->bar = kind == MU_LOG_PROGRESS_BAR || (kind == MU_LOG_PROGRESS_AUTO && mu_output_is_terminal());
    p->train_flops =
        mu_model_measure(&src->cfg->model, &src->cfg->moe, src->state->model->vocab_size, src->cfg->train.seq_len).train_flops;
    p->cells = (int)(src->state->model->n_moe * src->cfg->moe.num_experts);
    return p;
}

static void clear_bar(const mu_progress *p) {
    if (p->bar) printf("\r\033[K");
}

void mu_progress_say(mu_progress *p, const char *fmt, ...) {
    if (p->quiet) return;
    clear_bar(p);
    va_list args;
    va_start(args, fmt);
    mu_vprint(fmt, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
}

static void format_time(double seconds, char out[24]) {
    long s = lround(seconds);
    if (s >= 3600) snprintf(out, 24, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(out, 24, "%ld:%02ld", s / 60, s % 60);
}

static double imbalance(const mu_log_source *src) {
    double worst = 0;
    int E = (int)src->cfg->moe.num_experts;
    for (int layer = 0; layer < src->state->model->n_moe; layer++)
        worst = fmax(worst, mu_load_of(src->state->stats->counts + (int64_t)layer * E, E).load_imbalance);
    return worst;
}

static void print_line(const mu_progress *p, const mu_log_source *src, const mu_step_result *r,
                       double tokens_per_s) {
    char left[24], mfu[24] = "-";
    int width = snprintf(NULL, 0, "%lld", (long long)src->cfg->train.steps);
    format_time((double)(src->cfg->train.steps - src->state->step) * p->mean_seconds, left);
    if (src->peak_flops > 0)
        snprintf(mfu, sizeof mfu, "%.0f%%", 100 * tokens_per_s * p->train_flops / src->peak_flops);
    printf("step %*lld/%lld loss %.4f ce %.4f", width, (long long)src->state->step, (long long)src->cfg->train.steps,
           r->values.loss, r->values.ce);
    if (src->state->model->n_moe) printf(" aux %.3f", r->values.aux);
    printf(" lr %.1e grad %.2f %.0f tok/s mfu %s", r->lr, r->values.grad_norm, tokens_per_s, mfu);
    if (src->state->model->n_moe) {
        mu_unhealthy found = mu_load_window_count_unhealthy(&src->state->stats->window);
        printf(" imbalance %.2f dead %d/%d", imbalance(src), found.dead, p->cells);
        if (found.starved) printf(" load<10%% %d/%d", found.starved, p->cells);
        if (src->cfg->moe.capacity_factor > 0) printf(" dropped %.1f%%", 100 * r->values.dropped);
    }
    printf(" ETA %s\n", left);
    fflush(stdout);
}

static void draw_bar(mu_progress *p, const mu_log_source *src, const mu_step_result *r) {
    enum { WIDTH = 20 }; /* the whole line stays under 80 columns */
    if (mu_time() - p->last_drawn < 0.1 && src->state->step < src->cfg->train.steps) return;
    p->last_drawn = mu_time();
    int filled = (int)(WIDTH * src->state->step / src->cfg->train.steps);
    char left[24];
    format_time((double)(src->cfg->train.steps - src->state->step) * p->mean_seconds, left);
    printf("\r\033[K[");
    for (int i = 0; i < WIDTH; i++) putchar(i < filled ? '#' : '.');
    printf("] %lld/%lld  loss %.4f  ETA %s", (long long)src->state->step, (long long)src->cfg->train.steps, r->values.loss,
           left);
    fflush(stdout);
}

/* The rarer and the worse, the earlier it is told. */
static int importance(const mu_expert_change *c) {
    static const int order[MU_EXPERT_STATES] = { [MU_EXPERT_OVERWRITTEN] = 6, [MU_EXPERT_CARRIER] = 5, [MU_EXPERT_DORMANT] = 4,
                                                 [MU_EXPERT_DEAD] = 3, [MU_EXPERT_DUPLICATE] = 2, [MU_EXPERT_STARVED] = 1 };
    return order[c->to];
}

void mu_progress_experts(mu_progress *p, const mu_log_source *src, const mu_expert_change *changes, int n) {
    enum { TOLD = 4 };
    char *text = mu_experts_summary(src), *missing = p->missing_said ? NULL : mu_experts_missing(src);
    mu_progress_say(p, "experts: %s", text);
    if (missing) mu_progress_say(p, "  note: %s", missing);
    p->missing_said = true;
    free(missing);
    free(text);
    int told = 0;
    for (int rank = MU_EXPERT_STATES - 1; rank >= 0; rank--)
        for (int i = 0; i < n && told < TOLD; i++) {
            if (importance(&changes[i]) != rank) continue;
            text = mu_change_text(src, &changes[i]);
            mu_progress_say(p, "  %s", text);
            free(text);
            told++;
        }
    if (n > told) mu_progress_say(p, "  and %d more: events.jsonl", n - told);
}

void mu_progress_step(mu_progress *p, const mu_log_source *src, const mu_step_result *r, bool logged,
                      double tokens_per_s) {
    p->mean_seconds = p->mean_seconds > 0 ? 0.95 * p->mean_seconds + 0.05 * r->seconds : r->seconds;
    if (p->quiet) return;
    if (logged) {
        clear_bar(p);
        print_line(p, src, r, tokens_per_s);
    }
    if (p->bar) draw_bar(p, src, r);
}

void mu_progress_close(mu_progress *p) {
    if (!p) return;
    clear_bar(p);
    fflush(stdout);
    free(p);
}

void mu_print_domains(const mu_texts *texts, int64_t most, const mu_domain_loss *results) {
    bool any = false;
    for (int i = 0; i < texts->corpus.n_domains; i++) any |= results[i].tokens > 0;
    printf(any ? "\nvalidation loss per domain (nats/token; unigram: baseline, entropy of token frequencies)\n"
               : "\ntexts per domain, not evaluated\n");
    printf("  %-20s %12s %12s %8s %8s %8s %10s\n", "domain", "train tokens", "val tokens", "share", "loss", "unigram",
           "bits/byte");
    for (int i = 0; i < texts->corpus.n_domains; i++) {
        const mu_domain_loss *d = &results[i];
        printf("  %-20s %12lld %12lld %7.2f%% ", texts->corpus.domains[i].name,
               (long long)(mu_loader_train_sequences(texts->loader, i) * texts->seq_len),
               (long long)(mu_loader_val_sequences(texts->loader, i) * texts->seq_len),
               100 * mu_loader_share(texts->loader, i));
        if (!any) printf("%8s %8s %10s\n", "-", "-", "-");
        else if (!d->tokens) printf("%8s %8.4f %10s\n", "-", d->unigram, "-");
        else if (!d->bytes) printf("%8.4f %8.4f %10s\n", d->ce, d->unigram, "-");
        else printf("%8.4f %8.4f %10.4f\n", d->ce, d->unigram, d->bits_per_byte);
    }
    if (any && most > 0)
        printf("  over at most %lld validation sequences per domain (train.eval_sequences); `muster eval` uses all\n",
               (long long)most);
    else if (any) printf("  over all validation sequences\n");
    fflush(stdout);
}

void mu_print_expert_load(const mu_load_window *window, const int *layer_ids) {
    if (!window->layers) return;
    printf("\nexpert load, last %lld steps (1.00 = uniform)\n",
           (long long)window->held);
    int E = window->experts;
    for (int layer = 0; layer < window->layers; layer++) {
        const int64_t *row = window->total + (int64_t)layer * E;
        int64_t all = 0;
        for (int i = 0; i < E; i++) all += row[i];
        printf("  layer %-3d", layer_ids[layer]);
        for (int i = 0; i < E; i++) {
            if (i && i % 16 == 0) printf("\n           ");
            printf(" %5.2f", all ? (double)row[i] * E / (double)all : 0.0);
        }
        printf("\n");
    }
    char *text = mu_load_window_report(window, layer_ids);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) printf("  %s\n", line);
    if (!text[0] && mu_load_window_is_long_enough(window)) printf("  no dead experts, none below 10 %% of the mean load\n");
    free(text);
    fflush(stdout);
}
