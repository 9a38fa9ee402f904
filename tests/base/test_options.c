/* Options from a table of its own: each type, defaults, files, overrides, suggestions, dump and help. */
#include "base/base.h"

#include <fcntl.h>
#include <inttypes.h>
#include <locale.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

typedef struct {
    int64_t count;
    double rate;
    bool flag;
    mu_field_STRING name;
    int shape;
    uint32_t toppings;
    double pair[2];
    mu_option_domains texts;
    mu_option_domain_ints slices;
    mu_option_names eaters;
    mu_option_phases days;
    int64_t other_count;
} bakery;

#define FIELD(f) offsetof(bakery, f)
static const mu_option table[] = {
    { "oven", "count", MU_OPTION_INT, FIELD(count), "8", -5, 9007199254740992.0, NULL, "loaves", MU_USE_FREE },
    { "oven", "rate", MU_OPTION_FLOAT, FIELD(rate), "0.25", 0, 1e6, NULL, "loaves | hour", MU_USE_FREE },
    { "oven", "flag", MU_OPTION_BOOL, FIELD(flag), "true", 0, 0, NULL, "hot", MU_USE_FREE },
    { "bread", "name", MU_OPTION_STRING, FIELD(name), "rye", 0, 0, NULL, "of the bread", MU_USE_FREE },
    { "bread", "shape", MU_OPTION_CHOICE, FIELD(shape), "round", 0, 0, "round|long|flat", "of the bread", MU_USE_FREE },
    { "bread", "toppings", MU_OPTION_CHOICES, FIELD(toppings), "[seed, oats]", 0, 0, "none|seed|oats", "on it", MU_USE_FREE },
    { "bread", "pair", MU_OPTION_PAIR, FIELD(pair), "[0.5, 1]", 0, 2, NULL, "two of them", MU_USE_FREE },
    { "bread", "texts", MU_OPTION_DOMAINS, FIELD(texts), NULL, 1, 0, NULL, "to read meanwhile", MU_USE_FREE },
    { "bread", "slices", MU_OPTION_DOMAIN_INTS, FIELD(slices), NULL, 0, 9, NULL, "of each", MU_USE_FREE },
    { "bread", "eaters", MU_OPTION_NAMES, FIELD(eaters), NULL, 0, 0, NULL, "of it", MU_USE_FREE },
    { "bread", "days", MU_OPTION_PHASES, FIELD(days), NULL, 0, 0, NULL, "one after the other", MU_USE_FREE },
    { "shop", "count", MU_OPTION_INT, FIELD(other_count), "1", 0, 10, NULL, "shops", MU_USE_FREE },
};
enum { N = sizeof table / sizeof *table };

static mu_options o;
static bakery b;
static mu_error e;

static int setup(void **state) {
    (void)state;
    memset(&e, 0, sizeof e);
    mu_options_init(&o, table, N, &b);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    mu_options_free(&o, &b);
    return 0;
}

static mu_status read_text(const char *text) {
    return mu_options_read_text(&o, &b, "f.yaml", text, strlen(text), &e);
}

static void good(const char *text) {
    mu_status status = read_text(text);
    if (status != MU_STATUS_OK) fail_msg("refused: %s", e.text);
}

static void bad(const char *text, const char *expected) {
    memset(&e, 0, sizeof e);
    assert_int_equal(read_text(text), MU_STATUS_CONFIG);
    assert_int_equal(e.status, MU_STATUS_CONFIG);
    if (!strstr(e.text, expected)) fail_msg("'%s'\nis not in\n%s", expected, e.text);
}

static void override(const char *text) {
    if (mu_options_override(&o, &b, text, &e) != MU_STATUS_OK) fail_msg("refused: %s", e.text);
}

static void bad_override(const char *text, const char *expected) {
    memset(&e, 0, sizeof e);
    assert_int_equal(mu_options_override(&o, &b, text, &e), MU_STATUS_CONFIG);
    assert_ptr_equal(strstr(e.text, "command line: "), e.text);
    if (!strstr(e.text, expected)) fail_msg("'%s'\nis not in\n%s", expected, e.text);
}

