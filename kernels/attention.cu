// Causal grouped-query attention within packed sequences, forward and backward. It is the
// reference, and runs where cuDNN is missing. This is the twin of src/ops/attention.rs.
//
// Layout: a row of qkv is [heads, kv_heads, kv_heads] heads of `dim`, with queries and keys
// rotated; out and d_out are [tokens, heads * dim], lse and delta [tokens, heads] fp32 (natural
// logarithm), and d_qkv is as qkv. A tile is (first row of its sequence, the sequence's length,
// first position of the tile). The host lists the tiles (src/cuda/kernels/attention.rs), so
// sequences may have any lengths.
// Source: the tiling is that of Dao, "FlashAttention-2" (ICLR 2024), except that the gradient of
// the queries has a pass of its own instead of atomic additions.
// Contract: one block computes one tile; it goes over keys (or queries) in ascending order and sums
// in fp32. No block adds to what another writes, so the bits are the same every time, whatever the
// packing. Scores are never stored: the backward computes them again from lse. These are plain
// multiply-adds without tensor cores.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int KEYS = 32;          // of a tile
constexpr int QUERIES = 64;       // of a tile of the forward
constexpr int BACK_QUERIES = 32;  // of a tile of the backward

struct Tile {
    unsigned start, length, first;
};

struct Shape {
    int heads, kv_heads;
};

// Rows of a tile in shared memory. They are a vector apart, so that columns spread over the banks.
template <int DIM, int ROWS>
struct __align__(16) Rows {
    Half at[ROWS][DIM + 8];
};

// Loads rows of one head from position `first` on; rows beyond the sequence become zeros.
template <int DIM, int ROWS>
__device__ __forceinline__ void load_rows(const Half* head, size_t row_width, unsigned first, unsigned length,
                                          Rows<DIM, ROWS>& rows) {
    constexpr int VECTORS = DIM / 8;
    for (int i = threadIdx.x; i < ROWS * VECTORS; i += THREADS) {
        int row = i / VECTORS, column = i % VECTORS * 8;
        uint4 vector = make_uint4(0, 0, 0, 0);
        if (first + row < length) {
            vector = *reinterpret_cast<const uint4*>(head + (first + row) * row_width + column);
        }
        *reinterpret_cast<uint4*>(&rows.at[row][column]) = vector;
    }
}

// Loads a thread's `COUNT` columns, an even number. Up to eight are neighbours; more are vectors of
// eight with those of seven other threads between them, so that the eight threads read different
// banks.
template <int COUNT>
__device__ __forceinline__ void load_columns(const Half* from, float out[COUNT]) {
    if (COUNT % 8 == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 8) load_eight(from + i * 8, out + i);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i += 2) {
            float2 pair = unpack<Half>(*reinterpret_cast<const unsigned*>(from + i));
            out[i] = pair.x, out[i + 1] = pair.y;
        }
    }
}

template <int COUNT>
__device__ __forceinline__ void store_columns(const float x[COUNT], Half* to) {
    if (COUNT % 8 == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 8) store_eight(x + i, to + i * 8);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i += 2) *reinterpret_cast<unsigned*>(to + i) = pack<Half>(x[i], x[i + 1]);
    }
}

template <int DIM>
struct __align__(16) ForwardShared {
    Rows<DIM, QUERIES> queries;
    Rows<DIM, KEYS> keys, values;
    float weights[QUERIES][KEYS + 1];
};

