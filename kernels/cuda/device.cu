/* device.cu - the CUDA device: selection of the GPU, memory, copies, and errors that a user can act on.
 *
 * Memory is reserved as addresses and mapped in pages as it is needed (CUDA's virtual memory management), so that a
 * range keeps its address while it grows and nothing is mapped after the largest step. The driver's functions are looked up
 * at run time: the program also starts on machines without a driver.
 *
 * Copies go through pinned memory. A copy to the device is in progress when mu_device_write returns; only
 * mu_device_read and staging for communication wait. */
#include "kernels/cuda/cuda.h"

#include <cuda.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    CUresult (*reserve)(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr, unsigned long long flags);
    CUresult (*create)(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                       unsigned long long flags);
    CUresult (*map)(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                    unsigned long long flags);
    CUresult (*access)(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count);
    CUresult (*unmap)(CUdeviceptr ptr, size_t size);
    CUresult (*release)(CUmemGenericAllocationHandle handle);
    CUresult (*free_addresses)(CUdeviceptr ptr, size_t size);
    CUresult (*granularity)(size_t *granularity, const CUmemAllocationProp *prop,
                            CUmemAllocationGranularity_flags option);
} driver_functions;

enum { HALVES = 2 };
typedef struct {
    char *base;
    size_t half, used;              /* bytes of a half; used bytes of the current half */
    int at;                         /* the current half */
    cudaEvent_t left[HALVES];       /* recorded when a half is full: its copies are done when the event is */
} pinned_ring;

typedef struct staged {             /* a host view of device memory, kept for reuse */
    void *data, *host;
    size_t bytes;
    int depth;
    struct staged *next;
} staged;

struct mu_cuda {
    mu_device dev;
    int index, processors;
    cudaStream_t stream;
    driver_functions driver;
    CUmemAllocationProp prop;
    size_t step;                    /* bytes that memory grows by */
    size_t total;                   /* bytes of the device's memory: no range needs more addresses */
    mu_memory scratch;              /* not in the device's list of memories */
    size_t scratch_used;
    pinned_ring ring;               /* for copies to the device */
    void *landing;                  /* pinned, LANDING bytes: for copies from the device */
    staged *views;
    struct cublasContext *blas;
    char name[96];
};

static mu_cuda *cuda_of(mu_device *dev) { return (mu_cuda *)dev; }
cudaStream_t cuda_stream(mu_device *dev) { return cuda_of(dev)->stream; }
struct cublasContext *&cuda_blas(mu_device *dev) { return cuda_of(dev)->blas; }
int cuda_processors(mu_device *dev) { return cuda_of(dev)->processors; }

void cuda_check(cudaError_t status, const char *what, const char *file, int line) {
    if (status == cudaSuccess) return;
    mu_fatal(MU_STATUS_INTERNAL, file, line, "CUDA", "%s: %s (%s)%s", what, cudaGetErrorString(status),
             cudaGetErrorName(status),
             status == cudaErrorMemoryAllocation ? "; a smaller micro-batch needs less memory"
                                                 : "; compute-sanitizer locates the fault in a kernel");
}

/* ------------------------------------------------------------------ memory */
static const mu_kernels kernels = {
#define K(name, params, args) mu_cuda_##name,
    MU_KERNELS(K)
#undef K
};

static void driver_check(CUresult status, const char *what) {
    MU_CHECK(status == CUDA_SUCCESS, "CUDA driver: %s failed with error %d", what, (int)status);
}

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

static void reserve(mu_memory *m, size_t bytes) {
    mu_cuda *c = cuda_of(m->dev);
    CUdeviceptr base = 0;
    m->region.reserved = round_up(bytes < c->total ? bytes : c->total, c->step);
    driver_check(c->driver.reserve(&base, m->region.reserved, 0, 0, 0), "reserving addresses");
    m->region.base = (char *)base;
}

static void out_of_memory(const mu_cuda *c, size_t wanted) {
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    MU_FATAL(MU_STATUS_INTERNAL,
             "%s is full: %zu MiB more needed, %zu of %zu MiB free, this rank holds %lld MiB; a smaller "
             "micro-batch needs less, and so does bf16",
             c->dev.name, wanted >> 20, free_bytes >> 20, total >> 20, (long long)(mu_device_bytes(&c->dev) >> 20));
}

