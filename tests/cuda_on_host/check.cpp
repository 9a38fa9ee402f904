/* check.cpp - what every access of an emulated thread is held against, in the checked build.
 *
 * The .cu files are compiled with -fsanitize=thread, for which the compiler calls __tsan_read4(address) and its kin
 * before each access; no thread sanitizer is linked, these functions are defined here. Each byte of device and shared
 * memory has a state (there at all, written, on its way) and a cell: who wrote and who read it last, and when.
 *
 * Time. A phase is what a block does between two barriers; phases are numbered through the whole run, so a cell of an
 * earlier launch, an earlier block or an earlier phase is known by its number. Within a phase __syncwarp orders the
 * lanes of one warp; shuffles and votes order nothing. Blocks of one launch are never ordered, but the last one that
 * counts itself with an atomic after __threadfence sees what the others did. */
#ifdef MU_EMULATION_CHECKED
#include "engine.h"

#include <elf.h>
#include <link.h>
#include <map>
#include <sys/mman.h>

namespace emu {

namespace {

/* ---------------------------------------------------------------- states and cells */
enum : uint8_t { NOTHING, FRESH, WRITTEN, COMING, GUARD, OUTSIDE = 0x80 };  /* OUTSIDE: of all bounds, beside the others */

struct Cell { uint64_t write, read; };      /* phase:32, thread:10, warp's time:18, flags:4; 0: never */
enum : uint64_t { ATOMIC = 1, OTHER_BLOCK = 2, WARP = 4, BLOCK = 8 };   /* WARP, BLOCK: several lanes, several warps read */

uint64_t stamp(uint32_t phase, int thread, uint32_t time, uint64_t flags) {
    return (uint64_t)phase << 32 | (uint64_t)thread << 22 | (uint64_t)(time & 0x3ffff) << 4 | flags;
}
uint32_t phase_of(uint64_t stamp) { return (uint32_t)(stamp >> 32); }
int thread_of(uint64_t stamp) { return (int)(stamp >> 22 & 1023); }
uint32_t time_of(uint64_t stamp) { return (uint32_t)(stamp >> 4 & 0x3ffff); }

constexpr size_t chunk_bytes = 2ull << 20;
struct Chunk { uint8_t state[chunk_bytes]; Cell cell[chunk_bytes]; };   /* of 2 MiB of addresses; touched as needed */

Chunk **chunks;
char *shared_low, *shared_high;             /* the thread storage of this program */
std::vector<uint8_t> shared_is, shared_state;
std::vector<Cell> shared_cell;
size_t dirty_low, dirty_high;               /* the states that a block has changed */
std::vector<std::pair<const char *, const char *>> constant;

uint32_t phase = 1, launch_phase, block_phase;
uint32_t warp_time[max_threads / 32];
bool fenced, sees_all;
struct Tally { unsigned long long block; uint64_t blocks; };
std::map<const void *, Tally> tallies;      /* blocks that counted themselves, by the address of the counter */

struct Shadow { uint8_t *state; Cell *cell; bool shared; };

char *space_low, *space_high;

Chunk *chunk_at(const char *p) {
    Chunk *&chunk = chunks[(size_t)(p - space_low) / chunk_bytes];
    if (!chunk) {
        void *m = mmap(nullptr, sizeof(Chunk), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) fail("no memory for the record of device memory");
        chunk = (Chunk *)m;
    }
    return chunk;
}

/* body(states, n) for each stretch of device memory that lies in one chunk. */
template <typename F> void each_stretch(const void *start, size_t bytes, F body) {
    for (const char *p = (const char *)start, *end = p + bytes; p < end;) {
        size_t at = (size_t)(p - space_low) % chunk_bytes, n = min(chunk_bytes - at, (size_t)(end - p));
        body(chunk_at(p)->state + at, n, p);
        p += n;
    }
}

/* ---------------------------------------------------------------- messages */
std::string shared_name(const char *p) {
    for (auto &v : shared_variables()) {
        size_t at = (size_t)(p - shared_low);
        if (at >= v.offset && at < v.offset + v.size) return text("byte %zu of shared %s", at - v.offset, v.name.c_str());
    }
    return text("%p, no shared variable", (const void *)p);
}

std::string place_of(const void *p) {
    if (p >= shared_low && p < shared_high) return shared_name((const char *)p);
    if (in_device_space(p)) return device_name(p);
    return text("%p", p);
}

[[noreturn]] void fail_at(const void *pc, const std::string &what) {
    std::string line = source_line(pc);
    fail("%s%s%s", what.c_str(), line.empty() ? "" : ", in ", line.c_str());
}

std::string thread_name(int number) {
    unsigned n = (unsigned)number, x = mu_block_dim.x, y = mu_block_dim.y;
    return text("thread (%u,%u,%u)", n % x, n / x % y, n / x / y);
}

const char *verb(Access how) { return how == READ ? "reads" : how == WRITE ? "writes" : "updates"; }

[[noreturn]] void bad_state(const char *p, int size, Access how, const void *pc, const Shadow &s) {
    int i = 0;
    while (i + 1 < size && (s.state[i] == WRITTEN || (how == WRITE && s.state[i] == FRESH))) i++;
    uint8_t state = s.state[i];
    std::string what = text("%s %d bytes at %s", verb(how), size, place_of(p).c_str());
    if (state & OUTSIDE) fail_at(pc, what + ": outside of every operand");
    if (state == NOTHING) fail_at(pc, what + (s.shared ? ": no shared memory of this launch" : ": no device memory"));
    if (state == COMING) fail_at(pc, what + ": a cp.async to it has not been waited for");
    fail_at(pc, what + (s.shared ? ": never written by this block" : ": never written"));
}

[[noreturn]] void race(const char *p, Access how, const void *pc, uint64_t other, bool other_wrote) {
    const char *did = !other_wrote ? "read" : other & ATOMIC ? "updated" : "wrote";
    std::string what = text("race: %s %s, which ", verb(how), place_of(p).c_str());
    if (phase_of(other) < block_phase || other & OTHER_BLOCK)
        fail_at(pc, what + text("another block %s in this launch", did));
    if (other & (WARP | BLOCK)) fail_at(pc, what + text("several threads %s since the last barrier", did));
    fail_at(pc, what + text("%s %s since the last barrier", thread_name(thread_of(other)).c_str(), did));
}

/* ---------------------------------------------------------------- races */
/* May the running thread touch what `other` left? Memory of all blocks goes back to launch_phase, that of this block to
 * block_phase: before `begin`, others used it for something else. */
inline bool ordered(uint64_t other, uint32_t begin) {
    uint32_t then = phase_of(other);
    if (then < begin) return true;
    if ((then < block_phase || other & OTHER_BLOCK) && !sees_all) return false;
    if (then < phase) return true;
    int me = current->number, thread = thread_of(other);
    if (other & BLOCK) return false;
    if (thread == me && !(other & WARP)) return true;
    return thread / 32 == me / 32 && time_of(other) < warp_time[me / 32];
}

/* Whether an earlier block of this launch is among those who did what `old` says. */
inline uint64_t other_block(uint64_t old, uint32_t begin) {
    return phase_of(old) >= begin && (phase_of(old) < block_phase || old & OTHER_BLOCK) ? (uint64_t)OTHER_BLOCK : 0;
}

/* The running thread joins those who read, or who updated: `old` says who did so before. */
inline uint64_t join(uint64_t old, uint32_t begin) {
    int me = current->number, warp = me / 32;
    uint64_t flags = other_block(old, begin);
    if (phase_of(old) == phase) {
        flags |= old & BLOCK;
        if (thread_of(old) / 32 != warp) flags |= BLOCK;
        else if (time_of(old) == (warp_time[warp] & 0x3ffff) && (thread_of(old) != me || old & WARP)) flags |= WARP;
    }
    return stamp(phase, me, warp_time[warp], flags);
}

inline void touch(Cell &cell, const char *p, Access how, const void *pc, bool shared) {
    uint32_t begin = shared ? block_phase : launch_phase;
    if (how == READ) {
        if (!ordered(cell.write, begin)) race(p, how, pc, cell.write, true);
        cell.read = join(cell.read, begin);
        return;
    }
    bool both_atomic = how == UPDATE && (cell.write & ATOMIC);
    if (!both_atomic && !ordered(cell.write, begin)) race(p, how, pc, cell.write, true);
    if (!ordered(cell.read, begin)) race(p, how, pc, cell.read, false);
    cell.write = both_atomic ? join(cell.write, begin) | ATOMIC
               : stamp(phase, current->number, warp_time[current->number / 32], how == UPDATE ? (uint64_t)ATOMIC : 0);
}

/* ---------------------------------------------------------------- which memory an address belongs to */
bool in_constant(const char *p) {
    for (auto &[low, high] : constant)
        if (p >= low && p < high) return true;
    const char *arguments = (const char *)launched->arguments.get();
    return p >= arguments && p < arguments + launched->argument_bytes;
}

[[noreturn]] void not_for_kernels(const char *p, int size, Access how, const void *pc) {
    fail_at(pc, text("%s %d bytes at %p: host memory", verb(how), size, (const void *)p));
}

inline bool find(const char *p, int size, Access how, const void *pc, Shadow &s) {
    if (p >= space_low && p < space_high) {
        Chunk *chunk = chunk_at(p);
        size_t at = (size_t)(p - space_low) % chunk_bytes;
        s = {chunk->state + at, chunk->cell + at, false};
        return true;
    }
    if (p >= shared_low && p < shared_high) {
        size_t at = (size_t)(p - shared_low);
        s = {&shared_state[at], &shared_cell[at], true};
        if (*s.state == GUARD) return false;
        if (how != READ) dirty_low = min(dirty_low, at), dirty_high = max(dirty_high, at + (size_t)size);
        return true;
    }
    if (how == READ && in_constant(p)) return false;
    not_for_kernels(p, size, how, pc);
}

/* ---------------------------------------------------------------- where the program's own memory lies */
/* Is it the one with the kernels? Then its thread storage is shared memory, what it cannot write is constant. */
int read_object(dl_phdr_info *info, size_t, void *) {
    char *tls = (char *)info->dlpi_tls_data, *shared = (char *)dynamic_shared;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS && tls && shared >= tls && shared < tls + info->dlpi_phdr[i].p_memsz)
            shared_low = tls, shared_high = tls + info->dlpi_phdr[i].p_memsz;
    for (int i = 0; shared_low && i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &h = info->dlpi_phdr[i];
        const char *low = (const char *)info->dlpi_addr + h.p_vaddr;
        if ((h.p_type == PT_LOAD && !(h.p_flags & PF_W)) || h.p_type == PT_GNU_RELRO) constant.push_back({low, low + h.p_memsz});
    }
    return shared_low != nullptr;
}

void mark(std::vector<uint8_t> &states, const char *start, size_t bytes, uint8_t state) {
    memset(&states[(size_t)(start - shared_low)], state, bytes);
}

}

