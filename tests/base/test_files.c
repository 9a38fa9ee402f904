/* test_files.c - files that survive a kill, folders, fingerprints. */
#include "base/base.h"

#include <setjmp.h>
#include <cmocka.h>
#include <dirent.h>
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

/* Names in the folder that begin so. */
static int count_names(const char *start) {
    int n = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *d; dir && (d = readdir(dir));) n += !strncmp(d->d_name, start, strlen(start));
    if (dir) closedir(dir);
    return n;
}

static void test_replace_and_read(void **state) {
    (void)state;
    const char *path = in_folder("a");
    assert_ok(mu_file_replace(path, "one", 3, &e));
    assert_content(path, "one");
    assert_ok(mu_file_replace(path, "", 0, &e));
    assert_content(path, "");
    assert_int_equal(count_names("a"), 1);
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
    assert_error(mu_file_read(in_folder("absent"), 9, &data, &bytes, &e), MU_STATUS_NOINPUT, "No such file");
    assert_error(mu_file_read(folder, 1 << 20, &data, &bytes, &e), MU_STATUS_NOINPUT, "directory");
    assert_null(data);
}

/* A pipe or a device is refused at once, although this pipe has no writer. */
static void test_not_plain(void **state) {
    (void)state;
    char *data, hex[33];
    size_t bytes;
    int64_t size;
    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    alarm(20);
    assert_error(mu_file_read(in_folder("pipe"), 100, &data, &bytes, &e), MU_STATUS_NOINPUT, "pipe: is a pipe, not");
    assert_error(mu_file_read("/dev/zero", 100, &data, &bytes, &e), MU_STATUS_NOINPUT, "zero: is a device, not");
    assert_error(mu_file_hash(in_folder("pipe"), hex, &size, &e), MU_STATUS_NOINPUT, "pipe: is a pipe, not");
    assert_error(mu_file_hash("/dev/zero", hex, &size, &e), MU_STATUS_NOINPUT, "zero: is a device, not");
    assert_error(mu_file_hash("/proc/kmsg", hex, &size, &e), MU_STATUS_NOINPUT, "kmsg");    /* a plain file that waits */
    assert_error(mu_file_read("/proc/kmsg", 1 << 30, &data, &bytes, &e), MU_STATUS_NOINPUT, "kmsg");
    alarm(0);
    assert_ok(mu_file_read("/proc/self/status", 1 << 20, &data, &bytes, &e));   /* a plain file of a size that is not so */
    assert_true(bytes > 0);
    free(data);
}

