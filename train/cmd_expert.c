/* cmd_expert.c - muster expert: looks at single experts of a checkpoint, archives them, and makes checkpoints in which they are changed. The
 * source is only read; the result is written beside its name, with archives of what was overwritten, and renamed when it is complete. */
#include "train/surgery.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { int layer, expert; } place;    /* the model's layer number; -1: not given */
static const place nowhere = { -1, -1 };

typedef struct {
    const char *what;               /* "list", ... */
    char *path, *out;               /* out NULL: not given */
    const char *from, *by;
    place at, slot;
    int64_t keep, heal;             /* -1: not given */
    bool dry_run, force, undo;
    int n_overrides;
    char **overrides;
} arguments;

/* A checkpoint, and where it is possible its model and texts. */
typedef struct {
    const arguments *a;
    mu_mesh *mesh;
    mu_manifest m;
    mu_surgery s;
    mu_inference o;
    mu_texts texts;
    mu_evaluation ev;
    bool live;                      /* ev can be used */
    char shared_hash[33];           /* of all parameters but those of the experts; "": not computed yet */
    char *folder;                   /* of the result, while it is being written; NULL: nothing is written */
} job;

/* ------------------------------------------------------------------ arguments */

static bool read_place(const char *text, place *p) {
    char end;
    return text[0] >= '0' && text[0] <= '9' && sscanf(text, "%d:%d%c", &p->layer, &p->expert, &end) == 2 && p->layer >= 0 && p->expert >= 0;
}

static bool is(const arguments *a, const char *what) { return !strcmp(a->what, what); }

static bool read_flag(arguments *a, const char *text) {
    const struct { const char *name; bool *value; } flags[] = { { "--dry-run", &a->dry_run }, { "--force", &a->force }, { "--undo", &a->undo } };
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (!strcmp(text, flags[i].name)) return *flags[i].value = true;
    return false;
}

static mu_status check_arguments(const arguments *a, const char *out, mu_error *e) {
    static const char *const known[] = { "list", "archive", "freeze", "restore", "reseed", "duplicate", "prune" };
    const char *near = mu_suggest(a->what, known, sizeof known / sizeof *known);
    bool found = false, whole = is(a, "list") || is(a, "prune");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) found |= is(a, known[i]);
    if (!found) return mu_error_set(e, MU_STATUS_USAGE, "expert %s: list, archive, freeze, restore, reseed, duplicate or prune%s%s%s", a->what,
                                    near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    if (!a->path) return mu_error_set(e, MU_STATUS_USAGE, "expert %s needs a run folder or a checkpoint", a->what);
    if (!whole && a->at.layer < 0) return mu_error_set(e, MU_STATUS_USAGE, "expert %s needs an expert, LAYER:EXPERT as in 2:7", a->what);
    if (whole && a->at.layer >= 0) return mu_error_set(e, MU_STATUS_USAGE, "expert %s takes no LAYER:EXPERT", a->what);
    if (!out && !a->dry_run && !is(a, "list") && !is(a, "archive"))
        return mu_error_set(e, MU_STATUS_USAGE, "expert %s needs --out FOLDER, a new one, or --dry-run", a->what);
    if (((a->from || a->heal >= 0) && !is(a, "restore")) || (a->slot.layer >= 0 && !is(a, "restore") && !is(a, "duplicate")) || (a->undo && !is(a, "freeze")) ||
        ((a->keep >= 0 || a->by) && !is(a, "prune")) || (a->dry_run && (is(a, "list") || is(a, "archive"))))
        return mu_error_set(e, MU_STATUS_USAGE, "expert %s does not take this option; see muster expert --help", a->what);
    if (is(a, "duplicate") && a->slot.layer < 0) return mu_error_set(e, MU_STATUS_USAGE, "expert duplicate needs --slot LAYER:EXPERT, the expert to replace");
    if (is(a, "prune") && a->keep < 1) return mu_error_set(e, MU_STATUS_USAGE, "expert prune needs --keep N, the experts that stay in each layer");
    if (a->by && strcmp(a->by, "load") && strcmp(a->by, "criticality"))
        return mu_error_set(e, MU_STATUS_USAGE, "--by %s: load or criticality", a->by);
    if (a->slot.layer >= 0 && a->slot.layer != a->at.layer)
        return mu_error_set(e, MU_STATUS_USAGE, "--slot %d:%d: an expert of layer %d works only in that layer", a->slot.layer, a->slot.expert, a->at.layer);
    if (!mu_file_exists(a->path)) return mu_error_set(e, MU_STATUS_NOINPUT, "no such run or checkpoint: %s", a->path);
    return MU_STATUS_OK;
}

/* LAYER:EXPERT, or an override for the texts and the device. */
static mu_status read_other(arguments *a, const char *text, mu_error *e) {
    if (strchr(text, '=')) {
        a->overrides[a->n_overrides++] = (char *)(uintptr_t)text;
        return mu_config_check_use(text, MU_ON_EVAL, "expert", e);
    }
    return a->at.layer < 0 && read_place(text, &a->at) ? MU_STATUS_OK : mu_error_set(e, MU_STATUS_USAGE, "unexpected argument '%s'", text);
}

