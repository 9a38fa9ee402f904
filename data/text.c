/* text.c - texts of a domain: a .txt is one document, every line of a .jsonl is one; a folder holds both, sub-folders
 * included, in the order of their paths. Links to files are followed, links to folders are not (they could form cycles).
 * Files that are not read, hidden names and run folders included, are counted and named in the log. */
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
        return mu_error_set(e, status, "domain \"%s\" has more than %lld GiB of text, reached at %s", m->domain->name,
                            (long long)(MU_DOMAIN_BYTES_MAX >> 30), path);
    if (status) mu_error_set(e, status, "domain \"%s\": %s", m->domain->name, why.text);
    return status;
}

/* Bytes of the byte order mark with which some editors begin a UTF-8 file. */
static size_t byte_order_mark(const char *text, size_t bytes) {
    return bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3) ? 3 : 0;
}

/* Removes a byte order mark, also behind empty lines, which stay. Returns the text without it. */
static char *without_mark(char *text, size_t *bytes) {
    size_t blank = 0;
    while (blank < *bytes && memchr(" \t\r\n", text[blank], 4)) blank++;
    size_t mark = byte_order_mark(text + blank, *bytes - blank);
    memmove(text + mark, text, blank);
    *bytes -= mark;
    return text + mark;
}

/* Any encoding is allowed, but a NUL byte means that this is not a text. */
static mu_status read_txt(mu_domain_maker *m, const char *path, mu_error *e) {
    char *text;
    size_t bytes;
    mu_status status = read_bytes(m, path, &text, &bytes, e);
    if (status) return status;
    const char *nul = memchr(text, '\0', bytes);
    if (nul) status = mu_error_set(e, MU_STATUS_DATA, "%s: not a text: NUL at byte %td", path, nul - text);
    else {
        const char *plain = without_mark(text, &bytes);
        mu_domain_add(m, plain, (int64_t)bytes);
    }
    free(text);
    return status;
}

/* Bytes of the JSON number at `s`; 0 if it is not valid. */
static size_t number_length(const char *s, const char *end) {
    const char *p = s + (*s == '-');
    if (p == end || *p < '0' || *p > '9') return 0;
    if (*p++ != '0')
        while (p < end && *p >= '0' && *p <= '9') p++;
    for (int part = 0; part < 2; part++) {          /* a fraction, an exponent */
        if (p == end || (part ? *p != 'e' && *p != 'E' : *p != '.')) continue;
        p++;
        if (part && p < end && (*p == '+' || *p == '-')) p++;
        if (p == end || *p < '0' || *p > '9') return 0;
        while (p < end && *p >= '0' && *p <= '9') p++;
    }
    return (size_t)(p - s);
}

/* Replaces each valid number by 0: JSON allows numbers of any size, jansson does not, and their values are not used. */
static void blank_numbers(char *text, size_t bytes) {
    char *end = text + bytes;
    bool inside = false;            /* of a string */
    for (char *p = text; p < end; p++) {
        if (*p == '"') inside = !inside;
        else if (inside) p += *p == '\\';
        else if (*p == '-' || (*p >= '0' && *p <= '9')) {
            size_t n = 1;
            while (p + n < end && memchr("+-.eE0123456789", p[n], 15)) n++;
            if (number_length(p, end) == n) memset(p, ' ', n), *p = '0';
            p += n - 1;
        }
    }
}

static json_t *parse(const char *text, size_t bytes, json_error_t *why) {
    char *blanked = mu_alloc(bytes, 1);
    memcpy(blanked, text, bytes);
    blank_numbers(blanked, bytes);
    json_t *object = json_loadb(blanked, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, why);
    free(blanked);
    return object;
}

/* jansson quotes the token that ends at its position; for a blanked number, quotes the number of the text instead of 0. */
static mu_status bad_json(const char *path, int64_t line, const char *text, size_t bytes, const json_error_t *why,
                          mu_error *e) {
    enum { SHOWN = 40 };
    static const char zero[] = " near '0'";
    size_t length = strlen(why->text), at = (size_t)why->position - 1, n = 0;
    bool quotes = why->position > 0 && length >= sizeof zero && !strcmp(why->text + length - (sizeof zero - 1), zero);
    while (quotes && at + n < bytes && memchr("+-.eE0123456789", text[at + n], 15)) n++;
    if (!n) return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: bad JSON at byte %d: %s", path, (long long)line, why->position, why->text);
    return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: bad JSON at byte %d: %.*s near '%.*s%s'", path, (long long)line, why->position,
                        (int)(length - (sizeof zero - 1)), why->text, (int)(n < SHOWN ? n : SHOWN), text + at, n > SHOWN ? "..." : "");
}

