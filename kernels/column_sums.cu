// Sums over rows: the second step of the gradients of norm weights, and the gradients of biases.
// This is the twin of add_rows in src/ops/reduce.rs.
//
// Layout: x is [rows, width], partials [parts, width]; width is a multiple of 8.
// Contract: two passes sum in a fixed order, without atomics, so the bits are the same every time.
#include "common.cuh"

// Row blockIdx.y of partials gets the sum of the rows blockIdx.y, blockIdx.y + gridDim.y, ... of x.
extern "C" __global__ void __launch_bounds__(128)
column_partials(const Half* x, float* partials, int rows, int width) {
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (column >= width) return;
    float sum[8] = {}, row[8];
#pragma unroll 4
    for (int i = blockIdx.y; i < rows; i += gridDim.y) {
        load_eight(x + size_t(i) * width + column, row);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += row[j];
    }
    store_eight(sum, partials + size_t(blockIdx.y) * width + column);
}

constexpr unsigned LANES = 8;

// A block sums 32 columns: lane l the rows l, l + 8, ..., then the lanes are added in order.
template <class G>
__device__ __forceinline__ void add_columns(const float* partials, G* gradient, int parts, int width,
                                            float sums[LANES][WARP]) {
    int column = blockIdx.x * WARP + threadIdx.x % WARP;
    unsigned lane = threadIdx.x / WARP;
    float sum = 0;
    if (column < width) {
#pragma unroll 4
        for (int part = lane; part < parts; part += LANES) sum += partials[size_t(part) * width + column];
    }
    sums[lane][threadIdx.x % WARP] = sum;
    __syncthreads();
    if (lane > 0 || column >= width) return;
    for (unsigned other = 1; other < LANES; other++) sum += sums[other][threadIdx.x];
    narrow(widen(gradient[column]) + sum, gradient[column]);
}

// These add the sum of the rows of partials to gradient.
extern "C" __global__ void __launch_bounds__(256)
add_column_sums_half(const float* partials, Half* gradient, int parts, int width) {
    __shared__ float sums[LANES][WARP];
    add_columns(partials, gradient, parts, width, sums);
}

extern "C" __global__ void __launch_bounds__(256)
add_column_sums_f32(const float* partials, float* gradient, int parts, int width) {
    __shared__ float sums[LANES][WARP];
    add_columns(partials, gradient, parts, width, sums);
}
