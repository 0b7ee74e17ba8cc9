// This header implements what kernels call on a device, as cuda.h declares it, for any scheduler of
// their threads.
//
// Contract: a scheduler includes it once, at its end. Before that it defines WARP, State, `current`
// (the current thread), `warps` (with `words` and `turn`, see below) and wait(State), which returns
// when all threads of the warp, or of the block, have reached it.
//
// A warp's words alternate between two places, so that a lane that runs ahead to the next function
// does not overwrite what the others have yet to read.
#pragma once

extern "C" {

void emulated_syncthreads() { wait(State::AtBarrier); }
void emulated_syncwarp() { wait(State::AtWarp); }

const uint64_t* emulated_exchange(uint64_t value) {
    WarpState& warp = warps[current / WARP];
    unsigned turn = warp.turn[current % WARP]++ % 2;
    warp.words[turn][current % WARP] = value;
    wait(State::AtWarp);
    return warp.words[turn];
}

EmulatedCopies* emulated_copies() {
    static EmulatedCopies copies[MOST_THREADS];
    return &copies[current];
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
