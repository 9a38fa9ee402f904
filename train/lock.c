/* lock.c - RUN/lock: one job works on a run folder.
 *
 * The lock is the kernel's (an open file description lock, which needs the right to write the file; the shared lock of
 * a reader does not count), and is gone when the process ends, however it ends. The file names the holder, and
 * is empty when there is none. A removed file is recreated; when another job was first, or the run folder
 * is gone, this one stops. A file with other content was not written by muster, and is left alone.
 *
 * Where the file system has no locks (some NFS, Lustre) the content alone decides: an owner that is alive on this host
 * keeps others out; otherwise a job that finds another owner in the file stops. */
#include "train/train.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const double PATIENCE = 10;      /* seconds in which processes of a killed job should end */

/* A process. launcher: the mpirun that started it, 0 for none. start: its start time, which a later process with the
 * same pid does not have. */
typedef struct {
    long pid, launcher;
    unsigned long long start;
    char host[MU_HOST_NAME];
} owner;

struct mu_lock {
    int fd;
    bool by_kernel, warned;     /* by_kernel: the kernel holds the lock. warned: that it cannot */
    char *dir, *path;
    dev_t device;               /* of the run folder, with inode: which folder it was */
    ino_t inode;
    owner me;
};

/* ------------------------------------------------------------------ the owner */

/* The start time of a process of this host, in ticks since boot, from /proc/PID/stat; false when there is none. */
static bool look_up(long pid, unsigned long long *start) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    const char *rest = strrchr(text, ')'); /* the name before it may hold anything */
    char state;
    return rest && sscanf(rest + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                          &state, start) == 2 && state != 'Z';
}

static owner myself(void) {
    owner me = { .pid = getpid() };
    mu_host_name(me.host);
    look_up(me.pid, &me.start);
    me.launcher = mu_launcher();
    return me;
}

static int write_owner(const owner *o, char text[256]) {
    return snprintf(text, 256, "process %ld on %s start %llu launcher %ld\n", o->pid, o->host, o->start, o->launcher);
}

/* False for an empty file or one with other content. */
static bool read_owner(int fd, owner *o) {
    char text[256];
    *o = (owner){ 0 };
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    return sscanf(text, "process %ld on %63s start %llu launcher %ld", &o->pid, o->host, &o->start, &o->launcher) >= 2;
}

/* Lock files of muster are empty or begin like this. */
static bool is_foreign(int fd) {
    static const char beginning[8] = "process ";
    char text[sizeof beginning];
    ssize_t n = pread(fd, text, sizeof text, 0);
    return n > 0 && memcmp(text, beginning, (size_t)n);
}

static bool is_here(const owner *o) {
    char here[MU_HOST_NAME];
    mu_host_name(here);
    return !strcmp(o->host, here);
}

static bool is_alive(const owner *o) {
    unsigned long long start;
    return is_here(o) && look_up(o->pid, &start) && (!o->start || o->start == start);
}

/* A rank whose mpirun is gone: it will exit by itself. */
static bool is_orphan(const owner *o) {
    unsigned long long start;
    return is_alive(o) && o->launcher && !look_up(o->launcher, &start);
}

static bool same_owner(const owner *a, const owner *b) {
    return a->pid == b->pid && a->start == b->start && !strcmp(a->host, b->host);
}

/* ------------------------------------------------------------------ taking it */

typedef enum { TAKEN, HELD, MOVED, FAILED } outcome;

/* Is the file that `path` leads to the one that is open? */
static bool is_in_place(int fd, const char *path) {
    struct stat mine, there;
    return !fstat(fd, &mine) && !stat(path, &there) && mine.st_dev == there.st_dev && mine.st_ino == there.st_ino;
}

static outcome ask_kernel(mu_lock *l, int *error) {
    struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    int failed;
    while ((failed = fcntl(l->fd, F_OFD_SETLK, &whole)) && errno == EINTR) {}
    l->by_kernel = !failed;
    if (!failed) return is_in_place(l->fd, l->path) ? TAKEN : MOVED;
    *error = errno;
    struct flock other = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    if (!fcntl(l->fd, F_OFD_GETLK, &other) && other.l_type == F_RDLCK) return FAILED; /* a reader's lock: not a job */
    return *error == EAGAIN || *error == EACCES ? HELD : FAILED;
}

