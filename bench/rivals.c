/* rivals.c - fp32 products of oneDNN, OpenBLAS, BLIS and libxsmm.
 *
 * OpenBLAS and BLIS choose their kernels by the processor's model and fall back to old ones on a model they do
 * not know; they are told to use those for AVX-512 where the processor has it. */
#include "rivals.h"
#include "base/base.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef BENCH_LIBXSMM
#include <libxsmm.h>
#endif

static void *open_first(const char *const names[]) {
    void *library = NULL;
    for (int i = 0; names[i] && !library; i++) library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

/* A function of a library; dlsym's object pointer is converted to a function pointer through memory. */
static bool find(void *library, const char *name, void *function) {
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}

#ifdef __x86_64__
static bool has_avx512(void) { return __builtin_cpu_supports("avx512f"); }
static bool has_avx2(void) { return __builtin_cpu_supports("avx2"); }
#else
static bool has_avx512(void) { return false; }
static bool has_avx2(void) { return false; }
#endif

/* ------------------------------------------------------------------ oneDNN 2 and 3 (row-major) */
static int (*dnnl_sgemm)(char ta, char tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                         int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

static void dnnl_gemm(const rival_shape *s, const void *a, const void *b, float *c) {
    dnnl_sgemm(s->ta ? 'T' : 'N', s->tb ? 'T' : 'N', s->m, s->n, s->k, 1, a, s->lda, b, s->ldb,
               s->add ? 1 : 0, c, s->ldc);
}

static bool open_dnnl(rival *r) {
    void *library = open_first((const char *const[]){ "libdnnl.so.3", "libdnnl.so.2", NULL });
    const struct { int major, minor, patch; } * (*version)(void);
    if (!library || !find(library, "dnnl_sgemm", &dnnl_sgemm) || !find(library, "dnnl_version", &version))
        return false;
    *r = (rival){ .name = "oneDNN", .gemm = dnnl_gemm };
    snprintf(r->version, sizeof r->version, "%d.%d.%d", version()->major, version()->minor, version()->patch);
    return true;
}

/* ------------------------------------------------------------------ OpenBLAS and BLIS, both with CBLAS's interface */
typedef void cblas_function(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                            int lda, const float *b, int ldb, float beta, float *c, int ldc);
static cblas_function *openblas_sgemm, *blis_sgemm;

static void cblas(cblas_function *f, const rival_shape *s, const void *a, const void *b, float *c) {
    enum { ROW_MAJOR = 101, AS_IT_IS = 111, TRANSPOSED = 112 };
    f(ROW_MAJOR, s->ta ? TRANSPOSED : AS_IT_IS, s->tb ? TRANSPOSED : AS_IT_IS, s->m, s->n, s->k, 1, a, s->lda,
      b, s->ldb, s->add ? 1 : 0, c, s->ldc);
}
static void openblas_gemm(const rival_shape *s, const void *a, const void *b, float *c) {
    cblas(openblas_sgemm, s, a, b, c);
}
static void blis_gemm(const rival_shape *s, const void *a, const void *b, float *c) {
    cblas(blis_sgemm, s, a, b, c);
}

static bool open_openblas(rival *r) {
    if (has_avx512()) setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    unsetenv("OPENBLAS_L2_SIZE");
    void *library = open_first((const char *const[]){ "libopenblas.so.0", "libopenblas.so", NULL });
    const char *(*config)(void), *(*core)(void);
    if (!library || !find(library, "cblas_sgemm", &openblas_sgemm) ||
        !find(library, "openblas_get_config", &config) || !find(library, "openblas_get_corename", &core))
        return false;
    *r = (rival){ .name = "OpenBLAS", .gemm = openblas_gemm };
    char number[32] = "";
    sscanf(config(), "OpenBLAS %31s", number);
    snprintf(r->version, sizeof r->version, "%s %.20s", number, core());
    return true;
}

/* BLIS 0.9 and 1.0 take the number of a kernel set from BLIS_ARCH_TYPE, and read it once, in bli_init. */
static void *open_blis_library(const char **arch, bool told) {
    static const struct {
        int number;
        const char *name;
    } sets[] = { { 0, "skx" }, { 6, "zen3" } };
    void *library = open_first((const char *const[]){ "libblis.so.4", "libblis.so.5", "libblis.so", NULL });
    int (*query)(void);
    void (*init)(void);
    const char *(*name)(int);
    if (!library || !find(library, "bli_arch_query_id", &query) || !find(library, "bli_arch_string", &name) ||
        !find(library, "bli_init", &init))
        return NULL;
    init();
    *arch = name(query());
    int i = has_avx512() ? 0 : 1;
    if (strcmp(*arch, "generic") || !has_avx2() || told || strcmp(name(sets[i].number), sets[i].name))
        return library;
    setenv("BLIS_ARCH_TYPE", i ? "6" : "0", 1);
    dlclose(library);
    return open_blis_library(arch, true);
}

static bool open_blis(rival *r) {
    const char *arch, *(*version)(void);
    setenv("BLIS_NUM_THREADS", "1", 1);
    unsetenv("BLIS_ARCH_TYPE");
    void *library = open_blis_library(&arch, false);
    if (!library || !find(library, "cblas_sgemm", &blis_sgemm) ||
        !find(library, "bli_info_get_version_str", &version))
        return false;
    *r = (rival){ .name = "BLIS", .gemm = blis_gemm };
    snprintf(r->version, sizeof r->version, "%.30s %.20s", version(), arch);
    return true;
}

/* ------------------------------------------------------------------ libxsmm 1 (column-major, made for small products) */
#ifdef BENCH_LIBXSMM
/* Its kernels are made for one shape and do not block for caches: the caller tiles. Column-major, our product
 * is C'[n,m] = op(B)' op(A)', so its M runs over our columns. */
static void xsmm_tile(const rival_shape *s, int m, int n, const float *a, const float *b, float *c) {
    const float one = 1, beta = s->add ? 1 : 0;
    int flags = s->ta ? LIBXSMM_GEMM_FLAG_TRANS_B : LIBXSMM_GEMM_FLAG_NONE,
        prefetch = LIBXSMM_GEMM_PREFETCH_NONE;
    libxsmm_smmfunction f = libxsmm_smmdispatch(n, m, s->k, &s->ldb, &s->lda, &s->ldc, &one, &beta, &flags,
                                                &prefetch);
    MU_CHECK(f, "libxsmm has no kernel for %d x %d x %d", n, m, s->k);
    f(b, a, c);
}

static void xsmm_gemm(const rival_shape *s, const void *a, const void *b, float *c) {
    enum { ROWS = 64, COLUMNS = 64 };
    for (int j = 0; j < s->n; j += COLUMNS)
        for (int i = 0; i < s->m; i += ROWS) {
            int m = s->m - i < ROWS ? s->m - i : ROWS, n = s->n - j < COLUMNS ? s->n - j : COLUMNS;
            xsmm_tile(s, m, n, (const float *)a + (s->ta ? i : (int64_t)i * s->lda), (const float *)b + j,
                      c + (int64_t)i * s->ldc + j);
        }
}

static bool open_xsmm(rival *r) {
    *r = (rival){ .name = "libxsmm", .version = LIBXSMM_VERSION, .no_tb = true, .gemm = xsmm_gemm };
    libxsmm_init();
    return true;
}
#else
static bool open_xsmm(rival *r) {
    (void)r;
    return false;
}
#endif

int rivals_open(bool bf16, rival list[MOST_RIVALS]) {
    int n = 0;
    if (bf16) return rival_dnnl_bf16(&list[0]);
    n += open_dnnl(&list[n]);
    n += open_openblas(&list[n]);
    n += open_blis(&list[n]);
    n += open_xsmm(&list[n]);
    return n;
}
