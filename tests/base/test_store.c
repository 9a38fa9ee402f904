/* test_store.c - the store returns the data that was written, and never returns damaged
 * data. */
#include "base/base.h"

#include <setjmp.h>
#include <cmocka.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* HDF5 itself loses memory when it refuses a damaged file; a leak sanitizer, if there is one, asks here. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5"; }

static char folder[64];
static mu_error e;

static const char *in_folder(const char *name) {
    static char path[2][128];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "store-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return mu_file_remove_tree(folder, NULL) ? -1 : 0;
}

static void assert_ok(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

static void assert_error(mu_status status, mu_status expected, const char *text) {
    if (status != expected || e.status != expected)
        fail_msg("status %d, not %d: %s", status, expected, e.text);
    if (!strstr(e.text, text)) fail_msg("no \"%s\" in: %s", text, e.text);
}

/* ------------------------------------------------------------------ a file with a bit of everything */

enum { N_BIG = 300000 };        /* f32: more than one chunk */
static float big[N_BIG];
static double matrix[7][5];
static uint16_t ids[2][3][4][5];
static int32_t ints[3] = { -1, 0, INT32_MAX };
static int64_t longs[2] = { INT64_MIN, (int64_t)1 << 53 | 1 };
static const char text[] = "model:\n  d_model: 64   # \xc3\xa9\n";

static void fill(void) {
    for (int i = 0; i < N_BIG; i++) big[i] = (float)i * 0.37f - 1000;
    for (int i = 0; i < 35; i++) matrix[i / 5][i % 5] = 1.0 / (i + 1);
    for (int i = 0; i < 120; i++) ((uint16_t *)ids)[i] = (uint16_t)(65535 - i);
}

static mu_status write_small(mu_store *s) {
    mu_status status = mu_store_write(s, "/layers/3/mlp/experts/17/up_proj/weight", MU_STORE_F64, 2,
                                      (int64_t[]){ 7, 5 }, matrix, &e);
    if (!status)
        status = mu_store_write(s, "/layers/3/ids", MU_STORE_U16, 4, (int64_t[]){2, 3, 4, 5}, ids, &e);
    if (!status) status = mu_store_write(s, "ints", MU_STORE_I32, 1, (int64_t[]){ 3 }, ints, &e);
    if (!status) status = mu_store_write(s, "longs", MU_STORE_I64, 1, (int64_t[]){ 2 }, longs, &e);
    if (!status) status = mu_store_write(s, "empty", MU_STORE_F32, 3, (int64_t[]){ 4, 0, 2 }, NULL, &e);
    if (!status) status = mu_store_write_text(s, "config", text, &e);
    if (!status) status = mu_store_write_text(s, "nothing", "", &e);
    return status;
}

static mu_status write_file(const char *path, bool with_big) {
    mu_store *s;
    mu_status status = mu_store_create(&s, path, &e);
    if (status) return status;
    status = write_small(s);
    if (!status && with_big) status = mu_store_write(s, "/big", MU_STORE_F32, 1, (int64_t[]){N_BIG}, big, &e);
    mu_error closing;
    mu_status closed = mu_store_close(s, &closing);
    return status ? status : closed;
}

/* Reads everything that can be read. Counts the errors; wrong values without an error are what must
 * never be. */
static int errors_in_small(mu_store *s) {
    double m[7][5];
    uint16_t u[2][3][4][5];
    int32_t i32[3];
    int64_t i64[2];
    float none = 1;
    char *t;
    int errors = 0;
#define READ(name, type, n, shape, want, into)                                                              \
    do {                                                                                                    \
        if (mu_store_read(s, name, type, n, shape, into, &e)) errors++;                                     \
        else assert_memory_equal(into, want, sizeof want);                                                  \
    } while (0)
    READ("/layers/3/mlp/experts/17/up_proj/weight", MU_STORE_F64, 2, ((int64_t[]){ 7, 5 }), matrix, m);
    READ("/layers/3/ids", MU_STORE_U16, 4, ((int64_t[]){ 2, 3, 4, 5 }), ids, u);
    READ("ints", MU_STORE_I32, 1, (int64_t[]){ 3 }, ints, i32);
    READ("longs", MU_STORE_I64, 1, (int64_t[]){ 2 }, longs, i64);
#undef READ
    errors += mu_store_read(s, "empty", MU_STORE_F32, 3, (int64_t[]){ 4, 0, 2 }, &none, &e) != 0;
    assert_true(none == 1);
    if (mu_store_read_text(s, "config", &t, &e)) errors++;
    else assert_string_equal(t, text), free(t);
    if (mu_store_read_text(s, "nothing", &t, &e)) errors++;
    else assert_string_equal(t, ""), free(t);
    return errors;
}

static void test_round_trip(void **state) {
    (void)state;
    const char *path = in_folder("a.h5");
    assert_ok(write_file(path, true));
    mu_store *s;
    assert_ok(mu_store_open(&s, path, &e));
    int errors = errors_in_small(s);
    if (errors) fail_msg("%d errors, the last: %s", errors, e.text);
    float *read = mu_alloc(N_BIG, sizeof *read);
    assert_ok(mu_store_read(s, "big", MU_STORE_F32, 1, (int64_t[]){ N_BIG }, read, &e));
    assert_memory_equal(read, big, sizeof big);
    free(read);
    assert_ok(mu_store_close(s, &e));
}

/* An array in parts, of any size and in any order, is the array; both ways of writing it can be read in both ways. */
static void test_parts(void **state) {
    (void)state;
    enum { N = 5000, CHUNK = 700 };
    uint16_t all[N], back[N];
    for (int i = 0; i < N; i++) all[i] = (uint16_t)(i * 31);
    mu_store *s;
    int64_t n = N, chunk, rows[] = { 50, 4, 25 };
    assert_ok(mu_store_create(&s, in_folder("parts.h5"), &e));
    assert_ok(mu_store_make(s, "/a/parts", MU_STORE_U16, 1, &n, CHUNK, &e));
    assert_ok(mu_store_write_part(s, "/a/parts", MU_STORE_U16, 900, N - 900, all + 900, &e));
    assert_ok(mu_store_write_part(s, "/a/parts", MU_STORE_U16, 0, 900, all, &e));
    assert_ok(mu_store_write_part(s, "/a/parts", MU_STORE_U16, N, 0, NULL, &e));
    assert_ok(mu_store_write(s, "/a/whole", MU_STORE_U16, 1, &n, all, &e));
    assert_ok(mu_store_make(s, "/a/none", MU_STORE_U16, 1, &(int64_t){ 0 }, CHUNK, &e));
    assert_ok(mu_store_make(s, "/a/one", MU_STORE_I64, 1, &(int64_t){ 1 }, CHUNK, &e));
    assert_ok(mu_store_write_part(s, "/a/one", MU_STORE_I64, 0, 1, longs, &e));
    assert_ok(mu_store_make(s, "/a/rows", MU_STORE_U16, 3, rows, 7, &e));
    for (int at = 0; at < 50; at += 20)
        assert_ok(mu_store_write_part(s, "/a/rows", MU_STORE_U16, at, at + 20 < 50 ? 20 : 50 - at, all + at * 100, &e));
    assert_ok(mu_store_make(s, "/a/empty_rows", MU_STORE_U16, 2, (int64_t[]){ 4, 0 }, 7, &e));
    assert_ok(mu_store_write_part(s, "/a/empty_rows", MU_STORE_U16, 0, 4, NULL, &e));
    assert_ok(mu_store_close(s, &e));
    assert_ok(mu_store_open(&s, in_folder("parts.h5"), &e));
    assert_ok(mu_store_chunk(s, "/a/parts", &chunk, &e));
    assert_int_equal(chunk, CHUNK);
    assert_ok(mu_store_chunk(s, "/a/none", &chunk, &e));
    assert_int_equal(chunk, 1);
    assert_ok(mu_store_read(s, "/a/parts", MU_STORE_U16, 1, &n, back, &e));
    assert_memory_equal(back, all, sizeof all);
    memset(back, 0, sizeof back);
    for (int at = 0; at < N; at += 123)
        assert_ok(mu_store_read_part(s, "/a/whole", MU_STORE_U16, at, at + 123 < N ? 123 : N - at, back + at, &e));
    assert_memory_equal(back, all, sizeof all);
    memset(back, 0, sizeof back);
    assert_ok(mu_store_read(s, "/a/rows", MU_STORE_U16, 3, rows, back, &e));
    assert_memory_equal(back, all, sizeof all);
    assert_error(mu_store_read_part(s, "/a/rows", MU_STORE_U16, 0, 1, back, &e), MU_STATUS_DATA,
                 "expected u16 of one dimension, found u16 [50, 4, 25]");
    assert_ok(mu_store_read_part(s, "/a/none", MU_STORE_U16, 0, 0, back, &e));
    assert_error(mu_store_read_part(s, "/a/one", MU_STORE_U16, 0, 1, back, &e), MU_STATUS_DATA,
                 "expected u16 of one dimension, found i64 [1]");
    assert_error(mu_store_read_part(s, "/a/absent", MU_STORE_U16, 0, 1, back, &e), MU_STATUS_DATA, "not in the file");
    assert_ok(mu_store_close(s, &e));
}

static void test_shape_and_has(void **state) {
    (void)state;
    assert_ok(write_file(in_folder("a.h5"), false));
    mu_store *s;
    assert_ok(mu_store_open(&s, in_folder("a.h5"), &e));
    mu_store_type type;
    int n;
    int64_t shape[4];
    assert_ok(mu_store_shape(s, "/layers/3/ids", &type, &n, shape, &e));
    assert_int_equal(type, MU_STORE_U16);
    assert_int_equal(n, 4);
    assert_memory_equal(shape, ((int64_t[]){ 2, 3, 4, 5 }), sizeof shape);
    assert_ok(mu_store_shape(s, "empty", &type, &n, shape, &e));
    assert_int_equal(n, 3);
    assert_memory_equal(shape, ((int64_t[]){ 4, 0, 2 }), 3 * sizeof *shape);
    assert_true(mu_store_has(s, "/layers/3/ids") && mu_store_has(s, "layers/3/ids") &&
                mu_store_has(s, "ints"));
    assert_true(mu_store_has(s, "/layers/3"));
    assert_false(mu_store_has(s, "/layers/4/ids"));
    assert_false(mu_store_has(s, "ints/below"));
    assert_ok(mu_store_close(s, &e));
}

static void test_conversion(void **state) {
    (void)state;
    mu_store *s;
    double d[3] = { 0.1, -2.5, 1e30 }, d_back[3];
    float f[3] = { 0.1f, -2.5f, 1e30f }, f_back[3];
    assert_ok(mu_store_create(&s, in_folder("c.h5"), &e));
    assert_ok(mu_store_write(s, "d", MU_STORE_F64, 1, (int64_t[]){ 3 }, d, &e));
    assert_ok(mu_store_write(s, "f", MU_STORE_F32, 1, (int64_t[]){ 3 }, f, &e));
    assert_ok(mu_store_write(s, "i", MU_STORE_I32, 1, (int64_t[]){ 3 }, ints, &e));
    assert_ok(mu_store_close(s, &e));
    assert_ok(mu_store_open(&s, in_folder("c.h5"), &e));
    assert_ok(mu_store_read(s, "d", MU_STORE_F32, 1, (int64_t[]){ 3 }, f_back, &e));
    assert_ok(mu_store_read(s, "f", MU_STORE_F64, 1, (int64_t[]){ 3 }, d_back, &e));
    for (int i = 0; i < 3; i++) assert_true(f_back[i] == (float)d[i] && d_back[i] == (double)f[i]);
    assert_error(mu_store_read(s, "i", MU_STORE_F64, 1, (int64_t[]){3}, d_back, &e), MU_STATUS_DATA,
                 "i32 [3]");
    assert_error(mu_store_read(s, "i", MU_STORE_I64, 1, (int64_t[]){3}, d_back, &e), MU_STATUS_DATA,
                 "i64 [3]");
    assert_error(mu_store_read(s, "f", MU_STORE_I32, 1, (int64_t[]){3}, d_back, &e), MU_STATUS_DATA,
                 "f32 [3]");
    assert_ok(mu_store_close(s, &e));
}

static void test_mismatch(void **state) {
    (void)state;
    assert_ok(write_file(in_folder("a.h5"), false));
    mu_store *s;
    double m[64];
    char *t;
    assert_ok(mu_store_open(&s, in_folder("a.h5"), &e));
    const char *name = "/layers/3/mlp/experts/17/up_proj/weight";
    assert_error(mu_store_read(s, name, MU_STORE_F64, 2, (int64_t[]){ 5, 7 }, m, &e), MU_STATUS_DATA,
                 "expected f64 [5, 7], found f64 [7, 5]");
    assert_non_null(strstr(e.text, "a.h5"));
    assert_non_null(strstr(e.text, name));
    assert_error(mu_store_read(s, name, MU_STORE_F64, 1, (int64_t[]){ 35 }, m, &e), MU_STATUS_DATA, "[35]");
    assert_error(mu_store_read(s, name, MU_STORE_F64, 2, (int64_t[]){7, 0}, m, &e), MU_STATUS_DATA, "[7, 0]");
    assert_error(mu_store_read(s, "absent", MU_STORE_F64, 1, (int64_t[]){3}, m, &e), MU_STATUS_DATA,
                 "not in");
    assert_error(mu_store_read(s, "layers", MU_STORE_F64, 1, (int64_t[]){3}, m, &e), MU_STATUS_DATA,
                 "layers");
    assert_error(mu_store_read_text(s, "ints", &t, &e), MU_STATUS_DATA, "not a text");
    assert_null(t);
    assert_ok(mu_store_close(s, &e));
}

static void test_no_such_file(void **state) {
    (void)state;
    mu_store *s;
    assert_error(mu_store_open(&s, in_folder("absent.h5"), &e), MU_STATUS_NOINPUT, "No such file");
    assert_null(s);
    assert_error(mu_store_open(&s, folder, &e), MU_STATUS_NOINPUT, "is a directory");
    assert_ok(mu_file_replace(in_folder("junk.h5"), "this is no HDF5 file", 20, &e));
    assert_error(mu_store_open(&s, in_folder("junk.h5"), &e), MU_STATUS_DATA, "junk.h5");
    assert_error(mu_store_create(&s, in_folder("no/such/x.h5"), &e), MU_STATUS_IO, "x.h5");
    assert_null(s);
}

/* Two writings of the same content give the same bytes: no time stamps, no left-over memory. */
static void test_reproducible(void **state) {
    (void)state;
    char first[33], second[33];
    int64_t bytes;
    assert_ok(write_file(in_folder("a.h5"), true));
    assert_ok(mu_file_hash(in_folder("a.h5"), first, &bytes, &e));
    sleep(1);
    assert_ok(write_file(in_folder("b.h5"), true));
    assert_ok(mu_file_hash(in_folder("b.h5"), second, &bytes, &e));
    assert_string_equal(first, second);
}

/* ------------------------------------------------------------------ damage */

/* Opens and reads the bytes as a store; how many of the reads (or the opening) failed. */
static int errors_of(const char *bytes, size_t n) {
    const char *path = in_folder("damaged.h5");
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    mu_store *s;
    mu_status status = mu_store_open(&s, path, &e);
    if (status) {
        assert_int_equal(status, MU_STATUS_DATA);
        return 1;
    }
    int errors = errors_in_small(s);
    assert_ok(mu_store_close(s, &e));
    return errors;
}

static void test_flips(void **state) {
    (void)state;
    char *bytes;
    size_t n;
    int noticed = 0;
    assert_ok(write_file(in_folder("a.h5"), false));
    assert_ok(mu_file_read(in_folder("a.h5"), 1 << 24, &bytes, &n, &e));
    assert_int_equal(errors_of(bytes, n), 0);
    mu_rng rng = { .seed = 1, .purpose = MU_RNG_TEST };
    for (uint64_t i = 0; i < 300; i++) {
        size_t at = mu_rng_u32(&rng, 2 * i) % n;
        char flip = (char)(1 << mu_rng_u32(&rng, 2 * i + 1) % 8);
        bytes[at] ^= flip;
        noticed += errors_of(bytes, n) > 0;     /* asserts that data read without error is right */
        bytes[at] ^= flip;
    }
    free(bytes);
    assert_in_range(noticed, 100, 300);         /* the rest hit unused space */
}

static void test_truncations(void **state) {
    (void)state;
    char *bytes;
    size_t n;
    assert_ok(write_file(in_folder("a.h5"), false));
    assert_ok(mu_file_read(in_folder("a.h5"), 1 << 24, &bytes, &n, &e));
    for (size_t length = 0; length < n; length += length < 64 || length > n - 64 ? 1 : 97)
        assert_in_range(errors_of(bytes, length), 1, 100);
    free(bytes);
}

/* Attributes of a dataset do not change how it is read, and every byte of them is checked. */
static void test_attributes(void **state) {
    (void)state;
    static const char *const keys[] = { "units", "axes", "names", "description" };
    int32_t found[3], given[3] = { 1, 2, 3 };
    mu_store *s;
    assert_ok(mu_store_create(&s, in_folder("a.h5"), &e));
    assert_ok(mu_store_write(s, "/x/y", MU_STORE_I32, 1, (int64_t[]){ 3 }, given, &e));
    assert_ok(mu_store_write(s, "/x/empty", MU_STORE_I32, 1, (int64_t[]){ 0 }, NULL, &e));
    for (int i = 0; i < 4; i++) {
        assert_ok(mu_store_attribute(s, "/x/y", keys[i], "of a length that needs more room than is left, step, layer, expert", &e));
        assert_ok(mu_store_attribute(s, "/x/empty", keys[i], "t", &e));
    }
    assert_ok(mu_store_close(s, &e));
    assert_ok(mu_store_walk(in_folder("a.h5"), &e));
    assert_ok(mu_store_open(&s, in_folder("a.h5"), &e));
    assert_ok(mu_store_read(s, "/x/y", MU_STORE_I32, 1, (int64_t[]){ 3 }, found, &e));
    assert_memory_equal(found, given, sizeof found);
    assert_ok(mu_store_close(s, &e));
}

/* Hostile files (fixtures/make_hostile.py) are refused before HDF5 sees them. */
static void test_hostile(void **state) {
    (void)state;
    static const struct { const char *name, *says; } refused[] = {
        { "soft", "link" },               { "outside", "link" },            { "through", "link" },
        { "two_names", "hard links" },    { "circle", "hard links" },       { "external", "external storage" },
        { "virtual", "not chunked" },     { "contiguous", "not chunked" },  { "compact", "not chunked" },
        { "hole", "missing" },            { "bomb", "missing" },            { "growing", "grow" },
        { "deflate", "filter" },          { "only_deflate", "filter" },     { "shuffle", "filter" },
        { "half", "type" },               { "signed_byte", "type" },        { "unsigned", "type" },
        { "compound", "type" },           { "text", "type" },               { "odd_float", "type" },
        { "five_dimensions", "5" },       { "scalar", "dimensions" },       { "null", "dimensions" },
        { "fill_value", "fill value" },   { "attribute", "attribute" },     { "named_type", "kind 3 with flags" },
        { "deep", "more than 64 deep" },          { "old_format", "superblock of version 0" },
        { "version_1_8", "superblock of version 2" },
    };
    mu_store *s;
    char path[256];
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        snprintf(path, sizeof path, MUSTER_FIXTURES "/hostile/%s.h5", refused[i].name);
        assert_error(mu_store_open(&s, path, &e), MU_STATUS_DATA, refused[i].says);
        assert_non_null(strstr(e.text, path));
        assert_non_null(strstr(e.text, ": byte "));
        assert_null(s);
    }
}

