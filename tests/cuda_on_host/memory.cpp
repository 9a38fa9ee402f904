/* memory.cpp - device memory: a range of addresses of its own, out of reach but while kernels or copies run, and
 * filled with poison when it is handed out. Also the driver's calls that map memory to reserved addresses. */
#include "engine.h"

#include <map>
#include <signal.h>
#include <sys/mman.h>

extern "C" int MPIX_Query_cuda_support(void);

namespace emu {

int devices, this_device;

namespace {

constexpr size_t space = 16ull << 40, page = 4096, granule = 2ull << 20;

struct Piece { size_t bytes; int device; CUmemGenericAllocationHandle handle; };
struct Handle { size_t bytes; int device; bool mapped, released; };

char *base;
size_t limit;
int opened;
std::map<char *, size_t> reserved;                          /* ranges of addresses */
std::map<char *, Piece> live;                               /* memory that is there */
std::map<char *, size_t> bounds;                            /* operands that tests have named */
std::map<CUmemGenericAllocationHandle, Handle> handles;
std::vector<size_t> used;                                   /* by device */

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

char *reserve(size_t bytes, size_t alignment) {
    char *place = base;
    for (auto &[start, size] : reserved) {
        if (place + bytes <= start) break;
        place = base + round_up((size_t)(start + size - base), alignment);
    }
    if (place + bytes > base + space) return nullptr;
    reserved[place] = bytes;
    return place;
}

void protect(char *p, size_t bytes, int how) {
    if (mprotect(p, round_up(bytes, page), how) != 0) fail("mprotect of %zu bytes of device memory failed", bytes);
}

void bring_up(char *p, Piece piece) {
    live[p] = piece;
    protect(p, piece.bytes, PROT_READ | PROT_WRITE);
    madvise(p, piece.bytes, MADV_HUGEPAGE);         /* fewer pages to open and close */
    memset(p, 0xff, piece.bytes);
    MU_CHECK_IF(check_up(p, piece.bytes);)
    MU_ASAN_IF(ASAN_POISON_MEMORY_REGION(p + piece.bytes, round_up(piece.bytes, page) - piece.bytes);)
    if (!opened) protect(p, piece.bytes, PROT_NONE);
}

void take_down(std::map<char *, Piece>::iterator piece) {
    protect(piece->first, piece->second.bytes, PROT_NONE);
    MU_CHECK_IF(check_down(piece->first, piece->second.bytes);)
    MU_ASAN_IF(ASAN_UNPOISON_MEMORY_REGION(piece->first, round_up(piece->second.bytes, page));)
    madvise(piece->first, round_up(piece->second.bytes, page), MADV_DONTNEED);
    live.erase(piece);
}

bool fits(size_t bytes, int device) { return bytes <= limit - used[(size_t)device]; }

/* ---------------------------------------------------------------- who touches it by mistake */
struct sigaction before;

void touched(int signal, siginfo_t *info, void *context) {
    char *p = (char *)info->si_addr;
    if (p >= base && p < base + space) {
        const char *state = on_device(p, 1) ? "device memory" : "addresses of the device without memory";
        if (current) fail("touches %p: %s", (void *)p, state);
        if (!opened) fail("host code touches %p: %s", (void *)p, state);
        fail("a copy touches %p: %s", (void *)p, state);
    }
    if (current) fail("touches %p, which is no memory at all, or the stack of the thread is full", (void *)p);
    if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(signal, info, context);
    else sigaction(signal, &before, nullptr);       /* and it happens again */
}

/* Again and again: test frameworks put their own handlers in. */
void catch_faults(void) {
    static char stack[64 * 1024];
    stack_t alternative = {};
    struct sigaction now;
    sigaction(SIGSEGV, nullptr, &now);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == touched) return;
    alternative.ss_sp = stack, alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = touched;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before);
}

void order_from_environment(void) {
    const char *value = getenv("MUSTER_EMULATED_ORDER");
    if (!value || !*value || !strcmp(value, "forward")) return;
    if (!strcmp(value, "backward")) mu_emulation_order(MU_EMULATION_BACKWARD, 0);
    else if (!strncmp(value, "shuffled", 8)) mu_emulation_order(MU_EMULATION_SHUFFLED, value[8] == ':' ? strtoull(value + 9, nullptr, 0) : 1);
    else fail("MUSTER_EMULATED_ORDER=%s is none of forward, backward, shuffled[:SEED]", value);
}

}

unsigned long long from_environment(const char *name, unsigned long long otherwise) {
    const char *value = getenv(name);
    if (!value || !*value) return otherwise;
    char *end;
    unsigned long long n = strtoull(value, &end, 0);
    if (*end) fail("%s=%s is no number", name, value);
    return n;
}

static void report_at_exit(void) {
    FILE *to = fopen(getenv("MUSTER_EMULATED_REPORT"), "w");
    if (!to) return perror("MUSTER_EMULATED_REPORT");
    mu_emulation_report(to);
    fclose(to);
}

