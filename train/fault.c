/* fault.c - points at which tests break the program on purpose; see train.h. */
#include "train/train.h"

#include <string.h>

#ifdef MUSTER_FAULTS
#include <signal.h>
#include <stdlib.h>
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

void mu_fault_nan(mu_model *model) {
    mu_device *dev = model->params->dev;
    for (mu_unit *u = mu_unit_next(model->params, NULL); u; u = mu_unit_next(model->params, u))
        if (u->expert < 0 && u->param->desc.layer == model->cfg.num_layers - 1) {
            char nan[8];
            memset(nan, 0xff, sizeof nan);
            mu_device_write(dev, mu_unit_data(u), nan, mu_dtype_size(dev->master));
            mu_params_refresh(model->params);
            return;
        }
}
