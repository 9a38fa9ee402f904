/* page.h - self-contained HTML pages: text, and pictures with axes, legend and data (page.c, page_style.c, plot.c). Local.
 *
 * A picture is a <figure>: the caption says how to read it; the values are in a <script type="application/json"> or, for a map, in the
 * colours of its image, so that the page's script can show them under the pointer. Without scripts everything else is there. */
#ifndef MUSTER_TRAIN_PAGE_H
#define MUSTER_TRAIN_PAGE_H
#include "train/picture.h"

#include <stdio.h>

typedef struct {
    FILE *out;
    char *text;                 /* what was written, valid after mu_page_end */
    size_t bytes;
    int figures;
    size_t label_digits;        /* labels of the y axes of the next pictures have at least this width */
} mu_page;
#define MU_PAGE_MARK "<!DOCTYPE html>\n<!-- made by muster -->\n"    /* how every page begins */
void mu_page_begin(mu_page *p, const char *title);
/* Writes the page to a file; a file there that is not such a page is a USAGE error and stays. Frees the page after any outcome. */
mu_status mu_page_end(mu_page *p, const char *path, mu_error *e) MU_MUST_USE;
/* May the page be written to this path? As above, without writing. */
mu_status mu_page_check(const char *path, mu_error *e) MU_MUST_USE;

/* printf into the page: the text of %s is escaped, that of %-s is HTML. Conversions: %s %d %lld %zu %f %g %%. */
void mu_page_put(mu_page *p, const char *format, ...) MU_PRINTF(2, 3);
/* `n` bytes of any text as HTML text or attribute: control characters, and bytes that are not UTF-8, as \xNN. Newlines stay. */
void mu_html_escape(FILE *out, const char *text, size_t n);
/* A JSON value for the page's script: "<" is escaped. */
void mu_page_json(mu_page *p, const mu_json *j);
/* The beginning of a part, with an entry in the table of contents that stands at the top. */
void mu_page_section(mu_page *p, const char *id, const char *heading);
/* <details>: a part that can be folded away. */
void mu_page_fold(mu_page *p, bool open, const char *format, ...) MU_PRINTF(3, 4);
void mu_page_unfold(mu_page *p);
/* "what is missing, and which option gives it" */
void mu_page_missing(mu_page *p, const char *format, ...) MU_PRINTF(2, 3);
void mu_page_styles(mu_page *p);        /* page_style.c */
void mu_page_scripts(mu_page *p);

/* Numbers and other short texts for people, in a static ring of buffers (the last 32 stay): 12.3 M; 0.00123; 1 h 02 min. */
const char *mu_show(const char *format, ...) MU_PRINTF(1, 2);
const char *mu_show_count(double n);
const char *mu_show_number(double x);
const char *mu_show_seconds(double s);

/* ------------------------------------------------------------------ pictures (plot.c) */
typedef struct {
    const char *title, *how;        /* `how` to read it: a sentence, HTML */
    const char *x_name, *y_name;
    double x0, x1;
} mu_axes;
/* A curve: n points, x ascending. */
typedef struct {
    const char *name;
    int64_t n;
    const double *x, *y;
    bool dots;                      /* mark each point: few measurements */
    int colour;                     /* set when it is drawn: its place among the given curves */
} mu_curve;
/* A vertical mark at x. */
typedef struct { double x; const char *text; } mu_mark;
typedef struct { bool log_y, from_zero; int n_marks; const mu_mark *marks; } mu_curve_options;
/* Curves over a common x axis; those without points are left out. With more than MU_CURVES_MOST curves they are drawn as a map. */
enum { MU_CURVES_MOST = 12, MU_PLOT_POINTS = 300 };
void mu_plot_curves(mu_page *p, const mu_axes *axes, const mu_curve *curves, int n, const mu_curve_options *options);

/* A map of cells [rows, cols]. */
typedef struct {
    mu_colours colours;
    int64_t rows, cols;
    const uint8_t *levels;
    double low, high;               /* values of the lowest and highest level */
    bool log2;                      /* these are logarithms to base 2 of what is shown */
    const char *unit;               /* of a value: "x mean load" */
    const char *special;            /* meaning of MU_LEVEL_SPECIAL, or NULL */
    const char *none;               /* meaning of MU_LEVEL_NONE; NULL: no value */
    const char *row, *col;          /* what a row and a column is: "expert", "step" */
    const char *const *row_names;   /* [rows], or NULL: row_first, row_first + 1, ... */
    const char *const *col_names;   /* the same; when NULL, columns are a range of x: axes.x0 .. x1 if x1 > x0, else numbers from 0 */
    int64_t row_first;
    int64_t height;                 /* of a row in pixels; 0: chosen */
    int n_marks;
    const mu_mark *marks;
} mu_map;
void mu_plot_map(mu_page *p, const mu_axes *axes, const mu_map *map);
/* The colour of curve i, as #rrggbb. */
const char *mu_curve_colour(int i);

#endif
