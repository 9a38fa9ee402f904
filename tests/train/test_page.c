/* test_page.c - pages: escaping, numbers, colour maps, PNG files, pictures and their data, the file. */
#include "train/page.h"

#include <jansson.h>
#include <math.h>
#include <png.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static mu_error e;

/* ------------------------------------------------------------------ text */

static void assert_escaped(const char *text, size_t n, const char *expected) {
    char *out = NULL;
    size_t bytes;
    FILE *f = open_memstream(&out, &bytes);
    mu_html_escape(f, text, n);
    fclose(f);
    assert_string_equal(out, expected);
    free(out);
}

static void text_is_escaped(void **state) {
    (void)state;
    assert_escaped("<script>alert('x' + \"y\") && z</script>", 38,
                   "&lt;script&gt;alert(&#39;x&#39; + &quot;y&quot;) &amp;&amp; z&lt;/script&gt;");
    assert_escaped("a\x1b[31m\0b\x7f", 9, "a\\x1b[31m\\x00b\\x7f");
    assert_escaped("\xff\xc3(\xc3\xa4\n\t", 7, "\\xff\\xc3(\xc3\xa4\n\t");     /* not UTF-8; then U+00E4 */
    assert_escaped("\xe2\x80\xae" "evil", 7, "\\xe2\\x80\\xae" "evil");         /* right-to-left override */
    assert_escaped("", 0, "");
}

/* What `put` wrote between the marks. */
static char *page_text(void (*put)(mu_page *p)) {
    mu_page p;
    mu_page_begin(&p, "a <title>");
    put(&p);
    unlink("page.html");
    if (mu_page_end(&p, "page.html", &e)) fail_msg("%s", e.text);
    char *text;
    size_t bytes;
    if (mu_file_read("page.html", 100 << 20, &text, &bytes, &e)) fail_msg("%s", e.text);
    return text;
}

static void put_arguments(mu_page *p) {
    mu_page_put(p, "[%s|%-s|%d|%lld|%.2f|%5g|100 %%]", "<b>", "<b>", -3, 1LL << 40, 1.005, 0.25);
    mu_json j;
    mu_json_init(&j);
    mu_json_string(&j, NULL, "</script>");
    mu_page_json(p, &j);
    mu_json_free(&j);
}

static void arguments_are_escaped(void **state) {
    (void)state;
    char *text = page_text(put_arguments);
    assert_non_null(strstr(text, "[&lt;b&gt;|<b>|-3|1099511627776|1.00| 0.25|100 %]\"\\u003c/script>\""));
    assert_non_null(strstr(text, "<title>a &lt;title&gt;</title>"));
    assert_int_equal(strncmp(text, MU_PAGE_MARK, strlen(MU_PAGE_MARK)), 0);
    free(text);
}