void check_set_up(char *low, char *high) {
    space_low = low, space_high = high;
    size_t bytes = (size_t)(high - low) / chunk_bytes * sizeof(Chunk *);
    chunks = (Chunk **)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    dl_iterate_phdr(read_object, nullptr);
    size_t shared = (size_t)(shared_high - shared_low);
    shared_is.assign(shared + 16, NOTHING);         /* an access may begin at the last byte */
    shared_state.assign(shared + 16, NOTHING);
    shared_cell.assign(shared + 16, {});
    for (auto &v : shared_variables()) mark(shared_is, shared_low + v.offset, v.size, v.guard ? GUARD : FRESH);
}

/* ---------------------------------------------------------------- memory comes, goes, and is copied */
void check_up(const void *p, size_t bytes) {
    each_stretch(p, bytes, [](uint8_t *state, size_t n, const char *) { memset(state, FRESH, n); });
}
void check_down(const void *p, size_t bytes) {
    each_stretch(p, bytes, [](uint8_t *state, size_t n, const char *) { memset(state, NOTHING, n); });
}
void check_copied_to(const void *p, size_t bytes) {
    each_stretch(p, bytes, [](uint8_t *state, size_t n, const char *) {
        for (size_t i = 0; i < n; i++) state[i] = (state[i] & OUTSIDE) | WRITTEN;
    });
}
void check_copied_from(const void *p, size_t bytes) {
    each_stretch(p, bytes, [&](uint8_t *state, size_t n, const char *at) {
        for (size_t i = 0; i < n; i++)
            if ((state[i] & ~OUTSIDE) != WRITTEN)
                fail("a copy of %zu bytes from %s reads %s: never written", bytes, place_of(p).c_str(), place_of(at + i).c_str());
    });
}
void check_library(const char *name, const void *p, size_t bytes, Access how) {
    each_stretch(p, bytes, [&](uint8_t *state, size_t n, const char *at) {
        for (size_t i = 0; i < n; i++)
            if (state[i] != WRITTEN && !(how == WRITE && state[i] == FRESH))
                fail("%s %s %s: %s", name, verb(how), place_of(at + i).c_str(),
                     state[i] & OUTSIDE ? "outside of every operand" : "never written");
        if (how == WRITE) memset(state, WRITTEN, n);
    });
}
void check_outside(const void *p, size_t bytes, bool outside) {
    each_stretch(p, bytes, [=](uint8_t *state, size_t n, const char *) {
        for (size_t i = 0; i < n; i++) state[i] = outside ? state[i] | OUTSIDE : state[i] & ~OUTSIDE;
    });
}
void check_forget(const void *p, size_t bytes) {
    each_stretch(p, bytes, [](uint8_t *state, size_t n, const char *) {
        for (size_t i = 0; i < n; i++) state[i] = (state[i] & OUTSIDE) | FRESH;
    });
}

