/* files.c - files that survive a kill, and their fingerprints. */
#include "base/base.h"
#include "base/internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { BLOCK = 1 << 20 };

const char *mu_io_reason(int error) {
    static _Thread_local char text[128];
    if (error != ENOSPC && error != EDQUOT && error != EFBIG) return strerror(error);
    snprintf(text, sizeof text, "no space left (%s)", strerror(error));
    return text;
}

/* A missing or unreadable file is missing input; an I/O error is a failure. */
static mu_status read_failed(mu_error *e, const char *path) {
    int error = errno;
    return mu_error_set(e, error == EIO ? MU_STATUS_IO : MU_STATUS_NOINPUT, "%s: %s", path, strerror(error));
}

static mu_status write_failed(mu_error *e, const char *path, const char *verb) {
    return mu_error_set(e, MU_STATUS_IO, "%s: cannot be %s: %s", path, verb, mu_io_reason(errno));
}

/* The folder that holds `path`; heap. */
static char *parent_of(const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    while (n > 0 && path[n - 1] != '/') n--;
    while (n > 1 && path[n - 1] == '/') n--;
    return n ? mu_format("%.*s", (int)n, path) : mu_strdup(".");
}

static const char *kind_of(mode_t mode) {
    return S_ISDIR(mode)    ? "is a directory"
           : S_ISFIFO(mode) ? "is a pipe, not a plain file"
           : S_ISSOCK(mode) ? "is a socket, not a plain file"
                            : "is a device, not a plain file";
}

int mu_file_open(const char *path, bool pipe_allowed, int64_t *bytes, const char **reason) {
    struct stat st;
    /* Without O_NONBLOCK, opening a pipe blocks until a writer opens it, possibly for ever. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st)) {
        *reason = strerror(errno);
        return fd < 0 ? -1 : (close(fd), -1);
    }
    *bytes = S_ISREG(st.st_mode) ? st.st_size : -1;
    *reason = *bytes < 0 && !(pipe_allowed && S_ISFIFO(st.st_mode)) ? kind_of(st.st_mode) : NULL;
    /* A pipe's reader may block from here on. A plain file never does, except some in /proc, which fail instead. */
    if (!*reason && *bytes < 0 && fcntl(fd, F_SETFL, 0)) *reason = strerror(errno);
    return *reason ? (close(fd), -1) : fd;
}

static mu_status sync_parent(const char *path, mu_error *e) {
    char *parent = parent_of(path);
    mu_status status = mu_file_sync(parent, e);
    free(parent);
    return status;
}

mu_status mu_file_sync(const char *path, mu_error *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return write_failed(e, path, "opened for fsync");
    struct stat st;
    /* Some file systems do not support fsync of a folder and return EINVAL: nothing more can be done there. */
    bool failed = fsync(fd) && !(errno == EINVAL && !fstat(fd, &st) && S_ISDIR(st.st_mode));
    mu_status status = failed ? write_failed(e, path, "synced") : MU_STATUS_OK;
    close(fd);
    return status;
}

mu_status mu_file_rename(const char *from, const char *to, mu_error *e) {
    if (rename(from, to))
        return mu_error_set(e, MU_STATUS_IO, "%s: cannot be renamed to %s: %s", from, to,
                            mu_io_reason(errno));
    return sync_parent(to, e);
}

/* ------------------------------------------------------------------ whole files */

