/* cmd_train_tokenizer.c - muster train-tokenizer: trains a byte-level BPE tokenizer on texts and writes its tokenizer.json. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    char *out, **paths;
    const char **special;
    int n_paths;
    mu_bpe_training how;
} arguments;

static mu_status add_path(arguments *a, const char *text, mu_error *e) {
    if (text[0] == '-') return mu_error_set(e, MU_STATUS_USAGE, "unknown option %s", text);
    mu_status status = mu_expand_home(text, &a->paths[a->n_paths], e);
    a->n_paths += !status;
    return status;
}

static mu_status read_arguments(int argc, char **argv, arguments *a, mu_error *e) {
    const char *out = NULL, *size = NULL, *least = NULL, *threads = NULL, *special = NULL;
    const mu_argument options[] = { { "--vocab-size", &size, NULL }, { "--out", &out, "tokenizer.json" }, { "--pattern", &a->how.splitter, NULL },
                                    { "--min-frequency", &least, NULL }, { "--special", &special, "a token" },
                                    { "--text-key", &a->how.text_key, "KEY" }, { "--threads", &threads, NULL } };
    a->paths = mu_alloc((size_t)argc, sizeof *a->paths);
    a->special = mu_alloc((size_t)argc + 1, sizeof *a->special);
    mu_status status = MU_STATUS_OK;
    for (int i = 2; !status && i < argc; i++) {
        bool found;
        special = NULL;
        status = mu_argument_find(argc, argv, &i, options, sizeof options / sizeof *options, &found, e);
        if (!found) status = add_path(a, argv[i], e);
        if (special) a->special[a->how.n_special++] = special;
    }
    if (!status) status = mu_argument_whole("--vocab-size", size, &a->how.vocab_size, e);
    if (!status) status = mu_argument_whole("--min-frequency", least, &a->how.min_frequency, e);
    if (!status) status = mu_argument_threads(threads, e);
    if (!status && out) status = mu_expand_home(out, &a->out, e);
    if (!status && (!out || !size || !a->n_paths))
        status = mu_error_set(e, MU_STATUS_USAGE, "train-tokenizer needs --vocab-size N, --out tokenizer.json and at least one text");
    return status;
}

/* Checks everything that can be checked before the texts are read. An existing tokenizer is replaced, nothing else. */
static mu_status check(const arguments *a, bool *replaces, mu_error *e) {
    mu_error why;
    mu_tokenizer *old = NULL;
    char *temporary;
    mu_status status = mu_bpe_training_check(&a->how, e);
    if (status) return status;
    if (!mu_file_ends(a->out, ".json")) return mu_error_set(e, MU_STATUS_USAGE, "--out %s: the name of a tokenizer file must end in .json", a->out);
    const char *other = mu_file_not_plain(a->out);
    if (other) return mu_error_set(e, MU_STATUS_USAGE, "--out %s %s; remove it, or choose another name", a->out, other);
    *replaces = mu_file_exists(a->out);
    if (*replaces && mu_tokenizer_open(&old, a->out, &why))
        return mu_error_set(e, MU_STATUS_USAGE, "--out %s exists and is not a tokenizer; choose another name or remove it", a->out);
    mu_tokenizer_close(old);
    status = mu_file_temporary(a->out, &temporary, e);
    if (status) return status;
    unlink(temporary);
    free(temporary);
    return MU_STATUS_OK;
}

static mu_status all_bytes(const arguments *a, int64_t *bytes, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    *bytes = 0;
    for (int i = 0; !status && i < a->n_paths; i++) {
        int64_t here;
        status = mu_text_bytes(a->paths[i], &here, e);
        if (!status) *bytes += here;
    }
    return status;
}

static void print_result(const arguments *a, const mu_tokenizer *t, const mu_bpe_trained *r, bool replaced, double seconds) {
    int size = mu_tokenizer_vocab_size(t);
    printf("%lld documents, %.1f MB of text, %lld distinct pieces, %.1f s\n", (long long)r->documents, (double)r->text_bytes / 1e6,
           (long long)r->pieces, seconds);
    if (size < a->how.vocab_size)
        mu_log(MU_LOG_WARNING, "the texts give a vocabulary of %d, not %lld: no other pair of tokens occurs %lld times; "
               "more text, or a smaller --min-frequency, gives more", size, (long long)a->how.vocab_size, (long long)a->how.min_frequency);
    mu_print("%s %s: vocabulary of %d (%d special, 256 bytes, %lld merges), pattern %s, fingerprint %s\n", replaced ? "replaced" : "written to", a->out, size,
             a->how.n_special, (long long)r->merges, a->how.splitter, mu_tokenizer_fingerprint(t));
}

static mu_status train(arguments *a, mu_error *e) {
    mu_tokenizer *t = NULL;
    mu_bpe_trained result;
    bool replaces = false;
    int64_t bytes = 0;
    double started = mu_time();
    mu_status status = check(a, &replaces, e);
    if (!status) status = all_bytes(a, &bytes, e);
    if (status) return status;
    mu_meter_start(bytes, a->how.vocab_size);
    status = mu_bpe_train(&t, &result, &a->how, a->n_paths, a->paths, e);
    mu_meter_stop();
    if (!status) status = mu_tokenizer_write(t, a->out, e);
    if (!status) print_result(a, t, &result, replaces, mu_time() - started);
    mu_tokenizer_close(t);
    return status;
}

int mu_cmd_train_tokenizer(int argc, char **argv) {
    mu_error e = { 0 };
    arguments a = { .how = { .min_frequency = 2, .splitter = "gpt2", .text_key = "text" } };
    mu_dist_start(&argc, &argv);
    mu_comm *world = mu_comm_new(NULL);
    int rank = world->rank;
    mu_report_error(&e, rank);
    mu_status status = read_arguments(argc, argv, &a, &e);
    if (a.how.n_special == 0) a.special[a.how.n_special++] = "<|endoftext|>";
    a.how.special = a.special;
    if (!status && world->size > 1) status = mu_error_set(&e, MU_STATUS_USAGE, "train-tokenizer runs on one rank");
    if (!status) status = train(&a, &e);
    for (int i = 0; i < a.n_paths; i++) free(a.paths[i]);
    free(a.paths);
    free(a.special);
    free(a.out);
    mu_comm_free(world);
    if (status) mu_report_error(&e, rank);
    mu_dist_stop();
    return (int)status;
}