static mu_status parse(int argc, char **argv, arguments *a, mu_error *e) {
    const char *out = NULL, *slot = NULL, *keep = NULL, *heal = NULL;
    *a = (arguments){ .what = argc > 2 ? argv[2] : "", .at = nowhere, .slot = nowhere, .keep = -1, .heal = -1,
                      .overrides = mu_alloc((size_t)argc, sizeof *a->overrides) };
    const mu_argument options[] = { { "--out", &out, "a new folder" }, { "--from", &a->from, "an archive file, a run or a checkpoint" },
                                    { "--slot", &slot, "LAYER:EXPERT" }, { "--keep", &keep, "a number" }, { "--by", &a->by, "load or criticality" },
                                    { "--heal", &heal, "a number of steps" } };
    mu_status status = MU_STATUS_OK;
    for (int i = 3; i < argc && status == MU_STATUS_OK; i++) {
        bool found;
        if (read_flag(a, argv[i])) continue;
        status = mu_argument_find(argc, argv, &i, options, sizeof options / sizeof *options, &found, e);
        if (found || status != MU_STATUS_OK) continue;
        if (argv[i][0] == '-') return mu_error_set(e, MU_STATUS_USAGE, "unknown option %s", argv[i]);
        if (!a->path) status = mu_expand_home(argv[i], &a->path, e);
        else status = read_other(a, argv[i], e);
    }
    if (status == MU_STATUS_OK) status = mu_argument_whole("--keep", keep, &a->keep, e);
    if (status == MU_STATUS_OK) status = mu_argument_whole("--heal", heal, &a->heal, e);
    if (status == MU_STATUS_OK && a->heal > MU_HEAL_STEPS) status = mu_error_set(e, MU_STATUS_USAGE, "--heal %s: at most %d steps", heal, MU_HEAL_STEPS);
    if (status == MU_STATUS_OK && slot && !read_place(slot, &a->slot))
        status = mu_error_set(e, MU_STATUS_USAGE, "--slot %s: expected LAYER:EXPERT, as in 2:7", slot);
    if (status == MU_STATUS_OK) status = check_arguments(a, out, e);
    if (status == MU_STATUS_OK && out) status = mu_expand_home(out, &a->out, e);
    if (status == MU_STATUS_OK && a->out && !is(a, "archive") && mu_file_exists(a->out))
        status = mu_error_set(e, MU_STATUS_USAGE, "%s exists; choose a new folder", a->out);
    return status;
}

/* ------------------------------------------------------------------ parts of a job */

static const mu_train_state *state_of(const job *j) { return &j->s.shape.t; }
static int64_t experts_of(const job *j) { return j->m.cfg.moe.num_experts; }

/* Number among the MoE layers; -1 with an error when there is no such expert. */
static int moe_of(const job *j, place p, mu_error *e) {
    const mu_model *m = state_of(j)->model;
    if (p.expert >= experts_of(j)) {
        mu_error_set(e, MU_STATUS_USAGE, "expert %d of layer %d: experts are 0 to %lld", p.expert, p.layer, (long long)experts_of(j) - 1);
        return -1;
    }
    for (int i = 0; i < m->n_moe; i++)
        if (m->moe_layers[i] == p.layer) return i;
    mu_error_set(e, MU_STATUS_USAGE, p.layer < m->cfg.num_layers ? "layer %d is dense" : "there is no layer %d", p.layer);
    return -1;
}

static int64_t cell_of(const job *j, int moe, int expert) { return moe * experts_of(j) + expert; }
static mu_expert_state state_at(const job *j, int64_t cell) { return (mu_expert_state)state_of(j)->stats->health.state[cell]; }
static bool carries(mu_expert_state s) { return s == MU_EXPERT_CARRIER || s == MU_EXPERT_DORMANT; }

/* RUN of RUN/checkpoints/step-N, heap; NULL: the checkpoint lies elsewhere. */
static char *run_of(const mu_manifest *m) {
    const char *at = strstr(m->path, "/checkpoints/"), *next;
    while (at && (next = strstr(at + 1, "/checkpoints/"))) at = next;
    return at ? mu_format("%.*s", (int)(at - m->path), m->path) : !strncmp(m->path, "checkpoints/", 12) ? mu_strdup(".") : NULL;
}

/* The folder of the run's archives, heap, or NULL. */
static char *archives_of(const mu_manifest *m) {
    char *run = run_of(m), *folder = run ? mu_format("%s/archive", run) : NULL;
    free(run);
    return folder;
}

/* The model and its texts; without `needed` it is enough to say that they are not there. */
static mu_status open_live(job *j, bool needed, mu_error *e) {
    enum { AT_ONCE = 8 };
    mu_error why = { 0 };
    mu_status status = mu_inference_open(&j->o, j->mesh, j->m.path, j->a->n_overrides, j->a->overrides, &why);
    if (status == MU_STATUS_OK) status = mu_texts_open(&j->texts, &j->o.cfg, j->o.tokenizer, j->m.val_split, j->mesh->batch, &why);
    if (status == MU_STATUS_OK && !mu_texts_have_validation(&j->texts)) status = mu_error_set(&why, MU_STATUS_DATA, "there are no validation texts");
    j->live = status == MU_STATUS_OK;
    j->ev = (mu_evaluation){ j->o.state.model, j->o.tape, &j->texts, j->mesh->batch, AT_ONCE, { NULL, 1 }, NULL, NULL };
    if (status == MU_STATUS_OK || !needed) {
        if (status != MU_STATUS_OK) mu_print("note: without texts (%-s): no samples of what experts see\n", why.text);
        return MU_STATUS_OK;
    }
    return mu_error_set(e, status, "%-s; if texts have moved, add data.train='[{domain: %s, path: ...}, ...]'", why.text,
                        j->m.cfg.data.train.list[0].domain);
}

static mu_status hash_shared(job *j, mu_error *e) {
    if (j->shared_hash[0]) return MU_STATUS_OK;
    mu_hash *h = mu_hash_new();
    mu_status status = MU_STATUS_OK;
    const mu_params *ps = state_of(j)->model->params;
    mu_checkpoint_arrays a;
    mu_checkpoint_arrays_open(&a, &j->m);
    for (mu_unit *u = mu_unit_next(ps, NULL); u && status == MU_STATUS_OK; u = mu_unit_next(ps, u)) {
        if (u->expert >= 0) continue;
        double *values = mu_alloc((size_t)u->count, sizeof *values);
        status = mu_checkpoint_array(&a, u->name, u->name, MU_STORE_F64, u->param->desc.n_dims, u->param->desc.shape, values, e);
        mu_hash_add(h, values, (size_t)u->count * sizeof *values);
        free(values);
    }
    mu_hash_finish(h, j->shared_hash);
    return mu_checkpoint_arrays_close(&a, status, e);
}

