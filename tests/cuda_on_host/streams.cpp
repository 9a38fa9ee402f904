/* streams.cpp - the calls of the runtime: devices, streams, events, copies, launches.
 *
 * Work is put into lists and done when somebody waits for it, and no earlier, in the order that CUDA promises: within a
 * stream as issued; work in the default stream after everything that blocking streams were given before it, and before
 * everything they get after it; events make one stream wait for another. So a synchronisation that is missing in the
 * program is missed here every time. */
#include "engine.h"

#include <deque>
#include <map>
#include <time.h>

using namespace emu;

typedef std::function<void(void)> Work;

struct CUgraph_st { std::vector<Work> works; bool broken; };
struct CUgraphExec_st { std::vector<Work> works; };

struct Item {
    uint64_t number;            /* over all streams, in the order of the calls */
    Work work;
    cudaStream_t after;         /* an event: that stream has to come this far first */
    uint64_t after_number;
};

struct CUstream_st {
    bool blocking;
    std::deque<Item> items;
    CUgraph_st *capture;
    bool origin;                /* the stream with which the capture began */
};

struct CUevent_st {
    cudaStream_t stream;        /* recorded there, after everything up to number; NULL: never, or long done */
    uint64_t number;
    CUgraph_st *capture;
};

namespace {

CUstream_st default_stream{true, {}, nullptr, false};
std::vector<cudaStream_t> streams{&default_stream};
uint64_t issued;
cudaError_t last_error;
std::map<const char *, size_t> pinned;
std::map<const void *, int> shared_limits;
cudaError_t broken;             /* a kernel has failed: from now on every call says so */

cudaError_t error(cudaError_t e) { return e == cudaSuccess ? e : last_error = e; }

cudaStream_t stream_of(cudaStream_t s) { return !s || s == cudaStreamLegacy ? &default_stream : s; }

/* ---------------------------------------------------------------- doing the work */
void finish_until(cudaStream_t stream, uint64_t number);

void finish_front(cudaStream_t stream) {
    Item item = std::move(stream->items.front());
    stream->items.pop_front();
    if (stream == &default_stream) {
        for (cudaStream_t other : streams)
            if (other != stream && other->blocking) finish_until(other, item.number);
    } else if (stream->blocking) {
        finish_until(&default_stream, item.number);
    }
    if (item.after) finish_until(item.after, item.after_number);
    if (item.work) item.work();
}

void finish_until(cudaStream_t stream, uint64_t number) {
    while (!stream->items.empty() && stream->items.front().number <= number) finish_front(stream);
}

void finish(cudaStream_t stream, uint64_t number) {
    open_memory();
    finish_until(stream, number);
    close_memory();
}

void finish_all(void) {
    open_memory();
    for (cudaStream_t stream : streams) finish_until(stream, issued);
    close_memory();
}

bool capturing(void) {
    for (cudaStream_t s : streams)
        if (s->capture) return s->capture->broken = true;
    return false;
}

void issue(cudaStream_t s, Work work, cudaStream_t after = nullptr, uint64_t after_number = 0) {
    s = stream_of(s);
    if (s->capture) s->capture->works.push_back(std::move(work));
    else s->items.push_back({++issued, std::move(work), after, after_number});
}

/* ---------------------------------------------------------------- copies */
bool is_pinned(const void *p, size_t bytes) {
    auto after = pinned.upper_bound((const char *)p);
    if (after == pinned.begin()) return false;
    --after;
    return (const char *)p + bytes <= after->first + after->second;
}

struct Rectangle { char *to; size_t to_pitch; const char *from; size_t from_pitch, width, height; };

/* Both ends are what kind says they are. */
void check_ends(const Rectangle &r, cudaMemcpyKind kind, const char *call) {
    bool to = in_device_space(r.to), from = in_device_space(r.from);
    const char *wrong = nullptr;
    if (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) wrong = to ? nullptr : "to host memory";
    else if (kind != cudaMemcpyDefault && to) wrong = "to device memory";
    if (wrong) fail("%s %s (%p), which its kind denies", call, wrong, (void *)r.to);
    if (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice) wrong = from ? nullptr : "from host memory";
    else if (kind != cudaMemcpyDefault && from) wrong = "from device memory";
    if (wrong) fail("%s %s (%p), which its kind denies", call, wrong, (const void *)r.from);
}

void check_live(const void *p, size_t pitch, size_t width, size_t height) {
    if (in_device_space(p) && !on_device(p, pitch * (height - 1) + width))
        fail("a copy touches %zu bytes at %p: not all of it is device memory", pitch * (height - 1) + width, p);
}

#ifdef __SANITIZE_ADDRESS__
/* The sanitizer knows bounds that are for kernels only. */
__attribute__((no_sanitize("address"))) void move_bytes(char *to, const char *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) ((volatile char *)to)[i] = from[i];
}
__attribute__((no_sanitize("address"))) void fill_bytes(char *to, int value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) ((volatile char *)to)[i] = (char)value;
}
#else
void move_bytes(char *to, const char *from, size_t bytes) { memmove(to, from, bytes); }
void fill_bytes(char *to, int value, size_t bytes) { memset(to, value, bytes); }
#endif

