// This header has what all kernels share: 16-bit numbers, vector access to them and to fp32,
// reductions over warps and blocks, and Philox.
//
// Contract: weights and activations are `Half`: bfloat16 or, where HALF_IS_FP16 is defined, IEEE
// half precision. build.rs compiles every file that uses it twice. Memory is read and written in
// sixteen-byte vectors, so pointers and row widths are multiples of eight elements unless a kernel
// says otherwise. Arithmetic is fp32, and a result too large for half precision becomes infinite.
// Reductions have a fixed order, so a result depends only on its inputs and the size of the block.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#else
#include "../tests/emulated_gpu/cuda.h"
#endif

typedef __nv_bfloat16 bf16;
typedef __half fp16;

#ifdef HALF_IS_FP16
typedef fp16 Half;
#else
typedef bf16 Half;
#endif

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = ~0u;
constexpr float LOWEST = -3.402823466e38f;

// A word holds two 16-bit numbers, the first in its lower half.
template <class T>
__device__ float2 unpack(unsigned word);
template <class T>
__device__ unsigned pack(float low, float high);

template <>
__device__ __forceinline__ float2 unpack<bf16>(unsigned word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
template <>
__device__ __forceinline__ unsigned pack<bf16>(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return unsigned(__bfloat16_as_ushort(pair.x)) | unsigned(__bfloat16_as_ushort(pair.y)) << 16;
}

template <>
__device__ __forceinline__ float2 unpack<fp16>(unsigned word) {
    return make_float2(__half2float(__ushort_as_half(word & 0xffff)), __half2float(__ushort_as_half(word >> 16)));
}
template <>
__device__ __forceinline__ unsigned pack<fp16>(float low, float high) {
    __half2 pair = __floats2half2_rn(low, high);
    return unsigned(__half_as_ushort(pair.x)) | unsigned(__half_as_ushort(pair.y)) << 16;
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(fp16 x) { return __half2float(x); }
__device__ __forceinline__ void narrow(float x, float& out) { out = x; }
__device__ __forceinline__ void narrow(float x, bf16& out) { out = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, fp16& out) { out = __float2half_rn(x); }

// Returns the nearest number that Half has.
__device__ __forceinline__ float rounded(float x) {
    Half nearest;
    narrow(x, nearest);
    return widen(nearest);
}

template <class T>
__device__ __forceinline__ void widen_eight(uint4 words, float out[8]) {
    float2 a = unpack<T>(words.x), b = unpack<T>(words.y), c = unpack<T>(words.z), d = unpack<T>(words.w);
    out[0] = a.x, out[1] = a.y, out[2] = b.x, out[3] = b.y;
    out[4] = c.x, out[5] = c.y, out[6] = d.x, out[7] = d.y;
}

template <class T>
__device__ __forceinline__ void load_eight(const T* from, float out[8]) {
    widen_eight<T>(*reinterpret_cast<const uint4*>(from), out);
}

__device__ __forceinline__ void load_eight(const float* from, float out[8]) {
    float4 low = reinterpret_cast<const float4*>(from)[0];
    float4 high = reinterpret_cast<const float4*>(from)[1];
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
}

template <class T>
__device__ __forceinline__ void store_eight(const float x[8], T* to) {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7]));
}

__device__ __forceinline__ void store_eight(const float x[8], float* to) {
    reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

// Loads the last few elements of a buffer: `count` may be below eight, and missing ones become
// `fill`.
template <class T>
__device__ __forceinline__ void load_up_to_eight(const T* from, long long count, float fill, float out[8]) {
    if (count >= 8) return load_eight(from, out);
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = i < count ? widen(from[i]) : fill;
}

template <class T>
__device__ __forceinline__ void store_up_to_eight(const float x[8], long long count, T* to) {
    if (count >= 8) return store_eight(x, to);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (i < count) narrow(x[i], to[i]);
    }
}

// Returns the sum of all lanes to every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    }
    return x;
}

// Returns the sum of all threads to every thread. The block must be whole warps. `scratch` is
// shared memory and may be used again at once.
template <class T>
__device__ __forceinline__ T block_sum(T x, T scratch[WARP]) {
    unsigned lane = threadIdx.x % WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_sum(lane < blockDim.x / WARP ? scratch[lane] : T(0));
}

__device__ __forceinline__ float block_max(float x, float scratch[WARP]) {
    unsigned lane = threadIdx.x % WARP;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_max(lane < blockDim.x / WARP ? scratch[lane] : -INFINITY);
}

// Returns the Philox4x32-10 block of a counter under a key, as base::rng::philox does.
__device__ __forceinline__ uint4 philox(unsigned long long key, uint4 counter) {
    unsigned k0 = unsigned(key), k1 = unsigned(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned long long p0 = 0xD2511F53ull * counter.x;
        unsigned long long p1 = 0xCD9E8D57ull * counter.z;
        counter = make_uint4(unsigned(p1 >> 32) ^ counter.y ^ k0, unsigned(p1),
                             unsigned(p0 >> 32) ^ counter.w ^ k1, unsigned(p0));
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return counter;
}

// Returns the index-th uniform number in [0, 1) of a key, as base::rng::uniform does.
__device__ __forceinline__ float uniform(unsigned long long key, unsigned long long index) {
    uint4 block = philox(key, make_uint4(unsigned(index), unsigned(index >> 32), 0x756e6966u, 0));
    return float(block.x >> 8) * (1.0f / (1u << 24));
}
