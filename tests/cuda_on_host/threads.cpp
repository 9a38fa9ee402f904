/* threads.cpp - the threads of a block, as fibres.
 *
 * Blocks run one after the other. A fibre runs one thread after another to its end; only a thread that has to wait
 * keeps its fibre, and another one goes on. So a kernel without barriers is a loop over calls, and a wait costs one
 * switch. Within a warp the runnable lanes go in the chosen order; when none is left the next warp goes, and when all
 * warps are through, everyone who lives must stand at the same barrier. */
#include "engine.h"

#include <boost/context/detail/fcontext.hpp>
#include <deque>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

uint3 mu_thread_index, mu_block_index, mu_block_dim, mu_grid_dim;

namespace emu {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

const Launch *launched;
Thread *current;
mu_emulation_order_kind order_kind;
uint64_t order_seed;

namespace {

struct Collective {             /* a warp primitive that some lanes have reached */
    const char *what;
    unsigned mask, arrived;
    Site site;
    void *mine[32];
};

struct Warp {
    unsigned ready;             /* by place in the order, not by lane */
    unsigned exists, ended;     /* by lane */
    int collectives;
    Collective collective[32];
    unsigned char lane_at[32], place_of[32];
};

struct {
    int threads, warps;
    int warp, started_warp;     /* place in the order of the warp that runs */
    int order[max_threads / 32];
    unsigned long long block, blocks;
    int ended;
    /* the barrier: who waits, what they brought */
    int waiting, kind, sum_or, sum_and, count, result;
    Site site;
    const Thread *first;
} block;

Thread threads[max_threads];
Warp warps[max_threads / 32];
std::deque<Fibre> every_fibre;
std::vector<Fibre *> pool;  /* those without a thread */
Fibre host;
mu_emulation_order_kind order;
uint64_t order_state;

/* ---------------------------------------------------------------- order */
uint32_t random_below(uint32_t n) {     /* splitmix64 */
    uint64_t z = order_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) % n);
}

template <typename T> void arrange(T *list, int n) {
    for (int i = 0; i < n; i++) list[i] = (T)(order == MU_EMULATION_BACKWARD ? n - 1 - i : i);
    for (int i = n - 1; i > 0 && order == MU_EMULATION_SHUFFLED; i--) std::swap(list[i], list[random_below((uint32_t)i + 1)]);
}

void arrange_warp(Warp &warp) {
    arrange(warp.lane_at, 32);
    for (int place = 0; place < 32; place++) warp.place_of[warp.lane_at[place]] = (unsigned char)place;
}

/* Lanes of a warp as places in its order. */
unsigned places(const Warp &warp, unsigned lanes) {
    if (order == MU_EMULATION_FORWARD) return lanes;
    unsigned result = 0;
    for (; lanes; lanes &= lanes - 1) result |= 1u << warp.place_of[__builtin_ctz(lanes)];
    return result;
}

/* Everyone who lives may run: at the start of a block and after a barrier. */
void release_all(void) {
    if (order == MU_EMULATION_SHUFFLED) {
        arrange(block.order, block.warps);
        for (int w = 0; w < block.warps; w++) arrange_warp(warps[w]);
    }
    for (int w = 0; w < block.warps; w++) warps[w].ready = places(warps[w], warps[w].exists & ~warps[w].ended);
    block.warp = 0;
    block.waiting = 0;
}

/* ---------------------------------------------------------------- what can go wrong */
std::string place(const Site &site) {
    const char *slash = site.file ? strrchr(site.file, '/') : nullptr;
    return text("%s:%d", slash ? slash + 1 : site.file ? site.file : "?", site.line);
}

[[noreturn]] void stuck(const Warp &warp) {
    const Collective &c = warp.collective[0];
    unsigned absent = c.mask & ~c.arrived;
    int lane = __builtin_ctz(absent), number = (int)(&warp - warps) * 32 + lane;
    current = &threads[(&warp - warps) * 32 + __builtin_ctz(c.arrived)];
    if (!(warp.exists >> lane & 1)) fail("%s at %s waits for lane %d, which the block has not got", c.what, place(c.site).c_str(), lane);
    if (warp.ended >> lane & 1) fail("%s at %s waits for lane %d, which has ended", c.what, place(c.site).c_str(), lane);
    fail("%s at %s waits for lane %d, which waits at %s", c.what, place(c.site).c_str(), lane,
         place(threads[number].site).c_str());
}

[[noreturn]] void barrier_without_all(void) {
    int gone = 0;
    while (!(warps[gone / 32].ended >> gone % 32 & 1)) gone++;
    current = const_cast<Thread *>(block.first);
    fail("__syncthreads at %s: %d threads of the block wait, but thread %d has ended", place(block.site).c_str(),
         block.waiting, gone);
}

