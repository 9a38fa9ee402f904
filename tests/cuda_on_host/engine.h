/* engine.h - what the files of the emulation know of each other. */
#ifndef MUSTER_EMULATION_ENGINE_H
#define MUSTER_EMULATION_ENGINE_H
#define MU_EMULATION_INTERNAL
#include <cstdarg>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <cuda.h>
#include <cuda_runtime.h>
#include "emulation.h"

/* The scheduler's own view of what kernels see as constants. */
extern uint3 mu_thread_index asm("threadIdx"), mu_block_index asm("blockIdx");
extern dim3 mu_block_dim asm("blockDim"), mu_grid_dim asm("gridDim");

constexpr int max_threads = 1024, max_shared = 227 * 1024, default_shared = 48 * 1024;

namespace emu {

/* ---------------------------------------------------------------- errors (names.cpp) */
/* Ends the process with "emulation: " and the message; inside a kernel its name, block and thread come with it. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The readable name of a function of this program, and the bytes of static shared memory that its code declares. */
const std::string &kernel_name(const void *function);
size_t kernel_shared(const void *function);

/* ---------------------------------------------------------------- threads (threads.cpp) */
struct Site { const char *file; int line; };
struct Fibre;
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
};

void run(const Launch &launch);         /* all its blocks */
extern const Launch *launched;          /* the launch that runs, or none */
extern Thread *current;                 /* the thread that runs; NULL outside kernels */
std::string where(const Thread *thread);

/* Waits until all lanes of mask are here; the last to arrive calls finish on what they brought. */
typedef void finish_lanes(void **mine, unsigned mask);
void collect(const char *what, unsigned mask, void *mine, finish_lanes *finish, Site site);

/* ---------------------------------------------------------------- memory (memory.cpp) */
bool on_device(const void *p, size_t bytes);        /* all of it in live device memory */
bool in_device_space(const void *p);                /* anywhere in the addresses set aside for devices */
void open_memory(void);                             /* readable and writable until close_memory; they nest */
void close_memory(void);
extern int devices, this_device;
void set_up(void);                                  /* reads the environment, once */

}
#endif
