/* source.c - where weights come from: a checkpoint, the newest valid one of a run, or a folder of safetensors with a config.json. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

static mu_status not_there(const char *path, mu_error *e) {
    return mu_error_set(e, MU_STATUS_NOINPUT, "not a run folder, checkpoint or Hugging Face folder: %s", path);
}

mu_status mu_source_open(mu_source *s, mu_comm *batch, const char *path, mu_error *e) {
    bool found = false;
    *s = (mu_source){ .path = path };
    mu_status status = batch->rank == 0 && !mu_file_exists(path) ? not_there(path, e) : MU_STATUS_OK;
    status = mu_agree(batch, status, e);
    if (status == MU_STATUS_OK) status = mu_checkpoint_find(batch, path, &s->m, &found, e);
    return status != MU_STATUS_OK || found ? status : mu_checkpoint_missing(path, e);
}

mu_status mu_source_fall_back(mu_source *s, mu_comm *batch, mu_error *e) {
    return mu_checkpoint_fall_back(batch, s->path, &s->m, e);
}

mu_status mu_source_tokenizer_open(mu_tokenizer **t, const mu_source *s, mu_error *e) { return mu_checkpoint_tokenizer_open(t, &s->m, e); }

mu_status mu_source_tokenizer_path(const mu_source *s, char **path, mu_error *e) {
    (void)e;
    *path = mu_checkpoint_tokenizer_path(&s->m);
    return MU_STATUS_OK;
}

mu_status mu_source_tokenizer_check(const mu_source *s, const mu_config *cfg, const mu_tokenizer *t, mu_error *e) {
    mu_error why = { 0 };
    if (mu_tokenizer_check(t, s->m.path, s->m.tokenizer, s->m.tokenizer_fingerprint, &why) == MU_STATUS_OK) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_CONFIG, "data.tokenizer is %s, but %-s", cfg->data.tokenizer, why.text);
}

mu_status mu_source_load(const mu_source *s, mu_model *model, mu_mesh *mesh, const mu_tokenizer *tokenizer, mu_error *e) {
    mu_train_state weights = { .mesh = mesh, .model = model };
    return mu_checkpoint_load(&weights, &s->m, tokenizer, e);
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
    mu_manifest_free(&s->m);
    *s = (mu_source){ 0 };
}
