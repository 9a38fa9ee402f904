/* config.c - the configuration of a run: the table of all sections, and checks that involve several sections, files
 * or ranks; those of one section are in its folder. Everything is checked before anything large is allocated,
 * and all errors are reported together. */
#include "train/config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------ the table */

#define ROW(section, TYPE, key, fallback, low, high, choices, use, help)                                           \
    {                                                                                                              \
        #section, #key, MU_OPTION_##TYPE, offsetof(mu_config, section.key), fallback, low, high, choices, help,    \
            MU_USE_##use                                                                                           \
    },
#define RUN(...) ROW(run, __VA_ARGS__)
#define MODEL(...) ROW(model, __VA_ARGS__)
#define MOE(...) ROW(moe, __VA_ARGS__)
#define PARALLEL(...) ROW(parallel, __VA_ARGS__)
#define DATA(...) ROW(data, __VA_ARGS__)
#define OPTIM(...) ROW(optim, __VA_ARGS__)
#define TRAIN(...) ROW(train, __VA_ARGS__)
#define CHECKPOINT(...) ROW(checkpoint, __VA_ARGS__)
#define STATS(...) ROW(stats, __VA_ARGS__)
#define PROTECT(...) ROW(protect, __VA_ARGS__)
#define LOG(...) ROW(log, __VA_ARGS__)

static const mu_option table[] = { MU_OPTIONS_RUN(RUN) MU_OPTIONS_MODEL(MODEL) MU_OPTIONS_MOE(MOE)
                                       MU_OPTIONS_PARALLEL(PARALLEL) MU_OPTIONS_DATA(DATA)
                                           MU_OPTIONS_OPTIM(OPTIM) MU_OPTIONS_TRAIN(TRAIN)
                                               MU_OPTIONS_CHECKPOINT(CHECKPOINT) MU_OPTIONS_STATS(STATS)
                                                   MU_OPTIONS_PROTECT(PROTECT) MU_OPTIONS_LOG(LOG) };

const mu_option *mu_config_table(int *n) {
    *n = (int)(sizeof table / sizeof *table);
    return table;
}

/* ------------------------------------------------------------------ checks of several options */

typedef struct {
    mu_complaints found; /* of the sections' own checks. The first member: `place` casts it to the whole */
    mu_config *c;
    mu_error *e;
    int batch_ranks; /* that share a batch; 0: unknown, not checked */
    bool look_for_paths;
    bool from_checkpoint; /* checked when the run began; its texts may be others now */
    bool bad, missing; /* a wrong value (MU_STATUS_CONFIG); a missing path (MU_STATUS_NOINPUT) */
} check;

#define COMPLAIN(k, ...) ((k)->bad |= mu_options_complain(&(k)->c->options, (k)->e, __VA_ARGS__) != MU_STATUS_OK)

static void check_given(check *k) {
    if (k->c->run.dir[0] == '\0')
        COMPLAIN(k, "run", "dir", "must be given: the folder of this run, for example `dir: runs/first`");
}

/* The message shows how to get texts. */
static void check_data_given(check *k) {
    if (k->c->data.train.n == 0)
        COMPLAIN(k, "data", "train",
                 "must be given, for example `train: [{domain: english, path: texts/english}]`;"
                 " scripts/get-texts.sh fetches free texts, and `path: synthetic` is the built-in generator");
}

static void check_path(check *k, const mu_option_domain *d) {
    struct stat info;
    int failed = stat(d->path, &info) != 0 || access(d->path, R_OK) != 0;
    if (!failed) return;
    const char *why = strerror(errno);
    char *near = mu_suggest_path(d->path);
    (void)mu_options_complain(&k->c->options, k->e, "data", "train", "path '%.200s' of domain '%s': %s%s%s%s",
                              d->path, d->domain, why, near ? "; did you mean '" : "", near ? near : "",
                              near ? "'?" : "");
    free(near);
    k->missing = true;
}

static void check_paths(check *k) {
    const mu_option_domains *train = &k->c->data.train;
    for (int i = 0; i < train->n && k->look_for_paths; i++)
        if (strcmp(train->list[i].path, "synthetic")) check_path(k, &train->list[i]);
}

