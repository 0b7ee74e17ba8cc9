// These kernels have the mistakes that the emulation must find. They are never compiled for a
// device.
#include "../../kernels/common.cuh"

// Reverses the block's numbers without a barrier between writing and reading.
extern "C" __global__ void faulty_barrier(unsigned* out) {
    __shared__ unsigned numbers[1024];
    numbers[threadIdx.x] = threadIdx.x;
    out[blockIdx.x * blockDim.x + threadIdx.x] = numbers[blockDim.x - 1 - threadIdx.x];
}

// Makes the same mistake within a warp.
extern "C" __global__ void faulty_warp(unsigned* out) {
    __shared__ unsigned numbers[1024];
    numbers[threadIdx.x] = threadIdx.x;
    out[blockIdx.x * blockDim.x + threadIdx.x] = numbers[threadIdx.x ^ 1];
}

// Has that barrier, but the next round overwrites what a slow thread still reads.
extern "C" __global__ void faulty_reuse(unsigned* out) {
    __shared__ unsigned numbers[1024];
    for (unsigned round = 0; round < 2; round++) {
        numbers[threadIdx.x] = threadIdx.x + round;
        __syncthreads();
        out[blockIdx.x * blockDim.x + threadIdx.x] = numbers[blockDim.x - 1 - threadIdx.x];
    }
}

// Lets all blocks write to one place.
extern "C" __global__ void faulty_blocks(unsigned* out) {
    if (threadIdx.x == 0) out[0] = blockIdx.x;
}

// Writes one element too many.
extern "C" __global__ void faulty_bounds(unsigned* out) {
    if (blockIdx.x + 1 == gridDim.x) out[blockIdx.x * blockDim.x + threadIdx.x + 1] = 1;
}

// Makes a vector access that does not lie on sixteen bytes.
extern "C" __global__ void faulty_alignment(unsigned* out) {
    if (blockIdx.x + threadIdx.x == 0) *reinterpret_cast<uint4*>(out + 1) = make_uint4(1, 2, 3, 4);
}

// Lets half of the threads wait for the block, and the others for their warp.
extern "C" __global__ void faulty_divergence(unsigned* out) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = 1;
    if (threadIdx.x % 2 == 0) __syncthreads();
    else __syncwarp();
}

// Does correctly what the faulty kernels try to do.
extern "C" __global__ void faultless(unsigned* out) {
    __shared__ unsigned numbers[1024];
    for (unsigned round = 0; round < 2; round++) {
        numbers[threadIdx.x] = threadIdx.x + round;
        __syncwarp();
        numbers[threadIdx.x] += __shfl_xor_sync(ALL_LANES, round, 1);
        __syncthreads();
        out[blockIdx.x * blockDim.x + threadIdx.x] = numbers[blockDim.x - 1 - threadIdx.x];
        __syncthreads();
    }
}
