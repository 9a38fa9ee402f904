/* adamw.c - the optimizer over a slab of units: the gradient's norm, the pull of an anchor, and AdamW (Loshchilov & Hutter 2019) in one
 * fused pass, 28 bytes per value, memory-bound. Threads share the pieces of all units: a thousand small experts cost one
 * parallel loop. The bias corrections are folded into two factors, computed in double:
 *   w = w (1 - lr wd) - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps) */
#include "kernels/cpu/cpu.h"

static const mu_slab_unit *unit_at(mu_mat units, int64_t i) {
    return (const mu_slab_unit *)(void *)(cpu_i64(units) + i * units.ld);
}

/* The part of the slab that piece `piece` covers: it belongs to the last unit that does not begin behind it. */
typedef struct { int64_t unit, first, count; } chunk;

static chunk find_piece(int64_t n_units, mu_mat units, int64_t piece) {
    int64_t low = 0, high = n_units;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (unit_at(units, middle)->piece <= piece) low = middle;
        else high = middle;
    }
    const mu_slab_unit *u = unit_at(units, low);
    int64_t at = (piece - u->piece) * MU_SLAB_PIECE;
    return (chunk){ low, u->first + at, cpu_min(MU_SLAB_PIECE, u->count - at) };
}

static int team_of(int64_t n_units, mu_mat units) {
    int64_t values = 0;
    for (int64_t i = 0; i < n_units; i++) values += unit_at(units, i)->count;
    return cpu_team(values);
}

static bool is_skipped(const mu_slab_unit *u, mu_mat loads) { return loads.data && u->load >= 0 && cpu_i64(loads)[u->load] == 0; }

/* squares[id] = the sum of a unit's pieces. */
static void add_pieces(int64_t n_units, mu_mat units, const double *part, mu_mat squares) {
    for (int64_t i = 0; i < n_units; i++) {
        const mu_slab_unit *u = unit_at(units, i);
        double total = 0;
        for (int64_t p = 0; p < mu_slab_pieces(u->count); p++) total += part[u->piece + p];
        cpu_f64(squares)[u->id] = total;
    }
}

void CPU(slab_sumsq)(mu_device *dev, int64_t n_units, int64_t n_pieces, mu_mat units, mu_mat g, mu_mat squares) {
    size_t mark = mu_arena_mark(&dev->scratch);
    double *part = mu_arena_alloc(&dev->scratch, (size_t)n_pieces * sizeof *part);
#pragma omp parallel for schedule(static) num_threads(team_of(n_units, units))
    for (int64_t p = 0; p < n_pieces; p++) {
        chunk s = find_piece(n_units, units, p);
        part[p] = cpu_sumsq(s.count, cpu_f32(g) + s.first);
    }
    add_pieces(n_units, units, part, squares);
    mu_arena_release(&dev->scratch, mark);
}

/* Sum of (f (w - at))^2 in double: value i in lane i % 8, then the lanes. */
static double pull_sumsq(int64_t n, const float *restrict f, const float *restrict w, const float *restrict at) {
    double lane[8] = { 0 }, sum = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) {
            double pull = f[i + j] * (w[i + j] - at[i + j]);
            lane[j] += pull * pull;
        }
    for (; i < n; i++) {
        double pull = f[i] * (w[i] - at[i]);
        lane[i % 8] += pull * pull;
    }
    for (int j = 0; j < 8; j++) sum += lane[j];
    return sum;
}

void CPU(slab_pull_sumsq)(mu_device *dev, int64_t n_units, int64_t n_pieces, mu_mat units, mu_mat loads, mu_mat f, mu_mat w, mu_mat at,
                          mu_mat squares) {
    size_t mark = mu_arena_mark(&dev->scratch);
    double *part = mu_arena_alloc(&dev->scratch, (size_t)n_pieces * sizeof *part);
#pragma omp parallel for schedule(static) num_threads(team_of(n_units, units))
    for (int64_t p = 0; p < n_pieces; p++) {
        chunk s = find_piece(n_units, units, p);
        bool skipped = is_skipped(unit_at(units, s.unit), loads);
        part[p] = skipped ? 0 : pull_sumsq(s.count, cpu_f32(f) + s.first, cpu_f32(w) + s.first, cpu_f32(at) + s.first);
    }
    add_pieces(n_units, units, part, squares);
    mu_arena_release(&dev->scratch, mark);
}

static void pull(int64_t n, float factor, const float *restrict f, const float *restrict w, const float *restrict at, float *restrict g) {
    for (int64_t i = 0; i < n; i++) g[i] += factor * (f[i] * (w[i] - at[i]));
}

