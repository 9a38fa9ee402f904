/* metrics_resume.c - continues the metrics.jsonl of an earlier job: keeps the valid lines up to the resume step. Newer lines and
 * one torn by a kill are dropped; anything else is dropped only with a warning and a copy of the old file. */
#include "train/run_view.h"
#include "train/train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------ parsing a line */

static void load_key(const mu_log_source *src, int layer, char key[64]) {
    snprintf(key, 64, "moe/layer_%d/load", src->state->model->moe_layers[layer]);
}

bool mu_metrics_read_loads(const mu_log_source *src, const json_t *line, int64_t *loads) {
    int64_t E = src->cfg->moe.num_experts;
    for (int layer = 0; layer < src->state->model->n_moe; layer++) {
        char key[64];
        load_key(src, layer, key);
        const json_t *list = json_object_get(line, key);
        int64_t rest = src->cfg->train.global_batch_size * src->cfg->train.seq_len * src->cfg->moe.top_k;
        if (json_array_size(list) != (size_t)E) return false;
        for (int64_t i = 0; i < E; i++) {
            const json_t *load = json_array_get(list, (size_t)i);
            int64_t value = json_integer_value(load);
            if (!json_is_integer(load) || value < 0 || value > rest) return false;
            rest -= loads[layer * E + i] = value;
        }
        if (rest != 0) return false;
    }
    return true;
}

static bool has_numbers_only(json_t *line) {
    const char *key;
    json_t *value;
    json_object_foreach(line, key, value)
        if (!json_is_number(value) && !json_is_null(value) && !json_is_array(value)) return false;
    return json_is_object(line);
}

/* The kinds of lines, in the order in which a step writes them. */
typedef enum { TRAINING, STATISTICS, EVALUATION, KINDS } line_kind;
/* A parsed line. proven: checksum or number of tokens confirm its step. */
typedef struct { int64_t step; line_kind kind; bool proven; } record;

/* Parses a line; false when it is not a valid one of this model. loads: scratch for those of a step. */
static bool read_line(const mu_log_source *src, const char *text, size_t bytes, record *r, int64_t *loads) {
    bool checked = mu_line_has_checksum(text, bytes);
    if (checked && !mu_line_checksum_holds(text, bytes)) return false;
    json_t *line = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    const json_t *step = json_object_get(line, "step"), *tokens = json_object_get(line, "train/tokens");
    int64_t batch = src->cfg->train.global_batch_size * src->cfg->train.seq_len, seen = json_integer_value(tokens);
    char key[64] = "";
    if (src->state->model->n_moe) load_key(src, 0, key);
    if (checked) json_object_del(line, "xxh3");
    *r = (record){ .step = json_integer_value(step), .kind = EVALUATION };
    if (checked && json_object_get(line, "stats/steps")) r->kind = STATISTICS;
    else if (tokens || json_object_get(line, key)) r->kind = TRAINING;
    r->proven = checked || r->kind == TRAINING;
    bool good = has_numbers_only(line) && json_is_integer(step) && r->step >= 1 && r->step < INT64_MAX / KINDS;
    if (good && r->kind == TRAINING)
        good = json_is_integer(tokens) && seen % batch == 0 && seen / batch == r->step && mu_metrics_read_loads(src, line, loads);
    json_decref(line);
    return good;
}

/* Is this, after the last newline, a line torn by a kill? Such a line begins like every line, has no end, and no checkpoint
 * covers it: lines are synced before the checkpoint that covers them. An evaluation may follow the checkpoint of its step. */
static bool is_torn(const char *text, size_t bytes, int64_t covered) {
    static const char begin[] = "{\"step\":";
    size_t n = sizeof begin - 1, at;
    if (bytes > MU_LINE_BYTES || memcmp(text, begin, bytes < n ? bytes : n)) return false;
    for (at = 0; at < bytes; at++)
        if (text[at] <= ' ' || text[at] > '~' || text[at] == '}') return false;
    int64_t step = 0;
    for (at = n; at < bytes && text[at] >= '0' && text[at] <= '9'; at++) {
        if (step > INT64_MAX / 20) return false;
        step = 10 * step + text[at] - '0';
    }
    static const char evaluation[] = ",\"val/ce_loss";        /* where the others have "train/tokens" or "stats/steps" */
    if (at >= bytes) return true;                           /* digits may be missing */
    size_t left = bytes - at < 3 ? bytes - at : 3;
    bool may_follow = !memcmp(text + at, evaluation, left);
    return at > n && text[at] == ',' && step >= covered + !may_follow;
}

/* ------------------------------------------------------------------ the file of an earlier job */

