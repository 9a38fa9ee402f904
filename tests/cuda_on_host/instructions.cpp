/* instructions.cpp - warp primitives and the instructions of kernels/cuda/ptx.h, as the CUDA and PTX manuals say. */
#include "engine.h"
#include "on_host.h"

using namespace emu;

__shared__ __align__(128) unsigned char dynamic_shared[max_shared];

/* ---------------------------------------------------------------- shuffles, votes, reductions */
namespace {

struct Shuffle { unsigned long long value, result; int source; };

void finish_shuffle(void **mine, unsigned mask) {
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        auto *s = (Shuffle *)mine[lane];
        if (!(mask >> s->source & 1))
            fail("a shuffle of lane %d reads lane %d, which its mask %08x leaves out", lane, s->source, mask);
        s->result = ((Shuffle *)mine[s->source])->value;
    }
}

/* The lane that is read; the own one where the other lies outside the segment (PTX, shfl.sync). */
int shuffle_source(int kind, int lane, int argument, int width) {
    int first = lane & ~(width - 1), last = first + width - 1;
    switch (kind) {
        case 0: return first + (argument & (width - 1));
        case 1: return (lane ^ argument) <= last ? lane ^ argument : lane;
        case 2: return lane - argument >= first ? lane - argument : lane;
        default: return lane + argument <= last ? lane + argument : lane;
    }
}

struct Vote { unsigned long long value; unsigned result; };

template <typename F> void fold(void **mine, unsigned mask, F combine) {
    unsigned result = (unsigned)((Vote *)mine[__builtin_ctz(mask)])->value;
    for (unsigned rest = mask & (mask - 1); rest; rest &= rest - 1)
        result = combine(result, (unsigned)((Vote *)mine[__builtin_ctz(rest)])->value);
    for (unsigned rest = mask; rest; rest &= rest - 1) ((Vote *)mine[__builtin_ctz(rest)])->result = result;
}
void finish_ballot(void **mine, unsigned mask) {
    unsigned result = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        result |= (unsigned)(((Vote *)mine[lane])->value != 0) << lane;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) ((Vote *)mine[__builtin_ctz(rest)])->result = result;
}
void finish_match(void **mine, unsigned mask) {
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        auto *v = (Vote *)mine[__builtin_ctz(rest)];
        v->result = 0;
        for (unsigned others = mask; others; others &= others - 1) {
            int other = __builtin_ctz(others);
            v->result |= (unsigned)(((Vote *)mine[other])->value == v->value) << other;
        }
    }
}
void finish_add(void **mine, unsigned mask) { fold(mine, mask, [](unsigned a, unsigned b) { return a + b; }); }
void finish_min(void **mine, unsigned mask) { fold(mine, mask, [](unsigned a, unsigned b) { return min(a, b); }); }
void finish_max(void **mine, unsigned mask) { fold(mine, mask, [](unsigned a, unsigned b) { return max(a, b); }); }
void finish_min_signed(void **mine, unsigned mask) {
    fold(mine, mask, [](unsigned a, unsigned b) { return (unsigned)min((int)a, (int)b); });
}
void finish_max_signed(void **mine, unsigned mask) {
    fold(mine, mask, [](unsigned a, unsigned b) { return (unsigned)max((int)a, (int)b); });
}
void finish_and(void **mine, unsigned mask) { fold(mine, mask, [](unsigned a, unsigned b) { return a & b; }); }
void finish_or(void **mine, unsigned mask) { fold(mine, mask, [](unsigned a, unsigned b) { return a | b; }); }
void finish_xor(void **mine, unsigned mask) { fold(mine, mask, [](unsigned a, unsigned b) { return a ^ b; }); }

const struct { const char *name; finish_lanes *finish; } votes[] = {
    {"a vote", finish_ballot}, {"__match_any_sync", finish_match}, {"__reduce_add_sync", finish_add},
    {"__reduce_min_sync", finish_min}, {"__reduce_max_sync", finish_max}, {"__reduce_min_sync", finish_min_signed},
    {"__reduce_max_sync", finish_max_signed}, {"__reduce_and_sync", finish_and}, {"__reduce_or_sync", finish_or},
    {"__reduce_xor_sync", finish_xor},
};
const char *const shuffles[] = {"__shfl_sync", "__shfl_xor_sync", "__shfl_up_sync", "__shfl_down_sync"};

}

void emu::finish_syncwarp(void **, unsigned) {}

unsigned long long mu_emulated_shuffle(int kind, unsigned mask, unsigned long long value, int argument, int width,
                                       const char *file, int line) {
    Shuffle mine{value, 0, shuffle_source(kind, current->number % 32, argument, width)};
    collect(shuffles[kind], mask, &mine, finish_shuffle, {file, line});
    return mine.result;
}

unsigned mu_emulated_vote(int kind, unsigned mask, unsigned long long value, const char *file, int line) {
    Vote mine{value, 0};
    collect(votes[kind].name, mask, &mine, votes[kind].finish, {file, line});
    return mine.result;
}

void mu_emulated_syncwarp(unsigned mask, const char *file, int line) {
    collect("__syncwarp", mask, nullptr, finish_syncwarp, {file, line});
}