/* All that h5py may write in the store's format: either byte order, no checksum, pages of chunks, many names. */
static void test_foreign_but_good(void **state) {
    (void)state;
    static const char *const good[] = { "good", "big_endian", "no_checksum", "with_times", "many/last" };
    mu_store *s;
    float read[4];
    uint16_t pages[1100];
    int32_t chunks[7][10];
    assert_ok(mu_store_open(&s, MUSTER_FIXTURES "/hostile/good.h5", &e));
    for (int k = 0; k < 5; k++) {
        assert_ok(mu_store_read(s, good[k], MU_STORE_F32, 1, (int64_t[]){ 4 }, read, &e));
        for (int i = 0; i < 4; i++) assert_true(read[i] == (float)i);
    }
    assert_ok(mu_store_read(s, "pages", MU_STORE_U16, 1, (int64_t[]){ 1100 }, pages, &e));
    for (int i = 0; i < 1100; i++) assert_int_equal(pages[i], i);
    assert_ok(mu_store_read(s, "chunks", MU_STORE_I32, 2, (int64_t[]){ 7, 10 }, chunks, &e));
    for (int i = 0; i < 70; i++) assert_int_equal(chunks[i / 10][i % 10], i);
    assert_ok(mu_store_read(s, "empty", MU_STORE_F32, 2, (int64_t[]){ 4, 0 }, NULL, &e));
    assert_ok(mu_store_read(s, "empty_too", MU_STORE_F32, 1, (int64_t[]){ 0 }, NULL, &e));
    assert_ok(mu_store_close(s, &e));
    assert_ok(mu_store_walk(MUSTER_FIXTURES "/hostile/good.h5", &e));
}

