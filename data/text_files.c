/* text_files.c - which files of a path are texts, in the order of their paths. Sub-folders are read, and links to files and
 * folders are followed; but a folder is read once, however many links lead to it: a link to a folder around it would never end.
 * Files that are not read, hidden folders and texts and run folders included, are counted and named in the log; other hidden files, which
 * are a tool's own, are not. */
#include "data/internal.h"

#include <dirent.h>
#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Contents of a folder: texts, links to folders, and everything else by the reason why it is not read. */
enum { TEXT, FOLDER_LINK, OTHER_ENDING, HIDDEN, EMPTY, LOOP, READ_ALREADY, RUN_FOLDER, NOT_PLAIN, N_KINDS };
static const char *const kinds[N_KINDS][2] = { /* one, several */
    [OTHER_ENDING] = { "not named " MU_TEXT_NAMES, "not named " MU_TEXT_NAMES }, [HIDDEN] = { "hidden", "hidden" },
    [EMPTY] = { "empty", "empty" }, [LOOP] = { "link to a folder around it", "links to folders around them" },
    [READ_ALREADY] = { "link to a folder that is read already", "links to folders that are read already" },
    [RUN_FOLDER] = { "folder of a run", "folders of runs" }, [NOT_PLAIN] = { "not a plain file", "not plain files" },
};

typedef struct { char **list; size_t n, room; } paths;
typedef struct { dev_t device; ino_t number; } identity;

struct mu_text_contents {
    char *folder;
    paths of[N_KINDS];
    void *read;                     /* folders that are read: a tree of identities (tsearch) */
};
typedef struct mu_text_contents contents;

static void add_path(contents *c, int kind, const char *path) {
    paths *p = &c->of[kind];
    if (p->n == p->room) p->list = mu_realloc(p->list, p->room = 2 * p->room + 16, sizeof *p->list);
    p->list[p->n++] = mu_strdup(path);
}

static int compare_paths(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void sort_paths(paths *p) {
    if (p->n) qsort(p->list, p->n, sizeof *p->list, compare_paths);
}

static void free_paths(paths *p) {
    for (size_t i = 0; i < p->n; i++) free(p->list[i]);
    free(p->list);
    *p = (paths){ 0 };
}

/* ------------------------------------------------------------------ a folder */

static mu_status cannot_read(mu_error *e, const char *path) {
    return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", path, strerror(errno));
}

static bool holds(const char *folder, const char *name) {
    char *path = mu_format("%s/%s", folder, name);
    bool there = mu_file_exists(path);
    free(path);
    return there;
}

static bool is_run_folder(const char *path) { return holds(path, "config.resolved.yaml") && holds(path, "run.json"); }

static int compare_folders(const void *a, const void *b) {
    const identity *x = a, *y = b;
    if (x->device != y->device) return x->device < y->device ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* Whether the folder is read already; from now on it is. */
static bool read_already(contents *c, const struct stat *st) {
    identity *new = mu_alloc(1, sizeof *new);
    *new = (identity){ st->st_dev, st->st_ino };
    identity **found = tsearch(new, &c->read, compare_folders);
    MU_CHECK(found, "out of memory");
    bool before = *found != new;
    if (before) free(new);
    return before;
}

static mu_status collect(contents *c, const char *folder, const struct stat *st, mu_error *e);

/* Links to folders are kept for later: so a folder is read under its own name, where it has one. */
static mu_status collect_entry(contents *c, const char *path, const char *name, mu_error *e) {
    struct stat st;
    int kind = TEXT;
    if (lstat(path, &st)) return cannot_read(e, path);
    if (name[0] == '.' && !S_ISDIR(st.st_mode) && !mu_text_named(path)) return MU_STATUS_OK;
    if (name[0] == '.') kind = HIDDEN;
    else if (S_ISDIR(st.st_mode)) return collect(c, path, &st, e);
    else if (S_ISLNK(st.st_mode) && stat(path, &st)) {
        if (mu_text_named(path)) return cannot_read(e, path);
        kind = OTHER_ENDING;
    } else if (S_ISDIR(st.st_mode)) kind = FOLDER_LINK;
    else if (!mu_text_named(path)) kind = OTHER_ENDING;
    else if (!S_ISREG(st.st_mode)) kind = NOT_PLAIN;
    add_path(c, kind, path);
    return MU_STATUS_OK;
}

static mu_status collect(contents *c, const char *folder, const struct stat *st, mu_error *e) {
    if (is_run_folder(folder)) return add_path(c, RUN_FOLDER, folder), MU_STATUS_OK;
    if (read_already(c, st)) return add_path(c, READ_ALREADY, folder), MU_STATUS_OK;
    DIR *dir = opendir(folder);
    if (!dir) return cannot_read(e, folder);
    mu_status status = MU_STATUS_OK;
    errno = 0;
    for (struct dirent *d; !status && (d = readdir(dir)); errno = 0) {
        if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, "..")) continue;
        char *path = mu_format("%s/%s", folder, d->d_name);
        status = collect_entry(c, path, d->d_name, e);
        free(path);
    }
    if (!status && errno) status = cannot_read(e, folder);
    closedir(dir);
    return status;
}