/* ---------------------------------------------------------------- the scheduler */
bool begin_block(void) {
    if (block.block == block.blocks) return false;
    unsigned long long b = block.block++;
    mu_block_index.x = (unsigned)(b % mu_grid_dim.x);
    mu_block_index.y = (unsigned)(b / mu_grid_dim.x % mu_grid_dim.y);
    mu_block_index.z = (unsigned)(b / mu_grid_dim.x / mu_grid_dim.y);
    for (int w = 0; w < block.warps; w++) warps[w].ended = 0;
    block.ended = 0;
    MU_CHECK_IF(check_block();)
    release_all();
    return true;
}

/* All threads that live stand at the barrier. */
void pass_barrier(void) {
    if (block.ended) barrier_without_all();
    block.result = block.kind == 1 ? block.sum_or : block.kind == 2 ? block.sum_and : block.count;
    MU_CHECK_IF(check_barrier();)
    release_all();
}

/* The warp whose turn it is now that the one before cannot go on: NULL when the launch is over. */
__attribute__((noinline)) Warp *next_warp(void) {
    for (;;) {
        Warp &warp = warps[block.order[block.warp]];
        if (warp.ready) return &warp;
        if (warp.collectives) stuck(warp);
        if (++block.warp < block.warps) continue;
        block.warp = 0;
        if (block.ended < block.threads) pass_barrier();
        else if (!begin_block()) return nullptr;
    }
}

/* Who runs next: NULL when the launch is over. */
inline Thread *next(void) {
    Warp *warp = &warps[block.order[block.warp]];
    if (!warp->ready && !(warp = next_warp())) return nullptr;
    int place = __builtin_ctz(warp->ready);
    warp->ready &= warp->ready - 1;
    return &threads[(warp - warps) * 32 + warp->lane_at[place]];
}

void enter(Thread *thread) {
    current = thread;
    mu_thread_index = thread->index;
}

/* The address sanitizer wants to know on which stack the program is. */
void leave(Fibre *from, Fibre *to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from->sanitizer, to->low, (size_t)(to->high - to->low));
#endif
    (void)from, (void)to;
}

void arrive(Fibre *me, transfer_t back) {
    auto *from = (Fibre *)back.data;
    from->context = back.fctx;
#ifdef __SANITIZE_ADDRESS__
    const void *low;
    size_t bytes;
    __sanitizer_finish_switch_fiber(me->sanitizer, &low, &bytes);
    from->low = (char *)low, from->high = (char *)low + bytes;      /* of the host's stack this is the only news */
#endif
    (void)me;
}

void jump(Fibre *from, Fibre *to) {
    leave(from, to);
    arrive(from, jump_fcontext(to->context, from));
}

void end_thread(Thread *thread) {
    if (!thread->copies.empty()) fail("ends while %zu of its cp.async are under way", thread->copies.size());
    thread->fibre = nullptr;
    thread->groups.clear();
    warps[thread->number / 32].ended |= 1u << thread->number % 32;
    block.ended++;
}

/* A fibre's life: the thread it was woken for, then all that have not begun, until one goes on that waits elsewhere. */
void live(transfer_t from) {
    Fibre *me = pool.back();            /* the one that is being started is the last of the pool */
    pool.pop_back();
    arrive(me, from);
    for (;;) {
        Thread *thread = me->thread;
        while (thread && !thread->fibre) {
            enter(thread);
            thread->fibre = me;
            launched->invoke(launched->arguments.get());
            end_thread(thread);
            thread = next();
        }
        pool.push_back(me);
        jump(me, thread ? thread->fibre : &host);
        pool.pop_back();
    }
}

/* The top of each stack lies at another place within its pages, so that they do not share cache sets. */
Fibre *new_fibre(void) {
    static int made;
    const size_t size = 256 * 1024, guard = 4096;
    char *low = (char *)mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (low == MAP_FAILED) fail("no memory for the stack of a thread");
    mprotect(low, guard, PROT_NONE);
    char *high = low + size - made++ % 61 * 320;
    high = (char *)((uintptr_t)high & ~(uintptr_t)63);
    every_fibre.push_back({make_fcontext(high, (size_t)(high - low) - guard, live), low + guard, high, nullptr});
    return &every_fibre.back();
}

/* A fibre to start a thread on; it stays last in the pool until it runs. */
Fibre *idle(Thread *thread) {
    if (pool.empty()) pool.push_back(new_fibre());
    pool.back()->thread = thread;
    return pool.back();
}

