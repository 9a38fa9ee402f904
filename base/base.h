/* base.h - used by every folder: errors, log, memory, random numbers, threads, options,
 * JSON, and `store`, a layer over HDF5. No MPI, no CUDA.
 *
 * Everything here is Local: no function of this header communicates. */
#ifndef MUSTER_BASE_H
#define MUSTER_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)      /* libmuster exports what its public headers declare */

#define MU_VERSION "0.1.0"

/* ------------------------------------------------------------------ status (status.c)
 * A status is also the exit code of the program (sysexits.h where a code exists there). */
typedef enum {
    MU_STATUS_OK = 0,
    MU_STATUS_USAGE = 64,       /* wrong usage */
    MU_STATUS_DATA = 65,        /* bad data or checkpoint */
    MU_STATUS_NOINPUT = 66,     /* input missing or unreadable */
    MU_STATUS_INTERNAL = 70,    /* internal error */
    MU_STATUS_IO = 74,          /* reading or writing failed */
    MU_STATUS_REQUEUE = 75,     /* a checkpoint was saved on a signal: run again */
    MU_STATUS_NUMERIC = 76,     /* loss or gradient not finite */
    MU_STATUS_CONFIG = 78,      /* bad configuration */
} mu_status;

#define MU_MUST_USE __attribute__((warn_unused_result))
#define MU_NORETURN __attribute__((noreturn))           /* C++ has no _Noreturn */
#define MU_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* A failure that the caller can handle. `text` may hold several lines. */
typedef struct { mu_status status; char text[8192]; } mu_error;

/* Writes the message and returns `status`; a NULL `e` is allowed. */
mu_status mu_error_set(mu_error *e, mu_status status, const char *fmt, ...) MU_PRINTF(3, 4);
/* Adds a line to the message; the first status stays. */
mu_status mu_error_add(mu_error *e, mu_status status, const char *fmt, ...) MU_PRINTF(3, 4);

/* ------------------------------------------------------------------ fatal errors (fatal.c)
 * A bug, or a failure that no caller can handle (MPI, memory): one line with file, line and values, then the handler,
 * which must not return. The default handler calls abort(); a program with several ranks installs one that stops all
 * of them (mu_dist_abort), tests longjmp. Checks stay on in release builds. */
typedef void mu_fatal_handler(mu_status status, const char *line);
mu_fatal_handler *mu_fatal_set_handler(mu_fatal_handler *handler);      /* NULL: the default; returns the old one */
MU_NORETURN void mu_fatal(mu_status status, const char *file, int line, const char *func,
                          const char *fmt, ...) MU_PRINTF(5, 6);
#define MU_FATAL(status, ...) mu_fatal(status, __FILE__, __LINE__, __func__, __VA_ARGS__)
#define MU_CHECK(cond, ...) do { if (!(cond)) MU_FATAL(MU_STATUS_INTERNAL, __VA_ARGS__); } while (0)

/* ------------------------------------------------------------------ log (log.c)
 * Library code never prints: it logs to the sink; without one, messages are dropped. */
typedef enum { MU_LOG_INFO, MU_LOG_WARNING } mu_log_level;
typedef void mu_log_sink(mu_log_level level, const char *line);
void mu_log_set_sink(mu_log_sink *sink);
void mu_log(mu_log_level level, const char *fmt, ...) MU_PRINTF(2, 3);

/* ------------------------------------------------------------------ text for terminals and logs (print.c)
 * Errors, log and fatal lines are made by mu_text_vformat: printf, except that control characters, bytes that are not
 * UTF-8 and marks that reorder a line are escaped (\n, \x1b) in the arguments of %s and %c. %-s, without a width, keeps
 * newlines: for the text of a mu_error, which is escaped already. Truncated when it does not fit. */
void mu_text_vformat(char *out, size_t room, const char *format, va_list args) MU_PRINTF(3, 0);
/* The same for n bytes of text; the control characters in `keep` ("\n\t") stay. */
void mu_text_escape(char *out, size_t room, const char *text, size_t n, const char *keep);
/* Bytes of the UTF-8 character at s (1 to 4) and its code, or 0 when there is none within n bytes. */
int  mu_utf8_decode(const char *s, size_t n, uint32_t *code);