static void commit(mu_memory *m, size_t bytes) {
    mu_cuda *c = cuda_of(m->dev);
    mu_region *r = &m->region;
    if (bytes <= r->committed) return;
    size_t want = round_up(bytes, c->step), more = want - r->committed, ample = round_up(r->committed / 8, c->step);
    CUmemGenericAllocationHandle pages;
    /* Grows by an eighth at least, if there is room: mapping page by page is slow. */
    if (more < ample && r->committed + ample <= r->reserved &&
        c->driver.create(&pages, ample, &c->prop, 0) == CUDA_SUCCESS)
        want = r->committed + ample, more = ample;
    else if (want > r->reserved || c->driver.create(&pages, more, &c->prop, 0) != CUDA_SUCCESS) out_of_memory(c, more);
    CUdeviceptr at = (CUdeviceptr)(r->base + r->committed);
    CUmemAccessDesc access = {};
    access.location = c->prop.location, access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    driver_check(c->driver.map(at, more, 0, pages, 0), "mapping memory");
    driver_check(c->driver.release(pages), "releasing pages");      /* the mapping keeps them */
    driver_check(c->driver.access(at, more, &access, 1), "setting access to memory");
    CUDA_CHECK(cudaMemsetAsync(r->base + r->committed, 0, more, c->stream));
    r->committed = want;
}

static void release(mu_memory *m) {
    mu_cuda *c = cuda_of(m->dev);
    CUDA_CHECK(cudaStreamSynchronize(c->stream));                       /* nothing in flight reads it */
    if (m->region.committed)
        driver_check(c->driver.unmap((CUdeviceptr)m->region.base, m->region.committed), "unmapping memory");
    driver_check(c->driver.free_addresses((CUdeviceptr)m->region.base, m->region.reserved), "freeing addresses");
    memset(&m->region, 0, sizeof m->region);
}

cuda_scratch::cuda_scratch(mu_device *dev) : dev(dev), mark(cuda_of(dev)->scratch_used) {}
cuda_scratch::~cuda_scratch() { cuda_of(dev)->scratch_used = mark; }

void *cuda_scratch::bytes(size_t n) {
    const size_t ALIGNMENT = 256;
    mu_cuda *c = cuda_of(dev);
    size_t at = c->scratch_used;
    c->scratch_used = round_up(at + n, ALIGNMENT);
    commit(&c->scratch, c->scratch_used);
    return c->scratch.region.base + at;
}

/* ------------------------------------------------------------------ copies */
static void fetch(mu_cuda *c, void *pinned, const void *data, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(pinned, data, bytes, cudaMemcpyDeviceToHost, c->stream));
    CUDA_CHECK(cudaStreamSynchronize(c->stream));
}

static const size_t LANDING = (size_t)1 << 20;

static void read(mu_device *dev, void *to, const void *data, size_t bytes) {
    mu_cuda *c = cuda_of(dev);
    for (size_t done = 0, now; done < bytes; done += now) {
        now = bytes - done < LANDING ? bytes - done : LANDING;
        fetch(c, c->landing, (const char *)data + done, now);
        memcpy((char *)to + done, c->landing, now);
    }
}

/* Switches to the other half of the ring; may wait, rarely, for copies that were started one half ago. */
static void next_half(mu_cuda *c) {
    pinned_ring *r = &c->ring;
    CUDA_CHECK(cudaEventRecord(r->left[r->at], c->stream));
    r->at = (r->at + 1) % HALVES, r->used = 0;
    if (cudaEventQuery(r->left[r->at]) == cudaSuccess) return;
    c->dev.waits++;
    CUDA_CHECK(cudaEventSynchronize(r->left[r->at]));
}

static void write(mu_device *dev, void *data, const void *from, size_t bytes) {
    const size_t ALIGNMENT = 64;
    mu_cuda *c = cuda_of(dev);
    pinned_ring *r = &c->ring;
    for (size_t done = 0, now; done < bytes; done += now) {
        if (r->used == r->half) next_half(c);
        now = bytes - done < r->half - r->used ? bytes - done : r->half - r->used;
        char *host = r->base + (size_t)r->at * r->half + r->used;
        memcpy(host, (const char *)from + done, now);
        CUDA_CHECK(cudaMemcpyAsync((char *)data + done, host, now, cudaMemcpyHostToDevice, c->stream));
        r->used = round_up(r->used + now, ALIGNMENT);
    }
}

