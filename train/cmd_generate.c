/* cmd_generate.c - muster generate: continues a prompt, and shows which experts took each token. */
#include "train/train.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *path, *prompt;
    int64_t tokens, seed;
    double temperature, top_p;
    bool show_experts;
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

static mu_status set_option(arguments *a, const char *option, const char *value, mu_error *e) {
    if (!strcmp(option, "--tokens")) return whole_number(option, value, 1e6, &a->tokens, e);
    if (!strcmp(option, "--seed")) return whole_number(option, value, 9e15, &a->seed, e);
    if (!strcmp(option, "--temperature")) return number(option, value, 0, 100, &a->temperature, e);
    if (!strcmp(option, "--top-p")) return number(option, value, 1e-9, 1, &a->top_p, e);
    a->prompt = value;
    return MU_STATUS_OK;
}

/* The option that `text` names, as `--tokens 5` or `--tokens=5`; *value then is what follows, or NULL. */
static const char *find_option(const char *text, const char **value) {
    static const char *const options[] = { "--prompt", "--tokens", "--seed", "--temperature", "--top-p" };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        size_t n = strlen(options[i]);
        if (strncmp(text, options[i], n) || (text[n] && text[n] != '=')) continue;
        *value = text[n] ? text + n + 1 : NULL;
        return options[i];
    }
    return NULL;
}

static mu_status parse(int argc, char **argv, arguments *a, mu_error *e) {
    *a = (arguments){ .tokens = 200, .seed = 1, .temperature = 1, .top_p = 1 };
    mu_status status = MU_STATUS_OK;
    for (int i = 2; i < argc && status == MU_STATUS_OK; i++) {
        const char *value = NULL, *option = find_option(argv[i], &value);
        if (option && !value && i + 1 == argc)
            return mu_error_set(e, MU_STATUS_USAGE, "%s needs a value", option);
        if (option) status = set_option(a, option, value ? value : argv[++i], e);
        else if (!strcmp(argv[i], "--show-experts")) a->show_experts = true;
        else if (argv[i][0] == '-')
            return mu_error_set(e, MU_STATUS_USAGE, "%s is not an option of generate", argv[i]);
        else if (a->path)
            return mu_error_set(e, MU_STATUS_USAGE, "%s: one checkpoint is enough (%s)", argv[i], a->path);
        else a->path = argv[i];
    }
    if (status != MU_STATUS_OK) return status;
    if (!a->path) return mu_error_set(e, MU_STATUS_USAGE, "generate needs a run folder or a checkpoint");
    return a->prompt && a->prompt[0] ? MU_STATUS_OK
                                     : mu_error_set(e, MU_STATUS_USAGE, "generate needs --prompt TEXT");
}

/* Logits after the last of n tokens; the experts of every token at *ids [layers][n*K] when asked. */
static void next_logits(mu_trainer *t, const int32_t *tokens, int64_t n, double *logits, int32_t *ids) {
    mu_tape_record(t->tape, false);
    mu_context cx = mu_trainer_context(t, MU_MODE_GENERATE, 1);
    cx.seq_len = n;
    mu_tensor *in = mu_tensor_ints(t->tape, MU_DTYPE_I32, n, tokens);
    mu_tensor *x = mu_model_forward(t->model, t->tape, &cx, in, t->routings);
    mu_tensor *last = mu_tensor_2d(t->tape, 1, x->shape[1]),
              *index = mu_tensor_ints(t->tape, MU_DTYPE_I32, 1, &(int32_t){ (int32_t)n - 1 });
    t->dev->k->gather(t->dev, 1, x->shape[1], mu_data(index), mu_data(x), mu_data(last));
    mu_tensor_get(mu_model_logits(t->model, t->tape, last), logits);
    for (int i = 0; i < t->model->n_moe && ids; i++)
        mu_tensor_read(t->routings[i].ids_TK, ids + i * n * t->cfg.moe.top_k);
    mu_tape_reset(t->tape);
}

typedef struct {
    double p;
    int id;
} candidate;
static int by_probability(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : x->id - y->id;
}

