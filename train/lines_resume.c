/* lines_resume.c - continues a file of JSON lines of an earlier job: keeps the valid lines up to the resume step. Newer lines and
 * one torn by a kill are dropped; anything else is dropped only with a warning and a copy of the old file. */
#include "train/lines.h"
#include "train/train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------ the file of an earlier job */

typedef struct {
    int64_t line, step;
    mu_line_kind kind;
    bool proven, dropped;                               /* proven: its checksum or number of tokens confirms the step */
} valid_line;

typedef struct {
    const mu_lines_resume *how;
    const char *path;
    char *derived_aside;                                /* new name of the derived file; NULL: not moved */
    valid_line *list;
    int64_t n, capacity;
    bool in_order;
    int64_t lines, beyond, damaged, first_damaged;      /* beyond: valid lines newer than the resume step */
    int64_t end;                                        /* of the last line to keep */
    bool ended;                                         /* with a newline */
} old_file;

static void note_damage(old_file *s, int64_t line) {
    if (!s->damaged++ || line < s->first_damaged) s->first_damaged = line;
}

/* The order of lines: by step and kind. Several events may have the same place. */
static int64_t place(const valid_line *l) { return MU_LINE_KINDS * l->step + (int64_t)l->kind; }
static bool may_follow(const old_file *s, int64_t place, int64_t before) {
    return s->how->format == MU_LINES_EVENTS ? place >= before : place > before;
}

static void note_valid(old_file *s, const mu_line *line) {
    valid_line l = { s->lines, line->step, line->kind, line->checked || line->kind == MU_LINE_TRAINING, false };
    if (s->n && !may_follow(s, place(&l), place(&s->list[s->n - 1]))) s->in_order = false;
    if (s->n == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 256;
        s->list = mu_realloc(s->list, (size_t)s->capacity, sizeof *s->list);
    }
    s->list[s->n++] = l;
}

static void read_line(old_file *s, mu_lines *r) {
    const mu_lines_resume *how = s->how;
    mu_line line;
    bool valid = mu_line_read(r, &line) && (!how->check || how->check(how->context, &line));
    if (!valid) note_damage(s, s->lines);
    else {
        note_valid(s, &line);
        if (line.step > how->step) s->beyond++;
        else s->end = r->end, s->ended = r->ended;
    }
    json_decref(line.json);
}

static mu_status read_lines(old_file *s, mu_error *e) {
    mu_lines r;
    mu_status status = mu_lines_open(&r, s->path, s->how->format, e);
    if (status != MU_STATUS_OK) return status;
    while (mu_lines_next(&r) && !mu_line_is_torn(&r, s->how->step)) {
        s->lines++;
        read_line(s, &r);
    }
    return mu_lines_close(&r, e);
}

static void drop(old_file *s, int64_t i) {
    s->list[i].dropped = true;
    note_damage(s, s->list[i].line);
}

/* Keeps the longest subsequence of the proven lines that is in order, so that one misplaced line costs no other. last[n]: the line
 * with the lowest place that ends a subsequence of length n + 1. */
static void drop_disorder(old_file *s) {
    int64_t *last = mu_alloc((size_t)s->n, sizeof *last), *before = mu_alloc((size_t)s->n, sizeof *before), longest = 0;
    for (int64_t i = 0; i < s->n; i++) {
        int64_t low = 0, high = longest, here = place(&s->list[i]);
        if (!s->list[i].proven) continue;
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (may_follow(s, here, place(&s->list[last[middle]]))) low = middle + 1;
            else high = middle;
        }
        if (low < longest && place(&s->list[last[low]]) == here) continue;      /* of two equal ones the first is kept */
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
    int64_t *after = mu_alloc((size_t)s->n, sizeof *after), before = 0;
    for (int64_t i = s->n - 1, next = INT64_MAX; i >= 0; i--) {
        if (s->list[i].proven && !s->list[i].dropped) next = place(&s->list[i]);
        after[i] = next;
    }
    for (int64_t i = 0; i < s->n; i++) {
        const valid_line *l = &s->list[i];
        if (!l->proven && (!may_follow(s, place(l), before) || !may_follow(s, after[i], place(l)))) drop(s, i);
        if (!l->dropped) before = place(l);
    }
    free(after);
}

static bool is_kept(const old_file *s, int64_t i) { return !s->list[i].dropped && s->list[i].step <= s->how->step; }

static void note_steps(const old_file *s, mu_logged_steps *logged) {
    *logged = (mu_logged_steps){ 0, mu_alloc((size_t)s->n, sizeof *logged->step) };
    for (int64_t i = 0; i < s->n; i++)
        if (is_kept(s, i) && s->list[i].kind == MU_LINE_TRAINING) logged->step[logged->n++] = s->list[i].step;
}

