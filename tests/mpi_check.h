/* mpi_check.h - cmocka under mpirun. A failed assertion on one rank would leave the others waiting in a collective,
 * so it ends all of them. */
#ifndef MUSTER_TESTS_MPI_CHECK_H
#define MUSTER_TESTS_MPI_CHECK_H
#include "gradcheck.h"

#include <stdio.h>

#define check(cond, ...) do { if (!(cond)) check_failed(__FILE__, __LINE__, #cond, __VA_ARGS__); } while (0)

_Noreturn static inline void MU_PRINTF(4, 5)
    check_failed(const char *file, int line, const char *what, const char *fmt, ...) {
    va_list args;
    fprintf(stderr, "%s:%d: not so: %s: ", file, line, what);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\n");
    mu_dist_abort(1);
}

static inline void end_all_ranks(mu_status status, const char *line) {
    (void)status;
    fprintf(stderr, "%s\n", line);
    mu_dist_abort(1);
}

/* In main, around cmocka_run_group_tests. */
static inline void mpi_tests_begin(int *argc, char ***argv) {
    mu_dist_start(argc, argv);
    mu_fatal_set_handler(end_all_ranks);
}

static inline int mpi_tests_end(int failed) {
    if (failed) mu_dist_abort(1);
    mu_dist_stop();
    return 0;
}

#endif