void copy_now(const Rectangle &r) {
    check_live(r.to, r.to_pitch, r.width, r.height);
    check_live(r.from, r.from_pitch, r.width, r.height);
    for (size_t i = 0; i < r.height; i++) {
        char *to = r.to + i * r.to_pitch;
        const char *from = r.from + i * r.from_pitch;
        MU_CHECK_IF(if (in_device_space(from)) check_copied_from(from, r.width);)
        move_bytes(to, from, r.width);
        MU_CHECK_IF(if (in_device_space(to)) check_copied_to(to, r.width);)
    }
}

/* From pageable memory the data is taken at once; into it, the call waits for the stream. Both hold up the host. */
cudaError_t copy_async(Rectangle r, cudaMemcpyKind kind, cudaStream_t stream) {
    set_up();
    if (!r.width || !r.height) return cudaSuccess;
    check_ends(r, kind, "cudaMemcpyAsync");
    bool from_pageable = !in_device_space(r.from) && !is_pinned(r.from, r.from_pitch * (r.height - 1) + r.width);
    bool to_pageable = !in_device_space(r.to) && !is_pinned(r.to, r.to_pitch * (r.height - 1) + r.width);
    if ((from_pageable || to_pageable) && stream_of(stream)->capture) {
        stream_of(stream)->capture->broken = true;
        return error(cudaErrorStreamCaptureUnsupported);
    }
    if (from_pageable) {
        auto staged = std::make_shared<std::vector<char>>(r.width * r.height);
        copy_now({staged->data(), r.width, r.from, r.from_pitch, r.width, r.height});
        r.from = staged->data(), r.from_pitch = r.width;
        issue(stream, [r, staged] { copy_now(r); });
        count_wait();
    } else {
        issue(stream, [r] { copy_now(r); });
    }
    return to_pageable ? cudaStreamSynchronize(stream) : cudaSuccess;
}

cudaError_t copy_blocking(Rectangle r, cudaMemcpyKind kind) {
    set_up();
    if (!r.width || !r.height) return cudaSuccess;
    check_ends(r, kind, "cudaMemcpy");
    if (capturing()) return error(cudaErrorStreamCaptureImplicit);
    issue(nullptr, [r] { copy_now(r); });
    return cudaStreamSynchronize(nullptr);
}

}

void emu::enqueue(cudaStream_t stream, const char *name, Work work) {
    issue(stream, [=] {
        timespec start, end;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
        count_call(name);
        if (!broken) work();
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
        count_seconds((double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec));
    });
}

void emu::library_access(const char *name, const void *p, size_t bytes, Access how) {
    if (bytes && !on_device(p, bytes)) fail("%s touches %zu bytes at %p: not all of it is device memory", name, bytes, p);
    MU_CHECK_IF(check_library(name, p, bytes, how);)
    (void)how;
}

/* ---------------------------------------------------------------- devices */
static int driver_version(void) { return (int)from_environment("MUSTER_EMULATED_DRIVER", CUDART_VERSION); }
static int processors(void) { return (int)from_environment("MUSTER_EMULATED_SMS", 4); }