/* As many names in a group as a layer may have experts: a heap of several levels. */
static void test_many_names(void **state) {
    (void)state;
    enum { N = 40000 };
    mu_store *s;
    int32_t x;
    char name[32];
    assert_ok(mu_store_create(&s, in_folder("many.h5"), &e));
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "group/%d", i);
        assert_ok(mu_store_write(s, name, MU_STORE_I32, 1, (int64_t[]){ 1 }, &i, &e));
    }
    assert_ok(mu_store_close(s, &e));
    assert_ok(mu_store_open(&s, in_folder("many.h5"), &e));
    assert_ok(mu_store_read(s, "group/39999", MU_STORE_I32, 1, (int64_t[]){ 1 }, &x, &e));
    assert_int_equal(x, 39999);
    assert_ok(mu_store_close(s, &e));
    assert_int_equal(unlink(in_folder("many.h5")), 0);
}

/* Uses this script as the helper: the store survives its crashes and reports them. */
static void expect_helper(const char *script, mu_status expected, const char *says) {
    const char *path = in_folder("helper.sh");
    char text[256];
    mu_store *s;
    snprintf(text, sizeof text, "#!/bin/sh\n%s\n", script);
    assert_ok(mu_file_replace(path, text, strlen(text), &e));
    assert_int_equal(chmod(path, 0700), 0);
    assert_ok(write_file(in_folder("a.h5"), false));        /* a new file: it is checked again */
    mu_store_set_helper(path);
    mu_status status = mu_store_open(&s, in_folder("a.h5"), &e);
    mu_store_set_helper(NULL);
    if (expected) assert_error(status, expected, says);
    else {
        assert_ok(status);
        assert_ok(mu_store_close(s, &e));
    }
}

