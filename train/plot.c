/* plot.c - pictures of a page: curves as SVG, maps of cells as images. Only their inside is stretched to the width of the window; axes
 * and legends are HTML around it, so that their letters keep their size. */
#include "train/page.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const curve_colours[] = { "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00", "#7f7f7f" };
enum { N_CURVE_COLOURS = sizeof curve_colours / sizeof *curve_colours };
const char *mu_curve_colour(int i) { return curve_colours[i % N_CURVE_COLOURS]; }
/* Beyond the colours: dashed, then dotted. */
static const char *dashes(int i) {
    static const char *const all[] = { "", " stroke-dasharray=\"6 4\"", " stroke-dasharray=\"2 3\"" };
    return all[i / N_CURVE_COLOURS % 3];
}

/* ------------------------------------------------------------------ the frame */

static void begin_figure(mu_page *p, const mu_axes *a, const char *kind) {
    mu_page_put(p, "<figure class=\"%s\" id=\"f%d\"><figcaption><b>%s.</b> %-s</figcaption>\n", kind, ++p->figures, a->title, a->how);
}

/* digits: width of the widest label of the y axis */
static void begin_frame(mu_page *p, const mu_axes *a, int64_t height, size_t digits) {
    double width = fmin(fmax((double)(digits > p->label_digits ? digits : p->label_digits) * 0.55, 1.6), 8.5) + 0.8;
    mu_page_put(p, "<div class=\"frame\" style=\"--h:%lldpx;--w:%.1fem\"><div class=\"yn\">%s</div>\n", (long long)height, width, a->y_name);
}

/* Every second label gives way in a narrow window. */
static void x_label(mu_page *p, double percent, const char *text, bool second) {
    mu_page_put(p, "<span%-s style=\"left:%.2f%%\">%s</span>", second ? " class=\"o\"" : "", percent, text);
}

static void y_label(mu_page *p, double percent, const char *text) {
    mu_page_put(p, "<span style=\"top:%.2f%%\">%s</span>", percent, text);
}

/* 1, 2 or 5 times a power of ten, so that a range has about `wanted` ticks. */
static double tick_width(double range, double wanted) {
    double raw = range / wanted, power = pow(10, floor(log10(raw))), rest = raw / power;
    return power * (rest <= 1 ? 1 : rest <= 2 ? 2 : rest <= 5 ? 5 : 10);
}

/* Without the zeros at the end that numbers in tables have. */
static const char *tick_text(double x) { return fabs(x) >= 1e5 ? mu_show_count(x) : mu_show("%.4g", x); }

static void x_ticks(mu_page *p, const mu_axes *a) {
    mu_page_put(p, "<div class=\"xt\">");
    if (a->x1 > a->x0) {
        double width = tick_width(a->x1 - a->x0, 6);
        int i = 0;
        for (double x = ceil(a->x0 / width) * width; x <= a->x1 * (1 + 1e-9); x += width)
            x_label(p, 100 * (x - a->x0) / (a->x1 - a->x0), tick_text(fabs(x) < width / 2 ? 0 : x), i++ % 2);
    }
    mu_page_put(p, "</div><div class=\"xn\">%s</div></div>\n", a->x_name);
}

static void put_marks(mu_page *p, const mu_axes *a, int n, const mu_mark *marks) {
    for (int i = 0; i < n; i++)
        if (marks[i].x >= a->x0 && marks[i].x <= a->x1 && a->x1 > a->x0)
            mu_page_put(p, "<i style=\"left:%.2f%%\" title=\"%s\"></i>", 100 * (marks[i].x - a->x0) / (a->x1 - a->x0), marks[i].text);
}

/* ------------------------------------------------------------------ curves */

typedef struct { double low, high; bool log; } range;

static double scaled(const range *r, double y) {
    if (r->log) return (log(y) - log(r->low)) / (log(r->high) - log(r->low));
    return (y - r->low) / (r->high - r->low);
}

