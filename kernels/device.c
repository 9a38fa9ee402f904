/* device.c - opening devices, their memory, copies, and the two devices that are generated from the list of
 * kernels: `shape`, whose kernels do nothing, and `guarded`, whose kernels make the device's memory accessible,
 * call the inner cpu device, and protect the memory again. */
#include "kernels/internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const struct { size_t size; const char *name; } dtypes[] = {
    [MU_DTYPE_F64] = { 8, "f64" }, [MU_DTYPE_F32] = { 4, "f32" }, [MU_DTYPE_BF16] = { 2, "bf16" },
    [MU_DTYPE_I32] = { 4, "i32" }, [MU_DTYPE_I64] = { 8, "i64" },
};

size_t mu_dtype_size(mu_dtype dtype) { return dtypes[dtype].size; }
const char *mu_dtype_name(mu_dtype dtype) { return dtypes[dtype].name; }

/* ---------------------------------------------------------------- shape: kernels that do nothing */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define K(name, params, args) static void shape_##name params { }
MU_KERNELS(K)
#undef K
#pragma GCC diagnostic pop

#define K(name, params, args) .name = shape_##name,
static const mu_kernels shape_kernels = { MU_KERNELS(K) };
#undef K

/* ---------------------------------------------------------------- guarded: kernels that unlock the memory */
static void protect(const mu_memory *m, int protection) {
    if (!m->region.committed) return;
    int failed = mprotect(m->region.base, m->region.usable, protection);
    MU_CHECK(!failed, "guarded device: mprotect of %zu bytes failed", m->region.usable);
}

static bool is_guarded(const mu_device *dev) { return dev->inner != NULL; }

static void unlock(mu_device *dev) {
    if (!is_guarded(dev) || dev->unlocked++) return;
    for (const mu_memory *m = dev->memories; m; m = m->next) protect(m, PROT_READ | PROT_WRITE);
}

static void lock(mu_device *dev) {
    if (!is_guarded(dev) || --dev->unlocked) return;
    for (const mu_memory *m = dev->memories; m; m = m->next) protect(m, PROT_NONE);
}

/* `args` begins with the name dev, which by then is the inner device. */
#define K(name, params, args)               \
    static void guarded_##name params {     \
        mu_device *outer = dev;             \
        unlock(outer);                      \
        dev = outer->inner;                 \
        dev->k->name args;                  \
        lock(outer);                        \
    }
MU_KERNELS(K)
#undef K

#define K(name, params, args) .name = guarded_##name,
static const mu_kernels guarded_kernels = { MU_KERNELS(K) };
#undef K

/* ---------------------------------------------------------------- host memory */
static void host_reserve(mu_memory *m, size_t bytes) { mu_region_init(&m->region, bytes); }

static void host_commit(mu_memory *m, size_t bytes) {
    size_t before = m->region.committed;
    mu_region_commit(&m->region, bytes);
    if (is_guarded(m->dev) && !m->dev->unlocked && m->region.committed != before) protect(m, PROT_NONE);
}

static void host_release(mu_memory *m) { mu_region_free(&m->region); }

static void host_read(mu_device *dev, void *host, const void *data, size_t bytes) {
    unlock(dev);
    memcpy(host, data, bytes);
    lock(dev);
}

static void host_write(mu_device *dev, void *data, const void *host, size_t bytes) {
    unlock(dev);
    memcpy(data, host, bytes);
    lock(dev);
}

/* The view is the data itself. */
static void *host_stage_begin(mu_device *dev, void *data, size_t bytes, bool wanted) {
    (void)bytes, (void)wanted;
    unlock(dev);
    return data;
}

static void host_stage_end(mu_device *dev, void *data, size_t bytes, bool written) {
    (void)data, (void)bytes, (void)written;
    lock(dev);
}

static void host_close(mu_device *dev) {
    mu_device_close(dev->inner);
    if (dev->scratch.region.base) mu_arena_free(&dev->scratch);
    free(dev);
}

static const mu_backend host = { host_reserve,     host_commit,    host_release, host_read, host_write,
                                 host_stage_begin, host_stage_end, NULL, host_close };

/* A dry run counts what a real device would commit: the same steps, no pages. */
static void shape_commit(mu_memory *m, size_t bytes) {
    const size_t huge = (size_t)2 << 20, step = bytes < huge ? huge / 2 : huge; /* as in base/memory.c */
    size_t want = (bytes + step - 1) / step * step;
    MU_CHECK(want <= m->region.reserved, "%zu MiB needed, %zu MiB reserved", want >> 20, m->region.reserved >> 20);
    if (want > m->region.committed) m->region.committed = want;
}

static void shape_read(mu_device *dev, void *to, const void *data, size_t bytes) {
    (void)dev, (void)data;
    memset(to, 0, bytes);
}

static void shape_write(mu_device *dev, void *data, const void *from, size_t bytes) {
    (void)dev, (void)data, (void)from, (void)bytes;
}

static void *shape_stage_begin(mu_device *dev, void *data, size_t bytes, bool wanted) {
    (void)wanted;
    (void)dev, (void)data;
    MU_FATAL(MU_STATUS_INTERNAL, "shape device: no data to stage (%zu bytes): a dry run does not communicate", bytes);
}

static const mu_backend shape = { host_reserve,      shape_commit,   host_release, shape_read, shape_write,
                                  shape_stage_begin, host_stage_end, NULL, host_close };

/* ---------------------------------------------------------------- open and close */
typedef struct { const char *name; const mu_kernels *k; bool asked; } cpu_table;

#if defined(__x86_64__)
static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

