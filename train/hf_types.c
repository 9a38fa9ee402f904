/* hf_types.c - the model types of Hugging Face: their names of tensors, their keys in config.json, and the options of muster that
 * these mean. Facts: the classes of transformers 5 (models/TYPE/configuration_TYPE.py, modeling_TYPE.py, conversion_mapping.py). */
#include "train/hf_types.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ keys */

const mu_hf_key mu_hf_common_keys[] = {
    { MU_HF_OPTION, "hidden_size", "model.hidden_size", NULL },
    { MU_HF_OPTION, "num_hidden_layers", "model.num_layers", NULL },
    { MU_HF_OPTION, "num_attention_heads", "model.num_heads", NULL },
    { MU_HF_OPTION, "max_position_embeddings", "model.max_seq_len", NULL },
    { MU_HF_OPTION, "rms_norm_eps", "model.rms_norm_eps", NULL },
    { MU_HF_OPTION, "tie_word_embeddings", "model.tie_embeddings", "false" },
    { MU_HF_EXPORT, "initializer_range", "model.init_std", NULL },
    { MU_HF_MUST, "hidden_act", NULL, "\"silu\"|\"swish\"" },
    { MU_HF_MUST_READ, "mlp_bias", NULL, "false" },
    { MU_HF_MUST_READ, "partial_rotary_factor", NULL, "1.0|1" },
    { MU_HF_MUST_READ, "position_embedding_type", NULL, "\"rope\"" },
    { MU_HF_MUST_READ, "quantization_config", NULL, "null" },
    { MU_HF_WRITE, "use_cache", NULL, "true" },
    { MU_HF_WRITE, "attention_dropout", NULL, "0.0" },
    { 0 },
};

#define HEADS { MU_HF_OPTION, "num_key_value_heads", "model.num_kv_heads", "0" }
#define HEAD_DIM { MU_HF_OPTION, "head_dim", "model.head_dim", "0" }
/* written by none of these types' models: it is hidden_size / num_attention_heads there */
#define HEAD_DIM_IN { MU_HF_IMPORT, "head_dim", "model.head_dim", "0" }
#define NO_BIAS { MU_HF_MUST, "attention_bias", NULL, "false" }
#define DENSE_FFN { MU_HF_OPTION, "intermediate_size", "model.ffn_hidden_size", NULL }
#define EXPERT_FFN { MU_HF_OPTION, "moe_intermediate_size", "moe.moe_ffn_hidden_size", NULL }
#define TOP_K { MU_HF_OPTION, "num_experts_per_tok", "moe.top_k", NULL }
#define RENORM { MU_HF_OPTION, "norm_topk_prob", "moe.norm_topk_prob", "false" }
#define RENORMALIZED { MU_HF_FIXED, NULL, "moe.norm_topk_prob", "true" }
#define SOFTMAX { MU_HF_FIXED, NULL, "moe.score_func", "softmax" }, { MU_HF_FIXED, NULL, "moe.route_scale", "1.0" }
#define ALL_MOE { MU_HF_FIXED, NULL, "moe.moe_layer_freq", "1" }, { MU_HF_FIXED, NULL, "moe.first_k_dense", "0" }
#define SPARSE_STEP \
    { MU_HF_OPTION, "decoder_sparse_step", "moe.moe_layer_freq", "1" }, { MU_HF_DENSE_LAYERS, "mlp_only_layers", "moe.first_k_dense", "[]" }
#define NO_SHARED { MU_HF_FIXED, NULL, "moe.num_shared_experts", "0" }
#define QK_NORM(is) { MU_HF_FIXED, NULL, "model.qk_norm", is }
#define DENSE { MU_HF_FIXED, NULL, "moe.num_experts", "0" }
#define SWITCH_OFF { MU_HF_WRITE, "use_sliding_window", NULL, "false" }, { MU_HF_WRITE, "sliding_window", NULL, "null" }
#define NO_WINDOW { MU_HF_WRITE, "sliding_window", NULL, "null" }
#define END { 0 }

static const mu_hf_key qwen3_moe_keys[] = {
    HEADS, HEAD_DIM, NO_BIAS, DENSE_FFN, EXPERT_FFN, TOP_K, RENORM, SOFTMAX, SPARSE_STEP, NO_SHARED, QK_NORM("true"), SWITCH_OFF,
    { MU_HF_OPTION, "num_experts|num_local_experts", "moe.num_experts", NULL },
    END,
};

