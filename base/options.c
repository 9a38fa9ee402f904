/* options.c - a table of options: defaults, a YAML file, overrides from the command line, and errors
 * with position, cause and correction. All errors of a file are reported at once. */
#include "base/base.h"
#include "base/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 1 << 20, NAMES_MAX = 256, LIST_BYTES = 256 };

/* ------------------------------------------------------------------ lookup */

/* First option of a section, or -1. The options of a section follow each other. */
static int find_section(const mu_options *o, const char *section) {
    for (int i = 0; i < o->n; i++)
        if (!strcmp(o->table[i].section, section)) return i;
    return -1;
}

static int find(const mu_options *o, const char *section, const char *key) {
    for (int i = 0; i < o->n; i++)
        if (!strcmp(o->table[i].section, section) && !strcmp(o->table[i].key, key)) return i;
    return -1;
}

static int find_or_die(const mu_options *o, const char *section, const char *key) {
    int i = find(o, section, key);
    MU_CHECK(i >= 0, "no option %s.%s", section, key);
    return i;
}

bool mu_options_given(const mu_options *o, const char *section, const char *key) {
    return o->given[find_or_die(o, section, key)];
}

bool mu_options_refused(const mu_options *o, const char *section, const char *key) {
    return o->refused[find_or_die(o, section, key)];
}

/* Marks every option of a section (NULL: of all) that is not set: the unreadable text may have meant any of them. */
static void refuse_rest(mu_options *o, const char *section) {
    for (int i = 0; i < o->n; i++)
        if (!o->given[i] && (!section || !strcmp(o->table[i].section, section))) o->refused[i] = true;
}

typedef struct { const char *name[NAMES_MAX]; int n; } names;

static void add_name(names *list, const char *name) {
    for (int i = 0; i < list->n; i++)
        if (!strcmp(list->name[i], name)) return;
    if (list->n < NAMES_MAX) list->name[list->n++] = name;
}

static const char *nearest(const names *list, const char *word) {
    return mu_suggest(word, list->name, list->n);
}

static void join(const names *list, char text[LIST_BYTES]) {
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < list->n; i++) {
        bool fits = used + strlen(list->name[i]) + sizeof ", , ..." <= LIST_BYTES;
        used += (size_t)snprintf(text + used, LIST_BYTES - used, "%s%s", i ? ", " : "",
                                 fits ? list->name[i] : "...");
        if (!fits) return;
    }
}

static void all_sections(const mu_options *o, names *list) {
    list->n = 0;
    for (int i = 0; i < o->n; i++) add_name(list, o->table[i].section);
}

/* The keys of one section, or of all (NULL). */
static void all_keys(const mu_options *o, const char *section, names *list) {
    list->n = 0;
    for (int i = 0; i < o->n; i++)
        if (o->table[i].use != MU_USE_RETIRED && (!section || !strcmp(o->table[i].section, section))) add_name(list, o->table[i].key);
}

/* The sections that have this key. */
static void sections_with(const mu_options *o, const char *key, names *list) {
    list->n = 0;
    for (int i = 0; i < o->n; i++)
        if (!strcmp(o->table[i].key, key)) add_name(list, o->table[i].section);
}

/* Marks this key: the user may have meant it, so its default is not the user's choice. */
static void may_be(mu_options *o, const names *sections, const char *key) {
    for (int i = 0; i < sections->n; i++) {
        int option = find(o, sections->name[i], key);
        if (!o->given[option]) o->refused[option] = true;
    }
}

/* ------------------------------------------------------------------ unknown names */

typedef struct {
    mu_options *o;
    void *config;
    mu_report report;
    int *line_of_key, *line_of_section;         /* first appearance in this file, n numbers each */
} reader;

