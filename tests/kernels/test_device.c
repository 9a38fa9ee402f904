/* test_device.c - opening devices, their memory, and the guarded and the shape device. */
#include "kernels/kernels.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

static const size_t MIB = (size_t)1 << 20;

static mu_mat floats_at(void *data) { return (mu_mat){ data, MU_DTYPE_F32, 1 }; }

/* Whether accessing this byte kills the process. */
static bool faults(volatile char *byte, bool writes) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        if (writes) *byte = 1;
        else (void)*byte;
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

static void test_open(void **state) {
    (void)state;
    static const char *const kinds[] = { "ref", "cpu", "guarded", "shape", "cpu-base" };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        mu_device *dev = mu_device_open(kinds[i]);
        assert_non_null(dev);
        assert_int_equal(dev->compute, strcmp(kinds[i], "ref") ? MU_DTYPE_F32 : MU_DTYPE_F64);
        assert_int_equal(dev->shape_only, !strcmp(kinds[i], "shape"));
        assert_int_equal(mu_device_bytes(dev), 0);
        mu_device_close(dev);
    }
    mu_device *best = mu_device_open("cpu");
    mu_device *again = mu_device_open(best->name);
    assert_ptr_equal(best->k, again->k);
    mu_device_close(again);
    mu_device_close(best);
    mu_device_close(NULL);
    assert_null(mu_device_open("abacus"));
    assert_null(mu_device_open("cpu-abacus"));
}

static void test_dtypes(void **state) {
    (void)state;
    assert_int_equal(mu_dtype_size(MU_DTYPE_F64), 8);
    assert_int_equal(mu_dtype_size(MU_DTYPE_BF16), 2);
    assert_int_equal(mu_dtype_size(MU_DTYPE_I64), 8);
    assert_string_equal(mu_dtype_name(MU_DTYPE_F32), "f32");
    assert_string_equal(mu_dtype_name(MU_DTYPE_I32), "i32");
}

/* New memory is zero, growing keeps what is there, and the bytes of all ranges are counted. */
static void test_memory(void **state) {
    mu_device *dev = mu_device_open(*state);
    mu_memory *a = mu_memory_new(dev, (size_t)1 << 40), *b = mu_memory_new(dev, MIB);
    char in[5] = "here", out[5] = "....";
    mu_memory_commit(a, 100);
    mu_device_read(dev, out, a->region.base + 90, 5);
    assert_memory_equal(out, "\0\0\0\0\0", 5);
    mu_device_write(dev, a->region.base + 90, in, 5);
    int64_t before = mu_device_bytes(dev);
    assert_in_range(before, 100, MIB);
    mu_memory_commit(a, 5 * MIB);
    mu_memory_commit(a, 50);                                    /* never shrinks */
    mu_memory_commit(b, MIB);
    assert_int_equal(mu_device_bytes(dev), 6 * MIB);
    mu_device_read(dev, out, a->region.base + 90, 5);
    assert_string_equal(out, "here");
    mu_device_read(dev, out, a->region.base + 5 * MIB - 5, 5);
    assert_memory_equal(out, "\0\0\0\0\0", 5);
    mu_memory_free(a);
    assert_int_equal(mu_device_bytes(dev), MIB);
    mu_memory_free(b);
    assert_int_equal(mu_device_bytes(dev), 0);
    mu_device_close(dev);
}

/* Host code that touches guarded memory dies; kernels, copies and staging do not. */
static void test_guarded(void **state) {
    (void)state;
    mu_device *dev = mu_device_open("guarded");
    mu_memory *a = mu_memory_new(dev, 64 * MIB), *b = mu_memory_new(dev, 64 * MIB);
    char *x = a->region.base, *y = b->region.base;
    mu_memory_commit(a, 4 * sizeof(float));
    mu_memory_commit(b, 4 * sizeof(float));
    assert_true(faults(x, false) && faults(x, true) && faults(y, false));

    dev->k->fill(dev, 4, 2.5, floats_at(x));
    dev->k->axpy(dev, 4, 2, floats_at(x), floats_at(y));
    float out[4], in[4] = { 1, 2, 3, 4 };
    mu_device_read(dev, out, y, sizeof out);
    for (int i = 0; i < 4; i++) assert_float_equal(out[i], 5, 0);
    assert_true(faults(x, false) && faults(y, false));

    mu_device_write(dev, x, in, sizeof in);
    float *view = mu_device_stage_begin(dev, x, sizeof in, true);
    assert_float_equal(view[2], 3, 0);
    view[2] = 30;
    mu_device_read(dev, out, y, sizeof out);                    /* nested: the view stays open */
    assert_false(faults((char *)view, true));
    mu_device_stage_end(dev, x, sizeof in, true);
    assert_true(faults(x, false) && faults(y, true));
    mu_device_read(dev, out, x, sizeof out);
    assert_float_equal(out[2], 30, 0);

    mu_memory_commit(a, 9 * MIB);                               /* new memory is protected, too */
    assert_true(faults(x + 8 * MIB, false) && faults(x, false));
    mu_memory_free(a);
    mu_memory_free(b);
    mu_device_close(dev);
}

/* A terabyte is counted; not one page is taken. */
static void test_shape(void **state) {
    (void)state;
    mu_device *dev = mu_device_open("shape");
    mu_memory *m = mu_memory_new(dev, (size_t)1 << 40);
    int64_t resident = mu_memory_rss();
    mu_memory_commit(m, ((size_t)1 << 40) - 2 * MIB);
    assert_int_equal(mu_device_bytes(dev), ((int64_t)1 << 40) - 2 * (int64_t)MIB);
    mu_mat x = floats_at(m->region.base);
    dev->k->fill(dev, (int64_t)1 << 37, 1, x);
    dev->k->gemm(dev, false, false, 1 << 18, 1 << 18, 1 << 18, x, x, 0, x);
    char out[3] = "ab", in[3] = "cd";
    mu_device_write(dev, m->region.base, in, 3);
    mu_device_read(dev, out, m->region.base, 3);
    assert_memory_equal(out, "\0\0\0", 3);
    assert_true(faults(m->region.base, false));
    assert_true(mu_memory_rss() - resident < (int64_t)(8 * MIB));
    mu_memory_free(m);
    mu_device_close(dev);
}

/* An operand of another type is fatal, and the line names kernel and types. */
static jmp_buf dead_end;
static char last_words[1024];

static void remember(mu_status status, const char *line) {
    (void)status;
    snprintf(last_words, sizeof last_words, "%s", line);
    longjmp(dead_end, 1);
}

static void test_wrong_type(void **state) {
    (void)state;
    static const char *const kinds[] = { "ref", "cpu-base", "cpu" };
    for (volatile size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        mu_device *dev = mu_device_open(kinds[i]);
        int32_t x[4] = { 0 };
        mu_fatal_handler *old = mu_fatal_set_handler(remember);
        last_words[0] = '\0';
        if (!setjmp(dead_end)) dev->k->fill(dev, 4, 1, (mu_mat){ x, MU_DTYPE_I32, 1 });
        mu_fatal_set_handler(old);
        assert_non_null(strstr(last_words, "_fill: operand is i32, expected f"));
        mu_device_close(dev);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open), cmocka_unit_test(test_dtypes),
        cmocka_unit_test_prestate(test_memory, (void *)(uintptr_t)"cpu"),
        cmocka_unit_test_prestate(test_memory, (void *)(uintptr_t)"ref"),
        cmocka_unit_test_prestate(test_memory, (void *)(uintptr_t)"guarded"),
        cmocka_unit_test(test_guarded), cmocka_unit_test(test_shape), cmocka_unit_test(test_wrong_type),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
