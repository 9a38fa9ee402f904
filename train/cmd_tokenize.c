/* cmd_tokenize.c - muster tokenize: texts into one HDF5 token file. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

static mu_status parse(int argc, char **argv, const char **out, mu_option_domains *list, mu_error *e) {
    list->list = mu_alloc((size_t)argc, sizeof *list->list);
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--out") && i + 1 < argc) {
            *out = argv[++i];
            continue;
        }
        const char *equals = strchr(argv[i], '=');
        size_t name = equals ? (size_t)(equals - argv[i]) : 0;
        mu_option_domain *d = &list->list[list->n];
        if (argv[i][0] == '-' || !name || name >= sizeof d->domain || strlen(equals + 1) >= sizeof d->path ||
            !equals[1])
            return mu_error_set(e, MU_STATUS_USAGE, "%s: expected DOMAIN=PATH", argv[i]);
        if (strspn(argv[i], "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") < name)
            return mu_error_set(e, MU_STATUS_USAGE, "%s: a domain's name has letters, digits, _ and - only",
                                argv[i]);
        snprintf(d->domain, sizeof d->domain, "%.*s", (int)name, argv[i]);
        snprintf(d->path, sizeof d->path, "%s", equals + 1);
        d->weight = 1.0;
        for (int j = 0; j < list->n; j++)
            if (!strcmp(list->list[j].domain, d->domain))
                return mu_error_set(e, MU_STATUS_USAGE, "domain %s is given twice", d->domain);
        list->n++;
    }
    if (!*out) return mu_error_set(e, MU_STATUS_USAGE, "tokenize needs --out FILE.h5");
    const char *ending = strrchr(*out, '.');
    if (!ending || (strcmp(ending, ".h5") && strcmp(ending, ".hdf5")))
        return mu_error_set(e, MU_STATUS_USAGE,
                            "--out %s: a token file's name ends in .h5, by which train knows it", *out);
    return list->n ? MU_STATUS_OK
                   : mu_error_set(e, MU_STATUS_USAGE, "tokenize needs at least one DOMAIN=PATH");
}

int mu_cmd_tokenize(int argc, char **argv) {
    mu_error e = { 0 };
    mu_option_domains list = { 0 };
    mu_corpus corpus = { 0 };
    const char *out = NULL;
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_report_error(&e, rank);
    mu_tokenizer *t = mu_tokenizer_open("bytes");
    mu_status status = parse(argc, argv, &out, &list, &e);
    if (status == MU_STATUS_OK && world->size > 1)
        status = mu_error_set(&e, MU_STATUS_USAGE, "tokenize runs on one rank");
    if (status == MU_STATUS_OK) status = mu_corpus_open(&corpus, &list, t, 1, &e);
    if (status == MU_STATUS_OK) status = mu_corpus_write(&corpus, t, out, &e);
    if (status == MU_STATUS_OK) {
        for (int i = 0; i < corpus.n_domains; i++)
            printf("%-24s %10lld tokens in %lld documents\n", corpus.domains[i].name,
                   (long long)corpus.domains[i].n_tokens, (long long)corpus.domains[i].n_documents);
        mu_print("written to %s, tokenizer %s, fingerprint %s\n", out, mu_tokenizer_name(t),
               corpus.fingerprint);
        mu_corpus_close(&corpus);
    }
    free(list.list);
    mu_tokenizer_close(t);
    mu_comm_free(world);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}