/* ------------------------------------------------------------------ activity (activity.c)
 * The current work of this process, for the watchdog (dist/dist.h) and its messages. Every op and every long operation
 * reports; each report counts as progress. Main thread only. Strings are borrowed and must stay valid. */
typedef struct {
    const char *phase, *op;     /* "forward", "checkpoint", ...; the op or collective, or NULL */
    int layer;                  /* -1: none */
    int64_t step;               /* the current optimizer step; -1: none */
    int64_t done;               /* of this work, in a unit of its own (bytes read, tokens made) */
    int64_t progress;           /* number of reports */
} mu_activity;
void mu_activity_set(const char *phase, int layer, const char *op);     /* counts as progress */
void mu_activity_tick(void);                            /* progress within the same work */
void mu_activity_done(int64_t done);                    /* the same, and how much of it is done; mu_activity_set starts at 0 */
void mu_activity_step(int64_t step);
const mu_activity *mu_activity_now(void);
void mu_activity_set_hook(void (*hook)(void));          /* called at every report; NULL: none */
/* "step 12, backward, layer 3 (attention)", into text, which is returned. */
char *mu_activity_text(const mu_activity *a, char *text, size_t room);

/* ------------------------------------------------------------------ memory (memory.c)
 * A region reserves address space once and commits pages as they are needed; they stay committed. */
typedef struct { char *base; size_t reserved, committed, usable; } mu_region;   /* usable: committed, rounded up to a page */
void mu_region_init(mu_region *r, size_t reserve);      /* fatal when the address space is not available */
void mu_region_commit(mu_region *r, size_t bytes);      /* makes the first `bytes` usable, zeroed when new */
void mu_region_free(mu_region *r);

/* An arena: a region used as a stack. Allocations are 64-byte aligned and not cleared. */
typedef struct { mu_region region; size_t used; } mu_arena;
void   mu_arena_init(mu_arena *a, size_t reserve);
void  *mu_arena_alloc(mu_arena *a, size_t bytes);
size_t mu_arena_mark(const mu_arena *a);
void   mu_arena_release(mu_arena *a, size_t mark);      /* frees everything allocated since the mark */
void   mu_arena_free(mu_arena *a);

void *mu_alloc(size_t count, size_t size);              /* zeroed heap memory; fatal on failure or overflow */
void *mu_realloc(void *old, size_t count, size_t size); /* grown part not cleared; fatal likewise */
char *mu_strdup(const char *s);
char *mu_format(const char *fmt, ...) MU_PRINTF(1, 2);  /* heap string, the caller frees */
size_t mu_size_mul(size_t a, size_t b);                 /* a*b, fatal on overflow */

int64_t mu_memory_peak(void);                           /* bytes: peak resident set of this process */
int64_t mu_memory_rss(void);                            /* bytes: resident set now */

/* ------------------------------------------------------------------ time and hash (status.c)  */
double   mu_time(void);                                 /* seconds, monotonic */
uint64_t mu_hash64(const void *data, size_t bytes);     /* XXH3, 64 bits */

/* ------------------------------------------------------------------ exact sums (exact.c)
 * Sums of doubles that are rounded only once, at the end: every order and grouping gives the same bits. A new sum is
 * all zeros; two sums are added word by word, so ranks can use an all-reduce of I64. */
enum { MU_EXACT_DIGITS = 70, MU_EXACT_WORDS = MU_EXACT_DIGITS + 1 };
typedef struct { int64_t digit[MU_EXACT_DIGITS], bad; } mu_exact;      /* bad: summands that were not finite */
void   mu_exact_add(mu_exact *sum, double x);           /* at most 2^31 times, all summands of a result together */
double mu_exact_value(const mu_exact *sum);             /* rounded once; NaN when a summand was not finite */

/* ------------------------------------------------------------------ random numbers (philox.c)
 * Philox 4x32-10 (Salmon et al. 2011), counter-based: a number depends on its key and counter only.
 * Key = 64-bit seed; counter = (block, step, sample, purpose << 16 | layer), which is cuRAND's
 * curand_init(seed, subsequence, offset) with subsequence = the upper two words. */
