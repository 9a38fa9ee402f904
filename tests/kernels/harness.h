/* harness.h - runs one case of a kernel on any device and compares two runs.
 *
 * A case is a function that makes its operands with the constructors below and calls kernels. It is run on
 * the reference device and on the one under test; both see the same numbers, since every random value
 * depends on the case and the operand only and is rounded to fp32. Afterwards *every* operand is compared,
 * including inputs and the gaps between rows, and the pattern around each operand must be intact. */
#ifndef MUSTER_TESTS_KERNELS_HARNESS_H
#define MUSTER_TESTS_KERNELS_HARNESS_H
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPERANDS = 32, MARGIN = 64 };
static const unsigned char PATTERN = 0xA5;
static const double TOLERANCE = 2e-5;       /* of fp32 results, against the operand's largest magnitude */
static const double BF16_TOLERANCE = 5e-2;  /* the same where matrix products round their operands to bf16 */
static const double BF16_RESULTS = 2e-2;    /* and where bf16 operands give bf16 results */
static const int64_t UNTOUCHED = -77;       /* content of integer results before the kernel */
static const mu_mat NOTHING = { 0 };

typedef struct {
    const char *name;
    mu_mat mat;
    size_t at;                              /* of the first value in the trial's memory */
    int64_t count;                          /* values, gaps included */
    bool scratch;                           /* its content is undefined after the kernel */
    double tolerance, least;                /* relative to the largest magnitude, or to `least` if that is larger */
} operand;

typedef struct {
    mu_device *dev;
    mu_memory *memory;
    size_t used;
    uint64_t seed;                          /* one for each case */
    uint32_t draws;                         /* of the stream of integers */
    int64_t pad;                            /* values between the rows of every operand with several rows; of a multiple
                                             * of 8 but 0, operands are aligned as tensors are, to MARGIN bytes */
    bool coarse;                            /* random values are exact in bf16, so that rounding to it loses nothing */
    bool bf16;                              /* every operand of the compute dtype is bf16, on both devices */
    bool master, next_master;                   /* new operands, the next operand, have the master dtype */
    double tolerance;                       /* of new operands */
    int n_operands;
    operand operands[MAX_OPERANDS];
    unsigned char *image;                   /* the memory after the run */
} trial;

typedef struct { const char *kernel; void (*run)(trial *, const int64_t *p); int64_t p[8]; } kernel_case;

/* ---------------------------------------------------------------- the emulation of CUDA */
/* Present where the program is linked with it, see tests/cuda_on_host/emulation.h. There kernels may access
 * operands but not the gaps between them, and scratch memory is undefined when a case begins. */
void mu_emulation_bounds(const void *device, size_t bytes) __attribute__((weak));
void mu_emulation_bounds_clear(void) __attribute__((weak));
void mu_emulation_forget_all(void) __attribute__((weak));

static inline bool emulated(const mu_device *dev) { return mu_emulation_bounds && !strncmp(dev->name, "cuda", 4); }

/* ---------------------------------------------------------------- random values */
/* Stream `stream` of the case: n values in (-1.7, 1.7), variance 1, exact in fp32. Heap. */
static inline double *random_values(const trial *t, uint32_t stream, int64_t n) {
    double *x = mu_alloc((size_t)n, sizeof *x);
    uint32_t word[4];
    for (int64_t i = 0; i < n; i++) {
        uint32_t counter[4] = { (uint32_t)(i / 4), stream, 0, MU_RNG_TEST << 16 };
        if (i % 4 == 0) mu_philox4x32(t->seed, counter, word);
        x[i] = t->coarse ? (double)((int32_t)word[i % 4] >> 25) * 0x1p-6
                         : (double)(float)((int32_t)word[i % 4] * (1.7320508 * 0x1p-31));
    }
    return x;
}

/* The next random integer in 0 .. n-1. */
static inline int64_t draw(trial *t, int64_t n) {
    mu_rng rng = { .seed = t->seed, .sample = 1, .purpose = MU_RNG_TEST };
    return (int64_t)(mu_rng_u32(&rng, t->draws++) % (uint32_t)n);
}

