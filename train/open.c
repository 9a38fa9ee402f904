/* open.c - opens a model with its weights for eval, generate and stats. */
#include "train/train.h"

#include <stdlib.h>

/* The model of the manifest's configuration, with its weights. *opened: everything but the weights is open. */
static mu_status open_model(mu_inference *o, mu_mesh *mesh, int n_overrides, char *const *overrides, bool *opened, mu_error *e) {
    const mu_manifest *m = &o->source.m;
    *opened = false;
    char **with = mu_alloc((size_t)n_overrides + 1, sizeof *with);
    with[0] = (char[]){ "data.phases=[]" };     /* no training samples are drawn, and other texts may be given */
    for (int i = 0; i < n_overrides; i++) with[i + 1] = overrides[i];
    mu_status status = mu_config_load_text(&o->cfg, m->path, m->config, n_overrides + 1, with, e);
    free(with);
    status = mu_agree(mesh->batch, status, e);
    if (status != MU_STATUS_OK) return status;
    mu_watch_start(mesh->world, (double)o->cfg.run.watchdog, mu_report_stall);
    mu_config_use_threads(&o->cfg.train, mesh);
    int64_t rows;
    status = mu_source_tokenizer_open(&o->tokenizer, &o->source, e);
    if (status == MU_STATUS_OK) status = mu_vocab_rows(&o->cfg, o->tokenizer, true, &rows, e);
    status = mu_agree(mesh->batch, status, e);
    if (status == MU_STATUS_OK) status = mu_train_device_open(&o->cfg.train, mesh, &o->dev, e);
    if (status != MU_STATUS_OK) return status;
    o->state.mesh = mesh, o->state.step = m->step;
    o->state.model = mu_model_new(&o->cfg.model, &o->cfg.moe, m->vocab_size, 1, o->dev, mesh);
    mu_model_name_domains(o->state.model, &o->cfg.data.train);
    o->tape = mu_tape_new(o->dev);
    *opened = true;
    return mu_source_load(&o->source, o->state.model, mesh, o->tokenizer, e);
}

/* All but the source. */
static void close_model(mu_inference *o) {
    mu_watch_stop();
    if (o->tape) mu_tape_free(o->tape);
    mu_model_free(o->state.model);
    if (o->tokenizer) mu_tokenizer_close(o->tokenizer);
    if (o->dev) mu_device_close(o->dev);
    mu_config_free(&o->cfg);
    *o = (mu_inference){ .source = o->source };
}

mu_status mu_inference_open(mu_inference *o, mu_mesh *mesh, const char *path, int n_overrides, char *const *overrides, mu_error *e) {
    bool opened;
    *o = (mu_inference){ 0 };
    mu_status status = mu_source_open(&o->source, mesh->batch, path, e);
    while (status == MU_STATUS_OK) {
        status = open_model(o, mesh, n_overrides, overrides, &opened, e);
        if (!opened || status != MU_STATUS_DATA) return status;
        status = mu_source_fall_back(&o->source, mesh->batch, e); /* invalid weights */
        if (status == MU_STATUS_OK) close_model(o);
    }
    return status;
}

void mu_inference_close(mu_inference *o) {
    close_model(o);
    mu_source_close(&o->source);
}