static void unknown_key(reader *d, const char *section, const char *key, int line, int column) {
    names list;
    mu_quoted shown;
    char joined[LIST_BYTES];
    const char *quoted = mu_quote(&shown, key), *near;
    sections_with(d->o, key, &list);
    if (list.n) {
        join(&list, joined);
        mu_report_add(&d->report, line, column, "unknown key '%s' in section %s; '%s' belongs to section %s",
                      quoted,
                      section, quoted, joined);
        may_be(d->o, &list, key);
        return;
    }
    all_keys(d->o, section, &list);
    if ((near = nearest(&list, key)) != NULL) {
        mu_report_add(&d->report, line, column, "unknown key '%s' in section %s; did you mean '%s'?", quoted,
                      section, near);
        may_be(d->o, &(names){ .name = { section }, .n = 1 }, near);
        return;
    }
    join(&list, joined);
    all_keys(d->o, NULL, &list);
    if ((near = nearest(&list, key)) != NULL) {
        sections_with(d->o, near, &list);
        mu_report_add(&d->report, line, column, "unknown key '%s' in section %s; did you mean '%s' of section %s?", quoted,
                      section, near, list.name[0]);
        return;
    }
    mu_report_add(&d->report, line, column, "unknown key '%s' in section %s; its keys are %s", quoted,
                  section, joined);
}

/* Reports "section.key: value", the syntax of the command line, in a file; false if the name is none. */
static bool dotted_name(reader *d, const char *name, int line, int column) {
    mu_quoted shown;
    const char *dot = strchr(name, '.');
    char *section = dot ? mu_format("%.*s", (int)(dot - name), name) : NULL;
    bool known = section && find(d->o, section, dot + 1) >= 0;
    if (known)
        mu_report_add(&d->report, line, column, "'%s' is not a section; in a file write '%s:' and below it, indented,"
                      " '%s: ...'", mu_quote(&shown, name), section, dot + 1);
    free(section);
    return known;
}

/* An unindented name that is not a section: often a key that lost its indentation. */
static void unknown_section(reader *d, const char *name, bool has_keys, int line, int column) {
    names sections, list;
    mu_quoted shown;
    char joined[LIST_BYTES];
    const char *quoted = mu_quote(&shown, name);
    all_sections(d->o, &sections);
    const char *near = nearest(&sections, name);
    sections_with(d->o, name, &list);
    join(&list, joined);
    if (list.n && !(has_keys && near)) {
        mu_report_add(&d->report, line, column, "'%s' is not a section; it belongs to section %s: write it below"
                      " '%s:', indented", quoted, joined, list.name[0]);
        may_be(d->o, &list, name);
        return;
    }
    if (!has_keys && dotted_name(d, name, line, column)) return;
    if (near) {
        mu_report_add(&d->report, line, column, "unknown section '%s'; did you mean '%s'?", quoted, near);
        refuse_rest(d->o, near);
        return;
    }
    all_keys(d->o, NULL, &list);
    near = has_keys ? NULL : nearest(&list, name);
    if (near) {
        sections_with(d->o, near, &list);
        may_be(d->o, &list, near);
        mu_report_add(&d->report, line, column, "unknown section '%s'; did you mean '%s' of section %s?",
                      quoted, near,
                      list.name[0]);
        return;
    }
    join(&sections, joined);
    mu_report_add(&d->report, line, column, "unknown section '%s'; the sections are %s", quoted, joined);
}

/* ------------------------------------------------------------------ reading a file */

static void set(reader *d, int i, const mu_yaml *value) {
    mu_options *o = d->o;
    o->refused[i] = !mu_option_set(&o->table[i], d->config, value, &d->report);
    if (o->refused[i]) return;
    o->given[i] = true;
    o->line[i] = value->line;
    o->column[i] = value->column;
}

/* Reports unsupported YAML features of a node and (deep) of all nodes below it. */
static bool marked(reader *d, const mu_yaml *node, bool deep) {
    bool found = node->key && marked(d, node->key, true);
    if (node->refused) {
        mu_report_add(&d->report, node->line, node->column, "%s", node->refused);
        found = true;
    }
    for (const mu_yaml *child = node->child; child && deep; child = child->next)
        found = marked(d, child, true) || found;
    return found;
}