void CPU(slab_pull)(mu_device *dev, int64_t n_units, int64_t n_pieces, double strength, mu_mat units, mu_mat loads, mu_mat limit, mu_mat scale,
                    mu_mat f, mu_mat w, mu_mat at, mu_mat g) {
    (void)dev;
    double factor = strength * *cpu_f64(limit) / *cpu_f64(scale);
    if (!isfinite(factor)) return;
#pragma omp parallel for schedule(static) num_threads(team_of(n_units, units))
    for (int64_t p = 0; p < n_pieces; p++) {
        chunk s = find_piece(n_units, units, p);
        if (is_skipped(unit_at(units, s.unit), loads)) continue;
        pull(s.count, (float)factor, cpu_f32(f) + s.first, cpu_f32(w) + s.first, cpu_f32(at) + s.first, cpu_f32(g) + s.first);
    }
}

void CPU(clip)(mu_device *dev, int64_t n, mu_mat squares, int64_t n_losses, mu_mat losses, double max_norm, mu_mat norm,
               mu_mat scale) {
    (void)dev;
    double total = 0;
    for (int64_t i = 0; i < n; i++) total += cpu_f64(squares)[i];
    double length = sqrt(total), factor = max_norm > 0 && length > max_norm ? max_norm / length : 1;
    bool finite = isfinite(length);
    for (int64_t i = 0; i < n_losses; i++) finite &= isfinite(cpu_f64(losses)[i]) != 0;
    *cpu_f64(norm) = length, *cpu_f64(scale) = finite ? factor : (double)NAN;
}

typedef struct { float keep, rate, root, scale; bool skipped; } factors;  /* of a unit */

/* Counts the steps of the units that are not skipped. */
static void prepare(int64_t n_units, const mu_adamw_spec *s, mu_mat units, mu_mat loads, double scale, int64_t *steps,
                    factors *of) {
    double t = 0, c1 = 1, c2 = 1;
    for (int64_t i = 0; i < n_units; i++) {
        const mu_slab_unit *u = unit_at(units, i);
        of[i].skipped = is_skipped(u, loads);
        if (of[i].skipped) continue;
        if (t != (double)++steps[u->id]) {      /* most units have the step count of the one before */
            t = (double)steps[u->id];
            c1 = 1 - pow(s->beta1, t), c2 = 1 - pow(s->beta2, t);
        }
        of[i].keep = (float)(1 - s->lr * (u->decays ? s->weight_decay : 0));
        of[i].rate = (float)(s->lr / c1), of[i].root = (float)(1 / sqrt(c2)), of[i].scale = (float)scale;
    }
}

static void update(int64_t n, const mu_adamw_spec *s, factors f, float *restrict w, const float *restrict g,
                   float *restrict m, float *restrict v) {
    const float b1 = (float)s->beta1, a1 = (float)(1 - s->beta1), b2 = (float)s->beta2, a2 = (float)(1 - s->beta2),
                eps = (float)s->eps;
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i] * f.scale;
        m[i] = b1 * m[i] + a1 * gi;
        v[i] = b2 * v[i] + a2 * (gi * gi);
        w[i] = w[i] * f.keep - f.rate * m[i] / (sqrtf(v[i]) * f.root + eps);
    }
}

void CPU(slab_adamw)(mu_device *dev, int64_t n_units, int64_t n_pieces, const mu_adamw_spec *spec, mu_mat units,
                     mu_mat loads, mu_mat scale, mu_mat steps, mu_mat w, mu_mat g, mu_mat m, mu_mat v, mu_mat compute) {
    if (!isfinite(*cpu_f64(scale))) return;
    size_t mark = mu_arena_mark(&dev->scratch);
    factors *of = mu_arena_alloc(&dev->scratch, (size_t)n_units * sizeof *of);
    prepare(n_units, spec, units, loads, *cpu_f64(scale), cpu_i64(steps), of);
#pragma omp parallel for schedule(static) num_threads(team_of(n_units, units))
    for (int64_t p = 0; p < n_pieces; p++) {
        chunk s = find_piece(n_units, units, p);
        if (of[s.unit].skipped) continue;
        update(s.count, spec, of[s.unit], cpu_f32(w) + s.first, cpu_f32(g) + s.first, cpu_f32(m) + s.first,
               cpu_f32(v) + s.first);
        if (compute.data) memcpy(cpu_f32(compute) + s.first, cpu_f32(w) + s.first, (size_t)s.count * sizeof(float));
    }
    mu_arena_release(&dev->scratch, mark);
}
