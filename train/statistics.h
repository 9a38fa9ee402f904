/* statistics.h - RUN/statistics.rec: the routing statistics of each logged step, records of one size that are only appended.
 * They are the source; routing.h5 is made of them (docs/files.md has the format). */
#ifndef MUSTER_TRAIN_STATISTICS_H
#define MUSTER_TRAIN_STATISTICS_H
#include "base/base.h"

enum { MU_STATISTICS_NAME = 64 };
typedef struct {
    int64_t layers, experts, domains;
    int64_t *layer;                         /* [layers]: their numbers in the model */
    char (*domain)[MU_STATISTICS_NAME];     /* [domains] */
} mu_statistics_shape;

/* An open file and the record that was read last. */
typedef struct {
    char *path;
    int fd;
    mu_statistics_shape shape;
    int64_t header_bytes, record_bytes;
    int64_t n;              /* whole records; those that are appended count, too */
    int64_t rest;           /* bytes behind the last whole record when the file was opened */
    int64_t *words;         /* a record as it lies in the file */
    int64_t step;
    bool by_domain;         /* false: the loads of an older run, which did not count by domain; they stand in domain 0 */
    const int64_t *counts;  /* [layers, experts, domains]: assignments in the global batch of the step */
} mu_statistics;

/* A new file of no records, in the place of another one. Local; the handle is to be closed whatever the outcome, as below. */
mu_status mu_statistics_create(mu_statistics **s, const char *path, const mu_statistics_shape *shape, mu_error *e) MU_MUST_USE;
/* NOINPUT: there is no such file; DATA: it is not of this format, or its header is damaged. Local. */
mu_status mu_statistics_open(mu_statistics **s, const char *path, bool append, mu_error *e) MU_MUST_USE;
void mu_statistics_close(mu_statistics *s);
/* Record i of n. *sound false: it is damaged. Local. */
mu_status mu_statistics_read(mu_statistics *s, int64_t i, bool *sound, mu_error *e) MU_MUST_USE;
/* counts as above; without by_domain [layers, experts]. Local. */
mu_status mu_statistics_append(mu_statistics *s, int64_t step, bool by_domain, const int64_t *counts, mu_error *e) MU_MUST_USE;
/* Only the first n records stay, and nothing behind them. Local. */
mu_status mu_statistics_cut(mu_statistics *s, int64_t n, mu_error *e) MU_MUST_USE;
mu_status mu_statistics_sync(mu_statistics *s, mu_error *e) MU_MUST_USE;    /* onto the disk */

bool mu_statistics_same_shape(const mu_statistics_shape *a, const mu_statistics_shape *b);
void mu_statistics_shape_free(mu_statistics_shape *s);

/* Makes routing.h5 of the records at `from`, a block of them in memory at a time. DATA when one is damaged. Local. */
mu_status mu_routing_file_write(const char *path, const char *from, mu_error *e) MU_MUST_USE;

#endif