/* Writes the kept lines to a new file. */
static mu_status write_lines(const old_file *s, const char *path, mu_error *e) {
    mu_lines r = { 0 };
    FILE *out = fopen(path, "we");
    mu_status status = out ? MU_STATUS_OK : mu_error_set(e, MU_STATUS_IO, "%s cannot be written: %s", path, strerror(errno));
    if (status == MU_STATUS_OK && s->n) status = mu_lines_open(&r, s->path, s->how->format, e);
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
static bool has_derived(const old_file *s) {
    return s->how->derived && mu_file_exists(s->how->derived) && !mu_file_not_plain(s->how->derived);
}

/* Writes the new file, then moves the derived one aside: the new file is complete before anything is moved. */
static mu_status write_new(void *context, const char *path, mu_error *e) {
    old_file *s = context;
    mu_status status = write_lines(s, path, e);
    return status == MU_STATUS_OK && has_derived(s) ? mu_file_set_aside(s->how->derived, &s->derived_aside, e) : status;
}

/* Replaces the file by its kept lines; the old one and the derived one are moved aside. */
static mu_status replace(old_file *s, mu_error *e) {
    char *aside, detail[64];
    mu_status status = mu_file_rewrite(s->path, write_new, s, &aside, e);
    if (status != MU_STATUS_OK) return status;
    char *names = mu_format("%s%s%s", aside ? aside : "", aside && s->derived_aside ? " and " : "", s->derived_aside ? s->derived_aside : "");
    snprintf(detail, sizeof detail, ", the first is line %lld", (long long)s->first_damaged);
    mu_run_warn_rewritten(&(mu_rewritten){ .path = s->path, .names = names, .parts = "lines", .step = s->how->step, .damaged = s->damaged,
                                .all = s->lines, .detail = detail });
    free(names);
    free(aside);
    return MU_STATUS_OK;
}

/* Without a checkpoint all existing files are moved aside. Otherwise keeps the valid lines up to the resume step and cuts off newer
 * ones, whose steps are computed again, and a last line torn by a kill. */
static mu_status cut_back(old_file *s, mu_error *e) {
    struct stat st;
    const char *reason = mu_file_not_plain(s->path);
    if (reason) return mu_error_set(e, MU_STATUS_IO, "%s %s; move it out of the way", s->path, reason);
    int64_t size = stat(s->path, &st) ? 0 : st.st_size;
    if (s->how->step == 0) return size || has_derived(s) ? replace(s, e) : MU_STATUS_OK;
    mu_status status = size ? read_lines(s, e) : MU_STATUS_OK;
    if (status != MU_STATUS_OK) return status;
    if (!s->in_order) drop_disorder(s), drop_misfits(s);
    if (s->damaged || (s->beyond && s->how->rewinds)) return s->ended = true, replace(s, e);
    if (s->end < size && truncate(s->path, s->end))
        return mu_error_set(e, MU_STATUS_IO, "%s cannot be truncated: %s", s->path, strerror(errno));
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ appending */

static mu_status write_failed(const mu_lines_out *f, mu_error *e) {
    return mu_error_set(e, MU_STATUS_IO, "%s cannot be written: %s", f->path, strerror(errno));
}

mu_status mu_lines_continue(mu_lines_out *f, const mu_lines_resume *how, mu_logged_steps *logged, mu_error *e) {
    old_file s = { .how = how, .path = how->path, .in_order = true, .ended = true };
    *f = (mu_lines_out){ mu_strdup(how->path), NULL };
    mu_status status = cut_back(&s, e);
    if (logged) note_steps(&s, logged);
    free(s.derived_aside);
    free(s.list);
    if (status != MU_STATUS_OK) return status;
    f->file = fopen(f->path, "ae");
    bool good = f->file && (s.ended || (putc('\n', f->file) != EOF && fflush(f->file) == 0));
    return good ? MU_STATUS_OK : write_failed(f, e);
}

mu_status mu_lines_write(mu_lines_out *f, const mu_json *line, mu_error *e) {
    char checksum[MU_CHECKSUM_BYTES + 1];
    if (line->length + MU_CHECKSUM_BYTES > MU_LINE_BYTES) {
        mu_log(MU_LOG_WARNING, "%s: a line of %zu bytes is left out, since a line has at most %d bytes: %.80s ...", f->path,
               line->length + MU_CHECKSUM_BYTES, MU_LINE_BYTES, line->text);
        return MU_STATUS_OK;
    }
    mu_line_checksum(line->text, line->length, checksum);
    bool good = fprintf(f->file, "%s%s\n", line->text, checksum) > 0 && fflush(f->file) == 0;
    return good ? MU_STATUS_OK : write_failed(f, e);
}

mu_status mu_lines_sync(mu_lines_out *f, mu_error *e) { return fsync(fileno(f->file)) ? write_failed(f, e) : MU_STATUS_OK; }

void mu_lines_out_close(mu_lines_out *f) {
    if (f->file) fclose(f->file);
    free(f->path);
    *f = (mu_lines_out){ 0 };
}
