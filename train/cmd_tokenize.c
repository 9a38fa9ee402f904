/* cmd_tokenize.c - muster tokenize: converts texts to an HDF5 token file, by domain or, without labels, by cluster. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    char *out, *tokenizer;
    const char *text_key;
    int64_t clusters, seed;         /* clusters 0: domains */
    mu_option_domains list;
} arguments;

static mu_status parse(int argc, char **argv, arguments *a, mu_error *e) {
    const char *out = NULL, *tokenizer = NULL, *threads = NULL, *clusters = NULL, *seed = NULL;
    const mu_argument options[] = { { "--out", &out, "FILE.h5" }, { "--tokenizer", &tokenizer, NULL }, { "--text-key", &a->text_key, "KEY" },
                                    { "--threads", &threads, NULL }, { "--clusters", &clusters, NULL }, { "--seed", &seed, NULL } };
    a->text_key = "text", a->seed = 1;
    a->list.list = mu_alloc((size_t)argc, sizeof *a->list.list);
    mu_status status = MU_STATUS_OK;
    for (int i = 2; !status && i < argc; i++) {
        bool found;
        status = mu_argument_find(argc, argv, &i, options, sizeof options / sizeof *options, &found, e);
        if (!found) status = mu_domain_argument(argv[i], &a->list, e);
    }
    if (!status && out) status = mu_expand_home(out, &a->out, e);
    if (!status && tokenizer) status = mu_expand_home(tokenizer, &a->tokenizer, e);
    if (!status) status = mu_argument_threads(threads, e);
    if (!status) status = mu_argument_whole("--clusters", clusters, &a->clusters, e);
    if (!status) status = mu_argument_whole("--seed", seed, &a->seed, e);
    if (status) return status;
    if (clusters && (a->clusters < 2 || a->clusters > MU_CLUSTERS_MAX))
        return mu_error_set(e, MU_STATUS_USAGE, "--clusters %s: expected 2 to %d", clusters, MU_CLUSTERS_MAX);
    if (seed && !clusters) return mu_error_set(e, MU_STATUS_USAGE, "--seed is for --clusters");
    if (!a->out) return mu_error_set(e, MU_STATUS_USAGE, "tokenize needs --out FILE.h5");
    if (!mu_file_ends(a->out, ".h5") && !mu_file_ends(a->out, ".hdf5"))
        return mu_error_set(e, MU_STATUS_USAGE,
                            "--out %s: the name of a token file must end in .h5 or .hdf5", a->out);
    return a->list.n ? MU_STATUS_OK
                     : mu_error_set(e, MU_STATUS_USAGE, "tokenize needs at least one DOMAIN=PATH");
}

/* Checks that the output can be written, before the texts are read. */
static mu_status check_out(const arguments *a, char old[33], mu_error *e) {
    mu_error why;
    const char *other = mu_file_not_plain(a->out);
    if (other) return mu_error_set(e, MU_STATUS_USAGE, "--out %s %s; remove it, or choose another name", a->out, other);
    mu_status status = mu_token_file_check(a->out, old, &why);
    if (status == MU_STATUS_USAGE) return mu_error_set(e, status, "--out %-s; choose another name or remove it", why.text);
    if (status) *e = why;
    return status;
}

/* Token files can be sources, too; they are read twice from end to end. */
enum { CACHE_BYTES = 8 << 20 };

/* Bytes of the files of all texts, for progress; a path that cannot be read is reported later. */
static int64_t text_bytes(const mu_option_domains *list) {
    int64_t all = 0, bytes;
    mu_error ignored;
    for (int i = 0; i < list->n; i++)
        if (mu_text_bytes(list->list[i].path, &bytes, &ignored) == MU_STATUS_OK) all += bytes;
    return all;
}

static mu_status write_file(const arguments *a, const mu_tokenizer *t, mu_corpus *corpus, mu_clusters *clusters, mu_error *e) {
    mu_meter_start(text_bytes(&a->list), 0);
    mu_status status = mu_corpus_open(corpus, &a->list, a->text_key, t, 1, CACHE_BYTES, e);
    mu_meter_stop();
    if (!status && a->clusters) status = mu_corpus_cluster(corpus, t, (int)a->clusters, (uint64_t)a->seed, clusters, e);
    return status ? status : mu_corpus_write(corpus, t, a->out, e);
}

