/* cuda_runtime.h - what the emulation offers of CUDA's header of this name: the words of device code and the calls of
 * the runtime that muster uses. Threads are fibres (threads.cpp), streams are lists of work (streams.cpp). */
#ifndef MUSTER_EMULATED_CUDA_RUNTIME_H
#define MUSTER_EMULATED_CUDA_RUNTIME_H
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#define CUDART_VERSION 13000
#define __host__
#define __device__
#define __global__
#define __constant__ const
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#ifdef __SANITIZE_ADDRESS__
#define __shared__              /* plain variables get the sanitizer's red zones */
#else
#define __shared__ __thread     /* blocks run one after the other; as thread storage they can be told from host data */
#endif

/* ---------------------------------------------------------------- vectors */
/* A copy of a vector is one access on the device. Under the checks it must be one here too, so that the compiler
 * may not take it apart: it goes through a type that has no members. */
#define MU_VECTOR1(name, type) \
    struct name { type x; }; \
    static inline name make_##name(type x) { return {x}; }
#ifdef MU_EMULATION_CHECKED
#define MU_VECTOR_COPY(name, bytes) \
    typedef char whole __attribute__((vector_size(bytes), may_alias)); \
    name() = default; \
    __forceinline__ name(const name &o) { *(whole *)this = *(const whole *)&o; } \
    __forceinline__ name &operator=(const name &o) { *(whole *)this = *(const whole *)&o; return *this; }
#define MU_VECTOR2(name, type, alignment) \
    struct alignas(alignment) name { \
        type x, y; \
        MU_VECTOR_COPY(name, 2 * sizeof(type)) \
        __forceinline__ name(type a, type b) : x(a), y(b) {} \
    }; \
    static inline name make_##name(type x, type y) { return {x, y}; }
#define MU_VECTOR4(name, type, alignment) \
    struct alignas(alignment) name { \
        type x, y, z, w; \
        MU_VECTOR_COPY(name, 4 * sizeof(type)) \
        __forceinline__ name(type a, type b, type c, type d) : x(a), y(b), z(c), w(d) {} \
    }; \
    static inline name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }
#else
#define MU_VECTOR2(name, type, alignment) \
    struct alignas(alignment) name { type x, y; }; \
    static inline name make_##name(type x, type y) { return {x, y}; }
#define MU_VECTOR4(name, type, alignment) \
    struct alignas(alignment) name { type x, y, z, w; }; \
    static inline name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }
#endif
MU_VECTOR1(float1, float)
MU_VECTOR2(float2, float, 8)
MU_VECTOR4(float4, float, 16)
MU_VECTOR2(int2, int, 8)
MU_VECTOR4(int4, int, 16)
MU_VECTOR2(uint2, unsigned, 8)
MU_VECTOR4(uint4, unsigned, 16)
MU_VECTOR2(double2, double, 16)
MU_VECTOR2(longlong2, long long, 16)
MU_VECTOR2(ulonglong2, unsigned long long, 16)
MU_VECTOR2(ushort2, unsigned short, 4)
MU_VECTOR4(ushort4, unsigned short, 8)
MU_VECTOR4(uchar4, unsigned char, 4)
#undef MU_VECTOR1
#undef MU_VECTOR2
#undef MU_VECTOR4
struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

/* Constant while a thread runs; the scheduler defines and changes them. (No dim3, which has constructors: the compiler
 * would not take it for constant.) */
#ifndef MU_EMULATION_INTERNAL
extern const uint3 threadIdx, blockIdx, blockDim, gridDim;
#endif
constexpr int warpSize = 32;

/* ---------------------------------------------------------------- threads of a block */
/* Where a call stands in the source, for messages and to tell two barriers apart. */
#define MU_SITE_PARAMETERS const char *file = __builtin_FILE(), int line = __builtin_LINE()

int mu_emulated_barrier(int kind, int value, const char *file, int line);        /* kind: 0 plain, 1 or, 2 and, 3 count */
unsigned long long mu_emulated_shuffle(int kind, unsigned mask, unsigned long long value, int argument, int width,
                                       const char *file, int line);              /* kind: 0 idx, 1 xor, 2 up, 3 down */