static cudaError_t available(void) {
    set_up();
    if (broken) return broken;
    if (driver_version() < CUDART_VERSION / 1000 * 1000) return cudaErrorInsufficientDriver;
    return devices ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDeviceCount(int *count) {
    cudaError_t e = available();
    *count = e == cudaSuccess ? devices : 0;
    return error(e);
}
cudaError_t cudaSetDevice(int device) {
    if (available() != cudaSuccess) return error(available());
    if (device < 0 || device >= devices) return error(cudaErrorInvalidDevice);
    this_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = this_device;
    return error(available());
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (available() != cudaSuccess || device < 0 || device >= devices) return error(cudaErrorInvalidDevice);
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = max_threads; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = default_shared; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMultiProcessorCount: *value = processors(); break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrComputeCapabilityMajor: *value = (int)from_environment("MUSTER_EMULATED_CAPABILITY", 9); break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = max_shared + 1024; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = max_shared; break;
        default: return error(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (available() != cudaSuccess || device < 0 || device >= devices) return error(cudaErrorInvalidDevice);
    size_t left;
    *p = {};
    snprintf(p->name, sizeof p->name, "emulated device %d", device);
    memory_left(&left, &p->totalGlobalMem);
    p->sharedMemPerBlock = default_shared;
    p->sharedMemPerMultiprocessor = max_shared + 1024;
    p->sharedMemPerBlockOptin = max_shared;
    p->regsPerBlock = 65536, p->warpSize = 32, p->maxThreadsPerBlock = max_threads;
    p->maxThreadsPerMultiProcessor = 2048, p->major = 9, p->minor = 0, p->multiProcessorCount = processors();
    p->l2CacheSize = 50 << 20, p->pciBusID = device + 1;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = devices ? driver_version() : 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) {
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }

static const struct { cudaError_t error; const char *name, *text; } errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit", "operation would make the legacy stream depend on a capturing blocking stream"},
};
const char *cudaGetErrorName(cudaError_t error) {
    for (auto &e : errors)
        if (e.error == error) return e.name;
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t error) {
    for (auto &e : errors)
        if (e.error == error) return e.text;
    return "unrecognized error code";
}

/* ---------------------------------------------------------------- memory */
cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    if (available() != cudaSuccess) return error(available());
    memory_left(left, total);
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **p, size_t bytes) {
    if (available() != cudaSuccess) return error(available());
    return error(allocate(p, bytes));
}
cudaError_t cudaFree(void *p) {
    if (!p) return cudaSuccess;
    cudaError_t e = cudaDeviceSynchronize();
    return e != cudaSuccess ? e : error(release(p));
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) {
    count_allocation();
    if (available() != cudaSuccess) return error(available());
    if (posix_memalign(p, 4096, bytes ? bytes : 1)) return error(cudaErrorMemoryAllocation);
    pinned[(const char *)*p] = bytes;
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
cudaError_t cudaFreeHost(void *p) {
    if (!p) return cudaSuccess;
    if (!pinned.count((const char *)p)) return error(cudaErrorInvalidValue);
    cudaError_t e = cudaDeviceSynchronize();
    pinned.erase((const char *)p);
    free(p);
    return e;
}
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    if (available() != cudaSuccess) return error(available());
    pinned[(const char *)p] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) {
    return pinned.erase((const char *)p) ? cudaSuccess : error(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy_async({(char *)to, bytes, (const char *)from, bytes, bytes, 1}, kind, stream);
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return copy_blocking({(char *)to, bytes, (const char *)from, bytes, bytes, 1}, kind);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    if (width > to_pitch || width > from_pitch) return error(cudaErrorInvalidValue);
    return copy_async({(char *)to, to_pitch, (const char *)from, from_pitch, width, height}, kind, stream);
}
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
    if (width > to_pitch || width > from_pitch) return error(cudaErrorInvalidValue);
    return copy_blocking({(char *)to, to_pitch, (const char *)from, from_pitch, width, height}, kind);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    set_up();
    if (!bytes) return cudaSuccess;
    if (!in_device_space(p)) return error(cudaErrorInvalidValue);
    issue(stream, [=] {
        check_live(p, bytes, bytes, 1);
        fill_bytes((char *)p, value, bytes);
        MU_CHECK_IF(check_copied_to(p, bytes);)
    });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes, nullptr); }

/* ---------------------------------------------------------------- streams and events */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    if (available() != cudaSuccess) return error(available());
    streams.push_back(*stream = new CUstream_st{!(flags & cudaStreamNonBlocking), {}, nullptr, false});
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    finish(stream, issued);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream) {
            streams.erase(streams.begin() + (ptrdiff_t)i);
            delete stream;
            return cudaSuccess;
        }
    return error(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (capturing()) return error(cudaErrorStreamCaptureUnsupported);
    count_wait();
    finish(stream_of(stream), issued);
    return error(broken);
}
cudaError_t cudaDeviceSynchronize(void) {
    if (available() != cudaSuccess) return error(available());
    if (capturing()) return error(cudaErrorStreamCaptureUnsupported);
    count_wait();
    finish_all();
    return error(broken);
}
/* Whoever asks again and again must see an end: the second question finds the work done. */
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    if (stream_of(stream)->items.empty()) return cudaSuccess;
    finish(stream_of(stream), issued);
    return cudaErrorNotReady;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    if (available() != cudaSuccess) return error(available());
    *event = new CUevent_st{nullptr, 0, nullptr};
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    stream = stream_of(stream);
    *event = {stream, ++issued, stream->capture};
    if (!stream->capture) stream->items.push_back({event->number, {}, nullptr, 0});
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    stream = stream_of(stream);
    if (event->capture && !stream->capture) stream->capture = event->capture;       /* the other stream joins */
    if (event->stream && !stream->capture) issue(stream, {}, event->stream, event->number);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (event->capture || capturing()) return error(cudaErrorStreamCaptureUnsupported);
    count_wait();
    if (event->stream) finish(event->stream, event->number);
    return error(broken);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (!event->stream || event->stream->items.empty() || event->stream->items.front().number > event->number)
        return cudaSuccess;
    finish(event->stream, event->number);
    return cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t) {
    *milliseconds = 0;          /* nothing here takes a device's time */
    return cudaSuccess;
}

