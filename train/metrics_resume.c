/* metrics_resume.c - what a job makes of the metrics.jsonl that an earlier one left: the sound lines up to its step stay, and
 * nothing but lines beyond it, and the one that a kill tore, goes without a warning and a copy of what was there. */
#include "train/train.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void mu_logged_loads_add(mu_logged_loads *l, int64_t step, const int64_t *loads) {
    if (l->n == l->capacity) {
        l->capacity = l->capacity ? 2 * l->capacity : 256;
        l->steps = mu_realloc(l->steps, (size_t)l->capacity, sizeof *l->steps);
        l->loads = mu_realloc(l->loads, (size_t)(l->capacity * (l->cells ? l->cells : 1)), sizeof *l->loads);
    }
    memcpy(l->loads + l->n * l->cells, loads, sizeof *loads * (size_t)l->cells);
    l->steps[l->n++] = step;
}

/* ------------------------------------------------------------------ a line and its checksum */

enum { LINE_BYTES = 4 << 20 };  /* the most a sound line has: numbers of the largest model */

/* The end of every line, its last key: XXH3-64 of all bytes before. */
static const char checksum_key[] = ",\"xxh3\":\"";
enum { KEY_BYTES = sizeof checksum_key - 1 };
_Static_assert(MU_CHECKSUM_BYTES == KEY_BYTES + 16 + 2, "the key, 16 digits, a quote and a bracket");

void mu_metrics_checksum(const char *line, size_t bytes, char text[MU_CHECKSUM_BYTES + 1]) {
    snprintf(text, MU_CHECKSUM_BYTES + 1, "%s%016llx\"}", checksum_key, (unsigned long long)mu_hash64(line, bytes));
}

/* Lines of older runs have none. */
static bool has_checksum(const char *line, size_t bytes) {
    return bytes > MU_CHECKSUM_BYTES && !memcmp(line + bytes - MU_CHECKSUM_BYTES, checksum_key, KEY_BYTES);
}

static bool checksum_holds(const char *line, size_t bytes) {
    char text[MU_CHECKSUM_BYTES + 1];
    mu_metrics_checksum(line, bytes - MU_CHECKSUM_BYTES, text);
    return !memcmp(line + bytes - MU_CHECKSUM_BYTES, text, MU_CHECKSUM_BYTES);
}

static void load_key(const mu_trainer *t, int layer, char key[64]) {
    snprintf(key, 64, "moe/layer_%d/load", t->model->moe_layers[layer]);
}