static range range_of(const mu_curve *curves, int n, const mu_curve_options *o) {
    range r = { INFINITY, -INFINITY, o->log_y };
    for (int i = 0; i < n; i++)
        for (int64_t j = 0; j < curves[i].n; j++) r.low = fmin(r.low, curves[i].y[j]), r.high = fmax(r.high, curves[i].y[j]);
    if (o->from_zero) r.low = fmin(r.low, 0);
    if (r.log) r.log = r.low > 0 && r.high > 1.2 * r.low;
    if (r.log) return r;
    double size = r.high - r.low, margin = size > 0 ? 0.04 * size : fmax(fabs(r.high) * 0.1, 1e-3);
    return (range){ o->from_zero && r.low == 0 ? 0 : r.low - margin, r.high + margin, false };
}

static size_t y_ticks(const range *r, double ticks[24], int *n) {
    size_t widest = 0;
    *n = 0;
    if (r->log) {
        for (double power = pow(10, floor(log10(r->low))); power <= r->high; power *= 10)
            for (int i = 0; i < 3; i++) {
                double y = power * (double[]){ 1, 2, 5 }[i];
                if (y >= r->low && y <= r->high && *n < 24) ticks[(*n)++] = y;
            }
    } else {
        double width = tick_width(r->high - r->low, 4);
        for (double y = ceil(r->low / width) * width; y <= r->high && *n < 24; y += width) ticks[(*n)++] = fabs(y) < width / 2 ? 0 : y;
    }
    for (int i = 0; i < *n; i++) {
        size_t length = strlen(tick_text(ticks[i]));
        widest = length > widest ? length : widest;
    }
    return widest;
}

/* A curve of more than MU_PLOT_POINTS points as means of consecutive ones; heap arrays. */
static mu_curve thinned(const mu_curve *c, int colour) {
    int64_t per = (c->n + MU_PLOT_POINTS - 1) / MU_PLOT_POINTS, n = per ? (c->n + per - 1) / per : 0;
    double *x = mu_alloc((size_t)n, sizeof *x), *y = mu_alloc((size_t)n, sizeof *y);
    for (int64_t i = 0; i < n; i++) {
        int64_t first = i * per, end = first + per < c->n ? first + per : c->n;
        for (int64_t j = first; j < end; j++) y[i] += c->y[j] / (double)(end - first);
        x[i] = c->x[end - 1];
    }
    return (mu_curve){ c->name, n, x, y, c->dots, colour };
}

static void draw_curve(mu_page *p, const mu_axes *a, const range *r, const mu_curve *c) {
    int colour = c->colour;
    double width = a->x1 > a->x0 ? a->x1 - a->x0 : 1;
    mu_page_put(p, "<path stroke=\"%s\"%-s d=\"", mu_curve_colour(colour), dashes(colour));
    for (int64_t i = 0; i < c->n; i++)
        mu_page_put(p, "%-s%.1f %.1f", i ? "L" : "M", 1000 * (c->x[i] - a->x0) / width, 1000 * (1 - scaled(r, c->y[i])));
    mu_page_put(p, "\"/>");
    for (int64_t i = 0; i < c->n && (c->dots || c->n == 1); i++)
        mu_page_put(p, "<path class=\"dot\" stroke=\"%s\" d=\"M%.1f %.1fh0\"/>", mu_curve_colour(colour),
                    1000 * (c->x[i] - a->x0) / width, 1000 * (1 - scaled(r, c->y[i])));
    mu_page_put(p, "\n");
}

static void curves_key(mu_page *p, const mu_curve *curves, int n) {
    mu_page_put(p, "<div class=\"key\">");
    for (int i = 0; i < n; i++)
        mu_page_put(p, "<span><svg viewBox=\"0 0 26 10\"><path stroke=\"%s\"%-s d=\"M0 5H26\"/></svg>%s <b>%s</b></span>",
                    mu_curve_colour(curves[i].colour), dashes(curves[i].colour), curves[i].name, mu_show_number(curves[i].y[curves[i].n - 1]));
    mu_page_put(p, "</div>\n");
}

static void json_numbers(mu_json *j, const char *key, const double *values, int64_t n) {
    mu_json_begin(j, key, '[');
    for (int64_t i = 0; i < n; i++) {
        char text[32];
        snprintf(text, sizeof text, "%.5g", values[i]);
        mu_json_float(j, NULL, strtod(text, NULL));
    }
    mu_json_end(j, ']');
}

