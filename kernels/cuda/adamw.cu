/* adamw.cu - the optimizer over a slab of units, with the same few launches for any number of units: sums of squares, a block
 * per piece; the norm and the scale, which stay on the device; AdamW, a thread per unit for the factors, then a block per
 * piece for the values, 28 bytes each, memory-bound. Formula as in cpu/adamw.c. */
#include "kernels/cuda/cuda.h"

#include <cmath>

enum { LANES = 4, SWEEP = LANES * THREADS };        /* values per thread; values per block at a time */

typedef matrix<const int64_t> unit_table;

static unit_table table_of(mu_mat units) {
    matrix<int64_t> m = typed<int64_t>(units);
    return unit_table{ m.at, m.ld };
}

static __device__ __forceinline__ const mu_slab_unit &unit_at(unit_table units, int64_t i) {
    return *(const mu_slab_unit *)units.row(i);
}

/* The part of the slab that piece `piece` covers: it belongs to the last unit that does not begin behind it. */
struct chunk { int64_t unit, first, count; };

static __device__ chunk find_piece(int64_t n_units, unit_table units, int64_t piece) {
    int64_t low = 0, high = n_units;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (unit_at(units, middle).piece <= piece) low = middle;
        else high = middle;
    }
    const mu_slab_unit &u = unit_at(units, low);
    const int64_t most = MU_SLAB_PIECE, at = (piece - u.piece) * most, left = u.count - at;
    return chunk{ low, u.first + at, left < most ? left : most };
}

/* Four neighbours at once if aligned and all in range, else those in range; the others read as 0. */
static __device__ __forceinline__ bool in_one(const float *at, int64_t left) {
    return left >= LANES && (uintptr_t)at % sizeof(float4) == 0;
}

static __device__ __forceinline__ float4 load_4(const float *at, int64_t left) {
    if (in_one(at, left)) return *(const float4 *)at;
    return make_float4(at[0], left > 1 ? at[1] : 0, left > 2 ? at[2] : 0, left > 3 ? at[3] : 0);
}

static __device__ __forceinline__ void store_4(float *at, float4 x, int64_t left) {
    if (in_one(at, left)) {
        *(float4 *)at = x;
        return;
    }
    at[0] = x.x;
    if (left > 1) at[1] = x.y;
    if (left > 2) at[2] = x.z;
    if (left > 3) at[3] = x.w;
}

static __device__ __forceinline__ void store_4(bf16 *at, float4 x, int64_t left) {
    if (left >= LANES && (uintptr_t)at % sizeof(uint2) == 0) {
        *(uint2 *)at = make_uint2(two_bf16(x.x, x.y), two_bf16(x.z, x.w));
        return;
    }
    store(at, x.x);
    if (left > 1) store(at + 1, x.y);
    if (left > 2) store(at + 2, x.z);
    if (left > 3) store(at + 3, x.w);
}

/* ------------------------------------------------------------------ sums of squares, and the norm */
static __global__ void square_pieces(int64_t n_units, unit_table units, const float *g, double *part) {
    chunk s = find_piece(n_units, units, blockIdx.x);
    double sum = 0;
    for (int64_t i = LANES * (int64_t)threadIdx.x; i < s.count; i += SWEEP) {
        float4 x = load_4(g + s.first + i, s.count - i);
        sum += (double)x.x * x.x + (double)x.y * x.y + ((double)x.z * x.z + (double)x.w * x.w);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

/* The sum of n doubles, in all threads of the block. */
static __device__ double sum_of(int64_t n, const double *x) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += THREADS) sum += x[i];
    return block_sum(sum);
}

static __global__ void add_pieces(unit_table units, const double *part, double *squares) {
    const mu_slab_unit &u = unit_at(units, blockIdx.x);
    double sum = sum_of((u.count + MU_SLAB_PIECE - 1) / MU_SLAB_PIECE, part + u.piece);
    if (threadIdx.x == 0) squares[u.id] = sum;
}

void mu_cuda_slab_sumsq(mu_device *dev, int64_t n_units, int64_t n_pieces, mu_mat units, mu_mat g, mu_mat squares) {
    cuda_scratch scratch(dev);
    double *part = scratch.take<double>(n_pieces);
    launch(dev, n_pieces, THREADS, 0, square_pieces, n_units, table_of(units), typed<float>(g).at, part);
    launch(dev, n_units, THREADS, 0, add_pieces, table_of(units), part, typed<double>(squares).at);
}

