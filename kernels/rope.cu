// Rotary position embedding in place, and the writing of keys and values into the paged cache. Twin
// of src/ops/rope.rs.
//
// Layout: a row of qkv is [heads, kv_heads, kv_heads] heads of 2 * half elements, half a multiple of
// 8; cosines and sines are [positions, half] fp32, made on the host (ops::rope::Rope, Llama 3 scaling
// included), so no angle is computed here. The cache holds [block][kv_head][32][head_dim] keys, and
// values alike; a slot is block * 32 + position % 32.
// Contract: element i of a head turns with element i + half; direction 1 turns, -1 turns back.
#include "common.cuh"

constexpr unsigned BLOCK_TOKENS = 32;

// Turns eight pairs at `low` and `low + half`; the results also in l and h.
__device__ __forceinline__ void turn_eight(bf16* low, int half, const float* cosines, const float* sines,
                                           float direction, float l[8], float h[8]) {
    float c[8], s[8];
    load_eight(low, l);
    load_eight(low + half, h);
    load_eight(cosines, c);
    load_eight(sines, s);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float d = s[i] * direction, x = l[i], y = h[i];
        l[i] = x * c[i] - y * d;
        h[i] = y * c[i] + x * d;
    }
    store_eight(l, low);
    store_eight(h, low + half);
}

// Turns the first `turned` heads of each row (a block) by its position.
extern "C" __global__ void __launch_bounds__(256)
rope(bf16* qkv, const float* cosines, const float* sines, const unsigned* positions, int turned, int half,
     int row_width, float direction) {
    bf16* row = qkv + size_t(blockIdx.x) * row_width;
    size_t angle = size_t(positions[blockIdx.x]) * half;
    int vectors = half / 8;
    float l[8], h[8];
    for (int item = threadIdx.x; item < turned * vectors; item += blockDim.x) {
        int head = item / vectors, within = item % vectors * 8;
        turn_eight(row + head * 2 * half + within, half, cosines + angle + within, sines + angle + within,
                   direction, l, h);
    }
}

// The same for rows of queries, keys and values, whose keys (turned) and values also go into their
// slot of the cache.
extern "C" __global__ void __launch_bounds__(256)
rope_write(bf16* qkv, const float* cosines, const float* sines, const unsigned* positions,
           const unsigned* slots, bf16* keys, bf16* values, int heads, int kv_heads, int half) {
    int dim = 2 * half, vectors = half / 8;
    bf16* row = qkv + size_t(blockIdx.x) * (heads + 2 * kv_heads) * dim;
    size_t angle = size_t(positions[blockIdx.x]) * half;
    unsigned slot = slots[blockIdx.x];
    size_t block = size_t(slot / BLOCK_TOKENS) * kv_heads;
    unsigned token = slot % BLOCK_TOKENS;
    float l[8], h[8];
    for (int item = threadIdx.x; item < (heads + 2 * kv_heads) * vectors; item += blockDim.x) {
        int head = item / vectors, within = item % vectors * 8;
        bf16* low = row + head * dim + within;
        if (head < heads + kv_heads) {
            turn_eight(low, half, cosines + angle + within, sines + angle + within, 1.0f, l, h);
        } else {
            load_eight(low, l);
            load_eight(low + half, h);
        }
        if (head < heads) continue;
        bool is_key = head < heads + kv_heads;
        int kv_head = head - heads - (is_key ? 0 : kv_heads);
        bf16* cached = (is_key ? keys : values) + ((block + kv_head) * BLOCK_TOKENS + token) * dim + within;
        store_eight(l, cached);
        store_eight(h, cached + half);
    }
}
