/* route.c - the router's scores and choice, and the two balancing terms, with their gradients. T tokens, E
 * experts, K chosen. Arithmetic in double: E values per token cost little, and a choice that depends on the
 * last digit of a float would differ between machines more often. */
#include "kernels/cpu/cpu.h"

enum { ROWS = 256 };            /* tokens whose terms are summed before the blocks are added in order */

/* e: room for [E] */
static void row_scores(const mu_route_shape *s, const float *logits, double *e, float *scores, float *lse) {
    double max = -INFINITY, sum = 0;
#pragma omp simd reduction(max : max)
    for (int64_t i = 0; i < s->E; i++) max = (double)logits[i] > max ? (double)logits[i] : max;
#pragma omp simd
    for (int64_t i = 0; i < s->E; i++) e[i] = cpu_exp_f64((double)logits[i] - max);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < s->E; i++) sum += e[i];
#pragma omp simd
    for (int64_t i = 0; i < s->E; i++)
        scores[i] = (float)(s->sigmoid ? 1 / (1 + cpu_exp_f64(-(double)logits[i])) : e[i] / sum);
    *lse = (float)(max + log(sum));
}

/* Keys of the choice: above LEAST, or LEAST for NaN and minus infinity, which rank last; -INFINITY for chosen experts and for those
 * whose value in the mask is not `class`. So there are always K different ids. */
static const double LEAST = -1.7976931348623157e308;

static void row_keys(int64_t E, const float *scores, const float *bias, const int32_t *mask, int32_t class, double *keys) {
    for (int64_t i = 0; i < E; i++) {
        double x = (double)scores[i] + (bias ? (double)bias[i] : 0);
        keys[i] = x > LEAST ? x : LEAST;
    }
    for (int64_t i = 0; i < E && mask; i++) keys[i] = mask[i] == class ? keys[i] : -INFINITY;
}

/* The best remaining expert; ties to the lower index. */
static int32_t take_best(int64_t E, double *keys) {
    double best = -INFINITY;
#pragma omp simd reduction(max : best)
    for (int64_t i = 0; i < E; i++) best = keys[i] > best ? keys[i] : best;
    int64_t id = E;
#pragma omp simd reduction(min : id)
    for (int64_t i = 0; i < E; i++) id = keys[i] == best && i < id ? i : id;
    keys[id] = -INFINITY;
    return (int32_t)id;
}

static int64_t required_count(int64_t E, const int32_t *mask) {
    int64_t n = 0;
    for (int64_t i = 0; i < E && mask; i++) n += mask[i] == MU_ROUTE_REQUIRED;
    return n;
}

/* keys: room for [E] */
static void row_choice(const mu_route_shape *s, int64_t t, const float *scores, const float *bias, const int32_t *mask, double *keys,
                       int32_t *ids) {
    int64_t required = required_count(s->E, mask);
    row_keys(s->E, scores, bias, mask, required ? MU_ROUTE_REQUIRED : MU_ROUTE_ALLOWED, keys);
    for (int64_t k = 0; k < s->K; k++) {
        if (required && k == required) row_keys(s->E, scores, bias, mask, MU_ROUTE_ALLOWED, keys);
        if (s->force == MU_ROUTE_BALANCED) ids[k] = (int32_t)(((s->first_token + t) * s->K + k) % s->E);
        else if (s->force == MU_ROUTE_SKEW && k == 0) keys[ids[k] = 0] = -INFINITY;
        else ids[k] = take_best(s->E, keys);
    }
}

static double chosen_sum(const mu_route_shape *s, const float *scores, const int32_t *ids) {
    double sum = 0;
    for (int64_t k = 0; k < s->K; k++) sum += (double)scores[ids[k]];
    return sum + 1e-20;
}