static __global__ void clip_kernel(int64_t n, const double *squares, int64_t n_losses, const double *losses, double max_norm,
                                   double *norm, double *scale) {
    double length = sqrt(sum_of(n, squares)), bad = 0;
    for (int64_t i = threadIdx.x; i < n_losses; i += THREADS) bad += !std::isfinite(losses[i]);
    bad = block_sum(bad);
    if (threadIdx.x) return;
    *norm = length;
    *scale = bad > 0 || !std::isfinite(length) ? nan("") : max_norm > 0 && length > max_norm ? max_norm / length : 1;
}

void mu_cuda_clip(mu_device *dev, int64_t n, mu_mat squares, int64_t n_losses, mu_mat losses, double max_norm, mu_mat norm,
                  mu_mat scale) {
    launch(dev, 1, THREADS, 0, clip_kernel, n, typed<double>(squares).at, n_losses, typed<double>(losses).at, max_norm,
           typed<double>(norm).at, typed<double>(scale).at);
}

/* ------------------------------------------------------------------ the pull of an anchor */
static __device__ __forceinline__ bool is_skipped(const mu_slab_unit &u, const int64_t *loads) {
    return loads && u.load >= 0 && loads[u.load] == 0;
}

static __device__ __forceinline__ float4 pull_4(float4 f, float4 w, float4 at) {
    return make_float4(f.x * (w.x - at.x), f.y * (w.y - at.y), f.z * (w.z - at.z), f.w * (w.w - at.w));
}

