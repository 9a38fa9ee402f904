/* safetensors: what is written is read back; dtypes and rounding; files that break a rule of the format are refused. */
#include "base/base.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static char folder[] = "/tmp/muster-safetensors-XXXXXX";

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return mu_file_remove_tree(folder, NULL) != MU_STATUS_OK;
}

/* PATH in the folder, heap. */
static char *in_folder(const char *name) { return mu_format("%s/%s", folder, name); }

static void put(const char *name, const void *data, size_t bytes) {
    char *path = in_folder(name);
    assert_int_equal(mu_file_replace(path, data, bytes, NULL), MU_STATUS_OK);
    free(path);
}

/* A file with this header, whose length is written as `claimed` (-1: the true one), and so many bytes of data. */
static void put_file(const char *name, const char *header, int64_t claimed, int64_t data) {
    size_t n = strlen(header);
    uint64_t length = claimed < 0 ? n : (uint64_t)claimed;
    unsigned char *all = mu_alloc(8 + n + (size_t)data, 1);
    for (int i = 0; i < 8; i++) all[i] = (unsigned char)(length >> 8 * i);
    memcpy(all + 8, header, n);
    put(name, all, 8 + n + (size_t)data);
    free(all);
}

static void refused_at(const char *name, mu_status status, const char *words) {
    mu_safetensors *s;
    mu_error e = { 0 };
    char *path = name ? in_folder(name) : mu_strdup(folder);
    if (mu_safetensors_open(&s, path, &e) != status || !strstr(e.text, words)) fail_msg("expected \"%s\", got %d: %s", words, (int)e.status, e.text);
    assert_null(s);
    free(path);
}

static void refused(const char *header, int64_t data, const char *words) {
    put_file("bad.safetensors", header, -1, data);
    refused_at("bad.safetensors", MU_STATUS_DATA, words);
}

static mu_safetensors *opened(const char *name) {
    mu_safetensors *s;
    mu_error e = { 0 };
    char *path = name ? in_folder(name) : mu_strdup(folder);
    if (mu_safetensors_open(&s, path, &e) != MU_STATUS_OK) fail_msg("%s", e.text);
    free(path);
    return s;
}