unsigned mu_emulated_vote(int kind, unsigned mask, unsigned long long value, const char *file, int line);
void mu_emulated_syncwarp(unsigned mask, const char *file, int line);
void mu_emulated_fence(void);
[[noreturn]] void mu_emulated_trap(const char *what, const char *file, int line);

static inline void __syncthreads(MU_SITE_PARAMETERS) { mu_emulated_barrier(0, 0, file, line); }
static inline int __syncthreads_or(int p, MU_SITE_PARAMETERS) { return mu_emulated_barrier(1, p, file, line); }
static inline int __syncthreads_and(int p, MU_SITE_PARAMETERS) { return mu_emulated_barrier(2, p, file, line); }
static inline int __syncthreads_count(int p, MU_SITE_PARAMETERS) { return mu_emulated_barrier(3, p, file, line); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, MU_SITE_PARAMETERS) { mu_emulated_syncwarp(mask, file, line); }
static inline void __threadfence(void) { mu_emulated_fence(); }
static inline void __threadfence_block(void) { mu_emulated_fence(); }
static inline void __trap(MU_SITE_PARAMETERS) { mu_emulated_trap("__trap", file, line); }

template <typename T> static inline unsigned long long mu_emulated_bits(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}
template <typename T> static inline T mu_emulated_value(unsigned long long bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
#define MU_SHUFFLE(name, kind, parameter) \
    template <typename T> static inline T name(unsigned mask, T value, parameter, int width = 32, MU_SITE_PARAMETERS) { \
        return mu_emulated_value<T>( \
            mu_emulated_shuffle(kind, mask, mu_emulated_bits(value), (int)argument, width, file, line)); \
    }
MU_SHUFFLE(__shfl_sync, 0, int argument)
MU_SHUFFLE(__shfl_xor_sync, 1, int argument)
MU_SHUFFLE(__shfl_up_sync, 2, unsigned argument)
MU_SHUFFLE(__shfl_down_sync, 3, unsigned argument)
#undef MU_SHUFFLE

enum { MU_VOTE_BALLOT, MU_VOTE_MATCH, MU_VOTE_ADD, MU_VOTE_MIN, MU_VOTE_MAX, MU_VOTE_MIN_SIGNED, MU_VOTE_MAX_SIGNED,
       MU_VOTE_AND, MU_VOTE_OR, MU_VOTE_XOR };
static inline unsigned __ballot_sync(unsigned mask, int p, MU_SITE_PARAMETERS) {
    return mu_emulated_vote(MU_VOTE_BALLOT, mask, p != 0, file, line);
}
static inline int __any_sync(unsigned mask, int p, MU_SITE_PARAMETERS) {
    return mu_emulated_vote(MU_VOTE_BALLOT, mask, p != 0, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int p, MU_SITE_PARAMETERS) {
    return mu_emulated_vote(MU_VOTE_BALLOT, mask, p != 0, file, line) == mask;
}
template <typename T> static inline unsigned __match_any_sync(unsigned mask, T value, MU_SITE_PARAMETERS) {
    return mu_emulated_vote(MU_VOTE_MATCH, mask, mu_emulated_bits(value), file, line);
}
#define MU_REDUCE(name, type, kind) \
    static inline type name(unsigned mask, type value, MU_SITE_PARAMETERS) { \
        return (type)mu_emulated_vote(kind, mask, (unsigned)value, file, line); \
    }
MU_REDUCE(__reduce_add_sync, unsigned, MU_VOTE_ADD)
MU_REDUCE(__reduce_add_sync, int, MU_VOTE_ADD)
MU_REDUCE(__reduce_min_sync, unsigned, MU_VOTE_MIN)
MU_REDUCE(__reduce_min_sync, int, MU_VOTE_MIN_SIGNED)
MU_REDUCE(__reduce_max_sync, unsigned, MU_VOTE_MAX)
MU_REDUCE(__reduce_max_sync, int, MU_VOTE_MAX_SIGNED)
MU_REDUCE(__reduce_and_sync, unsigned, MU_VOTE_AND)
MU_REDUCE(__reduce_or_sync, unsigned, MU_VOTE_OR)
MU_REDUCE(__reduce_xor_sync, unsigned, MU_VOTE_XOR)
#undef MU_REDUCE

/* ---------------------------------------------------------------- atomics */
/* Blocks run one after the other and fibres change only where they wait: a plain update is atomic. The checks learn
 * of it from mu_emulated_atomic. */
#ifdef MU_EMULATION_CHECKED
void mu_emulated_atomic(void *address, int bytes);
#else
static inline void mu_emulated_atomic(void *, int) {}
#endif
#define MU_ATOMIC(name, type, result) \
    __attribute__((no_sanitize("thread"))) static inline type name(type *address, type value) { \
        mu_emulated_atomic(address, sizeof *address); \
        type old = *address; \
        *address = (result); \
        return old; \
    }
#define MU_ATOMICS_WHOLE(type) \
    MU_ATOMIC(atomicAdd, type, (type)(old + value)) \
    MU_ATOMIC(atomicMax, type, old > value ? old : value) \
    MU_ATOMIC(atomicMin, type, old < value ? old : value) \
    MU_ATOMIC(atomicAnd, type, old & value) \
    MU_ATOMIC(atomicOr, type, old | value) \
    MU_ATOMIC(atomicXor, type, old ^ value) \
    MU_ATOMIC(atomicExch, type, value) \
    __attribute__((no_sanitize("thread"))) \
    static inline type atomicCAS(type *address, type expected, type value) { \
        mu_emulated_atomic(address, sizeof *address); \
        type old = *address; \
        if (old == expected) *address = value; \
        return old; \
    }
MU_ATOMICS_WHOLE(int)
MU_ATOMICS_WHOLE(unsigned)
MU_ATOMICS_WHOLE(unsigned long long)
MU_ATOMIC(atomicSub, int, old - value)
MU_ATOMIC(atomicSub, unsigned, old - value)
MU_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
MU_ATOMIC(atomicAdd, float, old + value)
MU_ATOMIC(atomicAdd, double, old + value)
MU_ATOMIC(atomicExch, float, value)
#undef MU_ATOMICS_WHOLE
#undef MU_ATOMIC

/* ---------------------------------------------------------------- arithmetic */
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1u) << (31 - i);
    return reversed;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
#define MU_REINTERPRET(name, from, to) \
    static inline to name(from x) { static_assert(sizeof(from) == sizeof(to), ""); to y; memcpy(&y, &x, sizeof y); return y; }
MU_REINTERPRET(__float_as_int, float, int)
MU_REINTERPRET(__int_as_float, int, float)
MU_REINTERPRET(__float_as_uint, float, unsigned)
MU_REINTERPRET(__uint_as_float, unsigned, float)
MU_REINTERPRET(__double_as_longlong, double, long long)
MU_REINTERPRET(__longlong_as_double, long long, double)
#undef MU_REINTERPRET

/* The C library has, or may get, functions of these names. */
#define __expf expf
#define __logf logf
#define __sinf sinf
#define __cosf cosf
#define rsqrtf mu_emulated_rsqrtf
#define rsqrt mu_emulated_rsqrt
static inline float mu_emulated_rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double mu_emulated_rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __double2float_rn(double x) { return (float)x; }
static inline long long __double2ll_rn(double x) { return llrint(x); }
static inline long long __float2ll_rn(float x) { return llrintf(x); }
static inline int __float2int_rn(float x) { return (int)lrintf(x); }
#define MU_MIN_MAX(type) \
    static inline type min(type a, type b) { return b < a ? b : a; } \
    static inline type max(type a, type b) { return a < b ? b : a; }
MU_MIN_MAX(int)
MU_MIN_MAX(unsigned)
MU_MIN_MAX(long)
MU_MIN_MAX(unsigned long)
MU_MIN_MAX(long long)
MU_MIN_MAX(unsigned long long)
#undef MU_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

/* Loads and stores with a hint: the same as plain ones. */
template <typename T> static __forceinline__ T __ldg(const T *p) { return *p; }
template <typename T> static __forceinline__ T __ldcs(const T *p) { return *p; }
template <typename T> static __forceinline__ T __ldcg(const T *p) { return *p; }
template <typename T> static __forceinline__ void __stcs(T *p, T value) { *p = value; }
template <typename T> static __forceinline__ void __stcg(T *p, T value) { *p = value; }

size_t __cvta_generic_to_shared(const void *p);

/* ---------------------------------------------------------------- the runtime's calls */
typedef enum {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9, cudaErrorInvalidSymbol = 13, cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98, cudaErrorNoDevice = 100, cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400, cudaErrorNotReady = 600, cudaErrorIllegalAddress = 700,
    cudaErrorLaunchFailure = 719, cudaErrorNotSupported = 801, cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901, cudaErrorStreamCaptureImplicit = 906, cudaErrorUnknown = 999
} cudaError_t;
typedef enum {
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault
} cudaMemcpyKind;
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
#define cudaStreamLegacy ((cudaStream_t)1)
#define cudaStreamDefault 0
#define cudaStreamNonBlocking 1
#define cudaEventDefault 0
#define cudaEventBlockingSync 1
#define cudaEventDisableTiming 2
#define cudaHostAllocDefault 0
#define cudaHostAllocPortable 1
#define cudaHostRegisterDefault 0

typedef enum {
    cudaDevAttrMaxThreadsPerBlock = 1, cudaDevAttrMaxSharedMemoryPerBlock = 8, cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
} cudaDeviceAttr;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerMultiprocessor, sharedMemPerBlockOptin;
    int regsPerBlock, warpSize, maxThreadsPerBlock, maxThreadsPerMultiProcessor, major, minor, multiProcessorCount;
    int l2CacheSize, pciBusID, pciDeviceID, pciDomainID;
};
typedef enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 }
    cudaFuncAttribute;
