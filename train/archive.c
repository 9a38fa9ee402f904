/* archive.c - records of experts: FOLDER/layer_LL/expert_EEE/step-N.h5.
 *
 *     /unit/...       router row, selection bias, weights, and the optimizer's state of each
 *     /domains/...    criticality and cross-entropies of each domain
 *     /samples/...    tokens of sequences of its own domain; inputs h and outputs f(h) of the expert for some of them
 *     /fisher/...     Fisher information of the unit's values for its domain
 *     /about          JSON: where it is from, its state, and a hash of the unit
 *
 * A record gets its name when it has been read back and is equal. */
#include "train/surgery.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ABOUT_VERSION = 2,       /* 1: without Fisher information */
       DOMAINS_MAX = 1 << 16 };

void mu_archive_free(mu_archive *a) {
    mu_expert_unit_free(&a->unit);
    mu_expert_samples_free(&a->samples);
    mu_expert_fisher_free(&a->fisher);
    free(a->names);
    free(a->K);
    *a = (mu_archive){ 0 };
}

/* The four arrays are one block. */
static void make_domains(mu_archive *a, int n) {
    size_t room = (size_t)n;
    a->n_domains = n;
    a->names = mu_alloc(room + 1, sizeof *a->names);
    a->K = mu_alloc(4 * room + 1, sizeof *a->K);
    a->ce = a->K + room, a->ce_best = a->ce + room, a->ce_ref = a->ce_best + room;
}

/* ------------------------------------------------------------------ names */

static char *folder_of(const char *folder, int layer, int expert) { return mu_format("%s/layer_%02d/expert_%03d", folder, layer, expert); }

char *mu_archive_path(const char *folder, int layer, int expert, int64_t step) {
    char *in = folder_of(folder, layer, expert), *path = mu_format("%s/step-%08lld.h5", in, (long long)step);
    free(in);
    return path;
}

int mu_archive_list(const char *folder, int layer, int expert, int64_t **steps) {
    char *in = folder_of(folder, layer, expert);
    int n = 0;
    DIR *d = opendir(in);
    *steps = NULL;
    for (struct dirent *f = d ? readdir(d) : NULL; f; f = readdir(d)) {
        size_t length = strlen(f->d_name);
        int64_t step;
        char *name = mu_format("%.*s", (int)(length > 3 ? length - 3 : 0), f->d_name);
        bool is = mu_file_ends(f->d_name, ".h5") && mu_checkpoint_step(name, &step);
        free(name);
        if (!is) continue;
        *steps = mu_realloc(*steps, (size_t)n + 1, sizeof **steps);
        int at = n++;
        for (; at > 0 && (*steps)[at - 1] < step; at--) (*steps)[at] = (*steps)[at - 1];
        (*steps)[at] = step;
    }
    if (d) closedir(d);
    free(in);
    return n;
}

/* ------------------------------------------------------------------ what is known of the expert */

void mu_archive_describe(mu_archive *a, const mu_train_state *t, const mu_config *cfg, int moe, int expert) {
    const mu_knowledge *k = t->knowledge;
    int64_t at = (int64_t)moe * cfg->moe.num_experts + expert;
    a->step = t->step;
    snprintf(a->state, sizeof a->state, "healthy");
    make_domains(a, cfg->data.train.n);
    for (int d = 0; d < a->n_domains; d++) {
        bool known = k && k->rounds && d < k->domains;
        snprintf(a->names[d], sizeof a->names[d], "%s", cfg->data.train.list[d].domain);
        a->K[d] = known && k->at[at * k->domains + d] ? (double)k->K[at * k->domains + d] : NAN;
        a->ce[d] = known ? k->ce[d] : NAN, a->ce_best[d] = known ? k->ce_best[d] : NAN;
        a->ce_ref[d] = known && k->ce_ref[d] > 0 ? k->ce_ref[d] : NAN;
    }
    if (!t->stats) return;
    const mu_expert_health *h = &t->stats->health;
    int carried = h->carried[at] ? (int)h->carried[at] - 1 : mu_given_domain(&cfg->protect, &cfg->data.train, expert);
    snprintf(a->state, sizeof a->state, "%s", mu_expert_state_name((mu_expert_state)h->state[at]));
    if (carried < 0 || carried >= a->n_domains) return;
    snprintf(a->carries, sizeof a->carries, "%s", a->names[carried]);
    a->carried = isnan(a->K[carried]) ? 0 : a->K[carried];
}