/* The smallest free view that is large enough. If all are too small, the largest of them grows, by a quarter at least:
 * sizes of exchanges differ from step to step. */
static staged *view_for(mu_cuda *c, size_t bytes) {
    staged *best = NULL;
    for (staged *v = c->views; v; v = v->next) {
        if (v->depth) continue;
        bool fits = v->bytes >= bytes, best_fits = best && best->bytes >= bytes;
        if (!best || (fits && !best_fits) || (fits == best_fits && (fits ? v->bytes < best->bytes : v->bytes > best->bytes)))
            best = v;
    }
    if (best && best->bytes >= bytes) return best;
    size_t grown = best ? best->bytes + best->bytes / 4 : 0;
    if (best) {
        CUDA_CHECK(cudaFreeHost(best->host));
    } else {
        best = (staged *)mu_alloc(1, sizeof *best);
        best->next = c->views;
        c->views = best;
    }
    best->bytes = round_up(bytes > grown ? bytes : grown, (size_t)1 << 16);
    CUDA_CHECK(cudaMallocHost(&best->host, best->bytes));
    return best;
}

static staged *view_of(mu_cuda *c, const void *data) {
    for (staged *v = c->views; v; v = v->next)
        if (v->depth && v->data == data) return v;
    return NULL;
}

static void *stage_begin(mu_device *dev, void *data, size_t bytes, bool wanted) {
    mu_cuda *c = cuda_of(dev);
    staged *v = view_of(c, data);
    if (!v) v = view_for(c, bytes ? bytes : 1);
    MU_CHECK(v->bytes >= bytes, "nested staging of %zu bytes in a view of %zu", bytes, v->bytes);
    v->data = data;
    if (!v->depth++ && bytes && wanted) fetch(c, v->host, data, bytes);
    return v->host;
}

static void stage_end(mu_device *dev, void *data, size_t bytes, bool written) {
    mu_cuda *c = cuda_of(dev);
    staged *v = view_of(c, data);
    MU_CHECK(v, "mu_device_stage_end without mu_device_stage_begin");
    if (written && bytes) {
        CUDA_CHECK(cudaMemcpyAsync(data, v->host, bytes, cudaMemcpyHostToDevice, c->stream));
        CUDA_CHECK(cudaStreamSynchronize(c->stream));                   /* the view may be reused next */
    }
    v->depth--;
}

static void finish(mu_device *dev) { CUDA_CHECK(cudaStreamSynchronize(cuda_of(dev)->stream)); }

/* ------------------------------------------------------------------ open and close */
static void close(mu_device *dev) {
    mu_cuda *c = cuda_of(dev);
    cuda_blas_close(c->blas);
    release(&c->scratch);
    for (staged *v = c->views, *next; v; v = next) {
        next = v->next;
        CUDA_CHECK(cudaFreeHost(v->host));
        free(v);
    }
    for (int i = 0; i < HALVES; i++) CUDA_CHECK(cudaEventDestroy(c->ring.left[i]));
    CUDA_CHECK(cudaFreeHost(c->ring.base));
    CUDA_CHECK(cudaFreeHost(c->landing));
    CUDA_CHECK(cudaStreamDestroy(c->stream));
    free(c);
}

static const mu_backend backend = { reserve, commit, release, read, write, stage_begin, stage_end, finish, close };

enum { LEAST_CAPABILITY = 8 };              /* the oldest that cmake/cuda.cmake supports */
static char missing[256];
static bool unsupported;
const char *mu_cuda_missing(void) { return missing; }
bool mu_cuda_unsupported(void) { return unsupported; }