static void defaults_come_from_the_table(void **state) {
    (void)state;
    assert_int_equal(b.count, 8);
    assert_true(b.rate == 0.25 && b.flag && b.pair[0] == 0.5 && b.pair[1] == 1);
    assert_string_equal(b.name, "rye");
    assert_int_equal(b.shape, 0);
    assert_int_equal(b.toppings, 6);
    assert_int_equal(b.texts.n, 0);
    assert_false(mu_options_given(&o, "oven", "count"));
}

static void every_type_is_read(void **state) {
    (void)state;
    good("oven:\n  count: -3\n  rate: 1.5e+2\n  flag: false\n"
         "bread: {name: \"a: b\", shape: flat, toppings: none, pair: [1e-3, 2]}\n");
    assert_int_equal(b.count, -3);
    assert_true(b.rate == 150 && !b.flag && b.pair[0] == 0.001 && b.pair[1] == 2);
    assert_string_equal(b.name, "a: b");
    assert_int_equal(b.shape, 2);
    assert_int_equal(b.toppings, 1);
    assert_true(mu_options_given(&o, "oven", "count"));
    assert_false(mu_options_given(&o, "shop", "count"));
    assert_int_equal(o.line[0], 2);
    assert_int_equal(o.column[0], 10);
}

static void domains_are_read(void **state) {
    (void)state;
    good("bread:\n  texts:\n    - domain: old_French-2\n      path: texts/fr\n    - {path: synthetic, domain: x, weight: 0.5}\n");
    assert_int_equal(b.texts.n, 2);
    assert_string_equal(b.texts.list[0].domain, "old_French-2");
    assert_string_equal(b.texts.list[0].path, "texts/fr");
    assert_true(b.texts.list[0].weight == 1 && b.texts.list[1].weight == 0.5);
    override("bread.texts=[{domain: y, path: z}]");
    assert_int_equal(b.texts.n, 1);
    assert_string_equal(b.texts.list[0].domain, "y");
    bad_override("bread.texts=[{domain: y, path: z}, {domain: y, path: w}]", "domain 'y' appears twice");
    assert_int_equal(b.texts.n, 1);             /* the refused list left no trace */
}

static void maps_of_domains_are_read(void **state) {
    (void)state;
    good("bread:\n  slices:\n    old_French-2: 9\n    x: 0\n");
    assert_int_equal(b.slices.n, 2);
    assert_string_equal(b.slices.list[0].domain, "old_French-2");
    assert_true(b.slices.list[0].value == 9 && b.slices.list[1].value == 0);
    override("bread.slices={y: 3}");
    assert_true(b.slices.n == 1 && b.slices.list[0].value == 3);
    bad_override("bread.slices={y: 3, z: 1, y: 2}", "domain 'y' appears twice");
    bad_override("bread.slices={y: 10}", "bread.slices: 10 is out of range; allowed: {DOMAIN: NUMBER, ...} with integers from 0 to 9");
    assert_int_equal(b.slices.n, 1);            /* a refused map leaves no trace */
    override("bread.slices={}");
    assert_int_equal(b.slices.n, 0);
}

static void lists_of_names_are_read(void **state) {
    (void)state;
    assert_int_equal(b.eaters.n, 0);
    good("bread:\n  eaters:\n    - old_French-2\n    - x\n");
    assert_int_equal(b.eaters.n, 2);
    assert_string_equal(b.eaters.list[0], "old_French-2");
    assert_string_equal(b.eaters.list[1], "x");
    override("bread.eaters=y");                 /* a word is a list of one */
    assert_int_equal(b.eaters.n, 1);
    assert_string_equal(b.eaters.list[0], "y");
    bad_override("bread.eaters=[x, z, x]", "bread.eaters: 'x' appears twice; allowed: a list of domains");
    bad_override("bread.eaters=[a b]", "'a b' is not a valid domain name");
    bad_override("bread.eaters={x: 1}", "a map is given");
    assert_int_equal(b.eaters.n, 1);            /* a refused list leaves no trace */
    override("bread.eaters=none");
    assert_int_equal(b.eaters.n, 0);
    override("bread.eaters=[]");
    assert_int_equal(b.eaters.n, 0);
}