void set_up(void) {
    if (base) return;
    base = (char *)mmap(nullptr, space, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) fail("no addresses for device memory");
    devices = (int)from_environment("MUSTER_EMULATED_DEVICES", 1);
    limit = from_environment("MUSTER_EMULATED_BYTES", 4ull << 30);
    used.assign((size_t)devices + 1, 0);
    if (MPIX_Query_cuda_support()) open_memory();           /* for good: MPI reads it at any time */
    order_from_environment();
    if (getenv("MUSTER_EMULATED_REPORT")) counting = !atexit(report_at_exit);
    MU_CHECK_IF(check_set_up(base, base + space);)
}

bool on_device(const void *p, size_t bytes) {
    auto after = live.upper_bound((char *)p);
    if (after == live.begin()) return false;
    auto &[start, piece] = *--after;
    if ((const char *)p + bytes <= start + piece.bytes) return true;
    auto next = std::next(after);       /* mappings may follow one another without a gap */
    return (char *)p < start + piece.bytes && next != live.end() && next->first == start + piece.bytes &&
           on_device(next->first, bytes - (size_t)(next->first - (const char *)p));
}

static bool allocated(char *p) { return live.count(p) && !live[p].handle; }

std::string device_name(const void *p) {
    auto name = [&](const char *start, size_t bytes, const char *what) {
        return text("byte %zu of the %zu %s at %p", (size_t)((const char *)p - start), bytes, what, (const void *)start);
    };
    auto bound = bounds.upper_bound((char *)p);
    if (bound != bounds.begin() && (char *)p < std::prev(bound)->first + std::prev(bound)->second)
        return name(std::prev(bound)->first, std::prev(bound)->second, "of an operand");
    auto range = reserved.upper_bound((char *)p);
    if (range != reserved.begin() && (char *)p < std::prev(range)->first + std::prev(range)->second)
        return allocated(std::prev(range)->first) ? name(std::prev(range)->first, live[std::prev(range)->first].bytes, "allocated")
                                                  : name(std::prev(range)->first, std::prev(range)->second, "reserved");
    return text("%p, which no allocation has", p);
}

bool in_device_space(const void *p) { return (const char *)p >= base && (const char *)p < base + space; }

void open_memory(void) {
    if (opened++) return;
    catch_faults();
    for (auto &[p, piece] : live) protect(p, piece.bytes, PROT_READ | PROT_WRITE);
}

void close_memory(void) {
    if (--opened) return;
    for (auto &[p, piece] : live) protect(p, piece.bytes, PROT_NONE);
}

cudaError_t allocate(void **p, size_t bytes) {
    *p = nullptr;
    count_allocation();
    if (!bytes) return cudaSuccess;
    size_t counted = round_up(bytes, 512);
    if (!fits(counted, this_device)) return cudaErrorMemoryAllocation;
    char *place = reserve(round_up(bytes, page) + page, page);      /* an empty page behind each */
    if (!place) return cudaErrorMemoryAllocation;
    used[(size_t)this_device] += counted;
    bring_up(place, {bytes, this_device, 0});
    *p = place;
    return cudaSuccess;
}

cudaError_t release(void *p) {
    auto piece = live.find((char *)p);
    if (piece == live.end() || piece->second.handle) return cudaErrorInvalidValue;
    used[(size_t)piece->second.device] -= round_up(piece->second.bytes, 512);
    take_down(piece);
    reserved.erase((char *)p);
    return cudaSuccess;
}

void memory_left(size_t *left, size_t *total) {
    *left = limit - used[(size_t)this_device];
    *total = limit;
}

}

using namespace emu;

/* Takes the place of the MPI library's own: an MPI that knows GPUs is one that may touch their memory. */
int MPIX_Query_cuda_support(void) { return from_environment("MUSTER_EMULATED_MPI", 0) != 0; }

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *, CUmemAllocationGranularity_flags) {
    *granularity = granule;
    return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr *p, size_t bytes, size_t alignment, CUdeviceptr, unsigned long long) {
    set_up();
    if (!bytes || bytes % granule) return CUDA_ERROR_INVALID_VALUE;
    *p = (CUdeviceptr)reserve(bytes, max(alignment, granule));
    return *p ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemAddressFree(CUdeviceptr p, size_t bytes) {
    auto range = reserved.find((char *)p);
    if (range == reserved.end() || range->second != bytes) return CUDA_ERROR_INVALID_VALUE;
    auto inside = live.lower_bound((char *)p);
    if (inside != live.end() && inside->first < (char *)p + bytes) return CUDA_ERROR_INVALID_VALUE;
    reserved.erase(range);
    return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *property,
                     unsigned long long) {
    static CUmemGenericAllocationHandle last;
    set_up();
    count_allocation();
    int device = property->location.id;
    if (!bytes || bytes % granule || property->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
        property->location.type != CU_MEM_LOCATION_TYPE_DEVICE || device < 0 || device >= devices)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fits(bytes, device)) return CUDA_ERROR_OUT_OF_MEMORY;
    used[(size_t)device] += bytes;
    handles[*handle = ++last] = {bytes, device, false, false};
    return CUDA_SUCCESS;
}