void CPU(route_fwd)(mu_device *dev, const mu_route_shape *s, mu_mat logits, mu_mat bias, mu_mat mask,
                    mu_mat scores, mu_mat lse, mu_mat ids, mu_mat gates) {
    int team = cpu_team(s->T * s->E * 16);
    size_t mark = mu_arena_mark(&dev->scratch);
    cpu_buffers buffers = cpu_buffers_new(dev, team, 2 * (size_t)s->E);
#pragma omp parallel for schedule(static) num_threads(team)
    for (int64_t t = 0; t < s->T; t++) {
        float *p = cpu_f32(scores) + t * scores.ld;
        int32_t *id = cpu_i32(ids) + t * ids.ld;
        double *room = (double *)(void *)cpu_buffer(buffers);
        row_scores(s, cpu_f32(logits) + t * logits.ld, room, p, cpu_f32(lse) + t);
        const int32_t *own_mask = mask.data ? cpu_i32(mask) + t / s->mask_segment * mask.ld : NULL;
        row_choice(s, t, p, cpu_f32(bias), own_mask, room, id);
        double factor = s->scale / (s->normalise ? chosen_sum(s, p, id) : 1);
        for (int64_t k = 0; k < s->K; k++)
            cpu_f32(gates)[t * gates.ld + k] = (float)(factor * (double)p[id[k]]);
    }
    mu_arena_release(&dev->scratch, mark);
}

/* The gradient of one token's scores, ds[E], from the gates and directly. Returns the sum of s * ds, which the
 * softmax needs; its part from normalised gates is computed in closed form, because as a sum it would cancel. */
static double row_dscores(const mu_route_shape *s, const float *scores, const int32_t *ids,
                          const float *dgates, const float *dscores, double *ds) {
    double inner = 0;
#pragma omp simd reduction(+ : inner)
    for (int64_t i = 0; i < s->E; i++) {
        ds[i] = dscores ? (double)dscores[i] : 0;
        inner += ds[i] * (double)scores[i];
    }
    if (!dgates) return inner;
    double sum = s->normalise ? chosen_sum(s, scores, ids) : 1, dot = 0;
    for (int64_t k = 0; k < s->K; k++) dot += (double)dgates[k] * (double)scores[ids[k]];
    for (int64_t k = 0; k < s->K; k++)
        ds[ids[k]] += s->scale / sum * ((double)dgates[k] - (s->normalise ? dot / sum : 0));
    return inner + s->scale / sum * dot * (s->normalise ? 1e-20 / sum : 1);
}

/* Softmax of the logits, the factor of dlse. From a sigmoid score it is recovered as its odds; scores of 1 in
 * single precision give the largest representable odds. */
static double row_odds(const mu_route_shape *s, const float *scores, int64_t i) {
    if (!s->sigmoid) return (double)scores[i];
    double p = (double)scores[i], q = 1 - p;
    return p / (q > 2e-8 ? q : 2e-8);
}

static void row_bwd(const mu_route_shape *s, const float *scores, double inner, const double *ds, double dlse,
                    float *dlogits) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < s->E; i++) total += row_odds(s, scores, i);
    for (int64_t i = 0; i < s->E; i++) {
        double p = (double)scores[i], d = s->sigmoid ? ds[i] * p * (1 - p) : p * (ds[i] - inner);
        if (dlse != 0) d += dlse * row_odds(s, scores, i) / total;
        dlogits[i] += (float)d;
    }
}