static void read_key(reader *d, const char *section, const mu_yaml *entry) {
    const mu_yaml *key = entry->key;
    int i = find(d->o, section, key->text);
    if (i < 0) {
        unknown_key(d, section, key->text, key->line, key->column);
    } else if (d->line_of_key[i]) {
        mu_report_add(&d->report, key->line, key->column, "%s.%s appears twice, first in line %d", section,
                      key->text,
                      d->line_of_key[i]);
        d->o->refused[i] = true;
    } else if (marked(d, entry, true)) {
        d->line_of_key[i] = key->line;
        d->o->refused[i] = true;
    } else {
        d->line_of_key[i] = key->line;
        set(d, i, entry);
    }
}

static void read_section(reader *d, const mu_yaml *entry) {
    const mu_yaml *key = entry->key;
    int first = find_section(d->o, key->text);
    if (first < 0) {
        unknown_section(d, key->text, entry->kind == MU_YAML_MAP, key->line, key->column);
        return;
    }
    if (d->line_of_section[first])
        mu_report_add(&d->report, key->line, key->column, "section %s appears twice, first in line %d",
                      key->text,
                      d->line_of_section[first]);
    else
        d->line_of_section[first] = key->line;
    if (entry->kind != MU_YAML_MAP) {
        bool empty = entry->kind == MU_YAML_SCALAR && entry->plain && !entry->text[0];
        mu_report_add(&d->report, entry->line, entry->column,
                      "section %s %s; below '%s:' write its options, indented,"
                      " as in 'key: value'", key->text, empty ? "is empty" : "must be a map", key->text);
        refuse_rest(d->o, key->text);
        return;
    }
    for (const mu_yaml *option = entry->child; option && !mu_report_full(&d->report); option = option->next)
        if (!option->key->refused) read_key(d, key->text, option);
        else marked(d, option, true);
}

static void read_sections(reader *d, const mu_yaml *root) {
    bool empty = !root || (root->kind == MU_YAML_SCALAR && root->plain && !root->text[0]);
    if (empty) return;
    if (root->kind != MU_YAML_MAP) {
        mu_report_add(&d->report, root->line, root->column, "a configuration is a map of sections, as in 'model:' with"
                      " 'num_layers: 4' indented below it");
        refuse_rest(d->o, NULL);
        return;
    }
    marked(d, root, false);
    for (const mu_yaml *entry = root->child; entry && !mu_report_full(&d->report); entry = entry->next)
        if (!marked(d, entry, false)) read_section(d, entry);
        else if (!entry->key->refused) refuse_rest(d->o, entry->key->text);
}

static void name_file(mu_options *o, const char *name) {
    char *copy = mu_strdup(name);       /* first: `name` may be the old one */
    free(o->file);
    o->file = copy;
}

static mu_status too_large(mu_options *o, mu_error *e) {
    mu_report report = { .name = o->file, .e = e };
    mu_report_add(&report, 0, 0, "more than 1 MiB: this is not a configuration");
    refuse_rest(o, NULL);
    return report.status;
}

mu_status mu_options_read_text(mu_options *o, void *config, const char *name, const char *text, size_t bytes,
                               mu_error *e) {
    enum { DEPTH = 5 };         /* sections, options, a list, its maps, a map in them */
    name_file(o, name);
    if (bytes > FILE_BYTES_MAX) return too_large(o, e);
    reader d = { .o = o, .config = config, .report = { .name = o->file, .e = e },
                 .line_of_key = mu_alloc((size_t)o->n, sizeof(int)),
                 .line_of_section = mu_alloc((size_t)o->n, sizeof(int)) };
    mu_yaml_document document;
    mu_yaml_read(&document, text, bytes, DEPTH);
    read_sections(&d, document.root);
    if (document.problem) {
        mu_report_add(&d.report, document.line, document.column, "%s", document.problem);
        refuse_rest(o, NULL);
    }
    mu_yaml_free(&document);
    free(d.line_of_key);
    free(d.line_of_section);
    return d.report.status;
}