/* A temporary is a new file under a free name: existing files of other processes are kept. */
static void test_temporary(void **state) {
    (void)state;
    char *first, *second, *taken = mu_format("%s.tmp-%ld", in_folder("b"), (long)getpid());
    assert_ok(mu_file_replace(in_folder("victim"), "keep", 4, &e));
    assert_int_equal(symlink("victim", taken), 0);
    assert_ok(mu_file_temporary(in_folder("b"), &first, &e));
    assert_ok(mu_file_temporary(in_folder("b"), &second, &e));
    assert_string_not_equal(first, taken);
    assert_string_not_equal(first, second);
    assert_content(first, "");
    assert_ok(mu_file_replace(in_folder("b.tmp"), "a user's", 8, &e));
    assert_ok(mu_file_replace(in_folder("b"), "new", 3, &e));
    assert_content(in_folder("victim"), "keep");
    assert_content(in_folder("b.tmp"), "a user's");
    assert_content(in_folder("b"), "new");
    assert_int_equal(unlink(first) | unlink(second) | unlink(taken), 0);
    free(first);
    assert_error(mu_file_temporary(in_folder("no/x"), &first, &e), MU_STATUS_IO, "no/x");
    assert_null(first);
    free(second);
    free(taken);
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
    assert_int_equal(count_names("c"), 1);
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

/* What is there gets a name that nothing had, whether it is a file, a folder or a link that leads nowhere. */
static void test_set_aside(void **state) {
    (void)state;
    char *name;
    assert_ok(mu_file_set_aside(in_folder("absent"), &name, &e));
    assert_null(name);
    assert_int_equal(symlink("nowhere", in_folder("k")), 0);
    assert_ok(mu_file_set_aside(in_folder("k"), &name, &e));
    assert_string_equal(name, in_folder("k.aside"));
    free(name);
    assert_ok(mu_file_make_dirs(in_folder("k"), &e));
    assert_ok(mu_file_set_aside(in_folder("k"), &name, &e));
    assert_string_equal(name, in_folder("k.aside-2"));
    free(name);
    assert_ok(mu_file_replace(in_folder("k"), "file", 4, &e));
    assert_ok(mu_file_set_aside(in_folder("k"), &name, &e));
    assert_content(in_folder("k.aside-3"), "file");
    free(name);
    assert_int_equal(count_names("k"), 3);
    assert_error(mu_file_set_aside(in_folder("k.aside-3/x"), &name, &e), MU_STATUS_IO, "k.aside-3/x");
    assert_null(name);
}

static mu_status write_text(void *context, const char *temporary, mu_error *error) {
    return mu_file_replace(temporary, context, strlen(context), error);
}
static mu_status fail_to_write(void *context, const char *temporary, mu_error *error) {
    (void)!write_text(context, temporary, error);
    return mu_error_set(error, MU_STATUS_IO, "a full disk");
}

/* The new file takes the place of the old one, which is kept; when it cannot be written nothing has changed. */
static void test_rewrite(void **state) {
    (void)state;
    char *aside, first[] = "first", second[] = "second";
    assert_ok(mu_file_rewrite(in_folder("w"), write_text, first, &aside, &e));
    assert_null(aside);
    assert_content(in_folder("w"), "first");
    assert_error(mu_file_rewrite(in_folder("w"), fail_to_write, second, &aside, &e), MU_STATUS_IO, "a full disk");
    assert_null(aside);
    assert_content(in_folder("w"), "first");
    assert_int_equal(count_names("w"), 1);
    assert_ok(mu_file_rewrite(in_folder("w"), write_text, second, &aside, &e));
    assert_content(in_folder("w"), "second");
    assert_string_equal(aside, in_folder("w.aside"));
    assert_content(aside, "first");
    assert_int_equal(count_names("w"), 2);
    free(aside);
    assert_error(mu_file_rewrite(in_folder("no/w"), write_text, first, &aside, &e), MU_STATUS_IO, "no/w");
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
    assert_ok(mu_file_remove_tree(in_folder("p"), &e));     /* removing a missing tree is no error */
}

static void test_inside(void **state) {
    (void)state;
    assert_ok(mu_file_make_dirs(in_folder("in/a"), &e));
    assert_int_equal(symlink("in", in_folder("link")), 0);
    const struct { const char *path, *in; bool inside; } cases[] = {
        { "in/a", "in", true },        { "in", "in", true },              { "in/", "in/.", true },
        { "in", "in/a", false },       { "in/ab", "in/a", false },        { "link/a/new/run", "in/a", true },
        { "in/new", "link", true },    { "in/new/../../x", "in", false }, { "new/./../in/b//", "in", true },
        { "new/sub", "new", true },    { "news", "new", false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (mu_file_is_inside(in_folder(cases[i].path), in_folder(cases[i].in)) != cases[i].inside)
            fail_msg("%s in %s", cases[i].path, cases[i].in);
    assert_true(mu_file_is_inside(in_folder("in"), "/"));
    assert_true(mu_file_is_inside(in_folder("in"), "."));
    assert_false(mu_file_is_inside("/", in_folder("in")));
    assert_false(mu_file_exists(in_folder("new")));
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
    assert_true(mu_file_ends("a.TXT", ".txt") && mu_file_ends(".txt", ".txt"));
    assert_false(mu_file_ends("txt", ".txt") || mu_file_ends("a.txt.gz", ".txt"));
    assert_error(mu_file_hash(in_folder("absent"), hex, &bytes, &e), MU_STATUS_NOINPUT, "absent");
    assert_error(mu_file_hash(folder, hex, &bytes, &e), MU_STATUS_NOINPUT, folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replace_and_read), cmocka_unit_test(test_read_errors),
        cmocka_unit_test(test_not_plain),        cmocka_unit_test(test_temporary),
        cmocka_unit_test(test_failed_replace),   cmocka_unit_test(test_rename),
        cmocka_unit_test(test_set_aside),        cmocka_unit_test(test_rewrite),
        cmocka_unit_test(test_make_and_remove_dirs), cmocka_unit_test(test_inside),
        cmocka_unit_test(test_hash),
    };
    return cmocka_run_group_tests_name("files", tests, make_folder, remove_folder);
}
