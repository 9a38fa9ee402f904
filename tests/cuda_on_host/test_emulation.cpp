/* test_emulation.cpp - the emulation of CUDA: right samples give the right results and the counts that can be told by
 * hand; one planted mistake of each kind ends a child process with the message that names it. */
#include "samples.cu"

#include "emulation.h"

#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
}

#define OK(call) assert_int_equal(call, cudaSuccess)

#ifdef MU_EMULATION_CHECKED
enum { CHECKED = 1 };
#else
enum { CHECKED = 0 };
#endif
#ifdef __SANITIZE_ADDRESS__
enum { ASAN = 1 };
#else
enum { ASAN = 0 };
#endif

/* ---------------------------------------------------------------- tools */
template <typename... P, typename... A> static void start(dim3 blocks, dim3 threads, size_t shared, void (*kernel)(P...), A... args) {
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks, config.blockDim = threads, config.dynamicSmemBytes = shared;
    OK(cudaLaunchKernelEx(&config, kernel, args...));
}

/* n values on the device, with values or with none yet. */
template <typename T> static T *device(size_t n) {
    T *p;
    OK(cudaMalloc(&p, n * sizeof(T)));
    return p;
}
template <typename T> static T *device(const std::vector<T> &values) {
    T *p = device<T>(values.size());
    OK(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
template <typename T> static std::vector<T> host(const T *p, size_t n) {
    std::vector<T> values(n);
    OK(cudaMemcpy(values.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
}
static std::vector<float> counting(int n) {
    std::vector<float> values((size_t)n);
    for (int i = 0; i < n; i++) values[(size_t)i] = (float)i;
    return values;
}
static float random_value(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (1 << 23) - 1.0f;
}

/* Runs body in a child, which must end with `status` after a message that contains `text`. */
static void must_end(const char *text, int status, void (*body)(void)) {
    int ends[2];
    char said[16384];
    size_t n = 0;
    fflush(nullptr);
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        dup2(ends[1], 2);
        close(ends[0]);
        body();
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t got; n + 1 < sizeof said && (got = read(ends[0], said + n, sizeof said - 1 - n)) > 0;) n += (size_t)got;
    said[n] = 0;
    close(ends[0]);
    int result;
    waitpid(child, &result, 0);
    if (!strstr(said, text)) fprintf(stderr, "expected \"%s\", got: %s\n", text, said);
    assert_non_null(strstr(said, text));
    assert_true(WIFEXITED(result));
    assert_int_equal(WEXITSTATUS(result), status);
}
static void must_fail(const char *text, void (*body)(void)) { must_end(text, 70, body); }
static void only_checks_fail(const char *text, void (*body)(void)) {
    if (CHECKED) must_fail(text, body);
}

/* ---------------------------------------------------------------- right samples */
static void test_memory_traffic(void **) {
    const int n = 1024;
    float *x = device(counting(n * 8)), *y = device<float>((size_t)n);
    mu_emulation_counters_reset();
    start(dim3(n / 256), dim3(256), 0, scale, x, y, n - 8);
    OK(cudaDeviceSynchronize());
    mu_emulation_counters c = mu_emulation_counters_of("scale");
    assert_int_equal(c.launches, 1);
    assert_int_equal(c.blocks, 4);
    assert_int_equal(c.threads, 1024);
    std::vector<float> got = host(y, (size_t)n - 8);
    for (int i = 0; i < n - 8; i++) assert_true(got[(size_t)i] == 2.0f * (float)i);
    if (!CHECKED) return;
    assert_int_equal(c.accesses, 2 * 32);           /* a read and a write of each of 32 warps */
    assert_int_equal(c.uncoalesced, 0);
    assert_int_equal(c.read_bytes, 4 * (n - 8));
    assert_int_equal(c.read_sectors, (n - 8) / 8);
    assert_int_equal(c.read_footprint, 4 * (n - 8));
    assert_int_equal(c.written_sectors, (n - 8) / 8);
    assert_int_equal(c.written_footprint, 4 * (n - 8));

    start(dim3(1), dim3(64), 0, read_apart, x, y, 2, 0);       /* each warp: 256 bytes for 128 */
    start(dim3(1), dim3(64), 0, read_apart, x, y, 1, 1);       /* a stretch, wherever it begins */
    start(dim3(1), dim3(64), 0, read_apart, x, y, 0, 9);       /* everybody reads the same */
    OK(cudaDeviceSynchronize());
    c = mu_emulation_counters_of("read_apart");
    assert_int_equal(c.launches, 3);
    assert_int_equal(c.accesses, 3 * 4);
    assert_int_equal(c.uncoalesced, 2);
    assert_int_equal(c.read_sectors, 2 * (8 + 5 + 1));
    assert_int_equal(c.excess_sectors, 2 * 4);
    assert_int_equal(c.read_bytes, 2 * (128 + 128 + 4));
    assert_int_equal(c.read_footprint, 256 + 256 + 4);
    OK(cudaFree(x));
    OK(cudaFree(y));
}

static void test_vectors_are_one_access(void **) {
    float *x = device(counting(256)), *y = device<float>(256);
    mu_emulation_counters_reset();
    start(dim3(1), dim3(64), 0, copy_float4, (const float4 *)x, (float4 *)y);
    std::vector<float> got = host(y, 256);
    for (int i = 0; i < 256; i++) assert_true(got[(size_t)i] == (float)i + (i % 4 == 0));
    std::vector<__nv_bfloat162> pairs(64);
    for (int i = 0; i < 64; i++) pairs[(size_t)i] = __floats2bfloat162_rn((float)i, (float)-i);
    __nv_bfloat162 *p = device(pairs), *q = device<__nv_bfloat162>(64);
    start(dim3(2), dim3(32), 0, copy_pairs, p, q);
    pairs = host(q, 64);
    for (int i = 0; i < 64; i++) {
        assert_true(__low2float(pairs[(size_t)i]) == (float)-i);
        assert_true(__high2float(pairs[(size_t)i]) == (float)i);
    }
    if (CHECKED) {
        mu_emulation_counters c = mu_emulation_counters_of("copy_float4");
        assert_int_equal(c.accesses, 4);
        assert_int_equal(c.uncoalesced, 0);
        assert_int_equal(c.read_sectors, 32);
        c = mu_emulation_counters_of("copy_pairs");
        assert_int_equal(c.accesses, 4);
        assert_int_equal(c.read_sectors, 8);
        assert_int_equal(c.written_bytes, 256);
    }
    for (void *memory : {(void *)x, (void *)y, (void *)p, (void *)q}) OK(cudaFree(memory));
}

static void test_bank_conflicts(void **) {
    float *x = device(counting(1024)), *y = device<float>(1024);
    mu_emulation_counters_reset();
    start(dim3(1), dim3(32, 32), 0, transpose<32>, x, y);
    start(dim3(1), dim3(32, 32), 0, transpose<33>, x, y);
    std::vector<float> got = host(y, 1024);
    for (int i = 0; i < 1024; i++) assert_true(got[(size_t)i] == (float)(i % 32 * 32 + i / 32));
    if (CHECKED) {
        mu_emulation_counters c = mu_emulation_counters_of("transpose<32>");
        assert_int_equal(c.shared_accesses, 64);
        assert_int_equal(c.bank_conflicts, 32 * 31);        /* each warp's column lies in one bank */
        assert_int_equal(mu_emulation_counters_of("transpose<33>").bank_conflicts, 0);
        for (int apart = 1; apart <= 4; apart *= 2) {       /* 8 lanes at a time: 128 bytes, or two or four times that */
            mu_emulation_counters_reset();
            start(dim3(1), dim3(32), 32 * 16 * 4, shared_float4, y, apart);
            OK(cudaDeviceSynchronize());
            c = mu_emulation_counters_of("shared_float4");
            assert_int_equal(c.shared_accesses, 2);
            assert_int_equal(c.bank_conflicts, 2 * 4 * (apart - 1));
        }
    }
    OK(cudaFree(x));
    OK(cudaFree(y));
}

/* The same bits in any order of threads. */
static void test_orders(void **) {
    float *x = device(counting(1000)), *y = device<float>(1);
    int *z = device<int>(64);
    const mu_emulation_order_kind kinds[] = {MU_EMULATION_FORWARD, MU_EMULATION_BACKWARD, MU_EMULATION_SHUFFLED};
    for (mu_emulation_order_kind kind : kinds)
        for (uint64_t seed = 1; seed <= 3; seed++) {
            mu_emulation_order(kind, seed);
            start(dim3(1), dim3(256), 0, sum<256>, x, y, 1000);
            start(dim3(1), dim3(64), 0, hand_on<true>, z);
            assert_true(host(y, 1)[0] == 499500.0f);
            std::vector<int> got = host(z, 64);
            for (int i = 0; i < 64; i++) assert_int_equal(got[(size_t)i], (i + 1) % 64 + 1);
        }
    mu_emulation_order(MU_EMULATION_FORWARD, 0);
    OK(cudaFree(x));
    OK(cudaFree(y));
    OK(cudaFree(z));
}

static void check_votes(const std::vector<unsigned> &got) {
    unsigned thirds = 0;
    for (int i = 0; i < 32; i += 3) thirds |= 1u << i;
    for (unsigned lane = 0; lane < 32; lane++) {
        assert_int_equal(got[lane], thirds);
        assert_int_equal(got[32 + lane], 0xffu << lane / 8 * 8);
        assert_int_equal(got[64 + lane], 496);
        assert_int_equal((int)got[96 + lane], 7 - 31);
        assert_int_equal(got[128 + lane], 31);
        assert_int_equal(got[160 + lane], 3);
        assert_int_equal(got[192 + lane], lane % 16 < 2 ? lane : lane - 2);
        assert_int_equal(got[224 + lane], lane > 28 ? lane : lane + 3);
        assert_int_equal(got[256 + lane], lane / 8 * 8 + 1);
        assert_int_equal(got[288 + lane], lane < 16 ? lane ^ 15 : 0xf0000u);
    }
}

static void test_votes(void **) {
    unsigned *y = device<unsigned>(320);
    int *z = device<int>(128);
    for (int backward = 0; backward < 2; backward++) {
        mu_emulation_order(backward ? MU_EMULATION_BACKWARD : MU_EMULATION_FORWARD, 0);
        start(dim3(1), dim3(32), 0, votes, y);
        check_votes(host(y, 320));
        start(dim3(1), dim3(64), 0, block_votes, z);
        std::vector<int> got = host(z, 128);
        for (size_t i = 0; i < 64; i++) {
            assert_int_equal(got[i], 13);
            assert_int_equal(got[64 + i], 2);
        }
    }
    mu_emulation_order(MU_EMULATION_FORWARD, 0);
    OK(cudaFree(y));
    OK(cudaFree(z));
}

static void test_atomics(void **) {
    std::vector<int> values(1000);
    for (size_t i = 0; i < values.size(); i++) values[i] = (int)(i * i % 8);
    int *x = device(values);
    unsigned *bins = device(std::vector<unsigned>(9));
    start(dim3(3), dim3(64), 0, histogram, x, bins, 1000);
    std::vector<unsigned> got = host(bins, 8), want(8);
    for (int v : values) want[(size_t)v]++;
    for (size_t i = 0; i < 8; i++) assert_int_equal(got[i], want[i]);

    float *f = device(counting(7)), *part = device<float>(7), *y = device<float>(1);
    start(dim3(7), dim3(32), 0, sum_of_blocks, f, part, bins + 8, y, 1);
    assert_true(host(y, 1)[0] == 21.0f);
    for (void *memory : {(void *)x, (void *)bins, (void *)f, (void *)part, (void *)y}) OK(cudaFree(memory));
}

/* ldmatrix, mma.sync and cp.async against a plain product. */
static void test_product(void **) {
    uint32_t state = 1;
    for (int turn = 0; turn < 20; turn++) {
        std::vector<__nv_bfloat16> a(256), b(128);
        for (auto &v : a) v = __float2bfloat16(random_value(&state));
        for (auto &v : b) v = __float2bfloat16(random_value(&state));
        __nv_bfloat16 *x = device(a), *y = device(b);
        float *c = device<float>(128);
        mu_emulation_counters_reset();
        start(dim3(1), dim3(32), 0, product, x, y, c);
        std::vector<float> got = host(c, 128);
        for (size_t i = 0; i < 16; i++)
            for (size_t j = 0; j < 8; j++) {
                double want = 0;
                for (size_t k = 0; k < 16; k++) want += (double)__bfloat162float(a[i * 16 + k]) * __bfloat162float(b[k * 8 + j]);
                assert_true(fabs(got[i * 8 + j] - want) < 1e-5);
            }
        mu_emulation_counters of = mu_emulation_counters_of("product");
        assert_int_equal(of.launches, 1);
        if (CHECKED) {
            assert_int_equal(of.shared_accesses, 4);        /* two copies arrive, two loads of matrices */
            assert_int_equal(of.bank_conflicts, 4);         /* rows of A, 48 bytes apart: good to load, not to write */
            assert_int_equal(of.read_bytes, 256 * 2 + 128 * 2);
        }
        for (void *memory : {(void *)x, (void *)y, (void *)c}) OK(cudaFree(memory));
    }
}

static void test_pipeline(void **) {
    float *x = device(counting(100)), *y = device<float>(160);
    start(dim3(1), dim3(32), 0, pipeline<1>, x, y, 100, 160);
    std::vector<float> got = host(y, 160);
    for (int i = 0; i < 160; i++) assert_true(got[(size_t)i] == (i < 100 ? (float)i : 0.0f));
    OK(cudaFree(x));
    OK(cudaFree(y));
}

/* Known answers: round to nearest, ties to even, infinity beyond the largest, NaN stays NaN. */
static void test_bf16(void **) {
    static const struct { uint32_t from; uint16_t to; } known[] = {
        {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80},
        {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82}, {0xbf818000, 0xbf82}, {0x3fffffff, 0x4000}, {0x00000001, 0x0000},
        {0x00008001, 0x0001}, {0x00018000, 0x0002}, {0x007fffff, 0x0080}, {0x7f7f7fff, 0x7f7f}, {0x7f7f8000, 0x7f80},
        {0x7f7fffff, 0x7f80}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fff}, {0xffc00000, 0x7fff},
    };
    for (auto &k : known) assert_int_equal(__bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(k.from))), k.to);
    for (uint32_t bits = 0; bits < 0x7f80; bits += 7)
        assert_int_equal(__bfloat16_as_ushort(__float2bfloat16(__bfloat162float(__ushort_as_bfloat16((unsigned short)bits)))), bits);
}