static void numbers_are_short(void **state) {
    (void)state;
    static const struct { double x; const char *number, *count; } cases[] = {
        { 0, "0", "0" }, { 12345, "12345", "12345" }, { 1234567, "1.23 M", "1.23 M" }, { 123456, "123 k", "123 k" }, { 0.5, "0.500", "0.5" },
        { 1.5, "1.50", "1.5" }, { 12.34, "12.3", "12.3" }, { 1.2e-5, "1.2e-05", "0.0" }, { 2.5e9, "2.50 G", "2.50 G" }, { -3e13, "-30.0 T", "-30.0 T" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_string_equal(mu_show_number(cases[i].x), cases[i].number);
        assert_string_equal(mu_show_count(cases[i].x), cases[i].count);
    }
    assert_string_equal(mu_show_number(NAN), "\xE2\x80\x93");
    assert_string_equal(mu_show_seconds(3.14), "3.1 s");
    assert_string_equal(mu_show_seconds(119), "119 s");
    assert_string_equal(mu_show_seconds(3599.6), "60 min 00 s");
    assert_string_equal(mu_show_seconds(7260), "2 h 01 min");
}

/* ------------------------------------------------------------------ pictures */

/* A value must be readable from its colour. */
static void colours_differ(void **state) {
    (void)state;
    for (int kind = 0; kind < MU_N_COLOURS; kind++) {
        mu_colour_map rgb;
        int n = kind == MU_COLOURS_STATES ? MU_EXPERT_STATES : 255;
        mu_colours_fill((mu_colours)kind, rgb);
        for (int i = 1; i <= n; i++)
            for (int j = 1; j < i; j++) assert_memory_not_equal(rgb[i], rgb[j], 3);
    }
    assert_int_equal(mu_colours_level(-5, -3, 3), MU_LEVEL_LOWEST);
    assert_int_equal(mu_colours_level(5, -3, 3), MU_LEVEL_HIGHEST);
    assert_int_equal(mu_colours_level(NAN, -3, 3), MU_LEVEL_NONE);
    assert_in_range(mu_colours_level(0, -3, 3), 128, 129);
    assert_in_range(mu_colours_level(7, 7, 7), 128, 129);           /* one value only */
}

static void png_holds_the_pixels(void **state) {
    (void)state;
    enum { W = 37, H = 11 };
    uint8_t pixels[H * W], *read = mu_alloc(H * W * 4, 1);
    mu_colour_map rgb;
    size_t bytes;
    for (int i = 0; i < H * W; i++) pixels[i] = (uint8_t)(i * 7);
    uint8_t *png = mu_png_encode(pixels, W, H, MU_COLOURS_DIVERGING, &bytes);
    png_image image = { .version = PNG_IMAGE_VERSION };
    assert_true(png_image_begin_read_from_memory(&image, png, bytes));
    assert_int_equal(image.width, W);
    assert_int_equal(image.height, H);
    image.format = PNG_FORMAT_RGBA;
    assert_true(png_image_finish_read(&image, NULL, read, 0, NULL));
    mu_colours_fill(MU_COLOURS_DIVERGING, rgb);
    for (int i = 0; i < H * W; i++) {
        assert_int_equal(read[4 * i + 3], pixels[i] ? 255 : 0);
        if (pixels[i]) assert_memory_equal(read + 4 * i, rgb[pixels[i]], 3);
    }
    free(png);
    free(read);
}

static const double steps[] = { 1, 50, 100 }, values[] = { 5, 2.5, 1.25 }, flat[] = { 3, 3, 3 };

static void put_pictures(mu_page *p) {
    uint8_t levels[6] = { 0, 1, 2, 128, 255, 2 };
    mu_axes axes = { "A curve", "How.", "step", "nats", 0, 100 }, cells = { "A map", "How.", "expert", "layer", 0, 0 };
    mu_curve curves[] = { { .name = "one <1>", .n = 3, .x = steps, .y = values, .dots = true }, { .name = "none" },
                          { .name = "flat", .n = 3, .x = steps, .y = flat } };
    mu_mark mark = { 50, "expert 3 \"dead\"" };
    mu_plot_curves(p, &axes, curves, 3, &(mu_curve_options){ .n_marks = 1, .marks = &mark });
    mu_plot_map(p, &cells, &(mu_map){ .colours = MU_COLOURS_DIVERGING, .rows = 2, .cols = 3, .levels = levels, .low = -2, .high = 2, .log2 = true,
                                      .unit = "x", .special = "no token", .row = "layer", .col = "expert" });
    mu_plot_curves(p, &axes, curves + 1, 1, NULL);              /* without points: no figure */
    mu_plot_curves(p, &axes, curves + 2, 1, NULL);              /* one value only */
}

/* The JSON of figure number `i`. */
static json_t *data_of(const char *text, int i) {
    static const char begin[] = "<script type=\"application/json\">";
    for (const char *at = text; (at = strstr(at, begin)); at++)
        if (!i--) return json_loadb(at + strlen(begin), (size_t)(strstr(at, "</script>") - at) - strlen(begin), JSON_REJECT_DUPLICATES, NULL);
    return NULL;
}

static void figures_have_data(void **state) {
    (void)state;
    char *text = page_text(put_pictures);
    json_t *curves = data_of(text, 0), *map = data_of(text, 1), *one = data_of(text, 2), *first = json_array_get(json_object_get(curves, "curves"), 0);
    assert_int_equal(json_array_size(json_object_get(curves, "curves")), 2);
    assert_string_equal(json_string_value(json_object_get(first, "name")), "one <1>");
    assert_float_equal(json_number_value(json_array_get(json_object_get(first, "y"), 1)), 2.5, 0);
    assert_int_equal(json_integer_value(json_object_get(map, "cols")), 3);
    assert_non_null(one);
    assert_null(data_of(text, 3));
    assert_non_null(strstr(text, "<i style=\"left:50.00%\" title=\"expert 3 &quot;dead&quot;\">"));
    assert_non_null(strstr(text, "<b>A map.</b> How."));
    assert_non_null(strstr(text, "</span>no token</span>"));
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    json_decref(curves), json_decref(map), json_decref(one);
    free(text);
}

/* More than MU_PLOT_POINTS points become their means; more than MU_CURVES_MOST curves a map. */
static void put_many(mu_page *p) {
    enum { N = 10001, CURVES = 50 };
    double *x = mu_alloc(N, sizeof *x), *y = mu_alloc(N, sizeof *y);
    mu_curve curves[CURVES];
    for (int i = 0; i < N; i++) x[i] = i, y[i] = 2 * i + 1;
    for (int i = 0; i < CURVES; i++) curves[i] = (mu_curve){ .name = "domain", .n = N, .x = x, .y = y };
    mu_axes axes = { "Many", "How.", "step", "nats", 0, N - 1 };
    mu_plot_curves(p, &axes, curves, 1, NULL);
    mu_plot_curves(p, &axes, curves, CURVES, NULL);
    free(x);
    free(y);
}

static void long_and_many_curves_stay_small(void **state) {
    (void)state;
    char *text = page_text(put_many);
    json_t *curves = data_of(text, 0), *map = data_of(text, 1), *one = json_array_get(json_object_get(curves, "curves"), 0);
    size_t n = json_array_size(json_object_get(one, "x"));
    assert_in_range(n, MU_PLOT_POINTS / 2, MU_PLOT_POINTS);
    assert_float_equal(json_number_value(json_array_get(json_object_get(one, "y"), 0)), 34, 1e-3);     /* of points 0 .. 33 */
    assert_int_equal(json_integer_value(json_object_get(map, "rows")), 50);
    assert_in_range(strlen(text), 10000, 100000);
    json_decref(curves), json_decref(map);
    free(text);
}

/* ------------------------------------------------------------------ the file */

static void put_nothing(mu_page *p) { (void)p; }

static void other_files_stay(void **state) {
    (void)state;
    mu_page p;
    assert_int_equal(mu_file_replace("mine.html", "<!DOCTYPE html>\nmine", 20, &e), MU_STATUS_OK);
    assert_int_equal(mu_page_check("mine.html", &e), MU_STATUS_USAGE);
    mu_page_begin(&p, "x");
    assert_int_equal(mu_page_end(&p, "mine.html", &e), MU_STATUS_USAGE);
    assert_non_null(strstr(e.text, "mine.html"));
    assert_int_equal(mu_page_check(".", &e), MU_STATUS_USAGE);
    free(page_text(put_nothing));
    assert_int_equal(mu_page_check("page.html", &e), MU_STATUS_OK);     /* a page of muster is replaced */
    mu_page_begin(&p, "x");
    assert_int_equal(mu_page_end(&p, "nowhere/page.html", &e), MU_STATUS_IO);
}

static char folder[] = "page-XXXXXX";
static int enter(void **state) { (void)state; return !mkdtemp(folder) || chdir(folder) ? -1 : 0; }
static int leave(void **state) { (void)state; return chdir("..") || mu_file_remove_tree(folder, NULL) ? -1 : 0; }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_escaped), cmocka_unit_test(arguments_are_escaped), cmocka_unit_test(numbers_are_short),
        cmocka_unit_test(colours_differ), cmocka_unit_test(png_holds_the_pixels), cmocka_unit_test(figures_have_data),
        cmocka_unit_test(long_and_many_curves_stay_small), cmocka_unit_test(other_files_stay),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
