/* report_texts.c - one validation text of each domain through the newest checkpoint: which expert takes which token. */
#include "train/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 240, COLOURS = 16, SOLID = 8 };     /* tokens shown of a text; experts with a colour of their own */
/* From SOLID on, lines are dashed and patches striped, so that similar colours differ. */
static const char *const colours[COLOURS] = { "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00", "#7f7f7f",
                                              "#c2182b", "#7b3fc4", "#5fae1f", "#d63ad6", "#00a8a8", "#8c4a2f", "#3f55e0", "#c9b800" };

/* One text in one layer. n 0: the domain has no validation text. */
typedef struct {
    int64_t n;
    int32_t *tokens;            /* [n] */
    int32_t *ids;               /* [n, top_k] */
    double *gates;              /* [n, top_k] */
} sample;

typedef struct {
    const mu_report *r;
    mu_inference o;
    mu_texts texts;
    int64_t layer, K;           /* layer: index among the MoE layers */
    sample *samples;            /* [n_domains] */
    int *colour;                /* [experts]: -1: none */
} view;

/* ------------------------------------------------------------------ the forward pass */

/* Where the choice of experts tells most about the domain. */
static int64_t choose_layer(const mu_report *r) {
    int64_t best = 0;
    double most = -1;
    for (int64_t l = 0; l < r->n_moe; l++) {
        double x = mu_report_information(r, l);
        if (x > most) most = x, best = l;
    }
    return best;
}

static void run_sample(view *v, int domain) {
    mu_model *model = v->o.state.model;
    mu_tape *tape = v->o.tape;
    int64_t S = v->texts.seq_len;
    sample *s = &v->samples[domain];
    if (!mu_loader_val_sequences(v->texts.loader, domain)) return;
    mu_routing *routings = mu_alloc((size_t)model->n_moe, sizeof *routings);
    int32_t *targets = mu_alloc((size_t)S, sizeof *targets);
    s->tokens = mu_alloc((size_t)S, sizeof *s->tokens);
    s->ids = mu_alloc((size_t)(S * v->K), sizeof *s->ids);
    s->gates = mu_alloc((size_t)(S * v->K), sizeof *s->gates);
    s->n = S < TOKENS ? S : TOKENS;
    mu_loader_val_read(v->texts.loader, domain, 0, s->tokens, targets);
    mu_context cx = { .mode = MU_MODE_EVAL, .n_sequences = 1, .seq_len = S };
    mu_tape_record(tape, false);
    mu_model_forward(model, tape, &cx, mu_tensor_ints(tape, MU_DTYPE_I32, S, s->tokens), routings);
    mu_tensor_read(routings[v->layer].ids_TK, s->ids);
    mu_tensor_get(routings[v->layer].gates_TK, s->gates);
    mu_tape_reset(tape);
    free(routings);
    free(targets);
}

/* ------------------------------------------------------------------ colours */

/* The expert with the largest gate. */
static int32_t first_choice(const view *v, const sample *s, int64_t token) {
    int64_t best = token * v->K;
    for (int64_t k = token * v->K; k < (token + 1) * v->K; k++)
        if (s->gates[k] > s->gates[best]) best = k;
    return s->ids[best];
}

static int64_t count_of(const view *v, const sample *s, int64_t expert) {
    int64_t n = 0;
    for (int64_t t = 0; t < s->n; t++) n += first_choice(v, s, t) == expert;
    return n;
}

/* The same colours in all texts: for the expert that takes most of each domain, then for the other busy ones. */
static void choose_colours(view *v) {
    int64_t E = v->r->experts, D = v->r->n_domains;
    int given = 0;
    for (int64_t i = 0; i < E; i++) v->colour[i] = -1;
    for (int64_t round = 0; round < D + COLOURS && given < COLOURS && given < E; round++) {
        int64_t best = -1, most = 0;
        for (int64_t i = 0; i < E; i++) {
            int64_t n = 0;
            for (int64_t d = round < D ? round : 0; d < (round < D ? round + 1 : D); d++) n += count_of(v, &v->samples[d], i);
            if (n > most && (round < D || v->colour[i] < 0)) most = n, best = i;
        }
        if (best >= 0 && v->colour[best] < 0) v->colour[best] = given++;
    }
}

/* ------------------------------------------------------------------ the page */

static void put_strip(mu_page *p, const view *v, const sample *s, const char *domain) {
    int64_t E = v->r->experts;
    uint8_t *levels = mu_alloc((size_t)(E * s->n), 1);
    memset(levels, MU_LEVEL_LOWEST, (size_t)(E * s->n));
    double most = 0;
    for (int64_t i = 0; i < s->n * v->K; i++) most = fmax(most, s->gates[i]);
    for (int64_t t = 0; t < s->n; t++)
        for (int64_t k = 0; k < v->K; k++) levels[s->ids[t * v->K + k] * s->n + t] = mu_colours_level(s->gates[t * v->K + k], 0, most);
    mu_axes axes = { mu_show("Sparsity, %s", domain), "A column is a token of the text below, a row an expert: the brighter, the larger its gate. Dark cells compute nothing.",
                     "token", "expert", 0, 0 };
    mu_plot_map(p, &axes, &(mu_map){ .colours = MU_COLOURS_SEQUENTIAL, .rows = E, .cols = s->n, .levels = levels, .low = 0, .high = most, .unit = "gate",
                                     .row = "expert", .col = "token", .height = E > 16 ? 0 : 8 });
    free(levels);
}

/* Tokens in a row with the same first choice, as one <span>; a character that several tokens share stays whole. */
static void put_run(mu_page *p, const view *v, int32_t expert, const char *bytes, size_t n) {
    int colour = v->colour[expert];
    if (!n) return;
    if (colour < 0) fprintf(p->out, "<span title=\"expert %d\">", expert);
    else fprintf(p->out, "<span class=\"e%d\" title=\"expert %d\">", colour, expert);
    mu_html_escape(p->out, bytes, n);
    fputs("</span>", p->out);
}