/* ---------------------------------------------------------------- streams */
/* What is not waited for has not happened. */
static void test_laziness(void **) {
    float *pinned, *x = device<float>(32);
    cudaStream_t stream;
    OK(cudaMallocHost(&pinned, 32 * sizeof(float)));
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (int i = 0; i < 32; i++) pinned[i] = 5.0f;
    mu_emulation_counters_reset();
    OK(cudaMemcpyAsync(x, pinned, 128, cudaMemcpyHostToDevice, stream));
    pinned[3] = 6.0f;                           /* too early: the copy has not read it */
    OK(cudaMemcpyAsync(pinned + 16, x, 64, cudaMemcpyDeviceToHost, stream));
    assert_true(pinned[19] == 5.0f);            /* read too early: the copy has not come */
    assert_int_equal(mu_emulation_host_waits(), 0);
    assert_int_equal(cudaStreamQuery(stream), cudaErrorNotReady);
    OK(cudaStreamSynchronize(stream));
    assert_true(pinned[19] == 6.0f);
    assert_int_equal(mu_emulation_host_waits(), 1);
    float pageable[4] = {1, 2, 3, 4};
    OK(cudaMemcpyAsync(x, pageable, sizeof pageable, cudaMemcpyHostToDevice, stream));
    assert_int_equal(mu_emulation_host_waits(), 2);
    pageable[0] = 9;                            /* was taken at once */
    OK(cudaMemcpyAsync(pageable, x, sizeof pageable, cudaMemcpyDeviceToHost, stream));
    assert_int_equal(mu_emulation_host_waits(), 3);
    assert_true(pageable[0] == 1.0f);
    assert_int_equal(mu_emulation_allocations(), 0);
    float *more;
    OK(cudaMalloc(&more, 4));
    OK(cudaFree(more));
    assert_int_equal(mu_emulation_allocations(), 1);
    OK(cudaStreamDestroy(stream));
    OK(cudaFreeHost(pinned));
    OK(cudaFree(x));
}