/* The current thread waits until the scheduler picks it again. */
inline void wait(Site site) {
    Thread *me = current, *other = next();
    me->site = site;
    if (other == me) return;
    jump(me->fibre, other->fibre ? other->fibre : idle(other));
    enter(me);
}

void set_block(const Launch &launch) {
    mu_block_dim = {launch.block.x, launch.block.y, launch.block.z};
    mu_grid_dim = {launch.grid.x, launch.grid.y, launch.grid.z};
    block.threads = (int)(launch.block.x * launch.block.y * launch.block.z);
    block.warps = (block.threads + 31) / 32;
    block.block = 0;
    block.blocks = (unsigned long long)launch.grid.x * launch.grid.y * launch.grid.z;
    order = launch.order, order_state = launch.seed;
    arrange(block.order, block.warps);
    for (int w = 0; w < block.warps; w++) {
        int lanes = block.threads - w * 32;
        warps[w].exists = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
        arrange_warp(warps[w]);
    }
    for (int i = 0; i < block.threads; i++) {
        unsigned n = (unsigned)i;
        threads[i].number = i;
        threads[i].index = {n % launch.block.x, n / launch.block.x % launch.block.y, n / launch.block.x / launch.block.y};
    }
}

}

void run(const Launch &launch) {
    timespec start, end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    launched = &launch;
    count_launch(launch);
    set_block(launch);
    MU_CHECK_IF(check_launch();)
    MU_ASAN_IF(ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, launch.shared_bytes);)
    MU_ASAN_IF(ASAN_POISON_MEMORY_REGION(dynamic_shared + launch.shared_bytes, max_shared - launch.shared_bytes);)
    if (begin_block()) jump(&host, idle(next()));
    MU_CHECK_IF(count_flush();)
    current = nullptr;
    launched = nullptr;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    count_seconds((double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec));
}

unsigned long long launched_block(void) { return block.block - 1; }

std::string where(const Thread *thread) {
    return text("%s, block (%u,%u,%u), thread (%u,%u,%u)", launched->name.c_str(), mu_block_index.x, mu_block_index.y,
                mu_block_index.z, thread->index.x, thread->index.y, thread->index.z);
}

void collect(const char *what, unsigned mask, void *mine, finish_lanes *finish, Site site) {
    Warp &warp = warps[current->number / 32];
    int lane = current->number % 32, i = 0;
    if (!(mask >> lane & 1)) fail("%s at %s with mask %08x, which the calling lane %d is not in", what, place(site).c_str(), mask, lane);
    for (; i < warp.collectives; i++) {
        const Collective &c = warp.collective[i];
        if (c.mask == mask && c.what == what) break;
        if (c.mask & mask)
            fail("%s with mask %08x at %s, while lane %d is at %s with mask %08x at %s", what, mask, place(site).c_str(),
                 __builtin_ctz(c.arrived), c.what, c.mask, place(c.site).c_str());
    }
    Collective &c = warp.collective[i];
    if (i == warp.collectives) {
        warp.collectives++;
        c.what = what, c.mask = mask, c.arrived = 0, c.site = site;
    }
    c.arrived |= 1u << lane;
    c.mine[lane] = mine;
    if (c.arrived != mask) {
        wait(site);
        return;
    }
    finish(c.mine, mask);
    MU_CHECK_IF(if (finish == finish_syncwarp && !((warp.exists & ~warp.ended) & ~mask)) check_syncwarp(current->number / 32);)
    if (i != --warp.collectives) c = warp.collective[warp.collectives];
    warp.ready |= places(warp, mask & ~(1u << lane));
}

}

using namespace emu;

int mu_emulated_barrier(int kind, int value, const char *file, int line) {
    if (!block.waiting) {
        block.site = {file, line}, block.kind = kind, block.first = current;
        block.sum_or = 0, block.sum_and = 1, block.count = 0;
    } else if (block.site.line != line || block.kind != kind || (block.site.file != file && strcmp(block.site.file, file))) {
        fail("__syncthreads at %s, while thread %d of the block waits at another one, at %s", place({file, line}).c_str(),
             block.first->number, place(block.site).c_str());
    }
    block.waiting++;
    block.sum_or |= value != 0;
    block.sum_and &= value != 0;
    block.count += value != 0;
    wait({file, line});
    return block.result;
}

void mu_emulated_trap(const char *what, const char *file, int line) { fail("%s at %s", what, place({file, line}).c_str()); }

void mu_emulation_order(mu_emulation_order_kind kind, uint64_t seed) {
    order_kind = kind;
    order_seed = seed;
}