/* A random order of 0 .. n-1. Heap. */
static inline int64_t *draw_permutation(trial *t, int64_t n) {
    int64_t *order = mu_alloc((size_t)n, sizeof *order);
    for (int64_t i = 0; i < n; i++) {
        int64_t j = draw(t, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    return order;
}

/* ---------------------------------------------------------------- operands */
static inline double rounded_to_bf16(double value) {
    float x = (float)value;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (!isnan(x)) bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

static inline void encode(void *to, mu_dtype dtype, int64_t i, double value) {
    if (dtype == MU_DTYPE_F64) ((double *)to)[i] = value;
    if (dtype == MU_DTYPE_F32) ((float *)to)[i] = (float)value;
    if (dtype == MU_DTYPE_BF16) {
        float x = (float)rounded_to_bf16(value);
        memcpy((uint16_t *)to + i, (char *)&x + 2, 2);
    }
    if (dtype == MU_DTYPE_I32) ((int32_t *)to)[i] = (int32_t)value;
    if (dtype == MU_DTYPE_I64) ((int64_t *)to)[i] = (int64_t)value;
}

static inline double decode(const void *from, mu_dtype dtype, int64_t i) {
    if (dtype == MU_DTYPE_F64) return ((const double *)from)[i];
    if (dtype == MU_DTYPE_F32) return ((const float *)from)[i];
    if (dtype == MU_DTYPE_BF16) {
        float x = 0;
        memcpy((char *)&x + 2, (const uint16_t *)from + i, 2);
        return x;
    }
    if (dtype == MU_DTYPE_I32) return ((const int32_t *)from)[i];
    return (double)((const int64_t *)from)[i];
}

/* The next operand has the master dtype: matrix(as_master(t), ...). */
static inline trial *as_master(trial *t) {
    t->next_master = true;
    return t;
}

/* All operands of the case are: nothing is rounded to bf16. */
static inline void all_master(trial *t) {
    t->master = true;
    t->tolerance = TOLERANCE;
}

static inline mu_dtype float_type(const trial *t) {
    return t->master || t->next_master ? t->dev->master : t->dev->compute;
}

static inline bool is_whole(mu_dtype dtype) { return dtype == MU_DTYPE_I32 || dtype == MU_DTYPE_I64; }

/* A new operand, aligned to its element only (see `pad`), NaN between its rows. `values` is freed. */
static inline operand *operand_new(trial *t, const char *name, mu_dtype dtype, int64_t rows, int64_t cols,
                                   double *values) {
    MU_CHECK(t->n_operands < MAX_OPERANDS, "too many operands");
    int64_t ld = rows == 1 ? cols : cols + t->pad;
    size_t size = mu_dtype_size(dtype), bytes = (size_t)(rows * ld) * size;
    bool aligned = t->pad && t->pad % 8 == 0;
    size_t shift = MARGIN + (aligned ? 0 : size * (size_t)(t->n_operands * 3 % 5));
    size_t block = (shift + bytes + 2 * MARGIN) / MARGIN * MARGIN;
    unsigned char *host = mu_alloc(block, 1);
    memset(host, PATTERN, block);
    double gap = is_whole(dtype) ? (double)UNTOUCHED : NAN;
    if (t->bf16 && !t->master && !t->next_master && !is_whole(dtype) && dtype == t->dev->compute)
        for (int64_t i = 0; i < rows * cols; i++) values[i] = rounded_to_bf16(values[i]);
    t->next_master = false;
    for (int64_t i = 0; i < rows * ld; i++)
        encode(host + shift, dtype, i, i % ld < cols ? values[i / ld * cols + i % ld] : gap);
    mu_memory_commit(t->memory, t->used + block);
    char *data = t->memory->region.base + t->used;
    mu_device_write(t->dev, data, host, block);
    if (emulated(t->dev)) mu_emulation_bounds(data + shift, bytes);
    operand *o = &t->operands[t->n_operands++];
    *o = (operand){ name, { data + shift, dtype, ld }, t->used + shift, rows * ld, false, t->tolerance, 1e-12 };
    if (t->tolerance > TOLERANCE) o->least = 0.05;     /* what cancels was rounded when it was of order 1 */
    t->used += block;
    free(values);
    free(host);
    return o;
}

static inline double *constant_values(int64_t n, double value) {
    double *x = mu_alloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = value;
    return x;
}

static inline double *whole_values(int64_t n, const int64_t *whole) {
    double *x = mu_alloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (double)whole[i];
    return x;
}

/* Random values: inputs, and results that a kernel adds to. */
static inline mu_mat matrix(trial *t, const char *name, int64_t rows, int64_t cols) {
    double *x = random_values(t, (uint32_t)t->n_operands, rows * cols);
    return operand_new(t, name, float_type(t), rows, cols, x)->mat;
}

static inline mu_mat vector(trial *t, const char *name, int64_t n) {
    return operand_new(t, name, float_type(t), 1, n, random_values(t, (uint32_t)t->n_operands, n))->mat;
}

/* NaN: results that a kernel assigns. */
static inline mu_mat new_matrix(trial *t, const char *name, int64_t rows, int64_t cols) {
    return operand_new(t, name, float_type(t), rows, cols, constant_values(rows * cols, NAN))->mat;
}

static inline mu_mat new_vector(trial *t, const char *name, int64_t n) {
    return operand_new(t, name, float_type(t), 1, n, constant_values(n, NAN))->mat;
}

static inline mu_mat scratch_matrix(trial *t, int64_t rows, int64_t cols) {
    operand *o = operand_new(t, "scratch", float_type(t), rows, cols, constant_values(rows * cols, NAN));
    o->scratch = true;
    return o->mat;
}

/* Given values. */
static inline mu_mat reals_of(trial *t, const char *name, int64_t rows, int64_t cols, double *values) {
    return operand_new(t, name, float_type(t), rows, cols, values)->mat;
}

static inline operand *doubles_of(trial *t, const char *name, int64_t n, double *values) {
    return operand_new(t, name, MU_DTYPE_F64, 1, n, values);
}

static inline mu_mat double_of(trial *t, const char *name, double value) {
    return doubles_of(t, name, 1, constant_values(1, value))->mat;
}

static inline mu_mat ints_of(trial *t, const char *name, int64_t rows, int64_t cols, const int64_t *values) {
    return operand_new(t, name, MU_DTYPE_I32, rows, cols, whole_values(rows * cols, values))->mat;
}

static inline mu_mat longs_of(trial *t, const char *name, int64_t rows, int64_t cols, const int64_t *values) {
    return operand_new(t, name, MU_DTYPE_I64, rows, cols, whole_values(rows * cols, values))->mat;
}

static inline mu_mat new_ints(trial *t, const char *name, int64_t rows, int64_t cols) {
    double *x = constant_values(rows * cols, (double)UNTOUCHED);
    return operand_new(t, name, MU_DTYPE_I32, rows, cols, x)->mat;
}

static inline mu_mat new_longs(trial *t, const char *name, int64_t rows, int64_t cols) {
    double *x = constant_values(rows * cols, (double)UNTOUCHED);
    return operand_new(t, name, MU_DTYPE_I64, rows, cols, x)->mat;
}

/* ---------------------------------------------------------------- running and comparing */
/* Memory for a trial's operands: a device's trials reuse one range, since emulated processors never release a
 * mapped page; but the emulation of CUDA gets fresh, undefined memory. */
static inline mu_memory *trial_memory(mu_device *dev) {
    if (emulated(dev)) return mu_memory_new(dev, (size_t)1 << 30);
    mu_device_room(dev, 1);
    return dev->room;
}

static inline void trial_memory_free(mu_memory *m) {
    if (m != m->dev->room) mu_memory_free(m);
}

static inline void trial_run(trial *t, mu_device *dev, const kernel_case *c, uint64_t seed, int64_t pad,
                             bool coarse, bool bf16) {
    bool rounds = !strcmp(dev->name, "cpu-bf16") && !coarse;
    *t = (trial){ .dev = dev, .seed = seed, .pad = pad, .memory = trial_memory(dev),
                  .coarse = coarse, .bf16 = bf16,
                  .tolerance = bf16 ? BF16_RESULTS : rounds ? BF16_TOLERANCE : TOLERANCE };
    if (emulated(dev)) mu_emulation_forget_all();
    c->run(t, c->p);
    if (emulated(dev)) mu_emulation_bounds_clear();
    t->image = mu_alloc(t->used, 1);
    mu_device_read(dev, t->image, t->memory->region.base, t->used);
    trial_memory_free(t->memory);
}

static inline void trial_free(trial *t) { free(t->image); }

static inline void describe(char text[256], const kernel_case *c, const char *device) {
    int n = snprintf(text, 256, "%s %s(", device, c->kernel);
    for (int i = 0; i < 8; i++)
        n += snprintf(text + n, 256 - (size_t)n, "%s%lld", i ? " " : "", (long long)c->p[i]);
    snprintf(text + n, 256 - (size_t)n, ")");
}

/* Whether the kernels wrote only inside their operands. */
static inline bool margins_intact(const trial *t, const char *what) {
    size_t at = 0;
    for (int i = 0; i <= t->n_operands; i++) {
        const operand *o = &t->operands[i];
        for (size_t end = i < t->n_operands ? o->at : t->used; at < end; at++)
            if (t->image[at] != PATTERN) {
                printf("%s: byte written before operand %d, %zu before its start\n", what, i, end - at);
                return false;
            }
        if (i < t->n_operands) at = o->at + (size_t)o->count * mu_dtype_size(o->mat.dtype);
    }
    return true;
}

static inline bool values_agree(double got, double wanted, double slack) {
    return got == wanted || (isnan(got) && isnan(wanted)) || fabs(got - wanted) <= slack;
}

static inline bool operand_agrees(const trial *ref, const trial *t, int i, const char *what) {
    const operand *r = &ref->operands[i], *o = &t->operands[i];
    bool whole = is_whole(o->mat.dtype);
    double largest = o->least;
    for (int64_t j = 0; j < r->count; j++) {
        double value = fabs(decode(ref->image + r->at, r->mat.dtype, j));
        if (isfinite(value) && value > largest) largest = value;
    }
    for (int64_t j = 0; j < r->count; j++) {
        double got = decode(t->image + o->at, o->mat.dtype, j),
               wanted = decode(ref->image + r->at, r->mat.dtype, j);
        if (values_agree(got, wanted, whole ? 0 : o->tolerance * largest)) continue;
        printf("%s: %s[%lld, %lld] is %.9g, expected %.9g (largest %.3g)\n", what, o->name,
               (long long)(j / r->mat.ld), (long long)(j % r->mat.ld), got, wanted, largest);
        return false;
    }
    return true;
}

/* FNV-1a, 64 bits: these tests are built for processors without the library of mu_hash64, too. */
static inline uint64_t fold(uint64_t hash, const void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return hash;
}

/* Determined by kernel and parameters, independent of the other cases. */
static inline uint64_t case_seed(const kernel_case *c) {
    return fold(fold(0xcbf29ce484222325u, c->kernel, strlen(c->kernel)), c->p, sizeof c->p);
}

/* Folds every result of a run into a digest: the same when every bit is. */
static inline void add_to_digest(const trial *t, uint64_t *digest) {
    for (int i = 0; i < t->n_operands; i++) {
        const operand *o = &t->operands[i];
        if (!o->scratch)
            *digest = fold(*digest, t->image + o->at, (size_t)o->count * mu_dtype_size(o->mat.dtype));
    }
}

/* Runs a case on `ref` and `dev`; true when all operands agree. */
static inline bool case_agrees(mu_device *ref, mu_device *dev, const kernel_case *c, int64_t pad, bool coarse,
                               uint64_t *digest) {
    trial expected, t;
    char what[256];
    describe(what, c, dev->name);
    bool bf16 = dev->compute == MU_DTYPE_BF16;
    trial_run(&expected, ref, c, case_seed(c), pad, coarse, bf16);
    trial_run(&t, dev, c, case_seed(c), pad, coarse, bf16);
    bool ok = margins_intact(&t, what) && margins_intact(&expected, what);
    MU_CHECK(t.n_operands == expected.n_operands, "%s: a case must not depend on the device", what);
    for (int i = 0; i < t.n_operands && ok; i++)
        if (!t.operands[i].scratch) ok = operand_agrees(&expected, &t, i, what);
    if (digest) add_to_digest(&t, digest);
    trial_free(&expected);
    trial_free(&t);
    return ok;
}

/* True when the case gives the same bits with 1, 2, 3 and 4 threads. */
static inline bool case_ignores_threads(mu_device *dev, const kernel_case *c) {
    trial one, t;
    char what[256];
    bool ok = true;
    describe(what, c, dev->name);
    mu_threads_set(1);
    trial_run(&one, dev, c, case_seed(c), 0, false, false);
    static const int teams[] = { 2, 3, 4, 23 };             /* many: shares of a few rows each */
    for (size_t k = 0; k < sizeof teams / sizeof *teams; k++) {
        int threads = teams[k];
        mu_threads_set(threads);
        trial_run(&t, dev, c, case_seed(c), 0, false, false);
        for (int i = 0; i < t.n_operands; i++) {
            const operand *o = &t.operands[i];
            size_t bytes = (size_t)o->count * mu_dtype_size(o->mat.dtype);
            if (o->scratch || !memcmp(one.image + o->at, t.image + o->at, bytes)) continue;
            printf("%s: %s differs between 1 and %d threads\n", what, o->name, threads);
            ok = false;
        }
        trial_free(&t);
    }
    mu_threads_set(1);
    trial_free(&one);
    return ok;
}

#endif