struct cudaFuncAttributes { size_t sharedSizeBytes; int maxThreadsPerBlock, numRegs, maxDynamicSharedSizeBytes; };
typedef enum {
    cudaLaunchAttributeIgnore = 0, cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4
} cudaLaunchAttributeID;
typedef struct { cudaLaunchAttributeID id; union { int cooperative; char pad[64]; } val; } cudaLaunchAttribute;
typedef struct {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
} cudaLaunchConfig_t;
typedef enum { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed }
    cudaStreamCaptureMode;
typedef enum { cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound, cudaDriverEntryPointVersionNotSufficent }
    cudaDriverEntryPointQueryResult;
#define cudaEnableDefault 0

extern "C" {
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaMemGetInfo(size_t *free, size_t *total);

cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *p);

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream = 0);
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream = 0);
cudaError_t cudaMemset(void *p, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream = 0);

cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = 0);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags, cudaDriverEntryPointQueryResult *status = 0);
}
template <typename T> static inline cudaError_t cudaMalloc(T **p, size_t bytes) { return cudaMalloc((void **)p, bytes); }
template <typename T> static inline cudaError_t cudaMallocHost(T **p, size_t bytes) {
    return cudaMallocHost((void **)p, bytes);
}

/* ---------------------------------------------------------------- launches */
cudaError_t mu_emulated_launch(const cudaLaunchConfig_t *config, const void *kernel, void (*invoke)(const void *arguments),
                               void *arguments, void (*destroy)(void *), size_t bytes);