static void phases_are_read(void **state) {
    (void)state;
    assert_int_equal(b.days.n, 0);
    good("bread:\n  days:\n    - {until_step: 30, mix: {rye: 1, oats-2: 0.5}}\n    - until_step: 40\n      mix:\n        rye: 0\n"
         "        \"7\": 2\n    - mix: {rye: 3}\n");
    assert_int_equal(b.days.n, 3);
    assert_true(b.days.list[0].until_step == 30 && b.days.list[1].until_step == 40 && b.days.list[2].until_step == 0);
    assert_int_equal(b.days.list[0].n, 2);
    assert_string_equal(b.days.list[0].mix[1].domain, "oats-2");
    assert_true(b.days.list[0].mix[1].weight == 0.5 && b.days.list[1].mix[0].weight == 0 && b.days.list[2].mix[0].weight == 3);
    assert_int_equal(b.days.list[1].mix[1].line, 7);
    assert_int_equal(b.days.list[1].mix[1].column, 9);
    char *text = mu_option_text(&table[10], &b), *dump = mu_options_dump(&o, &b);
    assert_string_equal(text, "[{until_step: 30, mix: {rye: 1, oats-2: 0.5}}, {until_step: 40, mix: {rye: 0, \"7\": 2}}, {mix: {rye: 3}}]");
    assert_non_null(strstr(dump, "\n    - {until_step: 40, mix: {rye: 0, \"7\": 2}}\n"));
    override("bread.days=[{mix: {oats: 1}}]");
    assert_int_equal(b.days.n, 1);
    assert_int_equal(b.days.list[0].mix[0].line, 0);
    good(dump);                                 /* what is written can be read again */
    char *again = mu_option_text(&table[10], &b);
    assert_string_equal(again, text);
    free(again), free(text), free(dump);
    override("bread.days=[]");
    assert_int_equal(b.days.n, 0);
    dump = mu_options_dump(&o, &b);
    good(dump);
    free(dump);
}