/* A link to the folder that it is in, or to one around that. */
static bool is_loop(const char *link) {
    char *parent = mu_format("%.*s", (int)(strrchr(link, '/') - link), link);
    bool loop = mu_file_is_inside(parent, link);
    free(parent);
    return loop;
}

/* Links of one round may lead to folders with more links. In the order of their paths, whatever the file system's is. */
static mu_status follow_links(contents *c, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    while (!status && c->of[FOLDER_LINK].n) {
        paths round = c->of[FOLDER_LINK];
        c->of[FOLDER_LINK] = (paths){ 0 };
        sort_paths(&round);
        for (size_t i = 0; !status && i < round.n; i++) {
            struct stat st;
            if (is_loop(round.list[i])) add_path(c, LOOP, round.list[i]);
            else if (stat(round.list[i], &st)) status = cannot_read(e, round.list[i]);
            else status = collect(c, round.list[i], &st, e);
        }
        free_paths(&round);
    }
    return status;
}

/* ------------------------------------------------------------------ a file or a folder */

mu_status mu_text_files_find(mu_text_files *f, const char *path, mu_error *e) {
    struct stat st;
    contents *c = mu_alloc(1, sizeof *c);
    *f = (mu_text_files){ .contents = c };
    c->folder = mu_strdup(path);
    mu_status status = stat(path, &st) ? cannot_read(e, path) : MU_STATUS_OK;
    if (status) return status;
    if (!S_ISDIR(st.st_mode) && !mu_text_named(path))
        return mu_error_set(e, MU_STATUS_DATA, "%s: neither a folder nor named " MU_TEXT_NAMES " (each also .gz or .zst), nor a token file", path);
    if (!S_ISDIR(st.st_mode)) add_path(c, TEXT, path);
    else if (is_run_folder(path)) return mu_error_set(e, MU_STATUS_DATA, "%s is the folder of a run, not of texts", path);
    else status = collect(c, path, &st, e);
    if (!status) status = follow_links(c, e);
    sort_paths(&c->of[TEXT]);
    f->n = c->of[TEXT].n, f->list = c->of[TEXT].list;
    return status;
}

void mu_text_files_empty(mu_text_files *f, size_t i) { add_path(f->contents, EMPTY, f->list[i]); }

void mu_text_files_log(mu_text_files *f) {
    enum { NAMED = 3 };
    contents *c = f->contents;
    char *line = NULL;
    size_t size, skip = strlen(c->folder) + 1;
    if (!c->read) return;           /* not a folder */
    FILE *out = open_memstream(&line, &size);
    MU_CHECK(out, "out of memory");
    for (int kind = FOLDER_LINK + 1; kind < N_KINDS; kind++) {
        const paths *p = &c->of[kind];
        sort_paths(&c->of[kind]);
        for (size_t i = 0; i < p->n && i <= NAMED; i++) {
            if (i == 0) fprintf(out, "%s%zu %s (", ftell(out) ? ", " : "", p->n, kinds[kind][p->n > 1]);
            fprintf(out, "%s%s", i ? ", " : "", i < NAMED ? p->list[i] + skip : "...");
        }
        if (p->n) fputc(')', out);
    }
    fclose(out);
    if (size) mu_log(MU_LOG_INFO, "note: not read in %s: %s", c->folder, line);
    free(line);
}

void mu_text_files_free(mu_text_files *f) {
    contents *c = f->contents;
    for (int kind = 0; kind < N_KINDS; kind++) free_paths(&c->of[kind]);
    tdestroy(c->read, free);
    free(c->folder);
    free(c);
    *f = (mu_text_files){ 0 };
}