// Half a warp computes four queries. A thread has two of each step's keys, and a sixteenth of the
// columns.
template <int DIM>
__device__ __forceinline__ void forward_tile(const Half* qkv, const Tile* tiles, Half* out, float* lse,
                                             Shape shape, ForwardShared<DIM>& shared) {
    constexpr int COLUMNS = DIM / 16, OWN = 4;
    Tile tile = tiles[blockIdx.x];
    int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads);
    size_t row_width = size_t(shape.heads + 2 * shape.kv_heads) * DIM;
    const Half* sequence = qkv + tile.start * row_width;
    const Half* key_head = sequence + (shape.heads + kv_head) * DIM;
    const Half* value_head = key_head + shape.kv_heads * DIM;
    float scale = 1.0f / sqrtf(float(DIM));
    int own = threadIdx.x / 16 * OWN, column = threadIdx.x % 16;
    float sums[OWN][COLUMNS] = {}, max[OWN], sum[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) max[i] = -INFINITY, sum[i] = 0;
    load_rows<DIM, QUERIES>(sequence + head * DIM, row_width, tile.first, tile.length, shared.queries);
    unsigned end = min(tile.length, tile.first + QUERIES);
    for (unsigned first = 0; first < end; first += KEYS) {
        __syncthreads();
        load_rows<DIM, KEYS>(key_head, row_width, first, tile.length, shared.keys);
        load_rows<DIM, KEYS>(value_head, row_width, first, tile.length, shared.values);
        __syncthreads();
        float scores[OWN][2] = {};
#pragma unroll 4
        for (int d = 0; d < DIM; d += 8) {
            float k[2][8], q[8];
            load_eight(&shared.keys.at[column][d], k[0]);
            load_eight(&shared.keys.at[column + 16][d], k[1]);
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                load_eight(&shared.queries.at[own + i][d], q);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    scores[i][0] = fmaf(q[j], k[0][j], scores[i][0]);
                    scores[i][1] = fmaf(q[j], k[1][j], scores[i][1]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            unsigned last = tile.first + own + i;  // the last key that the query sees
#pragma unroll
            for (int j = 0; j < 2; j++) {
                bool is_seen = first + column + 16 * j <= last;
                scores[i][j] = is_seen ? scores[i][j] * scale : -INFINITY;
            }
            float larger = fmaxf(max[i], fmaxf(scores[i][0], scores[i][1]));
            for (int lanes = 1; lanes < 16; lanes *= 2) {
                larger = fmaxf(larger, __shfl_xor_sync(ALL_LANES, larger, lanes));
            }
            float rescale = expf(max[i] - larger);
            float weights[2] = {expf(scores[i][0] - larger), expf(scores[i][1] - larger)};
            float added = weights[0] + weights[1];
            for (int lanes = 1; lanes < 16; lanes *= 2) added += __shfl_xor_sync(ALL_LANES, added, lanes);
            sum[i] = sum[i] * rescale + added;
            max[i] = larger;
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) sums[i][j] *= rescale;
            shared.weights[own + i][column] = weights[0];
            shared.weights[own + i][column + 16] = weights[1];
        }
        __syncwarp();
#pragma unroll 4
        for (int key = 0; key < KEYS; key++) {
            float v[COLUMNS];
            load_columns<COLUMNS>(&shared.values.at[key][column * COLUMNS], v);
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                float weight = shared.weights[own + i][key];
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) sums[i][j] = fmaf(weight, v[j], sums[i][j]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        unsigned position = tile.first + own + i;
        if (position >= tile.length) continue;
        size_t at = (size_t(tile.start) + position) * shape.heads + head;
        float inverse = 1.0f / sum[i];
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) sums[i][j] *= inverse;
        store_columns<COLUMNS>(sums[i], out + at * DIM + column * COLUMNS);
        if (column == 0) lse[at] = max[i] + logf(sum[i]);
    }
}

