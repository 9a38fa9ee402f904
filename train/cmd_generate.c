/* cmd_generate.c - muster generate: continues a prompt token by token, with a KV cache; shows the experts of each token on request. */
#include "train/hf.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *path;
    const char *prompt;
    mu_expert_choice choice;
    int64_t tokens, seed;
    double temperature, top_p;
    bool show_experts, no_cache;
    int n_overrides;
    char **overrides; /* device, dtype, threads */
} arguments;

static mu_status number(const char *option, const char *text, double min, double max, double *value,
                        mu_error *e) {
    char *end;
    errno = 0;
    *value = strtod(text, &end);
    if (end == text || *end || errno || !(*value >= min && *value <= max))
        return mu_error_set(e, MU_STATUS_USAGE, "%s %s: expected a number from %g to %g", option, text, min,
                            max);
    return MU_STATUS_OK;
}

static mu_status whole_number(const char *option, const char *text, double max, int64_t *value, mu_error *e) {
    double x = 0;
    mu_status status = number(option, text, 0, max, &x, e);
    if (status == MU_STATUS_OK && x != floor(x))
        status = mu_error_set(e, MU_STATUS_USAGE, "%s %s: expected a whole number", option, text);
    *value = (int64_t)x;
    return status;
}

/* The options with a number; NULL: not given. */
typedef struct { const char *tokens, *seed, *temperature, *top_p; } numbers;
static mu_status read_numbers(arguments *a, const numbers *n, mu_error *e) {
    mu_status status = n->tokens ? whole_number("--tokens", n->tokens, 1e6, &a->tokens, e) : MU_STATUS_OK;
    if (status == MU_STATUS_OK && n->seed) status = whole_number("--seed", n->seed, 9e15, &a->seed, e);
    if (status == MU_STATUS_OK && n->temperature) status = number("--temperature", n->temperature, 0, 100, &a->temperature, e);
    if (status == MU_STATUS_OK && n->top_p) status = number("--top-p", n->top_p, 1e-9, 1, &a->top_p, e);
    return status;
}

static mu_status add_override(arguments *a, char *text, mu_error *e) {
    mu_status status = mu_config_check_use(text, MU_ON_GENERATE, "generate", e);
    if (status == MU_STATUS_OK) a->overrides[a->n_overrides++] = text;
    return status;
}

static mu_status parse(int argc, char **argv, arguments *a, mu_error *e) {
    *a = (arguments){ .tokens = 200, .seed = 1, .temperature = 1, .top_p = 1 };
    a->overrides = mu_alloc((size_t)argc, sizeof *a->overrides);
    numbers n = { 0 };
    const mu_argument options[] = { { "--prompt", &a->prompt, NULL }, { "--tokens", &n.tokens, NULL }, { "--seed", &n.seed, NULL },
                                    { "--temperature", &n.temperature, NULL }, { "--top-p", &n.top_p, NULL }, { "--mask", &a->choice.mask, "LAYER:EXPERT,..." },
                                    { "--force", &a->choice.force, "LAYER:EXPERT,..." } };
    mu_status status = MU_STATUS_OK;
    for (int i = 2; i < argc && status == MU_STATUS_OK; i++) {
        bool found;
        status = mu_argument_find(argc, argv, &i, options, sizeof options / sizeof *options, &found, e);
        if (found) continue;
        if (!strcmp(argv[i], "--show-experts")) a->show_experts = true;
        else if (!strcmp(argv[i], "--no-cache")) a->no_cache = true;
        else if (argv[i][0] == '-')
            return mu_error_set(e, MU_STATUS_USAGE, "unknown option %s", argv[i]);
        else if (a->path && strchr(argv[i], '=')) status = add_override(a, argv[i], e);
        else if (a->path)
            return mu_error_set(e, MU_STATUS_USAGE, "unexpected argument '%s'; overrides are section.key=value", argv[i]);
        else a->path = argv[i];
    }
    if (status == MU_STATUS_OK) status = read_numbers(a, &n, e);
    if (status != MU_STATUS_OK) return status;
    if (!a->path) return mu_error_set(e, MU_STATUS_USAGE, "generate needs a run folder, a checkpoint or a Hugging Face folder");
    return a->prompt ? mu_expand_argument(&a->path, e)
                                     : mu_error_set(e, MU_STATUS_USAGE, "generate needs --prompt TEXT");
}

typedef struct {
    double p;
    int id;
} candidate;

