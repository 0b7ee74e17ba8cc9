// Draws a token from a row of logits, by temperature, top-k, top-p and min-p, from one keyed
// uniform number. This is the twin of src/ops/sample.rs.
//
// Layout: rows have `stride` fp32 logits, a multiple of 8. The first `vocab` make the softmax, and
// the first `choices` of a row's settings may be drawn; the rest pad the vocabulary. A block takes
// a row. Each row has settings of its own, and each of the two kernels skips the rows of the other.
// Contract: the number is that of base::rng::uniform(key, index), and the token is the CPU's: the
// weights come from the same polynomial and, without truncation, are added in the same order. With
// truncation weights become integers, as on the CPU. Their sums have no order, so nothing needs
// sorting: a radix descent finds the cut and the token. The log-probability is that of the whole
// softmax before truncation, by the function of the training head. Left out: repetition penalties.
// Without truncation one thread adds up vocab / 8 sums in a row. By the latency of an addition (4
// cycles) that takes at least 40 microseconds for a vocabulary of 152,064 at 1.8 GHz. This was not
// measured; time can be gained here only together with the CPU's order.
#include "statistics.cuh"

// Returns exp(x) with the bits of ops::simd::exp.
__device__ __forceinline__ float exp_as_cpu(float x) {
    const float lowest = -87.33654f;
    float clamped = x < lowest ? lowest : x;
    clamped = clamped > 88.02f ? 88.02f : clamped;
    float magic = __fmaf_rn(clamped, 1.44269504f, 12582912.0f);
    float n = __fsub_rn(magic, 12582912.0f);
    float r = __fmaf_rn(n, -0.6933594f, clamped);
    r = __fmaf_rn(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = __fmaf_rn(p, r, 1.3981999e-3f);
    p = __fmaf_rn(p, r, 8.333452e-3f);
    p = __fmaf_rn(p, r, 4.1665796e-2f);
    p = __fmaf_rn(p, r, 1.6666666e-1f);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
    float power = __uint_as_float((__float_as_uint(magic) + 127u) << 23);
    return x < lowest ? 0.0f : __fmul_rn(p, power);
}

constexpr int EIGHT = 8;                     // lanes of the CPU's vectors
constexpr int TILE_CHUNKS = 512;             // vectors that a block weighs at a time
constexpr int TILE = TILE_CHUNKS * EIGHT;
constexpr int BLOCK_CHUNKS = 2048 / EIGHT;   // vectors of a block of the CPU's sums: BLOCK in src/ops/logprob.rs
constexpr int MOST_TILES = 64;               // so vocabularies of up to 262,144

// The shared memory of drawing from the whole vocabulary.
struct __align__(16) Draw {
    float weights[TILE];
    float chunk_sums[TILE_CHUNKS];
    float before[MOST_TILES + 1];  // the weight before each tile
    float lanes[2][EIGHT];         // the sums of even and odd vectors of a block
    float total;                   // the weight of all choices
    float target;
    unsigned token;
};

// Returns a thread's four logits of a tile.
__device__ __forceinline__ float4 load_tile(const float* logits, int tile, int choices) {
    int first = tile * TILE + threadIdx.x * 4;
    if (first >= choices) return make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    return *reinterpret_cast<const float4*>(logits + first);
}

// Computes the weights of a tile, those beyond the choices 0, and the sum of each vector of eight.
__device__ __forceinline__ void weigh_tile(float4 x, int tile, int choices, float max,
                                           float inverse_temperature, Draw& draw) {
    __syncthreads();
    int within = threadIdx.x * 4, first = tile * TILE + within;
    float values[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float value = first + i < choices ? values[i] : -INFINITY;
        values[i] = exp_as_cpu(__fmul_rn(__fsub_rn(value, max), inverse_temperature));
    }
    *reinterpret_cast<float4*>(draw.weights + within) = make_float4(values[0], values[1], values[2], values[3]);
    __syncthreads();
    if (threadIdx.x < TILE_CHUNKS) {
        float l[EIGHT];
        load_eight(draw.weights + threadIdx.x * EIGHT, l);
        draw.chunk_sums[threadIdx.x] = __fadd_rn(
            __fadd_rn(__fadd_rn(l[0], l[4]), __fadd_rn(l[2], l[6])),
            __fadd_rn(__fadd_rn(l[1], l[5]), __fadd_rn(l[3], l[7])));
    }
    __syncthreads();
}

// Adds the sums of a tile's vectors one after the other, while the next eight are loaded.
__device__ __forceinline__ float add_in_order(float sum, const Draw& draw) {
    float next[EIGHT];
    load_eight(draw.chunk_sums, next);
#pragma unroll 2
    for (int chunk = 0; chunk < TILE_CHUNKS; chunk += EIGHT) {
        float now[EIGHT];
#pragma unroll
        for (int i = 0; i < EIGHT; i++) now[i] = next[i];
        load_eight(draw.chunk_sums + (chunk + EIGHT) % TILE_CHUNKS, next);
#pragma unroll
        for (int i = 0; i < EIGHT; i++) sum = __fadd_rn(sum, now[i]);
    }
    return sum;
}

// Returns the sum of a block from those of its lanes.
__device__ __forceinline__ float sum_lanes(const Draw& draw) {
    float l[EIGHT];
    for (int i = 0; i < EIGHT; i++) l[i] = __fadd_rn(draw.lanes[0][i], draw.lanes[1][i]);
    return __fadd_rn(__fadd_rn(__fadd_rn(l[0], l[4]), __fadd_rn(l[2], l[6])),
                     __fadd_rn(__fadd_rn(l[1], l[5]), __fadd_rn(l[3], l[7])));
}

// Computes the CPU's two sums of weights at the same time. One goes lane by lane over the even and
// odd vectors of blocks, which are added in fp64, and gives the total. The other goes vector by
// vector, and gives the places in the cumulative sum.
__device__ __forceinline__ void sum_weights(const float* logits, int choices, float max,
                                            float inverse_temperature, Draw& draw) {
    int tiles = (choices + TILE - 1) / TILE, whole = choices / EIGHT;
    bool sums_lane = threadIdx.x < 2 * EIGHT, sums_chunks = threadIdx.x == WARP;
    int odd = threadIdx.x / EIGHT, lane = threadIdx.x % EIGHT;
    float sum = 0, before = 0;
    double total = 0;
    // The odd sums of the first block begin with what is left after the whole vectors.
    if (sums_lane && odd && whole * EIGHT + lane < choices) {
        float z = __fmul_rn(__fsub_rn(logits[whole * EIGHT + lane], max), inverse_temperature);
        sum = __fadd_rn(sum, exp_as_cpu(z));
    }
    float4 next = load_tile(logits, 0, choices);
    for (int tile = 0; tile < tiles; tile++) {
        weigh_tile(next, tile, choices, max, inverse_temperature, draw);
        next = load_tile(logits, tile + 1, choices);
        int chunks = min(TILE_CHUNKS, whole - tile * TILE_CHUNKS);
        for (int first = 0; first < TILE_CHUNKS && threadIdx.x < WARP; first += BLOCK_CHUNKS) {
            if (sums_lane) {
#pragma unroll 8
                for (int chunk = first + odd; chunk < min(chunks, first + BLOCK_CHUNKS); chunk += 2) {
                    sum = __fadd_rn(sum, draw.weights[chunk * EIGHT + lane]);
                }
                draw.lanes[odd][lane] = sum;
                sum = 0;
            }
            __syncwarp();
            if (threadIdx.x == 0) total += double(sum_lanes(draw));
            __syncwarp();
        }
        if (sums_chunks) {
            draw.before[tile] = before;
            before = add_in_order(before, draw);
        }
    }
    if (sums_chunks) draw.before[tiles] = before;
    if (threadIdx.x == 0) draw.total = float(total);
    __syncthreads();
}

// Finds the token that u picks, if it lies in this tile: the first whose cumulative weight exceeds
// the target.
__device__ __forceinline__ void walk_tile(int tile, Draw& draw) {
    float before = draw.before[tile];
    for (int chunk = 0; chunk < TILE_CHUNKS; chunk++) {
        float after = __fadd_rn(before, draw.chunk_sums[chunk]);
        if (after > draw.target) {
            float cumulative = before;
            for (int lane = 0; lane < EIGHT; lane++) {
                float weight = draw.weights[chunk * EIGHT + lane];
                cumulative = __fadd_rn(cumulative, weight);
                if (weight > 0.0f && cumulative > draw.target) {
                    draw.token = tile * TILE + chunk * EIGHT + lane;
                    return;
                }
            }
        }
        before = after;
    }
}

constexpr unsigned NO_TOKEN = ~0u;

// Visits the choices. A thread takes eight neighbours at a time, so that several loads are in
// flight.
template <class Visit>
__device__ __forceinline__ void each_choice(const float* logits, int choices, Visit visit) {
    for (int first = threadIdx.x * EIGHT; first < choices; first += blockDim.x * EIGHT) {
        float x[EIGHT];
        load_eight(logits + first, x);
#pragma unroll
        for (int i = 0; i < EIGHT; i++) {
            if (first + i < choices) visit(first + i, x[i]);
        }
    }
}

// Finds the first of the choices with the largest logit.
__device__ __forceinline__ void most_likely(const float* logits, int choices, float max, unsigned& token) {
    unsigned own = NO_TOKEN;
    each_choice(logits, choices, [&](int i, float logit) {
        if (logit == max) own = min(own, unsigned(i));
    });
    if (own != NO_TOKEN) atomicMin(&token, own);
    __syncthreads();
}

__device__ __forceinline__ float largest(const float* logits, int choices, float scratch[WARP]) {
    float max = -INFINITY;
    each_choice(logits, choices, [&](int, float logit) { max = fmaxf(max, logit); });
    return block_max(max, scratch);
}

__device__ __forceinline__ void draw_token(const float* logits, int choices, float max,
                                           float inverse_temperature, float u, Draw& draw) {
    sum_weights(logits, choices, max, inverse_temperature, draw);
    if (threadIdx.x == 0) {
        // exp(ln(sum)) is rounded as the CPU's library rounds it: correctly, almost always.
        float log_sum = float(log(double(draw.total)));
        draw.target = __fmul_rn(u, float(exp(double(log_sum))));
    }
    __syncthreads();
    int tiles = (choices + TILE - 1) / TILE;
    for (int tile = 0; tile < tiles; tile++) {
        // The whole block decides alike, by what earlier tiles left in shared memory.
        if (draw.token != NO_TOKEN || !(draw.before[tile + 1] > draw.target)) continue;
        weigh_tile(load_tile(logits, tile, choices), tile, choices, max, inverse_temperature, draw);
        if (threadIdx.x == 0) walk_tile(tile, draw);
        __syncthreads();
    }
}

// Returns the drawn token. Logits that are NaN have no order and may draw nothing; then it is the
// first token, whose log-probability is NaN too.
__device__ __forceinline__ unsigned inside(unsigned token, int choices) {
    return token < unsigned(choices) ? token : 0;
}

// The settings of a row; RowSampling of src/cuda/kernels/sample.rs has the same layout.
struct RowSampling {
    unsigned long long key, index;
    float inverse_temperature;  // 1 where the most likely token is taken
    int top_k;
    float top_p, min_p;
    int choices;
    int kind;
};
static_assert(sizeof(RowSampling) == 40, "as the host has it");

enum Kind { GREEDY, WHOLE, TRUNCATED };

// Writes a token and its log-probability for each row that takes the first most likely token or
// draws from the whole vocabulary.
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
sample(const float* logits, const RowSampling* rows, unsigned* tokens, float* logp, int vocab, int stride) {
    __shared__ float scratch[WARP];
    __shared__ Draw draw;
    RowSampling own = rows[blockIdx.x];
    if (own.kind == TRUNCATED) return;
    int choices = own.choices;
    float inverse_temperature = own.inverse_temperature;
    const float* row = logits + size_t(blockIdx.x) * stride;
    if (threadIdx.x == 0) draw.token = NO_TOKEN;
    Statistics found = statistics(row, vocab, inverse_temperature, scratch);
    float max = choices == vocab ? found.max : largest(row, choices, scratch);
    if (own.kind == WHOLE) {
        draw_token(row, choices, max, inverse_temperature, uniform(own.key, own.index), draw);
    }
    // Rounding can leave the sum a little under the target; then it is the most likely token.
    if (draw.token == NO_TOKEN) {
        __syncthreads();
        most_likely(row, choices, max, draw.token);
    }
    if (threadIdx.x > 0) return;
    unsigned token = inside(draw.token, choices);
    tokens[blockIdx.x] = token;
    logp[blockIdx.x] = log_probability(found, inverse_temperature, row[token]);
}

// A weight is an integer: that of the most likely token, 1, is 2^40.
constexpr int WEIGHT_BITS = 40;
__device__ __forceinline__ unsigned long long fixed(float weight) {
    return (unsigned long long)(double(weight) * double(1ull << WEIGHT_BITS));
}

// The choices of a row in descending order of their logits, equal ones in ascending order of their
// index. The largest key comes first.
struct Choices {
    const float* logits;
    int count;
    float max, inverse_temperature;

    __device__ __forceinline__ unsigned long long key(int i, float logit) const {
        unsigned bits = __float_as_uint(logit);
        unsigned ordered = bits ^ (bits >> 31 != 0 ? ~0u : 0x80000000u);
        return (unsigned long long)ordered << 24 | (0xffffffu - unsigned(i));
    }
    __device__ __forceinline__ float weight(float logit) const {
        return exp_as_cpu(__fmul_rn(__fsub_rn(logit, max), inverse_temperature));
    }
};

constexpr int KEY_BITS = 56, DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS;

// Shared memory adds 32 bits at a time, so weights are added in limbs whose sums fit. Most choices
// of a row have one of few digits, and lanes that add to one place wait for each other. Every sum
// therefore has several copies, which lie in different banks.
constexpr int LIMB_BITS = 14, LIMBS = 3, COPIES = 8;
constexpr unsigned LIMB_MASK = (1u << LIMB_BITS) - 1;
static_assert(LIMBS * LIMB_BITS > WEIGHT_BITS, "limbs hold a weight of 2^40");
static_assert((unsigned long long)(LIMB_MASK) * MOST_TILES * TILE <= ~0u, "32 bits hold the limbs of all choices");

// A place in the order: the number of choices up to it, it included, and their weight.
struct __align__(16) Place {
    unsigned token;
    unsigned count;
    unsigned long long weight;
};

// A descent through the digits of the keys, in shared memory.
struct Descent {
    unsigned copies[1 + LIMBS][DIGITS][COPIES];  // of counts, then of the limbs of weights
    unsigned long long weights[DIGITS];
    unsigned counts[DIGITS];
    unsigned long long prefix;  // the digits found so far
    unsigned long long weight;  // of all choices before them
    unsigned count;
    unsigned in_bin;  // choices that share the prefix
    Place place;
};

// Chooses the digit in which the running sum, by count or by weight, reaches `need`. One warp calls
// it.
__device__ __forceinline__ void choose_digit(Descent& descent, bool by_count, unsigned long long need) {
    constexpr int EACH = DIGITS / WARP;
    int lane = threadIdx.x, top = DIGITS - 1 - lane * EACH;
    unsigned count = 0;
    unsigned long long weight = 0;
    for (int i = 0; i < EACH; i++) count += descent.counts[top - i], weight += descent.weights[top - i];
    unsigned count_up_to = count;
    unsigned long long weight_up_to = weight;
#pragma unroll
    for (int step = 1; step < int(WARP); step *= 2) {
        unsigned their_count = __shfl_sync(ALL_LANES, count_up_to, lane - step);
        unsigned long long their_weight = __shfl_sync(ALL_LANES, weight_up_to, lane - step);
        if (lane >= step) count_up_to += their_count, weight_up_to += their_weight;
    }
    unsigned count_before = descent.count + count_up_to - count;
    unsigned long long weight_before = descent.weight + weight_up_to - weight;
    bool reaches = (by_count ? count_before + count : weight_before + weight) >= need;
    unsigned lanes = __ballot_sync(ALL_LANES, reaches);
    // Lanes that reach it come last; if none does, the last lane takes the last choice.
    int chosen = lanes == 0 ? int(WARP) - 1 : __ffs(int(lanes)) - 1;
    if (lane != chosen) return;
    for (int digit = top;; digit--) {
        unsigned in_bin = descent.counts[digit];
        unsigned long long bin_weight = descent.weights[digit];
        bool is_here = (by_count ? count_before + in_bin : weight_before + bin_weight) >= need;
        if (is_here || digit == top - EACH + 1) {
            descent.prefix = descent.prefix << DIGIT_BITS | unsigned(digit);
            descent.count = count_before, descent.weight = weight_before;
            descent.in_bin = in_bin;
            return;
        }
        count_before += in_bin, weight_before += bin_weight;
    }
}

// Empties the histogram of digits.
__device__ __forceinline__ void clear(Descent& descent) {
    unsigned* copies = &descent.copies[0][0][0];
    for (int i = threadIdx.x; i < (1 + LIMBS) * DIGITS * COPIES; i += blockDim.x) copies[i] = 0;
    __syncthreads();
}

// Adds a choice to the histogram.
__device__ __forceinline__ void add(unsigned digit, unsigned long long weight, Descent& descent) {
    int copy = threadIdx.x % COPIES;
    atomicAdd(&descent.copies[0][digit][copy], 1u);
#pragma unroll
    for (int i = 0; i < LIMBS; i++) {
        unsigned limb = unsigned(weight >> i * LIMB_BITS) & LIMB_MASK;
        if (limb != 0) atomicAdd(&descent.copies[1 + i][digit][copy], limb);
    }
}

// Sums up the count and the weight of every digit.
__device__ __forceinline__ void gather(Descent& descent) {
    __syncthreads();
    int digit = threadIdx.x;
    if (digit < DIGITS) {
        unsigned long long sums[1 + LIMBS] = {};
#pragma unroll
        for (int i = 0; i <= LIMBS; i++) {
            for (int copy = 0; copy < COPIES; copy++) sums[i] += descent.copies[i][digit][copy];
        }
        descent.counts[digit] = unsigned(sums[0]);
        descent.weights[digit] = sums[1] + (sums[2] << LIMB_BITS) + (sums[3] << 2 * LIMB_BITS);
    }
    __syncthreads();
}

// Returns the first place at which the count, or the weight, reaches `need`, which is at most that
// of all.
__device__ __forceinline__ Place descend(Choices choices, bool by_count, unsigned long long need,
                                         Descent& descent) {
    __syncthreads();
    if (threadIdx.x == 0) descent.prefix = 0, descent.weight = 0, descent.count = 0;
    int bits = KEY_BITS;
    do {
        bits -= DIGIT_BITS;
        clear(descent);
        unsigned long long prefix = descent.prefix;
        each_choice(choices.logits, choices.count, [&](int i, float logit) {
            unsigned long long key = choices.key(i, logit) >> bits;
            if (key >> DIGIT_BITS == prefix) add(key % DIGITS, fixed(choices.weight(logit)), descent);
        });
        gather(descent);
        if (threadIdx.x < WARP) choose_digit(descent, by_count, need);
        __syncthreads();
    } while (descent.in_bin > 1 && bits > 0);
    each_choice(choices.logits, choices.count, [&](int i, float logit) {
        if (choices.key(i, logit) >> bits != descent.prefix) return;
        descent.place = {unsigned(i), descent.count + 1, descent.weight + fixed(choices.weight(logit))};
    });
    __syncthreads();
    return descent.place;
}

// Returns the count and the weight of the choices whose weight is at least `least`.
__device__ __forceinline__ Place at_least(Choices choices, float least, unsigned long long scratch[WARP]) {
    unsigned long long count = 0, weight = 0;
    each_choice(choices.logits, choices.count, [&](int, float logit) {
        float w = choices.weight(logit);
        if (!(w < least)) count += 1, weight += fixed(w);
    });
    return {0, unsigned(block_sum(count, scratch)), block_sum(weight, scratch)};
}

// Writes a token and its log-probability for each row that truncates its choices: by top-k (0 keeps
// all), then top-p, then min-p.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1)
sample_truncated(const float* logits, const RowSampling* rows, unsigned* tokens, float* logp, int vocab,
                 int stride) {
    __shared__ float scratch[WARP];
    __shared__ Descent descent;
    __shared__ unsigned long long sums[WARP];
    RowSampling own = rows[blockIdx.x];
    if (own.kind != TRUNCATED) return;
    int num_choices = own.choices;
    float inverse_temperature = own.inverse_temperature;
    const float* row = logits + size_t(blockIdx.x) * stride;
    Statistics found = statistics(row, vocab, inverse_temperature, scratch);
    Choices choices = {row, num_choices, largest(row, num_choices, scratch), inverse_temperature};
    bool limits_count = own.top_k > 0 && own.top_k < num_choices;
    Place cut = limits_count ? descend(choices, true, own.top_k, descent) : at_least(choices, 0, sums);
    if (own.top_p < 1.0f) {
        double share = ceil(double(own.top_p) * double(cut.weight));
        Place nucleus = descend(choices, false, share < 1 ? 1 : (unsigned long long)(share), descent);
        if (nucleus.count < cut.count) cut = nucleus;
    }
    if (own.min_p > 0.0f) {
        // The most likely token always stays.
        Place likely = at_least(choices, fminf(own.min_p, 1.0f), sums);
        if (likely.count < cut.count) cut = likely;
    }
    double u = uniform(own.key, own.index);
    unsigned long long need = (unsigned long long)(u * double(cut.weight)) + 1;
    Place drawn = descend(choices, false, need < cut.weight ? need : cut.weight, descent);
    if (threadIdx.x > 0) return;
    unsigned token = inside(drawn.token, num_choices);
    tokens[blockIdx.x] = token;
    logp[blockIdx.x] = log_probability(found, inverse_temperature, row[token]);
}