/* Two streams: the second sees what the first did up to the event, and nothing after it. */
static void test_events(void **) {
    float *x = device(std::vector<float>(1)), *pinned;
    cudaStream_t first, second;
    cudaEvent_t event;
    OK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    OK(cudaMallocHost(&pinned, sizeof(float)));
    cudaLaunchConfig_t config = {};
    config.gridDim = config.blockDim = dim3(1), config.stream = first;
    OK(cudaLaunchKernelEx(&config, add_to, x));
    OK(cudaEventRecord(event, first));
    OK(cudaLaunchKernelEx(&config, add_to, x));
    OK(cudaStreamWaitEvent(second, event, 0));
    OK(cudaMemcpyAsync(pinned, x, sizeof(float), cudaMemcpyDeviceToHost, second));
    OK(cudaStreamSynchronize(second));
    assert_true(*pinned == 1.0f);
    OK(cudaDeviceSynchronize());
    assert_true(host(x, 1)[0] == 2.0f);
    OK(cudaEventDestroy(event));
    OK(cudaStreamDestroy(first));
    OK(cudaStreamDestroy(second));
    OK(cudaFreeHost(pinned));
    OK(cudaFree(x));
}

static void test_graph(void **) {
    float *x = device(std::vector<float>(1));
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cudaLaunchConfig_t config = {};
    config.gridDim = config.blockDim = dim3(1), config.stream = stream;
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < 3; i++) OK(cudaLaunchKernelEx(&config, add_to, x));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph));
    OK(cudaStreamSynchronize(stream));
    assert_true(host(x, 1)[0] == 0.0f);         /* a capture runs nothing */
    OK(cudaGraphLaunch(exec, stream));
    OK(cudaGraphLaunch(exec, stream));
    OK(cudaStreamSynchronize(stream));
    assert_true(host(x, 1)[0] == 6.0f);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(graph));

    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    cudaGetLastError();
    OK(cudaStreamDestroy(stream));
    OK(cudaFree(x));
}

