/* count.cpp - what each kernel did: launches in every build; in the checked one also bytes, sectors and bank conflicts.
 *
 * The device moves the accesses of a warp's lanes together when they execute one instruction at one time. Here lanes run
 * one after the other, so accesses are put together by instruction (the return address of the check) and by how many
 * times the lane has executed it since the last barrier. */
#include "engine.h"

#include <algorithm>
#include <deque>
#include <map>
#include <unordered_map>

namespace emu {

bool counting;

namespace {

std::map<std::string, mu_emulation_counters> kernels;
mu_emulation_counters *now;
int64_t waits, allocations;

struct Pending { unsigned lanes; const char *address[32]; uint8_t size[32]; };
struct Instruction {
    Access how;
    bool shared, listed;
    uint64_t first;                     /* how often the oldest pending one had been executed before */
    uint64_t executed[32];
    std::deque<Pending> pending;
};

std::unordered_map<uintptr_t, Instruction> instructions;
struct { uintptr_t key; Instruction *instruction; } recent[4096];      /* where to find them quickly */
std::vector<Instruction *> listed;      /* those with something pending or counted in this phase of this warp */
int counted_warp = -1;

/* ---------------------------------------------------------------- one access of a warp */
struct Piece { uintptr_t low, high; };

/* The stretches of memory that the lanes touch, sorted and without overlaps. */
int stretches(const Pending &p, Piece *out) {
    Piece all[32];
    int n = 0, merged = 0;
    for (unsigned rest = p.lanes; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        uintptr_t low = (uintptr_t)p.address[lane], high = low + p.size[lane];
        if (n && all[n - 1].high == low) all[n - 1].high = high;
        else all[n++] = {low, high};
    }
    std::sort(all, all + n, [](const Piece &a, const Piece &b) { return a.low < b.low; });
    for (int i = 0; i < n; i++) {
        if (merged && all[i].low <= out[merged - 1].high) out[merged - 1].high = std::max(out[merged - 1].high, all[i].high);
        else out[merged++] = all[i];
    }
    return merged;
}

void count_global(const Instruction &instruction, const Pending &p) {
    const uintptr_t sector = 32;
    Piece piece[32];
    int n = stretches(p, piece);
    int64_t bytes = 0, sectors = 0;
    uintptr_t last = 0;                 /* the sector after the last one that was counted */
    for (int i = 0; i < n; i++) {
        uintptr_t from = std::max(piece[i].low / sector, last), to = (piece[i].high - 1) / sector + 1;
        bytes += (int64_t)(piece[i].high - piece[i].low);
        sectors += (int64_t)(to - from);
        last = to;
    }
    int64_t ideal = ((int64_t)(piece[0].low % sector) + bytes + (int64_t)sector - 1) / (int64_t)sector;
    now->accesses++;
    now->uncoalesced += sectors > ideal;
    now->excess_sectors += sectors - ideal;
    if (instruction.how != WRITE) now->read_bytes += bytes, now->read_sectors += sectors;
    if (instruction.how != READ) now->written_bytes += bytes, now->written_sectors += sectors;
}

/* Rounds beyond the first that 32 banks of 4 bytes need for these lanes. */
int conflicts(const Pending &p, unsigned lanes) {
    uintptr_t words[32 * 4];
    int n = 0, used[32] = {}, most = 1;
    for (unsigned rest = lanes; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        uintptr_t at = (uintptr_t)p.address[lane];
        for (uintptr_t word = at / 4; word <= (at + p.size[lane] - 1) / 4; word++) words[n++] = word;
    }
    std::sort(words, words + n);
    n = (int)(std::unique(words, words + n) - words);
    for (int i = 0; i < n; i++) most = std::max(most, ++used[words[i] % 32]);
    return most - 1;
}

/* Accesses of 8 bytes are served by half warps, of 16 bytes by quarter warps. */
void count_shared(const Pending &p) {
    int size = 0;
    for (unsigned rest = p.lanes; rest; rest &= rest - 1) size = std::max(size, (int)p.size[__builtin_ctz(rest)]);
    int together = size > 8 ? 8 : size > 4 ? 16 : 32;
    now->shared_accesses++;
    for (int lane = 0; lane < 32; lane += together) {
        unsigned lanes = p.lanes & ((together == 32 ? 0u : 1u << together) - 1) << lane;
        if (lanes) now->bank_conflicts += conflicts(p, lanes);
    }
}

void count(const Instruction &instruction, const Pending &p) {
    if (instruction.shared) count_shared(p);
    else count_global(instruction, p);
}

unsigned lanes_of(int warp) {
    int threads = (int)(launched->block.x * launched->block.y * launched->block.z) - 32 * warp;
    return threads >= 32 ? 0xffffffffu : (1u << threads) - 1;
}

}

/* What lanes have left without the others is counted as it is: the lanes diverged. */
void count_flush(void) {
    for (Instruction *i : listed) {
        for (const Pending &p : i->pending) count(*i, p);
        i->pending.clear();
        i->listed = false;
    }
    listed.clear();
    counted_warp = -1;
}

void count_access(const void *p, int size, Access how, const void *pc, bool shared) {
    int warp = current->number / 32, lane = current->number % 32;
    if (warp != counted_warp) {
        count_flush();
        counted_warp = warp;
    }
    uintptr_t key = (uintptr_t)pc << 3 | (uintptr_t)how << 1 | shared;
    auto &slot = recent[(key ^ key >> 12) % 4096];
    if (slot.key != key) slot = {key, &instructions[key]};
    Instruction &i = *slot.instruction;
    if (!i.listed) {
        i.how = how, i.shared = shared, i.listed = true, i.first = 0;
        memset(i.executed, 0, sizeof i.executed);
        listed.push_back(&i);
    }
    size_t at = (size_t)(i.executed[lane]++ - i.first);
    if (at == i.pending.size()) i.pending.emplace_back(Pending{0, {}, {}});
    Pending &pending = i.pending[at];
    pending.lanes |= 1u << lane;
    pending.address[lane] = (const char *)p;
    pending.size[lane] = (uint8_t)size;
    unsigned all = lanes_of(warp);
    while (!i.pending.empty() && i.pending.front().lanes == all) {
        count(i, i.pending.front());
        i.pending.pop_front();
        i.first++;
    }
}

void count_new_bytes(int n, Access how) {
    if (how != WRITE) now->read_footprint += n;
    if (how != READ) now->written_footprint += n;
}

void count_launch(const Launch &launch) {
    now = &kernels[launch.name];
    now->launches++;
    now->dynamic_shared = std::max(now->dynamic_shared, (int64_t)launch.shared_bytes);
    now->blocks += (int64_t)launch.grid.x * launch.grid.y * launch.grid.z;
    now->threads += (int64_t)launch.grid.x * launch.grid.y * launch.grid.z * launch.block.x * launch.block.y * launch.block.z;
}
void count_call(const char *name) {
    now = &kernels[name];
    now->launches++;
}
void count_seconds(double seconds) { now->seconds += seconds; }
void count_wait(void) { waits++; }
void count_allocation(void) { allocations++; }

}

