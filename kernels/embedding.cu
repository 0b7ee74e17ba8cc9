// Token embedding: rows of the table, and their gradient. This is the twin of src/ops/embedding.rs.
//
// Layout: table and gradient are [vocabulary, width], rows [tokens, width]; width is a multiple of
// 8.
// Contract: each part of the gradient has one owner, which adds a token's rows in ascending order
// in fp32 and rounds once at the end. There are no atomics, so the bits are the same every time.
// The host lists the distinct tokens and the rows of each (src/cuda/kernels/embedding.rs).
#include "common.cuh"

// Copies the row of `table` of the token at blockIdx.x.
extern "C" __global__ void __launch_bounds__(256)
embedding(const Half* table, const unsigned* tokens, Half* out, int width) {
    const uint4* from = reinterpret_cast<const uint4*>(table + size_t(tokens[blockIdx.x]) * width);
    uint4* to = reinterpret_cast<uint4*>(out + size_t(blockIdx.x) * width);
    for (int i = threadIdx.x; i < width / 8; i += blockDim.x) to[i] = from[i];
}

// Adds the rows of dy with the numbers rows[starts[blockIdx.x]..starts[blockIdx.x + 1]] to the
// gradient's row of the distinct token blockIdx.x. blockIdx.y selects a part of the columns.
template <class G>
__device__ __forceinline__ void add_rows(const Half* dy, const unsigned* tokens, const unsigned* starts,
                                         const unsigned* rows, G* gradient, int width) {
    int column = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (column >= width) return;
    G* target = gradient + size_t(tokens[blockIdx.x]) * width + column;
    float sum[8], row[8];
    load_eight(target, sum);
    unsigned end = starts[blockIdx.x + 1];
#pragma unroll 4
    for (unsigned i = starts[blockIdx.x]; i < end; i++) {
        load_eight(dy + size_t(rows[i]) * width + column, row);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += row[j];
    }
    store_eight(sum, target);
}

extern "C" __global__ void __launch_bounds__(128)
embedding_backward_half(const Half* dy, const unsigned* tokens, const unsigned* starts,
                        const unsigned* rows, Half* gradient, int width) {
    add_rows(dy, tokens, starts, rows, gradient, width);
}

extern "C" __global__ void __launch_bounds__(128)
embedding_backward_f32(const Half* dy, const unsigned* tokens, const unsigned* starts,
                       const unsigned* rows, float* gradient, int width) {
    add_rows(dy, tokens, starts, rows, gradient, width);
}
