/* tokenizer.c - tokenizers by name or path, and the code common to all kinds. */
#include "data/tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Kinds that need no file. */
static const struct { const char *name; mu_tokenizer *(*open)(void); } built_in[] = { { "bytes", mu_tokenizer_bytes_new } };
enum { N_BUILT_IN = sizeof built_in / sizeof *built_in };

bool mu_tokenizer_is_built_in(const char *name) {
    bool found = false;
    for (int i = 0; i < N_BUILT_IN; i++) found |= !strcmp(name, built_in[i].name);
    return found;
}

static mu_status no_file_in(const char *folder, mu_error *e) {
    char *other = mu_format("%s/tokenizer.model", folder);
    bool found = mu_file_exists(other);
    free(other);
    return mu_error_set(e, MU_STATUS_NOINPUT, "tokenizer %s: no tokenizer.json in this folder%s", folder, found ? ", but a tokenizer.model:"
                        " docs/tokenizers.md says how to make a tokenizer.json of it" : "");
}

/* A tokenizer.json, or a folder that holds one. */
static mu_status open_file(mu_tokenizer **t, const char *path, mu_error *e) {
    struct stat s;
    if (stat(path, &s)) return mu_error_set(e, MU_STATUS_NOINPUT, "tokenizer %s: no such file or folder", path);
    char *inside = S_ISDIR(s.st_mode) ? mu_format("%s/tokenizer.json", path) : mu_strdup(path);
    mu_status status = mu_file_exists(inside) ? mu_bpe_tokenizer_read(t, inside, e) : no_file_in(path, e);
    free(inside);
    return status;
}

mu_status mu_tokenizer_open(mu_tokenizer **t, const char *name_or_path, mu_error *e) {
    MU_CHECK(t && name_or_path,
             "tokenizer %p, name %s", (void *)t, name_or_path ? name_or_path : "NULL");
    *t = NULL;
    for (int i = 0; i < N_BUILT_IN; i++)
        if (!strcmp(name_or_path, built_in[i].name)) {
            *t = built_in[i].open();
            return MU_STATUS_OK;
        }
    if (name_or_path[0] && (strpbrk(name_or_path, "/.") || mu_file_exists(name_or_path))) return open_file(t, name_or_path, e);
    return mu_error_set(e, MU_STATUS_CONFIG, "unknown tokenizer \"%s\"; available: bytes, and paths of tokenizer.json", name_or_path);
}

void mu_tokenizer_close(mu_tokenizer *t) {
    if (t) t->close(t);
}

static const mu_tokenizer *need(const mu_tokenizer *t) {
    MU_CHECK(t, "the tokenizer is NULL");
    return t;
}

const char *mu_tokenizer_name(const mu_tokenizer *t) { return need(t)->name; }
const char *mu_tokenizer_fingerprint(const mu_tokenizer *t) { return need(t)->fingerprint; }
int mu_tokenizer_vocab_size(const mu_tokenizer *t) { return need(t)->vocab_size; }
int32_t mu_tokenizer_eod(const mu_tokenizer *t) { return need(t)->eod; }

const char *mu_tokenizer_eod_text(const mu_tokenizer *t) { return need(t)->eod_text; }
const char *mu_tokenizer_path(const mu_tokenizer *t) { return need(t)->path; }

void mu_tokenizer_encode(const mu_tokenizer *t, const char *text, int64_t bytes, mu_take_ids *take, void *to) {
    MU_CHECK(bytes >= 0 && (text || !bytes) && take,
             "%lld bytes of text %p", (long long)bytes, (const void *)text);
    need(t)->encode(t, text, bytes, take, to);
}

void mu_tokenizer_encode_prompt(const mu_tokenizer *t, const char *text, int64_t bytes, mu_take_ids *take, void *to) {
    MU_CHECK(bytes >= 0 && (text || !bytes) && take,
             "%lld bytes of text %p", (long long)bytes, (const void *)text);
    (need(t)->encode_prompt ? t->encode_prompt : t->encode)(t, text, bytes, take, to);
}

mu_status mu_tokenizer_write(const mu_tokenizer *t, const char *path, mu_error *e) {
    MU_CHECK(path, "the path is NULL");
    if (!need(t)->write) return mu_error_set(e, MU_STATUS_USAGE, "tokenizer \"%s\" has no file", t->name);
    return t->write(t, path, e);
}

int64_t mu_tokenizer_decode(const mu_tokenizer *t, int32_t id, const char **bytes) {
    MU_CHECK(bytes, "bytes is NULL (id %d)", id);
    return need(t)->decode(t, id, bytes);
}

mu_status mu_tokenizer_check(const mu_tokenizer *t, const char *what, const char *name, const char *fingerprint,
                             mu_error *e) {
    MU_CHECK(what && name && fingerprint && need(t),
             "what %p, name %p, fingerprint %p", (const void *)what,
             (const void *)name, (const void *)fingerprint);
    if (strcmp(name, t->name))
        return mu_error_set(e, MU_STATUS_DATA, "%s: made with tokenizer \"%s\", not \"%s\"", what, name, t->name);
    if (fingerprint[0] && strcmp(fingerprint, t->fingerprint))
        return mu_error_set(e, MU_STATUS_DATA, "%s: made with another tokenizer \"%s\": fingerprint %s, not %s", what, name,
                            fingerprint, t->fingerprint);
    return MU_STATUS_OK;
}