static const mu_hf_key dots1_keys[] = {
    HEADS, HEAD_DIM, NO_BIAS, DENSE_FFN, EXPERT_FFN, TOP_K, RENORM, QK_NORM("true"), NO_WINDOW,
    { MU_HF_OPTION, "n_routed_experts|num_local_experts", "moe.num_experts", NULL },
    { MU_HF_OPTION, "n_shared_experts", "moe.num_shared_experts", NULL },
    { MU_HF_OPTION, "first_k_dense_replace", "moe.first_k_dense", "0" },
    { MU_HF_OPTION, "routed_scaling_factor", "moe.route_scale", "1.0" },
    { MU_HF_MUST, "moe_layer_freq", NULL, "1" },
    { MU_HF_FIXED, NULL, "moe.moe_layer_freq", "1" },
    { MU_HF_MUST, "n_group", NULL, "1" },
    { MU_HF_MUST, "topk_group", NULL, "1" },
    { MU_HF_MUST_READ, "scoring_func", NULL, "\"sigmoid\"|\"noaux_tc\"" },
    { MU_HF_MUST_READ, "topk_method", NULL, "\"noaux_tc\"" },
    { MU_HF_FIXED, NULL, "moe.score_func", "sigmoid" },
    { MU_HF_SETS, NULL, "moe.balance", "[expert_bias]" },
    END,
};

static const mu_hf_key mixtral_keys[] = {
    HEADS, HEAD_DIM, TOP_K, SOFTMAX, ALL_MOE, NO_SHARED, QK_NORM("false"), NO_WINDOW,
    { MU_HF_OPTION, "num_local_experts|num_experts", "moe.num_experts", NULL },
    { MU_HF_OPTION, "intermediate_size", "moe.moe_ffn_hidden_size", NULL },
    RENORMALIZED,
    END,
};

/* The scores of the chosen experts are the softmax over their logits alone: that is renormalised softmax. */
#define GRANITE_KEYS \
    HEADS, HEAD_DIM_IN, NO_BIAS, TOP_K, SOFTMAX, RENORMALIZED, ALL_MOE, QK_NORM("false"), \
    { MU_HF_OPTION, "num_local_experts", "moe.num_experts", NULL }, \
    { MU_HF_OPTION, "intermediate_size", "moe.moe_ffn_hidden_size", NULL }, \
    { MU_HF_OPTION, "embedding_multiplier", "model.embedding_multiplier", "1.0" }, \
    { MU_HF_OPTION, "residual_multiplier", "model.residual_multiplier", "1.0" }, \
    { MU_HF_OPTION, "logits_scaling", "model.logits_scaling", "1.0" }, \
    { MU_HF_SCALE, "attention_multiplier", "model.attention_multiplier", "1.0" }
static const mu_hf_key granitemoe_keys[] = { GRANITE_KEYS, NO_SHARED, END };
static const mu_hf_key granitemoeshared_keys[] = {
    GRANITE_KEYS,
    { MU_HF_WIDTH, "shared_intermediate_size", "moe.num_shared_experts", "0" },
    END,
};

static const mu_hf_key olmoe_keys[] = {
    HEADS, HEAD_DIM_IN, NO_BIAS, TOP_K, RENORM, SOFTMAX, ALL_MOE, NO_SHARED, QK_NORM("true"),
    { MU_HF_FIXED, NULL, "model.qk_norm_over", "all" },
    { MU_HF_OPTION, "num_experts|num_local_experts", "moe.num_experts", NULL },
    { MU_HF_OPTION, "intermediate_size", "moe.moe_ffn_hidden_size", NULL },
    { MU_HF_NULL, "clip_qkv", "model.clip_qkv", "0" },
    END,
};

