/* config.h - the configuration of a run: every option of every section, read from YAML and from
 * section.key=value on the command line, checked as a whole before anything large is allocated. */
#ifndef MUSTER_TRAIN_CONFIG_H
#define MUSTER_TRAIN_CONFIG_H

#include "data/data.h"
#include "layers/layers.h"
#include "moe/moe.h"
#include "optim/optim.h"

/*       type    key            default        min  max  choices  use  help */
#define MU_OPTIONS_RUN(O) \
    O(STRING, dir,              "",            1,   0,   NULL, FREE, "folder of this run: checkpoints, metrics, resolved configuration") \
    O(INT,    watchdog,         "600",         0,   1e6, NULL, FREE, "seconds without progress on any rank (a frozen process, an unresponsive disk or link) after which the job ends with exit code 70; each waiting rank warns half way; 0: never") \
    O(INT,    seed,             "1",           0,   9007199254740992.0, NULL, FIXED, "random seed: initial weights, order of the data")

#define MU_OPTIONS_PARALLEL(O) \
    O(INT,    ep,               "1",           1,   65536, NULL, FREE, "expert parallelism: ranks that together hold all experts; dp = ranks / ep")

#define MU_OPTIONS_TRAIN(O) \
    O(INT,    steps,            "1000",        1,   1e9, NULL, FREE, "optimizer steps of the whole run") \
    O(INT,    global_batch_size, "32",         1,   1e7, NULL, FIXED, "sequences per step, over all ranks and micro-batches") \
    O(INT,    micro_batch_size, "0",           0,   1e7, NULL, FREE, "sequences per rank and micro-batch; 0: the whole share of the rank") \
    O(INT,    seq_len,          "256",         2,   16777216, NULL, FIXED, "tokens per training sequence, at most model.max_seq_len") \
    O(CHOICE, device,           "auto",        0,   0,   "auto|cpu|cuda|cpu-avx512|cpu-avx2|cpu-base|ref|guarded", WHERE, "auto: one NVIDIA GPU per rank if muster was built with CUDA and finds GPUs, else cpu; cpu: the fastest kernels that the processor supports; cuda: GPUs, or an error; cpu-...: the kernels of one instruction set; ref: plain loops in double precision; guarded: cpu with its memory locked outside kernels (both for tests)") \
    O(CHOICE, dtype,            "fp32",        0,   0,   "fp32|bf16", WHERE, "bf16 on the CPU: operands of matrix products (needs AVX512-BF16, else a warning and fp32); on a GPU: activations and the weights that matrix products read. Master weights, sums, router, norm statistics and loss are fp32 either way") \
    O(INT,    threads,          "0",           0,   4096, NULL, WHERE, "threads per rank; 0: OMP_NUM_THREADS if set, else cores / ranks on the node") \
    O(BOOL,   reproducible,     "false",       0,   0,  NULL, FREE, "bit-identical losses and weights for any split of the global batch over ranks, ep and micro-batches; slower, 16 bytes more per parameter") \
    O(INT,    eval_every,       "200",         0,   1e9, NULL, FREE, "steps between evaluations on the validation texts; 0: never") \
    O(INT,    eval_sequences,   "64",          0,   1e9, NULL, EVAL, "maximum validation sequences per domain; 0: all")

#define MU_OPTIONS_CHECKPOINT(O) \
    O(INT,    every,            "200",         0,   1e9, NULL, FREE, "steps between checkpoints; 0: only at the end and on a signal") \
    O(INT,    keep,             "3",           1,   1e6, NULL, FREE, "number of newest checkpoints to keep") \
    O(INT,    keep_every,       "0",           0,   1e9, NULL, FREE, "checkpoints of steps divisible by this are never removed; 0: none")

#define MU_OPTIONS_LOG(O) \
    O(INT,    every,            "10",          0,   1e9, NULL, FREE, "steps between logged lines and metrics; 0: never") \
    O(CHOICE, progress,         "auto",        0,   0,   "auto|bar|line|quiet", FREE, "auto: a bar on a terminal, plain lines elsewhere; quiet: only the resume message, warnings and errors") \
    O(BOOL,   tensorboard,      "true",        0,   0,   NULL, FREE, "also write the metrics to RUN/tensorboard, for TensorBoard: scalars, and maps of load and lift at statistics lines")