void CPU(route_bwd)(mu_device *dev, const mu_route_shape *s, mu_mat scores, mu_mat ids, mu_mat dgates,
                    mu_mat dscores, mu_mat dlse, mu_mat dlogits) {
    int team = cpu_team(s->T * s->E * 4);
    size_t mark = mu_arena_mark(&dev->scratch);
    cpu_buffers buffers = cpu_buffers_new(dev, team, 2 * (size_t)s->E);
#pragma omp parallel for schedule(static) num_threads(team)
    for (int64_t t = 0; t < s->T; t++) {
        double *ds = (double *)(void *)cpu_buffer(buffers);
        const float *p = cpu_f32(scores) + t * scores.ld;
        double inner = row_dscores(s, p, cpu_i32(ids) + t * ids.ld,
                                   dgates.data ? cpu_f32(dgates) + t * dgates.ld : NULL,
                                   dscores.data ? cpu_f32(dscores) + t * dscores.ld : NULL, ds);
        row_bwd(s, p, inner, ds, dlse.data ? (double)cpu_f32(dlse)[t] : 0, cpu_f32(dlogits) + t * dlogits.ld);
    }
    mu_arena_release(&dev->scratch, mark);
}

void CPU(count_experts)(mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t segment, mu_mat ids,
                        mu_mat counts) {
    (void)dev;
    int64_t segments = segment > 0 ? T / segment : 0;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * K))
    for (int64_t i = 0; i < segments; i++) {
        int64_t *mine = cpu_i64(counts) + i * counts.ld;
        memset(mine, 0, (size_t)E * sizeof *mine);
        for (int64_t t = i * segment; t < (i + 1) * segment; t++)
            for (int64_t k = 0; k < K; k++) mine[cpu_i32(ids)[t * ids.ld + k]]++;
    }
}

void CPU(sum_counts)(mu_device *dev, int64_t S, int64_t E, int64_t G, mu_mat counts, mu_mat group, mu_mat total,
                     mu_mat by_group) {
    (void)dev, (void)G;
    if (total.data) memset(total.data, 0, (size_t)E * sizeof(int64_t));
    for (int64_t s = 0; s < S; s++) {
        const int64_t *row = cpu_i64(counts) + s * counts.ld;
        for (int64_t i = 0; i < E && total.data; i++) cpu_i64(total)[i] += row[i];
        for (int64_t i = 0; i < E && by_group.data; i++) cpu_i64(by_group)[i * by_group.ld + cpu_i32(group)[s]] += row[i];
    }
}

void CPU(sum_dropped)(mu_device *dev, int64_t S, int64_t E, int64_t G, int64_t capacity, mu_mat counts, mu_mat group, mu_mat by_expert,
                      mu_mat by_group) {
    (void)dev, (void)G;
    for (int64_t s = 0; s < S; s++)
        for (int64_t i = 0; i < E; i++) {
            int64_t n = cpu_max(cpu_i64(counts)[s * counts.ld + i] - capacity, 0);
            cpu_i64(by_expert)[i] += n;
            cpu_i64(by_group)[cpu_i32(group)[s]] += n;
        }
}

static int64_t fixed_point(double x, double unit) { return fabs(x) <= 1.7976931348623157e308 ? llrint(x * unit) : 0; }

/* A few additions per token: on one thread they cost less than a team. */
void CPU(count_routes)(mu_device *dev, int64_t T, int64_t E, int64_t K, double unit, mu_mat ids, mu_mat gates, mu_mat mass, mu_mat pairs) {
    (void)dev;
    int32_t *together = cpu_i32(pairs);
    for (int64_t t = 0; t < T; t++) {
        const int32_t *id = cpu_i32(ids) + t * ids.ld;
        for (int64_t k = 0; k < K; k++) cpu_i64(mass)[id[k]] += fixed_point((double)cpu_f32(gates)[t * gates.ld + k], unit);
        for (int64_t k = 1; k < K && together; k++)
            for (int64_t l = 0; l < k; l++) {
                int64_t i = id[k] < id[l] ? id[k] : id[l], j = id[k] + id[l] - i;
                together[i * (2 * E - i - 1) / 2 + j - i - 1]++;
            }
    }
}

static double row_entropy(int64_t E, const float *scores) {
    double sum = 0, weighted = 0;
    for (int64_t i = 0; i < E; i++) {
        double s = (double)scores[i];
        sum += s;
        if (s > 0) weighted += s * log(s);
    }
    return log(sum) - weighted / sum;
}