static mu_status add_json_line(mu_domain_maker *m, const char *path, int64_t line, const char *text, size_t bytes,
                               mu_error *e) {
    json_error_t why;
    if (byte_order_mark(text, bytes))
        return mu_error_set(e, MU_STATUS_DATA, "%s:%lld: a byte-order mark (U+FEFF) in the middle of the file", path,
                            (long long)line);
    json_t *object = parse(text, bytes, &why);
    if (!object) return bad_json(path, line, text, bytes, &why, e);
    json_t *value = json_object_get(object, "text");
    mu_status status = MU_STATUS_OK;
    if (!json_is_object(object))
        status = mu_error_set(e, MU_STATUS_DATA, "%s:%lld: not a JSON object", path, (long long)line);
    else if (!json_is_string(value))
        status = mu_error_set(e, MU_STATUS_DATA, "%s:%lld: no string named \"text\"", path, (long long)line);
    else if (memchr(json_string_value(value), '\0', json_string_length(value)))
        status = mu_error_set(e, MU_STATUS_DATA, "%s:%lld: not a text: \"text\" has a NUL character", path,
                              (long long)line);
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
    bool begun = false;
    int64_t line = 1;
    for (size_t at = 0; !status && at < bytes; line++) {
        char *start = text + at, *end = memchr(start, '\n', bytes - at);
        size_t length = end ? (size_t)(end - start) : bytes - at, mark = begun ? 0 : byte_order_mark(start, length);
        at += length + 1;
        begun = begun || !is_blank(start, length);
        if (!is_blank(start + mark, length - mark)) status = add_json_line(m, path, line, start + mark, length - mark, e);
    }
    free(text);
    return status;
}

static bool is_text_name(const char *name) {
    return mu_file_ends(name, ".txt") || mu_file_ends(name, ".jsonl");
}