using namespace emu;

void mu_emulation_counters_reset(void) {
    kernels.clear();
    counting = true;
    waits = allocations = 0;
}

int mu_emulation_kernel_count(void) { return (int)kernels.size(); }

const char *mu_emulation_kernel(int i, mu_emulation_counters *counters) {
    auto at = std::next(kernels.begin(), i);
    *counters = at->second;
    return at->first.c_str();
}

mu_emulation_counters mu_emulation_counters_of(const char *name) {
    auto found = kernels.find(name);
    return found == kernels.end() ? mu_emulation_counters{} : found->second;
}

int64_t mu_emulation_host_waits(void) { return waits; }
int64_t mu_emulation_allocations(void) { return allocations; }

void mu_emulation_report(FILE *to) {
    fprintf(to, "%-44s %8s %12s %12s %12s %12s %10s %9s %10s %9s %8s\n", "kernel", "launches", "read", "of these new",
            "written", "of these new", "accesses", "uncoalesc", "shared", "conflicts", "host s");
    for (auto &[name, c] : kernels)
        fprintf(to, "%-44s %8lld %12lld %12lld %12lld %12lld %10lld %9lld %10lld %9lld %8.3f\n", name.c_str(),
                (long long)c.launches, (long long)c.read_sectors * 32, (long long)c.read_footprint,
                (long long)c.written_sectors * 32, (long long)c.written_footprint, (long long)c.accesses,
                (long long)c.uncoalesced, (long long)c.shared_accesses, (long long)c.bank_conflicts, c.seconds);
    fprintf(to, "host waited %lld times\n", (long long)waits);
}
