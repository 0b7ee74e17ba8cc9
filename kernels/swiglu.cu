// SwiGLU computes silu(gate) * up, on rows that hold gate and up side by side. This is the twin of
// src/ops/swiglu.rs.
//
// Layout: a row of gate_up is [gate, up], each of `inner` elements, a multiple of 8; blockIdx.y is
// the row, blockIdx.x a part of the columns.
// Contract: the backward overwrites gate and up with their gradients, and dy with the product,
// which the gradient of the next matrix needs.
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

extern "C" __global__ void __launch_bounds__(256)
swiglu(const Half* gate_up, Half* out, int inner) {
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (column >= inner) return;
    const Half* gate = gate_up + size_t(blockIdx.y) * 2 * inner + column;
    float g[8], u[8];
    load_eight(gate, g);
    load_eight(gate + inner, u);
#pragma unroll
    for (int i = 0; i < 8; i++) u[i] *= g[i] * sigmoid(g[i]);
    store_eight(u, out + size_t(blockIdx.y) * inner + column);
}

extern "C" __global__ void __launch_bounds__(256)
swiglu_backward(Half* gate_up, Half* dy, int inner) {
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (column >= inner) return;
    Half* gate = gate_up + size_t(blockIdx.y) * 2 * inner + column;
    Half* product = dy + size_t(blockIdx.y) * inner + column;
    float g[8], u[8], d[8];
    load_eight(gate, g);
    load_eight(gate + inner, u);
    load_eight(product, d);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float s = sigmoid(g[i]), silu = g[i] * s;
        // silu' = sigmoid + silu * (1 - sigmoid)
        float d_gate = d[i] * u[i] * fmaf(silu, 1.0f - s, s), d_up = d[i] * silu;
        d[i] = silu * u[i];
        g[i] = d_gate, u[i] = d_up;
    }
    store_eight(g, gate);
    store_eight(u, gate + inner);
    store_eight(d, product);
}
