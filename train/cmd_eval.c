/* cmd_eval.c - muster eval: validation loss of a checkpoint, domain by domain. */
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    char *path;
    mu_expert_choice choice;
    const char *record, *replay; /* files of --record-routing and --replay-routing; NULL: not given */
    int n_overrides;
    char **overrides;
} arguments;

/* The override of a key, "train.seq_len="; NULL: not given. */
static const char *given(const arguments *a, const char *key) {
    for (int i = 0; i < a->n_overrides; i++)
        if (!strncmp(a->overrides[i], key, strlen(key))) return a->overrides[i];
    return NULL;
}

static const char length[] = "train.seq_len=";

/* What was not trained here has no texts, and no length of sequences. */
static mu_status check_source(const mu_source *s, const arguments *a, mu_error *e) {
    bool elsewhere = s->hf || s->m.weights_only;
    if (elsewhere && !given(a, "data.train="))
        return mu_error_set(e, MU_STATUS_USAGE, "%s was not trained on texts that muster knows: add data.train='[{domain: NAME, path: ...}, ...]'",
                            a->path);
    return elsewhere || !given(a, length) ? MU_STATUS_OK : mu_config_check_use(given(a, length), MU_ON_EVAL, "eval", e);
}

static mu_status parse(int argc, char **argv, arguments *a, mu_error *e) {
    *a = (arguments){ .overrides = mu_alloc((size_t)argc, sizeof *a->overrides) };
    const mu_argument options[] = { { "--mask", &a->choice.mask, "LAYER:EXPERT,..." }, { "--force", &a->choice.force, "LAYER:EXPERT,..." },
                                    { "--record-routing", &a->record, "FILE.h5" }, { "--replay-routing", &a->replay, "FILE.h5" } };
    mu_status status = MU_STATUS_OK;
    for (int i = 2; i < argc && status == MU_STATUS_OK; i++) {
        bool found;
        status = mu_argument_find(argc, argv, &i, options, sizeof options / sizeof *options, &found, e);
        if (found) continue;
        if (argv[i][0] == '-' || (a->path && !strchr(argv[i], '=')))
            return mu_error_set(e, MU_STATUS_USAGE, "unexpected argument '%s'; overrides are section.key=value", argv[i]);
        if (!a->path) a->path = argv[i];
        else a->overrides[a->n_overrides++] = argv[i];
    }
    if (status != MU_STATUS_OK) return status;
    if (!a->path) return mu_error_set(e, MU_STATUS_USAGE, "eval needs a run folder, a checkpoint or a Hugging Face folder");
    status = mu_expand_argument(&a->path, e);
    for (int i = 0; i < a->n_overrides && status == MU_STATUS_OK; i++)
        if (strncmp(a->overrides[i], length, strlen(length))) status = mu_config_check_use(a->overrides[i], MU_ON_EVAL, "eval", e);
    return status;
}

/* All sequences unless the command line sets train.eval_sequences; the run's own value is for training only. */
static int64_t sequences(const mu_config *cfg, const arguments *a) {
    return given(a, "train.eval_sequences=") ? cfg->train.eval_sequences : 0;
}

static void print_results(const mu_manifest *m, const mu_texts *texts, const arguments *a, int64_t most, double mean,
                          const mu_domain_loss *results) {
    bool known = m->fingerprint[0] && !m->weights_only;
    if (known && strcmp(m->fingerprint, texts->corpus.fingerprint))
        mu_print("note: the texts differ from the training texts: fingerprint %s then, %s now\n",
               m->fingerprint, texts->corpus.fingerprint);
    if (a->choice.mask) mu_print("masked experts (layer:expert): %s\n", a->choice.mask);
    if (a->choice.force) mu_print("forced experts (layer:expert): %s\n", a->choice.force);
    mu_routing_record_print(a->replay, a->record);
    if (known) mu_print("%s, step %lld: ", m->path, (long long)m->step);
    else mu_print("%s: ", m->path);
    printf("%.6f nats/token, mean of the domains weighted by their share\n", mean);
    mu_print_domains(texts, most, results);
}

/* What must be the same to replay this evaluation's routing; heap. */
static char *about(const mu_inference *o, const mu_evaluation *ev, const arguments *a, int64_t most) {
    char *more = mu_format("--mask: %s\n--force: %s\n", a->choice.mask ? a->choice.mask : "",
                           a->choice.force ? a->choice.force : "");
    for (int i = 0; i < ev->texts->corpus.n_domains; i++) {
        char *longer = mu_format("%svalidation sequences of %s: %lld\n", more, ev->texts->corpus.domains[i].name,
                                 (long long)mu_evaluation_sequences(ev, i, most));
        free(more);
        more = longer;
    }
    char *text = mu_routing_record_about(&o->cfg, ev->model, &ev->texts->corpus, "evaluation", more);
    free(more);
    return text;
}

