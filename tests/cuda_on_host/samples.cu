/* samples.cu - small kernels for the test of the emulation: right ones, whose counts can be told by hand, and wrong ones,
 * each with one mistake. They are in the subset that nvcc and the host's compiler both take. */
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/ptx.h"

static const unsigned ALL = 0xffffffffu;

static __device__ __forceinline__ int global_index() { return (int)(blockIdx.x * blockDim.x + threadIdx.x); }

/* ---------------------------------------------------------------- memory traffic */
static __global__ void scale(const float *x, float *y, int n) {
    int i = global_index();
    if (i < n) y[i] = 2.0f * x[i];
}
static __global__ void read_apart(const float *x, float *y, int apart, int first) {
    y[global_index()] = x[first + global_index() * apart];
}
static __global__ void copy_float4(const float4 *x, float4 *y) {
    float4 v = x[global_index()];
    v.x += 1.0f;
    y[global_index()] = v;
}
static __global__ void copy_pairs(const __nv_bfloat162 *x, __nv_bfloat162 *y) {
    __nv_bfloat162 v = x[global_index()];
    y[global_index()] = __floats2bfloat162_rn(__high2float(v), __low2float(v));
}

/* A 32 x 32 tile, written by rows and read by columns. */
template <int PITCH> static __global__ void transpose(const float *x, float *y) {
    static __shared__ float tile[32 * PITCH];
    int column = (int)threadIdx.x, row = (int)threadIdx.y;
    tile[row * PITCH + column] = x[row * 32 + column];
    __syncthreads();
    y[row * 32 + column] = tile[column * PITCH + row];
}
/* Each lane moves 16 bytes of shared memory, `apart` times 16 from its neighbour's. */
static __global__ void shared_float4(float *y, int apart) {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    float4 *rows = (float4 *)dynamic_shared;
    rows[threadIdx.x * (unsigned)apart] = make_float4((float)threadIdx.x, 0, 0, 0);
    __syncthreads();
    float4 other = rows[(31 - threadIdx.x) * (unsigned)apart];
    y[threadIdx.x] = other.x;
}

