/* expert_arguments.c - the command line of muster expert. */
#include "train/expert_job.h"

#include <stdlib.h>
#include <string.h>

static const mu_place nowhere = { -1, -1 };

static bool read_place(const char *text, mu_place *p) {
    char end;
    return text[0] >= '0' && text[0] <= '9' && sscanf(text, "%d:%d%c", &p->layer, &p->expert, &end) == 2 && p->layer >= 0 && p->expert >= 0;
}

bool mu_expert_is(const mu_expert_arguments *a, const char *what) { return !strcmp(a->what, what); }

void mu_expert_arguments_free(mu_expert_arguments *a) {
    free(a->path);
    free(a->out);
    free(a->overrides);
}

static bool read_flag(mu_expert_arguments *a, const char *text) {
    const struct { const char *name; bool *value; } flags[] = { { "--dry-run", &a->dry_run }, { "--undo", &a->undo } };
    if (!strcmp(text, "--force")) return ++a->force;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (!strcmp(text, flags[i].name)) return *flags[i].value = true;
    return false;
}

static mu_status check_arguments(const mu_expert_arguments *a, const char *out, mu_error *e) {
    static const char *const known[] = { "list", "archive", "freeze", "restore", "reseed", "duplicate", "prune" };
    const char *near = mu_suggest(a->what, known, sizeof known / sizeof *known);
    bool found = false, whole = mu_expert_is(a, "list") || mu_expert_is(a, "prune");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) found |= mu_expert_is(a, known[i]);
    if (!found) return mu_error_set(e, MU_STATUS_USAGE, "expert %s: list, archive, freeze, restore, reseed, duplicate or prune%s%s%s", a->what,
                                    near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    if (!a->path) return mu_error_set(e, MU_STATUS_USAGE, "expert %s needs a run folder or a checkpoint", a->what);
    if (!whole && a->at.layer < 0) return mu_error_set(e, MU_STATUS_USAGE, "expert %s needs an expert, LAYER:EXPERT as in 2:7", a->what);
    if (whole && a->at.layer >= 0) return mu_error_set(e, MU_STATUS_USAGE, "expert %s takes no LAYER:EXPERT", a->what);
    if (!out && !a->dry_run && !mu_expert_is(a, "list") && !mu_expert_is(a, "archive"))
        return mu_error_set(e, MU_STATUS_USAGE, "expert %s needs --out FOLDER, a new one, or --dry-run", a->what);
    if (out && mu_expert_is(a, "list")) return mu_error_set(e, MU_STATUS_USAGE, "expert list writes nothing, so it takes no --out");
    if (((a->from || a->heal >= 0) && !mu_expert_is(a, "restore")) || (a->slot.layer >= 0 && !mu_expert_is(a, "restore") && !mu_expert_is(a, "duplicate")) || (a->undo && !mu_expert_is(a, "freeze")) ||
        ((a->keep >= 0 || a->by) && !mu_expert_is(a, "prune")) || (a->dry_run && (mu_expert_is(a, "list") || mu_expert_is(a, "archive"))))
        return mu_error_set(e, MU_STATUS_USAGE, "expert %s does not take this option; see muster expert --help", a->what);
    if (mu_expert_is(a, "duplicate") && a->slot.layer < 0) return mu_error_set(e, MU_STATUS_USAGE, "expert duplicate needs --slot LAYER:EXPERT, the expert to replace");
    if (mu_expert_is(a, "prune") && a->keep < 1) return mu_error_set(e, MU_STATUS_USAGE, "expert prune needs --keep N, the experts that stay in each layer");
    if (a->by && strcmp(a->by, "load") && strcmp(a->by, "criticality"))
        return mu_error_set(e, MU_STATUS_USAGE, "--by %s: load or criticality", a->by);
    if (a->slot.layer >= 0 && a->slot.layer != a->at.layer)
        return mu_error_set(e, MU_STATUS_USAGE, "--slot %d:%d: an expert of layer %d works only in that layer", a->slot.layer, a->slot.expert, a->at.layer);
    if (!mu_file_exists(a->path)) return mu_error_set(e, MU_STATUS_NOINPUT, "no such run or checkpoint: %s", a->path);
    return MU_STATUS_OK;
}

/* LAYER:EXPERT, or an override for the texts and the device. */
static mu_status read_other(mu_expert_arguments *a, const char *text, mu_error *e) {
    if (strchr(text, '=')) {
        a->overrides[a->n_overrides++] = (char *)(uintptr_t)text;
        return mu_config_check_use(text, MU_ON_EVAL, "expert", e);
    }
    return a->at.layer < 0 && read_place(text, &a->at) ? MU_STATUS_OK : mu_error_set(e, MU_STATUS_USAGE, "unexpected argument '%s'", text);
}

mu_status mu_expert_arguments_read(mu_expert_arguments *a, int argc, char **argv, mu_error *e) {
    const char *out = NULL, *slot = NULL, *keep = NULL, *heal = NULL;
    *a = (mu_expert_arguments){ .what = argc > 2 ? argv[2] : "", .at = nowhere, .slot = nowhere, .keep = -1, .heal = -1,
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
    if (status == MU_STATUS_OK && a->out && !mu_expert_is(a, "archive") && mu_file_exists(a->out))
        status = mu_error_set(e, MU_STATUS_USAGE, "%s exists; choose a new folder", a->out);
    return status;
}