static void test_helper(void **state) {
    (void)state;
    expect_helper("[ $1 = probe-hdf5 ] && [ -f $2 ] && echo ok", MU_STATUS_OK, "");
    expect_helper("kill -FPE $$", MU_STATUS_DATA, "a.h5: cannot be read as HDF5 (damaged?): the helper that reads its metadata ended "
                                                  "with signal 8");
    expect_helper("exit 3", MU_STATUS_DATA, "ended without a message");
    expect_helper("echo a.h5: bad; exit 65", MU_STATUS_DATA, "a.h5: bad");
    expect_helper("echo a.h5: no disk; exit 74", MU_STATUS_IO, "a.h5: no disk");
    signal(SIGCHLD, SIG_IGN);                               /* its exit status is not available */
    expect_helper("echo ok", MU_STATUS_OK, "");
    expect_helper("kill -SEGV $$", MU_STATUS_DATA, "ended without a message");
    signal(SIGCHLD, SIG_DFL);
    mu_store *s;
    mu_store_set_helper("/no/such/program");
    assert_ok(write_file(in_folder("a.h5"), false));
    assert_error(mu_store_open(&s, in_folder("a.h5"), &e), MU_STATUS_IO, "/no/such/program");
    mu_store_set_helper("/bin/false");
    assert_error(mu_store_open(&s, in_folder("a.h5"), &e), MU_STATUS_DATA, "without a message");
    mu_store_set_helper(NULL);
    assert_ok(mu_store_open(&s, in_folder("a.h5"), &e));
    assert_ok(mu_store_close(s, &e));
    mu_store_set_helper("/bin/false");                      /* it was found sound: not asked again */
    assert_ok(mu_store_open(&s, in_folder("a.h5"), &e));
    assert_ok(mu_store_close(s, &e));
    mu_store_set_helper(NULL);
}

