/* events.h - what happens to experts: changes of their state, and advice, for events.jsonl and the console. */
#ifndef MUSTER_TRAIN_EVENTS_H
#define MUSTER_TRAIN_EVENTS_H
#include "train/train.h"

/* Evaluates the states of the experts (experts.c); changes [MoE layers * experts], of which the first n returned are set. The same on
 * every rank. Local. */
int mu_experts_judge(const mu_log_source *src, mu_expert_change *changes);
void mu_experts_find_rare(const mu_log_source *src, bool *rare);      /* [domains]: those that are rare for the states now. Local */
/* "62 healthy, 1 starved, 1 dead (layer 3: 11); worst domain chemistry 2.31 (+0.12)", heap. The worst domain is the one whose loss on
 * the probe rose most above its best, by the number in brackets; without a probe there is none. Local. */
char *mu_experts_summary(const mu_log_source *src);
/* What is missing for some states to be found, as a sentence; heap, NULL: nothing. Local. */
char *mu_experts_missing(const mu_log_source *src);

/* What goes wrong with the routing, and the option that would help (advice.c). */
typedef enum {
    MU_ADVICE_COLLAPSE,     /* one expert gets nearly all tokens */
    MU_ADVICE_UNUSED,       /* many experts are starved or dead */
    MU_ADVICE_NEEDED,       /* an expert is starved, and a domain that is not rare depends on it */
    MU_ADVICE_DROPS,        /* many assignments are dropped */
    MU_ADVICE_TERM,         /* a term of the router is a large part of the loss */
    MU_ADVICES
} mu_advice_topic;
typedef struct {
    mu_advice_topic topic;
    const char *option;
    char *value, *text;     /* of the option now; a sentence. Heap */
} mu_advice;
const char *mu_advice_name(mu_advice_topic topic);
/* Is there something to say after this logged step? Then mu_advice_free(a) follows. Local. */
bool mu_advice_find(const mu_log_source *src, const mu_step_result *r, mu_advice_topic topic, mu_advice *a);
void mu_advice_free(mu_advice *a);

/* RUN/events.jsonl (events.c), for rank 0. Continued and synced as metrics.jsonl is. Local. */
typedef struct mu_events mu_events;
mu_status mu_events_open(mu_events **ev, const mu_log_source *src, mu_error *e) MU_MUST_USE;
mu_status mu_events_changes(mu_events *ev, const mu_log_source *src, const mu_expert_change *changes, int n, mu_error *e) MU_MUST_USE;
/* Which experts are protected from now on, or no longer. */
mu_status mu_events_protection(mu_events *ev, const mu_log_source *src, const mu_protection_change *changes, int n, mu_error *e) MU_MUST_USE;
/* What was done to an expert, and why; moe: number among the MoE layers; parent: the expert of the layer that it comes from, itself or another. */
typedef struct {
    const char *what;               /* "reseed", "boost" */
    int moe, expert, parent;
    const char *from, *to, *reason; /* its state changed; from NULL: it did not */
    int n;
    struct { const char *name; double value; } figures[3];
} mu_action;
mu_status mu_events_action(mu_events *ev, const mu_log_source *src, const mu_action *a, mu_error *e) MU_MUST_USE;
/* An expert was archived, or, with an error, could not be. */
mu_status mu_events_archive(mu_events *ev, const mu_log_source *src, int moe, int expert, const char *reason, const char *error, mu_error *e) MU_MUST_USE;
mu_status mu_events_advice(mu_events *ev, const mu_log_source *src, const mu_advice *a, mu_error *e) MU_MUST_USE;
/* What protects an absent domain, from this step on, why, and its figures. */
typedef struct mu_absence {
    int64_t step;
    const char *intervention, *domain, *reason;     /* "replay", "anchor" */
    int n;
    struct { const char *name; double value; } figures[4];
} mu_absence;
mu_status mu_events_absence(mu_events *ev, const mu_absence *p, mu_error *e) MU_MUST_USE;
bool mu_events_advised(const mu_events *ev, mu_advice_topic topic);     /* in this run, by earlier jobs too */
mu_status mu_events_sync(mu_events *ev, mu_error *e) MU_MUST_USE;
void mu_events_close(mu_events *ev);
/* "layer 2: expert 5 became the carrier of chemistry (criticality 0.42 nats)"; heap. Local. */
char *mu_change_text(const mu_log_source *src, const mu_expert_change *c);

/* One line with the state of all experts, and the changes in words, the most important first (progress.c). */
void mu_progress_experts(mu_progress *p, const mu_log_source *src, const mu_expert_change *changes, int n);

#endif