static void bad_phases_are_refused(void **state) {
    (void)state;
    override("bread.days=[{mix: {rye: 1}}]");
    static const struct { const char *text, *expected; } cases[] = {
        { "bread: {days: 3}", "f.yaml:1:15: bread.days: a list is needed, each item a map; allowed: a list of {until_step: STEP, mix: {" },
        { "bread: {days: {mix: {a: 1}}}", "f.yaml:1:15: bread.days: a list is needed" },
        { "bread: {days: [3]}", "f.yaml:1:16: bread.days: each item must be a map with until_step and mix" },
        { "bread: {days: [{until_step: 3}]}", "f.yaml:1:16: bread.days: mix is missing" },
        { "bread:\n  days:\n    - mix: {a: 1}\n    - mix: {a: 1}", "f.yaml:3:7: bread.days: until_step is missing; only the last" },
        { "bread: {days: [{until_step: 9, mix: {a: 1}}, {until_step: 9, mix: {a: 1}}]}",
          "f.yaml:1:46: bread.days: until_step 9 must be greater than that of the phase before, 9" },
        { "bread: {days: [{until_step: 0, mix: {a: 1}}]}", "f.yaml:1:29: bread.days: 0 is out of range; allowed: an integer from 1 to" },
        { "bread: {days: [{until_step: 1e3, mix: {a: 1}}]}", "'1e3' is not an integer (write 1000)" },
        { "bread: {days: [{until: 3, mix: {a: 1}}]}", "f.yaml:1:17: bread.days: unknown key 'until'; did you mean 'until_step'?" },
        { "bread: {days: [{mix: {a: 1}, mix: {a: 1}}]}", "mix appears twice" },
        { "bread: {days: [{mix: [a, b]}]}", "f.yaml:1:22: bread.days: mix must be a map" },
        { "bread: {days: [{mix: {}}]}", "the mix is empty" },
        { "bread: {days: [{mix: {a: 0, b: 0}}]}", "f.yaml:1:22: bread.days: all weights are 0: no training data" },
        { "bread: {days: [{mix: {a: -1}}]}", "f.yaml:1:26: bread.days: -1 is out of range; allowed: a number from 0 to" },
        { "bread: {days: [{mix: {a: much}}]}", "'much' is not a number" },
        { "bread: {days: [{mix: {a: }}]}", "the value is empty" },
        { "bread: {days: [{mix: {a: [1]}}]}", "lists and maps nested deeper" },
        { "bread: {days: [{mix: {a: 1, b: 1, a: 2}}]}", "f.yaml:1:35: bread.days: domain 'a' appears twice" },
        { "bread: {days: [{mix: {a/b: 1}}]}", "f.yaml:1:23: bread.days: 'a/b' is not a valid domain name" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) bad(cases[i].text, cases[i].expected);
    bad_override("bread.days=[{mix: {a: -1}}]", "command line: bread.days: -1 is out of range");
    assert_int_equal(b.days.n, 1);              /* a refused list changes nothing */
    assert_string_equal(b.days.list[0].mix[0].domain, "rye");
}

static void harmless_files_are_read(void **state) {
    (void)state;
    good("");
    good("# nothing but a comment\n");
    good("---\n");
    good("--- # one document\noven: {count: 3}\n...\n");
    good("\xEF\xBB\xBF" "oven: {count: 4}\r\n");
    assert_int_equal(b.count, 4);
    good("oven:\n  count: 9007199254740992\n");
    assert_int_equal(b.count, 9007199254740992);
    good("bread: {name: 123}");                 /* a folder may be called so */
    assert_string_equal(b.name, "123");
    good("{oven: {count: 7}, bread: {toppings: seed}}");
    assert_int_equal(b.toppings, 2);
}

static void bad_value_changes_nothing(void **state) {
    (void)state;
    bad("oven: {count: 1e2, rate: 7}", "f.yaml:1:15: oven.count: '1e2' is not an integer (write 100)");
    assert_int_equal(b.count, 8);
    assert_true(b.rate == 7);
    assert_false(mu_options_given(&o, "oven", "count"));
    assert_true(mu_options_refused(&o, "oven", "count"));
    override("oven.count=5");
    assert_false(mu_options_refused(&o, "oven", "count"));
    bad("oven: {count: 9007199254740993}", "9007199254740993 is out of range");
    bad("oven: {count: -6}", "an integer from -5 to 9007199254740992");
    bad("oven: {count: 123456789012345678901234567890}", "out of range");
    bad("bread: {pair: [1, 3]}", "f.yaml:1:19: bread.pair: 3 is out of range; allowed: two numbers from 0 to 2");
    assert_true(b.pair[0] == 0.5);
    bad("bread: {toppings: [seed, seed]}", "'seed' appears twice");
    bad("bread: {toppings: [none, seed]}", "'none' cannot be combined");
    bad("bread: {toppings: []}", "the list is empty");
    bad("bread: {toppings: {a: b}}", "a map is given");
    assert_int_equal(b.toppings, 6);
}

static void hints_say_what_to_write(void **state) {
    (void)state;
    static const struct { const char *text, *hint; } cases[] = {
        { "oven.count=1e6", "(write 1000000)" },      { "oven.count=1_000", "(write 1000)" },
        { "oven.count=0x10", "(write 16)" },          { "oven.count=010", "(write 10)" },
        { "oven.count=+7", "(write 7)" },             { "oven.count=1.0", "(write 1)" },
        { "oven.count=2.5", "(a whole number is needed)" }, { "oven.count=10abc", "('abc' after the number)" },
        { "oven.count=1,000", "no commas" },          { "oven.count='8'", "without quotes" },
        { "oven.count=", "the value is empty" },      { "oven.count=null", "'null' is not an integer" },
        { "oven.count=true", "'true' is not an integer" }, { "oven.count=--", "is not an integer" },
        { "oven.rate=.5", "(write 0.5)" },            { "oven.rate=5.", "(write 5.0)" },
        { "oven.rate=-.5e1", "(write -0.5e1)" },      { "oven.rate=1_0.5", "(write 10.5)" },
        { "oven.rate=3e-4x", "('x' after the number)" }, { "oven.rate=1e", "('e' after the number)" },
        { "oven.rate=nan", "not a finite number" },   { "oven.rate=.nan", "not a finite number" },
        { "oven.rate=-.inf", "not a finite number" }, { "oven.rate=Infinity", "not a finite number" },
        { "oven.rate=1e999", "too large" },           { "oven.rate=1e-999", "too small" },
        { "oven.rate=0,5", "no commas" },             { "oven.rate=-1", "a number from 0 to 1000000" },
        { "oven.flag=yes", "(write true)" },          { "oven.flag=Off", "(write false)" },
        { "oven.flag=True", "(write true)" },         { "oven.flag=1", "(write true)" },
        { "oven.flag=maybe", "not a boolean" },       { "oven.flag='true'", "without quotes" },
        { "bread.shape=rund", "did you mean 'round'?" }, { "bread.shape=Long", "did you mean 'long'?" },
        { "bread.shape=cube", "round, long or flat" }, { "bread.shape=[round]", "a list is given" },
        { "bread.name=[a]", "a list is given" },      { "bread.name=~", "empty" },
        { "bread.name=a: b", "a map is given" },      { "bread.name=\"a\\nb\"", "a line break" },
        { "bread.name=\"a\\0b\"", "NUL" },
        { "bread.name=\"a\\u2028b\"", "a line break" },            { "bread.pair=3", "a single value is given" },
        { "bread.pair=[1]", "has 1 value, not 2" },   { "bread.pair=[1, 2, 3]", "has 3 values, not 2" },
        { "bread.texts=x", "a list is needed" },      { "bread.texts=[]", "the list is empty" },
        { "bread.texts=[x]", "must be a map" },       { "bread.texts=[{domain: x}]", "path is missing" },
        { "bread.texts=[{path: x}]", "domain is missing" },
        { "bread.texts=[{domain: x y, path: z}]", "'x y' is not a valid domain name" },
        { "bread.texts=[{domain: x, path: z, weight: 0}]", "greater than 0" },
        { "bread.texts=[{domain: x, path: z, wieght: 1}]", "did you mean 'weight'?" },
        { "bread.texts=[{domain: x, path: z, path: z}]", "path appears twice" },
        { "bread.texts=[{domain: x, path: }]", "path must be" },
        { "bread.texts=[[x]]", "must be a map" },     { "bread.slices=[x]", "a list is given" },
        { "bread.slices=3", "a single value is given" }, { "bread.slices={x: a}", "'a' is not an integer" },
        { "bread.slices={x y: 1}", "'x y' is not a valid domain name" },
        { "bread.texts=[[[[x]]]]", "nested deeper" },   { "oven.count=*x", "aliases" },
        { "oven.count=&x 3", "anchors" },             { "oven.count=!!int 3", "tags" },
        { "oven.count=[", "YAML: " },                 { "oven.cuont=3", "did you mean 'count'?" },
        { "ovne.count=3", "did you mean 'oven'?" },   { "count=3", "did you mean 'oven.count'?" },
        { "oven.count", "section.key=value" },        { "--oven.count=3", "section.key=value" },
        { "oven.shape=flat", "'shape' belongs to section bread" }, { "", "section.key=value" },
        { "=", "section.key=value" },                 { ".=", "unknown section ''" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) bad_override(cases[i].text, cases[i].hint);
    assert_int_equal(b.count, 8);
    assert_true(b.rate == 0.25 && b.flag && b.pair[0] == 0.5);
}

static void long_values_are_refused(void **state) {
    (void)state;
    char text[800] = "bread.name=", name[600];
    memset(name, 'x', sizeof name);
    name[511] = '\0';
    strcat(text, name);
    override(text);
    assert_int_equal(strlen(b.name), 511);
    strcat(text, "x");
    bad_override(text, "512 bytes are too long");
    bad_override("oven.count=1234567890123456789012345678901234567890123456789012345678901234567890", "...");
}

static void files_of_another_kind_are_refused(void **state) {
    (void)state;
    static const char nul[] = "oven:\n  count: 3\0\n";
    assert_int_equal(mu_options_read_text(&o, &b, "f.yaml", nul, sizeof nul - 1, &e), MU_STATUS_CONFIG);
    assert_non_null(strstr(e.text, "f.yaml:2:11: a NUL byte"));
    bad("oven:\n  # caf\xE9\n", "f.yaml:2:8: byte 0xe9 is not UTF-8");
    bad("\xFF\xFEo", "f.yaml:1:1: the file is UTF-16");
    bad("oven: \x01", "control character 0x01");
    bad("oven:\n  é: x\xC2\x90\n", "f.yaml:2:7: YAML: control characters are not allowed");
    bad("oven: {count: 3}\n--- \noven: {}\n", "f.yaml:2:1: a second YAML document");
    bad("- a\n", "f.yaml:1:1: a configuration is a map of sections");
    bad("oven count\n", "f.yaml:1:1: a configuration is a map of sections");
    char *large = mu_alloc((1 << 20) + 2, 1);
    memset(large, '#', (1 << 20) + 1);
    bad(large, "f.yaml: more than 1 MiB");
    large[1 << 20] = '\0';
    good(large);
    free(large);
}

static void errors_are_collected_and_capped(void **state) {
    (void)state;
    char text[4096] = "oven:\n";
    for (int i = 0; i < 15; i++) strcat(text, "  zzz: 1\n");
    bad(text, "f.yaml:16:3: unknown key 'zzz'");
    assert_null(strstr(e.text, "further errors"));
    for (int i = 0; i < 15; i++) strcat(text, "  zzz: 1\n");
    bad(text, "f.yaml:21:3: unknown key 'zzz' in section oven; its keys are count, rate, flag\nfurther errors are not shown");
    assert_null(strstr(e.text, "f.yaml:22:"));
    bad_override("oven.count=x", "oven.count");
    assert_int_equal(mu_options_override(&o, &b, "oven.count=x", NULL), MU_STATUS_CONFIG);
}

static void syntax_error_comes_last(void **state) {
    (void)state;
    bad("oven:\n  count: x\nbread:\n  name: \"a\n", "f.yaml:2:10: oven.count: 'x' is not an integer");
    const char *last = strrchr(e.text, '\n');
    assert_non_null(last);
    assert_non_null(strstr(last, "f.yaml:5:1: YAML: found unexpected end of stream, while scanning a quoted scalar"
                                 " that begins in line 4"));
    assert_true(mu_options_refused(&o, "shop", "count"));       /* it may stand behind the error */
    bad("oven:\n\tcount: 3\n", "f.yaml:2:1: YAML: found character that cannot start any token");
    bad("a: {b: {c: {d: {e: {f: 1}}}}}", "f.yaml:1:20: lists and maps nested deeper");
}

static void complaints_know_their_place(void **state) {
    (void)state;
    mu_error c = { 0 };
    good("oven:\n  rate: 3\n  count: 4\n");
    override("oven.count=5");
    assert_int_equal(mu_options_complain(&o, &c, "oven", "rate", "%d is odd", 3), MU_STATUS_CONFIG);
    assert_int_equal(mu_options_complain(&o, &c, "oven", "count", "too many"), MU_STATUS_CONFIG);
    assert_int_equal(mu_options_complain(&o, &c, "shop", "count", "too few"), MU_STATUS_CONFIG);
    assert_string_equal(c.text, "f.yaml:2:9: oven.rate: 3 is odd\ncommand line: oven.count: too many\n"
                                "f.yaml: shop.count: too few");
}

static char *path_in(const char *folder, const char *name) {
    return mu_format("%s/%s", folder, name);
}

static void missing_files_are_named(void **state) {
    (void)state;
    char folder[] = "/tmp/muster-options-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *there = path_in(folder, "small.yaml"), *missing = path_in(folder, "smal.yaml");
    char *wrong_folder = path_in(folder, "small.yamll/x/y");
    FILE *f = fopen(there, "w");
    fputs("oven: {count: 6}\n", f);
    fclose(f);
    assert_int_equal(mu_options_read_file(&o, &b, there, &e), MU_STATUS_OK);
    assert_int_equal(b.count, 6);
    assert_int_equal(mu_options_read_file(&o, &b, missing, &e), MU_STATUS_NOINPUT);
    assert_int_equal(e.status, MU_STATUS_NOINPUT);
    assert_non_null(strstr(e.text, missing));
    assert_non_null(strstr(e.text, "did you mean '"));
    assert_non_null(strstr(e.text, there));
    char *near = mu_suggest_path(wrong_folder);
    assert_string_equal(near, there);
    free(near);
    assert_null(mu_suggest_path("/"));
    assert_null(mu_suggest_path(""));
    memset(&e, 0, sizeof e);
    assert_int_equal(mu_options_read_file(&o, &b, folder, &e), MU_STATUS_NOINPUT);
    assert_non_null(strstr(e.text, "directory"));
    assert_int_equal(chdir(folder), 0);                 /* a relative path is shown in full */
    memset(&e, 0, sizeof e);
    assert_int_equal(mu_options_read_file(&o, &b, "smal.yaml", &e), MU_STATUS_NOINPUT);
    assert_non_null(strstr(e.text, missing));
    assert_non_null(strstr(e.text, "did you mean 'small.yaml'?"));
    int fd = open("large", O_CREAT | O_WRONLY, 0600);
    assert_int_equal(ftruncate(fd, (off_t)1 << 40), 0); /* a terabyte is refused without reading it */
    close(fd);
    memset(&e, 0, sizeof e);
    assert_int_equal(mu_options_read_file(&o, &b, "large", &e), MU_STATUS_CONFIG);
    assert_string_equal(e.text, "large: more than 1 MiB: this is not a configuration");
    unlink("large");
    unlink("small.yaml");
    assert_int_equal(chdir("/"), 0);
    rmdir(folder);
    free(there);
    free(missing);
    free(wrong_folder);
}

/* A pipe is read, as of a shell's <(COMMAND); without a writer it is an error, and does not block. */
static void pipes_and_devices(void **state) {
    (void)state;
    char name[64] = "/tmp/muster-options-XXXXXX";
    assert_int_equal(close(mkstemp(name)) | unlink(name) | mkfifo(name, 0600), 0);
    assert_int_equal(mu_options_read_file(&o, &b, name, &e), MU_STATUS_NOINPUT);
    assert_non_null(strstr(e.text, ": is a pipe into which nothing writes"));
    unlink(name);
    memset(&e, 0, sizeof e);
    assert_int_equal(mu_options_read_file(&o, &b, "/dev/zero", &e), MU_STATUS_NOINPUT);
    assert_non_null(strstr(e.text, "is a device, not a plain file"));
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "oven: {count: 7}\n", 17), 17);
    close(ends[1]);
    snprintf(name, sizeof name, "/dev/fd/%d", ends[0]);
    memset(&e, 0, sizeof e);
    assert_int_equal(mu_options_read_file(&o, &b, name, &e), MU_STATUS_OK);
    assert_int_equal(b.count, 7);
    close(ends[0]);
}