/* ------------------------------------------------------------------ writing */

static void number_or_null(mu_json *j, const char *key, double value) {
    if (isfinite(value)) mu_json_float(j, key, value);
}

static char *about_text(const mu_archive *a) {
    char hex[33];
    mu_json j;
    mu_json_init(&j);
    mu_expert_unit_hash(&a->unit, hex);
    mu_json_begin(&j, NULL, '{');
    mu_json_string(&j, "format", "muster-expert");
    mu_json_int(&j, "version", ABOUT_VERSION);
    mu_json_string(&j, "program", "muster " MU_VERSION);
    mu_json_int(&j, "layer", a->unit.layer);
    mu_json_int(&j, "expert", a->unit.expert);
    mu_json_int(&j, "step", a->step);
    mu_json_string(&j, "state", a->state);
    if (a->carries[0]) mu_json_string(&j, "carries", a->carries);
    mu_json_float(&j, "criticality", a->carried);
    if (a->run[0]) mu_json_string(&j, "run", a->run);
    if (a->manifest_hash[0]) mu_json_string(&j, "manifest_hash", a->manifest_hash);
    if (a->shared_hash[0]) mu_json_string(&j, "shared_hash", a->shared_hash);
    mu_json_int(&j, "hidden_size", a->unit.D);
    mu_json_int(&j, "moe_ffn_hidden_size", a->unit.F);
    mu_json_string(&j, "dtype", a->unit.type == MU_STORE_F64 ? "f64" : "f32");
    if (a->unit.rule) mu_json_string(&j, "rule", a->unit.rule->name);
    mu_json_int(&j, "samples", a->samples.n);
    mu_json_int(&j, "fisher_sequences", a->fisher.n);
    mu_json_string(&j, "unit_hash", hex);
    mu_json_begin(&j, "domains", '[');
    for (int d = 0; d < a->n_domains; d++) {
        mu_json_begin(&j, NULL, '{');
        mu_json_string(&j, "name", a->names[d]);
        number_or_null(&j, "criticality", a->K[d]);
        number_or_null(&j, "ce", a->ce[d]);
        number_or_null(&j, "ce_best", a->ce_best[d]);
        number_or_null(&j, "ce_ref", a->ce_ref[d]);
        mu_json_end(&j, '}');
    }
    mu_json_end(&j, ']');
    mu_json_end(&j, '}');
    char *text = mu_strdup(j.text);
    mu_json_free(&j);
    return text;
}

static mu_status store_samples(const mu_expert_samples *p, mu_store *s, mu_error *e) {
    const int64_t tokens[2] = { p->n_sequences, p->S }, rows[2] = { p->n, p->D };
    mu_status status = mu_store_write(s, "/samples/tokens", MU_STORE_I32, 2, tokens, p->tokens, e);
    if (status == MU_STATUS_OK) status = mu_store_write(s, "/samples/domains", MU_STORE_I32, 1, tokens, p->domains, e);
    if (status == MU_STATUS_OK) status = mu_store_write(s, "/samples/at", MU_STORE_I32, 1, rows, p->at, e);
    if (status == MU_STATUS_OK) status = mu_store_write(s, "/samples/h", MU_STORE_F64, 2, rows, p->h, e);
    return status == MU_STATUS_OK ? mu_store_write(s, "/samples/y", MU_STORE_F64, 2, rows, p->y, e) : status;
}

static mu_status store_fisher(const mu_archive *a, mu_store *s, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int part = 0; part < MU_PARTS && status == MU_STATUS_OK; part++)
        status = mu_expert_part_store(&a->unit, s, "/fisher", part, a->fisher.values[part], e);
    return status;
}

static mu_status fault(const char *point, mu_error *e) {
    return mu_fault(point, 0) ? mu_error_set(e, MU_STATUS_IO, "%s: no space left on device (injected by a test)", point) : MU_STATUS_OK;
}

