// Attention of one new token of each sequence over its paged keys and values. This is the twin of
// attend_cached in src/ops/attention.rs.
//
// Layout: a row of qkv is [heads, kv_heads, kv_heads] heads of `dim`; out is [sequences, heads *
// dim]. The cache is that of rope_write: [block][kv_head][32][dim]. tables is [sequences,
// table_width] block numbers; lengths count the new token, whose key and value are already in the
// cache.
// Contract: a block of threads takes a sequence, a key head with its group of query heads, and a
// split of 512 keys, over which it goes from the first to the last, 32 at a time. Splits start at
// fixed positions, and another kernel combines them in ascending order, whatever else is in the
// batch and however wide its tables are: a sequence has the same bits in any batch. The output of a
// sequence of one split is written directly. An empty sequence gets zeros. The grid depends only on
// the tables' width, so that a recorded launch fits later steps; blocks beyond a sequence return.
// The kernel is bound by memory: it reads each key and value once, in sixteen-byte vectors, and
// loads the next keys while it computes with these.
#include "common.cuh"

constexpr int TOKENS = 32;   // of a cache block, and of a step
constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int SPLIT = 512;   // keys; a multiple of TOKENS
// A partial result is the sums of `dim` columns, the largest score, the sum of weights, and padding
// up to the next vector.
constexpr int BESIDE_SUMS = 4;

template <int DIM, int GROUP>
struct __align__(16) DecodeShared {
    float queries[GROUP][DIM];
    float weights[2][GROUP][TOKENS];  // scores, then weights; steps alternate
    float rescales[2][GROUP];
    float maxima[GROUP], sums[GROUP];
    float results[WARPS][GROUP][DIM];
};

template <int DIM, int GROUP>
__device__ __forceinline__ void attend_one(const Half* qkv, const Half* keys, const Half* values,
                                           const unsigned* tables, const unsigned* lengths,
                                           float* partials, Half* out, int heads, int kv_heads,
                                           int table_width, DecodeShared<DIM, GROUP>& shared) {
    constexpr int KEY_VECTORS = DIM / 32;        // of a thread: four threads share a key
    constexpr int COLUMNS = DIM / 8;             // vectors of a value
    constexpr int VALUE_STEP = THREADS / COLUMNS;  // values read at a time
    constexpr int EACH = TOKENS / VALUE_STEP;    // values of a thread
    constexpr int OWN = GROUP / WARPS;           // query heads whose softmax a warp keeps
    int sequence = blockIdx.x, kv_head = blockIdx.y % kv_heads, group = heads / kv_heads;
    int split = blockIdx.y / kv_heads, splits = gridDim.y / kv_heads;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int length = int(lengths[sequence]), start = split * SPLIT, end = min(length, start + SPLIT);
    if (split > 0 && start >= length) return;
    const unsigned* table = tables + size_t(sequence) * table_width;

    const Half* query = qkv + (size_t(sequence) * (heads + 2 * kv_heads) + kv_head * group) * DIM;
    float scale = 1.0f / sqrtf(float(DIM));
    for (int i = threadIdx.x; i < GROUP * DIM; i += THREADS) {
        int member = i / DIM;
        shared.queries[member][i % DIM] = member < group ? widen(query[i]) * scale : 0.0f;
    }
    __syncthreads();

    int token = threadIdx.x / 4, quarter = threadIdx.x % 4;
    int column = threadIdx.x % COLUMNS, first_value = threadIdx.x / COLUMNS;
    float sums[GROUP][8] = {};
    float max[OWN], sum[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) max[i] = -INFINITY, sum[i] = 0;

    uint4 key[KEY_VECTORS], value[EACH];
    auto page = [&](int first) { return (size_t(table[first / TOKENS]) * kv_heads + kv_head) * TOKENS * DIM; };
    auto load_keys = [&](int first) {
        if (first + token >= end) return;
        const uint4* from = reinterpret_cast<const uint4*>(keys + page(first) + token * DIM);
#pragma unroll
        for (int i = 0; i < KEY_VECTORS; i++) key[i] = from[quarter + 4 * i];
    };
#pragma unroll
    for (int i = 0; i < KEY_VECTORS; i++) key[i] = make_uint4(0, 0, 0, 0);
    load_keys(start);
    for (int first = start; first < end; first += TOKENS) {
        int turn = first / TOKENS % 2;
        const uint4* from = reinterpret_cast<const uint4*>(values + page(first));
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int row = first_value + i * VALUE_STEP;
            // Memory beyond the sequence may hold anything, so zeros take its place.
            value[i] = first + row < end ? from[row * COLUMNS + column] : make_uint4(0, 0, 0, 0);
        }
        float scores[GROUP] = {};
#pragma unroll
        for (int i = 0; i < KEY_VECTORS; i++) {
            float k[8], q[8];
            widen_eight<Half>(key[i], k);
#pragma unroll
            for (int member = 0; member < GROUP; member++) {
                load_eight(&shared.queries[member][(quarter + 4 * i) * 8], q);
#pragma unroll
                for (int j = 0; j < 8; j++) scores[member] = fmaf(q[j], k[j], scores[member]);
            }
        }
        load_keys(first + TOKENS);
#pragma unroll
        for (int member = 0; member < GROUP; member++) {
            float score = scores[member];
            score += __shfl_xor_sync(ALL_LANES, score, 1);
            score += __shfl_xor_sync(ALL_LANES, score, 2);
            bool is_seen = first + token < end;
            if (quarter == 0) shared.weights[turn][member][token] = is_seen ? score : -INFINITY;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            int member = warp + i * WARPS;
            float score = shared.weights[turn][member][lane];
            float larger = fmaxf(max[i], warp_max(score));
            float weight = __expf(score - larger), rescale = __expf(max[i] - larger);
            sum[i] = sum[i] * rescale + warp_sum(weight);
            max[i] = larger;
            shared.weights[turn][member][lane] = weight;
            if (lane == 0) shared.rescales[turn][member] = rescale;
        }
        __syncthreads();
#pragma unroll
        for (int member = 0; member < GROUP; member++) {
            float rescale = shared.rescales[turn][member];
#pragma unroll
            for (int j = 0; j < 8; j++) sums[member][j] *= rescale;
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            float v[8];
            widen_eight<Half>(value[i], v);
#pragma unroll
            for (int member = 0; member < GROUP; member++) {
                float weight = shared.weights[turn][member][first_value + i * VALUE_STEP];
#pragma unroll
                for (int j = 0; j < 8; j++) sums[member][j] = fmaf(weight, v[j], sums[member][j]);
            }
        }
    }

    // Threads of a warp with the same columns are summed first, then the warps in order.
