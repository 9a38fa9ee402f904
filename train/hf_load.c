/* hf_load.c - the weights of a model in Hugging Face's files: which tensor holds which of ours, and reading them. */
#include "train/hf_config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct mu_hf {
    char *folder, *config, *tokenizer;
    const mu_hf_model_type *type;
    int64_t vocab_size;
    mu_safetensors *weights;
};

bool mu_hf_is(const char *path) {
    char *config = mu_format("%s/config.json", path);
    bool is = mu_file_exists(config);
    free(config);
    return is;
}

static mu_status check_vocabulary(mu_hf *h, mu_error *e) {
    static const char name[] = "model.embed_tokens.weight";
    const mu_safetensor *t = mu_safetensors_find(h->weights, name);
    int64_t rows = t && t->n_dims ? t->shape[0] : 0;
    if (!t) return mu_error_set(e, MU_STATUS_DATA, "%s: tensor %s is missing", h->folder, name);
    if (rows == h->vocab_size) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_DATA, "%s/config.json: vocab_size: %lld, but tensor %s has %lld rows", h->folder, (long long)h->vocab_size,
                        name, (long long)rows);
}

mu_status mu_hf_open(mu_hf **opened, const char *folder, mu_error *e) {
    mu_hf *h = *opened = mu_alloc(1, sizeof *h);
    h->folder = mu_strdup(folder);
    h->tokenizer = mu_format("%s/tokenizer.json", folder);
    mu_status status = mu_hf_config_read(folder, &h->type, &h->config, &h->vocab_size, e);
    if (status == MU_STATUS_OK) status = mu_safetensors_open(&h->weights, folder, e);
    if (status == MU_STATUS_OK) status = check_vocabulary(h, e);
    if (!mu_file_exists(h->tokenizer)) free(h->tokenizer), h->tokenizer = NULL;
    if (status != MU_STATUS_OK) mu_hf_close(h), *opened = NULL;
    return status;
}

void mu_hf_close(mu_hf *h) {
    if (!h) return;
    mu_safetensors_close(h->weights);
    free(h->folder);
    free(h->config);
    free(h->tokenizer);
    free(h);
}

const char *mu_hf_type(const mu_hf *h) { return h->type->name; }
const char *mu_hf_config(const mu_hf *h) { return h->config; }
int64_t mu_hf_vocab_size(const mu_hf *h) { return h->vocab_size; }
const char *mu_hf_tokenizer(const mu_hf *h) { return h->tokenizer; }

/* ------------------------------------------------------------------ checks */

static mu_status wrong_shape(const mu_hf *h, const mu_safetensor *t, const mu_hf_place *place, mu_error *e) {
    char *theirs = mu_safetensor_shape_text(t->n_dims, t->shape), *ours = mu_safetensor_shape_text(place->n_dims, place->shape);
    mu_status status = mu_error_set(e, MU_STATUS_DATA, "%s: tensor %s has shape %s, but the model needs %s", mu_safetensors_file(h->weights, t),
                                    t->name, theirs, ours);
    free(theirs);
    free(ours);
    return status;
}

/* Finds the tensor; its dtype and shape must fit. */
static mu_status find(const mu_hf *h, const mu_hf_place *place, const mu_safetensor **found, mu_error *e) {
    const mu_safetensor *t = *found = mu_safetensors_find(h->weights, place->name);
    if (!t) {
        char *shape = mu_safetensor_shape_text(place->n_dims, place->shape);
        mu_error_set(e, MU_STATUS_DATA, "%s: tensor %s is missing; the model needs it with shape %s", h->folder, place->name, shape);
        free(shape);
        return MU_STATUS_DATA;
    }
    bool same = t->n_dims == place->n_dims;
    for (int i = 0; same && i < t->n_dims; i++) same = t->shape[i] == place->shape[i];
    if (!same) return wrong_shape(h, t, place, e);
    return mu_safetensors_read(h->weights, t, 0, 0, NULL, e); /* refuses other dtypes */
}