void mu_emulated_fence(void) { MU_CHECK_IF(check_fence();) }

/* ---------------------------------------------------------------- addresses of shared memory */
/* 32 bits hold them: the distance from a place that lies before all shared variables of this program. */
static uintptr_t shared_origin(void) { return (uintptr_t)dynamic_shared - (1u << 30); }

size_t __cvta_generic_to_shared(const void *p) {
    uintptr_t distance = (uintptr_t)p - shared_origin();
    if (distance >> 32) fail("%p is not the address of shared memory", p);
    return distance;
}
static unsigned char *shared_pointer(unsigned address) { return (unsigned char *)(shared_origin() + address); }

/* ---------------------------------------------------------------- ldmatrix and mma.sync */
namespace {

struct Ldmatrix { unsigned *r; const unsigned char *row; };

void load_matrices(void **mine, bool transposed) {
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < 32; lane++) {
            int g = lane / 4, c = lane % 4 * 2;
            unsigned short pair[2];
            for (int k = 0; k < 2; k++) {
                int row = transposed ? c + k : g, column = transposed ? g : c + k;
                memcpy(&pair[k], ((Ldmatrix *)mine[8 * i + row])->row + 2 * column, 2);
            }
            ((Ldmatrix *)mine[lane])->r[i] = pair[0] | (unsigned)pair[1] << 16;
        }
}
void finish_ldmatrix(void **mine, unsigned) { load_matrices(mine, false); }
void finish_ldmatrix_trans(void **mine, unsigned) { load_matrices(mine, true); }

struct Mma { float *d; const unsigned *a, *b; };

inline float low(unsigned pair) { return __uint_as_float(pair << 16); }
inline float high(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

void finish_mma(void **mine, unsigned) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto *m = (const Mma *)mine[lane];
        int g = lane / 4, c = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            a[g + i % 2 * 8][c + i / 2 * 8] = low(m->a[i]);
            a[g + i % 2 * 8][c + i / 2 * 8 + 1] = high(m->a[i]);
            d[g + i / 2 * 8][c + i % 2] = m->d[i];
        }
        for (int i = 0; i < 2; i++) {
            b[c + i * 8][g] = low(m->b[i]);
            b[c + i * 8 + 1][g] = high(m->b[i]);
        }
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; lane++) {
        const auto *m = (const Mma *)mine[lane];
        int g = lane / 4, c = lane % 4 * 2;
        for (int i = 0; i < 4; i++) m->d[i] = d[g + i / 2 * 8][c + i % 2];
    }
}

constexpr unsigned full = 0xffffffffu;

}

void mu_emulated_ldmatrix(unsigned r[4], unsigned row, bool transposed, const char *file, int line) {
    Ldmatrix mine{r, shared_pointer(row)};
    if ((uintptr_t)mine.row % 16) fail("ldmatrix of an address that is no multiple of 16 bytes");
    MU_CHECK_IF(check_access(mine.row, 16, READ, __builtin_return_address(0));)
    if (transposed) collect("ldmatrix.trans", full, &mine, finish_ldmatrix_trans, {file, line});
    else collect("ldmatrix", full, &mine, finish_ldmatrix, {file, line});
}

void mu_emulated_mma(float d[4], const unsigned a[4], const unsigned b[2], const char *file, int line) {
    Mma mine{d, a, b};
    collect("mma.sync", full, &mine, finish_mma, {file, line});
}

/* ---------------------------------------------------------------- cp.async */
/* The data arrives at the wait and no earlier; until then the place holds poison. */
void mu_emulated_cp_async(unsigned to, const void *from, int size, int bytes) {
    Copy copy{shared_pointer(to), (const unsigned char *)from, size, bytes};
    if ((uintptr_t)copy.to % (unsigned)size || (uintptr_t)from % (unsigned)size)
        fail("cp.async of %d bytes with an address that is no multiple of them", size);
    if (bytes < 0 || bytes > size) fail("cp.async of %d bytes, %d of them from memory", size, bytes);
    MU_CHECK_IF(check_copy_begins(copy, __builtin_return_address(0));)
    memset(copy.to, 0xff, (size_t)size);
    current->copies.push_back(copy);
    current->open_copies++;
}

void mu_emulated_cp_async_commit(void) {
    current->groups.push_back(current->open_copies);
    current->open_copies = 0;
}

void mu_emulated_cp_async_wait(int pending) {
    size_t done = 0, groups = 0;
    for (; current->groups.size() - groups > (size_t)pending; groups++) done += (size_t)current->groups[groups];
    for (size_t i = 0; i < done; i++) {
        const Copy &copy = current->copies[i];
        MU_CHECK_IF(check_copy_ends(copy);)
        memcpy(copy.to, copy.from, (size_t)copy.bytes);
        memset(copy.to + copy.bytes, 0, (size_t)(copy.size - copy.bytes));
    }
    current->copies.erase(current->copies.begin(), current->copies.begin() + (ptrdiff_t)done);
    current->groups.erase(current->groups.begin(), current->groups.begin() + (ptrdiff_t)groups);
}