static mu_status unreadable(mu_error *e, const char *path, const char *reason) {
    char folder[4096], *near = mu_suggest_path(path);
    bool relative = path[0] != '/' && getcwd(folder, sizeof folder);
    mu_error_add(e, MU_STATUS_NOINPUT, "%s%s%.500s: %s%s%s%s", relative ? folder : "", relative ? "/" : "",
                 path,
                 reason, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    free(near);
    return MU_STATUS_NOINPUT;
}

/* Reads at most one byte more than allowed, so that a huge file or a device is never read to its end. */
static ssize_t read_limited(int fd, char *text, size_t room) {
    size_t used = 0;
    while (used < room) {
        ssize_t n = read(fd, text + used, room - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        used += (size_t)n;
    }
    return (ssize_t)used;
}

mu_status mu_options_read_file(mu_options *o, void *config, const char *path, mu_error *e) {
    name_file(o, path);
    const char *reason;
    int64_t size;
    int fd = mu_file_open(path, true, &size, &reason);
    if (fd < 0) return unreadable(e, path, reason);
    char *text = mu_alloc(FILE_BYTES_MAX + 1, 1);
    ssize_t n = read_limited(fd, text, FILE_BYTES_MAX + 1);
    if (n < 0) reason = strerror(errno);
    if (n == 0 && size < 0) reason = "is a pipe into which nothing writes";
    close(fd);
    mu_status status = reason ? unreadable(e, path, reason)
                              : mu_options_read_text(o, config, path, text, (size_t)n, e);
    free(text);
    return status;
}

/* ------------------------------------------------------------------ overrides */

/* A text on the command line has no lines and columns. */
static void clear_places(mu_yaml *node) {
    for (; node; node = node->next) {
        node->line = node->column = 0;
        clear_places(node->key);
        clear_places(node->child);
    }
}

static void read_override_value(reader *d, int i, const char *text) {
    mu_yaml nothing = { .kind = MU_YAML_SCALAR, .plain = true, .text = (char[]){ "" } };
    mu_yaml_document document;
    mu_yaml_read(&document, text, strlen(text), 3);
    clear_places(document.root);
    if (document.problem) {
        mu_report_add(&d->report, 0, 0, "%s.%s: %s", d->o->table[i].section, d->o->table[i].key,
                      document.problem);
        d->o->refused[i] = true;
    } else if (document.root && marked(d, document.root, true)) {
        d->o->refused[i] = true;
    } else {
        set(d, i, document.root ? document.root : &nothing);
    }
    mu_yaml_free(&document);
}

mu_status mu_options_override(mu_options *o, void *config, const char *assignment, mu_error *e) {
    reader d = { .o = o, .config = config, .report = { .e = e } };
    mu_quoted shown;
    names list, keys;
    const char *start = assignment + strspn(assignment, "-"), *equals = strchr(start, '=');
    char *name = mu_format("%.*s", (int)(equals ? equals - start : (ptrdiff_t)strlen(start)), start);
    char *dot = strchr(name, '.');
    all_keys(o, NULL, &keys);
    const char *key = dot ? NULL : nearest(&keys, name);
    sections_with(o, key ? key : "", &list);
    if (start != assignment || !equals || (!dot && !key)) {
        mu_report_add(&d.report, 0, 0, "'%s' is not an option; write section.key=value, as in moe.top_k=2",
                      mu_quote(&shown, assignment));
    } else if (!dot) {
        mu_report_add(&d.report, 0, 0, "'%s' has no section; did you mean '%s.%s'?", mu_quote(&shown,
                                                                                              assignment),
                      list.name[0], key);
    } else {
        *dot = '\0';
        int i = find(o, name, dot + 1);
        if (i >= 0) read_override_value(&d, i, equals + 1);
        else if (find_section(o, name) >= 0) unknown_key(&d, name, dot + 1, 0, 0);
        else unknown_section(&d, name, true, 0, 0);
    }
    free(name);
    return d.report.status;
}

/* ------------------------------------------------------------------ defaults, complaints */

static void set_default(const mu_option *option, void *config) {
    void *field = (char *)config + option->offset;
    mu_error error = { 0 };
    mu_report report = { .name = "the table of options", .e = &error };
    mu_yaml_document document;
    if (option->type == MU_OPTION_DOMAINS) {
        *(mu_option_domains *)field = (mu_option_domains){ 0 };
    } else if (option->type == MU_OPTION_DOMAIN_INTS) {
        *(mu_option_domain_ints *)field = (mu_option_domain_ints){ 0 };
    } else if (option->type == MU_OPTION_NAMES) {
        *(mu_option_names *)field = (mu_option_names){ 0 };
    } else if (option->type == MU_OPTION_PHASES) {
        *(mu_option_phases *)field = (mu_option_phases){ 0 };
    } else if (option->type == MU_OPTION_STRING) {
        snprintf(field, sizeof(mu_field_STRING), "%s", option->fallback ? option->fallback : "");
    } else {
        MU_CHECK(option->fallback, "%s.%s needs a default", option->section, option->key);
        mu_yaml_read(&document, option->fallback, strlen(option->fallback), 2);
        bool good = document.root && mu_option_set(option, config, document.root, &report);
        MU_CHECK(good, "default of %s.%s: %s", option->section, option->key, error.text);
        mu_yaml_free(&document);
    }
}

void mu_options_defaults(const mu_option *table, int n, void *config) {
    for (int i = 0; i < n; i++) set_default(&table[i], config);
}

void mu_options_init(mu_options *o, const mu_option *table, int n, void *config) {
    size_t count = (size_t)n;
    *o = (mu_options){ .table = table, .n = n, .given = mu_alloc(count, sizeof(bool)),
                       .refused = mu_alloc(count, sizeof(bool)), .line = mu_alloc(count, sizeof(int)),
                       .column = mu_alloc(count, sizeof(int)) };
    mu_options_defaults(table, n, config);
}

void mu_options_free(mu_options *o, void *config) {
    for (int i = 0; i < o->n; i++) {
        void *field = (char *)config + o->table[i].offset;
        switch (o->table[i].type) {
        case MU_OPTION_DOMAINS:
            free(((mu_option_domains *)field)->list);
            *(mu_option_domains *)field = (mu_option_domains){ 0 };
            break;
        case MU_OPTION_DOMAIN_INTS:
            free(((mu_option_domain_ints *)field)->list);
            *(mu_option_domain_ints *)field = (mu_option_domain_ints){ 0 };
            break;
        case MU_OPTION_NAMES:
            free(((mu_option_names *)field)->list);
            *(mu_option_names *)field = (mu_option_names){ 0 };
            break;
        case MU_OPTION_PHASES: mu_option_phases_free(field); break;
        default: break;
        }
    }
    free(o->given);
    free(o->refused);
    free(o->line);
    free(o->column);
    free(o->file);
    *o = (mu_options){ 0 };
}

static mu_status complain(const mu_options *o, mu_error *e, int i, int line, int column, const char *fmt, va_list args) {
    char text[400];
    vsnprintf(text, sizeof text, fmt, args);
    bool overridden = o->given[i] && o->line[i] == 0;
    mu_report report = { .name = overridden ? NULL : o->file ? o->file : "configuration", .e = e };
    mu_report_add(&report, line, column, "%s.%s: %s", o->table[i].section, o->table[i].key, text);
    return report.status;
}

mu_status mu_options_complain(const mu_options *o, mu_error *e, const char *section, const char *key,
                              const char *fmt, ...) {
    int i = find_or_die(o, section, key);
    va_list args;
    va_start(args, fmt);
    mu_status status = complain(o, e, i, o->line[i], o->column[i], fmt, args);
    va_end(args);
    return status;
}

mu_status mu_options_complain_at(const mu_options *o, mu_error *e, const char *section, const char *key, int line, int column,
                                 const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    mu_status status = complain(o, e, find_or_die(o, section, key), line, column, fmt, args);
    va_end(args);
    return status;
}
