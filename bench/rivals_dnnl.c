/* rivals_dnnl.c - bf16 products of oneDNN: its matmul primitive. Types come from its headers, functions from
 * the library of the same major version, opened when the program starts; version 3 turned descriptors into
 * handles and creates a primitive with one call less. */
#include "rivals.h"
#include "base/base.h"

#ifdef BENCH_DNNL_HEADERS
#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if DNNL_VERSION_MAJOR >= 3
#define SONAME "libdnnl.so.3"
#define VERSION_FUNCTIONS(F) F(dnnl_memory_desc_create_with_strides) F(dnnl_matmul_primitive_desc_create)
#else
#define SONAME "libdnnl.so.2"
#define VERSION_FUNCTIONS(F) \
    F(dnnl_memory_desc_init_by_strides) F(dnnl_matmul_desc_init) F(dnnl_primitive_desc_create)
#endif
#define FUNCTIONS(F)                                                                                         \
    F(dnnl_engine_create)                                                                                    \
    F(dnnl_stream_create) F(dnnl_memory_create) F(dnnl_memory_set_data_handle) F(dnnl_primitive_attr_create) \
        F(dnnl_post_ops_create) F(dnnl_post_ops_append_sum) F(dnnl_primitive_attr_set_post_ops)              \
            F(dnnl_primitive_create) F(dnnl_primitive_execute) F(dnnl_stream_wait) F(dnnl_version)           \
                VERSION_FUNCTIONS(F)

static struct {
#define F(name) __typeof__(name) *name;
    FUNCTIONS(F)
#undef F
} dnnl;

static void check(dnnl_status_t status, const char *what) {
    MU_CHECK(status == dnnl_success, "oneDNN: %s: status %d", what, (int)status);
}

/* A primitive for one shape with its memory objects. Each thread has its own: a memory object holds one address. */
typedef struct {
    rival_shape shape;
    dnnl_primitive_t primitive;
    dnnl_memory_t src, weights, dst;
} product;
enum { MOST_PRODUCTS = 1024 };
static _Thread_local struct {
    product list[MOST_PRODUCTS];
    int n;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
} mine;

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t descriptor;
#define DESC(d) (d)
#else
typedef dnnl_memory_desc_t descriptor;
#define DESC(d) (&(d))
#endif

static descriptor describe(int rows, int columns, dnnl_data_type_t type, bool transposed, int ld) {
    dnnl_dims_t dims = { rows, columns }, strides = { transposed ? 1 : ld, transposed ? ld : 1 };
    descriptor d;
#if DNNL_VERSION_MAJOR >= 3
    check(dnnl.dnnl_memory_desc_create_with_strides(&d, 2, dims, type, strides), "describing a matrix");
#else
    check(dnnl.dnnl_memory_desc_init_by_strides(&d, 2, dims, type, strides), "describing a matrix");
#endif
    return d;
}

static dnnl_primitive_attr_t attributes(bool add) {
    dnnl_primitive_attr_t attr;
    check(dnnl.dnnl_primitive_attr_create(&attr), "attributes");
    if (!add) return attr;
    dnnl_post_ops_t ops;
    check(dnnl.dnnl_post_ops_create(&ops), "post-operations");
#if DNNL_VERSION_MAJOR >= 3
    check(dnnl.dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef), "adding to C");
#else
    check(dnnl.dnnl_post_ops_append_sum(ops, 1), "adding to C");
#endif
    check(dnnl.dnnl_primitive_attr_set_post_ops(attr, ops), "adding to C");
    return attr;
}