static void check_phase_domain(check *k, int phase, const mu_option_weight *w) {
    const mu_option_domains *train = &k->c->data.train;
    const char **names = mu_alloc((size_t)train->n, sizeof *names);
    bool known = false;
    for (int i = 0; i < train->n; i++) {
        names[i] = train->list[i].domain;
        known |= !strcmp(names[i], w->domain);
    }
    const char *near = mu_suggest(w->domain, names, train->n);
    if (!known)
        k->bad |= mu_options_complain_at(&k->c->options, k->e, "data", "phases", w->line, w->column,
                                         "phase %d names domain '%s', which is not in data.train%s%s%s", phase, w->domain,
                                         near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "") != MU_STATUS_OK;
    free(names);
}

static void check_phases(check *k) {
    const mu_option_phases *phases = &k->c->data.phases;
    for (int i = 0; i < phases->n; i++)
        for (int j = 0; j < phases->list[i].n; j++) check_phase_domain(k, i + 1, &phases->list[i].mix[j]);
}

static void check_experts_over_ranks(check *k) {
    int64_t E = k->c->moe.num_experts, ep = k->c->parallel.ep;
    if (E == 0 && ep > 1)
        COMPLAIN(k, "parallel", "ep", "%" PRId64 " needs experts, but moe.num_experts is 0; use ep 1", ep);
    else if (E % ep)
        COMPLAIN(k, "parallel", "ep",
                 "%" PRId64 " does not divide moe.num_experts %" PRId64
                 "; each rank holds the same number of experts",
                 ep, E);
}

static void check_ranks(check *k) {
    int64_t ep = k->c->parallel.ep;
    if (k->batch_ranks && k->batch_ranks % ep)
        COMPLAIN(k, "parallel", "ep",
                 "%" PRId64 " does not divide the number of ranks, %d; start a multiple of %" PRId64
                 " ranks (mpirun -n %" PRId64 ") or choose another ep",
                 ep, k->batch_ranks, ep, (k->batch_ranks / ep + 1) * ep);
}

static void check_batch(check *k) {
    int64_t global = k->c->train.global_batch_size, micro = k->c->train.micro_batch_size;
    int64_t unit = k->batch_ranks * (micro ? micro : 1), below = unit ? global / unit * unit : 0;
    char near[64], what[64] = "";
    if (unit == 0 || global % unit == 0) return;
    if (micro) snprintf(what, sizeof what, " x micro_batch_size %" PRId64 " = %" PRId64, micro, unit);
    if (below) snprintf(near, sizeof near, "%" PRId64 " and %" PRId64 " are", below, below + unit);
    else snprintf(near, sizeof near, "%" PRId64 " is", unit);
    COMPLAIN(k, "train", "global_batch_size",
             "%" PRId64 " is not a multiple of %d rank%s%s; %s the nearest that fit%s", global, k->batch_ranks,
             k->batch_ranks == 1 ? "" : "s", what, near, below ? "" : "s");
}

static void check_seq_len(check *k) {
    if (k->c->train.seq_len > k->c->model.max_seq_len)
        COMPLAIN(k, "train", "seq_len", "%" PRId64 " is more than model.max_seq_len %" PRId64,
                 k->c->train.seq_len, k->c->model.max_seq_len);
}

static void check_dtype(check *k) {
    const mu_train_config *p = &k->c->train;
    if (p->dtype == MU_TRAIN_DTYPE_BF16 && p->device != MU_TRAIN_DEVICE_AUTO &&
        p->device != MU_TRAIN_DEVICE_CPU && p->device != MU_TRAIN_DEVICE_CUDA)
        COMPLAIN(k, "train", "dtype", "bf16 needs train.device auto, cpu or cuda");
}

/* aux_loss uses the counts of a micro-batch, so the loss itself depends on the split. */
static void check_reproducible(check *k) {
    if (k->c->train.reproducible && k->c->moe.num_experts > 0 && (k->c->moe.balance & MU_BALANCE_AUX))
        COMPLAIN(k, "train", "reproducible",
                 "true excludes aux_loss in moe.balance, which by definition depends on the micro-batches;"
                 " global_aux_loss and seq_aux_loss do not");
}

/* Dispatch reserves address space for ep * T * top_k rows, the worst case of one micro-batch. */
static void check_batch_tokens(check *k) {
    const mu_config *c = k->c;
    int64_t micro = c->train.micro_batch_size, ranks = k->batch_ranks ? k->batch_ranks : 1;
    double tokens = (double)c->train.global_batch_size * (double)c->train.seq_len;
    double share = micro ? (double)micro : (double)c->train.global_batch_size / (double)ranks;
    double rows = share * (double)c->train.seq_len;
    if (c->moe.num_experts > 0) rows *= (double)c->moe.top_k * (double)c->parallel.ep;
    if (tokens > 0x1p32)
        COMPLAIN(k, "train", "global_batch_size", "x seq_len makes %.2g tokens per step, more than 2^32",
                 tokens);
    else if (rows > 0x1p31)
        COMPLAIN(k, "train", "micro_batch_size",
                 "sequences x seq_len x top_k x ep makes up to %.2g rows of a"
                 " micro-batch, more than 2^31; use a smaller one",
                 rows);
}