static mu_status say_owner(mu_lock *l, mu_error *e) {
    char text[256];
    int n = write_owner(&l->me, text);
    if (ftruncate(l->fd, 0) || pwrite(l->fd, text, (size_t)n, 0) != n)
        return mu_error_set(e, MU_STATUS_IO, "%s cannot be written: %s", l->path, strerror(errno));
    return MU_STATUS_OK;
}

static mu_status open_file(mu_lock *l, mu_error *e) {
    const char *other = mu_file_not_plain(l->path);
    l->fd = -1;
    if (!other) {
        l->fd = open(l->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
        if (l->fd < 0) return mu_error_set(e, MU_STATUS_IO, "%s cannot be opened: %s", l->path, strerror(errno));
        if (is_foreign(l->fd)) other = "was not written by muster";
    }
    return other ? mu_error_set(e, MU_STATUS_CONFIG, "%s %s, but muster needs this name for its lock; move it away, or"
                                " choose another run.dir", l->path, other)
                 : MU_STATUS_OK;
}

/* One attempt. *holder: the current owner. */
static outcome attempt(mu_lock *l, owner *holder, mu_error *e) {
    int error = 0;
    *holder = (owner){ 0 };
    if (open_file(l, e) != MU_STATUS_OK) {
        if (l->fd >= 0) close(l->fd), l->fd = -1;
        return FAILED;
    }
    outcome got = ask_kernel(l, &error);
    bool known = read_owner(l->fd, holder);
    if (got == FAILED) { /* no file locks, or a reader holds one: the content decides */
        bool reader = error == EAGAIN || error == EACCES;
        if (!l->warned)
            mu_log(MU_LOG_WARNING, "%s %s (%s): a second job on another host cannot be kept out of this run folder",
                   reader ? "another program holds a read lock in" : "no file locks on the file system of",
                   l->dir, strerror(error));
        l->warned = true;
        got = known && is_alive(holder) && !same_owner(holder, &l->me) ? HELD : TAKEN;
    }
    if (got == TAKEN && say_owner(l, e) != MU_STATUS_OK) got = FAILED;
    if (got != TAKEN) close(l->fd), l->fd = -1;
    return got;
}

static mu_status refuse(const mu_lock *l, const owner *holder, mu_error *e) {
    char who[160] = "unknown process";
    if (holder->pid) snprintf(who, sizeof who, "process %ld on %s", holder->pid, holder->host);
    if (is_orphan(holder))
        return mu_error_set(e, MU_STATUS_REQUEUE,
                            "run.dir %s is in use by an orphan of a job whose mpirun was killed (%s); run this again in a"
                            " moment, or kill that process", l->dir, who);
    return mu_error_set(e, MU_STATUS_CONFIG, "run.dir %s is in use by another job (%s); wait for it, or choose another run.dir",
                        l->dir, who);
}

mu_status mu_lock_take(mu_lock **out, const char *dir, mu_error *e) {
    mu_lock *l = *out = mu_alloc(1, sizeof *l);
    *l = (mu_lock){ .fd = -1, .dir = mu_strdup(dir), .path = mu_format("%s/lock", dir), .me = myself() };
    owner holder;
    struct stat st;
    double start = mu_time();
    if (stat(dir, &st)) return mu_error_set(e, MU_STATUS_IO, "%s: %s", dir, strerror(errno));
    l->device = st.st_dev, l->inode = st.st_ino;
    for (bool said = false;;) {
        outcome got = attempt(l, &holder, e);
        double waited = mu_time() - start;
        if (got == TAKEN) return MU_STATUS_OK;
        if (got == FAILED) return e->status;
        if (waited > PATIENCE) return refuse(l, &holder, e);
        if (waited > 1 && !said) {
            mu_log(MU_LOG_INFO, "run.dir %s is in use; waiting up to %.0f s for it", dir, PATIENCE);
            said = true;
        }
        mu_activity_set("waiting for the lock of run.dir", -1, NULL);
        nanosleep(&(struct timespec){ 0, 100000000 }, NULL);
    }
}

typedef enum { ABSENT, MINE, ANOTHERS, FOREIGN } file_owner;

/* The current owner of the file; a job that ended leaves it empty. */
static file_owner look(const mu_lock *l, owner *holder) {
    *holder = (owner){ 0 };
    if (mu_file_not_plain(l->path)) return FOREIGN;
    int fd = open(l->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return errno == ENOENT ? ABSENT : FOREIGN;
    bool known = read_owner(fd, holder), foreign = is_foreign(fd);
    close(fd);
    return foreign ? FOREIGN : known && same_owner(holder, &l->me) ? MINE : ANOTHERS;
}

/* Does the path still lead to the folder in which this job started? */
static bool is_same_folder(const mu_lock *l) {
    struct stat st;
    return !stat(l->dir, &st) && st.st_dev == l->device && st.st_ino == l->inode;
}

static mu_status explain_loss(const mu_lock *l, file_owner found, const owner *holder, mu_error *e) {
    char what[2 * MU_HOST_NAME + 80];
    if (!mu_file_exists(l->dir)) snprintf(what, sizeof what, "was moved or removed during this job");
    else if (!is_same_folder(l))
        snprintf(what, sizeof what, "is a different folder now: the one this job started in was moved or removed");
    else if (found == FOREIGN) snprintf(what, sizeof what, "has a lock file that muster did not write, instead of this job's");
    else if (holder->pid)
        snprintf(what, sizeof what, "was taken over by another job (process %ld on %s), after its lock was removed", holder->pid,
                 holder->host);
    else snprintf(what, sizeof what, "was taken over by another job (it has ended since), after its lock was removed");
    return mu_error_set(e, MU_STATUS_CONFIG, "run.dir %s %s. This job stops and writes nothing more; run it again to resume from"
                        " the newest checkpoint", l->dir, what);
}

mu_status mu_lock_check(mu_lock *l, mu_error *e) {
    owner holder;
    bool in_place = is_in_place(l->fd, l->path);
    if (in_place && l->by_kernel) return MU_STATUS_OK;
    file_owner found = look(l, &holder);
    if (in_place && found == MINE) return MU_STATUS_OK;
    if (!in_place && (found == MINE || found == ABSENT)) {
        int old = l->fd;
        outcome got = attempt(l, &holder, e);
        close(old);
        if (got == TAKEN) {
            mu_log(MU_LOG_WARNING, "%s was removed or replaced during this job; recreated", l->path);
            return MU_STATUS_OK;
        }
        if (got == FAILED && is_same_folder(l)) return e->status;
    }
    return explain_loss(l, found, &holder, e);
}

/* Asks the kernel, which knows of jobs on other hosts, too. Without file locks the content decides; an
 * owner on another host is assumed to be alive. */
mu_lock_state mu_lock_look(const char *dir) {
    char *path = mu_format("%s/lock", dir);
    int fd = mu_file_not_plain(path) ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    free(path);
    if (fd < 0) return MU_LOCK_FREE;
    owner holder;
    struct flock other = { .l_type = F_RDLCK, .l_whence = SEEK_SET };
    bool asked = !fcntl(fd, F_OFD_GETLK, &other), known = read_owner(fd, &holder);
    close(fd);
    if (asked && other.l_type == F_WRLCK) return MU_LOCK_HELD;
    if (!known) return MU_LOCK_FREE;
    return !asked && (is_alive(&holder) || !is_here(&holder)) ? MU_LOCK_HELD : MU_LOCK_ABANDONED;
}

void mu_lock_release(mu_lock *l) {
    if (!l) return;
    if (l->fd >= 0) {
        if (is_in_place(l->fd, l->path)) (void)!ftruncate(l->fd, 0); /* no holder */
        close(l->fd);
    }
    free(l->dir);
    free(l->path);
    free(l);
}