/* Reading a dump gives the same values, also for values that are difficult to write. */
static void dump_reads_back(void **state) {
    (void)state;
    static const char *const names[] = { "", "true", "1e3", "a: b # c", "Zürich/x", "\"q\\", " lead", "runs/a.b-c", "-x", "~",
                                         "no", "[x]", "{", "*a", "'", "0x10", "2024-01-01" };
    override("oven.rate=0.30000000000000004");
    override("bread.texts=[{domain: a, path: 'x y, z', weight: 0.1}, {domain: '7', path: synthetic}]");
    override("bread.slices={a: 3, '7': 0}");
    override("bread.eaters=[a, '7', b-c]");
    override("bread.toppings=[oats]");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        strcpy(b.name, names[i]);
        char *text = mu_options_dump(&o, &b);
        mu_options again;
        bakery copy;
        mu_options_init(&again, table, N, &copy);
        mu_status status = mu_options_read_text(&again, &copy, "dump", text, strlen(text), &e);
        if (status != MU_STATUS_OK) fail_msg("%s\n%s", e.text, text);
        assert_string_equal(copy.name, names[i]);
        for (int k = 0; k < N; k++) {
            char *left = mu_option_text(&table[k], &b), *right = mu_option_text(&table[k], &copy);
            assert_string_equal(left, right);
            assert_true(mu_options_given(&again, table[k].section, table[k].key));
            free(left);
            free(right);
        }
        mu_options_free(&again, &copy);
        free(text);
    }
}

