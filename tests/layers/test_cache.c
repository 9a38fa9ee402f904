/* test_cache.c - a sequence through the KV cache, token by token or in pieces, gives what one
 * pass over all of it gives: the same bits with the fast kernels, and with the reference to rounding. */
#include "tiny_model.h"

enum { LENGTH = 70, MODELS = 7 };

static mu_model *model_of(int variant, mu_device *dev) {
    mu_model_config cfg = tiny_model_config();
    mu_moe_config moe = tiny_moe_config();
    cfg.max_seq_len = LENGTH;
    if (variant == 1) cfg.qk_norm = false, cfg.num_kv_heads = 4, moe.num_shared_experts = 0;
    if (variant == 2) cfg.num_kv_heads = 1, moe.first_k_dense = 1, moe.score_func = MU_MOE_SCORE_SIGMOID;
    if (variant == 3) cfg.tie_embeddings = true, moe.num_experts = 0;
    if (variant == 4) moe.num_experts = 9, moe.top_k = 1, moe.norm_topk_prob = false, moe.force_balanced = true;
    if (variant == 5) cfg.hidden_size = 64, cfg.head_dim = 32, cfg.ffn_hidden_size = 96;
    if (variant == 6) tiny_options_of_others(&cfg, &moe);
    mu_model *m = mu_model_new(&cfg, &moe, TINY_V, 5, dev, mesh_alone());
    if (variant == 6) tiny_spread_biases(m);
    for (int i = 0; i < m->n_moe && variant == 2; i++) /* the selection bias counts in generation too */
        for (int j = 0; j < 4; j++) m->blocks[m->moe_layers[i]].moe.bias[j] = 0.1 * (j - 1);
    return m;
}

/* Logits of n tokens, [n, V], and the experts of the first MoE layer, [n, K]. */
static void forward(const mu_model *m, mu_tape *tp, mu_kv_cache *cache, const int32_t *tokens, int64_t n,
                    double *logits, int32_t *experts) {
    mu_context cx = { .mode = MU_MODE_GENERATE, .n_sequences = 1, .seq_len = n, .cache = cache };
    mu_routing routings[TINY_LAYERS];
    mu_tape_record(tp, false);
    mu_tensor *in = mu_tensor_ints(tp, MU_DTYPE_I32, n, tokens);
    mu_tensor_get(mu_model_logits(m, tp, mu_model_forward(m, tp, &cx, in, routings)), logits);
    if (m->n_moe) mu_tensor_read(routings[0].ids_TK, experts);
    mu_tape_reset(tp);
}

typedef struct {
    double logits[LENGTH * TINY_V];
    int32_t experts[LENGTH * 2];
} outcome;

/* The whole sequence in pieces of these lengths, over and over. */
static void in_pieces(const mu_model *m, mu_tape *tp, mu_kv_cache *cache, const int32_t *tokens,
                      const int64_t *pieces, int n_pieces, outcome *o) {
    int64_t at = 0;
    cache->length = 0;
    for (int i = 0; at < LENGTH; i++) {
        int64_t n = pieces[i % n_pieces] < LENGTH - at ? pieces[i % n_pieces] : LENGTH - at;
        forward(m, tp, cache, tokens + at, n, o->logits + at * TINY_V, o->experts + at * m->moe_cfg.top_k);
        at += n;
        assert_int_equal(cache->length, at);
    }
}

static void compare(const mu_device *dev, const outcome *whole, const outcome *pieces) {
    if (dev->compute == MU_DTYPE_F32) assert_memory_equal(whole->logits, pieces->logits, sizeof whole->logits);
    for (int i = 0; i < LENGTH * TINY_V; i++) assert_true(fabs(whole->logits[i] - pieces->logits[i]) < 1e-12);
    assert_memory_equal(whole->experts, pieces->experts, sizeof whole->experts);
}

static void check(int variant, const char *device) {
    static const int64_t pieces[] = { 5, 1, 1, 3, 20, 2, 33 }, one = 1, all = LENGTH;
    mu_device *dev = mu_device_open(device);
    if (!dev) return; /* this machine has no such instructions */
    mu_model *m = model_of(variant, dev);
    mu_tape *tp = mu_tape_new(dev);
    mu_kv_cache *cache = mu_kv_cache_new(dev, (int)m->cfg.num_layers, LENGTH,
                                         m->cfg.num_kv_heads * m->cfg.head_dim);
    int32_t *tokens = random_ints(3, LENGTH, TINY_V);
    outcome whole = { 0 }, some = { 0 };
    forward(m, tp, NULL, tokens, LENGTH, whole.logits, whole.experts);
    in_pieces(m, tp, cache, tokens, pieces, 7, &some);
    compare(dev, &whole, &some);
    int64_t memory = mu_device_bytes(dev);
    in_pieces(m, tp, cache, tokens, &one, 1, &some);
    compare(dev, &whole, &some);
    in_pieces(m, tp, cache, tokens, &all, 1, &some);
    compare(dev, &whole, &some);
    assert_int_equal(mu_device_bytes(dev), memory);
    free(tokens);
    mu_kv_cache_free(cache);
    mu_tape_free(tp);
    mu_model_free(m);
    mu_device_close(dev);
}