static dnnl_primitive_desc_t describe_product(descriptor *a, descriptor *b, descriptor *c, bool add) {
    dnnl_primitive_desc_t d;
    dnnl_primitive_attr_t attr = attributes(add);
#if DNNL_VERSION_MAJOR >= 3
    check(dnnl.dnnl_matmul_primitive_desc_create(&d, mine.engine, *a, *b, NULL, *c, attr), "a bf16 product");
#else
    dnnl_matmul_desc_t op;
    check(dnnl.dnnl_matmul_desc_init(&op, a, b, NULL, c), "a bf16 product");
    check(dnnl.dnnl_primitive_desc_create(&d, &op, attr, mine.engine, NULL), "a bf16 product");
#endif
    return d;
}

/* Created inside the parallel region where it runs, so that it is single-threaded. */
static product product_new(const rival_shape *s) {
    if (!mine.engine) {
        check(dnnl.dnnl_engine_create(&mine.engine, dnnl_cpu, 0), "engine");
        check(dnnl.dnnl_stream_create(&mine.stream, mine.engine, dnnl_stream_default_flags), "stream");
    }
    product p = { .shape = *s };
    descriptor a = describe(s->m, s->k, dnnl_bf16, s->ta, s->lda),
               b = describe(s->k, s->n, dnnl_bf16, s->tb, s->ldb);
    descriptor c = describe(s->m, s->n, dnnl_f32, false, s->ldc);
    check(dnnl.dnnl_primitive_create(&p.primitive, describe_product(&a, &b, &c, s->add)), "a bf16 product");
    check(dnnl.dnnl_memory_create(&p.src, DESC(a), mine.engine, NULL), "memory");
    check(dnnl.dnnl_memory_create(&p.weights, DESC(b), mine.engine, NULL), "memory");
    check(dnnl.dnnl_memory_create(&p.dst, DESC(c), mine.engine, NULL), "memory");
    return p;
}

static bool same_shape(const rival_shape *x, const rival_shape *y) {
    return x->ta == y->ta && x->tb == y->tb && x->add == y->add && x->m == y->m && x->n == y->n &&
           x->k == y->k && x->lda == y->lda && x->ldb == y->ldb && x->ldc == y->ldc;
}

static void bf16_gemm(const rival_shape *s, const void *a, const void *b, float *c) {
    int i = mine.n - 1; /* the ones in use were created last */
    while (i >= 0 && !same_shape(&mine.list[i].shape, s)) i--;
    if (i < 0) {
        MU_CHECK(mine.n < MOST_PRODUCTS, "more than %d shapes of products", MOST_PRODUCTS);
        mine.list[i = mine.n++] = product_new(s);
    }
    const product *p = &mine.list[i];
    void *from[2]; /* the interface takes addresses it could write to */
    memcpy(from, (const void *[]){ a, b }, sizeof from);
    dnnl.dnnl_memory_set_data_handle(p->src, from[0]);
    dnnl.dnnl_memory_set_data_handle(p->weights, from[1]);
    dnnl.dnnl_memory_set_data_handle(p->dst, c);
    dnnl_exec_arg_t args[] = { { DNNL_ARG_SRC, p->src },
                               { DNNL_ARG_WEIGHTS, p->weights },
                               { DNNL_ARG_DST, p->dst } };
    check(dnnl.dnnl_primitive_execute(p->primitive, mine.stream, 3, args), "multiplying");
    dnnl.dnnl_stream_wait(mine.stream);
}

bool rival_dnnl_bf16(rival *r) {
    void *library = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL);
    if (!library) return false;
    bool all = true;
#define F(name)                                       \
    {                                                 \
        void *address = dlsym(library, #name);        \
        memcpy(&dnnl.name, &address, sizeof address); \
        all = all && address;                         \
    }
    FUNCTIONS(F)
#undef F
    if (!all) return false;
    *r = (rival){ .name = "oneDNN", .bf16 = true, .gemm = bf16_gemm };
    const dnnl_version_t *v = dnnl.dnnl_version();
    snprintf(r->version, sizeof r->version, "%d.%d.%d matmul", v->major, v->minor, v->patch);
    return true;
}
#else
bool rival_dnnl_bf16(rival *r) {
    (void)r;
    return false;
}
#endif
