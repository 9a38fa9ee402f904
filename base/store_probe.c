/* store_probe.c - HDF5 opens a file in a separate process first, so that a file which crashes it crashes nothing else. */
#include "base/base.h"
#include "base/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_SECONDS = 10 };

static char *helper;

void mu_store_set_helper(const char *program) {
    free(helper);
    helper = program ? mu_strdup(program) : NULL;
}

/* Starts the helper; it inherits only the writing end of a pipe, as its standard output. Returns 0 or an errno. */
static int start(const char *path, int output, pid_t *pid) {
    char *arguments[] = { helper, (char *)"probe-hdf5", (char *)path, NULL };
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, output, 1);
    posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addclosefrom_np(&files, 3); /* the lock, sockets of MPI */
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    int error = posix_spawn(pid, helper, &files, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    return error;
}

/* Reads the helper's output until it ends; false when its time is over. */
static bool listen_to(int input, char *said, size_t size) {
    double end = mu_time() + MAX_SECONDS;
    for (size_t n = 0;;) {
        struct pollfd p = { .fd = input, .events = POLLIN };
        double left = end - mu_time();
        int ready = left > 0 ? poll(&p, 1, (int)(1000 * left) + 1) : 0;
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) return false;
        ssize_t got = read(input, said + n, size - 1 - n);
        if (got < 0 && errno == EINTR) continue;
        if (got > 0) n += (size_t)got;
        said[n] = '\0';
        if (got <= 0 || n == size - 1) return true;
    }
}

/* How it ended, as far as known: the host program may ignore SIGCHLD, and then no exit status is kept. */
static const char *ending(pid_t pid, bool in_time, mu_status *status, char text[80]) {
    int code = 0;
    if (!in_time) kill(pid, SIGKILL);
    pid_t ended;
    do ended = waitpid(pid, &code, 0);
    while (ended < 0 && errno == EINTR);
    *status = ended == pid && WIFEXITED(code) && WEXITSTATUS(code) == MU_STATUS_IO ? MU_STATUS_IO
                                                                                   : MU_STATUS_DATA;
    if (!in_time) snprintf(text, 80, "took more than %d seconds", MAX_SECONDS);
    else if (ended == pid && WIFSIGNALED(code))
        snprintf(text, 80, "ended with signal %d (%s)", WTERMSIG(code), strsignal(WTERMSIG(code)));
    else snprintf(text, 80, "ended without a message");
    return text;
}

mu_status mu_store_probe(const char *path, mu_error *e) {
    int ends[2];
    pid_t pid;
    if (!helper) return MU_STATUS_OK;
    if (pipe2(ends, O_CLOEXEC)) return mu_error_set(e, MU_STATUS_IO, "%s: %s", path, strerror(errno));
    int error = start(path, ends[1], &pid);
    close(ends[1]);
    if (error) {
        close(ends[0]);
        return mu_error_set(e, MU_STATUS_IO, "%s: cannot start the helper that checks HDF5 files (%s): %s",
                            path, helper, strerror(error));
    }
    char said[4096] = "", how[80];
    mu_status status;
    bool in_time = listen_to(ends[0], said, sizeof said);
    close(ends[0]);
    ending(pid, in_time, &status, how);
    if (in_time && !strcmp(said, "ok\n")) return MU_STATUS_OK;
    if (!in_time || !said[0])
        return mu_error_set(
            e, MU_STATUS_DATA,
            "%s: cannot be read as HDF5 (damaged?): the helper that reads its metadata %s", path, how);
    said[strcspn(said, "\n")] = '\0';
    return mu_error_set(e, status, "%s", said);
}