static mu_status claim(const mu_hf *h, const mu_hf_place *place, bool *claimed, mu_error *e) {
    const mu_safetensor *t;
    mu_status status = find(h, place, &t, e);
    if (status == MU_STATUS_OK) claimed[t->number] = true;
    return status;
}

/* The tensors of a parameter: for stacked experts those of every expert, on this rank or not. */
static mu_status claim_param(const mu_hf *h, const mu_param *p, bool *claimed, mu_error *e) {
    const mu_param_desc *d = &p->desc;
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < (d->n_experts ? d->n_experts : 1) && status == MU_STATUS_OK; i++) {
        mu_hf_place place;
        mu_hf_place_of(h->type, p->units[0].name, d->n_experts ? i : -1, d->n_dims, d->shape, d->n_experts, &place);
        status = claim(h, &place, claimed, e);
    }
    return status;
}

/* Whether two tensors have the same values. */
static bool is_equal(mu_hf *h, const mu_safetensor *a, const mu_safetensor *b) {
    enum { CHUNK = 1 << 14 };
    float x[CHUNK], y[CHUNK];
    bool same = a && b && a->count == b->count;
    for (int64_t at = 0; same && at < a->count; at += CHUNK) {
        int64_t n = a->count - at < CHUNK ? a->count - at : CHUNK;
        same = mu_safetensors_read(h->weights, a, at, n, x, NULL) == MU_STATUS_OK &&
               mu_safetensors_read(h->weights, b, at, n, y, NULL) == MU_STATUS_OK && !memcmp(x, y, (size_t)n * sizeof *x);
    }
    return same;
}

/* Tensors without a place that change nothing: tables of angles that old versions wrote, and a second copy of the embedding as the head
 * of a tied model. */
static bool is_unused(mu_hf *h, const mu_model *m, const mu_safetensor *t) {
    size_t n = strlen(t->name);
    static const char table[] = ".rotary_emb.inv_freq";
    if (n > sizeof table && !strcmp(t->name + n - (sizeof table - 1), table)) return true;
    return m->cfg.tie_embeddings && !strcmp(t->name, "lm_head.weight") && is_equal(h, t, mu_safetensors_find(h->weights, "model.embed_tokens.weight"));
}

static mu_status check_extra(mu_hf *h, const mu_model *m, const bool *claimed, mu_error *e) {
    int extra = 0;
    const mu_safetensor *first = NULL;
    for (int i = mu_safetensors_count(h->weights) - 1; i >= 0; i--) {
        const mu_safetensor *t = mu_safetensors_at(h->weights, i);
        if (!claimed[i] && !is_unused(h, m, t)) first = t, extra++;
    }
    if (!first) return MU_STATUS_OK;
    char *shape = mu_safetensor_shape_text(first->n_dims, first->shape);
    mu_error_set(e, MU_STATUS_DATA, "%s: tensor %s, %s, has no place in a model of type %s%s%s", mu_safetensors_file(h->weights, first), first->name,
                 shape, h->type->name, extra > 1 ? "; there are others" : "", strstr(first->name, "bias") ? " (a bias that the configuration does not have)" : "");
    free(shape);
    return MU_STATUS_DATA;
}

mu_status mu_hf_check(mu_hf *h, const mu_model *m, mu_error *e) {
    bool *claimed = mu_alloc((size_t)mu_safetensors_count(h->weights) + 1, sizeof *claimed);
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < m->params->n_params && status == MU_STATUS_OK; i++) status = claim_param(h, m->params->params[i], claimed, e);
    for (int i = 0; i < m->n_moe && h->type->selection_bias && status == MU_STATUS_OK; i++) {
        mu_hf_place place = mu_hf_bias_place(h->type, m->moe_layers[i], m->moe_cfg.num_experts);
        status = claim(h, &place, claimed, e);
    }
    if (status == MU_STATUS_OK) status = check_extra(h, m, claimed, e);
    free(claimed);
    return status;
}

/* ------------------------------------------------------------------ values */

