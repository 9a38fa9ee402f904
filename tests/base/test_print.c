/* test_print.c - text for terminals: printf's results, with all text from outside escaped. */
#include "base/base.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

MU_PRINTF(1, 2) static const char *format(const char *fmt, ...) {
    static char text[4096];
    va_list args;
    va_start(args, fmt);
    mu_text_vformat(text, sizeof text, fmt, args);
    va_end(args);
    return text;
}

/* Where nothing is harmful the result is printf's, byte for byte. */
#define SAME(...) do { \
        char expected[4096]; \
        snprintf(expected, sizeof expected, __VA_ARGS__); \
        assert_string_equal(format(__VA_ARGS__), expected); \
    } while (0)

static void is_printf(void **state) {
    (void)state;
    SAME("nothing\n");
    SAME("%d %i %5d|%-5d|%05d|%+d|% d", -1, 2, 3, 4, 5, 6, 7);
    SAME("%u %x %X %o %#x %08x", 4000000000u, 255u, 255u, 8u, 255u, 48879u);
    SAME("%ld %lld %lu %llu", -1L, INT64_MIN + 0LL, 1UL, UINT64_MAX + 0ULL);
    SAME("%" PRId64 " %" PRIu64 " %" PRIx64, INT64_MAX, UINT64_MAX, UINT64_MAX);
    SAME("%zu %td %jd %hhd %hd", (size_t)-1, (ptrdiff_t)-5, (intmax_t)9, 3, 4);
    SAME("%*d|%-*d|%*d", 6, 1, 6, 2, -6, 3);
    SAME("%f %.2f %8.3f|%-8.1e|%g %.17g %a %7.2f%%", 1.5, 2.25, 3.125, 1e9, 1e-5, 0.1, 0.5, 99.5);
    SAME("%f", 1.7e308);
    SAME("%.*f %.*e", 3, 1.0, 2, 5.0);
    SAME("%s|%10s|%-10s|%.2s|%.*s|%*s", "abc", "abc", "abc", "abc", 1, "abc", 5, "x");
    SAME("%c%c|%3c|%-3c|", 'a', 'b', 'c', 'd');
    SAME("Zürich %s %%", "Ōsaka 東京 𝄞");
    SAME("%p", (void *)state);
}

static void strings_are_escaped(void **state) {
    (void)state;
    assert_string_equal(format("a\nb\t%s\n", "c\nd\te\r\x1b[31m\x7f"), "a\nb\tc\\nd\\te\\r\\x1b[31m\\x7f\n");
    assert_string_equal(format("%s", "\xff ok \xc3"), "\\xff ok \\xc3");            /* not UTF-8 */
    assert_string_equal(format("%s", "\xc2\x9b" "2J"), "\\xc2\\x9b2J");             /* CSI in one character */
    assert_string_equal(format("%s", "a\xe2\x80\xae" "b"), "a\\xe2\\x80\\xaeb");    /* writes from right to left */
    assert_string_equal(format("%s", "back\\slash"), "back\\slash");
    assert_string_equal(format("[%6s][%-6s]", "\x01", "\x01"), "[  \\x01][\\x01  ]");
    assert_string_equal(format("%c|%.3s", '\a', "ab\x1b" "c"), "\\x07|ab\\x1b");
    mu_error e = { 0 };
    mu_error_set(&e, MU_STATUS_DATA, "%s: damaged\nsee %s", "run\x1b[2J", "a\nb");
    mu_error_add(&e, MU_STATUS_DATA, "%s", "\r");
    assert_string_equal(e.text, "run\\x1b[2J: damaged\nsee a\\nb\n\\r");
    assert_string_equal(format("%s: %-s", "a\n", e.text), "a\\n: run\\x1b[2J: damaged\nsee a\\nb\n\\r");    /* within another */
}

/* Cut where it ends, never in the middle of a character or an escape. */
static void it_fits(void **state) {
    (void)state;
    char text[9];
    for (size_t room = 1; room <= 8; room++) {
        memset(text, 'x', sizeof text);
        mu_text_escape(text, room, "a\x1bü\n", 5, "\n");
        assert_string_equal(text, room < 2 ? "" : room < 6 ? "a" : room < 8 ? "a\\x1b" : "a\\x1bü");
        assert_int_equal(text[room], 'x');
    }
    char small[7];
    mu_text_escape(small, sizeof small, "a\nb\0c", 5, "\n");
    assert_string_equal(small, "a\nb");                             /* \x00 has no room */
    mu_error e = { 0 };
    char *long_text = mu_alloc(20001, 1);
    memset(long_text, 'y', 20000);
    mu_error_set(&e, MU_STATUS_DATA, "%s%d", long_text, 7);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    mu_error_set(&e, MU_STATUS_DATA, "%30000s|", "z");
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    free(long_text);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(is_printf), cmocka_unit_test(strings_are_escaped),
                                        cmocka_unit_test(it_fits) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
