/* sort.cu - a stable sort of token ids. One digit of 8 bits at a time, the lowest first: tiles of tokens count their
 * digits, then compute positions from all tiles' counts and assign them in order of token. Integers only, so the result does
 * not depend on the order of blocks. */
#include "kernels/cuda/cuda.h"

enum { DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS, TILE = 1024 };      /* a block has a thread for each digit */

static __device__ __forceinline__ int digit_of(int32_t id, int shift) { return id >> shift & (DIGITS - 1); }

/* counts[tile, digit] */
static __global__ void count_digits(int64_t T, int shift, const int32_t *id, int *counts) {
    static __shared__ int count[DIGITS];
    int64_t first = (int64_t)blockIdx.x * TILE, end = first + TILE < T ? first + TILE : T;
    count[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < end; i += DIGITS) atomicAdd(&count[digit_of(id[i], shift)], 1);
    __syncthreads();
    counts[(int64_t)blockIdx.x * DIGITS + threadIdx.x] = count[threadIdx.x];
}

/* next[d] = the position of this tile's first token with digit d: behind all with smaller digits, and those with this digit
 * in earlier tiles. */
static __device__ void find_places(const int *counts, int *total, int *next) {
    int tiles = (int)gridDim.x, d = (int)threadIdx.x, before = 0, all = 0;
#pragma unroll 8
    for (int tile = 0; tile < tiles; tile++) {
        int n = counts[(int64_t)tile * DIGITS + d];
        all += n;
        before += tile < (int)blockIdx.x ? n : 0;
    }
    total[d] = all;
    __syncthreads();
    for (int smaller = 0; smaller < d; smaller++) before += total[smaller];
    next[d] = before;
    __syncthreads();
}

/* Moves a tile's tokens to their positions; `token` NULL: they are still in order. One warp, 32 tokens at a time: lanes with
 * the same digit take consecutive positions. */
static __global__ void place_tokens(int64_t T, int shift, const int32_t *id, const int32_t *token, const int *counts,
                                    int32_t *to_id, int32_t *to_token) {
    static __shared__ int total[DIGITS], next[DIGITS];
    find_places(counts, total, next);
    if (threadIdx.x >= WARP) return;
    int64_t first = (int64_t)blockIdx.x * TILE, end = first + TILE < T ? first + TILE : T;
    unsigned earlier = (1u << threadIdx.x) - 1;
    for (int64_t from = first; from < end; from += WARP) {
        int64_t i = from + threadIdx.x;
        bool mine = i < end;
        int d = mine ? digit_of(id[i], shift) : DIGITS;
        unsigned same = __match_any_sync(ALL_LANES, d);
        int place = mine ? next[d] + __popc(same & earlier) : 0;
        __syncwarp();
        if (mine && !(same & earlier)) next[d] += __popc(same);
        __syncwarp();
        if (mine) to_id[place] = id[i], to_token[place] = token ? token[i] : (int32_t)i;
    }
}

sorted_ids cuda_sort_ids(mu_device *dev, cuda_scratch &scratch, int64_t T, int64_t V, const int32_t *ids) {
    int64_t tiles = blocks_for(T, TILE);
    MU_CHECK(T <= INT32_MAX, "sorting %lld tokens: too many", (long long)T);
    int *counts = scratch.take<int>(tiles * DIGITS);
    int32_t *id[2] = { scratch.take<int32_t>(T), scratch.take<int32_t>(T) };
    int32_t *token[2] = { scratch.take<int32_t>(T), scratch.take<int32_t>(T) };
    sorted_ids s = { ids, NULL };
    int to = 0;
    for (int shift = 0; !shift || (V - 1) >> shift; shift += DIGIT_BITS, to = !to) {
        launch(dev, tiles, DIGITS, 0, count_digits, T, shift, s.id, counts);
        launch(dev, tiles, DIGITS, 0, place_tokens, T, shift, s.id, s.token, (const int *)counts, id[to], token[to]);
        s = sorted_ids{ id[to], token[to] };
    }
    return s;
}