/* Rank 0: the record has every domain's array. */
static mu_status expect_arrays(const mu_evaluation *ev, int64_t most, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int i = 0; i < ev->texts->corpus.n_domains && status == MU_STATUS_OK; i++) {
        char *name = mu_evaluation_array(ev, i);
        int64_t n = mu_evaluation_sequences(ev, i, most);
        if (n) status = mu_routing_record_expect(ev->replay, name, n, e);
        free(name);
    }
    return status;
}

static mu_status open_records(const mu_inference *o, mu_evaluation *ev, const arguments *a, int64_t most, mu_error *e) {
    char *text = about(o, ev, a, most);
    mu_status status = MU_STATUS_OK;
    if (a->replay) status = mu_routing_record_open(&ev->replay, a->replay, MU_ROUTING_REPLAY, ev->model, ev->texts->seq_len, ev->batch, text, e);
    if (a->replay && status == MU_STATUS_OK)
        status = mu_agree(ev->batch, ev->batch->rank == 0 ? expect_arrays(ev, most, e) : MU_STATUS_OK, e);
    if (a->record && status == MU_STATUS_OK)
        status = mu_routing_record_open(&ev->record, a->record, MU_ROUTING_RECORD, ev->model, ev->texts->seq_len, ev->batch, text, e);
    free(text);
    return status;
}

static mu_status evaluate(const mu_inference *o, const mu_texts *texts, const arguments *a, mu_error *e) {
    enum { AT_ONCE = 8 };
    const mu_mesh *mesh = o->state.mesh;
    int64_t most = sequences(&o->cfg, a), tokens = 0;
    mu_evaluation ev = { o->state.model, o->tape, texts, mesh->batch, AT_ONCE, { NULL, 1 }, NULL, NULL };
    mu_domain_loss *results = mu_alloc((size_t)texts->corpus.n_domains, sizeof *results);
    double mean = 0;
    mu_status status = mu_expert_choice_read(&a->choice, o->state.model, &o->cfg.data.train, &ev.expert_mask, e);
    status = mu_agree(mesh->batch, status, e);
    if (status == MU_STATUS_OK) status = open_records(o, &ev, a, most, e);
    if (status == MU_STATUS_OK) mean = mu_evaluate(&ev, most, results);
    status = mu_routing_record_close(ev.replay, status, e);
    status = mu_routing_record_close(ev.record, status, e);
    for (int i = 0; i < texts->corpus.n_domains; i++) tokens += results[i].tokens;
    if (status == MU_STATUS_OK && !tokens)
        status = mu_error_set(e, MU_STATUS_DATA, "no validation data: data.val_fraction is 0 or the texts are too short");
    if (status == MU_STATUS_OK && mesh->batch->rank == 0) print_results(&o->source.m, texts, a, most, mean, results);
    free(results);
    free((int32_t *)(uintptr_t)ev.expert_mask.values);
    return status;
}

static mu_status open_texts(mu_texts *texts, const mu_inference *o, mu_error *e) {
    mu_status status = mu_texts_open(texts, &o->cfg, o->tokenizer, o->source.m.val_split, o->state.mesh->batch, e);
    if (status == MU_STATUS_NOINPUT) {
        mu_error why = *e;
        mu_error_set(e, status, "%-s; if texts have moved, add data.train='[{domain: %s, path: ...}, ...]'",
                     why.text, o->cfg.data.train.list[0].domain);
    }
    return status;
}

int mu_cmd_eval(int argc, char **argv) {
    mu_error e = { 0 };
    mu_inference o = { 0 };
    mu_texts texts = { 0 };
    arguments a;
    mu_dist_start(&argc, &argv);
    mu_mesh *mesh = mu_mesh_open(NULL, 1);
    int rank = mesh->world->rank;
    mu_report_error(&e, rank);
    mu_status status = mu_agree(mesh->world, parse(argc, argv, &a, &e), &e);
    if (status == MU_STATUS_OK) status = mu_arguments_agree(mesh->world, argc, argv, &e);
    if (status == MU_STATUS_OK)
        status = mu_inference_open(&o, mesh, a.path, a.n_overrides, a.overrides, &e);
    if (status == MU_STATUS_OK) status = mu_agree(mesh->world, check_source(&o.source, &a, &e), &e);
    if (status == MU_STATUS_OK) status = open_texts(&texts, &o, &e);
    if (status == MU_STATUS_OK) status = evaluate(&o, &texts, &a, &e);
    free(a.overrides);
    mu_texts_close(&texts);
    mu_inference_close(&o);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_mesh_close(mesh);
    mu_dist_stop();
    return (int)status;
}