/* ---------------------------------------------------------------- blocks, warps */
template <int THREADS> static __global__ void __launch_bounds__(THREADS) sum(const float *x, float *y, int n) {
    static __shared__ float part[THREADS / 32];
    float s = 0;
    for (int i = (int)threadIdx.x; i < n; i += THREADS) s += x[i];
#pragma unroll
    for (int step = 16; step; step /= 2) s += __shfl_xor_sync(ALL, s, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
    __syncthreads();
    s = 0;
    for (int i = 0; i < THREADS / 32; i++) s += part[i];
    if (threadIdx.x == 0) *y = s;
}

/* Neighbours hand their values on, through a barrier or through none. */
template <bool BARRIER> static __global__ void hand_on(int *y) {
    static __shared__ int value[64];
    value[threadIdx.x] = 0;
    __syncthreads();
    value[threadIdx.x] = (int)threadIdx.x + 1;
    if (BARRIER) __syncthreads();
    y[threadIdx.x] = value[(threadIdx.x + 1) % 64];
}
template <bool SYNCWARP> static __global__ void hand_on_in_warp(int *y) {
    static __shared__ int value[32];
    value[threadIdx.x] = (int)threadIdx.x;
    if (SYNCWARP) __syncwarp();
    else __shfl_sync(ALL, 0, 0);        /* brings the lanes together, but orders no memory */
    y[threadIdx.x] = value[31 - threadIdx.x];
}
static __global__ void votes(unsigned *y) {
    int lane = (int)threadIdx.x;
    y[lane] = __ballot_sync(ALL, lane % 3 == 0);
    y[32 + lane] = __match_any_sync(ALL, lane / 8);
    y[64 + lane] = __reduce_add_sync(ALL, (unsigned)lane);
    y[96 + lane] = (unsigned)__reduce_min_sync(ALL, 7 - lane);
    y[128 + lane] = __reduce_max_sync(ALL, (unsigned)(lane ^ 5));
    y[160 + lane] = (unsigned)(__any_sync(ALL, lane == 9) * 2 + __all_sync(ALL, lane < 32));
    y[192 + lane] = __shfl_up_sync(ALL, (unsigned)lane, 2, 16);
    y[224 + lane] = (unsigned)__shfl_down_sync(ALL, (long long)lane, 3);
    y[256 + lane] = (unsigned)__shfl_sync(ALL, (double)lane, 17, 8);
    if (lane < 16) y[288 + lane] = (unsigned)__shfl_xor_sync(0xffffu, lane, 15);
    else y[288 + lane] = __ballot_sync(0xffff0000u, lane < 20);
}
static __global__ void block_votes(int *y) {
    int i = (int)threadIdx.x;
    y[i] = __syncthreads_count(i % 5 == 0);
    y[64 + i] = __syncthreads_or(i == 63) * 2 + __syncthreads_and(i < 63);
}
static __global__ void histogram(const int *x, unsigned *y, int n) {
    static __shared__ unsigned bins[8];
    if (threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = global_index(); i < n; i += (int)(gridDim.x * blockDim.x)) atomicAdd(&bins[x[i]], 1u);
    __syncthreads();
    if (threadIdx.x < 8) atomicAdd(&y[threadIdx.x], bins[threadIdx.x]);
}
/* The last block to be done adds up what all have left. */
static __global__ void sum_of_blocks(const float *x, float *part, unsigned *done, float *y, int fence) {
    static __shared__ int last;
    if (threadIdx.x == 0) {
        part[blockIdx.x] = x[blockIdx.x];
        if (fence) __threadfence();
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float s = 0;
        for (unsigned i = 0; i < gridDim.x; i++) s += part[i];
        *y = s;
    }
}

/* ---------------------------------------------------------------- instructions */
/* One warp: C = A B, A [16, 16] and B [16, 8] row-major. */
static __global__ void product(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c) {
    static __shared__ __align__(16) __nv_bfloat16 tile_a[16 * 24], tile_b[16 * 8];
    int lane = (int)threadIdx.x;
    mu_ptx_cp_async_16(mu_ptx_shared(tile_a + lane / 2 * 24 + lane % 2 * 8), a + lane * 8, 16);
    if (lane < 16) mu_ptx_cp_async_16(mu_ptx_shared(tile_b + lane * 8), b + lane * 8, 16);
    mu_ptx_cp_async_commit();
    mu_ptx_cp_async_wait<0>();
    __syncwarp();
    unsigned of_a[4], of_b[4];
    float d[4] = {0, 0, 0, 0};
    mu_ptx_ldmatrix_x4(of_a, mu_ptx_shared(tile_a + lane % 16 * 24 + lane / 16 * 8));
    mu_ptx_ldmatrix_x4_trans(of_b, mu_ptx_shared(tile_b + lane % 16 * 8));
    mu_ptx_mma_bf16(d, of_a, of_b);
    int row = lane / 4, column = lane % 4 * 2;
    c[row * 8 + column] = d[0], c[row * 8 + column + 1] = d[1];
    c[(row + 8) * 8 + column] = d[2], c[(row + 8) * 8 + column + 1] = d[3];
}

/* Copies n floats through two stages of shared memory. WAIT: how many groups may be under way; one is right. What lies
 * behind the n becomes zero. */
template <int WAIT> static __global__ void pipeline(const float *x, float *y, int n, int padded) {
    static __shared__ float stage[2][32];
    int lane = (int)threadIdx.x, steps = padded / 32;
    for (int s = 0; s < steps + 1; s++) {
        int i = s * 32 + lane;
        if (s < steps) mu_ptx_cp_async_4(mu_ptx_shared(&stage[s % 2][lane]), i < n ? x + i : x, i < n ? 4 : 0);
        mu_ptx_cp_async_commit();
        mu_ptx_cp_async_wait<WAIT>();
        if (s > 0) y[i - 32] = stage[(s - 1) % 2][lane];
    }
    mu_ptx_cp_async_wait<0>();
}

/* ---------------------------------------------------------------- one mistake each */
static __global__ void barriers_apart() {
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads();
}
static __global__ void barrier_without_one() {
    if (threadIdx.x == 5) return;
    __syncthreads();
}
static __global__ void shuffle_without_one(int *y, int ends) {
    if (threadIdx.x == 7) {
        if (ends) return;
        __syncthreads();
    }
    y[threadIdx.x] = __shfl_xor_sync(ALL, (int)threadIdx.x, 1);
    if (threadIdx.x != 7) __syncthreads();
}
static __global__ void shuffle_from_outside(int *y) { y[threadIdx.x] = __shfl_sync(0xfffffffeu, 1, 1); }
static __global__ void shuffle_with_two_masks(int *y) {
    y[threadIdx.x] = __shfl_sync(threadIdx.x < 16 ? ALL : 0xffff0000u, 1, 20);
}
static __global__ void write_at(float *y, int i) { y[i] = 1.0f; }
static __global__ void read_at(const float *x, float *y, int i) { *y = x[i]; }
static __global__ void read_float4_at(const float *x, float *y) {
    float4 v = *(const float4 *)x;
    *y = v.x + v.y + v.z + v.w;
}
static __global__ void shared_at(float *y, int i) {
    static __shared__ float value[40];
    value[threadIdx.x] = 1.0f;
    *y = value[i];
}
static __global__ void dynamic_shared_at(float *y, int i) {
    extern __shared__ unsigned char dynamic_shared[];
    ((float *)dynamic_shared)[i] = 1.0f;
    *y = ((float *)dynamic_shared)[i];
}
static __global__ void add_to(float *y) { *y += 1.0f; }
static __global__ void no_wait(const float *x, float *y, int read) {
    static __shared__ float value[32];
    mu_ptx_cp_async_4(mu_ptx_shared(&value[threadIdx.x]), x + threadIdx.x, 4);
    mu_ptx_cp_async_commit();
    if (read) y[threadIdx.x] = value[threadIdx.x];
}
/* The copies arrived, but others than the thread that waited for them read them without a barrier. */
static __global__ void wait_alone(const float *x, float *y) {
    static __shared__ float value[64];
    value[threadIdx.x] = 0;
    __syncthreads();
    mu_ptx_cp_async_4(mu_ptx_shared(&value[threadIdx.x]), x + threadIdx.x, 4);
    mu_ptx_cp_async_commit();
    mu_ptx_cp_async_wait<0>();
    y[threadIdx.x] = value[63 - threadIdx.x];
}
