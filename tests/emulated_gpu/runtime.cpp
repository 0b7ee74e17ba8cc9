// Runs kernels on the CPU: blocks one after the other, the threads of a block as fibers that switch
// only at barriers. It checks every access to memory.
//
// Contract: the kernels are compiled with -fsanitize=thread,alignment, and this file without. The
// calls of the instrumented code (__tsan_read4 and so on) end here instead of in the sanitizers'
// libraries. An access is an error if
// - another thread of the block touched the same place, one of them writing, and no __syncthreads
// (or, within a warp, no warp-wide function) lies between the two;
// - another block of the launch touched the same place of a buffer, one of them writing;
// - it reaches outside the buffers of the launch, into the guards around them;
// - its address is not a multiple of what its type needs.
// Atomic operations are exempt. Shared memory starts as NaNs in every block. A barrier that not all
// threads reach is an error too. The caller must run only one launch at a time.
#include "cuda.h"
#include "kernels.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

extern "C" {
uint3 emulated_thread, emulated_block, emulated_block_size, emulated_grid_size;
extern char __start_emulated_shared[] __attribute__((weak));
extern char __stop_emulated_shared[] __attribute__((weak));
}

namespace {

constexpr unsigned WARP = 32;
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK = 128 << 10;
constexpr size_t GUARD = 256;  // bytes before and after a buffer, as tests/kernels.rs allocates
constexpr size_t GRAIN = 2;    // bytes that one cell of the shadow stands for

enum class State { Ready, AtBarrier, AtWarp, Done };

struct Fiber {
    ucontext_t first;
    jmp_buf at;
    bool started = false;
    State state = State::Done;
    void* stack = nullptr;
};

struct WarpState {
    uint64_t words[2][WARP];
    unsigned turn[WARP];  // which of the two each lane uses next
    uint16_t epoch;       // warp-wide synchronisations so far
};

// The last access to a place. Epochs count block-wide barriers and never repeat, so an old cell is
// simply older than the current block.
struct Access {
    uint32_t epoch;
    uint16_t warp_epoch;
    uint16_t thread : 10;
    uint16_t many : 1;         // several threads of one warp
    uint16_t many_warps : 1;   // threads of several warps
    uint16_t many_blocks : 1;  // threads of several blocks of the launch
};
struct Cell {
    Access write, read;
};

struct Region {
    char* start;
    size_t bytes;
    bool is_shared;
    std::vector<Cell> shadow;
};

Fiber fibers[MOST_THREADS];
WarpState warps[MOST_THREADS / WARP];
jmp_buf scheduler;
unsigned current, num_threads;
const std::function<void()>* running;
uint32_t epoch = 1, launch_epoch, block_epoch;
std::vector<Region> regions;
size_t recent;  // the region of the access before
std::string failure;

// Tells whether an address lies in a region or its guards.
bool is_near(const Region& region, const void* address) {
    return (uintptr_t)address - ((uintptr_t)region.start - GUARD) < region.bytes + 2 * GUARD;
}

void fail(const char* what, const void* address) {
    char text[256];
    for (auto& region : regions) {
        if (!is_near(region, address)) continue;
        long offset = (const char*)address - region.start;
        const char* place = region.is_shared ? "shared memory" : "a buffer";
        snprintf(text, sizeof text, "%s: byte %ld of %s of %zu bytes, block %u,%u thread %u", what,
                 offset, place, region.bytes, emulated_block.x, emulated_block.y, current);
        failure = text;
        return;
    }
    failure = what;
}

// Tells whether what comes now is ordered after the access.
bool ordered(const Access& before, bool is_shared) {
    if (before.epoch < launch_epoch) return true;
    if (!is_shared && (before.many_blocks || before.epoch < block_epoch)) return false;
    if (before.epoch != epoch) return true;
    if (before.thread == current && !before.many) return true;
    bool same_warp = before.thread / WARP == current / WARP && !before.many_warps;
    return same_warp && before.warp_epoch != warps[current / WARP].epoch;
}

// Remembers a read beside those that it is not ordered after.
void note_read(Access& read) {
    uint16_t warp_epoch = warps[current / WARP].epoch;
    bool same_warp = read.thread / WARP == current / WARP;
    bool beside = read.epoch == epoch && (!same_warp || read.many_warps || read.warp_epoch == warp_epoch);
    bool other_block = read.epoch >= launch_epoch && read.epoch < block_epoch;
    read.many = beside && (read.many || read.thread != current);
    read.many_warps = beside && (read.many_warps || !same_warp);
    read.many_blocks = other_block || (read.many_blocks && read.epoch >= launch_epoch);
    read.epoch = epoch;
    read.thread = uint16_t(current);
    read.warp_epoch = warp_epoch;
}

// A write that is no error is ordered after everything before it.
void note_write(Access& write) {
    write = {epoch, warps[current / WARP].epoch, uint16_t(current), 0, 0, 0};
}

// Ends the launch before the access happens: the fiber never continues.
[[noreturn]] void refuse(const char* what, const void* address) {
    fail(what, address);
    _longjmp(scheduler, 1);
}

void check_in(Region& region, const void* address, size_t size, bool writes) {
    long offset = (const char*)address - region.start;
    if (offset < 0 || offset + size > region.bytes) {
        // Other variables of the library lie beside shared memory.
        if (region.is_shared) return;
        refuse(writes ? "write outside" : "read outside", address);
    }
    for (size_t cell = offset / GRAIN; cell <= (offset + size - 1) / GRAIN; cell++) {
        Cell& shadow = region.shadow[cell];
        if (!ordered(shadow.write, region.is_shared)) {
            refuse(writes ? "write after another thread's write" : "read of another thread's write", address);
        }
        if (writes && !ordered(shadow.read, region.is_shared)) {
            refuse("write after another thread's read", address);
        }
        if (writes) note_write(shadow.write);
        else note_read(shadow.read);
    }
}

void check(const void* address, size_t size, bool writes) {
    if (recent < regions.size() && is_near(regions[recent], address)) {
        return check_in(regions[recent], address, size, writes);
    }
    for (recent = 0; recent < regions.size(); recent++) {
        if (is_near(regions[recent], address)) {
            return check_in(regions[recent], address, size, writes);
        }
    }
}

void resume(unsigned thread) {
    current = thread;
    emulated_thread = {thread % emulated_block_size.x, thread / emulated_block_size.x, 0};
    Fiber& fiber = fibers[thread];
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    setcontext(&fiber.first);
}

void wait(State state) {
    Fiber& fiber = fibers[current];
    fiber.state = state;
    if (_setjmp(fiber.at) == 0) _longjmp(scheduler, 1);
}

// A fiber lives on between blocks: it runs one thread of each.
void live() {
    for (;;) {
        (*running)();
        wait(State::Done);
    }
}

void prepare(Fiber& fiber) {
    if (fiber.started && fiber.state == State::Done) return;
    if (fiber.stack == nullptr) {
        fiber.stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = fiber.stack;
    // Tops of stacks fall on different lines of the cache.
    fiber.first.uc_stack.ss_size = STACK - size_t(&fiber - fibers) % 64 * 64;
    makecontext(&fiber.first, live, 0);
    fiber.started = false;
}

/// Releases the warps, and the block, whose threads have all arrived. Returns whether there were
/// any.
bool release() {
    bool any = false;
    unsigned waiting = 0, done = 0;
    for (unsigned first = 0; first < num_threads; first += WARP) {
        unsigned arrived = 0;
        for (unsigned thread = first; thread < first + WARP; thread++) {
            arrived += fibers[thread].state == State::AtWarp;
            waiting += fibers[thread].state == State::AtBarrier;
            done += fibers[thread].state == State::Done;
        }
        if (arrived < WARP) continue;
        warps[first / WARP].epoch++;
        for (unsigned thread = first; thread < first + WARP; thread++) fibers[thread].state = State::Ready;
        any = true;
    }
    if (waiting > 0 && waiting + done == num_threads) {
        epoch++;
        for (unsigned thread = 0; thread < num_threads; thread++) {
            if (fibers[thread].state == State::AtBarrier) fibers[thread].state = State::Ready;
        }
        any = true;
    }
    return any;
}

void run_block(std::vector<unsigned>& order, std::mt19937* shuffle) {
    block_epoch = ++epoch;
    if (__start_emulated_shared) {
        memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
    }
    for (unsigned thread = 0; thread < num_threads; thread++) {
        prepare(fibers[thread]);
        fibers[thread].state = State::Ready;
    }
    memset(warps, 0, sizeof warps);
    for (;;) {
        if (shuffle) std::shuffle(order.begin(), order.end(), *shuffle);
        bool is_done = true;
        for (unsigned thread : order) {
            if (fibers[thread].state == State::Ready) resume(thread);
            if (!failure.empty()) return;
            is_done &= fibers[thread].state == State::Done;
        }
        if (is_done) return;
        bool is_ready = false;
        for (unsigned thread : order) is_ready |= fibers[thread].state == State::Ready;
        if (!release() && !is_ready) return fail("a barrier that not all threads reach", nullptr);
    }
}

}  // namespace

#include "device_functions.h"

extern "C" {

#define ACCESS(size)                                                                    \
    void __tsan_read##size(void* at) { check(at, size, false); }                  \
    void __tsan_write##size(void* at) { check(at, size, true); }                  \
    void __tsan_unaligned_read##size(void* at) { check(at, size, false); }       \
    void __tsan_unaligned_write##size(void* at) { check(at, size, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* at, size_t size) { check(at, size, false); }
void __tsan_write_range(void* at, size_t size) { check(at, size, true); }
void __ubsan_handle_type_mismatch_v1(void*, void* address) { refuse("misaligned access", address); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}

/// A buffer of a launch, with GUARD bytes of the caller's before and after it.
struct EmulatedBuffer {
    void* start;
    size_t bytes;
};

/// Runs `kernel`, with Half in half precision or bfloat16, and with `arguments` (the address of
/// each, as cuLaunchKernel takes them). `order` 0 runs threads and blocks forwards, 1 backwards,
/// any other number in a shuffled order of that number. Returns null, or what went wrong; the text
/// lasts until the next call.
const char* emulate(const char* kernel, bool is_fp16, const unsigned grid[2], unsigned block, void** arguments,
                    const EmulatedBuffer* buffers, size_t count, unsigned order) {
    failure.clear();
    // Regions of the launch before may be memory of somebody else by now, even of this launch.
    regions.clear();
    const Kernels& kernels = is_fp16 ? fp16_kernels() : bf16_kernels();
    auto found = kernels.find(kernel);
    if (found == kernels.end()) return (failure = std::string("no kernel ") + kernel).c_str();
    if (block == 0 || block > MOST_THREADS || block % WARP != 0) {
        return (failure = "a block is whole warps of at most 1024 threads").c_str();
    }
    if (__start_emulated_shared) {
        size_t bytes = __stop_emulated_shared - __start_emulated_shared;
        regions.push_back({__start_emulated_shared, bytes, true, std::vector<Cell>(bytes / GRAIN + 1)});
    }
    for (size_t i = 0; i < count; i++) {
        size_t bytes = buffers[i].bytes;
        regions.push_back({(char*)buffers[i].start, bytes, false, std::vector<Cell>(bytes / GRAIN + 1)});
    }
    const std::function<void()> thread = found->second(arguments);
    running = &thread;
    num_threads = block;
    emulated_block_size = {block, 1, 1};
    emulated_grid_size = {grid[0], grid[1], 1};
    launch_epoch = ++epoch;
    std::mt19937 random(order);
    std::vector<unsigned> threads(block), blocks(size_t(grid[0]) * grid[1]);
    std::iota(threads.begin(), threads.end(), 0);
    std::iota(blocks.begin(), blocks.end(), 0);
    if (order == 1) {
        std::reverse(threads.begin(), threads.end());
        std::reverse(blocks.begin(), blocks.end());
    } else if (order > 1) {
        std::shuffle(blocks.begin(), blocks.end(), random);
    }
    for (unsigned number : blocks) {
        emulated_block = {number % grid[0], number / grid[0], 0};
        run_block(threads, order > 1 ? &random : nullptr);
        if (!failure.empty()) break;
    }
    return failure.empty() ? nullptr : failure.c_str();
}
}