static void texts_are_quoted_where_readers_differ(void **state) {
    (void)state;
    static const char *const plain[] = { "runs/a.b-c", "/data/x", "truest" }, *const quoted[] = { "true", "No", "y", "1e3", "-x", "a b", "" };
    for (size_t i = 0; i < 3 + 7; i++) {
        strcpy(b.name, i < 3 ? plain[i] : quoted[i - 3]);
        char *text = mu_option_text(&table[3], &b);
        char *expected = i < 3 ? mu_strdup(b.name) : mu_format("\"%s\"", b.name);
        assert_string_equal(text, expected);
        free(text);
        free(expected);
    }
}

static void suggestions_are_near(void **state) {
    (void)state;
    static const char *const words[] = { "num_experts", "top_k", "lr", "global_batch_size", "seed" };
    assert_string_equal(mu_suggest("num_expert", words, 5), "num_experts");
    assert_string_equal(mu_suggest("n_experts", words, 5), "num_experts");
    assert_string_equal(mu_suggest("TopK", words, 5), "top_k");
    assert_string_equal(mu_suggest("top-k", words, 5), "top_k");
    assert_string_equal(mu_suggest("tpo_k", words, 5), "top_k");
    assert_string_equal(mu_suggest("batch_size", words, 5), "global_batch_size");
    assert_string_equal(mu_suggest("rl", words, 5), "lr");
    assert_string_equal(mu_suggest("a-B-c-d", (const char *const[]){ "a_b_c_d" }, 1), "a_b_c_d");
    assert_null(mu_suggest("colour", words, 5));
    assert_null(mu_suggest("", words, 5));
    assert_null(mu_suggest("x", words, 5));
    assert_null(mu_suggest("lr", words, 0));
    char longest[200];
    memset(longest, 'x', sizeof longest);
    longest[199] = '\0';
    assert_null(mu_suggest(longest, words, 5));
}