static double logit_of(bool sigmoid, double score) {
    double s = score > 0x1p-126 ? score : 0x1p-126;
    if (s > 1 - 0x1p-24) s = 1 - 0x1p-24;
    return sigmoid ? log(s / (1 - s)) : log(s);
}

static double row_top_margin(int64_t E, bool sigmoid, const float *scores) {
    float first = 0, second = 0;
    for (int64_t i = 0; i < E; i++) {
        if (scores[i] > first) second = first, first = scores[i];
        else if (scores[i] > second) second = scores[i];
    }
    return E > 1 ? logit_of(sigmoid, (double)first) - logit_of(sigmoid, (double)second) : 0;
}

/* keys: room for [E], scores + bias; of the chosen minus infinity afterwards. */
static double row_boundary_margin(int64_t E, int64_t K, const float *scores, const float *bias, const int32_t *ids, double *keys) {
    double least = INFINITY, most = -INFINITY;
    for (int64_t i = 0; i < E; i++) keys[i] = (double)scores[i] + (bias ? (double)bias[i] : 0);
    for (int64_t k = 0; k < K; k++) {
        if (keys[ids[k]] < least) least = keys[ids[k]];
        keys[ids[k]] = -INFINITY;
    }
    for (int64_t i = 0; i < E; i++) most = keys[i] > most ? keys[i] : most;
    return K < E ? least - most : 0;
}

void CPU(route_margins)(mu_device *dev, int64_t T, int64_t E, int64_t K, bool sigmoid, double unit, mu_mat scores, mu_mat bias, mu_mat ids,
                        mu_mat sums) {
    int team = cpu_team(T * E * 16);
    int64_t entropy = 0, top = 0, boundary = 0;
    size_t mark = mu_arena_mark(&dev->scratch);
    cpu_buffers buffers = cpu_buffers_new(dev, team, 2 * (size_t)E);
#pragma omp parallel for schedule(static) num_threads(team) reduction(+ : entropy, top, boundary)
    for (int64_t t = 0; t < T; t++) {
        const float *p = cpu_f32(scores) + t * scores.ld;
        double *keys = (double *)(void *)cpu_buffer(buffers);
        entropy += fixed_point(row_entropy(E, p), unit);
        top += fixed_point(row_top_margin(E, sigmoid, p), unit);
        boundary += fixed_point(row_boundary_margin(E, K, p, cpu_f32(bias), cpu_i32(ids) + t * ids.ld, keys), unit);
    }
    mu_arena_release(&dev->scratch, mark);
    cpu_i64(sums)[0] += entropy, cpu_i64(sums)[1] += top, cpu_i64(sums)[2] += boundary;
}

/* In their order, so that every instruction set adds the same. */
static double row_norm(int64_t E, const float *x) {
    double s = 0;
    for (int64_t i = 0; i < E; i++) s += (double)x[i] * (double)x[i];
    return sqrt(s);
}

void CPU(sum_norms)(mu_device *dev, int64_t T, int64_t E, double unit, mu_mat x, mu_mat sum) {
    (void)dev;
    int64_t all = 0;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * E)) reduction(+ : all)
    for (int64_t t = 0; t < T; t++) {
        double norm = row_norm(E, cpu_f32(x) + t * x.ld), most = 0x1p39, scaled = norm * unit;
        if (norm <= 1.7976931348623157e308) all += fixed_point(scaled < most ? scaled : most, 1);
    }
    *cpu_i64(sum) += all;
}

/* keys: room for [E] */
static double cutoff(int64_t E, int64_t K, const float *scores, const float *bias, const int32_t *ids, double *keys) {
    double most = -INFINITY;
    for (int64_t i = 0; i < E; i++) keys[i] = (double)scores[i] + (bias ? (double)bias[i] : 0);
    for (int64_t k = 0; k < K; k++) keys[ids[k]] = -INFINITY;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < E; i++) most = keys[i] > most ? keys[i] : most;
    return most;
}

