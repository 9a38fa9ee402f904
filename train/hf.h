/* hf.h - models in Hugging Face's files: config.json, *.safetensors, tokenizer.json. Model types and their limits are in docs/models.md;
 * a type is a set of table rows in hf_types.c. */
#ifndef MUSTER_TRAIN_HF_H
#define MUSTER_TRAIN_HF_H
#include "train/train.h"

/* ------------------------------------------------------------------ reading (hf_config.c, hf_load.c) */
typedef struct mu_hf mu_hf;
bool mu_hf_is(const char *path);                /* a folder with a config.json */
/* Reads config.json and the headers of the weights. MU_STATUS_DATA names file, key and reason, also for what muster does not compute;
 * NOINPUT: a file is missing. Unknown keys are logged as a warning. The caller closes it. Local. */
mu_status mu_hf_open(mu_hf **h, const char *folder, mu_error *e) MU_MUST_USE;
void mu_hf_close(mu_hf *h);                     /* NULL is allowed */
const char *mu_hf_type(const mu_hf *h);         /* "qwen3_moe" */
/* The sections model and moe as YAML: the options that the type and config.json decide. Of moe.balance only what the weights need
 * (expert_bias for a selection bias): it may be extended. */
const char *mu_hf_config(const mu_hf *h);
int64_t mu_hf_vocab_size(const mu_hf *h);       /* rows of the embedding */
const char *mu_hf_tokenizer(const mu_hf *h);    /* path of the folder's tokenizer.json, or NULL */
/* Loads every weight that this rank holds, reading only those, and selection biases. MU_STATUS_DATA: a tensor is missing, unknown, of
 * another shape (both are named) or not finite; CONFIG: a selection bias that the model does not use. Local. */
mu_status mu_hf_load(mu_hf *h, mu_model *model, mu_error *e) MU_MUST_USE;
/* Its parts, for a model whose values are not in memory: the checks of all tensors; values [first, first + n) of a unit; the selection
 * bias of a layer, [E], 0 in types without one. Local. */
mu_status mu_hf_check(mu_hf *h, const mu_model *model, mu_error *e) MU_MUST_USE;
mu_status mu_hf_read_unit(mu_hf *h, const mu_unit *u, int64_t first, int64_t n, float *values, mu_error *e) MU_MUST_USE;
mu_status mu_hf_read_bias(mu_hf *h, const mu_moe *moe, double *bias, mu_error *e) MU_MUST_USE;
/* The ids that end a text beside the tokenizer's end-of-document token: "eos_token_id" of the folder's generation_config.json, or where that
 * has none of its config.json, or of MU_HF_KEPT in a run that muster convert made. DATA: it is neither null, an id nor a list of ids. Local. */
#define MU_HF_KEPT "hf_config.json"
enum { MU_HF_STOPS = 64 };
mu_status mu_hf_stop_ids(const char *folder, int32_t ids[MU_HF_STOPS], int *n, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ writing (hf_export.c, hf_save.c) */
/* Reads one array of a checkpoint, as mu_store_read. */
typedef mu_status mu_hf_source(void *from, const char *name, mu_store_type type, int n_dims, const int64_t *shape, void *values, mu_error *e);
typedef struct {
    const mu_config *cfg;           /* these three are borrowed */
    const mu_model *model;          /* of one rank, which holds every expert; only its names and shapes are used */
    const mu_tokenizer *tokenizer;
    const char *kept;               /* a config.json of the model's earlier life, whose special ids, router_aux_loss_coef and initializer_range
                                     * stay; NULL: none */
    bool bf16;                      /* else fp32 */
    int64_t shard_bytes;            /* of tensors in one file, at most */
    mu_hf_source *read;
    void *from;
} mu_hf_export;
/* Whether some type holds the configuration: CONFIG names the options that the nearest does not. Local. */
mu_status mu_hf_holds(const mu_config *cfg, mu_error *e) MU_MUST_USE;
/* Writes config.json, weights, tokenizer files, and without a kept one generation_config.json, into an existing, empty folder. *type: its
 * model_type. Local. */
mu_status mu_hf_save(const char *folder, const mu_hf_export *x, const char **type, mu_error *e) MU_MUST_USE;
/* tokenizer.json and tokenizer_config.json alone. The tokenizer "bytes" is written as a byte-level BPE with the same ids. Local. */
mu_status mu_hf_write_tokenizer(const char *folder, const mu_tokenizer *t, int64_t max_seq_len, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ files beside the weights (hf_notes.c) */
/* Copies FROM/NAME, if it exists, as TO/NEW_NAME; and those that go through a conversion or a surgery as they are. Local. */
mu_status mu_hf_copy_note(const char *from, const char *name, const char *to, const char *new_name, mu_error *e) MU_MUST_USE;
mu_status mu_hf_copy_notes(const char *from, const char *to, mu_error *e) MU_MUST_USE;

#endif
