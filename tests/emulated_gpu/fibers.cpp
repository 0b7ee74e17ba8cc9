// This file runs the threads of a block as fibers that switch only at barriers.
//
// Contract: the fibers of a warp run in order until each waits or is done, then those of the next
// warp. A switch jumps from one fiber straight to the next, which takes a few nanoseconds. Shared
// memory is NaNs when a launch starts. A barrier that not all threads reach is an error. It needs
// x86-64.
#include "fibers.h"

#include <cstring>
#include <mutex>
#include <sys/mman.h>

extern "C" {
uint3 emulated_thread, emulated_block, emulated_block_size, emulated_grid_size;
extern char __start_emulated_shared[] __attribute__((weak));
extern char __stop_emulated_shared[] __attribute__((weak));
}

namespace {

constexpr unsigned WARP = 32;
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK = 128 << 10;

enum class State : unsigned char { Ready, AtBarrier, AtWarp, Done };

// The place at which a fiber continues.
struct Place {
    void *frame, *address, *stack;
};

struct Fiber {
    Place at;
    char* stack;
};

struct WarpState {
    uint64_t words[2][WARP];
    unsigned turn[WARP];  // which of the two each lane uses next
};

Fiber fibers[MOST_THREADS];
State states[MOST_THREADS];
WarpState warps[MOST_THREADS / WARP];
Place scheduler;
unsigned current, last;  // the thread at work, the last of its warp
const std::function<void()>* running;

// The vector registers that not all processors have.
#ifdef __AVX512F__
#define MORE_VECTORS                                                                              \
    , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",   \
        "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7"
#else
#define MORE_VECTORS
#endif
// Goes on at `to` until something goes on at `from`. Inline, since a return after a switch is
// predicted wrongly.
#define INLINE __attribute__((always_inline)) inline
INLINE void go(Place& from, Place& to) {
    Place *here = &from, *there = &to;
    asm volatile(
        "lea 1f(%%rip), %%rax\n\t"
        "mov %%rbp, 0(%0)\n\tmov %%rax, 8(%0)\n\tmov %%rsp, 16(%0)\n\t"
        "mov 0(%1), %%rbp\n\tmov 16(%1), %%rsp\n\tjmp *8(%1)\n"
        "1:"
        : "+D"(here), "+S"(there)
        :
        : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",
          "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
          "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc" MORE_VECTORS);
}

// Switches from the current thread, or the scheduler, to the next thread of the warp that can run.
INLINE void go_to_next(Place& from, unsigned next) {
    while (next <= last && states[next] != State::Ready) next++;
    bool is_round_over = next > last;
    current = next;
    emulated_thread.x = next;
    go(from, is_round_over ? scheduler : fibers[next].at);
}

INLINE void wait(State state) {
    states[current] = state;
    go_to_next(fibers[current].at, current + 1);
}

// A fiber lives on between blocks and launches: it runs one thread of each block.
[[noreturn]] void live() {
    for (;;) {
        (*running)();
        wait(State::Done);
    }
}

// Makes the fiber begin at `live` when it is next switched to.
void prepare(Fiber& fiber) {
    if (fiber.stack == nullptr) {
        fiber.stack = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    // Tops of stacks fall on different lines of the cache. As after a call, there is a return
    // address.
    char* top = fiber.stack + STACK - size_t(&fiber - fibers) % 64 * 64 - sizeof(void*);
    fiber.at = {nullptr, (void*)live, top};
}

unsigned count(unsigned first, unsigned threads, State state) {
    unsigned count = 0;
    for (unsigned thread = first; thread < first + threads; thread++) count += states[thread] == state;
    return count;
}

// Runs a warp until all its threads are done or at a barrier of the block. Returns whether that was
// possible.
bool run_to_barrier(unsigned first) {
    for (;;) {
        last = first + WARP - 1;
        go_to_next(scheduler, first);
        unsigned waiting = count(first, WARP, State::AtWarp);
        if (waiting == 0) return true;
        if (waiting < WARP) return false;
        memset(states + first, int(State::Ready), WARP);
    }
}

bool run_block(unsigned threads) {
    memset(states, int(State::Ready), threads);
    memset(warps, 0, threads / WARP * sizeof(WarpState));
    for (;;) {
        for (unsigned first = 0; first < threads; first += WARP) {
            if (!run_to_barrier(first)) return false;
        }
        unsigned waiting = count(0, threads, State::AtBarrier);
        if (waiting == 0) return true;
        // Threads that are done do not hold up the others.
        for (unsigned thread = 0; thread < threads; thread++) {
            if (states[thread] == State::AtBarrier) states[thread] = State::Ready;
        }
    }
}

}  // namespace

std::string run_blocks(uint3 grid, unsigned block, const std::function<void()>& thread) {
    static std::mutex one_at_a_time;
    std::lock_guard guard(one_at_a_time);
    if (block == 0 || block > MOST_THREADS || block % WARP != 0) {
        return "a block is whole warps of at most 1024 threads";
    }
    running = &thread;
    emulated_block_size = {block, 1, 1};
    emulated_grid_size = grid;
    if (__start_emulated_shared) {
        memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
    }
    for (unsigned i = 0; i < block; i++) {
        if (fibers[i].stack == nullptr) prepare(fibers[i]);
    }
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                emulated_block = {x, y, z};
                if (run_block(block)) continue;
                for (unsigned i = 0; i < block; i++) prepare(fibers[i]);
                return "a barrier that not all threads reach";
            }
        }
    }
    return "";
}

#include "device_functions.h"