static void pieces_are_the_whole(void **state) {
    for (int variant = 0; variant < MODELS; variant++) check(variant, *state);
}

/* Remains of another text in the cache have no effect. */
static void an_emptied_cache_is_new(void **state) {
    (void)state;
    static const int64_t pieces[] = { 30, 1, 1 };
    mu_device *dev = mu_device_open("cpu");
    mu_model *m = model_of(0, dev);
    mu_tape *tp = mu_tape_new(dev);
    mu_kv_cache *cache = mu_kv_cache_new(dev, TINY_LAYERS, LENGTH, m->cfg.num_kv_heads * m->cfg.head_dim);
    int32_t *tokens = random_ints(3, LENGTH, TINY_V), *others = random_ints(4, LENGTH, TINY_V);
    outcome first = { 0 }, other = { 0 }, again = { 0 };
    in_pieces(m, tp, cache, tokens, pieces, 3, &first);
    in_pieces(m, tp, cache, others, pieces, 3, &other);
    in_pieces(m, tp, cache, tokens, pieces, 3, &again);
    assert_memory_not_equal(first.logits, other.logits, sizeof first.logits);
    assert_memory_equal(first.logits, again.logits, sizeof first.logits);
    free(tokens);
    free(others);
    mu_kv_cache_free(cache);
    mu_tape_free(tp);
    mu_model_free(m);
    mu_device_close(dev);
}

/* ---------------------------------------------------------------- errors */
static char last_words[1024];

static void remember(mu_status status, const char *line) {
    (void)status;
    snprintf(last_words, sizeof last_words, "%s", line);
    mock_assert(0, line, __FILE__, __LINE__);
}

#define REFUSED(call, words)                                                                   \
    do {                                                                                       \
        expect_assert_failure(call);                                                           \
        if (!strstr(last_words, words)) fail_msg("'%s' does not say '%s'", last_words, words); \
    } while (0)

static void misuse_is_refused(void **state) {
    (void)state;
    mu_device *dev = mu_device_open("cpu");
    mu_model *m = model_of(0, dev);
    mu_tape *tp = mu_tape_new(dev);
    mu_kv_cache *cache = mu_kv_cache_new(dev, TINY_LAYERS, 10, m->cfg.num_kv_heads * m->cfg.head_dim);
    mu_context cx = { .mode = MU_MODE_GENERATE, .n_sequences = 1, .seq_len = 4, .cache = cache };
    mu_routing routings[TINY_LAYERS];
    int32_t *tokens = random_ints(3, LENGTH, TINY_V);
    outcome o;
    mu_fatal_set_handler(remember);
    REFUSED(mu_model_forward(m, tp, &cx, mu_tensor_ints(tp, MU_DTYPE_I32, 4, tokens), routings),
            "no backward");
    mu_tape_record(tp, false);
    REFUSED(mu_model_forward(m, tp, &cx, mu_tensor_ints(tp, MU_DTYPE_I32, 8, tokens), routings),
            "one sequence");
    forward(m, tp, cache, tokens, 10, o.logits, o.experts);
    REFUSED(forward(m, tp, cache, tokens, 1, o.logits, o.experts),
            "1 tokens of width 8 do not fit behind 10 tokens (capacity 10, width 8)");
    mu_fatal_set_handler(NULL);
    free(tokens);
    mu_kv_cache_free(cache);
    mu_tape_free(tp);
    mu_model_free(m);
    mu_device_close(dev);
}

#define ON(kind) \
    { "pieces_are_the_whole " kind, pieces_are_the_whole, NULL, NULL, (void *)(uintptr_t)kind }

int main(void) {
    const struct CMUnitTest tests[] = {
        ON("ref"),
        ON("cpu-base"),
        ON("cpu-avx2"),
        ON("cpu-avx512"),
        ON("guarded"),
        cmocka_unit_test(an_emptied_cache_is_new),
        cmocka_unit_test(misuse_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
