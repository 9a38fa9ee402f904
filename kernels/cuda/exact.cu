/* exact.cu - exact sums (format: kernels.h). Any order of summands gives the same words, but a sum that leaves its range
 * in between must be detected: each sum has one thread, which adds its summands one by one, in order. */
#include "kernels/cuda/cuda.h"

static const double LARGEST = 0x1p26;                       /* summands must be smaller */
enum { LOW_BITS = 45 };
static const int64_t HIGH_END = (int64_t)1 << 50, LOW_ONE = (int64_t)1 << LOW_BITS, LOW_END = LOW_ONE / 2;

/* The words of n sums, one of them, and the mark of them all. */
typedef struct { int64_t *high, *low, *mark; } exact_sums;

static __host__ __device__ exact_sums sums_of(int64_t *words, int64_t n) {
    return exact_sums{ words, words + n, words + 2 * n };
}

typedef struct { int64_t high, low; bool bad; } exact_sum;

/* The carry from the low to the high word that makes -2^44 <= low < 2^44. */
static __device__ __forceinline__ void carry(exact_sum &s) {
    int64_t c = (s.low + LOW_END) >> LOW_BITS;
    s.high += c;
    s.low -= c * LOW_ONE;
}

/* A multiple of 2^-24, then the remainder of x as a multiple of 2^-69. */
static __device__ __forceinline__ void add_one(exact_sum &s, float x) {
    if (!(fabs((double)x) < LARGEST)) {
        s.bad = true;
        return;
    }
    int64_t high = __double2ll_rn((double)x * 0x1p24);
    s.high += high;
    s.low += __double2ll_rn(((double)x - (double)high * 0x1p-24) * 0x1p69);
    carry(s);
    s.bad |= s.high < -HIGH_END || s.high >= HIGH_END;
}

static __device__ __forceinline__ exact_sum get(exact_sums s, int64_t i) { return exact_sum{ s.high[i], s.low[i], false }; }
static __device__ __forceinline__ void put(exact_sums s, int64_t i, exact_sum sum) {
    s.high[i] = sum.high, s.low[i] = sum.low;
    if (sum.bad) atomicExch((unsigned long long *)s.mark, 1ull);        /* concurrent writes all store 1 */
}

template <typename X> static __global__ void exact_add_kernel(int64_t n, const X *x, exact_sums sums) {
    int64_t i = thread_index();
    if (i >= n) return;
    exact_sum s = get(sums, i);
    add_one(s, as_float(x[i]));
    put(sums, i, s);
}

void mu_cuda_exact_add(mu_device *dev, int64_t n, mu_mat x, mu_mat sums) {
    with_float_type(x.dtype, [&](auto zero) {
        typedef decltype(zero) X;
        launch(dev, blocks_for(n, THREADS), THREADS, 0, exact_add_kernel<X>, n, typed<const X>(x).at,
               sums_of(typed<int64_t>(sums).at, n));
    });
}

/* Rounded once: before bf16 the float is truncated, and its last bit tells whether anything was cut off (sticky). */
static __device__ __forceinline__ void store_rounded(float *to, double x) { *to = (float)x; }
static __device__ __forceinline__ void store_rounded(bf16 *to, double x) {
    float near = (float)x;
    unsigned bits = __float_as_uint(near);
    if ((double)near != x) bits = (bits - (fabs((double)near) > fabs(x))) | 1;
    store(to, __uint_as_float(bits));
}

template <typename X> static __global__ void exact_round_kernel(int64_t n, exact_sums sums, X *x) {
    int64_t i = thread_index();
    if (i >= n) return;
    exact_sum s = get(sums, i);
    carry(s);
    if (*sums.mark) store(x + i, NAN);
    else store_rounded(x + i, (double)s.high * 0x1p-24 + (double)s.low * 0x1p-69);
}

void mu_cuda_exact_round(mu_device *dev, int64_t n, mu_mat sums, mu_mat x) {
    with_float_type(x.dtype, [&](auto zero) {
        typedef decltype(zero) X;
        launch(dev, blocks_for(n, THREADS), THREADS, 0, exact_round_kernel<X>, n, sums_of(typed<int64_t>(sums).at, n),
               typed<X>(x).at);
    });
}

/* ------------------------------------------------------------------ a table's rows
 * Tokens sorted by id: the block of an id's first token adds all following tokens with this id, a column per thread. */
template <typename R>
static __global__ void exact_embed_kernel(int64_t T, int64_t D, sorted_ids s, matrix<const R> dy, exact_sums sums) {
    int64_t first = blockIdx.x, c = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    int32_t id = s.id[first];
    if (c >= D || (first > 0 && s.id[first - 1] == id)) return;
    exact_sum sum = get(sums, id * D + c);
    for (int64_t i = first; i < T && s.id[i] == id; i++) add_one(sum, as_float(dy.row(s.token[i])[c]));
    put(sums, id * D + c, sum);
}