/* An expert as it stands, with all that is known of it. */
static mu_status record_of(job *j, mu_archive *a, place p, int moe, bool samples, mu_error *e) {
    *a = (mu_archive){ 0 };
    mu_status status = mu_expert_unit_read(&a->unit, &j->s.arrays, p.layer, p.expert, e);
    if (status != MU_STATUS_OK) return status;
    mu_archive_describe(a, state_of(j), &j->m.cfg, moe, p.expert);
    char *path = realpath(j->m.path, NULL);
    snprintf(a->run, sizeof a->run, "%s", path && strlen(path) < sizeof a->run ? path : j->m.path);
    snprintf(a->manifest_hash, sizeof a->manifest_hash, "%s", j->m.hash);
    free(path);
    if (samples && j->live) {
        int domain = -1;
        for (int d = 0; d < a->n_domains && a->carries[0]; d++)
            if (!strcmp(a->names[d], a->carries)) domain = d;
        a->samples = mu_expert_samples_collect(&j->ev, domain, &a->unit);
    }
    status = hash_shared(j, e);
    snprintf(a->shared_hash, sizeof a->shared_hash, "%s", j->shared_hash);
    return status;
}

/* Before anything overwrites the expert: its record, read back and compared. A dry run overwrites nothing. */
static mu_status archive_first(job *j, place p, bool samples, mu_error *e) {
    mu_archive a;
    if (!j->folder) return MU_STATUS_OK;
    int moe = moe_of(j, p, e);
    if (moe < 0) return MU_STATUS_USAGE;
    char *folder = mu_format("%s/archive", j->folder);
    mu_status status = record_of(j, &a, p, moe, samples, e);
    if (status == MU_STATUS_OK) status = mu_archive_write(&a, folder, e);
    if (status != MU_STATUS_OK) mu_error_add(e, status, "  so expert %d of layer %d is not overwritten, and nothing was written", p.expert, p.layer);
    mu_archive_free(&a);
    free(folder);
    return status;
}

/* The state of an expert whose weights are now others: nothing is known of it. */
static void forget(job *j, int moe, int expert) {
    mu_train_state *t = &j->s.shape.t;
    int64_t at = cell_of(j, moe, expert);
    if (!t->stats) return;
    mu_expert_health *h = &t->stats->health;
    mu_knowledge *k = t->knowledge;
    h->state[at] = MU_EXPERT_HEALTHY, h->since[at] = h->reseeded[at] = t->step;
    h->below_dead[at] = h->below_starved[at] = h->leaving[at] = h->carried[at] = h->top[at] = 0, h->top_criticality[at] = 0;
    if (h->frozen[at] == MU_FROZEN_NOW) h->frozen[at] = MU_FROZEN_PAST;
    for (int64_t d = 0; d < k->domains; d++) k->K[at * k->domains + d] = k->peak[at * k->domains + d] = 0, k->at[at * k->domains + d] = 0;
}

/* Only an expert without knowledge of its own may be replaced. */
static mu_status may_replace(const job *j, place p, int moe, bool also_overwritten, mu_error *e) {
    if (j->a->force || !state_of(j)->stats) return MU_STATUS_OK;
    int64_t at = cell_of(j, moe, p.expert);
    mu_expert_state state = state_at(j, at);
    bool frozen = state_of(j)->stats->health.frozen[at] == MU_FROZEN_NOW;
    if (!frozen && (state == MU_EXPERT_DEAD || (also_overwritten && (state == MU_EXPERT_DUPLICATE || state == MU_EXPERT_OVERWRITTEN))))
        return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_CONFIG, "expert %d of layer %d is %s%s: only %s may be replaced; --force replaces it all the same, after"
                        " archiving it", p.expert, p.layer, frozen ? "frozen, and " : "", mu_expert_state_name(state),
                        also_overwritten ? "a dead, duplicate or overwritten one" : "a dead one");
}

/* ------------------------------------------------------------------ list */

static double mean_load(const job *j, int moe) {
    const mu_load_window *w = &state_of(j)->stats->window;
    double sum = 0;
    for (int i = 0; i < w->experts; i++) sum += (double)w->total[(int64_t)moe * w->experts + i];
    return sum / w->experts;
}

static void list_expert(const job *j, int moe, int expert, const char *archives) {
    const mu_train_state *t = state_of(j);
    const mu_expert_health *h = &t->stats->health;
    const mu_knowledge *k = t->knowledge;
    int64_t at = cell_of(j, moe, expert), *steps = NULL;
    double mean = mean_load(j, moe);
    int top = -1, carried = (int)h->carried[at] - 1, n = archives ? mu_archive_list(archives, t->model->moe_layers[moe], expert, &steps) : 0;
    for (int d = 0; d < k->domains; d++)
        if (k->at[at * k->domains + d] && (top < 0 || k->K[at * k->domains + d] > k->K[at * k->domains + top])) top = d;
    mu_print("  %6d  %-11s %6.2f  %-20s", expert, mu_expert_state_name(state_at(j, at)), mean > 0 ? (double)t->stats->window.total[at] / mean : 0.0,
             carried >= 0 ? k->names[carried] : "-");
    if (top >= 0) mu_print("  %6.3f nats, %s", (double)k->K[at * k->domains + top], k->names[top]);
    if (h->frozen[at] == MU_FROZEN_NOW) mu_print("  frozen");
    if (h->reseeded[at]) mu_print("  replaced at step %lld", (long long)h->reseeded[at]);
    if (n) mu_print("  archived at step %lld%s", (long long)steps[0], n > 1 ? " and before" : "");
    mu_print("\n");
    free(steps);
}