static void begin_data(mu_page *p, mu_json *j) {
    mu_page_put(p, "<script type=\"application/json\">");
    mu_json_init(j);
    mu_json_begin(j, NULL, '{');
}

static void end_data(mu_page *p, mu_json *j) {
    mu_json_end(j, '}');
    mu_page_json(p, j);
    mu_page_put(p, "</script></figure>\n");
    mu_json_free(j);
}

static void curves_data(mu_page *p, const mu_axes *a, const mu_curve *curves, int n) {
    mu_json j;
    begin_data(p, &j);
    mu_json_string(&j, "x", a->x_name);
    mu_json_float(&j, "x0", a->x0);
    mu_json_float(&j, "x1", a->x1);
    mu_json_begin(&j, "curves", '[');
    for (int i = 0; i < n; i++) {
        mu_json_begin(&j, NULL, '{');
        mu_json_string(&j, "name", curves[i].name);
        json_numbers(&j, "x", curves[i].x, curves[i].n);
        json_numbers(&j, "y", curves[i].y, curves[i].n);
        mu_json_end(&j, '}');
    }
    mu_json_end(&j, ']');
    end_data(p, &j);
}

/* The curves that have points, thinned. */
static int prepare(mu_curve *out, const mu_curve *curves, int n) {
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (curves[i].n) out[kept++] = thinned(&curves[i], i);
    return kept;
}

static void free_curves(mu_curve *curves, int n) {
    for (int i = 0; i < n; i++) {
        free((void *)curves[i].x);
        free((void *)curves[i].y);
    }
    free(curves);
}

/* Many curves are a tangle: a map instead, a row for each, the value at a time as colour. */
static void curves_as_map(mu_page *p, const mu_axes *a, const mu_curve *curves, int n, const mu_curve_options *o) {
    enum { COLS = 200 };
    range r = range_of(curves, n, o);
    uint8_t *levels = mu_alloc((size_t)n * COLS, 1);
    const char **names = mu_alloc((size_t)n, sizeof *names);
    for (int i = 0; i < n; i++) {
        names[i] = curves[i].name;
        for (int64_t col = 0, j = -1; col < COLS; col++) {
            double x = a->x0 + (double)(col + 1) / COLS * (a->x1 - a->x0);
            while (j + 1 < curves[i].n && curves[i].x[j + 1] <= x * (1 + 1e-12)) j++;
            levels[(int64_t)i * COLS + col] = j < 0 ? MU_LEVEL_NONE : mu_colours_level(curves[i].y[j], r.low, r.high);
        }
    }
    mu_axes axes = *a;
    axes.how = mu_show("A row for each of %d, the value at a time as colour. %.150s", n, a->how);
    axes.y_name = "";
    mu_plot_map(p, &axes, &(mu_map){ .colours = MU_COLOURS_SEQUENTIAL, .rows = n, .cols = COLS, .levels = levels, .low = r.low, .high = r.high,
                                 .unit = a->y_name, .row = "", .col = a->x_name, .row_names = names,
                                 .n_marks = o->n_marks, .marks = o->marks });
    free(levels);
    free(names);
}

void mu_plot_curves(mu_page *p, const mu_axes *a, const mu_curve *given, int n_given, const mu_curve_options *options) {
    mu_curve_options o = options ? *options : (mu_curve_options){ 0 };
    mu_curve *curves = mu_alloc((size_t)n_given + 1, sizeof *curves);
    int n = prepare(curves, given, n_given), n_ticks;
    if (n > MU_CURVES_MOST) curves_as_map(p, a, curves, n, &o);
    else if (n) {
        range r = range_of(curves, n, &o);
        double ticks[24];
        size_t widest = y_ticks(&r, ticks, &n_ticks);
        begin_figure(p, a, "curves");
        begin_frame(p, a, 240, widest);
        mu_page_put(p, "<div class=\"yt\">");
        for (int i = 0; i < n_ticks; i++) y_label(p, 100 * (1 - scaled(&r, ticks[i])), tick_text(ticks[i]));
        mu_page_put(p, "</div><div class=\"area\"><svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"%s\">", a->title);
        for (int i = 0; i < n_ticks; i++) mu_page_put(p, "<path class=\"grid\" d=\"M0 %.1fH1000\"/>", 1000 * (1 - scaled(&r, ticks[i])));
        mu_page_put(p, "\n");
        for (int i = 0; i < n; i++) draw_curve(p, a, &r, &curves[i]);
        mu_page_put(p, "</svg>");
        put_marks(p, a, o.n_marks, o.marks);
        mu_page_put(p, "</div>\n");
        x_ticks(p, a);
        curves_key(p, curves, n);
        curves_data(p, a, curves, n);
    }
    free_curves(curves, n);
}

