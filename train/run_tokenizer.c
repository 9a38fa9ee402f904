/* run_tokenizer.c - the tokenizer of a run. RUN/tokenizer.json is a copy of the file that data.tokenizer named when the run began, so that a
 * run and its checkpoints can be moved, and used when that file is gone. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

static char *copy_in(const char *run) { return mu_format("%s/tokenizer.json", run); }

mu_status mu_vocab_rows(const mu_config *cfg, const mu_tokenizer *t, bool trained, int64_t *rows, mu_error *e) {
    int64_t ids = mu_tokenizer_vocab_size(t), asked = cfg->model.vocab_size;
    *rows = asked ? asked : ids;
    if (*rows >= ids) return MU_STATUS_OK;
    if (trained || !mu_options_given(&cfg->options, "model", "vocab_size"))
        return mu_error_set(e, MU_STATUS_DATA, "the tokenizer %s has %lld ids, but the weights have %lld rows for them: it is not the tokenizer of this"
                            " model", mu_tokenizer_path(t) ? mu_tokenizer_path(t) : cfg->data.tokenizer, (long long)ids, (long long)asked);
    return mu_error_set(e, MU_STATUS_CONFIG, "model.vocab_size is %lld, but the tokenizer %s has %lld ids; use at least %lld, or 0 for the"
                        " tokenizer's", (long long)asked, mu_tokenizer_path(t) ? mu_tokenizer_path(t) : cfg->data.tokenizer,
                        (long long)ids, (long long)ids);
}

/* Opens the file and checks that it is the tokenizer with this name and fingerprint ("": any). */
static mu_status open_checked(mu_tokenizer **t, const char *path, const char *what, const char *name, const char *fingerprint, mu_error *e) {
    mu_status status = mu_tokenizer_open(t, path, e);
    if (status == MU_STATUS_OK && name[0]) status = mu_tokenizer_check(*t, what, name, fingerprint, e);
    if (status != MU_STATUS_OK && *t) mu_tokenizer_close(*t), *t = NULL;
    return status;
}

mu_status mu_run_tokenizer_open(mu_tokenizer **t, const char *run, const char *configured, const char *name, const char *fingerprint,
                                mu_error *e) {
    char *copy = copy_in(run);
    mu_error why = { 0 };
    bool is_file = !mu_tokenizer_is_built_in(configured), has_copy = is_file && mu_file_exists(copy);
    mu_status status = has_copy ? open_checked(t, copy, run, name, fingerprint, &why) : MU_STATUS_NOINPUT;
    if (status != MU_STATUS_OK) status = open_checked(t, configured, run, name, fingerprint, e);
    if (status == MU_STATUS_NOINPUT && has_copy) /* the copy is there, but not usable */
        status = mu_error_set(e, why.status, "%-s", why.text);
    else if (status == MU_STATUS_NOINPUT && is_file)
        status = mu_error_set(e, status, "the tokenizer of %s: neither %s nor %s exists; put the file back to one of these places", run, copy,
                              configured);
    free(copy);
    return status;
}

char *mu_checkpoint_run(const mu_manifest *m) {
    char *up = mu_format("%s/../..", m->path), *whole = realpath(up, NULL);
    if (!whole) return up;
    free(up);
    return whole;
}

mu_status mu_checkpoint_tokenizer_open(mu_tokenizer **t, const mu_manifest *m, mu_error *e) {
    char *run = mu_checkpoint_run(m);
    mu_status status = mu_run_tokenizer_open(t, run, m->cfg.data.tokenizer, m->tokenizer, m->tokenizer_fingerprint, e);
    free(run);
    return status;
}

char *mu_checkpoint_tokenizer_path(const mu_manifest *m) {
    if (mu_tokenizer_is_built_in(m->cfg.data.tokenizer)) return mu_strdup(m->cfg.data.tokenizer);
    char *run = mu_checkpoint_run(m), *copy = copy_in(run);
    char *whole = realpath(mu_file_exists(copy) ? copy : m->cfg.data.tokenizer, NULL);
    free(run);
    free(copy);
    return whole ? whole : mu_strdup(m->cfg.data.tokenizer);
}

/* Another file of this name is kept, too: a user may have put it there. */
static mu_status make_room(const char *path, mu_error *e) {
    char *aside = NULL;
    if (!mu_file_exists(path)) return MU_STATUS_OK;
    mu_status status = mu_file_set_aside(path, &aside, e);
    if (status == MU_STATUS_OK) mu_log(MU_LOG_WARNING, "%s is not the tokenizer of this run: renamed to %s", path, aside);
    free(aside);
    return status;
}

mu_status mu_run_keep_tokenizer(const char *run, const mu_tokenizer *t, mu_error *e) {
    if (!mu_tokenizer_path(t)) return MU_STATUS_OK;
    char *copy = copy_in(run);
    mu_tokenizer *there = NULL;
    mu_error why;
    mu_status status = MU_STATUS_OK;
    if (open_checked(&there, copy, run, mu_tokenizer_name(t), mu_tokenizer_fingerprint(t), &why) == MU_STATUS_OK)
        mu_tokenizer_close(there);
    else {
        status = make_room(copy, e);
        if (status == MU_STATUS_OK) status = mu_tokenizer_write(t, copy, e);
    }
    free(copy);
    return status;
}