static void help_names_every_option(void **state) {
    (void)state;
    for (int markdown = 0; markdown < 2; markdown++) {
        char *text = mu_options_help(&o, markdown);
        for (int i = 0; i < N; i++) assert_non_null(strstr(text, table[i].key));
        assert_non_null(strstr(text, "must be given"));
        assert_non_null(strstr(text, markdown ? "## bread" : "bread:"));
        assert_non_null(strstr(text, markdown ? "loaves \\| hour" : "loaves | hour"));
        free(text);
    }
}

static void locale_does_not_matter(void **state) {
    (void)state;
    static const char *const names[] = { "de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "nl_NL.UTF-8", "pl_PL.UTF-8" };
    bool found = false;
    for (size_t i = 0; i < sizeof names / sizeof *names && !found; i++)
        found = setlocale(LC_ALL, names[i]) && localeconv()->decimal_point[0] == ',';
    if (!found) {
        setlocale(LC_ALL, "C");
        skip();
    }
    override("oven.rate=0.75");
    assert_true(b.rate == 0.75);
    char *text = mu_option_text(&table[1], &b);
    setlocale(LC_ALL, "C");
    assert_string_equal(text, "0.75");
    free(text);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(defaults_come_from_the_table), TEST(every_type_is_read), TEST(domains_are_read), TEST(maps_of_domains_are_read), TEST(lists_of_names_are_read),
        TEST(phases_are_read), TEST(bad_phases_are_refused),
        TEST(harmless_files_are_read), TEST(bad_value_changes_nothing), TEST(hints_say_what_to_write),
        TEST(long_values_are_refused), TEST(files_of_another_kind_are_refused),
        TEST(errors_are_collected_and_capped), TEST(syntax_error_comes_last), TEST(complaints_know_their_place),
        TEST(missing_files_are_named), TEST(pipes_and_devices), TEST(dump_reads_back), TEST(texts_are_quoted_where_readers_differ), TEST(suggestions_are_near),
        TEST(help_names_every_option), TEST(locale_does_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