static __global__ void square_pulls(int64_t n_units, unit_table units, const int64_t *loads, const float *f, const float *w, const float *at,
                                    double *part) {
    chunk s = find_piece(n_units, units, blockIdx.x);
    if (is_skipped(unit_at(units, s.unit), loads)) {
        if (threadIdx.x == 0) part[blockIdx.x] = 0;
        return;
    }
    double sum = 0;
    for (int64_t i = LANES * (int64_t)threadIdx.x; i < s.count; i += SWEEP) {
        int64_t first = s.first + i, left = s.count - i;
        float4 x = pull_4(load_4(f + first, left), load_4(w + first, left), load_4(at + first, left));
        sum += (double)x.x * x.x + (double)x.y * x.y + ((double)x.z * x.z + (double)x.w * x.w);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

void mu_cuda_slab_pull_sumsq(mu_device *dev, int64_t n_units, int64_t n_pieces, mu_mat units, mu_mat loads, mu_mat f, mu_mat w, mu_mat at,
                             mu_mat squares) {
    cuda_scratch scratch(dev);
    double *part = scratch.take<double>(n_pieces);
    launch(dev, n_pieces, THREADS, 0, square_pulls, n_units, table_of(units), typed<int64_t>(loads).at, typed<float>(f).at, typed<float>(w).at,
           typed<float>(at).at, part);
    launch(dev, n_units, THREADS, 0, add_pieces, table_of(units), part, typed<double>(squares).at);
}

static __global__ void pull_pieces(int64_t n_units, double strength, unit_table units, const int64_t *loads, const double *limit,
                                   const double *scale, const float *f, const float *w, const float *at, float *g) {
    chunk s = find_piece(n_units, units, blockIdx.x);
    double factor = strength * *limit / *scale;
    if (!std::isfinite(factor) || is_skipped(unit_at(units, s.unit), loads)) return;
    const float by = (float)factor;
    for (int64_t i = LANES * (int64_t)threadIdx.x; i < s.count; i += SWEEP) {
        int64_t first = s.first + i, left = s.count - i;
        float4 x = pull_4(load_4(f + first, left), load_4(w + first, left), load_4(at + first, left)), gi = load_4(g + first, left);
        store_4(g + first, make_float4(gi.x + by * x.x, gi.y + by * x.y, gi.z + by * x.z, gi.w + by * x.w), left);
    }
}

void mu_cuda_slab_pull(mu_device *dev, int64_t n_units, int64_t n_pieces, double strength, mu_mat units, mu_mat loads, mu_mat limit, mu_mat scale,
                       mu_mat f, mu_mat w, mu_mat at, mu_mat g) {
    launch(dev, n_pieces, THREADS, 0, pull_pieces, n_units, strength, table_of(units), typed<int64_t>(loads).at, typed<double>(limit).at,
           typed<double>(scale).at, typed<float>(f).at, typed<float>(w).at, typed<float>(at).at, typed<float>(g).at);
}

/* ------------------------------------------------------------------ AdamW */
struct factors { float keep, rate, root, scale; };      /* of a unit; scale NaN: skipped */
struct constants { float b1, a1, b2, a2, eps; };

static __global__ void count_steps(int64_t n_units, double lr, double decay, double beta1, double beta2, unit_table units,
                                   const int64_t *loads, const double *scale, int64_t *steps, factors *of) {
    int64_t i = thread_index();
    if (i >= n_units) return;
    const mu_slab_unit &u = unit_at(units, i);
    bool skipped = !std::isfinite(*scale) || is_skipped(u, loads);
    of[i] = factors{ 0, 0, 0, nanf("") };
    if (skipped) return;
    double t = (double)++steps[u.id], c1 = 1 - pow(beta1, t), c2 = 1 - pow(beta2, t);
    of[i] = factors{ (float)(1 - lr * (u.decays ? decay : 0)), (float)(lr / c1), (float)(1 / sqrt(c2)), (float)*scale };
}

static __device__ __forceinline__ void update(const factors &f, const constants &c, float g, float &w, float &m, float &v) {
    g *= f.scale;
    m = c.b1 * m + c.a1 * g;
    v = c.b2 * v + c.a2 * (g * g);
    w = w * f.keep - f.rate * m / (sqrtf(v) * f.root + c.eps);
}

template <typename R>
static __global__ void update_pieces(int64_t n_units, constants c, unit_table units, const factors *of, float *w,
                                     const float *g, float *m, float *v, R *compute) {
    chunk s = find_piece(n_units, units, blockIdx.x);
    const factors f = of[s.unit];
    if (std::isnan(f.scale)) return;
    for (int64_t i = LANES * (int64_t)threadIdx.x; i < s.count; i += SWEEP) {
        int64_t at = s.first + i, left = s.count - i;
        float4 gi = load_4(g + at, left), wi = load_4(w + at, left), mi = load_4(m + at, left), vi = load_4(v + at, left);
        update(f, c, gi.x, wi.x, mi.x, vi.x);
        update(f, c, gi.y, wi.y, mi.y, vi.y);
        update(f, c, gi.z, wi.z, mi.z, vi.z);
        update(f, c, gi.w, wi.w, mi.w, vi.w);
        store_4(w + at, wi, left);
        store_4(m + at, mi, left);
        store_4(v + at, vi, left);
        if (compute) store_4(compute + at, wi, left);
    }
}

void mu_cuda_slab_adamw(mu_device *dev, int64_t n_units, int64_t n_pieces, const mu_adamw_spec *spec, mu_mat units,
                        mu_mat loads, mu_mat scale, mu_mat steps, mu_mat w, mu_mat g, mu_mat m, mu_mat v, mu_mat compute) {
    cuda_scratch scratch(dev);
    factors *of = scratch.take<factors>(n_units);
    const constants c = { (float)spec->beta1, (float)(1 - spec->beta1), (float)spec->beta2, (float)(1 - spec->beta2),
                          (float)spec->eps };
    launch(dev, blocks_for(n_units, THREADS), THREADS, 0, count_steps, n_units, spec->lr, spec->weight_decay,
           spec->beta1, spec->beta2, table_of(units), typed<int64_t>(loads).at, typed<double>(scale).at,
           typed<int64_t>(steps).at, of);
    with_float_type(compute.data ? compute.dtype : MU_DTYPE_BF16, [&](auto zero) {
        typedef decltype(zero) R;
        launch(dev, n_pieces, THREADS, 0, update_pieces<R>, n_units, c, table_of(units), (const factors *)of,
               typed<float>(w).at, typed<float>(g).at, typed<float>(m).at, typed<float>(v).at, typed<R>(compute).at);
    });
}
