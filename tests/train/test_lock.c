/* test_lock.c - RUN/lock on a file system without locks: one warning, the owner in the file decides, and a job that is no longer
 * the owner stops. Kernel locks are tested in lock.sh. */
#include "train/train.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* Replaces fcntl: file locks fail with this error; 0: they work. */
static int lock_error;
int fcntl(int fd, int command, ...) {
    va_list args;
    va_start(args, command);
    void *argument = va_arg(args, void *);
    va_end(args);
    if (command == F_OFD_SETLK && lock_error) return errno = lock_error, -1;
    return (int)syscall(SYS_fcntl, fd, command, argument);
}

static int warnings;
static void count_warnings(mu_log_level level, const char *line) {
    (void)line;
    warnings += level == MU_LOG_WARNING;
}

static char folder[64], lock_path[80];
static int set_up(void **state) {
    (void)state;
    strcpy(folder, "/tmp/muster-lock-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(lock_path, sizeof lock_path, "%s/lock", folder);
    mu_log_set_sink(count_warnings);
    warnings = 0, lock_error = 0;
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    unlink(lock_path);
    return rmdir(folder);
}

static void write_lock(const char *text) {
    FILE *f = fopen(lock_path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* Another process of this host, alive until the test ends it. */
static pid_t start_other(void) {
    pid_t pid = fork();
    if (pid == 0) pause();
    char host[64] = "", text[160];
    gethostname(host, sizeof host - 1);
    snprintf(text, sizeof text, "process %ld on %s start 0 launcher 0\n", (long)pid, host);
    write_lock(text);
    return pid;
}
static void end_other(pid_t pid) {
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void test_every_error(void **state) {
    (void)state;
    const int errors[] = { ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL, 524 };
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        mu_error e = { 0 };
        mu_lock *l = NULL;
        lock_error = errors[i], warnings = 0;
        assert_int_equal(mu_lock_take(&l, folder, &e), MU_STATUS_OK);
        assert_int_equal(warnings, 1);
        assert_int_equal(mu_lock_check(l, &e), MU_STATUS_OK);
        mu_lock_release(l);
        assert_int_equal(warnings, 1);
    }
}

static void test_owner_of_the_past(void **state) {
    (void)state;
    mu_error e = { 0 };
    mu_lock *l = NULL;
    pid_t other = start_other();
    end_other(other);
    lock_error = ENOLCK;
    assert_int_equal(mu_lock_take(&l, folder, &e), MU_STATUS_OK);
    mu_lock_release(l);
}

static void test_owner_alive(void **state) {
    (void)state;
    mu_error e = { 0 };
    mu_lock *l = NULL;
    pid_t other = start_other();
    lock_error = ENOLCK;
    assert_int_equal(mu_lock_take(&l, folder, &e), MU_STATUS_CONFIG);
    assert_non_null(strstr(e.text, "is in use by another job (process "));
    mu_lock_release(l);
    end_other(other);
    assert_int_equal(warnings, 1);
}

static void test_another_name(void **state) {
    (void)state;
    mu_error e = { 0 };
    mu_lock *l = NULL;
    lock_error = ENOLCK;
    assert_int_equal(mu_lock_take(&l, folder, &e), MU_STATUS_OK);
    write_lock("process 7 on elsewhere start 3 launcher 0\n");
    assert_int_equal(mu_lock_check(l, &e), MU_STATUS_CONFIG);
    assert_non_null(strstr(e.text, "another job (process 7 on elsewhere)"));
    mu_lock_release(l);
}

/* With kernel locks: two holders in one process, since the lock belongs to the open file description. */
static void test_put_back(void **state) {
    (void)state;
    mu_error e = { 0 };
    mu_lock *l = NULL;
    assert_int_equal(mu_lock_take(&l, folder, &e), MU_STATUS_OK);
    assert_int_equal(unlink(lock_path), 0);
    assert_int_equal(mu_lock_check(l, &e), MU_STATUS_OK);
    assert_int_equal(access(lock_path, F_OK), 0);
    assert_int_equal(warnings, 1);
    assert_int_equal(unlink(lock_path), 0);
    write_lock("");         /* taken and released by another job */
    assert_int_equal(mu_lock_check(l, &e), MU_STATUS_CONFIG);
    assert_non_null(strstr(e.text, "was taken over by another job (it has ended since)"));
    mu_lock_release(l);
}

static void make_socket(void) {
    struct sockaddr_un where = { .sun_family = AF_UNIX };
    strcpy(where.sun_path, lock_path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&where, sizeof where), 0);
    close(fd);
}
static void make_link(void) { assert_int_equal(symlink("elsewhere", lock_path), 0); }
static void make_text(void) { write_lock("a text of the user's\n"); }
static const struct { void (*make)(void); const char *says; } others[] = {
    { make_socket, "/lock is a socket" }, { make_link, "/lock is a symbolic link" }, { make_text, "/lock was not written by muster" },
};

/* A file named lock that muster did not write is kept, and is not mistaken for a takeover. */
static void test_foreign(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        mu_error e = { 0 };
        mu_lock *l = NULL;
        struct stat before, after;
        others[i].make();
        assert_int_equal(lstat(lock_path, &before), 0);
        assert_int_equal(mu_lock_take(&l, folder, &e), MU_STATUS_CONFIG);
        assert_non_null(strstr(e.text, others[i].says));
        mu_lock_release(l);
        assert_int_equal(lstat(lock_path, &after), 0);
        assert_true(before.st_ino == after.st_ino && before.st_size == after.st_size);
        assert_int_equal(unlink(lock_path), 0);

        assert_int_equal(mu_lock_take(&l, folder, &e), MU_STATUS_OK);
        assert_int_equal(unlink(lock_path), 0);
        others[i].make();
        assert_int_equal(mu_lock_check(l, &e), MU_STATUS_CONFIG);
        assert_non_null(strstr(e.text, "has a lock file that muster did not write"));
        mu_lock_release(l);
        assert_int_equal(unlink(lock_path), 0);
    }
}

static void test_moved(void **state) {
    (void)state;
    mu_error e = { 0 };
    mu_lock *l = NULL;
    char moved[96], lock[104];
    snprintf(moved, sizeof moved, "%s-moved", folder);
    snprintf(lock, sizeof lock, "%s/lock", moved);
    assert_int_equal(mu_lock_take(&l, folder, &e), MU_STATUS_OK);
    assert_int_equal(rename(folder, moved), 0);
    assert_int_equal(mu_lock_check(l, &e), MU_STATUS_CONFIG);
    assert_non_null(strstr(e.text, "was moved or removed during this job"));
    mu_lock_release(l);
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(unlink(lock), 0);
    assert_int_equal(rmdir(moved), 0);

    assert_int_equal(mu_lock_take(&l, folder, &e), MU_STATUS_OK);
    assert_int_equal(rename(folder, moved), 0);
    assert_int_equal(mkdir(folder, 0700), 0);
    write_lock("process 7 on elsewhere start 3 launcher 0\n");
    assert_int_equal(mu_lock_check(l, &e), MU_STATUS_CONFIG);
    assert_non_null(strstr(e.text, "is a different folder now"));
    mu_lock_release(l);
    assert_int_equal(unlink(lock), 0);
    assert_int_equal(rmdir(moved), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_error, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_owner_of_the_past, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_owner_alive, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_another_name, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_put_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_foreign, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_moved, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
