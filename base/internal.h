/* internal.h - shared by the files of base/: system error texts, checks of the store, number formatting, error
 * reports, YAML trees. */
#ifndef MUSTER_BASE_INTERNAL_H
#define MUSTER_BASE_INTERNAL_H

#include "base/base.h"

/* ------------------------------------------------------------------ files (files.c) */
const char *mu_io_reason(int error);                    /* an errno as text, with a hint where there is one */

/* ------------------------------------------------------------------ store (store_check.c, store_probe.c)
 * Checks that this open file has the store's format, without HDF5: parses all metadata. MU_STATUS_DATA if not. */
mu_status mu_store_check(int fd, const char *path, int64_t bytes, mu_error *e);
/* Lets the helper, if set, walk the metadata with HDF5; MU_STATUS_DATA when it crashes. */
mu_status mu_store_probe(const char *path, mu_error *e);

/* ------------------------------------------------------------------ text (json.c)
 * The shortest of 15 to 17 digits that reads back equal, with '.' whatever the locale. Finite values only. */
void mu_float_text(double value, char text[40]);

/* ------------------------------------------------------------------ error reports (report.c)
 * Collects the errors of one file, or of the command line: one line each, at most 20. */
typedef struct {
    const char *name;           /* of the file; NULL: the command line, which has no lines and columns */
    mu_error *e;                /* may be NULL */
    mu_status status;           /* MU_STATUS_OK until the first report */
    int n;
} mu_report;
void mu_report_add(mu_report *r, int line, int column, const char *fmt, ...) MU_PRINTF(4, 5);
bool mu_report_full(const mu_report *r);                /* further errors would not be shown */
/* The user's text for a message, truncated after 40 bytes. Returns `out`'s text. */
typedef struct { char text[64]; } mu_quoted;
const char *mu_quote(mu_quoted *out, const char *text);

/* ------------------------------------------------------------------ YAML (yaml.c)
 * The subset of YAML that configurations need, as a tree. Lines and columns count from 1. */
typedef enum { MU_YAML_SCALAR, MU_YAML_LIST, MU_YAML_MAP } mu_yaml_kind;
typedef struct mu_yaml {
    mu_yaml_kind kind;
    int line, column;
    bool plain;                 /* a scalar without quotes */
    char *text;                 /* of a scalar; never NULL there, and without NUL bytes */
    const char *refused;        /* error: a YAML feature that is not supported (an alias, a tag), or NULL */
    struct mu_yaml *key;        /* in a map: the scalar before the colon */
    struct mu_yaml *child, *next;
} mu_yaml;

typedef struct {
    mu_yaml *root;              /* the tree as far as it could be read; NULL for an empty text */
    char *problem;              /* error at line:column that stopped reading, or NULL */
    int line, column;
} mu_yaml_document;
void mu_yaml_read(mu_yaml_document *d, const char *text, size_t bytes, int max_depth);
void mu_yaml_free(mu_yaml_document *d);

/* ------------------------------------------------------------------ one value (option_value.c)  */
enum { MU_CHOICES_MAX = 32 };
typedef struct { char copy[512]; const char *word[MU_CHOICES_MAX]; int n; } mu_choices;
void mu_choices_split(mu_choices *c, const char *choices);      /* "a|b|c" */
/* Sets the option's field from a YAML value. False: error reported, field unchanged. */
bool mu_option_set(const mu_option *option, void *config, const mu_yaml *value, mu_report *r);
void mu_option_phases_free(mu_option_phases *phases);
/* The allowed values as text: "an integer from 0 to 65536". */
void mu_option_allowed(const mu_option *option, char *text, size_t size);

#endif