#pragma unroll
    for (int member = 0; member < GROUP; member++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int lanes = COLUMNS; lanes < int(WARP); lanes *= 2) {
                sums[member][j] += __shfl_xor_sync(ALL_LANES, sums[member][j], lanes);
            }
        }
        if (lane < COLUMNS) store_eight(sums[member], &shared.results[warp][member][column * 8]);
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (lane == 0) shared.maxima[warp + i * WARPS] = max[i], shared.sums[warp + i * WARPS] = sum[i];
    }
    __syncthreads();
    size_t first_head = size_t(sequence) * heads + kv_head * group;
    for (int i = threadIdx.x; i < group * COLUMNS; i += THREADS) {
        int member = i / COLUMNS, at = i % COLUMNS * 8;
        float total = shared.sums[member], result[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float x = 0;
#pragma unroll
            for (int other = 0; other < WARPS; other++) x += shared.results[other][member][at + j];
            result[j] = x;
        }
        if (length <= SPLIT) {
            float inverse = total > 0.0f ? 1.0f / total : 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) result[j] *= inverse;
            store_eight(result, out + first_head * DIM + i * 8);
        } else {
            float* partial = partials + ((first_head + member) * splits + split) * (DIM + BESIDE_SUMS);
            store_eight(result, partial + at);
            if (at == 0) partial[DIM] = shared.maxima[member], partial[DIM + 1] = total;
        }
    }
}

// Computes the outputs of sequences of several splits. A block takes a query head of a sequence, a
// thread one column.
extern "C" __global__ void __launch_bounds__(THREADS)
attention_decode_combine(const float* partials, const unsigned* lengths, Half* out, int heads, int splits) {
    int sequence = blockIdx.x, head = blockIdx.y, dim = blockDim.x, column = threadIdx.x;
    int length = int(lengths[sequence]), filled = (length + SPLIT - 1) / SPLIT;
    if (filled <= 1) return;
    size_t row = size_t(sequence) * heads + head;
    int width = dim + BESIDE_SUMS;
    const float* own = partials + row * splits * width;
    float max = -INFINITY, sum = 0, result = 0;
#pragma unroll 4
    for (int split = 0; split < filled; split++) max = fmaxf(max, own[split * width + dim]);
#pragma unroll 4
    for (int split = 0; split < filled; split++) {
        const float* partial = own + split * width;
        float weight = __expf(partial[dim] - max);
        sum = fmaf(weight, partial[dim + 1], sum);
        result = fmaf(weight, partial[column], result);
    }
    narrow(result / sum, out[row * dim + column]);
}

// There are kernels for groups of up to four and of up to eight query heads.
#define ATTENTION_DECODE(NAME, DIM, GROUP)                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                 \
    NAME(const Half* qkv, const Half* keys, const Half* values, const unsigned* tables,                   \
         const unsigned* lengths, float* partials, Half* out, int heads, int kv_heads, int table_width) { \
        __shared__ DecodeShared<DIM, GROUP> shared;                                                       \
        attend_one<DIM, GROUP>(qkv, keys, values, tables, lengths, partials, out, heads, kv_heads,        \
                               table_width, shared);                                                      \
    }
ATTENTION_DECODE(attention_decode_32_4, 32, 4)
ATTENTION_DECODE(attention_decode_32_8, 32, 8)
ATTENTION_DECODE(attention_decode_64_4, 64, 4)
ATTENTION_DECODE(attention_decode_64_8, 64, 8)
ATTENTION_DECODE(attention_decode_128_4, 128, 4)
ATTENTION_DECODE(attention_decode_128_8, 128, 8)
