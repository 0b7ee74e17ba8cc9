// The threads of a block as fibers that switch at barriers only.
//
// Contract: the fibers of a warp run in order until each waits or is done, then those of the next
// warp; a switch is a jump from one fiber straight to the next, a few nanoseconds. Shared memory
// starts a launch as NaNs. A barrier that not all threads reach is an error. Needs the built-in jumps
// of GCC or clang, since those of the C library cost several times as much.
#include "fibers.h"

#include <cstring>
#include <mutex>
#include <sys/mman.h>
#include <ucontext.h>

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

struct Fiber {
    void* at[5];  // where it goes on, as the built-in jumps keep it
    ucontext_t first;
    void* stack;
    bool is_started;
};

struct WarpState {
    uint64_t words[2][WARP];
    unsigned turn[WARP];  // which of the two each lane uses next
};

Fiber fibers[MOST_THREADS];
State states[MOST_THREADS];
WarpState warps[MOST_THREADS / WARP];
void* scheduler[5];
unsigned current, last;  // the thread at work, the last of its warp
const std::function<void()>* running;

__attribute__((noinline)) void jump(void** to) { __builtin_longjmp(to, 1); }

void go_on(unsigned thread) {
    current = thread;
    emulated_thread = {thread, 0, 0};
    Fiber& fiber = fibers[thread];
    if (fiber.is_started) jump(fiber.at);
    fiber.is_started = true;
    setcontext(&fiber.first);
}

// The next fiber of the warp that can run, else the scheduler.
void go_to_next() {
    for (unsigned thread = current + 1; thread <= last; thread++) {
        if (states[thread] == State::Ready) go_on(thread);
    }
    jump(scheduler);
}

__attribute__((noinline)) void wait(State state) {
    states[current] = state;
    if (__builtin_setjmp(fibers[current].at) == 0) go_to_next();
}

// Runs the fibers of a warp that can run, each until it waits.
__attribute__((noinline)) void run_warp(unsigned first) {
    last = first + WARP - 1;
    for (unsigned thread = first; thread <= last; thread++) {
        if (states[thread] != State::Ready) continue;
        if (__builtin_setjmp(scheduler) == 0) go_on(thread);
        return;
    }
}

// A fiber lives on between blocks and launches: it runs one thread of each block.
void live() {
    for (;;) {
        (*running)();
        wait(State::Done);
    }
}

void prepare(Fiber& fiber) {
    if (fiber.stack == nullptr) {
        fiber.stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = fiber.stack;
    // Tops of stacks fall on different lines of the cache.
    fiber.first.uc_stack.ss_size = STACK - size_t(&fiber - fibers) % 64 * 64;
    makecontext(&fiber.first, live, 0);
    fiber.is_started = false;
}

unsigned count(unsigned first, unsigned threads, State state) {
    unsigned count = 0;
    for (unsigned thread = first; thread < first + threads; thread++) count += states[thread] == state;
    return count;
}

// Runs a warp until all its threads are done or at a barrier of the block; whether that came about.
bool run_to_barrier(unsigned first) {
    for (;;) {
        run_warp(first);
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
        // Threads that are done do not hold the others up.
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
        if (!fibers[i].is_started) prepare(fibers[i]);
    }
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                emulated_block = {x, y, z};
                if (run_block(block)) continue;
                for (Fiber& fiber : fibers) fiber.is_started = false;
                return "a barrier that not all threads reach";
            }
        }
    }
    return "";
}

extern "C" {

void emulated_syncthreads() { wait(State::AtBarrier); }
void emulated_syncwarp() { wait(State::AtWarp); }

uint64_t emulated_shuffle(uint64_t value, unsigned source_lane) {
    WarpState& warp = warps[current / WARP];
    unsigned turn = warp.turn[current % WARP]++ % 2;
    warp.words[turn][current % WARP] = value;
    wait(State::AtWarp);
    return warp.words[turn][source_lane];
}

unsigned emulated_ballot(int predicate) {
    WarpState& warp = warps[current / WARP];
    unsigned turn = warp.turn[current % WARP]++ % 2;
    warp.words[turn][current % WARP] = predicate != 0;
    wait(State::AtWarp);
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < WARP; lane++) ballot |= unsigned(warp.words[turn][lane]) << lane;
    return ballot;
}

unsigned emulated_atomic_add_u32(unsigned* address, unsigned value) {
    unsigned old = *address;
    *address += value;
    return old;
}
uint64_t emulated_atomic_add_u64(unsigned long long* address, uint64_t value) {
    uint64_t old = *address;
    *address += value;
    return old;
}
unsigned emulated_atomic_max_u32(unsigned* address, unsigned value) {
    unsigned old = *address;
    if (value > old) *address = value;
    return old;
}
unsigned emulated_atomic_min_u32(unsigned* address, unsigned value) {
    unsigned old = *address;
    if (value < old) *address = value;
    return old;
}
}