/* ------------------------------------------------------------------ what was written */

static int64_t sum(const int64_t *n, int count) {
    int64_t all = 0;
    for (int i = 0; i < count; i++) all += n[i];
    return all;
}

/* The names given that the cluster is made of, and their shares of it. */
static void print_names(const int64_t *tokens, const mu_option_domains *names) {
    double all = (double)sum(tokens, names->n);
    for (int i = 0; i < names->n; i++)
        if (tokens[i]) printf(", %.1f %% %s", 100 * (double)tokens[i] / all, names->list[i].domain);
}

static void print_clusters(const arguments *a, const mu_corpus *corpus, const mu_clusters *r) {
    for (int i = 0; i < r->n; i++) {
        const mu_domain *d = &corpus->domains[i];
        printf("%-12s %10lld tokens in %lld documents", d->name, (long long)d->n_tokens, (long long)d->n_documents);
        if (r->n_from > 1) print_names(r->tokens + (int64_t)i * r->n_from, &a->list);
        mu_print(": %s\n", r->words[i]);
    }
    mu_mutual_information m = mu_mutual_information_of(r->tokens, r->n, r->n_from);
    if (r->n_from > 1) printf("clusters and the names given: mutual information %.3f nats, %.3f normalised\n", m.nats, m.normalised);
}

/* Lines of a configuration. */
static void print_train(const arguments *a, const mu_corpus *corpus) {
    int64_t all = 0;
    for (int i = 0; i < corpus->n_domains; i++) all += corpus->domains[i].n_tokens;
    printf("\ndata:\n");
    if (a->tokenizer) mu_print("  tokenizer: %s\n", a->tokenizer);
    printf("  train:\n");
    for (int i = 0; i < corpus->n_domains; i++)
        mu_print("    - {domain: %s, path: %s}    # %.2f %%\n", corpus->domains[i].name, a->out, 100 * (double)corpus->domains[i].n_tokens / (double)all);
    printf("\n");
}

static void print_domains(const mu_corpus *corpus) {
    for (int i = 0; i < corpus->n_domains; i++)
        printf("%-24s %10lld tokens in %lld documents\n", corpus->domains[i].name, (long long)corpus->domains[i].n_tokens,
               (long long)corpus->domains[i].n_documents);
}

int mu_cmd_tokenize(int argc, char **argv) {
    mu_error e = { 0 };
    arguments a = { 0 };
    mu_corpus corpus = { 0 };
    mu_clusters clusters = { 0 };
    char old[33] = "";
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_report_error(&e, rank);
    mu_tokenizer *t = NULL;
    mu_status status = parse(argc, argv, &a, &e);
    if (status == MU_STATUS_OK && world->size > 1)
        status = mu_error_set(&e, MU_STATUS_USAGE, "tokenize runs on one rank");
    if (status == MU_STATUS_OK) status = check_out(&a, old, &e);
    if (status == MU_STATUS_OK) status = mu_tokenizer_open(&t, a.tokenizer ? a.tokenizer : "bytes", &e);
    if (status == MU_STATUS_OK) status = write_file(&a, t, &corpus, &clusters, &e);
    if (status == MU_STATUS_OK) {
        if (a.clusters) print_clusters(&a, &corpus, &clusters), print_train(&a, &corpus);
        else print_domains(&corpus);
        mu_print("written to %s, tokenizer %s, fingerprint %s\n", a.out, mu_tokenizer_name(t),
               corpus.fingerprint);
        if (old[0]) mu_print("replaced the previous token file, fingerprint %s\n", old);
    }
    mu_corpus_close(&corpus);
    mu_clusters_free(&clusters);
    free(a.list.list);
    free(a.out);
    free(a.tokenizer);
    mu_tokenizer_close(t);
    mu_comm_free(world);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}