static int find_domain(const mu_option_domains *list, const char *name) {
    for (int i = 0; i < list->n; i++)
        if (!strcmp(list->list[i].domain, name)) return i;
    return -1;
}

/* The domain that an option names exists; the texts of a checkpoint may be others now. */
static void check_domain(check *k, const char *section, const char *key, const char *name) {
    const mu_option_domains *train = &k->c->data.train;
    if (k->from_checkpoint || find_domain(train, name) >= 0) return;
    const char **names = mu_alloc((size_t)train->n, sizeof *names);
    for (int i = 0; i < train->n; i++) names[i] = train->list[i].domain;
    const char *near = mu_suggest(name, names, train->n);
    COMPLAIN(k, section, key, "no domain '%s' in data.train%s%s%s", name, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    free(names);
}

static int64_t distinct_experts(const mu_option_domain_ints *forced) {
    int64_t n = 0;
    for (int i = 0; i < forced->n; i++, n++)
        for (int j = 0; j < i; j++)
            if (forced->list[j].value == forced->list[i].value) {
                n--;
                break;
            }
    return n;
}

/* Domains of the table exist, and its experts leave top_k others, for any other domain. */
static void check_force_domains(check *k) {
    const mu_option_domain_ints *forced = &k->c->moe.force_domains;
    const mu_option_domains *train = &k->c->data.train;
    int64_t E = k->c->moe.num_experts, K = k->c->moe.top_k;
    if (!forced->n || !E || !train->n) return;
    for (int i = 0; i < forced->n; i++) check_domain(k, "moe", "force_domains", forced->list[i].domain);
    int64_t taken = distinct_experts(forced);
    if (E - taken < K)
        COMPLAIN(k, "moe", "force_domains",
                 "takes %" PRId64 " of %" PRId64 " experts, so tokens of any other domain can choose among %" PRId64
                 " only, fewer than top_k %" PRId64 "; let domains share experts", taken, E, E - taken, K);
}

static void check_protected(check *k) {
    const mu_protect_config *p = &k->c->protect;
    if (!k->c->data.train.n) return;
    for (int i = 0; i < p->domains.n && !mu_protects_auto(p); i++) check_domain(k, "protect", "domains", p->domains.list[i]);
    for (int i = 0; i < p->carriers.n; i++) check_domain(k, "protect", "carriers", p->carriers.list[i].domain);
}

static void check_interventions(check *k) {
    const mu_protect_config *p = &k->c->protect;
    if (!k->c->moe.num_experts || !(p->reseed_dead || p->starved_boost > 0)) return;
    if (!k->c->stats.every) COMPLAIN(k, "protect", p->reseed_dead ? "reseed_dead" : "starved_boost", "needs the states of experts, but stats.every is 0");
    if (p->starved_boost > 0 && !(k->c->moe.balance & MU_BALANCE_BIAS))
        COMPLAIN(k, "protect", "starved_boost", "raises the selection bias, which %s; add expert_bias to moe.balance (with moe.bias_update_rate 0 nothing else moves it)",
                 k->c->moe.balance & MU_BALANCE_QUANTILE ? "quantile_balancing finds anew in each step" : "is absent without expert_bias");
}

/* A check runs only when the user's values of all options it compares were readable. */
static const struct {
    void (*run)(check *);
    const char *needs;
} checks[] = {
    { check_given, "run.dir" },
    { check_experts_over_ranks, "parallel.ep moe.num_experts" },
    { check_ranks, "parallel.ep" },
    { check_data_given, "data.train" },
    { check_paths, "data.train" },
    { check_phases, "data.train data.phases" },
    { check_dtype, "train.dtype train.device" },
    { check_force_domains, "moe.force_domains moe.num_experts moe.top_k data.train" },
    { check_protected, "protect.domains protect.carriers data.train" },
    { check_interventions, "protect.reseed_dead protect.starved_boost stats.every moe.balance moe.num_experts" },
    { check_reproducible, "train.reproducible moe.balance moe.num_experts" },
    { check_batch, "train.global_batch_size train.micro_batch_size" },
    { check_seq_len, "train.seq_len model.max_seq_len" },
    { check_batch_tokens,
      "train.global_batch_size train.micro_batch_size train.seq_len moe.num_experts moe.top_k"
      " parallel.ep" },
};

static bool readable(const mu_options *o, const char *needs) {
    char copy[300], *save = NULL;
    MU_CHECK(strlen(needs) < sizeof copy, "too long: %s", needs);
    strcpy(copy, needs);
    for (char *name = strtok_r(copy, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
        char *dot = strchr(name, '.');
        *dot = '\0';
        if (mu_options_refused(o, name, dot + 1)) return false;
    }
    return true;
}

/* ------------------------------------------------------------------ derived values */

static void derive(mu_config *c) {
    const mu_options *o = &c->options;
    if (!mu_options_given(o, "moe", "z_loss_coeff")) mu_moe_config_resolve(&c->moe);
    mu_optim_config_resolve(&c->optim, c->train.steps, mu_options_given(o, "optim", "min_lr"),
                            mu_options_given(o, "optim", "warmup_steps"));
}

/* Reports an error of a section's own check, unless a value that it compares could not be read. */
static void place(mu_complaints *found, const char *section, const char *key, const char *compared, const char *text) {
    check *k = (check *)found;
    if (readable(&k->c->options, compared)) COMPLAIN(k, section, key, "%s", text);
}

/* The checks see the values that the user wrote (head_dim 0 is the default, not a wrong size). */
static void run_checks(check *k) {
    k->found.add = place;
    derive(k->c);
    mu_model_config_check(&k->c->model, &k->c->moe, &k->found);
    mu_optim_config_check(&k->c->optim, k->c->train.steps, &k->found);
    mu_stats_config_check(&k->c->stats, &k->found);
    mu_protect_config_check(&k->c->protect, k->c->moe.num_experts, &k->found);
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
        if (readable(&k->c->options, checks[i].needs)) checks[i].run(k);
    mu_model_config_resolve(&k->c->model, &k->c->moe);
}

mu_status mu_expand_home(const char *path, char **whole, mu_error *e) {
    const char *home = getenv("HOME");
    *whole = NULL;
    if (path[0] == '~' && path[1] && path[1] != '/')
        return mu_error_set(e, MU_STATUS_USAGE, "%.200s: ~USER is not expanded; write the path out (a file name that begins"
                            " with ~ is ./~...)", path);
    if (path[0] == '~' && (!home || !home[0]))
        return mu_error_set(e, MU_STATUS_USAGE, "%.200s: HOME is not set, so ~ cannot be expanded; write the path out", path);
    *whole = path[0] == '~' ? mu_format("%s%s", home, path + 1) : mu_strdup(path);
    return MU_STATUS_OK;
}

mu_status mu_expand_argument(char **argument, mu_error *e) {
    char *whole;
    mu_status status = mu_expand_home(*argument, &whole, e);
    if (status == MU_STATUS_OK) *argument = whole;
    return status;
}

bool mu_config_anchors(const mu_config *c) { return c->protect.anchor > 0 && c->protect.domains.n > 0; }

int mu_config_threads(const mu_train_config *cfg) {
    const char *text = getenv("OMP_NUM_THREADS");
    long asked = text ? strtol(text, NULL, 10) : 0; /* of a list (one per nesting level) the first */
    return cfg->threads ? (int)cfg->threads : asked > 0 && asked <= 4096 ? (int)asked : 0;
}

void mu_config_inherit(mu_config *c, const mu_config *old) {
    const mu_options *o = &c->options;
    if (!mu_options_given(o, "model", "ffn_hidden_size")) c->model.ffn_hidden_size = old->model.ffn_hidden_size;
    bool same_scores = c->moe.score_func == old->moe.score_func; /* otherwise rejected later, by name */
    if (!mu_options_given(o, "moe", "z_loss_coeff") && same_scores) c->moe.z_loss_coeff = old->moe.z_loss_coeff;
    /* unless lr or steps are now too small for them */
    if (!mu_options_given(o, "optim", "min_lr") && old->optim.min_lr <= c->optim.lr) c->optim.min_lr = old->optim.min_lr;
    if (!mu_options_given(o, "optim", "warmup_steps") && old->optim.warmup_steps <= c->train.steps)
        c->optim.warmup_steps = old->optim.warmup_steps;
}

mu_status mu_config_check_use(const char *override, unsigned bit, const char *command, mu_error *e) {
    char names[300] = "";
    size_t used = 0, n = sizeof table / sizeof *table;
    for (size_t i = 0; i < n; i++) {
        char name[64];
        int length = snprintf(name, sizeof name, "%s.%s", table[i].section, table[i].key);
        if (!(table[i].use & bit)) continue;
        if (!strncmp(override, name, (size_t)length) && override[length] == '=') return MU_STATUS_OK;
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", name);
        MU_CHECK(used < sizeof names, "too many options for %s", command);
    }
    return mu_error_set(e, MU_STATUS_CONFIG, "%s: %s accepts only %s; all other options come from %s", override,
                        command, names, strcmp(command, "selftest") ? "the checkpoint" : "its checks");
}

/* ------------------------------------------------------------------ loading */

static bool override_all(mu_config *config, int n, char *const *overrides, mu_error *e) {
    bool good = true;
    for (int i = 0; i < n; i++)
        if (mu_options_override(&config->options, config, overrides[i], e) != MU_STATUS_OK) good = false;
    return good;
}

/* Expands ~ in place, or reports an error. */
static void expand(check *k, const char *section, const char *key, char path[sizeof(mu_field_STRING)]) {
    char *whole;
    mu_error why;
    if (mu_expand_home(path, &whole, &why) != MU_STATUS_OK) COMPLAIN(k, section, key, "%s", why.text);
    else if (strlen(whole) >= sizeof(mu_field_STRING)) COMPLAIN(k, section, key, "path too long after ~ is expanded");
    else strcpy(path, whole);
    free(whole);
}

static bool expand_paths(mu_config *c, mu_error *e) {
    check k = { .c = c, .e = e };
    expand(&k, "run", "dir", c->run.dir);
    expand(&k, "data", "tokenizer", c->data.tokenizer);
    for (int i = 0; i < c->data.train.n; i++) expand(&k, "data", "train", c->data.train.list[i].path);
    return !k.bad;
}

static mu_status finish(check *k, bool read) {
    run_checks(k);
    mu_status status = !read || k->bad ? MU_STATUS_CONFIG : k->missing ? MU_STATUS_NOINPUT : MU_STATUS_OK;
    if (k->e) k->e->status = status; /* the first error is not always the most severe */
    return status;
}

static void start(mu_config *config, mu_error *e) {
    int n;
    const mu_option *rows = mu_config_table(&n);
    memset(config, 0, sizeof *config);
    mu_options_init(&config->options, rows, n, config);
    if (e) *e = (mu_error){ 0 };
}

mu_status mu_config_read(mu_config *config, const char *path, int n_overrides, char *const *overrides, mu_error *e) {
    start(config, e);
    mu_status read = path ? mu_options_read_file(&config->options, config, path, e) : MU_STATUS_OK;
    if (read == MU_STATUS_NOINPUT) return read;
    bool good = override_all(config, n_overrides, overrides, e);
    return expand_paths(config, e) && good ? read : MU_STATUS_CONFIG;
}

mu_status mu_config_finish(mu_config *config, mu_status read, int batch_ranks, bool with_texts, mu_error *e) {
    check k = { .c = config, .e = e, .batch_ranks = batch_ranks, .look_for_paths = with_texts };
    return finish(&k, read == MU_STATUS_OK);
}

mu_status mu_config_load(mu_config *config, const char *path, int n_overrides,
                         char *const *overrides, int batch_ranks, bool with_texts, mu_error *e) {
    mu_status read = mu_config_read(config, path, n_overrides, overrides, e);
    return read == MU_STATUS_NOINPUT ? read : mu_config_finish(config, read, batch_ranks, with_texts, e);
}

mu_status mu_config_load_text(mu_config *config, const char *name, const char *text,
                              int n_overrides, char *const *overrides, mu_error *e) {
    start(config, e);
    mu_status read = mu_options_read_text(&config->options, config, name, text, strlen(text), e);
    bool good = override_all(config, n_overrides, overrides, e) && read == MU_STATUS_OK;
    good = expand_paths(config, e) && good;
    check k = { .c = config, .e = e, .from_checkpoint = true };
    return finish(&k, good);
}

void mu_config_free(mu_config *config) { mu_options_free(&config->options, config); }

char *mu_config_lines(const mu_config *config, const char *names) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    MU_CHECK(out, "out of memory");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char *name = mu_format(" %s.%s ", table[i].section, table[i].key), *list = mu_format(" %s ", names);
        if (strstr(list, name)) {
            char *value = mu_option_text(&table[i], config);
            fprintf(out, "%s.%s: %s\n", table[i].section, table[i].key, value);
            free(value);
        }
        free(list);
        free(name);
    }
    fclose(out);
    return text;
}
