/* arguments.c - options with a value on the command line. */
#include "train/train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

mu_status mu_argument_find(int argc, char **argv, int *i, const mu_argument *options, int n, bool *found, mu_error *e) {
    *found = false;
    for (int k = 0; k < n; k++) {
        size_t length = strlen(options[k].name);
        const char *rest = argv[*i] + length;
        if (strncmp(argv[*i], options[k].name, length) || (*rest && *rest != '=')) continue;
        const char *needs = options[k].needs, *value = *rest ? rest + 1 : *i + 1 < argc ? argv[++*i] : NULL;
        *found = true;
        if (!value || (needs && !*value)) return mu_error_set(e, MU_STATUS_USAGE, "%s needs %s", options[k].name, needs ? needs : "a value");
        *options[k].value = value;
        return MU_STATUS_OK;
    }
    return MU_STATUS_OK;
}

mu_status mu_argument_whole(const char *option, const char *text, int64_t *value, mu_error *e) {
    char *end;
    if (!text) return MU_STATUS_OK;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno) return mu_error_set(e, MU_STATUS_USAGE, "%s %s: expected a whole number", option, text);
    *value = n;
    return MU_STATUS_OK;
}

mu_status mu_argument_threads(const char *text, mu_error *e) {
    mu_train_config cfg = { 0 };
    mu_status status = mu_argument_whole("--threads", text, &cfg.threads, e);
    if (!status && cfg.threads > 4096) status = mu_error_set(e, MU_STATUS_USAGE, "--threads %s: at most 4096", text);
    if (!status) mu_threads_set(mu_cores_share(0, 1, mu_config_threads(&cfg)));
    return status;
}

mu_status mu_run_arguments(int argc, char **argv, const mu_run_options *o, int *n, char **dir, mu_error *e) {
    const mu_argument out = { "--out", o->out, "FILE.html" };
    mu_status status = MU_STATUS_OK;
    for (int i = 2; i < argc && status == MU_STATUS_OK; i++) {
        bool found;
        status = mu_argument_find(argc, argv, &i, &out, o->out ? 1 : 0, &found, e);
        if (found) continue;
        if (o->flag && !strcmp(argv[i], o->flag)) *o->flagged = true;
        else if (argv[i][0] == '-') return mu_error_set(e, MU_STATUS_USAGE, "unknown option %s", argv[i]);
        else if (*n == o->most)
            return mu_error_set(e, MU_STATUS_USAGE, "unexpected argument '%s': %s takes %s%d run%s", argv[i], argv[1], o->most > 1 ? "at most " : "", o->most,
                                o->most > 1 ? "s" : "; compare several with `muster compare`");
        else status = mu_expand_home(argv[i], &dir[(*n)++], e);
    }
    if (status == MU_STATUS_OK && *n < o->least)
        return mu_error_set(e, MU_STATUS_USAGE, "%s needs %s", argv[1], o->least > 1 ? "at least two run folders" : "a run folder");
    return status;
}

mu_status mu_domain_argument(const char *text, mu_option_domains *list, mu_error *e) {
    const char *equals = strchr(text, '=');
    mu_option_domain *d = &list->list[list->n];
    char *path;
    mu_status status = mu_expand_home(equals ? equals + 1 : "", &path, e);
    if (status != MU_STATUS_OK) return status;
    bool fits = path[0] && strlen(path) < sizeof d->path;
    snprintf(d->path, sizeof d->path, "%s", path);
    free(path);
    if (text[0] == '-' || !fits)
        return mu_error_set(e, MU_STATUS_USAGE, "%s: expected DOMAIN=PATH", text);
    char *name = mu_format("%.*s", (int)(equals - text), text);
    status = mu_option_domain_check(name, list, MU_STATUS_USAGE, e);
    snprintf(d->domain, sizeof d->domain, "%s", name);
    free(name);
    d->weight = 1.0;
    list->n += !status;
    return status;
}

mu_status mu_arguments_agree(mu_comm *world, int argc, char **argv, mu_error *e) {
    char *text = mu_strdup("");
    for (int i = 2; i < argc; i++) {
        char *longer = mu_format("%sargument %d: %s\n", text, i, argv[i]);
        free(text);
        text = longer;
    }
    mu_status status = mu_agree_text(world, MU_STATUS_USAGE, "arguments differ from those of rank 0:", text, e);
    free(text);
    return status;
}