static bool write_all(int fd, const char *data, size_t bytes) {
    while (bytes > 0) {
        ssize_t n = write(fd, data, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        data += n;
        bytes -= (size_t)n;
    }
    return true;
}

/* Creates PATH.tmp-PID, or the next such name that is free: an existing file belongs to another process.
 * Returns the open file and its name, heap; -1 and NULL on failure. */
static int open_temporary(const char *path, char **name, mu_error *e) {
    enum { TRIES = 1000 };  /* a process of another host with the same id may take the name in between */
    char *suffix = mu_format(".tmp-%ld", (long)getpid());
    int fd = -1;
    *name = NULL;
    for (int i = 0; i < TRIES && fd < 0 && (i == 0 || errno == EEXIST); i++) {
        free(*name);
        *name = mu_file_free_name(path, suffix);
        fd = open(*name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    }
    if (fd < 0) {
        (void)write_failed(e, *name, "created");
        free(*name);
        *name = NULL;
    }
    free(suffix);
    return fd;
}

mu_status mu_file_temporary(const char *path, char **name, mu_error *e) {
    int fd = open_temporary(path, name, e);
    if (fd < 0) return MU_STATUS_IO;
    close(fd);
    return MU_STATUS_OK;
}

mu_status mu_file_replace(const char *path, const void *data, size_t bytes, mu_error *e) {
    char *temporary;
    int fd = open_temporary(path, &temporary, e);
    if (fd < 0) return MU_STATUS_IO;
    mu_status status = MU_STATUS_OK;
    if (!write_all(fd, data, bytes) || fsync(fd)) status = write_failed(e, temporary, "written");
    if (close(fd) && !status) status = write_failed(e, temporary, "closed");
    if (!status) status = mu_file_rename(temporary, path, e);
    if (status) unlink(temporary);
    free(temporary);
    return status;
}

/* Reads to the end into a growing buffer: some files (in /proc) are larger than their reported size. */
static mu_status read_all(int fd, const char *path, size_t limit, size_t expected, char **data, size_t *bytes,
                          mu_error *e) {
    size_t room = expected + 1;
    *data = mu_realloc(NULL, room + 1, 1);
    for (;;) {
        if (*bytes == room) *data = mu_realloc(*data, (room = 2 * room + BLOCK) + 1, 1);
        ssize_t n = read(fd, *data + *bytes, room - *bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return read_failed(e, path);
        if (n == 0) break;
        *bytes += (size_t)n;
        if (*bytes > limit)
            return mu_error_set(e, MU_STATUS_DATA, "%s: larger than %zu bytes", path, limit);
    }
    (*data)[*bytes] = '\0';
    return MU_STATUS_OK;
}

mu_status mu_file_read(const char *path, size_t limit, char **data, size_t *bytes, mu_error *e) {
    *data = NULL;
    *bytes = 0;
    const char *reason;
    int64_t expected;
    int fd = mu_file_open(path, false, &expected, &reason);
    if (fd < 0) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", path, reason);
    mu_status status = MU_STATUS_OK;
    if ((size_t)expected > limit)
        status = mu_error_set(e, MU_STATUS_DATA, "%s: %lld bytes, more than %zu", path, (long long)expected, limit);
    if (!status) status = read_all(fd, path, limit, (size_t)expected, data, bytes, e);
    close(fd);
    if (status) {
        free(*data);
        *data = NULL;
        *bytes = 0;
    }
    return status;
}

bool mu_file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

bool mu_file_ends(const char *path, const char *ending) {
    size_t n = strlen(path), m = strlen(ending);
    return n >= m && !strcasecmp(path + n - m, ending);
}

const char *mu_file_not_plain(const char *path) {
    struct stat st;
    if (lstat(path, &st) || S_ISREG(st.st_mode)) return NULL;
    return S_ISLNK(st.st_mode) ? "is a symbolic link, not a plain file" : kind_of(st.st_mode);
}

char *mu_file_free_name(const char *path, const char *suffix) {
    struct stat st;
    char *name = mu_format("%s%s", path, suffix);
    for (int n = 2; lstat(name, &st) == 0; n++) {
        free(name);
        name = mu_format("%s%s-%d", path, suffix, n);
    }
    return name;
}

/* ------------------------------------------------------------------ keeping the old file */

mu_status mu_file_set_aside(const char *path, char **name, mu_error *e) {
    struct stat st;
    *name = NULL;
    if (lstat(path, &st)) return errno == ENOENT ? MU_STATUS_OK : write_failed(e, path, "set aside");
    *name = mu_file_free_name(path, ".aside");
    mu_status status = mu_file_rename(path, *name, e);
    if (status != MU_STATUS_OK) {
        free(*name);
        *name = NULL;
    }
    return status;
}

/* The same, but `path` also keeps its name if the file system has links. */
static mu_status keep_as_link(const char *path, char **name, mu_error *e) {
    *name = mu_file_free_name(path, ".aside");
    if (!link(path, *name)) return MU_STATUS_OK;
    free(*name);
    return mu_file_set_aside(path, name, e);
}

mu_status mu_file_rewrite(const char *path, mu_status (*write)(void *context, const char *temporary, mu_error *e), void *context,
                          char **aside, mu_error *e) {
    char *temporary, *kept = NULL;
    *aside = NULL;
    mu_status status = mu_file_temporary(path, &temporary, e);
    if (status != MU_STATUS_OK) return status;
    status = write(context, temporary, e);
    if (status == MU_STATUS_OK) status = keep_as_link(path, &kept, e);
    if (status == MU_STATUS_OK) status = mu_file_rename(temporary, path, e);
    if (status == MU_STATUS_OK) *aside = kept;
    else unlink(temporary), free(kept);
    free(temporary);
    return status;
}

/* ------------------------------------------------------------------ folders */

static mu_status make_dir(const char *path, mu_error *e) {
    struct stat st;
    if (mkdir(path, 0777) == 0) return sync_parent(path, e);
    if (errno == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return MU_STATUS_OK;
    if (errno == EEXIST) errno = ENOTDIR;
    return write_failed(e, path, "created as a folder");
}

mu_status mu_file_make_dirs(const char *path, mu_error *e) {
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return MU_STATUS_OK;
    char *part = mu_strdup(path);
    mu_status status = MU_STATUS_OK;
    for (char *slash = part + (*part == '/'); !status && (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        status = make_dir(part, e);
        *slash = '/';
    }
    if (!status) status = make_dir(path, e);
    free(part);
    return status;
}

static bool remove_at(int folder, const char *name);

/* Empties an open folder and closes it. */
static bool empty_folder(int fd) {
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return false;
    }
    bool ok = true;
    errno = 0;
    for (struct dirent *d; ok && (d = readdir(dir)); errno = 0)
        if (strcmp(d->d_name, ".") && strcmp(d->d_name, "..")) ok = remove_at(fd, d->d_name);
    int error = errno;
    ok = ok && error == 0;
    closedir(dir);
    errno = error;
    return ok;
}

/* Relative to open folders, so that no symbolic link is followed, even one created meanwhile. */
static bool remove_at(int folder, const char *name) {
    if (unlinkat(folder, name, 0) == 0 || errno == ENOENT) return true;
    if (errno != EISDIR && errno != EPERM) return false;
    int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd >= 0 && empty_folder(fd) && unlinkat(folder, name, AT_REMOVEDIR) == 0;
}

mu_status mu_file_remove_tree(const char *path, mu_error *e) {
    return remove_at(AT_FDCWD, path) ? MU_STATUS_OK : write_failed(e, path, "removed");
}

/* ------------------------------------------------------------------ resolved paths */

/* The real path, heap; of a missing file, the path where it would be created. */
static char *real_path(const char *path) {
    char *real = realpath(path, NULL);
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    size_t at = n;
    while (at > 0 && path[at - 1] != '/') at--;
    const char *name = path + at;
    int length = (int)(n - at);
    if (real || !length || !strcmp(path, ".")) return real ? real : mu_strdup(path);
    char *parent = parent_of(path), *in = real_path(parent);
    free(parent);
    if (length == 1 && name[0] == '.') return in;
    real = length == 2 && !strncmp(name, "..", 2) ? parent_of(in)
                                                  : mu_format("%s%s%.*s", in, in[1] ? "/" : "", length, name);
    free(in);
    return real;
}

bool mu_file_is_inside(const char *path, const char *folder) {
    char *p = real_path(path), *f = real_path(folder);
    size_t n = strlen(f);
    bool inside = !strncmp(p, f, n) && (p[n] == '/' || !p[n] || n == 1);
    free(p);
    free(f);
    return inside;
}

/* ------------------------------------------------------------------ fingerprints */

static void write_hex(XXH128_hash_t hash, char hex[33]) {
    XXH128_canonical_t bytes;
    XXH128_canonicalFromHash(&bytes, hash);
    for (int i = 0; i < 16; i++) snprintf(hex + 2 * i, 3, "%02x", bytes.digest[i]);
}

void mu_hash128_hex(const void *data, size_t bytes, char hex[33]) {
    write_hex(XXH3_128bits(data, bytes), hex);
}

struct mu_hash { XXH3_state_t *state; };

mu_hash *mu_hash_new(void) {
    mu_hash *h = mu_alloc(1, sizeof *h);
    h->state = XXH3_createState();
    MU_CHECK(h->state && XXH3_128bits_reset(h->state) == XXH_OK, "out of memory for a hash");
    return h;
}

void mu_hash_add(mu_hash *h, const void *data, size_t bytes) { XXH3_128bits_update(h->state, data, bytes); }

void mu_hash_finish(mu_hash *h, char hex[33]) {
    write_hex(XXH3_128bits_digest(h->state), hex);
    XXH3_freeState(h->state);
    free(h);
}

mu_status mu_file_hash(const char *path, char hex[33], int64_t *bytes, mu_error *e) {
    const char *reason;
    int fd = mu_file_open(path, false, bytes, &reason);
    if (fd < 0) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: %s", path, reason);
    mu_status status = MU_STATUS_OK;
    mu_hash *hash = mu_hash_new();
    char *block = mu_alloc(BLOCK, 1);
    *bytes = 0;
    for (ssize_t n; !status && (n = read(fd, block, BLOCK)) != 0;) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) status = read_failed(e, path);
        else mu_hash_add(hash, block, (size_t)n), *bytes += n;
        mu_activity_tick();
    }
    mu_hash_finish(hash, hex);
    free(block);
    close(fd);
    return status;
}
