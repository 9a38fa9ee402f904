/* arguments.c - options with a value on the command line. */
#include "train/train.h"

#include <string.h>

mu_status mu_argument_find(int argc, char **argv, int *i, const mu_argument *options, int n, bool *found, mu_error *e) {
    *found = false;
    for (int k = 0; k < n; k++) {
        size_t length = strlen(options[k].name);
        const char *rest = argv[*i] + length;
        if (strncmp(argv[*i], options[k].name, length) || (*rest && *rest != '=')) continue;
        *found = true;
        if (*rest) *options[k].value = rest + 1;
        else if (*i + 1 == argc) return mu_error_set(e, MU_STATUS_USAGE, "%s needs a value", options[k].name);
        else *options[k].value = argv[++*i];
        return MU_STATUS_OK;
    }
    return MU_STATUS_OK;
}
