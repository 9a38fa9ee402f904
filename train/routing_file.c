/* routing_file.c - RUN/routing.h5: the records of statistics.rec, and the numbers of metrics.jsonl, as HDF5 arrays with their units
 * and axes, for other programs. */
#include "train/statistics.h"

#include <stdlib.h>
#include <unistd.h>

enum { BLOCK_BYTES = 1 << 20 };     /* of /domain_load in memory at a time; also the chunk size */

typedef struct {
    mu_statistics *from;
    const char *metrics;            /* NULL: none */
    mu_store *to;
    int64_t rows;                   /* of a block */
    int64_t *step;                  /* [n] */
    int64_t *load, *by_domain;      /* [rows, L, E], [rows, L, E, D] */
} job;

static int64_t pairs(const job *j) { return j->from->shape.layers * j->from->shape.experts; }

/* Record i into row `row` of the block. */
static mu_status take(job *j, int64_t i, int64_t row, mu_error *e) {
    int64_t D = j->from->shape.domains, LE = pairs(j), *load = j->load + row * LE, *by_domain = j->by_domain + row * LE * D;
    bool valid;
    mu_status status = mu_statistics_read(j->from, i, &valid, e);
    if (status != MU_STATUS_OK) return status;
    if (!valid) return mu_error_set(e, MU_STATUS_DATA, "%s: record %lld is damaged", j->from->path, (long long)i + 1);
    j->step[i] = j->from->step;
    for (int64_t c = 0; c < LE * D; c++) {
        load[c / D] = (c % D ? load[c / D] : 0) + j->from->counts[c];
        by_domain[c] = j->from->by_domain ? j->from->counts[c] : -1;
    }
    return MU_STATUS_OK;
}

static mu_status write_loads(job *j, mu_error *e) {
    const mu_statistics_shape *s = &j->from->shape;
    int64_t n = j->from->n, shape[] = { n, s->layers, s->experts, s->domains };
    mu_status status = mu_store_make(j->to, "/load", MU_STORE_I64, 3, shape, j->rows, e);
    if (status == MU_STATUS_OK) status = mu_store_make(j->to, "/domain_load", MU_STORE_I64, 4, shape, j->rows, e);
    for (int64_t first = 0; first < n && status == MU_STATUS_OK; first += j->rows) {
        int64_t here = n - first < j->rows ? n - first : j->rows;
        mu_activity_tick();
        for (int64_t row = 0; row < here && status == MU_STATUS_OK; row++) status = take(j, first + row, row, e);
        if (status == MU_STATUS_OK) status = mu_store_write_part(j->to, "/load", MU_STORE_I64, first, here, j->load, e);
        if (status == MU_STATUS_OK) status = mu_store_write_part(j->to, "/domain_load", MU_STORE_I64, first, here, j->by_domain, e);
    }
    return status;
}

/* The names of the domains, one per line. */
static char *names_of(const mu_statistics_shape *s) {
    char *names = mu_strdup("");
    for (int64_t i = 0; i < s->domains; i++) {
        char *more = mu_format("%s%s%s", names, i ? "\n" : "", s->domain[i]);
        free(names);
        names = more;
    }
    return names;
}

static mu_status write_attributes(job *j, const char *names, mu_error *e) {
    const struct { const char *set, *key, *text; } all[] = {
        { "/load", "axes", "step, layer, expert" },
        { "/load", "units", "assignments" },
        { "/domain_load", "axes", "step, layer, expert, domain" },
        { "/domain_load", "units", "assignments; -1: not counted by domain" },
        { "/domain_load", "domains", names },
        { "/load", "meaning", "tokens that were assigned to each expert in the global batch of the step, dropped ones included" },
        { "/domain_load", "meaning", "the same by the domain of the token" },
        { "/step", "axes", "step" },
        { "/step", "units", "step" },
        { "/step", "meaning", "the logged step of each row of /load and /domain_load" },
        { "/layer", "axes", "layer" },
        { "/layer", "units", "number of the layer" },
        { "/layer", "meaning", "which layers of the model, counted from 0, are MoE layers: the axis `layer` of the other arrays" },
        { "/domain", "axes", "domain" },
        { "/domain", "units", "name" },
        { "/domain", "meaning", "the names of the domains, one per line, in the order of the axis `domain` of the other arrays" },
    };
    mu_status status = MU_STATUS_OK;
    for (size_t i = 0; i < sizeof all / sizeof *all && status == MU_STATUS_OK; i++)
        status = mu_store_attribute(j->to, all[i].set, all[i].key, all[i].text, e);
    return status;
}

static mu_status write_labels(job *j, mu_error *e) {
    const mu_statistics_shape *s = &j->from->shape;
    int32_t *layer = mu_alloc((size_t)s->layers, sizeof *layer);
    for (int64_t i = 0; i < s->layers; i++) layer[i] = (int32_t)s->layer[i];
    char *names = names_of(s);
    mu_status status = mu_store_write(j->to, "/step", MU_STORE_I64, 1, &j->from->n, j->step, e);
    if (status == MU_STATUS_OK) status = mu_store_write(j->to, "/layer", MU_STORE_I32, 1, &s->layers, layer, e);
    if (status == MU_STATUS_OK) status = mu_store_write_text(j->to, "/domain", names, e);
    if (status == MU_STATUS_OK) status = write_attributes(j, names, e);
    if (status == MU_STATUS_OK && j->metrics) status = mu_routing_file_metrics(j->to, j->metrics, s, names, e);
    free(names);
    free(layer);
    return status;
}

static mu_status write_file(job *j, const char *path, mu_error *e) {
    int64_t row_bytes = j->from->record_bytes, D = j->from->shape.domains;
    j->rows = row_bytes < BLOCK_BYTES ? BLOCK_BYTES / row_bytes : 1;
    j->step = mu_alloc((size_t)j->from->n, sizeof *j->step);
    j->load = mu_alloc((size_t)(j->rows * pairs(j)), sizeof *j->load);
    j->by_domain = mu_alloc((size_t)(j->rows * pairs(j) * D), sizeof *j->by_domain);
    mu_status status = mu_store_create(&j->to, path, e);
    if (status == MU_STATUS_OK) status = write_loads(j, e);
    if (status == MU_STATUS_OK) status = write_labels(j, e);
    status = mu_store_finish(j->to, status, e);
    free(j->step);
    free(j->load);
    free(j->by_domain);
    return status;
}

mu_status mu_routing_file_write(const char *path, const char *from, const char *metrics, mu_error *e) {
    job j = { .metrics = metrics };
    char *tmp = NULL;
    const char *reason = mu_file_not_plain(path);
    if (reason) return mu_error_set(e, MU_STATUS_IO, "%s %s", path, reason);
    mu_status status = mu_statistics_open(&j.from, from, false, e);
    if (status == MU_STATUS_OK) status = mu_file_temporary(path, &tmp, e);
    if (status == MU_STATUS_OK) status = write_file(&j, tmp, e);
    if (status == MU_STATUS_OK) status = mu_file_rename(tmp, path, e);
    if (status != MU_STATUS_OK && tmp) unlink(tmp);
    mu_statistics_close(j.from);
    free(tmp);
    return status;
}