static void put_text(mu_page *p, const view *v, const sample *s) {
    char *run = NULL;
    size_t bytes = 0;
    int32_t expert = -1;
    mu_page_put(p, "<div class=\"text\">");
    for (int64_t t = 0; t < s->n; t++) {
        const char *piece = "\xC2\xB6";     /* the end of a document */
        int64_t n = s->tokens[t] == mu_tokenizer_eod(v->o.tokenizer) ? 2 : mu_tokenizer_decode(v->o.tokenizer, s->tokens[t], &piece);
        int32_t now = first_choice(v, s, t);
        bool inside = n > 0 && ((unsigned char)piece[0] & 0xC0) == 0x80;
        if (now != expert && !inside) {
            put_run(p, v, expert < 0 ? 0 : expert, run, bytes);
            expert = now, bytes = 0;
        }
        run = mu_realloc(run, bytes + (size_t)n + 1, 1);
        memcpy(run + bytes, piece, (size_t)n);
        bytes += (size_t)n;
    }
    if (expert >= 0) put_run(p, v, expert, run, bytes);
    free(run);
    mu_page_put(p, "</div>\n");
}

static void put_key(mu_page *p, const view *v, const sample *s) {
    int64_t others = 0;
    mu_page_put(p, "<div class=\"key\">");
    for (int64_t i = 0; i < v->r->experts; i++) {
        int64_t n = count_of(v, s, i);
        if (v->colour[i] < 0) others += n;
        else if (n)
            mu_page_put(p, "<span><span class=\"patch e%d\"></span>expert %lld <b>%.0f %%</b></span>", v->colour[i], (long long)i, 100 * (double)n / (double)s->n);
    }
    if (others) mu_page_put(p, "<span>others <b>%.0f %%</b></span>", 100 * (double)others / (double)s->n);
    mu_page_put(p, "</div>\n");
}

static void put_colour(mu_page *p, int i) {
    const char *c = colours[i];
    mu_page_put(p, ".e%d{background:%-s48;border-color:%-s!important%-s}", i, c, c, i < SOLID ? "" : ";border-bottom-style:dashed!important");
    if (i < SOLID) mu_page_put(p, ".patch.e%d{background:%-s}\n", i, c);
    else mu_page_put(p, ".patch.e%d{background:repeating-linear-gradient(90deg,%-s 0 3px,%-s48 3px 5px);border-style:solid!important}\n", i, c, c);
}

static void put_samples(mu_page *p, const view *v) {
    enum { OPEN = 10 };
    const mu_report *r = v->r;
    mu_page_put(p, "<p class=\"soft\">A validation text of each domain through the checkpoint of step %lld, in layer %lld, where experts specialise most. Letters have the colour of the "
                   "expert with the largest gate; the same colour is the same expert in all texts%s. \xC2\xB6 ends a document.</p>\n<style>\n",
                (long long)v->o.source.m.step, (long long)r->layer[v->layer], r->experts > COLOURS ? ", and letters without colour went to other experts" : "");
    for (int i = 0; i < COLOURS; i++) put_colour(p, i);
    mu_page_put(p, "</style>\n");
    for (int64_t d = 0; d < r->n_domains; d++) {
        const sample *s = &v->samples[d];
        mu_page_fold(p, r->n_domains <= OPEN || d == 0, "%s", r->domain[d]);
        if (s->n) {
            put_strip(p, v, s, r->domain[d]);
            put_key(p, v, s);
            put_text(p, v, s);
        } else mu_page_missing(p, "This domain has no validation text.");
        mu_page_unfold(p);
    }
}

static mu_status open_view(view *v, mu_mesh *mesh, mu_error *e) {
    mu_status status = mu_inference_open(&v->o, mesh, v->r->view.dir, 0, NULL, e);
    if (status == MU_STATUS_OK) status = mu_texts_open(&v->texts, &v->o.cfg, v->o.tokenizer, v->o.source.m.val_split, mesh->batch, e);
    return status;
}

static void close_view(view *v) {
    for (int64_t d = 0; d < v->r->n_domains; d++) free(v->samples[d].tokens), free(v->samples[d].ids), free(v->samples[d].gates);
    free(v->samples);
    free(v->colour);
    mu_texts_close(&v->texts);
    mu_inference_close(&v->o);
}

void mu_report_put_texts(mu_page *p, const mu_report *r, mu_mesh *mesh, bool open) {
    mu_error why = { 0 };
    mu_page_section(p, "texts", "Texts and their experts");
    if (!open || !r->view.n_checkpoints) {
        mu_page_missing(p, "%s", open ? "The run has no checkpoint yet: checkpoint.every sets the interval; make the report again afterwards."
                                      : "Left out on request (--no-texts). Without that option the newest checkpoint reads one text of each domain.");
        return;
    }
    view v = { .r = r, .layer = choose_layer(r), .K = r->view.cfg.moe.top_k };
    v.samples = mu_alloc((size_t)r->n_domains, sizeof *v.samples);
    v.colour = mu_alloc((size_t)r->experts, sizeof *v.colour);
    mu_status status = open_view(&v, mesh, &why);
    if (status == MU_STATUS_OK) {
        for (int d = 0; d < (int)r->n_domains; d++) run_sample(&v, d);
        choose_colours(&v);
        put_samples(p, &v);
    } else
        mu_page_missing(p, "The newest checkpoint could not read its texts: %s.%s", why.text,
                        why.status == MU_STATUS_NOINPUT ? " Paths of texts are relative to the folder in which the run was started: make the report from there." : "");
    close_view(&v);
}
