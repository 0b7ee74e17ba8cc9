// Attention of the tokens of prompts over paged keys and values, by tiles. This is the twin of
// attend_cached in src/ops/attention.rs.
//
// Layout: it is that of attention_decode.cu, but tables and lengths belong to tiles: consecutive
// tokens of a sequence. tiles is [tiles][2], the first row of qkv and the number of rows; the
// length is that of the last row.
// Contract: a block of threads takes a tile and a key head with its group of query heads: at most
// 64 rows of (token, query head), of which a warp has sixteen. It goes over the keys from the first
// to the tile's last, 32 at a time, which are one block of the cache. Rows do not mix, and keys
// that a row does not see add zeros to its sums: a token has the same bits in any tile, so a prompt
// may be read in any pieces.
// The kernel is bound by arithmetic: products run on tensor cores, which round the weights of
// values to 16 bits; the next keys and values are copied meanwhile.
#include "common.cuh"
#include "tensor_cores.cuh"

#ifdef __CUDACC__
#include <cuda_pipeline_primitives.h>
#endif

constexpr int TOKENS = 32;  // of a cache block, and of a step
constexpr int THREADS = 128;
constexpr int WARP_ROWS = 16;
constexpr int GAP = 8;  // keeps rows of shared memory in different banks
constexpr float LOG2_E = 1.4426950408889634f;

template <int DIM>
struct __align__(16) PromptShared {
    Half keys[2][TOKENS][DIM + GAP];  // steps alternate
    Half values[2][TOKENS][DIM + GAP];
};

template <int DIM>
__device__ __forceinline__ void attend_tile(const Half* qkv, const Half* keys, const Half* values,
                                            const unsigned* tables, const unsigned* lengths,
                                            const unsigned* tiles, Half* out, int heads, int kv_heads,
                                            int table_width, PromptShared<DIM>& shared) {
    constexpr int STEPS = DIM / 16;   // of a product over the columns of a head
    constexpr int OCTETS = DIM / 8;   // of columns
    constexpr int VECTORS = TOKENS * OCTETS / THREADS;  // of keys, and of values, that a thread fetches
    // The longest tiles come first.
    int tile = gridDim.x - 1 - blockIdx.x, kv_head = blockIdx.y, group = heads / kv_heads;
    int first_row = tiles[2 * tile], rows = int(tiles[2 * tile + 1]) * group;
    int end = lengths[tile], first_position = end - rows / group;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    bool is_at_work = warp * WARP_ROWS < rows;

    // Each thread holds parts of two rows.
    int position[2];
    size_t place[2];  // of the query, in heads of DIM numbers
    size_t out_place[2];
    bool is_there[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = warp * WARP_ROWS + g + 8 * i;
        is_there[i] = row < rows;
        if (!is_there[i]) row = rows - 1;  // computed again, and not written
        int token = row / group, head = kv_head * group + row % group;
        position[i] = first_position + token;
        place[i] = size_t(first_row + token) * (heads + 2 * kv_heads) + head;
        out_place[i] = size_t(first_row + token) * heads + head;
    }
    unsigned query[STEPS][4];
    if (is_at_work) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const unsigned* words = reinterpret_cast<const unsigned*>(qkv + place[i] * DIM);
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                query[step][i] = words[step * 8 + t];
                query[step][2 + i] = words[step * 8 + 4 + t];
            }
        }
    }

    const unsigned* table = tables + size_t(tile) * table_width;
    auto fetch = [&](int first, int turn) {
        size_t page = (size_t(table[first / TOKENS]) * kv_heads + kv_head) * TOKENS * DIM;
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            int vector = threadIdx.x + i * THREADS, token = vector / OCTETS, column = vector % OCTETS * 8;
            size_t from = page + token * DIM + column;
            Half *key = &shared.keys[turn][token][column], *value = &shared.values[turn][token][column];
            if (first + token < end) {
                __pipeline_memcpy_async(key, keys + from, 16);
                __pipeline_memcpy_async(value, values + from, 16);
            } else {
                // Memory beyond the sequence may hold anything, so zeros take its place.
                *reinterpret_cast<uint4*>(key) = make_uint4(0, 0, 0, 0);
                *reinterpret_cast<uint4*>(value) = make_uint4(0, 0, 0, 0);
            }
        }
    };

    float scale = LOG2_E / sqrtf(float(DIM));
    float sums[OCTETS][4] = {};
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    fetch(0, 0);
    __pipeline_commit();
    for (int first = 0; first < end; first += TOKENS) {
        int turn = first / TOKENS % 2;
        if (first + TOKENS < end) fetch(first + TOKENS, 1 - turn);
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();
        if (is_at_work) {
            float scores[TOKENS / 8][4] = {};
#pragma unroll
            for (int octet = 0; octet < TOKENS / 8; octet++) {
#pragma unroll
                for (int step = 0; step < STEPS; step += 2) {
                    unsigned key[4];
                    load_four(key, &shared.keys[turn][octet * 8 + lane % 8][step * 16 + lane / 8 * 8]);
                    multiply_add(scores[octet], query[step], key);
                    multiply_add(scores[octet], query[step + 1], key + 2);
                }
            }
            float rescale[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float larger = max[i];
#pragma unroll
                for (int octet = 0; octet < TOKENS / 8; octet++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float& score = scores[octet][2 * i + j];
                        if (first + octet * 8 + 2 * t + j > position[i]) score = -INFINITY;
                        larger = fmaxf(larger, score);
                    }
                }
                larger = fmaxf(larger, __shfl_xor_sync(ALL_LANES, larger, 1));
                larger = fmaxf(larger, __shfl_xor_sync(ALL_LANES, larger, 2));
                rescale[i] = exp2f((max[i] - larger) * scale);
                max[i] = larger;
                sum[i] *= rescale[i];
#pragma unroll
                for (int octet = 0; octet < TOKENS / 8; octet++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float& score = scores[octet][2 * i + j];
                        score = exp2f((score - larger) * scale);
                        sum[i] += score;
                    }
                }
            }