typedef enum { MU_RNG_INIT = 1, MU_RNG_DATA_DOMAIN, MU_RNG_DATA_ORDER, MU_RNG_SYNTHETIC,
               MU_RNG_GENERATE, MU_RNG_TEST, MU_RNG_JITTER, MU_RNG_SURGERY, MU_RNG_DATA_REPLAY, MU_RNG_CLUSTERS } mu_rng_purpose;
typedef struct { uint64_t seed; uint32_t step, sample; uint32_t purpose, layer; } mu_rng;
void   mu_philox4x32(uint64_t key, const uint32_t counter[4], uint32_t out[4]);
uint32_t mu_rng_u32(const mu_rng *r, uint64_t index);       /* number `index` of the stream: block index/4, word index%4 */
double mu_rng_uniform(const mu_rng *r, uint64_t index);     /* in [0, 1), 53 bits, from numbers 2*index, 2*index+1 */
double mu_rng_normal(const mu_rng *r, uint64_t index);      /* Box-Muller on the host, one deviate per index */
void   mu_rng_normals(const mu_rng *r, int64_t n, double scale, double *out);   /* scale * normals 0 .. n-1, in parallel */
void   mu_rng_normals_from(const mu_rng *r, int64_t first, int64_t n, double scale, double *out);     /* normals first .. first+n-1; first: even */

/* ------------------------------------------------------------------ threads (threads.c)
 * Threads are OpenMP's; kernels say num_threads(mu_threads()). How work is split must depend on the
 * problem, never on this number. */
int  mu_threads(void);                                  /* 1 until mu_threads_set */
void mu_threads_set(int n);                             /* n >= 1 */
int  mu_cores(void);                                    /* cores this process may run on */
/* Number of threads for rank `local_rank` of `local_size` on this node: `wanted`, or for 0 its even share
 * of the node's allowed cores. mpirun binds each of one or two ranks to a single core: unless the user chose
 * a binding, the rank is bound to its share, or to all allowed cores when its threads do not fit there. */
int  mu_cores_share(int local_rank, int local_size, int wanted);
enum { MU_HOST_NAME = 64 };
void mu_host_name(char host[MU_HOST_NAME]);             /* of this machine, truncated when longer; for messages and comparisons */
long mu_launcher(void);                                 /* process id of the mpirun (or similar) above this process, 0: none */
/* Whether this program's output goes to a terminal. Under mpirun a rank's stdout is mpirun's pseudo-terminal, so the
 * launcher's stdout decides. */
bool mu_output_is_terminal(void);

/* ------------------------------------------------------------------ JSON writing (json.c)
 * Locale-safe, NaN and infinity become null. For reading use jansson. */
typedef struct { char *text; size_t length, capacity; bool comma; } mu_json;
void mu_json_init(mu_json *j);
void mu_json_free(mu_json *j);
void mu_json_reset(mu_json *j);                         /* empties it, keeps the memory */
void mu_json_begin(mu_json *j, const char *key_or_null, char bracket);      /* '{' or '[' */
void mu_json_end(mu_json *j, char bracket);                                 /* '}' or ']' */
void mu_json_int(mu_json *j, const char *key_or_null, int64_t value);
void mu_json_float(mu_json *j, const char *key_or_null, double value);      /* shortest text that reads back equal */
void mu_json_bool(mu_json *j, const char *key_or_null, bool value);
void mu_json_string(mu_json *j, const char *key_or_null, const char *value);/* escapes; bad UTF-8 becomes U+FFFD */

/* ------------------------------------------------------------------ options (option*.c, yaml.c, suggest.c)
 * One line per option, `O(TYPE, key, default, min, max, choices, use, help)`, in the table of the section it
 * belongs to (MU_OPTIONS_MOE in moe/moe.h, ...), gives the struct field, default, range, --help, the
 * configuration key, the documentation and the copy kept in checkpoints.
 *   INT int64_t | FLOAT double | BOOL bool | STRING char[512] | CHOICE int, index into "a|b|c"
 *   CHOICES uint32_t, a bit for each of "a|b|c" | PAIR double[2] | DOMAINS mu_option_domains | PHASES mu_option_phases
 *   DOMAIN_INTS mu_option_domain_ints: {domain: integer, ...}, integers from min to max
 *   NAMES mu_option_names: [domain, ...]; a single word stands for a list of one, `none` for an empty one
 *   min, max: inclusive range of numbers; for STRING min = 1 means "must be given".
 *   use: which commands may change it once a run exists: FIXED none, the checkpoint's value holds (train --fork may); SHAPE nor
 *        train --fork, the tensors depend on it; FREE train; TEXTS eval; EVAL train and eval; WHERE train, eval and generate (options of hardware and parallelism).
 *        RETIRED: no effect any more; accepted in older configurations, not shown and not written. */