/* ---------------------------------------------------------------- memory */
static void test_virtual_memory(void **) {
    CUmemAllocationProp property = {};
    CUmemAccessDesc access = {};
    CUmemGenericAllocationHandle pages;
    CUdeviceptr base;
    size_t step, before, after, total;
    property.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    property.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location = property.location, access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    assert_int_equal(cuMemGetAllocationGranularity(&step, &property, CU_MEM_ALLOC_GRANULARITY_MINIMUM), CUDA_SUCCESS);
    assert_int_equal(cuMemAddressReserve(&base, 1024 * step, 0, 0, 0), CUDA_SUCCESS);
    OK(cudaMemGetInfo(&before, &total));
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(cuMemCreate(&pages, step, &property, 0), CUDA_SUCCESS);
        assert_int_equal(cuMemMap(base + i * step, step, 0, pages, 0), CUDA_SUCCESS);
        assert_int_equal(cuMemRelease(pages), CUDA_SUCCESS);
        assert_int_equal(cuMemSetAccess(base + i * step, step, &access, 1), CUDA_SUCCESS);
    }
    OK(cudaMemGetInfo(&after, &total));
    assert_int_equal(before - after, 2 * step);
    std::vector<float> values = counting(64);           /* across the border of two mappings */
    OK(cudaMemcpy((char *)base + step - 128, values.data(), 256, cudaMemcpyHostToDevice));
    assert_true(host((float *)((char *)base + step - 128), 64) == values);
    assert_int_equal(cuMemUnmap(base, 2 * step), CUDA_SUCCESS);
    assert_int_equal(cuMemAddressFree(base, 1024 * step), CUDA_SUCCESS);
    OK(cudaMemGetInfo(&after, &total));
    assert_int_equal(before, after);
}

