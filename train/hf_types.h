/* hf_types.h - the table of model types of Hugging Face, shared by the files hf_*.c. */
#ifndef MUSTER_TRAIN_HF_TYPES_H
#define MUSTER_TRAIN_HF_TYPES_H
#include "train/hf.h"

/* Values are JSON. A key is read and written, unless it says otherwise. `key` may be several names, "a|b": the first is written. */
typedef enum {
    MU_HF_OPTION,       /* the value of the option; missing or null: `value`; without one the key is needed */
    MU_HF_IMPORT,       /* the same, not written */
    MU_HF_EXPORT,       /* the same, not read */
    MU_HF_FIXED,        /* no key: in this type the option always has this value */
    MU_HF_SETS,         /* no key: set on import; whatever its value on export */
    MU_HF_MUST,         /* the key is missing, null, or has one of these values, "a|b", the first of which is written */
    MU_HF_MUST_READ,    /* the same, not written */
    MU_HF_WRITE,        /* written with this value, not read */
    MU_HF_WIDTH,        /* of all shared experts together: moe.num_shared_experts times moe.moe_ffn_hidden_size */
    MU_HF_NULL,         /* the value of the option, which is 0 where theirs is null */
    MU_HF_SCALE,        /* the factor of the attention scores; written out where the option is 0, its usual value */
    MU_HF_DENSE_LAYERS, /* a list of dense layers, which must be the first ones: moe.first_k_dense */
} mu_hf_kind;
typedef struct {
    mu_hf_kind kind;
    const char *key, *option, *value;
} mu_hf_key;

/* The rest of a tensor's name within its layer; %d: the expert. theirs: a fused tensor holds `parts` of ours one after another, ours is
 * number `part`; stacked: one such group per expert, in a dimension of its own in front. Names without a row differ in '/' alone. */
typedef struct {
    const char *ours, *theirs;
    int parts, part;
    bool stacked;
} mu_hf_name;

typedef struct {
    const char *name, *class;   /* model_type and architecture */
    const mu_hf_key *keys;      /* ends with a row without key and option, like the next */
    const mu_hf_name *names;
    double rope_theta;          /* when it is not given */
    bool window_switch;         /* sliding_window counts only with use_sliding_window */
    bool selection_bias;        /* every MoE layer has one */
    int least_shared;           /* shared experts that a MoE layer has at least */
    bool whole_heads;           /* hidden_size is a multiple of the heads, whatever head_dim */
} mu_hf_model_type;

const mu_hf_model_type *mu_hf_type_named(const char *name);     /* NULL: unknown */
const mu_hf_model_type *mu_hf_type_at(int i);                   /* in order of preference for export; NULL at the end */
extern const mu_hf_key mu_hf_common_keys[];                     /* of all types */
bool mu_hf_is_harmless(const char *key);                        /* in config.json, without effect on what a model computes */

/* Where a tensor of ours is: values [first, first + count) of theirs, which has this name and shape. */
typedef struct {
    char name[192];
    int n_dims;
    int64_t shape[3], first, count;
} mu_hf_place;
/* Of the unit `name` ("/layers/3/mlp/experts/17/up_proj/weight") of this shape, in a model with `experts` experts. expert: -1, or the
 * id that replaces the one in the name. */
void mu_hf_place_of(const mu_hf_model_type *type, const char *name, int expert, int n_dims, const int64_t *shape, int64_t experts,
                    mu_hf_place *place);
mu_hf_place mu_hf_bias_place(const mu_hf_model_type *type, int layer, int64_t experts);     /* of a layer's selection bias */

#endif