static mu_status read_values(mu_hf *h, const mu_safetensor *t, int64_t first, int64_t n, float *values, mu_error *e) {
    mu_status status = mu_safetensors_read(h->weights, t, first, n, values, e);
    for (int64_t i = 0; i < n && status == MU_STATUS_OK; i++)
        if (!isfinite(values[i]))
            status = mu_error_set(e, MU_STATUS_DATA, "%s: tensor %s: value %lld is not finite", mu_safetensors_file(h->weights, t), t->name,
                                  (long long)(first + i));
    return status;
}

mu_status mu_hf_read_unit(mu_hf *h, const mu_unit *u, int64_t first, int64_t n, float *values, mu_error *e) {
    const mu_param_desc *d = &u->param->desc;
    const mu_safetensor *t;
    mu_hf_place place;
    mu_hf_place_of(h->type, u->name, -1, d->n_dims, d->shape, d->n_experts, &place);
    mu_status status = find(h, &place, &t, e);
    return status == MU_STATUS_OK ? read_values(h, t, place.first + first, n, values, e) : status;
}

mu_status mu_hf_read_bias(mu_hf *h, const mu_moe *moe, double *bias, mu_error *e) {
    mu_hf_place place = mu_hf_bias_place(h->type, moe->layer, moe->E);
    const mu_safetensor *t;
    float *values = mu_alloc((size_t)moe->E, sizeof *values);
    mu_status status = h->type->selection_bias ? find(h, &place, &t, e) : MU_STATUS_OK;
    if (status == MU_STATUS_OK && h->type->selection_bias) status = read_values(h, t, 0, moe->E, values, e);
    for (int64_t i = 0; i < moe->E; i++) bias[i] = (double)values[i];
    free(values);
    return status;
}

static mu_status load_unit(mu_hf *h, mu_unit *u, mu_error *e) {
    enum { CHUNK = 1 << 16 };
    mu_device *dev = u->param->tensor.dev;
    float *values = mu_alloc(CHUNK, sizeof *values);
    double *wide = mu_alloc(CHUNK, sizeof *wide);
    mu_status status = MU_STATUS_OK;
    for (int64_t at = 0; at < u->count && status == MU_STATUS_OK; at += CHUNK) {
        int64_t n = u->count - at < CHUNK ? u->count - at : CHUNK;
        status = mu_hf_read_unit(h, u, at, n, values, e);
        for (int64_t i = 0; i < n; i++) wide[i] = (double)values[i];
        if (status == MU_STATUS_OK) mu_reals_set(dev, dev->master, (char *)mu_unit_data(u) + (size_t)at * mu_dtype_size(dev->master), n, wide);
        mu_activity_set("loading weights", -1, NULL);
    }
    free(values);
    free(wide);
    return status;
}

static mu_status load_bias(mu_hf *h, mu_moe *moe, mu_error *e) {
    double *bias = mu_alloc((size_t)moe->E, sizeof *bias);
    mu_status status = mu_hf_read_bias(h, moe, bias, e);
    bool used = moe->cfg->balance & MU_BALANCE_SELECTION;
    for (int64_t i = 0; i < moe->E && status == MU_STATUS_OK; i++) {
        if (used) moe->bias[i] = bias[i];
        else if (bias[i] != 0)
            status = mu_error_set(e, MU_STATUS_CONFIG, "%s: layer %d has a selection bias (e_score_correction_bias), which needs expert_bias or"
                                  " quantile_balancing in moe.balance", h->folder, moe->layer);
    }
    free(bias);
    return status;
}

mu_status mu_hf_load(mu_hf *h, mu_model *m, mu_error *e) {
    mu_params *ps = m->params;
    mu_status status = mu_hf_check(h, m, e);
    for (int i = 0; i < m->n_moe && status == MU_STATUS_OK; i++) status = load_bias(h, &m->blocks[m->moe_layers[i]].moe, e);
    for (mu_unit *u = mu_unit_next(ps, NULL); u && status == MU_STATUS_OK && !ps->dev->shape_only; u = mu_unit_next(ps, u))
        status = load_unit(h, u, e);
    if (status == MU_STATUS_OK && !ps->dev->shape_only) mu_params_refresh(ps);
    return status;
}