#define ONE(dtype, shape, offsets) "{\"a\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static void good_headers_are_read(void **state) {
    (void)state;
    static const struct { const char *header; int64_t data; int tensors; } cases[] = {
        { "{}", 0, 0 },
        { "{}   \n ", 0, 0 },
        { "{\"__metadata__\":{\"format\":\"pt\",\"x\":\"\"}}", 0, 0 },
        { ONE("F32", "[2,3]", "[0,24]"), 24, 1 },
        { ONE("F32", "[]", "[0,4]"), 4, 1 },
        { ONE("BF16", "[0,7]", "[0,0]"), 0, 1 },
        { ONE("F4", "[4]", "[0,2]"), 2, 1 },
        { ONE("U64", "[1,1,1,1,1,1,1,1]", "[0,8]"), 8, 1 },
        /* the order of names is not that of offsets; tensors without values in between */
        { "{ \"b\" : {\"shape\":[2], \"data_offsets\" : [4,8],\"dtype\":\"F16\"} , \"z\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[4,4]},"
          " \"a\\u00e9\\n\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8, 3 },
        { "{\"\\ud83d\\ude00\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, 1 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_file("good.safetensors", cases[i].header, -1, cases[i].data);
        mu_safetensors *s = opened("good.safetensors");
        assert_int_equal(mu_safetensors_count(s), cases[i].tensors);
        if (i == 8) assert_non_null(mu_safetensors_find(s, "a\xc3\xa9\n"));
        if (i == 9) assert_non_null(mu_safetensors_find(s, "\xf0\x9f\x98\x80"));
        assert_null(mu_safetensors_find(s, "none"));
        mu_safetensors_close(s);
    }
}

static void broken_headers_are_refused(void **state) {
    (void)state;
    refused("", 0, "does not begin with {");
    refused(" {}", 0, "does not begin with {");
    refused("[]", 0, "does not begin with {");
    refused("{", 0, "too early");
    refused("{}x", 0, "text after the header's }");
    refused("{} {}", 0, "text after the header's }");
    refused("{\"a\":1}", 0, "expected '{'");
    refused("{\"a\":{}}", 0, "without dtype, shape or data_offsets");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "without dtype, shape or data_offsets");
    refused("{a:{}}", 0, "expected '\"'");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},}", 4, "expected a key");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "a key other than");
    refused("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "a duplicate key");
    refused(ONE("F33", "[1]", "[0,4]"), 4, "unknown dtype");
    refused(ONE("F32", "[1.0]", "[0,4]"), 4, "expected an integer");
    refused(ONE("F32", "[1e0]", "[0,4]"), 4, "expected an integer");
    refused(ONE("F32", "[01]", "[0,4]"), 4, "expected an integer");
    refused(ONE("F32", "[-1]", "[0,4]"), 4, "expected an integer");
    refused(ONE("F32", "[1 1]", "[0,4]"), 4, "expected ','");
    refused(ONE("F32", "[1,]", "[0,4]"), 4, "expected an integer");
    refused(ONE("F32", "[1]", "[0,4,8]"), 4, "expected ']'");
    refused(ONE("F32", "[1]", "[4,0]"), 4, "end before they begin");
    refused(ONE("F32", "[2]", "[0,4]"), 4, "do not match dtype and shape");
    refused(ONE("F4", "[3]", "[0,2]"), 2, "do not match dtype and shape");
    refused(ONE("F32", "[99999999999999999999]", "[0,4]"), 4, "above 2^63 - 1");
    refused(ONE("F32", "[4294967296,4294967296]", "[0,4]"), 4, "overflows 64 bits");
    refused(ONE("F64", "[4611686018427387904]", "[0,0]"), 0, "overflows 64 bits");
    refused(ONE("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "more than 8 dimensions");
    refused(ONE("F32", "[1]", "[0,4]"), 3, "truncated");
    refused(ONE("F32", "[1]", "[0,4]"), 5, "but the file has 5 bytes of data");
    refused(ONE("F32", "[1]", "[1,5]"), 5, "a hole from 0");
    refused("{}", 1, "but the file has 1 bytes of data");
    refused("{\"a\\x\":{}}", 0, "unknown escape");
    refused("{\"a\\u0000\":{}}", 0, "a NUL character");
    refused("{\"\\ud800\":{}}", 0, "surrogate");
    refused("{\"\\ud800\\u0041\":{}}", 0, "surrogate");
    refused("{\"\\u12g4\":{}}", 0, "hexadecimal");
    refused("{\"a\xff\":{}}", 0, "not UTF-8");
    refused("{\"a\n\":{}}", 0, "a control character");
    refused("{\"a", 0, "ends within a string");
    refused("{\"__metadata__\":{\"format\":1}}", 0, "expected '\"'");
    refused("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ twice");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 3, "overlaps");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "overlaps");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[3,5]}}", 5, "a hole from 2");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}", 4, "is there twice");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}", 4, "is there twice");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "tensor a is there twice");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[4,5]}}", 5, "tensor a is there twice");
}

static void broken_lengths_are_refused(void **state) {
    (void)state;
    static const char *const others[][2] = { { "version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS" }, { "<!DOCTYPE html>\n<html>", "a page of HTML" },
                                             { "<!doctype html><html>", "a page of HTML" }, { "<html lang=en>", "a page of HTML" }, { "<HTML>\n<head>", "a page of HTML" } };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        put("other.safetensors", others[i][0], strlen(others[i][0]));
        refused_at("other.safetensors", MU_STATUS_DATA, others[i][1]);
    }
    put("short.safetensors", "1234567", 7);
    refused_at("short.safetensors", MU_STATUS_DATA, "too few");
    put_file("long.safetensors", "{}", 3, 0);
    refused_at("long.safetensors", MU_STATUS_DATA, "truncated");
    put_file("long.safetensors", "{}", 100000001, 0);
    refused_at("long.safetensors", MU_STATUS_DATA, "at most 100000000");
    put_file("long.safetensors", "{}", INT64_MAX, 0);
    refused_at("long.safetensors", MU_STATUS_DATA, "at most 100000000");
    put_file("long.safetensors", "{}", 0, 0);
    refused_at("long.safetensors", MU_STATUS_DATA, "does not begin with {");
    refused_at("none.safetensors", MU_STATUS_NOINPUT, "No such file");
}

/* A header of 20 MB that lists nothing but tensors without values: memory stays near the size of the text. */
static void hostile_headers_take_little_memory(void **state) {
    (void)state;
    enum { N = 600000 };
    size_t room = (size_t)N * 64, at = 1;
    char *text = mu_alloc(room, 1);
    text[0] = '{';
    for (int i = 0; i < N; i++)
        at += (size_t)snprintf(text + at, room - at, "%s\"%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", i ? "," : "", i);
    text[at++] = '}', text[at] = '\0';
    int64_t before = mu_memory_peak();
    refused(text, 0, "more than 524288 tensors");
#ifndef __SANITIZE_ADDRESS__     /* which keeps freed memory for a while */
    assert_true(mu_memory_peak() - before < INT64_C(256) << 20);
#endif
    (void)before;
    memset(text + 1, '[', at - 2);
    memcpy(text, "{\"a\":", 5);
    refused(text, 0, "expected '{'");
    free(text);
}