typedef struct {
    int64_t line, key;                                  /* key: KINDS * step + kind */
    bool proven, dropped;
} valid_line;

typedef struct {
    const mu_log_source *src;
    const char *path, *routing_path;
    char *routing_aside;                                /* new name of routing.h5; NULL: not moved */
    valid_line *list;
    int64_t n, capacity;
    bool in_order, checked;                             /* checked: some line has a checksum, so all later ones must */
    int64_t lines, beyond, damaged, first_damaged;      /* beyond: valid lines newer than the resume step */
    int64_t end;                                        /* of the last line to keep */
    bool ended;                                         /* with a newline */
} old_file;

static void note_damage(old_file *s, int64_t line) {
    if (!s->damaged++ || line < s->first_damaged) s->first_damaged = line;
}

static void note_valid(old_file *s, const record *r) {
    int64_t key = KINDS * r->step + r->kind;
    if (s->n && s->list[s->n - 1].key >= key) s->in_order = false;
    if (s->n == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 256;
        s->list = mu_realloc(s->list, (size_t)s->capacity, sizeof *s->list);
    }
    s->list[s->n++] = (valid_line){ s->lines, key, r->proven, false };
}

static mu_status read_lines(old_file *s, mu_error *e) {
    mu_lines r;
    mu_status status = mu_lines_open(&r, s->path, e);
    if (status != MU_STATUS_OK) return status;
    int64_t *loads = mu_alloc((size_t)(s->src->state->model->n_moe * s->src->cfg->moe.num_experts), sizeof *loads);
    while (mu_lines_next(&r)) {
        record found;
        bool checked = r.bytes <= MU_LINE_BYTES && mu_line_has_checksum(r.text, r.bytes);
        bool valid = r.bytes <= MU_LINE_BYTES && checked >= s->checked && read_line(s->src, r.text, r.bytes, &found, loads);
        if (!valid && !r.ended && is_torn(r.text, r.bytes, s->src->state->step)) break;
        s->lines++;
        if (!valid) {
            note_damage(s, s->lines);
            continue;
        }
        note_valid(s, &found);
        s->checked |= checked;
        if (found.step > s->src->state->step) s->beyond++;
        else s->end = r.end, s->ended = r.ended;
    }
    free(loads);
    return mu_lines_close(&r, e);
}

static void drop(old_file *s, int64_t i) {
    s->list[i].dropped = true;
    note_damage(s, s->list[i].line);
}

/* Keeps the longest increasing subsequence of the proven lines, so that one misplaced line costs no other. last[n]: the line
 * with the lowest key that ends a subsequence of length n + 1. */
static void drop_disorder(old_file *s) {
    int64_t *last = mu_alloc((size_t)s->n, sizeof *last), *before = mu_alloc((size_t)s->n, sizeof *before), longest = 0;
    for (int64_t i = 0; i < s->n; i++) {
        int64_t low = 0, high = longest;
        if (!s->list[i].proven) continue;
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (s->list[last[middle]].key < s->list[i].key) low = middle + 1;
            else high = middle;
        }
        if (low < longest && s->list[last[low]].key == s->list[i].key) continue;      /* of two equal ones the first is kept */
        before[i] = low ? last[low - 1] : -1;
        last[low] = i;
        if (low == longest) longest++;
    }
    for (int64_t i = s->n - 1, kept = longest ? last[longest - 1] : -1; i >= 0; i--) {
        if (!s->list[i].proven) continue;
        if (i == kept) kept = before[i];
        else drop(s, i);
    }
    free(last);
    free(before);
}

/* Drops the lines that are not proven and whose steps are out of order with the proven ones around them. */
static void drop_misfits(old_file *s) {
    int64_t *after = mu_alloc((size_t)s->n, sizeof *after), key = INT64_MAX;
    for (int64_t i = s->n - 1; i >= 0; i--) {
        if (s->list[i].proven && !s->list[i].dropped) key = s->list[i].key;
        after[i] = key;
    }
    key = 0;
    for (int64_t i = 0; i < s->n; i++) {
        const valid_line *l = &s->list[i];
        if (!l->proven && (l->key <= key || l->key >= after[i])) drop(s, i);
        if (!l->dropped) key = l->key;
    }
    free(after);
}

static bool is_kept(const old_file *s, int64_t i) { return !s->list[i].dropped && s->list[i].key / KINDS <= s->src->state->step; }

/* The steps of the training lines that are kept. */
static void note_steps(const old_file *s, mu_logged_steps *logged) {
    logged->step = mu_alloc((size_t)s->n, sizeof *logged->step);
    for (int64_t i = 0; i < s->n; i++)
        if (is_kept(s, i) && s->list[i].key % KINDS == TRAINING) logged->step[logged->n++] = s->list[i].key / KINDS;
}