/* The state of generation. The context is tokens from .. n-1, at most model.max_seq_len. */
typedef struct {
    const mu_inference *o;
    const arguments *a;
    mu_expert_mask mask; /* of --mask and --force, borrowed */
    mu_kv_cache *cache; /* NULL: the whole context is recomputed for each new token */
    int V;                 /* ids of the tokenizer: rows of the model beyond them are never sampled */
    int64_t start, from, n, capacity; /* start: first token of the first context; capacity: of tokens */
    int32_t *tokens;              /* [capacity] */
    int32_t *experts;      /* [MoE layers, capacity, K], of each token's latest pass; NULL: not requested */
    mu_routing *routings;  /* [MoE layers], of the latest pass */
    double *logits;        /* [rows of the model] */
    candidate *candidates; /* [V] */
} generation;

typedef struct { int n; int32_t ids[MU_HF_STOPS]; } stops;     /* that end a text beside the end-of-document token */

static void add_tokens(void *to, const int32_t *ids, int64_t n) {
    generation *g = to;
    g->tokens = mu_realloc(g->tokens, (size_t)(g->n + n), sizeof *g->tokens);
    memcpy(g->tokens + g->n, ids, (size_t)n * sizeof *ids);
    g->n += n;
}

static generation generation_new(const mu_inference *o, const arguments *a, mu_expert_mask mask) {
    const mu_model *model = o->state.model;
    int64_t limit = o->cfg.model.max_seq_len;
    int32_t eod = mu_tokenizer_eod(o->tokenizer);
    generation g = { .o = o, .a = a, .mask = mask, .V = mu_tokenizer_vocab_size(o->tokenizer) };
    mu_tokenizer_encode_prompt(o->tokenizer, a->prompt, (int64_t)strlen(a->prompt), add_tokens, &g);
    if (g.n == 0) add_tokens(&g, &eod, 1);      /* a document begins after the end of another */
    g.start = g.from = g.n > limit ? g.n - limit : 0;
    g.capacity = g.n + a->tokens;
    g.tokens = mu_realloc(g.tokens, (size_t)g.capacity, sizeof *g.tokens);
    g.logits = mu_alloc((size_t)model->vocab_size, sizeof *g.logits);
    g.candidates = mu_alloc((size_t)g.V, sizeof *g.candidates);
    if (a->show_experts && model->n_moe)
        g.experts = mu_alloc((size_t)(model->n_moe * g.capacity * o->cfg.moe.top_k), sizeof *g.experts);
    g.routings = mu_alloc((size_t)model->n_moe, sizeof *g.routings);
    if (!a->no_cache)
        g.cache = mu_kv_cache_new(o->dev, (int)o->cfg.model.num_layers, g.capacity < limit ? g.capacity : limit,
                                  model->cfg.num_kv_heads * model->cfg.head_dim);
    return g;
}

static void generation_free(generation *g) {
    mu_kv_cache_free(g->cache);
    free(g->tokens);
    free(g->logits);
    free(g->candidates);
    free(g->experts);
    free(g->routings);
}

/* When the context is full, its last half is kept: dropping one token at a time would give all others a new
 * position, and so new keys, at every step. */
static void truncate_context(generation *g) {
    int64_t limit = g->o->cfg.model.max_seq_len;
    if (g->n - g->from <= limit) return;
    g->from = g->n - limit / 2;
    if (g->cache) g->cache->length = 0;
}

/* Logits after the last token, from a pass over the tokens of the context that are not in the cache. */
static void next_logits(generation *g) {
    mu_model *model = g->o->state.model;
    mu_tape *tape = g->o->tape;
    truncate_context(g);
    int64_t first = g->from + (g->cache ? g->cache->length : 0), n = g->n - first, K = g->o->cfg.moe.top_k;
    mu_tape_record(tape, false);
    mu_context cx = { .mode = MU_MODE_GENERATE, .n_sequences = 1, .seq_len = n, .expert_mask = g->mask, .cache = g->cache };
    mu_tensor *in = mu_tensor_ints(tape, MU_DTYPE_I32, n, g->tokens + first);
    mu_tensor *x = mu_model_forward(model, tape, &cx, in, g->routings);
    mu_tensor_get(mu_model_logits(model, tape, mu_tensor_rows(tape, x, n - 1, 1)), g->logits);
    for (int i = 0; i < model->n_moe && g->experts; i++)
        mu_tensor_read(g->routings[i].ids_TK, g->experts + (i * g->capacity + first) * K);
    mu_tape_reset(tape);
}