/* ---------------------------------------------------------------- time */
static void next_phase(void) {
    if (!++phase) fail("2^32 barriers: the checks cannot count further");
    memset(warp_time, 0, sizeof warp_time);
}

void check_launch(void) {
    next_phase();
    launch_phase = phase;
    block_phase = phase;
    tallies.clear();
    const char *dynamic = (const char *)dynamic_shared;
    mark(shared_is, dynamic, max_shared, NOTHING);
    mark(shared_is, dynamic, launched->shared_bytes, FRESH);
    shared_state = shared_is;
    dirty_low = shared_state.size(), dirty_high = 0;
}

void check_block(void) {
    next_phase();
    block_phase = phase;
    fenced = sees_all = false;
    if (dirty_low < dirty_high) memcpy(&shared_state[dirty_low], &shared_is[dirty_low], dirty_high - dirty_low);
    dirty_low = shared_state.size(), dirty_high = 0;
    count_flush();
}

void check_barrier(void) {
    next_phase();
    count_flush();
}

void check_syncwarp(int warp) { warp_time[warp]++; }
void check_fence(void) { fenced = true; }

/* A block that counts itself after a fence; the one that makes the count complete sees what all before it did. */
static void tally(const void *counter, unsigned long long block) {
    Tally &t = tallies[counter];
    if (!t.blocks || t.block != block) t.blocks++;
    t.block = block;
    if (t.blocks == block + 1) sees_all = true;
}