/* The cutoffs of all tokens, then the histogram of each expert: no two threads count in the same one. */
void CPU(count_cutoffs)(mu_device *dev, int64_t T, int64_t E, int64_t K, int64_t bins, double low, double width, mu_mat scores, mu_mat bias,
                        mu_mat ids, mu_mat counts) {
    if (K == E) return;
    int team = cpu_team(T * E * 4);
    size_t mark = mu_arena_mark(&dev->scratch);
    double *cutoffs = mu_arena_alloc(&dev->scratch, (size_t)T * sizeof *cutoffs);
    cpu_buffers buffers = cpu_buffers_new(dev, team, 2 * (size_t)E);
#pragma omp parallel for schedule(static) num_threads(team)
    for (int64_t t = 0; t < T; t++)
        cutoffs[t] = cutoff(E, K, cpu_f32(scores) + t * scores.ld, bias.data ? cpu_f32(bias) : NULL, cpu_i32(ids) + t * ids.ld,
                            (double *)(void *)cpu_buffer(buffers));
#pragma omp parallel for schedule(static) num_threads(team)
    for (int64_t i = 0; i < E; i++) {
        int32_t *count = cpu_i32(counts) + i * counts.ld;
        for (int64_t t = 0; t < T; t++) {
            double bin = (cutoffs[t] - (double)cpu_f32(scores)[t * scores.ld + i] - low) / width;
            count[bin > 0 ? bin < (double)bins ? (int64_t)bin : bins - 1 : 0]++;
        }
    }
    mu_arena_release(&dev->scratch, mark);
}

/* Over the experts with coefficients of at least 0: their scores, and these times the coefficients. */
static double row_sum(int64_t E, const float *coef, const float *x) {
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < E; i++) s += coef[i] >= 0 ? (double)x[i] : 0;
    return s;
}

static double row_dot(int64_t E, const float *coef, const float *x) {
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < E; i++) s += coef[i] >= 0 ? (double)coef[i] * (double)x[i] : 0;
    return s;
}

static double kept_factor(int64_t E, const int64_t *counts, const int32_t *exempt) {
    int64_t all = 0, kept = 0, n = 0;
    for (int64_t i = 0; i < E; i++) {
        all += counts[i];
        if (!exempt[i]) kept += counts[i], n++;
    }
    return kept ? (double)all * (double)n / ((double)kept * (double)E) : 0;
}

void CPU(balance_coef)(mu_device *dev, int64_t n, int64_t E, double factor, mu_mat counts, mu_mat exempt, mu_mat coef) {
    (void)dev;
    const int32_t *out = exempt.data ? cpu_i32(exempt) : NULL;
    for (int64_t r = 0; r < n; r++) {
        const int64_t *count = cpu_i64(counts) + r * counts.ld;
        double by = out ? factor * kept_factor(E, count, out) : factor;
        for (int64_t i = 0; i < E; i++) cpu_f32(coef)[r * coef.ld + i] = out && out[i] ? -1 : (float)(by * (double)count[i]);
    }
}

static const double NO_SHARE = 0x1p-100;

void CPU(balance_fwd)(mu_device *dev, int64_t T, int64_t E, int64_t segment, bool normalise, mu_mat scores,
                      mu_mat coef, mu_mat out) {
    int64_t blocks = cpu_blocks(T, ROWS);
    size_t mark = mu_arena_mark(&dev->scratch);
    double *part = mu_arena_alloc(&dev->scratch, (size_t)blocks * sizeof *part), total = 0;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * E))
    for (int64_t b = 0; b < blocks; b++) {
        double s = 0;
        for (int64_t t = b * ROWS; t < cpu_min(T, (b + 1) * ROWS); t++) {
            const float *p = cpu_f32(scores) + t * scores.ld, *c = cpu_f32(coef) + t / segment * coef.ld;
            double sum = normalise ? row_sum(E, c, p) : 1;
            if (sum >= NO_SHARE) s += row_dot(E, c, p) / sum;
        }
        part[b] = s;
    }
    for (int64_t b = 0; b < blocks; b++) total += part[b];
    *cpu_f64(out) = total;
    mu_arena_release(&dev->scratch, mark);
}

