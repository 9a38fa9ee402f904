/* lines.h - append-only files of JSON lines with a checksum each: metrics.jsonl and events.jsonl. One writer, one reader, and one way
 * to continue the file of an earlier job. */
#ifndef MUSTER_TRAIN_LINES_H
#define MUSTER_TRAIN_LINES_H
#include "base/base.h"

#include <jansson.h>
#include <stdio.h>

/* The kinds of lines in metrics.jsonl, by the key after "step". Lines of one step are in this order. */
typedef enum {
    MU_LINE_TRAINING,       /* "train/tokens" */
    MU_LINE_STATISTICS,     /* "stats/steps" */
    MU_LINE_EVALUATION,     /* "val/ce_loss" */
    MU_LINE_OTHER,          /* any other key */
    MU_LINE_KINDS
} mu_line_kind;

/* What a file holds. Its lines begin with "step"; a value is a number or a flat list of numbers (null in lines of older runs). */
typedef enum {
    MU_LINES_METRICS,       /* one line of a kind per step; lines of older runs have no checksum */
    MU_LINES_EVENTS         /* any number of lines per step; also strings, booleans and flat lists of them */
} mu_lines_format;

/* ------------------------------------------------------------------ reading (metrics_lines.c) */
enum { MU_LINE_BYTES = 16 << 20 };  /* maximum of a valid line: 64 layers x 256 experts x 50 domains, several lists */
typedef struct {
    const char *path;       /* borrowed */
    mu_lines_format format;
    bool checked;           /* every further line must have a checksum: events, or some line had one */
    FILE *file;
    char *block;            /* [used, filled) is not consumed yet */
    size_t used, filled;
    char *text;             /* [MU_LINE_BYTES], the current line, not NUL-terminated */
    size_t bytes;           /* of it, without its newline; MU_LINE_BYTES + 1: longer than any valid line */
    bool ended;             /* by a newline */
    int64_t end;            /* where the next line begins */
    int64_t begin;          /* of the first line that did not end yet */
} mu_lines;
/* mu_lines_close may follow any outcome. Local. */
mu_status mu_lines_open(mu_lines *l, const char *path, mu_lines_format format, mu_error *e) MU_MUST_USE;
bool mu_lines_next(mu_lines *l);                                    /* false: no further line */
mu_status mu_lines_close(mu_lines *l, mu_error *e) MU_MUST_USE;     /* IO after a read error */
/* Reads on after mu_lines_next returned false: from a line that had not ended, or lines written since. False: the file was cut or
 * replaced, or is gone. */
bool mu_lines_follow(mu_lines *l);
void mu_lines_tail(mu_lines *l, int64_t bytes);                     /* goes on at the first line that begins in the last `bytes` of the file */

/* A valid line. */
typedef struct {
    int64_t step;           /* at least 1 */
    mu_line_kind kind;
    bool checked;           /* has a checksum, which matches */
    json_t *json;           /* its object, without the checksum; the caller releases it */
} mu_line;
/* Parses the current line; false when it is not valid. */
bool mu_line_read(mu_lines *l, mu_line *line) MU_MUST_USE;
/* Can a kill have left the current line, which is last, invalid and without a newline? Then it begins like a valid line, and the
 * checkpoint of step `covered` does not cover it: lines are synced before the checkpoint of their step, except those of
 * evaluations, which may follow it. */
bool mu_line_is_torn(const mu_lines *l, int64_t covered);

/* Every line ends with its checksum: a last key with the XXH3-64 of all bytes before it, and the closing bracket.
 * mu_line_checksum writes this end. */
enum { MU_CHECKSUM_BYTES = 27 };
void mu_line_checksum(const char *line, size_t bytes, char text[MU_CHECKSUM_BYTES + 1]);

/* ------------------------------------------------------------------ writing, and continuing the file of an earlier job (lines_resume.c) */
/* The steps of the training lines that were kept; heap. */
typedef struct { int64_t n, *step; } mu_logged_steps;
typedef struct {
    const char *path;
    mu_lines_format format;
    int64_t step;           /* resume step; 0: there is no checkpoint */
    bool rewinds;           /* mu_run_rewinds: lines newer than `step` may never be computed again */
    const char *derived;    /* a file that is derived from this one, NULL: none; moved aside with it */
    /* Further conditions for a valid line; NULL: none. */
    bool (*check)(void *context, const mu_line *line);
    void *context;
} mu_lines_resume;

/* A file that is open for appending. */
typedef struct {
    char *path;
    FILE *file;
} mu_lines_out;
/* Opens the file for appending after its valid lines up to the resume step; a missing file is created. Dropped without notice: newer
 * lines, whose steps are computed again, and a last line torn by a kill. If anything else is dropped, newer lines when the run
 * rewinds, or all lines because there is no checkpoint, the old file and the derived one are moved aside with a warning.
 * *logged (NULL: not wanted) is set. IO when it is not a plain file. mu_lines_out_close may follow any outcome. Local. */
mu_status mu_lines_continue(mu_lines_out *f, const mu_lines_resume *how, mu_logged_steps *logged, mu_error *e) MU_MUST_USE;
/* Appends the line, an object whose closing bracket is still missing, with its checksum. A line that is too long to be read again is
 * left out, with a warning. */
mu_status mu_lines_write(mu_lines_out *f, const mu_json *line, mu_error *e) MU_MUST_USE;
mu_status mu_lines_sync(mu_lines_out *f, mu_error *e) MU_MUST_USE;      /* onto the disk; before the checkpoint that covers them is committed */
void mu_lines_out_close(mu_lines_out *f);

#endif