cudaError_t mu_emulated_function_limit(const void *kernel, cudaFuncAttribute attribute, int value);
cudaError_t mu_emulated_function_attributes(cudaFuncAttributes *attributes, const void *kernel);
cudaError_t mu_emulated_occupancy(int *blocks, const void *kernel, int threads, size_t shared_bytes);

/* A kernel and its arguments, copied when it was launched; invoke runs one thread. */
template <typename... P> struct mu_emulated_call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
    static void invoke(const void *self) {
        const auto *call = (const mu_emulated_call *)self;
        std::apply(call->kernel, call->arguments);
    }
    static void destroy(void *self) { delete (mu_emulated_call *)self; }
};
template <typename... P, typename... A>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...), A &&...arguments) {
    typedef mu_emulated_call<P...> call;
    call *copy = new call{kernel, std::tuple<P...>(std::forward<A>(arguments)...)};
    return mu_emulated_launch(config, (const void *)kernel, call::invoke, copy, call::destroy, sizeof *copy);
}
template <typename T> static inline cudaError_t cudaFuncSetAttribute(T *kernel, cudaFuncAttribute attribute, int value) {
    return mu_emulated_function_limit((const void *)kernel, attribute, value);
}
template <typename T> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, T *kernel) {
    return mu_emulated_function_attributes(attributes, (const void *)kernel);
}
template <typename T>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, T *kernel, int threads, size_t shared) {
    return mu_emulated_occupancy(blocks, (const void *)kernel, threads, shared);
}
#endif
