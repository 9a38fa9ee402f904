/* routing_metrics.c - the numbers of metrics.jsonl as arrays of routing.h5, one per key: /metrics/KEY of the logged steps, and
 * /statistics/KEY of the statistics lines. Two passes over the file, one block of rows in memory. */
#include "train/lines.h"
#include "train/statistics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 1 << 20 };

typedef struct { char *name; int64_t width, first; bool list; } column;  /* first: of its values in a row of all columns */
typedef struct {
    mu_line_kind kind;
    const char *group, *meaning;    /* "/metrics"; of its steps */
    json_t *index;                  /* key: number of its column */
    column *column;
    int64_t n_columns, width;       /* width: values of a row */
    int64_t lines, rows, held, done;/* rows: of a block, of which `held` are filled; done: lines written */
    double *block, *out;            /* [rows, width]; [rows of one column] */
    int64_t *step;                  /* [rows] */
} table;

static bool ends(const char *name, const char *end) {
    size_t length = strlen(name), n = strlen(end);
    return length >= n && !strcmp(name + length - n, end);
}

/* Values that differ between a run and the same run resumed stay out, and so does what /load has. */
static bool is_wanted(const table *t, const char *key, const json_t *value) {
    if (!strncmp(key, "perf/", 5) || !strncmp(key, "mem/", 4) || !strcmp(key, "stats/seconds_share") || !strcmp(key, "step")) return false;
    return json_is_number(value) || (json_is_array(value) && !(t->kind == MU_LINE_TRAINING && ends(key, "/load")));
}

static void note_columns(table *t, json_t *line) {
    const char *key;
    json_t *value;
    json_object_foreach(line, key, value) {
        if (!is_wanted(t, key, value)) continue;
        const json_t *known = json_object_get(t->index, key);
        int64_t i = known ? json_integer_value(known) : t->n_columns, width = json_is_array(value) ? (int64_t)json_array_size(value) : 1;
        if (!known) {
            t->column = mu_realloc(t->column, (size_t)++t->n_columns, sizeof *t->column);
            t->column[i] = (column){ .name = mu_format("%s/%s", t->group, key), .list = json_is_array(value) };
            json_object_set_new(t->index, key, json_integer(i));
        }
        if (width < 1) width = 1;
        if (width > t->column[i].width) t->column[i].width = width;
    }
    t->lines++;
}

/* The axes of a list, with the shape after the axis of lines; two dimensions where it is a matrix. Lists of experts are of any length. */
static const char *axes_of(const column *c, const mu_statistics_shape *s, int64_t shape[3], int *n_dims) {
    static const char *const by_domain[] = { "/lift", "/domain_specialisation", "/criticality", "/criticality_step" };
    *n_dims = c->list ? 2 : 1, shape[1] = c->width;
    if (!c->list) return "step";
    for (size_t i = 0; i < sizeof by_domain / sizeof *by_domain; i++) {
        if (!ends(c->name, by_domain[i]) || c->width != s->experts * s->domains) continue;
        *n_dims = 3, shape[1] = s->experts, shape[2] = s->domains;
        return "step, expert, domain";
    }
    if (ends(c->name, "/coactivation") && c->width == s->experts * s->experts) {
        *n_dims = 3, shape[1] = shape[2] = s->experts;
        return "step, expert, expert";
    }
    bool numbers = ends(c->name, "/dead") || ends(c->name, "/starved") || ends(c->name, "/coactivation_top") ||
                   ends(c->name, "/saturation") || ends(c->name, "/saturation_steps");
    return c->width == s->experts && !numbers ? "step, expert" : "step, entry";
}