void mu_cuda_exact_embed(mu_device *dev, int64_t T, int64_t D, int64_t V, mu_mat ids, mu_mat dy, mu_mat sums) {
    cuda_scratch scratch(dev);
    sorted_ids s = cuda_sort_ids(dev, scratch, T, V, typed<const int32_t>(ids).at);
    int threads = threads_for(D, THREADS);
    with_float_type(dy.dtype, [&](auto zero) {
        typedef decltype(zero) R;
        launch_2d(dev, T, blocks_for(D, threads), threads, 0, exact_embed_kernel<R>, T, D, s, typed<const R>(dy),
                  sums_of(typed<int64_t>(sums).at, V * D));
    });
}

/* ------------------------------------------------------------------ products, one reduction unit after the other
 * A block has SIDE x SIDE sums of one group, a thread EACH x EACH of them: rows EACH * (thread / ACROSS) and on, every
 * ACROSS-th column. A unit's product is added up in fp32 in order of its rows, SLAB of them in shared memory at a time. */
enum { SIDE = 64, EACH = 4, ACROSS = SIDE / EACH, SLAB = 16, PRODUCT_THREADS = ACROSS * ACROSS };

/* slab[r, i] = x[first + r, column + i], zero outside of the rows before `end` and the `width` columns. */
template <typename X>
static __device__ __forceinline__ void load_slab(matrix<const X> x, int64_t first, int64_t end, int64_t column,
                                                 int64_t width, float slab[SLAB][SIDE]) {
#pragma unroll
    for (int j = 0; j < SLAB * SIDE / PRODUCT_THREADS; j++) {
        int at = j * PRODUCT_THREADS + (int)threadIdx.x, r = at / SIDE, i = at % SIDE;
        slab[r][i] = first + r < end && column + i < width ? as_float(x.row(first + r)[column + i]) : 0.0f;
    }
}

template <typename A, typename B>
static __global__ void __launch_bounds__(PRODUCT_THREADS)
exact_product_kernel(int64_t units, int64_t m, int64_t n, const int64_t *bounds, matrix<const A> a, matrix<const B> b,
                     int64_t *words, int64_t ld) {
    static __shared__ float as[SLAB][SIDE], bs[SLAB][SIDE];
    int64_t down = (m + SIDE - 1) / SIDE, tiles = down * ((n + SIDE - 1) / SIDE), group = blockIdx.x / tiles;
    int64_t top = blockIdx.x % tiles % down * SIDE, left = blockIdx.x % tiles / down * SIDE;
    int row = (int)threadIdx.x / ACROSS * EACH, column = (int)threadIdx.x % ACROSS;
    exact_sums sums = sums_of(words + group * ld, m * n);
    for (const int64_t *at = bounds + group * units, *last = at + units; at < last; at++) {
        if (at[0] >= at[1]) continue;
        float product[EACH][EACH] = {};
        for (int64_t first = at[0]; first < at[1]; first += SLAB) {
            __syncthreads();
            load_slab(a, first, at[1], top, m, as), load_slab(b, first, at[1], left, n, bs);
            __syncthreads();
#pragma unroll
            for (int r = 0; r < SLAB; r++)
#pragma unroll
                for (int i = 0; i < EACH; i++)
#pragma unroll
                    for (int j = 0; j < EACH; j++) product[i][j] += as[r][row + i] * bs[r][column + j * ACROSS];
        }
        for (int i = 0; i < EACH; i++)
            for (int j = 0; j < EACH; j++) {
                int64_t y = top + row + i, x = left + column + j * ACROSS;
                if (y >= m || x >= n) continue;
                exact_sum s = get(sums, y * n + x);
                add_one(s, product[i][j]);
                put(sums, y * n + x, s);
            }
    }
}

/* Operands are read in their own dtype, so `master` changes nothing. */
void mu_cuda_exact_product(mu_device *dev, bool master, int64_t groups, int64_t units, int64_t m, int64_t n, mu_mat bounds,
                           mu_mat a, mu_mat b, mu_mat sums) {
    (void)master;
    int64_t tiles = blocks_for(m, SIDE) * blocks_for(n, SIDE);
    with_float_type(a.dtype, [&](auto of_a) {
        with_float_type(b.dtype, [&](auto of_b) {
            typedef decltype(of_a) A;
            typedef decltype(of_b) B;
            launch(dev, groups * tiles, PRODUCT_THREADS, 0, exact_product_kernel<A, B>, units, m, n,
                   typed<const int64_t>(bounds).at, typed<const A>(a), typed<const B>(b), typed<int64_t>(sums).at, sums.ld);
        });
    });
}