static mu_status read_file(mu_domain_maker *m, const char *path, mu_error *e) {
    return mu_file_ends(path, ".jsonl") ? read_jsonl(m, path, e) : read_txt(m, path, e);
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

static void sort_paths(paths *p) {
    if (p->n) qsort(p->list, p->n, sizeof *p->list, compare_paths);
}

static void free_paths(paths *p) {
    for (size_t i = 0; i < p->n; i++) free(p->list[i]);
    free(p->list);
}

/* Contents of a folder: texts, and everything else by the reason why it is not read. */
enum { TEXT, OTHER_ENDING, HIDDEN, EMPTY, FOLDER_LINK, RUN_FOLDER, NOT_PLAIN, N_KINDS };
static const char *const kinds[N_KINDS][2] = { /* one, several */
    [OTHER_ENDING] = { "not named .txt or .jsonl", "not named .txt or .jsonl" }, [HIDDEN] = { "hidden", "hidden" },
    [EMPTY] = { "empty", "empty" }, [FOLDER_LINK] = { "link to a folder", "links to folders" },
    [RUN_FOLDER] = { "folder of a run", "folders of runs" }, [NOT_PLAIN] = { "not a plain file", "not plain files" },
};
typedef paths contents[N_KINDS];

/* Logs one line with the number of files that are not read, and the names of the first few of each kind. */
static void log_unread(const char *domain, const char *folder, contents c) {
    enum { NAMED = 3 };
    char *line = NULL;
    size_t size, skip = strlen(folder) + 1;
    FILE *f = open_memstream(&line, &size);
    MU_CHECK(f, "out of memory");
    for (int kind = TEXT + 1; kind < N_KINDS; kind++) {
        sort_paths(&c[kind]);
        for (size_t i = 0; i < c[kind].n && i <= NAMED; i++) {
            if (i == 0) fprintf(f, "%s%zu %s (", ftell(f) ? ", " : "", c[kind].n, kinds[kind][c[kind].n > 1]);
            fprintf(f, "%s%s", i ? ", " : "", i < NAMED ? c[kind].list[i] + skip : "...");
        }
        if (c[kind].n) fputc(')', f);
    }
    fclose(f);
    if (size) mu_log(MU_LOG_INFO, "note: domain \"%s\": not read in %s: %s", domain, folder, line);
    free(line);
}

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

static mu_status collect(contents c, const char *folder, mu_error *e);

static mu_status collect_entry(contents c, const char *path, const char *name, mu_error *e) {
    struct stat st;
    int kind = TEXT;
    if (name[0] == '.') kind = HIDDEN;
    else if (lstat(path, &st)) return cannot_read(e, path);
    else if (S_ISDIR(st.st_mode) && is_run_folder(path)) kind = RUN_FOLDER;
    else if (S_ISDIR(st.st_mode)) return collect(c, path, e);
    else if (S_ISLNK(st.st_mode) && stat(path, &st)) {
        if (is_text_name(path)) return cannot_read(e, path);
        kind = OTHER_ENDING;
    } else if (S_ISDIR(st.st_mode)) kind = FOLDER_LINK;
    else if (!is_text_name(path)) kind = OTHER_ENDING;
    else if (!S_ISREG(st.st_mode)) kind = NOT_PLAIN;
    add_path(&c[kind], mu_strdup(path));
    return MU_STATUS_OK;
}

static mu_status collect(contents c, const char *folder, mu_error *e) {
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

static mu_status read_folder(mu_domain_maker *m, const char *folder, mu_error *e) {
    contents c = { 0 };
    if (is_run_folder(folder))
        return mu_error_set(e, MU_STATUS_DATA, "domain \"%s\": %s is the folder of a run, not of texts", m->domain->name,
                            folder);
    mu_status status = collect(c, folder, e);
    sort_paths(&c[TEXT]);
    for (size_t i = 0; !status && i < c[TEXT].n; i++) {
        int64_t before = m->domain->n_documents;
        status = read_file(m, c[TEXT].list[i], e);
        if (m->domain->n_documents == before) add_path(&c[EMPTY], mu_strdup(c[TEXT].list[i]));
    }
    if (!status) log_unread(m->domain->name, folder, c);
    if (!status && m->domain->n_tokens == 0)
        status = mu_error_set(e, MU_STATUS_DATA, "domain \"%s\": no text in %s (%zu files .txt or .jsonl)",
                              m->domain->name, folder, c[TEXT].n);
    for (int kind = 0; kind < N_KINDS; kind++) free_paths(&c[kind]);
    return status;
}

/* ------------------------------------------------------------------ a file or a folder */

static mu_status look_at(const char *domain, const char *path, struct stat *st, mu_error *e) {
    if (stat(path, st))
        return mu_error_set(e, MU_STATUS_NOINPUT, "domain \"%s\": %s: %s", domain, path, strerror(errno));
    if (S_ISDIR(st->st_mode) || is_text_name(path)) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_DATA, "domain \"%s\": %s: neither a folder nor named .txt, .jsonl or .h5", domain,
                        path);
}

mu_status mu_text_read(mu_domain_maker *m, const char *path, mu_error *e) {
    struct stat st;
    mu_status status = look_at(m->domain->name, path, &st, e);
    if (status) return status;
    return S_ISDIR(st.st_mode) ? read_folder(m, path, e) : read_file(m, path, e);
}

mu_status mu_text_measure(mu_domain_size *size, const char *domain, const char *path, mu_error *e) {
    struct stat st;
    contents c = { 0 };
    mu_status status = look_at(domain, path, &st, e);
    if (!status && S_ISDIR(st.st_mode)) status = collect(c, path, e);
    else if (!status) add_path(&c[TEXT], mu_strdup(path));
    for (size_t i = 0; !status && i < c[TEXT].n; i++) {
        if (stat(c[TEXT].list[i], &st)) status = cannot_read(e, c[TEXT].list[i]);
        else size->tokens += st.st_size, size->documents++;
    }
    for (int kind = 0; kind < N_KINDS; kind++) free_paths(&c[kind]);
    return status;
}
