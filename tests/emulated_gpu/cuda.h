// This header gives an ordinary C++ compiler what the kernels need of CUDA. The sources of kernels/
// compile unchanged and run on the CPU, each thread of a block as a fiber (runtime.cpp).
//
// Contract: arithmetic is IEEE without contraction (build with -ffp-contract=off), so everything
// that a kernel writes with fmaf and __f*_rn has the device's bits; expf and logf are the C
// library's. Warp functions take the full mask only. Left out: everything that the kernels do not
// use.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// Ends `extern "C"`, so that a kernel may be there in several formats.
#define __global__ struct emulated_kernel; static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// A section of its own, so that the runtime can fill it with NaNs and watch it. Compilers align large
// variables beyond what their types ask for: that a type asks for too little is not found here.
#define __shared__ static __attribute__((section("emulated_shared"), aligned(16)))

struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct alignas(2) __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
struct alignas(2) __half { uint16_t bits; };
struct alignas(4) __half2 { __half x, y; };

// The scheduler sets these before it resumes a fiber.
extern "C" uint3 emulated_thread, emulated_block, emulated_block_size, emulated_grid_size;
#define threadIdx emulated_thread
#define blockIdx emulated_block
#define blockDim emulated_block_size
#define gridDim emulated_grid_size

extern "C" {
void emulated_syncthreads();
void emulated_syncwarp();
// Returns the values of all lanes of the warp; they last until the lane's second next exchange.
const uint64_t* emulated_exchange(uint64_t value);
// Returns the copies of the current thread.
struct EmulatedCopies* emulated_copies();
unsigned emulated_atomic_add_u32(unsigned* address, unsigned value);
uint64_t emulated_atomic_add_u64(unsigned long long* address, uint64_t value);
unsigned emulated_atomic_max_u32(unsigned* address, unsigned value);
unsigned emulated_atomic_min_u32(unsigned* address, unsigned value);
}

inline void __syncthreads() { emulated_syncthreads(); }
inline void __syncwarp(unsigned = ~0u) { emulated_syncwarp(); }
template <class T> T __shfl_sync(unsigned, T value, int lane) {
    uint64_t word = 0;
    memcpy(&word, &value, sizeof(T));
    word = emulated_exchange(word)[unsigned(lane) % 32];
    memcpy(&value, &word, sizeof(T));
    return value;
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return __shfl_sync(mask, value, int(threadIdx.x % 32) ^ lanes);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    const uint64_t* all = emulated_exchange(predicate != 0);
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < 32; lane++) ballot |= unsigned(all[lane]) << lane;
    return ballot;
}
inline unsigned atomicAdd(unsigned* at, unsigned x) { return emulated_atomic_add_u32(at, x); }
inline uint64_t atomicAdd(unsigned long long* at, unsigned long long x) {
    return emulated_atomic_add_u64(at, x);
}
inline unsigned atomicMax(unsigned* at, unsigned x) { return emulated_atomic_max_u32(at, x); }
inline unsigned atomicMin(unsigned* at, unsigned x) { return emulated_atomic_min_u32(at, x); }

// A thread's copies to shared memory that run in the background. A copy arrives as late as it may,
// when it is waited for; until then its place holds NaNs.
struct EmulatedCopies {
    static constexpr unsigned MOST = 64;
    struct {
        uint4* to;
        const uint4* from;
        unsigned group;
    } copies[MOST];
    unsigned count, group;
};
inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
    EmulatedCopies* own = emulated_copies();
    if (bytes != sizeof(uint4) || own->count == own->MOST) __builtin_trap();
    *(uint4*)to = {~0u, ~0u, ~0u, ~0u};
    own->copies[own->count++] = {(uint4*)to, (const uint4*)from, own->group};
}
inline void __pipeline_commit() { emulated_copies()->group++; }
// Waits until all groups but the newest `but` have arrived.
inline void __pipeline_wait_prior(unsigned but) {
    EmulatedCopies* own = emulated_copies();
    unsigned left = 0;
    for (unsigned i = 0; i < own->count; i++) {
        auto copy = own->copies[i];
        if (copy.group + but >= own->group) own->copies[left++] = copy;
        else *copy.to = *copy.from;
    }
    own->count = left;
}

template <class To, class From> To emulated_bits(From from) {
    To to;
    static_assert(sizeof(To) == sizeof(From), "same size");
    memcpy(&to, &from, sizeof(To));
    return to;
}
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    if (x != x) return {0x7fff};
    unsigned bits = __float_as_uint(x);
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) {
    unsigned sign = unsigned(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    // Read as fp32, the number is 2^-112 times what it should be, subnormal ones included.
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}
// Rounds to nearest, ties to even; a number that is too large becomes infinite.
inline __half __float2half_rn(float x) {
    if (x != x) return {0x7fff};
    unsigned bits = __float_as_uint(x), rest = bits & 0x7fffffff;
    uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    if (rest >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520, half-way from 65504 to 2^16
    if (rest < 0x38800000) {                                    // below 2^-14
        // Adding 1/2 leaves multiples of 2^-24, the smallest number, in the lower bits.
        unsigned sum = __float_as_uint(fabsf(x) + 0.5f);
        return {uint16_t(sign | (sum - __float_as_uint(0.5f)))};
    }
    return {uint16_t(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13)};
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
