/* fuzz.c - the files of a fuzz target: in memory, in a folder of this process that is removed at exit. */
#include "fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_FILES = 16, PATH = 128 };
static char folder[PATH];
static struct { char path[PATH]; } files[MAX_FILES];
static int n_files;

static void remove_all(void) {
    for (int i = 0; i < n_files; i++) unlink(files[i].path);
    rmdir(folder);
}

const char *fuzz_folder(void) {
    if (folder[0]) return folder;
    snprintf(folder, sizeof folder, "/dev/shm/muster-fuzz-XXXXXX");
    MU_CHECK(mkdtemp(folder), "no folder in /dev/shm: %s", folder);
    MU_CHECK(atexit(remove_all) == 0, "atexit failed for %s", folder);
    return folder;
}

const char *fuzz_file(const char *name, const uint8_t *bytes, size_t n) {
    char path[PATH];
    snprintf(path, sizeof path, "%s/%s", fuzz_folder(), name);
    int i = 0;
    while (i < n_files && strcmp(files[i].path, path)) i++;
    if (i == n_files) {
        MU_CHECK(n_files < MAX_FILES, "more than %d files", MAX_FILES);
        memcpy(files[n_files++].path, path, sizeof path);
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    MU_CHECK(fd >= 0 && write(fd, bytes, n) == (ssize_t)n && close(fd) == 0, "cannot write %zu bytes to %s", n, path);
    return files[i].path;
}