static mu_status write_file(const mu_archive *a, const char *path, mu_error *e) {
    mu_store *s = NULL;
    char *about = about_text(a);
    mu_status status = fault("archive-open", e);
    if (status == MU_STATUS_OK) status = mu_store_create(&s, path, e);
    if (status == MU_STATUS_OK) status = mu_expert_unit_store(&a->unit, s, e);
    if (status == MU_STATUS_OK) status = fault("archive-middle", e);
    if (status == MU_STATUS_OK && a->samples.n) status = store_samples(&a->samples, s, e);
    if (status == MU_STATUS_OK && a->fisher.n) status = store_fisher(a, s, e);
    if (status == MU_STATUS_OK) status = mu_store_write_text(s, "/about", about, e);
    if (status == MU_STATUS_OK) status = fault("archive-before-close", e);
    status = mu_store_finish(s, status, e);
    free(about);
    return status;
}

static bool same_samples(const mu_expert_samples *a, const mu_expert_samples *b) {
    size_t n = (size_t)(a->n * a->D) * sizeof *a->h;
    if (!a->n && !b->n) return true;        /* an expert without tokens: no samples are stored */
    if (a->n != b->n || a->n_sequences != b->n_sequences || a->S != b->S) return false;
    return !memcmp(a->h, b->h, n) && !memcmp(a->y, b->y, n) && !memcmp(a->at, b->at, (size_t)a->n * sizeof *a->at) &&
           !memcmp(a->tokens, b->tokens, (size_t)(a->n_sequences * a->S) * sizeof *a->tokens);
}

static bool same_fisher(const mu_archive *a, const mu_archive *b) {
    bool same = a->fisher.n == b->fisher.n;
    for (int part = 0; part < MU_PARTS && same && a->fisher.n; part++)
        same = !memcmp(a->fisher.values[part], b->fisher.values[part], (size_t)mu_expert_unit_count(&a->unit, part) * sizeof(double));
    return same;
}

static mu_status read_back(const mu_archive *a, const char *path, mu_error *e) {
    mu_archive again;
    mu_status status = mu_archive_read(&again, path, e);
    bool same = status == MU_STATUS_OK && mu_expert_unit_equal(&a->unit, &again.unit) && same_samples(&a->samples, &again.samples) &&
                same_fisher(a, &again) && !mu_fault("archive-compare", 0);
    mu_archive_free(&again);
    return status == MU_STATUS_OK && !same ? mu_error_set(e, MU_STATUS_IO, "%s: what was read back is not what was written", path) : status;
}

/* The criticality of a record; -1 when it cannot be read. */
static double criticality_of(const char *path) {
    mu_archive a;
    mu_error why;
    double K = mu_archive_read(&a, path, &why) == MU_STATUS_OK ? a.carried : -1;
    mu_archive_free(&a);
    return K;
}

/* Which of the steps has the largest criticality, the newest of several; -1: there is none. */
static int best_of(const char *folder, int layer, int expert, const int64_t *steps, int n) {
    int best = -1;
    double most = -1;
    for (int i = 0; i < n; i++) {
        char *path = mu_archive_path(folder, layer, expert, steps[i]);
        double K = criticality_of(path);
        if (K > most) most = K, best = i;
        free(path);
    }
    return best;
}

char *mu_archive_best(const char *folder, int layer, int expert) {
    int64_t *steps;
    int n = mu_archive_list(folder, layer, expert, &steps), best = best_of(folder, layer, expert, steps, n);
    char *path = best < 0 ? NULL : mu_archive_path(folder, layer, expert, steps[best]);
    free(steps);
    return path;
}

/* Keeps the best and the last two. */
static void drop_old(const char *folder, int layer, int expert) {
    enum { LAST = 2 };
    int64_t *steps;
    int n = mu_archive_list(folder, layer, expert, &steps), best = n > LAST ? best_of(folder, layer, expert, steps, n) : -1;
    for (int i = LAST; i < n; i++) {
        char *path = mu_archive_path(folder, layer, expert, steps[i]);
        if (i != best) unlink(path);
        free(path);
    }
    free(steps);
}

mu_status mu_archive_write(mu_archive *a, const char *folder, mu_error *e) {
    char *in = folder_of(folder, a->unit.layer, a->unit.expert);
    char *path = mu_archive_path(folder, a->unit.layer, a->unit.expert, a->step), *temporary = NULL;
    mu_status status = mu_file_make_dirs(in, e);
    if (status == MU_STATUS_OK) status = mu_file_temporary(path, &temporary, e);
    if (status == MU_STATUS_OK) status = write_file(a, temporary, e);
    if (status == MU_STATUS_OK) status = read_back(a, temporary, e);
    if (status == MU_STATUS_OK) status = fault("archive-before-rename", e);
    if (status == MU_STATUS_OK) status = mu_file_rename(temporary, path, e);
    if (status != MU_STATUS_OK && temporary) unlink(temporary);
    if (status == MU_STATUS_OK) {
        drop_old(folder, a->unit.layer, a->unit.expert);
        snprintf(a->path, sizeof a->path, "%s", path);
    }
    free(temporary);
    free(path);
    free(in);
    return status;
}