/* ---------------------------------------------------------------- graphs */
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream || stream == cudaStreamLegacy || stream->capture) return error(cudaErrorStreamCaptureUnsupported);
    stream->capture = new CUgraph_st{{}, false};
    stream->origin = true;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (!stream->capture || !stream->origin) return error(cudaErrorInvalidValue);
    *graph = stream->capture;
    stream->origin = false;
    for (cudaStream_t s : streams)
        if (s->capture == *graph) s->capture = nullptr;
    if (!(*graph)->broken) return cudaSuccess;
    delete *graph;
    *graph = nullptr;
    return error(cudaErrorStreamCaptureInvalidated);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{graph->works};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    for (const Work &work : exec->works) issue(stream, work);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

/* ---------------------------------------------------------------- launches */
static size_t most_shared(const void *kernel) {
    auto limit = shared_limits.find(kernel);
    size_t all = limit == shared_limits.end() ? 0 : (size_t)limit->second + kernel_shared(kernel);
    return max(all, (size_t)default_shared);
}

cudaError_t mu_emulated_launch(const cudaLaunchConfig_t *config, const void *kernel, void (*invoke)(const void *),
                               void *arguments, void (*destroy)(void *), size_t bytes) {
    std::shared_ptr<void> kept(arguments, destroy);
    if (available() != cudaSuccess) return error(available());
    dim3 g = config->gridDim, b = config->blockDim;
    if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z || g.x > 0x7fffffff || g.y > 65535 || g.z > 65535 || b.z > 64 ||
        (unsigned long long)b.x * b.y * b.z > max_threads)
        return error(cudaErrorInvalidConfiguration);
    if (config->dynamicSmemBytes + kernel_shared(kernel) > most_shared(kernel)) return error(cudaErrorInvalidValue);
    Launch launch{kernel_name(kernel), kernel, invoke, kept, bytes, g, b, config->dynamicSmemBytes,
                  order_kind, order_seed};
    issue(config->stream, [launch] {
        const char *fails = getenv("MUSTER_EMULATED_FAULT");
        if (fails && launch.name.rfind(fails, 0) == 0) broken = cudaErrorLaunchFailure;
        if (!broken) run(launch);
    });
    return cudaSuccess;
}

cudaError_t mu_emulated_function_limit(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value + kernel_shared(kernel) > max_shared) return error(cudaErrorInvalidValue);
    shared_limits[kernel] = value;
    return cudaSuccess;
}

cudaError_t mu_emulated_function_attributes(cudaFuncAttributes *attributes, const void *kernel) {
    *attributes = {};
    attributes->sharedSizeBytes = kernel_shared(kernel);
    attributes->maxThreadsPerBlock = max_threads;
    attributes->maxDynamicSharedSizeBytes = (int)(most_shared(kernel) - kernel_shared(kernel));
    return cudaSuccess;
}

/* By threads and shared memory; registers are unknown here. */
cudaError_t mu_emulated_occupancy(int *blocks, const void *kernel, int threads, size_t shared_bytes) {
    size_t shared = kernel_shared(kernel) + shared_bytes + 1024;
    *blocks = (int)min((size_t)(2048 / max(threads, 1)), (size_t)(max_shared + 1024) / shared);
    return cudaSuccess;
}

/* ---------------------------------------------------------------- the driver's calls by name */
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *status) {
    static const std::map<std::string, void *> functions = {
        {"cuMemGetAllocationGranularity", (void *)cuMemGetAllocationGranularity},
        {"cuMemAddressReserve", (void *)cuMemAddressReserve}, {"cuMemAddressFree", (void *)cuMemAddressFree},
        {"cuMemCreate", (void *)cuMemCreate}, {"cuMemRelease", (void *)cuMemRelease},
        {"cuMemMap", (void *)cuMemMap}, {"cuMemUnmap", (void *)cuMemUnmap},
        {"cuMemSetAccess", (void *)cuMemSetAccess}, {"cuGetErrorString", (void *)cuGetErrorString},
    };
    auto found = functions.find(symbol);
    *function = found == functions.end() ? nullptr : found->second;
    if (status) *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