static bool precedes(const candidate *x, const candidate *y) { return x->p != y->p ? x->p > y->p : x->id < y->id; }

/* A heap of n candidates, the most likely first: moves candidate i down to its place. */
static void sift_down(candidate *c, int n, int i) {
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && precedes(&c[child + 1], &c[child])) child++;
        if (precedes(&c[i], &c[child])) return;
        candidate x = c[i];
        c[i] = c[child], c[child] = x;
    }
}

/* Takes the most likely of n candidates off the heap and puts it behind the others. Only those that are needed are sorted: a vocabulary
 * may have 150,000 ids. */
static const candidate *take_most_likely(candidate *c, int n) {
    candidate x = c[0];
    c[0] = c[n - 1], c[n - 1] = x;
    sift_down(c, n - 1, 0);
    return &c[n - 1];
}

static int argmax(const double *logits, int V) {
    int best = 0;
    for (int i = 1; i < V; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static int sample(const generation *g) {
    const arguments *a = g->a;
    candidate *c = g->candidates;
    int best = argmax(g->logits, g->V), n = 0, chosen = 0;
    if (a->temperature == 0) return best;
    double sum = 0, kept = 0;
    for (int i = 0; i < g->V; i++) {
        c[i] = (candidate){ exp((g->logits[i] - g->logits[best]) / a->temperature), i };
        sum += c[i].p;
    }
    for (int i = g->V / 2; i >= 0; i--) sift_down(c, g->V, i);
    for (; a->top_p < 1 && n < g->V && (n == 0 || kept < a->top_p * sum); n++) kept += take_most_likely(c, g->V - n)->p;
    int last = a->top_p < 1 ? n : g->V; /* candidates; the first n are sorted, at the end of c */
    mu_rng rng = { (uint64_t)a->seed, (uint32_t)g->n, 0, MU_RNG_GENERATE, 0 };
    double u = mu_rng_uniform(&rng, 0) * (a->top_p < 1 ? kept : sum);
    for (;; chosen++) {
        const candidate *x = chosen < n ? &c[g->V - 1 - chosen] : take_most_likely(c, g->V - chosen);
        if (u < x->p || chosen + 1 == last) return x->id;
        u -= x->p;
    }
}

/* Generated text may hold any byte: escaped on a terminal, unchanged elsewhere. A multi-byte character
 * may come in several tokens; it is shown once complete. */
typedef struct {
    bool escaped;
    char pending[4];
    size_t n;
} text_output;

/* Bytes of the UTF-8 character with this first byte; 1 if invalid. */
static size_t character_bytes(char first) {
    unsigned char b = (unsigned char)first;
    return b >= 0xF0 ? 4 : b >= 0xE0 ? 3 : b >= 0xC0 ? 2 : 1;
}

static void show_pending(text_output *o) {
    char shown[sizeof o->pending * 4 + 1];
    mu_text_escape(shown, sizeof shown, o->pending, o->n, "\n\t");
    fputs(shown, stdout);
    o->n = 0;
}

static void print_bytes(text_output *o, const char *text, size_t n) {
    if (!o->escaped) fwrite(text, 1, n, stdout);
    for (size_t i = 0; i < n && o->escaped; i++) {
        bool continues = (text[i] & 0xC0) == 0x80;
        if (o->n && !continues) show_pending(o);
        o->pending[o->n++] = text[i];
        if (o->n >= character_bytes(o->pending[0])) show_pending(o);
    }
}

/* A short token of plain characters as it is, any other by its id. */
static void print_token(const mu_tokenizer *t, int32_t id) {
    enum { MOST = 8 };
    const char *text;
    int n = (int)mu_tokenizer_decode(t, id, &text), plain = n > 0 && n <= MOST;
    for (int i = 0; i < n && plain; i++) plain = text[i] >= ' ' && text[i] <= '~';
    if (plain) printf("  '%.*s'%*s", n, text, MOST - n, "");
    else printf("  %-10d", id);
}

/* One row per token: the token, then its experts in each MoE layer. */
static void print_experts(const generation *g) {
    const mu_model *model = g->o->state.model;
    int64_t K = g->o->cfg.moe.top_k;
    printf("\nexperts of each token\n  %-10s", "token");
    for (int i = 0; i < model->n_moe; i++)
        printf(" | layer %-*d", (int)(4 * K - 6 > 1 ? 4 * K - 6 : 1), model->moe_layers[i]);
    printf("\n");
    for (int64_t at = g->start; at < g->n; at++) {
        print_token(g->o->tokenizer, g->tokens[at]);
        for (int i = 0; i < model->n_moe; i++) {
            printf(" |");
            for (int64_t k = 0; k < K; k++) printf(" %3d", g->experts[(i * g->capacity + at) * K + k]);
        }
        printf("\n");
    }
}

/* The first token includes the pass over the prompt, so the rate of the others is measured after it. */
static void log_speed(const generation *g, int64_t prompt, double start, double first, double end) {
    if (g->o->cfg.log.progress == MU_LOG_PROGRESS_QUIET) return;
    int64_t made = g->n - prompt;
    char rest[80] = "";
    double speed = made > 1 && end > first ? (double)(made - 1) / (end - first) : 0;
    if (speed > 0) snprintf(rest, sizeof rest, ", then %.*f tokens/s", speed < 100 ? 2 : 0, speed);
    mu_log(MU_LOG_INFO, "%lld token%s in %.3f s: the first after %.3f s (prompt of %lld)%s", (long long)made,
           made == 1 ? "" : "s", end - start, first - start, (long long)prompt, rest);
}

/* Whether a text ends with this token, which is not printed then. */
static bool is_end(const mu_inference *o, const stops *s, int32_t id) {
    bool found = id == mu_tokenizer_eod(o->tokenizer);
    for (int i = 0; i < s->n; i++) found |= id == s->ids[i];
    return found;
}

static void generate(const mu_inference *o, const arguments *a, mu_expert_mask mask, const stops *ends) {
    generation g = generation_new(o, a, mask);
    int64_t prompt = g.n;
    double start = mu_time(), first = start;
    bool ended = false;
    text_output out = { .escaped = mu_output_is_terminal() };
    print_bytes(&out, a->prompt, strlen(a->prompt));
    while (g.n < g.capacity) {
        next_logits(&g);
        int id = sample(&g);
        ended = is_end(o, ends, id);
        if (ended) break;
        g.tokens[g.n++] = id;
        const char *text = NULL;
        int64_t bytes = mu_tokenizer_decode(o->tokenizer, id, &text);
        print_bytes(&out, text, (size_t)bytes);
        fflush(stdout);
        if (g.n == prompt + 1) first = mu_time();
    }
    double end = mu_time();
    show_pending(&out);
    printf("\n");
    if (g.experts) {
        if (!ended) next_logits(&g); /* for the last token's experts, not computed yet */
        print_experts(&g);
    } else if (a->show_experts) printf("(dense model: no experts)\n");
    if (g.n > prompt) log_speed(&g, prompt, start, first, end);
    generation_free(&g);
}

static mu_status read_stops(const mu_inference *o, stops *s, mu_error *e) {
    char *folder = o->source.hf ? mu_strdup(o->source.path) : mu_checkpoint_run(&o->source.m);
    mu_status status = mu_hf_stop_ids(folder, s->ids, &s->n, e);
    free(folder);
    return status;
}

int mu_cmd_generate(int argc, char **argv) {
    mu_error e = { 0 };
    stops ends = { 0 };
    mu_inference o = { 0 };
    arguments a;
    mu_expert_mask mask = { 0 };
    mu_dist_start(&argc, &argv);
    mu_mesh *mesh = mu_mesh_open(NULL, 1);
    int rank = mesh->world->rank;
    mu_report_error(&e, rank);
    mu_status status = parse(argc, argv, &a, &e);
    if (status == MU_STATUS_OK && mesh->world->size > 1)
        status = mu_error_set(&e, MU_STATUS_USAGE, "generate runs on one rank");
    if (status == MU_STATUS_OK)
        status = mu_inference_open(&o, mesh, a.path, a.n_overrides, a.overrides, &e);
    if (status == MU_STATUS_OK && o.cfg.moe.force_domains.n) mu_log(MU_LOG_INFO, "note: moe.force_domains is ignored: a prompt has no domain");
    if (status == MU_STATUS_OK) status = mu_expert_choice_read(&a.choice, o.state.model, NULL, &mask, &e);
    if (status == MU_STATUS_OK) status = read_stops(&o, &ends, &e);
    if (status == MU_STATUS_OK) generate(&o, &a, mask, &ends);
    free((int32_t *)(uintptr_t)mask.values);
    free(a.overrides);
    mu_inference_close(&o);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_mesh_close(mesh);
    mu_dist_stop();
    return (int)status;
}