static const char *units_of(const char *name) {
    static const struct { const char *end, *units; } known[] = {
        { "ce_loss", "nats per token" }, { "ce_change", "nats per token" }, { "criticality", "nats per token" }, { "router_entropy", "nats" },
        { "top1_margin", "logits" }, { "boundary_margin", "score" }, { "/load", "assignments" }, { "coactivation", "tokens" },
        { "coactivation_top", "expert, expert, tokens" }, { "_step", "step" }, { "/tokens", "tokens" }, { "/steps", "steps" }, { "/lift", "log2" },
        { "mutual_information", "nats" }, { "/state", "0 healthy, 1 starved, 2 dead, 3 carrier, 4 dormant, 5 duplicate, 6 overwritten" },
        { "/dropped", "assignments" }, { "/gate_mass", "mean gate" }, { "/dead", "expert" }, { "/starved", "expert" }, { "/step", "step" },
        { "/most_similar", "expert" }, { "/saturation_steps", "step" },
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (ends(name, known[i].end)) return known[i].units;
    return "1";
}

/* A key that is also the beginning of another one ("moe/z_loss", and "moe/z_loss/dropped_frac" of a domain z_loss) names a group; its
 * array is called KEY/value. */
static void avoid_groups(table *t) {
    for (int64_t i = 0; i < t->n_columns; i++) {
        size_t n = strlen(t->column[i].name);
        bool is_group = false;
        for (int64_t k = 0; k < t->n_columns && !is_group; k++)
            is_group = !strncmp(t->column[k].name, t->column[i].name, n) && t->column[k].name[n] == '/';
        if (!is_group) continue;
        char *name = mu_format("%s/value", t->column[i].name);
        free(t->column[i].name);
        t->column[i].name = name;
    }
}

static mu_status make_steps(const table *t, const char *name, mu_store *to, mu_error *e) {
    mu_status status = mu_store_make(to, name, MU_STORE_I64, 1, &t->lines, t->rows, e);
    if (status == MU_STATUS_OK) status = mu_store_attribute(to, name, "axes", "step", e);
    if (status == MU_STATUS_OK) status = mu_store_attribute(to, name, "units", "step", e);
    return status == MU_STATUS_OK ? mu_store_attribute(to, name, "meaning", t->meaning, e) : status;
}

static mu_status make_columns(table *t, const mu_statistics_shape *s, const char *names, mu_store *to, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    char *steps = mu_format("%s/step", t->group);
    for (int64_t i = 0; i < t->n_columns; i++) t->column[i].first = t->width, t->width += t->column[i].width;
    t->rows = 8 * t->width < BLOCK_BYTES ? BLOCK_BYTES / (8 * (t->width + 1)) : 1;
    if (t->rows > t->lines) t->rows = t->lines;
    t->block = mu_alloc((size_t)(t->rows * t->width), sizeof *t->block);
    t->out = mu_alloc((size_t)(t->rows * t->width), sizeof *t->out);
    t->step = mu_alloc((size_t)t->rows, sizeof *t->step);
    avoid_groups(t);
    if (t->lines) status = make_steps(t, steps, to, e);
    for (int64_t i = 0; i < t->n_columns && status == MU_STATUS_OK; i++) {
        const column *c = &t->column[i];
        int64_t shape[3] = { t->lines };
        int n_dims;
        const char *axes = axes_of(c, s, shape, &n_dims);
        status = mu_store_make(to, c->name, MU_STORE_F64, n_dims, shape, t->rows, e);
        if (status == MU_STATUS_OK) status = mu_store_attribute(to, c->name, "axes", axes, e);
        if (status == MU_STATUS_OK) status = mu_store_attribute(to, c->name, "units", units_of(c->name), e);
        if (status == MU_STATUS_OK && strstr(axes, "domain")) status = mu_store_attribute(to, c->name, "domains", names, e);
    }
    free(steps);
    return status;
}

static mu_status write_block(table *t, mu_store *to, mu_error *e) {
    char *steps = mu_format("%s/step", t->group);
    mu_status status = t->held ? mu_store_write_part(to, steps, MU_STORE_I64, t->done, t->held, t->step, e) : MU_STATUS_OK;
    for (int64_t i = 0; i < t->n_columns && t->held && status == MU_STATUS_OK; i++) {
        const column *c = &t->column[i];
        for (int64_t row = 0; row < t->held; row++)
            memcpy(t->out + row * c->width, t->block + row * t->width + c->first, sizeof *t->out * (size_t)c->width);
        status = mu_store_write_part(to, c->name, MU_STORE_F64, t->done, t->held, t->out, e);
    }
    t->done += t->held, t->held = 0;
    free(steps);
    return status;
}

static mu_status take_line(table *t, const mu_line *line, mu_store *to, mu_error *e) {
    double *row = t->block + t->held * t->width;
    for (int64_t i = 0; i < t->width; i++) row[i] = NAN;
    const char *key;
    json_t *value;
    json_object_foreach(line->json, key, value) {
        const json_t *known = json_object_get(t->index, key);
        if (!known || !is_wanted(t, key, value)) continue;
        const column *c = &t->column[json_integer_value(known)];
        if (json_is_number(value)) row[c->first] = json_number_value(value);
        for (size_t i = 0; json_is_array(value) && i < json_array_size(value) && i < (size_t)c->width; i++)
            row[c->first + (int64_t)i] = json_number_value(json_array_get(value, i));
    }
    t->step[t->held++] = line->step;
    return t->held == t->rows ? write_block(t, to, e) : MU_STATUS_OK;
}

/* A line that was appended since the first pass is left for the next file. */
static mu_status pass(table *tables, int n, const char *path, mu_store *to, mu_error *e) {
    mu_lines l;
    mu_line line;
    mu_status status = mu_lines_open(&l, path, MU_LINES_METRICS, e);
    while (status == MU_STATUS_OK && mu_lines_next(&l)) {
        if (!mu_line_read(&l, &line)) continue;
        for (int i = 0; i < n && status == MU_STATUS_OK; i++) {
            table *t = &tables[i];
            if (line.kind != t->kind) continue;
            if (!to) note_columns(t, line.json);
            else if (t->done + t->held < t->lines) status = take_line(t, &line, to, e);
        }
        json_decref(line.json);
    }
    mu_status closed = mu_lines_close(&l, status == MU_STATUS_OK ? e : NULL);
    return status == MU_STATUS_OK ? closed : status;
}

mu_status mu_routing_file_metrics(mu_store *to, const char *path, const mu_statistics_shape *shape, const char *names, mu_error *e) {
    enum { TABLES = 2 };
    table tables[TABLES] = {
        { .kind = MU_LINE_TRAINING, .group = "/metrics", .meaning = "the step of each row of the arrays in /metrics: the logged steps" },
        { .kind = MU_LINE_STATISTICS, .group = "/statistics",
          .meaning = "the step of each row of the arrays in /statistics: the last one that its statistics line describes" } };
    for (int i = 0; i < TABLES; i++) tables[i].index = json_object();
    mu_status status = pass(tables, TABLES, path, NULL, e);
    for (int i = 0; i < TABLES && status == MU_STATUS_OK; i++) status = make_columns(&tables[i], shape, names, to, e);
    if (status == MU_STATUS_OK) status = pass(tables, TABLES, path, to, e);
    for (int i = 0; i < TABLES; i++) {
        if (status == MU_STATUS_OK) status = write_block(&tables[i], to, e);
        for (int64_t c = 0; c < tables[i].n_columns; c++) free(tables[i].column[c].name);
        json_decref(tables[i].index);
        free(tables[i].column);
        free(tables[i].block);
        free(tables[i].out);
        free(tables[i].step);
    }
    return status;
}