static int draw(const arguments *a, const double *logits, int V, int64_t position) {
    candidate *c = mu_alloc((size_t)V, sizeof *c);
    double top = -INFINITY, sum = 0, kept = 0;
    for (int i = 0; i < V; i++) top = fmax(top, logits[i]);
    for (int i = 0; i < V; i++) {
        c[i] = (candidate){ a->temperature > 0 ? exp((logits[i] - top) / a->temperature) : logits[i] == top,
                            i };
        sum += c[i].p;
    }
    qsort(c, (size_t)V, sizeof *c, by_probability);
    int n = 0;
    while (n < V && (n == 0 || kept < a->top_p * sum)) kept += c[n++].p;
    mu_rng rng = { (uint64_t)a->seed, (uint32_t)position, 0, MU_RNG_GENERATE, 0 };
    double u = mu_rng_uniform(&rng, 0) * kept;
    int chosen = 0;
    while (chosen + 1 < n && u >= c[chosen].p) u -= c[chosen++].p;
    int id = a->temperature > 0 ? c[chosen].id : c[0].id;
    free(c);
    return id;
}

static void print_token(const mu_trainer *t, int id) {
    char text[64];
    int n = mu_tokenizer_decode(t->tokenizer, id, text, sizeof text);
    fwrite(text, 1, (size_t)n, stdout);
    fflush(stdout);
}

/* One row a token: the token, then the experts of each MoE layer. */
static void print_experts(const mu_trainer *t, const int32_t *tokens, int64_t n, const int32_t *ids) {
    int64_t K = t->cfg.moe.top_k;
    printf("\nexperts that took each token\n  %-10s", "token");
    for (int i = 0; i < t->model->n_moe; i++)
        printf(" | layer %-*d", (int)(4 * K - 6 > 1 ? 4 * K - 6 : 1), t->model->moe_layers[i]);
    printf("\n");
    for (int64_t at = 0; at < n; at++) {
        char text[64];
        int length = mu_tokenizer_decode(t->tokenizer, tokens[at], text, sizeof text);
        bool plain = length == 1 && text[0] >= ' ' && text[0] <= '~';
        if (plain) printf("  '%c'%7s", text[0], "");
        else printf("  %-10d", tokens[at]);
        for (int i = 0; i < t->model->n_moe; i++) {
            printf(" |");
            for (int64_t k = 0; k < K; k++) printf(" %3d", ids[(i * n + at) * K + k]);
        }
        printf("\n");
    }
}

static void generate(mu_trainer *t, const arguments *a) {
    int V = mu_tokenizer_vocab_size(t->tokenizer);
    int64_t bytes = (int64_t)strlen(a->prompt), limit = t->cfg.model.max_seq_len;
    uint16_t *prompt = mu_alloc((size_t)bytes, sizeof *prompt);
    int64_t n = mu_tokenizer_encode(t->tokenizer, a->prompt, bytes, prompt);
    int32_t *tokens = mu_alloc((size_t)(n + a->tokens), sizeof *tokens);
    double *logits = mu_alloc((size_t)V, sizeof *logits);
    for (int64_t i = 0; i < n; i++) tokens[i] = prompt[i];
    fputs(a->prompt, stdout);
    for (int64_t made = 0; made < a->tokens; made++) {
        int64_t from = n > limit ? n - limit : 0; /* the model sees its last max_seq_len tokens */
        next_logits(t, tokens + from, n - from, logits, NULL);
        int id = draw(a, logits, V, n);
        if (id == mu_tokenizer_eod(t->tokenizer)) break;
        tokens[n++] = id;
        print_token(t, id);
    }
    printf("\n");
    if (a->show_experts && t->model->n_moe) {
        int64_t from = n > limit ? n - limit : 0;
        int32_t *ids = mu_alloc((size_t)(t->model->n_moe * (n - from) * t->cfg.moe.top_k), sizeof *ids);
        next_logits(t, tokens + from, n - from, logits, ids);
        print_experts(t, tokens + from, n - from, ids);
        free(ids);
    } else if (a->show_experts) printf("(a dense model: there are no experts to show)\n");
    free(prompt);
    free(tokens);
    free(logits);
}

int mu_cmd_generate(int argc, char **argv) {
    mu_error e = { 0 };
    mu_trainer t = { 0 };
    mu_manifest m = { 0 };
    arguments a;
    mu_dist_start(&argc, &argv);
    mu_mesh *mesh = mu_mesh_open(NULL, 1);
    int rank = mesh->world->rank;
    mu_report_error(&e, rank);
    mu_status status = parse(argc, argv, &a, &e);
    if (status == MU_STATUS_OK && mesh->world->size > 1)
        status = mu_error_set(&e, MU_STATUS_USAGE, "generate runs on one rank");
    if (status == MU_STATUS_OK) status = mu_open_checkpoint(&t, mesh, a.path, false, 0, NULL, &m, &e);
    if (status == MU_STATUS_OK) generate(&t, &a);
    mu_manifest_free(&m);
    if (t.mesh) mu_trainer_close(&t);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_mesh_close(mesh);
    mu_dist_stop();
    return (int)status;
}
