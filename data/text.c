/* text.c - texts of a domain: a .txt is one document, every line of a .jsonl is one, a folder is all of
 * both in it and in its sub-folders, in the order of their paths. Names with a leading dot are passed
 * over; links to files are followed, links to folders are not (they could lead in circles). */
#include "data/internal.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ------------------------------------------------------------------ one file */

static mu_status read_bytes(mu_domain_maker *m, const char *path, char **text, size_t *bytes, mu_error *e) {
    mu_error why;
    mu_status status =
        mu_file_read(path, (size_t)(MU_DOMAIN_BYTES_MAX - m->domain->text_bytes), text, bytes, &why);
    if (status == MU_STATUS_DATA)
        return mu_error_set(e, status, "domain \"%s\" has more than %lld GiB of text, at %s", m->domain->name,
                            (long long)(MU_DOMAIN_BYTES_MAX >> 30), path);
    if (status) mu_error_set(e, status, "domain \"%s\": %s", m->domain->name, why.text);
    return status;
}

/* Any encoding is welcome, but a NUL byte means that this is no text. */
static mu_status read_txt(mu_domain_maker *m, const char *path, mu_error *e) {
    char *text;
    size_t bytes;
    mu_status status = read_bytes(m, path, &text, &bytes, e);
    if (status) return status;
    const char *nul = memchr(text, '\0', bytes);
    if (nul) status = mu_error_set(e, MU_STATUS_DATA, "%s: not a text: NUL at byte %td", path, nul - text);
    else mu_domain_add(m, text, (int64_t)bytes);
    free(text);
    return status;
}

static mu_status add_json_line(mu_domain_maker *m, const char *path, int64_t line, const char *text,
                               size_t bytes, mu_error *e) {
    if (line == 1 && bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) text += 3, bytes -= 3;    /* Windows' mark */
    json_error_t why;
    json_t *object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why);
    if (!object)
        return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: bad JSON at byte %d: %s", path, (long long)line,
                            why.position, why.text);
    json_t *value = json_object_get(object, "text");
    mu_status status = MU_STATUS_OK;
    if (!json_is_object(object))
        status = mu_error_set(e, MU_STATUS_DATA, "%s:%lld: not a JSON object", path, (long long)line);
    else if (!json_is_string(value))
        status = mu_error_set(e, MU_STATUS_DATA, "%s:%lld: no string named \"text\"", path, (long long)line);
    else
        mu_domain_add(m, json_string_value(value), (int64_t)json_string_length(value));
    json_decref(object);
    return status;
}

static bool is_blank(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (!memchr(" \t\r", text[i], 3)) return false;
    return true;
}

static mu_status read_jsonl(mu_domain_maker *m, const char *path, mu_error *e) {
    char *text;
    size_t bytes;
    mu_status status = read_bytes(m, path, &text, &bytes, e);
    int64_t line = 1;
    for (size_t at = 0; !status && at < bytes; line++) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t length = end ? (size_t)(end - (text + at)) : bytes - at;
        if (!is_blank(text + at, length)) status = add_json_line(m, path, line, text + at, length, e);
        at += length + 1;
    }
    free(text);
    return status;
}

static bool is_text_name(const char *name) {
    return mu_has_ending(name, ".txt") || mu_has_ending(name, ".jsonl");
}

static mu_status read_file(mu_domain_maker *m, const char *path, mu_error *e) {
    return mu_has_ending(path, ".jsonl") ? read_jsonl(m, path, e) : read_txt(m, path, e);
}

/* ------------------------------------------------------------------ a folder */

typedef struct { char **list; size_t n, room; } paths;

static void add_path(paths *p, char *path) {
    if (p->n == p->room) p->list = mu_realloc(p->list, p->room = 2 * p->room + 16, sizeof *p->list);
    p->list[p->n++] = path;
}

static int compare_paths(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static mu_status cannot_read(mu_error *e, const char *path) {
    return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", path, strerror(errno));
}

static mu_status collect(paths *p, const char *folder, mu_error *e);

/* Takes the heap string `path`. */
static mu_status collect_entry(paths *p, char *path, mu_error *e) {
    struct stat st;
    mu_status status = MU_STATUS_OK;
    bool wanted = false;
    if (lstat(path, &st)) status = cannot_read(e, path);
    else if (S_ISDIR(st.st_mode)) status = collect(p, path, e);
    else if (is_text_name(path) && stat(path, &st)) status = cannot_read(e, path);
    else wanted = is_text_name(path) && S_ISREG(st.st_mode);
    if (wanted) add_path(p, path);
    else free(path);
    return status;
}

static mu_status collect(paths *p, const char *folder, mu_error *e) {
    DIR *dir = opendir(folder);
    if (!dir) return cannot_read(e, folder);
    mu_status status = MU_STATUS_OK;
    errno = 0;
    for (struct dirent *d; !status && (d = readdir(dir)); errno = 0)
        if (d->d_name[0] != '.') status = collect_entry(p, mu_format("%s/%s", folder, d->d_name), e);
    if (!status && errno) status = cannot_read(e, folder);
    closedir(dir);
    return status;
}

static mu_status read_folder(mu_domain_maker *m, const char *folder, mu_error *e) {
    paths p = { 0 };
    mu_status status = collect(&p, folder, e);
    if (p.n) qsort(p.list, p.n, sizeof *p.list, compare_paths);
    for (size_t i = 0; !status && i < p.n; i++) {
        mu_activity_set("reading texts", -1, NULL);
        status = read_file(m, p.list[i], e);
    }
    for (size_t i = 0; i < p.n; i++) free(p.list[i]);
    free(p.list);
    if (!status && m->domain->n_tokens == 0)
        status = mu_error_set(e, MU_STATUS_DATA, "domain \"%s\": no text in %s (%zu files .txt or .jsonl)",
                              m->domain->name, folder, p.n);
    return status;
}

mu_status mu_text_read(mu_domain_maker *m, const char *path, mu_error *e) {
    struct stat st;
    if (stat(path, &st))
        return mu_error_set(e, MU_STATUS_NOINPUT, "domain \"%s\": %s: %s", m->domain->name, path,
                            strerror(errno));
    if (S_ISDIR(st.st_mode)) return read_folder(m, path, e);
    if (is_text_name(path)) return read_file(m, path, e);
    return mu_error_set(e, MU_STATUS_DATA,
                        "domain \"%s\": %s: neither a folder nor named .txt, .jsonl or .h5", m->domain->name,
                        path);
}