void CPU(balance_bwd)(mu_device *dev, int64_t T, int64_t E, int64_t segment, bool normalise, mu_mat scores,
                      mu_mat coef, mu_mat dout, mu_mat dscores) {
    (void)dev;
    double d = *cpu_f64(dout);
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * E))
    for (int64_t t = 0; t < T; t++) {
        const float *p = cpu_f32(scores) + t * scores.ld, *c = cpu_f32(coef) + t / segment * coef.ld;
        float *dp = cpu_f32(dscores) + t * dscores.ld;
        double sum = normalise ? row_sum(E, c, p) : 1, mean = normalise ? row_dot(E, c, p) / sum : 0;
        for (int64_t i = 0; i < E && sum >= NO_SHARE; i++) dp[i] += c[i] >= 0 ? (float)(d * ((double)c[i] - mean) / sum) : 0;
    }
}

/* Few experts have a gate: their rows' other values are skipped. */
static double row_gate(int64_t E, const float *coef, const float *r) {
    double sum = 0;
    for (int64_t i = 0; i < E; i++) {
        double x = coef[i] > 0 ? -(double)r[i] : (double)r[i];
        if (coef[i] != 0) sum += fabs((double)coef[i]) * (fmax(x, 0) + log1p(exp(-fabs(x))));
    }
    return sum;
}

void CPU(gate_fwd)(mu_device *dev, int64_t T, int64_t E, int64_t segment, mu_mat logits, mu_mat coef, mu_mat out) {
    int64_t blocks = cpu_blocks(T, ROWS);
    size_t mark = mu_arena_mark(&dev->scratch);
    double *part = mu_arena_alloc(&dev->scratch, (size_t)blocks * sizeof *part), total = 0;
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * E))
    for (int64_t b = 0; b < blocks; b++) {
        part[b] = 0;
        for (int64_t t = b * ROWS; t < cpu_min(T, (b + 1) * ROWS); t++)
            part[b] += row_gate(E, cpu_f32(coef) + t / segment * coef.ld, cpu_f32(logits) + t * logits.ld);
    }
    for (int64_t b = 0; b < blocks; b++) total += part[b];
    *cpu_f64(out) = total;
    mu_arena_release(&dev->scratch, mark);
}

void CPU(gate_bwd)(mu_device *dev, int64_t T, int64_t E, int64_t segment, mu_mat logits, mu_mat coef, mu_mat dout, mu_mat dlogits) {
    (void)dev;
    double d = *cpu_f64(dout);
#pragma omp parallel for schedule(static) num_threads(cpu_team(T * E))
    for (int64_t t = 0; t < T; t++) {
        const float *r = cpu_f32(logits) + t * logits.ld, *c = cpu_f32(coef) + t / segment * coef.ld;
        float *dr = cpu_f32(dlogits) + t * dlogits.ld;
        for (int64_t i = 0; i < E; i++)
            if (c[i] != 0) dr[i] -= (float)(d * (double)c[i] / (1 + exp(c[i] > 0 ? (double)r[i] : -(double)r[i])));
    }
}

void CPU(zloss_fwd)(mu_device *dev, int64_t T, double coef, mu_mat lse, mu_mat out) {
    CPU(sumsq)(dev, T, lse, false, out);
    *cpu_f64(out) *= coef;
}

void CPU(zloss_bwd)(mu_device *dev, int64_t T, double coef, mu_mat lse, mu_mat dout, mu_mat dlse) {
    CPU(axpy)(dev, T, 2 * coef * *cpu_f64(dout), lse, dlse);
}
