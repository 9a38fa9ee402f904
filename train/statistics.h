/* statistics.h - RUN/statistics.rec: the routing statistics of each logged step, append-only records of fixed size.
 * routing.h5 is derived from them (format: docs/files.md). */
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
    int64_t n;              /* whole records, including appended ones */
    int64_t rest;           /* bytes after the last whole record when the file was opened */
    int64_t *words;         /* the current record as in the file */
    int64_t step;
    bool by_domain;         /* false: loads of an older run, not counted by domain; stored in domain 0 */
    const int64_t *counts;  /* [layers, experts, domains]: assignments in the global batch of the step */
} mu_statistics;

/* A new file without records, replacing an existing one. Local; the caller closes the handle after any outcome, as below. */
mu_status mu_statistics_create(mu_statistics **s, const char *path, const mu_statistics_shape *shape, mu_error *e) MU_MUST_USE;
/* NOINPUT: no such file; DATA: another format, or a damaged header. Local. */
mu_status mu_statistics_open(mu_statistics **s, const char *path, bool append, mu_error *e) MU_MUST_USE;
void mu_statistics_close(mu_statistics *s);
/* Record i of n. *valid false: damaged. Local. */
mu_status mu_statistics_read(mu_statistics *s, int64_t i, bool *valid, mu_error *e) MU_MUST_USE;
/* counts as above; without by_domain [layers, experts]. Local. */
mu_status mu_statistics_append(mu_statistics *s, int64_t step, bool by_domain, const int64_t *counts, mu_error *e) MU_MUST_USE;
/* Truncates to the first n records. Local. */
mu_status mu_statistics_cut(mu_statistics *s, int64_t n, mu_error *e) MU_MUST_USE;
mu_status mu_statistics_sync(mu_statistics *s, mu_error *e) MU_MUST_USE;    /* onto the disk */

bool mu_statistics_same_shape(const mu_statistics_shape *a, const mu_statistics_shape *b);
void mu_statistics_shape_free(mu_statistics_shape *s);

/* Writes routing.h5 from the records of file `from` and the lines of `metrics` (NULL: none), one block in memory at a time. DATA when a
 * record is damaged. Local. */
mu_status mu_routing_file_write(const char *path, const char *from, const char *metrics, mu_error *e) MU_MUST_USE;
/* Its part from the metrics (routing_metrics.c). names: of the domains, one per line. */
mu_status mu_routing_file_metrics(mu_store *to, const char *metrics, const mu_statistics_shape *shape, const char *names, mu_error *e) MU_MUST_USE;

#endif