static mu_status list(job *j, mu_error *e) {
    const mu_model *m = state_of(j)->model;
    char *archives = archives_of(&j->m);
    if (!state_of(j)->stats) {
        free(archives);
        return mu_error_set(e, MU_STATUS_CONFIG, "%s holds weights only: nothing is known of its experts", j->m.path);
    }
    mu_print("%s, step %lld: %d MoE layer%s of %lld experts\n", j->m.path, (long long)j->m.step, m->n_moe, m->n_moe == 1 ? "" : "s", (long long)experts_of(j));
    for (int i = 0; i < m->n_moe; i++) {
        mu_print("layer %d\n  expert  state         load  carries               most critical for\n", m->moe_layers[i]);
        for (int x = 0; x < experts_of(j); x++) list_expert(j, i, x, archives);
    }
    printf("load: of the mean of its layer, over stats.window; criticality: what a domain loses without the expert, per token\n");
    free(archives);
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ archive, freeze */

static mu_status archive(job *j, mu_error *e) {
    mu_archive a;
    int moe = moe_of(j, j->a->at, e);
    if (moe < 0) return MU_STATUS_USAGE;
    char *folder = j->a->out ? mu_strdup(j->a->out) : archives_of(&j->m);
    if (!folder) return mu_error_set(e, MU_STATUS_USAGE, "%s is not in a run folder: expert archive needs --out FOLDER", j->m.path);
    mu_status status = open_live(j, false, e);
    if (status != MU_STATUS_OK) return free(folder), status;
    status = record_of(j, &a, j->a->at, moe, true, e);
    if (status == MU_STATUS_OK) status = mu_archive_write(&a, folder, e);
    if (status == MU_STATUS_OK)
        mu_print("%s: expert %d of layer %d at step %lld (%s%s%s), %lld samples\n", a.path, j->a->at.expert, j->a->at.layer, (long long)a.step, a.state,
                 a.carries[0] ? " of " : "", a.carries, (long long)a.samples.n);
    mu_archive_free(&a);
    free(folder);
    return status;
}

static mu_status freeze(job *j, mu_error *e) {
    int moe = moe_of(j, j->a->at, e);
    if (moe < 0) return MU_STATUS_USAGE;
    if (!state_of(j)->stats) return mu_error_set(e, MU_STATUS_CONFIG, "%s holds weights only: what is frozen is state of a run", j->m.path);
    int64_t *frozen = &state_of(j)->stats->health.frozen[cell_of(j, moe, j->a->at.expert)];
    if (j->a->undo != (*frozen == MU_FROZEN_NOW))
        return mu_error_set(e, MU_STATUS_CONFIG, "expert %d of layer %d is %s", j->a->at.expert, j->a->at.layer, j->a->undo ? "not frozen" : "frozen already");
    *frozen = j->a->undo ? MU_FROZEN_PAST : MU_FROZEN_NOW;
    mu_surgery_note(&j->s, j->a->undo ? "thaw" : "freeze", j->a->at.layer, j->a->at.expert, "");
    return MU_STATUS_OK;
}

/* ------------------------------------------------------------------ restore */

/* From the newest checkpoint of another run, or from one. */
static mu_status read_from_checkpoint(job *j, mu_archive *a, mu_error *e) {
    job other = { .a = j->a, .mesh = j->mesh };
    bool found = false;
    mu_status status = mu_checkpoint_find(j->mesh->batch, j->a->from, &other.m, &found, e);
    if (status == MU_STATUS_OK && !found) status = mu_checkpoint_missing(j->a->from, e);
    if (status == MU_STATUS_OK) status = mu_surgery_open(&other.s, &other.m, "unused", e);
    if (status == MU_STATUS_OK) {
        int moe = moe_of(&other, j->a->at, e);
        status = moe < 0 ? MU_STATUS_USAGE : record_of(&other, a, j->a->at, moe, false, e);
    }
    status = mu_surgery_close(&other.s, status, e);
    mu_manifest_free(&other.m);
    return status;
}

/* --from: a file; a run, of which an archive is preferred; a checkpoint. Not given: the archive of the run itself. */
static mu_status find_record(job *j, mu_archive *a, mu_error *e) {
    const char *from = j->a->from;
    place p = j->a->at;
    if (from && mu_file_ends(from, ".h5")) return mu_archive_read(a, from, e);
    if (from && !mu_file_exists(from)) return mu_error_set(e, MU_STATUS_NOINPUT, "--from %s: no such file or folder", from);
    char *folder = from ? mu_format("%s/archive", from) : archives_of(&j->m), *path = folder ? mu_archive_best(folder, p.layer, p.expert) : NULL;
    mu_status status = path ? mu_archive_read(a, path, e) : from ? read_from_checkpoint(j, a, e)
                     : mu_error_set(e, MU_STATUS_NOINPUT, "expert %d of layer %d has no archive in %s; name one with --from", p.expert, p.layer,
                                    folder ? folder : "the checkpoint's run");
    free(path);
    free(folder);
    return status;
}

static mu_status check_record(const job *j, const mu_archive *a, mu_error *e) {
    const mu_config *c = &j->m.cfg;
    if (a->unit.layer != j->a->at.layer || a->unit.expert != j->a->at.expert)
        return mu_error_set(e, MU_STATUS_USAGE, "%s holds expert %d of layer %d, not %d of layer %d; --slot says where it goes", a->path, a->unit.expert,
                            a->unit.layer, j->a->at.expert, j->a->at.layer);
    if (a->unit.D != c->model.hidden_size || a->unit.F != c->moe.moe_ffn_hidden_size)
        return mu_error_set(e, MU_STATUS_CONFIG, "the archived expert has hidden size %lld and width %lld, those of %s have %lld and %lld", (long long)a->unit.D,
                            (long long)a->unit.F, j->m.path, (long long)c->model.hidden_size, (long long)c->moe.moe_ffn_hidden_size);
    return MU_STATUS_OK;
}

/* It carries what it carried, with the criticalities that it had. */
static void remember(job *j, const mu_archive *a, int moe, int expert) {
    mu_train_state *t = &j->s.shape.t;
    int64_t at = cell_of(j, moe, expert);
    if (!t->stats) return;
    mu_knowledge *k = t->knowledge;
    for (int d = 0; d < k->domains; d++)
        for (int i = 0; i < a->n_domains; i++) {
            if (strcmp(k->names[d], a->names[i]) || isnan(a->K[i])) continue;
            int64_t cell = at * k->domains + d;
            k->K[cell] = (float)a->K[i], k->peak[cell] = fmaxf(0, (float)a->K[i]), k->at[cell] = (int32_t)t->step;
            if (strcmp(a->carries, a->names[i])) continue;
            t->stats->health.state[at] = MU_EXPERT_CARRIER, t->stats->health.carried[at] = d + 1;
        }
}

/* Pure input and output: the function of what was read, on the inputs that were stored. And how far it is off on those of the model now. */
static mu_status try_samples(job *j, const mu_archive *a, mu_error *e) {
    static const double EXACT = 1e-6;
    const mu_expert_samples *p = &a->samples;
    if (!p->n) return MU_STATUS_OK;
    double *y = mu_alloc((size_t)(p->n * p->D), sizeof *y);
    mu_expert_unit_apply(&a->unit, p->n, p->h, y);
    double off = mu_relative_distance(y, p->y, p->n * p->D);
    mu_print("%lld archived samples: relative error %.2g\n", (long long)p->n, off);
    mu_status status = off < EXACT ? MU_STATUS_OK : mu_error_set(e, MU_STATUS_DATA, "%s: the expert does not compute what it did: relative error %g", a->path, off);
    if (status == MU_STATUS_OK && j->live) {
        double *h = mu_expert_samples_again(p, &j->ev, a->unit.layer);
        mu_expert_unit_apply(&a->unit, p->n, h, y);
        mu_print("drift: for the same tokens of the model as it is now, the inputs differ by %.3f, the outputs by %.3f\n",
                 mu_relative_distance(h, p->h, p->n * p->D), mu_relative_distance(y, p->y, p->n * p->D));
        free(h);
    }
    free(y);
    return status;
}

/* The domain that the record carries, or is most critical for; -1: none is known. */
static int domain_of(const job *j, const mu_archive *a) {
    int best = -1;
    for (int i = 0; i < a->n_domains; i++)
        if (!strcmp(a->names[i], a->carries) || (!a->carries[0] && a->K[i] > 0 && (best < 0 || a->K[i] > a->K[best]))) best = i;
    for (int d = 0; d < j->texts.corpus.n_domains && best >= 0; d++)
        if (!strcmp(j->texts.corpus.domains[d].name, a->names[best])) return d;
    return -1;
}

static double best_loss(const job *j, const mu_archive *a, int domain) {
    const char *name = j->texts.corpus.domains[domain].name;
    double best = INFINITY;
    const mu_knowledge *k = state_of(j)->knowledge;
    for (int i = 0; i < a->n_domains; i++)
        if (!strcmp(a->names[i], name) && a->ce_best[i] > 0) best = a->ce_best[i];
    for (int d = 0; k && d < k->domains; d++)
        if (!strcmp(k->names[d], name) && k->ce_best[d] > 0) best = fmin(best, k->ce_best[d]);
    return best;
}

static void print_figures(const char *when, const mu_heal_figures *f) {
    mu_print("  %-16s %9.4f %9.0f %% %9.4f\n", when, f->own, 100 * f->retention, f->others);
}

/* Trains the restored expert alone, and keeps it only when its domain is known again and others lose nothing. */
static mu_status heal(job *j, const mu_archive *a, mu_error *e) {
    mu_healing h = { .record = a, .steps = j->a->heal, .n_overrides = j->a->n_overrides, .overrides = j->a->overrides };
    if (j->a->heal < 0) return MU_STATUS_OK;
    int64_t probe = j->m.cfg.stats.probe_tokens / j->m.cfg.train.seq_len;
    mu_status status = j->live ? MU_STATUS_OK : open_live(j, true, e);
    if (status == MU_STATUS_OK && (h.domain = domain_of(j, a)) < 0)
        status = mu_error_set(e, MU_STATUS_CONFIG, "the record names no domain of these texts for which the expert mattered: --heal has nothing to measure");
    if (status == MU_STATUS_OK && !isfinite(h.best = best_loss(j, a, h.domain)))
        status = mu_error_set(e, MU_STATUS_CONFIG, "it is not known how well domain %s was once predicted: --heal has nothing to measure",
                              j->texts.corpus.domains[h.domain].name);
    if (status != MU_STATUS_OK) return status;
    h.before = mu_heal_measure(&j->ev, &h, probe ? probe : 1);
    status = mu_heal(&j->s, &h, e);
    if (status != MU_STATUS_OK) return status;
    mu_print("%lld steps of healing; loss of %s, share of what was learned of it that is known, loss of the other domains\n", (long long)h.steps,
             j->texts.corpus.domains[h.domain].name);
    print_figures("before", &h.before);
    print_figures("restored", &h.restored);
    print_figures("healed", &h.healed);
    if (mu_heal_accepts(&h)) return MU_STATUS_OK;
    return mu_error_set(e, MU_STATUS_DATA, "rolled back: %.0f %% of what was learned of %s is known, 90 %% are needed, and the other domains may lose"
                        " 0.005 nats (they lose %.4f); nothing was written", 100 * h.healed.retention,
                        j->texts.corpus.domains[h.domain].name, h.healed.others - h.before.others);
}

static mu_status restore(job *j, mu_error *e) {
    mu_archive a = { 0 };
    place to = j->a->slot.layer >= 0 ? j->a->slot : j->a->at;
    int moe = moe_of(j, to, e);
    mu_status status = moe < 0 ? MU_STATUS_USAGE : find_record(j, &a, e);
    if (status == MU_STATUS_OK) status = check_record(j, &a, e);
    if (status == MU_STATUS_OK) status = may_replace(j, to, moe, true, e);
    if (status == MU_STATUS_OK) status = open_live(j, j->a->dry_run, e);
    if (status == MU_STATUS_OK) status = try_samples(j, &a, e);
    if (status == MU_STATUS_OK) status = archive_first(j, to, true, e);
    if (status == MU_STATUS_OK) {
        mu_expert_unit unit = mu_expert_unit_copy(&a.unit);
        char *detail = mu_format("expert %d of step %lld, %s", a.unit.expert, (long long)a.step, a.path[0] ? a.path : a.run);
        mu_expert_unit_restart(&unit);
        unit.layer = to.layer, unit.expert = to.expert;
        forget(j, moe, to.expert);
        remember(j, &a, moe, to.expert);
        mu_surgery_put(&j->s, unit);
        mu_surgery_note(&j->s, "restore", to.layer, to.expert, detail);
        mu_print("expert %d of layer %d: %s%s%s\n", to.expert, to.layer, detail, a.carries[0] ? ", carrier of " : "", a.carries);
        free(detail);
    }
    if (status == MU_STATUS_OK) status = heal(j, &a, e);
    mu_archive_free(&a);
    return status;
}

/* ------------------------------------------------------------------ reseed, duplicate */

static const double APART = 0.1;        /* the rows of the router are moved apart by this share of their length */

/* Two rows of the router that divide the tokens of one: moved apart along the axis in which the inputs of these tokens differ most. */
static void split_rows(job *j, mu_expert_unit *donor, mu_expert_unit *copy) {
    mu_expert_samples seen = { .D = donor->D };
    if (j->live) seen = mu_expert_samples_collect(&j->ev, -1, donor);
    double *axis = mu_principal_axis(seen.h, seen.n, donor->D, (uint64_t)j->m.cfg.run.seed), length = 0;
    double *row = donor->values[MU_PART_ROUTER], *other = copy->values[MU_PART_ROUTER];
    for (int64_t i = 0; i < donor->D; i++) length += row[i] * row[i];
    for (int64_t i = 0; i < donor->D; i++) {
        double step = APART * sqrt(length) * axis[i];
        other[i] = row[i] + step, row[i] -= step;
    }
    free(axis);
    mu_expert_samples_free(&seen);
}

/* Draws a share of the hidden units anew, rows of gate and up and columns of down alike, with mean and deviation of what they replace. */
static void redraw(mu_expert_unit *u, uint64_t seed) {
    const int64_t n = u->F / 2;
    int64_t *order = mu_alloc((size_t)u->F, sizeof *order);
    double *drawn = mu_alloc((size_t)(n * u->D) + 1, sizeof *drawn);
    mu_rng rng = { .seed = seed, .purpose = MU_RNG_SURGERY, .layer = (uint32_t)u->layer, .sample = (uint32_t)u->expert };
    for (int64_t i = 0; i < u->F; i++) order[i] = i;
    for (int64_t i = 0; i < n; i++) {
        int64_t k = i + (int64_t)(mu_rng_uniform(&rng, (uint64_t)i) * (double)(u->F - i)), one = order[i];
        order[i] = order[k], order[k] = one;
    }
    for (int part = MU_PART_GATE; part < MU_PARTS; part++) {
        double sum = 0, squares = 0, count = (double)(n * u->D), *w = u->values[part];
#define AT(i, d) w[part == MU_PART_DOWN ? (d) * u->F + order[i] : order[i] * u->D + (d)]
        for (int64_t i = 0; i < n; i++)
            for (int64_t d = 0; d < u->D; d++) sum += AT(i, d), squares += AT(i, d) * AT(i, d);
        double mean = sum / count, deviation = sqrt(fmax(0, squares / count - mean * mean));
        rng.step = (uint32_t)part;
        mu_rng_normals(&rng, n * u->D, deviation, drawn);
        for (int64_t i = 0; i < n; i++)
            for (int64_t d = 0; d < u->D; d++) AT(i, d) = mean + drawn[i * u->D + d];
#undef AT
    }
    free(drawn);
    free(order);
}

/* The busiest expert of the layer that carries no domain; -1: there is none. */
static int find_donor(const job *j, int moe, int not_this) {
    const mu_train_state *t = state_of(j);
    int best = -1;
    for (int i = 0; i < experts_of(j); i++) {
        int64_t at = cell_of(j, moe, i);
        if (i == not_this) continue;
        if (!t->stats) return i;
        mu_expert_state state = state_at(j, at);
        if (carries(state) || state == MU_EXPERT_OVERWRITTEN || t->stats->health.frozen[at] == MU_FROZEN_NOW) continue;
        if (best < 0 || t->stats->window.total[at] > t->stats->window.total[cell_of(j, moe, best)]) best = i;
    }
    return best;
}

/* Puts a copy of the donor in the place `to`; with `fresh` half of it is drawn anew. */
static mu_status copy_expert(job *j, place from, place to, int moe, bool fresh, mu_error *e) {
    mu_expert_unit donor = { 0 };
    mu_status status = open_live(j, j->a->dry_run, e);
    if (status == MU_STATUS_OK) status = archive_first(j, to, true, e);
    if (status == MU_STATUS_OK) status = mu_expert_unit_read(&donor, &j->s.arrays, from.layer, from.expert, e);
    if (status != MU_STATUS_OK) return mu_expert_unit_free(&donor), status;
    mu_expert_unit copy = mu_expert_unit_copy(&donor);
    char detail[64];
    snprintf(detail, sizeof detail, "%s expert %d", fresh ? "split of" : "copy of", from.expert);
    split_rows(j, &donor, &copy);
    mu_expert_unit_restart(&copy);
    copy.expert = to.expert;
    if (fresh) redraw(&copy, (uint64_t)j->m.cfg.run.seed);
    forget(j, moe, to.expert);
    mu_surgery_put(&j->s, donor);
    mu_surgery_put(&j->s, copy);
    mu_surgery_note(&j->s, j->a->what, to.layer, to.expert, detail);
    mu_print("expert %d of layer %d: %s\n", to.expert, to.layer, detail);
    return MU_STATUS_OK;
}

static mu_status reseed(job *j, mu_error *e) {
    place to = j->a->at;
    int moe = moe_of(j, to, e);
    mu_status status = moe < 0 ? MU_STATUS_USAGE : may_replace(j, to, moe, false, e);
    if (status != MU_STATUS_OK) return status;
    int donor = find_donor(j, moe, to.expert);
    if (donor < 0) return mu_error_set(e, MU_STATUS_CONFIG, "layer %d: every other expert carries a domain, was overwritten or is frozen; none can be split", to.layer);
    return copy_expert(j, (place){ to.layer, donor }, to, moe, true, e);
}

static mu_status duplicate(job *j, mu_error *e) {
    int from = moe_of(j, j->a->at, e), moe = from < 0 ? -1 : moe_of(j, j->a->slot, e);
    if (moe < 0) return MU_STATUS_USAGE;
    if (j->a->slot.expert == j->a->at.expert) return mu_error_set(e, MU_STATUS_USAGE, "--slot names the expert itself");
    mu_status status = may_replace(j, j->a->slot, moe, true, e);
    return status == MU_STATUS_OK ? copy_expert(j, j->a->at, j->a->slot, moe, false, e) : status;
}

/* ------------------------------------------------------------------ prune */

typedef struct { int expert; double score, load; } candidate;

static int by_score(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    if (x->load != y->load) return x->load < y->load ? 1 : -1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

static int by_number(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static double score_of(const job *j, int64_t at) {
    const mu_knowledge *k = state_of(j)->knowledge;
    double most = 0;
    if (!j->a->by || !strcmp(j->a->by, "load")) return (double)state_of(j)->stats->window.total[at];
    for (int d = 0; d < k->domains; d++) most = fmax(most, (double)k->K[at * k->domains + d]);
    return most;
}

/* A domain of which a removed expert is the last carrier in its layer; -1: none. */
static int loses_domain(const job *j, int moe, const candidate *c, int64_t keep, int *expert) {
    const mu_expert_health *h = &state_of(j)->stats->health;
    for (int64_t i = keep; i < experts_of(j); i++) {
        int64_t at = cell_of(j, moe, c[i].expert);
        bool stays = !carries(state_at(j, at));
        for (int64_t k = 0; k < keep && !stays; k++) {
            int64_t other = cell_of(j, moe, c[k].expert);
            stays = carries(state_at(j, other)) && h->carried[other] == h->carried[at];
        }
        if (!stays) return *expert = c[i].expert, (int)h->carried[at] - 1;
    }
    return -1;
}

/* kept [N], ascending. */
static mu_status choose(job *j, int moe, int *kept, mu_error *e) {
    int64_t E = experts_of(j), N = j->a->keep;
    int expert, layer = state_of(j)->model->moe_layers[moe];
    candidate *c = mu_alloc((size_t)E, sizeof *c);
    for (int i = 0; i < E; i++) {
        int64_t at = cell_of(j, moe, i);
        c[i] = (candidate){ i, score_of(j, at), (double)state_of(j)->stats->window.total[at] };
    }
    qsort(c, (size_t)E, sizeof *c, by_score);
    int lost = loses_domain(j, moe, c, N, &expert);
    mu_status status = lost < 0 || j->a->force ? MU_STATUS_OK
        : mu_error_set(e, MU_STATUS_CONFIG, "expert %d of layer %d is the last carrier of %s there; keep more experts, or --by criticality, or --force", expert,
                       layer, state_of(j)->knowledge->names[lost]);
    for (int i = 0; i < N; i++) kept[i] = c[i].expert;
    qsort(kept, (size_t)N, sizeof *kept, by_number);
    for (int64_t i = N; i < E && status == MU_STATUS_OK; i++) status = archive_first(j, (place){ layer, c[i].expert }, false, e);
    free(c);
    return status;
}

static mu_status prune(job *j, mu_error *e) {
    int64_t E = experts_of(j), N = j->a->keep;
    int layers = state_of(j)->model->n_moe, *kept = mu_alloc((size_t)(layers * N) + 1, sizeof *kept);
    mu_status status = MU_STATUS_OK;
    if (!state_of(j)->stats) status = mu_error_set(e, MU_STATUS_CONFIG, "%s holds weights only: nothing is known of its experts", j->m.path);
    else if (N >= E) status = mu_error_set(e, MU_STATUS_USAGE, "--keep %lld: the layers have %lld experts", (long long)N, (long long)E);
    else if (N < j->m.cfg.moe.top_k)
        status = mu_error_set(e, MU_STATUS_USAGE, "--keep %lld: each token takes moe.top_k=%lld experts", (long long)N, (long long)j->m.cfg.moe.top_k);
    else if (j->m.cfg.moe.force_domains.n || j->m.cfg.protect.carriers.n)
        status = mu_error_set(e, MU_STATUS_CONFIG, "%s name experts by their numbers, which prune changes: begin a run without it, with --fork, and"
                              " prune that", j->m.cfg.moe.force_domains.n ? "moe.force_domains" : "protect.carriers");
    if (status == MU_STATUS_OK && j->a->dry_run) status = open_live(j, true, e);
    for (int i = 0; i < layers && status == MU_STATUS_OK; i++) status = choose(j, i, kept + i * N, e);
    for (int i = 0; i < layers && status == MU_STATUS_OK; i++) {
        mu_print("layer %d keeps", state_of(j)->model->moe_layers[i]);
        for (int64_t k = 0; k < N; k++) mu_print(" %d", kept[i * N + k]);
        mu_print("\n");
    }
    if (status == MU_STATUS_OK) status = mu_surgery_keep(&j->s, N, kept, e);
    if (status == MU_STATUS_OK) {
        char detail[64];
        snprintf(detail, sizeof detail, "%lld of %lld experts kept, by %s", (long long)N, (long long)E, j->a->by ? j->a->by : "load");
        mu_surgery_note(&j->s, "prune", -1, -1, detail);
    }
    free(kept);
    return status;
}

/* ------------------------------------------------------------------ the result */

/* The losses of every domain before and after. */
static mu_status predict(job *j, mu_error *e) {
    int n = j->texts.corpus.n_domains;
    mu_domain_loss *before = mu_alloc(2 * (size_t)n, sizeof *before), *after = before + n;
    mu_model *model = mu_model_new(&j->s.cfg.model, &j->s.cfg.moe, j->m.vocab_size, 1, j->o.dev, j->mesh);
    mu_model_name_domains(model, &j->o.cfg.data.train);
    double mean = mu_evaluate(&j->ev, 0, before);
    mu_status status = mu_surgery_load(&j->s, model, e);
    j->ev.model = model;
    if (status == MU_STATUS_OK) {
        double then = mu_evaluate(&j->ev, 0, after);
        mu_print("\nvalidation loss, nats per token\n  %-24s %9s %9s %9s\n", "domain", "before", "after", "change");
        for (int d = 0; d < n; d++)
            if (before[d].tokens)
                mu_print("  %-24s %9.4f %9.4f %+9.4f\n", j->texts.corpus.domains[d].name, before[d].ce, after[d].ce, after[d].ce - before[d].ce);
        mu_print("  %-24s %9.4f %9.4f %+9.4f\n", "mean, by their shares", mean, then, then - mean);
    }
    j->ev.model = j->o.state.model;
    mu_model_free(model);
    free(before);
    return status;
}

static char *absolute(const char *path) {
    char *here = path[0] == '/' ? NULL : realpath(".", NULL), *whole = here ? mu_format("%s/%s", here, path) : mu_strdup(path);
    free(here);
    return whole;
}

static mu_status perform(job *j, mu_error *e) {
    static const struct { const char *what; mu_status (*run)(job *j, mu_error *e); } actions[] = {
        { "freeze", freeze }, { "restore", restore }, { "reseed", reseed }, { "duplicate", duplicate }, { "prune", prune } };
    mu_status status = MU_STATUS_OK;
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (is(j->a, actions[i].what)) status = actions[i].run(j, e);
    if (status != MU_STATUS_OK || !j->a->dry_run) return status;
    if (!j->live) status = open_live(j, true, e);
    return status == MU_STATUS_OK ? predict(j, e) : status;
}

static mu_status write_result(job *j, mu_error *e) {
    mu_status status = mu_surgery_write(&j->s, j->folder, e);
    if (status == MU_STATUS_OK) status = mu_file_sync(j->folder, e);
    if (status == MU_STATUS_OK) status = mu_file_rename(j->folder, j->a->out, e);
    if (status == MU_STATUS_OK)
        mu_print("written: %s, from %s; next: muster train %s/config.resolved.yaml; muster eval %s; muster convert %s OUT --to hf\n", j->a->out, j->m.path,
                 j->a->out, j->a->out, j->a->out);
    return status;
}

/* Another process may have made OUT meanwhile: a rename onto an existing folder that is not empty fails. */
static mu_status change(job *j, mu_error *e) {
    char *suffix = mu_format(".tmp-%ld", (long)getpid());
    if (!j->a->dry_run) j->folder = mu_file_free_name(j->a->out, suffix);
    mu_status status = j->folder ? mu_file_make_dirs(j->folder, e) : MU_STATUS_OK;
    if (status == MU_STATUS_OK) status = perform(j, e);
    if (status == MU_STATUS_OK && j->folder) status = write_result(j, e);
    if (status != MU_STATUS_OK && j->folder) (void)!mu_file_remove_tree(j->folder, NULL);
    free(j->folder);
    free(suffix);
    return status;
}

static mu_status run(job *j, mu_error *e) {
    bool found = false;
    char *out = j->a->out ? absolute(j->a->out) : mu_strdup("unused");
    mu_status status = mu_checkpoint_find(j->mesh->batch, j->a->path, &j->m, &found, e);
    if (status == MU_STATUS_OK && !found) status = mu_checkpoint_missing(j->a->path, e);
    if (status == MU_STATUS_OK) status = mu_surgery_open(&j->s, &j->m, out, e);
    if (status == MU_STATUS_OK) status = is(j->a, "list") ? list(j, e) : is(j->a, "archive") ? archive(j, e) : change(j, e);
    status = mu_surgery_close(&j->s, status, e);
    mu_texts_close(&j->texts);
    mu_inference_close(&j->o);
    mu_manifest_free(&j->m);
    free(out);
    return status;
}

int mu_cmd_expert(int argc, char **argv) {
    mu_error e = { 0 };
    arguments a;
    mu_dist_start(&argc, &argv);
    mu_mesh *mesh = mu_mesh_open(NULL, 1);
    int rank = mesh->world->rank;
    mu_report_error(&e, rank);
    mu_status status = parse(argc, argv, &a, &e);
    if (status == MU_STATUS_OK && mesh->world->size > 1) status = mu_error_set(&e, MU_STATUS_USAGE, "expert runs on one rank");
    if (status == MU_STATUS_OK) status = run(&(job){ .a = &a, .mesh = mesh }, &e);
    free(a.path);
    free(a.out);
    free(a.overrides);
    if (status != MU_STATUS_OK) mu_report_error(&e, rank);
    mu_mesh_close(mesh);
    mu_dist_stop();
    return (int)status;
}