enum { MU_ON_RESUME = 1, MU_ON_EVAL = 2, MU_ON_GENERATE = 4, MU_USE_RETIRED = 8, MU_USE_SHAPE = 16,
       MU_USE_FIXED = 0, MU_USE_FREE = MU_ON_RESUME, MU_USE_TEXTS = MU_ON_EVAL, MU_USE_EVAL = MU_ON_RESUME | MU_ON_EVAL,
       MU_USE_WHERE = MU_ON_RESUME | MU_ON_EVAL | MU_ON_GENERATE };
typedef struct { char domain[64]; char path[512]; double weight; } mu_option_domain;
typedef struct { int n; mu_option_domain *list; } mu_option_domains;    /* heap list, mu_options_free */
typedef struct { char domain[64]; int64_t value; } mu_option_domain_int;
typedef struct { int n; mu_option_domain_int *list; } mu_option_domain_ints;     /* the same */
typedef struct { int n; char (*list)[64]; } mu_option_names;            /* the same */
/* Phases of a run, in order: up to until_step (of the last phase it is not used; 0: not given) samples are drawn from the domains of
 * `mix`, with these weights. line, column: of the name in the file, 0 when not from a file. */
typedef struct { char domain[64]; double weight; int line, column; } mu_option_weight;
typedef struct { int64_t until_step; int n; mu_option_weight *mix; } mu_option_phase;
typedef struct { int n; mu_option_phase *list; } mu_option_phases;      /* heap lists, mu_options_free */
/* Checks that this is a domain name (1 to 63 letters, digits, '_' or '-') and not in the list; returns `status` if not. */
mu_status mu_option_domain_check(const char *name, const mu_option_domains *list, mu_status status, mu_error *e) MU_MUST_USE;

typedef int64_t  mu_field_INT;
typedef double   mu_field_FLOAT;
typedef bool     mu_field_BOOL;
typedef char     mu_field_STRING[512];
typedef int      mu_field_CHOICE;
typedef uint32_t mu_field_CHOICES;
typedef double   mu_field_PAIR[2];
typedef mu_option_domains mu_field_DOMAINS;
typedef mu_option_domain_ints mu_field_DOMAIN_INTS;
typedef mu_option_names mu_field_NAMES;
typedef mu_option_phases mu_field_PHASES;
#define MU_OPTION_FIELD(TYPE, key, fallback, min, max, choices, use, help) mu_field_##TYPE key;

typedef enum { MU_OPTION_INT, MU_OPTION_FLOAT, MU_OPTION_BOOL, MU_OPTION_STRING, MU_OPTION_CHOICE,
               MU_OPTION_CHOICES, MU_OPTION_PAIR, MU_OPTION_DOMAINS, MU_OPTION_DOMAIN_INTS,
               MU_OPTION_NAMES, MU_OPTION_PHASES } mu_option_type;
typedef struct {
    const char *section, *key;
    mu_option_type type;
    size_t offset;              /* of the field in the structure that holds all sections */
    const char *fallback;       /* default, written as in YAML; NULL for none */
    double min, max;
    const char *choices, *help;
    unsigned use;               /* MU_ON_... bits */
} mu_option;

typedef struct {
    const mu_option *table;
    int n;
    bool *given;                /* n flags: set by the user (file or override), not by default */
    bool *refused;              /* n flags: the user's value was rejected, the field keeps another */
    int *line, *column;         /* position in the file, 0 when not from a file */
    char *file;                 /* name for messages, a copy; NULL before a file was read */
} mu_options;

/* Errors that the check of a section finds. The checks are in the folders of their sections, for library users as well:
 * mu_complaints c = { .e = &e }; mu_model_config_check(&cfg, &moe, &c); then c.status. A program that knows an option's
 * position in a file gives `add`: `key` is the option to change, `compared` names all options that were compared, as in
 * "moe.top_k moe.num_experts". */