/* ---------------------------------------------------------------- accesses */
/* Bytes that this launch touches for the first time. */
static void count_footprint(const Cell *cell, int size, Access how) {
    int n = 0;
    for (int i = 0; i < size; i++) n += phase_of(how == READ ? cell[i].read : cell[i].write) < launch_phase;
    if (n) count_new_bytes(n, how);
}

void check_access(const void *address, int size, Access how, const void *pc) {
    if (!current) return;                           /* host code of a .cu file */
    const char *p = (const char *)address;
    if (p >= current->fibre->low && p < current->fibre->high) return;
    if (p >= space_low && p < space_high && (size_t)(p - space_low) % chunk_bytes + (size_t)size > chunk_bytes) {
        int first = (int)(chunk_bytes - (size_t)(p - space_low) % chunk_bytes);
        check_access(p, first, how, pc);
        return check_access(p + first, size - first, how, pc);
    }
    Shadow s;
    if (!find(p, size, how, pc, s)) return;
    bool good = true;
    for (int i = 0; i < size; i++) good &= s.state[i] == WRITTEN || (how == WRITE && s.state[i] == FRESH);
    if (!good) bad_state(p, size, how, pc, s);
    if (!s.shared) count_footprint(s.cell, size, how);
    for (int i = 0; i < size; i++) touch(s.cell[i], p, how, pc, s.shared);
    if (how != READ) memset(s.state, WRITTEN, (size_t)size);
    if (how == UPDATE && fenced) tally(p, launched_block());
    count_access(p, size, how, pc, s.shared);
}