static void test_refusals(void **) {
    size_t left, total;
    void *p;
    OK(cudaMemGetInfo(&left, &total));
    assert_int_equal(cudaMalloc(&p, left + 1), cudaErrorMemoryAllocation);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1), config.blockDim = dim3(1025);
    assert_int_equal(cudaLaunchKernelEx(&config, barriers_apart), cudaErrorInvalidConfiguration);
    config.blockDim = dim3(32), config.gridDim = dim3(0);
    assert_int_equal(cudaLaunchKernelEx(&config, barriers_apart), cudaErrorInvalidConfiguration);
    config.gridDim = dim3(1), config.dynamicSmemBytes = 48 * 1024 - 156;     /* with value[40] too much */
    assert_int_equal(cudaLaunchKernelEx(&config, shared_at, (float *)nullptr, 0), cudaErrorInvalidValue);
    assert_int_equal(cudaFuncSetAttribute(shared_at, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024), cudaErrorInvalidValue);
    OK(cudaFuncSetAttribute(dynamic_shared_at, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    cudaGetLastError();
}

/* In a process of its own, whose environment says what the machine is like. */
static void no_device(void) {
    int n;
    fputs(cudaGetErrorName(cudaGetDeviceCount(&n)), stderr);
}
static void a_kernel_fails(void) {
    float *x = device<float>(32);
    start(dim3(1), dim3(32), 0, write_at, x, 0);
    fputs(cudaGetErrorName(cudaDeviceSynchronize()), stderr);
    fputs(cudaGetErrorName(cudaDeviceSynchronize()), stderr);
}
static void test_machines(void **) {
    setenv("MUSTER_EMULATED_DRIVER", "12080", 1);
    must_end("cudaErrorInsufficientDriver", 0, no_device);
    unsetenv("MUSTER_EMULATED_DRIVER");
    setenv("MUSTER_EMULATED_FAULT", "write_at", 1);
    must_end("cudaErrorLaunchFailurecudaErrorLaunchFailure", 0, a_kernel_fails);
    unsetenv("MUSTER_EMULATED_FAULT");
}

/* ---------------------------------------------------------------- planted mistakes: order and races */
static void run(void) { OK(cudaDeviceSynchronize()); }

static std::vector<int> handed_on(mu_emulation_order_kind kind) {
    int *y = device<int>(64);
    mu_emulation_order(kind, 1);
    start(dim3(1), dim3(64), 0, hand_on<false>, y);
    mu_emulation_order(MU_EMULATION_FORWARD, 0);
    return host(y, 64);
}
static void no_barrier(void) { start(dim3(1), dim3(64), 0, hand_on<false>, device<int>(64)), run(); }
static void no_syncwarp(void) { start(dim3(1), dim3(32), 0, hand_on_in_warp<false>, device<int>(32)), run(); }
static void test_missing_barrier(void **) {
    if (!CHECKED) {     /* the order shows it, and the checks before that */
        assert_true(handed_on(MU_EMULATION_FORWARD) != handed_on(MU_EMULATION_BACKWARD));
        return;
    }
    must_fail("thread (1,0,0): race: writes byte 4 of shared value of hand_on<false>, which thread (0,0,0) read since the "
              "last barrier, in samples.cu:", no_barrier);
    must_fail("race: reads byte 0 of shared value of hand_on_in_warp<false>, which thread (0,0,0) wrote", no_syncwarp);
    int *y = device<int>(32);
    start(dim3(1), dim3(32), 0, hand_on_in_warp<true>, y);
    assert_int_equal(host(y, 32)[0], 31);
    OK(cudaFree(y));
}

static void two_blocks_add(void) { start(dim3(2), dim3(1), 0, add_to, device(std::vector<float>(1))), run(); }
static void without_fence(void) {
    unsigned *done = device(std::vector<unsigned>(1));
    start(dim3(3), dim3(32), 0, sum_of_blocks, device(counting(3)), device<float>(3), done, device<float>(1), 0), run();
}
static void test_races_of_blocks(void **) {
    only_checks_fail("block (1,0,0), thread (0,0,0): race: reads byte 0 of the 4 allocated at", two_blocks_add);
    only_checks_fail("which another block wrote in this launch", without_fence);
}

/* ---------------------------------------------------------------- planted mistakes: barriers and warps */
static void two_barriers(void) { start(dim3(1), dim3(64), 0, barriers_apart), run(); }
static void one_ended(void) { start(dim3(1), dim3(64), 0, barrier_without_one), run(); }
static void lane_ended(void) { start(dim3(1), dim3(32), 0, shuffle_without_one, device<int>(32), 1), run(); }
static void lane_elsewhere(void) { start(dim3(1), dim3(32), 0, shuffle_without_one, device<int>(32), 0), run(); }
static void lane_missing(void) { start(dim3(1), dim3(16), 0, votes, device<unsigned>(320)), run(); }
static void caller_outside(void) { start(dim3(1), dim3(32), 0, shuffle_from_outside, device<int>(32)), run(); }
static void two_masks(void) { start(dim3(1), dim3(32), 0, shuffle_with_two_masks, device<int>(32)), run(); }
static void test_divergence(void **) {
    must_fail("barriers_apart, block (0,0,0), thread (32,0,0): __syncthreads at samples.cu:", two_barriers);
    must_fail("while thread 0 of the block waits at another one, at samples.cu:", two_barriers);
    must_fail("63 threads of the block wait, but thread 5 has ended", one_ended);
    must_fail("waits for lane 7, which has ended", lane_ended);
    must_fail("waits for lane 7, which waits at samples.cu:", lane_elsewhere);
    must_fail("waits for lane 16, which the block has not got", lane_missing);
    must_fail("with mask fffffffe, which the calling lane 0 is not in", caller_outside);
    must_fail("with mask ffff0000 at samples.cu:", two_masks);
}

/* ---------------------------------------------------------------- planted mistakes: memory */
static void behind_the_end(void) { start(dim3(1), dim3(1), 0, write_at, device<float>(100), 100), run(); }
static void far_behind(void) { start(dim3(1), dim3(1), 0, write_at, device<float>(100), 100000), run(); }
static void after_free(void) {
    float *x = device(counting(100));
    OK(cudaFree(x));
    start(dim3(1), dim3(1), 0, write_at, x, 5), run();
}
static void not_aligned(void) {
    start(dim3(1), dim3(1), 0, read_float4_at, (const float *)device(counting(8)) + 1, device<float>(1)), run();
}
static void behind_shared(void) { start(dim3(1), dim3(32), 0, shared_at, device<float>(1), 40 + 60000), run(); }
static void behind_dynamic_shared(void) { start(dim3(1), dim3(1), 64, dynamic_shared_at, device<float>(1), 16), run(); }
static void outside_operand(void) {
    float *arena = device(counting(100));
    mu_emulation_bounds(arena + 10, 40);
    start(dim3(1), dim3(1), 0, read_at, arena, arena + 19, 20), run();
}
static void test_bounds(void **) {
    if (ASAN) {
        must_end("AddressSanitizer", 1, behind_the_end);
        must_end("AddressSanitizer", 1, outside_operand);
        must_end("AddressSanitizer", 1, behind_dynamic_shared);
        must_end("misaligned address", 1, not_aligned);
    }
    only_checks_fail("writes 4 bytes at byte 400 of the 400 allocated at", behind_the_end);
    must_fail("write_at, block (0,0,0), thread (0,0,0): ", far_behind);
    must_fail("write_at, block (0,0,0), thread (0,0,0): ", after_free);
    only_checks_fail("reads 16 bytes at", not_aligned);
    only_checks_fail("shared_at, block (0,0,0), thread (0,0,0): reads 4 bytes at", behind_shared);
    only_checks_fail("no shared memory of this launch, in samples.cu:", behind_dynamic_shared);
    only_checks_fail("reads 4 bytes at byte 80 of the", outside_operand);
    only_checks_fail("outside of every operand", outside_operand);
    float *arena = device(counting(100));
    mu_emulation_bounds(arena + 10, 40);
    start(dim3(1), dim3(1), 0, read_at, arena, arena + 19, 12);
    mu_emulation_bounds_clear();
    start(dim3(1), dim3(1), 0, read_at, arena, arena + 18, 20);
    std::vector<float> got = host(arena + 18, 2);
    assert_true(got[0] == 20.0f && got[1] == 12.0f);
    OK(cudaFree(arena));
}

static void never_written(void) { start(dim3(1), dim3(1), 0, read_at, device<float>(100), device<float>(1), 3), run(); }
static void forgotten(void) {
    float *x = device(counting(100));
    mu_emulation_forget(x + 3, 4);
    start(dim3(1), dim3(1), 0, read_at, x, device<float>(1), 3), run();
}
static void shared_never_written(void) { start(dim3(1), dim3(32), 0, shared_at, device<float>(1), 35), run(); }
static void copy_never_written(void) { host(device<float>(4), 4); }
static void test_uninitialised(void **) {
    only_checks_fail("byte 12 of the", never_written);
    only_checks_fail(": never written, in samples.cu:", never_written);
    only_checks_fail(": never written, in samples.cu:", forgotten);
    only_checks_fail("byte 140 of shared value of shared_at: never written by this block", shared_never_written);
    only_checks_fail("a copy of 16 bytes from byte 0 of the", copy_never_written);
    if (!CHECKED && !ASAN) {            /* without checks there is poison */
        float *x = device<float>(4);
        std::vector<float> got = host(x, 4);
        assert_true(got[2] != got[2]);
        OK(cudaFree(x));
    }
}

static void host_pointer(void) {
    static float on_host[4];
    start(dim3(1), dim3(1), 0, read_at, on_host, device<float>(1), 3), run();
}
static void host_stack(void) {
    float on_stack[4] = {};
    start(dim3(1), dim3(1), 0, write_at, on_stack, 3), run();
}
static void host_reads_device(void) { fprintf(stderr, "%f", (double)*(volatile float *)device(counting(4))); }
static void wrong_kind(void) {
    float x[4];
    cudaMemcpy(x, device(counting(4)), 16, cudaMemcpyHostToDevice);
}
static void test_host_and_device(void **) {
    only_checks_fail("host memory, in samples.cu:", host_pointer);
    only_checks_fail("host memory, in samples.cu:", host_stack);
    must_fail("emulation: host code touches", host_reads_device);
    must_fail("which its kind denies", wrong_kind);
}

/* ---------------------------------------------------------------- planted mistakes: cp.async */
static void read_without_wait(void) { start(dim3(1), dim3(32), 0, no_wait, device(counting(32)), device<float>(32), 1), run(); }
static void end_without_wait(void) { start(dim3(1), dim3(32), 0, no_wait, device(counting(32)), device<float>(32), 0), run(); }
static void one_wait_too_few(void) { start(dim3(1), dim3(32), 0, pipeline<2>, device(counting(64)), device<float>(64), 64, 64), run(); }
static void no_barrier_behind_wait(void) { start(dim3(1), dim3(64), 0, wait_alone, device(counting(64)), device<float>(64)), run(); }
static void test_copies(void **) {
    if (CHECKED) {
        must_fail("byte 0 of shared value of no_wait: a cp.async to it has not been waited for", read_without_wait);
        must_fail("of pipeline<2>: a cp.async to it has not been waited for", one_wait_too_few);
        must_fail("race: writes byte 128 of shared value of wait_alone, which thread (31,0,0) read", no_barrier_behind_wait);
    } else {
        float *x = device(counting(64)), *y = device<float>(64);
        start(dim3(1), dim3(32), 0, pipeline<2>, x, y, 64, 64);
        std::vector<float> got = host(y, 64);
        assert_true(got[0] != got[0]);      /* poison */
        OK(cudaFree(x));
        OK(cudaFree(y));
    }
    must_fail("ends while 1 of its cp.async are under way", end_without_wait);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_traffic), cmocka_unit_test(test_vectors_are_one_access),
        cmocka_unit_test(test_bank_conflicts), cmocka_unit_test(test_orders), cmocka_unit_test(test_votes),
        cmocka_unit_test(test_atomics), cmocka_unit_test(test_product), cmocka_unit_test(test_pipeline),
        cmocka_unit_test(test_bf16), cmocka_unit_test(test_laziness), cmocka_unit_test(test_events),
        cmocka_unit_test(test_graph), cmocka_unit_test(test_virtual_memory), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_machines), cmocka_unit_test(test_missing_barrier), cmocka_unit_test(test_races_of_blocks),
        cmocka_unit_test(test_divergence), cmocka_unit_test(test_bounds), cmocka_unit_test(test_uninitialised),
        cmocka_unit_test(test_host_and_device), cmocka_unit_test(test_copies),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
