// This header multiplies small matrices that a warp holds together, on its tensor cores.
//
// A warp holds a matrix as "fragments". With g = lane / 4 and t = lane % 4, a word of two 16-bit
// numbers is
// of A [16, 16]: rows g, g + 8, g, g + 8, columns 2t and 2t + 1, in the last two words 8 further;
// of B [16, 8]:  column g, rows 2t and 2t + 1, in the second word 8 further.
// A number of C [16, 8] is in row g, in the last two of four in row g + 8, at columns 2t and 2t + 1
// (PTX ISA, "Matrix Fragments for mma.m16n8k16").
// Contract: all lanes of a warp call these functions together. 16-bit numbers are `Half`; sums are
// fp32, in the device's own order. A row of C depends only on its row of A, because the units work
// that way; kernels rely on it for equal bits whatever else is computed beside.
#pragma once
#include "common.cuh"

#ifdef __CUDACC__

// Adds the product of a and b to c.
__device__ __forceinline__ void multiply_add(float c[4], const unsigned a[4], const unsigned* b) {
#ifdef HALF_IS_FP16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif
    asm volatile(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#undef MMA
}

// Loads four matrices [8, 8] of shared memory. Lane 8m + r says where row r of matrix m begins, at
// a multiple of 16 bytes. Word m of a lane is row g, columns 2t and 2t + 1 of matrix m.
__device__ __forceinline__ void load_four(unsigned words[4], const Half* row) {
    unsigned address = unsigned(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

// Loads them transposed: word m is rows 2t and 2t + 1, column g.
__device__ __forceinline__ void load_four_transposed(unsigned words[4], const Half* row) {
    unsigned address = unsigned(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

#else

inline void multiply_add(float c[4], const unsigned a[4], const unsigned* b) {
    unsigned g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    float rows[2][16], columns[2][16];
    auto put = [](float* to, unsigned word) {
        float2 pair = unpack<Half>(word);
        to[0] = pair.x, to[1] = pair.y;
    };
    for (unsigned half = 0; half < 2; half++) {  // of the sixteen columns of A
        const uint64_t* all = emulated_exchange(a[2 * half] | uint64_t(a[2 * half + 1]) << 32);
        for (unsigned i = 0; i < 4; i++) {
            put(&rows[0][8 * half + 2 * i], unsigned(all[4 * g + i]));
            put(&rows[1][8 * half + 2 * i], unsigned(all[4 * g + i] >> 32));
        }
    }
    const uint64_t* all = emulated_exchange(b[0] | uint64_t(b[1]) << 32);
    for (unsigned column = 0; column < 2; column++) {
        for (unsigned i = 0; i < 4; i++) {
            uint64_t words = all[4 * (2 * t + column) + i];
            put(&columns[column][2 * i], unsigned(words));
            put(&columns[column][8 + 2 * i], unsigned(words >> 32));
        }
    }
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned k = 0; k < 16; k++) c[i] = fmaf(rows[i / 2][k], columns[i % 2][k], c[i]);
    }
}

inline void load_four(unsigned words[4], const Half* row) {
    unsigned g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const uint64_t* rows = emulated_exchange(uint64_t(row));
    if (uint64_t(row) % 16 != 0) __builtin_trap();
    for (unsigned m = 0; m < 4; m++) words[m] = ((const unsigned*)rows[8 * m + g])[t];
}

inline void load_four_transposed(unsigned words[4], const Half* row) {
    unsigned g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const uint64_t* rows = emulated_exchange(uint64_t(row));
    if (uint64_t(row) % 16 != 0) __builtin_trap();
    for (unsigned m = 0; m < 4; m++) {
        unsigned low = ((const Half*)rows[8 * m + 2 * t])[g].bits, high = ((const Half*)rows[8 * m + 2 * t + 1])[g].bits;
        words[m] = low | high << 16;
    }
}

#endif