static bool has_bf16(void) { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

enum { MOST_TABLES = 4 };

/* The tables that this processor supports, the best first; returns their number. `asked`: only if requested by name. */
static int cpu_tables(cpu_table table[MOST_TABLES]) {
    int n = 0;
#if defined(__x86_64__)
    if (has_bf16()) table[n++] = (cpu_table){ "cpu-bf16", &mu_kernels_cpu_bf16, true };
    if (has_avx512()) table[n++] = (cpu_table){ "cpu-avx512", &mu_kernels_cpu_avx512, false };
    if (has_avx2()) table[n++] = (cpu_table){ "cpu-avx2", &mu_kernels_cpu_avx2, false };
#endif
    table[n++] = (cpu_table){ "cpu-base", &mu_kernels_cpu_base, false };
    return n;
}

/* Scratch grows on demand, so reserve far more than any kernel needs; less where address space is short. */
static void scratch_init(mu_arena *a) {
    size_t reserve = (size_t)64 << 30;
    for (; reserve > (size_t)256 << 20; reserve /= 2) {
        size_t needed = reserve + ((size_t)2 << 20);        /* a region lies on huge pages */
        void *probe = mmap(NULL, needed, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (probe == MAP_FAILED) continue;
        munmap(probe, needed);
        break;
    }
    mu_arena_init(a, reserve);
}

static mu_device *device_new(const char *name, const mu_kernels *k, mu_dtype compute) {
    mu_device *dev = mu_alloc(1, sizeof *dev);
    *dev = (mu_device){ .k = k, .name = name, .compute = compute, .master = compute, .backend = &host };
    return dev;
}

/* "cpu" is the best table, "cpu-..." the one of that name. */
static mu_device *open_cpu(const char *kind) {
    cpu_table table[MOST_TABLES];
    int n = cpu_tables(table);
    for (int i = 0; i < n; i++)
        if ((!strcmp(kind, "cpu") && !table[i].asked) || !strcmp(kind, table[i].name)) {
            mu_device *dev = device_new(table[i].name, table[i].k, MU_DTYPE_F32);
            scratch_init(&dev->scratch);
            return dev;
        }
    return NULL;
}

mu_device *mu_device_open(const char *kind) {
    mu_device *dev;
    MU_CHECK(kind, "a device needs a kind: \"cpu\", \"ref\", \"cuda\"");
    if (!strcmp(kind, "ref")) {
        dev = device_new("ref", &mu_kernels_ref, MU_DTYPE_F64);
        scratch_init(&dev->scratch);
    } else if (!strncmp(kind, "shape", 5)) {
        dev = device_new("shape", &shape_kernels, MU_DTYPE_F32);
        dev->backend = &shape, dev->shape_only = true;
        if (!strcmp(kind, "shape-f64")) dev->compute = dev->master = MU_DTYPE_F64;
        if (!strcmp(kind, "shape-bf16")) dev->compute = MU_DTYPE_BF16;
    } else if (!strcmp(kind, "guarded")) {
        dev = device_new("guarded", &guarded_kernels, MU_DTYPE_F32);
        dev->inner = open_cpu("cpu");
    } else if (!strncmp(kind, "cuda", 4)) {
        dev = mu_cuda_open(kind);
    } else {
        dev = open_cpu(kind);
    }
    return dev;
}

void mu_device_close(mu_device *dev) {
    if (!dev) return;
    mu_memory_free(dev->room);
    MU_CHECK(!dev->memories, "device %s is closed while its memory is in use", dev->name);
    dev->backend->close(dev);
}

/* ---------------------------------------------------------------- memory and copies of any device */
mu_memory *mu_memory_new(mu_device *dev, size_t reserve) {
    MU_CHECK(dev, "device is NULL");
    mu_memory *m = mu_alloc(1, sizeof *m);
    m->dev = dev;
    dev->backend->reserve(m, reserve ? reserve : 1);
    m->next = dev->memories;
    dev->memories = m;
    return m;
}

void mu_memory_commit(mu_memory *m, size_t bytes) { m->dev->backend->commit(m, bytes); }

void mu_memory_free(mu_memory *m) {
    if (!m) return;
    mu_memory **link = &m->dev->memories;
    while (*link != m) link = &(*link)->next;
    *link = m->next;
    m->dev->backend->release(m);
    free(m);
}

int64_t mu_device_bytes(const mu_device *dev) {
    int64_t bytes = 0;
    for (const mu_memory *m = dev->memories; m; m = m->next) bytes += (int64_t)m->region.committed;
    return bytes;
}

void *mu_device_room(mu_device *dev, size_t bytes) {
    const size_t MOST = (size_t)1 << 30;
    MU_CHECK(bytes <= MOST, "%zu bytes are more than 1 GiB", bytes);
    if (!dev->room) dev->room = mu_memory_new(dev, MOST);
    mu_memory_commit(dev->room, bytes);
    return dev->room->region.base;
}

void mu_device_read(mu_device *dev, void *to, const void *data, size_t bytes) {
    if (!bytes) return;
    dev->waits++;
    dev->backend->read(dev, to, data, bytes);
}

void mu_device_write(mu_device *dev, void *data, const void *from, size_t bytes) {
    if (bytes) dev->backend->write(dev, data, from, bytes);
}

void mu_device_finish(mu_device *dev) {
    if (!dev->backend->finish) return;
    dev->waits++;
    dev->backend->finish(dev);
}

void *mu_device_stage_begin(mu_device *dev, void *data, size_t bytes, bool wanted) {
    if (bytes && wanted) dev->waits++;
    return dev->backend->stage_begin(dev, data, bytes, wanted);
}

void mu_device_stage_end(mu_device *dev, void *data, size_t bytes, bool written) {
    dev->backend->stage_end(dev, data, bytes, written);
}

int64_t mu_device_waits(const mu_device *dev) { return dev->waits; }