typedef struct { MU_OPTIONS_RUN(MU_OPTION_FIELD) }        mu_run_config;
typedef struct { MU_OPTIONS_PARALLEL(MU_OPTION_FIELD) }   mu_parallel_config;
typedef struct { MU_OPTIONS_TRAIN(MU_OPTION_FIELD) }      mu_train_config;
typedef struct { MU_OPTIONS_CHECKPOINT(MU_OPTION_FIELD) } mu_checkpoint_config;
typedef struct { MU_OPTIONS_LOG(MU_OPTION_FIELD) }        mu_log_config;

enum {
    MU_TRAIN_DEVICE_AUTO, MU_TRAIN_DEVICE_CPU, MU_TRAIN_DEVICE_CUDA, MU_TRAIN_DEVICE_AVX512, MU_TRAIN_DEVICE_AVX2, MU_TRAIN_DEVICE_BASE,
    MU_TRAIN_DEVICE_REF, MU_TRAIN_DEVICE_GUARDED
};
enum { MU_TRAIN_DTYPE_FP32, MU_TRAIN_DTYPE_BF16 };
enum { MU_LOG_PROGRESS_AUTO, MU_LOG_PROGRESS_BAR, MU_LOG_PROGRESS_LINE, MU_LOG_PROGRESS_QUIET };

typedef struct {
    mu_run_config run;
    mu_model_config model;
    mu_moe_config moe;
    mu_parallel_config parallel;
    mu_data_config data;
    mu_optim_config optim;
    mu_train_config train;
    mu_checkpoint_config checkpoint;
    mu_stats_config stats;
    mu_protect_config protect;
    mu_log_config log;
    mu_options options;             /* which of them were given; mu_config_free frees both */
} mu_config;

/* The table of all sections, in the order above. */
const mu_option *mu_config_table(int *n);

/* Defaults, then the file (NULL: none), then the overrides, then derived values (z-loss 0
 * for a sigmoid router unless it was given, and so on), then every check that needs no data: ranges,
 * heads, experts over ep, batch over ranks. All errors at once. Local; every rank that reads the same
 * bytes reaches the same result. with_texts: paths of texts must exist. `config` is freed with mu_config_free either way. */
mu_status mu_config_load(mu_config *config, const char *path, int n_overrides,
                         char *const *overrides, int batch_ranks, bool with_texts, mu_error *e) MU_MUST_USE;
/* Its two halves, for a caller that sets more options in between: defaults, file and overrides; derived values and checks. `read`: what
 * the first returned; after NOINPUT there is no second. */
mu_status mu_config_read(mu_config *config, const char *path, int n_overrides, char *const *overrides, mu_error *e) MU_MUST_USE;
mu_status mu_config_finish(mu_config *config, mu_status read, int batch_ranks, bool with_texts, mu_error *e) MU_MUST_USE;
/* The same from a text (the copy in a checkpoint), without the checks against the number of ranks. */
mu_status mu_config_load_text(mu_config *config, const char *name, const char *text,
                              int n_overrides, char *const *overrides, mu_error *e) MU_MUST_USE;
void mu_config_free(mu_config *config);
/* Lines "section.key: value" of these options, "moe.top_k run.seed", heap. */
char *mu_config_lines(const mu_config *config, const char *names);
/* An override, "section.key=value", for a command that reads a checkpoint: MU_STATUS_CONFIG unless the option's `use` has
 * the bit, naming those that do. */
mu_status mu_config_check_use(const char *override, unsigned bit, const char *command, mu_error *e) MU_MUST_USE;
/* *whole: the path with HOME for a ~ or ~/ at its beginning (shells expand it only where a word begins), heap. USAGE, and
 * *whole is NULL, when HOME is not set and for ~USER, which is not expanded. */
mu_status mu_expand_home(const char *path, char **whole, mu_error *e) MU_MUST_USE;
/* The same for an argument of the command line, in its place; it stays until the program ends. */
mu_status mu_expand_argument(char **argument, mu_error *e) MU_MUST_USE;
bool mu_config_anchors(const mu_config *config);        /* can domains be anchored (protect.anchor)? */
/* Requested threads per rank: train.threads, else OMP_NUM_THREADS; 0: neither is set. */
int mu_config_threads(const mu_train_config *cfg);
/* For a run that resumes or is forked: derived values (min_lr, warmup_steps, z_loss_coeff, ffn_hidden_size) stay those of `old`, the checkpoint's
 * configuration, unless they were given now. So a run that is extended does not warm up again. */
void mu_config_inherit(mu_config *config, const mu_config *old);

#endif