/* Writes the kept lines to a new file. */
static mu_status write_lines(const old_file *s, const char *path, mu_error *e) {
    mu_lines r = { 0 };
    FILE *out = fopen(path, "we");
    mu_status status = out ? MU_STATUS_OK : mu_error_set(e, MU_STATUS_IO, "%s cannot be written: %s", path, strerror(errno));
    if (status == MU_STATUS_OK && s->n) status = mu_lines_open(&r, s->path, e);
    int64_t line = 0;
    bool good = true;
    for (int64_t i = 0; status == MU_STATUS_OK && i < s->n && good; i++) {
        if (!is_kept(s, i)) continue;
        while (line < s->list[i].line && mu_lines_next(&r)) line++;
        good = line == s->list[i].line && fwrite(r.text, 1, r.bytes, out) == r.bytes && putc('\n', out) != EOF;
    }
    mu_status closed = mu_lines_close(&r, e);
    if (status == MU_STATUS_OK) status = closed;
    if (out) good = good && fflush(out) == 0 && fsync(fileno(out)) == 0;
    if (out && fclose(out)) good = false;
    if (status == MU_STATUS_OK && !good)
        status = mu_error_set(e, MU_STATUS_IO, "%s cannot be written: %s", path, strerror(errno));
    return status;
}

/* Only a plain file was written by muster. */
static bool has_routing(const old_file *s) { return mu_file_exists(s->routing_path) && !mu_file_not_plain(s->routing_path); }

/* Writes the new file, then moves routing.h5 aside: the new file is complete before anything is moved. */
static mu_status write_new(void *context, const char *path, mu_error *e) {
    old_file *s = context;
    mu_status status = write_lines(s, path, e);
    return status == MU_STATUS_OK && has_routing(s) ? mu_file_set_aside(s->routing_path, &s->routing_aside, e) : status;
}

/* Replaces the file by its kept lines; the old one and routing.h5 are moved aside. */
static mu_status replace(old_file *s, mu_error *e) {
    char *aside, detail[64];
    mu_status status = mu_file_rewrite(s->path, write_new, s, &aside, e);
    if (status != MU_STATUS_OK) return status;
    char *names = mu_format("%s%s%s", aside ? aside : "", aside && s->routing_aside ? " and " : "", s->routing_aside ? s->routing_aside : "");
    snprintf(detail, sizeof detail, ", the first is line %lld", (long long)s->first_damaged);
    mu_run_warn_rewritten(&(mu_rewritten){ .path = s->path, .names = names, .parts = "lines", .step = s->src->state->step, .damaged = s->damaged,
                                .all = s->lines, .detail = detail });
    free(names);
    free(aside);
    return MU_STATUS_OK;
}

bool mu_run_rewinds(const mu_log_source *src) {
    int64_t *steps = NULL;
    bool yes = mu_checkpoint_list(src->cfg->run.dir, &steps) > 0 && steps[0] > src->state->step;
    free(steps);
    return yes;
}

/* Without a checkpoint all existing files are moved aside. Otherwise keeps the valid lines up to src->state->step and cuts off newer
 * ones, whose steps are computed again, and a last line torn by a kill. */
static mu_status cut_back(old_file *s, mu_error *e) {
    struct stat st;
    int64_t size = stat(s->path, &st) ? 0 : st.st_size;
    if (s->src->state->step == 0) return size || has_routing(s) ? replace(s, e) : MU_STATUS_OK;
    mu_status status = size ? read_lines(s, e) : MU_STATUS_OK;
    if (status != MU_STATUS_OK) return status;
    if (!s->in_order) drop_disorder(s), drop_misfits(s);
    if (s->damaged || (s->beyond && mu_run_rewinds(s->src))) return s->ended = true, replace(s, e);
    if (s->end < size && truncate(s->path, s->end))
        return mu_error_set(e, MU_STATUS_IO, "%s cannot be cut back: %s", s->path, strerror(errno));
    return MU_STATUS_OK;
}

mu_status mu_metrics_cut_back(const char *path, const char *routing_path, const mu_log_source *src, mu_logged_steps *logged, bool *ended,
                              mu_error *e) {
    old_file s = { .src = src, .path = path, .routing_path = routing_path, .in_order = true, .ended = true };
    const char *reason = mu_file_not_plain(path);
    if (reason) return mu_error_set(e, MU_STATUS_IO, "%s %s; move it out of the way", path, reason);
    mu_status status = cut_back(&s, e);
    note_steps(&s, logged);
    *ended = s.ended;
    free(s.routing_aside);
    free(s.list);
    return status;
}
