/* probe_hdf5.c - muster-probe-hdf5: HDF5 walks a file's metadata in this process, where a crash does no harm.
 * A separate program, because muster takes long to load when it is linked with CUDA's libraries. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

int main(int argc, char **argv) {
    mu_error e = { 0 };
    if (argc != 3 || strcmp(argv[1], "probe-hdf5")) {
        fprintf(stderr, "usage: muster-probe-hdf5 probe-hdf5 FILE\nmuster starts it before it reads FILE (docs/files.md)\n");
        return MU_STATUS_USAGE;
    }
    unsetenv("HDF5_USE_FILE_LOCKING");          /* as in muster: the store locks nothing, and this would overrule it */
#ifndef __SANITIZE_ADDRESS__                    /* which reserves terabytes */
    setrlimit(RLIMIT_DATA, &(struct rlimit){ 256 << 20, 256 << 20 });
#endif
    setrlimit(RLIMIT_CPU, &(struct rlimit){ 10, 10 });
    setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
    mu_status status = mu_store_walk(argv[2], &e);
    puts(status ? e.text : "ok");
    return fflush(stdout) ? MU_STATUS_IO : (int)status;
}