/* ------------------------------------------------------------------ reading */

static bool copy_text(const json_t *root, const char *key, char *to, size_t room) {
    const char *text = json_string_value(json_object_get(root, key));
    return !text || snprintf(to, room, "%s", text) < (int)room;
}

static double number(const json_t *root, const char *key) {
    const json_t *value = json_object_get(root, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static int64_t whole(const json_t *root, const char *key, int64_t most) {
    const json_t *value = json_object_get(root, key);
    return json_is_integer(value) && json_integer_value(value) >= 0 && json_integer_value(value) <= most ? json_integer_value(value) : -1;
}

static bool read_domains(mu_archive *a, const json_t *list) {
    if (!json_is_array(list) || json_array_size(list) > DOMAINS_MAX) return false;
    make_domains(a, (int)json_array_size(list));
    for (int d = 0; d < a->n_domains; d++) {
        const json_t *one = json_array_get(list, (size_t)d);
        a->K[d] = number(one, "criticality"), a->ce[d] = number(one, "ce");
        a->ce_best[d] = number(one, "ce_best"), a->ce_ref[d] = number(one, "ce_ref");
        if (!copy_text(one, "name", a->names[d], sizeof a->names[d])) return false;
    }
    return true;
}

/* The rule by its name; NULL: there is none of this name. */
static const mu_rule *rule_named(const char *name) {
    static const mu_rule *const rules[] = {
#define ADDRESS(name) &mu_rule_##name,
        MU_RULES(ADDRESS)
#undef ADDRESS
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!strcmp(rules[i]->name, name)) return rules[i];
    return NULL;
}

/* Everything but the arrays, and memory for these. unit_hash: as it was written. */
static bool read_about(mu_archive *a, const json_t *root, char unit_hash[33]) {
    enum { LAYERS = 1 << 20, WIDTH = 1 << 20 };
    char format[32] = "", dtype[8] = "", rule[32] = "";
    int64_t layer = whole(root, "layer", LAYERS), expert = whole(root, "expert", LAYERS), D = whole(root, "hidden_size", WIDTH),
            F = whole(root, "moe_ffn_hidden_size", WIDTH);
    int64_t version = whole(root, "version", ABOUT_VERSION);
    bool good = copy_text(root, "format", format, sizeof format) && !strcmp(format, "muster-expert") && version >= 1 &&
                copy_text(root, "dtype", dtype, sizeof dtype) &&
                copy_text(root, "rule", rule, sizeof rule) && (!rule[0] || rule_named(rule)) && copy_text(root, "state", a->state, sizeof a->state) &&
                copy_text(root, "carries", a->carries, sizeof a->carries) && copy_text(root, "run", a->run, sizeof a->run) &&
                copy_text(root, "manifest_hash", a->manifest_hash, 33) && copy_text(root, "shared_hash", a->shared_hash, 33) &&
                copy_text(root, "unit_hash", unit_hash, 33);
    a->step = whole(root, "step", INT64_MAX), a->carried = number(root, "criticality"), a->samples.n = whole(root, "samples", MU_SAMPLES_MAX);
    a->fisher.n = version == 1 ? 0 : whole(root, "fisher_sequences", MU_FISHER_SEQUENCES);
    if (!good || layer < 0 || expert < 0 || D < 1 || F < 1 || a->step < 0 || isnan(a->carried) || a->samples.n < 0 || a->fisher.n < 0) return false;
    mu_expert_unit_init(&a->unit, D, F, !strcmp(dtype, "f64"), rule[0] ? rule_named(rule) : NULL);
    a->unit.layer = (int)layer, a->unit.expert = (int)expert;
    return read_domains(a, json_object_get(root, "domains"));
}

static mu_status read_samples(mu_archive *a, mu_store *s, mu_error *e) {
    mu_expert_samples *p = &a->samples;
    mu_store_type type;
    int n_dims;
    int64_t shape[4];
    mu_status status = mu_store_shape(s, "/samples/tokens", &type, &n_dims, shape, e);
    if (status != MU_STATUS_OK) return status;
    if (n_dims != 2 || shape[0] < 1 || shape[0] > MU_SAMPLES_MAX || shape[1] < 1 || shape[1] > INT32_MAX / MU_SAMPLES_MAX)
        return mu_error_set(e, MU_STATUS_DATA, "/samples/tokens has an implausible shape");
    p->n_sequences = shape[0], p->S = shape[1], p->D = a->unit.D;
    p->tokens = mu_alloc((size_t)(p->n_sequences * p->S), sizeof *p->tokens);
    p->domains = mu_alloc((size_t)p->n_sequences, sizeof *p->domains);
    p->at = mu_alloc((size_t)p->n, sizeof *p->at);
    p->h = mu_alloc((size_t)(p->n * p->D), sizeof *p->h);
    p->y = mu_alloc((size_t)(p->n * p->D), sizeof *p->y);
    const int64_t rows[2] = { p->n, p->D };
    status = mu_store_read(s, "/samples/tokens", MU_STORE_I32, 2, shape, p->tokens, e);
    if (status == MU_STATUS_OK) status = mu_store_read(s, "/samples/domains", MU_STORE_I32, 1, shape, p->domains, e);
    if (status == MU_STATUS_OK) status = mu_store_read(s, "/samples/at", MU_STORE_I32, 1, rows, p->at, e);
    if (status == MU_STATUS_OK) status = mu_store_read(s, "/samples/h", MU_STORE_F64, 2, rows, p->h, e);
    if (status == MU_STATUS_OK) status = mu_store_read(s, "/samples/y", MU_STORE_F64, 2, rows, p->y, e);
    for (int64_t i = 0; i < p->n && status == MU_STATUS_OK; i++)
        if (p->at[i] < (i ? p->at[i - 1] : 0) || p->at[i] >= p->n_sequences * p->S)
            status = mu_error_set(e, MU_STATUS_DATA, "/samples/at[%lld] is %d", (long long)i, p->at[i]);
    return status;
}

static mu_status read_fisher(mu_archive *a, mu_store *s, mu_error *e) {
    mu_status status = MU_STATUS_OK;
    for (int part = 0; part < MU_PARTS && status == MU_STATUS_OK; part++) {
        int64_t n = mu_expert_unit_count(&a->unit, part);
        double *f = a->fisher.values[part] = mu_alloc((size_t)n, sizeof *f);
        status = mu_expert_part_load(&a->unit, s, "/fisher", part, f, e);
        for (int64_t i = 0; i < n && status == MU_STATUS_OK; i++)
            if (!(f[i] >= 0 && isfinite(f[i]))) status = mu_error_set(e, MU_STATUS_DATA, "/fisher: a value is %g", f[i]);
    }
    return status;
}

static mu_status read_content(mu_archive *a, mu_store *s, mu_error *e) {
    char *text = NULL, unit_hash[33] = "", hex[33];
    mu_status status = mu_store_read_text(s, "/about", &text, e);
    if (status != MU_STATUS_OK) return status;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    if (!read_about(a, root, unit_hash)) status = mu_error_set(e, MU_STATUS_DATA, "not an archived expert that this program reads");
    json_decref(root);
    free(text);
    if (status == MU_STATUS_OK) status = mu_expert_unit_load(&a->unit, s, e);
    if (status == MU_STATUS_OK && a->samples.n) status = read_samples(a, s, e);
    if (status == MU_STATUS_OK && a->fisher.n) status = read_fisher(a, s, e);
    if (status != MU_STATUS_OK) return status;
    mu_expert_unit_hash(&a->unit, hex);
    return strcmp(hex, unit_hash) ? mu_error_set(e, MU_STATUS_DATA, "damaged: the unit's hash is %s, %s was written", hex, unit_hash) : status;
}

mu_status mu_archive_read(mu_archive *a, const char *path, mu_error *e) {
    mu_store *s = NULL;
    mu_error why = { 0 };
    *a = (mu_archive){ 0 };
    mu_status status = mu_store_open(&s, path, e);
    if (status != MU_STATUS_OK) return status;
    status = read_content(a, s, &why);
    if (status != MU_STATUS_OK) mu_error_set(e, status, "%s: %-s", path, why.text);
    snprintf(a->path, sizeof a->path, "%s", path);
    return mu_store_finish(s, status, e);
}
