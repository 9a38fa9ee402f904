/* hf_config.h - config.json, read and written (hf_config.c, hf_export.c). */
#ifndef MUSTER_TRAIN_HF_CONFIG_H
#define MUSTER_TRAIN_HF_CONFIG_H
#include "train/hf_types.h"

#include <jansson.h>

/* *text: sections model and moe, heap (also after a failure, when not NULL). Local. */
mu_status mu_hf_config_read(const char *folder, const mu_hf_model_type **type, char **text, int64_t *vocab_size, mu_error *e) MU_MUST_USE;
const mu_option *mu_hf_option(const char *name);        /* of "model.hidden_size", in the table of all options; fatal when there is none */
/* The first type that holds everything that this configuration computes. CONFIG names the options that the nearest does not hold. Local. */
mu_status mu_hf_choose(const mu_config *cfg, const mu_hf_model_type **type, mu_error *e) MU_MUST_USE;
/* config.json of such a model, heap. eod: the id that ends a document. kept: as in mu_hf_export, an object or NULL. Local. */
char *mu_hf_config_text(const mu_hf_model_type *type, const mu_config *cfg, int64_t vocab_size, int32_t eod, const json_t *kept, bool bf16);
/* An object of at most 1 MiB in a file; the caller releases it, also after a failure. Local. */
mu_status mu_hf_parse(const char *path, json_t **root, mu_error *e) MU_MUST_USE;

#endif
