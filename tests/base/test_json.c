/* The JSON writer, read back by jansson: commas, escapes, broken UTF-8, numbers, the locale. */
#include "base/base.h"

#include <float.h>
#include <inttypes.h>
#include <jansson.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void text_is_exact(void **state) {
    (void)state;
    mu_json j;
    mu_json_init(&j);
    assert_string_equal(j.text, "");
    mu_json_begin(&j, NULL, '{');
    mu_json_int(&j, "a", -3);
    mu_json_begin(&j, "list", '[');
    mu_json_end(&j, ']');
    mu_json_begin(&j, "b", '[');
    mu_json_float(&j, NULL, 0.5);
    mu_json_bool(&j, NULL, true);
    mu_json_begin(&j, NULL, '{');
    mu_json_end(&j, '}');
    mu_json_string(&j, NULL, NULL);
    mu_json_end(&j, ']');
    mu_json_bool(&j, "c", false);
    mu_json_end(&j, '}');
    assert_string_equal(j.text, "{\"a\":-3,\"list\":[],\"b\":[0.5,true,{},null],\"c\":false}");
    assert_int_equal(j.length, strlen(j.text));
    mu_json_reset(&j);
    assert_string_equal(j.text, "");
    mu_json_begin(&j, NULL, '[');       /* no comma left over from the first text */
    mu_json_end(&j, ']');
    assert_string_equal(j.text, "[]");
    mu_json_free(&j);
}

static void written_as(const char *value, const char *expected) {
    mu_json j;
    mu_json_init(&j);
    mu_json_string(&j, NULL, value);
    assert_string_equal(j.text, expected);
    json_t *read = json_loads(j.text, JSON_DECODE_ANY, NULL);
    assert_true(json_is_string(read));
    json_decref(read);
    mu_json_free(&j);
}

static void strings_are_escaped(void **state) {
    (void)state;
    written_as("", "\"\"");
    written_as("a\"b\\c/d", "\"a\\\"b\\\\c/d\"");
    written_as("\b\f\n\r\t\x01\x1f", "\"\\b\\f\\n\\r\\t\\u0001\\u001f\"");
    written_as("Zürich €😀", "\"Zürich €😀\"");
}

#define BAD "\xEF\xBF\xBD"
static void bad_utf8_is_replaced(void **state) {
    (void)state;
    written_as("a\xFFz", "\"a" BAD "z\"");
    written_as("\xC3", "\"" BAD "\"");                       /* cut off at the end */
    written_as("\xC0\x80", "\"" BAD BAD "\"");               /* overlong NUL */
    written_as("\xE0\x80\xAF", "\"" BAD BAD BAD "\"");       /* overlong slash */
    written_as("\xED\xA0\x80", "\"" BAD BAD BAD "\"");       /* half of a UTF-16 pair */
    written_as("\xF4\x90\x80\x80", "\"" BAD BAD BAD BAD "\"");   /* beyond U+10FFFF */
    written_as("\xE2\x82" "a", "\"" BAD BAD "a\"");
    written_as("\xF4\x8F\xBF\xBF", "\"\xF4\x8F\xBF\xBF\"");
}

static char *float_text(double value) {
    mu_json j;
    mu_json_init(&j);
    mu_json_float(&j, NULL, value);
    char *text = mu_strdup(j.text);
    mu_json_free(&j);
    return text;
}

static void float_as(double value, const char *expected) {
    char *text = float_text(value);
    assert_string_equal(text, expected);
    free(text);
}

static void floats_are_short(void **state) {
    (void)state;
    float_as(0, "0");
    float_as(-0.0, "-0.0");
    float_as(0.1, "0.1");
    float_as(1.0 / 3, "0.3333333333333333");
    float_as(0.1 + 0.2, "0.30000000000000004");
    float_as(1e-5, "1e-5");
    float_as(-2.5e100, "-2.5e+100");
    float_as(1e-300, "1e-300");
    float_as(9007199254740992.0, "9007199254740992");
    float_as(DBL_MAX, "1.7976931348623157e+308");
    float_as(NAN, "null");
    float_as(INFINITY, "null");
    float_as(-INFINITY, "null");
}

/* Random bit patterns: what jansson reads is the same double. */
static void floats_read_back(void **state) {
    (void)state;
    const mu_rng rng = { .seed = 7, .purpose = MU_RNG_TEST };
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t bits = (uint64_t)mu_rng_u32(&rng, 2 * i) << 32 | mu_rng_u32(&rng, 2 * i + 1);
        double value;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value)) continue;
        char *text = float_text(value);
        json_t *read = json_loads(text, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
        assert_non_null(read);
        double back = json_real_value(read);
        assert_memory_equal(&back, &value, sizeof value);
        json_decref(read);
        free(text);
    }
}

static void integers_keep_64_bits(void **state) {
    (void)state;
    mu_json j;
    mu_json_init(&j);
    mu_json_begin(&j, NULL, '[');
    mu_json_int(&j, NULL, INT64_MAX);
    mu_json_int(&j, NULL, INT64_MIN);
    mu_json_end(&j, ']');
    assert_string_equal(j.text, "[9223372036854775807,-9223372036854775808]");
    mu_json_free(&j);
}

static void locale_does_not_matter(void **state) {
    (void)state;
    static const char *const names[] = { "de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "nl_NL.UTF-8", "pl_PL.UTF-8" };
    bool found = false;
    for (size_t i = 0; i < sizeof names / sizeof *names && !found; i++)
        found = setlocale(LC_ALL, names[i]) && localeconv()->decimal_point[0] == ',';
    if (!found) {
        setlocale(LC_ALL, "C");
        skip();                         /* no locale with a decimal comma is installed */
    }
    float_as(0.5, "0.5");
    float_as(1.5e-7, "1.5e-7");
    float_as(0.1 + 0.2, "0.30000000000000004");
    setlocale(LC_ALL, "C");
}

static void long_texts_grow(void **state) {
    (void)state;
    mu_json j;
    mu_json_init(&j);
    mu_json_begin(&j, NULL, '[');
    for (int i = 0; i < 50000; i++) mu_json_string(&j, NULL, "seven\n");
    mu_json_end(&j, ']');
    json_t *read = json_loads(j.text, 0, NULL);
    assert_int_equal(json_array_size(read), 50000);
    assert_string_equal(json_string_value(json_array_get(read, 49999)), "seven\n");
    json_decref(read);
    mu_json_free(&j);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_exact),     cmocka_unit_test(strings_are_escaped),
        cmocka_unit_test(bad_utf8_is_replaced), cmocka_unit_test(floats_are_short),
        cmocka_unit_test(floats_read_back),  cmocka_unit_test(integers_keep_64_bits),
        cmocka_unit_test(locale_does_not_matter), cmocka_unit_test(long_texts_grow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
