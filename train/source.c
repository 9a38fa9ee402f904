/* source.c - where weights come from: a checkpoint, the newest valid one of a run, or a folder of safetensors with a config.json. */
#include "train/hf.h"

#include <stdlib.h>
#include <string.h>

/* The configuration of a model that was not trained here: its architecture, and for all else what eval and generate need. */
static mu_status describe(mu_source *s, mu_error *e) {
    enum { SEQ_LEN = 1024 };
    mu_manifest *m = &s->m;
    char *rows = mu_format("model.vocab_size=%lld", (long long)mu_hf_vocab_size(s->hf));
    char *const others[] = { rows, (char[]){ "run.dir=unused" }, (char[]){ "train.seq_len=2" }, (char[]){ "data.train=[{domain: text, path: synthetic}]" } };
    mu_status status = mu_config_load_text(&m->cfg, s->path, mu_hf_config(s->hf), sizeof others / sizeof *others, others, e);
    free(rows);
    if (status != MU_STATUS_OK) return status;
    m->cfg.train.seq_len = m->cfg.model.max_seq_len < SEQ_LEN ? m->cfg.model.max_seq_len : SEQ_LEN;
    m->config = mu_options_dump(&m->cfg.options, &m->cfg);
    m->vocab_size = mu_hf_vocab_size(s->hf);
    if (snprintf(m->path, sizeof m->path, "%s", s->path) >= (int)sizeof m->path)
        return mu_error_set(e, MU_STATUS_DATA, "%s: a path of more than %zu bytes", s->path, sizeof m->path - 1);
    return MU_STATUS_OK;
}

static mu_status open_hf(mu_source *s, mu_error *e) {
    mu_status status = mu_hf_open(&s->hf, s->path, e);
    return status == MU_STATUS_OK ? describe(s, e) : status;
}

typedef enum { NOTHING, HF, CHECKPOINT } kind;

static kind kind_of(const char *path) {
    int64_t *steps;
    bool run = mu_checkpoint_list(path, &steps) != 0;
    free(steps);
    return !mu_file_exists(path) ? NOTHING : mu_hf_is(path) && !run && !mu_checkpoint_named(path) ? HF : CHECKPOINT;
}

mu_status mu_source_open(mu_source *s, mu_comm *batch, const char *path, mu_error *e) {
    bool found = false;
    kind k = batch->rank == 0 ? kind_of(path) : NOTHING;
    *s = (mu_source){ .path = path };
    mu_broadcast(batch, 0, &k, sizeof k);
    if (k == NOTHING) return mu_error_set(e, MU_STATUS_NOINPUT, "%s: no such file or folder", path);
    if (k == HF) return mu_agree(batch, open_hf(s, e), e);
    mu_status status = mu_checkpoint_find(batch, path, &s->m, &found, e);
    return status != MU_STATUS_OK || found ? status : mu_checkpoint_missing(path, e);
}

mu_status mu_source_fall_back(mu_source *s, mu_comm *batch, mu_error *e) {
    return s->hf ? e->status : mu_checkpoint_fall_back(batch, s->path, &s->m, e);
}

char *mu_source_tokenizer_path(const mu_source *s) {
    if (!s->hf) return mu_checkpoint_tokenizer_path(&s->m);
    return mu_hf_tokenizer(s->hf) ? realpath(mu_hf_tokenizer(s->hf), NULL) : NULL;
}

mu_status mu_source_tokenizer_open(mu_tokenizer **t, const mu_source *s, mu_error *e) {
    if (!s->hf) return mu_checkpoint_tokenizer_open(t, &s->m, e);
    if (mu_hf_tokenizer(s->hf)) return mu_tokenizer_open(t, mu_hf_tokenizer(s->hf), e);
    return mu_error_set(e, MU_STATUS_DATA, "%s has no tokenizer.json; put the one of the model there", s->path);
}

mu_status mu_source_tokenizer_check(const mu_source *s, const mu_config *cfg, const mu_tokenizer *t, mu_error *e) {
    const char *name = s->m.tokenizer, *fingerprint = s->m.tokenizer_fingerprint;
    mu_tokenizer *own = NULL;
    mu_error why = { 0 };
    if (s->hf && !mu_hf_tokenizer(s->hf)) return MU_STATUS_OK;
    if (s->hf) {
        mu_status status = mu_source_tokenizer_open(&own, s, e);
        if (status != MU_STATUS_OK) return status;
        name = mu_tokenizer_name(own), fingerprint = mu_tokenizer_fingerprint(own);
    }
    mu_status status = mu_tokenizer_check(t, s->m.path, name, fingerprint, &why);
    mu_tokenizer_close(own);
    return status == MU_STATUS_OK ? status : mu_error_set(e, MU_STATUS_CONFIG, "data.tokenizer is %s, but %-s", cfg->data.tokenizer, why.text);
}

mu_status mu_source_check(const mu_source *s, const mu_model *model, mu_error *e) {
    return s->hf ? mu_hf_check(s->hf, model, e) : MU_STATUS_OK; /* a checkpoint has the tensors of its configuration */
}

mu_status mu_source_load(const mu_source *s, mu_model *model, mu_mesh *mesh, const mu_tokenizer *tokenizer, mu_error *e) {
    mu_train_state weights = { .mesh = mesh, .model = model };
    return s->hf ? mu_agree(mesh->batch, mu_hf_load(s->hf, model, e), e) : mu_checkpoint_load(&weights, &s->m, tokenizer, e);
}

mu_origin mu_source_origin(const mu_source *s) {
    mu_origin o = { .step = s->m.step };
    char *whole = realpath(s->m.path, NULL);
    snprintf(o.path, sizeof o.path, "%s", whole && strlen(whole) < sizeof o.path ? whole : s->m.path);
    snprintf(o.manifest_hash, sizeof o.manifest_hash, "%s", s->m.hash);
    free(whole);
    return o;
}

void mu_source_close(mu_source *s) {
    mu_hf_close(s->hf);
    mu_manifest_free(&s->m);
    *s = (mu_source){ 0 };
}