/* Number of GPUs; 0 with a reason in `missing`. */
static int count_devices(void) {
    int n = 0, driver = 0;
    cudaError_t status = cudaGetDeviceCount(&n);
    if (status == cudaSuccess && n > 0) return n;
    cudaDriverGetVersion(&driver);
    unsupported = status == cudaErrorInsufficientDriver && driver;
    if (unsupported)
        snprintf(missing, sizeof missing, "the NVIDIA driver supports CUDA %d.%d, but this build needs %d.%d; install a newer driver",
                 driver / 1000, driver % 100 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 100 / 10);
    else
        snprintf(missing, sizeof missing, "no NVIDIA GPU found (%s)",
                 status == cudaSuccess                   ? "0 devices"
                 : status == cudaErrorInsufficientDriver ? "no driver"
                                                         : cudaGetErrorString(status));
    return 0;
}

static void *driver_function(const char *name, unsigned version) {
    void *function = NULL;
    cudaDriverEntryPointQueryResult found;
    cudaError_t status = cudaGetDriverEntryPointByVersion(name, &function, version, cudaEnableDefault, &found);
    MU_CHECK(status == cudaSuccess && function, "the NVIDIA driver has no %s; install a newer driver", name);
    return function;
}

static void find_driver(mu_cuda *c) {
    const unsigned VERSION = 10020;         /* these functions came with CUDA 10.2 */
    *(void **)&c->driver.reserve = driver_function("cuMemAddressReserve", VERSION);
    *(void **)&c->driver.create = driver_function("cuMemCreate", VERSION);
    *(void **)&c->driver.map = driver_function("cuMemMap", VERSION);
    *(void **)&c->driver.access = driver_function("cuMemSetAccess", VERSION);
    *(void **)&c->driver.unmap = driver_function("cuMemUnmap", VERSION);
    *(void **)&c->driver.release = driver_function("cuMemRelease", VERSION);
    *(void **)&c->driver.free_addresses = driver_function("cuMemAddressFree", VERSION);
    *(void **)&c->driver.granularity = driver_function("cuMemGetAllocationGranularity", VERSION);
    c->prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    c->prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE, c->prop.location.id = c->index;
    driver_check(c->driver.granularity(&c->step, &c->prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED), "asking for the page size");
}

static void open_ring(pinned_ring *r) {
    r->half = (size_t)8 << 20;
    CUDA_CHECK(cudaMallocHost((void **)&r->base, HALVES * r->half));
    for (int i = 0; i < HALVES; i++) CUDA_CHECK(cudaEventCreateWithFlags(&r->left[i], cudaEventDisableTiming));
}

mu_device *mu_cuda_open(const char *kind) {
    const char *number = strchr(kind, ':');
    size_t name = number ? (size_t)(number - kind) : strlen(kind);
    bool half = name == strlen("cuda-bf16") && !strncmp(kind, "cuda-bf16", name);
    if (!half && (name != strlen("cuda") || strncmp(kind, "cuda", name))) return NULL;
    int n = count_devices();
    if (!n) return NULL;
    int index = number ? atoi(number + 1) % n : 0, major, minor;
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
    unsupported = major < LEAST_CAPABILITY;
    if (unsupported) {
        snprintf(missing, sizeof missing, "GPU %d has compute capability %d.%d, this build needs %d.0 or more (Ampere or newer)",
                 index, major, minor, (int)LEAST_CAPABILITY);
        return NULL;
    }
    mu_cuda *c = (mu_cuda *)mu_alloc(1, sizeof *c);
    c->index = index;
    CUDA_CHECK(cudaSetDevice(c->index));
    CUDA_CHECK(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaDeviceGetAttribute(&c->processors, cudaDevAttrMultiProcessorCount, c->index));
    snprintf(c->name, sizeof c->name, "cuda%s", half ? "-bf16" : "");
    find_driver(c);
    size_t unused;
    CUDA_CHECK(cudaMemGetInfo(&unused, &c->total));
    open_ring(&c->ring);
    CUDA_CHECK(cudaMallocHost(&c->landing, LANDING));
    c->dev.k = &kernels, c->dev.name = c->name, c->dev.backend = &backend, c->dev.on_gpu = true;
    c->dev.compute = half ? MU_DTYPE_BF16 : MU_DTYPE_F32, c->dev.master = MU_DTYPE_F32;
    c->scratch.dev = &c->dev;
    reserve(&c->scratch, c->total);
    return &c->dev;
}
