/* events.h - what happens to experts: changes of their state, for events.jsonl and the console. */
#ifndef MUSTER_TRAIN_EVENTS_H
#define MUSTER_TRAIN_EVENTS_H
#include "train/train.h"

/* Evaluates the states of the experts (experts.c); changes [MoE layers * experts], of which the first n returned are set. The same on
 * every rank. Local. */
int mu_experts_judge(const mu_log_source *src, mu_expert_change *changes);
/* "62 healthy, 1 starved, 1 dead (layer 3: 11); worst domain chemistry 2.31 (+0.12)", heap. The worst domain is the one whose loss on
 * the probe rose most above its best, by the number in brackets; without a probe there is none. Local. */
char *mu_experts_summary(const mu_log_source *src);
/* What is missing for some states to be found, as a sentence; heap, NULL: nothing. Local. */
char *mu_experts_missing(const mu_log_source *src);

/* RUN/events.jsonl (events.c), for rank 0. Continued and synced as metrics.jsonl is. Local. */
typedef struct mu_events mu_events;
mu_status mu_events_open(mu_events **ev, const mu_log_source *src, mu_error *e) MU_MUST_USE;
mu_status mu_events_changes(mu_events *ev, const mu_log_source *src, const mu_expert_change *changes, int n, mu_error *e) MU_MUST_USE;
mu_status mu_events_sync(mu_events *ev, mu_error *e) MU_MUST_USE;
void mu_events_close(mu_events *ev);
/* "layer 2: expert 5 became the carrier of chemistry (criticality 0.42 nats)"; heap. Local. */
char *mu_change_text(const mu_log_source *src, const mu_expert_change *c);

/* One line with the state of all experts, and the changes in words, the most important first (progress.c). */
void mu_progress_experts(mu_progress *p, const mu_log_source *src, const mu_expert_change *changes, int n);

#endif