static void forget_if_unused(CUmemGenericAllocationHandle handle) {
    Handle &h = handles[handle];
    if (h.mapped || !h.released) return;
    used[(size_t)h.device] -= h.bytes;
    handles.erase(handle);
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    if (!handles.count(handle) || handles[handle].released) return CUDA_ERROR_INVALID_VALUE;
    handles[handle].released = true;
    forget_if_unused(handle);
    return CUDA_SUCCESS;
}

/* The memory becomes usable with cuMemSetAccess; each handle is mapped once and whole. */
CUresult cuMemMap(CUdeviceptr p, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long) {
    auto found = handles.find(handle);
    auto range = reserved.upper_bound((char *)p);
    if (found == handles.end() || found->second.mapped || offset || found->second.bytes != bytes || p % granule ||
        range == reserved.begin())
        return CUDA_ERROR_INVALID_VALUE;
    --range;
    if ((char *)p + bytes > range->first + range->second || on_device((void *)p, 1)) return CUDA_ERROR_INVALID_VALUE;
    found->second.mapped = true;
    live[(char *)p] = {bytes, found->second.device, handle};
    return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr p, size_t bytes, const CUmemAccessDesc *access, size_t count) {
    char *end = (char *)p + bytes;
    if (count != 1 || access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return CUDA_ERROR_INVALID_VALUE;
    for (char *at = (char *)p; at < end;) {
        auto piece = live.find(at);
        if (piece == live.end() || at + piece->second.bytes > end) return CUDA_ERROR_INVALID_VALUE;
        bring_up(at, piece->second);
        at += piece->second.bytes;
    }
    return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr p, size_t bytes) {
    cudaDeviceSynchronize();
    char *end = (char *)p + bytes;
    for (char *at = (char *)p; at < end;) {
        auto piece = live.find(at);
        if (piece == live.end() || !piece->second.handle || at + piece->second.bytes > end) return CUDA_ERROR_INVALID_VALUE;
        CUmemGenericAllocationHandle handle = piece->second.handle;
        at += piece->second.bytes;
        take_down(piece);
        handles[handle].mapped = false;
        forget_if_unused(handle);
    }
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_SUCCESS ? "no error" : error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory"
          : error == CUDA_ERROR_NO_DEVICE ? "no CUDA-capable device is detected" : "invalid argument";
    return CUDA_SUCCESS;
}

/* ---------------------------------------------------------------- finer bounds */
/* All memory in the stretch of addresses that p lies in, or in each one where an operand was named. */
static void set_outside(std::map<char *, size_t>::iterator range, bool outside) {
    char *end = range->first + range->second;
    for (auto piece = live.lower_bound(range->first); piece != live.end() && piece->first < end; ++piece) {
        MU_CHECK_IF(check_outside(piece->first, piece->second.bytes, outside);)
        MU_ASAN_IF(outside ? ASAN_POISON_MEMORY_REGION(piece->first, piece->second.bytes)
                           : ASAN_UNPOISON_MEMORY_REGION(piece->first, piece->second.bytes);)
        (void)outside;
    }
}

static std::map<char *, size_t>::iterator range_of(const void *p) {
    auto range = reserved.upper_bound((char *)p);
    if (range == reserved.begin() || !in_device_space(p)) fail("bounds are set at %p, where no device memory is", p);
    return std::prev(range);
}

void mu_emulation_bounds(const void *device, size_t bytes) {
    auto range = range_of(device);
    auto first = bounds.lower_bound(range->first);
    if (first == bounds.end() || first->first >= range->first + range->second) set_outside(range, true);
    bounds[(char *)device] = bytes;
    MU_CHECK_IF(check_outside(device, bytes, false);)
    MU_ASAN_IF(ASAN_UNPOISON_MEMORY_REGION(device, bytes);)
}

void mu_emulation_bounds_clear(void) {
    for (auto &[p, bytes] : bounds) set_outside(range_of(p), false);
    bounds.clear();
}

void mu_emulation_forget(void *device, size_t bytes) {
    cudaDeviceSynchronize();
    if (!on_device(device, bytes)) fail("%zu bytes at %p are no device memory", bytes, device);
    open_memory();
    memset(device, 0xff, bytes);
    close_memory();
    MU_CHECK_IF(check_forget(device, bytes);)
}

void mu_emulation_forget_all(void) {
    cudaDeviceSynchronize();
    MU_CHECK_IF(for (auto &[p, piece] : live) check_forget(p, piece.bytes);)
}