/* A kill in the middle of writing leaves a file that does not open. */
static void test_killed(void **state) {
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        mu_store *s;
        if (mu_store_create(&s, in_folder("killed.h5"), &e) || write_small(s)) _exit(1);
        kill(getpid(), SIGKILL);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    mu_store *s;
    assert_error(mu_store_open(&s, in_folder("killed.h5"), &e), MU_STATUS_DATA, "killed.h5");
}

/* ------------------------------------------------------------------ no space left */

/* In a child: files may grow to `limit` bytes and no more. Exit 0: written; 1: the right error; after
 * it, the same name can be written again. */
static int write_under_limit(rlim_t limit) {
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){ limit, old.rlim_max };
    setrlimit(RLIMIT_FSIZE, &small);
    mu_status status = write_file(in_folder("full.h5"), true);
    if (!status) return 0;
    if (status != MU_STATUS_IO || !strstr(e.text, "no space left") || !strstr(e.text, "full.h5")) {
        fprintf(stderr, "limit %ld: status %d: %s\n", (long)limit, status, e.text);
        return 2;
    }
    setrlimit(RLIMIT_FSIZE, &old);
    if (write_file(in_folder("full.h5"), true)) {
        fprintf(stderr, "limit %ld: writing again: %s\n", (long)limit, e.text);
        return 3;
    }
    return 1;
}

