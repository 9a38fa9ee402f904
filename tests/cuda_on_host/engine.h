/* engine.h - shared by the files of the emulation. */
#ifndef MUSTER_EMULATION_ENGINE_H
#define MUSTER_EMULATION_ENGINE_H
#define MU_EMULATION_INTERNAL
#include <cstdarg>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <cuda.h>
#include <cuda_runtime.h>
#include "emulation.h"

/* The scheduler's own view of what kernels see as constants. */
extern uint3 mu_thread_index asm("threadIdx"), mu_block_index asm("blockIdx"), mu_block_dim asm("blockDim"),
    mu_grid_dim asm("gridDim");

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define MU_ASAN_IF(...) __VA_ARGS__
#else
#define MU_ASAN_IF(...)
#endif

extern __shared__ unsigned char dynamic_shared[];

constexpr int max_threads = 1024, max_shared = 227 * 1024, default_shared = 48 * 1024;

namespace emu {

/* ---------------------------------------------------------------- errors (names.cpp) */
/* Ends the process with "emulation: " and the message; inside a kernel also its name, block and thread. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The readable name of a function of this program, and the bytes of static shared memory that its code declares. */
const std::string &kernel_name(const void *function);
size_t kernel_shared(const void *function);

/* "part of sum<256>", in the thread storage. Guard: the compiler's note that an array of bf16 was constructed. */
struct Variable { std::string name; size_t offset, size; bool guard; };
const std::vector<Variable> &shared_variables(void);
std::string source_line(const void *pc);                        /* "sum.cu:33", or empty if it cannot be found */

/* ---------------------------------------------------------------- threads (threads.cpp) */
struct Site { const char *file; int line; };
struct Fibre {
    void *context;
    char *low, *high;           /* its stack */
    struct Thread *thread;      /* the one to start with when it is resumed from the pool */
    void *sanitizer = nullptr;  /* what the address sanitizer keeps of it meanwhile */
};
struct Copy { unsigned char *to; const unsigned char *from; int size, bytes; };     /* a cp.async under way */

struct Thread {
    Fibre *fibre = nullptr;             /* while it waits; none before it starts and after it ended */
    uint3 index{};
    int number = 0;
    Site site{};                        /* where it waits */
    std::vector<Copy> copies;           /* cp.async: those of open and closed groups, in order */
    std::vector<int> groups;            /* copies in each closed group that has not been waited for */
    int open_copies = 0;
};

struct Launch {
    std::string name;
    const void *kernel;
    void (*invoke)(const void *arguments);
    std::shared_ptr<void> arguments;
    size_t argument_bytes;
    dim3 grid, block;
    size_t shared_bytes;
    mu_emulation_order_kind order;
    uint64_t seed;
};

void run(const Launch &launch);         /* all its blocks */
extern mu_emulation_order_kind order_kind;      /* for launches to come */
extern uint64_t order_seed;
extern const Launch *launched;          /* the launch that runs, or none */
extern Thread *current;                 /* the thread that runs; NULL outside kernels */
unsigned long long launched_block(void);
std::string where(const Thread *thread);

/* Waits until all lanes of mask are here; the last to arrive calls finish on what they brought. */
typedef void finish_lanes(void **mine, unsigned mask);
void finish_syncwarp(void **mine, unsigned mask);
void collect(const char *what, unsigned mask, void *mine, finish_lanes *finish, Site site);

/* ---------------------------------------------------------------- memory (memory.cpp) */
bool on_device(const void *p, size_t bytes);        /* all of it in live device memory */
bool in_device_space(const void *p);                /* anywhere in the addresses set aside for devices */
std::string device_name(const void *p);             /* "byte 12 of the 4096 at 0x..." */
void open_memory(void);                             /* readable and writable until close_memory; they nest */
void close_memory(void);
extern int devices, this_device;
void set_up(void);                                  /* reads the environment, once */
unsigned long long from_environment(const char *name, unsigned long long otherwise);
cudaError_t allocate(void **p, size_t bytes);
cudaError_t release(void *p);
void memory_left(size_t *left, size_t *total);

/* ---------------------------------------------------------------- streams (streams.cpp) */
/* A library call, as work of the stream; it reports each range of device memory before it accesses it. */
void enqueue(cudaStream_t stream, const char *name, std::function<void(void)> work);

/* ---------------------------------------------------------------- counters (count.cpp) and checks (check.cpp) */
extern bool counting;           /* whether accesses are counted */
void count_launch(const Launch &launch);
void count_call(const char *name);
void count_seconds(double seconds);
void count_wait(void);
void count_allocation(void);
void count_flush(void);

enum Access { READ, WRITE, UPDATE };
void library_access(const char *name, const void *p, size_t bytes, Access how);
void count_access(const void *p, int size, Access how, const void *pc, bool shared);
void count_new_bytes(int n, Access how);

#ifdef MU_EMULATION_CHECKED
void check_set_up(char *low, char *high);           /* the addresses set aside for devices */
void check_up(const void *p, size_t bytes);         /* allocated, never written */
void check_down(const void *p, size_t bytes);
void check_copied_to(const void *p, size_t bytes);
void check_copied_from(const void *p, size_t bytes);
void check_library(const char *name, const void *p, size_t bytes, Access how);
void check_outside(const void *p, size_t bytes, bool outside);
void check_forget(const void *p, size_t bytes);
void check_launch(void);
void check_block(void);
void check_barrier(void);
void check_syncwarp(int warp);
void check_fence(void);
void check_access(const void *p, int size, Access how, const void *pc);
void check_copy_begins(const Copy &copy, const void *pc);
void check_copy_ends(const Copy &copy);
#define MU_CHECK_IF(...) __VA_ARGS__
#else
#define MU_CHECK_IF(...)
#endif

}
#endif
