/* test_files.c - files that survive, folders, fingerprints. */
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

static char folder[64];
static mu_error e;

static const char *in_folder(const char *name) {
    static char path[4][128];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "files-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return mu_file_remove_tree(folder, NULL) || mu_file_exists(folder) ? -1 : 0;
}

static void assert_ok(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

static void assert_error(mu_status status, mu_status expected, const char *text) {
    if (status != expected || e.status != expected)
        fail_msg("status %d, not %d: %s", status, expected, e.text);
    if (!strstr(e.text, text)) fail_msg("no \"%s\" in: %s", text, e.text);
}

static void assert_content(const char *path, const char *expected) {
    char *data;
    size_t bytes;
    assert_ok(mu_file_read(path, 1000, &data, &bytes, &e));
    assert_int_equal(bytes, strlen(expected));
    assert_string_equal(data, expected);        /* and a NUL stands behind it */
    free(data);
}

static void test_replace_and_read(void **state) {
    (void)state;
    const char *path = in_folder("a");
    assert_ok(mu_file_replace(path, "one", 3, &e));
    assert_content(path, "one");
    assert_ok(mu_file_replace(path, "", 0, &e));
    assert_content(path, "");
    assert_false(mu_file_exists(in_folder("a.tmp")));
}

static void test_read_errors(void **state) {
    (void)state;
    char *data;
    size_t bytes;
    assert_ok(mu_file_replace(in_folder("ten"), "0123456789", 10, &e));
    assert_ok(mu_file_read(in_folder("ten"), 10, &data, &bytes, &e));
    free(data);
    assert_error(mu_file_read(in_folder("ten"), 9, &data, &bytes, &e), MU_STATUS_DATA, "ten");
    assert_null(data);
    assert_error(mu_file_read("/dev/zero", 5000, &data, &bytes, &e), MU_STATUS_DATA, "5000");
    assert_error(mu_file_read(in_folder("absent"), 9, &data, &bytes, &e), MU_STATUS_NOINPUT, "No such file");
    assert_error(mu_file_read(folder, 1 << 20, &data, &bytes, &e), MU_STATUS_NOINPUT, "directory");
    assert_null(data);
}

/* A pipe gives its bytes in pieces and has no size. */
static void test_read_pipe(void **state) {
    (void)state;
    const char *path = in_folder("pipe");
    assert_int_equal(mkfifo(path, 0600), 0);
    pid_t child = fork();
    if (child == 0) {
        FILE *f = fopen(path, "w");
        for (int i = 0; f && i < 100000; i++) fputs("0123456789", f);
        _exit(f && fclose(f) == 0 ? 0 : 1);
    }
    char *data;
    size_t bytes;
    assert_ok(mu_file_read(path, 1 << 24, &data, &bytes, &e));
    assert_int_equal(bytes, 1000000);
    assert_memory_equal(data + 999990, "0123456789", 11);
    free(data);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* The temporary is a new file: a stale one goes, and a link in its place is not followed. */
static void test_stale_temporary(void **state) {
    (void)state;
    assert_ok(mu_file_replace(in_folder("victim"), "keep", 4, &e));
    assert_int_equal(symlink("victim", in_folder("b.tmp")), 0);
    assert_ok(mu_file_replace(in_folder("b"), "new", 3, &e));
    assert_content(in_folder("victim"), "keep");
    assert_content(in_folder("b"), "new");
}

static void test_failed_replace(void **state) {
    (void)state;
    assert_error(mu_file_replace(in_folder("no/x"), "1", 1, &e), MU_STATUS_IO, "no/x");
    assert_ok(mu_file_replace(in_folder("c"), "old", 3, &e));
    pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){ 5000, 5000 });
        char data[8000] = { 0 };
        mu_status status = mu_file_replace(in_folder("c"), data, sizeof data, &e);
        _exit(status == MU_STATUS_IO && strstr(e.text, "no space left") ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_content(in_folder("c"), "old");
    assert_false(mu_file_exists(in_folder("c.tmp")));
}

static void test_rename(void **state) {
    (void)state;
    assert_ok(mu_file_make_dirs(in_folder("step.tmp"), &e));
    assert_ok(mu_file_replace(in_folder("step.tmp/x"), "x", 1, &e));
    assert_ok(mu_file_rename(in_folder("step.tmp"), in_folder("step"), &e));
    assert_content(in_folder("step/x"), "x");
    assert_ok(mu_file_sync(in_folder("step"), &e));
    assert_ok(mu_file_sync(in_folder("step/x"), &e));
    assert_error(mu_file_rename(in_folder("absent"), in_folder("y"), &e), MU_STATUS_IO, "absent");
    assert_error(mu_file_sync(in_folder("absent"), &e), MU_STATUS_IO, "absent");
}

static void test_make_and_remove_dirs(void **state) {
    (void)state;
    assert_ok(mu_file_make_dirs(in_folder("p/q/r/"), &e));
    assert_ok(mu_file_make_dirs(in_folder("p/q/r"), &e));
    assert_true(mu_file_exists(in_folder("p/q/r")));
    assert_ok(mu_file_replace(in_folder("p/file"), "f", 1, &e));
    assert_error(mu_file_make_dirs(in_folder("p/file/q"), &e), MU_STATUS_IO, "p/file");
    assert_ok(mu_file_make_dirs(in_folder("outside"), &e));
    assert_ok(mu_file_replace(in_folder("outside/keep"), "k", 1, &e));
    assert_int_equal(symlink("../outside", in_folder("p/link")), 0);
    assert_ok(mu_file_remove_tree(in_folder("p"), &e));
    assert_false(mu_file_exists(in_folder("p")));
    assert_content(in_folder("outside/keep"), "k");
    assert_ok(mu_file_remove_tree(in_folder("p"), &e));     /* what is gone needs no removing */
}

static void test_hash(void **state) {
    (void)state;
    char whole[33], hex[33];
    int64_t bytes;
    mu_hash128_hex("", 0, hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f");      /* as xxhsum -H128 prints it */
    size_t n = 3000001;                                                 /* more than one block */
    char *data = mu_alloc(n, 1);
    for (size_t i = 0; i < n; i++) data[i] = (char)(i * i >> 7);
    mu_hash128_hex(data, n, whole);
    assert_ok(mu_file_replace(in_folder("data"), data, n, &e));
    assert_ok(mu_file_hash(in_folder("data"), hex, &bytes, &e));
    assert_int_equal(bytes, n);
    assert_string_equal(hex, whole);
    data[n / 2] ^= 1;
    mu_hash128_hex(data, n, hex);
    assert_string_not_equal(hex, whole);
    free(data);
    assert_error(mu_file_hash(in_folder("absent"), hex, &bytes, &e), MU_STATUS_NOINPUT, "absent");
    assert_error(mu_file_hash(folder, hex, &bytes, &e), MU_STATUS_NOINPUT, folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replace_and_read), cmocka_unit_test(test_read_errors),
        cmocka_unit_test(test_read_pipe),        cmocka_unit_test(test_stale_temporary),
        cmocka_unit_test(test_failed_replace),   cmocka_unit_test(test_rename),
        cmocka_unit_test(test_make_and_remove_dirs), cmocka_unit_test(test_hash),
    };
    return cmocka_run_group_tests_name("files", tests, make_folder, remove_folder);
}
