/* fault.c - points at which tests break the program on purpose; see train.h. */
#include "train/train.h"

#ifdef MUSTER_FAULTS
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool mu_fault(const char *point, int rank) {
    static int reached;
    const char *spec = getenv("MUSTER_FAULT");
    if (!spec) return false;
    char name[64], action[16];
    int wanted, count = 1;
    if (sscanf(spec, "%63[^:]:%d:%15[^:]:%d", name, &wanted, action, &count) < 3 || strcmp(name, point) ||
        wanted != rank)
        return false;
    if (++reached != count) return false;
    if (!strcmp(action, "kill")) kill(getpid(), SIGKILL);
    if (!strcmp(action, "stop")) kill(getpid(), SIGSTOP);
    return !strcmp(action, "enospc") || !strcmp(action, "nan") || !strcmp(action, "skip");
}
#else
bool mu_fault(const char *point, int rank) {
    (void)point, (void)rank;
    return false;
}
#endif