#pragma unroll
            for (int octet = 0; octet < OCTETS; octet++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[octet][j] *= rescale[j / 2];
            }
#pragma unroll
            for (int step = 0; step < TOKENS / 16; step++) {
                // The fragment C of one product has the layout of A of the next.
                const float *low = scores[2 * step], *high = scores[2 * step + 1];
                unsigned weights[4] = {pack<Half>(low[0], low[1]), pack<Half>(low[2], low[3]),
                                       pack<Half>(high[0], high[1]), pack<Half>(high[2], high[3])};
#pragma unroll
                for (int octet = 0; octet < OCTETS; octet += 2) {
                    unsigned value[4];
                    int token = step * 16 + lane % 16, column = (octet + lane / 16) * 8;
                    load_four_transposed(value, &shared.values[turn][token][column]);
                    multiply_add(sums[octet], weights, value);
                    multiply_add(sums[octet + 1], weights, value + 2);
                }
            }
        }
        __syncthreads();
    }

    if (!is_at_work) return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 1);
        sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 2);
        float inverse = 1.0f / sum[i];
        unsigned* words = reinterpret_cast<unsigned*>(out + out_place[i] * DIM);
        if (!is_there[i]) continue;
#pragma unroll
        for (int octet = 0; octet < OCTETS; octet++) {
            words[octet * 4 + t] = pack<Half>(sums[octet][2 * i] * inverse, sums[octet][2 * i + 1] * inverse);
        }
    }
}

#define ATTENTION_PROMPT(DIM)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                 \
    attention_prompt_##DIM(const Half* qkv, const Half* keys, const Half* values, const unsigned* tables, \
                           const unsigned* lengths, const unsigned* tiles, Half* out, int heads,          \
                           int kv_heads, int table_width) {                                               \
        __shared__ PromptShared<DIM> shared;                                                              \
        attend_tile<DIM>(qkv, keys, values, tables, lengths, tiles, out, heads, kv_heads, table_width,    \
                         shared);                                                                         \
    }
ATTENTION_PROMPT(32)
ATTENTION_PROMPT(64)
ATTENTION_PROMPT(128)
