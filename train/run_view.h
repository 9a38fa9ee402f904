/* run_view.h - reading what a run has written: the lines of its metrics.jsonl. */
#ifndef MUSTER_TRAIN_RUN_VIEW_H
#define MUSTER_TRAIN_RUN_VIEW_H
#include "train/train.h"

#include <jansson.h>
#include <stdio.h>

/* ------------------------------------------------------------------ lines of metrics.jsonl (metrics_lines.c) */
enum { MU_LINE_BYTES = 4 << 20 };   /* the most a sound line has: numbers of the largest model */
typedef struct {
    const char *path;       /* borrowed */
    FILE *file;
    char *block;            /* of which [used, filled) is not taken yet */
    size_t used, filled;
    char *text;             /* [MU_LINE_BYTES], the line at hand, no NUL behind it */
    size_t bytes;           /* of it, without its newline; MU_LINE_BYTES + 1: more than any sound one */
    bool ended;             /* by a newline */
    int64_t end;            /* where the next line begins */
} mu_lines;
/* mu_lines_close may follow any outcome. Local. */
mu_status mu_lines_open(mu_lines *l, const char *path, mu_error *e) MU_MUST_USE;
bool mu_lines_next(mu_lines *l);                                    /* false: there is no further line */
mu_status mu_lines_close(mu_lines *l, mu_error *e) MU_MUST_USE;     /* IO when the file could not be read to where it was */
bool mu_line_has_checksum(const char *line, size_t bytes);          /* lines of older runs have none */
bool mu_line_checksum_holds(const char *line, size_t bytes);        /* of a line that has one */

/* The loads of a training line, [MoE layers, experts]; false when no step of this model has them: all assignments count. Local. */
bool mu_metrics_read_loads(const mu_trainer *t, const json_t *line, int64_t *loads);

#endif
