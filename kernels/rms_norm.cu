// Root-mean-square normalisation of rows, with the residual addition before it. This is the twin of
// src/ops/rms_norm.rs.
//
// Layout: rows are [rows, width], weight is [width]; width is a multiple of 8, at most 8192.
// Contract: a block takes a row and a thread eight elements of it, so a row has the same bits
// whatever the number of rows. The norm is that of the rounded sum, which the backward reads again.
// The weight's gradient has one partial sum for each block of the backward; column_sums.cu adds
// them up.
#include "common.cuh"

// Computes sum = x + residual, if there is a residual (`sum` may be `x`), and y = sum *
// rsqrt(mean(sum²) + eps) * weight.
extern "C" __global__ void __launch_bounds__(1024)
rms_norm(const Half* x, const Half* residual, const Half* weight, float eps, Half* sum, Half* y, int width) {
    __shared__ float scratch[WARP];
    int column = threadIdx.x * 8;
    bool is_inside = column < width;
    size_t at = size_t(blockIdx.x) * width + column;
    float v[8] = {};
    if (is_inside) {
        load_eight(x + at, v);
        if (residual != nullptr) {
            float r[8];
            load_eight(residual + at, r);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = rounded(v[i] + r[i]);
            store_eight(v, sum + at);
        }
    }
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) squares = fmaf(v[i], v[i], squares);
    float scale = 1.0f / sqrtf(block_sum(squares, scratch) / width + eps);
    if (!is_inside) return;
    float w[8];
    load_eight(weight + column, w);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = v[i] * scale * w[i];
    store_eight(v, y + at);
}

// Computes dx = d_sum (if it is given; it may be dx) + the gradient by x, from the gradient dy of
// the output, which is then overwritten with the output. Block b takes rows b, b + gridDim.x, ...
// and writes its share of the weight's gradient to row b of partials [gridDim.x, width].
extern "C" __global__ void __launch_bounds__(1024)
rms_norm_backward(const Half* x, const Half* weight, float eps, Half* dy, const Half* d_sum, Half* dx,
                  float* partials, int rows, int width) {
    __shared__ float scratch[WARP];
    int column = threadIdx.x * 8;
    bool is_inside = column < width;
    float w[8] = {}, d_weight[8] = {};
    if (is_inside) load_eight(weight + column, w);
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        size_t at = size_t(row) * width + column;
        float v[8] = {}, d[8] = {};
        if (is_inside) {
            load_eight(x + at, v);
            load_eight(dy + at, d);
        }
        float squares = 0, dot = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            squares = fmaf(v[i], v[i], squares);
            dot = fmaf(d[i] * w[i], v[i], dot);
        }
        float scale = 1.0f / sqrtf(block_sum(squares, scratch) / width + eps);
        // dx = scale * (dy * w - x * scale² * mean(dy * w * x))
        float correction = -scale * scale * (block_sum(dot, scratch) / width);
        if (!is_inside) continue;
        float before[8] = {}, y[8];
        if (d_sum != nullptr) load_eight(d_sum + at, before);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float normal = v[i] * scale;
            float inner = fmaf(d[i], w[i], v[i] * correction);
            d_weight[i] = fmaf(d[i], normal, d_weight[i]);
            before[i] = fmaf(inner, scale, before[i]);
            y[i] = normal * w[i];
        }
        store_eight(before, dx + at);
        store_eight(y, dy + at);
    }
    if (is_inside) store_eight(d_weight, partials + size_t(blockIdx.x) * width + column);
}