static const mu_hf_key qwen2_moe_keys[] = {
    HEADS, HEAD_DIM_IN, DENSE_FFN, EXPERT_FFN, TOP_K, RENORM, SOFTMAX, SPARSE_STEP, QK_NORM("false"), SWITCH_OFF,
    { MU_HF_OPTION, "num_experts|num_local_experts", "moe.num_experts", NULL },
    { MU_HF_OPTION, "qkv_bias", "model.qkv_bias", "true" },
    { MU_HF_WIDTH, "shared_expert_intermediate_size", "moe.num_shared_experts", NULL },
    { MU_HF_FIXED, NULL, "moe.shared_expert_gate", "true" },
    END,
};

static const mu_hf_key qwen3_keys[] = {
    HEADS, NO_BIAS, DENSE_FFN, DENSE, QK_NORM("true"), SWITCH_OFF,
    { MU_HF_OPTION, "head_dim", "model.head_dim", "128" },
    END,
};

static const mu_hf_key llama_keys[] = { HEADS, HEAD_DIM, NO_BIAS, DENSE_FFN, DENSE, QK_NORM("false"), END };

/* ------------------------------------------------------------------ names of tensors */

#define GATE "mlp/experts/%d/gate_proj/weight"
#define UP "mlp/experts/%d/up_proj/weight"
#define DOWN "mlp/experts/%d/down_proj/weight"
#define ROUTER "mlp/gate/weight"

static const mu_hf_name own_names[] = { { 0 } };

static const mu_hf_name mixtral_names[] = {
    { ROUTER, "block_sparse_moe.gate.weight", 1, 0, false },
    { GATE, "block_sparse_moe.experts.%d.w1.weight", 1, 0, false },
    { UP, "block_sparse_moe.experts.%d.w3.weight", 1, 0, false },
    { DOWN, "block_sparse_moe.experts.%d.w2.weight", 1, 0, false },
    { 0 },
};

static const mu_hf_name granite_names[] = {
    { ROUTER, "block_sparse_moe.router.layer.weight", 1, 0, false },
    { GATE, "block_sparse_moe.input_linear.weight", 2, 0, true },
    { UP, "block_sparse_moe.input_linear.weight", 2, 1, true },
    { DOWN, "block_sparse_moe.output_linear.weight", 1, 0, true },
    { "mlp/shared_experts/gate_proj/weight", "shared_mlp.input_linear.weight", 2, 0, false },
    { "mlp/shared_experts/up_proj/weight", "shared_mlp.input_linear.weight", 2, 1, false },
    { "mlp/shared_experts/down_proj/weight", "shared_mlp.output_linear.weight", 1, 0, false },
    { 0 },
};

static const mu_hf_name qwen2_moe_names[] = {
    { "mlp/shared_experts/gate_proj/weight", "mlp.shared_expert.gate_proj.weight", 1, 0, false },
    { "mlp/shared_experts/up_proj/weight", "mlp.shared_expert.up_proj.weight", 1, 0, false },
    { "mlp/shared_experts/down_proj/weight", "mlp.shared_expert.down_proj.weight", 1, 0, false },
    { 0 },
};

/* ------------------------------------------------------------------ types */

static const mu_hf_model_type types[] = {
    { "qwen3_moe", "Qwen3MoeForCausalLM", qwen3_moe_keys, own_names, .rope_theta = 10000, .window_switch = true },
    { "dots1", "Dots1ForCausalLM", dots1_keys, own_names, .rope_theta = 10000, .selection_bias = true, .least_shared = 1 },
    { "mixtral", "MixtralForCausalLM", mixtral_keys, mixtral_names, .rope_theta = 1e6 },
    { "granitemoe", "GraniteMoeForCausalLM", granitemoe_keys, granite_names, .rope_theta = 10000 },
    { "granitemoeshared", "GraniteMoeSharedForCausalLM", granitemoeshared_keys, granite_names, .rope_theta = 10000 },
    { "olmoe", "OlmoeForCausalLM", olmoe_keys, own_names, .rope_theta = 10000 },
    { "qwen2_moe", "Qwen2MoeForCausalLM", qwen2_moe_keys, qwen2_moe_names, .rope_theta = 10000, .window_switch = true, .least_shared = 1 },
    { "qwen3", "Qwen3ForCausalLM", qwen3_keys, own_names, .rope_theta = 10000, .window_switch = true },
    { "llama", "LlamaForCausalLM", llama_keys, own_names, .rope_theta = 10000, .whole_heads = true },
};
enum { N_TYPES = sizeof types / sizeof *types };

