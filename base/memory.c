/* memory.c - regions (reserve once, commit on demand), arenas on top of them, and checked heap calls. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { ALIGNMENT = 64 };
static const size_t COMMIT_STEP = (size_t)1 << 20;
/* Regions larger than a huge page use huge pages where the system provides them on request: a large matrix is read 5 to
 * 10 % faster with fewer TLB entries. */
static const size_t HUGE_PAGE = (size_t)2 << 20;

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

void mu_region_init(mu_region *r, size_t reserve) {
    size_t bytes = round_up(reserve, HUGE_PAGE), whole = bytes + HUGE_PAGE;
    char *base = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MU_CHECK(base != MAP_FAILED, "cannot reserve %zu MiB of address space; is it limited (ulimit -v)?", bytes >> 20);
    size_t skip = round_up((uintptr_t)base, HUGE_PAGE) - (uintptr_t)base;
    if (skip) munmap(base, skip);
    munmap(base + skip + bytes, HUGE_PAGE - skip);
    *r = (mu_region){ .base = base + skip, .reserved = bytes };
}

void mu_region_commit(mu_region *r, size_t bytes) {
    if (bytes <= r->committed) return;
    size_t want = round_up(bytes, COMMIT_STEP);
    MU_CHECK(want <= r->reserved,
             "a region needs %zu MiB, but has %zu MiB reserved; use a smaller micro-batch", want >> 20,
             r->reserved >> 20);
    size_t usable = want < HUGE_PAGE ? want : round_up(want, HUGE_PAGE);    /* a partly protected huge page would be split */
    int failed = mprotect(r->base, usable, PROT_READ | PROT_WRITE);
    MU_CHECK(!failed, "out of memory: a region cannot grow to %zu MiB; use a smaller micro-batch", want >> 20);
    if (want >= HUGE_PAGE) madvise(r->base, usable, MADV_HUGEPAGE);         /* optional: failure is not an error */
    r->committed = want, r->usable = usable;
}

void mu_region_free(mu_region *r) {
    if (r->base) munmap(r->base, r->reserved);
    *r = (mu_region){ 0 };
}

void mu_arena_init(mu_arena *a, size_t reserve) {
    mu_region_init(&a->region, reserve);
    mu_region_commit(&a->region, HUGE_PAGE);            /* the beginning is used most: on a huge page */
    a->used = 0;
}

void *mu_arena_alloc(mu_arena *a, size_t bytes) {
    size_t at = a->used;
    a->used = at + round_up(bytes, ALIGNMENT);
    mu_region_commit(&a->region, a->used);
    return a->region.base + at;
}

size_t mu_arena_mark(const mu_arena *a) { return a->used; }
void mu_arena_release(mu_arena *a, size_t mark) { a->used = mark; }
void mu_arena_free(mu_arena *a) {
    mu_region_free(&a->region);
    a->used = 0;
}

size_t mu_size_mul(size_t a, size_t b) {
    size_t product;
    MU_CHECK(!__builtin_mul_overflow(a, b, &product), "%zu x %zu bytes exceed the address space", a, b);
    return product;
}

void *mu_alloc(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size ? size : 1);
    MU_CHECK(p, "out of memory: %zu x %zu bytes", count, size);
    return p;
}

void *mu_realloc(void *old, size_t count, size_t size) {
    size_t bytes = mu_size_mul(count, size);
    void *p = realloc(old, bytes ? bytes : 1);
    MU_CHECK(p, "out of memory: %zu bytes", bytes);
    return p;
}

char *mu_strdup(const char *s) {
    size_t n = strlen(s) + 1;
    return memcpy(mu_alloc(n, 1), s, n);
}

char *mu_format(const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    MU_CHECK(n >= 0, "invalid printf format \"%s\"", fmt);
    char *text = mu_alloc((size_t)n + 1, 1);
    vsnprintf(text, (size_t)n + 1, fmt, again);
    va_end(args);
    va_end(again);
    return text;
}

int64_t mu_memory_peak(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (int64_t)usage.ru_maxrss * 1024;
}

int64_t mu_memory_rss(void) {
    FILE *f = fopen("/proc/self/status", "re");
    if (!f) return 0;
    char line[256];
    long long kib = 0;
    while (fgets(line, sizeof line, f) && sscanf(line, "VmRSS: %lld", &kib) != 1) {}
    fclose(f);
    return kib * 1024;
}