/* Space comes back between the failed write and the closing: the file is still not to be trusted. */
static int close_after_failure(void) {
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){ 200000, old.rlim_max };
    setrlimit(RLIMIT_FSIZE, &small);
    mu_store *s;
    if (mu_store_create(&s, in_folder("full.h5"), &e)) return 2;
    mu_status written = mu_store_write(s, "/big", MU_STORE_F32, 1, (int64_t[]){ N_BIG }, big, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    mu_status again = mu_store_write(s, "/ints", MU_STORE_I32, 1, (int64_t[]){ 3 }, ints, &e);
    mu_status closed = mu_store_close(s, &e);
    return written == MU_STATUS_IO && again == MU_STATUS_IO && closed == MU_STATUS_IO ? 0 : 3;
}

static void test_failure_stays(void **state) {
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        exit(close_after_failure());
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void test_disk_full(void **state) {
    (void)state;
    int full = 0;
    struct stat st;
    assert_ok(write_file(in_folder("full.h5"), true));
    assert_int_equal(stat(in_folder("full.h5"), &st), 0);
    rlim_t limits[40], n = 0;
    for (rlim_t limit = 0; limit < (rlim_t)st.st_size; limit += limit < 8192 ? 512 : 65536)
        limits[n++] = limit;
    limits[n++] = (rlim_t)st.st_size - 1;
    for (rlim_t i = 0; i < n; i++) {
        pid_t child = fork();
        if (child == 0) {
            signal(SIGXFSZ, SIG_IGN);
            exit(write_under_limit(limits[i]));     /* exit, not _exit: exit handlers run */
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (!WIFEXITED(status)) fail_msg("limit %ld: signal %d", (long)limits[i], WTERMSIG(status));
        assert_in_range(WEXITSTATUS(status), 0, 1);
        full += WEXITSTATUS(status);
    }
    assert_int_equal(full, n);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_parts),  cmocka_unit_test(test_shape_and_has),
        cmocka_unit_test(test_conversion),  cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_no_such_file), cmocka_unit_test(test_reproducible),
        cmocka_unit_test(test_flips),       cmocka_unit_test(test_truncations),
        cmocka_unit_test(test_attributes), cmocka_unit_test(test_hostile),     cmocka_unit_test(test_foreign_but_good),
        cmocka_unit_test(test_many_names),  cmocka_unit_test(test_helper),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_disk_full),   cmocka_unit_test(test_failure_stays),
    };
    fill();
    return cmocka_run_group_tests_name("store", tests, make_folder, remove_folder);
}