const mu_hf_model_type *mu_hf_type_at(int i) { return i < N_TYPES ? &types[i] : NULL; }

const mu_hf_model_type *mu_hf_type_named(const char *name) {
    for (int i = 0; i < N_TYPES; i++)
        if (!strcmp(types[i].name, name)) return &types[i];
    return NULL;
}

bool mu_hf_is_harmless(const char *key) {
    static const char *const known[] = {
        "model_type", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "use_cache", "_name_or_path",
        "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
        "tokenizer_class", "prefix", "attention_dropout", "initializer_range", "router_aux_loss_coef", "router_jitter_noise",
        "output_router_logits", "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder", "is_decoder",
        "add_cross_attention", "cross_attention_hidden_size", "tie_encoder_decoder", "chunk_size_feed_forward", "finetuning_task",
        "id2label", "label2id", "problem_type", "pruned_heads", "task_specific_params", "torchscript", "use_bfloat16", "tf_legacy_loss",
        "pretraining_tp", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "max_window_layers",
        "seq_aux", "aux_loss_alpha", "ep_size", "name", "experts_implementation", "_experts_implementation",
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i], key)) return true;
    return false;
}

/* ------------------------------------------------------------------ places */

/* `text` with its %d replaced by the number. */
static char *with_number(const char *text, int number) {
    const char *at = strstr(text, "%d");
    return at ? mu_format("%.*s%d%s", (int)(at - text), text, number, at + 2) : mu_strdup(text);
}

/* Splits "/layers/3/mlp/experts/17/up_proj/weight" into layer 3, expert 17 and "mlp/experts/%d/up_proj/weight" (heap); layer and expert
 * are -1 where there is none. */
static char *split(const char *name, int *layer, int *expert) {
    static const char layers[] = "/layers/", experts[] = "mlp/experts/";
    char *end = NULL;
    *layer = *expert = -1;
    const char *rest = name + 1;
    if (!strncmp(name, layers, sizeof layers - 1)) *layer = (int)strtol(name + sizeof layers - 1, &end, 10), rest = end + 1;
    if (strncmp(rest, experts, sizeof experts - 1)) return mu_strdup(rest);
    *expert = (int)strtol(rest + sizeof experts - 1, &end, 10);
    return mu_format("%s%%d%s", experts, end);
}

static const mu_hf_name *find_name(const mu_hf_model_type *type, const char *ours) {
    for (const mu_hf_name *n = type->names; n->ours; n++)
        if (!strcmp(n->ours, ours)) return n;
    return NULL;
}

static void set_name(mu_hf_place *p, int layer, const char *rest) {
    bool head = !strncmp(rest, "lm_head", 7);
    if (layer < 0) snprintf(p->name, sizeof p->name, "%s%s", head ? "" : "model.", rest);
    else snprintf(p->name, sizeof p->name, "model.layers.%d.%s", layer, rest);
    for (char *c = p->name; *c; c++)
        if (*c == '/') *c = '.';
}

void mu_hf_place_of(const mu_hf_model_type *type, const char *name, int expert, int n_dims, const int64_t *shape, int64_t experts,
                    mu_hf_place *place) {
    int layer, named;
    char *ours = split(name, &layer, &named);
    const mu_hf_name *row = find_name(type, ours);
    char *rest = with_number(row ? row->theirs : ours, expert >= 0 ? expert : named);
    *place = (mu_hf_place){ .count = 1 };
    set_name(place, layer, rest);
    if (row && row->stacked) place->shape[place->n_dims++] = experts;
    for (int i = 0; i < n_dims; i++) place->shape[place->n_dims++] = shape[i] * (row && i == 0 ? row->parts : 1), place->count *= shape[i];
    int64_t group = row && row->stacked ? (expert >= 0 ? expert : named) : 0;
    if (row) place->first = (group * row->parts + row->part) * place->count;
    free(rest);
    free(ours);
}

mu_hf_place mu_hf_bias_place(const mu_hf_model_type *type, int layer, int64_t experts) {
    mu_hf_place place;
    char *name = mu_format("/layers/%d/mlp/gate/e_score_correction_bias", layer);
    mu_hf_place_of(type, name, -1, 1, &experts, experts, &place);
    free(name);
    return place;
}
