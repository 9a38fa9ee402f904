/* training.c - opens and closes the parts of a training run. */
#include "train/training.h"

mu_status mu_training_open(mu_training *t, mu_mesh *mesh, mu_val_split split, mu_error *e) {
    const mu_config *cfg = &t->cfg;
    mu_train_state *s = &t->state;
    s->mesh = mesh;
    mu_config_use_threads(&cfg->train, mesh);
    int64_t rows;
    mu_status status = t->tokenizer ? MU_STATUS_OK : mu_tokenizer_open(&t->tokenizer, cfg->data.tokenizer, e);
    if (status == MU_STATUS_OK) status = mu_vocab_rows(cfg, t->tokenizer, false, &rows, e);
    status = mu_agree(mesh->batch, status, e);
    if (status == MU_STATUS_OK) status = mu_texts_open(&t->texts, cfg, t->tokenizer, split, mesh->batch, e);
    if (status == MU_STATUS_OK) status = mu_train_device_open(&cfg->train, mesh, &t->dev, e);
    if (status != MU_STATUS_OK) return status;
    s->loader = t->texts.loader;
    s->model = mu_model_new(&cfg->model, &cfg->moe, rows, (uint64_t)cfg->run.seed, t->dev, mesh);
    mu_model_name_domains(s->model, &cfg->data.train);
    t->tape = mu_tape_new(t->dev);
    mu_batches_init(&t->batches, cfg, s->loader, mesh->batch, t->tape);
    if (cfg->train.reproducible) {
        mu_tape_set_reduction_unit(t->tape, cfg->train.seq_len);
        mu_params_exact(s->model->params);
    }
    t->loss = mu_loss_new(s->model, t->tape, mesh->batch, &t->batches.shape);
    s->stats = t->loss->stats;
    s->knowledge = mu_knowledge_new(s->model->n_moe, (int)cfg->moe.num_experts, (int)cfg->moe.top_k, &cfg->data.train);
    s->opt = mu_optimizer_new(mu_rule_of(&cfg->optim), &cfg->optim, s->model->params);
    if (mu_config_anchors(cfg)) s->anchor = mu_anchor_new(s->opt, &cfg->data.train);
    return MU_STATUS_OK;
}

int mu_training_protect(mu_training *t, mu_protection_change *changes) {
    mu_model *m = t->state.model;
    const mu_expert_health *h = &t->state.stats->health;
    int n = mu_protection_update(&m->protection, &t->cfg.protect, h, &t->cfg.data.train, changes);
    mu_protection_slow(&m->protection, h, m->params, t->cfg.protect.dormant_lr);
    return n;
}

void mu_training_close(mu_training *t) {
    mu_anchor_free(t->state.anchor);
    mu_optimizer_free(t->state.opt);
    mu_knowledge_free(t->state.knowledge);
    mu_loss_free(t->loss);
    mu_batches_free(&t->batches);
    if (t->tape) mu_tape_free(t->tape);
    mu_model_free(t->state.model);
    mu_texts_close(&t->texts);
    if (t->tokenizer) mu_tokenizer_close(t->tokenizer);
    if (t->dev) mu_device_close(t->dev);
    mu_config_free(&t->cfg);
    *t = (mu_training){ 0 };
}