/* ------------------------------------------------------------------ maps */

static void put_base64(FILE *out, const uint8_t *bytes, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        uint32_t three = (uint32_t)bytes[i] << 16 | (i + 1 < n ? (uint32_t)bytes[i + 1] << 8 : 0) | (i + 2 < n ? bytes[i + 2] : 0);
        for (int k = 0; k < 4; k++) putc(i + (size_t)k <= n ? digits[three >> (18 - 6 * k) & 63] : '=', out);
    }
}

static void put_image(mu_page *p, const mu_axes *a, const mu_map *m) {
    size_t bytes;
    uint8_t *png = mu_png_encode(m->levels, m->cols, m->rows, m->colours, &bytes);
    mu_page_put(p, "<img alt=\"%s\" src=\"data:image/png;base64,", a->title);
    put_base64(p->out, png, bytes);
    mu_page_put(p, "\">");
    free(png);
}

/* How many rows or columns one label stands for, so that they do not overlap. */
static int64_t label_every(int64_t n, int64_t most) {
    static const int64_t steps[] = { 1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 200, 256, 500, 512, 1000, 2000, 5000 };
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (n <= most * steps[i]) return steps[i];
    return n;
}

static const char *row_name(const mu_map *m, int64_t i, char text[24]) {
    if (m->row_names) return m->row_names[i];
    snprintf(text, 24, "%lld", (long long)(m->row_first + i));
    return text;
}

static void row_labels(mu_page *p, const mu_map *m, int64_t height) {
    char text[24];
    int64_t every = label_every(m->rows, height / 12 > 0 ? height / 12 : 1);
    mu_page_put(p, "<div class=\"yt\">");
    for (int64_t i = 0; i < m->rows; i += every) y_label(p, 100 * ((double)i + 0.5) / (double)m->rows, row_name(m, i, text));
    mu_page_put(p, "</div>");
}

static void col_labels(mu_page *p, const mu_axes *a, const mu_map *m) {
    size_t longest = 2;
    for (int64_t i = 0; m->col_names && i < m->cols; i++) longest = strlen(m->col_names[i]) > longest ? strlen(m->col_names[i]) : longest;
    int64_t every = label_every(m->cols, longest > 40 ? 1 : 40 / (int64_t)longest);
    mu_page_put(p, "<div class=\"xt\">");
    for (int64_t i = 0; i < m->cols; i += every) {
        char text[24];
        snprintf(text, sizeof text, "%lld", (long long)i);
        x_label(p, 100 * ((double)i + 0.5) / (double)m->cols, m->col_names ? m->col_names[i] : text, i / every % 2);
    }
    mu_page_put(p, "</div><div class=\"xn\">%s</div></div>\n", a->x_name);
}

static const char *shown_value(const mu_map *m, double at) {
    double value = m->low + at * (m->high - m->low);
    if (m->log2) value = exp2(value);
    return fabs(value) < 1000 ? mu_show("%.3g", value) : mu_show_count(value);
}

static void put_gradient(mu_page *p, mu_colours kind) {
    mu_colour_map rgb;
    mu_colours_fill(kind, rgb);
    mu_page_put(p, "<span class=\"bar\" style=\"background:linear-gradient(90deg");
    for (int i = 0; i <= 8; i++) {
        const uint8_t *c = rgb[MU_LEVEL_LOWEST + i * (MU_LEVEL_HIGHEST - MU_LEVEL_LOWEST) / 8];
        mu_page_put(p, ",rgb(%d,%d,%d)", c[0], c[1], c[2]);
    }
    mu_page_put(p, ")\"></span>");
}

static void put_patch(mu_page *p, const uint8_t rgb[3], const char *text) {
    mu_page_put(p, "<span><span class=\"patch\" style=\"background:rgb(%d,%d,%d)\"></span>%s</span>", rgb[0], rgb[1], rgb[2], text);
}