static const float values[] = { 0, -0.0f, 1, -1.5f, 0x1p-149f, 0x1.fffffep127f, 1.00390625f, 1.01171875f, 3.14159274f, INFINITY };
enum { N_VALUES = sizeof values / sizeof *values };

static void written_files_are_read(void **state) {
    (void)state;
    const mu_safetensor list[] = {
        { .name = "empty", .dtype = MU_SAFETENSORS_F32, .n_dims = 2, .shape = { 0, 3 } },
        { .name = "f32", .dtype = MU_SAFETENSORS_F32, .n_dims = 2, .shape = { 2, N_VALUES / 2 } },
        { .name = "bf16 \"é\"", .dtype = MU_SAFETENSORS_BF16, .n_dims = 1, .shape = { N_VALUES } },
        { .name = "scalar", .dtype = MU_SAFETENSORS_F32, .n_dims = 0 },
        { .name = "end", .dtype = MU_SAFETENSORS_BF16, .n_dims = 1, .shape = { 0 } },
    };
    /* bf16 of 1.00390625 (half way, to even: down) is 1, of 1.01171875 (half way, up) 1.015625 */
    const float rounded[] = { 0, -0.0f, 1, -1.5f, 0, INFINITY, 1, 1.015625f, 3.140625f, INFINITY };
    for (int64_t shard = 1; shard <= 1000; shard = shard * 5 + 20) { /* several files, then one */
        char *out = mu_format("%s/out-%" PRId64, folder, shard);
        float back[N_VALUES], one = 7;
        mu_safetensors *s;
        assert_int_equal(mu_file_make_dirs(out, NULL), MU_STATUS_OK);
        mu_safetensors_writer *w = mu_safetensors_writer_new(out, list, 5, shard);
        mu_status status = mu_safetensors_write(w, values, 3, NULL);
        for (int i = 3; i < N_VALUES; i++) assert_int_equal(mu_safetensors_write(w, &values[i], 1, NULL), MU_STATUS_OK);
        if (status == MU_STATUS_OK) status = mu_safetensors_write(w, values, N_VALUES, NULL);
        if (status == MU_STATUS_OK) status = mu_safetensors_write(w, &one, 1, NULL);
        assert_int_equal(mu_safetensors_writer_finish(w, status, NULL), MU_STATUS_OK);
        assert_int_equal(mu_safetensors_open(&s, out, NULL), MU_STATUS_OK);
        assert_int_equal(mu_safetensors_count(s), 5);
        const mu_safetensor *t = mu_safetensors_find(s, "f32");
        assert_int_equal(t->n_dims, 2);
        assert_int_equal(t->shape[1], N_VALUES / 2);
        assert_int_equal(mu_safetensors_read(s, t, 0, N_VALUES, back, NULL), MU_STATUS_OK);
        assert_memory_equal(back, values, sizeof values);
        assert_int_equal(mu_safetensors_read(s, mu_safetensors_find(s, "bf16 \"é\""), 2, N_VALUES - 2, back, NULL), MU_STATUS_OK);
        assert_memory_equal(back, rounded + 2, sizeof rounded - 2 * sizeof *rounded);
        assert_int_equal(mu_safetensors_read(s, mu_safetensors_find(s, "scalar"), 0, 1, back, NULL), MU_STATUS_OK);
        assert_true(back[0] == 7);
        mu_safetensors_close(s);
        free(out);
    }
}

/* Every half is read exactly: compared with its definition. */
static void halves_are_exact(void **state) {
    (void)state;
    enum { N = 65536 };
    char *header = mu_format("{\"a\":{\"dtype\":\"F16\",\"shape\":[%d],\"data_offsets\":[0,%d]}} ", N, 2 * N);
    size_t n = strlen(header);
    unsigned char *all = mu_alloc(8 + n + 2 * N, 1);
    all[0] = (unsigned char)n;
    memcpy(all + 8, header, n);
    for (int i = 0; i < N; i++) all[8 + n + 2 * (size_t)i] = (unsigned char)i, all[9 + n + 2 * (size_t)i] = (unsigned char)(i >> 8);
    put("half.safetensors", all, 8 + n + 2 * N);
    float *x = mu_alloc(N, sizeof *x);
    mu_safetensors *s = opened("half.safetensors");
    assert_int_equal(mu_safetensors_read(s, mu_safetensors_at(s, 0), 0, N, x, NULL), MU_STATUS_OK);
    for (int i = 0; i < N; i++) {
        int exponent = i >> 10 & 31, fraction = i & 1023;
        double wanted = exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY)
                        : exponent     ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        assert_true(isnan(wanted) ? isnan(x[i]) : (double)x[i] == (i & 0x8000 ? -wanted : wanted));
        assert_int_equal(!!signbit(x[i]), i >> 15);
    }
    mu_safetensors_close(s);
    free(x);
    free(all);
    free(header);
}

