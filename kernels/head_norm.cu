// Root-mean-square normalisation of every query head and key head. This is the twin of
// src/ops/head_norm.rs.
//
// Layout: rows of queries, keys and values are [rows, heads + 2 * kv_heads, dim]; weight is [2,
// dim], first for query heads, then for key heads; dim is 32, 64 or 128. Blocks have 256 threads.
// Contract: dim / 8 lanes of a warp take a head, eight elements each, so a head has the same bits
// whatever else is computed. The weight's gradient has one partial sum for each block of the
// backward; column_sums.cu adds them up.
#include "common.cuh"

constexpr unsigned THREADS = 256;

// Returns the sum over the lanes of a head to each of them. All lanes of the warp must call it.
__device__ __forceinline__ float head_sum(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// Writes x to y with query heads and key heads normalised; `y` may be `x`. A block takes a row.
extern "C" __global__ void __launch_bounds__(THREADS)
head_norm(const Half* x, const Half* weight, float eps, Half* y, int heads, int kv_heads, int dim) {
    int lanes = dim / 8, all = heads + 2 * kv_heads, within = int(threadIdx.x) % lanes * 8;
    int lane = threadIdx.x % WARP;
    size_t row = size_t(blockIdx.x) * all * dim;
    // A warp goes on as long as one of its heads is inside the row.
    for (int first = int(threadIdx.x) - lane; first < all * lanes; first += THREADS) {
        int head = (first + lane) / lanes;
        size_t at = row + size_t(head) * dim + within;
        float v[8] = {}, squares = 0;
        if (head < all) load_eight(x + at, v);
#pragma unroll
        for (int i = 0; i < 8; i++) squares = fmaf(v[i], v[i], squares);
        float scale = 1.0f / sqrtf(head_sum(squares, lanes) / dim + eps);
        if (head < heads + kv_heads) {
            float w[8];
            load_eight(weight + (head < heads ? 0 : dim) + within, w);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = v[i] * scale * w[i];
        }
        if (head < all) store_eight(v, y + at);
    }
}

// Writes to out[element] the sum over the threads that have this element of a head, in their order.
__device__ __forceinline__ void add_up(const float own[8], float* sums, float* out, int dim) {
    __syncthreads();
    store_eight(own, sums + threadIdx.x * 8);
    __syncthreads();
    if (threadIdx.x >= unsigned(dim)) return;
    float sum = 0;
    for (unsigned thread = threadIdx.x / 8; thread < THREADS; thread += dim / 8) {
        sum += sums[thread * 8 + threadIdx.x % 8];
    }
    out[threadIdx.x] = sum;
}

// Turns d from the gradient of the output to that of the forward's input `x`, and leaves the
// gradients of values as they are. Block b takes rows b, b + gridDim.x, ... and writes its share of
// the weight's gradient to row b of partials [gridDim.x, 2, dim].
extern "C" __global__ void __launch_bounds__(THREADS)
head_norm_backward(const Half* x, const Half* weight, float eps, Half* d, float* partials, int rows, int heads,
                   int kv_heads, int dim) {
    __align__(16) __shared__ float sums[THREADS * 8];
    int lanes = dim / 8, all = heads + 2 * kv_heads, within = int(threadIdx.x) % lanes * 8;
    int lane = threadIdx.x % WARP, normalised = heads + kv_heads;
    float w_query[8], w_key[8], d_query[8] = {}, d_key[8] = {};
    load_eight(weight + within, w_query);
    load_eight(weight + dim + within, w_key);
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        for (int first = int(threadIdx.x) - lane; first < normalised * lanes; first += THREADS) {
            int head = (first + lane) / lanes;
            bool is_inside = head < normalised, is_query = head < heads;
            size_t at = (size_t(row) * all + head) * dim + within;
            float v[8] = {}, dy[8] = {}, squares = 0, dot = 0;
            if (is_inside) {
                load_eight(x + at, v);
                load_eight(d + at, dy);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                squares = fmaf(v[i], v[i], squares);
                dot = fmaf(dy[i] * (is_query ? w_query[i] : w_key[i]), v[i], dot);
            }
            float scale = 1.0f / sqrtf(head_sum(squares, lanes) / dim + eps);
            // dx = scale * (dy * w - x * scale² * mean(dy * w * x))
            float correction = -scale * scale * (head_sum(dot, lanes) / dim);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float by_weight = dy[i] * (v[i] * scale);
                d_query[i] += is_query ? by_weight : 0.0f;
                d_key[i] += is_query ? 0.0f : by_weight;
                v[i] = fmaf(dy[i], is_query ? w_query[i] : w_key[i], v[i] * correction) * scale;
            }
            if (is_inside) store_eight(v, d + at);
        }
    }
    float* own = partials + size_t(blockIdx.x) * 2 * dim;
    add_up(d_query, sums, own, dim);
    add_up(d_key, sums, own + dim, dim);
}