// Computes delta, the sum over a head of d_out * out. A warp takes one head of one row.
extern "C" __global__ void __launch_bounds__(THREADS)
attention_delta(const Half* out, const Half* d_out, float* delta, int count, int dim) {
    int index = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (index >= count) return;
    float sum = 0;
    if (lane * 8 < dim) {
        float o[8], d[8];
        load_eight(out + size_t(index) * dim + lane * 8, o);
        load_eight(d_out + size_t(index) * dim + lane * 8, d);
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(o[i], d[i], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) delta[index] = sum;
}

template <int DIM>
struct __align__(16) BackwardShared {
    Rows<DIM, BACK_QUERIES> queries, d_outs;
    Rows<DIM, KEYS> keys, values;
    float weights[BACK_QUERIES][KEYS + 1], d_scores[BACK_QUERIES][KEYS + 1];
};

// Computes the weights of a tile of queries and keys, and the gradients of their scores, from
// shared memory. A thread takes a query and every eighth key.
template <int DIM>
__device__ __forceinline__ void weigh_again(Tile tile, unsigned first_query, unsigned first_key,
                                            const float* lse, const float* delta, int heads,
                                            BackwardShared<DIM>& shared) {
    constexpr int EACH = KEYS / 8;
    int query = threadIdx.x / 8, key = threadIdx.x % 8;
    float scores[EACH] = {}, d_weights[EACH] = {};
#pragma unroll 2
    for (int d = 0; d < DIM; d += 8) {
        float q[8], g[8], x[8];
        load_eight(&shared.queries.at[query][d], q);
        load_eight(&shared.d_outs.at[query][d], g);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            load_eight(&shared.keys.at[key + 8 * i][d], x);
#pragma unroll
            for (int j = 0; j < 8; j++) scores[i] = fmaf(q[j], x[j], scores[i]);
            load_eight(&shared.values.at[key + 8 * i][d], x);
#pragma unroll
            for (int j = 0; j < 8; j++) d_weights[i] = fmaf(g[j], x[j], d_weights[i]);
        }
    }
    unsigned position = first_query + query;
    bool is_inside = position < tile.length;
    size_t row = (size_t(tile.start) + position) * heads;
    float row_lse = is_inside ? lse[row] : 0.0f, row_delta = is_inside ? delta[row] : 0.0f;
    float scale = 1.0f / sqrtf(float(DIM));
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        bool is_seen = is_inside && first_key + key + 8 * i <= position;
        float weight = is_seen ? expf(scores[i] * scale - row_lse) : 0.0f;
        shared.weights[query][key + 8 * i] = weight;
        shared.d_scores[query][key + 8 * i] = weight * (d_weights[i] - row_delta) * scale;
    }
}

// Computes the gradients of a tile of keys and values, from all queries of the group that see them.
// A thread has an eighth of the columns of a key and of its value.
template <int DIM>
__device__ __forceinline__ void backward_keys(const Half* qkv, const Tile* tiles, const Half* d_out,
                                              const float* lse, const float* delta, Half* d_qkv,
                                              Shape shape, BackwardShared<DIM>& shared) {
    constexpr int COLUMNS = DIM / 8;
    // Keys with the most queries after them come first, because they take longest.
    Tile tile = tiles[gridDim.x - 1 - blockIdx.x];
    int kv_head = blockIdx.y, group = shape.heads / shape.kv_heads;
    size_t row_width = size_t(shape.heads + 2 * shape.kv_heads) * DIM;
    size_t out_width = size_t(shape.heads) * DIM;
    const Half* sequence = qkv + tile.start * row_width;
    const Half* key_head = sequence + (shape.heads + kv_head) * DIM;
    load_rows<DIM, KEYS>(key_head, row_width, tile.first, tile.length, shared.keys);
    load_rows<DIM, KEYS>(key_head + shape.kv_heads * DIM, row_width, tile.first, tile.length, shared.values);
    int key = threadIdx.x / 8, column = threadIdx.x % 8 * (COLUMNS < 8 ? COLUMNS : 8);
    float d_key[COLUMNS] = {}, d_value[COLUMNS] = {};
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        const Half* d_out_head = d_out + tile.start * out_width + head * DIM;
        for (unsigned first = tile.first; first < tile.length; first += BACK_QUERIES) {
            __syncthreads();
            load_rows<DIM, BACK_QUERIES>(sequence + head * DIM, row_width, first, tile.length, shared.queries);
            load_rows<DIM, BACK_QUERIES>(d_out_head, out_width, first, tile.length, shared.d_outs);
            __syncthreads();
            weigh_again(tile, first, tile.first, lse + head, delta + head, shape.heads, shared);
            __syncthreads();
#pragma unroll 2
            for (int query = 0; query < BACK_QUERIES; query++) {
                float x[COLUMNS];
                float weight = shared.weights[query][key], d_score = shared.d_scores[query][key];
                load_columns<COLUMNS>(&shared.d_outs.at[query][column], x);
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) d_value[j] = fmaf(weight, x[j], d_value[j]);
                load_columns<COLUMNS>(&shared.queries.at[query][column], x);
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) d_key[j] = fmaf(d_score, x[j], d_key[j]);
            }
        }
    }
    if (tile.first + key >= tile.length) return;
    Half* d_row = d_qkv + (tile.start + tile.first + key) * row_width + (shape.heads + kv_head) * DIM + column;
    store_columns<COLUMNS>(d_key, d_row);
    store_columns<COLUMNS>(d_value, d_row + shape.kv_heads * DIM);
}

