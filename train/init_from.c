/* init_from.c - a new run with the weights of a checkpoint, a run or a folder of safetensors (train --init-from): its architecture and its
 * weights, with the selection biases. Optimizer state, step, schedule and data are new, and so is everything that belongs to them, frozen
 * experts among it. */
#include "train/training.h"

#include <stdlib.h>
#include <string.h>

/* Options of the sections model and moe that say how a model is trained or used, not what it computes: these may differ from the source's. */
static const char *const free_options[] = {
    "model.max_seq_len", "model.init_std", "moe.balance", "moe.aux_loss_coeff", "moe.seq_aux_loss_coeff", "moe.z_loss_coeff",
    "moe.global_aux_counts", "moe.bias_update_rate", "moe.capacity_factor", "moe.token_drop_policy", "moe.router_jitter", "moe.force_domains",
    "moe.force_balanced", "moe.force_skew"
};

bool mu_option_is_architecture(const mu_option *o) {
    if (strcmp(o->section, "model") && strcmp(o->section, "moe")) return false;
    char *name = mu_format("%s.%s", o->section, o->key);
    bool is_free = false;
    for (size_t i = 0; i < sizeof free_options / sizeof *free_options; i++) is_free |= !strcmp(name, free_options[i]);
    free(name);
    return !is_free;
}

/* The configuration to complete, and the source's. */
typedef struct {
    mu_config *c;
    const mu_source *s;
    mu_error *e;
    mu_status status;
} taking;

static void take(taking *t, const mu_option *o) {
    char *value = mu_option_text(o, &t->s->m.cfg), *text = mu_format("%s.%s=%s", o->section, o->key, value);
    if (mu_options_override(&t->c->options, t->c, text, t->e) != MU_STATUS_OK) t->status = MU_STATUS_CONFIG;
    free(text);
    free(value);
}

static void refuse(taking *t, const char *section, const char *key, const char *is, const char *was) {
    t->status = mu_options_complain(&t->c->options, t->e, section, key, "%s contradicts the weights of %s, which have %s; leave the key out to take"
                                    " theirs", is, t->s->path, was);
}

/* `given`: the configuration with derived values, as far as they are known. */
static void compare(taking *t, const mu_option *o, const mu_config *given) {
    char *is = mu_option_text(o, given), *was = mu_option_text(o, &t->s->m.cfg);
    if (strcmp(is, was)) refuse(t, o->section, o->key, is, was);
    free(is);
    free(was);
}

/* Rows may be written as 0 on one side and as a number on the other. Taken, they do not count as given (mu_vocab_rows). */
static void compare_rows(taking *t) {
    int64_t is = t->c->model.vocab_size, was = t->s->m.vocab_size;
    char a[24], b[24];
    snprintf(a, sizeof a, "%lld", (long long)is);
    snprintf(b, sizeof b, "%lld", (long long)was);
    if (is && is != was) refuse(t, "model", "vocab_size", a, b);
    if (!is) t->c->model.vocab_size = t->s->m.cfg.model.vocab_size;
}

/* Without a method that has them the biases would be lost. */
static void take_biases(taking *t) {
    mu_config *c = t->c;
    if (!(t->s->m.cfg.moe.balance & MU_BALANCE_SELECTION) || c->moe.balance & MU_BALANCE_SELECTION) return;
    if (!mu_options_given(&c->options, "moe", "balance")) c->moe.balance = t->s->m.cfg.moe.balance;
    else
        t->status = mu_options_complain(&c->options, t->e, "moe", "balance", "must contain expert_bias or quantile_balancing: the weights of --init-from %s have selection"
                                        " biases, without which their experts get other tokens (with expert_bias and moe.bias_update_rate: 0 they stay"
                                        " as they are)", t->s->path);
}

static void take_tokenizer(taking *t) {
    mu_config *c = t->c;
    if (mu_options_given(&c->options, "data", "tokenizer")) return;
    char *path = mu_source_tokenizer_path(t->s);
    if (!path)
        t->status = mu_options_complain(&c->options, t->e, "data", "tokenizer", "must be given: %s has no tokenizer.json", t->s->path);
    else if (snprintf(c->data.tokenizer, sizeof c->data.tokenizer, "%s", path) >= (int)sizeof c->data.tokenizer)
        t->status = mu_options_complain(&c->options, t->e, "data", "tokenizer", "the path of that of --init-from is too long: %s", path);
    free(path);
}

mu_status mu_init_configure(mu_config *c, const mu_source *s, mu_error *e) {
    taking t = { c, s, e, MU_STATUS_OK };
    int n;
    const mu_option *table = mu_config_table(&n);
    bool *given = mu_alloc((size_t)n, sizeof *given);
    for (int i = 0; i < n; i++) {
        given[i] = mu_options_given(&c->options, table[i].section, table[i].key);
        bool length = table[i].offset == offsetof(mu_config, model.max_seq_len), rows = table[i].offset == offsetof(mu_config, model.vocab_size);
        if (!given[i] && !rows && (length || mu_option_is_architecture(&table[i]))) take(&t, &table[i]);
    }
    mu_config resolved = *c;
    mu_model_config_resolve(&resolved.model, &resolved.moe);
    for (int i = 0; i < n; i++) {
        bool rows = table[i].offset == offsetof(mu_config, model.vocab_size);
        if (given[i] && mu_option_is_architecture(&table[i]) && !rows) compare(&t, &table[i], &resolved);
    }
    free(given);
    compare_rows(&t);
    take_biases(&t);
    take_tokenizer(&t);
    return t.status;
}

mu_status mu_training_init(mu_training *t, mu_source *s, mu_error *e) {
    mu_mesh *mesh = t->state.mesh;
    for (;;) {
        mu_status status = mu_source_load(s, t->state.model, mesh, t->tokenizer, e);
        if (status == MU_STATUS_DATA) {
            status = mu_source_fall_back(s, mesh->batch, e); /* invalid weights */
            if (status == MU_STATUS_OK) continue;
        }
        if (status == MU_STATUS_OK) t->state.origin = mu_source_origin(s);
        return status;
    }
}