/* The loads of a training line, [MoE layers, experts]; false when no step of this model has them: all assignments count. */
static bool read_loads(const mu_trainer *t, const json_t *line, int64_t *loads) {
    int64_t E = t->cfg.moe.num_experts;
    for (int layer = 0; layer < t->model->n_moe; layer++) {
        char key[64];
        load_key(t, layer, key);
        const json_t *list = json_object_get(line, key);
        int64_t rest = t->cfg.train.global_batch_size * t->cfg.train.seq_len * t->cfg.moe.top_k;
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

/* Of a training step, else of an evaluation. Proven: checksum or number of tokens say that the step is right. */
typedef struct { int64_t step; bool training, proven; } record;

/* What the line is and its loads; false when no run of this model writes it so. */
static bool read_line(const mu_trainer *t, const char *text, size_t bytes, record *r, int64_t *loads) {
    bool checked = has_checksum(text, bytes);
    if (checked && !checksum_holds(text, bytes)) return false;
    json_t *line = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    const json_t *step = json_object_get(line, "step"), *tokens = json_object_get(line, "train/tokens");
    int64_t batch = t->cfg.train.global_batch_size * t->cfg.train.seq_len, seen = json_integer_value(tokens);
    char key[64] = "";
    if (t->model->n_moe) load_key(t, 0, key);
    if (checked) json_object_del(line, "xxh3");
    *r = (record){ .step = json_integer_value(step), .training = tokens || json_object_get(line, key) };
    r->proven = checked || r->training;
    bool good = has_numbers_only(line) && json_is_integer(step) && r->step >= 1 && r->step < INT64_MAX / 2;
    if (good && r->training)
        good = json_is_integer(tokens) && seen % batch == 0 && seen / batch == r->step && read_loads(t, line, loads);
    json_decref(line);
    return good;
}

/* Is this, behind the last newline, what a kill leaves of a line? Such a line begins as all do, has no end, and no checkpoint
 * covers it: what one covers is on the disk before it counts. An evaluation may come after the checkpoint of its step. */
static bool is_torn(const char *text, size_t bytes, int64_t covered) {
    static const char begin[] = "{\"step\":";
    size_t n = sizeof begin - 1, at;
    if (bytes > LINE_BYTES || memcmp(text, begin, bytes < n ? bytes : n)) return false;
    for (at = 0; at < bytes; at++)
        if (text[at] <= ' ' || text[at] > '~' || text[at] == '}') return false;
    int64_t step = 0;
    for (at = n; at < bytes && text[at] >= '0' && text[at] <= '9'; at++) {
        if (step > INT64_MAX / 20) return false;
        step = 10 * step + text[at] - '0';
    }
    static const char training[] = ",\"t";                   /* "train/tokens", where an evaluation has "val/ce_loss" */
    if (at >= bytes) return true;                           /* digits may be missing */
    bool trained = bytes - at >= 3 && !memcmp(text + at, training, 3);
    return at > n && text[at] == ',' && step >= covered + trained;
}

/* ------------------------------------------------------------------ reading them one by one */

enum { BLOCK_BYTES = 1 << 16 };

typedef struct {
    FILE *file;
    char *block;        /* [BLOCK_BYTES], of which [used, filled) is not taken yet */
    size_t used, filled;
    char *text;         /* [LINE_BYTES] */
    size_t bytes;       /* of the line at hand, without its newline; LINE_BYTES + 1: more than any sound one */
    bool ended;         /* by a newline */
    int64_t end;        /* where the next line begins */
} reader;

static mu_status open_reader(reader *r, const char *path, mu_error *e) {
    *r = (reader){ .file = fopen(path, "re") };
    if (!r->file) return mu_error_set(e, MU_STATUS_IO, "%s cannot be read: %s", path, strerror(errno));
    r->text = mu_alloc(LINE_BYTES, 1);
    r->block = mu_alloc(BLOCK_BYTES, 1);
    return MU_STATUS_OK;
}

static mu_status close_reader(reader *r, const char *path, mu_error *e) {
    bool failed = r->file && ferror(r->file);
    if (r->file) fclose(r->file);
    free(r->text);
    free(r->block);
    return failed ? mu_error_set(e, MU_STATUS_IO, "%s cannot be read", path) : MU_STATUS_OK;
}

static bool fill(reader *r) {
    if (r->used < r->filled) return true;
    mu_activity_tick();
    r->used = 0;
    r->filled = fread(r->block, 1, BLOCK_BYTES, r->file);
    return r->filled > 0;
}

static bool next_line(reader *r) {
    r->bytes = 0;
    r->ended = false;
    while (!r->ended && fill(r)) {
        const char *part = r->block + r->used, *newline = memchr(part, '\n', r->filled - r->used);
        size_t n = newline ? (size_t)(newline - part) : r->filled - r->used, room = LINE_BYTES + 1 - r->bytes;
        r->ended = newline != NULL;
        r->used += n + r->ended;
        r->end += (int64_t)(n + r->ended);
        if (n < room) memcpy(r->text + r->bytes, part, n);
        r->bytes += n < room ? n : room;
    }
    return r->ended || r->bytes > 0;
}

/* ------------------------------------------------------------------ what an earlier job left */

typedef struct {
    int64_t line, key;                                  /* 2 * step, and 1 more for an evaluation, which comes after it */
    bool proven, dropped;
} sound_line;

typedef struct {
    const mu_trainer *t;
    const char *path, *routing_path;
    mu_logged_loads *loads;
    sound_line *list;
    int64_t n, capacity;
    bool in_order, checked;                             /* checked: some line has a checksum, so that all later ones do */
    int64_t lines, beyond, damaged, first_damaged;      /* beyond: sound lines of later steps */
    int64_t end;                                        /* of the last sound line of a step that stays */
    bool ended;                                         /* by a newline */
} survey;

static void note_damage(survey *s, int64_t line) {
    if (!s->damaged++ || line < s->first_damaged) s->first_damaged = line;
}

static void note_sound(survey *s, const record *r) {
    int64_t key = 2 * r->step + !r->training;
    if (s->n && s->list[s->n - 1].key >= key) s->in_order = false;
    if (s->n == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 256;
        s->list = mu_realloc(s->list, (size_t)s->capacity, sizeof *s->list);
    }
    s->list[s->n++] = (sound_line){ s->lines, key, r->proven, false };
}

/* Reads all lines, and remembers the loads of the sound ones. */
static mu_status read_lines(survey *s, mu_error *e) {
    reader r;
    mu_status status = open_reader(&r, s->path, e);
    if (status != MU_STATUS_OK) return status;
    int64_t *loads = mu_alloc((size_t)s->loads->cells, sizeof *loads);
    while (next_line(&r)) {
        record found;
        bool checked = r.bytes <= LINE_BYTES && has_checksum(r.text, r.bytes);
        bool sound = r.bytes <= LINE_BYTES && checked >= s->checked && read_line(s->t, r.text, r.bytes, &found, loads);
        if (!sound && !r.ended && is_torn(r.text, r.bytes, s->t->step)) break;
        s->lines++;
        if (!sound) {
            note_damage(s, s->lines);
            continue;
        }
        note_sound(s, &found);
        s->checked |= checked;
        if (found.training && s->loads->cells) mu_logged_loads_add(s->loads, found.step, loads);
        if (found.step > s->t->step) s->beyond++;
        else s->end = r.end, s->ended = r.ended;
    }
    free(loads);
    return close_reader(&r, s->path, e);
}

static void drop(survey *s, int64_t i) {
    s->list[i].dropped = true;
    note_damage(s, s->list[i].line);
}

/* Of the proven lines the longest sequence in order stays, so that one in the wrong place costs no other. For each length so far
 * the line is known that ends such a sequence with the lowest key. */
static void drop_disorder(survey *s) {
    int64_t *last = mu_alloc((size_t)s->n, sizeof *last), *before = mu_alloc((size_t)s->n, sizeof *before), longest = 0;
    for (int64_t i = 0; i < s->n; i++) {
        int64_t low = 0, high = longest;
        if (!s->list[i].proven) continue;
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (s->list[last[middle]].key < s->list[i].key) low = middle + 1;
            else high = middle;
        }
        if (low < longest && s->list[last[low]].key == s->list[i].key) continue;      /* the first of two stays */
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

/* The other lines stay where they fit between the proven ones. */
static void drop_misfits(survey *s) {
    int64_t *after = mu_alloc((size_t)s->n, sizeof *after), key = INT64_MAX;
    for (int64_t i = s->n - 1; i >= 0; i--) {
        if (s->list[i].proven && !s->list[i].dropped) key = s->list[i].key;
        after[i] = key;
    }
    key = 0;
    for (int64_t i = 0; i < s->n; i++) {
        const sound_line *l = &s->list[i];
        if (!l->proven && (l->key <= key || l->key >= after[i])) drop(s, i);
        if (!l->dropped) key = l->key;
    }
    free(after);
}

static bool stays(const survey *s, int64_t i) { return !s->list[i].dropped && s->list[i].key / 2 <= s->t->step; }

/* The loads of the lines that stay. */
static void keep_loads(const survey *s) {
    mu_logged_loads *l = s->loads;
    int64_t n = 0, at = 0;
    for (int64_t i = 0; i < s->n && l->cells; i++) {
        if (s->list[i].key % 2) continue;
        if (stays(s, i)) {
            l->steps[n] = l->steps[at];
            memmove(l->loads + n * l->cells, l->loads + at * l->cells, sizeof *l->loads * (size_t)l->cells);
            n++;
        }
        at++;
    }
    l->n = n;
}

/* Writes the lines that stay into a new file. */
static mu_status write_lines(const survey *s, const char *path, mu_error *e) {
    reader r = { 0 };
    FILE *out = fopen(path, "we");
    mu_status status = out ? MU_STATUS_OK : mu_error_set(e, MU_STATUS_IO, "%s cannot be written: %s", path, strerror(errno));
    if (status == MU_STATUS_OK && s->n) status = open_reader(&r, s->path, e);
    int64_t line = 0;
    bool good = true;
    for (int64_t i = 0; status == MU_STATUS_OK && i < s->n && good; i++) {
        if (!stays(s, i)) continue;
        while (line < s->list[i].line && next_line(&r)) line++;
        good = line == s->list[i].line && fwrite(r.text, 1, r.bytes, out) == r.bytes && putc('\n', out) != EOF;
    }
    mu_status closed = close_reader(&r, s->path, e);
    if (status == MU_STATUS_OK) status = closed;
    if (out) good = good && fflush(out) == 0 && fsync(fileno(out)) == 0;
    if (out && fclose(out)) good = false;
    if (status == MU_STATUS_OK && !good)
        status = mu_error_set(e, MU_STATUS_IO, "%s cannot be written: %s", path, strerror(errno));
    return status;
}

/* What is not a plain file is not muster's. */
static bool has_routing(const survey *s) { return mu_file_exists(s->routing_path) && !mu_file_not_plain(s->routing_path); }

/* Both files as they were get names beside the new ones. A link, so that there is no moment without metrics.jsonl; where the
 * file system has none, it is renamed. *names, heap: for the warning. */
static mu_status keep_aside(const survey *s, char **names, mu_error *e) {
    char *metrics = mu_file_free_name(s->path, ".aside"), *routing = mu_file_free_name(s->routing_path, ".aside");
    bool any = mu_file_exists(s->path), loads = has_routing(s);
    mu_status status = MU_STATUS_OK;
    if (any && link(s->path, metrics)) status = mu_file_rename(s->path, metrics, e);
    if (status == MU_STATUS_OK && loads) status = mu_file_rename(s->routing_path, routing, e);
    *names = mu_format("%s%s%s", any ? metrics : "", any && loads ? " and " : "", loads ? routing : "");
    free(metrics);
    free(routing);
    return status;
}

static void say_why(const survey *s, const char *names) {
    if (s->damaged)
        mu_log(MU_LOG_WARNING, "%s: %lld of %lld lines are damaged, the first is line %lld; the others stay, what was there is kept as %s",
               s->path, (long long)s->damaged, (long long)s->lines, (long long)s->first_damaged, names);
    else if (s->t->step)
        mu_log(MU_LOG_WARNING, "%s: lines beyond step %lld, from which this run resumes, are kept in %s", s->path,
               (long long)s->t->step, names);
    else
        mu_log(MU_LOG_WARNING, "%s holds metrics of an earlier job and no checkpoint to resume from: they are kept as %s",
               s->t->cfg.run.dir, names);
}

/* Puts the lines that stay in the place of the file, which is kept aside. */
static mu_status replace(const survey *s, mu_error *e) {
    char *tmp, *names = NULL;
    mu_status status = mu_file_temporary(s->path, &tmp, e);
    if (status != MU_STATUS_OK) return status;
    status = write_lines(s, tmp, e);
    if (status == MU_STATUS_OK) status = keep_aside(s, &names, e);
    if (status == MU_STATUS_OK) status = mu_file_rename(tmp, s->path, e);
    if (status != MU_STATUS_OK) unlink(tmp);
    else say_why(s, names);
    free(tmp);
    free(names);
    return status;
}

/* Is a course left here, of which there are checkpoints beyond this one? They and the lines of their steps are kept. */
static bool leaves_a_course(const mu_trainer *t) {
    int64_t *steps = NULL;
    bool yes = mu_checkpoint_list(t->cfg.run.dir, &steps) > 0 && steps[0] > t->step;
    free(steps);
    return yes;
}

/* Without a checkpoint whatever is there goes aside. Else the sound lines up to t->step stay; those beyond are cut off, their steps
 * are made again, and so is the last one where a kill tore it. */
static mu_status cut_back(survey *s, mu_error *e) {
    struct stat st;
    int64_t size = stat(s->path, &st) ? 0 : st.st_size;
    if (s->t->step == 0) return size || has_routing(s) ? replace(s, e) : MU_STATUS_OK;
    mu_status status = size ? read_lines(s, e) : MU_STATUS_OK;
    if (status != MU_STATUS_OK) return status;
    if (!s->in_order) drop_disorder(s), drop_misfits(s);
    keep_loads(s);
    if (s->damaged || (s->beyond && leaves_a_course(s->t))) return s->ended = true, replace(s, e);
    if (s->end < size && truncate(s->path, s->end))
        return mu_error_set(e, MU_STATUS_IO, "%s cannot be cut back: %s", s->path, strerror(errno));
    return MU_STATUS_OK;
}

mu_status mu_metrics_cut_back(const char *path, const char *routing_path, const mu_trainer *t, mu_logged_loads *loads, bool *ended,
                              mu_error *e) {
    survey s = { .t = t, .path = path, .routing_path = routing_path, .loads = loads, .in_order = true, .ended = true };
    const char *reason = mu_file_not_plain(path);
    if (reason) return mu_error_set(e, MU_STATUS_IO, "%s %s; move it out of the way", path, reason);
    mu_status status = cut_back(&s, e);
    *ended = s.ended;
    free(s.list);
    return status;
}
