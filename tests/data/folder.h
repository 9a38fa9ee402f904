/* folder.h - a temporary folder for the files of a test program, and its error. */
#ifndef MUSTER_TESTS_DATA_FOLDER_H
#define MUSTER_TESTS_DATA_FOLDER_H
#include "base/base.h"

#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

static char folder[64];
static mu_error e;

/* The path of a file there; it lives until the eighth call after this. */
static inline const char *in_folder(const char *name) {
    static char path[8][256];
    static int turn;
    turn = (turn + 1) % 8;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static inline bool folder_make(const char *name) {
    snprintf(folder, sizeof folder, "%s-XXXXXX", name);
    return mkdtemp(folder);
}

static inline void assert_ok(mu_status status) {
    if (status) fail_msg("status %d: %s", status, e.text);
}

#endif