typedef struct mu_complaints {
    mu_error *e;                /* receives one line per error, unless `add` is given */
    mu_status status;           /* MU_STATUS_CONFIG after the first error */
    void (*add)(struct mu_complaints *c, const char *section, const char *key, const char *compared, const char *text);
} mu_complaints;
void mu_complain(mu_complaints *c, const char *section, const char *key, const char *compared, const char *fmt, ...) MU_PRINTF(5, 6);
/* Checks numbers, choices and lists of a section against its table. False: some are out of range and must not be used. */
bool mu_options_check(const char *section, const mu_option *table, int n, const void *config, mu_complaints *c);

/* Defines `TYPE TYPE_default(void)`, a section's structure with all defaults, for programs without a configuration
 * file, and `static bool check_ranges(const TYPE *, mu_complaints *)` for the section's check. One line, in a .c file of
 * the section's folder. */
#define MU_OPTION_DEFAULTS(TYPE, SECTION, LIST) \
    typedef TYPE mu_section; \
    static const mu_option section_table[] = { LIST(MU_OPTION_ROW) }; \
    TYPE TYPE##_default(void) { \
        TYPE config; \
        mu_options_defaults(section_table, (int)(sizeof section_table / sizeof *section_table), &config); \
        return config; \
    } \
    static bool check_ranges(const TYPE *config, mu_complaints *c) { \
        return mu_options_check(SECTION, section_table, (int)(sizeof section_table / sizeof *section_table), config, c); \
    }
