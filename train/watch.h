/* watch.h - a run at a glance on a terminal: what is known of it, and how it is drawn (watch_screen.c). Local. */
#ifndef MUSTER_TRAIN_WATCH_H
#define MUSTER_TRAIN_WATCH_H
#include "train/run_view.h"

enum { MU_WATCH_EVENTS = 32, MU_WATCH_TEXT = 240 };
typedef struct { double value, change; bool known, has_change; } mu_watch_loss;
typedef struct {
    const mu_run_view *view;
    int64_t step;                       /* of the last training line; 0: none */
    double tokens_per_s;
    mu_watch_loss train, val;           /* change: since the logged step, the evaluation before */
    int64_t val_step;
    mu_watch_loss *domain;              /* [domains] of the configuration: of the last evaluation, or of the probe */
    bool probe;                         /* they are of the probe, and changes against the best; else against the evaluation before */
    int64_t domain_step;
    mu_watch_loss coverage;             /* of criticality: share of the screened cells that was measured lately */
    int64_t n_moe, experts, *layer;     /* layer [n_moe]: their numbers in the model */
    int64_t *load;                      /* [n_moe, experts]: assignments in the last load_steps steps; load_steps 0: unknown */
    int64_t load_steps, load_step;
    uint8_t *state;                     /* [n_moe, experts], mu_expert_state */
    int n_events;                       /* the last ones, oldest first */
    struct { int64_t step; char text[MU_WATCH_TEXT]; } event[MU_WATCH_EVENTS];
    int64_t damaged;                    /* lines */
} mu_watch;

/* height 0: no limit. clear: escape sequences that put it into the upper left corner and wipe what was there. */
typedef struct { int width, height; bool colour, utf8, clear; } mu_watch_screen;
char *mu_watch_draw(const mu_watch *w, const mu_watch_screen *s);       /* heap */

#endif