static void map_key(mu_page *p, const mu_map *m) {
    mu_colour_map rgb;
    bool used[256] = { false };
    mu_colours_fill(m->colours, rgb);
    for (int64_t i = 0; i < m->rows * m->cols; i++) used[m->levels[i]] = true;
    mu_page_put(p, "<div class=\"key\">");
    if (m->colours == MU_COLOURS_STATES) {
        for (int s = 0; s < MU_EXPERT_STATES; s++)
            if (used[1 + s]) put_patch(p, rgb[1 + s], mu_expert_state_name((mu_expert_state)s));
    } else {
        mu_page_put(p, "<span>%s", shown_value(m, 0));
        put_gradient(p, m->colours);
        mu_page_put(p, "%s &nbsp; %s", shown_value(m, 1), m->unit);
        if (m->colours == MU_COLOURS_DIVERGING) mu_page_put(p, " (white: %s)", shown_value(m, 0.5));
        mu_page_put(p, "</span>");
        if (m->special && used[MU_LEVEL_SPECIAL]) put_patch(p, rgb[MU_LEVEL_SPECIAL], m->special);
    }
    if (used[MU_LEVEL_NONE]) mu_page_put(p, "<span><span class=\"patch none\"></span>%s</span>", m->none ? m->none : "no value");
    mu_page_put(p, "</div>\n");
}

static void json_names(mu_json *j, const char *key, const char *const *names, int64_t n) {
    if (!names) return;
    mu_json_begin(j, key, '[');
    for (int64_t i = 0; i < n; i++) mu_json_string(j, NULL, names[i]);
    mu_json_end(j, ']');
}

static void map_data(mu_page *p, const mu_axes *a, const mu_map *m) {
    mu_json j;
    begin_data(p, &j);
    mu_json_int(&j, "colours", m->colours);
    mu_json_int(&j, "rows", m->rows);
    mu_json_int(&j, "cols", m->cols);
    mu_json_string(&j, "row", m->row);
    mu_json_string(&j, "col", m->col);
    json_names(&j, "rowNames", m->row_names, m->rows);
    json_names(&j, "colNames", m->col_names, m->cols);
    mu_json_int(&j, "rowFirst", m->row_first);
    mu_json_float(&j, "x0", a->x0);
    mu_json_float(&j, "x1", a->x1);
    mu_json_float(&j, "low", m->low);
    mu_json_float(&j, "high", m->high);
    mu_json_bool(&j, "log2", m->log2);
    mu_json_string(&j, "unit", m->unit ? m->unit : "");
    mu_json_string(&j, "special", m->special ? m->special : "");
    mu_json_string(&j, "none", m->none ? m->none : "no value");
    const char *states[MU_EXPERT_STATES];
    for (int s = 0; s < MU_EXPERT_STATES; s++) states[s] = mu_expert_state_name((mu_expert_state)s);
    json_names(&j, "states", m->colours == MU_COLOURS_STATES ? states : NULL, MU_EXPERT_STATES);
    end_data(p, &j);
}

/* Rows of 16 pixels, or thinner ones up to 400 pixels in all. */
static int64_t map_height(const mu_map *m) {
    if (m->height) return m->height * m->rows;
    int64_t row = 400 / m->rows;
    return m->rows * (row > 16 ? 16 : row < 1 ? 1 : row);
}

void mu_plot_map(mu_page *p, const mu_axes *a, const mu_map *m) {
    char text[24];
    size_t widest = 1;
    int64_t height = map_height(m);
    for (int64_t i = 0; i < m->rows; i++) {
        size_t length = strlen(row_name(m, i, text));
        widest = length > widest ? length : widest;
    }
    begin_figure(p, a, "map");
    begin_frame(p, a, height, widest);
    row_labels(p, m, height);
    mu_page_put(p, "<div class=\"area\">");
    put_image(p, a, m);
    put_marks(p, a, m->n_marks, m->marks);
    mu_page_put(p, "</div>\n");
    if (a->x1 > a->x0) x_ticks(p, a);
    else col_labels(p, a, m);
    map_key(p, m);
    map_data(p, a, m);
}