#define MU_OPTION_ROW(TYPE, key, fallback, min, max, choices, use, help) \
    { "", #key, MU_OPTION_##TYPE, offsetof(mu_section, key), fallback, min, max, choices, help, MU_USE_##use },
void mu_options_defaults(const mu_option *table, int n, void *config);

/* Sets `config` to all defaults. */
void mu_options_init(mu_options *o, const mu_option *table, int n, void *config);
void mu_options_free(mu_options *o, void *config);
/* Reads a YAML file (1 MiB at most; no anchors, tags, aliases, second documents). All errors of the
 * file are collected in `e`, one line each: file:line:column: what, the allowed range, "did you mean".
 * MU_STATUS_CONFIG for bad content, MU_STATUS_NOINPUT for a missing or unreadable file. */
mu_status mu_options_read_file(mu_options *o, void *config, const char *path, mu_error *e) MU_MUST_USE;
mu_status mu_options_read_text(mu_options *o, void *config, const char *name, const char *text, size_t bytes,
                               mu_error *e) MU_MUST_USE;
/* One override, "section.key=value", the value written as in YAML. */
mu_status mu_options_override(mu_options *o, void *config, const char *assignment, mu_error *e) MU_MUST_USE;
/* Adds one error about option section.key to `e`, with its place in the file if it came from there. */
mu_status mu_options_complain(const mu_options *o, mu_error *e, const char *section, const char *key,
                              const char *fmt, ...) MU_PRINTF(5, 6);
/* The same about a part of its value: line and column of that part, 0 when not from a file. */
mu_status mu_options_complain_at(const mu_options *o, mu_error *e, const char *section, const char *key, int line, int column,
                                 const char *fmt, ...) MU_PRINTF(7, 8);
bool  mu_options_given(const mu_options *o, const char *section, const char *key);
/* Whether its value was rejected: comparing the field with others would give misleading errors. */
bool  mu_options_refused(const mu_options *o, const char *section, const char *key);
char *mu_options_dump(const mu_options *o, const void *config);     /* YAML of every option, heap, caller frees */
char *mu_options_help(const mu_options *o, bool markdown);          /* the table for --help or docs/, heap */
/* Value of one option as YAML text, heap. Two configurations agree in an option when these are equal. */
char *mu_option_text(const mu_option *option, const void *config);
/* The candidate nearest to `word` in edit distance, or NULL when none is near. */
const char *mu_suggest(const char *word, const char *const *candidates, int n);
char *mu_suggest_path(const char *path);                /* the same for a missing path: one that exists, heap, or NULL */

/* ------------------------------------------------------------------ store (store.c, store_*.c, files.c)
 * HDF5 files in which damage is detected and which survive a kill: 1.10 format, Fletcher32 on
 * every dataset, plugins off, every return value checked, datasets looked up by expected name and
 * shape and never by walking the file. A dataset is a plain n-dimensional array; parent groups are
 * created as needed. The only code that includes hdf5.h. It reads only files in exactly the format that it writes: all
 * metadata is checked byte by byte before HDF5 reads it. */
typedef enum { MU_STORE_F64, MU_STORE_F32, MU_STORE_I32, MU_STORE_I64, MU_STORE_U16, MU_STORE_U8 } mu_store_type;
const char *mu_store_type_name(mu_store_type type);     /* "f32" */
size_t mu_store_type_size(mu_store_type type);          /* of one value, in bytes */
typedef struct mu_store mu_store;
mu_status mu_store_create(mu_store **s, const char *path, mu_error *e) MU_MUST_USE;     /* truncates */
mu_status mu_store_open(mu_store **s, const char *path, mu_error *e) MU_MUST_USE;       /* read only */
/* Before a file is first opened for reading, `program probe-hdf5 FILE` walks its metadata, so that a crash inside HDF5
 * ends only that process: the program calls mu_store_walk under limits of memory and time, writes "ok" or the
 * error to its standard output, and exits with the status. muster-probe-hdf5, installed in libexec/muster/, is one.
 * NULL (the default): no helper. */
void      mu_store_set_helper(const char *program);
mu_status mu_store_walk(const char *path, mu_error *e) MU_MUST_USE;
/* Closes (after a create: also fsyncs the file). The handle is freed even on failure. */
mu_status mu_store_close(mu_store *s, mu_error *e) MU_MUST_USE;
/* Closes s (may be NULL) and returns `status`, or if that is OK the status of closing. */
mu_status mu_store_finish(mu_store *s, mu_status status, mu_error *e) MU_MUST_USE;
mu_status mu_store_write(mu_store *s, const char *name, mu_store_type type, int n_dims, const int64_t *shape,
                         const void *data, mu_error *e) MU_MUST_USE;
/* Type and shape must be exactly these, else MU_STATUS_DATA naming both. F32 <-> F64 is converted. */
mu_status mu_store_read(mu_store *s, const char *name, mu_store_type type, int n_dims, const int64_t *shape,
                        void *data, mu_error *e) MU_MUST_USE;
/* Type and shape of a dataset; n_dims is at most 4. MU_STATUS_DATA when it is missing or not a plain array. */
mu_status mu_store_shape(mu_store *s, const char *name, mu_store_type *type, int *n_dims, int64_t shape[4],
                         mu_error *e) MU_MUST_USE;
/* A large array in parts, never in memory as a whole. mu_store_make creates it, in chunks of `rows` rows (its first
 * dimension); the caller must then write all of it. A part is rows [first, first + n) of exactly this type; parts of whole
 * chunks are the fastest, as a chunk is always read as a whole. Only arrays of one dimension can be read in parts.
 * mu_store_chunk: values per chunk, at least 1. */
mu_status mu_store_make(mu_store *s, const char *name, mu_store_type type, int n_dims, const int64_t *shape, int64_t rows,
                        mu_error *e) MU_MUST_USE;
mu_status mu_store_write_part(mu_store *s, const char *name, mu_store_type type, int64_t first, int64_t n,
                              const void *data, mu_error *e) MU_MUST_USE;
mu_status mu_store_read_part(mu_store *s, const char *name, mu_store_type type, int64_t first, int64_t n, void *data,
                             mu_error *e) MU_MUST_USE;
mu_status mu_store_chunk(mu_store *s, const char *name, int64_t *chunk, mu_error *e) MU_MUST_USE;
bool      mu_store_has(mu_store *s, const char *name);
/* A text (not empty) beside a dataset that was written, for people and other programs: its units, its axes. It is not read back. At most eight per dataset. */
mu_status mu_store_attribute(mu_store *s, const char *name, const char *key, const char *text, mu_error *e) MU_MUST_USE;
mu_status mu_store_write_text(mu_store *s, const char *name, const char *text, mu_error *e) MU_MUST_USE;
mu_status mu_store_read_text(mu_store *s, const char *name, char **text, mu_error *e) MU_MUST_USE;   /* heap */

/* ------------------------------------------------------------------ safetensors (safetensors.c)
 * Hugging Face's file format of weights. Opening reads and checks all headers; values are read piece by piece. */
typedef enum { MU_SAFETENSORS_F32, MU_SAFETENSORS_BF16, MU_SAFETENSORS_F16 } mu_safetensors_dtype;      /* others have larger numbers */
enum { MU_SAFETENSORS_DIMS = 8 };
typedef struct {
    const char *name;
    mu_safetensors_dtype dtype;
    int n_dims, file;
    int number;                 /* mu_safetensors_at */
    int64_t shape[MU_SAFETENSORS_DIMS];
    int64_t count;              /* values */
    int64_t begin, end;         /* bytes, within the data of its file */
} mu_safetensor;
typedef struct mu_safetensors mu_safetensors;
/* `path`: a file, or a folder with model.safetensors, model.safetensors.index.json or any *.safetensors. MU_STATUS_DATA names the
 * file and what is wrong; NOINPUT: there is none. The caller closes it. */
mu_status mu_safetensors_open(mu_safetensors **s, const char *path, mu_error *e) MU_MUST_USE;
void mu_safetensors_close(mu_safetensors *s);                           /* NULL is allowed */
int mu_safetensors_count(const mu_safetensors *s);
const mu_safetensor *mu_safetensors_at(const mu_safetensors *s, int i); /* sorted by name */
const mu_safetensor *mu_safetensors_find(const mu_safetensors *s, const char *name);    /* or NULL */
const char *mu_safetensors_file(const mu_safetensors *s, const mu_safetensor *t);       /* path of its file */
const char *mu_safetensors_dtype_name(mu_safetensors_dtype dtype);      /* "BF16" */
char *mu_safetensor_shape_text(int n_dims, const int64_t *shape);       /* "[2, 3]", heap */
/* Values [first, first + n) in row-major order. MU_STATUS_DATA when the dtype is not F32, BF16 or F16. */
mu_status mu_safetensors_read(mu_safetensors *s, const mu_safetensor *t, int64_t first, int64_t n, float *values, mu_error *e) MU_MUST_USE;
/* Writes all tensors of the list (name, dtype, shape; F32 or BF16), in its order, into a folder that exists and has none: one file, or
 * several of at most shard_bytes of data (one tensor may be larger) and an index. The list is borrowed. */
typedef struct mu_safetensors_writer mu_safetensors_writer;
mu_safetensors_writer *mu_safetensors_writer_new(const char *folder, const mu_safetensor *list, int n, int64_t shard_bytes);
/* The next n values of the sequence of all tensors. BF16 is rounded to nearest, ties to even. */
mu_status mu_safetensors_write(mu_safetensors_writer *w, const float *values, int64_t n, mu_error *e) MU_MUST_USE;
/* Syncs and closes the files. After a failure (`status`) files may be incomplete: the caller removes the folder. Frees w, which may be
 * NULL. */
mu_status mu_safetensors_writer_finish(mu_safetensors_writer *w, mu_status status, mu_error *e) MU_MUST_USE;

/* ------------------------------------------------------------------ state (state.c)
 * The contents of a checkpoint. Each module has a function that passes its arrays, one after another, to a visitor: saving,
 * loading, verifying and comparing are visitors, so a new piece of state is one line in its own module. */
enum { MU_STATE_NAME = 128 };
typedef struct mu_state {
    char name[MU_STATE_NAME];       /* dataset name: "/optim/m/norm/weight" */
    mu_store_type type;
    int n_dims;
    int64_t shape[3];
    void *data;                     /* host memory, or NULL: `get` and `set` move the values */
    int64_t min, max;               /* range of an I64 or I32 array */
    double low, high;               /* range of a floating-point array; NaN and infinity are never in it */
    const char *tensor;             /* stored in the shard of this tensor; NULL: in the first shard */
    bool sharded;                   /* every rank writes its own; else rank 0 writes it for all */
    bool elsewhere;                 /* held by another rank: this one does not load it */
    bool collective;                /* `get` is Collective: every visiting rank calls it */
    bool for_training;              /* needed only to resume training, not for eval or generate */
    int since, until;               /* first and last format version that has it; 0: no limit */
    void *module;                   /* this and the next two: for get and set */
    const void *item;
    int index;
    /* Copies the values to host memory. */
    void (*get)(const struct mu_state *s, void *host);
    /* Takes values that are in range. MU_STATUS_DATA when they contradict each other or other state. With `data`, the values
     * are there already and `set` may be NULL. */
    mu_status (*set)(const struct mu_state *s, const void *host, mu_error *e);
} mu_state;
typedef struct mu_state_visitor {
    void (*visit)(struct mu_state_visitor *v, const mu_state *s);
} mu_state_visitor;
int64_t mu_state_count(const mu_state *s);                              /* values */
bool mu_state_is_in(const mu_state *s, int version);                    /* whether this format version has it */
/* Checks that all values are in range. MU_STATUS_DATA names file, array, index and value. */
mu_status mu_state_check(const mu_state *s, const void *host, const char *file, mu_error *e) MU_MUST_USE;

/* Files that survive a kill: temporary file in the same folder, fsync, rename, fsync of the folder. */
mu_status mu_file_replace(const char *path, const void *data, size_t bytes, mu_error *e) MU_MUST_USE;
/* Creates a new, empty file PATH.tmp-PID (or PATH.tmp-PID-2, ...); *name heap. The caller renames or removes it, and nothing
 * else may. */
mu_status mu_file_temporary(const char *path, char **name, mu_error *e) MU_MUST_USE;
/* Plain files only: a pipe or a device is NOINPUT, and is not waited for. More than `limit` bytes: DATA. */
mu_status mu_file_read(const char *path, size_t limit, char **data, size_t *bytes, mu_error *e) MU_MUST_USE; /* heap, NUL added */
mu_status mu_file_sync(const char *path, mu_error *e) MU_MUST_USE;                  /* fsync of a file or a folder */
mu_status mu_file_rename(const char *from, const char *to, mu_error *e) MU_MUST_USE;/* rename and fsync of the parent */
mu_status mu_file_make_dirs(const char *path, mu_error *e) MU_MUST_USE;
mu_status mu_file_remove_tree(const char *path, mu_error *e) MU_MUST_USE;           /* does not follow links */
/* Opens a plain file for reading, or a pipe where that is allowed, without waiting for a writer; *bytes: its size,
 * -1 of a pipe. Reading a plain file never blocks on another process: where it would, it fails. -1 with *reason otherwise. */
int       mu_file_open(const char *path, bool pipe_allowed, int64_t *bytes, const char **reason);
bool      mu_file_exists(const char *path);
/* What a path is when it is not a plain file ("is a directory"); symbolic links are not plain. NULL for a plain file, and for a
 * path that does not exist or cannot be examined: opening it fails then. */
const char *mu_file_not_plain(const char *path);
/* PATH SUFFIX, or with -2, -3, ... appended: the first name that does not exist, not even as a dangling link; heap. */
char     *mu_file_free_name(const char *path, const char *suffix);
/* Renames `path` (file, folder or link) to PATH.aside, or the next free name: *name, heap; NULL if it does not exist. */
mu_status mu_file_set_aside(const char *path, char **name, mu_error *e) MU_MUST_USE;
/* Replaces `path` by a new file that `write` creates; an existing file is kept as *aside, as above, set only on success. `path`
 * exists at every moment, unless the file system has no links. */
mu_status mu_file_rewrite(const char *path, mu_status (*write)(void *context, const char *temporary, mu_error *e), void *context,
                          char **aside, mu_error *e) MU_MUST_USE;
/* Whether the path is the folder or inside it, links followed; neither needs to exist yet. */
bool      mu_file_is_inside(const char *path, const char *folder);
/* XXH3-128 of the content as 32 hex digits, and the size in bytes. */
mu_status mu_file_hash(const char *path, char hex[33], int64_t *bytes, mu_error *e) MU_MUST_USE;
void      mu_hash128_hex(const void *data, size_t bytes, char hex[33]);
/* The same hash, incrementally. */
typedef struct mu_hash mu_hash;
mu_hash  *mu_hash_new(void);
void      mu_hash_add(mu_hash *h, const void *data, size_t bytes);
void      mu_hash_finish(mu_hash *h, char hex[33]);                                  /* frees it */
/* Whether the name has this ending (".txt"), ignoring case. */
bool      mu_file_ends(const char *path, const char *ending);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