static void other_dtypes_are_named(void **state) {
    (void)state;
    float x;
    mu_error e;
    put_file("f8.safetensors", ONE("F8_E4M3", "[4]", "[0,4]"), -1, 4);
    mu_safetensors *s = opened("f8.safetensors");
    assert_int_equal(mu_safetensors_read(s, mu_safetensors_at(s, 0), 0, 1, &x, &e), MU_STATUS_DATA);
    assert_non_null(strstr(e.text, "tensor a has dtype F8_E4M3"));
    mu_safetensors_close(s);
}

#define A4 "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}"
#define B4 "{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}"
static void put_text(const char *name, const char *text) { put(name, text, strlen(text)); }

static void folders_and_indices(void **state) {
    (void)state;
    static const char index[] = "model.safetensors.index.json";
    char *old = mu_strdup(folder);
    strcpy(folder, "/tmp/muster-safetensors-XXXXXX");
    assert_non_null(mkdtemp(folder));
    refused_at(NULL, MU_STATUS_NOINPUT, "no *.safetensors file");
    put_file("1.safetensors", A4, -1, 4);
    put_file("2.safetensors", B4, -1, 4);
    put_text("other.txt", "");
    mu_safetensors *s = opened(NULL); /* all files */
    assert_int_equal(mu_safetensors_count(s), 2);
    assert_string_equal(mu_safetensors_at(s, 1)->name, "b");
    assert_non_null(strstr(mu_safetensors_file(s, mu_safetensors_at(s, 1)), "/2.safetensors"));
    mu_safetensors_close(s);
    put_text(index, "{\"metadata\":{\"total_size\":8.0,\"x\":[true,null,{}]},\"weight_map\":{\"b\":\"2.safetensors\",\"a\":\"1.safetensors\"}}\n");
    mu_safetensors_close(opened(NULL));
    static const struct { const char *text, *words; } broken[] = {
        { "{}", "no weight_map" },
        { "[]", "expected '{'" },
        { "{\"weight_map\":{\"a\":\"1.safetensors\"},\"weight_map\":{}}", "weight_map twice" },
        { "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"1.safetensors\"}}", "tensor b is not in 1.safetensors" },
        { "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\",\"c\":\"2.safetensors\"}}", "tensor c is not in" },
        { "{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"1.safetensors\"}}", "a is there twice" },
        { "{\"weight_map\":{\"a\":\"../1.safetensors\"}}", "a file name" },
        { "{\"weight_map\":{\"a\":\"\"}}", "a file name" },
        { "{\"weight_map\":{\"a\":7}}", "expected '\"'" },
        { "{\"weight_map\":{\"a\":\"1.safetensors\"}} x", "text after the last }" },
        { "{\"metadata\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]", "nested too deeply" },
    };
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        put_text(index, broken[i].text);
        refused_at(NULL, MU_STATUS_DATA, broken[i].words);
    }
    put_text(index, "{\"weight_map\":{\"a\":\"none.safetensors\"}}");
    refused_at(NULL, MU_STATUS_NOINPUT, "none.safetensors");
    put_file("2.safetensors", A4, -1, 4);
    put_text(index, "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}");
    refused_at(NULL, MU_STATUS_DATA, "tensor a is in");
    put_file("1.safetensors", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}}", -1, 4);
    put_text(index, "{\"weight_map\":{\"a\":\"1.safetensors\"}}");
    refused_at(NULL, MU_STATUS_DATA, "is not in the index");
    put_file("model.safetensors", "{}", -1, 0); /* comes first, as in Hugging Face's loader */
    s = opened(NULL);
    assert_int_equal(mu_safetensors_count(s), 0);
    mu_safetensors_close(s);
    assert_int_equal(mu_file_remove_tree(folder, NULL), MU_STATUS_OK);
    strcpy(folder, old);
    free(old);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_headers_are_read),    cmocka_unit_test(broken_headers_are_refused),
        cmocka_unit_test(broken_lengths_are_refused), cmocka_unit_test(hostile_headers_take_little_memory),
        cmocka_unit_test(written_files_are_read),   cmocka_unit_test(halves_are_exact),
        cmocka_unit_test(other_dtypes_are_named),   cmocka_unit_test(folders_and_indices),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