/* Arguments and local variables, which the host's compiler may put anywhere, are not memory of the device. */
static void check_aligned(const void *p, int size, Access how, const void *pc) {
    bool ours = (p >= space_low && p < space_high) || (p >= shared_low && p < shared_high);
    if (current && ours && (uintptr_t)p % (unsigned)size)
        fail_at(pc, text("%s %d bytes at %p: not a multiple of %d", verb(how), size, p, size));
    check_access(p, size, how, pc);
}

static void check_range(const void *p, size_t bytes, Access how, const void *pc) {
    for (size_t i = 0; current && i < bytes; i += 16) check_access((const char *)p + i, (int)min(bytes - i, (size_t)16), how, pc);
}

/* The place is taken from now on, and nobody may read it until the copy was waited for. */
void check_copy_begins(const Copy &copy, const void *pc) {
    if (copy.bytes) check_access(copy.from, copy.bytes, READ, pc);
    check_access(copy.to, copy.size, WRITE, (const char *)pc + 1);      /* another access than the read */
    memset(&shared_state[(size_t)((char *)copy.to - shared_low)], COMING, (size_t)copy.size);
}

void check_copy_ends(const Copy &copy) {
    size_t at = (size_t)((char *)copy.to - shared_low);
    for (int i = 0; i < copy.size; i++) {
        if (shared_state[at + (size_t)i] != COMING) fail("two copies by cp.async to %s at a time", place_of(copy.to).c_str());
        touch(shared_cell[at + (size_t)i], (const char *)copy.to + i, WRITE, nullptr, true);
    }
    memset(&shared_state[at], WRITTEN, (size_t)copy.size);
}

}

using namespace emu;

void mu_emulated_atomic(void *address, int bytes) { check_aligned(address, bytes, UPDATE, __builtin_return_address(0)); }

#define PC __builtin_return_address(0)
#define OF_SIZE(n) \
    void __tsan_read##n(void *p) { check_aligned(p, n, READ, PC); } \
    void __tsan_write##n(void *p) { check_aligned(p, n, WRITE, PC); }
#define UNALIGNED(n) \
    void __tsan_unaligned_read##n(void *p) { check_access(p, n, READ, PC); } \
    void __tsan_unaligned_write##n(void *p) { check_access(p, n, WRITE, PC); }
extern "C" {
OF_SIZE(1) OF_SIZE(2) OF_SIZE(4) OF_SIZE(8) OF_SIZE(16)
UNALIGNED(2) UNALIGNED(4) UNALIGNED(8) UNALIGNED(16)
void __tsan_read_range(void *p, size_t bytes) { check_range(p, bytes, READ, PC); }
void __tsan_write_range(void *p, size_t bytes) { check_range(p, bytes, WRITE, PC); }
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_vptr_update(void **, void *) {}
}
#endif