// Computes the gradients of a tile of queries of one head, from all keys that they see.
template <int DIM>
__device__ __forceinline__ void backward_queries(const Half* qkv, const Tile* tiles, const Half* d_out,
                                                 const float* lse, const float* delta, Half* d_qkv,
                                                 Shape shape, BackwardShared<DIM>& shared) {
    constexpr int COLUMNS = DIM / 8;
    Tile tile = tiles[blockIdx.x];
    int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads);
    size_t row_width = size_t(shape.heads + 2 * shape.kv_heads) * DIM;
    size_t out_width = size_t(shape.heads) * DIM;
    const Half* sequence = qkv + tile.start * row_width;
    const Half* key_head = sequence + (shape.heads + kv_head) * DIM;
    const Half* d_out_head = d_out + tile.start * out_width + head * DIM;
    load_rows<DIM, BACK_QUERIES>(sequence + head * DIM, row_width, tile.first, tile.length, shared.queries);
    load_rows<DIM, BACK_QUERIES>(d_out_head, out_width, tile.first, tile.length, shared.d_outs);
    int query = threadIdx.x / 8, column = threadIdx.x % 8 * (COLUMNS < 8 ? COLUMNS : 8);
    float d_query[COLUMNS] = {};
    unsigned end = min(tile.length, tile.first + BACK_QUERIES);
    for (unsigned first = 0; first < end; first += KEYS) {
        __syncthreads();
        load_rows<DIM, KEYS>(key_head, row_width, first, tile.length, shared.keys);
        load_rows<DIM, KEYS>(key_head + shape.kv_heads * DIM, row_width, first, tile.length, shared.values);
        __syncthreads();
        weigh_again(tile, tile.first, first, lse + head, delta + head, shape.heads, shared);
        __syncthreads();
#pragma unroll 2
        for (int key = 0; key < KEYS; key++) {
            float x[COLUMNS], d_score = shared.d_scores[query][key];
            load_columns<COLUMNS>(&shared.keys.at[key][column], x);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) d_query[j] = fmaf(d_score, x[j], d_query[j]);
        }
    }
    if (tile.first + query >= tile.length) return;
    Half* d_row = d_qkv + (tile.start + tile.first + query) * row_width + head * DIM + column;
    store_columns<COLUMNS>(d_query, d_row);
}

#define ATTENTION(DIM)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                   \
    attention_##DIM(const Half* qkv, const Tile* tiles, Half* out, float* lse, Shape shape) {               \
        __shared__ ForwardShared<DIM> shared;                                                               \
        forward_tile<DIM>(qkv, tiles, out, lse, shape, shared);                                             \
    }                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                \
    attention_backward_keys_##DIM(const Half* qkv, const Tile* tiles, const Half* d_out, const float* lse,  \
                                  const float* delta, Half* d_qkv, Shape shape) {                           \
        __shared__ BackwardShared<DIM> shared;                                                              \
        backward_keys<DIM>(qkv, tiles, d_out, lse, delta, d_qkv, shape, shared);                            \
    }                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                \
    attention_backward_queries_##DIM(const Half* qkv, const Tile* tiles, const Half* d_out,                 \
                                     const float* lse, const float* delta, Half* d_qkv, Shape shape) {      \
        __shared__ BackwardShared<DIM> shared;                                                              \
        backward_queries<DIM>(qkv, tiles, d_out, lse, delta, d_qkv, shape, shared);                         \
    }
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
