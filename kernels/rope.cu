// Rotary position embedding: in place, between rows and separate tensors, and together with writing
// keys and values to the paged cache. This is the twin of src/ops/rope.rs.
//
// Layout: a row of qkv is [heads, kv_heads, kv_heads] heads of 2 * half elements; half is a
// multiple of 8. cosines and sines are [positions, half] fp32. The host makes them
// (ops::rope::Rope, Llama 3 scaling included), so no angle is computed here. Apart, queries [rows,
// heads, 2 * half], keys and values [rows, kv_heads, 2 * half] lie one after the other. The cache
// holds keys [block][kv_head][32][head_dim], and values alike; a slot is block * 32 + position %
// 32.
// Contract: element i of a head rotates with element i + half; direction 1 rotates forward, -1
// back.
#include "common.cuh"

constexpr unsigned BLOCK_TOKENS = 32;

// Rotates eight pairs at `from` and `from + half` to `to` and `to + half`; l and h get the results
// too.
__device__ __forceinline__ void turn_eight(const Half* from, Half* to, int half, const float* cosines,
                                           const float* sines, float direction, float l[8], float h[8]) {
    float c[8], s[8];
    load_eight(from, l);
    load_eight(from + half, h);
    load_eight(cosines, c);
    load_eight(sines, s);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float d = s[i] * direction, x = l[i], y = h[i];
        l[i] = x * c[i] - y * d;
        h[i] = y * c[i] + x * d;
    }
    store_eight(l, to);
    store_eight(h, to + half);
}

// Rotates the first `turned` heads of each row by its position. A block takes a row.
extern "C" __global__ void __launch_bounds__(256)
rope(Half* qkv, const float* cosines, const float* sines, const unsigned* positions, int turned, int half,
     int row_width, float direction) {
    Half* row = qkv + size_t(blockIdx.x) * row_width;
    size_t angle = size_t(positions[blockIdx.x]) * half;
    int vectors = half / 8;
    float l[8], h[8];
    for (int item = threadIdx.x; item < turned * vectors; item += blockDim.x) {
        int head = item / vectors, within = item % vectors * 8;
        Half* low = row + head * 2 * half + within;
        turn_eight(low, low, half, cosines + angle + within, sines + angle + within, direction, l, h);
    }
}

// Returns the element apart that is the first of head `head` of row blockIdx.x, of gridDim.x rows.
__device__ __forceinline__ size_t place_apart(int head, int heads, int kv_heads, int dim) {
    size_t rows = gridDim.x, row = blockIdx.x;
    if (head < heads) return (row * heads + head) * dim;
    bool is_key = head < heads + kv_heads;
    int kv_head = head - heads - (is_key ? 0 : kv_heads);
    return (rows * (heads + (is_key ? 0 : kv_heads)) + row * kv_heads + kv_head) * dim;
}

// Moves a row of queries, keys and values from rows to tensors apart, or back, and rotates queries
// and keys by its position. A block takes a row.
template <bool IS_SPLIT>
__device__ __forceinline__ void move_row(const Half* from, Half* to, const float* cosines, const float* sines,
                                         const unsigned* positions, int heads, int kv_heads, int half) {
    int all = heads + 2 * kv_heads, dim = 2 * half, vectors = half / 8;
    size_t row = size_t(blockIdx.x) * all * dim, angle = size_t(positions[blockIdx.x]) * half;
    float l[8], h[8];
    for (int item = threadIdx.x; item < all * vectors; item += blockDim.x) {
        int head = item / vectors, within = item % vectors * 8;
        size_t in_row = row + head * dim + within, apart = place_apart(head, heads, kv_heads, dim) + within;
        const Half* source = from + (IS_SPLIT ? in_row : apart);
        Half* target = to + (IS_SPLIT ? apart : in_row);
        if (head < heads + kv_heads) {
            turn_eight(source, target, half, cosines + angle + within, sines + angle + within,
                       IS_SPLIT ? 1.0f : -1.0f, l, h);
        } else {
            load_eight(source, l);
            load_eight(source + half, h);
            store_eight(l, target);
            store_eight(h, target + half);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
rope_split(const Half* rows, Half* apart, const float* cosines, const float* sines, const unsigned* positions,
           int heads, int kv_heads, int half) {
    move_row<true>(rows, apart, cosines, sines, positions, heads, kv_heads, half);
}

extern "C" __global__ void __launch_bounds__(256)
rope_join(const Half* apart, Half* rows, const float* cosines, const float* sines, const unsigned* positions,
          int heads, int kv_heads, int half) {
    move_row<false>(apart, rows, cosines, sines, positions, heads, kv_heads, half);
}

// Rotates rows of queries, keys and values in place, and writes the rotated keys and the values to
// their slots of the cache.
extern "C" __global__ void __launch_bounds__(256)
rope_write(Half* qkv, const float* cosines, const float* sines, const unsigned* positions,
           const unsigned* slots, Half* keys, Half* values, int heads, int kv_heads, int half) {
    int dim = 2 * half, vectors = half / 8;
    Half* row = qkv + size_t(blockIdx.x) * (heads + 2 * kv_heads) * dim;
    size_t angle = size_t(positions[blockIdx.x]) * half;
    unsigned slot = slots[blockIdx.x];
    size_t block = size_t(slot / BLOCK_TOKENS) * kv_heads;
    unsigned token = slot % BLOCK_TOKENS;
    float l[8], h[8];
    for (int item = threadIdx.x; item < (heads + 2 * kv_heads) * vectors; item += blockDim.x) {
        int head = item / vectors, within = item % vectors * 8;
        Half* low = row + head * dim + within;
        if (head < heads + kv_heads) {
            turn_eight(low, low, half, cosines + angle + within, sines + angle + within, 1.0f, l, h);
        } else {
            load_eight(low, l);
            load_eight(low + half, h);
        }
        if (head < heads) continue;
        bool is_key = head < heads + kv_heads;
        int kv_head = head - heads - (is_key ? 0 : kv_heads);
        Half* cached = (is_key ? keys : values) + ((block + kv_head) * BLOCK_TOKENS + token) * dim + within;
        store_eight(l, cached);
        store_eight(h, cached + half);
    }
}
